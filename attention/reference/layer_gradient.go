package reference

import (
	"fmt"
	"math"
)

// LayerGradients is the truth of a layer's derivatives, each in the shape of its tensor, and empty where the layer has none.
type LayerGradients struct {
	X              Gradient // [Tokens, DModel]
	WQ, WK, WV, WO Gradient
	BQ, BK, BV, BO Gradient
	Bias, Sinks    Gradient
}

// DifferentiateLayer returns the derivatives of Σ dY·y by hidden states, weights, biases, attention's bias and sinks, with
// dY [Tokens, DModel]. The layer has WO.
//
// The units are those of Differentiate, where the sum of the magnitudes that it is the sum of stands for each element of q, k,
// v and d_context; what is a sum of gradients times numbers has that sum of their units times the numbers' magnitudes.
func DifferentiateLayer(l Layer, dY []float64) (LayerGradients, error) {
	p, err := l.problem()
	if err != nil {
		return LayerGradients{}, err
	}
	if p.magnitudes, err = l.sizes(p); err != nil {
		return LayerGradients{}, err
	}
	width := p.Heads * p.VDim
	if len(l.WO) != l.DModel*width || len(dY) != p.Tokens*l.DModel {
		return LayerGradients{}, fmt.Errorf("reference: w_o has %d elements and d_y %d, for %d tokens, d_model %d and %d", len(l.WO), len(dY), p.Tokens, l.DModel, width)
	}
	w := transposed(l.WO, l.DModel, width)
	dContext, err := project("d_context", dY, w, nil, p.Tokens, l.DModel, width)
	if err != nil {
		return LayerGradients{}, err
	}
	dSize, err := project("d_context", abs(dY), abs(w), nil, p.Tokens, l.DModel, width)
	if err != nil {
		return LayerGradients{}, err
	}
	d, context := p.differentiate(dContext, dSize), Attend(p)
	if r := l.Rotation; r != nil {
		r.back(d.Q, p.Heads, p.HeadDim)
		r.back(d.K, p.KVHeads, p.HeadDim)
	}
	g := LayerGradients{X: gradientOf(len(l.X)), Bias: d.Bias, Sinks: d.Sinks}
	for _, c := range []struct {
		d       Gradient
		w, b    []float64
		dW, dB  *Gradient
		columns int
	}{
		{d.Q, l.WQ, l.BQ, &g.WQ, &g.BQ, p.Heads * p.HeadDim},
		{d.K, l.WK, l.BK, &g.WK, &g.BK, p.KVHeads * p.HeadDim},
		{d.V, l.WV, l.BV, &g.WV, &g.BV, p.KVHeads * p.VDim},
	} {
		*c.dW, *c.dB = weightGradient(c.d, exactly(l.X), c.columns, l.DModel, c.b != nil)
		g.X.addProducts(c.d, c.w, c.columns, l.DModel)
	}
	units := gradientOf(0)
	units.Values = context.Context
	for i := range context.Context {
		units.Unit = append(units.Unit, context.Unit[i/p.VDim])
	}
	g.WO, g.BO = weightGradient(exactly(dY), units, l.DModel, width, l.BO != nil)
	return g, nil
}

// sizes returns the problem of the magnitudes that the projected q, k and v are sums of.
func (l Layer) sizes(p Problem) (*Problem, error) {
	l.X, l.WQ, l.WK, l.WV, l.BQ, l.BK, l.BV = abs(l.X), abs(l.WQ), abs(l.WK), abs(l.WV), abs(l.BQ), abs(l.BK), abs(l.BV)
	r := l.Rotation
	l.Rotation = nil
	sizes, err := l.problem()
	if err == nil && r != nil {
		r.turn(sizes.Q, p.Heads, p.HeadDim, magnitudes)
		r.turn(sizes.K, p.KVHeads, p.HeadDim, magnitudes)
	}
	return &sizes, err
}

// back turns a gradient of what was rotated into that of what was not.
func (r *Rotation) back(g Gradient, heads, headDim int) {
	r.turn(g.Values, heads, headDim, back)
	r.turn(g.Unit, heads, headDim, magnitudes)
}

// exactly is a tensor that was given: its unit is that of rounding it.
func exactly(x []float64) Gradient {
	g := Gradient{Values: x}
	for _, v := range x {
		g.Unit = append(g.Unit, 0x1p-24*math.Abs(v))
	}
	return g
}

// weightGradient returns dᵀ·x [rows, columns] and, if wanted, the sum of d over tokens [rows], with d [tokens, rows] and x
// [tokens, columns]. One of the two was given; the unit of a product is the other's unit times the given one's magnitude.
func weightGradient(d, x Gradient, rows, columns int, biased bool) (w, b Gradient) {
	w = gradientOf(rows * columns)
	if biased {
		b = gradientOf(rows)
	}
	for t := range len(d.Values) / rows {
		for r := range rows {
			at := t*rows + r
			for c := range columns {
				v, u := x.Values[t*columns+c], x.Unit[t*columns+c]
				w.add(r*columns+c, d.Values[at]*v, math.Max(d.Unit[at]*math.Abs(v), math.Abs(d.Values[at])*u))
			}
			if biased {
				b.add(r, d.Values[at], d.Unit[at])
			}
		}
	}
	return w, b
}

// addProducts adds d·w to g [tokens, columns], with d [tokens, rows] and w [rows, columns].
func (g Gradient) addProducts(d Gradient, w []float64, rows, columns int) {
	for at, v := range d.Values {
		for c := range columns {
			x := w[at%rows*columns+c]
			g.add(at/rows*columns+c, v*x, d.Unit[at]*math.Abs(x))
		}
	}
}

func transposed(x []float64, rows, columns int) []float64 {
	y := make([]float64, len(x))
	for i, v := range x {
		y[i%columns*rows+i/columns] = v
	}
	return y
}

// abs returns the magnitudes of x, nil of nil.
func abs(x []float64) []float64 {
	var y []float64
	for _, v := range x {
		y = append(y, math.Abs(v))
	}
	return y
}
