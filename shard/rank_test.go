package shard

import (
	"fmt"
	"math"
	"slices"
	"testing"

	"pgregory.net/rapid"
)

func drawWorkers(t *rapid.T) []Worker {
	workers := make([]Worker, rapid.IntRange(1, 12).Draw(t, "workers"))
	for i := range workers {
		workers[i] = Worker{fmt.Sprintf("w%d", i), rapid.SampledFrom([]int{1, 1, 1, 2, 5, 1000}).Draw(t, "weight")}
	}
	return workers
}

// A rank is one of the workers' orders, the same for the same key; without some workers the others keep theirs.
func TestRankIsTheKeys(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		workers, key := drawWorkers(t), rapid.Uint64().Draw(t, "key")
		ranked := Rank(key, workers)
		gone := rapid.SliceOfN(rapid.Bool(), len(workers), len(workers)).Draw(t, "gone")
		var stay []Worker
		for i, w := range workers {
			if !gone[i] {
				stay = append(stay, w)
			}
		}
		want := slices.DeleteFunc(slices.Clone(ranked), func(w Worker) bool { return !slices.Contains(stay, w) })
		if got := Rank(key, rapid.Permutation(stay).Draw(t, "order")); !slices.Equal(got, want) || len(ranked) != len(workers) {
			t.Fatalf("of %v stay %v, got %v", ranked, want, got)
		}
	})
}

// Over many keys each worker is first as often as its part of the weights says, within six standard deviations.
func TestRankFollowsWeights(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		workers, start := drawWorkers(t), rapid.Uint64().Draw(t, "start")
		const keys = 2000
		first, sum := map[string]int{}, 0
		for i := range uint64(keys) {
			first[Rank(start+i, workers)[0].Name]++
		}
		for _, w := range workers {
			sum += w.Weight
		}
		for _, w := range workers {
			p := float64(w.Weight) / float64(sum)
			if off := math.Abs(float64(first[w.Name]) - keys*p); off > 6*math.Sqrt(keys*p*(1-p))+2 {
				t.Fatalf("%s of %v is first %d times in %d", w.Name, workers, first[w.Name], keys)
			}
		}
	})
}
