// Package reference computes attention plainly in float64. It is the truth that errors are measured against: every score
// of a row is kept, the largest is subtracted, and the weights are normalized, with no pages, no merging and no order to
// be faithful to. It shares no code with package attention, and is slow.
package reference

import (
	"fmt"
	"math"
)

// Problem is an attention to be computed: query heads that read K/V heads in order, heads / kvHeads of them each.
type Problem struct {
	Tokens, KVTokens int
	Heads, KVHeads   int
	HeadDim, VDim    int

	Q []float64 // [Tokens, Heads, HeadDim]
	K []float64 // [KVTokens, KVHeads, HeadDim]
	V []float64 // [KVTokens, KVHeads, VDim]

	// KVLen hides the positions from KVLen on; all KVTokens are meant by KVTokens itself, not by 0.
	KVLen int
	// Offset is the position of the first token.
	Offset int64
	Causal bool
	// WindowLeft and WindowRight are positions seen beside the own one, negative for all.
	WindowLeft, WindowRight int64
	Scale                   float64
	Softcap                 float64   // 0: none
	AlibiSlopes             []float64 // [Heads] or nil
	Sinks                   []float64 // [Heads] or nil

	Mask      []byte // [MaskHeads, Tokens, KVTokens], 0 hides; MaskHeads 0, 1 or Heads
	MaskHeads int
	Bias      []float64 // [BiasHeads, Tokens, KVTokens], −Inf hides; BiasHeads 0, 1 or Heads
	BiasHeads int

	// magnitudes is the problem whose q, k and v hold, for each element of these, the sum of the absolute values that the
	// element is the sum of; nil is the problem itself. Units count them, since rounding errs by them.
	magnitudes *Problem
}

// Result is the truth of a problem.
type Result struct {
	Tokens, Heads, VDim int

	Context []float64 // [Tokens, Heads, VDim]
	LSE     []float64 // [Tokens, Heads], −Inf where nothing is visible
	// A row that sees positions and has no finite score has no answer: its context and LSE are NaN.

	// Unit [Tokens, Heads] is the unit in which the row's error is counted: 2⁻²⁴·(1 + S)·max|v|. S is the largest
	// |scale|·Σ|q[i]·k[i]| + |slope·distance| + |bias| over the positions that the row sees and that can have weight, max|v|
	// the largest |v| over all that it sees.
	Unit []float64
}

func (p *Problem) sizes() *Problem {
	if p.magnitudes != nil {
		return p.magnitudes
	}
	return p
}

// validate says what in the problem does not fit together.
func (p Problem) validate() error {
	if p.Tokens < 1 || p.Heads < 1 || p.KVHeads < 1 || p.Heads%p.KVHeads != 0 || p.HeadDim < 1 || p.VDim < 1 || p.KVTokens < 0 {
		return fmt.Errorf("reference: %d tokens, %d positions, %d heads on %d, head_dim %d, v_dim %d",
			p.Tokens, p.KVTokens, p.Heads, p.KVHeads, p.HeadDim, p.VDim)
	}
	if p.KVLen < 0 || p.KVLen > p.KVTokens {
		return fmt.Errorf("reference: kv_len %d of %d positions", p.KVLen, p.KVTokens)
	}
	for _, c := range []struct {
		name      string
		got, want int
	}{
		{"q", len(p.Q), p.Tokens * p.Heads * p.HeadDim},
		{"k", len(p.K), p.KVTokens * p.KVHeads * p.HeadDim},
		{"v", len(p.V), p.KVTokens * p.KVHeads * p.VDim},
		{"mask", len(p.Mask), p.MaskHeads * p.Tokens * p.KVTokens},
		{"bias", len(p.Bias), p.BiasHeads * p.Tokens * p.KVTokens},
	} {
		if c.got != c.want {
			return fmt.Errorf("reference: %s has %d elements, not %d", c.name, c.got, c.want)
		}
	}
	if n := len(p.AlibiSlopes); n != 0 && n != p.Heads {
		return fmt.Errorf("reference: %d slopes for %d heads", n, p.Heads)
	}
	if n := len(p.Sinks); n != 0 && n != p.Heads {
		return fmt.Errorf("reference: %d sinks for %d heads", n, p.Heads)
	}
	for _, heads := range []int{p.MaskHeads, p.BiasHeads} {
		if heads != 0 && heads != 1 && heads != p.Heads {
			return fmt.Errorf("reference: a mask or bias of %d heads for %d", heads, p.Heads)
		}
	}
	return nil
}

// sees says whether a row sees position k.
func (p *Problem) sees(head, token, k int) bool {
	at, pos := p.Offset+int64(token), int64(k)
	switch {
	case k >= p.KVLen,
		p.Causal && pos > at,
		p.WindowLeft >= 0 && at-pos > p.WindowLeft,
		p.WindowRight >= 0 && pos-at > p.WindowRight,
		p.MaskHeads != 0 && p.Mask[p.at(p.MaskHeads, head, token, k)] == 0,
		p.BiasHeads != 0 && math.IsInf(p.Bias[p.at(p.BiasHeads, head, token, k)], -1):
		return false
	}
	return true
}

func (p *Problem) at(heads, head, token, k int) int {
	if heads == 1 {
		head = 0
	}
	return (head*p.Tokens+token)*p.KVTokens + k
}

func (p *Problem) query(head, token int) []float64 {
	return p.Q[(token*p.Heads+head)*p.HeadDim:][:p.HeadDim]
}

func (p *Problem) key(head, k int) []float64 {
	return p.K[(k*p.KVHeads+head/(p.Heads/p.KVHeads))*p.HeadDim:][:p.HeadDim]
}

func (p *Problem) value(head, k int) []float64 {
	return p.V[(k*p.KVHeads+head/(p.Heads/p.KVHeads))*p.VDim:][:p.VDim]
}

// score returns the logit of a position that the row sees, and the magnitudes that it is the sum of:
// |scale|·Σ|q[i]·k[i]| + |slope·distance| + |bias|.
func (p *Problem) score(head, token, k int) (s, magnitude float64) {
	key, querySize, keySize := p.key(head, k), p.sizes().query(head, token), p.sizes().key(head, k)
	for i, q := range p.query(head, token) {
		s += q * key[i]
		magnitude += math.Abs(querySize[i] * keySize[i])
	}
	s *= p.Scale
	magnitude *= math.Abs(p.Scale)
	if p.Softcap != 0 {
		s = p.Softcap * math.Tanh(s/p.Softcap)
	}
	if len(p.AlibiSlopes) != 0 {
		falls := p.AlibiSlopes[head] * math.Abs(float64(p.Offset+int64(token)-int64(k)))
		s -= falls
		magnitude += math.Abs(falls)
	}
	if p.BiasHeads != 0 {
		bias := p.Bias[p.at(p.BiasHeads, head, token, k)]
		s += bias
		magnitude += math.Abs(bias)
	}
	return s, magnitude
}

// row is one token of one head before its values are summed: the weights [KVTokens] sum to 1, or less by a sink's share.
type row struct {
	weights   []float64
	lse       float64
	magnitude float64 // S: the largest that score returns, of the positions that can have weight
}

// noWeight is how far below the largest score exp is 0 in float32, and scoreError bounds the rounding error of a float32
// score, relative to its magnitude.
const (
	noWeight   = 88
	scoreError = 0x1p-20
)

func (p *Problem) row(head, token int) row {
	r := row{weights: make([]float64, p.KVTokens), lse: math.Inf(-1)}
	top := math.Inf(-1)
	magnitudes := make([]float64, p.KVTokens)
	sees := false
	for k := range r.weights {
		r.weights[k] = math.Inf(-1)
		if p.sees(head, token, k) {
			sees = true
			r.weights[k], magnitudes[k] = p.score(head, token, k)
			top = math.Max(top, r.weights[k])
		}
	}
	if sees && math.IsInf(top, 0) {
		r.lse = math.NaN()
		for k := range r.weights {
			r.weights[k] = math.NaN()
		}
		return r
	}
	for k, m := range magnitudes {
		if r.weights[k]+scoreError*m >= top-noWeight {
			r.magnitude = math.Max(r.magnitude, m)
		}
	}
	if len(p.Sinks) != 0 {
		top = math.Max(top, p.Sinks[head])
	}
	if math.IsInf(top, -1) {
		clear(r.weights)
		return r
	}
	sum := 0.0
	for k, s := range r.weights {
		r.weights[k] = math.Exp(s - top)
		sum += r.weights[k]
	}
	if len(p.Sinks) != 0 {
		sum += math.Exp(p.Sinks[head] - top)
	}
	for k := range r.weights {
		r.weights[k] /= sum
	}
	r.lse = top + math.Log(sum)
	return r
}

// Weights returns what one token of one head gives to each position [KVTokens], and its LSE; the weights are all 0 where it sees
// nothing, and NaN where it sees positions and has no finite score. It panics if the problem is not valid or has no such row.
func Weights(p Problem, head, token int) (weights []float64, lse float64) {
	p.must()
	r := p.row(head, token)
	return r.weights, r.lse
}

func (p Problem) must() {
	if err := p.validate(); err != nil {
		panic(err)
	}
}

// Attend computes every row of a problem. It panics if the problem is not valid.
func Attend(p Problem) Result {
	p.must()
	rows := p.Tokens * p.Heads
	res := Result{
		Tokens: p.Tokens, Heads: p.Heads, VDim: p.VDim,
		Context: make([]float64, rows*p.VDim), LSE: make([]float64, rows), Unit: make([]float64, rows),
	}
	for token := range p.Tokens {
		for head := range p.Heads {
			r, at := p.row(head, token), token*p.Heads+head
			context, largest := res.Context[at*p.VDim:][:p.VDim], 0.0
			for k, w := range r.weights {
				if !p.sees(head, token, k) {
					continue
				}
				size := p.sizes().value(head, k)
				for i, v := range p.value(head, k) {
					context[i] += w * v
					largest = math.Max(largest, math.Abs(size[i]))
				}
			}
			res.LSE[at] = r.lse
			res.Unit[at] = 0x1p-24 * (1 + r.magnitude) * largest
		}
	}
	return res
}

// Units returns the largest error of a context [Tokens, Heads, VDim] in units of its row, and the row. A row whose unit
// is 0, because it sees nothing or only zeros, has to be right: any error there, as any NaN, is +Inf.
func (r Result) Units(context []float32) (most float64, token, head int) {
	if len(context) != len(r.Context) {
		return math.Inf(1), 0, 0
	}
	for i, want := range r.Context {
		row := i / r.VDim
		e := math.Abs(float64(context[i]) - want)
		switch {
		case e == 0:
			continue
		case r.Unit[row] == 0 || e != e:
			e = math.Inf(1)
		default:
			e /= r.Unit[row]
		}
		if e > most {
			most, token, head = e, row/r.Heads, row%r.Heads
		}
	}
	return most, token, head
}
