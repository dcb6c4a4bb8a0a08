package coordinator_test

import (
	"context"
	"testing"

	"google.golang.org/grpc/stats"

	"headwater.example/client"
	"headwater.example/coordinator"
	"headwater.example/internal/testkit/await"
)

// conns tells of a worker's connections as they come, 1, and go, -1.
type conns chan int

func (c conns) TagRPC(ctx context.Context, _ *stats.RPCTagInfo) context.Context   { return ctx }
func (c conns) TagConn(ctx context.Context, _ *stats.ConnTagInfo) context.Context { return ctx }
func (c conns) HandleRPC(context.Context, stats.RPCStats)                         {}
func (c conns) HandleConn(_ context.Context, s stats.ConnStats) {
	switch s.(type) {
	case *stats.ConnBegin:
		c <- 1
	case *stats.ConnEnd:
		c <- -1
	}
}

// TestConnectionsToWorkersThatLeftEnd: at once where no lane uses them, else with the lane. Until then its steps go on,
// because who has left the view may still answer.
func TestConnectionsToWorkersThatLeftEnd(t *testing.T) {
	told, open := make(conns, 100), 0
	c := startCluster(t, clusterOptions{workers: []workerOptions{{stats: told}, {}}})
	left, stays := c.workers[0].Member, c.workers[1].Member
	layers := []client.Layer{{Heads: 2, KVHeads: 2, HeadDim: 4}}
	s, err := c.OpenSession(t.Context(), client.SessionOptions{Layers: layers})
	if err != nil {
		t.Fatal(err)
	}
	c.view.set(stays)
	next := func() {
		t.Helper()
		open += await.One(t, told, "a connection to the worker that has left, or the end of one")
	}
	for next(); open > 0; {
		next()
	}

	row := make([]float32, 8)
	step := func() {
		t.Helper()
		if err := s.Step(t.Context(), 0, row, row, row, make([]float32, 8), make([]float32, 2)); err != nil {
			t.Fatal(err)
		}
	}
	c.view.set(left, stays)
	step()
	c.view.set(stays)
	step()
	step()
	for len(told) > 0 {
		open += <-told
	}
	if open < 1 {
		t.Error("a connection has ended that a lane uses")
	}
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
	for open > 0 {
		next()
	}
}

// TestADropPassesADeadWorker: one that holds nothing of the session is in nobody's way, also where the coordinator has to ask who
// holds it.
func TestADropPassesADeadWorker(t *testing.T) {
	c := startCluster(t, clusterOptions{workers: workers(2)})
	for name, restarted := range map[string]bool{"known": false, "asked for": true} {
		var ids []client.SessionID
		holders := map[string]bool{}
		for len(holders) < 2 { // A session of one shard lies on one worker.
			s, err := c.OpenSession(t.Context(), client.SessionOptions{Layers: []client.Layer{{Heads: 1, KVHeads: 1, HeadDim: 4}}})
			if err != nil {
				t.Fatal(err)
			}
			found, err := c.FindSession(t.Context(), s.ID())
			if err != nil {
				t.Fatal(err)
			}
			if found.Holders[0].Name == c.workers[0].Name {
				ids = append(ids, s.ID())
			}
			holders[found.Holders[0].Name] = true
		}
		if restarted {
			c.stop()
			c.start(t, coordinator.Config{})
		}
		c.workers[1].server.Stop()
		for _, id := range ids {
			if err := c.DropSession(t.Context(), id); err != nil {
				t.Errorf("%s: %v", name, err)
			}
		}
		c.workers[1] = startWorker(t, c.workers[1].Name, workerOptions{})
		c.view.set(c.workers[0].Member, c.workers[1].Member)
	}
}
