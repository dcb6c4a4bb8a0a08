package kvcache

import (
	"slices"

	"headwater.example/attention"
	"headwater.example/shard"
	"headwater.example/tensor"
)

// Export fills rows with positions [start, start+n) of one group of a layer, in the storage type; rows have the lengths that
// attention.Layout.Write asks for. Of a shard of stripes they are positions that it stores. It returns the group's chained hash before
// these positions, and after them as the rows have it.
func (st *Store) Export(id SessionID, layer shard.Layer, group shard.Group, start, n int, rows attention.Rows) (before, after uint64, _ error) {
	return st.export(id, layer, group, start, n, rows, false)
}

// ExportKnown is Export, but for the hash after these positions: it is the one that was stored when they were appended, as far as pages
// are whole. Who receives the rows computes it, and sees if they are others.
func (st *Store) ExportKnown(id SessionID, layer shard.Layer, group shard.Group, start, n int, rows attention.Rows) (before, after uint64, _ error) {
	return st.export(id, layer, group, start, n, rows, true)
}

func (st *Store) export(id SessionID, layer shard.Layer, group shard.Group, start, n int, rows attention.Rows, known bool) (before, after uint64, _ error) {
	s, err := st.open(id, true)
	if err != nil {
		return 0, 0, err
	}
	defer s.mu.Unlock()
	l, i, refused := s.exports(layer, group, start, n)
	if refused != nil {
		return 0, 0, refused
	}
	h := &s.shape.layers[l]
	chain, wrong := st.readRows(s, l, i, start, n, rows)
	if wrong == nil {
		before = chain.receipt.Hash
		from := 0 // the first of the rows that is hashed
		if known {
			from = s.skip(l, i, start, n, chain)
		}
		if from < n {
			wrong = chain.Update(part(rows, h.Layout, from, n-from), n-from, h.Layout)
		}
	}
	if wrong != nil {
		return 0, 0, refuse(Invalid, "session %s: layer %d group %d: export: %v", id, layer, group, wrong).at(layer, s.lengths[l]).of(group)
	}
	return before, chain.receipt.Hash, nil
}

// exports returns the indices of a held layer and of its group, of which the session has positions [start, start+n).
func (s *session) exports(layer shard.Layer, group shard.Group, start, n int) (l, i int, _ *Error) {
	l, held := s.shape.layer(layer)
	if !held {
		return 0, 0, refuse(Invalid, "session %s: layer %d: it is not held here", s.id, layer).at(layer, 0)
	}
	h := &s.shape.layers[l]
	i, held = slices.BinarySearch(h.groups, group)
	switch {
	case !held:
		return 0, 0, refuse(Invalid, "session %s: layer %d group %d: it is not held here", s.id, layer, group).at(layer, s.lengths[l]).of(group)
	case start < 0 || n < 1 || start > s.lengths[l] || n > s.lengths[l]-start:
		return 0, 0, refuse(Invalid, "session %s: layer %d has %d positions, not %d from %d on", s.id, layer, s.lengths[l], n, start).at(layer, s.lengths[l])
	case h.Stored(int(group), start, n) != n:
		return 0, 0, refuse(Invalid, "session %s: layer %d %s: another stripe has some of %d positions from %d on", s.id, layer, h.name(group), n, start).at(layer, s.lengths[l]).of(group)
	case start/attention.PageLen < s.freed[l]:
		return 0, 0, refuse(Freed, "session %s: layer %d: positions before %d have been freed", s.id, layer, s.freed[l]*attention.PageLen).at(layer, s.lengths[l])
	}
	return l, i, nil
}

// readRows fills rows with positions [start, start+n) of the i-th group of held layer l, and returns its chain before them.
func (st *Store) readRows(s *session, l, i, start, n int, rows attention.Rows) (*Hasher, error) {
	h := &s.shape.layers[l]
	if err := checkRows(rows, n, h.Layout); err != nil {
		return nil, err
	}
	var pages [][]byte
	st.mu.Lock()
	for p := start / attention.PageLen; p < pagesOf(start+n); p++ {
		pages = append(pages, h.class.page(s.row(p).pages[h.first+i]))
	}
	st.mu.Unlock()
	first := start / attention.PageLen
	chain := &Hasher{receipt: Receipt{Length: uint64(first * attention.PageLen), Hash: s.checkpoint(first, h.first+i)}}
	if in := start % attention.PageLen; in > 0 {
		earlier := makeRows(h.Layout, in)
		if err := h.Layout.Read(pages[0], 0, in, earlier); err != nil {
			return nil, err
		}
		if err := chain.Update(earlier, in, h.Layout); err != nil {
			return nil, err
		}
	}
	chain.Pass(uint64(start))
	for done := 0; done < n; pages = pages[1:] {
		in := (start + done) % attention.PageLen
		m := min(n-done, attention.PageLen-in)
		if err := h.Layout.Read(pages[0], in, m, part(rows, h.Layout, done, m)); err != nil {
			return nil, err
		}
		done += m
	}
	return chain, nil
}

// skip takes a chain from position start of the i-th group of held layer l to the newest hash that is stored up to start+n, and returns
// how many positions that are.
func (s *session) skip(l, i, start, n int, chain *Hasher) int {
	shard, end := s.shape.layers[l].first+i, start+n
	if end == s.lengths[l] {
		chain.receipt = Receipt{Length: uint64(end), Hash: s.hashes[shard]}
		return n
	}
	p := end / attention.PageLen
	if p*attention.PageLen <= start {
		return 0
	}
	chain.receipt = Receipt{Length: uint64(p * attention.PageLen), Hash: s.checkpoint(p, shard)}
	return p*attention.PageLen - start
}

// part returns positions [at, at+m) of rows.
func part(rows attention.Rows, layout attention.Layout, at, m int) attention.Rows {
	kb, vb := layout.KRowBytes(), layout.VRowBytes()
	out := attention.Rows{K: rows.K[at*kb:][:m*kb], V: rows.V[at*vb:][:m*vb]}
	if scaled(layout) {
		out.KScale, out.VScale = rows.KScale[at:][:m], rows.VScale[at:][:m]
	}
	return out
}

func makeRows(layout attention.Layout, n int) attention.Rows {
	rows := attention.Rows{K: make([]byte, n*layout.KRowBytes()), V: make([]byte, n*layout.VRowBytes())}
	if scaled(layout) {
		rows.KScale, rows.VScale = make([]float32, n), make([]float32, n)
	}
	return rows
}

func scaled(layout attention.Layout) bool { return layout.DType() == tensor.I8 }
