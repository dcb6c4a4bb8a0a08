package attention

import (
	"context"
	"fmt"
	"math"
	"math/rand/v2"

	"pgregory.net/rapid"

	"headwater.example/attention/reference"
	"headwater.example/tensor"
)

// sample is an attention of one KV head with its keys and values in pages, and the same as a reference problem.
type sample struct {
	kv    KV
	q     Query
	opts  Options
	truth reference.Problem
}

// shape says what sample to draw. Scores have about the standard deviation spread.
type shape struct {
	dt                 tensor.DType
	arithmetic         Arithmetic
	headDim, vDim      int
	tokens, heads, len int
	spread             float64
	offset             int64
	firstHead          int
}

func (s shape) String() string {
	return fmt.Sprintf("%s head_dim=%d v_dim=%d tokens=%d heads=%d len=%d spread=%g offset=%d",
		storing{s.dt, s.arithmetic}, s.headDim, s.vDim, s.tokens, s.heads, s.len, s.spread, s.offset)
}

// storing is a storage type with an arithmetic for it.
type storing struct {
	dt         tensor.DType
	arithmetic Arithmetic
}

func (s storing) String() string {
	if s.arithmetic == Chain {
		return s.dt.String()
	}
	return fmt.Sprint(s.dt, " ", s.arithmetic)
}

func (s storing) layout(t rapid.TB, headDim, vDim int) Layout {
	t.Helper()
	l, err := NewLayout(s.dt, headDim, vDim)
	if err == nil {
		l, err = l.WithArithmetic(s.arithmetic)
	}
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// as is the shape stored in that way.
func (s shape) as(x storing) shape {
	s.dt, s.arithmetic = x.dt, x.arithmetic
	return s
}

func (s shape) layout(t rapid.TB) Layout {
	t.Helper()
	return storing{s.dt, s.arithmetic}.layout(t, s.headDim, s.vDim)
}

func normals(rnd *rand.Rand, n int, sigma float64) []float32 {
	x := make([]float32, n)
	for i := range x {
		x[i] = float32(rnd.NormFloat64() * sigma)
	}
	return x
}

func wide(x []float32) []float64 {
	if x == nil {
		return nil
	}
	y := make([]float64, len(x))
	for i, v := range x {
		y[i] = float64(v)
	}
	return y
}

// store returns rows [n, dim] in the storage type, their scales, and what they are worth.
func store(t rapid.TB, x []float32, dim int, dt tensor.DType) (stored []byte, scales []float32, worth []float64) {
	t.Helper()
	stored, worth = make([]byte, len(x)*dt.Size()), make([]float64, len(x))
	if dt == tensor.I8 {
		q := make([]int8, dim)
		for r := 0; r < len(x); r += dim {
			scale := tensor.QuantizeI8(q, x[r:][:dim])
			scales = append(scales, scale)
			for i, v := range q {
				stored[r+i], worth[r+i] = byte(v), float64(v)*float64(scale)
			}
		}
		return stored, scales, worth
	}
	if err := tensor.Narrow(stored, x, dt); err != nil {
		t.Fatal(err)
	}
	back := make([]float32, len(x))
	if err := tensor.Widen(back, stored, dt); err != nil {
		t.Fatal(err)
	}
	return stored, scales, wide(back)
}

// paged puts n rows into pages, whose every other byte is garbage.
func paged(t rapid.TB, l Layout, n int, rows Rows) [][]byte {
	t.Helper()
	pages := make([][]byte, pagesOf(n))
	for p := range pages {
		pages[p] = make([]byte, l.PageBytes())
		for i := range pages[p] {
			pages[p][i] = 0xff // NaN in every type that has one
		}
		at, m := p*PageLen, min(n-p*PageLen, PageLen)
		part := Rows{K: rows.K[at*l.KRowBytes():][:m*l.KRowBytes()], V: rows.V[at*l.VRowBytes():][:m*l.VRowBytes()]}
		if len(rows.KScale) != 0 {
			part.KScale, part.VScale = rows.KScale[at:][:m], rows.VScale[at:][:m]
		}
		if err := l.Write(pages[p], 0, m, part); err != nil {
			t.Fatal(err)
		}
	}
	return pages
}

func draw(t rapid.TB, seed uint64, s shape) *sample {
	t.Helper()
	rnd := rand.New(rand.NewPCG(seed, 7))
	l := s.layout(t)
	q := normals(rnd, s.tokens*s.heads*s.headDim, s.spread)
	k, kScale, kWorth := store(t, normals(rnd, s.len*s.headDim, 1), s.headDim, s.dt)
	v, vScale, vWorth := store(t, normals(rnd, s.len*s.vDim, 1), s.vDim, s.dt)
	opts := DefaultOptions(s.headDim)
	e := &sample{
		kv:   KV{Layout: l, Pages: paged(t, l, s.len, Rows{K: k, V: v, KScale: kScale, VScale: vScale}), Len: s.len},
		q:    Query{Q: q, Tokens: s.tokens, Heads: s.heads, FirstHead: s.firstHead, Offset: s.offset},
		opts: opts,
		truth: reference.Problem{
			Tokens: s.tokens, KVTokens: s.len, Heads: s.heads, KVHeads: 1, HeadDim: s.headDim, VDim: s.vDim,
			Q: wide(q), K: kWorth, V: vWorth, KVLen: s.len, Offset: s.offset,
		},
	}
	return e
}

// problem is the sample as the reference sees it.
func (e *sample) problem() reference.Problem {
	p := e.truth
	p.Causal, p.WindowLeft, p.WindowRight = e.opts.Causal, e.opts.WindowLeft, e.opts.WindowRight
	p.Scale, p.Softcap = float64(e.opts.Scale), float64(e.opts.Softcap)
	if len(e.opts.AlibiSlopes) != 0 {
		p.AlibiSlopes = wide(e.opts.AlibiSlopes[e.q.FirstHead:][:e.q.Heads])
	}
	if len(e.opts.Sinks) != 0 {
		p.Sinks = wide(e.opts.Sinks[e.q.FirstHead:][:e.q.Heads])
	}
	p.Mask, p.MaskHeads, p.Bias, p.BiasHeads = e.q.Mask, e.q.MaskHeads, wide(e.q.Bias), e.q.BiasHeads
	return p
}

func (e *sample) room() Output {
	rows := e.q.Tokens * e.q.Heads
	out := Output{Context: make([]float32, rows*e.kv.Layout.vDim), LSE: make([]float32, rows)}
	for i := range out.Context {
		out.Context[i] = float32(math.NaN())
	}
	return out
}

func (e *sample) attend(t rapid.TB, threads int) Output {
	t.Helper()
	out := e.room()
	if err := Attend(context.Background(), threads, e.kv, e.q, e.opts, out); err != nil {
		t.Fatal(err)
	}
	return out
}

// alone is the sample with only the tokens [token, token+tokens) and heads [head, head+heads).
func (e *sample) alone(token, tokens, head, heads int) *sample {
	part := *e
	part.q.Tokens, part.q.Heads = tokens, heads
	part.q.Offset += int64(token)
	part.q.FirstHead += head
	part.q.Q = nil
	dim := e.kv.Layout.headDim
	for i := token; i < token+tokens; i++ {
		part.q.Q = append(part.q.Q, e.q.Q[(i*e.q.Heads+head)*dim:][:heads*dim]...)
	}
	part.q.Mask, part.q.MaskHeads = cut(e, e.q.Mask, e.q.MaskHeads, token, tokens, head, heads)
	part.q.Bias, part.q.BiasHeads = cut(e, e.q.Bias, e.q.BiasHeads, token, tokens, head, heads)
	return &part
}

func cut[T any](e *sample, x []T, own, token, tokens, head, heads int) (part []T, n int) {
	if own == 0 {
		return nil, 0
	}
	n = heads
	if own == 1 {
		head, n = 0, 1
	}
	for h := head; h < head+n; h++ {
		part = append(part, x[(h*e.q.Tokens+token)*e.kv.Len:][:tokens*e.kv.Len]...)
	}
	return part, n
}

// sameRows fails unless part holds, bit for bit, the rows of whole from that token and head on.
func (e *sample) sameRows(t rapid.TB, what string, whole, part Output, token, tokens, head, heads int) {
	t.Helper()
	v := e.kv.Layout.vDim
	for i := range tokens {
		for h := range heads {
			a, b := (token+i)*e.q.Heads+head+h, i*heads+h
			if !sameBits(whole.LSE[a], part.LSE[b]) {
				t.Fatalf("%s: token %d, head %d: LSE %x, not %x", what, token+i, head+h, part.LSE[b], whole.LSE[a])
			}
			for j := range v {
				if x, y := whole.Context[a*v+j], part.Context[b*v+j]; math.Float32bits(x) != math.Float32bits(y) {
					t.Fatalf("%s: token %d, head %d, element %d: %x, not %x", what, token+i, head+h, j, y, x)
				}
			}
		}
	}
}

// near fails unless the output is within 8 units of the truth, and the LSE alike.
func (e *sample) near(t rapid.TB, out Output) float64 {
	t.Helper()
	res := reference.Attend(e.problem())
	most, token, head := res.Units(out.Context)
	if !(most <= 8) {
		t.Errorf("token %d, head %d: context is off by %.2f units", token, head, most)
	}
	unit := reference.Attend(ones(e.problem())).Unit
	for i, want := range res.LSE {
		got := float64(out.LSE[i])
		if got == want {
			continue
		}
		// In units of a row of values 1, and 2 more for the size of the LSE itself.
		if e := math.Abs(got - want); !(e <= 8*unit[i]+math.Abs(want)*0x1p-23) {
			t.Errorf("row %d: LSE %g, want %g", i, got, want)
		}
		if math.IsInf(want, -1) {
			t.Errorf("row %d: LSE %g, want -Inf", i, got)
		}
	}
	return most
}

// ones is the problem with values of one element, 1.
func ones(p reference.Problem) reference.Problem {
	p.VDim, p.V = 1, make([]float64, p.KVTokens*p.KVHeads)
	for i := range p.V {
		p.V[i] = 1
	}
	return p
}
