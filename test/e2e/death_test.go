//go:build linux

package e2e

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"google.golang.org/grpc/codes"

	"headwater.example/client"
	"headwater.example/internal/localcluster"
	"headwater.example/internal/testkit/await"
)

// TestAWorkerIsKilledInAJob kills one of three workers at different points of a job: the others take over its shards, and
// the result has the same bits.
func TestAWorkerIsKilledInAJob(t *testing.T) {
	t.Parallel()
	path, want := undisturbed(t)
	for i, point := range []struct {
		name  string
		holds func(*client.Job) bool
	}{
		{"as it starts", running},
		{"while keys and values are loaded", loading},
		{"after the first answers", answered},
		{"at half of the answers", halfDone},
	} {
		t.Run(point.name, func(t *testing.T) {
			t.Parallel()
			for try := 1; ; try++ {
				c := start(t, localcluster.Options{Workers: 3, CoordinatorArgs: slowly})
				victim := i % 3
				job := c.submit(t, client.SubmitOptions{Path: path})
				c.until(t, job.ID, point.holds)
				c.Kill(victim)
				job = c.wait(t, job.ID)
				same(t, "after "+c.Name(victim)+" died", want, c.fetch(t, job.ID))
				lost := lostWorkers(job)
				if len(lost) == 0 && point.name == "as it starts" {
					return // it died before the job came to it
				}
				if len(lost) == 0 && try < tries {
					t.Log("the job ended before the worker died; again")
					continue
				}
				if !slices.Equal(lost, []string{c.Name(victim)}) || job.Report.WorkersLost != 1 {
					t.Errorf("%d workers were lost, %q; killed was %s", job.Report.WorkersLost, lost, c.Name(victim))
				}
				if job.Attempts != 1 {
					t.Errorf("the job was started %d times", job.Attempts)
				}
				return
			}
		})
	}
}

// lostWorkers are the names of the workers that a job lost.
func lostWorkers(job *client.Job) []string {
	var names []string
	for _, w := range job.Report.Workers {
		if w.Lost {
			names = append(names, w.Name)
		}
	}
	slices.Sort(names)
	return names
}

// TestWorkersAreKilledOneByOne leaves one of four.
func TestWorkersAreKilledOneByOne(t *testing.T) {
	t.Parallel()
	path, want := undisturbed(t)
	for try := 1; ; try++ {
		c := start(t, localcluster.Options{Workers: 4, CoordinatorArgs: slowly})
		job := c.submit(t, client.SubmitOptions{Path: path})
		for victim := range 3 {
			c.until(t, job.ID, func(j *client.Job) bool {
				return answered(j) && j.Progress.UnitsDone >= uint64(victim*longAnswers/6)
			})
			c.Kill(victim)
		}
		job = c.wait(t, job.ID)
		same(t, "after three deaths", want, c.fetch(t, job.ID))
		if lost := lostWorkers(job); len(lost) == 3 {
			return
		} else if try == tries {
			t.Fatalf("lost were %q", lost)
		}
		t.Log("the job ended before the workers died; again")
	}
}

// TestAllWorkersAreKilledInAJob expects an end of the job with a reason, from the API and from a command line that waits.
func TestAllWorkersAreKilledInAJob(t *testing.T) {
	t.Parallel()
	path, _ := undisturbed(t)
	c := start(t, localcluster.Options{Workers: 2, CoordinatorArgs: append(slowly, "--worker-wait", "2s")})
	out := filepath.Join(t.TempDir(), "context.safetensors")
	cli := background(t, "submit", path, "--coordinator", c.Address(), "--key", "doomed", "--out", out, "--quiet")
	job := c.until(t, c.appears(t, "doomed"), answered)
	c.Kill(0)
	c.Kill(1)
	job, err := c.Wait(bounded(t), job.ID, nil)
	var failed *client.JobError
	if !errors.As(err, &failed) || job.State != client.JobFailed || codes.Code(job.ErrorCode) != codes.Unavailable {
		t.Fatalf("%v, %v", job, err)
	}
	if !strings.Contains(job.Error, "no worker answers since 2s") || strings.Contains(job.Error, "\n") {
		t.Errorf("the reason is %q", job.Error)
	}
	(<-cli).fails(t, 6, "job "+job.ID+" failed: no worker answers since 2s")
	if left := list(t, filepath.Dir(out)); len(left) > 0 {
		t.Errorf("files %q are left", left)
	}
	if left := c.spool(t); len(left) > 0 {
		t.Errorf("files %q are left in the spool", left)
	}
	// One that comes now is refused, and the coordinator is well.
	coord(t, "submit", path, "--coordinator", c.Address(), "--out", out, "--quiet").fails(t, 6, "no worker answers: worker \"w1\"", "connection refused")
	coord(t, "jobs", "show", job.ID, "--coordinator", c.Address(), "--output", "json").succeeds(t)
}

// appears waits until the coordinator knows a job with a key, and returns its id.
func (c *cluster) appears(t *testing.T, key string) string {
	t.Helper()
	ctx := bounded(t)
	tick := time.NewTicker(10 * time.Millisecond) // nothing tells
	defer tick.Stop()
	for {
		job, err := c.Get(ctx, key)
		switch {
		case err == nil:
			return job.ID
		case !errors.Is(err, client.ErrNotFound):
			t.Fatal(err)
		}
		<-tick.C
	}
}

// TestTheCoordinatorIsKilledInAnUpload expects that nothing is left of the job, and that it can be submitted again.
func TestTheCoordinatorIsKilledInAnUpload(t *testing.T) {
	t.Parallel()
	path, want := undisturbed(t)
	c := start(t, localcluster.Options{Workers: 2})
	for _, share := range []int64{0, 3, 7} { // eighths of the file
		killed := false
		var spool []string
		_, err := c.Submit(bounded(t), client.SubmitOptions{Path: path, Key: "again", Sent: func(done, total int64) {
			if !killed && done >= total*share/8 {
				spool = c.spool(t) // the file is there from before the first byte is sent
				c.KillCoordinator()
				killed = true
			}
		}})
		if !errors.Is(err, client.ErrUnreachable) || strings.Contains(err.Error(), "\n") {
			t.Fatalf("the upload ended with %v", err)
		}
		if len(spool) != 1 || !strings.HasPrefix(spool[0], ".") {
			t.Errorf("while it was uploaded, the spool held %q", spool)
		}
		c.checkStore(t)
		c.restart(t)
		if jobs := c.jobs(t); len(jobs) > 0 {
			t.Errorf("the coordinator knows %v", jobs)
		}
		if left := c.spool(t); len(left) > 0 {
			t.Errorf("files %q are left in the spool", left)
		}
	}
	job := c.wait(t, c.submit(t, client.SubmitOptions{Path: path, Key: "again"}).ID)
	same(t, "submitted again", want, c.fetch(t, job.ID))
}

// TestTheCoordinatorIsKilledWithJobs kills it at different points of a job, with another one waiting behind: after the
// restart both end with the same bits.
func TestTheCoordinatorIsKilledWithJobs(t *testing.T) {
	t.Parallel()
	path, want := undisturbed(t)
	for name, point := range map[string]func(*client.Job) bool{
		"as it starts":                     running,
		"while keys and values are loaded": loading,
		"after the first answers":          answered,
		"at half of the answers":           halfDone,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			for try := 1; ; try++ {
				c := start(t, localcluster.Options{Workers: 2, CoordinatorArgs: slowly})
				first := c.submit(t, client.SubmitOptions{Path: path, Key: "first"})
				second := c.submit(t, client.SubmitOptions{Path: fixtures + "attention.safetensors", Key: "second"})
				if state := second.State; state != client.JobQueued {
					t.Logf("the second job is %s already", state)
				}
				c.until(t, "first", point)
				c.KillCoordinator()
				c.checkStore(t)
				if files := slices.DeleteFunc(c.spool(t), func(name string) bool { return !strings.HasSuffix(name, ".result.safetensors") }); len(files) > 0 && try < tries {
					t.Log("the job ended before the coordinator died; again")
					continue
				}
				c.restart(t)
				ended := c.wait(t, "first")
				same(t, "the running job", want, c.fetch(t, first.ID))
				if ended.ID != first.ID || ended.Attempts != 2 {
					t.Errorf("job %s was started %d times", ended.ID, ended.Attempts)
				}
				ended = c.wait(t, "second")
				result := c.fetch(t, second.ID)
				againstTruth(t, "attention", result)
				same(t, "the queued job", firstResult(t, "attention", result), result)
				if ended.ID != second.ID || ended.Attempts != 1 {
					t.Errorf("job %s was started %d times", ended.ID, ended.Attempts)
				}
				// The results are all that is kept, and a restart changes nothing.
				results := []string{first.ID + ".result.safetensors", second.ID + ".result.safetensors"}
				if files := c.spool(t); !slices.Equal(files, results) {
					t.Errorf("the spool holds %q", files)
				}
				c.KillCoordinator()
				c.checkStore(t)
				c.restart(t)
				same(t, "after another death", want, c.fetch(t, "first"))
				return
			}
		})
	}
}

// TestTheCommandLineOutlivesTheCoordinator: who waits for a job does not notice.
func TestTheCommandLineOutlivesTheCoordinator(t *testing.T) {
	t.Parallel()
	path, want := undisturbed(t)
	c := start(t, localcluster.Options{Workers: 2, CoordinatorArgs: slowly})
	out := filepath.Join(t.TempDir(), "context.safetensors")
	cli := background(t, "submit", path, "--coordinator", c.Address(), "--key", "k", "--out", out, "--quiet", "--output", "json")
	c.until(t, c.appears(t, "k"), answered)
	c.KillCoordinator()
	c.restart(t)
	(<-cli).succeeds(t)
	same(t, "the file that it wrote", want, open(t, out))
}

// TestKillsOfTheCoordinatorCostNoJob: however often it is killed from outside, the job runs again.
func TestKillsOfTheCoordinatorCostNoJob(t *testing.T) {
	t.Parallel()
	path, want := undisturbed(t)
	c := start(t, localcluster.Options{Workers: 1, CoordinatorArgs: slowly})
	id := c.submit(t, client.SubmitOptions{Path: path}).ID
	const kills = 4
	for attempt := range int(kills) {
		job := c.until(t, id, running)
		if job.Attempts != attempt+1 {
			t.Fatalf("attempt %d is counted as %d, the job is %s", attempt+1, job.Attempts, job.State)
		}
		c.KillCoordinator()
		c.checkStore(t)
		c.restart(t)
	}
	if job := c.wait(t, id); job.Attempts != kills+1 || job.Crashes != 0 {
		t.Errorf("%v", job)
	}
	same(t, "after four kills", want, c.fetch(t, id))
}

// TestAWorkerIsStoppedInAJob: it ends what it has accepted, then itself.
func TestAWorkerIsStoppedInAJob(t *testing.T) {
	t.Parallel()
	path, want := undisturbed(t)
	for try := 1; ; try++ {
		c := start(t, localcluster.Options{Workers: 2, CoordinatorArgs: slowly})
		job := c.submit(t, client.SubmitOptions{Path: path})
		c.until(t, job.ID, loading)
		c.signal(t, 0, syscall.SIGTERM)
		stopping := c.until(t, job.ID, func(*client.Job) bool { return true }) // as it is now
		job = c.wait(t, job.ID)
		if stopping.Over() && try < tries {
			t.Log("the job ended before the worker was asked to stop; again")
			continue
		}
		same(t, "with a worker that stopped", want, c.fetch(t, job.ID))
		if lost := lostWorkers(job); len(lost) > 0 || job.Report.WorkersLost > 0 {
			t.Errorf("the job lost %q", lost)
		}
		// How it ended, the cluster's stop reports.
		if err := awaitDeath(c.Process(0)); err != nil {
			t.Fatal(err)
		}
		// What comes now is for those that are left.
		job, result := c.run(t, fixtures+"attention.safetensors")
		same(t, "without it", firstResult(t, "attention", result), result)
		if workers := job.Report.Workers; len(workers) != 1 || workers[0].Name != c.Name(1) {
			t.Errorf("the next job ran on %v", workers)
		}
		return
	}
}

// TestTheCoordinatorIsStoppedInAJob: it ends in good order, and goes on when it is started again.
func TestTheCoordinatorIsStoppedInAJob(t *testing.T) {
	t.Parallel()
	path, want := undisturbed(t)
	for try := 1; ; try++ {
		c := start(t, localcluster.Options{Workers: 2, CoordinatorArgs: slowly})
		job := c.submit(t, client.SubmitOptions{Path: path})
		c.until(t, job.ID, answered)
		c.signal(t, -1, syscall.SIGTERM)
		if err := awaitDeath(c.Process(-1)); err != nil {
			t.Fatal(err)
		}
		await.One(t, c.Done(), "that the cluster is found to have ended")
		c.checkStore(t)
		if files := c.spool(t); slices.Contains(files, job.ID+".result.safetensors") && try < tries {
			t.Log("the job ended before the coordinator stopped; again")
			continue
		} else if want := []string{job.ID + ".safetensors"}; !slices.Equal(files, want) {
			t.Errorf("the spool holds %q, want %q", files, want)
		}
		c.restart(t)
		job = c.wait(t, job.ID)
		same(t, "after the restart", want, c.fetch(t, job.ID))
		if job.Attempts != 1 {
			t.Errorf("the job was started %d times", job.Attempts)
		}
		return
	}
}

// startLocal starts a command "local" with two workers, and returns its coordinator's address and its children.
func startLocal(t *testing.T, cmd *exec.Cmd) (string, []process) {
	t.Helper()
	out, err := cmd.StdoutPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	var cluster struct {
		Coordinator string
		Workers     int
	}
	if err := json.NewDecoder(out).Decode(&cluster); err != nil || cluster.Workers != 2 {
		t.Fatalf("%v, %v", cluster, err)
	}
	all, err := processes()
	if err != nil {
		t.Fatal(err)
	}
	children := slices.DeleteFunc(all, func(p process) bool { return p.parent != cmd.Process.Pid })
	if len(children) != 3 {
		t.Fatalf("it has the children %v", children)
	}
	return cluster.Coordinator, children
}

// TestALocalClusterEndsWithItsInput: the command and its processes end when the pipe is closed, and leave no folder.
func TestALocalClusterEndsWithItsInput(t *testing.T) {
	t.Parallel()
	temporary := t.TempDir()
	cmd := command(bounded(t), program, "local", "--workers", "2", "--memory", "64MiB", "--output", "json", "--end-with-input")
	cmd.Env = append(cmd.Env, "TMPDIR="+temporary)
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	_, children := startLocal(t, cmd)
	if err := in.Close(); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Wait(); err != nil {
		t.Error(err)
	}
	for _, child := range children {
		if err := awaitDeath(child.id); err != nil {
			t.Errorf("child %d: %v", child.id, err)
		}
	}
	if left, err := os.ReadDir(temporary); err != nil || len(left) > 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
}

// TestALocalClusterDiesWithItsParent kills the command that started processes.
func TestALocalClusterDiesWithItsParent(t *testing.T) {
	t.Parallel()
	cmd := command(bounded(t), program, "local", "--workers", "2", "--memory", "64MiB", "--output", "json", "--data-dir", t.TempDir())
	coordinator, children := startLocal(t, cmd)
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait() // it was killed
	for _, child := range children {
		if err := awaitDeath(child.id); err != nil {
			t.Errorf("child %d: %v", child.id, err)
		}
	}
	coord(t, "status", "--coordinator", coordinator).fails(t, 3, fmt.Sprintf("coordinator %s is unreachable", coordinator))
}
