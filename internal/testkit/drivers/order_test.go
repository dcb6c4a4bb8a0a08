package drivers

import (
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
)

// took is a take of a session that finds a state.
func (b *book) took(state uint32) *lane {
	call := b.now()
	l := b.attached(call)
	b.did(l, call, state, state)
	return l
}

// found is a look at a session by nobody.
func (b *book) found(state uint32) { b.showed(b.now(), b.now(), state) }

func TestAnOrderIsFoundOrNot(t *testing.T) {
	for name, test := range map[string]struct {
		do    func(b *book)
		wrong bool
	}{
		"appends, a truncation and a fork": {do: func(b *book) {
			l := b.took(0)
			b.did(l, b.now(), 0, 1)
			b.did(l, b.now(), 1, 2)
			b.did(l, b.now(), 2, 2) // a fork
			b.did(l, b.now(), 2, 1)
			b.did(l, b.now(), 1, 3)
			b.took(3)
		}},
		"appends that were swapped": {wrong: true, do: func(b *book) {
			l := b.took(0)
			b.did(l, b.now(), 1, 2)
			b.did(l, b.now(), 0, 1)
			b.took(2)
		}},
		"an append that was lost": {wrong: true, do: func(b *book) {
			l := b.took(0)
			b.did(l, b.now(), 0, 1)
			b.did(l, b.now(), 1, 2)
			b.took(1)
		}},
		"an append that was lost, and came back": {wrong: true, do: func(b *book) {
			l := b.took(0)
			b.did(l, b.now(), 0, 1)
			b.found(0)
			b.found(1)
		}},
		"a truncation that was forgotten": {wrong: true, do: func(b *book) {
			l := b.took(0)
			b.did(l, b.now(), 0, 1)
			b.did(l, b.now(), 1, 0)
			b.took(1)
		}},
		"a fork of what was before": {wrong: true, do: func(b *book) {
			l := b.took(0)
			b.did(l, b.now(), 0, 1)
			b.did(l, b.now(), 0, 0)
		}},
		"an append on a session that was taken by another": {wrong: true, do: func(b *book) {
			l := b.took(0)
			b.did(b.took(0), b.now(), 0, 1)
			b.did(l, b.now(), 0, 2)
		}},
		"a failed append that was done": {do: func(b *book) {
			l := b.took(0)
			b.may(l, b.now(), 0, 1, 0)
			b.took(1)
		}},
		"a failed append that was not done": {do: func(b *book) {
			l := b.took(0)
			b.may(l, b.now(), 0, 1, 0)
			b.took(0)
		}},
		"a failed append that is done much later": {do: func(b *book) {
			l := b.took(0)
			b.may(l, b.now(), 0, 1, 0)
			b.found(0)
			b.found(0)
			b.found(1)
		}},
		"a failed append that is taken back": {do: func(b *book) {
			l := b.took(0)
			b.may(l, b.now(), 0, 1, 0)
			b.found(1)
			b.did(l, b.now(), 0, 2)
			b.took(2)
		}},
		"a failed append that is done after the next one": {wrong: true, do: func(b *book) {
			l := b.took(0)
			b.may(l, b.now(), 0, 1, 0)
			b.did(l, b.now(), 0, 0)
			b.took(1)
		}},
		"a failed append that is done after another's take": {wrong: true, do: func(b *book) {
			l := b.took(0)
			b.may(l, b.now(), 0, 1, 0)
			b.took(0)
			b.took(1)
		}},
		"a failed truncation that was done": {do: func(b *book) {
			l := b.took(0)
			b.did(l, b.now(), 0, 1)
			b.may(l, b.now(), 1, 0, 0)
			b.took(0)
		}},
		"a failed truncation that was not done, and then is": {do: func(b *book) {
			l := b.took(0)
			b.did(l, b.now(), 0, 1)
			b.may(l, b.now(), 1, 0, 0)
			b.found(1)
			b.did(l, b.now(), 0, 2)
			b.took(2)
		}},
		"a failed truncation that is done once more": {wrong: true, do: func(b *book) {
			l := b.took(0)
			b.did(l, b.now(), 0, 1)
			b.may(l, b.now(), 1, 0, 0)
			b.did(l, b.now(), 0, 2)
			b.took(0)
		}},
		"many that failed, one on the other": {do: func(b *book) {
			l := b.took(0)
			b.did(l, b.now(), 0, 1)
			b.may(l, b.now(), 1, 2, 1)
			b.may(l, b.now(), 1, 0, 0)
			b.may(l, b.now(), 0, 3, 0)
			b.acted(l, b.now(), nil, errParted)
			b.found(3)
			b.acted(l, b.now(), nil, nil)
			b.took(0)
		}},
	} {
		t.Run(name, func(t *testing.T) {
			b := &book{}
			test.do(b)
			ordered, undecided, err := b.order()
			if (err != nil) != test.wrong || undecided > 0 || err == nil && ordered == 0 {
				t.Errorf("%d in order, %d undecided, %v", ordered, undecided, err)
			}
			if err != nil && (strings.Contains(err.Error(), "\n") || !strings.Contains(err.Error(), "does not fit")) {
				t.Error(err)
			}
		})
	}
}

// TestOneLostAppendIsFoundInALongHistory of two clients that take a session from each other, whose calls fail now and then: as it
// was there is an order, and without any one of its appends there is none.
func TestOneLostAppendIsFoundInALongHistory(t *testing.T) {
	random := rand.New(rand.NewPCG(7, 7))
	b := &book{}
	before := map[uint32]uint32{} // what each state was appended to
	state, next := uint32(0), uint32(1)
	l := b.took(0)
	var acknowledged []int
	for range 3000 {
		call := b.now()
		switch n := random.IntN(20); {
		case n == 0:
			l = b.attached(call)
			b.did(l, call, state, state)
		case n < 3:
			to := next
			next++
			before[to] = state
			b.may(l, call, state, to, state)
			if random.IntN(2) == 0 { // it was done, and somebody else sees it
				state = to
				l = b.attached(b.now())
				b.did(l, b.now(), state, state)
			}
		case n < 5 && state != 0:
			b.did(l, call, state, before[state])
			state = before[state]
		default:
			before[next] = state
			acknowledged = append(acknowledged, len(b.changes))
			b.did(l, call, state, next)
			state = next
			next++
		}
	}
	if _, undecided, err := b.order(); err != nil || undecided > 0 {
		t.Fatal(undecided, err)
	}
	for range 20 {
		at := acknowledged[random.IntN(len(acknowledged)-1)]
		kept := b.changes[at]
		b.changes[at].to = kept.from[0]
		if _, _, err := b.order(); err == nil {
			t.Errorf("without the append %s there is an order as well", fmt.Sprint(kept.from, kept.to))
		}
		b.changes[at] = kept
	}
}
