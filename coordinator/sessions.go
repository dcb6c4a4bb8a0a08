package coordinator

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"headwater.example/internal/membership"
	"headwater.example/internal/session"
	"headwater.example/internal/session/fanout"
	headwaterv1 "headwater.example/proto/headwater/v1"
	"headwater.example/shard"
)

// maxHoldings bounds how many sessions' holders are remembered. Those that are not are asked for.
const maxHoldings = 1 << 16

// sessions serves SessionService as one holder of all groups. It owns nothing of a session: who holds it is known by the
// workers, and remembered here to be found at once.
type sessions struct {
	c     *Coordinator
	conns *fanout.Conns

	relays sync.WaitGroup // what reads lanes

	mu       sync.Mutex
	holdings map[[16]byte]*fanout.Holding
}

func sessionID(id []byte) ([16]byte, error) {
	if len(id) != 16 {
		return [16]byte{}, session.Errorf(headwaterv1.SessionProblem_SESSION_PROBLEM_INVALID, "a session's id has %d bytes, not 16", len(id))
	}
	return [16]byte(id), nil
}

// workers are the members that may hold sessions.
func (s *sessions) workers() []membership.Member {
	return slices.DeleteFunc(s.c.View.Members(), func(m membership.Member) bool { return m.Role != membership.RoleWorker })
}

// keep keeps the connections to the workers that are members, until ctx ends. Those to others end with the calls that use
// them.
func (s *sessions) keep(ctx context.Context) {
	var kept fanout.Kept
	defer kept.Set(s.conns)
	for {
		changed := s.c.View.Changed()
		var addresses []string
		for _, m := range s.workers() {
			addresses = append(addresses, m.Address)
		}
		kept.Set(s.conns, addresses...)
		select {
		case <-changed:
		case <-ctx.Done():
			return
		}
	}
}

// askTimeout is how long a worker may take to say what it has.
const askTimeout = 5 * time.Second

// ask calls do for every worker beside each other.
func (s *sessions) ask(ctx context.Context, members []membership.Member, do func(ctx context.Context, i int, m membership.Member)) {
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	var tasks errgroup.Group
	for i, m := range members {
		tasks.Go(func() error {
			do(ctx, i, m)
			return nil
		})
	}
	_ = tasks.Wait() // no task returns an error
}

// list asks every worker for sessions. Of one that does not answer there is none, and it is among the silent ones.
func (s *sessions) list(ctx context.Context, members []membership.Member, req *headwaterv1.ListSessionsRequest) (answers []*headwaterv1.ListSessionsResponse, silent []*headwaterv1.SilentWorker, _ error) {
	answers, errs := make([]*headwaterv1.ListSessionsResponse, len(members)), make([]error, len(members))
	s.ask(ctx, members, func(ctx context.Context, i int, m membership.Member) {
		answers[i], errs[i] = s.conns.List(ctx, m.Name, m.Address, req)
	})
	if err := ctx.Err(); err != nil {
		return nil, nil, err // it is not the workers' that there is no answer
	}
	for i, m := range members {
		if errs[i] != nil {
			silent = append(silent, &headwaterv1.SilentWorker{Worker: m.Name, Address: m.Address, Error: whySilent(m, errs[i])})
		}
	}
	slices.SortFunc(silent, func(a, b *headwaterv1.SilentWorker) int { return cmp.Compare(a.GetWorker(), b.GetWorker()) })
	return answers, silent, nil
}

// whySilent says why a worker did not answer, without its name.
func whySilent(m membership.Member, err error) string {
	if errors.Is(err, context.DeadlineExceeded) {
		return fmt.Sprintf("no answer within %v", askTimeout)
	}
	if e, ok := session.FromError(err); ok {
		return strings.Join(strings.Fields(e.Why.GetMessage()), " ")
	}
	return strings.TrimPrefix(status.Convert(err).Message(), fmt.Sprintf("holder %q: ", m.Name))
}

// find returns who holds a session. Where it is not remembered, all workers are asked.
func (s *sessions) find(ctx context.Context, key []byte) (*fanout.Holding, error) {
	id, err := sessionID(key)
	if err != nil {
		return nil, err
	}
	s.mu.Lock()
	h := s.holdings[id]
	s.mu.Unlock()
	if h != nil {
		return h, nil
	}
	members := s.workers()
	answers, silent, err := s.list(ctx, members, &headwaterv1.ListSessionsRequest{Sessions: [][]byte{key}})
	if err != nil {
		return nil, fmt.Errorf("find session %x: %w", key, err)
	}
	var config *headwaterv1.SessionConfig
	var holders []*headwaterv1.Holder
	for i, a := range answers {
		for _, state := range a.GetSessions() {
			if !bytes.Equal(state.GetSession(), key) {
				continue
			}
			config = state.GetConfig()
			for _, o := range state.GetHolders() {
				o.Name, o.Address = members[i].Name, members[i].Address // as they are known here
				holders = append(holders, o)
			}
		}
	}
	switch {
	case len(holders) == 0 && len(silent) > 0:
		return nil, fanout.Silent(silent, false)
	case len(holders) == 0:
		return nil, session.Errorf(headwaterv1.SessionProblem_SESSION_PROBLEM_UNKNOWN, "session %x is held by no worker", key)
	}
	layers, err := fanout.Layers(config)
	if err != nil {
		return nil, fmt.Errorf("session %x: %w", key, err)
	}
	if h, err = fanout.ParseHolding(layers, holders); err != nil {
		if len(silent) > 0 {
			return nil, fanout.Silent(silent, true)
		}
		return nil, session.Errorf(headwaterv1.SessionProblem_SESSION_PROBLEM_LOST, "session %x is not whole: %v", key, err)
	}
	s.remember(id, h)
	return h, nil
}

func (s *sessions) remember(id [16]byte, h *fanout.Holding) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for other := range s.holdings {
		if len(s.holdings) < maxHoldings {
			break
		}
		delete(s.holdings, other)
	}
	s.holdings[id] = h
}

// forget makes the next call ask the workers again.
func (s *sessions) forget(session []byte) {
	if id, err := sessionID(session); err == nil {
		s.mu.Lock()
		defer s.mu.Unlock()
		delete(s.holdings, id)
	}
}

// failed is the error of a call on a session. Its holders are asked for again where they seem to be others.
func (s *sessions) failed(session []byte, err error) error {
	if fanout.Is(err, headwaterv1.SessionProblem_SESSION_PROBLEM_LOST) || fanout.Is(err, headwaterv1.SessionProblem_SESSION_PROBLEM_UNKNOWN) {
		s.forget(session)
	}
	return statusOf(err).Err()
}

// CreateSession implements headwater.v1.SessionService.
func (s *sessions) CreateSession(ctx context.Context, req *headwaterv1.CreateSessionRequest) (*headwaterv1.CreateSessionResponse, error) {
	state, err := s.create(ctx, req)
	if err != nil {
		return nil, s.failed(req.GetSession(), err)
	}
	return &headwaterv1.CreateSessionResponse{State: state}, nil
}

func (s *sessions) create(ctx context.Context, req *headwaterv1.CreateSessionRequest) (*headwaterv1.SessionState, error) {
	id, err := sessionID(req.GetSession())
	if err != nil {
		return nil, err
	}
	if len(req.GetHeld()) != 0 {
		return nil, session.Errorf(headwaterv1.SessionProblem_SESSION_PROBLEM_INVALID, "a coordinator plans who holds what; it is not told")
	}
	// A request that comes again finds what it has made before, also at another coordinator.
	h, err := s.find(ctx, req.GetSession())
	if fanout.Is(err, headwaterv1.SessionProblem_SESSION_PROBLEM_UNKNOWN) || fanout.Is(err, headwaterv1.SessionProblem_SESSION_PROBLEM_LOST) {
		h, err = s.plan(ctx, req)
	}
	if err != nil {
		return nil, err
	}
	state, err := s.conns.Create(ctx, h, req)
	if err != nil {
		return nil, err
	}
	s.remember(id, h)
	s.c.Logger.Debug("session created", "session", fmt.Sprintf("%x", id), "holders", len(h.Holders()))
	return state, nil
}

// plan gives the session's groups to the workers that answer; see place.
func (s *sessions) plan(ctx context.Context, req *headwaterv1.CreateSessionRequest) (*fanout.Holding, error) {
	layers, err := fanout.Layers(req.GetConfig())
	if err != nil {
		return nil, session.Errorf(headwaterv1.SessionProblem_SESSION_PROBLEM_INVALID, "%v", err)
	}
	shapes := make([]shard.LayerShape, len(layers))
	for i, l := range layers {
		shapes[i] = l.LayerShape
	}
	geometry, err := shard.NewGeometry(shapes)
	if err != nil {
		return nil, err
	}
	members := s.workers()
	described, errs := make([]*headwaterv1.DescribeResponse, len(members)), make([]error, len(members))
	s.ask(ctx, members, func(ctx context.Context, i int, m membership.Member) {
		conn, err := s.conns.Use(m.Address)
		if err == nil {
			defer conn.Release()
			described[i], err = headwaterv1.NewWorkerServiceClient(conn).Describe(ctx, &headwaterv1.DescribeRequest{})
		}
		errs[i] = err
	})
	type worker struct {
		membership.Member
		*headwaterv1.DescribeResponse
	}
	var workers []worker
	for i, m := range members {
		switch {
		case status.Code(errs[i]) == codes.FailedPrecondition: // speaks another protocol: it would be left out without a word
			return nil, status.Errorf(codes.FailedPrecondition, "worker %q: %s", m.Name, oneLine(errs[i]))
		case errs[i] == nil:
			workers = append(workers, worker{m, described[i]})
		}
	}
	if len(workers) == 0 {
		if len(members) > 0 {
			return nil, status.Errorf(codes.Unavailable, "no worker answers: worker %q: %s", members[0].Name, oneLine(errs[0]))
		}
		return nil, status.Error(codes.Unavailable, "no worker has joined the cluster")
	}
	rooms := make([]room, len(workers))
	for i, w := range workers {
		budget, used := w.GetBudgetBytes(), w.GetUsedBytes()
		used -= min(used, w.GetSpareBytes())
		rooms[i] = room{shard.Worker{Name: w.Member.Name, Weight: int(w.GetWeight())}, budget, budget - min(budget, used)}
	}
	placed, err := place(geometry, placeKey(req), rooms, int(min(req.GetWorkers(), shard.MaxWorkers)))
	if err != nil {
		return nil, fmt.Errorf("plan: %w", err)
	}
	var holders []*fanout.Holder
	for _, w := range workers {
		if groups := placed[w.Member.Name]; groups != nil {
			holders = append(holders, &fanout.Holder{Name: w.Member.Name, Boot: w.GetBoot(), Address: w.Address, Groups: groups})
		}
	}
	return fanout.NewHolding(layers, holders...)
}

// TakeSession implements headwater.v1.SessionService.
func (s *sessions) TakeSession(ctx context.Context, req *headwaterv1.TakeSessionRequest) (*headwaterv1.TakeSessionResponse, error) {
	h, err := s.find(ctx, req.GetSession())
	if err == nil {
		var state *headwaterv1.SessionState
		if state, err = s.conns.Take(ctx, h, req); err == nil {
			return &headwaterv1.TakeSessionResponse{State: state}, nil
		}
	}
	return nil, s.failed(req.GetSession(), err)
}

// ForkSession implements headwater.v1.SessionService.
func (s *sessions) ForkSession(ctx context.Context, req *headwaterv1.ForkSessionRequest) (*headwaterv1.ForkSessionResponse, error) {
	child, err := sessionID(req.GetChild())
	if err != nil {
		return nil, statusOf(err).Err()
	}
	h, err := s.find(ctx, req.GetSession())
	if err == nil {
		var state *headwaterv1.SessionState
		if state, err = s.conns.Fork(ctx, h, req); err == nil {
			s.remember(child, h)
			return &headwaterv1.ForkSessionResponse{State: state}, nil
		}
	}
	return nil, s.failed(req.GetSession(), err)
}

// TruncateSession implements headwater.v1.SessionService.
func (s *sessions) TruncateSession(ctx context.Context, req *headwaterv1.TruncateSessionRequest) (*headwaterv1.TruncateSessionResponse, error) {
	h, err := s.find(ctx, req.GetSession())
	if err == nil {
		var state *headwaterv1.SessionState
		if state, err = s.conns.Truncate(ctx, h, req); err == nil {
			return &headwaterv1.TruncateSessionResponse{State: state}, nil
		}
	}
	return nil, s.failed(req.GetSession(), err)
}

// PinSession implements headwater.v1.SessionService.
func (s *sessions) PinSession(ctx context.Context, req *headwaterv1.PinSessionRequest) (*headwaterv1.PinSessionResponse, error) {
	h, err := s.find(ctx, req.GetSession())
	if err == nil {
		var state *headwaterv1.SessionState
		if state, err = s.conns.Pin(ctx, h, req); err == nil {
			return &headwaterv1.PinSessionResponse{State: state}, nil
		}
	}
	return nil, s.failed(req.GetSession(), err)
}

// DropSession implements headwater.v1.SessionService. What is left of a session that has lost holders is dropped as well.
func (s *sessions) DropSession(ctx context.Context, req *headwaterv1.DropSessionRequest) (*headwaterv1.DropSessionResponse, error) {
	if _, err := sessionID(req.GetSession()); err != nil {
		return nil, statusOf(err).Err()
	}
	var holders []*fanout.Holder
	for _, m := range s.workers() {
		holders = append(holders, &fanout.Holder{Name: m.Name, Address: m.Address})
	}
	err := s.conns.Drop(ctx, holders, req)
	if err == nil {
		s.forget(req.GetSession())
		return &headwaterv1.DropSessionResponse{}, nil
	}
	return nil, s.failed(req.GetSession(), err)
}

// ListSessions implements headwater.v1.SessionService. Workers that do not answer are named.
func (s *sessions) ListSessions(ctx context.Context, req *headwaterv1.ListSessionsRequest) (*headwaterv1.ListSessionsResponse, error) {
	members := s.workers()
	answers, silent, err := s.list(ctx, members, req)
	if err != nil {
		return nil, statusOf(fmt.Errorf("list sessions: %w", err)).Err()
	}
	resp := &headwaterv1.ListSessionsResponse{Silent: silent}
	parts := map[[16]byte][]*headwaterv1.SessionState{}
	for i, a := range answers {
		for _, cache := range a.GetCaches() {
			cache.Worker = members[i].Name
			resp.Caches = append(resp.Caches, cache)
		}
		for _, state := range a.GetSessions() {
			id, err := sessionID(state.GetSession())
			if err != nil {
				continue
			}
			for _, o := range state.GetHolders() {
				o.Name, o.Address = members[i].Name, members[i].Address
			}
			parts[id] = append(parts[id], state)
		}
	}
	for _, states := range parts {
		resp.Sessions = append(resp.Sessions, joinStates(states))
	}
	slices.SortFunc(resp.Sessions, func(a, b *headwaterv1.SessionState) int { return bytes.Compare(a.GetSession(), b.GetSession()) })
	// Each worker has told its first ones, so that the first of all are whole. Of those beyond parts may be missing.
	if limit := int(req.GetLimit()); limit > 0 && len(req.GetSessions()) == 0 && len(resp.Sessions) > limit {
		resp.Sessions = resp.Sessions[:limit]
	}
	return resp, nil
}

// joinStates makes one state of those of some holders: where they are whole with all that was promised; else, as in a list
// of all sessions, without hashes, and with the lengths that all have.
func joinStates(states []*headwaterv1.SessionState) *headwaterv1.SessionState {
	var holders []*headwaterv1.Holder
	for _, s := range states {
		holders = append(holders, s.GetHolders()...)
	}
	if config := states[0].GetConfig(); config != nil && len(holders) == len(states) {
		if layers, err := fanout.Layers(config); err == nil {
			if h, err := fanout.ParseHolding(layers, holders); err == nil {
				if all, err := h.Join(states[0].GetSession(), states); err == nil {
					return all
				}
			}
		}
	}
	all := proto.CloneOf(states[0])
	all.Holders, all.Layers, all.PageBytes, all.OwnBytes = holders, nil, 0, 0
	lengths, firsts := map[uint32]uint64{}, map[uint32]uint64{}
	for _, s := range states {
		all.PageBytes += s.GetPageBytes()
		all.OwnBytes += s.GetOwnBytes()
		for _, l := range s.GetLayers() {
			if length, ok := lengths[l.GetLayer()]; !ok || l.GetLength() < length {
				lengths[l.GetLayer()] = l.GetLength()
			}
			firsts[l.GetLayer()] = max(firsts[l.GetLayer()], l.GetFirst())
		}
	}
	for layer, length := range lengths {
		all.Layers = append(all.Layers, &headwaterv1.LayerState{Layer: layer, Length: length, First: firsts[layer]})
	}
	slices.SortFunc(all.Layers, func(a, b *headwaterv1.LayerState) int { return cmp.Compare(a.GetLayer(), b.GetLayer()) })
	return all
}

// ExportSession implements headwater.v1.SessionService.
func (s *sessions) ExportSession(req *headwaterv1.ExportSessionRequest, stream grpc.ServerStreamingServer[headwaterv1.ExportSessionResponse]) error {
	h, err := s.find(stream.Context(), req.GetSession())
	if err == nil {
		err = s.conns.Export(stream.Context(), h, req, stream.Send)
	}
	if err != nil {
		return s.failed(req.GetSession(), err)
	}
	return nil
}
