//go:build unix

package attention

import (
	"context"
	"fmt"
	"math"
	"math/rand/v2"
	"testing"
)

// TestGradientRoutines holds the routines of gradients in assembly against those in Go, between guards. What is not visible
// is NaN, and some scores are above their LSE.
func TestGradientRoutines(t *testing.T) {
	skipIfRaced(t)
	for i := range kernels {
		k := &kernels[i]
		if k.vector == nil || k.vector.weigh == nil {
			continue
		}
		for j := range 300 {
			r := &routines{guards: guards{t: t}, v: k.vector, rnd: rand.New(rand.NewPCG(uint64(j), 5)), first: j%2 == 0}
			r.what = fmt.Sprintf("%s, round %d", k.name, j)
			r.rowDots(k)
			r.weigh(k)
			r.soften(k)
			r.free()
		}
	}
}

func (r *routines) compare(name string, got, want []float32) {
	r.t.Helper()
	for i := range want {
		r.same(name, i, got[i], want[i])
	}
}

func (r *routines) rowDots(k *kernel) {
	rows, n := 1+r.rnd.IntN(20), 1+r.rnd.IntN(40)
	x, y, d, want := r.drawn(rows*n, r.anyKind()), r.drawn(rows*n, normal), r.filled(rows, nan), make([]float32, rows)
	k.rowDots(d, x, y, rows, n)
	portable.rowDots(want, x, y, rows, n)
	r.compare("dots", d, want)
}

// seen draws what rows see, most often all of it.
func (r *routines) seen(rows int) []uint64 {
	visible := r.words(rows, r.first)
	for i := range visible {
		visible[i] = []uint64{^uint64(0), r.rnd.Uint64(), 0, span(0, 1+r.rnd.IntN(63))}[r.rnd.IntN(4)]
	}
	return visible
}

// hide makes what is not visible NaN.
func hide(x []float32, visible []uint64) {
	for i := range x {
		if visible[i/PageLen]>>(i%PageLen)&1 == 0 {
			x[i] = nan
		}
	}
}

func (r *routines) weigh(k *kernel) {
	rows := 1 + r.rnd.IntN(9)
	s, dS := r.drawn(rows*PageLen, r.anyKind()), r.drawn(rows*PageLen, r.anyKind())
	lse, dots, visible := r.drawn(rows, normal), r.drawn(rows, normal), r.seen(rows)
	scale := normal.draw(r.rnd)
	hide(s, visible)
	hide(dS, visible)
	none := r.rnd.IntN(2) == 0
	for i := range lse {
		if none {
			lse[i] = -1e30
			for t := range PageLen {
				if visible[i]>>t&1 != 0 {
					lse[i] = max(lse[i], float32(s[i*PageLen+t]*scale))
				}
			}
			lse[i] += 3 * r.rnd.Float32()
		}
	}
	want, wantD := append([]float32(nil), s...), append([]float32(nil), dS...)
	above := k.weigh(s, dS, scale, lse, dots, visible)
	if wantAbove := portable.weigh(want, wantD, scale, lse, dots, visible); above != wantAbove || none && above {
		r.t.Fatalf("%s: above is %v, in Go %v", r.what, above, wantAbove)
	}
	if !above { // else the exponential is of more than 0, and the weights mean nothing
		r.compare("weights", s, want)
		r.compare("slopes", dS, wantD)
	}
}

func (r *routines) soften(k *kernel) {
	rows := 1 + r.rnd.IntN(9)
	dS, raw, visible := r.drawn(rows*PageLen, r.anyKind()), r.drawn(rows*PageLen, r.anyKind()), r.seen(rows)
	for i := range dS {
		if visible[i/PageLen]>>(i%PageLen)&1 == 0 {
			dS[i], raw[i] = 0, nan
		}
	}
	scale, softcap := normal.draw(r.rnd), float32(0.1+10*r.rnd.Float64())
	want := append([]float32(nil), dS...)
	k.soften(dS, raw, scale, softcap, visible)
	portable.soften(want, raw, scale, softcap, visible)
	r.compare("softened", dS, want)
}

// TestWeightGradientIsOneChain: over tokens, by every kernel and any threads, between guards and without −0.
func TestWeightGradientIsOneChain(t *testing.T) {
	eachKernel(t, func(t *testing.T) {
		rnd := rand.New(rand.NewPCG(1, 2))
		for i, c := range []struct{ tokens, rows, columns int }{
			{1, 1, 1}, {7, 3, 5}, {64, 8, 64}, {65, 9, 130}, {300, 70, 65}, {150, 257, 3}, {9, 300, 513}, {0, 4, 4},
		} {
			g := &guards{t: t}
			d, x, y := g.floats(c.tokens*c.rows, i%2 == 0), g.floats(c.tokens*c.columns, i%2 == 1), g.floats(c.rows*c.columns, i%2 == 0)
			for _, s := range [][]float32{d, x} {
				for j := range s {
					s[j] = normal.draw(rnd)
				}
			}
			for token := range c.tokens { // tiny products, of which fma makes −0
				d[token*c.rows], x[token*c.columns] = -1e-30, 1e-30
			}
			want := make([]float32, c.rows*c.columns)
			for r := range c.rows {
				for j := range c.columns {
					s := float32(0)
					for token := range c.tokens {
						s = fma32(d[token*c.rows+r], x[token*c.columns+j], s)
					}
					want[r*c.columns+j] = s + 0
				}
			}
			for _, threads := range []int{1, 2, 5} {
				p := NewPool(threads)
				thread := acquire(t, p, Foreground)
				err := thread.weightGradient(context.Background(), 0, y, d, x, c.tokens, c.rows, c.columns)
				thread.Release()
				p.Close()
				if err != nil {
					t.Fatal(err)
				}
				for j := range y {
					if math.Float32bits(y[j]) != math.Float32bits(want[j]) {
						t.Fatalf("%+v, %d threads: y[%d] = %x, want %x", c, threads, j, y[j], want[j])
					}
				}
			}
			g.free()
		}
	})
}
