package client

import (
	"context"
	"errors"
	"fmt"
	"regexp"
	"strings"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"headwater.example/internal/rpc"
	"headwater.example/internal/session"
	headwaterv1 "headwater.example/proto/headwater/v1"
)

// Causes, for errors.Is.
var (
	// ErrUnreachable: no coordinator answered, or the connection broke.
	ErrUnreachable = errors.New("unreachable")
	// ErrRefused: the coordinator answered that it will not do what was asked; asking again changes nothing.
	ErrRefused = errors.New("refused")
	// ErrNotFound: the coordinator does not know the job, or nobody holds the session; such an error is ErrRefused as well.
	ErrNotFound = errors.New("not found")
	// ErrLost: a worker that held a part of the session can not be reached, or has lost it.
	ErrLost = errors.New("lost")
	// ErrTakenOver: another client drives the session now; Attach takes it back.
	ErrTakenOver = errors.New("taken over")
	// ErrOverBudget: the workers have no room.
	ErrOverBudget = errors.New("over budget")
	// ErrClosed: the client was closed, or the session was closed or dropped, by the program itself.
	ErrClosed = errors.New("closed")

	errClientClosed  = fmt.Errorf("the client is %w", ErrClosed)
	errSessionClosed = fmt.Errorf("the session is %w", ErrClosed)
)

// Error is a call that did not succeed.
type Error struct {
	Address string     // the coordinator's
	Doing   string     // what was being done
	Code    codes.Code // the gRPC code
	Message string     // why, in one line
	// Answered says that the coordinator itself gave the code. Unavailable then means that it can not do it now.
	Answered bool
}

func (e *Error) Error() string {
	if e.Is(ErrUnreachable) {
		return fmt.Sprintf("%s: coordinator %s is unreachable: %s", e.Doing, e.Address, e.Message)
	}
	return fmt.Sprintf("%s: %s", e.Doing, e.Message)
}

// Is tells the causes above, and the context's own errors.
func (e *Error) Is(target error) bool {
	switch target {
	case ErrUnreachable:
		return e.Code == codes.Unavailable && !e.Answered
	case ErrRefused:
		return refusal(e.Code)
	case ErrNotFound:
		return e.Code == codes.NotFound
	case context.Canceled:
		return e.Code == codes.Canceled
	case context.DeadlineExceeded:
		return e.Code == codes.DeadlineExceeded
	}
	return false
}

// JobError is a job that ended without a result.
type JobError struct {
	Job *headwaterv1.Job
}

func (e *JobError) Error() string {
	if e.Job.GetState() == headwaterv1.JobState_JOB_STATE_CANCELLED {
		return fmt.Sprintf("job %s was cancelled", e.Job.GetId())
	}
	return fmt.Sprintf("job %s failed: %s", e.Job.GetId(), oneLine(e.Job.GetError()))
}

// Is tells ErrRefused where the job's content was at fault, so that running it again changes nothing.
func (e *JobError) Is(target error) bool {
	return target == ErrRefused && e.Job.GetState() == headwaterv1.JobState_JOB_STATE_FAILED && refusal(codes.Code(e.Job.GetErrorCode()))
}

// SessionError is a call on a session that was refused, or that a worker was lost at. The session is as it was before, or the
// same call again makes it whole.
type SessionError struct {
	Session SessionID // zero where it is about none
	Doing   string    // what was being done
	Problem headwaterv1.SessionProblem
	Holder  string // name of the worker, or the coordinator's address
	Length  int    // for BEHIND, AHEAD and DIFFERENT: positions that the worker has
	Message string // why, in one line

	coordinator bool // the coordinator itself was not reached
}

func (e *SessionError) Error() string {
	switch {
	case e.coordinator:
		return fmt.Sprintf("%s: coordinator %s is unreachable: %s", e.Doing, e.Holder, e.Message)
	case e.Holder != "":
		return fmt.Sprintf("%s: %s: %s", e.Doing, e.Holder, e.Message)
	}
	return fmt.Sprintf("%s: %s", e.Doing, e.Message)
}

// GRPCStatus is what a holder's refusal is among gRPC's codes, for status.Code.
func (e *SessionError) GRPCStatus() *status.Status {
	return session.Errorf(e.Problem, "%s", e.Error()).GRPCStatus()
}

// Is tells the causes above.
func (e *SessionError) Is(target error) bool {
	switch target {
	case ErrUnreachable:
		return e.coordinator
	case ErrNotFound:
		return e.Problem == headwaterv1.SessionProblem_SESSION_PROBLEM_UNKNOWN
	case ErrLost:
		return e.Problem == headwaterv1.SessionProblem_SESSION_PROBLEM_LOST
	case ErrTakenOver:
		return e.Problem == headwaterv1.SessionProblem_SESSION_PROBLEM_STALE_EPOCH
	case ErrOverBudget:
		return e.Problem == headwaterv1.SessionProblem_SESSION_PROBLEM_OVER_BUDGET
	case ErrRefused:
		return e.Problem != headwaterv1.SessionProblem_SESSION_PROBLEM_LOST && e.Problem != headwaterv1.SessionProblem_SESSION_PROBLEM_BUSY
	}
	return false
}

// sessionError makes an error of a call on a session into a *SessionError where a holder refused it, and else wraps it.
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
		lost := why.GetProblem() == headwaterv1.SessionProblem_SESSION_PROBLEM_LOST || why.GetProblem() == headwaterv1.SessionProblem_SESSION_PROBLEM_BUSY
		return &SessionError{
			Session: id, Doing: doing, Problem: why.GetProblem(), Holder: why.GetHolder(), Length: int(why.GetLength()), Message: reason(why.GetMessage()),
			coordinator: lost && why.GetHolder() == c.address,
		}
	}
	if s, ok := status.FromError(err); ok && s.Code() != codes.Unknown {
		return c.wrap(doing, err)
	}
	return fmt.Errorf("%s: %w", doing, err)
}

// endedByClose tells whether a call failed because the client was closed, before it or under it.
func (c *Client) endedByClose(err error) bool {
	if errors.Is(err, rpc.ErrClosed) {
		return true
	}
	if !c.closed.Load() {
		return false
	}
	if e, ok := session.FromError(err); ok {
		return e.Problem() == headwaterv1.SessionProblem_SESSION_PROBLEM_LOST || e.Problem() == headwaterv1.SessionProblem_SESSION_PROBLEM_BUSY
	}
	code := status.Code(err)
	return errors.Is(err, context.Canceled) || code == codes.Canceled || code == codes.Unavailable
}

// refusal tells whether a code blames the request and not the state of things.
func refusal(code codes.Code) bool {
	switch code {
	case codes.InvalidArgument, codes.FailedPrecondition, codes.ResourceExhausted, codes.AlreadyExists, codes.NotFound,
		codes.OutOfRange, codes.PermissionDenied, codes.Unauthenticated, codes.Unimplemented:
		return true
	}
	return false
}

// wrap makes an error of a call into an *Error; nil stays nil.
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
	// What is being done ends with the file, which the coordinator names as well.
	if file, rest, ok := strings.Cut(message, ": "); ok && strings.HasSuffix(doing, " "+file) {
		message = rest
	}
	return &Error{Address: c.address, Doing: doing, Code: s.Code(), Message: message}
}

// wrapAnswer is wrap for an error that came in the place of a call's first answer: a coordinator that gave it sent its
// header before.
func (c *Client) wrapAnswer(doing string, err error, header metadata.MD) error {
	err = c.wrap(doing, err)
	var e *Error
	if errors.As(err, &e) {
		e.Answered = len(header.Get(rpc.MetadataKey)) > 0
	}
	return err
}

// firstError is wrapAnswer for a stream.
func (c *Client) firstError(doing string, err error, stream grpc.ClientStream) error {
	// Where there is no header the error says why.
	header, _ := stream.Header()
	return c.wrapAnswer(doing, unexpectedEnd(err), header)
}

// throughProxy says that a connection that failed went through a proxy.
func (c *Client) throughProxy(code codes.Code, message string) string {
	if c.proxy == "" || code != codes.Unavailable {
		return message
	}
	return fmt.Sprintf("through the proxy %s: %s", c.proxy, message)
}

// dialError is gRPC's wrapping of an error of dialing that a coordinator of before had with a worker.
var dialError = regexp.MustCompile(`(code = \w+ desc = )?(connection error: )+desc = "transport: Error while dialing: ([^"]*)"`)

// reason leaves of gRPC's wrapping of a dial error what a person can act on, and keeps who dialed whom.
func reason(message string) string {
	return oneLine(dialError.ReplaceAllString(message, "$3"))
}

func oneLine(s string) string { return strings.Join(strings.Fields(s), " ") }
