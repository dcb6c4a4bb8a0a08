package jobs

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"strings"
	"sync"
	"time"

	"github.com/zeebo/xxh3"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"headwater.example/coordinator/jobs/internal/scatter"
	"headwater.example/coordinator/workers"
	"headwater.example/internal/atomicfile"
	"headwater.example/internal/jobfile"
	"headwater.example/internal/layerproto"
	"headwater.example/internal/rpc"
	headwaterv1 "headwater.example/proto/headwater/v1"
	"headwater.example/shard"
	"headwater.example/tensor"
)

// Bounds of a submission.
const (
	maxKey    = 256
	maxHeader = 16 << 20
)

type submitStream = headwaterv1.CoordinatorService_SubmitServer

// Submit implements headwater.v1.CoordinatorService.
func (q *Queue) Submit(stream submitStream) error {
	if err := q.submit(stream); err != nil {
		return statusOf(err).Err()
	}
	return nil
}

func (q *Queue) submit(stream submitStream) error {
	ctx := stream.Context()
	first, err := stream.Recv()
	if err != nil {
		return err
	}
	begin := first.GetBegin()
	parsed, err := q.check(begin)
	if err != nil {
		return err
	}
	offered := &headwaterv1.Job{
		Id: q.newID(), Key: begin.GetKey(), Name: begin.GetName(), State: headwaterv1.JobState_JOB_STATE_UPLOADING,
		SizeBytes: begin.GetSizeBytes(), Kind: parsed.Kind.String(), Codec: begin.GetCodec(),
		Created: timestamppb.New(q.Now()), Progress: &headwaterv1.Progress{Phase: "uploading"},
	}
	if len(begin.GetSha256()) > 0 {
		offered.ContentHash = contentHash(begin.GetSha256(), parsed)
	}
	request := proto.CloneOf(begin)
	request.Header = nil
	c := q.jobs.claim(offered, request)
	if !c.fresh {
		return q.known(stream, c.snapshot(), offered)
	}
	if err := q.upload(ctx, stream, c.entry, begin, parsed); err != nil {
		q.forget(c, err)
		return err
	}
	return stream.Send(&headwaterv1.SubmitResponse{Job: c.snapshot()})
}

// known answers a submission whose key is taken: what asks for the same bits is the same job.
func (q *Queue) known(stream submitStream, have, offered *headwaterv1.Job) error {
	switch {
	case have.GetContentHash() != offered.GetContentHash():
		return status.Errorf(codes.AlreadyExists, "key %q is job %s with another content: its content hash is %s, this one's is %s", have.GetKey(), have.GetId(), have.GetContentHash(), offered.GetContentHash())
	case !sameAnswer(have, offered):
		return status.Errorf(codes.AlreadyExists, "key %q is job %s with codec %s, and this one asks for %s: its contexts would differ", have.GetKey(), have.GetId(), codecName(have), codecName(offered))
	case have.GetState() == headwaterv1.JobState_JOB_STATE_UPLOADING:
		return status.Errorf(codes.Aborted, "key %q is being uploaded as job %s by another client; try again", have.GetKey(), have.GetId())
	}
	return stream.Send(&headwaterv1.SubmitResponse{Job: have})
}

// check refuses what can be refused without the file's data.
func (q *Queue) check(begin *headwaterv1.SubmitBegin) (*jobfile.Job, error) {
	refuse := func(format string, args ...any) error { return status.Errorf(codes.InvalidArgument, format, args...) }
	switch {
	case begin == nil:
		return nil, refuse("a submission starts with its announcement")
	case len(begin.GetKey()) > maxKey || len(begin.GetName()) > maxKey:
		return nil, refuse("key and name have %d and %d bytes, at most %d are taken", len(begin.GetKey()), len(begin.GetName()), maxKey)
	case len(begin.GetSha256()) == 0 && begin.GetKey() != "":
		return nil, refuse("a job with a key is announced with its file's SHA-256")
	case len(begin.GetSha256()) != sha256.Size && len(begin.GetSha256()) != 0:
		return nil, refuse("the file's SHA-256 has %d bytes, not %d", len(begin.GetSha256()), sha256.Size)
	case len(begin.GetHeader()) > maxHeader:
		return nil, refuse("the file's header has %d bytes, at most %d are taken", len(begin.GetHeader()), maxHeader)
	case begin.GetSizeBytes() > 1<<62:
		return nil, refuse("the file has %d bytes", begin.GetSizeBytes())
	case begin.GetDeadline().AsDuration() < 0:
		return nil, refuse("the deadline of %s is negative", begin.GetDeadline().AsDuration())
	}
	if _, err := layerproto.ReadContextCodec(begin.GetCodec()); err != nil {
		return nil, refuse("%v", err)
	}
	f, err := tensor.ParseHeader(begin.GetName(), begin.GetHeader(), int64(begin.GetSizeBytes()))
	if err != nil {
		return nil, err
	}
	return jobfile.Parse(f, begin.GetOverrides())
}

// contentHash names a job by what it computes: SHA-256 over the file's SHA-256 and the options in effect.
func contentHash(file []byte, parsed *jobfile.Job) string {
	h := sha256.New()
	h.Write(file)
	h.Write(parsed.EffectiveJSON())
	return hex.EncodeToString(h.Sum(nil))
}

// upload takes the bytes of a job that can run, checks them, and queues the job.
func (q *Queue) upload(ctx context.Context, stream submitStream, e *entry, begin *headwaterv1.SubmitBegin, parsed *jobfile.Job) (err error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	e.cancellable(cancel)
	defer e.cancellable(nil)
	if err := q.capacity(ctx, parsed); err != nil {
		return err
	}
	id := e.snapshot().GetId()
	file, err := atomicfile.Create(q.input(id), int64(begin.GetSizeBytes()))
	if err != nil {
		return fmt.Errorf("spool job: %w", err)
	}
	defer func() { err = errors.Join(err, file.Abort()) }()
	if err := stream.Send(&headwaterv1.SubmitResponse{Job: e.snapshot(), Send: true}); err != nil {
		return err
	}
	sum, err := q.receive(ctx, stream, file, begin)
	if err != nil {
		return err
	}
	input, err := tensor.OpenReaderAt(begin.GetName(), file, int64(begin.GetSizeBytes()))
	if err != nil {
		return err
	}
	if header, err := tensor.HeaderBytes(file, int64(begin.GetSizeBytes()), maxHeader); err != nil || !bytes.Equal(header, begin.GetHeader()) {
		return errors.Join(status.Error(codes.InvalidArgument, "the file's header is not the one that was announced"), err)
	}
	uploaded := proto.CloneOf(e.snapshot())
	uploaded.ContentHash = contentHash(sum, parsed)
	e.show(uploaded)
	// The disk is busy while values are checked.
	flushed := make(chan error, 1)
	go func() { flushed <- file.Flush() }()
	told := q.Now()
	err = parsed.CheckValues(ctx, input, func(done, total int64) {
		if now := q.Now(); now.Sub(told) >= 100*time.Millisecond {
			told = now
			checking := proto.CloneOf(uploaded)
			checking.Progress = &headwaterv1.Progress{Phase: "checking values", LoadedBytes: uint64(done), LoadBytes: uint64(total)}
			e.show(checking)
		}
	})
	unflushed := <-flushed
	if err != nil {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		return err
	}
	// What the disk has refused once it may not refuse again.
	if unflushed != nil {
		return fmt.Errorf("spool job: %w", unflushed)
	}
	if err := file.Commit(); err != nil {
		return fmt.Errorf("spool job: %w", err)
	}
	if err := q.enqueue(e); err != nil {
		return errors.Join(err, remove(q.input(id)))
	}
	q.Logger.Info("job queued", "job", id, "name", begin.GetName(), "size_bytes", int64(begin.GetSizeBytes()))
	return nil
}

// receive writes the pieces of the file until the client half-closes, checks their sum, and returns their SHA-256.
func (q *Queue) receive(ctx context.Context, stream submitStream, file io.Writer, begin *headwaterv1.SubmitBegin) ([]byte, error) {
	refuse := func(format string, args ...any) error { return status.Errorf(codes.InvalidArgument, format, args...) }
	sum := newSummer(len(begin.GetSha256()) == 0)
	defer sum.total()
	var got uint64
	var end *headwaterv1.SubmitEnd
	for {
		m := &headwaterv1.SubmitRequest{}
		memory, err := rpc.RecvBulk(stream, m)
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return nil, err
		}
		data := m.GetData()
		got += uint64(len(data))
		switch {
		case m.GetBegin() != nil:
			return nil, refuse("the announcement came twice")
		case end != nil:
			return nil, refuse("the end of the file was not the last message")
		case m.GetEnd() != nil && len(begin.GetSha256()) > 0:
			return nil, refuse("the file's sum came at its end, and its SHA-256 before")
		case got > begin.GetSizeBytes():
			return nil, refuse("more than the announced %d bytes were sent", begin.GetSizeBytes())
		}
		end = m.GetEnd()
		if _, err := file.Write(data); err != nil {
			return nil, fmt.Errorf("spool job: %w", err)
		}
		sum.add(data, memory)
	}
	if got != begin.GetSizeBytes() {
		return nil, refuse("%d of the announced %d bytes were sent", got, begin.GetSizeBytes())
	}
	hash, short := sum.total()
	switch {
	case len(begin.GetSha256()) > 0 && !bytes.Equal(hash, begin.GetSha256()):
		return nil, refuse("the bytes that came have another SHA-256 than was announced")
	case len(begin.GetSha256()) == 0 && end == nil:
		return nil, refuse("neither the file's SHA-256 was announced nor its sum sent")
	case end != nil && end.GetHash() != short:
		return nil, refuse("the bytes that came have another sum than was sent")
	}
	return hash, nil
}

// summer sums the pieces of a file beside what else is done to them: that takes as long as all the rest.
type summer struct {
	pieces chan summed
	// total waits for the end of all pieces and returns their SHA-256, and their xxh3 where it was asked for.
	total func() (hash []byte, short uint64)
}

// summed is a piece, and the memory that is free once it is summed.
type summed struct {
	data   []byte
	memory *rpc.Buffer
}

func newSummer(both bool) *summer {
	s := &summer{pieces: make(chan summed, 4)}
	sum, short, done := sha256.New(), xxh3.New(), make(chan struct{})
	go func() {
		defer close(done)
		for p := range s.pieces {
			sum.Write(p.data)
			if both {
				_, _ = short.Write(p.data) // never fails
			}
			p.memory.Free()
		}
	}()
	s.total = sync.OnceValues(func() ([]byte, uint64) {
		close(s.pieces)
		<-done
		return sum.Sum(nil), short.Sum64()
	})
	return s
}

// add gives the summer a piece.
func (s *summer) add(data []byte, memory *rpc.Buffer) { s.pieces <- summed{data, memory} }

// forget drops a job whose upload failed; who watches it sees why. A job that was submitted again is as it was.
func (q *Queue) forget(c claim, err error) {
	job := proto.CloneOf(c.snapshot())
	s := statusOf(err)
	job.State, job.Error, job.ErrorCode, job.Ended = headwaterv1.JobState_JOB_STATE_FAILED, s.Message(), uint32(s.Code()), timestamppb.New(q.Now())
	if errors.Is(err, errCancelled) {
		job.State = headwaterv1.JobState_JOB_STATE_CANCELLED
	}
	q.Logger.Log(context.Background(), level(err), "submission refused", "job", job.GetId(), "name", job.GetName(), "error", err)
	if c.before != nil {
		c.show(c.before)
		return
	}
	c.show(job)
	q.jobs.remove(c.entry)
}

// capacity refuses a job whose keys and values do not fit in the cluster's memory as it is now.
func (q *Queue) capacity(ctx context.Context, j *jobfile.Job) error {
	answering, err := workers.Answering(q.workers.Describe(ctx, q.workers.List()))
	if err != nil {
		return err
	}
	var planned []shard.Worker
	var sum uint64
	var rooms []string
	for _, w := range answering {
		planned = append(planned, shard.Worker{Name: w.Name, Weight: max(int(w.Said.GetWeight()), 1)})
		sum += w.Said.GetBudgetBytes()
		rooms = append(rooms, fmt.Sprintf("%s %d", w.Name, w.Said.GetBudgetBytes()))
	}
	plan, err := shard.MakePlan(j.Geometry(), planned, nil)
	if err != nil {
		return fmt.Errorf("plan: %w", err)
	}
	var need uint64
	needs := map[string]uint64{}
	for i := range j.Problems {
		p := &j.Problems[i]
		bytes, err := scatter.ShardBytes(p)
		if err != nil {
			return err
		}
		need += bytes * uint64(p.Shape.KVHeads)
		for _, w := range planned {
			needs[w.Name] += bytes * uint64(len(plan.Groups(p.Index, w.Name)))
		}
	}
	if need > sum {
		return status.Errorf(codes.ResourceExhausted, "the job's keys and values need %d bytes, the cluster's %d workers have %d together (%s)", need, len(answering), sum, strings.Join(rooms, ", "))
	}
	for _, w := range answering {
		if needs[w.Name] > w.Said.GetBudgetBytes() {
			return status.Errorf(codes.ResourceExhausted, "worker %q would hold %d bytes of the job's keys and values by its weight of %d, its budget is %d", w.Name, needs[w.Name], w.Said.GetWeight(), w.Said.GetBudgetBytes())
		}
	}
	return nil
}
