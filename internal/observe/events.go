package observe

import (
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// Event is something that happened to the cluster, for people who watch it. The same call counts it in a metric, if it has one.
type Event struct {
	Number uint64 // from 1; one that goes on has a new one
	At     time.Time
	What   EventKind
	Worker string // that it is about
	Count  int    // sessions, shards, copies or jobs that it touched
	Why    string // it failed; one line
}

// EventKind says what happened.
type EventKind string

// The kinds of events.
const (
	WorkerJoined    EventKind = "joined"     // a worker is a member from now on
	WorkerGone      EventKind = "gone"       // it is no member any more; Count sessions were known to be there
	WorkerRestarted EventKind = "restarted"  // it has come back with nothing; Count sessions were known to be there
	SessionsMoved   EventKind = "moved"      // Count sessions go on without it, from the copies of others
	CopiesMade      EventKind = "copied"     // Count copies that sessions lacked were made at it
	JobLost         EventKind = "job"        // Count times a job gave its share to others
	CopiesLacking   EventKind = "lacking"    // Count copies of shards are missing
	CopiesWhole     EventKind = "whole"      // no copies are missing any more
	StaleFreed      EventKind = "stale"      // Count sessions that had gone on without it were freed there
	GoesOnTwice     EventKind = "twice"      // Count sessions went on there beside those that hold them: what it has stays until their TTL
	Draining        EventKind = "draining"   // it is drained
	Undrained       EventKind = "undrained"  // it is drained no longer
	Drained         EventKind = "drained"    // it is drained, and holds no sessions any more
	Rebalanced      EventKind = "rebalanced" // Count sessions were moved to it
	CopyFailed      EventKind = "failed"     // Count copies could not be made at it
)

// texts say what happened, of one worker.
var texts = map[EventKind]func(e *Event) string{
	WorkerJoined: func(e *Event) string { return "worker " + e.Worker + " has joined" },
	WorkerGone: func(e *Event) string {
		return "worker " + e.Worker + " is gone" + e.sessions(", and with it its part of %s")
	},
	WorkerRestarted: func(e *Event) string {
		return "worker " + e.Worker + " was restarted" + e.sessions(": its part of %s is lost")
	},
	SessionsMoved: func(e *Event) string {
		return e.some("session goes", "sessions go") + " on without worker " + e.Worker + ", from copies"
	},
	CopiesMade:    func(e *Event) string { return e.some("copy was", "copies were") + " made at worker " + e.Worker },
	JobLost:       func(e *Event) string { return "worker " + e.Worker + " was lost to a job: others take its share" },
	CopiesLacking: func(e *Event) string { return "under-replicated: " + e.some("shard", "shards") },
	CopiesWhole:   func(*Event) string { return "no copies are missing" },
	StaleFreed: func(e *Event) string {
		return "worker " + e.Worker + " freed " + e.some("session that has gone on without it", "sessions that have gone on without it")
	},
	GoesOnTwice: func(e *Event) string {
		return "worker " + e.Worker + " keeps what it has of " + e.some("session that went on there as well", "sessions that went on there as well")
	},
	Draining:   func(e *Event) string { return "worker " + e.Worker + " is drained: its sessions move away" },
	Undrained:  func(e *Event) string { return "worker " + e.Worker + " is drained no longer" },
	Drained:    func(e *Event) string { return "worker " + e.Worker + " is drained and holds no sessions" },
	Rebalanced: func(e *Event) string { return e.some("session was", "sessions were") + " moved to worker " + e.Worker },
	CopyFailed: func(e *Event) string { return e.some("copy", "copies") + " could not be made at worker " + e.Worker },
}

// some counts what the event touched.
func (e *Event) some(one, more string) string {
	if e.Count == 1 {
		return "1 " + one
	}
	return fmt.Sprintf("%d %s", e.Count, more)
}

// sessions says which sessions the event touched, "" if none.
func (e *Event) sessions(format string) string {
	if e.Count == 0 {
		return ""
	}
	return fmt.Sprintf(format, e.some("session", "sessions"))
}

// Text is the event as one line for people.
func (e *Event) Text() string {
	text := texts[e.What](e)
	if e.Why != "" {
		text += ": " + e.Why
	}
	return text
}

const (
	// keptEvents are kept, the newest.
	keptEvents = 100
	// sameEvent is how long an event of the same kind and worker counts as one with the last.
	sameEvent = 5 * time.Second
)

// events are the newest events, the newest last.
type events struct {
	mu      sync.Mutex
	all     []Event
	number  uint64
	changed chan struct{} // closed at the next event; nil until somebody waits
}

func (e *events) add(next Event) {
	next.At = time.Now()
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.changed != nil {
		close(e.changed)
		e.changed = nil
	}
	e.number++
	next.Number = e.number
	for i, last := range slices.Backward(e.all) {
		if next.At.Sub(last.At) > sameEvent {
			break
		}
		if last.What == next.What && last.Worker == next.Worker {
			if next.At = last.At; next.What != CopiesLacking { // which says how many are missing now
				next.Count += last.Count
			}
			e.all = slices.Delete(e.all, i, i+1)
			break
		}
	}
	if len(e.all) >= keptEvents {
		e.all = slices.Delete(e.all, 0, len(e.all)-keptEvents+1)
	}
	e.all = append(e.all, next)
}

// Events returns what has happened, the newest first.
func (c *Coordinator) Events() []Event {
	all, _ := c.EventsAfter(0)
	slices.Reverse(all)
	return all
}

// EventsAfter returns what has happened after the event of a number, as far as it is kept, the newest last, and a channel that is
// closed at the next event.
func (c *Coordinator) EventsAfter(number uint64) ([]Event, <-chan struct{}) {
	if c == nil {
		return nil, nil
	}
	e := &c.events
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.changed == nil {
		e.changed = make(chan struct{})
	}
	return slices.DeleteFunc(slices.Clone(e.all), func(x Event) bool { return x.Number <= number }), e.changed
}

// Happened notes an event, and counts it if its kind has a metric.
func (c *Coordinator) Happened(what EventKind, worker string, count int) {
	c.note(Event{What: what, Worker: worker, Count: count})
}

// Failed notes an event that has a reason.
func (c *Coordinator) Failed(what EventKind, worker string, why error) {
	c.note(Event{What: what, Worker: worker, Count: 1, Why: strings.Join(strings.Fields(why.Error()), " ")})
}

func (c *Coordinator) note(e Event) {
	if c == nil {
		return
	}
	c.events.add(e)
	if counter := c.happened[e.What]; counter != nil {
		counter.Add(float64(e.Count))
	}
}

// JobLost counts a worker that was lost while it had a share of a job.
func (c *Coordinator) JobLost(worker string) { c.Happened(JobLost, worker, 1) }

// LoginFailed counts a login to the dashboard that failed.
func (c *Coordinator) LoginFailed() {
	if c.Counts() {
		c.logins.Inc()
	}
}

// WorkerLost counts a worker that went away, or was restarted, with its parts of so many sessions. One that had none is an event
// only.
func (c *Coordinator) WorkerLost(worker string, restarted bool, sessions int) {
	what := WorkerGone
	if restarted {
		what = WorkerRestarted
	}
	c.Happened(what, worker, sessions)
	if sessions > 0 && c.Counts() {
		c.workers.Inc()
		c.sessions.Add(float64(sessions))
	}
}

// Losses are what has been counted of lost workers.
type Losses struct {
	Workers, Sessions uint64 // workers that were lost with sessions, and these sessions
	Moved             uint64 // sessions that went on without a lost worker
	Jobs              uint64 // workers that were lost with shares of jobs
}

// Losses returns what has been counted.
func (c *Coordinator) Losses() Losses {
	if !c.Counts() {
		return Losses{}
	}
	value := func(m prometheus.Metric) uint64 { return uint64(told(m).GetCounter().GetValue()) }
	return Losses{value(c.workers), value(c.sessions), value(c.happened[SessionsMoved]), value(c.happened[JobLost])}
}
