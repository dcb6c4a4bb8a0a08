package cli

import (
	"fmt"
	"time"

	"headwater.example/client"
)

// moving shows how far a drain or a rebalance has come: bytes, the sessions that are left, and how long the rest takes at the rate so far.
type moving struct {
	progress *progress
	now      func() time.Time

	total uint64 // bytes, with those that sessions have got meanwhile
	began time.Time
	first uint64 // bytes that were done then
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
		v.began, v.first, v.total = now, m.CopiedBytes, m.LeftBytes
	}
	v.total = max(v.total, m.LeftBytes)
	done := v.total
	if !m.Done {
		// A session counts as moved when all of it is; what is copied of it until then counts as well.
		done = min(max(v.total-m.LeftBytes, m.CopiedBytes), v.total)
	}
	v.progress.also = fmt.Sprintf(", %s left", plural(int(m.Left), "session", "sessions"))
	if took := now.Sub(v.began); took >= ratedAfter && m.CopiedBytes > v.first {
		rate := float64(m.CopiedBytes-v.first) / took.Seconds()
		v.progress.also += fmt.Sprintf(", %s/s", sizeOf(int64(rate)))
		if rest := time.Duration(float64(v.total-done) / rate * float64(time.Second)); rest > 0 && !v.progress.terminal { // a bar says it
			v.progress.also += fmt.Sprintf(", %v to go", rest.Round(time.Second))
		}
	}
	v.progress.show("moving sessions", int64(done), int64(v.total), true)
}

// end ends what is shown, so that a line of its own can follow.
func (v *moving) end() { v.progress.end() }
