package tensor

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
)

// Format is how a file holds its tensors.
type Format uint8

// The formats of files.
const (
	Safetensors      Format = iota + 1
	SafetensorsIndex        // of a sharded safetensors file
	NPZ
	NPY
)

// File is a set of tensors whose headers have been checked and whose data is read on demand. Its methods may be called
// at the same time, except Close.
type File struct {
	format   Format
	path     string
	size     int64
	metadata map[string]string
	names    []string // sorted
	tensors  map[string]stored
	closers  []io.Closer
}

// stored is a tensor and where its data lies. data is nil if only the header is there.
type stored struct {
	info Info
	file string // the file that holds it, for errors
	data io.ReaderAt
	at   int64 // of its first byte in data
}

// Open opens a safetensors file, the index of a sharded one (with the shards beside it), an .npz archive, or an .npy array,
// the one tensor of which has the file's name without the ending. What it is its first bytes say, whatever its name is;
// where they say nothing, its ending does, in small letters or capitals. A header that breaks the format is a *FormatError.
// Close releases the file.
func Open(path string) (*File, error) {
	r, size, err := openRegular(path)
	if err != nil {
		return nil, err
	}
	f, err := open(path, r, size)
	if err != nil {
		return nil, errors.Join(err, r.Close())
	}
	return f, nil
}

func open(path string, r *os.File, size int64) (*File, error) {
	format, err := formatOf(path, r, size)
	if err != nil {
		return nil, err
	}
	parse := openIndexFile
	switch format {
	case Safetensors:
		parse = OpenReaderAt
	case NPZ:
		parse = openNPZ
	case NPY:
		parse = openNPY
	}
	f, err := parse(path, r, size)
	if err != nil {
		return nil, err
	}
	f.format = format
	f.closers = append(f.closers, r)
	return f, nil
}

// formatOf tells a file's format by its first bytes, and by its ending where these tell nothing.
func formatOf(path string, r io.ReaderAt, size int64) (Format, error) {
	head := make([]byte, min(size, lengthBytes+1))
	if err := readFull(path, r, head, 0); err != nil {
		return 0, err
	}
	begins := func(magic string) bool { return strings.HasPrefix(string(head), magic) }
	switch {
	case len(head) > lengthBytes && head[lengthBytes] == '{' && binary.LittleEndian.Uint64(head) <= uint64(size-lengthBytes):
		return Safetensors, nil
	case begins("PK\x03\x04"), begins("PK\x05\x06"): // with members, and without any
		return NPZ, nil
	case begins(npyMagic):
		return NPY, nil
	case hasSuffix(path, indexSuffix):
		return SafetensorsIndex, nil
	case hasSuffix(path, shardSuffix):
		return Safetensors, nil
	case hasSuffix(path, npzSuffix):
		return NPZ, nil
	case hasSuffix(path, npySuffix):
		return NPY, nil
	}
	return 0, broken(path, "", "unknown kind of file: it begins neither as a safetensors file nor as an npz archive or an npy array does, and its name does not end in %s", indexSuffix)
}

// hasSuffix is strings.HasSuffix for endings in small letters or capitals.
func hasSuffix(path, suffix string) bool {
	return len(path) >= len(suffix) && strings.EqualFold(path[len(path)-len(suffix):], suffix)
}

// withoutSuffix is strings.TrimSuffix for endings in small letters or capitals.
func withoutSuffix(path, suffix string) string {
	if hasSuffix(path, suffix) {
		return path[:len(path)-len(suffix)]
	}
	return path
}

const (
	shardSuffix = ".safetensors"
	indexSuffix = ".safetensors.index.json"
	npzSuffix   = ".npz"
	npySuffix   = ".npy"
)

// openRegular opens a file that has a size, so no directory, pipe or device.
func openRegular(path string) (*os.File, int64, error) {
	// A pipe would block the opening until someone writes to it.
	if stat, err := os.Stat(path); err != nil {
		return nil, 0, err
	} else if !stat.Mode().IsRegular() {
		return nil, 0, broken(path, "", "not a regular file")
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, 0, err
	}
	stat, err := f.Stat()
	if err != nil {
		f.Close()
		return nil, 0, err
	}
	return f, stat.Size(), nil
}

// newFile indexes tensors by name. Their names differ.
func newFile(path string, size int64, metadata map[string]string, tensors []stored) *File {
	f := &File{
		path: path, size: size, metadata: metadata,
		names: make([]string, 0, len(tensors)), tensors: make(map[string]stored, len(tensors)),
	}
	for _, t := range tensors {
		f.names = append(f.names, t.info.Name)
		f.tensors[t.info.Name] = t
	}
	slices.Sort(f.names)
	return f
}

// Format returns how the file holds its tensors, 0 if Open did not open it.
func (f *File) Format() Format { return f.format }

// Paths returns the paths of all files that hold it: an index and its shards, or Path alone.
func (f *File) Paths() []string {
	paths := []string{f.path}
	for _, name := range f.names {
		paths = append(paths, f.tensors[name].file)
	}
	slices.Sort(paths)
	return slices.Compact(paths)
}

// Path returns the path or name under which the file was opened.
func (f *File) Path() string { return f.path }

// Size returns the bytes of the file, headers included; of an index, those of its shards and its own.
func (f *File) Size() int64 { return f.size }

// Metadata returns the file's own strings, empty if it has none. Treat it as read-only.
func (f *File) Metadata() map[string]string { return f.metadata }

// Names returns the names of the tensors, sorted. Treat it as read-only.
func (f *File) Names() []string { return f.names }

// Lookup returns the tensor called name, and whether there is one.
func (f *File) Lookup(name string) (Info, bool) {
	t, ok := f.tensors[name]
	return t.info, ok
}

// ReadAt fills p with the data of the tensor called name, little-endian and row-major, from byte off of the tensor on.
// It reads all of p or returns an error.
func (f *File) ReadAt(p []byte, name string, off int64) error {
	t, ok := f.tensors[name]
	if !ok {
		return broken(f.path, name, "missing")
	}
	size := t.info.Bytes()
	if off < 0 || off > size || int64(len(p)) > size-off {
		return broken(t.file, name, "%d bytes from byte %d on lie outside its %d bytes", len(p), off, size)
	}
	if t.data == nil {
		return broken(t.file, name, "only the header of the file is here")
	}
	if len(p) == 0 {
		return nil
	}
	n, err := t.data.ReadAt(p, t.at+off)
	if n == len(p) {
		return nil
	}
	if err == nil || errors.Is(err, io.EOF) {
		return broken(t.file, name, "truncated since it was opened: data ends at byte %d of %d", off+int64(n), size)
	}
	if rule, ok := errors.AsType[*FormatError](err); ok {
		return rule
	}
	return fmt.Errorf("%s: read tensor %s: %w", printable(t.file), quote(name), err)
}

// Close releases what Open opened. Reads after it fail.
func (f *File) Close() error {
	var errs []error
	for _, c := range f.closers {
		errs = append(errs, c.Close())
	}
	f.closers = nil
	return errors.Join(errs...)
}

// readError is a failure of the medium, not of the format.
type readError struct {
	file string
	err  error
}

func (e *readError) Error() string { return fmt.Sprintf("%s: read: %v", printable(e.file), e.err) }
func (e *readError) Unwrap() error { return e.err }
