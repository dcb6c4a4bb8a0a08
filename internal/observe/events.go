package observe

import (
	"slices"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// Event is something that happened to the cluster, for people who watch it. The same call counts it in a metric, if it has one.
type Event struct {
	At     time.Time
	What   EventKind
	Worker string // that it is about
	Count  int    // sessions or jobs that it touched
}

// EventKind says what happened.
type EventKind string

// The kinds of events.
const (
	WorkerJoined    EventKind = "joined"    // a worker is a member from now on
	WorkerGone      EventKind = "gone"      // it is no member any more; Count sessions were known to be there
	WorkerRestarted EventKind = "restarted" // it has come back with nothing; Count sessions were known to be there
	SessionsMoved   EventKind = "moved"     // Count sessions go on without it, from the copies of others
	CopiesMade      EventKind = "copied"    // Count copies that sessions lacked were made at it
	JobLost         EventKind = "job"       // Count times a job gave its share to others
)

const (
	// keptEvents are kept, the newest.
	keptEvents = 100
	// sameEvent is how long an event of the same kind and worker counts as one with the last.
	sameEvent = 5 * time.Second
)

// events are the newest events, the newest last.
type events struct {
	mu  sync.Mutex
	all []Event
}

func (e *events) add(what EventKind, worker string, count int) {
	now := time.Now()
	e.mu.Lock()
	defer e.mu.Unlock()
	for i := range slices.Backward(e.all) {
		last := &e.all[i]
		if now.Sub(last.At) > sameEvent {
			break
		}
		if last.What == what && last.Worker == worker {
			last.Count += count
			return
		}
	}
	if len(e.all) >= keptEvents {
		e.all = slices.Delete(e.all, 0, len(e.all)-keptEvents+1)
	}
	e.all = append(e.all, Event{now, what, worker, count})
}

// Events returns what has happened, the newest first.
func (c *Coordinator) Events() []Event {
	if c == nil {
		return nil
	}
	c.events.mu.Lock()
	defer c.events.mu.Unlock()
	all := slices.Clone(c.events.all)
	slices.Reverse(all)
	return all
}

// Happened notes an event that no metric counts.
func (c *Coordinator) Happened(what EventKind, worker string, count int) {
	if c != nil {
		c.events.add(what, worker, count)
	}
}

// JobLost counts a worker that was lost while it had a share of a job.
func (c *Coordinator) JobLost(worker string) {
	if c != nil {
		c.jobLost.Inc()
		c.events.add(JobLost, worker, 1)
	}
}

// WorkerLost counts a worker that went away, or was restarted, with its parts of so many sessions. One that had none is an event
// only.
func (c *Coordinator) WorkerLost(worker string, restarted bool, sessions int) {
	if c == nil {
		return
	}
	what := WorkerGone
	if restarted {
		what = WorkerRestarted
	}
	c.events.add(what, worker, sessions)
	if sessions > 0 {
		c.workers.Inc()
		c.sessions.Add(float64(sessions))
	}
}

// Lost returns what WorkerLost and JobLost have counted: workers with sessions, these sessions, and workers with shares of jobs.
func (c *Coordinator) Lost() (workers, sessions, jobs uint64) {
	if c == nil {
		return 0, 0, 0
	}
	value := func(m prometheus.Metric) uint64 { return uint64(told(m).GetCounter().GetValue()) }
	return value(c.workers), value(c.sessions), value(c.jobLost)
}
