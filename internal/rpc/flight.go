package rpc

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/netip"
	"slices"
	"sync"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"headwater.example/internal/certs"
	"headwater.example/internal/turns"
)

// FlightConfig bounds what a server has in flight.
type FlightConfig struct {
	// Limit bounds the bytes of messages that are received or wait to be answered, and as many again of answers that are
	// computed or not yet written to the peer. It is at least leastFlight.
	Limit int64
	// Free is how many bytes of each of the two need no reservation, and at most Limit. Reserve and Release take the others
	// from a budget that they share, and give them back; nil is no such budget.
	Free    int64
	Reserve func(n int64) error
	Release func(n int64)
	// Streams bounds the calls that are open, of one tenant half of them; Conns the connections, and PerAddress those from one
	// address. 0 is no bound.
	Streams, Conns, PerAddress int
	// Patience is how long a message or an answer waits for room before it is refused, and twice as long as a peer may
	// go without reading or sending on while others wait; 0 is DefaultPatience.
	Patience time.Duration
	Logger   *slog.Logger // nil is silence
}

const (
	// leastFlight is the least limit: the largest message, with the piece that gRPC reads of it.
	leastFlight = MaxMessageBytes + receivePiece
	// DefaultPatience is the default of FlightConfig.Patience.
	DefaultPatience = 10 * time.Second
	// ownPart is the part of the limit that one call may have in each direction, or one message: so some that do not read take
	// nothing of others.
	ownPart = 12
	// turnBytes is what a tenant is given at each turn of those for whom there is no room.
	turnBytes = 64 << 10
	// closeAfter is how long a call that was ended for its silence has until its connection is closed.
	closeAfter = time.Second
)

// Flight is one budget of bytes for the messages that a server's process has in flight, whatever the call. A message is
// taken before its bytes are read: until there is room its stream is not read, so that HTTP/2 holds back its sender, and no
// other. Its room is given back when its memory is free. An answer is taken before it is computed, and given back when it has
// been written to the peer. What waits is served in the order in which it came, and tenants take turns by the bytes that they
// want. What has waited for Patience is refused by ErrBusy; calls of peers that neither read nor send are ended if others wait. Methods may be called by any goroutine.
type Flight struct {
	cfg     FlightConfig
	origins origins

	mu      sync.Mutex
	lots    [2]lot
	shares  map[*Share]struct{}
	tenants map[string]int // calls that are open, by tenant
	conns   map[*serverConn]struct{}
	refused map[certs.Reason]uint64
	full    bool  // connections are refused
	peak    int64 // the most bytes in flight since Settle
}

// direction is an index of Flight.lots.
type direction int

const (
	inward  direction = iota // messages received
	outward                  // answers
)

// lot is the room for one direction.
type lot struct {
	used     int64
	reserved int64                // of the shared budget
	queue    turns.Queue[*waiter] // by tenant
}

// waiter waits for n bytes.
type waiter struct {
	share  *Share
	n      int64
	queued chan struct{} // closed once it waits for others
	err    error         // before ready is closed
	ready  chan struct{} // closed once it has them, or its call has ended
}

// Errors of a message or an answer for which there is no room.
var (
	// ErrBusy says that others had the room for as long as one waits.
	ErrBusy  = errors.New("messages in flight take all the memory that they may: send it again later")
	errEnded = status.Error(codes.Canceled, "the call has ended")
	// errUnread ends a call whose peer holds back what others need.
	errUnread = status.Error(codes.ResourceExhausted, "the peer neither reads its answers nor sends on, and others need the memory that they take")
)

// RoomError says that there can be no room for a message, whoever else has any.
type RoomError struct {
	Bytes int64
	Err   error // of Reserve; nil if the message exceeds the limit
}

func (e *RoomError) Error() string {
	if e.Err == nil {
		return fmt.Sprintf("%d bytes in flight are more than there may be", e.Bytes)
	}
	return fmt.Sprintf("%d bytes in flight: %v", e.Bytes, e.Err)
}

func (e *RoomError) Unwrap() error { return e.Err }

// NewFlight makes a budget.
func NewFlight(cfg FlightConfig) *Flight {
	cfg.Limit = max(cfg.Limit, leastFlight)
	cfg.Patience = cmp.Or(cfg.Patience, DefaultPatience)
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	if cfg.Reserve == nil {
		cfg.Free = cfg.Limit
	}
	f := &Flight{
		cfg: cfg, origins: origins{most: cfg.PerAddress, open: make(map[netip.Prefix]int)},
		shares: make(map[*Share]struct{}), tenants: make(map[string]int), conns: make(map[*serverConn]struct{}), refused: make(map[certs.Reason]uint64),
	}
	for d := range f.lots {
		f.lots[d].queue.Quantum = turnBytes
	}
	return f
}

// FlightState counts what is in flight.
type FlightState struct {
	Received, Answers int64 // bytes
	Reserved          int64 // bytes of both that are taken from the shared budget
	Peak              int64 // the most bytes of both since Settle
	Waiting           int   // messages and answers that wait for room
	Calls, Conns      int
}

// State returns what is in flight now.
func (f *Flight) State() FlightState {
	f.mu.Lock()
	defer f.mu.Unlock()
	in, out := &f.lots[inward], &f.lots[outward]
	return FlightState{
		Received: in.used, Answers: out.used, Reserved: in.reserved + out.reserved, Peak: f.peak,
		Waiting: in.queue.Len() + out.queue.Len(), Calls: len(f.shares), Conns: len(f.conns),
	}
}

// Count counts what was refused of a peer.
func (f *Flight) Count(reason certs.Reason) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.refused[reason]++
}

// Refused returns how much was refused of peers for a reason, beside what Security.Refused counts.
func (f *Flight) Refused(reason certs.Reason) uint64 {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.refused[reason]
}

// Settle lets the peak be what is in flight now.
func (f *Flight) Settle() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.peak = f.lots[inward].used + f.lots[outward].used
}

// Share is what one call has in flight. A nil Share has no bounds.
type Share struct {
	f      *Flight
	tenant string      // whose call it is; "" is not counted
	conn   *serverConn // nil for a connection that is not counted
	cancel context.CancelCauseFunc

	// The flight's lock guards what follows.
	held    [2]int64
	asked   [2]int64     // of these, what waits in the queues
	own     [2][]*waiter // what waits for the call itself to give back
	partly  bool         // a message is being received
	moved   time.Time    // when the peer last read or sent something of what is held
	ended   bool         // the call has returned
	settled bool         // all was given back; what comes later counts no more
}

type shareKey struct{}

// ShareOf returns the share of the call whose context it is, or nil.
func ShareOf(ctx context.Context) *Share {
	s, _ := ctx.Value(shareKey{}).(*Share)
	return s
}

// tenantPart is the part of the calls that may be open of which one tenant may have all.
const tenantPart = 2

// open begins a call, for a tenant if there are any. The cancel function ends it.
func (f *Flight) open(conn *serverConn, tenant string, cancel context.CancelCauseFunc) (*Share, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.cfg.Streams > 0 && len(f.shares) >= f.cfg.Streams {
		f.refused[certs.ManyCalls]++
		return nil, Full("%d calls are open, the most that are allowed: end one, or use one lane for several sessions", len(f.shares))
	}
	if most := f.cfg.Streams / tenantPart; tenant != "" && most > 0 && f.tenants[tenant] >= most {
		f.refused[certs.ManyCalls]++
		return nil, Full("tenant %s has %d calls open, the most that one may have here: end one, or use one lane for several sessions", tenant, most)
	}
	s := &Share{f: f, conn: conn, tenant: tenant, cancel: cancel, moved: time.Now()}
	f.shares[s] = struct{}{}
	if tenant != "" {
		f.tenants[tenant]++
	}
	if conn != nil {
		conn.shares[s] = struct{}{}
	}
	return s, nil
}

// end ends a call, which receives no more. Answers that are not yet written stay counted until they are, or the connection is
// closed.
func (s *Share) end() {
	f := s.f
	f.mu.Lock()
	defer f.mu.Unlock()
	s.ended = true
	n := s.held[inward]
	s.held[inward] = 0
	for d := range s.own {
		for _, w := range s.own[d] {
			w.err = errEnded
			close(w.ready)
		}
		s.own[d] = nil
	}
	f.give(inward, n) // Of what waits, this call's part is told.
	s.forget()
}

// forget lets go of a call that has ended and holds nothing, or whose connection is closed. The lock is held.
func (s *Share) forget() {
	if !s.ended || s.settled {
		return
	}
	lost := s.conn == nil || s.conn.closed
	if !lost && s.held[outward] > 0 {
		return
	}
	s.settled = true
	n := s.held[outward]
	s.held[outward] = 0
	s.f.give(outward, n)
	delete(s.f.shares, s)
	if s.tenant != "" {
		if s.f.tenants[s.tenant]--; s.f.tenants[s.tenant] == 0 {
			delete(s.f.tenants, s.tenant)
		}
	}
	if s.conn != nil {
		delete(s.conn.shares, s)
		s.conn.idle = time.Now()
	}
}

// TakeAnswer takes n bytes for an answer. It waits while others have the room. The error is ErrBusy, a *RoomError, or the
// context's.
func (s *Share) TakeAnswer(ctx context.Context, n int64) error { return s.take(ctx, outward, n) }

// GiveAnswer gives back n bytes of TakeAnswer.
func (s *Share) GiveAnswer(n int64) { s.give(outward, n) }

func (s *Share) take(ctx context.Context, d direction, n int64) error {
	if s == nil || n <= 0 {
		return nil
	}
	f := s.f
	f.mu.Lock()
	l := &f.lots[d]
	if s.ended {
		f.mu.Unlock()
		return errEnded
	}
	if !s.may(d, n) {
		w := newWaiter(s, n)
		s.own[d] = append(s.own[d], w)
		f.mu.Unlock()
		return f.waitOwn(ctx, d, w)
	}
	if l.queue.Len() == 0 {
		err := f.fit(l, n)
		if err == nil {
			s.hold(d, n)
			f.mu.Unlock()
			return nil
		}
		if n > f.cfg.Limit || f.lots[inward].reserved+f.lots[outward].reserved == 0 && errors.As(err, new(*RoomError)) {
			f.mu.Unlock()
			return err
		}
	}
	w := newWaiter(s, n)
	f.enqueue(d, w)
	f.mu.Unlock()
	return f.wait(ctx, d, w)
}

func newWaiter(s *Share, n int64) *waiter {
	return &waiter{share: s, n: n, queued: make(chan struct{}), ready: make(chan struct{})}
}

// may says whether a call may have n bytes more before it gives others back. The lock is held.
func (s *Share) may(d direction, n int64) bool {
	has := s.held[d] + s.asked[d]
	return len(s.own[d]) == 0 && (has == 0 || has+n <= s.f.cfg.Limit/ownPart)
}

// enqueue lets a waiter wait for others. The lock is held.
func (f *Flight) enqueue(d direction, w *waiter) {
	w.share.asked[d] += w.n
	f.lots[d].queue.Push(w.share.tenant, w, w.n)
	close(w.queued)
}

// promote lets those wait for others who have waited for their own call. The lock is held.
func (s *Share) promote(d direction) {
	for len(s.own[d]) > 0 {
		w := s.own[d][0]
		if has := s.held[d] + s.asked[d]; has > 0 && has+w.n > s.f.cfg.Limit/ownPart {
			return
		}
		s.own[d] = s.own[d][1:]
		s.f.enqueue(d, w)
	}
}

// waitOwn waits until the call has given others back, for as long as the call lasts, and then as wait does.
func (f *Flight) waitOwn(ctx context.Context, d direction, w *waiter) error {
	select {
	case <-w.queued:
		return f.wait(ctx, d, w)
	case <-w.ready:
		return w.err
	case <-ctx.Done():
	}
	f.mu.Lock()
	if i := slices.Index(w.share.own[d], w); i >= 0 {
		w.share.own[d] = slices.Delete(w.share.own[d], i, i+1)
		w.share.promote(d)
		f.serve(d)
		f.mu.Unlock()
		return context.Cause(ctx)
	}
	f.mu.Unlock()
	return f.wait(ctx, d, w)
}

// wait waits until w has what it waits for.
func (f *Flight) wait(ctx context.Context, d direction, w *waiter) error {
	l := &f.lots[d]
	half := time.NewTimer(f.cfg.Patience / 2)
	defer half.Stop()
	over := time.NewTimer(f.cfg.Patience)
	defer over.Stop()
	err := error(ErrBusy)
	for waiting := true; waiting; {
		select {
		case <-w.ready:
			return w.err
		case <-half.C:
			f.relieve()
		case <-over.C:
			waiting = false
		case <-ctx.Done():
			waiting, err = false, context.Cause(ctx)
		}
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if !l.queue.Remove(w.share.tenant, w) { // It has got them meanwhile.
		return w.err
	}
	w.share.asked[d] -= w.n
	w.share.promote(d)
	f.serve(d)
	return err
}

// fit takes n bytes of a lot if they are free. The lock is held.
func (f *Flight) fit(l *lot, n int64) error {
	if n > f.cfg.Limit {
		return &RoomError{Bytes: n}
	}
	if l.used+n > f.cfg.Limit {
		return ErrBusy
	}
	if more := l.used + n - f.cfg.Free - l.reserved; more > 0 {
		if err := f.cfg.Reserve(more); err != nil {
			return &RoomError{Bytes: n, Err: err}
		}
		l.reserved += more
	}
	l.used += n
	f.peak = max(f.peak, f.lots[inward].used+f.lots[outward].used)
	return nil
}

// hold notes that a share has n more bytes. The lock is held.
func (s *Share) hold(d direction, n int64) {
	if s.held[d] == 0 {
		s.moved = time.Now()
	}
	s.held[d] += n
}

func (s *Share) give(d direction, n int64) {
	if s == nil || n <= 0 {
		return
	}
	f := s.f
	f.mu.Lock()
	defer f.mu.Unlock()
	if s.settled || d == inward && s.ended {
		return // It is given back already.
	}
	if n > s.held[d] {
		panic(fmt.Sprintf("rpc: a call gives back %d bytes in flight and has %d", n, s.held[d]))
	}
	s.held[d] -= n
	if d == outward {
		s.moved = time.Now()
	}
	s.promote(d)
	f.give(d, n)
	s.forget()
}

// give gives n bytes back and lets who waits have them. The lock is held.
func (f *Flight) give(d direction, n int64) {
	l := &f.lots[d]
	l.used -= n
	if spare := l.reserved - max(l.used-f.cfg.Free, 0); spare > 0 {
		l.reserved -= spare
		f.cfg.Release(spare)
	}
	f.serve(inward)
	f.serve(outward)
}

// serve serves a queue as far as there is room. The lock is held.
func (f *Flight) serve(d direction) {
	l := &f.lots[d]
	for {
		w, waits := l.queue.Peek()
		if !waits {
			return
		}
		if w.share.ended {
			w.err = errEnded
		} else {
			if f.fit(l, w.n) != nil {
				return
			}
			w.share.hold(d, w.n)
		}
		w.share.asked[d] -= w.n
		l.queue.Pop()
		close(w.ready)
	}
}

// receiving notes that a message is being received, or that a part of it came.
func (s *Share) receiving(partly bool) {
	if s == nil {
		return
	}
	s.f.mu.Lock()
	defer s.f.mu.Unlock()
	s.partly, s.moved = partly, time.Now()
}

// relieve ends calls whose peers have not moved for half of the patience while they hold answers, or a part of a message.
func (f *Flight) relieve() {
	f.mu.Lock()
	defer f.mu.Unlock()
	before := time.Now().Add(-f.cfg.Patience / 2)
	for s := range f.shares {
		if (s.held[outward] == 0 && !s.partly) || s.moved.After(before) {
			continue
		}
		s.moved = time.Now() // It is ended once.
		f.cfg.Logger.Warn("call ended: its peer does not read or send on, and others need the memory", "received_bytes", s.held[inward], "answers_bytes", s.held[outward])
		s.cancel(errUnread)
		if s.conn != nil {
			time.AfterFunc(closeAfter, s.sever)
		}
	}
}

// sever closes the connection of a call that still holds something of others.
func (s *Share) sever() {
	s.f.mu.Lock()
	held := !s.ended || s.held[outward] > 0
	s.f.mu.Unlock()
	if held {
		_ = s.conn.Close() // It is closed either way.
	}
}

// refusal is the status of a message or an answer without room.
func refusal(err error) error {
	var room *RoomError
	switch {
	case errors.Is(err, ErrBusy):
		return Full("%v", err)
	case errors.As(err, &room): // which may never be
		return status.Error(codes.ResourceExhausted, err.Error())
	}
	if errors.Is(err, io.EOF) {
		return err
	}
	if _, ok := status.FromError(err); ok {
		return err
	}
	return status.FromContextError(err).Err()
}
