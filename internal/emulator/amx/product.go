//go:build linux && amd64

package amx

import (
	"encoding/binary"
	"math"
)

// least is the least magnitude that does not round to less than 2^-126 if the exponent were unbounded: half a unit of the
// binade below is left to it.
const least = 0x1p-126 - 0x1p-151

// round rounds a + b, exact as it is, once to binary32, to nearest even. A result that is then subnormal is a zero of its sign,
// and one that is no number the default of these.
func round(a, b float64) float32 {
	s := a + b
	if s != s {
		return math.Float32frombits(0xffc00000)
	}
	if !math.IsInf(s, 0) {
		// What the sum has lost makes its last bit odd, so that the second rounding can't take it for a tie.
		lost := (a - (s - (s - a))) + (b - (s - a))
		if bits := math.Float64bits(s); lost != 0 && bits&1 == 0 {
			if (lost > 0) == (s > 0) {
				s = math.Float64frombits(bits + 1)
			} else {
				s = math.Float64frombits(bits - 1)
			}
		}
	}
	if math.Abs(s) < least {
		return float32(math.Copysign(0, s))
	}
	return float32(s)
}

// wide is a binary32 with subnormals as zeros of their sign.
func wide(bits uint32) float64 {
	if bits&0x7f800000 == 0 {
		bits &= 0x80000000
	}
	return float64(math.Float32frombits(bits))
}

// product adds to d [rows, columns] the products of a [rows, pairs] and b [pairs, columns], two numbers of bf16 a word: the even
// ones and the odd ones are summed by themselves.
func product(d, a, b *tile, rows, columns, pairs int) {
	word := func(t *tile, row, column int) uint32 { return binary.LittleEndian.Uint32(t[row][4*column:]) }
	for i := range rows {
		for j := range columns {
			var even, odd float32
			for k := range pairs {
				x, y := word(a, i, k), word(b, k, j)
				// The product of two numbers of 8 bits is exact.
				even = round(wide(x<<16)*wide(y<<16), float64(even))
				odd = round(wide(x&0xffff0000)*wide(y&0xffff0000), float64(odd))
			}
			sum := round(wide(word(d, i, j)), float64(round(float64(even), float64(odd))))
			binary.LittleEndian.PutUint32(d[i][4*j:], math.Float32bits(sum))
		}
	}
	for i := rows; i < len(d); i++ {
		d[i] = [64]byte{}
	}
}
