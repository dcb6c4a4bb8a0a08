package contextframe_test

import (
	"encoding/binary"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/klauspost/compress/huff0"
	"github.com/klauspost/compress/s2"

	"headwater.example/internal/contextframe"
	"headwater.example/tensor"
)

// bitReader reads fields as docs/wire.md packs them: the lowest bit first.
type bitReader struct {
	data []byte
	at   int
}

func (r *bitReader) read(width int) (v int) {
	for i := range width {
		v |= int(r.data[r.at/8]>>(r.at%8)&1) << i
		r.at++
	}
	return v
}

// plainLevels reads the method `levels` one bit at a time.
func plainLevels(coded []byte, n, row int) []byte {
	low, levels := int(coded[0]&7), int(coded[1])
	body := coded[2+4*levels:]
	section := func(n, width int) *bitReader {
		size := (n + 7) / 8 * width
		if width == 8 {
			size = n
		}
		r := &bitReader{data: body[:size]}
		body = body[size:]
		return r
	}
	var lows *bitReader
	if low > 0 {
		lows = section(n, low)
	}
	type list struct {
		*bitReader
		width, base int
	}
	var lists []list
	size := n
	for i := range levels {
		head := coded[2+4*i:]
		lists = append(lists, list{section(size, int(head[0])), int(head[0]), int(head[1])})
		size = int(binary.LittleEndian.Uint16(head[2:]))
	}
	plane := make([]byte, n)
	for i := range plane {
		var v int
		for _, l := range lists {
			if v = l.read(l.width); l.width == 8 || v != 1<<l.width-1 {
				v += l.base
				break
			}
		}
		if low > 0 {
			v = v<<low | lows.read(low)
		}
		plane[i] = byte(v)
	}
	if coded[0]&0x80 != 0 {
		for i := row; i < n; i++ {
			plane[i] += plane[i-row] - 128
		}
	}
	return plane
}

// plainDecode reads a good frame as docs/wire.md says, with nothing of the package.
func plainDecode(t testing.TB, frame []byte) (context []float32) {
	u32 := binary.LittleEndian.Uint32
	version, codec := frame[4], frame[6]
	rows, vDim := int(u32(frame[12:])*u32(frame[16:])), int(u32(frame[20:]))
	rest := frame[32+4*rows : len(frame)-8]
	size := map[byte]int{1: 4, 2: 2, 3: 2, 4: 1}[codec]
	block := 1 << 15
	var scales []byte
	if codec == 4 {
		scales, rest = rest[:4*rows], rest[4*rows:]
		block = block / vDim * vDim
	}
	for n := rows * vDim; len(context) < n; {
		elements := min(block, n-len(context))
		planes := make([][]byte, size)
		heads := rest
		rest = rest[4*size:]
		for p := range planes {
			method, length := u32(heads[4*p:])>>28, u32(heads[4*p:])&(1<<28-1)
			coded := rest[:length]
			rest = rest[length:]
			var err error
			switch method {
			case 0:
				planes[p] = coded
			case 1:
				planes[p] = []byte(strings.Repeat(string(coded), elements))
			case 2:
				var s *huff0.Scratch
				if s, coded, err = huff0.ReadTable(coded, nil); err == nil {
					planes[p], err = s.Decoder().Decompress4X(make([]byte, 0, elements), coded)
				}
			case 3:
				planes[p], err = s2.Decode(nil, coded)
			case 4:
				planes[p] = plainLevels(coded, elements, vDim)
			}
			if err != nil || len(planes[p]) != elements {
				t.Fatalf("plane %d by method %d: %d bytes, %v", p, method, len(planes[p]), err)
			}
		}
		for i := range elements {
			bits := uint32(0)
			for p := range planes {
				bits |= uint32(planes[p][i]) << (8 * p)
			}
			if version > 1 && codec != 4 {
				bits = bits>>1 | bits&1<<(8*size-1)
			}
			x := []float32{0}
			b := binary.LittleEndian.AppendUint32(nil, bits)
			switch codec {
			case 1:
				x[0] = math.Float32frombits(bits)
			case 2:
				tensor.Widen(x, b[:2], tensor.BF16)
			case 3:
				tensor.Widen(x, b[:2], tensor.F16)
			case 4:
				x[0] = float32(int(bits)-128) * math.Float32frombits(u32(scales[4*(len(context)/vDim):]))
			}
			context = append(context, x[0])
		}
	}
	return context
}

// Blocks follow each other as the document says.
func TestBlocksByTheDocument(t *testing.T) {
	a := mixture(6, 1, 350, 1, 96)
	for _, codec := range codecs {
		if !sameBits(plainDecode(t, encode(t, codec, a)), want(t, codec, a.context, a.vDim)) {
			t.Errorf("%v: the document says other bits", codec)
		}
	}
}

// Frames of version 1, as the first release of the format wrote them, are read for ever.
func TestVersion1IsRead(t *testing.T) {
	answers := map[string]answer{
		"mixture":  mixture(9, 1, 20, 3, 64),
		"repeated": repeated(mixture(2, 1, 12, 1, 64)),
		"constant": {2, 1, 2, []float32{0, 0, 0, 0}, []float32{1, 2}},
	}
	for name, a := range answers {
		for _, codec := range []contextframe.Codec{contextframe.Exact, contextframe.BF16, contextframe.F16} {
			f, err := os.ReadFile(filepath.Join("testdata", "v1", fmt.Sprintf("%s.%s", name, codec)))
			if err != nil {
				t.Fatal(err)
			}
			context, lse := make([]float32, len(a.context)), make([]float32, len(a.lse))
			h, err := contextframe.Decode(f, context, lse)
			if err != nil || h.Version != 1 {
				t.Fatalf("%s %s: version %d, %v", name, codec, h.Version, err)
			}
			if !sameBits(context, want(t, codec, a.context, a.vDim)) || !sameBits(lse, a.lse) || !sameBits(context, plainDecode(t, f)) {
				t.Fatalf("%s %s: other bits came back", name, codec)
			}
		}
	}
}
