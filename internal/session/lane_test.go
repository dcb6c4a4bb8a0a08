package session

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"testing"

	"go.uber.org/goleak"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/mem"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/reflection"
	reflectionv1 "google.golang.org/grpc/reflection/grpc_reflection_v1"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	"pgregory.net/rapid"

	"headwater.example/internal/rpc"
	headwaterv1 "headwater.example/proto/headwater/v1"
	"headwater.example/shard"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// The generated messages are the oracle of the messages.

func plainRequest(r *Request) *headwaterv1.LaneRequest {
	s := &r.Step
	return &headwaterv1.LaneRequest{Id: r.ID, Payload: r.Payload.Bytes(), Step: &headwaterv1.Step{
		Session: s.Session[:], Epoch: s.Epoch, Truncations: s.Truncations, Layer: s.Layer, Length: s.Length, Hashes: s.Hashes,
		Append: s.Append, Attend: s.Attend, QueryPosition: s.QueryPosition, Encoding: s.Encoding, Codec: s.Codec,
		Tree: s.Tree, TreeMask: s.TreeMask, Tokens: s.Tokens, AppendId: s.AppendID, Chain: s.Chain, Answers: s.Answers, At: s.At,
	}}
}

func plainResponse(r *Response) *headwaterv1.LaneResponse {
	x := &r.Result
	out := &headwaterv1.LaneResponse{Id: r.ID, Payload: r.Payload.Bytes(), Result: &headwaterv1.StepResult{
		Length: x.Length, Hashes: x.Hashes, ComputeNanos: x.ComputeNanos, QueueNanos: x.QueueNanos, Codec: x.Codec, Chain: x.Chain,
	}}
	if x.Err != nil {
		out.Result.Error = x.Err.Why
	}
	return out
}

func payload(b []byte) *rpc.Buffer {
	p := rpc.NewBuffer(len(b))
	copy(p.Bytes(), b)
	return p
}

var numbers = rapid.OneOf(rapid.Just(uint64(0)), rapid.Uint64Range(1, 300), rapid.Uint64())

func drawRequest(t *rapid.T) *Request {
	n32 := func(name string) uint32 { return uint32(numbers.Draw(t, name)) }
	r := &Request{ID: numbers.Draw(t, "id"), Step: Step{
		Epoch: numbers.Draw(t, "epoch"), Truncations: numbers.Draw(t, "truncations"), Layer: n32("layer"), Length: numbers.Draw(t, "length"),
		Hashes: rapid.SliceOfN(rapid.Uint64(), 0, 20).Draw(t, "hashes"), Append: n32("append"), Attend: n32("attend"),
		QueryPosition: numbers.Draw(t, "query_position"), Encoding: headwaterv1.StorageType(n32("encoding")), Codec: headwaterv1.StepCodec(n32("codec")),
		Tree: n32("tree"), TreeMask: rapid.SliceOfN(rapid.Byte(), 0, 300).Draw(t, "tree_mask"), Tokens: rapid.SliceOfN(rapid.Uint32(), 0, 100).Draw(t, "tokens"),
		AppendID: numbers.Draw(t, "append_id"), Chain: numbers.Draw(t, "chain"), Answers: rapid.SliceOfN(rapid.Byte(), 0, 20).Draw(t, "answers"), At: numbers.Draw(t, "at"),
	}}
	copy(r.Step.Session[:], rapid.SliceOfN(rapid.Byte(), 16, 16).Draw(t, "session"))
	r.Payload = payload(rapid.SliceOfN(rapid.Byte(), 0, 5000).Draw(t, "payload"))
	return r
}

func drawResponse(t *rapid.T) *Response {
	r := &Response{ID: numbers.Draw(t, "id"), Result: Result{
		Length: numbers.Draw(t, "length"), Hashes: rapid.SliceOfN(rapid.Uint64(), 0, 20).Draw(t, "hashes"),
		ComputeNanos: numbers.Draw(t, "compute"), QueueNanos: numbers.Draw(t, "queue"), Codec: headwaterv1.StepCodec(numbers.Draw(t, "codec")),
		Chain: numbers.Draw(t, "chain"),
	}}
	if rapid.Bool().Draw(t, "refused") {
		r.Result.Err = Errorf(Reason(rapid.Int32().Draw(t, "problem")), "%s", rapid.String().Draw(t, "message"))
		r.Result.Err.Why.Epoch = &headwaterv1.Epoch{Counter: numbers.Draw(t, "counter"), Lane: rapid.SliceOfN(rapid.Byte(), 0, 16).Draw(t, "lane")}
	}
	r.Payload = payload(rapid.SliceOfN(rapid.Byte(), 0, 5000).Draw(t, "payload"))
	return r
}

// pieces cuts a message as gRPC may have received it.
func pieces(t *rapid.T, b []byte) mem.BufferSlice {
	var out mem.BufferSlice
	for len(b) > 0 {
		n := rapid.IntRange(0, len(b)).Draw(t, "piece")
		out, b = append(out, mem.SliceBuffer(b[:n])), b[n:]
		if len(out) == 8 {
			return append(out, mem.SliceBuffer(b))
		}
	}
	return out
}

func TestMessagesAreTheGeneratedOnes(t *testing.T) {
	var reused Request
	var reusedResponse Response
	rapid.Check(t, func(t *rapid.T) {
		r := drawRequest(t)
		want, err := proto.MarshalOptions{Deterministic: true}.Marshal(plainRequest(r))
		if err != nil {
			t.Fatal(err)
		}
		back := &reused
		if err := back.unmarshal(rpc.NewIncoming(pieces(t, want))); err != nil {
			t.Fatal(err)
		}
		if !proto.Equal(plainRequest(back), plainRequest(r)) {
			t.Fatalf("got %v, want %v", plainRequest(back), plainRequest(r))
		}
		got, err := rpc.MessageCodec{}.Marshal(r)
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(got.Materialize(), want) {
			t.Fatalf("got %x, want %x", got.Materialize(), want)
		}
		got.Free()

		p := drawResponse(t)
		if want, err = (proto.MarshalOptions{Deterministic: true}).Marshal(plainResponse(p)); err != nil {
			t.Fatal(err)
		}
		if err := reusedResponse.unmarshal(rpc.NewIncoming(pieces(t, want))); err != nil {
			t.Fatal(err)
		}
		if !proto.Equal(plainResponse(&reusedResponse), plainResponse(p)) {
			t.Fatalf("got %v, want %v", plainResponse(&reusedResponse), plainResponse(p))
		}
		if got, err = (rpc.MessageCodec{}).Marshal(p); err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(got.Materialize(), want) {
			t.Fatalf("got %x, want %x", got.Materialize(), want)
		}
		got.Free()
	})
}

// compare reads a message as both codecs do, cut at one place, and fails where they differ, except in what messages refuse
// though it is protobuf.
func compare(t *testing.T, b []byte, cut int) {
	t.Helper()
	cut = min(cut, len(b))
	data := mem.BufferSlice{mem.SliceBuffer(b[:cut]), mem.SliceBuffer(b[cut:])}
	var r Request
	var plain headwaterv1.LaneRequest
	err, plainErr := r.unmarshal(rpc.NewIncoming(data)), proto.Unmarshal(b, &plain)
	switch {
	case err == nil && plainErr != nil:
		t.Fatalf("a request was read that protobuf refuses: %v", plainErr)
	case err != nil && plainErr == nil:
		if text := err.Error(); !strings.Contains(text, "an id has") && !strings.Contains(text, "there are more than") {
			t.Fatalf("a request was refused that protobuf reads: %v", err)
		}
		if r.Payload != nil {
			t.Fatal("a refused request has a payload")
		}
	case err == nil:
		if plain.Step == nil {
			plain.Step = &headwaterv1.Step{}
		}
		if plain.Step.Session == nil {
			plain.Step.Session = make([]byte, 16)
		}
		if got := plainRequest(&r); !sameKnown(got, &plain) {
			t.Fatalf("got %v, protobuf has %v", got, &plain)
		}
	}
	r.Payload.Free()
	var p Response
	var plainP headwaterv1.LaneResponse
	err, plainErr = p.unmarshal(rpc.NewIncoming(data)), proto.Unmarshal(b, &plainP)
	switch {
	case err == nil && plainErr != nil:
		t.Fatalf("a response was read that protobuf refuses: %v", plainErr)
	case err != nil && plainErr == nil:
		if !strings.Contains(err.Error(), "there are more than") {
			t.Fatalf("a response was refused that protobuf reads: %v", err)
		}
	case err == nil:
		if plainP.Result == nil {
			plainP.Result = &headwaterv1.StepResult{}
		}
		if got := plainResponse(&p); !sameKnown(got, &plainP) {
			t.Fatalf("got %v, protobuf has %v", got, &plainP)
		}
	}
	p.Payload.Free()
}

// sameKnown compares messages without what they do not know, in their canonical bytes: so is a NaN equal to itself.
func sameKnown(a, b proto.Message) bool {
	var bytesOf [2][]byte
	for i, m := range []proto.Message{a, b} {
		out, err := proto.MarshalOptions{Deterministic: true}.Marshal(dropUnknown(m))
		if err != nil {
			return false
		}
		bytesOf[i] = out
	}
	return bytes.Equal(bytesOf[0], bytesOf[1])
}

func dropUnknown(m proto.Message) proto.Message {
	raw, err := proto.Marshal(m)
	if err != nil {
		panic(err)
	}
	out := m.ProtoReflect().New().Interface()
	if err := (proto.UnmarshalOptions{DiscardUnknown: true}).Unmarshal(raw, out); err != nil {
		panic(err)
	}
	return out
}

// seeds are messages whose fields come in another order, twice, packed or not, with others between that no one knows.
func seeds() [][]byte {
	session := bytes.Repeat([]byte{7}, 16)
	step := protowire.AppendBytes(protowire.AppendTag(nil, stepSession, protowire.BytesType), session)
	step = protowire.AppendFixed64(protowire.AppendTag(step, stepHashes, protowire.Fixed64Type), 9)
	step = protowire.AppendVarint(protowire.AppendTag(step, stepTokens, protowire.VarintType), 5)
	step = protowire.AppendBytes(protowire.AppendTag(step, stepTokens, protowire.BytesType), []byte{1, 2})
	step = protowire.AppendFixed32(protowire.AppendTag(step, 900, protowire.Fixed32Type), 9)
	var m []byte
	m = protowire.AppendBytes(protowire.AppendTag(m, fieldPayload, protowire.BytesType), []byte("first"))
	m = protowire.AppendTag(m, 77, protowire.StartGroupType)
	m = protowire.AppendVarint(protowire.AppendTag(m, 1, protowire.VarintType), 5)
	m = protowire.AppendTag(m, 77, protowire.EndGroupType)
	m = protowire.AppendBytes(protowire.AppendTag(m, fieldPayload, protowire.BytesType), []byte("last"))
	m = protowire.AppendBytes(protowire.AppendTag(m, fieldBody, protowire.BytesType), step)
	m = protowire.AppendBytes(protowire.AppendTag(m, fieldBody, protowire.BytesType), step[18:])
	m = protowire.AppendVarint(protowire.AppendTag(m, fieldID, protowire.VarintType), 1<<40)
	whole := protowire.AppendBytes(protowire.AppendTag(nil, fieldBody, protowire.BytesType), bytes.Repeat([]byte{byte(resultHashes<<3 | 1), 1, 2, 3, 4, 5, 6, 7, 8}, shard.MaxHeads+1))
	return [][]byte{
		nil, m, whole,
		{byte(fieldPayload<<3 | 2), 0xff, 0xff, 0xff, 0xff, 0x7f},                        // 2³⁵ bytes that are not there
		{byte(fieldBody<<3 | 2), 4, byte(stepHashes<<3 | 2), 0xff, 0xff, 0x7f},           // the same within the body
		{byte(fieldID << 3), 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x02}, // 65 bits
		{0x0b, 0x0b, 0x0b},
		{0x0c},
		{7},
		{0, 0},
		{byte(fieldBody<<3 | 2), 3, byte(stepSession<<3 | 2), 1, 'x'}, // groups, tags, a short id
	}
}

func TestMessagesReadWhatProtobufReads(t *testing.T) {
	for i, m := range seeds() {
		t.Run(fmt.Sprint(i), func(t *testing.T) {
			for cut := 0; cut <= min(len(m), 200); cut++ {
				compare(t, m, cut)
				compare(t, m[:cut], cut/2)
			}
		})
	}
}

func FuzzMessage(f *testing.F) {
	for _, m := range seeds() {
		f.Add(m, len(m)/2)
	}
	f.Fuzz(func(t *testing.T, b []byte, cut int) { compare(t, b, max(cut, 0)) })
}

func TestLyingLengthsTakeNoMemory(t *testing.T) {
	m := protowire.AppendVarint(protowire.AppendTag(nil, fieldPayload, protowire.BytesType), 31<<20)
	m = append(m, 1, 2, 3)
	data := mem.BufferSlice{mem.SliceBuffer(m)}
	var r Request
	if err := r.unmarshal(rpc.NewIncoming(data)); err == nil || err.Error() != "a field has 32505856 bytes, and only 3 are left" {
		t.Fatalf("got %v", err)
	}
	r.Step.Tokens = nil
	many := protowire.AppendBytes(protowire.AppendTag(nil, stepTokens, protowire.BytesType), make([]byte, shard.MaxStepTokens+1))
	many = protowire.AppendBytes(protowire.AppendTag(nil, fieldBody, protowire.BytesType), many)
	if err := r.unmarshal(rpc.NewIncoming(mem.BufferSlice{mem.SliceBuffer(many)})); err == nil || !strings.Contains(err.Error(), "more than 65536") {
		t.Fatalf("got %v", err)
	}
}

// echo answers each step with its payload, or ends the lane where it is told to.
type echo struct{ Service }

func (echo) CreateSession(_ context.Context, r *headwaterv1.CreateSessionRequest) (*headwaterv1.CreateSessionResponse, error) {
	if len(r.GetSession()) == 0 {
		err := Errorf(Ahead, "layer %d has more", 3)
		err.Why.Length = 77
		return nil, err
	}
	return &headwaterv1.CreateSessionResponse{State: &headwaterv1.SessionState{Session: r.GetSession()}}, nil
}

func (echo) Lane(s *ServerStream) error {
	var r Request
	var p Response
	for {
		switch err := s.Recv(&r); {
		case errors.Is(err, io.EOF):
			return nil
		case err != nil:
			return err
		}
		p.Reset()
		p.ID, p.Payload, r.Payload = r.ID, r.Payload, nil
		p.Result.Hashes = append(p.Result.Hashes, r.Step.Hashes...)
		p.Result.Length = r.Step.Length + uint64(r.Step.Append)
		if r.Step.Attend == 13 {
			p.Result.Err = Errorf(Busy, "lane %s has enough", s.ID())
		}
		if err := s.Send(&p); err != nil {
			return err
		}
	}
}

func serveEcho(t testing.TB, opts ...grpc.ServerOption) *grpc.ClientConn {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	server := grpc.NewServer(append(opts, grpc.ForceServerCodecV2(rpc.MessageCodec{}))...)
	Register(server, echo{})
	reflection.Register(server)
	done := make(chan struct{})
	go func() { defer close(done); _ = server.Serve(listener) }()
	conn, err := grpc.NewClient(listener.Addr().String(), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close(); server.Stop(); <-done })
	return conn
}

var someID = LaneID{1, 2, 15: 0xff}

func TestLane(t *testing.T) {
	conn := serveEcho(t)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	s, err := Open(ctx, conn, someID)
	if err != nil {
		t.Fatal(err)
	}
	var r Request
	var p Response
	for i := range 100 {
		r.Reset()
		r.ID, r.Step.Length, r.Step.Append = uint64(i), 5, 2
		r.Step.Hashes = append(r.Step.Hashes, 1, uint64(i))
		data := bytes.Repeat([]byte{byte(i)}, i*997)
		r.Payload = payload(data)
		if i == 99 {
			r.Step.Attend = 13
		}
		if err := s.Send(&r); err != nil {
			t.Fatal(err)
		}
		if err := s.Recv(&p); err != nil {
			t.Fatal(err)
		}
		if p.ID != uint64(i) || p.Result.Length != 7 || len(p.Result.Hashes) != 2 || p.Result.Hashes[1] != uint64(i) || !bytes.Equal(p.Payload.Bytes(), data) {
			t.Fatalf("answer %d is not that of its step: %+v", i, p.Result)
		}
		p.Payload.Free()
		p.Payload = nil
	}
	if p.Result.Err == nil || p.Result.Err.Error() != "lane "+someID.String()+" has enough" || p.Result.Err.RetryAfter() != rpc.RetryAfter {
		t.Fatalf("got %v", p.Result.Err)
	}
	if err := s.CloseSend(); err != nil {
		t.Fatal(err)
	}
	if err := s.Recv(&p); !errors.Is(err, io.EOF) {
		t.Fatalf("got %v", err)
	}
}

func TestLaneSpeaksToGeneratedClients(t *testing.T) {
	conn := serveEcho(t)
	client := headwaterv1.NewSessionServiceClient(conn)
	ctx := metadata.AppendToOutgoingContext(t.Context(), MetadataKey, someID.String())
	s, err := client.Lane(ctx)
	if err != nil {
		t.Fatal(err)
	}
	data := bytes.Repeat([]byte("headwater"), 9000)
	if err := s.Send(&headwaterv1.LaneRequest{Id: 3, Step: &headwaterv1.Step{Session: make([]byte, 16), Hashes: []uint64{4, 5}}, Payload: data}); err != nil {
		t.Fatal(err)
	}
	p, err := s.Recv()
	if err != nil || p.GetId() != 3 || len(p.GetResult().GetHashes()) != 2 || !bytes.Equal(p.GetPayload(), data) {
		t.Fatalf("got %v: %v", p, err)
	}
	// What can not be read ends the lane, by name.
	if err := s.Send(&headwaterv1.LaneRequest{Step: &headwaterv1.Step{Session: []byte("short")}}); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Recv(); status.Code(err) != codes.InvalidArgument || !strings.Contains(err.Error(), "an id has 16 bytes, not 5") {
		t.Fatalf("got %v", err)
	}
	for name, ctx := range map[string]context.Context{
		"there are 0":   t.Context(),
		"has 32 hexade": metadata.AppendToOutgoingContext(t.Context(), MetadataKey, "00"),
		"invalid byte":  metadata.AppendToOutgoingContext(t.Context(), MetadataKey, strings.Repeat("x", 32)),
	} {
		s, err := client.Lane(ctx)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := s.Recv(); status.Code(err) != codes.InvalidArgument || !strings.Contains(err.Error(), name) {
			t.Errorf("%s: got %v", name, err)
		}
	}
	r, err := reflectionv1.NewServerReflectionClient(conn).ServerReflectionInfo(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if err := r.Send(&reflectionv1.ServerReflectionRequest{MessageRequest: &reflectionv1.ServerReflectionRequest_FileContainingSymbol{FileContainingSymbol: "headwater.v1.SessionService.Lane"}}); err != nil {
		t.Fatal(err)
	}
	if told, err := r.Recv(); err != nil || len(told.GetFileDescriptorResponse().GetFileDescriptorProto()) == 0 {
		t.Fatalf("got %v: %v", told, err)
	}
	if err := r.CloseSend(); err != nil {
		t.Fatal(err)
	}
	if _, err := r.Recv(); !errors.Is(err, io.EOF) {
		t.Fatal(err)
	}
}

// TestMessagesTooLarge: who sends one is refused, and its lane goes on; who receives one says so by its own words. The largest
// that is allowed arrives.
func TestMessagesTooLarge(t *testing.T) {
	conn := serveEcho(t, grpc.MaxRecvMsgSize(rpc.MaxMessageBytes), grpc.MaxSendMsgSize(rpc.MaxMessageBytes))
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	s, err := Open(ctx, limited{conn, rpc.MaxMessageBytes}, someID)
	if err != nil {
		t.Fatal(err)
	}
	r, p := Request{ID: 1}, Response{}
	n := rpc.MaxMessageBytes - r.messageBytes(rpc.MaxMessageBytes) + rpc.MaxMessageBytes // of the largest payload
	r.Payload = rpc.NewBuffer(n + 1)
	var refused *Error
	if err := s.Send(&r); !errors.As(err, &refused) || refused.Reason() != Invalid || r.Payload != nil ||
		!strings.Contains(err.Error(), "33554433 bytes, and at most 33554432") || !strings.Contains(err.Error(), "fewer tokens") {
		t.Fatalf("got %v", err)
	}
	for _, size := range []int{n - 100, 3} { // the echo's answer has some fields more
		r.Payload = rpc.NewBuffer(size)
		if err := s.Send(&r); err != nil {
			t.Fatal(err)
		}
		if err := s.Recv(&p); err != nil || len(p.Payload.Bytes()) != size {
			t.Fatalf("%d bytes came back: %v", len(p.Payload.Bytes()), err)
		}
		p.Payload.Free()
		p.Payload = nil
	}
	// An answer that is too large, here for what the echo says beside it, is refused in its place.
	r.Step.Attend = 13
	r.Payload = rpc.NewBuffer(n - 10)
	if err := s.Send(&r); err != nil {
		t.Fatal(err)
	}
	if err := s.Recv(&p); err != nil || p.Result.Err == nil || p.Result.Err.Reason() != Invalid || p.Payload != nil || p.ID != r.ID {
		t.Fatalf("got %v: %v", p.Result.Err, err)
	}
	r.Step.Attend = 0
	// A client that sends more all the same.
	roomy := serveEcho(t, grpc.MaxRecvMsgSize(2*rpc.MaxMessageBytes))
	stock, err := headwaterv1.NewSessionServiceClient(roomy).Lane(metadata.AppendToOutgoingContext(ctx, MetadataKey, someID.String()))
	if err != nil {
		t.Fatal(err)
	}
	if err := stock.Send(&headwaterv1.LaneRequest{Payload: make([]byte, rpc.MaxMessageBytes)}); err != nil {
		t.Fatal(err)
	}
	if _, err := stock.Recv(); status.Code(err) != codes.ResourceExhausted || !strings.Contains(err.Error(), "a message has 33554437 bytes, and at most 33554432 are allowed: cut the step into fewer tokens") {
		t.Fatalf("got %v", err)
	}
}

// limited takes messages of so many bytes.
type limited struct {
	grpc.ClientConnInterface
	bytes int
}

func (n limited) NewStream(ctx context.Context, desc *grpc.StreamDesc, method string, opts ...grpc.CallOption) (grpc.ClientStream, error) {
	return n.ClientConnInterface.NewStream(ctx, desc, method, append(opts, grpc.MaxCallRecvMsgSize(n.bytes))...)
}

func TestErrorsArriveAsTheyWere(t *testing.T) {
	client := headwaterv1.NewSessionServiceClient(serveEcho(t))
	_, err := client.CreateSession(t.Context(), &headwaterv1.CreateSessionRequest{})
	e, ok := FromError(fmt.Errorf("create: %w", err))
	if !ok || e.Reason() != Ahead || e.Why.GetLength() != 77 || e.Error() != "layer 3 has more" {
		t.Fatalf("got %v: %v", e, err)
	}
	if status.Code(err) != codes.FailedPrecondition {
		t.Fatalf("got %v", err)
	}
	for _, err := range []error{nil, io.EOF, status.Error(codes.NotFound, "other")} {
		if e, ok := FromError(err); ok {
			t.Errorf("%v became %v", err, e)
		}
	}
	for number, name := range headwaterv1.SessionProblem_name {
		e := Errorf(Reason(number), "")
		e.Why.Holder = "w1"
		back, ok := FromError(e.GRPCStatus().Err())
		if !ok || back.Reason() != e.Reason() || !strings.HasPrefix(back.Error(), "w1: ") {
			t.Errorf("%s became %v", name, back)
		}
		if code := e.GRPCStatus().Code(); code == codes.Unknown || (code == codes.Internal) != (number == 0) {
			t.Errorf("%s has the code %s", name, code)
		}
	}
}

func TestMessagesAllocateNothing(t *testing.T) {
	if raceEnabled {
		t.Skip("pools drop what they hold under the race detector")
	}
	r := Request{ID: 1, Step: Step{Hashes: []uint64{1, 2}, Tokens: []uint32{7}, TreeMask: []byte{1}}, Payload: rpc.NewBuffer(16 << 10)}
	raw, err := proto.Marshal(plainRequest(&r))
	if err != nil {
		t.Fatal(err)
	}
	data := mem.BufferSlice{mem.SliceBuffer(raw[:10]), mem.SliceBuffer(raw[10:9000]), mem.SliceBuffer(raw[9000:])}
	var back Request
	n := testing.AllocsPerRun(100, func() {
		if err := (rpc.MessageCodec{}).Unmarshal(data, &back); err != nil || back.fault != nil {
			t.Fatal(err, back.fault)
		}
		out, err := rpc.MessageCodec{}.Marshal(&back)
		if err != nil {
			t.Fatal(err)
		}
		out.Free()
	})
	if n != 0 {
		t.Fatalf("a message read and written allocates %v times", n)
	}
}

func TestTraceOfAStepIsWholeOrNone(t *testing.T) {
	for _, c := range []struct {
		trace [24]byte
		bytes int
	}{{[24]byte{}, 0}, {[24]byte{0: 1, 23: 2}, 2 + 1 + 24}} {
		plain, traced := Step{Session: [16]byte{1}, Layer: 1}, Step{Session: [16]byte{1}, Layer: 1, Trace: c.trace}
		b := appendStep(nil, &traced)
		if n := len(b) - len(appendStep(nil, &plain)); n != c.bytes || sizeOfStep(&traced) != len(b) {
			t.Errorf("a trace takes %d bytes, want %d; %d bytes are said for %d", n, c.bytes, sizeOfStep(&traced), len(b))
		}
		var read Step
		if err := read.unmarshal(b); err != nil || read.Trace != c.trace {
			t.Errorf("it is read as %x: %v", read.Trace, err)
		}
	}
	var m Step
	if err := m.unmarshal(appendBytes(nil, stepTrace, make([]byte, 23))); err == nil || !strings.Contains(err.Error(), "trace: it has 24 bytes, not 23") {
		t.Errorf("23 bytes are read as a trace: %v", err)
	}
}
