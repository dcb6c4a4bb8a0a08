package drivers

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"headwater.example/client"
)

// slot is a session that drivers share, and the next one if that is lost.
type slot struct {
	name    string
	workers int

	mu   sync.Mutex
	book *book
}

func (s *slot) current() *book {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.book
}

// open opens a slot's session, again for as long as it is told to try again. The slot's lock is held, or nobody else knows it.
func (r *run) open(ctx context.Context, c *client.Client, s *slot) error {
	for {
		b := &book{parent: map[uint32]uint32{}, placed: map[uint32]int{}, acked: map[uint32]int{}}
		b.born[0] = r.losses.tick()
		err := r.openOnce(ctx, c, s, b)
		if err == nil {
			s.book = b
			r.booked.Lock()
			defer r.booked.Unlock()
			r.books = append(r.books, b)
			return nil
		}
		if err := r.judge(err, nil, b.born[0]); err != nil || ctx.Err() != nil {
			return errors.Join(err, ctx.Err())
		}
		r.pause(ctx)
	}
}

func (r *run) openOnce(ctx context.Context, c *client.Client, s *slot, b *book) error {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	session, err := c.OpenSession(ctx, client.SessionOptions{Layers: r.layers(), Name: s.name, Workers: s.workers, Replicas: r.config.Replicas})
	if err != nil {
		return err
	}
	session.Keep(true)
	b.id = session.ID()
	b.born[1] = r.losses.tick()
	found, err := c.FindSession(ctx, b.id)
	if err != nil {
		return err
	}
	for _, h := range found.Holders {
		b.holders = append(b.holders, h.Name)
	}
	return session.Close()
}

// replace opens a new session in place of one that is gone, or goes on twice.
func (r *run) replace(ctx context.Context, c *client.Client, s *slot, lost *book) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.book != lost {
		return nil
	}
	if !lost.isParted() {
		r.tally.gone.Add(1)
		r.losses.gone(lost)
	}
	dropping, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	_ = c.DropSession(dropping, lost.id) // Parts may be left at other workers; these expire.
	return r.open(ctx, c, s)
}

// book is what was said to the drivers of a session.
type book struct {
	id      client.SessionID
	holders []string // names of the workers that had it at first
	// born are the times before and after it was opened.
	born [2]int

	mu     sync.Mutex
	clock  int
	parent map[uint32]uint32 // of each seed, that of the position before
	placed map[uint32]int    // of each seed, when its append was begun
	acked  map[uint32]int    // seeds whose append was acknowledged, with their positions
	cuts   []taken
	// lanes and changes are for the order of all (order.go).
	lanes   []*lane
	changes []change
	parted  bool // nobody can hold it to what was said: it goes on twice, or was lost in part
}

// giveUp notes that nobody can hold the session to what was said any more, and counts it, once.
func (b *book) giveUp(count *atomic.Int64) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if !b.parted {
		b.parted = true
		count.Add(1)
	}
}

func (b *book) isParted() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.parted
}

// lackError says that a session does not have what was acknowledged.
type lackError struct{ error }

// taken is a truncation that somebody has asked for.
type taken struct{ at, to int }

// tick returns the time, which goes on.
func (b *book) tick() int { b.clock++; return b.clock }

// begin notes an append, and returns when it was begun.
func (b *book) begin(before, added []uint32) int {
	b.mu.Lock()
	defer b.mu.Unlock()
	now, last := b.tick(), uint32(0)
	if len(before) > 0 {
		last = before[len(before)-1]
	}
	for _, s := range added {
		b.parent[s], b.placed[s] = last, now
		last = s
	}
	return now
}

func (b *book) acknowledge(from int, added []uint32) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for i, s := range added {
		b.acked[s] = from + i
	}
}

// beginCut notes a truncation, and returns when it was asked for.
func (b *book) beginCut(to int) int {
	b.mu.Lock()
	defer b.mu.Unlock()
	now := b.tick()
	b.cuts = append(b.cuts, taken{now, to})
	return now
}

// acknowledgeCut forgets what was taken back.
func (b *book) acknowledgeCut(at, to int) {
	b.mu.Lock()
	defer b.mu.Unlock()
	maps.DeleteFunc(b.acked, func(s uint32, position int) bool { return position >= to && b.placed[s] < at })
}

// promised is what was acknowledged by now.
func (b *book) promised() map[uint32]int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return maps.Clone(b.acked)
}

// check holds what a session has to what was said before. A session that may be read at any length has no promise.
func (b *book) check(what string, seeds []uint32, promised map[uint32]int) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	last := uint32(0)
	for i, s := range seeds {
		before, known := b.parent[s]
		if !known || before != last {
			return fmt.Errorf("session %s: %s: position %d of %v has %d after %d, which was appended after %d (known %v)", b.id, what, i, seeds, s, last, before, known)
		}
		last = s
	}
	for s, position := range promised {
		if position < len(seeds) && seeds[position] == s {
			continue
		}
		if !slices.ContainsFunc(b.cuts, func(c taken) bool { return c.at > b.placed[s] && c.to <= position }) {
			return lackError{fmt.Errorf("session %s: %s: %d was acknowledged at position %d and not taken back, and there is %v", b.id, what, s, position, seeds)}
		}
	}
	return nil
}
