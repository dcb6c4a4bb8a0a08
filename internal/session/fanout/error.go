package fanout

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"headwater.example/internal/rpc"
	"headwater.example/internal/session"
	headwaterv1 "headwater.example/proto/headwater/v1"
)

// Is tells whether an error is, wraps or carries a refusal for a reason.
func Is(err error, reason session.Reason) bool {
	e, ok := session.FromError(err)
	return ok && e.Reason() == reason
}

// lostError is a holder that can not be reached now. Over a new stream it may be.
type lostError struct{ why *session.Error }

func (e lostError) Error() string { return e.why.Error() }
func (e lostError) Unwrap() error { return e.why }

// breakError is a stream to a holder that ended under a step. Over a new one the holder may be reached.
type breakError struct{ why *session.Error }

func (e breakError) Error() string { return e.why.Error() }
func (e breakError) Unwrap() error { return e.why }

// broken tells whether an error is of a stream that ended under a step.
func broken(err error) bool {
	var b breakError
	return errors.As(err, &b)
}

// Unreached tells whether an error is of a holder that this side did not reach, or whose connection broke, and not what a holder
// has answered.
func Unreached(err error) bool {
	var l lostError
	return errors.As(err, &l) || broken(err)
}

// transient tells whether the same call may go well soon.
func transient(err error) bool {
	return Unreached(err) || Is(err, session.Busy)
}

// refused is what a holder said. The name that it gives, of who refused it in turn, is kept.
func refused(holder string, e *session.Error) *session.Error {
	if e.Why.GetHolder() != "" || holder == "" {
		return e
	}
	why := proto.CloneOf(e.Why)
	why.Holder = holder
	return &session.Error{Why: why}
}

// lost is a connection that was not made, or one that broke under a call, which may go well over a new one.
func lost(holder string, err error) error {
	if errors.Is(err, rpc.ErrClosed) || errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
		return fmt.Errorf("holder %q: %w", holder, err)
	}
	var fault faultError
	if errors.As(err, &fault) {
		return fault.error
	}
	s := status.Convert(err)
	var ended brokenError
	if e, ok := session.FromError(err); ok {
		return refused(holder, e)
	}
	reason := session.Lost
	switch {
	case session.KindOfCode(s.Code()) == session.Refused, s.Code() == codes.ResourceExhausted:
		return refused(holder, session.Refusal(s.Err()))
	case errors.As(err, &ended):
		reason = session.Busy
	}
	e := session.Errorf(reason, "%s", oneLine(s.Message()))
	e.Why.Holder = holder
	if rpc.IsMute(err) {
		return e // a new connection would be waited for as long
	}
	if reason == session.Busy {
		return breakError{e}
	}
	return lostError{e}
}

func oneLine(s string) string {
	return strings.ReplaceAll(strings.Join(strings.Fields(s), " "), "rpc error: code = ", "")
}

// wrong is an answer that no holder should give.
func wrong(holder, format string, args ...any) error {
	return status.Errorf(codes.Internal, "holder %q: %s", holder, fmt.Sprintf(format, args...))
}

// invalid is a request that no holder is asked.
func invalid(format string, args ...any) error {
	return session.Errorf(session.Invalid, format, args...)
}

// Silent is the error of a session that workers which did not answer, at least one, may hold, or the rest of it.
func Silent(workers []*headwaterv1.SilentWorker, rest bool) error {
	what, others := "the session", ""
	if rest {
		what = "the rest of the session"
	}
	if len(workers) > 1 {
		names := make([]string, len(workers)-1)
		for i, w := range workers[1:] {
			names[i] = w.GetWorker()
		}
		others = "; nor did " + strings.Join(names, ", ")
	}
	e := session.Errorf(session.Lost, "it did not answer, and may hold %s: %s%s", what, oneLine(workers[0].GetError()), others)
	e.Why.Holder = workers[0].GetWorker()
	return e
}

// unknown is a session that a holder does not have.
func unknown(holder string, id []byte) error {
	return refused(holder, session.Errorf(session.Unknown, "session %x is not held", id))
}

// callError makes of the error of a unary call what it means.
func callError(holder string, err error) error {
	if e, ok := session.FromError(err); ok {
		return refused(holder, e)
	}
	switch s := status.Convert(err); s.Code() {
	case codes.Unavailable:
		return lost(holder, err)
	case codes.Canceled:
		return fmt.Errorf("holder %q: %w", holder, context.Canceled)
	case codes.DeadlineExceeded:
		return fmt.Errorf("holder %q: %w", holder, context.DeadlineExceeded)
	default:
		return status.Errorf(s.Code(), "holder %q: %s", holder, oneLine(s.Message()))
	}
}
