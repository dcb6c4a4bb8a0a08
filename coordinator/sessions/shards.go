package sessions

import (
	"context"
	"slices"

	"headwater.example/internal/layerproto"
	"headwater.example/internal/membership"
	"headwater.example/internal/session"
	"headwater.example/internal/session/fanout"
	headwaterv1 "headwater.example/proto/headwater/v1"
	"headwater.example/shard"
)

// Shards is who holds the shards of a session.
type Shards struct {
	State  *headwaterv1.SessionState // what a worker tells of it
	Layers []shard.LayerSpec
	// Held has, by layer and group, of a layer in stripes by shard, the names of the holders: first the one that answers, unless the session is not whole.
	Held [][][]string
}

// Shards asks the workers who holds a session. It also tells of a session that is not whole, whose groups may have no holder.
func (r *Relay) Shards(ctx context.Context, id []byte) (*Shards, error) {
	key, err := sessionID(id)
	if err != nil {
		return nil, err
	}
	told, _, err := r.states(ctx, key)
	if err != nil {
		return nil, err
	}
	states := told[key]
	if len(states) == 0 {
		return nil, session.Errorf(session.Unknown, "session %x is held by no worker that answers", key)
	}
	s := &Shards{State: states[0]}
	if s.Layers, err = layerproto.ReadSessionLayers(states[0].GetConfig().GetLayers()); err != nil {
		return nil, err
	}
	s.Held = make([][][]string, len(s.Layers))
	for l := range s.Layers {
		s.Held[l] = make([][]string, s.Layers[l].Shards())
	}
	if whole, newest, err := fanout.Current(states); err == nil {
		s.State = newest[0]
		s.answering(whole)
		return s, nil
	}
	for _, state := range states {
		for _, o := range state.GetHolders() {
			s.hold(o)
		}
	}
	return s, nil
}

// answering notes the holders of a session that is whole.
func (s *Shards) answering(h *fanout.Holding) {
	for l := range s.Held {
		for g := range s.Held[l] {
			s.Held[l][g] = []string{h.Answers(l, g)}
		}
	}
	for _, o := range h.Holders() {
		for l, groups := range o.Groups {
			for _, g := range groups {
				if s.Held[l][g][0] != o.Name {
					s.Held[l][g] = append(s.Held[l][g], o.Name)
				}
			}
		}
	}
}

// hold notes what a holder says that it has.
func (s *Shards) hold(o *headwaterv1.Holder) {
	for _, layer := range o.GetLayers() {
		for _, g := range slices.Concat(layer.GetGroups(), layer.GetShards()) {
			if l := int(layer.GetLayer()); l < len(s.Held) && int(g) < len(s.Held[l]) {
				s.Held[l][g] = append(s.Held[l][g], o.GetName())
			}
		}
	}
}

// Loads asks the named workers what they have done, and returns it by the number that each name has. Those that do not answer, or
// do not count, are left out.
func (r *Relay) Loads(ctx context.Context, named map[string]int) map[int]*headwaterv1.WorkerLoad {
	members := slices.DeleteFunc(r.workers.List(), func(m membership.Member) bool { _, ok := named[m.Name]; return !ok })
	loads := map[int]*headwaterv1.WorkerLoad{}
	for _, d := range r.workers.Describe(ctx, members) {
		if d.Err == nil && d.Said.GetLoad() != nil {
			loads[named[d.Name]] = d.Said.GetLoad()
		}
	}
	return loads
}
