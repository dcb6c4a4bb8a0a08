package tensor

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"math"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"

	"pgregory.net/rapid"
)

// safetensorsOf builds a file from a header's text, as it is, and data.
func safetensorsOf(header string, data []byte) []byte {
	b := binary.LittleEndian.AppendUint64(nil, uint64(len(header)))
	return append(append(b, header...), data...)
}

func openBytes(b []byte) (*File, error) {
	return OpenReaderAt("job.safetensors", bytes.NewReader(b), int64(len(b)))
}

// read returns the data of a tensor.
func read(t interface {
	Helper()
	Fatal(...any)
}, f *File, name string,
) []byte {
	t.Helper()
	info, ok := f.Lookup(name)
	if !ok {
		t.Fatal("missing", name)
	}
	p := make([]byte, info.Bytes())
	if err := f.ReadAt(p, name, 0); err != nil {
		t.Fatal(err)
	}
	return p
}

// drawTensors draws a few tensors with different names.
func drawTensors(t *rapid.T) []Data {
	names := rapid.SliceOfNDistinct(rapid.StringMatching(`[a-z0-9._ é"\\<]{1,8}`), 0, 5, rapid.ID).Draw(t, "names")
	tensors := make([]Data, len(names))
	for i, name := range names {
		info := Info{
			Name: name, DType: DType(rapid.IntRange(int(Bool), int(F64)).Draw(t, "dtype")),
			Shape: rapid.SliceOfN(rapid.IntRange(0, 4), 0, 4).Draw(t, "shape"),
		}
		n := int(info.Bytes())
		tensors[i] = Data{info, rapid.SliceOfN(rapid.Byte(), n, n).Draw(t, "data")}
	}
	return tensors
}

// sameTensors fails unless f holds exactly these.
func sameTensors(t *rapid.T, f *File, tensors []Data) {
	var names []string
	for _, d := range tensors {
		names = append(names, d.Name)
		info, ok := f.Lookup(d.Name)
		if !ok || info.DType != d.DType || !slices.Equal(info.Shape, d.Shape) {
			t.Fatalf("%q is %v %t, want %v", d.Name, info, ok, d.Info)
		}
		if !bytes.Equal(read(t, f, d.Name), d.Bytes) {
			t.Fatalf("%q has other data", d.Name)
		}
		from := rapid.IntRange(0, len(d.Bytes)).Draw(t, "from")
		p := make([]byte, rapid.IntRange(0, len(d.Bytes)-from).Draw(t, "length"))
		if err := f.ReadAt(p, d.Name, int64(from)); err != nil || !bytes.Equal(p, d.Bytes[from:from+len(p)]) {
			t.Fatalf("%q from %d: %v", d.Name, from, err)
		}
	}
	slices.Sort(names)
	if !slices.Equal(f.Names(), names) {
		t.Fatalf("names %q, want %q", f.Names(), names)
	}
}

func TestSafetensorsRoundTrip(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		tensors := drawTensors(t)
		metadata := rapid.MapOfN(rapid.String(), rapid.String(), 0, 3).Draw(t, "metadata")
		var b bytes.Buffer
		if err := WriteSafetensors(&b, tensors, metadata); err != nil {
			t.Fatal(err)
		}
		f, err := openBytes(b.Bytes())
		if err != nil {
			t.Fatal(err)
		}
		sameTensors(t, f, tensors)
		if !maps.Equal(f.Metadata(), metadata) || f.Size() != int64(b.Len()) {
			t.Fatalf("metadata %q, want %q; size %d, want %d", f.Metadata(), metadata, f.Size(), b.Len())
		}
	})
}

func TestNPZRoundTrip(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		tensors := drawTensors(t)
		metadata := rapid.MapOfN(rapid.String(), rapid.String(), 0, 3).Draw(t, "metadata")
		var b bytes.Buffer
		if err := writeNPZMetadata(&b, tensors, metadata); err != nil {
			t.Fatal(err)
		}
		f, err := openNPZ("job.npz", bytes.NewReader(b.Bytes()), int64(b.Len()))
		if err != nil {
			t.Fatal(err)
		}
		sameTensors(t, f, tensors)
		if !maps.Equal(f.Metadata(), metadata) {
			t.Fatalf("metadata %q, want %q", f.Metadata(), metadata)
		}
	})
}

func TestNPYRoundTrip(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		for _, d := range drawTensors(t) {
			var b bytes.Buffer
			if err := WriteNPY(&b, d); err != nil {
				t.Fatal(err)
			}
			if (b.Len()-len(d.Bytes))%npyAlign != 0 {
				t.Fatalf("data begins at byte %d", b.Len()-len(d.Bytes))
			}
			f, err := openNPY("dir/q.npy", bytes.NewReader(b.Bytes()), int64(b.Len()))
			if err != nil {
				t.Fatal(err)
			}
			d.Name = "q"
			sameTensors(t, f, []Data{d})
		}
	})
}

// TestLayoutWrittenInAnyOrder writes the tensors at their offsets, the last first, and the header at the end.
func TestLayoutWrittenInAnyOrder(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		tensors := drawTensors(t)
		infos := make([]Info, len(tensors))
		for i, d := range tensors {
			infos[i] = d.Info
		}
		metadata := rapid.MapOfN(rapid.String(), rapid.String(), 0, 3).Draw(t, "metadata")
		reserve, err := MetadataBytes(metadata)
		if err != nil {
			t.Fatal(err)
		}
		l, err := NewLayout(infos, reserve+rapid.IntRange(0, 200).Draw(t, "more"))
		if err != nil {
			t.Fatal(err)
		}
		if l.headerSize()%dataAlign != 0 {
			t.Fatalf("data begins at %d", l.headerSize())
		}
		b := make([]byte, l.Size())
		for _, d := range slices.Backward(tensors) {
			at, ok := l.Offset(d.Name)
			if !ok || at%int64(d.DType.Size()) != 0 {
				t.Fatalf("%q lies at %d %t", d.Name, at, ok)
			}
			copy(b[at:], d.Bytes)
		}
		for _, m := range []map[string]string{nil, metadata} {
			header, err := l.Header(m)
			if err != nil || int64(len(header)) != l.headerSize() {
				t.Fatalf("header of %d bytes, %v; want %d", len(header), err, l.headerSize())
			}
			copy(b, header)
			f, err := openBytes(b)
			if err != nil {
				t.Fatal(err)
			}
			sameTensors(t, f, tensors)
			if !maps.Equal(f.Metadata(), m) {
				t.Fatalf("metadata %q, want %q", f.Metadata(), m)
			}
		}
	})
}

func TestLayoutRefusals(t *testing.T) {
	one := Info{Name: "q", DType: F32, Shape: []int{2}}
	for want, infos := range map[string][]Info{
		`lay out tensor "q": appears twice`:                          {one, one},
		`lay out tensor "__metadata__": name is reserved`:            {{Name: "__metadata__", DType: F32}},
		`lay out tensor "": tensor without a name`:                   {{DType: F32}},
		`lay out tensor "q": unknown dtype`:                          {{Name: "q"}},
		`lay out tensor "q": shape [-1] of F32 is negative`:          {{Name: "q", DType: F32, Shape: []int{-1}}},
		`lay out tensor "\xff": "\xff" is not valid UTF-8`:           {{Name: "\xff", DType: F32}},
		`exceeds 2^63 bytes`:                                         {{Name: "q", DType: U8, Shape: []int{math.MaxInt64}}},
		`ends beyond 2^63 bytes`:                                     {{Name: "q", DType: U8, Shape: []int{math.MaxInt64}}, {Name: "r", DType: U8, Shape: []int{math.MaxInt64}}},
		`shape [4611686018427387904 0] of F32 is negative or exceed`: {{Name: "q", DType: F32, Shape: []int{1 << 62, 0}}},
	} {
		if _, err := NewLayout(infos, 0); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v, want %s", err, want)
		}
	}
	if _, err := NewLayout(nil, -1); err == nil {
		t.Error("negative reserve was taken")
	}
	if _, err := NewLayout(nil, MaxHeaderBytes); err == nil {
		t.Error("header beyond the limit was taken")
	}
	l, err := NewLayout([]Info{one}, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := l.Header(map[string]string{"k": strings.Repeat("v", 100)}); err == nil || !strings.Contains(err.Error(), "more than were reserved") {
		t.Error(err)
	}
	if _, err := l.Header(map[string]string{"k": "\xff"}); err == nil {
		t.Error("invalid UTF-8 was taken")
	}
	for _, write := range []func(io.Writer, ...Data) error{
		func(w io.Writer, d ...Data) error { return WriteSafetensors(w, d, nil) },
		func(w io.Writer, d ...Data) error { return WriteNPZ(w, d) },
	} {
		if err := write(io.Discard, Data{one, make([]byte, 7)}); err == nil || !strings.Contains(err.Error(), "7 bytes, shape [2] of F32 needs 8") {
			t.Error(err)
		}
		if err := write(io.Discard, Data{one, make([]byte, 8)}, Data{one, make([]byte, 8)}); err == nil {
			t.Error("the same name was written twice")
		}
	}
}

// TestBrokenSafetensors also checks that each error is one line that names the file.
func TestBrokenSafetensors(t *testing.T) {
	entry := func(dtype, shape, offsets string) string {
		return fmt.Sprintf(`{"dtype":%q,"shape":[%s],"data_offsets":[%s]}`, dtype, shape, offsets)
	}
	q := `"q":` + entry("F32", "2", "0,8")
	long := strings.Repeat("n", 1000)
	for _, c := range []struct {
		name string
		file []byte
		want string
	}{
		{"empty", nil, `truncated: 0 bytes, not even the 8 bytes of a header's length`},
		{"short", make([]byte, 7), `truncated: 7 bytes`},
		{"1 TiB", binary.LittleEndian.AppendUint64(nil, 1<<40), `header of 1099511627776 bytes exceeds the limit of 104857600`},
		{"most", binary.LittleEndian.AppendUint64(nil, math.MaxUint64), `header of 18446744073709551615 bytes exceeds the limit`},
		{"lying", binary.LittleEndian.AppendUint64(nil, 100), `truncated: header of 100 bytes in a file of 8`},
		{"no JSON", safetensorsOf("    ", nil), `header does not begin with {`},
		{"array", safetensorsOf("[]", nil), `header does not begin with {`},
		{"cut JSON", safetensorsOf(`{"q":`, nil), `tensor "q": ends early`},
		{"rest", safetensorsOf(`{} {}`, nil), `header: goes on after its end`},
		{"UTF-8", safetensorsOf("{\"\xff\":1}", nil), `header: invalid UTF-8`},
		{"line", safetensorsOf("{\"a\nb\":1}", nil), `header: `},
		{"entry", safetensorsOf(`{"q":1}`, nil), `tensor "q": entry does not begin with {`},
		{"twice", safetensorsOf(`{`+q+`,`+q+`}`, make([]byte, 8)), `header has the key "q" twice`},
		{"field twice", safetensorsOf(`{"q":{"dtype":"F32","dtype":"F32"}}`, nil), `tensor "q": entry has the key "dtype" twice`},
		{"metadata", safetensorsOf(`{"__metadata__":{"a":1}}`, nil), `__metadata__ "a" is not a string`},
		{"metadata twice", safetensorsOf(`{"__metadata__":{"a":"","a":""}}`, nil), `__metadata__ has the key "a" twice`},
		{"no name", safetensorsOf(`{"":`+entry("F32", "0", "0,0")+`}`, nil), `tensor without a name`},
		{"dtype", safetensorsOf(`{"q":`+entry("F8_E4M3", "2", "0,2")+`}`, make([]byte, 2)), `tensor "q": unknown dtype "F8_E4M3"`},
		{"empty dtype", safetensorsOf(`{"q":`+entry("", "2", "0,2")+`}`, make([]byte, 2)), `tensor "q": no dtype`},
		{"no shape", safetensorsOf(`{"q":{"dtype":"F32","data_offsets":[0,0]}}`, nil), `tensor "q": no shape`},
		{"no offsets", safetensorsOf(`{"q":{"dtype":"F32","shape":[0]}}`, nil), `tensor "q": data_offsets has 0 numbers, not 2`},
		{"one offset", safetensorsOf(`{"q":`+entry("F32", "0", "0")+`}`, nil), `tensor "q": data_offsets has 1 numbers, not 2`},
		{"three offsets", safetensorsOf(`{"q":`+entry("F32", "0", "0,0,0")+`}`, nil), `tensor "q": data_offsets holds more than 2 numbers`},
		{"unknown field that is cut", safetensorsOf(`{"q":{"strides":[1}}`, nil), `tensor "q": `},
		{"negative", safetensorsOf(`{"q":`+entry("F32", "-2", "0,8")+`}`, make([]byte, 8)), `tensor "q": shape holds "-2"`},
		{"fraction", safetensorsOf(`{"q":`+entry("F32", "2.0", "0,8")+`}`, make([]byte, 8)), `tensor "q": shape holds "2.0"`},
		{"string", safetensorsOf(`{"q":`+entry("F32", `"2"`, "0,8")+`}`, make([]byte, 8)), `tensor "q": shape holds something that is not a number`},
		{"huge", safetensorsOf(`{"q":`+entry("F32", "99999999999999999999", "0,8")+`}`, make([]byte, 8)), `tensor "q": shape holds "99999999999999999999"`},
		{"overflow", safetensorsOf(`{"q":`+entry("F32", "4294967296,4294967296,2", "0,8")+`}`, make([]byte, 8)), `exceeds 2^63 bytes`},
		{"overflow to 0", safetensorsOf(`{"q":`+entry("F32", "4294967296,4294967296", "0,0")+`}`, nil), `exceeds 2^63 bytes`},
		{"dimensions", safetensorsOf(`{"q":`+entry("U8", strings.Repeat("1,", 64)+"1", "0,1")+`}`, make([]byte, 1)), `shape holds more than 64 numbers`},
		{"backward", safetensorsOf(`{"q":`+entry("F32", "2", "8,0")+`}`, make([]byte, 8)), `tensor "q": data_offsets [8, 0] end before they begin`},
		{"size", safetensorsOf(`{"q":`+entry("F32", "3", "0,8")+`}`, make([]byte, 8)), `tensor "q": data_offsets [0, 8] hold 8 bytes, shape [3] of F32 needs 12`},
		{"truncated", safetensorsOf(`{`+q+`}`, make([]byte, 7)), `tensor "q": truncated: data ends at byte 8, the file has 7 bytes of data`},
		{"trailing", safetensorsOf(`{`+q+`}`, make([]byte, 9)), `1 bytes of data follow the last tensor`},
		{"overlap", safetensorsOf(`{`+q+`,"k":`+entry("F32", "2", "4,12")+`}`, make([]byte, 12)), `tensor "k": data from byte 4 on overlaps tensor "q", which ends at byte 8`},
		{"same place", safetensorsOf(`{`+q+`,"k":`+entry("F32", "2", "0,8")+`}`, make([]byte, 8)), `overlaps tensor "k"`},
		{"hole", safetensorsOf(`{`+q+`,"k":`+entry("F32", "2", "9,17")+`}`, make([]byte, 17)), `tensor "k": data begins at byte 9 and leaves a hole from byte 8 on`},
		{"hole at the beginning", safetensorsOf(`{"q":`+entry("F32", "2", "1,9")+`}`, make([]byte, 9)), `tensor "q": data begins at byte 1 and leaves a hole from byte 0 on`},
		{"long name", safetensorsOf(`{"`+long+`":1}`, nil), `tensor "` + long[:maxQuoted] + `"…: entry`},
		{"name of lines", safetensorsOf(`{"a\nb":1}`, nil), `tensor "a\nb": entry`},
	} {
		f, err := openBytes(c.file)
		if err == nil {
			t.Errorf("%s: opened %v", c.name, f.Names())
			continue
		}
		e, ok := errors.AsType[*FormatError](err)
		if !ok || e.File != "job.safetensors" || e.Index != -1 || !strings.HasPrefix(err.Error(), "job.safetensors: "+c.want) && !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want %s", c.name, err, c.want)
		}
		if strings.ContainsAny(err.Error(), "\n") || len(err.Error()) > 600 {
			t.Errorf("%s: not one short line: %q", c.name, err)
		}
	}
}

func TestFormatErrorIsOneLine(t *testing.T) {
	for want, e := range map[string]*FormatError{
		`job.safetensors: tensor "k"[12]: NaN`: {"job.safetensors", "k", 12, "NaN"},
		`job.safetensors: tensor "k": missing`: {"job.safetensors", "k", -1, "missing"},
		`job.safetensors: truncated`:           {"job.safetensors", "", -1, "truncated"},
		`truncated`:                            {"", "", -1, "truncated"},
		`"a\nb": tensor "k\n": r`:              {"a\nb", "k\n", -1, "r"},
	} {
		if e.Error() != want {
			t.Errorf("%s, want %s", e, want)
		}
	}
}

// allocated returns the bytes that do allocates.
func allocated(do func()) uint64 {
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	do()
	runtime.ReadMemStats(&after)
	return after.TotalAlloc - before.TotalAlloc
}

func TestLyingHeaderCostsNoMemory(t *testing.T) {
	// The file is as long as it says, so that only the limit holds the header back.
	path := filepath.Join(t.TempDir(), "job.safetensors")
	if err := os.WriteFile(path, binary.LittleEndian.AppendUint64(nil, 1<<40), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(path, 1<<40+8); err != nil {
		t.Skip("no sparse file of 1 TiB here:", err)
	}
	n := allocated(func() {
		if _, err := Open(path); err == nil || !strings.Contains(err.Error(), path+": header of 1099511627776 bytes exceeds the limit") {
			t.Error(err)
		}
	})
	if n > 1<<20 {
		t.Errorf("%d bytes were allocated", n)
	}
}

func TestLargeFileIsNotReadIntoMemory(t *testing.T) {
	const rows, width = 1 << 20, 1 << 10 // 4 GiB of F32
	path := filepath.Join(t.TempDir(), "job.safetensors")
	l, err := NewLayout([]Info{{"k", F32, []int{rows, width}}, {"mask", Bool, []int{3}}}, 0)
	if err != nil {
		t.Fatal(err)
	}
	header, err := l.Header(nil)
	if err != nil {
		t.Fatal(err)
	}
	file, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	at, _ := l.Offset("k")
	last := []byte{1, 2, 3, 4}
	for off, p := range map[int64][]byte{0: header, at + 4*rows*width - 4: last} {
		if _, err := file.WriteAt(p, off); err != nil {
			t.Fatal(err)
		}
	}
	if err := file.Truncate(l.Size()); err != nil {
		t.Skip("no sparse file of 4 GiB here:", err)
	}
	n := allocated(func() {
		f, err := Open(path)
		if err != nil {
			t.Error(err)
			return
		}
		defer f.Close()
		p := make([]byte, 8)
		if err := f.ReadAt(p, "k", 4*rows*width-8); err != nil || !bytes.Equal(p[4:], last) || !bytes.Equal(p[:4], make([]byte, 4)) {
			t.Errorf("end of k: %v %v", p, err)
		}
	})
	if n > 1<<20 {
		t.Errorf("%d bytes were allocated", n)
	}
}

func TestReadAtKeepsWithinTheTensor(t *testing.T) {
	var b bytes.Buffer
	if err := WriteSafetensors(&b, []Data{{Info{"k", U8, []int{4}}, []byte("kkkk")}, {Info{"v", U8, []int{4}}, []byte("vvvv")}}, nil); err != nil {
		t.Fatal(err)
	}
	f, err := openBytes(b.Bytes())
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		n   int
		off int64
	}{{5, 0}, {1, 4}, {1, -1}, {4, 1}, {0, 5}, {1, math.MaxInt64}, {1, math.MinInt64}} {
		if err := f.ReadAt(make([]byte, c.n), "k", c.off); err == nil || !strings.Contains(err.Error(), "lie outside its 4 bytes") {
			t.Errorf("%d bytes at %d: %v", c.n, c.off, err)
		}
	}
	if err := f.ReadAt(nil, "q", 0); err == nil || err.Error() != `job.safetensors: tensor "q": missing` {
		t.Error(err)
	}
}

func TestHeaderAlone(t *testing.T) {
	var b bytes.Buffer
	if err := WriteSafetensors(&b, []Data{{Info{"q", F32, []int{2}}, make([]byte, 8)}}, map[string]string{"headwater": "{}"}); err != nil {
		t.Fatal(err)
	}
	size := int64(b.Len())
	header, err := HeaderBytes(bytes.NewReader(b.Bytes()), size, 1<<20)
	if err != nil {
		t.Fatal(err)
	}
	if int64(len(header)) != size-8 {
		t.Fatalf("header of %d bytes in a file of %d", len(header), size)
	}
	f, err := ParseHeader("job", header, size)
	if err != nil {
		t.Fatal(err)
	}
	if info, ok := f.Lookup("q"); !ok || info.Elements() != 2 || f.Metadata()["headwater"] != "{}" || f.Path() != "job" {
		t.Error(info, ok, f.Metadata(), f.Path())
	}
	if err := f.ReadAt(make([]byte, 8), "q", 0); err == nil || !strings.Contains(err.Error(), "only the header") {
		t.Error(err)
	}
	if err := f.Close(); err != nil {
		t.Error(err)
	}
	for _, c := range []struct {
		header []byte
		size   int64
	}{{header, size - 1}, {header, size + 1}, {header, 0}, {header, -1}, {header[:9], size}, {nil, size}, {append(header, ' '), size + 1}} {
		if _, err := ParseHeader("job", c.header, c.size); err == nil {
			t.Errorf("header of %d bytes for a file of %d was taken", len(c.header), c.size)
		}
	}
	if _, err := HeaderBytes(bytes.NewReader(b.Bytes()), size, 10); err == nil || !strings.Contains(err.Error(), "exceeds the limit of 10") {
		t.Error(err)
	}
	if _, err := HeaderBytes(bytes.NewReader(b.Bytes()[:20]), size, 1<<20); err == nil || !strings.Contains(err.Error(), "truncated: ends at byte 20") {
		t.Error(err)
	}
	path := filepath.Join(t.TempDir(), "short.safetensors")
	if err := os.WriteFile(path, []byte("abc"), 0o600); err != nil {
		t.Fatal(err)
	}
	file, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	if _, err := HeaderBytes(file, 3, 100); err == nil || !strings.HasPrefix(err.Error(), path+": truncated") {
		t.Error(err)
	}
}

func TestOpenRefusesWhatIsNoFile(t *testing.T) {
	dir := t.TempDir()
	for _, suffix := range []string{shardSuffix, indexSuffix, npzSuffix, npySuffix} {
		path := filepath.Join(dir, "x"+suffix)
		if _, err := Open(path); !errors.Is(err, fs.ErrNotExist) || !strings.Contains(err.Error(), path) {
			t.Error(err)
		}
		if err := os.Mkdir(path, 0o700); err != nil {
			t.Fatal(err)
		}
		if _, err := Open(path); err == nil || !strings.Contains(err.Error(), path+": not a regular file") {
			t.Error(err)
		}
	}
}

func TestFileThatShrinksOrIsClosed(t *testing.T) {
	path := filepath.Join(t.TempDir(), "job.safetensors")
	var b bytes.Buffer
	if err := WriteSafetensors(&b, []Data{{Info{"q", F32, []int{2}}, make([]byte, 8)}}, nil); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, b.Bytes(), 0o600); err != nil {
		t.Fatal(err)
	}
	f, err := Open(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(path, int64(b.Len()-3)); err != nil {
		t.Fatal(err)
	}
	if err := f.ReadAt(make([]byte, 8), "q", 0); err == nil || !strings.Contains(err.Error(), `tensor "q": truncated since it was opened: data ends at byte 5 of 8`) {
		t.Error(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	if err := f.ReadAt(make([]byte, 4), "q", 0); !errors.Is(err, fs.ErrClosed) || !strings.Contains(err.Error(), `tensor "q"`) {
		t.Error(err)
	}
}

func TestConcurrentReads(t *testing.T) {
	f, err := Open("testdata/deflated.npz")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for _, name := range f.Names() {
				info, _ := f.Lookup(name)
				if err := f.ReadAt(make([]byte, info.Bytes()), name, 0); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
}

func TestDTypes(t *testing.T) {
	for d := DType(0); d < 40; d++ {
		text, err := d.MarshalText()
		if (err == nil) != (d >= Bool && d <= F64) || (err == nil) != (d.Size() > 0) {
			t.Fatalf("%s: size %d, %v", d, d.Size(), err)
		}
		if err != nil {
			continue
		}
		var back DType
		if err := back.UnmarshalText(text); err != nil || back != d {
			t.Errorf("%s returns as %s, %v", d, back, err)
		}
	}
	for _, name := range []string{"", "f32", "F8_E5M2", "DType(0)"} {
		if _, err := ParseDType(name); err == nil {
			t.Errorf("%q was taken", name)
		}
	}
}
