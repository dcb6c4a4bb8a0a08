//go:build linux

package e2e

import (
	"math"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"headwater.example/client"
	"headwater.example/internal/localcluster"
)

// read lets one token attend again over what it saw, in each layer, and compares that with the job.
func (g *generation) read(s *client.Session, token int) {
	g.t.Helper()
	q := g.heads * g.dim
	for i, l := range g.layers {
		step := &client.Step{Session: s, Layer: i, Q: l.q[token*q : (token+1)*q], Context: make([]float32, q), LSE: make([]float32, g.heads), Position: &token}
		if err := s.Do(g.ctx, step); err != nil {
			g.t.Fatal(err)
		}
		for j, want := range l.context[token*q : (token+1)*q] {
			if math.Float32bits(step.Context[j]) != math.Float32bits(want) {
				g.t.Fatalf("layer %d, token %d: element %d of the context is %x, the job's is %x", i, token, j, step.Context[j], want)
			}
		}
		for j, want := range l.lse[token*g.heads : (token+1)*g.heads] {
			if math.Float32bits(step.LSE[j]) != math.Float32bits(want) {
				g.t.Fatalf("layer %d, token %d: LSE of head %d is %x, the job's is %x", i, token, j, step.LSE[j], want)
			}
		}
	}
}

// TestAWorkerThatStandsStillIsReadAround: while a worker's process is stopped, attends over a session of which it has groups are
// answered by the holders of the copies, with the same bits, by a client and by a coordinator. Once it goes on, so does the session.
func TestAWorkerThatStandsStillIsReadAround(t *testing.T) {
	t.Parallel()
	c := start(t, localcluster.Options{Workers: 3, Replicas: 1})
	g, layers := generate(t, c)
	for _, direct := range []bool{true, false} {
		s, err := c.OpenSession(g.ctx, client.SessionOptions{Layers: layers, Direct: direct})
		if err != nil {
			t.Fatal(err)
		}
		g.step(s, 0, g.tokens-1)
		for round := range 3 {
			for i := range 100 {
				g.read(s, (7*i+round)%(g.tokens-1))
			}
			before := c.Attends()
			c.signal(t, round, syscall.SIGSTOP)
			if err := unix.Waitid(unix.P_PID, c.Process(round), nil, unix.WSTOPPED|unix.WNOWAIT, nil); err != nil {
				t.Fatal(err)
			}
			for i := range 5 {
				g.read(s, (5*i+round)%(g.tokens-1))
			}
			c.signal(t, round, syscall.SIGCONT)
			if after := c.Attends(); direct && after.Won == before.Won || after.Hedged > after.Asked/20 {
				t.Errorf("worker %d stood still: %+v after %+v", round, after, before)
			}
		}
		g.step(s, g.tokens-1, g.tokens)
		if err := s.Drop(g.ctx); err != nil {
			t.Fatal(err)
		}
	}
}
