package reference

import (
	"fmt"
	"math"
)

// Layer is an attention layer: hidden states are projected to queries, keys and values, queries and keys are rotated,
// attended, and the contexts projected back. Attention gives heads, sizes and options; the layer makes its Q, K and V,
// and its KVTokens are the Tokens.
type Layer struct {
	Attention Problem
	DModel    int

	X  []float64 // [Tokens, DModel]
	WQ []float64 // [Heads·HeadDim, DModel]
	WK []float64 // [KVHeads·HeadDim, DModel]
	WV []float64 // [KVHeads·VDim, DModel]
	WO []float64 // [DModel, Heads·VDim], or nil
	// Biases, each as long as its projection, or nil.
	BQ, BK, BV, BO []float64
	// Rotation, or nil.
	Rotation *Rotation
}

// Rotation is a rotary embedding: pair j turns by position·Scale·Base^(−2j/Dims)/Factors[j], and cosines and sines are
// multiplied by Mscale. Zero Scale and Mscale are 1.
type Rotation struct {
	Base        float64
	Dims        int
	Interleaved bool
	Scale       float64
	Factors     []float64
	Mscale      float64
	// Start is the position of the first token.
	Start int64
}

// LayerResult is the truth of a layer.
type LayerResult struct {
	Result
	Y []float64 // [Tokens, DModel], nil without WO
}

// AttendLayer computes a layer.
func AttendLayer(l Layer) (LayerResult, error) {
	p, err := l.problem()
	if err != nil {
		return LayerResult{}, err
	}
	res := Attend(p)
	out := LayerResult{Result: res}
	if l.WO != nil {
		out.Y, err = project("output", res.Context, l.WO, l.BO, p.Tokens, p.Heads*p.VDim, l.DModel)
	}
	return out, err
}

// problem is the layer's attention, with the queries, keys and values that it projects and rotates.
func (l Layer) problem() (Problem, error) {
	p := l.Attention
	p.KVTokens = p.Tokens
	var err error
	if p.Q, err = project("q", l.X, l.WQ, l.BQ, p.Tokens, l.DModel, p.Heads*p.HeadDim); err != nil {
		return p, err
	}
	if p.K, err = project("k", l.X, l.WK, l.BK, p.Tokens, l.DModel, p.KVHeads*p.HeadDim); err != nil {
		return p, err
	}
	if p.V, err = project("v", l.X, l.WV, l.BV, p.Tokens, l.DModel, p.KVHeads*p.VDim); err != nil {
		return p, err
	}
	if r := l.Rotation; r != nil {
		if r.Dims < 2 || r.Dims%2 != 0 || r.Dims > p.HeadDim || len(r.Factors) != 0 && len(r.Factors) != r.Dims/2 {
			return p, fmt.Errorf("reference: rotation of %d dims with %d factors, head_dim %d", r.Dims, len(r.Factors), p.HeadDim)
		}
		r.turn(p.Q, p.Heads, p.HeadDim, forward)
		r.turn(p.K, p.KVHeads, p.HeadDim, forward)
	}
	return p, p.validate()
}

func project(name string, x, w, b []float64, rows, in, out int) ([]float64, error) {
	if len(x) != rows*in || len(w) != out*in || b != nil && len(b) != out {
		return nil, fmt.Errorf("reference: projection to %s: %d, %d and %d elements for %d rows from %d to %d", name, len(x), len(w), len(b), rows, in, out)
	}
	y := make([]float64, 0, rows*out)
	for r := range rows {
		for j := range out {
			sum := 0.0
			for c := range in {
				sum += x[r*in+c] * w[j*in+c]
			}
			if b != nil {
				sum += b[j]
			}
			y = append(y, sum)
		}
	}
	return y, nil
}

// A pair is turned by a cosine and a sine: forward, back, or as magnitudes, which only add up.
func forward(x0, x1, c, s float64) (y0, y1 float64) { return x0*c - x1*s, x0*s + x1*c }

func back(y0, y1, c, s float64) (x0, x1 float64) { return forward(y0, y1, c, -s) }

func magnitudes(x0, x1, c, s float64) (y0, y1 float64) {
	return x0*math.Abs(c) + x1*math.Abs(s), x0*math.Abs(s) + x1*math.Abs(c)
}

// turn turns every pair of x [tokens, heads, headDim].
func (r *Rotation) turn(x []float64, heads, headDim int, pair func(x0, x1, c, s float64) (y0, y1 float64)) {
	scale, mscale := r.Scale, r.Mscale
	if scale == 0 {
		scale = 1
	}
	if mscale == 0 {
		mscale = 1
	}
	for at := 0; at < len(x); at += headDim {
		position := float64(r.Start + int64(at/(heads*headDim)))
		for j := range r.Dims / 2 {
			angle := position * scale * math.Exp(-math.Log(r.Base)*float64(2*j)/float64(r.Dims))
			if len(r.Factors) != 0 {
				angle /= r.Factors[j]
			}
			first, second := at+j, at+j+r.Dims/2
			if r.Interleaved {
				first, second = at+2*j, at+2*j+1
			}
			x[first], x[second] = pair(x[first], x[second], math.Cos(angle)*mscale, math.Sin(angle)*mscale)
		}
	}
}
