package rpc

import (
	"bytes"
	"math/rand/v2"
	"testing"

	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"
	"pgregory.net/rapid"

	headwaterv1 "headwater.example/proto/headwater/v1"
)

// messages are all of headwater.v1.
func messages() (all []protoreflect.MessageType) {
	protoregistry.GlobalTypes.RangeMessages(func(m protoreflect.MessageType) bool {
		if m.Descriptor().FullName().Parent() == "headwater.v1" {
			all = append(all, m)
		}
		return true
	})
	return all
}

// fill sets some of a message's fields, with fields of bytes on both sides of what is large.
func fill(t *rapid.T, m protoreflect.Message, depth int) {
	fields := m.Descriptor().Fields()
	for i := range fields.Len() {
		f := fields.Get(i)
		if !rapid.Bool().Draw(t, "set "+string(f.Name())) {
			continue
		}
		switch {
		case f.IsMap():
		case f.IsList():
			for range rapid.IntRange(0, 2).Draw(t, "elements") {
				if v, ok := value(t, f, m.NewField(f).List().NewElement(), depth); ok {
					m.Mutable(f).List().Append(v)
				}
			}
		default:
			if v, ok := value(t, f, m.NewField(f), depth); ok {
				m.Set(f, v)
			}
		}
	}
}

func value(t *rapid.T, f protoreflect.FieldDescriptor, empty protoreflect.Value, depth int) (protoreflect.Value, bool) {
	switch f.Kind() {
	case protoreflect.MessageKind:
		if depth == 0 {
			return empty, false
		}
		fill(t, empty.Message(), depth-1)
		return empty, true
	case protoreflect.BytesKind:
		b := make([]byte, rapid.SampledFrom([]int{0, 1, 127, least - 1, least, least + 1, 3 * least, 1 << 16}).Draw(t, "bytes"))
		r := rand.New(rand.NewPCG(uint64(len(b)), rapid.Uint64().Draw(t, "seed")))
		for i := range b {
			b[i] = byte(r.Uint32())
		}
		return protoreflect.ValueOfBytes(b), true
	case protoreflect.StringKind:
		return protoreflect.ValueOfString(rapid.StringN(0, 20, -1).Draw(t, "string")), true
	case protoreflect.Uint32Kind:
		return protoreflect.ValueOfUint32(rapid.Uint32().Draw(t, "uint32")), true
	case protoreflect.Uint64Kind, protoreflect.Fixed64Kind:
		return protoreflect.ValueOfUint64(rapid.Uint64().Draw(t, "uint64")), true
	case protoreflect.BoolKind:
		return protoreflect.ValueOfBool(rapid.Bool().Draw(t, "bool")), true
	}
	return empty, false
}

// pieces cuts b as gRPC does, anywhere.
func pieces(b []byte, size int) (s mem.BufferSlice) {
	for len(b) > 0 {
		n := min(size, len(b))
		s = append(s, mem.SliceBuffer(bytes.Clone(b[:n])))
		b = b[n:]
	}
	return s
}

func TestMessagesAreThoseOfProtobuf(t *testing.T) {
	types := messages()
	if len(types) < 50 {
		t.Fatalf("%d messages", len(types))
	}
	rapid.Check(t, func(t *rapid.T) {
		kind := rapid.SampledFrom(types).Draw(t, "message")
		m := kind.New()
		fill(t, m, 3)
		want := proto.Clone(m.Interface())
		wire, err := proto.Marshal(want)
		if err != nil {
			t.Fatal(err)
		}
		// What the generated code writes is read alike.
		got := BulkMessage{Message: kind.New().Interface()}
		if err := (MessageCodec{}).Unmarshal(pieces(wire, rapid.IntRange(1000, 20000).Draw(t, "pieces")), &got); err != nil {
			t.Fatal(err)
		}
		if !proto.Equal(got.Message, want) {
			t.Fatalf("read %v", got.Message)
		}
		// Freed memory may hold anything: nothing of the message but its large fields may lie in it.
		small := proto.Clone(got.Message)
		_, err = encode(small.ProtoReflect())
		if err != nil {
			t.Fatal(err)
		}
		kept := proto.Clone(small)
		if _, err := encode(got.Message.ProtoReflect()); err != nil {
			t.Fatal(err)
		}
		clear(got.memory.Bytes())
		if !proto.Equal(got.Message, kept) {
			t.Fatalf("%v lies in memory that is used again", got.Message)
		}
		got.memory.Free()
		// What is written is what the generated code reads.
		sent, err := (MessageCodec{}).Marshal(&BulkMessage{Message: m.Interface()})
		if err != nil {
			t.Fatal(err)
		}
		read := kind.New().Interface()
		if err := proto.Unmarshal(sent.Materialize(), read); err != nil || !proto.Equal(read, want) {
			t.Fatalf("wrote %v, %v", read, err)
		}
		if sent.Len() != len(wire) {
			t.Fatalf("%d bytes, protobuf's are %d", sent.Len(), len(wire))
		}
	})
}

// FuzzDecode reads bytes as the generated code does, whatever they are.
func FuzzDecode(f *testing.F) {
	large := bytes.Repeat([]byte{7}, least)
	for _, m := range []proto.Message{
		&headwaterv1.RunRequest{Request: &headwaterv1.RunRequest_KeyValues{KeyValues: &headwaterv1.KeyValueBlock{Groups: []uint32{1, 2}, Start: 5, K: large, V: large}}},
		&headwaterv1.RunRequest{Request: &headwaterv1.RunRequest_Query{Query: &headwaterv1.QueryBlock{Q: large}}},
		&headwaterv1.RunRequest{Request: &headwaterv1.RunRequest_ShardOpen{ShardOpen: &headwaterv1.ShardOpen{Group: 3}}},
	} {
		b, err := proto.Marshal(m)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b, uint16(0))
		f.Add(append(bytes.Clone(b), b...), uint16(0)) // twice: fields merge, and the last counts
		f.Add(append(bytes.Clone(b), 0x1a, 2, 0x2a, 0), uint16(0))
		f.Add(b[:len(b)-1], uint16(5))
	}
	f.Fuzz(func(t *testing.T, b []byte, grown uint16) {
		// Fuzzers do not come to long fields by themselves.
		b = append(b, make([]byte, min(int(grown), 2*least))...)
		want := &headwaterv1.RunRequest{}
		wanted := proto.Unmarshal(b, want)
		got := BulkMessage{Message: &headwaterv1.RunRequest{}}
		err := got.UnmarshalMessage(NewIncoming(pieces(b, 3000)))
		if (err == nil) != (wanted == nil) || err == nil && !proto.Equal(got.Message, want) {
			t.Fatalf("read %v, %v; protobuf %v, %v", got.Message, err, want, wanted)
		}
	})
}
