package bench

import (
	"math"
	"testing"
	"time"
)

// TestRepetitionsHaveARateEach, of which the mean and the deviation are told; one of them has none.
func TestRepetitionsHaveARateEach(t *testing.T) {
	took := []time.Duration{time.Second, time.Second, 2 * time.Second, 4 * time.Second}
	b := &bench{Case: Case{Repeat: 3, Spend: 6 * time.Second}, row: &Row{Latencies: newHistogram()}}
	calls := 0
	err := b.repeat(func() (int64, time.Duration, error) {
		calls++
		return 10, took[calls-1], nil
	})
	// The first needs two to spend its 2 s.
	if err != nil || calls != 4 || b.row.Tokens != 40 || b.row.Elapsed != 8*time.Second {
		t.Fatalf("%d calls, %d tokens in %v: %v", calls, b.row.Tokens, b.row.Elapsed, err)
	}
	mean, deviation, known := b.row.MeanRate() // of 10, 5 and 2.5
	if want := 17.5 / 3; !known || math.Abs(mean-want) > 1e-12 || math.Abs(deviation-math.Sqrt((25./6*25./6+5./6*5./6+10./3*10./3)/2)) > 1e-12 {
		t.Errorf("mean %g, deviation %g", mean, deviation)
	}
	b.row.Rates = b.row.Rates[:1]
	if mean, _, known := b.row.MeanRate(); known || mean != 5 {
		t.Errorf("one repetition has a mean of %g, and a deviation: %v", mean, known)
	}
}

// TestTheShareOfKernels is known of one session's steps.
func TestTheShareOfKernels(t *testing.T) {
	r := &Row{Case: Case{Test: Decode, Batch: 1}, Elapsed: 4 * time.Second, kernel: 3 * time.Second}
	if share, known := r.KernelShare(); !known || share != 0.75 {
		t.Errorf("%g, %v", share, known)
	}
	for _, other := range []Case{{Test: Decode, Batch: 2}, {Test: Load, Batch: 1}} {
		r.Case = other
		if _, known := r.KernelShare(); known {
			t.Errorf("%+v has a share", other)
		}
	}
}
