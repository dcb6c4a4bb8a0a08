// Package jobs is what figures of whole jobs share: job files of seeded random numbers, of any size, and the memory of the
// processes that compute them.
package jobs

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"strconv"
	"strings"
	"time"

	"headwater.example/tensor"
)

// chunk is how many numbers are drawn at a time.
const chunk = 1 << 16

// Write writes a job file of F32 tensors, whose numbers are drawn one tensor after the other, and returns its size.
func Write(path string, infos []tensor.Info, metadata map[string]string, draw func(n int) []float32) (size int64, err error) {
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
	for left := (layout.Size() - int64(len(header))) / 4; left > 0; {
		n := min(left, chunk)
		if err := binary.Write(w, binary.LittleEndian, draw(int(n))); err != nil {
			return 0, err
		}
		left -= n
	}
	return layout.Size(), w.Flush()
}

// Attention are the tensors of an attention of queries on positions.
func Attention(queries, positions, heads, groups, headDim int) []tensor.Info {
	return []tensor.Info{
		{Name: "q", DType: tensor.F32, Shape: []int{queries, heads, headDim}},
		{Name: "k", DType: tensor.F32, Shape: []int{positions, groups, headDim}},
		{Name: "v", DType: tensor.F32, Shape: []int{positions, groups, headDim}},
	}
}

// Uniform draws numbers from −1 to 1.
func Uniform(rng *rand.Rand) func(n int) []float32 {
	return func(n int) []float32 {
		x := make([]float32, n)
		for i := range x {
			x[i] = rng.Float32()*2 - 1
		}
		return x
	}
}

// Watch calls see with the anonymous resident memory of a process, in bytes, again and again until done.
func Watch(pid int, every time.Duration, done <-chan struct{}, see func(bytes int64)) error {
	tick := time.NewTicker(every)
	defer tick.Stop()
	for {
		n, err := anonymous(pid)
		if err != nil {
			return err
		}
		see(n)
		select {
		case <-done:
			return nil
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
