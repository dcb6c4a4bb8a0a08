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
	maxHeader    = 16 << 20
	maxOverrides = 4 << 20 // they are kept as long as the job
	// maxUploads is how many submissions are under way at once.
	maxUploads = 64
	// stallBytes is what a submission brings at least in each Config.UploadStall.
	stallBytes = 64 << 10
	// freeAfter is how many received bytes lie between two looks at the disk's room.
	freeAfter = 16 << 20
)

type submitStream = headwaterv1.CoordinatorService_SubmitServer

// Submit implements headwater.v1.CoordinatorService.
func (q *Queue) Submit(stream submitStream) error {
	select {
	case q.uploads <- struct{}{}:
		defer func() { <-q.uploads }()
	default:
		return rpc.Full("%d submissions are under way: try again", maxUploads)
	}
	if err := q.submit(stream); err != nil {
		return statusOf(err).Err()
	}
	return nil
}

func (q *Queue) submit(stream submitStream) error {
	ctx, cancel := context.WithCancelCause(stream.Context())
	defer cancel(nil)
	up := &upload{Queue: q, ctx: ctx, stream: stream, pieces: q.read(ctx, stream)}
	first, err := up.next()
	if err != nil {
		return err
	}
	if up.begin = first.message.GetBegin(); up.begin == nil {
		return status.Error(codes.InvalidArgument, "a submission starts with its announcement")
	}
	if pass := up.elsewhere(); pass != nil {
		return pass(ctx, Submission{First: first.message, Next: up.nextMessage, Answer: stream.Send, Stop: func() { cancel(nil) }})
	}
	c, err := up.admit()
	if err != nil {
		return err
	}
	if !c.fresh {
		return q.known(stream, c.snapshot(), up.offered)
	}
	c.cancellable(cancel)
	defer c.cancellable(nil)
	if err := up.take(c); err != nil {
		q.forget(c, err)
		return err
	}
	return stream.Send(&headwaterv1.SubmitResponse{Job: c.snapshot()})
}

// elsewhere is how the submission is handed over, if another coordinator has the job of its key; else nil.
func (u *upload) elsewhere() Handover {
	key := u.begin.GetKey()
	if u.Elsewhere == nil || key == "" || len(key) > shard.MaxText || u.jobs.keyed(key, u.tenant()) != nil {
		return nil
	}
	return u.Elsewhere(u.ctx, key)
}

// nextMessage is next for who handles messages.
func (u *upload) nextMessage() (*headwaterv1.SubmitRequest, *rpc.Buffer, error) {
	p, err := u.next()
	return p.message, p.memory, err
}

// upload is one submission under way.
type upload struct {
	*Queue
	ctx    context.Context
	stream submitStream
	pieces <-chan piece
	stall  *time.Timer
	came   int // bytes since stall was set

	begin   *headwaterv1.SubmitBegin // without its header once that is checked
	header  uint64                   // xxh3 of the header
	bytes   int                      // of header and overrides
	result  int64                    // bytes of the result's tensors
	offered *headwaterv1.Job
}

// admit checks what can be checked before the bytes are sent, and gives the submission its place in the table. What is read
// of the header lives only so long, within the budget: it is read again from the file.
func (u *upload) admit() (claim, error) {
	u.bytes = len(u.begin.GetHeader()) + len(u.begin.GetOverrides())
	release, err := u.headers.take(u.ctx, u.bytes)
	if err != nil {
		return claim{}, err
	}
	defer release()
	parsed, err := u.check(u.begin)
	if err != nil {
		return claim{}, err
	}
	if parsed.Auto() {
		if parsed, err = u.takeArithmetic(parsed); err != nil {
			return claim{}, err
		}
		u.bytes = len(u.begin.GetHeader()) + len(u.begin.GetOverrides())
	}
	u.offered = &headwaterv1.Job{
		Id: u.newID(), Tenant: u.tenant(), Key: u.begin.GetKey(), Name: u.begin.GetName(), State: headwaterv1.JobState_JOB_STATE_UPLOADING,
		SizeBytes: u.begin.GetSizeBytes(), Kind: parsed.Kind.String(), Codec: u.begin.GetCodec(),
		Created: timestamppb.New(u.Now()), Progress: &headwaterv1.Progress{Phase: "uploading"}, Arithmetics: arithmetics(parsed),
	}
	if len(u.begin.GetSha256()) > 0 {
		u.offered.ContentHash = contentHash(u.begin.GetSha256(), parsed)
	}
	u.header, u.begin.Header = xxh3.Hash(u.begin.GetHeader()), nil
	for _, info := range parsed.ResultInfos() {
		u.result += info.Bytes()
	}
	c, err := u.jobs.claim(u.offered, proto.CloneOf(u.begin), u.mostJobs(u.offered.GetTenant()))
	if err != nil || !c.fresh {
		return c, err
	}
	if err := u.capacity(u.ctx, parsed); err != nil {
		u.forget(c, err)
		return claim{}, err
	}
	return c, nil
}

// tenant is whose submission it is.
func (u *upload) tenant() string { return rpc.CallerOf(u.ctx).Tenant }

// mostJobs is how many jobs a tenant may have here that have not ended; 0 is no bound.
func (q *Queue) mostJobs(tenant string) int64 {
	if tenant == "" {
		return 0 // an admin's, or there are no tenants
	}
	named, others := q.Security.Limits()
	if l, ok := named[tenant]; ok {
		return l.Jobs
	}
	return others.Jobs
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
	case len(begin.GetKey()) > shard.MaxText || len(begin.GetName()) > shard.MaxText:
		return nil, refuse("key and name have %d and %d bytes, at most %d are taken", len(begin.GetKey()), len(begin.GetName()), shard.MaxText)
	case len(begin.GetSha256()) == 0 && begin.GetKey() != "":
		return nil, refuse("a job with a key is announced with its file's SHA-256")
	case len(begin.GetSha256()) != sha256.Size && len(begin.GetSha256()) != 0:
		return nil, refuse("the file's SHA-256 has %d bytes, not %d", len(begin.GetSha256()), sha256.Size)
	case len(begin.GetHeader()) > maxHeader:
		return nil, refuse("the file's header has %d bytes, at most %d are taken", len(begin.GetHeader()), maxHeader)
	case len(begin.GetOverrides()) > maxOverrides:
		return nil, refuse("the options that override the file's have %d bytes, at most %d are taken", len(begin.GetOverrides()), maxOverrides)
	case begin.GetSizeBytes() > 1<<62:
		return nil, refuse("the file has %d bytes", begin.GetSizeBytes())
	case begin.GetDeadline().AsDuration() < 0:
		return nil, refuse("the deadline of %s is negative", begin.GetDeadline().AsDuration())
	}
	if _, err := layerproto.ReadContextCodec(begin.GetCodec()); err != nil {
		return nil, refuse("%v", err)
	}
	return parseHeader(begin, begin.GetOverrides())
}

func parseHeader(begin *headwaterv1.SubmitBegin, overrides []byte) (*jobfile.Job, error) {
	f, err := tensor.ParseHeader(begin.GetName(), begin.GetHeader(), int64(begin.GetSizeBytes()))
	if err != nil {
		return nil, err
	}
	return jobfile.Parse(f, overrides)
}

// contentHash names a job by what it computes: SHA-256 over the file's SHA-256 and the options in effect.
func contentHash(file []byte, parsed *jobfile.Job) string {
	h := sha256.New()
	h.Write(file)
	h.Write(parsed.EffectiveJSON())
	return hex.EncodeToString(h.Sum(nil))
}

// take receives the bytes of a job that can run, checks them, and queues the job. The disk gives room as they come: what is
// announced is owned by nobody.
func (u *upload) take(c claim) (err error) {
	if err := u.roomFor(int64(u.begin.GetSizeBytes()) + u.result); err != nil {
		return err
	}
	id := c.snapshot().GetId()
	file, err := atomicfile.Create(u.store.Input(id), 0)
	if err != nil {
		return fmt.Errorf("spool job: %w", err)
	}
	defer func() { err = errors.Join(err, file.Abort()) }()
	if err := u.stream.Send(&headwaterv1.SubmitResponse{Job: c.snapshot(), Send: true}); err != nil {
		return err
	}
	sum, short, err := u.receive(file)
	if err != nil {
		return err
	}
	if err := u.checkFile(c, file, sum); err != nil {
		return err
	}
	c.setHashes(short, 0)
	if err := u.enqueue(c, file.Commit); err != nil {
		return fmt.Errorf("spool job: %w", err)
	}
	u.Logger.Info("job queued", "job", id, "name", u.begin.GetName(), "size_bytes", int64(u.begin.GetSizeBytes()))
	return nil
}

// checkFile checks every value of the file, while the disk is busy with it.
func (u *upload) checkFile(c claim, file *atomicfile.File, sum []byte) error {
	release, err := u.headers.take(u.ctx, u.bytes)
	if err != nil {
		return err
	}
	defer release()
	size := int64(u.begin.GetSizeBytes())
	header, err := tensor.HeaderBytes(file, size, maxHeader)
	if err != nil || xxh3.Hash(header) != u.header {
		return errors.Join(status.Error(codes.InvalidArgument, "the file's header is not the one that was announced"), err)
	}
	input, err := tensor.OpenReaderAt(u.begin.GetName(), file, size)
	if err != nil {
		return err
	}
	parsed, err := jobfile.Parse(input, u.begin.GetOverrides())
	if err != nil {
		return err
	}
	uploaded := proto.CloneOf(c.snapshot())
	uploaded.ContentHash = contentHash(sum, parsed)
	c.show(uploaded)
	flushed := make(chan error, 1)
	go func() { flushed <- rpc.Guard(u.Logger, "flushing a submission", file.Flush) }()
	told := u.Now()
	err = parsed.CheckValues(u.ctx, input, func(done, total int64) {
		if now := u.Now(); now.Sub(told) >= 100*time.Millisecond {
			told = now
			checking := proto.CloneOf(uploaded)
			checking.Progress = &headwaterv1.Progress{Phase: "checking values", LoadedBytes: uint64(done), LoadBytes: uint64(total)}
			c.show(checking)
		}
	})
	unflushed := <-flushed
	if err != nil {
		if u.ctx.Err() != nil {
			return context.Cause(u.ctx)
		}
		return err
	}
	// What the disk has refused once it may not refuse again.
	if unflushed != nil {
		return fmt.Errorf("spool job: %w", unflushed)
	}
	return nil
}

// receive writes the pieces of the file until the client half-closes, checks their sum, and returns their SHA-256 and their
// xxh3.
func (u *upload) receive(file io.Writer) (hash []byte, short uint64, err error) {
	refuse := func(format string, args ...any) error { return status.Errorf(codes.InvalidArgument, format, args...) }
	sum := newSummer()
	defer sum.total()
	announced := len(u.begin.GetSha256()) > 0
	var got, looked uint64
	var end *headwaterv1.SubmitEnd
	for {
		p, err := u.next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return nil, 0, err
		}
		data := p.message.GetData()
		got += uint64(len(data))
		switch {
		case p.message.GetBegin() != nil:
			err = refuse("the announcement came twice")
		case len(data) > rpc.BlockBytes:
			err = refuse("a piece has %d bytes, and at most %d are taken", len(data), rpc.BlockBytes)
		case end != nil:
			err = refuse("the end of the file was not the last message")
		case p.message.GetEnd() != nil && announced:
			err = refuse("the file's sum came at its end, and its SHA-256 before")
		case got > u.begin.GetSizeBytes():
			err = refuse("more than the announced %d bytes were sent", u.begin.GetSizeBytes())
		case got-looked > freeAfter:
			looked = got
			err = u.roomFor(int64(u.begin.GetSizeBytes()-got) + u.result)
		}
		if err == nil {
			_, err = file.Write(data)
		}
		if err != nil {
			p.memory.Free()
			return nil, 0, err
		}
		end = p.message.GetEnd()
		sum.add(data, p.memory)
	}
	if got != u.begin.GetSizeBytes() {
		return nil, 0, refuse("%d of the announced %d bytes were sent", got, u.begin.GetSizeBytes())
	}
	hash, short = sum.total()
	switch {
	case announced && !bytes.Equal(hash, u.begin.GetSha256()):
		return nil, 0, refuse("the bytes that came have another SHA-256 than was announced")
	case !announced && end == nil:
		return nil, 0, refuse("neither the file's SHA-256 was announced nor its sum sent")
	case end != nil && end.GetHash() != short:
		return nil, 0, refuse("the bytes that came have another sum than was sent")
	}
	return hash, short, nil
}

// summer sums the pieces of a file beside what else is done to them: that takes as long as all the rest.
type summer struct {
	pieces chan summed
	// total waits for the end of all pieces and returns their SHA-256 and their xxh3.
	total func() (hash []byte, short uint64)
}

// summed is a piece, and the memory that is free once it is summed.
type summed struct {
	data   []byte
	memory *rpc.Buffer
}

func newSummer() *summer {
	s := &summer{pieces: make(chan summed, 4)}
	sum, short, done := sha256.New(), xxh3.New(), make(chan struct{})
	go func() {
		defer close(done)
		for p := range s.pieces {
			sum.Write(p.data)
			_, _ = short.Write(p.data) // never fails
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
	answering, err := workers.Placeable(q.workers.Describe(ctx, q.workers.List()))
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
