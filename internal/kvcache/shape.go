package kvcache

import (
	"cmp"
	"crypto/sha256"
	"encoding/binary"
	"math"
	"slices"
	"time"
	"unsafe"

	"headwater.example/attention"
	"headwater.example/shard"
)

// Config is a session's config. Neither it nor anything that it points to changes.
type Config struct {
	Layers []shard.LayerSpec
	// Tenant is whose tokens they are; prefixes are shared within one.
	Tenant string
	// Model is a fingerprint of the model with its adapters; prefixes are shared under the same one.
	Model []byte
	// TTL is how long a session may go unused before it may be dropped; 0, or more than the store's, is the store's.
	TTL time.Duration
	// Name is for people.
	Name string
	// Unshared sessions use no prefix and leave none.
	Unshared bool
	// Replicas is the number of copies of each shard at other stores. The store only reports it.
	Replicas int
}

// HeldLayer has the held groups of a layer, ascending; empty if the layer is held elsewhere. Of a layer in stripes they are the numbers of
// the held shards, here as everywhere in this package; see shard.LayerSpec.Shards.
type HeldLayer struct {
	Layer  shard.Layer
	Groups []shard.Group
}

// shape is what sessions of one config and holding have in common: where the shards stand in a row of pages. It does not
// change.
type shape struct {
	config Config
	held   []HeldLayer // without empty ones
	layers []heldLayer // ascending, as held
	shards int
	// rowBytes is what a row takes of the budget beside its pages, bytes what the shape itself takes.
	rowBytes, bytes int64

	// Sessions and rows that have the shape, guarded by Store.mu. Without any it is no more.
	sessions, rows int
	// owner stands for the tenant, whose pages are cleared before others get them.
	owner   Owner
	account *account // whom its sessions and pages are counted to, while there are any
	// content is the hash of all that decides which keys and values belong to a token. root, the key of prefixes before their
	// first token, is that with where they stand.
	content, root prefixKey
}

// heldLayer is one layer of a shape; its shards are [first, first+len(groups)) of a row.
type heldLayer struct {
	shard.LayerSpec
	layer  shard.Layer
	groups []shard.Group
	first  int
	class  *class
}

// layer returns the index among the held layers.
func (sh *shape) layer(l shard.Layer) (int, bool) {
	return slices.BinarySearchFunc(sh.layers, l, func(h heldLayer, l shard.Layer) int { return cmp.Compare(h.layer, l) })
}

// seenFrom returns the first page that a query at position at or later sees.
func (h *heldLayer) seenFrom(at int) int {
	w := h.Options.WindowLeft
	if w < 0 || w >= int64(at) {
		return 0
	}
	return (at - int(w)) / attention.PageLen
}

// stores says whether the i-th of the held groups has page p. If the layer is in stripes, other stripes have the other pages.
func (h *heldLayer) stores(i, p int) bool {
	return !h.Striped() || h.Stores(int(h.groups[i]), p/attention.SplitPages)
}

// lead returns the first of the held groups that has page p, or -1.
func (h *heldLayer) lead(p int) int {
	for i := range h.groups {
		if h.stores(i, p) {
			return i
		}
	}
	return -1
}

// pages returns how many of the pages [from, to) all held groups together have.
func (h *heldLayer) pages(from, to int) int {
	if !h.Striped() {
		return max(to-from, 0) * len(h.groups)
	}
	n := 0
	for p := from; p < to; p++ {
		for i := range h.groups {
			if h.stores(i, p) {
				n++
			}
		}
	}
	return n
}

// pageBytes returns the bytes of the pages [from, to) of all held groups.
func (h *heldLayer) pageBytes(from, to int) int64 {
	return int64(h.pages(from, to)) * int64(h.class.size)
}

// stored returns how many of n positions from position from on all held groups together have.
func (h *heldLayer) stored(from, n int) int {
	all := 0
	for _, g := range h.groups {
		all += h.Stored(int(g), from, n)
	}
	return all
}

// name names one of the held groups for people.
func (h *heldLayer) name(g shard.Group) string { return h.Name(int(g)) }

// rowBytes returns the logical bytes of one position in one group.
func (h *heldLayer) rowBytes() int {
	n := h.Layout.KRowBytes() + h.Layout.VRowBytes()
	if scaled(h.Layout) {
		n += 8
	}
	return n
}

// newShape checks a config and a holding. It does not set the classes.
func newShape(config Config, held []HeldLayer) (*shape, *Error) {
	switch {
	case len(config.Tenant) > shard.MaxText:
		return nil, refuse(Invalid, "tenant has %d bytes, at most %d are allowed", len(config.Tenant), shard.MaxText)
	case len(config.Model) > shard.MaxText:
		return nil, refuse(Invalid, "model fingerprint has %d bytes, at most %d are allowed", len(config.Model), shard.MaxText)
	case len(config.Name) > shard.MaxText:
		return nil, refuse(Invalid, "name has %d bytes, at most %d are allowed", len(config.Name), shard.MaxText)
	case config.Replicas < 0 || config.Replicas > shard.MaxReplicas:
		return nil, refuse(Invalid, "%d replicas, outside 0 to %d", config.Replicas, shard.MaxReplicas)
	case config.TTL < 0:
		return nil, refuse(Invalid, "ttl is %v, less than 0", config.TTL)
	case len(config.Layers) < 1 || len(config.Layers) > shard.MaxLayers:
		return nil, refuse(Invalid, "%d layers, outside 1 to %d", len(config.Layers), shard.MaxLayers)
	}
	for i := range config.Layers {
		if err := config.Layers[i].Check(); err != nil {
			return nil, refuse(Invalid, "layer %d: %v", i, err).at(shard.Layer(i), 0)
		}
	}
	sh := &shape{config: config, owner: OwnerOf(config.Tenant)}
	before := shard.Layer(-1)
	for _, h := range held {
		if h.Layer <= before || int(h.Layer) >= len(config.Layers) {
			return nil, refuse(Invalid, "held layer %d after layer %d of %d: they ascend", h.Layer, before, len(config.Layers)).at(h.Layer, 0)
		}
		before = h.Layer
		last := shard.Group(-1)
		for _, g := range h.Groups {
			if g <= last || int(g) >= config.Layers[h.Layer].Shards() {
				return nil, refuse(Invalid, "layer %d: held group %d after group %d of %d: they ascend", h.Layer, g, last, config.Layers[h.Layer].Shards()).at(h.Layer, 0).of(g)
			}
			last = g
		}
		if len(h.Groups) == 0 {
			continue
		}
		sh.held = append(sh.held, h)
		sh.layers = append(sh.layers, heldLayer{LayerSpec: config.Layers[h.Layer], layer: h.Layer, groups: h.Groups, first: sh.shards})
		sh.shards += len(h.Groups)
	}
	if sh.shards < 1 || sh.shards > maxShards {
		return nil, refuse(Invalid, "%d shards are to be held, outside 1 to %d", sh.shards, maxShards)
	}
	sh.rowBytes = RowBytes(len(sh.layers), sh.shards)
	sh.bytes = sh.heap()
	sh.content = sh.config.content()
	sh.root = sh.place()
	return sh, nil
}

// holdingBytes is about the size of a shape's entry in prefixes.holdings.
const holdingBytes = 512

// heap is about the shape's size on the heap.
func (sh *shape) heap() int64 {
	n := int(unsafe.Sizeof(*sh)) + holdingBytes + len(sh.config.Tenant) + len(sh.config.Model) + len(sh.config.Name) +
		cap(sh.config.Layers)*int(unsafe.Sizeof(shard.LayerSpec{})) + cap(sh.layers)*int(unsafe.Sizeof(heldLayer{})) + cap(sh.held)*int(unsafe.Sizeof(HeldLayer{})) +
		sh.shards*int(unsafe.Sizeof(shard.Group(0)))
	for _, l := range sh.config.Layers {
		n += 4 * (len(l.Options.AlibiSlopes) + len(l.Options.Sinks))
	}
	return int64(n)
}

// content returns the hash of all that decides which keys and values belong to a token.
func (c *Config) content() prefixKey {
	var b []byte
	number := func(values ...uint64) {
		for _, v := range values {
			b = binary.LittleEndian.AppendUint64(b, v)
		}
	}
	text := func(s string) {
		number(uint64(len(s)))
		b = append(b, s...)
	}
	floats := func(values []float32) {
		number(uint64(len(values)))
		for _, v := range values {
			b = binary.LittleEndian.AppendUint32(b, math.Float32bits(v))
		}
	}
	text(c.Tenant)
	text(string(c.Model))
	number(uint64(len(c.Layers)))
	for _, l := range c.Layers {
		o, causal := l.Options, uint64(0)
		if o.Causal {
			causal = 1
		}
		number(uint64(l.Heads), uint64(l.KVHeads), uint64(l.Layout.DType()), uint64(l.Layout.Arithmetic()), uint64(l.Layout.HeadDim()), uint64(l.Layout.VDim()),
			causal, uint64(max(o.WindowLeft, -1)), uint64(max(o.WindowRight, -1)), uint64(max(l.Stripes, 1)))
		floats([]float32{o.Scale, o.Softcap})
		floats(o.AlibiSlopes)
		floats(o.Sinks)
	}
	return sha256.Sum256(b)
}

// place returns the hash of a shape's content and of where its shards stand.
func (sh *shape) place() prefixKey {
	b := slices.Clone(sh.content[:])
	for _, h := range sh.held {
		b = binary.LittleEndian.AppendUint64(b, uint64(h.Layer))
		b = binary.LittleEndian.AppendUint64(b, uint64(len(h.Groups)))
		for _, g := range h.Groups {
			b = binary.LittleEndian.AppendUint64(b, uint64(g))
		}
	}
	return sha256.Sum256(b)
}

// equal reports whether two sessions have equal configs and holdings.
func (sh *shape) equal(other *shape) bool {
	return sh.root == other.root && sh.config.Unshared == other.config.Unshared && sh.config.Replicas == other.config.Replicas && sh.config.TTL == other.config.TTL && sh.config.Name == other.config.Name
}
