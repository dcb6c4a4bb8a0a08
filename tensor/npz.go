package tensor

import (
	"archive/zip"
	"cmp"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"math"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"unicode/utf8"
)

const (
	// metadataMember is the archive's member that holds its metadata, a JSON object of strings.
	metadataMember = "__metadata__.json"
	maxMetadata    = 16 << 20

	// maxDirectory bounds what is read to find the members of an archive: about 100,000 of them.
	maxDirectory = 16 << 20

	// zipUTF8 is the flag of a member whose name is in UTF-8; without it, readers take the code page of the IBM PC.
	zipUTF8 = 0x800

	// maxDeflate is more than deflate can shrink anything by.
	maxDeflate = 1100
)

// openNPZ opens an archive as numpy's savez and savez_compressed write it. Members that are stored are read in place; of
// those that are deflated only the headers are read now, and the first read of their data inflates them into a
// temporary file without a name. The archive's checksums are compared where a member is inflated.
func openNPZ(path string, r io.ReaderAt, size int64) (*File, error) {
	bounded := &boundedReaderAt{r: r}
	bounded.left.Store(maxDirectory)
	archive, err := zip.NewReader(bounded, size)
	if err != nil && !errors.Is(err, zip.ErrInsecurePath) {
		return nil, broken(path, "", "not a readable zip archive: %v", err)
	}
	bounded.left.Store(math.MaxInt64)
	if err := checkMembers(path, archive.File, size); err != nil {
		return nil, err
	}
	metadata := map[string]string{}
	var tensors []stored
	var closers []io.Closer
	for _, m := range archive.File {
		if m.Name == metadataMember {
			metadata, err = readMetadata(path, m)
		} else {
			var t stored
			var inflated *inflater
			t, inflated, err = openMember(path, m, r)
			tensors = append(tensors, t)
			if inflated != nil {
				closers = append(closers, inflated)
			}
		}
		if err != nil {
			return nil, err
		}
	}
	f := newFile(path, size, metadata, tensors)
	f.closers = closers
	return f, nil
}

// boundedReaderAt fails once more than left bytes have been read.
type boundedReaderAt struct {
	r    io.ReaderAt
	left atomic.Int64
}

var errDirectory = fmt.Errorf("its directory exceeds the limit of %d bytes", maxDirectory)

func (b *boundedReaderAt) ReadAt(p []byte, off int64) (int, error) {
	if b.left.Add(-int64(len(p))) < 0 {
		return 0, errDirectory
	}
	return b.r.ReadAt(p, off)
}

// checkMembers checks what the archive's directory says of each member, and that no two share bytes.
func checkMembers(path string, members []*zip.File, size int64) error {
	type extent struct {
		name       string
		begin, end int64
	}
	extents := make([]extent, 0, len(members))
	seen := make(map[string]struct{}, len(members))
	for _, m := range members {
		name := strings.TrimSuffix(m.Name, npySuffix) // numpy.load knows a member by this name, with and without the ending
		if _, twice := seen[name]; twice {
			return broken(path, name, "appears twice in the archive")
		}
		seen[name] = struct{}{}
		switch {
		case !utf8.ValidString(m.Name):
			return broken(path, "", "member %s has a name that is not UTF-8", quote(m.Name))
		case m.Flags&1 != 0:
			return broken(path, name, "is encrypted")
		case m.Method != zip.Store && m.Method != zip.Deflate:
			return broken(path, name, "is compressed by %s, which is not read: write the archive with numpy.savez or numpy.savez_compressed", compression(m.Method))
		case m.Method == zip.Store && m.CompressedSize64 != m.UncompressedSize64:
			return broken(path, name, "is stored in %d bytes, but the archive says %d", m.CompressedSize64, m.UncompressedSize64)
		case m.UncompressedSize64 > math.MaxInt64 || m.UncompressedSize64/maxDeflate > m.CompressedSize64:
			return broken(path, name, "%d bytes can not be deflated to %d", m.UncompressedSize64, m.CompressedSize64)
		}
		begin, err := m.DataOffset()
		if err != nil {
			return broken(path, name, "no readable member of the archive: %v", err)
		}
		if begin > size || m.CompressedSize64 > uint64(size-begin) {
			return broken(path, name, "truncated: %d bytes from byte %d on, the archive has %d", m.CompressedSize64, begin, size)
		}
		extents = append(extents, extent{name, begin, begin + int64(m.CompressedSize64)})
	}
	slices.SortFunc(extents, func(a, b extent) int { return cmp.Compare(a.begin, b.begin) })
	for i := 1; i < len(extents); i++ {
		if extents[i].begin < extents[i-1].end {
			return broken(path, extents[i].name, "overlaps %s in the archive", quote(extents[i-1].name))
		}
	}
	return nil
}

// compression is the name of a compression method of zip.
func compression(method uint16) string {
	switch method {
	case 9:
		return "deflate64"
	case 12:
		return "BZIP2"
	case 14:
		return "LZMA"
	case 20, 93:
		return "Zstandard"
	case 95:
		return "XZ"
	}
	return fmt.Sprintf("method %d", method)
}

// isArray says whether a member begins as an .npy array does. numpy.load takes those without the ending as well.
func isArray(m *zip.File) bool {
	member, err := m.Open()
	if err != nil {
		return false
	}
	defer member.Close()
	var magic [len(npyMagic)]byte
	_, err = io.ReadFull(member, magic[:])
	return err == nil && string(magic[:]) == npyMagic
}

func readMetadata(path string, m *zip.File) (map[string]string, error) {
	if m.UncompressedSize64 > maxMetadata {
		return nil, broken(path, "", "%s of %d bytes exceeds the limit of %d", metadataMember, m.UncompressedSize64, maxMetadata)
	}
	member, err := m.Open()
	if err != nil {
		return nil, broken(path, "", "%s: %v", metadataMember, err)
	}
	defer member.Close()
	text, err := io.ReadAll(member) // ends with an error at the stated length
	if err != nil {
		return nil, broken(path, "", "%s: %v", metadataMember, err)
	}
	r, err := newReader(text)
	if err != nil {
		return nil, broken(path, "", "%s: %v", metadataMember, err)
	}
	metadata, err := r.strings(metadataKey)
	if err == nil {
		err = r.end()
	}
	if err != nil {
		return nil, broken(path, "", "%s: %v", metadataMember, err)
	}
	return metadata, nil
}

// openMember reads the header of one array. The inflater is nil if the array is stored as it is.
func openMember(path string, m *zip.File, r io.ReaderAt) (stored, *inflater, error) {
	name := strings.TrimSuffix(m.Name, npySuffix)
	if name == m.Name && !isArray(m) {
		return stored{}, nil, broken(path, "", "member %s is neither an .npy array nor %s", quote(m.Name), metadataMember)
	}
	size := int64(m.UncompressedSize64)
	begin, err := m.DataOffset()
	if err != nil {
		return stored{}, nil, broken(path, name, "no readable member of the archive: %v", err)
	}
	if m.Method == zip.Store {
		info, at, err := readNPYHeader(path, name, io.NewSectionReader(r, begin, size), size)
		return stored{info: info, file: path, data: r, at: begin + at}, nil, err
	}
	member, err := m.Open()
	if err != nil {
		return stored{}, nil, broken(path, name, "%v", err)
	}
	defer member.Close()
	info, at, err := readNPYHeader(path, name, member, size)
	if err != nil {
		if bad, ok := errors.AsType[*readError](err); ok {
			err = broken(path, name, "%v", bad.err) // what deflate refuses
		}
		return stored{}, nil, err
	}
	inflated := &inflater{file: path, name: name, member: m}
	return stored{info: info, file: path, data: inflated, at: at}, inflated, nil
}

// inflater is a deflated member that is inflated at its first read, into a temporary file that has no name any more.
type inflater struct {
	file, name string
	member     *zip.File

	mu     sync.Mutex // guards the fields below
	data   *os.File
	err    error
	closed bool
}

func (i *inflater) ReadAt(p []byte, off int64) (int, error) {
	data, err := i.inflate()
	if err != nil {
		return 0, err
	}
	return data.ReadAt(p, off)
}

func (i *inflater) inflate() (*os.File, error) {
	i.mu.Lock()
	defer i.mu.Unlock()
	switch {
	case i.closed:
		return nil, os.ErrClosed
	case i.data == nil && i.err == nil:
		i.data, i.err = inflateMember(i.file, i.name, i.member)
	}
	return i.data, i.err
}

func inflateMember(file, name string, m *zip.File) (_ *os.File, err error) {
	member, err := m.Open()
	if err != nil {
		return nil, broken(file, name, "%v", err)
	}
	defer member.Close()
	f, err := os.CreateTemp("", "headwater-*.npy")
	if err != nil {
		return nil, fmt.Errorf("make room to inflate: %w", err)
	}
	defer func() {
		if err != nil {
			f.Close()
		}
	}()
	if err := os.Remove(f.Name()); err != nil {
		return nil, fmt.Errorf("make room to inflate: %w", err)
	}
	w := &spill{f: f}
	n, err := io.Copy(w, member)
	switch {
	case w.err != nil:
		return nil, fmt.Errorf("inflate to a temporary file: %w", w.err)
	case err != nil:
		return nil, broken(file, name, "%v", err)
	case n != int64(m.UncompressedSize64):
		return nil, broken(file, name, "inflates to %d bytes, but the archive says %d", n, m.UncompressedSize64)
	}
	return f, nil
}

// spill tells a failure to write apart from one to inflate.
type spill struct {
	f   *os.File
	err error
}

func (s *spill) Write(p []byte) (int, error) {
	n, err := s.f.Write(p)
	s.err = err
	return n, err
}

func (i *inflater) Close() error {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.closed = true
	if i.data == nil {
		return nil
	}
	err := i.data.Close()
	i.data = nil
	return err
}

// WriteNPZ writes tensors as an archive of stored .npy arrays, each under its name, in the given order.
func WriteNPZ(w io.Writer, tensors []Data) error { return writeNPZMetadata(w, tensors, nil) }

// writeNPZMetadata writes tensors as WriteNPZ does, and metadata that is not empty as the member __metadata__.json, which
// numpy passes over.
func writeNPZMetadata(w io.Writer, tensors []Data, metadata map[string]string) error {
	archive := zip.NewWriter(w)
	seen := make(map[string]bool, len(tensors))
	for _, t := range tensors {
		if err := t.check(); err != nil {
			return err
		}
		if seen[t.Name] {
			return fmt.Errorf("write tensor %s: appears twice", quote(t.Name))
		}
		seen[t.Name] = true
		if err := writeMember(archive, t.Name+npySuffix, npyHeader(t.Info), t.Bytes); err != nil {
			return fmt.Errorf("write tensor %s: %w", quote(t.Name), err)
		}
	}
	if len(metadata) > 0 {
		text, err := appendStrings(nil, metadata)
		if err == nil {
			err = writeMember(archive, metadataMember, text)
		}
		if err != nil {
			return fmt.Errorf("write npz: %w", err)
		}
	}
	if err := archive.Close(); err != nil {
		return fmt.Errorf("write npz: %w", err)
	}
	return nil
}

// writeMember stores pieces as one member, with its sums before its data, so that readers need no trailing descriptor.
func writeMember(archive *zip.Writer, name string, pieces ...[]byte) error {
	header := &zip.FileHeader{Name: name, Method: zip.Store}
	for _, p := range pieces {
		header.CRC32 = crc32.Update(header.CRC32, crc32.IEEETable, p)
		header.UncompressedSize64 += uint64(len(p))
	}
	header.CompressedSize64 = header.UncompressedSize64
	switch {
	case len(name) > math.MaxUint16:
		return fmt.Errorf("name of %d bytes exceeds the limit of %d", len(name), math.MaxUint16)
	case !utf8.ValidString(name):
		return errors.New("name is not valid UTF-8")
	case strings.ContainsFunc(name, func(r rune) bool { return r >= utf8.RuneSelf }):
		header.Flags = zipUTF8
	}
	member, err := archive.CreateRaw(header)
	for i := 0; err == nil && i < len(pieces); i++ {
		_, err = member.Write(pieces[i])
	}
	return err
}
