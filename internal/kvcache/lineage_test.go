package kvcache

import (
	"context"
	"slices"
	"testing"

	"headwater.example/shard"
	"headwater.example/tensor"
)

// TestASessionSaysThroughWhichEpochsItCame: epochs with the same members that follow each other are one line, and the oldest lines are
// forgotten. A call, or a lane that takes it, is noted on the newest.
func TestASessionSaysThroughWhichEpochsItCame(t *testing.T) {
	st := NewStore(StoreConfig{Budget: NewBudget(1 << 22)})
	cfg, held := uniform(t, 1, 2, 4, tensor.F32)
	id := SessionID{1}
	create(t, st, id, cfg, held, nil)
	look := func() State {
		t.Helper()
		s, err := st.look(id)
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	take := func(e Epoch) {
		t.Helper()
		if _, err := st.Take(context.Background(), id, e, nil, 0, false); err != nil {
			t.Fatal(err)
		}
	}
	lines := []uint64{first.name()}
	want := func(what string, served uint64) {
		t.Helper()
		if s := look(); !slices.Equal(s.Lineage, lines) || s.Served != served {
			t.Errorf("%s: it came through %x and was served on %x, want %x and %x", what, s.Lineage, s.Served, lines, served)
		}
	}
	want("made", lines[0])
	behalf := Epoch{Counter: 5, Lane: first.Lane, Base: first.Counter, Holders: 2, Members: "w1 w2"}
	take(behalf)
	lines = append(lines, behalf.name())
	want("stepped on a lane's behalf", lines[0])
	closed := behalf
	closed.Counter, closed.Closed, closed.Members = 12, true, "w2 w1"
	take(closed)
	want("closed", lines[0])
	open := behalf
	open.Counter = 14
	take(open)
	if s, err := st.drive(context.Background(), id, open); err != nil {
		t.Fatal(err)
	} else {
		s.unlock()
	}
	want("driven", lines[1])
	own := Epoch{Counter: 16, Lane: first.Lane, Holders: 1, Members: "w1"}
	take(own)
	take(own)
	lines = append(lines, own.name())
	want("taken", lines[2])
	for i := range uint64(shard.MaxLineage) {
		e := Epoch{Counter: 20 + i, Lane: first.Lane, Base: own.Counter, Holders: 1} // who that is is not known: each is a line of its own
		take(e)
		lines = append(lines, e.name())
	}
	lines = lines[len(lines)-shard.MaxLineage:]
	want("stepped often", own.name())

	// What nobody was served since is dropped, and nothing else.
	now := look().Epoch
	if err := st.Drop(context.Background(), id, &now, 0, now.name()); reasonOf(err) != StaleEpoch {
		t.Errorf("dropped as it was not: %v", err)
	}
	if err := st.Drop(context.Background(), id, &now, 0, own.name()); err != nil {
		t.Errorf("dropped as it was: %v", err)
	}
}

// TestAnEpochsNameSaysWhoHasIt: two that step an epoch for a lane may choose one counter.
func TestAnEpochsNameSaysWhoHasIt(t *testing.T) {
	e := Epoch{Counter: 5, Lane: LaneID{1}, Base: 1, Holders: 2, Members: "w1 w2"}
	for name, change := range map[string]func(e *Epoch){
		"counter": func(e *Epoch) { e.Counter++ },
		"lane":    func(e *Epoch) { e.Lane[15]++ },
		"base":    func(e *Epoch) { e.Base++ },
		"closed":  func(e *Epoch) { e.Closed = true },
		"holders": func(e *Epoch) { e.Holders++ },
		"members": func(e *Epoch) { e.Members = "w1 w3" },
	} {
		other := e
		if change(&other); other.name() == e.name() {
			t.Errorf("another %s has the same name", name)
		}
	}
	if other := e; other.taken().name() != e.name() {
		t.Error("it has another name once it is taken")
	}
}
