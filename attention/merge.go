package attention

import "math"

var negInf = float32(math.Inf(-1))

// parts are what some rows have of their contexts so far, each over the positions that it covers: the largest score m,
// the sum l of exp(s − m), and o, the sum of the values so weighted. m is −Inf where nothing was visible.
//
// Assembly reads and writes m and l in whole vectors, so there is memory for them, and o with its padding.
type parts struct {
	m, l   []float32 // [rows]
	o      []float32 // [rows][stride]
	stride int       // vDim, padded
}

// grow makes room for that many rows, of which the parts mean nothing.
func (p *parts) grow(rows, vDim int) {
	p.stride = padded(vDim)
	p.m, p.l = growAligned(p.m, padded(rows)), growAligned(p.l, padded(rows))
	p.o = growAligned(p.o, rows*p.stride)
}

// of returns the parts of n rows from row r, which is a multiple of vectorLen.
func (p parts) of(r, n int) parts {
	return parts{m: p.m[r:][:n], l: p.l[r:][:n], o: p.o[r*p.stride:][:n*p.stride], stride: p.stride}
}

// row returns o of row r with its padding.
func (p parts) row(r int) []float32 { return p.o[r*p.stride:][:p.stride] }

// clear makes every part one that has seen nothing.
func (p parts) clear() {
	for r := range p.m {
		p.m[r] = negInf
	}
}

// merge brings a part of the positions that follow into row r. A part with nothing visible is passed over, and the
// first that has something is copied.
func (p parts) merge(k *kernel, r int, m, l float32, o []float32) {
	if m == negInf {
		return
	}
	own := p.row(r)[:len(o)]
	if p.m[r] == negInf {
		p.m[r], p.l[r] = m, l
		copy(own, o)
		return
	}
	top := max(p.m[r], m)
	a, b := exp32(p.m[r]-top), exp32(m-top)
	p.m[r], p.l[r] = top, fma32(p.l[r], a, float32(l*b))
	k.merge(own, o, a, b)
}

// mergeAll brings the parts of the positions that follow into all rows.
func (p parts) mergeAll(k *kernel, next parts) {
	for r := range p.m {
		p.merge(k, r, next.m[r], next.l[r], next.row(r))
	}
}

// overflows is the rule that a row breaks which sees positions and has no score.
const overflows = "all scores overflow to -Inf"

// end brings the head's sink into row r, if there are sinks, and writes the row's context, or says what is not finite in it. Zero is room
// for v_dim elements.
func (p parts) end(k *kernel, r, head int, sinks, zero, context []float32) (rule string) {
	if len(sinks) != 0 {
		clear(zero)
		p.merge(k, r, sinks[head], 1, zero)
	}
	return p.finish(k, r, context)
}

// finish writes the context [vDim] of row r, or says what is not finite in it.
func (p parts) finish(k *kernel, r int, context []float32) (rule string) {
	m, l := p.m[r], p.l[r]
	if m == negInf {
		clear(context)
		return ""
	}
	switch {
	case m != m:
		return "a score is not a number"
	case !finite(m):
		return "a score overflows to +Inf"
	case !finite(l):
		return "the sum of the weights is not finite"
	}
	if !k.divide(context, p.row(r), l) {
		return "the context is not finite"
	}
	return ""
}

// logSums sets lse to the LSE of each row.
func (p parts) logSums(k *kernel, lse []float32) {
	if v := k.vector; v != nil && v.logSums != nil {
		v.logSums(&lse[0], &p.m[0], &p.l[0], len(p.m))
	} else {
		for r, m := range p.m {
			lse[r] = m + log32(p.l[r])
		}
	}
	for r, m := range p.m {
		if m == negInf {
			lse[r] = negInf
		}
	}
}
