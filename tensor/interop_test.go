package tensor

import (
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
		"fortran": "Fortran order", "bigendian": `dtype ">f4" is big-endian`, "complex": `unknown dtype "<c8"`, "structured": "structured types are not read",
	} {
		if _, err := Open("testdata/" + path + ".npy"); err == nil || !strings.HasPrefix(err.Error(), "testdata/"+path+`.npy: tensor "`+path+`": `) || !strings.Contains(err.Error(), want) {
			t.Errorf("%v, want %s", err, want)
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
		{`{"weight_map":{"q":"a.safetensors","k":"b.safetensors"}}`, k, k, `tensor "k": lies in this shard, and by the index`},
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
