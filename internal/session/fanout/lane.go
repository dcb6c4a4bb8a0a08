package fanout

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"headwater.example/internal/rpc"
	"headwater.example/internal/session"
)

const (
	// inFlight bounds the unanswered steps of a stream; further steps wait.
	inFlight = 256
	// plainStreams is how many plain streams a lane has to one holder at most.
	plainStreams = 8
	// directBytes is how much of unanswered steps a socket takes at once, whether or not the other end reads.
	directBytes = 64 << 10
)

// Lane is one client's lane: a stream to each holder that it has steps for, opened at the first of them. To a holder on this
// machine they are plain streams (docs/wire.md), one for each session that has steps in flight: its holder reads no further on
// one while it does a short step. Safe for concurrent use; steps of a session that are started one after the other reach each
// holder in that order.
type Lane struct {
	id    session.LaneID
	conns *Conns
	ctx   context.Context // ends with Close
	end   context.CancelFunc
	tasks sync.WaitGroup
	calls sync.Pool // *Call

	mu      sync.Mutex
	streams map[rpc.Peer][]*stream
	full    map[rpc.Peer]bool // who has no room for a further stream
	closed  bool
}

// NewLane makes a lane. Its streams end with Close.
func NewLane(id session.LaneID, conns *Conns) *Lane {
	return NewLaneFor(context.Background(), id, conns)
}

// NewLaneFor makes a lane for whom a call is made, whose context it is. It does not end with the context.
func NewLaneFor(of context.Context, id session.LaneID, conns *Conns) *Lane {
	ctx, cancel := context.WithCancel(context.WithoutCancel(of))
	l := &Lane{id: id, conns: conns, ctx: ctx, end: cancel, streams: map[rpc.Peer][]*stream{}, full: map[rpc.Peer]bool{}}
	l.calls.New = func() any { return &Call{lane: l, done: make(chan struct{}, 1), news: make(chan struct{}, 1)} }
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

// stream returns the stream to a holder for the steps of a session, a new one where there is none that lives.
func (l *Lane) stream(o *Holder, session [16]byte) (*stream, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return nil, rpc.ErrClosed
	}
	streams := l.streams[o.peer()]
	if s := choose(streams, session, l.full[o.peer()]); s != nil {
		return s, nil
	}
	conn, err := l.conns.Use(o.peer())
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancelCause(l.ctx)
	s := &stream{
		ctx: ctx, fail: cancel, queue: make(chan *callPart, inFlight), room: make(chan struct{}, inFlight),
		pending: map[uint64]*callPart{}, sessions: map[[16]byte]int{}, more: len(streams) > 0,
	}
	l.streams[o.peer()] = append(streams, s)
	l.tasks.Go(func() {
		s.run(conn, o, l)
		l.mu.Lock()
		defer l.mu.Unlock()
		if errors.As(context.Cause(ctx), new(fullError)) {
			l.full[o.peer()] = true
		}
		left := slices.DeleteFunc(l.streams[o.peer()], func(other *stream) bool { return other == s })
		if l.streams[o.peer()] = left; len(left) == 0 {
			delete(l.streams, o.peer())
		}
	})
	return s, nil
}

// choose returns the stream for the next step of a session: the one that has some of it already, so that they stay in order, or
// else one that has none, or else the one that has the fewest. It is nil if a new one is to be made.
func choose(streams []*stream, session [16]byte, full bool) *stream {
	var best *stream
	least, living, plain := 0, 0, true
	for _, s := range streams {
		if s.ctx.Err() != nil {
			continue
		}
		s.mu.Lock()
		own, n := s.sessions[session], len(s.pending)
		plain = plain && s.wire != nil
		s.mu.Unlock()
		if own > 0 {
			return s
		}
		if living++; best == nil || n < least {
			best, least = s, n
		}
	}
	if least > 0 && plain && living < plainStreams && !full {
		return nil
	}
	return best
}

// stream is a stream to one holder, with the goroutine that sends on it and the one that receives.
type stream struct {
	ctx   context.Context // ends with the stream, its cause says why
	fail  context.CancelCauseFunc
	queue chan *callPart
	room  chan struct{} // holds one element for each step that has no answer yet
	more  bool          // there was another when it was made

	sending sync.Mutex // one sender at a time

	mu       sync.Mutex // guards what follows
	next     uint64
	pending  map[uint64]*callPart // by id
	sessions map[[16]byte]int     // how many of these are of each session
	bytes    int                  // of these
	unsent   int                  // of these
	wire     *session.Stream      // once it is open, if it is plain; nil is one of gRPC
}

// add queues a part, or sends it where that takes no time; it waits for room. call.finished is then called exactly twice, once for
// the send and once for the answer, even if the stream fails.
func (s *stream) add(ctx context.Context, p *callPart) error {
	select {
	case s.room <- struct{}{}:
	default:
		if err := s.awaitRoom(ctx, p); err != nil {
			return err
		}
		p.sent = p.call.lane.conns.now()
	}
	return s.put(p)
}

// errNoRoom is the error of a part that finds no room.
var errNoRoom = errors.New("no room for another step")

// addNow is add for a part that does not wait for room.
func (s *stream) addNow(p *callPart) error {
	select {
	case s.room <- struct{}{}:
		return s.put(p)
	default:
		return errNoRoom
	}
}

// put queues or sends a part that has room.
func (s *stream) put(p *callPart) error {
	wire, err := s.register(p)
	if err != nil {
		return err
	}
	if wire != nil {
		defer s.sending.Unlock()
		s.guard(p.call.lane.conns.Log, "sending to a holder", func() { _ = s.sendPart(wire, p) }) // Recv says why it failed
	}
	return nil
}

// register notes a part that is to be sent and queues it. If the caller is to send it, it returns the stream and holds sending.
func (s *stream) register(p *callPart) (*session.Stream, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ctx.Err() != nil {
		return nil, context.Cause(s.ctx)
	}
	p.begun()
	s.next++
	p.request.ID = s.next
	s.pending[s.next] = p
	s.sessions[p.request.Step.Session]++
	p.bytes = p.request.Bytes()
	s.bytes += p.bytes
	s.unsent++
	if s.wire != nil && s.unsent == 1 && s.bytes <= directBytes {
		s.sending.Lock() // which nobody has
		return s.wire, nil
	}
	s.queue <- p // has room for all that are pending
	return nil, nil
}

// forget ends that a part is pending, and returns it; nil if it is not. The lock is held.
func (s *stream) forget(id uint64) *callPart {
	p := s.pending[id]
	if p == nil {
		return nil
	}
	delete(s.pending, id)
	s.bytes -= p.bytes
	of := p.request.Step.Session
	if s.sessions[of]--; s.sessions[of] == 0 {
		delete(s.sessions, of)
	}
	return p
}

// brokenError is the error of a stream that ended after it was opened.
type brokenError struct{ error }

func (e brokenError) Unwrap() error { return e.error }

// fullError is the error of a stream that its holder has no room for, beside another that it has.
type fullError struct{ error }

func (e fullError) Unwrap() error { return e.error }

// faultError is the error of a stream that ended by a fault of this side, which a new stream would have as well.
type faultError struct{ error }

func (e faultError) Unwrap() error { return e.error }

// run opens the stream, sends and receives until it ends, and fails what is pending then.
func (s *stream) run(conn *rpc.Conn, o *Holder, l *Lane) {
	defer conn.Release()
	defer s.finish()
	wire, err := s.open(conn, o, l)
	if err != nil {
		s.fail(err)
		return
	}
	guard := func(what string, f func()) { s.guard(l.conns.Log, what+" holder "+o.Name, f) }
	var sender sync.WaitGroup
	defer sender.Wait()
	sender.Go(func() { guard("sending to", func() { s.send(wire) }) })
	guard("reading the answers of", func() { s.receive(wire) })
}

// open opens the stream.
func (s *stream) open(conn *rpc.Conn, o *Holder, l *Lane) (*session.Stream, error) {
	wire, plain, err := l.conns.openLane(s.ctx, conn, o, l.id, func() error { return s.quiet(conn) })
	if plain {
		s.mu.Lock()
		s.wire = wire
		s.mu.Unlock()
	}
	return wire, err
}

// openLane opens a lane to a holder, whose connection is conn: a plain one by its socket on this machine if connections are plain text as
// well, a plain one within TLS if it offers that, else one of gRPC. Quiet is that of session.OpenLocal.
func (c *Conns) openLane(ctx context.Context, conn *rpc.Conn, o *Holder, id session.LaneID, quiet func() error) (_ *session.Stream, plain bool, _ error) {
	if c.Plain() {
		wire, err := session.OpenLocal(ctx, o.Boot, id, quiet)
		if !errors.Is(err, session.ErrNotLocal) {
			return wire, err == nil, err
		}
	} else {
		wire, err := session.OpenSecured(ctx, c.Conns, o.peer(), o.Boot, id, quiet)
		if !errors.Is(err, rpc.ErrNoLane) {
			return wire, err == nil, err
		}
	}
	wire, err := session.Open(ctx, conn, id)
	return wire, false, err
}

// quiet asks whether a holder is there that has not answered any of the pending steps for long. What HTTP/2 asks by itself, a plain
// stream asks by the holder's connection of gRPC.
func (s *stream) quiet(conn *rpc.Conn) error {
	s.mu.Lock()
	waits := len(s.pending) > 0
	s.mu.Unlock()
	if !waits {
		return nil
	}
	return conn.Alive(s.ctx)
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
	for answers := 0; ; answers++ {
		err := wire.Recv(response)
		if err == nil {
			response, err = s.answered(response)
		}
		if s.more && answers == 0 && status.Code(err) == codes.ResourceExhausted {
			err = fullError{status.Error(codes.Unavailable, status.Convert(err).Message())}
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
			if s.sendNext(wire, p) != nil {
				return // Recv says why
			}
		case <-s.ctx.Done():
			return
		}
	}
}

func (s *stream) sendNext(wire *session.Stream, p *callPart) error {
	s.sending.Lock()
	defer s.sending.Unlock()
	return s.sendPart(wire, p)
}

// sendPart sends a part. The caller holds sending; nothing that takes the lock comes after the part is sent.
func (s *stream) sendPart(wire *session.Stream, p *callPart) error {
	defer p.finished()
	err := wire.Send(p.request)
	if err != nil && s.refused(p, err) {
		err = nil
	}
	s.mu.Lock()
	s.unsent--
	s.mu.Unlock()
	return err
}

// answered gives a response to its waiter, and returns an empty one for the next.
func (s *stream) answered(r *session.Response) (*session.Response, error) {
	s.mu.Lock()
	p := s.forget(r.ID)
	s.mu.Unlock()
	if p == nil {
		return r, fmt.Errorf("an answer to step %d, which is not open", r.ID)
	}
	<-s.room
	p.response, r = r, p.response
	if p.answered = true; p.end != nil {
		p.at = time.Now()
	}
	p.ended()
	p.finished()
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
	pending := s.forget(p.request.ID) != nil
	s.mu.Unlock()
	if pending { // else the stream has ended meanwhile
		<-s.room
		p.err = err
		p.ended()
		p.finished()
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
		p.finished()
	}
	for _, p := range s.pending {
		p.err = context.Cause(s.ctx)
		p.ended()
		p.finished()
	}
	clear(s.pending)
}
