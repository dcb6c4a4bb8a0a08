package fanout

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"

	"headwater.example/internal/session"
	headwaterv1 "headwater.example/proto/headwater/v1"
)

// Place says where a session is: who holds it now. If a holder is lost and others have copies of all that it held, it is left out,
// and the session goes on. Safe for concurrent use.
type Place struct {
	id      [16]byte
	holding atomic.Pointer[Holding]

	moving  chan struct{} // holds one element while holders are left out; guards what follows
	counter uint64        // of the newest epoch that was stepped here
}

// NewPlace makes the place of a session.
func NewPlace(id [16]byte, h *Holding) *Place {
	p := &Place{id: id, moving: make(chan struct{}, 1)}
	p.holding.Store(h)
	return p
}

// Holding returns who holds the session now.
func (p *Place) Holding() *Holding { return p.holding.Load() }

// epochOf is the epoch that a lane's calls name.
func epochOf(counter uint64, lane session.LaneID) *headwaterv1.Epoch {
	return &headwaterv1.Epoch{Counter: counter, Lane: lane[:]}
}

// leave leaves out holders of a holding that were lost. It steps the epoch at each that stays, so that whoever looks for the session's
// holders finds those that have all that is acknowledged from now on. The epoch's lane goes on naming the counter that it knows: it
// is the base of the new one. The error of a session that others have to drive, or that is not whole without them, says so.
//
// What a holder that stays has of a step that failed it keeps: the step is sent again to all, by its id.
func (c *Conns) leave(ctx context.Context, p *Place, from *Holding, driver *headwaterv1.Epoch, lost ...string) error {
	select {
	case p.moving <- struct{}{}:
		defer func() { <-p.moving }()
	case <-ctx.Done():
		return ctx.Err()
	}
	if p.Holding() != from {
		return nil // somebody has done it meanwhile
	}
	counter := max(p.counter, driver.GetCounter()) + 1
	for {
		rest, whole := from.Without(lost...)
		if !whole {
			return errNotWhole
		}
		epoch := &headwaterv1.Epoch{Counter: counter, Lane: driver.GetLane(), Base: driver.GetCounter()}
		_, err := c.each(ctx, rest.holders, func(ctx context.Context, s headwaterv1.SessionServiceClient, _ int) (*headwaterv1.SessionState, error) {
			resp, err := s.TakeSession(ctx, &headwaterv1.TakeSessionRequest{Session: p.id[:], Epoch: epoch})
			return resp.GetState(), err
		})
		e, refused := session.FromError(err)
		switch {
		case err == nil:
			p.counter = counter
			p.holding.Store(rest)
			if c.OnLeave != nil {
				c.OnLeave(p.id, lost)
			}
			return nil
		case refused && e.Reason() == session.StaleEpoch && string(e.Why.GetEpoch().GetLane()) == string(driver.GetLane()) && e.Why.GetEpoch().GetCounter() >= counter:
			counter = e.Why.GetEpoch().GetCounter() + 1 // it was stepped elsewhere on the lane's behalf
		case gone(err) != "":
			lost = append(lost, gone(err))
		default:
			return err
		}
	}
}

var errNotWhole = errors.New("nobody else holds a copy")

// gone names the holder that an error says is lost, or not to have the session; empty if it is another error.
func gone(err error) string {
	e, ok := session.FromError(err)
	if ok && (e.Reason() == session.Lost || e.Reason() == session.Unknown || broken(err)) {
		return e.Why.GetHolder()
	}
	return ""
}

// over makes a call under an epoch with all holders of a session, and makes it again with those that are left if one is lost that
// they can do without. The same call again must be a success at who has done it.
func (c *Conns) over(ctx context.Context, p *Place, driver *headwaterv1.Epoch, do func(h *Holding) (*headwaterv1.SessionState, error)) (*headwaterv1.SessionState, error) {
	for {
		h := p.Holding()
		state, err := do(h)
		if err == nil {
			return state, nil
		}
		if p.Holding() != h {
			continue
		}
		name := gone(err)
		if name == "" || ctx.Err() != nil {
			return nil, err
		}
		if left := c.leave(ctx, p, h, driver, name); left != nil {
			if errors.Is(left, errNotWhole) {
				return nil, err
			}
			return nil, fmt.Errorf("%w; to go on without holder %q: %v", err, name, left)
		}
	}
}

// past makes a call that steps no epoch with all holders of a session, or with those that can be reached if they have all of it.
func past(h *Holding, do func(h *Holding) error) error {
	for {
		err := do(h)
		if err == nil {
			return nil
		}
		rest, whole := h.Without(gone(err))
		if !whole {
			return err
		}
		h = rest
	}
}
