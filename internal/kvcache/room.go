package kvcache

import (
	"slices"

	"headwater.example/attention"
)

// want is pages that an append needs for one layer of one row.
type want struct {
	row   *row
	class *class
	ids   []pageID // by group
	after []pageID // by group: the page before each, or nil
	own   bool     // of the layer that is appended to, if each row has pages of all of its groups
}

// lacks says whether page p's row has no pages of the layer yet that it is to have.
func (h *heldLayer) lacks(r *row, p int) bool {
	lead := h.lead(p)
	return lead >= 0 && r.pages[h.first+lead] == 0
}

// copies says whether the copy that an append to held layer l makes of page p's row has pages of held layer m.
func (s *session) copies(l, m, p int) bool {
	return s.freed[m] <= p && (m == l || s.lengths[m] > p*attention.PageLen)
}

// reserveRows takes room in the budget for the rows that an append to held layer l will make up to page end, of which it says
// how many are for copies of shared ones, or none. If there is no room, it makes some, provided that the pages then fit as well.
func (st *Store) reserveRows(s *session, l, first, end int, e *encoder) (copies int, _ *Error) {
	h := &s.shape.layers[l]
	st.mu.Lock()
	defer st.unlock()
	made := max(end-s.end(), 0) // also those of a gap before first
	need := h.pageBytes(max(first, s.end()), end)
	for p := first; p < min(end, s.end()); p++ {
		switch r := s.row(p); {
		case r.refs > 1:
			copies++
			for m := range s.shape.layers {
				if s.copies(l, m, p) {
					need += s.shape.layers[m].pageBytes(p, p+1)
				}
			}
		case h.lacks(r, p):
			need += h.pageBytes(p, p+1)
		}
	}
	made += copies
	rows := int64(made) * s.shape.rowBytes
	for evicted := false; ; {
		err := st.budget.Reserve(rows)
		if err == nil {
			e.made = made
			s.shape.rows += made
			st.rows += rows
			return copies, nil
		}
		if !st.evictForLocked(err, rows+need, s.claimant(), &evicted) {
			return 0, s.noRoom(l, rows+need, err)
		}
	}
}

func (s *session) noRoom(l int, need int64, err error) *Error {
	layer := s.shape.layers[l].layer
	return refuse(OverBudget, "session %s: layer %d: append from position %d on: %d more bytes of pages are needed: %v: drop or truncate a session, or try again later",
		s.id, layer, s.lengths[l], need, err).at(layer, s.lengths[l])
}

// reserve takes the pages that an append to held layer l needs from page first on, for all of its groups and for the copies
// of shared rows, or none. If there is no room, it makes some.
func (st *Store) reserve(s *session, l, first int, e *encoder) *Error {
	h := &s.shape.layers[l]
	st.mu.Lock()
	defer st.unlock()
	e.wants, e.copies, e.pages = e.wants[:0], e.copies[:0], e.pages[:0]
	var need int64
	before := s.rowBefore(first, e)
	add := func(r *row, h *heldLayer, p int) {
		need += h.pageBytes(p, p+1)
		e.want(r, before, h, p, h == &s.shape.layers[l])
	}
	for i, r := range e.rows {
		if i > 0 {
			before = e.rows[i-1]
		}
		if e.fresh[i] || r.refs == 1 {
			if h.lacks(r, first+i) {
				add(r, h, first+i)
			}
			continue
		}
		mine := e.spare[len(e.spare)-1]
		e.spare = e.spare[:len(e.spare)-1]
		copy(mine.hashes, r.hashes)
		e.rows[i], e.fresh[i] = mine, true
		for m := range s.shape.layers {
			switch p := first + i; {
			case s.freed[m] > p:
				if mine.left == nil {
					mine.left = make([]int32, len(s.shape.layers))
				}
				mine.left[m] = 1
			case s.copies(l, m, p):
				add(mine, &s.shape.layers[m], p)
			}
		}
	}
	// A session that shared a row may have left it meanwhile.
	st.freeRowsLocked(s.shape, len(e.spare))
	e.made -= len(e.spare)
	if e.metered {
		if err := st.mayTakeLocked(s.shape.account, need); err != nil {
			st.freeRowsLocked(s.shape, e.made)
			e.forget()
			return err.at(h.layer, s.lengths[l])
		}
	}
	if need, err := st.roomLocked(e, s.claimant(), need); err != nil {
		st.freeRowsLocked(s.shape, e.made)
		e.forget()
		return s.noRoom(l, need, err)
	}
	e.straighten(len(h.groups))
	for i, r := range e.rows {
		if p := first + i; e.fresh[i] && p < s.end() {
			st.copyRowLocked(s, l, p, r, e)
		}
	}
	e.list(h, first)
	return nil
}

// want notes the pages of a layer that page p's row is to have, which follow those of the row before, unless it is nil.
func (e *encoder) want(r, before *row, h *heldLayer, p int, own bool) {
	add := func(from, to int, own bool) {
		w := want{row: r, class: h.class, ids: r.pages[from:to], own: own}
		if before != nil {
			w.after = before.pages[from:to]
		}
		e.wants = append(e.wants, w)
	}
	if !h.Striped() {
		add(h.first, h.first+len(h.groups), own)
		return
	}
	for g := range h.groups {
		if h.stores(g, p) {
			add(h.first+g, h.first+g+1, false)
		}
	}
}

// rowBefore returns the row before page first of an append, or nil if that has nothing.
func (s *session) rowBefore(first int, e *encoder) *row {
	if len(e.gap) > 0 || first <= s.first || first > s.end() {
		return nil
	}
	return s.row(first - 1)
}

// list lists the pages of a layer from page first on, group by group; nil is one that the layer does not store.
func (e *encoder) list(h *heldLayer, first int) {
	for g := range h.groups {
		for i, r := range e.rows {
			if !h.stores(g, first+i) {
				e.pages = append(e.pages, nil)
				continue
			}
			e.pages = append(e.pages, h.class.page(r.pages[h.first+g]))
		}
	}
}

// straighten lets the pages of each group that were taken for one layer lie one behind the other, as a kernel goes through them: where
// the next page is elsewhere, what the processor asks memory for beyond the end of one is in vain. Groups whose pages already lie
// so keep them, and the others share theirs out in the order of memory.
func (e *encoder) straighten(groups int) {
	e.own = e.own[:0]
	for _, w := range e.wants {
		if w.own {
			e.own = append(e.own, w.ids)
		}
	}
	rows := len(e.own)
	if rows < 2 {
		return
	}
	e.ids, e.bent = e.ids[:0], e.bent[:0]
	for g := range groups {
		if !follow(e.own, g) {
			e.bent = append(e.bent, g)
			for _, ids := range e.own {
				e.ids = append(e.ids, ids[g])
			}
		}
	}
	slices.Sort(e.ids)
	for i, g := range e.bent {
		for r, ids := range e.own {
			ids[g] = e.ids[i*rows+r]
		}
	}
}

// follow says whether a group's page of each row follows that of the row before.
func follow(rows [][]pageID, group int) bool {
	for r := 1; r < len(rows); r++ {
		if rows[r][group] != rows[r-1][group]+1 {
			return false
		}
	}
	return true
}

// copyRowLocked notes what to copy of the shared page p of a session into its own row: what each layer has there.
func (st *Store) copyRowLocked(s *session, l, p int, mine *row, e *encoder) {
	shared := s.row(p)
	for m := range s.shape.layers {
		h := &s.shape.layers[m]
		if s.freed[m] > p || s.lengths[m] <= p*attention.PageLen {
			continue
		}
		for g := range h.groups {
			if !h.stores(g, p) {
				continue
			}
			i := h.first + g
			e.copies = append(e.copies, struct{ to, from []byte }{h.class.page(mine.pages[i]), h.class.page(shared.pages[i])})
		}
	}
}

// roomLocked takes all pages that are wanted, need bytes, or none. What it has taken it keeps while it makes room for the others, so
// each eviction is a step forward. With an error it says how many bytes were still needed.
func (st *Store) roomLocked(e *encoder, by claimant, need int64) (int64, error) {
	if st.rowsLocked(e) {
		return 0, nil
	}
	evicted := false
	for i, w := range e.wants {
		for {
			err := st.pages.take(w.class, w.ids, w.after, w.row.shape.owner)
			if err == nil {
				need -= int64(len(w.ids) * w.class.size)
				w.row.shape.account.bytes += int64(len(w.ids) * w.class.size)
				break
			}
			if !st.evictForLocked(err, need, by, &evicted) {
				st.giveBackLocked(e.wants[:i])
				return need, err
			}
		}
	}
	return 0, nil
}

// rowsLocked takes all pages that are wanted, if they are of several rows of one layer and there is room, and says whether it has.
func (st *Store) rowsLocked(e *encoder) bool {
	e.own = e.own[:0]
	for _, w := range e.wants {
		if !w.own {
			return false
		}
		e.own = append(e.own, w.ids)
	}
	if len(e.own) < 2 {
		return false
	}
	w := &e.wants[0]
	if st.pages.takeRows(w.class, e.own, w.after, w.row.shape.owner) != nil {
		return false // row by row, room is made for each
	}
	w.row.shape.account.bytes += int64(len(e.own) * len(w.ids) * w.class.size)
	return true
}

func (st *Store) giveBackLocked(wants []want) {
	for _, w := range wants {
		for j, id := range w.ids {
			st.pages.give(w.class, id)
			w.row.shape.account.bytes -= int64(w.class.size)
			w.ids[j] = 0
		}
	}
}

// cancelLocked returns what reserveRows and reserve have taken.
func (st *Store) cancelLocked(s *session, e *encoder) {
	st.giveBackLocked(e.wants)
	st.freeRowsLocked(s.shape, e.made)
	e.forget()
}

// adoptLocked puts the rows of an append, from page first on, into the session.
func (st *Store) adoptLocked(s *session, first int, e *encoder) {
	for _, w := range e.wants {
		w.row.bytes += int64(len(w.ids) * w.class.size)
	}
	s.rows = append(s.rows, e.gap...)
	for i, r := range e.rows {
		switch p := first + i; {
		case !e.fresh[i]:
		case p < s.end():
			st.releaseLocked(s.row(p), s, p)
			s.rows[p-s.first] = r
		default:
			s.rows = append(s.rows, r)
		}
	}
	e.forget()
}
