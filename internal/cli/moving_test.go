package cli

import (
	"bytes"
	"testing"
	"time"

	"headwater.example/client"
)

// TestMovingSaysWhatIsLeft: lines where there is no terminal have bytes, sessions, the rate since it began, and the time that is left at
// that rate. The clock is the test's.
func TestMovingSaysWhatIsLeft(t *testing.T) {
	var out bytes.Buffer
	now := time.Unix(1, 0)
	v := &moving{progress: (&app{Streams: Streams{Err: &out}}).progress(false), now: func() time.Time { return now }}
	const mib = 1 << 20
	for _, c := range []struct {
		after time.Duration
		at    client.Moves
		want  string
	}{
		{0, client.Moves{Left: 10, LeftBytes: 1000 * mib}, "moving sessions: 0 B of 1000.0 MiB, 10 sessions left\n"},
		{500 * time.Millisecond, client.Moves{Left: 10, LeftBytes: 1000 * mib, CopiedBytes: 50 * mib}, "moving sessions: 50.0 MiB of 1000.0 MiB, 10 sessions left\n"},
		{1500 * time.Millisecond, client.Moves{Left: 9, LeftBytes: 900 * mib, CopiedBytes: 150 * mib, Moved: 1}, "moving sessions: 100.0 MiB of 1000.0 MiB, 9 sessions left, 50.0 MiB/s, 18s to go\n"},
		// Sessions that grow have more to move, and more may be copied than they have.
		{2 * time.Second, client.Moves{Left: 9, LeftBytes: 924 * mib, CopiedBytes: 650 * mib, Moved: 1}, "moving sessions: 202.7 MiB of 1.00 GiB, 9 sessions left, 50.7 MiB/s, 16s to go\n"},
		{6 * time.Second, client.Moves{Left: 1, LeftBytes: 24 * mib, CopiedBytes: 1400 * mib, Moved: 9}, "moving sessions: 1000.0 MiB of 1.00 GiB, 1 session left, 100.0 MiB/s\n"},
		{6 * time.Second, client.Moves{CopiedBytes: 1400 * mib, Moved: 10, Done: true}, "moving sessions: 1.00 GiB of 1.00 GiB, 0 sessions left, 64.0 MiB/s\n"},
	} {
		now = now.Add(c.after)
		out.Reset()
		v.show(c.at)
		v.end() // which prints a line at once
		if out.String() != c.want {
			t.Errorf("after %v it says\n%q, want\n%q", c.after, out.String(), c.want)
		}
	}
}

// TestMovingWithoutBytes: a coordinator that counts no bytes tells sessions alone, and where nothing is to be moved nothing is said.
func TestMovingWithoutBytes(t *testing.T) {
	var out bytes.Buffer
	v := &moving{progress: (&app{Streams: Streams{Err: &out}}).progress(false), now: time.Now}
	v.show(client.Moves{Done: true})
	v.end()
	if out.Len() > 0 {
		t.Errorf("it says %q of nothing", out.String())
	}
	v.show(client.Moves{Left: 3, Moved: 1})
	v.end()
	if want := "moving sessions: 1 of 4\n"; out.String() != want {
		t.Errorf("it says %q, want %q", out.String(), want)
	}
}
