package fanout

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"headwater.example/attention"
	"headwater.example/internal/contextframe"
	"headwater.example/internal/layerproto"
	"headwater.example/internal/rpc"
	"headwater.example/internal/session"
	headwaterv1 "headwater.example/proto/headwater/v1"
	"headwater.example/shard"
)

// Input gives a step's tensors group by group, little endian, as LaneRequest.payload lays them out. Each method fills dst.
type Input interface {
	// Query is q [attend, group size, head_dim] in f32.
	Query(dst []byte, group int)
	// Key and Value are k [append, head_dim] and v [append, v_dim] in the step's encoding: as many rows as dst has room for, from a row
	// on.
	Key(dst []byte, group, from int)
	Value(dst []byte, group, from int)
	// KeyScale and ValueScale are [append] in f32, likewise; they are called for int8 only.
	KeyScale(dst []byte, group, from int)
	ValueScale(dst []byte, group, from int)
}

// Output takes a step's context group by group.
type Output interface {
	// Take receives context [attend, group size, v_dim] and LSE [attend, group size], which are valid until it returns.
	Take(group int, context, lse []float32)
}

// Step is a step on all groups of a layer. Length, Hashes and Chain are those before it; an append has an id (NewID). What it refers to must stay as it is until
// the call has ended.
type Step struct {
	session.Step // Hashes by group of the layer; Wait writes those after the step over them, as it does with Chain

	Input  Input
	Output Output

	// Payload is the whole payload, in the place of Input, for a layer that one holder has whole: it is sent as it is, and the
	// answer's payload is Answer, not given to Output. Start takes it, and who calls Wait takes Answer.
	Payload *rpc.Buffer
	Answer  *rpc.Buffer

	ComputeNanos, QueueNanos uint64 // the most of any holder

	// Span begins the span of what a holder is asked, if the step is traced; nil is not. It returns the trace that goes with the
	// holder's part, and what ends the span.
	Span func(holder string) (trace [24]byte, end func(at time.Time, err error))
}

// Call is a step on its way. It is made by Start, and ends with Wait or Once.
type Call struct {
	lane      *Lane
	place     *Place
	holding   *Holding // of the place, as the step was sent
	step      *Step
	parts     []*callPart
	left      atomic.Int32         // parts that are not sent and answered
	done      chan struct{}        // one element when none is left
	slow      *time.Timer          // nil before the first wait
	refused   error                // why it was not sent
	again     bool                 // it was sent again over new streams, to the same holders
	refreshed int                  // how often it was sent again since holders were others
	sent      time.Duration        // when it was sent last, on the clock of Conns
	other     *Call                // what was asked of other holders in the place of late ones, nil if nothing was
	heard     []*callPart          // those whose answers are the step's: parts, or of late ones the parts of other
	late      []*callPart          // those of parts whose place other takes
	retry     time.Duration        // how long after it was sent others may be asked, after that could not be done
	over      bool                 // whether all of parts are sent and answered
	watcher   atomic.Pointer[Call] // who is told in news when a part has ended, nil is nobody
	news      chan struct{}        // has an element after a part has ended
	ends      atomic.Int32         // how many of callEnds have come
	context   []float32            // scratch: one holder's context and LSE
	lse       []float32
	hashes    []uint64 // scratch: by group, the hash after the step where it is known
	known     []bool
	// Scratch of a layer in stripes: by shard, the parts that came, of one group those of each split, and who joins them.
	came   [][]float32
	splits []attention.Part
	joiner attention.Joiner
	frame  []byte
}

// callPart is what one holder is asked.
type callPart struct {
	call     *Call
	holder   *Holder
	groups   []int
	units    []int         // see part
	answers  []int         // groups of these that it answers for, empty if nothing attends
	bits     []byte        // answers as Step.Answers has them
	own      own           // memory of answers and bits where they are not as a rule
	pace     *pace         // of the holder
	left     atomic.Int32  // 2 before it is sent, 0 once it is sent and answered
	state    atomic.Int32  // partWaits, partLate or partEnded, if it attends
	sent     time.Duration // when it was sent, on the clock of Conns
	took     time.Duration // until it was answered, if it attends
	request  *session.Request
	response *session.Response
	bytes    int // of the request
	answered bool
	err      error
	end      func(at time.Time, err error) // of its span, nil if there is none
	at       time.Time                     // when the answer came, with a span
}

// finished counts that a part is sent, or answered. Parts of an abandoned call count as well; nobody waits for them then.
func (p *callPart) finished() {
	if p.left.Add(-1) > 0 {
		return
	}
	c := p.call
	watcher := c.watcher.Load()
	if c.left.Add(-1) == 0 {
		if c.ends.Add(1) == callEnds {
			c.release()
		} else {
			c.done <- struct{}{}
		}
	}
	if watcher != nil {
		select {
		case watcher.news <- struct{}{}:
		default: // there is one
		}
	}
}

// callEnds is who ends a call: who finishes its last part, and who does not wait for it any more.
const callEnds = 2

// drop releases a call that nobody waits for any more, once nothing of it is left.
func (c *Call) drop() {
	if c.ends.Add(1) == callEnds {
		<-c.done
		c.release()
	}
}

// Start sends a step to all holders of its layer. It waits while too many steps are in flight.
func (l *Lane) Start(ctx context.Context, p *Place, s *Step) *Call {
	c := l.calls.Get().(*Call)
	c.place, c.holding, c.step, c.again, c.refreshed = p, p.Holding(), s, false, 0
	if silent := l.conns.silent(c.holding); silent != nil && s.Input != nil && l.conns.leave(ctx, p, c.holding, epochOf(s.Epoch, l.id), silent...) == nil {
		c.holding = p.Holding()
	} // else they are waited for
	c.send(ctx)
	return c
}

func (c *Call) send(ctx context.Context) {
	c.parts, c.heard, c.over = c.parts[:0], nil, false
	c.retry = 0
	c.ends.Store(0)
	if c.holding.closed {
		c.holding, c.refused = c.lane.conns.opened(ctx, c.place, c.holding, epochOf(c.step.Epoch, c.lane.id))
		if c.refused != nil {
			c.step.Payload.Free()
			c.step.Payload = nil
			c.done <- struct{}{}
			return
		}
	}
	s, layer := c.step, &c.holding.layers[c.step.Layer]
	c.sent = c.lane.conns.now()
	spared := c.share(true)
	c.refused = c.fits(layer)
	if spared && c.refused != nil {
		c.share(false)
		c.refused = c.fits(layer)
	}
	if c.refused != nil {
		s.Payload.Free()
		s.Payload = nil
		c.done <- struct{}{}
		return
	}
	if s.Attend > 0 && copied(c.holding.parts[s.Layer]) {
		c.lane.conns.hedges.earn(len(c.parts), c.lane.conns.HedgeShare)
	}
	c.left.Store(int32(len(c.parts)))
	for _, p := range c.parts {
		c.ask(p)
		if s.Payload != nil {
			p.request.Payload, s.Payload = s.Payload, nil
		} else {
			p.request.Payload = s.cut(p, layer)
		}
		stream, err := c.lane.stream(p.holder, s.Session)
		if err == nil {
			err = stream.add(ctx, p)
		}
		p.failed(err)
	}
}

// share makes the parts of a call: what each holder of the layer is asked. It reports whether one of them is spared reading, which it
// is not where may is false.
func (c *Call) share(may bool) (spared bool) {
	s, held := c.step, c.holding.parts[c.step.Layer]
	spare := -1
	if may && s.Attend > 0 {
		spare = c.lane.conns.longest(held, c.sent)
	}
	c.parts = c.parts[:0]
	for i := range held {
		p := c.nextPart(&held[i])
		if s.Attend == 0 {
			p.answers = nil
		}
	}
	if spare >= 0 {
		c.spareReads(spare)
	}
	if s.Append == 0 && s.Attend > 0 {
		c.keepAsked()
	}
	c.heard = c.parts
	return spare >= 0
}

// ask makes the message of a part, without its payload.
func (c *Call) ask(p *callPart) {
	s, m := c.step, &p.request.Step
	hashes, mask, tokens := m.Hashes[:0], m.TreeMask[:0], m.Tokens[:0]
	if *m = s.Step; p.holder.parted(&c.holding.layers[s.Layer]) {
		m.Codec = headwaterv1.StepCodec_STEP_CODEC_PARTS
	}
	if s.Span != nil {
		m.Trace, p.end = s.Span(p.holder.Name)
	}
	m.Hashes, m.TreeMask, m.Tokens = hashes, append(mask, s.TreeMask...), append(tokens, s.Tokens...)
	for _, g := range p.groups {
		m.Hashes = append(m.Hashes, s.Hashes[g])
	}
	if m.At = c.holding.counter; s.Attend > 0 {
		m.Answers = p.bits
	}
}

// nextPart adds a part for a holder, one of an earlier step where there is one.
func (c *Call) nextPart(held *part) *callPart {
	n := len(c.parts)
	if n < cap(c.parts) {
		c.parts = c.parts[:n+1]
	} else {
		c.parts = append(c.parts, nil)
	}
	p := c.parts[n]
	if p == nil {
		p = &callPart{call: c, request: new(session.Request), response: new(session.Response)}
		c.parts[n] = p
	}
	p.holder, p.groups, p.units, p.answers, p.bits, p.answered, p.err, p.end = held.holder, held.groups, held.units, held.answers, held.bits, false, nil, nil
	p.pace, p.sent = c.lane.conns.pace(held.holder), c.sent
	p.left.Store(2)
	p.state.Store(partWaits)
	return p
}

// failed ends a part that was not queued, if there is an error.
func (p *callPart) failed(err error) {
	if err == nil {
		return
	}
	p.request.Payload.Free()
	p.request.Payload, p.err = nil, err
	p.finished()
	p.finished()
}

// fits refuses a step before anything is sent, if one holder's part or its answer does not fit in a message.
func (c *Call) fits(layer *shard.LayerSpec) error {
	s := c.step
	query, key, value, scale := stepBytes(layer, &s.Step)
	answer := 4 * int(s.Attend) * layer.GroupSize() * (layer.VDim() + 1)
	for _, p := range c.parts {
		n := max(query*len(p.answers)+(key+value+2*scale)*len(p.groups), answer*len(p.answers))
		if p.holder.parted(layer) {
			n = max(s.partedBytes(p, layer), 4*s.partFloats(layer)*s.splitsOf(p, layer))
		}
		if n += 8*len(p.groups) + len(s.TreeMask) + 5*len(s.Tokens) + roomForFields; n > rpc.MaxMessageBytes {
			return invalid("layer %d: %d tokens to append and %d that attend make a message of about %d bytes at holder %q, at most %d are allowed: cut the step into fewer tokens",
				s.Layer, s.Append, s.Attend, n, p.holder.Name, rpc.MaxMessageBytes)
		}
	}
	return nil
}

// roomForFields is more than a message's other fields, and the coding of a context, take.
const roomForFields = 32 << 10

// stepBytes returns the sizes of the tensors that a step has for one group.
func stepBytes(l *shard.LayerSpec, s *session.Step) (query, key, value, scale int) {
	query = 4 * int(s.Attend) * l.GroupSize() * l.HeadDim()
	size := 4
	if s.Encoding != headwaterv1.StorageType_STORAGE_TYPE_F32 {
		size = l.Storage().Size()
	}
	key, value = int(s.Append)*l.HeadDim()*size, int(s.Append)*l.VDim()*size
	if s.Encoding == headwaterv1.StorageType_STORAGE_TYPE_I8 {
		scale = 4 * int(s.Append)
	}
	return query, key, value, scale
}

// Payload is the Input that a whole payload is.
type Payload struct {
	tensors [5][]byte // q, k, v, k_scale, v_scale, each by group
	sizes   [5]int    // of one group
	rows    int       // of one group, but of q
}

// Cut finds the tensors in the payload of a step on all groups. The queries are those of the groups that it is to be answered for.
func (p *Payload) Cut(l *shard.LayerSpec, s *session.Step, payload []byte) error {
	var sizes [5]int
	sizes[0], sizes[1], sizes[2], sizes[3] = stepBytes(l, s)
	sizes[4] = sizes[3]
	p.rows = max(int(s.Append), 1)
	at := 0
	for i, size := range sizes {
		n := size * l.KVHeads
		if i == 0 {
			n = size * s.Answered(l.KVHeads, nil)
		}
		if n > len(payload)-at {
			return invalid("layer %d: a payload of %d bytes for %d queries and %d positions of %d groups", s.Layer, len(payload), s.Attend, s.Append, l.KVHeads)
		}
		p.tensors[i], p.sizes[i] = payload[at:at+n], size
		at += n
	}
	if at != len(payload) {
		return invalid("layer %d: the payload has %d bytes, and %d are needed for %d queries and %d positions of %d groups", s.Layer, len(payload), at, s.Attend, s.Append, l.KVHeads)
	}
	return nil
}

func (p *Payload) put(dst []byte, tensor, group, from int) {
	copy(dst, p.tensors[tensor][group*p.sizes[tensor]+from*(p.sizes[tensor]/p.rows):])
}

// Query implements Input.
func (p *Payload) Query(dst []byte, group int) { p.put(dst, 0, group, 0) }

// Key implements Input.
func (p *Payload) Key(dst []byte, group, from int) { p.put(dst, 1, group, from) }

// Value implements Input.
func (p *Payload) Value(dst []byte, group, from int) { p.put(dst, 2, group, from) }

// KeyScale implements Input.
func (p *Payload) KeyScale(dst []byte, group, from int) { p.put(dst, 3, group, from) }

// ValueScale implements Input.
func (p *Payload) ValueScale(dst []byte, group, from int) { p.put(dst, 4, group, from) }

// cut makes the payload for one holder.
func (s *Step) cut(p *callPart, layer *shard.LayerSpec) *rpc.Buffer {
	if p.holder.parted(layer) {
		return s.cutParted(p, layer)
	}
	query, key, value, scale := stepBytes(layer, &s.Step)
	asked := p.asked(layer)
	b := rpc.NewBuffer(len(asked)*query + len(p.units)*(key+value+2*scale))
	rest := b.Bytes()
	for _, g := range asked {
		s.Input.Query(rest[:query], g)
		rest = rest[query:]
	}
	each := func(size int, fill func(Input, []byte, int, int)) {
		for _, g := range p.units {
			if size > 0 {
				fill(s.Input, rest[:size], g, 0)
				rest = rest[size:]
			}
		}
	}
	each(key, Input.Key)
	each(value, Input.Value)
	each(scale, Input.KeyScale)
	each(scale, Input.ValueScale)
	return b
}

// asked returns the groups whose context a holder gives, unless it gives parts.
func (p *callPart) asked(layer *shard.LayerSpec) []int {
	if layer.Striped() && len(p.answers) > 0 {
		return p.units
	}
	return p.answers
}

const (
	// attempts bounds how often a step is sent if failures are transient. The pause before each attempt but the first
	// doubles.
	attempts   = 4
	firstPause = 10 * time.Millisecond
)

// Wait waits until every holder has answered, and hands out the contexts. If a connection broke or a holder was busy,
// it sends the step again. After an error some holders may have done the step: the same step completes it when it is
// repeated. The error is a *session.Error if it comes from a holder.
func (c *Call) Wait(ctx context.Context) error { return c.wait(ctx, attempts) }

// Once is Wait without repeats.
func (c *Call) Once(ctx context.Context) error { return c.wait(ctx, 1) }

func (c *Call) wait(ctx context.Context, attempts int) error {
	for attempt := 1; ; attempt++ {
		silent, err := c.await(ctx)
		for silent != nil && err == nil {
			next, failed := c.elsewhere(ctx, silent)
			if silent, err = nil, failed; next != nil && next != c {
				c = next
				silent, err = c.await(ctx)
			}
		}
		if err != nil {
			// Its parts may still be written to: it is not used again.
			c.noOther()
			return fmt.Errorf("step of layer %d: %w", c.step.Layer, err)
		}
		c.endSpans()
		failure := c.failure()
		if failure != nil && c.lane.ctx.Err() != nil {
			failure = fmt.Errorf("step of layer %d: %w", c.step.Layer, rpc.ErrClosed)
		}
		if failure == nil {
			c.compare()
			err := c.gather()
			c.end()
			return err
		}
		if c.refused == nil {
			again, err := c.moves(ctx)
			if again {
				attempt--
				c.send(ctx)
				continue
			}
			if err != nil {
				failure = err
			}
		}
		if attempt >= attempts || errors.Is(failure, errMoved) || !transient(failure) || !pause(ctx, firstPause<<(attempt-1)) {
			c.release()
			return failure
		}
		c.send(ctx)
	}
}

// endSpans ends the spans of the parts, if the step is traced.
func (c *Call) endSpans() {
	for _, p := range c.late {
		if p.end != nil {
			p.end(time.Now(), errLate)
		}
	}
	for _, p := range c.heard {
		if p.end == nil {
			continue
		}
		at, err := p.at, p.err
		if !p.answered {
			at = time.Now()
		} else if refused := p.response.Result.Err; refused != nil {
			err = refused
		}
		p.end(at, err)
		p.end = nil
	}
}

// errMoved tells a client to send a step again whose payload was given away: its holders have changed.
var errMoved = session.Errorf(session.Busy, "the session's holders have changed: send the step again")

// moves reports whether to send the step again: to other holders, because lost ones were left out or the session has moved, or once
// more to the same ones, because the stream to a holder broke that the others can replace. The error says more than the step's: why
// others can't be gone on with, or that the payload was given away.
func (c *Call) moves(ctx context.Context) (bool, error) {
	if c.place.Holding() == c.holding {
		if again, err := c.others(ctx); !again {
			return false, err
		}
	}
	moved := c.place.Holding() != c.holding
	if c.step.Input == nil {
		if moved {
			return false, errMoved
		}
		return false, nil
	}
	if moved {
		c.holding, c.again = c.place.Holding(), false
	}
	return true, nil
}

// others brings the place to other holders, if those that the step was sent to are not the right ones any more, and reports whether to
// send it again, or what the others say of that.
func (c *Call) others(ctx context.Context) (bool, error) {
	var missing []string
	all := true // whether all that failed are streams that broke
	driver, conns := epochOf(c.step.Epoch, c.lane.id), c.lane.conns
	for _, p := range c.heard {
		var err error
		switch {
		case p.err != nil:
			err = lost(p.holder.Name, p.err)
		case p.response.Result.Err != nil:
			err = refused(p.holder.Name, p.response.Result.Err)
		}
		if stale(err, driver) != 0 && c.refreshed < refreshes {
			c.refreshed++
			moved := conns.refresh(ctx, c.place, c.holding, driver)
			return moved == nil, unsettled(c.place, driver, moved)
		}
		if gone(err) != "" {
			missing = append(missing, p.holder.Name)
			all = all && broken(err)
		}
	}
	if len(missing) == 0 {
		return false, nil
	}
	if _, whole := c.holding.without(missing...); !whole {
		return conns.moved(ctx, c.place, c.holding, driver), nil
	}
	if all && !c.again {
		c.again = true
		return true, nil
	}
	err := conns.leave(ctx, c.place, c.holding, driver, missing...)
	if _, told := session.FromError(err); told {
		return false, err
	}
	return err == nil, nil
}

// pause waits, and reports whether the context is still alive.
func pause(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}

// end ends a call whose answers were taken.
func (c *Call) end() {
	over := c.over // else what is late is waited for by nobody
	c.noOther()
	if over {
		c.release()
	} else {
		c.drop()
	}
}

// noOther ends what was asked of other holders in the place of late ones.
func (c *Call) noOther() {
	if c.other != nil {
		for _, p := range c.other.parts {
			if p.end != nil {
				p.end(time.Now(), errLate)
			}
		}
		c.other.drop()
		c.other = nil
	}
	c.late = c.late[:0]
}

func (c *Call) release() {
	for _, p := range c.parts {
		p.response.Payload.Free()
		p.response.Payload = nil
	}
	c.place, c.holding, c.step, c.refused, c.heard = nil, nil, nil, nil, nil
	c.watcher.Store(nil)
	c.lane.calls.Put(c)
}

// failure returns the call's error, as outranks orders those of its holders.
func (c *Call) failure() error {
	if c.refused != nil {
		return c.refused
	}
	var first error
	for _, p := range c.heard {
		var err error
		switch {
		case p.err != nil:
			err = lost(p.holder.Name, p.err)
		case p.response.Result.Err != nil:
			err = refused(p.holder.Name, p.response.Result.Err)
		default:
			continue
		}
		if outranks(err, first) {
			first = err
		}
	}
	return first
}

// gather checks that the answers are those to the step, takes the hashes and hands out the contexts.
func (c *Call) gather() error {
	s, layer := c.step, &c.holding.layers[c.step.Layer]
	after := s.Length + uint64(s.Append)
	for _, p := range c.heard {
		r := &p.response.Result
		switch {
		case r.Length != after || len(r.Hashes) != len(p.groups):
			return wrong(p.holder.Name, "it answers a step to %d positions of %d groups with %d and %d hashes", after, len(p.groups), r.Length, len(r.Hashes))
		case r.Chain != c.heard[0].response.Result.Chain:
			return wrong(p.holder.Name, "its chain is %016x then, that of holder %q %016x", r.Chain, c.heard[0].holder.Name, c.heard[0].response.Result.Chain)
		case len(p.answers) == 0 && p.response.Payload != nil:
			return wrong(p.holder.Name, "it answers with a context where nothing attends")
		case len(p.answers) > 0 && r.Codec != p.request.Step.Codec:
			return wrong(p.holder.Name, "its context is in codec %s, not %s", r.Codec, p.request.Step.Codec)
		}
	}
	if err := c.agree(); err != nil {
		return err
	}
	if s.Attend > 0 && c.heard[0].holder.parted(layer) {
		if err := c.join(layer); err != nil {
			return err
		}
	}
	for _, p := range c.heard {
		switch {
		case p.holder.parted(layer):
		case s.Input == nil:
			s.Answer, p.response.Payload = p.response.Payload, nil
		case len(p.answers) > 0:
			if err := c.take(p, layer); err != nil {
				return err
			}
		}
	}
	s.ComputeNanos, s.QueueNanos, s.Chain = 0, 0, c.heard[0].response.Result.Chain
	for _, p := range c.heard {
		r := &p.response.Result
		for j, g := range p.groups {
			s.Hashes[g] = r.Hashes[j]
		}
		s.ComputeNanos, s.QueueNanos = max(s.ComputeNanos, r.ComputeNanos), max(s.QueueNanos, r.QueueNanos)
	}
	return nil
}

// agree checks that all holders of a group report the same hash.
func (c *Call) agree() error {
	layer := &c.holding.layers[c.step.Layer]
	groups := layer.Shards()
	if cap(c.hashes) < groups {
		c.hashes, c.known = make([]uint64, groups), make([]bool, groups)
	}
	hashes, known := c.hashes[:groups], c.known[:groups]
	clear(known)
	for _, p := range c.heard {
		for j, g := range p.groups {
			h := p.response.Result.Hashes[j]
			if known[g] && h != hashes[g] {
				return wrong(p.holder.Name, "layer %d %s has hash %016x then, its copy at another holder %016x", c.step.Layer, layer.Name(g), h, hashes[g])
			}
			hashes[g], known[g] = h, true
		}
	}
	return nil
}

// take decodes one holder's context and hands it out.
func (c *Call) take(p *callPart, layer *shard.LayerSpec) error {
	s, asked := c.step, p.asked(layer)
	tokens, heads := len(asked)*int(s.Attend), layer.GroupSize()
	var context, lse []float32
	if s.Codec == headwaterv1.StepCodec_STEP_CODEC_RAW {
		if n := len(p.response.Payload.Bytes()); n != 4*tokens*heads*(layer.VDim()+1) {
			return wrong(p.holder.Name, "its context has %d bytes, not the %d of %d rows of %d elements with their LSE", n, 4*tokens*heads*(layer.VDim()+1), tokens*heads, layer.VDim())
		}
		all := p.response.Payload.Floats()
		context, lse = all[:tokens*heads*layer.VDim()], all[tokens*heads*layer.VDim():]
	} else {
		c.context, c.lse = resize(c.context, tokens*heads*layer.VDim()), resize(c.lse, tokens*heads)
		context, lse = c.context, c.lse
		if err := decode(p.response.Payload.Bytes(), s.Codec, tokens, heads, layer.VDim(), context, lse); err != nil {
			return wrong(p.holder.Name, "its context: %v", err)
		}
	}
	one := int(s.Attend) * heads
	for _, g := range asked {
		s.Output.Take(g, context[:one*layer.VDim()], lse[:one])
		context, lse = context[one*layer.VDim():], lse[one:]
	}
	return nil
}

// decode reads a frame of context [tokens, heads, v_dim] and LSE [tokens, heads], tokens being those of all groups.
func decode(payload []byte, codec headwaterv1.StepCodec, tokens, heads, vDim int, context, lse []float32) error {
	want, ok := layerproto.ReadStepCodec(codec)
	if !ok {
		return fmt.Errorf("codec %s is unknown", codec)
	}
	h, err := contextframe.Decode(payload, context, lse)
	if err != nil {
		return err
	}
	if h.Codec != want || h.Tokens != tokens || h.Heads != heads || h.VDim != vDim {
		return fmt.Errorf("a frame of %d tokens, %d heads, v_dim %d in codec %s, not of %d, %d, %d in %s", h.Tokens, h.Heads, h.VDim, h.Codec, tokens, heads, vDim, want)
	}
	return nil
}

func resize(s []float32, n int) []float32 {
	if cap(s) < n {
		return make([]float32, n)
	}
	return s[:n]
}
