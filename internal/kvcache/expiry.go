package kvcache

import (
	"bytes"
	"cmp"
	"container/heap"
	"time"
)

// expiry finds the sessions that have gone unused for their TTL, in order of time. Use of a session only sets its time: a
// session's place is put right when its turn comes, so that a step pays nothing. Store.mu guards it.
type expiry struct {
	waiting queue // by the earliest time at which they may have gone unused for their TTL
	due     queue // those that had, by the time of their last use
}

// place is the position of a session in an expiry. A session that was found pinned has none.
type place struct {
	queue *queue
	at    int
	time  time.Time // that it was put there for
}

// add makes a session wait for its TTL.
func (x *expiry) add(s *session) { x.put(&x.waiting, s, s.used.Add(s.ttl)) }

func (x *expiry) put(q *queue, s *session, t time.Time) {
	s.place = place{queue: q, time: t}
	heap.Push(q, s)
}

// remove takes a session out, if it is there.
func (x *expiry) remove(s *session) {
	if s.place.queue != nil {
		heap.Remove(s.place.queue, s.place.at)
		s.place = place{}
	}
}

// advance makes due all sessions that have gone unused for their TTL.
func (x *expiry) advance(now time.Time) {
	for len(x.waiting) > 0 && !x.waiting[0].place.time.After(now) {
		s := x.waiting[0]
		if s.unusedAt(now) {
			x.remove(s)
			x.put(&x.due, s, s.used)
			continue
		}
		s.place.time = s.used.Add(s.ttl)
		heap.Fix(&x.waiting, 0)
	}
}

// next returns the session that has gone unused the longest of those that are due, or nil.
func (x *expiry) next(now time.Time) *session {
	x.advance(now)
	for len(x.due) > 0 {
		s := x.due[0]
		switch {
		case !s.unusedAt(now): // It was used since.
			x.remove(s)
			x.add(s)
		case !s.place.time.Equal(s.used):
			s.place.time = s.used
			heap.Fix(&x.due, 0)
		default:
			return s
		}
	}
	return nil
}

// unusedAt reports whether the session has been unused for its TTL.
func (s *session) unusedAt(now time.Time) bool { return now.Sub(s.used) >= s.ttl }

// queue is a heap of sessions by the time of their place, then by id.
type queue []*session

func (q queue) Len() int { return len(q) }

func (q queue) Less(i, j int) bool {
	return cmp.Or(q[i].place.time.Compare(q[j].place.time), bytes.Compare(q[i].id[:], q[j].id[:])) < 0
}

func (q queue) Swap(i, j int) {
	q[i], q[j] = q[j], q[i]
	q[i].place.at, q[j].place.at = i, j
}

func (q *queue) Push(s any) {
	s.(*session).place.at = len(*q)
	*q = append(*q, s.(*session))
}

func (q *queue) Pop() any {
	n := len(*q) - 1
	s := (*q)[n]
	(*q)[n] = nil
	*q = (*q)[:n]
	return s
}
