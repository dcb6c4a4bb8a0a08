// Package worker is the service that holds keys and values and attends over them: WorkerService and SessionService of
// headwater.v1.
//
// A Run stream owns all that it makes the worker hold: shards, weights, and the queries in flight, each counted in the
// worker's memory budget before it is allocated, and given back when the stream ends. Loading is done in the order in which
// messages come. A complete shard does not change, so query and output blocks run beside the loading and beside each other:
// at most a few at a time for a stream, while it holds at most flightBytes of them, and on no more threads at once than the
// worker has, over all its streams. Where there is no room for a block, its stream is not read until there is, so that
// HTTP/2's flow control holds back the sender.
//
// Sessions outlive the calls that use them; a kvcache.Store has them, on the same budget. The way of a step (lane.go,
// step.go): a goroutine of its lane receives it, leaves the receiving to the next one, waits for the steps of the session
// that came before, lets the store check and append, takes a kernel thread, attends group by group over a view that no
// append changes, and sends the answer. What must wait does so in its lane: for its session, for a thread, for a client that
// does not read. Threads are shared with jobs by turns, and a query of many tokens gives way in its middle to those of few,
// so that the others' tokens go on while a prompt is read.
package worker

import (
	"cmp"
	"context"
	"fmt"
	"log/slog"
	"regexp"
	"sync"
	"time"

	"github.com/google/uuid"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"headwater.example/attention"
	"headwater.example/internal/kvcache"
	"headwater.example/internal/session"
	headwaterv1 "headwater.example/proto/headwater/v1"
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

	// SessionTTL is how long a session may go unused before it may be dropped, and the most that one may ask for; 0 is
	// DefaultSessionTTL. MaxSessions bounds the sessions held; 0 is DefaultMaxSessions.
	SessionTTL  time.Duration
	MaxSessions int
	// Now is the clock of sessions; nil is time.Now.
	Now func() time.Time
}

// What the configuration has for 0.
const (
	DefaultSessionTTL  = time.Hour
	DefaultMaxSessions = 1 << 16
)

// Worker serves WorkerService and SessionService.
type Worker struct {
	headwaterv1.UnimplementedWorkerServiceServer

	cfg      Config
	log      *slog.Logger
	budget   *kvcache.Budget
	threads  *attention.Pool
	sessions *sessions
	stopping chan struct{} // closed when draining
	// acquired, nil but in tests, is called with the context of each kernel that has been given a thread.
	acquired func(context.Context)

	mu       sync.Mutex
	flight   flight        // blocks of all runs
	landed   chan struct{} // closed when a block has ended, and made anew
	running  int           // runs and lanes, and the goroutines that receive for them
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
	case cfg.SessionTTL < 0:
		return nil, fmt.Errorf("worker %s: a session TTL of %v is less than 0", cfg.Name, cfg.SessionTTL)
	case cfg.MaxSessions < 0:
		return nil, fmt.Errorf("worker %s: at most %d sessions are fewer than 0", cfg.Name, cfg.MaxSessions)
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	w := &Worker{
		cfg:      cfg,
		log:      cfg.Logger,
		budget:   kvcache.NewBudget(cfg.Budget),
		threads:  attention.NewPool(cfg.Threads),
		stopping: make(chan struct{}),
		landed:   make(chan struct{}),
		idle:     make(chan struct{}),
	}
	w.sessions = &sessions{w: w, store: kvcache.NewStore(kvcache.StoreConfig{
		Budget:      w.budget,
		TTL:         cmp.Or(cfg.SessionTTL, DefaultSessionTTL),
		MaxSessions: cmp.Or(cfg.MaxSessions, DefaultMaxSessions),
		Now:         cfg.Now,
	})}
	return w, nil
}

// Register adds the worker's services to a server, which is made with rpc.ServerOptions.
func (w *Worker) Register(s grpc.ServiceRegistrar) {
	headwaterv1.RegisterWorkerServiceServer(s, w)
	session.Register(s, w.sessions)
}

// Describe says who the worker is and what room it has.
func (w *Worker) Describe(context.Context, *headwaterv1.DescribeRequest) (*headwaterv1.DescribeResponse, error) {
	cache, kept := w.sessions.store.Cache(), w.budget.Kept()
	return &headwaterv1.DescribeResponse{
		Name:        w.cfg.Name,
		Boot:        w.cfg.Boot[:],
		Version:     w.cfg.Version,
		Weight:      uint32(w.cfg.Weight),
		BudgetBytes: uint64(w.budget.Total()),
		UsedBytes:   uint64(w.budget.Used() + kept),
		Threads:     uint32(w.cfg.Threads),
		Kernel:      attention.KernelName(),
		SpareBytes:  uint64(cache.FreeBytes + cache.PrefixBytes + kept),
	}, nil
}

// Drain refuses new runs, lanes and sessions as unavailable, ends lanes once the steps that they accepted are answered, and
// waits until what was accepted has ended and nothing of it is left but sessions.
// Where ctx ends first, it fails: what is left goes on until the server stops, and Drain may be called again.
func (w *Worker) Drain(ctx context.Context) error {
	w.mu.Lock()
	if !w.draining {
		w.draining = true
		close(w.stopping)
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

// Close drops all sessions and ends the worker's threads, once all runs and lanes have ended. It is called when none can
// begin any more.
func (w *Worker) Close() {
	w.sessions.store.Close()
	w.budget.Trim()
	w.threads.Close()
}

// thread waits for a thread for a kernel, which releases it.
func (w *Worker) thread(ctx context.Context, class attention.Class) (*attention.Thread, error) {
	t, err := w.threads.Acquire(ctx, class)
	if err == nil && w.acquired != nil {
		w.acquired(ctx)
	}
	return t, err
}

// begin counts n goroutines of a run or a lane, unless the worker drains.
func (w *Worker) begin(n int) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.draining {
		return status.Errorf(codes.Unavailable, "worker %s is stopping and takes no new work", w.cfg.Name)
	}
	w.running += n
	return nil
}

// join counts one more goroutine of what has begun and not ended.
func (w *Worker) join() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.running++
}

// end counts the end of one.
func (w *Worker) end() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.running--
	if w.draining && w.running == 0 {
		close(w.idle)
	}
}
