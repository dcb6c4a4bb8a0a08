package coordinator_test

import (
	"bytes"
	"fmt"
	"log/slog"
	"net"
	"strings"
	"sync"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"headwater.example/client"
	"headwater.example/coordinator"
	known "headwater.example/coordinator/workers"
	"headwater.example/internal/membership"
	"headwater.example/internal/rpc"
	"headwater.example/internal/testkit/await"
)

// records are lines of a log, each of which is told.
type records struct {
	mu    sync.Mutex
	lines bytes.Buffer
	told  chan struct{}
}

func newRecords() *records { return &records{told: make(chan struct{}, 1)} }

func (r *records) Write(p []byte) (int, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	select {
	case r.told <- struct{}{}:
	default:
	}
	return r.lines.Write(p)
}

// await waits for a line that has all the words.
func (r *records) await(t *testing.T, words ...string) {
	t.Helper()
	for {
		r.mu.Lock()
		all := r.lines.String()
		r.mu.Unlock()
		for line := range strings.Lines(all) {
			found := true
			for _, w := range words {
				found = found && strings.Contains(line, w)
			}
			if found {
				return
			}
		}
		await.One(t, r.told, fmt.Sprintf("a line of the log with %q", words))
	}
}

func TestLosingAWorkerIsLoggedWithItsSessions(t *testing.T) {
	logs := newRecords()
	c := startCluster(t, clusterOptions{workers: []workerOptions{{}, {}}, config: coordinator.Config{Logger: slog.New(slog.NewTextHandler(logs, nil))}})
	var ids []string
	for range 10 {
		s, err := c.OpenSession(t.Context(), client.SessionOptions{Layers: []client.Layer{{Heads: 2, KVHeads: 2, HeadDim: 4}}})
		if err != nil {
			t.Fatal(err)
		}
		ids = append(ids, s.ID().String())
	}
	gone, stays := c.workers[0].Member, c.workers[1].Member
	c.view.set(stays)
	logs.await(t, "level=WARN", "a worker is gone that holds sessions", "worker="+gone.Name, "sessions=10", "and 2 more")
	named := 0
	logs.mu.Lock()
	for _, id := range ids {
		named += strings.Count(logs.lines.String(), id)
	}
	logs.mu.Unlock()
	if named != 8 {
		t.Errorf("%d sessions are named", named)
	}
	// A worker that comes back with another boot holds nothing.
	restarted := stays
	restarted.Boot = [16]byte{1}
	c.view.set(restarted)
	logs.await(t, "level=WARN", "a worker was restarted that held sessions", "worker="+stays.Name, "sessions=10")
}

func TestWhoIsLeftOutIsShown(t *testing.T) {
	c := startCluster(t, clusterOptions{workers: []workerOptions{{}}})
	c.view.mu.Lock()
	c.view.outsiders = []membership.Outsider{
		{Name: "w0", Role: membership.RoleWorker, Address: "10.0.0.2:7601", Why: "left out: start one with another --name"},
		{Name: "coord", Role: membership.RoleCoordinator, Address: "10.0.0.2:7600", Why: "left out"},
	}
	c.view.mu.Unlock()
	got, err := c.Status(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if w := got.Workers; len(w) != 2 || w[0].Error != "" || w[1].Address != "10.0.0.2:7601" || !strings.Contains(w[1].Error, "--name") {
		t.Errorf("status shows %v", w)
	}
}

// Somebody that accepts connections and says nothing is not waited for once a worker has answered. The context of this
// test would end it otherwise.
func TestJobsDoNotWaitForMembersThatNeverAnswered(t *testing.T) {
	silent, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer silent.Close()
	real := startWorker(t, "w0", workerOptions{})
	conns := rpc.NewConns(nil, rpc.DialOptions()...)
	defer conns.Close()
	all := known.New(&view{changed: make(chan struct{})}, conns)
	described := all.Describe(t.Context(), []membership.Member{real.Member, {Name: "forged", Role: membership.RoleWorker, Address: silent.Addr().String()}})
	if described[0].Err != nil {
		t.Error(described[0].Err)
	}
	// It is found to hang after as long as a stranger is waited for.
	if err := described[1].Err; err == nil || !strings.Contains(err.Error(), "it has never answered") && !strings.Contains(err.Error(), "it does not answer") || status.Code(err) != codes.Unavailable {
		t.Errorf("got %v", err)
	}
}
