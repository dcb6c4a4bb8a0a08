package tensor

import (
	"bytes"
	"cmp"
	"encoding/binary"
	"encoding/json"
	"errors"
	"io"
	"slices"
)

// MaxHeaderBytes is the longest header of a safetensors file that is read: its JSON, without the 8 bytes of its length.
const MaxHeaderBytes = 100 << 20

const (
	lengthBytes = 8
	metadataKey = "__metadata__"
)

// OpenReaderAt opens a safetensors file of size bytes in r; name stands for it in errors. r remains the caller's, and
// must allow reads at the same time if the File's readers do so.
func OpenReaderAt(name string, r io.ReaderAt, size int64) (*File, error) {
	header, err := headerBytes(name, r, size, MaxHeaderBytes)
	if err != nil {
		return nil, err
	}
	f, err := ParseHeader(name, header, size)
	if err != nil {
		return nil, err
	}
	for key, t := range f.tensors {
		t.data = r
		f.tensors[key] = t
	}
	return f, nil
}

// HeaderBytes reads the header of a safetensors file of size bytes: 8 bytes of length and the JSON. The length is
// compared with limit and size before anything is allocated. Errors name the file if r has a method Name.
func HeaderBytes(r io.ReaderAt, size, limit int64) ([]byte, error) {
	name := ""
	if n, ok := r.(interface{ Name() string }); ok {
		name = n.Name()
	}
	return headerBytes(name, r, size, limit)
}

func headerBytes(name string, r io.ReaderAt, size, limit int64) ([]byte, error) {
	if size < lengthBytes {
		return nil, broken(name, "", "truncated: %d bytes, not even the 8 bytes of a header's length", size)
	}
	var length [lengthBytes]byte
	if err := readFull(name, r, length[:], 0); err != nil {
		return nil, err
	}
	n := binary.LittleEndian.Uint64(length[:])
	if n > uint64(max(limit, 0)) {
		return nil, broken(name, "", "header of %d bytes exceeds the limit of %d", n, limit)
	}
	if n > uint64(size-lengthBytes) {
		return nil, broken(name, "", "truncated: header of %d bytes in a file of %d", n, size)
	}
	header := make([]byte, lengthBytes+n)
	copy(header, length[:])
	if err := readFull(name, r, header[lengthBytes:], lengthBytes); err != nil {
		return nil, err
	}
	return header, nil
}

// readFull fills p from byte off of r.
func readFull(name string, r io.ReaderAt, p []byte, off int64) error {
	n, err := r.ReadAt(p, off)
	switch {
	case n == len(p):
		return nil
	case err == nil || errors.Is(err, io.EOF):
		return broken(name, "", "truncated: ends at byte %d, in its header", off+int64(n))
	}
	return &readError{name, err}
}

// ParseHeader checks the header of a safetensors file of fileSize bytes, given as HeaderBytes returns it, and returns
// a File that knows its tensors but not their data: its ReadAt fails. name stands for the file in errors.
func ParseHeader(name string, header []byte, fileSize int64) (*File, error) {
	if len(header) < lengthBytes {
		return nil, broken(name, "", "truncated: %d bytes, not even the 8 bytes of a header's length", len(header))
	}
	if n := binary.LittleEndian.Uint64(header); n != uint64(len(header)-lengthBytes) {
		return nil, broken(name, "", "header says %d bytes and has %d", n, len(header)-lengthBytes)
	}
	dataSize := fileSize - int64(len(header))
	if dataSize < 0 {
		return nil, broken(name, "", "truncated: header of %d bytes in a file of %d", len(header)-lengthBytes, fileSize)
	}
	text := bytes.TrimRight(header[lengthBytes:], " ")
	if len(text) == 0 || text[0] != '{' {
		return nil, broken(name, "", "header does not begin with {")
	}
	r, err := newReader(text)
	if err != nil {
		return nil, broken(name, "", "header: %v", err)
	}
	var spans []span
	metadata := map[string]string{}
	err = r.object("header", func(key string) error {
		if key == metadataKey {
			metadata, err = r.strings(metadataKey)
			return err
		}
		s, err := parseEntry(name, key, r)
		spans = append(spans, s)
		return err
	})
	if err == nil {
		err = r.end()
	}
	if _, ok := errors.AsType[*FormatError](err); ok {
		return nil, err
	} else if err != nil {
		return nil, broken(name, "", "header: %v", err)
	}
	if err := checkSpans(name, spans, dataSize); err != nil {
		return nil, err
	}
	tensors := make([]stored, len(spans))
	for i, s := range spans {
		tensors[i] = stored{info: s.info, file: name, at: int64(len(header)) + s.begin}
	}
	return newFile(name, fileSize, metadata, tensors), nil
}

// span is a tensor and the bytes of the data section, [begin, end), that are its own.
type span struct {
	info       Info
	begin, end int64
}

func parseEntry(file, name string, r reader) (span, error) {
	s := span{info: Info{Name: name}}
	var offsets []int
	var dtype string
	err := r.object("entry", func(key string) (err error) {
		switch key {
		case "dtype":
			dtype, err = r.str(key)
		case "shape":
			s.info.Shape, err = r.ints(key, maxDims)
		case "data_offsets":
			offsets, err = r.ints(key, 2)
		default: // the format's own library passes over what it does not know
			var other json.RawMessage
			err = r.d.Decode(&other)
		}
		return err
	})
	if _, ok := errors.AsType[*FormatError](err); ok {
		return s, err
	} else if err != nil {
		return s, broken(file, name, "%v", err)
	}
	switch {
	case dtype == "":
		return s, broken(file, name, "no dtype")
	case s.info.Shape == nil:
		return s, broken(file, name, "no shape")
	case len(offsets) != 2:
		return s, broken(file, name, "data_offsets has %d numbers, not 2", len(offsets))
	}
	if s.info.DType, err = ParseDType(dtype); err != nil {
		return s, broken(file, name, "%v", err)
	}
	if rule := s.info.check(); rule != "" {
		return s, broken(file, name, "%s", rule)
	}
	s.begin, s.end = int64(offsets[0]), int64(offsets[1])
	if s.begin > s.end {
		return s, broken(file, name, "data_offsets [%d, %d] end before they begin", s.begin, s.end)
	}
	if n := s.info.Bytes(); s.end-s.begin != n {
		return s, broken(file, name, "data_offsets [%d, %d] hold %d bytes, shape %v of %s needs %d", s.begin, s.end, s.end-s.begin, s.info.Shape, s.info.DType, n)
	}
	return s, nil
}

// checkSpans checks that the tensors tile the data section: no overlap, no hole, no rest.
func checkSpans(file string, spans []span, dataSize int64) error {
	slices.SortFunc(spans, func(a, b span) int {
		return cmp.Or(cmp.Compare(a.begin, b.begin), cmp.Compare(a.end, b.end), cmp.Compare(a.info.Name, b.info.Name))
	})
	var at int64
	before := ""
	for _, s := range spans {
		switch {
		case s.end > dataSize:
			return broken(file, s.info.Name, "truncated: data ends at byte %d, the file has %d bytes of data", s.end, dataSize)
		case s.begin < at:
			return broken(file, s.info.Name, "data from byte %d on overlaps tensor %s, which ends at byte %d", s.begin, quote(before), at)
		case s.begin > at:
			return broken(file, s.info.Name, "data begins at byte %d and leaves a hole from byte %d on", s.begin, at)
		}
		at, before = s.end, s.info.Name
	}
	if at != dataSize {
		return broken(file, "", "%d bytes of data follow the last tensor", dataSize-at)
	}
	return nil
}
