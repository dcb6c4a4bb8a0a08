package drivers_test

import (
	"context"
	"testing"
	"time"

	"go.uber.org/goleak"

	"headwater.example/internal/testkit/drivers"
)

// TestSeveralDriversAgreeWithWhatTheyWereTold drives sessions for some seconds, with room for all and with little.
func TestSeveralDriversAgreeWithWhatTheyWereTold(t *testing.T) {
	defer goleak.VerifyNone(t)
	each := 4 * time.Second
	if testing.Short() {
		each = time.Second
	}
	for name, config := range map[string]drivers.Config{
		"two workers":   {Workers: 2, Sessions: 4, Drivers: 3, Budget: 64 << 20, Seed: 1},
		"three workers": {Workers: 3, Sessions: 4, Drivers: 4, Budget: 64 << 20, Seed: 2},
		"little room":   {Workers: 2, Sessions: 6, Drivers: 2, Budget: 192 << 10, Seed: 3},
	} {
		t.Run(name, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), each)
			defer cancel()
			tally, err := drivers.Run(ctx, config)
			if err != nil {
				t.Fatal(err)
			}
			if tally.Contexts == 0 || tally.Takeovers == 0 {
				t.Errorf("nothing was done: %+v", tally)
			}
			t.Logf("%+v", tally)
		})
	}
}
