package jobs

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"math/rand/v2"
	"net"
	"strings"
	"testing"

	"go.uber.org/goleak"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/mem"
	"google.golang.org/grpc/status"
	"google.golang.org/grpc/test/bufconn"
	"google.golang.org/protobuf/proto"

	"headwater.example/attention"
	"headwater.example/internal/contextframe"
	"headwater.example/internal/kvcache"
	"headwater.example/internal/rpc"
	headwaterv1 "headwater.example/proto/headwater/v1"
	"headwater.example/worker/internal/machine"
	"headwater.example/worker/internal/workertest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// place is the trade on a machine, as a worker's server has it.
type place struct {
	headwaterv1.UnimplementedWorkerServiceServer
	*Service
}

// newPlace returns a place that ends with the test.
func newPlace(t interface {
	workertest.Fataler
	Cleanup(cleanup func())
}, budget int64, threads int,
) *place {
	t.Helper()
	m := machine.New(machine.Config{Name: "w1", Budget: budget, Threads: threads})
	t.Cleanup(m.Close)
	return &place{Service: New(m)}
}

// Run is the trade's.
func (p *place) Run(stream runStream) error { return p.Service.Run(stream) }

// serve puts a place on a connection.
func serve(t *testing.T, p *place) headwaterv1.WorkerServiceClient {
	t.Helper()
	listener := bufconn.Listen(1 << 16)
	server := grpc.NewServer(p.m.Flight.ServerOptions()...)
	headwaterv1.RegisterWorkerServiceServer(rpc.Registrar(server), p)
	done := make(chan struct{})
	go func() { defer close(done); _ = server.Serve(listener) }()
	opts := append(rpc.DialOptions(), grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return listener.DialContext(ctx) }))
	conn, err := grpc.NewClient("passthrough:///memory", opts...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close(); server.Stop(); <-done })
	return headwaterv1.NewWorkerServiceClient(conn)
}

// memoryStream is a Run stream without a connection. Like a server's it is cancelled when the call returns.
type memoryStream struct {
	grpc.ServerStream
	ctx      context.Context
	requests chan *headwaterv1.RunRequest // closed at the end of the stream
	answers  []*headwaterv1.RunResponse
}

func (s *memoryStream) Context() context.Context { return s.ctx }

func (s *memoryStream) server() runStream {
	return &grpc.GenericServerStream[headwaterv1.RunRequest, headwaterv1.RunResponse]{ServerStream: s}
}

func (s *memoryStream) RecvMsg(to any) error {
	select {
	case m, ok := <-s.requests:
		if !ok {
			return io.EOF
		}
		b, err := proto.Marshal(m)
		if err != nil {
			return err
		}
		return rpc.MessageCodec{}.Unmarshal(mem.BufferSlice{mem.SliceBuffer(b)}, to)
	case <-s.ctx.Done():
		return status.FromContextError(s.ctx.Err()).Err()
	}
}

func (s *memoryStream) SendMsg(m any) error {
	b, err := rpc.MessageCodec{}.Marshal(m)
	if err != nil {
		return err
	}
	defer b.Free()
	answer := &headwaterv1.RunResponse{}
	s.answers = append(s.answers, answer)
	return proto.Unmarshal(b.Materialize(), answer)
}

// play runs messages on a worker; left open, the stream does not end after them. It checks that the worker keeps nothing,
// and that an error has a code that says something, and one line.
func play(t workertest.Fataler, p *place, open bool, messages ...*headwaterv1.RunRequest) ([]*headwaterv1.RunResponse, error) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	s := &memoryStream{ctx: ctx, requests: make(chan *headwaterv1.RunRequest, len(messages))}
	for _, m := range messages {
		s.requests <- m
	}
	if !open {
		close(s.requests)
	}
	err := p.Run(s.server())
	if used := p.m.Budget.Used(); used != 0 {
		t.Fatalf("%d bytes are in use after the stream (%v)", used, err)
	}
	switch code := status.Code(err); code {
	case codes.OK, codes.InvalidArgument, codes.FailedPrecondition, codes.ResourceExhausted, codes.OutOfRange, codes.DataLoss:
	default:
		t.Fatalf("code %s says nothing: %v", code, err)
	}
	if text := status.Convert(err).Message(); strings.ContainsAny(text, "\n") || strings.Contains(text, "rpc error") {
		t.Fatalf("an error that does not read well: %v", err)
	}
	return s.answers, err
}

// The messages, wrapped.
func open(m *headwaterv1.Open) *headwaterv1.RunRequest {
	return &headwaterv1.RunRequest{Request: &headwaterv1.RunRequest_Open{Open: m}}
}

func shardOpen(m *headwaterv1.ShardOpen) *headwaterv1.RunRequest {
	return &headwaterv1.RunRequest{Request: &headwaterv1.RunRequest_ShardOpen{ShardOpen: m}}
}

func keyValues(m *headwaterv1.KeyValueBlock) *headwaterv1.RunRequest {
	return &headwaterv1.RunRequest{Request: &headwaterv1.RunRequest_KeyValues{KeyValues: m}}
}

func weightBlock(m *headwaterv1.WeightBlock) *headwaterv1.RunRequest {
	return &headwaterv1.RunRequest{Request: &headwaterv1.RunRequest_Weights{Weights: m}}
}

func hidden(m *headwaterv1.HiddenBlock) *headwaterv1.RunRequest {
	return &headwaterv1.RunRequest{Request: &headwaterv1.RunRequest_Hidden{Hidden: m}}
}

func shardSeal(m *headwaterv1.ShardSeal) *headwaterv1.RunRequest {
	return &headwaterv1.RunRequest{Request: &headwaterv1.RunRequest_ShardSeal{ShardSeal: m}}
}

func queryBlock(m *headwaterv1.QueryBlock) *headwaterv1.RunRequest {
	return &headwaterv1.RunRequest{Request: &headwaterv1.RunRequest_Query{Query: m}}
}

func operandBlock(m *headwaterv1.OperandBlock) *headwaterv1.RunRequest {
	return &headwaterv1.RunRequest{Request: &headwaterv1.RunRequest_Operand{Operand: m}}
}

func shardClose(m *headwaterv1.ShardClose) *headwaterv1.RunRequest {
	return &headwaterv1.RunRequest{Request: &headwaterv1.RunRequest_ShardClose{ShardClose: m}}
}

func outputBlock(m *headwaterv1.OutputBlock) *headwaterv1.RunRequest {
	return &headwaterv1.RunRequest{Request: &headwaterv1.RunRequest_Output{Output: m}}
}

// job is one problem with its data, head by head, and what it is to give.
type job struct {
	problem *headwaterv1.Problem
	layout  attention.Layout
	opts    attention.Options
	size    int              // query heads of a group
	rows    []attention.Rows // of each group, [kv_len]
	q       [][]float32      // of each group, [tokens, size, head_dim]
	mask    []byte           // [1 or heads, tokens, kv_len]
	bias    []float32        // alike

	context, lse [][]float32 // of each group, [tokens, size, v_dim] and [tokens, size]
}

// newJob fills a problem with random data, and attends over it directly, on pages of its own.
func newJob(t workertest.Fataler, rng *rand.Rand, p *headwaterv1.Problem, maskHeads, biasHeads int) *job {
	t.Helper()
	dt := workertest.StorageOf(p.Storage)
	layout, err := attention.NewLayout(dt, int(p.HeadDim), int(p.VDim))
	if err != nil {
		t.Fatal(err)
	}
	j := &job{problem: p, layout: layout, size: int(p.NHeads / p.NKvHeads), opts: attention.Options{
		Causal: p.Causal, WindowLeft: p.WindowLeft, WindowRight: p.WindowRight, Scale: p.Scale, Softcap: p.Softcap, AlibiSlopes: p.AlibiSlopes, Sinks: p.Sinks,
	}}
	n, tokens := int(p.KvLen), int(p.Tokens)
	for range maskHeads * tokens * n {
		j.mask = append(j.mask, byte(rng.IntN(3)))
	}
	for range biasHeads * tokens * n {
		b := float32(rng.NormFloat64())
		if rng.IntN(4) == 0 {
			b = float32(math.Inf(-1))
		}
		j.bias = append(j.bias, b)
	}
	for range int(p.NKvHeads) {
		var rows attention.Rows
		rows.K, rows.KScale = workertest.Store(t, workertest.Normals(rng, n*int(p.HeadDim)), n, dt)
		rows.V, rows.VScale = workertest.Store(t, workertest.Normals(rng, n*int(p.VDim)), n, dt)
		j.rows = append(j.rows, rows)
		j.q = append(j.q, workertest.Normals(rng, tokens*j.size*int(p.HeadDim)))
	}
	j.attend(t, maskHeads, biasHeads)
	return j
}

// attend computes what the job is to give, all tokens of a group at once.
func (j *job) attend(t workertest.Fataler, maskHeads, biasHeads int) {
	t.Helper()
	p := j.problem
	n, tokens := int(p.KvLen), int(p.Tokens)
	for g := range j.rows {
		q := attention.Query{Q: j.q[g], Tokens: tokens, Heads: j.size, FirstHead: g * j.size, Offset: p.Offset}
		if maskHeads > 0 && n > 0 {
			q.Mask, q.MaskHeads = j.mask, 1
			if maskHeads > 1 {
				q.Mask, q.MaskHeads = part(j.mask, g, len(j.rows)), j.size
			}
		}
		if biasHeads > 0 && n > 0 {
			q.Bias, q.BiasHeads = j.bias, 1
			if biasHeads > 1 {
				q.Bias, q.BiasHeads = part(j.bias, g, len(j.rows)), j.size
			}
		}
		out := attention.Output{Context: make([]float32, tokens*j.size*int(p.VDim)), LSE: make([]float32, tokens*j.size)}
		if err := attention.Attend(context.Background(), 1, j.kv(t, g), q, j.opts, out); err != nil {
			t.Fatal(err)
		}
		j.context, j.lse = append(j.context, out.Context), append(j.lse, out.LSE)
	}
}

// kv is the keys and values of a group on pages of their own.
func (j *job) kv(t workertest.Fataler, g int) attention.KV {
	t.Helper()
	kv := attention.KV{Layout: j.layout, Len: int(j.problem.KvLen)}
	for from := 0; from < kv.Len; from += attention.PageLen {
		to := min(from+attention.PageLen, kv.Len)
		page := make([]byte, j.layout.PageBytes())
		if err := j.layout.Write(page, 0, to-from, j.cut(j.rows[g], from, to)); err != nil {
			t.Fatal(err)
		}
		kv.Pages = append(kv.Pages, page)
	}
	return kv
}

func (j *job) cut(rows attention.Rows, from, to int) attention.Rows {
	return workertest.Cut(rows, j.layout, from, to)
}

// receipt is what a group's shard is to hold.
func (j *job) receipt(t workertest.Fataler, g int) *headwaterv1.Receipt {
	t.Helper()
	var h kvcache.Hasher
	if n := int(j.problem.KvLen); n > 0 {
		if err := h.Update(j.rows[g], n, j.layout); err != nil {
			t.Fatal(err)
		}
	}
	return &headwaterv1.Receipt{Length: h.Receipt().Length, Hash: h.Receipt().Hash}
}

// block is positions [from, to) of some groups.
func (j *job) block(index uint32, groups []uint32, from, to int) *headwaterv1.KeyValueBlock {
	m := &headwaterv1.KeyValueBlock{Problem: index, Groups: groups, Start: uint64(from), Count: uint32(to - from)}
	for _, g := range groups {
		rows := j.cut(j.rows[g], from, to)
		m.K, m.V = append(m.K, rows.K...), append(m.V, rows.V...)
		m.KScale, m.VScale = append(m.KScale, workertest.LittleEndian(rows.KScale)...), append(m.VScale, workertest.LittleEndian(rows.VScale)...)
	}
	return m
}

// query is tokens [from, to) of some groups, with its operands in pieces of at most the given bytes.
func (j *job) query(index, block uint32, groups []uint32, from, to, piece int) []*headwaterv1.RunRequest {
	m := &headwaterv1.QueryBlock{Problem: index, Block: block, Groups: groups, Start: uint64(from), Count: uint32(to - from)}
	row := j.size * int(j.problem.HeadDim)
	for _, g := range groups {
		m.Q = append(m.Q, workertest.LittleEndian(j.q[g][from*row:to*row])...)
	}
	mask, maskHeads := pickOperand(j, j.mask, groups, from, to)
	values, biasHeads := pickOperand(j, j.bias, groups, from, to)
	bias := workertest.LittleEndian(values)
	m.MaskBytes, m.MaskHeads, m.BiasBytes, m.BiasHeads = uint64(len(mask)), uint32(maskHeads), uint64(len(bias)), uint32(biasHeads)
	out := []*headwaterv1.RunRequest{queryBlock(m)}
	piece = max(piece/4, 1) * 4
	for at := 0; at < max(len(mask), len(bias)); at += piece {
		if at < len(bias) {
			out = append(out, operandBlock(&headwaterv1.OperandBlock{Operand: headwaterv1.Operand_OPERAND_BIAS, Offset: uint64(at), Data: bias[at:min(at+piece, len(bias))]}))
		}
		if at < len(mask) {
			out = append(out, operandBlock(&headwaterv1.OperandBlock{Operand: headwaterv1.Operand_OPERAND_MASK, Offset: uint64(at), Data: mask[at:min(at+piece, len(mask))]}))
		}
	}
	return out
}

// pickOperand returns what tokens [from, to) of some groups need of a mask or a bias.
func pickOperand[E any](j *job, x []E, groups []uint32, from, to int) (out []E, heads int) {
	tokens, n := int(j.problem.Tokens), int(j.problem.KvLen)
	if len(x) == 0 {
		return nil, 0
	}
	if len(x) == tokens*n {
		return x[from*n : to*n], 1
	}
	for _, g := range groups {
		for h := int(g) * j.size; h < (int(g)+1)*j.size; h++ {
			out = append(out, x[(h*tokens+from)*n:(h*tokens+to)*n]...)
			heads++
		}
	}
	return out, heads
}

// check compares an answer with what the job is to give, bit by bit, and returns the tokens that it answers.
func (j *job) check(t workertest.Fataler, c *headwaterv1.Context, from, to int) {
	t.Helper()
	if err := j.compare(c, from, to); err != nil {
		t.Fatal(err)
	}
}

func (j *job) compare(c *headwaterv1.Context, from, to int) error {
	count, vd := to-from, int(j.problem.VDim)
	got, lse := make([]float32, count*j.size*vd), make([]float32, count*j.size)
	h, err := contextframe.Decode(c.Frame, got, lse)
	if err != nil {
		return fmt.Errorf("group %d block %d: %w", c.Group, c.Block, err)
	}
	if h.Group != int(c.Group) {
		return fmt.Errorf("the frame of group %d is of group %d", c.Group, h.Group)
	}
	if i := workertest.Differs(got, j.context[c.Group][from*j.size*vd:to*j.size*vd]); i >= 0 {
		return fmt.Errorf("group %d block %d: context[%d] is %v, want %v", c.Group, c.Block, i, got[i], j.context[c.Group][from*j.size*vd+i])
	}
	if i := workertest.Differs(lse, j.lse[c.Group][from*j.size:to*j.size]); i >= 0 {
		return fmt.Errorf("group %d block %d: lse[%d] is %v, want %v", c.Group, c.Block, i, lse[i], j.lse[c.Group][from*j.size+i])
	}
	return nil
}

// load opens, fills and seals some groups of a job.
func (j *job) load(t workertest.Fataler, index uint32, groups []uint32, step int) []*headwaterv1.RunRequest {
	t.Helper()
	var out []*headwaterv1.RunRequest
	for _, g := range groups {
		out = append(out, shardOpen(&headwaterv1.ShardOpen{Problem: index, Group: g, Epoch: 7}))
	}
	for from := 0; from < int(j.problem.KvLen); from += step {
		out = append(out, keyValues(j.block(index, groups, from, min(from+step, int(j.problem.KvLen)))))
	}
	for _, g := range groups {
		out = append(out, shardSeal(&headwaterv1.ShardSeal{Problem: index, Group: g, Receipt: j.receipt(t, int(g))}))
	}
	return out
}

// converse sends messages on a connection while it takes the answers.
func converse(ctx context.Context, client headwaterv1.WorkerServiceClient, messages []*headwaterv1.RunRequest) ([]*headwaterv1.RunResponse, error) {
	stream, err := client.Run(ctx)
	if err != nil {
		return nil, err
	}
	sent := make(chan error, 1)
	go func() {
		for _, m := range messages {
			if err := stream.Send(m); err != nil {
				sent <- nil // the stream's status says why
				return
			}
		}
		sent <- stream.CloseSend()
	}()
	var answers []*headwaterv1.RunResponse
	for {
		m, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return answers, <-sent
		}
		if err != nil {
			<-sent
			return answers, err
		}
		answers = append(answers, m)
	}
}
