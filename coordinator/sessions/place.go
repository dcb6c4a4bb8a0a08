package sessions

import (
	"encoding/binary"

	"github.com/zeebo/xxh3"

	"headwater.example/attention"
	"headwater.example/coordinator/workers"
	"headwater.example/internal/membership"
	"headwater.example/internal/placement"
	headwaterv1 "headwater.example/proto/headwater/v1"
	"headwater.example/shard"
)

// roomOf is the room that a worker says it has.
func roomOf(w workers.Description) placement.Room {
	budget, used := w.Said.GetBudgetBytes(), w.Said.GetUsedBytes()
	used -= min(used, w.Said.GetSpareBytes())
	return placement.Room{
		Worker: shard.Worker{Name: w.Name, Weight: int(w.Said.GetWeight())}, Zone: w.Said.GetZone(),
		Budget: budget, Free: budget - min(budget, used),
	}
}

// roomsOf is the room that each of some workers says it has.
func roomsOf(all []workers.Description) []placement.Room {
	rooms := make([]placement.Room, len(all))
	for i, w := range all {
		rooms[i] = roomOf(w)
	}
	return rooms
}

// roomy returns the workers that are not crowded, or all workers if all are.
func roomy(all []workers.Description, rooms []placement.Room) []membership.Member {
	var with, without []membership.Member
	for i, w := range all {
		if rooms[i].Crowded() {
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
