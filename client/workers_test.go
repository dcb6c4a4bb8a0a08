package client_test

import (
	"cmp"
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"
	"google.golang.org/grpc"

	"headwater.example/client"
	"headwater.example/internal/membership"
	"headwater.example/worker"
)

// real is a coordinator and workers in this process, with a client. Nothing of the workers may be left in the end.
type real struct {
	*client.Client
	address string
	workers []*worker.Worker
	members []membership.Member
	clock   *clock
}

// clock is one that stands still until it is moved.
type clock struct {
	mu  sync.Mutex
	now time.Time
}

func (c *clock) Now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.now
}

func (c *clock) move(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.now = c.now.Add(d)
}

// startCounted starts a cluster of n workers. The config's budget and limits are each worker's.
func startCounted(t testing.TB, n int, config worker.Config, opts ...func(worker int) []grpc.ServerOption) *real {
	t.Helper()
	r := &real{clock: &clock{now: time.Unix(1e9, 0)}}
	for i := range n {
		config.Name, config.Boot, config.Version, config.Weight, config.Threads = fmt.Sprintf("w%d", i+1), uuid.New(), "test", 1, 1
		config.Budget, config.Now = cmp.Or(config.Budget, 1<<28), r.clock.Now
		w, err := worker.New(config)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
			defer cancel()
			if err := w.Drain(ctx); err != nil {
				t.Error(err)
			}
			w.Close()
			d, err := w.Describe(ctx, nil)
			if err != nil || d.GetUsedBytes() != 0 {
				t.Errorf("%d bytes of %s are in use in the end: %v", d.GetUsedBytes(), config.Name, err)
			}
		})
		var own []grpc.ServerOption
		for _, o := range opts {
			own = append(own, o(i)...)
		}
		_, address := serve(t, w.Register, own...)
		r.workers = append(r.workers, w)
		r.members = append(r.members, membership.Member{Name: config.Name, Role: membership.RoleWorker, Address: address, Weight: 1})
	}
	r.address = startCoordinator(t, r.members)
	r.Client = dial(t, r.address)
	return r
}

// expire has all that has gone unused for so long end, and says how many sessions are left.
func (r *real) expire(t testing.TB, unused time.Duration) int {
	t.Helper()
	r.clock.move(unused)
	for _, w := range r.workers {
		ctx, cancel := context.WithCancel(t.Context())
		ticks, done := make(chan time.Time), make(chan struct{})
		go func() { defer close(done); w.Expire(ctx, ticks) }()
		ticks <- time.Time{}
		cancel()
		<-done
	}
	all, err := r.Sessions(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return len(all.Sessions)
}

// counts are what each worker has in use.
type counts struct{ pages, steps, tokens, lanes uint64 }

func (r *real) counts(t testing.TB) []counts {
	t.Helper()
	caches, err := r.Caches(t.Context())
	if err != nil || len(caches) != len(r.workers) {
		t.Fatalf("%v: %v", caches, err)
	}
	slices.SortFunc(caches, func(a, b client.Cache) int { return cmp.Compare(a.Worker, b.Worker) })
	var all []counts
	for _, c := range caches {
		all = append(all, counts{c.UsedBytes, c.QueuedSteps, c.QueuedTokens, c.Lanes})
	}
	return all
}

// inUse are the counts without lanes, which clients open and close when they like.
func (r *real) inUse(t testing.TB) []counts {
	t.Helper()
	all := r.counts(t)
	for i := range all {
		all[i].lanes = 0
	}
	return all
}

// small are layers whose groups two workers share, of each kind of storage that differs.
var small = layers[:2]

// eachReal runs a test through the coordinator and directly, on two workers.
func eachReal(t *testing.T, config worker.Config, test func(t *testing.T, c *real, direct bool)) {
	for _, direct := range []bool{false, true} {
		t.Run(fmt.Sprintf("direct=%v", direct), func(t *testing.T) { test(t, startCounted(t, 2, config), direct) })
	}
}

// attended does one step and returns what came.
func attended(t testing.TB, s *client.Session, layer int, x tokens) ([]float32, error) {
	t.Helper()
	l := s.Layers()[layer]
	context := make([]float32, x.n*l.Heads*l.VDim)
	return context, s.Step(t.Context(), layer, x.q, x.k, x.v, context, nil)
}

func rng(seed uint64) *rand.Rand { return rand.New(rand.NewPCG(seed, 2)) }
