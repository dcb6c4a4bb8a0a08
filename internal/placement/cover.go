package placement

import (
	"cmp"
	"math/bits"
	"slices"

	"headwater.example/shard"
)

// Prefix is what one worker has of the tokens that a session begins with: the groups of one session that left it there.
type Prefix struct {
	Worker    string
	Groups    [][]int // by layer, ascending
	Positions uint64
	shards    []uint64 // as a set of bits, by Cover
	first     int      // the least of them
}

const (
	maxCoverBits  = 1 << 27 // of all sets of shards together
	maxCoverSteps = 1 << 14
)

// Cover chooses holdings that together have each shard so many times, one of each of n workers, so that the shortest of their
// prefixes is as long as can be. Of alike ones those come first whose workers rank first by the key. It is nil if there are none,
// or if they are not found in a bounded search: the session then begins without a prefix.
func Cover(g *shard.Geometry, all []Prefix, n, times int, key uint64) map[string][][]int {
	rank := map[string]int{}
	var names []shard.Worker
	for _, f := range all {
		if _, ok := rank[f.Worker]; !ok {
			rank[f.Worker] = 0
			names = append(names, shard.Worker{Name: f.Worker, Weight: 1})
		}
	}
	if len(names) < n || int64(len(all))*int64(g.Shards()) > maxCoverBits {
		return nil
	}
	for i, w := range shard.Rank(key, names) {
		rank[w.Name] = i
	}
	c := &coverSearch{n: n, shards: g.Shards(), covered: make([][]uint64, times), taken: map[string]bool{}, byFirst: map[int][]int{}}
	for i := range c.covered {
		c.covered[i] = make([]uint64, (g.Shards()+63)/64)
	}
	for _, f := range all {
		if f.number(g) && f.Positions > 0 {
			c.all = append(c.all, f)
		}
	}
	slices.SortStableFunc(c.all, func(a, b Prefix) int {
		return cmp.Or(cmp.Compare(b.Positions, a.Positions), cmp.Compare(rank[a.Worker], rank[b.Worker]))
	})
	for i, f := range c.all {
		c.byFirst[f.first] = append(c.byFirst[f.first], i)
		if i+1 < len(c.all) && c.all[i+1].Positions == f.Positions {
			continue
		}
		if c.search() {
			placed := make(map[string][][]int, n)
			for _, f := range c.chosen {
				placed[f.Worker] = f.Groups
			}
			return placed
		}
	}
	return nil
}

// number makes the set of shards that a holding has, and says whether they are of the geometry.
func (f *Prefix) number(g *shard.Geometry) bool {
	f.shards, f.first = make([]uint64, (g.Shards()+63)/64), g.Shards()
	at := 0
	for l := range g.Layers() {
		groups, before := g.Layer(shard.Layer(l)).KVHeads, -1
		for _, group := range f.Groups[l] {
			if group <= before || group >= groups {
				return false
			}
			before = group
			f.shards[(at+group)/64] |= 1 << ((at + group) % 64)
			f.first = min(f.first, at+group)
		}
		at += groups
	}
	return f.first < g.Shards()
}

// coverSearch is a search among holdings. Those are added to byFirst, and it is made again, until it succeeds: so the first
// success has the longest prefix.
type coverSearch struct {
	n, shards int
	all       []Prefix      // the longest prefix first
	byFirst   map[int][]int // of all, by their first shard
	steps     int

	chosen  []Prefix
	covered [][]uint64 // shards that are covered once, twice and so on
	taken   map[string]bool
}

// search adds holdings to those that are chosen until all shards are covered. The next one has the first shard that is missing,
// as its least, since nothing is missing of those before.
func (c *coverSearch) search() bool {
	next := c.missing()
	if next == c.shards || len(c.chosen) == c.n {
		return next == c.shards && len(c.chosen) == c.n
	}
	for _, i := range c.byFirst[next] {
		f := c.all[i]
		if c.steps++; c.steps > maxCoverSteps {
			return false
		}
		if c.taken[f.Worker] || !c.add(f.shards) {
			continue
		}
		c.taken[f.Worker] = true
		c.chosen = append(c.chosen, f)
		if c.search() {
			return true
		}
		c.chosen = c.chosen[:len(c.chosen)-1]
		delete(c.taken, f.Worker)
		c.remove(f.shards)
	}
	return false
}

// add covers shards once more, unless one of them is covered as often as it is to be.
func (c *coverSearch) add(shards []uint64) bool {
	last := len(c.covered) - 1
	for i, w := range shards {
		if c.covered[last][i]&w != 0 {
			return false
		}
	}
	for i, w := range shards {
		for t := last; t > 0; t-- {
			c.covered[t][i] |= c.covered[t-1][i] & w
		}
		c.covered[0][i] |= w
	}
	return true
}

// remove takes back what add has done.
func (c *coverSearch) remove(shards []uint64) {
	last := len(c.covered) - 1
	for i, w := range shards {
		for t := range last {
			c.covered[t][i] &^= w &^ c.covered[t+1][i]
		}
		c.covered[last][i] &^= w
	}
}

// missing returns the first shard that is not covered as often as it is to be, or their number.
func (c *coverSearch) missing() int {
	for i, w := range c.covered[len(c.covered)-1] {
		if ^w != 0 {
			return min(64*i+bits.TrailingZeros64(^w), c.shards)
		}
	}
	return c.shards
}
