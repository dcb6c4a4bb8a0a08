// Package image packs static binaries into container images without a container engine, as an archive of the form that
// `docker save` writes and `docker load`, `ctr images import`, `podman load` and `skopeo copy oci-archive:` read.
//
// An image is one layer over nothing: the binary in /, the directories that it may write to, and files asked for. It runs
// as user and group 65532. The same inputs give the same bytes: no time, no owner and no order of this machine gets in.
package image

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
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
	"github.com/google/go-containerregistry/pkg/v1/types"
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
	Made   time.Time // what the image says of when it was made, the epoch if it is zero; nothing else depends on it
}

// epoch is the time of every file in an image.
var epoch = time.Unix(0, 0).UTC()

// Write writes an archive of the images to w, in their order, and returns the digests of their manifests.
//
// The archive has the layout of OCI (oci-layout, index.json, blobs) and beside it manifest.json, which says the same to programs
// that know only what `docker save` wrote at first.
func Write(w io.Writer, specs ...Spec) ([]v1.Hash, error) {
	a := archive{tar: tar.NewWriter(w), written: make(map[string]bool)}
	index := v1.IndexManifest{SchemaVersion: 2, MediaType: types.OCIImageIndex, Manifests: []v1.Descriptor{}}
	var loads tarball.Manifest
	var digests []v1.Hash
	tags := make(map[string]bool)
	for _, spec := range specs {
		names, err := spec.names(tags)
		if err != nil {
			return nil, err
		}
		img, err := Build(spec)
		if err != nil {
			return nil, err
		}
		found, load, err := a.image(img)
		if err != nil {
			return nil, fmt.Errorf("image of %s: %w", spec.Binary, err)
		}
		for _, tag := range names {
			load.RepoTags = append(load.RepoTags, tag.String())
			found.Annotations = map[string]string{"io.containerd.image.name": full(tag), "org.opencontainers.image.ref.name": tag.TagStr()}
			index.Manifests = append(index.Manifests, found)
		}
		loads, digests = append(loads, load), append(digests, found.Digest)
	}
	if err := a.json("index.json", index); err != nil {
		return nil, err
	}
	if err := a.json("manifest.json", loads); err != nil {
		return nil, err
	}
	if err := a.json("oci-layout", map[string]string{"imageLayoutVersion": "1.0.0"}); err != nil {
		return nil, err
	}
	if err := a.tar.Close(); err != nil {
		return nil, fmt.Errorf("ending the archive: %w", err)
	}
	return digests, nil
}

// full is a tag as containerd names images: with docker.io in front of one that names no registry.
func full(tag name.Tag) string {
	return strings.Replace(tag.Name(), name.DefaultRegistry+"/", "docker.io/", 1)
}

// archive is one that is being written. A blob that two images share is written once.
type archive struct {
	tar     *tar.Writer
	written map[string]bool
}

func (a *archive) put(name string, data []byte) error {
	if a.written[name] {
		return nil
	}
	a.written[name] = true
	h := tar.Header{Name: name, Typeflag: tar.TypeReg, Mode: 0o644, Size: int64(len(data)), ModTime: epoch, Format: tar.FormatPAX}
	if err := a.tar.WriteHeader(&h); err != nil {
		return fmt.Errorf("writing %s of the archive: %w", name, err)
	}
	if _, err := a.tar.Write(data); err != nil {
		return fmt.Errorf("writing %s of the archive: %w", name, err)
	}
	return nil
}

func (a *archive) json(name string, v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return fmt.Errorf("writing %s of the archive: %w", name, err)
	}
	return a.put(name, b)
}

// image writes the parts of an image, and returns what the two lists of images say of it, without names.
func (a *archive) image(img v1.Image) (found v1.Descriptor, load tarball.Descriptor, err error) {
	manifest, err := img.Manifest()
	if err != nil {
		return found, load, err
	}
	described, err := img.ConfigFile()
	if err != nil {
		return found, load, err
	}
	raw, err := img.RawManifest()
	if err != nil {
		return found, load, err
	}
	config, err := img.RawConfigFile()
	if err != nil {
		return found, load, err
	}
	layers, err := img.Layers()
	if err != nil {
		return found, load, err
	}
	contents, err := compressed(layers[0])
	if err != nil {
		return found, load, err
	}
	digest, err := img.Digest()
	if err != nil {
		return found, load, err
	}
	for _, blob := range []struct {
		hash v1.Hash
		data []byte
	}{{manifest.Layers[0].Digest, contents}, {manifest.Config.Digest, config}, {digest, raw}} {
		if err := a.put(blobOf(blob.hash), blob.data); err != nil {
			return found, load, err
		}
	}
	return v1.Descriptor{MediaType: manifest.MediaType, Size: int64(len(raw)), Digest: digest, Platform: described.Platform()},
		tarball.Descriptor{Config: blobOf(manifest.Config.Digest), Layers: []string{blobOf(manifest.Layers[0].Digest)}}, nil
}

func blobOf(h v1.Hash) string { return "blobs/" + h.Algorithm + "/" + h.Hex }

// names returns the names of an image, and adds them to those that are taken.
func (spec Spec) names(taken map[string]bool) ([]name.Tag, error) {
	if len(spec.Tags) == 0 {
		return nil, fmt.Errorf("image of %s: it has no name", spec.Binary)
	}
	var names []name.Tag
	for _, t := range spec.Tags {
		tag, err := name.NewTag(t)
		if err != nil {
			return nil, fmt.Errorf("image of %s: %w", spec.Binary, err)
		}
		if taken[tag.Name()] {
			return nil, fmt.Errorf("image %s is asked for twice", t)
		}
		taken[tag.Name()] = true
		names = append(names, tag)
	}
	return names, nil
}

func compressed(layer v1.Layer) ([]byte, error) {
	r, err := layer.Compressed()
	if err != nil {
		return nil, err
	}
	defer r.Close()
	return io.ReadAll(r)
}

// Build makes one image.
func Build(spec Spec) (v1.Image, error) {
	arch, err := architecture(spec.Binary)
	if err != nil {
		return nil, fmt.Errorf("image of %s: %w", spec.Binary, err)
	}
	made := v1.Time{Time: epoch}
	if !spec.Made.IsZero() {
		made.Time = spec.Made.UTC()
	}
	entrypoint := "/" + filepath.Base(spec.Binary)
	contents, err := layer(entrypoint, spec)
	if err != nil {
		return nil, fmt.Errorf("image of %s: %w", spec.Binary, err)
	}
	opener := func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(contents)), nil }
	l, err := tarball.LayerFromOpener(opener, tarball.WithCompressedCaching, tarball.WithCompressionLevel(gzip.BestCompression), tarball.WithMediaType(types.OCILayer))
	if err != nil {
		return nil, fmt.Errorf("image of %s: compressing its layer: %w", spec.Binary, err)
	}
	base := mutate.ConfigMediaType(mutate.MediaType(empty.Image, types.OCIManifestSchema1), types.OCIConfigJSON)
	img, err := mutate.Append(base, mutate.Addendum{Layer: l, History: v1.History{
		Created: made, CreatedBy: "headwater.example/internal/image", Comment: filepath.Base(spec.Binary),
	}})
	if err != nil {
		return nil, fmt.Errorf("image of %s: %w", spec.Binary, err)
	}
	config, err := img.ConfigFile()
	if err != nil {
		return nil, fmt.Errorf("image of %s: %w", spec.Binary, err)
	}
	config = config.DeepCopy()
	config.OS, config.Architecture, config.Created = "linux", arch, made
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
