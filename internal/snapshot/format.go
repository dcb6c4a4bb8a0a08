package snapshot

import (
	"encoding/binary"
	"hash/crc32"
	"math"
	"time"

	"headwater.example/attention"
	"headwater.example/shard"
)

// formatVersion is the newest, and arithmeticVersion the one that has arithmetics: a snapshot in which all layers have
// attention.Chain is of the first version.
const (
	formatVersion     = 2
	arithmeticVersion = 2
)

// version returns the version of a snapshot with that header.
func (h *Header) version() uint32 {
	for i := range h.Layers {
		if h.Layers[i].Arithmetic() != attention.Chain {
			return arithmeticVersion
		}
	}
	return 1
}

// magic begins a snapshot. Its control bytes show a transfer that took it for text.
const magic = "\x89HWSNP\r\n"

// Kinds of records, and how a payload is coded.
const (
	kindHeader byte = 1
	kindBlock  byte = 2
	kindEnd    byte = 3

	codingPlain byte = 0
	codingZstd  byte = 1
)

const (
	recordHead = 16
	blockHead  = 24
	// maxPayload bounds a record's payload: the largest position of a layer is 16 MiB, and its scales 32 KiB.
	maxPayload = 32 << 20
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// Flags of the header and of a layer.
const (
	flagPinned byte = 1

	flagCausal byte = 1
	flagAlibi  byte = 2
	flagSinks  byte = 4
)

// appendHeader writes a header that was checked.
func appendHeader(b []byte, h *Header) []byte {
	le := binary.LittleEndian
	var flags byte
	if h.Pinned {
		flags |= flagPinned
	}
	b = le.AppendUint32(b, uint32(len(h.Layers)))
	b = append(b, flags, 0, 0, 0)
	b = le.AppendUint64(b, uint64(h.TTL))
	for _, text := range []string{h.Name, h.Tenant, string(h.Model)} {
		b = le.AppendUint16(b, uint16(len(text)))
		b = append(b, text...)
	}
	for i := range h.Layers {
		l := &h.Layers[i]
		o := &l.Options
		flags = 0
		if o.Causal {
			flags |= flagCausal
		}
		if len(o.AlibiSlopes) > 0 {
			flags |= flagAlibi
		}
		if len(o.Sinks) > 0 {
			flags |= flagSinks
		}
		for _, n := range []int{l.Heads, l.KVHeads, l.Layout.HeadDim(), l.Layout.VDim()} {
			b = le.AppendUint32(b, uint32(n))
		}
		b = append(b, shard.StorageNumber(l.Storage()), flags, byte(l.Arithmetic()), 0)
		b = le.AppendUint64(b, uint64(max(o.WindowLeft, -1)))
		b = le.AppendUint64(b, uint64(max(o.WindowRight, -1)))
		b = le.AppendUint32(b, math.Float32bits(o.Scale))
		b = le.AppendUint32(b, math.Float32bits(o.Softcap))
		b = le.AppendUint64(b, l.First)
		b = le.AppendUint64(b, l.Length)
		for _, values := range [][]float32{o.AlibiSlopes, o.Sinks} {
			for _, x := range values {
				b = le.AppendUint32(b, math.Float32bits(x))
			}
		}
		for _, hash := range l.Before {
			b = le.AppendUint64(b, hash)
		}
	}
	return b
}

// cursor reads a payload; once it has run out it gives zeros, and short says so.
type cursor struct {
	b     []byte
	short bool
}

func (c *cursor) bytes(n int) []byte {
	if c.short || n > len(c.b) {
		c.short = true
		return nil
	}
	part := c.b[:n]
	c.b = c.b[n:]
	return part
}

func (c *cursor) u8() byte {
	if b := c.bytes(1); b != nil {
		return b[0]
	}
	return 0
}

func (c *cursor) u16() uint16 {
	if b := c.bytes(2); b != nil {
		return binary.LittleEndian.Uint16(b)
	}
	return 0
}

func (c *cursor) u32() uint32 {
	if b := c.bytes(4); b != nil {
		return binary.LittleEndian.Uint32(b)
	}
	return 0
}

func (c *cursor) u64() uint64 {
	if b := c.bytes(8); b != nil {
		return binary.LittleEndian.Uint64(b)
	}
	return 0
}

func (c *cursor) floats(n int) []float32 {
	b := c.bytes(4 * n)
	if b == nil {
		return nil
	}
	values := make([]float32, n)
	for i := range values {
		values[i] = math.Float32frombits(binary.LittleEndian.Uint32(b[4*i:]))
	}
	return values
}

func (c *cursor) hashes(n int) []uint64 {
	b := c.bytes(8 * n)
	if b == nil {
		return nil
	}
	values := make([]uint64, n)
	for i := range values {
		values[i] = binary.LittleEndian.Uint64(b[8*i:])
	}
	return values
}

// layerBytes is the least that a layer takes in a header.
const layerBytes = 4*4 + 4 + 2*8 + 2*4 + 2*8

// parseHeader reads the header of a snapshot of that version and checks it.
func parseHeader(payload []byte, version uint32) (*Header, *Error) {
	c := &cursor{b: payload}
	h := &Header{}
	layers := c.u32()
	flags := c.u8()
	reserved := c.bytes(3)
	h.TTL = time.Duration(c.u64())
	h.Name, h.Tenant = string(c.bytes(int(c.u16()))), string(c.bytes(int(c.u16())))
	h.Model = append(h.Model, c.bytes(int(c.u16()))...)
	switch {
	case c.short || int64(layers)*layerBytes > int64(len(c.b)):
		return nil, refuse(Invalid, "a header of %d bytes for %d layers", len(payload), layers)
	case layers > shard.MaxLayers:
		return nil, refuse(Invalid, "a header of %d layers, at most %d are allowed", layers, shard.MaxLayers)
	case flags&^flagPinned != 0 || anySet(reserved):
		return nil, refuse(Invalid, "the header has flags that version %d does not know", version)
	}
	h.Pinned = flags&flagPinned != 0
	h.Layers = make([]Layer, layers)
	for i := range h.Layers {
		if err := parseLayer(c, &h.Layers[i], i, version); err != nil {
			return nil, err
		}
	}
	if have := h.version(); have != version {
		return nil, refuse(Invalid, "the header is one of version %d in a snapshot of version %d", have, version)
	}
	if len(c.b) != 0 {
		return nil, refuse(Invalid, "the header has %d bytes after its last layer", len(c.b))
	}
	if err := h.check(); err != nil {
		return nil, err
	}
	return h, nil
}

func parseLayer(c *cursor, l *Layer, i int, version uint32) *Error {
	heads, kvHeads, headDim, vDim := c.u32(), c.u32(), c.u32(), c.u32()
	storage, flags := c.u8(), c.u8()
	arithmetic, reserved := c.u8(), c.u8()
	var o attention.Options
	o.WindowLeft, o.WindowRight = int64(c.u64()), int64(c.u64())
	o.Scale, o.Softcap = math.Float32frombits(c.u32()), math.Float32frombits(c.u32())
	l.First, l.Length = c.u64(), c.u64()
	switch {
	case c.short:
		return refuse(Invalid, "the header ends in layer %d", i)
	case flags&^(flagCausal|flagAlibi|flagSinks) != 0 || reserved != 0 || arithmetic != 0 && version < arithmeticVersion:
		return refuse(Invalid, "layer %d has flags that version %d does not know", i, version)
	case heads > shard.MaxHeads || kvHeads > heads: // before memory is taken for them
		return refuse(Invalid, "layer %d: %d query heads, %d key/value heads", i, heads, kvHeads)
	case o.WindowLeft < -1 || o.WindowRight < -1:
		return refuse(Invalid, "layer %d: windows of %d and %d", i, o.WindowLeft, o.WindowRight)
	}
	o.Causal = flags&flagCausal != 0
	if flags&flagAlibi != 0 {
		o.AlibiSlopes = c.floats(int(heads))
	}
	if flags&flagSinks != 0 {
		o.Sinks = c.floats(int(heads))
	}
	if l.First > 0 {
		l.Before = c.hashes(int(kvHeads))
	}
	if c.short {
		return refuse(Invalid, "the header ends in layer %d", i)
	}
	dtype, err := shard.StorageByNumber(storage)
	if err != nil {
		return refuse(Invalid, "layer %d: %v", i, err)
	}
	shape := shard.LayerShape{Heads: int(heads), KVHeads: int(kvHeads), HeadDim: int(headDim), VDim: int(vDim)}
	if l.LayerSpec, err = shard.NewLayerSpec(shape, dtype, o); err == nil {
		l.LayerSpec, err = l.WithArithmetic(attention.Arithmetic(arithmetic))
	}
	if err != nil {
		return refuse(Invalid, "layer %d: %v", i, err)
	}
	return nil
}

func anySet(b []byte) bool {
	for _, x := range b {
		if x != 0 {
			return true
		}
	}
	return false
}

// appendPlanes appends elements of size bytes by their bytes: the lowest of all, then the next of all. The high bytes of
// floating-point numbers are alike, and only together does zstd see it.
func appendPlanes(b, elements []byte, size int) []byte {
	from, n := len(b), len(elements)/size
	b = append(b, elements...)
	planes := b[from:]
	switch size {
	case 2:
		p0, p1 := planes[:n], planes[n:][:n]
		for i := range p0 {
			x := binary.LittleEndian.Uint16(elements[2*i:])
			p0[i], p1[i] = byte(x), byte(x>>8)
		}
	case 4:
		p0, p1, p2, p3 := planes[:n], planes[n:][:n], planes[2*n:][:n], planes[3*n:][:n]
		for i := range p0 {
			x := binary.LittleEndian.Uint32(elements[4*i:])
			p0[i], p1[i], p2[i], p3[i] = byte(x), byte(x>>8), byte(x>>16), byte(x>>24)
		}
	}
	return b
}

// joinPlanes is the inverse: it fills elements.
func joinPlanes(elements, planes []byte, size int) {
	n := len(elements) / size
	switch size {
	case 1:
		copy(elements, planes)
	case 2:
		p0, p1 := planes[:n], planes[n:][:n]
		for i, x := range p0 {
			binary.LittleEndian.PutUint16(elements[2*i:], uint16(x)|uint16(p1[i])<<8)
		}
	case 4:
		p0, p1, p2, p3 := planes[:n], planes[n:][:n], planes[2*n:][:n], planes[3*n:][:n]
		for i, x := range p0 {
			binary.LittleEndian.PutUint32(elements[4*i:], uint32(x)|uint32(p1[i])<<8|uint32(p2[i])<<16|uint32(p3[i])<<24)
		}
	}
}

// appendBlock writes a block that was checked.
func appendBlock(b []byte, block *Block, l *Layer) []byte {
	le := binary.LittleEndian
	b = le.AppendUint32(b, uint32(block.Layer))
	b = le.AppendUint32(b, uint32(block.Positions))
	b = le.AppendUint64(b, block.Start)
	b = le.AppendUint32(b, uint32(len(block.Tokens)))
	b = le.AppendUint32(b, 0)
	for _, token := range block.Tokens {
		b = le.AppendUint32(b, token)
	}
	size := l.Layout.DType().Size()
	b = appendPlanes(b, block.K, size)
	b = appendPlanes(b, block.V, size)
	for _, scales := range [][]float32{block.KScale, block.VScale} {
		for _, x := range scales {
			b = le.AppendUint32(b, math.Float32bits(x))
		}
	}
	return b
}
