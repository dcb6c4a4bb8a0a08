package machine

import (
	"context"
	"math"
	"runtime"
	"runtime/debug"
	"runtime/metrics"
	"time"
)

const (
	// heapBytes is what the heap may take beside the budget: the runtime, stacks, and messages that need no reservation. The
	// program's code, of which the collector does not know, comes on top.
	heapBytes = 48 << 20
	leastHeap = 40 << 20
	// leastStep is the least that pages take before the heap's limit is looked at again.
	leastStep = 8 << 20
	// Memory is given back once fewer than quietBytes are in flight after there were more than busyBytes. A client's small steps
	// never are: to give memory back takes a collection.
	busyBytes  = 8 << 20
	quietBytes = 1 << 20
)

// Tend keeps the process within its memory at each tick, a second or so apart, until ctx ends: once messages in flight are few it
// gives back what they have taken. In between, the heap makes way when pages are taken. A limit that was set by
// GOMEMLIMIT stays.
func (m *Machine) Tend(ctx context.Context, ticks <-chan time.Time) {
	if debug.SetMemoryLimit(-1) == math.MaxInt64 {
		m.bound.Store(true)
	}
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticks:
			m.boundHeap()
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

// boundHeap lets Go's heap have what pages leave of the memory. Pages lie outside of the heap, whose collector does not know of
// them, and it may have filled with garbage what they are about to take. Until it is called again, pages may take an eighth of
// what the heap has left.
func (m *Machine) boundHeap() {
	if !m.bound.Load() {
		return
	}
	m.heap.Lock()
	defer m.heap.Unlock()
	left := m.Budget.Total() + heapBytes - m.mapped()
	step := max(left/8, leastStep)
	m.Budget.SetMark(step)
	limit := max(left-step, leastHeap)
	if limit != m.heap.limit {
		debug.SetMemoryLimit(limit)
		m.heap.limit = limit
	}
	if footprint() > limit {
		debug.FreeOSMemory()
	}
}

// mapped is how many bytes lie outside of the heap.
func (m *Machine) mapped() int64 {
	cache, flight := m.Store.Cache(), m.Flight.State()
	return m.Budget.Used() + m.Budget.Kept() - (cache.RowBytes + cache.SessionBytes + flight.Reserved)
}

// footprint is how many bytes Go's runtime has of the machine, as the collector's limit counts them.
func footprint() int64 {
	samples := []metrics.Sample{{Name: "/memory/classes/total:bytes"}, {Name: "/memory/classes/heap/released:bytes"}}
	metrics.Read(samples)
	return int64(samples[0].Value.Uint64() - samples[1].Value.Uint64())
}
