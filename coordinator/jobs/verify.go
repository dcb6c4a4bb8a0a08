package jobs

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"hash"
	"io"
	"io/fs"
	"os"

	"github.com/zeebo/xxh3"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"headwater.example/internal/jobfile"
	headwaterv1 "headwater.example/proto/headwater/v1"
	"headwater.example/tensor"
)

// errChanged is bytes of the spool that are not those that were written. The job is at no fault, and may be submitted again.
func errChanged(format string, args ...any) error {
	return status.Errorf(codes.DataLoss, format, args...)
}

// checkInput compares a job's file with its sum: the xxh3 that was made of it as it came, or for a job of an older version
// the content hash.
func (q *Queue) checkInput(ctx context.Context, e *entry) error {
	job := e.snapshot()
	want, _ := e.hashes()
	changed := errChanged("the file of job %s was changed on the coordinator's disk: submit the job again", job.GetId())
	if want != 0 {
		short := xxh3.New()
		if err := sumFile(ctx, q.store.Input(job.GetId()), short); err != nil {
			return err
		}
		if short.Sum64() != want {
			return changed
		}
		return nil
	}
	long := sha256.New()
	if err := sumFile(ctx, q.store.Input(job.GetId()), long); err != nil {
		return err
	}
	input, err := tensor.Open(q.store.Input(job.GetId()))
	if err != nil {
		return err
	}
	parsed, err := jobfile.Parse(input, e.begun().GetOverrides())
	if err = errors.Join(err, input.Close()); err != nil || contentHash(long.Sum(nil), parsed) != job.GetContentHash() {
		return changed
	}
	return nil
}

// checkResult compares a job's result with its sum before it is sent. A job whose result has changed has failed.
func (q *Queue) checkResult(ctx context.Context, e *entry) error {
	job := e.snapshot()
	var err error
	var same bool
	if _, want := e.hashes(); want != 0 {
		short := xxh3.New()
		err = sumFile(ctx, q.store.Result(job.GetId()), short)
		same = short.Sum64() == want
	} else {
		long := sha256.New()
		err = sumFile(ctx, q.store.Result(job.GetId()), long)
		want, wrong := hex.DecodeString(job.GetResultSha256())
		same = wrong == nil && bytes.Equal(long.Sum(nil), want)
	}
	switch {
	case errors.Is(err, fs.ErrNotExist):
		err = errChanged("the result of job %s is not on the coordinator's disk any more: submit the job again", job.GetId())
	case err != nil:
		return err
	case !same:
		err = errChanged("the result of job %s was changed on the coordinator's disk: submit the job again", job.GetId())
	default:
		return nil
	}
	s := statusOf(err)
	q.Logger.Error("a result can not be given out", "job", job.GetId(), "file", q.store.Result(job.GetId()), "error", err)
	return errors.Join(err, q.change(e, func(j *headwaterv1.Job) {
		j.State, j.Error, j.ErrorCode = headwaterv1.JobState_JOB_STATE_FAILED, s.Message(), uint32(s.Code())
	}))
}

// sumFile gives a file's bytes to a hash, until ctx ends.
func sumFile(ctx context.Context, path string, h hash.Hash) (err error) {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	block := make([]byte, 1<<20)
	for {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		n, err := f.Read(block)
		_, _ = h.Write(block[:n]) // never fails
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return errChanged("read %s: %v", path, errors.Unwrap(err))
		}
	}
}
