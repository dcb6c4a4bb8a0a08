package attention

import "math"

// naiveGradients is the contract of gradients, written down chain by chain without blocks of memory, tiles, threads or
// skips, as an oracle for the bits. It takes keys and values as float32 [len][dim].
func naiveGradients(e *sample, k, v, dContext []float32, out Output) Gradients {
	l, q, o := e.kv.Layout, e.q, e.opts
	bias := func(head, token, t int) *float32 {
		if q.BiasHeads == 1 {
			head = 0
		}
		return &q.Bias[(head*q.Tokens+token)*e.kv.Len+t]
	}
	visible := func(head, token, t int) bool {
		d := q.Offset + int64(token) - int64(t)
		mh := head
		if q.MaskHeads == 1 {
			mh = 0
		}
		return (!o.Causal || d >= 0) && (o.WindowLeft < 0 || d <= o.WindowLeft) && (o.WindowRight < 0 || -d <= o.WindowRight) &&
			(q.MaskHeads == 0 || q.Mask[(mh*q.Tokens+token)*e.kv.Len+t] != 0) && (q.BiasHeads == 0 || *bias(head, token, t) != negInf)
	}
	chain := func(n int, x, y func(i int) float32) (sum float32) {
		for i := range n {
			sum = fma32(x(i), y(i), sum)
		}
		return sum
	}
	in := func(x []float32, row, dim int) func(i int) float32 {
		return func(i int) float32 { return x[row*dim+i] }
	}
	type pair struct{ p, dBias, ds float32 }
	pairs := make([]map[int]pair, q.Tokens*q.Heads) // by position, of each row
	d := make([]float32, q.Tokens*q.Heads)
	for row := range pairs {
		token, head := row/q.Heads, row%q.Heads
		pairs[row] = map[int]pair{}
		d[row] = chain(l.vDim, in(dContext, row, l.vDim), in(out.Context, row, l.vDim))
		for t := range e.kv.Len {
			if !visible(head, token, t) {
				continue
			}
			s := float32(chain(l.headDim, in(q.Q, row, l.headDim), in(k, t, l.headDim)) * o.Scale)
			slope := float32(1)
			if o.Softcap != 0 {
				th := tanh32(float32(s / o.Softcap))
				s, slope = float32(o.Softcap*th), 1-float32(th*th)
			}
			if o.AlibiSlopes != nil {
				s = fma32(-o.AlibiSlopes[q.FirstHead+head], float32(math.Abs(float64(q.Offset+int64(token)-int64(t)))), s)
			}
			if q.BiasHeads != 0 {
				s += *bias(head, token, t)
			}
			p := exp32(s - out.LSE[row])
			dP := chain(l.vDim, in(dContext, row, l.vDim), in(v, t, l.vDim))
			ds := float32(p * (dP - d[row]))
			pairs[row][t] = pair{p, ds, float32(ds * slope)}
		}
	}
	g := Gradients{
		Q: make([]float32, len(q.Q)), K: make([]float32, e.kv.Len*l.headDim), V: make([]float32, e.kv.Len*l.vDim),
		Bias: make([]float32, len(q.Bias)),
	}
	for row := range pairs {
		for c := range l.headDim {
			sum := float32(0)
			for s := 0; s*splitLen < e.kv.Len; s++ {
				split := float32(0)
				for page := s * SplitPages; page < (s+1)*SplitPages; page++ {
					acc := float32(0)
					for t := page * PageLen; t < (page+1)*PageLen; t++ {
						if x, ok := pairs[row][t]; ok {
							acc = fma32(x.ds, k[t*l.headDim+c], acc)
						}
					}
					split += acc
				}
				sum += split
			}
			g.Q[row*l.headDim+c] = float32(sum*o.Scale) + 0
		}
		for t, x := range pairs[row] {
			if q.BiasHeads == q.Heads || q.BiasHeads == 1 && row%q.Heads == 0 {
				sum := x.dBias
				if q.BiasHeads == 1 {
					sum = 0
					for h := range q.Heads {
						sum += pairs[row+h][t].dBias
					}
				}
				g.Bias[(row%q.Heads*q.Tokens+row/q.Heads)*e.kv.Len+t] = sum + 0
			}
		}
	}
	// over is a sum over the rows that see position t.
	over := func(t int, weight func(p pair) float32, x func(row int) float32) (sum float32) {
		for block := 0; block < q.Tokens; block += tokenBlock {
			acc := float32(0)
			for row := block * q.Heads; row < min(block+tokenBlock, q.Tokens)*q.Heads; row++ {
				if p, ok := pairs[row][t]; ok {
					acc = fma32(weight(p), x(row), acc)
				}
			}
			sum += acc
		}
		return sum
	}
	for t := range e.kv.Len {
		for c := range l.headDim {
			sum := over(t, func(p pair) float32 { return p.ds }, func(row int) float32 { return q.Q[row*l.headDim+c] })
			g.K[t*l.headDim+c] = float32(sum*o.Scale) + 0
		}
		for c := range l.vDim {
			g.V[t*l.vDim+c] = over(t, func(p pair) float32 { return p.p }, func(row int) float32 { return dContext[row*l.vDim+c] }) + 0
		}
	}
	if o.Sinks != nil {
		g.Sinks = make([]float32, q.Heads)
		for row := range pairs {
			h := row % q.Heads
			g.Sinks[h] = fma32(-exp32(o.Sinks[q.FirstHead+h]-out.LSE[row]), d[row], g.Sinks[h])
		}
		for h := range g.Sinks {
			g.Sinks[h] += 0
		}
	}
	return g
}
