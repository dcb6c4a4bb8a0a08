package client

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"
	"unsafe"

	"go.opentelemetry.io/otel/trace"

	"headwater.example/internal/layerproto"
	"headwater.example/internal/session"
	"headwater.example/internal/session/fanout"
	headwaterv1 "headwater.example/proto/headwater/v1"
	"headwater.example/shard"
	"headwater.example/tensor"
)

// Step appends tokens to one layer of a session, or lets queries attend over all its positions, or both. The tensors
// have the shapes that models use. They are the caller's, and must not change until Do has returned.
type Step struct {
	Session *Session
	Layer   int

	// Q [query tokens, n_heads, head_dim]; if nil, nothing attends.
	Q []float32
	// K [tokens, n_kv_heads, head_dim] and V [tokens, n_kv_heads, v_dim] are appended; if nil, nothing is. They are
	// narrowed to the layer's storage type, here or by the workers; see SessionOptions.SendF32.
	K, V []float32
	// Stored has rows that are already in the storage type, instead of K and V.
	Stored *Rows

	// Context [query tokens, n_heads, v_dim] and LSE [query tokens, n_heads] are filled. LSE may be nil.
	Context, LSE []float32

	// Position of the first query token; if nil, the query tokens are the newest positions.
	Position *int
	// Mask [query tokens, n] says which of the n newest positions each query sees, for trees of drafts; if nil, all. n
	// is at most 4,096; older positions are not masked.
	Mask []bool
	// Tokens are the ids of the appended tokens, so that other sessions can find them as a prefix; nil if they are
	// unknown.
	Tokens []uint32

	// Err is the step's error, set by Do; nil if the step was done.
	Err error
	// Kernel is how long the step attended, set by Do: at the holder where that took the longest, of each message that the step
	// went in.
	Kernel time.Duration
}

// Rows are keys and values of consecutive positions in a layer's storage type, little endian, group by group.
type Rows struct {
	K, V           []byte    // [n_kv_heads, positions, head_dim] and [n_kv_heads, positions, v_dim]
	KScale, VScale []float32 // [n_kv_heads, positions]; int8 storage only
}

const (
	// maxStepBytes is about how many bytes of tensors go in one message and its answer. It is well below the limit of a
	// message, and small enough that a holder's memory for messages is little compared with its memory for a session.
	maxStepBytes = 8 << 20
	// maxAppendBytes is the same if nothing attends: such steps follow each other as fast as the holder takes them.
	maxAppendBytes = 2 << 20
	// maxKept bounds the bytes of rows that are kept from one step to the next.
	maxKept = 1 << 20
)

var errInUse = errors.New("it is used by another call: one goroutine uses a session at a time")

// Step appends k and v and attends with q, filling context and lse. The type Step has their shapes, and more that a
// step can do. It allocates nothing.
func (s *Session) Step(ctx context.Context, layer int, q, k, v, context, lse []float32) error {
	b := batches.Get().(*batch)
	one := &b.one
	*one = Step{Session: s, Layer: layer, Q: q, K: k, V: v, Context: context, LSE: lse}
	b.alone[0] = one
	err := b.do(ctx, b.alone[:])
	*one = Step{}
	batches.Put(b)
	return err
}

// Do does one step, and sets its Session.
func (s *Session) Do(ctx context.Context, step *Step) error {
	step.Session = s
	return Do(ctx, step)
}

// Do does steps of any sessions and layers at once, and waits for all of them. Steps of one layer of a session are done
// in order. Each step's Err is its error; the error of Do wraps all of these, and its text has equal ones once. A step
// that is too large for one message goes in several, one after the other; if one of these fails, Len says how far the
// step came.
func Do(ctx context.Context, steps ...*Step) error {
	b := batches.Get().(*batch)
	err := b.do(ctx, steps)
	batches.Put(b)
	return err
}

var batches = sync.Pool{New: func() any { return new(batch) }}

// batch is one call of Do.
type batch struct {
	one    Step
	alone  [1]*Step
	flying []*flight
}

// flight is the part of a step that one message carries. It is the input and the output of the fan-out.
type flight struct {
	fanout.Step
	step   *Step
	layer  *shard.LayerSpec
	held   *held
	call   *fanout.Call
	hashes []uint64
	mask   []byte
	// If narrowed is set, narrow's keys and values are sent instead of the step's.
	narrowed bool
	rows     Rows
	sent     time.Time
	auto     bool
	append_  span // of the step's appended tokens
	attend   span // of its query tokens
	tokens   int  // appended by the whole step
}

// span is [from, from+n).
type span struct{ from, n int }

var flights = sync.Pool{New: func() any { return new(flight) }}

func (b *batch) do(ctx context.Context, steps []*Step) error {
	var failed bool
	for _, step := range steps {
		step.Err = b.start(ctx, step)
		failed = failed || step.Err != nil
	}
	failed = b.land(ctx) || failed
	for _, step := range steps {
		if s := step.Session; s != nil && s.user.Load() == b {
			s.user.Store(nil)
		}
	}
	if !failed {
		return nil
	}
	var all stepErrors
	looks := map[*Session]*look{}
	for _, step := range steps {
		if step.Err == nil {
			continue
		}
		if s := step.Session; s != nil {
			if looks[s] == nil {
				looks[s] = &look{}
			}
			step.Err = s.failed(ctx, fmt.Sprintf("step layer %d of session %s", step.Layer, s.id), step.Err, looks[s])
		}
		all = append(all, step.Err)
	}
	if len(all) == 1 {
		return all[0]
	}
	return all
}

// land waits for all messages in flight, and reports whether one of them failed.
func (b *batch) land(ctx context.Context) (failed bool) {
	for _, f := range b.flying {
		if err := f.land(ctx); err != nil {
			f.step.Err, failed = err, true
		} else {
			flights.Put(f)
		}
	}
	b.flying = b.flying[:0]
	return failed
}

// start checks a step and sends it. Of a step of several messages it sends all but the last.
func (b *batch) start(ctx context.Context, step *Step) error {
	s := step.Session
	if s == nil {
		return wrong("step: it names no session")
	}
	step.Kernel = 0
	already := s.user.Load() == b
	if err := s.use(b); err != nil {
		return err
	}
	// No step of it is in flight before the first.
	if !already {
		if err := s.settle(ctx); err != nil {
			return err
		}
	}
	if step.Layer < 0 || step.Layer >= len(s.layers) {
		return wrong("layer %d of %d", step.Layer, len(s.layers))
	}
	layer := &s.place.Holding().Layers()[step.Layer]
	tokens, queries, err := step.check(layer)
	if err != nil {
		return err
	}
	h := &s.layers[step.Layer]
	if h.user == b {
		b.land(ctx)
	}
	most := step.most(layer, int(h.length)+tokens)
	position := int(h.length) + tokens - queries
	if step.Position != nil {
		position = *step.Position
	}
	if queries > 0 && (position < 0 || position+queries > int(h.length)+tokens) {
		return wrong("%d queries from position %d on go beyond the layer, which then has %d positions", queries, position, int(h.length)+tokens)
	}
	// In pieces, a query must see the same positions as in one message. So it may attend before the rest is appended
	// only if it sees nothing after its own position.
	fused := layer.Options.Causal && step.Mask == nil && tokens == queries && step.Position == nil
	if tokens <= most && queries <= most {
		b.send(ctx, step, layer, h, span{0, tokens}, span{0, queries}, position)
		return nil
	}
	for at := 0; at < tokens; at += most {
		n := min(most, tokens-at)
		attend := span{}
		if fused {
			attend = span{at, n}
		}
		b.send(ctx, step, layer, h, span{at, n}, attend, position+at)
		if fused && at+n == tokens {
			return nil
		}
		if err := b.landLast(ctx); err != nil {
			return err
		}
	}
	for at := 0; at < queries; at += most {
		// Queries change nothing: all pieces may be in flight.
		b.send(ctx, step, layer, h, span{}, span{at, min(most, queries-at)}, position+at)
	}
	return nil
}

// landLast waits for the last message, on which the next one builds.
func (b *batch) landLast(ctx context.Context) error {
	last := len(b.flying) - 1
	f := b.flying[last]
	b.flying = b.flying[:last]
	if err := f.land(ctx); err != nil {
		return err
	}
	flights.Put(f)
	return nil
}

// check returns the numbers of appended tokens and of query tokens.
func (step *Step) check(l *shard.LayerSpec) (tokens, queries int, err error) {
	count := func(name string, n, row int) (int, error) {
		if n%row != 0 {
			return 0, wrong("layer %d: %s has %d elements, no whole tokens of %d", step.Layer, name, n, row)
		}
		return n / row, nil
	}
	if queries, err = count("q", len(step.Q), l.Heads*l.HeadDim()); err != nil {
		return 0, 0, err
	}
	if r := step.Stored; r != nil {
		if len(step.K) != 0 || len(step.V) != 0 {
			return 0, 0, wrong("layer %d: rows come both as K and V and as Stored", step.Layer)
		}
		if tokens, err = count("stored k", len(r.K), l.KVHeads*l.HeadDim()*l.Storage().Size()); err != nil {
			return 0, 0, err
		}
		scales := 0
		if l.Storage() == tensor.I8 {
			scales = tokens * l.KVHeads
		}
		if len(r.V) != tokens*l.KVHeads*l.VDim()*l.Storage().Size() || len(r.KScale) != scales || len(r.VScale) != scales {
			return 0, 0, wrong("layer %d: stored v has %d bytes and scales %d and %d, of %d tokens", step.Layer, len(r.V), len(r.KScale), len(r.VScale), tokens)
		}
	} else {
		if tokens, err = count("k", len(step.K), l.KVHeads*l.HeadDim()); err != nil {
			return 0, 0, err
		}
		if len(step.V) != tokens*l.KVHeads*l.VDim() {
			return 0, 0, wrong("layer %d: v has %d elements, %d tokens of k need %d", step.Layer, len(step.V), tokens, tokens*l.KVHeads*l.VDim())
		}
	}
	switch {
	case tokens == 0 && queries == 0:
		return 0, 0, wrong("layer %d: nothing is appended and nothing attends", step.Layer)
	case len(step.Context) != queries*l.Heads*l.VDim():
		return 0, 0, wrong("layer %d: room for %d elements of context, %d queries give %d", step.Layer, len(step.Context), queries, queries*l.Heads*l.VDim())
	case step.LSE != nil && len(step.LSE) != queries*l.Heads:
		return 0, 0, wrong("layer %d: room for %d LSEs, %d queries give %d", step.Layer, len(step.LSE), queries, queries*l.Heads)
	case len(step.Tokens) != 0 && len(step.Tokens) != tokens:
		return 0, 0, wrong("layer %d: %d ids for %d tokens", step.Layer, len(step.Tokens), tokens)
	case step.Mask != nil && (queries == 0 || len(step.Mask)%queries != 0 || len(step.Mask) == 0):
		return 0, 0, wrong("layer %d: a mask of %d elements does not fit %d queries", step.Layer, len(step.Mask), queries)
	}
	return tokens, queries, nil
}

// most returns how many tokens fit in one message, where the layer will have so many positions.
func (step *Step) most(l *shard.LayerSpec, positions int) int {
	key := 4 * (l.HeadDim() + l.VDim())
	if step.Stored != nil {
		key = l.Storage().Size()*(l.HeadDim()+l.VDim()) + 8
	}
	row, most := l.KVHeads*key, maxAppendBytes
	if len(step.Q) > 0 {
		answer := l.VDim() + 1
		if l.Striped() {
			answer = (l.VDim() + 2) * max((l.SplitsSeen(positions, positions, 0)+l.Stripes-1)/l.Stripes, 1) // of one of the stripes
		}
		row, most = row+4*l.Heads*(l.HeadDim()+answer), maxStepBytes
	}
	return max(1, min(most/row, shard.MaxStepTokens))
}

// send sends one message.
func (b *batch) send(ctx context.Context, step *Step, layer *shard.LayerSpec, h *held, tokens, queries span, position int) {
	s := step.Session
	f := flights.Get().(*flight)
	f.step, f.layer, f.held, f.append_, f.attend = step, layer, h, tokens, queries
	f.tokens = len(step.K) / (layer.KVHeads * layer.HeadDim())
	f.hashes = append(f.hashes[:0], h.hashes...)
	f.Step = fanout.Step{
		Step: session.Step{
			Session: s.id, Epoch: s.epoch, Truncations: s.truncations, Layer: uint32(step.Layer), Length: h.length, Hashes: f.hashes, Chain: h.chain,
			Append: uint32(tokens.n), Attend: uint32(queries.n), QueryPosition: uint64(position),
			Encoding: headwaterv1.StorageType_STORAGE_TYPE_F32, Codec: stepCodecs[s.codec],
		},
		Input: f, Output: f,
	}
	if caller := trace.SpanContextFromContext(ctx); caller.IsSampled() {
		id, parent := caller.TraceID(), caller.SpanID()
		copy(f.Trace[copy(f.Trace[:], id[:]):], parent[:])
	}
	if tokens.n > 0 {
		f.AppendID = s.client.conns.NewID()
	}
	switch {
	case step.Stored != nil:
		f.Encoding = layerproto.StorageType(layer.Storage())
		f.tokens = len(step.Stored.K) / (layer.KVHeads * layer.HeadDim() * layer.Storage().Size())
	case !s.sendF32 && layer.Storage() != tensor.F32 && tokens.n > 0 && f.narrow():
		f.Encoding = layerproto.StorageType(layer.Storage())
		f.narrowed = true
	}
	if len(step.Tokens) > 0 {
		f.Tokens = step.Tokens[tokens.from : tokens.from+tokens.n]
	}
	if step.Mask != nil && queries.n > 0 {
		f.packMask(len(step.Mask) / (len(step.Q) / (layer.Heads * layer.HeadDim())))
	}
	if f.auto = s.codec == Auto && queries.n > 0; f.auto {
		f.Codec = s.chooser.codec()
		f.sent = time.Now()
	}
	f.call = s.client.lane.Start(ctx, s.place, &f.Step)
	h.user = b
	b.flying = append(b.flying, f)
}

// narrow converts the message's keys and values to rows in the storage type, as their holders would. If it can't, it
// returns false: they are then sent as they are, and the holder's error says what is wrong with them.
func (f *flight) narrow() bool {
	var ok bool
	f.rows.K, f.rows.KScale, ok = f.narrowRows(f.rows.K, f.rows.KScale, f.step.K, f.layer.HeadDim())
	if ok {
		f.rows.V, f.rows.VScale, ok = f.narrowRows(f.rows.V, f.rows.VScale, f.step.V, f.layer.VDim())
	}
	return ok
}

// narrowRows converts x [tokens, groups, dim] to rows [groups, tokens, dim] with scales [groups, tokens], in their
// memory.
func (f *flight) narrowRows(rows []byte, scales []float32, x []float32, dim int) ([]byte, []float32, bool) {
	storage, groups, n := f.layer.Storage(), f.layer.KVHeads, f.append_.n
	x = x[f.append_.from*groups*dim:][:n*groups*dim]
	width := dim * storage.Size()
	rows = slices.Grow(rows[:0], groups*n*width)[:groups*n*width]
	if storage != tensor.I8 && n == 1 { // the rows stand as they are to stand
		return rows, scales, tensor.Narrow(rows, x, storage) == nil
	}
	if storage == tensor.I8 {
		scales = slices.Grow(scales[:0], groups*n)[:groups*n]
		if _, _, finite := tensor.CheckFinite(raw(x), tensor.F32, false); !finite {
			return rows, scales, false
		}
	}
	for g := range groups {
		for t := range n {
			row, from := rows[(g*n+t)*width:][:width], x[(t*groups+g)*dim:][:dim]
			if storage == tensor.I8 {
				scales[g*n+t] = tensor.QuantizeI8(unsafe.Slice((*int8)(unsafe.Pointer(&row[0])), dim), from)
			} else if tensor.Narrow(row, from, storage) != nil {
				return rows, scales, false
			}
		}
	}
	return rows, scales, true
}

// packMask packs the mask's rows of n into bits.
func (f *flight) packMask(n int) {
	stride := (n + 7) / 8
	f.mask = append(f.mask[:0], make([]byte, stride*f.attend.n)...)
	for t := range f.attend.n {
		for i, show := range f.step.Mask[(f.attend.from+t)*n:][:n] {
			if show {
				f.mask[t*stride+i/8] |= 1 << (i % 8)
			}
		}
	}
	f.Tree, f.TreeMask = uint32(n), f.mask
}

// land waits for the answer and takes the receipt. After an error the flight is not used again.
func (f *flight) land(ctx context.Context) error {
	err := f.call.Wait(ctx)
	f.held.user = nil
	if err != nil {
		f.held.unsure = f.AppendID
		return err
	}
	f.held.length, f.held.chain = f.Length+uint64(f.Append), f.Chain
	copy(f.held.hashes, f.hashes)
	f.step.Kernel += time.Duration(f.ComputeNanos)
	if f.auto {
		took := time.Since(f.sent) - time.Duration(f.ComputeNanos+f.QueueNanos)
		f.step.Session.chooser.measured(f.Codec, took, f.attend.n*f.layer.Heads*f.layer.VDim())
	}
	f.step, f.held, f.call = nil, nil, nil
	if f.narrowed = false; cap(f.rows.K)+cap(f.rows.V) > maxKept {
		f.rows = Rows{}
	}
	f.Step = fanout.Step{}
	return nil
}

// raw returns the bytes of float32 values: supported machines are little endian, as the wire is.
func raw(f []float32) []byte {
	if len(f) == 0 {
		return nil
	}
	return unsafe.Slice((*byte)(unsafe.Pointer(&f[0])), 4*len(f))
}

// gather copies a group's part [n, width] of [tokens, groups, width] elements of some bytes.
func gather(dst, src []byte, at span, groups, group, width int) {
	for t := range at.n {
		copy(dst[t*width:][:width], src[((at.from+t)*groups+group)*width:])
	}
}

// Query implements fanout.Input.
func (f *flight) Query(dst []byte, group int) {
	gather(dst, raw(f.step.Q), f.attend, f.layer.KVHeads, group, 4*f.layer.GroupSize()*f.layer.HeadDim())
}

// Key implements fanout.Input.
func (f *flight) Key(dst []byte, group, from int) {
	switch {
	case f.narrowed:
		f.group(dst, f.rows.K, group, f.layer.HeadDim()*f.layer.Storage().Size(), from)
		return
	case f.step.Stored != nil:
		f.stored(dst, f.step.Stored.K, group, f.layer.HeadDim()*f.layer.Storage().Size(), from)
		return
	}
	f.appended(dst, f.step.K, group, 4*f.layer.HeadDim(), from)
}

// Value implements fanout.Input.
func (f *flight) Value(dst []byte, group, from int) {
	switch {
	case f.narrowed:
		f.group(dst, f.rows.V, group, f.layer.VDim()*f.layer.Storage().Size(), from)
		return
	case f.step.Stored != nil:
		f.stored(dst, f.step.Stored.V, group, f.layer.VDim()*f.layer.Storage().Size(), from)
		return
	}
	f.appended(dst, f.step.V, group, 4*f.layer.VDim(), from)
}

// KeyScale implements fanout.Input.
func (f *flight) KeyScale(dst []byte, group, from int) {
	if f.narrowed {
		f.group(dst, raw(f.rows.KScale), group, 4, from)
		return
	}
	f.stored(dst, raw(f.step.Stored.KScale), group, 4, from)
}

// ValueScale implements fanout.Input.
func (f *flight) ValueScale(dst []byte, group, from int) {
	if f.narrowed {
		f.group(dst, raw(f.rows.VScale), group, 4, from)
		return
	}
	f.stored(dst, raw(f.step.Stored.VScale), group, 4, from)
}

// appended copies rows of a group's part of [tokens, groups, width] bytes, from a row of the message on: as many as dst has room for.
func (f *flight) appended(dst []byte, src []float32, group, width, from int) {
	gather(dst, raw(src), span{f.append_.from + from, len(dst) / width}, f.layer.KVHeads, group, width)
}

// group copies a group's part of rows [groups, tokens of the message] of some bytes.
func (f *flight) group(dst, src []byte, group, width, from int) {
	copy(dst, src[(group*f.append_.n+from)*width:])
}

// stored copies a group's part of rows [groups, tokens] of some bytes.
func (f *flight) stored(dst, src []byte, group, width, from int) {
	copy(dst, src[(group*f.tokens+f.append_.from+from)*width:])
}

// Take implements fanout.Output.
func (f *flight) Take(group int, context, lse []float32) {
	heads := f.layer.GroupSize()
	width := heads * f.layer.VDim()
	for t := range f.attend.n {
		at := (f.attend.from+t)*f.layer.KVHeads + group
		copy(f.step.Context[at*width:][:width], context[t*width:])
		if f.step.LSE != nil {
			copy(f.step.LSE[at*heads:][:heads], lse[t*heads:])
		}
	}
}

// probeEvery is the number of steps after which the codec that seems slower is tried again.
const probeEvery = 64

// chooser picks between raw and exact contexts by the time for each element, without kernels and queues.
type chooser struct {
	steps int
	cost  [2]float64 // nanoseconds of an element, averaged over some steps; 0 where it is not known
}

var choices = [2]headwaterv1.StepCodec{headwaterv1.StepCodec_STEP_CODEC_RAW, headwaterv1.StepCodec_STEP_CODEC_EXACT}

func (c *chooser) codec() headwaterv1.StepCodec {
	c.steps++
	best := 0
	if c.cost[1] != 0 && c.cost[1] < c.cost[0] {
		best = 1
	}
	if c.steps%probeEvery == 0 {
		best = 1 - best
	}
	return choices[best]
}

func (c *chooser) measured(codec headwaterv1.StepCodec, took time.Duration, elements int) {
	i := 0
	if codec == choices[1] {
		i = 1
	}
	cost := float64(max(took, 1)) / float64(elements)
	if c.cost[i] != 0 {
		cost = c.cost[i] + (cost-c.cost[i])/8
	}
	c.cost[i] = cost
}

// Export calls do with the stored keys and values of a layer: count positions from start on, group by group and
// position by position. The rows are valid until do returns.
func (s *Session) Export(ctx context.Context, layer, start, count int, do func(group, position, positions int, rows Rows) error) error {
	return s.control(ctx, "export", func() error {
		if layer < 0 || layer >= len(s.layers) || start < 0 || count < 1 {
			return wrong("%d positions from %d on of layer %d", count, start, layer)
		}
		return s.export(ctx, layer, start, count, false, func(m *headwaterv1.ExportSessionResponse) error {
			n := int(m.GetCount())
			rows := Rows{K: m.GetK(), V: m.GetV()}
			if len(m.GetKScale()) > 0 {
				rows.KScale, rows.VScale = make([]float32, n), make([]float32, n)
				if err := errors.Join(tensor.Widen(rows.KScale, m.GetKScale(), tensor.F32), tensor.Widen(rows.VScale, m.GetVScale(), tensor.F32)); err != nil {
					return err
				}
			}
			return do(int(m.GetGroup()), int(m.GetStart()), n, rows)
		})
	})
}

// export calls do with the messages that carry exactly count positions from start on, group by group and position by
// position. It checks that each tensor has the right length.
func (s *Session) export(ctx context.Context, layer, start, count int, tokens bool, do func(m *headwaterv1.ExportSessionResponse) error) error {
	l := &s.place.Holding().Layers()[layer]
	req := &headwaterv1.ExportSessionRequest{Session: s.id[:], Layer: uint32(layer), Start: uint64(start), Count: uint64(count), Tokens: tokens}
	next := [2]int{0, start} // group and position
	err := s.client.conns.Export(ctx, s.place, req, func(m *headwaterv1.ExportSessionResponse) error {
		n := int(m.GetCount())
		scales := 0
		if l.Storage() == tensor.I8 {
			scales = 4 * n
		}
		if next[1] == start+count {
			next = [2]int{next[0] + 1, start}
		}
		if int(m.GetGroup()) != next[0] || m.GetStart() != uint64(next[1]) || n < 1 || n > start+count-next[1] || len(m.GetTokens()) > n ||
			len(m.GetK()) != n*l.HeadDim()*l.Storage().Size() || len(m.GetV()) != n*l.VDim()*l.Storage().Size() || len(m.GetKScale()) != scales || len(m.GetVScale()) != scales {
			return fmt.Errorf("%d positions from %d on of group %d came, with %d and %d bytes, where group %d was at position %d", n, m.GetStart(), m.GetGroup(), len(m.GetK()), len(m.GetV()), next[0], next[1])
		}
		next[1] += n
		return do(m)
	})
	if err == nil && next != [2]int{l.KVHeads - 1, start + count} {
		err = fmt.Errorf("the rows end at group %d, position %d", next[0], next[1])
	}
	return err
}
