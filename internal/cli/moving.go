package cli

import (
	"fmt"
	"time"

	"headwater.example/client"
)

// moving shows how far a drain or a rebalance has come: bytes, the sessions that are left, and how long the rest takes at the rate so far.
// A session is done once all of it is; until then what was copied since the newest was done counts, up to what one session has: a worker
// that has a part of a session is given all of it, so that more may be copied than is to be moved.
type moving struct {
	progress *progress
	now      func() time.Time

	total uint64 // bytes, with those that sessions have got meanwhile
	began time.Time
	moved uint64 // bytes of the sessions that are done
	then  uint64 // bytes that were copied when the newest was
}

// ratedAfter is how long moves last before their rate is told.
const ratedAfter = time.Second

func (v *moving) show(m client.Moves) {
	if v.began.IsZero() && m.Done {
		return // nothing was to be done
	}
	if m.LeftBytes+m.CopiedBytes == 0 { // nobody counts bytes
		v.progress.show("moving sessions", int64(m.Moved), int64(m.Moved+m.Left), false)
		return
	}
	now := v.now()
	if v.began.IsZero() {
		v.began, v.then, v.total = now, m.CopiedBytes, m.LeftBytes
	}
	v.total = max(v.total, v.moved+m.LeftBytes)
	if moved := v.total - m.LeftBytes; moved > v.moved {
		v.moved, v.then = moved, m.CopiedBytes
	}
	done := v.moved + min(m.CopiedBytes-min(v.then, m.CopiedBytes), m.LeftBytes/max(m.Left, 1))
	v.progress.also = fmt.Sprintf(", %s left", plural(int(m.Left), "session", "sessions"))
	if took := now.Sub(v.began); took >= ratedAfter && done > 0 {
		rate := float64(done) / took.Seconds()
		v.progress.also += fmt.Sprintf(", %s/s", sizeOf(int64(rate)))
		if rest := time.Duration(float64(v.total-done) / rate * float64(time.Second)); rest >= time.Second/2 {
			v.progress.also += fmt.Sprintf(", %v to go", rest.Round(time.Second))
		}
	}
	v.progress.show("moving sessions", int64(done), int64(v.total), true)
}

// end ends what is shown, so that a line of its own can follow.
func (v *moving) end() { v.progress.end() }
