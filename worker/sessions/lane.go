package sessions

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"sync"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"headwater.example/internal/kvcache"
	"headwater.example/internal/observe"
	"headwater.example/internal/rpc"
	"headwater.example/internal/session"
)

const (
	// laneSteps bounds the steps of a lane that are in flight, and laneBytes their payloads, though a single step may have more. A
	// lane that is at a bound is not read until it has less.
	laneSteps = 256
	laneBytes = 64 << 20
)

// served is one lane. Its goroutines take turns: one receives a step, passes the turn to another, and does the step and
// answers it itself, so that no step waits for a goroutine to be woken. There are as many as steps have been in flight at
// once. All end with the lane.
type served struct {
	s      *Service
	stream *session.ServerStream
	ctx    context.Context
	turn   chan struct{} // one element: the right to receive
	closed chan struct{} // closed when the lane has ended
	ended  chan error    // one element: why no more is received
	of     *standing     // its tenant's

	send sync.Mutex // one sender at a time

	mu      sync.Mutex // guards what follows
	workers int
	running int   // steps in flight
	bytes   int64 // their payloads
	owed    bool  // the turn is passed when there is room for more bytes
	closing bool
	quiet   chan struct{}               // closed when closing and nothing is in flight
	last    map[kvcache.SessionID]*task // the newest step in flight of each session
}

// task is a goroutine's step, from its arrival until it is answered.
type task struct {
	request  session.Request
	response session.Response
	step     step
	arrived  time.Time
	queued   int64         // query tokens that it is counted with, -1 once it is not
	of       *standing     // with which they are counted
	tooMany  bool          // more of the tenant's wait than may
	behind   bool          // another step of its session comes first
	kept     bool          // the turn was not passed
	start    chan struct{} // one element: that step is done
	next     *task
}

// Lane does the steps of a lane until it ends; see the protocol.
func (s *Service) Lane(stream *session.ServerStream) error {
	if err := s.m.Begin(2); err != nil { // the lane and its first goroutine
		return err
	}
	defer s.m.End()
	of, err := s.standings.enter(s.m.Name, rpc.CallerOf(stream.Context()).Tenant)
	if err != nil {
		s.m.End()
		return err
	}
	defer s.standings.leave(of)
	defer s.m.Store.OpenLane(kvcache.LaneID(stream.ID()))()
	began := time.Now()
	l := &served{
		s:       s,
		stream:  stream,
		ctx:     stream.Context(),
		turn:    make(chan struct{}, 1),
		closed:  make(chan struct{}),
		ended:   make(chan error, 1),
		workers: 1,
		quiet:   make(chan struct{}),
		of:      of,
		last:    map[kvcache.SessionID]*task{},
	}
	l.turn <- struct{}{}
	go l.serve()
	select {
	case err = <-l.ended:
	case <-l.ctx.Done():
		if err = context.Cause(l.ctx); status.Code(err) == codes.Unknown {
			err = status.FromContextError(err).Err()
		} // else the transport has said what the end is
	case <-s.m.Stopping():
		err = status.Error(codes.Unavailable, s.m.StoppingText())
	}
	// Accepted steps are answered, or given up if the client is gone.
	l.close()
	<-l.quiet
	close(l.closed)
	if errors.Is(err, io.EOF) {
		err = nil
	}
	level := slog.LevelInfo
	if code := status.Code(err); code != codes.OK && code != codes.Canceled && code != codes.Unavailable {
		level = slog.LevelWarn
	}
	s.m.Log.LogAttrs(context.WithoutCancel(l.ctx), level, "lane ended",
		slog.String("lane", stream.ID().String()), slog.Duration("took", time.Since(began)), slog.String("code", status.Code(err).String()), slog.Any("error", err))
	return err
}

// serve does steps until the lane has ended. A panic ends the lane, and nothing else.
func (l *served) serve() {
	defer l.s.m.End()
	if err := rpc.Guard(l.s.m.Log, "reading a lane", l.work); err != nil {
		l.end(err)
	}
}

// end ends the lane with an error, if it is the first.
func (l *served) end(err error) {
	select {
	case l.ended <- err:
	default:
	}
}

// work does one step after the other. A server can not interrupt Recv but by returning from the call, so who receives
// outlives it by a moment; it holds nothing that is counted, and Drain waits for it.
func (l *served) work() error {
	t := &task{start: make(chan struct{}, 1)}
	for {
		if !t.kept {
			select {
			case <-l.turn:
			case <-l.closed:
				return nil
			}
		}
		if err := l.stream.Recv(&t.request); err != nil {
			return err
		}
		if !l.accept(t) {
			return nil
		}
		l.do(t)
		l.finish(t)
	}
}

// close makes the lane accept no more steps.
func (l *served) close() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.closing = true
	if l.running == 0 {
		close(l.quiet)
	}
}

// accept accepts a step and passes the turn; it keeps it during a short step behind which nothing has come, since to wake
// another goroutine takes longer then than what it might receive would wait. It returns false if the lane was closed meanwhile.
func (l *served) accept(t *task) bool {
	t.arrived = time.Now()
	t.queued = int64(t.request.Step.Attend)
	t.kept = t.queued <= foregroundTokens && !l.stream.More()
	session := kvcache.SessionID(t.request.Step.Session)
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closing {
		t.request.Payload.Free()
		t.request.Payload = nil
		return false
	}
	before := l.last[session]
	if t.behind = before != nil; t.behind {
		before.next = t
	}
	l.last[session] = t
	l.s.queuedSteps.Add(1)
	l.s.queuedTokens.Add(t.queued)
	t.of = l.of
	t.tooMany = l.s.standings.queue(l.of, t.queued)
	l.running++
	l.bytes += int64(len(t.request.Payload.Bytes()))
	if l.owed = l.bytes > laneBytes && !t.kept; !l.owed && !t.kept {
		l.pass()
	}
	return true
}

// pass passes the turn on, to a new goroutine if all are busy and more are allowed. The caller holds the lock.
func (l *served) pass() {
	l.turn <- struct{}{}
	if l.workers == l.running && l.workers < laneSteps {
		l.workers++
		l.s.m.Join()
		go l.serve()
	}
}

// do does a step in its turn and answers it.
func (l *served) do(t *task) {
	if t.behind {
		<-t.start
	}
	r := &t.response
	r.Reset()
	r.ID = t.request.ID
	err := l.ctx.Err()
	if err == nil {
		err = rpc.Guard(l.s.m.Log, "a step of a lane", func() error { return l.s.do(l.ctx, l.stream.ID(), t) })
	}
	t.dequeue(l.s)
	freed := int64(len(t.request.Payload.Bytes()))
	t.request.Payload.Free()
	t.request.Payload = nil
	// The session's next step begins once this one may be sent, so that answers of a session come in the order of its steps.
	l.send.Lock()
	l.hand(t, freed)
	if refused, ok := session.FromError(err); ok {
		r.Result, err = session.Result{Hashes: r.Result.Hashes[:0], Err: refused}, nil
	}
	switch {
	case err == nil:
		_ = l.stream.Send(r) // An error is the end of the stream, which the lane learns by itself.
	case status.Code(err) == codes.Internal:
		l.end(err)
	}
	l.send.Unlock()
	l.s.count(t, err)
	r.Payload.Free() // what was not sent
	r.Payload = nil
}

// count counts a step that was answered, or whose lane has ended.
func (s *Service) count(t *task, err error) {
	o, m, r := s.m.Observe, &t.request.Step, &t.response.Result
	if m.Trace != [24]byte{} {
		failed := err
		if failed == nil && r.Err != nil {
			failed = r.Err
		}
		s.m.Tracer.Worked(m.Trace, &observe.StepFacts{Session: m.Session, Layer: m.Layer, Appended: m.Append, Attend: m.Attend},
			t.arrived, time.Duration(r.QueueNanos), time.Duration(r.ComputeNanos), failed)
	}
	if o == nil {
		return
	}
	switch {
	case err != nil:
		o.Refused(observe.ReasonOf(""))
	case r.Err != nil:
		o.Refused(observe.ReasonOf(session.NameOf(r.Err.Reason())))
	default:
		o.Step(time.Since(t.arrived), time.Duration(r.QueueNanos), int(m.Append), int(m.Attend))
	}
}

// hand lets the session's next step begin, and counts a payload that is gone.
func (l *served) hand(t *task, freed int64) {
	session := kvcache.SessionID(t.request.Step.Session)
	l.mu.Lock()
	defer l.mu.Unlock()
	if next := t.next; next != nil {
		t.next = nil
		next.start <- struct{}{}
	} else {
		delete(l.last, session)
	}
	l.bytes -= freed
	if l.owed && l.bytes <= laneBytes {
		l.owed = false
		l.pass()
	}
}

// finish counts a step that was answered.
func (l *served) finish(t *task) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.running--
	if l.closing && l.running == 0 {
		close(l.quiet)
	}
}

// dequeue counts that a step no longer waits.
func (t *task) dequeue(s *Service) {
	if t.queued >= 0 {
		s.queuedSteps.Add(-1)
		s.queuedTokens.Add(-t.queued)
		s.standings.dequeue(t.of, t.queued)
		t.queued = -1
	}
}
