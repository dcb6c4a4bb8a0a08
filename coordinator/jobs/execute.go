package jobs

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"headwater.example/coordinator/jobs/internal/scatter"
	"headwater.example/internal/atomicfile"
	"headwater.example/internal/contextframe"
	"headwater.example/internal/jobfile"
	"headwater.example/internal/layerproto"
	headwaterv1 "headwater.example/proto/headwater/v1"
	"headwater.example/tensor"
)

// errStopping is the cause of the context of a job that runs while the coordinator stops.
var errStopping = errors.New("the coordinator stops")

// execute runs one job and stores how it ended. Its error is the store's or the disk's, not the job's.
func (q *Queue) execute(ctx context.Context, e *entry) error {
	id := e.snapshot().GetId()
	if ours, err := q.start(e); err != nil || !ours {
		return err
	}
	q.Logger.Info("job started", "job", id)
	deadline := q.Deadline
	if d := e.request.GetDeadline().AsDuration(); d > 0 {
		deadline = min(d, deadline)
	}
	running, cancel := context.WithCancelCause(context.WithoutCancel(ctx))
	stop := context.AfterFunc(ctx, func() { cancel(errStopping) })
	if e.cancellable(cancel) {
		cancel(errCancelled)
	}
	running, end := context.WithTimeout(running, deadline)
	done, err := q.compute(running, e)
	end()
	cancel(nil)
	stop()
	e.cancellable(nil)
	switch {
	case errors.Is(err, errStopping):
		q.Logger.Info("job queued again, the coordinator stops", "job", id)
		return q.change(e, func(j *headwaterv1.Job) {
			j.State, j.Progress = headwaterv1.JobState_JOB_STATE_QUEUED, nil
			j.Attempts--
		})
	case errors.Is(err, context.DeadlineExceeded):
		err = status.Errorf(codes.DeadlineExceeded, "the job did not end within its deadline of %s", deadline)
	}
	if stored := q.end(e, done, err); stored != nil {
		return stored
	}
	q.Logger.Info("job ended", "job", id, "state", e.snapshot().GetState(), "error", err)
	return q.retain()
}

// compute runs the job into its result file, and returns what there is to say of it.
func (q *Queue) compute(ctx context.Context, e *entry) (_ func(*headwaterv1.Job), err error) {
	snapshot := e.snapshot()
	input, err := tensor.Open(q.input(snapshot.GetId()))
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, input.Close()) }()
	parsed, err := jobfile.Parse(input, e.request.GetOverrides())
	if err != nil {
		return nil, err
	}
	codec, err := layerproto.ReadContextCodec(e.request.GetCodec())
	if err != nil {
		return nil, err
	}
	layout, err := tensor.NewLayout(parsed.ResultInfos(), reserve(parsed, len(q.workers.Members())))
	if err != nil {
		return nil, err
	}
	file, err := atomicfile.Create(q.result(snapshot.GetId()), layout.Size())
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, file.Abort()) }()
	report, err := scatter.Run(ctx, scatter.Config{
		ID: snapshot.GetId(), Job: parsed, Input: input, Codec: codec, Result: file, Layout: layout,
		Workers: q.workers, WorkerWait: q.WorkerWait, BlockBytes: q.BlockBytes, Logger: q.Logger,
		Progress: func(p *headwaterv1.Progress) {
			running := proto.CloneOf(snapshot)
			running.Progress = p
			e.show(running)
		},
	})
	if err != nil {
		return nil, err
	}
	header, err := layout.Header(map[string]string{"headwater": string(q.metadata(snapshot, parsed, codec, report))})
	if err != nil {
		return nil, fmt.Errorf("write result: %w", err)
	}
	if _, err := file.WriteAt(header, 0); err != nil {
		return nil, fmt.Errorf("write result: %w", err)
	}
	sum := sha256.New()
	if _, err := io.Copy(sum, io.NewSectionReader(file, 0, layout.Size())); err != nil {
		return nil, fmt.Errorf("read result: %w", err)
	}
	if err := file.Commit(); err != nil {
		return nil, fmt.Errorf("write result: %w", err)
	}
	return func(j *headwaterv1.Job) {
		j.Report, j.ResultBytes, j.ResultSha256 = report, uint64(layout.Size()), hex.EncodeToString(sum.Sum(nil))
		j.Progress.Phase = "done"
	}, nil
}

// reserve is the room that a result's header keeps for its metadata: the plan's text grows with the shards and the layers,
// the rest with the options and the workers. The text stands in a JSON string, which doubles quotes.
func reserve(j *jobfile.Job, members int) int {
	return 8<<10 + 2*len(j.EffectiveJSON()) + 32*j.Geometry().Shards() + 1024*len(j.Problems) + 1024*members
}

// metadata describes a result, as docs/job-file.md says.
func (q *Queue) metadata(snapshot *headwaterv1.Job, j *jobfile.Job, codec contextframe.Codec, report *headwaterv1.Report) []byte {
	type workerReport struct {
		Name        string  `json:"name"`
		BytesOut    uint64  `json:"bytes_out"`
		BytesInRaw  uint64  `json:"bytes_in_raw"`
		BytesInWire uint64  `json:"bytes_in_wire"`
		ComputeS    float64 `json:"compute_seconds"`
		WireS       float64 `json:"wire_seconds"`
		Units       uint64  `json:"units"`
		Lost        bool    `json:"lost,omitempty"`
	}
	var workers []workerReport
	for _, w := range report.GetWorkers() {
		workers = append(workers, workerReport{
			w.GetName(), w.GetBytesOut(), w.GetBytesInRaw(), w.GetBytesInWire(),
			w.GetCompute().AsDuration().Seconds(), w.GetWire().AsDuration().Seconds(), w.GetUnits(), w.GetLost(),
		})
	}
	text, err := json.Marshal(struct {
		Job         string          `json:"job"`
		ContentHash string          `json:"content_hash"`
		Options     json.RawMessage `json:"options"`
		Codec       string          `json:"codec"`
		Plan        json.RawMessage `json:"plan"`
		Workers     []workerReport  `json:"workers"`
		Started     time.Time       `json:"started"`
		ElapsedS    float64         `json:"elapsed_seconds"`
		Coordinator string          `json:"coordinator"`
		Version     string          `json:"version"`
	}{
		snapshot.GetId(), snapshot.GetContentHash(), j.EffectiveJSON(), codec.String(), report.GetPlan(), workers,
		snapshot.GetStarted().AsTime(), report.GetElapsed().AsDuration().Seconds(), q.Name, q.Version,
	})
	if err != nil {
		return []byte("{}") // all of it is ours and encodes
	}
	return text
}
