package sessions

import (
	"bytes"
	"cmp"
	"context"
	"fmt"
	"maps"
	"slices"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"headwater.example/coordinator/workers"
	"headwater.example/internal/observe"
	"headwater.example/internal/placement"
	"headwater.example/internal/rpc"
	"headwater.example/internal/session/fanout"
	headwaterv1 "headwater.example/proto/headwater/v1"
	"headwater.example/shard"
)

// Rebalance implements headwater.v1.ClusterService.
func (c *Cluster) Rebalance(_ *headwaterv1.RebalanceRequest, stream grpc.ServerStreamingServer[headwaterv1.RebalanceResponse]) error {
	ctx := stream.Context()
	rpc.Audit(ctx, c.log, "sessions are rebalanced")
	loads, err := c.loads(ctx)
	if err != nil {
		return refusal(err)
	}
	said := &headwaterv1.Moves{Silent: loads.silent}
	before := c.rate.bytes()
	for moves := placement.Even(loads.all); ; moves = moves[1:] {
		say := func() error {
			said.Left, said.LeftBytes, said.Done, said.CopiedBytes = uint64(len(moves)), bytesOf(moves), len(moves) == 0, uint64(c.rate.bytes()-before)
			return stream.Send(&headwaterv1.RebalanceResponse{Moves: said})
		}
		if err := say(); err != nil || said.GetDone() {
			return err
		}
		said.Error = ""
		if err := c.moveAnd(ctx, &moves[0], loads.described[moves[0].To], say); err != nil {
			if ctx.Err() != nil {
				return status.FromContextError(ctx.Err()).Err()
			}
			said.Error = err.Error()
			continue
		}
		said.Moved++
		select {
		case <-c.stopping:
			return status.Error(codes.Unavailable, "the coordinator stops")
		default:
		}
	}
}

// bytesOf returns the bytes that moves copy.
func bytesOf(moves []placement.Move) (sum uint64) {
	for _, m := range moves {
		sum += m.Bytes
	}
	return sum
}

// moveAnd moves, and calls say from time to time until it has. An error of say ends the move.
func (k *keeper) moveAnd(ctx context.Context, m *placement.Move, to workers.Description, say func() error) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	moved := make(chan error, 1)
	go func() {
		moved <- rpc.Guard(k.log, "moving a session", func() error { return k.move(ctx, m, to) })
	}()
	tick := time.NewTicker(progressEvery)
	defer tick.Stop()
	for {
		select {
		case err := <-moved:
			return err
		case <-tick.C:
			if err := say(); err != nil {
				cancel()
				<-moved
				return err
			}
		}
	}
}

// loads is what each worker holds that may be given more, and what it says of itself, by name; and who did not answer.
type loads struct {
	all       []*placement.Load
	described map[string]workers.Description
	silent    []*headwaterv1.SilentWorker
}

// loads asks all workers what they hold.
func (k *keeper) loads(ctx context.Context) (*loads, error) {
	asked := k.workers.Describe(ctx, k.workers.List())
	described, err := workers.Placeable(asked)
	if err != nil {
		return nil, err
	}
	l := &loads{described: map[string]workers.Description{}}
	for _, w := range asked {
		if w.Err != nil {
			l.silent = append(l.silent, &headwaterv1.SilentWorker{Worker: w.Name, Address: w.Address, Error: whySilent(w.Member, w.Err)})
		}
	}
	slices.SortFunc(l.silent, func(a, b *headwaterv1.SilentWorker) int { return cmp.Compare(a.GetWorker(), b.GetWorker()) })
	byName := map[string]*placement.Load{}
	for _, w := range described {
		load := &placement.Load{Room: roomOf(w), Parts: map[[16]byte]*placement.Part{}}
		l.all, l.described[w.Name], byName[w.Name] = append(l.all, load), w, load
	}
	members := k.answering(ctx)
	req := &headwaterv1.ListSessionsRequest{Limit: lookAtOnce}
	for {
		answers, silent, err := k.list(ctx, members, req)
		if err != nil {
			return nil, err
		}
		for _, w := range silent { // since it was asked first
			if !slices.ContainsFunc(l.silent, func(other *headwaterv1.SilentWorker) bool { return other.GetWorker() == w.GetWorker() }) {
				l.silent = append(l.silent, w)
			}
		}
		found := bySession(members, answers)
		ids := slices.SortedFunc(maps.Keys(found), func(a, b [16]byte) int { return bytes.Compare(a[:], b[:]) })
		ids = ids[:min(len(ids), lookAtOnce)]
		for _, id := range ids {
			for _, state := range found[id] {
				for _, o := range state.GetHolders() {
					if load := byName[o.GetName()]; load != nil {
						load.Parts[id] = partOf(id, o)
					}
				}
			}
		}
		if len(ids) < lookAtOnce {
			return l, nil
		}
		req.After = ids[len(ids)-1][:]
	}
}

func partOf(id [16]byte, o *headwaterv1.Holder) *placement.Part {
	p := &placement.Part{Session: id, Bytes: o.GetPageBytes(), Held: map[shard.ID]bool{}}
	for _, l := range o.GetLayers() {
		for _, g := range slices.Concat(l.GetGroups(), l.GetShards()) {
			p.Held[shard.ID{Layer: shard.Layer(l.GetLayer()), Group: shard.Group(g)}] = true
		}
	}
	return p
}

// move moves what a worker holds of a session to another one, while the session goes on.
func (k *keeper) move(ctx context.Context, m *placement.Move, to workers.Description) error {
	id := m.Session
	h, state, err := k.heldNow(ctx, id)
	if err != nil {
		return err
	}
	groups := make([][]int, len(h.Layers()))
	held := false
	for _, o := range h.Holders() {
		if o.Name == m.From {
			held = true
		}
		if o.Name != m.From && o.Name != m.To {
			continue
		}
		for l := range o.Groups {
			groups[l] = append(groups[l], o.Groups[l]...)
			slices.Sort(groups[l])
			groups[l] = slices.Compact(groups[l])
		}
	}
	if !held {
		return fmt.Errorf("session %x is not held by %s any more", id, m.From)
	}
	target := &fanout.Holder{Name: m.To, Address: to.Address, Boot: to.Said.GetBoot(), Groups: groups}
	if err := k.conns.Restore(ctx, h, state, target); err != nil {
		return err
	}
	k.doubt(ctx, id[:])
	if h, state, err = k.heldNow(ctx, id); err != nil {
		return err
	}
	if err := k.conns.Release(ctx, id, h, state, m.From); err != nil {
		return err
	}
	k.doubt(ctx, id[:])
	k.observe.Happened(observe.Rebalanced, m.To, 1)
	return nil
}

// heldNow returns who holds a session now.
func (k *keeper) heldNow(ctx context.Context, id [16]byte) (*fanout.Holding, *headwaterv1.SessionState, error) {
	told, _, err := k.states(ctx, id)
	if err == nil && len(told[id]) == 0 {
		err = fmt.Errorf("session %x is held by no worker that answers", id)
	}
	if err != nil {
		return nil, nil, err
	}
	h, current, err := fanout.Current(told[id])
	if err != nil {
		return nil, nil, err
	}
	return h, current[0], nil
}
