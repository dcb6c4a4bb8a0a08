package sessions

import (
	"context"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"headwater.example/attention"
	"headwater.example/internal/session"
	"headwater.example/internal/testkit/await"
	headwaterv1 "headwater.example/proto/headwater/v1"
	"headwater.example/worker/internal/machine"
)

// exact fails unless nothing of the worker is in use but the pages of these sessions, which are as their clients know them.
func (p *place) exact(t testing.TB, used int64, all ...*sequence) {
	t.Helper()
	list, err := p.sessions.ListSessions(t.Context(), &headwaterv1.ListSessionsRequest{})
	if err != nil || len(list.GetSessions()) != len(all) {
		t.Fatalf("%d sessions are held, want %d: %v", len(list.GetSessions()), len(all), err)
	}
	for _, s := range all {
		list, err := p.sessions.ListSessions(t.Context(), &headwaterv1.ListSessionsRequest{Sessions: [][]byte{s.id}})
		if err != nil || len(list.GetSessions()) != 1 {
			t.Fatalf("session %x: %v", s.id, err)
		}
		s.same(t, list.GetSessions()[0])
	}
	c := list.GetCaches()[0]
	if int64(c.GetUsedBytes()) != used || c.GetQueuedSteps() != 0 || c.GetQueuedTokens() != 0 || c.GetLanes() != 0 || uint64(p.m.Budget.Used()) != c.GetUsedBytes()+c.GetFreeBytes()+c.GetRowBytes()+c.GetSessionBytes() {
		t.Fatalf("pages have %d bytes, of the budget %d are used: %v", used, p.m.Budget.Used(), c)
	}
}

// TestAClientIsGoneInTheMiddleOfAStep: a kernel of it runs, and more wait behind it. The lane ends, nothing of its steps is
// left, and another client goes on with the session, which ends by its TTL.
func TestAClientIsGoneInTheMiddleOfAStep(t *testing.T) {
	for name, c := range map[string]struct{ append, attend, behind int }{
		"a token":                 {1, 1, 0},
		"a prompt":                {300, 300, 0},
		"a prompt and what waits": {200, 200, 12},
		"a query":                 {0, 70, 3},
	} {
		t.Run(name, func(t *testing.T) {
			now := time.Unix(1e9, 0)
			gone := newTap(1)
			p := serveSessions(t, machine.Config{Now: func() time.Time { return now }, SessionTTL: time.Minute}, grpc.ChainStreamInterceptor(gone.intercept))
			close(gone.send)
			d := p.lane(t, 1)
			s := newSequence(1, simpleLayer(headwaterv1.StorageType_STORAGE_TYPE_F32))
			s.create(t, p, d)
			m := s.draw(t, 0, 70, 1, false)
			r := d.ask(t, m.step, m.payload)
			s.apply(m)
			s.check(t, m, r)
			used := p.m.Store.Cache().UsedBytes

			began := make(chan struct{}, 1)
			p.m.Acquired = func(ctx context.Context) {
				began <- struct{}{}
				<-ctx.Done()
			}
			m = s.draw(t, 0, c.append, c.attend, false)
			d.send(t, m.step, m.payload)
			ahead := s.fork(t, 1, 70)
			ahead.apply(m)
			for range c.behind {
				next := ahead.draw(t, 0, 5, 5, false)
				d.send(t, next.step, next.payload)
				ahead.apply(next)
			}
			await.One(t, began, "the step, at a thread")
			if c.append > attention.PageLen && p.m.Store.Cache().UsedBytes <= used {
				t.Error("no page is taken for what is appended")
			}
			d.cancel()
			await.One(t, gone.ended, "the end of the lane")
			p.exact(t, used, s)

			p.m.Acquired = nil
			other := p.lane(t, 2)
			if _, err := p.sessions.TakeSession(t.Context(), &headwaterv1.TakeSessionRequest{
				Session: s.id, Epoch: &headwaterv1.Epoch{Counter: 2, Lane: other.id[:]}, Expect: []*headwaterv1.LayerState{{Length: 70, Hashes: s.hashes(t, 0, 70)}},
			}); err != nil {
				t.Fatal(err)
			}
			s.epoch, m.step.Epoch = 2, 2
			r = other.ask(t, m.step, m.payload)
			s.apply(m)
			s.check(t, m, r)
			other.end(t)
			now = now.Add(time.Minute - 1)
			if n := p.m.Store.Expire(); n != 0 {
				t.Fatalf("%d sessions ended before their time", n)
			}
			now = now.Add(1)
			if n := p.m.Store.Expire(); n != 1 {
				t.Fatalf("%d sessions ended", n)
			}
			p.exact(t, 0)
		})
	}
}

// gated is a call that waits once its request has been received.
type gated struct {
	grpc.ServerStream
	wait func(ctx context.Context)
}

func (s *gated) RecvMsg(m any) error {
	if err := s.ServerStream.RecvMsg(m); err != nil {
		return err
	}
	s.wait(s.Context())
	return nil
}

// TestAClientIsGoneInTheMiddleOfACall: what was begun for it is done. What it has made stays until its TTL, to the page.
func TestAClientIsGoneInTheMiddleOfACall(t *testing.T) {
	now := time.Unix(1e9, 0)
	var gate func(ctx context.Context) // calls wait in it
	done := make(chan struct{}, 1)
	p := serveSessions(t, machine.Config{Now: func() time.Time { return now }, SessionTTL: time.Minute}, grpc.ChainStreamInterceptor(
		func(service any, stream grpc.ServerStream, info *grpc.StreamServerInfo, handle grpc.StreamHandler) error {
			if info.FullMethod == headwaterv1.SessionService_ListSessions_FullMethodName || gate == nil {
				return handle(service, stream)
			}
			defer func() { done <- struct{}{} }()
			return handle(service, &gated{stream, gate})
		}))
	d := p.lane(t, 1)
	s := newSequence(1, simpleLayer(headwaterv1.StorageType_STORAGE_TYPE_F16))
	s.create(t, p, d)
	m := s.draw(t, 0, 200, 0, false)
	if e := d.ask(t, m.step, m.payload).GetResult().GetError(); e != nil {
		t.Fatal(e)
	}
	s.apply(m)
	d.end(t)
	used := p.m.Store.Cache().UsedBytes

	began := make(chan struct{})
	gate = func(ctx context.Context) {
		began <- struct{}{}
		<-ctx.Done()
	}
	abandon := func(call func(ctx context.Context) error) {
		t.Helper()
		ctx, cancel := context.WithCancel(t.Context())
		said := make(chan error, 1)
		go func() { said <- call(ctx) }()
		select {
		case <-began:
		case err := <-said:
			t.Fatalf("it is not begun: %v", err)
		case <-time.After(await.Patience):
			t.Fatal("it has neither begun nor ended")
		}
		cancel()
		if err := await.One(t, said, "the end of a cancelled call"); status.Code(err) != codes.Canceled {
			t.Fatalf("got %v", err)
		}
		await.One(t, done, "the end of the call at the worker")
	}
	opened := newSequence(2, s.config.Layers...)
	abandon(func(ctx context.Context) error {
		_, err := p.sessions.CreateSession(ctx, &headwaterv1.CreateSessionRequest{Session: opened.id, Epoch: &headwaterv1.Epoch{Counter: 1, Lane: d.id[:]}, Config: s.config, Held: s.held})
		return err
	})
	p.exact(t, used, s, opened)
	child := s.fork(t, 3, 200)
	clear(child.chains)
	abandon(func(ctx context.Context) error {
		_, err := p.sessions.ForkSession(ctx, &headwaterv1.ForkSessionRequest{
			Session: s.id, Epoch: &headwaterv1.Epoch{Counter: 1, Lane: d.id[:]}, Child: child.id, ChildEpoch: &headwaterv1.Epoch{Counter: 1, Lane: d.id[:]}, Expect: s.known(t),
		})
		return err
	})
	p.exact(t, used, s, opened, child)
	abandon(func(ctx context.Context) error {
		_, err := p.sessions.TruncateSession(ctx, &headwaterv1.TruncateSessionRequest{Session: s.id, Epoch: &headwaterv1.Epoch{Counter: 1, Lane: d.id[:]}, Position: 100, Expect: s.known(t), Id: 7})
		return err
	})
	s.truncate(t, 100)
	s.truncations++
	s.chains[0] = 7
	p.exact(t, used, s, opened, child) // the child has what the session has not
	abandon(func(ctx context.Context) error {
		_, err := p.sessions.DropSession(ctx, &headwaterv1.DropSessionRequest{Session: opened.id})
		return err
	})
	p.exact(t, used, s, child)
	gate = nil
	// The answer was lost, and the same again is a success.
	if _, err := p.sessions.DropSession(t.Context(), &headwaterv1.DropSessionRequest{Session: opened.id}); err != nil {
		t.Fatal(err)
	}
	if _, err := p.sessions.DropSession(t.Context(), &headwaterv1.DropSessionRequest{Session: make([]byte, 16)}); status.Code(err) != codes.NotFound {
		t.Fatalf("what never was is dropped: %v", err)
	}
	now = now.Add(time.Minute)
	if n := p.m.Store.Expire(); n != 2 {
		t.Fatalf("%d sessions ended", n)
	}
	p.exact(t, 0)
}

// TestAbandonedSessionsMakeRoom: a client that fills a worker and goes away without dropping its session keeps others out for a minute
// and not for the TTL. While its lane is open, nobody is given its room.
func TestAbandonedSessionsMakeRoom(t *testing.T) {
	for name, leaves := range map[string]bool{"it has left": true, "its lane is open": false} {
		t.Run(name, func(t *testing.T) {
			var now atomic.Int64 // in seconds
			p := serveSessions(t, machine.Config{Budget: 3 << 20, Now: func() time.Time { return time.Unix(now.Load(), 0) }})
			layer := simpleLayer(headwaterv1.StorageType_STORAGE_TYPE_F32)
			fill := func(d *driver, s *sequence) (appended int) {
				t.Helper()
				s.create(t, p, d)
				for {
					m := s.draw(t, 0, 1024, 1, false)
					switch e := d.ask(t, m.step, m.payload).GetResult().GetError(); {
					case e == nil:
						s.apply(m)
						appended++
					case e.GetProblem() == problemOver:
						return appended
					default:
						t.Fatalf("got %v", e)
					}
				}
			}
			old, d := newSequence(1, layer), p.lane(t, 5)
			whole := fill(d, old)
			if leaves {
				d.end(t)
			}
			other := p.lane(t, 6)
			now.Add(59)
			if n := fill(other, newSequence(2, layer)); n != 0 {
				t.Fatalf("%d appends have taken the room of a session that was used within a minute", n)
			}
			now.Add(1)
			want := 0
			if leaves {
				want = whole
			}
			if n := fill(other, newSequence(3, layer)); n != want {
				t.Errorf("%d appends had room, want %d", n, want)
			}
			m := old.draw(t, 0, 1, 1, false)
			if leaves {
				d = p.lane(t, 5)
			}
			if e := d.ask(t, m.step, m.payload).GetResult().GetError(); (e.GetProblem() == session.Unknown) != leaves {
				t.Errorf("the session whose room is wanted: %v", e)
			}
			d.end(t)
			other.end(t)
		})
	}
}
