package rpc

import (
	"cmp"
	"slices"

	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
)

// least is the length of the fields of bytes that are not copied.
const least = 4 << 10

// large is a field that is not copied, or a message that has such a field, as pieces.
type large struct {
	field  protoreflect.FieldDescriptor
	pieces [][]byte
}

// encode encodes m as pieces, some of which are its large fields. These are cleared.
func encode(m protoreflect.Message) ([][]byte, error) {
	var parts []large
	var failed error
	m.Range(func(field protoreflect.FieldDescriptor, v protoreflect.Value) bool {
		pieces := [][]byte(nil)
		switch {
		case field.Cardinality() == protoreflect.Repeated:
		case field.Kind() == protoreflect.BytesKind && len(v.Bytes()) >= least:
			pieces = [][]byte{v.Bytes()}
		case field.Kind() == protoreflect.MessageKind && hasLarge(v.Message()):
			pieces, failed = encode(v.Message())
		}
		if pieces != nil {
			parts = append(parts, large{field, pieces})
			m.Clear(field)
		}
		return failed == nil
	})
	if failed != nil {
		return nil, failed
	}
	slices.SortFunc(parts, func(a, b large) int { return cmp.Compare(a.field.Number(), b.field.Number()) })
	small, err := proto.Marshal(m.Interface())
	if err != nil {
		return nil, err
	}
	pieces := [][]byte{small}
	for _, p := range parts {
		length := 0
		for _, piece := range p.pieces {
			length += len(piece)
		}
		last := &pieces[len(pieces)-1]
		if len(pieces) > 1 { // that is a large field
			pieces = append(pieces, nil)
			last = &pieces[len(pieces)-1]
		}
		*last = protowire.AppendTag(*last, p.field.Number(), protowire.BytesType)
		*last = protowire.AppendVarint(*last, uint64(length))
		pieces = append(pieces, p.pieces...)
	}
	return pieces, nil
}

// hasLarge says whether m or a message in it has a large field.
func hasLarge(m protoreflect.Message) (has bool) {
	m.Range(func(field protoreflect.FieldDescriptor, v protoreflect.Value) bool {
		switch {
		case field.Cardinality() == protoreflect.Repeated:
		case field.Kind() == protoreflect.BytesKind:
			has = len(v.Bytes()) >= least
		case field.Kind() == protoreflect.MessageKind:
			has = hasLarge(v.Message())
		}
		return !has
	})
	return has
}
