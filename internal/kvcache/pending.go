package kvcache

import (
	"slices"

	"headwater.example/attention"
)

// Pending is an append that is written and not yet the session's. Its zero value, and one whose call is over, has nothing to
// commit and may be used again. It is used by one caller at a time.
type Pending struct {
	// View is on the layer with the append. Abort ends it.
	View View

	// The session, whose busy lock is held, or nil if there is nothing to commit. The append's pages are in the encoder's rows,
	// beyond what the session has.
	session *session
	store   *Store
	layer   int // index among those held
	append  *Append
	query   int // queries from there on are to see what they see
	encoder *encoder
}

// to is the layer's length with the append.
func (p *Pending) to() int { return p.session.lengths[p.layer] + p.append.Positions }

// Commit makes the append the session's, if there is one. The view stays open.
func (p *Pending) Commit() {
	s := p.session
	if s == nil {
		return
	}
	s.mu.Lock()
	p.commit()
	s.mu.Unlock()
	p.forget()
	s.busy.unlock()
}

// Abort ends the view. An append that was not committed leaves nothing.
func (p *Pending) Abort() {
	p.View.Release() // before its pages are given back
	s := p.session
	if s == nil {
		return
	}
	st := p.store
	st.mu.Lock()
	st.cancelLocked(s, p.encoder)
	st.encoders = append(st.encoders, p.encoder)
	st.unlock()
	p.forget()
	s.busy.unlock()
}

// forget leaves nothing to commit.
func (p *Pending) forget() {
	p.session, p.store, p.append, p.encoder = nil, nil, nil, nil
}

// commit needs the session's locks.
func (p *Pending) commit() {
	st, s, l, e, h := p.store, p.session, p.layer, p.encoder, &p.session.shape.layers[p.layer]
	from, to := s.lengths[l], p.to()
	s.remember(l)
	copy(s.hashes[h.first:], e.hashes)
	s.lengths[l] = to
	id := &s.identities[l]
	id.chain, id.appendID = NextChain(p.append.Chain, p.append.ID, uint64(from)), p.append.ID
	if known := len(s.tokens) - from; known >= 0 && known < len(p.append.Tokens) {
		s.tokens = append(s.tokens, p.append.Tokens[known:]...)
	}
	st.mu.Lock()
	defer st.unlock()
	st.adoptLocked(s, from/attention.PageLen, e)
	shared := !s.shape.config.Unshared
	if shared && s.filled() > s.keyed {
		st.indexLocked(s)
	}
	seen := h.seenFrom(min(from, p.query))
	if shared && len(s.tokens)/attention.PageLen > s.keyed {
		seen = min(seen, s.keyed) // Others may find the pages once all layers have filled them.
	}
	if s.begun == nil || to > s.begun[l].length {
		st.leaveUntilLocked(s, l, seen)
	}
	st.encoders = append(st.encoders, e)
}

// write writes the positions of an append to held layer l into pages that it takes. The session does not change.
func (st *Store) write(s *session, l int, a *Append, e *encoder) *Error {
	h, from := &s.shape.layers[l], s.lengths[l]
	first, end := from/attention.PageLen, pagesOf(from+a.Positions)
	if gap := first - s.end(); gap > maxGap {
		return refuse(Invalid, "session %s: layer %d begins at position %d, and no layer has more than %d yet: append to those first that begin earlier",
			s.id, h.layer, from, s.end()*attention.PageLen).at(h.layer, from)
	}
	copies, err := st.reserveRows(s, l, first, end, e)
	if err != nil {
		return err
	}
	e.plan(s, first, end, copies)
	if err := st.reserve(s, l, first, e); err != nil {
		return err
	}
	st.budget.MakeWay()
	for _, c := range e.copies {
		copy(c.to, c.from)
	}
	e.hashes = e.hashes[:0]
	row := 0
	for i, g := range h.groups {
		err := e.write(s, l, a, i, row)
		other := err == nil && a.After != nil && e.chain.receipt.Hash != a.After[i]
		if err != nil || other {
			st.mu.Lock()
			st.cancelLocked(s, e)
			st.unlock()
		}
		if other {
			return refuse(Different, "session %s: layer %d %s: the hash after %d positions from %d on is %016x, not %016x: they are not what was appended",
				s.id, h.layer, h.name(g), a.Positions, from, e.chain.receipt.Hash, a.After[i]).at(h.layer, from).of(g)
		}
		if err != nil {
			return refuse(Invalid, "session %s: layer %d %s: %v", s.id, h.layer, h.name(g), err).at(h.layer, from).of(g)
		}
		e.hashes = append(e.hashes, e.chain.receipt.Hash)
		row += h.Stored(int(g), from, a.Positions)
	}
	return nil
}

// indexLocked gives keys to the pages that are full in every layer and whose tokens are known, and lets others find them.
func (st *Store) indexLocked(s *session) {
	x := &st.prefixes
	for ; s.keyed < min(s.filled(), len(s.tokens)/attention.PageLen); s.keyed++ {
		p := s.keyed
		key := s.shape.root
		switch {
		case p < s.first:
			return
		case p == 0:
		case p == s.first:
			key = s.edge.key
		default:
			key = s.row(p - 1).key
		}
		before := x.entries[key]
		key = key.next(s.tokens[p*attention.PageLen:][:attention.PageLen])
		r := s.row(p)
		r.key = key
		if x.entries[key] == nil && (p == 0 || before != nil) && r.entry == nil && r.whole(p) {
			st.shareLocked(r)
			x.add(key, r, before)
		}
	}
}

// leaveUntilLocked counts that a session needs the pages of held layer l before page p no more, and lets rows go that it needs
// in no layer.
func (st *Store) leaveUntilLocked(s *session, l, p int) {
	if p <= s.freed[l] {
		return
	}
	for q := s.freed[l]; q < p; q++ {
		st.leaveLocked(s.row(q), l)
	}
	s.freed[l] = p
	for least := slices.Min(s.freed); s.first < least; s.first++ {
		r := s.rows[0]
		s.edge = edge{hashes: r.hashes, key: r.key}
		st.releaseLocked(r, s, s.first)
		s.rows[0] = nil
		s.rows = s.rows[1:]
	}
}
