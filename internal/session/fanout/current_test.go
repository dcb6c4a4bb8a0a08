package fanout_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"

	"google.golang.org/grpc"

	"headwater.example/internal/layerproto"
	"headwater.example/internal/session/fanout"
	headwaterv1 "headwater.example/proto/headwater/v1"
	"headwater.example/shard"
)

// exchanged is a session whose lane knows that w1 and w2 hold it, and that w2 and w3 hold since, under epoch 3.
func exchanged(t *testing.T) *copied {
	t.Helper()
	p := startCopied(t, 3, 2, two...)
	all := p.holding.Holders()
	holding := func(holders ...*fanout.Holder) *fanout.Holding {
		h, err := fanout.NewHolding(p.layers, holders...)
		if err != nil {
			t.Fatal(err)
		}
		return h
	}
	p.at = fanout.NewPlace(p.id, holding(all[0], all[1]).Of(1))
	now := fanout.NewPlace(p.id, holding(all[1], all[2]))
	if err := p.conns.Reopen(t.Context(), now, &headwaterv1.Epoch{Counter: 3, Lane: p.epoch.GetLane(), Base: 1}); err != nil {
		t.Fatal(err)
	}
	where := map[string]string{}
	for _, o := range all {
		where[o.Name] = o.Address
	}
	p.nodes[1].Where = where
	return p
}

// TestHoldersSayWhoHasComeToThem: a lane finds a holder that came while it did not look, although no coordinator answers: those
// that it knows say where that one is. A coordinator that is silent is not waited for.
func TestHoldersSayWhoHasComeToThem(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	for name, locate := range map[string]func(context.Context, [16]byte) (*fanout.Holding, error){
		"there is none": nil,
		"it is down":    func(context.Context, [16]byte) (*fanout.Holding, error) { return nil, errors.New("down") },
		"it is silent": func(asked context.Context, _ [16]byte) (*fanout.Holding, error) {
			select {
			case <-asked.Done():
			case <-ctx.Done():
				t.Error("it was waited for")
			}
			return nil, errors.New("no answer")
		},
	} {
		p, alone := exchanged(t), start(t, 1, two...)
		p.conns.Locate = locate
		if err := p.step(t, alone, 1, 0); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if got := names(p.at.Holding()); !slices.Equal(got, []string{"w2", "w3"}) {
			t.Errorf("%s: %v hold it for the lane", name, got)
		}
		if got := p.state(t, 2).GetEpoch(); got.GetCounter() != 3 {
			t.Errorf("%s: the new holder was left out: %v", name, got)
		}
	}
}

// TestWhatHoldersSayGoesBeforeOnlyIfItIsNews: while a coordinator is slow, what was known before is no answer to who holds a session.
func TestWhatHoldersSayGoesBeforeOnlyIfItIsNews(t *testing.T) {
	p, alone := exchanged(t), start(t, 1, two...)
	if err := p.step(t, alone, 1, 0); err != nil {
		t.Fatal(err)
	}
	known := p.at.Holding()
	answers := make(chan struct{}, 100)
	asker := connect(t, grpc.WithChainUnaryInterceptor(func(ctx context.Context, method string, req, reply any, cc *grpc.ClientConn, invoke grpc.UnaryInvoker, opts ...grpc.CallOption) error {
		err := invoke(ctx, method, req, reply, cc, opts...)
		answers <- struct{}{}
		return err
	}))
	asker.conns.Locate = func(ctx context.Context, _ [16]byte) (*fanout.Holding, error) {
		for range 3 * len(known.Holders()) { // three answers of each
			select {
			case <-answers:
			case <-ctx.Done():
				return nil, ctx.Err()
			}
		}
		return known.Of(9), nil
	}
	if h, err := asker.conns.LocateNow(t.Context(), p.id, known); err != nil || h.Counter() != 9 {
		t.Errorf("%v, %v", h, err)
	}
}

// TestWhoGoesOverAnExchangeTakesNobodyAlong: one that has got a later epoch meanwhile may have more than the others, and refuses.
func TestWhoGoesOverAnExchangeTakesNobodyAlong(t *testing.T) {
	p := exchanged(t)
	known := &headwaterv1.SessionState{Epoch: &headwaterv1.Epoch{Counter: 1, Lane: p.epoch.GetLane(), Closed: true}}
	h, err := p.conns.GoOver(t.Context(), p.at, p.at.Holding().Under(known, known), p.epoch)
	if err != nil {
		t.Fatal(err)
	}
	if got := names(h); !slices.Equal(got, []string{"w2", "w3"}) || h.Counter() != 3 {
		t.Errorf("%v hold it under %d", got, h.Counter())
	}
}

// TestOnlyWhereASessionCameFromIsStale: what a worker has from which those that hold the session have come, by its last call and whatever
// its epoch is since, and nothing else.
func TestOnlyWhereASessionCameFromIsStale(t *testing.T) {
	layers := []shard.LayerSpec{shape(6, 3, 8, 8)}
	all := []uint32{0, 1, 2}
	one := func(name string, counter uint64, served uint64, lineage []uint64, members ...string) *headwaterv1.SessionState {
		s := told(name, counter, members, all)
		s.Config = &headwaterv1.SessionConfig{Layers: layerproto.SessionLayers(layers)}
		s.Layers, s.Lineage, s.Served = []*headwaterv1.LayerState{{}}, lineage, served
		return s
	}
	for _, test := range []struct {
		name   string
		states []*headwaterv1.SessionState
		want   []string
	}{
		{"left out", []*headwaterv1.SessionState{one("a", 4, 4, []uint64{3, 4}, "a", "b"), one("b", 4, 4, []uint64{4}, "a", "b"), one("c", 3, 3, []uint64{3}, "a", "c")}, []string{"c"}},
		{"left out, with an epoch that came to it alone", []*headwaterv1.SessionState{one("a", 4, 4, []uint64{3, 4}, "a"), one("c", 6, 3, []uint64{3, 6}, "a", "c")}, []string{"c"}},
		{"goes on twice", []*headwaterv1.SessionState{one("a", 4, 4, []uint64{3, 4}, "a", "b"), one("b", 4, 4, []uint64{3, 4}, "a", "b"), one("c", 5, 5, []uint64{3, 5}, "c", "d")}, nil},
		{"goes on twice, and the later side gets a copy", []*headwaterv1.SessionState{one("a", 4, 4, []uint64{3, 4}, "a"), one("b", 7, 5, []uint64{3, 5, 6, 7}, "b", "c"), one("c", 6, 6, []uint64{3, 5, 6}, "b")}, nil},
		{"a worker of the earlier side was killed and filled by the later one", []*headwaterv1.SessionState{
			one("a", 7, 6, []uint64{3, 5, 6, 7}, "a", "b"), one("b", 7, 7, []uint64{3, 5, 6, 7}, "a", "b"), one("c", 4, 4, []uint64{3, 4}, "b", "c"),
		}, nil},
		{"it does not tell", []*headwaterv1.SessionState{one("a", 4, 4, []uint64{3, 4}, "a"), one("c", 3, 0, nil, "a", "c")}, nil},
	} {
		h, current, err := fanout.Current(test.states)
		if err != nil {
			t.Fatalf("%s: %v", test.name, err)
		}
		var stale []string
		for _, s := range fanout.Stale(h, current, test.states) {
			stale = append(stale, s.GetHolders()[0].GetName())
		}
		if !slices.Equal(stale, test.want) {
			t.Errorf("%s: %v are stale, not %v", test.name, stale, test.want)
		}
	}
}

// TestWhatHasGoneOnCounts: and not what it has come from, though an epoch that nobody else accepted came to that one later.
func TestWhatHasGoneOnCounts(t *testing.T) {
	layers := []shard.LayerSpec{shape(6, 3, 8, 8)}
	all := []uint32{0, 1, 2}
	states := func(served uint64) []*headwaterv1.SessionState {
		a, c := told("a", 5, []string{"a", "b"}, all), told("c", 9, []string{"b", "c"}, all)
		a.Lineage, a.Served = []uint64{1, 2, 4, 5}, 4
		c.Lineage, c.Served = []uint64{1, 9}, served
		for _, s := range []*headwaterv1.SessionState{a, c} {
			s.Config = &headwaterv1.SessionConfig{Layers: layerproto.SessionLayers(layers)}
			s.Layers = []*headwaterv1.LayerState{{}}
		}
		return []*headwaterv1.SessionState{a, c}
	}
	for served, want := range map[uint64]string{1: "a", 9: "c"} {
		h, _, err := fanout.Current(states(served))
		if err != nil {
			t.Fatal(err)
		}
		if got := names(h); !slices.Equal(got, []string{want}) {
			t.Errorf("%v hold what was served under %d last, not %s", got, served, want)
		}
	}
}

// TestACopyCameThroughWhatAllItsLayersCameThrough: who has one layer alone says nothing of another.
func TestACopyCameThroughWhatAllItsLayersCameThrough(t *testing.T) {
	layer := func(l uint32) *headwaterv1.LayerState { return &headwaterv1.LayerState{Layer: l} }
	states := []*headwaterv1.SessionState{
		{Lineage: []uint64{1, 3, 4}, Layers: []*headwaterv1.LayerState{layer(0)}},
		{Lineage: []uint64{1, 2, 4}, Layers: []*headwaterv1.LayerState{layer(1)}},
		{Lineage: []uint64{2, 4}, Layers: []*headwaterv1.LayerState{layer(0), layer(1)}},
	}
	for want, layers := range map[string][]*headwaterv1.LayerState{
		"[1 2 3 4]": {layer(0)},
		"[1 2 4]":   {layer(0), layer(1)},
		"[]":        {layer(2)},
	} {
		if got := fmt.Sprint(fanout.Joined(states, layers)); got != want {
			t.Errorf("layers %v came through %s, not %s", layers, got, want)
		}
	}
	long := []*headwaterv1.SessionState{{Layers: states[0].Layers}, {Layers: states[0].Layers}}
	for i := range uint64(shard.MaxLineage) {
		long[0].Lineage, long[1].Lineage = append(long[0].Lineage, i), append(long[1].Lineage, i+10)
	}
	if got := fanout.Joined(long, states[0].Layers); len(got) != shard.MaxLineage || got[shard.MaxLineage-1] != shard.MaxLineage+9 {
		t.Errorf("a long one is %v", got)
	}
}
