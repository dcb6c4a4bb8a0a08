package kvcache

import (
	"strings"
	"testing"

	"headwater.example/shard"
	"headwater.example/tensor"
)

func TestBeginRefuses(t *testing.T) {
	budget := NewBudget(1 << 20)
	st := NewStore(StoreConfig{Budget: budget})
	cfg := Config{Layers: []shard.LayerSpec{testLayer(t, tensor.F16, 2, 2, 3, 2, 70), testLayer(t, tensor.F32, 1, 1, 2, 2, -1), testLayer(t, tensor.F32, 1, 1, 2, 2, -1)}}
	held := []HeldLayer{{Layer: 0, Groups: []shard.Group{0, 1}}, {Layer: 1, Groups: []shard.Group{0}}}
	ok := BeginLayer{Layer: 0, First: 128, Hashes: []uint64{1, 2}, Length: 130}
	with := func(change func(b *BeginLayer)) []BeginLayer {
		b := ok
		change(&b)
		return []BeginLayer{b}
	}
	for name, c := range map[string]struct {
		begin []BeginLayer
		want  string
	}{
		"no page's beginning": {with(func(b *BeginLayer) { b.First = 100 }), "multiple of 64"},
		"beyond its length":   {with(func(b *BeginLayer) { b.Length = 127 }), "up to the length"},
		"endless":             {with(func(b *BeginLayer) { b.Length = shard.MaxPositions + 1 }), "at most"},
		"beyond all views":    {with(func(b *BeginLayer) { b.First, b.Length = maxBegin, maxBegin }), "on more workers"},
		"too few hashes":      {with(func(b *BeginLayer) { b.Hashes = b.Hashes[:1] }), "1 hashes, 2 groups"},
		"hashes of nothing":   {with(func(b *BeginLayer) { b.First = 0 }), "2 hashes"},
		"negative layer":      {with(func(b *BeginLayer) { b.Layer = -1 }), "not held"},
		"not held":            {with(func(b *BeginLayer) { b.Layer = 2 }), "not held"},
		"no window":           {[]BeginLayer{{Layer: 1, First: 64, Hashes: []uint64{1}, Length: 64}}, "see all positions"},
		"twice":               {[]BeginLayer{ok, ok}, "ascend"},
	} {
		_, err := st.Create(CreateRequest{Session: SessionID{1}, Epoch: first, Config: cfg, Held: held, Begin: c.begin})
		if reasonOf(err) != Invalid || !strings.Contains(err.Error(), c.want) || strings.Contains(err.Error(), "\n") {
			t.Errorf("%s: got %v, want %q", name, err, c.want)
		}
	}
	if budget.Used() != 0 || st.Cache().Sessions != 0 {
		t.Fatalf("%d bytes and %d sessions are left", budget.Used(), st.Cache().Sessions)
	}
}

// Pages that were never there have a place in a view, which counts in the budget.
func TestViewsOfALayerThatBeginsFarAway(t *testing.T) {
	const far = 1 << 26
	budget := NewBudget(2 * pageRef * far / 64)
	st := NewStore(StoreConfig{Budget: budget})
	cfg := Config{Layers: []shard.LayerSpec{testLayer(t, tensor.F32, 1, 1, 2, 2, 10)}}
	held := []HeldLayer{{Layer: 0, Groups: []shard.Group{0}}}
	begin := []BeginLayer{{First: far, Hashes: []uint64{1}, Length: far}}
	if _, err := st.Create(CreateRequest{Session: SessionID{1}, Epoch: first, Config: cfg, Held: held, Begin: begin}); err != nil {
		t.Fatal(err)
	}
	a := Append{Session: SessionID{1}, Epoch: first, Length: far, Hashes: []uint64{1}, Positions: 11, Encoding: tensor.F32, K: make([]byte, 11*8), V: make([]byte, 11*8), Query: far + 10}
	var v, other Pending
	if _, _, err := st.putPending(&v, &a, nil); err != nil {
		t.Fatal(err)
	}
	if used := budget.Used(); used < pageRef*far/64 {
		t.Fatalf("%d bytes are in use", used)
	}
	v.Commit()
	if err := st.View(&other.View, SessionID{1}, 0, far+10); reasonOf(err) != OverBudget {
		t.Fatalf("a second view: %v", err)
	}
	if _, _, err := st.putPending(&other, &a, nil); reasonOf(err) != OverBudget {
		t.Fatalf("a second view, of a repeat: %v", err)
	}
	next := Append{Session: SessionID{1}, Epoch: first, Length: far + 11, Hashes: []uint64{0}, Query: far + 10}
	if _, _, err := st.putPending(&other, &next, nil); reasonOf(err) != Different {
		t.Fatalf("another hash: %v", err)
	}
	if n := v.View.KV(0).Len; n != far+11 || len(v.View.KV(0).Pages) != far/64+1 {
		t.Fatalf("a view on %d positions in %d pages", n, len(v.View.KV(0).Pages))
	}
	v.Abort()
	if err := st.View(&other.View, SessionID{1}, 0, far+10); err != nil {
		t.Fatal(err)
	}
	other.Abort()
	audit(t, st, nil)
	st.Close()
	if used := budget.Used(); used != 0 {
		t.Fatalf("%d bytes are reserved in the end", used)
	}
}

// A layer begins far beyond what another one has: as many rows without pages lie between as an append makes, and no more.
func TestBeginAcrossAGap(t *testing.T) {
	st := NewStore(StoreConfig{Budget: NewBudget(1 << 20)})
	cfg := Config{Layers: []shard.LayerSpec{testLayer(t, tensor.F32, 1, 1, 2, 2, 10), testLayer(t, tensor.F32, 1, 1, 2, 2, -1)}}
	held := []HeldLayer{{Layer: 0, Groups: []shard.Group{0}}, {Layer: 1, Groups: []shard.Group{0}}}
	add := func(id SessionID, layer shard.Layer, n int) (length uint64, err error) {
		state, err := st.look(id)
		if err != nil {
			t.Fatal(err)
		}
		l := state.Layers[layer]
		length, _, err = st.put(&Append{
			Session: id, Epoch: first, Truncations: state.Truncations, Layer: layer, Length: l.Length, Hashes: l.Hashes, Positions: n, Encoding: tensor.F32,
			K: make([]byte, n*8), V: make([]byte, n*8),
		}, nil)
		return length, err
	}
	far := uint64(maxGap * 64)
	for id, begin := range map[SessionID]uint64{{1}: far, {2}: far + 64} {
		req := CreateRequest{Session: id, Epoch: first, Config: cfg, Held: held, Begin: []BeginLayer{{Layer: 0, First: begin, Hashes: []uint64{5}, Length: begin + 3}}}
		if _, err := st.Create(req); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := add(SessionID{2}, 0, 3); reasonOf(err) != Invalid || !strings.Contains(err.Error(), "append to those first") {
		t.Fatalf("a gap of too many rows: %v", err)
	}
	if length, err := add(SessionID{1}, 0, 3); err != nil || length != far+3 {
		t.Fatalf("%d positions: %v", length, err)
	}
	audit(t, st, nil)
	// The other layer fills the gap, or a part of it.
	if length, err := add(SessionID{1}, 1, 200); err != nil || length != 200 {
		t.Fatalf("%d positions: %v", length, err)
	}
	if _, err := add(SessionID{2}, 1, 64); err != nil {
		t.Fatal(err)
	}
	if _, err := add(SessionID{2}, 0, 3); err != nil {
		t.Fatal(err)
	}
	audit(t, st, nil)
	if _, err := st.branch(ForkRequest{Session: SessionID{1}, Epoch: first, Child: SessionID{3}, ChildEpoch: first, Position: -1}); err != nil {
		t.Fatal(err)
	}
	audit(t, st, nil)
	for _, n := range []int{1, 200} {
		if _, err := add(SessionID{3}, 0, n); err != nil {
			t.Fatal(err)
		}
		audit(t, st, nil)
	}
	for _, id := range []SessionID{{1}, {3}} {
		if _, err := st.cut(id, first, 0, far-100, nil); reasonOf(err) != Freed {
			t.Fatalf("truncate to what was never there: %v", err)
		}
		if _, err := st.cut(id, first, 0, 0, nil); err != nil {
			t.Fatal(err)
		}
		audit(t, st, nil)
		if length, err := add(id, 0, 70); err != nil || length != 70 {
			t.Fatalf("%d positions after all were taken back: %v", length, err)
		}
		audit(t, st, nil)
	}
	st.Close()
	if used := st.budget.Used(); used != 0 {
		t.Fatalf("%d bytes are reserved in the end", used)
	}
}

// TestAnUnsharedSessionKeepsToItself: it leaves no prefix and begins with none, also where another session left one.
func TestAnUnsharedSessionKeepsToItself(t *testing.T) {
	cfg, held := uniform(t, 2, 1, 4, tensor.F32)
	st := NewStore(StoreConfig{Budget: NewBudget(1 << 24)})
	text := make([]uint32, 200)
	for i := range text {
		text[i] = uint32(i)
	}
	own := cfg
	own.Unshared = true
	for i, c := range []struct {
		config Config
		prefix uint64
	}{{own, 0}, {cfg, 0}, {own, 0}, {cfg, 192}} {
		id := SessionID{byte(i + 1)}
		state := create(t, st, id, c.config, held, text)
		if state.Layers[0].Length != c.prefix {
			t.Errorf("session %d begins with %d positions, want %d", i, state.Layers[0].Length, c.prefix)
		}
		grow(t, st, id, len(text)-int(c.prefix), text[c.prefix:])
		audit(t, st, nil)
	}
	// What its fork appends is its own, too.
	if _, err := st.branch(ForkRequest{Session: SessionID{1}, Epoch: first, Child: SessionID{9}, ChildEpoch: first, Position: -1}); err != nil {
		t.Fatal(err)
	}
	if got := st.Cache().PrefixHits; got != 192 {
		t.Errorf("%d positions were found, want 192", got)
	}
	st.Close()
}
