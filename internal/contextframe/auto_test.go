package contextframe_test

import (
	"testing"
	"time"

	"headwater.example/internal/contextframe"
)

// A raw byte costs the link and nothing else; a frame of it saves some of that and costs the coding.
func TestAuto(t *testing.T) {
	const raw, answers = 1 << 14, 256
	for _, c := range []struct {
		name   string
		frame  int
		coding time.Duration // both ends, for an answer
		link   time.Duration // for 1,000,000 bytes
		frames bool
	}{
		{"loopback at 2 GB/s", raw * 87 / 100, 8 * time.Microsecond, 500 * time.Microsecond, false},
		{"10 Gbit/s", raw * 87 / 100, 8 * time.Microsecond, 800 * time.Microsecond, false},
		{"1 Gbit/s", raw * 87 / 100, 8 * time.Microsecond, 8 * time.Millisecond, true},
		{"10 Gbit/s and padding", raw / 20, 8 * time.Microsecond, 800 * time.Microsecond, true},
		{"1 Gbit/s and slow ends", raw * 87 / 100, 80 * time.Microsecond, 8 * time.Millisecond, false},
		{"frames that are larger", raw * 101 / 100, 1 * time.Microsecond, 8 * time.Millisecond, false},
	} {
		var a contextframe.Auto
		framed := 0
		for i := range answers {
			if a.Frame() {
				framed++
				a.Coded(raw, c.frame, c.coding/2, c.coding/2)
			} else if i == 0 {
				t.Errorf("%s: nothing is measured at first", c.name)
			}
			a.Carried(1000, c.link/1000)
		}
		switch {
		case c.frames && framed < answers*9/10:
			t.Errorf("%s: %d of %d are frames", c.name, framed, answers)
		case !c.frames && (framed > answers/32 || framed < 2):
			t.Errorf("%s: %d of %d are frames, more or less than samples", c.name, framed, answers)
		}
	}
}

// What was measured once is not for ever: the link gets slow, and then fast.
func TestAutoFollowsTheLink(t *testing.T) {
	var a contextframe.Auto
	last := false
	run := func(link time.Duration) bool {
		for range 300 {
			if last = a.Frame(); last {
				a.Coded(1<<14, 14000, 4*time.Microsecond, 4*time.Microsecond)
			}
			a.Carried(1<<14, link)
		}
		return last
	}
	if run(5*time.Microsecond) || !run(200*time.Microsecond) || run(5*time.Microsecond) {
		t.Error("the choice does not follow")
	}
}

// Near the border the choice stays as it is.
func TestAutoDoesNotFlutter(t *testing.T) {
	var a contextframe.Auto
	changes, before := 0, false
	for i := range 1000 {
		now := a.Frame()
		if i%64 != 0 && now != before {
			changes++
			before = now
		}
		// Saves 1,000 bytes at 8 ns each, for 8 µs of coding and 5 % of noise.
		a.Coded(10000, 9000, time.Duration(4000+200*(i%3-1)), 4*time.Microsecond)
		a.Carried(1000, 8*time.Microsecond)
	}
	if changes > 1 {
		t.Errorf("%d changes", changes)
	}
}
