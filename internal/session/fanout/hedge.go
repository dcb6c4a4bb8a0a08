package fanout

import (
	"errors"
	"slices"
	"sync/atomic"
	"time"

	"headwater.example/internal/rpc"
)

// This file says which of several holders of a group is asked to attend. As a rule it is the one that NewHolding chose, so that caches
// stay warm. A holder with a much longer queue than the others is spared. If an answer is late, others are asked as well, and the
// first answer is taken: all are equal in every bit.

const (
	// A holder is spared if so many attends more than twice as many as at the least busy other one are before a new one there.
	spareFrom = 3
	// hedgedTokens is how many query tokens an attend has at most that is asked twice; more are a prompt's, which takes its time.
	hedgedTokens = 64
	// An answer is late after lateTimes the time in which 19 of 20 answers of that holder come, and lateLeast at least.
	lateTimes = 3
	lateLeast = time.Millisecond
	// DefaultHedgeShare is the most of all attends that are asked twice.
	DefaultHedgeShare = 0.05
	// hedgesSaved bounds how many attends may be asked twice at once, after a time without.
	hedgesSaved = 100
	oneHedge    = 1e6
)

// States of a part that attends.
const (
	partWaits = iota
	partLate  // and is counted as overdue
	partEnded
)

var errLate = errors.New("the answer of another holder came first")

// hedges are how much is asked twice.
type hedges struct {
	saved                atomic.Int64 // what may be asked twice, in oneHedge-th
	attends, asked, used atomic.Uint64
}

// Hedges are attends of sessions with copies, each holder's part counted as one.
type Hedges struct {
	Attends uint64 // all
	Asked   uint64 // those that were asked of other holders as well, since their answers were late
	Won     uint64 // those of them whose other answer came first
}

// Hedges returns what was asked so far.
func (c *Conns) Hedges() Hedges {
	return Hedges{c.hedges.attends.Load(), c.hedges.asked.Load(), c.hedges.used.Load()}
}

// earn counts attends, a share of which may be asked twice.
func (h *hedges) earn(attends int, share float64) {
	h.attends.Add(uint64(attends))
	if h.saved.Load() < hedgesSaved*oneHedge {
		h.saved.Add(int64(share * oneHedge * float64(attends)))
	}
}

// take takes leave to ask so many attends twice.
func (h *hedges) take(attends int) bool {
	for {
		saved := h.saved.Load()
		if saved < int64(attends)*oneHedge {
			return false
		}
		if h.saved.CompareAndSwap(saved, saved-int64(attends)*oneHedge) {
			h.asked.Add(uint64(attends))
			return true
		}
	}
}

// longest returns the index of the holder of a layer that is to be spared reading, or -1.
func (c *Conns) longest(held []part, now time.Duration) int {
	if !copied(held) {
		return -1
	}
	longest, most, least := -1, int64(-1), int64(-1)
	for i := range held {
		n := c.pace(held[i].holder).length(now)
		switch {
		case n > most:
			if longest >= 0 && (least < 0 || most < least) {
				least = most
			}
			longest, most = i, n
		case least < 0 || n < least:
			least = n
		}
	}
	if least < 0 || most < spareFrom+2*least || len(held[longest].answers) == 0 {
		return -1
	}
	return longest
}

// copied reports whether groups of a layer have several holders.
func copied(held []part) bool {
	return slices.ContainsFunc(held, func(p part) bool { return p.bits != nil })
}

// own is a part's own list of groups that it answers for, and their bits.
type own struct {
	answers []int
	bits    []byte
}

// add adds a group to those that a part answers for.
func (p *callPart) add(group int) {
	if len(p.answers) == 0 || len(p.own.answers) == 0 || &p.answers[0] != &p.own.answers[0] {
		p.own.answers = append(p.own.answers[:0], p.answers...)
	}
	i, _ := slices.BinarySearch(p.own.answers, group)
	p.own.answers = slices.Insert(p.own.answers, i, group)
	p.answers = p.own.answers
}

// mark sets the bits of a part whose groups have changed.
func (p *callPart) mark() {
	if len(p.answers) == len(p.groups) {
		p.bits = nil
		return
	}
	n := (len(p.groups) + 7) / 8
	p.own.bits = append(p.own.bits[:0], make([]byte, n)...)
	for i, g := range p.groups {
		if _, ok := slices.BinarySearch(p.answers, g); ok {
			p.own.bits[i/8] |= 1 << (i % 8)
		}
	}
	p.bits = p.own.bits
}

// spread gives groups to those of some parts that hold them and may have them, each to the one that answers for the fewest. It
// reports whether all have one; if not, some may be given.
func spread(groups []int, parts []*callPart, may func(p *callPart) bool) bool {
	for _, g := range groups {
		var to *callPart
		for _, p := range parts {
			if to != nil && len(p.answers) >= len(to.answers) || !may(p) {
				continue
			}
			if _, ok := slices.BinarySearch(p.groups, g); ok {
				to = p
			}
		}
		if to == nil {
			return false
		}
		to.add(g)
	}
	return true
}

// spareReads gives what a holder would answer for to others as far as they hold it. The parts are those of all holders of the layer.
func (c *Call) spareReads(spare int) {
	spared, now := c.parts[spare], c.sent
	length := spared.pace.length(now)
	var kept []int
	for i, g := range spared.answers {
		if !spread(spared.answers[i:i+1], c.parts, func(p *callPart) bool {
			return p != spared && length >= spareFrom+2*p.pace.length(now)
		}) {
			kept = append(kept, g)
		}
	}
	spared.answers = kept
	for _, p := range c.parts {
		p.mark()
	}
}

// lateAfter returns after how long the answer to a part is late; 0 is never.
func (p *callPart) lateAfter() time.Duration {
	if p95 := p.pace.times.p95.Load(); p95 > 0 {
		return max(lateTimes*time.Duration(p95), lateLeast)
	}
	return 0
}

// mayHedge reports whether the call may be asked of other holders as well. Appends are not: all holders have to have them.
func (c *Call) mayHedge() bool {
	s := c.step
	return s.Append == 0 && s.Attend <= hedgedTokens && c.lane.conns.HedgeShare > 0 && c.refused == nil && copied(c.holding.parts[s.Layer])
}

// nextLate returns how long to wait until an answer that is not there will be late; more than SlowAfter is that none will be.
func (c *Call) nextLate() time.Duration {
	next, passed := 2*rpc.SlowAfter, c.lane.conns.now()-c.sent
	for _, p := range c.parts {
		if after := p.lateAfter(); after > 0 && p.left.Load() > 0 {
			next = min(next, max(after, c.retry)-passed)
		}
	}
	return next
}

// hedge asks other holders for what late ones were asked for, and reports whether it has. If there are no others that are not late
// themselves, or too much was asked twice, it may be tried again when half as much time more has passed.
func (c *Call) hedge() (done bool) {
	conns, passed := c.lane.conns, c.lane.conns.now()-c.sent
	c.watcher.Store(c)
	c.retry = passed + max(passed/2, lateLeast)
	c.late = c.late[:0]
	for _, p := range c.parts {
		if after := p.lateAfter(); after > 0 && passed >= after && p.left.Load() > 0 {
			c.late = append(c.late, p)
		}
	}
	if len(c.late) == 0 {
		return false
	}
	other := conns.another(c)
	if !other.instead(c.late) || !conns.hedges.take(len(c.late)) {
		c.late = c.late[:0]
		other.parts = other.parts[:0]
		other.release()
		return false
	}
	for _, p := range c.late {
		p.pace.overdue.Add(1)
		if !p.state.CompareAndSwap(partWaits, partLate) {
			p.pace.overdue.Add(-1)
		}
	}
	c.heard = nil // of its own: heard was parts
	for _, p := range c.parts {
		if !slices.Contains(c.late, p) {
			c.heard = append(c.heard, p)
		}
	}
	c.heard = append(c.heard, other.parts...)
	c.other = other
	other.sendNow()
	return true
}

// another returns a call of the same step, for other holders, which tells the first one of what has ended.
func (c *Conns) another(first *Call) *Call {
	other := first.lane.calls.Get().(*Call)
	other.place, other.holding, other.step, other.sent = first.place, first.holding, first.step, c.now()
	other.parts, other.over = other.parts[:0], false
	other.ends.Store(0)
	other.watcher.Store(first)
	return other
}

// sendNow sends the parts of a call that may be in vain: it waits for no room.
func (c *Call) sendNow() {
	layer := &c.holding.layers[c.step.Layer]
	c.left.Store(int32(len(c.parts)))
	for _, p := range c.parts {
		c.ask(p)
		p.request.Payload = c.step.cut(p, layer)
		stream, err := c.lane.stream(p.holder, c.step.Session)
		if err == nil {
			err = stream.addNow(p)
		}
		p.failed(err)
	}
}

// instead makes a call's parts those that ask others for what late holders were asked for, and reports whether there are others for
// all of that, and the messages fit.
func (c *Call) instead(late []*callPart) bool {
	held := c.holding.parts[c.step.Layer]
	for i := range held {
		c.nextPart(&held[i]).answers = nil
	}
	may := func(p *callPart) bool {
		return p.pace.overdue.Load() == 0 && !c.lane.conns.Silent(p.holder.peer()) &&
			!slices.ContainsFunc(late, func(l *callPart) bool { return l.holder == p.holder })
	}
	for _, l := range late {
		if !spread(l.answers, c.parts, may) {
			return false
		}
	}
	c.keepAsked()
	for _, p := range c.parts {
		p.mark()
	}
	return c.fits(&c.holding.layers[c.step.Layer]) == nil
}

// keepAsked leaves out the parts of those who do not answer. Their memory stays for another call.
func (c *Call) keepAsked() {
	n := 0
	for i, p := range c.parts {
		if len(p.answers) > 0 {
			c.parts[i], c.parts[n] = c.parts[n], p
			n++
		}
	}
	c.parts = c.parts[:n]
}

// complete notes that all parts of a call are sent and answered: what was asked twice is not needed.
func (c *Call) complete() {
	c.over, c.heard = true, c.parts
	c.noOther()
}

// enough reports whether the answers are all there, of late holders those of others in their place, and none is an error.
func (c *Call) enough() bool {
	if c.other == nil || slices.ContainsFunc(c.heard, func(p *callPart) bool {
		return p.left.Load() > 0 || p.err != nil || p.response.Result.Err != nil
	}) {
		return false
	}
	c.lane.conns.hedges.used.Add(uint64(len(c.late)))
	return true
}

// begun counts an attend that is queued.
func (p *callPart) begun() {
	if len(p.answers) > 0 {
		p.pace.queue.Add(1)
	}
}

// ended counts an attend that was begun and has an answer, or will have none.
func (p *callPart) ended() {
	if len(p.answers) == 0 {
		return
	}
	if p.state.Swap(partEnded) == partLate {
		p.pace.overdue.Add(-1)
	}
	p.pace.queue.Add(-1)
	r := &p.response.Result
	if !p.answered || r.Err != nil {
		return
	}
	now := p.call.lane.conns.now()
	p.pace.told.Store(int64(now) + int64(min(r.QueueNanos, uint64(time.Minute))))
	if p.request.Step.Attend <= hedgedTokens {
		p.took = now - p.sent
		p.pace.times.add(now, p.took)
	}
}
