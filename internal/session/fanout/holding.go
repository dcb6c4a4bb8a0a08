package fanout

import (
	"bytes"
	"cmp"
	"fmt"
	"slices"
	"sync/atomic"

	"headwater.example/internal/rpc"
	headwaterv1 "headwater.example/proto/headwater/v1"
	"headwater.example/shard"
)

// Holder is one who holds some of a session's groups.
type Holder struct {
	Name    string
	Boot    []byte
	Address string
	// Groups are those of each layer, ascending; nil is all groups of all layers. Of a layer in stripes they are the numbers of its shards,
	// here as everywhere in this package where groups are held; see shard.LayerSpec.Shards.
	Groups [][]int

	pace atomic.Pointer[pace] // the one that Conns.pace returned last
}

// peer is whom a connection to the holder is to.
func (o *Holder) peer() rpc.Peer { return rpc.Peer{Name: o.Name, Address: o.Address} }

// part is what one holder has of one layer.
type part struct {
	holder  *Holder
	groups  []int
	units   []int  // groups of which it is sent keys and values: all, if it is a coordinator; else those that it holds
	answers []int  // groups that it answers for
	bits    []byte // answers as Step.Answers has them, nil if they are all groups
}

// Holding says who holds which groups of a session. It does not change, so it may be shared.
type Holding struct {
	layers   []shard.LayerSpec
	holders  []*Holder
	parts    [][]part // by layer, without those that have none of it
	counter  uint64   // of the epoch that it is known by, 0 is not known
	told     []uint64 // by holder, the counter that it has accepted; nil if that is the same at all
	closed   bool     // whether holders are being exchanged, or not all that have the epoch are known
	split    bool     // whether a lane's take has come to some of the holders only, so that no lane drives all
	tenant   string   // whose session it is, as its holders say
	exchange bool     // whether a holder has an epoch that is closed
	replicas int      // copies that the session is to have beside each owner: its holders may change
}

// Under returns the holding as that of a session whose state is told with its config: one of all holders, or one of each, the
// highest epoch first. A lane's take may have come to some of the holders only.
func (h *Holding) Under(states ...*headwaterv1.SessionState) *Holding {
	s := states[0]
	under := h.Of(s.GetEpoch().GetCounter())
	if len(states) == len(h.holders) {
		for _, one := range states {
			under.told = append(under.told, one.GetEpoch().GetCounter())
		}
	}
	n := s.GetEpoch().GetHolders()
	under.closed = s.GetEpoch().GetClosed() || n != 0 && int(n) != len(h.holders)
	under.exchange = slices.ContainsFunc(states, func(one *headwaterv1.SessionState) bool { return one.GetEpoch().GetClosed() })
	under.replicas, under.tenant = int(s.GetConfig().GetReplicas()), s.GetTenant()
	return under
}

// next is an epoch that a holder is to take, if it still has the one that it is known by.
func (h *Holding) next(e *headwaterv1.Epoch, holder int) *headwaterv1.Epoch {
	if h.counter == 0 {
		return e // the coordinator is the one holder
	}
	next := h.named(e)
	next.At = h.at(holder)
	return next
}

// at is the counter that a holder is known by.
func (h *Holding) at(holder int) uint64 {
	if h.told != nil {
		return h.told[holder]
	}
	return h.counter
}

// same reports whether two holdings have the same holders under the same counters.
func (h *Holding) same(other *Holding) bool {
	return len(h.holders) == len(other.holders) && !slices.ContainsFunc(h.holders, func(o *Holder) bool {
		i := slices.IndexFunc(other.holders, func(x *Holder) bool { return x.Name == o.Name })
		return i < 0 || other.at(i) != h.at(slices.Index(h.holders, o))
	})
}

// first is the epoch with which a session begins. It says who has it, or who finds some of them would take these for all.
func (h *Holding) first(e *headwaterv1.Epoch) *headwaterv1.Epoch {
	if h.holders[0].Groups == nil {
		return e // the coordinator is the one holder, and places it
	}
	return h.named(e)
}

// named is an epoch that says who has it.
func (h *Holding) named(e *headwaterv1.Epoch) *headwaterv1.Epoch {
	named := &headwaterv1.Epoch{Counter: e.GetCounter(), Lane: e.GetLane(), Base: e.GetBase(), Closed: e.GetClosed(), Holders: uint32(len(h.holders))}
	for _, o := range h.holders {
		named.Members = append(named.Members, o.Name)
	}
	return named
}

// Of returns the holding for an epoch's counter. Its calls name this counter, and holders that have accepted another
// one refuse them.
func (h *Holding) Of(counter uint64) *Holding {
	of := *h
	of.counter, of.told, of.closed, of.split, of.exchange = counter, nil, false, false, false
	return &of
}

// epoch is that of a call with the counter that the holders are known by.
func (h *Holding) epoch(e *headwaterv1.Epoch) *headwaterv1.Epoch {
	if e == nil || h.counter == 0 {
		return e
	}
	return &headwaterv1.Epoch{Counter: e.GetCounter(), Lane: e.GetLane(), At: h.counter}
}

// NewHolding checks that every group of every layer has a holder. If a group has several, all of them store its appends
// and one of them answers. Each layer's groups are shared out over their holders as evenly as possible; the remainder
// rotates over the layers.
func NewHolding(layers []shard.LayerSpec, holders ...*Holder) (*Holding, error) {
	h := &Holding{layers: layers, holders: holders, parts: make([][]part, len(layers))}
	for i, o := range holders {
		if o.Groups != nil && len(o.Groups) != len(layers) {
			return nil, fmt.Errorf("holder %q: groups of %d layers, the session has %d", o.Name, len(o.Groups), len(layers))
		}
		if slices.ContainsFunc(holders[:i], func(other *Holder) bool { return other.Name == o.Name }) {
			return nil, fmt.Errorf("holder %q is named twice", o.Name)
		}
	}
	answers := make([]int, len(holders)) // groups of all layers so far
	for l := range layers {
		layer := &layers[l]
		held := make([][]int, layer.Shards()) // by group, indices of the parts that have it
		var index []int                       // of each part's holder
		for i, o := range holders {
			groups := o.layer(l, layer)
			for j, g := range groups {
				if g < 0 || g >= layer.Shards() || j > 0 && g <= groups[j-1] {
					return nil, fmt.Errorf("holder %q: layer %d: groups %v are not ascending below %d", o.Name, l, groups, layer.Shards())
				}
				held[g] = append(held[g], len(h.parts[l]))
			}
			if len(groups) > 0 {
				h.parts[l], index = append(h.parts[l], part{holder: o, groups: groups, units: o.units(layer, groups)}), append(index, i)
			}
		}
		for g, by := range held {
			if len(by) == 0 {
				return nil, fmt.Errorf("layer %d: nobody holds %s", l, layer.Name(g))
			}
			p := slices.MinFunc(by, func(a, b int) int {
				return cmp.Or(cmp.Compare(len(h.parts[l][a].answers), len(h.parts[l][b].answers)), cmp.Compare(answers[index[a]], answers[index[b]]))
			})
			h.parts[l][p].answers = append(h.parts[l][p].answers, g)
			answers[index[p]]++
		}
		for i := range h.parts[l] {
			h.parts[l][i].mark()
		}
	}
	return h, nil
}

// mark sets the bits of the groups that the holder answers for, if others answer for the rest.
func (p *part) mark() {
	if len(p.answers) == len(p.groups) {
		return
	}
	p.bits = make([]byte, (len(p.groups)+7)/8)
	for i, g := range p.groups {
		if _, ok := slices.BinarySearch(p.answers, g); ok {
			p.bits[i/8] |= 1 << (i % 8)
		}
	}
}

// without returns the holding of those that are not named, or no where some group would have no holder.
func (h *Holding) without(names ...string) (*Holding, bool) {
	rest := slices.DeleteFunc(slices.Clone(h.holders), func(o *Holder) bool { return slices.Contains(names, o.Name) })
	if len(rest) == len(h.holders) || len(rest) == 0 {
		return nil, false
	}
	less, err := NewHolding(h.layers, rest...)
	if err != nil {
		return nil, false
	}
	less.counter, less.closed, less.split, less.exchange, less.replicas = h.counter, h.closed, h.split, h.exchange, h.replicas
	if h.told != nil {
		for i, o := range h.holders {
			if slices.Contains(rest, o) {
				less.told = append(less.told, h.told[i])
			}
		}
	}
	return less, true
}

// layer returns the groups that the holder has of a layer.
func (o *Holder) layer(l int, layer *shard.LayerSpec) []int {
	if o.Groups != nil {
		return o.Groups[l]
	}
	all := make([]int, layer.Shards())
	for g := range all {
		all[g] = g
	}
	return all
}

// parted says whether a holder takes and gives parts of a layer, which is in stripes, by shard. A worker does; a coordinator, which
// looks like a holder of all, takes and gives whole groups.
func (o *Holder) parted(layer *shard.LayerSpec) bool { return layer.Striped() && o.Groups != nil }

// units returns the groups of which a holder is sent keys and values.
func (o *Holder) units(layer *shard.LayerSpec, held []int) []int {
	if !layer.Striped() || o.parted(layer) {
		return held
	}
	return held[:layer.KVHeads] // of all shards, as numbers of groups
}

// held returns the groups that a holder is asked to hold of a session of these layers, nil if it plans itself.
func (o *Holder) held(layers []shard.LayerSpec) []*headwaterv1.HeldLayer {
	var held []*headwaterv1.HeldLayer
	for l, groups := range o.Groups {
		if len(groups) == 0 {
			continue
		}
		layer := &headwaterv1.HeldLayer{Layer: uint32(l)}
		numbers := make([]uint32, len(groups))
		for i, g := range groups {
			numbers[i] = uint32(g)
		}
		if layer.Groups = numbers; layers[l].Striped() {
			layer.Groups, layer.Shards = nil, numbers
		}
		held = append(held, layer)
	}
	return held
}

// Closed reports whether the session's holders are being exchanged.
func (h *Holding) Closed() bool { return h.closed }

// Split reports whether a lane's take has come to some of the holders only. The next take ends that.
func (h *Holding) Split() bool { return h.split }

// Replicas returns how many copies of each shard the session is to have beside the owner's.
func (h *Holding) Replicas() int { return h.replicas }

// Layers returns the session's layers. The caller must not change them.
func (h *Holding) Layers() []shard.LayerSpec { return h.layers }

// Holders returns the session's holders. The caller must not change them.
func (h *Holding) Holders() []*Holder { return h.holders }

// Answers returns the name of the holder that answers for a group of a layer.
func (h *Holding) Answers(layer, group int) string {
	for _, p := range h.parts[layer] {
		if slices.Contains(p.answers, group) {
			return p.holder.Name
		}
	}
	return "" // NewHolding makes none such
}

// Whole reports whether one holder has all groups of a layer, and no others will: a step's payload can be given away then. A worker's
// answer for a layer in stripes is parts, which are never given on.
func (h *Holding) Whole(layer int) bool {
	return len(h.parts[layer]) == 1 && h.replicas == 0 && !h.layers[layer].Striped()
}

// proto returns the holders as messages.
func (h *Holding) proto() []*headwaterv1.Holder {
	all := make([]*headwaterv1.Holder, len(h.holders))
	for i, o := range h.holders {
		all[i] = &headwaterv1.Holder{Name: o.Name, Boot: o.Boot, Address: o.Address, Layers: o.held(h.layers)}
	}
	return all
}

// ParseHolding reads the holders of a session that has these layers.
func ParseHolding(layers []shard.LayerSpec, holders []*headwaterv1.Holder) (*Holding, error) {
	var parsed []*Holder
	for _, o := range holders {
		groups := make([][]int, len(layers))
		for _, held := range o.GetLayers() {
			if int64(held.GetLayer()) >= int64(len(layers)) {
				return nil, fmt.Errorf("holder %q: layer %d of %d", o.GetName(), held.GetLayer(), len(layers))
			}
			layer := &layers[held.GetLayer()]
			numbers, others := held.GetGroups(), held.GetShards()
			if layer.Striped() {
				numbers, others = others, numbers
			}
			if len(numbers) > layer.Shards() || len(others) > 0 || groups[held.GetLayer()] != nil {
				return nil, fmt.Errorf("holder %q: layer %d: more groups than it has", o.GetName(), held.GetLayer())
			}
			for _, g := range numbers {
				groups[held.GetLayer()] = append(groups[held.GetLayer()], int(g))
			}
		}
		parsed = append(parsed, &Holder{Name: o.GetName(), Boot: bytes.Clone(o.GetBoot()), Address: o.GetAddress(), Groups: groups})
	}
	return NewHolding(layers, parsed...)
}
