package fanout_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"testing"

	"go.uber.org/goleak"
	"google.golang.org/grpc"

	"headwater.example/attention"
	"headwater.example/internal/layerproto"
	"headwater.example/internal/rpc"
	"headwater.example/internal/session"
	"headwater.example/internal/session/fanout"
	"headwater.example/internal/testkit/plainholder"
	headwaterv1 "headwater.example/proto/headwater/v1"
	"headwater.example/shard"
	"headwater.example/tensor"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// serve serves on loopback until the test ends, and returns the address.
func serve(t testing.TB, register func(grpc.ServiceRegistrar), opts ...grpc.ServerOption) string {
	t.Helper()
	s := grpc.NewServer(append(rpc.ServerOptions(), opts...)...)
	register(s)
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() { defer close(done); _ = s.Serve(listener) }()
	t.Cleanup(func() { s.Stop(); <-done })
	return listener.Addr().String()
}

// peers are connections and a lane that end with the test.
type peers struct {
	conns *fanout.Conns
	lane  *fanout.Lane
	epoch *headwaterv1.Epoch
}

func connect(t testing.TB, opts ...grpc.DialOption) *peers {
	t.Helper()
	id := session.LaneID{1}
	p := &peers{conns: fanout.NewConns(nil, append(rpc.DialOptions(), opts...)...), epoch: &headwaterv1.Epoch{Counter: 1, Lane: id[:]}}
	p.lane = fanout.NewLane(id, p.conns)
	t.Cleanup(func() {
		p.lane.Close()
		if err := p.conns.Close(); err != nil {
			t.Error(err)
		}
	})
	return p
}

// shape is a layer of float32.
func shape(heads, groups, headDim, vDim int) shard.LayerSpec {
	o := attention.DefaultOptions(headDim)
	o.Causal = true
	l, err := shard.NewLayerSpec(shard.LayerShape{Heads: heads, KVHeads: groups, HeadDim: headDim, VDim: vDim}, tensor.F32, o)
	if err != nil {
		panic(err)
	}
	return l
}

func config(layers []shard.LayerSpec) *headwaterv1.SessionConfig {
	return &headwaterv1.SessionConfig{Layers: layerproto.SessionLayers(layers)}
}

// tensors are a step's, by group; they note what comes back.
type tensors struct {
	q, k, v      [][]byte
	context, lse map[int][]float32
}

func (x *tensors) Query(dst []byte, g int)         { copy(dst, x.q[g]) }
func (x *tensors) Key(dst []byte, g, _ int)        { copy(dst, x.k[g]) }
func (x *tensors) Value(dst []byte, g, _ int)      { copy(dst, x.v[g]) }
func (x *tensors) KeyScale(dst []byte, g, _ int)   { panic("float32 has no scales") }
func (x *tensors) ValueScale(dst []byte, g, _ int) { panic("float32 has no scales") }

func (x *tensors) Take(group int, context, lse []float32) {
	x.context[group], x.lse[group] = append([]float32(nil), context...), append([]float32(nil), lse...)
}

// draw makes a step of random tensors.
func draw(r *rand.Rand, layers []shard.LayerSpec, layer int, id [16]byte, length uint64, hashes []uint64, appended, attend int) (*fanout.Step, *tensors) {
	l := layers[layer]
	x := &tensors{context: map[int][]float32{}, lse: map[int][]float32{}}
	floats := func(n int) []byte {
		f := make([]float32, n)
		for i := range f {
			f[i] = float32(r.NormFloat64())
		}
		b := make([]byte, 4*n)
		_ = tensor.Narrow(b, f, tensor.F32) // lengths match
		return b
	}
	for range l.KVHeads {
		x.q = append(x.q, floats(attend*l.GroupSize()*l.HeadDim()))
		x.k = append(x.k, floats(appended*l.HeadDim()))
		x.v = append(x.v, floats(appended*l.VDim()))
	}
	var appendID uint64
	if appended > 0 {
		appendID = r.Uint64() | 1
	}
	return &fanout.Step{
		Step: session.Step{
			AppendID: appendID, Session: id, Epoch: 1, Layer: uint32(layer), Length: length, Hashes: append([]uint64(nil), hashes...),
			Append: uint32(appended), Attend: uint32(attend), QueryPosition: length + uint64(appended) - uint64(attend),
			Encoding: headwaterv1.StorageType_STORAGE_TYPE_F32, Codec: headwaterv1.StepCodec_STEP_CODEC_RAW,
		},
		Input: x, Output: x,
	}, x
}

// plain is a session on plain holders.
type plain struct {
	*peers
	nodes   []*plainholder.Holder
	layers  []shard.LayerSpec
	holding *fanout.Holding
	id      [16]byte
	known   []*headwaterv1.LayerState // what its driver knows to be there
}

// start makes a session of layers whose groups go round the holders.
func start(t testing.TB, n int, layers ...shard.LayerSpec) *plain {
	t.Helper()
	p := &plain{peers: connect(t), layers: layers, id: [16]byte{7}}
	for l, layer := range layers {
		p.known = append(p.known, &headwaterv1.LayerState{Layer: uint32(l), Hashes: make([]uint64, layer.KVHeads)})
	}
	var holders []*fanout.Holder
	for i := range n {
		h := &plainholder.Holder{Name: fmt.Sprintf("w%d", i+1), Boot: [16]byte{byte(i + 1)}}
		o := &fanout.Holder{Name: h.Name, Boot: h.Boot[:], Address: serve(t, h.Register), Groups: make([][]int, len(layers))}
		for l, layer := range layers {
			for g := range layer.KVHeads {
				if g%n == i {
					o.Groups[l] = append(o.Groups[l], g)
				}
			}
		}
		p.nodes, holders = append(p.nodes, h), append(holders, o)
	}
	var err error
	if p.holding, err = fanout.NewHolding(layers, holders...); err != nil {
		t.Fatal(err)
	}
	if _, err := p.conns.Create(t.Context(), p.holding, &headwaterv1.CreateSessionRequest{Session: p.id[:], Epoch: p.epoch, Config: config(layers)}); err != nil {
		t.Fatal(err)
	}
	return p
}

// script is a holder that answers as it is told.
type script struct {
	session.Service
	headwaterv1.UnimplementedWorkerServiceServer
	step  func(*session.Request, *session.Response) error // an error ends the lane
	state func() *headwaterv1.SessionState
}

func (s *script) Register(r grpc.ServiceRegistrar) { session.Register(r, s) }

func (s *script) TruncateSession(context.Context, *headwaterv1.TruncateSessionRequest) (*headwaterv1.TruncateSessionResponse, error) {
	return &headwaterv1.TruncateSessionResponse{State: s.state()}, nil
}

func (s *script) DropSession(context.Context, *headwaterv1.DropSessionRequest) (*headwaterv1.DropSessionResponse, error) {
	return &headwaterv1.DropSessionResponse{}, nil
}

func (s *script) ExportSession(_ *headwaterv1.ExportSessionRequest, stream grpc.ServerStreamingServer[headwaterv1.ExportSessionResponse]) error {
	for _, g := range []uint32{0, 1, 0} {
		if err := stream.Send(&headwaterv1.ExportSessionResponse{Group: g, Count: 1}); err != nil {
			return err
		}
	}
	return nil
}

func (s *script) Lane(stream *session.ServerStream) error {
	for {
		var req session.Request
		err := stream.Recv(&req)
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		resp := session.Response{ID: req.ID}
		err = s.step(&req, &resp)
		req.Payload.Free()
		if err != nil {
			return err
		}
		if err := stream.Send(&resp); err != nil {
			return err
		}
	}
}

// place is where the session is.
func (p *plain) place() *fanout.Place { return fanout.NewPlace(p.id, p.holding) }

// at is the place of a holding, of the session that draw is given.
func at(h *fanout.Holding) *fanout.Place { return fanout.NewPlace([16]byte{1}, h) }

// alone is a holding of one scripted holder that has all groups.
func alone(t testing.TB, s *script, layers ...shard.LayerSpec) *fanout.Holding {
	t.Helper()
	h, err := fanout.NewHolding(layers, &fanout.Holder{Name: "odd", Address: serve(t, s.Register)})
	if err != nil {
		t.Fatal(err)
	}
	return h
}
