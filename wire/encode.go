package wire

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"slices"
	"sync"

	"github.com/klauspost/compress/huff0"
	"github.com/klauspost/compress/s2"
	"github.com/zeebo/xxh3"

	"headwater/tensor"
)

// coder is the scratch of one Encode or Decode: the planes of one block, huff0's tables, and a plane coded by s2.
type coder struct {
	planes  [4][blockElements]byte
	narrow  [2 * blockElements]byte
	huff    huff0.Scratch
	repeats []byte
}

var coders = sync.Pool{New: func() any {
	c := new(coder)
	c.huff.Reuse = huff0.ReusePolicyNone // each block stands alone, so equal contexts give equal frames
	c.huff.MaxDecodedSize = blockElements
	c.repeats = make([]byte, s2.MaxEncodedLen(blockElements))
	return c
}}

// Encode appends to dst the frame of one group's context [tokens, heads, v_dim] and LSE [tokens, heads], which are
// read only. Equal input gives equal bytes. On an error, which is a *FrameError, or for a lossy codec one that wraps a
// *tensor.RangeError with the element's index, dst is returned as it was.
func Encode(dst []byte, codec Codec, group, tokens, heads, vDim int, context, lse []float32) ([]byte, error) {
	h := Header{Version: Version, Codec: codec, Group: group, Tokens: tokens, Heads: heads, VDim: vDim}
	if err := h.checkShape(); err != nil {
		return dst, err
	}
	if err := h.checkLengths(context, lse); err != nil {
		return dst, err
	}
	start := len(dst)
	out := slices.Grow(dst, int(MaxFrameBytes(codec, tokens, heads, vDim)))
	out = h.append(out)
	for _, v := range lse {
		out = binary.LittleEndian.AppendUint32(out, math.Float32bits(v))
	}
	body := len(out)
	c := coders.Get().(*coder)
	defer coders.Put(c)
	for at := 0; at < len(context); at += blockElements {
		block := context[at:min(at+blockElements, len(context))]
		if codec == Exact {
			c.split4(block)
		} else if err := c.split2(block, codec); err != nil {
			if r, ok := errors.AsType[*tensor.RangeError](err); ok {
				r.Index += at
			}
			return dst, fmt.Errorf("narrow context of group %d to %s: %w", group, codec, err)
		}
		out = c.appendBlock(out, codec.elementBytes(), len(block))
	}
	binary.LittleEndian.PutUint64(out[start+24:], uint64(len(out)-body))
	return binary.LittleEndian.AppendUint64(out, xxh3.Hash(out[start:])), nil
}

func (h Header) checkLengths(context, lse []float32) error {
	if int64(len(context)) != h.Elements() || int64(len(lse)) != h.Rows() {
		return frameErrorf("buffers of %d context elements and %d LSEs for %d and %d", len(context), len(lse), h.Elements(), h.Rows())
	}
	return nil
}

// split4 parts float32 into their four bytes, the lowest in plane 0.
func (c *coder) split4(block []float32) {
	n := len(block)
	p0, p1, p2, p3 := c.planes[0][:n], c.planes[1][:n], c.planes[2][:n], c.planes[3][:n]
	for i, v := range block {
		b := math.Float32bits(v)
		p0[i], p1[i], p2[i], p3[i] = byte(b), byte(b>>8), byte(b>>16), byte(b>>24)
	}
}

// split2 narrows float32 and parts the two bytes of each.
func (c *coder) split2(block []float32, codec Codec) error {
	n := len(block)
	narrow := c.narrow[:2*n]
	if err := tensor.Narrow(narrow, block, codec.dtype()); err != nil {
		return err
	}
	p0, p1 := c.planes[0][:n], c.planes[1][:n]
	for i := range n {
		p0[i], p1[i] = narrow[2*i], narrow[2*i+1]
	}
	return nil
}

// dtype returns the type that a lossy codec narrows to.
func (c Codec) dtype() tensor.DType {
	if c == BF16 {
		return tensor.BF16
	}
	return tensor.F16
}

// appendBlock appends a block of n elements: a descriptor for each plane, then the planes.
func (c *coder) appendBlock(dst []byte, planes, n int) []byte {
	at := len(dst)
	for range planes {
		dst = binary.LittleEndian.AppendUint32(dst, 0)
	}
	rowsRepeat := false
	for p := range planes {
		var method uint32
		var coded []byte
		method, coded, rowsRepeat = c.code(c.planes[p][:n], p == 0, rowsRepeat)
		binary.LittleEndian.PutUint32(dst[at+4*p:], method<<methodShift|uint32(len(coded)))
		dst = append(dst, coded...)
	}
	return dst
}

// code chooses a plane's method. The lowest plane is noise, which s2 passes over at once, unless whole rows repeat, as
// those of padding do; so it tells whether s2 is worth trying on the others, too. huff0 is tried on what looks skewed.
func (c *coder) code(plane []byte, lowest, rowsRepeat bool) (method uint32, coded []byte, repeat bool) {
	method, coded = methodRaw, plane
	look := probe(plane)
	if look == looksConstant && constant(plane) {
		return methodRepeat, plane[:1], rowsRepeat
	}
	if lowest || rowsRepeat {
		if out := s2.Encode(c.repeats, plane); len(out) < len(plane)-len(plane)/8 {
			method, coded, rowsRepeat = methodS2, out, true
		}
	}
	if look != looksRandom {
		// Every error of huff0 means that this plane does not get smaller.
		if out, _, err := huff0.Compress4X(plane, &c.huff); err == nil && len(out) < len(coded) {
			method, coded = methodHuff0, out
		}
	}
	return method, coded, rowsRepeat
}

type look uint8

const (
	looksRandom look = iota
	looksSkewed
	looksConstant
)

// probe samples up to 512 bytes of a plane, with an odd stride so that no column of the rows is favoured, and looks at
// how often two of them are equal: once in 256 pairs where bytes are random. A plane that exceeds this by half has an
// entropy of at most about 7.4 bits, and coding it pays.
func probe(plane []byte) look {
	stride := len(plane)/512 | 1
	var count [256]uint16
	n := 0
	for i := 0; i < len(plane); i += stride {
		count[plane[i]]++
		n++
	}
	var pairs int
	for _, c := range count {
		pairs += int(c) * (int(c) - 1)
	}
	switch {
	case pairs == n*(n-1):
		return looksConstant
	case pairs*512 > n*(n-1)*3:
		return looksSkewed
	}
	return looksRandom
}

func constant(plane []byte) bool {
	for _, b := range plane {
		if b != plane[0] {
			return false
		}
	}
	return true
}
