package rpc

import (
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
)

const (
	// maxDepth is how deep in a message large fields are looked for: a field of a message in a message is the deepest that
	// headwater.v1 has. maxFields is among how many fields.
	maxDepth  = 2
	maxFields = 64
)

// found is a large field of a message that is read.
type found struct {
	path  []protoreflect.FieldDescriptor
	value []byte
}

// decode reads b into m, whose large fields lie in b afterwards. It says whether there are any.
func decode(b []byte, m proto.Message) (large bool, err error) {
	rest, fields, ok := cut(b, m.ProtoReflect().Descriptor(), nil)
	if !ok || len(fields) == 0 {
		return false, proto.Unmarshal(b, m)
	}
	if err := proto.Unmarshal(rest, m); err != nil {
		return false, err
	}
	for _, f := range fields {
		to := m.ProtoReflect()
		last := len(f.path) - 1
		for _, field := range f.path[:last] {
			to = to.Mutable(field).Message()
		}
		to.Set(f.path[last], protoreflect.ValueOfBytes(f.value))
	}
	return true, nil
}

// cut takes the large fields out of a message. Where it is not ok the message is one that only protobuf's own rules can tell:
// broken, or with a large field that another takes the place of.
func cut(b []byte, message protoreflect.MessageDescriptor, path []protoreflect.FieldDescriptor) (rest []byte, fields []found, ok bool) {
	var seen [maxFields]protowire.Number
	var out []protoreflect.FieldDescriptor // fields that are not in rest, or not whole
	n := 0
	for ; len(b) > 0; n++ {
		number, kind, tag := protowire.ConsumeTag(b)
		if tag < 0 || n == maxFields {
			return nil, nil, false
		}
		length := protowire.ConsumeFieldValue(number, kind, b[tag:])
		if length < 0 {
			return nil, nil, false
		}
		seen[n] = number
		whole, value := b[:tag+length], b[tag:tag+length]
		b = b[tag+length:]
		field := message.Fields().ByNumber(number)
		if length < least || kind != protowire.BytesType || field == nil || field.Cardinality() == protoreflect.Repeated {
			rest = append(rest, whole...)
			continue
		}
		value, _ = protowire.ConsumeBytes(value)
		here := append(path[:len(path):len(path)], field)
		switch {
		case field.Kind() == protoreflect.BytesKind && len(value) >= least:
			fields, out = append(fields, found{here, value}), append(out, field)
		case field.Kind() == protoreflect.MessageKind && len(here) < maxDepth:
			inner, more, ok := cut(value, field.Message(), here)
			if !ok {
				return nil, nil, false
			}
			rest = protowire.AppendTag(rest, number, protowire.BytesType)
			rest = protowire.AppendBytes(rest, inner)
			if len(more) > 0 {
				fields, out = append(fields, more...), append(out, field)
			}
		default:
			rest = append(rest, whole...)
		}
	}
	for _, f := range out {
		if times(seen[:n], f) > 1 {
			return nil, nil, false
		}
	}
	return rest, fields, true
}

// times counts how often a field, or another of the choice that it is one of, was seen.
func times(seen []protowire.Number, f protoreflect.FieldDescriptor) int {
	n := 0
	for _, number := range seen {
		other := f.ContainingMessage().Fields().ByNumber(number)
		if number == f.Number() || other != nil && f.ContainingOneof() != nil && other.ContainingOneof() == f.ContainingOneof() {
			n++
		}
	}
	return n
}
