//go:build linux

package e2e

import (
	"syscall"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	healthv1 "google.golang.org/grpc/health/grpc_health_v1"

	"headwater.example/client"
	"headwater.example/internal/localcluster"
	"headwater.example/internal/readiness"
)

// awaitReady waits until a process says at its port for health checks that it is ready.
func awaitReady(t *testing.T, address string) {
	t.Helper()
	ctx := bounded(t)
	conn, err := grpc.NewClient(address, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		resp, err := healthv1.NewHealthClient(conn).Check(ctx, &healthv1.HealthCheckRequest{Service: readiness.Service}, grpc.WaitForReady(true))
		if err == nil && resp.GetStatus() == healthv1.HealthCheckResponse_SERVING {
			return
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			t.Fatalf("%s does not become ready: %v, %v", address, resp.GetStatus(), err)
		}
	}
}

// TestAReadyWorkerMeansThatAnotherMayGo kills one of two workers after the other, each as soon as the one before is ready again, as a
// rolling update does without any patience. The session goes on with the bits of the job.
func TestAReadyWorkerMeansThatAnotherMayGo(t *testing.T) {
	t.Parallel()
	health := []string{"--health", "127.0.0.1:0"}
	c := start(t, localcluster.Options{Workers: 2, Threads: 1, Replicas: 1, TLS: authority(t), CoordinatorArgs: health, WorkerArgs: health})
	for process := -1; process < 2; process++ {
		awaitReady(t, c.Health(process))
	}
	g, layers := generate(t, c)
	s, err := c.OpenSession(g.ctx, client.SessionOptions{Layers: layers})
	if err != nil {
		t.Fatal(err)
	}
	position := 70
	g.step(s, 0, position)
	for _, worker := range []int{1, 0, 1, 0} {
		c.Kill(worker)
		g.step(s, position, position+1)
		position++
		if err := c.RestartWorker(g.ctx, worker); err != nil {
			t.Fatal(err)
		}
		awaitReady(t, c.Health(worker))
	}
	g.step(s, position, position+1)
}

// TestAWorkerWithACertificateDrainsItself asks one of two workers to end, which has the only copy of a part of a session. The session
// goes on with the bits of the job, which the other worker has fetched by itself. With the certificate of a worker nobody drains another one.
func TestAWorkerWithACertificateDrainsItself(t *testing.T) {
	t.Parallel()
	folder := authority(t)
	coord(t, "certs", "issue", "worker", "w2", "--dir", folder).succeeds(t)
	c := start(t, localcluster.Options{Workers: 2, Threads: 1, TLS: folder})
	coord(t, "drain", "w1", "--coordinator", c.Address(), "--tls-dir", folder+"/worker-w2").fails(t, 4, `a worker drains itself alone, and worker w2 asks to drain "w1"`)
	g, layers := generate(t, c)
	s, err := c.OpenSession(g.ctx, client.SessionOptions{Layers: layers})
	if err != nil {
		t.Fatal(err)
	}
	g.step(s, 0, 70)
	c.signal(t, 1, syscall.SIGTERM)
	select {
	case <-c.WorkerDone(1):
	case <-g.ctx.Done():
		t.Fatal("the worker does not end")
	}
	neverSaid(t, c, "a copy of a session goes through the coordinator")
	g.step(s, 70, 72)
}
