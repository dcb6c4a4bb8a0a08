package session

import (
	"errors"
	"fmt"
	"strings"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	headwaterv1 "headwater.example/proto/headwater/v1"
)

// Error is why a call on a session, or a step of it, was refused: a SessionError. The session is as it was before.
type Error struct {
	Why *headwaterv1.SessionError // not nil; not to be changed
}

// Errorf makes an error of a problem and its message.
func Errorf(problem headwaterv1.SessionProblem, format string, args ...any) *Error {
	return &Error{&headwaterv1.SessionError{
		Problem: problem,
		Message: strings.ToValidUTF8(fmt.Sprintf(format, args...), "\uFFFD"),
	}}
}

func (e *Error) Error() string {
	text := e.Why.GetMessage()
	if text == "" {
		text = strings.TrimPrefix(e.Why.GetProblem().String(), "SESSION_PROBLEM_")
	}
	if holder := e.Why.GetHolder(); holder != "" {
		return holder + ": " + text
	}
	return text
}

// Problem says which problem it is.
func (e *Error) Problem() headwaterv1.SessionProblem { return e.Why.GetProblem() }

// GRPCStatus is the status of a unary call that was refused: a code by meaning, and the SessionError as its detail. So an
// Error that a handler of gRPC returns arrives as one.
func (e *Error) GRPCStatus() *status.Status {
	s := status.New(problemCode(e.Why.GetProblem()), e.Error())
	if detailed, err := s.WithDetails(e.Why); err == nil {
		return detailed
	}
	return s
}

func problemCode(p headwaterv1.SessionProblem) codes.Code {
	switch p {
	case headwaterv1.SessionProblem_SESSION_PROBLEM_INVALID:
		return codes.InvalidArgument
	case headwaterv1.SessionProblem_SESSION_PROBLEM_UNKNOWN:
		return codes.NotFound
	case headwaterv1.SessionProblem_SESSION_PROBLEM_EXISTS:
		return codes.AlreadyExists
	case headwaterv1.SessionProblem_SESSION_PROBLEM_BEHIND,
		headwaterv1.SessionProblem_SESSION_PROBLEM_AHEAD,
		headwaterv1.SessionProblem_SESSION_PROBLEM_DIFFERENT,
		headwaterv1.SessionProblem_SESSION_PROBLEM_STALE_EPOCH,
		headwaterv1.SessionProblem_SESSION_PROBLEM_OTHER_TRUNCATIONS,
		headwaterv1.SessionProblem_SESSION_PROBLEM_FREED:
		return codes.FailedPrecondition
	case headwaterv1.SessionProblem_SESSION_PROBLEM_OVER_BUDGET:
		return codes.ResourceExhausted
	case headwaterv1.SessionProblem_SESSION_PROBLEM_NOT_FINITE:
		return codes.OutOfRange
	case headwaterv1.SessionProblem_SESSION_PROBLEM_LOST:
		return codes.DataLoss
	case headwaterv1.SessionProblem_SESSION_PROBLEM_BUSY:
		return codes.Unavailable
	}
	return codes.Unknown
}

// FromError returns the Error that err is, wraps, or, as the status of a call, carries among its details.
func FromError(err error) (*Error, bool) {
	var own *Error
	if errors.As(err, &own) {
		return own, true
	}
	var coded interface{ GRPCStatus() *status.Status }
	if !errors.As(err, &coded) {
		return nil, false
	}
	for _, d := range coded.GRPCStatus().Details() {
		if why, ok := d.(*headwaterv1.SessionError); ok {
			return &Error{why}, true
		}
	}
	return nil, false
}
