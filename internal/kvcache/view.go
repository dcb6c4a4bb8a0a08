package kvcache

import (
	"headwater.example/attention"
	"headwater.example/shard"
)

// View is one layer of a session as it was when the view was opened, for attention. It stays as it was until it is released,
// whatever becomes of the session: appends, truncations and eviction leave what it sees alone. The zero value is ready to be
// opened; a view that was released may be opened again, and then takes no new memory if the old is enough. It is used by one
// caller at a time, but what KV returned may be read by several.
type View struct {
	// Layer is the layer's config, Groups those that are held, ascending. Both are not to be changed.
	Layer  *shard.LayerSpec
	Groups []shard.Group
	// Len is how many positions the layer has.
	Len int

	store *Store
	rows  []*row
	pages [][]byte // [groups][pages]
	holes int64    // bytes of the budget for pages that it does not see
}

// View opens a view on a layer of a session for queries from position query on. Prepare opens
// one on a layer with an append.
func (st *Store) View(v *View, id SessionID, layer shard.Layer, query uint64) error {
	s, err := st.open(id, true)
	if err != nil {
		return err
	}
	defer s.mu.Unlock()
	l, held := s.shape.layer(layer)
	if !held {
		return refuse(Invalid, "session %s: layer %d: it is not held here", id, layer).at(layer, 0)
	}
	if err := s.sees(l, query); err != nil {
		return err
	}
	if err := st.holes(v, s, l, query, s.lengths[l]); err != nil {
		return err
	}
	st.openView(v, s, l, query, nil, s.lengths[l])
	return nil
}

// sees refuses if queries from position query on see freed positions.
func (s *session) sees(l int, query uint64) *Error {
	h := &s.shape.layers[l]
	if query > shard.MaxPositions {
		return refuse(Invalid, "session %s: layer %d: query at position %d, more than %d", s.id, h.layer, query, int64(shard.MaxPositions)).at(h.layer, s.lengths[l])
	}
	if h.seenFrom(int(query)) < s.freed[l] {
		return refuse(Freed, "session %s: layer %d: positions before %d have been freed, a query at %d sees from %d on", s.id, h.layer,
			s.freed[l]*attention.PageLen, query, int64(query)-h.Options.WindowLeft).at(h.layer, s.lengths[l])
	}
	return nil
}

const (
	// pageRef is the memory of a page's place in a view. Those of pages that a session has are little beside the pages; those
	// of pages that have left its window, or were never there, may be many, and count in the budget from fewHoles bytes on.
	pageRef  = 24
	fewHoles = 1 << 16
)

// holes takes the memory of a view on n positions, and fills the places of pages that no query sees with NaN. A kernel that
// used them would return NaN, and the step would fail. If view does not follow, noHoles does.
func (st *Store) holes(v *View, s *session, l int, query uint64, n int) *Error {
	h := &s.shape.layers[l]
	end := pagesOf(n)
	from := min(h.seenFrom(int(query)), end)
	if need := pageRef * int64(from) * int64(len(h.groups)); need > fewHoles {
		if err := st.budget.Reserve(need); err != nil {
			return refuse(OverBudget, "session %s: layer %d: %d bytes to attend from position %d on: %v", s.id, h.layer, need, query, err).at(h.layer, s.lengths[l])
		}
		v.holes = need
	}
	st.mu.Lock()
	hole := h.class.nans()
	st.mu.Unlock()
	v.pages = resize(v.pages, len(h.groups)*end)
	for i := range h.groups {
		for p := range from {
			v.pages[i*end+p] = hole
		}
	}
	return nil
}

// noHoles returns what holes has taken.
func (st *Store) noHoles(v *View) {
	if v.holes > 0 {
		st.budget.Release(v.holes)
		v.holes, v.pages = 0, nil
	}
}

// openView opens v, after holes, on n positions, of which the last pages are in rows that the session does not have yet. Pages
// that no query sees are not shared.
func (st *Store) openView(v *View, s *session, l int, query uint64, rows []*row, n int) {
	h := &s.shape.layers[l]
	end := pagesOf(n)
	from := min(h.seenFrom(int(query)), end)
	v.store, v.Layer, v.Groups, v.Len = st, &h.LayerSpec, h.groups, n
	v.rows = v.rows[:0]
	st.mu.Lock()
	defer st.mu.Unlock()
	for p := from; p < end; p++ {
		var r *row
		if own := end - len(rows); p < own {
			r = s.row(p)
		} else {
			r = rows[p-own]
		}
		st.shareLocked(r)
		v.rows = append(v.rows, r)
	}
	for i := range h.groups {
		pages := v.pages[i*end:][:end]
		for p := from; p < end; p++ {
			if !h.stores(i, p) {
				pages[p] = h.class.nans() // another stripe has it, and is asked for it
				continue
			}
			pages[p] = h.class.page(v.rows[p-from].pages[h.first+i])
		}
	}
}

// KV returns the positions of the i-th held group.
func (v *View) KV(i int) attention.KV {
	n := pagesOf(v.Len)
	return attention.KV{Layout: v.Layer.Layout, Pages: v.pages[i*n:][:n:n], Len: v.Len}
}

// Release ends the view; what it alone has kept is freed. To release a view that is not open does nothing.
func (v *View) Release() {
	if v.store == nil {
		return
	}
	v.store.mu.Lock()
	for _, r := range v.rows {
		v.store.releaseLocked(r, nil, 0)
	}
	v.store.unlock()
	v.store.noHoles(v)
	clear(v.rows)
	clear(v.pages)
	*v = View{rows: v.rows[:0], pages: v.pages[:0]}
}
