// Package shard says which worker owns which KV group: the geometry of a model, and the plan that maps its shards to
// workers.
//
// A shard is one (layer, group): one KV head with the query heads that read it. It is the unit of ownership and is
// never divided. A plan is a pure function of the geometry, the workers with their weights, and the plan before it. Let
// a layer have G groups, and a worker the part p of all weight; its quota in that layer is p·G, and in all layers the
// sum of these. Then, the earlier rule before the later one:
//
//  1. In each layer a worker owns its quota, rounded down or up.
//  2. Over all layers a worker owns its quota, rounded down or up.
//  3. The sum over the workers of |owned − quota| over all layers is the smallest that rules 1 and 2 allow. For a
//     single layer this is the method of largest remainders.
//  4. As few shards as possible change their owner.
//
// Rules 1 and 2 can always be met together: the quotas themselves are a fractional flow from layers to workers, so a
// whole-numbered one exists between their floors and ceilings. What is left open is settled by accumulated remainders,
// which rotates the larger share from layer to layer, and then by name.
package shard

import (
	"fmt"
	"slices"
)

// Layer is the index of a layer in a Geometry, from 0.
type Layer int

// Group is the index of a KV group in its layer, from 0. Query head h belongs to group h / group size.
type Group int

// Epoch counts the changes of ownership, from 1.
type Epoch uint64

// ID names a shard.
type ID struct {
	Layer Layer
	Group Group
}

// String returns "layer L group G".
func (id ID) String() string { return fmt.Sprintf("layer %d group %d", id.Layer, id.Group) }

// LayerShape is the geometry of one layer.
type LayerShape struct {
	Heads   int // n_heads, 1 to MaxHeads
	KVHeads int // n_kv_heads, divides Heads
	HeadDim int // elements of a query and of a key, 1 to MaxDim
	VDim    int // elements of a value, 1 to MaxDim
}

// GroupSize returns the number of query heads that read one KV head.
func (s LayerShape) GroupSize() int { return s.Heads / s.KVHeads }

// check returns the number that can not be and the rule that it breaks; an empty rule is none.
func (s LayerShape) check() (field, rule string) {
	for _, b := range [...]struct {
		field      string
		value, max int
	}{{"n_heads", s.Heads, MaxHeads}, {"n_kv_heads", s.KVHeads, s.Heads}, {"head_dim", s.HeadDim, MaxDim}, {"v_dim", s.VDim, MaxDim}} {
		if b.value < 1 || b.value > b.max {
			return b.field, fmt.Sprintf("%d is not in 1 to %d", b.value, b.max)
		}
	}
	if s.Heads%s.KVHeads != 0 {
		return "n_heads", fmt.Sprintf("%d is not a multiple of n_kv_heads %d", s.Heads, s.KVHeads)
	}
	return "", ""
}

// GeometryError names a layer's number that is not possible. Layer is -1 if the error is about the list of layers.
type GeometryError struct {
	Layer Layer
	Field string
	Rule  string
}

func (e *GeometryError) Error() string {
	if e.Layer < 0 {
		return fmt.Sprintf("geometry: %s: %s", e.Field, e.Rule)
	}
	return fmt.Sprintf("geometry: layer %d: %s: %s", e.Layer, e.Field, e.Rule)
}

// Geometry is a checked list of layers. It does not change, so it may be shared.
type Geometry struct {
	layers []LayerShape
	first  []int // first[l] is the number of shards before layer l; one more entry for their sum
}

// NewGeometry checks the layers. Any error is a *GeometryError.
func NewGeometry(layers []LayerShape) (*Geometry, error) {
	if len(layers) < 1 || len(layers) > MaxLayers {
		return nil, &GeometryError{-1, "layers", fmt.Sprintf("there are %d, allowed are 1 to %d", len(layers), MaxLayers)}
	}
	g := &Geometry{layers: slices.Clone(layers), first: make([]int, len(layers)+1)}
	for i, s := range g.layers {
		if field, rule := s.check(); rule != "" {
			return nil, &GeometryError{Layer(i), field, rule}
		}
		g.first[i+1] = g.first[i] + s.KVHeads
		if g.first[i+1] > maxShards {
			return nil, &GeometryError{Layer(i), "n_kv_heads", fmt.Sprintf("the layers up to here have %d groups, at most %d are allowed", g.first[i+1], maxShards)}
		}
	}
	return g, nil
}

// Layers returns the number of layers.
func (g *Geometry) Layers() int { return len(g.layers) }

// Layer returns the shape of a layer, which must be one of the geometry's.
func (g *Geometry) Layer(l Layer) LayerShape { return g.layers[l] }

// Shards returns the number of shards: the groups of all layers.
func (g *Geometry) Shards() int { return g.first[len(g.layers)] }

// Has says whether the shard is one of the geometry's.
func (g *Geometry) Has(id ID) bool {
	return id.Layer >= 0 && int(id.Layer) < len(g.layers) && id.Group >= 0 && int(id.Group) < g.layers[id.Layer].KVHeads
}

// Equal says whether two geometries have the same layers.
func (g *Geometry) Equal(other *Geometry) bool {
	return g == other || slices.Equal(g.layers, other.layers)
}

// index returns the shard's place in layer-major order.
func (g *Geometry) index(id ID) int { return g.first[id.Layer] + int(id.Group) }
