package main

import (
	"context"
	"fmt"
	"os"
	"time"

	"headwater.example/internal/testkit/drivers"
)

// walkSteps returns how many steps several drivers of the same sessions have done in a minute, by coordinator and directly, with
// deadlines that strike in the middle and workers that are slow, lose answers and stop. Anything that must not be is an error.
func walkSteps(ctx context.Context, _ string) (float64, error) {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	tally, err := drivers.Run(ctx, drivers.Config{Workers: 3, Sessions: 8, Drivers: 3, Budget: 1 << 20, Seed: uint64(time.Now().UnixNano())})
	fmt.Fprintf(os.Stderr, "walk: %+v\n", tally)
	return float64(tally.Steps), err
}
