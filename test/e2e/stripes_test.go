//go:build linux

package e2e

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"syscall"
	"testing"

	"headwater.example/client"
	"headwater.example/internal/localcluster"
)

// stripedPositions reach into a fourth split, so that each of three stripes has some, and one of them two splits.
const stripedPositions = 6200

// stripedTwins opens sessions in two and three stripes, relayed and direct, with so many copies.
func stripedTwins(t *testing.T, c, calm *cluster, replicas ...int) (all []*twin) {
	t.Helper()
	for i, stripes := range []int{2, 3} {
		for j, copies := range replicas {
			opts := client.SessionOptions{Direct: (i+j)&1 == 1, Replicas: copies, Stripes: stripes}
			all = append(all, openTwin(t, c, calm, opts, stripedPositions, uint64(len(all))))
		}
	}
	return all
}

// files returns snapshots of a session and of the one to which nothing happens.
func (s *twin) files(ctx context.Context, c, calm *cluster) (own, truth []byte, _ error) {
	var files [2]bytes.Buffer
	_, err := c.SnapshotSession(ctx, s.ID(), &files[0], nil)
	_, err2 := calm.SnapshotSession(ctx, s.truth.ID(), &files[1], nil)
	return files[0].Bytes(), files[1].Bytes(), errors.Join(err, err2)
}

// compare compares all that is stored of a session with what the other has, restores it in other stripes, and goes on with that.
func (s *twin) compare(t *testing.T, c, calm *cluster) {
	t.Helper()
	ctx := bounded(t)
	own, truth, err := s.files(ctx, c, calm)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(own, truth) {
		t.Fatalf("session %s of %d positions has another snapshot than where nothing happens", s.ID(), s.Len())
	}
	for _, stripes := range []int{0, 4} {
		restored, err := c.RestoreSession(ctx, bytes.NewReader(truth), client.RestoreOptions{Stripes: stripes})
		if err != nil {
			t.Fatal(err)
		}
		fork, err := s.truth.Fork(ctx)
		if err != nil {
			t.Fatal(err)
		}
		again := &twin{restored, fork, s.rand}
		if err := errors.Join(again.step(ctx, 1), again.step(ctx, 50), restored.Drop(ctx), fork.Drop(ctx)); err != nil {
			t.Fatalf("restored in %d stripes: %v", stripes, err)
		}
	}
}

// rebalancesTo waits, by asking for a rebalance, until a worker holds something.
func (c *cluster) rebalancesTo(t *testing.T, worker int) {
	t.Helper()
	for ctx := bounded(t); ; {
		coord(t, "rebalance", "--coordinator", c.Address()) // it passes by a worker that has not been seen to answer yet
		all, err := c.Sessions(ctx)
		if err != nil {
			t.Fatal(err)
		}
		if slices.ContainsFunc(all.Sessions, func(s client.SessionState) bool {
			return slices.ContainsFunc(s.Holders, func(h client.Holder) bool { return h.Name == c.Name(worker) })
		}) {
			return
		}
	}
}

// TestStripesMoveWhileTheyAreStepped: workers are drained, join, end in good order and are rebalanced to, while sessions in stripes are
// stepped. None has an error or other bits, and all that is stored stays what it is.
func TestStripesMoveWhileTheyAreStepped(t *testing.T) {
	t.Parallel()
	c, calm := start(t, localcluster.Options{Workers: 4, Threads: 1}), start(t, localcluster.Options{Workers: 1, Threads: 1})
	coord(t, "drain", c.Name(3), "--coordinator", c.Address()).progressed().succeeds(t)
	c.Kill(3) // it joins later
	all := stripedTwins(t, c, calm, -1, 1)
	stop := keepStepping(t, all)
	coord(t, "drain", c.Name(0), "--coordinator", c.Address()).progressed().succeeds(t)
	c.Kill(0) // which nobody notices
	for _, worker := range []int{3, 0} {
		if err := c.RestartWorker(bounded(t), worker); err != nil {
			t.Fatal(err)
		}
		if err := c.AwaitWorkers(bounded(t)); err != nil && worker == 0 {
			t.Fatal(err)
		}
	}
	c.rebalancesTo(t, 3)
	c.signal(t, 1, syscall.SIGTERM)
	select {
	case <-c.WorkerDone(1):
	case <-bounded(t).Done():
		t.Fatal("a worker that was asked to end does not")
	}
	if err := c.RestartWorker(bounded(t), 1); err != nil {
		t.Fatal(err)
	}
	if err := c.AwaitWorkers(bounded(t)); err != nil {
		t.Fatal(err)
	}
	c.rebalancesTo(t, 1)
	if err := stop(); err != nil {
		t.Fatal(err)
	}
	for _, s := range all {
		s.compare(t, c, calm)
	}
}

// TestOwnersOfStripesAreKilled kills workers of sessions in stripes with a copy while these are stepped: all go on with the same bits,
// and get new copies, of each stripe.
func TestOwnersOfStripesAreKilled(t *testing.T) {
	t.Parallel()
	c, calm := start(t, localcluster.Options{Workers: 4, Threads: 1}), start(t, localcluster.Options{Workers: 1, Threads: 1})
	all := stripedTwins(t, c, calm, 1, 1)
	stop := keepStepping(t, all)
	for worker := range 3 {
		c.Kill(worker)
		c.awaitCopies(t, 2, func(client.SessionState) bool { return true })
		if err := c.RestartWorker(bounded(t), worker); err != nil {
			t.Fatal(err)
		}
		if err := c.AwaitWorkers(bounded(t)); err != nil {
			t.Fatal(err)
		}
		c.rebalancesTo(t, worker)
	}
	if err := stop(); err != nil {
		t.Fatal(err)
	}
	for _, s := range all {
		s.compare(t, c, calm)
	}
}

// TestALostStripeIsSaidAndRecovered kills the only holder of a stripe: the error says which shards of how many positions are lost, and a
// snapshot gives them back in as many stripes.
func TestALostStripeIsSaidAndRecovered(t *testing.T) {
	t.Parallel()
	c, calm := start(t, localcluster.Options{Workers: 3, Threads: 1}), start(t, localcluster.Options{Workers: 1, Threads: 1})
	all := stripedTwins(t, c, calm, -1, -1)
	var before []string
	for _, s := range all {
		state, err := c.FindSession(bounded(t), s.ID())
		if err != nil {
			t.Fatal(err)
		}
		i := slices.IndexFunc(state.Holders, func(h client.Holder) bool { return h.Name == c.Name(1) })
		if i < 0 {
			t.Fatalf("%s holds nothing of session %s", c.Name(1), s.ID())
		}
		var lost []client.LostShards
		for _, l := range state.Holders[i].Layers {
			one := client.LostShards{Layer: l.Layer, Positions: stripedPositions - 1}
			for _, part := range l.Stripes {
				one.Groups = append(one.Groups, int(part[0])*state.Stripes[l.Layer]+int(part[1]))
			}
			lost = append(lost, one)
		}
		before = append(before, fmt.Sprint(lost))
	}
	c.Kill(1)
	for i, s := range all {
		var refused *client.SessionError
		if err := s.Truncate(bounded(t), stripedPositions-1); !errors.As(err, &refused) || fmt.Sprint(refused.Lost) != before[i] {
			t.Fatalf("%v; lost is %v, not %s", err, refused, before[i])
		}
		var kept bytes.Buffer
		if _, err := calm.SnapshotSession(bounded(t), s.truth.ID(), &kept, nil); err != nil {
			t.Fatal(err)
		}
		next, err := s.RecoverFrom(bounded(t), &kept, nil)
		if err != nil {
			t.Fatal(err)
		}
		state, err := c.FindSession(bounded(t), next.ID())
		if err != nil || slices.Max(state.Stripes) < 2 {
			t.Fatalf("recovered as %+v: %v", state, err)
		}
		if err := s.truth.Truncate(bounded(t), next.Len()); err != nil {
			t.Fatal(err)
		}
		again := &twin{next, s.truth, s.rand}
		if err := again.step(bounded(t), 20); err != nil {
			t.Fatal(err)
		}
		again.compare(t, c, calm)
	}
}
