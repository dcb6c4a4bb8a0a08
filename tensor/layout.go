package tensor

import (
	"cmp"
	"encoding/binary"
	"fmt"
	"io"
	"maps"
	"slices"
	"strconv"
)

// dataAlign is what the data section of a written safetensors file is aligned to, in bytes: a cache line.
const dataAlign = 64

// Layout fixes where the tensors of a safetensors file lie, before any of it is written. It is immutable.
type Layout struct {
	infos    []Info
	offsets  map[string]int64
	entries  []byte // the header's JSON without metadata and closing brace
	header   int64
	fileSize int64
}

// NewLayout lays out tensors, the largest elements first and otherwise in the given order, so that each lies on a
// multiple of its element's size, without holes. metadataReserve is the room, in bytes of JSON, that the header keeps
// for metadata (see MetadataBytes).
func NewLayout(infos []Info, metadataReserve int) (*Layout, error) {
	if metadataReserve < 0 {
		return nil, fmt.Errorf("lay out tensors: reserve of %d bytes for metadata", metadataReserve)
	}
	l := &Layout{infos: slices.Clone(infos), offsets: make(map[string]int64, len(infos))}
	slices.SortStableFunc(l.infos, func(a, b Info) int { return cmp.Compare(b.DType.Size(), a.DType.Size()) })
	l.entries = append(l.entries, '{')
	var at int64
	for i := range l.infos {
		info := &l.infos[i]
		info.Shape = slices.Clone(info.Shape)
		rule := info.check()
		_, twice := l.offsets[info.Name]
		switch {
		case rule != "":
		case twice:
			rule = "appears twice"
		case info.Name == metadataKey:
			rule = "name is reserved"
		case at+info.Bytes() < at:
			rule = "ends beyond 2^63 bytes"
		}
		if rule != "" {
			return nil, fmt.Errorf("lay out tensor %s: %s", quote(info.Name), rule)
		}
		l.offsets[info.Name] = at
		var err error
		if l.entries, err = appendEntry(l.entries, *info, at); err != nil {
			return nil, fmt.Errorf("lay out tensor %s: %w", quote(info.Name), err)
		}
		at += info.Bytes()
	}
	need := int64(lengthBytes) + int64(len(l.entries)) + int64(metadataReserve) + int64(len("}"))
	l.header = (need + dataAlign - 1) / dataAlign * dataAlign
	if l.header-lengthBytes > MaxHeaderBytes {
		return nil, fmt.Errorf("lay out %d tensors: header of %d bytes exceeds the limit of %d", len(infos), l.header-lengthBytes, MaxHeaderBytes)
	}
	if at > 1<<63-1-l.header {
		return nil, fmt.Errorf("lay out %d tensors: the file exceeds 2^63 bytes", len(infos))
	}
	l.fileSize = l.header + at
	for name := range l.offsets {
		l.offsets[name] += l.header
	}
	return l, nil
}

func appendEntry(b []byte, info Info, at int64) ([]byte, error) {
	if len(b) > 1 {
		b = append(b, ',')
	}
	b, err := appendJSON(b, info.Name)
	if err != nil {
		return nil, err
	}
	b = append(b, `:{"dtype":"`...)
	b = append(b, info.DType.String()...)
	b = append(b, `","shape":[`...)
	for i, d := range info.Shape {
		if i > 0 {
			b = append(b, ',')
		}
		b = strconv.AppendInt(b, int64(d), 10)
	}
	b = append(b, `],"data_offsets":[`...)
	b = strconv.AppendInt(b, at, 10)
	b = append(b, ',')
	b = strconv.AppendInt(b, at+info.Bytes(), 10)
	return append(b, "]}"...), nil
}

// MetadataBytes returns the reserve that NewLayout needs for exactly this metadata.
func MetadataBytes(metadata map[string]string) (int, error) {
	b, err := appendMetadata(nil, metadata)
	return len(b), err
}

// appendMetadata appends the metadata's entry with the comma that may stand before it.
func appendMetadata(b []byte, metadata map[string]string) ([]byte, error) {
	if len(metadata) == 0 {
		return b, nil
	}
	b = append(b, `,"`+metadataKey+`":`...)
	return appendStrings(b, metadata)
}

// appendStrings appends an object of strings, its keys sorted.
func appendStrings(b []byte, m map[string]string) ([]byte, error) {
	b = append(b, '{')
	for i, key := range slices.Sorted(maps.Keys(m)) {
		if i > 0 {
			b = append(b, ',')
		}
		var err error
		if b, err = appendJSON(b, key); err != nil {
			return nil, fmt.Errorf("metadata key %w", err)
		}
		b = append(b, ':')
		if b, err = appendJSON(b, m[key]); err != nil {
			return nil, fmt.Errorf("metadata of key %s: %w", quote(key), err)
		}
	}
	return append(b, '}'), nil
}

// headerSize returns the bytes before the data: the 8 bytes of length, the JSON and its padding.
func (l *Layout) headerSize() int64 { return l.header }

// size returns the bytes of the whole file.
func (l *Layout) Size() int64 { return l.fileSize }

// Infos returns the tensors in the order in which they lie in the file. Treat it as read-only.
func (l *Layout) Infos() []Info { return l.infos }

// Offset returns the position in the file, in bytes from its beginning, of the first byte of the tensor called name,
// and whether there is one.
func (l *Layout) Offset(name string) (int64, bool) {
	at, ok := l.offsets[name]
	return at, ok
}

// Header returns the first HeaderSize bytes of the file, padded with spaces. Metadata that needs more than the reserve
// is an error.
func (l *Layout) Header(metadata map[string]string) ([]byte, error) {
	b := make([]byte, lengthBytes, l.header)
	b = append(b, l.entries...)
	b, err := appendMetadata(b, metadata)
	if err != nil {
		return nil, fmt.Errorf("write safetensors header: %w", err)
	}
	if len(l.infos) == 0 && len(metadata) > 0 {
		b = slices.Delete(b, lengthBytes+1, lengthBytes+2) // the comma, with no tensor before it
	}
	b = append(b, '}')
	if int64(len(b)) > l.header {
		return nil, fmt.Errorf("write safetensors header: metadata needs %d bytes more than were reserved", int64(len(b))-l.header)
	}
	for int64(len(b)) < l.header {
		b = append(b, ' ')
	}
	binary.LittleEndian.PutUint64(b, uint64(l.header-lengthBytes))
	return b, nil
}

// Data is a tensor with its bytes, little-endian and row-major.
type Data struct {
	Info
	Bytes []byte
}

// check compares the bytes with what the shape needs.
func (d Data) check() error {
	if rule := d.Info.check(); rule != "" {
		return fmt.Errorf("write tensor %s: %s", quote(d.Name), rule)
	}
	if n := d.Info.Bytes(); n != int64(len(d.Bytes)) {
		return fmt.Errorf("write tensor %s: %d bytes, shape %v of %s needs %d", quote(d.Name), len(d.Bytes), d.Shape, d.DType, n)
	}
	return nil
}

// WriteSafetensors writes a whole safetensors file, laid out as by NewLayout.
func WriteSafetensors(w io.Writer, tensors []Data, metadata map[string]string) error {
	infos := make([]Info, len(tensors))
	data := make(map[string][]byte, len(tensors))
	for i, t := range tensors {
		if err := t.check(); err != nil {
			return err
		}
		infos[i], data[t.Name] = t.Info, t.Bytes
	}
	reserve, err := MetadataBytes(metadata)
	if err != nil {
		return fmt.Errorf("write safetensors: %w", err)
	}
	l, err := NewLayout(infos, reserve)
	if err != nil {
		return err
	}
	header, err := l.Header(metadata)
	if err != nil {
		return err
	}
	if _, err := w.Write(header); err != nil {
		return fmt.Errorf("write safetensors header: %w", err)
	}
	for _, info := range l.infos {
		if _, err := w.Write(data[info.Name]); err != nil {
			return fmt.Errorf("write tensor %s: %w", quote(info.Name), err)
		}
	}
	return nil
}
