package client

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"headwater.example/internal/atomicfile"
	"headwater.example/internal/rpc"
	headwaterv1 "headwater.example/proto/headwater/v1"
)

// Download writes the result of a job to path, and returns the job. The file appears complete, with the SHA-256 that
// the coordinator names, or not at all. The whole size is reserved first, so a full disk is reported before bytes are
// fetched. progress may be nil.
func (c *Client) Download(ctx context.Context, id, path string, progress func(done, total int64)) (*Job, error) {
	var file *atomicfile.File
	create := func(size int64) (io.Writer, error) {
		var err error
		file, err = atomicfile.Create(path, size)
		return file, err
	}
	job, err := c.download(ctx, id, create, progress)
	switch {
	case file == nil:
		return nil, err
	case err != nil:
		return nil, errors.Join(err, file.Abort())
	}
	if err := file.Commit(); err != nil {
		return nil, fmt.Errorf("fetch the result of job %s: %w", id, err)
	}
	return job, nil
}

// DownloadTo writes the result of a job to out as it arrives, and returns the job. After an error, out may have
// received only a part, or bytes with another SHA-256 than the coordinator names. progress may be nil.
func (c *Client) DownloadTo(ctx context.Context, id string, out io.Writer, progress func(done, total int64)) (*Job, error) {
	return c.download(ctx, id, func(int64) (io.Writer, error) { return out, nil }, progress)
}

// download writes the result of a job to the writer that create makes once the size is known.
func (c *Client) download(ctx context.Context, id string, create func(size int64) (io.Writer, error), progress func(done, total int64)) (*Job, error) {
	doing := "fetch the result of job " + id
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stream, err := c.service.DownloadResult(ctx, &headwaterv1.DownloadResultRequest{Id: id})
	if err != nil {
		return nil, c.wrap(doing, err)
	}
	first := &headwaterv1.DownloadResultResponse{}
	memory, err := rpc.RecvBulk(stream, first)
	if err == nil {
		err = c.checkStream(stream)
	}
	if err != nil {
		return nil, c.firstError(ctx, doing, err, stream)
	}
	job := first.GetJob()
	want, err := hex.DecodeString(job.GetResultSha256())
	if err != nil || len(want) != sha256.Size || job.GetResultBytes() > 1<<62 {
		return nil, c.wrap(doing, status.Error(codes.Internal, "the coordinator named no size and hash"))
	}
	size := int64(job.GetResultBytes())
	file, err := create(size)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", doing, err)
	}
	if err := c.fetch(stream, file, first.GetData(), memory, size, want, progress); err != nil {
		return nil, c.fetchError(doing, err)
	}
	return newJob(job), nil
}

// localError marks an error of this machine's disk, as opposed to an answer of the coordinator.
type localError struct{ error }

func (e localError) Unwrap() error { return e.error }

func (c *Client) fetchError(doing string, err error) error {
	var local localError
	if errors.As(err, &local) {
		return fmt.Errorf("%s: %w", doing, local.error)
	}
	return c.wrap(doing, err)
}

// fetch writes data and then the rest of the stream to file, and checks size and hash.
func (c *Client) fetch(stream headwaterv1.CoordinatorService_DownloadResultClient, file io.Writer, data []byte, memory *rpc.Buffer, size int64, want []byte, progress func(done, total int64)) error {
	hash := sha256.New()
	var done int64
	for {
		if int64(len(data)) > size-done {
			return status.Errorf(codes.DataLoss, "the result is longer than the %d bytes announced", size)
		}
		if _, err := file.Write(data); err != nil {
			return localError{err}
		}
		hash.Write(data)
		memory.Free()
		done += int64(len(data))
		if progress != nil && len(data) > 0 {
			progress(done, size)
		}
		resp, err := &headwaterv1.DownloadResultResponse{}, error(nil)
		memory, err = rpc.RecvBulk(stream, resp)
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return err
		}
		data = resp.GetData()
	}
	if done != size {
		return status.Errorf(codes.DataLoss, "the result ended after %d of %d bytes", done, size)
	}
	if got := hash.Sum(nil); !bytes.Equal(got, want) {
		return status.Errorf(codes.DataLoss, "the result's SHA-256 is %x, the coordinator named %x", got, want)
	}
	return nil
}
