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

// Is reports whether an error is, wraps or carries a refusal with a reason.
func Is(err error, reason session.Reason) bool {
	e, ok := session.FromError(err)
	return ok && e.Reason() == reason
}

// lostError is the error of a holder that can't be reached now. A new stream may reach it.
type lostError struct{ why *session.Error }

func (e lostError) Error() string { return e.why.Error() }
func (e lostError) Unwrap() error { return e.why }

// breakError is the error of a stream that ended during a step. A new stream may reach the holder.
type breakError struct{ why *session.Error }

func (e breakError) Error() string { return e.why.Error() }
func (e breakError) Unwrap() error { return e.why }

// broken reports whether an error comes from a stream that ended during a step.
func broken(err error) bool {
	var b breakError
	return errors.As(err, &b)
}

// Unreached reports whether an error says that a holder could not be reached or its connection broke, as opposed to an
// answer of a holder.
func Unreached(err error) bool {
	var l lostError
	return errors.As(err, &l) || broken(err)
}

// transient reports whether the same call may soon succeed.
func transient(err error) bool {
	return Unreached(err) || Is(err, session.Busy)
}

// outranks reports whether an error says more of a call than one of another holder, which may be nil: that a holder is lost says more
// than that it could not be reached, and a refusal more than both. Who refuses has the session still.
func outranks(err, other error) bool { return rank(err) > rank(other) }

func rank(err error) int {
	switch {
	case err == nil:
		return 0
	case transient(err):
		return 1
	case gone(err) != "":
		return 2
	}
	return 3
}

// refused returns a holder's refusal. If the refusal already names another holder, that name is kept.
func refused(holder string, e *session.Error) *session.Error {
	if e.Why.GetHolder() != "" || holder == "" {
		return e
	}
	why := proto.CloneOf(e.Why)
	why.Holder = holder
	return &session.Error{Why: why}
}

// lost returns the error of a connection that could not be made, or that broke during a call. The call may succeed over
// a new one.
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

// wrong returns the error of an answer that no holder should give.
func wrong(holder, format string, args ...any) error {
	return status.Errorf(codes.Internal, "holder %q: %s", holder, fmt.Sprintf(format, args...))
}

// invalid returns the error of a request that is refused before any holder is asked.
func invalid(format string, args ...any) error {
	return session.Errorf(session.Invalid, format, args...)
}

// Silent returns the error of a session of which shards are lost that silent workers, at least one, may hold.
func Silent(workers []*headwaterv1.SilentWorker, lost *headwaterv1.LostShards) error {
	what, others := "the rest of the session", ""
	if lost.GetAll() {
		what = "the session"
	}
	if len(workers) > 1 {
		names := make([]string, len(workers)-1)
		for i, w := range workers[1:] {
			names[i] = w.GetWorker()
		}
		others = "; nor did " + strings.Join(names, ", ")
	}
	e := session.Errorf(session.Lost, "it did not answer, and may hold %s: %s%s", what, oneLine(workers[0].GetError()), others)
	e.Why.Holder, e.Why.Lost = workers[0].GetWorker(), lost
	return e
}

// unknown returns the error of a session that a holder does not have.
func unknown(holder string, id []byte) error {
	return refused(holder, session.Errorf(session.Unknown, "session %x is not held", id))
}

// callError classifies the error of a unary call.
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
