package coordinator_test

import (
	"context"
	"fmt"
	"sync"
	"testing"

	"google.golang.org/grpc"

	"headwater.example/coordinator"
	"headwater.example/coordinator/sessions"
	"headwater.example/internal/rpc"
	"headwater.example/internal/session"
	"headwater.example/internal/testkit/await"
	headwaterv1 "headwater.example/proto/headwater/v1"
)

// TestClientsThatReadNothingAreHeldBack: what a coordinator, or a relay on a client's machine, has of their answers stays within
// its bound, whether one worker gives them or two, and all is given back when they are gone.
func TestClientsThatReadNothingAreHeldBack(t *testing.T) {
	const limit = 40 << 20
	t.Run("coordinator", func(t *testing.T) {
		c := startCluster(t, clusterOptions{workers: workers(2), config: coordinator.Config{Flight: limit}})
		readNothing(t, c.raw(t), 2, limit, c.coordinator.FlightState)
	})
	for n := 1; n <= 2; n++ {
		t.Run(fmt.Sprintf("relay to %d workers", n), func(t *testing.T) {
			c := startCluster(t, clusterOptions{workers: workers(n)})
			flight, d := sessions.NewFlight(limit, 0, 0, nil), sessions.NewDirect("the coordinator", c.raw(t), nil, 0, nil)
			ctx, cancel := context.WithCancel(context.Background())
			ran := make(chan struct{})
			go func() { defer close(ran); d.Run(ctx) }()
			t.Cleanup(func() {
				cancel()
				<-ran
				if err := d.Close(); err != nil {
					t.Error(err)
				}
			})
			conn, err := grpc.NewClient("passthrough:///"+serve(t, d.NewServer(flight)), rpc.DialOptions()...)
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { _ = conn.Close() }) // it is closed by then where the test went on
			readNothing(t, conn, n, limit, flight.State)
		})
	}
}

// readNothing asks for answers of 2 MiB each on four lanes of a connection to a relay of that many workers, and reads none.
func readNothing(t *testing.T, conn *grpc.ClientConn, workers int, limit int64, state func() rpc.FlightState) {
	const lanes, steps = 4, 40
	layer := &headwaterv1.SessionLayer{NHeads: 16, NKvHeads: 2, HeadDim: 4, VDim: 512, Storage: headwaterv1.StorageType_STORAGE_TYPE_F32, WindowLeft: -1, WindowRight: -1}
	var sends sync.WaitGroup
	for i := range lanes {
		id, laneID := [16]byte{byte(i)}, [16]byte{byte(i), 1}
		_, err := headwaterv1.NewSessionServiceClient(conn).CreateSession(t.Context(), &headwaterv1.CreateSessionRequest{
			Session: id[:], Epoch: &headwaterv1.Epoch{Counter: 1, Lane: laneID[:]}, Config: &headwaterv1.SessionConfig{Layers: []*headwaterv1.SessionLayer{layer}},
		})
		if err != nil {
			t.Fatal(err)
		}
		lane, err := session.Open(t.Context(), conn, laneID)
		if err != nil {
			t.Fatal(err)
		}
		sends.Go(func() {
			for step := range steps {
				r := session.Request{ID: uint64(step), Step: session.Step{
					Session: id, Epoch: 1, Hashes: make([]uint64, 2), Attend: 64, Codec: headwaterv1.StepCodec_STEP_CODEC_RAW,
				}, Payload: rpc.NewBuffer(4 * 16 * 64 * 4)}
				clear(r.Payload.Bytes())
				if lane.Send(&r) != nil {
					return
				}
			}
		})
	}
	// 160 answers of 2 MiB would be eight times the bound. A call of which nothing is read keeps one answer at least.
	await.That(t, "the answers that fill the room", func() bool { return state().Answers >= (lanes-1)*2<<20 })
	if s := state(); s.Peak > 2*limit {
		t.Errorf("%d workers: %+v, the bound is %d in each direction", workers, s, limit)
	}
	_ = conn.Close()
	await.All(t, &sends, "the end of sending on a closed connection")
	await.That(t, "the room of a closed connection", func() bool { s := state(); return s.Answers+s.Received == 0 })
}
