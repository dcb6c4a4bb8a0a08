package jobs

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"headwater.example/coordinator/jobs/internal/store"
	"headwater.example/internal/layerproto"
	"headwater.example/internal/quota"
	"headwater.example/internal/quotaproto"
	"headwater.example/internal/rpc"
	headwaterv1 "headwater.example/proto/headwater/v1"
)

// errCancelled is the cause of a context that a client's cancellation ended.
var errCancelled = errors.New("the job was cancelled")

// entry is one job in the table. Its job is never changed in place, so a snapshot can be read without a lock.
type entry struct {
	mu      sync.Mutex
	job     *headwaterv1.Job
	request *headwaterv1.SubmitBegin // without the header
	changed chan struct{}            // closed at the next change
	cancel  context.CancelCauseFunc
	asked   bool      // cancellation was asked for
	rests   time.Time // until then it is not started: there was no room on the disk

	inputHash, resultHash uint64 // xxh3 of its files, 0 if not known
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

// record is what is stored of the entry with a job in the place of its own.
func (e *entry) record(job *headwaterv1.Job) store.Record {
	e.mu.Lock()
	defer e.mu.Unlock()
	return store.Record{Job: job, Request: e.request, InputHash: e.inputHash, ResultHash: e.resultHash}
}

// hashes returns the xxh3 sums of the job's files.
func (e *entry) hashes() (input, result uint64) {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.inputHash, e.resultHash
}

func (e *entry) setHashes(input, result uint64) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.inputHash, e.resultHash = input, result
}

// rest keeps the job from being started until a time.
func (e *entry) rest(until time.Time) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.rests = until
}

// begun returns the request that the job was submitted with.
func (e *entry) begun() *headwaterv1.SubmitBegin {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.request
}

// submit makes the entry stand for a new submission. A cancellation that was asked for before is over.
func (e *entry) submit(job *headwaterv1.Job, request *headwaterv1.SubmitBegin) {
	e.show(job)
	e.mu.Lock()
	defer e.mu.Unlock()
	e.request, e.asked = request, false
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

// StateName is a state as people write it.
func StateName(s headwaterv1.JobState) string {
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
	refused map[string]uint64 // submissions for which a tenant had too many jobs, by tenant
	waiting chan struct{}     // closed when a job is queued
}

func newTable() *table { return &table{waiting: make(chan struct{}), refused: map[string]uint64{}} }

func (t *table) add(r store.Record) *entry {
	e := &entry{job: r.Job, request: r.Request, inputHash: r.InputHash, resultHash: r.ResultHash, changed: make(chan struct{})}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.entries = append(t.entries, e)
	return e
}

// claim is what a submission finds in the table.
type claim struct {
	*entry
	fresh  bool             // the entry is the submission's to upload to
	before *headwaterv1.Job // of a job that is submitted again: how it had ended
}

// claim gives a submission its entry in one step, so that of two submissions with one key only one has it to itself. The
// entry is a new one; or that of a job with the same key and content, if that one ended for a reason that its content did not
// cause. In any other case the entry that has the key is returned as it stands. A tenant may have at most so many jobs that have not
// ended; 0 is no bound.
func (t *table) claim(offered *headwaterv1.Job, request *headwaterv1.SubmitBegin, most int64) (claim, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	i := t.index(offered.GetKey(), offered.GetTenant())
	if i < 0 {
		if err := t.may(offered.GetTenant(), most); err != nil {
			return claim{}, err
		}
		e := &entry{job: offered, request: request, changed: make(chan struct{})}
		t.entries = append(t.entries, e)
		return claim{entry: e, fresh: true}, nil
	}
	e := t.entries[i]
	before := e.snapshot()
	if !sameAnswer(before, offered) || !again(before) {
		return claim{entry: e}, nil
	}
	if err := t.may(offered.GetTenant(), most); err != nil {
		return claim{}, err
	}
	offered.Id = before.GetId()
	e.submit(offered, request)
	t.entries = append(slices.Delete(t.entries, i, i+1), e) // its turn is after those that wait
	return claim{entry: e, fresh: true, before: before}, nil
}

// index is where a tenant's job with a key is, -1 if there is none. The lock is held.
func (t *table) index(key, tenant string) int {
	return slices.IndexFunc(t.entries, func(e *entry) bool {
		have := e.snapshot()
		return key != "" && have.GetKey() == key && have.GetTenant() == tenant
	})
}

// keyed returns a tenant's job with a key, nil if there is none.
func (t *table) keyed(key, tenant string) *headwaterv1.Job {
	t.mu.Lock()
	defer t.mu.Unlock()
	if i := t.index(key, tenant); i >= 0 {
		return t.entries[i].snapshot()
	}
	return nil
}

// may refuses a tenant one job more than it may have that have not ended. The lock is held.
func (t *table) may(tenant string, most int64) error {
	if most == 0 {
		return nil
	}
	n := int64(0)
	for _, e := range t.entries {
		if job := e.snapshot(); job.GetTenant() == tenant && !ended(job.GetState()) {
			n++
		}
	}
	if n < most {
		return nil
	}
	t.refused[tenant]++
	return quotaproto.Status(&quota.Exceeded{Tenant: tenant, Kind: quota.Jobs, Limit: float64(most), Used: float64(n), RetryAfter: quota.Every}).Err()
}

// sameAnswer says whether two submissions ask for the same bits: of the same content, and narrowed alike.
func sameAnswer(a, b *headwaterv1.Job) bool {
	return a.GetContentHash() == b.GetContentHash() && a.GetCodec() == b.GetCodec()
}

// again says whether a job has ended without a result for a reason that its content did not cause: a deadline, a
// cancellation, no room, lost workers, a disk. Such a job is worth another run.
func again(job *headwaterv1.Job) bool {
	switch job.GetState() {
	case headwaterv1.JobState_JOB_STATE_CANCELLED:
		return true
	case headwaterv1.JobState_JOB_STATE_FAILED:
		return !contentFault(codes.Code(job.GetErrorCode()))
	}
	return false
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

// next returns the oldest queued entry that does not rest. If there is none it says how long the first of those that rest
// still does, 0 if none does.
func (t *table) next(now time.Time) (e *entry, rest time.Duration) {
	for _, e := range t.all() {
		if e.snapshot().GetState() != headwaterv1.JobState_JOB_STATE_QUEUED {
			continue
		}
		e.mu.Lock()
		left := e.rests.Sub(now)
		e.mu.Unlock()
		if left <= 0 {
			return e, 0
		}
		if rest == 0 || left < rest {
			rest = left
		}
	}
	return nil, rest
}

// find returns a caller's job with this id, content hash or key, in this order: nobody's key hides what a hash names. Of several
// jobs with one content hash it is one with a result, and of these one whose codec lost nothing; then the newest.
func (t *table) find(caller rpc.Caller, id string) (*entry, error) {
	return t.best(caller, id, Best)
}

// Best ranks the jobs that a content hash names, for who wants a result.
func Best(job *headwaterv1.Job) int {
	switch {
	case job.GetState() != headwaterv1.JobState_JOB_STATE_SUCCEEDED:
		return 0
	case job.GetCodec() != headwaterv1.ContextCodec_CONTEXT_CODEC_EXACT:
		return 1
	}
	return 2
}

// findUnended is find for who wants to end the job: one that has not ended comes first.
func (t *table) findUnended(caller rpc.Caller, id string) (*entry, error) {
	return t.best(caller, id, Unended)
}

// Unended ranks them for who wants to end the job.
func Unended(job *headwaterv1.Job) int {
	if ended(job.GetState()) {
		return 0
	}
	return 1
}

// best returns the newest of a caller's jobs with this id, content hash or key that rank highest.
func (t *table) best(caller rpc.Caller, id string, rank func(*headwaterv1.Job) int) (*entry, error) {
	all := t.all()
	slices.Reverse(all)
	all = slices.DeleteFunc(all, func(e *entry) bool { return !caller.Owns(e.snapshot().GetTenant()) })
	for _, name := range []func(*headwaterv1.Job) string{(*headwaterv1.Job).GetId, (*headwaterv1.Job).GetContentHash, (*headwaterv1.Job).GetKey} {
		var found *entry
		for _, e := range all {
			if id != "" && name(e.snapshot()) == id && (found == nil || rank(e.snapshot()) > rank(found.snapshot())) {
				found = e
			}
		}
		if found != nil {
			return found, nil
		}
	}
	return nil, status.Errorf(codes.NotFound, "no job has the id, content hash or key %q", id)
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

// change changes a job in the store and in the table. If it can not be stored because the disk is full, the table has it
// nevertheless, if it holds whether or not it is known after a restart.
func (q *Queue) change(e *entry, f func(*headwaterv1.Job)) error {
	job := proto.CloneOf(e.snapshot())
	f(job)
	if err := q.store.Put(e.record(job)); err != nil {
		if diskFull(err) && job.GetState() == headwaterv1.JobState_JOB_STATE_QUEUED {
			e.show(job) // on the disk it runs, which the next start makes queued
		}
		return err
	}
	e.show(job)
	return nil
}

// enqueue makes an uploaded job durable: its record, then its file. A record without a file is known at the next start, a
// file without a record would not be.
func (q *Queue) enqueue(c claim, commit func() error) error {
	job := proto.CloneOf(c.snapshot())
	job.State, job.Progress = headwaterv1.JobState_JOB_STATE_QUEUED, nil
	if err := q.store.Put(c.record(job)); err != nil {
		return err
	}
	if err := commit(); err != nil {
		if c.before != nil {
			return errors.Join(err, q.store.Put(c.record(c.before)))
		}
		return errors.Join(err, q.store.Delete(job.GetId()))
	}
	c.show(job)
	q.jobs.announce()
	return nil
}

// end stores how a job ended: cancelled, failed, or succeeded as f says. Its input is not needed any more.
func (q *Queue) end(e *entry, f func(*headwaterv1.Job), failed error) error {
	input := q.store.Input(e.snapshot().GetId())
	store := func() error {
		return q.change(e, func(j *headwaterv1.Job) {
			j.Ended = timestamppb.New(q.Now())
			if started := j.GetStarted(); started != nil && started.AsTime().After(j.Ended.AsTime()) {
				j.Ended = started // the clock has gone back
			}
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
	}
	err := store()
	if diskFull(err) && failed != nil {
		// Nobody needs the file of a job without a result, and it may have what its record lacks.
		if err := remove(input); err != nil {
			return err
		}
		err = store()
	}
	if err != nil {
		return err
	}
	return remove(input)
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

// cancel ends a queued job, or asks for the end of one that is uploaded or runs. If the disk has no room for how a queued one ended, it
// ends at its turn.
func (q *Queue) cancel(e *entry) error {
	q.turn.Lock()
	defer q.turn.Unlock()
	if e.snapshot().GetState() == headwaterv1.JobState_JOB_STATE_QUEUED {
		if err := q.end(e, nil, errCancelled); !diskFull(err) {
			return err
		}
	}
	e.ask()
	return nil
}

// retain forgets the ended jobs that are beyond the limits.
func (q *Queue) retain() {
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
		if err := q.drop(e); err != nil {
			q.Logger.Warn("a job that is not to be kept any more can not be forgotten", "job", job.GetId(), "error", err)
			continue
		}
		q.Logger.Info("job forgotten", "job", job.GetId(), "result_bytes", job.GetResultBytes())
	}
}

// drop forgets a job that has ended, with its files.
func (q *Queue) drop(e *entry) error {
	if err := q.store.Delete(e.snapshot().GetId()); err != nil {
		return err
	}
	q.jobs.remove(e)
	return nil
}

// delete forgets a job if it has ended, and returns it.
func (q *Queue) delete(e *entry) (*headwaterv1.Job, error) {
	q.turn.Lock()
	defer q.turn.Unlock()
	job := e.snapshot()
	if !ended(job.GetState()) {
		return nil, status.Errorf(codes.FailedPrecondition, "job %s is %s: cancel it before it is deleted", job.GetId(), StateName(job.GetState()))
	}
	if err := q.drop(e); err != nil {
		return nil, err
	}
	q.Logger.Info("job deleted", "job", job.GetId(), "result_bytes", job.GetResultBytes())
	return job, nil
}

func remove(path string) error {
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove spooled file: %w", err)
	}
	return nil
}

// list returns all jobs of a caller, newest first.
func (q *Queue) list(caller rpc.Caller) []*headwaterv1.Job {
	var jobs []*headwaterv1.Job
	for _, e := range q.jobs.all() {
		if job := e.snapshot(); caller.Owns(job.GetTenant()) {
			jobs = append(jobs, job)
		}
	}
	slices.SortStableFunc(jobs, Order)
	return jobs
}

// codecName is a job's codec as people write it.
func codecName(job *headwaterv1.Job) string {
	codec, err := layerproto.ReadContextCodec(job.GetCodec())
	if err != nil {
		return err.Error()
	}
	return codec.String()
}
