package main

// seenLanes sets masks to ones in the lanes of two vectors, first and first+1 of a row, that are visible by its bits, which it
// shifts. seen and lane hold what it needs from one call to the next, ascending.
func seenLanes(masks []v, first int, bits r, positions, seen, lane v) {
	for i, mask := range masks {
		if (first+i)%8 == 0 { // the bits of eight vectors
			op("VDUP %v, %s", bits, seen.s4())
			op("LSR $32, %v, %v", bits, bits)
			move(lane, positions)
		} else {
			op("VSHL $4, %s, %s", lane.s4(), lane.s4())
		}
		op("VCMTST %s, %s, %s", lane.s4(), seen.s4(), mask.s4())
	}
}

// lanePositions sets a register to the bits of its lanes, 1 to 8; x is free.
func lanePositions(positions v, x r) {
	op("MOVD $0x0000000200000001, %v", x)
	op("VMOV %v, V%d.D[0]", x, int(positions))
	op("MOVD $0x0000000800000004, %v", x)
	op("VMOV %v, V%d.D[1]", x, int(positions))
}

func keep(x, mask v) { op("VAND %s, %s, %s", mask.b16(), x.b16(), x.b16()) }

// weigh: s = exp(s·scale − lse), dS = s·(dS − dots), two vectors at a time.
func weigh() {
	function("weigh", "s, dS *float32, scale float32, rows int, lse, dots *float32, visible *uint64", "bool", "is kernel.weigh.")
	const S, D, rows, lse, dots, vis, bits, y r = 0, 1, 2, 3, 4, 5, 6, 7
	load("s", S)
	load("dS", D)
	load("rows", rows)
	load("lse", lse)
	load("dots", dots)
	load("visible", vis)
	x, t, p, q, z, d, masks := vs(0, 2), vs(2, 2), vs(4, 2), vs(6, 2), vs(8, 2), vs(10, 2), vs(12, 2)
	const scale, rowLSE, rowDot, above, positions, seen, lane v = 16, 17, 18, 19, 20, 21, 22
	e := constants(26, bits)
	op("FMOVS %s, %s", param("scale"), scale.f())
	lanePositions(positions, bits)
	zero(above)
	each := func(f func(i int)) { f(0); f(1) }
	loop := label("row")
	at(loop)
	op("MOVD.P 8(%v), %v", vis, bits)
	op("FMOVS.P 4(%v), %s", lse, rowLSE.f())
	spread(rowLSE, rowLSE, 0)
	op("FMOVS.P 4(%v), %s", dots, rowDot.f())
	spread(rowDot, rowDot, 0)
	for first := 0; first < pageLen/lanes; first += 2 {
		loadPair(S, 4*lanes*first, x[0], x[1])
		seenLanes(masks, first, bits, positions, seen, lane)
		each(func(i int) { words(fmulLane(x[i], x[i], scale, 0)) })
		each(func(i int) {
			words(fcmgt(d[i], x[i], rowLSE))
			keep(d[i], masks[i])
			either(above, above, d[i])
		})
		each(func(i int) { words(fsub(x[i], x[i], rowLSE)) })
		e.write(x, t, p, q, z)
		loadPair(D, 4*lanes*first, d[0], d[1])
		each(func(i int) { words(fsub(d[i], d[i], rowDot)) })
		each(func(i int) { words(fmul(d[i], p[i], d[i])) })
		each(func(i int) { keep(p[i], masks[i]); keep(d[i], masks[i]) })
		storePair(p[0], p[1], S, 4*lanes*first)
		storePair(d[0], d[1], D, 4*lanes*first)
	}
	op("ADD $%d, %v, %v", 4*pageLen, S, S)
	op("ADD $%d, %v, %v", 4*pageLen, D, D)
	op("SUBS $1, %v, %v", rows, rows)
	op("BNE %s", loop)
	op("VMOV V%d.D[0], %v", int(above), bits)
	op("VMOV V%d.D[1], %v", int(above), y)
	op("ORR %v, %v, %v", bits, y, bits)
	op("CMP $0, %v", bits)
	op("CSET NE, %v", bits)
	op("MOVB %v, %s", bits, param("ret"))
	op("RET")
}

// soften: dS = dS·(1 − tanh²(raw·scale/softcap)), two vectors at a time.
func soften() {
	function("soften", "dS, raw *float32, scale, softcap float32, rows int, visible *uint64", "", "is kernel.soften.")
	const D, raw, rows, vis, bits r = 0, 1, 2, 3, 4
	load("dS", D)
	load("raw", raw)
	load("rows", rows)
	load("visible", vis)
	x, a, big, t, p, q, z := vs(0, 2), vs(2, 2), vs(4, 2), vs(6, 2), vs(8, 2), vs(10, 2), vs(12, 2)
	const scale, cap, small, sign, positions, seen, lane v = 14, 16, 17, 18, 19, 20, 21
	h := tanhTerms{odd: 23, even: 24, small: small, sign: sign}
	e := constants(26, bits)
	op("MOVD %s, %v", tanhAddress, bits)
	loadPair(bits, 0, h.odd, h.even)
	spread(h.small, h.even, 1)
	spread(h.sign, h.even, 3)
	op("FMOVS %s, %s", param("scale"), scale.f())
	op("FMOVS %s, %s", param("softcap"), cap.f())
	spread(cap, cap, 0)
	lanePositions(positions, bits)
	each := func(f func(i int)) { f(0); f(1) }
	loop := label("row")
	at(loop)
	op("MOVD.P 8(%v), %v", vis, bits)
	for first := 0; first < pageLen/lanes; first += 2 {
		loadPair(raw, 4*lanes*first, x[0], x[1])
		each(func(i int) { words(fmulLane(x[i], x[i], scale, 0)) })
		each(func(i int) { words(fdiv(x[i], x[i], cap)) })
		tanh(e, h, x, a, big, t, p, q, z)
		loadPair(D, 4*lanes*first, a[0], a[1])
		seenLanes(big, first, bits, positions, seen, lane)
		each(func(i int) { words(fmul(x[i], x[i], x[i])) })
		each(func(i int) { words(one(t[i])) })
		each(func(i int) { words(fsub(x[i], t[i], x[i])) })
		each(func(i int) { words(fmul(x[i], a[i], x[i])) })
		each(func(i int) { keep(x[i], big[i]) })
		storePair(x[0], x[1], D, 4*lanes*first)
	}
	op("ADD $%d, %v, %v", 4*pageLen, D, D)
	op("ADD $%d, %v, %v", 4*pageLen, raw, raw)
	op("SUBS $1, %v, %v", rows, rows)
	op("BNE %s", loop)
	op("RET")
}

// dots: the chains x·y over each row, of four rows at a time.
func dots() {
	function("dots", "d, x, y *float32, rows, n int", "", "is kernel.rowDots.")
	const d, X, Y, rows, n, stride, i r = 0, 1, 2, 3, 4, 5, 6
	xs, ys := []r{8, 9, 10, 11}, []r{12, 13, 14, 15}
	load("d", d)
	load("x", X)
	load("y", Y)
	load("rows", rows)
	load("n", n)
	op("LSL $2, %v, %v", n, stride)
	block := func(count int) {
		for row := range count {
			x, y := X, Y
			if row > 0 {
				x, y = xs[row-1], ys[row-1]
				op("ADD %v, %v, %v", stride, x, xs[row])
				op("ADD %v, %v, %v", stride, y, ys[row])
			} else {
				op("MOVD %v, %v", x, xs[row])
				op("MOVD %v, %v", y, ys[row])
			}
			zero(v(16 + row))
		}
		op("MOVD %v, %v", n, i)
		loop := label("element")
		at(loop)
		for row := range count {
			op("FMOVS.P 4(%v), %s", xs[row], v(row).f())
			op("FMOVS.P 4(%v), %s", ys[row], v(4+row).f())
		}
		for row := range count {
			sum := v(16 + row)
			op("FMADDS %s, %s, %s, %s", v(row).f(), sum.f(), v(4+row).f(), sum.f())
		}
		op("SUBS $1, %v, %v", i, i)
		op("BNE %s", loop)
		for row := range count {
			op("FMOVS.P %s, 4(%v)", v(16+row).f(), d)
		}
		// The last row's pointers have come to the next one.
		op("MOVD %v, %v", xs[count-1], X)
		op("MOVD %v, %v", ys[count-1], Y)
		op("SUB $%d, %v, %v", count, rows, rows)
	}
	fours, ones, done := label("fours"), label("ones"), label("done")
	at(fours)
	op("CMP $4, %v", rows)
	op("BLT %s", ones)
	block(4)
	op("B %s", fours)
	at(ones)
	op("CBZ %v, %s", rows, done)
	block(1)
	op("B %s", ones)
	at(done)
	op("RET")
}
