package image

import (
	"archive/tar"
	"bytes"
	"debug/elf"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/google/go-containerregistry/pkg/v1/validate"
)

// anELF returns a Linux binary without a program, which asks for a loader or not.
func anELF(t *testing.T, machine elf.Machine, loader bool) []byte {
	t.Helper()
	h := elf.Header64{
		Ident: [16]byte{0x7f, 'E', 'L', 'F', byte(elf.ELFCLASS64), byte(elf.ELFDATA2LSB), byte(elf.EV_CURRENT)},
		Type:  uint16(elf.ET_EXEC), Machine: uint16(machine), Version: uint32(elf.EV_CURRENT),
		Phoff: 64, Ehsize: 64, Phentsize: 56, Phnum: 1, Shentsize: 64,
	}
	p := elf.Prog64{Type: uint32(elf.PT_LOAD)}
	if loader {
		p.Type = uint32(elf.PT_INTERP)
	}
	var b bytes.Buffer
	for _, part := range []any{h, p} {
		if err := binary.Write(&b, binary.LittleEndian, part); err != nil {
			t.Fatal(err)
		}
	}
	return b.Bytes()
}

func write(t *testing.T, dir, base string, data []byte) string {
	t.Helper()
	path := filepath.Join(dir, base)
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func specs(t *testing.T, dir string) []Spec {
	t.Helper()
	extra := write(t, dir, "job", []byte("a job"))
	return []Spec{
		{Tags: []string{"headwater/coord:1.2.3"}, Binary: write(t, dir, "coord", anELF(t, elf.EM_X86_64, false)), Cmd: []string{"serve"}, Labels: map[string]string{"a": "b"}, Files: map[string]string{"/fixtures/job.safetensors": extra, "/fixtures/deep/job": extra}},
		{Tags: []string{"headwater/worker:1.2.3", "headwater/worker:local"}, Binary: write(t, dir, "worker", anELF(t, elf.EM_AARCH64, false)), Cmd: []string{"serve"}},
	}
}

func TestArchiveReadsBack(t *testing.T) {
	dir := t.TempDir()
	list := specs(t, dir)
	var archive bytes.Buffer
	if _, err := Write(&archive, list...); err != nil {
		t.Fatal(err)
	}
	open := func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(archive.Bytes())), nil }
	manifest, err := tarball.LoadManifest(open)
	if err != nil {
		t.Fatal(err)
	}
	if len(manifest) != len(list) {
		t.Fatalf("%d images", len(manifest))
	}
	for i, want := range []struct{ base, arch string }{{"coord", "amd64"}, {"worker", "arm64"}} {
		tag, err := name.NewTag(list[i].Tags[0])
		if err != nil {
			t.Fatal(err)
		}
		img, err := tarball.Image(open, &tag)
		if err != nil {
			t.Fatal(err)
		}
		c, err := img.ConfigFile()
		if err != nil {
			t.Fatal(err)
		}
		if c.OS != "linux" || c.Architecture != want.arch || c.Config.User != "65532:65532" ||
			!reflect.DeepEqual(c.Config.Entrypoint, []string{"/" + want.base}) || !reflect.DeepEqual(c.Config.Cmd, []string{"serve"}) ||
			!reflect.DeepEqual(c.Config.Labels, list[i].Labels) {
			t.Errorf("%s is configured as %+v on %s/%s", want.base, c.Config, c.OS, c.Architecture)
		}
		layers, err := img.Layers()
		if err != nil || len(layers) != 1 || len(c.RootFS.DiffIDs) != 1 {
			t.Fatalf("%d layers, %v", len(layers), err)
		}
		if id, err := layers[0].DiffID(); err != nil || id != c.RootFS.DiffIDs[0] {
			t.Errorf("%s: the layer is %v, %v, the configuration says %v", want.base, id, err, c.RootFS.DiffIDs)
		}
		contents, err := layers[0].Uncompressed()
		if err != nil {
			t.Fatal(err)
		}
		got := inventory(t, contents)
		wantFiles := map[string]string{
			"tmp/":               "d 1777 0:0 0",
			"var/":               "d 755 0:0 0",
			"var/lib/":           "d 755 0:0 0",
			"var/lib/headwater/": "d 700 65532:65532 0",
			want.base:            "f 755 0:0 120",
		}
		if want.base == "coord" {
			wantFiles["fixtures/"] = "d 755 0:0 0"
			wantFiles["fixtures/deep/"] = "d 755 0:0 0"
			wantFiles["fixtures/deep/job"] = "f 644 0:0 5"
			wantFiles["fixtures/job.safetensors"] = "f 644 0:0 5"
		}
		if !reflect.DeepEqual(got, wantFiles) {
			t.Errorf("%s holds %v, want %v", want.base, got, wantFiles)
		}
	}
}

// TestArchiveIsALayoutOfOCI unpacks the archive, and reads it as a registry's client does.
func TestArchiveIsALayoutOfOCI(t *testing.T) {
	dir := t.TempDir()
	list := specs(t, dir)
	var archive bytes.Buffer
	digests, err := Write(&archive, list...)
	if err != nil {
		t.Fatal(err)
	}
	unpack(t, filepath.Join(dir, "layout"), &archive)
	index, err := layout.ImageIndexFromPath(filepath.Join(dir, "layout"))
	if err != nil {
		t.Fatal(err)
	}
	if err := validate.Index(index); err != nil {
		t.Error(err)
	}
	manifest, err := index.IndexManifest()
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, m := range manifest.Manifests {
		got = append(got, fmt.Sprint(m.Digest == digests[min(len(got), 1)], " ", m.Platform, " ", m.Annotations["io.containerd.image.name"], " ", m.Annotations["org.opencontainers.image.ref.name"]))
	}
	want := []string{
		"true linux/amd64 docker.io/headwater/coord:1.2.3 1.2.3",
		"true linux/arm64 docker.io/headwater/worker:1.2.3 1.2.3",
		"true linux/arm64 docker.io/headwater/worker:local local",
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("the index names %q, want %q", got, want)
	}
}

func unpack(t *testing.T, dir string, archive io.Reader) {
	t.Helper()
	for tr := tar.NewReader(archive); ; {
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			return
		}
		if err != nil {
			t.Fatal(err)
		}
		data, err := io.ReadAll(tr)
		if err != nil {
			t.Fatal(err)
		}
		path := filepath.Join(dir, h.Name)
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

// inventory reads a layer: by name, kind, mode, owner and size.
func inventory(t *testing.T, r io.ReadCloser) map[string]string {
	t.Helper()
	defer r.Close()
	files := make(map[string]string)
	for tr := tar.NewReader(r); ; {
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			return files
		}
		if err != nil {
			t.Fatal(err)
		}
		kind := "f"
		if h.Typeflag == tar.TypeDir {
			kind = "d"
		}
		if !h.ModTime.Equal(epoch) {
			t.Errorf("%s is of %v", h.Name, h.ModTime)
		}
		if _, twice := files[h.Name]; twice {
			t.Errorf("%s is there twice", h.Name)
		}
		files[h.Name] = fmt.Sprintf("%s %o %d:%d %d", kind, h.Mode, h.Uid, h.Gid, h.Size)
	}
}

func TestTheSameInputsGiveTheSameBytes(t *testing.T) {
	var archives [4]bytes.Buffer
	for i := range archives {
		// Another directory, and so other paths, inodes and times.
		if _, err := Write(&archives[i], specs(t, t.TempDir())...); err != nil {
			t.Fatal(err)
		}
	}
	for i := range archives {
		if !bytes.Equal(archives[0].Bytes(), archives[i].Bytes()) {
			t.Fatal("two archives of the same binaries differ")
		}
	}
}

// TestTwoBuildsGiveOneArchive has `make image` build small programs at two places, and compares all that it writes.
func TestTwoBuildsGiveOneArchive(t *testing.T) {
	places := []string{filepath.Join(t.TempDir(), "one"), filepath.Join(t.TempDir(), "two", "deeper")}
	for _, place := range places {
		for _, from := range []string{"go.mod", "go.sum", "Makefile", "internal/image", "internal/sbom", "internal/atomicfile"} {
			to := filepath.Join(place, from)
			if err := os.MkdirAll(filepath.Dir(to), 0o700); err != nil {
				t.Fatal(err)
			}
			if out, err := exec.CommandContext(t.Context(), "cp", "-R", filepath.Join("../..", from), to).CombinedOutput(); err != nil {
				t.Fatalf("%v: %s", err, out)
			}
		}
		for _, program := range []string{"coord", "worker"} {
			if err := os.MkdirAll(filepath.Join(place, "cmd", program), 0o700); err != nil {
				t.Fatal(err)
			}
			write(t, filepath.Join(place, "cmd", program), "main.go", []byte("package main\n\nimport (\n\t\"fmt\"\n\t\"runtime\"\n)\n\nfunc main() { fmt.Println(runtime.Caller(0)) }\n"))
		}
		// The licences come from a module of the tools, which has a test of its own: here they are a file that is there.
		if err := os.MkdirAll(filepath.Join(place, "out"), 0o700); err != nil {
			t.Fatal(err)
		}
		write(t, filepath.Join(place, "out"), "LICENSES.txt", []byte("the licences\n"))
		make := exec.CommandContext(t.Context(), "make", "-o", "out/LICENSES.txt", "-C", place, "image", "VERSION=1.2.3", "MADE=1767225600", "REVISION=abc")
		make.Env = append(os.Environ(), "GOFLAGS=") // the Makefile's alone
		if out, err := make.CombinedOutput(); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
	}
	for _, file := range []string{"images.tar", "coord.spdx.json", "worker.spdx.json"} {
		var contents [2][]byte
		for i, place := range places {
			var err error
			if contents[i], err = os.ReadFile(filepath.Join(place, "out", file)); err != nil {
				t.Fatal(err)
			}
		}
		if !bytes.Equal(contents[0], contents[1]) {
			t.Errorf("%s depends on where it was built", file)
		}
	}
}

// What docker load and ctr import look for in an archive.
func TestManifestNamesTheParts(t *testing.T) {
	var archive bytes.Buffer
	if _, err := Write(&archive, specs(t, t.TempDir())[1]); err != nil {
		t.Fatal(err)
	}
	parts := make(map[string][]byte)
	for tr := tar.NewReader(&archive); ; {
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		if parts[h.Name], err = io.ReadAll(tr); err != nil {
			t.Fatal(err)
		}
	}
	var manifest []struct {
		Config   string
		RepoTags []string
		Layers   []string
	}
	if err := json.Unmarshal(parts["manifest.json"], &manifest); err != nil {
		t.Fatal(err)
	}
	if len(manifest) != 1 || len(manifest[0].RepoTags) != 2 || !strings.HasSuffix(manifest[0].RepoTags[0], "headwater/worker:1.2.3") || !strings.HasSuffix(manifest[0].RepoTags[1], "headwater/worker:local") {
		t.Fatalf("manifest %+v", manifest)
	}
	for _, part := range append(manifest[0].Layers, manifest[0].Config) {
		if len(parts[part]) == 0 {
			t.Errorf("%s is named and not there", part)
		}
	}
}

func TestImagesThatCannotBeMade(t *testing.T) {
	dir := t.TempDir()
	good := write(t, dir, "good", anELF(t, elf.EM_X86_64, false))
	for rule, list := range map[string][]Spec{
		"reading " + filepath.Join(dir, "none"): {{Tags: []string{"headwater/a:1"}, Binary: filepath.Join(dir, "none")}},
		"as a Linux binary":                     {{Tags: []string{"headwater/a:1"}, Binary: write(t, dir, "script", []byte("#!/bin/sh\n"))}},
		"is linked dynamically":                 {{Tags: []string{"headwater/a:1"}, Binary: write(t, dir, "dynamic", anELF(t, elf.EM_X86_64, true))}},
		"is built for EM_68K":                   {{Tags: []string{"headwater/a:1"}, Binary: write(t, dir, "old", anELF(t, elf.EM_68K, false))}},
		"image of " + good:                      {{Tags: []string{"Not A Tag"}, Binary: good}},
		"is asked for twice":                    {{Tags: []string{"headwater/a:1"}, Binary: good}, {Tags: []string{"headwater/a:2", "headwater/a:1"}, Binary: good}},
		"it has no name":                        {{Binary: good}},
		`placed at "job"`:                       {{Tags: []string{"headwater/a:1"}, Binary: good, Files: map[string]string{"job": good}}},
		`placed at "/a/../good"`:                {{Tags: []string{"headwater/a:1"}, Binary: good, Files: map[string]string{"/a/../good": good}}},
		`placed at "/good"`:                     {{Tags: []string{"headwater/a:1"}, Binary: good, Files: map[string]string{"/good": good}}},
		"packing /job":                          {{Tags: []string{"headwater/a:1"}, Binary: good, Files: map[string]string{"/job": filepath.Join(dir, "none")}}},
	} {
		if _, err := Write(io.Discard, list...); err == nil || !strings.Contains(err.Error(), rule) {
			t.Errorf("want an error that says %q, got %v", rule, err)
		}
	}
}
