// Package jobs is a coordinator's trade with jobs: it takes them from clients, keeps them durably, runs them one after the
// other on the workers, and serves their results.
//
// The way of a job: Submit checks its header and the cluster's room before a byte is sent, spools the file, checks every
// value, and stores the job as queued (submit.go). Run takes the oldest queued job, scatters it (internal/scatter), and
// stores how it ended (execute.go). What clients see of jobs is one table in memory (table.go); each durable change of it
// is on disk (internal/store) before it is shown.
//
// A queue that is killed finds its jobs in the store when it is opened again: queued ones wait, running ones are queued
// again (recover.go). A job is a pure function of its file, so to run it twice is only waste. What comes back from the disk
// is compared with its sum before a result of it is shown or sent (verify.go). A full disk refuses new jobs; accepted ones
// wait for room (execute.go).
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
	"headwater.example/internal/observe"
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
	DefaultRoomPause  = 10 * time.Second
)

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

	// UploadStall ends a submission that brings less than 64 KiB in that time; RoomPause is how long jobs wait before a disk
	// that was full is tried again. Zero values are a minute and 10 seconds.
	UploadStall, RoomPause time.Duration

	Observe *observe.Coordinator // nil counts nothing

	Security *rpc.Security // how workers are spoken to; nil is plain text within this machine

	// Tenants tells what tenants may have and have, apart from jobs; nil tells nothing.
	Tenants func() []*headwaterv1.TenantStatus

	// Elsewhere says how a submission of a caller with a key is handed over to another coordinator, which has the job of that key; nil
	// says that none is known to. The queue asks it for keys that it does not have. Nil never hands one over.
	Elsewhere func(ctx context.Context, key string) Handover

	Now func() time.Time // clock; nil is time.Now
}

// Handover passes a submission on, and its answers back, until it has ended.
type Handover func(context.Context, Submission) error

// Submission is one that is handed over.
type Submission struct {
	First *headwaterv1.SubmitRequest // its announcement
	// Next returns the next message, with the memory in which its data lies; io.EOF ends them. One goroutine calls it.
	Next func() (*headwaterv1.SubmitRequest, *rpc.Buffer, error)
	// Answer answers the client. One goroutine calls it.
	Answer func(*headwaterv1.SubmitResponse) error
	// Stop makes Next end.
	Stop func()
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
	stopping chan struct{}  // closed when Run ends
	turn     sync.Mutex     // held while a queued job becomes another
	full     bool           // the disk was full when it was last asked for room; Run's
	uploads  chan struct{}  // one element for each submission under way
	headers  *headerBudget  // of submissions
	readers  sync.WaitGroup // what reads submissions

	ids    sync.Mutex // guards newest
	newest uint64     // time of the newest id, in milliseconds
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
	c.UploadStall = cmp.Or(c.UploadStall, time.Minute)
	c.RoomPause = cmp.Or(c.RoomPause, DefaultRoomPause)
	if c.Now == nil {
		c.Now = time.Now
	}
	q := &Queue{
		Config: c, conns: rpc.NewConns(c.Security, rpc.DialOptions()...), started: c.Now(), stopping: make(chan struct{}),
		uploads: make(chan struct{}, maxUploads), headers: newHeaderBudget(),
	}
	q.workers = workers.New(c.View, q.conns)
	if err := os.MkdirAll(q.spool(), 0o700); err != nil {
		return nil, fmt.Errorf("make data folder: %w", err)
	}
	var err error
	if q.store, err = store.Open(q.spool()); err != nil {
		return nil, err
	}
	if err := q.recover(); err != nil {
		return nil, errors.Join(err, q.store.Close())
	}
	return q, nil
}

// spool is the folder of the jobs' files.
func (q *Queue) spool() string { return filepath.Join(q.DataDir, "jobs") }

// Run runs queued jobs until ctx ends, once. The job that runs then is queued again, for the next start, and calls that wait
// for a job end, so that a server can stop gracefully.
func (q *Queue) Run(ctx context.Context) error {
	defer close(q.stopping)
	hourly := time.NewTicker(time.Hour)
	defer hourly.Stop()
	for {
		queued := q.jobs.queued()
		e, rest := q.jobs.next(time.Now())
		if e != nil && ctx.Err() == nil {
			err := q.execute(ctx, e)
			if err != nil && !diskFull(err) {
				return err
			}
			q.room(e, err)
			continue
		}
		// Until a job that waits for room may try again; with none, an hour more or less.
		resting := time.NewTimer(cmp.Or(rest, time.Hour))
		select {
		case <-queued:
		case <-resting.C:
		case <-hourly.C:
			q.retain()
		case <-ctx.Done():
			resting.Stop()
			return nil
		}
		resting.Stop()
	}
}

// Close ends the connections to workers and closes the store. Call it after Run and the server have ended.
func (q *Queue) Close() error {
	q.readers.Wait()
	return errors.Join(q.conns.Close(), q.store.Close())
}

// newID makes a job's id, above those of all that are there, also where the clock goes back: jobs wait, and are kept, in the order of
// their ids.
func (q *Queue) newID() string {
	q.ids.Lock()
	defer q.ids.Unlock()
	q.newest = max(q.newest, ulid.Timestamp(q.Now()))
	return q.Name + "-" + ulid.MustNew(q.newest, ulid.DefaultEntropy()).String() // those of one millisecond ascend as well
}

// after makes newID make ids after one of before.
func (q *Queue) after(id string) {
	made, err := ulid.ParseStrict(id[max(len(id)-ulid.EncodedSize, 0):])
	if err != nil || made.Time() >= ulid.MaxTime() {
		return // it is none of ours
	}
	q.ids.Lock()
	defer q.ids.Unlock()
	q.newest = max(q.newest, made.Time()+1)
}
