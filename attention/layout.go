package attention

import (
	"encoding/binary"
	"fmt"
	"math"

	"headwater.example/tensor"
)

const (
	// PageLen is how many positions a page holds: page p is [64p, 64p+64).
	PageLen = 64
	// SplitPages is how many pages make a split, the unit that threads share out.
	SplitPages = 32
	// MaxHeadDim bounds head_dim of queries and keys, and that of values.
	MaxHeadDim = 512
)

// rowPad is to how many elements a page pads its rows of V.
const rowPad = 16

// Layout says where a page of one KV head keeps its keys and values, in the storage type, little endian:
//
//	K       [head_dim][64]                     transposed, so that neighboring positions are neighbors
//	V       [64][v_dim rounded up to 16]       rows; the padding takes part in no result
//	KScale  [64] f32, int8 only
//	VScale  [64] f32, int8 only
//
// bf16 lies in pairs, two elements of a key and two positions' values to a word of 32 bits, the first its lower half:
//
//	K       [head_dim/2 rounded up][64][2]     where head_dim is odd, the last upper halves are 0
//	V       [64/2][v_dim rounded up to 16][2]
//
// The upper half of such a word is a binary32 once the lower one is cleared, the lower half once it is shifted up, so that one
// instruction widens either.
//
// A position is written into the transposed K at once, though each of its elements lies on a line of its own. To keep the
// newest page's keys as they come, and transpose them for every attention, was measured (go test -bench Write): in 8,000
// pages of head_dim 128, as decoding 1,000 sequences of 8 groups goes through them, a position takes 0.8 to 1.0 µs, as it
// comes 0.1 µs, and to transpose half a page of them 1.0 to 2.0 µs. A step of decoding has one of each.
//
// Only NewLayout makes one that is valid. Layouts are comparable.
type Layout struct {
	dt            tensor.DType
	arithmetic    Arithmetic
	headDim, vDim int
}

// NewLayout returns the layout for a storage type, F32, F16, BF16 or I8, and the sizes of one key and one value.
func NewLayout(dt tensor.DType, headDim, vDim int) (Layout, error) {
	switch dt {
	case tensor.F32, tensor.F16, tensor.BF16, tensor.I8:
	default:
		return Layout{}, fmt.Errorf("keys and values can not be stored as %s", dt)
	}
	if headDim < 1 || headDim > MaxHeadDim {
		return Layout{}, fmt.Errorf("head_dim is %d, outside 1 to %d", headDim, MaxHeadDim)
	}
	if vDim < 1 || vDim > MaxHeadDim {
		return Layout{}, fmt.Errorf("v_dim is %d, outside 1 to %d", vDim, MaxHeadDim)
	}
	return Layout{dt: dt, headDim: headDim, vDim: vDim}, nil
}

// DType returns the storage type of keys and values.
func (l Layout) DType() tensor.DType { return l.dt }

// HeadDim returns the elements of one key.
func (l Layout) HeadDim() int { return l.headDim }

// VDim returns the elements of one value.
func (l Layout) VDim() int { return l.vDim }

// KRowBytes returns the bytes of one position's key, without its scale.
func (l Layout) KRowBytes() int { return l.headDim * l.dt.Size() }

// VRowBytes returns the bytes of one position's value, without its scale and padding.
func (l Layout) VRowBytes() int { return l.vDim * l.dt.Size() }

// PageBytes returns the size of a page, a multiple of 64.
func (l Layout) PageBytes() int {
	n := l.kBytes() + l.vBytes()
	if l.scaled() {
		n += 2 * PageLen * 4
	}
	return n
}

// Differentiable says whether what is stored has gradients: what int8 stands for is not a function that has derivatives, and
// gradients are those of Chain alone.
func (l Layout) Differentiable() bool { return !l.scaled() && l.arithmetic == Chain }

func (l Layout) scaled() bool { return l.dt == tensor.I8 }

// paired says whether elements lie in pairs.
func (l Layout) paired() bool { return l.dt == tensor.BF16 }

func (l Layout) kBytes() int {
	if l.paired() {
		return (l.headDim + 1) / 2 * PageLen * pairSize
	}
	return l.headDim * PageLen * l.dt.Size()
}

func (l Layout) vBytes() int { return PageLen * l.vStride() * l.dt.Size() }

// vRowStride returns the bytes from one row of V in memory to the next, of a pair of positions where they lie in pairs.
func (l Layout) vRowStride() int {
	if l.paired() {
		return l.vStride() * pairSize
	}
	return l.vStride() * l.dt.Size()
}

// vStride returns the elements from one row of V to the next.
func (l Layout) vStride() int { return (l.vDim + rowPad - 1) / rowPad * rowPad }

// k and v return the page's K and V.
func (l Layout) k(page []byte) []byte { return page[:l.kBytes()] }

func (l Layout) v(page []byte) []byte { return page[l.kBytes():][:l.vBytes()] }

// scales returns the bytes of the page's scales of K and of V.
func (l Layout) scales(page []byte) (k, v []byte) {
	page = page[l.PageBytes()-2*PageLen*4:]
	return page[:PageLen*4], page[PageLen*4:][:PageLen*4]
}

// Rows are the keys and values of consecutive positions of one KV head, as they come: position by position, in the
// storage type, little endian.
type Rows struct {
	// K [n, head_dim] and V [n, v_dim].
	K, V []byte
	// KScale and VScale [n] belong to int8 and are empty otherwise.
	KScale, VScale []float32
}

func (l Layout) check(page []byte, at, n int, rows Rows) error {
	if l.dt == 0 {
		return fmt.Errorf("layout was not made by NewLayout")
	}
	if len(page) < l.PageBytes() {
		return fmt.Errorf("page has %d bytes, its layout needs %d", len(page), l.PageBytes())
	}
	if at < 0 || n < 0 || at > PageLen || n > PageLen-at {
		return fmt.Errorf("%d positions from %d do not lie in a page of %d", n, at, PageLen)
	}
	if len(rows.K) != n*l.KRowBytes() || len(rows.V) != n*l.VRowBytes() {
		return fmt.Errorf("%d positions have %d bytes of K and %d of V, not %d and %d",
			n, n*l.KRowBytes(), n*l.VRowBytes(), len(rows.K), len(rows.V))
	}
	scales := 0
	if l.scaled() {
		scales = n
	}
	if len(rows.KScale) != scales || len(rows.VScale) != scales {
		return fmt.Errorf("%d positions of %s have %d scales of K and of V, not %d and %d",
			n, l.dt, scales, len(rows.KScale), len(rows.VScale))
	}
	return nil
}

// Write stores n positions into the page from its position at. For arithmetic in tiles they are settled first, in place.
func (l Layout) Write(page []byte, at, n int, rows Rows) error {
	if err := l.check(page, at, n, rows); err != nil {
		return fmt.Errorf("write to page: %w", err)
	}
	if err := l.Settle(rows); err != nil {
		return fmt.Errorf("write to page: %w", err)
	}
	vec := assembly()
	if l.paired() {
		l.writePairs(page, at, n, rows, vec)
		return nil
	}
	write := writeKeys
	if vec != nil {
		write = vec.writeKeys
	}
	size, row := l.dt.Size(), l.VRowBytes()
	write(l.k(page), rows.K, l.KRowBytes(), at, n, l.headDim, size)
	v, stride := l.v(page), l.vRowStride()
	for t := range n {
		copy(v[(at+t)*stride:], rows.V[t*row:][:row])
	}
	if l.scaled() {
		ks, vs := l.scales(page)
		for t := range n {
			binary.LittleEndian.PutUint32(ks[4*(at+t):], math.Float32bits(rows.KScale[t]))
			binary.LittleEndian.PutUint32(vs[4*(at+t):], math.Float32bits(rows.VScale[t]))
		}
	}
	return nil
}

// assembly is that of the kernel, or nil.
func assembly() *vector {
	if k := selected.Load().kernel; k != nil {
		return k.vector
	}
	return nil
}

// writeKeys writes the first dim elements of n rows, which lie stride bytes apart, as the columns of k [dim][64] from column at
// on; size is that of an element in bytes.
func writeKeys(k, rows []byte, stride, at, n, dim, size int) {
	switch size {
	case 1:
		for t := range n {
			for i, x := range rows[t*stride:][:dim] {
				k[i*PageLen+at+t] = x
			}
		}
	case 2:
		for t := range n {
			row := rows[t*stride:][:2*dim]
			for i := 0; i+2 <= len(row); i += 2 {
				*(*[2]byte)(k[i*PageLen+2*(at+t):]) = [2]byte(row[i:])
			}
		}
	case 4:
		for t := range n {
			row := rows[t*stride:][:4*dim]
			for i := 0; i+4 <= len(row); i += 4 {
				*(*[4]byte)(k[i*PageLen+4*(at+t):]) = [4]byte(row[i:])
			}
		}
	}
}

// Read is the inverse of Write: it fills rows, whose slices have the lengths that Write asks for.
func (l Layout) Read(page []byte, at, n int, rows Rows) error {
	if err := l.check(page, at, n, rows); err != nil {
		return fmt.Errorf("read from page: %w", err)
	}
	if l.paired() {
		l.readPairs(page, at, n, rows, assembly())
		return nil
	}
	assembly().readKeys(rows.K, l.k(page), l.KRowBytes(), at, n, l.headDim, l.dt.Size())
	v, stride, row := l.v(page), l.vRowStride(), l.VRowBytes()
	for t := range n {
		copy(rows.V[t*row:][:row], v[(at+t)*stride:])
	}
	if l.scaled() {
		ks, vs := l.scales(page)
		readScales(rows.KScale, ks[4*at:])
		readScales(rows.VScale, vs[4*at:])
	}
	return nil
}

func readScales(dst []float32, src []byte) {
	for t := range dst {
		dst[t] = math.Float32frombits(binary.LittleEndian.Uint32(src[4*t:]))
	}
}

// KV is what one KV head has stored of a sequence. Nothing beyond Len is read into a result, and a call keeps none of it.
type KV struct {
	Layout Layout
	// Pages hold positions from 0 on, each of at least PageBytes; there may be more than Len needs.
	Pages [][]byte
	// Len is how many positions exist for the queries (kv_len).
	Len int
}

func (kv KV) check() error {
	if kv.Layout.dt == 0 {
		return fmt.Errorf("layout was not made by NewLayout")
	}
	if kv.Len < 0 || len(kv.Pages) < pagesOf(kv.Len) {
		return fmt.Errorf("%d pages for %d positions", len(kv.Pages), kv.Len)
	}
	for p, page := range kv.Pages[:pagesOf(kv.Len)] {
		if len(page) < kv.Layout.PageBytes() {
			return fmt.Errorf("page %d has %d bytes, its layout needs %d", p, len(page), kv.Layout.PageBytes())
		}
	}
	return nil
}

// pagesOf returns how many pages n ≥ 0 positions take.
func pagesOf(n int) int { return n/PageLen + (n%PageLen+PageLen-1)/PageLen }
