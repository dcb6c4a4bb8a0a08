//go:build linux

package e2e

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"headwater.example/client"
	"headwater.example/internal/localcluster"
	"headwater.example/internal/testkit/sessionmodel"
	"headwater.example/tensor"
)

// layerOf is one layer of the fixture, as a model would have it.
type layerOf struct {
	q, k, v, context, lse []float32 // context and lse are the job's
}

// readFloats reads a tensor of float32.
func readFloats(t *testing.T, f *tensor.File, name string) ([]float32, []int) {
	t.Helper()
	info, ok := f.Lookup(name)
	if !ok {
		t.Fatalf("%s has no tensor %s", f.Path(), name)
	}
	data := make([]byte, info.Bytes())
	if err := f.ReadAt(data, name, 0); err != nil {
		t.Fatal(err)
	}
	values := make([]float32, info.Elements())
	if err := tensor.Widen(values, data, info.DType); err != nil {
		t.Fatal(err)
	}
	return values, info.Shape
}

// generation is a session that goes through the fixture's tokens.
type generation struct {
	t              *testing.T
	ctx            context.Context
	layers         []layerOf
	heads, kv, dim int
	tokens         int
}

// generate reads the fixture, and runs it as a job, which says what sessions must see.
func generate(t *testing.T, c *cluster) (*generation, []client.Layer) {
	t.Helper()
	const groupSize = 3
	_, result := c.run(t, fixtures+"attention.safetensors")
	source := open(t, fixtures+"attention.safetensors")
	g := &generation{t: t, ctx: bounded(t)}
	var layers []client.Layer
	for _, name := range []string{"layers.3.", "layers.17."} {
		var l layerOf
		var dims []int
		l.q, dims = readFloats(t, source, name+"q")
		l.k, _ = readFloats(t, source, name+"k")
		l.v, _ = readFloats(t, source, name+"v")
		l.context, _ = readFloats(t, result, name+"context")
		l.lse, _ = readFloats(t, result, name+"lse")
		g.layers = append(g.layers, l)
		g.tokens, g.heads, g.kv, g.dim = dims[0], dims[1], dims[1]/groupSize, dims[2]
		layers = append(layers, client.Layer{Heads: g.heads, KVHeads: g.kv, HeadDim: g.dim})
	}
	return g, layers
}

// step lets tokens [from, to) pass all layers of a session, and compares what they see with the job.
func (g *generation) step(s *client.Session, from, to int) {
	g.t.Helper()
	if err := g.see(s, from, to); err != nil {
		g.t.Fatal(err)
	}
}

// see is step for a goroutine that is not the test's.
func (g *generation) see(s *client.Session, from, to int) error {
	q, kv := g.heads*g.dim, g.kv*g.dim
	for i, l := range g.layers {
		context, lse := make([]float32, (to-from)*q), make([]float32, (to-from)*g.heads)
		if err := s.Step(g.ctx, i, l.q[from*q:to*q], l.k[from*kv:to*kv], l.v[from*kv:to*kv], context, lse); err != nil {
			return err
		}
		for _, c := range []struct {
			name      string
			got, want []float32
		}{{"context", context, l.context[from*q : to*q]}, {"lse", lse, l.lse[from*g.heads : to*g.heads]}} {
			for j := range c.want {
				if math.Float32bits(c.got[j]) != math.Float32bits(c.want[j]) {
					return fmt.Errorf("layer %d, tokens %d to %d: element %d of %s is %x, the job's is %x", i, from, to, j, c.name, c.got[j], c.want[j])
				}
			}
		}
	}
	return nil
}

// TestAModelStepsThroughASession goes through the tokens of a real model on clusters that differ in what must not matter:
// one token at a time, in chunks, and with forks and truncations in between. Each context has the bits of the job.
func TestAModelStepsThroughASession(t *testing.T) {
	t.Parallel()
	for _, shape := range []struct {
		workers int
		through string // "coordinator", "relay", or "" where the client speaks to the workers
	}{{1, "coordinator"}, {1, ""}, {2, ""}, {3, "coordinator"}, {3, ""}, {1, "relay"}, {3, "relay"}} {
		t.Run(fmt.Sprintf("%d workers through %q", shape.workers, shape.through), func(t *testing.T) {
			t.Parallel()
			c := start(t, localcluster.Options{Workers: shape.workers, Threads: 1})
			g, layers := generate(t, c)
			through := c.Client
			if shape.through == "relay" {
				var err error
				if through, err = client.Dial(startRelay(t, c.Address(), "--listen", socket(t)).Address); err != nil {
					t.Fatal(err)
				}
				defer through.Close()
			}
			s, err := through.OpenSession(g.ctx, client.SessionOptions{Layers: layers, Direct: shape.through == ""})
			if err != nil {
				t.Fatal(err)
			}
			// A prompt in chunks over page borders, then token by token.
			for _, cut := range [][2]int{{0, 7}, {7, 64}, {64, 129}, {129, 130}} {
				g.step(s, cut[0], cut[1])
			}
			child, err := s.Fork(g.ctx)
			if err != nil {
				t.Fatal(err)
			}
			for i := 130; i < 150; i++ {
				g.step(s, i, i+1)
			}
			// A draft is taken back, into a page and over its border.
			for _, to := range []int{140, 127} {
				if err := s.Truncate(g.ctx, to); err != nil {
					t.Fatal(err)
				}
				g.step(s, to, 150)
			}
			// The fork has seen nothing of it.
			if child.Len() != 130 {
				t.Fatalf("the fork has %d positions", child.Len())
			}
			g.step(child, 130, g.tokens)
			for i := 150; i < g.tokens; i++ {
				g.step(s, i, i+1)
			}
			if err := errors.Join(child.Drop(g.ctx), s.Drop(g.ctx)); err != nil {
				t.Fatal(err)
			}
		})
	}
}

// TestSessionsAgreeWithTheirModel is a short walk over sessions of processes; package client has the long one.
func TestSessionsAgreeWithTheirModel(t *testing.T) {
	t.Parallel()
	const memory, workers = 256 << 20, 2
	c := start(t, localcluster.Options{Workers: workers, Threads: 1, Memory: memory})
	defer sessionmodel.Checks(8)()
	walk := 0
	rapid.Check(t, func(t *rapid.T) {
		walk++
		attends := sessionmodel.Walk(t, sessionmodel.Cluster{Address: c.Address(), Workers: workers, Budget: memory, TTL: time.Hour, Tenant: fmt.Sprint(walk)})
		sessionmodel.CompareWithJobs(t, c.Client, attends)
	})
}

// TestAWorkerOfASessionDies: the step fails within the deadline, says whom it lost, and nothing is made up.
func TestAWorkerOfASessionDies(t *testing.T) {
	t.Parallel()
	for _, direct := range []bool{false, true} {
		t.Run(fmt.Sprintf("direct %v", direct), func(t *testing.T) {
			t.Parallel()
			c := start(t, localcluster.Options{Workers: 2, Threads: 1})
			ctx := bounded(t)
			s, err := c.OpenSession(ctx, client.SessionOptions{Layers: []client.Layer{{Heads: 4, KVHeads: 2, HeadDim: 8}}, Direct: direct})
			if err != nil {
				t.Fatal(err)
			}
			row := make([]float32, 32)
			if err := s.Step(ctx, 0, row, row[:16], row[:16], make([]float32, 32), make([]float32, 4)); err != nil {
				t.Fatal(err)
			}
			c.Kill(1)
			err = s.Step(ctx, 0, row, row[:16], row[:16], make([]float32, 32), make([]float32, 4))
			if err == nil || ctx.Err() != nil || strings.Contains(err.Error(), "\n") {
				t.Fatalf("got %v", err)
			}
			if !strings.Contains(err.Error(), c.Name(1)) {
				t.Errorf("the error does not name %s: %v", c.Name(1), err)
			}
		})
	}
}

// TestSessionsAreListed looks at a session from the command line, and ends it there.
func TestSessionsAreListed(t *testing.T) {
	t.Parallel()
	c := start(t, localcluster.Options{Workers: 2, Threads: 1})
	ctx := bounded(t)
	layer := client.Layer{Heads: 4, KVHeads: 2, HeadDim: 8}
	s, err := c.OpenSession(ctx, client.SessionOptions{Layers: []client.Layer{layer, layer}, Name: "story"})
	if err != nil {
		t.Fatal(err)
	}
	rows := make([]float32, 70*16)
	for l := range 2 {
		if err := s.Do(ctx, &client.Step{Layer: l, K: rows, V: rows}); err != nil {
			t.Fatal(err)
		}
	}
	id := s.ID().String()
	for _, at := range []struct {
		args  []string
		words []string
	}{
		{[]string{"sessions", "list", "-o", "wide"}, []string{id, "story", "70", "w1 24.0 KiB, w2 24.0 KiB"}},
		{[]string{"sessions", "list", "--output", "json"}, []string{`"id": "` + id + `"`, `"name": "story"`, `"page_bytes": `}},
		{[]string{"sessions", "show", id}, []string{"2 layers in chain, 70 positions", "w1", "w2"}},
		{[]string{"sessions", "show", id, "--output", "json"}, []string{`"lengths": [`, `"groups": [`}},
		{[]string{"sessions", "drop", id}, []string{id + " is dropped"}},
	} {
		said := coord(t, append(at.args, "--coordinator", c.Address())...)
		said.succeeds(t)
		for _, word := range at.words {
			if !strings.Contains(said.out, word) {
				t.Errorf("%v does not say %q: %s", at.args, word, said.out)
			}
		}
	}
	coord(t, "sessions", "show", id, "--coordinator", c.Address()).fails(t, 4, id)
	coord(t, "sessions", "show", "story", "--coordinator", c.Address()).fails(t, 2, "hexadecimal")
}

// TestASessionGoesOnElsewhere writes a session of the real model's tokens to a file from the command line, restores it on
// another cluster of another number of workers, and lets the rest of the tokens go through there: with the bits of the job.
func TestASessionGoesOnElsewhere(t *testing.T) {
	t.Parallel()
	for _, shape := range []struct{ from, to int }{{1, 3}, {3, 2}} {
		t.Run(fmt.Sprintf("from %d to %d workers", shape.from, shape.to), func(t *testing.T) {
			t.Parallel()
			c, elsewhere := start(t, localcluster.Options{Workers: shape.from, Threads: 1}), start(t, localcluster.Options{Workers: shape.to, Threads: 1})
			g, layers := generate(t, c)
			s, err := c.OpenSession(g.ctx, client.SessionOptions{Layers: layers, Name: "alice"})
			if err != nil {
				t.Fatal(err)
			}
			g.step(s, 0, 100)
			g.step(s, 100, 150)
			path := filepath.Join(t.TempDir(), "alice.snapshot")
			coord(t, "sessions", "snapshot", s.ID().String(), path, "--quiet", "--coordinator", c.Address()).succeeds(t)
			said := coord(t, "sessions", "restore", path, "--quiet", "--output", "json", "--coordinator", elsewhere.Address())
			said.succeeds(t)
			var made struct {
				ID      string   `json:"id"`
				Name    string   `json:"name"`
				Lengths []uint64 `json:"lengths"`
				Holders []struct {
					Name string `json:"name"`
				} `json:"holders"`
			}
			if err := json.Unmarshal([]byte(said.out), &made); err != nil {
				t.Fatal(err)
			}
			if made.Name != "alice" || !slices.Equal(made.Lengths, []uint64{150, 150}) || len(made.Holders) != shape.to {
				t.Fatalf("restored as %+v", made)
			}
			id, err := client.ParseSessionID(made.ID)
			if err != nil {
				t.Fatal(err)
			}
			// Both go on, each on its cluster.
			back, err := elsewhere.Attach(g.ctx, id, client.AttachOptions{Direct: true})
			if err != nil {
				t.Fatal(err)
			}
			for i := 150; i < g.tokens; i++ {
				g.step(back, i, i+1)
			}
			g.step(s, 150, g.tokens)
			if err := back.Truncate(g.ctx, 127); err != nil {
				t.Fatal(err)
			}
			g.step(back, 127, g.tokens)
			if a, b := s.Receipt(), back.Receipt(); !slices.EqualFunc(a.Layers, b.Layers, func(a, b client.LayerReceipt) bool { return a.Length == b.Length && slices.Equal(a.Hashes, b.Hashes) }) {
				t.Fatalf("receipts %v and %v", a, b)
			}
			// A file that was cut is refused by name, and nothing of it stays.
			whole, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			short := filepath.Join(t.TempDir(), "short.snapshot")
			if err := os.WriteFile(short, whole[:len(whole)-1], 0o600); err != nil {
				t.Fatal(err)
			}
			coord(t, "sessions", "restore", short, "--quiet", "--coordinator", elsewhere.Address()).fails(t, 4, "short.snapshot", "ends early")
			if all, err := elsewhere.Sessions(g.ctx); err != nil || len(all.Sessions) != 1 {
				t.Fatalf("%v: %v", all, err)
			}
		})
	}
}

// TestASnapshotOutlivesAWorker restores a session beside the worker that a part of it was lost with.
func TestASnapshotOutlivesAWorker(t *testing.T) {
	t.Parallel()
	c := start(t, localcluster.Options{Workers: 3, Threads: 1})
	g, layers := generate(t, c)
	s, err := c.OpenSession(g.ctx, client.SessionOptions{Layers: layers})
	if err != nil {
		t.Fatal(err)
	}
	g.step(s, 0, 100)
	path := filepath.Join(t.TempDir(), "before.snapshot")
	coord(t, "sessions", "snapshot", s.ID().String(), path, "--quiet", "--coordinator", c.Address()).succeeds(t)
	g.step(s, 100, 130)
	c.Kill(1)
	if err := s.Truncate(g.ctx, 100); err == nil {
		t.Fatal("a session without one of its workers is truncated")
	}
	coord(t, "sessions", "snapshot", s.ID().String(), path, "--quiet", "--coordinator", c.Address()).fails(t, 6, c.Name(1))
	file, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	back, err := c.RestoreSession(g.ctx, file, client.RestoreOptions{})
	if err != nil {
		t.Fatal(err)
	}
	g.step(back, 100, g.tokens)
}

// TestALostSessionIsRecovered kills a worker that alone had a part of a session: its client makes a new one of the keys and values that it
// has, and goes on with the bits of the job.
func TestALostSessionIsRecovered(t *testing.T) {
	t.Parallel()
	c := start(t, localcluster.Options{Workers: 3, Threads: 1})
	g, layers := generate(t, c)
	kv := g.kv * g.dim
	rows := func(layer, start, count int) (k, v []float32, _ error) {
		return g.layers[layer].k[start*kv:][:count*kv], g.layers[layer].v[start*kv:][:count*kv], nil
	}
	var all []*client.Session
	for _, direct := range []bool{false, true} {
		s, err := c.OpenSession(g.ctx, client.SessionOptions{Layers: layers, Direct: direct})
		if err != nil {
			t.Fatal(err)
		}
		g.step(s, 0, 100)
		all = append(all, s)
	}
	c.Kill(1)
	for _, s := range all {
		if err := s.Truncate(g.ctx, 90); err == nil {
			t.Fatal("a session without one of its workers is truncated")
		}
		next, err := s.Recover(g.ctx, rows)
		if err != nil {
			t.Fatal(err)
		}
		if next.ID() == s.ID() || next.Len() != 90 {
			t.Fatalf("session %s of %d positions became %s of %d", s.ID(), s.Len(), next.ID(), next.Len())
		}
		g.step(next, 90, g.tokens)
	}
}
