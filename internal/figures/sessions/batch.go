package main

import (
	"context"
	"errors"
	"path/filepath"
	"time"

	"golang.org/x/sync/errgroup"

	"headwater.example/client"
	"headwater.example/internal/localcluster"
)

// The sessions that one worker of two threads serves at once.
const (
	batchSessions  = 8
	batchPositions = 4096
	batchThreads   = 2
	batchTurns     = 5  // with the kernel in a round
	batchSteps     = 24 // of each session in a turn
)

// batch measures steps that clients of their own ask one worker for, all at once, and each again as soon as it has its answer.
func batch(ctx context.Context, f *figures) (err error) {
	program, err := filepath.Abs(filepath.Join(f.bin, "coord"))
	if err != nil {
		return err
	}
	local, err := localcluster.Start(ctx, localcluster.Options{Workers: 1, Threads: batchThreads, Memory: 12 << 30, Command: []string{program}})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, local.Stop(context.WithoutCancel(ctx))) }()
	kernel, err := startBare(ctx, batchThreads)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, kernel.stop()) }()
	m := newModel(1024)
	var tokens []*client.Step
	for range batchSessions {
		own, err := client.Dial(local.Address())
		if err != nil {
			return err
		}
		defer func() { err = errors.Join(err, own.Close()) }()
		s, err := (&cluster{local, own}).open(ctx, m, batchPositions-1)
		if err != nil {
			return err
		}
		step := m.step(s, 0, 1, true)
		step.Context, step.LSE = make([]float32, heads*headDim), make([]float32, heads)
		tokens = append(tokens, step)
	}
	for round := range f.rounds + 1 {
		var steps, kernels []float64
		for range batchTurns {
			took, err := together(ctx, tokens)
			if err != nil {
				return err
			}
			steps = append(steps, took)
			for range batchSteps {
				alone, err := kernel.batch(batchPositions, batchSessions)
				if err != nil {
					return err
				}
				kernels = append(kernels, alone)
			}
		}
		if round > 0 { // the first warms up
			f.add("step_b8_2threads", median(kernels)/median(steps), map[string]float64{
				"steps_seconds": median(steps), "kernel_seconds": median(kernels),
			})
		}
	}
	return nil
}

// together lets every session make its steps, and returns the seconds in which each of them has made one.
func together(ctx context.Context, tokens []*client.Step) (float64, error) {
	for _, step := range tokens {
		if err := step.Session.Truncate(ctx, batchPositions-1); err != nil {
			return 0, err
		}
	}
	all, ctx := errgroup.WithContext(ctx)
	began := time.Now()
	for _, step := range tokens {
		all.Go(func() error {
			for range batchSteps {
				if err := step.Session.Do(ctx, step); err != nil {
					return err
				}
			}
			return nil
		})
	}
	err := all.Wait()
	return time.Since(began).Seconds() / batchSteps, err
}
