package explore

import (
	"errors"
	"fmt"
	"hash/maphash"
	"maps"
	"slices"
	"strings"

	"headwater.example/client"
)

// This file says what clients may be told. An operation takes effect at one moment between its beginning and its end; one that
// failed may do so at any later moment, until its client has settled what became of it or another has taken the session. The
// checker keeps all worlds that are possible so far: what the session has, who drives it, and which operations have taken effect.
// What a client is told must be so in one of them.

// operation is a call of a client on the session.
type operation struct {
	kind   kind
	before []string // contents of which one is to be there
	after  string   // what is there then
	// Of a take-over: whether it brings a receipt, and of what content; and what it was told that is there.
	receipt bool
	least   acknowledged
	content string
}

type kind uint8

const (
	opens kind = iota
	takes
	changes // an append, a truncation, or a look
)

// event is what a driver says.
type event struct {
	driver  string
	what    what
	op      operation
	err     error
	receipt *client.Receipt
}

type what uint8

const (
	begins what = iota
	ends
	scriptEnds
)

// possible is one world.
type possible struct {
	content string
	driver  string
	done    string // numbers of pending operations that have taken effect, and what a take-over found, as text
}

// pending is an operation that may take effect.
type pending struct {
	operation
	number string // of its driver
	driver string
	failed bool
}

// acknowledged is what a client was told last.
type acknowledged struct {
	content string
	receipt *client.Receipt
	cuts    int            // of the checker
	holders map[string]int // boots by name
}

type checker struct {
	worlds   map[possible]bool
	pending  []pending
	begun    map[string]int // operations by driver
	contents []string       // that somebody has tried to make
	acked    acknowledged
	parted   map[string]acknowledged // by driver, nil if no session may go on twice
	gone     bool                    // a client was told that the session is no more
	taken    map[string]bool         // drivers since whose take-over another has begun one
	// cuts counts what may have raised the count of truncations: truncations, and operations that failed, which are taken back.
	cuts int
}

func newChecker(parted bool) *checker {
	c := &checker{worlds: map[possible]bool{{}: true}, begun: map[string]int{}, taken: map[string]bool{}, contents: []string{""}}
	if parted {
		c.parted = map[string]acknowledged{}
	}
	return c
}

// last returns what was acknowledged last.
func (c *checker) last() acknowledged { return c.acked }

// known returns all contents that somebody has tried to make.
func (c *checker) known() []string { return c.contents }

// write writes the checker's state. Of those who had what was acknowledged, only who lives is of a meaning.
func (c *checker) write(w *World, h *maphash.Hash) {
	live := maps.Clone(c.acked.holders)
	for _, p := range w.workers {
		if p.end == nil || p.boot != live[p.name] {
			delete(live, p.name)
		}
	}
	var worlds []string
	for p := range c.worlds {
		worlds = append(worlds, p.content+" "+p.driver+" "+p.done)
	}
	slices.Sort(worlds)
	_, _ = fmt.Fprint(h, worlds, c.contents, c.acked.content, live, c.gone, c.cuts, c.acked.cuts)
	for _, p := range c.pending {
		_, _ = fmt.Fprint(h, p.number, p.failed, p.kind, p.before, p.after, p.receipt, p.least.content, p.least.cuts)
	}
}

// take takes up what a driver has said.
func (c *checker) take(w *World, e event) error {
	switch e.what {
	case begins:
		c.begun[e.driver]++
		if e.op.kind == takes {
			for _, d := range w.drivers {
				c.taken[d.name] = c.taken[d.name] || d.name != e.driver
			}
		}
		c.pending = append(c.pending, pending{operation: e.op, number: fmt.Sprint(e.driver, c.begun[e.driver]), driver: e.driver})
		slices.SortFunc(c.pending, func(a, b pending) int { return strings.Compare(a.number, b.number) })
		if !slices.Contains(c.contents, e.op.after) {
			c.contents = append(c.contents, e.op.after)
			slices.Sort(c.contents)
		}
		return nil
	case ends:
		if c.parted != nil && (e.err != nil || len(c.parted) > 0) {
			if e.err == nil {
				c.parted[e.driver] = acknowledged{content: e.op.content}
			}
			return nil
		}
		if e.err != nil {
			return c.failed(w, e)
		}
		if c.parted != nil {
			c.parted[e.driver] = acknowledged{content: e.op.content}
		}
		return c.succeeded(w, e)
	}
	return nil
}

// current returns the index of a driver's operation that has not ended.
func (c *checker) current(driver string) int {
	return slices.IndexFunc(c.pending, func(p pending) bool { return p.driver == driver && !p.failed })
}

// failed takes up an error.
func (c *checker) failed(w *World, e event) error {
	i := c.current(e.driver)
	p := &c.pending[i]
	p.failed = true
	if p.kind != opens {
		c.cuts++
	}
	var refused *client.SessionError
	switch {
	case errors.Is(e.err, errWrong):
		return e.err
	case errors.Is(e.err, client.ErrTryAgain):
	case errors.Is(e.err, client.ErrTakenOver):
		if !c.taken[e.driver] {
			return fmt.Errorf("%s is told that another drives the session, and none has taken it: %w", e.driver, e.err)
		}
	case errors.Is(e.err, client.ErrGone):
		if c.gone = true; !c.dead(w) {
			return fmt.Errorf("%s is told that the session is gone, and %v live that acknowledged %q: %w", e.driver, c.acked.holders, c.acked.content, e.err)
		}
	case p.kind == takes && p.receipt && errors.As(e.err, &refused) && c.moved(p.least, e.driver):
	default:
		return fmt.Errorf("%s: an error that says nothing to do: %w", e.driver, e.err)
	}
	if p.kind == opens { // another one is made
		c.drop(i)
	}
	return nil
}

// moved reports whether, since something was acknowledged, others than a driver may have taken positions back, or the driver itself in
// an operation that failed, so that its receipt need not match.
func (c *checker) moved(since acknowledged, driver string) bool {
	return c.cuts != since.cuts || slices.ContainsFunc(c.pending, func(p pending) bool {
		return p.failed || p.driver != driver && (p.kind == takes || p.shortens())
	})
}

// shortens reports whether an operation may take positions back.
func (o *operation) shortens() bool {
	return o.kind == changes && slices.ContainsFunc(o.before, func(b string) bool { return len(o.after) < len(b) })
}

// drop forgets a pending operation.
func (c *checker) drop(i int) {
	number := c.pending[i].number
	c.pending = slices.Delete(c.pending, i, i+1)
	worlds := map[possible]bool{}
	for p := range c.worlds {
		p.done = undone(p.done, number)
		worlds[p] = true
	}
	c.worlds = worlds
}

// succeeded takes up an acknowledgement.
func (c *checker) succeeded(w *World, e event) error {
	c.close()
	if c.dead(w) && e.op.kind == takes {
		// What the last one acknowledged is lost with all who had it. Who brings no receipt may find what was there before.
		c.regress(e)
	}
	i := c.current(e.driver)
	mark := marked(c.pending[i].number, c.pending[i].kind, e.op.content)
	for p := range c.worlds {
		if !strings.Contains(p.done, mark) {
			delete(c.worlds, p)
		}
	}
	if len(c.worlds) == 0 {
		return fmt.Errorf("%s is told that the session has %q, which it can't have", e.driver, e.op.content)
	}
	if e.op.kind == takes && e.op.receipt && !strings.HasPrefix(e.op.content, e.op.least.content) && !c.moved(e.op.least, e.driver) {
		return fmt.Errorf("%s brings a receipt of %q and is shown %q", e.driver, e.op.least.content, e.op.content)
	}
	if e.op.shortens() {
		c.cuts++
	}
	// What its client has tried before is settled.
	for i := len(c.pending) - 1; i >= 0; i-- {
		if c.pending[i].driver == e.driver {
			c.drop(i)
		}
	}
	c.acked = acknowledged{content: e.op.content, receipt: e.receipt, cuts: c.cuts, holders: map[string]int{}}
	for _, p := range w.workers {
		if s := p.told.has(e.receipt.Session); s != nil && holds(s, e.op.content) {
			c.acked.holders[p.name] = p.boot
		}
	}
	if len(c.acked.holders) == 0 && w.Eager {
		return fmt.Errorf("%s is told that the session has %q, and no worker has it", e.driver, e.op.content)
	}
	return nil
}

// regress lets the session be what it was at any time.
func (c *checker) regress(e event) {
	i := c.current(e.driver)
	for p := range maps.Clone(c.worlds) {
		p.content, p.driver = e.op.content, e.driver
		p.done = inOrder(undone(p.done, c.pending[i].number) + marked(c.pending[i].number, takes, e.op.content))
		c.worlds[p] = true
	}
}

// dead reports whether all have died that had what was acknowledged last.
func (c *checker) dead(w *World) bool {
	for _, p := range w.workers {
		if boot, ok := c.acked.holders[p.name]; ok && p.end != nil && p.boot == boot {
			return false
		}
	}
	return true
}

// close adds the worlds in which more of what is pending has taken effect.
func (c *checker) close() {
	for added := true; added; {
		added = false
		for p := range maps.Clone(c.worlds) {
			for i := range c.pending {
				if next, ok := c.pending[i].in(p); ok && !c.worlds[next] {
					c.worlds[next], added = true, true
				}
			}
		}
	}
}

// in returns the world in which an operation has taken effect; false if it can't.
func (o *pending) in(p possible) (possible, bool) {
	if strings.Contains(p.done, fmt.Sprintf("[%s:", o.number)) {
		return p, false
	}
	switch o.kind {
	case opens:
		p.content, p.driver = "", o.driver
	case takes:
		if p.driver == "" {
			return p, false
		}
		p.driver = o.driver
	case changes:
		if p.driver != o.driver || !slices.Contains(o.before, p.content) {
			return p, false
		}
		p.content = o.after
	}
	p.done = inOrder(p.done + marked(o.number, o.kind, p.content))
	return p, true
}

// marked notes that an operation has taken effect.
func marked(number string, k kind, content string) string {
	if k != takes {
		content = ""
	}
	return fmt.Sprintf("[%s:%s]", number, content)
}

// inOrder sorts notes: which operation came first is of no meaning any more.
func inOrder(done string) string {
	notes := strings.SplitAfter(done, "]")
	slices.Sort(notes)
	return strings.Join(notes, "")
}

// undone takes the note of an operation away.
func undone(done string, number string) string {
	from := strings.Index(done, fmt.Sprintf("[%s:", number))
	if from < 0 {
		return done
	}
	to := from + strings.IndexByte(done[from:], ']') + 1
	return done[:from] + done[to:]
}
