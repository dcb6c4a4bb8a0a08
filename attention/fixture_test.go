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
		for i, dt := range storages {
			g := i % kvHeads
			l, err := NewLayout(dt, dim, dim)
			if err != nil {
				t.Fatal(err)
			}
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
			t.Logf("%s%s: %.3f units", layer, dt, e.near(t, e.attend(t, 2)))
		}
	}
}
