package main

import (
	"context"
	"errors"
	"time"

	"github.com/HdrHistogram/hdrhistogram-go"
	"golang.org/x/sync/errgroup"

	"headwater.example/client"
)

// The decodes beside a prefill: a token for each of some sessions at a fixed rate, a few percent of what the worker can do.
const (
	decodes         = 4
	decodePositions = 2048
	decodeEvery     = 25 * time.Millisecond // a token of one of them
	decodeAlone     = 5 * time.Second
)

// stall measures what a long prompt and running decodes do to each other.
func stall(ctx context.Context, f *figures) (err error) {
	const before, prompt = 28672, 4096
	c, err := f.start(ctx, 1)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, c.stop(ctx)) }()
	m := newModel(prompt)
	long, err := c.open(ctx, m, before)
	if err != nil {
		return err
	}
	var tokens []*client.Step
	for range decodes {
		s, err := c.open(ctx, m, decodePositions)
		if err != nil {
			return err
		}
		step := m.step(s, 0, 1, true)
		step.Context, step.LSE = make([]float32, heads*headDim), make([]float32, heads)
		tokens = append(tokens, step)
	}
	fill := func(ctx context.Context) (float64, error) {
		if err := long.Truncate(ctx, before); err != nil {
			return 0, err
		}
		return times(1, func() error { return long.Do(ctx, m.step(long, 0, prompt, true)) })
	}
	for range f.rounds {
		alone, err := decode(ctx, tokens, func(ctx context.Context) error { return pause(ctx, time.Now().Add(decodeAlone)) })
		if err != nil {
			return err
		}
		undisturbed, err := fill(ctx)
		if err != nil {
			return err
		}
		var disturbed float64
		beside, err := decode(ctx, tokens, func(ctx context.Context) (err error) {
			disturbed, err = fill(ctx)
			return err
		})
		if err != nil {
			return err
		}
		p99 := func(h *hdrhistogram.Histogram) float64 { return float64(h.ValueAtQuantile(99)) / 1e6 }
		parts := map[string]float64{
			"p99_alone_seconds": p99(alone), "p99_beside_seconds": p99(beside), "prefill_alone_seconds": undisturbed, "prefill_beside_seconds": disturbed,
			"tokens_alone": float64(alone.TotalCount()), "tokens_beside": float64(beside.TotalCount()),
		}
		f.add("prefill_stall", p99(beside)/p99(alone), parts)
		f.add("prefill_keep", undisturbed/disturbed, parts)
		for _, step := range tokens {
			if err := step.Session.Truncate(ctx, decodePositions); err != nil {
				return err
			}
		}
	}
	return nil
}

// decode lets tokens come at their rate until during has ended, and returns their latencies in microseconds, each counted
// from when it was to come.
func decode(ctx context.Context, tokens []*client.Step, during func(context.Context) error) (*hdrhistogram.Histogram, error) {
	tasks, ctx := errgroup.WithContext(ctx)
	over := make(chan struct{})
	tasks.Go(func() error {
		defer close(over)
		return during(ctx)
	})
	began := time.Now()
	each := make([]*hdrhistogram.Histogram, len(tokens))
	for i, step := range tokens {
		each[i] = hdrhistogram.New(1, int64(time.Minute/time.Microsecond), 3)
		tasks.Go(func() error {
			for n := i; ; n += len(tokens) {
				due := began.Add(time.Duration(n) * decodeEvery)
				if err := pause(ctx, due); err != nil {
					return err
				}
				select {
				case <-over:
					return nil
				default:
				}
				if err := client.Do(ctx, step); err != nil {
					return err
				}
				if err := each[i].RecordValue(max(time.Since(due).Microseconds(), 1)); err != nil {
					return err
				}
			}
		})
	}
	if err := tasks.Wait(); err != nil {
		return nil, err
	}
	all := each[0]
	for _, h := range each[1:] {
		all.Merge(h)
	}
	return all, nil
}

// pause waits until a time.
func pause(ctx context.Context, until time.Time) error {
	t := time.NewTimer(time.Until(until))
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}
