package kvcache

import (
	"context"
	"slices"
	"testing"

	"headwater.example/shard"
	"headwater.example/tensor"
)

// TestACopyIsAdopted: what was filled takes the session's id, state and epoch, in the place of what was there, and nothing is left of
// the other two. What is not a copy is refused and changes nothing.
func TestACopyIsAdopted(t *testing.T) {
	budget := NewBudget(1 << 22)
	st := NewStore(StoreConfig{Budget: budget})
	cfg, held := uniform(t, 2, 2, 4, tensor.F32)
	id, temp := SessionID{1}, SessionID{2}
	create(t, st, id, cfg, held[:1], nil)
	grow(t, st, id, 70, nil)
	create(t, st, temp, cfg, held, nil)
	grow(t, st, temp, 70, nil)
	filled, err := st.look(temp)
	if err != nil {
		t.Fatal(err)
	}
	req := AdoptRequest{
		From: temp, Session: id, Epoch: Epoch{Counter: 5, Lane: first.Lane, Base: 1, Closed: true, At: 9}, Truncations: 3, TruncationID: 77, Pinned: true,
		Lineage: []uint64{4, 5},
	}
	for _, l := range filled.Layers {
		l.Chain, l.AppendID, l.Before = 8, 9, &LayerState{Layer: l.Layer, Length: 69, Hashes: []uint64{1, 2}, Chain: 7}
		req.Layers = append(req.Layers, l)
	}
	if _, err := st.Adopt(context.Background(), req); reasonOf(err) != StaleEpoch {
		t.Errorf("in the place of what is open: %v", err)
	}
	if _, err := st.Take(context.Background(), id, req.Epoch.taken(), nil, 0, false); err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		spoil func(r *AdoptRequest)
		want  Reason
	}{
		"itself":          {func(r *AdoptRequest) { r.Session = temp }, Invalid},
		"what is not":     {func(r *AdoptRequest) { r.From = SessionID{9} }, Unknown},
		"a layer less":    {func(r *AdoptRequest) { r.Layers = r.Layers[:1] }, Invalid},
		"another length":  {func(r *AdoptRequest) { r.Layers[1].Length++ }, Behind},
		"other contents":  {func(r *AdoptRequest) { r.Layers[1].Hashes = []uint64{4, 4} }, Different},
		"too few before":  {func(r *AdoptRequest) { r.Layers[1].Before = &LayerState{Layer: 1, Hashes: []uint64{1}} }, Invalid},
		"an older epoch":  {func(r *AdoptRequest) { r.Epoch.Lane = LaneID{}; r.Epoch.Counter = 1 }, StaleEpoch},
		"a newer epoch":   {func(r *AdoptRequest) { r.Epoch.Counter++ }, StaleEpoch},
		"too many epochs": {func(r *AdoptRequest) { r.Lineage = make([]uint64, shard.MaxLineage+1) }, Invalid},
		"an epoch of old": {func(r *AdoptRequest) { r.Epoch.Counter = 0 }, Invalid},
	} {
		bad := req
		bad.Layers = append([]LayerState(nil), req.Layers...)
		c.spoil(&bad)
		if _, err := st.Adopt(context.Background(), bad); reasonOf(err) != c.want {
			t.Errorf("%s: %v", name, err)
		}
	}
	// The session that was there has all that it had.
	if rows := len(st.sessions[id].rows); rows != 2 {
		t.Fatalf("after refusals it has %d rows", rows)
	}
	layout := cfg.Layers[0].Layout
	if _, after, err := st.Export(id, 0, 0, 0, 70, makeRows(layout, 70)); err != nil || after != filled.Layers[0].Hashes[0] {
		t.Fatalf("after refusals: its hash is %016x, not %016x: %v", after, filled.Layers[0].Hashes[0], err)
	}
	state, err := st.Adopt(context.Background(), req)
	if err != nil {
		t.Fatal(err)
	}
	if state.Session != id || state.Truncations != 3 || state.TruncationID != 77 || !state.Pinned || len(state.Layers) != 2 ||
		state.Epoch != (Epoch{Counter: 5, Lane: first.Lane, Base: 1, Closed: true}) {
		t.Errorf("%+v", state)
	}
	if !slices.Equal(state.Lineage, []uint64{4, 5}) || state.Served != 5 {
		t.Errorf("it came through %x, and was served under %x", state.Lineage, state.Served)
	}
	for _, l := range state.Layers {
		if l.Chain != 8 || l.AppendID != 9 || l.Before == nil || l.Before.Length != 69 || l.Before.Chain != 7 || l.Before.Hashes[1] != 2 {
			t.Errorf("%+v", l)
		}
	}
	if _, err := st.look(temp); reasonOf(err) != Unknown {
		t.Errorf("what was filled: %v", err)
	}
	if _, err := st.Create(CreateRequest{Session: temp, Epoch: first, Config: cfg, Held: held}); reasonOf(err) != Exists {
		t.Errorf("its id is used again: %v", err)
	}
	if all := st.List(); len(all) != 1 {
		t.Errorf("%d sessions", len(all))
	}
	st.Close()
	if used := budget.Used(); used != 0 {
		t.Errorf("%d bytes are left", used)
	}
}

// TestAForkThatWasCopiedHereIsThere: a fork that is repeated, since it came to some of its parent's holders only, finds what a coordinator has
// made of it meanwhile.
func TestAForkThatWasCopiedHereIsThere(t *testing.T) {
	st := NewStore(StoreConfig{Budget: NewBudget(1 << 22)})
	cfg, held := uniform(t, 1, 2, 4, tensor.F32)
	parent, temp, child := SessionID{1}, SessionID{2}, SessionID{3}
	for _, id := range []SessionID{parent, temp} {
		create(t, st, id, cfg, held, nil)
		grow(t, st, id, 5, nil)
	}
	state, err := st.look(parent)
	if err != nil {
		t.Fatal(err)
	}
	filled, err := st.look(temp)
	if err != nil {
		t.Fatal(err)
	}
	epoch := Epoch{Counter: 3, Lane: first.Lane, Base: first.Counter}
	if _, err := st.Adopt(context.Background(), AdoptRequest{From: temp, Session: child, Epoch: epoch, Layers: filled.Layers}); err != nil {
		t.Fatal(err)
	}
	again := ForkRequest{Session: parent, Epoch: first, Child: child, ChildEpoch: first, Position: -1, Expect: state.Layers}
	if got, err := st.Fork(context.Background(), again); err != nil || got.Epoch != epoch {
		t.Errorf("%+v, %v", got.Epoch, err)
	}
	again.ChildEpoch.Lane = LaneID{9}
	if _, err := st.Fork(context.Background(), again); reasonOf(err) != Exists && reasonOf(err) != StaleEpoch {
		t.Errorf("another lane's: %v", err)
	}
}
