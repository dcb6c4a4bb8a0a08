package fanout_test

import (
	"context"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"headwater.example/internal/session"
	"headwater.example/internal/session/fanout"
	headwaterv1 "headwater.example/proto/headwater/v1"
	"headwater.example/shard"
)

// stuck is a holder that makes no sessions, and never answers who drops one.
type stuck struct {
	session.Service
	asked chan struct{}
}

func (s *stuck) CreateSession(context.Context, *headwaterv1.CreateSessionRequest) (*headwaterv1.CreateSessionResponse, error) {
	return nil, status.Error(codes.Internal, "not today")
}

func (s *stuck) DropSession(ctx context.Context, _ *headwaterv1.DropSessionRequest) (*headwaterv1.DropSessionResponse, error) {
	s.asked <- struct{}{}
	<-ctx.Done()
	return nil, ctx.Err()
}

func TestAHolderThatHangsHoldsUpNoCreate(t *testing.T) {
	s := &stuck{asked: make(chan struct{}, 1)}
	layers := []shard.LayerSpec{shape(2, 1, 4, 4)}
	h, err := fanout.NewHolding(layers, &fanout.Holder{Name: "stuck", Address: serve(t, func(r grpc.ServiceRegistrar) { session.Register(r, s) })})
	if err != nil {
		t.Fatal(err)
	}
	p := connect(t)
	p.conns.SetAbandonTimeout(100 * time.Millisecond)
	id := [16]byte{7}
	_, err = p.conns.Create(t.Context(), h, &headwaterv1.CreateSessionRequest{Session: id[:], Epoch: p.epoch, Config: config(layers)})
	if err == nil {
		t.Fatal("a session that no holder has made")
	}
	select {
	case <-s.asked:
	default:
		t.Fatal("what was made of the session was not dropped")
	}
}
