package sessions

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"testing"
	"time"

	"github.com/google/uuid"
	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/test/bufconn"
	"google.golang.org/protobuf/proto"
	"pgregory.net/rapid"

	"headwater.example/attention"
	"headwater.example/internal/contextframe"
	"headwater.example/internal/kvcache"
	"headwater.example/internal/layerproto"
	"headwater.example/internal/membership"
	"headwater.example/internal/rpc"
	"headwater.example/internal/session"
	"headwater.example/internal/testkit/await"
	headwaterv1 "headwater.example/proto/headwater/v1"
	"headwater.example/worker/internal/machine"
	"headwater.example/worker/internal/workertest"
)

// The client of these tests is the generated one, so that the lane's frames have another reader and writer than lane.

// place is a worker on a connection.
type place struct {
	m        *machine.Machine
	service  *Service
	server   *grpc.Server
	conn     *grpc.ClientConn
	sessions headwaterv1.SessionServiceClient
}

// serveSessions puts a worker on a connection. When the test ends nothing of the worker may be left.
func serveSessions(t testing.TB, cfg machine.Config, opts ...grpc.ServerOption) *place {
	t.Helper()
	cfg.Name = "w1"
	return serveAmong(t, cfg, nil, opts...)
}

// serveAmong is serveSessions of a worker that knows these members.
func serveAmong(t testing.TB, cfg machine.Config, members func() []membership.Member, opts ...grpc.ServerOption) *place {
	t.Helper()
	cfg.Threads = max(cfg.Threads, 2)
	if cfg.Budget == 0 {
		cfg.Budget = 1 << 30
	}
	m := machine.New(cfg)
	peers := rpc.NewConns(nil, rpc.DialOptions()...)
	service := New(m, uuid.UUID{15: 1}, members, peers)
	listener := bufconn.Listen(1 << 16)
	// A caller may have its answer before the handler has returned.
	server := grpc.NewServer(append(m.Flight.ServerOptions(), append(opts, grpc.WaitForHandlers(true))...)...)
	session.Register(rpc.Registrar(server), service)
	headwaterv1.RegisterFillServiceServer(rpc.Registrar(server), Fills{Service: service})
	done := make(chan struct{})
	go func() { defer close(done); _ = server.Serve(listener) }()
	dialer := grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return listener.DialContext(ctx) })
	conn, err := grpc.NewClient("passthrough:///memory", append(rpc.DialOptions(), dialer)...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		conn.Close()
		server.Stop()
		<-done
		// The test's context has ended.
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		if err := errors.Join(m.Drain(ctx), peers.Close()); err != nil {
			t.Error(err)
		}
		m.Close()
		left := m.Flight.State()
		left.Peak = 0
		if left != (rpc.FlightState{}) {
			t.Errorf("in flight in the end: %+v", left)
		}
		if used := m.Budget.Used(); used != 0 {
			t.Errorf("%d bytes are in use in the end", used)
		}
		if steps, tokens, lanes := service.queuedSteps.Load(), service.queuedTokens.Load(), service.standings.count(); steps != 0 || tokens != 0 || lanes != 0 {
			t.Errorf("%d steps and %d tokens are queued on %d lanes in the end", steps, tokens, lanes)
		}
	})
	return &place{m: m, service: service, server: server, conn: conn, sessions: headwaterv1.NewSessionServiceClient(conn)}
}

// driver is a lane of the generated client.
type driver struct {
	id     session.LaneID
	stream grpc.BidiStreamingClient[headwaterv1.LaneRequest, headwaterv1.LaneResponse]
	cancel context.CancelFunc
	steps  uint64
}

func (p *place) lane(t workertest.Fataler, id byte) *driver {
	t.Helper()
	d := &driver{id: session.LaneID{id}}
	ctx, cancel := context.WithCancel(context.Background())
	d.cancel = cancel
	var err error
	if d.stream, err = p.sessions.Lane(metadata.AppendToOutgoingContext(ctx, session.MetadataKey, d.id.String())); err != nil {
		t.Fatal(err)
	}
	return d
}

func (d *driver) send(t workertest.Fataler, step *headwaterv1.Step, payload []byte) uint64 {
	t.Helper()
	d.steps++
	if err := d.stream.Send(&headwaterv1.LaneRequest{Id: d.steps, Step: step, Payload: payload}); err != nil {
		t.Fatal(err)
	}
	return d.steps
}

// ask sends a step and returns its answer.
func (d *driver) ask(t workertest.Fataler, step *headwaterv1.Step, payload []byte) *headwaterv1.LaneResponse {
	t.Helper()
	id := d.send(t, step, payload)
	r, err := d.stream.Recv()
	if err != nil {
		t.Fatal(err)
	}
	if r.GetId() != id {
		t.Fatalf("step %d was answered for step %d", r.GetId(), id)
	}
	return r
}

// end closes a lane, of which nothing is left to be received.
func (d *driver) end(t workertest.Fataler) {
	t.Helper()
	if err := d.stream.CloseSend(); err != nil {
		t.Fatal(err)
	}
	if _, err := d.stream.Recv(); !errors.Is(err, io.EOF) {
		t.Fatalf("a lane ended with %v", err)
	}
	d.cancel()
}

// sequence is a session as its client knows it: all that was appended, by plain slices.
type sequence struct {
	id          []byte
	epoch       uint64
	truncations uint64
	config      *headwaterv1.SessionConfig
	held        []*headwaterv1.HeldLayer
	rng         *rand.Rand
	rows        [][]attention.Rows // of each held layer and group
	lengths     []int              // of each held layer
	chains      []uint64           // of each held layer
}

func newSequence(seed uint64, layers ...*headwaterv1.SessionLayer) *sequence {
	s := &sequence{epoch: 1, config: &headwaterv1.SessionConfig{Layers: layers, Name: "test"}, rng: rand.New(rand.NewPCG(seed, 1))}
	s.id = binary.LittleEndian.AppendUint64(make([]byte, 8), seed)
	for i, l := range layers {
		h := &headwaterv1.HeldLayer{Layer: uint32(i)}
		for g := range l.GetNKvHeads() {
			h.Groups = append(h.Groups, g)
		}
		s.held = append(s.held, h)
		s.rows, s.lengths, s.chains = append(s.rows, make([]attention.Rows, len(h.Groups))), append(s.lengths, 0), append(s.chains, 0)
	}
	return s
}

func (s *sequence) create(t workertest.Fataler, p *place, d *driver) *headwaterv1.SessionState {
	t.Helper()
	resp, err := p.sessions.CreateSession(context.Background(), &headwaterv1.CreateSessionRequest{
		Session: s.id, Epoch: &headwaterv1.Epoch{Counter: s.epoch, Lane: d.id[:]}, Config: s.config, Held: s.held,
	})
	if err != nil {
		t.Fatal(err)
	}
	return resp.GetState()
}

func (s *sequence) layout(t workertest.Fataler, l int) attention.Layout {
	t.Helper()
	c := s.config.Layers[s.held[l].Layer]
	layout, err := attention.NewLayout(workertest.StorageOf(c.Storage), int(c.HeadDim), int(c.VDim))
	if err != nil {
		t.Fatal(err)
	}
	return layout
}

// hashes are those of a held layer at n positions.
func (s *sequence) hashes(t workertest.Fataler, l, n int) []uint64 {
	t.Helper()
	layout := s.layout(t, l)
	var out []uint64
	for _, rows := range s.rows[l] {
		var h kvcache.Hasher
		if n > 0 {
			if err := h.Update(workertest.Cut(rows, layout, 0, n), n, layout); err != nil {
				t.Fatal(err)
			}
		}
		out = append(out, h.Receipt().Hash)
	}
	return out
}

// move is a step with its payload and, of what it appends and asks, what it should give.
type move struct {
	step    *headwaterv1.Step
	payload []byte
	rows    []attention.Rows // appended, of each group
	q       [][]float32      // of each group
}

// draw makes a step of random tensors.
func (s *sequence) draw(t workertest.Fataler, l, appended, attend int, native bool) *move {
	t.Helper()
	c, layout := s.config.Layers[s.held[l].Layer], s.layout(t, l)
	size := int(c.NHeads / c.NKvHeads)
	m := &move{step: &headwaterv1.Step{
		Session: s.id, Epoch: s.epoch, Truncations: s.truncations, Layer: s.held[l].Layer, Length: uint64(s.lengths[l]), Hashes: s.hashes(t, l, s.lengths[l]),
		Append: uint32(appended), Attend: uint32(attend), QueryPosition: uint64(max(s.lengths[l]+appended-attend, 0)),
		Encoding: headwaterv1.StorageType_STORAGE_TYPE_F32, Codec: headwaterv1.StepCodec_STEP_CODEC_RAW, Chain: s.chains[l],
	}}
	if appended > 0 {
		m.step.AppendId = s.rng.Uint64() | 1
	}
	var k, v, kScale, vScale []byte
	for range s.held[l].Groups {
		q := workertest.Normals(s.rng, attend*size*int(c.HeadDim))
		m.q, m.payload = append(m.q, q), append(m.payload, workertest.LittleEndian(q)...)
		if appended == 0 {
			m.rows = append(m.rows, attention.Rows{})
			continue
		}
		var rows attention.Rows
		kf, vf := workertest.Normals(s.rng, appended*int(c.HeadDim)), workertest.Normals(s.rng, appended*int(c.VDim))
		rows.K, rows.KScale = workertest.Store(t, kf, appended, layout.DType())
		rows.V, rows.VScale = workertest.Store(t, vf, appended, layout.DType())
		m.rows = append(m.rows, rows)
		if native {
			k, v = append(k, rows.K...), append(v, rows.V...)
			kScale, vScale = append(kScale, workertest.LittleEndian(rows.KScale)...), append(vScale, workertest.LittleEndian(rows.VScale)...)
		} else {
			k, v = append(k, workertest.LittleEndian(kf)...), append(v, workertest.LittleEndian(vf)...)
		}
	}
	if native {
		m.step.Encoding = c.Storage
	}
	m.payload = append(append(append(append(m.payload, k...), v...), kScale...), vScale...)
	return m
}

// apply notes that a step was done.
func (s *sequence) apply(m *move) {
	l := s.index(m.step.Layer)
	for g, rows := range m.rows {
		own := &s.rows[l][g]
		own.K, own.V = append(own.K, rows.K...), append(own.V, rows.V...)
		own.KScale, own.VScale = append(own.KScale, rows.KScale...), append(own.VScale, rows.VScale...)
	}
	if m.step.Append > 0 {
		s.chains[l] = kvcache.NextChain(s.chains[l], m.step.AppendId, uint64(s.lengths[l]))
	}
	s.lengths[l] += int(m.step.Append)
}

// known is what there is of each held layer.
func (s *sequence) known(t workertest.Fataler) (all []*headwaterv1.LayerState) {
	for l, h := range s.held {
		all = append(all, &headwaterv1.LayerState{Layer: h.Layer, Length: uint64(s.lengths[l]), Hashes: s.hashes(t, l, s.lengths[l]), Chain: s.chains[l]})
	}
	return all
}

func (s *sequence) index(layer uint32) int {
	for l, h := range s.held {
		if h.Layer == layer {
			return l
		}
	}
	return -1
}

// truncate cuts every layer to n positions.
func (s *sequence) truncate(t workertest.Fataler, n int) {
	for l := range s.lengths {
		s.lengths[l] = min(s.lengths[l], n)
		layout := s.layout(t, l)
		for g, rows := range s.rows[l] {
			cut := workertest.Cut(rows, layout, 0, s.lengths[l])
			for _, b := range []*[]byte{&cut.K, &cut.V} {
				*b = bytes.Clone(*b)
			}
			cut.KScale, cut.VScale = append([]float32(nil), cut.KScale...), append([]float32(nil), cut.VScale...)
			s.rows[l][g] = cut
		}
	}
}

// fork is another sequence that begins as this one.
func (s *sequence) fork(t workertest.Fataler, seed uint64, n int) *sequence {
	child := newSequence(seed, s.config.Layers...)
	child.config, child.held = s.config, s.held
	for l := range s.rows {
		copy(child.rows[l], s.rows[l])
		child.lengths[l], child.chains[l] = s.lengths[l], s.chains[l]
	}
	child.truncate(t, n)
	return child
}

// check compares an answer with a fresh attention over all that was appended, bit by bit; the step has been applied.
func (s *sequence) check(t workertest.Fataler, m *move, r *headwaterv1.LaneResponse) {
	t.Helper()
	if e := r.GetResult().GetError(); e != nil {
		t.Fatalf("refused: %v", e)
	}
	l := s.index(m.step.Layer)
	c, layout := s.config.Layers[m.step.Layer], s.layout(t, l)
	if want := s.hashes(t, l, s.lengths[l]); r.GetResult().GetLength() != uint64(s.lengths[l]) || fmt.Sprint(r.GetResult().GetHashes()) != fmt.Sprint(want) {
		t.Fatalf("the layer has %d positions with hashes %x, want %d with %x", r.GetResult().GetLength(), r.GetResult().GetHashes(), s.lengths[l], want)
	}
	if m.step.Attend == 0 {
		if len(r.GetPayload()) != 0 {
			t.Fatal("an append was answered with a context")
		}
		return
	}
	size, attend, n := int(c.NHeads/c.NKvHeads), int(m.step.Attend), s.lengths[l]
	opts := attention.Options{Causal: c.Causal, WindowLeft: c.WindowLeft, WindowRight: c.WindowRight, Scale: c.Scale, Softcap: c.Softcap, AlibiSlopes: c.AlibiSlopes, Sinks: c.Sinks}
	if opts.Scale == 0 {
		opts.Scale = attention.DefaultScale(int(c.HeadDim))
	}
	var context_, lse []float32
	for i, g := range s.held[l].Groups {
		var pages [][]byte
		for from := 0; from < n; from += attention.PageLen {
			to := min(from+attention.PageLen, n)
			page := make([]byte, layout.PageBytes())
			if err := layout.Write(page, 0, to-from, workertest.Cut(s.rows[l][i], layout, from, to)); err != nil {
				t.Fatal(err)
			}
			pages = append(pages, page)
		}
		q := attention.Query{Q: m.q[i], Tokens: attend, Heads: size, FirstHead: int(g) * size, Offset: int64(m.step.QueryPosition)}
		if tree := int(m.step.Tree); tree > 0 {
			q.MaskHeads = 1
			for token := range attend {
				for at := range n {
					shown := byte(1)
					if bit := at - (n - tree); bit >= 0 {
						shown = m.step.TreeMask[token*((tree+7)/8)+bit/8] >> (bit % 8) & 1
					}
					q.Mask = append(q.Mask, shown)
				}
			}
		}
		out := attention.Output{Context: make([]float32, attend*size*int(c.VDim)), LSE: make([]float32, attend*size)}
		if err := attention.Attend(context.Background(), 1, attention.KV{Layout: layout, Pages: pages, Len: n}, q, opts, out); err != nil {
			t.Fatal(err)
		}
		context_, lse = append(context_, out.Context...), append(lse, out.LSE...)
	}
	want := append(workertest.LittleEndian(context_), workertest.LittleEndian(lse)...)
	if m.step.Codec != headwaterv1.StepCodec_STEP_CODEC_RAW {
		codec, _ := layerproto.ReadStepCodec(m.step.Codec)
		var err error
		if want, err = contextframe.Encode(nil, codec, 0, len(s.held[l].Groups)*attend, size, int(c.VDim), context_, lse); err != nil {
			t.Fatal(err)
		}
	}
	if r.GetResult().GetCodec() != m.step.Codec || !bytes.Equal(r.GetPayload(), want) {
		t.Fatalf("codec %s: %d bytes of another answer than a job's %d", r.GetResult().GetCodec(), len(r.GetPayload()), len(want))
	}
}

func simpleLayer(storage headwaterv1.StorageType) *headwaterv1.SessionLayer {
	return &headwaterv1.SessionLayer{NHeads: 4, NKvHeads: 2, HeadDim: 8, VDim: 6, Storage: storage, Causal: true, WindowLeft: -1, WindowRight: -1}
}

func drawLayer(t *rapid.T) *headwaterv1.SessionLayer {
	l := simpleLayer(headwaterv1.StorageType(rapid.IntRange(1, 4).Draw(t, "storage")))
	l.NKvHeads = uint32(rapid.IntRange(1, 3).Draw(t, "groups"))
	l.NHeads = l.NKvHeads * uint32(rapid.IntRange(1, 3).Draw(t, "group size"))
	l.HeadDim, l.VDim = uint32(rapid.IntRange(1, 20).Draw(t, "head_dim")), uint32(rapid.IntRange(1, 20).Draw(t, "v_dim"))
	l.Causal = rapid.Bool().Draw(t, "causal")
	switch rapid.IntRange(0, 4).Draw(t, "option") {
	case 0:
		l.Softcap = 5
	case 1:
		for range l.NHeads {
			l.AlibiSlopes, l.Sinks = append(l.AlibiSlopes, 0.25), append(l.Sinks, 0.5)
		}
	case 2:
		l.Scale = -0.3
	}
	return l
}

// TestSessionsGiveTheJobsBits steps, repeats, truncates and forks at random. Every answer is that of a job over the same tokens.
func TestSessionsGiveTheJobsBits(t *testing.T) {
	p := serveSessions(t, machine.Config{})
	seeds := uint64(0)
	rapid.Check(t, func(t *rapid.T) {
		d := p.lane(t, 1)
		defer d.cancel()
		seeds++
		s := newSequence(seeds, drawLayer(t), drawLayer(t))
		s.create(t, p, d)
		all := []*sequence{s}
		var last *move
		for range rapid.IntRange(1, 25).Draw(t, "moves") {
			switch rapid.IntRange(0, 9).Draw(t, "what") {
			case 0:
				if last != nil && bytes.Equal(last.step.Session, s.id) && last.step.Truncations == s.truncations {
					s.check(t, last, d.ask(t, last.step, last.payload))
				}
			case 1:
				n := rapid.IntRange(0, max(s.lengths[0], s.lengths[1])).Draw(t, "cut")
				resp, err := p.sessions.TruncateSession(context.Background(), &headwaterv1.TruncateSessionRequest{
					Session: s.id, Epoch: &headwaterv1.Epoch{Counter: s.epoch, Lane: d.id[:]}, Truncations: s.truncations, Position: uint64(n),
					Expect: s.known(t), Id: s.truncations + 1,
				})
				if err != nil {
					t.Fatal(err)
				}
				s.truncate(t, n)
				s.truncations++
				for l := range s.chains {
					s.chains[l] = s.truncations
				}
				s.same(t, resp.GetState())
			case 2:
				n := rapid.IntRange(0, min(s.lengths[0], s.lengths[1])).Draw(t, "fork at")
				seeds++
				child := s.fork(t, seeds, n)
				clear(child.chains)
				resp, err := p.sessions.ForkSession(context.Background(), &headwaterv1.ForkSessionRequest{
					Session: s.id, Epoch: &headwaterv1.Epoch{Counter: s.epoch, Lane: d.id[:]}, Truncations: s.truncations,
					Child: child.id, ChildEpoch: &headwaterv1.Epoch{Counter: 1, Lane: d.id[:]}, Position: proto.Uint64(uint64(n)),
					Expect: s.known(t),
				})
				if err != nil {
					t.Fatal(err)
				}
				child.same(t, resp.GetState())
				all = append(all, child)
			case 3:
				s = rapid.SampledFrom(all).Draw(t, "session")
			default:
				l := rapid.IntRange(0, 1).Draw(t, "layer")
				appended, attend := rapid.SampledFrom([]int{0, 1, 1, 2, 63, 100}).Draw(t, "append"), rapid.SampledFrom([]int{0, 1, 1, 3, 70}).Draw(t, "attend")
				if appended+attend == 0 {
					attend = 1
				}
				last = s.draw(t, l, appended, attend, rapid.Bool().Draw(t, "native"))
				last.step.Codec = headwaterv1.StepCodec(rapid.IntRange(1, 5).Draw(t, "codec"))
				if tree := rapid.IntRange(0, min(s.lengths[l]+appended, 20)).Draw(t, "tree"); attend > 0 && tree > 0 {
					last.step.Tree = uint32(tree)
					for range attend * ((tree + 7) / 8) {
						last.step.TreeMask = append(last.step.TreeMask, byte(s.rng.Uint32()))
					}
				}
				r := d.ask(t, last.step, last.payload)
				s.apply(last)
				s.check(t, last, r)
			}
		}
		for _, s := range all {
			if _, err := p.sessions.DropSession(context.Background(), &headwaterv1.DropSessionRequest{Session: s.id}); err != nil {
				t.Fatal(err)
			}
		}
		d.end(t)
		if c := p.m.Store.Cache(); c.UsedBytes != 0 || c.Sessions != 0 {
			t.Fatalf("%d bytes of %d sessions are left", c.UsedBytes, c.Sessions)
		}
	})
}

// same fails unless a state is that of the sequence.
func (s *sequence) same(t workertest.Fataler, state *headwaterv1.SessionState) {
	t.Helper()
	if !bytes.Equal(state.GetSession(), s.id) || state.GetTruncations() != s.truncations || len(state.GetLayers()) != len(s.held) {
		t.Fatalf("got %v", state)
	}
	for l, have := range state.GetLayers() {
		if have.GetLength() != uint64(s.lengths[l]) || have.GetChain() != s.chains[l] || fmt.Sprint(have.GetHashes()) != fmt.Sprint(s.hashes(t, l, s.lengths[l])) {
			t.Fatalf("layer %d has %d positions with hashes %x", l, have.GetLength(), have.GetHashes())
		}
	}
}

// TestManySessionsOnALane keeps steps of many sessions in flight. Those of one session are done in order.
func TestManySessionsOnALane(t *testing.T) {
	p := serveSessions(t, machine.Config{})
	d := p.lane(t, 3)
	const sessions, steps = 40, 12
	all := make([]*sequence, sessions)
	asked := map[uint64]*move{}
	of := map[uint64]*sequence{}
	for i := range all {
		all[i] = newSequence(uint64(i+1), simpleLayer(headwaterv1.StorageType_STORAGE_TYPE_BF16))
		all[i].create(t, p, d)
	}
	type answer struct {
		r   *headwaterv1.LaneResponse
		err error
	}
	answers := make(chan answer, sessions*steps)
	go func() {
		for range sessions * steps {
			r, err := d.stream.Recv()
			answers <- answer{r, err}
			if err != nil {
				return
			}
		}
	}()
	// The model is told at once, so that the next step builds on it.
	lengths := map[uint64]int{}
	for n := range steps {
		for _, s := range all {
			m := s.draw(t, 0, 1+n%3, 1, n%2 == 0)
			id := d.send(t, m.step, m.payload)
			s.apply(m)
			asked[id], of[id], lengths[id] = m, s, s.lengths[0]
		}
	}
	next := map[*sequence]uint64{}
	for range sessions * steps {
		a := await.One(t, answers, "an answer")
		if a.err != nil {
			t.Fatal(a.err)
		}
		id := a.r.GetId()
		s := of[id]
		if id <= next[s] {
			t.Fatalf("step %d of a session was answered after step %d", id, next[s])
		}
		next[s] = id
		was := s.fork(t, 1<<20+id, lengths[id])
		was.check(t, asked[id], a.r)
	}
	d.end(t)
}
