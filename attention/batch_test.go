package attention

import (
	"context"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"testing"

	"headwater.example/tensor"
)

// TestABatchIsItsItems: items of any shape and options in one call have the bits of each alone, whatever is cut and however
// little room there is for parts.
func TestABatchIsItsItems(t *testing.T) {
	rounds := 8
	if raceDetector {
		rounds = 2
	}
	eachKernel(t, func(t *testing.T) {
		for _, threads := range []int{1, 2, 5} {
			p := NewPool(threads)
			defer p.Close()
			for i := range rounds {
				rnd := rand.New(rand.NewPCG(uint64(i), uint64(threads)))
				var samples []*sample
				var items []Item
				for j := range 1 + rnd.IntN(6) {
					s := shape{
						dt: storages[rnd.IntN(4)], headDim: 1 + rnd.IntN(40), vDim: 1 + rnd.IntN(40), tokens: 1 + rnd.IntN(9), heads: 1 + rnd.IntN(5),
						len: rnd.IntN(300), spread: 1, offset: int64(rnd.IntN(300)),
					}
					if j%3 == i%3 {
						s.len, s.offset = 1+rnd.IntN(3*splitLen), int64(rnd.IntN(3*splitLen))
					}
					e := draw(t, uint64(1000*i+j), s)
					variants[rnd.IntN(len(variants))].apply(e, rnd)
					samples = append(samples, e)
					items = append(items, Item{KV: e.kv, Query: e.q, Options: e.opts, Output: e.room()})
				}
				thread := acquire(t, p, Class(rnd.IntN(2)))
				l := limits{kernel: selected.Load().kernel, room: 1 << rnd.IntN(22)}
				err := thread.attendAll(t.Context(), l, items)
				thread.Release()
				if err != nil {
					t.Fatal(err)
				}
				for j, e := range samples {
					e.sameRows(t, fmt.Sprintf("round %d, item %d of %d, %d threads", i, j, len(items), threads),
						e.attend(t, 1), items[j].Output, 0, e.q.Tokens, 0, e.q.Heads)
				}
			}
		}
	})
}

// TestABatchNamesItsFirstFailure: an item that can not be computed, and one with a row without a finite answer.
func TestABatchNamesItsFirstFailure(t *testing.T) {
	p := NewPool(3)
	defer p.Close()
	thread := acquire(t, p, Foreground)
	defer thread.Release()
	batch := func() (items []Item) {
		for i := range 5 {
			e := draw(t, uint64(i), shape{dt: tensor.F32, headDim: 8, vDim: 8, tokens: 2, heads: 2, len: 5000, spread: 1, offset: 4998})
			items = append(items, Item{KV: e.kv, Query: e.q, Options: e.opts, Output: e.room()})
		}
		return items
	}
	l := limits{kernel: selected.Load().kernel, room: partBytes}
	for name, spoil := range map[string]func(items []Item){
		"shape": func(items []Item) { items[2].Query.Heads++; items[3].Query.Heads++ },
		"row": func(items []Item) {
			for _, i := range []int{2, 4} {
				for j := range items[i].Query.Q {
					items[i].Query.Q[j] = math.MaxFloat32
				}
			}
		},
	} {
		items := batch()
		spoil(items)
		err := thread.attendAll(t.Context(), l, items)
		var item *ItemError
		if !errors.As(err, &item) || item.Item != 2 {
			t.Errorf("%s: got %v, want an error of item 2", name, err)
		}
		var row *RowError
		if errors.As(err, &row) != (name == "row") {
			t.Errorf("%s: got %v", name, err)
		}
		if err := thread.attendAll(t.Context(), l, batch()); err != nil {
			t.Errorf("after %s: %v", name, err)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	var item *ItemError
	if err := thread.attendAll(ctx, l, batch()); !errors.Is(err, context.Canceled) || errors.As(err, &item) {
		t.Errorf("a context that has ended: %v", err)
	}
	if err := thread.attendAll(t.Context(), l, nil); err != nil {
		t.Errorf("no items: %v", err)
	}
}

// TestBatchNoAllocation: a batch allocates nothing once there was one as large.
func TestBatchNoAllocation(t *testing.T) {
	skipIfRaced(t)
	p := NewPool(2)
	defer p.Close()
	var items []Item
	for i := range 4 {
		e := draw(t, uint64(i), shape{dt: tensor.F16, headDim: 32, vDim: 32, tokens: 1, heads: 4, len: 5000, spread: 1, offset: 4999})
		items = append(items, Item{KV: e.kv, Query: e.q, Options: e.opts, Output: e.room()})
	}
	if n := testing.AllocsPerRun(100, func() {
		thread := acquire(t, p, Foreground)
		if err := thread.AttendAll(context.Background(), items); err != nil {
			t.Fatal(err)
		}
		thread.Release()
	}); n != 0 {
		t.Errorf("%g allocations", n)
	}
}
