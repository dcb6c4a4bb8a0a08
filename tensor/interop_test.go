package tensor

import (
	"archive/zip"
	"bytes"
	"encoding/binary"
	"math"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// element returns element i of p, widened by the definition of the type.
func element(p []byte, dt DType, i int) float64 {
	p = p[i*dt.Size() : (i+1)*dt.Size()]
	switch dt {
	case F64:
		return math.Float64frombits(binary.LittleEndian.Uint64(p))
	case F32:
		return float64(math.Float32frombits(binary.LittleEndian.Uint32(p)))
	case F16:
		v, _ := halves[0].value(binary.LittleEndian.Uint16(p))
		return v
	case BF16:
		v, _ := halves[1].value(binary.LittleEndian.Uint16(p))
		return v
	}
	var v float64
	for i, b := range p {
		v += math.Ldexp(float64(b), 8*i)
	}
	return v
}

// TestFilesOfOtherLibraries reads what numpy and safetensors wrote; testdata/make.py says how.
func TestFilesOfOtherLibraries(t *testing.T) {
	for _, path := range []string{"safetensors.safetensors", "stored.npz", "deflated.npz"} {
		f, err := Open(filepath.Join("testdata", path))
		if err != nil {
			t.Fatal(err)
		}
		if len(f.Names()) != 13 {
			t.Errorf("%s: %q", path, f.Names())
		}
		for dt := Bool; dt <= F64; dt++ {
			info, ok := f.Lookup(dt.String())
			if !ok || info.DType != dt || len(info.Shape) != 2 || info.Shape[0] != 2 || info.Shape[1] != 3 {
				t.Fatalf("%s: %s is %v %t", path, dt, info, ok)
			}
			p := read(t, f, dt.String())
			for i := range 6 {
				want := float64(i)
				switch dt {
				case Bool:
					want = float64(i % 2)
				case F16, BF16, F32, F64:
					want = 1.5*float64(i) - 2
				}
				if got := element(p, dt, i); got != want {
					t.Errorf("%s: %s[%d] is %g, want %g", path, dt, i, got, want)
				}
			}
		}
		if m := f.Metadata(); path != "stored.npz" && (len(m) != 2 || m["é\n"] != "ü" || m["headwater"] != `{"kind":"attention"}`) {
			t.Errorf("%s: metadata %q", path, m)
		}
		if err := f.Close(); err != nil {
			t.Error(err)
		}
	}
	for path, bytes := range map[string]int64{"array": 24, "scalar": 8, "vector": 40, "empty": 0} {
		f, err := Open("testdata/" + path + ".npy")
		if err != nil {
			t.Fatal(err)
		}
		if info, ok := f.Lookup(path); !ok || info.Bytes() != bytes {
			t.Errorf("%s is %v %t", path, info, ok)
		}
		if p := read(t, f, path); path == "array" && element(p, F32, 5) != 5.5 {
			t.Errorf("array ends with %g", element(p, F32, 5))
		}
		f.Close()
	}
	for path, want := range map[string]string{
		"fortran":    "Fortran order; store it in C order (numpy.ascontiguousarray)",
		"bigendian":  `dtype ">f4" is big-endian: store it as little-endian, array.astype(array.dtype.newbyteorder('<'))`,
		"complex":    `dtype "<c8" is not read, it is complex numbers: store bool, `,
		"structured": "structured types are not read: store each field as an array of its own",
		"objects":    `dtype "|O" is not read, it is Python objects: store bool, `,
		"text":       `dtype "<U3" is not read, it is text: `,
		"float8":     `dtype "<V1" is not read, it is bytes without a type: `,
		"dates":      `dtype "<M8[D]" is not read, it is dates: `,
	} {
		if _, err := Open("testdata/" + path + ".npy"); err == nil || !strings.HasPrefix(err.Error(), "testdata/"+path+`.npy: tensor "`+path+`": `) || !strings.Contains(err.Error(), want) {
			t.Errorf("%v, want %s", err, want)
		}
	}
}

// TestArraysAreReadAsNumpyReadsThem: what Python 2 and other writers than numpy make.
func TestArraysAreReadAsNumpyReadsThem(t *testing.T) {
	f, err := Open("testdata/python2.npz") // members without .npy
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for _, name := range []string{"native", "bare", "named", "letter"} {
		info, ok := f.Lookup(name)
		if !ok || info.DType != F32 || len(info.Shape) != 2 || info.Shape[0] != 2 || info.Shape[1] != 3 {
			t.Fatalf("%s is %v", name, info)
		}
		if p := read(t, f, name); element(p, F32, 5) != 5.5 {
			t.Errorf("%s ends with %g", name, element(p, F32, 5))
		}
	}
	for path, want := range map[string]string{
		"bzip2": "is compressed by BZIP2, which is not read: write the archive with numpy.savez or numpy.savez_compressed",
		"lzma":  "is compressed by LZMA, which is not read: ",
	} {
		if _, err := Open("testdata/" + path + ".npz"); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v, want %s", err, want)
		}
	}
	for descr, want := range map[string]DType{
		"|f4": F32, "single": F32, "=f8": F64, "double": F64, "half": F16, "e": F16, ">i1": I8, "|i1": I8, "?": Bool, "bool": Bool, ">b1": Bool,
		"<V2": BF16, "=i8": I64, "uint16": U16, "B": U8, "q": I64,
	} {
		if got, err := parseNPYType(descr); err != nil || got != want {
			t.Errorf("%s is %v, %v; want %v", descr, got, err, want)
		}
	}
	for _, descr := range []string{"", "<", ">f4", ">float32", "|V2", "V2", "=V2", "<f16", "int", "l", "np.float32", "@f4", "<<f4", "F32"} {
		if got, err := parseNPYType(descr); err == nil {
			t.Errorf("%q was read as %v", descr, got)
		}
	}
}

// TestAMemberWithoutEndingIsAnArrayOrRefused, and its name is that of no other.
func TestAMemberWithoutEndingIsAnArrayOrRefused(t *testing.T) {
	array := npyHeader(Info{DType: U8, Shape: []int{1}})
	for _, c := range []struct {
		members map[string][]byte
		want    string
	}{
		{map[string][]byte{"q": append(array, 7), "k.npy": append(array, 7)}, ""},
		{map[string][]byte{"q": append(array, 7), "q.npy": append(array, 7)}, `tensor "q": appears twice in the archive`},
		{map[string][]byte{"q": array}, `tensor "q": 0 bytes of data`},
		{map[string][]byte{"notes.txt": []byte("hello")}, `member "notes.txt" is neither an .npy array nor __metadata__.json`},
		{map[string][]byte{"short": []byte("\x93NUM")}, `member "short" is neither an .npy array nor`},
	} {
		var b bytes.Buffer
		archive := zip.NewWriter(&b)
		for name, data := range c.members {
			if err := writeMember(archive, name, data); err != nil {
				t.Fatal(err)
			}
		}
		if err := archive.Close(); err != nil {
			t.Fatal(err)
		}
		_, err := openNPZ("job", bytes.NewReader(b.Bytes()), int64(b.Len()))
		if (err == nil) != (c.want == "") || err != nil && !strings.Contains(err.Error(), c.want) {
			t.Errorf("%v, want %q", err, c.want)
		}
	}
}

// TestSafetensorsAreReadAsTheirLibraryReadsThem: no metadata as null, and fields that it does not know.
func TestSafetensorsAreReadAsTheirLibraryReadsThem(t *testing.T) {
	for _, header := range []string{
		`{"__metadata__":null,"q":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}`,
		`{"q":{"dtype":"F32","strides":[1],"shape":[2],"x":{"a":[1,null]},"data_offsets":[0,8]}}`,
		"{\"q\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0,8]}}\n\t ",
	} {
		f, err := openBytes(safetensorsOf(header, []byte("abcdefgh")))
		if err != nil {
			t.Errorf("%s: %v", header, err)
			continue
		}
		if string(read(t, f, "q")) != "abcdefgh" || len(f.Metadata()) != 0 {
			t.Errorf("%s: %q, %v", header, read(t, f, "q"), f.Metadata())
		}
	}
}

// TestAFileIsWhatItsFirstBytesSay, whatever its name is.
func TestAFileIsWhatItsFirstBytesSay(t *testing.T) {
	dir := t.TempDir()
	contents := map[Format]string{Safetensors: "safetensors.safetensors", NPZ: "stored.npz", NPY: "array.npy"}
	for format, path := range contents {
		data, err := os.ReadFile(filepath.Join("testdata", path))
		if err != nil {
			t.Fatal(err)
		}
		for _, name := range []string{"job", "job.bin", "JOB.SAFETENSORS", "JOB.NPZ", "job.Npy", "job.npz", "job.safetensors", "job.safetensors.index.json"} {
			name = filepath.Join(dir, name)
			if err := os.WriteFile(name, data, 0o600); err != nil {
				t.Fatal(err)
			}
			f, err := Open(name)
			if err != nil {
				t.Errorf("%s as %s: %v", path, name, err)
				continue
			}
			if f.Format() != format || len(f.Names()) == 0 {
				t.Errorf("%s as %s is %v of %q", path, name, f.Format(), f.Names())
			}
			if err := f.Close(); err != nil {
				t.Error(err)
			}
		}
	}
	// The name of an array is that of its file.
	data, err := os.ReadFile(filepath.Join("testdata", contents[NPY]))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "job.Npy"), data, 0o600); err != nil {
		t.Fatal(err)
	}
	f, err := Open(filepath.Join(dir, "job.Npy"))
	if err != nil || f.Names()[0] != "job" {
		t.Errorf("%v, %v", f, err)
	}
	f.Close()
	// What is no file of tensors is refused in the words of what its name promises.
	for name, want := range map[string]string{
		"x.SAFETENSORS": "truncated: 5 bytes, not even the 8 bytes of a header's length", "x.NPZ": "not a readable zip archive",
		"x.NPY": "truncated in the header of the array", "x.Safetensors.Index.JSON": "index: ", "x.gguf": "unknown kind of file: it begins neither", "x": "unknown kind of file",
	} {
		name = filepath.Join(dir, name)
		if err := os.WriteFile(name, []byte("hello"), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := Open(name); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %s", name, err, want)
		}
	}
}

func TestInflatingLeavesNothing(t *testing.T) {
	dir := t.TempDir()
	t.Setenv("TMPDIR", dir)
	f, err := Open("testdata/deflated.npz")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	read(t, f, "F32")
	if entries, err := os.ReadDir(dir); err != nil || len(entries) != 0 {
		t.Errorf("%v %v is left", entries, err)
	}
	t.Setenv("TMPDIR", filepath.Join(dir, "missing"))
	if err := f.ReadAt(make([]byte, 8), "F64", 0); err == nil || !strings.Contains(err.Error(), `testdata/deflated.npz: read tensor "F64": make room to inflate`) {
		t.Error(err)
	}
}

func TestShardedFile(t *testing.T) {
	q := `"q":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}`
	k := strings.Replace(q, "q", "k", 1)
	const conflict = `"__metadata__":{"format":"np"},`
	for _, c := range []struct{ index, a, b, want string }{
		{`{"metadata":{"total_size":16,"headwater":"{}"},"weight_map":{"q":"a.safetensors","k":"b.safetensors"}}`, `"__metadata__":{"format":"pt"},` + q, k, ""},
		{`{"weight_map":{"q":"a.safetensors","k":"c.safetensors"}}`, q, k, "open shard: "},
		{`{"weight_map":{"q":"a.safetensors"}}`, q + "," + strings.Replace(k, "0,8", "8,16", 1), k, `a.safetensors: tensor "k": truncated`},
		{`{"weight_map":{"q":"b.safetensors"}}`, q, k, `tensor "k": is not in the index`},
		{`{"weight_map":{"q":"a.safetensors","k":"b.safetensors"}}`, k, k, `tensor "k": is in this shard, but the index`},
		{`{"weight_map":{"q":"a.safetensors","r":"a.safetensors"}}`, q, k, `tensor "r": missing from its shard "a.safetensors"`},
		{`{"metadata":{"format":"pt"},"weight_map":{"q":"a.safetensors"}}`, conflict + q, k, `metadata "format" differs`},
		{`{"weight_map":{"q":"../a.safetensors"}}`, q, k, "is not the name of a .safetensors file beside the index"},
		{`{"weight_map":{"q":"a.bin"}}`, q, k, "is not the name of a .safetensors file beside the index"},
		{`{"weight_map":{"q":"a.safetensors","q":"b.safetensors"}}`, q, k, `weight_map has the key "q" twice`},
		{`{"weight_map":{"q":1}}`, q, k, "is not a string"},
		{`{}`, q, k, "has no weight_map"},
		{`{"weight_map":{}} x`, q, k, "index: "},
	} {
		dir := t.TempDir()
		index := filepath.Join(dir, "job"+indexSuffix)
		for path, b := range map[string][]byte{
			index:                               []byte(c.index),
			filepath.Join(dir, "a.safetensors"): safetensorsOf("{"+c.a+"}", []byte("aaaaaaaa")),
			filepath.Join(dir, "b.safetensors"): safetensorsOf("{"+c.b+"}", []byte("bbbbbbbb")),
		} {
			if err := os.WriteFile(path, b, 0o600); err != nil {
				t.Fatal(err)
			}
		}
		f, err := Open(index)
		if c.want != "" {
			if err == nil || !strings.Contains(err.Error(), c.want) || !strings.HasPrefix(err.Error(), dir) {
				t.Errorf("%v, want %s", err, c.want)
			}
			continue
		}
		if err != nil {
			t.Fatal(err)
		}
		if string(read(t, f, "q")) != "aaaaaaaa" || string(read(t, f, "k")) != "bbbbbbbb" || f.Metadata()["headwater"] != "{}" || f.Metadata()["format"] != "pt" {
			t.Errorf("%v %v", f.Names(), f.Metadata())
		}
		if err := f.Close(); err != nil {
			t.Error(err)
		}
	}
}
