package tensor

import (
	"unsafe"

	"headwater.example/internal/processor"
)

//go:generate sh -c "cd _gen && go run . -out ../vector_amd64.s -stubs ../vector_amd64.go -pkg tensor"

var vectors = processor.Has(processor.AVX2, processor.F16C)

// narrowFirst narrows the first elements of src, as many as it returns, unless over says that a finite one would become
// infinite.
func narrowFirst(dst []byte, src []float32, dt DType) (n int, over bool) {
	n = len(src)
	if n == 0 {
		return 0, false
	}
	if dt == F32 {
		// The machine is little-endian.
		return copy(dst, unsafe.Slice((*byte)(unsafe.Pointer(&src[0])), 4*n)) / 4, false
	}
	if n &^= 15; n == 0 || !vectors {
		return 0, false
	}
	if dt == F16 {
		return n, narrowF16(&dst[0], &src[0], n)
	}
	return n, narrowBF16(&dst[0], &src[0], n)
}

// largestFirst returns the largest absolute value of the first elements of row, and how many these are.
func largestFirst(row []float32) (amax float32, n int) {
	if n = len(row) &^ 15; n == 0 || !vectors {
		return 0, 0
	}
	return largest(&row[0], n), n
}

// quantizeFirst quantizes the first elements of row, as many as it returns.
func quantizeFirst(dst []int8, row []float32, scale float32) (n int) {
	if n = len(row) &^ 15; n == 0 || !vectors {
		return 0
	}
	quantize(&dst[0], &row[0], scale, n)
	return n
}
