package sessions

import (
	"context"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"headwater.example/internal/certs"
	"headwater.example/internal/rpc"
	"headwater.example/internal/session"
	headwaterv1 "headwater.example/proto/headwater/v1"
	"headwater.example/worker/internal/machine"
)

// TestACapabilityOfOneSessionIsForNoOther makes each call, and a step, for another session of the same tenant than the caller's capability
// is for: it is refused, also where there is no such session. The session that it is for can be used, and the other one goes on.
func TestACapabilityOfOneSessionIsForNoOther(t *testing.T) {
	who := rpc.Anyone // the lane is opened while it is bound to nothing
	as := func(ctx context.Context) context.Context { return rpc.As(ctx, who) }
	p := serveSessions(t, machine.Config{},
		grpc.ChainUnaryInterceptor(func(ctx context.Context, req any, _ *grpc.UnaryServerInfo, handle grpc.UnaryHandler) (any, error) {
			return handle(as(ctx), req)
		}),
		grpc.ChainStreamInterceptor(func(srv any, s grpc.ServerStream, _ *grpc.StreamServerInfo, handle grpc.StreamHandler) error {
			return handle(srv, asCaller{s, as(s.Context())})
		}))
	lane, mine, other := p.lane(t, 9), newSequence(3, simpleLayer(headwaterv1.StorageType_STORAGE_TYPE_F32)), newSequence(4, simpleLayer(headwaterv1.StorageType_STORAGE_TYPE_F32))
	mine.config.Tenant, other.config.Tenant = "ann", "ann"
	mine.create(t, p, lane)
	other.create(t, p, lane)
	id := [16]byte(mine.id)
	who = rpc.Caller{Tenant: "ann", Holder: certs.Holder{Role: certs.Client, Names: []string{"ann"}}, Session: &id}
	ctx, epoch := t.Context(), &headwaterv1.Epoch{Counter: 2, Lane: lane.id[:]}
	for _, id := range [][]byte{other.id, make([]byte, 16)} {
		for what, try := range map[string]func() error{
			"create": func() error {
				_, err := p.sessions.CreateSession(ctx, &headwaterv1.CreateSessionRequest{Session: id, Epoch: epoch, Config: other.config})
				return err
			},
			"take": func() error {
				_, err := p.sessions.TakeSession(ctx, &headwaterv1.TakeSessionRequest{Session: id, Epoch: epoch})
				return err
			},
			"fork": func() error {
				_, err := p.sessions.ForkSession(ctx, &headwaterv1.ForkSessionRequest{Session: id, Epoch: epoch, Child: mine.id})
				return err
			},
			"be forked": func() error {
				_, err := p.sessions.ForkSession(ctx, &headwaterv1.ForkSessionRequest{Session: mine.id, Epoch: epoch, Child: id, ChildEpoch: epoch})
				return err
			},
			"truncate": func() error {
				_, err := p.sessions.TruncateSession(ctx, &headwaterv1.TruncateSessionRequest{Session: id, Epoch: epoch})
				return err
			},
			"pin": func() error {
				_, err := p.sessions.PinSession(ctx, &headwaterv1.PinSessionRequest{Session: id})
				return err
			},
			"drop": func() error {
				_, err := p.sessions.DropSession(ctx, &headwaterv1.DropSessionRequest{Session: id})
				return err
			},
			"adopt": func() error {
				_, err := p.sessions.AdoptSession(ctx, &headwaterv1.AdoptSessionRequest{Session: mine.id, Filled: id, Epoch: epoch, State: &headwaterv1.SessionState{}})
				return err
			},
			"export": func() error {
				stream, err := p.sessions.ExportSession(ctx, &headwaterv1.ExportSessionRequest{Session: id})
				if err == nil {
					_, err = stream.Recv()
				}
				return err
			},
			"find prefixes": func() error {
				_, err := p.sessions.ListSessions(ctx, &headwaterv1.ListSessionsRequest{CachesOnly: true, Prefix: &headwaterv1.PrefixQuery{Config: other.config}})
				return err
			},
		} {
			if err := try(); status.Code(err) != codes.PermissionDenied {
				t.Errorf("%s session %x: %v", what, id, err)
			}
		}
	}
	for _, asked := range [][][]byte{nil, {other.id, mine.id}} {
		list, err := p.sessions.ListSessions(ctx, &headwaterv1.ListSessionsRequest{Sessions: asked})
		if err != nil || len(list.GetSessions()) != 1 || [16]byte(list.GetSessions()[0].GetSession()) != id {
			t.Errorf("%d sessions are listed: %v", len(list.GetSessions()), err)
		}
	}
	// A lane of its own.
	own := p.lane(t, 10)
	for _, s := range []*sequence{mine, other} {
		if _, err := p.sessions.TakeSession(ctx, &headwaterv1.TakeSessionRequest{Session: s.id, Epoch: &headwaterv1.Epoch{Counter: 2, Lane: own.id[:]}}); (err == nil) != (s == mine) {
			t.Fatal(err)
		}
	}
	mine.epoch = 2
	m := mine.draw(t, 0, 3, 1, false)
	r := own.ask(t, m.step, m.payload)
	mine.apply(m)
	mine.check(t, m, r)
	m = other.draw(t, 0, 3, 1, false)
	if e := own.ask(t, m.step, m.payload).GetResult().GetError(); e.GetProblem() != session.Invalid {
		t.Errorf("a step of another session is done")
	}
	m = other.draw(t, 0, 3, 1, false)
	r = lane.ask(t, m.step, m.payload)
	other.apply(m)
	other.check(t, m, r)
}

// asCaller is a stream of some caller.
type asCaller struct {
	grpc.ServerStream
	ctx context.Context
}

func (s asCaller) Context() context.Context { return s.ctx }
