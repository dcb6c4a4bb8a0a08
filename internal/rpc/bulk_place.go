package rpc

import (
	"errors"
	"io"

	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
)

// placedMessage is a message that is received by RecvBulkTo.
type placedMessage struct {
	message proto.Message
	place   func(field protowire.Number, n int) []byte
}

// MarshalMessage implements SelfCoded.
func (*placedMessage) MarshalMessage() (mem.BufferSlice, error) {
	return nil, errors.New("a message that is only received")
}

// UnmarshalMessage implements SelfCoded. Fields are gathered until a large one begins, and then read to the message.
func (p *placedMessage) UnmarshalMessage(in *Incoming) error {
	r := fieldReader{in: in, left: in.Len()}
	m := p.message.ProtoReflect()
	for r.left > 0 {
		field, n, err := r.next(m.Descriptor())
		if err != nil {
			return err
		}
		if field == nil {
			continue
		}
		if err := r.flush(p.message); err != nil {
			return err
		}
		to := p.place(field.Number(), n)
		if len(to) != n {
			to = make([]byte, n)
		}
		if !r.read(to) {
			return io.ErrUnexpectedEOF
		}
		m.Set(field, protoreflect.ValueOfBytes(to))
	}
	return r.flush(p.message)
}

// fieldReader reads a message field by field.
type fieldReader struct {
	in    *Incoming
	piece []byte // that came, and is not read yet
	left  int    // bytes of the message
	small []byte // fields that are read and not yet the message's
}

// next reads the next field to small. Of one of bytes that is large it reads no more than its length, which it returns with the field.
func (r *fieldReader) next(message protoreflect.MessageDescriptor) (protoreflect.FieldDescriptor, int, error) {
	begun := len(r.small)
	tag, err := r.varint()
	if err != nil {
		return nil, 0, err
	}
	number, kind := protowire.DecodeTag(tag)
	n := 0
	switch kind {
	case protowire.VarintType:
		_, err = r.varint()
		return nil, 0, err
	case protowire.Fixed32Type:
		n = 4
	case protowire.Fixed64Type:
		n = 8
	case protowire.BytesType:
		length, err := r.varint()
		if err != nil {
			return nil, 0, err
		}
		if length > uint64(r.left) {
			return nil, 0, io.ErrUnexpectedEOF
		}
		n = int(length)
		if field := message.Fields().ByNumber(number); n >= least && field != nil && field.Kind() == protoreflect.BytesKind && !field.IsList() {
			r.small = r.small[:begun]
			return field, n, nil
		}
	default:
		return nil, 0, errors.New("a field of no known kind")
	}
	at := len(r.small)
	r.small = append(r.small, make([]byte, n)...)
	if !r.read(r.small[at:]) {
		return nil, 0, io.ErrUnexpectedEOF
	}
	return nil, 0, nil
}

// flush makes the fields that were gathered the message's.
func (r *fieldReader) flush(m proto.Message) error {
	err := proto.UnmarshalOptions{Merge: true, AllowPartial: true}.Unmarshal(r.small, m)
	r.small = r.small[:0]
	return err
}

// varint reads a number, and gathers it.
func (r *fieldReader) varint() (uint64, error) {
	at := len(r.small)
	for range 10 {
		r.small = append(r.small, 0)
		if !r.read(r.small[len(r.small)-1:]) {
			return 0, io.ErrUnexpectedEOF
		}
		if r.small[len(r.small)-1] < 0x80 {
			break
		}
	}
	x, n := protowire.ConsumeVarint(r.small[at:])
	if n < 0 {
		return 0, protowire.ParseError(n)
	}
	return x, nil
}

// read fills dst, and says whether there was as much.
func (r *fieldReader) read(dst []byte) bool {
	for len(dst) > 0 {
		if len(r.piece) == 0 {
			if r.piece = r.in.Next(); r.piece == nil {
				return false
			}
		}
		n := copy(dst, r.piece)
		dst, r.piece, r.left = dst[n:], r.piece[n:], r.left-n
	}
	return true
}
