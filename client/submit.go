package client

import (
	"cmp"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"github.com/zeebo/xxh3"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/durationpb"

	"headwater.example/internal/contextframe"
	"headwater.example/internal/layerproto"
	"headwater.example/internal/rpc"
	headwaterv1 "headwater.example/proto/headwater/v1"
	"headwater.example/tensor"
)

// minorUnannounced is the first minor version of the protocol in which a file need not be hashed before it is sent.
const minorUnannounced = 1

// MaxHeaderBytes is the largest header of a job file that a coordinator takes.
const MaxHeaderBytes = 16 << 20

// SubmitOptions say what to submit and how. Exactly one of Path, File and Reader is given.
type SubmitOptions struct {
	Path   string       // a job file: safetensors, the index of a sharded one, or npz
	File   *tensor.File // an open one; stays the caller's
	Reader io.ReaderAt  // the bytes of a safetensors file, Size of them
	Size   int64

	// Accumulate has gradients, usually those of an earlier result, to which the job adds its own; nil: none. It goes with
	// Path or File, and stays the caller's.
	Accumulate *tensor.File

	Key       string        // the same key with the same content and codec is the same job; empty: none
	Name      string        // for people; empty: the file's base name
	Overrides []byte        // options that override the file's, a JSON object; empty: none
	Codec     Codec         // Exact, BF16, F16 or Int8; empty: Exact
	Deadline  time.Duration // longest time that the job may run; 0: the coordinator's limit

	// Hashed and Sent may be nil. The calling goroutine calls them after each piece with the bytes of the file that
	// were hashed or sent. Only a job with a key is hashed first, because a job that is known by its key need not be
	// sent.
	Hashed, Sent func(done, total int64)
}

// Submit submits a job and returns it, normally as queued. If the coordinator knows the job by its key, no bytes are
// sent and the job is returned in its current state, which is failed if its content was at fault. A job that failed for
// another reason, or was cancelled, is sent and run again under its key. The coordinator refuses a job before its bytes
// are sent, unless a value in them is at fault.
func (c *Client) Submit(ctx context.Context, opts SubmitOptions) (*Job, error) {
	source, err := open(opts)
	if err != nil {
		return nil, err
	}
	job, err := c.submit(ctx, source, opts, opts.Key != "")
	var older *unannouncedError
	if errors.As(err, &older) {
		job, err = c.submit(ctx, source, opts, true)
	}
	return job, errors.Join(err, source.close())
}

// unannouncedError is the refusal of a coordinator that needs every file's SHA-256 first.
type unannouncedError struct{ error }

// source is the bytes of a safetensors file, from a file or a reader.
type source struct {
	io.ReaderAt
	name  string
	size  int64
	close func() error
}

func open(opts SubmitOptions) (*source, error) {
	nothing := func() error { return nil }
	switch {
	case opts.Reader != nil && opts.Accumulate != nil:
		return nil, errors.New("submit: Accumulate goes with Path or File: a Reader's own bytes hold the earlier gradients")
	case opts.Reader != nil:
		return &source{ReaderAt: opts.Reader, name: opts.Name, size: opts.Size, close: nothing}, nil
	case opts.File != nil:
		a, err := assemble(opts.File, opts.Accumulate)
		if err != nil {
			return nil, err
		}
		return &source{ReaderAt: a, name: filepath.Base(opts.File.Path()), size: a.size(), close: nothing}, nil
	}
	name := filepath.Base(opts.Path)
	// tensor.Open checks the header, so a broken file is refused here, under its own name.
	file, err := tensor.Open(opts.Path)
	if err != nil {
		return nil, err
	}
	if file.Format() != tensor.Safetensors || opts.Accumulate != nil {
		a, err := assemble(file, opts.Accumulate)
		if err != nil {
			return nil, errors.Join(err, file.Close())
		}
		return &source{ReaderAt: a, name: name, size: a.size(), close: file.Close}, nil
	}
	if err := file.Close(); err != nil {
		return nil, err
	}
	f, err := os.Open(opts.Path)
	if err != nil {
		return nil, err
	}
	info, err := f.Stat()
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return &source{ReaderAt: f, name: name, size: info.Size(), close: f.Close}, nil
}

// submit submits the file, with or without its SHA-256 in Begin.
func (c *Client) submit(ctx context.Context, source *source, opts SubmitOptions, announced bool) (*Job, error) {
	name := opts.Name
	if name == "" {
		name = source.name
	}
	doing := "submit " + name
	begin, err := announce(ctx, source, opts, announced)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", doing, err)
	}
	begin.Name = name
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stream, err := c.service.Submit(ctx)
	if err != nil {
		return nil, c.wrap(doing, err)
	}
	// A Send that fails with io.EOF means that the coordinator has ended the call; Recv says why.
	err = stream.Send(&headwaterv1.SubmitRequest{Request: &headwaterv1.SubmitRequest_Begin{Begin: begin}})
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, c.wrap(doing, err)
	}
	verdict, err := stream.Recv()
	if err == nil {
		err = c.checkStream(stream)
	}
	if err != nil {
		header, _ := stream.Header()
		refused := c.firstError(ctx, doing, err, stream)
		if !announced && status.Code(err) == codes.InvalidArgument && rpc.Before(header, minorUnannounced) {
			return nil, &unannouncedError{refused}
		}
		return nil, refused
	}
	if verdict.GetSend() {
		if err := send(stream, source, announced, opts.Sent); err != nil {
			return nil, c.wrap(doing, err)
		}
	}
	if err := stream.CloseSend(); err != nil {
		return nil, c.wrap(doing, err)
	}
	job, accepted := verdict.GetJob(), !verdict.GetSend()
	for {
		resp, err := stream.Recv()
		switch {
		case errors.Is(err, io.EOF) && accepted:
			return newJob(job), nil
		case err != nil:
			return nil, c.wrap(doing, unexpectedEnd(err))
		}
		job, accepted = resp.GetJob(), true
	}
}

// jobCodec returns the codec of a job's frames that a name means; Auto means Exact.
func jobCodec(name Codec) (contextframe.Codec, error) {
	for _, codec := range contextframe.Codecs() {
		if codec.String() == cmp.Or(string(name), string(Exact)) {
			return codec, nil
		}
	}
	return 0, fmt.Errorf("codec %.40q is none of exact, bf16, f16 and int8", string(name))
}

// announce reads the file's header, or all of it if it is hashed first.
func announce(ctx context.Context, source *source, opts SubmitOptions, hashed bool) (*headwaterv1.SubmitBegin, error) {
	header, err := tensor.HeaderBytes(source, source.size, MaxHeaderBytes)
	if err != nil {
		return nil, err
	}
	codec, err := jobCodec(opts.Codec)
	if err != nil {
		return nil, err
	}
	begin := &headwaterv1.SubmitBegin{
		Codec: layerproto.ContextCodec(codec),
		Key:   opts.Key, SizeBytes: uint64(source.size), Header: header, Overrides: opts.Overrides,
	}
	if hashed {
		hash := sha256.New()
		err := pieces(ctx, source, opts.Hashed, func(piece *rpc.Buffer) error {
			hash.Write(piece.Bytes())
			piece.Free()
			return nil
		})
		if err != nil {
			return nil, err
		}
		begin.Sha256 = hash.Sum(nil)
	}
	if opts.Deadline > 0 {
		begin.Deadline = durationpb.New(opts.Deadline)
	}
	return begin, nil
}

// send sends the file's bytes, and their hash if Begin had none. If the coordinator ends the call, the error is its
// reason.
func send(stream headwaterv1.CoordinatorService_SubmitClient, source *source, announced bool, progress func(done, total int64)) error {
	var sum xxh3.Hasher
	err := pieces(stream.Context(), source, progress, func(piece *rpc.Buffer) error {
		if !announced {
			_, _ = sum.Write(piece.Bytes()) // never fails
		}
		return rpc.SendBulk(stream, &headwaterv1.SubmitRequest{Request: &headwaterv1.SubmitRequest_Data{Data: piece.Bytes()}}, piece)
	})
	if err == nil && !announced {
		err = stream.Send(&headwaterv1.SubmitRequest{Request: &headwaterv1.SubmitRequest_End{End: &headwaterv1.SubmitEnd{Hash: sum.Sum64()}}})
	}
	if errors.Is(err, io.EOF) {
		_, err = stream.Recv()
		return unexpectedEnd(err)
	}
	return err
}

// pieces gives do one piece of the source after another.
func pieces(ctx context.Context, source *source, progress func(done, total int64), do func(*rpc.Buffer) error) error {
	for at := int64(0); at < source.size; {
		if err := ctx.Err(); err != nil {
			return err
		}
		size := min(rpc.BlockBytes, source.size-at)
		piece := rpc.NewBuffer(int(size))
		if n, err := source.ReadAt(piece.Bytes(), at); int64(n) < size {
			piece.Free()
			return fmt.Errorf("read byte %d of %d of %s: %w", at+int64(n), source.size, source.name, err)
		}
		if err := do(piece); err != nil {
			return err
		}
		at += size
		if progress != nil {
			progress(at, source.size)
		}
	}
	return nil
}

// unexpectedEnd turns an early end of a stream into an error.
func unexpectedEnd(err error) error {
	if errors.Is(err, io.EOF) || err == nil {
		return errShort
	}
	return err
}
