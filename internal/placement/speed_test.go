package placement_test

import (
	"math"
	"testing"
	"time"

	"pgregory.net/rapid"

	"headwater.example/internal/placement"
	"headwater.example/shard"
)

// looks looks at measurements n times, as often as it counts, and returns the share of w after each.
func looks(s *placement.Speeds, now *time.Time, n int, m placement.Measured) (shares []float64) {
	m.Worker = "w"
	for range n {
		*now = now.Add(placement.SpeedEvery)
		s.Look(*now, []placement.Measured{m})
		shares = append(shares, s.Share("w"))
	}
	return shares
}

func TestASlowWorkerHasLessOfItsWeight(t *testing.T) {
	const many, few = 1000, 5
	last := func(x []float64) float64 { return x[len(x)-1] }
	for name, c := range map[string]struct {
		beside   float64
		compared uint64
		want     float64
	}{
		"as fast as others":       {1, many, 1},
		"faster":                  {0.3, many, 1},
		"an eighth slower":        {1.12, many, 1},
		"half as long again":      {1.5, many, 11. / 16},
		"twice as slow":           {2, many, 0.5},
		"ten times as slow":       {10, many, 0.5},
		"infinitely slow":         {math.Inf(1), many, 0.5},
		"slow in too few answers": {10, few, 1},
		"of no number":            {math.NaN(), many, 1},
		"below all":               {-1, many, 1},
	} {
		var s placement.Speeds
		now := time.Unix(1, 0)
		shares := looks(&s, &now, 40, placement.Measured{Beside: c.beside, Compared: c.compared})
		if last(shares) != c.want {
			t.Errorf("%s: its share is %v, want %v", name, last(shares), c.want)
		}
		for i := 1; i < len(shares); i++ {
			if math.Abs(shares[i]-shares[i-1]) > 1./16 {
				t.Errorf("%s: its share jumps from %v to %v", name, shares[i-1], shares[i])
			}
		}
		if back := looks(&s, &now, 40, placement.Measured{Beside: 1, Compared: many}); last(back) != 1 {
			t.Errorf("%s: after it was as fast as others its share is %v", name, last(back))
		}
	}
}

// TestAShareDoesNotSwing: what is measured swings around any value by a tenth, and the share comes to a rest.
func TestAShareDoesNotSwing(t *testing.T) {
	for beside := 1.0; beside < 2.5; beside += 0.01 {
		var s placement.Speeds
		now := time.Unix(1, 0)
		changes, before := 0, 1.0
		for i := range 200 {
			x := beside * (1 + 0.05*float64(i%2*2-1))
			share := looks(&s, &now, 1, placement.Measured{Beside: x, Compared: 100})[0]
			if i > 20 && share != before {
				changes++
			}
			before = share
		}
		if changes > 0 {
			t.Errorf("at %.2f the share changes %d times", beside, changes)
		}
	}
}

func TestAShareIsForgotten(t *testing.T) {
	var s placement.Speeds
	now := time.Unix(1, 0)
	slow := placement.Measured{Beside: 3, Compared: 100}
	looks(&s, &now, 3, slow)
	if got := s.Share("w"); got != 13./16 {
		t.Fatalf("its share is %v", got)
	}
	// It is looked at no more often than that.
	for range 100 {
		now = now.Add(placement.SpeedEvery / 200)
		s.Look(now, []placement.Measured{{Worker: "w", Beside: 3, Compared: 100}})
	}
	if got := s.Share("w"); got != 13./16 {
		t.Errorf("looked at too often, its share is %v", got)
	}
	// Nothing is measured: what was known is kept for a while, and then comes back step by step.
	if got := looks(&s, &now, 10, placement.Measured{}); got[9] != 13./16 {
		t.Errorf("its share is forgotten after %v: %v", 10*placement.SpeedEvery, got)
	}
	if got := looks(&s, &now, 20, placement.Measured{}); got[19] != 1 {
		t.Errorf("its share is still %v", got)
	}
	// Another start of the worker, and one that was away, begin anew.
	looks(&s, &now, 3, slow)
	if got := looks(&s, &now, 1, placement.Measured{Boot: [16]byte{1}}); got[0] != 1 {
		t.Errorf("a worker that has started again has a share of %v", got)
	}
	looks(&s, &now, 3, slow)
	now = now.Add(placement.SpeedEvery)
	s.Look(now, nil)
	if got := looks(&s, &now, 1, placement.Measured{}); got[0] != 1 {
		t.Errorf("a worker that was away has a share of %v", got)
	}
}

// TestWeighing: places do not change as long as all shares are whole, whatever the weights, and a fixed weight is kept beside others.
func TestWeighing(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		rooms := drawRooms(t)
		before := append([]placement.Room(nil), rooms...)
		var s placement.Speeds
		now := time.Unix(1, 0)
		var fast, slow []placement.Measured
		for i, r := range rooms {
			fast = append(fast, placement.Measured{Worker: r.Name, Beside: 1, Compared: 100})
			slow = append(slow, fast[i])
		}
		s.Look(now, fast)
		s.Weigh(rooms, func(int) bool { return false })
		for i := range rooms {
			if rooms[i] != before[i] {
				t.Fatalf("a weight of a fast worker has changed: %+v", rooms[i])
			}
		}
		one := rapid.IntRange(0, len(rooms)-1).Draw(t, "slow")
		slow[one].Beside = 4
		for range 4 {
			now = now.Add(placement.SpeedEvery)
			s.Look(now, slow)
		}
		fixed := rapid.Bool().Draw(t, "fixed")
		s.Weigh(rooms, func(i int) bool { return fixed && i == one })
		total, had := 0.0, 0.0
		for i := range rooms {
			total, had = total+float64(rooms[i].Weight), had+float64(before[i].Weight)
		}
		share := float64(rooms[one].Weight) / float64(before[one].Weight)
		for i := range rooms {
			if own := float64(rooms[i].Weight) / float64(before[i].Weight); i != one && (fixed && own != share || !fixed && own*12 != share*16) {
				t.Fatalf("%+v beside %+v, fixed %v", rooms[i], rooms[one], fixed)
			}
		}
	})
	// A slow worker is drawn less.
	var s placement.Speeds
	now := time.Unix(1, 0)
	for range 20 {
		now = now.Add(placement.SpeedEvery)
		s.Look(now, []placement.Measured{{Worker: "w0", Beside: 9, Compared: 100}, {Worker: "w1", Beside: 1, Compared: 100}})
	}
	g, err := shard.NewGeometry([]shard.LayerShape{{Heads: 1, KVHeads: 1, HeadDim: 8, VDim: 8}})
	if err != nil {
		t.Fatal(err)
	}
	owned := map[string]int{}
	const sessions = 10_000
	for key := range uint64(sessions) {
		rooms := []placement.Room{room("w0", "", 1, 1000), room("w1", "", 1, 1000)}
		s.Weigh(rooms, func(int) bool { return false })
		placed, err := placement.Place(g, key, rooms, 0, 0)
		if err != nil {
			t.Fatal(err)
		}
		for name := range placed {
			owned[name]++
		}
	}
	if share := float64(owned["w0"]) / sessions; math.Abs(share-1./3) > 0.02 {
		t.Errorf("the slow worker owns %v of the sessions, want a third", share)
	}
}
