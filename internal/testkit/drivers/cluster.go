package drivers

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/google/uuid"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"headwater.example/coordinator"
	"headwater.example/internal/membership"
	"headwater.example/internal/rpc"
	"headwater.example/worker"
)

// cluster is a coordinator and workers in this process.
type cluster struct {
	address string
	dir     string
	holders []*holder
	seed    uint64
	calm    atomic.Bool // no message waits or breaks
	stops   []func() error
}

// holder is a worker in bad company.
type holder struct {
	cluster *cluster
	worker  *worker.Worker

	mu      sync.Mutex
	rand    *rand.Rand
	stopped bool // nothing reaches it
}

func startCluster(_ context.Context, config Config) (_ company, err error) {
	c := &cluster{seed: config.Seed}
	c.calm.Store(true)
	defer func() {
		if err != nil {
			err = errors.Join(err, c.stop())
		}
	}()
	if c.dir, err = os.MkdirTemp("", "headwater-drivers-"); err != nil {
		return nil, err
	}
	var members []membership.Member
	for i := range config.Workers {
		h := &holder{cluster: c, rand: rand.New(rand.NewPCG(config.Seed, uint64(1000+i)))}
		name := fmt.Sprintf("w%d", i+1)
		if h.worker, err = worker.New(worker.Config{Name: name, Boot: uuid.New(), Weight: 1, Budget: config.Budget, Threads: 1}); err != nil {
			return nil, err
		}
		c.holders = append(c.holders, h)
		address, err := c.serve(h.worker.Register, grpc.ChainUnaryInterceptor(h.unary), grpc.ChainStreamInterceptor(h.stream))
		if err != nil {
			return nil, err
		}
		members = append(members, membership.Member{Name: name, Role: membership.RoleWorker, Address: address, Weight: 1})
	}
	co, err := coordinator.Open(coordinator.Config{Name: "coord", DataDir: c.dir, View: membership.Static(members)})
	if err != nil {
		return nil, err
	}
	ctx, end := context.WithCancel(context.Background())
	ran := make(chan error, 1)
	go func() { ran <- co.Run(ctx) }()
	c.stops = append(c.stops, func() error { end(); return errors.Join(<-ran, co.Close()) })
	if c.address, err = c.serve(co.Register); err != nil {
		return nil, err
	}
	return c, nil
}

// serve serves on loopback until the cluster stops.
func (c *cluster) serve(register func(grpc.ServiceRegistrar), opts ...grpc.ServerOption) (address string, _ error) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	s := grpc.NewServer(append(rpc.ServerOptions(), opts...)...)
	register(s)
	done := make(chan struct{})
	go func() { defer close(done); _ = s.Serve(listener) }() // ends with Stop
	c.stops = append(c.stops, func() error { s.Stop(); <-done; return nil })
	return listener.Addr().String(), nil
}

// stop ends all, the last that was started first.
func (c *cluster) stop() error {
	var errs []error
	for i := len(c.stops) - 1; i >= 0; i-- {
		errs = append(errs, c.stops[i]())
	}
	for _, h := range c.holders {
		if h.worker != nil {
			h.worker.Close()
		}
	}
	return errors.Join(append(errs, os.RemoveAll(c.dir))...)
}

// coordinators is the coordinator's address.
func (c *cluster) coordinators() []string { return []string{c.address} }

// workers and unreached are for sessions with copies, which there are none of here.
func (c *cluster) workers() []rpc.Peer              { return nil }
func (c *cluster) unreached(string, time.Time) bool { return false }

// disturb lets messages wait and break, and stops a holder now and then for some milliseconds, until ctx ends.
func (c *cluster) disturb(ctx context.Context, _ *run) error {
	c.calm.Store(false)
	defer c.calm.Store(true)
	r := rand.New(rand.NewPCG(c.seed, 1))
	for {
		h := c.holders[r.IntN(len(c.holders))]
		for _, stopped := range []bool{false, true} {
			h.mu.Lock()
			h.stopped = stopped
			h.mu.Unlock()
			pause := time.Duration(1+r.IntN(20)) * time.Millisecond
			if !stopped {
				pause = time.Duration(50+r.IntN(200)) * time.Millisecond
			}
			select {
			case <-ctx.Done():
				h.free()
				return nil
			case <-time.After(pause):
			}
		}
		h.free()
	}
}

// free lets everything reach a holder again.
func (h *holder) free() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.stopped = false
}

// mood is what becomes of a message or an answer.
type mood struct {
	wait time.Duration
	err  error
}

// meet draws what becomes of the next one: most pass, some wait, few wait long or break.
func (h *holder) meet() mood {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.cluster.calm.Load() {
		return mood{}
	}
	broken := status.Error(codes.Unavailable, "the connection broke")
	switch n := h.rand.IntN(1000); {
	case h.stopped:
		return mood{err: broken}
	case n < 3:
		return mood{err: broken}
	case n < 10:
		return mood{wait: time.Duration(h.rand.IntN(20)) * time.Millisecond}
	case n < 100:
		return mood{wait: time.Duration(h.rand.IntN(2000)) * time.Microsecond}
	}
	return mood{}
}

// pass lets a message pass, or not. One that waits arrives, also if its sender has given it up.
func (h *holder) pass() error {
	m := h.meet()
	if m.wait > 0 {
		time.Sleep(m.wait)
	}
	return m.err
}

func (h *holder) unary(ctx context.Context, req any, _ *grpc.UnaryServerInfo, handle grpc.UnaryHandler) (any, error) {
	if err := h.pass(); err != nil {
		return nil, err
	}
	resp, err := handle(ctx, req)
	if broken := h.pass(); broken != nil {
		return nil, broken
	}
	return resp, err
}

func (h *holder) stream(srv any, stream grpc.ServerStream, _ *grpc.StreamServerInfo, handle grpc.StreamHandler) error {
	return handle(srv, &disturbed{stream, h})
}

// disturbed is a stream in bad company.
type disturbed struct {
	grpc.ServerStream
	h *holder
}

func (s *disturbed) RecvMsg(m any) error {
	if err := s.ServerStream.RecvMsg(m); err != nil {
		return err
	}
	return s.h.pass()
}

func (s *disturbed) SendMsg(m any) error {
	if err := s.h.pass(); err != nil {
		return err
	}
	return s.ServerStream.SendMsg(m)
}
