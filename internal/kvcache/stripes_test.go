package kvcache

import (
	"math/rand/v2"
	"slices"
	"testing"

	"headwater.example/attention"
	"headwater.example/shard"
	"headwater.example/tensor"
)

// striped is a layer that several stores hold in stripes, beside a store that holds it whole.
type striped struct {
	t      testing.TB
	r      *rand.Rand
	layer  shard.LayerSpec
	whole  *Store
	stores []*Store
	held   [][]shard.Group // by store
	// What was appended: [groups] rows in the storage type.
	rows   []attention.Rows
	length int
	cuts   uint64
	chain  uint64
	hashes []uint64 // by shard
	ids    uint64
}

const stripedID = 9

func newStriped(t testing.TB, seed uint64, dt tensor.DType, groups, stripes, stores int) *striped {
	t.Helper()
	w := &striped{t: t, r: rand.New(rand.NewPCG(seed, 1)), layer: testLayer(t, dt, groups, groups, 3, 2, -1), rows: make([]attention.Rows, groups)}
	var err error
	if w.layer, err = w.layer.WithStripes(stripes); err != nil {
		t.Fatal(err)
	}
	w.held, w.hashes = make([][]shard.Group, stores), make([]uint64, w.layer.Shards())
	for s := range w.layer.Shards() {
		at := s % stores
		w.held[at] = append(w.held[at], shard.Group(s))
		if other := (s + 1) % stores; w.r.IntN(2) == 0 && other != at { // a copy
			w.held[other] = append(w.held[other], shard.Group(s))
		}
	}
	plain := w.layer
	plain.Stripes = 0
	var all []shard.Group
	for g := range groups {
		all = append(all, shard.Group(g))
	}
	w.whole = NewStore(StoreConfig{Budget: NewBudget(1 << 28)})
	create(t, w.whole, sid(stripedID), Config{Layers: []shard.LayerSpec{plain}, Unshared: true}, []HeldLayer{{Layer: 0, Groups: all}}, nil)
	for i := range w.held {
		slices.Sort(w.held[i])
		st := NewStore(StoreConfig{Budget: NewBudget(1 << 28)})
		create(t, st, sid(stripedID), Config{Layers: []shard.LayerSpec{w.layer}, Unshared: true}, []HeldLayer{{Layer: 0, Groups: w.held[i]}}, nil)
		w.stores = append(w.stores, st)
	}
	return w
}

func sid(n byte) SessionID { return SessionID{n} }

// draw draws rows of n positions.
func (w *striped) draw(n int) attention.Rows {
	rows := makeRows(w.layer.Layout, n)
	for i := range rows.K {
		rows.K[i] = byte(w.r.IntN(60))
	}
	for i := range rows.V {
		rows.V[i] = byte(w.r.IntN(60))
	}
	for i := range rows.KScale {
		rows.KScale[i], rows.VScale[i] = w.r.Float32(), w.r.Float32()
	}
	return rows
}

// cutRows returns positions [from, from+n) of rows.
func (w *striped) cutRows(rows attention.Rows, from, n int) attention.Rows {
	return part(rows, w.layer.Layout, from, n)
}

func joinRows(a, b attention.Rows) attention.Rows {
	return attention.Rows{K: append(a.K, b.K...), V: append(a.V, b.V...), KScale: append(a.KScale, b.KScale...), VScale: append(a.VScale, b.VScale...)}
}

// payload is the append's tensors for some shards.
func (w *striped) payload(a *Append, shards []shard.Group, layer *shard.LayerSpec, rows []attention.Rows) {
	var all attention.Rows
	for _, s := range shards {
		layer.Runs(int(s), w.length, a.Positions, func(at, count, _ int) bool {
			all = joinRows(all, w.cutRows(rows[layer.GroupOf(int(s))], at-w.length, count))
			return true
		})
	}
	a.K, a.V, a.KScale, a.VScale = all.K, all.V, nil, nil
	if scaled(w.layer.Layout) {
		a.KScale, a.VScale = floatBytes(all.KScale...), floatBytes(all.VScale...)
	}
}

// append appends n positions everywhere, each of the appends twice.
func (w *striped) append(n int) {
	w.t.Helper()
	rows := make([]attention.Rows, len(w.rows))
	for g := range rows {
		rows[g] = w.draw(n)
	}
	w.ids++
	a := Append{Session: sid(stripedID), Epoch: Epoch{Counter: 1, Lane: LaneID{1}}, Truncations: w.cuts, Layer: 0, Length: uint64(w.length), Positions: n, Encoding: w.layer.Layout.DType(), Chain: w.chain, ID: w.ids}
	plain := w.layer
	plain.Stripes = 0
	state, err := w.whole.Peek(sid(stripedID))
	if err != nil {
		w.t.Fatal(err)
	}
	a.Hashes = state.Layers[0].Hashes
	var all []shard.Group
	for g := range rows {
		all = append(all, shard.Group(g))
	}
	w.payload(&a, all, &plain, rows)
	if _, _, err := w.whole.Append(w.t.Context(), &a, nil); err != nil {
		w.t.Fatal(err)
	}
	after := slices.Clone(w.hashes)
	for i, st := range w.stores {
		a.Hashes = nil
		for _, s := range w.held[i] {
			a.Hashes = append(a.Hashes, w.hashes[s])
		}
		w.payload(&a, w.held[i], &w.layer, rows)
		for range 2 {
			length, hashes, err := st.Append(w.t.Context(), &a, nil)
			if err != nil || length != uint64(w.length+n) {
				w.t.Fatalf("store %d: %d positions: %v", i, length, err)
			}
			for j, s := range w.held[i] {
				after[s] = hashes[j]
			}
		}
	}
	for g := range rows {
		w.rows[g] = joinRows(w.rows[g], rows[g])
	}
	w.hashes, w.chain, w.length = after, NextChain(w.chain, w.ids, uint64(w.length)), w.length+n
	w.check()
}

// check compares every shard's hash with the chain of its rows, and the pages with what is to be there.
func (w *striped) check() {
	w.t.Helper()
	for s := range w.hashes {
		var h Hasher
		w.layer.Runs(s, 0, w.length, func(at, count, _ int) bool {
			h.Pass(uint64(at))
			if err := h.Update(w.cutRows(w.rows[w.layer.GroupOf(s)], at, count), count, w.layer.Layout); err != nil {
				w.t.Fatal(err)
			}
			return true
		})
		if h.Receipt().Hash != w.hashes[s] {
			w.t.Fatalf("shard %d of %d positions has hash %016x, not %016x", s, w.length, w.hashes[s], h.Receipt().Hash)
		}
	}
	for i, st := range w.stores {
		audit(w.t, st, nil)
		state, err := st.Peek(sid(stripedID))
		if err != nil {
			w.t.Fatal(err)
		}
		pages := 0
		for _, s := range w.held[i] {
			w.layer.Runs(int(s), 0, w.length, func(_, count, _ int) bool { pages += pagesOf(count); return true })
		}
		if want := int64(pages * w.layer.Layout.PageBytes()); state.PageBytes != want || state.OwnBytes != want {
			w.t.Fatalf("store %d has %d bytes of pages, %d its own, not %d", i, state.PageBytes, state.OwnBytes, want)
		}
	}
}

// export compares some positions of each shard with what was appended.
func (w *striped) export() {
	w.t.Helper()
	from := w.r.IntN(w.length)
	n := 1 + w.r.IntN(w.length-from)
	for i, st := range w.stores {
		for _, s := range w.held[i] {
			w.layer.Runs(int(s), from, n, func(at, count, _ int) bool {
				rows := makeRows(w.layer.Layout, count)
				if _, _, err := st.Export(sid(stripedID), 0, s, at, count, rows); err != nil {
					w.t.Fatal(err)
				}
				want := w.cutRows(w.rows[w.layer.GroupOf(int(s))], at, count)
				if !slices.Equal(rows.K, want.K) || !slices.Equal(rows.V, want.V) || !slices.Equal(rows.KScale, want.KScale) {
					w.t.Fatalf("shard %d: other rows from %d on", s, at)
				}
				return true
			})
			if w.layer.Stored(int(s), from, n) != n {
				if _, _, err := st.Export(sid(stripedID), 0, s, from, n, makeRows(w.layer.Layout, n)); reasonOf(err) != Invalid {
					w.t.Fatalf("rows of another stripe: %v", err)
				}
			}
		}
	}
}

// attend joins parts from views of all stores, and compares them with an attention over the whole.
func (w *striped) attend() {
	w.t.Helper()
	query := attention.Query{Q: []float32{0.1, 0.2, -0.3}, Tokens: 1, Heads: 1, Offset: int64(w.length - 1)}
	pool := attention.NewPool(1)
	defer pool.Close()
	thread, err := pool.Acquire(w.t.Context(), attention.Foreground)
	if err != nil {
		w.t.Fatal(err)
	}
	defer thread.Release()
	var v View
	if err := w.whole.View(&v, sid(stripedID), 0, uint64(w.length-1)); err != nil {
		w.t.Fatal(err)
	}
	defer v.Release()
	dim := w.layer.VDim()
	seen := w.layer.SplitsSeen(w.length, w.length-1, 1)
	for g := range w.rows {
		query.FirstHead = g
		want := attention.Output{Context: make([]float32, dim), LSE: make([]float32, 1)}
		if err := thread.Attend(w.t.Context(), v.KV(g), query, w.layer.Options, want); err != nil {
			w.t.Fatal(err)
		}
		parts := make([]attention.Part, seen)
		for i := range parts {
			parts[i] = attention.Part{M: make([]float32, 1), L: make([]float32, 1), O: make([]float32, dim)}
		}
		for i, st := range w.stores {
			var own View
			if err := st.View(&own, sid(stripedID), 0, uint64(w.length-1)); err != nil {
				w.t.Fatal(err)
			}
			for j, s := range w.held[i] {
				if w.layer.GroupOf(int(s)) != g {
					continue
				}
				apart := &attention.Apart{First: int(s) % w.layer.Stripes, Step: w.layer.Stripes}
				for split := apart.First; split < seen; split += apart.Step {
					apart.Parts = append(apart.Parts, parts[split])
				}
				if len(apart.Parts) == 0 {
					continue
				}
				if err := thread.AttendAll(w.t.Context(), []attention.Item{{KV: own.KV(j), Query: query, Options: w.layer.Options, Apart: apart}}); err != nil {
					w.t.Fatal(err)
				}
			}
			own.Release()
		}
		have := attention.Output{Context: make([]float32, dim), LSE: make([]float32, 1)}
		var joiner attention.Joiner
		if err := joiner.Join(parts, query, dim, nil, have); err != nil {
			w.t.Fatal(err)
		}
		if !slices.Equal(have.Context, want.Context) || have.LSE[0] != want.LSE[0] {
			w.t.Fatalf("group %d of %d positions: %v, not %v", g, w.length, have, want)
		}
	}
}

// cut truncates to n positions everywhere.
func (w *striped) cut(n int) {
	w.t.Helper()
	w.ids++
	for i, st := range append(slices.Clone(w.stores), w.whole) {
		state, err := st.Peek(sid(stripedID))
		if err != nil {
			w.t.Fatal(err)
		}
		after, err := st.Truncate(w.t.Context(), &TruncateRequest{Session: sid(stripedID), Epoch: Epoch{Counter: 1, Lane: LaneID{1}}, Truncations: w.cuts, ID: w.ids, Expect: state.Layers, Position: uint64(n)})
		if err != nil {
			w.t.Fatal(err)
		}
		if i < len(w.stores) {
			for j, s := range w.held[i] {
				w.hashes[s] = after.Layers[0].Hashes[j]
			}
		}
	}
	for g := range w.rows {
		w.rows[g] = w.cutRows(w.rows[g], 0, n)
	}
	w.cuts, w.chain, w.length = w.cuts+1, w.ids, n
	w.check()
}

// fork forks the session everywhere, lets the child grow and cuts it again: the parent does not change.
func (w *striped) fork() {
	w.t.Helper()
	for i, st := range w.stores {
		state, err := st.Peek(sid(stripedID))
		if err != nil {
			w.t.Fatal(err)
		}
		child, err := st.Fork(w.t.Context(), ForkRequest{Session: sid(stripedID), Epoch: Epoch{Counter: 1, Lane: LaneID{1}}, Truncations: w.cuts, Child: sid(byte(10 + w.r.IntN(200))), ChildEpoch: Epoch{Counter: 1, Lane: LaneID{1}}, Expect: state.Layers, Position: int64(w.r.IntN(w.length + 1))})
		if err != nil {
			w.t.Fatal(err)
		}
		n := 1 + w.r.IntN(3000)
		from := int(child.Layers[0].Length)
		a := Append{Session: child.Session, Epoch: Epoch{Counter: 1, Lane: LaneID{1}}, Layer: 0, Length: uint64(from), Positions: n, Encoding: w.layer.Layout.DType(), ID: 1, Hashes: child.Layers[0].Hashes}
		length := w.length
		w.length = from
		rows := make([]attention.Rows, len(w.rows))
		for g := range rows {
			rows[g] = w.draw(n)
		}
		w.payload(&a, w.held[i], &w.layer, rows)
		w.length = length
		if _, _, err := st.Append(w.t.Context(), &a, nil); err != nil {
			w.t.Fatal(err)
		}
		audit(w.t, st, nil)
		if err := st.Drop(w.t.Context(), child.Session, nil, 0, 0); err != nil {
			w.t.Fatal(err)
		}
	}
	w.check()
}

// TestStoresOfStripesAreOneStore walks over stores that each have some shards of a layer in stripes.
func TestStoresOfStripesAreOneStore(t *testing.T) {
	for i, c := range []struct{ groups, stripes, stores int }{{1, 2, 1}, {1, 2, 2}, {2, 3, 2}, {1, 3, 3}, {3, 2, 5}} {
		for _, dt := range []tensor.DType{tensor.I8, tensor.BF16} {
			w := newStriped(t, uint64(i), dt, c.groups, c.stripes, c.stores)
			for range 6 {
				w.append(1 + w.r.IntN(3000))
				w.export()
				w.attend()
			}
			w.fork()
			w.cut(1 + w.r.IntN(w.length))
			w.attend()
			for range 3 {
				w.append(1 + w.r.IntN(100))
			}
			w.append(4000)
			w.fork()
			w.export()
			w.attend()
			w.cut(attention.SplitLen)
			w.append(1)
			w.attend()
			w.cut(0)
			w.append(5000)
			w.attend()
			for _, st := range append(w.stores, w.whole) {
				st.Close()
				if used := st.budget.Used(); used != 0 {
					t.Fatalf("%d bytes are reserved in the end", used)
				}
			}
		}
	}
}
