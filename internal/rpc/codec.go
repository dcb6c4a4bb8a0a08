package rpc

import (
	"sync"

	"google.golang.org/grpc/encoding"
	"google.golang.org/grpc/encoding/proto"
	"google.golang.org/grpc/mem"
)

// Codec is gRPC's codec "proto", which lets each Frame encode itself and leaves every other message to the protobuf codec.
// ServerOptions and DialOptions set it.
type Codec struct{}

// Frame is a message that encodes itself. gRPC frees what MarshalFrame returns when it has been written; UnmarshalFrame copies
// what it needs of the message.
type Frame interface {
	MarshalFrame() (mem.BufferSlice, error)
	UnmarshalFrame(in *Incoming) error
}

// refusable is a Frame that may be received without its payload where there is no room for it: its receiver answers that.
type refusable interface {
	Frame
	Refusable() bool
}

var incomings = sync.Pool{New: func() any { return &Incoming{} }}

var standard = encoding.GetCodecV2(proto.Name)

// Name is that of the protobuf codec: the bytes are the same.
func (Codec) Name() string { return proto.Name }

// Marshal takes the payload of a frame; gRPC frees it when it has been written.
func (Codec) Marshal(v any) (mem.BufferSlice, error) {
	if m, ok := v.(Frame); ok {
		return m.MarshalFrame()
	}
	return standard.Marshal(v)
}

// Unmarshal copies what it needs of data.
func (Codec) Unmarshal(data mem.BufferSlice, v any) error {
	if m, ok := v.(Frame); ok {
		in := incomings.Get().(*Incoming)
		in.pieces = data
		err := m.UnmarshalFrame(in)
		*in = Incoming{}
		incomings.Put(in)
		return err
	}
	return standard.Unmarshal(data, v)
}
