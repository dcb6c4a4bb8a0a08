package tensor

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"strconv"
	"strings"
)

// maxNPYHeader bounds the header of an .npy array, in bytes. A plain array needs about a hundred; only structured types,
// which are refused, need more than 64 KiB.
const maxNPYHeader = 1 << 16

const npyMagic = "\x93NUMPY"

func openNPY(path string, r io.ReaderAt, size int64) (*File, error) {
	name := withoutSuffix(filepath.Base(path), npySuffix)
	info, at, err := readNPYHeader(path, name, io.NewSectionReader(r, 0, size), size)
	if err != nil {
		return nil, err
	}
	return newFile(path, size, map[string]string{}, []stored{{info: info, file: path, data: r, at: at}}), nil
}

// readNPYHeader reads the header of an array of size bytes and returns what it describes and where the data begins.
func readNPYHeader(file, name string, r io.Reader, size int64) (Info, int64, error) {
	bad := func(format string, args ...any) (Info, int64, error) {
		return Info{}, 0, broken(file, name, format, args...)
	}
	read := func(p []byte) error {
		_, err := io.ReadFull(r, p)
		switch {
		case err == nil:
			return nil
		case errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF):
			return broken(file, name, "truncated in the header of the array")
		}
		return &readError{file, err}
	}
	// magic, major and minor version, length in 2 bytes (version 1) or 4 (2 and 3)
	prefix := make([]byte, len(npyMagic)+4, len(npyMagic)+6)
	if err := read(prefix); err != nil {
		return Info{}, 0, err
	}
	major, minor := prefix[len(npyMagic)], prefix[len(npyMagic)+1]
	if string(prefix[:len(npyMagic)]) != npyMagic {
		return bad("not an npy array")
	}
	if major < 1 || major > 3 || minor != 0 {
		return bad("npy version %d.%d is not 1.0, 2.0 or 3.0", major, minor)
	}
	length := int64(binary.LittleEndian.Uint16(prefix[len(npyMagic)+2:]))
	if major > 1 {
		prefix = prefix[:cap(prefix)]
		if err := read(prefix[len(npyMagic)+4:]); err != nil {
			return Info{}, 0, err
		}
		length = int64(binary.LittleEndian.Uint32(prefix[len(npyMagic)+2:]))
	}
	at := int64(len(prefix)) + length
	if length > maxNPYHeader {
		return bad("header of %d bytes exceeds the limit of %d", length, maxNPYHeader)
	}
	if at > size {
		return bad("truncated: header ends at byte %d, the array has %d bytes", at, size)
	}
	header := make([]byte, length)
	if err := read(header); err != nil {
		return Info{}, 0, err
	}
	info, err := parseNPYHeader(string(header))
	if err != nil {
		return bad("header: %v", err)
	}
	info.Name = name
	if rule := info.check(); rule != "" {
		return bad("%s", rule)
	}
	if n := info.Bytes(); n != size-at {
		return bad("%d bytes of data, shape %v of %s needs %d", size-at, info.Shape, info.DType, n)
	}
	return info, at, nil
}

// parseNPYHeader reads the Python literal of a dictionary that numpy writes:
// {'descr': '<f4', 'fortran_order': False, 'shape': (2, 3), }
func parseNPYHeader(text string) (Info, error) {
	p := literal{rest: text}
	var info Info
	seen := map[string]bool{}
	p.take("{")
	for p.err == nil && !p.next("}") {
		key := p.str()
		if seen[key] {
			p.fail("has the key %s twice", quote(key))
		}
		seen[key] = true
		p.take(":")
		switch key {
		case "descr":
			if p.next("[") {
				p.fail("structured types are not read: store each field as an array of its own")
				break
			}
			descr := p.str()
			if p.err == nil {
				info.DType, p.err = parseNPYType(descr)
			}
		case "fortran_order":
			if p.next("T") {
				p.take("True")
				p.fail("the array is in Fortran order; store it in C order (numpy.ascontiguousarray)")
			} else {
				p.take("False")
			}
		case "shape":
			info.Shape = p.tuple()
		default:
			p.fail("unknown key %s", quote(key))
		}
		if !p.next("}") {
			p.take(",")
		}
	}
	p.take("}")
	p.space()
	if p.err == nil && p.rest != "" {
		p.fail("goes on after its end")
	}
	for _, key := range []string{"descr", "fortran_order", "shape"} {
		if p.err == nil && !seen[key] {
			p.fail("has no %s", key)
		}
	}
	return info, p.err
}

// literal reads a Python literal from the front of rest. After the first error it does nothing.
type literal struct {
	rest string
	err  error
}

func (p *literal) fail(format string, args ...any) {
	if p.err == nil {
		p.err = fmt.Errorf(format, args...)
	}
}

func (p *literal) space() { p.rest = strings.TrimLeft(p.rest, " \t\r\n") }

// next reports whether token comes next, without taking it.
func (p *literal) next(token string) bool {
	p.space()
	return strings.HasPrefix(p.rest, token)
}

func (p *literal) take(token string) {
	if p.err != nil {
		return
	}
	if !p.next(token) {
		p.fail("%q expected before %s", token, quote(p.rest))
		return
	}
	p.rest = p.rest[len(token):]
}

// str takes a string in single or double quotes, after a u if Python 2 wrote it. None that numpy writes here has an escape.
func (p *literal) str() string {
	p.space()
	if p.err != nil {
		return ""
	}
	p.rest = strings.TrimPrefix(p.rest, "u")
	if p.rest == "" || p.rest[0] != '\'' && p.rest[0] != '"' {
		p.fail("string expected before %s", quote(p.rest))
		return ""
	}
	s, rest, ok := strings.Cut(p.rest[1:], p.rest[:1])
	if !ok || strings.Contains(s, `\`) {
		p.fail("string without end before %s", quote(p.rest))
		return ""
	}
	p.rest = rest
	return s
}

// tuple takes (), (2,), (2, 3), and what Python 2 wrote: (2L, 3L).
func (p *literal) tuple() []int {
	shape := []int{}
	p.take("(")
	for p.err == nil && !p.next(")") {
		digits := len(p.rest) - len(strings.TrimLeft(p.rest, "0123456789"))
		d, err := strconv.ParseUint(p.rest[:digits], 10, strconv.IntSize-1)
		if err != nil {
			p.fail("shape holds no integer from 0 to 2^%d-1 before %s", strconv.IntSize-1, quote(p.rest))
			break
		}
		if len(shape) == maxDims {
			p.fail("shape has more than %d dimensions", maxDims)
			break
		}
		shape = append(shape, int(d))
		p.rest = strings.TrimPrefix(p.rest[digits:], "L")
		if len(shape) == 1 || !p.next(")") {
			p.take(",")
		}
	}
	p.take(")")
	return shape
}

// npyAlign is what the data of a written array is aligned to, in bytes from the array's beginning, as numpy does.
const npyAlign = 64

// npyHeader returns the bytes before an array's data.
func npyHeader(info Info) []byte {
	var b strings.Builder
	fmt.Fprintf(&b, "{'descr': '%s', 'fortran_order': False, 'shape': (", npyType(info.DType))
	for i, d := range info.Shape {
		if i > 0 {
			b.WriteByte(' ')
		}
		fmt.Fprintf(&b, "%d", d)
		if i == 0 || i < len(info.Shape)-1 {
			b.WriteByte(',')
		}
	}
	b.WriteString("), }")
	// At most 64 dimensions of 20 digits: the length fits version 1.
	head := len(npyMagic) + 4 + b.Len() + 1
	for ; head%npyAlign != 0; head++ {
		b.WriteByte(' ')
	}
	b.WriteByte('\n')
	p := append([]byte(npyMagic), 1, 0)
	p = binary.LittleEndian.AppendUint16(p, uint16(b.Len()))
	return append(p, b.String()...)
}

// WriteNPY writes one tensor as an .npy array, which has no name of its own.
func WriteNPY(w io.Writer, t Data) error {
	if err := t.check(); err != nil {
		return err
	}
	for _, p := range [][]byte{npyHeader(t.Info), t.Bytes} {
		if _, err := w.Write(p); err != nil {
			return fmt.Errorf("write tensor %s: %w", quote(t.Name), err)
		}
	}
	return nil
}
