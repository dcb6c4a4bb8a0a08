package client

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"regexp"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"headwater.example/internal/quota"
	"headwater.example/internal/quotaproto"
	"headwater.example/internal/rpc"
	"headwater.example/internal/session"
	"headwater.example/internal/session/fanout"
	headwaterv1 "headwater.example/proto/headwater/v1"
)

// Kinds of errors, for errors.Is: each says what a program does. docs/errors.md has the kind of each event. An error of
// no kind is the end of the caller's own context, ErrClosed, or a fault of the software.
var (
	// ErrTryAgain: the same call may succeed later.
	ErrTryAgain = errors.New("try again")
	// ErrGone: the session no longer exists. Open another one, have Session.Recover make one like it, or restore a snapshot.
	ErrGone = errors.New("gone")
	// ErrRefused: the same call fails in the same way. Change the request.
	ErrRefused = errors.New("refused")
)

// Causes, for errors.Is: each is of the kind that it names.
var (
	// ErrUnreachable (try again): no coordinator answered, or the connection to it broke.
	ErrUnreachable = errors.New("unreachable")
	// ErrLost (try again): a worker that holds a part of the session can't be reached, or does not answer.
	ErrLost = errors.New("lost")
	// ErrOverBudget (try again): the workers have no room. Drop or truncate a session, or try later.
	ErrOverBudget = errors.New("over budget")
	// ErrOverQuota (try again): the tenant would have more than it may; Quota of the error says of what, and when to try again. A
	// refusal of a session's call is ErrOverBudget as well.
	ErrOverQuota = errors.New("over quota")
	// ErrNotFound: nobody holds the session (gone), or the coordinator does not know the job (refused).
	ErrNotFound = errors.New("not found")
	// ErrTakenOver (refused): another client drives the session now; Attach takes it back.
	ErrTakenOver = errors.New("taken over")
	// ErrSnapshot (refused): a file is cut off, damaged, of another version, or not a snapshot.
	ErrSnapshot = errors.New("snapshot")
	// ErrClosed: the program itself closed the client, or closed or dropped the session.
	ErrClosed = errors.New("closed")

	errClientClosed  = fmt.Errorf("the client is %w", ErrClosed)
	errSessionClosed = fmt.Errorf("the session is %w", ErrClosed)
)

// isKind reports whether target is the sentinel of a kind.
func isKind(kind session.Kind, target error) bool {
	switch target {
	case ErrTryAgain:
		return kind == session.TryAgain
	case ErrGone:
		return kind == session.Gone
	case ErrRefused:
		return kind == session.Refused
	}
	return false
}

// argumentError is an argument that the client refuses before it asks anyone.
type argumentError struct{ error }

func wrong(format string, args ...any) error { return argumentError{fmt.Errorf(format, args...)} }

func (e argumentError) Is(target error) bool { return target == ErrRefused }

func (e argumentError) Unwrap() error { return e.error }

// Error is the error of a failed call.
type Error struct {
	Address string     // the coordinator's
	Doing   string     // what was being done
	Code    codes.Code // the gRPC code
	Message string     // why, in one line
	// Answered says that the coordinator itself gave the code. Unavailable then means that it can't do it now.
	Answered bool
	Quota    *Quota // the tenant's limit that was met, for ErrOverQuota
	// RetryAfter is after how long the same call may succeed at the earliest, for ErrTryAgain; 0 if nobody says.
	RetryAfter time.Duration
	// Coordinator is the one whose job it is, if that one does not answer and another one says so.
	Coordinator string
}

// Quota is a tenant's limit that a call would exceed.
type Quota struct {
	Tenant      string
	Kind        string // "sessions", "bytes", "steps_per_second" or "jobs"
	Limit, Used float64
	RetryAfter  time.Duration // as the error has it
}

func newQuota(e *quota.Exceeded) *Quota {
	if e == nil {
		return nil
	}
	return &Quota{Tenant: e.Tenant, Kind: string(e.Kind), Limit: e.Limit, Used: e.Used, RetryAfter: e.RetryAfter}
}

// retryAfter is RetryAfter, 0 if no limit was met.
func (q *Quota) retryAfter() time.Duration {
	if q == nil {
		return 0
	}
	return q.RetryAfter
}

func (e *Error) Error() string {
	if e.Is(ErrUnreachable) {
		return fmt.Sprintf("%s: coordinator %s is unreachable: %s", e.Doing, e.Address, e.Message)
	}
	return fmt.Sprintf("%s: %s", e.Doing, e.Message)
}

// Is matches the kinds and causes above, and the context's own errors.
func (e *Error) Is(target error) bool {
	switch target {
	case ErrUnreachable:
		return e.Code == codes.Unavailable && !e.Answered
	case ErrNotFound:
		return e.Code == codes.NotFound
	case ErrOverQuota:
		return e.Quota != nil
	case context.Canceled:
		return e.Code == codes.Canceled
	case context.DeadlineExceeded:
		return e.Code == codes.DeadlineExceeded
	}
	return isKind(session.KindOfCode(e.Code), target)
}

// JobError is the error of a job that ended without a result.
type JobError struct {
	Job *Job
}

func (e *JobError) Error() string {
	if e.Job.State == JobCancelled {
		return fmt.Sprintf("job %s was cancelled", e.Job.ID)
	}
	return fmt.Sprintf("job %s failed: %s", e.Job.ID, oneLine(e.Job.Error))
}

// Is matches the kind of the job's code; a cancelled job has no kind.
func (e *JobError) Is(target error) bool {
	return e.Job.State == JobFailed && isKind(session.KindOfCode(e.Job.ErrorCode), target)
}

// Reason says why a call on a session was refused.
type Reason string

// The reasons; docs/errors.md says when each occurs, and its kind.
const (
	ReasonBusy             Reason = "busy"
	ReasonLost             Reason = "lost"
	ReasonOverBudget       Reason = "over budget"
	ReasonUnknown          Reason = "unknown"
	ReasonStaleEpoch       Reason = "stale epoch"
	ReasonInvalid          Reason = "invalid"
	ReasonExists           Reason = "exists"
	ReasonBehind           Reason = "behind"
	ReasonAhead            Reason = "ahead"
	ReasonDifferent        Reason = "different"
	ReasonOtherTruncations Reason = "other truncations"
	ReasonFreed            Reason = "freed"
	ReasonNotFinite        Reason = "not finite"
	ReasonFault            Reason = "fault" // of the software
)

var reasons = map[session.Reason]Reason{
	session.Busy: ReasonBusy, session.Lost: ReasonLost, session.OverBudget: ReasonOverBudget, session.Unknown: ReasonUnknown,
	session.StaleEpoch: ReasonStaleEpoch, session.Invalid: ReasonInvalid, session.Exists: ReasonExists, session.Behind: ReasonBehind,
	session.Ahead: ReasonAhead, session.Different: ReasonDifferent, session.OtherTruncations: ReasonOtherTruncations,
	session.Freed: ReasonFreed, session.NotFinite: ReasonNotFinite,
}

// SessionError is the error of a call on a session that was refused, or for which a worker could not be reached. The
// session is as it was before, or the same call completes it when it is repeated.
type SessionError struct {
	Session SessionID // zero if it is about none
	Doing   string    // what was being done
	Reason  Reason
	Holder  string // name of the worker, or the coordinator's address
	Length  int    // for ReasonBehind, ReasonAhead and ReasonDifferent: positions that the worker has
	Message string // why, in one line
	Quota   *Quota // the tenant's limit that was met, for ErrOverQuota
	// RetryAfter, for ReasonBusy and ErrOverQuota, is after how long the same call may succeed at the earliest; 0 if nobody says.
	RetryAfter time.Duration
	// Lost, for ReasonLost and ReasonUnknown, are the shards that no worker holds that answers, ascending by layer. It is empty if
	// there are none, or if nobody knows: a call by a session's id alone knows no layers of a session that no worker holds.
	Lost []LostShards

	wire        session.Reason
	lost        *headwaterv1.LostShards
	coordinator bool // the coordinator itself was not reached
}

func (e *SessionError) Error() string { return e.Doing + ": " + e.why() }

// why is the error without the call that failed.
func (e *SessionError) why() string {
	text := e.Message
	switch {
	case e.coordinator:
		text = fmt.Sprintf("coordinator %s is unreachable: %s", e.Holder, e.Message)
	case e.Holder != "":
		text = fmt.Sprintf("%s: %s", e.Holder, e.Message)
	}
	if len(e.Lost) > 0 {
		text += "; lost: " + lostText(e.Lost)
	}
	return text
}

// GRPCStatus returns the refusal as a gRPC status, for status.Code.
func (e *SessionError) GRPCStatus() *status.Status {
	return session.Errorf(e.wire, "%s", e.Error()).GRPCStatus()
}

// Is matches the kinds and causes above.
func (e *SessionError) Is(target error) bool {
	switch target {
	case ErrUnreachable:
		return e.coordinator
	case ErrNotFound:
		return e.Reason == ReasonUnknown
	case ErrLost:
		return e.Reason == ReasonLost && !e.coordinator
	case ErrTakenOver:
		return e.Reason == ReasonStaleEpoch
	case ErrOverBudget:
		return e.Reason == ReasonOverBudget
	case ErrOverQuota:
		return e.Quota != nil
	}
	return isKind(session.KindOf(e.wire), target)
}

// sessionError returns a *SessionError if a holder refused a call on a session or could not be reached, and otherwise
// wraps the error.
func (c *Client) sessionError(doing string, id SessionID, err error) error {
	var own *SessionError
	if errors.As(err, &own) {
		return err
	}
	if c.endedByClose(err) {
		return fmt.Errorf("%s: %w", doing, errClientClosed)
	}
	if e, ok := session.FromError(err); ok {
		why := e.Why
		unreached := why.GetHolder() == c.address && fanout.Unreached(err)
		message := reason(why.GetMessage())
		if unreached {
			message = c.throughProxy(codes.Unavailable, message)
		}
		over := newQuota(quotaproto.Read(why.GetQuota()))
		return &SessionError{
			Session: id, Doing: doing, Reason: cmp.Or(reasons[e.Reason()], ReasonFault), wire: e.Reason(), Holder: why.GetHolder(),
			Length: int(why.GetLength()), Message: message, coordinator: unreached, Quota: over, RetryAfter: cmp.Or(over.retryAfter(), e.RetryAfter()), lost: why.GetLost(),
		}
	}
	if s, ok := status.FromError(err); ok && s.Code() != codes.Unknown {
		return c.wrap(doing, err)
	}
	return fmt.Errorf("%s: %w", doing, err)
}

// stepErrors are the errors of several steps, in order. The text has errors that differ only in their step once.
type stepErrors []error

func (e stepErrors) Error() string {
	var texts []string
	count := map[string]int{} // of steps after the first that fail alike, by why
	first := map[string]int{} // index in texts
	for _, err := range e {
		why := err.Error()
		var refused *SessionError
		if errors.As(err, &refused) {
			why = refused.why()
		}
		if _, told := first[why]; told {
			count[why]++
			continue
		}
		first[why] = len(texts)
		texts = append(texts, err.Error())
	}
	for why, n := range count {
		steps := "steps"
		if n == 1 {
			steps = "step"
		}
		texts[first[why]] += fmt.Sprintf(" (and %d more %s alike)", n, steps)
	}
	return strings.Join(texts, "; ")
}

// Unwrap returns the errors of all steps, for errors.Is and errors.As.
func (e stepErrors) Unwrap() []error { return e }

// endedByClose reports whether a call failed because the client was closed, before the call or during it.
func (c *Client) endedByClose(err error) bool {
	if errors.Is(err, rpc.ErrClosed) {
		return true
	}
	if !c.closed.Load() {
		return false
	}
	if e, ok := session.FromError(err); ok {
		return e.Reason() == session.Lost || e.Reason() == session.Busy
	}
	code := status.Code(err)
	return errors.Is(err, context.Canceled) || code == codes.Canceled || code == codes.Unavailable
}

// wrap turns an error of a call into an *Error; nil stays nil.
func (c *Client) wrap(doing string, err error) error {
	if err == nil {
		return nil
	}
	if c.endedByClose(err) {
		return fmt.Errorf("%s: %w", doing, errClientClosed)
	}
	if errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
		err = status.FromContextError(err).Err()
	}
	s := status.Convert(err)
	message := c.throughProxy(s.Code(), reason(s.Message()))
	// doing ends with the file, which the coordinator names as well.
	if file, rest, ok := strings.Cut(message, ": "); ok && strings.HasSuffix(doing, " "+file) {
		message = rest
	}
	over := newQuota(quotaproto.FromStatus(s))
	return &Error{
		Address: c.address, Doing: doing, Code: s.Code(), Message: message, Quota: over,
		RetryAfter: cmp.Or(over.retryAfter(), rpc.RetryAfterIn(s)), Coordinator: rpc.UnreachableIn(s),
	}
}

// wrapAnswer is wrap for an error in place of a call's first answer. If the coordinator gave the error, it sent its
// header before. If no coordinator listens at the address, the error says what does.
func (c *Client) wrapAnswer(ctx context.Context, doing string, err error, header metadata.MD) error {
	err = c.wrap(doing, err)
	var e *Error
	if !errors.As(err, &e) {
		return err
	}
	e.Answered = len(header.Get(rpc.MetadataKey)) > 0
	if c.servesNone(ctx, e) {
		return c.notCoordinator(ctx, e)
	}
	return e
}

// firstError is wrapAnswer for a stream.
func (c *Client) firstError(ctx context.Context, doing string, err error, stream grpc.ClientStream) error {
	// If there is no header, the error says why.
	header, _ := stream.Header()
	return c.wrapAnswer(ctx, doing, unexpectedEnd(err), header)
}

// throughProxy says that a connection that failed went through a proxy.
func (c *Client) throughProxy(code codes.Code, message string) string {
	if c.proxy == "" || code != codes.Unavailable {
		return message
	}
	return fmt.Sprintf("through the proxy %s: %s", c.proxy, message)
}

// dialError matches gRPC's wrapping of a dial error, which older coordinators pass on from their workers.
var dialError = regexp.MustCompile(`(code = \w+ desc = )?(connection error: )+desc = "transport: Error while dialing: ([^"]*)"`)

// reason reduces gRPC's wrapping of a dial error to what a person can act on, and keeps who dialed whom.
func reason(message string) string {
	return oneLine(dialError.ReplaceAllString(message, "$3"))
}

func oneLine(s string) string { return strings.Join(strings.Fields(s), " ") }
