package script

import (
	"encoding/binary"
	"hash/crc32"
	"math"
)

// What a row of numbers is for. Rows depend on nothing else than their arguments, so that every language makes the same.
const (
	kindQuery = iota
	kindKey
	kindValue
)

// row fills one position's numbers: [heads or groups × dim], in −0.5 to 0.5. A linear congruential generator begins at the CRC
// of (seed, kind, layer, position), each 32 bits little endian.
func row(dst []float32, seed, kind, layer, position int) {
	var b [16]byte
	for i, n := range []int{seed, kind, layer, position} {
		binary.LittleEndian.PutUint32(b[4*i:], uint32(n))
	}
	x := crc32.ChecksumIEEE(b[:])
	for i := range dst {
		x = x*1664525 + 1013904223
		dst[i] = float32(x>>8)/(1<<24) - 0.5
	}
}

// rows fills those of n positions from one on.
func rows(seed, kind, layer, position, n, size int) []float32 {
	all := make([]float32, n*size)
	for i := range n {
		row(all[i*size:(i+1)*size], seed, kind, layer, position+i)
	}
	return all
}

// sum is the CRC of float32 bits.
func sum(x []float32) uint32 {
	b := make([]byte, 0, 4*len(x))
	for _, f := range x {
		b = binary.LittleEndian.AppendUint32(b, math.Float32bits(f))
	}
	return crc32.ChecksumIEEE(b)
}
