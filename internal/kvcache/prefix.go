package kvcache

import (
	"bytes"
	"cmp"
	"container/heap"
	"crypto/sha256"
	"encoding/binary"
	"slices"

	"headwater.example/attention"
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
	// holdings are the ways in which first rows of one content are held: by shape.content, then by shape.root.
	holdings map[prefixKey]map[prefixKey]*prefixHolding
	// evictable are, by whose they are, the entries that no session shares and no other entry follows.
	evictable map[*account]*byUse
	clock     uint64
	bytes     int64 // of the pages of the rows that nobody else shares
	rows      int64 // bytes of these rows themselves
}

// prefixHolding counts the first rows that one holding has.
type prefixHolding struct {
	held      []HeldLayer
	firstRows int
}

func newPrefixes() prefixes {
	return prefixes{entries: make(map[prefixKey]*entry), holdings: make(map[prefixKey]map[prefixKey]*prefixHolding), evictable: make(map[*account]*byUse)}
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
	if before == nil {
		x.addHolding(r.shape)
	}
}

// addHolding notes a first row of a shape, and removeHolding that it is no more.
func (x *prefixes) addHolding(sh *shape) {
	holdings := x.holdings[sh.content]
	if holdings == nil {
		holdings = make(map[prefixKey]*prefixHolding)
		x.holdings[sh.content] = holdings
	}
	h := holdings[sh.root]
	if h == nil {
		h = &prefixHolding{held: sh.held}
		holdings[sh.root] = h
	}
	h.firstRows++
}

func (x *prefixes) removeHolding(sh *shape) {
	holdings := x.holdings[sh.content]
	if h := holdings[sh.root]; h.firstRows > 1 {
		h.firstRows--
		return
	}
	if delete(holdings, sh.root); len(holdings) == 0 {
		delete(x.holdings, sh.content)
	}
}

// occupy notes that the row of e gets a second sharer, vacate that the index alone has it.
func (x *prefixes) occupy(e *entry) {
	x.count(e.row, -1)
	if e.at >= 0 {
		x.keep(e)
	}
}

func (x *prefixes) vacate(e *entry) {
	x.count(e.row, 1)
	x.clock++
	e.used = x.clock
	x.sort(e)
}

// count counts n rows as this one more of those that the index alone has.
func (x *prefixes) count(r *row, n int64) {
	x.bytes += n * r.bytes
	x.rows += n * r.shape.rowBytes
	r.shape.account.kept += n * (r.bytes + r.shape.rowBytes)
}

// sort puts e among the evictable or takes it out.
func (x *prefixes) sort(e *entry) {
	switch evictable := e.row.refs == 1 && e.followers == 0; {
	case evictable && e.at < 0:
		h := x.evictable[e.row.shape.account]
		if h == nil {
			h = &byUse{}
			x.evictable[e.row.shape.account] = h
		}
		heap.Push(h, e)
	case !evictable && e.at >= 0:
		x.keep(e)
	}
}

// keep takes e out of the evictable.
func (x *prefixes) keep(e *entry) {
	of := e.row.shape.account
	h := x.evictable[of]
	heap.Remove(h, e.at)
	if len(*h) == 0 {
		delete(x.evictable, of)
	}
}

// remove takes the least recently used evictable row of who gives room first out of the index and returns it, or nil.
func (x *prefixes) remove(gives *giving) *row {
	var e *entry
	most := int64(0)
	for of, h := range x.evictable {
		first, n := (*h)[0], gives.rank(of, 0)
		if n >= 0 && (e == nil || n > most || n == most && first.used < e.used) {
			e, most = first, n
		}
	}
	if e == nil {
		return nil
	}
	x.keep(e)
	delete(x.entries, e.key)
	x.count(e.row, -1)
	e.row.entry = nil
	if e.before != nil {
		e.before.followers--
		x.sort(e.before)
	} else {
		x.removeHolding(e.row.shape)
	}
	return e.row
}

// clear empties the index and returns its rows.
func (x *prefixes) clear() (rows []*row) {
	for _, e := range x.entries {
		if e.row.refs == 1 {
			x.count(e.row, -1)
		}
		e.row.entry = nil
		rows = append(rows, e.row)
	}
	clock := x.clock
	*x = newPrefixes()
	x.clock = clock
	return rows
}

// maxPrefixes bounds the holdings that Store.Prefixes returns.
const maxPrefixes = 64

// Prefix is a prefix as one holding has it: a session that holds the same groups begins with it.
type Prefix struct {
	Held      []HeldLayer // without empty ones; not to be changed
	Positions int         // a multiple of attention.PageLen
}

// Prefixes returns the prefixes that a session of a config that begins with these tokens would find, the longest first, and of
// many the longest 64. It counts as no use of them, and the config is not checked.
func (st *Store) Prefixes(config *Config, tokens []uint32) []Prefix {
	type candidate struct {
		root prefixKey
		held []HeldLayer
	}
	var candidates []candidate
	st.mu.Lock()
	for root, h := range st.prefixes.holdings[config.content()] {
		candidates = append(candidates, candidate{root, h.held})
	}
	st.mu.Unlock()
	slices.SortFunc(candidates, func(a, b candidate) int { return bytes.Compare(a.root[:], b.root[:]) })
	var found []Prefix
	for _, c := range candidates {
		if n := st.prefixLength(c.root, tokens); n > 0 {
			found = append(found, Prefix{Held: c.held, Positions: n})
		}
	}
	slices.SortStableFunc(found, func(a, b Prefix) int { return cmp.Compare(b.Positions, a.Positions) })
	return found[:min(len(found), maxPrefixes)]
}

// prefixLength returns how many of the tokens a session whose shape has that root would begin with. Others use the store
// meanwhile.
func (st *Store) prefixLength(root prefixKey, tokens []uint32) (n int) {
	for key := root; n+attention.PageLen < len(tokens); n += attention.PageLen { // at least one is left to be appended
		key = key.next(tokens[n:][:attention.PageLen])
		st.mu.Lock()
		found := st.prefixes.entries[key] != nil
		st.mu.Unlock()
		if !found {
			break
		}
	}
	return n
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
