package main

import (
	"math"

	. "github.com/mmcloughlin/avo/build"
	. "github.com/mmcloughlin/avo/operand"
	"github.com/mmcloughlin/avo/reg"
)

// The constants of tanh, as elementary.go has them, and what it takes to split off a sign.
var tanhConstants = []constant{
	{"absolute", 0x7fffffff},
	{"sign", 0x80000000},
	{"minus2", math.Float32bits(-2)},
	{"tanhSmall", math.Float32bits(0x1.4p-1)},
	{"tanh3", math.Float32bits(-0x1.555532p-2)},
	{"tanh5", math.Float32bits(0x1.1106f6p-3)},
	{"tanh7", math.Float32bits(-0x1.b835a4p-5)},
	{"tanh9", math.Float32bits(0x1.51f8cep-6)},
	{"tanh11", math.Float32bits(-0x1.750ce4p-8)},
}

// adjust takes a row of scores through the steps from q·k to what softmax takes, two vectors at a time.
func adjust() {
	constData(tanhConstants)
	index := GLOBL("index_"+isa.name, RODATA|NOPTR)
	for i := range pageLen {
		DATA(4*i, U32(i))
	}
	function("adjust", "func(s, kScale *float32, scale, softcap float32, slope *float32, distance int32, bias *float32, mask *byte, visible *uint64)",
		"makes scores of a row of q·k, and hides what mask and bias hide.")
	S, ks, slopes, biases, masks, vis := reg.RDI, reg.RSI, reg.RDX, reg.RCX, reg.R8, reg.R9
	indices, at, hidden, u, capBits := reg.R10, reg.R11, reg.R12, reg.RAX, reg.RBX
	Load(Param("s"), S)
	Load(Param("kScale"), ks)
	Load(Param("slope"), slopes)
	Load(Param("bias"), biases)
	Load(Param("mask"), masks)
	Load(Param("visible"), vis)
	LEAQ(index, indices)
	r := isa.reg
	// Of each of the two vectors: x, and room for tanh.
	x, a, big, t, p := r[0:2], r[2:4], r[4:6], r[6:8], r[8:10]
	scale, cap, slope, distance := r[12], r[13], r[14], r[15]
	param := func(name string) Mem {
		m, err := Param(name).Resolve()
		if err != nil {
			panic(err)
		}
		return m.Addr
	}
	VBROADCASTSS(param("scale"), scale)
	VBROADCASTSS(param("softcap"), cap)
	MOVL(param("distance"), u.As32())
	VMOVD(u.As32(), reg.X15)
	VPBROADCASTD(reg.X15, distance)
	MOVL(param("softcap"), capBits.As32())
	ADDL(capBits.As32(), capBits.As32())
	noSlope := label("noslope")
	TESTQ(slopes, slopes)
	JZ(LabelRef(noSlope))
	VBROADCASTSS(Mem{Base: slopes}, slope)
	Label(noSlope)
	c := memConsts()
	each := func(f func(i int)) { f(0); f(1) }
	step := func(base reg.Register, i int) Mem { return Mem{Base: base, Index: at, Scale: 1, Disp: 4 * isa.w * i} }
	XORQ(at, at)
	XORQ(hidden, hidden)
	loop := label("pair")
	Label(loop)
	each(func(i int) { VMOVUPS(step(S, i), x[i]) })

	skip := label("unscaled")
	TESTQ(ks, ks)
	JZ(LabelRef(skip))
	each(func(i int) { VMULPS(step(ks, i), x[i], x[i]) })
	Label(skip)
	each(func(i int) { VMULPS(scale, x[i], x[i]) })

	skip = label("uncapped")
	TESTL(capBits.As32(), capBits.As32())
	JZ(LabelRef(skip))
	each(func(i int) { VDIVPS(cap, x[i], x[i]) })
	tanh(c, x, a, big, t, p, r[10:12])
	each(func(i int) { VMULPS(cap, x[i], x[i]) })
	Label(skip)

	skip = label("level")
	TESTQ(slopes, slopes)
	JZ(LabelRef(skip))
	each(func(i int) { VPSUBD(step(indices, i), distance, t[i]) })
	each(func(i int) { VPABSD(t[i], t[i]) })
	each(func(i int) { VCVTDQ2PS(t[i], t[i]) })
	each(func(i int) { VFNMADD231PS(t[i], slope, x[i]) })
	Label(skip)

	skip = label("unbiased")
	TESTQ(biases, biases)
	JZ(LabelRef(skip))
	each(func(i int) { VMOVUPS(step(biases, i), t[i]) })
	each(func(i int) { VADDPS(t[i], x[i], x[i]) })
	each(func(i int) {
		if wide() {
			VCMPPS(U8(0), c["negInf"], t[i], reg.K1)
			KMOVW(reg.K1, u.As32())
		} else {
			VCMPPS(U8(0), c["negInf"], t[i], t[i])
			VMOVMSKPS(t[i], u.As32())
		}
		// The bits of the first vector end up lowest.
		SHRQ(U8(isa.w), hidden)
		SHLQ(U8(64-isa.w), u)
		ORQ(u, hidden)
	})
	Label(skip)

	each(func(i int) { VMOVUPS(x[i], step(S, i)) })
	ADDQ(U8(2*4*isa.w), at)
	CMPQ(at, U32(4*pageLen))
	JLT(LabelRef(loop))

	skip = label("unmasked")
	TESTQ(masks, masks)
	JZ(LabelRef(skip))
	VPXOR(reg.Y0, reg.Y0, reg.Y0)
	VPCMPEQB(Mem{Base: masks}, reg.Y0, reg.Y1)
	VPCMPEQB(Mem{Base: masks, Disp: 32}, reg.Y0, reg.Y2)
	VPMOVMSKB(reg.Y1, u.As32())
	ORQ(u, hidden)
	VPMOVMSKB(reg.Y2, u.As32())
	SHLQ(U8(32), u)
	ORQ(u, hidden)
	Label(skip)
	NOTQ(hidden)
	ANDQ(hidden, Mem{Base: vis})
	end()
}

// tanh writes tanh over x, with room a, big, t, p and keep.
func tanh(c expConsts, x, a, big, t, p, keep []reg.Register) {
	each := func(f func(i int)) {
		for i := range x {
			f(i)
		}
	}
	each(func(i int) { VANDPS(c["absolute"], x[i], a[i]) })
	// By exp(−2a), where a is not small. Below expMin it is 0.
	each(func(i int) { VMULPS(c["minus2"], a[i], big[i]) })
	if wide() {
		each(func(i int) { VCMPPS(U8(5), c["expMin"], big[i], kmask[i]) })
	} else {
		each(func(i int) { VCMPPS(U8(5), c["expMin"], big[i], keep[i]) })
	}
	exponentials(c, big, t, p)
	if wide() {
		each(func(i int) { VMOVAPS_Z(p[i], kmask[i], p[i]) })
	} else {
		each(func(i int) { VANDPS(keep[i], p[i], p[i]) })
	}
	each(func(i int) { VADDPS(p[i], p[i], big[i]) })
	each(func(i int) { VADDPS(c["one"], p[i], t[i]) })
	each(func(i int) { VDIVPS(t[i], big[i], big[i]) })
	each(func(i int) { VMOVUPS(c["one"], t[i]) })
	each(func(i int) { VSUBPS(big[i], t[i], big[i]) })
	// By a polynomial, where it is.
	z := t
	each(func(i int) { VMULPS(a[i], a[i], z[i]) })
	each(func(i int) { VMOVUPS(c["tanh11"], p[i]) })
	for _, k := range []string{"tanh9", "tanh7", "tanh5", "tanh3"} {
		each(func(i int) { VFMADD213PS(c[k], z[i], p[i]) })
	}
	each(func(i int) { VMULPS(a[i], z[i], z[i]) })
	each(func(i int) { VFMADD213PS(a[i], z[i], p[i]) })
	if wide() {
		each(func(i int) { VCMPPS(U8(1), c["tanhSmall"], a[i], kmask[i]) })
		each(func(i int) { VMOVAPS(p[i], kmask[i], big[i]) })
	} else {
		each(func(i int) { VCMPPS(U8(1), c["tanhSmall"], a[i], keep[i]) })
		each(func(i int) { VBLENDVPS(keep[i], p[i], big[i], big[i]) })
	}
	each(func(i int) { VANDPS(c["sign"], x[i], x[i]) })
	each(func(i int) { VORPS(big[i], x[i], x[i]) })
}

// kmask are mask registers, one for each of two vectors.
var kmask = []reg.Register{reg.K1, reg.K2}
