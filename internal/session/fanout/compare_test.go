package fanout

import (
	"math"
	"testing"
	"time"

	"headwater.example/attention"
	"headwater.example/internal/session"
	"headwater.example/shard"
	"headwater.example/tensor"
)

// TestHoldersAreComparedWithinACall: what a holder took longer than the middle one counts, by its groups, and not what a call took in all.
func TestHoldersAreComparedWithinACall(t *testing.T) {
	layout, err := attention.NewLayout(tensor.BF16, 8, 8)
	if err != nil {
		t.Fatal(err)
	}
	type asked struct {
		took   time.Duration
		groups int
	}
	const ms = time.Millisecond
	for name, c := range map[string]struct {
		attend  uint32
		stripes int
		late    bool
		parts   []asked
		want    []float64 // 0 is not compared
	}{
		"alike":              {1, 0, false, []asked{{3 * ms, 3}, {3 * ms, 3}, {2 * ms, 2}}, []float64{1, 1, 0.6875}},
		"one twice as long":  {1, 0, false, []asked{{6 * ms, 3}, {3 * ms, 3}, {3 * ms, 3}}, []float64{1.875, 1, 1}},
		"of two":             {1, 0, false, []asked{{9 * ms, 4}, {3 * ms, 4}}, []float64{2.75, 1}},
		"it has more to do":  {1, 0, false, []asked{{6 * ms, 6}, {2 * ms, 2}}, []float64{1, 1}},
		"it has less to do":  {1, 0, false, []asked{{4 * ms, 2}, {4 * ms, 4}, {4 * ms, 4}}, []float64{1, 1, 1}},
		"less than the wire": {1, 0, false, []asked{{90 * time.Microsecond, 4}, {40 * time.Microsecond, 4}}, []float64{1.125, 1}},
		"one stores alone":   {1, 0, false, []asked{{6 * ms, 3}, {0, 0}, {3 * ms, 3}}, []float64{1.875, 0, 1}},
		"a holder alone":     {1, 0, false, []asked{{6 * ms, 8}}, []float64{0}},
		"one alone answers":  {1, 0, false, []asked{{6 * ms, 8}, {0, 0}}, []float64{0, 0}},
		"a prompt":           {65, 0, false, []asked{{9 * ms, 4}, {3 * ms, 4}}, []float64{0, 0}},
		"nothing attends":    {0, 0, false, []asked{{9 * ms, 4}, {3 * ms, 4}}, []float64{0, 0}},
		"in stripes":         {1, 2, false, []asked{{9 * ms, 4}, {3 * ms, 4}}, []float64{0, 0}},
		"asked twice":        {1, 0, true, []asked{{9 * ms, 4}, {3 * ms, 4}}, []float64{0, 0}},
	} {
		conns := NewConns(nil)
		call := &Call{
			lane: &Lane{conns: conns}, step: &Step{Step: session.Step{Attend: c.attend}},
			holding: &Holding{layers: []shard.LayerSpec{{KVHeads: 8, Heads: 8, Layout: layout, Stripes: c.stripes}}},
		}
		for _, a := range c.parts {
			call.parts = append(call.parts, &callPart{pace: &pace{of: conns}, took: a.took, answers: make([]int, a.groups)})
		}
		if c.late {
			call.late = call.parts[:1]
		}
		for range 2 * compareEvery {
			call.compare()
		}
		for i, p := range call.parts {
			n, q := p.pace.beside.quantiles(conns.now(), 0.5, 0.5)
			got := 0.0
			if n > 0 {
				got = float64(timesFrom(q[0])) / sameTime
			}
			if got != c.want[i] || n != 0 && n != 2 {
				t.Errorf("%s: holder %d took %v times as long as the middle one in %d calls, want %v", name, i, got, n, c.want[i])
			}
		}
		if err := conns.Close(); err != nil {
			t.Error(err)
		}
	}
}

func TestARatioIsRoundedDown(t *testing.T) {
	for x := 0.05; x < 100; x *= 1.003 {
		var counted times
		counted.add(0, time.Duration(x*sameTime))
		_, q := counted.quantiles(0, 0.5, 0.5)
		if got := float64(timesFrom(q[0])) / sameTime; got > x*(1+1e-6) || got < x*8/9 || math.IsNaN(got) {
			t.Fatalf("%v is told as %v", x, got)
		}
	}
}
