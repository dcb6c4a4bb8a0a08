package kvcache

import (
	"bytes"
	"cmp"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"slices"
	"strings"
	"sync"
	"time"
	"unsafe"

	"github.com/zeebo/xxh3"

	"headwater.example/attention"
	"headwater.example/shard"
)

// maxShards bounds the shards of a session that one store holds, which bounds what is kept beside a page.
const maxShards = 1 << 16

// SessionID names a session; clients make it of random bits.
type SessionID [16]byte

func (id SessionID) String() string { return hex.EncodeToString(id[:]) }

// LaneID names a client's lane.
type LaneID [16]byte

// Epoch says which lane drives a session: the higher counter, and of equal ones the higher lane.
type Epoch struct {
	Counter uint64 // from 1
	Lane    LaneID
	// Base is the counter that the lane goes on naming, where the epoch was stepped on its behalf; 0 is none.
	Base uint64
	// At is, of a call, the counter of the epoch that the session's holders are known by; 0 is not compared.
	At uint64
	// Closed epochs accept no calls: holders are being exchanged.
	Closed bool
	// Holders is how many holders of the session have the epoch, 0 is not known. The store only tells it.
	Holders uint32
	// Members are their names, with a space between two; empty is not known. The store only tells them.
	Members string
}

// maxMembers bounds the bytes of Epoch.Members that are kept with a session.
const maxMembers = 512

// taken is the epoch as it is accepted.
func (e Epoch) taken() Epoch {
	e.At = 0
	if len(e.Members) > maxMembers {
		e.Members = ""
	}
	return e
}

// compare orders epochs.
func (e Epoch) compare(other Epoch) int {
	return cmp.Or(cmp.Compare(e.Counter, other.Counter), bytes.Compare(e.Lane[:], other.Lane[:]))
}

// name names an epoch with its members, since two that step one on a lane's behalf may choose the same counter.
func (e Epoch) name() uint64 {
	b := make([]byte, 0, 8+16+8+4+1+len(e.Members))
	b = binary.LittleEndian.AppendUint64(b, e.Counter)
	b = append(b, e.Lane[:]...)
	b = binary.LittleEndian.AppendUint64(b, e.Base)
	b = binary.LittleEndian.AppendUint32(b, e.Holders)
	b = append(b, 0)
	if e.Closed {
		b[len(b)-1] = 1
	}
	return xxh3.Hash(append(b, e.Members...))
}

// lineage are the names of the lines through which a session's state has come, the newest last. A line is epochs with the same members that
// follow each other. What is acknowledged on it all members have, whoever of them accepted which of the epochs.
type lineage []uint64

// with returns the lineage that goes on with an epoch, after another one. It may change the one that it is called on.
func (l lineage) with(e, before Epoch) lineage {
	if len(l) > 0 && e.sameMembers(before) {
		return l
	}
	if n := len(l) + 1 - shard.MaxLineage; n > 0 {
		l = append(l[:0], l[n:]...)
	}
	return append(l, e.name())
}

// sameMembers reports whether two epochs are known to name the same holders.
func (e Epoch) sameMembers(other Epoch) bool {
	sorted := func(names string) []string { return slices.Sorted(strings.FieldsSeq(names)) }
	return e == other || e.Members != "" && e.Holders == other.Holders && slices.Equal(sorted(e.Members), sorted(other.Members))
}

// session is one sequence. Its rows are those of pages [first, first+len(rows)); the pages before have left the windows of
// all layers.
type session struct {
	// These do not change.
	id      SessionID
	shape   *shape
	made    made
	adopted bool   // a copy took its id: nobody knows here how it was made
	call    uint64 // that made it
	created time.Time
	ttl     time.Duration // time without use after which it may be dropped
	bytes   int64         // reserved for it beside its rows and its shape

	// Store.mu guards these.
	used    time.Time
	part    float64   // as which it is counted to its tenant
	place   place     // in Store.expiry
	resting place     // in Store.idle
	parked  *openLane // which drives it, if Store.idle has found so

	busy gate // held while the session is changed, from an append until it is committed or aborted

	mu          sync.Mutex // guards what follows
	gone        bool
	epoch       Epoch
	lineage     lineage // the last one is the epoch's
	served      uint64  // line on which a call was accepted last, or a lane took it, or it was made or adopted
	truncations uint64
	cutID       uint64 // of the newest truncation
	pinned      bool
	lengths     []int      // [layers held]
	freed       []int      // [layers held] pages that have left the layer's window and that the session needs no more
	hashes      []uint64   // [shards] after lengths
	identities  []identity // [layers held]
	before      []uint64   // [shards] hashes at identity.before
	rows        []*row
	first       int
	edge        edge
	tokens      []uint32 // that are known, from position 0 on without a gap
	keyed       int      // pages that have a key, from page 0 on
	begun       []begun  // [layers held] or nil, see CreateRequest.Begin
}

// accept makes an epoch the session's.
func (s *session) accept(e Epoch) {
	before := s.epoch
	s.epoch = e.taken()
	s.lineage = s.lineage.with(s.epoch, before)
}

// start makes an epoch the first one of a session, or of a copy that has come through a lineage, to whose last line the epoch belongs.
func (s *session) start(e Epoch, through ...uint64) {
	s.epoch, s.lineage = e.taken(), append(make(lineage, 0, len(through)+1), through...)
	if len(through) == 0 {
		s.lineage = s.lineage.with(s.epoch, Epoch{})
	}
	s.serve()
}

// serve notes that a call is accepted under the session's epoch.
func (s *session) serve() { s.served = s.lineage[len(s.lineage)-1] }

// unlock ends a call that holds both locks.
func (s *session) unlock() {
	s.mu.Unlock()
	s.busy.unlock()
}

// tryLock takes both locks, or none if another call has one. It may be called under Store.mu.
func (s *session) tryLock() bool {
	if !s.busy.tryLock() {
		return false
	}
	if !s.mu.TryLock() {
		s.busy.unlock()
		return false
	}
	return true
}

// knownTo tells whether the session is driven by e's lane under the counter that e names, by the holders that e knows.
func (s *session) knownTo(e Epoch) bool {
	return (e.At == 0 || e.At == s.epoch.Counter) && e.Lane == s.epoch.Lane && (e.Counter == s.epoch.Counter || e.Counter == s.epoch.Base && e.Counter != 0)
}

// drivenBy reports whether calls of e are accepted.
func (s *session) drivenBy(e Epoch) bool { return !s.epoch.Closed && s.knownTo(e) }

func (s *session) stale(e Epoch) *Error {
	err := refuse(StaleEpoch, "session %s: epoch %d of lane %x, accepted is %d of lane %x", s.id, e.Counter, e.Lane, s.epoch.Counter, s.epoch.Lane)
	err.Epoch = s.epoch
	return err
}

func (s *session) otherTruncations(named uint64) *Error {
	err := refuse(OtherTruncations, "session %s: truncated %d times, the request names %d", s.id, s.truncations, named)
	err.Truncations = s.truncations
	return err
}

// sessionBase is what a session takes on the heap whatever its shape, with its places among those that are held.
const sessionBase = 960 + maxMembers + 8*shard.MaxLineage

// heap is about the most that the session takes on the heap beside its rows and its shape, with the tokens that it begins with.
// Those that come later are little beside their pages.
func (s *session) heap() int64 {
	layers, shards := len(s.shape.layers), s.shape.shards
	n := sessionBase + layers*int(16+unsafe.Sizeof(identity{})) + 8*3*shards + 4*len(s.tokens) + 16*max(len(s.rows), len(s.tokens)/attention.PageLen)
	if s.begun != nil {
		n += layers*int(unsafe.Sizeof(begun{})) + 8*shards
	}
	return int64(n)
}

// made is how a session came to be, to know a repeated request.
type made struct {
	forked   bool
	from     SessionID
	position int64             // -1 is all
	begin    [sha256.Size]byte // of CreateRequest.Begin, 0 where there is none
}

// edge is what is still needed of the last row before the first: how the chains go on.
type edge struct {
	hashes []uint64
	key    prefixKey
}

// row returns page p's row, which must exist.
func (s *session) row(p int) *row { return s.rows[p-s.first] }

// end returns the page after the last row.
func (s *session) end() int { return s.first + len(s.rows) }

// checkpoint returns the hash of a shard at the beginning of page p.
func (s *session) checkpoint(p, shard int) uint64 {
	switch {
	case p == 0:
		return 0
	case p == s.first:
		return s.edge.hashes[shard]
	}
	return s.row(p - 1).hashes[shard]
}

// filled returns how many pages are full in every layer.
func (s *session) filled() int { return slices.Min(s.lengths) / attention.PageLen }

// pageBytes returns the bytes of the pages that the session refers to.
func (s *session) pageBytes() (n int64) {
	for l, h := range s.shape.layers {
		n += h.pageBytes(s.freed[l], pagesOf(s.lengths[l]))
	}
	return n
}

// pagesOf returns how many pages n positions take.
func pagesOf(n int) int { return (n + attention.PageLen - 1) / attention.PageLen }
