package fanout_test

import (
	"context"
	"errors"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/stats"

	"headwater.example/internal/rpc"
	"headwater.example/internal/session/fanout"
	"headwater.example/internal/testkit/await"
	"headwater.example/internal/testkit/plainholder"
	headwaterv1 "headwater.example/proto/headwater/v1"
	"headwater.example/shard"
)

// watch tells of the connections that a server has, as they come and go.
type watch struct{ began, ended chan struct{} }

func newWatch() *watch { return &watch{make(chan struct{}, 100), make(chan struct{}, 100)} }

func (w *watch) TagRPC(ctx context.Context, _ *stats.RPCTagInfo) context.Context   { return ctx }
func (w *watch) TagConn(ctx context.Context, _ *stats.ConnTagInfo) context.Context { return ctx }
func (w *watch) HandleRPC(context.Context, stats.RPCStats)                         {}
func (w *watch) HandleConn(_ context.Context, s stats.ConnStats) {
	switch s.(type) {
	case *stats.ConnBegin:
		w.began <- struct{}{}
	case *stats.ConnEnd:
		w.ended <- struct{}{}
	}
}

// node is a holder whose connections are watched.
func node(t *testing.T, name string) (address string, w *watch) {
	t.Helper()
	w = newWatch()
	h := &plainholder.Holder{Name: name}
	return serve(t, h.Register, grpc.StatsHandler(w)), w
}

// TestAConnectionEndsWithItsLastUser: neither before nor later, and the next user has another.
func TestAConnectionEndsWithItsLastUser(t *testing.T) {
	address, w := node(t, "w1")
	peer := rpc.Peer{Name: "w1", Address: address}
	conns := fanout.NewConns(nil, rpc.DialOptions()...)
	call := func() {
		t.Helper()
		if _, err := conns.List(t.Context(), "w1", address, &headwaterv1.ListSessionsRequest{}); err != nil {
			t.Fatal(err)
		}
	}
	first, err := conns.Use(peer)
	if err != nil {
		t.Fatal(err)
	}
	second, err := conns.Use(peer)
	if err != nil || first != second {
		t.Fatalf("another connection to the same address: %v", err)
	}
	call()
	first.Release()
	call()
	await.One(t, w.began, "a connection")
	if len(w.began)+len(w.ended) != 0 {
		t.Error("two uses and two calls were not on one connection")
	}
	second.Release()
	await.One(t, w.ended, "the end of a connection")
	call() // alone, it is the first and the last user
	await.One(t, w.began, "a connection")
	await.One(t, w.ended, "the end of a connection")
	third, err := conns.Use(peer)
	if err != nil {
		t.Fatal(err)
	}
	if err := conns.Close(); err != nil {
		t.Fatal(err)
	}
	third.Release()
	if _, err := conns.Use(peer); !errors.Is(err, rpc.ErrClosed) {
		t.Errorf("a closed set is used: %v", err)
	}
}

// TestWhoIsNotKeptAnyMoreIsLetGo: the connection to one who has departed ends, that to one who stays is not made anew.
func TestWhoIsNotKeptAnyMoreIsLetGo(t *testing.T) {
	one, two := rpc.Peer{Name: "w1"}, rpc.Peer{Name: "w2"}
	var w1, w2 *watch
	one.Address, w1 = node(t, one.Name)
	two.Address, w2 = node(t, two.Name)
	conns := fanout.NewConns(nil, rpc.DialOptions()...)
	var kept rpc.Kept
	call := func(to rpc.Peer) {
		t.Helper()
		if _, err := conns.List(t.Context(), to.Name, to.Address, &headwaterv1.ListSessionsRequest{}); err != nil {
			t.Fatal(err)
		}
	}
	kept.Set(conns.Conns, one, two, two)
	call(one)
	call(two)
	await.One(t, w1.began, "a connection")
	await.One(t, w2.began, "a connection")
	kept.Set(conns.Conns, two)
	await.One(t, w1.ended, "the end of a connection")
	call(two)
	if len(w2.began)+len(w2.ended) != 0 {
		t.Error("the connection to who stays is another")
	}
	kept.Set(conns.Conns)
	await.One(t, w2.ended, "the end of a connection")
	if err := conns.Close(); err != nil {
		t.Fatal(err)
	}
}

// TestALaneUsesItsConnections: that to a holder is there as long as the stream, also where nobody keeps it.
func TestALaneUsesItsConnections(t *testing.T) {
	w := newWatch()
	p := connect(t)
	s := &script{step: count}
	l := shape(1, 1, 1, 1)
	h, err := fanout.NewHolding([]shard.LayerSpec{l}, &fanout.Holder{Name: "w1", Address: serve(t, s.Register, grpc.StatsHandler(w))})
	if err != nil {
		t.Fatal(err)
	}
	for length := range uint64(3) {
		step, _ := draw(rng(1), []shard.LayerSpec{l}, 0, [16]byte{1}, length, []uint64{length}, 1, 0)
		if err := p.lane.Start(t.Context(), at(h), step).Wait(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	await.One(t, w.began, "a connection")
	if len(w.began)+len(w.ended) != 0 {
		t.Error("three steps were not on one connection")
	}
	p.lane.Close()
	await.One(t, w.ended, "the end of a connection")
}
