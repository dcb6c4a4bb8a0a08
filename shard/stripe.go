package shard

import (
	"fmt"

	"headwater.example/attention"
)

// A session may hold a layer's groups in stripes, for more workers than there are groups: of a group's splits, attention.SplitLen
// positions each, stripe i of n has those whose number is i modulo n. A shard is then one (layer, group, stripe), and the shards of a
// layer are numbered group · n + stripe: with one stripe a shard is a group.

// Shards returns how many shards the layer has in a session.
func (s *LayerSpec) Shards() int { return s.KVHeads * s.stripes() }

// Striped says whether the layer's groups are held in more than one stripe.
func (s *LayerSpec) Striped() bool { return s.Stripes > 1 }

func (s *LayerSpec) stripes() int { return max(s.Stripes, 1) }

// GroupOf returns the group that a shard is of.
func (s *LayerSpec) GroupOf(shard int) int { return shard / s.stripes() }

// Stores says whether a shard has the positions of a split.
func (s *LayerSpec) Stores(shard, split int) bool { return (split-shard)%s.stripes() == 0 } // group · n is 0 modulo n

// Name names a shard for people.
func (s *LayerSpec) Name(shard int) string {
	if !s.Striped() {
		return fmt.Sprintf("group %d", shard)
	}
	return fmt.Sprintf("group %d stripe %d", s.GroupOf(shard), shard%s.Stripes)
}

// Stored returns how many of the n positions from position from on a shard stores.
func (s *LayerSpec) Stored(shard, from, n int) int {
	if !s.Striped() {
		return n
	}
	return s.storedBelow(shard, from+n) - s.storedBelow(shard, from)
}

func (s *LayerSpec) storedBelow(shard, end int) int {
	stripe, split, in := shard%s.Stripes, end/attention.SplitLen, end%attention.SplitLen
	n := s.SplitsBelow(shard, split) * attention.SplitLen
	if split%s.Stripes == stripe {
		n += in
	}
	return n
}

// SplitsBelow returns how many of the splits before an end a shard has.
func (s *LayerSpec) SplitsBelow(shard, end int) int {
	n := s.stripes()
	return (end + n - 1 - shard%n) / n
}

// Runs calls do for each run of positions that a shard stores of the n positions from position from on: count of them from at on, the
// first being the row-th of all that it stores. It ends early if do returns false. A run lies in one split if the layer is striped.
func (s *LayerSpec) Runs(shard, from, n int, do func(at, count, row int) bool) {
	if n == 0 {
		return
	}
	if !s.Striped() {
		do(from, n, 0)
		return
	}
	row := 0
	for at := from; at < from+n; {
		split := at / attention.SplitLen
		count := min((split+1)*attention.SplitLen, from+n) - at
		if s.Stores(shard, split) {
			if !do(at, count, row) {
				return
			}
			row += count
		}
		at += count
	}
}

// SplitsSeen returns how many splits queries see, from the first on: those of so many query tokens from a position on, where the layer
// has length positions.
func (s *LayerSpec) SplitsSeen(length, position, tokens int) int {
	end := length
	if s.Options.Causal {
		end = min(end, position+tokens)
	}
	if w := s.Options.WindowRight; w >= 0 && w < int64(length) {
		end = min(end, position+tokens+int(w))
	}
	return (end + attention.SplitLen - 1) / attention.SplitLen
}

// WithStripes returns the layer in n stripes; 0 and 1 are none. A layer with a left window has none: what it keeps is bounded.
func (s LayerSpec) WithStripes(n int) (LayerSpec, error) {
	s.Stripes = n
	return s, s.checkStripes()
}

func (s *LayerSpec) checkStripes() error {
	switch {
	case s.Stripes < 0 || s.Stripes > MaxStripes:
		return fmt.Errorf("%d stripes, outside 0 to %d", s.Stripes, MaxStripes)
	case s.Striped() && s.Windowed():
		return fmt.Errorf("%d stripes of a layer with a left window, which keeps no more than that: give it none, it is held whole", s.Stripes)
	case s.Shards() > MaxHeads:
		return fmt.Errorf("%d groups in %d stripes are %d shards, at most %d are allowed: use fewer stripes", s.KVHeads, s.Stripes, s.Shards(), MaxHeads)
	}
	return nil
}
