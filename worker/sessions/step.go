package sessions

import (
	"context"
	"errors"
	"fmt"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"headwater.example/attention"
	"headwater.example/internal/contextframe"
	"headwater.example/internal/kvcache"
	"headwater.example/internal/layerproto"
	"headwater.example/internal/observe"
	"headwater.example/internal/quotaproto"
	"headwater.example/internal/rpc"
	"headwater.example/internal/session"
	headwaterv1 "headwater.example/proto/headwater/v1"
	"headwater.example/shard"
	"headwater.example/tensor"
	"headwater.example/worker/internal/machine"
)

// foregroundTokens is how many query tokens someone waits for, as of a new token or a draft; more are a prompt's.
const foregroundTokens = 64

// step is what a request asks, checked, and the memory to do it in.
type step struct {
	groups  []shard.Group // that are answered
	at      []int         // the index of each among those held
	heads   int           // query heads of a group
	vDim    int
	raw     bool
	codec   contextframe.Codec // of the frame, unless raw
	append  kvcache.Append
	pending kvcache.Pending
	query   attention.Query
	options attention.Options
	q       []float32 // [groups, attend, heads, head_dim]
	mask    []byte    // [attend, tree]
	items   []attention.Item
	// Of a layer in stripes, whose answer is parts:
	striped bool
	apart   []attention.Apart // [groups]
	parts   []attention.Part  // of all of them
}

// do does a step: it checks the request, appends, attends, and makes the answer; what it has appended is kept once there is
// an answer. After an error the session is as before; one that is no *session.Error is that of ctx.
func (s *Service) do(ctx context.Context, from session.LaneID, t *task) error {
	m, r, st := &t.request.Step, &t.response.Result, &t.step
	if over := t.request.NoRoom; over != nil {
		return s.noRoom(over)
	}
	if t.tooMany {
		return session.Errorf(problemBusy, "worker %s: more query tokens wait than a tenant's part of %d: send the step again later", s.m.Name, maxQueuedTokens)
	}
	if err := s.admit(ctx, kvcache.SessionID(m.Session)); status.Code(err) == codes.PermissionDenied { // a step is answered with a reason
		return invalidSession("%s", status.Convert(err).Message())
	} else if err != nil {
		return err
	}
	layer, groups, err := s.m.Store.Layer(kvcache.SessionID(m.Session), shard.Layer(m.Layer), m.At)
	if err != nil {
		return refusal(err)
	}
	room, rule := st.read(m, t.request.Payload, layer, groups)
	if rule != "" {
		refused := invalidSession("session %x: layer %d: %s", m.Session, m.Layer, rule)
		refused.Why.Layer = m.Layer
		return refused
	}
	if tenant := rpc.CallerOf(ctx).Tenant; tenant != "" {
		st.append.Metered = true
		if over := s.m.Quotas.Step(tenant, float64(len(st.groups))/float64(layer.KVHeads)); over != nil {
			refused := session.Errorf(problemOver, "worker %s: session %x: layer %d: %v", s.m.Name, m.Session, m.Layer, over)
			refused.Why.Layer, refused.Why.Quota = m.Layer, quotaproto.Write(over)
			return refused
		}
	}
	share := rpc.ShareOf(ctx)
	if err := share.TakeAnswer(ctx, room); err != nil {
		return s.noRoom(err)
	}
	defer t.keep(share, room)
	if m.Tree > 0 {
		st.unpack(m)
	}
	st.append.Epoch.Lane = kvcache.LaneID(from)
	defer st.release()
	if r.Chain = m.Chain; m.Append > 0 {
		r.Chain = kvcache.NextChain(m.Chain, m.AppendID, m.Length)
	}
	return s.perform(ctx, t)
}

// perform does a step that was checked.
func (s *Service) perform(ctx context.Context, t *task) (err error) {
	m, r, st := &t.request.Step, &t.response.Result, &t.step
	if m.Attend == 0 {
		if r.Length, r.Hashes, err = s.m.Store.Append(ctx, &st.append, r.Hashes); err != nil {
			return refusal(err)
		}
		r.QueueNanos = machine.Nanos(t.arrived, time.Now())
		return nil
	}
	if r.Length, r.Hashes, err = s.m.Store.Prepare(ctx, &st.pending, &st.append, r.Hashes); err != nil {
		return refusal(err)
	}
	if len(st.groups) == 0 { // others answer
		r.QueueNanos = machine.Nanos(t.arrived, time.Now())
		st.pending.Commit()
		return nil
	}
	if st.striped {
		return s.parts(ctx, t)
	}
	rows := len(st.groups) * int(m.Attend) * st.heads
	raw := rpc.NewBuffer(4 * rows * (st.vDim + 1))
	out := attention.Output{Context: raw.Floats()[:rows*st.vDim], LSE: raw.Floats()[rows*st.vDim:]}
	if err := s.attend(ctx, t, out); err != nil {
		raw.Free()
		return err
	}
	r.Codec = m.Codec
	size := 4 * rows * (st.vDim + 1)
	if st.raw {
		s.m.Observe.Context(observe.CodecOf("raw"), size, size)
		t.response.Payload = raw
		st.pending.Commit()
		s.watches.leave(t, out.LSE)
		return nil
	}
	defer raw.Free()
	tokens := len(st.groups) * int(m.Attend)
	frame := rpc.NewBuffer(int(contextframe.MaxFrameBytes(st.codec, tokens, st.heads, st.vDim)))
	coded, err := contextframe.Encode(frame.Bytes()[:0], st.codec, 0, tokens, st.heads, st.vDim, out.Context, out.LSE)
	if err != nil {
		frame.Free()
		return notFinite(m, err)
	}
	frame.Cut(len(coded))
	s.m.Observe.Context(observe.CodecOf(st.codec.String()), size, len(coded))
	t.response.Payload = frame
	st.pending.Commit()
	s.watches.leave(t, out.LSE)
	return nil
}

// parts answers with the parts of the splits that are held here. Whoever has those of the others as well makes the contexts.
func (s *Service) parts(ctx context.Context, t *task) error {
	m, r, st := &t.request.Step, &t.response.Result, &t.step
	v := &st.pending.View
	rows := int(m.Attend) * st.heads
	seen := m.SplitsSeen(v.Layer)
	st.apart, st.parts = st.apart[:0], st.parts[:0]
	splits := 0
	for _, g := range st.groups {
		splits += v.Layer.SplitsBelow(int(g), seen)
	}
	payload := rpc.NewBuffer(4 * splits * rows * (st.vDim + 2))
	rest := payload.Floats()
	cut := func(n int) (part []float32) {
		part, rest = rest[:n:n], rest[n:]
		return part
	}
	for range splits {
		st.parts = append(st.parts, attention.Part{M: cut(rows), L: cut(rows), O: cut(rows * st.vDim)})
	}
	left := st.parts
	for _, g := range st.groups {
		n := v.Layer.SplitsBelow(int(g), seen)
		st.apart = append(st.apart, attention.Apart{First: int(g) % v.Layer.Stripes, Step: v.Layer.Stripes, Parts: left[:n:n]})
		left = left[n:]
	}
	if splits > 0 { // else the queries see nothing of what is held here
		if err := s.attend(ctx, t, attention.Output{}); err != nil {
			payload.Free()
			return err
		}
	}
	r.Codec, t.response.Payload = m.Codec, payload
	s.m.Observe.Context(observe.CodecOf("raw"), len(payload.Bytes()), len(payload.Bytes()))
	st.pending.Commit()
	return nil
}

// keep lets the answer have its part of the room until it is written, and gives the other back.
func (t *task) keep(share *rpc.Share, room int64) {
	if answer := t.response.Payload; answer != nil {
		kept := min(int64(len(answer.Bytes())), room)
		answer.Hold(share, kept)
		room -= kept
	}
	share.GiveAnswer(room)
}

// attend lets the queries of all groups attend over the view in one call, which uses all threads that have nothing else to do.
func (s *Service) attend(ctx context.Context, t *task, out attention.Output) error {
	m, st := &t.request.Step, &t.step
	class := attention.Foreground
	if m.Attend > foregroundTokens {
		class = attention.Background
	}
	query := st.query
	if m.Tree > 0 {
		query.MaskFrom = st.pending.View.Len - int(m.Tree)
	}
	st.ask(query, out)
	defer clear(st.items) // What they hold belongs to others.
	turn := attention.Turn{Flow: rpc.CallerOf(ctx).Tenant, Work: st.items[0].Work()}
	return s.m.Use(ctx, class, turn, func(thread *attention.Thread) error {
		started := time.Now()
		t.dequeue(s)
		err := thread.AttendAll(ctx, st.items)
		if err != nil && ctx.Err() == nil {
			err = notFinite(m, err)
		}
		began := started.Add(thread.Waited())
		r := &t.response.Result
		r.ComputeNanos, r.QueueNanos = machine.Nanos(began, time.Now()), machine.Nanos(t.arrived, began)
		if err == nil {
			s.m.Observe.Kernel(observe.Session, time.Duration(r.ComputeNanos), st.seen(m))
			s.m.Observe.Layer(m.Layer, time.Duration(r.ComputeNanos))
		}
		return err
	})
}

// ask makes an item of each group that is answered; of a layer in stripes of each shard, whose query is its group's.
func (st *step) ask(query attention.Query, out attention.Output) {
	st.items = st.items[:0]
	if st.striped {
		layer := st.pending.View.Layer
		q, at, last := int(st.query.Tokens)*st.heads*layer.HeadDim(), -1, -1
		for i, g := range st.groups {
			group := layer.GroupOf(int(g))
			if group != last {
				at, last = at+1, group
			}
			if len(st.apart[i].Parts) == 0 {
				continue
			}
			query.Q, query.FirstHead = st.q[at*q:(at+1)*q], group*st.heads
			st.items = append(st.items, attention.Item{KV: st.pending.View.KV(st.at[i]), Query: query, Options: st.options, Apart: &st.apart[i]})
		}
		return
	}
	n := len(st.groups)
	q, c, lse := len(st.q)/n, len(out.Context)/n, len(out.LSE)/n // of a group
	for i, g := range st.groups {
		query.Q, query.FirstHead = st.q[i*q:(i+1)*q], int(g)*st.heads
		st.items = append(st.items, attention.Item{
			KV: st.pending.View.KV(st.at[i]), Query: query, Options: st.options,
			Output: attention.Output{Context: out.Context[i*c : (i+1)*c], LSE: out.LSE[i*lse : (i+1)*lse]},
		})
	}
}

// seen returns the bytes of keys and values that the queries of a step see.
func (st *step) seen(m *session.Step) int64 {
	v := &st.pending.View
	positions := int64(v.Len)
	if left := v.Layer.Options.WindowLeft; left >= 0 {
		positions -= max(int64(m.QueryPosition)-left, 0)
	}
	page := int64(v.Layer.Layout.PageBytes())
	if st.striped {
		return int64(len(st.parts)) * attention.SplitPages * page // the newest split may be shorter
	}
	return max(positions, 0) * page / attention.PageLen * int64(len(st.items))
}

// notFinite refuses a step for what its kernel or its codec could not do.
func notFinite(m *session.Step, err error) error {
	problem := problemInvalid // what options and positions forbid together
	var row *attention.RowError
	var narrow *tensor.RangeError
	if errors.As(err, &row) || errors.As(err, &narrow) {
		problem = problemNotFinite
	}
	refused := session.Errorf(problem, "session %x: layer %d: %v", m.Session, m.Layer, err)
	refused.Why.Layer = m.Layer
	return refused
}

// noRoom refuses a step for which there is no room in flight.
func (s *Service) noRoom(err error) error {
	var room *rpc.RoomError
	switch {
	case errors.Is(err, rpc.ErrBusy):
		return session.Errorf(problemBusy, "worker %s: %v", s.m.Name, err)
	case errors.As(err, &room):
		return session.Errorf(problemOver, "worker %s: %v: send the step again later, or cut it into fewer tokens", s.m.Name, err)
	}
	return err
}

// read checks a request against its layer and takes its payload apart. It returns the bytes of all that is made of it until it is
// answered, or the rule that the request breaks.
func (st *step) read(m *session.Step, payload *rpc.Buffer, layer *shard.LayerSpec, groups []shard.Group) (room int64, rule string) {
	l := layer.Layout
	heads := layer.Heads / layer.KVHeads
	codec, _ := layerproto.ReadStepCodec(m.Codec)
	st.heads, st.vDim, st.options = heads, l.VDim(), layer.Options
	st.raw, st.codec = m.Codec == headwaterv1.StepCodec_STEP_CODEC_RAW, codec
	st.striped = layer.Striped()
	sizes, err := m.Check(layer, groups, len(payload.Bytes()))
	if err != nil {
		return 0, err.Error()
	}
	st.groups, st.at = st.groups[:0], st.at[:0]
	m.Answered(len(groups), func(i int) { st.groups, st.at = append(st.groups, groups[i]), append(st.at, i) })
	n, attend := int64(len(st.groups)), int64(m.Attend)
	answer, mask := 4*n*attend*int64(heads)*int64(l.VDim()+1), attend*int64(m.Tree)
	if st.striped {
		answer = m.AnswerBytes(layer, groups)
	}
	dt := l.DType()
	if m.Append > 0 && m.Encoding == headwaterv1.StorageType_STORAGE_TYPE_F32 {
		dt = tensor.F32
	}
	b := payload.Bytes()
	if i, x, ok := tensor.CheckFinite(b[:sizes.Q], tensor.F32, false); !ok {
		row := int64(i) / int64(l.HeadDim())
		var asked []int
		m.Groups(layer, groups, func(group int) { asked = append(asked, group) })
		return 0, fmt.Sprintf("q of group %d, token %d, head %d: element %d is %v", asked[row/(attend*int64(heads))], row/int64(heads)%attend, row%int64(heads), int64(i)%int64(l.HeadDim()), x)
	}
	cut := func(size int64) (part []byte) {
		part, b = b[:size:size], b[size:]
		return part
	}
	cut(sizes.Q)
	st.q = payload.Floats()[:sizes.Q/4]
	st.append = kvcache.Append{
		Session: kvcache.SessionID(m.Session), Epoch: kvcache.Epoch{Counter: m.Epoch, At: m.At}, Truncations: m.Truncations,
		Layer: shard.Layer(m.Layer), Length: m.Length, Hashes: m.Hashes, Chain: m.Chain, ID: m.AppendID, Positions: int(m.Append), Encoding: dt,
		K: cut(sizes.K), V: cut(sizes.V), KScale: cut(sizes.Scale), VScale: cut(sizes.Scale), Tokens: m.Tokens, Query: m.QueryPosition,
	}
	st.query = attention.Query{Tokens: int(m.Attend), Heads: heads, Offset: int64(m.QueryPosition)}
	room = answer + mask
	if !st.raw && !st.striped && answer > 0 {
		room += contextframe.MaxFrameBytes(codec, int(n*attend), heads, l.VDim())
	}
	return room, ""
}

// unpack makes the mask [attend, tree] of bytes from its bits.
func (st *step) unpack(m *session.Step) {
	tree := int(m.Tree)
	size := int(m.Attend) * tree
	if cap(st.mask) < size {
		st.mask = make([]byte, size)
	}
	st.mask = st.mask[:size]
	row := (tree + 7) / 8
	for token := range int(m.Attend) {
		bits := m.TreeMask[token*row:][:row]
		for i := range tree {
			st.mask[token*tree+i] = bits[i/8] >> (i % 8) & 1
		}
	}
	st.query.Mask, st.query.MaskHeads = st.mask, 1
}

// release lets go of what the step was given, and of memory that most steps do not need.
func (st *step) release() {
	st.pending.Abort()
	st.append, st.query, st.options, st.q = kvcache.Append{}, attention.Query{}, attention.Options{}, nil
	clear(st.apart)
	clear(st.parts)
	if cap(st.mask) > 1<<14 {
		st.mask = nil
	}
}
