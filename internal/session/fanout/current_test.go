package fanout_test

import (
	"context"
	"errors"
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

// TestOnlyWhatWasLeftOutIsStale: what a worker has of an older epoch that the session's goes beyond, and not what it has of a later one
// that has not come to all of its workers, nor of a complete one.
func TestOnlyWhatWasLeftOutIsStale(t *testing.T) {
	layers := []shard.LayerSpec{shape(6, 3, 8, 8)}
	all := []uint32{0, 1, 2}
	for _, test := range []struct {
		name   string
		states []*headwaterv1.SessionState
		want   []string
	}{
		{"left out", []*headwaterv1.SessionState{told("a", 4, []string{"a", "b"}, all), told("b", 4, []string{"a", "b"}, all), told("c", 3, []string{"a", "c"}, all)}, []string{"c"}},
		{"goes on twice", []*headwaterv1.SessionState{told("a", 4, []string{"a", "b"}, all), told("b", 4, []string{"a", "b"}, all), told("c", 3, []string{"c"}, all)}, nil},
		{"goes on twice, and the later side gets a copy", []*headwaterv1.SessionState{told("a", 4, []string{"a"}, all), told("b", 6, []string{"b", "c"}, all), told("c", 5, []string{"b"}, all)}, nil},
		{"the later side has lost a worker", []*headwaterv1.SessionState{told("a", 4, []string{"a"}, all), told("b", 6, []string{"b", "c"}, all)}, nil},
	} {
		for _, s := range test.states {
			s.Config = &headwaterv1.SessionConfig{Layers: layerproto.SessionLayers(layers)}
		}
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
