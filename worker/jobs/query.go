package jobs

import (
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"headwater.example/attention"
	"headwater.example/internal/contextframe"
	"headwater.example/internal/kvcache"
	"headwater.example/internal/observe"
	headwaterv1 "headwater.example/proto/headwater/v1"
	"headwater.example/worker/internal/machine"
)

// query is a query block from its arrival until its last group is answered.
type query struct {
	problem      *problem
	index, block uint32
	shards       []*openShard
	start, count int
	q            []float32 // [groups, count, group size, head_dim], or hidden states [count, d_model]
	cos, sin     []float32 // [count, rope_dims/2], with hidden states
	mask, bias   operand
	arrived      time.Time
	memory       *kvcache.Arena // of mask and bias
	bytes        int64          // taken by launch
	left         atomic.Int32   // groups that are not answered
	lesson       *lesson        // of a group whose gradients are asked for, else nil
}

// operand is a mask or a bias [heads, count, kv_len], and how many bytes of it are here.
type operand struct {
	name       string
	heads      int
	size, have uint64
	bytes      []byte    // of a mask
	values     []float32 // of a bias
}

func (q *query) String() string {
	if q.lesson != nil {
		return fmt.Sprintf("problem %d gradients of group %d", q.index, q.shards[0].id.Group)
	}
	return fmt.Sprintf("problem %d query block %d", q.index, q.block)
}

func (q *query) complete() bool {
	return q.mask.have == q.mask.size && q.bias.have == q.bias.size && (q.lesson == nil || q.lesson.have == q.count)
}

func (r *run) query(m *headwaterv1.QueryBlock) error {
	shards, err := r.groups(m.GetProblem(), m.GetGroups())
	if err != nil {
		return err
	}
	q := &query{
		problem: shards[0].problem,
		index:   m.GetProblem(),
		block:   m.GetBlock(),
		shards:  shards,
		start:   int(m.GetStart()),
		count:   int(m.GetCount()),
		mask:    operand{name: "mask", heads: int(m.GetMaskHeads()), size: m.GetMaskBytes()},
		bias:    operand{name: "bias", heads: int(m.GetBiasHeads()), size: m.GetBiasBytes()},
		arrived: time.Now(),
	}
	if q.problem.gradients != nil {
		return invalid("%s: the problem asks for gradients, not for contexts", q)
	}
	if err := q.ready(m); err != nil {
		return err
	}
	// No product overflows: all groups have at most 4,096 heads, and count is below 2³².
	p := q.problem
	rows := int64(len(shards)) * int64(q.count) * int64(p.GroupSize())
	elements, half := rows*int64(p.HeadDim()), 0
	var working int64
	if p.projection != nil {
		working = 4 * elements
		elements, half = int64(q.count)*int64(p.projection.dModel), p.projection.ropeDims/2
	}
	if int64(len(m.GetQ())) != 4*elements {
		return invalid("%s: q has %d bytes, %d are needed", q, len(m.GetQ()), 4*elements)
	}
	for _, o := range []*operand{&q.mask, &q.bias} {
		if err := o.check(q); err != nil {
			return err
		}
	}
	// Operands are checked to be below 2⁶⁰ bytes each. Context and LSE are there once raw and once as a frame.
	q.bytes = 4*elements + working + 8*int64(q.count)*int64(half) + 8*rows*int64(p.VDim()+1) + int64(q.mask.size) + int64(q.bias.size)
	if err := r.launch(q.bytes); err != nil {
		return r.exhausted(q, "queries", err)
	}
	r.pending = q // from here on what ends the stream drops the block
	q.left.Store(1)
	if q.memory, err = kvcache.MapArena(int64(q.bias.size + q.mask.size)); err != nil {
		return r.exhausted(q, "operands", err)
	}
	// The bias lies first, where its elements are aligned.
	q.mask.bytes = q.memory.Bytes()[q.bias.size:]
	q.bias.values = q.memory.Floats()[:q.bias.size/4]
	q.q = make([]float32, elements)
	if err := decode(q.String()+": q", q.q, m.GetQ(), false); err != nil {
		return err
	}
	if q.cos, q.sin, err = rotation(q.index, m.GetCos(), m.GetSin(), q.count, half); err != nil {
		return err
	}
	if !q.complete() {
		return nil
	}
	return r.ask()
}

// ready checks a query's tokens against the problem, and that all is here that it reads.
func (q *query) ready(m *headwaterv1.QueryBlock) error {
	p := q.problem
	switch {
	case q.count < 1 || m.GetStart() >= uint64(p.tokens) || q.count > p.tokens-q.start:
		return invalid("%s: tokens from %d, %d of them, are not in the problem's %d", q, m.GetStart(), q.count, p.tokens)
	case 4*int64(q.count)*int64(p.GroupSize())*int64(p.VDim()+1) > machine.MaxAnswerBytes:
		return invalid("%s: the answer for %d tokens exceeds a message of %d bytes", q, q.count, machine.MaxAnswerBytes)
	}
	for _, h := range q.shards {
		if !h.sealed {
			return misplaced("%s: %s is not sealed", q, h)
		}
		if h.weights != nil && !h.weights.query.complete() {
			return misplaced("%s: %s: %d of %d rows of w_q are here", q, h, h.weights.query.have, h.weights.query.rows)
		}
	}
	return nil
}

// check checks an operand's size against its heads.
func (o *operand) check(q *query) error {
	p := q.problem
	if o.size == 0 {
		o.heads = 0
		return nil
	}
	heads := len(q.shards) * p.GroupSize()
	if o.heads != 1 && o.heads != heads {
		return invalid("%s: %s: %d heads are neither 1 nor the block's %d", q, o.name, o.heads, heads)
	}
	element := int64(1)
	if o == &q.bias {
		element = 4
	}
	if want, ok := product(int64(o.heads), int64(q.count), int64(p.kvLen), element); !ok || want > 1<<60 || o.size != uint64(want) {
		return invalid("%s: %s has %d bytes, [%d, %d, %d] are needed", q, o.name, o.size, o.heads, q.count, p.kvLen)
	}
	return nil
}

func (r *run) operand(m *headwaterv1.OperandBlock) error {
	q := r.pending
	if q == nil {
		return invalid("an operand block follows no query block that waits for one")
	}
	var o *operand
	switch m.GetOperand() {
	case headwaterv1.Operand_OPERAND_MASK:
		o = &q.mask
	case headwaterv1.Operand_OPERAND_BIAS:
		o = &q.bias
	default:
		return invalid("%s: operand %d is not known", q, m.GetOperand())
	}
	n := uint64(len(m.GetData()))
	switch {
	case n == 0:
		return invalid("%s: a piece of %s is empty", q, o.name)
	case m.GetOffset() != o.have:
		return invalid("%s: a piece of %s starts at byte %d, %d bytes are here", q, o.name, m.GetOffset(), o.have)
	case n > o.size-o.have:
		return invalid("%s: a piece of %s ends at byte %d of %d", q, o.name, o.have+n, o.size)
	}
	if o == &q.mask {
		copy(o.bytes[o.have:], m.GetData())
	} else {
		if n%4 != 0 {
			return invalid("%s: a piece of bias has %d bytes, not whole float32 values", q, n)
		}
		if err := decode(fmt.Sprintf("%s: bias from element %d", q, o.have/4), o.values[o.have/4:(o.have+n)/4], m.GetData(), true); err != nil {
			return err
		}
	}
	o.have += n
	if !q.complete() {
		return nil
	}
	return r.ask()
}

// ask starts a task for each group of the pending block.
func (r *run) ask() error {
	q := r.pending
	r.pending = nil
	q.left.Store(int32(len(q.shards)))
	for _, h := range q.shards {
		h.queries.Add(1)
	}
	for i, h := range q.shards {
		err := r.spawn(func() error { return r.attend(q, i) }, func() {
			h.queries.Done()
			r.drop(q)
		})
		if err != nil {
			for _, h := range q.shards[i+1:] {
				h.queries.Done()
				r.drop(q)
			}
			return err
		}
	}
	return nil
}

// drop gives up one group's use of a block, and with the last one the block's memory.
func (r *run) drop(q *query) {
	if q.left.Add(-1) > 0 {
		return
	}
	if q.memory != nil {
		q.memory.Close()
	}
	r.land(q.bytes)
}

// attend answers a block for its i-th group.
func (r *run) attend(q *query, i int) error {
	if q.lesson != nil {
		return r.differentiate(q)
	}
	h, p, aq := q.shards[i], q.problem, q.attentionQuery(i)
	heads := p.GroupSize()
	out := attention.Output{Context: make([]float32, q.count*heads*p.VDim()), LSE: make([]float32, q.count*heads)}
	kv := h.cache.KV(p.kvLen)
	turn := r.turn((&attention.Item{KV: kv, Query: aq}).Work())
	var started, computed time.Time
	var waited time.Duration
	err := r.m.Use(r.ctx, attention.Background, turn, func(thread *attention.Thread) (err error) {
		started = time.Now()
		if aq.Q, err = r.queries(q, i, thread); err == nil {
			err = thread.Attend(r.ctx, kv, aq, p.Options, out)
		}
		computed, waited = time.Now(), thread.Waited()
		if err != nil {
			err = q.failed(r, h, err)
		}
		return err
	})
	if err != nil {
		return err
	}
	memory, err := r.room(contextframe.MaxFrameBytes(r.codec, q.count, heads, p.VDim()))
	if err != nil {
		return err
	}
	frame, err := contextframe.Encode(memory.Bytes()[:0], r.codec, int(h.id.Group), q.count, heads, p.VDim(), out.Context, out.LSE)
	if err != nil {
		memory.Free()
		return fmt.Errorf("%s: group %d: code the context: %w", q, h.id.Group, err)
	}
	r.m.Observe.Kernel(observe.Job, computed.Sub(started)-waited, int64(kv.Len)*int64(kv.Layout.PageBytes())/attention.PageLen)
	r.m.Observe.Context(observe.CodecOf(r.codec.String()), 4*len(out.Context)+4*len(out.LSE), len(frame))
	return r.answer(&headwaterv1.RunResponse{Response: &headwaterv1.RunResponse_Context{Context: &headwaterv1.Context{
		Problem:      q.index,
		Group:        uint32(h.id.Group),
		Block:        q.block,
		Epoch:        h.epoch,
		Frame:        frame,
		ComputeNanos: machine.Nanos(started.Add(waited), computed),
		QueueNanos:   machine.Nanos(q.arrived, started.Add(waited)),
		EncodeNanos:  machine.Nanos(computed, time.Now()),
	}}}, memory)
}

// failed names the block and group in an error of their kernel, and gives it its code.
func (q *query) failed(r *run, h *openShard, err error) error {
	var row *attention.RowError
	if errors.As(err, &row) {
		// The kernel counts tokens from the block's first.
		err = &attention.RowError{Head: row.Head, Token: q.start + row.Token, Rule: row.Rule}
	}
	if q.lesson != nil {
		err = toStatus(fmt.Errorf("%s: %w", q, err)) // it names the group
	} else {
		err = toStatus(fmt.Errorf("%s: group %d: %w", q, h.id.Group, err))
	}
	if status.Code(err) == codes.Internal && r.ctx.Err() == nil {
		// All that reaches the kernel has been checked, except what options and positions forbid together.
		return invalid("%s", status.Convert(err).Message())
	}
	return err
}

// queries returns the queries [count, group size, head_dim] of a block's i-th group.
func (r *run) queries(q *query, i int, thread *attention.Thread) ([]float32, error) {
	p := q.problem
	if p.projection == nil {
		return part(q.q, i, len(q.shards)), nil
	}
	y := make([]float32, q.count*p.GroupSize()*p.HeadDim())
	if err := project(r.ctx, thread, y, q.q, &q.shards[i].weights.query, q.count); err != nil {
		return nil, err
	}
	return y, p.rotate("queries", y, q.cos, q.sin, q.count, p.GroupSize())
}
