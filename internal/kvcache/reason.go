package kvcache

import (
	"fmt"

	"headwater.example/internal/quota"
	"headwater.example/shard"
)

// Reason is why a call on a session is refused. The session is as it was before.
type Reason uint8

// The reasons that a store gives; their meanings are those of SessionProblem in session.proto.
const (
	Invalid Reason = iota + 1
	Unknown
	Exists
	Behind
	Ahead
	Different
	StaleEpoch
	OtherTruncations
	Freed
	OverBudget
)

var reasons = [...]string{
	Invalid: "invalid", Unknown: "unknown", Exists: "exists", Behind: "behind", Ahead: "ahead", Different: "different",
	StaleEpoch: "stale epoch", OtherTruncations: "other truncations", Freed: "freed", OverBudget: "over budget",
}

func (p Reason) String() string {
	if p < Invalid || int(p) >= len(reasons) {
		return fmt.Sprintf("Reason(%d)", uint8(p))
	}
	return reasons[p]
}

// Error is the error of every call on a store. It has the current state, from which the caller can go on.
type Error struct {
	Reason Reason
	// Rule is one line for people.
	Rule string
	// Layer and Group, if the error is about one.
	Layer shard.Layer
	Group shard.Group
	// Length is how many positions the layer has, for Behind, Ahead and Different.
	Length uint64
	// Epoch is the accepted one, for StaleEpoch.
	Epoch Epoch
	// Truncations are the session's, for OtherTruncations.
	Truncations uint64
	// Quota is the tenant's limit that was met, for OverBudget; nil is the store's own.
	Quota *quota.Exceeded
}

func (e *Error) Error() string { return e.Rule }

func refuse(p Reason, format string, args ...any) *Error {
	return &Error{Reason: p, Rule: fmt.Sprintf(format, args...)}
}

// at says which layer the error is about, and how many positions the layer has.
func (e *Error) at(layer shard.Layer, length int) *Error {
	e.Layer, e.Length = layer, uint64(length)
	return e
}

// of says which group of the layer the error is about.
func (e *Error) of(group shard.Group) *Error {
	e.Group = group
	return e
}
