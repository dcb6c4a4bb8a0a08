package client_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"math/rand/v2"
	"net"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/google/uuid"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"headwater.example/attention"
	"headwater.example/client"
	"headwater.example/coordinator"
	"headwater.example/internal/membership"
	"headwater.example/internal/rpc"
	"headwater.example/internal/session"
	"headwater.example/internal/testkit/plainholder"
	headwaterv1 "headwater.example/proto/headwater/v1"
	"headwater.example/tensor"
	"headwater.example/worker"
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

// TestAWrongReceiptShutsNobodyOut brings one that a holder of some groups finds right and another wrong.
func TestAWrongReceiptShutsNobodyOut(t *testing.T) {
	each(t, func(t *testing.T, c *cluster, direct bool) {
		r := rand.New(rand.NewPCG(19, 20))
		s, m := open(t, c.Client, client.SessionOptions{Layers: layers, Direct: direct}), newModel(layers)
		for layer := range layers {
			step(t, s, m, r, layer, 5)
		}
		old := s.Receipt()
		for layer := range layers {
			step(t, s, m, r, layer, 2)
		}
		other := dial(t, c.address)
		for layer, l := range layers {
			for g := range l.KVHeads {
				wrong := client.Receipt{Session: old.Session}
				for _, one := range old.Layers {
					wrong.Layers = append(wrong.Layers, client.LayerReceipt{Length: one.Length, Hashes: slices.Clone(one.Hashes)})
				}
				wrong.Layers[layer].Hashes[g]++
				_, err := other.Attach(t.Context(), s.ID(), client.AttachOptions{Receipt: &wrong, Direct: direct})
				var refused *client.SessionError
				if !errors.As(err, &refused) || refused.Reason != client.ReasonDifferent {
					t.Fatalf("layer %d, group %d: %v", layer, g, err)
				}
			}
		}
		for layer := range layers {
			step(t, s, m, r, layer, 1) // is not taken over
		}
		taken, err := other.Attach(t.Context(), s.ID(), client.AttachOptions{Receipt: &old, Direct: direct})
		if err != nil {
			t.Fatal(err)
		}
		step(t, taken, m, r, 0, 1)
	})
}

// A fork whose state makes no sense is dropped. So is what was opened.
func TestWhatCanNotBeTakenOverIsDropped(t *testing.T) {
	for _, direct := range []bool{true, false} {
		c := start(t, 2)
		var wrong, deaf atomic.Bool
		lies := func(ctx context.Context, method string, req, reply any, conn *grpc.ClientConn, call grpc.UnaryInvoker, opts ...grpc.CallOption) error {
			if deaf.Load() && method == headwaterv1.SessionService_DropSession_FullMethodName {
				return status.Error(codes.Unavailable, "the network is down")
			}
			err := call(ctx, method, req, reply, conn, opts...)
			var state *headwaterv1.SessionState
			switch m := reply.(type) {
			case *headwaterv1.ForkSessionResponse:
				state = m.GetState()
			case *headwaterv1.CreateSessionResponse:
				state = m.GetState()
			}
			for _, l := range state.GetLayers() {
				if wrong.Load() {
					l.Length = 1 << 63
				}
			}
			return err
		}
		liar, err := client.Dial(c.address, grpc.WithChainUnaryInterceptor(lies))
		if err != nil {
			t.Fatal(err)
		}
		defer liar.Close()
		s := open(t, liar, client.SessionOptions{Layers: layers, Direct: direct})
		wrong.Store(true)
		held := func(want int) {
			t.Helper()
			if all, err := c.Sessions(t.Context()); err != nil || len(all.Sessions) != want {
				t.Fatalf("direct %v: %d sessions are held, want %d: %v", direct, len(all.Sessions), want, err)
			}
		}
		if _, err := s.Fork(t.Context()); err == nil || !strings.Contains(err.Error(), "fork session "+s.ID().String()) || !strings.Contains(err.Error(), "of length 9223372036854775808") {
			t.Errorf("direct %v: %v", direct, err)
		}
		held(1)
		if _, err := liar.OpenSession(t.Context(), client.SessionOptions{Layers: layers, Direct: direct}); err == nil {
			t.Errorf("direct %v: what makes no sense is opened", direct)
		}
		held(1)
		// Where it can not be dropped, that is said.
		deaf.Store(true)
		if _, err := s.Fork(t.Context()); err == nil || !strings.Contains(err.Error(), " stays until its TTL: ") || !strings.Contains(err.Error(), "the network is down") {
			t.Errorf("direct %v: %v", direct, err)
		}
		held(2)
	}
}

// Calls of a client that is closed, and of a session, say so, whatever they are.
func TestAClosedClientSaysSo(t *testing.T) {
	for _, direct := range []bool{true, false} {
		c := start(t, 2)
		mine, err := client.Dial(c.address)
		if err != nil {
			t.Fatal(err)
		}
		s := open(t, mine, client.SessionOptions{Layers: layers, Direct: direct})
		step(t, s, newModel(layers), rng(1), 0, 3)
		gone := open(t, mine, client.SessionOptions{Layers: layers, Direct: direct})
		dropped := open(t, mine, client.SessionOptions{Layers: layers, Direct: direct})
		if err := errors.Join(gone.Close(), dropped.Drop(t.Context())); err != nil {
			t.Fatal(err)
		}
		row := func(s *client.Session) error { _, err := attended(t, s, 0, project(rng(2), layers[0], 1)); return err }
		for _, s := range []*client.Session{gone, dropped} {
			for _, err := range []error{row(s), s.Truncate(t.Context(), 0), s.Pin(t.Context(), true), s.Drop(t.Context())} {
				if !errors.Is(err, client.ErrClosed) || !strings.HasSuffix(err.Error(), "session "+s.ID().String()+": the session is closed") {
					t.Errorf("direct %v: %v", direct, err)
				}
			}
		}
		if err := mine.Close(); err != nil {
			t.Fatal(err)
		}
		for name, call := range map[string]func() error{
			"step":     func() error { return row(s) },
			"truncate": func() error { return s.Truncate(t.Context(), 1) },
			"fork":     func() error { _, err := s.Fork(t.Context()); return err },
			"pin":      func() error { return s.Pin(t.Context(), true) },
			"export": func() error {
				return s.Export(t.Context(), 0, 0, 1, func(int, int, int, client.Rows) error { return nil })
			},
			"drop": func() error { return s.Drop(t.Context()) },
			"open": func() error {
				_, err := mine.OpenSession(t.Context(), client.SessionOptions{Layers: layers})
				return err
			},
			"attach": func() error { _, err := mine.Attach(t.Context(), s.ID(), client.AttachOptions{}); return err },
			"find":   func() error { _, err := mine.FindSession(t.Context(), s.ID()); return err },
			"list":   func() error { _, err := mine.Sessions(t.Context()); return err },
			"caches": func() error { _, err := mine.Caches(t.Context()); return err },
			"status": func() error { _, err := mine.Status(t.Context()); return err },
			"get":    func() error { _, err := mine.Get(t.Context(), "c-1"); return err },
			"wait":   func() error { _, err := mine.Wait(t.Context(), "c-1", nil); return err },
			"result": func() error {
				_, err := mine.Download(t.Context(), "c-1", filepath.Join(t.TempDir(), "result.safetensors"), nil)
				return err
			},
		} {
			err := call()
			if !errors.Is(err, client.ErrClosed) || !strings.HasSuffix(err.Error(), ": the client is closed") {
				t.Errorf("direct %v: %s: %v", direct, name, err)
			}
			for _, other := range []error{client.ErrUnreachable, client.ErrLost, context.Canceled} {
				if errors.Is(err, other) {
					t.Errorf("direct %v: %s: %v is %v", direct, name, err, other)
				}
			}
		}
	}
}

func TestALostWorkerIsNamed(t *testing.T) {
	for _, direct := range []bool{true, false} {
		c := start(t, 2)
		r := rand.New(rand.NewPCG(11, 12))
		s, m := open(t, c.Client, client.SessionOptions{Layers: layers, Direct: direct}), newModel(layers)
		step(t, s, m, r, 0, 3)
		c.servers[1].Stop()
		one := project(r, layers[0], 1)
		err := s.Step(t.Context(), 0, nil, one.k, one.v, nil, nil)
		var lost *client.SessionError
		if !errors.Is(err, client.ErrLost) || !errors.As(err, &lost) || lost.Holder != "w2" {
			t.Errorf("direct %v: %v", direct, err)
		}
		if _, err := s.Fork(t.Context()); !errors.Is(err, client.ErrLost) {
			t.Errorf("direct %v: fork: %v", direct, err)
		}
		// New sessions go to who is there.
		again, m := open(t, c.Client, client.SessionOptions{Layers: layers, Direct: direct}), newModel(layers)
		step(t, again, m, r, 0, 3)
	}
}

// What a worker that does not answer may hold is not said to be nowhere: neither by who lists sessions, nor by who looks for one.
func TestAWorkerThatDoesNotAnswerMayHoldTheSession(t *testing.T) {
	c := start(t, 2)
	both := open(t, c.Client, client.SessionOptions{Layers: layers})
	alone := map[string]*client.Session{} // by the worker that holds all of it
	for len(alone) < 2 {
		s := open(t, c.Client, client.SessionOptions{Layers: layers, Workers: 1})
		found, err := c.FindSession(t.Context(), s.ID())
		if err != nil || len(found.Holders) != 1 {
			t.Fatalf("%v: %v", found, err)
		}
		alone[found.Holders[0].Name] = s
	}
	c.servers[1].Stop()
	all, err := c.Sessions(t.Context())
	if err != nil || len(all.Caches) != 1 || len(all.Silent) != 1 {
		t.Fatalf("%v: %v", all, err)
	}
	if w := all.Silent[0]; w.Worker != "w2" || w.Address != c.addresses[1] || w.Error == "" {
		t.Errorf("got %v", w)
	}
	w2 := alone["w2"].ID()
	for _, s := range all.Sessions {
		if s.ID == w2 {
			t.Errorf("%v is listed", s)
		}
	}
	// Also by a coordinator that has not seen them before.
	var members []membership.Member
	for i, h := range c.holders {
		members = append(members, membership.Member{Name: h.Name, Role: membership.RoleWorker, Address: c.addresses[i], Weight: 1})
	}
	fresh := startCoordinator(t, members)
	other := dial(t, fresh)
	conn, err := grpc.NewClient(fresh, rpc.DialOptions()...)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	for id, want := range map[client.SessionID]string{
		both.ID(): "w2: it did not answer, and may hold the rest of the session: ", alone["w2"].ID(): "w2: it did not answer, and may hold the session: ",
		{1}: "w2: it did not answer, and may hold the session: ",
	} {
		_, found := c.FindSession(t.Context(), id)
		_, attached := c.Attach(t.Context(), id, client.AttachOptions{})
		_, written := c.SnapshotSession(t.Context(), id, io.Discard, nil)
		for _, err := range []error{found, attached, written} {
			var e *client.SessionError
			if !errors.As(err, &e) || !errors.Is(err, client.ErrLost) || errors.Is(err, client.ErrNotFound) || e.Holder != "w2" || !strings.Contains(err.Error(), want) {
				t.Errorf("got %v, want %q", err, want)
			}
		}
		_, err = headwaterv1.NewSessionServiceClient(conn).PinSession(t.Context(), &headwaterv1.PinSessionRequest{Session: id[:]})
		if e, ok := session.FromError(err); !ok || e.Reason() != session.Lost || !strings.Contains(e.Error(), want) {
			t.Errorf("a call: got %v, want %q", err, want)
		}
	}
	if s, err := other.Attach(t.Context(), alone["w1"].ID(), client.AttachOptions{}); err != nil {
		t.Errorf("a session of the other worker: %v", err)
	} else {
		step(t, s, newModel(layers), rng(1), 0, 1)
	}
}

func TestAWorkerThatHangsMayHoldTheSession(t *testing.T) {
	var hangs atomic.Bool
	goOn := make(chan struct{})
	c := startCounted(t, 2, worker.Config{}, func(worker int) []grpc.ServerOption {
		return []grpc.ServerOption{grpc.ChainUnaryInterceptor(func(ctx context.Context, req any, info *grpc.UnaryServerInfo, handle grpc.UnaryHandler) (any, error) {
			if worker == 1 && hangs.Load() && info.FullMethod == headwaterv1.SessionService_ListSessions_FullMethodName {
				<-goOn
			}
			return handle(ctx, req)
		})}
	})
	hangs.Store(true)
	var tasks sync.WaitGroup
	tasks.Go(func() {
		if _, err := c.FindSession(t.Context(), client.SessionID{1}); !errors.Is(err, client.ErrLost) || !strings.Contains(err.Error(), "w2: it did not answer, and may hold the session: no answer within ") {
			t.Error(err)
		}
	})
	tasks.Go(func() {
		if s, err := c.OpenSession(t.Context(), client.SessionOptions{Layers: small}); err != nil {
			t.Error(err)
		} else if err := s.Drop(t.Context()); err != nil {
			t.Error(err)
		}
	})
	tasks.Wait()
	close(goOn)
}

func TestACoordinatorThatStartsGoesOn(t *testing.T) {
	c := start(t, 2)
	var members []membership.Member
	state := open(t, c.Client, client.SessionOptions{Layers: layers, Direct: true})
	r, m := rand.New(rand.NewPCG(13, 14)), newModel(layers)
	for layer := range layers {
		step(t, state, m, r, layer, 5)
	}
	found, err := c.FindSession(t.Context(), state.ID())
	if err != nil {
		t.Fatal(err)
	}
	for _, o := range found.Holders {
		members = append(members, membership.Member{Name: o.Name, Role: membership.RoleWorker, Address: o.Address, Weight: 1})
	}
	other := dial(t, startCoordinator(t, members))
	s, err := other.Attach(t.Context(), state.ID(), client.AttachOptions{})
	if err != nil {
		t.Fatal(err)
	}
	for layer := range layers {
		step(t, s, m, r, layer, 2)
	}
	all, err := other.Sessions(t.Context())
	if err != nil || len(all.Sessions) != 1 || len(all.Caches) != 2 || all.Sessions[0].Layers[0].Length != 7 {
		t.Errorf("%v: %v", all, err)
	}
	if err := other.DropSession(t.Context(), s.ID()); err != nil {
		t.Fatal(err)
	}
	if err := other.DropSession(t.Context(), s.ID()); err != nil {
		t.Errorf("dropped twice: %v", err)
	}
	if err := other.DropSession(t.Context(), client.SessionID{1}); !errors.Is(err, client.ErrNotFound) {
		t.Errorf("dropped what never was: %v", err)
	}
	one := project(r, layers[0], 1)
	if err := s.Step(t.Context(), 0, nil, one.k, one.v, nil, nil); !errors.Is(err, client.ErrNotFound) {
		t.Errorf("a step of a dropped session: %v", err)
	}
}

func TestAStepTooLargeForAMessageGoesInSeveral(t *testing.T) {
	wide := []client.Layer{{Heads: 8, KVHeads: 2, HeadDim: 512}, {Heads: 8, KVHeads: 2, HeadDim: 512, NotCausal: true}}
	c := start(t, 2)
	for _, direct := range []bool{true, false} {
		r := rand.New(rand.NewPCG(15, 16))
		s, m := open(t, c.Client, client.SessionOptions{Layers: wide, Direct: direct}), newModel(wide)
		step(t, s, m, r, 0, 400)
		step(t, s, m, r, 1, 400)
	}
}

// A coordinator holds back a lane whose steps have more bytes than it keeps, and all of them are done.
func TestMoreBytesThanACoordinatorKeeps(t *testing.T) {
	c := start(t, 2)
	wide := []client.Layer{{Heads: 2, HeadDim: 512}}
	const tokens = 1400
	rows := make([]float32, tokens*2*512)
	var steps []*client.Step
	for range 7 { // of 11 MiB
		steps = append(steps, &client.Step{Session: open(t, c.Client, client.SessionOptions{Layers: wide}), K: rows, V: rows})
	}
	for round := 1; round <= 2; round++ {
		if err := client.Do(t.Context(), steps...); err != nil {
			t.Fatal(err)
		}
		for _, s := range steps {
			if s.Session.Len() != round*tokens {
				t.Fatalf("%d positions after %d steps of %d", s.Session.Len(), round, tokens)
			}
		}
	}
}

// Sessions of one group, which only one worker can hold, are not all of the same one's.
func TestSmallSessionsSpread(t *testing.T) {
	c := start(t, 3)
	held := map[string]int{}
	const sessions = 48
	for range sessions {
		s := open(t, c.Client, client.SessionOptions{Layers: []client.Layer{{Heads: 2, KVHeads: 1, HeadDim: 4}}})
		found, err := c.FindSession(t.Context(), s.ID())
		if err != nil || len(found.Holders) != 1 {
			t.Fatalf("%v: %v", found, err)
		}
		held[found.Holders[0].Name]++
	}
	if len(held) != 3 {
		t.Errorf("%d sessions are at %v", sessions, held)
	}
}

// A list in parts is the list of all, with each session whole.
func TestSessionsAreListedInParts(t *testing.T) {
	c := start(t, 3)
	for groups := range 8 {
		open(t, c.Client, client.SessionOptions{Layers: []client.Layer{{Heads: groups + 1, HeadDim: 4}}})
	}
	listed, err := c.Sessions(t.Context())
	all := listed.Sessions
	if err != nil || len(all) != 8 || len(listed.Silent) != 0 {
		t.Fatalf("%d sessions: %v", len(all), err)
	}
	conn, err := grpc.NewClient(c.address, rpc.DialOptions()...)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	for limit := uint32(1); limit < 10; limit++ {
		req := &headwaterv1.ListSessionsRequest{Limit: limit}
		rest := all
		for {
			resp, err := headwaterv1.NewSessionServiceClient(conn).ListSessions(t.Context(), req)
			if err != nil || len(resp.GetSessions()) != min(int(limit), len(rest)) {
				t.Fatalf("%d of %d sessions in parts of %d: %v", len(resp.GetSessions()), len(rest), limit, err)
			}
			for i, s := range resp.GetSessions() {
				if !bytes.Equal(s.GetSession(), rest[i].ID[:]) || len(s.GetHolders()) != len(rest[i].Holders) {
					t.Fatalf("got %v, want %v", s, rest[i])
				}
			}
			if rest = rest[len(resp.GetSessions()):]; len(rest) == 0 {
				break
			}
			req.After = resp.GetSessions()[len(resp.GetSessions())-1].GetSession()
		}
	}
}

// Keys and values that are narrowed here are those that the workers would have made of them, to the hash, whatever is sent.
func TestNarrowedHereOrThereIsTheSame(t *testing.T) {
	var stored []client.Layer
	for _, storage := range []tensor.DType{tensor.F32, tensor.F16, tensor.BF16, tensor.I8} {
		stored = append(stored, client.Layer{Heads: 6, KVHeads: 3, HeadDim: 24, VDim: 20, Storage: storage})
	}
	c := start(t, 2)
	sent := make(chan headwaterv1.StorageType, 64)
	for _, h := range c.holders {
		h.Set(func(m *session.Step) *session.Error {
			sent <- m.Encoding
			return nil
		})
	}
	// encodings are those of all parts that the holders have been sent.
	encodings := func() map[headwaterv1.StorageType]bool {
		all := map[headwaterv1.StorageType]bool{}
		for len(sent) > 0 {
			all[<-sent] = true
		}
		return all
	}
	for _, direct := range []bool{false, true} {
		here := open(t, c.Client, client.SessionOptions{Layers: stored, Direct: direct})
		there := open(t, c.Client, client.SessionOptions{Layers: stored, Direct: direct, SendF32: true})
		r := rand.New(rand.NewPCG(19, 20))
		both := func(layer int, one tokens) (errs [2]error) {
			for i, s := range []*client.Session{here, there} {
				want := headwaterv1.StorageType_STORAGE_TYPE_F32
				if s == here {
					want += headwaterv1.StorageType(layer) // which stores the types in their order
				}
				errs[i] = s.Step(t.Context(), layer, nil, one.k, one.v, nil, nil)
				if got := encodings(); errs[i] == nil && (len(got) != 1 || !got[want]) {
					t.Fatalf("layer %d was sent as %v, want %v", layer, got, want)
				}
			}
			return errs
		}
		for _, n := range []int{1, 5, 64, 1} {
			for layer, l := range stored {
				if errs := both(layer, project(r, l, n)); errs[0] != nil || errs[1] != nil {
					t.Fatal(errs)
				}
			}
		}
		for layer, l := range stored {
			for _, x := range []float64{math.NaN(), math.Inf(1), math.Inf(-1), 65519, 65520, math.MaxFloat32} {
				for _, n := range []int{1, 3} {
					one := project(r, l, n)
					one.v[len(one.v)-1] = float32(x)
					errs := both(layer, one)
					var a, b *client.SessionError
					if (errs[0] == nil) != (errs[1] == nil) || errors.As(errs[0], &a) && errors.As(errs[1], &b) && a.Reason != b.Reason {
						t.Errorf("layer %d of %s, %g among %d tokens: %v, and sent as f32 %v", layer, l.Storage, x, n, errs[0], errs[1])
					}
				}
			}
		}
		for layer := range stored {
			a, b := here.Receipt().Layers[layer], there.Receipt().Layers[layer]
			if a.Length != b.Length || !slices.Equal(a.Hashes, b.Hashes) || a.Length < 71 {
				t.Errorf("layer %d: %d positions %x, and narrowed by workers %d %x", layer, a.Length, a.Hashes, b.Length, b.Hashes)
			}
		}
	}
}

// The same on real workers.
func TestNarrowedHereOrByRealWorkersIsTheSame(t *testing.T) {
	c, stop := dialCluster()
	defer stop()
	for _, storage := range []tensor.DType{tensor.F16, tensor.BF16, tensor.I8} {
		l := client.Layer{Heads: 6, KVHeads: 3, HeadDim: 24, VDim: 20, Storage: storage}
		here := open(t, c, client.SessionOptions{Layers: []client.Layer{l}})
		there := open(t, c, client.SessionOptions{Layers: []client.Layer{l}, SendF32: true})
		r := rand.New(rand.NewPCG(21, 22))
		for _, n := range []int{1, 70, 2} {
			one := project(r, l, n)
			var contexts [2][]float32
			for i, s := range []*client.Session{here, there} {
				contexts[i] = make([]float32, n*l.Heads*l.VDim)
				if err := s.Step(t.Context(), 0, one.q, one.k, one.v, contexts[i], nil); err != nil {
					t.Fatal(err)
				}
			}
			equal(t, storage.String(), contexts[0], contexts[1])
			if a, b := here.Receipt().Layers[0].Hashes, there.Receipt().Layers[0].Hashes; !slices.Equal(a, b) {
				t.Fatalf("%s: hashes %x, and narrowed by workers %x", storage, a, b)
			}
		}
	}
}
