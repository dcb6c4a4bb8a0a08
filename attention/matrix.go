package attention

import (
	"encoding/binary"
	"math"
	"unsafe"

	"headwater.example/attention/internal/amx"
)

// matrixRows is how many rows a block has for a matrix unit: what they need besides the page fits the first cache, and every tile
// of the page that is loaded is used for all of them.
const matrixRows = amx.MostRows

// matrix is what a block has for a matrix unit.
type matrix struct {
	product amx.Product
	q, w    halves    // queries, and weights in one page
	tile    []float32 // a tile of values without those that no row sees
}

// halves are the parts of rows in bf16.
type halves struct {
	words        []float32 // two elements in each
	stride, part int       // bytes from row to row, and from part to part
}

// grow makes room for so many parts of rows of n elements.
func (h *halves) grow(parts, rows, n int) {
	h.stride = (n + tileLen - 1) / tileLen * tileLen * 2
	h.part = rows * h.stride
	h.words = growAligned(h.words, parts*h.part/4)
}

// at returns where a row's first part begins.
func (h *halves) at(row int) *byte { return (*byte)(unsafe.Pointer(&h.words[row*h.stride/4])) }

// split sets the parts of rows x [rows][n], for which there is room.
func (h *halves) split(v *vector, x []float32, rows, n int) (found int) {
	if 2*n == h.stride {
		rows, n = 1, rows*n
	}
	all := unsafe.Slice(h.at(0), tileParts*h.part)
	for r := range rows {
		own, own2, own3 := all[r*h.stride:], all[h.part+r*h.stride:], all[2*h.part+r*h.stride:]
		row, whole := x[r*n:][:n], n/vectorLen*vectorLen
		if whole > 0 {
			found |= v.splitHalves(&own[0], &own2[0], &own3[0], &row[0], whole)
		}
		found |= splitHalves(own[2*whole:], own2[2*whole:], own3[2*whole:], row[whole:])
	}
	return found
}

// splitHalves is split for parts as bf16 has them, of which there are pairs: an odd element is followed by +0.
func splitHalves(first, second, third []byte, x []float32) (found int) {
	for ; len(x) > 0; x = x[min(len(x), 2):] {
		var one, two, three [2]float32
		n := min(len(x), 2)
		found |= split(one[:], two[:], three[:], x[:n])
		for i := range one {
			binary.LittleEndian.PutUint16(first[2*i:], uint16(math.Float32bits(one[i])>>16))
			binary.LittleEndian.PutUint16(second[2*i:], uint16(math.Float32bits(two[i])>>16))
			binary.LittleEndian.PutUint16(third[2*i:], uint16(math.Float32bits(three[i])>>16))
		}
		if n < 2 {
			break
		}
		first, second, third = first[4:], second[4:], third[4:]
	}
	return found
}

// matrixScores is vectorTileScores on a matrix unit. Meanwhile it asks memory for what ahead says, if anything.
func (b *block) matrixScores(s []float32, page []byte, from, to int, ahead *uintptr) {
	const stride = PageLen * pairSize
	dim, p, q := b.kv.Layout.headDim, &b.matrix.product, &b.matrix.q
	p.CStride, p.AStride, p.APart, p.Parts, p.Rows = 4*PageLen, q.stride, q.part, b.parts, to-from
	p.BStride, p.Columns = stride, PageLen/vectorLen
	b.askMatrix(ahead)
	whole := dim / tileLen
	if whole > 0 {
		p.C, p.A, p.B, p.Tiles, p.Pairs, p.Carry = &s[0], q.at(from), &page[0], whole, tileLen/2, false
		b.kernel.vector.multiply(p)
	}
	if rest := dim % tileLen; rest > 0 {
		p.C, p.A, p.B = &s[0], (*byte)(unsafe.Add(unsafe.Pointer(q.at(from)), whole*tileLen*2)), &page[whole*tileLen/2*stride]
		p.Tiles, p.Pairs, p.Carry = 1, (rest+1)/2, whole > 0
		b.kernel.vector.multiply(p)
	}
}

func (b *block) askMatrix(ahead *uintptr) {
	b.matrix.product.Ahead[0] = 0
	if ahead != nil {
		copy(b.matrix.product.Ahead[:], b.ahead[:b.way.streams])
	}
}

// matrixValues sets o [n][stride] to what a page adds to rows [r, r+n), whose weights are w [n][64]. All other weights than those
// of nonzero are 0; seen is what any of the rows sees.
func (b *block) matrixValues(o, w []float32, stride, page, n int, nonzero, seen uint64, ahead *uintptr) {
	l, p, weights := b.kv.Layout, &b.matrix.product, &b.matrix.w
	v, vStride := l.v(b.kv.Pages[page]), l.vRowStride()
	weights.grow(tileParts, n, PageLen)
	weights.split(b.kernel.vector, w, n, PageLen)
	p.CStride, p.AStride, p.APart, p.Parts, p.Rows = 4*stride, weights.stride, weights.part, l.arithmetic.parts(), n
	p.BStride, p.Columns, p.Pairs = vStride, l.vStride()/vectorLen, tileLen/2
	b.askMatrix(ahead)
	if seen == ^uint64(0) && uint32(nonzero) != 0 && nonzero>>tileLen != 0 {
		p.C, p.A, p.B, p.Tiles, p.Carry = &o[0], weights.at(0), &v[0], PageLen/tileLen, false
		b.kernel.vector.multiply(p)
		return
	}
	p.Tiles, p.Carry = 1, false
	for t := 0; t < PageLen; t += tileLen {
		if uint32(nonzero>>t) == 0 {
			continue
		}
		values := v[t/2*vStride:][:tileLen/2*vStride]
		if lo, hi := hull(uint32(seen >> t)); hi-lo < tileLen {
			values = b.seenValues(values, lo, hi)
		}
		p.C, p.A, p.B = &o[0], (*byte)(unsafe.Add(unsafe.Pointer(weights.at(0)), 2*t)), &values[0]
		b.kernel.vector.multiply(p)
		p.Carry = true
	}
}

// seenValues returns a tile of values with 0 for those outside of [lo, hi), which may be anything, even no numbers.
func (b *block) seenValues(tile []byte, lo, hi int) []byte {
	b.matrix.tile = growAligned(b.matrix.tile, len(tile)/4)
	own := unsafe.Slice((*byte)(unsafe.Pointer(&b.matrix.tile[0])), len(tile))
	stride := len(tile) / (tileLen / 2)
	clear(own[:(lo+1)/2*stride])
	copy(own[lo/2*stride:(hi+1)/2*stride], tile[lo/2*stride:])
	clear(own[(hi+1)/2*stride:])
	half := func(pair, which int) {
		for i := pair * stride; i < (pair+1)*stride; i += pairSize {
			binary.LittleEndian.PutUint16(own[i+2*which:], 0)
		}
	}
	if lo%2 != 0 {
		half(lo/2, 0)
	}
	if hi%2 != 0 {
		half(hi/2, 1)
	}
	return own
}
