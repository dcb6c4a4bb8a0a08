package kvcache

import (
	"bytes"
	"context"
	"slices"

	"headwater.example/attention"
	"headwater.example/shard"
)

// State returns what is held of a session once the append that is pending, if there is one, is committed or aborted. It does not
// count as use.
func (st *Store) State(ctx context.Context, id SessionID) (State, error) {
	s, err := st.hold(ctx, id, false)
	if err != nil {
		return State{}, err
	}
	defer s.unlock()
	return st.state(s), nil
}

// Peek returns what is held of a session as it was before the append that is pending, and waits for nothing. It does not count as
// use.
func (st *Store) Peek(id SessionID) (State, error) {
	s, err := st.open(id, false)
	if err != nil {
		return State{}, err
	}
	defer s.mu.Unlock()
	return st.state(s), nil
}

// Layer returns a layer's config and its groups that are held, ascending. Both are not to be changed. It counts as use, so that a
// step whose memory is made room for does not drop its own session. At is that of the call's epoch.
func (st *Store) Layer(id SessionID, layer shard.Layer, at uint64) (*shard.LayerSpec, []shard.Group, error) {
	s, err := st.open(id, true)
	if err != nil {
		return nil, nil, err
	}
	defer s.mu.Unlock()
	if at != 0 && (at != s.epoch.Counter || s.epoch.Closed) { // its groups may be others
		return nil, nil, s.stale(Epoch{Counter: at})
	}
	l, held := s.shape.layer(layer)
	if !held {
		return nil, nil, refuse(Invalid, "session %s: layer %d: it is not held here", id, layer).at(layer, 0)
	}
	h := &s.shape.layers[l]
	return &h.LayerSpec, h.groups, nil
}

// Pin keeps a session from being dropped for want of room or use, or no longer.
func (st *Store) Pin(id SessionID, pinned bool) (State, error) {
	s, err := st.open(id, true)
	if err != nil {
		return State{}, err
	}
	defer s.mu.Unlock()
	s.pinned = pinned
	if !pinned {
		st.mu.Lock()
		st.expiry.add(s)
		if s.parked == nil {
			st.idle.add(s)
		}
		st.mu.Unlock()
	}
	return st.state(s), nil
}

// Admit refuses a session of a tenant that is not among one's own, as one that is not held. Of one that is not held it says nothing.
func (st *Store) Admit(id SessionID, own func(tenant string) bool) error {
	st.mu.Lock()
	defer st.mu.Unlock()
	if s := st.sessions[id]; s != nil && !own(s.shape.config.Tenant) {
		return st.unknown(id)
	}
	return nil
}

// IDs returns the ids of the sessions after an id, nil is of all, ascending: at most limit of them, 0 is no limit. They are of
// one's own tenants, nil is of all.
func (st *Store) IDs(after *SessionID, limit int, own func(tenant string) bool) []SessionID {
	st.mu.Lock()
	ids := make([]SessionID, 0, len(st.sessions))
	for id, s := range st.sessions {
		if (after == nil || bytes.Compare(id[:], after[:]) > 0) && (own == nil || own(s.shape.config.Tenant)) {
			ids = append(ids, id)
		}
	}
	st.mu.Unlock()
	slices.SortFunc(ids, func(a, b SessionID) int { return bytes.Compare(a[:], b[:]) })
	if limit > 0 && len(ids) > limit {
		ids = ids[:limit]
	}
	return ids
}

// List returns the states of all sessions, by id.
func (st *Store) List() []State {
	ids := st.IDs(nil, 0, nil)
	states := make([]State, 0, len(ids))
	for _, id := range ids {
		if state, err := st.Peek(id); err == nil { // else it has ended meanwhile
			states = append(states, state)
		}
	}
	return states
}

// state needs the session's lock.
func (st *Store) state(s *session) State {
	sh := s.shape
	state := State{
		Session: s.id, Epoch: s.epoch, Truncations: s.truncations, TruncationID: s.cutID, Layers: make([]LayerState, len(sh.layers)), Pinned: s.pinned,
		PageBytes: s.pageBytes(), Created: s.created, Config: &sh.config, Held: sh.held,
		Lineage: slices.Clone(s.lineage), Served: s.served,
	}
	hashes, before := slices.Clone(s.hashes), slices.Clone(s.before)
	for l, h := range sh.layers {
		end := h.first + len(h.groups)
		id := &s.identities[l]
		state.Layers[l] = LayerState{
			Layer: h.layer, Length: uint64(s.lengths[l]), Hashes: hashes[h.first:end:end], First: uint64(s.freed[l] * attention.PageLen),
			Chain: id.chain, AppendID: id.appendID,
		}
		if id.before.known {
			state.Layers[l].Before = &LayerState{Layer: h.layer, Length: uint64(id.before.length), Hashes: before[h.first:end:end], Chain: id.before.chain}
		}
	}
	st.mu.Lock()
	defer st.mu.Unlock()
	state.Used = s.used
	for _, r := range s.rows {
		if r.refs == 1 {
			state.OwnBytes += r.bytes
		}
	}
	return state
}

// Tokens returns those ids of a session's tokens that are known of positions [start, start+n).
func (st *Store) Tokens(id SessionID, start, n int) ([]uint32, error) {
	s, err := st.open(id, false)
	if err != nil {
		return nil, err
	}
	defer s.mu.Unlock()
	if start < 0 || n < 0 || start >= len(s.tokens) {
		return nil, nil
	}
	return slices.Clone(s.tokens[start:min(start+n, len(s.tokens))]), nil
}
