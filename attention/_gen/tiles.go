package main

import (
	"slices"

	. "github.com/mmcloughlin/avo/build"
	. "github.com/mmcloughlin/avo/operand"
	"github.com/mmcloughlin/avo/reg"
)

// pairColumns is how many vectors wide a tile of 1, 2, … rows of pairs of chains is.
func pairColumns() []int {
	if wide() {
		return []int{4, 4, 2, 2, 2, 2}
	}
	return []int{4, 2, 2, 1, 1, 1}
}

// widths are those of so many rows, and those that follow where the columns are not a multiple.
func widths(rows int) []int {
	all := []int{pairColumns()[rows-1]}
	for all[len(all)-1] > 1 {
		all = append(all, all[len(all)-1]/2)
	}
	return all
}

// zeroChains begins the chains at +0.
func (t tile) zeroChains() {
	for i := range t.chains() {
		zero(isa.reg[i])
	}
}

// sum adds each pair of chains into the first of them.
func (t tile) sum() {
	for r := range t.rows {
		for c := range t.cols {
			VADDPS(t.chain(1, r, c), t.chain(0, r, c), t.chain(0, r, c))
		}
	}
}

// bf16 is the storage type that has tiles.
var bf16 = types[2]

// tileScores: a tile of K [n][64] times the rows of a part of q.
func tileScores() {
	function("tileScores", "func(s, q *float32, k *byte, stride, n, rows, carry int, ahead *uintptr)", "is one part of one tile of kernel.scores.")
	S, Q, stride, rows := reg.RDI, reg.RSI, reg.R8, reg.R10
	kp, qp, qp3, i, from, block := reg.RAX, reg.RBX, reg.RCX, reg.R12, reg.R13, reg.R11
	Load(Param("s"), S)
	Load(Param("q"), Q)
	Load(Param("stride"), stride)
	Load(Param("rows"), rows)
	all := spread{table: reg.R14, ahead: reg.R15, line: reg.RDX, credit: reg.R9}
	all.begin()
	tiles(rows, len(pairColumns()), func(rows int) {
		Load(Param("k"), from)
		t := tile{rows: rows, cols: pairColumns()[rows-1], pairs: true}
		t.begin(bf16)
		MOVQ(U32(pageLen/isa.w/t.cols), block)
		again, store, end := label("block"), label("store"), label("stored")
		Label(again)
		t.zeroChains()
		MOVQ(from, kp)
		MOVQ(Q, qp)
		if rows > 3 {
			LEAQ(Mem{Base: stride, Index: stride, Scale: 2}, qp3)
			ADDQ(Q, qp3)
		}
		steps := func(n int, after func(d int)) {
			t.steps(
				bf16, n,
				func(d, r int) Mem {
					m := Mem{Base: qp, Disp: 4 * d}
					if r >= 3 {
						m.Base = qp3
					}
					if r%3 != 0 {
						m.Index, m.Scale = stride, uint8(r%3)
					}
					return m
				},
				func(d, c int) Mem { return Mem{Base: kp, Disp: (d/2*pageLen + c*isa.w) * bf16.word()} },
				after,
			)
			ADDQ(U32(n*pageLen*bf16.size), kp)
			ADDQ(U8(4*n), qp)
			if rows > 3 {
				ADDQ(U8(4*n), qp3)
			}
		}
		Load(Param("n"), i)
		all.loop(i, unroll*t.cols*isa.w*bf16.size, func(after func(int)) { steps(unroll, after) }, nil)
		bf16.last(i, store, func(n int) { steps(n, nothing) })
		Label(store)
		t.sum()
		s := func(r, c int) Mem { return Mem{Base: S, Disp: r*pageLen*4 + c*isa.w*4} }
		each := func(carry bool) {
			for r := range rows {
				for c := range t.cols {
					if carry {
						VADDPS(s(r, c), t.chain(0, r, c), t.chain(0, r, c))
					}
					VMOVUPS(t.chain(0, r, c), s(r, c))
				}
			}
		}
		first := label("first")
		load, _ := Param("carry").Resolve()
		CMPQ(load.Addr, U8(0))
		JEQ(LabelRef(first))
		each(true)
		JMP(LabelRef(end))
		Label(first)
		each(false)
		Label(end)
		ADDQ(U32(t.cols*isa.w*4), S)
		ADDQ(U32(t.cols*isa.w*bf16.word()), from)
		DECQ(block)
		JNZ(LabelRef(again))
		if rows > 1 {
			ADDQ(U32((rows-1)*pageLen*4), S)
		}
		IMUL3Q(U8(rows), stride, i)
		ADDQ(i, Q)
	})
	end()
}

// tileValues: a part of weights [rows][64] times a tile of V.
func tileValues() {
	function("tileValues", "func(o, w *float32, v *byte, oStride, vStride, cols, rows, lo, hi, carry int, ahead *uintptr)",
		"is one part of one tile of kernel.accumulate.")
	O, W, oStride, vStride, rows := reg.RDI, reg.RBX, reg.R8, reg.R9, reg.R10
	from, vp, wp, i, op, first, row := reg.RDX, reg.RSI, reg.R12, reg.R13, reg.RAX, reg.R11, reg.R15
	// op is free in the inner loops.
	all := spread{table: reg.R14, ahead: reg.RCX, line: op, credit: AllocLocal(8)}
	left := AllocLocal(8)
	Load(Param("o"), row)
	Load(Param("w"), W)
	Load(Param("oStride"), oStride)
	Load(Param("vStride"), vStride)
	Load(Param("rows"), rows)
	all.begin()
	// The tile's first pair of positions, from the beginning of V.
	Load(Param("lo"), first)
	SHRQ(U8(1), first)
	IMULQ(vStride, first)
	block := func(t tile) {
		t.begin(bf16)
		t.zeroChains()
		weights := func(p, r int) Mem { return Mem{Base: wp, Disp: 4 * (r*pageLen + p)} }
		values := func(p, c int) Mem {
			m := Mem{Base: vp, Disp: c * isa.w * bf16.word()}
			if p/2 > 0 {
				m.Index, m.Scale = vStride, 1
			}
			return m
		}
		steps := func(n int, after func(d int)) {
			t.steps(bf16, n, weights, values, after)
			LEAQ(Mem{Base: vp, Index: vStride, Scale: uint8(max(n/2, 1))}, vp)
			ADDQ(U8(4*n), wp)
		}
		even, store, done := label("even"), label("store"), label("stored")
		LEAQ(Mem{Base: from, Index: first, Scale: 1}, vp)
		Load(Param("lo"), op)
		LEAQ(Mem{Base: W, Index: op, Scale: 4}, wp)
		Load(Param("hi"), i)
		SUBQ(op, i)
		TESTQ(U32(1), op)
		JZ(LabelRef(even))
		t.step(bf16, 1, func(r int) Mem { return weights(0, r) }, func(c int) Mem { return values(0, c) })
		ADDQ(vStride, vp)
		ADDQ(U8(4), wp)
		DECQ(i)
		JZ(LabelRef(store))
		Label(even)
		all.loop(i, unroll*t.cols*isa.w*bf16.size, func(after func(int)) { steps(unroll, after) }, nil)
		bf16.last(i, store, func(n int) { steps(n, nothing) })
		Label(store)
		t.sum()
		each := func(carry bool) {
			MOVQ(O, op)
			for r := range t.rows {
				for c := range t.cols {
					o := Mem{Base: op, Disp: c * isa.w * 4}
					if carry {
						VADDPS(o, t.chain(0, r, c), t.chain(0, r, c))
					}
					VMOVUPS(t.chain(0, r, c), o)
				}
				if r < t.rows-1 {
					ADDQ(oStride, op)
				}
			}
		}
		begun := label("begun")
		load, _ := Param("carry").Resolve()
		CMPQ(load.Addr, U8(0))
		JNE(LabelRef(begun))
		each(false)
		JMP(LabelRef(done))
		Label(begun)
		each(true)
		Label(done)
		ADDQ(U32(t.cols*isa.w*4), O)
		ADDQ(U32(t.cols*isa.w*bf16.word()), from)
		SUBQ(U8(t.cols), left)
	}
	tiles(rows, len(pairColumns()), func(rows int) {
		Load(Param("v"), from)
		MOVQ(row, O)
		Load(Param("cols"), op)
		if !wide() {
			ADDQ(op, op)
		}
		MOVQ(op, left)
		for _, width := range slices.Compact(widths(rows)) {
			loop, less := label("columns"), label("less")
			Label(loop)
			CMPQ(left, U8(width))
			JLT(LabelRef(less))
			block(tile{rows: rows, cols: width, pairs: true})
			JMP(LabelRef(loop))
			Label(less)
		}
		ADDQ(U32(rows*pageLen*4), W)
		IMUL3Q(U8(rows), oStride, i)
		ADDQ(i, row)
	})
	end()
}

// split: the parts of bf16 of x, as binary32 or, if halves, as bf16.
func split(halves bool) {
	size := 4
	if halves {
		size = 2
		function("splitHalves", "func(first, second, third *byte, x *float32, n int) int", "is splitHalves over n elements, a multiple of 16.")
	} else {
		constData([]constant{{"magnitude", 0x7fffffff}, {"belowSplit", 0x2b7fffff}, {"upperHalves", 0xffff0000}, {"half", 0x7fff}, {"odd", 1}})
		function("split", "func(first, second, third, x *float32, n int) int", "is split over n elements, a multiple of 16.")
	}
	first, second, third, x, n := reg.RDI, reg.RSI, reg.RBX, reg.R8, reg.RCX
	Load(Param("first"), first)
	Load(Param("second"), second)
	Load(Param("third"), third)
	Load(Param("x"), x)
	Load(Param("n"), n)
	r := isa.reg
	magnitude, below, upper, half, odd := r[8], r[9], r[10], r[11], r[12]
	for _, c := range []struct {
		name string
		r    reg.Register
	}{{"magnitude", magnitude}, {"belowSplit", below}, {"upperHalves", upper}, {"half", half}, {"odd", odd}} {
		VMOVUPS(data[c.name], c.r)
	}
	most, some, y, high, a := r[0], r[1], r[2], r[3], r[4]
	and := func(m, x, dst reg.Register) {
		if wide() {
			VPANDD(m, x, dst)
		} else {
			VPAND(m, x, dst)
		}
	}
	round := func(x, dst reg.Register) {
		VPSRLD(U8(16), x, dst)
		and(odd, dst, dst)
		VPADDD(half, dst, dst)
		VPADDD(x, dst, dst)
		and(upper, dst, dst)
	}
	store := func(part reg.Register, to Mem) {
		half := r[5]
		switch {
		case !halves:
			VMOVUPS(part, to)
		case wide():
			VPSRLD(U8(16), part, half)
			VPMOVDW(half, to)
		default:
			VPSRLD(U8(16), part, half)
			VPACKUSDW(half, half, half)
			VPERMQ(U8(0b1000), half, half)
			VMOVUPS(reg.X5, to)
		}
	}
	zero(most)
	zero(some)
	loop, done := label("loop"), label("done")
	Label(loop)
	SUBQ(U8(isa.w), n)
	JLT(LabelRef(done))
	VMOVUPS(Mem{Base: x}, y)
	and(magnitude, y, a)
	VPMAXSD(a, most, most)
	if wide() {
		VPCMPD(U8(6), below, a, reg.K1)
		VMOVUPS_Z(y, reg.K1, y)
	} else {
		VPCMPGTD(below, a, a)
		VPAND(a, y, y)
	}
	round(y, high)
	store(high, Mem{Base: first})
	VSUBPS(high, y, y)
	round(y, high)
	store(high, Mem{Base: second})
	if wide() {
		VPORD(high, some, some)
	} else {
		VPOR(high, some, some)
	}
	VSUBPS(high, y, y)
	store(y, Mem{Base: third})
	for _, p := range []reg.GPPhysical{first, second, third} {
		ADDQ(U8(size*isa.w), p)
	}
	ADDQ(U8(4*isa.w), x)
	JMP(LabelRef(loop))
	Label(done)
	// The largest and the parts of both halves, and a bit for each of what was found.
	if wide() {
		VEXTRACTI64X4(U8(1), most, reg.Y2)
		VPMAXSD(reg.Y2, reg.Y0, reg.Y0)
		VEXTRACTI64X4(U8(1), some, reg.Y2)
		VPOR(reg.Y2, reg.Y1, reg.Y1)
	}
	found := reg.RAX
	XORQ(found, found)
	VPTEST(reg.Y1, reg.Y1)
	SETNE(reg.AL)
	VPBROADCASTD(belowLarge, reg.Y2)
	VPCMPGTD(reg.Y2, reg.Y0, reg.Y0)
	VPMOVMSKB(reg.Y0, reg.EDX)
	inRange := label("inRange")
	TESTL(reg.EDX, reg.EDX)
	JZ(LabelRef(inRange))
	ORQ(U8(2), found)
	Label(inRange)
	Store(found, ReturnIndex(0))
	end()
}
