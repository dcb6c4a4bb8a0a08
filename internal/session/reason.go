package session

import (
	"strings"

	"google.golang.org/grpc/codes"

	headwaterv1 "headwater.example/proto/headwater/v1"
)

// Reason says why a call on a session is refused: the SessionProblem of the protocol.
type Reason = headwaterv1.SessionProblem

// The reasons. docs/errors.md says when each occurs. Unspecified is a fault of the software.
const (
	Unspecified      = headwaterv1.SessionProblem_SESSION_PROBLEM_UNSPECIFIED
	Invalid          = headwaterv1.SessionProblem_SESSION_PROBLEM_INVALID
	Unknown          = headwaterv1.SessionProblem_SESSION_PROBLEM_UNKNOWN
	Exists           = headwaterv1.SessionProblem_SESSION_PROBLEM_EXISTS
	Behind           = headwaterv1.SessionProblem_SESSION_PROBLEM_BEHIND
	Ahead            = headwaterv1.SessionProblem_SESSION_PROBLEM_AHEAD
	Different        = headwaterv1.SessionProblem_SESSION_PROBLEM_DIFFERENT
	StaleEpoch       = headwaterv1.SessionProblem_SESSION_PROBLEM_STALE_EPOCH
	OtherTruncations = headwaterv1.SessionProblem_SESSION_PROBLEM_OTHER_TRUNCATIONS
	Freed            = headwaterv1.SessionProblem_SESSION_PROBLEM_FREED
	OverBudget       = headwaterv1.SessionProblem_SESSION_PROBLEM_OVER_BUDGET
	NotFinite        = headwaterv1.SessionProblem_SESSION_PROBLEM_NOT_FINITE
	Lost             = headwaterv1.SessionProblem_SESSION_PROBLEM_LOST
	Busy             = headwaterv1.SessionProblem_SESSION_PROBLEM_BUSY
)

// Kind is what a program does about an error. The zero value is none of the kinds.
type Kind uint8

// The kinds.
const (
	TryAgain Kind = iota + 1 // the same call may go well later
	Gone                     // the session is no more
	Refused                  // the same call fails in the same way
)

// kinds has each reason's kind, and its gRPC code for calls without a SessionError.
var kinds = map[Reason]struct {
	kind Kind
	code codes.Code
}{
	Busy:             {TryAgain, codes.Unavailable},
	Lost:             {TryAgain, codes.DataLoss},
	OverBudget:       {TryAgain, codes.ResourceExhausted},
	Unknown:          {Gone, codes.NotFound},
	Invalid:          {Refused, codes.InvalidArgument},
	Exists:           {Refused, codes.AlreadyExists},
	Behind:           {Refused, codes.FailedPrecondition},
	Ahead:            {Refused, codes.FailedPrecondition},
	Different:        {Refused, codes.FailedPrecondition},
	StaleEpoch:       {Refused, codes.FailedPrecondition},
	OtherTruncations: {Refused, codes.FailedPrecondition},
	Freed:            {Refused, codes.FailedPrecondition},
	NotFinite:        {Refused, codes.OutOfRange},
	Unspecified:      {0, codes.Internal},
}

// KindOf returns the kind of a reason; a reason that this version does not know has none.
func KindOf(reason Reason) Kind { return kinds[reason].kind }

// NameOf returns a reason's name as docs/errors.md has it, in lower case.
func NameOf(reason Reason) string {
	return strings.ToLower(strings.TrimPrefix(reason.String(), "SESSION_PROBLEM_"))
}

// codeOf returns the gRPC code of a reason.
func codeOf(reason Reason) codes.Code {
	if k, ok := kinds[reason]; ok {
		return k.code
	}
	return codes.Unknown
}

// KindOfCode returns the kind of a call that ended with a gRPC code and no SessionError.
func KindOfCode(code codes.Code) Kind {
	switch code {
	case codes.Unavailable, codes.ResourceExhausted, codes.Aborted, codes.DataLoss:
		return TryAgain
	case codes.InvalidArgument, codes.NotFound, codes.FailedPrecondition, codes.AlreadyExists, codes.OutOfRange,
		codes.PermissionDenied, codes.Unauthenticated, codes.Unimplemented:
		return Refused
	}
	return 0
}
