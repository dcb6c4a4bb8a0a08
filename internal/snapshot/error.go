package snapshot

import "fmt"

// Reason is what is wrong with a snapshot.
type Reason uint8

// The reasons.
const (
	NotASnapshot Reason = iota + 1 // it does not begin as one
	OtherVersion                   // it is of a version that this program does not read
	Truncated                      // it ends early
	Damaged                        // a checksum is not that of the bytes
	Invalid                        // it contradicts itself or a limit
)

var reasons = [...]string{
	NotASnapshot: "not a snapshot", OtherVersion: "other version", Truncated: "truncated", Damaged: "damaged", Invalid: "invalid",
}

func (p Reason) String() string {
	if p < NotASnapshot || int(p) >= len(reasons) {
		return fmt.Sprintf("Reason(%d)", uint8(p))
	}
	return reasons[p]
}

// Error is the error of a snapshot that can not be read, and of what can not be written as one. Errors of the stream below
// are not of this type.
type Error struct {
	Reason Reason
	// Rule is one line for people. It says what to do, where something can be done.
	Rule string
}

func (e *Error) Error() string { return e.Rule }

func refuse(p Reason, format string, args ...any) *Error {
	return &Error{Reason: p, Rule: fmt.Sprintf(format, args...)}
}
