package contextframe

import (
	"encoding/binary"
	"math"

	"github.com/klauspost/compress/huff0"
	"github.com/klauspost/compress/s2"
)

// Decode reads a frame into context [tokens, heads, v_dim] and lse [tokens, heads], whose lengths must be the frame's.
// The checksum is checked before anything is decoded. Beside the buffers it uses scratch of a fixed size, whatever the
// frame says. Any error is a *FrameError; the buffers then hold nothing of use.
func Decode(frame []byte, context, lse []float32) (Header, error) {
	h, err := ReadHeader(frame)
	if err != nil {
		return Header{}, err
	}
	if err := h.checkLengths(context, lse); err != nil {
		return Header{}, err
	}
	if err := checkSum(frame); err != nil {
		return Header{}, err
	}
	rest := frame[headerBytes : len(frame)-checksumBytes]
	for i := range lse {
		lse[i] = math.Float32frombits(binary.LittleEndian.Uint32(rest[4*i:]))
	}
	scales := rest[4*len(lse):][:h.scaleBytes()]
	rest = rest[4*len(lse)+len(scales):]
	c := coders.Get().(*coder)
	defer coders.Put(c)
	for at := 0; at < len(context); at += h.block() {
		block := context[at:min(at+h.block(), len(context))]
		var planes [4][]byte
		if rest, err = c.readBlock(rest, planes[:h.Codec.elementBytes()], len(block), h); err != nil {
			return Header{}, err
		}
		switch h.Codec {
		case Exact:
			join4(block, planes, h.Version)
		case I8:
			err = dequantize(block, planes[0], h.VDim, scales)
			scales = scales[4*(len(block)/h.VDim):]
		default:
			err = c.join2(block, planes, h.Codec, h.Version)
		}
		if err != nil {
			return Header{}, err
		}
	}
	if len(rest) != 0 {
		return Header{}, frameErrorf("%d bytes follow its last block", len(rest))
	}
	return h, nil
}

// readBlock sets planes to those of a block of n elements, and returns what follows it. A plane lies in the frame or in
// the scratch.
func (c *coder) readBlock(data []byte, planes [][]byte, n int, h Header) ([]byte, error) {
	head := 4 * len(planes)
	if len(data) < head {
		return nil, frameErrorf("it ends within a block's descriptors")
	}
	rest := data[head:]
	for p := range planes {
		descriptor := binary.LittleEndian.Uint32(data[4*p:])
		method, length := descriptor>>methodShift, int(descriptor&lengthMask)
		if length > len(rest) {
			return nil, frameErrorf("a plane of %d bytes has %d", length, len(rest))
		}
		coded := rest[:length]
		rest = rest[length:]
		plane := c.planes[p][:n]
		switch {
		case method == methodRaw && length == n:
			plane = coded
		case method == methodRepeat && length == 1:
			for i := range plane {
				plane[i] = coded[0]
			}
		case method == methodHuff0 && length < n:
			if err := c.inflate(plane, coded); err != nil {
				return nil, err
			}
		case method == methodS2 && length < n:
			if size, err := s2.DecodedLen(coded); err != nil || size != n {
				return nil, frameErrorf("s2 block is not one of %d bytes", n)
			}
			if _, err := s2.Decode(plane, coded); err != nil {
				return nil, frameErrorf("s2 block: %v", err)
			}
		case method == methodLevels && length < n && h.Version > 1:
			if err := c.readLevels(c.planes[p][:], coded, n, h.VDim); err != nil {
				return nil, err
			}
		default:
			return nil, frameErrorf("method %d with %d bytes can not code a plane of %d", method, length, n)
		}
		planes[p] = plane
	}
	return rest, nil
}

// inflate decodes a huff0 block that must fill the plane.
func (c *coder) inflate(plane, coded []byte) error {
	s, rest, err := huff0.ReadTable(coded, &c.huff)
	if err != nil {
		return frameErrorf("huff0 table: %v", err)
	}
	out, err := s.Decoder().Decompress4X(plane[:0:len(plane)], rest)
	if err != nil {
		return frameErrorf("huff0 streams: %v", err)
	}
	if len(out) != len(plane) || &out[0] != &plane[0] {
		return frameErrorf("huff0 streams give %d bytes for a plane of %d", len(out), len(plane))
	}
	return nil
}
