package lane

import (
	"google.golang.org/grpc/encoding"
	"google.golang.org/grpc/encoding/proto"
	"google.golang.org/grpc/mem"
)

// Codec is gRPC's codec "proto", which reads and writes Request and Response by hand, and leaves each Frame to itself. Servers
// of SessionService are made with it (grpc.ForceServerCodecV2); Open uses it on the client's side.
type Codec struct{}

// Frame is a message that encodes itself. gRPC frees what MarshalFrame returns when it has been written; UnmarshalFrame copies
// what it needs of data.
type Frame interface {
	MarshalFrame() (mem.BufferSlice, error)
	UnmarshalFrame(data mem.BufferSlice) error
}

var standard = encoding.GetCodecV2(proto.Name)

// Name is that of the protobuf codec: the bytes are the same.
func (Codec) Name() string { return proto.Name }

// Marshal takes the payload of a frame; gRPC frees it when it has been written.
func (Codec) Marshal(v any) (mem.BufferSlice, error) {
	switch m := v.(type) {
	case *Request:
		return m.marshal()
	case *Response:
		return m.marshal()
	case Frame:
		return m.MarshalFrame()
	}
	return standard.Marshal(v)
}

// Unmarshal copies what it needs of data. What it says of a frame that it can not read is told by Recv, since gRPC would
// call it an internal error.
func (Codec) Unmarshal(data mem.BufferSlice, v any) error {
	switch m := v.(type) {
	case *Request:
		m.fault = m.unmarshal(data)
		return nil
	case *Response:
		m.fault = m.unmarshal(data)
		return nil
	case Frame:
		return m.UnmarshalFrame(data)
	}
	return standard.Unmarshal(data, v)
}
