package kvcache

import (
	"fmt"
	"slices"

	"headwater.example/attention"
)

// CreateRequest asks for a session.
type CreateRequest struct {
	Session SessionID
	Epoch   Epoch
	Config  Config
	Held    []HeldLayer
	// Tokens that the session begins with. It begins with as many whole pages of them as are held, but not with all.
	Tokens []uint32
	// Begin [some layers held, ascending] are layers that begin as those of another session are. No prefix of Tokens is looked
	// for then, they are only told.
	Begin []BeginLayer
	// Call is a random id of the call, with which Drop drops only what this call has made; 0 is none.
	Call uint64
	// Metered is of a tenant's own call: its quota holds.
	Metered bool
}

// Create makes a session, or answers for the one that the same request made before. The store keeps the config and the
// holding.
func (st *Store) Create(req CreateRequest) (State, error) {
	if req.Epoch.Counter < 1 {
		return State{}, refuse(Invalid, "session %s: epoch 0: epochs start at 1", req.Session)
	}
	sh, err := newShape(req.Config, req.Held)
	if err != nil {
		err.Rule = fmt.Sprintf("session %s: %s", req.Session, err.Rule)
		return State{}, err
	}
	s := &session{
		id: req.Session, shape: sh, call: req.Call, busy: newGate(),
		identities: make([]identity, len(sh.layers)), before: make([]uint64, sh.shards),
		lengths: make([]int, len(sh.layers)), freed: make([]int, len(sh.layers)), hashes: make([]uint64, sh.shards),
		tokens: slices.Clone(req.Tokens),
	}
	how, err := s.begin(req)
	if err != nil {
		err.Rule = fmt.Sprintf("session %s: %s", req.Session, err.Rule)
		return State{}, err
	}
	s.start(req.Epoch)
	// No one else knows it yet; a session is locked before the store.
	s.mu.Lock()
	defer s.mu.Unlock()
	st.mu.Lock()
	before, err := st.admitLocked(s, how, req.Metered)
	if err == nil && before == nil {
		for i := range sh.layers {
			sh.layers[i].class = st.pages.class(sh.layers[i].Layout.PageBytes())
		}
		if s.begun == nil && !sh.config.Unshared {
			st.matchLocked(s)
		}
	}
	st.unlock()
	switch {
	case err != nil:
		return State{}, err
	case before != nil:
		return st.again(before, req.Epoch)
	}
	return st.state(s), nil
}

// admitLocked adds a new session, or returns the one that an equal request made before.
func (st *Store) admitLocked(s *session, how made, metered bool) (before *session, err *Error) {
	if before := st.sessions[s.id]; before != nil {
		if !before.shape.equal(s.shape) || before.made != how {
			return nil, refuse(Exists, "session %s was made otherwise", s.id)
		}
		return before, nil
	}
	if _, ended := st.tombstones[s.id]; ended {
		return nil, refuse(Exists, "session %s has ended, and its id is not used again", s.id)
	}
	if metered {
		if err := st.maySessionLocked(s); err != nil {
			return nil, err
		}
	}
	if err := st.reserveSessionLocked(s); err != nil {
		return nil, err
	}
	if len(st.sessions) >= st.config.MaxSessions && !st.evictSessionLocked(st.givingLocked(s.claimant(), int64(st.config.MaxSessions), sessionsOf)) {
		st.freeSessionLocked(s)
		return nil, refuse(OverBudget, "session %s: %d sessions are held, the most that are allowed: drop one, or try again once one has gone unused for its TTL", s.id, len(st.sessions))
	}
	s.made, s.created = how, st.config.Now()
	s.used, s.ttl = s.created, st.config.TTL
	if ttl := s.shape.config.TTL; ttl > 0 {
		s.ttl = min(s.ttl, ttl)
	}
	st.sessions[s.id] = s
	s.shape.account.held++
	s.partLocked(s.epoch)
	st.expiry.add(s)
	st.idle.add(s)
	return nil, nil
}

// reserveSessionLocked takes room in the budget for a session, and for its shape where it is the first to have it. Where there is none it
// makes some.
func (st *Store) reserveSessionLocked(s *session) *Error {
	sh := s.shape
	s.bytes = s.heap()
	need := s.bytes
	if sh.sessions++; sh.sessions == 1 {
		need += sh.bytes
	}
	for evicted := false; ; {
		err := st.budget.Reserve(need)
		if err == nil {
			st.heap += need
			st.openAccountLocked(sh)
			return nil
		}
		if !st.evictForLocked(err, need, s.claimant(), &evicted) {
			sh.sessions--
			return refuse(OverBudget, "session %s: %d bytes are needed for its %d shards in %d layers: %v: drop a session, or try again later", s.id, need, sh.shards, len(sh.config.Layers), err)
		}
	}
}

// freeSessionLocked returns the reservation of a session that has ended.
func (st *Store) freeSessionLocked(s *session) {
	sh := s.shape
	st.heap -= s.bytes
	st.budget.Release(s.bytes)
	if sh.sessions--; sh.sessions > 0 {
		return
	}
	if sh.rows > 0 {
		st.lone += sh.bytes // until its last row is gone, which a prefix or a view may have
		return
	}
	st.freeShapeLocked(sh)
}

// freeShapeLocked returns the reservation of a shape that nothing uses any more.
func (st *Store) freeShapeLocked(sh *shape) {
	st.closeAccountLocked(sh)
	st.heap -= sh.bytes
	st.budget.Release(sh.bytes)
}

// again answers a request, under epoch e, that has made a session before.
func (st *Store) again(before *session, e Epoch) (State, error) {
	s, err := st.open(before.id, true)
	if err != nil {
		return State{}, err
	}
	defer s.mu.Unlock()
	switch {
	case s.knownTo(e):
	case e.compare(s.epoch) < 0:
		return State{}, s.stale(e)
	default:
		return State{}, refuse(Exists, "session %s was made under another epoch", s.id)
	}
	return st.state(s), nil
}

// matchLocked lets a new session begin with the rows that its tokens find.
func (st *Store) matchLocked(s *session) {
	x := &st.prefixes
	st.counters.asked += uint64(len(s.tokens))
	key := s.shape.root
	var e *entry
	for n := 0; (n+1)*attention.PageLen < len(s.tokens); n++ {
		key = key.next(s.tokens[n*attention.PageLen:][:attention.PageLen])
		next := x.entries[key]
		if next == nil {
			break
		}
		e = next
		st.shareLocked(e.row)
		s.rows = append(s.rows, e.row)
	}
	if e == nil {
		return
	}
	length := len(s.rows) * attention.PageLen
	s.keyed = len(s.rows)
	copy(s.hashes, e.row.hashes)
	for l := range s.shape.layers {
		h := &s.shape.layers[l]
		s.lengths[l] = length
		st.counters.saved += uint64(h.stored(0, length) * h.rowBytes())
	}
	// What has left a layer's window is left with the first append: until then the session may be cut to a shorter prefix,
	// where another holder has found less.
	st.counters.hits += uint64(length)
}
