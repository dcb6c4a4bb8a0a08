package kvcache

import (
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"headwater.example/attention"
	"headwater.example/tensor"
)

// TestPagesOfAGroupLieTogether: of a session that grows by a page or by some at a time, in all layers side by side or in one after the other,
// so many pages at most do not follow the one before.
func TestPagesOfAGroupLieTogether(t *testing.T) {
	t.Parallel()
	for _, k := range []struct {
		name                        string
		layers, groups, pages, each int
		after                       bool // the other layers are appended to after this one
		breaks                      int
	}{
		{"a page at a time", 1, 8, 256, 1, false, 272},
		{"one group", 1, 1, 256, 1, false, 7},
		{"many layers of one group", 16, 1, 128, 1, false, 528},
		{"messages of a prompt", 1, 8, 256, 4, false, 256},
		{"messages that fill no power of two", 1, 8, 255, 3, false, 549},
		{"layers side by side", 4, 8, 128, 1, false, 2048},
		{"messages, side by side", 2, 3, 40, 5, false, 38},
		{"messages, layer by layer", 16, 8, 64, 4, true, 904},
	} {
		t.Run(k.name, func(t *testing.T) {
			t.Parallel()
			cfg, held := uniform(t, k.layers, k.groups, 64, tensor.F32)
			st := NewStore(StoreConfig{Budget: NewBudget(1 << 30)})
			defer st.Close()
			create(t, st, SessionID{1}, cfg, held, nil)
			for p := 0; p < k.pages && !k.after; p += k.each {
				grow(t, st, SessionID{1}, k.each*attention.PageLen, nil)
			}
			for l := 0; l < k.layers && k.after; l++ {
				for p := 0; p < k.pages; p += k.each {
					state, err := st.look(SessionID{1})
					if err != nil {
						t.Fatal(err)
					}
					growLayer(t, st, &state, l, k.each*attention.PageLen, nil)
				}
			}
			s := st.sessions[SessionID{1}]
			breaks := 0
			for p := range k.pages - 1 {
				one, next := s.row(p).pages, s.row(p+1).pages
				for i := range one {
					if next[i] != one[i]+1 {
						breaks++
					}
				}
			}
			if breaks > k.breaks {
				t.Errorf("%d pages of %d do not follow the one before, want at most %d", breaks, k.layers*k.groups*(k.pages-1), k.breaks)
			}
		})
	}
}

// TestPagesAgreeWithTheirModel: whatever sequences take and give, a page is one's alone, the budget has those that were used, chunks are
// mapped for nothing but want of pages, idle pages are taken first, and a page follows the one before where that one is free.
func TestPagesAgreeWithTheirModel(t *testing.T) {
	t.Parallel()
	for seed := range uint64(40) {
		rng := rand.New(rand.NewPCG(seed, 1))
		size := 64 << rng.IntN(12)
		budget := NewBudget(int64(size) * int64(1+rng.IntN(2000)))
		p := newPages(budget, time.Now)
		c := p.class(size)
		sequences := make([][]pageID, 1+rng.IntN(12)) // [sequences] their pages
		used := map[pageID]bool{}
		for step := range 600 {
			s := rng.IntN(len(sequences))
			switch {
			case rng.IntN(40) == 0:
				if _, err := p.trim(); err != nil {
					t.Fatal(err)
				}
			case rng.IntN(3) == 0:
				n := rng.IntN(len(sequences[s]) + 1)
				for _, id := range sequences[s][n:] {
					p.give(c, id)
					delete(used, id)
				}
				sequences[s] = sequences[s][:n]
			default:
				takeOfModel(t, p, c, sequences, s, 1+rng.IntN(2*len(sequences)), 1+rng.IntN(6), used)
			}
			settle(budget, p.emptied)
			p.emptied = nil
			if got, want := budget.Used(), int64(len(used)+c.idle)*int64(size); got != want || p.used != int64(len(used)*size) || c.vacant != c.mapped-len(used) {
				t.Fatalf("seed %d, step %d: %d bytes are reserved, want %d; %d used, %d of %d vacant", seed, step, got, want, p.used, c.vacant, c.mapped)
			}
		}
	}
}

// takeOfModel takes rows of pages, of so many sequences from one on each, and compares what it gets with the rules.
func takeOfModel(t *testing.T, p *pages, c *class, sequences [][]pageID, from, width, rows int, used map[pageID]bool) {
	width = min(width, len(sequences)-from)
	ids, after := make([][]pageID, rows), make([]pageID, width)
	for r := range ids {
		ids[r] = make([]pageID, width)
	}
	for i := range after {
		if s := sequences[from+i]; len(s) > 0 {
			after[i] = s[len(s)-1]
		}
	}
	idle, vacant, mapped, reserved := c.idle, c.vacant, c.mapped, p.budget.Used()
	var follows bool
	if at, slot := c.at(after[0]); after[0] != 0 && vacant >= rows*width {
		follows = c.chunks[at].free(slot+1, idle > 0)
	}
	if err := p.takeRows(c, ids, after, Nobody); err != nil {
		if int64(max(rows*width-idle, 0)*c.size) <= p.budget.Total()-reserved || c.idle != idle || p.budget.Used() != reserved {
			t.Fatalf("%d pages, %d of them idle, with %d bytes of %d reserved: %v", rows*width, idle, reserved, p.budget.Total(), err)
		}
		return
	}
	if c.idle != max(idle-rows*width, 0) || c.mapped > mapped && vacant >= rows*width {
		t.Fatalf("%d pages of %d idle and %d vacant: %d are idle then, and %d mapped after %d", rows*width, idle, vacant, c.idle, c.mapped, mapped)
	}
	if follows && ids[0][0] != after[0]+1 {
		t.Fatalf("page %d follows page %d, though the next one is free", ids[0][0], after[0])
	}
	for r := range ids {
		for i, id := range ids[r] {
			if at, slot := c.at(id); used[id] || slot >= c.chunks[at].slots {
				t.Fatalf("page %d is taken twice, or is none", id)
			}
			used[id] = true
			sequences[from+i] = append(sequences[from+i], id)
		}
	}
	for r := range ids {
		if slices.Contains(ids[r], 0) {
			t.Fatal("a page was not taken")
		}
	}
}

// TestTheRoundestNumber of a range is the one that the largest power of two divides.
func TestTheRoundestNumber(t *testing.T) {
	t.Parallel()
	for low := 1; low < 70; low++ {
		for high := low; high < 140; high++ {
			want := low
			for x := low; x <= high; x++ {
				if x&-x > want&-want {
					want = x
				}
			}
			if got := roundest(low, high); got&-got != want&-want || got < low || got > high {
				t.Fatalf("from %d to %d: got %d, want %d", low, high, got, want)
			}
		}
	}
}
