package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"headwater.example/client"
	"headwater.example/internal/localcluster"
)

// replicaCost measures tokens of a session with a copy of each shard / those of one without, at some positions. The two take turns, which
// are so short that both meet the same minute.
func replicaCost(ctx context.Context, f *figures) (values []float64, err error) {
	l, err := f.start(ctx, localcluster.Options{})
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, l.end(ctx)) }()
	for _, c := range []struct {
		name                   string
		positions, pairs, each int
	}{{"replica_cost", 16384, 60, 4}, {"replica_cost_128", 128, 300, 16}} {
		var two [2]*walker
		for i := range two {
			s, err := l.open(ctx, client.SessionOptions{Direct: true, Replicas: []int{-1, 1}[i]}, c.positions-1)
			if err != nil {
				return nil, err
			}
			two[i] = &walker{session: s}
		}
		m := newModel(1)
		var ratios []float64
		for pair := range c.pairs {
			var took [2]float64
			for k := range two {
				i := (k + pair) % len(two) // neither is always first
				if took[i], err = two[i].tokensOf(ctx, m, c.positions, c.each); err != nil {
					return nil, err
				}
			}
			if pair == 0 {
				continue // it warms up
			}
			ratios = append(ratios, took[1]/took[0])
			f.add(c.name, took[1]/took[0], map[string]float64{"with_seconds": took[1], "without_seconds": took[0]})
		}
		fmt.Fprintf(os.Stderr, "%s: %d pairs\n", c.name, len(ratios))
		values = append(values, middle(ratios))
		for _, w := range two {
			if err := w.session.Drop(ctx); err != nil {
				return nil, err
			}
		}
	}
	return values, nil
}

// tokensOf returns the median of the seconds that tokens take which see so many positions and a few more.
func (w *walker) tokensOf(ctx context.Context, m *model, positions, n int) (float64, error) {
	if err := w.session.Truncate(ctx, positions-1); err != nil {
		return 0, err
	}
	took := make([]float64, n)
	for i := range took {
		began := time.Now()
		for layer := range layers {
			if err := w.session.Do(ctx, m.step(w.session, layer, 1, true)); err != nil {
				return 0, err
			}
		}
		took[i] = time.Since(began).Seconds()
	}
	return middle(took), nil
}
