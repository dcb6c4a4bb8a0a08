package fanout_test

import (
	"context"
	"crypto/rand"
	"errors"
	"log/slog"
	"os"
	"sync"
	"sync/atomic"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"headwater.example/internal/rpc"
	"headwater.example/internal/session"
	"headwater.example/internal/session/fanout"
	"headwater.example/internal/testkit/await"
	"headwater.example/shard"
)

// thisMachine gives a test a folder of sockets of its own.
func thisMachine(t *testing.T) {
	t.Helper()
	dir, err := os.MkdirTemp("", "hw") // t.TempDir is too long for a socket
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	t.Setenv("TMPDIR", dir)
}

func boot(i int) []byte { return append([]byte{byte(i + 1)}, make([]byte, 15)...) }

// near serves plain lanes on the socket of a boot until the test ends.
func near(t testing.TB, boot []byte, lane func(*session.ServerStream) error) {
	t.Helper()
	listener, err := session.ListenLocal(t.Context(), [16]byte(boot))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	served := make(chan error, 1)
	go func() {
		served <- session.ServePlain(ctx, listener, rpc.NewFlight(rpc.FlightConfig{}), slog.New(slog.DiscardHandler), lane)
	}()
	t.Cleanup(func() {
		cancel()
		if err := await.One(t, served, "the end of the server"); err != nil {
			t.Error(err)
		}
	})
}

// beside is alone of a holder that answers on this machine's socket, and by nothing else.
func beside(t testing.TB, s *script, layers ...shard.LayerSpec) *fanout.Holding {
	t.Helper()
	var id [16]byte
	_, _ = rand.Read(id[:])
	near(t, id[:], s.Lane)
	h, err := fanout.NewHolding(layers, &fanout.Holder{Name: "odd", Boot: id[:], Address: "127.0.0.1:1"})
	if err != nil {
		t.Fatal(err)
	}
	return h
}

// lanes is a holder that notes on which stream a step comes.
type lanes struct {
	script
	opened atomic.Int32
	refuse func(stream int32) error
	on     func(stream int32, req *session.Request)
}

func (l *lanes) Lane(stream *session.ServerStream) error {
	n := l.opened.Add(1)
	if l.refuse != nil {
		if err := l.refuse(n); err != nil {
			return err
		}
	}
	s := &script{step: func(req *session.Request, resp *session.Response) error {
		l.on(n, req)
		return count(req, resp)
	}}
	return s.Lane(stream)
}

// steps begins n steps of a session, each on what the one before makes.
func steps(t *testing.T, p *peers, h *fanout.Holding, l shard.LayerSpec, id byte, n, tokens int) []*fanout.Call {
	t.Helper()
	var calls []*fanout.Call
	for i := range n {
		length := uint64(i * tokens)
		step, _ := draw(rng(uint64(i)), []shard.LayerSpec{l}, 0, [16]byte{id}, length, []uint64{length}, tokens, 0)
		calls = append(calls, p.lane.Start(t.Context(), fanout.NewPlace([16]byte{id}, h), step))
	}
	return calls
}

func land(t *testing.T, calls ...*fanout.Call) {
	t.Helper()
	for _, c := range calls {
		if err := c.Wait(t.Context()); err != nil {
			t.Error(err)
		}
	}
}

// TestSessionsOnThisMachineDoNotWaitForEachOther: while a step of one session is being done, another session has a stream of its own.
// Steps of one session keep to a stream, in their order, also where they are more than a socket takes.
func TestSessionsOnThisMachineDoNotWaitForEachOther(t *testing.T) {
	thisMachine(t)
	l := shape(1, 1, 64, 64)
	p, release, first := connect(t), make(chan struct{}), make(chan struct{}, 1)
	var mu sync.Mutex
	came := map[byte][]uint64{}
	streams := map[byte]map[int32]bool{1: {}, 2: {}}
	h := &lanes{on: func(stream int32, req *session.Request) {
		id := req.Step.Session[0]
		mu.Lock()
		came[id] = append(came[id], req.Step.Length)
		streams[id][stream] = true
		begins := id == 1 && len(came[id]) == 2
		mu.Unlock()
		if begins {
			first <- struct{}{}
			select {
			case <-release:
			case <-t.Context().Done(): // the test has failed
			}
		}
	}}
	near(t, boot(0), h.Lane)
	holding, err := fanout.NewHolding([]shard.LayerSpec{l}, &fanout.Holder{Name: "w1", Boot: boot(0), Address: "127.0.0.1:1"})
	if err != nil {
		t.Fatal(err)
	}
	land(t, steps(t, p, holding, l, 1, 1, 1)...) // the stream is open
	step, _ := draw(rng(9), []shard.LayerSpec{l}, 0, [16]byte{1}, 1, []uint64{1}, 1, 0)
	slow := p.lane.Start(t.Context(), fanout.NewPlace([16]byte{1}, holding), step)
	await.One(t, first, "the step that is to be slow, at the holder")
	land(t, steps(t, p, holding, l, 2, 40, 40)...) // 20 KiB each
	close(release)
	land(t, slow)
	mu.Lock()
	defer mu.Unlock()
	for i, length := range came[2] {
		if length != uint64(i*40) {
			t.Fatalf("steps came in the order %v", came[2])
		}
	}
	if len(came[2]) != 40 || len(streams[1]) != 1 || len(streams[2]) != 1 || h.opened.Load() != 2 {
		t.Errorf("%d steps came, on streams %v of %d", len(came[2]), streams, h.opened.Load())
	}
}

// TestAHolderThatHasNoRoomForAnotherStream: the steps go by the one that there is, and no other is tried again.
func TestAHolderThatHasNoRoomForAnotherStream(t *testing.T) {
	thisMachine(t)
	l := shape(1, 1, 1, 1)
	p, first, release := connect(t), make(chan struct{}), make(chan struct{})
	var once, begun sync.Once
	h := &lanes{
		refuse: func(stream int32) error {
			if stream == 1 {
				return nil
			}
			once.Do(func() { close(release) })
			return status.Error(codes.ResourceExhausted, "calls are open, the most that are allowed")
		},
		on: func(_ int32, req *session.Request) {
			if req.Step.Session[0] == 1 && req.Step.Length == 1 {
				begun.Do(func() { close(first) })
				select {
				case <-release:
				case <-t.Context().Done(): // the test has failed
				}
			}
		},
	}
	near(t, boot(0), h.Lane)
	holding, err := fanout.NewHolding([]shard.LayerSpec{l}, &fanout.Holder{Name: "w1", Boot: boot(0), Address: "127.0.0.1:1"})
	if err != nil {
		t.Fatal(err)
	}
	land(t, steps(t, p, holding, l, 1, 1, 1)...)
	step, _ := draw(rng(9), []shard.LayerSpec{l}, 0, [16]byte{1}, 1, []uint64{1}, 1, 0)
	slow := p.lane.Start(t.Context(), fanout.NewPlace([16]byte{1}, holding), step)
	await.One(t, first, "the step that is to be slow, at the holder")
	land(t, steps(t, p, holding, l, 2, 1, 1)...)
	land(t, slow)
	for i := range 3 {
		land(t, append(steps(t, p, holding, l, byte(3+2*i), 1, 1), steps(t, p, holding, l, byte(4+2*i), 1, 1)...)...)
	}
	if n := h.opened.Load(); n != 2 {
		t.Errorf("%d streams were opened", n)
	}
}

// TestALaneThatEndsOnThisMachine: its steps fail with it, and nothing is left.
func TestALaneThatEndsOnThisMachine(t *testing.T) {
	thisMachine(t)
	l := shape(1, 1, 1, 1)
	p, arrived, release := connect(t), make(chan struct{}), make(chan struct{})
	defer close(release)
	h := beside(t, &script{step: func(*session.Request, *session.Response) error {
		close(arrived)
		<-release
		return nil
	}}, l)
	calls := steps(t, p, h, l, 1, 1, 1)
	await.One(t, arrived, "the step, at the holder")
	p.lane.Close()
	if err := calls[0].Wait(t.Context()); !errors.Is(err, rpc.ErrClosed) {
		t.Errorf("got %v", err)
	}
}
