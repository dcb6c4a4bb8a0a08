package quota

import (
	"math"
	"math/rand/v2"
	"testing"
	"time"
)

// TestSharesAreWithinTheLimit: of whatever workers have, what all of them may have together is within the limit, or is what they have
// already; and what is left is all given.
func TestSharesAreWithinTheLimit(t *testing.T) {
	t.Parallel()
	rng := rand.New(rand.NewPCG(1, 2))
	for range 10000 {
		of := make([]Usage, 1+rng.IntN(6))
		for i := range of {
			of[i] = Usage{Held: rng.Int64N(20), Bytes: rng.Int64N(1 << 30), Grown: rng.Int64N(1<<20) - 1<<19, Steps: float64(rng.IntN(200))}
			of[i].Sessions = float64(of[i].Held) / float64(len(of))
		}
		l := Limits{Sessions: 1 + rng.Int64N(30), Bytes: 1 + rng.Int64N(1<<32), Steps: 1 + float64(rng.IntN(1000))}
		has, shares := Total(of), Divide(l, of)
		var bytes int64
		var steps float64
		for i, s := range shares {
			bytes += s.Bytes
			steps += s.Steps
			if s.Bytes < of[i].Bytes || s.Held > l.Sessions || s.Steps < 0 {
				t.Fatalf("%+v has %+v: share %+v", l, of[i], s)
			}
			if has.Sessions >= float64(l.Sessions) && s.Held > of[i].Held {
				t.Fatalf("%v of %d sessions are there, and a worker may give another", has.Sessions, l.Sessions)
			}
		}
		if most := max(has.Bytes, l.Bytes); bytes > most || bytes < most-int64(len(of)) {
			t.Fatalf("shares of %d bytes, of %d at most", bytes, most)
		}
		if math.Abs(steps-l.Steps) > 1e-6*l.Steps {
			t.Fatalf("shares of %v steps a second, of %v", steps, l.Steps)
		}
	}
	if s := Divide(Limits{Jobs: 1}, make([]Usage, 2)); s[0] != NoShare || s[1] != NoShare {
		t.Errorf("no limits are shares %+v", s)
	}
}

// TestATenantOfOneWorkerGetsWhatIsLeft: where it grows at one worker alone, a few turns give it there nearly all that is left.
func TestATenantOfOneWorkerGetsWhatIsLeft(t *testing.T) {
	t.Parallel()
	of := make([]Usage, 4)
	l := Limits{Bytes: 1 << 30, Steps: 100}
	for range 12 {
		s := Divide(l, of)[0]
		of[0].Grown, of[0].Bytes, of[0].Steps = s.Bytes-of[0].Bytes, s.Bytes, s.Steps
	}
	if of[0].Bytes < l.Bytes*99/100 || of[0].Steps < 95 {
		t.Errorf("%d bytes of %d, %v steps of %v", of[0].Bytes, l.Bytes, of[0].Steps, l.Steps)
	}
}

// TestABucketKeepsTheRate: over any time, no more passes than the rate gives in it, and what comes at once.
func TestABucketKeepsTheRate(t *testing.T) {
	t.Parallel()
	rng := rand.New(rand.NewPCG(3, 4))
	var b bucket
	began := time.Unix(1e9, 0)
	now, took := began, 0.0
	const rate = 50
	for range 20000 {
		cost := 1.0
		if rng.IntN(3) == 0 {
			cost = 1.0 / 3
		}
		wait := b.Take(now, rate, cost)
		if wait == 0 {
			took += cost
		} else if rng.IntN(2) == 0 { // as it was told
			now = now.Add(wait)
			if b.Take(now, rate, cost) != 0 {
				t.Fatalf("refused after the %v that it was told to wait", wait)
			}
			took += cost
		}
		if most := rate*now.Sub(began).Seconds() + rate + 1e-6; took > most {
			t.Fatalf("%v steps in %v, at %d a second", took, now.Sub(began), rate)
		}
		now = now.Add(time.Duration(rng.IntN(int(20 * time.Millisecond))))
	}
	if least := rate * now.Sub(began).Seconds() * 0.9; took < least {
		t.Errorf("%v steps in %v, at %d a second", took, now.Sub(began), rate)
	}
}

// TestABookBoundsWhomItWasToldOf: by name, else as all others; and counts what it refuses.
func TestABookBoundsWhomItWasToldOf(t *testing.T) {
	t.Parallel()
	now := time.Unix(1e9, 0)
	b := NewBook(func() time.Time { return now })
	if b.Session("ann", 1000) != nil || b.Take("ann", 1<<50, 1) != nil || b.Step("ann", 1) != nil || (*Book)(nil).Step("ann", 1) != nil {
		t.Fatal("a book that was told nothing refuses")
	}
	b.Tell(map[string]Terms{"ann": {Share: Share{Held: 2, Bytes: 100, Steps: 2}, Limit: Limits{Sessions: 4, Bytes: 200, Steps: 6}, Used: Usage{Sessions: 3, Bytes: 150, Steps: 5}}},
		Terms{Share: Share{Held: 1, Bytes: -1, Steps: -1}, Limit: Limits{Sessions: 1}})
	for _, k := range []struct {
		err  *Exceeded
		want string
	}{
		{b.Session("ann", 1), ""},
		{b.Session("ann", 2), "tenant ann has 3 sessions of at most 4: drop a session, or try again in 1s"},
		{b.Session("bob", 0), ""},
		{b.Session("bob", 1), "tenant bob has 1 sessions of at most 1: drop a session, or try again in 1s"},
		{b.Take("ann", 90, 10), ""},
		{b.Take("ann", 90, 11), "tenant ann has 150 bytes of at most 200: drop or truncate a session, or try again in 1s"},
		{b.Take("bob", 1<<40, 1<<40), ""},
		{b.Step("ann", 1), ""},
		{b.Step("ann", 1), ""},
		{b.Step("ann", 1), "tenant ann makes 5 steps a second of at most 6: send fewer steps, or try again in 500ms"},
		{b.Step("bob", 1), ""},
	} {
		got := ""
		if k.err != nil {
			got = k.err.Error()
		}
		if got != k.want {
			t.Errorf("%q, want %q", got, k.want)
		}
	}
	for _, a := range b.Asked() {
		if a.Tenant == "ann" && (a.Steps != 3 || a.Refused[Sessions] != 1 || a.Refused[Bytes] != 1 || a.Refused[Steps] != 1) {
			t.Errorf("counted are %+v", a)
		}
	}
	b.Tell(nil, Terms{Share: NoShare})
	if b.Step("ann", 1) != nil || b.Session("bob", 7) != nil {
		t.Error("what holds no more is refused")
	}
}

func TestLimitsAreChecked(t *testing.T) {
	t.Parallel()
	for _, l := range []Limits{{Sessions: -1}, {Bytes: -1}, {Jobs: -1}, {Steps: -1}, {Steps: math.NaN()}, {Steps: math.Inf(1)}} {
		if l.Check() == nil {
			t.Errorf("%+v is taken", l)
		}
	}
	if err := (Limits{Sessions: 1, Bytes: 2, Steps: 0.5, Jobs: 3}).Check(); err != nil {
		t.Error(err)
	}
}
