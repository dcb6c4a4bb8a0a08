package kvcache

import (
	"bytes"
	"context"
	"fmt"
	"math"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"headwater.example/attention"
	"headwater.example/shard"
	"headwater.example/tensor"
)

// reasonOf returns the reason of a typed error.
func reasonOf(err error) Reason {
	if e, ok := err.(*Error); ok {
		return e.Reason
	}
	return 0
}

// uniform is a config of that many layers alike, all of whose groups are held.
func uniform(t interface{ Fatal(...any) }, layers, groups, dim int, dt tensor.DType) (Config, []HeldLayer) {
	var cfg Config
	var held []HeldLayer
	all := make([]shard.Group, groups)
	for g := range all {
		all[g] = shard.Group(g)
	}
	for l := range layers {
		cfg.Layers = append(cfg.Layers, testLayer(t, dt, groups, groups, dim, dim, -1))
		held = append(held, HeldLayer{Layer: shard.Layer(l), Groups: all})
	}
	return cfg, held
}

var first = Epoch{Counter: 1, Lane: LaneID{1}}

// grow appends n positions of zeros to every layer.
func grow(t interface{ Fatal(...any) }, st *Store, id SessionID, n int, tokens []uint32) {
	state, err := st.look(id)
	if err != nil {
		t.Fatal(err)
	}
	for i := range state.Layers {
		growLayer(t, st, &state, i, n, tokens)
	}
}

// growLayer appends n positions of zeros to the i-th held layer of a session in that state.
func growLayer(t interface{ Fatal(...any) }, st *Store, state *State, i, n int, tokens []uint32) {
	l := state.Layers[i]
	layout := state.Config.Layers[l.Layer].Layout
	a := Append{
		Session: state.Session, Epoch: state.Epoch, Truncations: state.Truncations, Layer: l.Layer, Length: l.Length, Hashes: l.Hashes, Positions: n,
		Encoding: layout.DType(), K: make([]byte, len(l.Hashes)*n*layout.KRowBytes()), V: make([]byte, len(l.Hashes)*n*layout.VRowBytes()), Tokens: tokens,
	}
	if _, _, err := st.put(&a, nil); err != nil {
		t.Fatal(err)
	}
}

// rowsOf is what n rows of sessions of a config and a holding take of the budget beside their pages.
func rowsOf(cfg Config, held []HeldLayer, n int) int64 {
	sh, err := newShape(cfg, held)
	if err != nil {
		panic(err)
	}
	return int64(n) * sh.rowBytes
}

func create(t interface{ Fatal(...any) }, st *Store, id SessionID, cfg Config, held []HeldLayer, tokens []uint32) State {
	state, err := st.Create(CreateRequest{Session: id, Epoch: first, Config: cfg, Held: held, Tokens: tokens})
	if err != nil {
		t.Fatal(err)
	}
	return state
}

func TestAppendNamesWhatItRefuses(t *testing.T) {
	budget := NewBudget(1 << 20)
	st := NewStore(StoreConfig{Budget: budget})
	cfg := Config{Layers: []shard.LayerSpec{testLayer(t, tensor.F16, 2, 2, 3, 2, -1), testLayer(t, tensor.I8, 1, 1, 2, 2, -1)}}
	id := SessionID{7}
	create(t, st, id, cfg, []HeldLayer{{Layer: 0, Groups: []shard.Group{0, 1}}, {Layer: 1, Groups: []shard.Group{0}}}, nil)
	const n = 70
	fresh := func() Append {
		return Append{Session: id, Epoch: first, Positions: n, Hashes: []uint64{0, 0}, Encoding: tensor.F32, K: make([]byte, 2*n*3*4), V: make([]byte, 2*n*2*4)}
	}
	put := func(b []byte, at int, x float32) { copy(b[4*at:], floatBytes(x)) }
	for name, c := range map[string]struct {
		change func(a *Append)
		want   string
	}{
		"NaN":         {func(a *Append) { put(a.K, (n+66)*3+2, float32(math.NaN())) }, "group 1: k at position 66: element 2 is NaN"},
		"infinite":    {func(a *Append) { put(a.V, 5*2+1, float32(math.Inf(-1))) }, "group 0: v at position 5: element 1 is -Inf"},
		"overflow":    {func(a *Append) { put(a.V, (n+69)*2, 1e6) }, "group 1: v at position 69: element 0: 1e+06 exceeds the range of F16"},
		"encoding":    {func(a *Append) { a.Encoding = tensor.BF16 }, "BF16"},
		"tokens":      {func(a *Append) { a.Tokens = []uint32{1} }, "1 token ids for 70"},
		"hashes":      {func(a *Append) { a.Hashes = []uint64{0} }, "1 hashes, 2 groups"},
		"too many":    {func(a *Append) { a.Positions = shard.MaxStepTokens + 1 }, "at most 65536"},
		"negative":    {func(a *Append) { a.Positions = -1 }, "at most 65536"},
		"long length": {func(a *Append) { a.Length = math.MaxUint64 }, "more than"},
		"scales":      {func(a *Append) { a.KScale = make([]byte, 4) }, "k_scale has 4 bytes"},
		"stored NaN": {func(a *Append) {
			a.Encoding, a.K, a.V = tensor.F16, slices.Repeat([]byte{0xff}, 2*n*3*2), make([]byte, 2*n*2*2)
		}, "group 0: k at position 0: element 0 is NaN"},
		"layer":          {func(a *Append) { a.Layer = 5 }, "not held"},
		"negative layer": {func(a *Append) { a.Layer = -1 }, "not held"},
	} {
		a := fresh()
		c.change(&a)
		_, _, err := st.put(&a, nil)
		if reasonOf(err) != Invalid || !strings.Contains(err.Error(), c.want) || strings.Contains(err.Error(), "\n") {
			t.Errorf("%s: got %v, want %q", name, err, c.want)
		}
		if used := st.Cache().UsedBytes; used != 0 {
			t.Errorf("%s: %d bytes of pages are in use", name, used)
		}
	}
	scales := Append{Session: id, Epoch: first, Layer: 1, Positions: 1, Hashes: []uint64{0}, Encoding: tensor.I8, K: make([]byte, 2), V: make([]byte, 2), KScale: floatBytes(1), VScale: floatBytes(float32(math.Inf(1)))}
	if _, _, err := st.put(&scales, nil); reasonOf(err) != Invalid || !strings.Contains(err.Error(), "v_scale at position 0") {
		t.Errorf("an infinite scale: %v", err)
	}
	a := fresh()
	if _, _, err := st.put(&a, nil); err != nil {
		t.Fatal(err)
	}
	st.Close()
	if budget.Used() != 0 {
		t.Fatalf("%d bytes are reserved in the end", budget.Used())
	}
}

func TestCreateRefuses(t *testing.T) {
	st := NewStore(StoreConfig{Budget: NewBudget(1 << 20), MaxSessions: 1})
	cfg, held := uniform(t, 2, 2, 4, tensor.F32)
	for name, change := range map[string]func(r *CreateRequest){
		"epoch":            func(r *CreateRequest) { r.Epoch.Counter = 0 },
		"tenant":           func(r *CreateRequest) { r.Config.Tenant = strings.Repeat("x", shard.MaxText+1) },
		"model":            func(r *CreateRequest) { r.Config.Model = make([]byte, shard.MaxText+1) },
		"name":             func(r *CreateRequest) { r.Config.Name = strings.Repeat("x", shard.MaxText+1) },
		"ttl":              func(r *CreateRequest) { r.Config.TTL = -1 },
		"no layer":         func(r *CreateRequest) { r.Config.Layers = nil },
		"zero layout":      func(r *CreateRequest) { r.Config.Layers[1].Layout = attention.Layout{} },
		"heads":            func(r *CreateRequest) { r.Config.Layers[1].KVHeads = 0 },
		"group size":       func(r *CreateRequest) { r.Config.Layers[1].KVHeads = 3 },
		"options":          func(r *CreateRequest) { r.Config.Layers[1].Options.Scale = float32(math.NaN()) },
		"nothing held":     func(r *CreateRequest) { r.Held = []HeldLayer{{Layer: 1}} },
		"descending layer": func(r *CreateRequest) { r.Held[1].Layer = 0 },
		"beyond layers":    func(r *CreateRequest) { r.Held[1].Layer = 2 },
		"negative layer":   func(r *CreateRequest) { r.Held[0].Layer = -1 },
		"group twice":      func(r *CreateRequest) { r.Held[0].Groups = []shard.Group{1, 1} },
		"beyond groups":    func(r *CreateRequest) { r.Held[0].Groups = []shard.Group{2} },
		"negative group":   func(r *CreateRequest) { r.Held[0].Groups = []shard.Group{-1} },
	} {
		r := CreateRequest{Session: SessionID{1}, Epoch: first, Config: cfg, Held: slices.Clone(held)}
		r.Config.Layers = slices.Clone(cfg.Layers)
		change(&r)
		if _, err := st.Create(r); reasonOf(err) != Invalid || strings.Contains(err.Error(), "\n") {
			t.Errorf("%s: got %v", name, err)
		}
	}
	create(t, st, SessionID{1}, cfg, held, nil)
	if _, err := st.Create(CreateRequest{Session: SessionID{2}, Epoch: first, Config: cfg, Held: held}); reasonOf(err) != OverBudget {
		t.Errorf("one session too many: %v", err)
	}
	if _, err := st.Create(CreateRequest{Session: SessionID{1}, Epoch: Epoch{Counter: 2}, Config: cfg, Held: held}); reasonOf(err) != Exists {
		t.Errorf("another epoch: %v", err)
	}
	if err := st.end(SessionID{3}, nil); reasonOf(err) != Unknown {
		t.Errorf("drop of a session that never was: %v", err)
	}
}

// What a prompt finds saves what it need not send, is counted, and is evicted last page first.
func TestPrefixIsFoundCountedAndEvictedFromItsEnd(t *testing.T) {
	cfg, held := uniform(t, 2, 2, 4, tensor.F16)
	page := int64(cfg.Layers[0].Layout.PageBytes())
	row := 4 * page
	budget := NewBudget(1 << 30)
	st := NewStore(StoreConfig{Budget: budget})
	text := make([]uint32, 300)
	for i := range text {
		text[i] = uint32(i * i)
	}
	create(t, st, SessionID{1}, cfg, held, text[:200])
	grow(t, st, SessionID{1}, 200, text[:200])
	for n, want := range map[int]uint64{192: 128, 193: 192, 64: 0, 65: 64, 0: 0} {
		id := SessionID{2, byte(n)}
		state := create(t, st, id, cfg, held, text[:n])
		if state.Layers[0].Length != want || state.Layers[1].Length != want || state.OwnBytes != 0 || state.PageBytes != int64(want/64)*row {
			t.Errorf("%d tokens: %+v, want %d positions", n, state, want)
		}
		if err := st.end(id, nil); err != nil {
			t.Fatal(err)
		}
	}
	if c := st.Cache(); c.PrefixAsked != 200+192+193+64+65 || c.PrefixHits != 128+192+64 || c.PrefixSavedBytes != c.PrefixHits*4*16 || c.PrefixBytes != 0 {
		t.Errorf("counters: %+v", c)
	}
	if err := st.end(SessionID{1}, nil); err != nil {
		t.Fatal(err)
	}
	if c := st.Cache(); c.PrefixBytes != 3*row || c.UsedBytes != 3*row {
		t.Errorf("after the drop: %+v", c)
	}
	// Three rows more than fit beside what is kept take the last page of the prefix.
	create(t, st, SessionID{4}, cfg, held, nil)
	budget.total = budget.Used() + 2*row + rowsOf(cfg, held, 2)
	grow(t, st, SessionID{4}, 3*64, nil)
	budget.total += row / 2 // for another session
	if state := create(t, st, SessionID{5}, cfg, held, text[:200]); state.Layers[0].Length != 128 {
		t.Errorf("%d positions are left of the prefix, want 128", state.Layers[0].Length)
	}
	// What can not fit evicts nothing.
	state, _ := st.look(SessionID{4})
	layout := cfg.Layers[0].Layout
	n := 64 * 11
	a := Append{Session: SessionID{4}, Epoch: first, Length: 192, Hashes: state.Layers[0].Hashes, Positions: n, Encoding: tensor.F16, K: make([]byte, 2*n*layout.KRowBytes()), V: make([]byte, 2*n*layout.VRowBytes())}
	if err := st.end(SessionID{5}, nil); err != nil {
		t.Fatal(err)
	}
	if _, _, err := st.put(&a, nil); reasonOf(err) != OverBudget {
		t.Errorf("an append beyond the budget: %v", err)
	}
	if c := st.Cache(); c.PrefixBytes != 2*row {
		t.Errorf("an append in vain has evicted: %+v", c)
	}
	st.Close()
	if budget.Used() != 0 {
		t.Fatalf("%d bytes are reserved in the end", budget.Used())
	}
}

// A sliding window keeps what a later query sees and what the last step is repeated with, and no more.
// A list is all sessions by id, in parts of any size.
func TestListInParts(t *testing.T) {
	cfg, held := uniform(t, 1, 1, 4, tensor.F16)
	st := NewStore(StoreConfig{Budget: NewBudget(1 << 20)})
	const sessions = 9
	for i := range sessions {
		create(t, st, SessionID{byte(i * 7 % sessions)}, cfg, held, nil)
	}
	for limit := range sessions + 2 {
		var all []SessionID
		var after *SessionID
		for {
			part := st.IDs(after, limit, nil)
			if limit > 0 && len(part) > limit {
				t.Fatalf("%d sessions, at most %d were asked for", len(part), limit)
			}
			all = append(all, part...)
			if len(part) == 0 || limit == 0 {
				break
			}
			after = &all[len(all)-1]
		}
		for i, id := range all {
			if id != (SessionID{byte(i)}) {
				t.Fatalf("by %d: session %d is %s", limit, i, id)
			}
		}
		if len(all) != sessions {
			t.Fatalf("by %d: %d sessions of %d", limit, len(all), sessions)
		}
	}
	st.Close()
}

// What is pinned makes no room, and an append that counts on it would evict in vain.
func TestPinnedSessionsMakeNoRoom(t *testing.T) {
	cfg, held := uniform(t, 1, 1, 4, tensor.F16)
	page := int64(cfg.Layers[0].Layout.PageBytes())
	now := time.Unix(0, 0)
	budget := NewBudget(1 << 30)
	st := NewStore(StoreConfig{Budget: budget, TTL: time.Minute, Now: func() time.Time { return now }})
	text := make([]uint32, 64)
	create(t, st, SessionID{1}, cfg, held, text)
	grow(t, st, SessionID{1}, 64, text)
	if err := st.end(SessionID{1}, nil); err != nil {
		t.Fatal(err)
	}
	create(t, st, SessionID{2}, cfg, held, nil)
	grow(t, st, SessionID{2}, 2*64, nil)
	if _, err := st.Pin(SessionID{2}, true); err != nil {
		t.Fatal(err)
	}
	now = now.Add(time.Hour)
	create(t, st, SessionID{3}, cfg, held, nil)
	budget.total = budget.Used() + page + rowsOf(cfg, held, 1)
	n := 3 * 64
	a := Append{Session: SessionID{3}, Epoch: first, Hashes: []uint64{0}, Positions: n, Encoding: tensor.F16, K: make([]byte, n*4*2), V: make([]byte, n*4*2)}
	if _, _, err := st.put(&a, nil); reasonOf(err) != OverBudget || st.Cache().PrefixBytes != page {
		t.Errorf("got %v, and %+v", err, st.Cache())
	}
	grow(t, st, SessionID{3}, 2*64, nil) // in the place of the prefix
	st.Close()
}

func TestWindowFreesPages(t *testing.T) {
	cfg := Config{Layers: []shard.LayerSpec{testLayer(t, tensor.F32, 1, 1, 4, 4, 100)}}
	page := int64(cfg.Layers[0].Layout.PageBytes())
	st := NewStore(StoreConfig{Budget: NewBudget(100 * page)})
	held := []HeldLayer{{Layer: 0, Groups: []shard.Group{0}}}
	create(t, st, SessionID{1}, cfg, held, nil)
	for range 1000 {
		grow(t, st, SessionID{1}, 1, nil)
	}
	// The step at 999 sees from 899 on, which is in page 14 of 0 to 15.
	if state, _ := st.look(SessionID{1}); state.PageBytes != 2*page || st.Cache().UsedBytes != 2*page {
		t.Fatalf("%d bytes of pages, %d in use, want 2 pages of %d", state.PageBytes, st.Cache().UsedBytes, page)
	}
	// A fork shares them; when both have gone on, nobody sees the older one.
	if _, err := st.branch(ForkRequest{Session: SessionID{1}, Epoch: first, Child: SessionID{2}, ChildEpoch: first, Position: -1}); err != nil {
		t.Fatal(err)
	}
	grow(t, st, SessionID{1}, 100, nil)
	grow(t, st, SessionID{1}, 1, nil)
	if used := st.Cache().UsedBytes; used != (2+3)*page {
		t.Fatalf("%d bytes are in use, want 5 pages", used)
	}
	if _, err := st.cut(SessionID{1}, first, 0, 1050, nil); reasonOf(err) != Freed {
		t.Fatalf("truncate to what has been freed: %v", err)
	}
	if _, err := st.cut(SessionID{1}, first, 0, 1080, nil); err != nil {
		t.Fatal(err)
	}
	if _, err := st.cut(SessionID{1}, first, 1, 0, nil); err != nil {
		t.Fatal(err)
	}
	grow(t, st, SessionID{1}, 1, nil)
	if used := st.Cache().UsedBytes; used != 3*page {
		t.Fatalf("%d bytes are in use, want 3 pages", used)
	}
}

// A view shows what it showed, whatever happens to its session; its pages are free when it ends.
func TestViewOutlivesItsSession(t *testing.T) {
	cfg, held := uniform(t, 1, 1, 4, tensor.F32)
	budget := NewBudget(1 << 20)
	st := NewStore(StoreConfig{Budget: budget})
	create(t, st, SessionID{1}, cfg, held, nil)
	grow(t, st, SessionID{1}, 70, nil)
	var v View
	if err := st.View(&v, SessionID{1}, 0, 69); err != nil {
		t.Fatal(err)
	}
	want := bytes.Clone(v.KV(0).Pages[1])
	if _, err := st.cut(SessionID{1}, first, 0, 65, nil); err != nil {
		t.Fatal(err)
	}
	state, _ := st.look(SessionID{1})
	ones := bytes.Repeat([]byte{1}, 16)
	a := Append{Session: SessionID{1}, Epoch: first, Truncations: 1, Length: 65, Hashes: state.Layers[0].Hashes, Positions: 1, Encoding: tensor.F32, K: ones, V: ones}
	if _, _, err := st.put(&a, nil); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(want, v.KV(0).Pages[1]) {
		t.Fatal("an append after a truncation has written to a page of a view")
	}
	st.Close()
	if !bytes.Equal(want, v.KV(0).Pages[1]) || budget.Used() == 0 {
		t.Fatal("the pages of a view are gone with its session")
	}
	v.Release()
	if budget.Used() != 0 {
		t.Fatalf("%d bytes are reserved in the end", budget.Used())
	}
}

// Sessions run beside each other, with forks, views and evictions among them, in a budget that does not hold all.
func TestSessionsInParallel(t *testing.T) {
	cfg, held := uniform(t, 2, 2, 8, tensor.F16)
	row := int64(4 * cfg.Layers[0].Layout.PageBytes())
	budget := NewBudget(40*row + rowsOf(cfg, held, 40))
	var clock atomic.Int64
	st := NewStore(StoreConfig{Budget: budget, TTL: time.Second, Now: func() time.Time { return time.Unix(clock.Add(1)/100, 0) }})
	text := make([]uint32, 400)
	var wg sync.WaitGroup
	var steps atomic.Int64
	for worker := range 6 {
		wg.Go(func() {
			var p Pending
			for round := range 12 {
				id := SessionID{1, byte(worker), byte(round)}
				state, err := st.Create(CreateRequest{Session: id, Epoch: first, Config: cfg, Held: held, Tokens: text[:300]})
				if reasonOf(err) == OverBudget {
					continue
				}
				if err != nil {
					t.Error(err)
					return
				}
				for step := 0; err == nil && step < 12; step++ {
					for l := range state.Layers {
						at := &state.Layers[l]
						layout := cfg.Layers[l].Layout
						n := 17
						if n > len(text)-int(at.Length) {
							break
						}
						a := Append{
							Session: id, Epoch: first, Layer: at.Layer, Length: at.Length, Hashes: at.Hashes, Positions: n, Encoding: tensor.F16,
							K: make([]byte, 2*n*layout.KRowBytes()), V: make([]byte, 2*n*layout.VRowBytes()), Tokens: text[at.Length:][:n], Query: at.Length,
						}
						if at.Length, at.Hashes, err = st.putPending(&p, &a, nil); err != nil {
							break
						}
						runtime.Gosched()
						for _, page := range p.View.KV(1).Pages {
							if page[0] != 0 {
								t.Error("a page has what was never appended")
							}
						}
						p.Commit()
						p.Abort()
						steps.Add(1)
					}
					if err == nil && step == 6 {
						_, err = st.branch(ForkRequest{Session: id, Epoch: first, Child: SessionID{2, byte(worker), byte(round)}, ChildEpoch: first, Position: 100})
					}
				}
				if p := reasonOf(err); err != nil && p != OverBudget && p != Unknown {
					t.Error(err)
				}
				st.List()
			}
		})
	}
	wg.Wait()
	if steps.Load() == 0 {
		t.Error("no step was done")
	}
	audit(t, st, nil)
	st.Close()
	audit(t, st, nil)
	if budget.Used() != 0 {
		t.Fatalf("%d bytes are reserved in the end", budget.Used())
	}
}

// A step of a running session makes no garbage.
func TestStepTakesNoMemory(t *testing.T) {
	cfg, held := uniform(t, 1, 4, 64, tensor.F16)
	st := NewStore(StoreConfig{Budget: NewBudget(1 << 30)})
	defer st.Close()
	create(t, st, SessionID{1}, cfg, held, nil)
	grow(t, st, SessionID{1}, 64*40, nil)
	state, _ := st.look(SessionID{1})
	a := Append{Session: SessionID{1}, Epoch: first, Length: state.Layers[0].Length, Hashes: state.Layers[0].Hashes, Chain: state.Layers[0].Chain, Positions: 1, Encoding: tensor.F32, K: make([]byte, 4*64*4), V: make([]byte, 4*64*4)}
	hashes := make([]uint64, 0, 4)
	var p Pending
	step := func() {
		var err error
		a.Query, a.ID = a.Length, a.ID+1
		next := NextChain(a.Chain, a.ID, a.Length)
		if a.Length, hashes, err = st.Prepare(context.Background(), &p, &a, hashes[:0]); err != nil {
			t.Fatal(err)
		}
		copy(a.Hashes, hashes)
		p.Commit()
		p.Abort()
		a.Chain = next
	}
	step()
	// A new row comes every 64 steps.
	if n := testing.AllocsPerRun(50, step); n >= 1 {
		t.Fatalf("a step takes memory %v times", n)
	}
}

// What a layer was cut from while a fork shared the row makes room as well, though the session counts it no more.
func TestReclaimOfACutLayer(t *testing.T) {
	cfg, held := uniform(t, 2, 1, 16, tensor.F32)
	budget := NewBudget(1 << 20)
	now := time.Unix(1e9, 0)
	st := NewStore(StoreConfig{Budget: budget, TTL: time.Minute, Now: func() time.Time { return now }})
	create(t, st, SessionID{1}, cfg, held, nil)
	grow(t, st, SessionID{1}, 64*10, nil)
	if _, err := st.branch(ForkRequest{Session: SessionID{1}, Epoch: first, Child: SessionID{2}, ChildEpoch: first, Position: -1}); err != nil {
		t.Fatal(err)
	}
	if _, err := st.cut(SessionID{1}, first, 0, 0, []uint64{640, 0}); err != nil {
		t.Fatal(err)
	}
	if err := st.end(SessionID{2}, nil); err != nil {
		t.Fatal(err)
	}
	now = now.Add(time.Minute)
	if !st.Reclaim(budget.Total()) || budget.Used() != 0 {
		t.Fatalf("%d bytes stay reserved", budget.Used())
	}
}

// Pages that have no other use are given back where others need the room.
func TestReclaim(t *testing.T) {
	cfg, held := uniform(t, 1, 1, 16, tensor.F32)
	page, row := int64(cfg.Layers[0].Layout.PageBytes()), rowsOf(cfg, held, 1)
	budget := NewBudget(1 << 30)
	now := time.Unix(1e9, 0)
	st := NewStore(StoreConfig{Budget: budget, TTL: time.Hour, Now: func() time.Time { return now }})
	create(t, st, SessionID{1}, cfg, held, nil)
	create(t, st, SessionID{2}, cfg, held, nil)
	for range 10 {
		grow(t, st, SessionID{1}, 64, nil)
		grow(t, st, SessionID{2}, 64, nil)
	}
	if err := st.end(SessionID{1}, nil); err != nil {
		t.Fatal(err)
	}
	own := st.Cache().SessionBytes // of one session
	budget.total = 64*(page+row) + own
	if c := st.Cache(); c.UsedBytes != 10*page || c.RowBytes != 10*row || c.UsedBytes+c.FreeBytes+c.RowBytes+c.SessionBytes != budget.Used() {
		t.Fatalf("%+v, reserved are %d", c, budget.Used())
	}
	if !st.Reclaim(54*(page+row)) || budget.Used() != 10*(page+row)+own || st.Cache().FreeBytes != 0 {
		t.Fatalf("%d bytes are reserved, 10 pages of %d are in use", budget.Used(), page)
	}
	if st.Reclaim(54*(page+row) + 1) {
		t.Fatal("room was made of pages in use")
	}
	audit(t, st, nil)
	// A session that may be dropped stays where that would not be enough.
	budget.total += own
	create(t, st, SessionID{3}, cfg, held, nil)
	grow(t, st, SessionID{3}, 64, nil)
	if _, err := st.Pin(SessionID{2}, true); err != nil {
		t.Fatal(err)
	}
	now = now.Add(time.Hour)
	if st.Reclaim(54*(page+row) + own + 1) {
		t.Fatal("room was made of pages in use")
	}
	if _, err := st.look(SessionID{3}); err != nil {
		t.Fatalf("dropped in vain: %v", err)
	}
	if !st.Reclaim(54*(page+row)+own) || st.Cache().Sessions != 1 {
		t.Fatalf("no room was made: %+v", st.Cache())
	}
	budget.total -= own
	audit(t, st, nil)
	// The room that is said to be can be taken, by pages in rows, and then no more.
	free := func(want, idle int) {
		t.Helper()
		left := int64(want)*(page+row) - int64(idle)*page
		told := PageState{Bytes: int(page), Used: 64 - want, Free: idle + int(left/page)}
		if c := st.Cache(); len(c.Pages) != 1 || c.Pages[0] != told || c.RoomBytes != int64(want)*(page+row) {
			t.Fatalf("%d pages can be taken, told is %+v", want, c)
		}
	}
	free(54, 0)
	grow(t, st, SessionID{2}, 64*54, nil)
	free(0, 0)
	audit(t, st, nil)
	if _, err := st.cut(SessionID{2}, first, 0, 64*60+1, nil); err != nil {
		t.Fatal(err)
	}
	free(3, 3)
	st.Close()
	if budget.Used() != 0 {
		t.Fatalf("%d bytes are reserved in the end", budget.Used())
	}
}

// BenchmarkFork forks a session of 32k tokens, 32 layers and 8 groups, and appends a token to each layer of the fork. The
// pages are small ones, so that it fits any machine, but for the copies, which are of their own size.
func BenchmarkFork(b *testing.B) {
	for _, c := range []struct{ tokens, dim int }{{32 << 10, 1}, {100, 128}} {
		b.Run(fmt.Sprintf("tokens=%d/head_dim=%d", c.tokens, c.dim), func(b *testing.B) {
			cfg, held := uniform(b, 32, 8, c.dim, tensor.F16)
			st := NewStore(StoreConfig{Budget: NewBudget(8 << 30)})
			defer st.Close()
			create(b, st, SessionID{1}, cfg, held, nil)
			grow(b, st, SessionID{1}, c.tokens-1, nil)
			b.ResetTimer()
			for i := range b.N {
				child := SessionID{2, byte(i >> 16), byte(i >> 8), byte(i)}
				if _, err := st.branch(ForkRequest{Session: SessionID{1}, Epoch: first, Child: child, ChildEpoch: first, Position: -1}); err != nil {
					b.Fatal(err)
				}
				grow(b, st, child, 1, nil)
				b.StopTimer()
				if err := st.end(child, nil); err != nil {
					b.Fatal(err)
				}
				b.StartTimer()
			}
		})
	}
}

// BenchmarkStep appends one token to 8 groups and opens a view on 16k positions.
func BenchmarkStep(b *testing.B) {
	for _, dt := range []tensor.DType{tensor.F32, tensor.BF16, tensor.I8} {
		b.Run(dt.String(), func(b *testing.B) {
			cfg, held := uniform(b, 1, 8, 128, dt)
			st := NewStore(StoreConfig{Budget: NewBudget(8 << 30)})
			defer st.Close()
			create(b, st, SessionID{1}, cfg, held, nil)
			a := Append{Session: SessionID{1}, Epoch: first, Hashes: make([]uint64, 8), Encoding: tensor.F32}
			hashes := make([]uint64, 0, 8)
			var p Pending
			step := func(n int) {
				var err error
				a.Positions, a.K, a.V, a.Query = n, a.K[:8*n*128*4], a.V[:8*n*128*4], a.Length
				a.ID++
				next := NextChain(a.Chain, a.ID, a.Length)
				if a.Length, hashes, err = st.Prepare(context.Background(), &p, &a, hashes[:0]); err != nil {
					b.Fatal(err)
				}
				copy(a.Hashes, hashes)
				p.Commit()
				p.Abort()
				a.Chain = next
			}
			a.K, a.V = make([]byte, 8*1024*128*4), make([]byte, 8*1024*128*4)
			for range 16 {
				step(1024)
			}
			b.ResetTimer()
			for range b.N {
				step(1)
			}
		})
	}
}

// BenchmarkSmallSessions makes 1,000 sessions of 100 tokens, 2 layers and 4 groups, and prints what they take beyond the pages
// that they need.
func BenchmarkSmallSessions(b *testing.B) {
	cfg, held := uniform(b, 2, 4, 128, tensor.F16)
	for range b.N {
		budget := NewBudget(1 << 40)
		st := NewStore(StoreConfig{Budget: budget})
		before := resident(b)
		for i := range 1000 {
			id := SessionID{1, byte(i >> 8), byte(i)}
			create(b, st, id, cfg, held, nil)
			grow(b, st, id, 100, nil)
		}
		need := float64(1000 * 2 * 8 * cfg.Layers[0].Layout.PageBytes())
		b.ReportMetric(float64(resident(b)-before)/need, "resident/pages")
		b.ReportMetric(float64(budget.Used())/need, "reserved/pages")
		st.Close()
	}
}
