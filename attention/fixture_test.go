package attention

import (
	"encoding/binary"
	"math"
	"testing"

	"headwater.example/attention/reference"
	"headwater.example/tensor"
)

// TestFixture attends the queries, keys and values of a real model, in every storage type.
func TestFixture(t *testing.T) {
	skipIfRaced(t)
	job, err := tensor.Open("../test/data/smollm2/attention.safetensors")
	if err != nil {
		t.Fatal(err)
	}
	defer job.Close()
	const tokens, heads, kvHeads, dim = 242, 9, 3, 64
	const group = heads / kvHeads
	read := func(name string) []float32 {
		info, _ := job.Lookup(name)
		b := make([]byte, info.Bytes())
		if err := job.ReadAt(b, name, 0); err != nil {
			t.Fatal(err)
		}
		x := make([]float32, len(b)/4)
		for i := range x {
			x[i] = math.Float32frombits(binary.LittleEndian.Uint32(b[4*i:]))
		}
		return x
	}
	// of returns the heads [from, from+n) of x [tokens, of, dim].
	of := func(x []float32, of, from, n int) (part []float32) {
		for i := range tokens {
			part = append(part, x[(i*of+from)*dim:][:n*dim]...)
		}
		return part
	}
	for _, layer := range []string{"layers.3.", "layers.17."} {
		q, k, v := read(layer+"q"), read(layer+"k"), read(layer+"v")
		for i, st := range storings {
			g, dt := i%kvHeads, st.dt
			l := st.layout(t, dim, dim)
			kb, ks, kw := store(t, of(k, kvHeads, g, 1), dim, dt)
			vb, vs, vw := store(t, of(v, kvHeads, g, 1), dim, dt)
			e := &sample{
				kv:   KV{Layout: l, Pages: paged(t, l, tokens, Rows{K: kb, V: vb, KScale: ks, VScale: vs}), Len: tokens},
				q:    Query{Q: of(q, heads, g*group, group), Tokens: tokens, Heads: group, FirstHead: g * group},
				opts: DefaultOptions(dim),
			}
			e.opts.Causal = true
			e.truth = reference.Problem{
				Tokens: tokens, KVTokens: tokens, KVLen: tokens, Heads: group, KVHeads: 1, HeadDim: dim, VDim: dim,
				Q: wide(e.q.Q), K: kw, V: vw,
			}
			out := e.attend(t, 2)
			if st.arithmetic == TilesBF16 {
				if rms := relative(out.Context, reference.Attend(e.problem()).Context); !(rms < 0.01) {
					t.Errorf("%s%s: %.3g rms relative", layer, st, rms)
				} else {
					t.Logf("%s%s: %.2e rms relative", layer, st, rms)
				}
				continue
			}
			units := e.near(t, out)
			t.Logf("%s%s: %.3f units", layer, st, units)
			if st.arithmetic == Tiles && units > 1 {
				t.Errorf("%s%s: more than 1 unit", layer, st)
			}
		}
	}
}

// relative is the root of the mean square error over that of the truth.
func relative(got []float32, want []float64) float64 {
	errors, truth := 0.0, 0.0
	for i, x := range want {
		d := float64(got[i]) - x
		errors, truth = errors+d*d, truth+x*x
	}
	return math.Sqrt(errors / truth)
}
