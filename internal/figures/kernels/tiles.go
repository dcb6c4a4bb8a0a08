package main

import (
	"context"
	"encoding/binary"
	"fmt"
	"math"

	"headwater.example/attention"
	"headwater.example/attention/reference"
	"headwater.example/tensor"
)

// tiled returns the layout of a figure of arithmetic in tiles.
func tiled(dim int, a attention.Arithmetic) (attention.Layout, error) {
	layout, err := attention.NewLayout(tensor.BF16, dim, dim)
	if err != nil {
		return layout, err
	}
	return layout.WithArithmetic(a)
}

// decodeTiles is decode in tiles, of queries that take all parts.
var decodeTiles = stage{
	names: []string{"decode_bf16_tiles"}, limits: []limit{read1, peak},
	build: func(h *harness) ([]work, func(), error) {
		layout, err := tiled(headDim, attention.Tiles)
		if err != nil {
			return nil, nil, err
		}
		c, err := newCache(layout, groups, h.size.positions, h.size.set)
		if err != nil {
			return nil, nil, err
		}
		return []work{c.attend(h, asked{
			name: "decode_bf16_tiles", test: decodeTest(h.size.positions) + ", tiles", heads: heads, groups: groups, tokens: 1, threads: 1,
			callers: 1, value: ofBus,
		})}, c.free, nil
	},
}

// prefillTiles are prefill in tiles, of queries of bf16, in three parts of the weights and in one.
var prefillTiles = stage{
	names: []string{"prefill_tiles_q16", "prefill_tiles_bf16"}, limits: []limit{read1, matrix},
	build: func(h *harness) (works []work, free func(), err error) {
		var caches []*cache
		free = func() {
			for _, c := range caches {
				c.free()
			}
		}
		for _, f := range []struct {
			name string
			a    attention.Arithmetic
		}{{"prefill_tiles_q16", attention.Tiles}, {"prefill_tiles_bf16", attention.TilesBF16}} {
			layout, err := tiled(headDim, f.a)
			if err != nil {
				free()
				return nil, nil, err
			}
			c, err := newCache(layout, groups, h.size.prefillPositions, 1)
			if err != nil {
				free()
				return nil, nil, err
			}
			caches = append(caches, c)
			w := c.attend(h, asked{
				name: f.name, test: prefillTest(h.size.prefillTokens, h.size.prefillPositions) + ", " + f.a.String(), heads: heads, groups: groups,
				tokens: h.size.prefillTokens, threads: 1, callers: 1, halves: true, value: ofFMA,
			})
			w.Matrix = true
			works = append(works, w)
		}
		return works, free, nil
	},
}

// model is a group of a layer of a real model: its queries, keys and values, and what comes of them in float64.
type model struct {
	truth reference.Result
	item  attention.Item
}

// The shape of the layers in the file.
const (
	modelTokens, modelHeads, modelGroups, modelDim = 242, 9, 3, 64
)

// modelLayers are the layers that the file has.
var modelLayers = []string{"layers.3.", "layers.17."}

// errorsOfTiles are the figures of errors on the real model in the file: the largest in units, and the root mean square as a share of
// that of the truth.
func errorsOfTiles(path string) stage {
	return stage{
		names: []string{"tiles_units", "tiles_bf16_rms"}, limits: []limit{peak},
		build: func(h *harness) (works []work, free func(), err error) {
			for _, of := range []struct {
				name  string
				a     attention.Arithmetic
				value func([]model) float64
			}{{"tiles_units", attention.Tiles, mostUnits}, {"tiles_bf16_rms", attention.TilesBF16, rms}} {
				models, err := readModels(path, of.a)
				if err != nil {
					return nil, nil, err
				}
				works = append(works, work{
					row: row{
						Name: of.name, Test: fmt.Sprintf("model, %d @ 0, %s", modelTokens, of.a), DType: tensor.BF16.String(),
						Heads: modelHeads, Groups: modelGroups, HeadDim: modelDim, Threads: 1, Cached: true,
					},
					pass: func(ctx context.Context) error {
						for _, m := range models {
							if err := attention.Attend(ctx, 1, m.item.KV, m.item.Query, m.item.Options, m.item.Output); err != nil {
								return err
							}
						}
						return nil
					},
					value: func(*work, *round) float64 { return of.value(models) },
				})
			}
			return works, func() {}, nil
		},
	}
}

func mostUnits(models []model) (most float64) {
	for _, m := range models {
		units, _, _ := m.truth.Units(m.item.Output.Context)
		most = max(most, units)
	}
	return most
}

// rms is the largest of the models'.
func rms(models []model) (most float64) {
	for _, m := range models {
		errors, truth := 0.0, 0.0
		for i, x := range m.truth.Context {
			d := float64(m.item.Output.Context[i]) - x
			errors, truth = errors+d*d, truth+x*x
		}
		most = max(most, math.Sqrt(errors/truth))
	}
	return most
}

// readModels reads each group of each layer of the file, with the truth of its keys and values as bf16 has them.
func readModels(path string, a attention.Arithmetic) (models []model, err error) {
	file, err := tensor.Open(path)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	// heads returns n heads of a tensor [tokens, of, dim].
	heads := func(name string, of, from, n int) (x []float32, err error) {
		b := make([]byte, 4*modelTokens*of*modelDim)
		if err := file.ReadAt(b, name, 0); err != nil {
			return nil, fmt.Errorf("read %s of %s: %w", name, path, err)
		}
		for t := range modelTokens {
			row := b[4*(t*of+from)*modelDim:][:4*n*modelDim]
			for i := 0; i < len(row); i += 4 {
				x = append(x, math.Float32frombits(binary.LittleEndian.Uint32(row[i:])))
			}
		}
		return x, nil
	}
	const group = modelHeads / modelGroups
	for _, layer := range modelLayers {
		for g := range modelGroups {
			var x [3][]float32
			for i, of := range []struct {
				name        string
				of, from, n int
			}{{"q", modelHeads, g * group, group}, {"k", modelGroups, g, 1}, {"v", modelGroups, g, 1}} {
				if x[i], err = heads(layer+of.name, of.of, of.from, of.n); err != nil {
					return nil, err
				}
			}
			m, err := newModel(a, group, x[0], x[1], x[2])
			if err != nil {
				return nil, err
			}
			models = append(models, m)
		}
	}
	return models, nil
}

// newModel is one group's queries [tokens, heads, dim], and its keys and values [tokens, dim].
func newModel(a attention.Arithmetic, heads int, q, k, v []float32) (m model, err error) {
	layout, err := tiled(modelDim, a)
	if err != nil {
		return m, err
	}
	rows := attention.Rows{K: make([]byte, 2*len(k)), V: make([]byte, 2*len(v))}
	for _, to := range []struct {
		bytes []byte
		x     []float32
	}{{rows.K, k}, {rows.V, v}} {
		if err := tensor.Narrow(to.bytes, to.x, tensor.BF16); err != nil {
			return m, err
		}
		if err := tensor.Widen(to.x, to.bytes, tensor.BF16); err != nil {
			return m, err
		}
	}
	m.item = attention.Item{
		KV:      attention.KV{Layout: layout, Len: modelTokens},
		Query:   attention.Query{Q: q, Tokens: modelTokens, Heads: heads},
		Options: attention.DefaultOptions(modelDim),
		Output:  attention.Output{Context: make([]float32, len(q)), LSE: make([]float32, modelTokens*heads)},
	}
	m.item.Options.Causal = true
	for at := 0; at < modelTokens; at += attention.PageLen {
		n := min(attention.PageLen, modelTokens-at)
		page := make([]byte, layout.PageBytes())
		some := attention.Rows{K: rows.K[at*2*modelDim:][:n*2*modelDim], V: rows.V[at*2*modelDim:][:n*2*modelDim]}
		if err := layout.Write(page, 0, n, some); err != nil {
			return m, err
		}
		m.item.KV.Pages = append(m.item.KV.Pages, page)
	}
	m.truth = reference.Attend(reference.Problem{
		Tokens: modelTokens, KVTokens: modelTokens, KVLen: modelTokens, Heads: heads, KVHeads: 1, HeadDim: modelDim, VDim: modelDim,
		Causal: true, WindowLeft: -1, WindowRight: -1, Scale: float64(m.item.Options.Scale), Q: wide(q), K: wide(k), V: wide(v),
	})
	return m, nil
}

func wide(x []float32) []float64 {
	y := make([]float64, len(x))
	for i, e := range x {
		y[i] = float64(e)
	}
	return y
}
