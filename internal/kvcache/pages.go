package kvcache

import (
	"errors"
	"fmt"
	"hash/maphash"
	"maps"
	"math/bits"
	"slices"
	"time"

	"golang.org/x/sys/unix"
)

// Chunks in no use stay for the next that takes pages, for keepFor, and at most leastMaxKept bytes of them, or this part of the budget if
// it is more. A fork that has grown by a token takes and drops some MiB, and a session that comes in the place of others takes what they
// have left, which the machine would have to find and to clear each time: a third of what a worker spends that takes up copies.
const (
	leastMaxKept = 16 << 20
	keptPart     = 8
	keepFor      = 5 * time.Second // so that a worker is soon small again that nobody uses
)

// hugeBytes is the size of the processor's large pages of memory; full chunks consist of them.
const hugeBytes = 2 << 20

// pages is memory for pages of keys and values, by their size. It is mapped in chunks outside the heap and named by
// numbers, so that the collector has nothing to scan. Pages of one size are alike: any free one serves, so nothing
// fragments; a free page of the first chunk that has some is taken, so that the last chunks become empty, and an empty chunk is
// unmapped, but for a few that are kept for a while.
//
// A kernel reads a sequence's pages faster if each follows the one before. So who takes a page says which is before it, and gets
// the next one where that is free. Where it is not, the page is taken in the middle of the longest run of free ones, so that
// those of several sequences that grow side by side have room to follow. This says only which of the free pages are taken, never
// how many are mapped or reserved.
//
// The budget counts a page from its first use. A page that becomes free stays reserved, and resident, as long as its
// chunk has others in use: idle pages are taken first, and trim gives their memory back where something else needs it.
// What a chunk maps beyond is not counted; chunks double up to a few MiB, so it is never more than what is in use of that size
// was at its most, nor than one chunk.
//
// It is guarded by its owner's lock.
type pages struct {
	budget  *Budget
	now     func() time.Time
	classes map[int]*class
	used    int64     // bytes of pages in use
	idle    int64     // bytes of pages reserved and in no use
	kept    int64     // bytes of chunks in no use that are kept
	maxKept int64     // the most of them
	closed  bool      // none is kept any more
	emptied []emptied // chunks in no use, which settle unmaps
}

// emptied is an arena to unmap, and its reservation.
type emptied struct {
	arena    *Arena
	reserved int64
}

// pageID is the number of a page among those of its size, from 1: the chunk, then the slot in it. 0 is no page.
type pageID uint32

// class is the memory for pages of one size.
type class struct {
	size     int // bytes of a page
	bytes    int // of a full chunk
	slots    int // pages of a full chunk
	shift    uint
	chunks   []chunk
	unmapped []int // chunks without memory
	mapped   int   // pages of all chunks
	vacant   int   // of these, in no use
	idle     int   // of these, reserved
	// No chunk before low has a vacant page, none before lowIdle an idle one.
	low, lowIdle int

	hole []byte // a page of NaN, see View
}

// chunk is one mapping. A slot is in use, or vacant; a vacant slot is idle if it is still reserved. One that is kept has none in
// use, since a time.
type chunk struct {
	arena  *Arena
	kept   bool
	since  time.Time
	slots  int
	used   int
	idle   int
	vacant []uint64 // [slots] bits
	held   []uint64 // [slots] bits: reserved, in use or idle
	owners []Owner  // [slots] whose keys and values are in it
}

// Owner stands for a tenant.
type Owner uint64

// Nobody is the owner of memory that the machine has just cleared, or that is another's the next time, whoever that is.
const Nobody Owner = 0

// owners is the seed by which a process names tenants.
var owners = maphash.MakeSeed()

// OwnerOf returns the owner that stands for a tenant.
func OwnerOf(tenant string) Owner { return Owner(maphash.String(owners, tenant) | 1) }

func newPages(budget *Budget, now func() time.Time) *pages {
	return &pages{budget: budget, now: now, classes: make(map[int]*class), maxKept: max(leastMaxKept, budget.Total()/keptPart)}
}

// class returns the memory for pages of size bytes, a multiple of 64.
func (p *pages) class(size int) *class {
	c := p.classes[size]
	if c == nil {
		c = &class{size: size}
		// The fewest large pages of which less than 1/64 remains.
		for n := 1; n <= 8; n++ {
			if b := n * hugeBytes; c.bytes == 0 || b%size*c.bytes < c.bytes%size*b {
				c.bytes = b
			}
			if c.bytes%size*64 <= c.bytes {
				break
			}
		}
		c.slots = c.bytes / size
		c.shift = uint(bits.Len(uint(c.slots - 1)))
		p.classes[size] = c
	}
	return c
}

// count returns the pages of each size, ascending by size, where the budget has so many bytes left.
func (p *pages) count(left int64) []PageState {
	all := make([]PageState, 0, len(p.classes))
	for _, size := range slices.Sorted(maps.Keys(p.classes)) {
		c := p.classes[size]
		all = append(all, PageState{Bytes: size, Used: c.mapped - c.vacant, Free: c.idle + int(left/int64(size))})
	}
	return all
}

// take fills ids with pages, or with none and an error: a *BudgetError where there is no room. Each follows the page of after
// [ids], unless that is nil or 0, or something else does. The pages hold what their owner has left in them, or zeros.
func (p *pages) take(c *class, ids, after []pageID, as Owner) error {
	return p.takeRows(c, [][]pageID{ids}, after, as)
}

// takeRows is take for several rows alike, of which each follows the one before.
func (p *pages) takeRows(c *class, rows [][]pageID, after []pageID, as Owner) error {
	n := len(rows) * len(rows[0])
	short := max(n-c.idle, 0)
	if err := p.budget.Reserve(int64(short) * int64(c.size)); err != nil {
		return err
	}
	for c.vacant < n {
		if err := p.grow(c, n-c.vacant); err != nil {
			p.budget.Release(int64(short) * int64(c.size))
			return err
		}
	}
	for i := range rows[0] {
		before := pageID(0)
		if after != nil {
			before = after[i]
		}
		for r, ids := range rows {
			before = p.one(c, before, len(rows)-r, as)
			ids[i] = before
		}
	}
	return nil
}

// one takes a page, which so many follow with it: an idle one, or where there is none a vacant one, which the caller has reserved.
func (p *pages) one(c *class, before pageID, n int, as Owner) pageID {
	idle := c.idle > 0
	at, slot := c.at(before)
	if slot++; before == 0 || !c.chunks[at].free(slot, idle) {
		at = c.first(idle)
		slot = c.chunks[at].roomiest(idle, n)
	}
	k := &c.chunks[at]
	if idle {
		k.idle--
		c.idle--
		p.idle -= int64(c.size)
	}
	k.held[slot/64] |= 1 << (slot % 64)
	return p.occupy(c, at, slot, as)
}

// at returns where a page is: the chunk, and the slot in it.
func (c *class) at(id pageID) (chunk, slot int) {
	return int(id-1) >> c.shift, int(id-1) & (1<<c.shift - 1)
}

// first returns the first chunk that has a vacant page, or an idle one; there is one.
func (c *class) first(idle bool) int {
	if !idle {
		for k := &c.chunks[c.low]; k.used == k.slots; k = &c.chunks[c.low] {
			c.low++
		}
		return c.low
	}
	for c.chunks[c.lowIdle].idle == 0 {
		c.lowIdle++
	}
	return c.lowIdle
}

// free says whether a slot is there and vacant, and if idle is set idle as well.
func (k *chunk) free(slot int, idle bool) bool {
	return slot < k.slots && k.word(slot/64, idle)>>(slot%64)&1 == 1
}

// word returns the bits of 64 slots that are vacant, or idle.
func (k *chunk) word(i int, idle bool) uint64 {
	if idle {
		return k.vacant[i] & k.held[i]
	}
	return k.vacant[i]
}

// roomiest returns where n pages have most room, in the first of the longest runs of slots that are vacant, or idle, which there is: about
// in its middle, so that what is before the run can go on as well, or where that is too little for n, or nothing is before it, at its
// beginning.
func (k *chunk) roomiest(idle bool, n int) int {
	from, most := -1, 0
	for at := 0; at < k.slots; {
		start := k.next(at, idle, true)
		at = k.next(start, idle, false)
		if at-start > most {
			from, most = start, at-start
		}
	}
	switch {
	case from < 0:
		panic("kvcache: a chunk has fewer free pages than it counts")
	case from == 0 || most < 2*n:
		return from
	}
	return roundest(from+n, from+most-n)
}

// roundest returns the number from low to high, both at least 1, that the largest power of two divides. So what is taken by powers of
// two leaves nothing between.
func roundest(low, high int) int {
	for b := bits.Len(uint(high)); ; b-- {
		if x := high >> b << b; x >= low {
			return x
		}
	}
}

// next returns the first slot from one on that is free, or that is not, or slots.
func (k *chunk) next(slot int, idle, free bool) int {
	for i := slot / 64; slot < k.slots; i, slot = i+1, (i+1)*64 {
		w := k.word(i, idle)
		if !free {
			w = ^w
		}
		if w &= ^uint64(0) << (slot % 64); w != 0 {
			return min(i*64+bits.TrailingZeros64(w), k.slots)
		}
	}
	return k.slots
}

func (p *pages) occupy(c *class, chunk, slot int, as Owner) pageID {
	k := &c.chunks[chunk]
	if before := k.owners[slot]; before != as {
		if before != 0 {
			clear(k.arena.Bytes()[slot*c.size:][:c.size])
		}
		k.owners[slot] = as
	}
	k.vacant[slot/64] &^= 1 << (slot % 64)
	k.used++
	if k.kept {
		k.kept = false
		p.kept -= int64(len(k.arena.Bytes()))
	}
	c.vacant--
	p.used += int64(c.size)
	return pageID(chunk<<c.shift|slot) + 1
}

// grow maps a chunk: as many pages as are wanted or mapped already, whichever is more, up to a full chunk.
func (p *pages) grow(c *class, want int) error {
	slots, size := min(max(want, c.mapped), c.slots), c.bytes
	if slots < c.slots {
		size = slots * c.size
	}
	at := len(c.chunks)
	if n := len(c.unmapped); n > 0 {
		at = c.unmapped[n-1]
	}
	if uint64(at+1)<<c.shift > 1<<32-1 {
		return fmt.Errorf("map pages of %d bytes: there are %d already", c.size, c.mapped)
	}
	arena, err := MapArena(int64(size))
	if err != nil {
		return fmt.Errorf("map %d pages: %w", slots, err)
	}
	k := chunk{arena: arena, slots: slots, vacant: make([]uint64, (slots+63)/64), held: make([]uint64, (slots+63)/64), owners: make([]Owner, slots)}
	for i := range slots {
		k.vacant[i/64] |= 1 << (i % 64)
	}
	if at == len(c.chunks) {
		c.chunks = append(c.chunks, k)
	} else {
		c.chunks[at], c.unmapped = k, c.unmapped[:len(c.unmapped)-1]
	}
	c.mapped += slots
	c.vacant += slots
	c.low = min(c.low, at)
	return nil
}

// give makes a page free.
func (p *pages) give(c *class, id pageID) {
	at, slot := c.at(id)
	k := &c.chunks[at]
	k.vacant[slot/64] |= 1 << (slot % 64)
	k.used--
	k.idle++
	c.vacant++
	c.idle++
	p.used -= int64(c.size)
	p.idle += int64(c.size)
	c.low, c.lowIdle = min(c.low, at), min(c.lowIdle, at)
	switch size := int64(len(k.arena.Bytes())); {
	case k.used > 0:
	case size <= p.maxKept-p.kept && !p.closed:
		k.kept, k.since = true, p.now()
		p.kept += size
	default:
		p.unmap(c, at)
	}
}

// unmap lets settle unmap a chunk in no use.
func (p *pages) unmap(c *class, at int) {
	k := &c.chunks[at]
	if k.kept {
		p.kept -= int64(len(k.arena.Bytes()))
	}
	reserved := int64(k.idle) * int64(c.size)
	p.emptied = append(p.emptied, emptied{arena: k.arena, reserved: reserved})
	c.mapped -= k.slots
	c.vacant -= k.slots
	c.idle -= k.idle
	p.idle -= reserved
	*k = chunk{}
	c.unmapped = append(c.unmapped, at)
}

// unkeep lets settle unmap the chunks that have been in no use since a time or longer.
func (p *pages) unkeep(since time.Time) {
	for _, c := range p.classes {
		for at := range c.chunks {
			if k := &c.chunks[at]; k.kept && !k.since.After(since) {
				p.unmap(c, at)
			}
		}
	}
}

// settle unmaps empty chunks and then returns their reservations. It needs no lock.
func settle(budget *Budget, chunks []emptied) {
	for _, e := range chunks {
		e.arena.Close()
		budget.Release(e.reserved)
	}
}

// trim gives the memory of idle pages back, that of whole chunks once settle has unmapped them, and says whether there were
// any. Of the runs of neighbors that do not fill the machine's pages, the ends stay resident.
func (p *pages) trim() (bool, error) {
	before := p.idle
	for _, c := range p.classes {
		for at := 0; c.idle > 0 && at < len(c.chunks); at++ {
			k := &c.chunks[at]
			if k.kept {
				p.unmap(c, at)
				continue
			}
			for from := 0; k.idle > 0 && from < k.slots; from++ {
				to := from
				for to < k.slots && k.vacant[to/64]&k.held[to/64]>>(to%64)&1 == 1 {
					to++
				}
				if to == from {
					continue
				}
				if err := discard(k.arena.Bytes()[from*c.size : to*c.size]); err != nil {
					return false, fmt.Errorf("give memory of %d free pages back: %w", to-from, err)
				}
				for i := from; i < to; i++ {
					k.held[i/64] &^= 1 << (i % 64)
				}
				k.idle -= to - from
				c.idle -= to - from
				p.idle -= int64(to-from) * int64(c.size)
				p.budget.Release(int64(to-from) * int64(c.size))
				from = to
			}
		}
	}
	return before > 0, nil
}

// discard tells the operating system that it may reuse the whole pages in b.
func discard(b []byte) error {
	page := unix.Getpagesize()
	skip := (page - int(address(b)%uintptr(page))) % page
	if len(b) < skip+page {
		return nil
	}
	b = b[skip:]
	err := unix.Madvise(b[:len(b)/page*page], unix.MADV_DONTNEED)
	if errors.Is(err, unix.EAGAIN) {
		return nil // Resident for longer, which is all that is lost.
	}
	return err
}

// page returns the memory of a page.
func (c *class) page(id pageID) []byte {
	at, slot := c.at(id)
	return c.chunks[at].arena.Bytes()[slot*c.size:][:c.size:c.size]
}

// nans returns a page that makes an answer not finite if ever it takes part in one.
func (c *class) nans() []byte {
	if c.hole == nil {
		c.hole = make([]byte, c.size)
		for i := range c.hole {
			c.hole[i] = 0xff
		}
	}
	return c.hole
}
