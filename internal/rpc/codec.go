package rpc

import (
	"sync"

	"google.golang.org/grpc/encoding"
	"google.golang.org/grpc/encoding/proto"
	"google.golang.org/grpc/mem"
)

// MessageCodec is gRPC's codec "proto", which lets each SelfCoded message encode itself and leaves every other message to the protobuf codec.
// ServerOptions and DialOptions set it.
type MessageCodec struct{}

// SelfCoded is a message that encodes itself. gRPC frees what MarshalMessage returns when it has been written; UnmarshalMessage copies
// what it needs of the message.
type SelfCoded interface {
	MarshalMessage() (mem.BufferSlice, error)
	UnmarshalMessage(in *Incoming) error
}

// refusable is a SelfCoded message that may be received without its payload where there is no room for it: its receiver answers that.
type refusable interface {
	SelfCoded
	Refusable() bool
}

var incomings = sync.Pool{New: func() any { return &Incoming{} }}

var standard = encoding.GetCodecV2(proto.Name)

// Name is that of the protobuf codec: the bytes are the same.
func (MessageCodec) Name() string { return proto.Name }

// Marshal takes the payload of a message; gRPC frees it when it has been written.
func (MessageCodec) Marshal(v any) (mem.BufferSlice, error) {
	if m, ok := v.(SelfCoded); ok {
		return m.MarshalMessage()
	}
	return standard.Marshal(v)
}

// Unmarshal copies what it needs of data.
func (MessageCodec) Unmarshal(data mem.BufferSlice, v any) error {
	if m, ok := v.(SelfCoded); ok {
		in := incomings.Get().(*Incoming)
		in.pieces = data
		err := m.UnmarshalMessage(in)
		*in = Incoming{}
		incomings.Put(in)
		return err
	}
	return standard.Unmarshal(data, v)
}
