package jobs

import (
	"context"
	"errors"
	"testing"
)

// TestHeadersAreReadWithinABudget: of large ones one at a time, of small ones many.
func TestHeadersAreReadWithinABudget(t *testing.T) {
	b := newHeaderBudget()
	release, err := b.take(t.Context(), maxHeader+maxOverrides)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := b.take(ctx, 1000); !errors.Is(err, context.Canceled) {
		t.Errorf("a header beside the largest: %v", err)
	}
	release()
	for range maxUploads {
		if _, err := b.take(t.Context(), 64<<10); err != nil {
			t.Fatal(err)
		}
	}
}
