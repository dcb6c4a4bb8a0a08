package fanout

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"headwater.example/internal/session"
	headwaterv1 "headwater.example/proto/headwater/v1"
)

// Place says where a session is: who holds it now. If a holder is lost and others have copies of all that it held, it is left out,
// and the session goes on. Safe for concurrent use.
type Place struct {
	id      [16]byte
	holding atomic.Pointer[Holding]
	moving  chan struct{} // holds one element while the holding is exchanged
}

// NewPlace makes the place of a session.
func NewPlace(id [16]byte, h *Holding) *Place {
	p := &Place{id: id, moving: make(chan struct{}, 1)}
	p.holding.Store(h)
	return p
}

// Holding returns who holds the session now.
func (p *Place) Holding() *Holding { return p.holding.Load() }

// move exchanges the holding, unless it is not from any more: somebody else has exchanged it then.
func (p *Place) move(ctx context.Context, from *Holding, next func() (*Holding, error)) error {
	select {
	case p.moving <- struct{}{}:
		defer func() { <-p.moving }()
	case <-ctx.Done():
		return ctx.Err()
	}
	if p.Holding() != from {
		return nil
	}
	h, err := next()
	if err == nil {
		p.holding.Store(h)
	}
	return err
}

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
	return p.move(ctx, from, func() (*Holding, error) {
		counter := max(from.counter, driver.GetCounter()) + 1
		for {
			rest, whole := from.Without(lost...)
			if !whole {
				return nil, errNotWhole
			}
			epoch := &headwaterv1.Epoch{Counter: counter, Lane: driver.GetLane(), Base: driver.GetCounter()}
			_, err := c.each(ctx, rest.holders, func(ctx context.Context, s headwaterv1.SessionServiceClient, _ int) (*headwaterv1.SessionState, error) {
				resp, err := s.TakeSession(ctx, &headwaterv1.TakeSessionRequest{Session: p.id[:], Epoch: epoch})
				return resp.GetState(), err
			})
			switch told := stale(err, driver); {
			case err == nil:
				if c.OnLeave != nil {
					c.OnLeave(p.id, lost)
				}
				return rest.Of(counter), nil
			case told >= counter:
				counter = told + 1 // it was stepped elsewhere on the lane's behalf
			case gone(err) != "":
				lost = append(lost, gone(err))
			default:
				return nil, err
			}
		}
	})
}

// stale returns the counter that a holder has accepted, if it has refused a call of the driver because its holders are known by
// another one, else 0. An epoch that another lane has taken is another matter.
func stale(err error, driver *headwaterv1.Epoch) uint64 {
	e, ok := session.FromError(err)
	if !ok || e.Reason() != session.StaleEpoch {
		return 0
	}
	told := e.Why.GetEpoch()
	if string(told.GetLane()) != string(driver.GetLane()) || told.GetCounter() != driver.GetCounter() && told.GetBase() != driver.GetCounter() {
		return 0
	}
	return told.GetCounter()
}

const (
	// refreshPause is how long a call waits before it asks again who holds a session whose holders are being exchanged, and
	// refreshes how often: 3 seconds in all.
	refreshPause = 10 * time.Millisecond
	refreshes    = 300
)

// refresh asks anew who holds a session, after a holder has refused a call of the driver as stale.
func (c *Conns) refresh(ctx context.Context, p *Place, from *Holding) error {
	return p.move(ctx, from, func() (*Holding, error) {
		if c.Locate == nil || from.counter == 0 {
			return nil, errNoWay
		}
		for range refreshes {
			h, err := c.Locate(ctx, p.id)
			if err != nil {
				return nil, err
			}
			if h.counter > from.counter {
				return h, nil
			}
			if !pause(ctx, refreshPause) {
				return nil, ctx.Err()
			}
		}
		return nil, errNoWay
	})
}

var errNoWay = errors.New("nobody tells who holds it now")

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
// they can do without, or with the holders of now if these are others. The same call again must be a success at who has done it.
func (c *Conns) over(ctx context.Context, p *Place, driver *headwaterv1.Epoch, do func(h *Holding) (*headwaterv1.SessionState, error)) (*headwaterv1.SessionState, error) {
	for again := 0; ; again++ {
		h := p.Holding()
		state, err := do(h)
		if err == nil || ctx.Err() != nil || again > refreshes {
			return state, err
		}
		if p.Holding() != h {
			continue
		}
		name, moved := gone(err), error(nil)
		switch {
		case stale(err, driver) != 0:
			moved = c.refresh(ctx, p, h)
		case name != "":
			moved = c.leave(ctx, p, h, driver, name)
		default:
			return nil, err
		}
		if errors.Is(moved, errNotWhole) || errors.Is(moved, errNoWay) {
			return nil, err
		}
		if moved != nil {
			return nil, fmt.Errorf("%w; and to go on with other holders: %v", err, moved)
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
