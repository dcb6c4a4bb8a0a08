//go:build unix

package attention

import (
	"fmt"
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
