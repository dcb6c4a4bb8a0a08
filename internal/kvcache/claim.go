package kvcache

import "context"

// Take steps a session's epoch and returns what is held. With expect it refuses where less is held than expected, or other
// keys and values; what is held beyond is for the caller to see. An epoch with a base it takes only if the session is driven by
// that lane under the base. Above a closed epoch it takes one that has no base only if the caller names the closed one: it has waited in
// vain for who closed it. With checkOnly it does all but step the epoch.
func (st *Store) Take(ctx context.Context, id SessionID, e Epoch, expect []LayerState, truncations uint64, checkOnly bool) (State, error) {
	s, err := st.hold(ctx, id, true)
	if err != nil {
		return State{}, err
	}
	defer s.unlock()
	// A lane that has taken the session may do so once more, when not all holders had taken its epoch.
	again := e.compare(s.epoch) == 0 && e.Base == 0 && s.epoch.Base == 0
	// Two that step an epoch on a lane's behalf may choose the same counter: the second one is not taken for the first.
	other := e.compare(s.epoch) == 0 && e.Base != 0 && e.taken() != s.epoch
	switch {
	case e.Base >= e.Counter:
		return State{}, refuse(Invalid, "session %s: epoch %d is not above its base %d", id, e.Counter, e.Base)
	case e.compare(s.epoch) < 0, other, s.epoch.Closed && e.Base == 0 && e.At != s.epoch.Counter, !again && e.At != 0 && e.At != s.epoch.Counter, e.Base != 0 && !s.knownTo(Epoch{Counter: e.Base, Lane: e.Lane, At: e.At}):
		return State{}, s.stale(e)
	case len(expect) > 0 && truncations != s.truncations:
		return State{}, s.otherTruncations(truncations)
	}
	for _, want := range expect {
		l, held := s.shape.layer(want.Layer)
		if !held {
			return State{}, refuse(Invalid, "session %s: layer %d is not held here", id, want.Layer).at(want.Layer, 0)
		}
		h := &s.shape.layers[l]
		switch {
		case len(want.Hashes) != len(h.groups):
			return State{}, refuse(Invalid, "session %s: layer %d: %d hashes for %d groups", id, want.Layer, len(want.Hashes), len(h.groups)).at(want.Layer, s.lengths[l])
		case want.Length > uint64(s.lengths[l]):
			return State{}, refuse(Behind, "session %s: layer %d has %d positions, not %d", id, want.Layer, s.lengths[l], want.Length).at(want.Layer, s.lengths[l])
		}
		hashes, err := st.hashesAt(s, l, int(want.Length))
		if err != nil {
			return State{}, err
		}
		if err := s.same(l, want.Hashes, hashes); err != nil {
			return State{}, err
		}
	}
	if !checkOnly {
		s.accept(e)
		if e.Base == 0 {
			s.serve() // a client is told what is there
		}
		st.mu.Lock()
		st.unparkLocked(s)
		s.partLocked(e)
		st.mu.Unlock()
	}
	return st.state(s), nil
}

// same compares the hashes of a layer that are named with those that are there.
func (s *session) same(l int, named, have []uint64) *Error {
	h := &s.shape.layers[l]
	for i, g := range h.groups {
		if named[i] != have[i] {
			return refuse(Different, "session %s: layer %d %s has hash %016x, not %016x", s.id, h.layer, h.name(g), have[i], named[i]).at(h.layer, s.lengths[l]).of(g)
		}
	}
	return nil
}
