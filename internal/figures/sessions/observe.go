package main

import (
	"context"
	"errors"
	"path/filepath"

	"headwater.example/client"
	"headwater.example/internal/localcluster"
)

// What a cluster needs to be observed.
var adminPort = []string{"--admin", "127.0.0.1:0"}

// observed measures what a step through a coordinator costs more where coordinator and worker are observed. Two clusters run side
// by side and take turns.
func observed(ctx context.Context, f *figures) (err error) {
	const (
		positions = 128
		turns     = 10
		each      = 200
	)
	program, err := filepath.Abs(filepath.Join(f.bin, "coord"))
	if err != nil {
		return err
	}
	m := newModel(positions)
	var ways [2]struct {
		session *client.Session
		step    *client.Step
	}
	for i := range ways {
		o := localcluster.Options{Workers: 1, Threads: 1, Memory: 2 << 30, Command: []string{program}}
		if i == 1 {
			o.CoordinatorArgs, o.WorkerArgs = adminPort, adminPort
		}
		local, err := localcluster.Start(ctx, o)
		if err != nil {
			return err
		}
		c := &cluster{Cluster: local}
		if c.client, err = client.Dial(local.Address()); err != nil {
			return errors.Join(err, local.Stop(ctx))
		}
		defer func() { err = errors.Join(err, c.stop(ctx)) }()
		layer := client.Layer{Heads: heads, KVHeads: kvHeads, HeadDim: headDim, Storage: storage}
		s, err := c.client.OpenSession(ctx, client.SessionOptions{Layers: []client.Layer{layer}, Codec: client.Raw})
		if err != nil {
			return err
		}
		if err := s.Do(ctx, m.step(s, 0, positions-1, false)); err != nil {
			return err
		}
		ways[i].session, ways[i].step = s, m.step(s, 0, 1, true)
	}
	for round := range f.rounds + 1 {
		var took [2][]float64
		for turn := range turns {
			for k := range ways {
				i := (k + turn) % len(ways) // neither is always first
				w := ways[i]
				if err := w.session.Truncate(ctx, positions-1); err != nil {
					return err
				}
				seconds, err := times(each/turns, func() error { return w.session.Do(ctx, w.step) })
				if err != nil {
					return err
				}
				took[i] = append(took[i], seconds)
			}
		}
		if round == 0 {
			continue // to warm up
		}
		without, with := median(took[0]), median(took[1])
		f.add("metrics_cost", with/without, map[string]float64{"without_seconds": without, "with_seconds": with})
	}
	return nil
}
