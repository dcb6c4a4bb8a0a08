package fanout

import "time"

// SetAbandonTimeout sets what the end of a session that was made in vain may take.
func (c *Conns) SetAbandonTimeout(d time.Duration) { c.abandonTimeout = d }
