package coordinator_test

import (
	"encoding/json"
	"fmt"
	"testing"

	"headwater.example/client"
	"headwater.example/tensor"
)

// TestGradientsOfLayersOfShapes: sizes of heads and groups, lengths around the borders of pages and blocks, storage types, biases and
// rotations, with the options of attention in turn, are all near the truth. They are the problems of one job.
func TestGradientsOfLayersOfShapes(t *testing.T) {
	variants := []map[string]any{
		{"causal": true}, {"window_left": 20}, {"causal": true, "window_left": 5, "softcap": 15}, {"kv_len": 1}, {"scale": -0.3}, {}, {"causal": true, "sinks": true}, {"alibi_slopes": true},
	}
	m, problems, tensors, seed := newMaker(17), map[string]any{}, 0, 0
	for _, dims := range [][2]int{{1, 1}, {2, 5}, {8, 8}, {64, 24}, {128, 1}, {6, 80}} {
		for _, tokens := range []int{1, 63, 64, 65, 129} {
			seed++
			groups, size, model := 1+seed%2, []int{1, 3, 2}[seed%3], []int{1, 5, 16, 33}[seed/2%4]
			heads, prefix := groups*size, fmt.Sprintf("seqs.%d.", seed)
			options := map[string]any{"n_heads": heads, "head_dim": dims[0]}
			for name, v := range variants[seed%len(variants)] {
				if v == true && name != "causal" { // one number a head
					each := make([]float64, heads)
					for i := range each {
						each[i] = float64(i%3) / 2
					}
					v = each
				}
				options[name] = v
			}
			if _, ok := options["sinks"]; ok {
				tensors++
			}
			if dims[0]%2 == 0 && seed%3 != 0 {
				options["rope"] = map[string]any{"base": 50, "dims": 2 + dims[0]/4*2*(seed%2), "interleaved": seed%4 == 1, "mscale": 1.25}
			}
			dt := []tensor.DType{tensor.F32, tensor.BF16, tensor.F16}[seed%3]
			layer := func(name string, spread float64, shape ...int) {
				info := tensor.Info{Name: prefix + name, DType: dt, Shape: shape}
				x := make([]float32, info.Elements())
				for i := range x {
					x[i] = float32(m.rng.NormFloat64() * spread)
				}
				m.put(info, x)
				tensors++
			}
			layer("x", 1, tokens, model)
			layer("w_q", 0.2, heads*dims[0], model)
			layer("w_k", 0.2, groups*dims[0], model)
			layer("w_v", 0.2, groups*dims[1], model)
			layer("w_o", 0.2, model, heads*dims[1])
			for i, b := range []int{heads * dims[0], groups * dims[0], groups * dims[1], model} {
				if seed>>i&1 == 1 {
					layer([]string{"b_q", "b_k", "b_v", "b_o"}[i], 0.5, b)
				}
			}
			if seed%6 == 2 {
				m.f32(prefix+"bias", 1, []int{1, heads}[seed/6%2], tokens, tokens)
				tensors++
			}
			if seed%6 == 5 {
				m.mask(prefix+"mask", 1, tokens, tokens)
			}
			m.f32(prefix+"d_y", 1, tokens, model)
			problems[prefix] = options
		}
	}
	options, err := json.Marshal(map[string]any{"kind": "layer_grad", "problems": problems})
	if err != nil {
		t.Fatal(err)
	}
	path := m.write(t, string(options))
	_, got := startCluster(t, clusterOptions{workers: workers(3)}).run(t, client.SubmitOptions{Path: path})
	file, err := openTensors(t, path)
	if err != nil {
		t.Fatal(err)
	}
	nearTruth(t, got, file, tensors)
}
