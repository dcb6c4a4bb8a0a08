package kvcache

import (
	"bytes"
	"cmp"
	"container/heap"
	"time"
)

// expiry finds the sessions that have gone unused for some time, in order of last use. Use of a session only sets its time: a
// session's place is corrected when its turn comes, so a step pays nothing. Store.mu guards it.
type expiry struct {
	place   func(*session) *place
	after   func(*session) time.Duration // how long a session must go unused
	waiting queue                        // by the earliest time at which they may have gone unused for so long
	due     queue                        // those that had, by the time of their last use
}

// place is the position of a session in an expiry. A session that was found pinned has none.
type place struct {
	session *session
	queue   *queue
	at      int
	time    time.Time // that it was put there for
}

// add makes a session wait, unless it stands in x already.
func (x *expiry) add(s *session) {
	if x.place(s).queue == nil {
		x.put(&x.waiting, s, s.used.Add(x.after(s)))
	}
}

func (x *expiry) put(q *queue, s *session, t time.Time) {
	p := x.place(s)
	*p = place{session: s, queue: q, time: t}
	heap.Push(q, p)
}

// remove takes a session out, if it is there.
func (x *expiry) remove(s *session) {
	if p := x.place(s); p.queue != nil {
		heap.Remove(p.queue, p.at)
		*p = place{}
	}
}

// advance makes due all sessions that have gone unused for long enough.
func (x *expiry) advance(now time.Time) {
	for len(x.waiting) > 0 && !x.waiting[0].time.After(now) {
		s := x.waiting[0].session
		if x.unusedAt(s, now) {
			x.remove(s)
			x.put(&x.due, s, s.used)
			continue
		}
		x.waiting[0].time = s.used.Add(x.after(s))
		heap.Fix(&x.waiting, 0)
	}
}

// next returns the least recently used of the sessions that are due, or nil.
func (x *expiry) next(now time.Time) *session {
	x.advance(now)
	for len(x.due) > 0 {
		p := x.due[0]
		s := p.session
		switch {
		case !x.unusedAt(s, now): // It was used since.
			x.remove(s)
			x.add(s)
		case !p.time.Equal(s.used):
			p.time = s.used
			heap.Fix(&x.due, 0)
		default:
			return s
		}
	}
	return nil
}

// unusedAt reports whether the session has been unused for long enough.
func (x *expiry) unusedAt(s *session, now time.Time) bool { return now.Sub(s.used) >= x.after(s) }

// queue is a heap of sessions by the time of their place, then by id.
type queue []*place

func (q queue) Len() int { return len(q) }

func (q queue) Less(i, j int) bool {
	return cmp.Or(q[i].time.Compare(q[j].time), bytes.Compare(q[i].session.id[:], q[j].session.id[:])) < 0
}

func (q queue) Swap(i, j int) {
	q[i], q[j] = q[j], q[i]
	q[i].at, q[j].at = i, j
}

func (q *queue) Push(p any) {
	p.(*place).at = len(*q)
	*q = append(*q, p.(*place))
}

func (q *queue) Pop() any {
	n := len(*q) - 1
	p := (*q)[n]
	(*q)[n] = nil
	*q = (*q)[:n]
	return p
}
