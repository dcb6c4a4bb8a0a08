//go:build linux

package e2e

import (
	"archive/zip"
	"bytes"
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"

	"headwater.example/internal/accuracy"
	"headwater.example/internal/localcluster"
	"headwater.example/tensor"
)

const fixtures = "../../test/data/smollm2/"

// promised is the largest error that a tensor of a result may have against the float64 truth: of attention in units, of a
// layer's output relative to its row. The context within a layer is on the way there, from queries and keys that are
// themselves rounded: its bound only tells right from wrong.
func promised(e accuracy.Errors) float64 {
	switch {
	case e.Kind == accuracy.Units:
		return 8
	case strings.HasSuffix(e.Tensor, "y"):
		return 1e-5
	}
	return 1e-4
}

// TestARealModelOnAnyCluster runs two layers of a real model, from their queries and from their hidden states, on clusters
// that differ in all that must not matter.
func TestARealModelOnAnyCluster(t *testing.T) {
	t.Parallel()
	for _, shape := range []struct {
		workers, threads int
		block            string
	}{
		{1, 1, "1MiB"},
		{1, 2, "777"},
		{2, 1, "64KiB"},
		{2, 2, "1MiB"},
		{3, 1, "10000"},
		{3, 2, "4KiB"},
		{4, 1, "2MiB"},
		{4, 2, "50001"},
		{5, 1, "100KiB"},
		{5, 2, "3MiB"},
		{7, 1, "1MiB"},
		{7, 2, "16KiB"},
	} {
		t.Run(fmt.Sprintf("%d workers, %d threads, blocks of %s", shape.workers, shape.threads, shape.block), func(t *testing.T) {
			t.Parallel()
			c := start(t, localcluster.Options{Workers: shape.workers, Threads: shape.threads, CoordinatorArgs: []string{"--block", shape.block}})
			for _, name := range []string{"attention", "layer"} {
				job, result := c.run(t, fixtures+name+".safetensors")
				if lost := job.Report.WorkersLost; lost != 0 {
					t.Errorf("%s: %d workers were lost", name, lost)
				}
				againstTruth(t, name, result)
				same(t, name, firstResult(t, name, result), result)
			}
		})
	}
}

// againstTruth checks a result of a fixture.
func againstTruth(t *testing.T, name string, result *tensor.File) {
	t.Helper()
	errors, err := accuracy.Against(result, open(t, fixtures+name+".truth.safetensors"))
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range errors {
		if most, row := e.Worst(); !(most <= promised(e)) {
			t.Errorf("%s: tensor %q: row %d is %g %s from the truth, promised are %g", name, e.Tensor, row, most, e.Kind, promised(e))
		}
	}
}

var (
	firstMu sync.Mutex // guards first
	first   = map[string]string{}
)

// firstResult keeps the first result of each fixture, for all later ones to be compared with.
func firstResult(t *testing.T, name string, result *tensor.File) *tensor.File {
	t.Helper()
	firstMu.Lock()
	defer firstMu.Unlock()
	if first[name] == "" {
		path := filepath.Join(workshop, name+".result.safetensors")
		data, err := os.ReadFile(result.Path())
		if err == nil {
			err = os.WriteFile(path, data, 0o600)
		}
		if err != nil {
			t.Fatal(err)
		}
		first[name] = path
	}
	return open(t, first[name])
}

// TestFormatsOfOneJob submits the same tensors as an npz archive and as sharded files, by the command line.
func TestFormatsOfOneJob(t *testing.T) {
	t.Parallel()
	c := start(t, localcluster.Options{Workers: 2})
	source := open(t, fixtures+"attention.safetensors")
	for name, path := range map[string]string{
		"stored npz":   asNPZ(t, source, zip.Store),
		"deflated npz": asNPZ(t, source, zip.Deflate),
		"shards":       asShards(t, source),
	} {
		out := filepath.Join(t.TempDir(), "context.safetensors")
		coord(t, "submit", path, "--coordinator", c.Address(), "--out", out, "--quiet").succeeds(t)
		result := open(t, out)
		againstTruth(t, "attention", result)
		same(t, name, firstResult(t, "attention", result), result)
	}
}

// contents reads all tensors of a file.
func contents(t *testing.T, f *tensor.File) []tensor.Data {
	t.Helper()
	var all []tensor.Data
	for _, name := range f.Names() {
		info, _ := f.Lookup(name)
		d := tensor.Data{Info: info, Bytes: make([]byte, info.Bytes())}
		if err := f.ReadAt(d.Bytes, name, 0); err != nil {
			t.Fatal(err)
		}
		all = append(all, d)
	}
	return all
}

// asNPZ writes what numpy.savez writes, with the metadata beside the arrays.
func asNPZ(t *testing.T, source *tensor.File, method uint16) string {
	t.Helper()
	var archive bytes.Buffer
	z := zip.NewWriter(&archive)
	add := func(name string, data []byte) {
		w, err := z.CreateHeader(&zip.FileHeader{Name: name, Method: method})
		if err == nil {
			_, err = w.Write(data)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	for _, d := range contents(t, source) {
		var array bytes.Buffer
		if err := tensor.WriteNPY(&array, d); err != nil {
			t.Fatal(err)
		}
		add(d.Info.Name+".npy", array.Bytes())
	}
	add("__metadata__.json", inJSON(t, source.Metadata()))
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	return put(t, "job.npz", archive.Bytes())
}

// asShards writes each tensor into one of three files, and their index, which has the metadata.
func asShards(t *testing.T, source *tensor.File) string {
	t.Helper()
	folder := t.TempDir()
	shards, where := map[string][]tensor.Data{}, map[string]string{}
	for i, d := range contents(t, source) {
		name := "job-" + strconv.Itoa(i%3) + ".safetensors"
		shards[name] = append(shards[name], d)
		where[d.Info.Name] = name
	}
	for name, tensors := range shards {
		f, err := os.Create(filepath.Join(folder, name))
		if err == nil {
			err = tensor.WriteSafetensors(f, tensors, map[string]string{"format": "pt"})
		}
		if err == nil {
			err = f.Close()
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	metadata := map[string]any{"total_size": source.Size()}
	for key, value := range maps.All(source.Metadata()) {
		metadata[key] = value
	}
	path := filepath.Join(folder, "job.safetensors.index.json")
	if err := os.WriteFile(path, inJSON(t, map[string]any{"metadata": metadata, "weight_map": where}), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func inJSON(t *testing.T, value any) []byte {
	t.Helper()
	text, err := json.Marshal(value)
	if err != nil {
		t.Fatal(err)
	}
	return text
}

// put writes a file of the test's own and returns its path.
func put(t *testing.T, name string, data []byte) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}
