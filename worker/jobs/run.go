package jobs

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"headwater.example/attention"
	"headwater.example/internal/contextframe"
	"headwater.example/internal/kvcache"
	"headwater.example/internal/rpc"
	headwaterv1 "headwater.example/proto/headwater/v1"
	"headwater.example/shard"
	"headwater.example/worker/internal/machine"
)

// flightBytes is how much of query and output blocks, with their answers, a stream may have in flight; a larger block
// runs alone.
const flightBytes = 16 << 20

type runStream = grpc.BidiStreamingServer[headwaterv1.RunRequest, headwaterv1.RunResponse]

// run is the state of one Run stream. One goroutine handles the stream's messages and alone touches what is not said
// otherwise; tasks compute answers beside it.
type run struct {
	s        *Service
	m        *machine.Machine
	stream   runStream
	ctx      context.Context // ends with the stream, or at the first error, which is its cause
	cancel   context.CancelCauseFunc
	owner    kvcache.Owner
	problems []*problem // nil before Open
	codec    contextframe.Codec
	shards   map[shard.ID]*openShard
	pending  *query // waits for operands

	send  sync.Mutex // one sender at a time
	tasks sync.WaitGroup
	slots chan struct{} // one element for each task

	flight flight // the stream's own blocks
}

// Run serves one job's share; see the protocol.
func (s *Service) Run(stream runStream) error {
	// The run and its receiver.
	if err := s.m.Begin(2); err != nil {
		return err
	}
	defer s.m.End()
	began := time.Now()
	ctx, cancel := context.WithCancelCause(stream.Context())
	defer cancel(nil)
	r := &run{
		s:      s,
		m:      s.m,
		stream: stream,
		ctx:    ctx,
		cancel: cancel,
		owner:  ownerOf(rpc.CallerOf(ctx)),
		shards: map[shard.ID]*openShard{},
		slots:  make(chan struct{}, 2*s.m.Threads+2),
	}
	// A server can not interrupt Recv but by returning, so what receives outlives this call by a moment. It holds nothing
	// that is counted, and Drain waits for it.
	requests, ended := make(chan request), make(chan error, 1)
	go func() {
		defer s.m.End()
		ended <- rpc.Guard(s.m.Log, "reading a run", func() error { return receive(ctx, stream, requests) })
	}()
	job, err := r.handle(requests, ended)
	if err != nil {
		cancel(err)
	}
	r.tasks.Wait()
	if ctx.Err() != nil {
		err = context.Cause(ctx)
	}
	r.free()
	err = toStatus(err)
	level := slog.LevelInfo
	if code := status.Code(err); code != codes.OK && code != codes.Canceled {
		level = slog.LevelWarn
	}
	s.m.Log.LogAttrs(context.WithoutCancel(ctx), level, "run ended",
		slog.String("job", job), slog.Duration("took", time.Since(began)), slog.String("code", status.Code(err).String()), slog.Any("error", err))
	return err
}

// turn is that of a call of the run which makes so many multiply-adds before it can give way.
func (r *run) turn(work int64) attention.Turn {
	return attention.Turn{Flow: rpc.CallerOf(r.ctx).Tenant, Work: work}
}

// ownerOf is whose a run's memory is. Where there are tenants and a coordinator says none, it is taken for another's than all before.
func ownerOf(c rpc.Caller) kvcache.Owner {
	switch {
	case c.Tenant != "":
		return kvcache.OwnerOf(c.Tenant)
	case c.Unbound && c.Holder.Role == "":
		return kvcache.OwnerOf("")
	}
	return kvcache.Nobody
}

// request is a message, and the memory that its bytes lie in while it is handled.
type request struct {
	*headwaterv1.RunRequest
	memory *rpc.Buffer
}

// receive hands over the stream's messages until it ends.
func receive(ctx context.Context, stream runStream, requests chan<- request) error {
	for {
		m := &headwaterv1.RunRequest{}
		memory, err := rpc.RecvBulk(stream, m)
		if err != nil {
			return err
		}
		select {
		case requests <- request{m, memory}:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// handle handles messages until the stream ends, and returns the job's id.
func (r *run) handle(requests <-chan request, ended <-chan error) (job string, err error) {
	for {
		select {
		case <-r.ctx.Done():
			return job, context.Cause(r.ctx)
		case req := <-requests:
			if open := req.GetOpen(); open != nil && r.problems == nil {
				job = open.GetJobId()
			}
			// Handlers do not keep a message's bytes.
			err := r.dispatch(req.RunRequest)
			req.memory.Free()
			if err != nil {
				return job, err
			}
		case err := <-ended:
			switch {
			case !errors.Is(err, io.EOF):
				return job, err
			case r.problems == nil:
				return job, invalid("the stream ended before open")
			case r.pending != nil:
				return job, invalid("%s: the stream ended before its operands", r.pending)
			}
			return job, nil
		}
	}
}

func (r *run) dispatch(req *headwaterv1.RunRequest) error {
	open, opening := req.GetRequest().(*headwaterv1.RunRequest_Open)
	_, operand := req.GetRequest().(*headwaterv1.RunRequest_Operand)
	_, more := req.GetRequest().(*headwaterv1.RunRequest_Gradient)
	switch {
	case opening && r.problems != nil:
		return invalid("open: the stream is open already")
	case opening:
		var err error
		r.problems, r.codec, err = checkOpen(open.Open)
		for _, p := range r.problems {
			r.m.Take(p.LayerSpec)
		}
		return err
	case r.problems == nil:
		return invalid("the first message of a stream is open")
	case r.pending != nil && !operand && (r.pending.lesson == nil || !more):
		return invalid("%s: its operands follow before any other message", r.pending)
	}
	switch m := req.GetRequest().(type) {
	case *headwaterv1.RunRequest_ShardOpen:
		return r.openShard(m.ShardOpen)
	case *headwaterv1.RunRequest_KeyValues:
		return r.append(m.KeyValues)
	case *headwaterv1.RunRequest_Weights:
		return r.weights(m.Weights)
	case *headwaterv1.RunRequest_Hidden:
		return r.project(m.Hidden)
	case *headwaterv1.RunRequest_ShardSeal:
		return r.seal(m.ShardSeal)
	case *headwaterv1.RunRequest_Query:
		return r.query(m.Query)
	case *headwaterv1.RunRequest_Operand:
		return r.operand(m.Operand)
	case *headwaterv1.RunRequest_Gradient:
		return r.gradient(m.Gradient)
	case *headwaterv1.RunRequest_ShardClose:
		return r.closeShard(m.ShardClose)
	case *headwaterv1.RunRequest_Output:
		return r.output(m.Output)
	}
	return invalid("the message asks for nothing that this worker knows")
}

// problem returns the problem that a message names.
func (r *run) problem(index uint32) (*problem, error) {
	if int64(index) >= int64(len(r.problems)) {
		return nil, invalid("problem %d: the job has %d", index, len(r.problems))
	}
	return r.problems[index], nil
}

// answer sends one message, whose large field lies in memory, which it takes; any goroutine may.
func (r *run) answer(resp *headwaterv1.RunResponse, memory *rpc.Buffer) error {
	r.send.Lock()
	defer r.send.Unlock()
	if r.ctx.Err() != nil {
		memory.Free()
		return context.Cause(r.ctx)
	}
	return rpc.SendBulk(r.stream, resp, memory)
}

// room returns memory of n bytes for an answer, which is counted in flight until it is written.
func (r *run) room(n int64) (*rpc.Buffer, error) {
	share := rpc.ShareOf(r.ctx)
	if err := share.TakeAnswer(r.ctx, n); err != nil {
		return nil, status.Errorf(codes.ResourceExhausted, "worker %s: an answer: %v", r.m.Name, err)
	}
	memory := rpc.NewBuffer(int(n))
	memory.Hold(share, n)
	return memory, nil
}

// launch takes n bytes of the budget for a block that is to be computed. It waits while the stream has too much in flight.
func (r *run) launch(n int64) error {
	return r.take(func() error {
		if r.flight.blocks > 0 && r.flight.bytes+n > flightBytes {
			return errWait
		}
		if err := r.m.Budget.Reserve(n); err != nil {
			return err
		}
		r.flight.add(1, n)
		r.s.flight.add(1, n)
		return nil
	})
}

// land gives back what launch took; any goroutine may.
func (r *run) land(n int64) { r.s.land(&r.flight, n) }

// take calls do, which takes of the budget, until it does not fail for want of room that blocks in flight hold, of any
// stream: those end without needing more. Between the calls it waits for one of them to land.
func (r *run) take(do func() error) error {
	for {
		landed, err := r.s.try(do, r.reclaim)
		if landed == nil {
			r.m.Budget.MakeWay()
			return err
		}
		select {
		case <-landed:
		case <-r.ctx.Done():
			return context.Cause(r.ctx)
		}
	}
}

// flight is how many blocks are in flight, and their bytes. The worker's mutex guards it.
type flight struct {
	blocks int
	bytes  int64
}

func (f *flight) add(blocks int, bytes int64) {
	f.blocks += blocks
	f.bytes += bytes
}

// errWait says that a block has to wait for others of its stream.
var errWait = errors.New("wait")

// reclaim makes room for n bytes, of what the run's tenant has in sessions and of who has much, if it is a tenant's.
func (r *run) reclaim(n int64) bool {
	if tenant := rpc.CallerOf(r.ctx).Tenant; tenant != "" {
		return r.m.Store.ReclaimFor(n, tenant)
	}
	return r.m.Store.Reclaim(n)
}

// try calls do, a second time where sessions and their prefixes have made room. If it has to wait, try returns a channel
// that is closed when a block has landed. Flights and budget change together, so that no stream sees one without the other
// and despairs of room that there will be.
func (s *Service) try(do func() error, reclaim func(n int64) bool) (landed <-chan struct{}, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	err = do()
	var full *kvcache.BudgetError
	if errors.As(err, &full) && full.Asked <= full.Total && reclaim(full.Asked) {
		err = do()
	}
	if errors.Is(err, errWait) || errors.As(err, &full) && full.Asked <= full.Free+s.flight.bytes {
		return s.landed, nil
	}
	return nil, err
}

func (s *Service) land(own *flight, n int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.m.Budget.Release(n)
	own.add(-1, -n)
	s.flight.add(-1, -n)
	close(s.landed)
	s.landed = make(chan struct{})
}

// spawn runs do as a task when the stream has a slot for it; an error of do ends the stream. If the stream ends first,
// do is not called. done is called in every case, once, when the task has ended or will not be.
func (r *run) spawn(do func() error, done func()) error {
	select {
	case r.slots <- struct{}{}:
	case <-r.ctx.Done():
		done()
		return context.Cause(r.ctx)
	}
	r.tasks.Go(func() {
		err := rpc.Guard(r.m.Log, "a task of a run", do)
		done()
		<-r.slots
		if err != nil {
			r.cancel(err)
		}
	})
	return nil
}

// free gives back all that the stream holds, when no task runs.
func (r *run) free() {
	if r.pending != nil {
		r.drop(r.pending)
	}
	for _, h := range r.shards {
		h.close(r.m.Budget)
	}
	for _, p := range r.problems {
		p.output.close(r.m.Budget)
	}
}

// mapped is memory outside the heap that is mapped by a budget.
type mapped struct {
	arena *kvcache.Arena
	bytes int64
}

// mapUnit is the unit in which memory is mapped.
const mapUnit = 4096

// mapMemory reserves size bytes, rounded up to whole units, and maps them.
func (r *run) mapMemory(size int64) (mapped, error) {
	size = (size + mapUnit - 1) / mapUnit * mapUnit
	var arena *kvcache.Arena
	err := r.take(func() (err error) {
		arena, err = r.m.Budget.Map(size, r.owner)
		return err
	})
	if err != nil {
		return mapped{}, err
	}
	return mapped{arena, size}, nil
}

func (m mapped) close(budget *kvcache.Budget) {
	if m.arena != nil {
		budget.Unmap(m.arena)
	}
}
