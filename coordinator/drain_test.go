package coordinator_test

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"

	"headwater.example/client"
	"headwater.example/coordinator"
	"headwater.example/tensor"
)

// twin is a session and one of a single worker, which gets the same.
type twin struct {
	*client.Session
	truth  *client.Session
	layers []client.Layer
	seed   uint64
}

// openTwin opens a session on a cluster and its twin on another one.
func openTwin(t *testing.T, c, one *cluster, seed uint64, opts client.SessionOptions) *twin {
	t.Helper()
	s, err := c.OpenSession(t.Context(), opts)
	if err != nil {
		t.Fatal(err)
	}
	truth, err := one.OpenSession(t.Context(), client.SessionOptions{Layers: opts.Layers})
	if err != nil {
		t.Fatal(err)
	}
	return &twin{s, truth, opts.Layers, seed << 32}
}

// step does a step of random tensors on each layer of both, and returns an error unless they answer alike.
func (s *twin) step(t *testing.T, appended int) error {
	s.seed++
	for l := range s.layers {
		got := drawn(rand.New(rand.NewPCG(s.seed, uint64(l))), s.layers[l], l, appended, appended)
		want := drawn(rand.New(rand.NewPCG(s.seed, uint64(l))), s.layers[l], l, appended, appended)
		if err := s.Do(t.Context(), got); err != nil {
			return fmt.Errorf("at %d positions: %w", s.Len(), err)
		}
		if err := s.truth.Do(t.Context(), want); err != nil {
			return err
		}
		if !slices.Equal(got.Context, want.Context) || !slices.Equal(got.LSE, want.LSE) {
			return fmt.Errorf("layer %d at %d positions: other bits than a single worker's", l, s.Len())
		}
	}
	return nil
}

// keepStepping steps sessions, each in a goroutine, until stop is called, which returns the first error.
func keepStepping(t *testing.T, all []*twin) (stop func() error) {
	ended := make(chan struct{})
	errs := make([]error, len(all))
	var tasks sync.WaitGroup
	for i, s := range all {
		tasks.Go(func() {
			for errs[i] == nil {
				select {
				case <-ended:
					return
				default:
					errs[i] = s.step(t, 1)
				}
			}
		})
	}
	return sync.OnceValue(func() error { close(ended); tasks.Wait(); return errors.Join(errs...) })
}

var drainLayers = []client.Layer{
	{Heads: 8, KVHeads: 4, HeadDim: 16, Storage: tensor.BF16},
	{Heads: 4, KVHeads: 2, HeadDim: 16, Storage: tensor.I8, WindowLeft: client.Within(70)},
}

// TestADrainedWorkerHoldsNothing: sessions move away from a worker that is drained while they go on, with and without copies, relayed
// and direct, spread and whole at one worker; no client has an error, an idle session moves as well, and then the worker can be
// stopped. New sessions and what is restored pass it by until it is undone.
func TestADrainedWorkerHoldsNothing(t *testing.T) {
	one := startCluster(t, clusterOptions{workers: workers(1)})
	c := startCluster(t, clusterOptions{workers: workers(3)})
	var all []*twin
	for i := range 16 {
		s := openTwin(t, c, one, uint64(i), client.SessionOptions{
			Layers: drainLayers, Direct: i&1 == 1, Replicas: []int{-1, 1}[i>>1&1], Workers: []int{0, 1}[i>>2&1],
		})
		if err := s.step(t, 150); err != nil {
			t.Fatal(err)
		}
		all = append(all, s)
	}
	busy, idle := all[:12], all[12:]
	for i, victim := range []string{"w1", "w0"} {
		stop := keepStepping(t, busy)
		var last client.Moves
		err := c.Drain(t.Context(), victim, func(m client.Moves) { last = m })
		if stopped := stop(); err != nil || stopped != nil {
			t.Fatalf("drain %s: %v, sessions: %v", victim, err, stopped)
		}
		if !last.Done || last.Left != 0 {
			t.Fatalf("drain %s ends with %+v", victim, last)
		}
		list, err := c.Sessions(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		for _, s := range list.Sessions {
			if slices.ContainsFunc(s.Holders, func(h client.Holder) bool { return h.Name == victim }) {
				t.Errorf("session %s is at %s still", s.ID, victim)
			}
		}
		fresh := openTwin(t, c, one, uint64(100+i), client.SessionOptions{Layers: drainLayers, Replicas: 1})
		if err := fresh.step(t, 1); err != nil {
			t.Error(err)
		}
		found, err := c.FindSession(t.Context(), fresh.ID())
		if err != nil || slices.ContainsFunc(found.Holders, func(h client.Holder) bool { return h.Name == victim }) {
			t.Errorf("a new session is at a worker that is drained: %v: %v", found, err)
		}
		if i == 0 { // as after its upgrade
			if err := c.Undrain(t.Context(), victim); err != nil {
				t.Fatal(err)
			}
		}
	}
	c.workers[0].server.Stop()
	for _, s := range append(busy, idle...) {
		if err := s.step(t, 1); err != nil {
			t.Errorf("after the drained worker was stopped: %v", err)
		}
	}
	if err := c.Drain(t.Context(), "w7", nil); !errors.Is(err, client.ErrNotFound) {
		t.Errorf("a worker that is none is drained: %v", err)
	}
}

// TestRebalanceEvensTheLoad: after workers have joined, a rebalance spreads what sessions hold by the workers' weights, while they go
// on.
func TestRebalanceEvensTheLoad(t *testing.T) {
	one := startCluster(t, clusterOptions{workers: workers(1)})
	c := startCluster(t, clusterOptions{workers: workers(2), config: coordinator.Config{Replicas: 1}})
	var all []*twin
	for i := range 24 {
		s := openTwin(t, c, one, uint64(i), client.SessionOptions{Layers: drainLayers, Direct: i%2 == 1, Replicas: []int{-1, 1}[i>>1&1]})
		if err := s.step(t, 200); err != nil {
			t.Fatal(err)
		}
		all = append(all, s)
	}
	heavy := startWorker(t, "w2", workerOptions{weight: 2})
	c.view.set(c.workers[0].Member, c.workers[1].Member, heavy.Member)
	stop := keepStepping(t, all[:6])
	err := c.Rebalance(t.Context(), nil)
	if stopped := stop(); err != nil || stopped != nil {
		t.Fatalf("rebalance: %v, sessions: %v", err, stopped)
	}
	list, err := c.Sessions(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	bytes, sum := map[string]float64{}, 0.0
	for _, s := range list.Sessions {
		for _, h := range s.Holders {
			bytes[h.Name] += float64(h.PageBytes)
			sum += float64(h.PageBytes)
		}
	}
	for name, weight := range map[string]float64{"w0": 1, "w1": 1, "w2": 2} {
		if part := bytes[name] / sum; part < weight/4*0.85 || part > weight/4*1.15 {
			t.Errorf("%s holds %.2f of all, its weight says %.2f", name, part, weight/4)
		}
	}
	for _, s := range all {
		if err := s.step(t, 1); err != nil {
			t.Error(err)
		}
	}
}

// TestARebalanceNamesWhoDoesNotAnswer: what a worker holds that does not answer is not counted, so it is said.
func TestARebalanceNamesWhoDoesNotAnswer(t *testing.T) {
	c := startCluster(t, clusterOptions{workers: workers(3), config: coordinator.Config{Replicas: 1}})
	if _, err := c.OpenSession(t.Context(), client.SessionOptions{Layers: drainLayers}); err != nil {
		t.Fatal(err)
	}
	c.workers[1].server.Stop()
	var all []client.Moves
	if err := c.Rebalance(t.Context(), func(m client.Moves) { all = append(all, m) }); err != nil {
		t.Fatal(err)
	}
	for _, m := range all {
		if len(m.Silent) != 1 || m.Silent[0].Worker != "w1" || m.Silent[0].Error == "" {
			t.Errorf("silent are %v", m.Silent)
		}
	}
	if len(all) == 0 || !all[len(all)-1].Done {
		t.Errorf("it ends with %v", all)
	}
}
