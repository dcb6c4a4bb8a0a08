package client

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/zeebo/xxh3"
	"go.uber.org/goleak"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/grpc/test/bufconn"
	"pgregory.net/rapid"

	"headwater.example/internal/rpc"
	headwaterv1 "headwater.example/proto/headwater/v1"
	"headwater.example/tensor"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// fake is a coordinator whose answers a test gives.
type fake struct {
	headwaterv1.UnimplementedCoordinatorServiceServer
	refuse error // answer to Begin
	known  bool  // whether the bytes are not wanted
	broken bool  // end the upload after the first piece
	begin  *headwaterv1.SubmitBegin
	got    []byte
	end    *headwaterv1.SubmitEnd
	older  bool // a coordinator of version 1.0, which wants each file's SHA-256

	watched []headwaterv1.JobState
	result  []byte
	sha256  string
}

func (f *fake) Submit(stream headwaterv1.CoordinatorService_SubmitServer) error {
	first, err := stream.Recv()
	if err != nil {
		return err
	}
	f.begin = first.GetBegin()
	if f.older {
		if err := stream.SetHeader(metadata.Pairs(rpc.MetadataKey, "1.0")); err != nil {
			return err
		}
		if len(f.begin.GetSha256()) == 0 {
			return status.Error(codes.InvalidArgument, "the file's SHA-256 has 0 bytes, not 32")
		}
	}
	if f.refuse != nil {
		return f.refuse
	}
	job := &headwaterv1.Job{Id: "c-1", State: headwaterv1.JobState_JOB_STATE_UPLOADING}
	if err := stream.Send(&headwaterv1.SubmitResponse{Job: job, Send: !f.known}); err != nil || f.known {
		return err
	}
	for {
		req, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return err
		}
		f.got = append(f.got, req.GetData()...)
		f.end = req.GetEnd()
		if f.broken {
			return status.Error(codes.InvalidArgument, `job.safetensors: tensor "q"[3]: NaN`)
		}
	}
	return stream.Send(&headwaterv1.SubmitResponse{Job: &headwaterv1.Job{Id: "c-1", State: headwaterv1.JobState_JOB_STATE_QUEUED}})
}

func (f *fake) WatchJob(_ *headwaterv1.WatchJobRequest, stream headwaterv1.CoordinatorService_WatchJobServer) error {
	for _, state := range f.watched {
		if err := stream.Send(&headwaterv1.WatchJobResponse{Job: &headwaterv1.Job{Id: "c-1", State: state, Error: "all\nworkers lost", ErrorCode: uint32(codes.Unavailable)}}); err != nil {
			return err
		}
	}
	return nil
}

func (f *fake) DownloadResult(_ *headwaterv1.DownloadResultRequest, stream headwaterv1.CoordinatorService_DownloadResultServer) error {
	job := &headwaterv1.Job{Id: "c-1", ResultSha256: f.sha256, ResultBytes: 300}
	for i, piece := range slices.Collect(slices.Chunk(f.result, 100)) {
		resp := &headwaterv1.DownloadResultResponse{Data: piece}
		if i == 0 {
			resp.Job = job
		}
		if err := stream.Send(resp); err != nil {
			return err
		}
	}
	return nil
}

func (f *fake) GetJob(_ context.Context, req *headwaterv1.GetJobRequest) (*headwaterv1.GetJobResponse, error) {
	return nil, status.Errorf(codes.NotFound, "no job %q", req.GetId())
}

// connect serves f and dials it.
func connect(t *testing.T, f *fake, opts ...grpc.ServerOption) *Client {
	t.Helper()
	listener := bufconn.Listen(1 << 20)
	if opts == nil {
		opts = rpc.ServerOptions()
	}
	server := grpc.NewServer(opts...)
	headwaterv1.RegisterCoordinatorServiceServer(server, f)
	done := make(chan struct{})
	go func() { defer close(done); _ = server.Serve(listener) }()
	c, err := Dial("127.0.0.1", grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return listener.DialContext(ctx) }))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close(); server.Stop(); <-done })
	return c
}

// tensors are some of each size of element.
func tensors() []tensor.Data {
	return []tensor.Data{
		{Info: tensor.Info{Name: "mask", DType: tensor.U8, Shape: []int{1, 3, 5}}, Bytes: bytes.Repeat([]byte{1, 0, 1}, 5)},
		{Info: tensor.Info{Name: "q", DType: tensor.F32, Shape: []int{3, 7}}, Bytes: bytes.Repeat([]byte{1, 2, 3, 4}, 21)},
		{Info: tensor.Info{Name: "none", DType: tensor.F32, Shape: []int{0}}, Bytes: nil},
		{Info: tensor.Info{Name: "k", DType: tensor.F16, Shape: []int{5}}, Bytes: []byte("0123456789")},
	}
}

var meta = map[string]string{"headwater": `{"causal":true}`, "tokens": `["ä","\"","<"]`}

// file writes a safetensors file, or another where write says how.
func file(t *testing.T, name string, write func(io.Writer) error) string {
	t.Helper()
	var b bytes.Buffer
	if err := write(&b); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(path, b.Bytes(), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func safetensors(t *testing.T) string {
	return file(t, "job.safetensors", func(w io.Writer) error { return tensor.WriteSafetensors(w, tensors(), meta) })
}

func TestSubmitSendsTheFileAsItIs(t *testing.T) {
	f := &fake{}
	path := safetensors(t)
	var sent int64
	job, err := connect(t, f).Submit(t.Context(), SubmitOptions{Path: path, Key: "key", Overrides: []byte("{}"), Sent: func(done, _ int64) { sent = done }})
	if err != nil || job.State != JobQueued {
		t.Fatal(job, err)
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	hash := sha256.Sum256(want)
	if !bytes.Equal(f.got, want) || !bytes.Equal(f.begin.GetSha256(), hash[:]) || f.begin.GetSizeBytes() != uint64(len(want)) || sent != int64(len(want)) {
		t.Errorf("%d bytes came, %d were told, want %d", len(f.got), sent, len(want))
	}
	if f.begin.GetName() != "job.safetensors" || f.begin.GetKey() != "key" || f.begin.GetCodec() != headwaterv1.ContextCodec_CONTEXT_CODEC_EXACT || !bytes.HasPrefix(want, f.begin.GetHeader()) {
		t.Errorf("announced as %v", f.begin)
	}
}

func TestSubmitWithoutAKeyReadsTheFileOnce(t *testing.T) {
	path := safetensors(t)
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	f := &fake{}
	hashed := func(int64, int64) { t.Error("the file was hashed before it was sent") }
	if _, err := connect(t, f).Submit(t.Context(), SubmitOptions{Path: path, Hashed: hashed}); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(f.got, want) || len(f.begin.GetSha256()) != 0 || f.end.GetHash() != xxh3.Hash(want) {
		t.Errorf("%d bytes came, announced as %v, ended by %v", len(f.got), f.begin, f.end)
	}
}

func TestSubmitToAnOlderCoordinatorAnnouncesTheHash(t *testing.T) {
	path := safetensors(t)
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	hash := sha256.Sum256(want)
	f := &fake{older: true}
	if _, err := connect(t, f, grpc.ForceServerCodecV2(rpc.MessageCodec{})).Submit(t.Context(), SubmitOptions{Path: path}); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(f.got, want) || !bytes.Equal(f.begin.GetSha256(), hash[:]) || f.end != nil {
		t.Errorf("%d bytes came, announced as %v, ended by %v", len(f.got), f.begin, f.end)
	}
	// Another refusal is passed on.
	f.refuse = status.Error(codes.InvalidArgument, "no")
	if _, err := connect(t, f, grpc.ForceServerCodecV2(rpc.MessageCodec{})).Submit(t.Context(), SubmitOptions{Path: path}); !errors.Is(err, ErrRefused) || !strings.HasSuffix(err.Error(), ": no") {
		t.Error(err)
	}
}

func TestSubmitMakesASafetensorsFileOfAnNPZ(t *testing.T) {
	path := file(t, "job.npz", func(w io.Writer) error { return tensor.WriteNPZ(w, tensors()) })
	f := &fake{}
	if _, err := connect(t, f).Submit(t.Context(), SubmitOptions{Path: path}); err != nil {
		t.Fatal(err)
	}
	got, err := tensor.OpenReaderAt("sent", bytes.NewReader(f.got), int64(len(f.got)))
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range tensors() {
		b := make([]byte, want.Info.Bytes())
		if err := got.ReadAt(b, want.Name, 0); err != nil || !bytes.Equal(b, want.Bytes) {
			t.Errorf("tensor %s came as %v, %v", want.Name, b, err)
		}
	}
}

func TestAnAssembledFileReadsAlikeInAnyPieces(t *testing.T) {
	opened, err := tensor.Open(safetensors(t))
	if err != nil {
		t.Fatal(err)
	}
	defer opened.Close()
	a, err := assemble(opened, nil)
	if err != nil {
		t.Fatal(err)
	}
	whole := make([]byte, a.size())
	if _, err := a.ReadAt(whole, 0); err != nil {
		t.Fatal(err)
	}
	back, err := tensor.OpenReaderAt("whole", bytes.NewReader(whole), a.size())
	if err != nil {
		t.Fatal(err)
	}
	if back.Metadata()["tokens"] != meta["tokens"] || len(back.Names()) != len(tensors()) {
		t.Errorf("metadata %q, tensors %q", back.Metadata(), back.Names())
	}
	rapid.Check(t, func(t *rapid.T) {
		at := rapid.Int64Range(0, a.size()+3).Draw(t, "at")
		p := make([]byte, rapid.IntRange(1, len(whole)+5).Draw(t, "length"))
		want := make([]byte, len(p))
		n, err := a.ReadAt(p, at)
		m, wantErr := bytes.NewReader(whole).ReadAt(want, at)
		if n != m || !errors.Is(err, wantErr) || !bytes.Equal(p[:n], want[:n]) {
			t.Fatalf("read %d at %d: %d, %v; want %d, %v", len(p), at, n, err, m, wantErr)
		}
	})
}

func TestRefusals(t *testing.T) {
	path := safetensors(t)
	f := &fake{refuse: status.Error(codes.ResourceExhausted, "job needs 3 bytes, the cluster has 2")}
	_, err := connect(t, f).Submit(t.Context(), SubmitOptions{Path: path})
	if !errors.Is(err, ErrTryAgain) || errors.Is(err, ErrRefused) || errors.Is(err, ErrUnreachable) || !strings.Contains(err.Error(), "needs 3 bytes") {
		t.Errorf("refused job: %v", err)
	}
	_, err = connect(t, &fake{refuse: rpc.Full("64 submissions are under way: try again")}).Submit(t.Context(), SubmitOptions{Path: path})
	var full *Error
	if !errors.As(err, &full) || full.RetryAfter != rpc.RetryAfter || !errors.Is(err, ErrTryAgain) {
		t.Errorf("a coordinator that has too many: %v: %+v", err, full)
	}
	f = &fake{refuse: status.Error(codes.Unavailable, "no worker has joined the cluster")}
	_, err = connect(t, f).Submit(t.Context(), SubmitOptions{Path: path})
	if !errors.Is(err, ErrTryAgain) || errors.Is(err, ErrUnreachable) || errors.Is(err, ErrRefused) || !strings.HasSuffix(err.Error(), "job.safetensors: no worker has joined the cluster") {
		t.Errorf("a coordinator without workers: %v", err)
	}
	_, err = connect(t, &fake{broken: true}).Submit(t.Context(), SubmitOptions{Path: path})
	if !errors.Is(err, ErrRefused) || err.Error() != `submit job.safetensors: tensor "q"[3]: NaN` {
		t.Errorf("refused value: %v", err)
	}
	f = &fake{known: true}
	if job, err := connect(t, f).Submit(t.Context(), SubmitOptions{Path: path}); err != nil || job.ID != "c-1" || f.got != nil {
		t.Errorf("known job: %v, %v, %d bytes", job, err, len(f.got))
	}
	_, err = connect(t, f).Get(t.Context(), "x")
	if !errors.Is(err, ErrNotFound) || !errors.Is(err, ErrRefused) {
		t.Errorf("unknown job: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err = connect(t, f).Get(ctx, "x"); !errors.Is(err, context.Canceled) || errors.Is(err, ErrUnreachable) {
		t.Errorf("canceled call: %v", err)
	}
}

func TestNobodyListens(t *testing.T) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	address := listener.Addr().String()
	listener.Close()
	c, err := Dial(address)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	_, err = c.Status(t.Context())
	if !errors.Is(err, ErrUnreachable) || errors.Is(err, ErrRefused) || !strings.Contains(err.Error(), address) || !strings.HasSuffix(err.Error(), "connection refused") {
		t.Errorf("got %v", err)
	}
	for _, wrong := range []string{"", "[::1", "a:b:c"} {
		if _, err := Dial(wrong); err == nil {
			t.Errorf("dialed %q", wrong)
		}
	}
}

func TestACoordinatorOfAnotherMajorVersionIsRefused(t *testing.T) {
	other := grpc.UnaryInterceptor(func(ctx context.Context, _ any, _ *grpc.UnaryServerInfo, _ grpc.UnaryHandler) (any, error) {
		return &headwaterv1.StatusResponse{}, grpc.SetHeader(ctx, metadata.Pairs(rpc.MetadataKey, "2.0"))
	})
	_, err := connect(t, &fake{}, other).Status(t.Context())
	if !errors.Is(err, ErrRefused) || !strings.Contains(err.Error(), "2.0") {
		t.Errorf("got %v", err)
	}
}

func TestWaitTellsHowAJobEnded(t *testing.T) {
	running := headwaterv1.JobState_JOB_STATE_RUNNING
	var seen int
	job, err := connect(t, &fake{watched: []headwaterv1.JobState{running, running, headwaterv1.JobState_JOB_STATE_SUCCEEDED}}).
		Wait(t.Context(), "c-1", func(*Job) { seen++ })
	if err != nil || job.ID != "c-1" || seen != 3 {
		t.Errorf("%v, %v, %d changes", job, err, seen)
	}
	_, err = connect(t, &fake{watched: []headwaterv1.JobState{running, headwaterv1.JobState_JOB_STATE_FAILED}}).Wait(t.Context(), "c-1", nil)
	var failed *JobError
	if !errors.As(err, &failed) || errors.Is(err, ErrRefused) || err.Error() != "job c-1 failed: all workers lost" {
		t.Errorf("got %v", err)
	}
	if _, err = connect(t, &fake{watched: []headwaterv1.JobState{running}}).Watch(t.Context(), "c-1", nil); !errors.Is(err, ErrUnreachable) {
		t.Errorf("a stream that ended early: %v", err)
	}
}

// Who waits for a job and closes the client waits no longer, also not for a coordinator to come back.
func TestWaitEndsWithItsClient(t *testing.T) {
	c := connect(t, &fake{watched: []headwaterv1.JobState{headwaterv1.JobState_JOB_STATE_RUNNING}})
	if _, err := c.Wait(t.Context(), "c-1", func(*Job) { _ = c.Close() }); !errors.Is(err, ErrClosed) || errors.Is(err, ErrUnreachable) {
		t.Errorf("got %v", err)
	}
	if !c.reconnect(t.Context(), time.Now().Add(ReconnectWait)) {
		t.Error("a closed client looks for a coordinator as long as it may")
	}
}

func TestDownloadIsWholeOrNotAtAll(t *testing.T) {
	result := bytes.Repeat([]byte("result"), 50)
	hash := sha256.Sum256(result)
	right := hex.EncodeToString(hash[:])
	for name, f := range map[string]*fake{
		"right":      {result: result, sha256: right},
		"short":      {result: result[:200], sha256: right},
		"long":       {result: append(slices.Clone(result), 1), sha256: right},
		"wrong hash": {result: append(slices.Clone(result[:299]), 'x'), sha256: right},
		"no hash":    {result: result},
	} {
		path := filepath.Join(t.TempDir(), "out.safetensors")
		_, err := connect(t, f).Download(t.Context(), "c-1", path, nil)
		files, _ := os.ReadDir(filepath.Dir(path))
		if name == "right" {
			got, _ := os.ReadFile(path)
			if err != nil || !bytes.Equal(got, result) || len(files) != 1 {
				t.Errorf("%s: %v, %d bytes, %d files", name, err, len(got), len(files))
			}
			continue
		}
		if err == nil || len(files) != 0 {
			t.Errorf("%s: error %v, %d files", name, err, len(files))
		}
		// A stream gets what comes, and the error says that it is not what was announced.
		if _, err := connect(t, f).DownloadTo(t.Context(), "c-1", io.Discard, nil); err == nil {
			t.Errorf("%s: a stream took it", name)
		}
	}
	var out bytes.Buffer
	if _, err := connect(t, &fake{result: result, sha256: right}).DownloadTo(t.Context(), "c-1", &out, nil); err != nil || !bytes.Equal(out.Bytes(), result) {
		t.Errorf("a stream got %d bytes: %v", out.Len(), err)
	}
	full, err := os.OpenFile("/dev/full", os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer full.Close()
	if _, err := connect(t, &fake{result: result, sha256: right}).DownloadTo(t.Context(), "c-1", full, nil); !errors.Is(err, syscall.ENOSPC) || errors.Is(err, ErrUnreachable) {
		t.Errorf("a full disk: %v", err)
	}
	_, err = connect(t, &fake{result: result, sha256: right}).Download(t.Context(), "c-1", filepath.Join(t.TempDir(), "no", "folder"), nil)
	if err == nil || errors.Is(err, ErrUnreachable) || !strings.Contains(err.Error(), "no such file or directory") {
		t.Errorf("no folder: %v", err)
	}
}
