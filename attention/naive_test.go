package attention

import "math"

// naive is the contract, written down row by row without blocks, tiles, threads or skips, as an oracle for the bits. It
// takes keys and values as float32 [len][dim] (integers for int8, with scales).
func naive(e *sample, k, v, kScale, vScale []float32, token, head int) (context []float32, lse float32) {
	l, q, o := e.kv.Layout, e.q, e.opts
	at := q.Offset + int64(token)
	visible := func(t int) bool {
		d := at - int64(t)
		mh, bh := head, head
		if q.MaskHeads == 1 {
			mh = 0
		}
		if q.BiasHeads == 1 {
			bh = 0
		}
		return t < e.kv.Len && (!o.Causal || d >= 0) && (o.WindowLeft < 0 || d <= o.WindowLeft) && (o.WindowRight < 0 || -d <= o.WindowRight) &&
			(q.MaskHeads == 0 || q.Mask[(mh*q.Tokens+token)*e.kv.Len+t] != 0) &&
			(q.BiasHeads == 0 || q.Bias[(bh*q.Tokens+token)*e.kv.Len+t] != negInf)
	}
	score := func(t int) float32 {
		s := float32(0)
		for i := range l.headDim {
			s = fma32(q.Q[(token*q.Heads+head)*l.headDim+i], k[t*l.headDim+i], s)
		}
		if kScale != nil {
			s = float32(s * kScale[t])
		}
		s = float32(s * o.Scale)
		if o.Softcap != 0 {
			s = float32(o.Softcap * tanh32(float32(s/o.Softcap)))
		}
		if o.AlibiSlopes != nil {
			s = fma32(-o.AlibiSlopes[q.FirstHead+head], float32(math.Abs(float64(at-int64(t)))), s)
		}
		if q.BiasHeads == 1 {
			s = float32(s + q.Bias[token*e.kv.Len+t])
		} else if q.BiasHeads != 0 {
			s = float32(s + q.Bias[(head*q.Tokens+token)*e.kv.Len+t])
		}
		return s
	}
	type part struct {
		some bool
		m, l float32
		o    []float32
	}
	page := func(p int) part {
		r := part{m: negInf, o: make([]float32, l.vDim)}
		scores := map[int]float32{}
		for t := p * PageLen; t < (p+1)*PageLen; t++ {
			if visible(t) {
				scores[t-p*PageLen] = score(t)
				r.some, r.m = true, max(r.m, scores[t-p*PageLen])
			}
		}
		if !r.some {
			return r
		}
		var lane [16]float32
		for j := range 16 {
			for _, t := range []int{j, j + 16, j + 32, j + 48} {
				if s, ok := scores[t]; ok {
					lane[j] = float32(lane[j] + exp32(float32(s-r.m)))
				}
			}
		}
		for _, n := range []int{8, 4, 2, 1} {
			for j := range n {
				lane[j] = float32(lane[j] + lane[j+n])
			}
		}
		r.l = lane[0]
		for i := range r.o {
			for t := range PageLen {
				s, ok := scores[t]
				if !ok {
					continue
				}
				w := exp32(float32(s - r.m))
				if vScale != nil {
					w = float32(w * vScale[p*PageLen+t])
				}
				r.o[i] = fma32(w, v[(p*PageLen+t)*l.vDim+i], r.o[i])
			}
		}
		return r
	}
	merge := func(a, b part) part {
		if !b.some {
			return a
		}
		if !a.some {
			return b
		}
		r := part{some: true, m: max(a.m, b.m), o: make([]float32, l.vDim)}
		x, y := exp32(float32(a.m-r.m)), exp32(float32(b.m-r.m))
		r.l = fma32(a.l, x, float32(b.l*y))
		for i := range r.o {
			r.o[i] = fma32(a.o[i], x, float32(b.o[i]*y))
		}
		return r
	}
	var row part
	for s := 0; s*SplitPages*PageLen < e.kv.Len; s++ {
		var split part
		for p := s * SplitPages; p < (s+1)*SplitPages && p*PageLen < e.kv.Len; p++ {
			split = merge(split, page(p))
		}
		row = merge(row, split)
	}
	if o.Sinks != nil {
		row = merge(row, part{some: true, m: o.Sinks[q.FirstHead+head], l: 1, o: make([]float32, l.vDim)})
	}
	context = make([]float32, l.vDim)
	if !row.some {
		return context, negInf
	}
	for i := range context {
		context[i] = float32(row.o[i]/row.l) + 0
	}
	return context, float32(row.m + log32(row.l))
}
