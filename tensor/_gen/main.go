// Command gen writes the conversions of package tensor in AVX2 and F16C. They are bound by memory, so one instruction set
// is enough.
package main

import (
	. "github.com/mmcloughlin/avo/build"
	. "github.com/mmcloughlin/avo/operand"
	"github.com/mmcloughlin/avo/reg"
)

func main() {
	narrow("F16", 0x477fefff, narrowF16)
	narrow("BF16", 0x7f7f7fff, narrowBF16)
	largest()
	quantize()
	Generate()
}

// lanes returns memory with bits in each of 8 lanes.
func lanes(name string, bits uint32) Mem {
	m := GLOBL(name, RODATA|NOPTR)
	for i := range 8 {
		DATA(4*i, U32(bits))
	}
	return m
}

func function(name, signature string, doc ...string) {
	TEXT(name, NOSPLIT, signature)
	Pragma("noescape")
	Doc(doc...)
}

var (
	dst, src, n = reg.RDI, reg.RSI, reg.RCX
	// Kept throughout: the bits of |x|, those of infinity, and where anything was past the largest.
	absolute, infinity, over = reg.Y15, reg.Y14, reg.Y13
)

// narrow writes 16 elements at a time. Finite elements whose absolute value has larger bits than those of most would
// become infinite.
func narrow(name string, most uint32, convert func()) {
	abs, inf, limit := lanes("absolute"+name, 0x7fffffff), lanes("infinity"+name, 0x7f800000), lanes("most"+name, most)
	prepare(name)
	function("narrow"+name, "func(dst *byte, src *float32, n int) (over bool)",
		"narrow"+name+" narrows n elements, a multiple of 16, as Narrow does, and says whether a finite one became infinite.")
	Load(Param("dst"), dst)
	Load(Param("src"), src)
	Load(Param("n"), n)
	VMOVUPS(abs, absolute)
	VMOVUPS(inf, infinity)
	VMOVUPS(limit, reg.Y12)
	VPXOR(over, over, over)
	Label("loop")
	CMPQ(n, U8(16))
	JLT(LabelRef("done"))
	for i, x := range []reg.Register{reg.Y0, reg.Y1} {
		a, t := []reg.Register{reg.Y2, reg.Y3}[i], []reg.Register{reg.Y4, reg.Y5}[i]
		VMOVUPS(Mem{Base: src, Disp: 32 * i}, x)
		VPAND(absolute, x, a)
		VPCMPGTD(reg.Y12, a, t)
		VPCMPGTD(a, infinity, reg.Y6)
		VPAND(reg.Y6, t, t)
		VPOR(t, over, over)
	}
	convert()
	VMOVDQU(reg.Y0, Mem{Base: dst})
	ADDQ(U8(64), src)
	ADDQ(U8(32), dst)
	SUBQ(U8(16), n)
	JMP(LabelRef("loop"))
	Label("done")
	VPTEST(over, over)
	SETNE(reg.AL)
	Store(reg.AL, ReturnIndex(0))
	VZEROUPPER()
	RET()
}

// The conversions take Y0 and Y1 to the halves of Y0.

func narrowF16() {
	const nearestEven = 0
	VCVTPS2PH(U8(nearestEven), reg.Y0, reg.X0)
	VCVTPS2PH(U8(nearestEven), reg.Y1, reg.X1)
	VINSERTI128(U8(1), reg.X1, reg.Y0, reg.Y0)
}

var one, almostHalf, quiet Mem

func prepare(name string) {
	if name == "BF16" {
		one, almostHalf, quiet = lanes("one", 1), lanes("almostHalf", 0x7fff), lanes("quiet", 0x400000)
	}
}

func narrowBF16() {
	for i, x := range []reg.Register{reg.Y0, reg.Y1} {
		a, nan := []reg.Register{reg.Y2, reg.Y3}[i], reg.Y6
		VPCMPGTD(infinity, a, nan)
		VPOR(quiet, x, reg.Y7) // what a NaN becomes
		VPSRLD(U8(16), x, a)
		VPAND(one, a, a)
		VPADDD(almostHalf, a, a)
		VPADDD(a, x, x)
		VBLENDVPS(nan, reg.Y7, x, x)
		VPSRLD(U8(16), x, x)
	}
	VPACKUSDW(reg.Y1, reg.Y0, reg.Y0)
	VPERMQ(U8(0xd8), reg.Y0, reg.Y0)
}

// largest: the maximum is the same in any order.
func largest() {
	abs := lanes("absoluteLargest", 0x7fffffff)
	function("largest", "func(src *float32, n int) float32", "largest returns the largest absolute value of n elements, a multiple of 16.")
	Load(Param("src"), src)
	Load(Param("n"), n)
	VMOVUPS(abs, absolute)
	VXORPS(reg.Y0, reg.Y0, reg.Y0)
	VXORPS(reg.Y1, reg.Y1, reg.Y1)
	Label("loop")
	CMPQ(n, U8(16))
	JLT(LabelRef("done"))
	for i, m := range []reg.Register{reg.Y0, reg.Y1} {
		VANDPS(Mem{Base: src, Disp: 32 * i}, absolute, reg.Y2)
		VMAXPS(reg.Y2, m, m)
	}
	ADDQ(U8(64), src)
	SUBQ(U8(16), n)
	JMP(LabelRef("loop"))
	Label("done")
	VMAXPS(reg.Y1, reg.Y0, reg.Y0)
	VEXTRACTF128(U8(1), reg.Y0, reg.X1)
	VMAXPS(reg.X1, reg.X0, reg.X0)
	VMOVHLPS(reg.X0, reg.X0, reg.X1)
	VMAXPS(reg.X1, reg.X0, reg.X0)
	VMOVSHDUP(reg.X0, reg.X1)
	VMAXSS(reg.X1, reg.X0, reg.X0)
	Store(reg.X0, ReturnIndex(0))
	VZEROUPPER()
	RET()
}

// quantize clamps before it rounds, which is the same for bounds that are integers.
func quantize() {
	most, least := lanes("most127", 0x42fe0000), lanes("least127", 0xc2fe0000)
	function("quantize", "func(dst *int8, src *float32, scale float32, n int)",
		"quantize sets n elements, a multiple of 16, to the integers next to src/scale, −127 to 127.")
	Load(Param("dst"), dst)
	Load(Param("src"), src)
	Load(Param("n"), n)
	scale, err := Param("scale").Resolve()
	if err != nil {
		panic(err)
	}
	VBROADCASTSS(scale.Addr, reg.Y15)
	VMOVUPS(most, reg.Y14)
	VMOVUPS(least, reg.Y13)
	Label("loop")
	CMPQ(n, U8(16))
	JLT(LabelRef("done"))
	for i, x := range []reg.Register{reg.Y0, reg.Y1} {
		VMOVUPS(Mem{Base: src, Disp: 32 * i}, x)
		VDIVPS(reg.Y15, x, x)
		VMINPS(reg.Y14, x, x)
		VMAXPS(reg.Y13, x, x)
		VCVTPS2DQ(x, x)
	}
	VPACKSSDW(reg.Y1, reg.Y0, reg.Y0)
	VPERMQ(U8(0xd8), reg.Y0, reg.Y0)
	VEXTRACTI128(U8(1), reg.Y0, reg.X1)
	VPACKSSWB(reg.X1, reg.X0, reg.X0)
	VMOVDQU(reg.X0, Mem{Base: dst})
	ADDQ(U8(64), src)
	ADDQ(U8(16), dst)
	SUBQ(U8(16), n)
	JMP(LabelRef("loop"))
	Label("done")
	VZEROUPPER()
	RET()
}
