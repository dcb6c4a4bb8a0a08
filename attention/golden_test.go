package attention

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"io"
	"math"
	"math/rand/v2"
	"testing"

	"headwater.example/tensor"
)

// golden are hashes of contexts and LSEs of TestGolden's samples. Whatever changes one of them changes the contract.
var golden = map[storing]string{
	{dt: tensor.F32}:         "c4ee8ec27574cb74f9d2aaba8b3e6293",
	{dt: tensor.F16}:         "a0322f4a0a74c4c0b4d865a7a04d8ca1",
	{dt: tensor.BF16}:        "8f53d491a7de839d7c168e89f78df839",
	{dt: tensor.I8}:          "17d86406106ca13dca3dbbd7b3bec987",
	{tensor.BF16, Tiles}:     "dbfa7c0bb4a0a7593d44d1fef295bc40",
	{tensor.BF16, TilesBF16}: "5a98d48e1474d9308e90d9be034d8dc5",
}

// goldenProjection is the hash of a projection.
const goldenProjection = "6e292de36fba06b22a4b40bb343923d4"

// fractions draws n multiples of 2⁻²² in [−2, 2)·2^exponent: unlike normals, they are the same on every architecture.
func fractions(rnd *rand.Rand, n, exponent int) []float32 {
	x := make([]float32, n)
	for i := range x {
		x[i] = float32(math.Ldexp(float64(int(rnd.Uint32()>>8)-1<<23), exponent-22))
	}
	return x
}

// goldenGradients are those of gradients, of what fractions draws as derivatives by the contexts.
var goldenGradients = map[tensor.DType]string{
	tensor.F32:  "082802de0420a47749a9641490e0fdbd",
	tensor.F16:  "04897a80271bcc4a6b1b528ef2e8e31a",
	tensor.BF16: "6553dc22396b3b682e9c67dba8a0579f",
}

// goldenSamples calls do with samples stored in a way, the same on every architecture: so many threads are to compute each.
func goldenSamples(t *testing.T, st storing, do func(e *sample, rnd *rand.Rand, threads int)) {
	t.Helper()
	options := []func(e *sample){
		func(*sample) {},
		func(e *sample) { e.opts.Causal = true },
		func(e *sample) { e.opts.WindowLeft, e.opts.WindowRight = 70, 3 },
		func(e *sample) { e.opts.Causal, e.opts.Softcap = true, 5 },
		func(e *sample) {
			for h := range e.q.Heads {
				e.opts.AlibiSlopes = append(e.opts.AlibiSlopes, float32(math.Ldexp(1, -h-1)))
				e.opts.Sinks = append(e.opts.Sinks, float32(h)-1.5)
			}
		},
		func(e *sample) {
			e.q.MaskHeads, e.q.Mask = 1, make([]byte, e.q.Tokens*e.kv.Len)
			e.q.BiasHeads, e.q.Bias = 1, make([]float32, e.q.Tokens*e.kv.Len)
			for i := range e.q.Mask {
				e.q.Mask[i], e.q.Bias[i] = byte(i*7%5), float32(i*11%13)/4
			}
		},
	}
	for n, s := range []shape{
		{headDim: 64, vDim: 64, tokens: 1, heads: 4, len: 2100, offset: 2099},
		{headDim: 128, vDim: 128, tokens: 3, heads: 8, len: 130, offset: 127},
		{headDim: 80, vDim: 33, tokens: 70, heads: 2, len: 200, offset: 130},
		{headDim: 7, vDim: 5, tokens: 9, heads: 1, len: 65, offset: -3},
	} {
		for o, apply := range options {
			rnd := rand.New(rand.NewPCG(uint64(n), uint64(o)))
			l := st.layout(t, s.headDim, s.vDim)
			keys, ks, _ := store(t, fractions(rnd, s.len*s.headDim, 0), s.headDim, st.dt)
			values, vs, _ := store(t, fractions(rnd, s.len*s.vDim, 0), s.vDim, st.dt)
			e := &sample{
				kv:   KV{Layout: l, Pages: paged(t, l, s.len, Rows{K: keys, V: values, KScale: ks, VScale: vs}), Len: s.len},
				q:    Query{Q: fractions(rnd, s.tokens*s.heads*s.headDim, o%3), Tokens: s.tokens, Heads: s.heads, Offset: s.offset},
				opts: DefaultOptions(s.headDim),
			}
			apply(e)
			do(e, rnd, 1+n%2)
		}
	}
}

// hashed adds the bits of x to a hash.
func hashed(t *testing.T, sum io.Writer, x []float32) {
	t.Helper()
	if err := binary.Write(sum, binary.LittleEndian, x); err != nil {
		t.Fatal(err)
	}
}

// TestGolden: every architecture and kernel gives the bits that were written down here once.
func TestGolden(t *testing.T) {
	skipIfRaced(t)
	for i := range kernels {
		k := &kernels[i]
		for _, st := range storings {
			sum := sha256.New()
			goldenSamples(t, st, func(e *sample, _ *rand.Rand, threads int) {
				out, err := e.by(k, threads)
				if err != nil {
					t.Fatal(err)
				}
				hashed(t, sum, out.Context)
				hashed(t, sum, out.LSE)
			})
			if got := fmt.Sprintf("%x", sum.Sum(nil)[:16]); got != golden[st] {
				t.Errorf("%s, %s: %s, not %s", k.name, st, got, golden[st])
			}
		}
	}
	rnd := rand.New(rand.NewPCG(9, 9))
	const rows, in, out = 5, 300, 70
	x, w, y := fractions(rnd, rows*in, 0), fractions(rnd, out*in, 0), make([]float32, rows*out)
	if err := Project(context.Background(), 1, y, x, w, nil, rows, in, out); err != nil {
		t.Fatal(err)
	}
	sum := sha256.New()
	hashed(t, sum, y)
	if got := fmt.Sprintf("%x", sum.Sum(nil)[:16]); got != goldenProjection {
		t.Errorf("projection: %s, not %s", got, goldenProjection)
	}
}

// TestGoldenGradients is TestGolden for gradients.
func TestGoldenGradients(t *testing.T) {
	skipIfRaced(t)
	for i := range kernels {
		k := &kernels[i]
		for dt, want := range goldenGradients {
			sum := sha256.New()
			goldenSamples(t, storing{dt: dt}, func(e *sample, rnd *rand.Rand, threads int) {
				out, err := e.by(k, 1)
				if err != nil {
					t.Fatal(err)
				}
				d := Differentiation{
					KV: e.kv, Query: e.q, Options: e.opts, Output: out, DContext: fractions(rnd, len(out.Context), 0), Gradients: e.gradientRoom(),
				}
				if err := differentiate(context.Background(), k, threads, d); err != nil {
					t.Fatal(err)
				}
				for _, g := range d.Gradients.all() {
					hashed(t, sum, g.x)
				}
			})
			if got := fmt.Sprintf("%x", sum.Sum(nil)[:16]); got != want {
				t.Errorf("%s, %s: %s, not %s", k.name, dt, got, want)
			}
		}
	}
}
