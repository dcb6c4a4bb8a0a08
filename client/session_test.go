package client_test

import (
	"context"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"net"
	"slices"
	"testing"

	"github.com/google/uuid"
	"google.golang.org/grpc"

	"headwater.example/attention"
	"headwater.example/client"
	"headwater.example/coordinator"
	"headwater.example/internal/membership"
	"headwater.example/internal/rpc"
	"headwater.example/internal/session"
	"headwater.example/internal/testkit/plainholder"
	"headwater.example/tensor"
)

// cluster is a coordinator and holders in this process, with a client.
type cluster struct {
	*client.Client
	holders   []*plainholder.Holder
	servers   []*grpc.Server
	addresses []string // of the holders
	address   string
}

// serve serves on loopback until the test ends.
func serve(t testing.TB, register func(grpc.ServiceRegistrar), opts ...grpc.ServerOption) (*grpc.Server, string) {
	t.Helper()
	s := grpc.NewServer(append(rpc.ServerOptions(), opts...)...)
	register(s)
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() { defer close(done); _ = s.Serve(listener) }() // ends with Stop
	t.Cleanup(func() { s.Stop(); <-done })
	return s, listener.Addr().String()
}

// start starts a cluster of n holders.
func start(t testing.TB, n int) *cluster {
	t.Helper()
	c := &cluster{}
	var members []membership.Member
	for i := range n {
		h := &plainholder.Holder{Name: fmt.Sprintf("w%d", i+1), Boot: uuid.New()}
		s, address := serve(t, h.Register)
		c.holders, c.servers, c.addresses = append(c.holders, h), append(c.servers, s), append(c.addresses, address)
		members = append(members, membership.Member{Name: h.Name, Role: membership.RoleWorker, Address: address, Weight: 1})
	}
	c.address = startCoordinator(t, members)
	c.Client = dial(t, c.address)
	return c
}

func startCoordinator(t testing.TB, members []membership.Member) string {
	t.Helper()
	return startCoordinatorOf(t, membership.Static(members))
}

// startCoordinatorOf starts a coordinator of the workers of a view.
func startCoordinatorOf(t testing.TB, view membership.View) string {
	t.Helper()
	co, err := coordinator.Open(coordinator.Config{Name: "coord", DataDir: t.TempDir(), View: view})
	if err != nil {
		t.Fatal(err)
	}
	ctx, end := context.WithCancel(context.Background())
	ran := make(chan error, 1)
	go func() { ran <- co.Run(ctx) }()
	t.Cleanup(func() {
		end()
		if err := errors.Join(<-ran, co.Close()); err != nil {
			t.Error(err)
		}
	})
	_, address := serve(t, co.Register)
	return address
}

func dial(t testing.TB, address string) *client.Client {
	t.Helper()
	c, err := client.Dial(address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	})
	return c
}

// layers are of different shapes, storage and options.
var layers = []client.Layer{
	{Heads: 6, KVHeads: 3, HeadDim: 8, Storage: tensor.F32},
	{Heads: 4, KVHeads: 2, HeadDim: 16, VDim: 8, Storage: tensor.BF16, Softcap: 20},
	{Heads: 5, KVHeads: 5, HeadDim: 4, Storage: tensor.I8, Sinks: []float32{0, 1, -1, 2, 0.5}},
}

// tokens are what a model makes of some tokens for one layer.
type tokens struct {
	n       int
	q, k, v []float32
}

func project(r *rand.Rand, l client.Layer, n int) tokens {
	vDim := l.VDim
	if vDim == 0 {
		vDim = l.HeadDim
	}
	fill := func(n int) []float32 {
		f := make([]float32, n)
		for i := range f {
			f[i] = float32(r.NormFloat64())
		}
		return f
	}
	return tokens{n, fill(n * l.Heads * l.HeadDim), fill(n * l.KVHeads * l.HeadDim), fill(n * l.KVHeads * vDim)}
}

// model is what a session must be: for each layer the keys and values of all tokens.
type model struct {
	layers []client.Layer
	k, v   [][]float32 // by layer [tokens, n_kv_heads, dim]
}

func newModel(layers []client.Layer) *model {
	return &model{layers, make([][]float32, len(layers)), make([][]float32, len(layers))}
}

func (m *model) clone() *model {
	c := newModel(m.layers)
	for i := range m.k {
		c.k[i], c.v[i] = slices.Clone(m.k[i]), slices.Clone(m.v[i])
	}
	return c
}

func (m *model) vDim(layer int) int {
	if d := m.layers[layer].VDim; d != 0 {
		return d
	}
	return m.layers[layer].HeadDim
}

func (m *model) len(layer int) int {
	return len(m.k[layer]) / (m.layers[layer].KVHeads * m.layers[layer].HeadDim)
}

func (m *model) truncate(position int) {
	for i, l := range m.layers {
		if m.len(i) > position {
			m.k[i], m.v[i] = m.k[i][:position*l.KVHeads*l.HeadDim], m.v[i][:position*l.KVHeads*m.vDim(i)]
		}
	}
}

func (m *model) append(layer int, t tokens) {
	m.k[layer], m.v[layer] = append(m.k[layer], t.k...), append(m.v[layer], t.v...)
}

// attend computes context and LSE of query tokens from a position on, group by group over fresh pages.
func (m *model) attend(t testing.TB, layer int, q []float32, position int, mask []bool) (context_, lse []float32) {
	t.Helper()
	l, n, vDim := m.layers[layer], m.len(layer), m.vDim(layer)
	dt := l.Storage
	if dt == 0 {
		dt = tensor.F32
	}
	layout, err := attention.NewLayout(dt, l.HeadDim, vDim)
	if err != nil {
		t.Fatal(err)
	}
	queries, size := len(q)/(l.Heads*l.HeadDim), l.Heads/l.KVHeads
	context_, lse = make([]float32, queries*l.Heads*vDim), make([]float32, queries*l.Heads)
	for g := range l.KVHeads {
		kv := attention.KV{Layout: layout, Len: n}
		for p := range n {
			if p%attention.PageLen == 0 {
				kv.Pages = append(kv.Pages, make([]byte, layout.PageBytes()))
			}
			rows := attention.Rows{}
			rows.K, rows.KScale = narrow(t, m.k[layer][(p*l.KVHeads+g)*l.HeadDim:][:l.HeadDim], dt)
			rows.V, rows.VScale = narrow(t, m.v[layer][(p*l.KVHeads+g)*vDim:][:vDim], dt)
			if err := layout.Write(kv.Pages[p/attention.PageLen], p%attention.PageLen, 1, rows); err != nil {
				t.Fatal(err)
			}
		}
		own := make([]float32, 0, queries*size*l.HeadDim)
		for i := range queries {
			own = append(own, q[(i*l.Heads+g*size)*l.HeadDim:][:size*l.HeadDim]...)
		}
		opts := attention.DefaultOptions(l.HeadDim)
		opts.Causal, opts.Softcap, opts.AlibiSlopes, opts.Sinks = !l.NotCausal, l.Softcap, l.AlibiSlopes, l.Sinks
		if n, bounded := l.WindowLeft.Positions(); bounded {
			opts.WindowLeft = int64(n)
		}
		query := attention.Query{Q: own, Tokens: queries, Heads: size, FirstHead: g * size, Offset: int64(position)}
		if mask != nil {
			newest := len(mask) / queries
			query.MaskHeads, query.Mask = 1, make([]byte, queries*n)
			for i := range queries {
				for p := range n {
					if p < n-newest || mask[i*newest+p-(n-newest)] {
						query.Mask[i*n+p] = 1
					}
				}
			}
		}
		out := attention.Output{Context: make([]float32, queries*size*vDim), LSE: make([]float32, queries*size)}
		if err := attention.Attend(t.Context(), 1, kv, query, opts, out); err != nil {
			t.Fatal(err)
		}
		for i := range queries {
			copy(context_[(i*l.Heads+g*size)*vDim:], out.Context[i*size*vDim:][:size*vDim])
			copy(lse[i*l.Heads+g*size:], out.LSE[i*size:][:size])
		}
	}
	return context_, lse
}

func narrow(t testing.TB, row []float32, dt tensor.DType) ([]byte, []float32) {
	t.Helper()
	if dt == tensor.I8 {
		q, b := make([]int8, len(row)), make([]byte, len(row))
		scale := tensor.QuantizeI8(q, row)
		for i, x := range q {
			b[i] = byte(x)
		}
		return b, []float32{scale}
	}
	b := make([]byte, len(row)*dt.Size())
	if err := tensor.Narrow(b, row, dt); err != nil {
		t.Fatal(err)
	}
	return b, nil
}

func equal(t testing.TB, what string, got, want []float32) {
	t.Helper()
	if len(got) != len(want) {
		t.Fatalf("%s: %d elements, want %d", what, len(got), len(want))
	}
	for i := range got {
		if math.Float32bits(got[i]) != math.Float32bits(want[i]) {
			t.Fatalf("%s: element %d is %v, want %v", what, i, got[i], want[i])
		}
	}
}

// step does one step on the session and on the model, and compares.
func step(t testing.TB, s *client.Session, m *model, r *rand.Rand, layer, n int) {
	t.Helper()
	one := project(r, m.layers[layer], n)
	m.append(layer, one)
	wantContext, wantLSE := m.attend(t, layer, one.q, m.len(layer)-n, nil)
	context, lse := make([]float32, len(wantContext)), make([]float32, len(wantLSE))
	if err := s.Step(t.Context(), layer, one.q, one.k, one.v, context, lse); err != nil {
		t.Fatal(err)
	}
	equal(t, fmt.Sprintf("context of layer %d", layer), context, wantContext)
	equal(t, fmt.Sprintf("LSE of layer %d", layer), lse, wantLSE)
	if s.LayerLen(layer) != m.len(layer) {
		t.Fatalf("layer %d has %d positions, want %d", layer, s.LayerLen(layer), m.len(layer))
	}
}

// each runs a test through the coordinator and directly, on 1, 2 and 3 workers.
func each(t *testing.T, test func(t *testing.T, c *cluster, direct bool)) {
	for _, workers := range []int{1, 2, 3} {
		for _, direct := range []bool{false, true} {
			t.Run(fmt.Sprintf("workers=%d,direct=%v", workers, direct), func(t *testing.T) { test(t, start(t, workers), direct) })
		}
	}
}

func open(t testing.TB, c *client.Client, opts client.SessionOptions) *client.Session {
	t.Helper()
	s, err := c.OpenSession(t.Context(), opts)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestStepsGiveTheBitsOfOneCall(t *testing.T) {
	each(t, func(t *testing.T, c *cluster, direct bool) {
		for _, codec := range []client.Codec{client.Auto, client.Raw, client.Exact} {
			r := rand.New(rand.NewPCG(1, 2))
			s, m := open(t, c.Client, client.SessionOptions{Layers: layers, Direct: direct, Codec: codec}), newModel(layers)
			for _, n := range []int{3, 1, 70, 1, 2} {
				for layer := range layers {
					step(t, s, m, r, layer, n)
				}
			}
			if s.Len() != 77 {
				t.Errorf("%d positions", s.Len())
			}
			if err := s.Drop(t.Context()); err != nil {
				t.Fatal(err)
			}
			if err := s.Step(t.Context(), 0, nil, nil, nil, nil, nil); err == nil {
				t.Error("a dropped session takes a step")
			}
		}
	})
}

func TestForkTruncateAndAttach(t *testing.T) {
	each(t, func(t *testing.T, c *cluster, direct bool) {
		r := rand.New(rand.NewPCG(3, 4))
		s, m := open(t, c.Client, client.SessionOptions{Layers: layers, Direct: direct, Name: "one"}), newModel(layers)
		all := func(s *client.Session, m *model, n int) {
			t.Helper()
			for layer := range layers {
				step(t, s, m, r, layer, n)
			}
		}
		all(s, m, 10)
		child, err := s.Fork(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		cm := m.clone()
		all(child, cm, 4)
		all(s, m, 2)
		early, err := s.ForkAt(t.Context(), 5)
		if err != nil {
			t.Fatal(err)
		}
		em := m.clone()
		em.truncate(5)
		all(early, em, 3)
		for _, at := range []int{11, 11, 7} {
			if err := s.Truncate(t.Context(), at); err != nil {
				t.Fatal(err)
			}
			m.truncate(at)
			all(s, m, 1)
		}
		if err := s.Pin(t.Context(), true); err != nil {
			t.Fatal(err)
		}
		receipt := s.Receipt()
		other := dial(t, c.address)
		taken, err := other.Attach(t.Context(), s.ID(), client.AttachOptions{Receipt: &receipt, Direct: !direct})
		if err != nil {
			t.Fatal(err)
		}
		if err := s.Truncate(t.Context(), 1); !errors.Is(err, client.ErrTakenOver) {
			t.Errorf("a client that lost its session truncates it: %v", err)
		}
		one := project(r, layers[0], 1)
		if err := s.Step(t.Context(), 0, nil, one.k, one.v, nil, nil); !errors.Is(err, client.ErrTakenOver) {
			t.Errorf("a client that lost its session steps it: %v", err)
		}
		all(taken, m, 1)
		back, err := c.Attach(t.Context(), s.ID(), client.AttachOptions{Direct: direct})
		if err != nil {
			t.Fatal(err)
		}
		all(back, m, 1)
		receipt = back.Receipt()
		receipt.Layers[1].Hashes[0]++
		if _, err := other.Attach(t.Context(), s.ID(), client.AttachOptions{Receipt: &receipt}); !errors.Is(err, client.ErrRefused) {
			t.Errorf("a wrong receipt is taken: %v", err)
		}
		all(back, m, 1)
	})
}

func TestManyInFlight(t *testing.T) {
	each(t, func(t *testing.T, c *cluster, direct bool) {
		r := rand.New(rand.NewPCG(5, 6))
		var steps []*client.Step
		var wants [][]float32
		for range 4 {
			s, m := open(t, c.Client, client.SessionOptions{Layers: layers, Direct: direct}), newModel(layers)
			for range 3 {
				for layer, l := range layers {
					one := project(r, l, 2)
					m.append(layer, one)
					want, lse := m.attend(t, layer, one.q, m.len(layer)-2, nil)
					wants = append(wants, want)
					steps = append(steps, &client.Step{Session: s, Layer: layer, Q: one.q, K: one.k, V: one.v, Context: make([]float32, len(want)), LSE: make([]float32, len(lse))})
				}
			}
		}
		if err := client.Do(t.Context(), steps...); err != nil {
			t.Fatal(err)
		}
		for i, want := range wants {
			equal(t, fmt.Sprintf("step %d", i), steps[i].Context, want)
		}
	})
}

func TestMasksAndPositions(t *testing.T) {
	each(t, func(t *testing.T, c *cluster, direct bool) {
		r := rand.New(rand.NewPCG(7, 8))
		s, m := open(t, c.Client, client.SessionOptions{Layers: layers, Direct: direct}), newModel(layers)
		for layer, l := range layers {
			first := project(r, l, 9)
			m.append(layer, first)
			if err := s.Step(t.Context(), layer, nil, first.k, first.v, nil, nil); err != nil {
				t.Fatal(err)
			}
			// A tree of drafts: two branches of two.
			drafts := project(r, l, 4)
			m.append(layer, drafts)
			mask := []bool{
				true, false, false, false,
				true, true, false, false,
				false, false, true, false,
				false, false, true, true,
			}
			position := m.len(layer) - 4
			want, lse := m.attend(t, layer, drafts.q, position, mask)
			st := &client.Step{Layer: layer, Q: drafts.q, K: drafts.k, V: drafts.v, Mask: mask, Context: make([]float32, len(want)), LSE: make([]float32, len(lse))}
			if err := s.Do(t.Context(), st); err != nil {
				t.Fatal(err)
			}
			equal(t, "masked context", st.Context, want)
			position = 3
			want, lse = m.attend(t, layer, drafts.q, position, nil)
			st = &client.Step{Layer: layer, Q: drafts.q, Position: &position, Context: make([]float32, len(want)), LSE: make([]float32, len(lse))}
			if err := s.Do(t.Context(), st); err != nil {
				t.Fatal(err)
			}
			equal(t, "context of positions before", st.Context, want)
		}
	})
}

func TestWhatOnlySomeHoldersHaveIsMadeWhole(t *testing.T) {
	c := start(t, 2)
	for _, direct := range []bool{true, false} {
		r := rand.New(rand.NewPCG(9, 10))
		s, m := open(t, c.Client, client.SessionOptions{Layers: layers, Direct: direct}), newModel(layers)
		step(t, s, m, r, 0, 3)
		one := project(r, layers[0], 2)
		refuse := func(*session.Step) *session.Error {
			return session.Errorf(session.OverBudget, "no room")
		}
		c.holders[1].Set(refuse)
		err := s.Step(t.Context(), 0, nil, one.k, one.v, nil, nil)
		var refused *client.SessionError
		if !errors.Is(err, client.ErrOverBudget) || !errors.As(err, &refused) || refused.Holder != "w2" {
			t.Fatalf("direct %v: %v", direct, err)
		}
		if s.LayerLen(0) != 3 {
			t.Errorf("%d positions after a step that was not done by all", s.LayerLen(0))
		}
		c.holders[1].Set(nil)
		if err := s.Step(t.Context(), 0, nil, one.k, one.v, nil, nil); err != nil {
			t.Fatal(err)
		}
		m.append(0, one)
		step(t, s, m, r, 0, 1)
		// And who takes the session over, when some have more than others, finds it as all have it.
		c.holders[1].Set(refuse)
		if err := s.Step(t.Context(), 0, nil, one.k, one.v, nil, nil); err == nil {
			t.Fatal("done without room")
		}
		c.holders[1].Set(nil)
		taken, err := dial(t, c.address).Attach(t.Context(), s.ID(), client.AttachOptions{Direct: direct})
		if err != nil {
			t.Fatal(err)
		}
		if got := taken.LayerLen(0); got != 6 {
			t.Errorf("%d positions, all have 6", got)
		}
		step(t, taken, m, r, 0, 1)
	}
}

// TestWhatOnlySomeHoldersHaveIsTakenBack lets an append reach one of two holders, and goes on with something else. Other
// layers, which are further, stay as they are.
func TestWhatOnlySomeHoldersHaveIsTakenBack(t *testing.T) {
	refuse := func(*session.Step) *session.Error {
		return session.Errorf(session.OverBudget, "no room")
	}
	for _, direct := range []bool{true, false} {
		for name, next := range map[string]func(t *testing.T, s *client.Session, m *model, r *rand.Rand){
			"another step": func(t *testing.T, s *client.Session, m *model, r *rand.Rand) { step(t, s, m, r, 1, 3) },
			"a query": func(t *testing.T, s *client.Session, m *model, r *rand.Rand) {
				one := project(r, layers[1], 1)
				want, lse := m.attend(t, 1, one.q, m.len(1)-1, nil)
				got := make([]float32, len(want))
				if err := s.Step(t.Context(), 1, one.q, nil, nil, got, lse); err != nil {
					t.Fatal(err)
				}
				equal(t, "context", got, want)
			},
			"a truncation": func(t *testing.T, s *client.Session, m *model, _ *rand.Rand) {
				if err := s.Truncate(t.Context(), 11); err != nil {
					t.Fatal(err)
				}
				m.truncate(11)
			},
			"a pin": func(t *testing.T, s *client.Session, _ *model, _ *rand.Rand) {
				if err := s.Pin(t.Context(), true); err != nil {
					t.Fatal(err)
				}
			},
			"a deep truncation": func(t *testing.T, s *client.Session, m *model, _ *rand.Rand) {
				if err := s.Truncate(t.Context(), 4); err != nil {
					t.Fatal(err)
				}
				m.truncate(4)
			},
			"a fork": func(t *testing.T, s *client.Session, m *model, r *rand.Rand) {
				child, err := s.Fork(t.Context())
				if err != nil {
					t.Fatal(err)
				}
				cm := m.clone()
				for layer := range layers {
					if child.LayerLen(layer) != m.len(layer) {
						t.Errorf("layer %d of the fork has %d positions, the session %d", layer, child.LayerLen(layer), m.len(layer))
					}
					step(t, child, cm, r, layer, 2)
				}
			},
			"a truncation of nothing": func(t *testing.T, s *client.Session, _ *model, _ *rand.Rand) {
				receipt := s.Receipt()
				if err := s.Truncate(t.Context(), s.LayerLen(0)); err != nil { // takes nothing of what is known
					t.Fatal(err)
				}
				if after := s.Receipt(); !slices.EqualFunc(after.Layers, receipt.Layers, func(a, b client.LayerReceipt) bool {
					return a.Length == b.Length && slices.Equal(a.Hashes, b.Hashes)
				}) {
					t.Errorf("the receipt is %v, it was %v", after, receipt)
				}
			},
		} {
			t.Run(fmt.Sprintf("direct %v, then %s", direct, name), func(t *testing.T) {
				c := start(t, 2)
				r := rand.New(rand.NewPCG(17, 18))
				s, m := open(t, c.Client, client.SessionOptions{Layers: layers, Direct: direct}), newModel(layers)
				step(t, s, m, r, 0, 12)
				step(t, s, m, r, 1, 10)
				step(t, s, m, r, 2, 9)
				one := project(r, layers[1], 2)
				c.holders[1].Set(refuse)
				if err := s.Step(t.Context(), 1, nil, one.k, one.v, nil, nil); !errors.Is(err, client.ErrOverBudget) {
					t.Fatal(err)
				}
				c.holders[1].Set(nil)
				next(t, s, m, r)
				for layer := range layers {
					step(t, s, m, r, layer, 1)
				}
			})
		}
	}
}
