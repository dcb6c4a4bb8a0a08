package main

import "slices"

// tileRows is how many rows of queries the largest tile does, unroll how many dimensions or positions an inner loop does at
// a time: as many as a register holds numbers of a row.
const (
	tileRows = 6
	unroll   = lanes
)

// wide is how many vectors wide a tile of 1, 2, … rows is: enough chains for four FMA units, and no more registers than there
// are. Where the columns are not a multiple of that, narrower ones follow.
var wide = [tileRows]int{16, 8, 8, 4, 4, 4}

// A dtype is a storage type and its size in bytes.
type dtype struct {
	name string
	size int
}

var types = []dtype{{"f32", 4}, {"f16", 2}, {"bf16", 2}, {"i8", 1}}

// per is how many dimensions (in K) or positions (in V) share a word of memory: bf16 lies in pairs, of which the first is the
// lower half of a word and the second the upper one. All else has words of its own.
func (t dtype) per() int {
	if t.name == "bf16" {
		return 2
	}
	return 1
}

// tops are where the bytes of eight int8 go in two vectors: each to the top of a lane, with zeros below.
var tops = []uint32{
	0x00ffffff, 0x01ffffff, 0x02ffffff, 0x03ffffff,
	0x04ffffff, 0x05ffffff, 0x06ffffff, 0x07ffffff,
}

var topsAddress string

// widen loads eight elements at base + disp, which do not lie in pairs, into a and b.
func (t tile) widen(base r, disp int, a, b v) {
	switch t.dt.name {
	case "f32":
		loadPair(base, disp, a, b)
	case "f16":
		op("FMOVQ %d(%v), %s", disp, base, b.f())
		words(fcvtl(a, b), fcvtl2(b, b))
	case "i8":
		op("FMOVD %d(%v), %s", disp, base, b.f())
		if lower, upper, ok := t.tops(); ok {
			op("VTBL %s, [%s], %s", lower.b16(), b.b16(), a.b16())
			op("VTBL %s, [%s], %s", upper.b16(), b.b16(), b.b16())
			words(scvtf24(a, a), scvtf24(b, b))
			return
		}
		words(sxtlBytes(b, b), sxtl(a, b), sxtl2(b, b), scvtf(a, a), scvtf(b, b))
	}
}

// A tile is rows × cols chains in registers. After them come registers for numbers of each row, and then those that the
// columns go through, two at a time. The last two have tops, if the type needs them and there are as many; if elements lie in
// pairs, the last has the upper half of each lane.
type tile struct {
	dt         dtype
	rows, cols int
	// twice has two chains for each column: of even dimensions or positions, and of odd.
	twice bool
}

func (t tile) acc(row, c int) v { return v(row*t.cols + c) }

// chain is the chain that the first (0) or second of a pair adds to.
func (t tile) chain(half, row, c int) v {
	if t.twice {
		return v(2*(row*t.cols+c) + half)
	}
	return t.acc(row, c)
}

// chains is how many there are.
func (t tile) chains() int {
	if t.twice {
		return 2 * t.rows * t.cols
	}
	return t.rows * t.cols
}

func (t tile) numbers(row int) v { return v(t.chains() + row) }

// pair returns registers for the columns c and c + 1.
func (t tile) pair(c int) (a, b v) {
	first := t.numbers(t.rows) + v(c/2%t.pairs()*2)
	return first, first + 1
}

// pairs is how many pairs of registers the columns go through.
func (t tile) pairs() int {
	end := v(32)
	if lower, _, ok := t.tops(); ok {
		end = lower
	}
	if t.dt.per() == 2 {
		end = highHalf
	}
	return int(end-t.numbers(t.rows)) / 2
}

// highHalf is the register that has the upper half of each lane.
const highHalf v = 31

// tops returns the registers that hold tops, if the type needs them and there is room for a pair beside.
func (t tile) tops() (lower, upper v, ok bool) {
	return 30, 31, t.dt.name == "i8" && t.numbers(t.rows) <= 28
}

// begin sets up what widen needs; x is free.
func (t tile) begin(x r) {
	if lower, upper, ok := t.tops(); ok {
		op("MOVD %s, %v", topsAddress, x)
		loadPair(x, 0, lower, upper)
	}
	if t.dt.per() == 2 {
		op("MOVD $0xffff0000, %v", x)
		op("VDUP %v, %s", x, highHalf.s4())
	}
}

// each calls f for each pair of chains.
func (t tile) each(f func(row, c int)) {
	for row := range t.rows {
		for c := 0; c < t.cols; c += 2 {
			f(row, c)
		}
	}
}

func (t tile) zero() {
	t.each(func(row, c int) {
		zero(t.acc(row, c))
		zero(t.acc(row, c+1))
	})
}

// step adds to each chain the product of a row's number, in that lane, with its column's elements at base + disp.
func (t tile) step(lane int, base r, disp int) {
	for c := 0; c < t.cols; c += 2 {
		a, b := t.pair(c)
		t.widen(base, disp+c*lanes*t.dt.size, a, b)
		for row := range t.rows {
			words(fmlaLane(t.acc(row, c), a, t.numbers(row), lane), fmlaLane(t.acc(row, c+1), b, t.numbers(row), lane))
		}
	}
}

// steps is step for n dimensions or positions from an even one on, in the lanes from 0 on, whose elements are at(d). It calls
// after with each.
func (t tile) steps(n int, at func(d int) (base r, disp int), after func(d int)) {
	for d := 0; d < n; d++ {
		base, disp := at(d)
		switch {
		case t.dt.per() == 1:
			t.step(d, base, disp)
		case d+1 == n:
			t.half(d, 0, base, disp)
		case t.pairs() < 2:
			t.half(d, 0, base, disp)
			after(d)
			d++
			t.half(d, 1, base, disp)
		default:
			t.bothHalves(d, base, disp)
			after(d)
			d++
		}
		after(d)
	}
}

// half is step for the first (0) or second of the pairs at base + disp.
func (t tile) half(lane, which int, base r, disp int) {
	x := t.numbers(t.rows)
	for c := range t.cols {
		op("FMOVQ %d(%v), %s", disp+c*lanes*4, base, x.f())
		if which == 0 {
			lowerHalf(x, x)
		} else {
			upperHalf(x, x)
		}
		for row := range t.rows {
			words(fmlaLane(t.chain(which, row, c), x, t.numbers(row), lane))
		}
	}
}

// bothHalves is step for the firsts of the pairs in that lane and the seconds in the next.
func (t tile) bothHalves(lane int, base r, disp int) {
	for c := 0; c < t.cols; c += 2 {
		a, b := t.pair(2 * c)
		first, second := t.pair(2*c + 2)
		loadPair(base, disp+c*lanes*4, a, b)
		lowerHalf(first, a)
		lowerHalf(second, b)
		for row := range t.rows {
			words(fmlaLane(t.chain(0, row, c), first, t.numbers(row), lane), fmlaLane(t.chain(0, row, c+1), second, t.numbers(row), lane))
		}
		upperHalf(a, a)
		upperHalf(b, b)
		for row := range t.rows {
			words(fmlaLane(t.chain(1, row, c), a, t.numbers(row), lane+1), fmlaLane(t.chain(1, row, c+1), b, t.numbers(row), lane+1))
		}
	}
}

// lowerHalf and upperHalf widen the bf16 in that half of each lane.
func lowerHalf(dst, src v) { op("VSHL $16, %s, %s", src.s4(), dst.s4()) }
func upperHalf(dst, src v) { op("VAND %s, %s, %s", highHalf.b16(), src.b16(), dst.b16()) }

// bytes is what one step reads, rowBytes what the columns take in memory, of both halves where they lie in pairs.
func (t tile) bytes() int    { return t.cols * lanes * t.dt.size }
func (t tile) rowBytes() int { return t.bytes() * t.dt.per() }

// stream sets fetch to the address of what to ask memory for, or 0.
func stream(fetch r) {
	none := label("none")
	load("ahead", fetch)
	op("CBZ %v, %s", fetch, none)
	op("MOVD (%v), %v", fetch, fetch)
	at(none)
}

// ask asks memory, when dimension or position d of an unrolled loop is done, for its part of as many bytes as the loop reads.
func (t tile) ask(d int, from r) {
	lines := unroll * t.bytes() / 64
	for j := d * lines / unroll; j < (d+1)*lines/unroll; j++ {
		op("PRFM %d(%v), PLDL1KEEP", 64*j, from)
	}
	if d == unroll-1 {
		op("ADD $%d, %v, %v", unroll*t.bytes(), from, from)
	}
}

// tiles writes a loop over the rows in count: as few tiles as it takes, none of them small if there are others. Each calls
// body, which advances the pointers to the rows.
func tiles(count r, body func(rows int)) {
	loop, less, done := label("rows"), label("fewer"), label("done")
	var small [tileRows + 1]string
	for i := range small {
		small[i] = label("tile")
	}
	at(loop)
	op("CMP $%d, %v", tileRows+3, count)
	op("BLT %s", less)
	at(small[tileRows])
	body(tileRows)
	op("SUB $%d, %v, %v", tileRows, count, count)
	op("B %s", loop)
	at(less)
	for i := 1; i <= tileRows; i++ {
		op("CMP $%d, %v", i, count)
		op("BEQ %s", small[i])
	}
	// 7 and 8 are 4 and the rest.
	op("BGT %s", small[4])
	op("B %s", done)
	for i := 1; i < tileRows; i++ {
		at(small[i])
		body(i)
		op("SUB $%d, %v, %v", i, count, count)
		op("B %s", loop)
	}
	at(done)
}

// unrolled writes loops over the count in i: by unroll while asking for memory from fetch on, unless that is 0, by unroll, and
// as many at a time as lie in a word, and then, of a pair the first. steps writes n steps, and what follows each.
func (t dtype) unrolled(i, fetch r, steps func(n int, after func(d int)), ask func(d int)) {
	asking, short, plain, loop := label("asking"), label("short"), label("plain"), label("loop")
	some, done := label("some"), label("summed")
	op("CBZ %v, %s", fetch, plain)
	op("SUBS $%d, %v, %v", unroll, i, i)
	op("BLT %s", short)
	at(asking)
	steps(unroll, ask)
	op("SUBS $%d, %v, %v", unroll, i, i)
	op("BGE %s", asking)
	op("B %s", short)
	at(plain)
	op("SUBS $%d, %v, %v", unroll, i, i)
	op("BLT %s", short)
	at(loop)
	steps(unroll, func(int) {})
	op("SUBS $%d, %v, %v", unroll, i, i)
	op("BGE %s", loop)
	at(short)
	op("ADDS $%d, %v, %v", unroll, i, i)
	op("BEQ %s", done)
	at(some)
	if t.per() == 2 {
		one := label("one")
		op("TBZ $1, %v, %s", i, one)
		steps(2, func(int) {})
		op("TBZ $0, %v, %s", i, done)
		at(one)
		steps(1, func(int) {})
	} else {
		steps(1, func(int) {})
		op("SUBS $1, %v, %v", i, i)
		op("BNE %s", some)
	}
	at(done)
}

// moves load n numbers of a row.
var moves = map[int]string{1: "FMOVS", 2: "FMOVD", unroll: "FMOVQ"}

// scores: K [n][64] times the rows of q.
func scores(dt dtype) {
	function("scores_"+dt.name, "s, q *float32, k *byte, stride, n, rows, carry int, ahead *uintptr", "",
		"is kernel.scores for keys as "+dt.name+".")
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
		t := tile{dt: dt, rows: rows, cols: wide[rows-1]}
		again, carried, begin := label("block"), label("carried"), label("begin")
		t.begin(i)
		op("MOVD %v, %v", K, from)
		op("MOVD $%d, %v", pageLen/lanes/t.cols, block)
		at(again)
		op("CBNZ %v, %s", carry, carried)
		t.zero()
		op("B %s", begin)
		at(carried)
		t.each(func(row, c int) { loadPair(S, 4*(row*pageLen+c*lanes), t.acc(row, c), t.acc(row, c+1)) })
		at(begin)
		op("MOVD %v, %v", from, kp)
		op("MOVD %v, %v", Q, qp[0])
		for row := 1; row < rows; row++ {
			op("ADD %v, %v, %v", stride, qp[row-1], qp[row])
		}
		op("MOVD %v, %v", n, i)
		dt.unrolled(i, fetch, func(n int, after func(d int)) {
			for row := range rows {
				op("%s.P %d(%v), %s", moves[n], 4*n, qp[row], t.numbers(row).f())
			}
			t.steps(n, func(d int) (r, int) { return kp, d * pageLen * dt.size }, after)
			op("ADD $%d, %v, %v", n*pageLen*dt.size, kp, kp)
		}, func(d int) { t.ask(d, fetch) })
		t.each(func(row, c int) { storePair(t.acc(row, c), t.acc(row, c+1), S, 4*(row*pageLen+c*lanes)) })
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

// accumulate: weights [rows][64] times V, merged into o.
func accumulate(dt dtype) {
	function("accumulate_"+dt.name,
		"o, w *float32, v *byte, oStride, vStride, cols, rows int, mask uint64, a, b *float32, ahead *uintptr", "",
		"is kernel.accumulate for values as "+dt.name+".")
	const O, W, V, oStride, vStride, left, rows, fetch r = 22, 1, 2, 3, 4, 5, 6, 7
	const mask, i, vp, wp, op0, a, b r = 8, 9, 10, 11, 12, 13, 14
	// Of the positions, if they are neighbors: how many, or 0, and how far the first is into weights and values.
	const count, wFirst, vFirst r = 15, 19, 20
	const from, row0, x r = 21, 0, 23
	load("o", row0)
	load("w", W)
	load("v", V)
	load("oStride", oStride)
	load("vStride", vStride)
	load("rows", rows)
	load("mask", mask)
	load("a", a)
	load("b", b)
	stream(fetch)
	apart := label("apart")
	first := func(bits, dst r) {
		op("RBIT %v, %v", bits, dst)
		op("CLZ %v, %v", dst, dst)
	}
	first(mask, wFirst)
	op("LSR $%d, %v, %v", dt.per()-1, wFirst, vFirst)
	op("MUL %v, %v, %v", vStride, vFirst, vFirst)
	// To add the lowest bit leaves the one above a run, and nothing of the run.
	op("NEG %v, %v", mask, x)
	op("AND %v, %v, %v", mask, x, x)
	op("ADD %v, %v, %v", mask, x, x)
	op("MOVD ZR, %v", count)
	op("TST %v, %v", mask, x)
	op("BNE %s", apart)
	first(x, count)
	op("SUB %v, %v, %v", wFirst, count, count)
	at(apart)
	op("LSL $2, %v, %v", wFirst, wFirst)
	block := func(t tile) {
		t.begin(x)
		t.zero()
		weights := func(n int) {
			for row := range t.rows {
				op("%s %d(%v), %s", moves[n], 4*pageLen*row, wp, t.numbers(row).f())
			}
		}
		steps := func(n int, after func(d int)) {
			weights(n)
			t.steps(n, func(int) (r, int) { return vp, 0 }, func(p int) {
				if (p+1)%dt.per() == 0 {
					op("ADD %v, %v, %v", vStride, vp, vp)
				}
				after(p)
			})
			op("ADD $%d, %v, %v", 4*n, wp, wp)
		}
		sparse, merge, store, done := label("sparse"), label("merge"), label("store"), label("stored")
		op("MOVD %v, %v", mask, x)
		op("CBZ %v, %s", count, sparse)
		op("ADD %v, %v, %v", wFirst, W, wp)
		op("ADD %v, %v, %v", vFirst, from, vp)
		op("MOVD %v, %v", count, i)
		if dt.per() == 2 {
			even := label("even")
			op("TBZ $2, %v, %s", wFirst, even)
			weights(1)
			t.half(0, 1, vp, 0)
			op("ADD %v, %v, %v", vStride, vp, vp)
			op("ADD $4, %v, %v", wp, wp)
			op("SUBS $1, %v, %v", i, i)
			op("BEQ %s", merge)
			at(even)
		}
		dt.unrolled(i, fetch, steps, func(d int) { t.ask(d, fetch) })
		op("B %s", merge)
		at(sparse)
		first(x, vp)
		op("ADD %v<<2, %v, %v", vp, W, wp)
		if dt.per() == 2 {
			odd, one := label("odd"), label("one")
			op("MOVD %v, %v", vp, i)
			op("LSR $1, %v, %v", vp, vp)
			op("MADD %v, %v, %v, %v", vStride, from, vp, vp)
			weights(1)
			op("TBNZ $0, %v, %s", i, odd)
			t.half(0, 0, vp, 0)
			op("B %s", one)
			at(odd)
			t.half(0, 1, vp, 0)
			at(one)
		} else {
			op("MADD %v, %v, %v, %v", vStride, from, vp, vp)
			steps(1, func(int) {})
		}
		op("SUB $1, %v, %v", x, vp)
		op("ANDS %v, %v, %v", vp, x, x)
		op("BNE %s", sparse)
		at(merge)
		op("MOVD %v, %v", O, op0)
		rowsOf := func(do func(row, c int)) {
			for row := range t.rows {
				for c := 0; c < t.cols; c += 2 {
					do(row, c)
				}
				if row < t.rows-1 {
					op("ADD %v, %v, %v", oStride, op0, op0)
				}
			}
		}
		put := func(row, c int) { storePair(t.acc(row, c), t.acc(row, c+1), op0, 4*lanes*c) }
		op("CBZ %v, %s", a, store)
		free := t.numbers(0)
		pa, pb, o0, o1 := free, free+1, free+2, free+3
		rowsOf(func(row, c int) {
			if c == 0 {
				op("FMOVS %d(%v), %s", 4*row, a, pa.f())
				op("FMOVS %d(%v), %s", 4*row, b, pb.f())
			}
			loadPair(op0, 4*lanes*c, o0, o1)
			for j, o := range []v{o0, o1} {
				x := t.acc(row, c+j)
				words(fmulLane(x, x, pb, 0), fmlaLane(x, o, pa, 0))
			}
			put(row, c)
		})
		op("B %s", done)
		at(store)
		rowsOf(put)
		at(done)
		op("ADD $%d, %v, %v", 4*lanes*t.cols, O, O)
		op("ADD $%d, %v, %v", t.rowBytes(), from, from)
		op("SUB $%d, %v, %v", t.cols, left, left)
	}
	tiles(rows, func(rows int) {
		op("MOVD %v, %v", V, from)
		op("MOVD %v, %v", row0, O)
		load("cols", left)
		op("LSL $2, %v, %v", left, left)
		for _, width := range slices.Compact([]int{wide[rows-1], min(wide[rows-1], 8), 4}) {
			loop, less := label("columns"), label("less")
			at(loop)
			op("CMP $%d, %v", width, left)
			op("BLT %s", less)
			block(tile{dt: dt, rows: rows, cols: width})
			op("B %s", loop)
			at(less)
		}
		op("ADD $%d, %v, %v", rows*pageLen*4, W, W)
		for range rows {
			op("ADD %v, %v, %v", oStride, row0, row0)
		}
		more := label("more")
		op("CBZ %v, %s", a, more)
		op("ADD $%d, %v, %v", 4*rows, a, a)
		op("ADD $%d, %v, %v", 4*rows, b, b)
		at(more)
		op("MOVD ZR, %v", fetch)
	})
	op("RET")
}
