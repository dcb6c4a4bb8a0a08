package fanout

import (
	"cmp"
	"context"
	"slices"

	"headwater.example/internal/session"
	headwaterv1 "headwater.example/proto/headwater/v1"
)

// This file finds the common state of a session's holders, and truncates them to it. It compares chains, never lengths
// alone: two holders of a layer may have done different steps of the same length.

// shared is the common state of all holders of a layer.
type shared struct {
	length uint64
	chain  uint64 // at that length, if settled
	// settled says that the state is one that every holder has, or had before its newest append. Then its hashes are told.
	settled bool
	// level says that every holder has exactly that.
	level bool
}

// samePoint reports whether two states of holders of a layer are the same. When a session begins, the chain is 0 and a
// holder's positions depend on the prefix that it found; prefixes are of the same tokens, so the shorter is a part of
// the longer.
func samePoint(a, b *headwaterv1.LayerState) bool {
	return a.GetChain() == b.GetChain() && (a.GetLength() == b.GetLength() || a.GetChain() == 0)
}

// share finds the common state of a layer's holders, of which there must be at least one: the newest state that each of
// them has now or had before its newest change. It returns false if there is none.
func share(states []*headwaterv1.LayerState) (s shared, ok bool) {
	for _, from := range []*headwaterv1.LayerState{states[0], states[0].GetBefore()} {
		if from == nil {
			continue
		}
		if one, meet := shareFrom(from, states); meet && (!ok || one.length > s.length) {
			s, ok = one, true
		}
	}
	return s, ok
}

func shareFrom(from *headwaterv1.LayerState, states []*headwaterv1.LayerState) (shared, bool) {
	s := shared{length: from.GetLength(), chain: from.GetChain(), settled: true, level: true}
	for _, l := range states {
		at := l
		if !samePoint(l, from) {
			if at, s.level = l.GetBefore(), false; at == nil || !samePoint(at, from) {
				return shared{}, false
			}
		}
		s.settled = s.settled && at.GetLength() == from.GetLength()
		s.length = min(s.length, at.GetLength(), l.GetLength()) // Who has truncated since has no more than that.
	}
	s.settled = s.settled && s.length == from.GetLength()
	s.level = s.level && s.settled
	return s, true
}

// layerStates are the states that each holder of each layer reported, and the holder's index.
func (h *Holding) layerStates(states []*headwaterv1.SessionState) (layers [][]*headwaterv1.LayerState, holders [][]int) {
	layers, holders = make([][]*headwaterv1.LayerState, len(h.layers)), make([][]int, len(h.layers))
	for i, s := range states {
		for _, l := range s.GetLayers() {
			if at := int64(l.GetLayer()); at < int64(len(layers)) {
				layers[at], holders[at] = append(layers[at], l), append(holders[at], i)
			}
		}
	}
	return layers, holders
}

// share finds the common state of each layer. The error names a layer whose holders have none.
func (h *Holding) share(id []byte, states []*headwaterv1.SessionState) ([]shared, error) {
	all := make([]shared, len(h.layers))
	layers, holders := h.layerStates(states)
	for l, told := range layers {
		if len(told) == 0 {
			continue // Join says so
		}
		s, ok := share(told)
		if !ok {
			first, last := h.holders[holders[l][0]], h.holders[holders[l][len(told)-1]]
			return nil, refused(last.Name, session.Errorf(session.Different,
				"session %x: layer %d was made by other appends than at holder %q: only who knows its receipt can take it up", id, l, first.Name))
		}
		all[l] = s
	}
	return all, nil
}

// level truncates all holders to their common state, and then joins their states. Under the epoch nobody else changes
// the session.
func (c *Conns) level(ctx context.Context, h *Holding, id []byte, epoch *headwaterv1.Epoch, states []*headwaterv1.SessionState, common []shared) (*headwaterv1.SessionState, error) {
	newest := slices.MaxFunc(states, func(a, b *headwaterv1.SessionState) int { return cmp.Compare(a.GetTruncations(), b.GetTruncations()) })
	cut := &headwaterv1.TruncateSessionRequest{Session: id, Epoch: epoch, Id: c.NewID(), Count: newest.GetTruncations() + 1}
	level, same, done := true, true, true // done: who is ahead by a truncation has what is in common
	for _, s := range states {
		ahead := s.GetTruncations() == newest.GetTruncations()
		same = same && ahead
		for _, l := range s.GetLayers() {
			if int64(l.GetLayer()) < int64(len(common)) {
				done = done && (!ahead || l.GetLength() == common[l.GetLayer()].length && l.GetChain() == newest.GetTruncationId())
			}
		}
	}
	for _, one := range common {
		cut.Lengths = append(cut.Lengths, one.length)
		level = level && one.level
	}
	switch {
	case same && level:
		return h.Join(id, states)
	case !same && done:
		// Some have not done the newest truncation. It is made whole, so that where this ends early, what comes next finds the same.
		cut.Id, cut.Count = newest.GetTruncationId(), newest.GetTruncations()
	}
	after, err := c.all(ctx, h, func(ctx context.Context, s headwaterv1.SessionServiceClient, i int) (*headwaterv1.SessionState, error) {
		resp, err := s.TruncateSession(ctx, &headwaterv1.TruncateSessionRequest{
			Session: id, Epoch: epoch, Truncations: states[i].GetTruncations(), Expect: starts(states[i], common), Lengths: cut.GetLengths(), Id: cut.GetId(), Count: cut.GetCount(),
		})
		return resp.GetState(), err
	})
	if err != nil {
		return nil, err
	}
	return h.Join(id, after)
}

// starts returns the state that a holder's truncation to the common state names: its current one, or the one before its
// newest append if that append is beyond the common state.
func starts(s *headwaterv1.SessionState, common []shared) []*headwaterv1.LayerState {
	var all []*headwaterv1.LayerState
	for _, l := range s.GetLayers() {
		from := &headwaterv1.LayerState{Layer: l.GetLayer(), Length: l.GetLength(), Hashes: l.GetHashes(), Chain: l.GetChain()}
		if b := l.GetBefore(); b != nil && l.GetAppendId() != 0 && int64(l.GetLayer()) < int64(len(common)) && b.GetLength() >= common[l.GetLayer()].length {
			from.Length, from.Hashes, from.Chain, from.AppendId = b.GetLength(), b.GetHashes(), b.GetChain(), l.GetAppendId()
		}
		all = append(all, from)
	}
	return all
}
