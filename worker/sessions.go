package worker

import (
	"context"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"

	"headwater.example/attention"
	"headwater.example/internal/kvcache"
	"headwater.example/internal/rpc"
	"headwater.example/internal/session"
	headwaterv1 "headwater.example/proto/headwater/v1"
	"headwater.example/shard"
	"headwater.example/tensor"
)

// The problems that a worker finds itself; the others are the store's.
const (
	problemInvalid   = headwaterv1.SessionProblem_SESSION_PROBLEM_INVALID
	problemOver      = headwaterv1.SessionProblem_SESSION_PROBLEM_OVER_BUDGET
	problemNotFinite = headwaterv1.SessionProblem_SESSION_PROBLEM_NOT_FINITE
	problemBusy      = headwaterv1.SessionProblem_SESSION_PROBLEM_BUSY
)

// sessions serves SessionService on a worker's store, budget and threads.
type sessions struct {
	w     *Worker
	store *kvcache.Store

	lanes        atomic.Int64 // that are open
	queuedSteps  atomic.Int64 // that wait
	queuedTokens atomic.Int64 // query tokens of these
}

// CreateSession makes a session, or answers for the one that the same request made before.
func (s *sessions) CreateSession(_ context.Context, m *headwaterv1.CreateSessionRequest) (*headwaterv1.CreateSessionResponse, error) {
	if err := s.ready(); err != nil {
		return nil, err
	}
	req := kvcache.CreateRequest{Tokens: m.GetTokens()}
	var err error
	if req.Session, err = sessionID("session", m.GetSession()); err != nil {
		return nil, err
	}
	if req.Epoch, err = readEpoch("epoch", m.GetEpoch()); err != nil {
		return nil, err
	}
	if req.Config, err = readConfig(m.GetConfig()); err != nil {
		return nil, err
	}
	for _, h := range m.GetHeld() {
		held := kvcache.HeldLayer{Layer: shard.Layer(h.GetLayer())}
		for _, g := range h.GetGroups() {
			held.Groups = append(held.Groups, shard.Group(g))
		}
		req.Held = append(req.Held, held)
	}
	for _, b := range m.GetBegin() {
		req.Begin = append(req.Begin, kvcache.BeginLayer{Layer: shard.Layer(b.GetLayer()), First: b.GetFirst(), Hashes: b.GetHashes(), Length: b.GetLength()})
	}
	state, err := s.store.Create(req)
	if err != nil {
		return nil, refusal(err)
	}
	return &headwaterv1.CreateSessionResponse{State: s.state(state, true)}, nil
}

// TakeSession steps a session's epoch.
func (s *sessions) TakeSession(_ context.Context, m *headwaterv1.TakeSessionRequest) (*headwaterv1.TakeSessionResponse, error) {
	if err := s.ready(); err != nil {
		return nil, err
	}
	id, err := sessionID("session", m.GetSession())
	if err != nil {
		return nil, err
	}
	epoch, err := readEpoch("epoch", m.GetEpoch())
	if err != nil {
		return nil, err
	}
	var expect []kvcache.LayerState
	for _, l := range m.GetExpect() {
		expect = append(expect, kvcache.LayerState{Layer: shard.Layer(l.GetLayer()), Length: l.GetLength(), Hashes: l.GetHashes()})
	}
	state, err := s.store.Take(id, epoch, expect, m.GetTruncations(), m.GetCheckOnly())
	if err != nil {
		return nil, refusal(err)
	}
	if m.GetCheckOnly() {
		return &headwaterv1.TakeSessionResponse{}, nil
	}
	return &headwaterv1.TakeSessionResponse{State: s.state(state, true)}, nil
}

// ForkSession makes a session that begins as another one.
func (s *sessions) ForkSession(_ context.Context, m *headwaterv1.ForkSessionRequest) (*headwaterv1.ForkSessionResponse, error) {
	if err := s.ready(); err != nil {
		return nil, err
	}
	req := kvcache.ForkRequest{Truncations: m.GetTruncations(), Position: -1}
	var err error
	if req.Session, err = sessionID("session", m.GetSession()); err != nil {
		return nil, err
	}
	if req.Epoch, err = readEpoch("epoch", m.GetEpoch()); err != nil {
		return nil, err
	}
	if req.Child, err = sessionID("child", m.GetChild()); err != nil {
		return nil, err
	}
	if req.ChildEpoch, err = readEpoch("child_epoch", m.GetChildEpoch()); err != nil {
		return nil, err
	}
	if m.Position != nil {
		// What is beyond all positions is refused as that is.
		req.Position = int64(min(m.GetPosition(), maxPositions+1))
	}
	state, err := s.store.Fork(req)
	if err != nil {
		return nil, refusal(err)
	}
	return &headwaterv1.ForkSessionResponse{State: s.state(state, true)}, nil
}

// TruncateSession takes positions back.
func (s *sessions) TruncateSession(_ context.Context, m *headwaterv1.TruncateSessionRequest) (*headwaterv1.TruncateSessionResponse, error) {
	id, err := sessionID("session", m.GetSession())
	if err != nil {
		return nil, err
	}
	epoch, err := readEpoch("epoch", m.GetEpoch())
	if err != nil {
		return nil, err
	}
	var state kvcache.State
	if len(m.GetLengths()) > 0 || m.GetCheckOnly() {
		state, err = s.store.TruncateLayers(id, epoch, m.GetTruncations(), m.GetLengths(), m.GetCheckOnly())
	} else {
		state, err = s.store.Truncate(id, epoch, m.GetTruncations(), m.GetPosition())
	}
	if err != nil {
		return nil, refusal(err)
	}
	if m.GetCheckOnly() {
		return &headwaterv1.TruncateSessionResponse{}, nil
	}
	return &headwaterv1.TruncateSessionResponse{State: s.state(state, true)}, nil
}

// PinSession pins a session, or no longer.
func (s *sessions) PinSession(_ context.Context, m *headwaterv1.PinSessionRequest) (*headwaterv1.PinSessionResponse, error) {
	id, err := sessionID("session", m.GetSession())
	if err != nil {
		return nil, err
	}
	state, err := s.store.Pin(id, m.GetPinned())
	if err != nil {
		return nil, refusal(err)
	}
	return &headwaterv1.PinSessionResponse{State: s.state(state, true)}, nil
}

// DropSession ends a session.
func (s *sessions) DropSession(_ context.Context, m *headwaterv1.DropSessionRequest) (*headwaterv1.DropSessionResponse, error) {
	id, err := sessionID("session", m.GetSession())
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
	if err := s.store.Drop(id, epoch); err != nil {
		return nil, refusal(err)
	}
	return &headwaterv1.DropSessionResponse{}, nil
}

// ListSessions says what is held, and how full the cache is.
func (s *sessions) ListSessions(_ context.Context, m *headwaterv1.ListSessionsRequest) (*headwaterv1.ListSessionsResponse, error) {
	resp := &headwaterv1.ListSessionsResponse{Caches: []*headwaterv1.CacheState{s.cache()}}
	switch {
	case m.GetCachesOnly():
	case len(m.GetSessions()) == 0:
		var after *kvcache.SessionID
		if len(m.GetAfter()) > 0 {
			id, err := sessionID("after", m.GetAfter())
			if err != nil {
				return nil, err
			}
			after = &id
		}
		for _, state := range s.store.List(after, int(m.GetLimit())) {
			resp.Sessions = append(resp.Sessions, s.state(state, false))
		}
	default:
		for _, b := range m.GetSessions() {
			id, err := sessionID("session", b)
			if err != nil {
				return nil, err
			}
			if state, err := s.store.State(id); err == nil { // else it is not held
				resp.Sessions = append(resp.Sessions, s.state(state, true))
			}
		}
	}
	return resp, nil
}

func (s *sessions) cache() *headwaterv1.CacheState {
	c := s.store.Cache()
	m := &headwaterv1.CacheState{
		Worker:           s.w.cfg.Name,
		UsedBytes:        uint64(c.UsedBytes),
		FreeBytes:        uint64(c.FreeBytes),
		RowBytes:         proto.Uint64(uint64(c.RowBytes)),
		SessionBytes:     proto.Uint64(uint64(c.SessionBytes)),
		BudgetBytes:      uint64(c.BudgetBytes),
		PrefixBytes:      uint64(c.PrefixBytes),
		PrefixAsked:      c.PrefixAsked,
		PrefixHits:       c.PrefixHits,
		PrefixSavedBytes: c.PrefixSavedBytes,
		Evicted:          c.Evicted,
		QueuedSteps:      uint64(max(s.queuedSteps.Load(), 0)),
		QueuedTokens:     uint64(max(s.queuedTokens.Load(), 0)),
		Lanes:            uint64(max(s.lanes.Load(), 0)),
		Sessions:         uint64(c.Sessions),
		RoomBytes:        proto.Uint64(uint64(c.RoomBytes)),
	}
	for _, p := range c.Pages {
		m.Pages = append(m.Pages, &headwaterv1.PageState{PageBytes: uint64(p.Bytes), Used: uint64(p.Used), Free: uint64(p.Free)})
	}
	return m
}

// ExportSession sends keys and values of one layer, in blocks of rpc.BlockBytes.
func (s *sessions) ExportSession(m *headwaterv1.ExportSessionRequest, stream grpc.ServerStreamingServer[headwaterv1.ExportSessionResponse]) error {
	id, err := sessionID("session", m.GetSession())
	if err != nil {
		return err
	}
	state, err := s.store.State(id)
	if err != nil {
		return refusal(err)
	}
	layer, groups, err := s.store.Layer(id, shard.Layer(m.GetLayer()))
	if err != nil {
		return refusal(err)
	}
	var length uint64
	for _, l := range state.Layers {
		if l.Layer == shard.Layer(m.GetLayer()) {
			length = l.Length
		}
	}
	start, count := m.GetStart(), m.GetCount()
	if start > length || count > length-start {
		return invalidSession("session %s: layer %d has %d positions, not %d from %d on", id, m.GetLayer(), length, count, start)
	}
	if count == 0 {
		count = length - start
	}
	l := layer.Layout
	each := max(rpc.BlockBytes/(l.KRowBytes()+l.VRowBytes()+8), 1)
	for _, g := range groups {
		for at := start; at < start+count; {
			n := int(min(uint64(each), start+count-at))
			rows := attention.Rows{K: make([]byte, n*l.KRowBytes()), V: make([]byte, n*l.VRowBytes())}
			if l.DType() == tensor.I8 {
				rows.KScale, rows.VScale = make([]float32, n), make([]float32, n)
			}
			before, after, err := s.store.Export(id, shard.Layer(m.GetLayer()), g, int(at), n, rows)
			if err != nil {
				return refusal(err)
			}
			block := &headwaterv1.ExportSessionResponse{
				Group: uint32(g), Start: at, Count: uint32(n), K: rows.K, V: rows.V,
				KScale: floatBytes(rows.KScale), VScale: floatBytes(rows.VScale), HashBefore: before, HashAfter: after,
			}
			if m.GetTokens() {
				if block.Tokens, err = s.store.Tokens(id, int(at), n); err != nil {
					return refusal(err)
				}
			}
			if err := stream.Send(block); err != nil {
				return err
			}
			at += uint64(n)
		}
	}
	return nil
}

// ready refuses new sessions and drivers while the worker drains.
func (s *sessions) ready() error {
	s.w.mu.Lock()
	defer s.w.mu.Unlock()
	if s.w.draining {
		return session.Errorf(problemBusy, "worker %s is stopping and takes no new work", s.w.cfg.Name)
	}
	return nil
}

// reserve takes n bytes of the budget, for which it may drop what may be dropped.
func (s *sessions) reserve(n int64) error {
	err := s.w.budget.Reserve(n)
	if err != nil && s.store.Reclaim(n) {
		err = s.w.budget.Reserve(n)
	}
	if err != nil {
		return session.Errorf(problemOver, "%d bytes for a step and its answer: %v: send it again later, or cut it into fewer tokens", n, err)
	}
	return nil
}

// Expire drops the sessions whose time without use is over, and memory that no job has used since the tick before the last, at
// each tick, until ctx ends.
func (w *Worker) Expire(ctx context.Context, ticks <-chan time.Time) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticks:
			w.budget.Age()
			if n := w.sessions.store.Expire(); n > 0 {
				w.log.Info("sessions expired", "count", n)
			}
		}
	}
}
