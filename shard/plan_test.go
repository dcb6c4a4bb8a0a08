package shard_test

import (
	"bytes"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"reflect"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"headwater.example/shard"
)

// model makes a geometry of layers with these numbers of groups.
func model(t testing.TB, groups ...int) *shard.Geometry {
	t.Helper()
	var layers []shard.LayerShape
	for _, n := range groups {
		layers = append(layers, shard.LayerShape{Heads: 2 * n, KVHeads: n, HeadDim: 64, VDim: 64})
	}
	g, err := shard.NewGeometry(layers)
	if err != nil {
		t.Fatal(err)
	}
	return g
}

func plan(t testing.TB, g *shard.Geometry, workers []shard.Worker, prev *shard.Plan) *shard.Plan {
	t.Helper()
	p, err := shard.MakePlan(g, workers, prev)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func parse(t testing.TB, list string) []shard.Worker {
	t.Helper()
	workers, err := shard.ParseWorkers(list)
	if err != nil {
		t.Fatal(err)
	}
	return workers
}

// owners lists the owner of every shard, and fails if the views of the plan do not agree that it is the only one.
func owners(t testing.TB, p *shard.Plan) []string {
	t.Helper()
	g := p.Geometry()
	seen := map[shard.ID]string{}
	var idle []string
	for _, w := range p.Workers() {
		ids := p.Shards(w.Name)
		if len(ids) != len(p.Shards(w.Name)) {
			t.Fatalf("%s: load %d, %d shards", w.Name, len(p.Shards(w.Name)), len(ids))
		}
		if len(ids) == 0 {
			idle = append(idle, w.Name)
		}
		if !slices.IsSortedFunc(ids, func(a, b shard.ID) int {
			return cmp.Or(cmp.Compare(a.Layer, b.Layer), cmp.Compare(a.Group, b.Group))
		}) {
			t.Fatalf("%s: shards out of order: %v", w.Name, ids)
		}
		for _, id := range ids {
			if other, twice := seen[id]; twice {
				t.Fatalf("%v: owned by %s and %s", id, other, w.Name)
			}
			seen[id] = w.Name
		}
		var byLayer []shard.ID
		for l := range g.Layers() {
			for _, group := range p.Groups(shard.Layer(l), w.Name) {
				byLayer = append(byLayer, shard.ID{Layer: shard.Layer(l), Group: group})
			}
		}
		if !slices.Equal(ids, byLayer) {
			t.Fatalf("%s: Shards %v, Groups %v", w.Name, ids, byLayer)
		}
	}
	if !slices.Equal(idle, p.Idle()) {
		t.Fatalf("idle %v, want %v", p.Idle(), idle)
	}
	var list []string
	for l := range g.Layers() {
		for i := range g.Layer(shard.Layer(l)).KVHeads {
			id := shard.ID{Layer: shard.Layer(l), Group: shard.Group(i)}
			if p.Owner(id) == "" || p.Owner(id) != seen[id] {
				t.Fatalf("%v: owner %q, listed under %q", id, p.Owner(id), seen[id])
			}
			list = append(list, p.Owner(id))
		}
	}
	if len(list) != len(seen) || len(list) != g.Shards() {
		t.Fatalf("%d shards, %d owned, geometry has %d", len(list), len(seen), g.Shards())
	}
	return list
}

// judge measures owners by the rules of the package, written down independently: whether every load is its quota
// rounded down or up, by layer and in all, the deviation in all times the sum of weights, and the moves.
func judge(groups []int, workers []shard.Worker, owner, prev []string) (even bool, deviation, moves int) {
	sum := 0
	for _, w := range workers {
		sum += w.Weight
	}
	near := func(n, of, weight int) bool { // |n − of·weight/sum| < 1
		d := n*sum - of*weight
		return -sum < d && d < sum
	}
	even = true
	for _, w := range workers {
		at, all := 0, 0
		for _, n := range groups {
			mine := 0
			for _, o := range owner[at : at+n] {
				if o == w.Name {
					mine++
				}
			}
			even = even && near(mine, n, w.Weight)
			all += mine
			at += n
		}
		even = even && near(all, at, w.Weight)
		d := all*sum - at*w.Weight
		deviation += max(d, -d)
	}
	for i, o := range owner {
		if prev != nil && prev[i] != o {
			moves++
		}
	}
	return even, deviation, moves
}

// best tries every assignment there is.
func best(groups []int, workers []shard.Worker, prev []string) (deviation, moves int) {
	n := 0
	for _, g := range groups {
		n += g
	}
	deviation = -1
	choice := make([]int, n)
	owner := make([]string, n)
	for {
		for i, c := range choice {
			owner[i] = workers[c].Name
		}
		if even, d, m := judge(groups, workers, owner, prev); even && (deviation < 0 || d < deviation || d == deviation && m < moves) {
			deviation, moves = d, m
		}
		i := 0
		for ; i < n; i++ {
			if choice[i]++; choice[i] < len(workers) {
				break
			}
			choice[i] = 0
		}
		if i == n {
			return deviation, moves
		}
	}
}

func drawWorkers(t *rapid.T, most, weight int) []shard.Worker {
	names := rapid.SliceOfNDistinct(rapid.StringMatching(`[a-h]`), 1, most, rapid.ID).Draw(t, "names")
	workers := make([]shard.Worker, len(names))
	for i, name := range names {
		workers[i] = shard.Worker{Name: name, Weight: rapid.IntRange(1, weight).Draw(t, "weight")}
	}
	return workers
}

func TestPlanIsTheBestOfAll(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		groups := rapid.SliceOfN(rapid.IntRange(1, 4), 1, 4).Draw(rt, "groups")
		most := 4
		for total := 0; ; {
			total = 0
			for _, n := range groups {
				total += n
			}
			if total <= 7 {
				break
			}
			groups = groups[1:]
		}
		g := model(t, groups...)
		weight := rapid.SampledFrom([]int{1, 2, 5}).Draw(rt, "largest weight")
		var prev *shard.Plan
		var before []string
		for range rapid.IntRange(1, 3).Draw(rt, "plans") {
			workers := drawWorkers(rt, most, weight)
			next := plan(t, g, workers, prev)
			after := owners(t, next)
			even, deviation, moves := judge(groups, workers, after, before)
			d, m := best(groups, workers, before)
			if !even || deviation != d || moves != m {
				rt.Fatalf("%v on %v from %v: %v: even %v, deviation %d of %d, moves %d of %d", groups, workers, before, after, even, deviation, d, moves, m)
			}
			checkStep(rt, prev, next, before, after)
			prev, before = next, after
		}
	})
}

// checkStep checks epoch and moves from one plan to the next.
func checkStep(t *rapid.T, prev, next *shard.Plan, before, after []string) {
	moves := shard.Moves(prev, next)
	i := 0
	for l := range next.Geometry().Layers() {
		for group := range next.Geometry().Layer(shard.Layer(l)).KVHeads {
			id := shard.ID{Layer: shard.Layer(l), Group: shard.Group(group)}
			from := ""
			if before != nil {
				from = before[i]
			}
			if from != after[i] {
				want := shard.Move{ID: id, From: from, To: after[i]}
				if len(moves) == 0 || moves[0] != want {
					t.Fatalf("moves %v, want %v first", moves, want)
				}
				moves = moves[1:]
			}
			i++
		}
	}
	if len(moves) != 0 {
		t.Fatalf("moves of what stays: %v", moves)
	}
	want := shard.Epoch(1)
	if prev != nil {
		want = prev.Epoch()
		if !slices.Equal(before, after) {
			want++
		}
	}
	if next.Epoch() != want {
		t.Fatalf("epoch %d, want %d", next.Epoch(), want)
	}
}

func TestLargePlansAreEven(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		groups := rapid.SliceOfN(rapid.SampledFrom([]int{1, 2, 3, 4, 5, 8, 16, 32}), 1, 40).Draw(rt, "groups")
		g := model(t, groups...)
		var prev *shard.Plan
		var before []string
		for range rapid.IntRange(1, 3).Draw(rt, "plans") {
			n := rapid.IntRange(1, 24).Draw(rt, "workers")
			heaviest := rapid.SampledFrom([]int{1, 3, 1000, shard.MaxWeight}).Draw(rt, "largest weight")
			workers := make([]shard.Worker, n)
			for i := range workers {
				workers[i] = shard.Worker{Name: fmt.Sprintf("w%d", i), Weight: rapid.IntRange(1, heaviest).Draw(rt, "weight")}
			}
			next := plan(t, g, workers, prev)
			after := owners(t, next)
			if even, _, _ := judge(groups, workers, after, before); !even {
				rt.Fatalf("%v on %v: %v", groups, workers, after)
			}
			checkStep(rt, prev, next, before, after)
			again := plan(t, g, workers, next)
			if again.Epoch() != next.Epoch() || !slices.Equal(owners(t, again), after) {
				rt.Fatalf("%v on %v moves again: %v then %v", groups, workers, after, owners(t, again))
			}
			prev, before = next, after
		}
	})
}

func TestPlanIsPure(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		g := model(t, rapid.SliceOfN(rapid.IntRange(1, 9), 1, 12).Draw(rt, "groups")...)
		prev := plan(t, g, drawWorkers(rt, 6, 9), nil)
		was := encode(t, prev)
		workers := drawWorkers(rt, 6, 9)
		one := plan(t, g, workers, prev)
		shuffled := rapid.Permutation(workers).Draw(rt, "order")
		given := slices.Clone(shuffled)
		other := plan(t, g, shuffled, prev)
		if !bytes.Equal(encode(t, one), encode(t, other)) {
			rt.Fatalf("order matters: %s, then %s", encode(t, one), encode(t, other))
		}
		if !slices.Equal(given, shuffled) || !bytes.Equal(was, encode(t, prev)) {
			rt.Fatal("the arguments changed")
		}
	})
}

func encode(t testing.TB, p *shard.Plan) []byte {
	t.Helper()
	b, err := json.Marshal(p)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// Equal workers and no choice between them but by turns: the larger share goes round.
func TestTheRemainderRotates(t *testing.T) {
	p := plan(t, model(t, 3, 3, 3, 3, 3), parse(t, "a,b,c,d,e"), nil)
	for _, w := range p.Workers() {
		if len(p.Shards(w.Name)) != 3 {
			t.Errorf("%s owns %d of 15, want 3", w.Name, len(p.Shards(w.Name)))
		}
	}
	for l, want := range []string{"abc", "ade", "bcd", "abe", "cde"} {
		got := ""
		for group := range 3 {
			got += p.Owner(shard.ID{Layer: shard.Layer(l), Group: shard.Group(group)})
		}
		if got != want {
			t.Errorf("layer %d is owned by %s, want %s", l, got, want)
		}
	}
}

func TestMoreWorkersThanShards(t *testing.T) {
	p := plan(t, model(t, 1, 2), parse(t, "a,b,c,d,e"), nil)
	if got := len(p.Idle()); got != 2 {
		t.Errorf("%d idle, want 2: %v", got, p.Idle())
	}
	owners(t, p)
}

func TestLosingAWorkerMovesOnlyItsShards(t *testing.T) {
	g := model(t, 8, 8, 8, 8)
	p := plan(t, g, parse(t, "a,b,c,d"), nil)
	next := plan(t, g, parse(t, "a,b,d"), p)
	for _, m := range shard.Moves(p, next) {
		if m.From != "c" {
			t.Errorf("%v moves from %s to %s", m.ID, m.From, m.To)
		}
	}
	if n := len(shard.Moves(p, next)); n != 8 {
		t.Errorf("%d moves, want 8", n)
	}
}

func TestPlanErrors(t *testing.T) {
	g := model(t, 2)
	for name, workers := range map[string][]shard.Worker{
		"list is empty":     {},
		"named twice":       {{Name: "a", Weight: 1}, {Name: "b", Weight: 1}, {Name: "a", Weight: 2}},
		"weight 0":          {{Name: "a"}},
		"weight -1":         {{Name: "a", Weight: -1}},
		"not in 1 to":       {{Name: "a", Weight: shard.MaxWeight + 1}},
		"has no name":       {{Weight: 1}},
		"made of letters":   {{Name: "a\nb", Weight: 1}},
		"has 64 bytes":      {{Name: strings.Repeat("a", 64), Weight: 1}},
		"there are 1025":    make([]shard.Worker, shard.MaxWorkers+1),
		"number 1 has no n": make([]shard.Worker, 1),
	} {
		_, err := shard.MakePlan(g, workers, nil)
		if e, ok := errors.AsType[*shard.WorkerError](err); !ok || !strings.Contains(e.Error(), name) || strings.Contains(e.Error(), "\n") {
			t.Errorf("%s: %v", name, err)
		}
	}
	prev := plan(t, model(t, 3), parse(t, "a"), nil)
	if _, err := shard.MakePlan(g, parse(t, "a"), prev); !errors.Is(err, shard.ErrOtherGeometry) {
		t.Errorf("another geometry: %v", err)
	}
	if p := plan(t, g, parse(t, "a"), nil); p.Owner(shard.ID{Layer: 1}) != "" || p.Owner(shard.ID{Group: -1}) != "" || p.Groups(-1, "a") != nil || p.Groups(0, "x") != nil || p.Shards("x") != nil || len(p.Shards("x")) != 0 {
		t.Error("what is not there is owned")
	}
}

func TestGeometryErrors(t *testing.T) {
	ok := shard.LayerShape{Heads: 9, KVHeads: 3, HeadDim: 64, VDim: 64}
	with := func(change func(*shard.LayerShape)) []shard.LayerShape {
		s := ok
		change(&s)
		return []shard.LayerShape{ok, s}
	}
	for _, c := range []struct {
		field  string
		layer  shard.Layer
		layers []shard.LayerShape
	}{
		{"layers", -1, nil},
		{"layers", -1, make([]shard.LayerShape, shard.MaxLayers+1)},
		{"n_heads", 1, with(func(s *shard.LayerShape) { s.Heads = 0 })},
		{"n_heads", 1, with(func(s *shard.LayerShape) { s.Heads = 4097 })},
		{"n_heads", 1, with(func(s *shard.LayerShape) { s.Heads = 10 })},
		{"n_kv_heads", 1, with(func(s *shard.LayerShape) { s.KVHeads = 0 })},
		{"n_kv_heads", 1, with(func(s *shard.LayerShape) { s.KVHeads = 18 })},
		{"head_dim", 1, with(func(s *shard.LayerShape) { s.HeadDim = 0 })},
		{"head_dim", 1, with(func(s *shard.LayerShape) { s.HeadDim = 513 })},
		{"v_dim", 1, with(func(s *shard.LayerShape) { s.VDim = -1 })},
		{"n_kv_heads", 1024, slices.Repeat([]shard.LayerShape{{Heads: 4096, KVHeads: 4096, HeadDim: 1, VDim: 1}}, 1025)},
	} {
		_, err := shard.NewGeometry(c.layers)
		if e, ok := errors.AsType[*shard.GeometryError](err); !ok || e.Field != c.field || e.Layer != c.layer {
			t.Errorf("%s in layer %d: %v", c.field, c.layer, err)
		}
	}
	g, err := shard.NewGeometry([]shard.LayerShape{ok, {Heads: 8, KVHeads: 1, HeadDim: 512, VDim: 1}})
	if err != nil || g.Shards() != 4 || g.Layers() != 2 || g.Layer(1).GroupSize() != 8 {
		t.Errorf("geometry %+v: %v", g, err)
	}
}

func TestParseWorkers(t *testing.T) {
	got := parse(t, "b,a:2,c-1.x_Y:1073741824")
	want := []shard.Worker{{Name: "b", Weight: 1}, {Name: "a", Weight: 2}, {Name: "c-1.x_Y", Weight: shard.MaxWeight}}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got %v", got)
	}
	for _, list := range []string{"", ",", "a,", "a,,b", ":1", "a:", "a:0", "a:-1", "a:+1", "a:1.5", "a:99999999999999999999", "a:1:2", "a,a", "a b", "a\x00", strings.Repeat("a,", 2000), strings.Repeat("a", 64)} {
		if workers, err := shard.ParseWorkers(list); err == nil {
			t.Errorf("%.40q: %v", list, workers)
		} else if _, ok := errors.AsType[*shard.WorkerError](err); !ok || strings.Contains(err.Error(), "\n") {
			t.Errorf("%.40q: %T %v", list, err, err)
		}
	}
}

func TestPlanJSON(t *testing.T) {
	p := plan(t, model(t, 1, 3), parse(t, "b,a:2,c"), nil)
	const want = `{"epoch":1,"workers":[{"name":"a","weight":2},{"name":"b","weight":1},{"name":"c","weight":1}],"idle":[],"layers":[` +
		`{"n_heads":2,"n_kv_heads":1,"head_dim":64,"v_dim":64,"groups":{"a":[0]}},` +
		`{"n_heads":6,"n_kv_heads":3,"head_dim":64,"v_dim":64,"groups":{"a":[0],"b":[1],"c":[2]}}]}`
	if got := string(encode(t, p)); got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
}

func FuzzPlan(f *testing.F) {
	f.Add("a,b:2,c", "a,b", []byte{3, 3, 3})
	f.Add("w0", "w0,w1,w2,w3,w4", []byte{1})
	f.Add("a:1073741824,b:1", "b:7", []byte{8, 1, 32})
	f.Add("a:", "a,,b", []byte{0})
	f.Add(":", "a:1:1", []byte{})
	f.Fuzz(func(t *testing.T, first, second string, groups []byte) {
		layers := make([]shard.LayerShape, len(groups))
		for i, n := range groups {
			layers[i] = shard.LayerShape{Heads: int(n) * 2, KVHeads: int(n), HeadDim: 1 + int(n), VDim: 1}
		}
		g, err := shard.NewGeometry(layers)
		if err != nil {
			return
		}
		if g.Shards() > 4096 || g.Layers() > 64 {
			return
		}
		var prev *shard.Plan
		for _, list := range []string{first, second, first} {
			workers, err := shard.ParseWorkers(list)
			if err != nil {
				if _, ok := errors.AsType[*shard.WorkerError](err); !ok {
					t.Fatalf("%q: %T", list, err)
				}
				continue
			}
			if len(workers) > 64 {
				return
			}
			prev = plan(t, g, workers, prev)
			owners(t, prev)
		}
	})
}

// What a coordinator plans in practice, and a large cluster: 30 layers of 3 groups on 3 workers, 80 of 8 on 5, and
// 4,096 sequences' layers of 8 on 64 of all weights, each after the loss of a worker.
func BenchmarkMakePlan(b *testing.B) {
	for _, c := range []struct{ layers, groups, workers int }{{30, 3, 3}, {80, 8, 5}, {4096, 8, 64}} {
		b.Run(fmt.Sprintf("layers=%d/groups=%d/workers=%d", c.layers, c.groups, c.workers), func(b *testing.B) {
			g := model(b, slices.Repeat([]int{c.groups}, c.layers)...)
			r := rand.New(rand.NewPCG(1, 1))
			var workers []shard.Worker
			for i := range c.workers {
				workers = append(workers, shard.Worker{Name: fmt.Sprintf("w%d", i), Weight: 1 + r.IntN(4)})
			}
			prev := plan(b, g, workers, nil)
			moves := 0
			for b.Loop() {
				moves = len(shard.Moves(prev, plan(b, g, workers[1:], prev)))
			}
			b.ReportMetric(float64(moves), "moves")
		})
	}
}
