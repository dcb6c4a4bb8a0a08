package coordinator_test

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"

	"headwater.example/client"
	"headwater.example/coordinator"
	"headwater.example/tensor"
)

// drawn fills a step of random tensors.
func drawn(r *rand.Rand, l client.Layer, layer, appended, queries int) *client.Step {
	floats := func(n int) []float32 {
		f := make([]float32, n)
		for i := range f {
			f[i] = float32(r.NormFloat64())
		}
		return f
	}
	return &client.Step{
		Layer: layer, Q: floats(queries * l.Heads * l.HeadDim), K: floats(appended * l.KVHeads * l.HeadDim), V: floats(appended * l.KVHeads * l.HeadDim),
		Context: make([]float32, queries*l.Heads*l.HeadDim), LSE: make([]float32, queries*l.Heads),
	}
}

// TestSessionsOutliveTheirWorkers: sessions with a copy of each shard go on when a worker is killed, whichever it is, and answer
// with the bits that a single worker gives, relayed and direct, also what is forked, truncated and taken up again. They are lost
// only if both copies are.
func TestSessionsOutliveTheirWorkers(t *testing.T) {
	window := client.Within(70)
	layers := []client.Layer{
		{Heads: 8, KVHeads: 4, HeadDim: 16, Storage: tensor.BF16},
		{Heads: 4, KVHeads: 1, HeadDim: 16, Storage: tensor.I8, WindowLeft: window},
	}
	one := startCluster(t, clusterOptions{workers: workers(1)})
	for _, direct := range []bool{false, true} {
		for victim := range 3 {
			t.Run(fmt.Sprintf("direct %v, w%d", direct, victim), func(t *testing.T) {
				c := startCluster(t, clusterOptions{workers: workers(3), config: coordinator.Config{Replicas: 1}})
				s, err := c.OpenSession(t.Context(), client.SessionOptions{Layers: layers, Direct: direct})
				if err != nil {
					t.Fatal(err)
				}
				truth, err := one.OpenSession(t.Context(), client.SessionOptions{Layers: layers})
				if err != nil {
					t.Fatal(err)
				}
				seed := uint64(victim)
				both := func(s, truth *client.Session, appended int) {
					t.Helper()
					seed++
					for layer := range layers {
						got := drawn(rand.New(rand.NewPCG(seed, uint64(layer))), layers[layer], layer, appended, appended)
						want := drawn(rand.New(rand.NewPCG(seed, uint64(layer))), layers[layer], layer, appended, appended)
						if err := s.Do(t.Context(), got); err != nil {
							t.Fatalf("at %d positions: %v", s.Len(), err)
						}
						if err := truth.Do(t.Context(), want); err != nil {
							t.Fatal(err)
						}
						if !slices.Equal(got.Context, want.Context) || !slices.Equal(got.LSE, want.LSE) {
							t.Fatalf("layer %d at %d positions: other bits than a single worker's", layer, s.Len())
						}
					}
				}
				both(s, truth, 150)
				both(s, truth, 1)
				c.workers[victim].server.Stop()
				for range 3 {
					both(s, truth, 1)
				}
				fork, err := s.Fork(t.Context())
				if err != nil {
					t.Fatal(err)
				}
				other, err := truth.Fork(t.Context())
				if err != nil {
					t.Fatal(err)
				}
				both(fork, other, 2)
				receipt := s.Receipt()
				again, err := c.Attach(t.Context(), s.ID(), client.AttachOptions{Receipt: &receipt, Direct: !direct})
				if err != nil {
					t.Fatal(err)
				}
				if err := again.Truncate(t.Context(), again.Len()-2); err != nil {
					t.Fatal(err)
				}
				if err := truth.Truncate(t.Context(), truth.Len()-2); err != nil {
					t.Fatal(err)
				}
				both(again, truth, 70)
				if err := again.Drop(t.Context()); err != nil {
					t.Error(err)
				}
			})
		}
	}
}
