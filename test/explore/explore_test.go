package explore

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"strconv"
	"testing"

	"headwater.example/internal/testkit/plainholder"
)

// Scripts of the small case.
var (
	alone = Script{"A", []string{"open", "append", "append", "cut-1", "append"}}
	taker = Script{"B", []string{"attach", "append"}}
	maker = Script{"K", []string{"copy"}}
	other = Script{"L", []string{"copy"}}
)

// whole explores a case to the end.
func whole(t *testing.T, c Case) Found {
	t.Helper()
	c.Workers, c.Eager = 3, true
	f := Exhaust(t, c, 1<<30)
	if f.Err != nil {
		t.Errorf("%v", f)
	}
	t.Logf("%v", f)
	return f
}

// small are the parts of the small case that take seconds: one lane that appends three times and truncates once, on two of three workers.
var small = map[string]Case{
	"a crash":        {Drivers: []Script{alone}, Faults: map[string]int{"crash w1": 1, "start w1": 1}},
	"both crash":     {Drivers: []Script{alone}, Faults: map[string]int{"crash w1": 1, "crash w3": 1}},
	"a late request": {Drivers: []Script{alone}, Faults: map[string]int{"break A>w1": 1, "late A>w1": 1, "break A>w3": 1}},
	"plain holders":  {Plain: true, Drivers: []Script{alone}, Faults: map[string]int{"break A>w1": 1, "late A>w1": 1, "break A>w3": 1}},
}

func TestSmallCases(t *testing.T) {
	for name, c := range small {
		t.Run(name, func(t *testing.T) { whole(t, c) })
	}
}

// TestWhoIsBeingTakenIsLeftAlone: a client takes its own session again, by the same lane, while a coordinator looks for missing copies. At
// some moment one holder has the new epoch and the other one has not. That one is not lost, and no copy is made without it.
func TestWhoIsBeingTakenIsLeftAlone(t *testing.T) {
	again := Script{"A", []string{"open", "append", "attach"}}
	if f := whole(t, Case{Drivers: []Script{again, maker}}); !f.Whole {
		t.Errorf("not to the end: %v", f)
	}
}

// parted are clients that each lose their connections to a worker and go on with the other one, while two coordinators make copies.
var parted = Case{
	Workers: 3, Looks: true, Eager: true, Parted: true,
	Drivers: []Script{{"A", []string{"open", "append", "append", "append"}}, {"B", []string{"attach-blind", "append", "append"}}, maker, other},
	Faults:  map[string]int{"break A>w1": 3, "break A>w2": 3, "break A>w3": 3, "break B>w1": 4, "break B>w2": 4, "break B>w3": 4, "tick": 3},
}

// walkParted makes random runs of clients that are parted, until one breaks something.
func walkParted(t *testing.T, c Case, walks int) (f Found) {
	t.Helper()
	for i := range walks {
		if f = walk(t, rand.New(rand.NewPCG(uint64(walks), uint64(i))), c); f.Err != nil {
			break
		}
	}
	return f
}

// TestBothSidesOfAPartedSessionStay: coordinators free no side of a session that went on twice, also while they make copies of the other
// one. They do if workers forget that theirs went on.
func TestBothSidesOfAPartedSessionStay(t *testing.T) {
	c := parted
	if f := walkParted(t, c, 120); f.Err != nil {
		t.Errorf("%v", f)
	}
	if f := goesOnTwice(t, Case{}); f.Err != nil {
		t.Errorf("%v", f)
	}
	f := goesOnTwice(t, Case{Forgets: true})
	if f.Err == nil {
		t.Errorf("nothing noticed: %v", f)
	}
	t.Logf("%v", f)
}

// TestWhatIsLeftOutMakesNoDifference explores cases with and without the orders of moves that are left out as alike: they come to the
// same ends.
func TestWhatIsLeftOutMakesNoDifference(t *testing.T) {
	for name, c := range small {
		some := whole(t, c)
		c.Full = true
		all := whole(t, c)
		if !maps.Equal(some.ends, all.ends) || len(all.ends) == 0 || all.States <= some.States {
			t.Errorf("%s: %v; with all orders %v", name, some, all)
		}
	}
}

// TestFaultsAreCaught lets workers do what none may do.
func TestFaultsAreCaught(t *testing.T) {
	for name, c := range map[string]Case{
		"it acknowledges early":                 {Plain: true, Fault: plainholder.AcknowledgesEarly, Drivers: []Script{alone}},
		"it skips the step of the epoch":        {Plain: true, Fault: plainholder.TakesAnyEpoch, Drivers: []Script{alone, taker}},
		"it takes a retry from before a cut":    {Plain: true, Fault: plainholder.TakesLateRetries, Drivers: []Script{alone}, Faults: map[string]int{"break A>w1": 1, "late A>w1": 1}},
		"it fills a group with zeros":           {Plain: true, Fault: plainholder.FillsWithZeros, Drivers: []Script{alone}},
		"it starts again under its boot's name": {SameBoot: true, Drivers: []Script{alone}, Faults: map[string]int{"crash w1": 1, "start w1": 1, "crash w3": 1}},
	} {
		t.Run(name, func(t *testing.T) {
			c.Workers, c.Eager = 3, true
			f := Exhaust(t, c, 10000)
			if f.Err == nil {
				t.Errorf("nothing noticed: %v", f)
			}
			t.Logf("%v", f)
		})
	}
}

// TestWalks makes random runs: the same ones each time, or as many others as HEADWATER_WALKS says, from the seed HEADWATER_SEED.
func TestWalks(t *testing.T) {
	walks, seed := 150, uint64(1)
	if n, err := strconv.Atoi(os.Getenv("HEADWATER_WALKS")); err == nil {
		walks, seed = n, rand.Uint64()
	}
	if n, err := strconv.ParseUint(os.Getenv("HEADWATER_SEED"), 10, 64); err == nil {
		seed = n
	}
	moves := 0
	for i := range walks {
		f := Walk(t, seed, i)
		if moves += f.Moves; f.Err != nil {
			t.Fatalf("HEADWATER_SEED=%d, walk %d, %+v: %v", seed, i, drawCase(rand.New(rand.NewPCG(seed, uint64(i)))), f)
		}
	}
	t.Logf("seed %d: %d walks of %d moves", seed, walks, moves)
}

// TestSmallCase explores the small case to its end, in parts: who drives while another lane takes over, or while a copy is made, with
// crashes at each moment. It takes minutes and runs if HEADWATER_EXPLORE is set.
func TestSmallCase(t *testing.T) {
	if os.Getenv("HEADWATER_EXPLORE") == "" {
		t.Skip("HEADWATER_EXPLORE is not set")
	}
	parts := maps.Clone(small)
	parts["a crash is noticed"] = Case{Full: true, Drivers: []Script{alone}, Faults: map[string]int{"crash w1": 1, "notice A>w1": 1, "start w1": 1}}
	parts["both crash, one starts"] = Case{Drivers: []Script{alone}, Faults: map[string]int{"crash w1": 1, "start w1": 1, "crash w3": 1}}
	parts["another lane takes it"] = Case{Drivers: []Script{alone, taker}}
	parts["another lane takes it, and a worker crashes"] = Case{Drivers: []Script{{"A", []string{"open", "append", "cut-1"}}, taker}, Faults: map[string]int{"crash w1": 1}}
	parts["a copy is made after a crash"] = Case{Drivers: []Script{{"A", []string{"open", "append", "append"}}, maker}, Faults: map[string]int{"crash w1": 1}}
	states := 0
	for name, c := range parts {
		t.Run(name, func(t *testing.T) {
			f := whole(t, c)
			if states += f.States; !f.Whole {
				t.Errorf("not to the end: %v", f)
			}
		})
	}
	fmt.Println("figure explored_states", states)
}
