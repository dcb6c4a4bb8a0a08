package ledger_test

import (
	"errors"
	"fmt"
	"testing"

	"pgregory.net/rapid"

	"headwater.example/coordinator/jobs/internal/ledger"
	"headwater.example/shard"
)

// TestEveryUnitIsAcceptedOnce drives ledgers through plans, answers, repeated and foreign answers and deaths, and compares
// with a model that is only a map of who was given what.
func TestEveryUnitIsAcceptedOnce(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var shapes []shard.LayerShape
		var problems []ledger.Problem
		for i := range rapid.IntRange(1, 3).Draw(t, "problems") {
			groups := rapid.IntRange(1, 4).Draw(t, "groups")
			shapes = append(shapes, shard.LayerShape{Heads: groups, KVHeads: groups, HeadDim: 1, VDim: 1})
			problems = append(problems, ledger.Problem{Layer: shard.Layer(i), Groups: groups, Blocks: rapid.IntRange(1, 3).Draw(t, "blocks")})
		}
		geometry, err := shard.NewGeometry(shapes)
		if err != nil {
			t.Fatal(err)
		}
		l := ledger.New(problems)
		type place struct {
			worker string
			epoch  shard.Epoch
		}
		holders := map[[2]int]place{}
		done := map[ledger.Unit]bool{}
		var plan *shard.Plan
		next := 0
		living := map[string]bool{}
		for l.Pending() > 0 {
			for len(living) == 0 || rapid.IntRange(0, 3).Draw(t, "join") == 0 && len(living) < 4 {
				living[fmt.Sprintf("w%d", next)] = true
				next++
			}
			var workers []shard.Worker
			for w := range living {
				workers = append(workers, shard.Worker{Name: w, Weight: 1})
			}
			if plan, err = shard.MakePlan(geometry, workers, plan); err != nil {
				t.Fatal(err)
			}
			for _, load := range l.Adopt(plan) {
				if have := holders[[2]int{load.Problem, int(load.Group)}]; have.worker != "" {
					t.Fatalf("%v is loaded though %q holds it", load, have.worker)
				}
				if !living[load.Worker] {
					t.Fatalf("%v is given to the dead", load)
				}
				holders[[2]int{load.Problem, int(load.Group)}] = place{load.Worker, load.Epoch}
			}
			for range rapid.IntRange(0, 8).Draw(t, "answers") {
				p := rapid.IntRange(0, len(problems)-1).Draw(t, "problem")
				u := ledger.Unit{
					Problem: p, Group: shard.Group(rapid.IntRange(-1, problems[p].Groups).Draw(t, "group")),
					Block: rapid.IntRange(-1, problems[p].Blocks).Draw(t, "block"),
				}
				h := holders[[2]int{p, int(u.Group)}]
				worker, epoch := h.worker, h.epoch
				if rapid.IntRange(0, 4).Draw(t, "wrong") == 0 {
					worker = rapid.SampledFrom([]string{"", "w0", "w1", "stranger"}).Draw(t, "worker")
				}
				if rapid.IntRange(0, 4).Draw(t, "stale") == 0 {
					epoch--
				}
				inside := u.Group >= 0 && int(u.Group) < problems[p].Groups && u.Block >= 0 && u.Block < problems[p].Blocks
				right := inside && h.worker != "" && worker == h.worker && epoch == h.epoch && !done[u]
				before := l.Pending()
				err := l.Answer(worker, epoch, u)
				var refused *ledger.RefusedError
				switch {
				case right && err != nil:
					t.Fatalf("%v of %q is refused: %v", u, worker, err)
				case right:
					done[u] = true
				case !errors.As(err, &refused) || l.Pending() != before:
					t.Fatalf("%v of %q in epoch %d is not refused: %v", u, worker, epoch, err)
				}
			}
			if rapid.IntRange(0, 2).Draw(t, "death") == 0 {
				for w := range living {
					delete(living, w)
					l.Lose(w)
					for k, h := range holders {
						if h.worker == w {
							delete(holders, k)
						}
					}
					break
				}
			}
			if l.Pending() != l.Total()-len(done) {
				t.Fatalf("%d of %d are pending after %d answers", l.Pending(), l.Total(), len(done))
			}
			// What is owed by the living is exactly what has not been answered of what they hold.
			for p := range problems {
				for g := range problems[p].Groups {
					asks := l.Asks(p, []shard.Group{shard.Group(g)})
					open := 0
					for b := range problems[p].Blocks {
						if !done[ledger.Unit{Problem: p, Group: shard.Group(g), Block: b}] {
							open++
						}
					}
					if len(asks) != open {
						t.Fatalf("problem %d group %d: %d asks for %d open blocks", p, g, len(asks), open)
					}
				}
			}
		}
	})
}
