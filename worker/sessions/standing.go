package sessions

import (
	"sync"
	"sync/atomic"

	"headwater.example/internal/rpc"
)

const (
	// maxLanes bounds the open lanes, tenantLanes those of one tenant.
	maxLanes    = 4096
	tenantLanes = maxLanes / 2
	// maxQueuedTokens bounds the query tokens that wait: those of the tenants that wait, each to an equal part.
	maxQueuedTokens = 1 << 20
)

// standings are what tenants have at the lanes of a worker, of those that have a lane.
type standings struct {
	waiting atomic.Int64 // tenants of which tokens wait

	mu    sync.Mutex // guards what follows
	lanes int64
	of    map[string]*standing
}

// standing is one tenant's.
type standing struct {
	tenant string // "" is who is none
	lanes  int
	tokens atomic.Int64 // query tokens that wait
}

// enter opens a lane.
func (a *standings) enter(worker, tenant string) (*standing, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	s := a.of[tenant]
	switch {
	case a.lanes >= maxLanes:
		return nil, rpc.Full("worker %s: %d lanes are open, the most that are allowed: close one, or use one for several sessions", worker, maxLanes)
	case s == nil:
		s = &standing{tenant: tenant}
		if a.of == nil {
			a.of = map[string]*standing{}
		}
		a.of[tenant] = s
	case tenant != "" && s.lanes >= tenantLanes:
		return nil, rpc.Full("worker %s: tenant %s has %d lanes open, the most that one may have here: close one, or use one for several sessions", worker, tenant, tenantLanes)
	}
	a.lanes++
	s.lanes++
	return s, nil
}

// leave closes one.
func (a *standings) leave(s *standing) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.lanes--
	if s.lanes--; s.lanes == 0 {
		delete(a.of, s.tenant)
	}
}

// count returns how many lanes are open.
func (a *standings) count() int64 {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.lanes
}

// queue counts tokens that wait, and says whether the tenant has more than its part. What it has waiting alone is never too much.
func (a *standings) queue(s *standing, tokens int64) (tooMany bool) {
	if tokens == 0 {
		return false
	}
	has := s.tokens.Add(tokens)
	if has == tokens {
		a.waiting.Add(1)
		return false
	}
	return has > maxQueuedTokens/max(a.waiting.Load(), 1)
}

// dequeue counts tokens that wait no longer.
func (a *standings) dequeue(s *standing, tokens int64) {
	if tokens > 0 && s.tokens.Add(-tokens) == 0 {
		a.waiting.Add(-1)
	}
}
