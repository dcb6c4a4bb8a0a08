package sessions

import (
	"context"
	"errors"
	"io"
	"sync"
	"time"

	"golang.org/x/sync/semaphore"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"headwater.example/internal/contextframe"
	"headwater.example/internal/layerproto"
	"headwater.example/internal/observe"
	"headwater.example/internal/rpc"
	"headwater.example/internal/session"
	"headwater.example/internal/session/fanout"
	headwaterv1 "headwater.example/proto/headwater/v1"
	"headwater.example/shard"
)

// relayed bounds the steps of one lane that are under way, relayedBytes their payloads, the last one's apart. A lane that is at a
// bound is not read, and its client waits.
const (
	relayed      = 256
	relayedBytes = 64 << 20
)

// lane serves one lane: it reads steps, sends each to the holders of its layer, and answers when all have.
type lane struct {
	*Relay
	stream *session.ServerStream
	out    *fanout.Lane
	fail   context.CancelCauseFunc // ends the lane

	room      *semaphore.Weighted // relayedBytes
	started   chan *laneStep      // to a finisher that waits
	finishers int
	tasks     sync.WaitGroup
	steps     sync.Pool  // *laneStep
	sending   sync.Mutex // held while an answer is sent
}

// laneStep is one step from its arrival until its answer.
type laneStep struct {
	arrived  time.Time
	span     *observe.Span // nil unless the step is traced
	request  session.Request
	response session.Response
	step     fanout.Step
	call     *fanout.Call
	layer    *shard.LayerSpec
	payload  fanout.Payload // of request, cut by group
	bytes    int64          // of the lane's room
	answers  int64          // of the process's room for answers
	context  []float32      // [groups, attend, group size, v_dim] where several holders give it
	lse      []float32      // [groups, attend, group size]
	frame    []byte
}

// Lane implements session.Service.
func (r *Relay) Lane(stream *session.ServerStream) error {
	ctx, fail := context.WithCancelCause(stream.Context())
	defer fail(nil)
	r.open.Add(1)
	defer r.open.Add(-1)
	l := &lane{
		Relay: r, stream: stream, out: fanout.NewLaneFor(rpc.As(context.Background(), rpc.CallerOf(stream.Context())), stream.ID(), r.conns), fail: fail,
		room: semaphore.NewWeighted(relayedBytes), started: make(chan *laneStep),
	}
	l.steps.New = func() any { return new(laneStep) }
	ended := make(chan error, 1)
	// Recv ends when this call has returned, so Close waits for it and not this call.
	r.lanes.Go(func() {
		err := rpc.Guard(r.log, "reading a lane", func() error { return l.read(ctx) })
		if status.Code(err) == codes.Internal {
			fail(err) // finishers that wait for steps are not all fed any more
		}
		close(l.started)
		l.tasks.Wait()
		l.out.Close()
		ended <- err
	})
	select {
	case err := <-ended:
		return err
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-r.stopping:
		return status.Error(codes.Unavailable, "the coordinator stops; its sessions stay with the workers")
	}
}

// read starts steps in the order in which they come.
func (l *lane) read(ctx context.Context) error {
	for {
		s := l.steps.Get().(*laneStep)
		err := l.stream.Recv(&s.request)
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		s.bytes = int64(len(s.request.Payload.Bytes())) // less than all: a message has at most half
		s.arrived = time.Now()
		if err := l.room.Acquire(ctx, s.bytes); err != nil {
			s.request.Payload.Free()
			return err
		}
		if err := l.start(ctx, s); err != nil {
			l.answer(s, err)
			continue
		}
		select {
		case l.started <- s:
			continue
		case <-ctx.Done():
			rpc.ShareOf(ctx).GiveAnswer(s.answers)
			return ctx.Err()
		default:
		}
		if l.finishers < relayed {
			l.finishers++
			l.tasks.Go(func() {
				if err := rpc.Guard(l.log, "answering a lane", func() error { l.finish(ctx, s); return nil }); err != nil {
					l.fail(err)
				}
			})
			continue
		}
		select {
		case l.started <- s:
		case <-ctx.Done():
			rpc.ShareOf(ctx).GiveAnswer(s.answers)
			return ctx.Err()
		}
	}
}

// finish waits for a step's answers and answers it, then for those of the next.
func (l *lane) finish(ctx context.Context, s *laneStep) {
	for s != nil {
		l.answer(s, s.call.Once(ctx))
		if ctx.Err() != nil {
			return
		}
		s = <-l.started // nil at the end
	}
}

// start sends a step on. The error is an answer to it.
func (l *lane) start(ctx context.Context, s *laneStep) error {
	if over := s.request.NoRoom; over != nil {
		return noRoom(over)
	}
	p, err := l.find(ctx, s.request.Step.Session[:])
	if err != nil {
		return err
	}
	h := p.Holding()
	m := &s.request.Step
	invalid := func(format string, args ...any) error {
		return session.Errorf(session.Invalid, format, args...)
	}
	layers := h.Layers()
	if int64(m.Layer) >= int64(len(layers)) {
		return invalid("layer %d of %d", m.Layer, len(layers))
	}
	s.layer = &layers[m.Layer]
	if len(m.Answers) > 0 {
		return invalid("layer %d: a coordinator answers for all groups, not for some", m.Layer)
	}
	// The whole message is checked here, whichever way it takes from here.
	if _, err := m.Check(s.layer, nil, len(s.request.Payload.Bytes())); err != nil {
		return invalid("layer %d: %v", m.Layer, err)
	}
	// The answer's memory is taken before the workers are asked for it: they send as fast as they can, and the client reads as
	// it likes. Of several holders it is there three times: as it comes, joined, and as it goes on.
	room := 4 * int64(s.layer.Heads) * int64(m.Attend) * int64(s.layer.VDim()+1)
	if !h.Whole(int(m.Layer)) {
		room *= 3
	}
	if s.layer.Striped() { // the parts of each split come
		room += 4 * int64(s.layer.Heads) * int64(m.Attend) * int64(s.layer.VDim()+2) * int64(m.SplitsSeen(s.layer))
	}
	if err := rpc.ShareOf(ctx).TakeAnswer(ctx, room); err != nil {
		return noRoom(err)
	}
	s.answers = room
	s.step = fanout.Step{Step: *m}
	if l.tracer != nil {
		s.span = l.tracer.Relayed(m.Trace, &observe.StepFacts{Session: m.Session, Layer: m.Layer, Appended: m.Append, Attend: m.Attend}, s.arrived)
	}
	if s.span != nil {
		s.step.Span = s.wire
	}
	if h.Whole(int(m.Layer)) {
		s.step.Payload, s.request.Payload = s.request.Payload, nil
		s.call = l.out.Start(ctx, p, &s.step)
		return nil
	}
	if err := s.payload.Cut(s.layer, m, s.request.Payload.Bytes()); err != nil {
		return err
	}
	s.step.Input, s.step.Output = &s.payload, s
	if m.Codec == headwaterv1.StepCodec_STEP_CODEC_I8 || s.layer.Striped() {
		s.step.Codec = headwaterv1.StepCodec_STEP_CODEC_RAW // to narrow twice is not to narrow once
	}
	rows := s.layer.Heads * int(m.Attend)
	s.context, s.lse = grow(s.context, rows*s.layer.VDim()), grow(s.lse, rows)
	s.call = l.out.Start(ctx, p, &s.step)
	return nil
}

func grow(s []float32, n int) []float32 {
	if cap(s) < n {
		return make([]float32, n)
	}
	return s[:n]
}

// noRoom returns the refusal of a step for which the process has no room, or nil for an error of the context.
func noRoom(err error) error {
	var room *rpc.RoomError
	switch {
	case errors.As(err, &room):
		return session.Errorf(session.Invalid, "coordinator: %v: cut the step into fewer tokens", err)
	case errors.Is(err, rpc.ErrBusy):
		return session.Errorf(session.Busy, "coordinator: %v", err)
	}
	return err
}

// scratch is the most floats that a step keeps for the next one.
const scratch = 1 << 16

// Take implements fanout.Output.
func (s *laneStep) Take(group int, context, lse []float32) {
	copy(s.context[group*len(context):], context)
	copy(s.lse[group*len(lse):], lse)
}

// answer sends what came of a step.
func (l *lane) answer(s *laneStep, err error) {
	s.request.Payload.Free()
	s.request.Payload = nil
	l.room.Release(s.bytes)
	m := &s.response
	m.Reset()
	m.ID = s.request.ID
	if err == nil {
		err = s.result(&m.Result, &m.Payload)
	}
	if err != nil {
		m.Payload.Free()
		m.Payload = nil
		m.Result = session.Result{Hashes: m.Result.Hashes[:0], Err: l.refusal(s.request.Step.Session[:], err)}
	}
	if cap(s.context) > scratch {
		s.context, s.lse, s.frame = nil, nil, nil
	}
	// A message keeps its part of the room until it is written.
	share := rpc.ShareOf(l.stream.Context())
	if m.Payload != nil {
		kept := min(int64(len(m.Payload.Bytes())), s.answers)
		m.Payload.Hold(share, kept)
		s.answers -= kept
	}
	share.GiveAnswer(s.answers)
	s.answers = 0
	l.sending.Lock()
	err = l.stream.Send(m) // where it fails, Recv does as well
	l.sending.Unlock()
	l.count(s)
	if err == nil {
		l.steps.Put(s)
	}
}

// count counts a step that was answered.
func (l *lane) count(s *laneStep) {
	if s.span != nil {
		var failed error
		if refused := s.response.Result.Err; refused != nil {
			failed = refused
		}
		s.span.End(time.Now(), failed)
		s.span = nil
	}
	if !l.observe.Counts() {
		return
	}
	if refused := s.response.Result.Err; refused != nil {
		l.observe.Refused(observe.ReasonOf(session.NameOf(refused.Reason())))
		return
	}
	l.observe.Step(time.Since(s.arrived), time.Duration(s.step.ComputeNanos+s.step.QueueNanos))
}

// wire begins the span of what a worker is asked.
func (s *laneStep) wire(worker string) (trace [24]byte, end func(time.Time, error)) {
	context, span := s.span.Wire(worker)
	return context, span.End
}

// refusal is an error as an answer.
func (l *lane) refusal(id []byte, err error) *session.Error {
	e := session.Refusal(err)
	switch e.Reason() {
	case session.Lost, session.Unknown:
		l.doubt(l.stream.Context(), id)
	}
	return l.missed(l.stream.Context(), id, e)
}

// result makes the answer of a step that was done.
func (s *laneStep) result(m *session.Result, payload **rpc.Buffer) error {
	m.Length = s.step.Length + uint64(s.step.Append)
	m.Hashes = append(m.Hashes, s.step.Hashes...)
	m.Chain = s.step.Chain
	m.ComputeNanos, m.QueueNanos = s.step.ComputeNanos, s.step.QueueNanos
	m.Codec = s.request.Step.Codec
	if s.step.Input == nil {
		*payload = s.step.Answer
		return nil
	}
	if s.step.Attend == 0 {
		return nil
	}
	if m.Codec == headwaterv1.StepCodec_STEP_CODEC_RAW {
		*payload = rpc.NewBuffer(4 * (len(s.context) + len(s.lse)))
		all := (*payload).Floats()
		copy(all[copy(all, s.context):], s.lse)
		return nil
	}
	codec, ok := layerproto.ReadStepCodec(m.Codec)
	if !ok {
		return session.Errorf(session.Invalid, "codec %s is unknown", m.Codec)
	}
	var err error
	if s.frame, err = contextframe.Encode(s.frame[:0], codec, 0, s.layer.KVHeads*int(s.step.Attend), s.layer.GroupSize(), s.layer.VDim(), s.context, s.lse); err != nil {
		return session.Errorf(session.Invalid, "%v", err)
	}
	*payload = rpc.NewBuffer(len(s.frame))
	copy((*payload).Bytes(), s.frame)
	return nil
}
