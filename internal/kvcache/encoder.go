package kvcache

import (
	"errors"
	"fmt"

	"headwater.example/attention"
	"headwater.example/tensor"
)

// encoder is the room that an append works in.
type encoder struct {
	rows  []*row // from the first page of the append on
	fresh []bool // of rows: not in the session yet
	gap   []*row // new ones before them, after what the session has
	spare []*row // new ones for copies of shared rows
	// metered is of a tenant's own append: its quota holds.
	metered bool
	made    int // of all these, how many are new and not the session's yet
	wants   []want
	// Scratch of straighten.
	own    [][]pageID
	ids    []pageID
	bent   []int
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

// forget drops references that would keep memory from being freed until the next append.
func (e *encoder) forget() {
	e.made = 0
	clear(e.rows)
	clear(e.gap)
	clear(e.spare[:cap(e.spare)])
	clear(e.wants)
	clear(e.own)
	clear(e.copies)
	clear(e.pages)
}

// write stores the rows of the i-th group, which are the append's from a row on, and leaves its chain at their end. Of positions that
// another stripe has there are no rows: the chain passes over them.
func (e *encoder) write(s *session, l int, a *Append, i, row int) error {
	h := &s.shape.layers[l]
	from := s.lengths[l]
	e.chain.receipt = Receipt{Length: uint64(from), Hash: s.hashes[h.first+i]}
	pages := e.pages[i*len(e.rows):][:len(e.rows)]
	for done := 0; done < a.Positions; {
		at := from + done
		p, in := at/attention.PageLen-from/attention.PageLen, at%attention.PageLen
		m := min(a.Positions-done, attention.PageLen-in)
		if page := pages[p]; page != nil {
			rows, err := e.encode(h, a, row, m, at)
			if err != nil {
				return err
			}
			if err := h.Layout.Write(page, in, m, rows); err != nil {
				return err
			}
			e.chain.Pass(uint64(at))
			if err := e.chain.Update(rows, m, h.Layout); err != nil {
				return err
			}
			row += m
		}
		if in+m == attention.PageLen {
			e.rows[p].hashes[h.first+i] = e.chain.receipt.Hash
		}
		done += m
	}
	return nil
}

// encode returns m of the append's rows from a row on, which is of a position, in the storage type, settled. They are valid until the next
// call.
func (e *encoder) encode(h *heldLayer, a *Append, row, m, position int) (attention.Rows, error) {
	dt := h.Layout.DType()
	part := func(b []byte, size int) []byte { return b[row*size:][:m*size] }
	if a.Encoding == dt {
		rows := attention.Rows{K: part(a.K, h.Layout.KRowBytes()), V: part(a.V, h.Layout.VRowBytes())}
		if scaled(h.Layout) {
			e.kScale, e.vScale = resize(e.kScale, m), resize(e.vScale, m)
			rows.KScale, rows.VScale = e.kScale, e.vScale
			if err := errors.Join(tensor.Widen(e.kScale, part(a.KScale, 4), tensor.F32), tensor.Widen(e.vScale, part(a.VScale, 4), tensor.F32)); err != nil {
				return rows, err
			}
		}
		return rows, h.Layout.Settle(rows)
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
					return rows, fmt.Errorf("%s at position %d: element %d: %g exceeds the range of %s", t.name, position+out.Index/t.dim, out.Index%t.dim, out.Value, dt)
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
	return rows, h.Layout.Settle(rows)
}

// resize returns s, or another slice if s is too small, with n elements of any value.
func resize[E any](s []E, n int) []E {
	if cap(s) < n {
		return make([]E, n)
	}
	return s[:n]
}
