package attention

import (
	"fmt"
	"math"
)

// Rope is a rotary position embedding. Pair j of the first Dims elements of a head is turned by the angle
//
//	position · Scale · Base^(−2j/Dims) / Factors[j]
//
// Linear scaling to a context f times as long is Scale 1/f; scaling that is aware of frequencies is a larger Base (NTK)
// or Factors (Llama 3, LongRoPE), with Mscale (YaRN).
type Rope struct {
	// Base is the base of the frequencies, such as 10000.
	Base float64
	// Dims is how many elements of a head turn, even; the others stay as they are.
	Dims int
	// Interleaved pairs neighbors (2j, 2j+1), else halves (j, j + Dims/2).
	Interleaved bool
	// Scale multiplies every angle; 0 is 1.
	Scale float64
	// Factors [Dims/2], or nil: divides the frequency of each pair.
	Factors []float64
	// Mscale multiplies every cosine and sine; 0 is 1.
	Mscale float64
}

// Validate says what in the embedding no head of that size can have.
func (r Rope) Validate(headDim int) error {
	if r.Dims < 2 || r.Dims%2 != 0 || r.Dims > headDim {
		return fmt.Errorf("rope dims is %d, not an even number from 2 to head_dim %d", r.Dims, headDim)
	}
	if !(r.Base > 0) || math.IsInf(r.Base, 0) {
		return fmt.Errorf("rope base is %g, not a finite number above 0", r.Base)
	}
	if !(r.Scale >= 0) || math.IsInf(r.Scale, 0) {
		return fmt.Errorf("rope scale is %g, neither 0 nor a finite number above it", r.Scale)
	}
	if !(r.Mscale >= 0) || math.IsInf(r.Mscale, 0) || math.IsInf(float64(float32(r.Mscale)), 0) {
		return fmt.Errorf("rope mscale is %g, neither 0 nor a finite number above it", r.Mscale)
	}
	if len(r.Factors) != 0 && len(r.Factors) != r.Dims/2 {
		return fmt.Errorf("rope has %d factors for %d pairs", len(r.Factors), r.Dims/2)
	}
	for j, f := range r.Factors {
		if !(f > 0) || math.IsInf(f, 0) {
			return fmt.Errorf("rope factor %d is %g, not a finite number above 0", j, f)
		}
	}
	return nil
}

// Tables returns the cosines and sines [n, Dims/2] of n positions from start, made in binary64 and rounded once. Their
// bits may differ from one architecture to another, so one machine makes them for all. The embedding is valid.
func (r Rope) Tables(start int64, n int) (cos, sin []float32) {
	pairs := r.Dims / 2
	scale, mscale := r.Scale, r.Mscale
	if scale == 0 {
		scale = 1
	}
	if mscale == 0 {
		mscale = 1
	}
	turns := make([]float64, pairs) // angles per position
	for j := range turns {
		turns[j] = scale / math.Pow(r.Base, float64(2*j)/float64(r.Dims))
		if len(r.Factors) != 0 {
			turns[j] /= r.Factors[j]
		}
	}
	cos, sin = make([]float32, n*pairs), make([]float32, n*pairs)
	for i := range n {
		for j, turn := range turns {
			s, c := math.Sincos(float64(start+int64(i)) * turn)
			cos[i*pairs+j], sin[i*pairs+j] = float32(c*mscale), float32(s*mscale)
		}
	}
	return cos, sin
}

// ApplyRope turns the first dims elements of every head of x [rows, heads, headDim] in place, by the cosines and sines
// [rows, dims/2] of its rows: x0' = fma(x0, c, −(x1·s)), x1' = fma(x0, s, x1·c).
func ApplyRope(x, cos, sin []float32, rows, heads, headDim, dims int, interleaved bool) error {
	return turnPairs(x, cos, sin, 1, rows, heads, headDim, dims, interleaved)
}

// UnapplyRope brings the gradient x of what ApplyRope has turned back to what it turned: by −θ with the same tables, so
// x0' = fma(x0, c, x1·s), x1' = fma(x0, −s, x1·c).
func UnapplyRope(x, cos, sin []float32, rows, heads, headDim, dims int, interleaved bool) error {
	return turnPairs(x, cos, sin, -1, rows, heads, headDim, dims, interleaved)
}

// turnPairs is both, with sign times the sines.
func turnPairs(x, cos, sin []float32, sign float32, rows, heads, headDim, dims int, interleaved bool) error {
	if rows < 0 || heads < 1 || headDim < 1 || dims < 0 || dims > headDim || dims%2 != 0 {
		return fmt.Errorf("rotate %d dims of %d rows × %d heads × head_dim %d", dims, rows, heads, headDim)
	}
	pairs := dims / 2
	if !shaped(len(x), rows, heads, headDim) || !shaped(len(cos), rows, pairs, 1) || !shaped(len(sin), rows, pairs, 1) {
		return fmt.Errorf("rotate: x has %d elements, cos %d and sin %d, for %d dims of %d rows × %d heads × head_dim %d",
			len(x), len(cos), len(sin), dims, rows, heads, headDim)
	}
	next, step := pairs, 1
	if interleaved {
		next, step = 1, 2
	}
	for r := range rows {
		c, s := cos[r*pairs:][:pairs], sin[r*pairs:][:pairs]
		for h := range heads {
			head := x[(r*heads+h)*headDim:][:headDim]
			for j := range pairs {
				x0, x1, turn := head[j*step], head[j*step+next], sign*s[j]
				head[j*step] = fma32(x0, c[j], -float32(x1*turn))
				head[j*step+next] = fma32(x0, turn, float32(x1*c[j]))
			}
		}
	}
	return nil
}
