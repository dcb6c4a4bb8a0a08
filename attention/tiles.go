package attention

import (
	"math"
	"math/bits"
)

// bf16 rounds a finite x to bf16, nearest even.
func bf16(x float32) float32 {
	u := math.Float32bits(x)
	return math.Float32frombits((u + 0x7fff + u>>16&1) &^ 0xffff)
}

// What split found.
const (
	manyParts  = 1 << iota // some second part is not 0
	outOfRange             // some element is not below tooLarge
)

// split sets first, second and third, each as long as x, to the parts of each element: x1 = bf16(x), x2 = bf16(x − x1), and
// the rest, which is bf16 too. An element below leastSplit counts as +0, one that is not below tooLarge has no parts of use.
func split(first, second, third, x []float32) (found int) {
	first, second, third = first[:len(x)], second[:len(x)], third[:len(x)]
	for i, y := range x {
		a := math.Abs(float64(y))
		if !(a < tooLarge) {
			found |= outOfRange
		}
		if a < leastSplit {
			y = 0
		}
		first[i] = bf16(y)
		rest := y - first[i]
		second[i] = bf16(rest)
		third[i] = rest - second[i]
		if second[i] != 0 {
			found |= manyParts
		}
	}
	return found
}

// addTile adds to dst the sum of two chains over the rows of x [n][stride], n at most tileLen: one over the even rows and one
// over the odd, each begun at +0, a[i] times row i. It passes over rows whose a is 0, which change nothing: no chain ever is −0.
//
// Every product is exact, so that a chain of sums is one of fused multiply-adds, and each machine has one of the two.
func addTile(dst, a, x []float32, stride int) {
	var sums [2][MaxHeadDim]float32
	for i, w := range a {
		if w == 0 {
			continue
		}
		sum := sums[i%2][:len(dst)]
		for j, y := range x[i*stride:][:len(dst)] {
			sum[j] += float32(w * y)
		}
	}
	even, odd := sums[0][:len(dst)], sums[1][:len(dst)]
	for j := range dst {
		dst[j] += even[j] + odd[j]
	}
}

// portableTileScores sets s [rows][64] to q·k over head_dim in tiles: of each tile first the last part. The parts of q are
// [rows][dim] each, k is [dim][64].
func portableTileScores(s []float32, parts [][]float32, k []float32, rows, dim int) {
	clear(s)
	for r := range rows {
		for c := 0; c < dim; c += tileLen {
			for p := len(parts) - 1; p >= 0; p-- {
				addTile(s[r*PageLen:][:PageLen], parts[p][r*dim+c:][:min(tileLen, dim-c)], k[c*PageLen:], PageLen)
			}
		}
	}
}

// portableTileValues sets o to the sum of v [64][stride] weighed by w, in tiles, of so many parts.
func portableTileValues(o []float32, w *[PageLen]float32, v []float32, stride, parts int) {
	var all [tileParts][PageLen]float32
	split(all[0][:], all[1][:], all[2][:], w[:])
	clear(o)
	for t := 0; t < PageLen; t += tileLen {
		for p := parts - 1; p >= 0; p-- {
			addTile(o, all[p][t:][:tileLen], v[t*stride:], stride)
		}
	}
}

// splitQueries makes the parts of the block's queries, counts those that differ from 0, and says which of the queries can have
// none.
func (b *block) splitQueries() {
	l, found := b.kv.Layout, 0
	n := b.n * l.headDim
	q := b.q.Q[b.first*l.headDim:][:n]
	if v := b.kernel.vector; v.hasMatrix() {
		b.matrix.q.grow(tileParts, b.n, l.headDim)
		found = b.matrix.q.split(v, q, b.n, l.headDim)
	} else {
		for p := range b.qParts {
			b.qParts[p] = growAligned(b.qParts[p], n)
		}
		found = b.kernel.split(b.qParts[0], b.qParts[1], b.qParts[2], q)
	}
	b.parts = l.arithmetic.parts()
	if found&manyParts == 0 {
		b.parts = 1
	}
	if found&outOfRange == 0 {
		return
	}
	for r := range b.n {
		for _, x := range q[r*l.headDim:][:l.headDim] {
			if !(math.Abs(float64(x)) < tooLarge) {
				row := b.first + r
				b.fail(row, &RowError{Head: b.q.FirstHead + row%b.q.Heads, Token: row / b.q.Heads, Rule: "an element of the query is not below 2⁶³"})
				break
			}
		}
	}
}

// split is the function split, in assembly if the kernel is.
func (k *kernel) split(first, second, third, x []float32) (found int) {
	whole := 0
	if v := k.vector; v != nil {
		if whole = len(x) / vectorLen * vectorLen; whole > 0 {
			found = v.split(&first[0], &second[0], &third[0], &x[0], whole)
		}
	}
	return found | split(first[whole:], second[whole:], third[whole:], x[whole:])
}

// pairRows is how many rows the largest tile of tileScores and tileValues has, but for NEON, where they prefetch nothing.
const pairRows = 6

// vectorTileScores is portableTileScores for rows [from, to) of the block and keys as a page has them. Meanwhile it asks memory
// for what ahead says, if anything.
func (b *block) vectorTileScores(s []float32, page []byte, from, to int, ahead *uintptr) {
	v, dim, carry := b.kernel.vector, b.kv.Layout.headDim, 0
	for c := 0; c < dim; c += tileLen {
		n, ask := min(tileLen, dim-c), ahead
		for p := b.parts - 1; p >= 0; p-- {
			v.tileScores(&s[0], &b.qParts[p][from*dim+c], &page[c/2*PageLen*pairSize], 4*dim, n, to-from, carry, ask)
			carry, ask = 1, nil
		}
		b.goOn(n * PageLen * pairSize / 2)
	}
}

// goOn has what is asked for go on by what so many bytes of a tile asked for.
func (b *block) goOn(bytes int) {
	if b.kernel.vector.oneStream {
		b.ahead[0] += uintptr(bytes)
		return
	}
	streams := b.way.streams
	for i := range streams {
		b.ahead[i] += uintptr(bytes / streams)
	}
}

// mergeTileValues is vectorValues for the n rows from r on, which all do the same. No other weights than those of nonzero
// differ from 0, and at least one does; seen is what any of the rows sees. The weights of row from are the first.
func (b *block) mergeTileValues(page, r, n, from int, part *parts, nonzero, seen uint64, ahead *uintptr) {
	v, w, o := b.kernel.vector, b.s[(r-from)*PageLen:][:n*PageLen], part.o[r*part.stride:]
	if b.does[r] == merged {
		b.values = growAligned(b.values, n*part.stride)
		o = b.values
	}
	if v.hasMatrix() {
		b.matrixValues(o, w, part.stride, page, n, nonzero, seen, ahead)
	} else {
		b.tileValues(o, w, part.stride, page, n, nonzero, ahead)
	}
	if b.does[r] == merged {
		for i := range n {
			own := part.row(r + i)
			v.merge(&own[0], &b.values[i*part.stride], b.a[r+i], b.b[r+i], len(own))
		}
	}
}

// tileValues sets o [n][stride] to the sum of a page's values weighed by w [n][64].
func (b *block) tileValues(o, w []float32, stride, page, n int, nonzero uint64, ahead *uintptr) {
	v, l, carry := b.kernel.vector, b.kv.Layout, 0
	values, vStride := l.v(b.kv.Pages[page]), l.vRowStride()
	for p := range b.wParts {
		b.wParts[p] = growAligned(b.wParts[p], len(w))
	}
	b.kernel.split(b.wParts[0], b.wParts[1], b.wParts[2], w)
	for t := 0; t < PageLen; t += tileLen {
		lo, hi := hull(uint32(nonzero >> t))
		if lo == hi {
			continue
		}
		ask := ahead
		for p := l.arithmetic.parts() - 1; p >= 0; p-- {
			v.tileValues(&o[0], &b.wParts[p][t], &values[t/2*vStride], 4*stride, vStride, l.vStride()/vectorLen, n, lo, hi, carry, ask)
			carry, ask = 1, nil
		}
		b.goOn(tileLen / 2 * vStride)
	}
}

// hull returns the bits [lo, hi) between which all that are set lie; lo is hi if none is.
func hull(x uint32) (lo, hi int) {
	if x == 0 {
		return 0, 0
	}
	return bits.TrailingZeros32(x), 32 - bits.LeadingZeros32(x)
}
