package kvcache

import "unsafe"

// row is page p of every held shard of a session: positions [64p, 64p+64) of all layers. Sessions that share positions,
// the index of prefixes, and views share rows, by one count for the whole row. A row whose count is 1 may be written by the
// session that has it; of a shared one a session makes its own copy first.
//
// All fields but pages and hashes are guarded by Store.mu. These two are written by the only session that has the row, and
// do not change once it is shared, except that pages which nobody sees any more become 0 under Store.mu.
type row struct {
	shape  *shape
	refs   int32
	pages  []pageID // [shards] 0 where a layer has no position here, another stripe has them, or nobody sees them any more
	hashes []uint64 // [shards] chained hash at the row's end, where a layer has filled it
	left   []int32  // [layers] of the sharers, how many see the layer's positions here no more; nil is none
	bytes  int64    // of its pages
	key    prefixKey
	entry  *entry // in the index of prefixes, which counts as one sharer
}

func newRow(sh *shape) *row {
	return &row{shape: sh, refs: 1, pages: make([]pageID, sh.shards), hashes: make([]uint64, sh.shards)}
}

// rowBase is what a row takes on the heap whatever its shape: 144 bytes, and 80 for its entry in the index of prefixes; its places
// there, in a session and among what can be evicted, of which half may be empty, are up to 128.
const rowBase = 144 + 80 + 128

// RowBytes is the heap memory of a complete row of a shape, without its pages. It is reserved from the budget before
// the row is made: a row of many shards that have nothing there would else be memory that nothing bounds.
func RowBytes(layers, shards int) int64 {
	return rowBase + allocated(shards*int(unsafe.Sizeof(pageID(0)))) + allocated(shards*int(unsafe.Sizeof(uint64(0)))) + allocated(layers*int(unsafe.Sizeof(int32(0))))
}

// allocated returns the size that the allocator takes for n bytes.
func allocated(n int) int64 { return int64(cap(append([]byte(nil), make([]byte, n)...))) }

// freeRowsLocked returns the reservation of n rows that have ended.
func (st *Store) freeRowsLocked(sh *shape, n int) {
	st.rows -= int64(n) * sh.rowBytes
	st.budget.Release(int64(n) * sh.rowBytes)
	if sh.rows -= n; n > 0 && sh.rows == 0 && sh.sessions == 0 {
		st.lone -= sh.bytes
		st.freeShapeLocked(sh)
	}
}

// shareLocked counts one more sharer, of which left says how many of the row's layers it sees no more.
func (st *Store) shareLocked(r *row) {
	if r.entry != nil && r.refs == 1 {
		st.prefixes.occupy(r.entry)
	}
	r.refs++
}

// releaseLocked counts one sharer less: a session that has the row as page p, or with nil a view or the index. What nobody sees
// any more is freed.
func (st *Store) releaseLocked(r *row, s *session, p int) {
	if s != nil {
		for l, freed := range s.freed {
			if freed > p {
				r.left[l]--
			}
		}
	}
	r.refs--
	if r.refs == 0 {
		for l := range r.shape.layers {
			st.freeLocked(r, l)
		}
		st.freeRowsLocked(r.shape, 1)
		return
	}
	for l, left := range r.left {
		if left == r.refs {
			st.freeLocked(r, l)
		}
	}
	if r.entry != nil && r.refs == 1 {
		st.prefixes.vacate(r.entry)
	}
}

// leaveLocked counts that one sharer sees the positions of held layer l no more.
func (st *Store) leaveLocked(r *row, l int) {
	if r.left == nil {
		r.left = make([]int32, len(r.shape.layers))
	}
	r.left[l]++
	if r.left[l] == r.refs {
		st.freeLocked(r, l)
	}
}

// freeLocked frees the row's pages of held layer l.
func (st *Store) freeLocked(r *row, l int) {
	h := &r.shape.layers[l]
	for i := h.first; i < h.first+len(h.groups); i++ {
		if r.pages[i] != 0 {
			st.pages.give(h.class, r.pages[i])
			r.pages[i] = 0
			r.bytes -= int64(h.class.size)
			r.shape.account.bytes -= int64(h.class.size)
		}
	}
}

// whole says whether every held shard that has page p, whose row it is, has it here.
func (r *row) whole(p int) bool {
	for l := range r.shape.layers {
		h := &r.shape.layers[l]
		for i := range h.groups {
			if r.pages[h.first+i] == 0 && h.stores(i, p) {
				return false
			}
		}
	}
	return true
}
