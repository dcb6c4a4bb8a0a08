package placement_test

import (
	"fmt"
	"maps"
	"reflect"
	"slices"
	"testing"

	"pgregory.net/rapid"

	"headwater.example/internal/placement"
	"headwater.example/shard"
)

// longest tries all ways to give each shard so many times to n workers, and returns the longest of the shortest prefixes, 0 is none.
func longest(owned map[shard.ID]int, shards, times int, all []placement.Prefix, taken map[string]bool, n int) uint64 {
	full := 0
	for _, by := range owned {
		if by == times {
			full++
		}
	}
	if full == shards && len(taken) == n {
		return 1 << 20
	}
	var best uint64
	for i, f := range all {
		if taken[f.Worker] {
			continue
		}
		next, fits := maps.Clone(owned), true
		for l, groups := range f.Groups {
			for _, g := range groups {
				id := shard.ID{Layer: shard.Layer(l), Group: shard.Group(g)}
				next[id]++
				fits = fits && next[id] <= times
			}
		}
		if fits {
			taken[f.Worker] = true
			best = max(best, min(f.Positions, longest(next, shards, times, all[i+1:], taken, n)))
			delete(taken, f.Worker)
		}
	}
	return best
}

// A cover has each shard as often as it is to be, with a prefix as long as any cover of so many workers has.
func TestACoverHasTheLongestPrefix(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		g := drawGeometry(t)
		times := rapid.IntRange(1, 3).Draw(t, "times")
		var all []placement.Prefix
		for range rapid.IntRange(0, 3).Draw(t, "placements") {
			parts := make([]placement.Prefix, rapid.IntRange(times, 4).Draw(t, "parts"))
			for i := range parts {
				parts[i] = placement.Prefix{Worker: fmt.Sprintf("w%d", i), Groups: make([][]int, g.Layers()), Positions: 64 * rapid.Uint64Range(0, 3).Draw(t, "pages")}
			}
			for l := range g.Layers() {
				for group := range g.Layer(shard.Layer(l)).KVHeads {
					owner := rapid.IntRange(0, len(parts)-1).Draw(t, "owner")
					for copies := range times {
						p := &parts[(owner+copies)%len(parts)]
						p.Groups[l] = append(p.Groups[l], group)
					}
				}
			}
			for _, p := range parts {
				if rapid.IntRange(0, 7).Draw(t, "evicted") > 0 && !reflect.DeepEqual(p.Groups, make([][]int, g.Layers())) {
					all = append(all, p)
				}
			}
		}
		n, key := rapid.IntRange(1, 4).Draw(t, "workers"), rapid.Uint64().Draw(t, "key")
		want := longest(map[shard.ID]int{}, g.Shards(), times, all, map[string]bool{}, n)
		placed := placement.Cover(g, all, n, times, key)
		if again := placement.Cover(g, rapid.Permutation(all).Draw(t, "order"), n, times, key); (again == nil) != (placed == nil) {
			t.Fatalf("%v, and in another order %v", placed, again)
		}
		if placed == nil {
			if want > 0 {
				t.Fatalf("no cover, one has %d positions", want)
			}
			return
		}
		have, owned := uint64(1<<20), map[shard.ID]int{}
		for worker, groups := range placed {
			var longest uint64
			for _, f := range all {
				if f.Worker == worker && reflect.DeepEqual(f.Groups, groups) {
					longest = max(longest, f.Positions)
				}
			}
			have = min(have, longest)
			for l := range groups {
				for _, group := range groups[l] {
					owned[shard.ID{Layer: shard.Layer(l), Group: shard.Group(group)}]++
				}
			}
		}
		for id, by := range owned {
			if by != times {
				t.Fatalf("%v has %d holders, not %d: %v", id, by, times, placed)
			}
		}
		if have != want || len(placed) != n || len(owned) != g.Shards() {
			t.Fatalf("%v: %d positions, want %d by %d workers", placed, have, want, n)
		}
	})
}

// Where each of three workers has a third of the groups, and copies of others' thirds, all of them are the cover.
func TestACoverIsFoundForCopies(t *testing.T) {
	g, err := shard.NewGeometry([]shard.LayerShape{{Heads: 3, KVHeads: 3, HeadDim: 8, VDim: 8}})
	if err != nil {
		t.Fatal(err)
	}
	for times := 1; times <= 3; times++ {
		var all []placement.Prefix
		want := map[string][][]int{}
		for i := range 3 {
			var groups []int
			for copies := range times {
				groups = append(groups, (i+copies)%3)
			}
			slices.Sort(groups)
			name := fmt.Sprintf("w%d", i)
			want[name] = [][]int{groups}
			all = append(all, placement.Prefix{Worker: name, Groups: [][]int{groups}, Positions: 64})
		}
		if at := placement.Cover(g, all, 3, times, 0); !reflect.DeepEqual(at, want) {
			t.Errorf("%d holders of each group: %v, not %v", times, at, want)
		}
	}
}

// What a worker says of groups that are not the session's is no cover and no harm.
func TestACoverOfNonsenseIsNone(t *testing.T) {
	g, err := shard.NewGeometry([]shard.LayerShape{{Heads: 2, KVHeads: 2, HeadDim: 8, VDim: 8}})
	if err != nil {
		t.Fatal(err)
	}
	for name, groups := range map[string][]int{"a group that is none": {0, 2}, "a negative one": {-1, 0}, "one twice": {0, 0}, "none": nil, "descending": {1, 0}, "too few": {0}} {
		if at := placement.Cover(g, []placement.Prefix{{Worker: "w", Groups: [][]int{groups}, Positions: 64}}, 1, 1, 0); at != nil {
			t.Errorf("%s: %v", name, at)
		}
	}
}
