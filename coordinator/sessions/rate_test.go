package sessions

import (
	"context"
	"testing"
	"testing/synctest"
	"time"
)

// Bytes are let through at the rate that is set, but for what is urgent, which the others make up for.
func TestARateIsKept(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := &rate{perSecond: 1000}
		began := time.Now()
		for i := range 50 {
			if err := r.take(t.Context(), 100, i%5 == 0); err != nil {
				t.Fatal(err)
			}
		}
		// The last one begins when those before have had their time, or a burst earlier.
		if took := time.Since(began); took < 4800*time.Millisecond || took > 4900*time.Millisecond {
			t.Errorf("49 times 100 bytes at 1000 a second took %v", took)
		}
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if err := r.take(ctx, 100, false); err == nil {
			t.Error("a caller that has gone is let through")
		}
		if r.bytes() != 5100 {
			t.Errorf("%d bytes were taken", r.bytes())
		}
		free := &rate{}
		if err := free.take(t.Context(), 1<<40, false); err != nil || time.Since(began) > 5*time.Second {
			t.Errorf("without a bound: %v", err)
		}
	})
}
