package sessions

import (
	"context"

	"google.golang.org/protobuf/proto"

	"headwater.example/internal/kvcache"
	headwaterv1 "headwater.example/proto/headwater/v1"
)

// ListSessions says what is held, and how full the cache is.
func (s *Service) ListSessions(_ context.Context, m *headwaterv1.ListSessionsRequest) (*headwaterv1.ListSessionsResponse, error) {
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
		for _, state := range s.m.Store.List(after, int(m.GetLimit())) {
			resp.Sessions = append(resp.Sessions, s.state(state, false))
		}
	default:
		for _, b := range m.GetSessions() {
			id, err := sessionID("session", b)
			if err != nil {
				return nil, err
			}
			if state, err := s.m.Store.State(id); err == nil { // else it is not held
				resp.Sessions = append(resp.Sessions, s.state(state, true))
			}
		}
	}
	return resp, nil
}

func (s *Service) cache() *headwaterv1.CacheState {
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
		Lanes:            uint64(max(s.lanes.Load(), 0)),
		Sessions:         uint64(c.Sessions),
		RoomBytes:        proto.Uint64(uint64(c.RoomBytes)),
	}
	for _, p := range c.Pages {
		m.Pages = append(m.Pages, &headwaterv1.PageState{PageBytes: uint64(p.Bytes), Used: uint64(p.Used), Free: uint64(p.Free)})
	}
	return m
}
