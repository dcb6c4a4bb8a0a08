package fanout

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"sync/atomic"
	"time"

	"headwater.example/internal/session"
	headwaterv1 "headwater.example/proto/headwater/v1"
)

// Place knows the current holders of a session. If a holder is lost and others have copies of all that it held, it is
// left out, and the session goes on. Safe for concurrent use.
type Place struct {
	id      [16]byte
	tenant  string // whose session it is, as was known when the place was made
	holding atomic.Pointer[Holding]
	moving  chan struct{} // holds one element while the holding is exchanged
}

// NewPlace makes the place of a session.
func NewPlace(id [16]byte, h *Holding) *Place {
	p := &Place{id: id, tenant: h.tenant, moving: make(chan struct{}, 1)}
	p.holding.Store(h)
	return p
}

// Tenant returns whose session it is.
func (p *Place) Tenant() string { return p.tenant }

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

// leave leaves lost holders out of a holding. It raises the epoch at each remaining holder, so a search for the
// session's holders finds those that have everything that is acknowledged from now on. The driver's lane keeps naming
// the counter that it knows, which is the base of the new epoch. It fails if another lane drives the session, or if the
// remaining holders do not have all groups. A remaining holder keeps what it has of a failed step: the step is sent to
// all again, under its id.
func (c *Conns) leave(ctx context.Context, p *Place, from *Holding, driver *headwaterv1.Epoch, lost ...string) error {
	return c.without(ctx, p, from, driver, c.OnLeave, lost...)
}

// without is leave, and tells whom it has left out.
func (c *Conns) without(ctx context.Context, p *Place, from *Holding, driver *headwaterv1.Epoch, tell func([16]byte, []string), lost ...string) error {
	return p.move(ctx, from, func() (*Holding, error) {
		h, at := from, map[string]uint64{} // counters that holders have taken here
		counter := c.above(max(from.counter, driver.GetCounter()))
		for {
			rest, whole := h.without(lost...)
			if !whole {
				return nil, errNotWhole
			}
			err := c.reopen(ctx, p, rest, &headwaterv1.Epoch{Counter: counter, Lane: driver.GetLane(), Base: driver.GetCounter()}, at)
			switch {
			case err == nil:
				if tell != nil {
					tell(p.id, lost)
				}
				return rest.Of(counter), nil
			case stale(err, driver) != 0:
				// Somebody else has stepped it on the lane's behalf: who holds what may be different by now.
				if h, err = c.settled(ctx, p, h, driver); err != nil {
					return nil, err
				}
				if !h.names(lost) {
					return h, nil
				}
				clear(at)
				counter = c.above(h.counter)
			case gone(err) != "":
				lost = append(lost, gone(err))
				counter = c.above(counter)
			default:
				return nil, err
			}
		}
	})
}

// raise steps the epoch at all holders on a driver's behalf.
func (c *Conns) raise(ctx context.Context, p *Place, from *Holding, driver *headwaterv1.Epoch) error {
	return p.move(ctx, from, func() (*Holding, error) {
		counter := c.above(max(from.counter, driver.GetCounter()))
		epoch := &headwaterv1.Epoch{Counter: counter, Lane: driver.GetLane(), Base: driver.GetCounter()}
		if err := c.reopen(ctx, p, from, epoch, map[string]uint64{}); err != nil {
			return nil, err
		}
		return from.Of(counter), nil
	})
}

// above returns a counter above another, for an epoch that is stepped on a lane's behalf. Two who do so hardly choose the same.
func (c *Conns) above(counter uint64) uint64 { return counter + 1 + c.NewID()%(1<<20) }

// names reports whether some of these are holders.
func (h *Holding) names(some []string) bool {
	return slices.ContainsFunc(h.holders, func(o *Holder) bool { return slices.Contains(some, o.Name) })
}

// stale returns the counter that a holder has accepted, if the holder refused the driver's call because the caller
// knows the holders under another counter, and otherwise 0. It is also 0 if another lane has taken the session.
func stale(err error, driver *headwaterv1.Epoch) uint64 {
	e, ok := session.FromError(err)
	if !ok || e.Reason() != session.StaleEpoch {
		return 0
	}
	told := e.Why.GetEpoch()
	if string(told.GetLane()) != string(driver.GetLane()) || driver.GetCounter() == 0 ||
		told.GetCounter() != driver.GetCounter() && told.GetBase() != driver.GetCounter() {
		return 0
	}
	return told.GetCounter()
}

const (
	// While a session's holders change, a call asks again who they are: refreshes times, after a pause of refreshPause,
	// a second in all.
	refreshPause = 10 * time.Millisecond
	refreshes    = 100
)

// refresh asks again who holds a session, after a holder has refused the driver's call as stale.
func (c *Conns) refresh(ctx context.Context, p *Place, from *Holding, driver *headwaterv1.Epoch) error {
	return p.move(ctx, from, func() (*Holding, error) {
		if from.counter == 0 {
			return nil, errNoWay
		}
		return c.settled(ctx, p, from, driver)
	})
}

// unsettled is the error of a call that a holder has refused as stale, after the driver's lane was not told in time who holds the session
// now: it still drives it, and the same call may go well once its holders are not exchanged any more. If another lane has taken the
// session, or a holder is lost, it says so.
func unsettled(p *Place, driver *headwaterv1.Epoch, moved error) error {
	if _, told := session.FromError(moved); moved == nil || told && stale(moved, driver) == 0 {
		return moved
	}
	return session.Errorf(session.Busy, "the holders of session %x are being exchanged: try again", p.id[:])
}

// opened returns who holds a session, once nobody exchanges its holders and all that have its epoch are known: those who have it would
// take a call that the others miss.
func (c *Conns) opened(ctx context.Context, p *Place, h *Holding, driver *headwaterv1.Epoch) (*Holding, error) {
	if !h.closed {
		return h, nil
	}
	err := c.refresh(ctx, p, h, driver)
	if now := p.Holding(); err == nil && !now.closed {
		return now, nil
	}
	if _, ok := session.FromError(err); err != nil && (ok || ctx.Err() != nil) {
		return h, err
	}
	return h, session.Errorf(session.Busy, "not all holders of session %x are known: try again", p.id[:])
}

// moved looks whether a session has other holders than it was known to have, after some of these were not found to hold it and are
// missed, and reports whether it has. Driver is the epoch of a lane that drives it, if it may be raised for that.
func (c *Conns) moved(ctx context.Context, p *Place, from *Holding, driver *headwaterv1.Epoch) bool {
	err := p.move(ctx, from, func() (*Holding, error) {
		if from.counter == 0 {
			return nil, errNoWay
		}
		h, err := c.locate(ctx, p.id, from)
		switch {
		case err != nil:
			return nil, err
		case h.counter <= from.counter, h.closed && driver == nil:
			return nil, errNoWay
		case h.closed: // they were just exchanged, and one of the new ones may be lost
			return c.settled(ctx, p, from, driver)
		}
		return h, nil
	})
	return err == nil && p.Holding() != from
}

// settled asks who holds a session until its holders are others than they were known to be, and are not being exchanged. After a
// second it steps the epoch itself.
func (c *Conns) settled(ctx context.Context, p *Place, from *Holding, driver *headwaterv1.Epoch) (*Holding, error) {
	var h *Holding
	for range refreshes {
		var err error
		if h, err = c.locate(ctx, p.id, from); err != nil {
			return nil, err
		}
		if !h.closed && (h.counter > from.counter || from.closed) {
			return h, nil
		}
		if !pause(ctx, refreshPause) {
			return nil, ctx.Err()
		}
	}
	if h.split {
		return nil, errNoWay // no lane drives all of them: the next take ends that
	}
	return c.goOver(ctx, p, h, from, driver)
}

// goOver steps the epoch of holders that somebody exchanges who has not come to an end. If that one comes a step further after all, before
// or beside this, the holders may be others, or one may have more than was told: they refuse, and are asked anew. All are asked before the
// first is stepped: the rest would have an epoch above all others.
func (c *Conns) goOver(ctx context.Context, p *Place, h, from *Holding, driver *headwaterv1.Epoch) (*Holding, error) {
	for range follows {
		if h.told == nil { // Locate tells of one epoch
			h = cmp.Or(c.askHolders(ctx, p.id, h), h)
		}
		if !h.closed && h.counter > from.counter {
			return h, nil
		}
		counter := c.above(max(h.counter, from.counter))
		epoch := &headwaterv1.Epoch{Counter: counter, Lane: driver.GetLane(), Base: driver.GetCounter()}
		err := c.stepAll(ctx, p, h, epoch, map[string]uint64{}, true)
		if err == nil {
			err = c.reopen(ctx, p, h, epoch, map[string]uint64{})
		}
		if err != nil && stale(err, driver) == 0 {
			return nil, err
		}
		stepped := err == nil
		if h, err = c.locate(ctx, p.id, from); err != nil {
			return nil, err
		}
		if !h.closed && (h.counter == counter || !stepped && h.counter > from.counter) {
			return h, nil
		}
	}
	return nil, errNoWay
}

// reopen steps the epoch at all holders. If at is given, those of them that have another counter than it says, or than the holders
// are known by, refuse: what they hold may be different. It notes there who has taken the new one.
func (c *Conns) reopen(ctx context.Context, p *Place, h *Holding, epoch *headwaterv1.Epoch, at map[string]uint64) error {
	return c.stepAll(ctx, p, h, epoch, at, false)
}

// stepAll is reopen, or with checkOnly asks whether that would go well.
func (c *Conns) stepAll(ctx context.Context, p *Place, h *Holding, epoch *headwaterv1.Epoch, at map[string]uint64, checkOnly bool) error {
	states, err := c.all(ctx, h, func(ctx context.Context, s headwaterv1.SessionServiceClient, i int) (*headwaterv1.SessionState, error) {
		own := h.named(epoch)
		if at != nil {
			own.At = cmp.Or(at[h.holders[i].Name], h.at(i))
		}
		resp, err := s.TakeSession(ctx, &headwaterv1.TakeSessionRequest{Session: p.id[:], Epoch: own, CheckOnly: checkOnly})
		return resp.GetState(), err
	})
	for i, s := range states {
		if s != nil && at != nil {
			at[h.holders[i].Name] = epoch.GetCounter()
		}
	}
	return err
}

var errNoWay = errors.New("nobody tells who holds it now")

// errOthers is the refusal of a call that names no epoch, where the holders have other parts of the session than they were known to
// have.
var errOthers = session.Errorf(session.Busy, "the session's holders have changed: try again")

var errNotWhole = errors.New("nobody else holds a copy")

// gone names the holder that an error says is lost, or not to have the session; empty if it is another error.
func gone(err error) string {
	e, ok := session.FromError(err)
	if ok && (e.Reason() == session.Lost || e.Reason() == session.Unknown || broken(err)) {
		return e.Why.GetHolder()
	}
	return ""
}

// over makes a call under an epoch with all holders of a session. If a connection broke, as one does whose certificate has expired, over
// makes the call again, once. If a holder is lost and the others can replace it, it makes the call again with these; if the
// holders have changed, with the current ones. Repeating the call must succeed at a holder that has done it.
func (c *Conns) over(ctx context.Context, p *Place, driver *headwaterv1.Epoch, do func(h *Holding) (*headwaterv1.SessionState, error)) (*headwaterv1.SessionState, error) {
	var tried bool
	for again := 0; ; again++ {
		h, err := c.opened(ctx, p, p.Holding(), driver)
		if err != nil {
			return nil, err
		}
		state, err := do(h)
		if err == nil || ctx.Err() != nil || again > refreshes {
			return state, err
		}
		if p.Holding() != h {
			continue
		}
		if Unreached(err) && !tried {
			tried = true
			continue
		}
		name, moved := gone(err), error(nil)
		switch {
		case stale(err, driver) != 0:
			if moved = c.refresh(ctx, p, h, driver); moved != nil && ctx.Err() == nil {
				return nil, unsettled(p, driver, moved)
			}
		case name != "":
			moved = c.leave(ctx, p, h, driver, name)
		default:
			return nil, err
		}
		if errors.Is(moved, errNotWhole) && c.moved(ctx, p, h, driver) {
			continue
		}
		if moved != nil {
			return nil, instead(err, moved)
		}
	}
}

// instead returns the error of a call that failed, after which it could not go on with other holders: what these say of that, since they
// may have the session still, or else what the call says.
func instead(err, moved error) error {
	if _, told := session.FromError(moved); told {
		return moved
	}
	if errors.Is(moved, errNotWhole) || errors.Is(moved, errNoWay) {
		return err
	}
	return fmt.Errorf("%w; and to go on with other holders: %v", err, moved)
}

// past makes a call that raises no epoch with all holders of a session, once more if a connection broke, or with the reachable ones
// if they have all groups, or with others if the session has moved.
func (c *Conns) past(ctx context.Context, p *Place, do func(h *Holding) error) error {
	from := p.Holding()
	var tried bool
	for h := from; ; {
		err := do(h)
		if err == nil {
			return nil
		}
		if Unreached(err) && !tried && ctx.Err() == nil {
			tried = true
			continue
		}
		if rest, whole := h.without(gone(err)); whole {
			h = rest
			continue
		}
		if gone(err) == "" && !errors.Is(err, errOthers) || !c.moved(ctx, p, from, nil) {
			return err
		}
		from = p.Holding()
		h = from
	}
}
