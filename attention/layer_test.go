package attention

import (
	"context"
	"errors"
	"math"
	"math/rand/v2"
	"slices"
	"testing"

	"headwater.example/attention/reference"
	"headwater.example/tensor"
)

func TestProjectIsOneChain(t *testing.T) {
	rnd := rand.New(rand.NewPCG(1, 1))
	for _, c := range []struct{ rows, in, out int }{{1, 1, 1}, {3, 7, 5}, {2, 513, 64}, {5, 512, 65}, {300, 9, 130}, {257, 1030, 3}, {0, 4, 4}} {
		x, w, bias := normals(rnd, c.rows*c.in, 1), normals(rnd, c.out*c.in, 1), normals(rnd, c.out, 1)
		want := make([]float32, c.rows*c.out)
		for r := range c.rows {
			for j := range c.out {
				s := float32(0)
				for i := range c.in {
					s = fma32(x[r*c.in+i], w[j*c.in+i], s)
				}
				want[r*c.out+j] = s + bias[j]
			}
		}
		for _, threads := range []int{0, 1, 2, 5} {
			y := make([]float32, len(want))
			if err := Project(context.Background(), threads, y, x, w, bias, c.rows, c.in, c.out); err != nil {
				t.Fatal(err)
			}
			for i := range y {
				if !sameBits(y[i], want[i]) {
					t.Fatalf("%+v, %d threads: y[%d] = %x, want %x", c, threads, i, y[i], want[i])
				}
			}
		}
	}
}

// TestUnapplyRope: it is the transpose of ApplyRope, by products of vectors, with the same tables.
func TestUnapplyRope(t *testing.T) {
	rnd := rand.New(rand.NewPCG(1, 3))
	for _, interleaved := range []bool{false, true} {
		rope := Rope{Base: 100, Dims: 6, Mscale: 1.5, Interleaved: interleaved}
		cos, sin := rope.Tables(5, 3)
		x, y := normals(rnd, 3*2*7, 1), normals(rnd, 3*2*7, 1)
		turned, back := slices.Clone(x), slices.Clone(y)
		if err := errors.Join(ApplyRope(turned, cos, sin, 3, 2, 7, 6, interleaved), UnapplyRope(back, cos, sin, 3, 2, 7, 6, interleaved)); err != nil {
			t.Fatal(err)
		}
		var a, b float64
		for i := range x {
			a, b = a+float64(turned[i])*float64(y[i]), b+float64(x[i])*float64(back[i])
		}
		if math.Abs(a-b) > 1e-5 {
			t.Errorf("interleaved %v: ⟨Rx, y⟩ is %g, ⟨x, Rᵀy⟩ %g", interleaved, a, b)
		}
	}
	x := []float32{1, 2}
	if err := UnapplyRope(x, []float32{0}, []float32{1}, 1, 1, 2, 2, false); err != nil || x[0] != 2 || x[1] != -1 {
		t.Errorf("a quarter turn back makes %v, %v", x, err)
	}
}

func TestProjectErrors(t *testing.T) {
	ctx, cancel := context.WithCancel(context.Background())
	y, x := make([]float32, 4), make([]float32, 6)
	for _, err := range []error{
		Project(ctx, 1, y, x, x, nil, 2, 3, 3),
		Project(ctx, 1, y, x, x, nil, 2, 0, 2),
		Project(ctx, 1, y, x, x, nil, -2, 3, 2),
		Project(ctx, 1, y, x, x, y[:1], 2, 3, 2),
		Project(ctx, 1, y, x, x, nil, math.MaxInt/2, 3, 2),
	} {
		if err == nil {
			t.Error("lengths that do not match pass")
		}
	}
	x[2], x[5] = 3e38, 3e38
	w := []float32{1, 1, 1, 1, 1, 4}
	var p *ProjectionError
	if err := Project(ctx, 2, y, x, w, nil, 2, 3, 2); !errors.As(err, &p) || p.Row != 0 || p.Column != 1 {
		t.Errorf("%v, want one of row 0, column 1", err)
	}
	cancel()
	if err := Project(ctx, 2, y, x, x, nil, 2, 3, 2); !errors.Is(err, context.Canceled) {
		t.Errorf("%v, want %v", err, context.Canceled)
	}
}

func TestRope(t *testing.T) {
	r := Rope{Base: 10000, Dims: 4, Scale: 0.5, Factors: []float64{1, 4}, Mscale: 2}
	if err := r.Validate(4); err != nil {
		t.Fatal(err)
	}
	cos, sin := r.Tables(-1, 4)
	for i := range 4 {
		for j, turn := range []float64{0.5, 0.5 / 100 / 4} {
			angle := float64(i-1) * turn
			c, s := 2*math.Cos(angle), 2*math.Sin(angle)
			if math.Abs(float64(cos[2*i+j])-c) > 1.3e-7 || math.Abs(float64(sin[2*i+j])-s) > 1.3e-7 {
				t.Errorf("position %d, pair %d: %g and %g, want %g and %g", i-1, j, cos[2*i+j], sin[2*i+j], c, s)
			}
		}
	}
	c, s := []float32{0, 1}, []float32{1, 0} // a quarter turn of pair 0, none of pair 1
	for _, test := range []struct {
		interleaved bool
		want        [5]float32
	}{{false, [5]float32{-3, 2, 1, 4, 5}}, {true, [5]float32{-2, 1, 3, 4, 5}}} {
		x := []float32{1, 2, 3, 4, 5}
		if err := ApplyRope(x, c, s, 1, 1, 5, 4, test.interleaved); err != nil {
			t.Fatal(err)
		}
		if [5]float32(x) != test.want {
			t.Errorf("interleaved %v: %v, want %v", test.interleaved, x, test.want)
		}
	}
	if err := ApplyRope(make([]float32, 5), c, s, 1, 1, 5, 6, false); err == nil {
		t.Error("6 dims of 5 turn")
	}
	if err := ApplyRope(make([]float32, 5), c[:1], s, 1, 1, 5, 4, false); err == nil {
		t.Error("a short table passes")
	}
	inf := math.Inf(1)
	for _, bad := range []Rope{
		{Base: 1e4},
		{Base: 1e4, Dims: 3},
		{Base: 1e4, Dims: 6},
		{Dims: 4},
		{Base: inf, Dims: 4},
		{Base: 1e4, Dims: 4, Scale: -1},
		{Base: 1e4, Dims: 4, Mscale: 1e300},
		{Base: 1e4, Dims: 4, Factors: []float64{1}},
		{Base: 1e4, Dims: 4, Factors: []float64{1, 0}},
	} {
		if err := bad.Validate(5); err == nil {
			t.Errorf("%+v passes", bad)
		}
	}
}

// TestLayer takes a layer with everything in it from hidden states to its output.
func TestLayer(t *testing.T) {
	ctx := context.Background()
	const tokens, dModel, heads, kvHeads, headDim, vDim, rot = 70, 48, 4, 2, 12, 10, 8
	const group = heads / kvHeads
	for _, interleaved := range []bool{false, true} {
		rnd := rand.New(rand.NewPCG(9, 9))
		x := normals(rnd, tokens*dModel, 1)
		wq, wk := normals(rnd, heads*headDim*dModel, 0.3), normals(rnd, kvHeads*headDim*dModel, 0.3)
		wv, wo := normals(rnd, kvHeads*vDim*dModel, 0.3), normals(rnd, dModel*heads*vDim, 0.3)
		bq, bk, bv, bo := normals(rnd, heads*headDim, 1), normals(rnd, kvHeads*headDim, 1), normals(rnd, kvHeads*vDim, 1), normals(rnd, dModel, 1)
		rope := Rope{Base: 500, Dims: rot, Interleaved: interleaved, Factors: []float64{1, 1, 2, 3}, Mscale: 1.1}

		cos, sin := rope.Tables(0, tokens)
		opts := DefaultOptions(headDim)
		opts.Causal = true
		all := make([]float32, tokens*heads*vDim) // the gathered context
		for g := range kvHeads {
			q, k, v := make([]float32, tokens*group*headDim), make([]float32, tokens*headDim), make([]float32, tokens*vDim)
			for _, err := range []error{
				Project(ctx, 1, q, x, wq[g*group*headDim*dModel:][:group*headDim*dModel], bq[g*group*headDim:][:group*headDim], tokens, dModel, group*headDim),
				Project(ctx, 1, k, x, wk[g*headDim*dModel:][:headDim*dModel], bk[g*headDim:][:headDim], tokens, dModel, headDim),
				Project(ctx, 1, v, x, wv[g*vDim*dModel:][:vDim*dModel], bv[g*vDim:][:vDim], tokens, dModel, vDim),
				ApplyRope(q, cos, sin, tokens, group, headDim, rot, interleaved),
				ApplyRope(k, cos, sin, tokens, 1, headDim, rot, interleaved),
			} {
				if err != nil {
					t.Fatal(err)
				}
			}
			l, err := NewLayout(tensor.F32, headDim, vDim)
			if err != nil {
				t.Fatal(err)
			}
			kb, _, _ := store(t, k, headDim, tensor.F32)
			vb, _, _ := store(t, v, vDim, tensor.F32)
			out := Output{Context: make([]float32, tokens*group*vDim), LSE: make([]float32, tokens*group)}
			kv := KV{Layout: l, Pages: paged(t, l, tokens, Rows{K: kb, V: vb}), Len: tokens}
			if err := Attend(ctx, 2, kv, Query{Q: q, Tokens: tokens, Heads: group, FirstHead: g * group}, opts, out); err != nil {
				t.Fatal(err)
			}
			for i := range tokens {
				copy(all[(i*heads+g*group)*vDim:], out.Context[i*group*vDim:][:group*vDim])
			}
		}
		y := make([]float32, tokens*dModel)
		if err := Project(ctx, 2, y, all, wo, bo, tokens, heads*vDim, dModel); err != nil {
			t.Fatal(err)
		}

		truth, err := reference.AttendLayer(reference.Layer{
			Attention: reference.Problem{
				Tokens: tokens, KVLen: tokens, Heads: heads, KVHeads: kvHeads, HeadDim: headDim, VDim: vDim,
				Causal: true, WindowLeft: -1, WindowRight: -1, Scale: float64(opts.Scale),
			},
			DModel: dModel, X: wide(x), WQ: wide(wq), WK: wide(wk), WV: wide(wv), WO: wide(wo),
			BQ: wide(bq), BK: wide(bk), BV: wide(bv), BO: wide(bo),
			Rotation: &reference.Rotation{Base: 500, Dims: rot, Interleaved: interleaved, Factors: rope.Factors, Mscale: 1.1},
		})
		if err != nil {
			t.Fatal(err)
		}
		most := 0.0
		for i := range tokens {
			largest, e := 0.0, 0.0
			for j, want := range truth.Y[i*dModel:][:dModel] {
				largest, e = max(largest, math.Abs(want)), max(e, math.Abs(float64(y[i*dModel+j])-want))
			}
			most = max(most, e/largest)
		}
		t.Logf("largest error relative to its row: %.2g", most)
		if !(most <= 1e-5) {
			t.Errorf("output is off by %g of its row's largest value", most)
		}
	}
}
