//go:build unix

package attention

import (
	"fmt"
	"math"
	"math/rand/v2"
	"testing"
	"unsafe"

	"headwater.example/tensor"
)

// TestAdjust holds the options in assembly against those in Go, over scores of any finite bits, with all that is read and
// written between guards.
func TestAdjust(t *testing.T) {
	forms := 1 << 6
	for i := range kernels {
		k := &kernels[i]
		if k.vector == nil {
			continue
		}
		for form := range forms {
			t.Run(fmt.Sprint(k.name, form), func(t *testing.T) {
				g := &guards{t: t}
				defer g.free()
				rnd := rand.New(rand.NewPCG(uint64(form), 1))
				for range 30 {
					dt := []tensor.DType{tensor.F32, tensor.I8}[form&1]
					n := PageLen - form>>1&1*rnd.IntN(PageLen)
					l, err := NewLayout(dt, 1, 1)
					if err != nil {
						t.Fatal(err)
					}
					e := &sample{opts: DefaultOptions(1), kv: KV{Layout: l, Len: n}, q: Query{Tokens: 1, Heads: 1, Offset: int64(rnd.IntN(1 << 24))}}
					e.opts.Scale = []kind{normal, large}[rnd.IntN(2)].draw(rnd)
					if form&4 != 0 {
						e.opts.Softcap = float32(math.Exp(rnd.NormFloat64() * 4))
					}
					if form&8 != 0 {
						slopes(e)
						e.opts.AlibiSlopes[0] = float32(rnd.NormFloat64())
					}
					if form&16 != 0 {
						mask(e, 1, rnd)
						e.q.MaskFrom = rnd.IntN(2) * rnd.IntN(n)
						e.q.Mask = e.q.Mask[e.q.MaskFrom:]
						e.q.Mask = append(g.bytes(len(e.q.Mask), rnd.IntN(2) == 0)[:0], e.q.Mask...)
					}
					if form&32 != 0 {
						bias(e, 1, rnd)
						e.q.Bias = append(g.floats(n, rnd.IntN(2) == 0)[:0], e.q.Bias...)
					}
					b := &block{call: &call{kv: e.kv, q: e.q, opts: e.opts, limits: limits{kernel: k}}, visibleBits: make([]uint64, 1)}
					draw := []kind{normal, large, anything, anything, subnormal}[rnd.IntN(5)].draw
					s := g.floats(PageLen, rnd.IntN(2) == 0)
					for i := range s {
						s[i] = draw(rnd)
						b.kScale[i] = float32(math.Abs(rnd.NormFloat64()))
					}
					want := [PageLen]float32(s)
					lo, hi := rnd.IntN(n), n
					b.visibleBits[0] = span(lo, hi)
					b.scores(&want, 0, 0, lo, hi)
					var scales *float32
					if l.scaled() {
						scales = unsafe.SliceData(append(g.floats(PageLen, false)[:0], b.kScale[:]...))
					}
					b.adjust(&s[0], scales, 0, 0)
					for i, x := range s {
						if b.visibleBits[0]>>i&1 == 0 {
							x = negInf
						}
						if !sameBits(x, want[i]) && !(x != x && want[i] != want[i]) {
							t.Fatalf("position %d: %x, not %x (scale %g, cap %g)", i, x, want[i], e.opts.Scale, e.opts.Softcap)
						}
					}
				}
			})
		}
	}
}

// TestTanhInAssembly goes through scores of every exponent, beside the border where tanh changes its form, and past those
// where it is 1.
func TestTanhInAssembly(t *testing.T) {
	skipIfRaced(t)
	rnd := rand.New(rand.NewPCG(9, 9))
	for i := range kernels {
		k := &kernels[i]
		if k.vector == nil {
			continue
		}
		var s [PageLen]float32
		visible := ^uint64(0)
		check := func(from uint32, step uint32) {
			var want [PageLen]float32
			for j := range s {
				s[j] = math.Float32frombits(from + uint32(j)*step)
				if s[j] != s[j] {
					s[j] = 0
				}
				want[j] = float32(1 * tanh32(s[j]/1))
			}
			k.vector.adjust(&s[0], nil, 1, 1, nil, 0, nil, nil, &visible)
			for j, x := range s {
				if !sameBits(x, want[j]) {
					t.Fatalf("%s: tanh %g is %x, not %x", k.name, math.Float32frombits(from+uint32(j)*step), x, want[j])
				}
			}
		}
		for _, at := range []float32{tanhSmall, -tanhSmall, -expMin / 2, expMin / 2, math.MaxFloat32} {
			check(math.Float32bits(at)-PageLen/2, 1)
		}
		for e := range uint32(512) {
			for range 200 {
				check(e<<23|rnd.Uint32()>>9, rnd.Uint32N(1<<17))
			}
		}
	}
}
