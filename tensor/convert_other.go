//go:build !amd64

package tensor

// These would do a part of the work faster; see the other file.

func narrowFirst([]byte, []float32, DType) (n int, over bool) { return 0, false }

func largestFirst([]float32) (amax float32, n int) { return 0, 0 }

func quantizeFirst([]int8, []float32, float32) (n int) { return 0 }
