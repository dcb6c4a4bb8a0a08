package contextframe

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

	"headwater.example/tensor"
)

// coder is the scratch of one Encode or Decode: the planes of one block, lists and codes of levels, huff0's tables, and a
// plane coded by s2. Planes and lists have room behind them, for levels go in steps.
type coder struct {
	planes  [4][blockElements + padding]byte
	lists   [3][blockElements + padding]byte
	rows    [blockElements + padding]byte // differences of rows
	packed  [3*blockElements + padding]byte
	narrow  [2 * blockElements]byte
	huff    huff0.Scratch
	repeats []byte
	counts  [2]histogram
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
// *tensor.RangeError with the element's index, dst is returned as it was. Int8 has room for no infinity or NaN.
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
	scales := out[body : body+int(h.scaleBytes())]
	out = out[:body+len(scales)]
	c := coders.Get().(*coder)
	defer coders.Put(c)
	for at := 0; at < len(context); at += h.block() {
		block := context[at:min(at+h.block(), len(context))]
		if err := c.split(block, h, scales); err != nil {
			if r, ok := errors.AsType[*tensor.RangeError](err); ok {
				r.Index += at
			}
			return dst, fmt.Errorf("narrow context of group %d to %s: %w", group, codec, err)
		}
		scales = scales[min(len(scales), 4*(len(block)/h.VDim)):]
		out = c.appendBlock(out, h, len(block))
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

// split sets the planes to those of a block; with int8 it writes the scales of its rows, too.
func (c *coder) split(block []float32, h Header, scales []byte) error {
	switch h.Codec {
	case Exact:
		c.split4(block)
		return nil
	case I8:
		return c.quantize(block, h.VDim, scales)
	}
	return c.split2(block, h.Codec)
}

// dtype returns the type that a lossy codec narrows to.
func (c Codec) dtype() tensor.DType {
	if c == BF16 {
		return tensor.BF16
	}
	return tensor.F16
}

// appendBlock appends a block of n elements: a descriptor for each plane, then the planes.
func (c *coder) appendBlock(dst []byte, h Header, n int) []byte {
	at := len(dst)
	planes := h.Codec.elementBytes()
	dst = append(dst, make([]byte, 4*planes)...)
	rowsRepeat := false
	for p := range planes {
		start := len(dst)
		var method uint32
		dst, method, rowsRepeat = c.appendPlane(dst, p, n, h, rowsRepeat)
		binary.LittleEndian.PutUint32(dst[at+4*p:], method<<methodShift|uint32(len(dst)-start))
	}
	return dst
}

// appendPlane chooses a plane's method and appends what it gives. The lowest plane is noise, which s2 passes over at
// once, unless whole rows repeat, as those of padding do; so it tells whether s2 is worth trying on the others, too. The
// highest plane is for levels if it looks skewed. huff0 takes much longer and is for what is skewed in another way.
func (c *coder) appendPlane(dst []byte, p, n int, h Header, rowsRepeat bool) ([]byte, uint32, bool) {
	plane := c.planes[p][:n]
	counts := &c.counts[0]
	highest := p == h.Codec.elementBytes()-1
	samples := counts.sample(plane, highest)
	look := counts.look(samples)
	if look == looksConstant && constant(plane) {
		return append(dst, plane[0]), methodRepeat, rowsRepeat
	}
	if p == 0 && h.Codec != I8 || rowsRepeat {
		if out := s2.Encode(c.repeats, plane); len(out) < n-n/8 {
			return append(dst, out...), methodS2, true
		}
	}
	if look == looksRandom {
		return append(dst, plane...), methodRaw, rowsRepeat
	}
	if highest {
		best := makePlan(counts, samples, h.Codec.lowBits())
		list := c.planes[p][:]
		if h.Codec == I8 && n > h.VDim {
			subtractRows(c.rows[:n], plane, h.VDim)
			if byRow := makePlan(&c.counts[1], c.counts[1].sample(c.rows[:n], true), h.Codec.lowBits()); byRow.bits < best.bits {
				best, list = byRow, c.rows[:]
				best.rows = true
			}
		}
		if best.count > 0 {
			if out, ok := c.appendLevels(dst, list, n, best); ok {
				return out, methodLevels, rowsRepeat
			}
		}
	}
	if h.Codec != I8 {
		// Every error of huff0 means that this plane does not get smaller.
		if out, _, err := huff0.Compress4X(plane, &c.huff); err == nil {
			return append(dst, out...), methodHuff0, rowsRepeat
		}
	}
	return append(dst, plane...), methodRaw, rowsRepeat
}

type look uint8

const (
	looksRandom look = iota
	looksSkewed
	looksConstant
)

// sample counts up to 256 bytes of a plane, or 512 to plan with, with an odd stride so that no column of the rows is
// favoured.
func (h *histogram) sample(plane []byte, toPlan bool) (samples int) {
	clear(h[:])
	stride := len(plane)/256 | 1
	if toPlan {
		stride = len(plane)/512 | 1
	}
	for i := 0; i < len(plane); i += stride {
		h[plane[i]]++
		samples++
	}
	return samples
}

// look sees how often two samples are equal: once in 256 pairs where bytes are random. A plane that exceeds this by half
// has an entropy of at most about 7.4 bits, and coding it pays.
func (h *histogram) look(samples int) look {
	pairs := 0
	for _, c := range h {
		pairs += int(c) * (int(c) - 1)
	}
	switch all := samples * (samples - 1); {
	case pairs == all:
		return looksConstant
	case pairs*512 > all*3:
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
