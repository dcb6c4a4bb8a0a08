package shard

import "slices"

// cost is what rules 3 and 4 of the package make small: the deviation of the loads over all layers, in units of shards
// times the sum of weights, then the moved shards.
type cost struct{ deviation, moves int64 }

func (c cost) add(d cost) cost { return cost{c.deviation + d.deviation, c.moves + d.moves} }

func (c cost) less(d cost) bool {
	if c.deviation != d.deviation {
		return c.deviation < d.deviation
	}
	return c.moves < d.moves
}

// rounding is the choice of the workers that own one group more than their quota rounded down, layer by layer. A shift
// takes that one from worker a and gives it to b in some layer. Shifts are kept counted by what they change in moves,
// so that improving the choice needs no walk over all layers.
type rounding struct {
	n      int
	extra  []bool // [layer][worker] owns one more
	free   []bool // [layer][worker] the quota is not whole, so there is a choice
	kept   []bool // [layer][worker] the one more is a group that it had
	shifts []shiftCount
	total  []int64 // extras by worker
	least  []int64 // bounds of total by rule 2
	most   []int64
	above  []int64 // what owning most instead of least adds to the deviation
}

// shiftCount[d+1] counts the layers in which a shift changes the moves by d.
type shiftCount [3]int32

// apportion returns how many groups each worker owns in each layer, [layer][worker]. old is the previous owner of each
// shard, -1 for none.
func apportion(g *Geometry, workers []Worker, old []int16) []int {
	n := len(workers)
	var sum int64
	for _, w := range workers {
		sum += int64(w.Weight)
	}
	r := &rounding{
		n:     n,
		extra: make([]bool, g.Layers()*n), free: make([]bool, g.Layers()*n), kept: make([]bool, g.Layers()*n),
		shifts: make([]shiftCount, n*n), total: make([]int64, n), least: make([]int64, n), most: make([]int64, n), above: make([]int64, n),
	}
	counts := make([]int, g.Layers()*n)
	had := make([]int, n)
	floors := make([]int64, n)
	owed := make([]int64, n) // what all layers so far left over, in shards times sum
	order := make([]int, n)
	for l, shape := range g.layers {
		row := l * n
		clear(had)
		for _, o := range old[g.first[l]:g.first[l+1]] {
			if o >= 0 {
				had[o]++
			}
		}
		left := shape.KVHeads
		for i, w := range workers {
			share := int64(shape.KVHeads) * int64(w.Weight)
			counts[row+i] = int(share / sum)
			floors[i] += share / sum
			owed[i] += share % sum
			r.free[row+i] = share%sum != 0
			r.kept[row+i] = had[i] > counts[row+i]
			left -= counts[row+i]
			order[i] = i
		}
		slices.SortStableFunc(order, func(a, b int) int {
			switch {
			case r.free[row+a] != r.free[row+b]:
				return before(r.free[row+a])
			case r.kept[row+a] != r.kept[row+b]:
				return before(r.kept[row+a])
			case owed[a] != owed[b]:
				return before(owed[a] > owed[b])
			}
			return 0
		})
		for _, i := range order[:left] {
			r.extra[row+i] = true
			r.total[i]++
			owed[i] -= sum
		}
		r.count(row, 1)
	}
	r.bound(int64(g.Shards()), workers, sum, floors)
	r.meetTotals()
	for r.improve() {
	}
	for i, e := range r.extra {
		if e {
			counts[i]++
		}
	}
	return counts
}

// bound sets the bounds of rule 2: how many extras each worker may have over all layers. shards are all there are, sum is that of
// the weights, floors what each worker owns without extras.
func (r *rounding) bound(shards int64, workers []Worker, sum int64, floors []int64) {
	for i, w := range workers {
		share := shards * int64(w.Weight)
		r.least[i] = share/sum - floors[i]
		r.most[i] = r.least[i]
		if share%sum != 0 {
			r.most[i]++
			r.above[i] = sum - 2*(share%sum)
		}
	}
}

func before(first bool) int {
	if first {
		return -1
	}
	return 1
}

// count adds by times the shifts that one layer allows.
func (r *rounding) count(row int, by int32) {
	for a := range r.n {
		if !r.extra[row+a] {
			continue
		}
		for b := range r.n {
			if r.free[row+b] && !r.extra[row+b] {
				r.shifts[a*r.n+b][r.change(row, a, b)+1] += by
			}
		}
	}
}

// change returns by how much a shift from a to b in a layer changes the moves.
func (r *rounding) change(row, a, b int) int {
	d := 0
	if r.kept[row+a] {
		d++
	}
	if r.kept[row+b] {
		d--
	}
	return d
}

// cheapest returns the smallest change of moves by a shift from a to b, and in how many layers it can be had.
func (r *rounding) cheapest(a, b int) (change int, layers int64) {
	for d, layers := range r.shifts[a*r.n+b] {
		if layers > 0 {
			return d - 1, int64(layers)
		}
	}
	return 0, 0
}

// shift does a shift that changes the moves by change, in the first times layers that allow it.
func (r *rounding) shift(a, b, change int, times int64) {
	for row := 0; times > 0; row += r.n {
		if r.extra[row+a] && r.free[row+b] && !r.extra[row+b] && r.change(row, a, b) == change {
			r.count(row, -1)
			r.extra[row+a], r.extra[row+b] = false, true
			r.count(row, 1)
			times--
		}
	}
	// Totals are the caller's: in a chain of shifts only the ends' totals change.
}

// walk does the shifts along path, from its first worker to its last, as many times as the layers allow and at most
// limit. No layer is used by two neighbouring shifts, since the worker between them would have to own one more in one
// and not in the other; so none takes away another's layers.
func (r *rounding) walk(path []int, limit int64) {
	changes := make([]int, len(path)-1)
	for i := range changes {
		change, layers := r.cheapest(path[i], path[i+1])
		changes[i] = change
		limit = min(limit, layers)
	}
	for i, change := range changes {
		r.shift(path[i], path[i+1], change, limit)
	}
	r.total[path[0]] -= limit
	r.total[path[len(path)-1]] += limit
}

// meetTotals brings all totals within their bounds.
func (r *rounding) meetTotals() {
	for i := range r.n {
		for r.total[i] > r.most[i] {
			path := r.reach(i, r.shifted, func(j int) bool { return r.total[j] < r.most[j] })
			end := path[len(path)-1]
			r.walk(path, min(r.total[i]-r.most[i], r.most[end]-r.total[end]))
		}
	}
	for i := range r.n {
		for r.total[i] < r.least[i] {
			path := r.reach(i, func(a, b int) bool { return r.shifted(b, a) }, func(j int) bool { return r.total[j] > r.least[j] })
			slices.Reverse(path)
			r.walk(path, min(r.least[i]-r.total[i], r.total[path[0]]-r.least[path[0]]))
		}
	}
}

// shifted says whether some layer allows a shift from a to b.
func (r *rounding) shifted(a, b int) bool {
	_, layers := r.cheapest(a, b)
	return layers > 0
}

// reach returns a shortest path from a worker to one that is a goal. There is one, because totals within the bounds are
// possible: if none were reachable, the reachable workers would own in every layer the least, or the most, they can.
func (r *rounding) reach(from int, arc func(a, b int) bool, goal func(int) bool) []int {
	parent := make([]int, r.n)
	for i := range parent {
		parent[i] = -1
	}
	parent[from] = from
	for queue := []int{from}; len(queue) > 0; queue = queue[1:] {
		a := queue[0]
		for b := range r.n {
			if parent[b] >= 0 || !arc(a, b) {
				continue
			}
			parent[b] = a
			if goal(b) {
				path := []int{b}
				for b != from {
					b = parent[b]
					path = append(path, b)
				}
				slices.Reverse(path)
				return path
			}
			queue = append(queue, b)
		}
	}
	panic("shard: totals that quotas allow can not be reached")
}

// improve looks for cycles of shifts that lower the cost, by the method of Bellman and Ford, and does them; false when
// there is none, which is the optimum. Node n stands for the bounds on totals: from it to a worker that may own less,
// and to it from one that may own more.
func (r *rounding) improve() bool {
	nodes := r.n + 1
	distance := make([]cost, nodes) // all start at 0, as if from a source beside them
	parent := make([]int, nodes)
	fresh := make([]bool, nodes) // whose distance has changed since the arcs from it were tried: the others' change nothing
	for i := range parent {
		parent[i], fresh[i] = -1, true
	}
	for changed := true; changed; {
		changed = false
		for a := range nodes {
			if !fresh[a] {
				continue
			}
			fresh[a] = false
			for b := range nodes {
				c, ok := r.arc(a, b)
				if !ok {
					continue
				}
				if d := distance[a].add(c); d.less(distance[b]) {
					distance[b], parent[b], fresh[b], changed = d, a, true, true
				}
			}
		}
		// A cycle of parents lowers the cost. Such cycles share no worker, so doing one leaves the others as they are.
		if cycles := cyclesOf(parent); len(cycles) > 0 {
			for _, cycle := range cycles {
				if at := slices.Index(cycle, r.n); at >= 0 { // a path between the two workers whose totals change
					r.walk(slices.Concat(cycle[at+1:], cycle[:at]), 1)
				} else {
					r.walk(append(cycle, cycle[0]), int64(len(r.extra)))
				}
			}
			return true
		}
	}
	return false
}

// cyclesOf returns the cycles of a graph in which each node has one parent or -1, from parents to children.
func cyclesOf(parent []int) [][]int {
	var cycles [][]int
	seen := make([]int, len(parent)) // by which start, counted from 1
	for start := range parent {
		at := start
		for at >= 0 && seen[at] == 0 {
			seen[at] = start + 1
			at = parent[at]
		}
		if at < 0 || seen[at] != start+1 {
			continue
		}
		cycle := []int{at}
		for b := parent[at]; b != at; b = parent[b] {
			cycle = append(cycle, b)
		}
		slices.Reverse(cycle)
		cycles = append(cycles, cycle)
	}
	return cycles
}

// arc returns what it costs to go from node a to node b, false if one can not.
func (r *rounding) arc(a, b int) (cost, bool) {
	switch {
	case a == b:
		return cost{}, false
	case a == r.n:
		return cost{deviation: -r.above[b]}, r.total[b] > r.least[b]
	case b == r.n:
		return cost{deviation: r.above[a]}, r.total[a] < r.most[a]
	}
	change, layers := r.cheapest(a, b)
	return cost{moves: int64(change)}, layers > 0
}
