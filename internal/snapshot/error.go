package snapshot

import "fmt"

// Problem is what is wrong with a snapshot.
type Problem uint8

// The problems.
const (
	NotASnapshot Problem = iota + 1 // it does not begin as one
	OtherVersion                    // it is of a version that this program does not read
	Truncated                       // it ends early
	Damaged                         // a checksum is not that of the bytes
	Invalid                         // it contradicts itself or a limit
)

var problems = [...]string{
	NotASnapshot: "not a snapshot", OtherVersion: "other version", Truncated: "truncated", Damaged: "damaged", Invalid: "invalid",
}

func (p Problem) String() string {
	if p < NotASnapshot || int(p) >= len(problems) {
		return fmt.Sprintf("Problem(%d)", uint8(p))
	}
	return problems[p]
}

// Error is the error of a snapshot that can not be read, and of what can not be written as one. Errors of the stream below
// are not of this type.
type Error struct {
	Problem Problem
	// Rule is one line for people. It says what to do, where something can be done.
	Rule string
}

func (e *Error) Error() string { return e.Rule }

func refuse(p Problem, format string, args ...any) *Error {
	return &Error{Problem: p, Rule: fmt.Sprintf(format, args...)}
}
