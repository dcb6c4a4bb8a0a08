package drivers

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	"headwater.example/client"
)

// losses are what was done to processes, and the sessions that were found gone.
type losses struct {
	mu     sync.Mutex
	clock  int
	deaths []death
	books  []*book
	// orphans are sessions with copies that a worker had alone when it was killed, and when that was.
	orphans map[client.SessionID]int
	// doubted, unless nil, is closed once it is known what a worker had alone that may be dying.
	doubted chan struct{}
}

// death is that of a worker. It has ended once its process has.
type death struct {
	worker       string
	began, ended int // 0: it is under way
}

// tick returns the time, which goes on.
func (l *losses) tick() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.clock++
	return l.clock
}

// kill notes the death of a worker, which kill brings about.
func (l *losses) kill(worker string, kill func()) {
	began := l.tick()
	l.mu.Lock()
	at := len(l.deaths)
	l.deaths = append(l.deaths, death{worker: worker, began: began})
	l.mu.Unlock()
	kill()
	ended := l.tick()
	l.mu.Lock()
	defer l.mu.Unlock()
	l.deaths[at].ended = ended
}

// orphan notes sessions that nobody else has as a whole once a worker is killed.
func (l *losses) orphan(ids []client.SessionID) {
	now := l.tick()
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.orphans == nil {
		l.orphans = map[client.SessionID]int{}
	}
	for _, id := range ids {
		l.orphans[id] = now
	}
}

// doubt calls do, in which a worker dies at a moment that nobody knows. Until do returns, with all orphans noted, nobody says what was
// orphaned.
func (l *losses) doubt(do func()) {
	known := make(chan struct{})
	set := func(c chan struct{}) {
		l.mu.Lock()
		defer l.mu.Unlock()
		l.doubted = c
	}
	set(known)
	defer close(known)
	defer set(nil)
	do()
}

// orphaned says whether a session, nil is any that was made later, may have lost what was acknowledged, since a time.
func (l *losses) orphaned(b *book, since int) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	for known := l.doubted; known != nil; known = l.doubted {
		l.mu.Unlock()
		<-known
		l.mu.Lock()
	}
	for id, at := range l.orphans {
		if (b == nil || b.id == id) && at > since {
			return true
		}
	}
	return false
}

// gone notes a session that is gone.
func (l *losses) gone(b *book) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.books = append(l.books, b)
}

// may says whether one of the holders, nil is any worker, has died since a time.
func (l *losses) may(holders []string, since int) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.ContainsFunc(l.deaths, func(d death) bool {
		return (holders == nil || slices.Contains(holders, d.worker)) && (d.ended == 0 || d.ended > since)
	})
}

// must says whether one of the holders has died after a time.
func (l *losses) must(holders []string, after int) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.ContainsFunc(l.deaths, func(d death) bool { return slices.Contains(holders, d.worker) && d.began > after })
}

// wrong is an error of a check, and not of a call.
type wrong struct{ error }

// judge returns an error that a call on a session, nil is one of the call's own, must not have in such company since a time. It counts
// the others.
func (r *run) judge(err error, b *book, since int) error {
	var bad wrong
	var refused *client.SessionError
	switch {
	case err == nil:
	case errors.As(err, &bad):
		return err
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, context.Canceled):
		r.tally.unknown.Add(1)
	case errors.Is(err, client.ErrGone):
		if !r.mayBeGone(b, since) {
			return wrong{fmt.Errorf("holders of each shard have lived since %d: %w", since, err)}
		}
	case errors.Is(err, client.ErrOverBudget):
		r.tally.refused.Add(1)
	case errors.Is(err, client.ErrLost):
		r.tally.lost.Add(1)
	case errors.Is(err, client.ErrTryAgain):
		r.tally.unknown.Add(1)
	case errors.Is(err, client.ErrTakenOver), errors.Is(err, errParted):
	case errors.Is(err, client.ErrRefused):
		// A client that brings no receipt, or whose session somebody else drives, may find another state than it was told.
		if errors.As(err, &refused) && slices.Contains([]client.Reason{client.ReasonInvalid, client.ReasonExists, client.ReasonFreed, client.ReasonNotFinite}, refused.Reason) {
			return wrong{err}
		}
	default:
		return wrong{fmt.Errorf("an error of no kind: %w", err)}
	}
	return nil
}

// mayBeGone says whether a session may be gone since a time: without copies if one of its holders has died, with copies if all of a
// shard have.
func (r *run) mayBeGone(b *book, since int) bool {
	if r.config.Replicas > 0 {
		return r.losses.orphaned(b, since)
	}
	var holders []string
	if b != nil {
		holders = b.holders
	}
	return r.losses.may(holders, since)
}

// pause lets a client wait a moment before it tries again.
func (r *run) pause(ctx context.Context) {
	select {
	case <-ctx.Done():
	case <-time.After(5 * time.Millisecond): // again later, as the error says
	}
}

// settled bounds how long a cluster may take to be whole again.
const settled = time.Minute

// settle looks at all sessions once nothing bad happens any more: what is gone stays so, and the others have what was acknowledged.
func (r *run) settle(ctx context.Context) error {
	coming, cancel := context.WithTimeout(ctx, settled)
	defer cancel()
	for _, direct := range []bool{false, true} {
		for i, s := range r.slots {
			d := &driver{run: r, slot: s, book: s.book, direct: direct, asks: i, rand: rand.New(rand.NewPCG(r.config.Seed, uint64(i)))}
			// One that does not come back leaves time for the others.
			one, done := context.WithTimeout(coming, settled/4)
			err := d.last(one)
			done()
			if err != nil {
				return err
			}
		}
	}
	c, err := client.Dial(r.coordinators()[0])
	if err != nil {
		return err
	}
	defer c.Close()
	ctx, end := context.WithTimeout(ctx, settled)
	defer end()
	for _, b := range r.losses.books {
		if found, err := c.FindSession(ctx, b.id); !errors.Is(err, client.ErrGone) {
			return wrong{fmt.Errorf("session %s was gone, and now: %+v, %w", b.id, found, err)}
		}
	}
	return r.ordered()
}
