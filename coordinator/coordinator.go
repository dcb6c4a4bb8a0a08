// Package coordinator takes jobs from clients, keeps them durably, runs them one after the other on the workers that the
// membership shows, and serves their results. It serves sessions as if it held them whole.
//
// The way of a job: Submit checks its header and the cluster's room before a byte is sent, spools the file, checks every
// value, and stores the job as queued (submit.go). Run takes the oldest queued job, scatters it (internal/scatter), and
// stores how it ended (execute.go). What clients see of jobs is one table in memory (jobs.go), each durable change of which
// is on disk (internal/store) before it is shown.
//
// The way of a session: CreateSession plans its groups onto the workers and makes it there (sessions.go); Lane cuts each step
// by holder and gathers the answers (relay.go). Nothing of a session is kept but who holds it, which the workers know as well.
//
// A coordinator that is killed finds its jobs in the store when it starts again: queued ones wait, running ones are queued
// again. A job is a pure function of its file, so to run it twice is only waste.
package coordinator

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"regexp"
	"sync"
	"time"

	"github.com/oklog/ulid/v2"
	"google.golang.org/grpc"

	"headwater.example/coordinator/internal/store"
	"headwater.example/internal/atomicfile"
	"headwater.example/internal/membership"
	"headwater.example/internal/rpc"
	"headwater.example/internal/session"
	"headwater.example/internal/session/fanout"
	headwaterv1 "headwater.example/proto/headwater/v1"
)

// Defaults of Config.
const (
	DefaultWorkerWait = 30 * time.Second
	DefaultDeadline   = time.Hour
	DefaultKeepJobs   = 100
	DefaultKeepFor    = 7 * 24 * time.Hour
	DefaultKeepBytes  = 64 << 30
)

// maxAttempts is how often a job is started that the coordinator did not live to end.
const maxAttempts = 3

// Config is what a coordinator is made with. Zero values are the defaults.
type Config struct {
	Name    string // unique among coordinators; a DNS label
	Version string // of the program, for people to read
	DataDir string // where jobs are kept; made where it is not there
	View    membership.View
	Logger  *slog.Logger

	WorkerWait time.Duration // how long a job waits for a first worker that answers
	Deadline   time.Duration // longest time that a job may run
	BlockBytes int           // size to which keys, values and hidden states are cut; results do not depend on it

	// Ended jobs are kept, with their results, as long as they are among the newest KeepJobs, ended at most KeepFor ago, and
	// the results up to theirs have at most KeepBytes, the newest apart.
	KeepJobs  int
	KeepFor   time.Duration
	KeepBytes int64

	Now func() time.Time // clock; nil is time.Now
}

// Coordinator is one coordinator. Make it with Open.
type Coordinator struct {
	headwaterv1.UnimplementedCoordinatorServiceServer

	Config
	sessions *sessions
	store    *store.Store
	jobs     *table
	started  time.Time
	stopping chan struct{} // closed when Run ends
	turn     sync.Mutex    // held while a queued job becomes another
}

var names = regexp.MustCompile(`^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$`)

// Open opens the data folder and finds the jobs in it. Two coordinators can not share a folder.
func Open(c Config) (*Coordinator, error) {
	if !names.MatchString(c.Name) {
		return nil, fmt.Errorf("coordinator name %q is not a DNS label: 1 to 63 of a-z, 0-9 and '-', with no '-' at its ends", c.Name)
	}
	c.WorkerWait = cmp.Or(c.WorkerWait, DefaultWorkerWait)
	c.Deadline = cmp.Or(c.Deadline, DefaultDeadline)
	c.BlockBytes = cmp.Or(c.BlockBytes, rpc.BlockBytes)
	c.KeepJobs = cmp.Or(c.KeepJobs, DefaultKeepJobs)
	c.KeepFor = cmp.Or(c.KeepFor, DefaultKeepFor)
	c.KeepBytes = cmp.Or(c.KeepBytes, DefaultKeepBytes)
	c.Logger = cmp.Or(c.Logger, slog.New(slog.DiscardHandler))
	if c.BlockBytes < 0 || c.BlockBytes > rpc.MaxMessageBytes/2 {
		return nil, fmt.Errorf("block size of %d bytes is not in [1, %d]", c.BlockBytes, rpc.MaxMessageBytes/2)
	}
	if c.Now == nil {
		c.Now = time.Now
	}
	co := &Coordinator{Config: c, started: c.Now(), stopping: make(chan struct{})}
	co.sessions = &sessions{c: co, conns: fanout.NewConns(rpc.DialOptions()...), holdings: map[[16]byte]*fanout.Holding{}}
	if err := os.MkdirAll(co.spool(), 0o700); err != nil {
		return nil, fmt.Errorf("make data folder: %w", err)
	}
	var err error
	if co.store, err = store.Open(filepath.Join(c.DataDir, "jobs.db")); err != nil {
		return nil, err
	}
	if err := co.recover(); err != nil {
		return nil, errors.Join(err, co.store.Close())
	}
	return co, nil
}

// spool is the folder of the jobs' files.
func (c *Coordinator) spool() string { return filepath.Join(c.DataDir, "jobs") }

// input and result are the files of one job.
func (c *Coordinator) input(id string) string { return filepath.Join(c.spool(), id+".safetensors") }

func (c *Coordinator) result(id string) string {
	return filepath.Join(c.spool(), id+".result.safetensors")
}

// recover reads the store, queues again what was running, and removes files that belong to nothing.
func (c *Coordinator) recover() error {
	records, err := c.store.Load()
	if err != nil {
		return err
	}
	c.jobs = newTable()
	wanted := map[string]bool{}
	for _, r := range records {
		e := c.jobs.add(r.Job, r.Request)
		switch r.Job.GetState() {
		case headwaterv1.JobState_JOB_STATE_RUNNING:
			if r.Job.GetAttempts() >= maxAttempts {
				err = c.end(e, nil, fmt.Errorf("the coordinator ended %d times while the job ran", maxAttempts))
			} else {
				err = c.change(e, func(j *headwaterv1.Job) {
					j.State, j.Progress = headwaterv1.JobState_JOB_STATE_QUEUED, nil
				})
			}
			if err != nil {
				return err
			}
			c.Logger.Info("job found running", "job", r.Job.GetId(), "state", e.snapshot().GetState())
		}
		switch e.snapshot().GetState() {
		case headwaterv1.JobState_JOB_STATE_QUEUED:
			wanted[c.input(r.Job.GetId())] = true
		case headwaterv1.JobState_JOB_STATE_SUCCEEDED:
			wanted[c.result(r.Job.GetId())] = true
		}
	}
	files, err := os.ReadDir(c.spool())
	if err != nil {
		return fmt.Errorf("list spooled files: %w", err)
	}
	for _, f := range files {
		path := filepath.Join(c.spool(), f.Name())
		if wanted[path] {
			continue
		}
		c.Logger.Info("removing left-over file", "file", f.Name(), "temporary", atomicfile.IsTemporary(path))
		if err := os.Remove(path); err != nil {
			return fmt.Errorf("remove left-over file: %w", err)
		}
	}
	return c.retain()
}

// Register adds the services to a server.
func (c *Coordinator) Register(s grpc.ServiceRegistrar) {
	headwaterv1.RegisterCoordinatorServiceServer(s, c)
	session.Register(s, c.sessions)
}

// Run runs queued jobs until ctx ends, once. The job that runs then is queued again, for the next start, and calls that wait
// for a job end, so that a server can stop gracefully.
func (c *Coordinator) Run(ctx context.Context) error {
	defer close(c.stopping)
	ctx, end := context.WithCancel(ctx)
	var keeper sync.WaitGroup
	defer keeper.Wait()
	defer end()
	keeper.Go(func() { c.sessions.keep(ctx) })
	hourly := time.NewTicker(time.Hour)
	defer hourly.Stop()
	for {
		queued := c.jobs.queued()
		if e := c.jobs.oldest(headwaterv1.JobState_JOB_STATE_QUEUED); e != nil && ctx.Err() == nil {
			if err := c.execute(ctx, e); err != nil {
				return err
			}
			continue
		}
		select {
		case <-queued:
		case <-hourly.C:
			if err := c.retain(); err != nil {
				return err
			}
		case <-ctx.Done():
			return nil
		}
	}
}

// Close ends the connections to workers and closes the store. Call it after Run and the server have ended.
func (c *Coordinator) Close() error {
	c.sessions.relays.Wait()
	return errors.Join(c.sessions.conns.Close(), c.store.Close())
}

// newID makes a job's id; ids ascend with time.
func (c *Coordinator) newID() string {
	return c.Name + "-" + ulid.MustNew(ulid.Timestamp(c.Now()), ulid.DefaultEntropy()).String()
}
