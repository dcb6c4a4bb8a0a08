package client_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"

	"headwater.example/client"
	"headwater.example/internal/snapshot"
	"headwater.example/internal/testkit/await"
	headwaterv1 "headwater.example/proto/headwater/v1"
	"headwater.example/tensor"
	"headwater.example/worker"
)

// startReal starts a cluster of n real workers of some budget each. In the end the workers have nothing that is left of a
// session.
func startReal(t testing.TB, n int, budget int64) *cluster {
	t.Helper()
	w := startWorkers(t, t.TempDir(), n, 1, budget, 0, nil)
	t.Cleanup(func() {
		for i, left := range w.stop(t) {
			if left != 0 {
				t.Errorf("worker %d has %d bytes reserved in the end", i, left)
			}
		}
	})
	return &cluster{Client: dial(t, w.address()), address: w.address()}
}

// keptLayers are of all storage types, some with windows that pages leave.
var keptLayers = []client.Layer{
	{Heads: 6, KVHeads: 3, HeadDim: 8, Storage: tensor.BF16, WindowLeft: client.Within(100)},
	{Heads: 4, KVHeads: 2, HeadDim: 16, VDim: 8, Storage: tensor.F16, Softcap: 20},
	{Heads: 5, KVHeads: 5, HeadDim: 4, Storage: tensor.I8, Sinks: []float32{0, 1, -1, 2, 0.5}, WindowLeft: client.Within(30)},
	{Heads: 2, KVHeads: 1, HeadDim: 4, Storage: tensor.F32, AlibiSlopes: []float32{0.5, 0.25}, NotCausal: true},
	{Heads: 2, KVHeads: 2, HeadDim: 6, Storage: tensor.I8},
}

// grow lets tokens pass all layers, in steps of n.
func grow(t testing.TB, s *client.Session, m *model, r *rand.Rand, steps ...int) {
	t.Helper()
	for _, n := range steps {
		for layer := range m.layers {
			step(t, s, m, r, layer, n)
		}
	}
}

// write is a session's snapshot.
func write(t testing.TB, s *client.Session) []byte {
	t.Helper()
	var file bytes.Buffer
	var last, all int64
	err := s.Snapshot(t.Context(), &file, func(done, total int64) {
		if done <= last || done > total || all != 0 && total != all {
			t.Errorf("%d of %d bytes after %d of %d", done, total, last, all)
		}
		last, all = done, total
	})
	if err != nil {
		t.Fatal(err)
	}
	if last != all {
		t.Errorf("progress ended at %d of %d bytes", last, all)
	}
	return file.Bytes()
}

func restore(t testing.TB, c *client.Client, file []byte, opts client.RestoreOptions) *client.Session {
	t.Helper()
	s, err := c.RestoreSession(t.Context(), bytes.NewReader(file), opts)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// pages are the bytes of pages in use, and the sessions, on each worker.
func pages(t testing.TB, c *client.Client) (used []uint64, sessions int) {
	t.Helper()
	all, err := c.Sessions(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, cache := range all.Caches {
		used = append(used, cache.UsedBytes)
	}
	return used, len(all.Sessions)
}

func TestARestoredSessionGoesOnAsTheOriginal(t *testing.T) {
	for _, from := range []int{1, 3} {
		source := startReal(t, from, 1<<26)
		for _, direct := range []bool{false, true} {
			r := rand.New(rand.NewPCG(5, uint64(from)))
			s := open(t, source.Client, client.SessionOptions{
				Layers: keptLayers, Tenant: "tenant", Model: []byte("model"), Name: "story", TTL: 10 * time.Minute, Direct: direct,
			})
			m := newModel(keptLayers)
			grow(t, s, m, r, 3, 70, 1, 130, 2, 64, 5)
			step(t, s, m, r, 0, 1) // in the middle of a token
			if err := s.Pin(t.Context(), true); err != nil {
				t.Fatal(err)
			}
			file, receipt := write(t, s), s.Receipt()
			for _, to := range []int{1, 2, 3, 7} {
				t.Run(fmt.Sprintf("from %d to %d workers, direct %v", from, to, direct), func(t *testing.T) {
					target := startReal(t, to, 1<<26)
					back := restore(t, target.Client, file, client.RestoreOptions{Direct: direct})
					if got := back.Receipt(); got.Session == receipt.Session || !slices.EqualFunc(got.Layers, receipt.Layers, func(a, b client.LayerReceipt) bool {
						return a.Length == b.Length && slices.Equal(a.Hashes, b.Hashes)
					}) {
						t.Fatalf("receipt %v, want %v", got, receipt)
					}
					if back.Prefix() != back.Len() || back.Len() != s.Len() {
						t.Fatalf("%d positions, %d of them at first; want %d", back.Len(), back.Prefix(), s.Len())
					}
					// The snapshot of a restored session is that of the original.
					if again := write(t, back); !bytes.Equal(again, file) {
						t.Fatal("the restored session has another snapshot")
					}
					found, err := target.FindSession(t.Context(), back.ID())
					if err != nil || !found.Pinned || found.Name != "story" || found.Tenant != "tenant" || string(found.Model) != "model" ||
						found.TTL != 10*time.Minute {
						t.Fatalf("restored as %v: %v", found, err)
					}
					if used, _ := pages(t, target.Client); found.PageBytes == 0 || sum(used) != found.PageBytes {
						t.Fatalf("%v bytes are in use for %d", used, found.PageBytes)
					}
					// It is a session as any other.
					own, other := m.clone(), rand.New(rand.NewPCG(1, 1))
					for layer := 1; layer < len(keptLayers); layer++ {
						step(t, back, own, other, layer, 1)
					}
					grow(t, back, own, other, 1, 1, 60, 3)
					child, err := back.Fork(t.Context())
					if err != nil {
						t.Fatal(err)
					}
					childModel := own.clone()
					at := back.Len() - 2
					if err := back.Truncate(t.Context(), at); err != nil {
						t.Fatal(err)
					}
					own.truncate(at)
					grow(t, back, own, other, 4, 1)
					grow(t, child, childModel, other, 2)
					taken := back.Receipt()
					again, err := target.Attach(t.Context(), back.ID(), client.AttachOptions{Receipt: &taken})
					if err != nil {
						t.Fatal(err)
					}
					grow(t, again, own, other, 1)
					if err := errors.Join(again.Drop(t.Context()), child.Drop(t.Context())); err != nil {
						t.Fatal(err)
					}
					if used, sessions := pages(t, target.Client); sum(used) != 0 || sessions != 0 {
						t.Fatalf("%v bytes and %d sessions are left", used, sessions)
					}
				})
			}
			// The original goes on with the same inputs as a copy beside it, and both say the same.
			copied := restore(t, source.Client, file, client.RestoreOptions{Name: "copy", Workers: 2})
			for range 3 {
				for layer, l := range keptLayers {
					next := project(r, l, 2)
					var context, lse [2][]float32
					for i, s := range []*client.Session{s, copied} {
						context[i], lse[i] = make([]float32, 2*l.Heads*m.vDim(layer)), make([]float32, 2*l.Heads)
						if err := s.Step(t.Context(), layer, next.q, next.k, next.v, context[i], lse[i]); err != nil {
							t.Fatal(err)
						}
					}
					equal(t, "context", context[1], context[0])
					equal(t, "LSE", lse[1], lse[0])
				}
			}
			if err := errors.Join(s.Drop(t.Context()), copied.Drop(t.Context())); err != nil {
				t.Fatal(err)
			}
		}
	}
}

func sum(values []uint64) (n uint64) {
	for _, v := range values {
		n += v
	}
	return n
}

// What a session may be truncated to is also what its copy may be.
func TestARestoredSessionHasWhatTheOriginalHas(t *testing.T) {
	source, target := startReal(t, 2, 1<<26), startReal(t, 3, 1<<26)
	layers := []client.Layer{{Heads: 2, KVHeads: 2, HeadDim: 4, WindowLeft: client.Within(50), Storage: tensor.F16}, {Heads: 1, KVHeads: 1, HeadDim: 4}}
	for _, chunks := range [][]int{{300}, {100, 200}, {1, 1, 298}, {299, 1}} {
		s, m := open(t, source.Client, client.SessionOptions{Layers: layers}), newModel(layers)
		grow(t, s, m, rand.New(rand.NewPCG(1, 2)), chunks...)
		file := write(t, s)
		for at := 299; at > 0; at -= 37 {
			one := restore(t, source.Client, file, client.RestoreOptions{})
			other := restore(t, target.Client, file, client.RestoreOptions{})
			child, err := s.Fork(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			want := child.Truncate(t.Context(), at)
			for _, s := range []*client.Session{one, other} {
				if got := s.Truncate(t.Context(), at); (got == nil) != (want == nil) {
					t.Fatalf("%v: truncated to %d: %v, the original %v", chunks, at, got, want)
				}
			}
			for _, s := range []*client.Session{one, other, child} {
				if err := s.Drop(t.Context()); err != nil {
					t.Fatal(err)
				}
			}
		}
	}
}

func TestEmptySessionsAndLayers(t *testing.T) {
	c := startReal(t, 2, 1<<26)
	s := open(t, c.Client, client.SessionOptions{Layers: keptLayers})
	m, r := newModel(keptLayers), rand.New(rand.NewPCG(1, 2))
	back := restore(t, c.Client, write(t, s), client.RestoreOptions{})
	if back.Len() != 0 {
		t.Fatalf("%d positions", back.Len())
	}
	grow(t, back, m.clone(), r, 3, 1)
	// Some layers have nothing.
	step(t, s, m, r, 2, 200)
	step(t, s, m, r, 2, 1)
	step(t, s, m, r, 1, 5)
	back = restore(t, c.Client, write(t, s), client.RestoreOptions{Direct: true})
	for layer, n := range []int{0, 5, 201, 0, 0} {
		if back.LayerLen(layer) != n {
			t.Fatalf("layer %d has %d positions, want %d", layer, back.LayerLen(layer), n)
		}
	}
	for layer := range keptLayers {
		step(t, back, m, r, layer, 2)
	}
}

// cutReader ends a context after n bytes, or fails.
type cutReader struct {
	r    io.Reader
	n    int
	then func() error
}

func (c *cutReader) Read(p []byte) (int, error) {
	if c.n == 0 {
		if err := c.then(); err != nil {
			return 0, err
		}
		c.n = -1
	}
	if c.n > 0 {
		p = p[:min(len(p), c.n)]
	}
	n, err := c.r.Read(p)
	if c.n > 0 {
		c.n -= n
	}
	return n, err
}

// Of a restore that fails nothing stays on any worker, wherever it fails.
func TestAFailedRestoreLeavesNothing(t *testing.T) {
	source := startReal(t, 1, 1<<26)
	s, m, r := open(t, source.Client, client.SessionOptions{Layers: keptLayers}), newModel(keptLayers), rand.New(rand.NewPCG(1, 2))
	grow(t, s, m, r, 200, 70)
	file := write(t, s)
	target := startReal(t, 3, 1<<26)
	other := open(t, target.Client, client.SessionOptions{Layers: keptLayers})
	om := newModel(keptLayers)
	grow(t, other, om, r, 100)
	before, sessions := pages(t, target.Client)
	unchanged := func(what string) {
		t.Helper()
		if used, n := pages(t, target.Client); !slices.Equal(used, before) || n != sessions {
			t.Fatalf("%s: %v bytes and %d sessions, before it %v and %d", what, used, n, before, sessions)
		}
	}
	for n := 0; n < len(file); n += 1 + len(file)/23 {
		var bad *snapshot.Error
		if _, err := target.RestoreSession(t.Context(), bytes.NewReader(file[:n]), client.RestoreOptions{}); !errors.Is(err, client.ErrSnapshot) || !errors.Is(err, client.ErrRefused) || !errors.As(err, &bad) || bad.Reason != snapshot.Truncated && bad.Reason != snapshot.NotASnapshot {
			t.Fatalf("%d of %d bytes: %v", n, len(file), err)
		}
		unchanged("a truncated snapshot")
		damaged := bytes.Clone(file)
		damaged[n] ^= 4
		if _, err := target.RestoreSession(t.Context(), bytes.NewReader(damaged), client.RestoreOptions{Direct: true}); !errors.As(err, &bad) {
			t.Fatalf("byte %d: %v", n, err)
		}
		unchanged("a damaged snapshot")
		broken := errors.New("cable is cut")
		if _, err := target.RestoreSession(t.Context(), &cutReader{bytes.NewReader(file), n, func() error { return broken }}, client.RestoreOptions{}); !errors.Is(err, broken) || errors.As(err, &bad) {
			t.Fatalf("%d bytes: %v", n, err)
		}
		unchanged("a stream that breaks")
		ctx, cancel := context.WithCancel(t.Context())
		if _, err := target.RestoreSession(ctx, &cutReader{bytes.NewReader(file), n, func() error { cancel(); return nil }}, client.RestoreOptions{}); !errors.Is(err, context.Canceled) {
			t.Fatalf("cancelled after %d bytes: %v", n, err)
		}
		cancel()
		unchanged("a call that was given up")
	}
	// The last byte belongs to the checksum of all: the session was there already.
	damaged := bytes.Clone(file)
	damaged[len(file)-1]++
	if _, err := target.RestoreSession(t.Context(), bytes.NewReader(damaged), client.RestoreOptions{}); err == nil {
		t.Fatal("a wrong checksum is taken")
	}
	unchanged("a wrong checksum")
	if _, err := target.RestoreSession(t.Context(), bytes.NewReader(file), client.RestoreOptions{Codec: "none"}); err == nil {
		t.Fatal("a codec that is none is taken")
	}
	unchanged("a wrong codec")
	grow(t, other, om, r, 1)

	tight := startReal(t, 2, 1<<13)
	if _, err := tight.RestoreSession(t.Context(), bytes.NewReader(file), client.RestoreOptions{}); !errors.Is(err, client.ErrOverBudget) {
		t.Fatalf("got %v", err)
	}
	if used, n := pages(t, tight.Client); sum(used) != 0 || n != 0 {
		t.Fatalf("%v bytes and %d sessions are left where there was no room", used, n)
	}
}

// brokenWriter fails after n bytes.
type brokenWriter struct {
	n   int
	err error
}

func (b *brokenWriter) Write(p []byte) (int, error) {
	if b.n -= len(p); b.n < 0 {
		return 0, b.err
	}
	return len(p), nil
}

// A snapshot that can not be written says why, and leaves the session as it was, and nothing else.
func TestASnapshotThatFails(t *testing.T) {
	c := startReal(t, 2, 1<<26)
	s, m, r := open(t, c.Client, client.SessionOptions{Layers: keptLayers}), newModel(keptLayers), rand.New(rand.NewPCG(1, 2))
	grow(t, s, m, r, 200, 1)
	size := len(write(t, s))
	before, sessions := pages(t, c.Client)
	full := errors.New("disk is full")
	for n := 0; n < size; n += size/5 + 1 {
		if err := s.Snapshot(t.Context(), &brokenWriter{n, full}, nil); !errors.Is(err, full) {
			t.Fatalf("after %d bytes: %v", n, err)
		}
		if _, err := c.SnapshotSession(t.Context(), s.ID(), &brokenWriter{n, full}, nil); !errors.Is(err, full) || !strings.Contains(err.Error(), s.ID().String()) {
			t.Fatalf("after %d bytes: %v", n, err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		if _, err := c.SnapshotSession(ctx, s.ID(), io.Discard, func(int64, int64) { cancel() }); !errors.Is(err, context.Canceled) {
			t.Fatalf("cancelled: %v", err)
		}
		cancel()
		if used, n := pages(t, c.Client); !slices.Equal(used, before) || n != sessions {
			t.Fatalf("%v bytes and %d sessions, before it %v and %d", used, n, before, sessions)
		}
	}
	grow(t, s, m, r, 1)
	if _, err := c.SnapshotSession(t.Context(), client.SessionID{1}, io.Discard, nil); !errors.Is(err, client.ErrNotFound) {
		t.Fatalf("a session that never was: %v", err)
	}
	if err := s.Drop(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := s.Snapshot(t.Context(), io.Discard, nil); err == nil || !strings.Contains(err.Error(), "closed") {
		t.Fatalf("a session that was dropped: %v", err)
	}
}

// A snapshot that was made otherwise than by a session is refused where the workers' hashes show it.
func TestASnapshotOfOtherHashesIsRefused(t *testing.T) {
	c := startReal(t, 2, 1<<26)
	s, m := open(t, c.Client, client.SessionOptions{Layers: keptLayers[:2]}), newModel(keptLayers[:2])
	grow(t, s, m, rand.New(rand.NewPCG(1, 2)), 200, 1)
	in, err := snapshot.NewReader(bytes.NewReader(write(t, s)))
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	var forged bytes.Buffer
	out, err := snapshot.NewWriter(&forged, in.Header())
	if err != nil {
		t.Fatal(err)
	}
	for {
		b, err := in.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		if b.Layer == 1 {
			b.V[len(b.V)-1] ^= 1
		}
		if err := out.Write(b); err != nil {
			t.Fatal(err)
		}
	}
	if err := out.Close(in.After()); err != nil {
		t.Fatal(err)
	}
	before, sessions := pages(t, c.Client)
	if _, err := c.RestoreSession(t.Context(), &forged, client.RestoreOptions{}); err == nil || !strings.Contains(err.Error(), "layer 1: the workers have other keys or values") {
		t.Fatalf("got %v", err)
	}
	if used, n := pages(t, c.Client); !slices.Equal(used, before) || n != sessions {
		t.Fatalf("%v bytes and %d sessions, before it %v and %d", used, n, before, sessions)
	}
}

// The driver goes on between the forks of two workers, until one has freed what the other's fork sees: another fork is made.
func TestASnapshotOfASessionThatGoesOnFar(t *testing.T) {
	forked, goOn := make(chan struct{}), make(chan struct{})
	var once sync.Once
	c := startCounted(t, 2, worker.Config{}, func(worker int) []grpc.ServerOption {
		return []grpc.ServerOption{grpc.ChainUnaryInterceptor(func(ctx context.Context, req any, info *grpc.UnaryServerInfo, handle grpc.UnaryHandler) (any, error) {
			if info.FullMethod != headwaterv1.SessionService_ForkSession_FullMethodName {
				return handle(ctx, req)
			}
			if worker == 0 {
				select {
				case <-goOn:
				case <-ctx.Done(): // as when the test has failed
				}
				return handle(ctx, req)
			}
			defer once.Do(func() { close(forked) })
			return handle(ctx, req)
		})}
	})
	windowed := []client.Layer{{Heads: 4, KVHeads: 4, HeadDim: 4, WindowLeft: client.Within(30)}}
	s, m, r := open(t, c.Client, client.SessionOptions{Layers: windowed}), newModel(windowed), rng(1)
	grow(t, s, m, r, 150)
	var file bytes.Buffer
	said := make(chan error, 1)
	go func() {
		_, err := c.SnapshotSession(t.Context(), s.ID(), &file, nil)
		said <- err
	}()
	await.One(t, forked, "the fork at the second worker")
	grow(t, s, m, r, 60, 1)
	close(goOn)
	if err := await.One(t, said, "the snapshot"); err != nil {
		t.Fatal(err)
	}
	back := restore(t, c.Client, file.Bytes(), client.RestoreOptions{})
	if back.Len() != s.Len() {
		t.Fatalf("%d positions of %d", back.Len(), s.Len())
	}
	step(t, back, m, r, 0, 1)
}

// A session is written while its driver goes on with it, who notices nothing. Each snapshot is one state of it.
func TestASnapshotOfASessionThatGoesOn(t *testing.T) {
	for _, workers := range []int{1, 3} {
		c := startReal(t, workers, 1<<27)
		driver := dial(t, c.address)
		s, m, r := open(t, driver, client.SessionOptions{Layers: keptLayers, Name: "live"}), newModel(keptLayers), rand.New(rand.NewPCG(1, 2))
		grow(t, s, m, r, 150)
		stop, done := make(chan struct{}), make(chan struct{})
		go func() {
			defer close(done)
			for i := 0; ; i++ {
				select {
				case <-stop:
					return
				default:
				}
				for layer := range keptLayers {
					one := project(r, keptLayers[layer], 1)
					m.append(layer, one)
					if err := s.Do(t.Context(), &client.Step{Layer: layer, K: one.k, V: one.v}); err != nil {
						t.Errorf("the driver: %v", err)
						return
					}
				}
			}
		}()
		var files [][]byte
		for range 5 {
			var file bytes.Buffer
			h, err := c.SnapshotSession(t.Context(), s.ID(), &file, nil)
			if err != nil {
				t.Fatal(err)
			}
			if h.Name != "live" || h.Pinned || h.Lengths[0] < 150 {
				t.Fatalf("header %+v", h)
			}
			files = append(files, file.Bytes())
		}
		close(stop)
		await.One(t, done, "the end of the driver")
		if _, n := pages(t, c.Client); n != 1 {
			t.Fatalf("%d sessions are there", n)
		}
		for _, file := range files {
			back := restore(t, c.Client, file, client.RestoreOptions{})
			own := m.clone()
			for layer, l := range keptLayers {
				n := back.LayerLen(layer)
				if n < 150 || n > m.len(layer) {
					t.Fatalf("layer %d has %d positions of %d", layer, n, m.len(layer))
				}
				own.k[layer], own.v[layer] = own.k[layer][:n*l.KVHeads*l.HeadDim], own.v[layer][:n*l.KVHeads*m.vDim(layer)]
			}
			grow(t, back, own, rand.New(rand.NewPCG(7, 7)), 2)
			if err := back.Drop(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
		grow(t, s, m, r, 1)
	}
}

// The ids of tokens go with a snapshot, so that others find its pages as a prefix.
func TestARestoredSessionIsAPrefix(t *testing.T) {
	source, target := startReal(t, 2, 1<<26), startReal(t, 3, 1<<26)
	layers := []client.Layer{keptLayers[1], keptLayers[4]}
	ids := make([]uint32, 300)
	for i := range ids {
		ids[i] = uint32(1000 + i)
	}
	s, r := open(t, source.Client, client.SessionOptions{Layers: layers, Tenant: "a"}), rand.New(rand.NewPCG(1, 2))
	for _, cut := range [][2]int{{0, 200}, {200, 300}} {
		for layer, l := range layers {
			one := project(r, l, cut[1]-cut[0])
			step := &client.Step{Layer: layer, K: one.k, V: one.v}
			if cut[1] <= 200 { // the later tokens are not told
				step.Tokens = ids[cut[0]:cut[1]]
			}
			if err := s.Do(t.Context(), step); err != nil {
				t.Fatal(err)
			}
		}
	}
	file := write(t, s)
	for _, c := range []struct {
		tenant string
		tokens []uint32
		want   int
	}{{"a", ids, 192}, {"b", ids, 0}, {"a", ids[1:], 0}, {"a", ids[:150], 128}} {
		back := restore(t, target.Client, file, client.RestoreOptions{})
		found := open(t, target.Client, client.SessionOptions{Layers: layers, Tenant: c.tenant, Tokens: c.tokens})
		if found.Prefix() != c.want {
			t.Errorf("%d tokens of tenant %s find %d positions, want %d", len(c.tokens), c.tenant, found.Prefix(), c.want)
		}
		if err := errors.Join(back.Drop(t.Context()), found.Drop(t.Context())); err != nil {
			t.Fatal(err)
		}
	}
}

// A layer that has nothing is restored as such, also where its worker knows the tokens from another session.
func TestARestoredSessionBeginsWithNoPrefix(t *testing.T) {
	c := startReal(t, 2, 1<<26)
	layers := []client.Layer{{Heads: 1, KVHeads: 1, HeadDim: 4}, {Heads: 1, KVHeads: 1, HeadDim: 4}} // one on each worker
	ids := make([]uint32, 130)
	r := rand.New(rand.NewPCG(1, 2))
	var both [2]tokens
	for layer := range layers {
		both[layer] = project(r, layers[layer], len(ids))
	}
	// The longest layer brings the tokens, whichever it is.
	for have := range layers {
		known := open(t, c.Client, client.SessionOptions{Layers: layers, Tokens: ids})
		one := open(t, c.Client, client.SessionOptions{Layers: layers})
		for layer, rows := range both {
			from := known.Prefix() * 4
			if err := known.Do(t.Context(), &client.Step{Layer: layer, K: rows.k[from:], V: rows.v[from:], Tokens: ids[known.Prefix():]}); err != nil {
				t.Fatal(err)
			}
		}
		if err := one.Do(t.Context(), &client.Step{Layer: have, K: both[have].k, V: both[have].v, Tokens: ids}); err != nil {
			t.Fatal(err)
		}
		back := restore(t, c.Client, write(t, one), client.RestoreOptions{})
		if back.LayerLen(have) != len(ids) || back.LayerLen(1-have) != 0 {
			t.Fatalf("%d and %d positions, want %d in layer %d", back.LayerLen(0), back.LayerLen(1), len(ids), have)
		}
		if err := errors.Join(known.Drop(t.Context()), one.Drop(t.Context()), back.Drop(t.Context())); err != nil {
			t.Fatal(err)
		}
	}
}

// What is exported as it is stored and appended as it is stored is the same session, in steps of any size.
func TestExportAndStored(t *testing.T) {
	each(t, func(t *testing.T, c *cluster, direct bool) {
		s, m, r := open(t, c.Client, client.SessionOptions{Layers: layers, Direct: direct}), newModel(layers), rand.New(rand.NewPCG(1, 2))
		grow(t, s, m, r, 3, 70, 27)
		other := open(t, c.Client, client.SessionOptions{Layers: layers, Direct: direct})
		for layer, l := range layers {
			for _, cut := range [][2]int{{0, 1}, {1, 90}, {90, 100}} {
				n := cut[1] - cut[0]
				rows := client.Rows{K: make([]byte, n*l.KVHeads*l.HeadDim*l.Storage.Size()), V: make([]byte, n*l.KVHeads*m.vDim(layer)*l.Storage.Size())}
				if l.Storage == tensor.I8 {
					rows.KScale, rows.VScale = make([]float32, n*l.KVHeads), make([]float32, n*l.KVHeads)
				}
				err := s.Export(t.Context(), layer, cut[0], n, func(group, position, positions int, part client.Rows) error {
					at := group*n + position - cut[0]
					copy(rows.K[at*l.HeadDim*l.Storage.Size():], part.K)
					copy(rows.V[at*m.vDim(layer)*l.Storage.Size():], part.V)
					if l.Storage == tensor.I8 {
						copy(rows.KScale[at:], part.KScale)
						copy(rows.VScale[at:], part.VScale)
					}
					return nil
				})
				if err != nil {
					t.Fatal(err)
				}
				// A narrowed row is what the model has.
				for g := range l.KVHeads {
					k, scale := narrow(t, m.k[layer][(cut[0]*l.KVHeads+g)*l.HeadDim:][:l.HeadDim], l.Storage)
					if got := rows.K[g*n*len(k):][:len(k)]; !bytes.Equal(got, k) || scale != nil && rows.KScale[g*n] != scale[0] {
						t.Fatalf("layer %d group %d: position %d is exported as %x, want %x", layer, g, cut[0], got, k)
					}
				}
				if err := other.Do(t.Context(), &client.Step{Layer: layer, Stored: &rows}); err != nil {
					t.Fatal(err)
				}
			}
		}
		if a, b := s.Receipt(), other.Receipt(); !slices.EqualFunc(a.Layers, b.Layers, func(a, b client.LayerReceipt) bool { return a.Length == b.Length && slices.Equal(a.Hashes, b.Hashes) }) {
			t.Fatalf("receipts %v and %v", a, b)
		}
		grow(t, other, m, r, 1)
		for _, bad := range [][3]int{{-1, 0, 1}, {3, 0, 1}, {0, -1, 1}, {0, 0, 0}, {0, 0, 101}, {0, 100, 1}, {0, 1, math.MaxInt}} {
			err := s.Export(t.Context(), bad[0], bad[1], bad[2], func(int, int, int, client.Rows) error { return nil })
			if err == nil || strings.Contains(err.Error(), "\n") {
				t.Errorf("%d positions from %d on of layer %d: %v", bad[2], bad[1], bad[0], err)
			}
		}
		stop := errors.New("enough")
		if err := s.Export(t.Context(), 0, 0, 100, func(int, int, int, client.Rows) error { return stop }); !errors.Is(err, stop) {
			t.Errorf("got %v", err)
		}
		for _, bad := range []client.Step{
			{Layer: 0, Stored: &client.Rows{K: make([]byte, 3)}},
			{Layer: 0, Stored: &client.Rows{K: make([]byte, 96)}},
			{Layer: 2, Stored: &client.Rows{K: make([]byte, 20), V: make([]byte, 20)}},
			{Layer: 0, Stored: &client.Rows{}, K: make([]float32, 24), V: make([]float32, 24)},
		} {
			if err := s.Do(t.Context(), &bad); err == nil {
				t.Errorf("%+v is taken", bad.Stored)
			}
		}
	})
}

// A session that is being taken over by another client is not written as if nothing had happened.
func TestASnapshotOfASessionThatChanges(t *testing.T) {
	c := startReal(t, 2, 1<<26)
	one := keptLayers[1:2]
	s, m, r := open(t, c.Client, client.SessionOptions{Layers: one}), newModel(one), rand.New(rand.NewPCG(1, 2))
	grow(t, s, m, r, 100)
	thief, err := dial(t, c.address).Attach(t.Context(), s.ID(), client.AttachOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if err := thief.Truncate(t.Context(), 50); err != nil {
		t.Fatal(err)
	}
	other := m.clone()
	other.truncate(50)
	grow(t, thief, other, r, 50)
	err = s.Snapshot(t.Context(), io.Discard, nil)
	var refused *client.SessionError
	if !errors.As(err, &refused) || refused.Reason != client.ReasonDifferent {
		t.Fatalf("got %v", err)
	}
}
