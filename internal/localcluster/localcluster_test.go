package localcluster_test

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"

	"headwater.example/client"
	"headwater.example/internal/cli"
	"headwater.example/internal/localcluster"
	"headwater.example/internal/testkit/await"
)

// asProgram makes this binary the program coord.
const asProgram = "LOCALCLUSTER_TEST_PROGRAM"

func TestMain(m *testing.M) {
	if os.Getenv(asProgram) != "" {
		os.Exit(cli.Coord(os.Args[1:], cli.Streams{In: os.Stdin, Out: os.Stdout, Err: os.Stderr}))
	}
	os.Setenv(asProgram, "1") // for the children
	goleak.VerifyTestMain(m)
}

// start starts a cluster that is stopped at the test's end.
func start(t *testing.T, opts localcluster.Options) *localcluster.Cluster {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	cluster, err := localcluster.Start(ctx, opts)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		if err := cluster.Stop(ctx); err != nil {
			t.Error(err)
		}
	})
	return cluster
}

func dial(t *testing.T, cluster *localcluster.Cluster) *client.Client {
	t.Helper()
	c, err := client.Dial(cluster.Address())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

// alive tells whether a process is there.
func alive(process int) bool { return syscall.Kill(process, 0) == nil }

func TestAClusterComesUpAndLeavesNothing(t *testing.T) {
	temporary := t.TempDir()
	t.Setenv("TMPDIR", temporary)
	t.Setenv("HEADWATER_LISTEN", "not an address") // is the parent's, not the children's
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	cluster, err := localcluster.Start(ctx, localcluster.Options{Workers: 3, Memory: 64 << 20, Threads: 1})
	if err != nil {
		t.Fatal(err)
	}
	c, err := client.Dial(cluster.Address())
	if err != nil {
		t.Fatal(err)
	}
	status, err := c.Status(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if len(status.Workers) != 3 || cluster.Workers() != 3 {
		t.Fatalf("%d workers are seen, want 3", len(status.Workers))
	}
	for i, w := range status.Workers {
		if w.Name != cluster.Name(i) || w.BudgetBytes != 64<<20 || w.Threads != 1 {
			t.Errorf("worker %d is %v", i, w)
		}
	}
	processes := []int{cluster.Process(-1), cluster.Process(0), cluster.Process(1), cluster.Process(2)}
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
	if err := cluster.Stop(ctx); err != nil {
		t.Fatal(err)
	}
	for _, process := range processes {
		if alive(process) {
			t.Errorf("process %d was left", process)
		}
	}
	left, err := filepath.Glob(filepath.Join(temporary, "*"))
	if err != nil || len(left) > 0 {
		t.Errorf("left behind: %v %v", left, err)
	}
}

func TestProcessesCanBeKilledAndTheCoordinatorStartedAgain(t *testing.T) {
	cluster := start(t, localcluster.Options{Workers: 2, Memory: 64 << 20})
	address := cluster.Address()
	killed := cluster.Process(0)
	cluster.Kill(0)
	if alive(killed) {
		t.Fatal("the worker lives")
	}
	cluster.KillCoordinator()
	await.One(t, cluster.Done(), "that the cluster is found to have ended")
	if err := cluster.RestartCoordinator(t.Context()); err != nil {
		t.Fatal(err)
	}
	if cluster.Address() != address {
		t.Fatalf("it came back at %s, was at %s", cluster.Address(), address)
	}
	if err := cluster.AwaitWorkers(t.Context()); err != nil {
		t.Fatal(err)
	}
	status, err := dial(t, cluster).Status(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, w := range status.Workers {
		if w.Name == cluster.Name(1) && w.Error == "" {
			return
		}
	}
	t.Fatalf("the worker that lives is not seen: %v", status)
}

func TestWhatKeepsAProcessFromStartingIsSaid(t *testing.T) {
	_, err := localcluster.Start(t.Context(), localcluster.Options{Workers: 1, WorkerArgs: []string{"--weight", "0"}})
	if err == nil || !strings.Contains(err.Error(), "w1") || !strings.Contains(err.Error(), "weight") {
		t.Errorf("got %v, want an error that names worker and weight", err)
	}
	if _, err = localcluster.Start(t.Context(), localcluster.Options{}); err == nil {
		t.Error("a cluster without workers came up")
	}
	if _, err = localcluster.Start(t.Context(), localcluster.Options{Workers: 1, Command: []string{"/no/such/program"}}); err == nil || !strings.Contains(err.Error(), "/no/such/program") {
		t.Errorf("got %v, want an error that names the program", err)
	}
}

func TestAnInterruptedStartEndsWhatItStarted(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := localcluster.Start(ctx, localcluster.Options{Workers: 1}); err == nil || !strings.Contains(err.Error(), "context canceled") {
		t.Errorf("got %v", err)
	}
}
