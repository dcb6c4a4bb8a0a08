//go:build linux

package e2e

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"io/fs"
	"maps"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/zeebo/xxh3"

	"headwater.example/client"
	"headwater.example/internal/accuracy"
	"headwater.example/internal/localcluster"
	"headwater.example/tensor"
)

// cluster is a coordinator and workers as processes, with a client.
type cluster struct {
	*localcluster.Cluster
	*client.Client
	data string // the coordinator's folder
	tls  string // the folder of the authority, if a test has made one
	logs *logs
}

// logs is what the processes say, kept for a test that fails.
type logs struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (l *logs) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(p)
}

func (l *logs) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.String()
}

// start starts a cluster that is stopped, in good order, when the test ends.
func start(t *testing.T, opts localcluster.Options) *cluster {
	t.Helper()
	return startAs(t, opts, program)
}

// startAs is start with another program in place of coord.
func startAs(t *testing.T, opts localcluster.Options, program string) *cluster {
	t.Helper()
	if opts.DataDir == "" {
		opts.DataDir = t.TempDir()
	}
	if opts.Memory == 0 {
		opts.Memory = 256 << 20
	}
	c := &cluster{data: opts.DataDir, logs: &logs{}}
	opts.Command, opts.Log = []string{program}, c.logs
	var err error
	if c.Cluster, err = localcluster.Start(bounded(t), opts); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		defer cancel()
		if err := errors.Join(c.Close(), c.Stop(ctx)); err != nil {
			t.Error(err)
		}
		if t.Failed() {
			t.Logf("the processes said:\n%s", c.logs)
		}
	})
	c.dial(t)
	return c
}

// dial connects anew: a connection that was lost is tried again only after a while.
func (c *cluster) dial(t *testing.T) {
	t.Helper()
	if c.Client != nil {
		if err := c.Close(); err != nil {
			t.Fatal(err)
		}
	}
	var err error
	if c.Client, err = c.Cluster.Dial(); err != nil {
		t.Fatal(err)
	}
}

// Address is the coordinator's host:port.
func (c *cluster) Address() string { return c.Cluster.Address() }

// signal sends a signal to a worker, from 0, or to the coordinator, -1.
func (c *cluster) signal(t *testing.T, process int, signal syscall.Signal) {
	t.Helper()
	if err := syscall.Kill(c.Process(process), signal); err != nil {
		t.Fatal(err)
	}
}

// restart brings a coordinator back that was killed or stopped, and waits until it sees the workers.
func (c *cluster) restart(t *testing.T) {
	t.Helper()
	ctx := bounded(t)
	if err := errors.Join(c.RestartCoordinator(ctx), c.AwaitWorkers(ctx)); err != nil {
		t.Fatal(err)
	}
	c.dial(t)
}

// awaitCopies waits until each shard of some sessions is held so many times by workers that run.
func (c *cluster) awaitCopies(t *testing.T, times int, of func(client.SessionState) bool) {
	t.Helper()
	ctx := bounded(t)
	tick := time.NewTicker(50 * time.Millisecond) // nothing tells
	defer tick.Stop()
	for {
		all, err := c.Sessions(ctx)
		if err != nil {
			t.Fatal(err)
		}
		if !slices.ContainsFunc(all.Sessions, func(listed client.SessionState) bool {
			if !of(listed) {
				return false
			}
			s, err := c.FindSession(ctx, listed.ID)
			if err != nil {
				return true // it is being changed
			}
			held := map[[3]int]int{}
			for _, h := range s.Holders {
				for _, l := range h.Layers {
					for _, g := range l.Groups {
						held[[3]int{l.Layer, int(g)}]++
					}
					for _, s := range l.Stripes {
						held[[3]int{l.Layer, int(s[0]), int(s[1])}]++
					}
				}
			}
			return slices.Min(slices.Collect(maps.Values(held))) < times
		}) {
			return
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			t.Fatal("copies are missing for ever")
		}
	}
}

// submit submits a job file.
func (c *cluster) submit(t *testing.T, o client.SubmitOptions) *client.Job {
	t.Helper()
	job, err := c.Submit(bounded(t), o)
	if err != nil {
		t.Fatal(err)
	}
	return job
}

// until follows a job until something holds of it or it has ended, and returns it as it was then.
func (c *cluster) until(t *testing.T, id string, holds func(*client.Job) bool) *client.Job {
	t.Helper()
	ctx, cancel := context.WithCancel(bounded(t))
	defer cancel()
	var found *client.Job
	last, err := c.Watch(ctx, id, func(job *client.Job) {
		if found == nil && holds(job) {
			found = job
			cancel()
		}
	})
	if found != nil {
		return found
	}
	if err != nil {
		t.Fatal(err)
	}
	return last
}

// wait follows a job to its end, which must be a good one.
func (c *cluster) wait(t *testing.T, id string) *client.Job {
	t.Helper()
	job, err := c.Wait(bounded(t), id, nil)
	if err != nil {
		t.Fatal(err)
	}
	return job
}

// fetch downloads a result and opens it.
func (c *cluster) fetch(t *testing.T, id string) *tensor.File {
	t.Helper()
	path := filepath.Join(t.TempDir(), "result.safetensors")
	if _, err := c.Download(bounded(t), id, path, nil); err != nil {
		t.Fatal(err)
	}
	return open(t, path)
}

// run submits a job, waits for its end and fetches its result.
func (c *cluster) run(t *testing.T, path string) (*client.Job, *tensor.File) {
	t.Helper()
	job := c.wait(t, c.submit(t, client.SubmitOptions{Path: path}).ID)
	return job, c.fetch(t, job.ID)
}

// jobs are the coordinator's jobs.
func (c *cluster) jobs(t *testing.T) []*client.Job {
	t.Helper()
	jobs, err := c.List(bounded(t))
	if err != nil {
		t.Fatal(err)
	}
	return jobs
}

// spool lists the files of jobs in the coordinator's folder, without their records.
func (c *cluster) spool(t *testing.T) []string {
	return slices.DeleteFunc(list(t, filepath.Join(c.data, "jobs")), func(name string) bool { return filepath.Ext(name) == ".job" })
}

// checkStore looks into the job records of a coordinator that does not run: each ends with the checksum of what is before.
func (c *cluster) checkStore(t *testing.T) {
	t.Helper()
	records, err := filepath.Glob(filepath.Join(c.data, "jobs", "*.job"))
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range records {
		b, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if len(b) < 8 || xxh3.Hash(b[:len(b)-8]) != binary.LittleEndian.Uint64(b[len(b)-8:]) {
			t.Fatalf("the record %s is damaged", path)
		}
	}
}

// list is the names of the files in a folder.
func list(t *testing.T, folder string) []string {
	t.Helper()
	entries, err := os.ReadDir(folder)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		t.Fatal(err)
	}
	names := []string{}
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names
}

// open opens a file of tensors until the test ends.
func open(t *testing.T, path string) *tensor.File {
	t.Helper()
	f, err := tensor.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = f.Close() }) // was only read
	return f
}

// same fails unless two results hold the same tensors, bit for bit.
func same(t *testing.T, what string, want, got *tensor.File) {
	t.Helper()
	differences, compared, err := accuracy.Diff(want, got)
	if err != nil {
		t.Fatal(err)
	}
	if compared == 0 {
		t.Errorf("%s: nothing was compared", what)
	}
	for _, d := range differences {
		t.Errorf("%s: tensor %q: %s", what, d.Tensor, d.Rule)
	}
}

// random is a tensor of normal numbers; cheap ones: a run of them repeats itself.
func random(rng *rand.Rand, name string, shape ...int) tensor.Data {
	info := tensor.Info{Name: name, DType: tensor.F32, Shape: shape}
	run := make([]byte, 0, 4*8191) // of prime length, so that rows differ
	for range 8191 {
		bits := math.Float32bits(float32(rng.NormFloat64()))
		run = append(run, byte(bits), byte(bits>>8), byte(bits>>16), byte(bits>>24))
	}
	return tensor.Data{Info: info, Bytes: bytes.Repeat(run, int(info.Bytes())/len(run)+1)[:info.Bytes()]}
}

// write writes a job file and returns its path.
func write(path string, tensors []tensor.Data, options string) (string, error) {
	f, err := os.Create(path)
	if err != nil {
		return "", err
	}
	return path, errors.Join(tensor.WriteSafetensors(f, tensors, map[string]string{"headwater": options}), f.Close())
}

// Shape of the long job: 24 MiB of keys and values in 8 layers of 6 groups, so 48 answers that come one after the other
// while the rest is loaded.
const (
	longLayers, longTokens, longPositions = 8, 32, 8192
	longHeads, longGroups, longDim        = 12, 6, 8

	longLoad    = 2 * 4 * longLayers * longPositions * longGroups * longDim // bytes
	longAnswers = longLayers * longGroups
)

// slowly makes the long job long on any processor: every position goes to each worker by itself.
var slowly = []string{"--block", "1"}

// longJob is a job with time enough to do something in its middle.
var longJob = sync.OnceValues(func() (string, error) {
	rng := rand.New(rand.NewPCG(3, 5))
	var tensors []tensor.Data
	for layer := range longLayers {
		prefix := "layers." + string(rune('0'+layer)) + "."
		tensors = append(tensors,
			random(rng, prefix+"q", longTokens, longHeads, longDim),
			random(rng, prefix+"k", longPositions, longGroups, longDim),
			random(rng, prefix+"v", longPositions, longGroups, longDim))
	}
	return write(filepath.Join(workshop, "long.safetensors"), tensors, `{"softcap":20}`)
})

// undisturbed is the long job and what comes out when nothing happens to it.
func undisturbed(t *testing.T) (job string, result *tensor.File) {
	t.Helper()
	job, err := longJob()
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(workshop, "long.result.safetensors")
	undisturbedOnce.Do(func() {
		c := start(t, localcluster.Options{Workers: 1})
		ended := c.wait(t, c.submit(t, client.SubmitOptions{Path: job}).ID)
		if p := ended.Progress; p.LoadedBytes != longLoad || p.Units != longAnswers || p.UnitsDone != longAnswers {
			t.Errorf("the long job ended at %v", p)
		}
		if _, err := c.Download(bounded(t), ended.ID, path, nil); err != nil {
			t.Fatal(err)
		}
	})
	return job, open(t, path)
}

var undisturbedOnce sync.Once

// Points of a job's life at which something can happen to it.
func running(j *client.Job) bool {
	return j.State == client.JobRunning
}
func loading(j *client.Job) bool  { return running(j) && j.Progress.LoadedBytes > 0 }
func answered(j *client.Job) bool { return running(j) && j.Progress.UnitsDone > 0 }
func halfDone(j *client.Job) bool {
	return running(j) && 2*j.Progress.UnitsDone >= j.Progress.Units && answered(j)
}

// tries is how often a test interrupts a job that ended before it could: on a machine that is busy with other things, the
// test may be the slower one.
const tries = 4
