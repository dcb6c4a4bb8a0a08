// Package localcluster runs a coordinator and some workers as processes on this machine, for as long as they are wanted:
// for one job, until Ctrl-C, or in tests, which can kill them.
//
// The processes are the program itself, by its commands "serve" and "worker serve". They listen on free ports of the
// loopback interface, and tell theirs as one line of JSON on an inherited pipe. Start returns when the coordinator sees
// every worker answer. None outlives its parent, even one that is killed: the kernel then kills them (on Linux).
package localcluster

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"sync"
	"time"

	"headwater.example/client"
)

// Options say what to start. Zero values are the defaults.
type Options struct {
	Workers         int       // at least 1
	Memory          int64     // budget of each worker in bytes; 0: the worker's default
	Threads         int       // kernel threads of each worker; 0: the worker's default
	Replicas        int       // workers beside its owner that have a copy of each shard of a session: on one machine they only cost memory
	Command         []string  // the program coord; default: the running executable
	CoordinatorArgs []string  // more flags of "serve"
	WorkerArgs      []string  // more flags of "worker serve"
	TLS             string    // folder of an authority that has issued coordinator "local", worker "*" and client "local" into it; "" is plain text
	DataDir         string    // the coordinator's; default: a temporary folder, removed by Stop, or by the next Start should this process be killed
	Log             io.Writer // where the processes' stderr goes, from several goroutines unless it is an *os.File; nil: nowhere
}

// Cluster is a running cluster. Its methods are for one goroutine at a time.
type Cluster struct {
	opts        Options
	spawn       *spawner
	temporary   *folder // data folder to remove; nil when it is the caller's
	coordinator *process
	second      *process // another coordinator, nil if there is none
	workers     []*process
	address     string // the coordinator's gRPC and gossip addresses, kept over its restarts
	gossip      string

	started sync.Mutex // guards all
	all     []*process // every process that was started
}

// pollEvery is how often Start looks whether the workers have been found: nothing tells.
const pollEvery = 20 * time.Millisecond

// Start starts a cluster and waits until it can work. The context bounds the start alone; Stop ends the cluster.
func Start(ctx context.Context, opts Options) (_ *Cluster, err error) {
	if opts.Workers < 1 {
		return nil, fmt.Errorf("start a local cluster: %d workers, must be at least 1", opts.Workers)
	}
	if len(opts.Command) == 0 {
		self, err := os.Executable()
		if err != nil {
			return nil, fmt.Errorf("start a local cluster: find the own executable: %w", err)
		}
		opts.Command = []string{self}
	}
	c := &Cluster{opts: opts, address: "127.0.0.1:0", gossip: "127.0.0.1:0"}
	if c.opts.DataDir == "" {
		if c.temporary, err = newFolder(); err != nil {
			return nil, fmt.Errorf("start a local cluster: %w", err)
		}
		c.opts.DataDir = c.temporary.path
	}
	c.register()
	c.spawn = newSpawner()
	defer func() {
		if err != nil {
			c.killAll()
			err = errors.Join(fmt.Errorf("start a local cluster: %w", err), c.release())
		}
	}()
	if err := c.startCoordinator(ctx); err != nil {
		return nil, err
	}
	for range opts.Workers {
		if err := c.startWorker(); err != nil {
			return nil, err
		}
	}
	for _, w := range c.workers {
		if err := w.awaitReady(ctx); err != nil {
			return nil, err
		}
	}
	return c, c.AwaitWorkers(ctx)
}

// Address is the coordinator's host:port.
func (c *Cluster) Address() string { return c.address }

// Workers is the number of workers that were started.
func (c *Cluster) Workers() int { return len(c.workers) }

// Name is the name of a worker, from 0: w1 is the first.
func (c *Cluster) Name(worker int) string { return c.workers[worker].name }

// at is a worker's process, the coordinator's for -1, the second coordinator's for -2.
func (c *Cluster) at(worker int) *process {
	switch worker {
	case -1:
		return c.coordinator
	case -2:
		return c.second
	}
	return c.workers[worker]
}

// Admin is the host:port of a worker's admin port, that of the coordinator's for -1; empty where it was started without one.
func (c *Cluster) Admin(worker int) string { return c.at(worker).ready.Admin }

// Health is the host:port of a worker's port for health checks, that of the coordinator's for -1; empty where it was started without
// one.
func (c *Cluster) Health(worker int) string { return c.at(worker).ready.Health }

// Addresses are the host:port of a worker's gRPC service and of its gossip; those of the coordinator for -1, of the second one for -2.
func (c *Cluster) Addresses(worker int) (service, gossip string) {
	p := c.at(worker)
	return p.ready.Address, p.ready.Gossip
}

// Process is the id of a worker's process; that of the coordinator's for -1, of the second one's for -2.
func (c *Cluster) Process(worker int) int { return c.at(worker).cmd.Process.Pid }

// Done is closed when the coordinator's process ends.
func (c *Cluster) Done() <-chan struct{} { return c.coordinator.done }

// WorkerDone is closed when a worker's process ends, that of the coordinator for -1, of the second one for -2.
func (c *Cluster) WorkerDone(worker int) <-chan struct{} { return c.at(worker).done }

// Kill ends a worker as kill -9 does, the coordinator for -1, the second one for -2, and waits for its process.
func (c *Cluster) Kill(worker int) { c.at(worker).kill() }

// KillCoordinator ends the coordinator as kill -9 does, and waits for its process.
func (c *Cluster) KillCoordinator() { c.coordinator.kill() }

// RestartCoordinator starts a coordinator that was killed again, on its old ports and data.
func (c *Cluster) RestartCoordinator(ctx context.Context) error {
	if err := c.startCoordinator(ctx); err != nil {
		return fmt.Errorf("restart the coordinator: %w", err)
	}
	return nil
}

func (c *Cluster) startCoordinator(ctx context.Context) error {
	p, err := c.serve("local", c.address, c.gossip, c.opts.DataDir)
	if err != nil {
		return err
	}
	c.coordinator = p
	if err := p.awaitReady(ctx); err != nil {
		return err
	}
	c.address, c.gossip = p.ready.Address, p.ready.Gossip
	return nil
}

// serve starts a coordinator, which joins all that run.
func (c *Cluster) serve(name, address, gossip, dataDir string) (*process, error) {
	args := []string{"serve", "--name", name, "--listen", address, "--gossip", gossip, "--data-dir", dataDir, "--replicas", strconv.Itoa(c.opts.Replicas)}
	for _, p := range append(slices.Clone(c.workers), c.coordinator, c.second) {
		if p != nil && p.name != name && p.running() {
			args = append(args, "--join", p.ready.Gossip)
		}
	}
	return c.start(name, append(append(args, c.secured("coordinator-local")...), c.opts.CoordinatorArgs...))
}

// secondName is the name of the second coordinator, and of its folder within the first one's.
const secondName = "second"

// StartSecond starts a second coordinator of the same workers, with data of its own, or starts it again, on its old ports, if it was
// killed. It waits until that one sees every worker that runs answer. There is no certificate for it: the cluster is in plain text.
func (c *Cluster) StartSecond(ctx context.Context) error {
	address, gossip := "127.0.0.1:0", "127.0.0.1:0"
	if c.second != nil {
		address, gossip = c.second.ready.Address, c.second.ready.Gossip
	}
	p, err := c.serve(secondName, address, gossip, filepath.Join(c.opts.DataDir, secondName))
	if err == nil {
		c.second = p
		err = p.awaitReady(ctx)
	}
	if err == nil {
		err = c.awaitWorkers(ctx, p.ready.Address)
	}
	if err != nil {
		return fmt.Errorf("start a second coordinator: %w", err)
	}
	return nil
}

// RestartWorker starts a worker that was killed again, with its name and on its old ports, and waits until it serves.
func (c *Cluster) RestartWorker(ctx context.Context, worker int) error {
	before := c.workers[worker]
	p, err := c.launchWorker(before.name, before.ready.Address, before.ready.Gossip)
	if err == nil {
		c.workers[worker] = p
		err = p.awaitReady(ctx)
	}
	if err != nil {
		return fmt.Errorf("restart worker %s: %w", before.name, err)
	}
	return nil
}

func (c *Cluster) startWorker() error {
	p, err := c.launchWorker("w"+strconv.Itoa(len(c.workers)+1), "127.0.0.1:0", "127.0.0.1:0")
	if err != nil {
		return err
	}
	c.workers = append(c.workers, p)
	return nil
}

func (c *Cluster) launchWorker(name, address, gossip string) (*process, error) {
	args := []string{"worker", "serve", "--name", name, "--listen", address, "--gossip", gossip, "--join", c.gossip}
	if c.second != nil {
		args = append(args, "--join", c.second.ready.Gossip)
	}
	if c.opts.Memory > 0 {
		args = append(args, "--memory", strconv.FormatInt(c.opts.Memory, 10))
	}
	if c.opts.Threads > 0 {
		args = append(args, "--threads", strconv.Itoa(c.opts.Threads))
	}
	return c.start(name, append(append(args, c.secured("worker-any")...), c.opts.WorkerArgs...))
}

// secured are the flags that name a folder of certificates.
func (c *Cluster) secured(folder string) []string {
	if c.opts.TLS == "" {
		return nil
	}
	return []string{"--tls-dir", filepath.Join(c.opts.TLS, folder)}
}

// Dial prepares a connection to the coordinator.
func (c *Cluster) Dial() (*client.Client, error) { return c.dial(c.address) }

func (c *Cluster) dial(address string) (*client.Client, error) {
	var o client.DialOptions
	if c.opts.TLS != "" {
		o.TLSDir = filepath.Join(c.opts.TLS, "client-local")
	}
	return client.DialWith(address, o)
}

// AwaitWorkers waits until the coordinators that run see every worker that runs answer.
func (c *Cluster) AwaitWorkers(ctx context.Context) error {
	if err := c.awaitWorkers(ctx, c.address); err != nil {
		return err
	}
	if c.second == nil || !c.second.running() {
		return nil
	}
	return c.awaitWorkers(ctx, c.second.ready.Address)
}

// awaitWorkers waits until a coordinator sees every worker that runs answer.
func (c *Cluster) awaitWorkers(ctx context.Context, address string) error {
	conn, err := c.dial(address)
	if err != nil {
		return err
	}
	defer conn.Close()
	tick := time.NewTicker(pollEvery)
	defer tick.Stop()
	for {
		status, err := conn.Status(ctx)
		if err != nil {
			return err
		}
		answers := make(map[string]bool)
		for _, w := range status.Workers {
			answers[w.Name] = w.Error == ""
		}
		missing := ""
		for _, w := range c.workers {
			if w.running() && !answers[w.name] {
				missing = w.name
			}
		}
		if missing == "" {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("worker %s was not found: %w", missing, context.Cause(ctx))
		case <-tick.C:
		}
	}
}

// Stop ends the cluster gracefully, the coordinator first. What has not ended with ctx is killed. It reports processes that
// ended with an error, those apart that were killed.
func (c *Cluster) Stop(ctx context.Context) error {
	errs := []error{c.coordinator.stop(ctx)}
	if c.second != nil {
		errs = append(errs, c.second.stop(ctx))
	}
	for _, w := range c.workers {
		w.terminate()
	}
	for _, w := range c.workers {
		errs = append(errs, w.stop(ctx))
	}
	return errors.Join(append(errs, c.release())...)
}

func (c *Cluster) killAll() {
	if c.coordinator != nil {
		c.coordinator.kill()
	}
	if c.second != nil {
		c.second.kill()
	}
	for _, w := range c.workers {
		w.kill()
	}
}

// release gives back what is left once no process runs.
func (c *Cluster) release() error {
	c.unregister()
	c.spawn.close()
	if c.temporary == nil {
		return nil
	}
	return c.temporary.remove()
}
