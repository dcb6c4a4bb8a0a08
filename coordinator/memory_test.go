package coordinator_test

import (
	"testing"

	"headwater.example/coordinator"
	"headwater.example/coordinator/jobs"
	"headwater.example/coordinator/sessions"
)

// TestFlightFitsTheMemory: messages in flight, in both directions, leave most of the memory that a coordinator may use, and the
// heap's limit covers them.
func TestFlightFitsTheMemory(t *testing.T) {
	for memory, want := range map[int64]int64{0: 96 << 20, 512 << 20: 96 << 20, 1 << 30: 128 << 20, 2 << 30: 256 << 20, 64 << 30: 256 << 20} {
		got := sessions.FlightIn(memory)
		if got != want {
			t.Errorf("of %d MiB, %d MiB may be in flight in each direction, not %d", memory>>20, got>>20, want>>20)
		}
		c, err := coordinator.Open(coordinator.Config{Name: "c", DataDir: t.TempDir(), Flight: got})
		if err != nil {
			t.Fatal(err)
		}
		if limit := c.HeapLimit(); limit != 2*got+jobs.HeaderMemory {
			t.Errorf("a heap of %d MiB with %d MiB in flight in each direction", limit>>20, got>>20)
		}
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	}
}
