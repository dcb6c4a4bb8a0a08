package jobs

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"headwater.example/attention"
	"headwater.example/internal/testkit/await"
	headwaterv1 "headwater.example/proto/headwater/v1"
	"headwater.example/worker/internal/workertest"
)

// TestStreamsShareAWorker runs jobs beside each other over a connection.
func TestStreamsShareAWorker(t *testing.T) {
	p := newPlace(t, 64<<20, 2)
	client := serve(t, p)
	var wg sync.WaitGroup
	for i, storage := range []headwaterv1.StorageType{1, 2, 3, 4} {
		p := &headwaterv1.Problem{
			NHeads: 6, NKvHeads: 2, HeadDim: 16, VDim: 16, Tokens: 40, KvLen: 2200, Offset: 2160, Storage: storage,
			Causal: i%2 == 0, WindowLeft: -1, WindowRight: -1, Scale: 0.25,
		}
		j := newJob(t, rand.New(rand.NewPCG(9, uint64(i))), p, i%2, 0)
		wg.Go(func() {
			messages := slices.Concat([]*headwaterv1.RunRequest{openOf(p)}, j.load(t, 0, []uint32{0, 1}, 300))
			for b := range 10 {
				messages = append(messages, j.query(0, uint32(b), []uint32{1, 0}, 4*b, 4*b+4, 1000)...)
			}
			answers, err := converse(t.Context(), client, messages)
			if err != nil {
				t.Error(err)
				return
			}
			contexts := 0
			for _, a := range answers {
				if c := a.GetContext(); c != nil {
					contexts++
					if err := j.compare(c, int(c.Block)*4, int(c.Block)*4+4); err != nil {
						t.Error(err)
					}
				}
			}
			if contexts != 20 {
				t.Errorf("%d contexts of 20", contexts)
			}
		})
	}
	await.All(t, &wg, "the end of all streams")
	// A stream's status may come before its call has returned.
	if err := p.m.Drain(t.Context()); err != nil {
		t.Fatal(err)
	}
	if p.m.Budget.Used() != 0 {
		t.Fatalf("%d bytes are in use", p.m.Budget.Used())
	}
}

// shardBytes is what the shards of a job's groups reserve each.
func shardBytes(j *job) int64 {
	return int64(int(j.problem.KvLen+attention.PageLen-1)/attention.PageLen) * int64(j.layout.PageBytes())
}

func TestBudgetIsKept(t *testing.T) {
	j := smallJob(t, headwaterv1.StorageType_STORAGE_TYPE_F32)
	one := shardBytes(j)
	opens := []*headwaterv1.RunRequest{openOf(j.problem), shardOpen(&headwaterv1.ShardOpen{Group: 0, Epoch: 1}), shardOpen(&headwaterv1.ShardOpen{Group: 1, Epoch: 1})}
	answers, err := play(t, newPlace(t, 2*one-1, 1), true, opens...)
	want := fmt.Sprintf("problem 0 group 1: keys and values: memory budget: asked for %d bytes, %d of %d are free", one, one-1, 2*one-1)
	if status.Code(err) != codes.ResourceExhausted || status.Convert(err).Message() != want {
		t.Fatalf("got %v, want %s", err, want)
	}
	if len(answers) != 1 || answers[0].GetShardOpened().GetReservedBytes() != uint64(one) {
		t.Fatalf("got %v", answers)
	}
	if _, err := play(t, newPlace(t, 2*one, 1), false, opens...); err != nil {
		t.Fatal(err)
	}
	// A shard that was closed makes room for the next.
	between := slices.Insert(slices.Clone(opens), 2, shardClose(&headwaterv1.ShardClose{}))
	if _, err := play(t, newPlace(t, one, 1), false, between...); err != nil {
		t.Fatal(err)
	}
	// Weights are reserved with their shard, whose keys and values take one page here.
	_, layered := smallLayer(t)
	if _, err := play(t, newPlace(t, one/2, 1), true, layered...); status.Code(err) != codes.ResourceExhausted || !strings.Contains(err.Error(), "group 0: weights") {
		t.Fatalf("got %v", err)
	}
	// A query for which there can be no room is refused.
	loaded := slices.Concat([]*headwaterv1.RunRequest{openOf(j.problem)}, j.load(t, 0, []uint32{0}, 70))
	if _, err := play(t, newPlace(t, one, 1), true, slices.Concat(loaded, j.query(0, 0, []uint32{0}, 0, 1, 100))...); status.Code(err) != codes.ResourceExhausted || !strings.Contains(err.Error(), "queries") {
		t.Fatalf("got %v", err)
	}
}

// TestQueriesWaitForRoom has room for one block at a time.
func TestQueriesWaitForRoom(t *testing.T) {
	j := smallJob(t, headwaterv1.StorageType_STORAGE_TYPE_F32)
	messages := slices.Concat([]*headwaterv1.RunRequest{openOf(j.problem)}, j.load(t, 0, []uint32{0, 1}, 70))
	const blocks = 200
	for b := range blocks {
		messages = append(messages, j.query(0, uint32(b), []uint32{0, 1}, b%3, b%3+1, 1<<20)...)
	}
	// q, context and LSE twice, the mask of one head and the bias of four.
	block := int64(4*4*4 + 8*4*(3+1) + 70 + 4*4*70)
	answers, err := play(t, newPlace(t, 2*shardBytes(j)+block, 2), false, messages...)
	if err != nil {
		t.Fatal(err)
	}
	contexts := 0
	for _, a := range answers {
		if c := a.GetContext(); c != nil {
			contexts++
			j.check(t, c, int(c.Block)%3, int(c.Block)%3+1)
		}
	}
	if contexts != 2*blocks {
		t.Fatalf("%d contexts", contexts)
	}
	if _, err := play(t, newPlace(t, 2*shardBytes(j)+block-1, 2), true, messages...); status.Code(err) != codes.ResourceExhausted {
		t.Fatalf("got %v", err)
	}
}

// endless is a job whose kernel would run for minutes.
func endless() []*headwaterv1.RunRequest {
	const tokens, n = 4096, 1 << 16
	p := &headwaterv1.Problem{
		NHeads: 32, NKvHeads: 1, HeadDim: 1, VDim: 1, Tokens: tokens, KvLen: n, Storage: headwaterv1.StorageType_STORAGE_TYPE_I8,
		WindowLeft: -1, WindowRight: -1, Scale: 1, Softcap: 1,
	}
	// Zeros, whose receipt is computed as the worker computes it.
	j := &job{problem: p, rows: []attention.Rows{{K: make([]byte, n), V: make([]byte, n), KScale: make([]float32, n), VScale: make([]float32, n)}}, size: 32, q: [][]float32{make([]float32, tokens*32)}}
	var err error
	if j.layout, err = attention.NewLayout(workertest.StorageOf(p.Storage), 1, 1); err != nil {
		panic(err)
	}
	t := panics{}
	return slices.Concat([]*headwaterv1.RunRequest{openOf(p)}, j.load(t, 0, []uint32{0}, n), j.query(0, 0, []uint32{0}, 0, tokens, 1))
}

// panics fails where there is no test to fail.
type panics struct{}

func (panics) Helper()                           {}
func (panics) Fatal(args ...any)                 { panic(fmt.Sprint(args...)) }
func (panics) Fatalf(format string, args ...any) { panic(fmt.Sprintf(format, args...)) }

func TestKernelsEndWithTheirStream(t *testing.T) {
	messages := endless()
	t.Run("cancelled", func(t *testing.T) {
		p := newPlace(t, 256<<20, 2)
		began := make(chan struct{}, 1)
		p.m.Acquired = func(context.Context) { began <- struct{}{} }
		client := serve(t, p)
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() {
			_, err := converse(ctx, client, messages)
			done <- err
		}()
		await.One(t, began, "a kernel, at a thread")
		cancel()
		if err := await.One(t, done, "the end of a cancelled stream"); status.Code(err) != codes.Canceled {
			t.Errorf("got %v", err)
		}
		if err := p.m.Drain(t.Context()); err != nil || p.m.Budget.Used() != 0 {
			t.Errorf("%d bytes are in use: %v", p.m.Budget.Used(), err)
		}
	})
	t.Run("deadline", func(t *testing.T) {
		p := newPlace(t, 256<<20, 1)
		ctx, cancel := context.WithTimeout(context.Background(), 200*time.Millisecond)
		defer cancel()
		s := &memoryStream{ctx: ctx, requests: make(chan *headwaterv1.RunRequest, len(messages))}
		for _, m := range messages {
			s.requests <- m
		}
		if err := p.Run(s.server()); status.Code(err) != codes.DeadlineExceeded {
			t.Errorf("got %v", err)
		}
		if p.m.Budget.Used() != 0 {
			t.Errorf("%d bytes are in use", p.m.Budget.Used())
		}
	})
	t.Run("error beside", func(t *testing.T) {
		p := newPlace(t, 256<<20, 1)
		_, err := play(t, p, true, append(slices.Clone(messages), openOf())...)
		if status.Code(err) != codes.InvalidArgument {
			t.Errorf("got %v", err)
		}
	})
}

func TestDrainEndsWhatWasAccepted(t *testing.T) {
	j := smallJob(t, headwaterv1.StorageType_STORAGE_TYPE_F16)
	p := newPlace(t, 64<<20, 2)
	client := serve(t, p)
	stream, err := client.Run(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	messages := slices.Concat([]*headwaterv1.RunRequest{openOf(j.problem)}, j.load(t, 0, []uint32{0}, 70))
	for _, m := range messages {
		if err := stream.Send(m); err != nil {
			t.Fatal(err)
		}
	}
	for range 2 {
		if _, err := stream.Recv(); err != nil {
			t.Fatal(err)
		}
	}
	// A drain that is given up leaves the stream as it is, and the worker closed to others.
	given, cancel := context.WithCancelCause(t.Context())
	cancel(errors.New("no time"))
	if err := p.m.Drain(given); err == nil || !strings.Contains(err.Error(), "no time") {
		t.Fatalf("got %v", err)
	}
	if _, err := converse(t.Context(), client, messages[:1]); status.Code(err) != codes.Unavailable || !strings.Contains(err.Error(), "w1 is stopping") {
		t.Fatalf("got %v", err)
	}
	drained := make(chan error, 1)
	go func() { drained <- p.m.Drain(t.Context()) }()
	for _, m := range j.query(0, 0, []uint32{0}, 0, 3, 100) {
		if err := stream.Send(m); err != nil {
			t.Fatal(err)
		}
	}
	a, err := stream.Recv()
	if err != nil {
		t.Fatal(err)
	}
	j.check(t, a.GetContext(), 0, 3)
	if err := stream.CloseSend(); err != nil {
		t.Fatal(err)
	}
	if err := await.One(t, drained, "the end of draining"); err != nil || p.m.Budget.Used() != 0 {
		t.Fatalf("%d bytes are in use: %v", p.m.Budget.Used(), err)
	}
	if err := p.m.Drain(t.Context()); err != nil {
		t.Fatal(err)
	}
}

// TestStreamsWaitForEachOthersRoom has room for the block of one stream at a time.
func TestStreamsWaitForEachOthersRoom(t *testing.T) {
	j := smallJob(t, headwaterv1.StorageType_STORAGE_TYPE_F32)
	messages := slices.Concat([]*headwaterv1.RunRequest{openOf(j.problem)}, j.load(t, 0, []uint32{0, 1}, 70))
	for b := range 50 {
		messages = append(messages, j.query(0, uint32(b), []uint32{0, 1}, b%3, b%3+1, 1<<20)...)
	}
	block := int64(4*4*4 + 8*4*(3+1) + 70 + 4*4*70)
	const streams = 3
	p := newPlace(t, streams*2*shardBytes(j)+block, 2)
	client := serve(t, p)
	var wg sync.WaitGroup
	for range streams {
		wg.Go(func() {
			answers, err := converse(t.Context(), client, messages)
			if err != nil || len(answers) != 2+2+100 {
				t.Errorf("%d answers: %v", len(answers), err)
			}
		})
	}
	await.All(t, &wg, "the end of all streams")
	if err := p.m.Drain(t.Context()); err != nil || p.m.Budget.Used() != 0 || p.flight != (flight{}) {
		t.Fatalf("%d bytes are in use, %v in flight: %v", p.m.Budget.Used(), p.flight, err)
	}
}
