// Package await waits in tests for what must come, each time within a bound. A wait without one hangs when the product or the machine
// misbehaves: it takes the time of its whole package, and does not say what has not come.
package await

import (
	"fmt"
	"os"
	"runtime/pprof"
	"sync"
	"testing"
	"time"
)

// Patience bounds each wait. It is no measure of anything: a test that runs into it has hung.
const Patience = 2 * time.Minute

// One receives from a channel, and returns the zero value of one that is closed. Like all of the package, it fails the test if that
// does not come, and is called by the test's own goroutine.
func One[T any](t testing.TB, from <-chan T, what string) T {
	t.Helper()
	late := time.NewTimer(Patience)
	defer late.Stop()
	select {
	case v := <-from:
		return v
	case <-late.C:
		hung(t, what)
		panic("unreachable")
	}
}

// That waits until something holds that nothing tells of.
func That(t testing.TB, what string, holds func() bool) {
	t.Helper()
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for late := time.Now().Add(Patience); !holds(); <-tick.C {
		if time.Now().After(late) {
			hung(t, what)
		}
	}
}

// All waits for goroutines.
func All(t testing.TB, of *sync.WaitGroup, what string) {
	t.Helper()
	done := make(chan struct{})
	go func() { defer close(done); of.Wait() }()
	One(t, done, what)
}

// hung fails the test. Where each goroutine is goes to the standard error at once: the end of a test that has hung may hang as well.
func hung(t testing.TB, what string) {
	t.Helper()
	fmt.Fprintf(os.Stderr, "%s: within %v it has not come: %s\n", t.Name(), Patience, what)
	_ = pprof.Lookup("goroutine").WriteTo(os.Stderr, 1)
	t.Fatalf("within %v it has not come: %s", Patience, what)
}
