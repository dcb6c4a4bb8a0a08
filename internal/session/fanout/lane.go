package fanout

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"headwater.example/internal/rpc"
	"headwater.example/internal/session"
)

// inFlight bounds a lane's unanswered steps at one holder; further steps wait.
const inFlight = 256

// Lane is one client's lane: a stream to each holder that it has steps for, opened at the first of them. Safe for
// concurrent use; steps that are started one after the other reach each holder in that order.
type Lane struct {
	id    session.LaneID
	conns *Conns
	ctx   context.Context // ends with Close
	end   context.CancelFunc
	tasks sync.WaitGroup
	calls sync.Pool // *Call

	mu      sync.Mutex
	streams map[rpc.Peer]*stream
	closed  bool
}

// NewLane makes a lane. Its streams end with Close.
func NewLane(id session.LaneID, conns *Conns) *Lane {
	return NewLaneFor(context.Background(), id, conns)
}

// NewLaneFor makes a lane for whom a call is made, whose context it is. It does not end with the context.
func NewLaneFor(of context.Context, id session.LaneID, conns *Conns) *Lane {
	ctx, cancel := context.WithCancel(context.WithoutCancel(of))
	l := &Lane{id: id, conns: conns, ctx: ctx, end: cancel, streams: map[rpc.Peer]*stream{}}
	l.calls.New = func() any { return &Call{lane: l, done: make(chan struct{}, 1)} }
	return l
}

// ID is the lane's id.
func (l *Lane) ID() session.LaneID { return l.id }

// Close ends the streams and waits for what runs on them. Steps that wait for answers fail.
func (l *Lane) Close() {
	l.mu.Lock()
	l.closed = true
	l.mu.Unlock()
	l.end()
	l.tasks.Wait()
}

// stream returns the stream to a holder, a new one where there is none that lives.
func (l *Lane) stream(o *Holder) (*stream, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return nil, rpc.ErrClosed
	}
	if s, ok := l.streams[o.peer()]; ok && s.ctx.Err() == nil {
		return s, nil
	}
	conn, err := l.conns.Use(o.peer())
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancelCause(l.ctx)
	s := &stream{ctx: ctx, fail: cancel, queue: make(chan *callPart, inFlight), room: make(chan struct{}, inFlight), pending: map[uint64]*callPart{}}
	l.streams[o.peer()] = s
	l.tasks.Go(func() {
		s.run(conn, l.id, func(what string, f func()) {
			s.guard(l.conns.Log, what+" holder "+o.Name, f)
		})
		l.mu.Lock()
		defer l.mu.Unlock()
		if l.streams[o.peer()] == s {
			delete(l.streams, o.peer())
		}
	})
	return s, nil
}

// stream is the stream to one holder, with the goroutine that sends on it and the one that receives.
type stream struct {
	ctx   context.Context // ends with the stream, its cause says why
	fail  context.CancelCauseFunc
	queue chan *callPart
	room  chan struct{} // holds one element for each step that has no answer yet

	mu      sync.Mutex
	next    uint64
	pending map[uint64]*callPart // by id
}

// add queues a part; it waits for room. call.finished is then called exactly twice, once for the send and once for the
// answer, even if the stream fails.
func (s *stream) add(ctx context.Context, p *callPart) error {
	select {
	case s.room <- struct{}{}:
	default:
		if err := s.awaitRoom(ctx, p); err != nil {
			return err
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ctx.Err() != nil {
		return context.Cause(s.ctx)
	}
	s.next++
	p.request.ID = s.next
	s.pending[s.next] = p
	s.queue <- p // has room for all that are pending
	return nil
}

// brokenError is the error of a stream that ended after it was opened.
type brokenError struct{ error }

func (e brokenError) Unwrap() error { return e.error }

// faultError is the error of a stream that ended by a fault of this side, which a new stream would have as well.
type faultError struct{ error }

func (e faultError) Unwrap() error { return e.error }

// run opens the stream, sends and receives until it ends, and fails what is pending then.
func (s *stream) run(conn *rpc.Conn, id session.LaneID, guard func(what string, f func())) {
	defer conn.Release()
	defer s.finish()
	wire, err := session.Open(s.ctx, conn, id)
	if err != nil {
		s.fail(err)
		return
	}
	var sender sync.WaitGroup
	defer sender.Wait()
	sender.Go(func() { guard("sending to", func() { s.send(wire) }) })
	guard("reading the answers of", func() { s.receive(wire) })
}

// guard calls f in a goroutine of the stream. A panic of it fails the stream, and nothing else.
func (s *stream) guard(log *slog.Logger, what string, f func()) {
	err := rpc.Guard(log, what, func() error {
		f()
		return nil
	})
	if err != nil {
		s.fail(faultError{err})
	}
}

func (s *stream) receive(wire *session.Stream) {
	response := new(session.Response)
	for {
		err := wire.Recv(response)
		if err == nil {
			response, err = s.answered(response)
		}
		if err != nil {
			s.fail(brokenError{fmt.Errorf("the lane ended: %w", err)})
			return
		}
	}
}

func (s *stream) send(wire *session.Stream) {
	for {
		select {
		case p := <-s.queue:
			if s.sendPart(wire, p) != nil {
				return // Recv says why
			}
		case <-s.ctx.Done():
			return
		}
	}
}

func (s *stream) sendPart(wire *session.Stream, p *callPart) error {
	defer p.call.finished()
	err := wire.Send(p.request)
	if err != nil && s.refused(p, err) {
		return nil
	}
	return err
}

// answered gives a response to its waiter, and returns an empty one for the next.
func (s *stream) answered(r *session.Response) (*session.Response, error) {
	s.mu.Lock()
	p, ok := s.pending[r.ID]
	delete(s.pending, r.ID)
	s.mu.Unlock()
	if !ok {
		return r, fmt.Errorf("an answer to step %d, which is not open", r.ID)
	}
	<-s.room
	p.response, r = r, p.response
	if p.answered = true; p.end != nil {
		p.at = time.Now()
	}
	p.call.finished()
	return r, nil
}

// refused ends a part whose message this side has refused, and reports whether it has. The stream goes on.
func (s *stream) refused(p *callPart, err error) bool {
	var own *session.Error
	if !errors.As(err, &own) {
		return false
	}
	s.refuse(p, own)
	return true
}

// refuse ends a part that was not sent.
func (s *stream) refuse(p *callPart, err error) {
	s.mu.Lock()
	_, ok := s.pending[p.request.ID]
	delete(s.pending, p.request.ID)
	s.mu.Unlock()
	if ok { // else the stream has ended meanwhile
		<-s.room
		p.err = err
		p.call.finished()
	}
}

// finish fails all parts without an answer. Nothing is sent after it.
func (s *stream) finish() {
	s.fail(nil) // ends the context where nothing has failed
	s.mu.Lock()
	defer s.mu.Unlock()
	for len(s.queue) > 0 {
		p := <-s.queue
		p.request.Payload.Free()
		p.request.Payload = nil
		p.call.finished()
	}
	for _, p := range s.pending {
		p.err = context.Cause(s.ctx)
		p.call.finished()
	}
	clear(s.pending)
}
