package contextframe

import (
	"bytes"
	"encoding/binary"
	"math"
	"math/bits"
	"slices"

	"headwater.example/tensor"
)

// Before a context is parted into planes of bytes, an element's sign is rotated to the lowest bit, so that the highest
// plane of a float32 or bfloat16 is its exponent alone. Elements of version 1 are as they are.

// split4 parts float32 into their four bytes, the lowest in plane 0.
func (c *coder) split4(block []float32) {
	n := len(block)
	p0, p1, p2, p3 := c.planes[0][:n], c.planes[1][:n], c.planes[2][:n], c.planes[3][:n]
	for i := c.split4Vector(block); i < n; i++ {
		b := bits.RotateLeft32(math.Float32bits(block[i]), 1)
		p0[i], p1[i], p2[i], p3[i] = byte(b), byte(b>>8), byte(b>>16), byte(b>>24)
	}
}

func join4(block []float32, planes [4][]byte, version int) {
	n := len(block)
	p0, p1, p2, p3 := planes[0][:n], planes[1][:n], planes[2][:n], planes[3][:n]
	start, rotation := 0, 0
	if version > 1 {
		start, rotation = join4Vector(block, planes), -1
	}
	for i := start; i < n; i++ {
		b := uint32(p0[i]) | uint32(p1[i])<<8 | uint32(p2[i])<<16 | uint32(p3[i])<<24
		block[i] = math.Float32frombits(bits.RotateLeft32(b, rotation))
	}
}

// split2 narrows float32 and parts the two bytes of each.
func (c *coder) split2(block []float32, codec Codec) error {
	n := len(block)
	start := c.split2Vector(block, codec)
	if start == n {
		return nil
	}
	narrow := c.narrow[:2*n]
	if err := tensor.Narrow(narrow, block, codec.dtype()); err != nil {
		return err
	}
	p0, p1 := c.planes[0][:n], c.planes[1][:n]
	for i := start; i < n; i++ {
		b := bits.RotateLeft16(binary.LittleEndian.Uint16(narrow[2*i:]), 1)
		p0[i], p1[i] = byte(b), byte(b>>8)
	}
	return nil
}

func (c *coder) join2(block []float32, planes [4][]byte, codec Codec, version int) error {
	n := len(block)
	start, rotation := 0, 0
	if version > 1 {
		start, rotation = join2Vector(block, planes, codec), -1
	}
	p0, p1, narrow := planes[0][start:n], planes[1][start:n], c.narrow[:2*(n-start)]
	for i := range p0 {
		binary.LittleEndian.PutUint16(narrow[2*i:], bits.RotateLeft16(uint16(p0[i])|uint16(p1[i])<<8, rotation))
	}
	if err := tensor.Widen(block[start:], narrow, codec.dtype()); err != nil {
		return frameErrorf("widen: %v", err)
	}
	return nil
}

// offset is added to the codes of int8, so that they are the bytes 1 to 255 and the middle is in the middle.
const offset = 128

// quantize sets plane 0 to the codes of a block of whole rows, and writes their scales.
func (c *coder) quantize(block []float32, vDim int, scales []byte) error {
	for r := range len(block) / vDim {
		row := block[r*vDim:][:vDim]
		scale, ok := quantizeRow(c.planes[0][r*vDim:][:vDim], row)
		if !ok {
			top := largest(row)
			i := slices.IndexFunc(row, func(x float32) bool { return math.Float32bits(x)&0x7fffffff == top })
			return &tensor.RangeError{Index: r*vDim + i, Value: row[i], DType: tensor.I8}
		}
		binary.LittleEndian.PutUint32(scales[4*r:], math.Float32bits(scale))
	}
	return nil
}

// dequantize is the inverse of quantize.
func dequantize(block []float32, codes []byte, vDim int, scales []byte) error {
	if bytes.IndexByte(codes[:len(block)], 0) >= 0 {
		return frameErrorf("code -128 is not one of int8")
	}
	for r := range len(block) / vDim {
		scale := math.Float32frombits(binary.LittleEndian.Uint32(scales[4*r:]))
		if !(scale >= 0) || math.IsInf(float64(scale*127), 0) {
			return frameErrorf("scale %g of a row is not one of int8", scale)
		}
		dequantizeRow(block[r*vDim:][:vDim], codes[r*vDim:][:vDim], scale)
	}
	return nil
}

// quantizeRow is tensor.QuantizeI8 with the offset. ok is false if an element is not finite, or if the largest one
// would come back as infinite.
func quantizeRow(codes []byte, row []float32) (scale float32, ok bool) {
	scale = math.Float32frombits(largest(row)) / 127
	if math.IsInf(float64(scale*127), 0) || scale != scale {
		return 0, false
	}
	if scale == 0 {
		for i := range codes {
			codes[i] = offset
		}
		return 0, true
	}
	for i := quantizeVector(codes, row, scale); i < len(row); i++ {
		q := math.RoundToEven(float64(row[i] / scale))
		codes[i] = byte(int(max(-127, min(127, q))) + offset)
	}
	return scale, true
}

// largest returns the bits of the row's largest magnitude; a NaN is larger than all numbers.
func largest(row []float32) uint32 {
	top, i := largestVector(row)
	for ; i < len(row); i++ {
		top = max(top, math.Float32bits(row[i])&0x7fffffff)
	}
	return top
}

func dequantizeRow(row []float32, codes []byte, scale float32) {
	for i := dequantizeVector(row, codes, scale); i < len(row); i++ {
		row[i] = float32(int(codes[i])-offset) * scale
	}
}
