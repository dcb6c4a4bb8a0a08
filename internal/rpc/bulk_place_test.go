package rpc

import (
	"bytes"
	"testing"

	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"pgregory.net/rapid"

	headwaterv1 "headwater.example/proto/headwater/v1"
)

// TestLargeFieldsComeToTheirPlace: a message is the same wherever its large fields go, and however it is cut; what is cut off is an error.
func TestLargeFieldsComeToTheirPlace(t *testing.T) {
	types := messages()
	rapid.Check(t, func(t *rapid.T) {
		kind := rapid.SampledFrom(types).Draw(t, "message")
		m := kind.New()
		fill(t, m, 3)
		want := m.Interface()
		wire, err := proto.Marshal(want)
		if err != nil {
			t.Fatal(err)
		}
		size := rapid.IntRange(1, 20000).Draw(t, "pieces")
		placed := map[protowire.Number][]byte{}
		place := func(field protowire.Number, n int) []byte {
			if n < least || field%3 == 0 {
				return nil
			}
			placed[field] = make([]byte, n)
			return placed[field]
		}
		got := &placedMessage{message: kind.New().Interface(), place: place}
		if err := (MessageCodec{}).Unmarshal(pieces(wire, size), got); err != nil {
			t.Fatal(err)
		}
		if !proto.Equal(got.message, want) {
			t.Fatalf("it is read as another of %d bytes", proto.Size(got.message))
		}
		got.message.ProtoReflect().Range(func(f protoreflect.FieldDescriptor, v protoreflect.Value) bool {
			if to := placed[f.Number()]; f.Kind() == protoreflect.BytesKind && !f.IsList() && len(to) > 0 && &to[0] != &v.Bytes()[0] {
				t.Fatalf("field %s is not where it was to go", f.Name())
			}
			return true
		})
		if len(wire) == 0 {
			return
		}
		// What is cut off in a field is an error; between fields it is another message.
		short := wire[:rapid.IntRange(0, len(wire)-1).Draw(t, "short")]
		var other proto.Message = kind.New().Interface()
		failed := proto.Unmarshal(short, other)
		again := &placedMessage{message: kind.New().Interface(), place: place}
		if err := (MessageCodec{}).Unmarshal(pieces(short, size), again); (err != nil) != (failed != nil) || err == nil && !proto.Equal(again.message, other) {
			t.Fatalf("%d of %d bytes: %v, and of protobuf %v", len(short), len(wire), err, failed)
		}
	})
}

// TestAPlaceKnowsWhatCameBefore: as a large field begins, the message has the fields before it.
func TestAPlaceKnowsWhatCameBefore(t *testing.T) {
	want := &headwaterv1.ExportSessionResponse{Group: 3, Start: 64, Count: 128, K: bytes.Repeat([]byte{1}, 2*least), V: bytes.Repeat([]byte{2}, least)}
	sent, err := (MessageCodec{}).Marshal(&BulkMessage{Message: proto.Clone(want)})
	if err != nil {
		t.Fatal(err)
	}
	m, asked := new(headwaterv1.ExportSessionResponse), 0
	got := &placedMessage{message: m, place: func(field protowire.Number, n int) []byte {
		asked++
		if m.GetGroup() != 3 || m.GetStart() != 64 || m.GetCount() != 128 {
			t.Errorf("field %d of %d bytes begins, and the message is of group %d, %d positions from %d on", field, n, m.GetGroup(), m.GetCount(), m.GetStart())
		}
		return nil
	}}
	if err := (MessageCodec{}).Unmarshal(pieces(sent.Materialize(), 1000), got); err != nil || !proto.Equal(m, want) || asked != 2 {
		t.Fatalf("%d places were asked for: %d and %d bytes, %v", asked, len(m.GetK()), len(m.GetV()), err)
	}
}

// TestFramesAreAsLongAsAskedFor, wherever they come from, and one that is nearly full has the room of a full one, so that it can be one next.
func TestFramesAreAsLongAsAskedFor(t *testing.T) {
	var p framePool
	for _, n := range []int{1, 9, frameBytes / 2, frameBytes/2 + 1, frameBytes - 5, frameBytes, frameBytes + 1, 1 << 20} {
		for range 2 { // made, and likely used again
			b := p.Get(n)
			if len(*b) != n {
				t.Fatalf("%d bytes are %d", n, len(*b))
			}
			if n > frameBytes/2 && n <= frameBytes && cap(*b) != frameBytes {
				t.Fatalf("%d bytes have room for %d", n, cap(*b))
			}
			p.Put(b)
		}
	}
}
