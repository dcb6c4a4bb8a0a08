package attention

import (
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"testing"

	"headwater.example/tensor"
)

// inStripes attends with the splits of each of n stripes apart, each time over pages of which those of the other stripes are NaN, and
// joins the parts.
func (e *sample) inStripes(t testing.TB, thread *Thread, n int) (Output, error) {
	t.Helper()
	nan := make([]byte, e.kv.Layout.PageBytes())
	for i := range nan {
		nan[i] = 0xff
	}
	rows, vDim := e.q.Tokens*e.q.Heads, e.kv.Layout.vDim
	splits := make([]Part, (e.kv.Len+SplitLen-1)/SplitLen)
	for i := range splits {
		splits[i] = Part{M: make([]float32, rows), L: make([]float32, rows), O: make([]float32, rows*vDim)}
	}
	var items []Item
	for stripe := range n {
		kv := e.kv
		kv.Pages = append([][]byte(nil), kv.Pages...)
		for p := range kv.Pages {
			if p/SplitPages%n != stripe {
				kv.Pages[p] = nan
			}
		}
		apart := &Apart{First: stripe, Step: n}
		for s := stripe; s < len(splits); s += n {
			apart.Parts = append(apart.Parts, splits[s])
		}
		items = append(items, Item{KV: kv, Query: e.q, Options: e.opts, Apart: apart})
	}
	if err := thread.AttendAll(t.Context(), items); err != nil {
		return Output{}, err
	}
	out := e.room()
	var j Joiner
	return out, j.Join(splits, e.q, vDim, e.opts.Sinks, out)
}

// TestJoinedStripesAreOneAttention: in any number of stripes the bits are those of one call.
func TestJoinedStripesAreOneAttention(t *testing.T) {
	rounds := 12
	if raceDetector {
		rounds = 2
	}
	eachKernel(t, func(t *testing.T) {
		for _, threads := range []int{1, 3} {
			p := NewPool(threads)
			defer p.Close()
			for i := range rounds {
				rnd := rand.New(rand.NewPCG(uint64(i), uint64(threads)))
				s := shape{
					headDim: 1 + rnd.IntN(20), vDim: 1 + rnd.IntN(40), tokens: 1 + rnd.IntN(40), heads: 1 + rnd.IntN(5),
					len: 1 + rnd.IntN(4*SplitLen), spread: 1,
				}
				if i%4 == 1 { // which assembly takes as they are
					s.vDim, s.tokens = vectorLen*(1+rnd.IntN(3)), vectorLen*(1+rnd.IntN(4))
				}
				s = s.as(storings[i%len(storings)])
				s.offset = int64(rnd.IntN(s.len))
				e := draw(t, uint64(i), s)
				v := variants[rnd.IntN(len(variants))]
				v.apply(e, rnd)
				want := e.attend(t, 1)
				thread := acquire(t, p, Class(rnd.IntN(2)))
				for n := 1; n <= 4; n++ {
					have, err := e.inStripes(t, thread, n)
					if err != nil {
						t.Fatalf("%s, %s, %d stripes: %v", s, v.name, n, err)
					}
					e.sameRows(t, fmt.Sprintf("%s, %s, %d stripes, %d threads", s, v.name, n, threads), want, have, 0, e.q.Tokens, 0, e.q.Heads)
				}
				thread.Release()
			}
		}
	})
}

// TestJoinRefusesWhatAttendRefuses: rows without a finite answer have the same error, also where no split alone shows it.
func TestJoinRefusesWhatAttendRefuses(t *testing.T) {
	p := NewPool(1)
	defer p.Close()
	thread := acquire(t, p, Foreground)
	defer thread.Release()
	fill := func(x []float32, v float32) {
		for i := range x {
			x[i] = v
		}
	}
	const length = 2*SplitLen + 100
	constant := func(k, v float32) *sample {
		l := shape{dt: tensor.F32, headDim: 4, vDim: 3}.layout(t)
		ks, vs := make([]float32, length*4), make([]float32, length*3)
		fill(ks, k)
		fill(vs, v)
		kb, _, _ := store(t, ks, 4, tensor.F32)
		vb, _, _ := store(t, vs, 3, tensor.F32)
		q := make([]float32, 2*2*4)
		fill(q, 1)
		return &sample{
			kv:   KV{Layout: l, Pages: paged(t, l, length, Rows{K: kb, V: vb}), Len: length},
			q:    Query{Q: q, Tokens: 2, Heads: 2, FirstHead: 3, Offset: length - 2},
			opts: DefaultOptions(4),
		}
	}
	for name, e := range map[string]*sample{
		"a score overflows":                  constant(math.MaxFloat32, 1),
		"all scores overflow":                constant(-math.MaxFloat32, 1),
		"values overflow in every split":     constant(0, math.MaxFloat32),
		"values overflow as splits are one":  constant(0, math.MaxFloat32/1500/1.4),
		"values that do not overflow at all": constant(0, math.MaxFloat32/5000),
	} {
		out := e.room()
		want := thread.Attend(t.Context(), e.kv, e.q, e.opts, out)
		for n := 1; n <= 3; n++ {
			_, have := e.inStripes(t, thread, n)
			var row, rowWant *RowError
			if errors.As(have, &row) != errors.As(want, &rowWant) || row != nil && *row != *rowWant {
				t.Errorf("%s, %d stripes: %v, want %v", name, n, have, want)
			}
		}
		t.Logf("%s: %v", name, want)
	}
}

// TestJoinOfNothing: rows that see nothing have a context of 0, and those that only their sinks see.
func TestJoinOfNothing(t *testing.T) {
	var j Joiner
	for _, sinks := range [][]float32{nil, {0.5, 1}} {
		out := Output{Context: []float32{1, 2, 3, 4}, LSE: []float32{5, 6}}
		if err := j.Join(nil, Query{Tokens: 1, Heads: 2}, 2, sinks, out); err != nil {
			t.Fatal(err)
		}
		for h := range 2 {
			want := negInf
			if sinks != nil {
				want = sinks[h]
			}
			if out.LSE[h] != want || out.Context[2*h] != 0 || out.Context[2*h+1] != 0 {
				t.Errorf("sinks %v: %v", sinks, out)
			}
		}
	}
	for name, err := range map[string]error{
		"no room": j.Join(nil, Query{Tokens: 1, Heads: 2}, 2, nil, Output{Context: make([]float32, 3), LSE: make([]float32, 2)}),
		"a part that is too short": j.Join([]Part{{M: make([]float32, 1), L: make([]float32, 2), O: make([]float32, 4)}}, Query{Tokens: 1, Heads: 2}, 2, nil,
			Output{Context: make([]float32, 4), LSE: make([]float32, 2)}),
		"too few sinks": j.Join(nil, Query{Tokens: 1, Heads: 2, FirstHead: 1}, 2, []float32{1, 2}, Output{Context: make([]float32, 4), LSE: make([]float32, 2)}),
	} {
		if err == nil {
			t.Errorf("%s: no error", name)
		}
	}
}

// TestJoinNoAllocation: neither parts nor their join allocate once there was one as large.
func TestJoinNoAllocation(t *testing.T) {
	skipIfRaced(t)
	e := draw(t, 1, shape{dt: tensor.BF16, headDim: 32, vDim: 32, tokens: 2, heads: 40, len: 5000, spread: 1, offset: 4998})
	p := NewPool(2)
	defer p.Close()
	rows := e.q.Tokens * e.q.Heads
	apart := &Apart{First: 0, Step: 1}
	for range 3 {
		apart.Parts = append(apart.Parts, Part{M: make([]float32, rows), L: make([]float32, rows), O: make([]float32, rows*32)})
	}
	items := []Item{{KV: e.kv, Query: e.q, Options: e.opts, Apart: apart}}
	out := e.room()
	var j Joiner
	if n := testing.AllocsPerRun(100, func() {
		thread := acquire(t, p, Foreground)
		if err := thread.AttendAll(t.Context(), items); err != nil {
			t.Fatal(err)
		}
		thread.Release()
		if err := j.Join(apart.Parts, e.q, 32, nil, out); err != nil {
			t.Fatal(err)
		}
	}); n != 0 {
		t.Errorf("%g allocations", n)
	}
}
