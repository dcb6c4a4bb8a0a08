package sessions

import (
	"context"
	"errors"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"headwater.example/internal/kvcache"
	"headwater.example/internal/membership"
	"headwater.example/internal/rpc"
	headwaterv1 "headwater.example/proto/headwater/v1"
)

// maxListBytes bounds the answer to ListSessions, maxListed the sessions that one call may name.
const (
	maxListBytes = 16 << 20
	maxListed    = 1 << 16
)

// ListSessions says what is held, and how full the cache is. A session that is named twice is told once. An answer is whole or
// refused: a client that got a part would take the others for not held.
func (s *Service) ListSessions(ctx context.Context, m *headwaterv1.ListSessionsRequest) (*headwaterv1.ListSessionsResponse, error) {
	caller := rpc.CallerOf(ctx)
	resp := &headwaterv1.ListSessionsResponse{Caches: []*headwaterv1.CacheState{s.Cache()}}
	if !caller.Unbound {
		veil(resp.Caches[0])
	}
	if caller.Session != nil && m.GetPrefix() != nil {
		return nil, status.Error(codes.PermissionDenied, "the caller's capability is for one session, and prefixes are of all")
	}
	if m.GetCachesOnly() {
		var err error
		resp.Prefixes, err = s.prefixes(ctx, m.GetPrefix())
		return resp, err
	}
	ids, err := s.asked(m, caller)
	if err != nil {
		return nil, err
	}
	size, where := 0, s.whereabouts(m)
	for _, id := range ids {
		if ctx.Err() != nil {
			return nil, status.FromContextError(ctx.Err()).Err()
		}
		if s.admit(ctx, id) != nil {
			continue // For this caller it is not held.
		}
		told, err := s.tell(ctx, id, detailOf(m))
		if err != nil {
			return nil, err
		}
		if told == nil {
			continue // It is not held.
		}
		told.Others = s.others(told.GetEpoch(), where)
		if size += proto.Size(told); size > maxListBytes {
			return nil, invalidSession("the states of %d sessions exceed %d bytes: name fewer, or ask for pages by a smaller limit and after", len(ids), maxListBytes)
		}
		resp.Sessions = append(resp.Sessions, told)
	}
	return resp, nil
}

// prefixes answers a PrefixQuery, or returns nil if it is nil. Prefixes that do not fit the answer are left out: the
// coordinator then finds fewer.
func (s *Service) prefixes(ctx context.Context, m *headwaterv1.PrefixQuery) ([]*headwaterv1.PrefixHolding, error) {
	if m == nil {
		return nil, nil
	}
	config, err := readConfig(ctx, m.GetConfig())
	if err != nil {
		return nil, err
	}
	var told []*headwaterv1.PrefixHolding
	size := 0
	for _, found := range s.m.Store.Prefixes(&config, m.GetTokens()) {
		one := &headwaterv1.PrefixHolding{Layers: writeHeld(config.Layers, found.Held), Positions: uint64(found.Positions)}
		if size += proto.Size(one); size > maxListBytes {
			break
		}
		told = append(told, one)
	}
	return told, nil
}

// asked returns the sessions that a request asks for, each once.
func (s *Service) asked(m *headwaterv1.ListSessionsRequest, caller rpc.Caller) ([]kvcache.SessionID, error) {
	if n := len(m.GetSessions()); n > maxListed {
		return nil, invalidSession("%d sessions are named, at most %d are allowed", n, maxListed)
	}
	var ids []kvcache.SessionID
	seen := make(map[kvcache.SessionID]bool, len(m.GetSessions()))
	for _, b := range m.GetSessions() {
		id, err := sessionID("session", b)
		if err != nil {
			return nil, err
		}
		if !seen[id] {
			seen[id] = true
			ids = append(ids, id)
		}
	}
	if len(ids) > 0 {
		return ids, nil
	}
	var after *kvcache.SessionID
	if len(m.GetAfter()) > 0 {
		id, err := sessionID("after", m.GetAfter())
		if err != nil {
			return nil, err
		}
		after = &id
	}
	if caller.Session != nil {
		return []kvcache.SessionID{*caller.Session}, nil
	}
	if caller.Unbound {
		return s.m.Store.IDs(after, int(m.GetLimit()), nil), nil
	}
	return s.m.Store.IDs(after, int(m.GetLimit()), caller.Owns), nil
}

// detailOf is how much a request asks for of each session.
func detailOf(m *headwaterv1.ListSessionsRequest) detail {
	switch {
	case len(m.GetSessions()) == 0:
		return listed
	case m.GetHoldersOnly():
		return holders
	}
	return whole
}

// tell says what is held of a session, nil if it is not held. Its whole state is one between its steps, for which it waits.
func (s *Service) tell(ctx context.Context, id kvcache.SessionID, told detail) (*headwaterv1.SessionState, error) {
	if told != whole {
		state, err := s.m.Store.Peek(id)
		if err != nil {
			return nil, nil
		}
		return s.state(state, told), nil
	}
	state, err := s.m.Store.State(ctx, id)
	var refused *kvcache.Error
	switch {
	case errors.As(err, &refused):
		return nil, nil
	case err != nil:
		return nil, err
	}
	return s.state(state, whole), nil
}

// whereabouts returns the addresses of the cluster's workers by name, if a request asks where the others are that hold a session.
func (s *Service) whereabouts(m *headwaterv1.ListSessionsRequest) map[string]string {
	if !m.GetOthers() || !m.GetHoldersOnly() || s.members == nil {
		return nil
	}
	where := map[string]string{}
	for _, member := range s.members() {
		if member.Role == membership.RoleWorker {
			where[member.Name] = member.Address
		}
	}
	return where
}

// others returns those that an epoch names beside this worker and whose addresses are known.
func (s *Service) others(epoch *headwaterv1.Epoch, where map[string]string) (others []*headwaterv1.Holder) {
	for _, name := range epoch.GetMembers() {
		if address, ok := where[name]; ok && name != s.m.Name {
			others = append(others, &headwaterv1.Holder{Name: name, Address: address})
		}
	}
	return others
}

// veil takes out of a cache's state what tells a tenant of the others: how much they hold, find again and have waiting.
func veil(m *headwaterv1.CacheState) {
	m.Sessions, m.Lanes, m.QueuedSteps, m.QueuedTokens, m.Evicted, m.Pages = 0, 0, 0, 0, 0, nil
	m.PrefixBytes, m.PrefixAsked, m.PrefixHits, m.PrefixSavedBytes = 0, 0, 0, 0
}

// Cache says how full the cache is, and what waits.
func (s *Service) Cache() *headwaterv1.CacheState {
	c := s.m.Store.Cache()
	m := &headwaterv1.CacheState{
		Worker:           s.m.Name,
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
		Lanes:            uint64(s.standings.count()),
		Sessions:         uint64(c.Sessions),
		RoomBytes:        proto.Uint64(uint64(c.RoomBytes)),
	}
	for _, p := range c.Pages {
		m.Pages = append(m.Pages, &headwaterv1.PageState{PageBytes: uint64(p.Bytes), Used: uint64(p.Used), Free: uint64(p.Free)})
	}
	return m
}
