// Package worker is the service that holds keys and values and attends over them: WorkerService of headwater.v1.
//
// A Run stream owns all that it makes the worker hold: shards, weights, and the queries in flight, each counted in the
// worker's memory budget before it is allocated, and given back when the stream ends. Loading is done in the order in which
// messages come. A complete shard does not change, so query and output blocks run beside the loading and beside each other:
// at most a few at a time for a stream, while it holds at most flightBytes of them, and on no more threads at once than the
// worker has, over all its streams. Where there is no room for a block, its stream is not read until there is, so that
// HTTP/2's flow control holds back the sender.
package worker

import (
	"context"
	"fmt"
	"log/slog"
	"regexp"
	"sync"

	"github.com/google/uuid"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"headwater/attention"
	"headwater/kvcache"
	headwaterv1 "headwater/proto/headwater/v1"
)

// Config says who a worker is and what it may use.
type Config struct {
	Name    string       // unique in the cluster; a DNS label of 1 to 63 characters
	Boot    uuid.UUID    // of this start of the process; not zero
	Version string       // of the program, for people
	Weight  int          // in plans, at least 1
	Budget  int64        // bytes for keys, values, weights and queries in flight, at least 1
	Threads int          // kernel threads over all streams, at least 1
	Logger  *slog.Logger // nil is silence
}

// Worker serves WorkerService.
type Worker struct {
	headwaterv1.UnimplementedWorkerServiceServer

	cfg     Config
	log     *slog.Logger
	budget  *kvcache.Budget
	threads *attention.Pool

	mu       sync.Mutex
	flight   flight        // blocks of all runs
	landed   chan struct{} // closed when a block has ended, and made anew
	running  int           // runs, and receivers of runs
	draining bool
	idle     chan struct{} // closed when draining and nothing runs
}

const (
	maxWeight  = 1 << 20
	maxThreads = 1 << 12
)

var dnsLabel = regexp.MustCompile(`^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$`)

// New checks the configuration and makes a worker of it. Close ends its threads.
func New(cfg Config) (*Worker, error) {
	switch {
	case !dnsLabel.MatchString(cfg.Name):
		return nil, fmt.Errorf("worker name %q: not a DNS label of 1 to 63 lower-case letters, digits and hyphens", cfg.Name)
	case cfg.Boot == uuid.Nil:
		return nil, fmt.Errorf("worker %s: the boot UUID is zero", cfg.Name)
	case cfg.Weight < 1 || cfg.Weight > maxWeight:
		return nil, fmt.Errorf("worker %s: weight %d is not in 1 to %d", cfg.Name, cfg.Weight, maxWeight)
	case cfg.Budget < 1:
		return nil, fmt.Errorf("worker %s: a memory budget of %d bytes is less than 1", cfg.Name, cfg.Budget)
	case cfg.Threads < 1 || cfg.Threads > maxThreads:
		return nil, fmt.Errorf("worker %s: %d threads are not in 1 to %d", cfg.Name, cfg.Threads, maxThreads)
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	return &Worker{
		cfg:     cfg,
		log:     cfg.Logger,
		budget:  kvcache.NewBudget(cfg.Budget),
		threads: attention.NewPool(cfg.Threads),
		landed:  make(chan struct{}),
		idle:    make(chan struct{}),
	}, nil
}

// Register adds the worker's service to a server.
func (w *Worker) Register(s grpc.ServiceRegistrar) {
	headwaterv1.RegisterWorkerServiceServer(s, w)
}

// Describe says who the worker is and what room it has.
func (w *Worker) Describe(context.Context, *headwaterv1.DescribeRequest) (*headwaterv1.DescribeResponse, error) {
	return &headwaterv1.DescribeResponse{
		Name:        w.cfg.Name,
		Boot:        w.cfg.Boot[:],
		Version:     w.cfg.Version,
		Weight:      uint32(w.cfg.Weight),
		BudgetBytes: uint64(w.budget.Total()),
		UsedBytes:   uint64(w.budget.Used()),
		Threads:     uint32(w.cfg.Threads),
		Kernel:      attention.KernelName(),
	}, nil
}

// Drain refuses new runs with UNAVAILABLE and waits until those that were accepted have ended and nothing of them is left.
// Where ctx ends first, it fails: what is left goes on until the server stops, and Drain may be called again.
func (w *Worker) Drain(ctx context.Context) error {
	w.mu.Lock()
	if !w.draining {
		w.draining = true
		if w.running == 0 {
			close(w.idle)
		}
	}
	w.mu.Unlock()
	select {
	case <-w.idle:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("drain worker %s: work is left: %w", w.cfg.Name, context.Cause(ctx))
	}
}

// Close ends the worker's threads, once all runs have ended. It is called when no run can begin any more.
func (w *Worker) Close() { w.threads.Close() }

// begin counts a run and its receiver, unless the worker drains.
func (w *Worker) begin() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.draining {
		return status.Errorf(codes.Unavailable, "worker %s is stopping and takes no new work", w.cfg.Name)
	}
	w.running += 2
	return nil
}

// end counts the end of a run or of its receiver.
func (w *Worker) end() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.running--
	if w.draining && w.running == 0 {
		close(w.idle)
	}
}
