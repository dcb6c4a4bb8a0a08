// Package image packs static binaries into container images without a container engine, as an archive of the form that
// `docker save` writes and `docker load`, `ctr images import` and `podman load` read.
//
// An image is one layer over nothing: the binary in /, the directories that it may write to, and files asked for. It runs
// as user and group 65532. The same inputs give the same bytes: no time, no owner and no order of this machine gets in.
package image

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"debug/elf"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
)

// imageUser is the user and the group that an image's process runs as.
const imageUser = 65532

// dataDir is the directory in an image that its user owns, where a coordinator keeps its jobs.
const dataDir = "/var/lib/headwater"

// Spec says what an image is made of.
type Spec struct {
	Tags   []string          // its names, each repository:tag, such as headwater/worker:0.1.0; at least one
	Binary string            // path of a static Linux binary; /<its base name> becomes the entrypoint
	Cmd    []string          // the entrypoint's arguments where the container gives none
	Files  map[string]string // further files, readable by all: absolute path in the image → path here
	Labels map[string]string
}

// epoch is the time of everything in an image.
var epoch = time.Unix(0, 0).UTC()

// Write writes an archive of the images to w, in their order.
func Write(w io.Writer, specs ...Spec) error {
	tw := tar.NewWriter(w)
	var manifest tarball.Manifest
	written := make(map[string]bool)
	put := func(name string, data []byte) error {
		if written[name] {
			return nil
		}
		written[name] = true
		h := tar.Header{Name: name, Typeflag: tar.TypeReg, Mode: 0o644, Size: int64(len(data)), ModTime: epoch, Format: tar.FormatPAX}
		if err := tw.WriteHeader(&h); err != nil {
			return fmt.Errorf("writing %s of the archive: %w", name, err)
		}
		if _, err := tw.Write(data); err != nil {
			return fmt.Errorf("writing %s of the archive: %w", name, err)
		}
		return nil
	}
	tags := make(map[string]bool)
	for _, spec := range specs {
		names, err := spec.names(tags)
		if err != nil {
			return err
		}
		img, err := Build(spec)
		if err != nil {
			return err
		}
		config, contents, err := blobs(img)
		if err != nil {
			return fmt.Errorf("image of %s: %w", spec.Binary, err)
		}
		entry := tarball.Descriptor{Config: digest(config) + ".json", RepoTags: names, Layers: []string{digest(contents) + ".tar.gz"}}
		if err := put(entry.Layers[0], contents); err != nil {
			return err
		}
		if err := put(entry.Config, config); err != nil {
			return err
		}
		manifest = append(manifest, entry)
	}
	list, err := json.Marshal(manifest)
	if err != nil {
		return fmt.Errorf("writing the archive's manifest: %w", err)
	}
	if err := put("manifest.json", list); err != nil {
		return err
	}
	if err := tw.Close(); err != nil {
		return fmt.Errorf("ending the archive: %w", err)
	}
	return nil
}

// names returns the names of an image as archives have them, and adds them to those that are taken.
func (spec Spec) names(taken map[string]bool) ([]string, error) {
	if len(spec.Tags) == 0 {
		return nil, fmt.Errorf("image of %s: it has no name", spec.Binary)
	}
	var names []string
	for _, t := range spec.Tags {
		tag, err := name.NewTag(t)
		if err != nil {
			return nil, fmt.Errorf("image of %s: %w", spec.Binary, err)
		}
		if taken[tag.Name()] {
			return nil, fmt.Errorf("image %s is asked for twice", t)
		}
		taken[tag.Name()] = true
		names = append(names, tag.String())
	}
	return names, nil
}

// blobs returns an image's configuration and its compressed layer.
func blobs(img v1.Image) (config, contents []byte, err error) {
	if config, err = img.RawConfigFile(); err != nil {
		return nil, nil, err
	}
	layers, err := img.Layers()
	if err != nil {
		return nil, nil, err
	}
	r, err := layers[0].Compressed()
	if err != nil {
		return nil, nil, err
	}
	defer r.Close()
	contents, err = io.ReadAll(r)
	return config, contents, err
}

func digest(b []byte) string { return fmt.Sprintf("%x", sha256.Sum256(b)) }

// Build makes one image.
func Build(spec Spec) (v1.Image, error) {
	arch, err := architecture(spec.Binary)
	if err != nil {
		return nil, fmt.Errorf("image of %s: %w", spec.Binary, err)
	}
	entrypoint := "/" + filepath.Base(spec.Binary)
	contents, err := layer(entrypoint, spec)
	if err != nil {
		return nil, fmt.Errorf("image of %s: %w", spec.Binary, err)
	}
	opener := func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(contents)), nil }
	l, err := tarball.LayerFromOpener(opener, tarball.WithCompressedCaching)
	if err != nil {
		return nil, fmt.Errorf("image of %s: compressing its layer: %w", spec.Binary, err)
	}
	img, err := mutate.Append(empty.Image, mutate.Addendum{Layer: l, History: v1.History{
		Created: v1.Time{Time: epoch}, CreatedBy: "headwater.example/internal/image", Comment: filepath.Base(spec.Binary),
	}})
	if err != nil {
		return nil, fmt.Errorf("image of %s: %w", spec.Binary, err)
	}
	config, err := img.ConfigFile()
	if err != nil {
		return nil, fmt.Errorf("image of %s: %w", spec.Binary, err)
	}
	config = config.DeepCopy()
	config.OS, config.Architecture, config.Created = "linux", arch, v1.Time{Time: epoch}
	config.Config = v1.Config{
		User:       fmt.Sprintf("%d:%d", imageUser, imageUser),
		Entrypoint: []string{entrypoint},
		Cmd:        spec.Cmd,
		WorkingDir: "/",
		Labels:     spec.Labels,
	}
	if img, err = mutate.ConfigFile(img, config); err != nil {
		return nil, fmt.Errorf("image of %s: %w", spec.Binary, err)
	}
	return img, nil
}

// architectures are Go's and OCI's names of what ELF numbers.
var architectures = map[elf.Machine]string{elf.EM_X86_64: "amd64", elf.EM_AARCH64: "arm64", elf.EM_RISCV: "riscv64", elf.EM_S390: "s390x"}

// architecture returns what a binary runs on. It refuses one that needs a loader, since the image has none.
func architecture(binary string) (string, error) {
	f, err := elf.Open(binary)
	if err != nil {
		return "", fmt.Errorf("reading %s as a Linux binary: %w", binary, err)
	}
	defer f.Close()
	for _, p := range f.Progs {
		if p.Type == elf.PT_INTERP {
			return "", fmt.Errorf("%s is linked dynamically, and an image has no loader: build it with CGO_ENABLED=0", binary)
		}
	}
	arch, ok := architectures[f.Machine]
	if !ok {
		return "", fmt.Errorf("%s is built for %v, which is not known here", binary, f.Machine)
	}
	return arch, nil
}

// layer returns the tar stream of an image's only layer.
func layer(entrypoint string, spec Spec) ([]byte, error) {
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	entries := []tar.Header{
		{Name: "tmp/", Typeflag: tar.TypeDir, Mode: 0o1777},
		{Name: "var/", Typeflag: tar.TypeDir, Mode: 0o755},
		{Name: "var/lib/", Typeflag: tar.TypeDir, Mode: 0o755},
		{Name: strings.TrimPrefix(dataDir, "/") + "/", Typeflag: tar.TypeDir, Mode: 0o700, Uid: imageUser, Gid: imageUser},
	}
	made := map[string]bool{"/tmp": true, "/var": true, "/var/lib": true, dataDir: true}
	sources := map[string]string{entrypoint: spec.Binary}
	for _, to := range slices.Sorted(maps.Keys(spec.Files)) {
		if !path.IsAbs(to) || path.Clean(to) != to || to == entrypoint || made[to] {
			return nil, fmt.Errorf("a file can't be placed at %q", to)
		}
		for _, dir := range parents(to) {
			if !made[dir] {
				made[dir] = true
				entries = append(entries, tar.Header{Name: dir[1:] + "/", Typeflag: tar.TypeDir, Mode: 0o755})
			}
		}
		sources[to] = spec.Files[to]
	}
	for _, to := range slices.Sorted(maps.Keys(sources)) {
		mode := int64(0o644)
		if to == entrypoint {
			mode = 0o755
		}
		entries = append(entries, tar.Header{Name: to[1:], Typeflag: tar.TypeReg, Mode: mode})
	}
	for _, h := range entries {
		var data []byte
		if h.Typeflag == tar.TypeReg {
			var err error
			if data, err = os.ReadFile(sources["/"+h.Name]); err != nil {
				return nil, fmt.Errorf("packing /%s: %w", h.Name, err)
			}
		}
		h.Size, h.ModTime, h.Format = int64(len(data)), epoch, tar.FormatPAX
		if err := w.WriteHeader(&h); err != nil {
			return nil, fmt.Errorf("packing /%s: %w", h.Name, err)
		}
		if _, err := w.Write(data); err != nil {
			return nil, fmt.Errorf("packing /%s: %w", h.Name, err)
		}
	}
	if err := w.Close(); err != nil {
		return nil, fmt.Errorf("ending the layer: %w", err)
	}
	return buf.Bytes(), nil
}

// parents returns the directories above a path, the outermost first, without the root.
func parents(p string) []string {
	var dirs []string
	for p = path.Dir(p); p != "/"; p = path.Dir(p) {
		dirs = append(dirs, p)
	}
	slices.Reverse(dirs)
	return dirs
}
