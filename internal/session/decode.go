package session

import (
	"encoding/binary"
	"errors"
	"fmt"
	"slices"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"

	"headwater.example/internal/rpc"
	headwaterv1 "headwater.example/proto/headwater/v1"
	"headwater.example/shard"
)

var (
	errShort  = errors.New("the message ends within a field")
	errVarint = errors.New("a varint has more than 64 bits")
	errTag    = errors.New("a tag is not one of protobuf")
	errGroup  = errors.New("a group ends that did not begin, or not at all")
)

// UnmarshalMessage implements rpc.SelfCoded. If a message can't be read, Recv returns the error, because gRPC would
// call it an internal error.
func (r *Request) UnmarshalMessage(in *rpc.Incoming) error {
	r.fault = r.unmarshal(in)
	return nil
}

// UnmarshalMessage implements rpc.SelfCoded, as Request's does.
func (r *Response) UnmarshalMessage(in *rpc.Incoming) error {
	r.fault = r.unmarshal(in)
	return nil
}

func (r *Request) unmarshal(in *rpc.Incoming) error {
	r.Payload.Free() // of a message before, which the receiver has not taken
	r.Payload = nil
	r.Reset()
	err := decode(in, &r.ID, &r.scratch, r.Step.unmarshal, &r.Payload)
	if over := in.Over(); over != nil {
		r.NoRoom = over
	}
	return err
}

func (r *Response) unmarshal(in *rpc.Incoming) error {
	r.Payload.Free()
	r.Payload = nil
	r.Reset()
	return decode(in, &r.ID, &r.scratch, r.Result.unmarshal, &r.Payload)
}

// decode reads a LaneRequest or LaneResponse; they differ only in their body. After an error there is no payload.
func decode(in *rpc.Incoming, id *uint64, scratch *[]byte, body func([]byte) error, payload **rpc.Buffer) (err error) {
	defer func() {
		if err != nil {
			(*payload).Free()
			*payload = nil
		}
	}()
	c := cursor{in: in, left: in.Len()}
	if c.left > rpc.MaxMessageBytes {
		// gRPC reads larger messages at clients, so that the error is given here and by name.
		return status.Errorf(codes.ResourceExhausted, "a message has %d bytes, and at most %d are allowed: cut the step into fewer tokens", c.left, rpc.MaxMessageBytes)
	}
	for c.left > 0 {
		field, kind, err := c.tag()
		if err != nil {
			return err
		}
		switch {
		case field == fieldID && kind == protowire.VarintType:
			*id, err = c.varint()
		case field == fieldBody && kind == protowire.BytesType:
			var n int
			if n, err = c.length(); err != nil {
				break
			}
			var b []byte
			if b, err = c.next(n, scratch); err == nil {
				err = body(b)
			}
		case field == fieldPayload && kind == protowire.BytesType:
			var n int
			if n, err = c.length(); err != nil {
				break
			}
			if in.Over() != nil {
				err = c.discard(n)
				break
			}
			(*payload).Free() // of two the last counts
			*payload = rpc.NewBuffer(n)
			err = c.copy((*payload).Bytes())
		default:
			err = c.skip(field, kind, protowire.DefaultRecursionLimit)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// cursor reads a message from the pieces in which gRPC received it.
type cursor struct {
	in   *rpc.Incoming
	cur  []byte // unread, of the piece that came last
	left int    // unread in all
}

// fill reads more into cur if it is empty and anything is left. It fails if the stream ends.
func (c *cursor) fill() error {
	if len(c.cur) == 0 {
		c.cur = c.in.Next()
	}
	if len(c.cur) == 0 {
		return errShort
	}
	return nil
}

func (c *cursor) varint() (uint64, error) {
	var v uint64
	for shift := 0; shift < 70; shift += 7 {
		if c.left == 0 {
			return 0, errShort
		}
		if err := c.fill(); err != nil {
			return 0, err
		}
		b := c.cur[0]
		c.cur, c.left = c.cur[1:], c.left-1
		if shift == 63 && b > 1 {
			return 0, errVarint
		}
		v |= uint64(b&0x7f) << shift
		if b < 0x80 {
			return v, nil
		}
	}
	return 0, errVarint
}

func (c *cursor) tag() (protowire.Number, protowire.Type, error) {
	v, err := c.varint()
	if err != nil {
		return 0, 0, err
	}
	number := v >> 3
	if number < uint64(protowire.MinValidNumber) || number > uint64(protowire.MaxValidNumber) {
		return 0, 0, errTag
	}
	return protowire.Number(number), protowire.Type(v & 7), nil
}

// length reads the number of bytes that follow, and checks that they are there.
func (c *cursor) length() (int, error) {
	n, err := c.varint()
	if err != nil {
		return 0, err
	}
	if n > uint64(c.left) {
		return 0, fmt.Errorf("a field has %d bytes, and only %d are left", n, c.left)
	}
	return int(n), nil
}

// next returns the next n bytes, and copies them only if they are in several pieces. They are valid until scratch or
// the cursor is used.
func (c *cursor) next(n int, scratch *[]byte) ([]byte, error) {
	if n == 0 {
		return nil, nil
	}
	if err := c.fill(); err != nil {
		return nil, err
	}
	if n <= len(c.cur) {
		b := c.cur[:n]
		c.cur, c.left = c.cur[n:], c.left-n
		return b, nil
	}
	*scratch = slices.Grow((*scratch)[:0], n)[:n]
	return *scratch, c.copy(*scratch)
}

// copy fills dst with the next bytes.
func (c *cursor) copy(dst []byte) error {
	for len(dst) > 0 {
		if len(c.cur) == 0 {
			if n := c.in.Straight(dst); n > 0 {
				dst, c.left = dst[n:], c.left-n
				continue
			}
		}
		if err := c.fill(); err != nil {
			return err
		}
		n := copy(dst, c.cur)
		dst, c.cur, c.left = dst[n:], c.cur[n:], c.left-n
	}
	return nil
}

func (c *cursor) discard(n int) error {
	if n > c.left {
		return errShort
	}
	for n > 0 {
		if err := c.fill(); err != nil {
			return err
		}
		m := min(n, len(c.cur))
		c.cur, c.left, n = c.cur[m:], c.left-m, n-m
	}
	return nil
}

// skip skips an unknown field.
func (c *cursor) skip(field protowire.Number, kind protowire.Type, depth int) error {
	switch kind {
	case protowire.VarintType:
		_, err := c.varint()
		return err
	case protowire.Fixed32Type:
		return c.discard(4)
	case protowire.Fixed64Type:
		return c.discard(8)
	case protowire.BytesType:
		n, err := c.length()
		if err != nil {
			return err
		}
		return c.discard(n)
	case protowire.StartGroupType:
		if depth == 0 {
			return errGroup
		}
		for c.left > 0 {
			inner, kind, err := c.tag()
			if err != nil {
				return err
			}
			if kind == protowire.EndGroupType {
				if inner != field {
					return errGroup
				}
				return nil
			}
			if err := c.skip(inner, kind, depth-1); err != nil {
				return err
			}
		}
		return errGroup
	case protowire.EndGroupType:
		return errGroup
	}
	return errTag
}

// If a body has a field twice, the last one counts; repeated fields accumulate.

func (s *Step) unmarshal(b []byte) error {
	for len(b) > 0 {
		field, kind, n := protowire.ConsumeTag(b)
		if n < 0 {
			return protowire.ParseError(n)
		}
		b = b[n:]
		switch {
		case kind == protowire.VarintType && field == stepTokens:
			var v uint64
			if v, n = protowire.ConsumeVarint(b); n >= 0 {
				if len(s.Tokens) == shard.MaxStepTokens {
					return fmt.Errorf("step: tokens: there are more than %d", shard.MaxStepTokens)
				}
				s.Tokens = append(s.Tokens, uint32(v))
			}
		case kind == protowire.VarintType:
			var v uint64
			if v, n = protowire.ConsumeVarint(b); n >= 0 {
				s.set(field, v)
			}
		case kind == protowire.BytesType && (field == stepSession || field == stepHashes || field == stepTreeMask || field == stepTokens || field == stepAnswers || field == stepTrace):
			var v []byte
			if v, n = protowire.ConsumeBytes(b); n >= 0 {
				if err := s.setBytes(field, v); err != nil {
					return fmt.Errorf("step: %w", err)
				}
			}
		case kind == protowire.Fixed64Type && field == stepHashes:
			var err error
			if s.Hashes, n, err = appendHash(s.Hashes, b); err != nil {
				return fmt.Errorf("step: %w", err)
			}
		case kind == protowire.Fixed64Type && field == stepAppendID:
			s.AppendID, n = protowire.ConsumeFixed64(b)
		case kind == protowire.Fixed64Type && field == stepChain:
			s.Chain, n = protowire.ConsumeFixed64(b)
		default:
			n = protowire.ConsumeFieldValue(field, kind, b)
		}
		if n < 0 {
			return protowire.ParseError(n)
		}
		b = b[n:]
	}
	return nil
}

func (s *Step) set(field protowire.Number, v uint64) {
	switch field {
	case stepEpoch:
		s.Epoch = v
	case stepTruncations:
		s.Truncations = v
	case stepLayer:
		s.Layer = uint32(v)
	case stepLength:
		s.Length = v
	case stepAppend:
		s.Append = uint32(v)
	case stepAttend:
		s.Attend = uint32(v)
	case stepQueryPosition:
		s.QueryPosition = v
	case stepEncoding:
		s.Encoding = headwaterv1.StorageType(v)
	case stepCodec:
		s.Codec = headwaterv1.StepCodec(v)
	case stepTree:
		s.Tree = uint32(v)
	case stepAt:
		s.At = v
	}
}

func (s *Step) setBytes(field protowire.Number, v []byte) (err error) {
	switch field {
	case stepSession:
		if len(v) != len(s.Session) {
			return fmt.Errorf("session: an id has %d bytes, not %d", len(s.Session), len(v))
		}
		copy(s.Session[:], v)
	case stepHashes:
		s.Hashes, err = appendPacked(s.Hashes, v)
	case stepTrace:
		if len(v) != len(s.Trace) {
			return fmt.Errorf("trace: it has %d bytes, not %d", len(s.Trace), len(v))
		}
		copy(s.Trace[:], v)
	case stepTreeMask:
		s.TreeMask = append(s.TreeMask[:0], v...)
	case stepAnswers:
		s.Answers = append(s.Answers[:0], v...)
	case stepTokens:
		for len(v) > 0 {
			token, n := protowire.ConsumeVarint(v)
			if n < 0 {
				return protowire.ParseError(n)
			}
			if len(s.Tokens) == shard.MaxStepTokens {
				return fmt.Errorf("tokens: there are more than %d", shard.MaxStepTokens)
			}
			s.Tokens, v = append(s.Tokens, uint32(token)), v[n:]
		}
	}
	return err
}

func (r *Result) unmarshal(b []byte) error {
	for len(b) > 0 {
		field, kind, n := protowire.ConsumeTag(b)
		if n < 0 {
			return protowire.ParseError(n)
		}
		b = b[n:]
		switch {
		case kind == protowire.VarintType:
			var v uint64
			if v, n = protowire.ConsumeVarint(b); n >= 0 {
				r.set(field, v)
			}
		case kind == protowire.BytesType && (field == resultError || field == resultHashes):
			var v []byte
			if v, n = protowire.ConsumeBytes(b); n >= 0 {
				if err := r.setBytes(field, v); err != nil {
					return fmt.Errorf("result: %w", err)
				}
			}
		case kind == protowire.Fixed64Type && field == resultHashes:
			var err error
			if r.Hashes, n, err = appendHash(r.Hashes, b); err != nil {
				return fmt.Errorf("result: %w", err)
			}
		case kind == protowire.Fixed64Type && field == resultChain:
			r.Chain, n = protowire.ConsumeFixed64(b)
		default:
			n = protowire.ConsumeFieldValue(field, kind, b)
		}
		if n < 0 {
			return protowire.ParseError(n)
		}
		b = b[n:]
	}
	return nil
}

func (r *Result) set(field protowire.Number, v uint64) {
	switch field {
	case resultLength:
		r.Length = v
	case resultComputeNanos:
		r.ComputeNanos = v
	case resultQueueNanos:
		r.QueueNanos = v
	case resultCodec:
		r.Codec = headwaterv1.StepCodec(v)
	}
}

func (r *Result) setBytes(field protowire.Number, v []byte) (err error) {
	if field == resultHashes {
		r.Hashes, err = appendPacked(r.Hashes, v)
		return err
	}
	if r.Err == nil {
		r.Err = &Error{&headwaterv1.SessionError{}}
	}
	if err := (proto.UnmarshalOptions{Merge: true}).Unmarshal(v, r.Err.Why); err != nil {
		return fmt.Errorf("error: %w", err)
	}
	return nil
}

// appendHash appends the hash at the start of b and returns its bytes, negative as of protowire.
func appendHash(hashes []uint64, b []byte) ([]uint64, int, error) {
	if len(hashes) == shard.MaxHeads {
		return hashes, 0, fmt.Errorf("hashes: there are more than %d", shard.MaxHeads)
	}
	h, n := protowire.ConsumeFixed64(b)
	if n < 0 {
		return hashes, n, nil
	}
	return append(hashes, h), n, nil
}

func appendPacked(hashes []uint64, b []byte) ([]uint64, error) {
	switch {
	case len(b)%8 != 0:
		return hashes, fmt.Errorf("hashes: %d bytes are not whole ones", len(b))
	case len(b)/8 > shard.MaxHeads-len(hashes):
		return hashes, fmt.Errorf("hashes: there are more than %d", shard.MaxHeads)
	}
	for ; len(b) > 0; b = b[8:] {
		hashes = append(hashes, binary.LittleEndian.Uint64(b))
	}
	return hashes, nil
}
