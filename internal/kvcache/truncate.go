package kvcache

import (
	"cmp"
	"context"
	"slices"

	"headwater.example/attention"
)

// TruncateRequest asks to take back the newest positions of a session.
type TruncateRequest struct {
	Session SessionID
	Epoch   Epoch
	// Truncations are those before it, Count those after it; 0 is one more.
	Truncations, Count uint64
	// ID is random and not 0. It is each layer's chain afterwards.
	ID uint64
	// Expect [layers held, ascending] is the state before it.
	Expect []LayerState
	// Lengths [layers of the config] are the lengths after it; nil is Position for all of them. No layer gets longer.
	Lengths  []uint64
	Position uint64
	// CheckOnly only checks whether it would succeed.
	CheckOnly bool
}

// Truncate takes back the newest positions of every layer. The same request again is a success.
func (st *Store) Truncate(ctx context.Context, req *TruncateRequest) (State, error) {
	s, err := st.drive(ctx, req.Session, req.Epoch)
	if err != nil {
		return State{}, err
	}
	defer s.unlock()
	if s.cutID == req.ID && req.ID != 0 {
		return st.state(s), nil
	}
	if err := st.truncate(s, req); err != nil {
		return State{}, err
	}
	return st.state(s), nil
}

func (st *Store) truncate(s *session, req *TruncateRequest) *Error {
	if req.Truncations != s.truncations {
		return s.otherTruncations(req.Truncations)
	}
	count := cmp.Or(req.Count, req.Truncations+1)
	switch {
	case req.ID == 0:
		return refuse(Invalid, "session %s: a truncation has an id, which is not 0", s.id)
	case count <= req.Truncations:
		return refuse(Invalid, "session %s: %d truncations after one that is made after %d", s.id, count, req.Truncations)
	case len(req.Expect) != len(s.lengths):
		return refuse(Invalid, "session %s: a truncation names what it starts from of %d layers, %d are held", s.id, len(req.Expect), len(s.lengths))
	case req.Lengths != nil && len(req.Lengths) != len(s.shape.config.Layers):
		return refuse(Invalid, "session %s: lengths of %d layers, it has %d", s.id, len(req.Lengths), len(s.shape.config.Layers))
	}
	from, to := make([]int, len(s.lengths)), make([]int, len(s.lengths))
	for l, h := range s.shape.layers {
		var err *Error
		if from[l], err = s.starts(l, &req.Expect[l]); err != nil {
			return err
		}
		n := req.Position
		if req.Lengths != nil {
			n = req.Lengths[h.layer]
		}
		to[l] = int(min(n, uint64(from[l])))
	}
	if err := s.beginsAnew(to); err != nil {
		return err
	}
	hashes, err := st.cutHashes(s, to)
	if err != nil || req.CheckOnly {
		return err
	}
	for l := range s.identities {
		if from[l] == s.lengths[l] {
			s.remember(l)
		}
		s.identities[l].chain, s.identities[l].appendID = req.ID, 0
	}
	s.hashes = hashes
	st.mu.Lock()
	st.shortenLocked(s, to)
	st.unlock()
	s.truncations, s.cutID = count, req.ID
	return nil
}

// beginsAnew refuses lengths of which one is 0 where positions have been freed, and another is not.
func (s *session) beginsAnew(to []int) *Error {
	if slices.Max(to) == 0 {
		return nil
	}
	for l, n := range to {
		if n == 0 && s.freed[l] > 0 {
			h := &s.shape.layers[l]
			return refuse(Freed, "session %s: layer %d: positions before %d have been freed, and not all layers begin anew", s.id, h.layer, s.freed[l]*attention.PageLen).at(h.layer, s.lengths[l])
		}
	}
	return nil
}

// shortenLocked cuts a session's layers to lengths, but for its hashes. Of rows that other layers still need the session frees a
// layer's pages where it alone has them; where it shares them they go with the row.
func (st *Store) shortenLocked(s *session, lengths []int) {
	before := slices.Clone(s.lengths)
	for l := range s.lengths {
		s.lengths[l] = min(s.lengths[l], lengths[l])
	}
	for keep := pagesOf(slices.Max(s.lengths)); s.end() > max(keep, s.first); {
		last := len(s.rows) - 1
		st.releaseLocked(s.rows[last], s, s.end()-1)
		s.rows[last] = nil
		s.rows = s.rows[:last]
	}
	for l, n := range s.lengths {
		for p := max(pagesOf(n), s.first); p < min(pagesOf(before[l]), s.end()); p++ {
			if r := s.row(p); r.refs == 1 {
				st.freeLocked(r, l)
			}
		}
	}
	if slices.Max(s.lengths) == 0 {
		clear(s.freed)
		s.first, s.rows, s.edge, s.begun = 0, nil, edge{}, nil
	}
	s.keyed = min(s.keyed, s.filled())
	n := min(slices.Max(lengths), len(s.tokens))
	s.tokens = s.tokens[:n:n] // A fork may have the same array, so the next append makes another.
}

// needs refuses if a layer that is cut to n positions would lack some that queries from there on see.
func (s *session) needs(l, n int) *Error {
	h := &s.shape.layers[l]
	if n > 0 && n < s.lengths[l] && h.seenFrom(n) < s.freed[l] {
		return refuse(Freed, "session %s: layer %d: positions before %d have been freed, a query at %d sees from %d on", s.id, h.layer,
			s.freed[l]*attention.PageLen, n, n-int(h.Options.WindowLeft)).at(h.layer, s.lengths[l])
	}
	return nil
}

// cutHashes returns what hashes becomes where the layers are cut to these lengths.
func (st *Store) cutHashes(s *session, lengths []int) ([]uint64, *Error) {
	hashes := slices.Clone(s.hashes)
	for l, h := range s.shape.layers {
		if lengths[l] >= s.lengths[l] {
			continue
		}
		at, err := st.hashesAt(s, l, lengths[l])
		if err != nil {
			return nil, err
		}
		copy(hashes[h.first:], at)
	}
	return hashes, nil
}

// hashesAt returns the hashes of held layer l at n positions, of which it has as many.
func (st *Store) hashesAt(s *session, l, n int) ([]uint64, *Error) {
	if err := s.needs(l, n); err != nil {
		return nil, err
	}
	h := &s.shape.layers[l]
	hashes := make([]uint64, len(h.groups))
	if n == s.lengths[l] {
		copy(hashes, s.hashes[h.first:])
		return hashes, nil
	}
	p, rest := n/attention.PageLen, n%attention.PageLen
	for i := range hashes {
		hashes[i] = s.checkpoint(p, h.first+i)
	}
	if rest == 0 {
		return hashes, nil
	}
	pages := make([][]byte, len(h.groups))
	st.mu.Lock()
	for i := range pages {
		if h.stores(i, p) {
			pages[i] = h.class.page(s.row(p).pages[h.first+i])
		}
	}
	st.mu.Unlock()
	rows := makeRows(h.Layout, rest)
	for i, page := range pages {
		if page == nil {
			continue // another stripe has it
		}
		if err := h.Layout.Read(page, 0, rest, rows); err != nil {
			return nil, refuse(Invalid, "session %s: layer %d %s: %v", s.id, h.layer, h.name(h.groups[i]), err).at(h.layer, s.lengths[l]).of(h.groups[i])
		}
		chain := Hasher{receipt: Receipt{Length: uint64(p * attention.PageLen), Hash: hashes[i]}}
		if err := chain.Update(rows, rest, h.Layout); err != nil {
			return nil, refuse(Invalid, "session %s: layer %d %s: %v", s.id, h.layer, h.name(h.groups[i]), err).at(h.layer, s.lengths[l]).of(h.groups[i])
		}
		hashes[i] = chain.Receipt().Hash
	}
	return hashes, nil
}
