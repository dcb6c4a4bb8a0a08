package worker

import (
	"context"
	"math/rand/v2"
	"net"
	"os"
	"strconv"
	"testing"

	"github.com/google/uuid"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/grpc/test/bufconn"
	"google.golang.org/protobuf/proto"

	"headwater.example/internal/rpc"
	"headwater.example/internal/session"
	headwaterv1 "headwater.example/proto/headwater/v1"
)

// rawBytes sends and receives messages as they are.
type rawBytes struct{}

func (rawBytes) Name() string { return "proto" }

func (rawBytes) Marshal(v any) ([]byte, error) { return *v.(*[]byte), nil }

func (rawBytes) Unmarshal(b []byte, v any) error {
	*v.(*[]byte) = append([]byte(nil), b...)
	return nil
}

// rawMethods are all that a worker serves.
var rawMethods = []string{
	headwaterv1.WorkerService_Describe_FullMethodName, headwaterv1.WorkerService_Run_FullMethodName,
	headwaterv1.SessionService_CreateSession_FullMethodName, headwaterv1.SessionService_TakeSession_FullMethodName,
	headwaterv1.SessionService_ForkSession_FullMethodName, headwaterv1.SessionService_TruncateSession_FullMethodName,
	headwaterv1.SessionService_PinSession_FullMethodName, headwaterv1.SessionService_DropSession_FullMethodName,
	headwaterv1.SessionService_ListSessions_FullMethodName, headwaterv1.SessionService_ExportSession_FullMethodName,
	headwaterv1.SessionService_Lane_FullMethodName,
}

// rawWorker is a worker whose messages are counted, on a connection.
func rawWorker(t testing.TB) *grpc.ClientConn {
	t.Helper()
	w, err := New(Config{Name: "w1", Boot: uuid.UUID{1}, Weight: 1, Budget: 64 << 20, Threads: 1})
	if err != nil {
		t.Fatal(err)
	}
	listener := bufconn.Listen(1 << 16)
	server := grpc.NewServer(w.ServerOptions()...)
	w.Register(rpc.Registrar(server))
	served := make(chan struct{})
	go func() { defer close(served); _ = server.Serve(listener) }()
	conn, err := grpc.NewClient("passthrough:///memory", append(rpc.DialOptions(), grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return listener.DialContext(ctx) }))...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		conn.Close()
		server.Stop()
		<-served
		if err := w.Drain(context.Background()); err != nil {
			t.Error(err)
		}
		w.Close()
		if used := w.machine.Budget.Used(); used != 0 {
			t.Errorf("%d bytes are in use in the end", used)
		}
	})
	return conn
}

// sendRaw sends one message on a call of its own, and fails if that ends by the worker's own fault.
func sendRaw(t testing.TB, conn *grpc.ClientConn, method int, message []byte) {
	t.Helper()
	name := rawMethods[method%len(rawMethods)]
	ctx, cancel := context.WithCancel(metadata.AppendToOutgoingContext(t.Context(), session.MetadataKey, session.LaneID{1}.String()))
	defer cancel()
	stream, err := conn.NewStream(ctx, &grpc.StreamDesc{ServerStreams: true, ClientStreams: true}, name, grpc.ForceCodec(rawBytes{}))
	if err != nil {
		t.Fatal(err)
	}
	err = stream.SendMsg(&message)
	if err == nil {
		_ = stream.CloseSend() // The answer says how it went.
		var answer []byte
		for err == nil {
			err = stream.RecvMsg(&answer)
		}
	}
	if code := status.Code(err); code == codes.Internal || code == codes.Unavailable {
		t.Fatalf("%s of %x ended with %v", name, message, err)
	}
}

// rawSeeds are messages that are nearly right, so that what is made of them gets far.
func rawSeeds(t testing.TB) [][]byte {
	t.Helper()
	id := make([]byte, 16)
	epoch := &headwaterv1.Epoch{Counter: 1, Lane: append([]byte{1}, make([]byte, 15)...)}
	layer := &headwaterv1.SessionLayer{NHeads: 2, NKvHeads: 1, HeadDim: 4, VDim: 4, Storage: headwaterv1.StorageType_STORAGE_TYPE_F32, Causal: true, WindowLeft: -1, WindowRight: -1}
	problem := &headwaterv1.Problem{NHeads: 2, NKvHeads: 1, HeadDim: 4, VDim: 4, Tokens: 3, KvLen: 3, Storage: headwaterv1.StorageType_STORAGE_TYPE_F32, WindowLeft: -1, WindowRight: -1, Scale: 1}
	var seeds [][]byte
	for _, m := range []proto.Message{
		&headwaterv1.CreateSessionRequest{Session: id, Epoch: epoch, Config: &headwaterv1.SessionConfig{Layers: []*headwaterv1.SessionLayer{layer}}, Held: []*headwaterv1.HeldLayer{{Groups: []uint32{0}}}},
		&headwaterv1.TakeSessionRequest{Session: id, Epoch: epoch, Expect: []*headwaterv1.LayerState{{Hashes: []uint64{0}}}},
		&headwaterv1.ForkSessionRequest{Session: id, Epoch: epoch, Child: append([]byte{1}, id[1:]...), ChildEpoch: epoch},
		&headwaterv1.TruncateSessionRequest{Session: id, Epoch: epoch, Lengths: []uint64{0}},
		&headwaterv1.ListSessionsRequest{Sessions: [][]byte{id, id}, Limit: 3},
		&headwaterv1.ExportSessionRequest{Session: id, Count: 1, Tokens: true},
		&headwaterv1.LaneRequest{Id: 1, Step: &headwaterv1.Step{Session: id, Epoch: 1, Hashes: []uint64{0}, Append: 1, Attend: 1, Encoding: 1, Codec: 1}, Payload: make([]byte, 4*(8+4+4))},
		&headwaterv1.LaneRequest{Id: 1, Step: &headwaterv1.Step{Session: id, Epoch: 1, Hashes: []uint64{0}, Attend: 1, Codec: 1}},
		&headwaterv1.RunRequest{Request: &headwaterv1.RunRequest_Open{Open: &headwaterv1.Open{JobId: "x", Codec: 1, Problems: []*headwaterv1.Problem{problem}}}},
		&headwaterv1.RunRequest{Request: &headwaterv1.RunRequest_ShardOpen{ShardOpen: &headwaterv1.ShardOpen{Epoch: 1}}},
	} {
		b, err := proto.Marshal(m)
		if err != nil {
			t.Fatal(err)
		}
		seeds = append(seeds, b)
	}
	return seeds
}

// TestRawMessages sends messages of which some bytes are changed to all methods. Nothing crashes, hangs, or stays in use.
func TestRawMessages(t *testing.T) {
	conn, seeds, rng := rawWorker(t), rawSeeds(t), rand.New(rand.NewPCG(27, 1))
	rounds := 3000
	if n, err := strconv.Atoi(os.Getenv("HEADWATER_RAW_MESSAGES")); err == nil { // make fuzz asks for more
		rounds = (n + 1) / 2
	}
	for i := range rounds {
		m := append([]byte(nil), seeds[rng.IntN(len(seeds))]...)
		for range rng.IntN(4) {
			m[rng.IntN(len(m))] = byte(rng.Uint32())
		}
		sendRaw(t, conn, i, m[:rng.IntN(len(m)+1)])
		sendRaw(t, conn, i, m)
	}
	t.Logf("raw messages: %d", 2*rounds)
}

func FuzzRawMessages(f *testing.F) {
	conn := rawWorker(f)
	for method := range rawMethods {
		for _, seed := range rawSeeds(f) {
			f.Add(method, seed)
		}
	}
	f.Fuzz(func(t *testing.T, method int, message []byte) { sendRaw(t, conn, method&0xffff, message) })
}
