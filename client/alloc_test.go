//go:build !race

package client_test

import (
	"cmp"
	"encoding/binary"
	"math"
	"math/rand/v2"
	"runtime"
	"slices"
	"testing"
	"time"

	"google.golang.org/grpc"

	"headwater.example/client"
	"headwater.example/internal/rpc"
	"headwater.example/internal/session"
	"headwater.example/internal/testkit/await"
	headwaterv1 "headwater.example/proto/headwater/v1"
	"headwater.example/tensor"
)

// TestStepsAllocateNothing counts the allocations of all goroutines, gRPC's and the holder's among them, and compares them
// with those of the same frames on a bare lane. The race detector makes pools forget, so it is not run with it.
func TestStepsAllocateNothing(t *testing.T) {
	for _, one := range layers {
		t.Run(one.Storage.String(), func(t *testing.T) { stepAllocatesNothing(t, one) })
	}
}

func stepAllocatesNothing(t *testing.T, one client.Layer) {
	c := start(t, 1)
	s := open(t, c.Client, client.SessionOptions{Layers: []client.Layer{one}, Direct: true, Codec: client.Raw})
	m, r := newModel([]client.Layer{one}), rand.New(rand.NewPCG(17, 18))
	step(t, s, m, r, 0, 1)
	next := project(r, one, 1)
	vDim := cmp.Or(one.VDim, one.HeadDim)
	context, lse := make([]float32, one.Heads*vDim), make([]float32, one.Heads)
	// What goes out: the queries, and the rows as they are stored, with the scales of int8.
	var out, scales []byte
	for _, x := range next.q {
		out = binary.LittleEndian.AppendUint32(out, math.Float32bits(x))
	}
	for _, rows := range [][]float32{next.k, next.v} {
		if one.Storage != tensor.I8 {
			narrow := make([]byte, len(rows)*one.Storage.Size())
			if err := tensor.Narrow(narrow, rows, one.Storage); err != nil {
				t.Fatal(err)
			}
			out = append(out, narrow...)
			continue
		}
		for row := range slices.Chunk(rows, len(rows)/one.KVHeads) {
			q := make([]int8, len(row))
			scales = binary.LittleEndian.AppendUint32(scales, math.Float32bits(tensor.QuantizeI8(q, row)))
			for _, x := range q {
				out = append(out, byte(x))
			}
		}
	}
	out = append(out, scales...)
	encoding := map[tensor.DType]headwaterv1.StorageType{
		tensor.F32: headwaterv1.StorageType_STORAGE_TYPE_F32, tensor.BF16: headwaterv1.StorageType_STORAGE_TYPE_BF16, tensor.I8: headwaterv1.StorageType_STORAGE_TYPE_I8,
	}[one.Storage]
	ctx := t.Context()

	// The bare lane drives a fork.
	state, err := client.Found(ctx, c.Client, s.ID())
	if err != nil {
		t.Fatal(err)
	}
	conn, err := grpc.NewClient(state.GetHolders()[0].GetAddress(), rpc.DialOptions()...)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	id, child := session.LaneID{1}, client.SessionID{2}
	parent := s.ID()
	_, err = headwaterv1.NewSessionServiceClient(conn).ForkSession(ctx, &headwaterv1.ForkSessionRequest{
		Session: parent[:], Epoch: state.GetEpoch(), Child: child[:], ChildEpoch: &headwaterv1.Epoch{Counter: 1, Lane: id[:]}, Expect: state.GetLayers(),
	})
	if err != nil {
		t.Fatal(err)
	}
	stream, err := session.Open(ctx, conn, id)
	if err != nil {
		t.Fatal(err)
	}
	request, response := new(session.Request), new(session.Response)
	hashes := append([]uint64(nil), state.GetLayers()[0].GetHashes()...)
	position, chain := uint64(0), uint64(0)
	bare := func() {
		request.ID++
		request.Step = session.Step{
			Session: child, Epoch: 1, Length: 1 + position, Hashes: hashes, Append: 1, Attend: 1, QueryPosition: 1 + position,
			Encoding: encoding, Codec: headwaterv1.StepCodec_STEP_CODEC_RAW, AppendID: request.ID, Chain: chain,
		}
		position++
		request.Payload = rpc.NewBuffer(len(out))
		copy(request.Payload.Bytes(), out)
		if err := stream.Send(request); err != nil {
			t.Fatal(err)
		}
		if err := stream.Recv(response); err != nil || response.Result.Err != nil {
			t.Fatal(err, response.Result.Err)
		}
		copy(hashes, response.Result.Hashes)
		chain = response.Result.Chain
		response.Payload.Free()
		response.Payload = nil
	}
	whole := func() {
		if err := s.Step(ctx, 0, next.q, next.k, next.v, context, lse); err != nil {
			t.Fatal(err)
		}
	}
	// Step by step, since the holder's memory grows with both sessions alike. What the process does otherwise comes in between now and then,
	// and not three times.
	for round := range 3 {
		base, got := perStep(t, bare, whole)
		t.Logf("%.2f allocations a step, %.2f of them on a bare lane", got, base)
		if got <= base+0.5 { // the holder's memory may grow at moments that differ
			return
		}
		if round == 2 {
			t.Errorf("a step allocates %.2f times, its frames alone %.2f times", got, base)
		}
	}
}

// perStep returns how often steps on a bare lane, and whole ones, allocate on average.
func perStep(t *testing.T, bare, whole func()) (base, got float64) {
	t.Helper()
	n := 0.0
	await.That(t, "enough steps that are quick", func() bool {
		a, b := allocations(bare), allocations(whole)
		for i := range a {
			if a[i] >= 0 && b[i] >= 0 {
				base, got, n = base+float64(a[i]), got+float64(b[i]), n+1
			}
		}
		return n >= measured/2
	})
	return base / n, got / n
}

// measured is how many steps are counted at once.
const measured = 200

// allocations returns how often each of so many calls allocates, in all goroutines. It is -1 for one that took so long, as on a busy machine,
// that it asked meanwhile whether its holder is there, which is a call of its own, and for the next one.
func allocations(do func()) (counts []int64) {
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(1))
	do()
	var before, after runtime.MemStats
	for slow := 0; len(counts) < measured; slow-- {
		began := time.Now()
		runtime.ReadMemStats(&before)
		do()
		runtime.ReadMemStats(&after)
		if time.Since(began) > rpc.SlowAfter/2 { // the watch begins by another clock
			slow = 2
		}
		n := int64(after.Mallocs - before.Mallocs)
		if slow > 0 {
			n = -1
		}
		counts = append(counts, n)
	}
	return counts
}
