package client_test

import (
	"errors"
	"fmt"
	"sync"
	"testing"

	"headwater.example/client"
	"headwater.example/internal/testkit/await"
	headwaterv1 "headwater.example/proto/headwater/v1"
	"headwater.example/worker"
)

// TestWhatIsHalfDroppedIsGone: a drop has reached one of two workers. Both live, so nobody is told that one is lost, whatever is asked
// before the drop reaches the other, and after.
func TestWhatIsHalfDroppedIsGone(t *testing.T) {
	eachKept(t, 2, func(t *testing.T, c *real, keepers []*keeper, direct bool) {
		for late := range keepers {
			s, err := c.OpenSession(t.Context(), client.SessionOptions{Layers: twoGroups, Direct: direct})
			if err != nil {
				t.Fatal(err)
			}
			step(t, s, newModel(twoGroups), rng(1), 0, 3)
			other := dial(t, c.address)
			seen, err := other.Attach(t.Context(), s.ID(), client.AttachOptions{Direct: direct})
			if err != nil {
				t.Fatal(err)
			}
			asked := func(when string) {
				t.Helper()
				x := project(rng(2), twoGroups[0], 1)
				for i, call := range []func() error{
					func() error { return seen.Step(t.Context(), 0, nil, x.k, x.v, nil, nil) },
					func() error { _, err := seen.Fork(t.Context()); return err },
					func() error { return seen.Truncate(t.Context(), 1) },
					// The last, since it takes the part that is there over.
					func() error {
						_, err := other.Attach(t.Context(), s.ID(), client.AttachOptions{Direct: direct})
						return err
					},
				} {
					if err := call(); !errors.Is(err, client.ErrGone) {
						t.Errorf("worker %d is late, %s, call %d: %v", late, when, i, err)
					}
				}
			}
			arrived, letGo := keepers[late].keep(headwaterv1.SessionService_DropSession_FullMethodName)
			dropped := make(chan error, 1)
			go func() { dropped <- c.DropSession(t.Context(), s.ID()) }()
			await.One(t, arrived, "the drop, at the worker that keeps it")
			until(t, c.members[1-late], s.ID(), func(s *headwaterv1.SessionState) bool { return s == nil })
			asked("half dropped")
			letGo()
			if err := await.One(t, dropped, "the end of the drop"); err != nil {
				t.Error(err)
			}
			asked("dropped")
		}
	})
}

// TestWhatOthersDropIsGoneInAStorm: sessions are dropped while their clients step them and others take them over, fork and find
// them, all at once. Every worker lives, so nobody may be told that one is lost.
func TestWhatOthersDropIsGoneInAStorm(t *testing.T) {
	t.Parallel()
	c := startCounted(t, 3, worker.Config{})
	layers := []client.Layer{{Heads: 3, KVHeads: 3, HeadDim: 8}}
	rows := make([]float32, 3*8)
	for _, direct := range []bool{false, true} {
		others := dial(t, c.address)
		var storm sync.WaitGroup
		for i := range 24 {
			storm.Go(func() {
				s, err := c.OpenSession(t.Context(), client.SessionOptions{Layers: layers, Direct: direct})
				if err != nil {
					t.Error(err)
					return
				}
				ended := func(what string, err error) bool {
					if err == nil {
						return false
					}
					if !errors.Is(err, client.ErrGone) && !errors.Is(err, client.ErrTakenOver) {
						t.Errorf("direct %v, %s of session %d: %v", direct, what, i, err)
					}
					return true
				}
				step := func(s *client.Session) error {
					return s.Step(t.Context(), 0, rows, rows, rows, make([]float32, len(rows)), nil)
				}
				var of sync.WaitGroup
				begun, begin := make(chan struct{}), sync.Once{}
				of.Go(func() {
					for !ended("a step", step(s)) {
						begin.Do(func() { close(begun) })
					}
					begin.Do(func() { close(begun) })
				})
				of.Go(func() {
					for <-begun; ; {
						taken, err := others.Attach(t.Context(), s.ID(), client.AttachOptions{Direct: direct})
						if ended("a take-over", err) && !errors.Is(err, client.ErrTakenOver) {
							return
						}
						if err != nil || ended("a step of who took it", step(taken)) {
							continue
						}
						if child, err := taken.Fork(t.Context()); !ended("a fork", err) {
							ended("dropping the fork", child.Drop(t.Context()))
						}
					}
				})
				of.Go(func() {
					<-begun
					for range 3 {
						_, err := others.FindSession(t.Context(), s.ID())
						ended("finding", err)
					}
					ended("dropping", others.DropSession(t.Context(), s.ID()))
				})
				of.Wait()
				if _, err := c.Attach(t.Context(), s.ID(), client.AttachOptions{Direct: direct}); !errors.Is(err, client.ErrGone) {
					t.Error(fmt.Errorf("session %d after all: %w", i, err))
				}
			})
		}
		await.All(t, &storm, "the end of the storm")
	}
	if all, err := c.Sessions(t.Context()); err != nil || len(all.Sessions) != 0 {
		t.Errorf("%v are held in the end, %v", all, err)
	}
}
