package coordinator_test

import (
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"strconv"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/mem"
	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/proto"

	"headwater.example/internal/layerproto"
	"headwater.example/internal/rpc"
	"headwater.example/internal/session"
	headwaterv1 "headwater.example/proto/headwater/v1"
)

// raw is a connection to the cluster's coordinator that says what a well-behaved client never does.
func (c *cluster) raw(t *testing.T) *grpc.ClientConn {
	t.Helper()
	conn, err := grpc.NewClient("passthrough:///"+c.Client.Address(), rpc.DialOptions()...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	return conn
}

var rawLayers = []*headwaterv1.SessionLayer{
	{NHeads: 4, NKvHeads: 2, HeadDim: 4, VDim: 2, Storage: headwaterv1.StorageType_STORAGE_TYPE_F32, WindowLeft: -1, WindowRight: -1},
	{NHeads: 2, NKvHeads: 1, HeadDim: 8, VDim: 8, Storage: headwaterv1.StorageType_STORAGE_TYPE_I8, WindowLeft: 3, WindowRight: -1},
}

// create makes a session of rawLayers.
func create(t *testing.T, conn *grpc.ClientConn, id, lane [16]byte) {
	t.Helper()
	_, err := headwaterv1.NewSessionServiceClient(conn).CreateSession(t.Context(), &headwaterv1.CreateSessionRequest{
		Session: id[:], Epoch: &headwaterv1.Epoch{Counter: 1, Lane: lane[:]}, Config: &headwaterv1.SessionConfig{Layers: rawLayers},
	})
	if err != nil {
		t.Fatal(err)
	}
}

// TestStepWithoutPayloadIsRefused, whether one worker holds its layer whole or several share it.
func TestStepWithoutPayloadIsRefused(t *testing.T) {
	for _, n := range []int{1, 2} {
		conn := startCluster(t, clusterOptions{workers: workers(n)}).raw(t)
		id, laneID := [16]byte{1}, [16]byte{2}
		create(t, conn, id, laneID)
		lane, err := session.Open(t.Context(), conn, laneID)
		if err != nil {
			t.Fatal(err)
		}
		for layer, shape := range rawLayers {
			step := session.Step{
				Session: id, Epoch: 1, Layer: uint32(layer), Hashes: make([]uint64, shape.GetNKvHeads()), Append: 1, Attend: 1,
				Encoding: headwaterv1.StorageType_STORAGE_TYPE_F32, Codec: headwaterv1.StepCodec_STEP_CODEC_RAW,
			}
			if err := lane.Send(&session.Request{ID: uint64(layer + 1), Step: step}); err != nil {
				t.Fatal(err)
			}
			var response session.Response
			if err := lane.Recv(&response); err != nil {
				t.Fatalf("%d workers: the lane ended: %v", n, err)
			}
			if e := response.Result.Err; e == nil || e.Reason() != session.Invalid {
				t.Errorf("%d workers, layer %d: %v", n, layer, e)
			}
		}
		if err := lane.CloseSend(); err != nil {
			t.Fatal(err)
		}
		if err := lane.Recv(new(session.Response)); err != io.EOF {
			t.Error(err)
		}
	}
}

// rawMessages is how many messages a test sends: n, or what make fuzz asks for.
func rawMessages(n int) int {
	if asked, err := strconv.Atoi(os.Getenv("HEADWATER_RAW_MESSAGES")); err == nil {
		return asked
	}
	return n
}

// rawStep draws a step that may be right, and mostly is not in a field or two.
func rawStep(rng *rand.Rand, id [16]byte, lengths []uint64) session.Request {
	layer := rng.IntN(len(rawLayers))
	shape := rawLayers[layer]
	s := session.Step{
		Session: id, Epoch: 1, Layer: uint32(layer), Length: lengths[layer], Hashes: make([]uint64, shape.GetNKvHeads()),
		Append: uint32(rng.IntN(3)), Attend: uint32(rng.IntN(3)), Encoding: headwaterv1.StorageType_STORAGE_TYPE_F32,
		Codec: headwaterv1.StepCodec(rng.IntN(7)), AppendID: uint64(rng.IntN(10)),
	}
	odd := func() uint32 {
		return []uint32{0, 1, 2, 63, 64, 4096, 4097, 1 << 16, 1<<16 + 1, 1 << 31, 1<<32 - 1}[rng.IntN(11)]
	}
	for range rng.IntN(3) {
		switch rng.IntN(13) {
		case 0:
			s.Layer = odd()
		case 1:
			s.Append = odd()
		case 2:
			s.Attend = odd()
		case 3:
			s.Encoding = headwaterv1.StorageType(rng.IntN(8))
		case 4:
			s.Hashes = make([]uint64, rng.IntN(5))
		case 5:
			s.Tree = odd()
		case 6:
			s.TreeMask = make([]byte, rng.IntN(20))
		case 7:
			s.Tokens = make([]uint32, rng.IntN(4))
		case 8:
			s.QueryPosition = uint64(odd()) << rng.IntN(33)
		case 9:
			s.Length = uint64(odd()) << rng.IntN(33)
		case 10:
			s.Session[0]++
		case 11:
			s.Codec = headwaterv1.StepCodec(int32(odd()))
		case 12:
			s.Epoch, s.Truncations = uint64(odd()), uint64(odd())
		}
	}
	r := session.Request{Step: s}
	spec, err := layerproto.ReadSessionLayers(rawLayers)
	if err != nil {
		panic(err)
	}
	if n := s.Sizes(&spec[layer], nil).Total(); n < 1<<16 && rng.IntN(4) > 0 {
		r.Payload = rpc.NewBuffer(int(n))
		clear(r.Payload.Bytes())
	} else if rng.IntN(2) > 0 {
		r.Payload = rpc.NewBuffer(1 + rng.IntN(200))
		clear(r.Payload.Bytes())
	}
	return r
}

// TestRawStepsEndNothing: whatever a lane is sent, each step is answered, no handler panics, and the cluster serves on.
func TestRawStepsEndNothing(t *testing.T) {
	steps := 3000
	if testing.Short() {
		steps = 300
	}
	steps = rawMessages(steps)
	for _, n := range []int{1, 3} {
		t.Run(fmt.Sprint(n, " workers"), func(t *testing.T) {
			conn, before := startCluster(t, clusterOptions{workers: workers(n)}).raw(t), rpc.Panics()
			id, laneID := [16]byte{byte(n)}, [16]byte{2}
			create(t, conn, id, laneID)
			lane, err := session.Open(t.Context(), conn, laneID)
			if err != nil {
				t.Fatal(err)
			}
			rng, lengths := rand.New(rand.NewPCG(uint64(n), 27)), make([]uint64, len(rawLayers))
			for i := range steps {
				r := rawStep(rng, id, lengths)
				r.ID = uint64(i)
				if err := lane.Send(&r); err != nil {
					t.Fatalf("step %d: %v", i, err)
				}
				var response session.Response
				if err := lane.Recv(&response); err != nil {
					t.Fatalf("step %d, %+v: the lane ended: %v", i, r.Step, err)
				}
				response.Payload.Free()
			}
			t.Logf("raw messages: %d", steps)
			if rpc.Panics() != before {
				t.Errorf("%d handlers panicked", rpc.Panics()-before)
			}
			create(t, conn, [16]byte{9}, laneID)
		})
	}
}

// TestRawMessagesEndNothing: any bytes on any call of the coordinator's services are answered, and no handler panics.
func TestRawMessagesEndNothing(t *testing.T) {
	rounds := 2000
	if testing.Short() {
		rounds = 200
	}
	rounds, sent := rawMessages(rounds), 0
	conn, before := startCluster(t, clusterOptions{workers: workers(2)}).raw(t), rpc.Panics()
	rng := rand.New(rand.NewPCG(12, 27))
	create(t, conn, [16]byte{1}, [16]byte{2})
	var seeds [][]byte
	for _, m := range []proto.Message{
		&headwaterv1.CreateSessionRequest{Session: make([]byte, 16), Epoch: &headwaterv1.Epoch{Counter: 2, Lane: make([]byte, 16)}, Config: &headwaterv1.SessionConfig{Layers: rawLayers}, Tokens: make([]uint32, 70), Workers: 2},
		&headwaterv1.ListSessionsRequest{Sessions: [][]byte{{1, 15: 0}, {2}}, Limit: 3},
		&headwaterv1.TakeSessionRequest{Session: []byte{1, 15: 0}, Epoch: &headwaterv1.Epoch{Counter: 3, Lane: make([]byte, 16)}, Expect: []*headwaterv1.LayerState{{Layer: 1, Length: 5, Hashes: []uint64{1, 2}}}},
		&headwaterv1.SubmitRequest{Request: &headwaterv1.SubmitRequest_Begin{Begin: &headwaterv1.SubmitBegin{Header: []byte(`{"q":{"dtype":"F32","shape":[1,2,4],"data_offsets":[0,32]}}`), SizeBytes: 1 << 40, Sha256: make([]byte, 32), Codec: 1}}},
		&headwaterv1.TruncateSessionRequest{Session: []byte{1, 15: 0}, Epoch: &headwaterv1.Epoch{Counter: 1, Lane: []byte{2, 15: 0}}, Id: 4, Count: 9, Lengths: []uint64{1, 2}, Expect: []*headwaterv1.LayerState{
			{Hashes: make([]uint64, rawLayers[0].GetNKvHeads())}, {Layer: 1, Hashes: make([]uint64, rawLayers[1].GetNKvHeads()), AppendId: 3},
		}},
		&headwaterv1.ForkSessionRequest{Session: []byte{1, 15: 0}, Epoch: &headwaterv1.Epoch{Counter: 1, Lane: []byte{2, 15: 0}}, Child: []byte{7, 15: 0}, ChildEpoch: &headwaterv1.Epoch{Counter: 1, Lane: make([]byte, 16)}, Expect: []*headwaterv1.LayerState{
			{Hashes: make([]uint64, rawLayers[0].GetNKvHeads()), Before: &headwaterv1.LayerState{}}, {Layer: 1, Length: 1 << 63, Hashes: make([]uint64, rawLayers[1].GetNKvHeads())},
		}},
		&headwaterv1.GetJobRequest{Id: "x"},
	} {
		b, err := proto.Marshal(m)
		if err != nil {
			t.Fatal(err)
		}
		seeds = append(seeds, b)
	}
	var methods []string
	for _, service := range []grpc.ServiceDesc{headwaterv1.CoordinatorService_ServiceDesc, headwaterv1.SessionService_ServiceDesc} {
		for _, m := range service.Methods {
			methods = append(methods, "/"+service.ServiceName+"/"+m.MethodName)
		}
		for _, s := range service.Streams {
			methods = append(methods, "/"+service.ServiceName+"/"+s.StreamName)
		}
	}
	for range rounds {
		ctx, cancel := context.WithCancel(metadata.AppendToOutgoingContext(t.Context(), session.MetadataKey, session.LaneID{3}.String()))
		stream, err := conn.NewStream(ctx, &grpc.StreamDesc{ClientStreams: true, ServerStreams: true}, methods[rng.IntN(len(methods))], grpc.ForceCodecV2(anyBytes{}))
		if err != nil {
			t.Fatal(err)
		}
		for range 1 + rng.IntN(2) {
			m := append([]byte(nil), seeds[rng.IntN(len(seeds))]...)
			for range rng.IntN(4) {
				m[rng.IntN(len(m))] = byte(rng.Uint32())
			}
			_ = stream.SendMsg(m) // Recv says why the call ended
			sent++
		}
		_ = stream.CloseSend()
		for answers := 0; ; answers++ {
			var m []byte
			if err := stream.RecvMsg(&m); err != nil || answers > 3 {
				break
			}
		}
		cancel()
	}
	t.Logf("raw messages: %d", sent)
	if rpc.Panics() != before {
		t.Errorf("%d handlers panicked", rpc.Panics()-before)
	}
	create(t, conn, [16]byte{9}, [16]byte{2})
}

// anyBytes is a codec that sends bytes as they are.
type anyBytes struct{}

func (anyBytes) Name() string { return "proto" }

func (anyBytes) Marshal(v any) (mem.BufferSlice, error) {
	return mem.BufferSlice{mem.SliceBuffer(v.([]byte))}, nil
}

func (anyBytes) Unmarshal(data mem.BufferSlice, v any) error {
	*v.(*[]byte) = data.Materialize()
	return nil
}
