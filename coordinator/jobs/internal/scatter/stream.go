package scatter

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"

	"headwater.example/coordinator/jobs/internal/ledger"
	"headwater.example/internal/contextframe"
	"headwater.example/internal/membership"
	"headwater.example/internal/rpc"
	headwaterv1 "headwater.example/proto/headwater/v1"
	"headwater.example/shard"
)

const (
	// loadsQueued is how many messages of keys, values and weights wait for a stream; the reader of the file waits beyond.
	loadsQueued = 4
	// asksInFlight is how many query blocks a worker is given before it has answered the first: enough that it never waits
	// for the next, few enough that they do not fill its memory or hold up the keys and values behind them.
	asksInFlight = 8
)

// ask is one query block to send, or one block of gathered context to project. It is built when its turn comes, so that
// queries wait on disk and not in memory.
type ask struct {
	problem *problem
	block   int
	groups  []shard.Group // of a query block
	strip   *strip        // of an output block
	after   int64         // number of load messages that must have been sent
}

// parts are the answers that come to an ask: one for each group, or the strip's.
func (a ask) parts() []int {
	if a.strip != nil {
		return []int{a.strip.from}
	}
	parts := make([]int, len(a.groups))
	for i, g := range a.groups {
		parts[i] = int(g)
	}
	return parts
}

// load is a message of keys, values or weights, and the memory that they lie in, if it is to be used again.
type load struct {
	message *headwaterv1.RunRequest
	memory  *rpc.Buffer
}

// answer is one group's decoded part of the answer to a query block.
type answer struct {
	*headwaterv1.Context     // without the frame
	wire                 int // bytes of the frame
	context, lse         []float32
}

// event is what a stream, or the reader of the job's file, tells the loop that runs the job.
type event struct {
	stream *stream
	opened *headwaterv1.ShardOpened
	answer *answer
	output *headwaterv1.Output

	gradient *headwaterv1.Gradient
	memory   *rpc.Buffer // that its elements lie in

	loaded int64 // bytes read
	failed error // of the job: what was read or built is at fault
	ended  error // of the stream: it ended
}

// stream is the stream to one worker, with the goroutines that send and receive on it.
type stream struct {
	name     string
	identity *headwaterv1.DescribeResponse
	report   *headwaterv1.WorkerReport

	conn   *rpc.Conn
	call   grpc.BidiStreamingClient[headwaterv1.RunRequest, headwaterv1.RunResponse]
	cancel context.CancelFunc
	tasks  sync.WaitGroup

	loads  chan load
	pushed atomic.Int64  // load messages given to loads
	wake   chan struct{} // an ask was added, or room for one was made
	gone   chan struct{} // closed when the stream has ended
	done   chan struct{} // closed when nothing more will be sent

	mu       sync.Mutex
	asks     []ask
	sealed   map[shardKey]bool // shards that the worker has confirmed
	sentAt   map[askKey]time.Time
	bytesOut atomic.Int64

	opening int           // shards that it has not confirmed; the loop's
	shards  []ledger.Load // that it was given; the loop's

	arriving map[askKey]*arriving // gradients of which something has come; the loop's
}

// shardKey names one shard of one problem.
type shardKey struct {
	problem int
	group   shard.Group
}

// askKey names one part of an ask.
type askKey struct{ problem, block, part int }

// openStream starts a stream to a worker and sends Open. The connection is the stream's if there is no error. events takes what comes back until ctx ends.
func (r *run) openStream(ctx context.Context, m membership.Member, conn *rpc.Conn, identity *headwaterv1.DescribeResponse) (*stream, error) {
	ctx, cancel := context.WithCancel(ctx)
	call, err := headwaterv1.NewWorkerServiceClient(conn).Run(ctx)
	if err == nil {
		err = call.Send(&headwaterv1.RunRequest{Request: &headwaterv1.RunRequest_Open{Open: r.open}})
	}
	if err != nil && !errors.Is(err, io.EOF) { // at EOF the stream's status comes by Recv
		cancel()
		return nil, fmt.Errorf("open stream to worker %q: %w", m.Name, err)
	}
	l := &stream{
		name: m.Name, identity: identity, report: &headwaterv1.WorkerReport{Name: m.Name},
		conn: conn, call: call, cancel: cancel,
		loads: make(chan load, loadsQueued), wake: make(chan struct{}, 1),
		gone: make(chan struct{}), done: make(chan struct{}), sealed: map[shardKey]bool{}, sentAt: map[askKey]time.Time{},
		arriving: map[askKey]*arriving{},
	}
	l.tasks.Go(func() { r.guard(ctx, "sending to a worker", func() { l.send(ctx, r) }) })
	l.tasks.Go(func() { r.guard(ctx, "reading a worker's answers", func() { l.receive(ctx, r) }) })
	return l, nil
}

// close ends the stream and waits for its goroutines. A worker that is done with all it was asked ends its stream well.
func (l *stream) close() {
	l.cancel()
	l.tasks.Wait()
	l.conn.Release()
}

// push gives the stream a message to send in order. A stream that has gone takes it and forgets it: its shards are loaded anew
// elsewhere.
func (l *stream) push(ctx context.Context, m *headwaterv1.RunRequest, memory *rpc.Buffer) error {
	l.pushed.Add(1)
	select {
	case l.loads <- load{m, memory}:
	case <-l.gone:
	case <-ctx.Done():
		return ctx.Err()
	}
	return nil
}

// add queues asks to be sent after all that was pushed.
func (l *stream) add(p *problem, asks []ask) {
	l.mu.Lock()
	after := l.pushed.Load()
	for _, a := range asks {
		a.problem, a.after = p, after
		l.asks = append(l.asks, a)
	}
	l.mu.Unlock()
	l.nudge()
}

func (l *stream) nudge() {
	select {
	case l.wake <- struct{}{}:
	default:
	}
}

// next takes the next ask whose turn it is. It waits for the worker to confirm its shards, so that the time until the answer
// is not that of loading them.
func (l *stream) next(sent int64) (ask, bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.asks) == 0 || l.asks[0].after > sent {
		return ask{}, false
	}
	a := l.asks[0]
	for _, g := range a.groups {
		if !l.sealed[shardKey{a.problem.index, g}] {
			return ask{}, false
		}
	}
	parts := a.parts()
	if len(l.sentAt) >= asksInFlight*len(parts) {
		return ask{}, false
	}
	l.asks = l.asks[1:]
	now := time.Now()
	for _, part := range parts {
		l.sentAt[askKey{a.problem.index, a.block, part}] = now
	}
	return a, true
}

// answered makes room for another ask and returns when this one was sent.
func (l *stream) answered(k askKey) (time.Time, bool) {
	l.mu.Lock()
	sent, ok := l.sentAt[k]
	delete(l.sentAt, k)
	l.mu.Unlock()
	l.nudge()
	return sent, ok
}

// awaits says whether an answer is owed.
func (l *stream) awaits(k askKey) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	_, ok := l.sentAt[k]
	return ok
}

// send sends asks as soon as there is room for them, and loads otherwise. What fails at the stream is seen by receive.
func (l *stream) send(ctx context.Context, r *run) {
	var sent int64
	for {
		if a, ok := l.next(sent); ok {
			if err := r.sendAsk(a, func(m *headwaterv1.RunRequest) error { return l.put(m, nil) }); err != nil {
				if !errors.Is(err, io.EOF) {
					r.emit(ctx, event{stream: l, failed: err})
				}
				return
			}
			continue
		}
		select {
		case m := <-l.loads:
			sent++
			if l.put(m.message, m.memory) != nil {
				return
			}
		case <-l.wake:
		case <-l.done:
			_ = l.call.CloseSend() // receive sees how the stream ends
			return
		case <-l.gone:
			return
		case <-ctx.Done():
			return
		}
	}
}

func (l *stream) put(m *headwaterv1.RunRequest, memory *rpc.Buffer) error {
	l.bytesOut.Add(payload(m))
	return rpc.SendBulk(l.call, m, memory)
}

// payload is the number of bytes of tensors in a message.
func payload(m *headwaterv1.RunRequest) int64 {
	n := 0
	switch m := m.GetRequest().(type) {
	case *headwaterv1.RunRequest_KeyValues:
		n = len(m.KeyValues.GetK()) + len(m.KeyValues.GetV()) + len(m.KeyValues.GetKScale()) + len(m.KeyValues.GetVScale())
	case *headwaterv1.RunRequest_Weights:
		n = len(m.Weights.GetData()) + len(m.Weights.GetBias())
	case *headwaterv1.RunRequest_Hidden:
		n = len(m.Hidden.GetX()) + len(m.Hidden.GetCos()) + len(m.Hidden.GetSin())
	case *headwaterv1.RunRequest_Query:
		n = len(m.Query.GetQ()) + len(m.Query.GetCos()) + len(m.Query.GetSin())
	case *headwaterv1.RunRequest_Gradient:
		n = len(m.Gradient.GetQ()) + len(m.Gradient.GetDContext()) + len(m.Gradient.GetContext()) + len(m.Gradient.GetLse()) +
			len(m.Gradient.GetCos()) + len(m.Gradient.GetSin())
	case *headwaterv1.RunRequest_Operand:
		n = len(m.Operand.GetData())
	case *headwaterv1.RunRequest_Output:
		n = len(m.Output.GetContext())
	}
	return int64(n)
}

// receive decodes what comes back and hands it to the loop, until the stream ends.
func (l *stream) receive(ctx context.Context, r *run) {
	defer close(l.gone)
	for {
		m := &headwaterv1.RunResponse{}
		memory, err := rpc.RecvBulk(l.call, m)
		if err == nil {
			err = l.handle(ctx, r, m, memory)
		}
		if err != nil {
			r.emit(ctx, event{stream: l, ended: err})
			return
		}
	}
}

func (l *stream) handle(ctx context.Context, r *run, m *headwaterv1.RunResponse, memory *rpc.Buffer) error {
	switch m := m.GetResponse().(type) {
	case *headwaterv1.RunResponse_ShardOpened:
		r.emit(ctx, event{stream: l, opened: m.ShardOpened})
	case *headwaterv1.RunResponse_ShardSealed: // the worker has compared its receipt with the one that it was sent
		l.mu.Lock()
		l.sealed[shardKey{int(m.ShardSealed.GetProblem()), shard.Group(m.ShardSealed.GetGroup())}] = true
		l.mu.Unlock()
		l.nudge()
	case *headwaterv1.RunResponse_Context:
		a, err := r.decode(m.Context)
		memory.Free()
		if err != nil {
			return err
		}
		r.emit(ctx, event{stream: l, answer: a})
	case *headwaterv1.RunResponse_Output:
		r.emit(ctx, event{stream: l, output: m.Output})
	case *headwaterv1.RunResponse_Gradient:
		r.emit(ctx, event{stream: l, gradient: m.Gradient, memory: memory})
	default:
		return errors.New("worker sent a message that this version does not know")
	}
	return nil
}

// decode unpacks a context frame and checks that it is what its message says.
func (r *run) decode(c *headwaterv1.Context) (*answer, error) {
	if int64(c.GetProblem()) >= int64(len(r.problems)) {
		return nil, fmt.Errorf("answer names problem %d of %d", c.GetProblem(), len(r.problems))
	}
	p := r.problems[c.GetProblem()]
	if int64(c.GetBlock()) >= int64(p.blocks) || int64(c.GetGroup()) >= int64(p.Shape.KVHeads) {
		return nil, fmt.Errorf("answer names block %d and group %d of problem %q", c.GetBlock(), c.GetGroup(), p.Prefix)
	}
	_, count := p.block(int(c.GetBlock()))
	heads := p.Shape.GroupSize()
	a := r.answers.Get().(*answer)
	a.Context, a.wire = c, len(c.GetFrame())
	a.context, a.lse = resize(a.context, count*heads*p.Shape.VDim), resize(a.lse, count*heads)
	h, err := contextframe.Decode(c.GetFrame(), a.context, a.lse)
	if err != nil {
		return nil, fmt.Errorf("answer of group %d to block %d: %w", c.GetGroup(), c.GetBlock(), err)
	}
	if h.Group != int(c.GetGroup()) || h.Tokens != count || h.Heads != heads || h.VDim != p.Shape.VDim || h.Codec != r.codec {
		return nil, fmt.Errorf("answer of group %d to block %d holds group %d, %d tokens, %d heads, v_dim %d in codec %s", c.GetGroup(), c.GetBlock(), h.Group, h.Tokens, h.Heads, h.VDim, h.Codec)
	}
	c.Frame = nil
	return a, nil
}

func resize(s []float32, n int) []float32 {
	if cap(s) < n {
		return make([]float32, n)
	}
	return s[:n]
}
