package main

import "slices"

// twiceWide is wide for tiles with two chains a column.
var twiceWide = [tileRows]int{8, 4, 4, 2, 2, 2}

// bf16 is the storage type that has tiles.
var bf16 = types[2]

func (t tile) zeroChains() {
	for i := range t.chains() {
		zero(v(i))
	}
}

// sum adds both chains of each column into the first, and stores them at base + at: with carry 0, or added to what is there.
// next goes to the next row.
func (t tile) sum(carry, base r, where func(row, c int) int, next func()) {
	for row := range t.rows {
		for c := range t.cols {
			x := t.chain(0, row, c)
			words(fadd(x, x, t.chain(1, row, c)))
		}
	}
	first, done := label("first"), label("stored")
	a, b := t.numbers(0), t.numbers(0)+1
	each := func(add bool) {
		for row := range t.rows {
			for c := 0; c < t.cols; c += 2 {
				x, y := t.chain(0, row, c), t.chain(0, row, c+1)
				if add {
					loadPair(base, where(row, c), a, b)
					words(fadd(x, a, x), fadd(y, b, y))
				}
				storePair(x, y, base, where(row, c))
			}
			if row < t.rows-1 {
				next()
			}
		}
	}
	op("CBZ %v, %s", carry, first)
	each(true)
	op("B %s", done)
	at(first)
	each(false)
	at(done)
}

// tileScores: a tile of K [n][64] times the rows of a part of q.
func tileScores() {
	function("tileScores", "s, q *float32, k *byte, stride, n, rows, carry int, ahead *uintptr", "", "is one part of one tile of kernel.scores.")
	const S, Q, K, stride, n, rows, carry, fetch, kp, i, from, block r = 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11
	qp := [tileRows]r{12, 13, 14, 15, 19, 20}
	load("s", S)
	load("q", Q)
	load("k", K)
	load("stride", stride)
	load("n", n)
	load("rows", rows)
	load("carry", carry)
	stream(fetch)
	tiles(rows, func(rows int) {
		t := tile{dt: bf16, rows: rows, cols: twiceWide[rows-1], twice: true}
		again := label("block")
		t.begin(i)
		op("MOVD %v, %v", K, from)
		op("MOVD $%d, %v", pageLen/lanes/t.cols, block)
		at(again)
		t.zeroChains()
		op("MOVD %v, %v", from, kp)
		op("MOVD %v, %v", Q, qp[0])
		for row := 1; row < rows; row++ {
			op("ADD %v, %v, %v", stride, qp[row-1], qp[row])
		}
		op("MOVD %v, %v", n, i)
		bf16.unrolled(i, fetch, func(n int, after func(d int)) {
			for row := range rows {
				op("%s.P %d(%v), %s", moves[n], 4*n, qp[row], t.numbers(row).f())
			}
			t.steps(n, func(d int) (r, int) { return kp, d * pageLen * bf16.size }, after)
			op("ADD $%d, %v, %v", n*pageLen*bf16.size, kp, kp)
		}, func(d int) { t.ask(d, fetch) })
		t.sum(carry, S, func(row, c int) int { return 4 * (row*pageLen + c*lanes) }, func() {})
		op("ADD $%d, %v, %v", 4*lanes*t.cols, S, S)
		op("ADD $%d, %v, %v", t.rowBytes(), from, from)
		op("SUBS $1, %v, %v", block, block)
		op("BNE %s", again)
		if rows > 1 {
			op("ADD $%d, %v, %v", (rows-1)*pageLen*4, S, S)
		}
		for range rows {
			op("ADD %v, %v, %v", stride, Q, Q)
		}
		op("MOVD ZR, %v", fetch)
	})
	op("RET")
}

// tileValues: a part of weights [rows][64] times a tile of V.
func tileValues() {
	function("tileValues", "o, w *float32, v *byte, oStride, vStride, cols, rows, lo, hi, carry int, ahead *uintptr", "",
		"is one part of one tile of kernel.accumulate.")
	const O, W, V, oStride, vStride, left, rows, carry r = 22, 1, 2, 3, 4, 5, 6, 7
	const lo, hi, vp, wp, op0, i, first, fetch, from, row0 r = 8, 9, 10, 11, 12, 13, 14, 15, 21, 0
	load("o", row0)
	load("w", W)
	load("v", V)
	load("oStride", oStride)
	load("vStride", vStride)
	load("rows", rows)
	load("lo", lo)
	load("hi", hi)
	load("carry", carry)
	stream(fetch)
	op("LSR $1, %v, %v", lo, first)
	op("MUL %v, %v, %v", vStride, first, first)
	block := func(t tile) {
		t.begin(i)
		t.zeroChains()
		weights := func(n int) {
			for row := range t.rows {
				op("%s %d(%v), %s", moves[n], 4*pageLen*row, wp, t.numbers(row).f())
			}
		}
		even, merge := label("even"), label("merge")
		op("ADD %v, %v, %v", first, from, vp)
		op("ADD %v<<2, %v, %v", lo, W, wp)
		op("SUB %v, %v, %v", lo, hi, i)
		op("TBZ $0, %v, %s", lo, even)
		weights(1)
		t.half(0, 1, vp, 0)
		op("ADD %v, %v, %v", vStride, vp, vp)
		op("ADD $4, %v, %v", wp, wp)
		op("SUBS $1, %v, %v", i, i)
		op("BEQ %s", merge)
		at(even)
		bf16.unrolled(i, fetch, func(n int, after func(d int)) {
			weights(n)
			t.steps(n, func(int) (r, int) { return vp, 0 }, func(p int) {
				if p%2 != 0 {
					op("ADD %v, %v, %v", vStride, vp, vp)
				}
				after(p)
			})
			op("ADD $%d, %v, %v", 4*n, wp, wp)
		}, func(p int) { t.ask(p, fetch) })
		at(merge)
		op("MOVD %v, %v", O, op0)
		t.sum(carry, op0, func(_, c int) int { return 4 * lanes * c }, func() { op("ADD %v, %v, %v", oStride, op0, op0) })
		op("ADD $%d, %v, %v", 4*lanes*t.cols, O, O)
		op("ADD $%d, %v, %v", t.rowBytes(), from, from)
		op("SUB $%d, %v, %v", t.cols, left, left)
	}
	tiles(rows, func(rows int) {
		op("MOVD %v, %v", V, from)
		op("MOVD %v, %v", row0, O)
		load("cols", left)
		op("LSL $2, %v, %v", left, left)
		for _, width := range slices.Compact([]int{twiceWide[rows-1], min(twiceWide[rows-1], 4), 2}) {
			loop, less := label("columns"), label("less")
			at(loop)
			op("CMP $%d, %v", width, left)
			op("BLT %s", less)
			block(tile{dt: bf16, rows: rows, cols: width, twice: true})
			op("B %s", loop)
			at(less)
		}
		op("ADD $%d, %v, %v", rows*pageLen*4, W, W)
		for range rows {
			op("ADD %v, %v, %v", oStride, row0, row0)
		}
		op("MOVD ZR, %v", fetch)
	})
	op("RET")
}

// split: the parts of bf16 of x.
func split() {
	function("split", "first, second, third, x *float32, n int", "int", "is split over n elements, a multiple of 16.")
	const first, second, third, x, n, a, b r = 0, 1, 2, 3, 4, 5, 6
	load("first", first)
	load("second", second)
	load("third", third)
	load("x", x)
	load("n", n)
	const y, high, magnitude, most, some, least, upper, half, odd v = 0, 1, 2, 3, 4, 5, 6, 7, 16
	for _, c := range []struct {
		bits uint32
		to   v
	}{{f32(0x1p-40), least}, {0xffff0000, upper}, {0x7fff, half}, {1, odd}} {
		op("MOVD $0x%x, %v", c.bits, a)
		op("VDUP %v, %s", a, c.to.s4())
	}
	round := func(x, dst v) {
		op("VUSHR $16, %s, %s", x.s4(), dst.s4())
		op("VAND %s, %s, %s", odd.b16(), dst.b16(), dst.b16())
		op("VADD %s, %s, %s", half.s4(), dst.s4(), dst.s4())
		op("VADD %s, %s, %s", x.s4(), dst.s4(), dst.s4())
		op("VAND %s, %s, %s", upper.b16(), dst.b16(), dst.b16())
	}
	zero(most)
	zero(some)
	loop, done, inRange, end := label("loop"), label("done"), label("inRange"), label("end")
	at(loop)
	op("SUBS $4, %v, %v", n, n)
	op("BLT %s", done)
	op("FMOVQ.P 16(%v), %s", x, y.f())
	words(fabs(magnitude, y), fmax(most, most, magnitude), fcmgt(magnitude, least, magnitude), bic(y, y, magnitude))
	round(y, high)
	op("FMOVQ.P %s, 16(%v)", high.f(), first)
	words(fsub(y, y, high))
	round(y, high)
	op("FMOVQ.P %s, 16(%v)", high.f(), second)
	either(some, some, high)
	words(fsub(y, y, high))
	op("FMOVQ.P %s, 16(%v)", y.f(), third)
	op("B %s", loop)
	at(done)
	words(fmaxv(most, most))
	op("FMOVS %s, %v", most.f(), a)
	op("MOVD $0x%x, %v", f32(0x1p63), b)
	op("MOVD ZR, %v", n)
	op("CMPW %v, %v", b, a)
	op("BLO %s", inRange)
	op("MOVD $2, %v", n)
	at(inRange)
	op("VMOV V%d.D[0], %v", int(some), a)
	op("VMOV V%d.D[1], %v", int(some), b)
	op("ORR %v, %v, %v", b, a, a)
	op("CBZ %v, %s", a, end)
	op("ORR $1, %v, %v", n, n)
	at(end)
	op("MOVD %v, %s", n, param("ret"))
	op("RET")
}
