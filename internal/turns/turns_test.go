package turns

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
)

// call is something that waits, in a test.
type call struct{ flow, n int }

const quantum = 1 << 10

// TestTurnsAreFair: of flows that wait all the time, whatever their calls cost and however many there are, none gets more than about a
// quantum and a call's cost more than another; and the calls of a flow are taken as they came.
func TestTurnsAreFair(t *testing.T) {
	t.Parallel()
	for seed := range uint64(25) {
		rng := rand.New(rand.NewPCG(seed, 7))
		flows := 2 + rng.IntN(5)
		most := make([]int64, flows) // cost of a call
		for i := range most {
			most[i] = 1 + rng.Int64N(1<<(10+rng.IntN(27)))
		}
		q := Queue[call]{Quantum: quantum}
		done, asked, taken := make([]int64, flows), make([]int, flows), make([]int, flows)
		push := func(i int) {
			q.Push(fmt.Sprint(i), call{i, asked[i]}, 1+rng.Int64N(most[i]))
			asked[i]++
		}
		for i := range flows {
			for range 2 + 50*rng.IntN(2) { // some flood
				push(i)
			}
		}
		for range 3000 {
			first, _ := q.Peek()
			c, cost := q.Pop()
			if c != first {
				t.Fatalf("seed %d: %v is taken, and %v was next", seed, c, first)
			}
			if c.n != taken[c.flow] {
				t.Fatalf("seed %d: flow %d: call %d is taken after %d", seed, c.flow, c.n, taken[c.flow])
			}
			taken[c.flow]++
			done[c.flow] += cost
			push(c.flow) // before the next one is taken, so that all wait all the time
			for j := range flows {
				if bound := 2*quantum + most[c.flow] + most[j]; done[c.flow]-done[j] > bound {
					t.Fatalf("seed %d: flow %d has done %d, flow %d %d, bound %d", seed, c.flow, done[c.flow], j, done[j], bound)
				}
			}
		}
	}
}

// TestNobodyIsLeftBehind: calls come and go at random. As long as something of a flow waits, no other flow gets more done than it does, but
// for a bound that does not depend on how long that is.
func TestNobodyIsLeftBehind(t *testing.T) {
	t.Parallel()
	for seed := range uint64(25) {
		rng := rand.New(rand.NewPCG(seed, 9))
		flows, most := 2+rng.IntN(6), int64(1)<<(10+rng.IntN(20))
		q := Queue[call]{Quantum: quantum}
		waiting := make([][]call, flows)
		since := make([][]int64, flows) // what each flow got done since something of this one waits
		n := 0
		for range 5000 {
			if i := rng.IntN(flows); rng.IntN(3) > 0 {
				c := call{i, n}
				n++
				q.Push(fmt.Sprint(i), c, 1+rng.Int64N(most))
				if len(waiting[i]) == 0 {
					since[i] = make([]int64, flows)
				}
				waiting[i] = append(waiting[i], c)
			} else if len(waiting[i]) > 0 && rng.IntN(8) == 0 {
				at := rng.IntN(len(waiting[i]))
				c := waiting[i][at]
				if !q.Remove(fmt.Sprint(i), c) || q.Remove(fmt.Sprint(i), c) {
					t.Fatalf("seed %d: %v waits and is not there, or twice", seed, c)
				}
				waiting[i] = slices.Delete(waiting[i], at, at+1)
			}
			if q.Len() > 0 && rng.IntN(5) < 3 {
				c, cost := q.Pop()
				if len(waiting[c.flow]) == 0 || waiting[c.flow][0] != c {
					t.Fatalf("seed %d: %v is taken, of %v", seed, c, waiting[c.flow])
				}
				waiting[c.flow] = waiting[c.flow][1:]
				for i := range flows {
					if len(waiting[i]) == 0 && i != c.flow {
						continue
					}
					since[i][c.flow] += cost
					if lag := since[i][c.flow] - since[i][i]; lag > 2*quantum+3*most {
						t.Fatalf("seed %d: flow %d got %d more than flow %d, which waited all the time", seed, c.flow, lag, i)
					}
				}
			}
			var all, busy int
			for _, of := range waiting {
				all, busy = all+len(of), busy+min(len(of), 1)
			}
			if q.Len() != all || len(q.flows) != busy {
				t.Fatalf("seed %d: %d of %d flows wait, counted are %d of %d", seed, all, busy, q.Len(), len(q.flows))
			}
		}
	}
}

// TestOneLaneHasItsShare: a flow that has one call at a time, and comes anew only when others have been chosen after it, gets as much done
// as flows do that have many waiting; or as many calls, if it asks for less.
func TestOneLaneHasItsShare(t *testing.T) {
	t.Parallel()
	for seed := range uint64(25) {
		rng := rand.New(rand.NewPCG(seed, 8))
		flows, cost := 2+rng.IntN(3), [2]int64{quantum << rng.IntN(8), quantum << rng.IntN(8)} // of the one lane, of the others
		q := Queue[call]{Quantum: quantum}
		push := func(i int) { q.Push(fmt.Sprint(i), call{flow: i}, cost[min(i, 1)]) }
		for i := range flows {
			for range 1 + min(i, 1)*99 {
				push(i)
			}
		}
		done, calls := make([]int64, flows), make([]int, flows)
		last := -1
		for range 5000 {
			c, _ := q.Pop()
			done[c.flow] += cost[min(c.flow, 1)]
			calls[c.flow]++
			if last >= 0 {
				push(last)
			}
			last = c.flow
		}
		for i := 1; i < flows; i++ {
			if cost[0] >= cost[1] && float64(done[0]) < 0.95*float64(done[i]) || float64(calls[0]) < 0.95*min(1, float64(cost[1])/float64(cost[0]))*float64(calls[i]) {
				t.Errorf("seed %d: calls that cost %v: done are %v, in %v calls", seed, cost, done, calls)
				break
			}
		}
	}
}

// TestWhatWasChargedWronglyIsCorrected: calls that turn out to be ten times what they were taken for are taken as often as those of which
// it was said.
func TestWhatWasChargedWronglyIsCorrected(t *testing.T) {
	t.Parallel()
	q := Queue[call]{Quantum: quantum}
	for n := range 2 {
		q.Push("said", call{0, n}, 10*quantum)
		q.Push("found", call{1, n}, quantum)
	}
	var got [2]int
	for range 1100 {
		c, _ := q.Pop()
		got[c.flow]++
		if c.flow == 0 {
			q.Push("said", c, 10*quantum)
		} else {
			q.Push("found", c, quantum)
			q.Correct("found", quantum-10*quantum)
		}
	}
	if got[0] < 540 || got[0] > 560 {
		t.Errorf("calls that do the same are taken %v times", got)
	}
}
