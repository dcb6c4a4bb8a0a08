package shard_test

import (
	"testing"

	"pgregory.net/rapid"

	"headwater.example/attention"
	"headwater.example/shard"
	"headwater.example/tensor"
)

// TestStripesShareOutPositions: each position of a group is in exactly one shard, and counts and runs are those of a look at each.
func TestStripesShareOutPositions(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		groups := rapid.IntRange(1, 3).Draw(t, "groups")
		l, err := shard.NewLayerSpec(shard.LayerShape{Heads: groups, KVHeads: groups, HeadDim: 4, VDim: 4}, tensor.F32, attention.DefaultOptions(4))
		if err == nil {
			l, err = l.WithStripes(rapid.IntRange(0, 5).Draw(t, "stripes"))
		}
		if err != nil {
			t.Fatal(err)
		}
		n := max(l.Stripes, 1)
		edge := rapid.Custom(func(t *rapid.T) int {
			return max(rapid.IntRange(0, 7).Draw(t, "split")*attention.SplitLen+rapid.IntRange(-2, 2).Draw(t, "beside"), 0)
		})
		from, count := edge.Draw(t, "from"), edge.Draw(t, "count")
		if l.Shards() != groups*n {
			t.Fatalf("%d shards of %d groups in %d stripes", l.Shards(), groups, n)
		}
		for s := range l.Shards() {
			has := func(p int) bool { return p/attention.SplitLen%n == s-l.GroupOf(s)*n }
			rows := map[int]int{} // by position, its number among those that are stored
			for p := from; p < from+count; p++ {
				if has(p) {
					rows[p] = len(rows)
				}
			}
			if have := l.Stored(s, from, count); have != len(rows) {
				t.Fatalf("shard %d has %d of %d positions from %d on, not %d", s, have, count, from, len(rows))
			}
			seen := 0
			l.Runs(s, from, count, func(at, m, row int) bool {
				for i := range m {
					if want, ok := rows[at+i]; !ok || want != row+i {
						t.Fatalf("shard %d: position %d is row %d, %v, not %d", s, at+i, want, ok, row+i)
					}
				}
				if m < 1 || l.Striped() && at/attention.SplitLen != (at+m-1)/attention.SplitLen {
					t.Fatalf("a run of %d positions from %d on", m, at)
				}
				seen += m
				return true
			})
			if seen != len(rows) {
				t.Fatalf("runs of %d positions, %d are stored", seen, len(rows))
			}
			splits := 0
			for split := range 9 {
				if l.SplitsBelow(s, split) != splits {
					t.Fatalf("shard %d has %d splits below %d, not %d", s, l.SplitsBelow(s, split), split, splits)
				}
				if l.Stores(s, split) != has(split*attention.SplitLen) {
					t.Fatalf("shard %d, split %d", s, split)
				}
				if has(split * attention.SplitLen) {
					splits++
				}
			}
		}
	})
}

// TestSplitsSeen compares with a look at each position.
func TestSplitsSeen(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		o := attention.DefaultOptions(4)
		o.Causal = rapid.Bool().Draw(t, "causal")
		o.WindowRight = rapid.SampledFrom([]int64{-1, 0, 5, 3000, 1 << 62}).Draw(t, "right")
		l, err := shard.NewLayerSpec(shard.LayerShape{Heads: 1, KVHeads: 1, HeadDim: 4, VDim: 4}, tensor.F32, o)
		if err != nil {
			t.Fatal(err)
		}
		length, position, tokens := rapid.IntRange(0, 10000).Draw(t, "length"), rapid.IntRange(0, 10000).Draw(t, "position"), rapid.IntRange(1, 3).Draw(t, "tokens")
		want := 0
		for p := range length {
			for q := position; q < position+tokens; q++ {
				if (!o.Causal || p <= q) && (o.WindowRight < 0 || int64(p-q) <= o.WindowRight) {
					want = p/attention.SplitLen + 1
				}
			}
		}
		if have := l.SplitsSeen(length, position, tokens); have != want {
			t.Fatalf("%d splits, not %d", have, want)
		}
	})
}

func TestStripesThatCanNotBe(t *testing.T) {
	window := attention.DefaultOptions(4)
	window.WindowLeft = 7
	plain, err := shard.NewLayerSpec(shard.LayerShape{Heads: 100, KVHeads: 100, HeadDim: 4, VDim: 4}, tensor.F32, attention.DefaultOptions(4))
	windowed, err2 := shard.NewLayerSpec(shard.LayerShape{Heads: 1, KVHeads: 1, HeadDim: 4, VDim: 4}, tensor.F32, window)
	if err != nil || err2 != nil {
		t.Fatal(err, err2)
	}
	for _, c := range []struct {
		layer shard.LayerSpec
		n     int
		ok    bool
	}{{plain, 0, true}, {plain, 1, true}, {plain, 40, true}, {plain, 41, false}, {plain, -1, false}, {plain, 65, false}, {windowed, 1, true}, {windowed, 2, false}} {
		l, err := c.layer.WithStripes(c.n)
		if (err == nil) != c.ok || (l.Check() == nil) != c.ok {
			t.Errorf("%d stripes: %v", c.n, err)
		}
	}
}
