package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	"headwater.example/client"
	"headwater.example/internal/localcluster"
	"headwater.example/tensor"
)

// memoryUsed is what a worker took for the gradients of a layer.
type memoryUsed struct {
	Tensors int64   `json:"tensor_bytes"` // of q, k, v, context and their gradients
	Peak    int64   `json:"peak_anonymous_bytes"`
	Elapsed float64 `json:"elapsed_seconds"`
}

// sampleEvery is how often the worker's memory is read.
const sampleEvery = 5 * time.Millisecond

// memory runs a job of gradients on one worker and watches it.
func memory(ctx context.Context, bin string, tokens int) (_ *memoryUsed, err error) {
	dir, err := os.MkdirTemp("", "headwater-figures-")
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	path := filepath.Join(dir, "job.safetensors")
	bytes, err := writeJob(path, tokens)
	if err != nil {
		return nil, err
	}
	command, err := filepath.Abs(filepath.Join(bin, "coord"))
	if err != nil {
		return nil, err
	}
	cluster, err := localcluster.Start(ctx, localcluster.Options{Workers: 1, Memory: 4 << 30, Command: []string{command}})
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, cluster.Stop(context.WithoutCancel(ctx))) }()
	c, err := client.Dial(cluster.Address())
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, c.Close()) }()
	m := &memoryUsed{Tensors: bytes}
	done := make(chan struct{})
	var sampling sync.WaitGroup
	var sampleErr error
	sampling.Go(func() { m.Peak, sampleErr = peak(cluster.Process(0), done) })
	began := time.Now()
	job, err := c.Submit(ctx, client.SubmitOptions{Path: path})
	if err == nil {
		_, err = c.Wait(ctx, job.ID, nil)
	}
	m.Elapsed = time.Since(began).Seconds()
	close(done)
	sampling.Wait()
	return m, errors.Join(err, sampleErr)
}

// peak is the most anonymous resident memory that a process has until done.
func peak(pid int, done <-chan struct{}) (most int64, err error) {
	tick := time.NewTicker(sampleEvery)
	defer tick.Stop()
	for {
		n, err := anonymous(pid)
		if err != nil {
			return 0, err
		}
		most = max(most, n)
		select {
		case <-done:
			return most, nil
		case <-tick.C:
		}
	}
}

// anonymous is a process's anonymous resident memory in bytes (proc(5), RssAnon).
func anonymous(pid int) (int64, error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(text)) {
		if value, ok := strings.CutPrefix(line, "RssAnon:"); ok {
			kib, err := strconv.ParseInt(strings.TrimSuffix(strings.TrimSpace(value), " kB"), 10, 64)
			return kib << 10, err
		}
	}
	return 0, fmt.Errorf("process %d has no RssAnon", pid)
}

// writeJob writes the job, and returns the bytes of q, k, v, context and their gradients.
func writeJob(path string, tokens int) (bytes int64, err error) {
	infos := []tensor.Info{
		{Name: "q", DType: tensor.F32, Shape: []int{tokens, heads, headDim}},
		{Name: "k", DType: tensor.F32, Shape: []int{tokens, groups, headDim}},
		{Name: "v", DType: tensor.F32, Shape: []int{tokens, groups, headDim}},
		{Name: "d_context", DType: tensor.F32, Shape: []int{tokens, heads, headDim}},
	}
	for _, i := range infos {
		bytes += 2 * i.Bytes() // d_context stands for the context too
	}
	metadata := map[string]string{"headwater": `{"kind":"attention_grad","causal":true}`}
	reserve, err := tensor.MetadataBytes(metadata)
	if err != nil {
		return 0, err
	}
	layout, err := tensor.NewLayout(infos, reserve)
	if err != nil {
		return 0, err
	}
	header, err := layout.Header(metadata)
	if err != nil {
		return 0, err
	}
	f, err := os.Create(path)
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	w := bufio.NewWriterSize(f, 1<<20)
	if _, err := w.Write(header); err != nil {
		return 0, err
	}
	rnd := rand.New(rand.NewPCG(1, 2))
	for left := (layout.Size() - int64(len(header))) / 4; left > 0; {
		n := min(left, 1<<16)
		if _, err := w.Write(littleEndian(normals(rnd, int(n)))); err != nil {
			return 0, err
		}
		left -= n
	}
	return bytes, w.Flush()
}
