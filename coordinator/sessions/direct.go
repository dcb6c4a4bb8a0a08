package sessions

import (
	"bytes"
	"cmp"
	"context"
	"fmt"
	"log/slog"
	"net"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"headwater.example/internal/layerproto"
	"headwater.example/internal/membership"
	"headwater.example/internal/rpc"
	"headwater.example/internal/session"
	"headwater.example/internal/session/fanout"
	headwaterv1 "headwater.example/proto/headwater/v1"
)

// Direct is a relay on a client's machine: a Relay that does not know the workers. A coordinator makes sessions, lists and
// drops them, and says who holds them; steps and all other calls go to the holders themselves. Make it with NewDirect.
type Direct struct {
	*Relay
	address     string // the coordinator's
	coordinator headwaterv1.SessionServiceClient
}

// NewDirect makes a relay to the workers of a coordinator, whose address is for errors. The connection stays the caller's. Security
// is how workers are spoken to, hedgeShare is Config.HedgeShare.
func NewDirect(address string, coordinator grpc.ClientConnInterface, security *rpc.Security, hedgeShare float64, log *slog.Logger) *Direct {
	d := &Direct{
		Relay:       New(Config{View: membership.Static(nil), Security: security, HedgeShare: hedgeShare, Logger: log}),
		address:     address,
		coordinator: headwaterv1.NewSessionServiceClient(coordinator),
	}
	d.locate = d.askCoordinator
	security.GrantBy(coordinator)
	d.conns.OnLeave = d.tell
	return d
}

// ServePlain serves lanes on plain connections until ctx ends, when it closes the listener. The flight counts them.
func (d *Direct) ServePlain(ctx context.Context, listener net.Listener, flight *rpc.Flight) error {
	return session.ServePlain(rpc.As(ctx, rpc.Anyone), listener, flight, d.log, d.Lane) // its owner's
}

// CreateSession implements headwater.v1.SessionService: the coordinator places the session and makes it.
func (d *Direct) CreateSession(ctx context.Context, req *headwaterv1.CreateSessionRequest) (*headwaterv1.CreateSessionResponse, error) {
	resp, err := forward(ctx, d, d.coordinator.CreateSession, req)
	if err != nil {
		return nil, err
	}
	id, err := sessionID(req.GetSession())
	if err != nil {
		return nil, refusal(err)
	}
	if h, err := holdingOf(resp.GetState(), req.GetConfig()); err == nil {
		d.remember(id, h)
	} // else the first step asks, and is told what is wrong
	return resp, nil
}

// DropSession implements headwater.v1.SessionService: the coordinator knows more workers than those that were told of here.
func (d *Direct) DropSession(ctx context.Context, req *headwaterv1.DropSessionRequest) (*headwaterv1.DropSessionResponse, error) {
	resp, err := forward(ctx, d, d.coordinator.DropSession, req)
	if id, bad := sessionID(req.GetSession()); err == nil && bad == nil {
		d.forget(ctx, id)
	}
	return resp, err
}

// ListSessions implements headwater.v1.SessionService.
func (d *Direct) ListSessions(ctx context.Context, req *headwaterv1.ListSessionsRequest) (*headwaterv1.ListSessionsResponse, error) {
	return forward(ctx, d, d.coordinator.ListSessions, req)
}

// askCoordinator asks the coordinator who holds a session.
func (d *Direct) askCoordinator(ctx context.Context, id [16]byte) (*fanout.Holding, error) {
	key := id[:]
	resp, err := forward(ctx, d, d.coordinator.ListSessions, &headwaterv1.ListSessionsRequest{Sessions: [][]byte{key}, HoldersOnly: true})
	if err != nil {
		return nil, err
	}
	found, silent := resp.GetSessions(), resp.GetSilent()
	if len(found) != 1 || !bytes.Equal(found[0].GetSession(), key) {
		if len(silent) > 0 {
			return nil, fanout.Silent(silent, fanout.AllLost())
		}
		return nil, heldByNone(key)
	}
	h, err := holdingOf(found[0], nil)
	if err != nil && len(silent) > 0 {
		return nil, fanout.Silent(silent, lostOf(found[0]))
	}
	if err != nil {
		return nil, notWhole(key, lostOf(found[0]), err)
	}
	return h, nil
}

// tell lets the coordinator see that a session has gone on without some workers, so that it makes the copies that it lacks.
func (d *Direct) tell(id [16]byte, lost []string) {
	d.left(id, lost)
	d.lanes.Go(func() {
		ctx, cancel := context.WithTimeout(rpc.As(context.Background(), rpc.Anyone), tellTimeout)
		defer cancel()
		_, _ = d.askCoordinator(ctx, id) // If nobody answers, it is seen later.
	})
}

// tellTimeout is how long a coordinator may take to look at a session that a relay tells it of.
const tellTimeout = 5 * time.Second

// holdingOf reads who holds a session of a config, which a state may leave out where it was asked for with one.
func holdingOf(state *headwaterv1.SessionState, asked *headwaterv1.SessionConfig) (*fanout.Holding, error) {
	layers, err := layerproto.ReadSessionLayers(cmp.Or(state.GetConfig(), asked).GetLayers())
	if err != nil {
		return nil, err
	}
	h, err := fanout.ParseHolding(layers, state.GetHolders())
	if err != nil {
		return nil, err
	}
	return h.Under(state), nil
}

// forward makes a call to the coordinator. Its error is the coordinator's, details and all, under the coordinator's name.
func forward[Q, R any](ctx context.Context, d *Direct, call func(context.Context, *Q, ...grpc.CallOption) (*R, error), req *Q) (*R, error) {
	var header metadata.MD
	resp, err := call(ctx, req, grpc.Header(&header))
	peer := "coordinator " + d.address
	if version := rpc.CheckHeader(peer, header); version != nil {
		return nil, version
	}
	if err == nil {
		return resp, nil
	}
	s := status.Convert(err)
	if len(s.Details()) == 0 && s.Code() == codes.Unavailable && len(header) == 0 { // it did not answer
		return nil, status.Error(codes.Unavailable, fmt.Sprintf("%s is unreachable: %s", peer, s.Message()))
	}
	return nil, err
}
