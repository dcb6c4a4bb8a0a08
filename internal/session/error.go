package session

import (
	"cmp"
	"errors"
	"fmt"
	"math"
	"strings"
	"time"

	"google.golang.org/grpc/status"

	"headwater.example/internal/rpc"
	headwaterv1 "headwater.example/proto/headwater/v1"
)

// Error is the refusal of a call on a session, or of a step: a SessionError. The session is as it was before.
type Error struct {
	Why *headwaterv1.SessionError // not nil; not to be changed
}

// Errorf returns an error with a reason and a message. One that is BUSY says when to try again.
func Errorf(reason Reason, format string, args ...any) *Error {
	e := &Error{&headwaterv1.SessionError{
		Problem: reason,
		Message: strings.ToValidUTF8(fmt.Sprintf(format, args...), "\uFFFD"),
	}}
	if reason == Busy {
		e.Why.RetryAfterMillis = uint64(rpc.RetryAfter / time.Millisecond)
	}
	return e
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

// Reason returns the reason.
func (e *Error) Reason() Reason { return e.Why.GetProblem() }

// RetryAfter returns after how long the same call or step may succeed at the earliest, 0 if the error does not say.
func (e *Error) RetryAfter() time.Duration {
	return time.Duration(min(e.Why.GetRetryAfterMillis(), math.MaxInt32)) * time.Millisecond
}

// GRPCStatus returns the status of a refused unary call: a code by meaning, and the SessionError as its detail. So if a
// gRPC handler returns an Error, the client receives an Error. One that is BUSY says when to try again, also by google.rpc.RetryInfo.
func (e *Error) GRPCStatus() *status.Status {
	s := status.New(codeOf(e.Why.GetProblem()), e.Error())
	if detailed, err := s.WithDetails(e.Why); err == nil {
		s = detailed
	}
	if e.Why.GetProblem() == Busy {
		s = rpc.Later(s, cmp.Or(e.RetryAfter(), rpc.RetryAfter)) // holders of before do not say
	}
	return s
}

// FromError returns the Error in err: err itself, one that it wraps, or one among the details of a call's status.
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

// Refusal returns a service's answer for an error of a call on a session: the error's own refusal, or one whose reason
// follows from its code. Every failing call gets one, so a client can tell an answer from silence.
func Refusal(err error) *Error {
	if e, ok := FromError(err); ok {
		return e
	}
	reason := Unspecified
	switch KindOfCode(status.Code(err)) {
	case TryAgain:
		reason = Busy
	case Refused:
		reason = Invalid
	}
	message := err.Error()
	var coded interface{ GRPCStatus() *status.Status }
	if errors.As(err, &coded) {
		message = coded.GRPCStatus().Message()
	}
	return Errorf(reason, "%s", strings.Join(strings.Fields(message), " "))
}
