// Package contextframe codes finished contexts for the way back from a worker: one frame for one group's context and LSE.
//
// The exact codec returns every bit. It splits the context's float32 into byte planes, because the exponents of
// neighbouring elements resemble each other and their mantissas do not, and codes the planes that compress. The lossy
// codecs narrow the context to two bytes or one an element first; they are never a default. The LSE is always exact.
// docs/wire.md describes every byte, and why these methods were chosen over others.
package contextframe

import (
	"encoding/binary"
	"fmt"
	"maps"
	"math"
	"slices"

	"github.com/zeebo/xxh3"

	"headwater.example/shard"
)

// Codec says how a context is coded. The values are those of headwater.v1.ContextCodec.
type Codec uint8

// The codecs.
const (
	Exact Codec = 1 // every bit comes back
	BF16  Codec = 2 // narrowed to bfloat16, nearest even
	F16   Codec = 3 // narrowed to IEEE binary16, nearest even
	I8    Codec = 4 // narrowed to int8 with a scale for each row, as tensor.QuantizeI8 does
)

var codecNames = map[Codec]string{Exact: "exact", BF16: "bf16", F16: "f16", I8: "int8"}

// Codecs returns all codecs, by their values.
func Codecs() []Codec { return slices.Sorted(maps.Keys(codecNames)) }

// Known says whether it is one of the codecs.
func (c Codec) Known() bool { return codecNames[c] != "" }

// String returns "exact", "bf16", "f16" or "int8".
func (c Codec) String() string {
	if name, ok := codecNames[c]; ok {
		return name
	}
	return fmt.Sprintf("Codec(%d)", uint8(c))
}

// elementBytes returns the size of a coded context element before compression.
func (c Codec) elementBytes() int {
	switch c {
	case Exact:
		return 4
	case I8:
		return 1
	}
	return 2
}

// lowBits returns how many of the highest plane's low bits are noise: the mantissa's in a float16, half of an int8.
func (c Codec) lowBits() uint {
	switch c {
	case F16:
		return 3
	case I8:
		return 4
	}
	return 0
}

// maxTokens bounds the tokens of a frame. Its groups, heads and v_dim have the limits of a layer.
const maxTokens = math.MaxUint32

// Version is the version of the frame format that this package writes. It reads all up to it.
const Version = 2

const (
	magic         = "HWcx"
	headerBytes   = 32
	checksumBytes = 8
	blockElements = 1 << 15 // elements that are split into planes and coded together
	methodShift   = 28      // a plane's descriptor: the method above, the length in bytes below
	lengthMask    = 1<<methodShift - 1
)

// The methods of a plane in a block.
const (
	methodRaw    = 0 // as it is
	methodRepeat = 1 // one byte, repeated
	methodHuff0  = 2 // huff0 with its table and four streams
	methodS2     = 3 // an s2 block
	methodLevels = 4 // see levels.go; from version 2
)

// Header describes a frame.
type Header struct {
	Version int
	Codec   Codec
	Group   int // KV group of the layer
	Tokens  int // query tokens
	Heads   int // query heads of the group
	VDim    int // elements of a value

	// ContextBytes is the coded context's part of the frame.
	ContextBytes int64
}

// Elements returns the number of context elements: [tokens, heads, v_dim].
func (h Header) Elements() int64 { return int64(h.Tokens) * int64(h.Heads) * int64(h.VDim) }

// Rows returns the number of LSEs: [tokens, heads].
func (h Header) Rows() int64 { return int64(h.Tokens) * int64(h.Heads) }

// RawBytes returns the bytes that the frame stands for: context and LSE in float32.
func RawBytes(h Header) int64 { return 4 * (h.Elements() + h.Rows()) }

// MaxFrameBytes returns a bound for the bytes of a frame of this codec and shape, which must be within the limits.
func MaxFrameBytes(codec Codec, tokens, heads, vDim int) int64 {
	h := Header{Codec: codec, Tokens: tokens, Heads: heads, VDim: vDim}
	return headerBytes + checksumBytes + 4*h.Rows() + h.mostContextBytes()
}

// FrameError says which rule a frame, or what was to become one, does not keep.
type FrameError struct{ Rule string }

func (e *FrameError) Error() string { return "context frame: " + e.Rule }

func frameErrorf(format string, args ...any) error {
	return &FrameError{Rule: fmt.Sprintf(format, args...)}
}

// block returns the elements of a block. With int8 it has whole rows.
func (h Header) block() int {
	if h.Codec == I8 {
		return blockElements / h.VDim * h.VDim
	}
	return blockElements
}

func (h Header) blocks() int64 {
	size := int64(h.block())
	return (h.Elements() + size - 1) / size
}

// scaleBytes returns the bytes of the rows' scales, before the blocks.
func (h Header) scaleBytes() int64 {
	if h.Codec == I8 {
		return 4 * h.Rows()
	}
	return 0
}

// leastContextBytes returns a bound: each plane of each block has a descriptor and a byte.
func (h Header) leastContextBytes() int64 {
	return h.scaleBytes() + 5*h.blocks()*int64(h.Codec.elementBytes())
}

// mostContextBytes returns a bound: each plane of each block has a descriptor and is as it is.
func (h Header) mostContextBytes() int64 {
	size := int64(h.Codec.elementBytes())
	return h.scaleBytes() + 4*h.blocks()*size + h.Elements()*size
}

// checkShape refuses what is outside the limits. Within them, no product of a shape overflows an int64.
func (h Header) checkShape() error {
	if _, ok := codecNames[h.Codec]; !ok || h.Codec == I8 && h.Version < 2 {
		return frameErrorf("codec %d is unknown in version %d", uint8(h.Codec), h.Version)
	}
	for _, b := range []struct {
		field           string
		value, min, max int64
	}{
		{"group", int64(h.Group), 0, shard.MaxHeads - 1},
		{"tokens", int64(h.Tokens), 1, maxTokens},
		{"heads", int64(h.Heads), 1, shard.MaxHeads},
		{"v_dim", int64(h.VDim), 1, shard.MaxDim},
	} {
		if b.value < b.min || b.value > b.max {
			return frameErrorf("%s %d is not in %d to %d", b.field, b.value, b.min, b.max)
		}
	}
	return nil
}

func (h Header) append(dst []byte) []byte {
	dst = append(dst, magic...)
	dst = binary.LittleEndian.AppendUint16(dst, uint16(h.Version))
	dst = append(dst, byte(h.Codec), 0)
	dst = binary.LittleEndian.AppendUint32(dst, uint32(h.Group))
	dst = binary.LittleEndian.AppendUint32(dst, uint32(h.Tokens))
	dst = binary.LittleEndian.AppendUint32(dst, uint32(h.Heads))
	dst = binary.LittleEndian.AppendUint32(dst, uint32(h.VDim))
	return binary.LittleEndian.AppendUint64(dst, uint64(h.ContextBytes))
}

// ReadHeader reads and checks what a frame says of itself, and that the frame has the length that follows. It does not
// check the checksum, which Decode does. RawBytes of the header is at most 513 times the frame's length, so buffers may
// be made for it. Any error is a *FrameError.
func ReadHeader(frame []byte) (Header, error) {
	if len(frame) < headerBytes+checksumBytes {
		return Header{}, frameErrorf("%d bytes are too few for a frame", len(frame))
	}
	if string(frame[:4]) != magic {
		return Header{}, frameErrorf("it does not begin with %q", magic)
	}
	u32 := binary.LittleEndian.Uint32
	version := int(binary.LittleEndian.Uint16(frame[4:]))
	if version < 1 || version > Version {
		return Header{}, frameErrorf("version %d, this side reads versions 1 to %d", version, Version)
	}
	if frame[7] != 0 {
		return Header{}, frameErrorf("the reserved byte is %d, not 0", frame[7])
	}
	h := Header{
		Version: version, Codec: Codec(frame[6]),
		Group: int(u32(frame[8:])), Tokens: int(u32(frame[12:])), Heads: int(u32(frame[16:])), VDim: int(u32(frame[20:])),
	}
	if err := h.checkShape(); err != nil {
		return Header{}, err
	}
	rest := int64(len(frame) - headerBytes - checksumBytes)
	coded := binary.LittleEndian.Uint64(frame[24:])
	if 4*h.Rows() > rest || coded != uint64(rest-4*h.Rows()) {
		return Header{}, frameErrorf("%d bytes of LSE and %d of context do not fill its %d bytes", 4*h.Rows(), coded, rest)
	}
	h.ContextBytes = int64(coded)
	if h.ContextBytes < h.leastContextBytes() || h.ContextBytes > h.mostContextBytes() {
		return Header{}, frameErrorf("%d bytes can not code a context of %d elements", h.ContextBytes, h.Elements())
	}
	return h, nil
}

// checkSum refuses a frame with a byte that is not as it was written.
func checkSum(frame []byte) error {
	at := len(frame) - checksumBytes
	if said, is := binary.LittleEndian.Uint64(frame[at:]), xxh3.Hash(frame[:at]); said != is {
		return frameErrorf("checksum %016x, its bytes have %016x", said, is)
	}
	return nil
}
