package coordinator_test

import (
	"bytes"
	"context"
	"log/slog"
	"math/rand/v2"
	"slices"
	"strings"
	"sync/atomic"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"headwater.example/client"
	"headwater.example/internal/membership"
	"headwater.example/internal/rpc"
	"headwater.example/internal/session/fanout"
	headwaterv1 "headwater.example/proto/headwater/v1"
)

const (
	exportMethod = "/headwater.v1.SessionService/ExportSession"
	fillMethod   = "/headwater.v1.FillService/FillSession"
	dropMethod   = "/headwater.v1.SessionService/DropSession"
)

// hooked calls do before each call of a method on a worker, whose error is the call's.
func hooked(method string, do func() error) grpc.StreamServerInterceptor {
	return func(srv any, s grpc.ServerStream, info *grpc.StreamServerInfo, handle grpc.StreamHandler) error {
		if info.FullMethod == method {
			if err := do(); err != nil {
				return err
			}
		}
		return handle(srv, s)
	}
}

// openCopied opens a session of some positions on so many workers.
func openCopied(t *testing.T, c *cluster, workers int) *client.Session {
	t.Helper()
	s, err := c.OpenSession(t.Context(), client.SessionOptions{Layers: copied, Workers: workers})
	if err != nil {
		t.Fatal(err)
	}
	for layer := range copied {
		if err := s.Do(t.Context(), drawn(rand.New(rand.NewPCG(1, uint64(layer))), copied[layer], layer, 150, 1)); err != nil {
			t.Fatal(err)
		}
	}
	return s
}

// TestACopyGoesFromWorkerToWorker: nothing of a copy is read by the coordinator, unless the worker that gets it is older, knows no other
// worker, or does not reach it. Then it is, and the log says so. The copy is the same.
func TestACopyGoesFromWorkerToWorker(t *testing.T) {
	for name, one := range map[string]struct {
		members func() []membership.Member
		older   bool
		through string
	}{
		"both know each other": {},
		"an older worker":      {older: true, through: "unknown service"},
		"nobody is known":      {members: func() []membership.Member { return nil }, through: "it is not known by the cluster's membership"},
		"it is somewhere else": {members: func() []membership.Member { return elsewhere }, through: "can not fetch from worker"},
		"a client is named so": {members: func() []membership.Member {
			named := slices.Clone(elsewhere)
			for i := range named {
				named[i].Role = membership.RoleCoordinator
			}
			return named
		}, through: "it is not known by the cluster's membership"},
	} {
		t.Run(name, func(t *testing.T) {
			two := workers(2)
			for i := range two {
				two[i].members = one.members
				if one.older {
					two[i].stream = hooked(fillMethod, func() error { return status.Error(codes.Unimplemented, "unknown service headwater.v1.FillService") })
				}
			}
			c := startCluster(t, clusterOptions{workers: two})
			s := openCopied(t, c, 1)
			var reads atomic.Int64
			conns := fanout.NewConns(nil, append(rpc.DialOptions(), grpc.WithChainStreamInterceptor(
				func(ctx context.Context, desc *grpc.StreamDesc, cc *grpc.ClientConn, method string, open grpc.Streamer, opts ...grpc.CallOption) (grpc.ClientStream, error) {
					if method == exportMethod {
						reads.Add(1)
					}
					return open(ctx, desc, cc, method, opts...)
				}))...)
			defer conns.Close()
			var log bytes.Buffer
			conns.Log = slog.New(slog.NewTextHandler(&log, nil))
			copyOver(t, conns, c, s.ID())
			if said := log.String(); (reads.Load() > 0) != (one.through != "") || strings.Contains(said, "goes through the coordinator") != (one.through != "") || !strings.Contains(said, one.through) {
				t.Errorf("%d reads by the coordinator, whose log says %q", reads.Load(), said)
			}
			after := tellOf(t, conns, c, s.ID())
			for l := range copied {
				a, b := after[0].GetLayers()[l], after[1].GetLayers()[l]
				if a.GetLength() != 150 || b.GetLength() != 150 || !slices.Equal(a.GetHashes(), b.GetHashes()) || a.GetChain() != b.GetChain() {
					t.Errorf("layer %d: %v at one worker, %v at the other", l, a, b)
				}
			}
		})
	}
}

// elsewhere are workers at addresses where nobody is.
var elsewhere = []membership.Member{
	{Name: "w0", Role: membership.RoleWorker, Address: "127.0.0.1:1"}, {Name: "w1", Role: membership.RoleWorker, Address: "127.0.0.1:1"},
}

// TestAWorkerIsNotSentWhatItHas: a worker that has some groups of a session and gets the others is sent no more than these, and no more
// counts as copied.
func TestAWorkerIsNotSentWhatItHas(t *testing.T) {
	var reads [2]atomic.Int64
	two := workers(2)
	for i := range two {
		two[i].stream = hooked(exportMethod, func() error { reads[i].Add(1); return nil })
	}
	c := startCluster(t, clusterOptions{workers: two})
	s := openCopied(t, c, 1)
	conns := fanout.NewConns(nil, rpc.DialOptions()...)
	defer conns.Close()
	copiedBytes := 0
	conns.OnCopy = func(_ context.Context, bytes int, _ bool) error { copiedBytes += bytes; return nil }
	at := slices.IndexFunc(tellOf(t, conns, c, s.ID()), func(s *headwaterv1.SessionState) bool { return s == nil })
	if at != 1 {
		c.workers[0], c.workers[1] = c.workers[1], c.workers[0]
	}
	copyTo := func(groups ...[]int) {
		t.Helper()
		told := tellOf(t, conns, c, s.ID())
		for i, state := range told {
			if state != nil {
				state.Holders[0].Name, state.Holders[0].Address = c.workers[i].Name, c.workers[i].Address
			}
		}
		held := slices.DeleteFunc(slices.Clone(told), func(s *headwaterv1.SessionState) bool { return s == nil })
		h, _, err := fanout.Current(held)
		if err != nil {
			t.Fatal(err)
		}
		copiedBytes = 0
		target := &fanout.Holder{Name: c.workers[1].Name, Address: c.workers[1].Address, Groups: groups}
		if err := conns.Restore(t.Context(), h, held[0], target); err != nil {
			t.Fatal(err)
		}
		told = tellOf(t, conns, c, s.ID())
		for l, groups := range groups {
			for i, g := range groups {
				if told[1].GetLayers()[l].GetHashes()[i] != told[0].GetLayers()[l].GetHashes()[g] {
					t.Errorf("layer %d group %d has another hash", l, g)
				}
			}
		}
	}
	// A position of the first layer's groups has 64 bytes, one of the second's 32 and two scales.
	copyTo([]int{0, 1, 2}, []int{1})
	if want := 150 * (3*64 + 40); copiedBytes != want {
		t.Errorf("%d bytes were copied, not %d", copiedBytes, want)
	}
	copyTo([]int{0, 1, 2, 3}, []int{0, 1})
	if want := 150 * (64 + 40); copiedBytes != want || reads[at].Load() != 0 {
		t.Errorf("%d bytes were copied, not %d, and the worker was asked for its own %d times", copiedBytes, want, reads[at].Load())
	}
}

// TestACopyWhoseEndsDieLeavesNothing: the only source ends in the middle of a copy, or the worker that gets it does not go on with it. The
// session goes on without the copy, and nothing of it is left.
func TestACopyWhoseEndsDieLeavesNothing(t *testing.T) {
	for name, method := range map[string]string{"the source": exportMethod, "the target": fillMethod} {
		t.Run(name, func(t *testing.T) {
			two := workers(2)
			for i := range two {
				two[i].stream = hooked(method, func() error { return status.Error(codes.Unavailable, "the worker ends") })
			}
			c := startCluster(t, clusterOptions{workers: two})
			s := openCopied(t, c, 1)
			conns := fanout.NewConns(nil, rpc.DialOptions()...)
			defer conns.Close()
			if err := tryCopy(t, conns, c, s.ID()); err == nil {
				t.Fatal("a copy was made")
			}
			held := 0
			for _, w := range c.workers {
				resp, err := conns.List(t.Context(), w.Name, w.Address, &headwaterv1.ListSessionsRequest{})
				if err != nil {
					t.Fatal(err)
				}
				held += len(resp.GetSessions())
			}
			if held != 1 {
				t.Errorf("%d sessions are held", held)
			}
			if err := s.Do(t.Context(), drawn(rand.New(rand.NewPCG(2, 0)), copied[0], 0, 1, 1)); err != nil {
				t.Errorf("the session does not go on: %v", err)
			}
		})
	}
}

// TestWhatAnAbandonedCopyLeftIsDropped: a copy is given up while its target can't be told. What it was filled with is no session: it is
// dropped once the target answers, and nobody copies it.
func TestWhatAnAbandonedCopyLeftIsDropped(t *testing.T) {
	var fills, drops atomic.Int64
	once := func(calls *atomic.Int64) error {
		if calls.Add(1) == 1 {
			return status.Error(codes.Unavailable, "the worker ends")
		}
		return nil
	}
	two := workers(2)
	for i := range two {
		two[i].stream = hooked(fillMethod, func() error { return once(&fills) })
		two[i].unary = func(ctx context.Context, req any, info *grpc.UnaryServerInfo, handle grpc.UnaryHandler) (any, error) {
			if info.FullMethod == dropMethod {
				if err := once(&drops); err != nil {
					return nil, err
				}
			}
			return handle(ctx, req)
		}
	}
	c := startCluster(t, clusterOptions{workers: two})
	s := openCopied(t, c, 1)
	conns := fanout.NewConns(nil, rpc.DialOptions()...)
	defer conns.Close()
	holder := slices.IndexFunc(tellOf(t, conns, c, s.ID()), func(s *headwaterv1.SessionState) bool { return s != nil })
	if err := c.Drain(t.Context(), c.workers[holder].Name, nil); err != nil {
		t.Fatal(err)
	}
	if fills.Load() < 2 || drops.Load() < 2 {
		t.Fatalf("%d copies were begun, and %d times something was dropped", fills.Load(), drops.Load())
	}
	for _, w := range c.workers {
		resp, err := conns.List(t.Context(), w.Name, w.Address, &headwaterv1.ListSessionsRequest{})
		if err != nil {
			t.Fatal(err)
		}
		for _, held := range resp.GetSessions() {
			if id := s.ID(); w.Name == c.workers[holder].Name || !bytes.Equal(held.GetSession(), id[:]) {
				t.Errorf("worker %s holds session %x", w.Name, held.GetSession())
			}
		}
	}
}
