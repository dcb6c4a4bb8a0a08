package kvcache

import (
	"crypto/sha256"
	"encoding/binary"
	"slices"

	"headwater.example/attention"
	"headwater.example/shard"
)

const (
	// maxGap is how many rows an append makes for layers that have nothing there: as many as the largest append fills.
	maxGap = shard.MaxStepTokens / attention.PageLen
	// maxBegin bounds the product of a layer's first position and its groups held, because a view has a page, though not
	// its memory, for each of the positions before.
	maxBegin = 1 << 28
)

// BeginLayer lets a layer take up the positions of another session's, which are then appended: until then it has the length
// First and the hashes Hashes, and positions before First are as if they had left its window.
type BeginLayer struct {
	Layer shard.Layer
	// First is a multiple of attention.PageLen; it must be 0 if the layer has no left window.
	First uint64
	// Hashes [groups held] are the chained hashes after the positions before First; empty if First is 0.
	Hashes []uint64
	// Length is how many positions the layer will have taken up. Until it has more, none of them is freed, so that the
	// session then has what the other one has, however it was appended.
	Length uint64
}

// begun is the position at which a layer of a session has begun.
type begun struct {
	first  int // page
	hashes []uint64
	length int
}

// begin lets the layers of a new session begin as it is asked.
func (s *session) begin(req CreateRequest) (made, *Error) {
	if len(req.Begin) == 0 {
		return made{}, nil
	}
	s.begun = make([]begun, len(s.shape.layers))
	var said []byte
	before := shard.Layer(-1)
	for _, b := range req.Begin {
		l, held := s.shape.layer(b.Layer)
		if b.Layer <= before || !held {
			return made{}, refuse(Invalid, "layer %d, which begins after layer %d, is not held here, or they do not ascend", b.Layer, before).at(b.Layer, 0)
		}
		before = b.Layer
		h := &s.shape.layers[l]
		hashes := 0
		if b.First > 0 {
			hashes = len(h.groups)
		}
		switch {
		case b.First%attention.PageLen != 0 || b.First > b.Length || b.Length > shard.MaxPositions:
			return made{}, refuse(Invalid, "layer %d begins at position %d of %d: no multiple of %d up to the length, which is at most %d",
				b.Layer, b.First, b.Length, attention.PageLen, int64(shard.MaxPositions)).at(b.Layer, 0)
		case b.First > 0 && h.Options.WindowLeft < 0:
			return made{}, refuse(Invalid, "layer %d begins at position %d, but its queries see all positions before", b.Layer, b.First).at(b.Layer, 0)
		case b.First > maxBegin/uint64(len(h.groups)):
			return made{}, refuse(Invalid, "layer %d begins at position %d in %d groups, beyond %d together: hold fewer groups, on more workers",
				b.Layer, b.First, len(h.groups), maxBegin).at(b.Layer, 0)
		case len(b.Hashes) != hashes:
			return made{}, refuse(Invalid, "layer %d begins at position %d with %d hashes, %d groups are held", b.Layer, b.First, len(b.Hashes), len(h.groups)).at(b.Layer, 0)
		}
		s.begun[l] = begun{first: int(b.First) / attention.PageLen, hashes: slices.Clone(b.Hashes), length: int(b.Length)}
		s.lengths[l], s.freed[l] = int(b.First), s.begun[l].first
		copy(s.hashes[h.first:], b.Hashes)
		said = binary.LittleEndian.AppendUint64(said, uint64(b.Layer))
		said = binary.LittleEndian.AppendUint64(said, b.First)
		said = binary.LittleEndian.AppendUint64(said, b.Length)
		for _, hash := range b.Hashes {
			said = binary.LittleEndian.AppendUint64(said, hash)
		}
	}
	s.first = slices.Min(s.freed)
	if slices.Max(s.freed) > 0 {
		s.tokens = nil // Pages that lack a layer are no prefix, and would be kept to become one.
	}
	if s.first > 0 {
		s.edge.hashes = make([]uint64, s.shape.shards)
		s.beginAt(s.first, s.edge.hashes)
	}
	return made{begin: sha256.Sum256(said)}, nil
}

// beginAt fills in the hashes [shards] of the layers that begin at page p.
func (s *session) beginAt(p int, hashes []uint64) {
	for l, b := range s.begun {
		if b.first == p {
			copy(hashes[s.shape.layers[l].first:], b.hashes)
		}
	}
}

// newRow makes page p's row of a session, which is beyond those that it has. It has left the layers that begin later.
func (s *session) newRow(p int) *row {
	r := newRow(s.shape)
	s.beginAt(p+1, r.hashes)
	for l := range s.begun {
		if s.freed[l] > p {
			if r.left == nil {
				r.left = make([]int32, len(s.begun))
			}
			r.left[l] = 1
		}
	}
	return r
}
