// Package machine is what the two trades of a worker share: its memory, its kernel threads, and the count of what is at
// work. The store of sessions is part of the memory, because a job may take the room of what sessions can spare.
package machine

import (
	"context"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"headwater.example/attention"
	"headwater.example/internal/kvcache"
	"headwater.example/internal/observe"
	"headwater.example/internal/quota"
	"headwater.example/internal/rpc"
	"headwater.example/shard"
)

// MaxAnswerBytes bounds the raw bytes of an answer so that it fits a message with its coding and its other fields.
const MaxAnswerBytes = rpc.MaxAnswerBytes

// Config says what a machine has. Its numbers have been checked.
type Config struct {
	Name        string        // of the worker, for errors
	Budget      int64         // bytes for keys, values, weights and what is in flight
	Threads     int           // kernel threads
	SessionTTL  time.Duration // of sessions, see kvcache.StoreConfig
	MaxSessions int
	Now         func() time.Time // clock of sessions, nil is time.Now
	Conns       int              // connections, 0 is no bound
	PerAddress  int              // of these from one address, 0 is no bound
	Patience    time.Duration    // of what waits for room, see rpc.FlightConfig
	Logger      *slog.Logger     // nil is silence
	Observe     *observe.Worker  // nil counts nothing
	Tracer      *observe.Tracer  // nil traces nothing
}

// Machine is one worker's. Its methods may be called by any goroutine.
type Machine struct {
	Name    string
	Log     *slog.Logger
	Budget  *kvcache.Budget
	Store   *kvcache.Store // on the budget
	Quotas  *quota.Book    // of tenants
	Flight  *rpc.Flight    // messages; what they take beyond a part is of the budget
	Threads int
	Observe *observe.Worker // nil counts nothing
	Tracer  *observe.Tracer // nil traces nothing
	// Acquired is nil except in tests. It is called with the context of each kernel that has been given a thread.
	Acquired func(context.Context)

	threads  *attention.Pool
	stopping chan struct{} // closed when draining
	slower   sync.Once     // arithmetic in tiles was said to be

	bound atomic.Bool // whether Go's heap is bounded
	heap  struct {
		sync.Mutex
		limit int64 // that is set
	}

	mu       sync.Mutex
	running  int // goroutines of runs and lanes
	draining bool
	idle     chan struct{} // closed when draining and nothing runs
}

// New makes a machine. Close ends its threads.
func New(cfg Config) *Machine {
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	budget, quotas := kvcache.NewBudget(cfg.Budget), quota.NewBook(cfg.Now)
	m := &Machine{
		Name:     cfg.Name,
		Log:      cfg.Logger,
		Budget:   budget,
		Store:    kvcache.NewStore(kvcache.StoreConfig{Budget: budget, TTL: cfg.SessionTTL, MaxSessions: cfg.MaxSessions, Now: cfg.Now, Quotas: quotas}),
		Quotas:   quotas,
		Threads:  cfg.Threads,
		Observe:  cfg.Observe,
		Tracer:   cfg.Tracer,
		threads:  attention.NewPool(cfg.Threads),
		stopping: make(chan struct{}),
		idle:     make(chan struct{}),
	}
	budget.OnGrowth(m.boundHeap)
	m.Flight = rpc.NewFlight(rpc.FlightConfig{
		Limit:   max(cfg.Budget/flightPart, leastFlight),
		Free:    freeFlight,
		Reserve: m.reserve,
		Release: budget.Release,
		Streams: int(min(max(cfg.Budget/streamPart, leastStreams), mostStreams)),
		Conns:   cfg.Conns, PerAddress: cfg.PerAddress,
		Patience: cfg.Patience,
		Logger:   cfg.Logger,
	})
	return m
}

// What a worker has in flight.
const (
	// Of the budget, the part that messages may take in each direction, and the least of it: the answer of a step is there twice.
	flightPart  = 8
	leastFlight = 3 * rpc.MaxMessageBytes
	// freeFlight is what messages may take in each direction whatever else the budget is full of.
	freeFlight = 8 << 20
	// One open call for so many bytes of the budget, and bounds of their number.
	streamPart   = 256 << 10
	leastStreams = 512
	mostStreams  = 8192
)

// reserve takes n bytes of the budget, for which it drops what may be dropped.
func (m *Machine) reserve(n int64) error {
	err := m.Budget.Reserve(n)
	if err != nil && m.Store.Reclaim(n) {
		err = m.Budget.Reserve(n)
	}
	return err
}

// Use calls do with a thread for a kernel, once there is one. Tenants that want more threads than there are get them by turns.
func (m *Machine) Use(ctx context.Context, class attention.Class, turn attention.Turn, do func(*attention.Thread) error) error {
	t, err := m.threads.AcquireFor(ctx, class, turn)
	if err != nil {
		return err
	}
	defer t.Release() // also if do panics
	if m.Acquired != nil {
		m.Acquired(ctx)
	}
	return do(t)
}

// Begin counts n goroutines of a run or a lane, unless the worker drains.
func (m *Machine) Begin(n int) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.draining {
		return status.Error(codes.Unavailable, m.StoppingText())
	}
	m.running += n
	return nil
}

// Join counts one more goroutine of what has begun and not ended.
func (m *Machine) Join() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.running++
}

// End counts the end of one goroutine.
func (m *Machine) End() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.running--
	if m.draining && m.running == 0 {
		close(m.idle)
	}
}

// Stopping is closed when the worker drains.
func (m *Machine) Stopping() <-chan struct{} { return m.stopping }

// StoppingText says in a refusal that the worker drains.
func (m *Machine) StoppingText() string {
	return fmt.Sprintf("worker %s is stopping and takes no new work", m.Name)
}

// Expire drops the sessions whose time without use is over, and memory that no job has used since the tick before the last, at
// each tick, until ctx ends.
func (m *Machine) Expire(ctx context.Context, ticks <-chan time.Time) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticks:
			m.Budget.Age()
			if n := m.Store.Expire(); n > 0 {
				m.Log.Info("sessions expired", "sessions", n)
			}
		}
	}
}

// Take is told of layers that queries will attend. The log says once if some are in an arithmetic that is slower here than elsewhere.
func (m *Machine) Take(layers ...shard.LayerSpec) {
	for i := range layers {
		if layers[i].Arithmetic() != attention.Chain && !attention.HasMatrixUnit() {
			m.slower.Do(func() {
				m.Log.Warn("arithmetic in tiles is slower on this worker: its kernel has no matrix unit", "kernel", attention.KernelName())
			})
			return
		}
	}
}

// Drain lets Begin refuse, and waits until all that has begun has ended. If ctx ends first, Drain fails and may be called
// again; what is left goes on.
func (m *Machine) Drain(ctx context.Context) error {
	m.mu.Lock()
	if !m.draining {
		m.draining = true
		close(m.stopping)
		if m.running == 0 {
			close(m.idle)
		}
	}
	m.mu.Unlock()
	select {
	case <-m.idle:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("drain worker %s: work is left: %w", m.Name, context.Cause(ctx))
	}
}

// Close drops all sessions and ends the threads. It is called once all runs and lanes have ended and none can begin.
func (m *Machine) Close() {
	m.Store.Close()
	m.Budget.Trim()
	m.threads.Close()
}

// Nanos returns the nanoseconds from one time to another, for the times that answers tell.
func Nanos(from, to time.Time) uint64 { return uint64(max(to.Sub(from), 0)) }
