package fanout_test

import (
	"testing"

	"google.golang.org/protobuf/proto"

	"headwater.example/internal/session"
	"headwater.example/internal/session/fanout"
	headwaterv1 "headwater.example/proto/headwater/v1"
)

// TestWhoWasLeftOutIsFoundOnceTheOthersAreGone: a worker that was left out of a session is who holds it, if nobody else is left: a receipt
// of what it has takes the session up there, and one of more is refused.
func TestWhoWasLeftOutIsFoundOnceTheOthersAreGone(t *testing.T) {
	p := startCopied(t, 2, 1, two...)
	if err := p.conns.Leave(t.Context(), p.at, p.epoch, "w2"); err != nil {
		t.Fatal(err)
	}
	list := func(i int) []*headwaterv1.SessionState {
		o := p.holding.Holders()[i]
		resp, err := p.conns.List(t.Context(), o.Name, o.Address, &headwaterv1.ListSessionsRequest{Sessions: [][]byte{p.id[:]}})
		if err != nil {
			t.Fatal(err)
		}
		for _, s := range resp.GetSessions() {
			for _, told := range s.GetHolders() {
				told.Address = o.Address
			}
		}
		return resp.GetSessions()
	}
	both := append(list(1), list(0)...)
	if h, _, err := fanout.Current(both); err != nil || len(h.Holders()) != 1 || h.Holders()[0].Name != "w1" {
		t.Fatalf("while w1 lives, %v hold the session: %v", h.Holders(), err)
	}
	p.kill[0]()
	h, _, err := fanout.Current(list(1))
	if err != nil || len(h.Holders()) != 1 || h.Holders()[0].Name != "w2" {
		t.Fatalf("w2 is not found: %v", err)
	}
	take := func(counter uint64, expect []*headwaterv1.LayerState) error {
		epoch := &headwaterv1.Epoch{Counter: counter, Lane: append([]byte{9}, make([]byte, 15)...)}
		_, err := p.conns.Take(t.Context(), fanout.NewPlace(p.id, h), &headwaterv1.TakeSessionRequest{Session: p.id[:], Epoch: epoch, Expect: expect})
		return err
	}
	more := []*headwaterv1.LayerState{proto.CloneOf(p.known[0]), p.known[1]}
	more[0].Length = 1
	if err := take(1<<30, more); !fanout.Is(err, session.Behind) {
		t.Errorf("a receipt of what w2 has missed: %v", err)
	}
	if err := take(1<<30, p.known); err != nil {
		t.Errorf("a receipt of what w2 has: %v", err)
	}
}
