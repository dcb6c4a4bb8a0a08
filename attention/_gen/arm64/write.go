package main

// rowPointers sets eight registers to rows that lie stride bytes apart.
func rowPointers(src, stride r, rows [8]r) {
	op("MOVD %v, %v", src, rows[0])
	for i := 1; i < len(rows); i++ {
		op("ADD %v, %v, %v", stride, rows[i-1], rows[i])
	}
}

var eightRows = [8]r{8, 9, 10, 11, 12, 13, 14, 15}

// interleave takes pairs of registers to their lanes by turns: of the lower halves in one register, of the upper ones in the
// next.
func interleave(from, to []v, lanes func(v) string, pairs [4][2]int) {
	for i, p := range pairs {
		for j, name := range []string{"VZIP1", "VZIP2"} {
			op("%s %s, %s, %s", name, lanes(from[p[1]]), lanes(from[p[0]]), lanes(to[2*i+j]))
		}
	}
}

// byColumns writes eight rows, 16 bytes of each in a, as columns into b: first rows 0 and 1, 2 and 3, 4 and 5, 6 and 7 lane by
// lane, then by pairs 0 to 3 and 4 to 7, then all eight.
func byColumns(a, b []v, lanes [3]func(v) string) {
	interleave(a, b, lanes[0], [4][2]int{{0, 1}, {2, 3}, {4, 5}, {6, 7}})
	interleave(b, a, lanes[1], [4][2]int{{0, 2}, {1, 3}, {4, 6}, {5, 7}})
	interleave(a, b, lanes[2], [4][2]int{{0, 4}, {1, 5}, {2, 6}, {3, 7}})
}

// transpose: 8 rows of n float32 into [n][64], by 4 of each row at a time.
func transpose() {
	function("transpose", "dst, src *float32, stride, n int", "",
		"writes 8 rows of n float32, n a multiple of 8 and the rows stride bytes apart, as 8 columns of dst [n][64].")
	const dst, src, stride, n r = 0, 1, 2, 3
	load("dst", dst)
	load("src", src)
	load("stride", stride)
	load("n", n)
	rowPointers(src, stride, eightRows)
	a, b := vs(0, 8), vs(8, 8)
	loop, done := label("loop"), label("done")
	at(loop)
	op("SUBS $4, %v, %v", n, n)
	op("BLT %s", done)
	for i, row := range eightRows {
		op("FMOVQ.P 16(%v), %s", row, a[i].f())
	}
	interleave(a, b, v.s4, [4][2]int{{0, 1}, {2, 3}, {4, 5}, {6, 7}})
	// b: rows 0 and 1 low, high, rows 2 and 3 low, high, …; a: column 0 of rows 0 to 3, column 1, …, then of rows 4 to 7.
	interleave(b, a, v.d2, [4][2]int{{0, 2}, {1, 3}, {4, 6}, {5, 7}})
	for i := range 4 {
		storePair(a[i], a[4+i], dst, 4*pageLen*i)
	}
	op("ADD $%d, %v, %v", 4*4*pageLen, dst, dst)
	op("B %s", loop)
	at(done)
	op("RET")
}

// columns: 8 rows of elements of 1 or 2 bytes as 8 columns of [n][64], by 16 bytes of each row at a time.
func columns(size int) {
	name, each, by := "columns1", "16", [3]func(v) string{v.b16, v.h8, v.s4}
	if size == 2 {
		name, each, by = "columns2", "8", [3]func(v) string{v.h8, v.s4, v.d2}
	}
	function(name, "dst, src *byte, stride, n int", "",
		"writes 8 rows of n elements, n a multiple of "+each+" and the rows stride bytes apart, as 8 columns of dst [n][64].")
	const dst, src, stride, n, line r = 0, 1, 2, 3, 4
	load("dst", dst)
	load("src", src)
	load("stride", stride)
	load("n", n)
	rowPointers(src, stride, eightRows)
	op("MOVD $%d, %v", pageLen, line)
	a, b := vs(0, 8), vs(8, 8)
	loop, done := label("loop"), label("done")
	at(loop)
	op("SUBS $%d, %v, %v", 16/size, n, n)
	op("BLT %s", done)
	for i, row := range eightRows {
		op("FMOVQ.P 16(%v), %s", row, a[i].f())
	}
	byColumns(a, b, by)
	for i, x := range b {
		if size == 2 {
			op("FMOVQ %s, %d(%v)", x.f(), 2*pageLen*i, dst)
			continue
		}
		for half := range 2 {
			op("VST1.P V%d.D[%d], (%v)(%v)", int(x), half, dst, line)
		}
	}
	if size == 2 {
		op("ADD $%d, %v, %v", 16*pageLen, dst, dst)
	}
	op("B %s", loop)
	at(done)
	op("RET")
}

// column: one row of elements as a column of [n][64].
func column(size int) {
	name := map[int]string{1: "column1", 2: "column2", 4: "column4"}[size]
	function(name, "dst, src *byte, n int", "", "writes n elements as a column of dst [n][64].")
	const dst, src, n, ahead, left r = 0, 1, 2, 3, 4
	load("dst", dst)
	load("src", src)
	load("n", n)
	get := map[int]string{1: "MOVBU", 2: "MOVHU", 4: "MOVWU"}[size]
	put := map[int]string{1: "MOVB", 2: "MOVH", 4: "MOVW"}[size]
	move := func(count int) {
		for i, x := range eightRows[:count] {
			op("%s %d(%v), %v", get, size*i, src, x)
		}
		for i, x := range eightRows[:count] {
			op("%s %v, %d(%v)", put, x, size*pageLen*i, dst)
		}
		op("ADD $%d, %v, %v", count*size*pageLen, dst, dst)
		op("ADD $%d, %v, %v", count*size, src, src)
	}
	// Every element has a line of its own, and stores wait for theirs in turn: without this the memory would bring one
	// after the other.
	fetch, fetched := label("fetch"), label("fetched")
	op("MOVD %v, %v", dst, ahead)
	op("MOVD %v, %v", n, left)
	at(fetch)
	op("SUBS $8, %v, %v", left, left)
	op("BLT %s", fetched)
	for i := range 8 {
		op("PRFM %d(%v), PSTL1KEEP", size*pageLen*i, ahead)
	}
	op("ADD $%d, %v, %v", 8*size*pageLen, ahead, ahead)
	op("B %s", fetch)
	at(fetched)
	eight, few, one, done := label("eight"), label("few"), label("one"), label("done")
	at(eight)
	op("SUBS $8, %v, %v", n, n)
	op("BLT %s", few)
	move(8)
	op("B %s", eight)
	at(few)
	op("ADD $8, %v, %v", n, n)
	at(one)
	op("CBZ %v, %s", n, done)
	move(1)
	op("SUB $1, %v, %v", n, n)
	op("B %s", one)
	at(done)
	op("RET")
}

// weave: two rows of elements of 2 bytes as words, of which the first row is the lower half.
func weave() {
	function("weave", "dst, first, second *byte, n int", "",
		"writes two rows of n elements of 2 bytes, n a multiple of 16, as pairs.")
	const dst, first, second, n r = 0, 1, 2, 3
	load("dst", dst)
	load("first", first)
	load("second", second)
	load("n", n)
	a, b := vs(0, 4), vs(4, 4)
	loop, done := label("loop"), label("done")
	at(loop)
	op("SUBS $16, %v, %v", n, n)
	op("BLT %s", done)
	for i := range 2 {
		op("FMOVQ.P 16(%v), %s", first, a[2*i].f())
		op("FMOVQ.P 16(%v), %s", second, a[2*i+1].f())
	}
	for i := range 2 {
		op("VZIP1 %s, %s, %s", a[2*i+1].h8(), a[2*i].h8(), b[2*i].h8())
		op("VZIP2 %s, %s, %s", a[2*i+1].h8(), a[2*i].h8(), b[2*i+1].h8())
		storePair(b[2*i], b[2*i+1], dst, 32*i)
	}
	op("ADD $64, %v, %v", dst, dst)
	op("B %s", loop)
	at(done)
	op("RET")
}
