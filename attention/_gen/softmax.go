package main

import (
	"math"

	. "github.com/mmcloughlin/avo/build"
	. "github.com/mmcloughlin/avo/operand"
	"github.com/mmcloughlin/avo/reg"
)

// A constant is in every lane of a vector.
type constant struct {
	name string
	bits uint32
}

// The constants of exp, as elementary.go has them.
var constants = []constant{
	{"log2e", math.Float32bits(0x1.715476p+0)},
	{"magic", math.Float32bits(0x1.8p+23)},
	{"ln2Hi", math.Float32bits(-0x1.62e4p-1)},
	{"ln2Lo", math.Float32bits(-0x1.7f7d1cp-20)},
	{"exp6", math.Float32bits(0x1.6ac752p-10)},
	{"exp5", math.Float32bits(0x1.123de0p-7)},
	{"exp4", math.Float32bits(0x1.555858p-5)},
	{"exp3", math.Float32bits(0x1.55548cp-3)},
	{"exp2", math.Float32bits(0x1.fffffcp-2)},
	{"one", math.Float32bits(1)},
	{"bias", 127},
	{"expMin", math.Float32bits(-0x1.5d589ep+6)},
	{"negInf", 0xff800000},
}

var data = map[string]Mem{}

// lanes is 1, 2, 4 … 128, the bits of a byte, for AVX2 alone. The upper half of a lane, and for AVX2 of all lanes, is for
// elements in pairs. belowLarge is the largest binary32 below 2⁶³.
var lanes, highHalf, highHalves, belowLarge Mem

func constData(all []constant) {
	for _, c := range all {
		m := GLOBL(c.name+"_"+isa.name, RODATA|NOPTR)
		for i := range isa.w {
			DATA(4*i, U32(c.bits))
		}
		data[c.name] = m
	}
}

func consts() {
	constData(constants)
	highHalf = GLOBL("highHalf_"+isa.name, RODATA|NOPTR)
	DATA(0, U32(0xffff0000))
	belowLarge = GLOBL("belowLarge_"+isa.name, RODATA|NOPTR)
	DATA(0, U32(0x5effffff))
	if wide() {
		return
	}
	lanes = GLOBL("lanes_"+isa.name, RODATA|NOPTR)
	for i := range isa.w {
		DATA(4*i, U32(1<<i))
	}
	highHalves = GLOBL("highHalves_"+isa.name, RODATA|NOPTR)
	for i := range isa.w {
		DATA(4*i, U32(0xffff0000))
	}
}

// An operand per constant: a register or memory.
type expConsts map[string]Op

func memConsts() expConsts {
	c := expConsts{}
	for k, m := range data {
		c[k] = m
	}
	return c
}

// exponentials writes exp over x[i], each with room t[i] and p[i] and result in p[i]; zeroes is done by the caller. The
// instructions of the vectors are interleaved.
func exponentials(c expConsts, x, t, p []reg.Register) {
	each := func(f func(i int)) {
		for i := range x {
			f(i)
		}
	}
	powers(c, x, t, p)
	each(func(i int) { VPADDD(c["bias"], t[i], t[i]) })
	each(func(i int) { VPSLLD(U8(23), t[i], t[i]) })
	each(func(i int) { VMULPS(t[i], p[i], p[i]) })
}

// powers is exponentials without the factors of 2ⁿ; n are the low bits of t.
func powers(c expConsts, x, t, p []reg.Register) {
	each := func(f func(i int)) {
		for i := range x {
			f(i)
		}
	}
	each(func(i int) { VMOVUPS(c["magic"], t[i]) })
	each(func(i int) { VFMADD231PS(c["log2e"], x[i], t[i]) })
	each(func(i int) { VSUBPS(c["magic"], t[i], p[i]) })
	each(func(i int) { VFMADD231PS(c["ln2Hi"], p[i], x[i]) })
	each(func(i int) { VFMADD231PS(c["ln2Lo"], p[i], x[i]) })
	each(func(i int) { VMOVUPS(c["exp6"], p[i]) })
	for _, k := range []string{"exp5", "exp4", "exp3", "exp2", "one", "one"} {
		each(func(i int) { VFMADD213PS(c[k], x[i], p[i]) })
	}
}

const softmaxSignature = "func(s, kScale, vScale *float32, scale float32, rows int, visible *uint64, m, l *float32, nonzero *uint64)"

func softmaxName(scaled bool) (name, doc string) {
	if scaled {
		return "softmaxScaled", "is kernel.softmax with scales of keys and values."
	}
	return "softmax", "is kernel.softmax without scales of keys and values."
}

// sum16 adds up the 16 lanes of Z or of two Y by the tree, into the first lane of the X register of lo.
func foldSum(lo, hi reg.Register, lox, hix reg.Register) {
	VADDPS(hi, lo, lo) // lanes j+8 onto j
	VEXTRACTF128(U8(1), lo, hix)
	VADDPS(hix, lox, lox) // j+4
	VMOVHLPS(lox, lox, hix)
	VADDPS(hix, lox, lox) // j+2
	VMOVSHDUP(lox, hix)
	VADDSS(hix, lox, lox) // j+1
}

func foldMax(lo, hi reg.Register, lox, hix reg.Register) {
	VMAXPS(hi, lo, lo)
	VEXTRACTF128(U8(1), lo, hix)
	VMAXPS(hix, lox, lox)
	VMOVHLPS(lox, lox, hix)
	VMAXPS(hix, lox, lox)
	VMOVSHDUP(lox, hix)
	VMAXSS(hix, lox, lox)
}

// softmax512 passes over the rows twice, first for the maxima of four rows at a time and then for the weights of two. That
// is for rows that see the whole page. If some row does not, or if a weight is 0 or a score is not finite, slowRows512 does
// the rows one by one.
func softmax512(scaled bool) {
	name, doc := softmaxName(scaled)
	function(name, softmaxSignature, doc)
	x := softmaxArgs{S: reg.RDI, ks: reg.RSI, vs: reg.RDX, left: reg.RCX, vis: reg.R8, M: reg.R9, L: reg.R10, nz: reg.R11, scaled: scaled}
	u, top, n := reg.RBX, reg.R12, reg.R13
	Load(Param("s"), x.S)
	if scaled {
		Load(Param("kScale"), x.ks)
		Load(Param("vScale"), x.vs)
	}
	Load(Param("rows"), x.left)
	Load(Param("visible"), x.vis)
	Load(Param("m"), x.M)
	Load(Param("l"), x.L)
	Load(Param("nonzero"), x.nz)
	done, slow := label("done"), label("slow")
	TESTQ(x.left, x.left)
	JZ(LabelRef(done))
	c := memConsts()
	at := 31
	take := func() reg.Register { at--; return zmm[at+1] }
	// The others are only added, or used by slowRows512 alone, so that loading them costs nothing.
	for _, k := range []string{"log2e", "magic", "ln2Hi", "ln2Lo", "exp6", "one", "expMin"} {
		r := take()
		VMOVUPS(data[k], r)
		c[k] = r
	}
	x.scale = take()
	p, _ := Param("scale").Resolve()
	VBROADCASTSS(p.Addr, x.scale)

	MOVQ(x.left, n)
	// The largest product with a scale above 0 is that of the largest number, since rounding is monotonic.
	VXORPS(reg.X0, reg.X0, reg.X0)
	VUCOMISS(reg.X0, x.scale.(reg.VecPhysical).AsX())
	JBE(LabelRef(slow))
	all := label("all")
	MOVQ(I32(-1), u)
	MOVQ(x.vis, top)
	Label(all)
	ANDQ(Mem{Base: top}, u)
	ADDQ(U8(8), top)
	DECQ(n)
	JNZ(LabelRef(all))
	MOVQ(x.left, n)
	CMPQ(u, I8(-1))
	JNE(LabelRef(slow))

	MOVQ(x.S, u)
	MOVQ(x.M, top)
	fours, ones, found := label("fours"), label("ones"), label("found")
	Label(fours)
	SUBQ(U8(4), n)
	JLT(LabelRef(ones))
	x.maxima(4, u, top)
	JMP(LabelRef(fours))
	Label(ones)
	ADDQ(U8(4), n)
	JZ(LabelRef(found))
	one := label("maximum")
	Label(one)
	x.maxima(1, u, top)
	DECQ(n)
	JNZ(LabelRef(one))
	Label(found)

	pairs, last, odd := label("pairs"), label("last"), label("odd")
	Label(pairs)
	CMPQ(x.left, U8(2))
	JLT(LabelRef(last))
	MOVQ(U32(2), n)
	x.weights(c, 2, slow)
	x.next(2)
	SUBQ(U8(2), x.left)
	JMP(LabelRef(pairs))
	Label(last)
	TESTQ(x.left, x.left)
	JNZ(LabelRef(odd))
	Label(done)
	end()
	Label(odd)
	MOVQ(x.left, n)
	x.weights(c, 1, slow)
	end()
	Label(slow)
	x.slowRows512(c, n, pairs)
}

// softmaxArgs are the registers of softmax512: the arguments, on their way from row to row, and how many rows are left.
type softmaxArgs struct {
	S, ks, vs, left, vis, M, L, nz, scale reg.Register
	scaled                                bool
}

// next goes on to the row that many rows on.
func (a softmaxArgs) next(rows int) {
	ADDQ(U32(256*rows), a.S)
	ADDQ(U8(8*rows), a.vis)
	ADDQ(U8(8*rows), a.nz)
	ADDQ(U8(4*rows), a.M)
	ADDQ(U8(4*rows), a.L)
}

// fold reduces each of two vectors to eight lanes, by op, into one: those of x and then those of y.
func fold(op func(...Op), x, y, t reg.Register) {
	VSHUFF64X2(U8(0xee), y, x, t)
	VSHUFF64X2(U8(0x44), y, x, x)
	op(t, x, x)
}

// foldBlocks reduces each block of four lanes of x to one number, in all its lanes.
func foldBlocks(op func(...Op), x, t reg.Register) {
	for _, swap := range []uint8{0x4e, 0xb1} {
		VPERMILPS(U8(swap), x, t)
		op(t, x, x)
	}
}

// maxima writes the maxima of so many rows, 4 or 1, and goes on to the next.
func (a softmaxArgs) maxima(rows int, S, M reg.Register) {
	t := zmm[20]
	for r := range rows {
		y := zmm[4*r : 4*r+4]
		m := func(i int) Mem { return Mem{Base: S, Disp: 256*r + 64*i} }
		if a.scaled {
			for i := range y {
				VMOVUPS(m(i), y[i])
				VMULPS(Mem{Base: a.ks, Disp: 64 * i}, y[i], y[i])
			}
			VMAXPS(y[1], y[0], y[0])
			VMAXPS(y[3], y[2], y[2])
		} else {
			VMOVUPS(m(0), y[0])
			VMOVUPS(m(2), y[2])
			VMAXPS(m(1), y[0], y[0])
			VMAXPS(m(3), y[2], y[2])
		}
		VMAXPS(y[2], y[0], y[0])
	}
	if rows == 1 {
		fold(VMAXPS, zmm[0], zmm[0], t)
		VSHUFF64X2(U8(0xb1), zmm[0], zmm[0], t)
		VMAXPS(t, zmm[0], zmm[0])
		foldBlocks(VMAXPS, zmm[0], t)
		VMULPS(a.scale, zmm[0], zmm[0])
		VMOVSS(reg.X0, Mem{Base: M})
	} else {
		fold(VMAXPS, zmm[0], zmm[4], t)
		fold(VMAXPS, zmm[8], zmm[12], zmm[21])
		VSHUFF32X4(U8(0xdd), zmm[8], zmm[0], t)
		VSHUFF32X4(U8(0x88), zmm[8], zmm[0], zmm[0])
		VMAXPS(t, zmm[0], zmm[0])
		foldBlocks(VMAXPS, zmm[0], t)
		VMULPS(a.scale, zmm[0], zmm[0])
		MOVL(U32(0x1111), reg.EAX)
		KMOVW(reg.EAX, reg.K1)
		VCOMPRESSPS_Z(zmm[0], reg.K1, zmm[0])
		VMOVUPS(reg.X0, Mem{Base: M})
	}
	ADDQ(U32(256*rows), S)
	ADDQ(U8(4*rows), M)
}

// weights writes the weights of so many rows, 2 or 1, from their maxima, if none of them is 0 or no number. Else it writes
// nothing and goes to slow.
func (a softmaxArgs) weights(c expConsts, rows int, slow string) {
	var x, t, p []reg.Register
	for r := range rows {
		x = append(x, zmm[12*r:12*r+4]...)
		t = append(t, zmm[12*r+4:12*r+8]...)
		p = append(p, zmm[12*r+8:12*r+12]...)
	}
	each := func(f func(i int)) {
		for i := range x {
			f(i)
		}
	}
	s := func(i int) Mem { return Mem{Base: a.S, Disp: 64 * i} }
	for r := range rows {
		VBROADCASTSS(Mem{Base: a.M, Disp: 4 * r}, t[4*r])
	}
	each(func(i int) {
		if a.scaled {
			VMOVUPS(s(i), x[i])
			VMULPS(Mem{Base: a.ks, Disp: 64 * (i % 4)}, x[i], x[i])
			VMULPS(a.scale, x[i], x[i])
		} else {
			VMULPS(s(i), a.scale, x[i])
		}
	})
	each(func(i int) { VSUBPS(t[i&^3], x[i], x[i]) })
	VCMPPS(U8(13), c["expMin"], x[0], reg.K1) // not below: NaN is not
	for _, y := range x[1:] {
		VCMPPS(U8(13), c["expMin"], y, reg.K1, reg.K1)
	}
	KORTESTW(reg.K1, reg.K1)
	JCC(LabelRef(slow))
	powers(c, x, t, p)
	// No result is subnormal, so 2ⁿ only adds n to the exponent.
	each(func(i int) { VPSLLD(U8(23), t[i], t[i]) })
	each(func(i int) { VPADDD(t[i], p[i], p[i]) })
	for r := range rows {
		VADDPS(p[4*r+1], p[4*r], t[4*r])
		VADDPS(p[4*r+2], t[4*r], t[4*r])
		VADDPS(p[4*r+3], t[4*r], t[4*r])
	}
	each(func(i int) {
		if a.scaled {
			VMULPS(Mem{Base: a.vs, Disp: 64 * (i % 4)}, p[i], p[i])
		}
		VMOVUPS(p[i], s(i))
	})
	sum := t[0]
	fold(VADDPS, sum, t[4*(rows-1)], x[0])
	VSHUFF64X2(U8(0xb1), sum, sum, x[0])
	VADDPS(x[0], sum, sum)
	foldBlocks(VADDPS, sum, x[0])
	for r := range rows {
		if r > 0 {
			VEXTRACTF32X4(U8(2), sum, reg.X0)
			VMOVSS(reg.X0, Mem{Base: a.L, Disp: 4})
		} else {
			VMOVSS(sum.(reg.VecPhysical).AsX(), Mem{Base: a.L})
		}
		MOVQ(I32(-1), Mem{Base: a.nz, Disp: 8 * r})
	}
}

// slowRows512 does n of the rows that are left, one by one, and goes to then.
func (a softmaxArgs) slowRows512(c expConsts, n reg.Register, then string) {
	S, v, u := a.S, reg.RAX, reg.RBX
	x, t, e := zmm[0:4], zmm[4:8], zmm[8:12]
	k := []reg.Register{reg.K1, reg.K2, reg.K3, reg.K4}
	loop, next, empty := label("row"), label("next"), label("empty")
	SUBQ(n, a.left)
	Label(loop)
	MOVQ(Mem{Base: a.vis}, v)
	for i := range 4 {
		if i > 0 {
			SHRQ(U8(16), v)
		}
		KMOVW(v.As32(), k[i])
	}
	for i := range 4 {
		if a.scaled {
			VMOVUPS(Mem{Base: S, Disp: 64 * i}, t[i])
			VMULPS(Mem{Base: a.ks, Disp: 64 * i}, t[i], t[i])
			VMULPS(a.scale, t[i], t[i])
		} else {
			VMULPS(Mem{Base: S, Disp: 64 * i}, a.scale, t[i])
		}
		VMOVUPS(c["negInf"], x[i])
	}
	for i := range 4 {
		VMOVAPS(t[i], k[i], x[i])
	}
	VMAXPS(x[1], x[0], t[0])
	VMAXPS(x[3], x[2], t[1])
	VMAXPS(t[1], t[0], t[0])
	VEXTRACTF64X4(U8(1), t[0], reg.Y5)
	foldMax(reg.Y4, reg.Y5, reg.X4, reg.X5)
	// A NaN anywhere makes the maximum NaN: every sum of a NaN is one.
	VCMPPS(U8(3), x[0], x[1], k[0])
	VCMPPS(U8(3), x[2], x[3], k[1])
	KORTESTW(k[0], k[1])
	number := label("number")
	JZ(LabelRef(number))
	VPCMPEQD(reg.X4, reg.X4, reg.X4)
	Label(number)
	VMOVSS(reg.X4, Mem{Base: a.M})
	VUCOMISS(c["negInf"], reg.X4)
	skip := label("some")
	JNE(LabelRef(skip))
	JNP(LabelRef(empty))
	Label(skip)
	VBROADCASTSS(reg.X4, t[0])
	for i := range 4 {
		VSUBPS(t[0], x[i], x[i])
	}
	for i := range 4 {
		VCMPPS(U8(5), c["expMin"], x[i], k[i]) // not less: NaN stays
	}
	exponentials(c, x, t, e)
	for i := range 4 {
		VMOVAPS_Z(e[i], k[i], e[i])
	}
	VADDPS(e[1], e[0], t[0])
	VADDPS(e[2], t[0], t[0])
	VADDPS(e[3], t[0], t[0])
	VEXTRACTF64X4(U8(1), t[0], reg.Y5)
	foldSum(reg.Y4, reg.Y5, reg.X4, reg.X5)
	VMOVSS(reg.X4, Mem{Base: a.L})
	zero(x[0])
	for i := range 4 {
		if a.scaled {
			VMULPS_Z(Mem{Base: a.vs, Disp: 64 * i}, e[i], k[i], e[i])
		}
		VMOVUPS(e[i], Mem{Base: S, Disp: 64 * i})
		VCMPPS(U8(4), x[0], e[i], k[i])
	}
	KUNPCKWD(k[0], k[1], k[0])
	KUNPCKWD(k[2], k[3], k[2])
	KUNPCKDQ(k[0], k[2], k[0])
	KMOVQ(k[0], Mem{Base: a.nz})
	Label(next)
	a.next(1)
	DECQ(n)
	JNZ(LabelRef(loop))
	JMP(LabelRef(then))
	Label(empty)
	XORQ(u, u)
	MOVQ(u, Mem{Base: a.nz})
	MOVL(u.As32(), Mem{Base: a.L})
	JMP(LabelRef(next))
}

// softmax256 passes over the rows twice, first for the maxima and then for the weights: each alone has few enough
// instructions a row for the processor to work on several rows at a time.
func softmax256(scaled bool) {
	name, doc := softmaxName(scaled)
	function(name, softmaxSignature, doc)
	S, ks, vs, rows, vis, M, L, nz := reg.RDI, reg.RSI, reg.RDX, reg.RCX, reg.R8, reg.R9, reg.R10, reg.R11
	v, u, bits := reg.RAX, reg.RBX, reg.R12
	Load(Param("s"), S)
	if scaled {
		Load(Param("kScale"), ks)
		Load(Param("vScale"), vs)
	}
	Load(Param("rows"), rows)
	Load(Param("visible"), vis)
	Load(Param("m"), M)
	done := label("done")
	TESTQ(rows, rows)
	JZ(LabelRef(done))

	// Y15 scale, Y14 −Inf, Y13 and Y12 maxima, Y11 all ones where a NaN was, Y10 the bits of lanes.
	p, _ := Param("scale").Resolve()
	VBROADCASTSS(p.Addr, reg.Y15)
	VMOVUPS(data["negInf"], reg.Y14)
	VMOVUPS(lanes, reg.Y10)
	loop, some, found := label("maximum"), label("some"), label("found")
	Label(loop)
	MOVQ(Mem{Base: vis}, v)
	scores := func(i int) {
		s := Mem{Base: S, Disp: 32 * i}
		if scaled {
			VMOVUPS(s, ymm[i])
			VMULPS(Mem{Base: ks, Disp: 32 * i}, ymm[i], ymm[i])
			VMULPS(reg.Y15, ymm[i], ymm[i])
		} else {
			VMULPS(s, reg.Y15, ymm[i])
		}
	}
	CMPQ(v, I8(-1))
	JNE(LabelRef(some))
	for i := range 8 {
		scores(i)
		VMOVUPS(ymm[i], Mem{Base: S, Disp: 32 * i})
	}
	JMP(LabelRef(found))
	Label(some)
	for i := range 8 {
		scores(i)
		VMOVD(v.As32(), reg.X8)
		VPBROADCASTD(reg.X8, reg.Y8)
		SHRQ(U8(8), v)
		VPAND(reg.Y10, reg.Y8, reg.Y8)
		VPCMPEQD(reg.Y10, reg.Y8, reg.Y8)
		VBLENDVPS(reg.Y8, ymm[i], reg.Y14, ymm[i])
		VMOVUPS(ymm[i], Mem{Base: S, Disp: 32 * i})
	}
	Label(found)
	VCMPPS(U8(3), reg.Y0, reg.Y1, reg.Y11)
	for i := 2; i < 8; i += 2 {
		VCMPPS(U8(3), ymm[i], ymm[i+1], reg.Y8)
		VORPS(reg.Y8, reg.Y11, reg.Y11)
	}
	VMAXPS(reg.Y1, reg.Y0, reg.Y13)
	VMAXPS(reg.Y3, reg.Y2, reg.Y12)
	VMAXPS(reg.Y5, reg.Y4, reg.Y4)
	VMAXPS(reg.Y7, reg.Y6, reg.Y6)
	VMAXPS(reg.Y12, reg.Y13, reg.Y13)
	VMAXPS(reg.Y6, reg.Y4, reg.Y4)
	foldMax(reg.Y13, reg.Y4, reg.X13, reg.X4)
	VMOVMSKPS(reg.Y11, u.As32())
	number := label("number")
	TESTQ(u, u)
	JZ(LabelRef(number))
	VPCMPEQD(reg.X13, reg.X13, reg.X13)
	Label(number)
	VMOVSS(reg.X13, Mem{Base: M})
	ADDQ(U32(256), S)
	ADDQ(U8(8), vis)
	ADDQ(U8(4), M)
	DECQ(rows)
	JNZ(LabelRef(loop))

	Load(Param("s"), S)
	Load(Param("rows"), rows)
	Load(Param("m"), M)
	Load(Param("l"), L)
	Load(Param("nonzero"), nz)
	// Y15 the maximum, Y14 all ones where no weight is 0, Y13 and Y12 the 16 lanes of the sum, Y8 to Y11 constants: two
	// loads fit into a cycle, and constants from memory would be most of what there is to wait for.
	c := memConsts()
	for i, k := range []string{"magic", "log2e", "exp6", "ln2Hi"} {
		VMOVUPS(data[k], ymm[8+i])
		c[k] = ymm[8+i]
	}
	loop, next, empty, zeros := label("weights"), label("next"), label("empty"), label("zeros")
	Label(loop)
	VBROADCASTSS(Mem{Base: M}, reg.Y15)
	VUCOMISS(data["negInf"], reg.X15)
	sees := label("sees")
	JNE(LabelRef(sees))
	JNP(LabelRef(empty))
	Label(sees)
	VPCMPEQD(reg.Y14, reg.Y14, reg.Y14)
	zero(reg.Y13)
	zero(reg.Y12)
	for first := 0; first < 8; first += 2 {
		x, t, e, keep := ymm[0:2], ymm[2:4], ymm[4:6], ymm[6:8]
		for j := range x {
			VMOVUPS(Mem{Base: S, Disp: 32 * (first + j)}, x[j])
			VSUBPS(reg.Y15, x[j], x[j])
			VCMPPS(U8(5), data["expMin"], x[j], keep[j]) // not less: NaN stays
			VANDPS(keep[j], reg.Y14, reg.Y14)
		}
		exponentials(c, x, t, e)
		for j := range x {
			VANDPS(keep[j], e[j], e[j])
			sum := ymm[13-(first+j)%2]
			VADDPS(e[j], sum, sum)
			if scaled {
				VMULPS(Mem{Base: vs, Disp: 32 * (first + j)}, e[j], e[j])
				// A scale of a position that no row sees may be anything.
				VANDPS(keep[j], e[j], e[j])
			}
			VMOVUPS(e[j], Mem{Base: S, Disp: 32 * (first + j)})
		}
	}
	MOVQ(I32(-1), bits)
	VMOVMSKPS(reg.Y14, u.As32())
	CMPQ(u, U8(0xff))
	JNE(LabelRef(zeros))
	store := label("store")
	Label(store)
	MOVQ(bits, Mem{Base: nz})
	foldSum(reg.Y13, reg.Y12, reg.X13, reg.X12)
	VMOVSS(reg.X13, Mem{Base: L})
	Label(next)
	ADDQ(U32(256), S)
	ADDQ(U8(8), nz)
	ADDQ(U8(4), M)
	ADDQ(U8(4), L)
	DECQ(rows)
	JNZ(LabelRef(loop))
	Label(done)
	end()
	Label(zeros)
	zero(reg.Y0)
	XORQ(bits, bits)
	for i := range 8 {
		VCMPPS(U8(4), Mem{Base: S, Disp: 32 * i}, reg.Y0, reg.Y1)
		VMOVMSKPS(reg.Y1, u.As32())
		if i > 0 {
			SHLQ(U8(8*i), u)
		}
		ORQ(u, bits)
	}
	JMP(LabelRef(store))
	Label(empty)
	XORQ(u, u)
	MOVQ(u, Mem{Base: nz})
	MOVL(u.As32(), Mem{Base: L})
	JMP(LabelRef(next))
}

// coefficients: how the parts (m, l) take in those that follow, (pm, pl).
func coefficients() {
	function("coefficients", "func(m, l, pm, pl, a, b *float32, rows int)", "is kernel.coefficients.")
	M, L, PM, PL, A, B, rows := reg.RDI, reg.RSI, reg.RDX, reg.RCX, reg.R8, reg.R9, reg.R10
	Load(Param("m"), M)
	Load(Param("l"), L)
	Load(Param("pm"), PM)
	Load(Param("pl"), PL)
	Load(Param("a"), A)
	Load(Param("b"), B)
	Load(Param("rows"), rows)
	r := isa.reg
	ma, mb, top, t, pa, pb, la, lb, inf, xa, xb, tb := r[0], r[1], r[2], r[3], r[4], r[5], r[6], r[7], r[8], r[9], r[10], r[11]
	keepA, keepB := r[12], r[13]
	c := memConsts()
	VMOVUPS(data["negInf"], inf)
	loop, done := label("rows"), label("done")
	Label(loop)
	CMPQ(rows, U8(0))
	JLE(LabelRef(done))
	VMOVUPS(Mem{Base: M}, ma)
	VMOVUPS(Mem{Base: PM}, mb)
	VMAXPS(mb, ma, top)
	// NaN if either is.
	VADDPS(mb, ma, t)
	if wide() {
		VCMPPS(U8(3), mb, ma, reg.K1)
		VMOVAPS(t, reg.K1, top)
	} else {
		VCMPPS(U8(3), mb, ma, xa)
		VBLENDVPS(xa, t, top, top)
	}
	VSUBPS(top, ma, xa)
	VSUBPS(top, mb, xb)
	if wide() {
		VCMPPS(U8(5), data["expMin"], xa, reg.K2)
		VCMPPS(U8(5), data["expMin"], xb, reg.K3)
	} else {
		VCMPPS(U8(5), data["expMin"], xa, keepA)
		VCMPPS(U8(5), data["expMin"], xb, keepB)
	}
	exponentials(c, []reg.Register{xa, xb}, []reg.Register{t, tb}, []reg.Register{pa, pb})
	if wide() {
		VMOVAPS_Z(pa, reg.K2, pa)
		VMOVAPS_Z(pb, reg.K3, pb)
	} else {
		VANDPS(keepA, pa, pa)
		VANDPS(keepB, pb, pb)
	}
	VMOVUPS(pa, Mem{Base: A})
	VMOVUPS(pb, Mem{Base: B})
	VMOVUPS(Mem{Base: L}, la)
	VMOVUPS(Mem{Base: PL}, lb)
	VMULPS(pb, lb, tb)
	VFMADD231PS(pa, la, tb)
	// The first part is copied, an empty one passed over.
	if wide() {
		VCMPPS(U8(0), inf, ma, reg.K1)
		VMOVAPS(lb, reg.K1, tb)
		VMOVAPS(mb, reg.K1, top)
		VCMPPS(U8(0), inf, mb, reg.K1)
		VMOVAPS(la, reg.K1, tb)
		VMOVAPS(ma, reg.K1, top)
	} else {
		VCMPPS(U8(0), inf, ma, t)
		VBLENDVPS(t, lb, tb, tb)
		VBLENDVPS(t, mb, top, top)
		VCMPPS(U8(0), inf, mb, t)
		VBLENDVPS(t, la, tb, tb)
		VBLENDVPS(t, ma, top, top)
	}
	VMOVUPS(top, Mem{Base: M})
	VMOVUPS(tb, Mem{Base: L})
	for _, p := range []reg.Register{M, L, PM, PL, A, B} {
		ADDQ(U8(4*isa.w), p)
	}
	SUBQ(U8(isa.w), rows)
	JMP(LabelRef(loop))
	Label(done)
	end()
}

// The constants of log, as elementary.go has them.
var logConstants = []constant{
	{"sqrtHalf", 0x3f3504f4},
	{"log3", math.Float32bits(0x1.555554p-2)},
	{"log4", math.Float32bits(-0x1.000226p-2)},
	{"log5", math.Float32bits(0x1.99a008p-3)},
	{"log6", math.Float32bits(-0x1.547246p-3)},
	{"log7", math.Float32bits(0x1.22da1cp-3)},
	{"log8", math.Float32bits(-0x1.0d8538p-3)},
	{"log9", math.Float32bits(0x1.055b78p-3)},
	{"log10", math.Float32bits(-0x1.38b5dcp-4)},
	{"ln2HiPlus", math.Float32bits(0x1.62e4p-1)},
	{"ln2LoPlus", math.Float32bits(0x1.7f7d1cp-20)},
	{"minusHalf", math.Float32bits(-0.5)},
}

// logSums: lse[r] = m[r] + log(l[r]).
func logSums() {
	constData(logConstants)
	function("logSums", "func(lse, m, l *float32, rows int)", "sets lse to m + log(l).")
	LSE, M, L, rows := reg.RDI, reg.RSI, reg.RDX, reg.RCX
	Load(Param("lse"), LSE)
	Load(Param("m"), M)
	Load(Param("l"), L)
	Load(Param("rows"), rows)
	r := isa.reg
	u, k, x, z, p, y := r[0], r[1], r[2], r[3], r[4], r[5]
	loop, done := label("rows"), label("done")
	Label(loop)
	CMPQ(rows, U8(0))
	JLE(LabelRef(done))
	VMOVUPS(Mem{Base: L}, u)
	VPSUBD(data["sqrtHalf"], u, k)
	VPSRAD(U8(23), k, k)
	VPSLLD(U8(23), k, x)
	VPSUBD(x, u, x)
	VSUBPS(data["one"], x, x)
	VCVTDQ2PS(k, k)
	VMULPS(x, x, z)
	VMOVUPS(data["log10"], p)
	for _, c := range []string{"log9", "log8", "log7", "log6", "log5", "log4", "log3"} {
		VFMADD213PS(data[c], x, p)
	}
	VMULPS(z, x, y)
	VMULPS(p, y, y)
	VFMADD231PS(data["ln2LoPlus"], k, y)
	VFMADD231PS(data["minusHalf"], z, y)
	VADDPS(y, x, y)
	VFMADD231PS(data["ln2HiPlus"], k, y)
	VADDPS(Mem{Base: M}, y, y)
	VMOVUPS(y, Mem{Base: LSE})
	for _, p := range []reg.Register{LSE, M, L} {
		ADDQ(U8(4*isa.w), p)
	}
	SUBQ(U8(isa.w), rows)
	JMP(LabelRef(loop))
	Label(done)
	end()
}

// mergeRows: o[i] = fma(o[i], a, x[i]·b) over a row.
func mergeRows() {
	function("merge", "func(o, x *float32, a, b float32, n int)", "is kernel.merge over n elements, a multiple of 16.")
	o, x, n := reg.RDI, reg.RSI, reg.RCX
	Load(Param("o"), o)
	Load(Param("x"), x)
	Load(Param("n"), n)
	a, _ := Param("a").Resolve()
	b, _ := Param("b").Resolve()
	VBROADCASTSS(a.Addr, isa.reg[14])
	VBROADCASTSS(b.Addr, isa.reg[15])
	loop, done := label("loop"), label("done")
	Label(loop)
	CMPQ(n, U8(0))
	JLE(LabelRef(done))
	for i := 0; i < 16/isa.w; i++ {
		VMULPS(Mem{Base: x, Disp: 4 * isa.w * i}, isa.reg[15], isa.reg[i])
		VFMADD231PS(Mem{Base: o, Disp: 4 * isa.w * i}, isa.reg[14], isa.reg[i])
		VMOVUPS(isa.reg[i], Mem{Base: o, Disp: 4 * isa.w * i})
	}
	ADDQ(U8(64), o)
	ADDQ(U8(64), x)
	SUBQ(U8(16), n)
	JMP(LabelRef(loop))
	Label(done)
	end()
}

// divide: dst[i] = o[i]/l + 0. The same in both sets: it is bound by the divider.
func divide() {
	function("divide", "func(dst, o *float32, l float32, n int) bool",
		"is kernel.divide over n elements, a multiple of 8, and says whether all of dst are finite.")
	dst, o, n, ok := reg.RDI, reg.RSI, reg.RCX, reg.RAX
	Load(Param("dst"), dst)
	Load(Param("o"), o)
	Load(Param("n"), n)
	l, _ := Param("l").Resolve()
	VBROADCASTSS(l.Addr, reg.Y0)
	VXORPS(reg.Y1, reg.Y1, reg.Y1)
	// What is not finite leaves more than 0 of its difference with itself.
	VXORPS(reg.Y2, reg.Y2, reg.Y2)
	loop, done := label("loop"), label("done")
	Label(loop)
	SUBQ(U8(8), n)
	JLT(LabelRef(done))
	VMOVUPS(Mem{Base: o}, reg.Y3)
	VDIVPS(reg.Y0, reg.Y3, reg.Y3)
	VADDPS(reg.Y1, reg.Y3, reg.Y3)
	VMOVUPS(reg.Y3, Mem{Base: dst})
	VSUBPS(reg.Y3, reg.Y3, reg.Y3)
	VORPS(reg.Y3, reg.Y2, reg.Y2)
	ADDQ(U8(32), o)
	ADDQ(U8(32), dst)
	JMP(LabelRef(loop))
	Label(done)
	XORQ(ok, ok)
	VPTEST(reg.Y2, reg.Y2)
	SETEQ(ok.As8())
	Store(ok.As8(), ReturnIndex(0))
	end()
}

// transpose: 8 rows of 8·n float32 into [8·n][64]. The same in both sets: it is bound by memory.
func transpose() {
	function("transpose", "func(dst, src *float32, stride, n int)",
		"writes 8 rows of n float32, n a multiple of 8 and the rows stride bytes apart, as 8 columns of dst [n][64].")
	dst, src, stride, n, s3, s5 := reg.RDI, reg.RSI, reg.R8, reg.RCX, reg.RAX, reg.RBX
	Load(Param("dst"), dst)
	Load(Param("src"), src)
	Load(Param("stride"), stride)
	Load(Param("n"), n)
	LEAQ(Mem{Base: stride, Index: stride, Scale: 2}, s3)
	LEAQ(Mem{Base: stride, Index: stride, Scale: 4}, s5)
	s7 := reg.RDX
	LEAQ(Mem{Base: s3, Index: stride, Scale: 4}, s7)
	y := ymm
	loop, done := label("loop"), label("done")
	Label(loop)
	CMPQ(n, U8(8))
	JLT(LabelRef(done))
	for i, m := range []Mem{
		{Base: src},
		{Base: src, Index: stride, Scale: 1},
		{Base: src, Index: stride, Scale: 2},
		{Base: src, Index: s3, Scale: 1},
		{Base: src, Index: stride, Scale: 4},
		{Base: src, Index: s5, Scale: 1},
		{Base: src, Index: s3, Scale: 2},
		{Base: src, Index: s7, Scale: 1},
	} {
		VMOVUPS(m, y[i])
	}
	for i := 0; i < 8; i += 2 {
		VUNPCKLPS(y[i+1], y[i], y[8+i])
		VUNPCKHPS(y[i+1], y[i], y[9+i])
	}
	// y8: 00 10 01 11 | …, y9: 02 12 03 13, y10: 20 30 21 31, y11, y12: 40 50 …, y14: 60 70 …
	for i := 0; i < 2; i++ {
		b := 8 + 4*i
		VUNPCKLPD(y[b+2], y[b], y[4*i])
		VUNPCKHPD(y[b+2], y[b], y[4*i+1])
		VUNPCKLPD(y[b+3], y[b+1], y[4*i+2])
		VUNPCKHPD(y[b+3], y[b+1], y[4*i+3])
	}
	for i := 0; i < 4; i++ {
		VPERM2F128(U8(0x20), y[4+i], y[i], y[8+i])
		VPERM2F128(U8(0x31), y[4+i], y[i], y[12+i])
	}
	for i := 0; i < 8; i++ {
		VMOVUPS(y[8+i], Mem{Base: dst, Disp: 256 * i})
	}
	ADDQ(U32(8*256), dst)
	ADDQ(U8(32), src)
	SUBQ(U8(8), n)
	JMP(LabelRef(loop))
	Label(done)
	end()
}
