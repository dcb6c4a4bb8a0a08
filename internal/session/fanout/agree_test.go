package fanout_test

import (
	"slices"
	"testing"

	"headwater.example/internal/session"
	"headwater.example/internal/session/fanout"
	headwaterv1 "headwater.example/proto/headwater/v1"
)

const different = session.Different

// only lets one holder of a session do steps, and the others refuse them.
func (p *plain) only(holder int) {
	for i, n := range p.nodes {
		if n.Set(nil); i != holder {
			n.Set(func(*session.Step) *session.Error {
				return session.Errorf(session.OverBudget, "no room")
			})
		}
	}
}

func (p *plain) everyone() {
	for _, n := range p.nodes {
		n.Set(nil)
	}
}

// mixed is a session of whose first layer each of two holders has done another step than the other, of one length, after 5
// positions that both have. No driver that keeps to the rules makes one.
func mixed(t *testing.T) *plain {
	p := start(t, 2, two...)
	step, _ := draw(rng(1), two, 0, p.id, 0, make([]uint64, 4), 5, 0)
	if err := p.do(t, step); err != nil {
		t.Fatal(err)
	}
	for i := range p.nodes {
		p.only(i)
		part, _ := draw(rng(uint64(2+i)), two, 0, p.id, 5, step.Hashes, 3, 0)
		if err := p.do(t, part); err == nil {
			t.Fatal("done by one holder of two")
		}
	}
	p.everyone()
	for i := range p.nodes {
		if l := p.state(t, i).GetLayers()[0]; l.GetLength() != 8 {
			t.Fatalf("holder %d has %d positions, not 8", i, l.GetLength())
		}
	}
	return p
}

// TestHalvesOfTwoStepsAreNoState: equal lengths do not make one session of two halves of different steps. What both have had before
// can be taken up.
func TestHalvesOfTwoStepsAreNoState(t *testing.T) {
	p := mixed(t)
	one, other := p.state(t, 0), p.state(t, 1)
	if one.GetLayers()[0].GetChain() == other.GetLayers()[0].GetChain() {
		t.Fatal("two steps have one chain")
	}
	joined, err := p.holding.Join(p.id[:], []*headwaterv1.SessionState{one, other})
	if err != nil || joined.GetLayers()[0].GetLength() != 5 || !slices.Equal(joined.GetLayers()[0].GetHashes(), p.known[0].GetHashes()) {
		t.Fatalf("what both have is said to be %v: %v", joined, err)
	}
	state, err := p.conns.Take(t.Context(), p.place(), &headwaterv1.TakeSessionRequest{Session: p.id[:], Epoch: p.epoch})
	if err != nil || state.GetLayers()[0].GetLength() != 5 {
		t.Fatalf("taken with %v: %v", state, err)
	}
	p.holds(t, 1, []uint64{5, 0}, [][]uint64{p.known[0].GetHashes(), {0, 0}})
}

// TestNothingInCommonIsAnError: of holders that have gone two different steps apart, only a receipt says what they have in common.
func TestNothingInCommonIsAnError(t *testing.T) {
	p := mixed(t)
	// Each goes one more step alone.
	for i := range p.nodes {
		p.only(i)
		l := p.state(t, i).GetLayers()[0]
		hashes := make([]uint64, 4)
		for j, g := range p.holding.Holders()[i].Groups[0] {
			hashes[g] = l.GetHashes()[j]
		}
		step, _ := draw(rng(uint64(7+i)), two, 0, p.id, 8, hashes, 1, 0)
		step.Chain = l.GetChain()
		if err := p.lane.Start(t.Context(), p.place(), step).Wait(t.Context()); err == nil {
			t.Fatal("done by one holder of two")
		}
	}
	p.everyone()
	if _, err := p.holding.Join(p.id[:], []*headwaterv1.SessionState{p.state(t, 0), p.state(t, 1)}); !fanout.Is(err, different) {
		t.Fatalf("joined: %v", err)
	}
	take := &headwaterv1.TakeSessionRequest{Session: p.id[:], Epoch: p.epoch}
	if _, err := p.conns.Take(t.Context(), p.place(), take); !fanout.Is(err, different) {
		t.Fatalf("taken: %v", err)
	}
	take.Expect = p.known
	state, err := p.conns.Take(t.Context(), p.place(), take)
	if err != nil || state.GetLayers()[0].GetLength() != 5 {
		t.Fatalf("taken with a receipt: %v: %v", state, err)
	}
	p.holds(t, 1, []uint64{5, 0}, [][]uint64{p.known[0].GetHashes(), {0, 0}})
}

// TestALateTruncationFindsNothingToCut: not at what a later step has made, even if its count is the one that the holder has.
func TestALateTruncationFindsNothingToCut(t *testing.T) {
	p := start(t, 2, two...)
	step, _ := draw(rng(1), two, 0, p.id, 0, make([]uint64, 4), 5, 0)
	if err := p.do(t, step); err != nil {
		t.Fatal(err)
	}
	late := &headwaterv1.TruncateSessionRequest{Session: p.id[:], Epoch: p.epoch, Position: 2, Id: 3}
	for _, l := range p.known {
		late.Expect = append(late.Expect, &headwaterv1.LayerState{Layer: l.GetLayer(), Length: l.GetLength(), Hashes: l.GetHashes(), Chain: l.GetChain()})
	}
	step, _ = draw(rng(2), two, 0, p.id, 5, step.Hashes, 3, 0)
	if err := p.do(t, step); err != nil {
		t.Fatal(err)
	}
	if _, err := p.conns.Truncate(t.Context(), p.place(), late); !fanout.Is(err, session.Ahead) {
		t.Fatalf("a late truncation: %v", err)
	}
	p.holds(t, 0, []uint64{8, 0}, [][]uint64{p.known[0].GetHashes(), {0, 0}})
	// Nor once the same session has been truncated by another that came before it.
	if _, err := p.conns.Truncate(t.Context(), p.place(), &headwaterv1.TruncateSessionRequest{Session: p.id[:], Epoch: p.epoch, Position: 8, Expect: p.known, Id: 4}); err != nil {
		t.Fatal(err)
	}
	if _, err := p.conns.Truncate(t.Context(), p.place(), late); !fanout.Is(err, session.OtherTruncations) {
		t.Fatalf("a late truncation: %v", err)
	}
}

// TestALevelThatEndsEarlyCanBeDoneAgain: whoever takes a session up next, without a receipt too, finds the same.
func TestALevelThatEndsEarlyCanBeDoneAgain(t *testing.T) {
	for first := range 2 {
		p := start(t, 2, two...)
		step, _ := draw(rng(1), two, 0, p.id, 0, make([]uint64, 4), 5, 0)
		if err := p.do(t, step); err != nil {
			t.Fatal(err)
		}
		p.only(0)
		part, _ := draw(rng(2), two, 0, p.id, 5, step.Hashes, 3, 0)
		if err := p.do(t, part); err == nil {
			t.Fatal("done by one holder of two")
		}
		p.everyone()
		// One of both has been levelled, and whoever did it is gone.
		s := p.state(t, first)
		req := &headwaterv1.TruncateSessionRequest{Session: p.id[:], Epoch: p.epoch, Lengths: []uint64{5, 0}, Id: 9}
		for _, l := range s.GetLayers() {
			from := l
			if l.GetBefore() != nil && l.GetLength() > 5 {
				from = l.GetBefore()
			}
			req.Expect = append(req.Expect, &headwaterv1.LayerState{Layer: l.GetLayer(), Length: from.GetLength(), Hashes: from.GetHashes(), Chain: from.GetChain(), AppendId: l.GetAppendId()})
		}
		if _, err := p.nodes[first].TruncateSession(t.Context(), req); err != nil {
			t.Fatal(err)
		}
		state, err := p.conns.Take(t.Context(), p.place(), &headwaterv1.TakeSessionRequest{Session: p.id[:], Epoch: p.epoch})
		if err != nil || state.GetLayers()[0].GetLength() != 5 || state.GetTruncations() != 1 {
			t.Fatalf("holder %d first: taken with %v: %v", first, state, err)
		}
		p.holds(t, 1, []uint64{5, 0}, [][]uint64{p.known[0].GetHashes(), {0, 0}})
	}
}

// TestOnlyWhatACallHasMadeIsGivenUp: the same CreateSession again, of which one holder can not be reached, leaves the session that
// the first has made; and what a call that was given up makes later does not stay.
func TestOnlyWhatACallHasMadeIsGivenUp(t *testing.T) {
	p := start(t, 2, two...)
	create := &headwaterv1.CreateSessionRequest{Session: p.id[:], Epoch: p.epoch, Config: config(two)}
	half, err := fanout.NewHolding(two, p.holding.Holders()[0], &fanout.Holder{Name: "gone", Address: "127.0.0.1:1", Groups: p.holding.Holders()[1].Groups})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := p.conns.Create(t.Context(), half, create); err == nil {
		t.Fatal("made where nobody listens")
	}
	p.state(t, 0)
	step, _ := draw(rng(1), two, 0, p.id, 0, make([]uint64, 4), 5, 0)
	if err := p.do(t, step); err != nil {
		t.Fatal(err)
	}
	// Of a session that has positions, too, and those stay.
	if state, err := p.conns.Create(t.Context(), p.holding, create); err != nil || state.GetLayers()[0].GetLength() != 5 {
		t.Fatalf("made again: %v: %v", state, err)
	}
	p.holds(t, 0, []uint64{5, 0}, [][]uint64{p.known[0].GetHashes(), {0, 0}})

	late := [16]byte{99}
	if _, err := p.nodes[0].DropSession(t.Context(), &headwaterv1.DropSessionRequest{Session: late[:], Call: 4}); err != nil {
		t.Fatal(err)
	}
	if _, err := p.nodes[0].CreateSession(t.Context(), &headwaterv1.CreateSessionRequest{Session: late[:], Epoch: p.epoch, Config: config(two), Call: 4}); err == nil {
		t.Fatal("a call that was given up has made a session")
	}
}
