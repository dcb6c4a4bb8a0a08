package contextframe_test

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"math"
	"math/rand/v2"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/klauspost/compress/s2"
	"github.com/zeebo/xxh3"
	"pgregory.net/rapid"

	"headwater.example/internal/contextframe"
	"headwater.example/tensor"
)

var codecs = []contextframe.Codec{contextframe.Exact, contextframe.BF16, contextframe.F16, contextframe.I8}

func encode(t testing.TB, codec contextframe.Codec, a answer) []byte {
	t.Helper()
	f, err := contextframe.Encode(nil, codec, 5, a.tokens, a.heads, a.vDim, a.context, a.lse)
	if err != nil {
		t.Fatal(err)
	}
	return f
}

// want returns what must come back: every bit, or what tensor's conversions make of it.
func want(t testing.TB, codec contextframe.Codec, context []float32, vDim int) []float32 {
	t.Helper()
	if codec == contextframe.I8 {
		out, q := make([]float32, len(context)), make([]int8, vDim)
		for at := 0; at < len(context); at += vDim {
			scale := tensor.QuantizeI8(q, context[at:at+vDim])
			for i, code := range q {
				out[at+i] = float32(code) * scale
			}
		}
		return out
	}
	dt, lossy := map[contextframe.Codec]tensor.DType{contextframe.BF16: tensor.BF16, contextframe.F16: tensor.F16}[codec]
	if !lossy {
		return context
	}
	b, out := make([]byte, 2*len(context)), make([]float32, len(context))
	if err := tensor.Narrow(b, context, dt); err != nil {
		t.Fatal(err)
	}
	if err := tensor.Widen(out, b, dt); err != nil {
		t.Fatal(err)
	}
	return out
}

func sameBits(a, b []float32) bool {
	return slices.EqualFunc(a, b, func(x, y float32) bool { return math.Float32bits(x) == math.Float32bits(y) })
}

func checkRoundTrip(t testing.TB, codec contextframe.Codec, a answer) {
	t.Helper()
	before := slices.Clone(a.context)
	f := encode(t, codec, a)
	if int64(len(f)) > contextframe.MaxFrameBytes(codec, a.tokens, a.heads, a.vDim) {
		t.Fatalf("%d bytes, the bound is %d", len(f), contextframe.MaxFrameBytes(codec, a.tokens, a.heads, a.vDim))
	}
	context, lse := make([]float32, len(a.context)), make([]float32, len(a.lse))
	portableContext := make([]float32, len(a.context))
	h, err := contextframe.Decode(f, context, lse)
	if err != nil {
		t.Fatal(err)
	}
	if read, err := contextframe.ReadHeader(f); err != nil || read != h {
		t.Fatalf("ReadHeader gives %+v, %v; Decode %+v", read, err, h)
	}
	if h.Version != contextframe.Version || h.Codec != codec || h.Group != 5 || h.Tokens != a.tokens || h.Heads != a.heads || h.VDim != a.vDim {
		t.Fatalf("header %+v of %d tokens, %d heads, v_dim %d, %v", h, a.tokens, a.heads, a.vDim, codec)
	}
	if raw := contextframe.RawBytes(h); raw != int64(4*len(context)+4*len(lse)) || raw > 513*int64(len(f)) {
		t.Fatalf("%d raw bytes in a frame of %d", raw, len(f))
	}
	if !sameBits(a.context, before) {
		t.Fatal("the context changed")
	}
	if len(f) < 1<<14 && !sameBits(context, plainDecode(t, f)) { // it reads a bit at a time
		t.Fatalf("%v: the document says other bits", codec)
	}
	was := contextframe.SetVectors(false)
	portable := encode(t, codec, a)
	_, err = contextframe.Decode(f, portableContext, lse)
	contextframe.SetVectors(was)
	if err != nil || !bytes.Equal(portable, f) || !sameBits(portableContext, context) {
		t.Fatalf("%v: portable code gives other bytes or bits: %v", codec, err)
	}
	if !sameBits(lse, a.lse) || !sameBits(context, want(t, codec, a.context, a.vDim)) {
		t.Fatalf("%v: other bits came back", codec)
	}
}

func TestInputsRoundTrip(t *testing.T) {
	for name, answers := range inputs(t) {
		t.Run(name, func(t *testing.T) {
			for _, codec := range codecs {
				for _, a := range answers {
					checkRoundTrip(t, codec, a)
				}
			}
		})
	}
}

// Element counts around the borders of blocks, and values of every kind: noise in all bits (NaN with payloads among
// them), skewed, sparse, constant, and repeating in part.
func TestAnyBitsRoundTrip(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		a := answer{heads: rapid.IntRange(1, 5).Draw(rt, "heads"), vDim: rapid.SampledFrom([]int{1, 2, 7, 64, 128, 512}).Draw(rt, "v_dim")}
		size := rapid.OneOf(rapid.IntRange(1, 300), rapid.IntRange(1<<15-600, 1<<15+600), rapid.IntRange(1<<16-600, 1<<16+600)).Draw(rt, "size")
		a.tokens = max(1, size/(a.heads*a.vDim))
		n := a.tokens * a.heads * a.vDim
		a.context, a.lse = make([]float32, n), make([]float32, a.tokens*a.heads)
		r := rand.New(rand.NewPCG(rapid.Uint64().Draw(rt, "seed"), 0))
		kinds := []func(i int) uint32{
			func(int) uint32 { return r.Uint32() },
			func(int) uint32 { return math.Float32bits(float32(r.NormFloat64())) },
			func(int) uint32 { return 0 },
			func(int) uint32 { return 0xff800001 },
			func(int) uint32 { return uint32(r.IntN(40)/39) << r.IntN(32) },
			func(int) uint32 { return math.Float32bits(float32(r.NormFloat64())) &^ 0xffff },
			func(i int) uint32 { return math.Float32bits(a.context[max(0, i-64)]) },
		}
		pieces := rapid.IntRange(1, 4).Draw(rt, "pieces")
		for p := range pieces {
			kind := rapid.IntRange(0, len(kinds)-1).Draw(rt, "kind")
			for i := n * p / pieces; i < n*(p+1)/pieces; i++ {
				a.context[i] = math.Float32frombits(kinds[kind](i))
			}
		}
		for i := range a.lse {
			a.lse[i] = math.Float32frombits(r.Uint32())
		}
		checkRoundTrip(t, contextframe.Exact, a)
		for i, v := range a.context { // narrowing refuses large values, and NaN changes its payload
			if !(v > -65504 && v < 65504) {
				a.context[i] = float32(math.Inf(i%2*2 - 1))
			}
		}
		checkRoundTrip(t, contextframe.BF16, a)
		checkRoundTrip(t, contextframe.F16, a)
		for i, v := range a.context {
			if math.IsInf(float64(v), 0) {
				a.context[i] = math.MaxFloat32 / 2
			}
		}
		checkRoundTrip(t, contextframe.I8, a)
	})
}

func TestRangeIsRefused(t *testing.T) {
	a := mixture(1, 1, 700, 1, 64)
	const at = 1<<15 + 77
	a.context[at] = 70000
	dst := []byte("before")
	out, err := contextframe.Encode(dst, contextframe.F16, 0, a.tokens, a.heads, a.vDim, a.context, a.lse)
	r, ok := errors.AsType[*tensor.RangeError](err)
	if !ok || r.Index != at || r.Value != 70000 || strings.Contains(err.Error(), "\n") {
		t.Errorf("f16 of 70000: %v", err)
	}
	if string(out) != "before" {
		t.Errorf("dst came back as %q", out)
	}
	checkRoundTrip(t, contextframe.BF16, a)
	a.context[at] = math.MaxFloat32
	if _, err := contextframe.Encode(nil, contextframe.BF16, 0, a.tokens, a.heads, a.vDim, a.context, a.lse); err == nil {
		t.Error("bf16 of the largest float32 is not refused")
	}
	for _, v := range []float64{math.Inf(-1), math.NaN()} {
		a.context[at] = float32(v)
		out, err := contextframe.Encode(dst, contextframe.I8, 0, a.tokens, a.heads, a.vDim, a.context, a.lse)
		if r, ok := errors.AsType[*tensor.RangeError](err); !ok || r.Index != at || string(out) != "before" {
			t.Errorf("int8 of %v: %v", v, err)
		}
	}
}

func TestEncodeAppends(t *testing.T) {
	a := mixture(1, 1, 3, 2, 64)
	f := encode(t, contextframe.Exact, a)
	out, err := contextframe.Encode([]byte("before"), contextframe.Exact, 5, a.tokens, a.heads, a.vDim, a.context, a.lse)
	if err != nil || !bytes.Equal(out, append([]byte("before"), f...)) {
		t.Errorf("appended frame differs: %v", err)
	}
}

func TestEncodeErrors(t *testing.T) {
	buf := make([]float32, 4096*513)
	for name, c := range map[string]struct {
		codec                             contextframe.Codec
		group, tokens, heads, vDim, c, ls int
	}{
		"codec 0":    {0, 0, 1, 1, 1, 1, 1},
		"codec 5":    {5, 0, 1, 1, 1, 1, 1},
		"group -1":   {contextframe.Exact, -1, 1, 1, 1, 1, 1},
		"group 4096": {contextframe.Exact, 4096, 1, 1, 1, 1, 1},
		"tokens 0":   {contextframe.Exact, 0, 0, 1, 1, 0, 0},
		"heads 0":    {contextframe.Exact, 0, 1, 0, 1, 0, 0},
		"heads 4097": {contextframe.Exact, 0, 1, 4097, 1, 4097, 4097},
		"v_dim 513":  {contextframe.Exact, 0, 1, 1, 513, 513, 1},
		"1 context":  {contextframe.Exact, 0, 1, 2, 1, 1, 2},
		"3 LSE":      {contextframe.Exact, 0, 1, 2, 1, 2, 3},
	} {
		_, err := contextframe.Encode(nil, c.codec, c.group, c.tokens, c.heads, c.vDim, buf[:c.c], buf[:c.ls])
		if e, ok := errors.AsType[*contextframe.FrameError](err); !ok || !strings.Contains(e.Rule, name) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// The bytes of version 2, laid out by hand as docs/wire.md says: a raw plane and repeated ones; and one of int8.
func TestFormat(t *testing.T) {
	f, err := contextframe.Encode(nil, contextframe.Exact, 0x102, 1, 1, 2, []float32{1, 1.5}, []float32{-2})
	if err != nil {
		t.Fatal(err)
	}
	checkBytes(t, f, "48576378"+"0200"+"01"+"00"+"02010000"+"01000000"+"01000000"+"02000000"+"1500000000000000"+
		"000000c0"+
		"01000010"+"01000010"+"02000000"+"01000010"+
		"00"+"00"+"0080"+"7f")
	if f, err = contextframe.Encode(nil, contextframe.I8, 0x102, 1, 1, 2, []float32{-254, 2.9}, []float32{-2}); err != nil {
		t.Fatal(err)
	}
	checkBytes(t, f, "48576378"+"0200"+"04"+"00"+"02010000"+"01000000"+"01000000"+"02000000"+"0a00000000000000"+
		"000000c0"+
		"00000040"+
		"02000000"+
		"0181")
}

func checkBytes(t *testing.T, f []byte, body string) {
	t.Helper()
	b, err := hex.DecodeString(body)
	if err != nil {
		t.Fatal(err)
	}
	b = binary.LittleEndian.AppendUint64(b, xxh3.Hash(b))
	if !bytes.Equal(f, b) {
		t.Errorf("got  %x\nwant %x", f, b)
	}
}

// resum makes the checksum right again, as someone would who means harm.
func resum(f []byte) []byte {
	f = slices.Clone(f)
	binary.LittleEndian.PutUint64(f[len(f)-8:], xxh3.Hash(f[:len(f)-8]))
	return f
}

func TestEveryFlipIsDetected(t *testing.T) {
	for _, codec := range codecs {
		a := mixture(9, 1, 2, 3, 64)
		f := encode(t, codec, a)
		for i := range f {
			for bit := range 8 {
				f[i] ^= 1 << bit
				if _, err := contextframe.Decode(f, a.context, a.lse); err == nil {
					t.Fatalf("%v: bit %d of byte %d of %d flipped unseen", codec, bit, i, len(f))
				} else if _, ok := errors.AsType[*contextframe.FrameError](err); !ok {
					t.Fatalf("%T: %v", err, err)
				}
				f[i] ^= 1 << bit
			}
		}
		for n := range f {
			if _, err := contextframe.Decode(f[:n], a.context, a.lse); err == nil {
				t.Fatalf("%v: cut to %d of %d bytes unseen", codec, n, len(f))
			}
		}
		if _, err := contextframe.Decode(append(f, 0), a.context, a.lse); err == nil {
			t.Fatalf("%v: a byte more is unseen", codec)
		}
	}
}

func TestDecodeErrors(t *testing.T) {
	good := encode(t, contextframe.Exact, mixture(9, 1, 2, 3, 64))
	const at = 32 + 4*6 // the first descriptor
	descriptor := func(method, length uint32) func([]byte) {
		return func(f []byte) { binary.LittleEndian.PutUint32(f[at+12:], method<<28|length) }
	}
	for name, change := range map[string]func(f []byte){
		"begin":           func(f []byte) { f[0]++ },
		"version 3":       func(f []byte) { f[4] = 3 },
		"codec 4 is unk":  func(f []byte) { f[4], f[6] = 1, 4 },
		"method 4":        func(f []byte) { f[4] = 1 },
		"codec 7":         func(f []byte) { f[6] = 7 },
		"reserved":        func(f []byte) { f[7] = 1 },
		"group 65541":     func(f []byte) { f[10] = 1 },
		"tokens 0":        func(f []byte) { f[12] = 0 },
		"of LSE":          func(f []byte) { f[15] = 0xff },
		"heads 0":         func(f []byte) { f[16] = 0 },
		"v_dim 16777280":  func(f []byte) { f[23] = 1 },
		"of context do":   func(f []byte) { f[24]++ },
		"can not code":    func(f []byte) { f[20] = 1 },
		"buffers of":      func(f []byte) { f[20]-- },
		"levels begin":    func(f []byte) { f[at+16+3*384] = 0x40 },
		"levels of":       func(f []byte) { f[at+16+3*384] ^= 0x04 },
		"level 0 of":      func(f []byte) { f[at+16+3*384+2] = 0 },
		"escapes of":      func(f []byte) { copy(f[at+16+3*384+2+4*int(f[at+16+3*384+1]):], strings.Repeat("\xff", 40)) },
		"method 9":        descriptor(9, 1),
		"method 1":        descriptor(1, 2),
		"method 3 with 3": func(f []byte) { f[at+3] = 3 << 4 },
		"has":             descriptor(0, 1<<28-1),
		"huff0 table":     descriptor(2, 0),
		"s2 block":        descriptor(3, 10),
		"follow":          descriptor(1, 1),
	} {
		f := slices.Clone(good)
		change(f)
		context, lse := make([]float32, 2*3*64), make([]float32, 2*3)
		_, err := contextframe.Decode(resum(f), context, lse)
		if e, ok := errors.AsType[*contextframe.FrameError](err); !ok || !strings.Contains(err.Error(), name) || strings.Contains(e.Rule, "\n") {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// A block that says it is huge is refused before anything is made for it.
func TestBombsAreRefused(t *testing.T) {
	bomb := s2.Encode(nil, make([]byte, 64<<20))
	good := encode(t, contextframe.Exact, mixture(9, 1, 64, 1, 512))
	f := slices.Clone(good[:32+4*64])
	for range 3 {
		f = binary.LittleEndian.AppendUint32(f, 1<<28|1)
	}
	bomb = bomb[:min(len(bomb), 1<<14)]
	f = binary.LittleEndian.AppendUint32(f, 3<<28|uint32(len(bomb)))
	f = append(append(f, 0, 0, 0), bomb...)
	binary.LittleEndian.PutUint64(f[24:], uint64(len(f)-32-4*64))
	f = resum(append(f, make([]byte, 8)...))
	context, lse := make([]float32, 64*512), make([]float32, 64)
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	_, err := contextframe.Decode(f, context, lse)
	runtime.ReadMemStats(&after)
	if err == nil || !strings.Contains(err.Error(), "s2 block is not one of 32768 bytes") {
		t.Errorf("the bomb gives %v", err)
	}
	if n := after.TotalAlloc - before.TotalAlloc; n > 8<<20 {
		t.Errorf("refusing it took %d bytes", n)
	}
}

// Many at once share the pool, and what came before in a scratch changes no byte.
func TestConcurrentUseGivesEqualBytes(t *testing.T) {
	var answers []answer
	var frames [][]byte
	for i := range 2 * len(codecs) {
		a := mixture(uint64(i), float64(i), 40+i, 2, 64+i)
		if i%3 == 2 {
			a = repeated(a)
		}
		answers = append(answers, a)
		frames = append(frames, encode(t, codecs[i%len(codecs)], a))
	}
	var wg sync.WaitGroup
	for g := range 8 {
		wg.Go(func() {
			r := rand.New(rand.NewPCG(uint64(g), 1))
			for range 40 {
				i := r.IntN(len(answers))
				a := answers[i]
				f, err := contextframe.Encode(nil, codecs[i%len(codecs)], 5, a.tokens, a.heads, a.vDim, a.context, a.lse)
				if err != nil || !bytes.Equal(f, frames[i]) {
					t.Errorf("frame %d differs: %v", i, err)
					return
				}
				context, lse := make([]float32, len(a.context)), make([]float32, len(a.lse))
				if _, err := contextframe.Decode(f, context, lse); err != nil || !sameBits(context, want(t, codecs[i%len(codecs)], a.context, a.vDim)) {
					t.Errorf("frame %d decodes to other bits: %v", i, err)
					return
				}
			}
		})
	}
	wg.Wait()
}

// mend makes length and checksum right for what a frame says of its shape, so that it is not refused for these alone.
func mend(f []byte) []byte {
	if len(f) < 40 {
		return f
	}
	f = slices.Clone(f)
	rows := int64(binary.LittleEndian.Uint32(f[12:])) * int64(binary.LittleEndian.Uint32(f[16:]))
	binary.LittleEndian.PutUint64(f[24:], uint64(int64(len(f))-40-4*rows))
	return resum(f)
}

func FuzzDecode(f *testing.F) {
	for _, codec := range codecs {
		f.Add(encode(f, codec, mixture(1, 1, 1, 1, 64)))
		f.Add(encode(f, codec, mixture(1, 1, 1, 4, 64)))
		f.Add(encode(f, codec, repeated(mixture(2, 1, 12, 1, 64))))
		f.Add(encode(f, codec, answer{1, 1, 2, []float32{0, 0}, []float32{float32(math.Inf(-1))}}))
	}
	f.Add([]byte("HWcx"))
	f.Fuzz(func(t *testing.T, given []byte) {
		for _, frame := range [][]byte{given, mend(given)} {
			h, err := contextframe.ReadHeader(frame)
			if err != nil {
				checkFrameError(t, err)
				continue
			}
			if contextframe.RawBytes(h) > 513*int64(len(frame)) {
				t.Fatalf("%d bytes stand for %d", len(frame), contextframe.RawBytes(h))
			}
			context, lse := make([]float32, h.Elements()), make([]float32, h.Rows())
			if _, err := contextframe.Decode(frame, context, lse); err != nil {
				checkFrameError(t, err)
				continue
			}
			was := contextframe.SetVectors(false)
			portable := make([]float32, len(context))
			_, err = contextframe.Decode(frame, portable, lse)
			contextframe.SetVectors(was)
			if err != nil || !sameBits(portable, context) {
				t.Fatalf("portable code gives other bits: %v", err)
			}
			if !bytes.Equal(resum(frame), frame) {
				t.Fatal("a wrong checksum is unseen")
			}
			again, err := contextframe.Encode(nil, contextframe.Exact, h.Group, h.Tokens, h.Heads, h.VDim, context, lse)
			if err != nil {
				t.Fatal(err)
			}
			context2, lse2 := make([]float32, len(context)), make([]float32, len(lse))
			if _, err := contextframe.Decode(again, context2, lse2); err != nil || !sameBits(context, context2) || !sameBits(lse, lse2) {
				t.Fatalf("what was decoded does not survive: %v", err)
			}
		}
	})
}

func checkFrameError(t *testing.T, err error) {
	if e, ok := errors.AsType[*contextframe.FrameError](err); !ok || strings.Contains(e.Rule, "\n") {
		t.Fatalf("%T: %v", err, err)
	}
}
