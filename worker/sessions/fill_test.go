package sessions

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"slices"
	"strings"
	"sync/atomic"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"pgregory.net/rapid"

	"headwater.example/attention"
	"headwater.example/internal/kvcache"
	"headwater.example/internal/layerproto"
	"headwater.example/internal/membership"
	"headwater.example/internal/rpc"
	"headwater.example/internal/session"
	"headwater.example/internal/testkit/await"
	headwaterv1 "headwater.example/proto/headwater/v1"
	"headwater.example/shard"
	"headwater.example/worker/internal/machine"
	"headwater.example/worker/internal/workertest"
)

// original is a session of one layer as a map of slices.
type original struct {
	id    kvcache.SessionID
	layer *headwaterv1.SessionLayer
	spec  *shard.LayerSpec
	n     int
	rows  []attention.Rows // by shard, those of the positions that it stores
}

func drawOriginal(t *rapid.T, id uint64) *original {
	o := &original{layer: &headwaterv1.SessionLayer{
		NHeads: 4, NKvHeads: uint32(rapid.SampledFrom([]int{1, 2, 4}).Draw(t, "groups")), HeadDim: 8, VDim: 6,
		Storage: headwaterv1.StorageType(rapid.IntRange(1, 4).Draw(t, "storage")), Causal: true, WindowLeft: -1, WindowRight: -1,
	}}
	o.n = rapid.IntRange(1, 300).Draw(t, "positions")
	if rapid.IntRange(0, 2).Draw(t, "long") == 0 {
		o.n = rapid.IntRange(300, 2000).Draw(t, "positions of a long one") // of which fields are large
	}
	if rapid.IntRange(0, 4).Draw(t, "striped") == 0 {
		o.layer.Stripes, o.n = 2, rapid.IntRange(1, 2*attention.SplitLen+100).Draw(t, "positions of stripes")
	}
	specs, err := layerproto.ReadSessionLayers([]*headwaterv1.SessionLayer{o.layer})
	if err != nil {
		t.Fatal(err)
	}
	copy(o.id[:], fmt.Sprintf("original%08d", id))
	o.spec = &specs[0]
	rng := rand.New(rand.NewPCG(id, 1))
	for g := range o.spec.Shards() {
		var rows attention.Rows
		n := o.spec.Stored(g, 0, o.n)
		if n > 0 {
			rows.K, rows.KScale = workertest.Store(t, workertest.Normals(rng, n*8), n, o.spec.Storage())
			rows.V, rows.VScale = workertest.Store(t, workertest.Normals(rng, n*6), n, o.spec.Storage())
		}
		o.rows = append(o.rows, rows)
	}
	return o
}

// hold makes a worker hold some of its shards, under an epoch's counter.
func (o *original) hold(t *rapid.T, p *place, counter uint64, held []shard.Group) {
	if len(held) == 0 {
		return
	}
	epoch := kvcache.Epoch{Counter: counter, Lane: kvcache.LaneID{1}}
	config := kvcache.Config{Layers: []shard.LayerSpec{*o.spec}}
	if _, err := p.m.Store.Create(kvcache.CreateRequest{Session: o.id, Epoch: epoch, Config: config, Held: []kvcache.HeldLayer{{Groups: held}}}); err != nil {
		t.Fatal(err)
	}
	a := kvcache.Append{Session: o.id, Epoch: epoch, Hashes: make([]uint64, len(held)), ID: 1, Positions: o.n, Encoding: o.spec.Storage()}
	for _, g := range held {
		rows := o.rows[g]
		a.K, a.V = append(a.K, rows.K...), append(a.V, rows.V...)
		a.KScale, a.VScale = append(a.KScale, floatBytes(rows.KScale)...), append(a.VScale, floatBytes(rows.VScale)...)
	}
	if _, _, err := p.m.Store.Append(context.Background(), &a, nil); err != nil {
		t.Fatal(err)
	}
}

// has holds what a worker has of a shard against the first n positions, and returns their hash.
func (o *original) has(t *rapid.T, p *place, id kvcache.SessionID, g, n int) uint64 {
	var chain kvcache.Hasher
	o.spec.Runs(g, 0, n, func(at, count, row int) bool {
		want := workertest.Cut(o.rows[g], o.spec.Layout, row, row+count)
		chain.Pass(uint64(at))
		if err := chain.Update(want, count, o.spec.Layout); err != nil {
			t.Fatal(err)
		}
		got := attention.Rows{K: make([]byte, len(want.K)), V: make([]byte, len(want.V))}
		if want.KScale != nil {
			got.KScale, got.VScale = make([]float32, count), make([]float32, count)
		}
		if _, _, err := p.m.Store.Export(id, 0, shard.Group(g), at, count, got); err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(got.K, want.K) || !bytes.Equal(got.V, want.V) || !slices.Equal(got.KScale, want.KScale) || !slices.Equal(got.VScale, want.VScale) {
			t.Fatalf("shard %d has other positions than those from %d on", g, at)
		}
		return true
	})
	return chain.Receipt().Hash
}

// fault is what a source does to the answers of its exports.
type fault struct {
	what  string
	after atomic.Int64 // messages that are as they should be
}

func (f *fault) do(m *headwaterv1.ExportSessionResponse) (drop bool, err error) {
	if f.after.Add(-1) != -1 {
		return false, nil
	}
	switch f.what {
	case "a bit of k":
		m.K = slices.Clone(m.GetK())
		m.K[len(m.K)-1] ^= 1
	case "a bit of v":
		m.V = slices.Clone(m.GetV())
		m.V[0] ^= 1
	case "another hash":
		m.HashAfter++
	case "another group":
		m.Group ^= 1
	case "a position more":
		m.Count++
	case "positions elsewhere":
		m.Start += 1 << 40
	case "rows that are short":
		m.V = m.V[:len(m.V)-1]
	case "nothing":
		return true, nil
	case "the end":
		return false, status.Error(codes.Unavailable, "the worker ends")
	}
	return false, nil
}

// faulty puts the fault that at points to into what a worker exports.
func faulty(at *atomic.Pointer[fault]) grpc.ServerOption {
	return grpc.ChainStreamInterceptor(func(srv any, s grpc.ServerStream, _ *grpc.StreamServerInfo, handle grpc.StreamHandler) error {
		return handle(srv, &faultyStream{s, at.Load()})
	})
}

type faultyStream struct {
	grpc.ServerStream
	fault *fault
}

func (s *faultyStream) SendMsg(m any) error {
	if bulk, ok := m.(*rpc.BulkMessage); ok && s.fault != nil {
		if export, ok := bulk.Message.(*headwaterv1.ExportSessionResponse); ok {
			switch drop, err := s.fault.do(export); {
			case err != nil:
				return err
			case drop:
				return nil
			}
		}
	}
	return s.ServerStream.SendMsg(m)
}

// neighbours are three workers that know each other: the first is filled, the others are sources.
func neighbours(t *testing.T) (all []*place, at *atomic.Pointer[fault]) {
	at = new(atomic.Pointer[fault])
	var members []membership.Member
	for i := range 3 {
		p := serveAmong(t, machine.Config{Name: fmt.Sprintf("w%d", i)}, func() []membership.Member { return members }, faulty(at))
		listener, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		served := make(chan error, 1)
		go func() { served <- p.server.Serve(listener) }()
		t.Cleanup(func() {
			p.server.Stop()
			if err := await.One(t, served, "the end of the server"); err != nil {
				t.Error(err)
			}
		})
		all, members = append(all, p), append(members, membership.Member{Name: p.m.Name, Role: membership.RoleWorker, Address: listener.Addr().String()})
	}
	return all, at
}

// filling is a call of FillSession with what it fills.
type filling struct {
	headwaterv1.FillService_FillSessionClient
	*original
	cancel context.CancelFunc
	to     kvcache.SessionID
	from   *headwaterv1.FillFrom
}

// startFilling begins to fill a worker with all shards of a session that several have.
func startFilling(t *rapid.T, o *original, all []*place, owners [][]shard.Group) *filling {
	f := &filling{original: o, to: o.id}
	copy(f.to[:], "filled..")
	lane := kvcache.LaneID{9}
	every := make([]shard.Group, o.spec.Shards())
	for g := range every {
		every[g] = shard.Group(g)
	}
	_, err := all[0].m.Store.Create(kvcache.CreateRequest{
		Session: f.to, Epoch: kvcache.Epoch{Counter: 1, Lane: lane}, Config: kvcache.Config{Layers: []shard.LayerSpec{*o.spec}},
		Held: []kvcache.HeldLayer{{Groups: every}}, Begin: []kvcache.BeginLayer{{Length: uint64(o.n)}},
	})
	if err != nil {
		t.Fatal(err)
	}
	f.from = &headwaterv1.FillFrom{
		Session: o.id[:], Epoch: &headwaterv1.Epoch{Counter: 5, Lane: (&kvcache.LaneID{1})[:]}, Filled: f.to[:], FilledEpoch: &headwaterv1.Epoch{Counter: 1, Lane: lane[:]},
	}
	for i, held := range owners {
		layer := &headwaterv1.HeldLayer{}
		for _, g := range held {
			if o.spec.Striped() {
				layer.Shards = append(layer.Shards, uint32(g))
			} else {
				layer.Groups = append(layer.Groups, uint32(g))
			}
		}
		if len(held) > 0 {
			f.from.Sources = append(f.from.Sources, &headwaterv1.FillSource{Worker: all[i].m.Name, Layers: []*headwaterv1.HeldLayer{layer}})
		}
	}
	ctx, cancel := context.WithCancel(context.Background())
	f.cancel = cancel
	if f.FillService_FillSessionClient, err = headwaterv1.NewFillServiceClient(all[0].conn).FillSession(ctx); err != nil {
		t.Fatal(err)
	}
	return f
}

// send sends who the sources are, and blocks of these lengths. The answers say what became of them.
func (f *filling) send(blocks []int) {
	_ = f.Send(&headwaterv1.FillSessionRequest{Message: &headwaterv1.FillSessionRequest_From{From: f.from}})
	start := 0
	for i, n := range blocks {
		_ = f.Send(&headwaterv1.FillSessionRequest{Message: &headwaterv1.FillSessionRequest_Block{Block: &headwaterv1.FillBlock{
			Start: uint64(start), Count: uint64(n), AppendId: uint64(i + 1),
		}}})
		start += n
	}
	_ = f.CloseSend()
}

// drop ends the call and what is left of it.
func (f *filling) drop(t *rapid.T, all []*place) {
	f.cancel()
	for _, p := range all {
		for _, id := range []kvcache.SessionID{f.id, f.to} {
			var refused *kvcache.Error
			if err := p.m.Store.Drop(context.Background(), id, nil, 0, 0); err != nil && (!errors.As(err, &refused) || refused.Reason != kvcache.Unknown) {
				t.Fatal(err)
			}
		}
	}
}

// TestAFilledSessionIsTheOriginal fills a worker with a session of which it has some groups itself and others the rest, in blocks of any
// length, while a source sends what it should not, ends or was left out, or the coordinator leaves. What is answered is the original's in every
// bit, and nothing else is ever there.
func TestAFilledSessionIsTheOriginal(t *testing.T) {
	all, at := neighbours(t)
	var drawn uint64
	rapid.Check(t, func(t *rapid.T) {
		drawn++
		at.Store(nil)
		o := drawOriginal(t, drawn)
		owners := make([][]shard.Group, 3)
		for g := range o.spec.Shards() {
			w := rapid.IntRange(0, 2).Draw(t, "owner")
			owners[w] = append(owners[w], shard.Group(g))
		}
		what := rapid.SampledFrom([]string{
			"", "", "a bit of k", "a bit of v", "another hash", "another group", "a position more", "positions elsewhere", "rows that are short", "nothing", "the end", "left out", "a stranger", "the caller leaves",
		}).Draw(t, "fault")
		counter, far := uint64(5), len(owners[1])+len(owners[2]) > 0
		if what == "left out" {
			counter = 4
		}
		for i, p := range all {
			o.hold(t, p, counter, owners[i])
		}
		f := startFilling(t, o, all, owners)
		defer f.drop(t, all)
		var blocks []int
		for left := o.n; left > 0; left -= blocks[len(blocks)-1] {
			blocks = append(blocks, min(left, rapid.IntRange(1, max(1, o.n/2)).Draw(t, "block")))
		}
		leaves := len(blocks)
		switch what {
		case "a stranger":
			f.from.Sources = append(f.from.Sources, &headwaterv1.FillSource{Worker: "w9"})
		case "the caller leaves":
			leaves = rapid.IntRange(0, len(blocks)).Draw(t, "leaves after")
		default:
			one := &fault{what: what}
			one.after.Store(rapid.Int64Range(0, 3).Draw(t, "after"))
			at.Store(one)
		}
		f.send(blocks)
		answered, err := 0, error(nil)
		for i := 0; i < leaves && err == nil; i++ {
			var resp *headwaterv1.FillSessionResponse
			if resp, err = f.Recv(); err == nil {
				answered += blocks[i]
				if resp.GetLayer().GetLength() != uint64(answered) {
					t.Fatalf("block %d makes %d positions, not %d", i, resp.GetLayer().GetLength(), answered)
				}
				for g, hash := range resp.GetLayer().GetHashes() {
					if o.has(t, all[0], f.to, g, answered) != hash {
						t.Fatalf("shard %d: another hash at %d positions", g, answered)
					}
				}
			}
		}
		if what == "the caller leaves" {
			f.cancel()
		} else if err == nil {
			if _, end := f.Recv(); !errors.Is(end, io.EOF) {
				t.Fatalf("the call ends with %v", end)
			}
		}
		refusal, refused := session.FromError(err)
		switch {
		case what == "a stranger":
			if status.Code(err) != codes.FailedPrecondition || refused || !strings.Contains(err.Error(), "membership") {
				t.Fatalf("a source that nobody knows: %v", err)
			}
		case what == "left out":
			if err == nil || !refused || refusal.Reason() != session.StaleEpoch {
				t.Fatalf("a source that was left out: %v", err)
			}
		case !far || what == "" || what == "the caller leaves":
			if err != nil || what != "the caller leaves" && answered != o.n {
				t.Fatalf("%d of %d positions were filled: %v", answered, o.n, err)
			}
		case err == nil && answered == o.n: // it has sent fewer messages
			if at.Load().after.Load() >= 0 {
				break
			}
			t.Fatalf("%s is taken", what)
		case what == "the end":
			if status.Code(err) != codes.FailedPrecondition || refused {
				t.Fatalf("a source that ends: %v", err)
			}
		case !refused || refusal.Reason() != session.Different:
			t.Fatalf("%s: %v", what, err)
		}
		state, err := all[0].m.Store.State(context.Background(), f.to)
		if err != nil {
			t.Fatal(err)
		}
		// Of a block whose answer was not awaited all is there, or nothing.
		n := int(state.Layers[0].Length)
		if n != answered && what != "the caller leaves" || n < answered {
			t.Fatalf("%d positions are there, and %d were answered", n, answered)
		}
		for g, hash := range state.Layers[0].Hashes {
			if o.has(t, all[0], f.to, g, n) != hash {
				t.Fatalf("shard %d: another hash at %d positions", g, n)
			}
		}
	})
}

// TestAFillThatCanNotBeIsRefused has messages that contradict themselves or the limits.
func TestAFillThatCanNotBeIsRefused(t *testing.T) {
	all, _ := neighbours(t)
	var drawn uint64
	rapid.Check(t, func(t *rapid.T) {
		drawn++
		o := drawOriginal(t, drawn)
		owners := [][]shard.Group{nil, nil, nil}
		for g := range o.spec.Shards() {
			owners[1] = append(owners[1], shard.Group(g))
		}
		o.hold(t, all[1], 5, owners[1])
		f := startFilling(t, o, all, owners)
		defer f.drop(t, all)
		block := &headwaterv1.FillBlock{Count: 1, AppendId: 1}
		switch rapid.SampledFrom([]string{"nothing", "none", "many", "far", "id", "layer", "twice", "missing", "foreign", "lane", "filled", "epoch"}).Draw(t, "what") {
		case "nothing":
			f.from = nil
		case "none":
			block.Count = 0
		case "many":
			block.Count = shard.MaxStepTokens + 1
		case "far":
			block.Start = 1 << 63
		case "id":
			block.AppendId = 0
		case "layer":
			block.Layer = 1
		case "twice":
			f.from.Sources = append(f.from.Sources, f.from.Sources[0])
		case "missing":
			f.from.Sources = nil
		case "foreign":
			layer := f.from.Sources[0].Layers[0]
			layer.Groups, layer.Shards = append(layer.Groups, 1000), append(layer.Shards, 1000)
		case "lane":
			f.from.FilledEpoch.Lane = f.from.FilledEpoch.Lane[1:]
		case "filled":
			f.from.Filled = f.from.Filled[1:]
		case "epoch":
			f.from.Epoch = nil
		}
		_ = f.Send(&headwaterv1.FillSessionRequest{Message: &headwaterv1.FillSessionRequest_From{From: f.from}})
		_ = f.Send(&headwaterv1.FillSessionRequest{Message: &headwaterv1.FillSessionRequest_Block{Block: block}})
		_, err := f.Recv()
		if e, ok := session.FromError(err); !ok || e.Reason() != session.Invalid {
			t.Fatalf("it is answered with %v", err)
		}
	})
}
