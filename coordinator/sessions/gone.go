package sessions

import (
	"bytes"
	"context"
	"fmt"
	"slices"
	"strings"

	"headwater.example/internal/membership"
	"headwater.example/internal/observe"
)

// maxNamed is how many sessions a log line about a lost worker names.
const maxNamed = 8

// watch logs each worker that goes away or is restarted while it holds sessions, until ctx ends. What it held is gone.
func (r *Relay) watch(ctx context.Context) {
	before := map[string]membership.Member{}
	for {
		changed := r.workers.Changed()
		now := map[string]membership.Member{}
		for _, m := range r.workers.List() {
			now[m.Name] = m
		}
		for name, m := range before {
			if now[name].Boot != m.Boot || now[name].Name == "" {
				r.lost(m, now[name].Name != "")
			}
		}
		for name := range now {
			if before[name].Name == "" {
				r.observe.Happened(observe.WorkerJoined, name, 0)
			}
		}
		before = now
		select {
		case <-changed:
		case <-ctx.Done():
			return
		}
	}
}

// left logs that a session goes on without lost holders.
func (r *Relay) left(id [16]byte, lost []string) {
	r.copies.look(id)
	for _, name := range lost {
		r.observe.Happened(observe.SessionsMoved, name, 1)
	}
	r.log.Warn("a session goes on without workers that are lost: others have copies of all that they held", "session", fmt.Sprintf("%x", id), "workers", strings.Join(lost, " "))
}

// lost logs which sessions are lost with a worker that is gone, as far as they are remembered here, and nothing has moved them since.
func (r *Relay) lost(m membership.Member, restarted bool) {
	r.mu.Lock()
	var held []string // as a whole by no others
	count := 0
	for id, known := range r.holdings {
		h := known.place.Holding()
		for _, o := range h.Holders() {
			// A list of workers knows no boots.
			if known.doubted || o.Name != m.Name || m.Boot != [16]byte{} && !bytes.Equal(o.Boot, m.Boot[:]) {
				continue
			}
			if count++; !wholeWithout(h, []string{m.Name}) {
				held = append(held, fmt.Sprintf("%x", id))
			}
		}
	}
	r.mu.Unlock()
	r.observe.WorkerLost(m.Name, restarted, count)
	if len(held) == 0 {
		return
	}
	slices.Sort(held)
	named := strings.Join(held[:min(len(held), maxNamed)], " ")
	if more := len(held) - maxNamed; more > 0 {
		named = fmt.Sprintf("%s and %d more", named, more)
	}
	what := "a worker is gone that holds sessions: they go on if it comes back with them, else they are lost"
	if restarted {
		what = "a worker was restarted that held sessions: they are lost"
	}
	r.log.Warn(what, "worker", m.Name, "address", m.Address, "sessions", len(held), "ids", named)
}
