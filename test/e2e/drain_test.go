//go:build linux

package e2e

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"

	"headwater.example/client"
	"headwater.example/internal/localcluster"
	"headwater.example/tensor"
)

// twin is a session, and one of a cluster to which nothing happens, which gets the same.
type twin struct {
	*client.Session
	truth *client.Session
	rand  *rand.Rand
}

var twinLayers = []client.Layer{{Heads: 8, KVHeads: 4, HeadDim: 16, Storage: tensor.BF16}, {Heads: 4, KVHeads: 2, HeadDim: 16, Storage: tensor.I8}}

// twins opens sessions with and without copies, relayed and direct, of some positions.
func twins(t *testing.T, c, calm *cluster, n int) (all []*twin) {
	t.Helper()
	for i := range n {
		all = append(all, openTwin(t, c, calm, client.SessionOptions{Direct: i&1 == 1, Replicas: []int{-1, 1}[i>>1&1]}, 200, uint64(i)))
	}
	return all
}

// openTwin opens a session of so many positions.
func openTwin(t *testing.T, c, calm *cluster, opts client.SessionOptions, positions int, seed uint64) *twin {
	t.Helper()
	opts.Layers = twinLayers
	s, err := c.OpenSession(t.Context(), opts)
	if err != nil {
		t.Fatal(err)
	}
	truth, err := calm.OpenSession(t.Context(), client.SessionOptions{Layers: twinLayers})
	if err != nil {
		t.Fatal(err)
	}
	one := &twin{s, truth, rand.New(rand.NewPCG(15, seed))}
	if err := one.step(t.Context(), positions); err != nil {
		t.Fatal(err)
	}
	return one
}

// step appends the same tokens to both, layer by layer, and returns an error unless the same is seen.
func (s *twin) step(ctx context.Context, tokens int) error {
	for l, shape := range twinLayers {
		draw := func(heads int) []float32 {
			x := make([]float32, tokens*heads*shape.HeadDim)
			for i := range x {
				x[i] = float32(s.rand.NormFloat64())
			}
			return x
		}
		q, k, v := draw(shape.Heads), draw(shape.KVHeads), draw(shape.KVHeads)
		var contexts [2][]float32
		for i, one := range []*client.Session{s.Session, s.truth} {
			contexts[i] = make([]float32, len(q))
			if err := one.Step(ctx, l, q, k, v, contexts[i], nil); err != nil {
				return fmt.Errorf("at %d positions: %w", s.Len(), err)
			}
		}
		if !slices.Equal(contexts[0], contexts[1]) {
			return fmt.Errorf("layer %d at %d positions: other bits than where nothing happens", l, s.Len())
		}
	}
	return nil
}

// keepStepping steps sessions, all at once, until stop is called, which returns what went wrong.
func keepStepping(t *testing.T, all []*twin) (stop func() error) {
	t.Helper()
	ended, errs := make(chan struct{}), make([]error, len(all))
	var tasks sync.WaitGroup
	for i, s := range all {
		tasks.Go(func() {
			for errs[i] == nil {
				select {
				case <-ended:
					return
				default:
					errs[i] = s.step(t.Context(), 1)
				}
			}
		})
	}
	stop = sync.OnceValue(func() error { close(ended); tasks.Wait(); return errors.Join(errs...) })
	t.Cleanup(func() { _ = stop() }) // where the test has failed already
	return stop
}

// TestARollingUpdateLosesNothing: one worker after the other is asked to end, as an update does, and started again, while sessions with
// and without copies are stepped. None has an error or other bits.
func TestARollingUpdateLosesNothing(t *testing.T) {
	t.Parallel()
	c, calm := start(t, localcluster.Options{Workers: 3, Threads: 1}), start(t, localcluster.Options{Workers: 1, Threads: 1})
	all := twins(t, c, calm, 8)
	stop := keepStepping(t, all)
	for worker := range c.Workers() {
		c.signal(t, worker, syscall.SIGTERM)
		select {
		case <-c.WorkerDone(worker):
		case <-bounded(t).Done():
			t.Fatal("a worker that was asked to end does not")
		}
		if err := c.RestartWorker(bounded(t), worker); err != nil {
			t.Fatal(err)
		}
		if err := c.AwaitWorkers(bounded(t)); err != nil {
			t.Fatal(err)
		}
	}
	if err := stop(); err != nil {
		t.Error(err)
	}
}

// TestADrainedWorkerCanBeKilled: sessions go on while the command line drains their workers, and spreads them again. Then a worker
// that was drained dies, and nobody notices.
func TestADrainedWorkerCanBeKilled(t *testing.T) {
	t.Parallel()
	c, calm := start(t, localcluster.Options{Workers: 3, Threads: 1}), start(t, localcluster.Options{Workers: 1, Threads: 1})
	all := twins(t, c, calm, 8)
	stop := keepStepping(t, all)
	coord(t, "drain", c.Name(0), "--coordinator", c.Address()).progressed().succeeds(t)
	neverSaid(t, c, "a copy of a session goes through the coordinator")
	c.Kill(0)
	if err := c.RestartWorker(bounded(t), 0); err != nil {
		t.Fatal(err)
	}
	if err := c.AwaitWorkers(bounded(t)); err != nil {
		t.Fatal(err)
	}
	holds := func(s client.SessionState) bool {
		return slices.ContainsFunc(s.Holders, func(h client.Holder) bool { return h.Name == c.Name(0) })
	}
	spreading := bounded(t)
	for again := true; again; { // it passes by a worker that has not been seen to answer yet, and says so
		out := coord(t, "rebalance", "--coordinator", c.Address()).progressed()
		if out.code != 0 || out.stderr != "" && !strings.Contains(out.stderr, "did not answer") {
			t.Fatalf("exit code %d, it said %s", out.code, out.stderr)
		}
		list, err := c.Sessions(spreading)
		if err != nil {
			t.Fatal(err)
		}
		again = !slices.ContainsFunc(list.Sessions, holds)
	}
	coord(t, "drain", c.Name(1), "--coordinator", c.Address()).progressed().succeeds(t)
	coord(t, "drain", c.Name(1), "--undo", "--coordinator", c.Address()).progressed().succeeds(t)
	if err := stop(); err != nil {
		t.Error(err)
	}
}
