// Package quota bounds what a tenant may have of a cluster: sessions, bytes of pages and steps a second over all workers together, and
// jobs at each coordinator. Coordinators know the limits; each second one tells each worker how much of them is the worker's to give
// (Divide), by what all workers have said that they have. A worker that hears nothing goes on with what it was told last.
package quota

import (
	"fmt"
	"math"
	"time"
)

// Limits are what a tenant may have. 0 is no bound.
type Limits struct {
	Sessions int64   `json:"sessions,omitempty"`
	Bytes    int64   `json:"bytes,omitempty"`
	Steps    float64 `json:"steps_per_second,omitempty"` // of sessions; a model makes one for each layer
	Jobs     int64   `json:"jobs,omitempty"`             // that have not ended, at each coordinator
}

// Check refuses limits that are none.
func (l Limits) Check() error {
	if l.Sessions < 0 || l.Bytes < 0 || l.Jobs < 0 || !(l.Steps >= 0 && l.Steps <= math.MaxInt32) {
		return fmt.Errorf("limits of %d sessions, %d bytes, %v steps a second and %d jobs: each is at least 0, and 0 is no limit", l.Sessions, l.Bytes, l.Steps, l.Jobs)
	}
	return nil
}

// Kind is what a limit bounds.
type Kind string

// The kinds of limits.
const (
	Sessions Kind = "sessions"
	Bytes    Kind = "bytes"
	Steps    Kind = "steps_per_second"
	Jobs     Kind = "jobs"
)

// Kinds are all kinds.
var Kinds = []Kind{Sessions, Bytes, Steps, Jobs}

// Exceeded says that a tenant would have more than it may. The same call may succeed after RetryAfter.
type Exceeded struct {
	Tenant      string
	Kind        Kind
	Limit, Used float64 // of the whole cluster; of jobs, of the coordinator
	RetryAfter  time.Duration
}

var advice = map[Kind]string{
	Sessions: "drop a session",
	Bytes:    "drop or truncate a session",
	Steps:    "send fewer steps",
	Jobs:     "wait until one has ended",
}

func (e *Exceeded) Error() string {
	has := fmt.Sprintf("has %.0f %s of at most %.0f", e.Used, e.Kind, e.Limit)
	if e.Kind == Steps {
		has = fmt.Sprintf("makes %.0f steps a second of at most %.0f", e.Used, e.Limit)
	}
	return fmt.Sprintf("tenant %s %s: %s, or try again in %v", e.Tenant, has, advice[e.Kind], e.RetryAfter.Round(time.Millisecond))
}

// Every is how often coordinators tell workers what they may give, and so when what was refused may be granted.
const Every = time.Second

// bucket bounds a rate: at most what it gives in a second may come at once. The zero value is full.
type bucket struct {
	spent float64 // of what it gives in a second, as of the time
	at    time.Time
}

// Take takes cost, at most 1, at a rate a second, or says how long it takes until it can be taken.
func (b *bucket) Take(now time.Time, rate, cost float64) (wait time.Duration) {
	if since := now.Sub(b.at); since > 0 {
		b.spent = max(b.spent-since.Seconds()*rate, 0)
		b.at = now
	}
	most := max(rate, 1) // a whole step fits
	if over := b.spent + cost - most; over > 0 {
		if rate <= 0 {
			return Every
		}
		return min(max(time.Duration(math.Ceil(over/rate*float64(time.Second))), time.Millisecond)+time.Microsecond, time.Minute) // of rounding
	}
	b.spent += cost
	return 0
}
