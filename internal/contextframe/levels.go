package contextframe

import "encoding/binary"

// The method `levels` codes a plane whose bytes are mostly among a few neighbours, as exponents are. A level writes, for
// each byte of its list, its distance from a base in a few bits; the largest distance stands for all that do not fit,
// which are the list of the next level. That costs a little more than the entropy and no table, and eight bytes at a
// time are packed by PEXT, or by shifts.
//
// Of a plane that is smooth in its upper bits only, the lower ones are packed as they are; and of one whose rows
// resemble each other, the difference to the row before is coded.

const (
	maxLevels  = 4
	rawLevel   = 8 // width of a level that has its list as it is
	maxWidth   = 4 // widest level that the writer plans
	levelBytes = 4
	levelsHead = 2
	rowsFlag   = 0x80
	lowMask    = 7
	padding    = 32 // room behind lists, for steps of 16 that read or write 8 bytes at a time
	spanLimit  = 24 // values of sampled bytes, the most that a plan is made for
)

// A plan is how a plane is to be coded: so many low bits as they are, then the levels' widths and bases.
type plan struct {
	low    uint
	rows   bool                 // of the differences to the row before
	levels [maxLevels - 1]level // a raw one follows if something remains
	count  int
	bits   int // estimate for the sample
}

type level struct {
	width uint
	base  byte
}

// histogram counts the values of a plane's sample.
type histogram [256]uint16

// makePlan plans levels over a sample of which so many low bits are packed as they are. It returns no levels if the
// values are spread too far.
func makePlan(h *histogram, samples int, low uint) plan {
	first, last := 0, len(h)-1
	for h[first] == 0 {
		first++
	}
	for h[last] == 0 {
		last--
	}
	first, last = first>>low, last>>low
	p := plan{low: low, bits: 8 * samples}
	if last-first >= spanLimit {
		return p
	}
	var s spread
	n := last - first + 1
	for i := range n {
		for _, count := range h[(first+i)<<low : (first+i+1)<<low] {
			s[i] += count
		}
	}
	for width := uint(1); width <= maxWidth; width++ {
		for _, tail := range [...][2]uint{{2, 3}, {1, 4}} {
			candidate := plan{low: low, bits: int(low) * samples}
			candidate.fill(s, n, byte(first), samples, [maxLevels - 1]uint{width, tail[0], tail[1]})
			if candidate.bits < p.bits {
				p = candidate
			}
			if candidate.count == 1 {
				return p
			}
		}
	}
	return p
}

// spread counts neighbouring values.
type spread [spanLimit]uint16

// fill finds the bases of levels of these widths, and counts bits.
func (p *plan) fill(s spread, n int, first byte, samples int, widths [maxLevels - 1]uint) {
	for _, width := range widths {
		size := 1<<width - 1
		start, covered := s.window(n, size)
		p.levels[p.count] = level{width: width, base: first + byte(start)}
		p.count++
		p.bits += int(width) * samples
		if samples -= covered; samples == 0 {
			return
		}
		clear(s[start:min(start+size, n)])
	}
	p.bits += rawLevel * samples
}

// window returns where so many neighbours are the most samples, and how many.
func (s *spread) window(n, size int) (start, sum int) {
	running := 0
	for i, count := range s[:n] {
		running += int(count)
		if i >= size {
			running -= int(s[i-size])
		}
		if running > sum {
			start, sum = max(0, i-size+1), running
		}
	}
	return start, sum
}

// appendLevels appends the plane [n] coded by a plan. If that is one of differences of rows, the plane is these. It gives
// up and returns false if the code is not smaller than the plane.
func (c *coder) appendLevels(dst, plane []byte, n int, p plan) ([]byte, bool) {
	head := len(dst)
	flags := byte(p.low)
	if p.rows {
		flags |= rowsFlag
	}
	dst = append(dst, flags, 0)
	limit := n - levelsHead
	packed := c.packed[:]
	used := 0
	list := plane
	if p.low > 0 {
		clear(plane[n : n+8])
		packLow(packed, c.lists[0][:], plane, n, p.low)
		used = packedBytes(n, p.low)
		list = c.lists[0][:]
	}
	next := 1
	m := n
	for i := 0; m > 0; i++ {
		var escapes int
		l := level{width: rawLevel}
		if i < p.count {
			l = p.levels[i]
		}
		if l.width == rawLevel {
			used += copy(packed[used:], list[:m])
		} else {
			for j := m; j < (m+15)&^15; j++ {
				list[j] = l.base
			}
			escapes = packLevel(packed[used:], c.lists[next][:], list, m, l.width, l.base)
			used += packedBytes(m, l.width)
		}
		dst = append(dst, byte(l.width), l.base)
		dst = binary.LittleEndian.AppendUint16(dst, uint16(escapes))
		dst[head+1]++
		if used+levelBytes*(i+1) >= limit {
			return dst[:head], false
		}
		if l.width == rawLevel {
			break
		}
		list, m = c.lists[next][:], escapes
		next = (next + 1) % len(c.lists)
	}
	return append(dst, packed[:used]...), true
}

// packedBytes returns the bytes of n elements of so many bits, eight at a time.
func packedBytes(n int, width uint) int { return (n + 7) / 8 * int(width) }

// readLevels decodes into plane [n], which has room for padding.
func (c *coder) readLevels(plane, coded []byte, n, row int) error {
	if len(coded) < levelsHead+levelBytes {
		return frameErrorf("%d bytes are too few for levels", len(coded))
	}
	flags, count := coded[0], int(coded[1])
	low := uint(flags & lowMask)
	if flags&^(rowsFlag|lowMask) != 0 || count < 1 || count > maxLevels || len(coded) < levelsHead+levelBytes*count {
		return frameErrorf("levels begin with %02x %02x", flags, coded[1])
	}
	var widths [maxLevels]uint
	var bases [maxLevels]byte
	var sizes [maxLevels + 1]int
	sizes[0] = n
	total := packedBytes(n, low)
	for i := range count {
		head := coded[levelsHead+levelBytes*i:]
		widths[i], bases[i], sizes[i+1] = uint(head[0]), head[1], int(binary.LittleEndian.Uint16(head[2:]))
		switch {
		case widths[i] < 1 || widths[i] > rawLevel, sizes[i+1] > sizes[i], sizes[i] == 0,
			i == count-1 && sizes[i+1] != 0, widths[i] == rawLevel && (bases[i] != 0 || i != count-1):
			return frameErrorf("level %d of %d with width %d, base %d and %d escapes does not fit", i, count, widths[i], bases[i], sizes[i+1])
		case widths[i] == rawLevel:
			total += sizes[i]
		default:
			total += packedBytes(sizes[i], widths[i])
		}
	}
	body := coded[levelsHead+levelBytes*count:]
	if len(body) != total {
		return frameErrorf("levels of %d bytes have %d", total, len(body))
	}
	end := len(body)
	inner := c.lists[0][:]
	for i := count - 1; i >= 0; i-- {
		list := plane
		if i > 0 {
			list = c.lists[i%2+1][:]
		}
		if widths[i] == rawLevel {
			end -= sizes[i]
			copy(list, body[end:])
		} else {
			size := packedBytes(sizes[i], widths[i])
			end -= size
			packed := c.packed[:size+padding]
			copy(packed, body[end:end+size])
			clear(packed[size:])
			if escapes := unpackLevel(list, packed, inner, sizes[i], widths[i], bases[i]); escapes != sizes[i+1] {
				return frameErrorf("level %d has %d escapes of %d", i, escapes, sizes[i+1])
			}
		}
		inner = list
	}
	if low > 0 {
		packed := c.packed[:end+padding]
		copy(packed, body[:end])
		clear(packed[end:])
		unpackLow(plane, packed, n, low)
	}
	if flags&rowsFlag != 0 {
		addRows(plane[:n], row)
	}
	return nil
}

const (
	each  = 0x0101010101010101
	highs = 0x8080808080808080
)

// fields is a mask of the lowest width bits of each byte.
func fields(width uint) uint64 { return (1<<width - 1) * each }

// extract packs the lowest width bits of each byte of v.
func extract(v uint64, width uint) uint64 {
	v &= fields(width)
	v = v&0x00ff00ff00ff00ff | v>>8&0x00ff00ff00ff00ff<<width
	v = v&0x0000ffff0000ffff | v>>16&0x0000ffff0000ffff<<(2*width)
	return v&0x00000000ffffffff | v>>32<<(4*width)
}

// deposit is the inverse of extract.
func deposit(v uint64, width uint) uint64 {
	v = v&(1<<(4*width)-1) | v>>(4*width)<<32
	v = v&((1<<(2*width)-1)*0x0000000100000001) | v>>(2*width)&((1<<(2*width)-1)*0x0000000100000001)<<16
	return v&((1<<width-1)*0x0001000100010001) | v>>width&((1<<width-1)*0x0001000100010001)<<8
}

// packLevel writes the codes of list [m], whose last 16 are filled up with base, and what escapes; it returns how many.
func packLevel(codes, escaped, list []byte, m int, width uint, base byte) int {
	if n, ok := packLevelVector(codes, escaped, list, m, width, base); ok {
		return n
	}
	escape := byte(1<<width - 1)
	escapes := 0
	for at := 0; at < m; at += 8 {
		var v uint64
		for j, b := range list[at : at+8] {
			code := min(b-base, escape)
			if code == escape {
				escaped[escapes] = b
				escapes++
			}
			v |= uint64(code) << (8 * j)
		}
		binary.LittleEndian.PutUint64(codes[at/8*int(width):], extract(v, width))
	}
	return escapes
}

// unpackLevel is the inverse of packLevel. It returns how many escapes there are, at most m filled up to 16, which the
// list of escapes has room for.
func unpackLevel(list, codes, escaped []byte, m int, width uint, base byte) int {
	if n, ok := unpackLevelVector(list, codes, escaped, m, width, base); ok {
		return n
	}
	escape := byte(1<<width - 1)
	escapes := 0
	for at := 0; at < m; at += 8 {
		v := deposit(binary.LittleEndian.Uint64(codes[at/8*int(width):]), width)
		for j := range 8 {
			code := byte(v >> (8 * j))
			list[at+j] = code + base
			if code == escape {
				list[at+j] = escaped[escapes]
				escapes++
			}
		}
	}
	return escapes
}

// packLow packs the lowest width bits of each byte of plane [n] and leaves the others in high.
func packLow(low, high, plane []byte, n int, width uint) {
	if packLowVector(low, high, plane, n, width) {
		return
	}
	for at := 0; at < n; at += 8 {
		v := binary.LittleEndian.Uint64(plane[at:])
		binary.LittleEndian.PutUint64(low[at/8*int(width):], extract(v, width))
		binary.LittleEndian.PutUint64(high[at:], v&^fields(width)>>width)
	}
}

// unpackLow puts the lowest width bits below those of plane [n], whose uppermost it drops.
func unpackLow(plane, low []byte, n int, width uint) {
	if unpackLowVector(plane, low, n, width) {
		return
	}
	for at := 0; at < n; at += 8 {
		v := binary.LittleEndian.Uint64(plane[at:])<<width&^fields(width) | deposit(binary.LittleEndian.Uint64(low[at/8*int(width):]), width)
		binary.LittleEndian.PutUint64(plane[at:], v)
	}
}

// subtractRows writes the difference of each byte to the one a row before, with an offset that makes no difference the
// middle. Before the first row is the middle.
func subtractRows(dst, plane []byte, row int) {
	i := copy(dst, plane[:min(row, len(plane))])
	i += subtractRowsVector(dst[i:], plane, row)
	for ; i+8 <= len(plane); i += 8 {
		x, y := binary.LittleEndian.Uint64(plane[i:]), binary.LittleEndian.Uint64(plane[i-row:])
		d := (x | highs) - (y &^ highs) ^ (x^^y)&highs
		binary.LittleEndian.PutUint64(dst[i:], d^highs)
	}
	for ; i < len(plane); i++ {
		dst[i] = plane[i] - plane[i-row] + offset
	}
}

// addRows is the inverse of subtractRows, in place.
func addRows(plane []byte, row int) {
	i := min(row, len(plane))
	i += addRowsVector(plane, row)
	if row >= 8 {
		for ; i+8 <= len(plane); i += 8 {
			x, y := binary.LittleEndian.Uint64(plane[i:])^highs, binary.LittleEndian.Uint64(plane[i-row:])
			binary.LittleEndian.PutUint64(plane[i:], (x&^highs)+(y&^highs)^(x^y)&highs)
		}
	}
	for ; i < len(plane); i++ {
		plane[i] += plane[i-row] - offset
	}
}
