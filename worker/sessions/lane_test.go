package sessions

import (
	"context"
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"headwater.example/internal/rpc"
	"headwater.example/internal/session"
	"headwater.example/internal/testkit/await"
	headwaterv1 "headwater.example/proto/headwater/v1"
	"headwater.example/worker/internal/machine"
)

// rawCodec sends and receives messages as they are.
type rawCodec struct{}

func (rawCodec) Name() string { return "proto" }

func (rawCodec) Marshal(v any) ([]byte, error) { return *v.(*[]byte), nil }

func (rawCodec) Unmarshal(b []byte, v any) error {
	*v.(*[]byte) = append([]byte(nil), b...)
	return nil
}

// raw sends one message on a lane of its own and returns the answer, or how the lane ended.
func (p *place) raw(t testing.TB, message []byte) (*headwaterv1.LaneResponse, error) {
	t.Helper()
	ctx, cancel := context.WithCancel(metadata.AppendToOutgoingContext(context.Background(), session.MetadataKey, session.LaneID{0xee}.String()))
	defer cancel()
	stream, err := p.conn.NewStream(ctx, &grpc.StreamDesc{ServerStreams: true, ClientStreams: true}, headwaterv1.SessionService_Lane_FullMethodName, grpc.ForceCodec(rawCodec{}))
	if err != nil {
		t.Fatal(err)
	}
	if err := stream.SendMsg(&message); err != nil {
		t.Fatal(err)
	}
	var b []byte
	if err := stream.RecvMsg(&b); err != nil {
		return nil, err
	}
	r := &headwaterv1.LaneResponse{}
	if err := proto.Unmarshal(b, r); err != nil {
		t.Fatal(err)
	}
	return r, nil
}

// hostile is a worker with a session that someone else drives, and a step of it.
func hostile(t testing.TB) (p *place, d *driver, s *sequence, message []byte) {
	t.Helper()
	p = serveSessions(t, machine.Config{Budget: 1 << 24})
	d = p.lane(t, 2)
	t.Cleanup(d.cancel)
	s = newSequence(1, simpleLayer(headwaterv1.StorageType_STORAGE_TYPE_F32))
	s.create(t, p, d)
	m := s.draw(t, 0, 3, 0, false)
	if e := d.ask(t, m.step, m.payload).GetResult().GetError(); e != nil {
		t.Fatal(e)
	}
	s.apply(m)
	m = s.draw(t, 0, 1, 1, false)
	m.step.Session[0] ^= 1 // a session that is not held, so that no fuzzed step may change this one
	message, err := proto.Marshal(&headwaterv1.LaneRequest{Id: 1, Step: m.step, Payload: m.payload})
	m.step.Session[0] ^= 1
	if err != nil {
		t.Fatal(err)
	}
	return p, d, s, message
}

// attack sends a message on a lane of its own. The lane ends or answers; another goes on, and nothing is left.
func attack(t testing.TB, p *place, d *driver, s *sequence, message []byte) {
	t.Helper()
	r, err := p.raw(t, message)
	switch {
	case err == nil && r.GetResult().GetError().GetProblem() == 0:
		t.Fatalf("it was done: %v", r)
	case err != nil && status.Code(err) != codes.InvalidArgument && status.Code(err) != codes.ResourceExhausted:
		t.Fatalf("the lane ended with %v", err)
	case err != nil && strings.Contains(err.Error(), "\n"):
		t.Fatalf("an error that does not read well: %v", err)
	}
	m := s.draw(t, 0, 0, 1, false)
	s.check(t, m, d.ask(t, m.step, m.payload))
}

func TestHostileFramesEndTheirLaneAlone(t *testing.T) {
	p, d, s, message := hostile(t)
	attack(t, p, d, s, nil)
	rng := rand.New(rand.NewPCG(1, 2))
	for i := range message {
		attack(t, p, d, s, message[:i])
	}
	for range 300 {
		m := append([]byte(nil), message...)
		for range 1 + rng.IntN(4) {
			m[rng.IntN(len(m))] = byte(rng.Uint32())
		}
		attack(t, p, d, s, m)
	}
	for _, lie := range [][]byte{
		{3<<3 | 2, 0xff, 0xff, 0xff, 0xff, 0x7f},
		{2<<3 | 2, 0xff, 0xff, 0xff, 0x0f},
		{2<<3 | 2, 5, 6<<3 | 2, 0xff, 0xff, 0xff, 0x0f},
		{7, 7, 7},
	} {
		attack(t, p, d, s, lie)
	}
}

func FuzzLane(f *testing.F) {
	p, d, s, message := hostile(f)
	f.Add(message)
	f.Add([]byte{3<<3 | 2, 0xff, 0xff, 0xff, 0xff, 0x7f})
	f.Fuzz(func(t *testing.T, m []byte) { attack(t, p, d, s, m) })
}

// flood sends steps of one session whose answers, of a MiB each, are not read, until the lane is not read either.
func flood(t testing.TB, p *place, d *driver, s *sequence) {
	t.Helper()
	m := s.draw(t, 0, 0, 9000, false)
	sending, stop := context.WithCancel(context.Background())
	sent := make(chan struct{}, 1)
	done := make(chan struct{})
	go func() {
		defer close(done)
		for range 2 * laneSteps {
			if err := d.stream.Send(&headwaterv1.LaneRequest{Step: m.step, Payload: m.payload}); err != nil {
				return
			}
			select {
			case sent <- struct{}{}:
			case <-sending.Done():
				return
			}
		}
	}()
	t.Cleanup(func() { d.cancel(); stop(); await.One(t, done, "the end of sending") })
	await.One(t, sent, "the first step, on the lane")
}

func bigLayer() *headwaterv1.SessionLayer {
	l := simpleLayer(headwaterv1.StorageType_STORAGE_TYPE_F32)
	l.Causal = false
	return l
}

// tap stands between one lane and its client.
type tap struct {
	lane     session.LaneID
	received chan struct{} // one element for each step
	sending  chan struct{} // one element for each answer, before it is sent
	send     chan struct{} // from which each answer takes one
	ended    chan struct{} // closed when the lane has ended
}

func newTap(id byte) *tap {
	return &tap{session.LaneID{id}, make(chan struct{}, 10_000), make(chan struct{}, 10_000), make(chan struct{}, 10_000), make(chan struct{})}
}

func (p *tap) intercept(srv any, stream grpc.ServerStream, _ *grpc.StreamServerInfo, handle grpc.StreamHandler) error {
	if ids := metadata.ValueFromIncomingContext(stream.Context(), session.MetadataKey); len(ids) != 1 || ids[0] != p.lane.String() {
		return handle(srv, stream)
	}
	defer close(p.ended)
	return handle(srv, &tapped{stream, p})
}

type tapped struct {
	grpc.ServerStream
	tap *tap
}

func (s *tapped) RecvMsg(m any) error {
	err := s.ServerStream.RecvMsg(m)
	if err == nil {
		s.tap.received <- struct{}{}
	}
	return err
}

func (s *tapped) SendMsg(m any) error {
	s.tap.sending <- struct{}{}
	select {
	case <-s.tap.send:
	case <-s.Context().Done():
	}
	return s.ServerStream.SendMsg(m)
}

// TestASlowReaderBlocksItsOwnLane sends more steps than a lane may have in flight, whose answers are not read. The lane is
// read to its limit of steps or of bytes and no further, while another one is served; once the answers are read, so is the rest.
func TestASlowReaderBlocksItsOwnLane(t *testing.T) {
	for name, attend := range map[string]int{"steps": 1, "bytes": 2000} {
		t.Run(name, func(t *testing.T) {
			slow := newTap(1)
			// The part of the messages in flight that one call may have is more than that of a lane.
			p := serveSessions(t, machine.Config{Budget: 8 << 30}, grpc.ChainStreamInterceptor(slow.intercept))
			d, quick := p.lane(t, 1), p.lane(t, 2)
			defer d.cancel()
			l := bigLayer()
			l.HeadDim, l.VDim = 128, 1
			a, b := newSequence(1, l), newSequence(2, bigLayer())
			a.create(t, p, d)
			b.create(t, p, quick)
			m := a.draw(t, 0, 0, attend, false)
			// All of a lane's steps are in flight until the first is answered; its payload is free by then.
			most := min(laneSteps, laneBytes/len(m.payload)+2)
			steps := most + 3
			sent := make(chan error, 1)
			go func() {
				for i := range steps {
					if err := d.stream.Send(&headwaterv1.LaneRequest{Id: uint64(i + 1), Step: m.step, Payload: m.payload}); err != nil {
						sent <- err
						return
					}
				}
				sent <- nil
			}()
			for range most {
				await.One(t, slow.received, "a step, at the worker")
			}
			for range 50 {
				m := b.draw(t, 0, 3, 2, false)
				r := quick.ask(t, m.step, m.payload)
				b.apply(m)
				b.check(t, m, r)
			}
			if n := len(slow.received); n != 0 {
				t.Errorf("%d steps are read beyond the %d that a lane may have in flight", n, most)
			}
			close(slow.send)
			for i := range steps {
				r, err := d.stream.Recv()
				if err != nil || r.GetId() != uint64(i+1) {
					t.Fatalf("answer %d: of step %d: %v", i+1, r.GetId(), err)
				}
				if i == 0 || i == steps-1 {
					a.check(t, m, r)
				}
			}
			if err := await.One(t, sent, "the end of sending"); err != nil {
				t.Fatal(err)
			}
			d.end(t)
			quick.end(t)
		})
	}
}

// TestAClientThatVanishes leaves lanes in the middle of all they do. What is left is sessions, as long as their answers say.
func TestAClientThatVanishes(t *testing.T) {
	p := serveSessions(t, machine.Config{})
	for i := range 20 {
		d := p.lane(t, byte(i+1))
		s := newSequence(uint64(i+1), bigLayer())
		s.create(t, p, d)
		switch i % 4 {
		case 0:
			flood(t, p, d, s)
		case 1:
			for range 10 {
				m := s.draw(t, 0, 20, 20, false)
				d.send(t, m.step, m.payload)
				s.apply(m)
			}
		case 2:
			m := s.draw(t, 0, 5000, 5000, false)
			d.send(t, m.step, m.payload)
		}
		d.cancel()
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if err := p.m.Drain(ctx); err != nil { // it waits for the lanes' goroutines
		t.Fatal(err)
	}
	list, err := p.sessions.ListSessions(t.Context(), &headwaterv1.ListSessionsRequest{})
	if err != nil || len(list.GetSessions()) != 20 {
		t.Fatalf("%d sessions are left: %v", len(list.GetSessions()), err)
	}
	var pages uint64
	for _, s := range list.GetSessions() {
		pages += s.GetOwnBytes()
	}
	if c := list.GetCaches()[0]; c.GetUsedBytes() != pages || c.GetQueuedSteps() != 0 || c.GetQueuedTokens() != 0 || c.GetLanes() != 0 || uint64(p.m.Budget.Used()) != c.GetUsedBytes()+c.GetFreeBytes()+c.GetRowBytes()+c.GetSessionBytes() {
		t.Fatalf("pages of sessions are %d bytes, of the budget %d are used: %v", pages, p.m.Budget.Used(), c)
	}
	for _, s := range list.GetSessions() {
		if _, err := p.sessions.DropSession(t.Context(), &headwaterv1.DropSessionRequest{Session: s.GetSession()}); err != nil {
			t.Fatal(err)
		}
	}
	if c := p.m.Store.Cache(); c.UsedBytes != 0 {
		t.Fatalf("%d bytes of pages are lost", c.UsedBytes)
	}
}

func TestDrainAnswersWhatWasAccepted(t *testing.T) {
	held := newTap(1)
	p := serveSessions(t, machine.Config{}, grpc.ChainStreamInterceptor(held.intercept))
	d := p.lane(t, 1)
	s := newSequence(1, simpleLayer(headwaterv1.StorageType_STORAGE_TYPE_F32))
	s.create(t, p, d)
	m := s.draw(t, 0, 400, 400, false)
	id := d.send(t, m.step, m.payload)
	await.One(t, held.sending, "the answer, at the worker") // so it was accepted
	drained := make(chan error, 1)
	go func() { drained <- p.m.Drain(t.Context()) }()
	await.One(t, p.m.Stopping(), "that the worker stops")
	close(held.send)
	r, err := d.stream.Recv()
	if err != nil || r.GetId() != id {
		t.Fatalf("got %v: %v", r, err)
	}
	s.apply(m)
	s.check(t, m, r)
	if _, err := d.stream.Recv(); status.Code(err) != codes.Unavailable || !strings.Contains(err.Error(), "stopping") {
		t.Fatalf("the lane ended with %v", err)
	}
	if err := await.One(t, drained, "the end of draining"); err != nil {
		t.Fatal(err)
	}
	_, err = p.sessions.CreateSession(t.Context(), &headwaterv1.CreateSessionRequest{})
	if e, ok := session.FromError(err); !ok || e.Reason() != problemBusy || status.Code(err) != codes.Unavailable {
		t.Fatalf("got %v", err)
	}
	refused := p.lane(t, 2)
	if _, err := refused.stream.Recv(); status.Code(err) != codes.Unavailable {
		t.Fatalf("got %v", err)
	}
	refused.cancel()
	d.cancel()
}

func TestManyQueryTokensAreBusy(t *testing.T) {
	p := serveSessions(t, machine.Config{})
	d := p.lane(t, 1)
	s := newSequence(1, simpleLayer(headwaterv1.StorageType_STORAGE_TYPE_F32))
	s.create(t, p, d)
	of, err := p.service.standings.enter("w", "")
	if err != nil {
		t.Fatal(err)
	}
	p.service.standings.queue(of, maxQueuedTokens) // of another lane
	m := s.draw(t, 0, 1, 1, false)
	if e := d.ask(t, m.step, m.payload).GetResult().GetError(); e.GetProblem() != problemBusy || !strings.Contains(e.GetMessage(), "again later") {
		t.Errorf("got %v", e)
	}
	p.service.standings.dequeue(of, maxQueuedTokens)
	p.service.standings.leave(of)
	state, err := p.sessions.ListSessions(t.Context(), &headwaterv1.ListSessionsRequest{Sessions: [][]byte{s.id}})
	if err != nil {
		t.Fatal(err)
	}
	s.same(t, state.GetSessions()[0])
	if c := state.GetCaches()[0]; c.GetUsedBytes() != 0 || c.GetQueuedTokens() != 0 {
		t.Errorf("a step that was refused has left %v", c)
	}
	r := d.ask(t, m.step, m.payload)
	s.apply(m)
	s.check(t, m, r)
	d.end(t)
}

// TestAStepAllocatesNothing but what gRPC does.
func TestAStepAllocatesNothing(t *testing.T) {
	if raceEnabled {
		t.Skip("pools drop what they hold under the race detector")
	}
	p := serveSessions(t, machine.Config{})
	d := p.lane(t, 1)
	s := newSequence(1, simpleLayer(headwaterv1.StorageType_STORAGE_TYPE_BF16))
	s.create(t, p, d)
	m := s.draw(t, 0, 100, 1, false)
	r := d.ask(t, m.step, m.payload)
	s.apply(m)
	s.check(t, m, r)
	m = s.draw(t, 0, 0, 1, false)
	tk := &task{start: make(chan struct{}, 1)}
	ours := rpc.As(context.Background(), rpc.Anyone)
	do := func() {
		tk.request.Step = session.Step{
			Session: [16]byte(s.id), Epoch: 1, Length: 100, Hashes: append(tk.request.Step.Hashes[:0], m.step.Hashes...), Attend: 1,
			QueryPosition: 99, Codec: headwaterv1.StepCodec_STEP_CODEC_RAW, Chain: m.step.Chain,
		}
		tk.request.Payload = rpc.NewBuffer(len(m.payload))
		copy(tk.request.Payload.Bytes(), m.payload)
		tk.response.Reset()
		tk.queued = -1
		if err := p.service.do(ours, d.id, tk); err != nil {
			t.Fatal(err)
		}
		tk.request.Payload.Free()
		tk.response.Payload.Free()
		tk.response.Payload = nil
	}
	if n := testing.AllocsPerRun(100, do); n != 0 {
		t.Errorf("a step allocates %v times", n)
	}
	d.end(t)
}

func BenchmarkStep(b *testing.B) {
	for _, n := range []int{128, 16384} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			p := serveSessions(b, machine.Config{})
			l := &headwaterv1.SessionLayer{NHeads: 32, NKvHeads: 8, HeadDim: 128, VDim: 128, Storage: headwaterv1.StorageType_STORAGE_TYPE_BF16, Causal: true, WindowLeft: -1, WindowRight: -1}
			s := newSequence(1, l)
			d := p.lane(b, 1)
			s.create(b, p, d)
			for s.lengths[0] < n {
				m := s.draw(b, 0, 128, 0, true)
				if e := d.ask(b, m.step, m.payload).GetResult().GetError(); e != nil {
					b.Fatal(e)
				}
				s.apply(m)
			}
			m := s.draw(b, 0, 0, 1, true)
			b.ReportAllocs()
			for b.Loop() {
				if e := d.ask(b, m.step, m.payload).GetResult().GetError(); e != nil {
					b.Fatal(e)
				}
			}
			d.end(b)
		})
	}
}
