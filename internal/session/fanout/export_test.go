package fanout

import (
	"context"
	"time"

	headwaterv1 "headwater.example/proto/headwater/v1"
)

// SetAbandonTimeout sets what the end of a session that was made in vain may take.
func (c *Conns) SetAbandonTimeout(d time.Duration) { c.abandonTimeout = d }

// Leave leaves out holders as if they had been lost.
func (c *Conns) Leave(ctx context.Context, p *Place, driver *headwaterv1.Epoch, lost ...string) error {
	return c.leave(ctx, p, p.Holding(), driver, lost...)
}

// Reopen steps the epoch at all holders of a place.
func (c *Conns) Reopen(ctx context.Context, p *Place, epoch *headwaterv1.Epoch) error {
	return c.reopen(ctx, p, p.Holding(), epoch, nil)
}

// GoOver steps the epoch of holders that somebody seems to exchange without an end.
func (c *Conns) GoOver(ctx context.Context, p *Place, h *Holding, driver *headwaterv1.Epoch) (*Holding, error) {
	return c.goOver(ctx, p, h, h, driver)
}

// Joined returns through which epochs a copy of layers has come.
func Joined(states []*headwaterv1.SessionState, layers []*headwaterv1.LayerState) []uint64 {
	return joined(states, layers)
}

// LocateNow asks who holds a session now.
func (c *Conns) LocateNow(ctx context.Context, id [16]byte, known *Holding) (*Holding, error) {
	return c.locate(ctx, id, known)
}

// Counter is that of the epoch that the holding is known by.
func (h *Holding) Counter() uint64 { return h.counter }

// AreSlow has holders count as ones that take a minute for an answer as often as not, so that for some time none of theirs is late.
func (c *Conns) AreSlow(holders ...*Holder) {
	for _, o := range holders {
		times := &c.pace(o).times
		n, _ := times.quantiles(c.now(), 0.5, 0.95)
		for i := uint64(0); i < n || times.count.Load()%timesSettle != 0; i++ {
			times.add(c.now(), time.Minute)
		}
	}
}

// Times are the times that answers took.
type Times struct{ times }

// Add adds an answer that came now and took so long.
func (t *Times) Add(now, took time.Duration) { t.add(now, took) }

// Quantiles returns how many answers count now, and the two quantiles.
func (t *Times) Quantiles(now time.Duration, low, high float64) (uint64, [2]time.Duration) {
	return t.quantiles(now, low, high)
}

// Budget is what may be asked twice.
type Budget struct{ hedges }

// Earn counts attends, of which a share may be asked twice.
func (b *Budget) Earn(attends int, share float64) { b.earn(attends, share) }

// Take reports whether so many attends may be asked twice.
func (b *Budget) Take(attends int) bool { return b.take(attends) }

// Counts returns all attends, and those that were asked twice.
func (b *Budget) Counts() (attends, asked uint64) { return b.attends.Load(), b.asked.Load() }
