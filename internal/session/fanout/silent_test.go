package fanout_test

import (
	"fmt"
	"slices"
	"testing"

	"headwater.example/internal/rpc"
	"headwater.example/internal/session"
	"headwater.example/internal/testkit/await"
	headwaterv1 "headwater.example/proto/headwater/v1"
)

// TestAHolderThatHangsIsLeftOut: a session whose holder reads and answers nothing goes on without it, in the middle of a step and of
// every other call, also with more steps under way than a stream takes. When the holder wakes up and does what it was sent, nothing
// changes.
func TestAHolderThatHangsIsLeftOut(t *testing.T) {
	calls := map[string]func(p *copied, alone *plain) error{
		"step": func(p *copied, alone *plain) error { return p.step(t, alone, 2, 0) },
		"take": func(p *copied, _ *plain) error {
			_, err := p.conns.Take(t.Context(), p.at, &headwaterv1.TakeSessionRequest{Session: p.id[:], Epoch: &headwaterv1.Epoch{Counter: 2, Lane: p.epoch.GetLane()}})
			return err
		},
		"truncate": func(p *copied, _ *plain) error {
			_, err := p.conns.Truncate(t.Context(), p.at, &headwaterv1.TruncateSessionRequest{Session: p.id[:], Epoch: p.epoch, Position: 1, Expect: p.known, Id: 5})
			return err
		},
		"fork": func(p *copied, _ *plain) error {
			child := [16]byte{8}
			_, err := p.conns.Fork(t.Context(), p.at, &headwaterv1.ForkSessionRequest{Session: p.id[:], Epoch: p.epoch, Child: child[:], ChildEpoch: p.epoch, Expect: p.known})
			return err
		},
	}
	for name, call := range calls {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			p, alone := startCopied(t, 3, 1, two...), start(t, 1, two...)
			if err := p.step(t, alone, 1, 0); err != nil {
				t.Fatal(err)
			}
			p.sleep[1].awake.Lock()
			err := call(p, alone)
			p.sleep[1].awake.Unlock()
			if err != nil {
				t.Fatal(err)
			}
			if got := names(p.at.Holding()); !slices.Equal(got, []string{"w1", "w3"}) {
				t.Fatalf("%v hold it", got)
			}
			if name != "step" {
				return
			}
			for i := range 6 {
				if err := p.step(t, alone, uint64(3+i), i%2); err != nil {
					t.Fatal(err)
				}
			}
		})
	}
}

// TestAHolderThatIsBusyIsWaitedFor: a holder that computes for long, and answers when it is asked whether it is there, is not left out.
func TestAHolderThatIsBusyIsWaitedFor(t *testing.T) {
	p, alone := startCopied(t, 3, 1, two...), start(t, 1, two...)
	p.nodes[1].Set(func(*session.Step) *session.Error {
		p.awaitAsked(t, 1, 20) // more often than a holder may miss
		return nil
	})
	if err := p.step(t, alone, 1, 0); err != nil {
		t.Fatal(err)
	}
	if got := names(p.at.Holding()); len(got) != 3 {
		t.Fatalf("%v hold it", got)
	}
}

// TestAHolderThatHangsIsWaitedForIfItIsMissed: without copies a step waits for a holder that hangs, and is done when it wakes up.
func TestAHolderThatHangsIsWaitedForIfItIsMissed(t *testing.T) {
	p, alone := startCopied(t, 3, 0, two...), start(t, 1, two...)
	if err := p.step(t, alone, 1, 0); err != nil {
		t.Fatal(err)
	}
	p.sleep[1].awake.Lock()
	done := make(chan error, 1)
	go func() { done <- p.step(t, alone, 2, 0) }()
	sleeper := rpc.Peer{Name: p.holding.Holders()[1].Name, Address: p.holding.Holders()[1].Address}
	watched := p.conns.Watch(sleeper)
	for changed := p.conns.Pulse(); !p.conns.Silent(sleeper); changed = p.conns.Pulse() {
		await.One(t, changed, "that a holder which hangs is found silent")
	}
	watched()
	select {
	case err := <-done:
		t.Fatalf("a step that a holder hangs in is over: %v", err)
	default:
	}
	p.sleep[1].awake.Unlock()
	if err := await.One(t, done, "the end of a step at a holder that has woken up"); err != nil {
		t.Fatal(err)
	}
	if got := names(p.at.Holding()); len(got) != 3 {
		t.Fatalf("%v hold it", got)
	}
}

// TestStepsThatFindNoRoomLeaveOutWhoHangs: more steps at once than a stream to a holder that hangs takes are all done.
func TestStepsThatFindNoRoomLeaveOutWhoHangs(t *testing.T) {
	p, alone := startCopied(t, 3, 1, two...), start(t, 1, two...)
	if err := p.step(t, alone, 1, 0); err != nil {
		t.Fatal(err)
	}
	p.sleep[1].awake.Lock()
	defer p.sleep[1].awake.Unlock()
	var wait []func() error
	for i := range 400 {
		known := p.known[0]
		step, _ := draw(rng(uint64(i)), p.layers, 0, p.id, known.GetLength(), known.GetHashes(), 0, 2)
		step.Chain = known.GetChain()
		call := p.lane.Start(t.Context(), p.at, step)
		wait = append(wait, func() error { return call.Wait(t.Context()) })
	}
	for i, w := range wait {
		if err := w(); err != nil {
			t.Fatal(fmt.Errorf("step %d: %w", i, err))
		}
	}
}
