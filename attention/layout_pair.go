package attention

import (
	"encoding/binary"
	"math"

	"headwater.example/tensor"
)

// pairSize is the size of two elements that lie in a pair.
const pairSize = 4

// writePairs is Write for elements in pairs. A pair of a key's elements is a word of its row, so that words are transposed.
func (l Layout) writePairs(page []byte, at, n int, rows Rows, vec *vector) {
	write, weave := writeKeys, weave
	if vec != nil {
		write, weave = vec.writeKeys, vec.weaveRows
	}
	k, kRow, words := l.k(page), l.KRowBytes(), l.headDim/2
	write(k, rows.K, kRow, at, n, words, pairSize)
	if l.headDim%2 != 0 {
		for t := range n {
			last := uint32(binary.LittleEndian.Uint16(rows.K[(t+1)*kRow-2:]))
			binary.LittleEndian.PutUint32(k[(words*PageLen+at+t)*pairSize:], last)
		}
	}
	v, vRow := l.v(page), l.VRowBytes()
	for t := 0; t < n; {
		pair, own := v[(at+t)/2*l.vRowStride():][:2*vRow], rows.V[t*vRow:][:vRow]
		if (at+t)%2 == 0 && t+1 < n {
			weave(pair, own, rows.V[(t+1)*vRow:][:vRow])
			t += 2
			continue
		}
		writeHalf(pair[(at+t)%2*2:], own)
		t++
	}
}

// readPairs is Read for elements in pairs.
func (l Layout) readPairs(page []byte, at, n int, rows Rows, vec *vector) {
	k, kRow, words := l.k(page), l.KRowBytes(), l.headDim/2
	vec.readKeys(rows.K, k, kRow, at, n, words, pairSize)
	if l.headDim%2 != 0 {
		for t := range n {
			copy(rows.K[(t+1)*kRow-2:], k[(words*PageLen+at+t)*pairSize:][:2])
		}
	}
	v, vRow := l.v(page), l.VRowBytes()
	for t := 0; t < n; {
		pair, own := v[(at+t)/2*l.vRowStride():][:2*vRow], rows.V[t*vRow:][:vRow]
		if (at+t)%2 == 0 && t+1 < n {
			vec.unweaveRows(own, rows.V[(t+1)*vRow:][:vRow], pair)
			t += 2
			continue
		}
		for i := 0; i < vRow; i += 2 {
			copy(own[i:], pair[2*i+(at+t)%2*2:][:2])
		}
		t++
	}
}

// weave writes two rows of elements of 2 bytes as pairs.
func weave(pairs, first, second []byte) {
	second = second[:len(first)]
	i := 0
	for ; i+8 <= len(first); i += 8 {
		x, y := binary.LittleEndian.Uint64(first[i:]), binary.LittleEndian.Uint64(second[i:])
		to := pairs[2*i:][:16]
		binary.LittleEndian.PutUint64(to, weave2(x, y))
		binary.LittleEndian.PutUint64(to[8:], weave2(x>>32, y>>32))
	}
	for ; i < len(first); i += 2 {
		copy(pairs[2*i:], first[i:][:2])
		copy(pairs[2*i+2:], second[i:][:2])
	}
}

// weave2 makes two pairs of the lowest two elements of x and of y.
func weave2(x, y uint64) uint64 {
	return x&0xffff | y&0xffff<<16 | x&0xffff0000<<16 | y&0xffff0000<<32
}

// unweave is the inverse of weave.
func unweave(first, second, pairs []byte) {
	second = second[:len(first)]
	i := 0
	for ; i+8 <= len(first); i += 8 {
		from := pairs[2*i:][:16]
		x, y := binary.LittleEndian.Uint64(from), binary.LittleEndian.Uint64(from[8:])
		binary.LittleEndian.PutUint64(first[i:], unweave2(x)|unweave2(y)<<32)
		binary.LittleEndian.PutUint64(second[i:], unweave2(x>>16)|unweave2(y>>16)<<32)
	}
	for ; i < len(first); i += 2 {
		copy(first[i:], pairs[2*i:][:2])
		copy(second[i:], pairs[2*i+2:][:2])
	}
}

// unweave2 returns the lower halves of two pairs.
func unweave2(x uint64) uint64 { return x&0xffff | x>>16&0xffff0000 }

// weaveRows is the function weave in assembly.
func (v *vector) weaveRows(pairs, first, second []byte) {
	n := len(first) / 2
	whole := n / vectorLen * vectorLen
	if whole > 0 {
		v.weave(&pairs[0], &first[0], &second[0], whole)
	}
	weave(pairs[4*whole:], first[2*whole:], second[2*whole:])
}

// unweaveRows is the function unweave in assembly, where there is one.
func (v *vector) unweaveRows(first, second, pairs []byte) {
	whole := 0
	if v != nil && v.unweave != nil {
		if whole = len(first) / 2 / vectorLen * vectorLen; whole > 0 {
			v.unweave(&first[0], &second[0], &pairs[0], whole)
		}
	}
	unweave(first[2*whole:], second[2*whole:], pairs[4*whole:])
}

// writeHalf writes a row of elements of 2 bytes as one half of the pairs that begin or end there.
func writeHalf(pairs, row []byte) {
	i := 0
	for ; i+8 <= len(row); i += 8 {
		x, to := binary.LittleEndian.Uint64(row[i:]), pairs[2*i:][:14]
		binary.LittleEndian.PutUint16(to, uint16(x))
		binary.LittleEndian.PutUint16(to[4:], uint16(x>>16))
		binary.LittleEndian.PutUint16(to[8:], uint16(x>>32))
		binary.LittleEndian.PutUint16(to[12:], uint16(x>>48))
	}
	for ; i < len(row); i += 2 {
		copy(pairs[2*i:], row[i:][:2])
	}
}

// widenKeys sets dst [head_dim][64] to the page's keys, and widenValues dst [n][vStride] to its first n values.
func (l Layout) widenKeys(dst []float32, page []byte) error {
	if !l.paired() {
		return tensor.Widen(dst, l.k(page), l.dt)
	}
	widenPairs(dst, l.k(page), l.headDim, PageLen)
	return nil
}

func (l Layout) widenValues(dst []float32, page []byte, n int) error {
	if !l.paired() {
		return tensor.Widen(dst, l.v(page)[:n*l.vRowStride()], l.dt)
	}
	widenPairs(dst, l.v(page), n, l.vStride())
	return nil
}

// widenPairs sets dst [n][width] to the first n rows of pairs of rows [n/2 rounded up][width][2].
func widenPairs(dst []float32, pairs []byte, n, width int) {
	for i := range n {
		row := pairs[i/2*width*pairSize:][:width*pairSize]
		to := dst[i*width:][:width]
		if i%2 == 0 {
			for j := range to {
				to[j] = math.Float32frombits(binary.LittleEndian.Uint32(row[j*pairSize:]) << 16)
			}
		} else {
			for j := range to {
				to[j] = math.Float32frombits(binary.LittleEndian.Uint32(row[j*pairSize:]) & 0xffff0000)
			}
		}
	}
}
