package attention

import (
	"context"
	"fmt"
	"math"
)

// block is some rows of a call, as many as read a page once it is widened, and one thread's room to work on them.
type block struct {
	*call
	thread   *Thread
	first, n int   // the block's rows [first, first+n)
	low, end []int // [n] what each row sees by its position: [low, end)
	lo, hi   int   // what any of them sees: [lo, hi)

	maxLow, minEnd int  // what all of them see: [maxLow, minEnd)
	allVisible     bool // the visible bits are those of a page that all of them see, none taken away

	k, v           []float32 // a page, widened: [head_dim][64] and [64][vStride]
	kScale, vScale [PageLen]float32
	s              []float32 // [n][64] scores, then weights
	o              []float32 // [v_dim] of one row and page
	split, row     parts     // [n]
	lse            []float32 // [n]

	// What only arithmetic in tiles uses: how many parts the rows' queries have, the parts of queries [n][head_dim] and of
	// weights, and what a matrix unit has instead of these.
	parts          int
	values         []float32 // [rows][stride] what a page adds
	qParts, wParts [tileParts][]float32
	matrix         matrix

	// What only a vector kernel uses, of each row in one page: the positions it sees, those of weight other than 0, m
	// and l, what is to be done, and the coefficients of the merge.
	visibleBits, nonzero []uint64
	pm, pl, a, b         []float32
	does                 []uint8
	partBias             [PageLen]float32
	partMask             [PageLen]byte
	ahead                asks // the argument of scores and accumulate
	lead                 bool // they prefetch what they are about to read
	way                  way
}

// enter takes up a call whose blocks have at most that many rows, and sees to it that there is room for them.
func (b *block) enter(t *Thread, c *call, rows int) {
	b.thread, b.call = t, c
	l := c.kv.Layout
	b.low, b.end = grow(b.low, rows), grow(b.end, rows)
	b.s, b.o = growAligned(b.s, rows*PageLen), growAligned(b.o, l.vDim)
	b.lse = growAligned(b.lse, padded(rows))
	b.split.grow(rows, l.vDim)
	b.row.grow(rows, l.vDim)
	if c.kernel.vector == nil {
		b.k, b.v = growAligned(b.k, l.headDim*PageLen), growAligned(b.v, PageLen*l.vStride())
		return
	}
	n := padded(rows)
	b.visibleBits, b.nonzero, b.does = grow(b.visibleBits, n), grow(b.nonzero, n), grow(b.does, n)
	b.pm, b.pl, b.a, b.b = growAligned(b.pm, n), growAligned(b.pl, n), growAligned(b.a, n), growAligned(b.b, n)
}

// grow returns n elements, those of x if it has room for them; what they hold means nothing.
func grow[E any](x []E, n int) []E {
	if cap(x) < n {
		return make([]E, n)
	}
	return x[:n]
}

// growAligned is grow for memory as aligned returns it.
func growAligned(x []float32, n int) []float32 {
	if cap(x) < n {
		return aligned(n)
	}
	return x[:n]
}

// begin takes up the rows [first, first+n).
func (b *block) begin(first, n int) {
	b.cover(first, n)
	if b.kernel.vector != nil {
		for r := range b.pm[n:padded(n)] {
			b.pm[n+r] = negInf
		}
	}
	if b.kv.Layout.arithmetic != Chain {
		b.splitQueries()
	}
}

// cover sets what the rows [first, first+n) see by their positions.
func (b *block) cover(first, n int) {
	b.first, b.n, b.lo, b.hi = first, n, math.MaxInt, 0
	b.maxLow, b.minEnd, b.allVisible = 0, math.MaxInt, false
	for r := range n {
		lo, hi := b.visible((first + r) / b.q.Heads)
		b.low[r], b.end[r] = lo, hi
		b.maxLow, b.minEnd = max(b.maxLow, lo), min(b.minEnd, hi)
		if lo < hi {
			b.lo, b.hi = min(b.lo, lo), max(b.hi, hi)
		}
	}
	b.lo = min(b.lo, b.hi)
	if b.kernel.vector != nil {
		b.way = b.goes()
	}
}

// allSplits brings the block from its first split to its finished contexts.
func (b *block) allSplits(ctx context.Context) error {
	part, total := b.split.of(0, b.n), b.row.of(0, b.n)
	if b.hi > b.lo && b.lo/splitLen == (b.hi-1)/splitLen {
		// The first split would be copied.
		if err := b.oneSplit(ctx, b.lo/splitLen, total); err != nil {
			return err
		}
		b.finish(total)
		return nil
	}
	total.clear()
	for s := b.lo / splitLen; s*splitLen < b.hi; s++ {
		if err := b.oneSplit(ctx, s, part); err != nil {
			return err
		}
		b.mergeAll(total, part)
	}
	b.finish(total)
	return nil
}

// oneSplit sets part [n] to what the block's rows see in split s.
func (b *block) oneSplit(ctx context.Context, s int, part parts) error {
	part.clear()
	for page := max(s*SplitPages, b.lo/PageLen); page < (s+1)*SplitPages && page*PageLen < b.hi; page++ {
		if err := ctx.Err(); err != nil {
			return err
		}
		if err := b.onePage(page, &part); err != nil {
			return err
		}
		b.thread.did(b.n*PageLen*(b.kv.Layout.headDim+b.kv.Layout.vDim), b.kernel)
	}
	return nil
}

func (b *block) onePage(page int, part *parts) error {
	base := page * PageLen
	// The rows [from, to) see something here; most often all of them.
	from, to := 0, b.n
	for from < to && !b.sees(from, base) {
		from++
	}
	for from < to && !b.sees(to-1, base) {
		to--
	}
	if from == to {
		return nil
	}
	if b.kernel.vector != nil {
		b.vectorPage(page, from, to, part)
		return nil
	}
	if err := b.load(page); err != nil {
		return err
	}
	l := b.kv.Layout
	s := b.s[:(to-from)*PageLen]
	b.products(s, from, to)
	for r := from; r < to; r++ {
		if !b.sees(r, base) {
			continue
		}
		row := (*[PageLen]float32)(s[(r-from)*PageLen:])
		lo, hi := max(b.low[r]-base, 0), min(b.end[r]-base, PageLen)
		b.scores(row, r, base, lo, hi)
		m, sum := b.kernel.softmax(row)
		if m == negInf {
			continue
		}
		if l.scaled() {
			for t := lo; t < hi; t++ {
				row[t] = float32(row[t] * b.vScale[t])
			}
		}
		if l.arithmetic == Chain {
			b.kernel.accumulate(b.o, row, b.v, l.vStride())
		} else {
			portableTileValues(b.o, row, b.v, l.vStride(), l.arithmetic.parts())
		}
		part.merge(b.kernel, r, m, sum, b.o)
	}
	return nil
}

// products sets s [rows][64] to q·k of rows [from, to), and the keys of the page that is loaded.
func (b *block) products(s []float32, from, to int) {
	dim := b.kv.Layout.headDim
	if b.kv.Layout.arithmetic == Chain {
		clear(s)
		b.kernel.scores(s, b.q.Q[(b.first+from)*dim:], b.k, to-from, dim, dim)
		return
	}
	var parts [tileParts][]float32
	for p, x := range b.qParts {
		parts[p] = x[from*dim:]
	}
	portableTileScores(s, parts[:b.parts], b.k, to-from, dim)
}

func (b *block) sees(r, base int) bool { return b.low[r] < base+PageLen && b.end[r] > base }

// load widens a page, of V only the positions that exist.
func (b *block) load(page int) error {
	l, bytes := b.kv.Layout, b.kv.Pages[page]
	n := min(b.kv.Len-page*PageLen, PageLen)
	if err := l.widenKeys(b.k, bytes); err != nil {
		return fmt.Errorf("read page %d: %w", page, err)
	}
	if err := l.widenValues(b.v[:n*l.vStride()], bytes, n); err != nil {
		return fmt.Errorf("read page %d: %w", page, err)
	}
	if l.scaled() {
		k, v := l.scales(bytes)
		readScales(b.kScale[:], k)
		readScales(b.vScale[:], v)
	}
	return nil
}

// scores makes of q·k the scores of row r in the page at base, of which it sees [lo, hi) by position: scale, softcap,
// ALiBi, bias and mask, in this order; −Inf is what it does not see.
func (b *block) scores(s *[PageLen]float32, r, base, lo, hi int) {
	token, head := (b.first+r)/b.q.Heads, (b.first+r)%b.q.Heads
	for t := range s[:lo] {
		s[t] = negInf
	}
	for t := range s[hi:] {
		s[hi+t] = negInf
	}
	seen := s[lo:hi]
	if b.kv.Layout.scaled() {
		for t, k := range b.kScale[lo:hi] {
			seen[t] = float32(seen[t] * k)
		}
	}
	for t := range seen {
		seen[t] = float32(seen[t] * b.opts.Scale)
	}
	if cap := b.opts.Softcap; cap != 0 {
		for t, x := range seen {
			seen[t] = float32(cap * tanh32(x/cap))
		}
	}
	if len(b.opts.AlibiSlopes) != 0 {
		slope := -b.opts.AlibiSlopes[b.q.FirstHead+head]
		d := b.q.Offset + int64(token) - int64(base+lo)
		for t, x := range seen {
			seen[t] = fma32(slope, float32(max(d, -d)), x)
			d--
		}
	}
	if b.q.BiasHeads != 0 {
		for t, b := range b.q.Bias[b.at(b.q.BiasHeads, head, token, b.kv.Len)+base+lo:][:len(seen)] {
			if b == negInf {
				seen[t] = negInf
			} else {
				seen[t] += b
			}
		}
	}
	if first := max(b.q.MaskFrom, base+lo); b.q.MaskHeads != 0 && first < base+hi {
		at := b.at(b.q.MaskHeads, head, token, b.kv.Len-b.q.MaskFrom) + first - b.q.MaskFrom
		seen = seen[first-base-lo:]
		for t, b := range b.q.Mask[at:][:len(seen)] {
			if b == 0 {
				seen[t] = negInf
			}
		}
	}
}

// at returns where the row of a mask or bias, of that many positions, begins.
func (b *block) at(heads, head, token, positions int) int {
	if heads == 1 {
		head = 0
	}
	return (head*b.q.Tokens + token) * positions
}

// seesAny says whether row r sees any of the positions [from, to): a row without a score tells by it whether its scores overflowed.
func (b *block) seesAny(r, from, to int) bool {
	token, head := (b.first+r)/b.q.Heads, (b.first+r)%b.q.Heads
	var bias []float32
	if b.q.BiasHeads != 0 {
		bias = b.q.Bias[b.at(b.q.BiasHeads, head, token, b.kv.Len):][:b.kv.Len]
	}
	var mask []byte
	if b.q.MaskHeads != 0 {
		n := b.kv.Len - b.q.MaskFrom
		mask = b.q.Mask[b.at(b.q.MaskHeads, head, token, n):][:n]
	}
	for t := max(b.low[r], from); t < min(b.end[r], to); t++ {
		hidden := bias != nil && bias[t] == negInf || mask != nil && t >= b.q.MaskFrom && mask[t-b.q.MaskFrom] == 0
		if !hidden {
			return true
		}
	}
	return false
}

// mergeAll brings the parts of the positions that follow into total.
func (b *block) mergeAll(total, next parts) {
	if v := b.kernel.vector; v != nil {
		v.mergeParts(total, next, b.a, b.b)
		return
	}
	total.mergeAll(b.kernel, next)
}

// finish brings the sinks into the rows' parts, and writes the block's contexts.
func (b *block) finish(total parts) {
	vDim := b.kv.Layout.vDim
	for r := range b.n {
		row := b.first + r
		token, head := row/b.q.Heads, b.q.FirstHead+row%b.q.Heads
		if total.m[r] == negInf && b.seesAny(r, 0, b.kv.Len) {
			b.fail(row, &RowError{Head: head, Token: token, Rule: overflows})
			continue
		}
		if rule := total.end(b.kernel, r, head, b.opts.Sinks, b.o, b.out.Context[row*vDim:][:vDim]); rule != "" {
			b.fail(row, &RowError{Head: head, Token: token, Rule: rule})
		}
	}
	total.logSums(b.kernel, b.lse)
	copy(b.out.LSE[b.first:][:b.n], b.lse)
}
