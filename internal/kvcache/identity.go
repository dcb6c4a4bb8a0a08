package kvcache

import (
	"context"
	"encoding/binary"
	"fmt"

	"github.com/zeebo/xxh3"
)

// identity names what a layer has: which appends and truncations have made it. The hashes of two shards can not be compared with
// each other, so by them alone two holders of one layer can not see that they have done different steps of one length. Their
// chains tell, because every append and truncation has an id that all holders chain.
type identity struct {
	chain    uint64 // 0 as the session begins
	appendID uint64 // of the newest append, 0 if what came last was a truncation
	before   point  // what the layer had before that
}

// point is a state of a layer, whose hashes are beside it.
type point struct {
	length int
	chain  uint64
	known  bool
}

// NextChain returns the chain of a layer after the append of an id to a layer of that length and chain.
func NextChain(chain, id, length uint64) uint64 {
	var b [24]byte
	binary.LittleEndian.PutUint64(b[0:], chain)
	binary.LittleEndian.PutUint64(b[8:], id)
	binary.LittleEndian.PutUint64(b[16:], length)
	return xxh3.Hash(b[:])
}

// remember makes the state of held layer l the point before its next change.
func (s *session) remember(l int) {
	h := &s.shape.layers[l]
	s.identities[l].before = point{length: s.lengths[l], chain: s.identities[l].chain, known: true}
	copy(s.before[h.first:], s.hashes[h.first:][:len(h.groups)])
}

// hashesBefore returns the hashes of held layer l at the point before its newest change.
func (s *session) hashesBefore(l int) []uint64 {
	h := &s.shape.layers[l]
	return s.before[h.first:][:len(h.groups)]
}

// otherChain is the refusal of a state that other appends have made than those that are there.
func (s *session) otherChain(l int, named, have uint64) *Error {
	layer := s.shape.layers[l].layer
	return refuse(Different, "session %s: layer %d was made by other appends: its chain is %016x, not %016x", s.id, layer, have, named).at(layer, s.lengths[l])
}

// starts compares what a truncation names as its start with what held layer l has, and returns the start's length. An append more
// may be there only if the truncation names it.
func (s *session) starts(l int, want *LayerState) (int, *Error) {
	h, id, length := &s.shape.layers[l], &s.identities[l], s.lengths[l]
	switch {
	case want.Layer != h.layer || len(want.Hashes) != len(h.groups):
		return 0, refuse(Invalid, "session %s: layer %d with %d hashes is named, layer %d of %d groups is held: all that are held are named, ascending",
			s.id, want.Layer, len(want.Hashes), h.layer, len(h.groups)).at(want.Layer, length)
	case want.Length == uint64(length):
		if want.Chain != id.chain {
			return 0, s.otherChain(l, want.Chain, id.chain)
		}
		return length, s.same(l, want.Hashes, s.hashes[h.first:])
	case want.Length > uint64(length):
		return 0, refuse(Behind, "session %s: layer %d has %d positions, not %d", s.id, h.layer, length, want.Length).at(h.layer, length)
	case want.AppendID == 0 || want.AppendID != id.appendID || want.Length != uint64(id.before.length):
		return 0, refuse(Ahead, "session %s: layer %d has %d positions, the request starts from %d", s.id, h.layer, length, want.Length).at(h.layer, length)
	case want.Chain != id.before.chain:
		return 0, s.otherChain(l, want.Chain, id.before.chain)
	}
	return id.before.length, s.same(l, want.Hashes, s.hashesBefore(l))
}

// has compares what a fork names with what held layer l has, which may be more, and returns the hashes at the length that is
// named.
func (st *Store) has(s *session, l int, want *LayerState) *Error {
	h, id, length := &s.shape.layers[l], &s.identities[l], s.lengths[l]
	switch {
	case want.Layer != h.layer || len(want.Hashes) != len(h.groups):
		return refuse(Invalid, "session %s: layer %d with %d hashes is named, layer %d of %d groups is held: all that are held are named, ascending",
			s.id, want.Layer, len(want.Hashes), h.layer, len(h.groups)).at(want.Layer, length)
	case want.Length > uint64(length):
		return refuse(Behind, "session %s: layer %d has %d positions, not %d", s.id, h.layer, length, want.Length).at(h.layer, length)
	case want.Length == uint64(length) && want.Chain != id.chain:
		return s.otherChain(l, want.Chain, id.chain)
	case id.before.known && want.Length == uint64(id.before.length) && want.Length < uint64(length) && want.Chain != id.before.chain:
		return s.otherChain(l, want.Chain, id.before.chain)
	}
	hashes, err := st.hashesAt(s, l, int(want.Length))
	if err != nil {
		return err
	}
	return s.same(l, want.Hashes, hashes)
}

// gate is a lock that is waited for as long as a context lasts.
type gate chan struct{}

func newGate() gate { return make(gate, 1) }

func (g gate) lock(ctx context.Context) error {
	select {
	case g <- struct{}{}:
		return nil
	default:
	}
	select {
	case g <- struct{}{}:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("wait for the step under way: %w", ctx.Err())
	}
}

func (g gate) tryLock() bool {
	select {
	case g <- struct{}{}:
		return true
	default:
		return false
	}
}

func (g gate) unlock() { <-g }
