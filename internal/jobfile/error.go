package jobfile

import (
	"fmt"
	"strconv"
	"strings"
	"unicode"

	"headwater.example/tensor"
)

// Error says what a job file or its options break.
type Error struct {
	File   string // as it was opened; empty where only options were read
	Tensor string // empty where no tensor is to blame
	Index  int64  // row-major index of the element, -1 where the tensor as a whole is meant
	Rule   string // what is not as it must be
}

// Error is one line: FILE: tensor "T"[INDEX]: RULE.
func (e *Error) Error() string {
	return (*tensor.FormatError)(e).Error()
}

// oneLine quotes a name that would break a line or a terminal.
func oneLine(s string) string {
	if strings.ContainsFunc(s, func(r rune) bool { return !unicode.IsPrint(r) }) {
		return strconv.Quote(s)
	}
	return s
}

// quote shows a name that a file chose, cut where it is longer than anyone reads.
func quote(name string) string {
	const most = 200
	if len(name) > most {
		return strconv.Quote(strings.ToValidUTF8(name[:most], "")) + "…"
	}
	return strconv.Quote(name)
}

func optionErrorf(format string, args ...any) *Error {
	return &Error{Index: -1, Rule: fmt.Sprintf(format, args...)}
}
