package reference

import (
	"fmt"
	"math"
)

// Gradient is the derivative of a loss by one tensor, and for each element the unit in which its error is counted.
type Gradient struct {
	Values, Unit []float64
}

// Gradients is the truth of a problem's derivatives, each in the shape of its tensor.
type Gradients struct {
	Q     Gradient // [Tokens, Heads, HeadDim]
	K     Gradient // [KVTokens, KVHeads, HeadDim]
	V     Gradient // [KVTokens, KVHeads, VDim]
	Bias  Gradient // [BiasHeads, Tokens, KVTokens]
	Sinks Gradient // [Heads], or empty without sinks
}

func gradientOf(n int) Gradient {
	return Gradient{Values: make([]float64, n), Unit: make([]float64, n)}
}

func (g Gradient) add(i int, value, unit float64) {
	g.Values[i] += value
	g.Unit[i] += unit
}

// leastWeight stands in units for every weight below it: float32's exponential is 0 below 2⁻¹²⁶.
const leastWeight = 0x1p-100

// Differentiate returns the derivatives of Σ dContext·context by q, k, v, bias and sinks, dContext [Tokens, Heads, VDim].
// Positions that a row does not see take no part, so their share of Bias is 0. It panics if the problem is not valid or
// dContext does not fit it.
//
// Each unit is a sum over the rows and positions that the element is a sum over, 2⁻²⁴·(1 + S)·weight·magnitude:
// docs/numerics.md has the magnitudes. S is the larger of Attend's S of the row and |LSE|.
func Differentiate(p Problem, dContext []float64) Gradients {
	p.must()
	if len(dContext) != p.Tokens*p.Heads*p.VDim {
		panic(fmt.Errorf("reference: d_context has %d elements, not %d", len(dContext), p.Tokens*p.Heads*p.VDim))
	}
	return p.differentiate(dContext, dContext)
}

// differentiate is Differentiate; size holds the magnitudes that each element of dContext is the sum of.
func (p *Problem) differentiate(dContext, size []float64) Gradients {
	g := Gradients{Q: gradientOf(len(p.Q)), K: gradientOf(len(p.K)), V: gradientOf(len(p.V)), Bias: gradientOf(len(p.Bias)), Sinks: gradientOf(len(p.Sinks))}
	for token := range p.Tokens {
		for head := range p.Heads {
			at := (token*p.Heads + head) * p.VDim
			p.differentiateRow(g, head, token, dContext[at:][:p.VDim], size[at:][:p.VDim])
		}
	}
	return g
}

func (p *Problem) differentiateRow(g Gradients, head, token int, dContext, dSize []float64) {
	r := p.row(head, token)
	// slope is what the loss gains if a position's weight grows by itself; mean is that of the whole row.
	slopes, mean, largest := make([]float64, p.KVTokens), 0.0, 0.0
	sum := 0.0
	for _, d := range dSize {
		sum += math.Abs(d)
	}
	for k, w := range r.weights {
		if !p.sees(head, token, k) {
			continue
		}
		for e, v := range p.value(head, k) {
			slopes[k] += dContext[e] * v
			largest = math.Max(largest, math.Abs(p.sizes().value(head, k)[e]))
		}
		mean += w * slopes[k]
	}
	size := r.magnitude
	if !math.IsInf(r.lse, -1) {
		size = math.Max(size, math.Abs(r.lse))
	}
	unit := 0x1p-24 * (1 + size)
	group := head / (p.Heads / p.KVHeads)
	q, row := p.query(head, token), token*p.Heads+head
	for k, w := range r.weights {
		if !p.sees(head, token, k) {
			continue
		}
		dScore := w * (slopes[k] - mean)
		weightUnit := unit * math.Max(w, leastWeight)
		scoreUnit := weightUnit * sum * largest
		if p.BiasHeads != 0 {
			g.Bias.add(p.at(p.BiasHeads, head, token, k), dScore, scoreUnit)
		}
		dProduct := dScore * p.Scale * p.capSlope(head, token, k)
		productUnit := scoreUnit * math.Abs(p.Scale)
		key, at := p.key(head, k), k*p.KVHeads+group
		qSize, keySize := p.sizes().query(head, token), p.sizes().key(head, k)
		for c := range q {
			g.Q.add(row*p.HeadDim+c, dProduct*key[c], productUnit*math.Abs(keySize[c]))
			g.K.add(at*p.HeadDim+c, dProduct*q[c], productUnit*math.Abs(qSize[c]))
		}
		for e, d := range dContext {
			g.V.add(at*p.VDim+e, w*d, weightUnit*math.Abs(dSize[e]))
		}
	}
	if len(p.Sinks) != 0 {
		w := math.Exp(p.Sinks[head] - r.lse)
		g.Sinks.add(head, -w*mean, unit*math.Max(w, leastWeight)*sum*largest)
	}
}

// capSlope is the derivative of a position's capped score by the score.
func (p *Problem) capSlope(head, token, k int) float64 {
	if p.Softcap == 0 {
		return 1
	}
	s := 0.0
	key := p.key(head, k)
	for i, q := range p.query(head, token) {
		s += q * key[i]
	}
	th := math.Tanh(s * p.Scale / p.Softcap)
	return 1 - th*th
}

// Units returns the largest error of a gradient in units of its element, and the element. An element whose unit is 0 has
// to be right: any error there, as any NaN, is +Inf.
func (g Gradient) Units(got []float32) (most float64, at int) {
	if len(got) != len(g.Values) {
		return math.Inf(1), 0
	}
	for i, want := range g.Values {
		e := math.Abs(float64(got[i]) - want)
		switch {
		case e == 0:
			continue
		case g.Unit[i] == 0 || e != e:
			e = math.Inf(1)
		default:
			e /= g.Unit[i]
		}
		if e > most {
			most, at = e, i
		}
	}
	return most, at
}
