package sessions

import (
	"encoding/binary"
	"fmt"
	"maps"
	"math"
	"reflect"
	"slices"
	"testing"

	"pgregory.net/rapid"

	headwaterv1 "headwater.example/proto/headwater/v1"
	"headwater.example/shard"
)

func drawRooms(t *rapid.T) []room {
	rooms := make([]room, rapid.IntRange(1, 9).Draw(t, "workers"))
	for i := range rooms {
		rooms[i] = room{shard.Worker{Name: fmt.Sprintf("w%d", i), Weight: rapid.IntRange(1, 3).Draw(t, "weight")}, 1000, uint64(rapid.IntRange(0, 1000).Draw(t, "free"))}
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

// A place gives each group of each layer to one worker, and copies of it to as many others as there are to be replicas, is the same for the same key in any order of workers, and takes
// those with little room only where the others are too few.
func TestAPlaceIsWholeAndTheKeys(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		g, rooms, key := drawGeometry(t), drawRooms(t), rapid.Uint64().Draw(t, "key")
		most := rapid.IntRange(0, len(rooms)+1).Draw(t, "most")
		replicas := rapid.IntRange(0, 3).Draw(t, "replicas")
		placed, err := place(g, key, rooms, most, replicas)
		if err != nil {
			t.Fatal(err)
		}
		again, err := place(g, key, rapid.Permutation(rooms).Draw(t, "order"), most, replicas)
		if err != nil || !reflect.DeepEqual(placed, again) {
			t.Fatalf("%v, and in another order %v: %v", placed, again, err)
		}
		if most > 0 && len(placed) > most {
			t.Fatalf("%d workers, at most %d are to be", len(placed), most)
		}
		owners := map[shard.ID]int{}
		for _, layers := range placed {
			for l, groups := range layers {
				for _, group := range groups {
					owners[shard.ID{Layer: shard.Layer(l), Group: shard.Group(group)}]++
				}
			}
		}
		if most == 0 {
			most = len(rooms)
		}
		copies := slices.Collect(maps.Values(owners))
		if want := 1 + min(replicas, min(most, len(rooms))-1); len(owners) != g.Shards() || slices.Max(copies) != want || slices.Min(copies) != want {
			t.Fatalf("%v is not %d holders for each of %d shards", placed, want, g.Shards())
		}
		roomy, full := 0, false
		for _, r := range rooms {
			if r.free >= 125 {
				roomy++
			} else {
				full = full || placed[r.Name] != nil
			}
		}
		if full && min(most, g.Shards()+replicas) <= roomy {
			t.Fatalf("%v: a worker with little room has a part, and %d have more", placed, roomy)
		}
	})
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
		rooms := make([]room, n)
		for i := range rooms {
			rooms[i] = room{shard.Worker{Name: fmt.Sprintf("w%d", i), Weight: 1}, 1000, 1000}
		}
		const sessions = 600
		start := rapid.Uint64().Draw(t, "start")
		loads := map[string]int{}
		for i := range uint64(sessions) {
			id := binary.BigEndian.AppendUint64(make([]byte, 8), start+i)
			placed, err := place(g, placeKey(&headwaterv1.CreateSessionRequest{Session: id}), rooms, 0, 0)
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

// Sessions go together where they may find each other's prefix, and only there.
func TestPlaceKeyIsThePrefix(t *testing.T) {
	request := func(id byte, tenant, model string, tokens ...uint32) uint64 {
		return placeKey(&headwaterv1.CreateSessionRequest{
			Session: []byte{15: id}, Config: &headwaterv1.SessionConfig{Tenant: tenant, Model: []byte(model)}, Tokens: tokens,
		})
	}
	page := make([]uint32, 64)
	longer := append(slices.Clone(page), 1, 2)
	other := append(slices.Clone(page), 3)
	same := request(1, "a", "b", longer...)
	if request(2, "a", "b", other...) != same {
		t.Error("two sessions that begin with the same page are drawn apart")
	}
	other[63] = 9
	for name, key := range map[string]uint64{
		"another page": request(1, "a", "b", other...), "tenant": request(1, "ab", "", longer...), "model": request(1, "a", "c", longer...),
		"no whole page": request(1, "a", "b", page...),
	} {
		if key == same {
			t.Errorf("%s: drawn as another session is", name)
		}
	}
	if request(1, "a", "b", page...) == request(2, "a", "b", page...) {
		t.Error("sessions without a prefix are drawn alike")
	}
}
