package reference

import (
	"fmt"
	"math"
	"math/rand/v2"
	"testing"
)

// drawn is a small problem with every option that the bits of options ask for.
func drawn(rnd *rand.Rand, options int) Problem {
	p := Problem{
		Tokens: 1 + rnd.IntN(4), KVTokens: 1 + rnd.IntN(6), KVHeads: 1 + rnd.IntN(2), HeadDim: 1 + rnd.IntN(4), VDim: 1 + rnd.IntN(4),
		WindowLeft: -1, WindowRight: -1, Scale: 0.3 + rnd.Float64(),
	}
	p.Heads, p.KVLen = p.KVHeads*(1+rnd.IntN(3)), p.KVTokens
	normals := func(n int) []float64 {
		x := make([]float64, n)
		for i := range x {
			x[i] = rnd.NormFloat64()
		}
		return x
	}
	p.Q, p.K, p.V = normals(p.Tokens*p.Heads*p.HeadDim), normals(p.KVTokens*p.KVHeads*p.HeadDim), normals(p.KVTokens*p.KVHeads*p.VDim)
	has := func(bit int) bool { return options&(1<<bit) != 0 }
	if p.Causal = has(0); p.Causal {
		p.Offset = int64(rnd.IntN(4) - 1)
	}
	if has(1) {
		p.WindowLeft, p.WindowRight = 2, 1
	}
	if has(2) {
		p.Softcap = 1.5
	}
	if has(3) {
		p.AlibiSlopes = normals(p.Heads)
	}
	if has(4) {
		p.Sinks = normals(p.Heads)
	}
	if has(5) {
		p.MaskHeads, p.Mask = 1, make([]byte, p.Tokens*p.KVTokens)
		for i := range p.Mask {
			p.Mask[i] = byte(rnd.IntN(3))
		}
	}
	if has(6) {
		p.BiasHeads = 1
		if rnd.IntN(2) == 0 {
			p.BiasHeads = p.Heads
		}
		p.Bias = normals(p.BiasHeads * p.Tokens * p.KVTokens)
		p.Bias[rnd.IntN(len(p.Bias))] = math.Inf(-1)
	}
	if has(7) {
		p.KVLen = rnd.IntN(p.KVTokens + 1)
	}
	return p
}

// TestCentralDifferences compares every derivative with the change of the loss itself, for all combinations of options.
func TestCentralDifferences(t *testing.T) {
	rnd := rand.New(rand.NewPCG(3, 1))
	for options := range 1 << 8 {
		p := drawn(rnd, options)
		d := make([]float64, p.Tokens*p.Heads*p.VDim)
		for i := range d {
			d[i] = rnd.NormFloat64()
		}
		loss := func() (sum float64) {
			for i, c := range Attend(p).Context {
				sum += d[i] * c
			}
			return sum
		}
		g := Differentiate(p, d)
		for _, c := range []struct {
			name string
			x    []float64
			g    Gradient
		}{{"q", p.Q, g.Q}, {"k", p.K, g.K}, {"v", p.V, g.V}, {"bias", p.Bias, g.Bias}, {"sinks", p.Sinks, g.Sinks}} {
			for i, x := range c.x {
				if math.IsInf(x, -1) {
					if c.g.Values[i] != 0 {
						t.Errorf("%08b: %s[%d] hides its position and has the derivative %g", options, c.name, i, c.g.Values[i])
					}
					continue
				}
				const h = 1e-5
				c.x[i] = x + h
				more := loss()
				c.x[i] = x - h
				less := loss()
				c.x[i] = x
				// The difference errs by h² and by the rounding of the loss over h.
				if want, got := (more-less)/(2*h), c.g.Values[i]; !(math.Abs(got-want) <= 1e-7*(1+math.Abs(want))) {
					t.Errorf("%08b: %s[%d] is %g, the difference is %g", options, c.name, i, got, want)
				}
			}
		}
	}
}

// TestGradientUnits: the units are those of the contract, by hand for one row that sees one position.
func TestGradientUnits(t *testing.T) {
	p := Problem{
		Tokens: 1, KVTokens: 1, KVLen: 1, Heads: 1, KVHeads: 1, HeadDim: 1, VDim: 2, WindowLeft: -1, WindowRight: -1,
		Scale: -0.5, Q: []float64{4}, K: []float64{-3}, V: []float64{2, -5}, Sinks: []float64{6 + math.Log(3)},
	}
	// The score is 6, LSE 6 + log 4, the weight ¼, the sink's ¾; A = (1 + 7)·5.
	g := Differentiate(p, []float64{1, -7})
	u := 0x1p-24 * (1 + 6 + math.Log(4))
	for _, c := range []struct {
		name string
		got  Gradient
		want []float64
		unit []float64
	}{
		{"v", g.V, []float64{0.25, -7. / 4}, []float64{u / 4, u * 7 / 4}},
		// dP = 37, D = 37/4, so the score's derivative is ¼·¾·37.
		{"q", g.Q, []float64{37. * 3 / 16 * 1.5}, []float64{u / 4 * 40 * 1.5}},
		{"k", g.K, []float64{37. * 3 / 16 * -2}, []float64{u / 4 * 40 * 2}},
		{"sinks", g.Sinks, []float64{-37. * 3 / 16}, []float64{u * 0.75 * 40}},
	} {
		if apart(c.got.Values, c.want) > 1e-12 || apart(c.got.Unit, c.unit) > 1e-18 {
			t.Errorf("%s: %v in units %v, want %v in %v", c.name, c.got.Values, c.got.Unit, c.want, c.unit)
		}
	}
	if most, at := g.V.Units([]float32{0.25, float32(-7./4 + 3*u*7/4)}); math.Abs(most-3) > 0.1 || at != 1 {
		t.Errorf("%g units at %d, want 3 at 1", most, at)
	}
	if most, _ := g.Q.Units([]float32{float32(math.NaN())}); !math.IsInf(most, 1) {
		t.Errorf("NaN is %g units off", most)
	}
	if fmt.Sprint(g.Bias.Values) != "[]" {
		t.Errorf("a problem without bias has the derivative %v", g.Bias.Values)
	}
}

// TestCentralDifferencesOfLayers is TestCentralDifferences for whole layers, with and without biases and rotation.
func TestCentralDifferencesOfLayers(t *testing.T) {
	rnd := rand.New(rand.NewPCG(3, 2))
	normals := func(n int) []float64 {
		x := make([]float64, n)
		for i := range x {
			x[i] = rnd.NormFloat64()
		}
		return x
	}
	for options := range 1 << 9 {
		p := drawn(rnd, options&(1<<7-1))
		p.HeadDim += 2
		p.KVTokens, p.KVLen, p.Mask, p.Bias = p.Tokens, rnd.IntN(p.Tokens+1), nil, nil
		if p.MaskHeads != 0 {
			p.Mask = make([]byte, p.Tokens*p.Tokens)
			for i := range p.Mask {
				p.Mask[i] = byte(rnd.IntN(3))
			}
		}
		p.Bias = normals(p.BiasHeads * p.Tokens * p.Tokens)
		l := Layer{Attention: p, DModel: 1 + rnd.IntN(4)}
		l.X, l.WO = normals(p.Tokens*l.DModel), normals(l.DModel*p.Heads*p.VDim)
		l.WQ, l.WK, l.WV = normals(p.Heads*p.HeadDim*l.DModel), normals(p.KVHeads*p.HeadDim*l.DModel), normals(p.KVHeads*p.VDim*l.DModel)
		if options&(1<<7) != 0 {
			l.BQ, l.BK, l.BV, l.BO = normals(p.Heads*p.HeadDim), normals(p.KVHeads*p.HeadDim), normals(p.KVHeads*p.VDim), normals(l.DModel)
		}
		if options&(1<<8) != 0 {
			l.Rotation = &Rotation{Base: 7, Dims: 2 * (1 + rnd.IntN(p.HeadDim/2)), Interleaved: rnd.IntN(2) == 0, Scale: 0.7, Mscale: 1.3, Start: 3}
		}
		d := normals(p.Tokens * l.DModel)
		loss := func() (sum float64) {
			res, err := AttendLayer(l)
			if err != nil {
				t.Fatal(err)
			}
			for i, y := range res.Y {
				sum += d[i] * y
			}
			return sum
		}
		g, err := DifferentiateLayer(l, d)
		if err != nil {
			t.Fatal(err)
		}
		for _, c := range []struct {
			name string
			x    []float64
			g    Gradient
		}{
			{"x", l.X, g.X},
			{"w_q", l.WQ, g.WQ},
			{"w_k", l.WK, g.WK},
			{"w_v", l.WV, g.WV},
			{"w_o", l.WO, g.WO},
			{"b_q", l.BQ, g.BQ},
			{"b_k", l.BK, g.BK},
			{"b_v", l.BV, g.BV},
			{"b_o", l.BO, g.BO},
			{"bias", l.Attention.Bias, g.Bias},
			{"sinks", l.Attention.Sinks, g.Sinks},
		} {
			if len(c.g.Values) != len(c.x) || len(c.g.Unit) != len(c.x) {
				t.Fatalf("%09b: %s has %d derivatives in %d units, for %d elements", options, c.name, len(c.g.Values), len(c.g.Unit), len(c.x))
			}
			for i, x := range c.x {
				const h = 1e-5
				c.x[i] = x + h
				more := loss()
				c.x[i] = x - h
				less := loss()
				c.x[i] = x
				// Third derivatives grow with the fourth power of hidden states and weights.
				if want, got := (more-less)/(2*h), c.g.Values[i]; !(math.Abs(got-want) <= 1e-5*(1+math.Abs(want))) {
					t.Errorf("%09b: %s[%d] is %g, the difference is %g", options, c.name, i, got, want)
				}
			}
		}
	}
}
