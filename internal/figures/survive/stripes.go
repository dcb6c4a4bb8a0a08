package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"time"

	"headwater.example/attention"
	"headwater.example/client"
	"headwater.example/internal/localcluster"
	"headwater.example/tensor"
)

const (
	// stripedPositions are those of a sequence of one group that two workers share.
	stripedPositions = 64 << 10
	stripedRounds    = 24
	stripedTokens    = 8 // of each side in a round
)

// mqa measures tokens of one group of 64k positions: what a second worker of one thread gains if it holds every second split / what a
// second core gains a kernel. All four take turns, so that they meet the same minute. The system's scheduler may let both workers begin
// on one core, so they are measured once more with a core for each.
func mqa(ctx context.Context, f *figures) (values []float64, err error) {
	l, err := f.start(ctx, localcluster.Options{Workers: 2})
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, l.end(ctx)) }()
	var sides [2]*client.Session
	for i := range sides {
		if sides[i], err = l.openGroup(ctx, i+1); err != nil {
			return nil, err
		}
	}
	kernel, err := newKernel()
	if err != nil {
		return nil, err
	}
	defer kernel.close()
	free, err := l.gain(ctx, f, "mqa_2w", sides, kernel)
	if err != nil {
		return nil, err
	}
	for i := range sides {
		if err := keep(l.Process(i), i); err != nil {
			return nil, err
		}
	}
	kept, err := l.gain(ctx, f, "mqa_2w_cores", sides, kernel)
	return []float64{free, kept}, err
}

// gain returns the middle of the ratios of some rounds, and tells what processor time a token takes.
func (l *load) gain(ctx context.Context, f *figures, name string, sides [2]*client.Session, kernel *kernel) (float64, error) {
	m := newModel(1)
	var ratios []float64
	var used [2][3]float64 // seconds of the client and of the workers
	for round := range stripedRounds {
		var token, attend [2]float64
		for k := range sides {
			i := (k + round) % len(sides) // neither is always first
			before, err := l.processorTimes()
			if err != nil {
				return 0, err
			}
			if token[i], err = tokensOf(ctx, m, sides[i]); err != nil {
				return 0, err
			}
			after, err := l.processorTimes()
			if err != nil {
				return 0, err
			}
			for p := range after {
				used[i][p] += (after[p] - before[p]) / (stripedRounds * stripedTokens)
			}
			if attend[i], err = kernel.attends(ctx, m, i); err != nil {
				return 0, err
			}
		}
		if round == 0 {
			continue // it warms up
		}
		ratio := token[0] / token[1] / (attend[0] / attend[1])
		ratios = append(ratios, ratio)
		f.add(name, ratio, map[string]float64{"one_worker_seconds": token[0], "two_workers_seconds": token[1], "one_core_seconds": attend[0], "two_cores_seconds": attend[1]})
	}
	for i, all := range used {
		fmt.Fprintf(os.Stderr, "%s: a token on %d of the workers takes %.2f ms of processors at the client, %.2f and %.2f ms at the workers\n", name, i+1, 1e3*all[0], 1e3*all[1], 1e3*all[2])
	}
	return middle(ratios), nil
}

// processorTimes are those of the client, which is this process, and of two workers.
func (l *load) processorTimes() (all [3]float64, err error) {
	for i, process := range []int{os.Getpid(), l.Process(0), l.Process(1)} {
		if all[i], err = processorTime(process); err != nil {
			return all, err
		}
	}
	return all, nil
}

// openGroup opens a session of one group on so many workers and fills it.
func (l *load) openGroup(ctx context.Context, workers int) (*client.Session, error) {
	s, err := l.client.OpenSession(ctx, client.SessionOptions{
		Layers: []client.Layer{{Heads: heads, KVHeads: 1, HeadDim: headDim, Storage: tensor.BF16}}, Direct: true, Replicas: -1, Codec: client.Raw,
		Workers: workers, Stripes: workers, Name: fmt.Sprintf("%d workers", workers),
	})
	if err != nil {
		return nil, err
	}
	const piece = 4096
	rows := random(piece*headDim, rand.New(rand.NewPCG(1, 2)))
	for done := 0; done < stripedPositions; done += piece {
		if err := s.Do(ctx, &client.Step{K: rows, V: rows}); err != nil {
			return nil, err
		}
	}
	return s, nil
}

// tokensOf returns the median of the seconds that tokens take.
func tokensOf(ctx context.Context, m *model, s *client.Session) (float64, error) {
	if err := s.Truncate(ctx, stripedPositions); err != nil {
		return 0, err
	}
	took := make([]float64, stripedTokens)
	for i := range took {
		began := time.Now()
		if err := s.Do(ctx, &client.Step{Q: m.q[:heads*headDim], K: m.k[:headDim], V: m.v[:headDim], Context: m.context, LSE: m.lse}); err != nil {
			return 0, err
		}
		took[i] = time.Since(began).Seconds()
	}
	return middle(took), nil
}

// kernel is the same group in this process, on pools of one and two threads.
type kernel struct {
	kv    attention.KV
	pools [2]*attention.Pool
}

func newKernel() (*kernel, error) {
	layout, err := attention.NewLayout(tensor.BF16, headDim, headDim)
	if err != nil {
		return nil, err
	}
	k := &kernel{kv: attention.KV{Layout: layout, Len: stripedPositions}}
	rows := attention.Rows{K: make([]byte, attention.PageLen*layout.KRowBytes()), V: make([]byte, attention.PageLen*layout.VRowBytes())}
	x := random(attention.PageLen*headDim, rand.New(rand.NewPCG(1, 2)))
	if err := errors.Join(tensor.Narrow(rows.K, x, tensor.BF16), tensor.Narrow(rows.V, x, tensor.BF16)); err != nil {
		return nil, err
	}
	memory := make([]byte, stripedPositions/attention.PageLen*layout.PageBytes())
	for at := 0; at < len(memory); at += layout.PageBytes() {
		page := memory[at:][:layout.PageBytes()]
		if err := layout.Write(page, 0, attention.PageLen, rows); err != nil {
			return nil, err
		}
		k.kv.Pages = append(k.kv.Pages, page)
	}
	for i := range k.pools {
		k.pools[i] = attention.NewPool(i + 1)
	}
	return k, nil
}

func (k *kernel) close() {
	for _, p := range k.pools {
		p.Close()
	}
}

// attends returns the median of the seconds that one token's queries take on the i-th pool.
func (k *kernel) attends(ctx context.Context, m *model, i int) (float64, error) {
	options := attention.DefaultOptions(headDim)
	options.Causal = true
	query := attention.Query{Q: m.q[:heads*headDim], Tokens: 1, Heads: heads, Offset: stripedPositions - 1}
	thread, err := k.pools[i].Acquire(ctx, attention.Foreground)
	if err != nil {
		return 0, err
	}
	defer thread.Release()
	took := make([]float64, stripedTokens)
	for n := range took {
		began := time.Now()
		if err := thread.Attend(ctx, k.kv, query, options, attention.Output{Context: m.context, LSE: m.lse}); err != nil {
			return 0, err
		}
		took[n] = time.Since(began).Seconds()
	}
	return middle(took), nil
}
