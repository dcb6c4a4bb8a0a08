package contextframe

import "headwater.example/internal/processor"

//go:generate sh -c "cd _gen && go run . -out ../vector_avx2_amd64.s -stubs ../vector_avx2_amd64.go -pkg contextframe"

// vectors says whether the assembly is used. AMD's processors before Zen 3 have PEXT and PDEP in microcode, slower than
// the loops that they replace.
var vectors = processor.Has(processor.AVX2, processor.F16C, processor.BMI1, processor.BMI2, processor.POPCNT) && !processor.SlowPEXT()

// Each of these does as much of its work as fills whole steps and returns how many elements that is.

func (c *coder) split4Vector(block []float32) int {
	steps := len(block) / 32
	if !vectors || steps == 0 {
		return 0
	}
	split4AVX2(&c.planes[0][0], &c.planes[1][0], &c.planes[2][0], &c.planes[3][0], &block[0], steps)
	return 32 * steps
}

func join4Vector(block []float32, planes [4][]byte) int {
	steps := len(block) / 32
	if !vectors || steps == 0 {
		return 0
	}
	join4AVX2(&block[0], &planes[0][0], &planes[1][0], &planes[2][0], &planes[3][0], steps)
	return 32 * steps
}

// split2Vector does nothing if an element is not finite, or becomes infinite.
func (c *coder) split2Vector(block []float32, codec Codec) int {
	steps := len(block) / 32
	if !vectors || steps == 0 {
		return 0
	}
	split := splitBF16AVX2
	if codec == F16 {
		split = splitF16AVX2
	}
	if split(&c.planes[0][0], &c.planes[1][0], &block[0], steps) != 0 {
		return 0
	}
	return 32 * steps
}

// join2Vector does nothing if an element of binary16 is not finite, because VCVTPH2PS changes NaN.
func join2Vector(block []float32, planes [4][]byte, codec Codec) int {
	steps := len(block) / 32
	if !vectors || steps == 0 {
		return 0
	}
	if codec == BF16 {
		joinBF16AVX2(&block[0], &planes[0][0], &planes[1][0], steps)
	} else if joinF16AVX2(&block[0], &planes[0][0], &planes[1][0], steps) != 0 {
		return 0
	}
	return 32 * steps
}

func largestVector(row []float32) (bits uint32, done int) {
	steps := len(row) / 32
	if !vectors || steps == 0 {
		return 0, 0
	}
	return largestAVX2(&row[0], steps), 32 * steps
}

func quantizeVector(codes []byte, row []float32, scale float32) int {
	steps := len(row) / 32
	if !vectors || steps == 0 {
		return 0
	}
	quantizeAVX2(&codes[0], &row[0], scale, steps)
	return 32 * steps
}

func dequantizeVector(row []float32, codes []byte, scale float32) int {
	steps := len(row) / 32
	if !vectors || steps == 0 {
		return 0
	}
	dequantizeAVX2(&row[0], &codes[0], scale, steps)
	return 32 * steps
}

// The lists of levels.go have room for whole steps, and these do all of the work, or none if ok is false.

func packLevelVector(codes, escaped, list []byte, m int, width uint, base byte) (escapes int, ok bool) {
	if !vectors {
		return 0, false
	}
	return packLevelAVX2(&codes[0], &escaped[0], &list[0], int(width), int(base), (m+15)/16), true
}

func unpackLevelVector(list, codes, escaped []byte, m int, width uint, base byte) (escapes int, ok bool) {
	if !vectors {
		return 0, false
	}
	return unpackLevelAVX2(&list[0], &codes[0], &escaped[0], int(width), int(base), (m+15)/16), true
}

func packLowVector(low, high, plane []byte, n int, width uint) bool {
	if vectors {
		packLowAVX2(&low[0], &high[0], &plane[0], int(width), (n+7)/8)
	}
	return vectors
}

func unpackLowVector(plane, low []byte, n int, width uint) bool {
	if vectors {
		unpackLowAVX2(&plane[0], &low[0], int(width), (n+7)/8)
	}
	return vectors
}

// subtractRowsVector does what has a row before it, into dst, which begins there.
func subtractRowsVector(dst, plane []byte, row int) int {
	steps := (len(plane) - row) / 32
	if !vectors || steps <= 0 {
		return 0
	}
	subtractRowsAVX2(&dst[0], &plane[0], row, steps)
	return 32 * steps
}

func addRowsVector(plane []byte, row int) int {
	steps := (len(plane) - row) / 32
	if !vectors || steps <= 0 || row < 32 {
		return 0
	}
	addRowsAVX2(&plane[0], row, steps)
	return 32 * steps
}
