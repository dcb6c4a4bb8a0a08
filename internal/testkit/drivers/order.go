package drivers

import (
	"fmt"
	"math"
	"slices"
	"strings"
	"time"

	"github.com/anishathalye/porcupine"
)

// This file says whether there is an order in which the appends, truncations, forks and takes of a session can have been done, each
// between its call and its answer, so that all answers are right. Porcupine finds one, or finds that there is none.
//
// A state is named by the seed of its newest position: each seed is appended once, after one other, so it names all before it as well.
// A change is then from a state, or one of a few, to another one. What has failed may have been done or not, at any time, until
// something acknowledged rules it out: a later call of the same client, before which that client's library takes back what is not known,
// or another client's take, after which holders refuse the client before. If nothing does, it stays open for ever.

// lane is one take of a session and what was done on it.
type lane struct {
	call, attached int // when the take was asked for, and when it was there
	done           int // calls that were acknowledged, the take among them
	// other are states that the session may have instead of the one that the client knows, since calls have failed. The client's next
	// call takes them back first.
	other []uint32
}

// change is something that was done, or may have been done, with a session.
type change struct {
	lane *lane    // nil: nobody's
	nth  int      // of the lane's calls that are acknowledged; of one that has failed, how many were so before it
	from []uint32 // states in which it can be done
	to   uint32   // state after it
	sure bool     // it was done; else it may have been done
	call int
	ret  int // of one that was done
}

// newest names the state that has these positions.
func newest(seeds []uint32) uint32 {
	if len(seeds) == 0 {
		return 0
	}
	return seeds[len(seeds)-1]
}

// now returns the time, which goes on.
func (b *book) now() int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.tick()
}

// attached notes a take that was asked for at a time, and is there now.
func (b *book) attached(call int) *lane {
	b.mu.Lock()
	defer b.mu.Unlock()
	l := &lane{call: call, attached: b.tick()}
	b.lanes = append(b.lanes, l)
	return l
}

// did notes that a lane's call has led from a state that its client knew to another one. The first one is the take.
func (b *book) did(l *lane, call int, from, to uint32) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.changes = append(b.changes, change{lane: l, nth: l.done, from: append([]uint32{from}, l.other...), to: to, sure: true, call: call, ret: b.tick()})
	l.done++
	l.other = nil
}

// showed notes that a session was found to have a state, by somebody who did not change it.
func (b *book) showed(call, ret int, state uint32) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.changes = append(b.changes, change{from: []uint32{state}, to: state, sure: true, call: call, ret: ret})
}

// may notes a call that has failed, and may have led from a state to another one. known is the state that its client goes on with.
func (b *book) may(l *lane, call int, from, to, known uint32) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if len(l.other) > 0 { // these are taken back first, and then nothing else may have been done
		b.changes = append(b.changes, change{lane: l, nth: l.done, from: l.other, to: from, call: call})
	}
	if from == to {
		return
	}
	b.changes = append(b.changes, change{lane: l, nth: l.done, from: append([]uint32{from}, l.other...), to: to, call: call})
	l.other = slices.Clone(l.other)
	if known == from { // what is not acknowledged may also be taken back by another client's take
		b.changes = append(b.changes, change{lane: l, nth: l.done, from: []uint32{to}, to: from, call: call})
		l.other = append(l.other, to)
	} else {
		l.other = append(l.other, from)
	}
}

// acted notes how a call that appends nothing and truncates nothing has ended: it takes back what is not known.
func (b *book) acted(l *lane, call int, seeds []uint32, err error) {
	state := newest(seeds)
	if err != nil {
		b.may(l, call, state, state, state)
	} else if len(l.other) > 0 {
		b.did(l, call, state, state)
	}
}

// ordered looks for an order of what was done with each session that was not lost and does not go on twice.
func (r *run) ordered() error {
	for _, b := range r.books {
		if b.isParted() || r.losses.orphaned(b, b.born[0]) {
			continue
		}
		done, undecided, err := b.order()
		r.tally.ordered.Add(int64(done))
		r.tally.undecided.Add(int64(undecided))
		if err != nil {
			return wrong{err}
		}
	}
	return nil
}

// orderTimeout bounds how long an order is looked for.
const orderTimeout = 20 * time.Second

// order looks for an order of all changes. It returns how many were done of those for which there is one, and an error if there is
// none, or undecided if none was found in time.
func (b *book) order() (ordered, undecided int, _ error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	var begin placed
	for _, part := range parts(b.closed()) {
		model := orderModel(begin)
		found := porcupine.CheckOperationsTimeout(model, part, orderTimeout)
		sure := 0
		for _, o := range part {
			if o.Input.(change).sure {
				sure++
			}
		}
		switch found {
		case porcupine.Ok:
			ordered += sure
		case porcupine.Unknown:
			undecided += sure
		default:
			_, info := porcupine.CheckOperationsVerbose(model, part, orderTimeout)
			return ordered, undecided, fmt.Errorf("session %s: no order of %d changes explains what was answered: %s", b.id, len(part), stuck(part, info))
		}
		begin = begin.after(part[len(part)-1].Input.(change))
	}
	return ordered, undecided, nil
}

// closed returns all changes with the times between which they were done, by their calls.
func (b *book) closed() []porcupine.Operation {
	answered := map[*lane][]change{} // what was done on a lane, by time
	for _, c := range b.changes {
		if c.sure && c.lane != nil {
			answered[c.lane] = append(answered[c.lane], c)
		}
	}
	var all []porcupine.Operation
	for _, c := range b.changes {
		end := math.MaxInt
		if c.sure {
			end = c.ret
		} else {
			for _, later := range answered[c.lane] {
				if later.call > c.call {
					end = min(end, later.ret)
				}
			}
			for _, other := range b.lanes {
				if other.call > c.lane.attached {
					end = min(end, max(other.attached, c.call))
				}
			}
		}
		all = append(all, porcupine.Operation{Input: c, Call: int64(c.call), Return: int64(end)})
	}
	slices.SortStableFunc(all, func(a, b porcupine.Operation) int { return int(a.Call - b.Call) })
	return all
}

// partLen is about how many changes are put in order at once.
const partLen = 500

// parts cuts changes, by their calls, into parts that come after one another. Each ends with a lane's call that was done while nothing
// else was under way, so what the session is after it is known.
func parts(all []porcupine.Operation) (parts [][]porcupine.Operation) {
	var part []porcupine.Operation
	latest := int64(0) // when the last of the part before this change has ended
	for i, o := range all {
		alone := o.Call > latest && (i+1 == len(all) || all[i+1].Call > o.Return)
		part, latest = append(part, o), max(latest, o.Return)
		if c := o.Input.(change); alone && c.sure && c.lane != nil && len(part) >= partLen {
			parts, part = append(parts, part), nil
		}
	}
	if len(part) > 0 {
		parts = append(parts, part)
	}
	return parts
}

// placed is what a session is after some changes: its state, who drives it, and how many calls of that client are done.
type placed struct {
	state uint32
	lane  *lane
	done  int
}

// fits says whether a change can be the next one.
func (p placed) fits(c change) bool {
	return slices.Contains(c.from, p.state) && (c.lane == nil || c.sure && c.nth == 0 || c.lane == p.lane && c.nth == p.done)
}

// after is what the session is after a change.
func (p placed) after(c change) placed {
	p.state = c.to
	if c.sure && c.lane != nil {
		p.lane, p.done = c.lane, c.nth+1
	}
	return p
}

// orderModel is a session that begins as it is after other changes.
func orderModel(begin placed) porcupine.Model {
	model := porcupine.NondeterministicModel{
		Init: func() []any { return []any{begin} },
		Step: func(state, input, _ any) []any {
			p, c := state.(placed), input.(change)
			switch fits := p.fits(c); {
			case fits && c.sure:
				return []any{p.after(c)}
			case fits:
				return []any{p, p.after(c)}
			case c.sure:
				return nil
			}
			return []any{p}
		},
		Hash: func(state any) uint64 { return uint64(state.(placed).state) * 0x9e3779b97f4a7c15 },
	}
	return model.ToModel()
}

// stuck says how far an order was found, and what does not fit then.
func stuck(part []porcupine.Operation, info porcupine.LinearizationInfo) string {
	var longest []porcupine.Operation
	for _, p := range info.PartialLinearizationsOperations() {
		for _, one := range p {
			if len(one) > len(longest) {
				longest = one
			}
		}
	}
	seen := map[string]bool{}
	var text strings.Builder
	fmt.Fprintf(&text, "after %d of them,", len(longest))
	for i, o := range longest {
		seen[fmt.Sprint(o.Call, o.Return)] = true
		if i >= len(longest)-4 {
			fmt.Fprintf(&text, " %v,", say(o))
		}
	}
	text.WriteString(" what follows does not fit:")
	n := 0
	for _, o := range part {
		if !seen[fmt.Sprint(o.Call, o.Return)] && n < 6 {
			fmt.Fprintf(&text, " %v,", say(o))
			n++
		}
	}
	return strings.TrimSuffix(text.String(), ",")
}

func say(o porcupine.Operation) string {
	c := o.Input.(change)
	what := "may be"
	if c.sure {
		what = "is"
	}
	return fmt.Sprintf("[%d, %d] %s %v to %d", o.Call, o.Return, what, c.from, c.to)
}
