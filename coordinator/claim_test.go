package coordinator_test

import (
	"testing"

	"github.com/google/uuid"
	"google.golang.org/grpc"

	"headwater.example/client"
	"headwater.example/internal/rpc"
	headwaterv1 "headwater.example/proto/headwater/v1"
)

// TestASessionIsTakenAfterATakeThatReachedSomeHolders: a client's attach has come to some holders and not to all, in each possible
// way. The next one takes the session, by the coordinator and for a direct client.
func TestASessionIsTakenAfterATakeThatReachedSomeHolders(t *testing.T) {
	c := startCluster(t, clusterOptions{workers: workers(3)})
	var members []string
	for _, w := range c.workers {
		members = append(members, w.Name)
	}
	for reached := 1; reached < 7; reached++ {
		for _, direct := range []bool{false, true} {
			s, err := c.OpenSession(t.Context(), client.SessionOptions{Layers: []client.Layer{{Heads: 6, KVHeads: 3, HeadDim: 4}}})
			if err != nil {
				t.Fatal(err)
			}
			id, lane := s.ID(), uuid.New()
			for i, w := range c.workers {
				if reached>>i&1 == 0 {
					continue
				}
				conn, err := grpc.NewClient(w.Address, rpc.DialOptions()...)
				if err != nil {
					t.Fatal(err)
				}
				defer conn.Close()
				if _, err := headwaterv1.NewSessionServiceClient(conn).TakeSession(t.Context(), &headwaterv1.TakeSessionRequest{
					Session: id[:], Epoch: &headwaterv1.Epoch{Counter: 7, Lane: lane[:], At: 1, Holders: 3, Members: members},
				}); err != nil {
					t.Fatal(err)
				}
			}
			again, err := c.Attach(t.Context(), id, client.AttachOptions{Direct: direct})
			if err != nil {
				t.Fatalf("after a take at holders %03b, direct %v: %v", reached, direct, err)
			}
			if err := again.Step(t.Context(), 0, make([]float32, 24), make([]float32, 12), make([]float32, 12), make([]float32, 24), nil); err != nil {
				t.Fatalf("after a take at holders %03b, direct %v: %v", reached, direct, err)
			}
		}
	}
}
