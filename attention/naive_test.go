package attention

import (
	"math"

	"headwater.example/tensor"
)

// matrixUnit is the sum that a matrix unit adds for a tile: of the products a[i]·b[i] over even i and over odd i, each a chain of
// fused multiply-adds. Such a unit takes subnormal operands for 0, and gives 0 for a result that would be subnormal.
func matrixUnit(sum float32, a, b []float32) float32 {
	normal := func(x float32) float32 {
		if math.Abs(float64(x)) < 0x1p-126 {
			return float32(math.Copysign(0, float64(x)))
		}
		return x
	}
	var chains [2]float32
	for i := range a {
		chains[i%2] = normal(fma32(normal(a[i]), normal(b[i]), chains[i%2]))
	}
	return normal(normal(sum) + normal(chains[0]+chains[1]))
}

// inTiles is the product of a and b in tiles, with so many parts of a.
func inTiles(a, b []float32, parts int) (sum float32) {
	split := make([][]float32, parts)
	for _, x := range a {
		if math.Abs(float64(x)) < 0x1p-40 {
			x = 0
		}
		for p := range split {
			narrow, part := make([]byte, 2), make([]float32, 1)
			if err := tensor.Narrow(narrow, []float32{x}, tensor.BF16); err != nil {
				panic(err)
			}
			if err := tensor.Widen(part, narrow, tensor.BF16); err != nil {
				panic(err)
			}
			split[p] = append(split[p], part[0])
			x -= part[0]
		}
	}
	for at := 0; at < len(a); at += 32 {
		end := min(at+32, len(a))
		for p := parts - 1; p >= 0; p-- {
			sum = matrixUnit(sum, split[p][at:end], b[at:end])
		}
	}
	return sum
}

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
		row, key := q.Q[(token*q.Heads+head)*l.headDim:][:l.headDim], k[t*l.headDim:][:l.headDim]
		if l.arithmetic == Chain {
			for i := range l.headDim {
				s = fma32(row[i], key[i], s)
			}
		} else {
			s = inTiles(row, key, map[Arithmetic]int{Tiles: 3, TilesBF16: 1}[l.arithmetic])
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
			if l.arithmetic != Chain {
				var weights, values [PageLen]float32
				for t, s := range scores {
					weights[t], values[t] = exp32(float32(s-r.m)), v[(p*PageLen+t)*l.vDim+i]
				}
				r.o[i] = inTiles(weights[:], values[:], map[Arithmetic]int{Tiles: 3, TilesBF16: 1}[l.arithmetic])
				continue
			}
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
