package explore

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"sync"

	"headwater.example/client"
)

// Script is what a client does, one word after the other:
//
//	open       opens the session
//	attach     takes it over, with the receipt of what was acknowledged last; "attach-blind" without; "attach-any" without if the
//	           receipt is refused, and there was a truncation of which nobody knows what became
//	append     appends a token, whose query attends
//	read       attends once more with the newest token's query
//	cut-N      takes back the last N tokens
//	copy       makes the copies that are missing, as a coordinator does
//
// A word is tried again if its error says so, up to tries times in all. After an error that says otherwise the script ends.
type Script struct {
	Name string
	Do   []string
}

const tries = 3

// driver is a script as it runs.
type driver struct {
	*party
	world   *World
	script  Script
	ctx     context.Context
	cancel  context.CancelFunc
	running sync.WaitGroup
	started bool

	session *client.Session
	content string   // what it knows to be in the session
	maybe   []string // what else may be, after an error
	tokens  int      // appended so far
	failed  error    // with which the script ended

	mu   sync.Mutex
	said []event // not reported yet
	// What was reported.
	at    int // events
	ended bool
}

func (w *World) newDriver(s Script) (*driver, error) {
	p, err := w.newParty(s.Name)
	if err != nil {
		return nil, err
	}
	d := &driver{party: p, world: w, script: s}
	d.ctx, d.cancel = bounded()
	return d, nil
}

func (d *driver) start() {
	d.started = true
	d.running.Go(func() {
		for _, word := range d.script.Do {
			if !d.try(word) {
				break
			}
		}
		d.say(event{what: scriptEnds})
	})
}

func (d *driver) close() {
	d.cancel()
	d.running.Wait()
	d.party.close(d.world)
}

func (d *driver) say(e event) {
	e.driver = d.name
	d.mu.Lock()
	defer d.mu.Unlock()
	d.said = append(d.said, e)
}

// report gives the checker what the driver has said.
func (d *driver) report() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, e := range d.said {
		d.at++
		if e.what == scriptEnds {
			d.ended = true
			continue
		}
		if err := d.world.check.take(d.world, e); err != nil {
			return err
		}
	}
	d.said = d.said[:0]
	return nil
}

// try does a word until it goes well, and reports whether the script goes on.
func (d *driver) try(word string) bool {
	do := d.meaning(word)
	for range tries {
		d.failed = do()
		if d.failed == nil {
			return true
		}
		if !errors.Is(d.failed, client.ErrTryAgain) {
			return false
		}
	}
	return false
}

// meaning returns what does a word, and does the same when it is called again.
func (d *driver) meaning(word string) func() error {
	kind, arg, _ := strings.Cut(word, "-")
	switch kind {
	case "open":
		return d.open
	case "attach":
		return func() error {
			err := d.attach(arg != "blind")
			if arg == "any" && err != nil && !errors.Is(err, client.ErrTryAgain) && d.world.check.moved(d.world.check.last(), d.name) {
				err = d.attach(false)
			}
			return err
		}
	case "append":
		d.tokens++
		token := d.name + string(rune('0'+d.tokens))
		return func() error { return d.append(token) }
	case "read":
		return d.read
	case "cut":
		n, _ := strconv.Atoi(arg)
		after := d.content[:max(0, len(d.content)-n*tokenLen)]
		return func() error { return d.cut(after) }
	case "copy":
		return d.copy
	}
	panic("explore: no word " + word)
}

// call tells of an operation before and after it is done.
func (d *driver) call(o operation, do func() (string, error)) error {
	o.before = append([]string{d.content}, d.maybe...)
	d.say(event{what: begins, op: o})
	content, err := do()
	o.content = content
	done := event{what: ends, op: o, err: err}
	if err == nil {
		r := d.session.Receipt()
		done.receipt = &r
	}
	d.say(done)
	return err
}

func (d *driver) open() error {
	return d.call(operation{kind: opens}, func() (_ string, err error) {
		d.session, err = d.client.OpenSession(d.ctx, client.SessionOptions{
			Layers: []client.Layer{layer}, Replicas: 1, Workers: 2, Direct: true, Codec: client.Raw, Name: "explored",
		})
		return "", err
	})
}

func (d *driver) attach(known bool) error {
	var options client.AttachOptions
	options.Direct, options.Codec = true, client.Raw
	last := d.world.check.last()
	if last.receipt == nil {
		return nil // nothing was opened
	}
	if known {
		options.Receipt = last.receipt
	}
	return d.call(operation{kind: takes, receipt: known, least: last}, func() (string, error) {
		s, err := d.client.Attach(d.ctx, last.receipt.Session, options)
		if err != nil {
			return "", err
		}
		d.session, d.maybe = s, nil
		d.content, err = contentOf(s.Receipt(), d.world.check.known())
		return d.content, err
	})
}

func (d *driver) append(token string) error {
	if d.session == nil {
		return nil
	}
	after := d.content + token
	err := d.call(operation{kind: changes, after: after}, func() (string, error) { return after, d.step(token, after) })
	if err == nil {
		d.content, d.maybe = after, nil
	} else {
		d.maybe = append(d.maybe, after)
	}
	return err
}

// step appends a token, or only attends, and compares what comes back with what is to come.
func (d *driver) step(token, after string) error {
	if after == "" {
		return nil
	}
	var k, v []float32
	if token != "" {
		k, v = rows(token, 'k'), rows(token, 'v')
	}
	newest := after[len(after)-tokenLen:]
	out := newOutput()
	if err := d.session.Step(d.ctx, 0, rows(newest, 'q'), k, v, out.Context, out.LSE); err != nil {
		return err
	}
	want := attended(after)
	if !slices.Equal(out.Context, want.Context) || !slices.Equal(out.LSE, want.LSE) {
		return fmt.Errorf("%w: %s: the context after %q has other bits than it is to have: %v, not %v", errWrong, d.name, after, out.Context, want.Context)
	}
	return nil
}

func (d *driver) read() error {
	if d.session == nil || d.content == "" {
		return nil
	}
	return d.call(operation{kind: changes, after: d.content}, func() (string, error) { return d.content, d.step("", d.content) })
}

func (d *driver) cut(after string) error {
	if d.session == nil {
		return nil
	}
	err := d.call(operation{kind: changes, after: after}, func() (string, error) {
		return after, d.session.Truncate(d.ctx, len(after)/tokenLen)
	})
	if err != nil {
		d.maybe = append(d.maybe, d.content)
	} else {
		d.maybe = nil
	}
	d.content = after // an unknown outcome counts as done
	return err
}

// copy lets the part of a coordinator that makes missing copies run until the world ends.
func (d *driver) copy() error {
	d.running.Go(func() { d.relay.Run(d.ctx) })
	return nil
}
