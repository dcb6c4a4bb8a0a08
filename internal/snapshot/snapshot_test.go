package snapshot

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"flag"
	"fmt"
	"hash/crc32"
	"io"
	"math"
	"math/rand/v2"
	"os"
	"reflect"
	"strings"
	"testing"
	"testing/iotest"
	"time"

	"github.com/klauspost/compress/zstd"
	"pgregory.net/rapid"

	"headwater.example/attention"
	"headwater.example/shard"
	"headwater.example/tensor"
)

// content is all that a snapshot holds.
type content struct {
	header Header
	blocks []Block
	after  [][]uint64
}

func mustLayout(t interface{ Fatal(...any) }, dt tensor.DType, headDim, vDim int) attention.Layout {
	l, err := attention.NewLayout(dt, headDim, vDim)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func random(r *rand.Rand, n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(r.Uint32())
	}
	return b
}

func floats(r *rand.Rand, n int) []float32 {
	if n == 0 {
		return nil
	}
	f := make([]float32, n)
	for i := range f {
		f[i] = float32(r.NormFloat64())
	}
	return f
}

func hashes(r *rand.Rand, n int) []uint64 {
	h := make([]uint64, n)
	for i := range h {
		h[i] = r.Uint64()
	}
	return h
}

// fill makes blocks for a header, in pieces that cut chooses of those that Next allows.
func fill(t interface{ Fatal(...any) }, header Header, r *rand.Rand, cut func(most int) int, known int) content {
	c := content{header: header}
	p := newProgress(&header)
	for {
		layer, at, length, ok := p.next()
		if !ok {
			break
		}
		l := &header.Layers[layer]
		n := cut(int(min(length-at, uint64(l.blockPositions()))))
		tokens := 0
		if layer == p.told && int(at) < known {
			n = min(n, known-int(at))
			tokens = n
		}
		b := Block{Layer: layer, Start: at, Positions: n, K: random(r, l.KVHeads*n*l.Layout.KRowBytes()), V: random(r, l.KVHeads*n*l.Layout.VRowBytes())}
		if r.IntN(2) == 0 { // something to compress
			clear(b.K)
		}
		if l.scaled() {
			b.KScale, b.VScale = floats(r, l.KVHeads*n), floats(r, l.KVHeads*n)
		}
		for range tokens {
			b.Tokens = append(b.Tokens, r.Uint32())
		}
		c.blocks = append(c.blocks, b)
		if err := p.take(layer, at, n, tokens); err != nil {
			t.Fatal(err)
		}
	}
	for i := range header.Layers {
		l := &header.Layers[i]
		switch {
		case l.Length == 0:
			c.after = append(c.after, make([]uint64, l.KVHeads))
		case l.First == l.Length:
			c.after = append(c.after, l.Before)
		default:
			c.after = append(c.after, hashes(r, l.KVHeads))
		}
	}
	return c
}

// write writes the content as a file.
func (c *content) write(t interface{ Fatal(...any) }) []byte {
	var file bytes.Buffer
	w, err := NewWriter(&file, &c.header)
	if err != nil {
		t.Fatal(err)
	}
	c.writeTo(t, w)
	return file.Bytes()
}

func (c *content) writeTo(t interface{ Fatal(...any) }, w *Writer) {
	for _, b := range c.blocks {
		if layer, start, n, ok := w.Next(); !ok || layer != b.Layer || start != b.Start || n < b.Positions {
			t.Fatal("next is", layer, start, n, ok, "not", b.Layer, b.Start)
		}
		if err := w.Write(&b); err != nil {
			t.Fatal(err)
		}
	}
	if _, _, _, ok := w.Next(); ok {
		t.Fatal("more blocks are wanted")
	}
	if err := w.Close(c.after); err != nil {
		t.Fatal(err)
	}
}

// read reads all of a snapshot.
func read(r io.Reader) (*content, error) {
	s, err := NewReader(r)
	if err != nil {
		return nil, err
	}
	defer s.Close()
	c := &content{header: *s.Header()}
	for {
		b, err := s.Next()
		if errors.Is(err, io.EOF) {
			c.after = s.After()
			return c, nil
		}
		if err != nil {
			if s.After() != nil {
				return nil, fmt.Errorf("hashes after %w", err)
			}
			if _, again := s.Next(); again != err {
				return nil, fmt.Errorf("%w, and then %w", err, again)
			}
			return nil, err
		}
		own := *b
		own.K, own.V = bytes.Clone(b.K), bytes.Clone(b.V)
		own.KScale, own.VScale = append([]float32(nil), b.KScale...), append([]float32(nil), b.VScale...)
		own.Tokens = append([]uint32(nil), b.Tokens...)
		c.blocks = append(c.blocks, own)
	}
}

// same compares what was read with what was written.
func same(t interface{ Fatalf(string, ...any) }, got *content, want *content) {
	if !reflect.DeepEqual(got.header, want.header) {
		t.Fatalf("header\n%+v, want\n%+v", got.header, want.header)
	}
	if len(got.blocks) != len(want.blocks) {
		t.Fatalf("%d blocks, want %d", len(got.blocks), len(want.blocks))
	}
	for i := range got.blocks {
		if !reflect.DeepEqual(got.blocks[i], want.blocks[i]) {
			t.Fatalf("block %d\n%+v, want\n%+v", i, got.blocks[i], want.blocks[i])
		}
	}
	if !reflect.DeepEqual(got.after, want.after) {
		t.Fatalf("hashes %x, want %x", got.after, want.after)
	}
}

// drawHeader draws what a session may be.
func drawHeader(t *rapid.T, r *rand.Rand) Header {
	text := rapid.StringN(0, 20, shard.MaxText)
	h := Header{
		Name: text.Draw(t, "name"), Tenant: text.Draw(t, "tenant"), Pinned: rapid.Bool().Draw(t, "pinned"),
		TTL: time.Duration(rapid.Int64Range(0, math.MaxInt64).Draw(t, "ttl")),
	}
	if model := rapid.SliceOfN(rapid.Byte(), 0, shard.MaxText).Draw(t, "model"); len(model) > 0 {
		h.Model = model
	}
	for range rapid.IntRange(1, 4).Draw(t, "layers") {
		groups := rapid.IntRange(1, 3).Draw(t, "groups")
		dt := rapid.SampledFrom([]tensor.DType{tensor.F32, tensor.F16, tensor.BF16, tensor.I8}).Draw(t, "storage")
		l := Layer{LayerSpec: shard.LayerSpec{
			Heads: groups * rapid.IntRange(1, 3).Draw(t, "group size"), KVHeads: groups,
			Layout: mustLayout(t, dt, rapid.IntRange(1, 9).Draw(t, "head_dim"), rapid.IntRange(1, 9).Draw(t, "v_dim")),
		}}
		l.Options = attention.Options{
			Causal: rapid.Bool().Draw(t, "causal"), WindowLeft: rapid.SampledFrom([]int64{-1, 0, 100, math.MaxInt64}).Draw(t, "left"), WindowRight: rapid.SampledFrom([]int64{-1, 0, 7}).Draw(t, "right"),
			Scale: rapid.SampledFrom([]float32{0.25, -1, float32(math.Copysign(0, -1))}).Draw(t, "scale"), Softcap: rapid.SampledFrom([]float32{0, 30}).Draw(t, "softcap"),
		}
		if rapid.Bool().Draw(t, "alibi") {
			l.Options.AlibiSlopes = floats(r, l.Heads)
		}
		if rapid.Bool().Draw(t, "sinks") {
			l.Options.Sinks = floats(r, l.Heads)
		}
		if l.Options.WindowLeft >= 0 {
			l.First = rapid.SampledFrom([]uint64{0, 64, 640, 1 << 39}).Draw(t, "first")
		}
		if l.First > 0 {
			l.Before = hashes(r, groups)
		}
		l.Length = l.First + uint64(rapid.OneOf(rapid.Just(0), rapid.IntRange(1, 200)).Draw(t, "positions"))
		h.Layers = append(h.Layers, l)
	}
	return h
}

func draw(t *rapid.T) content {
	r := rand.New(rand.NewPCG(rapid.Uint64().Draw(t, "seed"), 1))
	known := rapid.OneOf(rapid.Just(0), rapid.IntRange(1, 250)).Draw(t, "tokens")
	return fill(t, drawHeader(t, r), r, func(most int) int { return rapid.IntRange(1, most).Draw(t, "block") }, known)
}

// What is read is what was written, and written again it has the same bytes, however the stream below cuts them.
func TestReadsWhatWasWritten(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		c := draw(t)
		file := c.write(t)
		r := io.Reader(bytes.NewReader(file))
		if rapid.Bool().Draw(t, "in small pieces") {
			r = iotest.DataErrReader(iotest.HalfReader(r))
		}
		got, err := read(r)
		if err != nil {
			t.Fatal(err)
		}
		same(t, got, &c)
		if !bytes.Equal(got.write(t), file) {
			t.Fatal("written again it is another file")
		}
	})
}

// small is a snapshot of a few hundred bytes with all there is.
func small(t interface{ Fatal(...any) }) content {
	r := rand.New(rand.NewPCG(1, 2))
	window := attention.Options{Causal: true, WindowLeft: 70, WindowRight: -1, Scale: 0.5, Sinks: []float32{1, -1}}
	header := Header{
		Name: "story", Tenant: "a tenant", Model: []byte{1, 2, 3}, TTL: time.Minute, Pinned: true,
		Layers: []Layer{
			{LayerSpec: shard.LayerSpec{Heads: 2, KVHeads: 2, Layout: mustLayout(t, tensor.BF16, 3, 2), Options: window}, First: 128, Before: []uint64{0x1122334455667788, 3}, Length: 131},
			{LayerSpec: shard.LayerSpec{Heads: 4, KVHeads: 1, Layout: mustLayout(t, tensor.I8, 4, 4), Options: attention.Options{WindowLeft: -1, WindowRight: -1, Scale: 1, AlibiSlopes: []float32{1, 2, 3, 4}}}, Length: 40},
			{LayerSpec: shard.LayerSpec{Heads: 1, KVHeads: 1, Layout: mustLayout(t, tensor.F32, 1, 1), Options: attention.Options{WindowLeft: -1, WindowRight: -1, Scale: 1}}, Length: 2},
			{LayerSpec: shard.LayerSpec{Heads: 1, KVHeads: 1, Layout: mustLayout(t, tensor.F16, 1, 1), Options: attention.Options{WindowLeft: -1, WindowRight: -1, Scale: 1}}},
		},
	}
	return fill(t, header, r, func(most int) int { return min(most, 30) }, 40)
}

// reason is that of a typed error; of any other the test fails.
func reason(t interface{ Fatalf(string, ...any) }, what string, err error) Reason {
	var e *Error
	if !errors.As(err, &e) {
		t.Fatalf("%s: %v is no typed error", what, err)
	}
	if strings.ContainsAny(e.Error(), "\n") || e.Reason < NotASnapshot || e.Reason > Invalid {
		t.Fatalf("%s: %v", what, e)
	}
	return e.Reason
}

// Of a snapshot that was cut anywhere, or of which any bit was changed, nothing passes for whole.
func TestTruncatedAndAlteredIsRefused(t *testing.T) {
	c := small(t)
	file := c.write(t)
	if _, err := read(bytes.NewReader(file)); err != nil {
		t.Fatal(err)
	}
	for n := range file {
		_, err := read(bytes.NewReader(file[:n]))
		want := Truncated
		if n < len(magic) {
			want = NotASnapshot
		}
		if got := reason(t, fmt.Sprintf("%d of %d bytes", n, len(file)), err); got != want {
			t.Fatalf("%d of %d bytes: %v: %v", n, len(file), got, err)
		}
	}
	for at := range file {
		for bit := range 8 {
			bad := bytes.Clone(file)
			bad[at] ^= 1 << bit
			_, err := read(bytes.NewReader(bad))
			got := reason(t, fmt.Sprintf("bit %d of byte %d", bit, at), err)
			if at < len(magic) && got != NotASnapshot || at >= len(magic) && at < len(magic)+4 && got != OtherVersion || at >= len(magic)+4 && got != Damaged && got != Truncated {
				t.Fatalf("bit %d of byte %d: %v: %v", bit, at, got, err)
			}
		}
	}
	_, err := read(bytes.NewReader(append(bytes.Clone(file), 0)))
	if got := reason(t, "a byte more", err); got != Invalid {
		t.Fatalf("a byte more: %v", err)
	}
	// Two blocks that change places have their own checksums still.
	var records [][]byte
	for rest := file[len(magic)+4 : len(file)-32]; len(rest) > 0; {
		n := recordHead + int(binary.LittleEndian.Uint32(rest[4:]))
		records, rest = append(records, rest[:n]), rest[n:]
	}
	bad := bytes.Clone(file[:len(magic)+4])
	records[1], records[2] = records[2], records[1]
	for _, r := range records {
		bad = append(bad, r...)
	}
	_, err = read(bytes.NewReader(append(bad, file[len(file)-32:]...)))
	if got := reason(t, "blocks in another order", err); got != Invalid {
		t.Fatalf("blocks in another order: %v", err)
	}
}

// Every byte means something: with other ones, and right checksums, a snapshot contradicts itself, or it is another one, which
// is written as it was read. Nothing is passed over.
func TestEveryByteMeansSomething(t *testing.T) {
	file, err := os.ReadFile("testdata/plain.snapshot")
	if err != nil {
		t.Fatal(err)
	}
	var records [][]byte
	for rest := file[len(magic)+4 : len(file)-sha256.Size]; len(rest) > 0; {
		n := recordHead + int(binary.LittleEndian.Uint32(rest[4:]))
		records, rest = append(records, rest[:n]), rest[n:]
	}
	// with puts a record in the place of another, with right lengths and checksums.
	with := func(at int, record []byte) []byte {
		whole := bytes.Clone(file[:len(magic)+4])
		for i, r := range records {
			if i == at {
				r = record
			}
			whole = append(whole, r...)
		}
		sum := sha256.Sum256(whole)
		return append(whole, sum[:]...)
	}
	sealed := func(record []byte) []byte {
		binary.LittleEndian.PutUint32(record[4:], uint32(len(record)-recordHead))
		binary.LittleEndian.PutUint32(record[8:], uint32(len(record)-recordHead))
		binary.LittleEndian.PutUint32(record[12:], crc32.Update(crc32.Checksum(record[:12], castagnoli), castagnoli, record[recordHead:]))
		return record
	}
	asRead, refused := 0, 0
	for i, r := range records {
		for at := range r {
			if at >= 4 && at < recordHead {
				continue // lengths and the checksum
			}
			for bit := range 8 {
				other := bytes.Clone(r)
				other[at] ^= 1 << bit
				changed := with(i, sealed(other))
				c, err := read(bytes.NewReader(changed))
				if err != nil {
					if got := reason(t, fmt.Sprintf("record %d byte %d bit %d", i, at, bit), err); got != Invalid {
						t.Fatalf("record %d byte %d bit %d: %v", i, at, bit, err)
					}
					refused++
					continue
				}
				var again bytes.Buffer
				w, err := newWriter(&again, &c.header, nil)
				if err != nil {
					t.Fatal(err)
				}
				c.writeTo(t, w)
				if !bytes.Equal(again.Bytes(), changed) {
					t.Fatalf("record %d byte %d bit %d is passed over", i, at, bit)
				}
				asRead++
			}
		}
		for n := recordHead; n < len(r); n++ {
			_, err := read(bytes.NewReader(with(i, sealed(bytes.Clone(r[:n])))))
			if got := reason(t, fmt.Sprintf("record %d of %d bytes", i, n), err); got != Invalid {
				t.Fatalf("record %d of %d bytes: %v", i, n, err)
			}
		}
		_, err := read(bytes.NewReader(with(i, sealed(append(bytes.Clone(r), 0)))))
		if got := reason(t, fmt.Sprintf("record %d with a byte more", i), err); got != Invalid {
			t.Fatalf("record %d with a byte more: %v", i, err)
		}
	}
	if asRead == 0 || refused == 0 {
		t.Fatalf("%d are read, %d refused", asRead, refused)
	}
	for what, bad := range map[string][]byte{
		"no header":            with(0, records[1]),
		"a header twice":       with(1, records[0]),
		"an end in the middle": with(1, records[len(records)-1]),
		"a missing block":      with(1, nil),
	} {
		if _, err := read(bytes.NewReader(bad)); reason(t, what, err) != Invalid {
			t.Errorf("%s: %v", what, err)
		}
	}
	lies := bytes.Clone(records[1])
	binary.LittleEndian.PutUint32(lies[8:], uint32(len(lies)))
	binary.LittleEndian.PutUint32(lies[12:], crc32.Update(crc32.Checksum(lies[:12], castagnoli), castagnoli, lies[recordHead:]))
	if _, err := read(bytes.NewReader(with(1, lies))); reason(t, "a plain record of another size", err) != Invalid {
		t.Error(err)
	}
}

// An error of the stream is not taken for one of the snapshot.
func TestErrorsOfTheStream(t *testing.T) {
	broken := errors.New("cable is cut")
	c := small(t)
	file := c.write(t)
	for n := range file {
		_, err := read(io.MultiReader(bytes.NewReader(file[:n]), iotest.ErrReader(broken)))
		var e *Error
		if !errors.Is(err, broken) || errors.As(err, &e) {
			t.Fatalf("after %d bytes: %v", n, err)
		}
	}
	for n := range len(file) {
		w, err := NewWriter(&limited{n: n, err: broken}, &c.header)
		for i := 0; err == nil && i < len(c.blocks); i++ {
			err = w.Write(&c.blocks[i])
		}
		if err == nil {
			err = w.Close(c.after)
		}
		if !errors.Is(err, broken) {
			t.Fatalf("after %d bytes: %v", n, err)
		}
	}
}

// limited is a stream that breaks after n bytes.
type limited struct {
	n   int
	err error
}

func (l *limited) Write(p []byte) (int, error) {
	n := min(l.n, len(p))
	l.n -= n
	if n < len(p) {
		return n, l.err
	}
	return n, nil
}

func TestWriterRefuses(t *testing.T) {
	good := small(t)
	for name, change := range map[string]func(h *Header){
		"name":       func(h *Header) { h.Name = strings.Repeat("x", shard.MaxText+1) },
		"text":       func(h *Header) { h.Tenant = "\xff" },
		"model":      func(h *Header) { h.Model = make([]byte, shard.MaxText+1) },
		"ttl":        func(h *Header) { h.TTL = -1 },
		"no layer":   func(h *Header) { h.Layers = nil },
		"no layout":  func(h *Header) { h.Layers[0].Layout = attention.Layout{} },
		"groups":     func(h *Header) { h.Layers[1].KVHeads = 3 },
		"scale":      func(h *Header) { h.Layers[1].Options.Scale = float32(math.NaN()) },
		"sinks":      func(h *Header) { h.Layers[0].Options.Sinks = []float32{1} },
		"first":      func(h *Header) { h.Layers[0].First = 100 },
		"no window":  func(h *Header) { h.Layers[0].Options.WindowLeft = -1 },
		"no hashes":  func(h *Header) { h.Layers[0].Before = nil },
		"endless":    func(h *Header) { h.Layers[2].Length = shard.MaxPositions + 1 },
		"descending": func(h *Header) { h.Layers[0].Length = 10 },
	} {
		h := good.header
		h.Layers = append([]Layer(nil), h.Layers...)
		change(&h)
		if _, err := NewWriter(io.Discard, &h); reason(t, name, err) != Invalid {
			t.Errorf("%s: %v", name, err)
		}
	}
	huge := Header{Layers: []Layer{{LayerSpec: shard.LayerSpec{Heads: 4096, KVHeads: 4096, Layout: mustLayout(t, tensor.F32, 512, 512), Options: attention.DefaultOptions(512)}, Length: shard.MaxPositions}}}
	if _, err := NewWriter(io.Discard, &huge); reason(t, "more than all bytes", err) != Invalid {
		t.Errorf("more than all bytes: %v", err)
	}
	w, err := NewWriter(io.Discard, &good.header)
	if err != nil {
		t.Fatal(err)
	}
	for name, change := range map[string]func(b *Block){
		"layer":     func(b *Block) { b.Layer = 0 },
		"start":     func(b *Block) { b.Start++ },
		"none":      func(b *Block) { b.Positions = 0 },
		"too many":  func(b *Block) { b.Positions = 41 },
		"k":         func(b *Block) { b.K = b.K[1:] },
		"v":         func(b *Block) { b.V = append(b.V, 0) },
		"scales":    func(b *Block) { b.KScale = nil },
		"v scales":  func(b *Block) { b.VScale = nil },
		"few token": func(b *Block) { b.Tokens = b.Tokens[1:] },
		"late":      func(b *Block) { b.Start, b.Tokens = 1, nil },
	} {
		b := good.blocks[0]
		change(&b)
		if err := w.Write(&b); reason(t, name, err) != Invalid {
			t.Errorf("%s: %v", name, err)
		}
	}
	if err := w.Close(good.after); reason(t, "an early end", err) != Invalid {
		t.Errorf("an early end: %v", err)
	}
	for i, b := range good.blocks {
		if i > 1 { // of a layer that is not the first
			bad := b
			bad.Tokens = make([]uint32, b.Positions)
			if err := w.Write(&bad); reason(t, "tokens of another layer", err) != Invalid {
				t.Errorf("tokens of another layer: %v", err)
			}
		}
		if err := w.Write(&b); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Write(&good.blocks[0]); reason(t, "a block after the last", err) != Invalid {
		t.Error(err)
	}
	for name, after := range map[string][][]uint64{
		"hashes of few layers": good.after[1:],
		"hashes of few groups": {{1}, {1}, {1}, {0}},
		"hashes of nothing":    {{1, 2}, {1}, {1}, {1}},
	} {
		if err := w.Close(after); reason(t, name, err) != Invalid {
			t.Errorf("%s: %v", name, err)
		}
	}
	if err := w.Close(good.after); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(good.after); err == nil {
		t.Error("it ends twice")
	}
}

// The largest position that a layer can have is one block.
func TestLargestPosition(t *testing.T) {
	header := Header{Layers: []Layer{{LayerSpec: shard.LayerSpec{Heads: 4096, KVHeads: 4096, Layout: mustLayout(t, tensor.F32, 512, 512), Options: attention.DefaultOptions(512)}, Length: 1}}}
	c := content{header: header, after: [][]uint64{make([]uint64, 4096)}}
	n := 4096 * 512 * 4
	c.blocks = []Block{{Positions: 1, K: bytes.Repeat([]byte{1, 2, 3, 4}, n/4), V: random(rand.New(rand.NewPCG(1, 1)), n)}}
	got, err := read(bytes.NewReader(c.write(t)))
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got.blocks[0].K, c.blocks[0].K) || !bytes.Equal(got.blocks[0].V, c.blocks[0].V) {
		t.Fatal("other keys or values came back")
	}
}

var update = flag.Bool("update", false, "write the golden files anew")

// The golden files are of the first version for ever: plain.snapshot without compression, which must be written byte by
// byte, and zstd.snapshot, whose compressed bytes may differ with the compressor but must be read.
func TestGolden(t *testing.T) {
	c := small(t)
	var plain bytes.Buffer
	w, err := newWriter(&plain, &c.header, nil)
	if err != nil {
		t.Fatal(err)
	}
	c.writeTo(t, w)
	for name, file := range map[string][]byte{"plain": plain.Bytes(), "zstd": c.write(t)} {
		path := "testdata/" + name + ".snapshot"
		if *update {
			if err := os.WriteFile(path, file, 0o666); err != nil {
				t.Fatal(err)
			}
		}
		golden, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		got, err := read(bytes.NewReader(golden))
		if err != nil {
			t.Fatal(err)
		}
		same(t, got, &c)
		if name == "plain" && !bytes.Equal(golden, file) {
			t.Errorf("%s is written otherwise: version 1 does not change", path)
		}
	}
}

// A snapshot is of the second version if a layer has an arithmetic, and of the first else. The golden file is of the second.
func TestArithmetic(t *testing.T) {
	c := small(t)
	for i, a := range []attention.Arithmetic{attention.TilesBF16, attention.Chain} {
		l := &c.header.Layers[0].LayerSpec
		var err error
		if *l, err = l.WithArithmetic(a); err != nil {
			t.Fatal(err)
		}
		var plain bytes.Buffer
		w, err := newWriter(&plain, &c.header, nil)
		if err != nil {
			t.Fatal(err)
		}
		c.writeTo(t, w)
		file := plain.Bytes()
		if version := binary.LittleEndian.Uint32(file[len(magic):]); version != uint32(2-i) {
			t.Fatalf("%s: version %d", a, version)
		}
		got, err := read(bytes.NewReader(file))
		if err != nil {
			t.Fatal(err)
		}
		same(t, got, &c)
		if have := got.header.Layers[0].Arithmetic(); have != a {
			t.Errorf("%s came back as %s", a, have)
		}
		if a == attention.Chain {
			continue
		}
		const path = "testdata/tiles.snapshot"
		if *update {
			if err := os.WriteFile(path, file, 0o666); err != nil {
				t.Fatal(err)
			}
		}
		golden, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(golden, file) {
			t.Errorf("%s is written otherwise: version 2 does not change", path)
		}
		// The same header in the other version.
		if _, err := parseHeader(appendHeader(nil, &c.header), 1); err == nil || err.Reason != Invalid {
			t.Errorf("an arithmetic in version 1: %v", err)
		}
	}
	if _, err := parseHeader(appendHeader(nil, &c.header), 2); err == nil || err.Reason != Invalid {
		t.Errorf("version 2 without an arithmetic: %v", err)
	}
	header := appendHeader(nil, &c.header)
	at := bytes.Index(header, binary.LittleEndian.AppendUint32(nil, 2)) // n_heads of the first layer
	for _, b := range []struct {
		at int
		to byte
	}{{18, 3}, {19, 1}} {
		spoilt := bytes.Clone(header)
		spoilt[at+b.at] = b.to
		if _, err := parseHeader(spoilt, 2); err == nil || err.Reason != Invalid {
			t.Errorf("byte %d of a layer is %d: %v", b.at, b.to, err)
		}
	}
}

// A stream that names more than it has costs no memory for it, and a frame that unfolds to more than it says is refused.
func TestHostileLengths(t *testing.T) {
	c := small(t)
	file := c.write(t)[:len(magic)+4]
	record := make([]byte, recordHead)
	record[0] = kindHeader
	binary.LittleEndian.PutUint32(record[4:], maxPayload)
	binary.LittleEndian.PutUint32(record[8:], maxPayload)
	if n := testing.AllocsPerRun(1, func() {
		if _, err := read(io.MultiReader(bytes.NewReader(file), bytes.NewReader(record))); reason(t, "a long record", err) != Truncated {
			t.Fatal(err)
		}
	}); n > 1000 {
		t.Errorf("%v allocations", n)
	}
	w, err := NewWriter(io.Discard, &c.header)
	if err != nil {
		t.Fatal(err)
	}
	frame := w.encoder.EncodeAll(make([]byte, 1<<20), nil)
	for _, b := range [][]byte{frame, append(bytes.Clone(frame), frame...), nil, {1, 2, 3}} {
		binary.LittleEndian.PutUint32(record[4:], uint32(len(b)))
		binary.LittleEndian.PutUint32(record[8:], 100)
		record[1] = codingZstd
		whole := append(bytes.Clone(record), b...)
		binary.LittleEndian.PutUint32(whole[12:], crc32.Update(crc32.Checksum(whole[:12], castagnoli), castagnoli, b))
		if _, err := read(io.MultiReader(bytes.NewReader(file), bytes.NewReader(whole))); reason(t, "a frame that lies", err) != Invalid {
			t.Fatal(err)
		}
	}
	// More layers than a session has, before there is memory for them.
	payload := make([]byte, 70000*layerBytes+100)
	binary.LittleEndian.PutUint32(payload, 70000)
	if _, err := parseHeader(payload, 1); err == nil || err.Reason != Invalid || !strings.Contains(err.Rule, "70000 layers, at most 65536") {
		t.Fatal(err)
	}
}

// A payload is one frame, with a checksum of its own or without, and nothing that a decoder passes over.
func TestOneFrame(t *testing.T) {
	c := small(t)
	payload := appendHeader(nil, &c.header)
	for _, sum := range []bool{false, true} {
		for _, content := range [][]byte{payload, make([]byte, 300<<10), random(rand.New(rand.NewPCG(1, 2)), 300<<10)} {
			encoder, err := zstd.NewWriter(nil, zstd.WithEncoderCRC(sum), zstd.WithSingleSegment(true), zstd.WithZeroFrames(true))
			if err != nil {
				t.Fatal(err)
			}
			frame := encoder.EncodeAll(content, nil)
			var h zstd.Header
			if err := h.Decode(frame); err != nil || h.HasCheckSum != sum {
				t.Fatal(err)
			}
			if !ends(frame, &h) {
				t.Fatalf("a frame of %d bytes does not end", len(frame))
			}
			for n := h.HeaderSize; n < len(frame); n += 1 + len(frame)/1000 {
				if ends(frame[:n], &h) {
					t.Fatalf("a frame of %d bytes ends after %d", len(frame), n)
				}
			}
			skippable := []byte{0x50, 0x2a, 0x4d, 0x18, 1, 0, 0, 0, 7}
			for _, more := range [][]byte{{0}, skippable, encoder.EncodeAll(nil, nil)} {
				if ends(append(bytes.Clone(frame), more...), &h) {
					t.Fatalf("%d bytes after the frame are passed over", len(more))
				}
			}
			if len(content) != len(payload) {
				continue
			}
			file := append(c.write(t)[:len(magic)+4], make([]byte, recordHead)...)
			record := append(file[len(magic)+4:], append(frame, skippable...)...)
			record[0], record[1] = kindHeader, codingZstd
			binary.LittleEndian.PutUint32(record[4:], uint32(len(record)-recordHead))
			binary.LittleEndian.PutUint32(record[8:], uint32(len(payload)))
			binary.LittleEndian.PutUint32(record[12:], crc32.Update(crc32.Checksum(record[:12], castagnoli), castagnoli, record[recordHead:]))
			if _, err := read(io.MultiReader(bytes.NewReader(file[:len(magic)+4]), bytes.NewReader(record))); reason(t, "a frame and more", err) != Invalid {
				t.Fatal(err)
			}
		}
	}
}
