// Package submitters has clients submit jobs to a coordinator that is killed, that stands still, whose clock jumps, whose disk is full
// for a while, and whose files change on the disk while it is dead, and holds what becomes of the jobs to what was said to the clients.
//
// Each client submits jobs, with keys and without, with deadlines that strike in the middle of calls; it waits for some, cancels some,
// deletes most that have ended, and leaves the others. One fault comes after the other (faults.go). What must hold (history.go):
//
//   - a job whose submission was acknowledged is there until its client has it deleted, also after any kill;
//   - it succeeds, and its result has the bits that the same file had before the faults; or it was cancelled;
//   - a job whose record was changed on the disk is left out, and the log has one line that names the record and the way back; nothing
//     of the job is removed. One whose file or result was changed fails as damaged. No other job notices;
//   - a submission that was refused leaves no job, one of which no outcome came at most one;
//   - a job's id is above those of the jobs that were there before it, and it ends after it began, wherever the clock jumps;
//   - every error has a kind, and a full disk refuses new jobs and fails none that was accepted;
//   - in the end the folder of the jobs has their files, and no others.
package submitters

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"headwater.example/client"
	"headwater.example/internal/figures/jobs"
	"headwater.example/internal/localcluster"
	"headwater.example/internal/testkit/jump"
)

// Config is what a run is made with.
type Config struct {
	Command string // the program coord
	Clients int
	Seed    uint64
	Time    time.Duration // for which jobs are submitted; 0 is until the context ends
	Log     io.Writer     // of the processes
	// Disk mounts a small file system at a folder, for the coordinator's data; nil: its disk is never full.
	Disk func(folder string, bytes int64) (remove func() error, err error)
	// Clocks, unless nil, are those of the processes, of which the coordinator's jumps.
	Clocks *jump.Clocks
}

// Tally counts what was done.
type Tally struct {
	// Submitted are jobs that were acknowledged, Refused those for which there was no room, Unknown those of which no outcome came.
	Submitted, Refused, Unknown int64
	// Results are those that were compared.
	Results, Cancelled, Deleted int64
	// Kills and Stops are those of the coordinator, Jumps of its clock, Fills of its disk, Torn its files that were cut or changed while
	// it was dead.
	Kills, Stops, Jumps, Fills, Torn int64
	// LeftOut are jobs whose record was changed, Damaged those whose file or result was.
	LeftOut, Damaged int64
}

const (
	// diskBytes is the size of the coordinator's disk: some dozens of the larger jobs.
	diskBytes = 24 << 20
	// settled bounds how long the cluster may take to have done all jobs once nothing bad happens any more.
	settled = 2 * time.Minute
)

// run is a run under way.
type run struct {
	config  Config
	cluster *localcluster.Cluster
	data    string // the coordinator's folder
	files   []*file
	log     *log
	history history
	tally   struct {
		submitted, refused, unknown, results, cancelled, deleted, kills, stops, jumps, fills, torn, leftOut, damaged atomic.Int64
	}
}

// file is a job file, and the SHA-256 of its result.
type file struct {
	path   string
	result string
}

// Run lets clients submit jobs until the time is over or ctx ends. The error is the first thing that must not be, nil if there was none.
func Run(ctx context.Context, config Config) (_ Tally, err error) {
	r := &run{config: config, log: &log{to: config.Log}}
	work, err := os.MkdirTemp("", "headwater-submitters-")
	if err != nil {
		return Tally{}, err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(work)) }()
	r.data = filepath.Join(work, "data")
	if err := os.Mkdir(r.data, 0o700); err != nil {
		return Tally{}, err
	}
	if config.Disk != nil {
		remove, err := config.Disk(r.data, diskBytes)
		if err != nil {
			return Tally{}, err
		}
		defer func() { err = errors.Join(err, remove()) }()
	}
	r.cluster, err = localcluster.Start(ctx, localcluster.Options{
		Workers: 2, Memory: 64 << 20, Threads: 1, Command: []string{config.Command}, DataDir: r.data, Log: r.log,
		// Every position goes to the workers by itself, so that jobs take long and some wait.
		CoordinatorArgs: []string{"--keep-jobs", "1000000", "--block", "1"},
	})
	if err != nil {
		return Tally{}, err
	}
	defer func() {
		stopping, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		err = errors.Join(err, r.cluster.Stop(stopping))
	}()
	if err = r.prepare(ctx, work); err == nil {
		err = r.run(ctx)
	}
	t := &r.tally
	return Tally{
		Submitted: t.submitted.Load(), Refused: t.refused.Load(), Unknown: t.unknown.Load(), Results: t.results.Load(), Cancelled: t.cancelled.Load(),
		Deleted: t.deleted.Load(), Kills: t.kills.Load(), Stops: t.stops.Load(), Jumps: t.jumps.Load(), Fills: t.fills.Load(), Torn: t.torn.Load(),
		LeftOut: t.leftOut.Load(), Damaged: t.damaged.Load(),
	}, err
}

// prepare writes job files of several sizes, and has each done once.
func (r *run) prepare(ctx context.Context, work string) error {
	c, err := client.Dial(r.cluster.Address())
	if err != nil {
		return err
	}
	defer c.Close()
	draw := jobs.Uniform(rand.New(rand.NewPCG(r.config.Seed, 1)))
	for i, positions := range []int{1, 70, 300, 1500, 3000} {
		f := &file{path: filepath.Join(work, fmt.Sprintf("job%d.safetensors", i))}
		if _, err := jobs.Write(f.path, jobs.Attention(1+40*i, positions, 4, 2, 32), nil, draw); err != nil {
			return err
		}
		job, err := c.Submit(ctx, client.SubmitOptions{Path: f.path})
		if err == nil {
			job, err = c.Wait(ctx, job.ID, nil)
		}
		if err != nil {
			return err
		}
		f.result = job.ResultSHA256
		r.files = append(r.files, f)
		if _, err := c.Delete(ctx, job.ID); err != nil {
			return err
		}
	}
	return nil
}

func (r *run) run(ctx context.Context) error {
	running, stop := context.WithCancelCause(ctx)
	defer stop(nil)
	if r.config.Time > 0 {
		defer time.AfterFunc(r.config.Time, func() { stop(nil) }).Stop()
	}
	var all sync.WaitGroup
	begin := func(do func(context.Context) error) {
		all.Go(func() {
			if err := do(running); err != nil {
				stop(err)
			}
		})
	}
	begin(r.disturb)
	for i := range r.config.Clients {
		s := &submitter{run: r, number: i, rand: rand.New(rand.NewPCG(r.config.Seed, uint64(3+i)))}
		begin(s.submit)
	}
	all.Wait()
	if cause := context.Cause(running); !errors.Is(cause, context.Canceled) && !errors.Is(cause, context.DeadlineExceeded) {
		return cause
	}
	return r.settle(context.WithoutCancel(ctx))
}

// wait waits for a time, or until ctx ends.
func wait(ctx context.Context, length time.Duration) {
	select {
	case <-ctx.Done():
	case <-time.After(length):
	}
}
