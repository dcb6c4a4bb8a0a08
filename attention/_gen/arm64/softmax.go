package main

import "math"

const negInf = 0xff800000

// f32 returns the bits of x.
func f32(x float32) uint32 { return math.Float32bits(x) }

// The constants of exp, as elementary.go has them, in three registers of four: those that multiply, and those that are added.
var expConstants = []uint32{
	f32(0x1.715476p+0), f32(-0x1.62e4p-1), f32(-0x1.7f7d1cp-20), f32(0x1.6ac752p-10),
	f32(0x1.123de0p-7), f32(0x1.555858p-5), f32(0x1.55548cp-3), f32(0x1.fffffcp-2),
	f32(0x1.8p+23), 127, f32(-0x1.5d589ep+6), negInf,
}

var expAddress string

func elementary() { expAddress = data("exp", expConstants) }

// exp holds the constants in registers: factors and terms in four lanes each, and the others in all lanes.
type exp struct{ factors, terms, magic, bias, least, negInf v }

// constants loads them into six registers from first on; x is free.
func constants(first v, x r) exp {
	e := exp{first, first + 1, first + 2, first + 3, first + 4, first + 5}
	op("MOVD %s, %v", expAddress, x)
	loadPair(x, 0, e.factors, e.terms)
	op("FMOVQ 32(%v), %s", x, e.negInf.f())
	spread(e.magic, e.negInf, 0)
	spread(e.bias, e.negInf, 1)
	spread(e.least, e.negInf, 2)
	spread(e.negInf, e.negInf, 3)
	return e
}

// write writes exp over x[i] ≤ 0, each with room t[i], p[i] and q[i], into p[i], but +0 where x[i] is less than what it can do;
// there it sets under[i] to ones. The instructions of the vectors are interleaved.
func (e exp) write(x, t, p, q, under []v) {
	each := func(f func(i int)) {
		for i := range x {
			f(i)
		}
	}
	each(func(i int) { words(fcmgt(under[i], e.least, x[i])) }) // not of NaN
	each(func(i int) { move(t[i], e.magic) })
	each(func(i int) { words(fmlaLane(t[i], x[i], e.factors, 0)) })
	each(func(i int) { words(fsub(p[i], t[i], e.magic)) })
	each(func(i int) { words(fmlaLane(x[i], p[i], e.factors, 1)) })
	each(func(i int) { words(fmlaLane(x[i], p[i], e.factors, 2)) })
	each(func(i int) { op("VADD %s, %s, %s", e.bias.s4(), t[i].s4(), t[i].s4()) })
	each(func(i int) { op("VSHL $23, %s, %s", t[i].s4(), t[i].s4()) })
	each(func(i int) { spread(q[i], e.terms, 0) })
	each(func(i int) { words(fmlaLane(q[i], x[i], e.factors, 3)) })
	from, to := q, p
	for k := 1; k < 6; k++ {
		if k < lanes {
			each(func(i int) { spread(to[i], e.terms, k) })
		} else {
			each(func(i int) { words(one(to[i])) })
		}
		each(func(i int) { multiplyAdd(to[i], from[i], x[i]) })
		from, to = to, from
	}
	each(func(i int) { words(fmul(p[i], from[i], t[i])) })
	each(func(i int) { words(bic(p[i], p[i], under[i])) })
}

// multiplyAdd adds a·b to dst, rounded once.
func multiplyAdd(dst, a, b v) { op("VFMLA %s, %s, %s", b.s4(), a.s4(), dst.s4()) }

// nonzeros sets dst to 64 bits, 0 for each of 64 numbers at src that is. V0 to V8 are lost.
func nonzeros(dst, src r) {
	const powers v = 8
	op("MOVD $0x8040201008040201, %v", dst)
	op("VDUP %v, %s", dst, powers.d2())
	for g := range v(4) {
		for j := range v(4) {
			op("FMOVQ %d(%v), %s", 4*lanes*int(4*g+j), src, (4 + j).f())
			words(fcmeq0(4+j, 4+j))
		}
		op("VUZP1 %s, %s, %s", v(5).h8(), v(4).h8(), v(4).h8())
		op("VUZP1 %s, %s, %s", v(7).h8(), v(6).h8(), v(6).h8())
		op("VUZP1 %s, %s, %s", v(6).b16(), v(4).b16(), v(4).b16())
		words(bic(g, powers, 4))
	}
	fold(vs(0, 4), dst)
}

// fold sets dst to 64 bits, of which each byte of m has one, or 0: that of its number within 8.
func fold(m []v, dst r) {
	for _, p := range [][3]v{{m[0], m[0], m[1]}, {m[2], m[2], m[3]}, {m[0], m[0], m[2]}, {m[0], m[0], m[0]}} {
		op("VADDP %s, %s, %s", p[2].b16(), p[1].b16(), p[0].b16())
	}
	op("VMOV V%d.D[0], %v", int(m[0]), dst)
}

// softmax passes over the rows twice, first for the maxima and then for the weights: each alone has few enough instructions a
// row for the processor to work on several rows at a time.
func softmax(scaled bool) {
	name, doc := "softmax", "is kernel.softmax without scales of keys and values."
	if scaled {
		name, doc = "softmaxScaled", "is kernel.softmax with scales of keys and values."
	}
	function(name, "s, kScale, vScale *float32, scale float32, rows int, visible *uint64, m, l *float32, nonzero *uint64", "", doc)
	const S, ks, vScale, rows, vis, M, L, nz, bits, x r = 0, 1, 2, 3, 4, 5, 6, 7, 8, 9
	load("s", S)
	if scaled {
		load("kScale", ks)
		load("vScale", vScale)
	}
	load("rows", rows)
	load("visible", vis)
	load("m", M)
	done := label("done")
	op("CBZ %v, %s", rows, done)

	e := constants(26, x)
	const scale, positions, seen, lane, hidden v = 16, 17, 18, 19, 20
	op("FMOVS %s, %s", param("scale"), scale.f())
	lanePositions(positions, x)
	loop, all := label("maximum"), label("all")
	at(loop)
	op("MOVD.P 8(%v), %v", vis, bits)
	s := vs(0, pageLen/lanes)
	for i := 0; i < len(s); i += 2 {
		loadPair(S, 4*lanes*i, s[i], s[i+1])
		if scaled {
			loadPair(ks, 4*lanes*i, seen, lane)
			words(fmul(s[i], s[i], seen), fmul(s[i+1], s[i+1], lane))
		}
		words(fmulLane(s[i], s[i], scale, 0), fmulLane(s[i+1], s[i+1], scale, 0))
	}
	op("CMN $1, %v", bits)
	op("BEQ %s", all)
	for i := range s {
		if i%8 == 0 { // the bits of eight vectors
			op("VDUP %v, %s", bits, seen.s4())
			op("LSR $32, %v, %v", bits, bits)
			move(lane, positions)
		} else {
			op("VSHL $4, %s, %s", lane.s4(), lane.s4())
		}
		op("VCMTST %s, %s, %s", lane.s4(), seen.s4(), hidden.s4())
		insertElse(s[i], e.negInf, hidden)
	}
	at(all)
	for i := 0; i < len(s); i += 2 {
		storePair(s[i], s[i+1], S, 4*lanes*i)
	}
	for n := len(s) / 2; n > 0; n /= 2 {
		for i := range n {
			words(fmax(s[i], s[i], s[i+n]))
		}
	}
	words(fmaxv(s[0], s[0]))
	op("FMOVS.P %s, 4(%v)", s[0].f(), M)
	op("ADD $%d, %v, %v", 4*pageLen, S, S)
	op("SUBS $1, %v, %v", rows, rows)
	op("BNE %s", loop)

	load("s", S)
	load("rows", rows)
	load("m", M)
	load("l", L)
	load("nonzero", nz)
	const m, under v = 25, 24
	sums := vs(20, 4)
	loop, next, empty, zeros, store := label("weights"), label("next"), label("empty"), label("zeros"), label("store")
	at(loop)
	op("MOVWU.P 4(%v), %v", M, x)
	op("MOVD $0x%x, %v", negInf, bits)
	op("CMP %v, %v", bits, x)
	op("BEQ %s", empty)
	op("VDUP %v, %s", x, m.s4())
	for g := range 4 {
		w, t, p, q, z := vs(0, 4), vs(4, 4), vs(8, 4), vs(12, 4), vs(16, 4)
		for j := 0; j < 4; j += 2 {
			loadPair(S, 4*lanes*(4*g+j), w[j], w[j+1])
		}
		for _, w := range w {
			words(fsub(w, w, m))
		}
		e.write(w, t, p, q, z)
		for j := range z {
			if g == 0 && j == 0 {
				move(under, z[j])
			} else {
				either(under, under, z[j])
			}
			if g == 0 {
				// A weight is no −0, so that +0 and it are itself.
				move(sums[j], p[j])
			} else {
				words(fadd(sums[j], sums[j], p[j]))
			}
		}
		for j := 0; j < 4; j += 2 {
			if scaled {
				loadPair(vScale, 4*lanes*(4*g+j), t[j], t[j+1])
				for i := j; i < j+2; i++ {
					// A scale of a position that no row sees may be anything.
					words(fmul(p[i], p[i], t[i]), bic(p[i], p[i], z[i]))
				}
			}
			storePair(p[j], p[j+1], S, 4*lanes*(4*g+j))
		}
	}
	op("VMOV V%d.D[0], %v", int(under), x)
	op("VMOV V%d.D[1], %v", int(under), bits)
	op("ORR %v, %v, %v", bits, x, x)
	op("CBNZ %v, %s", x, zeros)
	op("MOVD $-1, %v", bits)
	at(store)
	op("MOVD.P %v, 8(%v)", bits, nz)
	// Lanes j+8 onto j, j+4, j+2, j+1.
	words(fadd(sums[0], sums[0], sums[2]), fadd(sums[1], sums[1], sums[3]), fadd(sums[0], sums[0], sums[1]))
	op("VEXT $8, %s, %s, %s", sums[0].b16(), sums[0].b16(), sums[1].b16())
	words(fadd(sums[0], sums[0], sums[1]), faddp(sums[0], sums[0]))
	op("FMOVS.P %s, 4(%v)", sums[0].f(), L)
	at(next)
	op("ADD $%d, %v, %v", 4*pageLen, S, S)
	op("SUBS $1, %v, %v", rows, rows)
	op("BNE %s", loop)
	at(done)
	op("RET")
	at(zeros)
	nonzeros(bits, S)
	op("B %s", store)
	at(empty)
	op("MOVD.P ZR, 8(%v)", nz)
	op("MOVW.P ZR, 4(%v)", L)
	op("B %s", next)
}

// coefficients: how the parts (m, l) take in those that follow, (pm, pl).
func coefficients() {
	function("coefficients", "m, l, pm, pl, a, b *float32, rows int", "", "is kernel.coefficients.")
	const M, L, PM, PL, A, B, rows, x r = 0, 1, 2, 3, 4, 5, 6, 7
	load("m", M)
	load("l", L)
	load("pm", PM)
	load("pl", PL)
	load("a", A)
	load("b", B)
	load("rows", rows)
	e := constants(26, x)
	const ma, mb, top, la, lb, sum, is v = 0, 1, 2, 3, 4, 5, 6
	w, t, p, q, z := vs(8, 2), vs(10, 2), vs(12, 2), vs(14, 2), vs(16, 2)
	loop, done := label("rows"), label("done")
	at(loop)
	op("CMP $0, %v", rows)
	op("BLE %s", done)
	op("FMOVQ (%v), %s", M, ma.f())
	op("FMOVQ.P 16(%v), %s", PM, mb.f())
	words(fmax(top, ma, mb), fsub(w[0], ma, top), fsub(w[1], mb, top))
	e.write(w, t, p, q, z)
	op("FMOVQ.P %s, 16(%v)", p[0].f(), A)
	op("FMOVQ.P %s, 16(%v)", p[1].f(), B)
	op("FMOVQ (%v), %s", L, la.f())
	op("FMOVQ.P 16(%v), %s", PL, lb.f())
	words(fmul(sum, lb, p[1]))
	multiplyAdd(sum, la, p[0])
	// The first part is copied, an empty one passed over.
	words(fcmeq(is, ma, e.negInf))
	insert(sum, lb, is)
	insert(top, mb, is)
	words(fcmeq(is, mb, e.negInf))
	insert(sum, la, is)
	insert(top, ma, is)
	op("FMOVQ.P %s, 16(%v)", top.f(), M)
	op("FMOVQ.P %s, 16(%v)", sum.f(), L)
	op("SUB $%d, %v, %v", lanes, rows, rows)
	op("B %s", loop)
	at(done)
	op("RET")
}

// mergeRows: o[i] = fma(o[i], a, x[i]·b) over a row.
func mergeRows() {
	function("merge", "o, x *float32, a, b float32, n int", "", "is kernel.merge over n elements, a multiple of 16.")
	const O, X, n r = 0, 1, 2
	load("o", O)
	load("x", X)
	load("n", n)
	const a, b v = 16, 17
	op("FMOVS %s, %s", param("a"), a.f())
	op("FMOVS %s, %s", param("b"), b.f())
	o, x := vs(0, 4), vs(4, 4)
	loop, done := label("loop"), label("done")
	at(loop)
	op("SUBS $16, %v, %v", n, n)
	op("BLT %s", done)
	for i := 0; i < 4; i += 2 {
		op("FLDPQ.P 32(%v), (%s, %s)", X, x[i].f(), x[i+1].f())
		loadPair(O, 4*lanes*i, o[i], o[i+1])
	}
	for i := range x {
		words(fmulLane(x[i], x[i], b, 0), fmlaLane(x[i], o[i], a, 0))
	}
	for i := 0; i < 4; i += 2 {
		op("FSTPQ.P (%s, %s), 32(%v)", x[i].f(), x[i+1].f(), O)
	}
	op("B %s", loop)
	at(done)
	op("RET")
}

// divide: dst[i] = o[i]/l + 0.
func divide() {
	function("divide", "dst, o *float32, l float32, n int", "bool",
		"is kernel.divide over n elements, a multiple of 8, and says whether all of dst are finite.")
	const dst, O, n, x, y r = 0, 1, 2, 3, 4
	load("dst", dst)
	load("o", O)
	load("n", n)
	const l, nothing, odd v = 4, 5, 6
	op("FMOVS %s, %s", param("l"), l.f())
	spread(l, l, 0)
	zero(nothing)
	// What is not finite leaves more than 0 of its difference with itself.
	zero(odd)
	loop, done := label("loop"), label("done")
	at(loop)
	op("SUBS $8, %v, %v", n, n)
	op("BLT %s", done)
	op("FLDPQ.P 32(%v), (F0, F1)", O)
	for i := range v(2) {
		words(fdiv(i, i, l), fadd(i, i, nothing), fsub(2+i, i, i))
		either(odd, odd, 2+i)
	}
	op("FSTPQ.P (F0, F1), 32(%v)", dst)
	op("B %s", loop)
	at(done)
	op("VMOV V%d.D[0], %v", int(odd), x)
	op("VMOV V%d.D[1], %v", int(odd), y)
	op("ORR %v, %v, %v", x, y, x)
	op("CMP $0, %v", x)
	op("CSET EQ, %v", x)
	op("MOVB %v, %s", x, param("ret"))
	op("RET")
}
