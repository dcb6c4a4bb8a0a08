package client_test

import (
	"fmt"
	"math/rand/v2"
	"testing"

	"headwater.example/client"
)

// Sessions that tell their tokens with steps alone are placed each for itself. Who begins with the same tokens finds as much
// of them on any number of workers, as it does where they were told at open.
func TestAPrefixToldByStepsIsFoundOnAnyWorkers(t *testing.T) {
	const told, sessions = 200, 12
	for _, cluster := range [][2]int{{1, 0}, {2, 0}, {3, 0}, {4, 0}, {2, 1}, {4, 1}, {4, 2}} {
		n, replicas := cluster[0], cluster[1]
		for name, layers := range map[string][]client.Layer{
			"one shard":    {{Heads: 2, KVHeads: 1, HeadDim: 4}},
			"odd shards":   {{Heads: 5, KVHeads: 5, HeadDim: 4}, {Heads: 2, KVHeads: 2, HeadDim: 8}},
			"with windows": {{Heads: 3, KVHeads: 3, HeadDim: 4, WindowLeft: client.Within(10)}, {Heads: 3, KVHeads: 3, HeadDim: 4}},
		} {
			t.Run(fmt.Sprintf("%d workers, %d replicas, %s", n, replicas, name), func(t *testing.T) {
				c, r := startReal(t, n, 1<<26), rand.New(rand.NewPCG(1, 2))
				for i := range sessions {
					tokens := make([]uint32, told+1)
					for j := range tokens {
						tokens[j] = uint32(1000*i + j)
					}
					s := open(t, c.Client, client.SessionOptions{Layers: layers, Direct: i%2 == 0, Replicas: replicas})
					for layer, l := range layers {
						for from := 0; from < told; from += 50 {
							one := project(r, l, 50)
							if err := s.Do(t.Context(), &client.Step{Layer: layer, K: one.k, V: one.v, Tokens: tokens[from:][:50]}); err != nil {
								t.Fatal(err)
							}
						}
					}
					for range 2 {
						if found := open(t, c.Client, client.SessionOptions{Layers: layers, Tokens: tokens, Replicas: replicas}); found.Prefix() != 192 {
							t.Errorf("session %d: %d positions are found, want 192", i, found.Prefix())
						}
					}
				}
			})
		}
	}
}
