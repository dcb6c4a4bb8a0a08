package cli

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"time"

	"github.com/google/uuid"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"google.golang.org/grpc"
	"google.golang.org/grpc/health"

	"headwater.example/attention"
	"headwater.example/coordinator"
	"headwater.example/internal/localcluster"
	"headwater.example/internal/membership"
	"headwater.example/internal/rpc"
	headwaterv1 "headwater.example/proto/headwater/v1"
	"headwater.example/worker"
)

const (
	coordinatorListen = ":7600"
	coordinatorGossip = ":7610"
	workerListen      = ":7601"
	workerGossip      = ":7611"
	// drainTimeout is how long a stopping process waits for what it has accepted.
	drainTimeout = 25 * time.Second
	// leaveTimeout is how long it tries to say that it leaves.
	leaveTimeout = time.Second
)

// endpointFlags say where a process listens and how others find it.
type endpointFlags struct {
	name            string
	listen          string
	advertise       string
	gossip          string
	gossipAdvertise string
	join            []string
	readyFD         int
}

func (e *endpointFlags) flags(flags *pflag.FlagSet, listen, gossip string) {
	flags.StringVar(&e.name, "name", "", "name in the cluster, a DNS label (default: the host's name after the program's)")
	flags.StringVar(&e.listen, "listen", listen, "`host:port` of the gRPC service; port 0 takes a free one")
	flags.StringVar(&e.advertise, "advertise", "", "`host` or host:port under which others reach the gRPC service (default: the address listened on, or of this machine where that is all)")
	flags.StringVar(&e.gossip, "gossip", gossip, "`host:port` of gossip, over TCP and UDP; empty: no gossip")
	flags.StringVar(&e.gossipAdvertise, "gossip-advertise", "", "`host` or host:port under which others reach gossip (default: the address bound)")
	flags.StringSliceVar(&e.join, "join", nil, "gossip addresses of others, `host:port,...`")
	flags.IntVar(&e.readyFD, localcluster.ReadyFlag, 0, "file descriptor that is told when the process serves")
	_ = flags.MarkHidden(localcluster.ReadyFlag) // it is there
	flagOnly(flags, localcluster.ReadyFlag)
}

var (
	notInLabel = regexp.MustCompile(`[^a-z0-9-]+`)
	dnsLabel   = regexp.MustCompile(`^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$`)
)

// self is the name to serve under. A coordinator and a worker of one machine have different ones by default.
func (e *endpointFlags) self(program string) (string, error) {
	if e.name != "" {
		if !dnsLabel.MatchString(e.name) {
			return "", usage("--name: %q is not a DNS label: 1 to 63 of a-z, 0-9 and '-', with no '-' at its ends", e.name)
		}
		return e.name, nil
	}
	host, err := os.Hostname()
	if err != nil {
		return "", usage("--name is missing, and the host has none: %w", err)
	}
	host, _, _ = strings.Cut(strings.ToLower(host), ".")
	name := program + "-" + notInLabel.ReplaceAllString(host, "-")
	return strings.Trim(name[:min(len(name), 63)], "-"), nil
}

// address is what others dial: what is advertised, with the port that is listened on where it names none.
func (e *endpointFlags) address(listening net.Addr) (string, error) {
	host, port, err := net.SplitHostPort(listening.String())
	if err != nil {
		return "", err
	}
	if e.advertise != "" {
		if _, _, err := net.SplitHostPort(e.advertise); err == nil {
			return e.advertise, nil
		}
		return net.JoinHostPort(strings.Trim(e.advertise, "[]"), port), nil
	}
	if ip := net.ParseIP(host); ip != nil && !ip.IsUnspecified() {
		return net.JoinHostPort(host, port), nil
	}
	return net.JoinHostPort(ownAddress(e.join).String(), port), nil
}

// ownAddress is the address of this machine on the way to the seeds, else to anywhere, else on any network. It is a
// loopback address only where there is no other. Nothing is sent.
func ownAddress(seeds []string) net.IP {
	dialer := net.Dialer{Timeout: 2 * time.Second} // for a name that does not resolve
	for _, to := range append(slices.Clone(seeds), "192.0.2.1:9") {
		conn, err := dialer.Dial("udp", to)
		if err != nil {
			continue
		}
		from, ok := conn.LocalAddr().(*net.UDPAddr)
		_ = conn.Close() // nothing was sent
		if ok && !from.IP.IsLoopback() {
			return from.IP
		}
	}
	addresses, _ := net.InterfaceAddrs() // none where they can not be read
	for _, address := range addresses {
		if network, ok := address.(*net.IPNet); ok && network.IP.IsGlobalUnicast() {
			return network.IP
		}
	}
	return net.IPv4(127, 0, 0, 1)
}

// ready tells the parent that waits on the pipe.
func (e *endpointFlags) ready(r localcluster.Ready) error {
	if e.readyFD == 0 {
		return nil
	}
	pipe := os.NewFile(uintptr(e.readyFD), "ready")
	if pipe == nil {
		return usage("--%s: %d is no file descriptor", localcluster.ReadyFlag, e.readyFD)
	}
	return errors.Join(json.NewEncoder(pipe).Encode(r), pipe.Close())
}

// view joins the gossip, or follows the list.
func (e *endpointFlags) view(ctx context.Context, self membership.Member, static string, log *slog.Logger) (membership.View, error) {
	switch {
	case static != "":
		members, err := membership.ParseStatic(static)
		if err != nil {
			return nil, usage("--workers: %w", err)
		}
		return membership.Static(members), nil
	case e.gossip == "":
		return membership.Static(nil), nil
	}
	return membership.Gossip(ctx, membership.GossipConfig{Self: self, Bind: e.gossip, Advertise: e.gossipAdvertise, Seeds: e.join, Logger: log})
}

// service is a process that serves until its context ends.
type service struct {
	log    *slog.Logger
	server *grpc.Server
	health *health.Server
	view   membership.View
}

// serve answers calls until ctx ends; then it says so, lets drain end what was accepted, leaves and stops.
func (s *service) serve(ctx context.Context, listener net.Listener, drain func(context.Context) error) error {
	served := make(chan error, 1)
	go func() { served <- s.server.Serve(listener) }()
	var err error
	select {
	case err = <-served:
		served <- nil
	case <-ctx.Done():
	}
	s.log.Info("stopping")
	s.health.Shutdown()
	within, cancel := context.WithTimeout(context.WithoutCancel(ctx), drainTimeout)
	defer cancel()
	// Those who look for it should know before they are refused. When they stop as well, nobody is left to be told.
	leaving, left := context.WithTimeout(within, leaveTimeout)
	defer left()
	if err := s.view.Close(leaving); err != nil {
		s.log.Info("nobody was told of the stop", "error", err)
	}
	err = errors.Join(err, drain(within))
	stopped := context.AfterFunc(within, s.server.Stop)
	s.server.GracefulStop()
	stopped()
	return errors.Join(err, <-served)
}

func (a *app) serveCoordinator() *cobra.Command {
	var (
		at      endpointFlags
		workers string
		config  coordinator.Config
		keep    byteSize = coordinator.DefaultKeepBytes
		block   byteSize = rpc.BlockBytes
	)
	cmd := &cobra.Command{
		Use: "serve", Short: "Run a coordinator", Args: exactly(),
		Long: "Run a coordinator: it takes jobs, keeps them in its data folder, and runs them on the workers that gossip shows, or on\n" +
			"those of a list.",
		Example: `  coord serve --data-dir /var/lib/headwater
  coord serve --workers a=10.0.0.1:7601,b=10.0.0.2:7601`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			config.KeepBytes, config.BlockBytes = int64(keep), int(block)
			return a.runCoordinator(cmd.Context(), at, workers, config)
		},
	}
	flags := cmd.Flags()
	at.flags(flags, coordinatorListen, coordinatorGossip)
	flags.StringVar(&workers, "workers", "", "a list of workers instead of gossip, `name=host:port,...`")
	flags.StringVar(&config.DataDir, "data-dir", "headwater-data", "`folder` of jobs and results")
	flags.DurationVar(&config.WorkerWait, "worker-wait", coordinator.DefaultWorkerWait, "how long a job waits for a worker that answers")
	flags.DurationVar(&config.Deadline, "max-duration", coordinator.DefaultDeadline, "longest time that a job may run")
	flags.IntVar(&config.KeepJobs, "keep-jobs", coordinator.DefaultKeepJobs, "ended jobs that are kept with their results")
	flags.DurationVar(&config.KeepFor, "keep-for", coordinator.DefaultKeepFor, "time that ended jobs are kept")
	flags.Var(&keep, "keep-bytes", "bytes of results that are kept")
	flags.Var(&block, "block", "size to which keys and values are cut on their way to workers; results do not depend on it")
	return cmd
}

func (a *app) runCoordinator(ctx context.Context, at endpointFlags, workers string, config coordinator.Config) (err error) {
	name, err := at.self("coord")
	if err != nil {
		return err
	}
	log := a.logger().With("coordinator", name)
	listener, err := net.Listen("tcp", at.listen)
	if err != nil {
		return fmt.Errorf("listen: %w", err)
	}
	address, err := at.address(listener.Addr())
	if err != nil {
		return errors.Join(err, listener.Close())
	}
	view, err := at.view(ctx, membership.Member{Name: name, Boot: uuid.New(), Role: membership.RoleCoordinator, Address: address, Version: Version}, workers, log)
	if err != nil {
		return errors.Join(err, listener.Close())
	}
	config.Name, config.Version, config.View, config.Logger = name, Version, view, log
	c, err := coordinator.Open(config)
	if err != nil {
		return errors.Join(err, view.Close(ctx), listener.Close())
	}
	server := grpc.NewServer(rpc.ServerOptions()...)
	c.Register(server)
	s := &service{log: log, server: server, view: view, health: rpc.Register(server, headwaterv1.CoordinatorService_ServiceDesc.ServiceName, headwaterv1.SessionService_ServiceDesc.ServiceName)}
	// Should running jobs fail, for the disk's sake, so does the process: it would take jobs that never run.
	ctx, stop := context.WithCancelCause(ctx)
	running, end := context.WithCancel(context.WithoutCancel(ctx))
	ran := make(chan error, 1)
	go func() {
		err := c.Run(running)
		stop(err)
		ran <- err
	}()
	log.Info("serving", "address", address, "gossip", membership.GossipAddr(view), "data", config.DataDir)
	if err := at.ready(localcluster.Ready{Name: name, Address: address, Gossip: membership.GossipAddr(view)}); err != nil {
		log.Warn("the parent was not told", "error", err)
	}
	err = s.serve(ctx, listener, func(context.Context) error {
		end()
		return <-ran
	})
	end()
	return errors.Join(err, c.Close())
}

func (a *app) serveWorker() *cobra.Command {
	var (
		at     endpointFlags
		memory byteSize
		config worker.Config
	)
	cmd := &cobra.Command{
		Use: "serve", Short: "Run a worker", Args: exactly(),
		Long: "Run a worker: it holds keys and values of whole KV groups in its memory, for jobs and for sessions, and attends over them.",
		Example: `  worker serve --join coordinator.example:7610
  worker serve --name a --gossip "" --listen 10.0.0.1:7601 --memory 64GiB`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			config.Budget = int64(memory)
			return a.runWorker(cmd.Context(), at, config)
		},
	}
	flags := cmd.Flags()
	at.flags(flags, workerListen, workerGossip)
	flags.Var(&memory, "memory", "budget for keys, values and queries: 4GiB, 512MiB (default: three quarters of the machine's or the container's)")
	flags.IntVar(&config.Threads, "threads", 0, "threads that kernels use at once; receiving and storing come beside them, and GOMAXPROCS bounds all (default: GOMAXPROCS, which heeds the CPU limit of a control group, as a container has)")
	flags.IntVar(&config.Weight, "weight", 1, "share of the groups that this worker gets, beside the other workers' weights")
	flags.DurationVar(&config.SessionTTL, "session-ttl", worker.DefaultSessionTTL, "time without use after which a session is dropped unless pinned; sessions may ask for less")
	flags.IntVar(&config.MaxSessions, "max-sessions", worker.DefaultMaxSessions, "sessions that are held at once")
	return cmd
}

func (a *app) runWorker(ctx context.Context, at endpointFlags, config worker.Config) error {
	// At once, and not with the first query.
	if err := attention.KernelError(); err != nil {
		return usageError{err}
	}
	name, err := at.self("worker")
	if err != nil {
		return err
	}
	log := a.logger().With("worker", name)
	if config.Budget == 0 {
		if config.Budget, err = memoryBudget(); err != nil {
			return err
		}
	}
	config.Name, config.Boot, config.Version, config.Logger = name, uuid.New(), Version, log
	config.Threads = cmp.Or(config.Threads, runtime.GOMAXPROCS(0))
	w, err := worker.New(config)
	if err != nil {
		return usageError{err}
	}
	defer w.Close()
	listener, err := net.Listen("tcp", at.listen)
	if err != nil {
		return fmt.Errorf("listen: %w", err)
	}
	address, err := at.address(listener.Addr())
	if err != nil {
		return errors.Join(err, listener.Close())
	}
	view, err := at.view(ctx, membership.Member{Name: name, Boot: config.Boot, Role: membership.RoleWorker, Address: address, Version: Version, Weight: config.Weight}, "", log)
	if err != nil {
		return errors.Join(err, listener.Close())
	}
	server := grpc.NewServer(rpc.ServerOptions()...)
	w.Register(server)
	s := &service{log: log, server: server, view: view, health: rpc.Register(server, headwaterv1.WorkerService_ServiceDesc.ServiceName, headwaterv1.SessionService_ServiceDesc.ServiceName)}
	stop := expire(ctx, w, config.SessionTTL)
	defer stop()
	log.Info("serving", "address", address, "gossip", membership.GossipAddr(view), "memory", sizeOf(config.Budget))
	if err := at.ready(localcluster.Ready{Name: name, Address: address, Gossip: membership.GossipAddr(view)}); err != nil {
		log.Warn("the parent was not told", "error", err)
	}
	return s.serve(ctx, listener, w.Drain)
}

// expire lets a worker look for unused sessions and memory each hundredth of the sessions' TTL, but once a second at most and
// every 30 seconds at least, until stop is called.
func expire(ctx context.Context, w *worker.Worker, ttl time.Duration) (stop func()) {
	ctx, cancel := context.WithCancel(ctx)
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		ticker := time.NewTicker(min(max(ttl/100, time.Second), 30*time.Second))
		defer ticker.Stop()
		w.Expire(ctx, ticker.C)
	}()
	return func() { cancel(); <-ended }
}

// memoryBudget is three quarters of the memory that the process may use.
func memoryBudget() (int64, error) {
	total, err := usableMemory()
	if err != nil {
		return 0, usage("--memory is missing, and the machine does not say how much it has: %w", err)
	}
	return total / 4 * 3, nil
}
