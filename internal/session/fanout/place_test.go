package fanout_test

import (
	"context"
	"fmt"
	"maps"
	"net"
	"reflect"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	healthv1 "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"headwater.example/internal/rpc"
	"headwater.example/internal/session"
	"headwater.example/internal/session/fanout"
	"headwater.example/internal/testkit/await"
	"headwater.example/internal/testkit/plainholder"
	headwaterv1 "headwater.example/proto/headwater/v1"
	"headwater.example/shard"
)

// copied is a session of which each group is held by some of the holders, which can be killed.
type copied struct {
	*plain
	at    *fanout.Place
	kill  []func()       // ends a holder's server, once
	sleep []*sleep       // of each holder's connections
	asked []atomic.Int64 // how often each holder was asked whether it is there
	torn  []atomic.Int64 // of each holder, after how many messages its next stream breaks, -1 is never
	cut   []atomic.Int32 // of each holder, when in its next call its connections end: cutBefore or cutAfter it is done; else never
}

const (
	cutBefore = 1 + iota
	cutAfter
)

// cutting ends the connections of a server in a call.
func cutting(when *atomic.Int32, conns *sleep) grpc.UnaryServerInterceptor {
	return func(ctx context.Context, req any, _ *grpc.UnaryServerInfo, handle grpc.UnaryHandler) (any, error) {
		at := when.Swap(0)
		if at == cutBefore {
			conns.cut()
			<-ctx.Done()
			return nil, ctx.Err()
		}
		resp, err := handle(ctx, req)
		if at == cutAfter {
			conns.cut()
		}
		return resp, err
	}
}

// torn is a stream that breaks after some messages.
type torn struct {
	grpc.ServerStream
	left *atomic.Int64
}

func (s torn) SendMsg(m any) error {
	if s.left.Load() >= 0 && s.left.Add(-1) < 0 {
		return status.Error(codes.Unavailable, "the connection broke")
	}
	return s.ServerStream.SendMsg(m)
}

// sleep makes the connections of a server stand still: what is sent to them is accepted and neither read nor answered.
type sleep struct {
	net.Listener
	awake sync.RWMutex

	mu    sync.Mutex
	conns []net.Conn
}

func (s *sleep) Accept() (net.Conn, error) {
	conn, err := s.Listener.Accept()
	if err == nil {
		s.mu.Lock()
		s.conns = append(s.conns, conn)
		s.mu.Unlock()
	}
	return sleeper{conn, s}, err
}

// cut ends all connections.
func (s *sleep) cut() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, conn := range s.conns {
		_ = conn.Close() // it may have ended before
	}
	s.conns = nil
}

type sleeper struct {
	net.Conn
	s *sleep
}

func (c sleeper) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	c.s.awake.RLock()
	defer c.s.awake.RUnlock()
	return n, err
}

func (c sleeper) Write(b []byte) (int, error) {
	c.s.awake.RLock()
	defer c.s.awake.RUnlock()
	return c.Conn.Write(b)
}

// pulse counts the questions whether a holder is there.
type pulse struct {
	healthv1.UnimplementedHealthServer
	asked *atomic.Int64
}

func (p pulse) Check(context.Context, *healthv1.HealthCheckRequest) (*healthv1.HealthCheckResponse, error) {
	p.asked.Add(1)
	return &healthv1.HealthCheckResponse{}, nil
}

// awaitAsked waits, in a step at a holder, until it was asked so many times whether it is there.
func (p *copied) awaitAsked(t testing.TB, holder int, times int64) {
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for late := time.After(await.Patience); p.asked[holder].Load() < times; {
		select {
		case <-tick.C:
		case <-t.Context().Done():
			return
		case <-late:
			t.Errorf("within %v holder %d was asked %d times whether it is there, not %d", await.Patience, holder, p.asked[holder].Load(), times)
			return
		}
	}
}

// startCopied makes a session on n holders, group g of which is at holders g, g+1, ... g+replicas, round and round.
func startCopied(t testing.TB, n, replicas int, layers ...shard.LayerSpec) *copied {
	t.Helper()
	waits := grpc.WithKeepaliveParams(keepalive.ClientParameters{}) // for ever for a holder that hangs
	p := &copied{plain: &plain{peers: connect(t, waits), layers: layers, id: [16]byte{7}}, asked: make([]atomic.Int64, n), torn: make([]atomic.Int64, n), cut: make([]atomic.Int32, n)}
	for l, layer := range layers {
		p.known = append(p.known, &headwaterv1.LayerState{Layer: uint32(l), Hashes: make([]uint64, layer.KVHeads)})
	}
	var holders []*fanout.Holder
	for i := range n {
		h := &plainholder.Holder{Name: fmt.Sprintf("w%d", i+1), Boot: [16]byte{byte(i + 1)}}
		p.torn[i].Store(-1)
		asleep := &sleep{}
		server := grpc.NewServer(append(rpc.ServerOptions(), grpc.ChainUnaryInterceptor(cutting(&p.cut[i], asleep)), grpc.ChainStreamInterceptor(func(srv any, stream grpc.ServerStream, _ *grpc.StreamServerInfo, handle grpc.StreamHandler) error {
			return handle(srv, torn{stream, &p.torn[i]})
		}))...)
		h.Register(server)
		listener, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		healthv1.RegisterHealthServer(server, pulse{asked: &p.asked[i]})
		asleep.Listener = listener
		done := make(chan struct{})
		go func() { defer close(done); _ = server.Serve(asleep) }()
		kill := func() { server.Stop(); <-done }
		t.Cleanup(kill)
		p.sleep = append(p.sleep, asleep)
		o := &fanout.Holder{Name: h.Name, Boot: h.Boot[:], Address: listener.Addr().String(), Groups: make([][]int, len(layers))}
		for l, layer := range layers {
			for g := range layer.KVHeads {
				if (i-g%n+n)%n <= replicas {
					o.Groups[l] = append(o.Groups[l], g)
				}
			}
		}
		p.nodes, p.kill, holders = append(p.nodes, h), append(p.kill, kill), append(holders, o)
	}
	var err error
	if p.holding, err = fanout.NewHolding(layers, holders...); err != nil {
		t.Fatal(err)
	}
	if _, err := p.conns.Create(t.Context(), p.holding, &headwaterv1.CreateSessionRequest{Session: p.id[:], Epoch: p.epoch, Config: config(layers)}); err != nil {
		t.Fatal(err)
	}
	p.holding = p.holding.Of(p.epoch.GetCounter())
	p.at = fanout.NewPlace(p.id, p.holding)
	return p
}

// step does a step of random tensors on both sessions, and fails unless they answer alike.
func (p *copied) step(t testing.TB, alone *plain, seed uint64, layer int) error {
	t.Helper()
	known := p.known[layer]
	step, got := draw(rng(seed), p.layers, layer, p.id, known.GetLength(), known.GetHashes(), 3, 2)
	same, want := draw(rng(seed), p.layers, layer, p.id, known.GetLength(), known.GetHashes(), 3, 2)
	step.Chain, step.AppendID = known.GetChain(), same.AppendID
	if err := p.lane.Start(t.Context(), p.at, step).Wait(t.Context()); err != nil {
		return err
	}
	if err := alone.do(t, same); err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(step.Hashes, same.Hashes) || step.Chain != same.Chain || !reflect.DeepEqual(got.context, want.context) || !reflect.DeepEqual(got.lse, want.lse) {
		t.Fatalf("layer %d, length %d: another answer than of one holder", layer, step.Length)
	}
	p.known[layer] = proto.CloneOf(alone.known[layer])
	return nil
}

func names(h *fanout.Holding) (all []string) {
	for _, o := range h.Holders() {
		all = append(all, o.Name)
	}
	return all
}

// TestASessionOutlivesHolders: it gives the same bits whoever of its holders is killed, and all else can be done with it, as long as
// each group has a holder. Then it is lost, and the error names who held the rest.
func TestASessionOutlivesHolders(t *testing.T) {
	for victim := range 3 {
		p, alone := startCopied(t, 3, 1, two...), start(t, 1, two...)
		var told []string
		p.conns.OnLeave = func(id [16]byte, lost []string) { told = append(told, lost...) }
		for i := range 6 {
			if i == 3 {
				p.kill[victim]()
			}
			if err := p.step(t, alone, uint64(i), i%2); err != nil {
				t.Fatalf("w%d is gone: step %d: %v", victim+1, i, err)
			}
		}
		lost := fmt.Sprintf("w%d", victim+1)
		if got := names(p.at.Holding()); len(got) != 2 || slices.Contains(got, lost) || !slices.Equal(told, []string{lost}) {
			t.Fatalf("%v hold it, %v were left out, not %s", got, told, lost)
		}
		cut := &headwaterv1.TruncateSessionRequest{Session: p.id[:], Epoch: p.epoch, Position: 4, Expect: p.known, Id: 99}
		state, err := p.conns.Truncate(t.Context(), p.at, cut)
		if err != nil || state.GetLayers()[0].GetLength() != 4 {
			t.Fatalf("truncated: %v: %v", state, err)
		}
		want, err := alone.conns.Truncate(t.Context(), alone.place(), cut)
		if err != nil || !proto.Equal(want.GetLayers()[1], state.GetLayers()[1]) {
			t.Fatalf("truncated: %v, of one holder %v: %v", state, want, err)
		}
		rows := map[string]bool{}
		err = p.conns.Export(t.Context(), p.at, &headwaterv1.ExportSessionRequest{Session: p.id[:], Layer: 0}, func(m *headwaterv1.ExportSessionResponse) error {
			rows[fmt.Sprintf("%d %d %x %x", m.GetGroup(), m.GetStart(), m.GetK(), m.GetV())] = true
			return nil
		})
		other := map[string]bool{}
		if exported := alone.conns.Export(t.Context(), alone.place(), &headwaterv1.ExportSessionRequest{Session: p.id[:], Layer: 0}, func(m *headwaterv1.ExportSessionResponse) error {
			other[fmt.Sprintf("%d %d %x %x", m.GetGroup(), m.GetStart(), m.GetK(), m.GetV())] = true
			return nil
		}); err != nil || exported != nil || !maps.Equal(rows, other) {
			t.Fatalf("exported %v and %v: %v, %v", rows, other, err, exported)
		}
		p.kill[(victim+1)%3]()
		for l, known := range state.GetLayers() {
			p.known[l], alone.known[l] = known, proto.CloneOf(known)
		}
		step, _ := draw(rng(9), p.layers, 0, p.id, 4, p.known[0].GetHashes(), 1, 1)
		step.Truncations, step.Chain = 1, p.known[0].GetChain()
		if err := p.lane.Start(t.Context(), p.at, step).Wait(t.Context()); !fanout.Is(err, session.Lost) {
			t.Fatalf("two of three are gone: %v", err)
		}
	}
}

// TestACallWhoseConnectionEndsIsMadeAgain: a session without copies goes on if the connection to a holder ends within a call, as one does
// whose certificate has expired, whether the holder has done the call or not.
func TestACallWhoseConnectionEndsIsMadeAgain(t *testing.T) {
	for name, call := range map[string]func(p *copied) error{
		"truncate": func(p *copied) error {
			state, err := p.conns.Truncate(t.Context(), p.at, &headwaterv1.TruncateSessionRequest{Session: p.id[:], Epoch: p.epoch, Position: 1, Expect: p.known, Id: 99})
			if n := state.GetLayers(); err == nil && n[0].GetLength() != 1 {
				return fmt.Errorf("%v was truncated to 1", n)
			}
			return err
		},
		"fork": func(p *copied) error {
			child := [16]byte{8}
			_, err := p.conns.Fork(t.Context(), p.at, &headwaterv1.ForkSessionRequest{Session: p.id[:], Child: child[:], Epoch: p.epoch, ChildEpoch: p.epoch, Expect: p.known})
			return err
		},
		"take": func(p *copied) error {
			_, err := p.conns.Take(t.Context(), p.at, &headwaterv1.TakeSessionRequest{Session: p.id[:], Epoch: &headwaterv1.Epoch{Counter: 5, Lane: p.epoch.GetLane()}})
			return err
		},
		"pin": func(p *copied) error {
			_, err := p.conns.Pin(t.Context(), p.at, &headwaterv1.PinSessionRequest{Session: p.id[:], Pinned: true})
			return err
		},
		"drop": func(p *copied) error {
			return p.conns.End(t.Context(), p.at, &headwaterv1.DropSessionRequest{Session: p.id[:]})
		},
	} {
		for when := range cutAfter + 1 { // 0 is never
			p, alone := startCopied(t, 2, 0, two...), start(t, 1, two...)
			for i := range 4 {
				if err := p.step(t, alone, uint64(i), i%2); err != nil {
					t.Fatal(err)
				}
			}
			for i := range p.cut {
				p.cut[i].Store(int32(when))
			}
			if err := call(p); err != nil {
				t.Errorf("%s, cut at %d: %v", name, when, err)
			}
		}
	}
}

// TestALostHolderIsNotedByAllItsCalls: holders are left out whatever call finds them lost, more than one at once too.
func TestALostHolderIsNotedByAllItsCalls(t *testing.T) {
	calls := map[string]func(p *copied) error{
		"take": func(p *copied) error {
			_, err := p.conns.Take(t.Context(), p.at, &headwaterv1.TakeSessionRequest{Session: p.id[:], Epoch: &headwaterv1.Epoch{Counter: 2, Lane: p.epoch.GetLane()}})
			return err
		},
		"truncate": func(p *copied) error {
			_, err := p.conns.Truncate(t.Context(), p.at, &headwaterv1.TruncateSessionRequest{Session: p.id[:], Epoch: p.epoch, Position: 1, Expect: p.known, Id: 5})
			return err
		},
		"fork": func(p *copied) error {
			child := [16]byte{8}
			_, err := p.conns.Fork(t.Context(), p.at, &headwaterv1.ForkSessionRequest{Session: p.id[:], Epoch: p.epoch, Child: child[:], ChildEpoch: p.epoch, Expect: p.known})
			return err
		},
	}
	for name, call := range calls {
		p, alone := startCopied(t, 4, 2, two...), start(t, 1, two...)
		if err := p.step(t, alone, 1, 0); err != nil {
			t.Fatal(err)
		}
		p.kill[0]()
		p.kill[2]()
		if err := call(p); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if got := names(p.at.Holding()); !slices.Equal(got, []string{"w2", "w4"}) {
			t.Errorf("%s: %v hold it", name, got)
		}
	}
}

// TestOnesOwnSessionIsNotTakenOver: while its holders are exchanged on the lane's behalf, and nobody tells in time who they are, as when one
// of them is lost, a call says to try again, and not that another client drives
// the session.
func TestOnesOwnSessionIsNotTakenOver(t *testing.T) {
	p, alone := startCopied(t, 2, 0, two...), start(t, 1, two...)
	if err := p.step(t, alone, 1, 0); err != nil {
		t.Fatal(err)
	}
	for _, h := range p.nodes {
		exchanged := &headwaterv1.Epoch{Counter: 50, Lane: p.epoch.GetLane(), Base: p.epoch.GetCounter(), Closed: true}
		if _, err := h.TakeSession(t.Context(), &headwaterv1.TakeSessionRequest{Session: p.id[:], Epoch: exchanged}); err != nil {
			t.Fatal(err)
		}
	}
	p.kill[1]()
	if err := p.step(t, alone, 2, 0); !fanout.Is(err, session.Busy) {
		t.Errorf("a step: %v", err)
	}
	_, err := p.conns.Truncate(t.Context(), p.at, &headwaterv1.TruncateSessionRequest{Session: p.id[:], Epoch: p.epoch, Position: 1, Expect: p.known, Id: 5})
	if !fanout.Is(err, session.Busy) {
		t.Errorf("a truncation: %v", err)
	}
}

// TestAnotherLanesSessionIsNotTakenBack: a driver that was replaced and finds a holder lost does not drive again.
func TestAnotherLanesSessionIsNotTakenBack(t *testing.T) {
	p, alone := startCopied(t, 3, 1, two...), start(t, 1, two...)
	if err := p.step(t, alone, 1, 0); err != nil {
		t.Fatal(err)
	}
	other := [16]byte{0} // lower than the first lane, whose counter would win if they were equal
	take := &headwaterv1.TakeSessionRequest{Session: p.id[:], Epoch: &headwaterv1.Epoch{Counter: 2, Lane: other[:]}}
	if _, err := p.conns.Take(t.Context(), fanout.NewPlace(p.id, p.holding), take); err != nil {
		t.Fatal(err)
	}
	p.kill[1]()
	if err := p.step(t, alone, 2, 0); err == nil {
		t.Fatal("a driver that was replaced goes on")
	}
	for _, holder := range []int{0, 2} {
		if e := p.state(t, holder).GetEpoch(); e.GetCounter() != 2 || string(e.GetLane()) != string(other[:]) {
			t.Errorf("the epoch is %v", e)
		}
	}
}

// TestATakeIsAboveAHolderThatItLost: a holder may have accepted the epoch of a take whose answer was lost. The others go on under a
// higher one, so what they acknowledge is not looked for at that holder.
func TestATakeIsAboveAHolderThatItLost(t *testing.T) {
	p, alone := startCopied(t, 3, 1, two...), start(t, 1, two...)
	if err := p.step(t, alone, 1, 0); err != nil {
		t.Fatal(err)
	}
	epoch := &headwaterv1.Epoch{Counter: 2, Lane: p.epoch.GetLane()}
	if _, err := p.nodes[1].TakeSession(t.Context(), &headwaterv1.TakeSessionRequest{Session: p.id[:], Epoch: epoch}); err != nil {
		t.Fatal(err)
	}
	p.kill[1]()
	state, err := p.conns.Take(t.Context(), p.at, &headwaterv1.TakeSessionRequest{Session: p.id[:], Epoch: epoch})
	if err != nil {
		t.Fatal(err)
	}
	for _, holder := range []int{0, 2} {
		if e := p.state(t, holder).GetEpoch(); e.GetCounter() <= 2 || e.GetBase() != 2 || e.GetCounter() != state.GetEpoch().GetCounter() {
			t.Errorf("the epoch of holder %d is %v, that of the answer %v", holder, e, state.GetEpoch())
		}
	}
	if p.at.Holding().Holders()[0].Name != "w1" || len(state.GetHolders()) != 2 {
		t.Errorf("holders are %v", state.GetHolders())
	}
}

// TestATakeIsAboveAHolderThatWasLeftOut: who makes a take does not know yet that others have left a holder out, which accepts it, and
// is told so by the others. They go on under a higher epoch than that holder has.
func TestATakeIsAboveAHolderThatWasLeftOut(t *testing.T) {
	p, alone := startCopied(t, 3, 1, two...), start(t, 1, two...)
	if err := p.step(t, alone, 1, 0); err != nil {
		t.Fatal(err)
	}
	known := p.at
	p.at = fanout.NewPlace(p.id, p.holding)
	p.sleep[1].awake.Lock()
	err := p.step(t, alone, 2, 0) // goes on without w2
	p.sleep[1].awake.Unlock()
	if err != nil {
		t.Fatal(err)
	}
	sleeper := rpc.Peer{Name: p.holding.Holders()[1].Name, Address: p.holding.Holders()[1].Address}
	for changed := p.conns.Pulse(); p.conns.Silent(sleeper); changed = p.conns.Pulse() {
		<-changed
	}
	p.conns.Locate = func(context.Context, [16]byte) (*fanout.Holding, error) { return p.current(t), nil }
	lane := [16]byte{9}
	counter := p.state(t, 0).GetEpoch().GetCounter() + 1
	state, err := p.conns.Take(t.Context(), known, &headwaterv1.TakeSessionRequest{Session: p.id[:], Epoch: &headwaterv1.Epoch{Counter: counter, Lane: lane[:]}})
	if err != nil {
		t.Fatal(err)
	}
	if e := p.state(t, 1).GetEpoch(); e.GetCounter() != counter {
		t.Fatalf("w2 has not accepted the take: %v", e)
	}
	for _, holder := range []int{0, 2} {
		if e := p.state(t, holder).GetEpoch(); e.GetCounter() <= counter || e.GetBase() != counter || e.GetCounter() != state.GetEpoch().GetCounter() {
			t.Errorf("the epoch of holder %d is %v, that of the answer %v", holder, e, state.GetEpoch())
		}
	}
	if now := names(p.current(t)); !slices.Equal(now, []string{"w1", "w3"}) || !slices.Equal(names(known.Holding()), now) {
		t.Errorf("%v hold it, and the place knows %v", now, names(known.Holding()))
	}
}

// TestATakeEndsWhatTakesHaveLeft: lanes that each came to some of the holders only, since who makes this take asked for them, do not
// keep it out.
func TestATakeEndsWhatTakesHaveLeft(t *testing.T) {
	for _, locate := range []string{"told", "told of one epoch", "not told"} {
		p, alone := startCopied(t, 3, 1, two...), start(t, 1, two...)
		if err := p.step(t, alone, 1, 0); err != nil {
			t.Fatal(err)
		}
		take := func(holder int, counter uint64) {
			lane := [16]byte{byte(10 * counter), byte(holder)}
			req := &headwaterv1.TakeSessionRequest{Session: p.id[:], Epoch: p.named(&headwaterv1.Epoch{Counter: counter, Lane: lane[:]})}
			if _, err := p.nodes[holder].TakeSession(t.Context(), req); err != nil {
				t.Fatal(err)
			}
		}
		take(0, 4)
		switch locate {
		case "told":
			p.conns.Locate = func(context.Context, [16]byte) (*fanout.Holding, error) { return p.current(t), nil }
			p.at = fanout.NewPlace(p.id, p.current(t))
		case "told of one epoch":
			p.conns.Locate = func(context.Context, [16]byte) (*fanout.Holding, error) { return p.holding.Of(5), nil }
		}
		take(0, 5)
		take(1, 5)
		lane := [16]byte{9}
		state, err := p.conns.Take(t.Context(), p.at, &headwaterv1.TakeSessionRequest{Session: p.id[:], Epoch: &headwaterv1.Epoch{Counter: 6, Lane: lane[:]}})
		if err != nil || state.GetEpoch().GetCounter() != 6 || len(state.GetHolders()) != 3 || state.GetLayers()[0].GetLength() != 3 {
			t.Errorf("%s: %v, %v", locate, state, err)
		}
	}
}

// named is an epoch of all holders.
func (p *copied) named(e *headwaterv1.Epoch) *headwaterv1.Epoch {
	e.Members = names(p.holding)
	e.Holders = uint32(len(e.Members))
	return e
}

// current is who holds the session, as all holders tell now.
func (p *copied) current(t testing.TB) *fanout.Holding {
	t.Helper()
	var states []*headwaterv1.SessionState
	for i := range p.nodes {
		s := p.state(t, i)
		s.Config = config(p.layers)
		s.Holders[0].Address = p.holding.Holders()[i].Address
		states = append(states, s)
	}
	h, _, err := fanout.Current(states)
	if err != nil {
		t.Fatal(err)
	}
	return h
}

// TestWhoRefusesSaysMoreThanWhoHasNothing: a session that another lane has taken is not gone because one of its holders is.
func TestWhoRefusesSaysMoreThanWhoHasNothing(t *testing.T) {
	p := startCopied(t, 2, 0, two...)
	if _, err := p.nodes[0].DropSession(t.Context(), &headwaterv1.DropSessionRequest{Session: p.id[:]}); err != nil {
		t.Fatal(err)
	}
	other := [16]byte{9}
	take := &headwaterv1.TakeSessionRequest{Session: p.id[:], Epoch: &headwaterv1.Epoch{Counter: 5, Lane: other[:]}}
	if _, err := p.nodes[1].TakeSession(t.Context(), take); err != nil {
		t.Fatal(err)
	}
	_, err := p.conns.Truncate(t.Context(), p.at, &headwaterv1.TruncateSessionRequest{Session: p.id[:], Epoch: p.epoch, Position: 0, Expect: p.known, Id: 5})
	if !fanout.Is(err, session.StaleEpoch) {
		t.Fatalf("it is refused with %v", err)
	}
}

// TestACopyThatDiffersIsAnError: holders of one group that answer with other hashes are never an answer.
func TestACopyThatDiffersIsAnError(t *testing.T) {
	l := shape(2, 2, 1, 1)
	p := connect(t)
	var holders []*fanout.Holder
	for i := range 2 {
		s := &script{step: func(req *session.Request, resp *session.Response) error {
			resp.Result = session.Result{Length: req.Step.Length + 1, Hashes: []uint64{1, uint64(i)}, Chain: 3}
			return nil
		}}
		holders = append(holders, &fanout.Holder{Name: fmt.Sprintf("w%d", i+1), Address: serve(t, s.Register)})
	}
	h, err := fanout.NewHolding([]shard.LayerSpec{l}, holders...)
	if err != nil {
		t.Fatal(err)
	}
	step, _ := draw(rng(1), []shard.LayerSpec{l}, 0, [16]byte{1}, 4, []uint64{4, 4}, 1, 0)
	if err := p.lane.Start(t.Context(), at(h), step).Wait(t.Context()); err == nil || !slices.Equal(step.Hashes, []uint64{4, 4}) {
		t.Errorf("%v, and hashes %v were taken", err, step.Hashes)
	}
}

// TestTwoWhoCarryOneSession: when one has left out a holder, the other finds out by its next call, whichever it is, and goes on with
// the same holders, although the one that was left out would answer.
func TestTwoWhoCarryOneSession(t *testing.T) {
	p, alone := startCopied(t, 3, 1, two...), start(t, 1, two...)
	p.conns.Locate = func(context.Context, [16]byte) (*fanout.Holding, error) { return p.at.Holding(), nil }
	if err := p.step(t, alone, 1, 0); err != nil {
		t.Fatal(err)
	}
	if err := p.conns.Leave(t.Context(), p.at, p.epoch, "w2"); err != nil {
		t.Fatal(err)
	}
	if err := p.step(t, alone, 2, 0); err != nil {
		t.Fatal(err)
	}
	mine := p.at
	for i, call := range []func() error{
		func() error { return p.step(t, alone, 3, 0) },
		func() error {
			child := [16]byte{8}
			_, err := p.conns.Fork(t.Context(), p.at, &headwaterv1.ForkSessionRequest{Session: p.id[:], Epoch: p.epoch, Child: child[:], ChildEpoch: p.epoch, Expect: p.known})
			return err
		},
		func() error {
			_, err := p.conns.Truncate(t.Context(), p.at, &headwaterv1.TruncateSessionRequest{Session: p.id[:], Epoch: p.epoch, Position: 1, Expect: p.known, Id: 5})
			return err
		},
	} {
		p.at = fanout.NewPlace(p.id, p.holding)
		p.conns.Locate = func(context.Context, [16]byte) (*fanout.Holding, error) { return mine.Holding(), nil }
		if err := call(); err != nil {
			t.Errorf("call %d: %v", i, err)
		}
		if got := names(p.at.Holding()); !slices.Equal(got, []string{"w1", "w3"}) {
			t.Errorf("call %d: %v hold it", i, got)
		}
	}
}

// TestALossIsNotedOverANewCopy: a lane that finds a holder lost, while a coordinator has made others hold more already, goes on with
// what they hold now, whoever tells it: the coordinator, or the holders themselves if that one does not answer.
func TestALossIsNotedOverANewCopy(t *testing.T) {
	for _, locate := range []string{"told", "not told"} {
		p, alone := startCopied(t, 3, 2, two...), start(t, 1, two...)
		var before []*fanout.Holder // of the lane's knowledge
		for i, o := range p.holding.Holders() {
			o := &fanout.Holder{Name: o.Name, Boot: o.Boot, Address: o.Address}
			o.Groups = make([][]int, len(two))
			for l, layer := range two {
				for g := range layer.KVHeads {
					if (i-g%3+3)%3 <= 1 {
						o.Groups[l] = append(o.Groups[l], g)
					}
				}
			}
			before = append(before, o)
		}
		h, err := fanout.NewHolding(p.layers, before...)
		if err != nil {
			t.Fatal(err)
		}
		now, err := fanout.NewHolding(p.layers, p.holding.Holders()[0], p.holding.Holders()[2])
		if err != nil {
			t.Fatal(err)
		}
		if err := p.conns.Reopen(t.Context(), fanout.NewPlace(p.id, now), &headwaterv1.Epoch{Counter: 3, Lane: p.epoch.GetLane(), Base: 1}); err != nil {
			t.Fatal(err)
		}
		if locate == "told" {
			p.conns.Locate = func(context.Context, [16]byte) (*fanout.Holding, error) { return now.Of(3), nil }
		}
		p.at = fanout.NewPlace(p.id, h.Of(1))
		p.kill[1]()
		if err := p.conns.Leave(t.Context(), p.at, p.epoch, "w2"); err != nil {
			t.Fatalf("%s: %v", locate, err)
		}
		for l := range two {
			if got := p.at.Holding().Holders(); len(got) != 2 || len(got[0].Groups[l]) != two[l].KVHeads {
				t.Fatalf("%s: layer %d: %v hold it", locate, l, got)
			}
		}
		if err := p.step(t, alone, 1, 0); err != nil {
			t.Fatalf("%s: %v", locate, err)
		}
	}
}
