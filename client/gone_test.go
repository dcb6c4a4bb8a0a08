package client_test

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc"

	"headwater.example/client"
	"headwater.example/internal/session"
	"headwater.example/internal/testkit/await"
	headwaterv1 "headwater.example/proto/headwater/v1"
	"headwater.example/worker"
)

// door is before the second of two workers. What comes while its method is shut waits there until who sent it is gone.
type door struct {
	shut    atomic.Pointer[string]
	arrived chan struct{} // one element for each that waits
	done    chan struct{} // one element for each that has waited and has been handled
	lanes   chan struct{} // one element for each lane of any worker that has ended
}

func newDoor() *door {
	return &door{arrived: make(chan struct{}, 100), done: make(chan struct{}, 100), lanes: make(chan struct{}, 100)}
}

func (d *door) close(method string) { d.shut.Store(&method) }
func (d *door) open()               { d.shut.Store(nil) }

// wait tells whether it was shut.
func (d *door) wait(ctx context.Context, method string) bool {
	if shut := d.shut.Load(); shut == nil || *shut != method {
		return false
	}
	d.arrived <- struct{}{}
	<-ctx.Done()
	return true
}

func (d *door) options(worker int) []grpc.ServerOption {
	return []grpc.ServerOption{
		grpc.ChainUnaryInterceptor(func(ctx context.Context, req any, info *grpc.UnaryServerInfo, handle grpc.UnaryHandler) (any, error) {
			if worker == 1 && d.wait(ctx, info.FullMethod) {
				defer func() { d.done <- struct{}{} }()
			}
			return handle(ctx, req)
		}),
		grpc.ChainStreamInterceptor(func(srv any, stream grpc.ServerStream, info *grpc.StreamServerInfo, handle grpc.StreamHandler) error {
			if info.FullMethod != headwaterv1.SessionService_Lane_FullMethodName {
				return handle(srv, stream)
			}
			defer func() { d.lanes <- struct{}{} }()
			if worker == 1 {
				stream = &doored{stream, d}
			}
			return handle(srv, stream)
		}),
	}
}

type doored struct {
	grpc.ServerStream
	door *door
}

func (s *doored) RecvMsg(m any) error {
	err := s.ServerStream.RecvMsg(m)
	if err == nil {
		s.door.wait(s.Context(), headwaterv1.SessionService_Lane_FullMethodName)
	}
	return err
}

// spoiled has a worker refuse what a step appends, as long as it is set.
type spoiled struct {
	grpc.ServerStream
	set *atomic.Bool
}

func (s *spoiled) RecvMsg(m any) error {
	err := s.ServerStream.RecvMsg(m)
	if r, ok := m.(*session.Request); err == nil && ok && s.set.Load() && r.Step.Append > 0 {
		r.Step.Hashes[0]++
	}
	return err
}

// An append that only some workers have done is taken back, and a layer with a window may have freed pages there by then: those
// that the next appended token does not see. A query before it has the right context or is refused by name.
func TestWhatIsTakenBackMayHaveFreedPages(t *testing.T) {
	var set atomic.Bool
	windowed := []client.Layer{{Heads: 4, KVHeads: 4, HeadDim: 4, WindowLeft: client.Within(30)}}
	c := startCounted(t, 2, worker.Config{}, func(worker int) []grpc.ServerOption {
		return []grpc.ServerOption{grpc.ChainStreamInterceptor(func(srv any, stream grpc.ServerStream, info *grpc.StreamServerInfo, handle grpc.StreamHandler) error {
			if worker == 1 && info.FullMethod == headwaterv1.SessionService_Lane_FullMethodName {
				stream = &spoiled{stream, &set}
			}
			return handle(srv, stream)
		})}
	})
	refused := 0
	for _, direct := range []bool{false, true} {
		for _, x := range []struct{ before, more, queries int }{{157, 1, 1}, {158, 1, 1}, {159, 40, 0}, {190, 100, 100}, {222, 200, 0}, {223, 2, 1}, {300, 1000, 1}} {
			name := fmt.Sprintf("direct=%v %+v", direct, x)
			s, m, r := open(t, c.Client, client.SessionOptions{Layers: windowed, Direct: direct}), newModel(windowed), rng(uint64(x.before))
			grow(t, s, m, r, x.before)
			set.Store(true)
			lost := project(r, windowed[0], x.more)
			failed := client.Step{K: lost.k, V: lost.v, Q: lost.q[:x.queries*4*4], Context: make([]float32, x.queries*4*4)}
			if err := s.Do(t.Context(), &failed); !errors.Is(err, client.ErrRefused) {
				t.Fatalf("%s: %v", name, err)
			}
			set.Store(false)
			for _, at := range []int{x.before - 1, x.before - 20, x.before - 40, x.before - 70, x.before - 100, 10} {
				q := project(r, windowed[0], 1).q
				want, _ := m.attend(t, 0, q, at, nil)
				got := make([]float32, len(want))
				err := s.Do(t.Context(), &client.Step{Q: q, Position: &at, Context: got})
				var e *client.SessionError
				switch {
				case err == nil:
					equal(t, fmt.Sprintf("%s: context at %d", name, at), got, want)
				case !errors.As(err, &e) || e.Reason != client.ReasonFreed || e.Holder != "w1":
					t.Errorf("%s: a query at %d: %v", name, at, err)
				default:
					refused++
				}
			}
			// It goes on from there, in the same way or another.
			grow(t, s, m, r, 1, 70)
			if err := s.Drop(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
	}
	if refused == 0 {
		t.Error("nothing has been freed")
	}
}

// TestAClientIsGone in the middle of a step that one of two workers has done, of an open and of a fork. Lanes end; the session
// stays, another client goes on with it, and once its TTL is over no page is in use.
func TestAClientIsGone(t *testing.T) {
	for _, direct := range []bool{false, true} {
		for name, leave := range map[string]func(t *testing.T, d *door, c *real, mine *client.Client, s *client.Session){
			"mid step": func(t *testing.T, d *door, c *real, mine *client.Client, s *client.Session) {
				d.close(headwaterv1.SessionService_Lane_FullMethodName)
				said := make(chan error, 1)
				one := project(rng(5), small[0], 100)
				go func() {
					_, err := attended(t, s, 0, one)
					said <- err
				}()
				await.One(t, d.arrived, "the step, at the second worker")
				if err := mine.Close(); err != nil {
					t.Error(err)
				}
				if err := await.One(t, said, "the end of a step of a closed client"); !errors.Is(err, client.ErrClosed) {
					t.Errorf("a step of a client that is closed under it: %v", err)
				}
			},
			"mid open": func(t *testing.T, d *door, c *real, mine *client.Client, s *client.Session) {
				d.close(headwaterv1.SessionService_CreateSession_FullMethodName)
				cancelled(t, d, func(ctx context.Context) error {
					_, err := mine.OpenSession(ctx, client.SessionOptions{Layers: small})
					return err
				})
			},
			"mid fork": func(t *testing.T, d *door, c *real, mine *client.Client, s *client.Session) {
				d.close(headwaterv1.SessionService_ForkSession_FullMethodName)
				cancelled(t, d, func(ctx context.Context) error {
					_, err := s.Fork(ctx)
					return err
				})
			},
		} {
			t.Run(fmt.Sprintf("%s,direct=%v", name, direct), func(t *testing.T) {
				d := newDoor()
				c := startCounted(t, 2, worker.Config{SessionTTL: time.Minute}, d.options)
				mine, err := client.Dial(c.address)
				if err != nil {
					t.Fatal(err)
				}
				r := rng(3)
				s, m := open(t, mine, client.SessionOptions{Layers: small, Direct: direct}), newModel(small)
				step(t, s, m, r, 0, 70)
				step(t, s, m, r, 1, 70)
				receipt := s.Receipt()

				leave(t, d, c, mine, s)
				d.open()
				_ = mine.Close() // it may be closed already
				for range c.workers {
					await.One(t, d.lanes, "the end of a lane")
				}
				for i, now := range c.counts(t) {
					if now.steps != 0 || now.tokens != 0 || now.lanes != 0 {
						t.Errorf("worker %d has %v", i+1, now)
					}
				}
				taken, err := c.Attach(t.Context(), s.ID(), client.AttachOptions{Receipt: &receipt, Direct: direct})
				if err != nil {
					t.Fatal(err)
				}
				for layer := range small {
					if taken.LayerLen(layer) != m.len(layer) {
						t.Errorf("layer %d has %d positions, want %d", layer, taken.LayerLen(layer), m.len(layer))
					}
					step(t, taken, m, r, layer, 2)
				}
				if left := c.expire(t, time.Minute-1); left < 1 {
					t.Error("the session has ended before its time")
				}
				if left := c.expire(t, 1); left != 0 {
					t.Errorf("%d sessions are left", left)
				}
				for i, now := range c.counts(t) {
					if now.pages != 0 {
						t.Errorf("worker %d has %d bytes of pages in use", i+1, now.pages)
					}
				}
			})
		}
	}
}

// cancelled makes a call, and cancels it while one worker has it.
func cancelled(t *testing.T, d *door, call func(ctx context.Context) error) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	said := make(chan error, 1)
	go func() { said <- call(ctx) }()
	await.One(t, d.arrived, "the call, at the second worker")
	cancel()
	if err := await.One(t, said, "the end of a cancelled call"); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
	await.One(t, d.done, "the end of the call at the second worker")
}
