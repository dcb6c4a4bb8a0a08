package attention

import (
	"unsafe"

	"headwater.example/attention/internal/amx"
	"headwater.example/tensor"
)

// These write assembly for all architectures, so they stand where none is left out.
//go:generate sh -c "cd _gen && go run . -isa avx512 -out ../vector_avx512_amd64.s -stubs ../vector_avx512_amd64.go -pkg attention"
//go:generate sh -c "cd _gen && go run . -isa zen4 -out ../vector_zen4_amd64.s -stubs ../vector_zen4_amd64.go -pkg attention"
//go:generate sh -c "cd _gen && go run . -isa avx2 -out ../vector_avx2_amd64.s -stubs ../vector_avx2_amd64.go -pkg attention"
//go:generate sh -c "cd _gen && go run ./arm64 -out ../vector_neon_arm64.s -stubs ../vector_neon_arm64.go"
//go:generate sh -c "cd _gen && go run ./amx -out ../internal/amx/multiply_amd64.s -stubs ../internal/amx/multiply_amd64.go"

// maxStreams bounds vector.streams.
const maxStreams = 4

// asks is what scores and accumulate are told of memory to prefetch: the streams' addresses, and what scoresFunc says.
type asks [maxStreams + 4]uintptr

// vectorLen is the elements that assembly reads and writes at once, at most: rows of parts, and their number, are padded
// to it.
const vectorLen = 16

// vector is a kernel in assembly. Pointers are to the first elements of what the comments name; strides are in bytes.
type vector struct {
	// streams is how many streams of memory scores and accumulate prefetch side by side, at most maxStreams, in the order of
	// storageIndex.
	streams [4]int
	// fewRows is, in the same order, up to how many rows of a block they prefetch in maxStreams streams all the same.
	fewRows [4]int
	// tileStreams is the same for arithmetic in tiles, if there it is another number than for bf16.
	tileStreams int
	// oneStream has all tiles prefetch one stream, into the first cache: what the processor does best.
	oneStream bool
	// tileRows is how many rows the largest tile has, in the order of storageIndex. It is only needed if all tiles prefetch.
	tileRows [4]int
	// leadRows is, in the same order, up to how many rows a page is read best if the first tile of rows prefetches what it is about
	// to read, as memory has it, and leaves it to the processor to see a stream in that; leadApart is the same where the next page
	// lies elsewhere. leadValues is how many rows accumulate then takes at once. 0 is for those that always prefetch another page.
	leadRows, leadApart [4]int
	leadValues          int
	// scales has scores prefetch the scales of the page.
	scales bool
	// scores and accumulate by storage type, in the order of storageIndex.
	scores     [4]scoresFunc
	accumulate [4]accumulateFunc
	// softmax is kernel.softmax for rows of s [rows][64], of which the bits of visible [rows] say what is seen: it first
	// multiplies s by kScale [64] (softmaxScaled only) and scale, and the weights at last by vScale [64]. nonzero [rows]
	// become bits such that all other weights are 0. Of a row that sees nothing it sets m to −Inf, l and nonzero to 0, and
	// its s means nothing. An m of 0 may have either sign, on which nothing depends.
	softmax, softmaxScaled func(s, kScale, vScale *float32, scale float32, rows int, visible *uint64, m, l *float32, nonzero *uint64)
	// project, unless it is nil, is scores of float32 for projections, which prefetches in maxStreams streams.
	project scoresFunc
	// adjust takes a row of s [64] from q·k to its scores: times kScale [64] unless nil, times scale, the soft cap unless
	// it is 0, ALiBi of slope unless nil at a distance from the page's first position, and bias [64] unless nil. It takes
	// from the bits of visible what mask [64], unless nil, and bias hide. A position that is not visible may hold anything.
	adjust func(s, kScale *float32, scale, softcap float32, slope *float32, distance int32, bias *float32, mask *byte, visible *uint64)
	// coefficients merges m and l [rows] of parts with the pm and pl of what follows, and sets a and b [rows] to what o
	// takes. All are padded to vectorLen; lanes where pm is −Inf keep m and l.
	coefficients func(m, l, pm, pl, a, b *float32, rows int)
	// merge is kernel.merge over n elements, a multiple of vectorLen.
	merge func(o, x *float32, a, b float32, n int)
	// divide is kernel.divide over n elements, a multiple of 8.
	divide func(dst, o *float32, l float32, n int) bool
	// logSums sets lse to m + log(l) for that many rows, all of them padded to vectorLen. It is nil if there is no such
	// routine.
	logSums func(lse, m, l *float32, rows int)
	// dots, weigh and soften are those of gradient_tile.go; they are nil if there are no such routines.
	dots   func(d, x, y *float32, rows, n int)
	weigh  func(s, dS *float32, scale float32, rows int, lse, dots *float32, visible *uint64) bool
	soften func(dS, raw *float32, scale, softcap float32, rows int, visible *uint64)
	// transpose writes 8 rows of n float32, n a multiple of 8, as 8 columns of dst [n][64].
	transpose func(dst, src *float32, stride, n int)
	// columns is transpose for elements of 1 and 2 bytes, by their size; n is a multiple of 16 bytes.
	columns [3]columnsFunc
	// column writes one row of n elements as a column of dst [n][64], by the size of an element.
	column [5]columnFunc
	// split, tileScores and tileValues are for arithmetic in tiles. split is the function split over n elements, a multiple of
	// vectorLen. tileScores is one part of one tile of kernel.scores: it adds to s, or with carry 0 sets it to, the two chains
	// over n dimensions. tileValues does so for o [rows][cols·16], weights w [rows][64] and the positions [lo, hi) of a tile,
	// of which no other is looked at. Both prefetch as scores does where all tiles of rows do, of up to pairRows rows.
	split      func(first, second, third, x *float32, n int) int
	tileScores func(s, q *float32, k *byte, stride, n, rows, carry int, ahead *uintptr)
	tileValues func(o, w *float32, v *byte, oStride, vStride, cols, rows, lo, hi, carry int, ahead *uintptr)
	// multiply, where there is a matrix unit, takes the place of these three: with splitHalves, which is the function of that
	// name over n elements, a multiple of vectorLen.
	multiply    func(p *amx.Product)
	splitHalves func(first, second, third *byte, x *float32, n int) int
	// weave writes two rows of n elements of 2 bytes, n a multiple of vectorLen, as pairs.
	weave func(dst, first, second *byte, n int)
	// unweave reads n pairs, n a multiple of vectorLen, as two rows; nil leaves it to Go.
	unweave func(first, second, src *byte, n int)
}

// hasMatrix says whether arithmetic in tiles has a matrix unit.
func (v *vector) hasMatrix() bool { return v != nil && v.multiply != nil }

type (
	columnsFunc = func(dst, src *byte, stride, n int)
	columnFunc  = func(dst, src *byte, n int)
	// scoresFunc is kernel.scores for rows of q that lie stride bytes apart; carry 0 begins the chains at +0 instead of
	// s. Meanwhile it prefetches as much memory as k has, in equal parts from each of the addresses ahead [streams] on,
	// unless ahead is nil: in the first tile of rows, or in all of them. In the first tile a second address of 0 says that there is one
	// stream alone, for the second cache. In the latter case ahead goes on: how many tiles
	// there are, how many bytes each stream skips after every 512 of them, and whether there is one stream alone, from the first
	// address, without skips, or, if the kernel has leadRows, whether the first tile prefetches what it is about to read instead.
	scoresFunc = func(s, q *float32, k *byte, stride, n, rows, carry int, ahead *uintptr)
	// accumulateFunc makes o' [rows][cols·16], the chains of rows of weights w [rows][64] over the positions in mask, at
	// least one, each begun at +0. It sets o to o', or to fma(o, a, o'·b) if a is not nil, a and b one of each row. It
	// prefetches as scores does, as much memory as v has.
	accumulateFunc = func(o, w *float32, v *byte, oStride, vStride, cols, rows int, mask uint64, a, b *float32, ahead *uintptr)
)

func storageIndex(dt tensor.DType) int {
	switch dt {
	case tensor.F16:
		return 1
	case tensor.BF16:
		return 2
	case tensor.I8:
		return 3
	}
	return 0
}

// unitScales are scales that change nothing.
var unitScales [PageLen]float32

// zeros are the values of a row, all 0.
var zeros [MaxHeadDim]float32

func init() {
	for i := range unitScales {
		unitScales[i] = 1
	}
}

// aligned returns n elements, more memory after them up to a full cache line, and none before it on theirs.
func aligned(n int) []float32 {
	const line = 64 / 4
	n = (n + line - 1) / line * line
	x := make([]float32, n+line)
	skip := 0
	if over := uintptr(unsafe.Pointer(unsafe.SliceData(x))) % 64; over != 0 {
		skip = int(64-over) / 4
	}
	return x[skip:][:n:n]
}

// padded returns n rounded up to vectorLen.
func padded(n int) int { return (n + vectorLen - 1) / vectorLen * vectorLen }

// span returns the bits [lo, hi) of a page.
func span(lo, hi int) uint64 { return ^uint64(0) << lo & (^uint64(0) >> (PageLen - hi)) }

// What a page does to a row.
const (
	passedOver = iota
	copied     // it is the first that has something
	merged
)

// vectorPage merges what rows [from, to) see of a page into part.
func (b *block) vectorPage(page, from, to int, part *parts) {
	v, l, bytes := b.kernel.vector, &b.kv.Layout, b.kv.Pages[page]
	base, rows, storage := page*PageLen, to-from, b.way.storage
	s := b.s[:rows*PageLen]
	most := v.tileRows[storage]
	if l.arithmetic != Chain {
		most = pairRows
	}
	b.lead = l.arithmetic == Chain && rows <= v.leadRows[storage] && (rows <= v.leadApart[storage] || b.goesOn(page))
	told := b.ahead[b.way.streams:]
	told[0] = 0
	if most > 0 {
		told[0], told[1], told[2] = uintptr((rows+most-1)/most), 0, 0
		if v.oneStream || b.lead {
			told[2] = 1
		}
		if v.scales && l.scaled() {
			told[3] = uintptr(unsafe.Pointer(&bytes[b.way.keys+b.way.values]))
		}
	}
	switch {
	case l.arithmetic == Chain:
		v.scores[storage](&s[0], &b.q.Q[(b.first+from)*l.headDim], &bytes[0], 4*l.headDim, l.headDim, rows, 0, b.askByKeys(page))
	case v.hasMatrix():
		b.matrixScores(s, bytes, from, to, b.askByKeys(page))
	default:
		b.vectorTileScores(s, bytes, from, to, b.askByKeys(page))
	}

	softmax, scale, kScale, vScale := v.softmax, b.opts.Scale, (*float32)(nil), (*float32)(nil)
	if l.scaled() {
		k, vs := l.scales(bytes)
		softmax, kScale, vScale = v.softmaxScaled, (*float32)(unsafe.Pointer(&k[0])), (*float32)(unsafe.Pointer(&vs[0]))
	}
	b.see(base, from, to)
	if !b.plain(base) {
		b.allVisible = false
		for r := from; r < to; r++ {
			if b.visibleBits[r] != 0 {
				b.adjust(&s[(r-from)*PageLen], kScale, r, base)
			}
		}
		scale = 1
		if kScale != nil {
			kScale = &unitScales[0]
		}
	}
	softmax(&s[0], kScale, vScale, scale, rows, &b.visibleBits[from], &b.pm[from], &b.pl[from], &b.nonzero[from])
	for r := from; r < to; r++ {
		switch {
		case b.pm[r] == negInf:
			b.does[r] = passedOver
		case part.m[r] == negInf:
			b.does[r] = copied
		default:
			b.does[r] = merged
		}
	}
	// Rows of the block that see nothing of the page keep their parts; those after the last are padding.
	for r := range b.pm[:from] {
		b.pm[r] = negInf
	}
	for r := range b.pm[to:b.n] {
		b.pm[to+r] = negInf
	}
	v.coefficients(&part.m[0], &part.l[0], &b.pm[0], &b.pl[0], &b.a[0], &b.b[0], b.n)
	b.vectorValues(page, from, to, part)
}

// vectorValues adds a page's values, weighed, to those of rows [from, to) that see it: what each of them does is in does.
func (b *block) vectorValues(page, from, to int, part *parts) {
	v, l, bytes, s := b.kernel.vector, &b.kv.Layout, b.kv.Pages[page], b.s[:(to-from)*PageLen]
	add, ahead := v.accumulate[b.way.storage], b.askByValues(page)
	values, vStride, cols := &bytes[b.way.keys], b.way.valueRow, b.way.columns
	for r := from; r < to; {
		// What some of the rows do not see weighs 0 there, which can change no more than the sign of a zero: v is finite
		// where anything is seen. A row with a NaN weighs all positions NaN, even those that do not exist.
		n, nonzero, seen := 0, uint64(0), uint64(0)
		for ; r+n < to && b.does[r+n] == b.does[r]; n++ {
			nonzero |= b.nonzero[r+n] & b.visibleBits[r+n]
			seen |= b.visibleBits[r+n]
		}
		switch o := part.row(r); {
		case b.does[r] == passedOver:
		case nonzero == 0: // the scales of the values are 0
			for i := range n {
				o = part.row(r + i)
				if b.does[r] == copied {
					clear(o)
				} else {
					v.merge(&o[0], &zeros[0], b.a[r+i], b.b[r+i], len(o))
				}
			}
		case l.arithmetic != Chain:
			b.mergeTileValues(page, r, n, from, part, nonzero, seen, ahead)
		default:
			var scaleO, scaleX *float32
			if b.lead {
				n = min(n, v.leadValues)
			}
			if b.does[r] == merged {
				scaleO, scaleX = &b.a[r], &b.b[r]
			}
			add(&o[0], &s[(r-from)*PageLen], values, 4*part.stride, vStride, cols, n, nonzero, scaleO, scaleX, ahead)
		}
		r += n
		ahead = nil
	}
}

// see sets the visible bits of rows [from, to) in the page at base.
func (b *block) see(base, from, to int) {
	all := base >= b.maxLow && base+PageLen <= b.minEnd
	if all && b.allVisible {
		return
	}
	b.allVisible = all
	for r := from; r < to; r++ {
		b.visibleBits[r] = 0
		if lo, hi := max(b.low[r]-base, 0), min(b.end[r]-base, PageLen); lo < hi {
			b.visibleBits[r] = span(lo, hi)
		}
	}
}

// adjust makes the scores s [64] of row r in the page at base, and takes what is hidden from its visible bits.
func (b *block) adjust(s, kScale *float32, r, base int) {
	token, head := (b.first+r)/b.q.Heads, (b.first+r)%b.q.Heads
	var slope, bias *float32
	var mask *byte
	distance := int32(0)
	if len(b.opts.AlibiSlopes) != 0 {
		// What the row sees is less than maxAlibiDistance away, so this fits.
		slope, distance = &b.opts.AlibiSlopes[b.q.FirstHead+head], int32(b.q.Offset+int64(token)-int64(base))
	}
	// Where there is less than a page of them, a copy is read that is as long.
	n := min(b.kv.Len-base, PageLen)
	if b.q.BiasHeads != 0 {
		row := b.q.Bias[b.at(b.q.BiasHeads, head, token, b.kv.Len)+base:][:n]
		if bias = &row[0]; n < PageLen {
			copy(b.partBias[:], row)
			bias = &b.partBias[0]
		}
	}
	if first := max(b.q.MaskFrom-base, 0); b.q.MaskHeads != 0 && first < n {
		at := b.at(b.q.MaskHeads, head, token, b.kv.Len-b.q.MaskFrom) + base + first - b.q.MaskFrom
		row := b.q.Mask[at:][:n-first]
		if mask = &row[0]; len(row) < PageLen {
			for t := range b.partMask[:first] {
				b.partMask[t] = 1
			}
			copy(b.partMask[first:], row)
			mask = &b.partMask[0]
		}
	}
	b.kernel.vector.adjust(s, kScale, b.opts.Scale, b.opts.Softcap, slope, distance, bias, mask, &b.visibleBits[r])
}

// plain says whether scores in the page at base only take scales and a range of positions.
func (c *call) plain(base int) bool {
	return c.opts.Softcap == 0 && len(c.opts.AlibiSlopes) == 0 && c.q.BiasHeads == 0 &&
		(c.q.MaskHeads == 0 || base+PageLen <= c.q.MaskFrom)
}

// writeKeys is the function writeKeys in assembly: 8 rows at a time, then one by one.
func (v *vector) writeKeys(k, rows []byte, stride, at, n, dim, size int) {
	block := 16 / size
	if size == 4 {
		block = 8
	}
	t, whole := 0, dim/block*block
	for ; t+8 <= n && whole > 0; t += 8 {
		dst, src := &k[(at+t)*size], &rows[t*stride]
		if size == 4 {
			v.transpose((*float32)(unsafe.Pointer(dst)), (*float32)(unsafe.Pointer(src)), stride, whole)
		} else {
			v.columns[size](dst, src, stride, whole)
		}
		for r := t; r < t+8 && whole < dim; r++ {
			v.column[size](&k[(whole*PageLen+at+r)*size], &rows[r*stride+whole*size], dim-whole)
		}
	}
	for ; t < n && dim > 0; t++ {
		v.column[size](&k[(at+t)*size], &rows[t*stride], dim)
	}
}

// mergeParts is parts.mergeAll in assembly.
func (v *vector) mergeParts(p, next parts, a, b []float32) {
	rows := len(p.m)
	// What coefficients overwrites.
	var first [vectorLen]bool
	for at := 0; at < rows; at += vectorLen {
		n := min(vectorLen, rows-at)
		for i := range n {
			first[i] = p.m[at+i] == negInf
		}
		for i := n; i < vectorLen; i++ {
			next.m[: at+vectorLen : at+vectorLen][at+i] = negInf
		}
		v.coefficients(&p.m[at], &p.l[at], &next.m[at], &next.l[at], &a[at], &b[at], n)
		for i := range n {
			own, o := p.row(at+i), next.row(at+i)
			switch {
			case next.m[at+i] == negInf:
			case first[i]:
				copy(own, o)
			default:
				v.merge(&own[0], &o[0], a[at+i], b[at+i], len(own))
			}
		}
	}
}

// farAhead is the fewest pages to go through at which all of the next one is asked for while a page is worked on: the
// streams are then further apart, and the memory gives more. Where there are fewer, what that leaves out of the first page
// counts for more: values are asked for while the keys of their page are read, and keys while the values before them are.
const farAhead = 8

// askByKeys returns what scores asks memory for while it goes through the keys of a page, nil if nothing.
func (b *block) askByKeys(page int) *uintptr {
	if b.lead {
		return &b.ahead[0]
	}
	if !b.way.far {
		return b.ask(b.kv.Pages[page][b.way.keys:], b.way.apartValues)
	}
	next := b.nextPage(page)
	if next == nil {
		return nil
	}
	return b.ask(next, b.way.apart)
}

// askByValues is askByKeys for accumulate and the values.
func (b *block) askByValues(page int) *uintptr {
	if b.lead {
		return &b.ahead[0]
	}
	next := b.nextPage(page)
	switch {
	case next == nil:
		return nil
	case b.way.far:
		return b.ask(next[b.way.apartKeys:], b.way.apart)
	}
	return b.ask(next, b.way.apartKeys)
}

// way is how a block goes through its pages, which is the same for all of them.
type way struct {
	storage           int // storageIndex
	keys, values      int // bytes of a page
	valueRow, columns int // of a row of values: its bytes, and its vectors
	// streams is how many streams of memory are prefetched side by side, and apart how many bytes lie between them: of a page, of its
	// keys, and of its values. Where it is far, all of the next page is prefetched, and else what comes next.
	streams, apart, apartKeys, apartValues int
	far                                    bool
}

// goes finds the way of the rows that the block has taken up.
func (b *block) goes() way {
	v, l := b.kernel.vector, b.kv.Layout
	w := way{storage: storageIndex(l.dt), keys: l.kBytes(), values: l.vBytes(), valueRow: l.vRowStride(), columns: l.vStride() / vectorLen}
	w.streams = b.streams()
	w.apart, w.apartKeys, w.apartValues = (w.keys+w.values)/w.streams, w.keys/w.streams, w.values/w.streams
	w.far = w.streams > 1 && !v.oneStream && b.hi-b.lo > farAhead*PageLen
	return w
}

// streams is how many streams the block's pages are prefetched in.
func (b *block) streams() int {
	v, storage := b.kernel.vector, storageIndex(b.kv.Layout.dt)
	switch {
	case b.kv.Layout.arithmetic != Chain && v.tileStreams > 0:
		return v.tileStreams
	case b.n <= v.fewRows[storage]:
		return maxStreams
	}
	return v.streams[storage]
}

// nextPage returns the page that the block comes to after that one, wherever it is, or nil.
func (b *block) nextPage(page int) []byte {
	if (page+1)*PageLen >= b.hi {
		return nil
	}
	return b.kv.Pages[page+1]
}

// goesOn says whether the page that the block comes to after that one, if there is one, follows it in memory.
func (b *block) goesOn(page int) bool {
	next := b.nextPage(page)
	return next == nil || uintptr(unsafe.Pointer(&next[0])) == uintptr(unsafe.Pointer(&b.kv.Pages[page][0]))+uintptr(b.kv.Layout.PageBytes())
}

// projects returns what scores of float32 projections take, and its streams.
func (v *vector) projects() (scores scoresFunc, streams int) {
	if v.project != nil {
		return v.project, maxStreams
	}
	const storage = 0 // of float32
	return v.scores[storage], v.streams[storage]
}

// ask returns where the streams begin, so many bytes apart.
func (b *block) ask(from []byte, apart int) *uintptr {
	for i := range b.way.streams {
		b.ahead[i] = uintptr(unsafe.Pointer(unsafe.SliceData(from))) + uintptr(i*apart)
	}
	return &b.ahead[0]
}

// assembled returns the kernel of that vector.
func assembled(name string, v *vector) kernel {
	k := portable
	k.name, k.vector, k.divide = name, v, v.divideAll
	return k
}

// divideAll is kernel.divide in assembly.
func (v *vector) divideAll(dst, o []float32, l float32) bool {
	whole := len(dst) &^ 7
	ok := true
	if whole > 0 {
		ok = v.divide(&dst[0], &o[0], l, whole)
	}
	return portableDivide(dst[whole:], o[whole:], l) && ok
}
