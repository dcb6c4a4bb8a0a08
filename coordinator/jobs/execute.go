package jobs

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"sync"
	"time"

	"github.com/zeebo/xxh3"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"headwater.example/coordinator/jobs/internal/scatter"
	"headwater.example/internal/atomicfile"
	"headwater.example/internal/contextframe"
	"headwater.example/internal/jobfile"
	"headwater.example/internal/layerproto"
	"headwater.example/internal/rpc"
	headwaterv1 "headwater.example/proto/headwater/v1"
	"headwater.example/tensor"
)

// errStopping is the cause of the context of a job that runs while the coordinator stops.
var errStopping = errors.New("the coordinator stops")

// execute runs one job and stores how it ended. Its error is the store's or the disk's, not the job's. If the disk is full,
// the job is queued as before.
func (q *Queue) execute(ctx context.Context, e *entry) error {
	id := e.snapshot().GetId()
	if ours, err := q.start(e); err != nil || !ours {
		return err
	}
	q.Logger.Info("job started", "job", id)
	began := time.Now()
	deadline := q.Deadline
	if d := e.begun().GetDeadline().AsDuration(); d > 0 {
		deadline = min(d, deadline)
	}
	running, cancel := context.WithCancelCause(rpc.As(context.WithoutCancel(ctx), ownerOf(e.snapshot())))
	stop := context.AfterFunc(ctx, func() { cancel(errStopping) })
	if e.cancellable(cancel) {
		cancel(errCancelled)
	}
	running, end := context.WithTimeout(running, deadline)
	var done func(*headwaterv1.Job)
	err := rpc.Guard(q.Logger, "job "+id, func() (err error) {
		done, err = q.compute(running, e)
		return err
	})
	end()
	cancel(nil)
	stop()
	e.cancellable(nil)
	switch {
	case errors.Is(err, errStopping):
		q.Logger.Info("job queued again, the coordinator stops", "job", id)
		return q.requeue(e, "")
	case diskFull(err):
		return errors.Join(err, q.requeue(e, waitsForRoom))
	case errors.Is(err, context.DeadlineExceeded):
		err = status.Errorf(codes.DeadlineExceeded, "the job did not end within its deadline of %s", deadline)
	}
	if stored := q.finish(ctx, e, done, err); stored != nil {
		return stored
	}
	ended := e.snapshot()
	q.Observe.JobEnded(StateName(ended.GetState()), time.Since(began))
	q.Logger.Log(ctx, level(err), "job ended", "job", id, "state", ended.GetState(), "error", err)
	q.retain()
	return nil
}

// ownerOf is for whom a job runs: workers are told, who keep tenants' memory apart.
func ownerOf(job *headwaterv1.Job) rpc.Caller {
	if job.GetTenant() == "" {
		return rpc.Anyone
	}
	return rpc.Caller{Tenant: job.GetTenant()}
}

// waitsForRoom is the phase of a job for which the coordinator's disk has no room.
const waitsForRoom = "waiting for room on the coordinator's disk"

// requeue makes a job that ran wait again, as if it had not been started.
func (q *Queue) requeue(e *entry, phase string) error {
	return q.change(e, func(j *headwaterv1.Job) {
		j.State, j.Progress = headwaterv1.JobState_JOB_STATE_QUEUED, nil
		if phase != "" {
			j.Progress = &headwaterv1.Progress{Phase: phase}
		}
		j.Attempts--
	})
}

// finish stores how a job ended. It waits for room on the disk: what was computed is not thrown away for a record.
func (q *Queue) finish(ctx context.Context, e *entry, done func(*headwaterv1.Job), failed error) error {
	for {
		err := q.end(e, done, failed)
		if !diskFull(err) {
			return err
		}
		if !q.full {
			q.full = true
			q.Logger.Warn("the disk is full: how a job ended is stored once there is room", "folder", q.DataDir, "job", e.snapshot().GetId(), "error", err)
		}
		q.showWaiting(e)
		pause := time.NewTimer(q.RoomPause)
		select {
		case <-pause.C:
		case <-ctx.Done():
			pause.Stop()
			return q.requeue(e, waitsForRoom)
		}
	}
}

// compute runs the job into its result file, and returns what there is to say of it. Meanwhile the job's file is compared
// with its sum: a file that has changed on the disk has no result and no fault but that.
func (q *Queue) compute(ctx context.Context, e *entry) (_ func(*headwaterv1.Job), err error) {
	if ctx.Err() != nil { // one that was cancelled before has no file any more
		return nil, context.Cause(ctx)
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var changed error
	var checks sync.WaitGroup
	checks.Go(func() {
		changed = rpc.Guard(q.Logger, "checking a job's file", func() error { return q.checkInput(ctx, e) })
		if changed != nil {
			cancel(changed)
		}
	})
	verified := func() error {
		checks.Wait()
		return changed
	}
	done, err := q.scatter(ctx, e, verified)
	if err != nil && context.Cause(ctx) == nil {
		// What it found wrong may be the disk's doing.
		err = cmp.Or(verified(), err)
	}
	cancel(nil)
	checks.Wait()
	return done, err
}

// scatter runs the job on the workers. verified waits until the job's file is known to be what was submitted.
func (q *Queue) scatter(ctx context.Context, e *entry, verified func() error) (_ func(*headwaterv1.Job), err error) {
	snapshot := e.snapshot()
	input, err := tensor.Open(q.store.Input(snapshot.GetId()))
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, input.Close()) }()
	parsed, err := jobfile.Parse(input, e.begun().GetOverrides())
	if err != nil {
		return nil, err
	}
	codec, err := layerproto.ReadContextCodec(snapshot.GetCodec())
	if err != nil {
		return nil, err
	}
	metadata := describeResult(snapshot, parsed, codec)
	reserve, err := tensor.MetadataBytes(metadata)
	if err != nil {
		return nil, fmt.Errorf("describe result: %w", err)
	}
	layout, err := tensor.NewLayout(parsed.ResultInfos(), reserve)
	if err != nil {
		return nil, err
	}
	file, err := atomicfile.Create(q.store.Result(snapshot.GetId()), layout.Size())
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, file.Abort()) }()
	report, err := scatter.Run(ctx, scatter.Config{
		ID: snapshot.GetId(), Job: parsed, Input: input, Codec: codec, Result: file, Layout: layout,
		Scratch: filepath.Dir(q.store.Result(snapshot.GetId())),
		Workers: q.workers, WorkerWait: q.WorkerWait, BlockBytes: q.BlockBytes, Logger: q.Logger, Observe: q.Observe,
		Progress: func(p *headwaterv1.Progress) {
			running := proto.CloneOf(snapshot)
			running.Progress = p
			e.show(running)
		},
	})
	if err != nil {
		return nil, err
	}
	header, err := layout.Header(metadata)
	if err != nil {
		return nil, fmt.Errorf("write result: %w", err)
	}
	if _, err := file.WriteAt(header, 0); err != nil {
		return nil, fmt.Errorf("write result: %w", err)
	}
	sum, short := sha256.New(), xxh3.New()
	if _, err := io.Copy(io.MultiWriter(sum, short), io.NewSectionReader(file, 0, layout.Size())); err != nil {
		return nil, fmt.Errorf("read result: %w", err)
	}
	if err := verified(); err != nil {
		return nil, err
	}
	if err := file.Commit(); err != nil {
		return nil, fmt.Errorf("write result: %w", err)
	}
	inputHash, _ := e.hashes()
	e.setHashes(inputHash, short.Sum64())
	return func(j *headwaterv1.Job) {
		j.Report, j.ResultBytes, j.ResultSha256 = report, uint64(layout.Size()), hex.EncodeToString(sum.Sum(nil))
		j.Progress.Phase = "done"
	}, nil
}

// describeResult makes a result's metadata, as docs/job-file.md says. Nothing in it differs from run to run, or with the
// workers, so that results of the same job are the same file.
func describeResult(snapshot *headwaterv1.Job, j *jobfile.Job, codec contextframe.Codec) map[string]string {
	type geometry struct {
		Prefix  string `json:"prefix"`
		Heads   int    `json:"n_heads"`
		KVHeads int    `json:"n_kv_heads"`
		HeadDim int    `json:"head_dim"`
		VDim    int    `json:"v_dim"`
	}
	problems := make([]geometry, len(j.Problems))
	for i, p := range j.Problems {
		problems[i] = geometry{p.Prefix, p.Shape.Heads, p.Shape.KVHeads, p.Shape.HeadDim, p.Shape.VDim}
	}
	text, err := json.Marshal(struct {
		ContentHash string          `json:"content_hash"`
		Options     json.RawMessage `json:"options"`
		Codec       string          `json:"codec"`
		Lossy       bool            `json:"lossy"`
		Problems    []geometry      `json:"problems"`
	}{snapshot.GetContentHash(), j.EffectiveJSON(), codec.String(), codec != contextframe.Exact, problems})
	if err != nil {
		text = []byte("{}") // all of it is ours and encodes
	}
	return map[string]string{"headwater": string(text)}
}
