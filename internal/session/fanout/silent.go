package fanout

import (
	"context"
	"errors"
	"slices"
	"time"

	"headwater.example/internal/rpc"
)

// This file says what becomes of calls that wait for a holder that hangs: one whose process stands still, or to which the
// network is cut without a word. A call that waits for long watches the pulses of its holders (rpc.Conns.Watch). If one is
// silent and the others have copies of all that it holds, it is left out as if it were lost; else it is waited for, as long as
// the caller and the connection last.

// silent returns the holders that hang, if the others can replace them.
func (c *Conns) silent(h *Holding) (names []string) {
	for _, o := range h.holders {
		if c.Silent(o.peer()) {
			names = append(names, o.Name)
		}
	}
	if names == nil {
		return nil
	}
	if _, whole := h.without(names...); !whole {
		return nil
	}
	return names
}

// watch watches all holders until release is called.
func (c *Conns) watch(h *Holding) (release func()) {
	releases := make([]func(), len(h.holders))
	for i, o := range h.holders {
		releases[i] = c.Watch(o.peer())
	}
	return func() {
		for _, r := range releases {
			r()
		}
	}
}

// await waits until all parts of a call are sent and answered. If holders hang that others can replace, it returns earlier.
func (c *Call) await(ctx context.Context) (silent []string, err error) {
	if c.step.Input == nil { // its payload was given away
		return nil, c.awaitAll(ctx)
	}
	conns := c.lane.conns
	if silent := conns.silent(c.holding); silent != nil {
		return silent, nil
	}
	if over, err := c.awaitSlow(ctx); over || err != nil {
		return nil, err
	}
	defer conns.watch(c.holding)()
	for {
		changed := conns.Pulse()
		if silent := conns.silent(c.holding); silent != nil {
			return silent, nil
		}
		if over, err := c.awaitUntil(ctx, changed, nil); over || err != nil {
			return nil, err
		}
	}
}

// awaitSlow waits until a call has its answers, for SlowAfter at most, and reports whether it has. If an answer is late, others are
// asked as well.
func (c *Call) awaitSlow(ctx context.Context) (over bool, err error) {
	wait, hedges := rpc.SlowAfter, c.mayHedge()
	for {
		next := wait
		if hedges {
			next = min(wait, max(c.nextLate(), time.Microsecond))
		}
		if c.slow == nil {
			c.slow = time.NewTimer(next)
		} else {
			c.slow.Reset(next)
		}
		over, err = c.awaitUntil(ctx, nil, c.slow.C)
		c.slow.Stop()
		if over || err != nil || next == wait {
			return over, err
		}
		wait -= next
		hedges = !c.hedge()
	}
}

// awaitAll waits until a call has its answers, whoever hangs.
func (c *Call) awaitAll(ctx context.Context) error {
	_, err := c.awaitUntil(ctx, nil, nil)
	return err
}

// awaitUntil waits until a call has its answers, or something has changed or a time has passed, and reports whether it has them.
func (c *Call) awaitUntil(ctx context.Context, changed <-chan struct{}, passed <-chan time.Time) (over bool, err error) {
	for {
		select {
		case <-c.done:
			c.complete()
			return true, nil
		case <-c.news:
			if c.enough() {
				return true, nil
			}
		case <-ctx.Done():
			return false, ctx.Err()
		case <-changed:
			return false, nil
		case <-passed:
			return false, nil
		}
	}
}

// elsewhere sends the step of a call to the holders that are left without some that hang, and returns the call that does so. The
// parts of the old one may still be written to, so it is not used again. If others are lost meanwhile and somebody is missed, the
// call is waited for.
func (c *Call) elsewhere(ctx context.Context, silent []string) (*Call, error) {
	err := c.lane.conns.leave(ctx, c.place, c.holding, epochOf(c.step.Epoch, c.lane.id), silent...)
	if errors.Is(err, errNotWhole) {
		return c, c.awaitAll(ctx)
	}
	if err != nil {
		return nil, err
	}
	c.noOther()
	for _, p := range c.parts {
		if p.end != nil {
			p.end(time.Now(), rpc.ErrSilent)
		}
	}
	return c.lane.Start(ctx, c.place, c.step), nil
}

// awaitRoom waits for room for a part in its stream.
func (s *stream) awaitRoom(ctx context.Context, p *callPart) error {
	conns, h := p.call.lane.conns, p.call.holding
	defer conns.watch(h)()
	for {
		changed := conns.Pulse()
		if p.call.step.Input != nil && conns.silent(h) != nil && conns.Silent(p.holder.peer()) {
			return rpc.ErrSilent
		}
		select {
		case s.room <- struct{}{}:
			return nil
		case <-s.ctx.Done():
			return context.Cause(s.ctx)
		case <-ctx.Done():
			return ctx.Err()
		case <-changed:
		}
	}
}

// heed returns a context that ends once one of the holders hangs and may be left out, which may says; nil is never. The caller calls
// stop when it is done: it returns the error of that holder, or nil.
func (c *Conns) heed(ctx context.Context, may func() bool, holders ...*Holder) (_ context.Context, stop func() error) {
	if may == nil {
		return ctx, func() error { return nil }
	}
	peers := make([]rpc.Peer, len(holders))
	for i, o := range holders {
		peers[i] = o.peer()
	}
	ctx, stopped := c.Heed(ctx, may, peers...)
	return ctx, func() error {
		silent := stopped()
		if i := slices.Index(peers, silent); i >= 0 {
			return lost(holders[i].Name, rpc.ErrSilent)
		}
		return nil
	}
}

// always lets a call end at any holder that hangs.
func always() bool { return true }
