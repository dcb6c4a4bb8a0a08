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
