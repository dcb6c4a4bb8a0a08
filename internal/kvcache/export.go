package kvcache

import (
	"slices"

	"headwater.example/attention"
	"headwater.example/shard"
	"headwater.example/tensor"
)

// Export fills rows with positions [start, start+n) of one group of a layer, in the storage type; rows have the lengths that
// attention.Layout.Write asks for. Of a shard of stripes they are positions that it stores. It returns the group's chained hash before these positions and after them.
func (st *Store) Export(id SessionID, layer shard.Layer, group shard.Group, start, n int, rows attention.Rows) (before, after uint64, _ error) {
	s, err := st.open(id, true)
	if err != nil {
		return 0, 0, err
	}
	defer s.mu.Unlock()
	l, held := s.shape.layer(layer)
	if !held {
		return 0, 0, refuse(Invalid, "session %s: layer %d: it is not held here", id, layer).at(layer, 0)
	}
	h := &s.shape.layers[l]
	i, held := slices.BinarySearch(h.groups, group)
	switch {
	case !held:
		return 0, 0, refuse(Invalid, "session %s: layer %d group %d: it is not held here", id, layer, group).at(layer, s.lengths[l]).of(group)
	case start < 0 || n < 1 || start > s.lengths[l] || n > s.lengths[l]-start:
		return 0, 0, refuse(Invalid, "session %s: layer %d has %d positions, not %d from %d on", id, layer, s.lengths[l], n, start).at(layer, s.lengths[l])
	case h.Stored(int(group), start, n) != n:
		return 0, 0, refuse(Invalid, "session %s: layer %d %s: another stripe has some of %d positions from %d on", id, layer, h.name(group), n, start).at(layer, s.lengths[l]).of(group)
	case start/attention.PageLen < s.freed[l]:
		return 0, 0, refuse(Freed, "session %s: layer %d: positions before %d have been freed", id, layer, s.freed[l]*attention.PageLen).at(layer, s.lengths[l])
	}
	wrong := func(err error) error {
		return refuse(Invalid, "session %s: layer %d group %d: export: %v", id, layer, group, err).at(layer, s.lengths[l]).of(group)
	}
	if err := checkRows(rows, n, h.Layout); err != nil {
		return 0, 0, wrong(err)
	}
	var pages [][]byte
	st.mu.Lock()
	for p := start / attention.PageLen; p < pagesOf(start+n); p++ {
		pages = append(pages, h.class.page(s.row(p).pages[h.first+i]))
	}
	st.mu.Unlock()
	first := start / attention.PageLen
	chain := Hasher{receipt: Receipt{Length: uint64(first * attention.PageLen), Hash: s.checkpoint(first, h.first+i)}}
	if in := start % attention.PageLen; in > 0 {
		earlier := makeRows(h.Layout, in)
		if err := h.Layout.Read(pages[0], 0, in, earlier); err != nil {
			return 0, 0, wrong(err)
		}
		if err := chain.Update(earlier, in, h.Layout); err != nil {
			return 0, 0, wrong(err)
		}
	}
	before = chain.receipt.Hash
	chain.Pass(uint64(start))
	for done := 0; done < n; pages = pages[1:] {
		in := (start + done) % attention.PageLen
		m := min(n-done, attention.PageLen-in)
		if err := h.Layout.Read(pages[0], in, m, part(rows, h.Layout, done, m)); err != nil {
			return 0, 0, wrong(err)
		}
		done += m
	}
	if err := chain.Update(rows, n, h.Layout); err != nil {
		return 0, 0, wrong(err)
	}
	return before, chain.receipt.Hash, nil
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
