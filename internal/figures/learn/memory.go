package main

import (
	"context"
	"errors"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync"
	"time"

	"headwater.example/client"
	"headwater.example/internal/figures/jobs"
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
	infos := append(jobs.Attention(tokens, tokens, heads, groups, headDim), tensor.Info{Name: "d_context", DType: tensor.F32, Shape: []int{tokens, heads, headDim}})
	m := &memoryUsed{}
	for _, i := range infos {
		m.Tensors += 2 * i.Bytes() // d_context stands for the context too
	}
	rng := rand.New(rand.NewPCG(1, 2))
	draw := func(n int) []float32 { return normals(rng, n) }
	if _, err := jobs.Write(path, infos, map[string]string{"headwater": `{"kind":"attention_grad","causal":true}`}, draw); err != nil {
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
	done := make(chan struct{})
	var sampling sync.WaitGroup
	var sampleErr error
	sampling.Go(func() {
		sampleErr = jobs.Watch(cluster.Process(0), sampleEvery, done, func(n int64) { m.Peak = max(m.Peak, n) })
	})
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
