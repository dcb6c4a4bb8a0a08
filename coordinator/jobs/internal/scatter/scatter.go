// Package scatter runs one job on the cluster: it gives each worker the shards that the plan says, streams their keys and
// values, asks with queries sliced by group, and gathers the contexts into the result file.
//
// One loop owns the account of what is owed (package ledger) and the result; a goroutine reads the job's file, and two for
// each worker send and receive. When a worker dies, its shards are planned anew onto the living, loaded there and asked for
// what is still owed: contexts are pure functions of the job, so the result has the same bits.
package scatter

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"os"
	"slices"
	"sync"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/durationpb"

	"headwater.example/attention"
	"headwater.example/coordinator/jobs/internal/ledger"
	"headwater.example/coordinator/workers"
	"headwater.example/internal/contextframe"
	"headwater.example/internal/jobfile"
	"headwater.example/internal/layerproto"
	"headwater.example/internal/membership"
	"headwater.example/internal/observe"
	"headwater.example/internal/rpc"
	headwaterv1 "headwater.example/proto/headwater/v1"
	"headwater.example/shard"
	"headwater.example/tensor"
)

const (
	// chances is how many streams to one boot of a worker may break before it is left out of the job.
	chances = 3
	// retryAfter is how long after no worker answered all are tried again, unless the membership changes before.
	retryAfter = 500 * time.Millisecond
	// progressEvery is how often progress is told at most.
	progressEvery = 100 * time.Millisecond
)

// file is the result file: written in pieces, and read again for the output projection.
type file interface {
	io.WriterAt
	io.ReaderAt
}

// Config is one job and what it runs with.
type Config struct {
	ID         string
	Job        *jobfile.Job
	Input      *tensor.File // the job's tensors
	Codec      contextframe.Codec
	Result     file
	Layout     *tensor.Layout // of Result, with the tensors that the job's ResultInfos name
	Scratch    string         // folder for a file of its own, for parts of gradients; "" is the system's
	Workers    *workers.Workers
	WorkerWait time.Duration // how long no worker may answer before the job fails
	BlockBytes int           // size to which keys, values and hidden states are cut; 0 is rpc.BlockBytes
	Logger     *slog.Logger
	Observe    *observe.Coordinator // nil counts nothing
	Progress   func(*headwaterv1.Progress)
}

// run is a job at work. Fields below mu-less are owned by the loop, or fixed before it starts.
type run struct {
	Config
	input      *tensor.File
	codec      contextframe.Codec
	blockBytes int
	geometry   *shard.Geometry
	problems   []*problem
	open       *headwaterv1.Open
	events     chan event
	answers    sync.Pool // *answer

	ledger   *ledger.Ledger
	gather   *gatherer
	scratch  *os.File // nil if nothing is kept in it
	sums     []*sum
	plan     *shard.Plan
	streams  map[string]*stream
	reports  []*headwaterv1.WorkerReport // of streams that ended
	broken   map[string]int              // by boot: streams that broke
	lastErr  error                       // why the last worker was lost or did not answer
	loading  sync.WaitGroup              // what reads the job's file
	loaded   chan struct{}               // closed when the newest batch is loaded
	progress *headwaterv1.Progress
	told     time.Time
}

// Run runs the job until its result is written, and says what it took. A gRPC status in the error says whose fault it is.
func Run(ctx context.Context, c Config) (*headwaterv1.Report, error) {
	r := &run{
		Config: c, input: c.Input, codec: c.Codec, blockBytes: cmp.Or(c.BlockBytes, rpc.BlockBytes),
		events: make(chan event), answers: sync.Pool{New: func() any { return &answer{} }},
		streams: map[string]*stream{}, broken: map[string]int{}, progress: &headwaterv1.Progress{},
	}
	started := time.Now()
	if err := r.prepare(); err != nil {
		return nil, err
	}
	if err := r.openScratch(); err != nil {
		return nil, errors.Join(err, r.closeScratch())
	}
	ctx, cancel := context.WithCancel(ctx)
	err := r.attend(ctx)
	if err == nil {
		err = r.project(ctx)
	}
	if err == nil {
		err = r.gather.finish()
	}
	if err == nil {
		err = r.addUp()
	}
	if err == nil {
		err = r.farewell(ctx)
	}
	if err != nil && ctx.Err() != nil {
		err = cmp.Or(context.Cause(ctx), err)
	}
	cancel()
	for _, l := range r.streams {
		l.close()
		r.keep(l, false)
	}
	r.loading.Wait()
	if closed := r.closeScratch(); err == nil {
		err = closed
	}
	if err != nil {
		return nil, err
	}
	return r.report(time.Since(started))
}

// prepare cuts the job into units.
func (r *run) prepare() error {
	r.geometry = r.Job.Geometry()
	r.open = &headwaterv1.Open{JobId: r.ID, Codec: layerproto.ContextCodec(r.codec)}
	accounts := make([]ledger.Problem, len(r.Job.Problems))
	var outputs []output
	for i := range r.Job.Problems {
		p, err := newProblem(i, &r.Job.Problems[i])
		if err != nil {
			return err
		}
		r.problems = append(r.problems, p)
		r.open.Problems = append(r.open.Problems, p.message())
		accounts[i] = ledger.Problem{Layer: p.Index, Groups: p.Shape.KVHeads, Blocks: p.blocks}
		if p.Differentiates() {
			dX, err := r.checkGradients(p)
			if err != nil {
				return err
			}
			outputs = append(outputs, output{}, output{}, output{offset: dX, width: p.DModel}) // no contexts are gathered
			continue
		}
		for _, o := range []struct {
			name  string
			width int
		}{{"context", p.Shape.Heads * p.Shape.VDim}, {"lse", p.Shape.Heads}, {"y", p.DModel}} {
			offset, ok := r.Layout.Offset(p.Prefix + o.name)
			if !ok && (o.name != "y" || p.WO != "") {
				return fmt.Errorf("result has no tensor %q", p.Prefix+o.name)
			}
			outputs = append(outputs, output{offset: offset, width: o.width})
		}
	}
	r.gather = newGatherer(r.Result, outputs)
	r.ledger = ledger.New(accounts)
	r.progress.Units = uint64(r.ledger.Total())
	loaded := make(chan struct{})
	close(loaded)
	r.loaded = loaded
	return nil
}

// The tensors of a problem in the gatherer.
func (p *problem) contextOutput() int { return 3 * p.index }
func (p *problem) lseOutput() int     { return 3*p.index + 1 }
func (p *problem) yOutput() int       { return 3*p.index + 2 }

// guard calls f in a goroutine of the job. A panic of it fails the job, and nothing else.
func (r *run) guard(ctx context.Context, what string, f func()) {
	err := rpc.Guard(r.Logger, what+" for job "+r.ID, func() error {
		f()
		return nil
	})
	if err != nil {
		r.emit(ctx, event{failed: err})
	}
}

// spawn runs f guarded as one of the goroutines that load.
func (r *run) spawn(ctx context.Context, what string, f func()) {
	r.loading.Go(func() { r.guard(ctx, what, f) })
}

// emit hands an event to the loop. Once the job has ended nobody listens.
func (r *run) emit(ctx context.Context, e event) {
	select {
	case r.events <- e:
	case <-ctx.Done():
	}
}

// attend brings the account to zero.
func (r *run) attend(ctx context.Context) error {
	var unloaded []ledger.Load
	for replan := true; r.ledger.Pending() > 0; {
		if replan {
			if err := r.connect(ctx); err != nil {
				return err
			}
			if err := r.makePlan(); err != nil {
				return err
			}
			loads := r.ledger.Adopt(r.plan)
			r.reserve(ctx, loads)
			unloaded = append(unloaded, loads...)
			replan = false
		}
		if len(unloaded) > 0 && r.unconfirmed() == 0 {
			r.start(ctx, unloaded)
			unloaded = nil
		}
		e, err := r.next(ctx)
		if err != nil {
			return err
		}
		switch {
		case e.opened != nil:
			e.stream.opening--
		case e.answer != nil:
			if err := r.take(e.stream, e.answer); err != nil {
				return err
			}
		case e.gradient != nil:
			if err := r.takeGradient(e.stream, e.gradient, e.memory); err != nil {
				return err
			}
		case e.ended != nil:
			if err := r.lose(e.stream, e.ended); err != nil {
				return err
			}
			unloaded = slices.DeleteFunc(unloaded, func(l ledger.Load) bool { return l.Worker == e.stream.name })
			replan = true
		}
	}
	return nil
}

// next waits for an event of a stream that is still in use.
func (r *run) next(ctx context.Context) (event, error) {
	for {
		select {
		case e := <-r.events:
			switch {
			case e.failed != nil:
				return event{}, e.failed
			case e.stream == nil:
				r.progress.LoadedBytes += uint64(e.loaded)
				r.tell(false)
			case r.streams[e.stream.name] == e.stream:
				return e, nil
			}
		case <-ctx.Done():
			return event{}, context.Cause(ctx)
		}
	}
}

// connect opens a stream to each worker that the membership names and that answers, and waits for one if none does.
func (r *run) connect(ctx context.Context) error {
	var waited time.Duration
	for {
		changed := r.Workers.Changed()
		r.phase("connecting to workers")
		r.dial(ctx)
		if len(r.streams) > 0 {
			return nil
		}
		if waited >= r.WorkerWait {
			if r.lastErr == nil {
				return status.Errorf(codes.Unavailable, "no worker joined within %s", r.WorkerWait)
			}
			return status.Errorf(codes.Unavailable, "no worker answers since %s; the last error was: %v", r.WorkerWait, describeError(r.lastErr))
		}
		r.phase("waiting for workers")
		pause := min(retryAfter, r.WorkerWait-waited)
		began := time.Now()
		timer := time.NewTimer(pause)
		select {
		case <-changed:
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return context.Cause(ctx)
		}
		timer.Stop()
		waited += max(time.Since(began), time.Millisecond)
	}
}

// describeError is an error without gRPC's own prefix, on one line.
func describeError(err error) string {
	if s, ok := status.FromError(err); ok && s.Code() != codes.Unknown {
		return s.Message()
	}
	return err.Error()
}

// dial opens streams to the workers that have none. A worker that does not answer is left out.
func (r *run) dial(ctx context.Context) {
	missing := slices.DeleteFunc(r.Workers.List(), func(m membership.Member) bool { return r.streams[m.Name] != nil })
	conns := make([]*rpc.Conn, len(missing)) // held from here, so that the stream goes over the connection that is made to describe
	for i, m := range missing {
		conns[i], _ = r.Workers.Use(m) // Describe says why not
	}
	for i, d := range r.Workers.Describe(ctx, missing) {
		conn := conns[i]
		switch {
		case d.Err != nil:
			r.lastErr = d.Err
			r.Logger.Warn("worker left out", "job", r.ID, "worker", d.Name, "error", d.Err)
		case conn == nil || r.broken[string(d.Said.GetBoot())] >= chances:
		default:
			l, err := r.openStream(ctx, d.Member, conn, d.Said)
			if err != nil {
				r.lastErr = err
				break
			}
			r.streams[l.name] = l
			conn = nil // the stream's
		}
		if conn != nil {
			conn.Release()
		}
	}
}

// makePlan plans the job onto the streams.
func (r *run) makePlan() error {
	var workers []shard.Worker
	for _, l := range r.streams {
		workers = append(workers, shard.Worker{Name: l.name, Weight: max(int(l.identity.GetWeight()), 1)})
	}
	plan, err := shard.MakePlan(r.geometry, workers, r.plan)
	if err != nil {
		return fmt.Errorf("plan: %w", err)
	}
	r.plan = plan
	return nil
}

// reserve asks each worker for its shards' memory.
func (r *run) reserve(ctx context.Context, loads []ledger.Load) {
	r.phase("reserving memory")
	for _, load := range loads {
		l := r.streams[load.Worker]
		l.opening++
		l.shards = append(l.shards, load)
	}
	streams := maps.Clone(r.streams)
	r.spawn(ctx, "opening shards", func() {
		for _, load := range loads {
			err := streams[load.Worker].push(ctx, &headwaterv1.RunRequest{Request: &headwaterv1.RunRequest_ShardOpen{ShardOpen: &headwaterv1.ShardOpen{
				Problem: uint32(load.Problem), Group: uint32(load.Group), Epoch: uint64(load.Epoch),
			}}}, nil)
			if err != nil {
				return // the job has ended
			}
		}
	})
}

// start loads shards whose memory is reserved, after all that was started before.
func (r *run) start(ctx context.Context, loads []ledger.Load) {
	b := batch{}
	for _, load := range loads {
		shares := b[load.Problem]
		i := slices.IndexFunc(shares, func(s *share) bool { return s.stream.name == load.Worker })
		if i < 0 {
			i = len(shares)
			shares = append(shares, &share{stream: r.streams[load.Worker]})
			b[load.Problem] = shares
		}
		shares[i].groups = append(shares[i].groups, load.Group)
	}
	for i, shares := range b {
		for _, s := range shares {
			s.asks = r.ledger.Asks(i, s.groups)
		}
	}
	r.progress.LoadBytes += uint64(b.bytes(r))
	r.phase("loading and attending")
	before, after := r.loaded, make(chan struct{})
	r.loaded = after
	r.loading.Go(func() {
		defer close(after)
		select {
		case <-before:
		case <-ctx.Done():
			return
		}
		r.guard(ctx, "reading the file", func() {
			if err := r.load(ctx, b); err != nil {
				r.emit(ctx, event{failed: err})
			}
		})
	})
}

// take accepts an answer into the account and the result.
func (r *run) take(l *stream, a *answer) error {
	unit := ledger.Unit{Problem: int(a.GetProblem()), Group: shard.Group(a.GetGroup()), Block: int(a.GetBlock())}
	sent, asked := l.answered(askKey{unit.Problem, unit.Block, int(unit.Group)})
	if !asked {
		return status.Errorf(codes.Internal, "worker %q answered %s, which it was not asked", l.name, unit)
	}
	if err := r.ledger.Answer(l.name, shard.Epoch(a.GetEpoch()), unit); err != nil {
		return status.Error(codes.Internal, err.Error())
	}
	p := r.problems[unit.Problem]
	start, count := p.block(unit.Block)
	heads := p.Shape.GroupSize()
	first, width := int(unit.Group)*heads, p.Shape.VDim
	if err := r.gather.put(p.contextOutput(), unit.Block, start, count, first*width, (first+heads)*width, a.context); err != nil {
		return err
	}
	if err := r.gather.put(p.lseOutput(), unit.Block, start, count, first, first+heads, a.lse); err != nil {
		return err
	}
	l.report.BytesInRaw += uint64(4 * (len(a.context) + len(a.lse)))
	l.report.BytesInWire += uint64(a.wire)
	compute := time.Duration(a.GetComputeNanos())
	wire := time.Since(sent) - compute - time.Duration(a.GetQueueNanos()) - time.Duration(a.GetEncodeNanos())
	l.account(compute, wire)
	r.Observe.JobWire(wire)
	a.Context = nil
	r.answers.Put(a)
	r.progress.UnitsDone++
	r.tell(false)
	return nil
}

// account adds one answer's times to the stream's report.
func (l *stream) account(compute, wire time.Duration) {
	l.report.Units++
	l.report.Compute = durationpb.New(l.report.GetCompute().AsDuration() + compute)
	l.report.Wire = durationpb.New(l.report.GetWire().AsDuration() + max(wire, 0))
}

// lose handles the end of a stream: a worker that died is replaced, one that refused its work fails the job.
func (r *run) lose(l *stream, err error) error {
	if fatal(err) {
		s, _ := status.FromError(err)
		return status.Errorf(s.Code(), "worker %q: %s", l.name, s.Message())
	}
	if errors.Is(err, io.EOF) {
		err = errors.New("it ended the stream before it had answered")
	}
	r.lastErr = fmt.Errorf("worker %q was lost: %s", l.name, describeError(err))
	r.Logger.Warn("worker lost", "job", r.ID, "worker", l.name, "error", err)
	r.Observe.JobLost(l.name)
	r.broken[string(l.identity.GetBoot())]++
	delete(r.streams, l.name)
	l.close()
	r.keep(l, true)
	r.ledger.Lose(l.name)
	return nil
}

// fatal says whether another worker would say the same.
func fatal(err error) bool {
	switch status.Code(err) {
	case codes.InvalidArgument, codes.ResourceExhausted, codes.FailedPrecondition, codes.DataLoss, codes.OutOfRange, codes.Unimplemented:
		return true
	default:
		return false
	}
}

// unconfirmed counts the shards that the living were asked to reserve and have not confirmed.
func (r *run) unconfirmed() int {
	n := 0
	for _, l := range r.streams {
		n += l.opening
	}
	return n
}

// farewell ends the streams that are left and waits until their workers have freed what they held.
func (r *run) farewell(ctx context.Context) error {
	r.phase("finishing")
	for _, l := range r.streams {
		close(l.done)
	}
	for left := len(r.streams); left > 0; {
		e, err := r.next(ctx)
		if err != nil {
			return err
		}
		if e.ended != nil { // however: its answers are complete
			left--
		}
	}
	return nil
}

// keep keeps a stream's report. A worker that came back has one report for each of its boots.
func (r *run) keep(l *stream, lost bool) {
	l.report.BytesOut = uint64(l.bytesOut.Load())
	l.report.Lost = lost
	r.reports = append(r.reports, l.report)
}

func (r *run) report(elapsed time.Duration) (*headwaterv1.Report, error) {
	plan, err := r.plan.JSON(r.Job.Arithmetics())
	if err != nil {
		return nil, fmt.Errorf("encode plan: %w", err)
	}
	report := &headwaterv1.Report{Workers: r.reports, Plan: plan, Elapsed: durationpb.New(elapsed)}
	slices.SortStableFunc(report.Workers, func(a, b *headwaterv1.WorkerReport) int { return cmp.Compare(a.GetName(), b.GetName()) })
	for _, w := range report.GetWorkers() {
		if w.GetLost() {
			report.WorkersLost++
		}
	}
	return report, nil
}

func (r *run) phase(name string) {
	r.progress.Phase = name
	r.tell(true)
}

// tell tells the progress, now or when it was not told for a while.
func (r *run) tell(now bool) {
	if r.Progress == nil || !now && time.Since(r.told) < progressEvery {
		return
	}
	r.told = time.Now()
	r.Progress(&headwaterv1.Progress{
		LoadedBytes: r.progress.GetLoadedBytes(), LoadBytes: r.progress.GetLoadBytes(),
		UnitsDone: r.progress.GetUnitsDone(), Units: r.progress.GetUnits(), Phase: r.progress.GetPhase(),
	})
}

// ShardBytes is what a worker reserves for one shard of a problem: pages of keys and values, and the rows of w_q, w_k and w_v
// where it projects them itself.
func ShardBytes(p *jobfile.Problem) (uint64, error) {
	layout, err := p.Layout()
	if err != nil {
		return 0, fmt.Errorf("problem %q: %w", p.Prefix, err)
	}
	bytes := uint64((p.KVLen+attention.PageLen-1)/attention.PageLen) * uint64(layout.PageBytes())
	if p.X != "" {
		rows := p.Shape.GroupSize()*p.Shape.HeadDim + p.Shape.HeadDim + p.Shape.VDim
		if p.Differentiates() {
			rows += p.Shape.GroupSize() * p.Shape.VDim // columns of w_o
		}
		bytes += 4 * uint64(rows) * uint64(p.DModel)
	}
	return bytes, nil
}
