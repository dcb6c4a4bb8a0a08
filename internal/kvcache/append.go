package kvcache

import (
	"errors"
	"fmt"

	"headwater.example/attention"
	"headwater.example/shard"
	"headwater.example/tensor"
)

// Append is what an append is given; the store only reads it and keeps none of it.
type Append struct {
	Session     SessionID
	Epoch       Epoch
	Truncations uint64
	Layer       shard.Layer
	// Length is how many positions the layer must have, Hashes [groups] the hash that each held group must have.
	Length uint64
	Hashes []uint64
	// Positions is how many follow, 0 to MaxAppend; 0 only compares.
	Positions int
	// Encoding is that of K and V: tensor.F32, which is narrowed, or the layer's storage type.
	Encoding tensor.DType
	// K [groups, Positions, head_dim] and V [groups, Positions, v_dim], little endian; where Encoding is tensor.I8, KScale
	// and VScale [groups, Positions] in f32, little endian.
	K, V, KScale, VScale []byte
	// Tokens [Positions] lets others find the prefix, or is empty.
	Tokens []uint32
	// Query is the position of the first query that is to attend over the view.
	Query uint64
}

// Append adds positions to all held groups of a layer, or to none. It returns the layer's length and appends its hashes after
// it to hashes, which may be nil. What is there already with the same hashes is a success and not added again; tokens that are
// known to be others are refused in any case.
//
// With a view it opens the view on the layer as it is then, and what was added is the session's only once the view's Keep is
// called: a view that is released without it has changed nothing. Until then other calls that would change the session
// wait, those that look at it see it as before, and a must stay as it is.
func (st *Store) Append(a *Append, hashes []uint64, v *View) (length uint64, _ []uint64, _ error) {
	s, err := st.drive(a.Session, a.Epoch)
	if err != nil {
		return 0, hashes, err
	}
	defer s.mu.Unlock()
	defer func() {
		if v == nil || v.pending.session == nil {
			s.busy.Unlock()
		}
	}()
	l, err := s.check(a)
	if err != nil {
		return 0, hashes, err
	}
	h := &s.shape.layers[l]
	if v != nil {
		if err := s.sees(l, a.Query); err != nil {
			return 0, hashes, err
		}
	}
	p := pending{session: s, layer: l, append: a, query: maxPositions}
	switch have := uint64(s.lengths[l]); {
	case have == a.Length:
		if err := s.same(l, a.Hashes, s.hashes[h.first:]); err != nil {
			return 0, hashes, err
		}
		if err := s.tells(a); err != nil {
			return 0, hashes, err
		}
		if v != nil {
			if err := st.holes(v, s, l, a.Query, p.to()); err != nil {
				return 0, hashes, err
			}
		}
		if a.Positions == 0 {
			break
		}
		p.encoder = st.encoder()
		if err := st.prepare(&p); err != nil {
			if v != nil {
				st.noHoles(v)
			}
			st.putEncoder(p.encoder)
			return 0, hashes, err
		}
		hashes = append(hashes, p.encoder.hashes...)
		if v == nil {
			st.commit(&p)
			return uint64(s.lengths[l]), hashes, nil
		}
		p.query = int(a.Query)
		st.mu.Lock()
		st.view(v, s, l, a.Query, p.encoder.rows, p.to())
		st.mu.Unlock()
		v.pending = p
		return uint64(p.to()), hashes, nil
	case have == a.Length+uint64(a.Positions):
		e := st.encoder()
		defer st.putEncoder(e)
		if err := s.repeats(l, a, e); err != nil {
			return 0, hashes, err
		}
		if err := s.tells(a); err != nil {
			return 0, hashes, err
		}
		if v != nil {
			if err := st.holes(v, s, l, a.Query, s.lengths[l]); err != nil {
				return 0, hashes, err
			}
		}
	case have < a.Length:
		return 0, hashes, refuse(Behind, "session %s: layer %d has %d positions, the step builds on %d", s.id, a.Layer, have, a.Length).at(a.Layer, s.lengths[l])
	default:
		return 0, hashes, refuse(Ahead, "session %s: layer %d has %d positions, the step builds on %d and appends %d", s.id, a.Layer, have, a.Length, a.Positions).at(a.Layer, s.lengths[l])
	}
	if v != nil {
		st.mu.Lock()
		st.view(v, s, l, a.Query, nil, s.lengths[l])
		st.mu.Unlock()
	}
	return uint64(s.lengths[l]), append(hashes, s.hashes[h.first:h.first+len(h.groups)]...), nil
}

// check compares an append with the session's config and with itself, and returns the index of its layer.
func (s *session) check(a *Append) (int, *Error) {
	invalid := func(format string, args ...any) *Error {
		err := refuse(Invalid, "session %s: layer %d: %s", s.id, a.Layer, fmt.Sprintf(format, args...))
		err.Layer = a.Layer
		return err
	}
	if a.Truncations != s.truncations {
		return 0, s.otherTruncations(a.Truncations)
	}
	l, held := s.shape.layer(a.Layer)
	if !held {
		return 0, invalid("it is not held here")
	}
	h := &s.shape.layers[l]
	groups, n, dt := len(h.groups), a.Positions, h.Layout.DType()
	switch {
	case len(a.Hashes) != groups:
		return 0, invalid("%d hashes, %d groups are held", len(a.Hashes), groups)
	case n < 0 || n > MaxAppend:
		return 0, invalid("an append of %d positions, at most %d are allowed: cut it into several", n, MaxAppend)
	case a.Length > maxPositions:
		return 0, invalid("length %d is more than %d", a.Length, int64(maxPositions))
	case n > 0 && a.Encoding != dt && a.Encoding != tensor.F32:
		return 0, invalid("keys and values in %s, not in F32 or %s", a.Encoding, dt)
	case len(a.Tokens) != 0 && len(a.Tokens) != n:
		return 0, invalid("%d token ids for %d positions", len(a.Tokens), n)
	}
	scale := 0
	if a.Encoding == tensor.I8 {
		scale = 4
	}
	for _, t := range [...]struct {
		name  string
		bytes []byte
		row   int // bytes of one position
		dt    tensor.DType
	}{
		{"k", a.K, h.Layout.HeadDim() * a.Encoding.Size(), a.Encoding},
		{"v", a.V, h.Layout.VDim() * a.Encoding.Size(), a.Encoding},
		{"k_scale", a.KScale, scale, tensor.F32},
		{"v_scale", a.VScale, scale, tensor.F32},
	} {
		if want := groups * n * t.row; len(t.bytes) != want {
			return 0, invalid("%s has %d bytes, %d positions of %d groups are %d", t.name, len(t.bytes), n, groups, want)
		}
		if i, x, ok := tensor.CheckFinite(t.bytes, t.dt, false); !ok {
			row := int(i) * t.dt.Size() / t.row
			return 0, invalid("group %d: %s at position %d: element %d is %v", h.groups[row/n], t.name, a.Length+uint64(row%n), int(i)%(t.row/t.dt.Size()), x).of(h.groups[row/n])
		}
	}
	return l, nil
}

// tells compares the tokens of an append with those that are known.
func (s *session) tells(a *Append) *Error {
	for i, token := range a.Tokens {
		if at := int(a.Length) + i; at < len(s.tokens) && s.tokens[at] != token {
			return refuse(Invalid, "session %s: layer %d: token %d at position %d was said to be %d", s.id, a.Layer, token, at, s.tokens[at]).at(a.Layer, int(a.Length))
		}
	}
	return nil
}

// repeats compares an append with what is there.
func (s *session) repeats(l int, a *Append, e *encoder) *Error {
	h := &s.shape.layers[l]
	for i, g := range h.groups {
		e.chain.receipt = Receipt{Length: a.Length, Hash: a.Hashes[i]}
		for at := 0; at < a.Positions; at += attention.PageLen {
			m := min(a.Positions-at, attention.PageLen)
			rows, err := e.encode(h, a, i, at, m)
			if err == nil {
				err = e.chain.Update(rows, m, h.Layout)
			}
			if err != nil {
				return refuse(Invalid, "session %s: layer %d group %d: %v", s.id, h.layer, g, err).at(h.layer, s.lengths[l]).of(g)
			}
		}
		if have := s.hashes[h.first+i]; have != e.chain.receipt.Hash {
			return refuse(Different, "session %s: layer %d group %d has %d positions with hash %016x, the step would make it %016x", s.id, h.layer, g,
				s.lengths[l], have, e.chain.receipt.Hash).at(h.layer, s.lengths[l]).of(g)
		}
	}
	return nil
}

// pending is an append that is written and not yet the session's, whose busy lock it holds. Its pages are those of the
// encoder's rows, beyond what the session has.
type pending struct {
	session *session
	layer   int // that is held
	append  *Append
	query   int // queries from there on are to see what they see
	encoder *encoder
}

// to is the layer's length with the append.
func (p *pending) to() int { return p.session.lengths[p.layer] + p.append.Positions }

// prepare writes positions that fit. Of the session nothing changes.
func (st *Store) prepare(p *pending) *Error {
	s, e, h := p.session, p.encoder, &p.session.shape.layers[p.layer]
	from := s.lengths[p.layer]
	first := from / attention.PageLen
	if gap := first - s.end(); gap > maxGap {
		return refuse(Invalid, "session %s: layer %d begins at position %d, and no layer has more than %d yet: append to those first that begin earlier",
			s.id, h.layer, from, s.end()*attention.PageLen).at(h.layer, from)
	}
	copies, err := st.reserveRows(s, p.layer, first, pagesOf(p.to()), e)
	if err != nil {
		return err
	}
	e.plan(s, first, pagesOf(p.to()), copies)
	if err := st.reserve(s, p.layer, first, e); err != nil {
		return err
	}
	for _, c := range e.copies {
		copy(c.to, c.from)
	}
	e.hashes = e.hashes[:0]
	for i, g := range h.groups {
		if err := e.write(s, p.layer, p.append, i); err != nil {
			st.mu.Lock()
			st.cancel(s, e)
			st.unlock()
			return refuse(Invalid, "session %s: layer %d group %d: %v", s.id, h.layer, g, err).at(h.layer, from).of(g)
		}
		e.hashes = append(e.hashes, e.chain.receipt.Hash)
	}
	return nil
}

// commit makes an append the session's. The caller has the session's locks.
func (st *Store) commit(p *pending) {
	s, l, e, h := p.session, p.layer, p.encoder, &p.session.shape.layers[p.layer]
	from, to := s.lengths[l], p.to()
	copy(s.hashes[h.first:], e.hashes)
	s.lengths[l] = to
	if known := len(s.tokens) - from; known >= 0 && known < len(p.append.Tokens) {
		s.tokens = append(s.tokens, p.append.Tokens[known:]...)
	}
	st.mu.Lock()
	st.adopt(s, from/attention.PageLen, e)
	if s.filled() > s.keyed {
		st.index(s)
	}
	seen := h.seenFrom(min(from, p.query))
	if len(s.tokens)/attention.PageLen > s.keyed {
		seen = min(seen, s.keyed) // Others may find the pages once all layers have filled them.
	}
	if s.begun == nil || to > s.begun[l].length {
		st.leaveUntil(s, l, seen)
	}
	st.encoders = append(st.encoders, e)
	st.unlock()
}

// index gives keys to the pages that are full in every layer and whose tokens are known, and lets others find them.
func (st *Store) index(s *session) {
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
		if x.entries[key] == nil && (p == 0 || before != nil) && r.entry == nil && r.whole() {
			st.share(r)
			x.add(key, r, before)
		}
	}
}

// want is pages that an append needs for one layer of one row.
type want struct {
	row   *row
	class *class
	ids   []pageID
}

// encoder is the room that an append works in.
type encoder struct {
	rows   []*row // from the first page of the append on
	fresh  []bool // of rows: not in the session yet
	gap    []*row // new ones before them, after what the session has
	spare  []*row // new ones for copies of shared rows
	made   int    // of all these, how many are new and not the session's yet
	wants  []want
	copies []struct{ to, from []byte }
	pages  [][]byte // [groups][pages]
	hashes []uint64 // [groups]

	chain          Hasher
	floats         []float32
	k, v           []byte
	kScale, vScale []float32
	quants         []int8
}

// encoder returns one that is in no use; there are at most as many as there were appends at the same time.
func (st *Store) encoder() *encoder {
	st.mu.Lock()
	defer st.mu.Unlock()
	n := len(st.encoders) - 1
	if n < 0 {
		return new(encoder)
	}
	e := st.encoders[n]
	st.encoders = st.encoders[:n]
	return e
}

func (st *Store) putEncoder(e *encoder) {
	st.mu.Lock()
	defer st.mu.Unlock()
	st.encoders = append(st.encoders, e)
}

// copies says whether the copy that an append to held layer l makes of page p's row has pages of held layer m.
func (s *session) copies(l, m, p int) bool {
	return s.freed[m] <= p && (m == l || s.lengths[m] > p*attention.PageLen)
}

// reserveRows takes room in the budget for the rows that an append to held layer l will make up to page end, of which it says
// how many are for copies of shared ones, or none. Where there is no room it makes some, if that is enough for the pages as well.
func (st *Store) reserveRows(s *session, l, first, end int, e *encoder) (copies int, _ *Error) {
	h := &s.shape.layers[l]
	st.mu.Lock()
	defer st.unlock()
	made := max(end-s.end(), 0) // also those of a gap before first
	need := int64(max(end-max(first, s.end()), 0)) * int64(len(h.groups)*h.class.size)
	for p := first; p < min(end, s.end()); p++ {
		switch r := s.row(p); {
		case r.refs > 1:
			copies++
			for m := range s.shape.layers {
				if s.copies(l, m, p) {
					need += int64(len(s.shape.layers[m].groups) * s.shape.layers[m].class.size)
				}
			}
		case r.pages[h.first] == 0:
			need += int64(len(h.groups) * h.class.size)
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
		if !st.evictFor(err, rows+need, &evicted) {
			return 0, s.noRoom(l, rows+need, err)
		}
	}
}

// evictFor makes some of the room that need bytes of the budget want, for which err found none, and says whether it did. In vain
// nothing is evicted.
func (st *Store) evictFor(err error, need int64, evicted *bool) bool {
	var full *BudgetError
	if errors.As(err, &full) && (*evicted || st.frees(need-(st.budget.Total()-st.budget.Used()))) && st.evict() {
		*evicted = true
		return true
	}
	return false
}

func (s *session) noRoom(l int, need int64, err error) *Error {
	layer := s.shape.layers[l].layer
	return refuse(OverBudget, "session %s: layer %d: append from position %d on: %d more bytes of pages are needed: %v: drop or truncate a session, or try again later",
		s.id, layer, s.lengths[l], need, err).at(layer, s.lengths[l])
}

// plan lays out the rows of pages [first, end): those that are there, and new ones; and makes those of a gap before, and for
// copies of shared ones.
func (e *encoder) plan(s *session, first, end, copies int) {
	e.rows, e.fresh, e.gap, e.spare = e.rows[:0], e.fresh[:0], e.gap[:0], e.spare[:0]
	for p := s.end(); p < first; p++ {
		e.gap = append(e.gap, s.newRow(p))
	}
	for range copies {
		e.spare = append(e.spare, newRow(s.shape))
	}
	for p := first; p < end; p++ {
		if p < s.end() {
			e.rows, e.fresh = append(e.rows, s.row(p)), append(e.fresh, false)
		} else {
			e.rows, e.fresh = append(e.rows, s.newRow(p)), append(e.fresh, true)
		}
	}
}

// reserve takes the pages that an append to held layer l needs from page first on, for all of its groups and for the copies
// of shared rows, or none. Where there is no room it makes some.
func (st *Store) reserve(s *session, l, first int, e *encoder) *Error {
	h := &s.shape.layers[l]
	groups := len(h.groups)
	st.mu.Lock()
	defer st.unlock()
	e.wants, e.copies, e.pages = e.wants[:0], e.copies[:0], e.pages[:0]
	var need int64
	add := func(r *row, h *heldLayer) {
		e.wants = append(e.wants, want{row: r, class: h.class, ids: r.pages[h.first : h.first+len(h.groups)]})
		need += int64(len(h.groups) * h.class.size)
	}
	for i, r := range e.rows {
		if e.fresh[i] || r.refs == 1 {
			if r.pages[h.first] == 0 {
				add(r, h)
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
				add(mine, &s.shape.layers[m])
			}
		}
	}
	// Who shared a row may have left it meanwhile.
	st.freeRows(s.shape, len(e.spare))
	e.made -= len(e.spare)
	if need, err := st.room(e, need); err != nil {
		st.freeRows(s.shape, e.made)
		e.forget()
		return s.noRoom(l, need, err)
	}
	for i, r := range e.rows {
		if p := first + i; e.fresh[i] && p < s.end() {
			st.copyRow(s, l, p, r, e)
		}
	}
	for g := range groups {
		for _, r := range e.rows {
			e.pages = append(e.pages, h.class.page(r.pages[h.first+g]))
		}
	}
	return nil
}

// copyRow notes what to copy of the shared page p of a session into its own row: what each layer has there.
func (st *Store) copyRow(s *session, l, p int, mine *row, e *encoder) {
	shared := s.row(p)
	for m := range s.shape.layers {
		h := &s.shape.layers[m]
		if s.freed[m] > p || s.lengths[m] <= p*attention.PageLen {
			continue
		}
		for i := h.first; i < h.first+len(h.groups); i++ {
			e.copies = append(e.copies, struct{ to, from []byte }{h.class.page(mine.pages[i]), h.class.page(shared.pages[i])})
		}
	}
}

// room takes all pages that are wanted, need bytes, or none. What it has taken it keeps while it makes room for the others, so
// each eviction is a step forward. With an error it says how many bytes were still needed.
func (st *Store) room(e *encoder, need int64) (int64, error) {
	evicted := false
	for i, w := range e.wants {
		for {
			err := st.pages.take(w.class, w.ids)
			if err == nil {
				need -= int64(len(w.ids) * w.class.size)
				break
			}
			if !st.evictFor(err, need, &evicted) {
				st.giveBack(e.wants[:i])
				return need, err
			}
		}
	}
	return 0, nil
}

func (st *Store) giveBack(wants []want) {
	for _, w := range wants {
		for j, id := range w.ids {
			st.pages.give(w.class, id)
			w.ids[j] = 0
		}
	}
}

// cancel gives back what reserveRows and reserve have taken.
func (st *Store) cancel(s *session, e *encoder) {
	st.giveBack(e.wants)
	st.freeRows(s.shape, e.made)
	e.forget()
}

// adopt puts the rows of an append, from page first on, into the session.
func (st *Store) adopt(s *session, first int, e *encoder) {
	for _, w := range e.wants {
		w.row.bytes += int64(len(w.ids) * w.class.size)
	}
	s.rows = append(s.rows, e.gap...)
	for i, r := range e.rows {
		switch p := first + i; {
		case !e.fresh[i]:
		case p < s.end():
			st.release(s.row(p), s, p)
			s.rows[p-s.first] = r
		default:
			s.rows = append(s.rows, r)
		}
	}
	e.forget()
}

// forget lets go of what the next append must not keep from being freed.
func (e *encoder) forget() {
	e.made = 0
	clear(e.rows)
	clear(e.gap)
	clear(e.spare[:cap(e.spare)])
	clear(e.wants)
	clear(e.copies)
	clear(e.pages)
}

// write stores the rows of the i-th group and leaves its chain at their end.
func (e *encoder) write(s *session, l int, a *Append, i int) error {
	h := &s.shape.layers[l]
	from := s.lengths[l]
	e.chain.receipt = Receipt{Length: uint64(from), Hash: s.hashes[h.first+i]}
	pages := e.pages[i*len(e.rows):][:len(e.rows)]
	for done := 0; done < a.Positions; {
		at := from + done
		p, in := at/attention.PageLen-from/attention.PageLen, at%attention.PageLen
		m := min(a.Positions-done, attention.PageLen-in)
		rows, err := e.encode(h, a, i, done, m)
		if err != nil {
			return err
		}
		if err := h.Layout.Write(pages[p], in, m, rows); err != nil {
			return err
		}
		if err := e.chain.Update(rows, m, h.Layout); err != nil {
			return err
		}
		if in+m == attention.PageLen {
			e.rows[p].hashes[h.first+i] = e.chain.receipt.Hash
		}
		done += m
	}
	return nil
}

// encode returns positions [at, at+m) of the append's i-th group in the storage type. They are valid until the next call.
func (e *encoder) encode(h *heldLayer, a *Append, i, at, m int) (attention.Rows, error) {
	at += i * a.Positions
	dt := h.Layout.DType()
	part := func(b []byte, row int) []byte { return b[at*row:][:m*row] }
	if a.Encoding == dt {
		rows := attention.Rows{K: part(a.K, h.Layout.KRowBytes()), V: part(a.V, h.Layout.VRowBytes())}
		if scaled(h.Layout) {
			e.kScale, e.vScale = resize(e.kScale, m), resize(e.vScale, m)
			rows.KScale, rows.VScale = e.kScale, e.vScale
			if err := errors.Join(tensor.Widen(e.kScale, part(a.KScale, 4), tensor.F32), tensor.Widen(e.vScale, part(a.VScale, 4), tensor.F32)); err != nil {
				return rows, err
			}
		}
		return rows, nil
	}
	e.k, e.v = resize(e.k, m*h.Layout.KRowBytes()), resize(e.v, m*h.Layout.VRowBytes())
	rows := attention.Rows{K: e.k, V: e.v}
	if scaled(h.Layout) {
		e.kScale, e.vScale = resize(e.kScale, m), resize(e.vScale, m)
		rows.KScale, rows.VScale = e.kScale, e.vScale
	}
	for _, t := range [...]struct {
		name   string
		dst    []byte
		scales []float32
		src    []byte
		dim    int
	}{
		{"k", rows.K, rows.KScale, a.K, h.Layout.HeadDim()},
		{"v", rows.V, rows.VScale, a.V, h.Layout.VDim()},
	} {
		e.floats = resize(e.floats, m*t.dim)
		if err := tensor.Widen(e.floats, part(t.src, 4*t.dim), tensor.F32); err != nil {
			return rows, err
		}
		if !scaled(h.Layout) {
			if err := tensor.Narrow(t.dst, e.floats, dt); err != nil {
				var out *tensor.RangeError
				if errors.As(err, &out) {
					position := a.Length + uint64(at-i*a.Positions+out.Index/t.dim)
					return rows, fmt.Errorf("%s at position %d: element %d: %g exceeds the range of %s", t.name, position, out.Index%t.dim, out.Value, dt)
				}
				return rows, err
			}
			continue
		}
		e.quants = resize(e.quants, t.dim)
		for j := range m {
			t.scales[j] = tensor.QuantizeI8(e.quants, e.floats[j*t.dim:][:t.dim])
			for c, q := range e.quants {
				t.dst[j*t.dim+c] = byte(q)
			}
		}
	}
	return rows, nil
}

// resize returns s, or another slice where s is too small, with n elements of any value.
func resize[E any](s []E, n int) []E {
	if cap(s) < n {
		return make([]E, n)
	}
	return s[:n]
}
