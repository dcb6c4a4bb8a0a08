package coordinator_test

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc/stats"

	"headwater.example/client"
	"headwater.example/coordinator"
	"headwater.example/internal/membership"
)

// TestACoordinatorThatStartsAwaitsItsWorkers: until those that it knew before have joined, or a minute has passed, a session that
// they may hold is not said to be gone.
func TestACoordinatorThatStartsAwaitsItsWorkers(t *testing.T) {
	var later atomic.Int64 // nanoseconds
	config := coordinator.Config{DataDir: t.TempDir(), Now: func() time.Time { return time.Unix(1e9, later.Load()) }}
	c := startCluster(t, clusterOptions{workers: workers(2), config: config})
	first, second := c.workers[0].Member, c.workers[1].Member
	s, err := c.OpenSession(t.Context(), client.SessionOptions{Layers: []client.Layer{{Heads: 2, KVHeads: 2, HeadDim: 4}}})
	if err != nil {
		t.Fatal(err)
	}
	row := make([]float32, 8)
	step := func(s *client.Session) error {
		return s.Step(t.Context(), 0, row, row, row, make([]float32, 8), make([]float32, 2))
	}
	if err := step(s); err != nil {
		t.Fatal(err)
	}
	for name, joined := range map[string]int{"nobody has joined": 0, "one has": 1} {
		c.stop()
		c.view.set(append(c.view.Members()[:0:0], first, second)[:joined]...)
		c.start(t, config)
		if _, err := c.Attach(t.Context(), s.ID(), client.AttachOptions{}); !errors.Is(err, client.ErrTryAgain) || !strings.Contains(err.Error(), second.Name) {
			t.Errorf("%s: attach: %v", name, err)
		}
		if err := c.DropSession(t.Context(), client.SessionID{1}); !errors.Is(err, client.ErrTryAgain) {
			t.Errorf("%s: drop: %v", name, err)
		}
		if _, err := c.Attach(t.Context(), s.ID(), client.AttachOptions{Direct: true}); !errors.Is(err, client.ErrTryAgain) {
			t.Errorf("%s: attach directly: %v", name, err)
		}
	}
	c.view.set(first, second)
	back, err := c.Attach(t.Context(), s.ID(), client.AttachOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if err := step(back); err != nil {
		t.Error(err)
	}
	if _, err := c.Attach(t.Context(), client.SessionID{1}, client.AttachOptions{}); !errors.Is(err, client.ErrGone) {
		t.Errorf("once all have joined: %v", err)
	}

	c.stop()
	c.view.set(first)
	c.start(t, config)
	if _, err := c.Attach(t.Context(), s.ID(), client.AttachOptions{}); !errors.Is(err, client.ErrTryAgain) {
		t.Errorf("before a minute: %v", err)
	}
	later.Store(int64(time.Minute))
	if _, err := c.Attach(t.Context(), s.ID(), client.AttachOptions{}); !errors.Is(err, client.ErrGone) {
		t.Errorf("after a minute: %v", err)
	}
}

// TestAWorkerThatHasJoinedSaysWhereTheOthersAre: a coordinator has started again, and one worker has found it. A session that others hold as
// well goes on, relayed and direct, and no copy is made in the place of what these have.
func TestAWorkerThatHasJoinedSaysWhereTheOthersAre(t *testing.T) {
	var all atomic.Pointer[[]membership.Member]
	all.Store(&[]membership.Member{})
	known := workerOptions{members: func() []membership.Member { return *all.Load() }}
	config := coordinator.Config{DataDir: t.TempDir(), Replicas: 1}
	c := startCluster(t, clusterOptions{workers: []workerOptions{known, known, known}, config: config})
	everybody := c.view.Members()
	all.Store(&everybody)
	row := make([]float32, 8)
	for _, direct := range []bool{false, true} {
		c.view.set(everybody...)
		s, err := c.OpenSession(t.Context(), client.SessionOptions{Layers: []client.Layer{{Heads: 2, KVHeads: 2, HeadDim: 4}}, Direct: direct})
		if err != nil {
			t.Fatal(err)
		}
		s.Keep(true)
		if err := s.Step(t.Context(), 0, row, row, row, make([]float32, 8), make([]float32, 2)); err != nil {
			t.Fatal(err)
		}
		before, err := c.FindSession(t.Context(), s.ID())
		if err != nil {
			t.Fatal(err)
		}
		c.stop()
		first := slices.IndexFunc(everybody, func(m membership.Member) bool { return m.Name == before.Holders[0].Name })
		c.view.set(everybody[first])
		c.start(t, config)
		back, err := c.Attach(t.Context(), s.ID(), client.AttachOptions{Direct: direct})
		if err != nil {
			t.Fatalf("direct %v: %v", direct, err)
		}
		if err := back.Step(t.Context(), 0, row, row, row, make([]float32, 8), make([]float32, 2)); err != nil {
			t.Errorf("direct %v: %v", direct, err)
		}
		c.view.set(everybody...)
		after, err := c.FindSession(t.Context(), s.ID())
		if err != nil || len(after.Holders) != len(before.Holders) {
			t.Errorf("direct %v: %v hold it, and %v did: %v", direct, after, before, err)
		}
	}
}

// joining lets a worker join while the coordinator asks another one for sessions.
type joining struct{ join atomic.Pointer[func()] }

func (j *joining) TagRPC(ctx context.Context, info *stats.RPCTagInfo) context.Context {
	if join := j.join.Load(); join != nil && strings.HasSuffix(info.FullMethodName, "/ListSessions") {
		(*join)()
	}
	return ctx
}

func (*joining) HandleRPC(context.Context, stats.RPCStats) {}

func (*joining) TagConn(ctx context.Context, _ *stats.ConnTagInfo) context.Context { return ctx }

func (*joining) HandleConn(context.Context, stats.ConnStats) {}

// TestAWorkerThatJoinsMeanwhileIsAwaited: one that the coordinator knew before its start joins just when the others have been asked for
// a session. The session that it holds is not gone.
func TestAWorkerThatJoinsMeanwhileIsAwaited(t *testing.T) {
	config, asked := coordinator.Config{DataDir: t.TempDir()}, &joining{}
	c := startCluster(t, clusterOptions{workers: []workerOptions{{stats: asked}, {}}, config: config})
	first, second := c.workers[0].Member, c.workers[1].Member
	c.view.set(second)
	s, err := c.OpenSession(t.Context(), client.SessionOptions{Layers: []client.Layer{{Heads: 2, KVHeads: 2, HeadDim: 4}}})
	if err != nil {
		t.Fatal(err)
	}
	id := s.ID()
	s.Keep(true)
	for name, call := range map[string]func() error{
		"find":   func() error { _, err := c.FindSession(t.Context(), id); return err },
		"attach": func() error { _, err := c.Attach(t.Context(), id, client.AttachOptions{}); return err },
		"drop":   func() error { return c.DropSession(t.Context(), id) },
	} {
		asked.join.Store(nil)
		c.stop()
		c.view.set(first)
		c.start(t, config)
		join := sync.OnceFunc(func() { c.view.set(first, second) })
		asked.join.Store(&join)
		if err := call(); errors.Is(err, client.ErrGone) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestADamagedListOfWorkersIsNone: the coordinator starts and knows none from before.
func TestADamagedListOfWorkersIsNone(t *testing.T) {
	folder := t.TempDir()
	if err := os.WriteFile(filepath.Join(folder, "workers.json"), []byte(`{"workers":[`), 0o600); err != nil {
		t.Fatal(err)
	}
	c := startCluster(t, clusterOptions{workers: workers(1), config: coordinator.Config{DataDir: folder}})
	if _, err := c.Attach(t.Context(), client.SessionID{1}, client.AttachOptions{}); !errors.Is(err, client.ErrGone) {
		t.Error(err)
	}
}
