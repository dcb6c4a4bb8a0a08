package client_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"math"
	"math/rand/v2"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"headwater.example/client"
	"headwater.example/internal/membership"
	"headwater.example/internal/rpc"
	"headwater.example/internal/session"
	"headwater.example/internal/testkit/await"
	headwaterv1 "headwater.example/proto/headwater/v1"
	"headwater.example/tensor"
	"headwater.example/worker"
)

// TestAWrongReceiptShutsNobodyOut brings one that a holder of some groups finds right and another wrong.
func TestAWrongReceiptShutsNobodyOut(t *testing.T) {
	each(t, func(t *testing.T, c *cluster, direct bool) {
		r := rand.New(rand.NewPCG(19, 20))
		s, m := open(t, c.Client, client.SessionOptions{Layers: layers, Direct: direct}), newModel(layers)
		for layer := range layers {
			step(t, s, m, r, layer, 5)
		}
		old := s.Receipt()
		for layer := range layers {
			step(t, s, m, r, layer, 2)
		}
		other := dial(t, c.address)
		for layer, l := range layers {
			for g := range l.KVHeads {
				wrong := client.Receipt{Session: old.Session}
				for _, one := range old.Layers {
					wrong.Layers = append(wrong.Layers, client.LayerReceipt{Length: one.Length, Hashes: slices.Clone(one.Hashes)})
				}
				wrong.Layers[layer].Hashes[g]++
				_, err := other.Attach(t.Context(), s.ID(), client.AttachOptions{Receipt: &wrong, Direct: direct})
				var refused *client.SessionError
				if !errors.As(err, &refused) || refused.Reason != client.ReasonDifferent {
					t.Fatalf("layer %d, group %d: %v", layer, g, err)
				}
			}
		}
		for layer := range layers {
			step(t, s, m, r, layer, 1) // is not taken over
		}
		taken, err := other.Attach(t.Context(), s.ID(), client.AttachOptions{Receipt: &old, Direct: direct})
		if err != nil {
			t.Fatal(err)
		}
		step(t, taken, m, r, 0, 1)
	})
}

// A fork whose state makes no sense is dropped. So is what was opened.
func TestWhatCanNotBeTakenOverIsDropped(t *testing.T) {
	for _, direct := range []bool{true, false} {
		c := start(t, 2)
		var wrong, deaf atomic.Bool
		lies := func(ctx context.Context, method string, req, reply any, conn *grpc.ClientConn, call grpc.UnaryInvoker, opts ...grpc.CallOption) error {
			if deaf.Load() && method == headwaterv1.SessionService_DropSession_FullMethodName {
				return status.Error(codes.Unavailable, "the network is down")
			}
			err := call(ctx, method, req, reply, conn, opts...)
			var state *headwaterv1.SessionState
			switch m := reply.(type) {
			case *headwaterv1.ForkSessionResponse:
				state = m.GetState()
			case *headwaterv1.CreateSessionResponse:
				state = m.GetState()
			}
			for _, l := range state.GetLayers() {
				if wrong.Load() {
					l.Length = 1 << 63
				}
			}
			return err
		}
		liar, err := client.Dial(c.address, grpc.WithChainUnaryInterceptor(lies))
		if err != nil {
			t.Fatal(err)
		}
		defer liar.Close()
		s := open(t, liar, client.SessionOptions{Layers: layers, Direct: direct})
		wrong.Store(true)
		held := func(want int) {
			t.Helper()
			if all, err := c.Sessions(t.Context()); err != nil || len(all.Sessions) != want {
				t.Fatalf("direct %v: %d sessions are held, want %d: %v", direct, len(all.Sessions), want, err)
			}
		}
		if _, err := s.Fork(t.Context()); err == nil || !strings.Contains(err.Error(), "fork session "+s.ID().String()) || !strings.Contains(err.Error(), "of length 9223372036854775808") {
			t.Errorf("direct %v: %v", direct, err)
		}
		held(1)
		if _, err := liar.OpenSession(t.Context(), client.SessionOptions{Layers: layers, Direct: direct}); err == nil {
			t.Errorf("direct %v: what makes no sense is opened", direct)
		}
		held(1)
		// Where it can not be dropped, that is said.
		deaf.Store(true)
		if _, err := s.Fork(t.Context()); err == nil || !strings.Contains(err.Error(), " stays until its TTL: ") || !strings.Contains(err.Error(), "the network is down") {
			t.Errorf("direct %v: %v", direct, err)
		}
		held(2)
	}
}

// Calls of a client that is closed, and of a session, say so, whatever they are.
func TestAClosedClientSaysSo(t *testing.T) {
	for _, direct := range []bool{true, false} {
		c := start(t, 2)
		mine, err := client.Dial(c.address)
		if err != nil {
			t.Fatal(err)
		}
		s := open(t, mine, client.SessionOptions{Layers: layers, Direct: direct})
		step(t, s, newModel(layers), rng(1), 0, 3)
		gone := open(t, mine, client.SessionOptions{Layers: layers, Direct: direct})
		dropped := open(t, mine, client.SessionOptions{Layers: layers, Direct: direct})
		if err := errors.Join(gone.Close(), dropped.Drop(t.Context())); err != nil {
			t.Fatal(err)
		}
		row := func(s *client.Session) error { _, err := attended(t, s, 0, project(rng(2), layers[0], 1)); return err }
		for _, s := range []*client.Session{gone, dropped} {
			for _, err := range []error{row(s), s.Truncate(t.Context(), 0), s.Pin(t.Context(), true), s.Drop(t.Context())} {
				if !errors.Is(err, client.ErrClosed) || !strings.HasSuffix(err.Error(), "session "+s.ID().String()+": the session is closed") {
					t.Errorf("direct %v: %v", direct, err)
				}
			}
		}
		if err := mine.Close(); err != nil {
			t.Fatal(err)
		}
		for name, call := range map[string]func() error{
			"step":     func() error { return row(s) },
			"truncate": func() error { return s.Truncate(t.Context(), 1) },
			"fork":     func() error { _, err := s.Fork(t.Context()); return err },
			"pin":      func() error { return s.Pin(t.Context(), true) },
			"export": func() error {
				return s.Export(t.Context(), 0, 0, 1, func(int, int, int, client.Rows) error { return nil })
			},
			"drop": func() error { return s.Drop(t.Context()) },
			"open": func() error {
				_, err := mine.OpenSession(t.Context(), client.SessionOptions{Layers: layers})
				return err
			},
			"attach": func() error { _, err := mine.Attach(t.Context(), s.ID(), client.AttachOptions{}); return err },
			"find":   func() error { _, err := mine.FindSession(t.Context(), s.ID()); return err },
			"list":   func() error { _, err := mine.Sessions(t.Context()); return err },
			"caches": func() error { _, err := mine.Caches(t.Context()); return err },
			"status": func() error { _, err := mine.Status(t.Context()); return err },
			"get":    func() error { _, err := mine.Get(t.Context(), "c-1"); return err },
			"wait":   func() error { _, err := mine.Wait(t.Context(), "c-1", nil); return err },
			"result": func() error {
				_, err := mine.Download(t.Context(), "c-1", filepath.Join(t.TempDir(), "result.safetensors"), nil)
				return err
			},
		} {
			err := call()
			if !errors.Is(err, client.ErrClosed) || !strings.HasSuffix(err.Error(), ": the client is closed") {
				t.Errorf("direct %v: %s: %v", direct, name, err)
			}
			for _, other := range []error{client.ErrUnreachable, client.ErrLost, context.Canceled} {
				if errors.Is(err, other) {
					t.Errorf("direct %v: %s: %v is %v", direct, name, err, other)
				}
			}
		}
	}
}

func TestALostWorkerIsNamed(t *testing.T) {
	for _, direct := range []bool{true, false} {
		c := start(t, 2)
		r := rand.New(rand.NewPCG(11, 12))
		s, m := open(t, c.Client, client.SessionOptions{Layers: layers, Direct: direct}), newModel(layers)
		step(t, s, m, r, 0, 3)
		c.servers[1].Stop()
		one := project(r, layers[0], 1)
		err := s.Step(t.Context(), 0, nil, one.k, one.v, nil, nil)
		var lost *client.SessionError
		if !errors.Is(err, client.ErrLost) || !errors.As(err, &lost) || lost.Holder != "w2" {
			t.Errorf("direct %v: %v", direct, err)
		}
		if _, err := s.Fork(t.Context()); !errors.Is(err, client.ErrLost) {
			t.Errorf("direct %v: fork: %v", direct, err)
		}
		// New sessions go to who is there.
		again, m := open(t, c.Client, client.SessionOptions{Layers: layers, Direct: direct}), newModel(layers)
		step(t, again, m, r, 0, 3)
	}
}

// What a worker that does not answer may hold is not said to be nowhere: neither by who lists sessions, nor by who looks for one.
func TestAWorkerThatDoesNotAnswerMayHoldTheSession(t *testing.T) {
	c := start(t, 2)
	both := open(t, c.Client, client.SessionOptions{Layers: layers})
	alone := map[string]*client.Session{} // by the worker that holds all of it
	for len(alone) < 2 {
		s := open(t, c.Client, client.SessionOptions{Layers: layers, Workers: 1})
		found, err := c.FindSession(t.Context(), s.ID())
		if err != nil || len(found.Holders) != 1 {
			t.Fatalf("%v: %v", found, err)
		}
		alone[found.Holders[0].Name] = s
	}
	c.servers[1].Stop()
	all, err := c.Sessions(t.Context())
	if err != nil || len(all.Caches) != 1 || len(all.Silent) != 1 {
		t.Fatalf("%v: %v", all, err)
	}
	if w := all.Silent[0]; w.Worker != "w2" || w.Address != c.addresses[1] || w.Error == "" {
		t.Errorf("got %v", w)
	}
	w2 := alone["w2"].ID()
	for _, s := range all.Sessions {
		if s.ID == w2 {
			t.Errorf("%v is listed", s)
		}
	}
	// Also by a coordinator that has not seen them before.
	var members []membership.Member
	for i, h := range c.holders {
		members = append(members, membership.Member{Name: h.Name, Role: membership.RoleWorker, Address: c.addresses[i], Weight: 1})
	}
	fresh := startCoordinator(t, members)
	other := dial(t, fresh)
	conn, err := grpc.NewClient(fresh, rpc.DialOptions()...)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	for id, want := range map[client.SessionID]string{
		both.ID(): "w2: it did not answer, and may hold the rest of the session: ", alone["w2"].ID(): "w2: it did not answer, and may hold the session: ",
		{1}: "w2: it did not answer, and may hold the session: ",
	} {
		_, found := c.FindSession(t.Context(), id)
		_, attached := c.Attach(t.Context(), id, client.AttachOptions{})
		_, written := c.SnapshotSession(t.Context(), id, io.Discard, nil)
		for _, err := range []error{found, attached, written} {
			var e *client.SessionError
			if !errors.As(err, &e) || !errors.Is(err, client.ErrLost) || errors.Is(err, client.ErrNotFound) || e.Holder != "w2" || !strings.Contains(err.Error(), want) {
				t.Errorf("got %v, want %q", err, want)
			}
		}
		_, err = headwaterv1.NewSessionServiceClient(conn).PinSession(t.Context(), &headwaterv1.PinSessionRequest{Session: id[:]})
		if e, ok := session.FromError(err); !ok || e.Reason() != session.Lost || !strings.Contains(e.Error(), want) {
			t.Errorf("a call: got %v, want %q", err, want)
		}
	}
	if s, err := other.Attach(t.Context(), alone["w1"].ID(), client.AttachOptions{}); err != nil {
		t.Errorf("a session of the other worker: %v", err)
	} else {
		step(t, s, newModel(layers), rng(1), 0, 1)
	}
}

func TestAWorkerThatHangsMayHoldTheSession(t *testing.T) {
	var hangs atomic.Bool
	goOn := make(chan struct{})
	c := startCounted(t, 2, worker.Config{}, func(worker int) []grpc.ServerOption {
		return []grpc.ServerOption{grpc.ChainUnaryInterceptor(func(ctx context.Context, req any, info *grpc.UnaryServerInfo, handle grpc.UnaryHandler) (any, error) {
			if worker == 1 && hangs.Load() && info.FullMethod == headwaterv1.SessionService_ListSessions_FullMethodName {
				select {
				case <-goOn:
				case <-ctx.Done(): // as when the test has failed
				}
			}
			return handle(ctx, req)
		})}
	})
	hangs.Store(true)
	var tasks sync.WaitGroup
	tasks.Go(func() {
		if _, err := c.FindSession(t.Context(), client.SessionID{1}); !errors.Is(err, client.ErrLost) || !strings.Contains(err.Error(), "w2: it did not answer, and may hold the session: no answer within ") {
			t.Error(err)
		}
	})
	tasks.Go(func() {
		if s, err := c.OpenSession(t.Context(), client.SessionOptions{Layers: small}); err != nil {
			t.Error(err)
		} else if err := s.Drop(t.Context()); err != nil {
			t.Error(err)
		}
	})
	await.All(t, &tasks, "the answers about a worker that hangs")
	close(goOn)
}

func TestACoordinatorThatStartsGoesOn(t *testing.T) {
	c := start(t, 2)
	var members []membership.Member
	state := open(t, c.Client, client.SessionOptions{Layers: layers, Direct: true})
	r, m := rand.New(rand.NewPCG(13, 14)), newModel(layers)
	for layer := range layers {
		step(t, state, m, r, layer, 5)
	}
	found, err := c.FindSession(t.Context(), state.ID())
	if err != nil {
		t.Fatal(err)
	}
	for _, o := range found.Holders {
		members = append(members, membership.Member{Name: o.Name, Role: membership.RoleWorker, Address: o.Address, Weight: 1})
	}
	other := dial(t, startCoordinator(t, members))
	s, err := other.Attach(t.Context(), state.ID(), client.AttachOptions{})
	if err != nil {
		t.Fatal(err)
	}
	for layer := range layers {
		step(t, s, m, r, layer, 2)
	}
	all, err := other.Sessions(t.Context())
	if err != nil || len(all.Sessions) != 1 || len(all.Caches) != 2 || all.Sessions[0].Layers[0].Length != 7 {
		t.Errorf("%v: %v", all, err)
	}
	if err := other.DropSession(t.Context(), s.ID()); err != nil {
		t.Fatal(err)
	}
	if err := other.DropSession(t.Context(), s.ID()); err != nil {
		t.Errorf("dropped twice: %v", err)
	}
	if err := other.DropSession(t.Context(), client.SessionID{1}); !errors.Is(err, client.ErrNotFound) {
		t.Errorf("dropped what never was: %v", err)
	}
	one := project(r, layers[0], 1)
	if err := s.Step(t.Context(), 0, nil, one.k, one.v, nil, nil); !errors.Is(err, client.ErrNotFound) {
		t.Errorf("a step of a dropped session: %v", err)
	}
}

func TestAStepTooLargeForAMessageGoesInSeveral(t *testing.T) {
	wide := []client.Layer{{Heads: 8, KVHeads: 2, HeadDim: 512}, {Heads: 8, KVHeads: 2, HeadDim: 512, NotCausal: true}}
	c := start(t, 2)
	for _, direct := range []bool{true, false} {
		r := rand.New(rand.NewPCG(15, 16))
		s, m := open(t, c.Client, client.SessionOptions{Layers: wide, Direct: direct}), newModel(wide)
		step(t, s, m, r, 0, 400)
		step(t, s, m, r, 1, 400)
	}
}

// A coordinator holds back a lane whose steps have more bytes than it keeps, and all of them are done.
func TestMoreBytesThanACoordinatorKeeps(t *testing.T) {
	c := start(t, 2)
	wide := []client.Layer{{Heads: 2, HeadDim: 512}}
	const tokens = 1400
	rows := make([]float32, tokens*2*512)
	var steps []*client.Step
	for range 7 { // of 11 MiB
		steps = append(steps, &client.Step{Session: open(t, c.Client, client.SessionOptions{Layers: wide}), K: rows, V: rows})
	}
	for round := 1; round <= 2; round++ {
		if err := client.Do(t.Context(), steps...); err != nil {
			t.Fatal(err)
		}
		for _, s := range steps {
			if s.Session.Len() != round*tokens {
				t.Fatalf("%d positions after %d steps of %d", s.Session.Len(), round, tokens)
			}
		}
	}
}

// Sessions of one group, which only one worker can hold, are not all of the same one's.
func TestSmallSessionsSpread(t *testing.T) {
	c := start(t, 3)
	held := map[string]int{}
	const sessions = 48
	for range sessions {
		s := open(t, c.Client, client.SessionOptions{Layers: []client.Layer{{Heads: 2, KVHeads: 1, HeadDim: 4}}})
		found, err := c.FindSession(t.Context(), s.ID())
		if err != nil || len(found.Holders) != 1 {
			t.Fatalf("%v: %v", found, err)
		}
		held[found.Holders[0].Name]++
	}
	if len(held) != 3 {
		t.Errorf("%d sessions are at %v", sessions, held)
	}
}

// A list in parts is the list of all, with each session whole.
func TestSessionsAreListedInParts(t *testing.T) {
	c := start(t, 3)
	for groups := range 8 {
		open(t, c.Client, client.SessionOptions{Layers: []client.Layer{{Heads: groups + 1, HeadDim: 4}}})
	}
	listed, err := c.Sessions(t.Context())
	all := listed.Sessions
	if err != nil || len(all) != 8 || len(listed.Silent) != 0 {
		t.Fatalf("%d sessions: %v", len(all), err)
	}
	conn, err := grpc.NewClient(c.address, rpc.DialOptions()...)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	for limit := uint32(1); limit < 10; limit++ {
		req := &headwaterv1.ListSessionsRequest{Limit: limit}
		rest := all
		for {
			resp, err := headwaterv1.NewSessionServiceClient(conn).ListSessions(t.Context(), req)
			if err != nil || len(resp.GetSessions()) != min(int(limit), len(rest)) {
				t.Fatalf("%d of %d sessions in parts of %d: %v", len(resp.GetSessions()), len(rest), limit, err)
			}
			for i, s := range resp.GetSessions() {
				if !bytes.Equal(s.GetSession(), rest[i].ID[:]) || len(s.GetHolders()) != len(rest[i].Holders) {
					t.Fatalf("got %v, want %v", s, rest[i])
				}
			}
			if rest = rest[len(resp.GetSessions()):]; len(rest) == 0 {
				break
			}
			req.After = resp.GetSessions()[len(resp.GetSessions())-1].GetSession()
		}
	}
}

// Keys and values that are narrowed here are those that the workers would have made of them, to the hash, whatever is sent.
func TestNarrowedHereOrThereIsTheSame(t *testing.T) {
	var stored []client.Layer
	for _, storage := range []tensor.DType{tensor.F32, tensor.F16, tensor.BF16, tensor.I8} {
		stored = append(stored, client.Layer{Heads: 6, KVHeads: 3, HeadDim: 24, VDim: 20, Storage: storage})
	}
	c := start(t, 2)
	sent := make(chan headwaterv1.StorageType, 64)
	for _, h := range c.holders {
		h.Set(func(m *session.Step) *session.Error {
			sent <- m.Encoding
			return nil
		})
	}
	// encodings are those of all parts that the holders have been sent.
	encodings := func() map[headwaterv1.StorageType]bool {
		all := map[headwaterv1.StorageType]bool{}
		for len(sent) > 0 {
			all[<-sent] = true
		}
		return all
	}
	for _, direct := range []bool{false, true} {
		here := open(t, c.Client, client.SessionOptions{Layers: stored, Direct: direct})
		there := open(t, c.Client, client.SessionOptions{Layers: stored, Direct: direct, SendF32: true})
		r := rand.New(rand.NewPCG(19, 20))
		both := func(layer int, one tokens) (errs [2]error) {
			for i, s := range []*client.Session{here, there} {
				want := headwaterv1.StorageType_STORAGE_TYPE_F32
				if s == here {
					want += headwaterv1.StorageType(layer) // which stores the types in their order
				}
				errs[i] = s.Step(t.Context(), layer, nil, one.k, one.v, nil, nil)
				if got := encodings(); errs[i] == nil && (len(got) != 1 || !got[want]) {
					t.Fatalf("layer %d was sent as %v, want %v", layer, got, want)
				}
			}
			return errs
		}
		for _, n := range []int{1, 5, 64, 1} {
			for layer, l := range stored {
				if errs := both(layer, project(r, l, n)); errs[0] != nil || errs[1] != nil {
					t.Fatal(errs)
				}
			}
		}
		for layer, l := range stored {
			for _, x := range []float64{math.NaN(), math.Inf(1), math.Inf(-1), 65519, 65520, math.MaxFloat32} {
				for _, n := range []int{1, 3} {
					one := project(r, l, n)
					one.v[len(one.v)-1] = float32(x)
					errs := both(layer, one)
					var a, b *client.SessionError
					if (errs[0] == nil) != (errs[1] == nil) || errors.As(errs[0], &a) && errors.As(errs[1], &b) && a.Reason != b.Reason {
						t.Errorf("layer %d of %s, %g among %d tokens: %v, and sent as f32 %v", layer, l.Storage, x, n, errs[0], errs[1])
					}
				}
			}
		}
		for layer := range stored {
			a, b := here.Receipt().Layers[layer], there.Receipt().Layers[layer]
			if a.Length != b.Length || !slices.Equal(a.Hashes, b.Hashes) || a.Length < 71 {
				t.Errorf("layer %d: %d positions %x, and narrowed by workers %d %x", layer, a.Length, a.Hashes, b.Length, b.Hashes)
			}
		}
	}
}

// The same on real workers.
func TestNarrowedHereOrByRealWorkersIsTheSame(t *testing.T) {
	c, stop := dialCluster()
	defer stop()
	for _, storage := range []tensor.DType{tensor.F16, tensor.BF16, tensor.I8} {
		l := client.Layer{Heads: 6, KVHeads: 3, HeadDim: 24, VDim: 20, Storage: storage}
		here := open(t, c, client.SessionOptions{Layers: []client.Layer{l}})
		there := open(t, c, client.SessionOptions{Layers: []client.Layer{l}, SendF32: true})
		r := rand.New(rand.NewPCG(21, 22))
		for _, n := range []int{1, 70, 2} {
			one := project(r, l, n)
			var contexts [2][]float32
			for i, s := range []*client.Session{here, there} {
				contexts[i] = make([]float32, n*l.Heads*l.VDim)
				if err := s.Step(t.Context(), 0, one.q, one.k, one.v, contexts[i], nil); err != nil {
					t.Fatal(err)
				}
			}
			equal(t, storage.String(), contexts[0], contexts[1])
			if a, b := here.Receipt().Layers[0].Hashes, there.Receipt().Layers[0].Hashes; !slices.Equal(a, b) {
				t.Fatalf("%s: hashes %x, and narrowed by workers %x", storage, a, b)
			}
		}
	}
}

// TestBusySaysWhenToTryAgain: the error of a step says what the holder says, if it does.
func TestBusySaysWhenToTryAgain(t *testing.T) {
	each(t, func(t *testing.T, c *cluster, direct bool) {
		s := open(t, c.Client, client.SessionOptions{Layers: layers, Direct: direct})
		x := project(rng(1), layers[0], 1)
		silent := session.Errorf(session.Busy, "too much")
		silent.Why.RetryAfterMillis = 0
		for _, k := range []struct {
			why  *session.Error
			want time.Duration
		}{{session.Errorf(session.Busy, "too much"), rpc.RetryAfter}, {silent, 0}} {
			for _, h := range c.holders {
				h.Set(func(*session.Step) *session.Error { return k.why })
			}
			err := s.Step(t.Context(), 0, nil, x.k, x.v, nil, nil)
			var refused *client.SessionError
			if !errors.As(err, &refused) || refused.Reason != client.ReasonBusy || refused.RetryAfter != k.want {
				t.Errorf("got %v: %+v, want it again after %v", err, refused, k.want)
			}
		}
	})
}

// TestCloseDropsWhatItsClientMade: a session that was opened or forked is dropped, unless it is to be kept, and one that was attached
// stays, unless it is not.
func TestCloseDropsWhatItsClientMade(t *testing.T) {
	each(t, func(t *testing.T, c *cluster, direct bool) {
		end := func(s *client.Session, kept bool) {
			t.Helper()
			for range 2 { // the second time it does nothing
				if err := s.Close(); err != nil {
					t.Fatal(err)
				}
			}
			if err := s.Truncate(t.Context(), 0); !errors.Is(err, client.ErrClosed) {
				t.Fatalf("a closed session is truncated: %v", err)
			}
			if _, err := c.FindSession(t.Context(), s.ID()); (err == nil) != kept || err != nil && !errors.Is(err, client.ErrGone) {
				t.Fatalf("kept %v: %v", kept, err)
			}
		}
		attach := func(s *client.Session) *client.Session {
			t.Helper()
			s, err := dial(t, c.address).Attach(t.Context(), s.ID(), client.AttachOptions{Direct: direct})
			if err != nil {
				t.Fatal(err)
			}
			return s
		}
		opened := open(t, c.Client, client.SessionOptions{Layers: layers, Direct: direct})
		fork, err := opened.Fork(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		end(fork, false)
		opened.Keep(true)
		end(opened, true)
		end(attach(opened), true)
		// Another client drives it: it is the other's to drop.
		before, after := attach(opened), attach(opened)
		before.Keep(false)
		end(before, true)
		after.Keep(false)
		end(after, false)
		gone := open(t, c.Client, client.SessionOptions{Layers: layers, Direct: direct})
		if err := c.DropSession(t.Context(), gone.ID()); err != nil {
			t.Fatal(err)
		}
		end(gone, false)
	})
}
