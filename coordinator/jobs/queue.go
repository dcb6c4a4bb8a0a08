// Package jobs is a coordinator's trade with jobs: it takes them from clients, keeps them durably, runs them one after the
// other on the workers, and serves their results.
//
// The way of a job: Submit checks its header and the cluster's room before a byte is sent, spools the file, checks every
// value, and stores the job as queued (submit.go). Run takes the oldest queued job, scatters it (internal/scatter), and
// stores how it ended (execute.go). What clients see of jobs is one table in memory (table.go); each durable change of it
// is on disk (internal/store) before it is shown.
//
// A queue that is killed finds its jobs in the store when it is opened again: queued ones wait, running ones are queued
// again. A job is a pure function of its file, so to run it twice is only waste.
package jobs

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/oklog/ulid/v2"

	"headwater.example/coordinator/jobs/internal/store"
	"headwater.example/coordinator/workers"
	"headwater.example/internal/atomicfile"
	"headwater.example/internal/rpc"
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

// Config is what a queue is made with. Zero values are the defaults.
type Config struct {
	Name    string // of the coordinator; begins the jobs' ids
	Version string // of the program, for people to read
	DataDir string // where jobs are kept; made if it is not there
	View    workers.View
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

// Queue is the jobs of one coordinator. Make it with Open. It implements headwater.v1.CoordinatorService.
type Queue struct {
	headwaterv1.UnimplementedCoordinatorServiceServer

	Config
	conns    *rpc.Conns
	workers  *workers.Workers
	store    *store.Store
	jobs     *table
	started  time.Time
	stopping chan struct{} // closed when Run ends
	turn     sync.Mutex    // held while a queued job becomes another
}

// Open opens the data folder and finds the jobs in it. Two coordinators can not share a folder.
func Open(c Config) (*Queue, error) {
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
	q := &Queue{Config: c, conns: rpc.NewConns(rpc.DialOptions()...), started: c.Now(), stopping: make(chan struct{})}
	q.workers = workers.New(c.View, q.conns)
	if err := os.MkdirAll(q.spool(), 0o700); err != nil {
		return nil, fmt.Errorf("make data folder: %w", err)
	}
	var err error
	if q.store, err = store.Open(filepath.Join(c.DataDir, "jobs.db")); err != nil {
		return nil, err
	}
	if err := q.recover(); err != nil {
		return nil, errors.Join(err, q.store.Close())
	}
	return q, nil
}

// spool is the folder of the jobs' files.
func (q *Queue) spool() string { return filepath.Join(q.DataDir, "jobs") }

// input and result are the files of one job.
func (q *Queue) input(id string) string { return filepath.Join(q.spool(), id+".safetensors") }

func (q *Queue) result(id string) string {
	return filepath.Join(q.spool(), id+".result.safetensors")
}

// recover reads the store, queues again what was running, and removes files that belong to nothing.
func (q *Queue) recover() error {
	records, err := q.store.Load()
	if err != nil {
		return err
	}
	q.jobs = newTable()
	wanted := map[string]bool{}
	for _, r := range records {
		if r.Job.GetCodec() == headwaterv1.ContextCodec_CONTEXT_CODEC_UNSPECIFIED { // of before it was said of a job
			r.Job.Codec = r.Request.GetCodec()
		}
		e := q.jobs.add(r.Job, r.Request)
		switch r.Job.GetState() {
		case headwaterv1.JobState_JOB_STATE_RUNNING:
			if r.Job.GetAttempts() >= maxAttempts {
				err = q.end(e, nil, fmt.Errorf("the coordinator ended %d times while the job ran", maxAttempts))
			} else {
				err = q.change(e, func(j *headwaterv1.Job) {
					j.State, j.Progress = headwaterv1.JobState_JOB_STATE_QUEUED, nil
				})
			}
			if err != nil {
				return err
			}
			q.Logger.Info("job found running", "job", r.Job.GetId(), "state", e.snapshot().GetState())
		}
		switch e.snapshot().GetState() {
		case headwaterv1.JobState_JOB_STATE_QUEUED:
			wanted[q.input(r.Job.GetId())] = true
		case headwaterv1.JobState_JOB_STATE_SUCCEEDED:
			wanted[q.result(r.Job.GetId())] = true
		}
	}
	files, err := os.ReadDir(q.spool())
	if err != nil {
		return fmt.Errorf("list spooled files: %w", err)
	}
	for _, f := range files {
		path := filepath.Join(q.spool(), f.Name())
		if wanted[path] {
			continue
		}
		q.Logger.Info("removing left-over file", "file", f.Name(), "temporary", atomicfile.IsTemporary(path))
		if err := os.Remove(path); err != nil {
			return fmt.Errorf("remove left-over file: %w", err)
		}
	}
	return q.retain()
}

// Run runs queued jobs until ctx ends, once. The job that runs then is queued again, for the next start, and calls that wait
// for a job end, so that a server can stop gracefully.
func (q *Queue) Run(ctx context.Context) error {
	defer close(q.stopping)
	hourly := time.NewTicker(time.Hour)
	defer hourly.Stop()
	for {
		queued := q.jobs.queued()
		if e := q.jobs.oldest(headwaterv1.JobState_JOB_STATE_QUEUED); e != nil && ctx.Err() == nil {
			if err := q.execute(ctx, e); err != nil {
				return err
			}
			continue
		}
		select {
		case <-queued:
		case <-hourly.C:
			if err := q.retain(); err != nil {
				return err
			}
		case <-ctx.Done():
			return nil
		}
	}
}

// Close ends the connections to workers and closes the store. Call it after Run and the server have ended.
func (q *Queue) Close() error { return errors.Join(q.conns.Close(), q.store.Close()) }

// newID makes a job's id; ids ascend with time.
func (q *Queue) newID() string {
	return q.Name + "-" + ulid.MustNew(ulid.Timestamp(q.Now()), ulid.DefaultEntropy()).String()
}
