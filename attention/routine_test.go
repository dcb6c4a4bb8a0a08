//go:build unix

package attention

import (
	"bytes"
	"fmt"
	"math"
	"math/rand/v2"
	"runtime/debug"
	"testing"
	"unsafe"

	"headwater.example/tensor"
)

// otherKernels are tested as kernels are, but nothing on this machine chooses them.
var otherKernels []kernel

// TestRoutines holds each routine in assembly against a plain statement of what it does. Each input and output has the
// size that the routine may touch and not one byte more: it begins or ends where the memory does. What a routine must
// not look at is NaN, and what it must not write is looked at afterwards.
func TestRoutines(t *testing.T) {
	skipIfRaced(t)
	for _, k := range append(otherKernels, kernels...) {
		v := k.vector
		if v == nil {
			continue
		}
		for j := range 300 {
			r := &routines{guards: guards{t: t}, v: v, rnd: rand.New(rand.NewPCG(uint64(j), 3)), first: j%2 == 0}
			r.what = fmt.Sprintf("%s, round %d", k.name, j)
			for _, dt := range storages {
				r.scores(dt)
				r.accumulate(dt)
			}
			r.softmax(false)
			r.softmax(true)
			r.coefficients()
			r.merge()
			r.divide()
			r.logSums()
			r.transpose()
			r.free()
		}
	}
}

// routines is one round: what it allocates begins where the memory does if first, and else ends there.
type routines struct {
	guards
	v     *vector
	rnd   *rand.Rand
	first bool
	what  string
}

var nan = float32(math.NaN())

// drawn returns n elements of a kind between guards.
func (r *routines) drawn(n int, k kind) []float32 {
	x := r.floats(n, r.first)
	for i := range x {
		x[i] = k.draw(r.rnd)
	}
	return x
}

// filled returns n elements of one value between guards.
func (r *routines) filled(n int, value float32) []float32 {
	x := r.floats(n, r.first)
	for i := range x {
		x[i] = value
	}
	return x
}

func (r *routines) anyKind() kind {
	return []kind{normal, large, few, zeros01, subnormal, tiny}[r.rnd.IntN(6)]
}

// page returns rows of [dim] in the storage type between guards, as a page has them, and what they are in float32.
func (r *routines) page(dt tensor.DType, n, dim int) (b []byte, wide []float32) {
	x, _ := stored(r.t, r.rnd, dt, n, dim, r.anyKind())
	wide = make([]float32, n*dim)
	if err := tensor.Widen(wide, x, dt); err != nil {
		r.t.Fatal(err)
	}
	return r.copied(inPairs(dt, x, n, dim), r.first), wide
}

// inPairs returns elements [n][dim] as a page has them. The halves of pairs that are nobody's are NaN.
func inPairs(dt tensor.DType, x []byte, n, dim int) []byte {
	if dt != tensor.BF16 {
		return x
	}
	pairs := bytes.Repeat([]byte{0xff}, (n+1)/2*dim*4)
	for i := range n {
		for j := range dim {
			copy(pairs[(i/2*dim+j)*4+i%2*2:], x[(i*dim+j)*2:][:2])
		}
	}
	return pairs
}

func (r *routines) same(name string, i int, got, want float32) {
	r.t.Helper()
	if !sameBits(got, want) {
		r.t.Fatalf("%s: %s: element %d is %x, not %x", r.what, name, i, got, want)
	}
}

// sameMax is same for maxima, of which a zero may have either sign: neither exp(s − m) nor m + log(l) depends on it.
func (r *routines) sameMax(name string, i int, got, want float32) {
	r.t.Helper()
	if got != 0 || want != 0 {
		r.same(name, i, got, want)
	}
}

func (r *routines) scores(dt tensor.DType) {
	rows, n := 1+r.rnd.IntN(20), 1+r.rnd.IntN(40)
	stride := n + r.rnd.IntN(3)
	k, wide := r.page(dt, n, PageLen)
	q := r.filled((rows-1)*stride+n, nan)
	for i := range rows {
		for j := range n {
			q[i*stride+j] = normal.draw(r.rnd)
		}
	}
	s, carry := r.drawn(rows*PageLen, normal), r.rnd.IntN(2)
	want := make([]float32, len(s))
	if carry != 0 {
		copy(want, s)
	}
	for i := range want {
		for j := range n {
			want[i] = fma32(q[i/PageLen*stride+j], wide[j*PageLen+i%PageLen], want[i])
		}
	}
	r.v.scores[storageIndex(dt)](&s[0], &q[0], &k[0], 4*stride, n, rows, carry, r.ahead(dt))
	for i := range s {
		r.same(fmt.Sprintf("scores of %s, %d rows of %d", dt, rows, n), i, s[i], want[i])
	}
}

// ahead returns what to ask memory for, or nothing: to ask is no access, wherever it points.
func (r *routines) ahead(dt tensor.DType) *uintptr {
	if r.rnd.IntN(2) == 0 {
		return nil
	}
	var all asks
	for i := range all {
		all[i] = uintptr(r.rnd.Uint64())
	}
	all[r.v.streams[storageIndex(dt)]+2] &= 1
	if r.rnd.IntN(2) == 0 {
		all[1] = 0
	}
	return &all[0]
}

func (r *routines) accumulate(dt tensor.DType) {
	rows, cols, beside := 1+r.rnd.IntN(20), 1+r.rnd.IntN(9), 16*r.rnd.IntN(2)
	width := cols * vectorLen
	oStride, vStride := width+beside, width+16*r.rnd.IntN(2)
	mask := r.mask()
	if mask == 0 {
		mask = 1 << r.rnd.IntN(PageLen)
	}
	v, wide := r.page(dt, PageLen, vStride)
	w := r.drawn(rows*PageLen, normal)
	for i := range v {
		t := i / (vStride * dt.Size())
		if dt == tensor.BF16 {
			t = i/(vStride*4)*2 + i%4/2
		}
		if mask>>t&1 == 0 {
			v[i] = 0xff // NaN but for int8
		}
	}
	for i := range w {
		if mask>>(i%PageLen)&1 == 0 {
			w[i] = nan
		}
	}
	o := r.drawn((rows-1)*oStride+width, normal)
	var pa, pb *float32
	var a, b []float32
	if r.rnd.IntN(2) == 0 {
		a, b = r.drawn(rows, normal), r.drawn(rows, normal)
		pa, pb = &a[0], &b[0]
	}
	want := append([]float32(nil), o...)
	for row := range rows {
		for i := range width {
			x := float32(0)
			for t := range PageLen {
				if mask>>t&1 != 0 {
					x = fma32(w[row*PageLen+t], wide[t*vStride+i], x)
				}
			}
			if a != nil {
				x = fma32(o[row*oStride+i], a[row], float32(x*b[row]))
			}
			want[row*oStride+i] = x
		}
	}
	rowBytes := vStride * dt.Size()
	if dt == tensor.BF16 {
		rowBytes *= 2
	}
	r.v.accumulate[storageIndex(dt)](&o[0], &w[0], &v[0], 4*oStride, rowBytes, cols, rows, mask, pa, pb, r.ahead(dt))
	for i := range o {
		r.same(fmt.Sprintf("accumulate %s, %d rows, %d vectors, positions %x", dt, rows, cols, mask), i, o[i], want[i])
	}
}

// mask returns the bits of a page: all, all but one, a run, some or none.
func (r *routines) mask() uint64 {
	switch r.rnd.IntN(9) {
	case 0:
		return 0
	case 1:
		return r.rnd.Uint64()
	case 2:
		return 1 << r.rnd.IntN(PageLen)
	case 3, 4:
		lo := r.rnd.IntN(PageLen)
		return span(lo, lo+1+r.rnd.IntN(PageLen-lo))
	case 5:
		return ^(uint64(1) << r.rnd.IntN(PageLen))
	}
	return ^uint64(0)
}

func (r *routines) softmax(scaled bool) {
	rows := 1 + r.rnd.IntN(12)
	plain := r.rnd.IntN(2) == 0 // all see the whole page, most often
	s, m, l := r.filled(rows*PageLen, nan), r.filled(rows, nan), r.filled(rows, nan)
	visible, nonzero := r.words(rows, r.first), r.words(rows, r.first)
	scale := []float32{1, 0.125, 0.3, -0.7, 0x1p-100, 0}[r.rnd.IntN(6)]
	var ks, vs []float32
	var pk, pv *float32
	run := r.v.softmax
	if scaled {
		ks, vs = r.filled(PageLen, nan), r.filled(PageLen, nan)
		pk, pv, run = &ks[0], &vs[0], r.v.softmaxScaled
	}
	inf := float32(math.Inf(1))
	some := uint64(0)
	for row := range rows {
		visible[row] = r.mask()
		if plain && r.rnd.IntN(40) != 0 {
			visible[row] = ^uint64(0)
		}
		some |= visible[row]
		kind := r.anyKind()
		for t := range PageLen {
			if visible[row]>>t&1 == 0 {
				continue
			}
			s[row*PageLen+t] = kind.draw(r.rnd) * 5
			unusual := 200
			if plain {
				unusual = 20 * PageLen
			}
			switch r.rnd.IntN(unusual) {
			case 0:
				s[row*PageLen+t] = -inf
			case 1:
				s[row*PageLen+t] = -200
			case 2:
				if row == 2 {
					s[row*PageLen+t] = []float32{nan, inf}[r.rnd.IntN(2)]
				}
			}
		}
		if r.rnd.IntN(20) == 0 {
			for t := range PageLen {
				s[row*PageLen+t] = -inf
			}
		}
	}
	for t := range ks {
		if some>>t&1 != 0 {
			ks[t], vs[t] = float32(math.Abs(float64(normal.draw(r.rnd)))), float32(math.Abs(float64(few.draw(r.rnd))))
		}
	}
	type result struct {
		m, l    float32
		nonzero uint64
		w       [PageLen]float32
	}
	want := make([]result, rows)
	for row := range want {
		var w [PageLen]float32
		for t := range w {
			w[t] = negInf
			if visible[row]>>t&1 != 0 {
				w[t] = s[row*PageLen+t]
				if scaled {
					w[t] = float32(w[t] * ks[t])
				}
				w[t] = float32(w[t] * scale)
			}
		}
		x := &want[row]
		x.m, x.l = portableSoftmax(&w)
		if !(x.m > negInf) {
			continue
		}
		for t := range w {
			if scaled && w[t] != 0 {
				w[t] = float32(w[t] * vs[t])
			}
			if w[t] != 0 {
				x.nonzero |= 1 << t
			}
		}
		x.w = w
	}
	run(&s[0], pk, pv, scale, rows, &visible[0], &m[0], &l[0], &nonzero[0])
	for row, x := range want {
		name := fmt.Sprintf("softmax, scaled %t, row %d of visible %x", scaled, row, visible[row])
		r.sameMax(name+": m", row, m[row], x.m)
		if x.m == inf || x.m != x.m {
			continue // an error, whatever the weights are
		}
		r.same(name+": l", row, l[row], x.l)
		if x.nonzero&^nonzero[row] != 0 || nonzero[row]&^visible[row] != 0 {
			r.t.Fatalf("%s: %s: nonzero is %x, of %x", r.what, name, nonzero[row], x.nonzero)
		}
		for t := range PageLen {
			if x.m != negInf {
				r.same(name, t, s[row*PageLen+t], x.w[t])
			}
		}
	}
}

func (r *routines) logSums() {
	if r.v.logSums == nil {
		return
	}
	rows := 1 + r.rnd.IntN(40)
	n := padded(rows)
	lse, m, l := r.filled(n, nan), r.drawn(n, large), r.filled(n, nan)
	for i := range n {
		l[i] = float32(math.Exp(120 * (r.rnd.Float64()*1.4 - 0.7)))
	}
	r.v.logSums(&lse[0], &m[0], &l[0], rows)
	for i := range rows {
		r.same(fmt.Sprintf("log of %x", l[i]), i, lse[i], m[i]+log32(l[i]))
	}
}

func (r *routines) coefficients() {
	rows := 1 + r.rnd.IntN(40)
	n := padded(rows)
	m, l, pm, pl := r.drawn(n, large), r.drawn(n, large), r.drawn(n, large), r.drawn(n, large)
	a, b := r.filled(n, nan), r.filled(n, nan)
	for i := range n {
		switch r.rnd.IntN(12) {
		case 0:
			m[i] = negInf
		case 1, 2:
			pm[i] = negInf
		case 3:
			m[i], pm[i] = negInf, negInf
		case 4:
			pm[i] = m[i]
		case 5:
			m[i] = 90 * normal.draw(r.rnd)
		case 6:
			m[i] = nan
		case 7:
			pm[i] = nan
		}
		if i >= rows {
			pm[i] = negInf
		}
	}
	wantM, wantL := append([]float32(nil), m...), append([]float32(nil), l...)
	wantA, wantB := make([]float32, n), make([]float32, n)
	for i := range n {
		switch {
		case pm[i] == negInf:
		case m[i] == negInf:
			wantM[i], wantL[i] = pm[i], pl[i]
		default:
			top := max(m[i], pm[i])
			wantA[i], wantB[i] = exp32(m[i]-top), exp32(pm[i]-top)
			wantM[i], wantL[i] = top, fma32(l[i], wantA[i], float32(pl[i]*wantB[i]))
		}
	}
	both := make([]bool, n)
	for i := range both {
		both[i] = i < rows && m[i] != negInf && pm[i] != negInf && wantM[i] == wantM[i]
	}
	r.v.coefficients(&m[0], &l[0], &pm[0], &pl[0], &a[0], &b[0], rows)
	for i := range n {
		r.sameMax("coefficients: m", i, m[i], wantM[i])
		if m[i] == m[i] {
			r.same("coefficients: l", i, l[i], wantL[i])
		}
		if both[i] {
			r.same("coefficients: a", i, a[i], wantA[i])
			r.same("coefficients: b", i, b[i], wantB[i])
		}
	}
}

func (r *routines) merge() {
	n := vectorLen * (1 + r.rnd.IntN(33))
	o, x, a, b := r.drawn(n, r.anyKind()), r.drawn(n, r.anyKind()), r.rnd.Float32(), r.rnd.Float32()
	want := make([]float32, n)
	for i := range want {
		want[i] = fma32(o[i], a, float32(x[i]*b))
	}
	r.v.merge(&o[0], &x[0], a, b, n)
	for i := range o {
		r.same("merge", i, o[i], want[i])
	}
}

func (r *routines) divide() {
	n := 8 * (1 + r.rnd.IntN(65))
	o, dst, l := r.drawn(n, r.anyKind()), r.filled(n, nan), 1+63*r.rnd.Float32()
	want, finiteOnes := make([]float32, n), true
	switch r.rnd.IntN(4) {
	case 0:
		o[r.rnd.IntN(n)] = []float32{nan, float32(math.Inf(1)), negInf}[r.rnd.IntN(3)]
	case 1:
		o[r.rnd.IntN(n)] = float32(math.Copysign(0, -1))
	case 2:
		// A quotient that overflows.
		o[r.rnd.IntN(n)], l = math.MaxFloat32, 0.5
	}
	for i := range want {
		want[i] = o[i]/l + 0
		finiteOnes = finiteOnes && !math.IsNaN(float64(want[i])) && !math.IsInf(float64(want[i]), 0)
	}
	if got := r.v.divide(&dst[0], &o[0], l, n); got != finiteOnes {
		r.t.Fatalf("%s: divide says %t of whether all are finite", r.what, got)
	}
	for i := range dst {
		r.same("divide", i, dst[i], want[i])
	}
}

func (r *routines) transpose() {
	n := 8 * (1 + r.rnd.IntN(17))
	stride := n + r.rnd.IntN(3)
	src, dst := r.drawn(7*stride+n, normal), r.drawn((n-1)*PageLen+8, normal)
	want := append([]float32(nil), dst...)
	for i := range n {
		for j := range 8 {
			want[i*PageLen+j] = src[j*stride+i]
		}
	}
	r.v.transpose(&dst[0], &src[0], 4*stride, n)
	for i := range dst {
		r.same("transpose", i, dst[i], want[i])
	}
}

// TestGuards makes sure that a byte too far would have been noticed.
func TestGuards(t *testing.T) {
	g := &guards{t: t}
	defer g.free()
	for _, first := range []bool{true, false} {
		b := g.bytes(100, first)
		beyond := unsafe.Add(unsafe.Pointer(&b[0]), len(b))
		if first {
			beyond = unsafe.Add(unsafe.Pointer(&b[0]), -1)
		}
		if !faults(beyond) {
			t.Errorf("first %t: the byte beside can be read", first)
		}
		if faults(unsafe.Pointer(&b[0])) || faults(unsafe.Pointer(&b[99])) {
			t.Errorf("first %t: the bytes themselves can not be read", first)
		}
	}
}

var sink byte

func faults(p unsafe.Pointer) (did bool) {
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer func() { did = recover() != nil }()
	sink = *(*byte)(p)
	return false
}
