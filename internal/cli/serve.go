package cli

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"os"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"strings"
	"time"

	"github.com/google/uuid"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"google.golang.org/grpc"

	"headwater.example/attention"
	"headwater.example/coordinator"
	"headwater.example/coordinator/sessions"
	"headwater.example/internal/certs"
	"headwater.example/internal/dashboard"
	"headwater.example/internal/localcluster"
	"headwater.example/internal/membership"
	"headwater.example/internal/observe"
	"headwater.example/internal/processor"
	"headwater.example/internal/rpc"
	"headwater.example/internal/session/fanout"
	headwaterv1 "headwater.example/proto/headwater/v1"
	"headwater.example/shard"
	"headwater.example/worker"
)

const (
	// defaultReplicas is the default of --replicas: a session outlives any one of its workers. defaultCopyRate is that of --copy-rate,
	// about half of what a link of 1 Gbit/s carries.
	defaultReplicas = 1
	defaultCopyRate = 64 << 20

	coordinatorListen = ":7600"
	coordinatorGossip = ":7610"
	workerListen      = ":7601"
	workerGossip      = ":7611"
)

func (a *app) serveCoordinator() *cobra.Command {
	var (
		at      endpointFlags
		admin   adminFlag
		workers string
		config  coordinator.Config
		keep    byteSize = coordinator.DefaultKeepBytes
		block   byteSize = rpc.BlockBytes

		copyRate byteSize = defaultCopyRate
	)
	cmd := &cobra.Command{
		Use: "serve", Short: "Run a coordinator", Args: exactly(),
		Long: "Run a coordinator: it takes jobs, keeps them in its data folder, and runs them on the workers that gossip shows, or on\n" +
			"those of a list.",
		Example: `  coord serve --data-dir /var/lib/headwater
  coord serve --workers a=10.0.0.1:7601,b=10.0.0.2:7601`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if config.DataDir == "" {
				return usage("--data-dir is empty: name a folder")
			}
			if err := positive(cmd.Flags(), "worker-wait", "max-duration", "keep-jobs", "keep-for", "keep-bytes", "block"); err != nil {
				return err
			}
			if err := checkReplicas(config.Replicas); err != nil {
				return err
			}
			if err := checkHedges(config.HedgeShare); err != nil {
				return err
			}
			config.KeepBytes, config.BlockBytes, config.CopyRate = int64(keep), int(block), int64(copyRate)
			return a.runCoordinator(cmd.Context(), at, &admin, workers, config)
		},
	}
	flags := cmd.Flags()
	at.flags(flags, certs.Coordinator, coordinatorListen, coordinatorGossip)
	admin.flag(flags, "/metrics, and on loopback alone the dashboard and /debug/pprof")
	admin.others(flags)
	flags.StringVar(&at.security.tenants, "tenants", "", "`file` of tenants whose tokens clients may show in place of a certificate, as coord tenants add writes it; it is read again when it changes (default: no tokens)")
	flags.StringVar(&workers, "workers", "", "a list of workers instead of gossip, `name=host:port,...`")
	flags.StringVar(&config.DataDir, "data-dir", "headwater-data", "`folder` of jobs and results")
	flags.DurationVar(&config.WorkerWait, "worker-wait", coordinator.DefaultWorkerWait, "how long a job waits for a worker that answers")
	flags.DurationVar(&config.Deadline, "max-duration", coordinator.DefaultDeadline, "longest time that a job may run")
	flags.IntVar(&config.KeepJobs, "keep-jobs", coordinator.DefaultKeepJobs, "ended jobs that are kept with their results")
	flags.DurationVar(&config.KeepFor, "keep-for", coordinator.DefaultKeepFor, "time that ended jobs are kept")
	flags.Var(&keep, "keep-bytes", "bytes of results that are kept")
	flags.IntVar(&config.Replicas, "replicas", defaultReplicas, "copies of each shard of a session, on other workers than its owner, if there are so many: a session outlives so many of its workers; a session may ask for another number. 0 takes half the memory")
	flags.Var(&copyRate, "copy-rate", "bytes a second of sessions' copies that are made in the background, after a loss and by drain and rebalance; 0 is no bound")
	hedgeFlag(flags, &config.HedgeShare)
	flags.Var(&block, "block", "size to which keys and values are cut on their way to workers; results do not depend on it")
	return cmd
}

// hedgeFlag adds the flag of how much is asked twice.
func hedgeFlag(flags *pflag.FlagSet, share *float64) {
	flags.Float64Var(share, "hedge-share", fanout.DefaultHedgeShare, "most of all attends of sessions with copies that are asked of another worker as well, since the first is late; 0 asks none twice")
}

// checkHedges refuses what is no share.
func checkHedges(share float64) error {
	if share < 0 || share > 1 || math.IsNaN(share) {
		return usage("--hedge-share %v: from 0 to 1", share)
	}
	return nil
}

// checkReplicas refuses a number of copies that no session may have.
func checkReplicas(n int) error {
	if n < 0 || n > shard.MaxReplicas {
		return usage("--replicas %d: from 0 to %d", n, shard.MaxReplicas)
	}
	return nil
}

func (a *app) runCoordinator(ctx context.Context, at endpointFlags, admin *adminFlag, workers string, config coordinator.Config) (err error) {
	name, err := at.self("coord")
	if err != nil {
		return err
	}
	log := a.logger().With("coordinator", name)
	if config.Security, err = at.begin(ctx, name, admin, log); err != nil {
		return err
	}
	defer func() { err = admin.close(err) }()
	warnOfDumps(log)
	if admin.on() {
		config.Observe = observe.NewCoordinator()
	}
	if config.Tracer, err = observe.NewTracer(ctx, "headwater-coordinator", name, programVersion); err != nil {
		return usageError{err}
	}
	defer endTraces(config.Tracer, log)
	listener, address, err := at.bind(ctx)
	if err != nil {
		return err
	}
	view, err := at.view(ctx, membership.Member{Name: name, Boot: uuid.New(), Role: membership.RoleCoordinator, Address: address, Version: programVersion}, workers, config.Security, log)
	if err != nil {
		return errors.Join(err, listener.Close())
	}
	config.Name, config.Version, config.View, config.Logger, config.Conns, config.PerAddress = name, programVersion, view, log, maxConnections(), at.perAddress
	if memory, err := usableMemory(); err == nil { // If it is not known, the default holds.
		config.Flight = sessions.FlightIn(memory)
	}
	c, err := coordinator.Open(config)
	if err != nil {
		return errors.Join(err, view.Close(ctx), listener.Close())
	}
	prepareProcess(c, config.DataDir, log)
	server := grpc.NewServer(c.ServerOptions(rpc.LogTo(log))...)
	c.Register(rpc.Registrar(server))
	s := &service{log: log, server: server, view: view, within: stopTimeout, health: rpc.Register(server, headwaterv1.CoordinatorService_ServiceDesc.ServiceName, headwaterv1.SessionService_ServiceDesc.ServiceName)}
	if admin.on() {
		defer serveDashboard(admin, c, config.Observe, log)()
	}
	defer at.attend(ctx, config.Security, s.health, log)()
	defer at.watchReady(ctx, s, config.Security, readyCheck{own: listener})()
	// Should running jobs fail, for the disk's sake, so does the process: it would take jobs that never run.
	ctx, stop := context.WithCancelCause(ctx)
	defer endHard(ctx, stopTimeout, log)()
	running, end := context.WithCancel(context.WithoutCancel(ctx))
	ran := make(chan error, 1)
	go func() {
		err := c.Run(running)
		stop(err)
		ran <- err
	}()
	log.Info("serving", "address", address, "gossip", membership.GossipAddr(view), "admin", admin.bound(), "folder", config.DataDir)
	if err := at.ready(localcluster.Ready{Name: name, Address: address, Gossip: membership.GossipAddr(view), Admin: admin.bound(), Health: at.boundHealth()}); err != nil {
		log.Warn("the parent was not told", "error", err)
	}
	err = s.serve(ctx, listener, func(within context.Context) error {
		end()
		select {
		case err := <-ran:
			ran <- nil
			return err
		case <-within.Done():
			return fmt.Errorf("the running job did not stop within %v; the next start queues it again", stopTimeout)
		}
	})
	end()
	return errors.Join(err, <-ran, c.Close())
}

// warnOfDumps has crashes leave no memory on the disk, or says that they may.
func warnOfDumps(log *slog.Logger) {
	if err := leaveNoDump(); err != nil {
		log.Warn("a crash may leave keys and values on the disk", "error", err)
	}
}

// prepareProcess bounds the process's heap, unless GOMEMLIMIT does, and has crashes recorded beside the jobs.
func prepareProcess(c *coordinator.Coordinator, dataDir string, log *slog.Logger) {
	if debug.SetMemoryLimit(-1) == math.MaxInt64 {
		debug.SetMemoryLimit(c.HeapLimit())
	}
	if err := recordCrashes(dataDir); err != nil {
		log.Warn("a crash could not be told from a kill", "error", err)
	}
}

// serveDashboard serves the dashboard, metrics and profiles on the admin port, until the returned function is called.
func serveDashboard(admin *adminFlag, c *coordinator.Coordinator, metrics *observe.Coordinator, log *slog.Logger) (end func()) {
	board := dashboard.New(c, admin.access(metrics.LoginFailed), log)
	stop := admin.serve(metrics.Registry, log, func(on *observe.Admin) { admin.board(on, board) })
	return func() { stop(); board.Close() }
}

func (a *app) serveWorker() *cobra.Command {
	var (
		at     endpointFlags
		admin  adminFlag
		memory memorySize
		config worker.Config
		within time.Duration
	)
	cmd := &cobra.Command{
		Use: "serve", Short: "Run a worker", Args: exactly(),
		Long: "Run a worker: it holds keys and values of whole KV groups in its memory, for jobs and for sessions, and attends over them.",
		Example: `  worker serve --join coordinator.example:7610
  worker serve --name a --gossip "" --listen 10.0.0.1:7601 --memory 64GiB`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := positive(cmd.Flags(), "session-ttl", "max-sessions"); err != nil {
				return err
			}
			if within < 0 {
				return usage("--drain-timeout %v: less than 0", within)
			}
			config.Budget, config.WeightGiven = int64(memory.byteSize), cmd.Flags().Changed("weight")
			return a.runWorker(cmd.Context(), at, &admin, config, within)
		},
	}
	flags := cmd.Flags()
	at.flags(flags, certs.Worker, workerListen, workerGossip)
	admin.flag(flags, "/metrics, and on loopback alone /debug/pprof; the worker measures its memory bus when it starts")
	flags.Var(&memory, "memory", "budget for keys, values and queries: 4GiB, 512MiB (default: three quarters of the machine's or the container's)")
	flags.IntVar(&config.Threads, "threads", 0, "threads that kernels use at once; receiving and storing need more, and GOMAXPROCS bounds all (default: GOMAXPROCS, which heeds the CPU limit of a container)")
	flags.IntVar(&config.Weight, "weight", 1, "share of the groups that this worker gets, relative to the other workers' weights; of one without this flag, a coordinator takes up to half away for new sessions while it answers slower than others")
	flags.StringVar(&config.Zone, "zone", "", "what fails together with this worker, as a rack or a data center: copies of sessions are held in other zones if there are")
	flags.DurationVar(&config.SessionTTL, "session-ttl", worker.DefaultSessionTTL, "time after which an unused session is dropped unless it is pinned; sessions may ask for less")
	flags.DurationVar(&within, "drain-timeout", defaultDrainTimeout, "when the worker is asked to end, how long it gives its sessions to other workers before it ends; 0 is not at all")
	flags.IntVar(&config.MaxSessions, "max-sessions", worker.DefaultMaxSessions, "sessions that are held at once")
	return cmd
}

func (a *app) runWorker(ctx context.Context, at endpointFlags, admin *adminFlag, config worker.Config, drainWithin time.Duration) (err error) {
	// At once, and not with the first query.
	if err := attention.KernelError(); err != nil {
		return usageError{err}
	}
	name, err := at.self("worker")
	if err != nil {
		return err
	}
	log := a.logger().With("worker", name)
	if config.Security, err = at.begin(ctx, name, admin, log); err != nil {
		return err
	}
	defer func() { err = admin.close(err) }()
	warnOfDumps(log)
	if config.Budget == 0 {
		if config.Budget, err = memoryBudget(); err != nil {
			return err
		}
	}
	config.Name, config.Boot, config.Version, config.Logger = name, uuid.New(), programVersion, log
	config.Threads = cmp.Or(config.Threads, runtime.GOMAXPROCS(0))
	config.Conns, config.PerAddress = maxConnections(), at.perAddress
	if admin.on() {
		config.Observe = observe.NewWorker()
		if config.Bus, err = observe.MeasureBus(config.Threads, config.Budget/4); err != nil {
			log.Warn("the share of the memory bus is not known", "error", err)
		}
	}
	if config.Tracer, err = observe.NewTracer(ctx, "headwater-worker", name, programVersion); err != nil {
		return usageError{err}
	}
	defer endTraces(config.Tracer, log)
	var view membership.View // there is one before anything is served
	config.Members = func() []membership.Member { return view.Members() }
	w, err := worker.New(config)
	if err != nil {
		return usageError{err}
	}
	defer w.Close()
	listener, address, err := at.bind(ctx)
	if err != nil {
		return err
	}
	view, err = at.view(ctx, membership.Member{Name: name, Boot: config.Boot, Role: membership.RoleWorker, Address: address, Version: programVersion, Weight: config.Weight}, "", config.Security, log)
	if err != nil {
		return errors.Join(err, listener.Close())
	}
	stopWithin := max(stopTimeout, drainWithin+restTimeout)
	leaving := &departure{name: name, view: view, security: config.Security, within: drainWithin, log: log, holds: w.Sessions}
	defer endHard(ctx, stopWithin, log)()
	lanes := rpc.NewLanes()
	server := grpc.NewServer(w.ServerOptions(rpc.LogTo(log), rpc.ServeLanes(lanes))...)
	w.Register(rpc.Registrar(server))
	s := &service{log: log, server: server, view: view, departs: leaving.run, within: stopWithin, health: rpc.Register(server, headwaterv1.WorkerService_ServiceDesc.ServiceName, headwaterv1.SessionService_ServiceDesc.ServiceName)}
	if admin.on() {
		defer admin.serve(config.Observe.Registry, log, func(*observe.Admin) {})()
	}
	defer expire(ctx, w, config.SessionTTL)()
	defer at.attend(ctx, config.Security, s.health, log)()
	defer at.watchReady(ctx, s, config.Security, readyCheck{worker: name, boot: config.Boot, own: listener})()
	defer serveLocal(ctx, w, config.Security, log)()
	defer serveLanes(ctx, func(ctx context.Context) error { return w.ServeLanes(ctx, lanes) }, log)()
	log.Info("serving", "address", address, "gossip", membership.GossipAddr(view), "admin", admin.bound(), "memory"+bytesKey, config.Budget,
		"kernel", attention.KernelName(), "threads", config.Threads, "processor", processor.Name(), "features", strings.Join(processor.Names(), " "))
	if err := at.ready(localcluster.Ready{Name: name, Address: address, Gossip: membership.GossipAddr(view), Admin: admin.bound(), Health: at.boundHealth()}); err != nil {
		log.Warn("the parent was not told", "error", err)
	}
	return s.serve(ctx, listener, w.Drain)
}

// serveLocal serves lanes of this machine beside those of gRPC, until end is called. If it can't, they go by gRPC. Who has to show who it
// is finds none.
func serveLocal(ctx context.Context, w *worker.Worker, security *rpc.Security, log *slog.Logger) (end func()) {
	if !security.Plain() {
		return func() {}
	}
	listener, err := w.ListenLocal(ctx)
	if err != nil {
		log.Info("lanes of this machine have no socket of their own", "error", err)
		return func() {}
	}
	return serveLanes(ctx, func(ctx context.Context) error { return w.ServePlain(ctx, listener) }, log)
}

// serveLanes serves plain lanes until end is called.
func serveLanes(ctx context.Context, serve func(context.Context) error, log *slog.Logger) (end func()) {
	serving, cancel := context.WithCancel(context.WithoutCancel(ctx))
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		if err := serve(serving); err != nil {
			log.Error("lanes are served by gRPC alone from now on", "error", err)
		}
	}()
	return func() { cancel(); <-ended }
}

// expire lets a worker look for unused sessions and memory each hundredth of the sessions' TTL, but once a second at most and
// every 10 seconds at least, until stop is called. It tends its memory each second.
func expire(ctx context.Context, w *worker.Worker, ttl time.Duration) (stop func()) {
	ctx, cancel := context.WithCancel(ctx)
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		ticker := time.NewTicker(min(max(ttl/100, time.Second), 10*time.Second))
		defer ticker.Stop()
		w.Expire(ctx, ticker.C)
	}()
	tended := make(chan struct{})
	go func() {
		defer close(tended)
		ticker := time.NewTicker(time.Second)
		defer ticker.Stop()
		w.Tend(ctx, ticker.C)
	}()
	return func() { cancel(); <-ended; <-tended }
}

// endTraces sends the last spans.
func endTraces(t *observe.Tracer, log *slog.Logger) {
	ctx, cancel := context.WithTimeout(context.Background(), traceTimeout)
	defer cancel()
	if err := t.Close(ctx); err != nil {
		log.Warn("traces are lost", "error", err)
	}
}

// traceTimeout is how long a process that ends tries to send its last spans.
const traceTimeout = 2 * time.Second

// memoryBudget is three quarters of the memory that the process may use.
func memoryBudget() (int64, error) {
	total, err := usableMemory()
	if err != nil {
		return 0, usage("--memory is missing, and the machine does not say how much it has: %w", err)
	}
	return total / 4 * 3, nil
}

// recordCrashes has the Go runtime write into the coordinator's data folder why it ends the process.
func recordCrashes(folder string) error {
	f, err := os.Create(filepath.Join(folder, coordinator.CrashLog))
	if err != nil {
		return err
	}
	return errors.Join(debug.SetCrashOutput(f, debug.CrashOptions{}), f.Close()) // the runtime has a descriptor of its own
}
