package kvcache

import (
	"testing"
	"time"

	"headwater.example/shard"
	"headwater.example/tensor"
)

// twoSizes is a config of two layers of one group whose pages differ in size, and these sizes.
func twoSizes(t *testing.T) (cfg Config, held []HeldLayer, large, small int64) {
	cfg = Config{Layers: []shard.LayerSpec{testLayer(t, tensor.F32, 1, 1, 64, 64, -1), testLayer(t, tensor.F16, 1, 1, 32, 32, -1)}}
	held = []HeldLayer{{Layer: 0, Groups: []shard.Group{0}}, {Layer: 1, Groups: []shard.Group{0}}}
	return cfg, held, int64(cfg.Layers[0].Layout.PageBytes()), int64(cfg.Layers[1].Layout.PageBytes())
}

// TestPagesOfTwoSizesDoNotTakeTheRoomFromEachOther has an append need a page of each of two sizes where the budget is full: those
// of one size are idle, and room for the other must be made or is not there. An append that gave back what it had while it
// looked for the rest would find that idle, and trim and take it again without end.
func TestPagesOfTwoSizesDoNotTakeTheRoomFromEachOther(t *testing.T) {
	for name, c := range map[string]struct {
		idle  int  // large pages
		old   bool // whether sessions may be dropped
		forks byte // of a session that may not be: they may be, and have nothing of their own
		want  Reason
	}{
		"an idle page of the other size makes room":      {idle: 2},
		"a session makes room":                           {idle: 1, old: true},
		"nothing makes room":                             {idle: 1, want: OverBudget},
		"sessions make less room than they seem to have": {idle: 1, old: true, forks: 3, want: OverBudget},
	} {
		t.Run(name, func(t *testing.T) {
			cfg, held, large, small := twoSizes(t)
			budget := NewBudget(1 << 30)
			now := time.Unix(1e9, 0)
			st := NewStore(StoreConfig{Budget: budget, TTL: time.Minute, Now: func() time.Time { return now }})
			for i := range byte(2) {
				create(t, st, SessionID{1, i}, cfg, held, nil)
				grow(t, st, SessionID{1, i}, 1, nil)
			}
			create(t, st, SessionID{2}, Config{Layers: cfg.Layers[:1]}, held[:1], nil)
			grow(t, st, SessionID{2}, 64*(1+c.idle), nil)
			for i := range c.forks {
				if _, err := st.branch(ForkRequest{Session: SessionID{1, 1}, Epoch: first, Child: SessionID{4, i}, ChildEpoch: first, Position: -1}); err != nil {
					t.Fatal(err)
				}
			}
			if c.forks > 0 {
				if _, err := st.Pin(SessionID{1, 1}, true); err != nil {
					t.Fatal(err)
				}
			}
			if c.old {
				now = now.Add(time.Minute)
			}
			if _, err := st.cut(SessionID{2}, first, 0, 64, nil); err != nil {
				t.Fatal(err)
			}
			if used, idle := st.Cache().UsedBytes, st.Cache().FreeBytes; used != 3*large+2*small || idle != int64(c.idle)*large {
				t.Fatalf("%d bytes of pages are in use, %d idle", used, idle)
			}
			// A fork copies a page of each size before it appends.
			if _, err := st.branch(ForkRequest{Session: SessionID{1, 0}, Epoch: first, Child: SessionID{3}, ChildEpoch: first, Position: -1}); err != nil {
				t.Fatal(err)
			}
			state, err := st.look(SessionID{3})
			if err != nil {
				t.Fatal(err)
			}
			budget.total = budget.Used() + rowsOf(cfg, held, 1)
			layout := cfg.Layers[0].Layout
			a := Append{
				Session: SessionID{3}, Epoch: first, Length: 1, Hashes: state.Layers[0].Hashes, Positions: 1, Encoding: tensor.F32,
				K: make([]byte, layout.KRowBytes()), V: make([]byte, layout.VRowBytes()),
			}
			ended := make(chan error, 1)
			go func() { _, _, err := st.put(&a, nil); ended <- err }()
			select {
			case err := <-ended:
				if reasonOf(err) != c.want || err == nil != (c.want == 0) {
					t.Fatalf("got %v", err)
				}
			case <-time.After(time.Minute):
				t.Fatal("the append does not end")
			}
			audit(t, st, nil)
			st.Close()
			if budget.Used() != 0 {
				t.Fatalf("%d bytes are reserved in the end", budget.Used())
			}
		})
	}
}

// TestALargeWorkerKeepsMoreEmptyChunks: an eighth of its budget, once that is more than others keep.
func TestALargeWorkerKeepsMoreEmptyChunks(t *testing.T) {
	cfg, held, _, _ := twoSizes(t)
	budget := NewBudget(12 * leastMaxKept)
	st := NewStore(StoreConfig{Budget: budget})
	create(t, st, SessionID{1}, Config{Layers: cfg.Layers[:1]}, held[:1], nil)
	grow(t, st, SessionID{1}, 64*1000, nil)
	if err := st.end(SessionID{1}, nil); err != nil {
		t.Fatal(err)
	}
	if free := st.Cache().FreeBytes; free <= leastMaxKept || free > budget.Total()/8 {
		t.Fatalf("%d bytes are kept", free)
	}
	audit(t, st, nil)
	if !st.Reclaim(budget.Total()) || budget.Used() != 0 {
		t.Fatalf("%d bytes are reserved", budget.Used())
	}
	st.Close()
}

// TestEmptyChunksAreKeptForAWhile: a fork that is dropped leaves its pages to the next one, and to whoever needs the room.
func TestEmptyChunksAreKeptForAWhile(t *testing.T) {
	cfg, held, large, _ := twoSizes(t)
	budget := NewBudget(64 << 20)
	now := time.Unix(1e9, 0)
	st := NewStore(StoreConfig{Budget: budget, Now: func() time.Time { return now }})
	state := func(used, free int64) {
		t.Helper()
		audit(t, st, nil)
		if c := st.Cache(); c.UsedBytes != used || c.FreeBytes != free {
			t.Fatalf("%d bytes of pages are in use and %d free, want %d and %d", c.UsedBytes, c.FreeBytes, used, free)
		}
	}
	only := Config{Layers: cfg.Layers[:1]}
	mapped := func() (n int) {
		for _, c := range st.pages.classes {
			n += c.mapped
		}
		return n
	}
	for i := range byte(3) {
		create(t, st, SessionID{1, i}, only, held[:1], nil)
		grow(t, st, SessionID{1, i}, 64*100, nil)
		state(100*large, 0)
		before := mapped()
		if err := st.end(SessionID{1, i}, nil); err != nil {
			t.Fatal(err)
		}
		state(0, 100*large)
		if mapped() != before {
			t.Fatalf("%d pages are mapped of %d", mapped(), before)
		}
	}
	// For jobs there is all of the room.
	if !st.Reclaim(budget.Total()) || budget.Used() != 0 || mapped() != 0 {
		t.Fatalf("%d bytes are reserved, %d pages mapped", budget.Used(), mapped())
	}
	// No more is kept than that, and not for longer.
	create(t, st, SessionID{2}, only, held[:1], nil)
	grow(t, st, SessionID{2}, 64*1000, nil)
	if err := st.end(SessionID{2}, nil); err != nil {
		t.Fatal(err)
	}
	if free := st.Cache().FreeBytes; free == 0 || free > leastMaxKept {
		t.Fatalf("%d bytes are kept", free)
	}
	audit(t, st, nil)
	now = now.Add(keepFor - 1)
	st.Expire()
	if st.Cache().FreeBytes == 0 {
		t.Fatal("nothing is kept")
	}
	now = now.Add(1)
	st.Expire()
	state(0, 0)
	if budget.Used() != 0 {
		t.Fatalf("%d bytes are reserved", budget.Used())
	}
	st.Close()
}
