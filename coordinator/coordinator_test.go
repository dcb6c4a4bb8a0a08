package coordinator_test

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/zeebo/xxh3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"headwater.example/client"
	"headwater.example/coordinator"
	"headwater.example/internal/rpc"
	"headwater.example/internal/testkit/await"
	headwaterv1 "headwater.example/proto/headwater/v1"
	"headwater.example/tensor"
)

func workers(n int) []workerOptions {
	w := make([]workerOptions, n)
	for i := range w {
		w[i].threads = 1 + i%2
	}
	return w
}

func TestBitsDoNotDependOnTheCluster(t *testing.T) {
	path := variety(t)
	_, want := startCluster(t, clusterOptions{workers: workers(1)}).run(t, client.SubmitOptions{Path: path})
	for _, n := range []int{2, 3, 4, 5, 7} {
		for _, block := range []int{1, 5000, 1 << 20} {
			c := startCluster(t, clusterOptions{workers: workers(n), config: coordinator.Config{BlockBytes: block}})
			job, got := c.run(t, client.SubmitOptions{Path: path})
			same(t, fmt.Sprintf("%d workers, blocks of %d bytes", n, block), want, got)
			if r := job.Report; len(r.Workers) != n || r.WorkersLost != 0 {
				t.Errorf("report of %d workers, %d lost", len(r.Workers), r.WorkersLost)
			}
			c.stop()
		}
	}
}

func TestLayerIsTheTruthForEveryWorkerCount(t *testing.T) {
	path := filepath.Join("..", "test", "data", "smollm2", "layer.safetensors")
	truth, err := openTensors(t, filepath.Join("..", "test", "data", "smollm2", "layer.truth.safetensors"))
	if err != nil {
		t.Fatal(err)
	}
	_, want := startCluster(t, clusterOptions{workers: workers(1)}).run(t, client.SubmitOptions{Path: path})
	for _, name := range truth.Names() {
		if !strings.HasSuffix(name, "y") {
			continue
		}
		info, _ := truth.Lookup(name)
		width := info.Shape[1]
		y, exact := read(t, want, name), read(t, truth, name)
		for row := range info.Shape[0] {
			var largest, worst float64
			for i := row * width; i < (row+1)*width; i++ {
				v := math.Float64frombits(binary.LittleEndian.Uint64(exact[8*i:]))
				largest = max(largest, math.Abs(v))
				worst = max(worst, math.Abs(v-float64(math.Float32frombits(binary.LittleEndian.Uint32(y[4*i:])))))
			}
			if worst > 1e-5*largest {
				t.Fatalf("%s row %d is off by %g of its largest value", name, row, worst/largest)
			}
		}
	}
	for _, n := range []int{2, 3, 5, 7} {
		_, got := startCluster(t, clusterOptions{workers: workers(n), config: coordinator.Config{BlockBytes: 10_000}}).run(t, client.SubmitOptions{Path: path})
		same(t, fmt.Sprintf("%d workers", n), want, got)
	}
}

// mortal counts the messages that a worker sends back, or those of them that are outputs, and calls die before the n-th.
type mortal struct {
	left    atomic.Int64
	outputs bool
	die     func()
}

type mortalStream struct {
	grpc.ServerStream
	m *mortal
}

func (s mortalStream) SendMsg(m any) error {
	f, ok := m.(*rpc.BulkMessage)
	if !ok {
		return s.ServerStream.SendMsg(m)
	}
	r, ok := f.Message.(*headwaterv1.RunResponse)
	if ok && r.GetShardOpened() == nil && (!s.m.outputs || r.GetOutput() != nil) && s.m.left.Add(-1) == 0 {
		s.m.die()
		return status.Error(codes.Unavailable, "dead")
	}
	return s.ServerStream.SendMsg(m)
}

func (m *mortal) intercept(srv any, stream grpc.ServerStream, _ *grpc.StreamServerInfo, handle grpc.StreamHandler) error {
	return handle(srv, mortalStream{stream, m})
}

func TestDeathOfWorkersChangesNoBit(t *testing.T) {
	for _, kind := range []string{"attention", "layer", "gradients", "gradients of layers", "gradients of layers, outputs"} {
		t.Run(kind, func(t *testing.T) {
			path := variety(t)
			if kind == "layer" {
				path = filepath.Join("..", "test", "data", "smollm2", "layer.safetensors")
			}
			if lessons := map[string]func(*testing.T) (*maker, string){
				"gradients": lessons, "gradients of layers": layerLessons, "gradients of layers, outputs": layerLessons,
			}[kind]; lessons != nil {
				m, options := lessons(t)
				path = m.write(t, options)
			}
			_, want := startCluster(t, clusterOptions{workers: workers(1)}).run(t, client.SubmitOptions{Path: path})
			for _, after := range []int64{1, 3} {
				o := clusterOptions{workers: workers(4)}
				outputs := strings.HasSuffix(kind, "outputs")
				killers := []*mortal{{outputs: outputs}, {outputs: outputs}}
				for i, m := range killers {
					m.left.Store(after + int64(i))
					o.workers[1+i].stream = m.intercept
				}
				// Whoever dies is gone for good before the coordinator looks again.
				c := &cluster{view: &view{changed: make(chan struct{})}}
				for i, w := range o.workers {
					c.workers = append(c.workers, startWorker(t, fmt.Sprintf("w%d", i), w))
				}
				c.view.set(c.workers[0].Member, c.workers[1].Member, c.workers[2].Member, c.workers[3].Member)
				for i, m := range killers {
					m.die = func() {
						stopped := make(chan struct{})
						go func() { c.workers[1+i].server.Stop(); close(stopped) }()
						t.Cleanup(func() { <-stopped })
					}
				}
				c.start(t, o.config)
				job, got := c.run(t, client.SubmitOptions{Path: path})
				same(t, fmt.Sprintf("death after %d answers", after), want, got)
				if job.Report.WorkersLost == 0 {
					t.Errorf("no worker was lost")
				}
				c.stop()
			}
		})
	}
}

func TestDeathOfAllWorkersIsSaid(t *testing.T) {
	m := &mortal{}
	m.left.Store(2)
	o := clusterOptions{workers: []workerOptions{{stream: m.intercept}}, config: coordinator.Config{WorkerWait: 300 * time.Millisecond}}
	c := &cluster{view: &view{changed: make(chan struct{})}}
	c.workers = []*node{startWorker(t, "w0", o.workers[0])}
	c.view.set(c.workers[0].Member)
	m.die = func() {
		stopped := make(chan struct{})
		go func() { c.workers[0].server.Stop(); close(stopped) }()
		t.Cleanup(func() { <-stopped })
	}
	c.start(t, o.config)
	job, err := c.Submit(t.Context(), client.SubmitOptions{Path: variety(t)})
	if err != nil {
		t.Fatal(err)
	}
	job, err = c.Wait(t.Context(), job.ID, nil)
	var failed *client.JobError
	if !errors.As(err, &failed) || !strings.Contains(err.Error(), "no worker answers") || codes.Code(job.ErrorCode) != codes.Unavailable {
		t.Fatalf("job is %v, error %v", job, err)
	}
}

func TestKeysNameContents(t *testing.T) {
	c := startCluster(t, clusterOptions{workers: workers(2)})
	path := variety(t)
	first, result := c.run(t, client.SubmitOptions{Path: path, Key: "one"})
	sent := false
	again, err := c.Submit(t.Context(), client.SubmitOptions{Path: path, Key: "one", Sent: func(int64, int64) { sent = true }})
	if err != nil || again.ID != first.ID || sent {
		t.Fatalf("job %s sent %t, %v; want job %s unsent", again.ID, sent, err, first.ID)
	}
	_, err = c.Submit(t.Context(), client.SubmitOptions{Path: path, Key: "one", Overrides: []byte(`{"softcap":5}`)})
	if status.Code(unwrapAll(err)) != codes.AlreadyExists || strings.Contains(err.Error(), "\n") {
		t.Fatalf("another content under the key: %v", err)
	}
	for _, id := range []string{first.ID, "one", first.ContentHash} {
		same(t, id, result, c.fetch(t, id))
	}
	if _, err := c.Get(t.Context(), "nothing"); status.Code(unwrapAll(err)) != codes.NotFound {
		t.Errorf("unknown job: %v", err)
	}
}

func TestRefusedBeforeAByteIsSent(t *testing.T) {
	big := newMaker(1)
	big.f32("q", 1, 1, 2, 16)
	big.f32("k", 1, 4096, 2, 16)
	big.f32("v", 1, 4096, 2, 16)
	nan := newMaker(1)
	nan.f32("q", 1, 1, 2, 16)
	nan.f32("k", 1, 8, 2, 16)
	nan.f32("v", 1, 8, 2, 16)
	binary.LittleEndian.PutUint32(nan.tensors[2].Bytes[4*77:], math.Float32bits(float32(math.NaN())))
	small := func(spec string) string {
		m := newMaker(1)
		m.f32("q", 1, 1, 2, 16)
		m.f32("k", 1, 8, 2, 16)
		m.f32("v", 1, 8, 2, 16)
		return m.write(t, spec)
	}
	for _, test := range []struct {
		name    string
		workers []workerOptions
		path    string
		options client.SubmitOptions
		code    codes.Code
		says    string
		sends   bool
	}{
		{"no room", []workerOptions{{budget: 400_000}, {budget: 400_000}}, big.write(t, ""), client.SubmitOptions{}, codes.ResourceExhausted, "need 1048576 bytes, the cluster's 2 workers have 800000 together", false},
		{"no room for a share", []workerOptions{{budget: 2_000_000}, {budget: 400_000}}, big.write(t, ""), client.SubmitOptions{}, codes.ResourceExhausted, `worker "w1" would hold 524288 bytes`, false},
		{"no worker", nil, small(""), client.SubmitOptions{}, codes.Unavailable, "no worker has joined", false},
		{"unknown option", workers(1), small(`{"casual":true}`), client.SubmitOptions{}, codes.InvalidArgument, `"casual"`, false},
		{"unknown override", workers(1), small(``), client.SubmitOptions{Overrides: []byte(`{"x":1}`)}, codes.InvalidArgument, `"x"`, false},
		{"another protocol", []workerOptions{{}, {stream: nil, dialect: "2.0"}}, small(``), client.SubmitOptions{}, codes.FailedPrecondition, "protocol 2.0", false},
		{"NaN", workers(1), nan.write(t, ""), client.SubmitOptions{}, codes.InvalidArgument, `tensor "v"[77]`, true},
	} {
		t.Run(test.name, func(t *testing.T) {
			c := startCluster(t, clusterOptions{workers: test.workers})
			for i, w := range test.workers {
				if w.dialect != "" {
					c.workers[i].Member.Address = serve(t, foreign(w.dialect))
					c.view.set(c.workers[0].Member, c.workers[1].Member)
				}
			}
			sent := false
			test.options.Path, test.options.Sent = test.path, func(done, _ int64) { sent = sent || done > 0 }
			_, err := c.Submit(t.Context(), test.options)
			if status.Code(unwrapAll(err)) != test.code || !strings.Contains(fmt.Sprint(err), test.says) || strings.Contains(fmt.Sprint(err), "\n") || sent != test.sends {
				t.Fatalf("error %v, sent %t", err, sent)
			}
			if jobs, err := c.List(t.Context()); err != nil || len(jobs) != 0 {
				t.Fatalf("jobs %v are left, %v", jobs, err)
			}
		})
	}
}

// foreign is a server that refuses everyone as a peer of another protocol version does.
func foreign(version string) *grpc.Server {
	return grpc.NewServer(grpc.UnknownServiceHandler(func(_ any, stream grpc.ServerStream) error {
		_ = stream.SetHeader(metadata.Pairs(rpc.MetadataKey, version))
		return status.Errorf(codes.FailedPrecondition, "peer speaks headwater protocol %s, this side speaks protocol %s", rpc.Version, version)
	}))
}

// unwrapAll finds the error with a gRPC status in a chain.
func unwrapAll(err error) error {
	var coded interface{ GRPCStatus() *status.Status }
	if errors.As(err, &coded) {
		return coded.GRPCStatus().Err()
	}
	var typed *client.Error
	if errors.As(err, &typed) {
		return status.Error(typed.Code, typed.Error())
	}
	return err
}

// held is a worker stream that waits before it answers.
type held struct {
	arrived chan struct{}
	release chan struct{}
}

type heldStream struct {
	grpc.ServerStream
	h *held
}

func (s heldStream) SendMsg(m any) error {
	select {
	case s.h.arrived <- struct{}{}:
	default:
	}
	select {
	case <-s.h.release:
	case <-s.Context().Done():
	}
	return s.ServerStream.SendMsg(m)
}

func newHeld() *held { return &held{arrived: make(chan struct{}, 1), release: make(chan struct{})} }

func (h *held) intercept(srv any, stream grpc.ServerStream, _ *grpc.StreamServerInfo, handle grpc.StreamHandler) error {
	return handle(srv, heldStream{stream, h})
}

// two submits a file as two jobs, of which the first runs, held, and the second waits for its turn.
func (c *cluster) two(t *testing.T, path string, h *held) (ids []string) {
	t.Helper()
	for range 2 {
		job, err := c.Submit(t.Context(), client.SubmitOptions{Path: path})
		if err != nil {
			t.Fatal(err)
		}
		ids = append(ids, job.ID)
	}
	await.One(t, h.arrived, "the job's first answer, at the worker")
	return ids
}

func TestCancel(t *testing.T) {
	h := newHeld()
	c := startCluster(t, clusterOptions{workers: []workerOptions{{stream: h.intercept}}})
	path := variety(t)
	ids := c.two(t, path, h)
	for _, id := range []string{ids[1], ids[0], ids[0]} {
		job, err := c.Cancel(t.Context(), id)
		if err != nil || job.State != client.JobCancelled {
			t.Fatalf("job %v, %v", job, err)
		}
	}
	close(h.release)
	c.run(t, client.SubmitOptions{Path: path})
}

func TestDeadline(t *testing.T) {
	h := newHeld()
	c := startCluster(t, clusterOptions{workers: []workerOptions{{stream: h.intercept}}})
	job, err := c.Submit(t.Context(), client.SubmitOptions{Path: variety(t), Deadline: 50 * time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	job, err = c.Wait(t.Context(), job.ID, nil)
	if err == nil || codes.Code(job.ErrorCode) != codes.DeadlineExceeded || !strings.Contains(job.Error, "50ms") {
		t.Fatalf("job %v, %v", job, err)
	}
	close(h.release)
}

func TestJobsOutliveTheCoordinator(t *testing.T) {
	h := newHeld()
	data := t.TempDir()
	c := startCluster(t, clusterOptions{workers: []workerOptions{{stream: h.intercept}}, config: coordinator.Config{DataDir: data}})
	path := variety(t)
	_, want := startCluster(t, clusterOptions{workers: workers(2)}).run(t, client.SubmitOptions{Path: path})
	job, err := c.Submit(t.Context(), client.SubmitOptions{Path: path, Key: "k"})
	if err != nil {
		t.Fatal(err)
	}
	await.One(t, h.arrived, "the job's first answer, at the worker")
	c.stop() // in the middle of the job
	if err := os.WriteFile(filepath.Join(data, "jobs", "left-over"), []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	close(h.release)
	c.start(t, coordinator.Config{DataDir: data})
	got, err := c.Wait(t.Context(), "k", nil)
	if err != nil || got.ID != job.ID {
		t.Fatalf("job %v, %v", got, err)
	}
	same(t, "after the restart", want, c.fetch(t, job.ID))
	c.stop()
	c.start(t, coordinator.Config{DataDir: data})
	same(t, "after another restart", want, c.fetch(t, job.ID))
	// The job's own file is gone, its result and its record are there, and what nobody knows is left alone.
	files, err := filepath.Glob(filepath.Join(data, "jobs", "*"))
	if err != nil || len(files) != 3 || filepath.Ext(files[0]) != ".job" || !strings.HasSuffix(files[1], ".result.safetensors") || filepath.Base(files[2]) != "left-over" {
		t.Errorf("files %q are in the spool", files)
	}
}

func TestTwoCoordinatorsDoNotShareAFolder(t *testing.T) {
	data := t.TempDir()
	c := startCluster(t, clusterOptions{config: coordinator.Config{DataDir: data}})
	_, err := coordinator.Open(coordinator.Config{Name: "second", DataDir: data, View: c.view})
	if err == nil || !strings.Contains(err.Error(), "in use") {
		t.Fatal(err)
	}
}

func TestRetention(t *testing.T) {
	now := time.Now()
	var clock atomic.Int64
	config := coordinator.Config{DataDir: t.TempDir(), KeepJobs: 2, KeepFor: time.Hour, Now: func() time.Time { return now.Add(time.Duration(clock.Load())) }}
	c := startCluster(t, clusterOptions{workers: workers(1), config: config})
	path := variety(t)
	var ids []string
	for range 3 {
		job, _ := c.run(t, client.SubmitOptions{Path: path})
		ids = append(ids, job.ID)
		clock.Add(int64(time.Minute))
	}
	jobs := func() (kept []string) {
		list, err := c.List(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		for _, j := range list {
			kept = append(kept, j.ID)
		}
		return kept
	}
	c.stop() // what follows the end of the last job has happened
	c.start(t, config)
	if kept := jobs(); len(kept) != 2 || kept[0] != ids[2] || kept[1] != ids[1] {
		t.Fatalf("kept %q of %q", kept, ids)
	}
	clock.Add(int64(2 * time.Hour))
	c.stop()
	c.start(t, config)
	if kept := jobs(); len(kept) != 0 {
		t.Fatalf("kept %q beyond their time", kept)
	}
	files, err := filepath.Glob(filepath.Join(config.DataDir, "jobs", "*"))
	if err != nil || len(files) != 0 {
		t.Errorf("files %q are left", files)
	}
}

// TestAClockThatGoesBack makes no later job look older: the newest is kept, also after a start, and none ends before it began.
func TestAClockThatGoesBack(t *testing.T) {
	now := time.Now()
	var clock atomic.Int64
	h := newHeld()
	config := coordinator.Config{DataDir: t.TempDir(), KeepJobs: 1, Now: func() time.Time { return now.Add(time.Duration(clock.Load())) }}
	c := startCluster(t, clusterOptions{workers: []workerOptions{{stream: h.intercept}}, config: config})
	close(h.release)
	path := variety(t)
	first, _ := c.run(t, client.SubmitOptions{Path: path})
	for range 3 {
		clock.Add(-int64(time.Hour))
		second, _ := c.run(t, client.SubmitOptions{Path: path})
		if second.ID <= first.ID {
			t.Errorf("job %s came after %s", second.ID, first.ID)
		}
		first = second
		c.stop() // what follows the end of the last job has happened
		c.start(t, config)
		if kept, err := c.List(t.Context()); err != nil || len(kept) != 1 || kept[0].ID != first.ID {
			t.Fatalf("kept is %v, and %s is the newest: %v", kept, first.ID, err)
		}
	}
	slow := newHeld()
	c = startCluster(t, clusterOptions{workers: []workerOptions{{stream: slow.intercept}}, config: coordinator.Config{DataDir: t.TempDir(), Now: config.Now}})
	job, err := c.Submit(t.Context(), client.SubmitOptions{Path: path})
	if err != nil {
		t.Fatal(err)
	}
	await.One(t, slow.arrived, "the job's first answer, at the worker")
	clock.Add(-int64(time.Hour))
	close(slow.release)
	if job, err = c.Wait(t.Context(), job.ID, nil); err != nil || job.Ended.Before(job.Started) {
		t.Errorf("it began at %v and ended at %v: %v", job.Started, job.Ended, err)
	}
}

// TestResultsOfTheSameJobAreTheSameFile, from run to run and on any number of workers.
func TestResultsOfTheSameJobAreTheSameFile(t *testing.T) {
	first := ""
	for _, n := range []int{1, 3} {
		c := startCluster(t, clusterOptions{workers: workers(n)})
		for range 2 {
			job, _ := c.run(t, client.SubmitOptions{Path: variety(t)})
			if first == "" {
				first = job.ResultSHA256
			}
			if got := job.ResultSHA256; got != first || got == "" {
				t.Errorf("on %d workers the result's SHA-256 is %s, was %s", n, got, first)
			}
		}
	}
}

func TestResultSaysWhereItComesFrom(t *testing.T) {
	c := startCluster(t, clusterOptions{workers: workers(3)})
	job, f := c.run(t, client.SubmitOptions{Path: variety(t), Codec: client.BF16})
	var m struct {
		ContentHash string           `json:"content_hash"`
		Codec       string           `json:"codec"`
		Problems    []map[string]any `json:"problems"`
		Options     map[string]any   `json:"options"`
	}
	if err := json.Unmarshal([]byte(f.Metadata()["headwater"]), &m); err != nil {
		t.Fatal(err)
	}
	if m.ContentHash != job.ContentHash || m.Codec != "bf16" || len(m.Problems) != 4 || len(m.Options) == 0 {
		t.Errorf("metadata %+v", m)
	}
	if len(job.Report.Workers) != 3 || len(job.Report.Plan) == 0 {
		t.Errorf("the job's report is %v", job.Report)
	}
	_, exact := c.run(t, client.SubmitOptions{Path: variety(t)})
	a, b := read(t, exact, "seqs.0.context"), read(t, f, "seqs.0.context")
	for i := 0; i < len(a); i += 4 {
		x, y := math.Float32frombits(binary.LittleEndian.Uint32(a[i:])), math.Float32frombits(binary.LittleEndian.Uint32(b[i:]))
		if math.Abs(float64(x-y)) > math.Abs(float64(x))/256+1e-38 {
			t.Fatalf("element %d is %v in bf16, %v exactly", i/4, y, x)
		}
	}
}

func TestSubmissionThatLies(t *testing.T) {
	c := startCluster(t, clusterOptions{workers: workers(1)})
	path := variety(t)
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	_, err = c.Submit(t.Context(), client.SubmitOptions{Reader: &changing{data: data}, Size: int64(len(data)), Name: "job.safetensors", Key: "key"})
	if status.Code(unwrapAll(err)) != codes.InvalidArgument || !strings.Contains(err.Error(), "SHA-256") {
		t.Fatal(err)
	}

	conn, err := grpc.NewClient("passthrough:///"+c.Address(), rpc.DialOptions()...)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	header, err := tensor.HeaderBytes(bytes.NewReader(data), int64(len(data)), 1<<20)
	if err != nil {
		t.Fatal(err)
	}
	sha := sha256.Sum256(data)
	begin := func(key string, sum []byte) *headwaterv1.SubmitRequest {
		return &headwaterv1.SubmitRequest{Request: &headwaterv1.SubmitRequest_Begin{Begin: &headwaterv1.SubmitBegin{
			Key: key, Sha256: sum, Name: "job.safetensors", SizeBytes: uint64(len(data)), Header: header, Codec: headwaterv1.ContextCodec_CONTEXT_CODEC_EXACT,
		}}}
	}
	piece := func(b []byte) *headwaterv1.SubmitRequest {
		return &headwaterv1.SubmitRequest{Request: &headwaterv1.SubmitRequest_Data{Data: b}}
	}
	end := func(hash uint64) *headwaterv1.SubmitRequest {
		return &headwaterv1.SubmitRequest{Request: &headwaterv1.SubmitRequest_End{End: &headwaterv1.SubmitEnd{Hash: hash}}}
	}
	flipped := bytes.Clone(data)
	flipped[len(data)-1] ^= 1
	sum := xxh3.Hash(data)
	for _, lie := range []struct {
		name, want string // "" is taken
		messages   []*headwaterv1.SubmitRequest
	}{
		{"SHA-256 announced", "", []*headwaterv1.SubmitRequest{begin("a", sha[:]), piece(data[:100]), piece(data[100:])}},
		{"sum at the end", "", []*headwaterv1.SubmitRequest{begin("", nil), piece(data[:100]), piece(data[100:]), end(sum)}},
		{"a key without SHA-256", "a job with a key is announced with its file's SHA-256", []*headwaterv1.SubmitRequest{begin("b", nil)}},
		{"short SHA-256", "the file's SHA-256 has 31 bytes", []*headwaterv1.SubmitRequest{begin("", sha[1:])}},
		{"other bytes than summed", "another sum than was sent", []*headwaterv1.SubmitRequest{begin("", nil), piece(flipped), end(sum)}},
		{"no sum", "neither the file's SHA-256 was announced nor its sum sent", []*headwaterv1.SubmitRequest{begin("", nil), piece(data)}},
		{"both sums", "its SHA-256 before", []*headwaterv1.SubmitRequest{begin("", sha[:]), piece(data), end(sum)}},
		{"more after the end", "not the last message", []*headwaterv1.SubmitRequest{begin("", nil), piece(data[1:]), end(sum), piece(data[:1])}},
		{"two ends", "not the last message", []*headwaterv1.SubmitRequest{begin("", nil), piece(data), end(sum), end(sum)}},
		{"end too early", "100 of the announced", []*headwaterv1.SubmitRequest{begin("", nil), piece(data[:100]), end(sum)}},
	} {
		stream, err := headwaterv1.NewCoordinatorServiceClient(conn).Submit(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range lie.messages {
			if err := stream.Send(m); err != nil && !errors.Is(err, io.EOF) {
				t.Fatal(err)
			}
		}
		if err := stream.CloseSend(); err != nil {
			t.Fatal(err)
		}
		var job *headwaterv1.Job
		for {
			var resp *headwaterv1.SubmitResponse
			if resp, err = stream.Recv(); err != nil {
				break
			}
			job = resp.GetJob()
		}
		switch {
		case lie.want == "" && (!errors.Is(err, io.EOF) || job.GetContentHash() == ""):
			t.Errorf("%s: %v, %v", lie.name, job, err)
		case lie.want != "" && (status.Code(err) != codes.InvalidArgument || !strings.Contains(err.Error(), lie.want)):
			t.Errorf("%s: %v", lie.name, err)
		}
	}
	// However a file was announced, the same content has the same hash.
	jobs, err := c.List(t.Context())
	if err != nil || len(jobs) != 2 || jobs[0].ContentHash != jobs[1].ContentHash {
		t.Errorf("jobs %v, %v", jobs, err)
	}
}

// changing is a file that changes between two reads.
type changing struct {
	data  []byte
	reads int
}

func (c *changing) ReadAt(p []byte, off int64) (int, error) {
	c.reads++
	n := copy(p, c.data[off:])
	if off+int64(n) == int64(len(c.data)) && n > 100 {
		p[n-1] ^= byte(c.reads)
	}
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}
