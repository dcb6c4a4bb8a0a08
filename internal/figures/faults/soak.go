package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"time"

	"headwater.example/internal/figures/soak"
)

// soakFor is how long a soak lasts; a flag sets it.
var soakFor time.Duration

// soaked is one soak, of which two figures tell.
var soaked struct {
	once   sync.Once
	result soak.Result
	err    error
}

func soakOnce(ctx context.Context, bin string) (soak.Result, error) {
	soaked.once.Do(func() {
		o := soak.Default()
		o.Command, o.Load = filepath.Join(bin, "coord"), soakFor
		soaked.result, soaked.err = soak.Run(ctx, o)
		if r := soaked.result; soaked.err == nil {
			fmt.Fprintf(os.Stderr, "soak of %v: %d MiB resident at most, %d sessions, %d refusals, %d evicted, filled %d times, in a memory group: %v\n", o.Load, r.Largest>>20, r.Sessions, r.Refused, r.Gone, r.Full, r.Grouped)
		}
	})
	return soaked.result, soaked.err
}

// coordFlight is the most that a coordinator has resident by its bound while clients read nothing.
func coordFlight(ctx context.Context, bin string) (float64, error) {
	r, err := soak.Flight(ctx, soak.FlightOptions{Command: filepath.Join(bin, "coord"), Load: 40 * time.Second, Mute: 64})
	if err == nil {
		fmt.Fprintf(os.Stderr, "64 clients that read nothing: the coordinator had %d MiB resident at most, %d when idle\n", r.Largest>>20, r.Idle>>20)
	}
	return r.Over, err
}

// soakOver is a worker's largest resident size by its --memory and 96 MiB.
func soakOver(ctx context.Context, bin string) (float64, error) {
	r, err := soakOnce(ctx, bin)
	return r.Over, err
}

// soakBack is the seconds until a worker's memory is back after the load.
func soakBack(ctx context.Context, bin string) (float64, error) {
	r, err := soakOnce(ctx, bin)
	return r.Back.Seconds(), err
}
