package coordinator_test

import (
	"testing"

	"headwater.example/attention"
	"headwater.example/client"
	"headwater.example/internal/capacity"
	"headwater.example/shard"
	"headwater.example/tensor"
)

// TestASessionTakesWhatWasMeasured holds what package capacity says of a session, with a window in one layer, against what workers
// say that its pages and rows take.
func TestASessionTakesWhatWasMeasured(t *testing.T) {
	const window, positions = 100, 1000
	// Replicas of a client's options: less than 0 is none.
	var layers []client.Layer
	var specs []shard.LayerSpec
	for _, w := range []int64{-1, window, -1} {
		shape := shard.LayerShape{Heads: 4, KVHeads: 2, HeadDim: 64, VDim: 32}
		options := attention.DefaultOptions(shape.HeadDim)
		options.Causal, options.WindowLeft = true, w
		spec, err := shard.NewLayerSpec(shape, tensor.BF16, options)
		if err != nil {
			t.Fatal(err)
		}
		layer := client.Layer{Heads: shape.Heads, KVHeads: shape.KVHeads, HeadDim: shape.HeadDim, VDim: shape.VDim, Storage: tensor.BF16}
		if w >= 0 {
			layer.WindowLeft = client.Within(int(w))
		}
		layers, specs = append(layers, layer), append(specs, spec)
	}
	for _, replicas := range []int{0, 1} {
		c := startCluster(t, clusterOptions{workers: workers(1 + replicas)})
		s, err := c.OpenSession(t.Context(), client.SessionOptions{Layers: layers, Replicas: 2*replicas - 1})
		if err != nil {
			t.Fatal(err)
		}
		for layer := range layers {
			for _, n := range []int{positions - 1, 1} { // the newest append may be taken back: what is before its window stays
				if err := s.Step(t.Context(), layer, nil, make([]float32, n*2*64), make([]float32, n*2*32), nil, nil); err != nil {
					t.Fatal(err)
				}
			}
		}
		caches, err := c.Caches(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		var used int64
		for _, cache := range caches {
			used += int64(cache.UsedBytes) + int64(*cache.RowBytes)
		}
		size, err := capacity.Measure(capacity.Demand{Layers: specs, Positions: positions, Sessions: 1, Replicas: replicas, Memory: 1 << 30})
		if err != nil {
			t.Fatal(err)
		}
		if used != size.TotalBytes {
			t.Errorf("%d copies: workers say %d bytes, measured were %d", replicas, used, size.TotalBytes)
		}
	}
}
