package rpc

import (
	"context"
	"encoding/binary"
	"errors"
	"io"
	"slices"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/mem"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
)

const (
	// receivePiece is how much of a message gRPC holds while it is copied to where it belongs.
	receivePiece = 1 << 20
	// streamWindow is what a client may send on a call that is not read. It is fixed, because gRPC's own estimate of the way
	// to a peer lets it grow to 16 MiB for each call. What is being read may come faster: gRPC then allows a piece.
	streamWindow = 128 << 10
	connWindow   = 16 << 20
	// uncountedBytes bounds the messages that gRPC receives itself: those of health checks and reflection.
	uncountedBytes = 1 << 20
)

// ServerOptions returns what a server is made with whose calls the flight counts. Its services are registered by Registrar.
func (f *Flight) ServerOptions(options ...ServerOption) []grpc.ServerOption {
	var o serverOptions
	for _, set := range options {
		set(&o)
	}
	under := insecure.NewCredentials()
	if o.security.secured() {
		under = serverCredentials{o.security, o.lanes}
	}
	return append(ServerOptions(options...),
		grpc.Creds(countedCredentials{under, f, o.security, o.lanes}),
		grpc.InitialWindowSize(streamWindow),
		grpc.InitialConnWindowSize(connWindow),
		grpc.MaxRecvMsgSize(uncountedBytes),
		grpc.ChainStreamInterceptor(f.intercept),
	)
}

// Registrar registers services on s so that unary calls are counted as streams are: gRPC reads the request of a unary call
// before any interceptor sees it, that of a stream when it is asked for. On the wire both are the same. Interceptors see
// streams only.
func Registrar(s grpc.ServiceRegistrar) grpc.ServiceRegistrar { return registrar{s} }

type registrar struct{ grpc.ServiceRegistrar }

func (r registrar) RegisterService(desc *grpc.ServiceDesc, service any) {
	streams := *desc
	streams.Methods = nil
	streams.Streams = slices.Clone(desc.Streams)
	for _, m := range desc.Methods {
		streams.Streams = append(streams.Streams, grpc.StreamDesc{StreamName: m.MethodName, ServerStreams: true, Handler: func(service any, stream grpc.ServerStream) error {
			answer, err := m.Handler(service, stream.Context(), stream.RecvMsg, nil)
			if err != nil {
				return err
			}
			return stream.SendMsg(answer)
		}})
	}
	r.ServiceRegistrar.RegisterService(&streams, service)
}

// intercept counts what a call has in flight.
func (f *Flight) intercept(service any, stream grpc.ServerStream, info *grpc.StreamServerInfo, handle grpc.StreamHandler) error {
	ctx, cancel := context.WithCancelCause(stream.Context())
	defer cancel(nil)
	share, err := f.open(connOf(ctx), CallerOf(ctx).Tenant, cancel)
	if err != nil {
		return err
	}
	defer share.end()
	s := &countedStream{ServerStream: stream, ctx: context.WithValue(ctx, shareKey{}, share), share: share, single: !info.IsClientStream}
	s.transport, _ = grpc.ServerTransportStreamFromContext(ctx).(transportStream)
	err = handle(service, s)
	if err != nil && errors.Is(context.Cause(ctx), errUnread) {
		return errUnread
	}
	return err
}

// transportStream is what gRPC's own receiving uses of a stream.
type transportStream interface {
	ReadMessageHeader(header []byte) error
	Read(n int) (mem.BufferSlice, error)
}

// countedStream is a stream of which one goroutine receives and one sends.
type countedStream struct {
	grpc.ServerStream
	ctx       context.Context
	share     *Share
	transport transportStream
	single    bool // the client sends one message
	header    [5]byte
	in        Incoming
	loose     int64 // taken for the last message, which lies in no Buffer
}

// Context carries the share, and ends as well if the call is ended for its silence.
func (s *countedStream) Context() context.Context { return s.ctx }

// More says whether more than the message that was received last may have come. A plain stream knows it.
func (s *countedStream) More() bool {
	p, plain := s.transport.(*plainStream)
	return !plain || p.more()
}

// done gives back what the last message took.
func (s *countedStream) done() {
	s.share.give(inward, s.loose)
	s.loose = 0
}

// RecvMsg receives as gRPC does, but takes room for a message once its length is known.
func (s *countedStream) RecvMsg(m any) error {
	s.done()
	n, err := s.length(m)
	if err != nil {
		return err
	}
	in := &s.in
	*in = Incoming{transport: s.transport, share: s.share, left: n}
	room := min(2*int64(n), int64(n)+receivePiece) // gRPC's piece is copied
	err = s.share.take(s.ctx, inward, room)
	refused := isRoom(err)
	switch {
	case err == nil:
		s.loose = room
	case refused:
		in.over = err
		if f, ok := m.(refusable); !ok || !f.Refusable() {
			return refusal(err)
		}
	default:
		return refusal(err)
	}
	if n > streamWindow {
		s.share.receiving(true)
	}
	err = s.decode(in, m)
	in.free()
	if n > streamWindow {
		s.share.receiving(false)
	}
	if in.err != nil {
		return received(s.ctx, in.err)
	}
	if err != nil {
		if _, ok := status.FromError(err); ok {
			return err
		}
		return status.Errorf(codes.InvalidArgument, "the message can not be read: %v", err)
	}
	if !refused {
		s.settle(m, int64(n))
	}
	if s.single {
		switch _, err := s.length(nil); {
		case errors.Is(err, io.EOF):
		case err != nil:
			return err
		default:
			return status.Error(codes.Internal, "more than one request came on a call that takes one")
		}
	}
	return nil
}

// buffered is a SelfCoded message whose large part lies in a Buffer, or nil.
type buffered interface{ Memory() *Buffer }

// isRoom says whether an error is that there is no room.
func isRoom(err error) bool {
	var room *RoomError
	return errors.Is(err, ErrBusy) || errors.As(err, &room)
}

// settle counts a message of n bytes that was read. Its Buffer holds it from now on; a message without one is given back with
// the next.
func (s *countedStream) settle(m any, n int64) {
	s.share.give(inward, s.loose-n)
	s.loose = n
	f, ok := m.(buffered)
	if !ok {
		return
	}
	if b := f.Memory(); b != nil {
		b.hold(s.share, inward, n)
		s.loose = 0
	}
}

// length reads the header of the next message.
func (s *countedStream) length(m any) (int, error) {
	if err := s.transport.ReadMessageHeader(s.header[:]); err != nil {
		return 0, received(s.ctx, err)
	}
	if s.header[0] != 0 {
		return 0, status.Error(codes.Unimplemented, "compressed messages are not taken")
	}
	n := binary.BigEndian.Uint32(s.header[1:])
	if n > MaxMessageBytes {
		what := "cut it into several"
		if _, ok := m.(refusable); ok {
			what = "cut the step into fewer tokens"
		}
		return 0, status.Errorf(codes.ResourceExhausted, "a message has %d bytes, and at most %d are allowed: %s", n, MaxMessageBytes, what)
	}
	return int(n), nil
}

// received gives an error of the transport its status.
func received(ctx context.Context, err error) error {
	if errors.Is(err, io.EOF) {
		return io.EOF
	}
	if cause := context.Cause(ctx); cause != nil {
		return refusal(cause)
	}
	if errors.Is(err, io.ErrUnexpectedEOF) {
		return status.Error(codes.Internal, err.Error())
	}
	if _, ok := status.FromError(err); ok {
		return err
	}
	return status.Error(codes.Unavailable, err.Error())
}

// decode reads a message into m.
func (s *countedStream) decode(in *Incoming, m any) error {
	if f, ok := m.(SelfCoded); ok {
		return f.UnmarshalMessage(in)
	}
	b, err := in.all()
	if err != nil {
		return err
	}
	if err := proto.Unmarshal(b, m.(proto.Message)); err != nil {
		return status.Errorf(codes.InvalidArgument, "the request can not be read: %v", err)
	}
	return nil
}

// SendMsg takes room for a message that is not counted yet, until it is written.
func (s *countedStream) SendMsg(m any) error {
	answer, ok := m.(proto.Message)
	if !ok {
		if err := s.count(m); err != nil {
			return refusal(err)
		}
		return s.ServerStream.SendMsg(m)
	}
	n := proto.Size(answer)
	if n > MaxMessageBytes {
		return status.Errorf(codes.ResourceExhausted, "the answer has %d bytes, more than the %d of a message: ask for less at once", n, MaxMessageBytes)
	}
	if err := s.share.TakeAnswer(s.ctx, int64(n)); err != nil {
		return refusal(err)
	}
	memory := NewBuffer(max(n, 1))
	memory.Hold(s.share, int64(n))
	b, err := proto.MarshalOptions{}.MarshalAppend(memory.Bytes()[:0], answer)
	if err != nil || len(b) > len(memory.Bytes()) {
		memory.Free()
		return status.Errorf(codes.Internal, "encode an answer: %v", err)
	}
	f := encoded{memory: memory, bytes: b}
	err = s.ServerStream.SendMsg(&f)
	f.memory.Free() // where it was not taken
	return err
}

// count takes room for a bulk message whose memory is not counted yet.
func (s *countedStream) count(m any) error {
	f, ok := m.(*BulkMessage)
	if !ok || f.memory == nil || f.memory.share != nil {
		return nil
	}
	n := int64(len(f.memory.bytes))
	if err := s.share.TakeAnswer(s.ctx, n); err != nil {
		return err
	}
	f.memory.Hold(s.share, n)
	return nil
}

// encoded is a message that is encoded in a Buffer.
type encoded struct {
	memory *Buffer
	bytes  []byte
}

func (e *encoded) MarshalMessage() (mem.BufferSlice, error) {
	memory := e.memory
	e.memory = nil
	if len(e.bytes) == 0 {
		memory.Free()
		return nil, nil
	}
	return memory.give([][]byte{e.bytes}), nil
}

func (*encoded) UnmarshalMessage(*Incoming) error { return errors.New("a message that is only sent") }
