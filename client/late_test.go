package client_test

import (
	"bytes"
	"context"
	"errors"
	"math"
	"slices"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"

	"headwater.example/client"
	"headwater.example/internal/membership"
	"headwater.example/internal/testkit/await"
	headwaterv1 "headwater.example/proto/headwater/v1"
	"headwater.example/worker"
)

// keeper keeps one message to a worker back, as a network does: a call, or the next step on a lane. Those of other calls pass it.
type keeper struct {
	mu      sync.Mutex
	method  string // of the call that is kept, "" keeps none
	calls   int    // under way, but for those that look
	arrived chan struct{}
	release chan struct{}
	dead    bool // nothing reaches the worker
}

// kill makes the worker one that nothing reaches, or brings it back.
func (k *keeper) kill(dead bool) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.dead = dead
}

func (k *keeper) lives() error {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.dead {
		return status.Error(codes.Unavailable, "connection refused")
	}
	return nil
}

// keep keeps the next message of a method. It says when that has arrived, and lets it go on.
func (k *keeper) keep(method string) (arrived <-chan struct{}, letGo func()) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.method, k.arrived, k.release = method, make(chan struct{}), make(chan struct{})
	return k.arrived, sync.OnceFunc(func() { close(k.release) })
}

func (k *keeper) pass(method string) {
	k.mu.Lock()
	arrived, release := k.arrived, k.release
	kept := method == k.method
	if kept {
		k.method = ""
	}
	k.mu.Unlock()
	if kept {
		close(arrived)
		select {
		case <-release:
		case <-time.After(await.Patience): // the test has failed before it let go
		}
	}
}

func (k *keeper) add(n int) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.calls += n
}

// idle says whether no call is under way.
func (k *keeper) idle() bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.calls == 0
}

func (k *keeper) unary(ctx context.Context, req any, info *grpc.UnaryServerInfo, handle grpc.UnaryHandler) (any, error) {
	if info.FullMethod != headwaterv1.SessionService_ListSessions_FullMethodName {
		k.add(1)
		defer k.add(-1)
	}
	if err := k.lives(); err != nil {
		return nil, err
	}
	k.pass(info.FullMethod)
	return handle(context.WithoutCancel(ctx), req)
}

func (k *keeper) stream(srv any, stream grpc.ServerStream, info *grpc.StreamServerInfo, handle grpc.StreamHandler) error {
	return handle(srv, keptStream{stream, k, info.FullMethod})
}

type keptStream struct {
	grpc.ServerStream
	k      *keeper
	method string
}

func (s keptStream) RecvMsg(m any) error {
	if err := s.ServerStream.RecvMsg(m); err != nil {
		return err
	}
	s.k.pass(s.method)
	return s.k.lives()
}

const (
	laneMethod     = headwaterv1.SessionService_Lane_FullMethodName
	createMethod   = headwaterv1.SessionService_CreateSession_FullMethodName
	forkMethod     = headwaterv1.SessionService_ForkSession_FullMethodName
	truncateMethod = headwaterv1.SessionService_TruncateSession_FullMethodName
)

// endsAt is a context that is cancelled when a message has arrived. If none does, it ends by its deadline.
func endsAt(t *testing.T, arrived <-chan struct{}) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), await.Patience)
	t.Cleanup(cancel)
	go func() {
		defer cancel()
		select {
		case <-arrived:
		case <-ctx.Done():
		}
	}()
	return ctx
}

// eachKept runs a test on n workers, each with its keeper, through the coordinator and directly.
func eachKept(t *testing.T, n int, test func(t *testing.T, c *real, keepers []*keeper, direct bool)) {
	for _, direct := range []bool{false, true} {
		t.Run(map[bool]string{false: "relayed", true: "direct"}[direct], func(t *testing.T) {
			keepers := make([]*keeper, n)
			for i := range keepers {
				keepers[i] = &keeper{}
			}
			c := startCounted(t, n, worker.Config{}, func(i int) []grpc.ServerOption {
				return []grpc.ServerOption{grpc.ChainUnaryInterceptor(keepers[i].unary), grpc.ChainStreamInterceptor(keepers[i].stream)}
			})
			test(t, c, keepers, direct)
		})
	}
}

// until waits for something that a worker's state says.
func until(t *testing.T, m membership.Member, id client.SessionID, holds func(*headwaterv1.SessionState) bool) {
	t.Helper()
	conn, err := grpc.NewClient(m.Address, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	await.That(t, "the awaited state of session "+id.String(), func() bool {
		resp, err := headwaterv1.NewSessionServiceClient(conn).ListSessions(t.Context(), &headwaterv1.ListSessionsRequest{Sessions: [][]byte{id[:]}})
		if err != nil {
			t.Fatal(err)
		}
		var state *headwaterv1.SessionState
		if len(resp.GetSessions()) > 0 {
			state = resp.GetSessions()[0]
		}
		return holds(state)
	})
}

var twoGroups = []client.Layer{{Heads: 4, KVHeads: 2, HeadDim: 8}}

// sees fails unless the queries of a session give what the model does.
func sees(t *testing.T, s *client.Session, m *model) {
	t.Helper()
	if s.Len() != m.len(0) {
		t.Fatalf("the session has %d positions, want %d", s.Len(), m.len(0))
	}
	x := project(rng(77), m.layers[0], 1)
	want, _ := m.attend(t, 0, x.q, m.len(0)-1, nil)
	got := make([]float32, len(want))
	if err := s.Step(t.Context(), 0, x.q, nil, nil, got, nil); err != nil {
		t.Fatal(err)
	}
	equal(t, "context", got, want)
}

// TestTwoFailedStepsAreNotMixed: a step is refused by one worker and kept back from the other, so that its caller gives it up;
// another one of the same length follows. Whoever takes the session up, or its snapshot, has all of the other and nothing of the first.
func TestTwoFailedStepsAreNotMixed(t *testing.T) {
	eachKept(t, 2, func(t *testing.T, c *real, keepers []*keeper, direct bool) {
		r := rng(1)
		s, m := open(t, c.Client, client.SessionOptions{Layers: twoGroups, Direct: direct}), newModel(twoGroups)
		step(t, s, m, r, 0, 5)
		found, err := c.FindSession(t.Context(), s.ID())
		if err != nil {
			t.Fatal(err)
		}
		slow := slices.IndexFunc(c.members, func(m membership.Member) bool { return m.Name == found.Holders[0].Name })
		other := int(found.Holders[1].Layers[0].Groups[0])
		// The scores of the other worker's group are not finite.
		first := project(r, twoGroups[0], 3)
		for t := range first.n {
			for i := range 8 {
				first.k[(t*2+other)*8+i], first.q[(t*4+other*2)*8+i] = math.MaxFloat32, math.MaxFloat32
			}
		}
		arrived, letGo := keepers[slow].keep(laneMethod)
		ctx := endsAt(t, arrived)
		if err := s.Step(ctx, 0, first.q, first.k, first.v, make([]float32, first.n*4*8), nil); err == nil {
			t.Fatal("a step that no worker has done")
		}
		await.One(t, arrived, "the step, at the worker that keeps it")
		second := project(r, twoGroups[0], 3)
		done := make(chan error, 1)
		go func() { done <- s.Step(t.Context(), 0, nil, second.k, second.v, nil, nil) }()
		until(t, c.members[1-slow], s.ID(), func(s *headwaterv1.SessionState) bool { return s.GetLayers()[0].GetLength() == 8 })
		letGo()
		if err := await.One(t, done, "the end of the second step"); err == nil {
			m.append(0, second)
		}
		taken, err := dial(t, c.address).Attach(t.Context(), s.ID(), client.AttachOptions{Direct: direct})
		if err != nil {
			t.Fatal(err)
		}
		sees(t, taken, m)
		var b bytes.Buffer
		if _, err := c.SnapshotSession(t.Context(), s.ID(), &b, nil); err != nil {
			t.Fatal(err)
		}
		restored, err := c.RestoreSession(t.Context(), &b, client.RestoreOptions{Direct: direct})
		if err != nil {
			t.Fatal(err)
		}
		sees(t, restored, m)
	})
}

// TestAForkHasNothingOfAFailedStep: neither one that is on its way, nor one that was done while its answer was lost.
func TestAForkHasNothingOfAFailedStep(t *testing.T) {
	eachKept(t, 2, func(t *testing.T, c *real, keepers []*keeper, direct bool) {
		r := rng(2)
		s, m := open(t, c.Client, client.SessionOptions{Layers: twoGroups, Direct: direct}), newModel(twoGroups)
		step(t, s, m, r, 0, 10)
		x := project(r, twoGroups[0], 300)
		arrived, letGo := keepers[1].keep(laneMethod)
		ctx := endsAt(t, arrived)
		if err := s.Step(ctx, 0, x.q, x.k, x.v, make([]float32, x.n*4*8), nil); err == nil {
			t.Fatal("a step that was kept back")
		}
		await.One(t, arrived, "the step, at the worker that keeps it")
		child, err := s.Fork(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		letGo()
		sees(t, child, m)
		sees(t, s, m)
		step(t, child, m.clone(), r, 0, 3)
		step(t, s, m, r, 0, 2)
	})
}

// TestATruncationThatComesLateTakesNothingBack: it was reported as failed, and what was appended and acknowledged since stays.
func TestATruncationThatComesLateTakesNothingBack(t *testing.T) {
	eachKept(t, 1, func(t *testing.T, c *real, keepers []*keeper, direct bool) {
		r := rng(3)
		s, m := open(t, c.Client, client.SessionOptions{Layers: twoGroups, Direct: direct}), newModel(twoGroups)
		step(t, s, m, r, 0, 20)
		arrived, letGo := keepers[0].keep(truncateMethod)
		ctx := endsAt(t, arrived)
		if err := s.Truncate(ctx, 5); !errors.Is(err, context.Canceled) {
			t.Fatalf("a truncation that was kept back: %v", err)
		}
		m.truncate(s.Len())
		step(t, s, m, r, 0, 4)
		letGo()
		// What comes next waits for it: the worker does calls on one session one after the other.
		until(t, c.members[0], s.ID(), func(*headwaterv1.SessionState) bool { return keepers[0].idle() })
		step(t, s, m, r, 0, 1)
		taken, err := dial(t, c.address).Attach(t.Context(), s.ID(), client.AttachOptions{Direct: direct})
		if err != nil {
			t.Fatal(err)
		}
		sees(t, taken, m)
	})
}

// TestWhatIsGivenUpDoesNotStay: a session or fork whose caller gave up is not made by the call that comes late.
func TestWhatIsGivenUpDoesNotStay(t *testing.T) {
	eachKept(t, 1, func(t *testing.T, c *real, keepers []*keeper, direct bool) {
		opts := client.SessionOptions{Layers: twoGroups, Direct: direct}
		s := open(t, c.Client, opts)
		for method, call := range map[string]func(ctx context.Context) error{
			createMethod: func(ctx context.Context) error { _, err := c.OpenSession(ctx, opts); return err },
			forkMethod:   func(ctx context.Context) error { _, err := s.Fork(ctx); return err },
		} {
			arrived, letGo := keepers[0].keep(method)
			ctx := endsAt(t, arrived)
			if err := call(ctx); !errors.Is(err, context.Canceled) {
				t.Fatalf("%s was kept back: %v", method, err)
			}
			letGo()
			until(t, c.members[0], s.ID(), func(*headwaterv1.SessionState) bool { return keepers[0].idle() })
			all, err := c.Sessions(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			if n := len(all.Sessions); n != 1 {
				t.Errorf("%s: %d sessions are held, want 1", method, n)
			}
		}
	})
}

// changing is a view of members that come and go.
type changing struct {
	mu      sync.Mutex
	members []membership.Member
	changed chan struct{}
}

func (c *changing) Members() []membership.Member {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.Clone(c.members)
}

func (c *changing) Changed() <-chan struct{} {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.changed
}

func (c *changing) Close(context.Context) error { return nil }

func (c *changing) set(members []membership.Member) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.members = members
	close(c.changed)
	c.changed = make(chan struct{})
}

// TestALostWorkerIsNotForgotten: gossip drops a worker that holds a session. Until it is back, whoever asks for the session is told
// that this worker may hold it, and never that nobody does.
func TestALostWorkerIsNotForgotten(t *testing.T) {
	k := &keeper{}
	c := startCounted(t, 1, worker.Config{}, func(int) []grpc.ServerOption {
		return []grpc.ServerOption{grpc.ChainUnaryInterceptor(k.unary), grpc.ChainStreamInterceptor(k.stream)}
	})
	view := &changing{members: c.members, changed: make(chan struct{})}
	own := dial(t, startCoordinatorOf(t, view))
	r := rng(4)
	s, m := open(t, own, client.SessionOptions{Layers: twoGroups}), newModel(twoGroups)
	step(t, s, m, r, 0, 5)
	k.kill(true)
	view.set(nil)
	for range 3 {
		for name, call := range map[string]func() error{
			"a step": func() error { x := project(r, twoGroups[0], 1); return s.Step(t.Context(), 0, nil, x.k, x.v, nil, nil) },
			"find":   func() error { _, err := own.FindSession(t.Context(), s.ID()); return err },
			"attach": func() error { _, err := own.Attach(t.Context(), s.ID(), client.AttachOptions{}); return err },
		} {
			err := call()
			var e *client.SessionError
			if !errors.As(err, &e) || name != "a step" && !errors.Is(err, client.ErrLost) || errors.Is(err, client.ErrNotFound) || e.Holder != "w1" {
				t.Errorf("%s: got %v, want that w1 is lost", name, err)
			}
		}
	}
	k.kill(false)
	view.set(c.members)
	step(t, s, m, r, 0, 2)
}
