package kvcache

import (
	"context"
	"fmt"
	"sync"
	"time"

	"headwater.example/internal/quota"
)

// StoreConfig is the config of a store.
type StoreConfig struct {
	// Budget is the budget for pages; others may share it.
	Budget *Budget
	// TTL is how long a session may go unused before it may be dropped for others, and the most that a session may ask for;
	// 0 is an hour.
	TTL time.Duration
	// MaxSessions bounds the sessions held, 0 is 65,536.
	MaxSessions int
	// Now is the clock, nil is time.Now.
	Now func() time.Time
	// Quotas bounds what tenants' own calls make; nil bounds nothing.
	Quotas *quota.Book
}

// Store holds the sessions of one worker: for each the pages of the groups that are held. All methods may be called at the
// same time; calls on one session wait for each other, so their order is the callers' to keep. Each fails with an *Error,
// or with that of its context, and then has changed nothing, but that pages which might be evicted may be gone. A store makes no goroutine and keeps
// nothing that it is given but configs.
//
// The order of locks is session.busy, session.mu, Store.mu, and the Budget's own last. A holder of Store.mu only tries those of a
// session. A function whose name ends in Locked needs Store.mu; a method of session, and a function that is given one, needs
// the session's locks unless it says otherwise.
type Store struct {
	config StoreConfig
	budget *Budget

	mu         sync.Mutex // guards what follows, the rows, and those fields of a session that say so
	pages      *pages
	sessions   map[SessionID]*session
	tombstones map[SessionID]struct{}
	ended      []SessionID // a ring of the tombstones
	endedAt    int
	expiry     expiry // the sessions that are not pinned, by their TTL
	idle       expiry // and by idleFor, but those that are parked
	lanes      map[LaneID]*openLane
	accounts   map[string]*account // of tenants that have anything
	prefixes   prefixes
	counters   counters
	rows       int64      // bytes that are reserved for rows, beside their pages
	heap       int64      // bytes that are reserved for sessions and shapes
	lone       int64      // of these for shapes that no session has
	encoders   []*encoder // in no use
}

type counters struct {
	asked, hits, saved, evicted uint64
}

// NewStore makes an empty store.
func NewStore(config StoreConfig) *Store {
	if config.TTL <= 0 {
		config.TTL = time.Hour
	}
	if config.MaxSessions <= 0 {
		config.MaxSessions = 1 << 16
	}
	if config.Now == nil {
		config.Now = time.Now
	}
	return &Store{
		config:     config,
		budget:     config.Budget,
		pages:      newPages(config.Budget, config.Now),
		sessions:   make(map[SessionID]*session),
		tombstones: make(map[SessionID]struct{}),
		prefixes:   newPrefixes(),
		lanes:      make(map[LaneID]*openLane),
		accounts:   make(map[string]*account),
		expiry:     expiry{place: func(s *session) *place { return &s.place }, after: func(s *session) time.Duration { return s.ttl }},
		idle:       expiry{place: func(s *session) *place { return &s.resting }, after: func(s *session) time.Duration { return min(s.ttl, idleFor) }},
	}
}

// unlock ends a section under mu and unmaps the arenas that it has emptied.
func (st *Store) unlock() {
	emptied := st.pages.emptied
	st.pages.emptied = nil
	st.mu.Unlock()
	settle(st.budget, emptied)
}

// find returns a session that is held.
func (st *Store) find(id SessionID, use bool) (*session, *Error) {
	st.mu.Lock()
	defer st.mu.Unlock()
	s := st.sessions[id]
	if s == nil {
		return nil, st.unknown(id)
	}
	if use {
		s.used = st.config.Now()
	}
	return s, nil
}

// open returns a session to look at, with its lock mu taken.
func (st *Store) open(id SessionID, use bool) (*session, *Error) {
	s, err := st.find(id, use)
	if err != nil {
		return nil, err
	}
	s.mu.Lock()
	if s.gone {
		s.mu.Unlock()
		return nil, st.unknown(id)
	}
	return s, nil
}

// hold returns a session to change, with both of its locks taken. It waits for a pending append as long as ctx lasts.
func (st *Store) hold(ctx context.Context, id SessionID, use bool) (*session, error) {
	s, err := st.find(id, use)
	if err != nil {
		return nil, err
	}
	if err := s.busy.lock(ctx); err != nil {
		return nil, fmt.Errorf("session %s: %w", id, err)
	}
	s.mu.Lock()
	if s.gone {
		s.unlock()
		return nil, st.unknown(id)
	}
	return s, nil
}

// drive holds a session for the lane of the epoch.
func (st *Store) drive(ctx context.Context, id SessionID, e Epoch) (*session, error) {
	s, err := st.hold(ctx, id, true)
	if err != nil {
		return nil, err
	}
	if !s.drivenBy(e) {
		defer s.unlock()
		return nil, s.stale(e)
	}
	s.serve()
	return s, nil
}

func (st *Store) unknown(id SessionID) *Error {
	return refuse(Unknown, "session %s is not held here", id)
}

// Close drops all sessions and prefixes. Views that are not released yet keep their reservations.
func (st *Store) Close() {
	for _, state := range st.List() {
		_ = st.Drop(context.Background(), state.Session, nil, 0, 0) // It fails only where the session has ended.
	}
	st.mu.Lock()
	for _, r := range st.prefixes.clear() {
		st.releaseLocked(r, nil, 0)
	}
	st.pages.closed = true
	st.pages.unkeep(st.config.Now())
	st.unlock()
}
