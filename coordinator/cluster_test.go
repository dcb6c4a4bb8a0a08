package coordinator_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/uuid"
	"go.uber.org/goleak"
	"google.golang.org/grpc"
	"google.golang.org/grpc/stats"
	"google.golang.org/protobuf/proto"

	"headwater.example/client"
	"headwater.example/coordinator"
	"headwater.example/internal/membership"
	"headwater.example/internal/rpc"
	headwaterv1 "headwater.example/proto/headwater/v1"
	"headwater.example/tensor"
	"headwater.example/worker"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// view is a membership that the test changes.
type view struct {
	mu      sync.Mutex
	members []membership.Member
	changed chan struct{}

	outsiders []membership.Outsider
}

func (v *view) Members() []membership.Member {
	v.mu.Lock()
	defer v.mu.Unlock()
	return slices.Clone(v.members)
}

func (v *view) Changed() <-chan struct{} {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.changed
}

func (v *view) Close(context.Context) error { return nil }

func (v *view) Outsiders() []membership.Outsider {
	v.mu.Lock()
	defer v.mu.Unlock()
	return slices.Clone(v.outsiders)
}

func (v *view) set(members ...membership.Member) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.members = members
	close(v.changed)
	v.changed = make(chan struct{})
}

// node is a worker with its server.
type node struct {
	membership.Member
	server *grpc.Server
}

type workerOptions struct {
	budget  int64
	threads int
	weight  int
	// stream and unary, where given, stand between the worker and its peer.
	stream grpc.StreamServerInterceptor
	unary  grpc.UnaryServerInterceptor
	// stats, where given, is told of the worker's connections.
	stats stats.Handler
	// members, where given, are those of the cluster that it knows.
	members func() []membership.Member
	// dialect, where given, is the protocol version that it answers with.
	dialect string
	// matrix, where given, is whether it says that it has a matrix unit. It computes the same either way.
	matrix *atomic.Bool
}

func startWorker(t *testing.T, name string, o workerOptions) *node {
	t.Helper()
	if o.budget == 0 {
		o.budget = 1 << 28
	}
	w, err := worker.New(worker.Config{Name: name, Boot: uuid.New(), Version: "test", Weight: max(o.weight, 1), Budget: o.budget, Threads: max(o.threads, 1), Members: o.members})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(w.Close)
	options := rpc.ServerOptions()
	if o.stream != nil {
		options = append(options, grpc.ChainStreamInterceptor(o.stream))
	}
	if o.unary != nil {
		options = append(options, grpc.ChainUnaryInterceptor(o.unary))
	}
	if o.stats != nil {
		options = append(options, grpc.StatsHandler(o.stats))
	}
	if o.matrix != nil {
		options = append(options, grpc.ChainUnaryInterceptor(func(ctx context.Context, req any, _ *grpc.UnaryServerInfo, handle grpc.UnaryHandler) (any, error) {
			resp, err := handle(ctx, req)
			if d, ok := resp.(*headwaterv1.DescribeResponse); ok && err == nil {
				d.MatrixUnit = proto.Bool(o.matrix.Load())
			}
			return resp, err
		}))
	}
	s := grpc.NewServer(options...)
	w.Register(s)
	address := serve(t, s)
	m := membership.Member{Name: name, Role: membership.RoleWorker, Address: address, Weight: max(o.weight, 1)}
	return &node{Member: m, server: s}
}

// serve serves on loopback until the test ends, and returns the address.
func serve(t *testing.T, s *grpc.Server) string {
	t.Helper()
	lis, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = s.Serve(lis) // ends with Stop
	}()
	t.Cleanup(func() {
		s.Stop()
		<-done
	})
	return lis.Addr().String()
}

// cluster is a coordinator, its workers and a client.
type cluster struct {
	*client.Client
	coordinator *coordinator.Coordinator
	view        *view
	workers     []*node
	stop        func()
}

type clusterOptions struct {
	workers []workerOptions
	config  coordinator.Config
}

func startCluster(t *testing.T, o clusterOptions) *cluster {
	t.Helper()
	c := &cluster{view: &view{changed: make(chan struct{})}}
	var members []membership.Member
	for i, w := range o.workers {
		if w.members == nil {
			w.members = c.view.Members
		}
		n := startWorker(t, fmt.Sprintf("w%d", i), w)
		c.workers = append(c.workers, n)
		members = append(members, n.Member)
	}
	c.view.set(members...)
	c.start(t, o.config)
	return c
}

// start starts the coordinator; stop ends it in good order.
func (c *cluster) start(t *testing.T, config coordinator.Config) {
	t.Helper()
	config.Name, config.Version, config.View = "coord", "test", c.view
	if config.DataDir == "" {
		config.DataDir = t.TempDir()
	}
	if config.WorkerWait == 0 {
		config.WorkerWait = 5 * time.Second
	}
	co, err := coordinator.Open(config)
	if err != nil {
		t.Fatal(err)
	}
	c.coordinator = co
	s := grpc.NewServer(co.ServerOptions()...)
	co.Register(rpc.Registrar(s))
	ctx, cancel := context.WithCancel(context.Background())
	ran := make(chan error, 1)
	go func() { ran <- co.Run(ctx) }()
	address := serve(t, s)
	if c.Client, err = client.Dial(address); err != nil {
		t.Fatal(err)
	}
	conn := c.Client
	c.stop = sync.OnceFunc(func() {
		cancel()
		if err := <-ran; err != nil {
			t.Errorf("run: %v", err)
		}
		_ = conn.Close()
		s.Stop()
		if err := co.Close(); err != nil {
			t.Errorf("close: %v", err)
		}
	})
	t.Cleanup(c.stop)
}

// run submits a job, waits for its end and reads its result.
func (c *cluster) run(t *testing.T, o client.SubmitOptions) (*client.Job, *tensor.File) {
	t.Helper()
	job, err := c.Submit(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	if job, err = c.Wait(t.Context(), job.ID, nil); err != nil {
		t.Fatal(err)
	}
	return job, c.fetch(t, job.ID)
}

func (c *cluster) fetch(t *testing.T, id string) *tensor.File {
	t.Helper()
	path := filepath.Join(t.TempDir(), "result.safetensors")
	if _, err := c.Download(t.Context(), id, path, nil); err != nil {
		t.Fatal(err)
	}
	f, err := tensor.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = f.Close() })
	return f
}

func openTensors(t *testing.T, path string) (*tensor.File, error) {
	t.Helper()
	f, err := tensor.Open(path)
	if err == nil {
		t.Cleanup(func() { _ = f.Close() })
	}
	return f, err
}

// read returns a tensor's bytes.
func read(t *testing.T, f *tensor.File, name string) []byte {
	t.Helper()
	info, ok := f.Lookup(name)
	if !ok {
		t.Fatalf("%s has no tensor %q", f.Path(), name)
	}
	p := make([]byte, info.Bytes())
	if err := f.ReadAt(p, name, 0); err != nil {
		t.Fatal(err)
	}
	return p
}

// same fails unless two results hold the same tensors, bit for bit.
func same(t *testing.T, what string, a, b *tensor.File) {
	t.Helper()
	if !slices.Equal(a.Names(), b.Names()) {
		t.Fatalf("%s: tensors %q, want %q", what, b.Names(), a.Names())
	}
	for _, name := range a.Names() {
		if !bytes.Equal(read(t, a, name), read(t, b, name)) {
			t.Errorf("%s: tensor %q differs", what, name)
		}
	}
}

// maker makes job files of random tensors.
type maker struct {
	rng     *rand.Rand
	tensors []tensor.Data
}

func newMaker(seed uint64) *maker { return &maker{rng: rand.New(rand.NewPCG(seed, 1))} }

func (m *maker) f32(name string, spread float64, shape ...int) []float32 {
	info := tensor.Info{Name: name, DType: tensor.F32, Shape: shape}
	x := make([]float32, info.Elements())
	for i := range x {
		x[i] = float32(m.rng.NormFloat64() * spread)
	}
	m.put(info, x)
	return x
}

// put adds a tensor in the type of info.
func (m *maker) put(info tensor.Info, x []float32) {
	p := make([]byte, info.Bytes())
	if info.DType == tensor.F32 {
		for i, v := range x {
			binary.LittleEndian.PutUint32(p[4*i:], math.Float32bits(v))
		}
	} else if err := tensor.Narrow(p, x, info.DType); err != nil {
		panic(err)
	}
	m.tensors = append(m.tensors, tensor.Data{Info: info, Bytes: p})
}

func (m *maker) as(dt tensor.DType, name string, shape ...int) {
	info := tensor.Info{Name: name, DType: dt, Shape: shape}
	x := make([]float32, info.Elements())
	for i := range x {
		x[i] = float32(m.rng.NormFloat64())
	}
	m.put(info, x)
}

// i8 adds bytes with their scales [positions, heads].
func (m *maker) i8(name string, shape ...int) {
	info := tensor.Info{Name: name, DType: tensor.I8, Shape: shape}
	p := make([]byte, info.Bytes())
	for i := range p {
		p[i] = byte(int8(m.rng.IntN(255) - 127))
	}
	m.tensors = append(m.tensors, tensor.Data{Info: info, Bytes: p})
	m.f32(name+"_scale", 0.02, shape[:2]...)
}

func (m *maker) mask(name string, shape ...int) {
	info := tensor.Info{Name: name, DType: tensor.Bool, Shape: shape}
	p := make([]byte, info.Bytes())
	for i := range p {
		p[i] = byte(m.rng.IntN(2))
	}
	m.tensors = append(m.tensors, tensor.Data{Info: info, Bytes: p})
}

// write writes the job file and returns its path.
func (m *maker) write(t *testing.T, options string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "job.safetensors")
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(tensor.WriteSafetensors(f, m.tensors, map[string]string{"headwater": options}), f.Close()); err != nil {
		t.Fatal(err)
	}
	return path
}

// variety is a job with every storage type, masks and biases for one and for all heads, and options that differ.
func variety(t *testing.T) string {
	t.Helper()
	m := newMaker(7)
	m.f32("seqs.0.q", 1, 150, 12, 24)
	m.f32("seqs.0.k", 1, 200, 4, 24)
	m.f32("seqs.0.v", 1, 200, 4, 16)
	m.mask("seqs.0.mask", 1, 150, 200)
	m.f32("seqs.1.q", 1, 40, 6, 24)
	m.as(tensor.F16, "seqs.1.k", 130, 3, 24)
	m.as(tensor.F16, "seqs.1.v", 130, 3, 40)
	m.f32("seqs.1.bias", 1, 6, 40, 130)
	m.f32("seqs.2.q", 1, 3, 5, 7)
	m.as(tensor.BF16, "seqs.2.k", 70, 5, 7)
	m.as(tensor.BF16, "seqs.2.v", 70, 5, 7)
	m.mask("seqs.2.mask", 5, 3, 70)
	m.f32("seqs.3.q", 1, 9, 8, 32)
	m.i8("seqs.3.k", 2200, 1, 32)
	m.i8("seqs.3.v", 2200, 1, 32)
	return m.write(t, `{"problems":{
		"seqs.0.":{"causal":true,"sinks":[1,2,3,4,5,6,7,8,9,10,11,12]},
		"seqs.1.":{"window_left":20,"softcap":30,"kv_len":128},
		"seqs.2.":{"alibi_slopes":[0.5,0.25,0.125,0.0625,0.03125]}}}`)
}
