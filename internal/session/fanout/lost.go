package fanout

import (
	"context"
	"slices"
	"time"

	"google.golang.org/protobuf/proto"

	"headwater.example/internal/session"
	headwaterv1 "headwater.example/proto/headwater/v1"
	"headwater.example/shard"
)

// This file says which shards of a session are lost: those that nobody who answers holds.

const (
	// lostBytes bounds what an error says of them: it may go in the trailer of a call, for which a client may have 8 KiB. The shards
	// of 64 layers of 512 groups fit, or of 256 layers of 64.
	lostBytes = 5 << 10
	// askTimeout is how long holders may take to say whether they have a session.
	askTimeout = 5 * time.Second
)

// AllLost are all shards of a session.
func AllLost() *headwaterv1.LostShards { return &headwaterv1.LostShards{All: true} }

// Lost returns the shards of a session that none of the holders has who tell their states; nil is none, or so many that an error can't
// say which. Those that the highest epoch leaves out do not count.
func Lost(layers []shard.LayerSpec, states ...*headwaterv1.SessionState) *headwaterv1.LostShards {
	var holders []*headwaterv1.Holder
	for _, s := range Counting(states) {
		for _, o := range s.GetHolders() {
			// A coordinator tells one state of several holders.
			if named := s.GetEpoch().GetMembers(); len(named) == 0 || slices.Contains(named, o.GetName()) {
				holders = append(holders, o)
			}
		}
	}
	return unheld(layers, holders)
}

// Counting returns the states of those that the highest epoch among them does not leave out, the highest first.
func Counting(states []*headwaterv1.SessionState) []*headwaterv1.SessionState {
	if len(states) == 0 {
		return nil
	}
	states = slices.Clone(states)
	slices.SortStableFunc(states, func(a, b *headwaterv1.SessionState) int { return compareEpochs(b.GetEpoch(), a.GetEpoch()) })
	top := states[0].GetEpoch()
	return slices.DeleteFunc(states, func(s *headwaterv1.SessionState) bool {
		return compareEpochs(s.GetEpoch(), top) < 0 && leftOut(s, top)
	})
}

// unheld returns the shards of layers that no holder has.
func unheld(layers []shard.LayerSpec, holders []*headwaterv1.Holder) *headwaterv1.LostShards {
	if len(holders) == 0 {
		return AllLost()
	}
	held := make([][]bool, len(layers))
	for l := range layers {
		held[l] = make([]bool, layers[l].Shards())
	}
	for _, o := range holders {
		for _, of := range o.GetLayers() {
			for _, g := range slices.Concat(of.GetGroups(), of.GetShards()) {
				if int64(of.GetLayer()) < int64(len(held)) && int64(g) < int64(len(held[of.GetLayer()])) {
					held[of.GetLayer()][g] = true
				}
			}
		}
	}
	all, told := true, &headwaterv1.LostShards{}
	for l, groups := range held {
		if !slices.Contains(groups, false) {
			all = false
			continue
		}
		all = all && !slices.Contains(groups, true)
		bits := make([]byte, (len(groups)+7)/8)
		for g, there := range groups {
			if !there {
				bits[g/8] |= 1 << (g % 8)
			}
		}
		told.Layers = append(told.Layers, &headwaterv1.LostLayer{Layer: uint32(l), Groups: bits})
	}
	switch {
	case len(told.GetLayers()) == 0 || proto.Size(told) > lostBytes && !all:
		return nil
	case all:
		return AllLost()
	}
	return told
}

// Missed asks a session's holders whether they have it, and returns the shards that none of those has who answer; nil as of Lost, or
// where the context ends before. Several callers at once have one answer. It is for the error of a call that has failed.
func (c *Conns) Missed(ctx context.Context, id [16]byte, h *Holding) *headwaterv1.LostShards {
	found, _, _ := c.missed.Do(string(id[:]), func() (any, error) {
		asked, cancel := context.WithTimeout(ctx, askTimeout)
		defer cancel()
		states := c.heldBy(asked, id, h)
		if ctx.Err() != nil {
			return (*headwaterv1.LostShards)(nil), nil // it is not the holders' that they have not answered
		}
		return Lost(h.layers, states...), nil
	})
	return found.(*headwaterv1.LostShards)
}

// WithLost adds to a refusal which shards are lost, unless it says that already or is about something else.
func WithLost(e *session.Error, find func() *headwaterv1.LostShards) *session.Error {
	if e.Reason() != session.Lost && e.Reason() != session.Unknown || e.Why.GetLost() != nil {
		return e
	}
	shards := find()
	if shards == nil {
		return e
	}
	why := proto.CloneOf(e.Why)
	why.Lost = shards
	return &session.Error{Why: why}
}
