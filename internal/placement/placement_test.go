package placement_test

import (
	"encoding/binary"
	"fmt"
	"maps"
	"math"
	"reflect"
	"slices"
	"testing"

	"pgregory.net/rapid"

	"headwater.example/internal/placement"
	"headwater.example/shard"
)

func room(name, zone string, weight int, free uint64) placement.Room {
	return placement.Room{Worker: shard.Worker{Name: name, Weight: weight}, Zone: zone, Budget: 1000, Free: free}
}

func drawRooms(t *rapid.T) []placement.Room {
	rooms := make([]placement.Room, rapid.IntRange(1, 9).Draw(t, "workers"))
	zones := rapid.IntRange(1, 4).Draw(t, "zones")
	for i := range rooms {
		rooms[i] = room(fmt.Sprintf("w%d", i), fmt.Sprint(rapid.IntRange(1, zones).Draw(t, "zone")),
			rapid.IntRange(1, 3).Draw(t, "weight"), uint64(rapid.IntRange(0, 1000).Draw(t, "free")))
	}
	return rooms
}

func drawGeometry(t *rapid.T) *shard.Geometry {
	g, err := shard.NewGeometry(rapid.SliceOfN(rapid.Map(rapid.IntRange(1, 8), func(n int) shard.LayerShape {
		return shard.LayerShape{Heads: n, KVHeads: n, HeadDim: 8, VDim: 8}
	}), 1, 6).Draw(t, "layers"))
	if err != nil {
		t.Fatal(err)
	}
	return g
}

// holdersOf returns who holds each shard, by the places of all workers.
func holdersOf(placed map[string][][]int) map[shard.ID][]string {
	holders := map[shard.ID][]string{}
	for name, layers := range placed {
		for l, groups := range layers {
			for _, group := range groups {
				id := shard.ID{Layer: shard.Layer(l), Group: shard.Group(group)}
				holders[id] = append(holders[id], name)
			}
		}
	}
	return holders
}

// zonesOf returns the zones of some workers, each once.
func zonesOf(rooms []placement.Room, names []string) []string {
	var zones []string
	for _, r := range rooms {
		if slices.Contains(names, r.Name) {
			zones = append(zones, r.Zone)
		}
	}
	slices.Sort(zones)
	return slices.Compact(zones)
}

// A place gives each group of each layer to one worker, and copies of it to as many others as there are to be replicas. It is the
// same for the same key in any order of workers, and takes those with little room only if the others are too few.
func TestAPlaceIsWholeAndTheKeys(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		g, rooms, key := drawGeometry(t), drawRooms(t), rapid.Uint64().Draw(t, "key")
		most := rapid.IntRange(0, len(rooms)+1).Draw(t, "most")
		replicas := rapid.IntRange(0, 3).Draw(t, "replicas")
		placed, err := placement.Place(g, key, rooms, most, replicas)
		if err != nil {
			t.Fatal(err)
		}
		again, err := placement.Place(g, key, rapid.Permutation(rooms).Draw(t, "order"), most, replicas)
		if err != nil || !reflect.DeepEqual(placed, again) {
			t.Fatalf("%v, and in another order %v: %v", placed, again, err)
		}
		if most > 0 && len(placed) > most {
			t.Fatalf("%d workers, at most %d are to be", len(placed), most)
		}
		holders := holdersOf(placed)
		if most == 0 {
			most = len(rooms)
		}
		most = min(most, len(rooms))
		times := 1 + min(replicas, most-1)
		for id, names := range holders {
			slices.Sort(names)
			if len(slices.Compact(slices.Clone(names))) != times {
				t.Fatalf("%v is held by %v, not by %d workers", id, names, times)
			}
		}
		if len(holders) != g.Shards() {
			t.Fatalf("%d of %d shards are held", len(holders), g.Shards())
		}
		roomy, full := 0, false
		for _, r := range rooms {
			if r.Crowded() {
				full = full || placed[r.Name] != nil
			} else {
				roomy++
			}
		}
		if full && min(most, max(g.Shards(), times)) <= roomy {
			t.Fatalf("%v: a worker with little room has a part, and %d have more", placed, roomy)
		}
	})
}

// Copies are in as many zones as they can be, if all workers have room.
func TestCopiesAreInOtherZones(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		g, rooms := drawGeometry(t), drawRooms(t)
		names := make([]string, len(rooms))
		for i := range rooms {
			rooms[i].Free, names[i] = 1000, rooms[i].Name
		}
		replicas := rapid.IntRange(0, 3).Draw(t, "replicas")
		placed, err := placement.Place(g, rapid.Uint64().Draw(t, "key"), rooms, 0, replicas)
		if err != nil {
			t.Fatal(err)
		}
		want := min(1+replicas, len(zonesOf(rooms, names)))
		for id, names := range holdersOf(placed) {
			if zones := zonesOf(rooms, names); len(zones) != want {
				t.Fatalf("%v is held in zones %v of %v, want %d", id, zones, rooms, want)
			}
		}
		// What is lost with a worker comes back in another zone as well.
		lost := rapid.SampledFrom(rooms).Draw(t, "lost").Name
		rest := slices.DeleteFunc(slices.Clone(rooms), func(r placement.Room) bool { return r.Name == lost })
		if len(rest) == 0 {
			return
		}
		delete(placed, lost)
		heal(t, g, placed, rest, 1+replicas)
		for id, names := range holdersOf(placed) {
			if zones := zonesOf(rooms, names); len(names) > 0 && len(zones) != min(1+replicas, len(zonesOf(rest, namesOf(rest)))) {
				t.Fatalf("%v is held by %v in zones %v of %v after the loss of %s", id, names, zones, rooms, lost)
			}
		}
	})
}

func namesOf(rooms []placement.Room) []string {
	var names []string
	for _, r := range rooms {
		names = append(names, r.Name)
	}
	return names
}

// heal gives workers what is lacking until nothing is, and fails if that does not end. Groups that nobody holds are made anew.
func heal(t *rapid.T, g *shard.Geometry, placed map[string][][]int, rooms []placement.Room, times int) {
	t.Helper()
	bytes := make([]uint64, g.Layers())
	for range 100 {
		held := make([][][]string, g.Layers())
		for l := range held {
			held[l] = make([][]string, g.Layer(shard.Layer(l)).KVHeads)
		}
		for id, names := range holdersOf(placed) {
			held[id.Layer][id.Group] = names
		}
		name, groups := placement.Lacking(held, bytes, times, rooms, false)
		if name == "" {
			for l := range held {
				for group, by := range held[l] {
					if len(by) < min(times, len(rooms)) {
						t.Fatalf("layer %d group %d has %v, and nobody lacks it", l, group, by)
					}
				}
			}
			return
		}
		placed[name] = groups
	}
	t.Fatalf("%v is not whole after a hundred steps", placed)
}

// A worker is given what it has room for, and a part of its memory stays free unless the session must move.
func TestWhatIsLackingNeedsRoom(t *testing.T) {
	held := [][][]string{{{"a"}, {"a"}}}
	for _, c := range []struct {
		name        string
		free, bytes uint64
		must        bool
		want        string
	}{
		{"room", 500, 100, false, "b"},
		{"just enough beside what stays free", 325, 100, false, "b"},
		{"one byte less", 324, 100, false, ""},
		{"it must move", 200, 100, true, "b"},
		{"it must move and has no room", 199, 100, true, ""},
	} {
		name, groups := placement.Lacking(held, []uint64{c.bytes}, 2, []placement.Room{room("a", "", 1, 10), room("b", "", 1, c.free)}, c.must)
		if name != c.want || name != "" && !reflect.DeepEqual(groups, [][]int{{0, 1}}) {
			t.Errorf("%s: %q is given %v", c.name, name, groups)
		}
	}
}

// Sessions of one shard, and the odd shards of larger ones, spread over workers alike within six standard deviations.
func TestPlacesSpread(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		n := rapid.IntRange(2, 7).Draw(t, "workers")
		groups := rapid.IntRange(1, 2*n).Draw(t, "groups")
		g, err := shard.NewGeometry([]shard.LayerShape{{Heads: groups, KVHeads: groups, HeadDim: 8, VDim: 8}})
		if err != nil {
			t.Fatal(err)
		}
		rooms := make([]placement.Room, n)
		for i := range rooms {
			rooms[i] = room(fmt.Sprintf("w%d", i), "", 1, 1000)
		}
		const sessions = 600
		key := rapid.Uint64().Draw(t, "start")
		loads := map[string]int{}
		for range sessions {
			key = key*6364136223846793005 + 1442695040888963407
			placed, err := placement.Place(g, key, rooms, 0, 0)
			if err != nil {
				t.Fatal(err)
			}
			for name, layers := range placed {
				loads[name] += len(layers[0])
			}
		}
		odd := float64(groups%n) / float64(n) // how often a worker has one more
		for _, r := range rooms {
			want := sessions * float64(groups) / float64(n)
			if off := math.Abs(float64(loads[r.Name]) - want); off > 6*math.Sqrt(sessions*odd*(1-odd)) {
				t.Fatalf("%d sessions of %d groups: %v, want %.0f each", sessions, groups, loads, want)
			}
		}
	})
}

// Moves keep what each shard has: as many holders, no worker twice, no fewer zones; and no worker is left with more than a
// twentieth too much if all parts are small.
func TestLoadsBecomeEven(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		g, rooms := drawGeometry(t), drawRooms(t)
		loads := make([]*placement.Load, len(rooms))
		for i, r := range rooms {
			loads[i] = &placement.Load{Room: r, Parts: map[[16]byte]*placement.Part{}}
		}
		some := rooms[:rapid.IntRange(1, len(rooms)).Draw(t, "some")] // the others have just come
		for s := range rapid.IntRange(1, 40).Draw(t, "sessions") {
			var id [16]byte
			binary.LittleEndian.PutUint64(id[:], uint64(s))
			placed, err := placement.Place(g, rapid.Uint64().Draw(t, "key"), some, 0, rapid.IntRange(0, 2).Draw(t, "replicas"))
			if err != nil {
				t.Fatal(err)
			}
			each := uint64(rapid.IntRange(1, 1000).Draw(t, "bytes"))
			for i, r := range rooms {
				p := &placement.Part{Session: id, Held: map[shard.ID]bool{}}
				for l, groups := range placed[r.Name] {
					for _, group := range groups {
						p.Held[shard.ID{Layer: shard.Layer(l), Group: shard.Group(group)}] = true
						p.Bytes += each
					}
				}
				if p.Bytes > 0 {
					loads[i].Parts[id] = p
				}
			}
		}
		type shardOf struct {
			session [16]byte
			shard.ID
		}
		count := func() (times, zones map[shardOf]int, total map[string]uint64) {
			names := map[shardOf][]string{}
			total = map[string]uint64{}
			for _, l := range loads {
				for id, p := range l.Parts {
					for s := range p.Held {
						names[shardOf{id, s}] = append(names[shardOf{id, s}], l.Name)
					}
					total[l.Name] += p.Bytes
				}
			}
			times, zones = map[shardOf]int{}, map[shardOf]int{}
			for s, by := range names {
				times[s], zones[s] = len(by), len(zonesOf(rooms, by))
			}
			return times, zones, total
		}
		times, zones, before := count()
		moves := placement.Even(loads)
		again, then, after := count()
		if !maps.Equal(times, again) {
			t.Fatalf("after %d moves shards have other numbers of holders", len(moves))
		}
		for s, n := range zones {
			if then[s] < n {
				t.Fatalf("a shard was held in %d zones and is in %d", n, then[s])
			}
		}
		if off, was := unevenness(rooms, after), unevenness(rooms, before); off > was+1e-6*was {
			t.Fatalf("%v became %v, which is less even", before, after)
		}
	})
}

// unevenness is the sum over workers of (what it has - its share) squared.
func unevenness(rooms []placement.Room, bytes map[string]uint64) (sum float64) {
	total, weights := 0.0, 0.0
	for _, r := range rooms {
		total += float64(bytes[r.Name])
		weights += float64(r.Weight)
	}
	for _, r := range rooms {
		off := float64(bytes[r.Name]) - total*float64(r.Weight)/weights
		sum += off * off
	}
	return sum
}
