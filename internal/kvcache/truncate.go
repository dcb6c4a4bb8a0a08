package kvcache

import (
	"slices"

	"headwater.example/attention"
	"headwater.example/shard"
)

// Truncate takes back the positions of every layer from position on. Truncations are those before; the same request again
// is a success.
func (st *Store) Truncate(id SessionID, e Epoch, truncations, position uint64) (State, error) {
	return st.truncate(id, e, truncations, false, func(s *session) ([]int, *Error) { return s.all(int(min(position, shard.MaxPositions))), nil })
}

// TruncateLayers is Truncate with a position for each layer of the config. With checkOnly it changes nothing.
func (st *Store) TruncateLayers(id SessionID, e Epoch, truncations uint64, positions []uint64, checkOnly bool) (State, error) {
	return st.truncate(id, e, truncations, checkOnly, func(s *session) ([]int, *Error) {
		if len(positions) != len(s.shape.config.Layers) {
			return nil, refuse(Invalid, "session %s: lengths of %d layers, it has %d", id, len(positions), len(s.shape.config.Layers))
		}
		to := make([]int, len(s.lengths))
		for l, h := range s.shape.layers {
			to[l] = int(min(positions[h.layer], shard.MaxPositions))
		}
		longest := 0
		for l, n := range to {
			longest = max(longest, min(n, s.lengths[l]))
		}
		for l, n := range to {
			if n == 0 && longest > 0 && s.freed[l] > 0 {
				h := &s.shape.layers[l]
				return nil, refuse(Freed, "session %s: layer %d: positions before %d have been freed, and not all layers begin anew", id, h.layer, s.freed[l]*attention.PageLen).at(h.layer, s.lengths[l])
			}
		}
		return to, nil
	})
}

// all returns n for each held layer.
func (s *session) all(n int) []int { return slices.Repeat([]int{n}, len(s.lengths)) }

func (st *Store) truncate(id SessionID, e Epoch, truncations uint64, checkOnly bool, read func(*session) ([]int, *Error)) (State, error) {
	s, err := st.drive(id, e)
	if err != nil {
		return State{}, err
	}
	defer s.unlock()
	to, err := read(s)
	if err != nil {
		return State{}, err
	}
	if s.truncations > 0 && truncations == s.truncations-1 && slices.Equal(to, s.cut) {
		return st.state(s), nil
	}
	if truncations != s.truncations {
		return State{}, s.otherTruncations(truncations)
	}
	hashes, err := st.cutHashes(s, to)
	if err != nil {
		return State{}, err
	}
	if checkOnly {
		return st.state(s), nil
	}
	s.hashes = hashes
	st.mu.Lock()
	st.shortenLocked(s, to)
	st.unlock()
	s.truncations++
	s.cut = to
	return st.state(s), nil
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
		pages[i] = h.class.page(s.row(p).pages[h.first+i])
	}
	st.mu.Unlock()
	rows := makeRows(h.Layout, rest)
	for i, page := range pages {
		if err := h.Layout.Read(page, 0, rest, rows); err != nil {
			return nil, refuse(Invalid, "session %s: layer %d group %d: %v", s.id, h.layer, h.groups[i], err).at(h.layer, s.lengths[l]).of(h.groups[i])
		}
		chain := Hasher{receipt: Receipt{Length: uint64(p * attention.PageLen), Hash: hashes[i]}}
		if err := chain.Update(rows, rest, h.Layout); err != nil {
			return nil, refuse(Invalid, "session %s: layer %d group %d: %v", s.id, h.layer, h.groups[i], err).at(h.layer, s.lengths[l]).of(h.groups[i])
		}
		hashes[i] = chain.Receipt().Hash
	}
	return hashes, nil
}
