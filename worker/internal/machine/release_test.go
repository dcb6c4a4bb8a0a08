package machine

import (
	"context"
	"math"
	"runtime/debug"
	"testing"
	"time"

	"headwater.example/internal/kvcache"
)

// TestTheHeapMakesWayForPages fills the heap with garbage that the collector may keep while there are no pages, and then takes
// pages: before these are used, both together are within what the worker may take.
func TestTheHeapMakesWayForPages(t *testing.T) {
	before := debug.SetMemoryLimit(math.MaxInt64)
	percent := debug.SetGCPercent(-1) // Only the limit asks for collections, so that garbage stays until it does.
	t.Cleanup(func() { debug.SetMemoryLimit(before); debug.SetGCPercent(percent) })
	const total = 256 << 20
	m := New(Config{Name: "w1", Budget: total, Threads: 1})
	defer m.Close()
	ctx, cancel := context.WithCancel(t.Context())
	ticks, tended := make(chan time.Time), make(chan struct{})
	go func() { defer close(tended); m.Tend(ctx, ticks) }()
	defer func() { cancel(); <-tended }()
	ticks <- time.Time{}
	ticks <- time.Time{} // The first has been handled.

	for range 180 {
		garbage = make([]byte, 1<<20)
	}
	garbage = nil
	if footprint() < 180<<20 {
		t.Fatalf("%d MiB of heap, too little for this test", footprint()>>20)
	}
	for taken := int64(0); taken < 240<<20; taken += 4 << 20 {
		arena, err := m.Budget.Map(4<<20, kvcache.Nobody)
		if err != nil {
			t.Fatal(err)
		}
		defer m.Budget.Unmap(arena)
		m.Budget.MakeWay()
		if all := m.Budget.Used() + footprint(); all > total+heapBytes {
			t.Fatalf("%d MiB of pages and %d MiB of heap, more than %d and %d together", m.Budget.Used()>>20, footprint()>>20, total>>20, heapBytes>>20)
		}
	}
}

var garbage []byte
