package kvcache

import (
	"context"
	"errors"
	"math"
	"math/rand/v2"
	"slices"
	"testing"

	"pgregory.net/rapid"

	"headwater.example/attention"
	"headwater.example/tensor"
)

func TestMemoryIsKeptForTheNextOfItsSize(t *testing.T) {
	b := NewBudget(3 * leastKept)
	open := func(n int64) *Arena {
		t.Helper()
		a, err := b.Map(n, OwnerOf(""))
		if err != nil {
			t.Fatal(err)
		}
		return a
	}
	first := open(leastKept)
	first.Bytes()[leastKept-1] = 7
	at := address(first.Bytes())
	b.Unmap(first)
	if b.Used() != 0 || b.Kept() != leastKept {
		t.Fatalf("%d bytes in use, %d kept", b.Used(), b.Kept())
	}
	second := open(leastKept)
	if address(second.Bytes()) != at || second.Bytes()[leastKept-1] != 7 || b.Used() != leastKept || b.Kept() != 0 {
		t.Errorf("other memory, or %d bytes in use and %d kept", b.Used(), b.Kept())
	}
	b.Unmap(second)
	// Another size finds none, and what is kept gives way to it: it is no room that is lost.
	third := open(3 * leastKept)
	if b.Kept() != 0 || b.Used() != 3*leastKept {
		t.Errorf("%d bytes in use, %d kept", b.Used(), b.Kept())
	}
	b.Unmap(third)
	if err := b.Reserve(1); err != nil || b.Kept() != 0 {
		t.Errorf("%v, %d bytes kept", err, b.Kept())
	}
	b.Release(1)
	small := open(leastKept - 1)
	b.Unmap(small)
	if b.Kept() != 0 {
		t.Errorf("%d bytes of a small one are kept", b.Kept())
	}
	var full *BudgetError
	if _, err := b.Map(3*leastKept+1, Nobody); !errors.As(err, &full) {
		t.Errorf("too much: %v", err)
	}
}

func TestKeptMemoryAges(t *testing.T) {
	b := NewBudget(4 * leastKept)
	old, err := b.Map(leastKept, Nobody)
	if err != nil {
		t.Fatal(err)
	}
	young, err := b.Map(2*leastKept, Nobody)
	if err != nil {
		t.Fatal(err)
	}
	b.Unmap(old)
	b.Age()
	b.Unmap(young)
	if b.Kept() != 3*leastKept {
		t.Fatalf("%d bytes kept", b.Kept())
	}
	b.Age()
	if b.Kept() != 2*leastKept {
		t.Fatalf("%d bytes kept, the younger has %d", b.Kept(), 2*leastKept)
	}
	b.Age()
	if b.Kept() != 0 {
		t.Fatalf("%d bytes kept", b.Kept())
	}
	again, err := b.Map(leastKept, Nobody)
	if err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(again.Bytes()[:8], make([]byte, 8)) {
		t.Error("new memory is not zeroed")
	}
	b.Unmap(again)
	b.Trim()
	if b.Kept() != 0 {
		t.Errorf("%d bytes kept", b.Kept())
	}
}

// What is used and what is kept never exceed the total, and what is asked for fails only where more is in use.
func TestBudgetModel(t *testing.T) {
	const total = 6 * leastKept
	rapid.Check(t, func(t *rapid.T) {
		b := NewBudget(total)
		defer b.Trim()
		var arenas []*Arena
		var reserved []int64
		used := int64(0)
		t.Repeat(map[string]func(*rapid.T){
			"map": func(t *rapid.T) {
				n := rapid.SampledFrom([]int64{1 << 12, leastKept, leastKept + 4096, 2 * leastKept, 5 * leastKept}).Draw(t, "bytes")
				a, err := b.Map(n, Nobody)
				if (err == nil) != (used+n <= total) {
					t.Fatalf("map %d of %d: %v", n, total-used, err)
				}
				if err == nil {
					if int64(len(a.Bytes())) != n {
						t.Fatalf("%d bytes, asked for %d", len(a.Bytes()), n)
					}
					for _, other := range arenas {
						if address(other.Bytes()) == address(a.Bytes()) {
							t.Fatal("memory in use is given away")
						}
					}
					a.Bytes()[n-1] = 1
					arenas, used = append(arenas, a), used+n
				}
			},
			"unmap": func(t *rapid.T) {
				if len(arenas) == 0 {
					t.Skip()
				}
				i := rapid.IntRange(0, len(arenas)-1).Draw(t, "which")
				used -= arenas[i].size()
				b.Unmap(arenas[i])
				arenas = slices.Delete(arenas, i, i+1)
			},
			"reserve": func(t *rapid.T) {
				n := rapid.Int64Range(0, total).Draw(t, "bytes")
				err := b.Reserve(n)
				if (err == nil) != (used+n <= total) {
					t.Fatalf("reserve %d of %d: %v", n, total-used, err)
				}
				if err == nil {
					reserved, used = append(reserved, n), used+n
				}
			},
			"release": func(t *rapid.T) {
				if len(reserved) == 0 {
					t.Skip()
				}
				last := len(reserved) - 1
				b.Release(reserved[last])
				reserved, used = reserved[:last], used-reserved[last]
			},
			"age": func(*rapid.T) { b.Age() },
			"": func(t *rapid.T) {
				if b.Used() != used || b.Used()+b.Kept() > total || b.Kept() < 0 {
					t.Fatalf("%d bytes in use, %d kept, want %d in use of %d", b.Used(), b.Kept(), used, total)
				}
			},
		})
		for _, a := range arenas {
			b.Unmap(a)
		}
	})
}

func TestShardInUsedMemoryAttendsAlike(t *testing.T) {
	for _, dt := range []tensor.DType{tensor.F32, tensor.F16, tensor.BF16, tensor.I8} {
		layout, err := attention.NewLayout(dt, 80, 72)
		if err != nil {
			t.Fatal(err)
		}
		capacity := leastKept / layout.PageBytes() * attention.PageLen * 2
		const n = 3*attention.PageLen + 5
		rng := rand.New(rand.NewPCG(1, 2))
		rows := attention.Rows{K: make([]byte, n*layout.KRowBytes()), V: make([]byte, n*layout.VRowBytes())}
		for _, to := range [][]byte{rows.K, rows.V} {
			x := make([]float32, len(to)/dt.Size())
			for i := range x {
				x[i] = float32(rng.NormFloat64())
			}
			if dt == tensor.I8 {
				for i := range to {
					to[i] = byte(rng.IntN(255) - 127)
				}
			} else if err := tensor.Narrow(to, x, dt); err != nil {
				t.Fatal(err)
			}
		}
		if dt == tensor.I8 {
			rows.KScale, rows.VScale = make([]float32, n), make([]float32, n)
			for i := range n {
				rows.KScale[i], rows.VScale[i] = rng.Float32()/64, rng.Float32()/64
			}
		}
		budget := NewBudget(1 << 30)
		defer budget.Trim()
		var want []float32
		for _, used := range []bool{false, true} {
			s, err := OpenShard(budget, OwnerOf(""), layout, capacity)
			if err != nil {
				t.Fatal(err)
			}
			if used && s.arena.Bytes()[0] != 0xff {
				t.Fatal("the memory is new")
			}
			if err := s.Append(rows, n); err != nil {
				t.Fatal(err)
			}
			q := attention.Query{Q: make([]float32, 3*2*80), Tokens: 3, Heads: 2, Offset: n - 3}
			for i := range q.Q {
				q.Q[i] = float32(math.Sin(float64(i)))
			}
			out := attention.Output{Context: make([]float32, 3*2*72), LSE: make([]float32, 3*2)}
			opts := attention.DefaultOptions(80)
			opts.Causal = true
			if err := attention.Attend(context.Background(), 1, s.KV(n), q, opts, out); err != nil {
				t.Fatal(err)
			}
			if !used {
				want = slices.Concat(out.Context, out.LSE)
			} else if !slices.Equal(want, slices.Concat(out.Context, out.LSE)) {
				t.Errorf("%v: other contexts in used memory", dt)
			}
			for i := range s.arena.Bytes() {
				s.arena.Bytes()[i] = 0xff
			}
			s.Close()
		}
	}
}
