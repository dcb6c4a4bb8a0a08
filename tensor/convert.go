package tensor

import (
	"encoding/binary"
	"fmt"
	"math"
)

// RangeError says that a finite value has no finite neighbor in the type to which it was to be narrowed.
type RangeError struct {
	// Index is the position of Value in the slice that was to be narrowed.
	Index int
	Value float32
	DType DType
}

func (e *RangeError) Error() string {
	return fmt.Sprintf("value %g at index %d exceeds the range of %s", e.Value, e.Index, e.DType)
}

// Widen converts len(dst) elements of src, exactly: F32, F16 and BF16 to the same value, I8 to the integer without its
// scale. It is an error, and dst is left as it was, if the type is another or the lengths do not match.
func Widen(dst []float32, src []byte, dt DType) error {
	switch dt {
	case F32, F16, BF16, I8:
	default:
		return fmt.Errorf("widen %s to float32: not a type that widens", dt)
	}
	if len(src)%dt.Size() != 0 || len(src)/dt.Size() != len(dst) {
		return fmt.Errorf("widen %s to float32: %d bytes for %d elements", dt, len(src), len(dst))
	}
	switch dt {
	case F32:
		for i := 0; i < len(dst) && len(src) >= 4; i++ {
			dst[i] = math.Float32frombits(binary.LittleEndian.Uint32(src))
			src = src[4:]
		}
	case F16:
		for i := 0; i < len(dst) && len(src) >= 2; i++ {
			dst[i] = widenF16(binary.LittleEndian.Uint16(src))
			src = src[2:]
		}
	case BF16:
		for i := 0; i < len(dst) && len(src) >= 2; i++ {
			dst[i] = math.Float32frombits(uint32(binary.LittleEndian.Uint16(src)) << 16)
			src = src[2:]
		}
	case I8:
		src = src[:len(dst)]
		for i := range dst {
			dst[i] = float32(int8(src[i]))
		}
	}
	return nil
}

// Narrow converts src to F32, F16 or BF16, to nearest with ties to even, subnormals kept. Infinities stay infinite and
// NaN stays NaN; a finite value that would become infinite is refused with a *RangeError, after which dst holds no
// meaningful data. I8 needs a scale: see QuantizeI8.
func Narrow(dst []byte, src []float32, dt DType) error {
	switch dt {
	case F32, F16, BF16:
	default:
		return fmt.Errorf("narrow float32 to %s: not a type to narrow to", dt)
	}
	if len(dst)%dt.Size() != 0 || len(dst)/dt.Size() != len(src) {
		return fmt.Errorf("narrow float32 to %s: %d bytes for %d elements", dt, len(dst), len(src))
	}
	done, over := narrowFirst(dst, src, dt)
	if over {
		done = 0 // to find it
	}
	dst, src = dst[done*dt.Size():], src[done:]
	switch dt {
	case F32:
		for i, x := range src {
			binary.LittleEndian.PutUint32(dst[4*i:], math.Float32bits(x))
		}
	case F16:
		for i, x := range src {
			h := halfOf(x)
			if h&0x7c00 == 0x7c00 && finite(x) {
				return &RangeError{Index: done + i, Value: x, DType: dt}
			}
			binary.LittleEndian.PutUint16(dst[2*i:], h)
		}
	case BF16:
		for i, x := range src {
			h := bfloatOf(x)
			if h&0x7f80 == 0x7f80 && finite(x) {
				return &RangeError{Index: done + i, Value: x, DType: dt}
			}
			binary.LittleEndian.PutUint16(dst[2*i:], h)
		}
	}
	return nil
}

func finite(x float32) bool { return math.Float32bits(x)&0x7f800000 != 0x7f800000 }

// widenF16 rebiases the exponent in place; a subnormal is made a normal float32 by subtracting the implicit bit that
// it does not have, which is exact.
func widenF16(h uint16) float32 {
	sign := uint32(h&0x8000) << 16
	u := uint32(h&0x7fff) << 13
	switch u & 0x0f800000 {
	case 0:
		const hidden = 113 << 23 // 2⁻¹⁴
		f := math.Float32frombits(u|hidden) - math.Float32frombits(hidden)
		return math.Float32frombits(math.Float32bits(f) | sign)
	case 0x0f800000:
		return math.Float32frombits(u + (255-31)<<23 | sign)
	}
	return math.Float32frombits(u + (127-15)<<23 | sign)
}

func halfOf(x float32) uint16 {
	u := math.Float32bits(x)
	sign := uint16(u >> 16 & 0x8000)
	u &= 0x7fffffff
	switch {
	case u > 0x7f800000:
		return sign | 0x7e00 | uint16(u>>13&0x1ff)
	case u >= 0x47800000: // 2¹⁶
		return sign | 0x7c00
	case u < 0x38800000: // 2⁻¹⁴
		// The spacing of float32 in [0.5, 1) is 2⁻²⁴, that of the subnormals of binary16, so this addition rounds.
		return sign | uint16(math.Float32bits(math.Float32frombits(u)+0.5)-math.Float32bits(0.5))
	}
	u += 0xfff + u>>13&1
	return sign | uint16((u-(127-15)<<23)>>13)
}

func bfloatOf(x float32) uint16 {
	u := math.Float32bits(x)
	if u&0x7fffffff > 0x7f800000 {
		return uint16(u>>16) | 0x40
	}
	return uint16((u + 0x7fff + u>>16&1) >> 16)
}

// QuantizeI8 stores one row, the head_dim values of one position and head, as integers of −127 to 127 and the scale
// that it returns: scale = max|x|/127 and dst[i] = rne(row[i]/scale), each rounded to float32. A row of zeros, and one
// so small that its scale rounds to 0, gives zeros and scale 0. dst and row have the same length; row is finite.
func QuantizeI8(dst []int8, row []float32) (scale float32) {
	dst = dst[:len(row)]
	amax, done := largestFirst(row)
	for _, x := range row[done:] {
		amax = max(amax, math.Float32frombits(math.Float32bits(x)&0x7fffffff))
	}
	scale = amax / 127
	if scale == 0 {
		clear(dst)
		return 0
	}
	done = quantizeFirst(dst, row, scale)
	for i, x := range row[done:] {
		q := math.RoundToEven(float64(x / scale))
		dst[done+i] = int8(max(-127, min(127, q)))
	}
	return scale
}

// CheckFinite looks for the first element of p, whole elements of type dt, that is NaN or infinite; negative infinity
// is passed over if allowNegInf is set. If there is one, ok is false and index and value are its own. Types without
// such values are always ok. A part of an element at the end of p is reported as if it were NaN.
func CheckFinite(p []byte, dt DType, allowNegInf bool) (index int64, value float64, ok bool) {
	// A sum of an exponent's bits and its lowest bit reaches the sign bit only if all of them are set.
	var exponents, lowest, signs uint64
	var get func(p []byte) float64
	switch dt {
	case F16:
		exponents, lowest, signs = 0x7c007c007c007c00, 0x0400040004000400, 0x8000800080008000
		get = func(p []byte) float64 { return float64(widenF16(binary.LittleEndian.Uint16(p))) }
	case BF16:
		exponents, lowest, signs = 0x7f807f807f807f80, 0x0080008000800080, 0x8000800080008000
		get = func(p []byte) float64 {
			return float64(math.Float32frombits(uint32(binary.LittleEndian.Uint16(p)) << 16))
		}
	case F32:
		exponents, lowest, signs = 0x7f8000007f800000, 0x0080000000800000, 0x8000000080000000
		get = func(p []byte) float64 { return float64(math.Float32frombits(binary.LittleEndian.Uint32(p))) }
	case F64:
		exponents, lowest, signs = 0x7ff0000000000000, 0x0010000000000000, 0x8000000000000000
		get = func(p []byte) float64 { return math.Float64frombits(binary.LittleEndian.Uint64(p)) }
	default:
		return -1, 0, true
	}
	const block = 32
	size := dt.Size()
	for at := 0; at < len(p); {
		if b := p[at:]; len(b) >= block {
			w0, w1 := binary.LittleEndian.Uint64(b), binary.LittleEndian.Uint64(b[8:])
			w2, w3 := binary.LittleEndian.Uint64(b[16:]), binary.LittleEndian.Uint64(b[24:])
			all := (w0&exponents + lowest) | (w1&exponents + lowest) | (w2&exponents + lowest) | (w3&exponents + lowest)
			if all&signs == 0 {
				at += block
				continue
			}
		}
		end := min(at+block, len(p))
		for ; at < end; at += size {
			if len(p)-at < size {
				return int64(at / size), math.NaN(), false
			}
			x := get(p[at:])
			if x-x != 0 && !(allowNegInf && math.IsInf(x, -1)) {
				return int64(at / size), x, false
			}
		}
	}
	return -1, 0, true
}
