package coordinator_test

import (
	"errors"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"headwater.example/client"
	"headwater.example/coordinator"
	"headwater.example/internal/testkit/await"
)

const (
	exact = client.Exact
	int8s = client.Int8
)

// TestKeyIsComparedWithTheCodec: a result that was narrowed is no answer to a request for all bits, nor the other way round.
func TestKeyIsComparedWithTheCodec(t *testing.T) {
	c := startCluster(t, clusterOptions{workers: workers(2)})
	path := variety(t)
	for _, pair := range [][2]client.Codec{{int8s, exact}, {exact, int8s}} {
		key := string(pair[0])
		first, _ := c.run(t, client.SubmitOptions{Path: path, Key: key, Codec: pair[0]})
		if first.Codec != pair[0] {
			t.Errorf("the job says codec %s, not %s", first.Codec, pair[0])
		}
		_, err := c.Submit(t.Context(), client.SubmitOptions{Path: path, Key: key, Codec: pair[1]})
		if status.Code(unwrapAll(err)) != codes.AlreadyExists || !strings.Contains(err.Error(), "codec") {
			t.Errorf("%s after %s: %v", pair[1], pair[0], err)
		}
		if again, err := c.Submit(t.Context(), client.SubmitOptions{Path: path, Key: key, Codec: pair[0]}); err != nil || again.ID != first.ID {
			t.Errorf("the same again: %v, %v", again, err)
		}
	}
}

// TestContentHashPrefersWhatLostNothing: two jobs have the hash, and the later one was narrowed.
func TestContentHashPrefersWhatLostNothing(t *testing.T) {
	c := startCluster(t, clusterOptions{workers: workers(1)})
	path := variety(t)
	whole, result := c.run(t, client.SubmitOptions{Path: path})
	narrow, _ := c.run(t, client.SubmitOptions{Path: path, Codec: int8s})
	if whole.ContentHash != narrow.ContentHash {
		t.Fatal("one content has two hashes")
	}
	same(t, "by hash", result, c.fetch(t, whole.ContentHash))
}

// TestStrangersKeyHidesNoContentHash: whoever takes another's content hash as a key is not found by it.
func TestStrangersKeyHidesNoContentHash(t *testing.T) {
	c := startCluster(t, clusterOptions{workers: workers(1)})
	mine, result := c.run(t, client.SubmitOptions{Path: variety(t)})
	other := newMaker(3)
	other.f32("q", 1, 1, 2, 16)
	other.f32("k", 1, 8, 2, 16)
	other.f32("v", 1, 8, 2, 16)
	c.run(t, client.SubmitOptions{Path: other.write(t, ""), Key: mine.ContentHash})
	same(t, "by hash", result, c.fetch(t, mine.ContentHash))
	if job, err := c.Get(t.Context(), mine.ContentHash); err != nil || job.ID != mine.ID {
		t.Errorf("%v, %v", job, err)
	}
}

// TestKeyRunsAnewAfterAFailureThatItsContentDidNotCause: as the same job, with a result of the right bits.
func TestKeyRunsAnewAfterAFailureThatItsContentDidNotCause(t *testing.T) {
	path := variety(t)
	_, want := startCluster(t, clusterOptions{workers: workers(2)}).run(t, client.SubmitOptions{Path: path})
	data := t.TempDir()
	h := newHeld()
	c := startCluster(t, clusterOptions{workers: []workerOptions{{stream: h.intercept}}, config: coordinator.Config{DataDir: data, WorkerWait: time.Millisecond}})
	job, err := c.Submit(t.Context(), client.SubmitOptions{Path: path, Key: "k", Deadline: 50 * time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.Wait(t.Context(), "k", nil); err == nil {
		t.Fatal("it ended before its deadline")
	}
	// Submitted again it is cancelled, and once more it is without workers.
	select {
	case <-h.arrived:
	default: // its deadline may have passed before it began
	}
	again, err := c.Submit(t.Context(), client.SubmitOptions{Path: path, Key: "k"})
	if err != nil || again.ID != job.ID || again.Over() {
		t.Fatalf("after the deadline: %v, %v", again, err)
	}
	await.One(t, h.arrived, "the job's first answer, at the worker")
	if cancelled, err := c.Cancel(t.Context(), "k"); err != nil || cancelled.State != client.JobCancelled {
		t.Fatalf("%v, %v", cancelled, err)
	}
	if _, err := c.Submit(t.Context(), client.SubmitOptions{Path: path, Key: "k", Overrides: []byte(`{"softcap":5}`)}); status.Code(unwrapAll(err)) != codes.AlreadyExists {
		t.Fatalf("another content under the key of a cancelled job: %v", err)
	}
	if _, err := c.Submit(t.Context(), client.SubmitOptions{Path: path, Key: "k"}); err != nil {
		t.Fatal(err)
	}
	await.One(t, h.arrived, "the job's first answer, at the worker")
	member := c.workers[0].Member
	c.view.set()
	c.workers[0].server.Stop()
	ended, err := c.Wait(t.Context(), "k", nil)
	if err == nil || codes.Code(ended.ErrorCode) != codes.Unavailable {
		t.Fatalf("without workers: %v, %v", ended, err)
	}
	close(h.release)
	// A submission that is refused, for want of workers, leaves the job as it was.
	if _, err := c.Submit(t.Context(), client.SubmitOptions{Path: path, Key: "k"}); status.Code(unwrapAll(err)) != codes.Unavailable {
		t.Fatal(err)
	}
	if job, err := c.Get(t.Context(), "k"); err != nil || job.State != client.JobFailed || job.Error != ended.Error {
		t.Fatalf("%v, %v", job, err)
	}
	c.stop()
	c.start(t, coordinator.Config{DataDir: data})
	n := startWorker(t, member.Name, workerOptions{})
	c.view.set(n.Member)
	done, got := c.run(t, client.SubmitOptions{Path: path, Key: "k"})
	if done.ID != job.ID || done.Error != "" || done.Attempts != 1 {
		t.Errorf("%v", done)
	}
	same(t, "after all", want, got)
	if jobs, err := c.List(t.Context()); err != nil || len(jobs) != 1 {
		t.Errorf("%v, %v", jobs, err)
	}
}

// TestKeyKeepsAFailureOfItsContent, which another run would not change.
func TestKeyKeepsAFailureOfItsContent(t *testing.T) {
	c := startCluster(t, clusterOptions{workers: workers(1)})
	m := newMaker(1)
	m.f32("q", 1e30, 1, 2, 16)
	m.f32("k", 1e30, 8, 2, 16)
	m.f32("v", 1, 8, 2, 16)
	path := m.write(t, "")
	first, err := c.Submit(t.Context(), client.SubmitOptions{Path: path, Key: "k"})
	if err != nil {
		t.Fatal(err)
	}
	var failed *client.JobError
	if _, err := c.Wait(t.Context(), "k", nil); !errors.As(err, &failed) {
		t.Fatalf("scores that overflow: %v", err)
	}
	again, err := c.Submit(t.Context(), client.SubmitOptions{Path: path, Key: "k"})
	if err != nil || again.ID != first.ID || again.State != client.JobFailed {
		t.Errorf("%v, %v", again, err)
	}
}

func TestDeleteFreesAKey(t *testing.T) {
	h := newHeld()
	data := t.TempDir()
	c := startCluster(t, clusterOptions{workers: []workerOptions{{stream: h.intercept}}, config: coordinator.Config{DataDir: data}})
	path := variety(t)
	first, err := c.Submit(t.Context(), client.SubmitOptions{Path: path, Key: "k"})
	if err != nil {
		t.Fatal(err)
	}
	await.One(t, h.arrived, "the job's first answer, at the worker")
	if _, err := c.Delete(t.Context(), "k"); status.Code(unwrapAll(err)) != codes.FailedPrecondition {
		t.Errorf("a job that runs: %v", err)
	}
	close(h.release)
	if _, err := c.Wait(t.Context(), "k", nil); err != nil {
		t.Fatal(err)
	}
	if job, err := c.Delete(t.Context(), "k"); err != nil || job.ID != first.ID {
		t.Fatalf("%v, %v", job, err)
	}
	if _, err := c.Get(t.Context(), "k"); !errors.Is(err, client.ErrNotFound) {
		t.Error(err)
	}
	c.run(t, client.SubmitOptions{Path: path, Key: "k", Codec: int8s})
	c.stop()
	c.start(t, coordinator.Config{DataDir: data})
	if jobs, err := c.List(t.Context()); err != nil || len(jobs) != 1 || jobs[0].ID == first.ID {
		t.Errorf("%v, %v", jobs, err)
	}
}
