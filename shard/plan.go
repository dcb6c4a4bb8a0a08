package shard

import (
	"encoding/json"
	"errors"
	"slices"
	"sort"

	"headwater.example/attention"
)

// ErrOtherGeometry is returned for a previous plan that was made for other layers.
var ErrOtherGeometry = errors.New("plan: the previous plan is of another geometry")

// Plan maps every shard of a geometry to the one worker that owns it. It does not change, so it may be shared.
type Plan struct {
	geometry *Geometry
	workers  []Worker // sorted by name
	owner    []int16  // by shard in layer-major order: index into workers
	load     []int    // shards by worker
	epoch    Epoch
}

// MakePlan plans by the rules of the package. prev is the plan in force, nil if there is none; its workers need not be
// among the present ones. The order of workers does not matter. Errors are a *WorkerError or ErrOtherGeometry.
func MakePlan(g *Geometry, workers []Worker, prev *Plan) (*Plan, error) {
	sorted, err := sortedWorkers(workers)
	if err != nil {
		return nil, err
	}
	if prev != nil && !prev.geometry.Equal(g) {
		return nil, ErrOtherGeometry
	}
	p := &Plan{geometry: g, workers: sorted, owner: make([]int16, g.Shards()), load: make([]int, len(sorted)), epoch: 1}
	old := make([]int16, g.Shards()) // previous owner as an index into sorted, -1 for none that is still there
	for i := range old {
		old[i] = -1
	}
	if prev != nil {
		to := make([]int16, len(prev.workers))
		for i, w := range prev.workers {
			to[i] = int16(p.find(w.Name))
		}
		for i, o := range prev.owner {
			old[i] = to[o]
		}
	}
	counts := apportion(g, sorted, old)
	for l := range g.layers {
		at, end := g.first[l], g.first[l+1]
		assign(p.owner[at:end], old[at:end], counts[l*len(sorted):(l+1)*len(sorted)])
	}
	for _, o := range p.owner {
		p.load[o]++
	}
	if prev != nil {
		p.epoch = prev.epoch
		if slices.Contains(old, -1) || !slices.Equal(old, p.owner) {
			p.epoch++
		}
	}
	return p, nil
}

// assign gives each worker as many of a layer's groups as counts says: first those that it had, then the others in
// ascending order of groups and names. It uses counts up.
func assign(owner, old []int16, counts []int) {
	for g, o := range old {
		owner[g] = -1
		if o >= 0 && counts[o] > 0 {
			owner[g] = o
			counts[o]--
		}
	}
	next := 0
	for g := range owner {
		if owner[g] >= 0 {
			continue
		}
		for counts[next] == 0 {
			next++
		}
		owner[g] = int16(next)
		counts[next]--
	}
}

// find returns the worker's index, -1 if it is not in the plan.
func (p *Plan) find(worker string) int {
	i := sort.Search(len(p.workers), func(i int) bool { return p.workers[i].Name >= worker })
	if i == len(p.workers) || p.workers[i].Name != worker {
		return -1
	}
	return i
}

// Geometry returns what was planned for.
func (p *Plan) Geometry() *Geometry { return p.geometry }

// Epoch returns 1 for a plan without a previous one, the previous epoch when no shard moved, else the next.
func (p *Plan) Epoch() Epoch { return p.epoch }

// Owner returns the name of the shard's owner, empty when the geometry has no such shard.
func (p *Plan) Owner(id ID) string {
	if !p.geometry.Has(id) {
		return ""
	}
	return p.workers[p.owner[p.geometry.index(id)]].Name
}

// Groups returns the groups of a layer that the worker owns, ascending; none for a layer or a worker that is not there.
func (p *Plan) Groups(l Layer, worker string) []Group {
	w := p.find(worker)
	if w < 0 || l < 0 || int(l) >= p.geometry.Layers() {
		return nil
	}
	var groups []Group
	for g, o := range p.owner[p.geometry.first[l]:p.geometry.first[l+1]] {
		if int(o) == w {
			groups = append(groups, Group(g))
		}
	}
	return groups
}

// Shards returns all that the worker owns, by layer and group; none for a worker that is not there.
func (p *Plan) Shards(worker string) []ID {
	w := p.find(worker)
	if w < 0 || p.load[w] == 0 {
		return nil
	}
	shards := make([]ID, 0, p.load[w])
	for l := range p.geometry.layers {
		for g, o := range p.owner[p.geometry.first[l]:p.geometry.first[l+1]] {
			if int(o) == w {
				shards = append(shards, ID{Layer(l), Group(g)})
			}
		}
	}
	return shards
}

// Workers returns all workers of the plan, also those that own nothing, sorted by name.
func (p *Plan) Workers() []Worker { return slices.Clone(p.workers) }

// Idle returns the names of the workers that own nothing, sorted.
func (p *Plan) Idle() []string {
	var idle []string
	for i, w := range p.workers {
		if p.load[i] == 0 {
			idle = append(idle, w.Name)
		}
	}
	return idle
}

// MarshalJSON writes the plan as an object of epoch, workers, idle and layers; each layer has its shape and the groups
// of each worker that owns any. Equal plans give equal bytes.
func (p *Plan) MarshalJSON() ([]byte, error) { return p.JSON(nil) }

// JSON is MarshalJSON that also says of each layer in which arithmetic it is computed: there is one for each, or arithmetics is nil.
func (p *Plan) JSON(arithmetics []attention.Arithmetic) ([]byte, error) {
	type layer struct {
		Heads      int                `json:"n_heads"`
		KVHeads    int                `json:"n_kv_heads"`
		HeadDim    int                `json:"head_dim"`
		VDim       int                `json:"v_dim"`
		Arithmetic string             `json:"arithmetic,omitempty"`
		Groups     map[string][]Group `json:"groups"` // encoding/json writes keys sorted
	}
	plan := struct {
		Epoch   Epoch    `json:"epoch"`
		Workers []Worker `json:"workers"`
		Idle    []string `json:"idle"`
		Layers  []layer  `json:"layers"`
	}{p.epoch, p.workers, p.Idle(), make([]layer, p.geometry.Layers())}
	if plan.Idle == nil {
		plan.Idle = []string{}
	}
	for l, s := range p.geometry.layers {
		groups := map[string][]Group{}
		for g, o := range p.owner[p.geometry.first[l]:p.geometry.first[l+1]] {
			name := p.workers[o].Name
			groups[name] = append(groups[name], Group(g))
		}
		plan.Layers[l] = layer{Heads: s.Heads, KVHeads: s.KVHeads, HeadDim: s.HeadDim, VDim: s.VDim, Groups: groups}
		if arithmetics != nil {
			plan.Layers[l].Arithmetic = arithmetics[l].String()
		}
	}
	return json.Marshal(plan)
}

// Move is a shard that changes its owner.
type Move struct {
	ID
	From, To string
}

// Moves returns what changes its owner from prev to next, by layer and group. A nil prev owns nothing: every shard moves
// to its first owner, From being empty. Shards that only one of the geometries has are not moves, except from a nil prev.
func Moves(prev, next *Plan) []Move {
	var moves []Move
	for l, s := range next.geometry.layers {
		for g := range s.KVHeads {
			id := ID{Layer(l), Group(g)}
			from, to := "", next.Owner(id)
			if prev != nil {
				if from = prev.Owner(id); from == "" {
					continue
				}
			}
			if from != to {
				moves = append(moves, Move{id, from, to})
			}
		}
	}
	return moves
}
