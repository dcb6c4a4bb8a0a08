package coordinator_test

import (
	"runtime"
	"sync"
	"testing"

	"headwater.example/coordinator"
	"headwater.example/internal/rpc"
	"headwater.example/internal/session"
	headwaterv1 "headwater.example/proto/headwater/v1"
)

// TestClientsThatReadNothingAreHeldBack: what the coordinator has of their answers, which two workers give, stays within its
// bound, and all is given back when they are gone.
func TestClientsThatReadNothingAreHeldBack(t *testing.T) {
	const lanes, steps, limit = 4, 40, 40 << 20
	for _, n := range []int{2} {
		c := startCluster(t, clusterOptions{workers: workers(n), config: coordinator.Config{Flight: limit}})
		layer := &headwaterv1.SessionLayer{NHeads: 16, NKvHeads: 2, HeadDim: 4, VDim: 512, Storage: headwaterv1.StorageType_STORAGE_TYPE_F32, WindowLeft: -1, WindowRight: -1}
		var sends sync.WaitGroup
		var conns []interface{ Close() error }
		for i := range lanes {
			conn, id, laneID := c.raw(t), [16]byte{byte(i)}, [16]byte{byte(i), 1}
			conns = append(conns, conn)
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
		for c.coordinator.FlightState().Answers < (lanes-1)*2<<20 {
			runtime.Gosched()
		}
		if s := c.coordinator.FlightState(); s.Peak > 2*limit {
			t.Errorf("%d workers: %+v, the bound is %d in each direction", n, s, limit)
		}
		for _, conn := range conns {
			_ = conn.Close()
		}
		sends.Wait()
		for s := c.coordinator.FlightState(); s.Answers+s.Received > 0; s = c.coordinator.FlightState() {
			runtime.Gosched()
		}
		c.stop()
	}
}
