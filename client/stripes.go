package client

import (
	"headwater.example/attention"
	"headwater.example/internal/kvcache"
	"headwater.example/internal/snapshot"
	"headwater.example/shard"
	"headwater.example/tensor"
)

// sums chains the rows of a layer in stripes, block by block: as a snapshot has them, by group, and as the session's workers do, by shard.
type sums struct {
	layer          shard.LayerSpec
	groups, shards []kvcache.Hasher
}

// sumsOf returns those of each layer that is in stripes, nil for the others.
func sumsOf(layers []shard.LayerSpec) []*sums {
	all := make([]*sums, len(layers))
	for i, l := range layers {
		if l.Striped() {
			all[i] = &sums{l, make([]kvcache.Hasher, l.KVHeads), make([]kvcache.Hasher, l.Shards())}
		}
	}
	return all
}

// add takes the next block of the layer.
func (s *sums) add(b *snapshot.Block) error {
	l := s.layer.Layout
	kRow, vRow := l.KRowBytes(), l.VRowBytes()
	rows := func(group, from, n int) attention.Rows {
		at := group*b.Positions + from
		r := attention.Rows{K: b.K[at*kRow:][:n*kRow], V: b.V[at*vRow:][:n*vRow]}
		if l.DType() == tensor.I8 {
			r.KScale, r.VScale = b.KScale[at:][:n], b.VScale[at:][:n]
		}
		return r
	}
	for g := range s.groups {
		if err := s.groups[g].Update(rows(g, 0, b.Positions), b.Positions, l); err != nil {
			return err
		}
	}
	for i := range s.shards {
		var err error
		s.layer.Runs(i, int(b.Start), b.Positions, func(at, count, _ int) bool {
			s.shards[i].Pass(uint64(at))
			err = s.shards[i].Update(rows(s.layer.GroupOf(i), at-int(b.Start), count), count, l)
			return err == nil
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// hashes are those of all groups, or of all shards.
func hashes(chains []kvcache.Hasher) []uint64 {
	all := make([]uint64, len(chains))
	for i := range chains {
		all[i] = chains[i].Receipt().Hash
	}
	return all
}

// inStripes sets in how many stripes a config's layers are held, but for those with a left window.
func inStripes(layers []shard.LayerSpec, n int) error {
	for i := range layers {
		if layers[i].Windowed() && n >= 0 {
			continue
		}
		var err error
		if layers[i], err = layers[i].WithStripes(n); err != nil {
			return wrong("layer %d: %w", i, err)
		}
	}
	return nil
}
