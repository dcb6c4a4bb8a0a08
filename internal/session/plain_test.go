package session

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"log/slog"
	"net"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	statuspb "google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"

	"headwater.example/internal/rpc"
	"headwater.example/internal/testkit/await"
	headwaterv1 "headwater.example/proto/headwater/v1"
)

var testLane = LaneID{1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16}

// plainServer serves lanes on a Unix socket. When the test ends nothing of it is left.
type plainServer struct {
	path   string
	flight *rpc.Flight
}

func servePlainLanes(t testing.TB, cfg rpc.FlightConfig, lane func(*ServerStream) error) *plainServer {
	t.Helper()
	path := filepath.Join(t.TempDir(), "lanes.sock")
	listener, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	s := &plainServer{path, rpc.NewFlight(cfg)}
	ctx, cancel := context.WithCancel(context.Background())
	served := make(chan error, 1)
	go func() { served <- ServePlain(ctx, listener, s.flight, slog.New(slog.DiscardHandler), lane) }()
	t.Cleanup(func() {
		cancel()
		if err := await.One(t, served, "the end of the server"); err != nil {
			t.Error(err)
		}
		if left := s.flight.State(); left.Received != 0 || left.Answers != 0 || left.Calls != 0 || left.Conns != 0 {
			t.Errorf("the flight is left with %+v", left)
		}
	})
	return s
}

// dial connects, and greets as the lane testLane.
func (s *plainServer) dial(t testing.TB) net.Conn {
	t.Helper()
	conn, err := net.Dial("unix", s.path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	if err := conn.SetDeadline(time.Now().Add(time.Minute)); err != nil { // no test hangs
		t.Fatal(err)
	}
	if _, err := conn.Write(hello(plainMagic, plainVersion)); err != nil {
		t.Fatal(err)
	}
	var answer [plainAnswer]byte
	if _, err := io.ReadFull(conn, answer[:]); err != nil {
		t.Fatal(err)
	}
	if string(answer[:4]) != plainMagic || binary.LittleEndian.Uint16(answer[4:]) != plainVersion {
		t.Fatalf("greeted with %q", answer)
	}
	return conn
}

func hello(magic string, version uint16) []byte {
	b := append([]byte(magic), 0, 0, 0, 0)
	binary.LittleEndian.PutUint16(b[4:], version)
	return append(b, testLane[:]...)
}

// request is the record of a request with a payload of n bytes.
func request(t testing.TB, id uint64, n int, step *headwaterv1.Step) []byte {
	t.Helper()
	payload := make([]byte, n)
	for i := range payload {
		payload[i] = byte(i) + byte(id)
	}
	m, err := proto.Marshal(&headwaterv1.LaneRequest{Id: id, Step: step, Payload: payload})
	if err != nil {
		t.Fatal(err)
	}
	return inRecord(0, m)
}

func inRecord(kind byte, m []byte) []byte {
	return append(binary.BigEndian.AppendUint32([]byte{kind}, uint32(len(m))), m...)
}

// record reads a record.
func record(t testing.TB, conn net.Conn) (kind byte, m []byte) {
	t.Helper()
	var header [5]byte
	if _, err := io.ReadFull(conn, header[:]); err != nil {
		t.Fatal(err)
	}
	m = make([]byte, binary.BigEndian.Uint32(header[1:]))
	if _, err := io.ReadFull(conn, m); err != nil {
		t.Fatal(err)
	}
	return header[0], m
}

// answer reads a record that answers a step.
func answer(t testing.TB, conn net.Conn) *headwaterv1.LaneResponse {
	t.Helper()
	kind, m := record(t, conn)
	if kind != 0 {
		t.Fatalf("got a record of kind %d: %q", kind, m)
	}
	var r headwaterv1.LaneResponse
	if err := proto.Unmarshal(m, &r); err != nil {
		t.Fatal(err)
	}
	return &r
}

// endOf reads the record that ends a lane, and then the end of the connection.
func endOf(t testing.TB, conn net.Conn) *status.Status {
	t.Helper()
	kind, m := record(t, conn)
	var s statuspb.Status
	if err := proto.Unmarshal(m, &s); kind != rpc.PlainEnd || err != nil {
		t.Fatalf("a record of kind %d: %v", kind, err)
	}
	if _, err := conn.Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
		t.Fatalf("after the end: %v", err)
	}
	return status.FromProto(&s)
}

func TestPlainLanesCarryRecords(t *testing.T) {
	s := servePlainLanes(t, rpc.FlightConfig{}, echo{}.Lane)
	conn := s.dial(t)
	step := &headwaterv1.Step{Session: make([]byte, 16), Length: 7, Append: 2, Hashes: []uint64{3, 5}}
	sizes := []int{0, 1, 1000, 70_000, 3 << 20, 5}
	var all []byte
	for id, n := range sizes {
		all = append(all, request(t, uint64(id+1), n, step)...)
	}
	written := make(chan error, 1)
	go func() { _, err := conn.Write(all); written <- err }()
	for id, n := range sizes {
		r := answer(t, conn)
		want := make([]byte, n)
		for i := range want {
			want[i] = byte(i) + byte(id+1)
		}
		if r.GetId() != uint64(id+1) || r.GetResult().GetLength() != 9 || len(r.GetResult().GetHashes()) != 2 || string(r.GetPayload()) != string(want) {
			t.Fatalf("answer %d has length %d, %d hashes and %d bytes", r.GetId(), r.GetResult().GetLength(), len(r.GetResult().GetHashes()), len(r.GetPayload()))
		}
	}
	if err := await.One(t, written, "the end of writing"); err != nil {
		t.Fatal(err)
	}
	// A refusal is an answer, and the lane goes on. It names the lane of the greeting.
	if _, err := conn.Write(request(t, 99, 0, &headwaterv1.Step{Attend: 13})); err != nil {
		t.Fatal(err)
	}
	why := answer(t, conn).GetResult().GetError()
	if why.GetMessage() != "lane "+testLane.String()+" has enough" || (&Error{why}).RetryAfter() != rpc.RetryAfter {
		t.Fatal(why)
	}
}

// TestPlainLanesCarryMessagesOfAllShapes between the two ends: payloads around the sizes at which they are read in another way, long heads,
// and fields in any order, of which a reader must take no byte of the next.
func TestPlainLanesCarryMessagesOfAllShapes(t *testing.T) {
	s := servePlainLanes(t, rpc.FlightConfig{}, echo{}.Lane)
	lane := &Stream{rpc.OpenPlain(t.Context(), s.dial(t), func() error { return nil })}
	var sizes []int
	for _, around := range []int{0, 4 << 10, 60 << 10, 64 << 10, 68 << 10, 1 << 20, 1<<20 + 4<<10, 2 << 20} {
		for n := max(around-130, 0); n < around+130; n += 13 {
			sizes = append(sizes, n)
		}
	}
	bytesOf := func(id uint64, n int) []byte {
		b := make([]byte, n)
		for i := range b {
			b[i] = byte(i*7) + byte(i>>8) + byte(id)
		}
		return b
	}
	sent := make(chan error, 1)
	go func() {
		sent <- func() error {
			for id, n := range sizes {
				r := Request{ID: uint64(id), Payload: payload(bytesOf(uint64(id), n))}
				if r.Step.Append = 1; id%3 == 0 {
					r.Step.Hashes = make([]uint64, 3000)
				}
				if err := lane.Send(&r); err != nil {
					return err
				}
			}
			return nil
		}()
	}()
	var r Response
	for id, n := range sizes {
		if err := lane.Recv(&r); err != nil {
			t.Fatal(err)
		}
		if r.ID != uint64(id) || !bytes.Equal(r.Payload.Bytes(), bytesOf(r.ID, n)) || len(r.Result.Hashes) != 3000*((3-id%3)/3) {
			t.Fatalf("answer %d, of %d bytes, has %d bytes and %d hashes", r.ID, n, len(r.Payload.Bytes()), len(r.Result.Hashes))
		}
		r.Payload.Free()
		r.Payload = nil
	}
	if err := await.One(t, sent, "the end of sending"); err != nil {
		t.Fatal(err)
	}
	conn := s.dial(t)
	for id, n := range []int{100, 70_000, 1 << 20, 1<<20 + 70_000} {
		step, err := proto.Marshal(&headwaterv1.Step{Append: 1})
		if err != nil {
			t.Fatal(err)
		}
		want := bytesOf(uint64(id), n)
		m := protowire.AppendBytes(protowire.AppendTag(nil, fieldPayload, protowire.BytesType), bytesOf(9, 66_000)) // of two the last counts
		m = protowire.AppendBytes(protowire.AppendTag(m, fieldPayload, protowire.BytesType), want)
		m = protowire.AppendBytes(protowire.AppendTag(m, fieldBody, protowire.BytesType), step)
		m = protowire.AppendVarint(protowire.AppendTag(m, fieldID, protowire.VarintType), uint64(id+1))
		all := slices.Concat(inRecord(0, m), request(t, 50, 10, &headwaterv1.Step{Append: 1}))
		go func() { _, err := conn.Write(all); sent <- err }()
		if r := answer(t, conn); r.GetId() != uint64(id+1) || !bytes.Equal(r.GetPayload(), want) {
			t.Fatalf("answer %d has %d bytes, not %d", r.GetId(), len(r.GetPayload()), n)
		}
		if r := answer(t, conn); r.GetId() != 50 || len(r.GetPayload()) != 10 {
			t.Fatalf("the answer after it is %d and has %d bytes", r.GetId(), len(r.GetPayload()))
		}
		if err := await.One(t, sent, "the end of sending"); err != nil {
			t.Fatal(err)
		}
	}
}

// TestAClientWaitsForASocketThatIsFull: steps that a server does not read yet fill its socket, and come in order once it does.
func TestAClientWaitsForASocketThatIsFull(t *testing.T) {
	reads := make(chan struct{})
	s := servePlainLanes(t, rpc.FlightConfig{}, func(s *ServerStream) error {
		select {
		case <-reads:
		case <-s.Context().Done(): // as when the test has failed
		}
		return echo{}.Lane(s)
	})
	lane := &Stream{rpc.OpenPlain(t.Context(), s.dial(t), func() error { return nil })}
	const steps, size = 64, 50_000 // more than any socket takes at once
	sent := make(chan error, 1)
	go func() {
		sent <- func() error {
			for id := range steps {
				r := Request{ID: uint64(id + 1), Payload: rpc.NewBuffer(size)}
				r.Step.Append = 1
				for i := range r.Payload.Bytes() {
					r.Payload.Bytes()[i] = byte(id)
				}
				if err := lane.Send(&r); err != nil {
					return err
				}
			}
			return nil
		}()
	}()
	select {
	case err := <-sent:
		t.Fatalf("all was sent while nobody read: %v", err)
	case <-time.After(50 * time.Millisecond): // or the test shows nothing
	}
	close(reads)
	var r Response
	for id := range steps {
		if err := lane.Recv(&r); err != nil {
			t.Fatal(err)
		}
		if b := r.Payload.Bytes(); r.ID != uint64(id+1) || !bytes.Equal(b, bytes.Repeat([]byte{byte(id)}, size)) {
			t.Fatalf("answer %d has %d bytes", r.ID, len(b))
		}
		r.Payload.Free()
		r.Payload = nil
	}
	if err := await.One(t, sent, "the end of sending"); err != nil {
		t.Fatal(err)
	}
}

// TestAnswersOfStepsThatCameTogetherGoTogether lets nobody read while the first of two answers is sent: on a pipe, whatever is
// written waits for a reader.
func TestAnswersOfStepsThatCameTogetherGoTogether(t *testing.T) {
	sent := make(chan struct{})
	near, far := net.Pipe()
	served := make(chan error, 1)
	go func() {
		served <- servePlain(t.Context(), far, rpc.NewFlight(rpc.FlightConfig{}), func(s *ServerStream) error {
			var r [2]Request
			for i := range r {
				if err := s.Recv(&r[i]); err != nil {
					return err
				}
			}
			if err := s.Send(&Response{ID: 1}); err != nil {
				return err
			}
			close(sent)
			return s.Send(&Response{ID: 2})
		})
	}()
	if _, err := near.Write(hello(plainMagic, plainVersion)); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(near, make([]byte, plainAnswer)); err != nil {
		t.Fatal(err)
	}
	if _, err := near.Write(append(request(t, 1, 0, nil), request(t, 2, 0, nil)...)); err != nil {
		t.Fatal(err)
	}
	await.One(t, sent, "the answers, at who sends them")
	for id := range uint64(2) {
		if r := answer(t, near); r.GetId() != id+1 {
			t.Fatalf("answer %d", r.GetId())
		}
	}
	if err := await.One(t, served, "the end of the lane"); err != nil {
		t.Fatal(err)
	}
}

func TestPlainLanesEndWithTheirReason(t *testing.T) {
	serve := func(patience time.Duration) *plainServer {
		return servePlainLanes(t, rpc.FlightConfig{Patience: patience}, func(s *ServerStream) error {
			err := echo{}.Lane(s)
			if errors.Is(err, io.EOF) {
				t.Error("a lane ended as if the client had said so")
			}
			return err
		})
	}
	patient, hasty := serve(time.Minute), serve(50*time.Millisecond)
	long := inRecord(0, nil)
	binary.BigEndian.PutUint32(long[1:], rpc.MaxMessageBytes+1)
	for _, c := range []struct {
		what string
		sent []byte
		code codes.Code
		says string
	}{
		{"a message too long", long, codes.ResourceExhausted, "cut the step into fewer tokens"},
		{"another kind", inRecord(1, []byte("abc")), codes.Unimplemented, ""},
		{"an end", inRecord(rpc.PlainEnd, nil), codes.Unimplemented, ""},
		{"no message", inRecord(0, []byte{7}), codes.InvalidArgument, "a message can not be read"},
		{"half a header", []byte{0, 0}, codes.DeadlineExceeded, "the rest of a record did not come within 50ms"},
		{"half a message", request(t, 1, 100, nil)[:50], codes.DeadlineExceeded, "the rest of a record"},
		{"half a large message", request(t, 1, 1<<20, nil)[:500_000], codes.DeadlineExceeded, "the rest of a record"},
	} {
		s := patient // a busy machine is late with the rest of a record that is all there
		if c.code == codes.DeadlineExceeded {
			s = hasty
		}
		conn := s.dial(t)
		if _, err := conn.Write(c.sent); err != nil {
			t.Fatal(err)
		}
		if e := endOf(t, conn); e.Code() != c.code || !strings.Contains(e.Message(), c.says) {
			t.Errorf("%s: %v", c.what, e)
		}
	}
}

// TestAPlainLaneEndsWithItsConnection waits for the context of a step that is under way.
func TestAPlainLaneEndsWithItsConnection(t *testing.T) {
	began, ended := make(chan struct{}), make(chan struct{})
	s := servePlainLanes(t, rpc.FlightConfig{}, func(s *ServerStream) error {
		var r Request
		if err := s.Recv(&r); err != nil {
			return err
		}
		close(began)
		more := make(chan error)
		go func() { more <- s.Recv(&r) }()
		<-s.Context().Done()
		close(ended)
		return <-more
	})
	conn := s.dial(t)
	if _, err := conn.Write(request(t, 1, 0, nil)); err != nil {
		t.Fatal(err)
	}
	await.One(t, began, "the step, at the server")
	conn.Close()
	await.One(t, ended, "the end of the step's context")
}

func TestOtherGreetingsAreRefused(t *testing.T) {
	s := servePlainLanes(t, rpc.FlightConfig{}, func(*ServerStream) error { t.Error("a lane was served"); return nil })
	withMetadata := hello(plainMagic, plainVersion) // which is taken within TLS alone
	withMetadata[6] = 1
	for _, sent := range [][]byte{
		hello("HWcx", 1), hello(plainMagic, 2), hello(plainMagic, 0), withMetadata, []byte("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"),
	} {
		conn, err := net.Dial("unix", s.path)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := conn.Write(sent); err != nil {
			t.Fatal(err)
		}
		// It is said what this side speaks, and nothing more.
		said, err := io.ReadAll(conn)
		if string(said) != "HWln\x01\x00\x00\x00" || err != nil {
			t.Errorf("%q is answered with %q, %v", sent, said, err)
		}
		conn.Close()
	}
}

// TestPlainConnectionsAreCounted lets two connect: a third one takes the place of one that has not greeted, and is refused where
// all have lanes.
func TestPlainConnectionsAreCounted(t *testing.T) {
	s := servePlainLanes(t, rpc.FlightConfig{Conns: 2}, echo{}.Lane)
	silent, err := net.Dial("unix", s.path)
	if err != nil {
		t.Fatal(err)
	}
	defer silent.Close()
	await.That(t, "the connection, in the flight", func() bool { return s.flight.State().Conns == 1 })
	for range 2 {
		conn := s.dial(t)
		if _, err := conn.Write(request(t, 1, 5, nil)); err != nil {
			t.Fatal(err)
		}
		answer(t, conn)
	}
	if _, err := silent.Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
		t.Fatalf("a silent connection: %v", err)
	}
	third, err := net.Dial("unix", s.path)
	if err != nil {
		t.Fatal(err)
	}
	defer third.Close()
	if _, err := third.Read(make([]byte, 1)); err == nil {
		t.Fatal("a third connection was let in")
	}
}

// FuzzPlain sends a lane whatever bytes: it answers, or ends with a reason, and never hangs.
func FuzzPlain(f *testing.F) {
	for _, m := range seeds() {
		f.Add(append(hello(plainMagic, plainVersion), inRecord(0, m)...))
		f.Add(append(hello(plainMagic, plainVersion), append(inRecord(0, m), inRecord(0x80, m)...)...))
	}
	f.Add([]byte("HWln"))
	f.Fuzz(func(t *testing.T, sent []byte) {
		flight := rpc.NewFlight(rpc.FlightConfig{Patience: time.Second})
		near, far := net.Pipe()
		served := make(chan struct{})
		go func() {
			defer close(served)
			_ = servePlain(t.Context(), far, flight, echo{}.Lane)
		}()
		read := make(chan struct{})
		go func() { defer close(read); _, _ = io.Copy(io.Discard, near) }()
		_, _ = near.Write(sent) // which the other side may read no more
		near.Close()
		await.One(t, served, "the end of the lane")
		await.One(t, read, "the end of its answers")
		if left := flight.State(); left.Received != 0 || left.Answers != 0 || left.Calls != 0 || left.Conns != 0 {
			t.Errorf("the flight is left with %+v", left)
		}
	})
}
