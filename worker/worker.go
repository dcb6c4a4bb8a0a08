// Package worker is the service that holds keys and values and attends over them: WorkerService and SessionService of
// headwater.v1.
//
// Its two trades are packages of their own. worker/jobs serves Run: what a job makes the worker hold lives as long as its
// stream. worker/sessions serves sessions, which outlive the calls that use them. Both reserve what they hold from one memory
// budget before it is allocated, and share the kernel threads by turns: a query of many tokens gives way in its middle to
// those of few, so that others' tokens go on while a prompt is read (worker/internal/machine).
package worker

import (
	"cmp"
	"context"
	"fmt"
	"log/slog"
	"net"
	"regexp"
	"sync/atomic"
	"time"

	"github.com/google/uuid"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"

	"headwater.example/attention"
	"headwater.example/internal/membership"
	"headwater.example/internal/observe"
	"headwater.example/internal/processor"
	"headwater.example/internal/rpc"
	"headwater.example/internal/session"
	headwaterv1 "headwater.example/proto/headwater/v1"
	"headwater.example/worker/internal/machine"
	"headwater.example/worker/jobs"
	"headwater.example/worker/sessions"
)

// Config is a worker's identity and the resources that it may use.
type Config struct {
	Name    string    // unique in the cluster; a DNS label of 1 to 63 characters
	Boot    uuid.UUID // of this start of the process; not zero
	Version string    // of the program, for people
	Weight  int       // in plans, at least 1
	// WeightGiven keeps coordinators from giving it less because it is slower than others.
	WeightGiven bool
	Zone        string       // what fails with it, as a rack or a data center: letters, digits, '.', '_' and '-', at most 63; empty is not known
	Budget      int64        // bytes for keys, values, weights and queries in flight, at least 1
	Threads     int          // kernel threads over all streams, at least 1
	Logger      *slog.Logger // nil is silence

	// SessionTTL is how long a session may go unused before it may be dropped, and the most that one may ask for; 0 is
	// DefaultSessionTTL. MaxSessions bounds the sessions held; 0 is DefaultMaxSessions.
	SessionTTL  time.Duration
	MaxSessions int
	// Security is how clients and coordinators are spoken to; nil is plain text within this machine.
	Security *rpc.Security
	// Conns bounds the connections; beyond it, the one that has been unused the longest is closed. 0 is no bound.
	Conns int
	// PerAddress bounds those from one address; beyond it, a new one is closed. 0 is no bound.
	PerAddress int
	// Observe is what counts; nil counts nothing. It is this worker's alone.
	Observe *observe.Worker
	// Tracer makes the spans of steps; nil makes none.
	Tracer *observe.Tracer
	// Bus is the bytes a second at which the threads read memory, as measured; 0 if it was not.
	Bus float64
	// Members returns who is in the cluster, as far as the worker knows; nil is that it knows nobody. Who asks the worker for a session's
	// holders is told where the others are.
	Members func() []membership.Member
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
	machine  *machine.Machine
	jobs     *jobs.Service
	sessions *sessions.Service
	peers    *rpc.Conns  // to other workers, from which copies are fetched
	draining atomic.Bool // as Describe says to coordinators, and leaving as well
	leaving  atomic.Bool
}

const (
	maxThreads = 1 << 12
)

var (
	dnsLabel = regexp.MustCompile(`^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$`)
	zone     = regexp.MustCompile(`^[-._A-Za-z0-9]{0,63}$`) // as a label of Kubernetes
)

// New checks the configuration and makes a worker of it. Close ends its threads.
func New(cfg Config) (*Worker, error) {
	switch {
	case !dnsLabel.MatchString(cfg.Name):
		return nil, fmt.Errorf("worker name %q: not a DNS label of 1 to 63 lower-case letters, digits and hyphens", cfg.Name)
	case cfg.Boot == uuid.Nil:
		return nil, fmt.Errorf("worker %s: the boot UUID is zero", cfg.Name)
	case cfg.Weight < 1 || cfg.Weight > membership.MaxWeight:
		return nil, fmt.Errorf("worker %s: weight %d is not in 1 to %d", cfg.Name, cfg.Weight, membership.MaxWeight)
	case !zone.MatchString(cfg.Zone):
		return nil, fmt.Errorf("worker %s: zone %.80q is not of at most 63 letters, digits, '.', '_' and '-'", cfg.Name, cfg.Zone)
	case cfg.Budget < 1:
		return nil, fmt.Errorf("worker %s: a memory budget of %d bytes is less than 1", cfg.Name, cfg.Budget)
	case cfg.Threads < 1 || cfg.Threads > maxThreads:
		return nil, fmt.Errorf("worker %s: %d threads are not in 1 to %d", cfg.Name, cfg.Threads, maxThreads)
	case cfg.SessionTTL < 0:
		return nil, fmt.Errorf("worker %s: a session TTL of %v is less than 0", cfg.Name, cfg.SessionTTL)
	case cfg.MaxSessions < 0:
		return nil, fmt.Errorf("worker %s: the largest number of sessions is %d, less than 0", cfg.Name, cfg.MaxSessions)
	}
	m := machine.New(machine.Config{
		Name:        cfg.Name,
		Budget:      cfg.Budget,
		Threads:     cfg.Threads,
		SessionTTL:  cmp.Or(cfg.SessionTTL, DefaultSessionTTL),
		MaxSessions: cmp.Or(cfg.MaxSessions, DefaultMaxSessions),
		Now:         cfg.Now,
		Conns:       cfg.Conns,
		PerAddress:  cfg.PerAddress,
		Logger:      cfg.Logger,
		Observe:     cfg.Observe,
		Tracer:      cfg.Tracer,
	})
	peers := rpc.NewConns(cfg.Security, rpc.BulkDialOptions()...)
	w := &Worker{
		cfg:      cfg,
		machine:  m,
		jobs:     jobs.New(m),
		sessions: sessions.New(m, cfg.Boot, cfg.Members, peers),
		peers:    peers,
	}
	w.observe()
	return w, nil
}

// ServerOptions returns what a server is made with that counts the worker's messages in flight. The worker is registered with the
// server's rpc.Registrar.
func (w *Worker) ServerOptions(options ...rpc.ServerOption) []grpc.ServerOption {
	return w.machine.Flight.ServerOptions(append(options, rpc.Secure(w.cfg.Security))...)
}

// Register adds the worker's services to a server, which is made with ServerOptions; or with rpc.ServerOptions, and then counts
// no messages.
func (w *Worker) Register(s grpc.ServiceRegistrar) {
	headwaterv1.RegisterWorkerServiceServer(s, w)
	session.Register(s, w.sessions)
	headwaterv1.RegisterFillServiceServer(s, sessions.Fills{Service: w.sessions})
}

// ListenLocal listens for plain lanes of this user's processes on this machine.
func (w *Worker) ListenLocal(ctx context.Context) (net.Listener, error) {
	return session.ListenLocal(ctx, w.cfg.Boot)
}

// ServeLanes serves plain lanes within TLS, which rpc.ServeLanes hands over, until ctx ends, when it closes the listener, and returns when
// all of them have ended.
func (w *Worker) ServeLanes(ctx context.Context, lanes *rpc.Lanes) error {
	return session.ServePlain(ctx, lanes, w.machine.Flight, w.machine.Log, w.sessions.Lane)
}

// ServePlain serves plain lanes of this user's processes until ctx ends, when it closes the listener, and returns when all of them have ended.
func (w *Worker) ServePlain(ctx context.Context, listener net.Listener) error {
	return session.ServePlain(rpc.As(ctx, rpc.Anyone), listener, w.machine.Flight, w.machine.Log, w.sessions.Lane)
}

// SetDraining sets whether coordinators are to move away what the worker holds, and to give it nothing more.
func (w *Worker) SetDraining(_ context.Context, m *headwaterv1.SetDrainingRequest) (*headwaterv1.SetDrainingResponse, error) {
	w.leaving.Store(m.GetDraining() && m.GetLeaving())
	if w.draining.Swap(m.GetDraining()) != m.GetDraining() {
		text := "it is drained: its sessions move away"
		if !m.GetDraining() {
			text = "it is drained no longer"
		}
		w.machine.Log.Info(text)
	}
	return &headwaterv1.SetDrainingResponse{}, nil
}

// Describe returns the worker's identity and memory.
func (w *Worker) Describe(context.Context, *headwaterv1.DescribeRequest) (*headwaterv1.DescribeResponse, error) {
	d := w.describe()
	d.Load = w.load()
	return d, nil
}

func (w *Worker) describe() *headwaterv1.DescribeResponse {
	m := w.machine
	cache, kept := m.Store.Cache(), m.Budget.Kept()
	return &headwaterv1.DescribeResponse{
		Name:        w.cfg.Name,
		Boot:        w.cfg.Boot[:],
		Version:     w.cfg.Version,
		Weight:      uint32(w.cfg.Weight),
		WeightGiven: w.cfg.WeightGiven,
		Zone:        w.cfg.Zone,
		BudgetBytes: uint64(m.Budget.Total()),
		UsedBytes:   uint64(m.Budget.Used() + kept),
		Threads:     uint32(w.cfg.Threads),
		Kernel:      attention.KernelName(),
		SpareBytes:  uint64(cache.FreeBytes + cache.PrefixBytes + kept),
		Draining:    w.draining.Load(),
		Processor:   processor.Name(),
		// For people, as the kernel's name is.
		ProcessorFeatures: processor.Names(),
		Leaving:           w.leaving.Load(),
		MatrixUnit:        proto.Bool(attention.HasMatrixUnit()),
	}
}

// Sessions returns how many sessions the worker holds.
func (w *Worker) Sessions() int { return w.machine.Store.Cache().Sessions }

// Run serves one job's share.
func (w *Worker) Run(stream grpc.BidiStreamingServer[headwaterv1.RunRequest, headwaterv1.RunResponse]) error {
	return w.jobs.Run(stream)
}

// WatchAttention sends where the queries of a session look.
func (w *Worker) WatchAttention(m *headwaterv1.WatchAttentionRequest, stream grpc.ServerStreamingServer[headwaterv1.WatchAttentionResponse]) error {
	return w.sessions.WatchAttention(m, stream)
}

// Expire drops the sessions whose time without use is over, and memory that no job has used since the tick before the last, at
// each tick, until ctx ends.
func (w *Worker) Expire(ctx context.Context, ticks <-chan time.Time) { w.machine.Expire(ctx, ticks) }

// Tend keeps the process within its memory at each tick, a second or so apart, until ctx ends: it bounds Go's heap by what the
// budget leaves, and gives back what messages have taken. A program that has one worker calls it.
func (w *Worker) Tend(ctx context.Context, ticks <-chan time.Time) { w.machine.Tend(ctx, ticks) }

// Drain refuses new runs, lanes and sessions as unavailable, ends lanes once the steps that they accepted are answered,
// and waits until what was accepted has ended and nothing of it is left but sessions. If ctx ends first, it fails:
// remaining calls go on until the server stops, and Drain may be called again.
func (w *Worker) Drain(ctx context.Context) error { return w.machine.Drain(ctx) }

// Close drops all sessions and ends the worker's threads. It is called once all runs and lanes have ended and none can begin.
func (w *Worker) Close() {
	_ = w.peers.Close() // they are closed either way
	w.machine.Close()
}
