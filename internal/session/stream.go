package session

import (
	"context"
	"encoding/hex"
	"fmt"
	"slices"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"headwater.example/internal/rpc"
	headwaterv1 "headwater.example/proto/headwater/v1"
)

// MetadataKey carries a lane's id, in hexadecimal.
const MetadataKey = "headwater-lane"

// String returns the id in hexadecimal.
func (id LaneID) String() string { return hex.EncodeToString(id[:]) }

// parseLaneID reads an id of 32 hexadecimal digits.
func parseLaneID(text string) (LaneID, error) {
	var id LaneID
	if len(text) != 2*len(id) {
		return LaneID{}, fmt.Errorf("lane %q: an id has %d hexadecimal digits", text, 2*len(id))
	}
	if _, err := hex.Decode(id[:], []byte(text)); err != nil {
		return LaneID{}, fmt.Errorf("lane %q: %w", text, err)
	}
	return id, nil
}

// Stream is the client's end of a lane. One goroutine may send while another receives.
type Stream struct {
	stream rpc.ClientStream
}

// Open opens a lane. It lives until ctx ends or Recv returns an error.
func Open(ctx context.Context, conn grpc.ClientConnInterface, id LaneID) (*Stream, error) {
	ctx = metadata.AppendToOutgoingContext(ctx, MetadataKey, id.String())
	stream, err := conn.NewStream(ctx, &clientDesc, headwaterv1.SessionService_Lane_FullMethodName, grpc.ForceCodecV2(rpc.MessageCodec{}))
	if err != nil {
		return nil, err
	}
	return &Stream{stream}, nil
}

var clientDesc = grpc.StreamDesc{StreamName: "Lane", ServerStreams: true, ClientStreams: true}

// Send sends a request. It takes the payload, even if it fails; the rest of the request may be used again. It blocks
// while the holder does not read. If the message is too large, the error is an *Error and the lane goes on. After
// io.EOF, Recv says why the lane has ended.
func (s *Stream) Send(r *Request) error {
	var err error
	if refused := tooLarge(r.Bytes()); refused != nil {
		err = refused
	} else {
		err = s.stream.SendMsg(r)
	}
	r.Payload.Free() // where it was not taken
	r.Payload = nil
	return err
}

// CloseSend says that no more requests come. Their answers still arrive, and then io.EOF.
func (s *Stream) CloseSend() error { return s.stream.CloseSend() }

// Recv makes r the next response. Its payload is the caller's.
func (s *Stream) Recv(r *Response) error {
	if err := s.stream.RecvMsg(r); err != nil {
		return err
	}
	if r.fault != nil {
		return unreadable(codes.DataLoss, "an answer on the lane", r.fault)
	}
	return nil
}

// ServerStream is the holder's end of a lane. One goroutine may send while another receives.
type ServerStream struct {
	stream grpc.ServerStream
	id     LaneID
}

// Context ends with the lane.
func (s *ServerStream) Context() context.Context { return s.stream.Context() }

// ID returns the lane's id.
func (s *ServerStream) ID() LaneID { return s.id }

// Send sends a response. It takes the payload, even if it fails; the rest of the response may be used again. It blocks
// while the client does not read. If the message is too large, a refusal is sent instead, so each step is answered.
func (s *ServerStream) Send(r *Response) error {
	if refused := tooLarge(messageBytes(r.ID, sizeOfResult(&r.Result), len(r.Payload.Bytes()))); refused != nil {
		r.Payload.Free()
		r.Payload, r.Result = nil, Result{Hashes: r.Result.Hashes[:0], Err: refused}
	}
	err := s.stream.SendMsg(r)
	r.Payload.Free() // where it was not taken
	r.Payload = nil
	return err
}

// Recv makes r the next request. Its payload is the caller's. io.EOF says that no more come.
func (s *ServerStream) Recv(r *Request) error {
	if err := s.stream.RecvMsg(r); err != nil {
		return err
	}
	if r.fault != nil {
		return unreadable(codes.InvalidArgument, "lane "+s.id.String()+": a message", r.fault)
	}
	return nil
}

// More says whether more than the request that was received last may have come. Only who receives asks.
func (s *ServerStream) More() bool {
	told, ok := s.stream.(interface{ More() bool })
	return !ok || told.More()
}

// unreadable returns the error of a received message that has a fault.
func unreadable(code codes.Code, what string, fault error) error {
	if status.Code(fault) == codes.ResourceExhausted { // its size
		return fault
	}
	return status.Errorf(code, "%s can not be read: %v", what, fault)
}

// Service is headwaterv1.SessionServiceServer with another Lane, which uses this package's messages.
type Service interface {
	CreateSession(context.Context, *headwaterv1.CreateSessionRequest) (*headwaterv1.CreateSessionResponse, error)
	TakeSession(context.Context, *headwaterv1.TakeSessionRequest) (*headwaterv1.TakeSessionResponse, error)
	ForkSession(context.Context, *headwaterv1.ForkSessionRequest) (*headwaterv1.ForkSessionResponse, error)
	TruncateSession(context.Context, *headwaterv1.TruncateSessionRequest) (*headwaterv1.TruncateSessionResponse, error)
	PinSession(context.Context, *headwaterv1.PinSessionRequest) (*headwaterv1.PinSessionResponse, error)
	DropSession(context.Context, *headwaterv1.DropSessionRequest) (*headwaterv1.DropSessionResponse, error)
	ListSessions(context.Context, *headwaterv1.ListSessionsRequest) (*headwaterv1.ListSessionsResponse, error)
	AdoptSession(context.Context, *headwaterv1.AdoptSessionRequest) (*headwaterv1.AdoptSessionResponse, error)
	ExportSession(*headwaterv1.ExportSessionRequest, grpc.ServerStreamingServer[headwaterv1.ExportSessionResponse]) error
	Lane(*ServerStream) error
}

// Register adds the service to a server, which must have been made with grpc.ForceServerCodecV2(Codec{}).
func Register(s grpc.ServiceRegistrar, service Service) {
	desc := headwaterv1.SessionService_ServiceDesc
	desc.Streams = slices.Clone(desc.Streams)
	for i := range desc.Streams {
		if desc.Streams[i].StreamName == clientDesc.StreamName {
			desc.Streams[i].Handler = serveLane
		}
	}
	s.RegisterService(&desc, adapter{Service: service})
}

// adapter adapts a Service to the generated code.
type adapter struct {
	headwaterv1.UnsafeSessionServiceServer
	Service
}

// Lane is not called: serveLane is registered instead.
func (adapter) Lane(grpc.BidiStreamingServer[headwaterv1.LaneRequest, headwaterv1.LaneResponse]) error {
	return status.Error(codes.Unimplemented, "the lane has no handler")
}

func serveLane(service any, stream grpc.ServerStream) error {
	ids := metadata.ValueFromIncomingContext(stream.Context(), MetadataKey)
	if len(ids) != 1 {
		return status.Errorf(codes.InvalidArgument, "a lane has its id in the metadata key %s; there are %d", MetadataKey, len(ids))
	}
	id, err := parseLaneID(ids[0])
	if err != nil {
		return status.Error(codes.InvalidArgument, err.Error())
	}
	// The client learns that the lane is open, and need not keep what it sends for another attempt.
	if err := stream.SendHeader(nil); err != nil {
		return err
	}
	return service.(adapter).Service.Lane(&ServerStream{stream, id})
}
