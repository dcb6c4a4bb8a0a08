package soak

import (
	"context"
	"errors"
	"io"
	"sync"
	"time"

	"headwater.example/client"
	"headwater.example/internal/localcluster"
)

// FlightOptions say how a coordinator is tried.
type FlightOptions struct {
	Command string        // the program coord
	Load    time.Duration // how long the load lasts
	Mute    int           // clients that never read
	Log     io.Writer     // of the processes
}

// flightBound is the most that a coordinator has resident, as docs/durability.md states it.
const flightBound = 896 << 20

// FlightResult is what a trial of a coordinator found.
type FlightResult struct {
	Idle, Largest int64   // bytes that were resident before the load, and at most
	Over          float64 // Largest by flightBound
}

// Flight lets clients that never read load a coordinator with two workers, which share each of their sessions. It fails if the
// coordinator ends, or if it does not serve an ordinary client afterwards.
func Flight(ctx context.Context, o FlightOptions) (_ FlightResult, err error) {
	var r FlightResult
	cluster, err := localcluster.Start(ctx, localcluster.Options{Workers: 2, Memory: 1 << 30, Command: []string{o.Command}, Log: o.Log})
	if err != nil {
		return r, err
	}
	defer func() {
		ending, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Minute)
		defer cancel()
		if stopped := cluster.Stop(ending); err == nil {
			err = stopped
		}
	}()
	if r.Idle, err = resident(cluster.Process(-1)); err != nil {
		return r, err
	}
	if r.Largest, err = flood(ctx, o, cluster); err != nil {
		return r, err
	}
	r.Over = float64(r.Largest) / flightBound
	return r, served(ctx, cluster.Address())
}

// flood runs the clients that never read, half of them with large answers and half with small ones, and returns the most that was
// resident meanwhile.
func flood(ctx context.Context, o FlightOptions, cluster *localcluster.Cluster) (largest int64, _ error) {
	loading, cancel := context.WithTimeout(ctx, o.Load)
	defer cancel()
	var clients sync.WaitGroup
	defer clients.Wait()
	defer cancel()
	for i := range o.Mute {
		asks := muteOptions{groups: 2, tokens: 500}
		if i%2 == 1 {
			asks.tokens = 50
		}
		clients.Go(func() { mute(loading, cluster.Address(), asks) })
	}
	ticker := time.NewTicker(20 * time.Millisecond)
	defer ticker.Stop()
	for {
		select {
		case <-loading.Done():
			return largest, ctx.Err()
		case <-cluster.Done():
			return largest, errors.New("the coordinator has ended under the load")
		case <-ticker.C:
			now, err := resident(cluster.Process(-1))
			if err != nil {
				return largest, err
			}
			largest = max(largest, now)
		}
	}
}

// served goes through one session as an ordinary client does, again for as long as it is told to try again.
func served(ctx context.Context, address string) (err error) {
	c, err := client.Dial(address)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, c.Close()) }()
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	for {
		err := one(ctx, c, source(1), false, new(counts))
		if err == nil || !errors.Is(err, client.ErrTryAgain) {
			return err
		}
		select {
		case <-ctx.Done():
			return err
		case <-time.After(100 * time.Millisecond): // again later, as the error says
		}
	}
}
