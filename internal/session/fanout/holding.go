package fanout

import (
	"bytes"
	"fmt"
	"slices"

	headwaterv1 "headwater.example/proto/headwater/v1"
	"headwater.example/shard"
)

// Holder is one who holds some of a session's groups.
type Holder struct {
	Name    string
	Boot    []byte
	Address string
	Groups  [][]int // by layer, ascending; nil is all groups of all layers
}

// part is what one holder has of one layer.
type part struct {
	holder *Holder
	groups []int
}

// Holding says who holds which groups of a session. It does not change, so it may be shared.
type Holding struct {
	layers  []shard.LayerSpec
	holders []*Holder
	parts   [][]part // by layer, without those that have none of it
}

// NewHolding checks that every group of every layer has exactly one holder.
func NewHolding(layers []shard.LayerSpec, holders ...*Holder) (*Holding, error) {
	h := &Holding{layers: layers, holders: holders, parts: make([][]part, len(layers))}
	for _, o := range holders {
		if o.Groups != nil && len(o.Groups) != len(layers) {
			return nil, fmt.Errorf("holder %q: groups of %d layers, the session has %d", o.Name, len(o.Groups), len(layers))
		}
	}
	for l := range layers {
		layer := &layers[l]
		owner := make([]*Holder, layer.KVHeads)
		for _, o := range holders {
			groups := o.layer(l, layer)
			for i, g := range groups {
				switch {
				case g < 0 || g >= layer.KVHeads || i > 0 && g <= groups[i-1]:
					return nil, fmt.Errorf("holder %q: layer %d: groups %v are not ascending below %d", o.Name, l, groups, layer.KVHeads)
				case owner[g] != nil:
					return nil, fmt.Errorf("layer %d: group %d is held by %q and by %q", l, g, owner[g].Name, o.Name)
				}
				owner[g] = o
			}
			if len(groups) > 0 {
				h.parts[l] = append(h.parts[l], part{o, groups})
			}
		}
		if g := slices.Index(owner, nil); g >= 0 {
			return nil, fmt.Errorf("layer %d: nobody holds group %d", l, g)
		}
	}
	return h, nil
}

// layer returns the groups that the holder has of a layer.
func (o *Holder) layer(l int, layer *shard.LayerSpec) []int {
	if o.Groups != nil {
		return o.Groups[l]
	}
	all := make([]int, layer.KVHeads)
	for g := range all {
		all[g] = g
	}
	return all
}

// held is what a holder is told to hold, nil for one that plans itself.
func (o *Holder) held() []*headwaterv1.HeldLayer {
	var held []*headwaterv1.HeldLayer
	for l, groups := range o.Groups {
		if len(groups) == 0 {
			continue
		}
		layer := &headwaterv1.HeldLayer{Layer: uint32(l)}
		for _, g := range groups {
			layer.Groups = append(layer.Groups, uint32(g))
		}
		held = append(held, layer)
	}
	return held
}

// Layers returns the session's layers. They are not the caller's to change.
func (h *Holding) Layers() []shard.LayerSpec { return h.layers }

// Holders returns who holds the session. They are not the caller's to change.
func (h *Holding) Holders() []*Holder { return h.holders }

// Whole tells whether one holder has all groups of a layer.
func (h *Holding) Whole(layer int) bool { return len(h.parts[layer]) == 1 }

// proto returns the holders as messages tell them.
func (h *Holding) proto() []*headwaterv1.Holder {
	all := make([]*headwaterv1.Holder, len(h.holders))
	for i, o := range h.holders {
		all[i] = &headwaterv1.Holder{Name: o.Name, Boot: o.Boot, Address: o.Address, Layers: o.held()}
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
			if len(held.GetGroups()) > layers[held.GetLayer()].KVHeads || groups[held.GetLayer()] != nil {
				return nil, fmt.Errorf("holder %q: layer %d: more groups than it has", o.GetName(), held.GetLayer())
			}
			for _, g := range held.GetGroups() {
				groups[held.GetLayer()] = append(groups[held.GetLayer()], int(g))
			}
		}
		parsed = append(parsed, &Holder{Name: o.GetName(), Boot: bytes.Clone(o.GetBoot()), Address: o.GetAddress(), Groups: groups})
	}
	return NewHolding(layers, parsed...)
}
