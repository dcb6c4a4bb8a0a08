package fanout_test

import (
	"fmt"
	"slices"
	"testing"

	"headwater.example/internal/session"
	"headwater.example/internal/session/fanout"
	headwaterv1 "headwater.example/proto/headwater/v1"
)

// exported is what an export of a layer's positions from one on gives, message by message, but for how they are cut.
func exported(t testing.TB, conns *fanout.Conns, at *fanout.Place, req *headwaterv1.ExportSessionRequest) (rows []string, _ error) {
	t.Helper()
	return rows, conns.Export(t.Context(), at, req, func(m *headwaterv1.ExportSessionResponse) error {
		n := int(m.GetCount())
		k, v := len(m.GetK())/n, len(m.GetV())/n
		for i := range n {
			rows = append(rows, fmt.Sprintf("%d %d %x %x", m.GetGroup(), int(m.GetStart())+i, m.GetK()[i*k:][:k], m.GetV()[i*v:][:v]))
		}
		return nil
	})
}

// TestAnExportGoesOnElsewhere: wherever it is cut off, it goes on at another holder where it was, and gives each row once.
func TestAnExportGoesOnElsewhere(t *testing.T) {
	p, alone := startCopied(t, 3, 1, two...), start(t, 1, two...)
	for i := range 6 {
		if err := p.step(t, alone, uint64(i), 0); err != nil {
			t.Fatal(err)
		}
	}
	for _, req := range []*headwaterv1.ExportSessionRequest{
		{Session: p.id[:]},
		{Session: p.id[:], Start: 2, Count: 15},
		{Session: p.id[:], Start: 1, Groups: []uint32{1, 3}},
	} {
		want, err := exported(t, alone.conns, alone.place(), req)
		if err != nil || len(want) == 0 {
			t.Fatalf("of one holder: %v, %v", want, err)
		}
		for victim := range 3 {
			for after := range int64(7) {
				p.torn[victim].Store(after)
				got, err := exported(t, p.conns, p.at, req)
				p.torn[victim].Store(-1)
				if err != nil || !slices.Equal(got, want) {
					t.Errorf("%v: w%d breaks after %d messages: %v\n%v, not\n%v", req, victim+1, after, err, got, want)
				}
			}
		}
	}
}

// TestAnExportWithoutCopies goes on where it was if the stream breaks, and where nobody has the rest, the error says who had it.
func TestAnExportWithoutCopies(t *testing.T) {
	p, alone := startCopied(t, 2, 0, two...), start(t, 1, two...)
	if err := p.step(t, alone, 1, 0); err != nil {
		t.Fatal(err)
	}
	req := &headwaterv1.ExportSessionRequest{Session: p.id[:]}
	want, err := exported(t, alone.conns, alone.place(), req)
	if err != nil {
		t.Fatal(err)
	}
	p.torn[1].Store(1)
	if got, err := exported(t, p.conns, p.at, req); err != nil || !slices.Equal(got, want) {
		t.Errorf("the stream breaks: %v, not %v: %v", got, want, err)
	}
	p.kill[1]()
	_, err = exported(t, p.conns, p.at, req)
	if e, ok := session.FromError(err); !ok || e.Reason() != session.Lost || e.Why.GetHolder() != "w2" {
		t.Errorf("got %v", err)
	}
}

// TestAHolderThatHasMoreByNow: who knows of fewer groups of a holder than it has got meanwhile reads and pins the session all the same.
func TestAHolderThatHasMoreByNow(t *testing.T) {
	p, alone := startCopied(t, 3, 1, two...), start(t, 1, two...)
	if err := p.step(t, alone, 1, 0); err != nil {
		t.Fatal(err)
	}
	var before []*fanout.Holder // as they were without copies
	for i, o := range p.holding.Holders() {
		o := &fanout.Holder{Name: o.Name, Boot: o.Boot, Address: o.Address}
		o.Groups = make([][]int, len(two))
		for l, layer := range two {
			for g := range layer.KVHeads {
				if g%3 == i {
					o.Groups[l] = append(o.Groups[l], g)
				}
			}
		}
		before = append(before, o)
	}
	old, err := fanout.NewHolding(p.layers, before...)
	if err != nil {
		t.Fatal(err)
	}
	at := fanout.NewPlace(p.id, old.Of(1))
	if err := p.conns.Reopen(t.Context(), p.at, &headwaterv1.Epoch{Counter: 3, Lane: p.epoch.GetLane(), Base: 1}); err != nil {
		t.Fatal(err)
	}
	req := &headwaterv1.ExportSessionRequest{Session: p.id[:]}
	want, err := exported(t, alone.conns, alone.place(), req)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := exported(t, p.conns, at, req); err != nil || !slices.Equal(got, want) {
		t.Errorf("exported: %v, %v", got, err)
	}
	state, err := p.conns.Pin(t.Context(), at, &headwaterv1.PinSessionRequest{Session: p.id[:], Pinned: true})
	if err != nil || !state.GetPinned() || len(state.GetHolders()) != 3 || len(state.GetHolders()[0].GetLayers()[0].GetGroups()) != 3 {
		t.Errorf("pinned: %v, %v", state, err)
	}
}
