package rpc

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"testing"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/grpc/test/bufconn"

	"headwater.example/internal/testkit/await"
	headwaterv1 "headwater.example/proto/headwater/v1"
)

// flown is a server of raw messages whose flight is counted, and a connection to it.
type flown struct {
	flight *Flight
	conn   *grpc.ClientConn
}

// fly serves one bidirectional method, "/test.Flight/Call", by handle.
func fly(t *testing.T, cfg FlightConfig, handle func(stream grpc.ServerStream) error) *flown {
	t.Helper()
	f := NewFlight(cfg)
	server := grpc.NewServer(f.ServerOptions()...)
	server.RegisterService(&grpc.ServiceDesc{
		ServiceName: "test.Flight", HandlerType: (*any)(nil),
		Streams: []grpc.StreamDesc{{StreamName: "Call", ServerStreams: true, ClientStreams: true, Handler: func(_ any, stream grpc.ServerStream) error { return handle(stream) }}},
	}, nil)
	listener := bufconn.Listen(1 << 16)
	served := make(chan struct{})
	go func() { defer close(served); _ = server.Serve(listener) }()
	conn, err := grpc.NewClient("passthrough:///memory", append(DialOptions(), grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return listener.DialContext(ctx) }))...)
	if err != nil {
		t.Fatal(err)
	}
	flown := &flown{f, conn}
	t.Cleanup(func() {
		conn.Close()
		server.Stop()
		await.One(t, served, "the end of the server")
		// Handlers may return after the server has stopped.
		flown.until(t, "is empty", func(s FlightState) bool { s.Peak = 0; return s == FlightState{} })
	})
	return flown
}

// call opens a stream.
func (f *flown) call(t *testing.T, ctx context.Context) grpc.ClientStream {
	t.Helper()
	s, err := f.conn.NewStream(ctx, &grpc.StreamDesc{ServerStreams: true, ClientStreams: true}, "/test.Flight/Call")
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// block is a message of n bytes.
func block(n int) *headwaterv1.SubmitRequest {
	return &headwaterv1.SubmitRequest{Request: &headwaterv1.SubmitRequest_Data{Data: make([]byte, n)}}
}

// until waits for a state.
func (f *flown) until(t *testing.T, what string, is func(FlightState) bool) {
	t.Helper()
	await.That(t, "a flight that "+what, func() bool { return is(f.flight.State()) })
}

// TestAMessageIsCountedBeforeItIsRead lets a message wait for room until another's memory is free.
func TestAMessageIsCountedBeforeItIsRead(t *testing.T) {
	const size = 20 << 20 // two do not fit
	got, free := make(chan *Buffer), make(chan struct{})
	f := fly(t, FlightConfig{Patience: time.Hour}, func(stream grpc.ServerStream) error {
		memory, err := RecvBulk(stream, &headwaterv1.SubmitRequest{})
		if err != nil {
			return err
		}
		got <- memory
		select {
		case <-free:
		case <-stream.Context().Done(): // the test has failed
		}
		memory.Free()
		return nil
	})
	first, second := f.call(t, t.Context()), f.call(t, t.Context())
	if err := first.SendMsg(block(size)); err != nil {
		t.Fatal(err)
	}
	await.One(t, got, "a message, at the server")
	sent := make(chan error, 1)
	go func() { sent <- second.SendMsg(block(size)) }()
	f.until(t, "waits a message", func(s FlightState) bool { return s.Waiting == 1 })
	if in := f.flight.State().Received; in > size+4<<10 {
		t.Errorf("%d bytes are counted while the second waits", in)
	}
	free <- struct{}{}
	await.One(t, got, "a message, at the server")
	free <- struct{}{}
	for _, s := range []grpc.ClientStream{first, second} {
		if err := s.RecvMsg(&headwaterv1.SubmitResponse{}); err == nil || status.Code(err) == codes.ResourceExhausted {
			t.Errorf("the call ended with %v", err)
		}
	}
	if err := await.One(t, sent, "the end of sending"); err != nil {
		t.Error(err)
	}
}

// TestAMessageThatFindsNoRoomIsRefused by type once it has waited, and by name if there can be no room.
func TestAMessageThatFindsNoRoomIsRefused(t *testing.T) {
	full := errors.New("the cache is full")
	f := fly(t, FlightConfig{Patience: time.Millisecond, Free: 1 << 20, Reserve: func(int64) error { return full }, Release: func(int64) {}}, func(stream grpc.ServerStream) error {
		memory, err := RecvBulk(stream, &headwaterv1.SubmitRequest{})
		memory.Free()
		return err
	})
	s := f.call(t, t.Context())
	if err := s.SendMsg(block(4 << 20)); err != nil {
		t.Fatal(err)
	}
	if err := s.RecvMsg(&headwaterv1.SubmitResponse{}); status.Code(err) != codes.ResourceExhausted {
		t.Errorf("got %v", err)
	}
	small := f.call(t, t.Context())
	if err := small.SendMsg(block(1000)); err != nil {
		t.Fatal(err)
	}
	if err := small.RecvMsg(&headwaterv1.SubmitResponse{}); status.Code(err) == codes.ResourceExhausted {
		t.Errorf("a small message is refused: %v", err)
	}
}

// TestTenantsTakeTurnsWhereThereIsNoRoom: a tenant of which many messages wait does not hold up one of another's.
func TestTenantsTakeTurnsWhereThereIsNoRoom(t *testing.T) {
	t.Parallel()
	const size = 20 << 20 // two do not fit
	f := NewFlight(FlightConfig{Patience: time.Hour})
	var order []string // guarded by the room for one
	var all sync.WaitGroup
	shares := map[string]*Share{}
	for i, tenant := range []string{"first", "ann", "ann", "ann", "ann", "bob", "bob", "ann"} {
		s, err := f.open(nil, tenant, func(error) {})
		if err != nil {
			t.Fatal(err)
		}
		if i == 0 {
			if err := s.take(t.Context(), inward, size); err != nil {
				t.Fatal(err)
			}
			shares[tenant] = s
			continue
		}
		all.Go(func() {
			if err := s.take(t.Context(), inward, size); err != nil {
				t.Error(err)
			}
			order = append(order, tenant)
			s.end()
		})
		(&flown{flight: f}).until(t, "waits", func(s FlightState) bool { return s.Waiting == i })
	}
	shares["first"].end()
	await.All(t, &all, "all messages")
	if got := fmt.Sprint(order); got != "[ann bob ann bob ann ann ann]" {
		t.Errorf("messages were let in as %s", got)
	}
	if s := f.State(); s.Received != 0 || s.Calls != 0 {
		t.Errorf("left is %+v", s)
	}
}

// answering sends answers of size bytes as long as it may.
func answering(size int) func(stream grpc.ServerStream) error {
	return func(stream grpc.ServerStream) error {
		for {
			share := ShareOf(stream.Context())
			if err := share.TakeAnswer(stream.Context(), int64(size)); err != nil {
				return refusal(err)
			}
			memory := NewBuffer(size)
			memory.Hold(share, int64(size))
			if err := SendBulk(stream, &headwaterv1.DownloadResultResponse{Data: memory.Bytes()}, memory); err != nil {
				return err
			}
		}
	}
}

// TestAPeerThatDoesNotReadIsEndedIfOthersWait fills the room for answers with those of some who do not read.
func TestAPeerThatDoesNotReadIsEndedIfOthersWait(t *testing.T) {
	f := fly(t, FlightConfig{Patience: 100 * time.Millisecond}, answering(20<<20))
	for range 2 {
		f.call(t, t.Context())
	}
	f.until(t, "is ended", func(s FlightState) bool { return s.Calls == 0 && s.Answers == 0 && s.Peak > 0 })
}

// TestAPeerThatDoesNotReadTakesNothingOfOthers has a part of the room at most, however much waits for it.
func TestAPeerThatDoesNotReadTakesNothingOfOthers(t *testing.T) {
	const size = 1 << 20
	f := fly(t, FlightConfig{Patience: time.Hour}, answering(size))
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	f.call(t, ctx)
	f.until(t, "has its part", func(s FlightState) bool { return s.Answers >= leastFlight/ownPart-size })
	reading := f.call(t, ctx)
	for range 100 {
		if err := reading.RecvMsg(&headwaterv1.DownloadResultResponse{}); err != nil {
			t.Fatal(err)
		}
	}
	if s := f.flight.State(); s.Answers > 2*leastFlight/ownPart {
		t.Errorf("two calls have %d bytes of answers", s.Answers)
	}
}

// TestConnectionsAreBounded closes the one that has gone unused the longest.
func TestConnectionsAreBounded(t *testing.T) {
	f := NewFlight(FlightConfig{Conns: 2})
	var ends []net.Conn
	for range 3 {
		near, far := net.Pipe()
		defer near.Close()
		if _, err := f.admit(far); err != nil {
			t.Fatal(err)
		}
		ends = append(ends, near)
	}
	if n := f.State().Conns; n != 2 {
		t.Fatalf("%d connections", n)
	}
	if _, err := ends[0].Read(make([]byte, 1)); err == nil {
		t.Error("the first is open")
	}
	// Both that are left have calls.
	for c := range f.conns {
		if _, err := f.open(c, "", func(error) {}); err != nil {
			t.Fatal(err)
		}
	}
	near, far := net.Pipe()
	defer near.Close()
	if _, err := f.admit(far); err == nil {
		t.Error("a connection is let in beside those that have calls")
	}
}

func TestCallsAreBounded(t *testing.T) {
	wait := make(chan struct{})
	f := fly(t, FlightConfig{Streams: 1}, func(stream grpc.ServerStream) error {
		select {
		case <-wait:
		case <-stream.Context().Done(): // the test has failed
		}
		return nil
	})
	first := f.call(t, t.Context())
	f.until(t, "is open", func(s FlightState) bool { return s.Calls == 1 })
	second := f.call(t, t.Context())
	err := second.RecvMsg(&headwaterv1.SubmitResponse{})
	if status.Code(err) != codes.ResourceExhausted {
		t.Errorf("got %v", err)
	}
	if d := status.Convert(err).Details(); len(d) != 1 || d[0].(*errdetails.RetryInfo).GetRetryDelay().AsDuration() != RetryAfter {
		t.Errorf("it says of when to try again %v", d)
	}
	close(wait)
	_ = first.RecvMsg(&headwaterv1.SubmitResponse{})
}
