//go:build linux

package e2e

import (
	"context"
	"math/rand/v2"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"

	"headwater.example/client"
	"headwater.example/internal/localcluster"
)

// asker has sessions of one tenant over the same positions, and lets queries attend over them.
type asker struct {
	ctx      context.Context
	sessions []*client.Session
	q        []float32
	answers  atomic.Int64
	answered func(n int64) // is called after the n-th answer; nil is not
}

// ask asks with one session until stop is closed.
func (a *asker) ask(s *client.Session, stop <-chan struct{}) error {
	out := make([]float32, len(a.q))
	for {
		select {
		case <-stop:
			return nil
		default:
		}
		if err := s.Do(a.ctx, &client.Step{Session: s, Q: a.q, Context: out}); err != nil {
			return err
		}
		if n := a.answers.Add(1); a.answered != nil {
			a.answered(n)
		}
	}
}

// TestTenantsShareAFullWorker: beside a tenant that floods a worker from many lanes, one with a single lane gets as many answers to
// questions of the same size, within a factor of 2.
func TestTenantsShareAFullWorker(t *testing.T) {
	t.Parallel()
	const lanes, heads, kv, dim, positions, enough = 40, 16, 4, 128, 8192, 300
	c, as := tenants(t, localcluster.Options{Workers: 1, Threads: 1}, [2]string{"client", "flood"}, [2]string{"client", "one"})
	ctx, cancel := context.WithCancel(bounded(t))
	defer cancel()
	layers := []client.Layer{{Heads: heads, KVHeads: kv, HeadDim: dim}}
	rng := rand.New(rand.NewPCG(1, 2))
	floats := func(n int) []float32 {
		all := make([]float32, n)
		for i := range all {
			all[i] = float32(rng.NormFloat64())
		}
		return all
	}
	tokens := make([]uint32, positions+1)
	rows := floats(positions * kv * dim)
	begin := func(as *client.Client, a *asker) {
		s, err := as.OpenSession(ctx, client.SessionOptions{Layers: layers, Direct: true, Tokens: tokens})
		if err != nil {
			t.Fatal(err)
		}
		if n := s.Prefix(); n == 0 {
			err = s.Do(ctx, &client.Step{Session: s, K: rows, V: rows, Tokens: tokens[:positions]})
		} else if n != positions {
			t.Fatalf("a session begins with %d positions", n)
		}
		if err != nil {
			t.Fatal(err)
		}
		a.sessions = append(a.sessions, s)
	}
	flood := &asker{ctx: ctx, q: floats(heads * dim)}
	one := &asker{ctx: ctx, q: flood.q}
	for range lanes {
		lane, err := client.DialWith(c.Address(), client.DialOptions{TLSDir: filepath.Join(c.tls, "client-flood")})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = lane.Close() }) // its sessions are ended by then
		begin(lane, flood)
	}
	for range 8 { // so that some wait while one is answered
		begin(as["one"], one)
	}
	stop := make(chan struct{})
	var during [2]int64 // answers to the flood when counting begins and ends
	one.answered = func(n int64) {
		switch n {
		case enough / 10: // all are there
			during[0] = flood.answers.Load()
		case enough/10 + enough:
			during[1] = flood.answers.Load()
			close(stop)
		}
	}
	var asking sync.WaitGroup
	for _, a := range []*asker{flood, one} {
		for _, s := range a.sessions {
			asking.Go(func() {
				if err := a.ask(s, stop); err != nil {
					t.Error(err)
					cancel()
				}
			})
		}
	}
	asking.Wait()
	got := [2]int64{during[1] - during[0], enough}
	if got[0] > 2*got[1] || got[1] > 2*got[0] {
		t.Errorf("one lane got %d answers, and %d lanes of another tenant %d", got[1], lanes, got[0])
	}
}
