package fanout_test

import (
	"context"
	"fmt"
	"math/rand/v2"
	"reflect"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"headwater.example/internal/session"
	"headwater.example/internal/session/fanout"
	"headwater.example/internal/testkit/await"
)

// TestTimesAreThoseOfTheNewestAnswers: quantiles are those of a sorted list of the answers of this half of the window and of the one
// before, up to an eighth.
func TestTimesAreThoseOfTheNewestAnswers(t *testing.T) {
	const half = 10 * time.Second
	r := rand.New(rand.NewPCG(1, 2))
	var times fanout.Times
	if n, q := times.Quantiles(0, 0.5, 0.95); n != 0 || q != [2]time.Duration{} {
		t.Fatalf("%d answers within %v before the first", n, q)
	}
	var all []struct{ at, took time.Duration }
	now := time.Duration(0)
	for range 4000 {
		now += time.Duration(r.IntN(30)) * time.Millisecond
		took := time.Duration(20*time.Microsecond) << r.IntN(12)
		took += time.Duration(r.Int64N(int64(took)))
		times.Add(now, took)
		all = append(all, struct{ at, took time.Duration }{now, took})
		var within []time.Duration
		for _, a := range all {
			if a.at/half >= now/half-1 {
				within = append(within, a.took)
			}
		}
		slices.Sort(within)
		n, q := times.Quantiles(now, 0.5, 0.95)
		if n != uint64(len(within)) {
			t.Fatalf("at %v: %d answers, not %d", now, n, len(within))
		}
		for i, share := range []int{50, 95} {
			want := within[(share*len(within)+99)/100-1]
			if q[i] < want || q[i] > want+want/8+1 {
				t.Fatalf("at %v: %d of 100 within %v, not %v", now, share, q[i], want)
			}
		}
	}
	if n, _ := times.Quantiles(now+2*half, 0.5, 0.95); n != 0 {
		t.Fatalf("%d answers are remembered for ever", n)
	}
}

// TestTimesOfAllLengthsAreCounted: no time is beyond the ends.
func TestTimesOfAllLengthsAreCounted(t *testing.T) {
	for _, took := range []time.Duration{-1, 0, 1, time.Microsecond, time.Hour, 1<<63 - 1} {
		var times fanout.Times
		times.Add(0, took)
		if n, q := times.Quantiles(0, 0.5, 0.95); n != 1 || q[0] <= 0 {
			t.Fatalf("%v: %d answers within %v", took, n, q)
		}
	}
}

// attend does an attend of random queries on both sessions, and fails unless they answer alike.
func (p *copied) attend(t testing.TB, alone *plain, seed uint64, layer int) {
	t.Helper()
	p.attends(t, alone, seed, layer)()
}

// attends begins an attend; what it returns waits for it.
func (p *copied) attends(t testing.TB, alone *plain, seed uint64, layer int) (wait func()) {
	t.Helper()
	known := p.known[layer]
	step, got := draw(rng(seed), p.layers, layer, p.id, known.GetLength(), known.GetHashes(), 0, 2)
	same, want := draw(rng(seed), p.layers, layer, p.id, known.GetLength(), known.GetHashes(), 0, 2)
	step.Chain = known.GetChain()
	call := p.lane.Start(t.Context(), p.at, step)
	return func() {
		t.Helper()
		ctx, cancel := context.WithTimeout(t.Context(), await.Patience)
		defer cancel()
		if err := call.Wait(ctx); err != nil {
			t.Fatalf("an attend of layer %d: %v", layer, err)
		}
		if err := alone.do(t, same); err != nil {
			t.Fatal(err)
		}
		if !slices.Equal(step.Hashes, same.Hashes) || step.Chain != same.Chain || !reflect.DeepEqual(got.context, want.context) || !reflect.DeepEqual(got.lse, want.lse) {
			t.Fatalf("layer %d: another answer than of one holder", layer)
		}
	}
}

// stall makes a holder answer nothing until release is called. It still says that it is there.
func (p *copied) stall(t testing.TB, holder int) (release func()) {
	over := make(chan struct{})
	p.nodes[holder].Set(func(*session.Step) *session.Error {
		select {
		case <-over:
		case <-t.Context().Done():
		}
		return nil
	})
	return sync.OnceFunc(func() { close(over) })
}

// quiet waits until holders have answered everything that they were asked.
func (p *copied) quiet(t testing.TB, holders ...string) {
	t.Helper()
	await.That(t, fmt.Sprintf("the last answers of %v", holders), func() bool {
		return !slices.ContainsFunc(p.conns.AnswerTimes(), func(one fanout.AnswerTimes) bool { return one.Queue > 0 && slices.Contains(holders, one.Holder) })
	})
}

// TestALateAnswerIsAskedOfAnother: while a holder is late, its attends are answered by others, with the same bits; the first is asked
// twice, and then it is spared. Its late answers change nothing, and when they have come it is asked again.
//
// The answers of the others count as slow ones, so that on a busy machine none of them is late as well: a call asks others once, and
// it is to be for this holder.
func TestALateAnswerIsAskedOfAnother(t *testing.T) {
	p, alone := startCopied(t, 3, 1, two...), start(t, 1, two...)
	if err := p.step(t, alone, 1, 0); err != nil {
		t.Fatal(err)
	}
	var unearned uint64 // attends for which nothing may be asked twice
	for round := range uint64(3) {
		// On a busy machine answers are late by themselves, and use up what may be asked twice: one such attend is left in the end.
		for i, left := uint64(0), 0.0; i < 120 || left < 1; i++ {
			p.attend(t, alone, 1000*round+i, 0)
			h := p.conns.Hedges()
			left = fanout.DefaultHedgeShare*float64(h.Attends-unearned) - float64(h.Asked)
		}
		p.quiet(t, "w1", "w2", "w3")
		p.conns.AreSlow(p.holding.Holders()[0], p.holding.Holders()[2])
		before := p.conns.Hedges()
		release := p.stall(t, 1)
		p.attend(t, alone, 1000+100*round, 0)
		p.conns.HedgeShare = 0 // from here on it is spared, or its attends are not answered
		asked := p.conns.Hedges().Attends
		for i := range uint64(5) {
			p.attend(t, alone, 1001+100*round+i, 0)
		}
		unearned += p.conns.Hedges().Attends - asked
		p.conns.HedgeShare = fanout.DefaultHedgeShare
		release()
		p.quiet(t, "w2")
		after := p.conns.Hedges()
		if after.Asked == before.Asked || after.Won == before.Won {
			t.Fatalf("%+v after %+v: no answer of another holder was taken", after, before)
		}
		if float64(after.Asked) > 0.05*float64(after.Attends) {
			t.Fatalf("%+v: more than one of twenty attends was asked twice", after)
		}
		var again atomic.Int64
		p.nodes[1].Set(func(*session.Step) *session.Error { again.Add(1); return nil })
		p.attend(t, alone, 2000+round, 0)
		p.quiet(t, "w2") // which may have been late by itself
		if again.Load() == 0 {
			t.Fatal("it is spared though nothing is late any more")
		}
		if err := p.step(t, alone, 3000+round, 0); err != nil {
			t.Fatal(err)
		}
	}
}

// TestNoMoreThanAShareIsAskedTwice: however often an answer is late, and by how many callers at once, nor more than 100 at once after
// a long time without.
func TestNoMoreThanAShareIsAskedTwice(t *testing.T) {
	for _, share := range []float64{0, 0.01, 0.05, 1} {
		var budget fanout.Budget
		var callers sync.WaitGroup
		for seed := range uint64(4) {
			callers.Go(func() {
				r := rng(seed)
				for range 2000 {
					budget.Earn(1+r.IntN(5), share)
					for range r.IntN(3) {
						budget.Take(1 + r.IntN(3))
					}
				}
			})
		}
		callers.Wait()
		attends, asked := budget.Counts()
		if float64(asked) > share*float64(attends) || share > 0 && float64(asked) < 0.9*share*float64(attends)/2 {
			t.Fatalf("share %v: %d of %d", share, asked, attends)
		}
		for range 1 << 20 {
			budget.Earn(1, share)
		}
		n := 0
		for budget.Take(1) {
			n++
		}
		if n > 101 {
			t.Fatalf("share %v: %d at once", share, n)
		}
	}
}

// TestAppendsAreNotAskedTwice: a step that appends waits for all holders, however late one is.
func TestAppendsAreNotAskedTwice(t *testing.T) {
	p, alone := startCopied(t, 3, 1, two...), start(t, 1, two...)
	if err := p.step(t, alone, 1, 0); err != nil {
		t.Fatal(err)
	}
	for i := range uint64(120) {
		p.attend(t, alone, i, 0)
	}
	before := p.conns.Hedges()
	var done atomic.Bool
	p.nodes[1].Set(func(*session.Step) *session.Error {
		p.awaitAsked(t, 1, 3) // late beyond doubt
		if done.Load() {
			t.Error("the step is over, and one holder has not answered")
		}
		return nil
	})
	if err := p.step(t, alone, 500, 0); err != nil {
		t.Fatal(err)
	}
	done.Store(true)
	if after := p.conns.Hedges(); after.Asked != before.Asked {
		t.Fatalf("%+v after %+v", after, before)
	}
}

// TestALongQueueIsSpared: attends go to a copy's holder while many more wait for the one that answers as a rule, without being asked
// twice.
func TestALongQueueIsSpared(t *testing.T) {
	p, alone := startCopied(t, 3, 1, two...), start(t, 1, two...)
	p.conns.HedgeShare = 0
	if err := p.step(t, alone, 1, 0); err != nil {
		t.Fatal(err)
	}
	release := p.stall(t, 1)
	var waits []func()
	for i := range uint64(3) {
		waits = append(waits, p.attends(t, alone, i, 0))
	}
	p.quiet(t, "w1", "w3")
	for i := range uint64(5) {
		p.attend(t, alone, 100+i, 0) // w2 answers nothing
	}
	release()
	for _, wait := range waits {
		wait()
	}
	if h := p.conns.Hedges(); h.Asked != 0 {
		t.Fatalf("%+v", h)
	}
}
