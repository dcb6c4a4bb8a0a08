package session

import (
	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"

	"headwater.example/internal/rpc"
)

// The fields, by message.
const (
	fieldID      protowire.Number = 1 // of both messages
	fieldBody    protowire.Number = 2 // Step or StepResult
	fieldPayload protowire.Number = 3

	stepSession       protowire.Number = 1
	stepEpoch         protowire.Number = 2
	stepTruncations   protowire.Number = 3
	stepLayer         protowire.Number = 4
	stepLength        protowire.Number = 5
	stepHashes        protowire.Number = 6
	stepAppend        protowire.Number = 7
	stepAttend        protowire.Number = 8
	stepQueryPosition protowire.Number = 9
	stepEncoding      protowire.Number = 10
	stepCodec         protowire.Number = 11
	stepTree          protowire.Number = 12
	stepTreeMask      protowire.Number = 13
	stepTokens        protowire.Number = 14
	stepAppendID      protowire.Number = 15
	stepChain         protowire.Number = 16
	stepAnswers       protowire.Number = 17
	stepAt            protowire.Number = 18
	stepTrace         protowire.Number = 20

	resultError        protowire.Number = 1
	resultLength       protowire.Number = 2
	resultHashes       protowire.Number = 3
	resultComputeNanos protowire.Number = 4
	resultQueueNanos   protowire.Number = 5
	resultCodec        protowire.Number = 6
	resultChain        protowire.Number = 7
)

// Bytes returns the size of the request's message.
func (r *Request) Bytes() int { return r.messageBytes(len(r.Payload.Bytes())) }

// messageBytes returns the size of the message for the step with a payload of that many bytes.
func (r *Request) messageBytes(payload int) int {
	return messageBytes(r.ID, sizeOfStep(&r.Step), payload)
}

func messageBytes(id uint64, body, payload int) int {
	return sizeOfVarint(fieldID, id) + protowire.SizeTag(fieldBody) + protowire.SizeBytes(body) + sizeOfBytes(fieldPayload, payload)
}

// tooLarge refuses a message that is too large for its receiver.
func tooLarge(bytes int) *Error {
	if bytes <= rpc.MaxMessageBytes {
		return nil
	}
	return Errorf(Invalid, "a message has %d bytes, and at most %d are allowed: cut the step into fewer tokens", bytes, rpc.MaxMessageBytes)
}

// MarshalMessage implements rpc.SelfCoded. It takes the payload; gRPC frees it when it has been written.
func (r *Request) MarshalMessage() (mem.BufferSlice, error) {
	payload := r.Payload
	r.Payload = nil
	head, out := begin(r.ID, sizeOfStep(&r.Step), payload)
	return finish(head, appendStep(out, &r.Step), payload), nil
}

// MarshalMessage implements rpc.SelfCoded. It takes the payload; gRPC frees it when it has been written.
func (r *Response) MarshalMessage() (mem.BufferSlice, error) {
	payload := r.Payload
	r.Payload = nil
	head, out := begin(r.ID, sizeOfResult(&r.Result), payload)
	out, err := appendResult(out, &r.Result)
	if err != nil {
		head.Free()
		payload.Free()
		return nil, err
	}
	return finish(head, out, payload), nil
}

// begin returns a buffer for all that comes before the payload, and its bytes up to a body of that size.
func begin(id uint64, body int, payload *rpc.Buffer) (head *rpc.Buffer, out []byte) {
	n := len(payload.Bytes())
	head = rpc.NewBuffer(messageBytes(id, body, n) - n)
	out = appendVarint(head.Bytes()[:0], fieldID, id)
	out = protowire.AppendTag(out, fieldBody, protowire.BytesType)
	return head, protowire.AppendVarint(out, uint64(body))
}

func finish(head *rpc.Buffer, out []byte, payload *rpc.Buffer) mem.BufferSlice {
	if n := len(payload.Bytes()); n > 0 {
		out = protowire.AppendTag(out, fieldPayload, protowire.BytesType)
		out = protowire.AppendVarint(out, uint64(n))
	}
	if len(out) != len(head.Bytes()) {
		panic("session: a message has another size than was computed")
	}
	return rpc.GiveMessage(head, payload)
}

func sizeOfStep(s *Step) int {
	return sizeOfBytes(stepSession, len(s.Session)) +
		sizeOfVarint(stepEpoch, s.Epoch) +
		sizeOfVarint(stepTruncations, s.Truncations) +
		sizeOfVarint(stepLayer, uint64(s.Layer)) +
		sizeOfVarint(stepLength, s.Length) +
		sizeOfBytes(stepHashes, 8*len(s.Hashes)) +
		sizeOfVarint(stepAppend, uint64(s.Append)) +
		sizeOfVarint(stepAttend, uint64(s.Attend)) +
		sizeOfVarint(stepQueryPosition, s.QueryPosition) +
		sizeOfVarint(stepEncoding, uint64(s.Encoding)) +
		sizeOfVarint(stepCodec, uint64(s.Codec)) +
		sizeOfVarint(stepTree, uint64(s.Tree)) +
		sizeOfBytes(stepTreeMask, len(s.TreeMask)) +
		sizeOfBytes(stepTokens, sizeOfTokens(s.Tokens)) +
		sizeOfFixed64(stepAppendID, s.AppendID) +
		sizeOfFixed64(stepChain, s.Chain) +
		sizeOfBytes(stepAnswers, len(s.Answers)) +
		sizeOfVarint(stepAt, s.At) +
		sizeOfBytes(stepTrace, len(s.trace()))
}

func appendStep(out []byte, s *Step) []byte {
	out = appendBytes(out, stepSession, s.Session[:])
	out = appendVarint(out, stepEpoch, s.Epoch)
	out = appendVarint(out, stepTruncations, s.Truncations)
	out = appendVarint(out, stepLayer, uint64(s.Layer))
	out = appendVarint(out, stepLength, s.Length)
	out = appendHashes(out, stepHashes, s.Hashes)
	out = appendVarint(out, stepAppend, uint64(s.Append))
	out = appendVarint(out, stepAttend, uint64(s.Attend))
	out = appendVarint(out, stepQueryPosition, s.QueryPosition)
	out = appendVarint(out, stepEncoding, uint64(s.Encoding))
	out = appendVarint(out, stepCodec, uint64(s.Codec))
	out = appendVarint(out, stepTree, uint64(s.Tree))
	out = appendBytes(out, stepTreeMask, s.TreeMask)
	if len(s.Tokens) > 0 {
		out = protowire.AppendTag(out, stepTokens, protowire.BytesType)
		out = protowire.AppendVarint(out, uint64(sizeOfTokens(s.Tokens)))
		for _, t := range s.Tokens {
			out = protowire.AppendVarint(out, uint64(t))
		}
	}
	out = appendFixed64(out, stepAppendID, s.AppendID)
	out = appendFixed64(out, stepChain, s.Chain)
	out = appendBytes(out, stepAnswers, s.Answers)
	out = appendVarint(out, stepAt, s.At)
	return appendBytes(out, stepTrace, s.trace())
}

// trace returns the step's trace as it is written: whole or not at all.
func (s *Step) trace() []byte {
	if s.Trace == [24]byte{} {
		return nil
	}
	return s.Trace[:]
}

func sizeOfResult(r *Result) int {
	size := sizeOfVarint(resultLength, r.Length) +
		sizeOfBytes(resultHashes, 8*len(r.Hashes)) +
		sizeOfVarint(resultComputeNanos, r.ComputeNanos) +
		sizeOfVarint(resultQueueNanos, r.QueueNanos) +
		sizeOfVarint(resultCodec, uint64(r.Codec)) +
		sizeOfFixed64(resultChain, r.Chain)
	if r.Err != nil {
		size += protowire.SizeTag(resultError) + protowire.SizeBytes(proto.Size(r.Err.Why))
	}
	return size
}

func appendResult(out []byte, r *Result) ([]byte, error) {
	if r.Err != nil {
		out = protowire.AppendTag(out, resultError, protowire.BytesType)
		out = protowire.AppendVarint(out, uint64(proto.Size(r.Err.Why)))
		var err error
		if out, err = (proto.MarshalOptions{}).MarshalAppend(out, r.Err.Why); err != nil {
			return nil, err
		}
	}
	out = appendVarint(out, resultLength, r.Length)
	out = appendHashes(out, resultHashes, r.Hashes)
	out = appendVarint(out, resultComputeNanos, r.ComputeNanos)
	out = appendVarint(out, resultQueueNanos, r.QueueNanos)
	out = appendVarint(out, resultCodec, uint64(r.Codec))
	return appendFixed64(out, resultChain, r.Chain), nil
}

// A field that is 0 or empty is not written.

func sizeOfVarint(field protowire.Number, v uint64) int {
	if v == 0 {
		return 0
	}
	return protowire.SizeTag(field) + protowire.SizeVarint(v)
}

func appendVarint(out []byte, field protowire.Number, v uint64) []byte {
	if v == 0 {
		return out
	}
	return protowire.AppendVarint(protowire.AppendTag(out, field, protowire.VarintType), v)
}

func sizeOfFixed64(field protowire.Number, v uint64) int {
	if v == 0 {
		return 0
	}
	return protowire.SizeTag(field) + protowire.SizeFixed64()
}

func appendFixed64(out []byte, field protowire.Number, v uint64) []byte {
	if v == 0 {
		return out
	}
	return protowire.AppendFixed64(protowire.AppendTag(out, field, protowire.Fixed64Type), v)
}

func sizeOfBytes(field protowire.Number, n int) int {
	if n == 0 {
		return 0
	}
	return protowire.SizeTag(field) + protowire.SizeBytes(n)
}

func appendBytes(out []byte, field protowire.Number, b []byte) []byte {
	if len(b) == 0 {
		return out
	}
	return protowire.AppendBytes(protowire.AppendTag(out, field, protowire.BytesType), b)
}

func appendHashes(out []byte, field protowire.Number, hashes []uint64) []byte {
	if len(hashes) == 0 {
		return out
	}
	out = protowire.AppendTag(out, field, protowire.BytesType)
	out = protowire.AppendVarint(out, uint64(8*len(hashes)))
	for _, h := range hashes {
		out = protowire.AppendFixed64(out, h)
	}
	return out
}

func sizeOfTokens(tokens []uint32) int {
	size := 0
	for _, t := range tokens {
		size += protowire.SizeVarint(uint64(t))
	}
	return size
}
