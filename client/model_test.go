package client_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"testing"
	"time"

	"github.com/google/uuid"
	"go.uber.org/goleak"
	"google.golang.org/grpc"
	"pgregory.net/rapid"

	"headwater.example/client"
	"headwater.example/coordinator"
	"headwater.example/internal/membership"
	"headwater.example/internal/rpc"
	"headwater.example/internal/testkit/sessionmodel"
	headwaterv1 "headwater.example/proto/headwater/v1"
	"headwater.example/worker"
)

// server is a gRPC server on loopback.
type server struct {
	*grpc.Server
	address string
	done    chan struct{}
}

func listen(t interface{ Fatal(...any) }, register func(grpc.ServiceRegistrar)) *server {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := &server{grpc.NewServer(rpc.ServerOptions()...), listener.Addr().String(), make(chan struct{})}
	register(s.Server)
	go func() { defer close(s.done); _ = s.Serve(listener) }() // ends with Stop
	return s
}

func (s *server) stop() { s.Stop(); <-s.done }

// workers are a coordinator and real workers in this process.
type workers struct {
	workers     []*worker.Worker
	servers     []*server
	coordinator *coordinator.Coordinator
	end         context.CancelFunc
	ran         chan error
}

// startWorkers starts n workers of that budget and threads, on a clock. The coordinator keeps nothing but in dir.
func startWorkers(t interface{ Fatal(...any) }, dir string, n, threads int, budget int64, ttl time.Duration, now func() time.Time) *workers {
	c := &workers{ran: make(chan error, 1)}
	var members []membership.Member
	for i := range n {
		w, err := worker.New(worker.Config{
			Name: fmt.Sprintf("w%d", i+1), Boot: uuid.New(), Weight: 1, Budget: budget, Threads: threads, SessionTTL: ttl, Now: now,
		})
		if err != nil {
			t.Fatal(err)
		}
		s := listen(t, w.Register)
		c.workers, c.servers = append(c.workers, w), append(c.servers, s)
		members = append(members, membership.Member{Name: fmt.Sprintf("w%d", i+1), Role: membership.RoleWorker, Address: s.address, Weight: 1})
	}
	var err error
	// Whom an earlier cluster knew, in the same folder, is not waited for.
	if c.coordinator, err = coordinator.Open(coordinator.Config{Name: "coord", DataDir: dir, View: membership.Static(members), AwaitFor: time.Nanosecond}); err != nil {
		t.Fatal(err)
	}
	ctx, end := context.WithCancel(context.Background())
	c.end = end
	go func() { c.ran <- c.coordinator.Run(ctx) }()
	c.servers = append(c.servers, listen(t, c.coordinator.Register))
	return c
}

func (c *workers) address() string { return c.servers[len(c.servers)-1].address }

// expire has every worker look for sessions that have gone unused.
func (c *workers) expire() {
	for _, w := range c.workers {
		ctx, cancel := context.WithCancel(context.Background())
		ticks, done := make(chan time.Time), make(chan struct{})
		go func() { defer close(done); w.Expire(ctx, ticks) }()
		ticks <- time.Time{}
		cancel()
		<-done // the tick has been handled
	}
}

// stop ends all, and returns how many bytes each worker still has reserved.
func (c *workers) stop(t interface{ Error(...any) }) (left []uint64) {
	c.servers[len(c.servers)-1].stop()
	c.end()
	if err := <-c.ran; err != nil {
		t.Error(err)
	}
	if err := c.coordinator.Close(); err != nil {
		t.Error(err)
	}
	for i, w := range c.workers {
		c.servers[i].stop()
		w.Close()
		d, err := w.Describe(context.Background(), &headwaterv1.DescribeRequest{})
		if err != nil {
			t.Error(err)
		}
		left = append(left, d.GetUsedBytes())
	}
	return left
}

// TestSessionsAgreeWithTheirModel walks over sessions on real workers; see package sessionmodel. In the end nothing is left
// of them: no page, no byte of the budget, no goroutine.
func TestSessionsAgreeWithTheirModel(t *testing.T) {
	dirs := t.TempDir()
	// A coordinator that starts in another's folder awaits the workers that were known there.
	fresh := func(t *rapid.T) string {
		dir, err := os.MkdirTemp(dirs, "")
		if err != nil {
			t.Fatal(err)
		}
		return dir
	}
	defer sessionmodel.Checks(50)()
	rapid.Check(t, func(t *rapid.T) {
		before := goleak.IgnoreCurrent()
		budget := int64(256 << 20)
		if rapid.Bool().Draw(t, "tight") {
			budget = rapid.Int64Range(100<<10, 600<<10).Draw(t, "budget")
		}
		clock := new(sessionmodel.Clock)
		n := rapid.IntRange(1, 3).Draw(t, "workers")
		const ttl = 2 * time.Minute
		c := startWorkers(t, fresh(t), n, rapid.IntRange(1, 2).Draw(t, "threads"), budget, ttl, clock.Now)
		var attends []sessionmodel.Attend
		func() {
			defer func() {
				for i, left := range c.stop(t) {
					if left != 0 && !t.Failed() {
						t.Fatalf("worker %d has %d bytes reserved in the end", i, left)
					}
				}
			}()
			attends = sessionmodel.Walk(t, sessionmodel.Cluster{Address: c.address(), Workers: n, Budget: budget, TTL: ttl, Clock: clock, Expire: c.expire})
		}()
		// Jobs have workers of their own, with room for all that was attended.
		jobs := startWorkers(t, fresh(t), 1, 2, 1<<30, ttl, nil)
		func() {
			defer jobs.stop(t)
			submits, err := client.Dial(jobs.address())
			if err != nil {
				t.Fatal(err)
			}
			defer submits.Close()
			sessionmodel.CompareWithJobs(t, submits, attends)
		}()
		if err := goleak.Find(before); err != nil {
			t.Fatal(err)
		}
	})
}

// twoWorkers are layers of one group each, the second with a window, on two workers.
var twoWorkers = []client.Layer{{Heads: 1, KVHeads: 1, HeadDim: 4}, {Heads: 1, KVHeads: 1, HeadDim: 4, WindowLeft: client.Within(3)}}

// TestATruncationThatOneWorkerRefusesChangesNone cuts to where one of two workers has freed what is seen.
func TestATruncationThatOneWorkerRefusesChangesNone(t *testing.T) {
	c := startWorkers(t, t.TempDir(), 2, 1, 1<<24, time.Hour, nil)
	defer c.stop(t)
	own := dial(t, c.address())
	for _, direct := range []bool{true, false} {
		r := rand.New(rand.NewPCG(1, 2))
		s, m := open(t, own, client.SessionOptions{Layers: twoWorkers, Direct: direct}), newModel(twoWorkers)
		for _, n := range []int{130, 1} {
			step(t, s, m, r, 0, n)
			step(t, s, m, r, 1, n)
		}
		before := s.Receipt()
		var refused *client.SessionError
		if err := s.Truncate(t.Context(), 60); !errors.As(err, &refused) || refused.Reason != client.ReasonFreed {
			t.Fatalf("direct %v: %v", direct, err)
		}
		if after := s.Receipt(); after.Truncations != before.Truncations {
			t.Errorf("direct %v: %d truncations, before it %d", direct, after.Truncations, before.Truncations)
		}
		step(t, s, m, r, 0, 1)
		step(t, s, m, r, 1, 1)
		if err := s.Drop(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
}

// TestAPrefixIsOfOneLengthInAllLayers opens a session where the worker of one layer has more of its tokens than that of another.
func TestAPrefixIsOfOneLengthInAllLayers(t *testing.T) {
	c := startWorkers(t, t.TempDir(), 2, 1, 1<<24, time.Hour, nil)
	defer c.stop(t)
	own := dial(t, c.address())
	text := make([]uint32, 300)
	for i := range text {
		text[i] = uint32(i)
	}
	for _, direct := range []bool{true, false} {
		opts := client.SessionOptions{Layers: twoWorkers, Direct: direct, Tokens: text, Tenant: fmt.Sprint(direct)}
		r := rand.New(rand.NewPCG(1, 2))
		s, m := open(t, own, opts), newModel(twoWorkers)
		for l, n := range []int{70, 200} {
			one := project(r, twoWorkers[l], n)
			m.append(l, one)
			if err := s.Do(t.Context(), &client.Step{Layer: l, K: one.k, V: one.v, Tokens: text[:n]}); err != nil {
				t.Fatal(err)
			}
		}
		next := open(t, own, opts)
		m.truncate(64)
		if next.Prefix() != 64 || next.LayerLen(0) != 64 || next.LayerLen(1) != 64 {
			t.Fatalf("direct %v: a prefix of %d, %d in layer 0 and %d in layer 1", direct, next.Prefix(), next.LayerLen(0), next.LayerLen(1))
		}
		step(t, next, m, r, 0, 2)
		step(t, next, m, r, 1, 2)
	}
}
