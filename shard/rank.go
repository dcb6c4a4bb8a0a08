package shard

import (
	"cmp"
	"encoding/binary"
	"math"
	"slices"

	"github.com/zeebo/xxh3"
)

// Rank returns the workers in an order that the key draws, each first as often as its weight says over many keys
// (rendezvous hashing, weighted). It is the same for the same key, whatever the order of workers, and where one comes or
// goes the others keep their order. Names are to differ.
func Rank(key uint64, workers []Worker) []Worker {
	type drawn struct {
		Worker
		at float64
	}
	all := make([]drawn, len(workers))
	for i, w := range workers {
		hash := xxh3.HashSeed(binary.LittleEndian.AppendUint64([]byte(w.Name), key), key)
		// In (0, 1), so that the draw is a finite number above 0: exponentially distributed, at the rate of the weight.
		u := (float64(hash>>11) + 0.5) / (1 << 53)
		all[i] = drawn{w, -math.Log(u) / float64(max(w.Weight, 1))}
	}
	slices.SortFunc(all, func(a, b drawn) int { return cmp.Or(cmp.Compare(a.at, b.at), cmp.Compare(a.Name, b.Name)) })
	ranked := make([]Worker, len(all))
	for i, d := range all {
		ranked[i] = d.Worker
	}
	return ranked
}
