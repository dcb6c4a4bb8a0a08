package attention

import (
	"math"
	"math/rand/v2"
	"slices"
	"testing"
)

// covering returns rows of levels, levels[f] of factor f, such that every combination of levels of any strength factors
// stands in a row, unless no row with it is affordable: costs at most most. Of the rows that hold a combination it takes
// those of many others for little.
func covering(levels []int, strength int, cost func(row []int) int, most int) [][]int {
	rnd := rand.New(rand.NewPCG(1, 1))
	var sets [][]int // of factors
	var choose func(set []int, from int)
	choose = func(set []int, from int) {
		if len(set) == strength {
			sets = append(sets, slices.Clone(set))
			return
		}
		for f := from; f < len(levels); f++ {
			choose(append(set, f), f+1)
		}
	}
	choose(nil, 0)
	number := func(set, row []int) (n int) {
		for _, f := range set {
			n = n*levels[f] + row[f]
		}
		return n
	}
	done := make([][]bool, len(sets))
	for i, set := range sets {
		n := 1
		for _, f := range set {
			n *= levels[f]
		}
		done[i] = make([]bool, n)
	}
	row := make([]int, len(levels))
	var rows [][]int
	for i, set := range sets {
		for n := range done[i] {
			if done[i][n] {
				continue
			}
			var best []int
			score := 0.0
			for range 30 {
				for f := range row {
					// The cheap levels come first.
					row[f] = int(float64(levels[f]) * math.Pow(rnd.Float64(), 1.5))
				}
				for j, rest := len(set)-1, n; j >= 0; j-- {
					row[set[j]], rest = rest%levels[set[j]], rest/levels[set[j]]
				}
				c := cost(row)
				if c > most {
					continue
				}
				news := 0
				for j, other := range sets {
					if !done[j][number(other, row)] {
						news++
					}
				}
				if s := float64(news) / float64(c+most/20); s > score {
					best, score = slices.Clone(row), s
				}
			}
			if best == nil {
				continue
			}
			rows = append(rows, best)
			for j, other := range sets {
				done[j][number(other, best)] = true
			}
		}
	}
	return rows
}

func TestCovering(t *testing.T) {
	levels := []int{4, 3, 5, 2}
	rows := covering(levels, 2, func([]int) int { return 1 }, 1)
	if len(rows) < 20 || len(rows) > 40 {
		t.Errorf("%d rows for pairs of at most 5·4 levels", len(rows))
	}
	for f := range levels {
		for g := range f {
			seen := map[[2]int]bool{}
			for _, r := range rows {
				seen[[2]int{r[f], r[g]}] = true
			}
			if len(seen) != levels[f]*levels[g] {
				t.Errorf("factors %d and %d: %d of %d pairs", f, g, len(seen), levels[f]*levels[g])
			}
		}
	}
	for _, r := range covering(levels, 2, func(r []int) int { return r[0] + r[2] }, 3) {
		if r[0]+r[2] > 3 {
			t.Errorf("%v is not affordable", r)
		}
	}
}
