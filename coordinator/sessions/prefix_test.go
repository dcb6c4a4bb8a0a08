package sessions

import (
	"fmt"
	"reflect"
	"testing"

	"pgregory.net/rapid"

	"headwater.example/shard"
)

// longest tries all ways to give each shard once to n workers, and returns the longest of the shortest prefixes, 0 is none.
func longest(owned map[shard.ID]bool, shards int, all []found, taken map[string]bool, n int) uint64 {
	if len(owned) == shards && len(taken) == n {
		return 1 << 20
	}
	var best uint64
	for i, f := range all {
		if taken[f.worker] {
			continue
		}
		next, disjoint := map[shard.ID]bool{}, true
		for id := range owned {
			next[id] = true
		}
		for l, groups := range f.groups {
			for _, g := range groups {
				id := shard.ID{Layer: shard.Layer(l), Group: shard.Group(g)}
				disjoint = disjoint && !next[id]
				next[id] = true
			}
		}
		if disjoint {
			taken[f.worker] = true
			best = max(best, min(f.positions, longest(next, shards, all[i+1:], taken, n)))
			delete(taken, f.worker)
		}
	}
	return best
}

// A cover has each shard once, with a prefix as long as any cover of so many workers has.
func TestACoverHasTheLongestPrefix(t *testing.T) {
	covered := 0
	rapid.Check(t, func(t *rapid.T) {
		g := drawGeometry(t)
		var all []found
		for range rapid.IntRange(0, 4).Draw(t, "placements") {
			parts := make([]found, rapid.IntRange(1, 3).Draw(t, "parts"))
			for i := range parts {
				parts[i] = found{worker: fmt.Sprintf("w%d", i), groups: make([][]int, g.Layers()), positions: 64 * rapid.Uint64Range(0, 3).Draw(t, "pages")}
			}
			for l := range g.Layers() {
				for group := range g.Layer(shard.Layer(l)).KVHeads {
					p := &parts[rapid.IntRange(0, len(parts)-1).Draw(t, "owner")]
					p.groups[l] = append(p.groups[l], group)
				}
			}
			for _, p := range parts {
				if rapid.IntRange(0, 7).Draw(t, "evicted") > 0 && !reflect.DeepEqual(p.groups, make([][]int, g.Layers())) {
					all = append(all, p)
				}
			}
		}
		n, key := rapid.IntRange(1, 3).Draw(t, "workers"), rapid.Uint64().Draw(t, "key")
		want := longest(map[shard.ID]bool{}, g.Shards(), all, map[string]bool{}, n)
		placed := cover(g, all, n, key)
		if again := cover(g, rapid.Permutation(all).Draw(t, "order"), n, key); (again == nil) != (placed == nil) {
			t.Fatalf("%v, and in another order %v", placed, again)
		}
		if placed == nil {
			if want > 0 {
				t.Fatalf("no cover, one has %d positions", want)
			}
			return
		}
		covered++
		have, owned := uint64(1<<20), map[shard.ID]bool{}
		for worker, groups := range placed {
			var longest uint64
			for _, f := range all {
				if f.worker == worker && reflect.DeepEqual(f.groups, groups) {
					longest = max(longest, f.positions)
				}
			}
			have = min(have, longest)
			for l := range groups {
				for _, group := range groups[l] {
					id := shard.ID{Layer: shard.Layer(l), Group: shard.Group(group)}
					if owned[id] {
						t.Fatalf("%v has two owners: %v", id, placed)
					}
					owned[id] = true
				}
			}
		}
		if have != want || len(placed) != n || len(owned) != g.Shards() {
			t.Fatalf("%v: %d positions, want %d by %d workers", placed, have, want, n)
		}
	})
	if covered == 0 {
		t.Error("no cover was found at all")
	}
}

// What a worker says of groups that are not the session's is no cover and no harm.
func TestACoverOfNonsenseIsNone(t *testing.T) {
	g, err := shard.NewGeometry([]shard.LayerShape{{Heads: 2, KVHeads: 2, HeadDim: 8, VDim: 8}})
	if err != nil {
		t.Fatal(err)
	}
	for name, groups := range map[string][]int{"a group that is none": {0, 2}, "a negative one": {-1, 0}, "one twice": {0, 0}, "none": nil, "descending": {1, 0}, "too few": {0}} {
		if at := cover(g, []found{{worker: "w", groups: [][]int{groups}, positions: 64}}, 1, 0); at != nil {
			t.Errorf("%s: %v", name, at)
		}
	}
}
