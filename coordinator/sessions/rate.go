package sessions

import (
	"context"
	"sync"
	"time"
)

// rate bounds the bytes a second of what is copied in the background.
type rate struct {
	perSecond int64 // 0 is no bound

	mu    sync.Mutex
	next  time.Time // when all that was taken before has had its time
	taken int64     // bytes in all
}

// rateBurst is how long bytes may be taken ahead of their time.
const rateBurst = 100 * time.Millisecond

// take waits until n bytes may be copied. If they are urgent it counts them and does not wait.
func (r *rate) take(ctx context.Context, n int, urgent bool) error {
	r.mu.Lock()
	r.taken += int64(n)
	var wait time.Duration
	if r.perSecond > 0 {
		now := time.Now()
		if r.next.Before(now) {
			r.next = now
		}
		wait = r.next.Sub(now) - rateBurst
		r.next = r.next.Add(time.Duration(float64(n) / float64(r.perSecond) * float64(time.Second)))
	}
	r.mu.Unlock()
	if wait <= 0 || urgent {
		return ctx.Err()
	}
	t := time.NewTimer(wait)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// bytes returns how many were taken so far.
func (r *rate) bytes() int64 {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.taken
}
