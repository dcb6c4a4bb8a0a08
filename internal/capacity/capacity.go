// Package capacity says how much memory sessions take, and how many workers hold them, before there is a cluster.
package capacity

import (
	"errors"
	"fmt"
	"math/big"

	"headwater.example/attention"
	"headwater.example/internal/kvcache"
	"headwater.example/internal/placement"
	"headwater.example/shard"
)

// Demand is what is to be held.
type Demand struct {
	Layers    []shard.LayerSpec
	Positions int64 // of each session, at least 1
	Sessions  int64 // at least 1
	Replicas  int   // copies of each shard beside the owner's
	Spare     int   // workers that may be lost, and all copies have room still
	Memory    int64 // bytes that one worker has for keys and values
}

// Size is what it takes.
type Size struct {
	PositionBytes int64 // of one position more in every layer without a window
	SessionBytes  int64 // of one session, without copies
	TotalBytes    int64 // of all sessions, with copies
	RoomBytes     int64 // that a worker has, without what copies leave free
	WorkerBytes   int64 // of a worker when the spare ones are lost
	Workers       int   // with the spare ones
}

// Measure says what a demand takes. Its error says what can not be.
func Measure(d Demand) (Size, error) {
	var s Size
	switch {
	case len(d.Layers) == 0:
		return s, errors.New("a model has at least one layer")
	case d.Positions < 1 || d.Sessions < 1 || d.Memory < 1:
		return s, errors.New("positions, sessions and memory must each be at least 1")
	case d.Replicas < 0 || d.Replicas > shard.MaxReplicas:
		return s, fmt.Errorf("%d copies are not from 0 to %d", d.Replicas, shard.MaxReplicas)
	case d.Spare < 0 || d.Spare >= shard.MaxWorkers:
		return s, fmt.Errorf("%d spare workers are not from 0 to %d", d.Spare, shard.MaxWorkers-1)
	}
	session, largest, shards := new(big.Int), int64(0), 0
	for i := range d.Layers {
		l := &d.Layers[i]
		page := int64(l.Layout.PageBytes())
		one := new(big.Int).Mul(big.NewInt(pages(l, d.Positions)), big.NewInt(page))
		if !one.IsInt64() {
			return s, errors.New("a shard is larger than can be counted")
		}
		largest = max(largest, one.Int64())
		session.Add(session, one.Mul(one, big.NewInt(int64(l.KVHeads))))
		shards += l.KVHeads
		if !l.Windowed() {
			s.PositionBytes += page / attention.PageLen * int64(l.KVHeads)
		}
	}
	// Rows that refer to the pages, on the fewest workers; on more they are smaller and more.
	rows := new(big.Int).Mul(big.NewInt(kvcache.RowBytes(len(d.Layers), shards)), big.NewInt((d.Positions+attention.PageLen-1)/attention.PageLen))
	session.Add(session, rows)
	total := new(big.Int).Mul(session, big.NewInt(d.Sessions))
	total.Mul(total, big.NewInt(int64(1+d.Replicas)))
	if !total.IsInt64() {
		return s, errors.New("the sessions are larger than can be counted")
	}
	s.SessionBytes, s.TotalBytes, s.RoomBytes = session.Int64(), total.Int64(), d.Memory-d.Memory/placement.Headroom
	if largest >= s.RoomBytes {
		return s, fmt.Errorf("one shard of a session takes %d bytes, and a worker has room for %d", largest, s.RoomBytes)
	}
	// A worker has its part of all shards, and one more at most.
	least := (s.TotalBytes + s.RoomBytes - largest - 1) / (s.RoomBytes - largest)
	least = max(least, int64(1+d.Replicas))
	if least+int64(d.Spare) > shard.MaxWorkers {
		return s, fmt.Errorf("that takes %d workers, and a cluster has at most %d", least+int64(d.Spare), shard.MaxWorkers)
	}
	s.Workers = int(least) + d.Spare
	s.WorkerBytes = min((s.TotalBytes+least-1)/least+largest, s.TotalBytes)
	return s, nil
}

// pages returns how many pages a group of a layer has of so many positions: those that the newest position sees, and the one that
// is being filled.
func pages(l *shard.LayerSpec, positions int64) int64 {
	first := int64(0)
	if w := l.Options.WindowLeft; w >= 0 && w < positions {
		first = (positions - w) / attention.PageLen
	}
	return (positions+attention.PageLen-1)/attention.PageLen - first
}
