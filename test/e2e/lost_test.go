//go:build linux

package e2e

import (
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"

	"headwater.example/client"
	"headwater.example/internal/localcluster"
)

// TestWhatIsLostIsSaidAndMadeAnew kills two of three workers, and with them all holders of some shards of sessions with one copy. Every
// client is told exactly those shards, while the workers are away and after they have come back without them. From the rows that it
// has, it makes the session anew, and goes on with the same bits. The Python client takes part if HEADWATER_PYTHON names an interpreter
// that has it.
func TestWhatIsLostIsSaidAndMadeAnew(t *testing.T) {
	t.Parallel()
	e := &events{cluster: start(t, localcluster.Options{Workers: 3, Threads: 1, Replicas: 1}), t: t, documented: map[string]string{}, tried: &sync.Map{}}
	e.open()
	grow := func(w *way, s string) {
		for _, step := range []string{"append=70 attend=1", "layer=1 append=70 attend=1", "layer=2 append=69 attend=1"} {
			e.goesWell(w, "step "+s+" "+step)
		}
	}
	want := map[string]string{}
	for i, w := range e.ways {
		for _, s := range []string{fmt.Sprintf("a%d", i), fmt.Sprintf("b%d", i)} { // recovered before the workers are back, and after
			e.goesWell(w, "open "+s+" layers=3 heads=8 kv=4")
			grow(w, s)
			want[s] = e.heldBy(s, e.Name(0), e.Name(1))
		}
	}
	e.Kill(0)
	e.Kill(1)
	told := func(w *way, s string) {
		if out := e.say(w, "fork "+s+" as=none"); !strings.HasPrefix(out, "error: lost") && !strings.HasPrefix(out, "error: unknown") {
			t.Errorf("%s: a session without some of its shards is forked: %s", w.name, out)
		}
		if got := e.say(w, "lost groups=all"); got != want[s] {
			t.Errorf("%s: lost are said to be\n%s\nand are\n%s\n%s", w.name, got, want[s], e.say(w, "why"))
		}
	}
	recovered := func(i int, w *way, s string) {
		e.goesWell(w, fmt.Sprintf("recover %s as=%s+", s, s))
		fresh := fmt.Sprintf("f%d%s", i, s)
		e.goesWell(w, "open "+fresh+" layers=3 heads=8 kv=4")
		grow(w, fresh)
		for layer := range 3 {
			step := fmt.Sprintf(" layer=%d append=1 attend=3", layer)
			if got, want := e.say(w, "step "+s+"+"+step), e.say(w, "step "+fresh+step); got != want || strings.HasPrefix(got, "error") {
				t.Errorf("%s: layer %d of a recovered session: %s; of one that was never lost: %s", w.name, layer, got, want)
			}
		}
	}
	for i, w := range e.ways {
		told(w, fmt.Sprintf("a%d", i))
		recovered(i, w, fmt.Sprintf("a%d", i))
	}
	for _, worker := range []int{0, 1} {
		if err := e.RestartWorker(bounded(t), worker); err != nil {
			t.Fatal(err)
		}
	}
	for i, w := range e.ways {
		s := fmt.Sprintf("b%d", i)
		if said := e.until(w, "fork "+s+" as=none"); !strings.HasPrefix(said, "gone") {
			t.Errorf("%s: after its workers have restarted: %s", w.name, said)
		}
		told(w, s)
		recovered(i, w, s)
	}
}

// heldBy returns, as a script's lost tells it, the shards of a session that only these workers hold.
func (e *events) heldBy(name string, workers ...string) string {
	e.t.Helper()
	all, err := e.Sessions(bounded(e.t))
	if err != nil {
		e.t.Fatal(err)
	}
	i := slices.IndexFunc(all.Sessions, func(s client.SessionState) bool { return s.Name == name })
	if i < 0 {
		e.t.Fatalf("no session is named %s", name)
	}
	state, err := e.FindSession(bounded(e.t), all.Sessions[i].ID)
	if err != nil {
		e.t.Fatal(err)
	}
	holders := map[[2]int][]string{}
	for _, h := range state.Holders {
		for _, of := range h.Layers {
			for _, g := range of.Groups {
				shard := [2]int{of.Layer, int(g)}
				holders[shard] = append(holders[shard], h.Name)
			}
		}
	}
	var lines []string
	for layer, told := range state.Layers {
		var lost []string
		for g := range 4 {
			if !slices.ContainsFunc(holders[[2]int{layer, g}], func(w string) bool { return !slices.Contains(workers, w) }) {
				lost = append(lost, fmt.Sprint(g))
			}
		}
		if len(lost) > 0 {
			lines = append(lines, fmt.Sprintf("layer %d: groups %s, positions %d", layer, strings.Join(lost, " "), told.Length))
		}
	}
	if len(lines) == 0 {
		e.t.Fatalf("session %s: every shard is also at another worker than %v: %v", name, workers, holders)
	}
	return strings.Join(lines, "\n")
}
