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
// second core gains a kernel. All four take turns, so that they meet the same minute.
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
	m := newModel(1)
	var ratios []float64
	for round := range stripedRounds {
		var token, attend [2]float64
		for k := range sides {
			i := (k + round) % len(sides) // neither is always first
			if token[i], err = tokensOf(ctx, m, sides[i]); err != nil {
				return nil, err
			}
			if attend[i], err = kernel.attends(ctx, m, i); err != nil {
				return nil, err
			}
		}
		if round == 0 {
			continue // it warms up
		}
		ratio := token[0] / token[1] / (attend[0] / attend[1])
		ratios = append(ratios, ratio)
		f.add("mqa_2w", ratio, map[string]float64{"one_worker_seconds": token[0], "two_workers_seconds": token[1], "one_core_seconds": attend[0], "two_cores_seconds": attend[1]})
	}
	fmt.Fprintf(os.Stderr, "mqa_2w: %d rounds\n", len(ratios))
	return []float64{middle(ratios)}, nil
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
