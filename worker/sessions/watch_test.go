package sessions

import (
	"context"
	"encoding/binary"
	"math"
	"slices"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"headwater.example/internal/layerproto"
	"headwater.example/internal/session"
	"headwater.example/internal/testkit/await"
	headwaterv1 "headwater.example/proto/headwater/v1"
	"headwater.example/shard"
	"headwater.example/tensor"
	"headwater.example/worker/internal/machine"
)

// watcher is the other end of a WatchAttention.
type watcher struct {
	grpc.ServerStream
	ctx  context.Context
	sent chan *headwaterv1.WatchAttentionResponse
}

func (w *watcher) Context() context.Context { return w.ctx }

func (w *watcher) Send(m *headwaterv1.WatchAttentionResponse) error {
	select {
	case w.sent <- m:
		return nil
	case <-w.ctx.Done():
		return w.ctx.Err()
	}
}

// watch watches a group until the test ends or leave is called, which returns the call's error.
func (p *place) watch(t *testing.T, s *sequence, layer, group, positions uint32) (w *watcher, leave func() error) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	w = &watcher{ctx: ctx, sent: make(chan *headwaterv1.WatchAttentionResponse)}
	ended := make(chan error, 1)
	before := p.service.watches.n.Load()
	go func() {
		ended <- p.service.WatchAttention(&headwaterv1.WatchAttentionRequest{Session: s.id, Layer: layer, Group: group, Positions: positions}, w)
	}()
	leave = func() error { cancel(); err := await.One(t, ended, "the end of the watch"); ended <- err; return err }
	t.Cleanup(func() { _ = leave() })
	await.That(t, "the beginning of the watch, or its end", func() bool { return p.service.watches.n.Load() != before || len(ended) > 0 })
	return w, leave
}

// plainWeights are the weights of one query head over all positions of a group, by the formula.
func plainWeights(c *headwaterv1.SessionLayer, k []float64, q []float32, head int, position, length int, mask []byte) (weights []float64, sink float64) {
	dim := int(c.HeadDim)
	scores, top := make([]float64, length), math.Inf(-1)
	for i := range scores {
		away := position - i
		hidden := c.Causal && away < 0 || c.WindowLeft >= 0 && away > int(c.WindowLeft) || c.WindowRight >= 0 && -away > int(c.WindowRight)
		if at := i - (length - len(mask)); at >= 0 && len(mask) > 0 {
			hidden = hidden || mask[at] == 0
		}
		for j, x := range q {
			scores[i] += float64(x) * k[i*dim+j]
		}
		scores[i] *= float64(c.Scale)
		if c.Softcap > 0 {
			scores[i] = float64(c.Softcap) * math.Tanh(scores[i]/float64(c.Softcap))
		}
		if len(c.AlibiSlopes) > 0 {
			scores[i] -= float64(c.AlibiSlopes[head]) * math.Abs(float64(away))
		}
		if hidden {
			scores[i] = math.Inf(-1)
		}
		top = max(top, scores[i])
	}
	sum := 0.0
	for i := range scores {
		scores[i] = math.Exp(scores[i] - top)
		sum += scores[i]
	}
	if len(c.Sinks) > 0 {
		sink = math.Exp(float64(c.Sinks[head]) - top)
		sum += sink
	}
	for i := range scores {
		scores[i] /= sum
	}
	return scores, sink / sum
}

// worth are a group's keys as numbers.
func (s *sequence) worth(t *testing.T, l, g int) (keys []float64) {
	t.Helper()
	layout, rows := s.layout(t, l), s.rows[l][g]
	narrow := make([]float32, len(rows.K)/layout.DType().Size())
	if err := tensor.Widen(narrow, rows.K, layout.DType()); err != nil {
		t.Fatal(err)
	}
	for i, x := range narrow {
		scale := 1.0
		if rows.KScale != nil {
			scale = float64(rows.KScale[i/layout.HeadDim()])
		}
		keys = append(keys, scale*float64(x))
	}
	return keys
}

// TestWatchedWeightsAreThoseOfTheQuery compares what a watcher is sent with the formula, for each option and storage type, with
// fewer positions than the query sees.
func TestWatchedWeightsAreThoseOfTheQuery(t *testing.T) {
	base := func(change func(*headwaterv1.SessionLayer)) *headwaterv1.SessionLayer {
		c := &headwaterv1.SessionLayer{NHeads: 6, NKvHeads: 2, HeadDim: 16, VDim: 8, Storage: headwaterv1.StorageType_STORAGE_TYPE_F32, Causal: true, WindowLeft: -1, WindowRight: -1, Scale: 0.4}
		change(c)
		return c
	}
	for name, c := range map[string]*headwaterv1.SessionLayer{
		"plain":   base(func(*headwaterv1.SessionLayer) {}),
		"f16":     base(func(c *headwaterv1.SessionLayer) { c.Storage = headwaterv1.StorageType_STORAGE_TYPE_F16 }),
		"int8":    base(func(c *headwaterv1.SessionLayer) { c.Storage = headwaterv1.StorageType_STORAGE_TYPE_I8 }),
		"window":  base(func(c *headwaterv1.SessionLayer) { c.WindowLeft = 40 }),
		"softcap": base(func(c *headwaterv1.SessionLayer) { c.Softcap = 2 }),
		"alibi":   base(func(c *headwaterv1.SessionLayer) { c.AlibiSlopes = []float32{.5, .25, .125, .0625, .03, .015} }),
		"sinks":   base(func(c *headwaterv1.SessionLayer) { c.Sinks = []float32{2, 1, 0, -1, 3, 1} }),
	} {
		for _, most := range []uint32{0, 50} {
			t.Run(name, func(t *testing.T) {
				p := serveSessions(t, machine.Config{})
				s, d := newSequence(7, c), p.lane(t, 1)
				s.create(t, p, d)
				const group = 1
				w, leave := p.watch(t, s, 0, group, most)
				for _, codec := range []headwaterv1.StepCodec{headwaterv1.StepCodec_STEP_CODEC_RAW, headwaterv1.StepCodec_STEP_CODEC_EXACT} {
					m := s.draw(t, 0, 700, 3, false)
					m.step.Codec, m.step.Tokens = codec, make([]uint32, 700)
					for i := range m.step.Tokens {
						m.step.Tokens[i] = uint32(s.lengths[0] + i)
					}
					d.ask(t, m.step, m.payload)
					s.apply(m)
					s.compare(t, c, m, await.One(t, w.sent, "a look"), group, nil)
				}
				if err := leave(); status.Code(err) != codes.Canceled {
					t.Errorf("the watch ended with %v", err)
				}
				d.end(t)
			})
		}
	}
}

// compare holds what a watcher was sent of a step's last query against the formula.
func (s *sequence) compare(t *testing.T, c *headwaterv1.SessionLayer, m *move, got *headwaterv1.WatchAttentionResponse, group int, mask []byte) {
	t.Helper()
	position, size, dim := s.lengths[0]-1, int(c.NHeads/c.NKvHeads), int(c.HeadDim)
	if got.GetPosition() != uint64(position) || got.GetFirstHead() != uint32(group*size) || got.GetCount() == 0 || int(got.GetStart()+uint64(got.GetCount())) != s.lengths[0] {
		t.Fatalf("position %d, heads from %d, %d positions from %d on, of a query at %d", got.GetPosition(), got.GetFirstHead(), got.GetCount(), got.GetStart(), position)
	}
	for i, token := range got.GetTokens() {
		if uint64(token) != got.GetStart()+uint64(i) {
			t.Fatalf("token %d is %d", got.GetStart()+uint64(i), token)
		}
	}
	last := m.q[group][len(m.q[group])-size*dim:]
	for h := range size {
		want, sink := plainWeights(c, s.worth(t, 0, group), last[h*dim:][:dim], group*size+h, position, s.lengths[0], mask)
		before := 0.0
		for i, w := range want {
			if i < int(got.GetStart()) {
				before += w
				continue
			}
			at := h*int(got.GetCount()) + i - int(got.GetStart())
			if x := math.Float32frombits(binary.LittleEndian.Uint32(got.GetWeights()[4*at:])); math.Abs(float64(x)-w) > 1e-5 {
				t.Fatalf("head %d gives position %d %v, want %v", h, i, x, w)
			}
		}
		if math.Abs(float64(got.GetBefore()[h])-before) > 1e-5 || len(c.Sinks) > 0 && math.Abs(float64(got.GetSink()[h])-sink) > 1e-5 {
			t.Errorf("head %d gives %v before and %v its sink, want %v and %v", h, got.GetBefore()[h], got.GetSink(), before, sink)
		}
	}
}

func TestWatchedWeightsHeedATreesMask(t *testing.T) {
	c := &headwaterv1.SessionLayer{NHeads: 2, NKvHeads: 1, HeadDim: 8, VDim: 8, Storage: headwaterv1.StorageType_STORAGE_TYPE_F32, Causal: true, WindowLeft: -1, WindowRight: -1, Scale: 0.4}
	p := serveSessions(t, machine.Config{})
	s, d := newSequence(9, c), p.lane(t, 1)
	s.create(t, p, d)
	w, _ := p.watch(t, s, 0, 0, 0)
	m := s.draw(t, 0, 100, 2, false)
	m.step.Tree, m.step.TreeMask = 10, []byte{0xff, 3, 0b10110101, 2} // rows of 10 bits
	d.ask(t, m.step, m.payload)
	s.apply(m)
	s.compare(t, c, m, await.One(t, w.sent, "a look"), 0, []byte{1, 0, 1, 0, 1, 1, 0, 1, 0, 1})
	d.end(t)
}

// TestAWatchEndsWithItsSession also refuses what is not held.
func TestAWatchEndsWithItsSession(t *testing.T) {
	c := &headwaterv1.SessionLayer{NHeads: 2, NKvHeads: 1, HeadDim: 8, VDim: 8, Storage: headwaterv1.StorageType_STORAGE_TYPE_F32, Causal: true, WindowLeft: -1, WindowRight: -1, Scale: 0.4}
	p := serveSessions(t, machine.Config{})
	s, d := newSequence(11, c), p.lane(t, 1)
	s.create(t, p, d)
	for _, m := range []*headwaterv1.WatchAttentionRequest{{Session: s.id, Group: 1}, {Session: s.id, Layer: 1}, {Session: s.id[1:]}, {Session: slices.Repeat([]byte{1}, 16)}} {
		if err := p.service.WatchAttention(m, &watcher{ctx: t.Context()}); err == nil {
			t.Errorf("%v is watched", m)
		}
	}
	_, leave := p.watch(t, s, 0, 0, 0)
	if _, err := p.sessions.DropSession(t.Context(), &headwaterv1.DropSessionRequest{Session: s.id}); err != nil {
		t.Fatal(err)
	}
	// A watcher that waits is told at the next look; one that leaves first learns nothing of it.
	if err := leave(); status.Code(err) != codes.Canceled {
		t.Errorf("the watch ended with %v", err)
	}
	one := &watch{session: [16]byte(s.id)}
	if err := p.service.sendWeights(&watcher{ctx: t.Context()}, one, layerOf(t, c), &query{q: make([]float32, 16), lse: make([]float32, 2), length: 1}, 10); err == nil {
		t.Error("weights of a session that was dropped are sent")
	} else if e, ok := session.FromError(err); !ok || e.Reason() != session.Unknown {
		t.Errorf("they are refused with %v", err)
	}
	d.end(t)
}

// TestNoWeightsOfOtherKeys asks for weights of a query after its positions were taken back and others came in their place.
func TestNoWeightsOfOtherKeys(t *testing.T) {
	c := &headwaterv1.SessionLayer{NHeads: 2, NKvHeads: 1, HeadDim: 8, VDim: 8, Storage: headwaterv1.StorageType_STORAGE_TYPE_F32, Causal: true, WindowLeft: -1, WindowRight: -1, Scale: 0.4}
	p := serveSessions(t, machine.Config{})
	s, d := newSequence(13, c), p.lane(t, 1)
	s.create(t, p, d)
	m := s.draw(t, 0, 1500, 1, false)
	d.ask(t, m.step, m.payload)
	s.apply(m)
	for name, hash := range map[string]uint64{"its": s.hashes(t, 0, 1500)[0], "others": s.hashes(t, 0, 1500)[0] + 1} {
		w := &watcher{ctx: t.Context(), sent: make(chan *headwaterv1.WatchAttentionResponse, 1)}
		q := &query{position: 1499, q: m.q[0], lse: make([]float32, 2), length: 1500, hash: hash}
		if err := p.service.sendWeights(w, &watch{session: [16]byte(s.id)}, layerOf(t, c), q, 1000); err != nil || (len(w.sent) == 1) != (name == "its") {
			t.Errorf("%s keys: %d weights, %v", name, len(w.sent), err)
		}
	}
	d.end(t)
}

// BenchmarkAStepThatNobodyWatches measures what a step pays for watches where there are none.
func BenchmarkAStepThatNobodyWatches(b *testing.B) {
	var w watches
	for b.Loop() {
		w.leave(nil, nil)
	}
}

func layerOf(t *testing.T, c *headwaterv1.SessionLayer) *shard.LayerSpec {
	t.Helper()
	layers, err := layerproto.ReadSessionLayers([]*headwaterv1.SessionLayer{c})
	if err != nil {
		t.Fatal(err)
	}
	return &layers[0]
}
