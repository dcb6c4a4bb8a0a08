// Package workertest makes the tensors that the tests of both trades of a worker send.
package workertest

import (
	"encoding/binary"
	"math"
	"math/rand/v2"

	"headwater.example/attention"
	"headwater.example/internal/layerproto"
	headwaterv1 "headwater.example/proto/headwater/v1"
	"headwater.example/tensor"
)

// Fataler is a test, a benchmark or a property.
type Fataler interface {
	Helper()
	Fatal(args ...any)
	Fatalf(format string, args ...any)
}

// StorageOf returns the element type of a storage type, which is one.
func StorageOf(s headwaterv1.StorageType) tensor.DType {
	dtype, err := layerproto.ReadStorage(s)
	if err != nil {
		panic(err)
	}
	return dtype
}

// LittleEndian encodes float32 values.
func LittleEndian(x []float32) []byte {
	p := make([]byte, 0, 4*len(x))
	for _, v := range x {
		p = binary.LittleEndian.AppendUint32(p, math.Float32bits(v))
	}
	return p
}

// Normals draws n values.
func Normals(rng *rand.Rand, n int) []float32 {
	x := make([]float32, n)
	for i := range x {
		x[i] = float32(rng.NormFloat64())
	}
	return x
}

// Store narrows n rows of x.
func Store(t Fataler, x []float32, n int, dt tensor.DType) ([]byte, []float32) {
	t.Helper()
	if dt != tensor.I8 {
		p := make([]byte, len(x)*dt.Size())
		if err := tensor.Narrow(p, x, dt); err != nil {
			t.Fatal(err)
		}
		return p, nil
	}
	var p []byte
	var scales []float32
	for i := range n {
		row := make([]int8, len(x)/n)
		scales = append(scales, tensor.QuantizeI8(row, x[i*len(row):(i+1)*len(row)]))
		for _, c := range row {
			p = append(p, byte(c))
		}
	}
	return p, scales
}

// Cut returns the positions [from, to) of rows.
func Cut(rows attention.Rows, layout attention.Layout, from, to int) attention.Rows {
	kb, vb := layout.KRowBytes(), layout.VRowBytes()
	out := attention.Rows{K: rows.K[from*kb : to*kb], V: rows.V[from*vb : to*vb]}
	if layout.DType() == tensor.I8 {
		out.KScale, out.VScale = rows.KScale[from:to], rows.VScale[from:to]
	}
	return out
}

// Differs returns the first index at which two slices differ in a bit, or -1.
func Differs(a, b []float32) int {
	if len(a) != len(b) {
		return min(len(a), len(b))
	}
	for i := range a {
		if math.Float32bits(a[i]) != math.Float32bits(b[i]) {
			return i
		}
	}
	return -1
}
