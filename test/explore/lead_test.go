package explore

import (
	"errors"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// This file has runs that are laid down and not searched for: what can break is so rare that no search comes to it in time.

// stage is a part of such a run.
type stage struct {
	begins string   // a driver that starts, "" is none
	on     []string // clients whose messages are delivered; those of others wait
	cut    []string // links, "A>w1", on which each message is lost, with its connection
	wait   string   // beginning of the name of a call that waits all the same
	until  func(w *World) bool
}

// lead makes the moves of a stage.
func (w *World) lead(s stage) error {
	if s.begins != "" {
		w.driver(s.begins).start()
	}
	for range mostMoves {
		if err := w.settle(); err != nil {
			return err
		}
		if s.until(w) {
			return nil
		}
		moved, err := w.leadOne(s)
		if err != nil {
			return err
		}
		if !moved {
			w.moved = append(w.moved, "time passes")
			w.pass()
		}
	}
	return errors.New("a stage does not end")
}

// leadOne makes a move of a stage, if there is one but to let time pass.
func (w *World) leadOne(s stage) (moved bool, _ error) {
	for _, c := range w.net.Calls() {
		if c.Orphan() || !slices.Contains(s.on, c.From()) || s.wait != "" && strings.HasPrefix(c.Name(), s.wait) {
			continue
		}
		switch link := c.From() + ">" + strings.TrimSuffix(c.To(), ":1"); {
		case c.Broken():
			w.moved = append(w.moved, "notice "+c.Name())
			c.Notice()
		case c.Requests() == 0:
			continue
		case slices.Contains(s.cut, link):
			w.moved = append(w.moved, "break "+link)
			w.net.Break(c.From(), c.To())
		default:
			w.moved = append(w.moved, "deliver "+c.Name())
			return true, w.deliver(c)
		}
		return true, nil
	}
	return false, nil
}

func (w *World) driver(name string) *driver {
	return w.drivers[slices.IndexFunc(w.drivers, func(d *driver) bool { return d.name == name })]
}

func (w *World) process(name string) *process {
	return w.workers[slices.IndexFunc(w.workers, func(p *process) bool { return p.name == name })]
}

// has is the end of a stage at which a client knows a content.
func has(name, content string) func(*World) bool {
	return func(w *World) bool { return w.driver(name).content == content }
}

// ended is the end of a stage at which a client's script has ended.
func ended(name string) func(*World) bool {
	return func(w *World) bool { return w.driver(name).ended }
}

// asked is the end of a stage at which a call waits.
func asked(name string) func(*World) bool {
	return func(w *World) bool {
		for _, c := range w.net.Calls() {
			if strings.HasPrefix(c.Name(), name) && c.Requests() > 0 {
				return true
			}
		}
		return false
	}
}

// held is the end of a stage at which workers hold the session under one open epoch.
func held(names ...string) func(*World) bool {
	return func(w *World) bool {
		id := w.check.acked.receipt.Session
		return slices.Equal(w.holders(id), names) && !w.process(names[0]).told.has(id).GetEpoch().GetClosed()
	}
}

// later is the end of a stage after some time.
func later(d time.Duration) func(*World) bool {
	var began time.Time
	return func(*World) bool {
		if began.IsZero() {
			began = time.Now()
		}
		return time.Since(began) >= d
	}
}

// longer than a coordinator takes to see to all copies.
const longer = 30 * time.Second

// laid makes a run that is laid down. First and second are the workers on which the session is opened, third is the other one.
func laid(t *testing.T, c Case, do func(w *World, first, second, third string) error) Found {
	t.Helper()
	f := Found{Runs: 1}
	c.Looks, c.Eager = true, true
	synctest.Test(t, func(*testing.T) {
		w, err := newWorld(c)
		defer w.close()
		if err == nil {
			third := ""
			for _, p := range w.workers {
				if !slices.Contains(w.opened, p.name) {
					third = p.name
				}
			}
			err = do(w, w.opened[0], w.opened[1], third)
		}
		f.Err, f.Run, f.Moves = err, w.moved, len(w.moved)
	})
	return f
}

// goesOnTwice lets two clients that each reach only one holder go on, and a coordinator see to what it finds.
func goesOnTwice(t *testing.T, c Case) Found {
	t.Helper()
	c.Workers, c.Parted = 3, true
	c.Drivers = []Script{{"A", []string{"open", "append", "append"}}, {"B", []string{"attach-blind", "append"}}, maker}
	return laid(t, c, func(w *World, first, second, _ string) error {
		for _, s := range []stage{
			{on: []string{"A"}, until: has("A", "A1")},
			{on: []string{"A"}, cut: []string{"A>" + second}, until: ended("A")},
			{begins: "B", on: []string{"B"}, cut: []string{"B>" + first}, until: ended("B")},
			{begins: "K", on: []string{"K"}, until: later(longer)},
		} {
			if err := w.lead(s); err != nil {
				return err
			}
		}
		for name, content := range map[string]string{"A": "A1A2", "B": "A1B1"} {
			if w.check.parted[name].content != content {
				return errors.New(name + " has not gone on")
			}
		}
		return w.bothSides()
	})
}

// TestWhatWasLeftOutIsFreedByTheLineageOfACopy: a worker is left out of a session, then the worker that went on dies. The copy that was made
// of it goes on, and has come from what the first one has, so that this is freed, and a copy is made there.
func TestWhatWasLeftOutIsFreedByTheLineageOfACopy(t *testing.T) {
	c := Case{Workers: 3, Drivers: []Script{{"A", []string{"open", "append", "append", "append"}}, maker}}
	f := laid(t, c, func(w *World, first, second, third string) error {
		for _, s := range []stage{
			{on: []string{"A"}, until: has("A", "A1")},
			{on: []string{"A"}, cut: []string{"A>" + second}, until: has("A", "A1A2")},
			{begins: "K", on: []string{"K"}, cut: []string{"K>" + second}, until: held(inOrderOf(first, third)...)},
		} {
			if err := w.lead(s); err != nil {
				return err
			}
		}
		w.crash(w.process(first))
		return w.lead(stage{on: []string{"A", "K"}, until: held(inOrderOf(second, third)...)})
	})
	if f.Err != nil {
		t.Errorf("%v", f)
	}
	t.Logf("%d moves", f.Moves)
}

func inOrderOf(names ...string) []string {
	slices.Sort(names)
	return names
}

// TestALateCopyTakesNobodysPlace: two coordinators make a copy at a worker that was killed and came back with nothing. One of them comes to
// its end long after the other, and after the client has appended more. It is refused, and the copy that is there stays.
func TestALateCopyTakesNobodysPlace(t *testing.T) {
	c := Case{Workers: 2, Drivers: []Script{{"A", []string{"open", "append", "append"}}, maker, other}, Faults: map[string]int{"crash w1": 1}}
	f := laid(t, c, func(w *World, first, second, _ string) error {
		w.crash(w.process(second))
		if err := w.start(w.process(second)); err != nil {
			return err
		}
		adopts := "L>" + second + ":1 AdoptSession"
		for _, s := range []stage{
			{on: []string{"A"}, until: has("A", "A1")},
			{begins: "L", on: []string{"L"}, wait: adopts, until: asked(adopts)},
			{begins: "K", on: []string{"K"}, until: held(first, second)},
			{on: []string{"A"}, until: ended("A")},
		} {
			if err := w.lead(s); err != nil {
				return err
			}
		}
		for _, c := range w.net.Calls() {
			if strings.HasPrefix(c.Name(), adopts) && c.Requests() > 0 {
				if err := w.deliver(c); err != nil {
					return err
				}
			}
		}
		if err := w.settle(); err != nil {
			return err
		}
		w.crash(w.process(first))
		return w.finale()
	})
	if f.Err != nil {
		t.Errorf("%v", f)
	}
	t.Logf("%d moves", f.Moves)
}
