// Package coordinator is the service that clients speak to. It has two trades that know nothing of each other: it runs jobs
// on the workers (package jobs), and it serves sessions as if it held them whole (package sessions). Each tells its own way.
// This package makes both of one configuration and gives them to one server.
package coordinator

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"regexp"
	"sync"
	"time"

	"google.golang.org/grpc"

	"headwater.example/coordinator/jobs"
	"headwater.example/coordinator/peers"
	"headwater.example/coordinator/sessions"
	"headwater.example/internal/membership"
	"headwater.example/internal/observe"
	"headwater.example/internal/quotaproto"
	"headwater.example/internal/rpc"
	"headwater.example/internal/session"
	headwaterv1 "headwater.example/proto/headwater/v1"
)

// Defaults of Config.
const (
	DefaultWorkerWait = jobs.DefaultWorkerWait
	DefaultDeadline   = jobs.DefaultDeadline
	DefaultKeepJobs   = jobs.DefaultKeepJobs
	DefaultKeepFor    = jobs.DefaultKeepFor
	DefaultKeepBytes  = jobs.DefaultKeepBytes
)

// CrashLog is the file in the data folder that tells a crash from a kill: once the coordinator is open, the program gives it to
// the Go runtime (debug.SetCrashOutput), which writes there why it ends the process.
const CrashLog = jobs.CrashLog

// Config is what a coordinator is made with. Zero values are the defaults.
type Config struct {
	Name    string // unique among coordinators; a DNS label
	Version string // of the program, for people to read
	DataDir string // where jobs are kept; made if it is not there
	View    membership.View
	Logger  *slog.Logger

	WorkerWait time.Duration // how long a job waits for a first worker that answers
	Deadline   time.Duration // longest time that a job may run
	BlockBytes int           // size to which keys, values and hidden states are cut; results do not depend on it

	// Ended jobs are kept, with their results, as long as they are among the newest KeepJobs, ended at most KeepFor ago, and
	// the results up to theirs have at most KeepBytes, the newest apart.
	KeepJobs  int
	KeepFor   time.Duration
	KeepBytes int64

	// UploadStall ends a submission that brings less than 64 KiB in that time; RoomPause is how long jobs wait before a disk
	// that was full is tried again. Zero values are a minute and 10 seconds.
	UploadStall, RoomPause time.Duration

	// AwaitFor is how long a session that is not found may be that of a worker which was known before the coordinator's start and
	// has not joined yet; 0 is a minute.
	AwaitFor time.Duration

	Security *rpc.Security // how clients and workers are spoken to; nil is plain text within this machine

	Conns      int   // most connections of clients at once; 0 is no bound
	PerAddress int   // most of these from one address; 0 is no bound
	Flight     int64 // most bytes of messages in flight in each direction; 0 is 256 MiB

	// Replicas is the number of copies of each shard, beside the owner's, of a session that does not set its own, if there are so
	// many workers.
	Replicas int
	// CopyRate bounds the bytes a second of copies that are made in the background; 0 is no bound.
	CopyRate int64
	// HedgeShare is the most of all attends of sessions with copies that are asked of another holder as well; 0 is none.
	HedgeShare float64

	// Observe is what counts; nil counts nothing. It is this coordinator's alone.
	Observe *observe.Coordinator
	// Tracer makes the spans of steps; nil makes none.
	Tracer *observe.Tracer

	Now func() time.Time // clock; nil is time.Now
}

// Coordinator is one coordinator. Make it with Open.
type Coordinator struct {
	config   Config
	flight   *rpc.Flight
	jobs     *jobs.Queue
	peers    *peers.Peers // and this coordinator's jobs
	sessions *sessions.Relay

	explaining chan struct{} // holds one element while a job is explained
}

var names = regexp.MustCompile(`^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$`)

// Open opens the data folder and finds the jobs in it. Two coordinators can't share a folder.
func Open(c Config) (*Coordinator, error) {
	if !names.MatchString(c.Name) {
		return nil, fmt.Errorf("coordinator name %q is not a DNS label: 1 to 63 of a-z, 0-9 and '-', with no '-' at its ends", c.Name)
	}
	c.Logger = cmp.Or(c.Logger, slog.New(slog.DiscardHandler))
	if c.Observe == nil {
		c.Observe = observe.Quiet()
	}
	made := &Coordinator{explaining: make(chan struct{}, 1), config: c}
	made.peers = peers.New(peers.Config{
		Name: c.Name, DataDir: c.DataDir, View: c.View, Logger: c.Logger, Security: c.Security, KeepFor: cmp.Or(c.KeepFor, DefaultKeepFor), Now: c.Now,
	})
	queue, err := jobs.Open(jobs.Config{
		Name: c.Name, Version: c.Version, DataDir: c.DataDir, View: c.View, Logger: c.Logger,
		WorkerWait: c.WorkerWait, Deadline: c.Deadline, BlockBytes: c.BlockBytes,
		KeepJobs: c.KeepJobs, KeepFor: c.KeepFor, KeepBytes: c.KeepBytes,
		UploadStall: c.UploadStall, RoomPause: c.RoomPause, Now: c.Now, Observe: c.Observe, Security: c.Security, Tenants: made.tenants, Elsewhere: made.peers.Elsewhere,
	})
	if err != nil {
		return nil, errors.Join(err, made.peers.Close())
	}
	made.peers.Own(queue)
	known, err := readKnown(c.DataDir)
	if err != nil {
		c.Logger.Warn("the cluster's workers before this start are not known", "error", err)
	}
	made.flight, made.jobs = sessions.NewFlight(c.Flight, c.Conns, c.PerAddress, c.Logger), queue
	made.sessions = sessions.New(sessions.Config{
		View: c.View, Logger: c.Logger, Replicas: c.Replicas, CopyRate: c.CopyRate, HedgeShare: c.HedgeShare, Await: known, AwaitFor: c.AwaitFor, Now: c.Now, Observe: c.Observe, Tracer: c.Tracer, Security: c.Security,
	})
	made.observe(c)
	return made, nil
}

// tenants are what tenants may have and have, apart from jobs.
func (c *Coordinator) tenants() (all []*headwaterv1.TenantStatus) {
	for _, t := range c.sessions.Tenants() {
		all = append(all, &headwaterv1.TenantStatus{
			Tenant: t.Tenant, Limit: quotaproto.WriteLimits(t.Limit),
			Used: &headwaterv1.TenantAmounts{Sessions: t.Used.Sessions, Bytes: uint64(t.Used.Bytes), StepsPerSecond: t.Used.Steps},
		})
	}
	return all
}

// HeapLimit is what Go's heap may take, for debug.SetMemoryLimit: messages in flight in both directions, and the headers of
// submissions that are being read. Without it the collector lets twice as much pile up.
func (c *Coordinator) HeapLimit() int64 {
	return 2*cmp.Or(c.config.Flight, sessions.DefaultFlight) + jobs.HeaderMemory
}

// ServerOptions returns what a server is made with that bounds the coordinator's messages in flight. The coordinator is
// registered with the server's rpc.Registrar.
func (c *Coordinator) ServerOptions(options ...rpc.ServerOption) []grpc.ServerOption {
	return c.flight.ServerOptions(append(options, rpc.Secure(c.config.Security))...)
}

// Register adds the services to a server, which is made with ServerOptions; or with rpc.ServerOptions, and then bounds nothing.
func (c *Coordinator) Register(s grpc.ServiceRegistrar) {
	headwaterv1.RegisterCoordinatorServiceServer(s, service{c.peers, c.jobs, c.sessions})
	session.Register(s, c.sessions)
	headwaterv1.RegisterClusterServiceServer(s, c.sessions.Cluster())
}

// Run runs queued jobs, and keeps the connections to workers, until ctx ends, once. Calls that wait for a job end then, and
// so do lanes, so that a server can stop gracefully.
func (c *Coordinator) Run(ctx context.Context) error {
	ctx, end := context.WithCancel(ctx)
	var relay sync.WaitGroup
	defer relay.Wait()
	defer end()
	relay.Go(func() { c.sessions.Run(ctx) })
	relay.Go(func() { c.peers.Run(ctx) })
	relay.Go(func() {
		keepKnown(ctx, c.config.DataDir, cmp.Or(c.config.RoomPause, jobs.DefaultRoomPause), c.config.View, c.sessions, c.config.Logger)
	})
	return c.jobs.Run(ctx)
}

// Close ends the connections to workers and closes the store of jobs. Call it after Run and the server have ended.
func (c *Coordinator) Close() error {
	return errors.Join(c.sessions.Close(), c.jobs.Close(), c.peers.Close())
}
