package main

import (
	. "github.com/mmcloughlin/avo/build"
	. "github.com/mmcloughlin/avo/operand"
	"github.com/mmcloughlin/avo/reg"
)

// visibleLanes sets the masks of vectors first and first+1 of a row from its visible bits in v: with AVX-512 K3 and K4, else
// all ones in the lanes of mask. It uses u.
func visibleLanes(v, u reg.GPPhysical, first int, mask []reg.Register) {
	for j := range 2 {
		MOVQ(v, u)
		if first+j > 0 {
			SHRQ(U8(isa.w*(first+j)), u)
		}
		if wide() {
			KMOVW(u.As32(), seenMask[j])
			continue
		}
		x := mask[j].(reg.VecPhysical)
		VMOVD(u.As32(), x.AsX())
		VPBROADCASTD(x.AsX(), x)
		VPAND(lanes, x, x)
		VPCMPEQD(lanes, x, x)
	}
}

// seenMask are mask registers for what is visible of two vectors; kmask are others.
var seenMask = []reg.Register{reg.K3, reg.K4}

// keepSeen makes what is not visible +0.
func keepSeen(x, mask []reg.Register) {
	for j := range x {
		if wide() {
			VMOVAPS_Z(x[j], seenMask[j], x[j])
		} else {
			VANDPS(mask[j], x[j], x[j])
		}
	}
}

// weigh: s = exp(s·scale − lse), dS = s·(dS − dots), two vectors at a time.
func weigh() {
	function("weigh", "func(s, dS *float32, scale float32, rows int, lse, dots *float32, visible *uint64) bool",
		"is kernel.weigh.")
	S, D, rows, lse, dots, vis := reg.RDI, reg.RSI, reg.RCX, reg.R8, reg.R9, reg.R10
	v, u := reg.RAX, reg.RBX
	Load(Param("s"), S)
	Load(Param("dS"), D)
	Load(Param("rows"), rows)
	Load(Param("lse"), lse)
	Load(Param("dots"), dots)
	Load(Param("visible"), vis)
	r := isa.reg
	c := memConsts()
	for i, k := range []string{"magic", "log2e", "exp6", "ln2Hi"} {
		VMOVUPS(data[k], r[8+i])
		c[k] = r[8+i]
	}
	rowLSE, rowDot, above, scale := r[12], r[13], r[14], r[15]
	p, _ := Param("scale").Resolve()
	VBROADCASTSS(p.Addr, scale)
	if wide() {
		KXORW(reg.K6, reg.K6, reg.K6)
	} else {
		zero(above)
	}
	x, t, e, keep := r[0:2], r[2:4], r[4:6], r[6:8]
	at := func(base reg.Register, i int) Mem { return Mem{Base: base, Disp: 4 * isa.w * i} }
	row := func(masked bool) {
		for first := 0; first < pageLen/isa.w; first += 2 {
			each := func(f func(i int)) { f(0); f(1) }
			if masked {
				visibleLanes(v, u, first, t)
			}
			each(func(i int) { VMULPS(at(S, first+i), scale, x[i]) })
			each(func(i int) {
				switch {
				case wide() && masked:
					VCMPPS(U8(14), rowLSE, x[i], seenMask[i], reg.K5) // above
					KORW(reg.K5, reg.K6, reg.K6)
				case wide():
					VCMPPS(U8(14), rowLSE, x[i], reg.K5)
					KORW(reg.K5, reg.K6, reg.K6)
				default:
					VCMPPS(U8(14), rowLSE, x[i], keep[i])
					if masked {
						VANDPS(t[i], keep[i], keep[i])
					}
					VORPS(keep[i], above, above)
				}
			})
			each(func(i int) { VSUBPS(rowLSE, x[i], x[i]) })
			each(func(i int) {
				if wide() {
					VCMPPS(U8(5), c["expMin"], x[i], kmask[i]) // not less: NaN stays
				} else {
					VCMPPS(U8(5), c["expMin"], x[i], keep[i])
				}
			})
			exponentials(c, x, t, e)
			each(func(i int) {
				if wide() {
					VMOVAPS_Z(e[i], kmask[i], e[i])
				} else {
					VANDPS(keep[i], e[i], e[i])
				}
			})
			each(func(i int) {
				VMOVUPS(at(D, first+i), x[i])
				VSUBPS(rowDot, x[i], x[i])
				VMULPS(e[i], x[i], x[i])
			})
			if masked {
				if !wide() {
					visibleLanes(v, u, first, t)
				}
				keepSeen(e, t)
				keepSeen(x, t)
			}
			each(func(i int) {
				VMOVUPS(e[i], at(S, first+i))
				VMOVUPS(x[i], at(D, first+i))
			})
		}
	}
	loop, some, next := label("row"), label("some"), label("next")
	Label(loop)
	MOVQ(Mem{Base: vis}, v)
	VBROADCASTSS(Mem{Base: lse}, rowLSE)
	VBROADCASTSS(Mem{Base: dots}, rowDot)
	CMPQ(v, I8(-1))
	JNE(LabelRef(some))
	row(false)
	JMP(LabelRef(next))
	Label(some)
	row(true)
	Label(next)
	ADDQ(U32(4*pageLen), S)
	ADDQ(U32(4*pageLen), D)
	ADDQ(U8(8), vis)
	ADDQ(U8(4), lse)
	ADDQ(U8(4), dots)
	DECQ(rows)
	JNZ(LabelRef(loop))
	if wide() {
		KORTESTW(reg.K6, reg.K6)
	} else {
		VPTEST(above, above)
	}
	SETNE(v.As8())
	Store(v.As8(), ReturnIndex(0))
	end()
}

// soften: dS = dS·(1 − tanh²(raw·scale/softcap)), two vectors at a time.
func soften() {
	function("soften", "func(dS, raw *float32, scale, softcap float32, rows int, visible *uint64)", "is kernel.soften.")
	D, raw, rows, vis, v, u := reg.RDI, reg.RSI, reg.RCX, reg.R8, reg.RAX, reg.RBX
	Load(Param("dS"), D)
	Load(Param("raw"), raw)
	Load(Param("rows"), rows)
	Load(Param("visible"), vis)
	r := isa.reg
	x, a, big, t, p, keep := r[0:2], r[2:4], r[4:6], r[6:8], r[8:10], r[10:12]
	scale, softcap := r[12], r[13]
	m, _ := Param("scale").Resolve()
	VBROADCASTSS(m.Addr, scale)
	m, _ = Param("softcap").Resolve()
	VBROADCASTSS(m.Addr, softcap)
	c := memConsts()
	each := func(f func(i int)) { f(0); f(1) }
	at := func(base reg.Register, i int) Mem { return Mem{Base: base, Disp: 4 * isa.w * i} }
	loop := label("row")
	Label(loop)
	MOVQ(Mem{Base: vis}, v)
	for first := 0; first < pageLen/isa.w; first += 2 {
		each(func(i int) { VMULPS(at(raw, first+i), scale, x[i]) })
		each(func(i int) { VDIVPS(softcap, x[i], x[i]) })
		tanh(c, x, a, big, t, p, keep)
		each(func(i int) { VMULPS(x[i], x[i], x[i]) })
		each(func(i int) { VMOVUPS(c["one"], t[i]) })
		each(func(i int) { VSUBPS(x[i], t[i], x[i]) })
		each(func(i int) { VMULPS(at(D, first+i), x[i], x[i]) })
		visibleLanes(v, u, first, p)
		keepSeen(x, p)
		each(func(i int) { VMOVUPS(x[i], at(D, first+i)) })
	}
	ADDQ(U32(4*pageLen), D)
	ADDQ(U32(4*pageLen), raw)
	ADDQ(U8(8), vis)
	DECQ(rows)
	JNZ(LabelRef(loop))
	end()
}

// dots: the chains x·y over each row, of 8 rows at a time. The same in both sets: each row is one chain.
func dots() {
	function("dots", "func(d, x, y *float32, rows, n int)", "is kernel.rowDots.")
	d, X, Y, rows, n := reg.RDI, reg.RSI, reg.RDX, reg.RCX, reg.R8
	stride, s3, s5, s7, i := reg.R9, reg.R10, reg.R11, reg.R12, reg.RAX
	Load(Param("d"), d)
	Load(Param("x"), X)
	Load(Param("y"), Y)
	Load(Param("rows"), rows)
	Load(Param("n"), n)
	MOVQ(n, stride)
	SHLQ(U8(2), stride)
	LEAQ(Mem{Base: stride, Index: stride, Scale: 2}, s3)
	LEAQ(Mem{Base: stride, Index: stride, Scale: 4}, s5)
	LEAQ(Mem{Base: s3, Index: stride, Scale: 4}, s7)
	xmm := []reg.VecPhysical{
		reg.X0, reg.X1, reg.X2, reg.X3, reg.X4, reg.X5, reg.X6, reg.X7, reg.X8, reg.X9, reg.X10, reg.X11, reg.X12, reg.X13, reg.X14, reg.X15,
	}
	block := func(count int) {
		of := func(base reg.Register, row int) Mem {
			m := Mem{Base: base}
			switch row {
			case 1, 2, 4:
				m.Index, m.Scale = stride, uint8(row)
			case 3, 6:
				m.Index, m.Scale = s3, uint8(row/3)
			case 5:
				m.Index, m.Scale = s5, 1
			case 7:
				m.Index, m.Scale = s7, 1
			}
			return m
		}
		for row := range count {
			VXORPS(xmm[row], xmm[row], xmm[row])
		}
		MOVQ(n, i)
		loop := label("element")
		Label(loop)
		for row := range count {
			VMOVSS(of(X, row), xmm[8+row])
			VFMADD231SS(of(Y, row), xmm[8+row], xmm[row])
		}
		ADDQ(U8(4), X)
		ADDQ(U8(4), Y)
		DECQ(i)
		JNZ(LabelRef(loop))
		for row := range count {
			VMOVSS(xmm[row], Mem{Base: d, Disp: 4 * row})
		}
		// X and Y have gone through one row.
		if count == 8 {
			ADDQ(s7, X)
			ADDQ(s7, Y)
		}
		ADDQ(U8(4*count), d)
		SUBQ(U8(count), rows)
	}
	eights, ones, done := label("eights"), label("ones"), label("done")
	Label(eights)
	CMPQ(rows, U8(8))
	JLT(LabelRef(ones))
	block(8)
	JMP(LabelRef(eights))
	Label(ones)
	TESTQ(rows, rows)
	JZ(LabelRef(done))
	block(1)
	JMP(LabelRef(ones))
	Label(done)
	end()
}
