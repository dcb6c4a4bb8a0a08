package jobs

import (
	"encoding/binary"
	"fmt"
	"math"
	"time"

	"headwater.example/attention"
	"headwater.example/internal/kvcache"
	"headwater.example/internal/rpc"
	headwaterv1 "headwater.example/proto/headwater/v1"
	"headwater.example/worker/internal/machine"
)

// gradients are what a problem is given for its gradients, and what it gives.
type gradients struct {
	given                bool // contexts and LSEs come with the queries
	maskHeads, biasHeads int
	outputBias           bool // group 0 has that of the output projection's bias; with a projection
}

// checkGradients checks what a problem says of its gradients.
func checkGradients(m *headwaterv1.Gradients, p *problem) (*gradients, error) {
	g := &gradients{given: m.GetGiven(), maskHeads: int(m.GetMaskHeads()), biasHeads: int(m.GetBiasHeads()), outputBias: m.GetOutputBias()}
	switch {
	case p.projection != nil && g.given:
		return nil, fmt.Errorf("gradients: contexts are computed where queries are projected, and not given")
	case p.projection != nil && p.kvLen > p.tokens:
		return nil, fmt.Errorf("gradients: kv_len %d is more than the %d hidden states", p.kvLen, p.tokens)
	case p.projection == nil && g.outputBias:
		return nil, fmt.Errorf("gradients: a bias of the output without a projection")
	case !p.Layout.Differentiable():
		return nil, fmt.Errorf("gradients: there are none of keys and values stored as %s", p.Layout.DType())
	}
	for _, o := range []struct {
		name  string
		heads int
	}{{"mask", g.maskHeads}, {"bias", g.biasHeads}} {
		if o.heads != 0 && o.heads != 1 && o.heads != p.GroupSize() {
			return nil, fmt.Errorf("gradients: %s: %d heads are neither 0, 1 nor the group's %d", o.name, o.heads, p.GroupSize())
		}
	}
	return g, nil
}

// lesson is what a group's tokens bring for their gradients beside what queries bring.
type lesson struct {
	dContext []float32        // [tokens, group size, v_dim], with a projection computed
	dY       []float32        // [tokens, d_model], with a projection
	out      attention.Output // the context and LSE, given or computed
	have     int              // tokens that have come
}

// gradient takes consecutive tokens of a group. The first of them takes the memory for all.
func (r *run) gradient(m *headwaterv1.GradientBlock) error {
	q := r.pending
	if q == nil {
		var err error
		if q, err = r.beginGradient(m); err != nil {
			return err
		}
	}
	n := int64(m.GetCount())
	switch {
	case m.GetProblem() != q.index || m.GetGroup() != uint32(q.shards[0].id.Group):
		return invalid("%s: tokens of problem %d group %d come before the shard's own are complete", q, m.GetProblem(), m.GetGroup())
	case m.GetStart() != uint64(q.lesson.have) || n < 1 || n > int64(q.count-q.lesson.have):
		return invalid("%s: %d tokens from %d, %d of %d are here", q, n, m.GetStart(), q.lesson.have, q.count)
	}
	if err := q.takeTokens(m, q.lesson.have, q.lesson.have+int(n)); err != nil {
		return err
	}
	q.lesson.have += int(n)
	if !q.complete() {
		return nil
	}
	return r.ask()
}

// takeTokens takes what a message has of tokens [from, to).
func (q *query) takeTokens(m *headwaterv1.GradientBlock, from, to int) error {
	p, l := q.problem, q.lesson
	part := func(x []float32) []float32 { return x[from*(len(x)/q.count) : to*(len(x)/q.count)] }
	ours, derivatives, name := part(q.q), part(l.dContext), "d_context"
	if p.projection != nil {
		derivatives, name = part(l.dY), "d_y"
		half := p.projection.ropeDims / 2
		cos, sin, err := rotation(q.index, m.GetCos(), m.GetSin(), to-from, half)
		if err != nil {
			return err
		}
		copy(part(q.cos), cos)
		copy(part(q.sin), sin)
	}
	for _, rows := range []struct {
		name  string
		to    []float32
		bytes []byte
		given bool
		inf   bool
	}{
		{"q", ours, m.GetQ(), true, false},
		{name, derivatives, m.GetDContext(), true, false},
		{"context", part(l.out.Context), m.GetContext(), p.gradients.given, false},
		{"lse", part(l.out.LSE), m.GetLse(), p.gradients.given, true},
	} {
		if !rows.given {
			if len(rows.bytes) > 0 {
				return invalid("%s: %s must not be given", q, rows.name)
			}
			continue
		}
		if err := decode(fmt.Sprintf("%s: %s from token %d", q, rows.name, from), rows.to, rows.bytes, rows.inf); err != nil {
			return err
		}
	}
	return nil
}

// beginGradient takes the memory of a group's gradients, and of what they are made of.
func (r *run) beginGradient(m *headwaterv1.GradientBlock) (*query, error) {
	shards, err := r.groups(m.GetProblem(), []uint32{m.GetGroup()})
	if err != nil {
		return nil, err
	}
	p := shards[0].problem
	q := &query{problem: p, index: m.GetProblem(), shards: shards, count: p.tokens, lesson: &lesson{}, arrived: time.Now()}
	switch {
	case p.gradients == nil:
		return nil, invalid("%s: the problem asks for contexts, not for gradients", q)
	case !shards[0].sealed:
		return nil, misplaced("%s: %s is not sealed", q, shards[0])
	}
	if h := shards[0]; h.weights != nil {
		for _, w := range []*matrix{&h.weights.query, &h.weights.context} {
			if !w.complete() {
				return nil, misplaced("%s: %d of %d rows of %s are here", q, w.have, w.rows, w.name)
			}
		}
	}
	mask, bias, ok := q.sizeGradient()
	if !ok {
		return nil, r.exhausted(q, "gradients", fmt.Errorf("they exceed what memory can be"))
	}
	if err := r.launchGradient(q.bytes); err != nil {
		return nil, r.exhausted(q, "gradients", err)
	}
	r.pending = q // from here on what ends the stream drops the group
	q.left.Store(1)
	if q.memory, err = kvcache.MapArena(bias + mask); err != nil {
		return nil, r.exhausted(q, "operands", err)
	}
	// The bias lies first, where its elements are aligned.
	q.mask.bytes, q.bias.values = q.memory.Bytes()[bias:], q.memory.Floats()[:bias/4]
	rows := p.tokens * p.GroupSize()
	q.lesson.dContext = make([]float32, rows*p.VDim())
	q.lesson.out = attention.Output{Context: make([]float32, rows*p.VDim()), LSE: make([]float32, rows)}
	if pr := p.projection; pr != nil {
		q.q, q.lesson.dY = make([]float32, p.tokens*pr.dModel), make([]float32, p.tokens*pr.dModel)
		q.cos, q.sin = make([]float32, p.tokens*pr.ropeDims/2), make([]float32, p.tokens*pr.ropeDims/2)
		return q, nil
	}
	q.q = make([]float32, rows*p.HeadDim())
	return q, nil
}

// sizeGradient sets how large a group's operands are, and what its gradients and all that they are made of take. ok is false
// if that is more than memory can be.
func (q *query) sizeGradient() (mask, bias int64, ok bool) {
	p, g := q.problem, q.problem.gradients
	fits := true
	add := func(sizes ...int64) int64 {
		n, ok := product(sizes...)
		if fits = fits && ok && n <= math.MaxInt64/16; !fits {
			return 0
		}
		q.bytes += n
		return n
	}
	mask = add(int64(g.maskHeads), int64(p.tokens), int64(p.kvLen))
	bias = add(int64(g.biasHeads), int64(p.tokens), int64(p.kvLen), 4)
	add(int64(g.biasHeads), int64(p.tokens), int64(p.kvLen), 4)
	add(int64(p.tokens), int64(p.GroupSize()), 4*int64(2*p.HeadDim()+2*p.VDim()+1))
	add(int64(p.kvLen), 4*int64(p.HeadDim()+p.VDim()))
	if pr := p.projection; pr != nil {
		add(int64(p.tokens), 4*int64(2*pr.dModel+pr.ropeDims))
		add(int64(p.GroupSize()+1), int64(p.HeadDim()+p.VDim()), 4*int64(pr.dModel+1))
	}
	room, okRoom := attention.DifferentiationBytes(p.Layout, p.kvLen, p.tokens, p.GroupSize())
	q.mask = operand{name: "mask", heads: g.maskHeads, size: uint64(mask)}
	q.bias = operand{name: "bias", heads: g.biasHeads, size: uint64(bias)}
	return mask, bias, fits && okRoom && add(room) == room && fits
}

// launchGradient takes n bytes of the budget for a group's gradients. Groups are large, so it waits while the stream has as
// many in flight as there are threads.
func (r *run) launchGradient(n int64) error {
	return r.take(func() error {
		if r.flight.blocks >= r.m.Threads {
			return errWait
		}
		if err := r.m.Budget.Reserve(n); err != nil {
			return err
		}
		r.flight.add(1, n)
		r.s.flight.add(1, n)
		return nil
	})
}

// tensors are a group's gradients, those that there are none of being nil.
type tensors [headwaterv1.GradientTensor_GRADIENT_TENSOR_B_O + 1][]float32

// differentiate answers a group whose tokens are complete.
func (r *run) differentiate(q *query) error {
	h, p := q.shards[0], q.problem
	rows := p.tokens * p.GroupSize()
	to := attention.Gradients{
		Q: make([]float32, rows*p.HeadDim()), K: make([]float32, p.kvLen*p.HeadDim()), V: make([]float32, p.kvLen*p.VDim()),
	}
	if q.bias.heads > 0 {
		to.Bias = make([]float32, len(q.bias.values))
	}
	if len(p.Options.Sinks) > 0 {
		to.Sinks = make([]float32, p.GroupSize())
	}
	of := tensors{
		headwaterv1.GradientTensor_GRADIENT_TENSOR_Q: to.Q, headwaterv1.GradientTensor_GRADIENT_TENSOR_K: to.K,
		headwaterv1.GradientTensor_GRADIENT_TENSOR_V: to.V, headwaterv1.GradientTensor_GRADIENT_TENSOR_BIAS: to.Bias,
		headwaterv1.GradientTensor_GRADIENT_TENSOR_SINKS: to.Sinks,
	}
	var started, computed time.Time
	var waited time.Duration
	kv, aq := h.cache.KV(p.kvLen), q.attentionQuery(0)
	turn := r.turn((&attention.Item{KV: kv, Query: aq}).Work())
	err := r.m.Use(r.ctx, attention.Background, turn, func(thread *attention.Thread) (err error) {
		started = time.Now()
		if aq.Q, err = r.queries(q, 0, thread); err == nil && p.projection != nil {
			err = q.derivativesOfContexts(r.ctx, thread)
		}
		if err == nil && !p.gradients.given {
			err = thread.Attend(r.ctx, kv, aq, p.Options, q.lesson.out)
		}
		if err == nil {
			err = thread.Differentiate(r.ctx, []attention.Differentiation{{
				KV: kv, Query: aq, Options: p.Options, Output: q.lesson.out, DContext: q.lesson.dContext, Gradients: to,
			}})
		}
		if err == nil && p.projection != nil {
			err = q.ofProjections(r.ctx, thread, &of)
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
	last := &headwaterv1.Gradient{
		ComputeNanos: machine.Nanos(started.Add(waited), computed), QueueNanos: machine.Nanos(q.arrived, started.Add(waited)),
	}
	return r.answerGradients(q, h, &of, last)
}

// answerGradients sends a group's gradients piece by piece, with the times of last in the last piece.
func (r *run) answerGradients(q *query, h *openShard, of *tensors, last *headwaterv1.Gradient) error {
	var pieces []*headwaterv1.Gradient
	var data [][]float32
	for name, x := range of {
		for first := 0; first < len(x); first += rpc.BlockBytes / 4 {
			pieces = append(pieces, &headwaterv1.Gradient{Tensor: headwaterv1.GradientTensor(name), First: uint64(first)})
			data = append(data, x[first:min(first+rpc.BlockBytes/4, len(x))])
		}
	}
	end := pieces[len(pieces)-1]
	end.Last, end.ComputeNanos, end.QueueNanos = true, last.GetComputeNanos(), last.GetQueueNanos()
	for i, m := range pieces {
		memory, err := r.room(4 * int64(len(data[i])))
		if err != nil {
			return err
		}
		m.Problem, m.Group, m.Epoch, m.Data = q.index, uint32(h.id.Group), h.epoch, memory.Bytes()
		for j, x := range data[i] {
			binary.LittleEndian.PutUint32(m.Data[4*j:], math.Float32bits(x))
		}
		if err := r.answer(&headwaterv1.RunResponse{Response: &headwaterv1.RunResponse_Gradient{Gradient: m}}, memory); err != nil {
			return err
		}
	}
	return nil
}

// attentionQuery returns the i-th group's part of a block, but for its queries.
func (q *query) attentionQuery(i int) attention.Query {
	p, h := q.problem, q.shards[i]
	aq := attention.Query{
		Tokens: q.count, Heads: p.GroupSize(), FirstHead: int(h.id.Group) * p.GroupSize(), Offset: p.offset + int64(q.start),
	}
	if q.mask.heads > 0 {
		aq.Mask, aq.MaskHeads = q.mask.bytes, 1
		if q.mask.heads > 1 {
			aq.Mask, aq.MaskHeads = part(q.mask.bytes, i, len(q.shards)), p.GroupSize()
		}
	}
	if q.bias.heads > 0 {
		aq.Bias, aq.BiasHeads = q.bias.values, 1
		if q.bias.heads > 1 {
			aq.Bias, aq.BiasHeads = part(q.bias.values, i, len(q.shards)), p.GroupSize()
		}
	}
	return aq
}
