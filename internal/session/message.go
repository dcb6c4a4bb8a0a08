package session

import (
	"headwater.example/internal/rpc"
	headwaterv1 "headwater.example/proto/headwater/v1"
)

// LaneID is the id of a lane.
type LaneID [16]byte

// Request is a LaneRequest. A zero Request is ready for use. After it was sent or received it may be used again.
type Request struct {
	// ID is the number of the step in its lane; the answer repeats it.
	ID   uint64
	Step Step
	// Payload has the step's tensors, as LaneRequest.payload says. Send takes it; a receiver must free it.
	Payload *rpc.Buffer
	// NoRoom is set if a request was received without its payload because there was no room for it. The step must be
	// refused.
	NoRoom error

	scratch []byte
	fault   error
}

// Refusable tells rpc that a request may arrive without its payload.
func (r *Request) Refusable() bool { return true }

// Memory gives rpc what holds the request.
func (r *Request) Memory() *rpc.Buffer { return r.Payload }

// Step is a Step of headwater.v1, with its fields' meaning.
type Step struct {
	Session       [16]byte
	Epoch         uint64
	Truncations   uint64
	Layer         uint32
	Length        uint64
	Hashes        []uint64
	Append        uint32
	Attend        uint32
	QueryPosition uint64
	Encoding      headwaterv1.StorageType
	Codec         headwaterv1.StepCodec
	Tree          uint32
	TreeMask      []byte
	Tokens        []uint32
	AppendID      uint64
	Chain         uint64
	Answers       []byte
	At            uint64
	Trace         [24]byte // zero is none
}

// Answered returns how many of the held groups the holder answers for, and calls do, unless nil, with the index of each.
func (s *Step) Answered(groups int, do func(i int)) int {
	n := 0
	for i := range groups {
		if len(s.Answers) == 0 || s.Answers[i/8]>>(i%8)&1 == 1 {
			if n++; do != nil {
				do(i)
			}
		}
	}
	return n
}

// Response is a LaneResponse. A zero Response is ready for use. After it was sent or received it may be used again.
type Response struct {
	// ID is the number of the step.
	ID     uint64
	Result Result
	// Payload has context and LSE, as LaneResponse.payload says. Send takes it; a receiver must free it.
	Payload *rpc.Buffer

	scratch []byte
	fault   error
}

// Result is a StepResult of headwater.v1, with its fields' meaning.
type Result struct {
	// Err is nil if the step was done.
	Err          *Error
	Length       uint64
	Hashes       []uint64
	ComputeNanos uint64
	QueueNanos   uint64
	Codec        headwaterv1.StepCodec
	Chain        uint64
}

// Reset empties the request and keeps its slices' memory for the next message, unless it is large. The payload must have been
// given away.
func (r *Request) Reset() {
	s := &r.Step
	*r = Request{
		Step:    Step{Hashes: empty(s.Hashes), TreeMask: empty(s.TreeMask), Tokens: empty(s.Tokens), Answers: empty(s.Answers)},
		scratch: empty(r.scratch),
	}
}

// Reset empties the response and keeps its slices' memory for the next message, unless it is large. The payload must have been
// given away.
func (r *Response) Reset() {
	*r = Response{Result: Result{Hashes: empty(r.Result.Hashes)}, scratch: empty(r.scratch)}
}

// empty returns x without elements, and drops its memory if that is more than usual messages need.
func empty[E any](x []E) []E {
	if cap(x) > 1<<14 {
		return nil
	}
	return x[:0]
}
