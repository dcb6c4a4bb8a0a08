//go:build linux

package e2e

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"headwater.example/client"
	"headwater.example/internal/localcluster"
	"headwater.example/internal/testkit/script"
)

// way is a client of a cluster, of one language, relayed or direct.
type way struct {
	name   string
	direct bool
	driver script.Driver
}

// events is a cluster whose sessions things happen to, and what docs/errors.md says of each.
type events struct {
	*cluster
	t          *testing.T
	documented map[string]string // the kind of each event, as it stands in the page
	tried      *sync.Map         // events
	ways       []*way
}

// TestOneEventOneError: the events of docs/errors.md give the kinds that the page says, by every client, relayed and direct. The
// Python client takes part if HEADWATER_PYTHON names an interpreter that has it.
func TestOneEventOneError(t *testing.T) {
	t.Parallel()
	documented, tried := documentedEvents(t), &sync.Map{}
	t.Run("clusters", func(t *testing.T) {
		for name, test := range map[string]struct {
			options localcluster.Options
			run     func(*events)
		}{
			"lost":    {localcluster.Options{Workers: 2}, (*events).lost},
			"hung":    {localcluster.Options{Workers: 2}, (*events).hung},
			"copied":  {localcluster.Options{Workers: 3, Replicas: 1}, (*events).copied},
			"ended":   {localcluster.Options{Workers: 2, WorkerArgs: []string{"--session-ttl", "100s"}}, (*events).ended},
			"refused": {localcluster.Options{Workers: 2, Memory: 32 << 20}, (*events).refused},
			"alone":   {localcluster.Options{Workers: 2}, (*events).alone},
		} {
			t.Run(name, func(t *testing.T) {
				t.Parallel()
				test.options.Threads = 1
				test.run(&events{cluster: start(t, test.options), t: t, documented: documented, tried: tried})
			})
		}
	})
	for event := range documented {
		if _, ok := tried.Load(event); !ok && !t.Failed() {
			t.Errorf("docs/errors.md has the event %q, which nothing tries", event)
		}
	}
}

// documentedEvents reads the table of events.
func documentedEvents(t *testing.T) map[string]string {
	t.Helper()
	page, err := os.ReadFile("../../docs/errors.md")
	if err != nil {
		t.Fatal(err)
	}
	_, part, _ := strings.Cut(string(page), "\n## Events\n")
	part, _, _ = strings.Cut(part, "\n## ")
	kinds := map[string]string{}
	for line := range strings.Lines(part) {
		cells := strings.Split(strings.Trim(line, "|\n"), "|")
		if len(cells) == 2 && !strings.Contains(cells[0], "---") {
			kinds[strings.TrimSpace(cells[0])] = strings.TrimSpace(cells[1])
		}
	}
	delete(kinds, "event")
	if len(kinds) == 0 {
		t.Fatal("docs/errors.md has no table of events")
	}
	return kinds
}

// open starts the clients, each with sessions of these names.
func (e *events) open(sessions ...string) {
	e.t.Helper()
	program := script.Program(os.Getenv("HEADWATER_PYTHON"), "../../clients/python/tests/script_driver.py")
	for _, direct := range []bool{false, true} {
		e.ways = append(e.ways, &way{fmt.Sprintf("Go, direct %v", direct), direct, script.Go(e.t, e.Address(), direct)})
		if os.Getenv("HEADWATER_PYTHON") != "" {
			e.ways = append(e.ways, &way{fmt.Sprintf("Python, direct %v", direct), direct, program(e.t, e.Address(), direct)})
		}
	}
	for _, w := range e.ways {
		e.t.Cleanup(func() {
			if err := w.driver.Close(); err != nil {
				e.t.Errorf("%s: %v", w.name, err)
			}
		})
	}
	e.each(func(w *way) {
		for _, s := range sessions {
			e.goesWell(w, "open "+s)
			e.goesWell(w, "step "+s+" append=70 attend=70")
		}
	})
}

// each does something by every client, all at once.
func (e *events) each(do func(*way)) {
	var wait sync.WaitGroup
	for _, w := range e.ways {
		wait.Go(func() { do(w) })
	}
	wait.Wait()
}

// say does a line of a script, and returns what the client says.
func (e *events) say(w *way, line string) string {
	words := strings.Fields(line)
	c := script.Command{Verb: words[0], Args: map[string]string{}}
	for _, word := range words[1:] {
		if key, value, ok := strings.Cut(word, "="); ok {
			c.Args[key] = value
		} else if c.Name == "" {
			c.Name = word
		} else {
			c.Args[word] = "true"
		}
	}
	out, err := w.driver.Do(c)
	if err != nil {
		e.t.Errorf("%s: %s: %v", w.name, line, err)
	}
	return out
}

// goesWell does a line that must go well.
func (e *events) goesWell(w *way, line string) {
	if out := e.say(w, line); strings.HasPrefix(out, "error") {
		e.t.Errorf("%s: %s: %s", w.name, line, e.say(w, "why"))
	}
}

// calls are those on a session that an event makes fail alike.
func calls(s string) []string {
	return []string{"step " + s + " append=1 attend=1", "fork " + s + " as=other", "truncate " + s + " to=3"}
}

// fails does lines that must fail in the way that the page says of an event, with these words.
func (e *events) fails(w *way, event string, lines []string, words ...string) {
	cell, ok := e.documented[event]
	if !ok {
		e.t.Errorf("docs/errors.md does not have the event %q", event)
		return
	}
	e.tried.Store(event, true)
	kind := cell
	if i := strings.IndexAny(cell, ",;:"); i >= 0 {
		kind = cell[:i]
	}
	for _, line := range lines {
		out := e.say(w, line)
		said := e.say(w, "why")
		got, text, _ := strings.Cut(said, "\n")
		want := kind
		if strings.Contains(cell, "`ErrUnreachable`") {
			want += ", unreachable"
		}
		if !strings.HasPrefix(out, "error") || got != want || strings.Contains(text, "\n") {
			e.t.Errorf("%s: %s: %s: %s, which is %q, docs/errors.md says %q: %s", event, w.name, line, out, got, cell, text)
		}
		if strings.Contains(cell, "`ErrTakenOver`") && out != "error: stale_epoch" {
			e.t.Errorf("%s: %s: %s: %s", event, w.name, line, out)
		}
		for _, word := range words {
			if !strings.Contains(text, word) {
				e.t.Errorf("%s: %s: %s: the error does not name %s: %s", event, w.name, line, word, text)
			}
		}
	}
}

// until repeats a line that may fail with "try again" until it does not, and returns what is said then.
func (e *events) until(w *way, line string) string {
	ctx := bounded(e.t)
	tick := time.NewTicker(50 * time.Millisecond) // nothing tells
	defer tick.Stop()
	for {
		out := e.say(w, line)
		if !strings.HasPrefix(out, "error") {
			return out
		}
		if why := e.say(w, "why"); !strings.HasPrefix(why, "try again") {
			return why
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return "it is said to try again for ever"
		}
	}
}

func (e *events) lost() {
	e.open("a", "b")
	e.Kill(1)
	e.each(func(w *way) { e.fails(w, "a worker is killed", calls("a"), e.Name(1)) })
	if err := e.RestartWorker(bounded(e.t), 1); err != nil {
		e.t.Fatal(err)
	}
	e.each(func(w *way) {
		for _, s := range []string{"a", "b"} {
			if why := e.until(w, "step "+s+" append=1 attend=1"); !strings.HasPrefix(why, "gone") {
				e.t.Errorf("a worker that was killed is back: %s: session %s: %s", w.name, s, why)
			}
			e.fails(w, "a worker is killed and has restarted", calls(s))
		}
	})
}

// pause stops a worker's process, and waits until none of its threads runs.
func (e *events) pause(worker int) {
	e.t.Helper()
	e.signal(e.t, worker, syscall.SIGSTOP)
	if err := unix.Waitid(unix.P_PID, e.Process(worker), nil, unix.WSTOPPED|unix.WNOWAIT, nil); err != nil {
		e.t.Fatalf("worker %s does not stop: %v", e.Name(worker), err)
	}
}

func (e *events) hung() {
	e.open("a", "b")
	own, err := e.OpenSession(bounded(e.t), client.SessionOptions{Layers: []client.Layer{{Heads: 2, KVHeads: 2, HeadDim: 4}}})
	if err != nil {
		e.t.Fatal(err)
	}
	e.pause(1)
	defer e.signal(e.t, 1, syscall.SIGCONT)
	var wait sync.WaitGroup
	wait.Go(func() { e.each(func(w *way) { e.goesWell(w, "step a append=1 attend=1") }) })
	// It hangs for as long as a step does that is given up.
	e.tried.Store("a worker hangs for less, or its connection breaks and is restored", true)
	ctx, cancel := context.WithTimeout(e.t.Context(), time.Second)
	defer cancel()
	row := make([]float32, 8)
	if err := own.Do(ctx, &client.Step{K: row, V: row}); !errors.Is(err, ctx.Err()) || errors.Is(err, client.ErrTryAgain) {
		e.t.Errorf("a step of a hung worker that ran out of time: %v", err)
	}
	e.signal(e.t, 1, syscall.SIGCONT)
	wait.Wait()

	e.pause(1)
	e.each(func(w *way) {
		e.fails(w, "a worker hangs", []string{"step b append=1 attend=1"}, e.Name(1))
	})
	e.signal(e.t, 1, syscall.SIGCONT)
	e.each(func(w *way) {
		for _, s := range []string{"b", "a"} {
			if out := e.until(w, "step "+s+" append=1 attend=1"); !strings.HasPrefix(out, "length 7") {
				e.t.Errorf("a worker that hung goes on: %s: session %s: %s", w.name, s, out)
			}
		}
	})
}

// copied hangs one worker and kills another, of sessions that have copies: no client notices, nor when the worker that hung goes on.
func (e *events) copied() {
	e.open("a", "b", "idle")
	e.tried.Store("a worker is killed or hangs, and others have copies of all that it held", true)
	length := 70
	step := func(sessions ...string) {
		e.t.Helper()
		length++
		e.each(func(w *way) {
			for _, s := range sessions {
				line := "step " + s + " append=1 attend=1"
				if out := e.say(w, line); !strings.HasPrefix(out+"\n", fmt.Sprintf("length %d\n", length)) {
					e.t.Errorf("%s: %s: %s: %s, want length %d", w.name, line, out, e.say(w, "why"), length)
				}
			}
		})
	}
	e.pause(1)
	step("a", "b")
	step("a", "b")
	e.signal(e.t, 1, syscall.SIGCONT)
	step("a", "b")
	e.awaitCopies(e.t, 2, func(s client.SessionState) bool { return s.Name != "idle" })
	step("a", "b")
	e.Kill(0)
	step("a", "b")
	e.awaitCopies(e.t, 2, func(client.SessionState) bool { return true })
	step("a", "b")
	e.each(func(w *way) {
		e.goesWell(w, "fork a as=forked")
		e.goesWell(w, "truncate a to=3")
		e.goesWell(w, "step idle append=1 attend=1")
	})
}

func (e *events) ended() {
	e.open("dropped", "taken")
	all, err := e.Sessions(bounded(e.t))
	if err != nil || len(all.Sessions) != 2*len(e.ways) {
		e.t.Fatalf("%d sessions: %v", len(all.Sessions), err)
	}
	for _, s := range all.Sessions {
		if s.Name == "dropped" {
			if err := e.DropSession(bounded(e.t), s.ID); err != nil {
				e.t.Error(err)
			}
		}
	}
	e.each(func(w *way) {
		e.fails(w, "the session is dropped by another client", calls("dropped"))
		e.goesWell(w, "attach taken as=mine")
		e.fails(w, "another client has attached", calls("taken"))
		e.goesWell(w, "step mine append=1 attend=1")
		e.fails(w, "a malformed id", []string{"attach id=abc as=none", "attach id=zz" + strings.Repeat("0", 30) + " as=none"})
		e.fails(w, "an id that no worker holds", []string{"attach id=" + strings.Repeat("ab", 16) + " as=none"})
		e.goesWell(w, "open brief ttl=1s")
	})
	e.awaitEnd("brief")
	e.each(func(w *way) { e.fails(w, "the session was evicted or has expired", calls("brief")) })
}

// awaitEnd waits until no session has a name.
func (e *events) awaitEnd(name string) {
	e.t.Helper()
	ctx := bounded(e.t)
	tick := time.NewTicker(50 * time.Millisecond) // nothing tells
	defer tick.Stop()
	for {
		all, err := e.Sessions(ctx)
		if err != nil {
			e.t.Fatal(err)
		}
		if !slices.ContainsFunc(all.Sessions, func(s client.SessionState) bool { return s.Name == name }) {
			return
		}
		<-tick.C
	}
}

func (e *events) refused() {
	e.open("a")
	e.each(func(w *way) {
		e.fails(w, "a step that is too large, of a wrong shape, or not finite", []string{
			"step a append=5000 attend=1 tree=diagonal", // a mask may be over 4096
			"step a append=1 misshapen",
			"step a append=1 fill=Inf",
			"step a append=1 attend=1 fill=1e38", // scores that overflow
		})
		e.goesWell(w, "step a append=1 attend=1")
	})
	filler, err := e.OpenSession(bounded(e.t), client.SessionOptions{Layers: []client.Layer{{Heads: 2, KVHeads: 2, HeadDim: 512}}})
	if err != nil {
		e.t.Fatal(err)
	}
	for tokens := 64; tokens > 0; {
		rows := make([]float32, tokens*2*512)
		if err := filler.Do(bounded(e.t), &client.Step{K: rows, V: rows}); errors.Is(err, client.ErrOverBudget) {
			tokens /= 2
		} else if err != nil {
			e.t.Fatal(err)
		}
	}
	line := "step big append=1" // as large a page as was refused
	e.each(func(w *way) {
		e.goesWell(w, "open big dim=512")
		e.fails(w, "the workers have no room", []string{line})
	})
	if err := filler.Drop(bounded(e.t)); err != nil {
		e.t.Fatal(err)
	}
	e.each(func(w *way) { e.goesWell(w, line) })
}

func (e *events) alone() {
	e.open("a")
	e.KillCoordinator()
	e.each(func(w *way) {
		lines := []string{"open c"}
		if w.direct {
			e.goesWell(w, "step a append=1 attend=1")
		} else {
			lines = append(calls("a"), lines...)
		}
		e.fails(w, "the coordinator is killed", lines)
	})
	e.restart(e.t)
	e.each(func(w *way) {
		if out := e.until(w, "step a append=1 attend=1"); !strings.HasPrefix(out, "length 7") {
			e.t.Errorf("the coordinator is back: %s: %s", w.name, out)
		}
	})
	e.Kill(0)
	e.Kill(1)
	e.each(func(w *way) {
		for end := time.Now().Add(patience); ; {
			if out := e.say(w, "open c"); !strings.HasPrefix(out, "error") {
				e.t.Errorf("%s: a session without workers: %s", w.name, out)
				return
			}
			why := e.say(w, "why")
			if strings.Contains(why, "no worker") || !strings.HasPrefix(why, "try again") || time.Now().After(end) {
				break
			}
		}
		e.fails(w, "no worker has joined", []string{"open c"}, "no worker")
	})
}
