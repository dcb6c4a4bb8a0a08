package kvcache

import (
	"encoding/binary"
	"fmt"
	"runtime"
	"testing"
	"time"

	"headwater.example/shard"
	"headwater.example/tensor"
)

// allocatedNow is what is allocated and still in use.
func allocatedNow() int64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}

// What is reserved for rows is what they take, with all that they may get.
func TestARowTakesWhatIsReservedForIt(t *testing.T) {
	for _, c := range []struct{ layers, groups, rows int }{{1, 1, 20000}, {2, 4, 20000}, {32, 8, 4000}, {3000, 1, 300}} {
		t.Run(fmt.Sprintf("%d layers of %d groups", c.layers, c.groups), func(t *testing.T) {
			cfg, held := uniform(t, c.layers, c.groups, 1, tensor.F32)
			sh, err := newShape(cfg, held)
			if err != nil {
				t.Fatal(err)
			}
			before := allocatedNow()
			x := newPrefixes()
			var rows []*row
			for i := range c.rows {
				r := newRow(sh)
				r.left = make([]int32, len(sh.layers))
				rows = append(rows, r)
				var key prefixKey
				binary.LittleEndian.PutUint64(key[:], uint64(i))
				x.add(key, r, nil)
			}
			took, reserved := allocatedNow()-before, sh.rowBytes*int64(c.rows)
			if took > reserved || took < reserved*3/4 {
				t.Errorf("%d rows take %d bytes, %d are reserved", c.rows, took, reserved)
			}
			runtime.KeepAlive(x)
			runtime.KeepAlive(rows)
		})
	}
}

// A session of very many layers has large rows, whose pages are small where few layers have something there. They are refused
// before there is memory for them, whether an append fills them or they lie before it.
func TestRowsWithoutPagesCountInTheBudget(t *testing.T) {
	const layers, n = 1 << 12, shard.MaxStepTokens
	cfg, held := uniform(t, layers, 1, 1, tensor.F32)
	row, page := rowsOf(cfg, held, 1), int64(cfg.Layers[0].Layout.PageBytes())
	cfg.Layers[1].Options.WindowLeft = 10
	begin := []BeginLayer{{Layer: 1, First: n, Hashes: []uint64{1}, Length: n}}
	for name, c := range map[string]struct {
		begin     []BeginLayer
		positions int
		rows      int64
		pages     int64
		layer     int
	}{
		"filled":   {nil, n, n / 64, n / 64, 0},
		"of a gap": {begin, 1, n/64 + 1, 1, 1},
	} {
		t.Run(name, func(t *testing.T) {
			total := c.rows*row + c.pages*page
			budget := NewBudget(1 << 30)
			st := NewStore(StoreConfig{Budget: budget})
			add := func(id SessionID, room int64) error {
				req := CreateRequest{Session: id, Epoch: first, Config: cfg, Held: held, Begin: c.begin}
				if _, err := st.Create(req); err != nil {
					t.Fatal(err)
				}
				budget.total = budget.Used() + room
				a := Append{
					Session: id, Epoch: first, Layer: shard.Layer(c.layer), Hashes: []uint64{0}, Positions: c.positions, Encoding: tensor.F32,
					K: make([]byte, 4*c.positions), V: make([]byte, 4*c.positions),
				}
				if c.begin != nil {
					a.Length, a.Hashes = c.begin[0].First, c.begin[0].Hashes
				}
				_, _, err := st.put(&a, nil)
				return err
			}
			before := allocatedNow()
			if err := add(SessionID{1}, total-1); reasonOf(err) != OverBudget {
				t.Fatalf("an append that needs %d bytes of %d: %v", total, total-1, err)
			}
			if took := allocatedNow() - before; took > total/4 {
				t.Errorf("a refused append has taken %d bytes", took)
			}
			if c := st.Cache(); c.RowBytes != 0 || budget.Used() != c.FreeBytes+c.SessionBytes {
				t.Fatalf("%d bytes are reserved after it: %+v", budget.Used(), c)
			}
			audit(t, st, nil)
			if err := st.end(SessionID{1}, nil); err != nil {
				t.Fatal(err)
			}
			budget.total = 1 << 30
			if !st.Reclaim(budget.total) {
				t.Fatalf("%d bytes are reserved after it", budget.Used())
			}
			if err := add(SessionID{2}, total); err != nil {
				t.Fatal(err)
			}
			if c := st.Cache(); budget.Used() != budget.Total() || c.RowBytes != total-c.UsedBytes {
				t.Errorf("%d of %d bytes are reserved, %d for rows of %d", budget.Used(), budget.Total(), c.RowBytes, total)
			}
			audit(t, st, nil)
			if _, err := st.cut(SessionID{2}, first, 0, 0, nil); err != nil {
				t.Fatal(err)
			}
			if c := st.Cache(); c.RowBytes != 0 || budget.Used() != c.FreeBytes+c.SessionBytes {
				t.Errorf("%d bytes are reserved for rows of nothing, %d in all", c.RowBytes, budget.Used())
			}
			st.Close()
			if budget.Used() != 0 {
				t.Fatalf("%d bytes are reserved in the end", budget.Used())
			}
		})
	}
}

// An append to a shared row takes room for a copy of it, and leaves none for one that its last sharer has left meanwhile.
func TestCopiesOfRowsCountInTheBudget(t *testing.T) {
	cfg, held := uniform(t, 2, 1, 4, tensor.F32)
	row, page := rowsOf(cfg, held, 1), int64(cfg.Layers[0].Layout.PageBytes())
	budget := NewBudget(1 << 20)
	st := NewStore(StoreConfig{Budget: budget})
	create(t, st, SessionID{1}, cfg, held, nil)
	grow(t, st, SessionID{1}, 10, nil)
	fork := func(id SessionID) {
		t.Helper()
		if _, err := st.branch(ForkRequest{Session: SessionID{1}, Epoch: first, Child: id, ChildEpoch: first, Position: -1}); err != nil {
			t.Fatal(err)
		}
	}
	fork(SessionID{2})
	if c := st.Cache(); c.RowBytes != row {
		t.Fatalf("%d bytes of rows are reserved, want one of %d", c.RowBytes, row)
	}
	grow(t, st, SessionID{2}, 1, nil)
	if c := st.Cache(); c.RowBytes != 2*row || c.UsedBytes != 4*page {
		t.Fatalf("%+v, want two rows of %d and four pages", c, row)
	}
	// There is room for the pages of a third, not for its row.
	fork(SessionID{3})
	budget.total = budget.Used() + 2*page + row - 1
	state, err := st.look(SessionID{3})
	if err != nil {
		t.Fatal(err)
	}
	a := Append{Session: SessionID{3}, Epoch: first, Length: 10, Hashes: state.Layers[0].Hashes, Positions: 1, Encoding: tensor.F32, K: make([]byte, 16), V: make([]byte, 16)}
	if _, _, err := st.put(&a, nil); reasonOf(err) != OverBudget {
		t.Fatalf("a row beyond the budget: %v", err)
	}
	audit(t, st, nil)
	if err := st.end(SessionID{2}, nil); err != nil {
		t.Fatal(err)
	}
	var p Pending
	if _, _, err := st.putPending(&p, &a, nil); err != nil {
		t.Fatal(err)
	}
	p.Abort()
	if c := st.Cache(); c.RowBytes != row {
		t.Fatalf("%d bytes of rows are reserved, want one of %d", c.RowBytes, row)
	}
	audit(t, st, nil)
	st.Close()
	if budget.Used() != 0 {
		t.Fatalf("%d bytes are reserved in the end", budget.Used())
	}
}

// A session takes what is reserved for it, whether it is made or forked, and as it is truncated; what is left of it is given back
// with its last prefix.
func TestASessionTakesWhatIsReservedForIt(t *testing.T) {
	for _, c := range []struct{ layers, groups, tokens, sessions int }{{1, 1, 0, 4000}, {32, 8, 0, 400}, {2, 4, 1000, 400}, {1 << 12, 1, 0, 20}, {1, 1 << 10, 0, 40}} {
		t.Run(fmt.Sprintf("%d layers of %d groups, %d tokens", c.layers, c.groups, c.tokens), func(t *testing.T) {
			st := NewStore(StoreConfig{Budget: NewBudget(1 << 30)})
			taken := func(what string, do func(i int)) {
				t.Helper()
				before, reserved := allocatedNow(), st.Cache().SessionBytes
				for i := range c.sessions {
					do(i)
				}
				took := allocatedNow() - before
				if reserved = st.Cache().SessionBytes - reserved; took > reserved || took < reserved/3 && c.tokens == 0 { // forks share tokens until they append
					t.Errorf("%s: %d sessions take %d bytes, %d are reserved", what, c.sessions, took, reserved)
				}
			}
			tokens := make([]uint32, c.tokens)
			taken("made", func(i int) {
				cfg, held := uniform(t, c.layers, c.groups, 1, tensor.F32)
				create(t, st, SessionID{1, byte(i), byte(i >> 8)}, cfg, held, tokens)
			})
			taken("forked", func(i int) {
				id := SessionID{2, byte(i), byte(i >> 8)}
				if _, err := st.branch(ForkRequest{Session: SessionID{1}, Epoch: first, Child: id, ChildEpoch: first, Position: -1}); err != nil {
					t.Fatal(err)
				}
				if _, err := st.cut(id, first, 0, 0, nil); err != nil {
					t.Fatal(err)
				}
			})
			audit(t, st, nil)
			st.Close()
			if used := st.budget.Used(); used != 0 {
				t.Errorf("%d bytes are reserved in the end", used)
			}
		})
	}
}

// Sessions without positions fill the budget, and are dropped for others where they may be.
func TestSessionsCountInTheBudget(t *testing.T) {
	cfg, held := uniform(t, 1<<12, 1, 1, tensor.F32)
	budget := NewBudget(1 << 30)
	now := time.Unix(1e9, 0)
	st := NewStore(StoreConfig{Budget: budget, TTL: time.Minute, Now: func() time.Time { return now }})
	create(t, st, SessionID{1}, cfg, held, nil)
	one := budget.Used()
	budget.total = 3*one - 1
	create(t, st, SessionID{2}, cfg, held, nil)
	req := CreateRequest{Session: SessionID{3}, Epoch: first, Config: cfg, Held: held}
	fork := ForkRequest{Session: SessionID{1}, Epoch: first, Child: SessionID{4}, ChildEpoch: first, Position: -1}
	if _, err := st.Create(req); reasonOf(err) != OverBudget {
		t.Fatalf("a session beyond the budget: %v", err)
	}
	for {
		if _, err := st.branch(fork); reasonOf(err) == OverBudget {
			break
		} else if err != nil {
			t.Fatal(err)
		}
		fork.Child[1]++
	}
	if fork.Child[1] == 0 || budget.Total()-budget.Used() > one {
		t.Fatalf("%d forks fill %d bytes of %d", fork.Child[1], budget.Used(), budget.Total())
	}
	audit(t, st, nil)
	// The shape of what is dropped stays with the forks.
	if err := st.end(SessionID{1}, nil); err != nil {
		t.Fatal(err)
	}
	audit(t, st, nil)
	if _, err := st.Create(req); reasonOf(err) != OverBudget {
		t.Fatalf("a session beyond the budget: %v", err)
	}
	now = now.Add(time.Minute)
	if _, err := st.Create(req); err != nil {
		t.Fatalf("others may be dropped for it: %v", err)
	}
	if _, err := st.look(SessionID{3}); err != nil || st.Cache().Evicted == 0 {
		t.Fatalf("%+v: %v", st.Cache(), err)
	}
	audit(t, st, nil)
	st.Close()
	if budget.Used() != 0 {
		t.Fatalf("%d bytes are reserved in the end", budget.Used())
	}
}

// A prefix keeps the shape of the session that it comes from, and gives room with it.
func TestAPrefixKeepsAShape(t *testing.T) {
	cfg, held := uniform(t, 2, 1, 4, tensor.F32)
	budget := NewBudget(1 << 20)
	st := NewStore(StoreConfig{Budget: budget})
	text := make([]uint32, 64)
	create(t, st, SessionID{1}, cfg, held, text)
	grow(t, st, SessionID{1}, 64, text)
	if err := st.end(SessionID{1}, nil); err != nil {
		t.Fatal(err)
	}
	audit(t, st, nil)
	if c := st.Cache(); c.SessionBytes == 0 || c.SessionBytes != st.lone {
		t.Fatalf("%+v, of these %d of no session", c, st.lone)
	}
	if !st.Reclaim(budget.Total()) || budget.Used() != 0 {
		t.Fatalf("%d bytes are reserved", budget.Used())
	}
	audit(t, st, nil)
	st.Close()
}
