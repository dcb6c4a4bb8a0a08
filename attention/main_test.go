package attention

import (
	"testing"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// skipIfRaced skips a test of bits or allocations under the race detector, which makes the portable kernel more than ten
// times as slow. Other tests share pools and outputs between goroutines, and make unit runs all of them without it.
func skipIfRaced(t *testing.T) {
	t.Helper()
	if raceDetector {
		t.Skip("compares bits or counts allocations; run it without -race")
	}
}
