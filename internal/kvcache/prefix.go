package kvcache

import (
	"container/heap"
	"crypto/sha256"
	"encoding/binary"
)

// prefixKey names the positions up to a row's end: the SHA-256 of the key before it and the row's tokens, which begins
// with the shape's fingerprint. Equal keys are taken for equal tokens, and tokens are chosen by strangers, so it must be a hash
// for which nobody can make two that collide; a row costs 0.3 µs of it.
type prefixKey [sha256.Size]byte

// next returns the key of the row that follows, of exactly attention.PageLen tokens.
func (k prefixKey) next(tokens []uint32) prefixKey {
	b := make([]byte, 0, len(k)+4*64)
	b = append(b, k[:]...)
	for _, t := range tokens {
		b = binary.LittleEndian.AppendUint32(b, t)
	}
	return sha256.Sum256(b)
}

// prefixes is the index of full rows by their keys. Each entry shares its row. Rows that nobody else has can be evicted, the
// least recently used first, and none before those that follow it, which could not be found without it.
type prefixes struct {
	entries map[prefixKey]*entry
	// evictable are the entries that nobody else shares and that none follows.
	evictable byUse
	clock     uint64
	bytes     int64 // of the pages of the rows that nobody else shares
	rows      int64 // bytes of these rows themselves
}

// entry is a full row in the index.
type entry struct {
	key       prefixKey
	row       *row
	before    *entry // nil for a first row
	followers int
	used      uint64 // clock at its last use
	at        int    // in evictable, or -1
}

// add indexes a row that follows before. The caller has counted the index as a sharer.
func (x *prefixes) add(key prefixKey, r *row, before *entry) {
	x.clock++
	e := &entry{key: key, row: r, before: before, used: x.clock, at: -1}
	if before != nil {
		before.followers++
		x.sort(before)
	}
	r.entry = e
	x.entries[key] = e
}

// occupy notes that the row of e gets a second sharer, vacate that the index alone has it.
func (x *prefixes) occupy(e *entry) {
	x.bytes -= e.row.bytes
	x.rows -= e.row.shape.rowBytes
	if e.at >= 0 {
		heap.Remove(&x.evictable, e.at)
	}
}

func (x *prefixes) vacate(e *entry) {
	x.bytes += e.row.bytes
	x.rows += e.row.shape.rowBytes
	x.clock++
	e.used = x.clock
	x.sort(e)
}

// sort puts e among the evictable or takes it out.
func (x *prefixes) sort(e *entry) {
	switch evictable := e.row.refs == 1 && e.followers == 0; {
	case evictable && e.at < 0:
		heap.Push(&x.evictable, e)
	case !evictable && e.at >= 0:
		heap.Remove(&x.evictable, e.at)
	}
}

// remove takes the least recently used evictable row out of the index and returns it, or nil.
func (x *prefixes) remove() *row {
	if len(x.evictable) == 0 {
		return nil
	}
	e := heap.Pop(&x.evictable).(*entry)
	delete(x.entries, e.key)
	x.bytes -= e.row.bytes
	x.rows -= e.row.shape.rowBytes
	e.row.entry = nil
	if e.before != nil {
		e.before.followers--
		x.sort(e.before)
	}
	return e.row
}

// clear empties the index and returns its rows.
func (x *prefixes) clear() (rows []*row) {
	for _, e := range x.entries {
		e.row.entry = nil
		rows = append(rows, e.row)
	}
	*x = prefixes{entries: make(map[prefixKey]*entry), clock: x.clock}
	return rows
}

// byUse is a heap of entries, the least recently used first.
type byUse []*entry

func (h byUse) Len() int           { return len(h) }
func (h byUse) Less(i, j int) bool { return h[i].used < h[j].used }
func (h byUse) Swap(i, j int) {
	h[i], h[j] = h[j], h[i]
	h[i].at, h[j].at = i, j
}

func (h *byUse) Push(e any) {
	e.(*entry).at = len(*h)
	*h = append(*h, e.(*entry))
}

func (h *byUse) Pop() any {
	n := len(*h) - 1
	e := (*h)[n]
	(*h)[n] = nil
	*h = (*h)[:n]
	e.at = -1
	return e
}
