package jobs

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strings"
	"sync"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"headwater.example/coordinator/jobs/internal/store"
	headwaterv1 "headwater.example/proto/headwater/v1"
)

// errCancelled is the cause of a context that a client's cancellation ended.
var errCancelled = errors.New("the job was cancelled")

// entry is one job in the table. Its job is never changed in place: whoever holds a snapshot may read it at leisure.
type entry struct {
	request *headwaterv1.SubmitBegin // without the header

	mu      sync.Mutex
	job     *headwaterv1.Job
	changed chan struct{} // closed at the next change
	cancel  context.CancelCauseFunc
	asked   bool // cancellation was asked for
}

func (e *entry) snapshot() *headwaterv1.Job {
	job, _ := e.watch()
	return job
}

// watch returns the job and a channel that is closed at its next change.
func (e *entry) watch() (*headwaterv1.Job, <-chan struct{}) {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.job, e.changed
}

// show replaces the job that clients see.
func (e *entry) show(job *headwaterv1.Job) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.job = job
	close(e.changed)
	e.changed = make(chan struct{})
}

// cancellable gives the entry the function that ends what is done for it; nil takes it back. It says whether cancellation
// has been asked for before.
func (e *entry) cancellable(cancel context.CancelCauseFunc) bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.cancel = cancel
	return e.asked
}

// ask asks for the end of what is done for the job.
func (e *entry) ask() {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.asked = true
	if e.cancel != nil {
		e.cancel(errCancelled)
	}
}

// stateName is a state as people write it.
func stateName(s headwaterv1.JobState) string {
	return strings.ToLower(strings.TrimPrefix(s.String(), "JOB_STATE_"))
}

func ended(s headwaterv1.JobState) bool {
	switch s {
	case headwaterv1.JobState_JOB_STATE_SUCCEEDED, headwaterv1.JobState_JOB_STATE_FAILED, headwaterv1.JobState_JOB_STATE_CANCELLED:
		return true
	default:
		return false
	}
}

// table is the jobs that the coordinator knows, oldest first.
type table struct {
	mu      sync.Mutex
	entries []*entry
	waiting chan struct{} // closed when a job is queued
}

func newTable() *table { return &table{waiting: make(chan struct{})} }

func (t *table) add(job *headwaterv1.Job, request *headwaterv1.SubmitBegin) *entry {
	e := &entry{job: job, request: request, changed: make(chan struct{})}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.entries = append(t.entries, e)
	return e
}

// claim returns the entry that has the job's key, or adds one for the job, in one step: of two submissions with one key
// only one adds.
func (t *table) claim(job *headwaterv1.Job, request *headwaterv1.SubmitBegin) (e *entry, added bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, e := range t.entries {
		if job.GetKey() != "" && e.snapshot().GetKey() == job.GetKey() {
			return e, false
		}
	}
	e = &entry{job: job, request: request, changed: make(chan struct{})}
	t.entries = append(t.entries, e)
	return e, true
}

func (t *table) remove(e *entry) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.entries = slices.DeleteFunc(t.entries, func(o *entry) bool { return o == e })
}

// all returns the entries, oldest first.
func (t *table) all() []*entry {
	t.mu.Lock()
	defer t.mu.Unlock()
	return slices.Clone(t.entries)
}

// oldest returns the oldest entry in a state, nil where there is none.
func (t *table) oldest(state headwaterv1.JobState) *entry {
	for _, e := range t.all() {
		if e.snapshot().GetState() == state {
			return e
		}
	}
	return nil
}

// find returns the newest job with this id, key or content hash, in this order of precedence.
func (t *table) find(id string) (*entry, error) {
	all := t.all()
	slices.Reverse(all)
	for _, name := range []func(*headwaterv1.Job) string{(*headwaterv1.Job).GetId, (*headwaterv1.Job).GetKey, (*headwaterv1.Job).GetContentHash} {
		for _, e := range all {
			if id != "" && name(e.snapshot()) == id {
				return e, nil
			}
		}
	}
	return nil, status.Errorf(codes.NotFound, "no job has the id, key or content hash %q", id)
}

// queued returns a channel that is closed when the next job is queued.
func (t *table) queued() <-chan struct{} {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.waiting
}

func (t *table) announce() {
	t.mu.Lock()
	defer t.mu.Unlock()
	close(t.waiting)
	t.waiting = make(chan struct{})
}

// change changes a job in the store, then in the table.
func (q *Queue) change(e *entry, f func(*headwaterv1.Job)) error {
	job := proto.CloneOf(e.snapshot())
	f(job)
	if err := q.store.Put(job); err != nil {
		return err
	}
	e.show(job)
	return nil
}

// enqueue makes an uploaded job durable.
func (q *Queue) enqueue(e *entry) error {
	job := proto.CloneOf(e.snapshot())
	job.State, job.Progress = headwaterv1.JobState_JOB_STATE_QUEUED, nil
	if err := q.store.Add(store.Record{Job: job, Request: e.request}); err != nil {
		return err
	}
	e.show(job)
	q.jobs.announce()
	return nil
}

// end stores how a job ended: cancelled, failed, or succeeded as f says. Its input is not needed any more.
func (q *Queue) end(e *entry, f func(*headwaterv1.Job), failed error) error {
	err := q.change(e, func(j *headwaterv1.Job) {
		j.Ended = timestamppb.New(q.Now())
		switch {
		case errors.Is(failed, errCancelled):
			j.State = headwaterv1.JobState_JOB_STATE_CANCELLED
		case failed != nil:
			s := statusOf(failed)
			j.State, j.Error, j.ErrorCode = headwaterv1.JobState_JOB_STATE_FAILED, s.Message(), uint32(s.Code())
		default:
			j.State = headwaterv1.JobState_JOB_STATE_SUCCEEDED
			f(j)
		}
	})
	if err != nil {
		return err
	}
	return remove(q.input(e.snapshot().GetId()))
}

// start takes a queued job's turn; false says that it was cancelled meanwhile.
func (q *Queue) start(e *entry) (bool, error) {
	q.turn.Lock()
	defer q.turn.Unlock()
	if e.snapshot().GetState() != headwaterv1.JobState_JOB_STATE_QUEUED {
		return false, nil
	}
	return true, q.change(e, func(j *headwaterv1.Job) {
		j.State, j.Started, j.Progress = headwaterv1.JobState_JOB_STATE_RUNNING, timestamppb.New(q.Now()), &headwaterv1.Progress{}
		j.Attempts++
	})
}

// cancel ends a queued job, or asks for the end of one that is uploaded or runs.
func (q *Queue) cancel(e *entry) error {
	q.turn.Lock()
	defer q.turn.Unlock()
	if e.snapshot().GetState() == headwaterv1.JobState_JOB_STATE_QUEUED {
		return q.end(e, nil, errCancelled)
	}
	e.ask()
	return nil
}

// retain forgets the ended jobs that are beyond the limits.
func (q *Queue) retain() error {
	all := q.jobs.all()
	slices.Reverse(all)
	kept, bytes := 0, int64(0)
	for _, e := range all {
		job := e.snapshot()
		if !ended(job.GetState()) {
			continue
		}
		kept++
		bytes += int64(job.GetResultBytes())
		if kept <= q.KeepJobs && (kept == 1 || bytes <= q.KeepBytes) && q.Now().Sub(job.GetEnded().AsTime()) <= q.KeepFor {
			continue
		}
		// The record goes first: a file without a record is removed at the next start, a record without a file would promise
		// what is not there.
		if err := q.store.Delete(job.GetId()); err != nil {
			return err
		}
		q.jobs.remove(e)
		if err := remove(q.result(job.GetId())); err != nil {
			return err
		}
		q.Logger.Info("job forgotten", "job", job.GetId(), "result_bytes", job.GetResultBytes())
	}
	return nil
}

func remove(path string) error {
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove spooled file: %w", err)
	}
	return nil
}

// list returns all jobs, newest first.
func (q *Queue) list() []*headwaterv1.Job {
	var jobs []*headwaterv1.Job
	for _, e := range q.jobs.all() {
		jobs = append(jobs, e.snapshot())
	}
	slices.SortStableFunc(jobs, func(a, b *headwaterv1.Job) int {
		return cmp.Or(b.GetCreated().AsTime().Compare(a.GetCreated().AsTime()), cmp.Compare(b.GetId(), a.GetId()))
	})
	return jobs
}
