package attention

import "math"

// Parts of a binary64 that tell whether its conversion to binary32 could round a second time.
const (
	signBit = 1 << 63
	// tail are the bits of a binary64 that a normal binary32 does not have, and half is their value midway between two
	// neighbors.
	tail = 1<<29 - 1
	half = 1 << 28
	// normal32 is the bits of 2⁻¹²⁶: below it a binary32 has fewer bits, and the midpoints lie elsewhere.
	normal32 = (1023 - 126) << 52
)

// fma32 returns a·b + c rounded once to binary32, to nearest with ties to even, subnormals kept.
//
// The product of two binary32 is exact in binary64, so the sum s is rounded once. Converting it rounds again, which
// differs from rounding once only if s has come to lie midway between two binary32 and the exact sum has not. Rounding
// is monotonic, and a midpoint is itself a binary64, so every other s converts to what the exact sum would.
// (A compiler that fuses the multiplication with the addition changes nothing, since the product is exact.)
func fma32(a, b, c float32) float32 {
	s := float64(a)*float64(b) + float64(c)
	if !once(s) {
		return fmaOdd(float64(a)*float64(b), float64(c))
	}
	return float32(s)
}

// once says whether s is no midpoint of two binary32, so that converting it rounds as the exact sum would. It is false
// for some others below 2⁻¹²⁶. The first test is the fast one: a midpoint has no more than 25 bits, so its lowest 28 are
// 0, among subnormals too, where it is an odd multiple of 2⁻¹⁵⁰ below 2⁻¹²⁶.
func once(s float64) bool {
	u := math.Float64bits(s)
	return uint32(u)<<4 != 0 || u&tail != half && u&^signBit >= normal32
}

// fmaOdd returns p + c rounded once to binary32, where p is a product of two binary32: the sum is rounded to odd in
// binary64, which keeps on which side of a midpoint the exact sum lies, and then to nearest.
// See Boldo and Melquiond, "Emulation of a FMA and correctly rounded sums: proved algorithms using rounding to odd".
//
//go:noinline
func fmaOdd(p, c float64) float32 {
	s := p + c
	if s == 0 {
		return float32(s)
	}
	// TwoSum (Knuth): e is exactly what the addition lost.
	pp := s - c
	cc := s - pp
	e := (p - pp) + (c - cc)
	if e != 0 {
		if u := math.Float64bits(s); u&1 == 0 {
			if (e > 0) == (s > 0) {
				u++
			} else {
				u--
			}
			s = math.Float64frombits(u)
		}
	}
	return float32(s)
}
