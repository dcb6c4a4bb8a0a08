package sessions

import (
	"encoding/binary"
	"fmt"
	"slices"

	"github.com/zeebo/xxh3"

	"headwater.example/attention"
	"headwater.example/coordinator/workers"
	"headwater.example/internal/membership"
	headwaterv1 "headwater.example/proto/headwater/v1"
	"headwater.example/shard"
)

// room is a worker that may hold a session, with its memory in bytes.
type room struct {
	shard.Worker
	budget, free uint64
}

// crowded reports whether a worker has little room left: others are chosen first.
func (r room) crowded() bool { return r.free < r.budget/8 }

// roomy returns the workers that are not crowded, or all workers if all are.
func roomy(all []workers.Description, rooms []room) []membership.Member {
	var with, without []membership.Member
	for i, w := range all {
		if rooms[i].crowded() {
			without = append(without, w.Member)
		} else {
			with = append(with, w.Member)
		}
	}
	if len(with) > 0 {
		return with
	}
	return without
}

// placeKey is what a session's place is drawn by. Sessions that begin with the same page of tokens are drawn alike, so
// that they find the prefix where the first of them has left it; all others are drawn each for itself.
func placeKey(req *headwaterv1.CreateSessionRequest) uint64 {
	config, tokens := req.GetConfig(), req.GetTokens()
	if !hasPrefix(req) {
		return xxh3.Hash(req.GetSession())
	}
	var b []byte
	b = append(binary.LittleEndian.AppendUint64(b, uint64(len(config.GetTenant()))), config.GetTenant()...)
	b = append(binary.LittleEndian.AppendUint64(b, uint64(len(config.GetModel()))), config.GetModel()...)
	for _, t := range tokens[:attention.PageLen] {
		b = binary.LittleEndian.AppendUint32(b, t)
	}
	return xxh3.Hash(b)
}

// place says which groups each worker is to hold, by name and layer, of those that hold any. At most so many workers take
// part, 0 is all; a session of fewer shards than workers is held by as many as it has shards. Shares are by weight; who has
// one more of what does not divide is drawn by the key, and those with little room are the last. What one holds as many others as
// there are replicas hold as well, the next ones of the draw. It is the same for the same key and rooms, in any order.
func place(g *shard.Geometry, key uint64, rooms []room, most, replicas int) (map[string][][]int, error) {
	crowded := make(map[string]bool, len(rooms))
	all := make([]shard.Worker, len(rooms))
	for i, r := range rooms {
		all[i] = shard.Worker{Name: r.Name, Weight: max(r.Weight, 1)}
		crowded[r.Name] = r.crowded()
	}
	var roomy, full []shard.Worker
	for _, w := range shard.Rank(key, all) {
		if crowded[w.Name] {
			full = append(full, w)
		} else {
			roomy = append(roomy, w)
		}
	}
	ranked := append(roomy, full...)
	if most > 0 {
		ranked = ranked[:min(most, len(ranked))]
	}
	owners := ranked[:min(g.Shards(), len(ranked))]
	// A plan settles ties by name: it is made for names in the order of the draw.
	byRank := func(i int) string { return fmt.Sprintf("%04d", i) }
	planned := make([]shard.Worker, len(owners))
	for i, w := range owners {
		planned[i] = shard.Worker{Name: byRank(i), Weight: w.Weight}
	}
	plan, err := shard.MakePlan(g, planned, nil)
	if err != nil {
		return nil, err
	}
	placed := make(map[string][][]int, len(ranked))
	for i := range owners {
		for copies := range 1 + min(replicas, len(ranked)-1) {
			w := ranked[(i+copies)%len(ranked)].Name
			for l := range g.Layers() {
				for _, group := range plan.Groups(shard.Layer(l), byRank(i)) {
					if placed[w] == nil {
						placed[w] = make([][]int, g.Layers())
					}
					placed[w][l] = append(placed[w][l], int(group))
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
