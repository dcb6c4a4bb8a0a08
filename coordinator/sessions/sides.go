package sessions

import (
	"context"
	"fmt"
	"log/slog"
	"slices"

	"headwater.example/internal/rpc"
	"headwater.example/internal/session"
	"headwater.example/internal/session/fanout"
	headwaterv1 "headwater.example/proto/headwater/v1"
)

// otherSides returns the states of a session from which those that hold it have not come, current: it went on twice. Nobody frees them.
// While its holders are exchanged, all that are not among these look so.
func otherSides(h *fanout.Holding, current, states []*headwaterv1.SessionState) []*headwaterv1.SessionState {
	stale := fanout.Stale(h, current, states)
	return slices.DeleteFunc(slices.Clone(states), func(s *headwaterv1.SessionState) bool {
		return slices.Contains(current, s) || slices.Contains(stale, s)
	})
}

// sidesOf says what workers have of other sides of a session.
func sidesOf(states []*headwaterv1.SessionState) (all []*headwaterv1.OtherSide) {
	h, current, err := fanout.Current(states)
	if err != nil || h.Closed() {
		return nil
	}
	for _, s := range otherSides(h, current, states) {
		one := &headwaterv1.OtherSide{Epoch: s.GetEpoch().GetCounter(), PageBytes: s.GetPageBytes()}
		for _, l := range s.GetLayers() {
			one.Positions = max(one.Positions, l.GetLength())
		}
		for _, o := range s.GetHolders() {
			one.Worker, one.Address = o.GetName(), o.GetAddress()
		}
		all = append(all, one)
	}
	return all
}

// DropSide implements headwater.v1.ClusterService.
func (c *Cluster) DropSide(ctx context.Context, req *headwaterv1.DropSideRequest) (*headwaterv1.DropSideResponse, error) {
	id, err := sessionID(req.GetSession())
	if err != nil {
		return nil, refusal(err)
	}
	rpc.Audit(ctx, c.log, "another side of a session is dropped", slog.String("session", fmt.Sprintf("%x", id)), slog.String("worker", req.GetWorker()))
	if err := c.dropSide(ctx, id, req.GetWorker()); err != nil {
		return nil, c.Relay.failed(ctx, req.GetSession(), err)
	}
	return &headwaterv1.DropSideResponse{}, nil
}

// dropSide drops what a worker has of another side of a session. It stays if the worker has accepted a call since.
func (r *Relay) dropSide(ctx context.Context, id [16]byte, worker string) error {
	told, _, err := r.states(ctx, id)
	if err != nil {
		return err
	}
	states := told[id]
	if len(states) == 0 {
		return heldByNone(id[:])
	}
	h, current, err := fanout.Current(states)
	if err != nil {
		return notWhole(id[:], lostOf(states...), err)
	}
	if h.Closed() {
		return session.Errorf(session.Busy, "session %x: its holders are being exchanged: try again", id)
	}
	for _, s := range otherSides(h, current, states) {
		for _, o := range s.GetHolders() {
			if o.GetName() != worker {
				continue
			}
			epoch := &headwaterv1.Epoch{Counter: s.GetEpoch().GetCounter(), Lane: s.GetEpoch().GetLane(), At: s.GetEpoch().GetCounter()}
			err := r.conns.Drop(ctx, []*fanout.Holder{{Name: worker, Address: o.GetAddress()}}, &headwaterv1.DropSessionRequest{Session: id[:], Epoch: epoch, Served: s.GetServed()})
			if err == nil {
				r.copies.look(id)
			}
			return err
		}
	}
	return session.Errorf(session.Invalid, "session %x: worker %s has no other side of it: coord sessions show names the workers that have one", id, worker)
}
