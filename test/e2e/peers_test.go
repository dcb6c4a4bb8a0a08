//go:build linux

package e2e

import (
	"bytes"
	"context"
	"errors"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"google.golang.org/grpc/codes"

	"headwater.example/client"
	"headwater.example/internal/localcluster"
)

// TestAJobIsReachedThroughEitherCoordinator: what one coordinator took is watched, fetched, listed, submitted again by its key, cancelled and
// deleted through the other one, which counts it as well. While the first is dead its jobs are listed as unreachable, also after the
// other has started again, and a call about one names it. Then they are back.
func TestAJobIsReachedThroughEitherCoordinator(t *testing.T) {
	t.Parallel()
	job, want := undisturbed(t)
	c := start(t, localcluster.Options{Workers: 1, CoordinatorArgs: append(slices.Clone(slowly), admin...)})
	if err := c.StartSecond(bounded(t)); err != nil {
		t.Fatal(err)
	}
	address, _ := c.Addresses(-2)
	second := dialAt(t, address)
	taken := c.submit(t, client.SubmitOptions{Path: job, Key: "first"})
	each(bounded(t), t, func(ctx context.Context) bool { // until gossip has told the other of the first
		_, err := second.Get(ctx, taken.ID)
		if err != nil && !errors.Is(err, client.ErrNotFound) {
			t.Fatal(err)
		}
		return err == nil
	})
	waiting := c.submit(t, client.SubmitOptions{Path: job, Key: "waits"})
	cancelled, err := second.Cancel(bounded(t), waiting.ID)
	if err != nil || cancelled.State != client.JobCancelled {
		t.Errorf("cancelled through the other: %+v, %v", cancelled, err)
	}
	if again, err := second.Submit(bounded(t), client.SubmitOptions{Path: job, Key: "first"}); err != nil || again.ID != taken.ID {
		t.Errorf("submitted to the other by its key: %+v, %v", again, err)
	}
	ended, err := second.Wait(bounded(t), taken.ID, nil)
	if err != nil || ended.ID != taken.ID {
		t.Fatalf("watched through the other: %+v, %v", ended, err)
	}
	other := &cluster{Client: second}
	same(t, "fetched through the other", want, other.fetch(t, taken.ID))
	for _, name := range []string{"first", ended.ContentHash} {
		if found, err := second.Get(bounded(t), name); err != nil || found.ID != taken.ID {
			t.Errorf("%q is found through the other as %+v, %v", name, found, err)
		}
	}
	here := c.jobs(t)
	if there := other.jobs(t); !slices.Equal(ids(there), ids(here)) || len(here) != 2 {
		t.Errorf("one lists %v, the other %v", ids(here), ids(there))
	}
	counted(t, c.Client, map[client.JobState]uint64{client.JobSucceeded: 1, client.JobCancelled: 1})
	counted(t, second, map[client.JobState]uint64{client.JobSucceeded: 1, client.JobCancelled: 1})
	shown, _ := watch(t, c.Admin(-2)).next()
	if n := shown.Coordinator.Jobs; n["succeeded"] != 1 || n["cancelled"] != 1 || len(shown.Jobs) != 2 || shown.JobsLeft != 0 || !shown.Jobs[0].Elsewhere {
		t.Errorf("the dashboard of the other shows %v: %+v, and %d more", n, shown.Jobs, shown.JobsLeft)
	}
	if _, err := second.Delete(bounded(t), waiting.ID); err != nil {
		t.Error(err)
	}
	if _, err := c.Get(bounded(t), waiting.ID); !errors.Is(err, client.ErrNotFound) {
		t.Errorf("what was deleted through the other: %v", err)
	}

	other.jobs(t) // what it remembers is from now
	c.KillCoordinator()
	c.unreachable(t, second, taken.ID)
	counted(t, second, map[client.JobState]uint64{client.JobUnreachable: 1})
	each(bounded(t), t, func(context.Context) bool { // it is written every 5 s at most
		b, err := os.ReadFile(filepath.Join(c.data, "second", "coordinators.json"))
		return err == nil && bytes.Contains(b, []byte(taken.ID))
	})
	c.Kill(-2)
	if err := c.StartSecond(bounded(t)); err != nil {
		t.Fatal(err)
	}
	restarted := dialAt(t, address)
	c.unreachable(t, restarted, taken.ID)
	if err := c.RestartCoordinator(bounded(t)); err != nil {
		t.Fatal(err)
	}
	ended, err = restarted.Wait(bounded(t), taken.ID, nil) // waits for the first to be seen again
	if err != nil || ended.ID != taken.ID {
		t.Errorf("once the first is back: %+v, %v", ended, err)
	}
}

// dialAt connects to a coordinator until the test ends.
func dialAt(t *testing.T, address string) *client.Client {
	t.Helper()
	conn, err := client.Dial(address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := conn.Close(); err != nil {
			t.Error(err)
		}
	})
	return conn
}

func ids(jobs []*client.Job) (all []string) {
	for _, job := range jobs {
		all = append(all, job.ID)
	}
	return all
}

// unreachable checks that a coordinator lists a job of another one as unreachable, and what it says of that job.
func (c *cluster) unreachable(t *testing.T, second *client.Client, id string) {
	t.Helper()
	jobs, err := second.List(bounded(t))
	if err != nil {
		t.Fatal(err)
	}
	i := slices.IndexFunc(jobs, func(j *client.Job) bool { return j.ID == id })
	if i < 0 {
		t.Fatalf("the job of a dead coordinator has vanished: %v", ids(jobs))
	}
	if job := jobs[i]; job.State != client.JobUnreachable || job.Heard.IsZero() || job.Key != "first" {
		t.Errorf("the job of a dead coordinator is listed as %+v", job)
	}
	for _, name := range []string{id, "first"} {
		_, err = second.Get(bounded(t), name)
		var refused *client.Error
		if !errors.As(err, &refused) || refused.Code != codes.Unavailable || !refused.Answered || refused.Coordinator != "local" {
			t.Errorf("job %q of a dead coordinator: %#v", name, err)
		}
	}
}

// counted compares how many jobs a coordinator counts in each state.
func counted(t *testing.T, c *client.Client, want map[client.JobState]uint64) {
	t.Helper()
	status, err := c.Status(bounded(t))
	if err != nil || !maps.Equal(status.Jobs, want) {
		t.Errorf("jobs are counted as %v, not %v: %v", status.Jobs, want, err)
	}
}

// each calls holds until it is true.
func each(ctx context.Context, t *testing.T, holds func(context.Context) bool) {
	t.Helper()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for !holds(ctx) {
		select {
		case <-tick.C:
		case <-ctx.Done():
			t.Fatal("it never holds")
		}
	}
}
