package attention

import (
	"context"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"headwater.example/attention/reference"
	"headwater.example/tensor"
)

// floats are the storage types whose values have gradients.
var floats = []tensor.DType{tensor.F32, tensor.F16, tensor.BF16}

// lesson is a sample with its context, what the loss says of that, and room for gradients that holds NaN.
func (e *sample) lesson(t rapid.TB, rnd *rand.Rand) Differentiation {
	t.Helper()
	rows, l := e.q.Tokens*e.q.Heads, e.kv.Layout
	d := Differentiation{KV: e.kv, Query: e.q, Options: e.opts, Output: e.attend(t, 1), DContext: normals(rnd, rows*l.vDim, 1)}
	d.Gradients = e.gradientRoom()
	return d
}

func (e *sample) gradientRoom() Gradients {
	l := e.kv.Layout
	nan := func(n int) []float32 {
		x := make([]float32, n)
		for i := range x {
			x[i] = float32(math.NaN())
		}
		return x
	}
	g := Gradients{Q: nan(len(e.q.Q)), K: nan(e.kv.Len * l.headDim), V: nan(e.kv.Len * l.vDim)}
	if e.q.BiasHeads != 0 {
		g.Bias = nan(len(e.q.Bias))
	}
	if len(e.opts.Sinks) != 0 {
		g.Sinks = nan(e.q.Heads)
	}
	return g
}

// differentiate runs the items on threads of their own, however little work they are.
func differentiate(ctx context.Context, k *kernel, threads int, items ...Differentiation) error {
	p := NewPool(threads)
	defer p.Close()
	t, err := p.Acquire(ctx, Foreground)
	if err != nil {
		return err
	}
	defer t.Release()
	return t.differentiate(ctx, limits{kernel: k}, items)
}

// gradients runs a lesson by a kernel.
func (e *sample) gradients(t rapid.TB, d Differentiation, k *kernel, threads int) Gradients {
	t.Helper()
	d.Gradients = e.gradientRoom()
	if err := differentiate(context.Background(), k, threads, d); err != nil {
		t.Fatal(err)
	}
	return d.Gradients
}

type namedGradient struct {
	name string
	x    []float32
}

func (g Gradients) all() []namedGradient {
	return []namedGradient{{"d_q", g.Q}, {"d_k", g.K}, {"d_v", g.V}, {"d_bias", g.Bias}, {"d_sinks", g.Sinks}}
}

func sameGradients(t rapid.TB, what string, got, want Gradients) {
	t.Helper()
	others := want.all()
	for n, g := range got.all() {
		if len(g.x) != len(others[n].x) {
			t.Fatalf("%s: %s has %d elements, not %d", what, g.name, len(g.x), len(others[n].x))
		}
		for i, x := range g.x {
			if y := others[n].x[i]; math.Float32bits(x) != math.Float32bits(y) {
				t.Fatalf("%s: %s[%d] is %x, not %x", what, g.name, i, x, y)
			}
		}
	}
}

// worth returns the keys and values of a sample as they are stored, widened.
func (e *sample) worth(t rapid.TB) (k, v []float32) {
	t.Helper()
	return narrow(e.truth.K), narrow(e.truth.V)
}

func narrow(x []float64) []float32 {
	y := make([]float32, len(x))
	for i, v := range x {
		y[i] = float32(v)
	}
	return y
}

// nearGradients fails unless the gradients are within 16 units of the truth.
func (e *sample) nearGradients(t rapid.TB, d Differentiation, got Gradients) (most float64) {
	t.Helper()
	truth := reference.Differentiate(e.problem(), wide(d.DContext))
	for i, want := range []reference.Gradient{truth.Q, truth.K, truth.V, truth.Bias, truth.Sinks} {
		g := got.all()[i]
		units, at := want.Units(g.x)
		if !(units <= 16) {
			t.Errorf("%s[%d] is %g, off from %g by %.2f units", g.name, at, g.x[at], want.Values[at], units)
		}
		most = max(most, units)
	}
	return most
}

// plainly are storage types with the arithmetic of Chain.
func plainly(types []tensor.DType) []storing {
	var all []storing
	for _, dt := range types {
		all = append(all, storing{dt: dt})
	}
	return all
}

// weighed makes the gradients of a case, and returns their error.
func weighed(t *testing.T, c drawn) float64 {
	e := draw(t, c.seed, c.shape)
	rnd := rand.New(rand.NewPCG(c.seed, 8))
	c.apply(e, rnd)
	d := e.lesson(t, rnd)
	return e.nearGradients(t, d, e.gradients(t, d, &kernels[0], 2))
}

func TestGradientsOfOptions(t *testing.T) {
	eachOption(t, plainly(floats), func(c *drawn) { c.tokens += 67 * int(c.seed%5/4) }, weighed)
}

func TestGradientsOfShapes(t *testing.T) {
	eachShape(t, plainly(floats), func(c *drawn) bool {
		if c.len <= 1000 && c.headDim <= 128 {
			c.tokens = []int{1, 63, 64, 65, 129}[c.seed%5]
		}
		return !testing.Short() || c.len <= 129 || c.seed%8 == 0
	}, weighed)
}

// TestGradientsAreTheContract: every kernel, any number of threads, and several items together give the bits of the
// contract, written down plainly.
func TestGradientsAreTheContract(t *testing.T) {
	rapid.Check(t, func(r *rapid.T) {
		s := shape{
			dt:      rapid.SampledFrom(floats).Draw(r, "dtype"),
			headDim: rapid.IntRange(1, 70).Draw(r, "head_dim"), vDim: rapid.IntRange(1, 70).Draw(r, "v_dim"),
			tokens: rapid.OneOf(rapid.IntRange(1, 5), rapid.IntRange(60, 70), rapid.IntRange(120, 140)).Draw(r, "tokens"),
			heads:  rapid.IntRange(1, 5).Draw(r, "heads"),
			len:    rapid.OneOf(rapid.IntRange(0, 200), rapid.IntRange(2040, 2120)).Draw(r, "len"), spread: 2,
			firstHead: rapid.IntRange(0, 2).Draw(r, "first head"),
		}
		if s.len > 2000 || raceDetector {
			s.tokens = min(s.tokens, 3)
		}
		most := 1 << 20
		if raceDetector {
			most = 1 << 17
		}
		for s.tokens*s.heads*s.len*(s.headDim+s.vDim) > most {
			s.headDim, s.vDim, s.len = (s.headDim+1)/2, (s.vDim+1)/2, s.len*9/10
		}
		s.offset = int64(rapid.IntRange(-10, s.len+10).Draw(r, "offset"))
		seed := rapid.Uint64().Draw(r, "seed")
		e := draw(r, seed, s)
		rnd := rand.New(rand.NewPCG(seed, 9))
		variants[rapid.IntRange(0, len(variants)-1).Draw(r, "variant")].apply(e, rnd)
		e.opts.Causal = rapid.Bool().Draw(r, "causal")
		d := e.lesson(r, rnd)
		k, v := e.worth(r)
		want := naiveGradients(e, k, v, d.DContext, d.Output)
		for i := range kernels {
			for _, threads := range []int{1, rapid.IntRange(2, 3).Draw(r, "threads")} {
				got := e.gradients(r, d, &kernels[i], threads)
				if got.Bias == nil {
					got.Bias = []float32{}
				}
				sameGradients(r, fmt.Sprintf("%s, %d threads", kernels[i].name, threads), got, want)
			}
		}
	})
}

// TestGradientsTogether: what other items a call has changes no bit, whether each is a task or they are shared out.
func TestGradientsTogether(t *testing.T) {
	var items []Differentiation
	var want []Gradients
	for i := range 10 {
		e := draw(t, uint64(i), shape{dt: tensor.F32, headDim: 20, vDim: 30, tokens: 70 * (1 + i%3), heads: 1 + i%4, len: 40 + 90*(i%4), spread: 1})
		e.opts.Causal = i%2 == 0
		d := e.lesson(t, rand.New(rand.NewPCG(uint64(i), 1)))
		want = append(want, e.gradients(t, d, &kernels[0], 1))
		items = append(items, d)
	}
	for _, threads := range []int{1, 2, 3} {
		for _, n := range []int{3, 10} {
			for i := range items[:n] {
				for _, g := range items[i].Gradients.all() {
					clear(g.x)
				}
			}
			if err := differentiate(context.Background(), &kernels[0], threads, items[:n]...); err != nil {
				t.Fatal(err)
			}
			for i := range items[:n] {
				sameGradients(t, fmt.Sprintf("item %d of %d, %d threads", i, n, threads), items[i].Gradients, want[i])
			}
		}
	}
}

// TestWeightsAreNotAboveOne: no score is above the LSE that Attend gave for its row, whatever was rounded.
func TestWeightsAreNotAboveOne(t *testing.T) {
	rapid.Check(t, func(r *rapid.T) {
		s := shape{
			dt: tensor.F32, headDim: rapid.IntRange(1, 8).Draw(r, "head_dim"), vDim: 1, tokens: 2, heads: 2,
			len:    rapid.OneOf(rapid.IntRange(1, 130), rapid.IntRange(2040, 2060)).Draw(r, "len"),
			spread: rapid.SampledFrom([]float64{0, 1e-6, 0.1, 3, 1e3, 1e10}).Draw(r, "spread"), offset: 100,
		}
		seed := rapid.Uint64().Draw(r, "seed")
		e := draw(r, seed, s)
		rnd := rand.New(rand.NewPCG(seed, 9))
		variants[rapid.IntRange(0, len(variants)-1).Draw(r, "variant")].apply(e, rnd)
		d := e.lesson(r, rnd)
		e.gradients(r, d, &kernels[rapid.IntRange(0, len(kernels)-1).Draw(r, "kernel")], 1)
	})
}

func TestDifferentiateRefuses(t *testing.T) {
	s := shape{dt: tensor.F32, headDim: 4, vDim: 6, tokens: 70, heads: 2, len: 130, spread: 1, offset: 60, firstHead: 4}
	inf := float32(math.Inf(1))
	for want, spoil := range map[string]func(e *sample, d *Differentiation){
		"d_context has 839":          func(_ *sample, d *Differentiation) { d.DContext = d.DContext[1:] },
		"d_q has 559":                func(_ *sample, d *Differentiation) { d.Gradients.Q = d.Gradients.Q[1:] },
		"d_k has 519":                func(_ *sample, d *Differentiation) { d.Gradients.K = d.Gradients.K[1:] },
		"d_v has 779":                func(_ *sample, d *Differentiation) { d.Gradients.V = d.Gradients.V[1:] },
		"d_bias has 1":               func(_ *sample, d *Differentiation) { d.Gradients.Bias = make([]float32, 1) },
		"d_sinks has 2":              func(_ *sample, d *Differentiation) { d.Gradients.Sinks = make([]float32, 2) },
		"room for 839":               func(_ *sample, d *Differentiation) { d.Output.Context = d.Output.Context[1:] },
		"q has 559":                  func(_ *sample, d *Differentiation) { d.Query.Q = d.Query.Q[1:] },
		"head 5, token 3: its LSE i": func(_ *sample, d *Differentiation) { d.Output.LSE[7] = inf },
		"head 4, token 69: its LSE ": func(_ *sample, d *Differentiation) { d.Output.LSE[138] -= 20 },
		"d_q: head 5, token 3, element 0: is not finite": func(_ *sample, d *Differentiation) { d.DContext[7*6] = inf },
	} {
		for _, threads := range []int{1, 3} {
			e := draw(t, 4, s)
			d := e.lesson(t, rand.New(rand.NewPCG(1, 1)))
			spoil(e, &d)
			err := differentiate(context.Background(), &kernels[0], threads, d)
			var item *DifferentiationError
			if err == nil || !strings.Contains(err.Error(), want) || !errors.As(err, &item) {
				t.Errorf("%v, want one with %q", err, want)
			}
		}
	}
	e := draw(t, 4, shape{dt: tensor.I8, headDim: 4, vDim: 4, tokens: 1, heads: 1, len: 3, spread: 1})
	err := differentiate(context.Background(), &kernels[0], 1, e.lesson(t, rand.New(rand.NewPCG(1, 1))))
	if err == nil || !strings.Contains(err.Error(), "stored as I8 have no gradients") {
		t.Errorf("int8: %v", err)
	}
}

// TestGradientOverflow: a gradient that is not finite is named, the first of them.
func TestGradientOverflow(t *testing.T) {
	e := draw(t, 2, shape{dt: tensor.F32, headDim: 2, vDim: 3, tokens: 1, heads: 1, len: 130, spread: 1, firstHead: 7})
	k := make([]float32, 130*2)
	for i := range k {
		k[i] = float32(1 - i%2) // each key is 1, 0
	}
	stored, _, _ := store(t, k, 2, tensor.F32)
	values, _, _ := store(t, normals(rand.New(rand.NewPCG(1, 1)), 130*3, 1e4), 3, tensor.F32)
	e.kv.Pages = paged(t, e.kv.Layout, 130, Rows{K: stored, V: values})
	e.q.Q = []float32{1, math.MaxFloat32}
	for _, threads := range []int{1, 2} {
		d := e.lesson(t, rand.New(rand.NewPCG(1, 1)))
		err := differentiate(context.Background(), &kernels[0], threads, d)
		var bad *GradientError
		if !errors.As(err, &bad) || bad.Tensor != "d_k" || bad.Head != 7 || bad.Column != 1 || err.Error() != "d_k: head 7, position 0, element 1: is not finite" {
			t.Errorf("%v", err)
		}
	}
}

func TestDifferentiateEnds(t *testing.T) {
	e := draw(t, 5, shape{dt: tensor.F32, headDim: 4, vDim: 4, tokens: 70, heads: 2, len: 1000, spread: 1})
	d := e.lesson(t, rand.New(rand.NewPCG(1, 1)))
	for _, threads := range []int{1, 3} {
		ctx, cancel := context.WithCancel(context.Background())
		cancel()
		if err := differentiate(ctx, &kernels[0], threads, d); !errors.Is(err, context.Canceled) {
			t.Errorf("%v, want %v", err, context.Canceled)
		}
	}
	n := 20
	if err := differentiate(counted{context.Background(), &n}, &kernels[0], 1, d); !errors.Is(err, context.Canceled) {
		t.Errorf("%v, want %v", err, context.Canceled)
	}
}

func BenchmarkDifferentiate(b *testing.B) {
	e := draw(b, 6, shape{dt: tensor.F32, headDim: 128, vDim: 128, tokens: 2048, heads: 4, len: 2048, spread: 1})
	e.opts.Causal = true
	d := e.lesson(b, rand.New(rand.NewPCG(1, 1)))
	p := NewPool(1)
	defer p.Close()
	thread := acquire(b, p, Foreground)
	defer thread.Release()
	for b.Loop() {
		if err := thread.Differentiate(context.Background(), []Differentiation{d}); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64(b.N)*5*128*4*2048*2049/2/float64(b.Elapsed().Nanoseconds()), "fma/ns")
}
