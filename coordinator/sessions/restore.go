package sessions

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"slices"
	"time"

	"headwater.example/coordinator/workers"
	"headwater.example/internal/membership"
	"headwater.example/internal/observe"
	"headwater.example/internal/session/fanout"
	headwaterv1 "headwater.example/proto/headwater/v1"
)

const (
	// restoreEvery is how long it takes at most until missing copies are looked for again, while some are missing.
	restoreEvery = 2 * time.Second
	// restoreAtOnce is how many sessions are asked for at once.
	restoreAtOnce = 64
)

// keepCopies makes the copies that sessions lack, until ctx ends: after workers have come or gone, after a session has gone on without
// some, and again while some could not be made. Coordinators may do so beside each other: of two that make one copy, the first one's
// epoch refuses the other.
func (r *Relay) keepCopies(ctx context.Context) {
	for missing := true; ; {
		changed := r.workers.Changed()
		var again <-chan time.Time
		if missing {
			missing = r.makeCopies(ctx)
		}
		if missing {
			again = time.After(restoreEvery)
		}
		select {
		case <-again:
		case <-changed:
			missing = true
		case <-r.lacking:
			missing = true
		case <-ctx.Done():
			return
		}
	}
}

// makeCopies makes what copies it can, and tells whether some are missing still.
func (r *Relay) makeCopies(ctx context.Context) (missing bool) {
	described, err := workers.Answering(r.workers.Describe(ctx, r.workers.List()))
	if err != nil {
		return false // no worker has anything, or speaks this protocol
	}
	var members []membership.Member
	for _, w := range described {
		members = append(members, w.Member)
	}
	answers, _, err := r.list(ctx, members, &headwaterv1.ListSessionsRequest{})
	if err != nil {
		return true
	}
	ids := slices.Collect(maps.Keys(bySession(members, answers)))
	for some := range slices.Chunk(ids, restoreAtOnce) {
		told, err := r.states(ctx, some...)
		if err != nil {
			return true
		}
		for _, id := range some {
			for states := told[id]; len(states) > 0 && ctx.Err() == nil; {
				target, err := r.makeCopy(ctx, states)
				if err != nil {
					missing = true
					r.log.Warn("a copy of a session could not be made: it is tried again", "session", fmt.Sprintf("%x", id), "error", err)
				}
				if target == nil || err != nil {
					break
				}
				r.doubt(id[:])
				r.observe.Happened(observe.CopiesMade, target.Name, 1)
				r.log.Info("a copy of a session was made that it lacked", "session", fmt.Sprintf("%x", id), "worker", target.Name)
				again, err := r.states(ctx, id)
				if err != nil {
					return true
				}
				states = again[id]
			}
		}
	}
	return missing
}

// states returns what workers tell of sessions: who holds them, and what they were made with.
func (r *Relay) states(ctx context.Context, ids ...[16]byte) (map[[16]byte][]*headwaterv1.SessionState, error) {
	req := &headwaterv1.ListSessionsRequest{HoldersOnly: true}
	for _, id := range ids {
		req.Sessions = append(req.Sessions, id[:])
	}
	members := r.workers.List()
	answers, _, err := r.list(ctx, members, req)
	return bySession(members, answers), err
}

// makeCopy makes one copy that a session lacks, and returns at whom, nil if it lacks none that could be made.
func (r *Relay) makeCopy(ctx context.Context, states []*headwaterv1.SessionState) (*fanout.Holder, error) {
	replicas := int(states[0].GetConfig().GetReplicas())
	if replicas == 0 {
		return nil, nil
	}
	h, newest, err := fanout.Current(states)
	if err != nil {
		return nil, nil // nobody has what is missing
	}
	described, err := workers.Answering(r.workers.Describe(ctx, r.workers.List()))
	if err != nil {
		return nil, err
	}
	target := lackedBy(h, replicas, described)
	if target == nil {
		return nil, nil
	}
	return target, r.conns.Restore(ctx, h, newest[0], target)
}

// lackedBy returns the worker with the most room that is to have more of a session, with all groups that it is to have then, or nil
// if each group has as many holders as it is to have, or as there are workers.
func lackedBy(h *fanout.Holding, replicas int, among []workers.Description) *fanout.Holder {
	layers := h.Layers()
	held := make([][][]string, len(layers)) // by layer and group
	for l := range layers {
		held[l] = make([][]string, layers[l].KVHeads)
	}
	for _, o := range h.Holders() {
		for l, groups := range o.Groups {
			for _, g := range groups {
				held[l][g] = append(held[l][g], o.Name)
			}
		}
	}
	among = slices.SortedFunc(slices.Values(among), func(a, b workers.Description) int {
		return cmp.Or(cmp.Compare(roomOf(b).free, roomOf(a).free), cmp.Compare(a.Name, b.Name))
	})
	for _, w := range among {
		groups, more := make([][]int, len(layers)), false
		for l := range layers {
			for g, by := range held[l] {
				has := slices.Contains(by, w.Name)
				lacks := !has && len(by) < min(1+replicas, len(among))
				if more = more || lacks; has || lacks {
					groups[l] = append(groups[l], g)
				}
			}
		}
		if more {
			return &fanout.Holder{Name: w.Name, Address: w.Address, Boot: w.Said.GetBoot(), Groups: groups}
		}
	}
	return nil
}
