package rpc

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/grpc/codes"
	healthv1 "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/status"
)

const (
	// SlowAfter is how long a call waits for an answer until it watches its peer.
	SlowAfter = 200 * time.Millisecond
	// pulseEvery is the pause between two questions to a peer that is watched, and pulseMissed how many of these pauses it may
	// let pass before it is silent. Pauses are counted and not time: if this process has stood still itself, only one is due.
	pulseEvery  = 100 * time.Millisecond
	pulseMissed = 8
	// pulseKept is how long a peer that is silent is asked further after the last one who wanted to know.
	pulseKept = time.Minute
)

// pulses say which peers hang. A peer is asked only while it is watched or is silent, with a call of its own on the
// connection that all calls to it share: a server answers it whatever else it computes, and however many messages on
// other streams it leaves unread.
type pulses struct {
	ctx   context.Context // ends with the connections
	end   context.CancelFunc
	tasks sync.WaitGroup

	silent atomic.Int64 // peers; it changes under mu

	mu      sync.Mutex // guards what follows
	of      map[Peer]*pulse
	changed chan struct{} // closed when a peer falls silent or answers again
}

// pulse is that of one peer.
type pulse struct {
	peer   Peer
	users  int
	silent bool
	wanted time.Time // when somebody last asked whether it is silent
}

func newPulses() *pulses {
	p := &pulses{of: map[Peer]*pulse{}, changed: make(chan struct{})}
	p.ctx, p.end = context.WithCancel(context.Background())
	return p
}

// Watch asks a peer from now on whether it is there, until release is called. A peer that accepts nothing, or
// whose connection breaks, is not silent: calls to it fail by themselves.
func (c *Conns) Watch(peer Peer) (release func()) {
	p := c.pulses
	p.mu.Lock()
	defer p.mu.Unlock()
	one := p.of[peer]
	if one == nil {
		if p.ctx.Err() != nil {
			return func() {}
		}
		one = &pulse{peer: peer}
		p.of[peer] = one
		p.tasks.Go(func() { c.ask(one) })
	}
	one.users++
	return sync.OnceFunc(func() {
		p.mu.Lock()
		defer p.mu.Unlock()
		one.users--
		one.wanted = time.Now()
	})
}

// Silent reports whether a peer accepts what is sent to it and answers nothing. That is known only of peers that
// were watched.
func (c *Conns) Silent(peer Peer) bool {
	p := c.pulses
	if p.silent.Load() == 0 {
		return false
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	one := p.of[peer]
	if one == nil || !one.silent {
		return false
	}
	one.wanted = time.Now()
	return true
}

// Pulse returns a channel that is closed when a peer falls silent or answers again. Get it before Silent is asked.
func (c *Conns) Pulse() <-chan struct{} {
	c.pulses.mu.Lock()
	defer c.pulses.mu.Unlock()
	return c.pulses.changed
}

// Heed returns a context for calls to some peers, which ends once one of them is silent and may reports that the calls may end for
// it. The caller calls stop when the calls have ended: it returns that peer, or the zero Peer.
func (c *Conns) Heed(ctx context.Context, may func() bool, peers ...Peer) (_ context.Context, stop func() Peer) {
	ctx, cancel := context.WithCancel(ctx)
	silent, watched := Peer{}, make(chan struct{})
	go func() {
		defer close(watched)
		if silent = c.fallsSilent(ctx, may, peers); silent != (Peer{}) {
			cancel()
		}
	}()
	return ctx, func() Peer {
		cancel()
		<-watched
		return silent
	}
}

// fallsSilent waits until one of the peers is silent and may is true, and returns it; if ctx ends before, the zero Peer.
func (c *Conns) fallsSilent(ctx context.Context, may func() bool, peers []Peer) Peer {
	hangs := func() Peer {
		for _, p := range peers {
			if c.Silent(p) && may() {
				return p
			}
		}
		return Peer{}
	}
	if p := hangs(); p != (Peer{}) {
		return p
	}
	slow := time.NewTimer(SlowAfter)
	defer slow.Stop()
	select {
	case <-slow.C:
	case <-ctx.Done():
		return Peer{}
	}
	for _, p := range peers {
		defer c.Watch(p)()
	}
	for {
		changed := c.Pulse()
		if p := hangs(); p != (Peer{}) {
			return p
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return Peer{}
		}
	}
}

// Alive asks the peer of a connection whether it is there, on behalf of a call that has waited for keepaliveTime by another way. It is
// an error if it accepts what is sent to it and answers nothing.
func (c *Conn) Alive(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, keepaliveTimeout)
	defer cancel()
	_, err := healthv1.NewHealthClient(c).Check(ctx, &healthv1.HealthCheckRequest{})
	if IsMute(err) || errors.Is(ctx.Err(), context.DeadlineExceeded) {
		return status.Error(codes.Unavailable, unanswered)
	}
	return nil
}

// ErrSilent says why a call to a silent peer was ended.
var ErrSilent = status.Error(codes.Unavailable, "it does not answer: it hangs, or the network to it is cut")

// ask asks one peer until nobody wants to know any more.
func (c *Conns) ask(one *pulse) {
	conn, err := c.Use(one.peer)
	if err != nil {
		c.pulses.finish(one, true)
		return
	}
	defer conn.Release()
	var asking sync.WaitGroup
	defer asking.Wait()
	ctx, cancel := context.WithCancel(c.pulses.ctx)
	defer cancel()
	tick := time.NewTicker(pulseEvery)
	defer tick.Stop()
	health, answers := healthv1.NewHealthClient(conn), make(chan bool, 1)
	for missed, asked := 0, false; ; {
		if !asked {
			asked = true
			asking.Go(func() {
				_, err := health.Check(ctx, &healthv1.HealthCheckRequest{})
				answers <- status.Code(err) != codes.Unavailable
			})
		}
		select {
		case answered := <-answers:
			asked = false
			if answered {
				missed = 0
				c.pulses.tell(one, false)
			}
			select { // no sooner than the next tick
			case <-tick.C:
			case <-ctx.Done():
			}
		case <-tick.C:
			if missed++; missed == pulseMissed {
				c.pulses.tell(one, true)
			}
		case <-ctx.Done():
		}
		if c.pulses.finish(one, ctx.Err() != nil) {
			return
		}
	}
}

// tell notes what has become of a peer.
func (p *pulses) tell(one *pulse, silent bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if one.silent == silent {
		return
	}
	one.silent = silent
	if silent {
		p.silent.Add(1)
	} else {
		p.silent.Add(-1)
	}
	close(p.changed)
	p.changed = make(chan struct{})
}

// finish forgets a peer that nobody wants to know of any more, or must not be asked, and reports whether it has.
func (p *pulses) finish(one *pulse, must bool) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !must && (one.users > 0 || one.silent && time.Since(one.wanted) < pulseKept) {
		return false
	}
	delete(p.of, one.peer)
	if one.silent {
		p.silent.Add(-1)
	}
	return true
}

// close ends all questions.
func (p *pulses) close() {
	p.mu.Lock()
	p.end() // no question begins after it
	p.mu.Unlock()
	p.tasks.Wait()
}
