package rpc

import (
	"io"

	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
)

// SendBulk sends m on a stream, whose connection or server has MessageCodec. Its large fields are sent from where they lie, and m
// is left without them. memory, which may be nil, is where they lie: it is taken, also if SendBulk fails, and used again once
// they are written. A large field that lies elsewhere must not be changed any more.
func SendBulk(stream interface{ SendMsg(any) error }, m proto.Message, memory *Buffer) error {
	f := BulkMessage{Message: m, memory: memory}
	err := stream.SendMsg(&f)
	f.memory.Free() // where it was not taken
	return err
}

// RecvBulk makes m, which is empty, the next message of a stream. Its large fields lie in memory, which is the caller's: once it
// is freed they must not be used. Memory that is not freed is left to the garbage collector. It is nil where no field is
// large.
func RecvBulk(stream interface{ RecvMsg(any) error }, m proto.Message) (memory *Buffer, err error) {
	f := BulkMessage{Message: m}
	if err := stream.RecvMsg(&f); err != nil {
		f.memory.Free()
		return nil, err
	}
	return f.memory, nil
}

// RecvBulkTo is RecvBulk for a message whose large fields have a place: as one begins, place is asked where its n bytes go. The message has
// the fields then that came before. Where place has none, the field lies in memory of its own, which is not counted.
func RecvBulkTo(stream interface{ RecvMsg(any) error }, m proto.Message, place func(field protowire.Number, n int) []byte) error {
	return stream.RecvMsg(&placedMessage{message: m, place: place})
}

// BulkMessage is a message as the codec, and interceptors, see it.
type BulkMessage struct {
	Message proto.Message
	memory  *Buffer
}

// MarshalMessage implements SelfCoded.
func (f *BulkMessage) MarshalMessage() (mem.BufferSlice, error) {
	pieces, err := encode(f.Message.ProtoReflect())
	if err != nil {
		return nil, err
	}
	memory := f.memory
	f.memory = nil
	return memory.give(pieces), nil
}

// UnmarshalMessage implements SelfCoded.
func (f *BulkMessage) UnmarshalMessage(in *Incoming) error {
	memory := NewBuffer(in.Len())
	if !in.copyTo(memory.Bytes()) {
		memory.Free()
		return io.ErrUnexpectedEOF
	}
	large, err := decode(memory.Bytes(), f.Message)
	if !large || err != nil {
		memory.Free()
		return err
	}
	f.memory = memory
	return nil
}

// Memory implements buffered.
func (f *BulkMessage) Memory() *Buffer { return f.memory }
