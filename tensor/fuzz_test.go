package tensor

import (
	"bytes"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// readable fails unless all that f claims can be read and written again.
func readable(t *testing.T, f *File, inflates bool) {
	t.Helper()
	var tensors []Data
	for _, name := range f.Names() {
		info, ok := f.Lookup(name)
		if !ok || info.Name != name || info.Bytes() < 0 {
			t.Fatalf("%q is %v %t", name, info, ok)
		}
		if info.Bytes() > 1<<20 {
			return
		}
		p := make([]byte, info.Bytes())
		if err := f.ReadAt(p, name, 0); err != nil {
			if inflates {
				return // what deflate finds wrong shows at the first read
			}
			t.Fatal(err)
		}
		tensors = append(tensors, Data{info, p})
	}
	var b bytes.Buffer
	if err := WriteSafetensors(&b, tensors, f.Metadata()); err != nil && !strings.Contains(err.Error(), "reserved") && !strings.Contains(err.Error(), "UTF-8") {
		t.Fatal(err)
	} else if err == nil {
		if _, err := openBytes(b.Bytes()); err != nil {
			t.Fatal(err)
		}
	}
}

// oneLine fails unless err is a FormatError of one short line.
func oneLine(t *testing.T, err error) {
	t.Helper()
	if _, ok := errors.AsType[*FormatError](err); !ok || strings.Contains(err.Error(), "\n") || len(err.Error()) > 2000 {
		t.Fatalf("%T %q", err, err)
	}
}

func seedFiles(f *testing.F, pattern string) {
	paths, err := filepath.Glob(pattern)
	if err != nil || len(paths) == 0 {
		f.Fatal(pattern, err)
	}
	for _, path := range paths {
		b, err := os.ReadFile(path)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
}

func FuzzSafetensors(f *testing.F) {
	seedFiles(f, "testdata/*.safetensors")
	f.Add(safetensorsOf(`{"q":{"dtype":"F32","shape":[1,2],"data_offsets":[0,8]},"k":{"dtype":"BOOL","shape":[],"data_offsets":[8,9]}}`, make([]byte, 9)))
	f.Add([]byte("\x00\x00\x00\x00\x00\x01\x00\x00{}"))
	f.Fuzz(func(t *testing.T, b []byte) {
		file, err := openBytes(b)
		if err != nil {
			oneLine(t, err)
			return
		}
		readable(t, file, false)
	})
}

func FuzzNPY(f *testing.F) {
	seedFiles(f, "testdata/*.npy")
	seedFiles(f, "testdata/*.npz")
	f.Fuzz(func(t *testing.T, b []byte) {
		if file, err := openNPY("q.npy", bytes.NewReader(b), int64(len(b))); err != nil {
			oneLine(t, err)
		} else {
			readable(t, file, false)
		}
		file, err := openNPZ("job.npz", bytes.NewReader(b), int64(len(b)))
		if err != nil {
			oneLine(t, err)
			return
		}
		defer file.Close()
		readable(t, file, true)
	})
}

func FuzzIndex(f *testing.F) {
	for _, s := range []string{
		`{"metadata":{"total_size":8,"format":"pt"},"weight_map":{"q":"a.safetensors"}}`,
		`{"weight_map":{"q":"a.safetensors","k":"b.safetensors"}}`, `{"weight_map":{"q":"../a.safetensors"}}`, `{"weight_map":{}}`, `{}`,
	} {
		f.Add([]byte(s))
	}
	shard := safetensorsOf(`{"q":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}`, make([]byte, 8))
	f.Fuzz(func(t *testing.T, b []byte) {
		file, err := openIndex("job"+indexSuffix, b, func(name string) (string, io.ReaderAt, int64, io.Closer, error) {
			if name != filepath.Base(name) {
				t.Fatalf("shard %q reaches out of the directory", name)
			}
			return name, bytes.NewReader(shard), int64(len(shard)), io.NopCloser(nil), nil
		})
		if err != nil {
			oneLine(t, err)
			return
		}
		readable(t, file, false)
	})
}
