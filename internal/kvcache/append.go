package kvcache

import (
	"cmp"
	"context"
	"fmt"

	"headwater.example/attention"
	"headwater.example/shard"
	"headwater.example/tensor"
)

// Append has the arguments of an append; the store only reads it and keeps none of it.
type Append struct {
	Session     SessionID
	Epoch       Epoch
	Truncations uint64
	Layer       shard.Layer
	// Length is how many positions the layer must have, Hashes [groups] the hash that each held group must have.
	Length uint64
	Hashes []uint64
	// Chain is that which the layer must have, and ID the append's own: random, the same when it is repeated, and not 0.
	Chain, ID uint64
	// Positions is how many follow, 0 to shard.MaxStepTokens; 0 only compares.
	Positions int
	// Encoding is that of K and V: tensor.F32, which is narrowed, or the layer's storage type.
	Encoding tensor.DType
	// K [groups, Positions, head_dim] and V [groups, Positions, v_dim], little endian; where Encoding is tensor.I8, KScale
	// and VScale [groups, Positions] in f32, little endian. Of a layer in stripes each shard has only the rows of positions that it
	// stores.
	K, V, KScale, VScale []byte
	// Tokens [Positions] lets others find the prefix, or is empty.
	Tokens []uint32
	// Query is the position of the first query that is to attend over the view.
	Query uint64
	// Metered is of a tenant's own call: its quota holds.
	Metered bool
	// After [groups], unless nil, are the hashes that the held groups are to have with the append. If they would have others nothing is
	// appended.
	After []uint64
}

// Append adds positions to all held groups of a layer, or to none. It returns the layer's length and appends its hashes after
// it to hashes, which may be nil. Positions that are there already with the same hashes are a success and not added again; tokens that are
// known to be others are refused in any case.
func (st *Store) Append(ctx context.Context, a *Append, hashes []uint64) (length uint64, _ []uint64, _ error) {
	var p Pending
	length, hashes, err := st.prepare(ctx, &p, a, hashes, nil)
	if err != nil {
		return 0, hashes, err
	}
	p.Commit()
	return length, hashes, nil
}

// Prepare does what Append does, except that what it adds is the session's only once p is committed. It opens p's view on the
// layer with the append, for queries from a.Query on. Until p is committed or aborted, other calls that would change the
// session wait, those that look at it see it as before, and a must stay as it is. After an error p is as it was.
func (st *Store) Prepare(ctx context.Context, p *Pending, a *Append, hashes []uint64) (length uint64, _ []uint64, _ error) {
	return st.prepare(ctx, p, a, hashes, &p.View)
}

// prepare opens v unless it is nil. If there is something to commit, p takes over the session's busy lock.
func (st *Store) prepare(ctx context.Context, p *Pending, a *Append, hashes []uint64, v *View) (length uint64, _ []uint64, _ error) {
	s, err := st.drive(ctx, a.Session, a.Epoch)
	if err != nil {
		return 0, hashes, err
	}
	length, hashes, refused := st.prepareIn(s, p, a, hashes, v)
	s.mu.Unlock()
	if p.session == nil {
		s.busy.unlock()
	}
	if refused != nil {
		return 0, hashes, refused
	}
	return length, hashes, nil
}

// prepareIn is prepare in a session whose locks are held.
func (st *Store) prepareIn(s *session, p *Pending, a *Append, hashes []uint64, v *View) (uint64, []uint64, *Error) {
	l, err := s.check(a)
	if err == nil && v != nil {
		err = s.sees(l, a.Query)
	}
	if err != nil {
		return 0, hashes, err
	}
	isNew, err := st.compare(s, l, a)
	if err != nil {
		return 0, hashes, err
	}
	h, to := &s.shape.layers[l], s.lengths[l]
	if isNew {
		to += a.Positions
	}
	if v != nil {
		if err := st.holes(v, s, l, a.Query, to); err != nil {
			return 0, hashes, err
		}
	}
	if !isNew {
		if v != nil {
			st.openView(v, s, l, a.Query, nil, to)
		}
		return uint64(to), append(hashes, s.hashes[h.first:h.first+len(h.groups)]...), nil
	}
	e := st.encoder()
	e.metered = a.Metered
	if err := st.write(s, l, a, e); err != nil {
		if v != nil {
			st.noHoles(v)
		}
		st.putEncoder(e)
		return 0, hashes, err
	}
	p.store, p.session, p.layer, p.append, p.query, p.encoder = st, s, l, a, shard.MaxPositions, e
	if v != nil {
		p.query = int(a.Query)
		st.openView(v, s, l, a.Query, e.rows, to)
	}
	return uint64(to), append(hashes, e.hashes...), nil
}

// compare compares the state that an append names with held layer l, and reports whether the append adds something.
func (st *Store) compare(s *session, l int, a *Append) (isNew bool, _ *Error) {
	h, length := &s.shape.layers[l], s.lengths[l]
	switch have := uint64(length); {
	case have == a.Length:
		if a.Chain != s.identities[l].chain {
			return false, s.otherChain(l, a.Chain, s.identities[l].chain)
		}
		if err := s.same(l, a.Hashes, s.hashes[h.first:]); err != nil {
			return false, err
		}
	case have == a.Length+uint64(a.Positions):
		id := &s.identities[l]
		if a.ID != id.appendID || a.Length != uint64(id.before.length) || a.Chain != id.before.chain {
			return false, s.otherChain(l, NextChain(a.Chain, a.ID, a.Length), id.chain)
		}
		e := st.encoder()
		defer st.putEncoder(e)
		return false, cmp.Or(s.repeats(l, a, e), s.tells(a))
	case have < a.Length:
		return false, refuse(Behind, "session %s: layer %d has %d positions, the step builds on %d", s.id, a.Layer, have, a.Length).at(a.Layer, length)
	default:
		return false, refuse(Ahead, "session %s: layer %d has %d positions, the step builds on %d and appends %d", s.id, a.Layer, have, a.Length, a.Positions).at(a.Layer, length)
	}
	return a.Positions > 0, s.tells(a)
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
	case n > 0 && a.ID == 0:
		return 0, invalid("an append has an id, which is not 0")
	case len(a.Hashes) != groups:
		return 0, invalid("%d hashes, %d groups are held", len(a.Hashes), groups)
	case n < 0 || n > shard.MaxStepTokens:
		return 0, invalid("an append has %d positions, and at most %d are allowed: cut it into several", n, shard.MaxStepTokens)
	case a.Length > shard.MaxPositions:
		return 0, invalid("length %d is more than %d", a.Length, int64(shard.MaxPositions))
	case n > 0 && a.Encoding != dt && a.Encoding != tensor.F32:
		return 0, invalid("keys and values in %s, not in F32 or %s", a.Encoding, dt)
	case len(a.Tokens) != 0 && len(a.Tokens) != n:
		return 0, invalid("%d token ids for %d positions", len(a.Tokens), n)
	}
	scale, stored := 0, h.stored(int(a.Length), n)
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
		if want := stored * t.row; len(t.bytes) != want {
			return 0, invalid("%s has %d bytes, %d positions of %d groups are %d", t.name, len(t.bytes), n, groups, want)
		}
		if i, x, ok := tensor.CheckFinite(t.bytes, t.dt, false); !ok {
			g, position := h.rowAt(int(a.Length), n, int(i)*t.dt.Size()/t.row)
			return 0, invalid("%s: %s at position %d: element %d is %v", h.name(g), t.name, position, int(i)%(t.row/t.dt.Size()), x).of(g)
		}
	}
	return l, nil
}

// rowAt returns of which held group and of which position a row of an append is that has n positions from position from on.
func (h *heldLayer) rowAt(from, n, row int) (g shard.Group, position int) {
	for _, g = range h.groups {
		stored := h.Stored(int(g), from, n)
		if row < stored {
			h.Runs(int(g), from, n, func(at, count, before int) bool {
				position = at + row - before
				return row >= before+count
			})
			break
		}
		row -= stored
	}
	return g, position
}

// tells compares the tokens of an append with the known ones.
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
	first := 0
	for i, g := range h.groups {
		e.chain.receipt.Hash = a.Hashes[i]
		var err error
		h.Runs(int(g), int(a.Length), a.Positions, func(at, count, row int) bool {
			for done := 0; done < count && err == nil; done += attention.PageLen {
				m := min(count-done, attention.PageLen)
				var rows attention.Rows
				if rows, err = e.encode(h, a, first+row+done, m, at+done); err == nil {
					e.chain.Pass(uint64(at + done))
					err = e.chain.Update(rows, m, h.Layout)
				}
			}
			return err == nil
		})
		if err != nil {
			return refuse(Invalid, "session %s: layer %d %s: %v", s.id, h.layer, h.name(g), err).at(h.layer, s.lengths[l]).of(g)
		}
		first += h.Stored(int(g), int(a.Length), a.Positions)
		if have := s.hashes[h.first+i]; have != e.chain.receipt.Hash {
			return refuse(Different, "session %s: layer %d %s has %d positions with hash %016x, the step would make it %016x", s.id, h.layer, h.name(g),
				s.lengths[l], have, e.chain.receipt.Hash).at(h.layer, s.lengths[l]).of(g)
		}
	}
	return nil
}
