package coordinator_test

import (
	"errors"
	"math/rand/v2"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"headwater.example/client"
	"headwater.example/coordinator"
	"headwater.example/internal/observe"
	headwaterv1 "headwater.example/proto/headwater/v1"
)

// TestAnotherSideOfASessionIsShownAndDropped: of a session that went on twice, the one that has it shows what the other side has, the count of
// such sessions is there, and that side can be dropped, and nothing else in its place.
func TestAnotherSideOfASessionIsShownAndDropped(t *testing.T) {
	counts := observe.NewCoordinator()
	c := startCluster(t, clusterOptions{workers: workers(2), config: coordinator.Config{Replicas: 1, Observe: counts}})
	layer := client.Layer{Heads: 4, KVHeads: 2, HeadDim: 16}
	s, err := c.OpenSession(t.Context(), client.SessionOptions{Layers: []client.Layer{layer}})
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Do(t.Context(), drawn(rand.New(rand.NewPCG(1, 2)), layer, 0, 3, 1)); err != nil {
		t.Fatal(err)
	}
	id := s.ID()
	for i, w := range c.workers { // each is taken by a client that reaches it alone
		conn, err := grpc.NewClient(w.Address, grpc.WithTransportCredentials(insecure.NewCredentials()))
		if err != nil {
			t.Fatal(err)
		}
		lane := make([]byte, 16)
		lane[0] = byte(1 + i)
		_, err = headwaterv1.NewSessionServiceClient(conn).TakeSession(t.Context(), &headwaterv1.TakeSessionRequest{
			Session: id[:], Epoch: &headwaterv1.Epoch{Counter: uint64(1<<30 + i), Lane: lane, Holders: 1, Members: []string{w.Name}},
		})
		if err := errors.Join(err, conn.Close()); err != nil {
			t.Fatal(err)
		}
	}
	c.view.set(c.workers[0].Member, c.workers[1].Member) // so that the coordinator looks at all sessions
	for said := false; !said; {
		events, changed := counts.EventsAfter(0)
		for _, e := range events {
			said = said || e.What == observe.GoesOnTwice
		}
		if !said {
			<-changed
		}
	}
	copies, err := c.Copies(t.Context())
	if err != nil || copies.TwiceSessions != 1 {
		t.Errorf("%+v, %v", copies, err)
	}
	found, err := c.FindSession(t.Context(), id)
	if err != nil {
		t.Fatal(err)
	}
	if len(found.OtherSides) != 1 || found.OtherSides[0].Worker != "w0" || found.OtherSides[0].Address != c.workers[0].Address || found.OtherSides[0].Positions != 3 || found.OtherSides[0].Epoch != 1<<30 {
		t.Fatalf("the other sides are %+v", found.OtherSides)
	}
	for _, worker := range []string{"w1", "w9"} {
		if err := c.DropSide(t.Context(), id, worker); !errors.Is(err, client.ErrRefused) {
			t.Errorf("%s, which has no other side: %v", worker, err)
		}
	}
	if err := c.DropSide(t.Context(), id, "w0"); err != nil {
		t.Fatal(err)
	}
	if found, err = c.FindSession(t.Context(), id); err != nil || len(found.OtherSides) > 0 || found.Layers[0].Length != 3 {
		t.Errorf("afterwards: %+v, %v", found, err)
	}
}
