package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	"headwater.example/client"
	"headwater.example/internal/localcluster"
)

// peers is how many connections of each kind a process has when it is asked to stop.
const peers = 100

// stopSeconds measures how long a coordinator and a worker take to stop, both asked at once.
func stopSeconds(ctx context.Context, bin string) (_ float64, err error) {
	unbound := []string{"--address-conns", "0"} // all connections come from one address
	cluster, err := localcluster.Start(ctx, localcluster.Options{
		Workers: 1, Memory: 1 << 30, Command: []string{filepath.Join(bin, "coord")}, CoordinatorArgs: unbound, WorkerArgs: unbound,
	})
	if err != nil {
		return 0, err
	}
	defer func() {
		ending, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Minute)
		defer cancel()
		if stopped := cluster.Stop(ending); err == nil {
			err = stopped
		}
	}()
	worker, err := workerAddress(ctx, cluster.Address())
	if err != nil {
		return 0, err
	}
	for _, address := range []string{cluster.Address(), worker} {
		for range peers {
			conn, err := net.Dial("tcp", address)
			if err != nil {
				return 0, err
			}
			defer conn.Close()
		}
	}
	stepping, cancel := context.WithCancel(ctx)
	var steppers sync.WaitGroup
	defer steppers.Wait()
	defer cancel()
	ready := make(chan error, 2*peers)
	for i := range 2 * peers {
		steppers.Go(func() { step(stepping, cluster.Address(), i%2 == 0, ready) })
	}
	for range 2 * peers {
		if err := <-ready; err != nil {
			return 0, fmt.Errorf("step: %w", err)
		}
	}
	processes := []int{cluster.Process(-1), cluster.Process(0)}
	began := time.Now()
	for _, id := range processes {
		if err := syscall.Kill(id, syscall.SIGTERM); err != nil {
			return 0, err
		}
	}
	ended := []<-chan struct{}{cluster.Done(), cluster.WorkerDone(0)}
	for i, done := range ended {
		select {
		case <-done:
			fmt.Fprintf(os.Stderr, "process %d of %d ended after %.2f s\n", i+1, len(ended), time.Since(began).Seconds())
		case <-ctx.Done():
			return 0, ctx.Err()
		}
	}
	return time.Since(began).Seconds(), nil
}

// workerAddress is the address of a cluster's only worker.
func workerAddress(ctx context.Context, coordinator string) (string, error) {
	c, err := client.Dial(coordinator)
	if err != nil {
		return "", err
	}
	status, err := c.Status(ctx)
	if err == nil && len(status.Workers) != 1 {
		err = fmt.Errorf("%d workers are seen", len(status.Workers))
	}
	if err = errors.Join(err, c.Close()); err != nil {
		return "", err
	}
	return status.Workers[0].Address, nil
}

// step steps a session over a connection of its own until that fails, and tells of its first step.
func step(ctx context.Context, coordinator string, direct bool, ready chan<- error) {
	told := false
	tell := func(err error) {
		if !told {
			told = true
			ready <- err
		}
	}
	c, err := client.Dial(coordinator)
	if err != nil {
		tell(err)
		return
	}
	defer c.Close()
	s, err := c.OpenSession(ctx, client.SessionOptions{Layers: []client.Layer{{Heads: 4, KVHeads: 2, HeadDim: 64}}, Direct: direct})
	if err != nil {
		tell(err)
		return
	}
	q, kv := make([]float32, 4*64), make([]float32, 2*64)
	contexts, lse := make([]float32, 4*64), make([]float32, 4)
	for {
		err := s.Step(ctx, 0, q, kv, kv, contexts, lse)
		tell(err)
		if err != nil {
			return
		}
	}
}
