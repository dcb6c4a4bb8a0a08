package coordinator_test

import (
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"headwater.example/client"
	"headwater.example/coordinator"
	"headwater.example/internal/rpc"
	"headwater.example/internal/session/fanout"
	"headwater.example/internal/testkit/await"
	headwaterv1 "headwater.example/proto/headwater/v1"
	"headwater.example/tensor"
)

// drawn fills a step of random tensors.
func drawn(r *rand.Rand, l client.Layer, layer, appended, queries int) *client.Step {
	floats := func(n int) []float32 {
		f := make([]float32, n)
		for i := range f {
			f[i] = float32(r.NormFloat64())
		}
		return f
	}
	return &client.Step{
		Layer: layer, Q: floats(queries * l.Heads * l.HeadDim), K: floats(appended * l.KVHeads * l.HeadDim), V: floats(appended * l.KVHeads * l.HeadDim),
		Context: make([]float32, queries*l.Heads*l.HeadDim), LSE: make([]float32, queries*l.Heads),
	}
}

// TestSessionsOutliveTheirWorkers: sessions with a copy of each shard go on when a worker is killed, whichever it is, and answer
// with the bits that a single worker gives, relayed and direct, also what is forked, truncated and taken up again. They are lost
// only if both copies are.
func TestSessionsOutliveTheirWorkers(t *testing.T) {
	window := client.Within(70)
	layers := []client.Layer{
		{Heads: 8, KVHeads: 4, HeadDim: 16, Storage: tensor.BF16},
		{Heads: 4, KVHeads: 1, HeadDim: 16, Storage: tensor.I8, WindowLeft: window},
	}
	one := startCluster(t, clusterOptions{workers: workers(1)})
	for _, direct := range []bool{false, true} {
		for victim := range 3 {
			t.Run(fmt.Sprintf("direct %v, w%d", direct, victim), func(t *testing.T) {
				c := startCluster(t, clusterOptions{workers: workers(3), config: coordinator.Config{Replicas: 1}})
				s, err := c.OpenSession(t.Context(), client.SessionOptions{Layers: layers, Direct: direct})
				if err != nil {
					t.Fatal(err)
				}
				truth, err := one.OpenSession(t.Context(), client.SessionOptions{Layers: layers})
				if err != nil {
					t.Fatal(err)
				}
				seed := uint64(victim)
				both := func(s, truth *client.Session, appended int) {
					t.Helper()
					seed++
					for layer := range layers {
						got := drawn(rand.New(rand.NewPCG(seed, uint64(layer))), layers[layer], layer, appended, appended)
						want := drawn(rand.New(rand.NewPCG(seed, uint64(layer))), layers[layer], layer, appended, appended)
						if err := s.Do(t.Context(), got); err != nil {
							t.Fatalf("at %d positions: %v", s.Len(), err)
						}
						if err := truth.Do(t.Context(), want); err != nil {
							t.Fatal(err)
						}
						if !slices.Equal(got.Context, want.Context) || !slices.Equal(got.LSE, want.LSE) {
							t.Fatalf("layer %d at %d positions: other bits than a single worker's", layer, s.Len())
						}
					}
				}
				both(s, truth, 150)
				both(s, truth, 1)
				c.workers[victim].server.Stop()
				for range 3 {
					both(s, truth, 1)
				}
				fork, err := s.Fork(t.Context())
				if err != nil {
					t.Fatal(err)
				}
				other, err := truth.Fork(t.Context())
				if err != nil {
					t.Fatal(err)
				}
				both(fork, other, 2)
				receipt := s.Receipt()
				again, err := c.Attach(t.Context(), s.ID(), client.AttachOptions{Receipt: &receipt, Direct: !direct})
				if err != nil {
					t.Fatal(err)
				}
				if err := again.Truncate(t.Context(), again.Len()-2); err != nil {
					t.Fatal(err)
				}
				if err := truth.Truncate(t.Context(), truth.Len()-2); err != nil {
					t.Fatal(err)
				}
				both(again, truth, 70)
				if err := again.Drop(t.Context()); err != nil {
					t.Error(err)
				}
			})
		}
	}
}

// TestMissingCopiesAreMade: when a worker is killed, the sessions that had copies there get new ones at those that are left, while they
// go on, so that they outlive the next one too, and a new worker takes copies when too few are left.
func TestMissingCopiesAreMade(t *testing.T) {
	layers := []client.Layer{
		{Heads: 8, KVHeads: 4, HeadDim: 16, Storage: tensor.BF16},
		{Heads: 4, KVHeads: 2, HeadDim: 16, Storage: tensor.I8, WindowLeft: client.Within(70)},
		{Heads: 2, KVHeads: 1, HeadDim: 16},
	}
	for _, direct := range []bool{false, true} {
		t.Run(fmt.Sprintf("direct %v", direct), func(t *testing.T) {
			one := startCluster(t, clusterOptions{workers: workers(1)})
			c := startCluster(t, clusterOptions{workers: workers(3), config: coordinator.Config{Replicas: 1}})
			s, err := c.OpenSession(t.Context(), client.SessionOptions{Layers: layers, Direct: direct})
			if err != nil {
				t.Fatal(err)
			}
			truth, err := one.OpenSession(t.Context(), client.SessionOptions{Layers: layers})
			if err != nil {
				t.Fatal(err)
			}
			seed := uint64(0)
			both := func(appended int) {
				t.Helper()
				seed++
				for layer := range layers {
					got := drawn(rand.New(rand.NewPCG(seed, uint64(layer))), layers[layer], layer, appended, appended)
					want := drawn(rand.New(rand.NewPCG(seed, uint64(layer))), layers[layer], layer, appended, appended)
					if err := s.Do(t.Context(), got); err != nil {
						t.Fatalf("at %d positions: %v", s.Len(), err)
					}
					if err := truth.Do(t.Context(), want); err != nil {
						t.Fatal(err)
					}
					if !slices.Equal(got.Context, want.Context) || !slices.Equal(got.LSE, want.LSE) {
						t.Fatalf("layer %d at %d positions: other bits than a single worker's", layer, s.Len())
					}
				}
			}
			// twice waits until each shard has two holders that answer, while the session goes on.
			twice := func(alive ...*node) {
				t.Helper()
				await.That(t, "two copies of each shard", func() bool {
					both(1)
					found, err := c.FindSession(t.Context(), s.ID())
					if err != nil {
						t.Fatal(err)
					}
					shards := 0
					for _, h := range found.Holders {
						if slices.ContainsFunc(alive, func(n *node) bool { return n.Name == h.Name }) {
							for _, l := range h.Layers {
								shards += len(l.Groups)
							}
						}
					}
					return shards == 2*(4+2+1)
				})
			}
			both(150)
			if err := s.Truncate(t.Context(), 130); err != nil {
				t.Fatal(err)
			}
			if err := truth.Truncate(t.Context(), 130); err != nil {
				t.Fatal(err)
			}
			both(3)
			w := c.workers
			w[0].server.Stop()
			c.view.set(w[1].Member, w[2].Member)
			twice(w[1], w[2])
			w[1].server.Stop()
			both(1)
			fresh := startWorker(t, "w9", workerOptions{})
			c.view.set(w[2].Member, fresh.Member)
			twice(w[2], fresh)
			w[2].server.Stop()
			both(70)
			if err := s.Truncate(t.Context(), s.Len()-1); err != nil {
				t.Fatal(err)
			}
			if err := truth.Truncate(t.Context(), truth.Len()-1); err != nil {
				t.Fatal(err)
			}
			both(1)
		})
	}
}

// TestASessionBeginsWithTheNamesOfItsHolders: a session, and a fork, whose holders never changed say who they are. A coordinator that
// has started and finds some of them, which together have all groups, must not take these for all: what they acknowledge the others
// would miss.
func TestASessionBeginsWithTheNamesOfItsHolders(t *testing.T) {
	c := startCluster(t, clusterOptions{workers: workers(3)})
	s, err := c.OpenSession(t.Context(), client.SessionOptions{Layers: []client.Layer{{Heads: 6, KVHeads: 3, HeadDim: 16}}, Replicas: 1})
	if err != nil {
		t.Fatal(err)
	}
	child, err := s.Fork(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	conns := fanout.NewConns(nil, rpc.DialOptions()...)
	defer conns.Close()
	for _, id := range []client.SessionID{s.ID(), child.ID()} {
		for _, w := range c.workers {
			resp, err := conns.List(t.Context(), w.Name, w.Address, &headwaterv1.ListSessionsRequest{Sessions: [][]byte{id[:]}, HoldersOnly: true})
			if err != nil || len(resp.GetSessions()) != 1 {
				t.Fatalf("%s holds %v, %v", w.Name, resp.GetSessions(), err)
			}
			if names := slices.Sorted(slices.Values(resp.GetSessions()[0].GetEpoch().GetMembers())); !slices.Equal(names, []string{"w0", "w1", "w2"}) {
				t.Errorf("session %s at %s: its epoch names %v", id, w.Name, names)
			}
		}
	}
}

// TestACopyFollowsItsSession: a session that takes back positions which were copied already, just before it is held up for the rest, and
// one that another client takes over while it is copied, get their copies all the same, which are the same in every position.
func TestACopyFollowsItsSession(t *testing.T) {
	for name, one := range map[string]struct {
		before, after func(req any) bool // of the copy's calls
		do            func(ctx context.Context, c *cluster, s *client.Session) error
		length        uint64
	}{
		"a truncation": {
			before: func(req any) bool {
				take, ok := req.(*headwaterv1.TakeSessionRequest)
				return ok && take.GetEpoch().GetClosed()
			},
			do:     func(ctx context.Context, _ *cluster, s *client.Session) error { return s.Truncate(ctx, 60) },
			length: 60,
		},
		"a take-over": {
			after: func(req any) bool { _, ok := req.(*headwaterv1.CreateSessionRequest); return ok },
			do: func(ctx context.Context, c *cluster, s *client.Session) error {
				_, err := c.Attach(ctx, s.ID(), client.AttachOptions{})
				return err
			},
			length: 150,
		},
	} {
		t.Run(name, func(t *testing.T) {
			c := startCluster(t, clusterOptions{workers: workers(2)})
			s, err := c.OpenSession(t.Context(), client.SessionOptions{Layers: copied, Workers: 1})
			if err != nil {
				t.Fatal(err)
			}
			for layer := range copied {
				if err := s.Do(t.Context(), drawn(rand.New(rand.NewPCG(1, uint64(layer))), copied[layer], layer, 150, 1)); err != nil {
					t.Fatal(err)
				}
			}
			do := sync.OnceValue(func() error { return one.do(t.Context(), c, s) })
			conns := fanout.NewConns(nil, append(rpc.DialOptions(), grpc.WithChainUnaryInterceptor(
				func(ctx context.Context, method string, req, reply any, cc *grpc.ClientConn, invoke grpc.UnaryInvoker, opts ...grpc.CallOption) error {
					if one.before != nil && one.before(req) {
						if err := do(); err != nil {
							return err
						}
					}
					err := invoke(ctx, method, req, reply, cc, opts...)
					if err == nil && one.after != nil && one.after(req) {
						return do()
					}
					return err
				}))...)
			defer conns.Close()
			copyOver(t, conns, c, s.ID())
			after := tellOf(t, conns, c, s.ID())
			for l := range copied {
				a, b := after[0].GetLayers()[l], after[1].GetLayers()[l]
				if a.GetLength() != one.length || b.GetLength() != one.length || !slices.Equal(a.GetHashes(), b.GetHashes()) || a.GetChain() != b.GetChain() {
					t.Errorf("layer %d: %v at one worker, %v at the other", l, a, b)
				}
			}
		})
	}
}

// TestACopyThatFailsLeavesNothing: the request that begins a copy comes late, when the copy has been given up. Nothing is made then that
// nobody knows of.
func TestACopyThatFailsLeavesNothing(t *testing.T) {
	c := startCluster(t, clusterOptions{workers: workers(2)})
	s, err := c.OpenSession(t.Context(), client.SessionOptions{Layers: copied, Workers: 1})
	if err != nil {
		t.Fatal(err)
	}
	var late func() error
	conns := fanout.NewConns(nil, append(rpc.DialOptions(), grpc.WithChainUnaryInterceptor(
		func(ctx context.Context, method string, req, reply any, cc *grpc.ClientConn, invoke grpc.UnaryInvoker, opts ...grpc.CallOption) error {
			if _, ok := req.(*headwaterv1.CreateSessionRequest); ok {
				late = func() error { return invoke(t.Context(), method, req, reply, cc, opts...) }
				return status.Error(codes.Unavailable, "the connection broke")
			}
			return invoke(ctx, method, req, reply, cc, opts...)
		}))...)
	defer conns.Close()
	var kept rpc.Kept // the late request has a connection
	for _, w := range c.workers {
		kept.Set(conns.Conns, rpc.Peer{Name: c.workers[0].Name, Address: c.workers[0].Address}, rpc.Peer{Name: w.Name, Address: w.Address})
	}
	if err := tryCopy(t, conns, c, s.ID()); err == nil {
		t.Fatal("a copy was made whose beginning was lost")
	}
	if err := late(); err == nil {
		t.Error("a copy was begun that was given up")
	}
	for _, w := range c.workers {
		resp, err := conns.List(t.Context(), w.Name, w.Address, &headwaterv1.ListSessionsRequest{})
		if err != nil {
			t.Fatal(err)
		}
		for _, other := range resp.GetSessions() {
			if client.SessionID(other.GetSession()) != s.ID() {
				t.Errorf("%s has session %x", w.Name, other.GetSession())
			}
		}
	}
}

// copied are the layers of a session that is copied.
var copied = []client.Layer{{Heads: 8, KVHeads: 4, HeadDim: 16, Storage: tensor.BF16}, {Heads: 4, KVHeads: 2, HeadDim: 16, Storage: tensor.I8}}

// tellOf returns what each worker tells of a session, nil for one that does not hold it.
func tellOf(t *testing.T, conns *fanout.Conns, c *cluster, id client.SessionID) (all []*headwaterv1.SessionState) {
	t.Helper()
	for _, w := range c.workers {
		resp, err := conns.List(t.Context(), w.Name, w.Address, &headwaterv1.ListSessionsRequest{Sessions: [][]byte{id[:]}})
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, append(resp.GetSessions(), nil)[0])
	}
	return all
}

// copyOver copies a session that one of two workers holds as a whole to the other one.
func copyOver(t *testing.T, conns *fanout.Conns, c *cluster, id client.SessionID) {
	t.Helper()
	if err := tryCopy(t, conns, c, id); err != nil {
		t.Fatal(err)
	}
}

// tryCopy is copyOver that may fail.
func tryCopy(t *testing.T, conns *fanout.Conns, c *cluster, id client.SessionID) error {
	t.Helper()
	before := tellOf(t, conns, c, id)
	held := slices.IndexFunc(before, func(s *headwaterv1.SessionState) bool { return s != nil })
	for _, o := range before[held].GetHolders() {
		o.Name, o.Address = c.workers[held].Name, c.workers[held].Address
	}
	h, _, err := fanout.Current(before[held : held+1])
	if err != nil {
		t.Fatal(err)
	}
	target := &fanout.Holder{Name: c.workers[1-held].Name, Address: c.workers[1-held].Address, Groups: [][]int{{0, 1, 2, 3}, {0, 1}}}
	return conns.Restore(t.Context(), h, before[held], target)
}
