// Package sessions serves SessionService: sequences that outlive the calls that use them. The machine's store has them, on
// the worker's memory budget.
//
// The way of a step (lane.go, step.go): a goroutine of its lane receives it, leaves the receiving to the next one, waits for
// the steps of the session that came before, lets the store check and append, takes a kernel thread, attends group by group over
// a view that no append changes, and sends the answer. What must wait does so in its lane: for its session, for a thread, for a
// client that does not read.
//
// The other calls (sessions.go) translate a message (translate.go), ask the store, and answer with what is held. FillSession (fill.go) fetches a
// session from other workers. ListSessions (list.go) and ExportSession (export.go) only look, and so does WatchAttention (watch.go), which works out the weights of a query that a step leaves
// there if somebody watches.
package sessions

import (
	"context"
	"sync/atomic"

	"github.com/google/uuid"

	"headwater.example/internal/certs"
	"headwater.example/internal/kvcache"
	"headwater.example/internal/membership"
	"headwater.example/internal/rpc"
	"headwater.example/internal/session"
	headwaterv1 "headwater.example/proto/headwater/v1"
	"headwater.example/shard"
	"headwater.example/worker/internal/machine"
)

// The problems that a worker finds itself; the others are the store's.
const (
	problemInvalid   = session.Invalid
	problemOver      = session.OverBudget
	problemNotFinite = session.NotFinite
	problemBusy      = session.Busy
)

// Service serves SessionService on a machine.
type Service struct {
	m       *machine.Machine
	boot    uuid.UUID
	members func() []membership.Member // nil is that none are known
	peers   *rpc.Conns                 // to other workers

	standings    standings    // of tenants, at the lanes that are open
	queuedSteps  atomic.Int64 // that wait
	queuedTokens atomic.Int64 // query tokens of these

	watches watches
}

// New makes the service of a machine. The holder's boot is the machine's. Members are those of the cluster, as far as they are known; nil
// is that none are. Copies are fetched from other workers over the connections, which stay the caller's.
func New(m *machine.Machine, boot uuid.UUID, members func() []membership.Member, peers *rpc.Conns) *Service {
	return &Service{m: m, boot: boot, members: members, peers: peers}
}

// CreateSession makes a session, or answers for the one that the same request made before.
func (s *Service) CreateSession(ctx context.Context, m *headwaterv1.CreateSessionRequest) (*headwaterv1.CreateSessionResponse, error) {
	if err := s.ready(); err != nil {
		return nil, err
	}
	req := kvcache.CreateRequest{Tokens: m.GetTokens(), Call: m.GetCall(), Metered: metered(ctx)}
	var err error
	if req.Session, err = namedID(ctx, "session", m.GetSession()); err != nil {
		return nil, err
	}
	if req.Epoch, err = readEpoch("epoch", m.GetEpoch()); err != nil {
		return nil, err
	}
	if req.Config, err = readConfig(ctx, m.GetConfig()); err != nil {
		return nil, err
	}
	for _, h := range m.GetHeld() {
		held := kvcache.HeldLayer{Layer: shard.Layer(h.GetLayer())}
		if held.Groups, err = readHeld(req.Config.Layers, h); err != nil {
			return nil, err
		}
		req.Held = append(req.Held, held)
	}
	for _, b := range m.GetBegin() {
		req.Begin = append(req.Begin, kvcache.BeginLayer{Layer: shard.Layer(b.GetLayer()), First: b.GetFirst(), Hashes: b.GetHashes(), Length: b.GetLength()})
	}
	state, err := s.m.Store.Create(req)
	if err != nil {
		return nil, refusal(err)
	}
	s.m.Take(req.Config.Layers...)
	return &headwaterv1.CreateSessionResponse{State: s.state(state, whole)}, nil
}

// TakeSession steps a session's epoch.
func (s *Service) TakeSession(ctx context.Context, m *headwaterv1.TakeSessionRequest) (*headwaterv1.TakeSessionResponse, error) {
	if err := s.ready(); err != nil {
		return nil, err
	}
	id, err := s.own(ctx, "session", m.GetSession())
	if err != nil {
		return nil, err
	}
	epoch, err := readEpoch("epoch", m.GetEpoch())
	if err != nil {
		return nil, err
	}
	state, err := s.m.Store.Take(ctx, id, epoch, readLayers(m.GetExpect()), m.GetTruncations(), m.GetCheckOnly())
	if err != nil {
		return nil, refusal(err)
	}
	if m.GetCheckOnly() {
		return &headwaterv1.TakeSessionResponse{}, nil
	}
	return &headwaterv1.TakeSessionResponse{State: s.state(state, whole)}, nil
}

// ForkSession makes a session that begins as another one.
func (s *Service) ForkSession(ctx context.Context, m *headwaterv1.ForkSessionRequest) (*headwaterv1.ForkSessionResponse, error) {
	if err := s.ready(); err != nil {
		return nil, err
	}
	req := kvcache.ForkRequest{Truncations: m.GetTruncations(), Expect: readLayers(m.GetExpect()), Position: -1, Call: m.GetCall(), Metered: metered(ctx)}
	var err error
	if req.Session, err = s.own(ctx, "session", m.GetSession()); err != nil {
		return nil, err
	}
	if req.Epoch, err = readEpoch("epoch", m.GetEpoch()); err != nil {
		return nil, err
	}
	if req.Child, err = namedID(ctx, "child", m.GetChild()); err != nil {
		return nil, err
	}
	if req.ChildEpoch, err = readEpoch("child_epoch", m.GetChildEpoch()); err != nil {
		return nil, err
	}
	if m.Position != nil {
		// A position beyond all that exist is refused as such.
		req.Position = int64(min(m.GetPosition(), shard.MaxPositions+1))
	}
	state, err := s.m.Store.Fork(ctx, req)
	if err != nil {
		return nil, refusal(err)
	}
	return &headwaterv1.ForkSessionResponse{State: s.state(state, whole)}, nil
}

// TruncateSession takes positions back.
func (s *Service) TruncateSession(ctx context.Context, m *headwaterv1.TruncateSessionRequest) (*headwaterv1.TruncateSessionResponse, error) {
	id, err := s.own(ctx, "session", m.GetSession())
	if err != nil {
		return nil, err
	}
	epoch, err := readEpoch("epoch", m.GetEpoch())
	if err != nil {
		return nil, err
	}
	req := kvcache.TruncateRequest{
		Session: id, Epoch: epoch, Truncations: m.GetTruncations(), Count: m.GetCount(), ID: m.GetId(), Expect: readLayers(m.GetExpect()),
		Position: m.GetPosition(), CheckOnly: m.GetCheckOnly(),
	}
	if len(m.GetLengths()) > 0 {
		req.Lengths = m.GetLengths()
	}
	state, err := s.m.Store.Truncate(ctx, &req)
	if err != nil {
		return nil, refusal(err)
	}
	if m.GetCheckOnly() {
		return &headwaterv1.TruncateSessionResponse{}, nil
	}
	return &headwaterv1.TruncateSessionResponse{State: s.state(state, whole)}, nil
}

// PinSession pins a session, or no longer. It waits for no step.
func (s *Service) PinSession(ctx context.Context, m *headwaterv1.PinSessionRequest) (*headwaterv1.PinSessionResponse, error) {
	id, err := s.own(ctx, "session", m.GetSession())
	if err != nil {
		return nil, err
	}
	state, err := s.m.Store.Pin(id, m.GetPinned())
	if err != nil {
		return nil, refusal(err)
	}
	return &headwaterv1.PinSessionResponse{State: s.state(state, whole)}, nil
}

// DropSession ends a session.
func (s *Service) DropSession(ctx context.Context, m *headwaterv1.DropSessionRequest) (*headwaterv1.DropSessionResponse, error) {
	id, err := s.own(ctx, "session", m.GetSession())
	if err != nil {
		return nil, err
	}
	var epoch *kvcache.Epoch
	if m.GetEpoch() != nil {
		e, err := readEpoch("epoch", m.GetEpoch())
		if err != nil {
			return nil, err
		}
		epoch = &e
	}
	if err := s.m.Store.Drop(ctx, id, epoch, m.GetCall(), m.GetServed()); err != nil {
		return nil, refusal(err)
	}
	return &headwaterv1.DropSessionResponse{}, nil
}

// AdoptSession takes a session that was filled here for another.
func (s *Service) AdoptSession(ctx context.Context, m *headwaterv1.AdoptSessionRequest) (*headwaterv1.AdoptSessionResponse, error) {
	if err := s.ready(); err != nil {
		return nil, err
	}
	req := kvcache.AdoptRequest{
		Layers: readLayers(m.GetState().GetLayers()), Truncations: m.GetState().GetTruncations(), TruncationID: m.GetState().GetTruncationId(),
		Pinned: m.GetState().GetPinned(), Lineage: m.GetState().GetLineage(),
	}
	var err error
	if req.From, err = s.own(ctx, "filled", m.GetFilled()); err != nil {
		return nil, err
	}
	if req.Session, err = s.own(ctx, "session", m.GetSession()); err != nil {
		return nil, err
	}
	if req.Epoch, err = readEpoch("epoch", m.GetEpoch()); err != nil {
		return nil, err
	}
	state, err := s.m.Store.Adopt(ctx, req)
	if err != nil {
		return nil, refusal(err)
	}
	return &headwaterv1.AdoptSessionResponse{State: s.state(state, whole)}, nil
}

// metered tells whether a call is a tenant's own. What coordinators make of their own accord, as copies, is counted, too, but not refused.
func metered(ctx context.Context) bool { return rpc.CallerOf(ctx).Tenant != "" }

// own reads the id of a session, and refuses one of another tenant as one that is not held.
func (s *Service) own(ctx context.Context, field string, b []byte) (kvcache.SessionID, error) {
	id, err := sessionID(field, b)
	if err != nil {
		return id, err
	}
	return id, s.admit(ctx, id)
}

// namedID reads the id of a session, which the caller may name if it is bound to one.
func namedID(ctx context.Context, field string, b []byte) (kvcache.SessionID, error) {
	id, err := sessionID(field, b)
	if err != nil {
		return id, err
	}
	return id, rpc.CallerOf(ctx).Restrict(id)
}

func (s *Service) admit(ctx context.Context, id kvcache.SessionID) error {
	caller := rpc.CallerOf(ctx)
	if err := caller.Restrict(id); err != nil {
		return err
	}
	if caller.Unbound {
		return nil
	}
	if err := s.m.Store.Admit(id, caller.Owns); err != nil {
		s.m.Flight.Count(certs.OtherTenant)
		return refusal(err)
	}
	return nil
}

// ready refuses new sessions and drivers while the worker drains.
func (s *Service) ready() error {
	select {
	case <-s.m.Stopping():
		return session.Errorf(problemBusy, "%s", s.m.StoppingText())
	default:
		return nil
	}
}
