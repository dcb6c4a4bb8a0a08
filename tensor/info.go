package tensor

import (
	"fmt"
	"math"
	"math/bits"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"
)

// maxDims bounds the dimensions of a tensor; numpy has the same bound.
const maxDims = 64

// Info describes a tensor without its data.
type Info struct {
	Name  string
	DType DType
	// Shape holds the dimensions, the slowest first; empty for a scalar. Treat it as read-only.
	Shape []int
}

// Elements returns the product of the dimensions: 1 for a scalar, −1 where a dimension is negative or the product
// exceeds an int64. Neither occurs in the Info of a File or a Layout.
func (i Info) Elements() int64 {
	return product(i.Shape, 1)
}

// Bytes returns the size of the data, −1 as Elements does.
func (i Info) Bytes() int64 {
	return product(i.Shape, i.DType.Size())
}

// check says which rule an Info breaks that is to be stored: "" for none.
func (i Info) check() string {
	switch {
	case i.Name == "":
		return "tensor without a name"
	case !i.DType.valid():
		return "unknown dtype"
	case len(i.Shape) > maxDims:
		return fmt.Sprintf("%d dimensions, at most %d are allowed", len(i.Shape), maxDims)
	case i.Bytes() < 0:
		return fmt.Sprintf("shape %v of %s is negative or exceeds 2^63 bytes", i.Shape, i.DType)
	}
	return ""
}

// product multiplies unit and the dimensions. A zero among them does not excuse an overflow of the others, so that the
// answer does not depend on their order.
func product(shape []int, unit int) int64 {
	total, empty := uint64(unit), unit == 0
	for _, d := range shape {
		if d < 0 {
			return -1
		}
		if d == 0 {
			empty = true
			continue
		}
		hi, lo := bits.Mul64(total, uint64(d))
		if hi != 0 || lo > math.MaxInt64 {
			return -1
		}
		total = lo
	}
	if empty {
		return 0
	}
	return int64(total)
}

// FormatError says what in a file breaks which rule.
type FormatError struct {
	// File is the path or name of the file, "" where the caller knows it.
	File string
	// Tensor is the name of the tensor, "" where the file as a whole is meant.
	Tensor string
	// Index counts elements of the tensor in row-major order; −1 where no element is meant.
	Index int64
	// Rule is what was broken, with the values that break it.
	Rule string
}

// Error returns one line: FILE: tensor "T"[INDEX]: RULE.
func (e *FormatError) Error() string {
	var b strings.Builder
	if e.File != "" {
		b.WriteString(printable(e.File))
		b.WriteString(": ")
	}
	if e.Tensor != "" {
		b.WriteString("tensor ")
		b.WriteString(quote(e.Tensor))
		if e.Index >= 0 {
			fmt.Fprintf(&b, "[%d]", e.Index)
		}
		b.WriteString(": ")
	}
	b.WriteString(printable(e.Rule))
	return b.String()
}

// broken makes the error of a file, or of a tensor in it, as a whole.
func broken(file, tensor, format string, args ...any) *FormatError {
	return &FormatError{File: file, Tensor: tensor, Index: -1, Rule: fmt.Sprintf(format, args...)}
}

// maxQuoted bounds what an error repeats of a name that a file chose.
const maxQuoted = 200

// quote makes a name that a file chose fit into one line.
func quote(name string) string {
	if len(name) > maxQuoted {
		cut := maxQuoted
		for cut > 0 && !utf8.RuneStart(name[cut]) {
			cut--
		}
		return strconv.Quote(name[:cut]) + "…"
	}
	return strconv.Quote(name)
}

// printable returns s, quoted where it would not print as one line.
func printable(s string) string {
	if strings.ContainsFunc(s, func(r rune) bool { return !unicode.IsPrint(r) }) {
		return strconv.Quote(s)
	}
	return s
}
