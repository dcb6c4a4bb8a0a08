package machine

import (
	"context"
	"math"
	"runtime"
	"runtime/debug"
	"time"
)

const (
	// heapBytes is what the heap may take beside the budget: the runtime, stacks, and messages that need no reservation. The
	// program's code, of which the collector does not know, comes on top.
	heapBytes = 56 << 20
	leastHeap = 48 << 20
	// Memory is given back once fewer than quietBytes are in flight after there were more than busyBytes. A client's small steps
	// never are: to give memory back takes a collection.
	busyBytes  = 8 << 20
	quietBytes = 1 << 20
)

// Tend keeps the process within its memory at each tick, a second or so apart, until ctx ends. Pages lie outside of Go's heap,
// whose collector does not know of them: it is told how much is left, and once messages in flight are few it gives back what they
// have taken. A limit that was set by GOMEMLIMIT stays.
func (m *Machine) Tend(ctx context.Context, ticks <-chan time.Time) {
	own := debug.SetMemoryLimit(-1) == math.MaxInt64
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticks:
			if own {
				debug.SetMemoryLimit(m.heapLimit())
			}
			state := m.Flight.State()
			if state.Received+state.Answers > quietBytes || state.Peak < busyBytes {
				continue
			}
			runtime.GC() // Pools keep what they hold for one collection.
			debug.FreeOSMemory()
			m.Flight.Settle()
		}
	}
}

// heapLimit is what Go's heap may take beside the pages that are mapped.
func (m *Machine) heapLimit() int64 {
	cache, flight := m.Store.Cache(), m.Flight.State()
	inHeap := cache.RowBytes + cache.SessionBytes + flight.Reserved
	mapped := m.Budget.Used() + m.Budget.Kept() - inHeap
	return max(m.Budget.Total()+heapBytes-mapped, leastHeap)
}
