// Package turns says who is next of those that wait, so that no flow (a tenant) gets more done than another however many calls it has
// waiting.
package turns

import "slices"

// Queue is what waits, by flow. It is taken by deficit round robin: at its turn a flow is given a quantum, and what it has waiting is
// taken, the longest waiting first, as far as what it was given lasts. So of two flows that both wait all the time, one gets at most
// about a quantum and what one of each costs more than the other. A flow of which nothing waits is forgotten, with what it was given. The
// zero value, but for the quantum, is empty. It is used by one goroutine at a time.
type Queue[T comparable] struct {
	// Quantum is the least that anything costs. It is small beside most costs: who has one call at a time, and so comes anew for each
	// turn, then waits as often as who has many.
	Quantum int64

	flows map[string]*flow[T]
	turn  *flow[T] // whose turn it is, in a ring; nil if nothing waits
	n     int
	spare *flow[T] // in no use
}

// flow is what waits of one.
type flow[T comparable] struct {
	name    string
	waiting []one[T]
	left    int64 // of what it was given; less than 0 is owed
	given   bool  // at this turn

	before, after *flow[T]
}

type one[T comparable] struct {
	what T
	cost int64
}

// Len returns how many wait.
func (q *Queue[T]) Len() int { return q.n }

// Push lets something of a flow wait, which costs so much.
func (q *Queue[T]) Push(name string, what T, cost int64) {
	f := q.flows[name]
	if f == nil {
		f = q.enter(name)
	}
	f.waiting = append(f.waiting, one[T]{what, max(cost, q.Quantum)})
	q.n++
}

// Correct gives a flow of which something waits what it was charged too much; too is less than 0 if it was charged too little.
func (q *Queue[T]) Correct(name string, too int64) {
	if f := q.flows[name]; f != nil {
		f.left += too
	}
}

// enter lets a flow have the turn after all others.
func (q *Queue[T]) enter(name string) *flow[T] {
	f := q.spare
	if q.spare = nil; f == nil {
		f = &flow[T]{}
	}
	f.name, f.left, f.given = name, 0, false
	if q.flows == nil {
		q.flows = map[string]*flow[T]{}
	}
	q.flows[name] = f
	if q.turn == nil {
		q.turn, f.before, f.after = f, f, f
		return f
	}
	f.before, f.after = q.turn.before, q.turn
	f.before.after, f.after.before = f, f
	return f
}

// Remove takes out what waits no longer, and says whether it was there.
func (q *Queue[T]) Remove(name string, what T) bool {
	f := q.flows[name]
	if f == nil {
		return false
	}
	i := slices.IndexFunc(f.waiting, func(o one[T]) bool { return o.what == what })
	if i < 0 {
		return false
	}
	q.take(f, i)
	return true
}

// take takes out what waits in the i-th place of a flow.
func (q *Queue[T]) take(f *flow[T], i int) {
	f.waiting = slices.Delete(f.waiting, i, i+1)
	if q.n--; len(f.waiting) > 0 {
		return
	}
	delete(q.flows, f.name)
	f.before.after, f.after.before = f.after, f.before
	switch {
	case q.turn != f:
	case f.after == f:
		q.turn = nil
	default:
		q.turn = f.after
	}
	f.before, f.after = nil, nil
	q.spare = f
}

// Peek returns what is next, and stays next until it is taken or a removal or a correction changes that; ok is false if nothing waits.
func (q *Queue[T]) Peek() (what T, ok bool) {
	if q.turn == nil {
		return what, false
	}
	return q.next().waiting[0].what, true
}

// Pop takes what is next and returns it with its cost. Something waits.
func (q *Queue[T]) Pop() (what T, cost int64) {
	f := q.next()
	o := f.waiting[0]
	if f.left -= o.cost; f.after == f {
		f.left = -o.cost // Who comes while this is done goes first; to nobody it owes what was done before.
	}
	q.take(f, 0)
	return o.what, o.cost
}

// next returns the flow whose turn it is and who has been given enough.
func (q *Queue[T]) next() *flow[T] {
	if f := q.turn; f.after == f {
		return f
	}
	for first := q.turn; ; {
		f := q.turn
		if !f.given {
			f.left += q.Quantum
			f.given = true
		}
		if f.waiting[0].cost <= f.left {
			return f
		}
		f.given = false
		if q.turn = f.after; q.turn == first {
			q.skip()
		}
	}
}

// skip gives all flows what they would be given in the turns in which none of them can take anything yet.
func (q *Queue[T]) skip() {
	rounds := int64(-1)
	q.each(func(f *flow[T]) {
		if n := (f.waiting[0].cost - f.left - 1) / q.Quantum; rounds < 0 || n < rounds {
			rounds = n
		}
	})
	q.each(func(f *flow[T]) { f.left += rounds * q.Quantum })
}

func (q *Queue[T]) each(do func(*flow[T])) {
	do(q.turn)
	for f := q.turn.after; f != q.turn; f = f.after {
		do(f)
	}
}
