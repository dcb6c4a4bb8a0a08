//go:build !race

package client_test

import (
	"math/rand/v2"
	"testing"

	"google.golang.org/grpc"

	"headwater/client"
	"headwater/lane"
	headwaterv1 "headwater/proto/headwater/v1"
	"headwater/protocol"
)

// TestStepsAllocateNothing counts the allocations of all goroutines, gRPC's and the holder's among them, and compares them
// with those of the same frames on a bare lane. The race detector makes pools forget, so it is not run with it.
func TestStepsAllocateNothing(t *testing.T) {
	c := start(t, 1)
	one := layers[0]
	s := open(t, c.Client, client.SessionOptions{Layers: layers[:1], Direct: true, Codec: client.Raw})
	m, r := newModel(layers), rand.New(rand.NewPCG(17, 18))
	step(t, s, m, r, 0, 1)
	next := project(r, one, 1)
	context, lse := make([]float32, one.Heads*one.HeadDim), make([]float32, one.Heads)
	ctx := t.Context()

	// The bare lane drives a fork.
	state, err := c.FindSession(ctx, s.ID())
	if err != nil {
		t.Fatal(err)
	}
	conn, err := grpc.NewClient(state.GetHolders()[0].GetAddress(), protocol.DialOptions()...)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	id, child := lane.ID{1}, client.SessionID{2}
	parent := s.ID()
	_, err = headwaterv1.NewSessionServiceClient(conn).ForkSession(ctx, &headwaterv1.ForkSessionRequest{
		Session: parent[:], Epoch: state.GetEpoch(), Child: child[:], ChildEpoch: &headwaterv1.Epoch{Counter: 1, Lane: id[:]},
	})
	if err != nil {
		t.Fatal(err)
	}
	stream, err := lane.Open(ctx, conn, id)
	if err != nil {
		t.Fatal(err)
	}
	request, response := new(lane.Request), new(lane.Response)
	hashes := append([]uint64(nil), state.GetLayers()[0].GetHashes()...)
	position := uint64(0)
	bare := func() {
		request.ID++
		request.Step = lane.Step{
			Session: child, Epoch: 1, Length: 1 + position, Hashes: hashes, Append: 1, Attend: 1, QueryPosition: 1 + position,
			Encoding: headwaterv1.StorageType_STORAGE_TYPE_F32, Codec: headwaterv1.StepCodec_STEP_CODEC_RAW,
		}
		position++
		request.Payload = lane.NewBuffer(4 * (len(next.q) + len(next.k) + len(next.v)))
		all := request.Payload.Floats()
		n := copy(all, next.q)
		n += copy(all[n:], next.k)
		copy(all[n:], next.v)
		if err := stream.Send(request); err != nil {
			t.Fatal(err)
		}
		if err := stream.Recv(response); err != nil || response.Result.Err != nil {
			t.Fatal(err, response.Result.Err)
		}
		copy(hashes, response.Result.Hashes)
		response.Payload.Free()
		response.Payload = nil
	}
	whole := func() {
		if err := s.Step(ctx, 0, next.q, next.k, next.v, context, lse); err != nil {
			t.Fatal(err)
		}
	}
	const runs = 200
	base, got := testing.AllocsPerRun(runs, bare), testing.AllocsPerRun(runs, whole)
	t.Logf("%v allocations a step, %v of them on a bare lane", got, base)
	if got > base {
		t.Errorf("a step allocates %v times, its frames alone %v times", got, base)
	}
}
