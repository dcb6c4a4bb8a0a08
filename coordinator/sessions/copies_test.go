package sessions

import (
	"errors"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	"headwater.example/coordinator/workers"
	"headwater.example/internal/membership"
	"headwater.example/internal/observe"
	headwaterv1 "headwater.example/proto/headwater/v1"
)

// TestASessionWhoseEpochIsBeingSteppedIsLeftAlone: workers are asked one after the other, so that of a take some are told of before it
// came to them. They are no lost holders. A copy that was made then would leave them out, and with them the only other copy.
func TestASessionWhoseEpochIsBeingSteppedIsLeftAlone(t *testing.T) {
	state := func(name string, counter uint64, closed bool, members ...string) *headwaterv1.SessionState {
		return &headwaterv1.SessionState{
			Epoch:   &headwaterv1.Epoch{Counter: counter, Lane: []byte{1}, Closed: closed, Members: members},
			Holders: []*headwaterv1.Holder{{Name: name}},
		}
	}
	for name, one := range map[string]struct {
		current, others []*headwaterv1.SessionState
		torn            bool
	}{
		"all have it":            {current: []*headwaterv1.SessionState{state("w1", 5, false, "w1", "w2"), state("w2", 5, false, "w1", "w2")}},
		"a take came to one":     {current: []*headwaterv1.SessionState{state("w1", 6, false, "w1", "w2")}, others: []*headwaterv1.SessionState{state("w2", 5, false, "w1", "w2")}, torn: true},
		"both count":             {current: []*headwaterv1.SessionState{state("w1", 6, false, "w1", "w2"), state("w2", 5, false, "w1", "w2")}, torn: true},
		"one does not answer":    {current: []*headwaterv1.SessionState{state("w1", 6, false, "w1", "w2")}},
		"one was left out":       {current: []*headwaterv1.SessionState{state("w1", 6, false, "w1")}, others: []*headwaterv1.SessionState{state("w2", 5, false, "w1", "w2")}},
		"holders are exchanged":  {current: []*headwaterv1.SessionState{state("w1", 6, true, "w1")}, torn: true},
		"one was left out above": {current: []*headwaterv1.SessionState{state("w1", 6, false, "w1")}, others: []*headwaterv1.SessionState{state("w2", 7, false, "w1", "w2")}, torn: true},
		"another side is copied": {current: []*headwaterv1.SessionState{state("w3", 5, false, "w3")}, others: []*headwaterv1.SessionState{state("w2", 8, false, "w2", "w1"), state("w1", 7, true)}, torn: true},
		"a lane of more letters": {current: []*headwaterv1.SessionState{state("w1", 6, false, "w1", "w2"), {Epoch: &headwaterv1.Epoch{Counter: 6, Lane: []byte{2}}, Holders: []*headwaterv1.Holder{{Name: "w2"}}}}, torn: true},
	} {
		if got := isTorn(one.current, append(one.others, one.current...)); got != one.torn {
			t.Errorf("%s: torn %v", name, got)
		}
	}
	now := time.Now()
	k := New(Config{View: membership.Static(nil), Now: func() time.Time { return now }}).copies
	p := &plan{id: [16]byte{1}, current: []*headwaterv1.SessionState{state("w1", 6, false, "w1", "w2")}, highest: 7, torn: true}
	looked := func(torn bool, after time.Duration) bool {
		p.torn, now = torn, now.Add(after)
		clear(k.kicked)
		alone := k.steps(p)
		if _, again := k.kicked[p.id]; again != alone {
			t.Errorf("it is left alone (%v), and looked at again soon (%v)", alone, again)
		}
		return alone
	}
	if !looked(true, 0) || !looked(true, tornFor/2) {
		t.Error("a session whose epoch is being stepped is not left alone")
	}
	if looked(true, tornFor/2) {
		t.Error("a session that nobody steps on is left alone for ever")
	}
	p.highest++
	if !looked(true, 0) || looked(false, 0) || !looked(true, tornFor) {
		t.Error("a session is not left alone anew whose epoch has changed")
	}
}

// TestAWorkerThatHasNotJoinedYetIsNotLost: a coordinator that has just started leaves sessions alone of whose holders one was known before
// and has not found it yet, for a while. A copy that was made then would leave that one out.
func TestAWorkerThatHasNotJoinedYetIsNotLost(t *testing.T) {
	now := time.Now()
	w1, w2 := membership.Member{Name: "w1", Role: membership.RoleWorker}, membership.Member{Name: "w2", Role: membership.RoleWorker}
	start := func(members ...membership.Member) *keeper {
		return New(Config{View: membership.Static(members), Await: []membership.Member{w1, w2}, Now: func() time.Time { return now }}).copies
	}
	of := func(members ...string) *plan {
		return &plan{current: []*headwaterv1.SessionState{{Epoch: &headwaterv1.Epoch{Counter: 1, Members: members}}}}
	}
	if start(w1, w2).awaits(of("w1", "w2")) {
		t.Error("all have joined, and one is awaited")
	}
	k := start(w1)
	if !k.awaits(of("w1", "w2")) || k.awaits(of("w1", "w3")) {
		t.Error("a worker that was known before is not awaited, or one that was not is")
	}
	if now = now.Add(joinTime); k.awaits(of("w1", "w2")) {
		t.Error("it is awaited for ever")
	}
}

// TestACopyGoesWhereNoOtherSideIs: of a session that goes on twice, workers of the other side keep what they have and refuse a copy, so
// that it is made elsewhere.
func TestACopyGoesWhereNoOtherSideIs(t *testing.T) {
	layers := []*headwaterv1.SessionLayer{{NHeads: 2, NKvHeads: 1, HeadDim: 8, VDim: 8, Storage: headwaterv1.StorageType_STORAGE_TYPE_F32, WindowLeft: -1, WindowRight: -1}}
	state := func(name string, counter uint64, members ...string) *headwaterv1.SessionState {
		return &headwaterv1.SessionState{
			Epoch:   &headwaterv1.Epoch{Counter: counter, Lane: []byte{1}, Members: members},
			Config:  &headwaterv1.SessionConfig{Layers: layers, Replicas: proto.Uint32(1)},
			Holders: []*headwaterv1.Holder{{Name: name, Layers: []*headwaterv1.HeldLayer{{Groups: []uint32{0}}}}},
		}
	}
	worker := func(name string, memory uint64) workers.Description {
		return workers.Description{Member: membership.Member{Name: name}, Said: &headwaterv1.DescribeResponse{BudgetBytes: memory, Weight: 1}}
	}
	now := time.Now()
	k := New(Config{View: membership.Static(nil), Now: func() time.Time { return now }, Observe: observe.NewCoordinator()}).copies
	described := []workers.Description{worker("w1", 1<<30), worker("w2", 1<<40), worker("w3", 1<<30)}
	p := k.plan([16]byte{1}, []*headwaterv1.SessionState{state("w1", 4, "w1"), state("w2", 6, "w2", "w9")}, nil, described)
	if p == nil || p.target == nil || p.target.Name != "w3" || len(p.stale) > 0 {
		t.Fatalf("got %+v", p)
	}
	// It is said once, when it has stayed so.
	for i, again := range []bool{true, true, false, false} {
		if i == 2 {
			now = now.Add(tornFor)
		}
		if k.sayTwice(p) != again {
			t.Errorf("look %d: it is looked at again: %v", i, !again)
		}
	}
	if events, _ := k.observe.EventsAfter(0); len(events) != 1 || events[0].Worker != "w2" || events[0].What != observe.GoesOnTwice {
		t.Errorf("what happened: %v", events)
	}
}

// TestACopyWaitsForAHolderThatHangs: of a session that nobody has left it out of. One that answers again was silent for the look alone,
// and one that is refused, or tells that it has nothing, is no holder any more.
func TestACopyWaitsForAHolderThatHangs(t *testing.T) {
	layers := []*headwaterv1.SessionLayer{{NHeads: 2, NKvHeads: 1, HeadDim: 8, VDim: 8, Storage: headwaterv1.StorageType_STORAGE_TYPE_F32, WindowLeft: -1, WindowRight: -1}}
	states := []*headwaterv1.SessionState{{
		Epoch:   &headwaterv1.Epoch{Counter: 4, Lane: []byte{1}, Holders: 2, Members: []string{"w1", "w2"}},
		Config:  &headwaterv1.SessionConfig{Layers: layers, Replicas: proto.Uint32(1)},
		Holders: []*headwaterv1.Holder{{Name: "w1", Layers: []*headwaterv1.HeldLayer{{Groups: []uint32{0}}}}},
	}}
	worker := func(name string, err error) workers.Description {
		return workers.Description{Member: membership.Member{Name: name}, Said: &headwaterv1.DescribeResponse{BudgetBytes: 1 << 30, Weight: 1}, Err: err}
	}
	for name, test := range map[string]struct {
		silent []string
		err    error
		leaves bool
		waits  bool
	}{
		"it was silent, and answers": {silent: []string{"w2"}, waits: true},
		"another one was silent":     {silent: []string{"w3"}},
		"it is refused":              {silent: []string{"w2"}, err: errors.New("refused")},
		"it has nothing":             {},
		"another holder ends":        {silent: []string{"w2"}, leaves: true},
	} {
		now := time.Now()
		k := New(Config{View: membership.Static(nil), Now: func() time.Time { return now }}).copies
		first := worker("w1", nil)
		first.Said.Draining, first.Said.Leaving = test.leaves, test.leaves
		described := []workers.Description{first, worker("w2", test.err), worker("w3", nil)}
		p := k.plan([16]byte{1}, states, test.silent, described)
		if p == nil || p.target == nil || k.hangs(p) != test.waits {
			t.Errorf("%s: it waits: %v, got %+v", name, !test.waits, p)
		}
		always := func(*plan) bool { return true }
		if test.waits && (!k.tend(t.Context(), p.id, states, test.silent, described, always) || !strings.Contains(k.failure(), "hangs")) {
			t.Errorf("%s: %q is said", name, k.failure())
		}
		if now = now.Add(hangFor); p != nil && k.hangs(p) {
			t.Errorf("%s: it waits for ever", name)
		}
	}
}
