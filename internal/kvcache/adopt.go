package kvcache

import (
	"context"
	"slices"

	"headwater.example/shard"
)

// AdoptRequest asks to take a session that was filled here under another id for one that it is a copy of.
type AdoptRequest struct {
	// From is what was filled.
	From, Session SessionID
	Epoch         Epoch
	// Layers [layers held, ascending] say what another holder has: length, hashes, chain, id of the newest append, and what was before.
	Layers                    []LayerState
	Truncations, TruncationID uint64
	Pinned                    bool
	// Lineage are the lines through which the copy has come, at most shard.MaxLineage.
	Lineage []uint64
}

// Adopt makes From the session, in the place of what is held of that one under the same closed epoch. Of whatever else is held of it
// nobody knows whether the copy has that too. What was filled must have the lengths and hashes that are named.
func (st *Store) Adopt(ctx context.Context, req AdoptRequest) (State, error) {
	if req.From == req.Session || req.Epoch.Counter < 1 {
		return State{}, refuse(Invalid, "session %s: it can not adopt session %s under epoch %d", req.Session, req.From, req.Epoch.Counter)
	}
	if n := len(req.Lineage); n > shard.MaxLineage {
		return State{}, refuse(Invalid, "session %s: it has come through %d lines of epochs, %d are the most that are remembered", req.Session, n, shard.MaxLineage)
	}
	s, err := st.hold(ctx, req.From, true)
	if err != nil {
		return State{}, err
	}
	defer s.unlock()
	if err := s.takesUp(req.Layers); err != nil {
		return State{}, err
	}
	old, err := st.hold(ctx, req.Session, true)
	if refused, ok := err.(*Error); err != nil && (!ok || refused.Reason != Unknown) {
		return State{}, err
	}
	if old != nil {
		if req.Epoch.compare(old.epoch) != 0 {
			defer old.unlock()
			return State{}, old.stale(req.Epoch)
		}
		defer st.releaseRows(old)
		defer old.unlock()
	}
	st.mu.Lock()
	if old != nil {
		st.forgetLocked(old)
	}
	delete(st.sessions, req.From)
	st.buryLocked(req.From)
	delete(st.tombstones, req.Session)
	s.id, s.adopted = req.Session, true
	st.sessions[s.id] = s
	s.partLocked(req.Epoch)
	st.unparkLocked(s) // another lane drives it
	st.unlock()
	s.start(req.Epoch, req.Lineage...)
	s.truncations, s.cutID, s.pinned = req.Truncations, req.TruncationID, req.Pinned
	for l, want := range req.Layers {
		id := &s.identities[l]
		*id = identity{chain: want.Chain, appendID: want.AppendID}
		if b := want.Before; b != nil {
			id.before = point{length: int(b.Length), chain: b.Chain, known: true}
			copy(s.before[s.shape.layers[l].first:], b.Hashes)
		}
	}
	return st.state(s), nil
}

// forgetLocked takes a session out of the store whose id goes on; its rows are the caller's to release.
func (st *Store) forgetLocked(s *session) {
	s.gone = true
	delete(st.sessions, s.id)
	s.shape.account.held--
	s.shape.account.sessions -= s.part
	st.expiry.remove(s)
	st.unparkLocked(s)
	st.idle.remove(s)
	st.freeSessionLocked(s)
}

// forget ends a session whose id goes on.
func (st *Store) forget(ctx context.Context, s *session) error {
	if err := s.busy.lock(ctx); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.unlock()
	if s.gone {
		return nil
	}
	st.mu.Lock()
	st.forgetLocked(s)
	st.unlock()
	st.releaseRows(s)
	return nil
}

// takesUp compares what was filled with what another holder has.
func (s *session) takesUp(layers []LayerState) *Error {
	if len(layers) != len(s.lengths) {
		return refuse(Invalid, "session %s: %d layers are named, %d are held", s.id, len(layers), len(s.lengths))
	}
	for l := range layers {
		h, want := &s.shape.layers[l], &layers[l]
		switch b := want.Before; {
		case want.Layer != h.layer || len(want.Hashes) != len(h.groups) || b != nil && (len(b.Hashes) != len(h.groups) || b.Length > shard.MaxPositions):
			return refuse(Invalid, "session %s: layer %d with %d hashes is named, layer %d of %d groups is held", s.id, want.Layer, len(want.Hashes), h.layer, len(h.groups)).at(want.Layer, s.lengths[l])
		case want.Length != uint64(s.lengths[l]):
			return refuse(Behind, "session %s: layer %d has %d positions, not %d", s.id, h.layer, s.lengths[l], want.Length).at(h.layer, s.lengths[l])
		case !slices.Equal(want.Hashes, s.hashes[h.first:][:len(h.groups)]):
			return s.same(l, want.Hashes, s.hashes[h.first:])
		}
	}
	return nil
}
