package sessions

import (
	"bytes"
	"cmp"
	"context"
	"fmt"
	"maps"
	"slices"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"headwater.example/coordinator/workers"
	"headwater.example/internal/observe"
	"headwater.example/internal/session/fanout"
	headwaterv1 "headwater.example/proto/headwater/v1"
)

// evenEnough is the part of a worker's share by which it may hold more before sessions are moved away, as a divisor.
const evenEnough = 20

// part is what one worker holds of one session.
type part struct {
	session [16]byte
	bytes   uint64
	held    map[[2]uint32]bool // by layer and group
}

// load is what a worker holds of all sessions, and what its weight says that it should.
type load struct {
	workers.Description
	bytes, share uint64
	parts        map[[16]byte]*part
}

func (l *load) over() int64 { return int64(l.bytes) - int64(l.share) }

// move is a part that is to go to another worker.
type move struct {
	from, to *load
	part     *part
}

// Rebalance implements headwater.v1.ClusterService.
func (c *Cluster) Rebalance(_ *headwaterv1.RebalanceRequest, stream grpc.ServerStreamingServer[headwaterv1.RebalanceResponse]) error {
	ctx := stream.Context()
	loads, err := c.loads(ctx)
	if err != nil {
		return refusal(err)
	}
	said := &headwaterv1.Moves{}
	before := c.rate.bytes()
	for moves := even(loads); ; moves = moves[1:] {
		said.Left, said.Done, said.CopiedBytes = uint64(len(moves)), len(moves) == 0, uint64(c.rate.bytes()-before)
		if err := stream.Send(&headwaterv1.RebalanceResponse{Moves: said}); err != nil || said.GetDone() {
			return err
		}
		said.Error = ""
		if err := c.move(ctx, &moves[0]); err != nil {
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

// loads says what each worker holds that may be given more.
func (k *keeper) loads(ctx context.Context) ([]*load, error) {
	described, err := workers.Placeable(k.workers.Describe(ctx, k.workers.List()))
	if err != nil {
		return nil, err
	}
	loads := make([]*load, len(described))
	members := k.answering(ctx)
	byName := map[string]*load{}
	weights := uint64(0)
	for i, w := range described {
		loads[i] = &load{Description: w, parts: map[[16]byte]*part{}}
		byName[w.Name] = loads[i]
		weights += uint64(max(w.Said.GetWeight(), 1))
	}
	total := uint64(0)
	req := &headwaterv1.ListSessionsRequest{Limit: lookAtOnce}
	for {
		answers, _, err := k.list(ctx, members, req)
		if err != nil {
			return nil, err
		}
		found := bySession(members, answers)
		ids := slices.SortedFunc(maps.Keys(found), func(a, b [16]byte) int { return bytes.Compare(a[:], b[:]) })
		ids = ids[:min(len(ids), lookAtOnce)]
		for _, id := range ids {
			for _, state := range found[id] {
				for _, o := range state.GetHolders() {
					if l := byName[o.GetName()]; l != nil {
						l.parts[id] = partOf(id, o)
						l.bytes += o.GetPageBytes()
						total += o.GetPageBytes()
					}
				}
			}
		}
		if len(ids) < lookAtOnce {
			break
		}
		req.After = ids[len(ids)-1][:]
	}
	for _, l := range loads {
		l.share = uint64(float64(total) * float64(max(l.Said.GetWeight(), 1)) / float64(weights))
	}
	return loads, nil
}

func partOf(id [16]byte, o *headwaterv1.Holder) *part {
	p := &part{session: id, bytes: o.GetPageBytes(), held: map[[2]uint32]bool{}}
	for _, l := range o.GetLayers() {
		for _, g := range l.GetGroups() {
			p.held[[2]uint32{l.GetLayer(), g}] = true
		}
	}
	return p
}

// even returns moves after which the loads are as even as whole parts allow, each from the worker with the most too much to the one
// with the most too little. A part does not go where some of its groups are already. The loads are changed.
func even(loads []*load) (moves []move) {
	for {
		byLoad := slices.SortedFunc(slices.Values(loads), func(a, b *load) int {
			return cmp.Or(cmp.Compare(b.over(), a.over()), cmp.Compare(a.Name, b.Name))
		})
		next := firstMove(byLoad)
		if next == nil {
			return moves
		}
		id := next.part.session
		next.from.bytes, next.to.bytes = next.from.bytes-next.part.bytes, next.to.bytes+next.part.bytes
		delete(next.from.parts, id)
		if has := next.to.parts[id]; has != nil {
			has.bytes += next.part.bytes
			maps.Copy(has.held, next.part.held)
		} else {
			next.to.parts[id] = next.part
		}
		moves = append(moves, *next)
	}
}

// firstMove returns the largest part that makes the loads more even, from those with the most too much to those with the most too
// little, of loads in that order; nil is none.
func firstMove(byLoad []*load) *move {
	for _, from := range byLoad {
		if from.over() <= int64(from.share/evenEnough) {
			return nil
		}
		for _, to := range slices.Backward(byLoad) {
			if to.over() >= 0 {
				break
			}
			var best *part
			for _, p := range from.parts {
				if int64(p.bytes) > max(from.over(), -to.over()) || p.bytes == 0 || shares(p, to.parts[p.session]) {
					continue
				}
				if best == nil || cmp.Or(cmp.Compare(p.bytes, best.bytes), bytes.Compare(best.session[:], p.session[:])) > 0 {
					best = p
				}
			}
			if best != nil {
				return &move{from, to, best}
			}
		}
	}
	return nil
}

// shares reports whether two parts of a session have a group in common; the other one may be nil.
func shares(p, other *part) bool {
	if other == nil {
		return false
	}
	for shard := range p.held {
		if other.held[shard] {
			return true
		}
	}
	return false
}

// move moves what a worker holds of a session to another one, while the session goes on.
func (k *keeper) move(ctx context.Context, m *move) error {
	id := m.part.session
	h, state, err := k.heldNow(ctx, id)
	if err != nil {
		return err
	}
	groups := make([][]int, len(h.Layers()))
	held := false
	for _, o := range h.Holders() {
		if o.Name == m.from.Name {
			held = true
		}
		if o.Name != m.from.Name && o.Name != m.to.Name {
			continue
		}
		for l := range o.Groups {
			groups[l] = append(groups[l], o.Groups[l]...)
			slices.Sort(groups[l])
			groups[l] = slices.Compact(groups[l])
		}
	}
	if !held {
		return fmt.Errorf("session %x is not held by %s any more", id, m.from.Name)
	}
	target := &fanout.Holder{Name: m.to.Name, Address: m.to.Address, Boot: m.to.Said.GetBoot(), Groups: groups}
	if err := k.conns.Restore(ctx, h, state, target); err != nil {
		return err
	}
	k.doubt(ctx, id[:])
	if h, state, err = k.heldNow(ctx, id); err != nil {
		return err
	}
	if err := k.conns.Release(ctx, id, h, state, m.from.Name); err != nil {
		return err
	}
	k.doubt(ctx, id[:])
	k.observe.Happened(observe.Rebalanced, m.to.Name, 1)
	return nil
}

// heldNow returns who holds a session now.
func (k *keeper) heldNow(ctx context.Context, id [16]byte) (*fanout.Holding, *headwaterv1.SessionState, error) {
	told, err := k.states(ctx, id)
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
