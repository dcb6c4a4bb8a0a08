package main

import (
	. "github.com/mmcloughlin/avo/build"
	. "github.com/mmcloughlin/avo/operand"
	"github.com/mmcloughlin/avo/reg"
)

var xmm = []reg.Register{
	reg.X0, reg.X1, reg.X2, reg.X3, reg.X4, reg.X5, reg.X6, reg.X7, reg.X8, reg.X9, reg.X10, reg.X11, reg.X12, reg.X13,
	reg.X14, reg.X15,
}

// columns: 8 rows of elements of 1 or 2 bytes as 8 columns of [n][64], by 16 bytes of each row at a time. The same in both
// sets: it is bound by stores.
func columns(size int) {
	name, each := "columns1", "16"
	if size == 2 {
		name, each = "columns2", "8"
	}
	function(name, "func(dst, src *byte, stride, n int)",
		"writes 8 rows of n elements, n a multiple of "+each+" and the rows stride bytes apart, as 8 columns of dst [n][64].")
	dst, src, stride, n, s3, s5, s7 := reg.RDI, reg.RSI, reg.R8, reg.RCX, reg.RAX, reg.RBX, reg.RDX
	Load(Param("dst"), dst)
	Load(Param("src"), src)
	Load(Param("stride"), stride)
	Load(Param("n"), n)
	LEAQ(Mem{Base: stride, Index: stride, Scale: 2}, s3)
	LEAQ(Mem{Base: stride, Index: stride, Scale: 4}, s5)
	LEAQ(Mem{Base: s3, Index: stride, Scale: 4}, s7)
	loop, done := label("loop"), label("done")
	Label(loop)
	CMPQ(n, U8(16/size))
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
		VMOVDQU(m, xmm[i])
	}
	// Rows 0 and 1 element by element, 2 and 3, 4 and 5, 6 and 7; then by pairs 0 to 3 and 4 to 7; then all 8. Each step
	// takes the lower halves of two registers and the upper ones.
	step := func(from, to []reg.Register, pairs [][2]int, low, high func(y, x, dst reg.Register)) {
		for i, p := range pairs {
			low(from[p[1]], from[p[0]], to[2*i])
			high(from[p[1]], from[p[0]], to[2*i+1])
		}
	}
	type unpack = func(y, x, dst reg.Register)
	bytes := [2]unpack{func(y, x, d reg.Register) { VPUNPCKLBW(y, x, d) }, func(y, x, d reg.Register) { VPUNPCKHBW(y, x, d) }}
	words := [2]unpack{func(y, x, d reg.Register) { VPUNPCKLWD(y, x, d) }, func(y, x, d reg.Register) { VPUNPCKHWD(y, x, d) }}
	doubles := [2]unpack{func(y, x, d reg.Register) { VPUNPCKLDQ(y, x, d) }, func(y, x, d reg.Register) { VPUNPCKHDQ(y, x, d) }}
	quads := [2]unpack{func(y, x, d reg.Register) { VPUNPCKLQDQ(y, x, d) }, func(y, x, d reg.Register) { VPUNPCKHQDQ(y, x, d) }}
	by := [][2]unpack{words, doubles, quads}
	if size == 1 {
		by = [][2]unpack{bytes, words, doubles}
	}
	a, b := xmm[:8], xmm[8:]
	step(a, b, [][2]int{{0, 1}, {2, 3}, {4, 5}, {6, 7}}, by[0][0], by[0][1])
	// b: rows 0 and 1 low, high, rows 2 and 3 low, high, …
	step(b, a, [][2]int{{0, 2}, {1, 3}, {4, 6}, {5, 7}}, by[1][0], by[1][1])
	// a: rows 0 to 3 by quarters, rows 4 to 7 by quarters.
	step(a, b, [][2]int{{0, 4}, {1, 5}, {2, 6}, {3, 7}}, by[2][0], by[2][1])
	for i, x := range b {
		if size == 2 {
			VMOVDQU(x, Mem{Base: dst, Disp: 2 * pageLen * i})
		} else {
			VMOVQ(x, Mem{Base: dst, Disp: pageLen * 2 * i})
			VMOVHPS(x, Mem{Base: dst, Disp: pageLen * (2*i + 1)})
		}
	}
	ADDQ(U32(16*pageLen), dst)
	ADDQ(U8(16), src)
	SUBQ(U8(16/size), n)
	JMP(LabelRef(loop))
	Label(done)
	end()
}

// column: one row of elements as a column of [n][64].
func column(size int) {
	name := map[int]string{1: "column1", 2: "column2", 4: "column4"}[size]
	function(name, "func(dst, src *byte, n int)", "writes n elements as a column of dst [n][64].")
	dst, src, n := reg.RDI, reg.RSI, reg.RCX
	Load(Param("dst"), dst)
	Load(Param("src"), src)
	Load(Param("n"), n)
	tmp := []reg.GPPhysical{reg.RAX, reg.RBX, reg.RDX, reg.R8, reg.R9, reg.R10, reg.R11, reg.R12}
	move := func(count int) {
		for i, r := range tmp[:count] {
			m := Mem{Base: src, Disp: size * i}
			switch size {
			case 1:
				MOVBLZX(m, r.As32())
			case 2:
				MOVWLZX(m, r.As32())
			case 4:
				MOVL(m, r.As32())
			}
		}
		for i, r := range tmp[:count] {
			m := Mem{Base: dst, Disp: size * pageLen * i}
			switch size {
			case 1:
				MOVB(r.As8(), m)
			case 2:
				MOVW(r.As16(), m)
			case 4:
				MOVL(r.As32(), m)
			}
		}
		ADDQ(U32(count*size*pageLen), dst)
		ADDQ(U8(count*size), src)
	}
	// Every element has a line of its own, and stores wait for theirs in turn: without this the memory would bring one
	// after the other.
	fetch, fetched := label("fetch"), label("fetched")
	ahead, left := tmp[0], tmp[1]
	MOVQ(dst, ahead)
	MOVQ(n, left)
	Label(fetch)
	CMPQ(left, U8(8))
	JLT(LabelRef(fetched))
	for i := range 8 {
		PREFETCHT0(Mem{Base: ahead, Disp: size * pageLen * i})
	}
	ADDQ(U32(8*size*pageLen), ahead)
	SUBQ(U8(8), left)
	JMP(LabelRef(fetch))
	Label(fetched)
	eight, one, done := label("eight"), label("one"), label("done")
	Label(eight)
	CMPQ(n, U8(8))
	JLT(LabelRef(one))
	move(8)
	SUBQ(U8(8), n)
	JMP(LabelRef(eight))
	Label(one)
	CMPQ(n, U8(1))
	JLT(LabelRef(done))
	move(1)
	DECQ(n)
	JMP(LabelRef(one))
	Label(done)
	RET()
}

// weave: two rows of elements of 2 bytes as words, of which the first row is the lower half.
func weave() {
	function("weave", "func(dst, first, second *byte, n int)",
		"writes two rows of n elements of 2 bytes, n a multiple of 16, as pairs.")
	dst, first, second, n := reg.RDI, reg.RSI, reg.RBX, reg.RCX
	Load(Param("dst"), dst)
	Load(Param("first"), first)
	Load(Param("second"), second)
	Load(Param("n"), n)
	lower, upper := isa.reg[0], isa.reg[1]
	loop, done := label("loop"), label("done")
	Label(loop)
	SUBQ(U8(isa.w), n)
	JLT(LabelRef(done))
	VPMOVZXWD(Mem{Base: first}, lower)
	VPMOVZXWD(Mem{Base: second}, upper)
	VPSLLD(U8(16), upper, upper)
	if wide() {
		VPORD(upper, lower, lower)
	} else {
		VPOR(upper, lower, lower)
	}
	VMOVUPS(lower, Mem{Base: dst})
	ADDQ(U8(2*isa.w), first)
	ADDQ(U8(2*isa.w), second)
	ADDQ(U8(4*isa.w), dst)
	JMP(LabelRef(loop))
	Label(done)
	end()
}

// unweave: words as two rows of elements of 2 bytes, of which the first is the lower half.
func unweave() {
	function("unweave", "func(first, second, src *byte, n int)",
		"is the inverse of weave: it reads n pairs, n a multiple of 16, as two rows.")
	first, second, src, n := reg.RDI, reg.RSI, reg.RBX, reg.RCX
	Load(Param("first"), first)
	Load(Param("second"), second)
	Load(Param("src"), src)
	Load(Param("n"), n)
	loop, done := label("loop"), label("done")
	Label(loop)
	SUBQ(U8(16), n)
	JLT(LabelRef(done))
	if wide() {
		lower, upper := isa.reg[0], isa.reg[1]
		VMOVDQU32(Mem{Base: src}, lower)
		VPSRLD(U8(16), lower, upper)
		VPMOVDW(lower, Mem{Base: first})
		VPMOVDW(upper, Mem{Base: second})
	} else {
		lower, next, upper, nextUpper, zero := isa.reg[0], isa.reg[1], isa.reg[2], isa.reg[3], isa.reg[4]
		VMOVDQU(Mem{Base: src}, lower)
		VMOVDQU(Mem{Base: src, Disp: 32}, next)
		VPSRLD(U8(16), lower, upper)
		VPSRLD(U8(16), next, nextUpper)
		VPXOR(zero, zero, zero)
		VPBLENDW(U8(0x55), lower, zero, lower)
		VPBLENDW(U8(0x55), next, zero, next)
		// It packs half by half: quarters are then in the order 0, 2, 1, 3.
		VPACKUSDW(next, lower, lower)
		VPACKUSDW(nextUpper, upper, upper)
		VPERMQ(U8(0xd8), lower, lower)
		VPERMQ(U8(0xd8), upper, upper)
		VMOVDQU(lower, Mem{Base: first})
		VMOVDQU(upper, Mem{Base: second})
	}
	ADDQ(U8(64), src)
	ADDQ(U8(32), first)
	ADDQ(U8(32), second)
	JMP(LabelRef(loop))
	Label(done)
	end()
}
