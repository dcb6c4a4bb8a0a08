// Package placement decides which workers hold which groups of which sessions: of a new session, of one that lacks copies, and of
// all if some workers hold more than their weights say. It only decides: it knows neither a network nor a clock.
package placement

import (
	"cmp"
	"fmt"
	"slices"

	"headwater.example/shard"
)

// Headroom is the part of a worker's memory below which others are chosen first, and which stays free of copies, as a divisor.
const Headroom = 8

// Room is a worker that may hold a part of a session.
type Room struct {
	shard.Worker
	Zone         string // what fails with it: a rack or a data center; empty is not known
	Budget, Free uint64 // bytes of its memory
}

// Crowded reports whether a worker has little room left: others are chosen first.
func (r Room) Crowded() bool { return r.Free < r.Budget/Headroom }

// Place says which groups each worker is to hold, by name and layer, of those that hold any. At most so many workers take
// part, 0 is all. A session of fewer shards than workers is owned by as many as it has shards. Shares are by weight. The key draws
// who has one more of what does not divide. Crowded workers are the last. What one owns as many others hold as well as
// there are replicas: in other zones if there are, and the next ones of the draw. The result is the same for the same key and rooms,
// in any order. Errors are those of shard.MakePlan.
func Place(g *shard.Geometry, key uint64, rooms []Room, most, replicas int) (map[string][][]int, error) {
	ranked := draw(key, rooms)
	if most > 0 {
		ranked = ranked[:min(most, len(ranked))]
	}
	owners := ranked[:min(g.Shards(), len(ranked))]
	// A plan settles ties by name: it is made for names in the order of the draw.
	byRank := func(i int) string { return fmt.Sprintf("%04d", i) }
	planned := make([]shard.Worker, len(owners))
	for i, r := range owners {
		planned[i] = shard.Worker{Name: byRank(i), Weight: r.Weight}
	}
	plan, err := shard.MakePlan(g, planned, nil)
	if err != nil {
		return nil, err
	}
	holders := make([][]int, len(owners)) // of what each owns, as places in the draw
	for i := range owners {
		holders[i] = []int{i}
	}
	copied := make([]int, len(ranked)) // copies that each worker has so far
	for range min(replicas, len(ranked)-1) {
		for i := range owners {
			next := copyAt(ranked, holders[i], copied)
			holders[i] = append(holders[i], next)
			copied[next]++
		}
	}
	placed := make(map[string][][]int, len(ranked))
	for i, held := range holders {
		for l := range g.Layers() {
			groups := plan.Groups(shard.Layer(l), byRank(i))
			for _, at := range held {
				name := ranked[at].Name
				if placed[name] == nil {
					placed[name] = make([][]int, g.Layers())
				}
				for _, group := range groups {
					placed[name][l] = append(placed[name][l], int(group))
				}
			}
		}
	}
	for _, layers := range placed {
		for _, groups := range layers {
			slices.Sort(groups)
		}
	}
	return placed, nil
}

// draw returns the rooms in the order that the key draws, the crowded ones last.
func draw(key uint64, rooms []Room) []Room {
	byName := make(map[string]Room, len(rooms))
	all := make([]shard.Worker, len(rooms))
	for i, r := range rooms {
		r.Weight = max(r.Weight, 1)
		all[i] = r.Worker
		byName[r.Name] = r
	}
	var roomy, crowded []Room
	for _, w := range shard.Rank(key, all) {
		if r := byName[w.Name]; r.Crowded() {
			crowded = append(crowded, r)
		} else {
			roomy = append(roomy, r)
		}
	}
	return append(roomy, crowded...)
}

// copyAt returns who is to hold one more copy of what some hold already, the owner first: one that is not crowded, in a zone where
// none of them is, with the fewest copies so far, and the next after the owner.
func copyAt(ranked []Room, held []int, copied []int) int {
	zones := make(map[string]bool, len(held))
	for _, at := range held {
		zones[ranked[at].Zone] = true
	}
	best := -1
	for after := 1; after < len(ranked); after++ {
		at := (held[0] + after) % len(ranked)
		if slices.Contains(held, at) {
			continue
		}
		if best < 0 || cmp.Or(
			compare(ranked[at].Crowded(), ranked[best].Crowded()),
			compare(zones[ranked[at].Zone], zones[ranked[best].Zone]),
			cmp.Compare(copied[at], copied[best]),
		) < 0 {
			best = at
		}
	}
	return best
}

// compare orders what does not hold before what does.
func compare(a, b bool) int {
	switch {
	case a == b:
		return 0
	case b:
		return -1
	}
	return 1
}
