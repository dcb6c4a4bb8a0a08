package client_test

import (
	"bytes"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"headwater.example/attention"
	"headwater.example/client"
	"headwater.example/internal/testkit/await"
	"headwater.example/tensor"
)

// stripedLayers are small ones, so that several splits are soon reached: all storage types and arithmetics, and options.
var stripedLayers = []client.Layer{
	{Heads: 4, KVHeads: 1, HeadDim: 4, VDim: 3, Storage: tensor.BF16},
	{Heads: 4, KVHeads: 2, HeadDim: 6, Storage: tensor.F16, Softcap: 5, AlibiSlopes: []float32{0.5, 0.25, 0.01, 0.001}},
	{Heads: 2, KVHeads: 1, HeadDim: 3, Storage: tensor.I8, Sinks: []float32{0.5, -1}},
	{Heads: 2, KVHeads: 2, HeadDim: 4, Storage: tensor.BF16, Arithmetic: attention.Tiles, NotCausal: true},
	{Heads: 3, KVHeads: 1, HeadDim: 4, Storage: tensor.BF16, Arithmetic: attention.TilesBF16},
	{Heads: 2, KVHeads: 1, HeadDim: 4, Storage: tensor.F32, NotCausal: true, WindowRight: client.Within(3)},
	{Heads: 2, KVHeads: 1, HeadDim: 4, Storage: tensor.F16, WindowLeft: client.Within(100)}, // which has no stripes
}

// twin is a session in stripes beside one that one worker holds whole.
type twin struct {
	t       testing.TB
	r       *rand.Rand
	striped *client.Session
	whole   *client.Session
	layers  []client.Layer
}

// step does one step on both, and compares the bits.
func (w *twin) step(layer, appended, queries int, position *int, mask []bool) {
	w.t.Helper()
	l := w.layers[layer]
	one := project(w.r, l, appended)
	q := project(w.r, l, queries).q
	vDim := l.VDim
	if vDim == 0 {
		vDim = l.HeadDim
	}
	var out [2][2][]float32
	for i, s := range []*client.Session{w.striped, w.whole} {
		step := &client.Step{Layer: layer, Q: q, K: one.k, V: one.v, Position: position, Mask: mask}
		step.Context, step.LSE = make([]float32, queries*l.Heads*vDim), make([]float32, queries*l.Heads)
		if err := s.Do(w.t.Context(), step); err != nil {
			w.t.Fatalf("layer %d, %d appended, %d queries, striped %v: %v", layer, appended, queries, i == 0, err)
		}
		out[i] = [2][]float32{step.Context, step.LSE}
	}
	what := fmt.Sprintf("layer %d of %d positions, %d appended, %d queries", layer, w.striped.LayerLen(layer), appended, queries)
	equal(w.t, what+": context", out[0][0], out[1][0])
	equal(w.t, what+": LSE", out[0][1], out[1][1])
}

// walk does random steps of all kinds on both.
func (w *twin) walk(steps int) {
	for range steps {
		l := w.r.IntN(len(w.layers))
		n := w.striped.LayerLen(l)
		switch w.r.IntN(8) {
		case 0: // a prompt's chunk, often over the end of a split
			w.step(l, 1+w.r.IntN(3000), 0, nil, nil)
		case 1:
			k := 1 + w.r.IntN(100)
			w.step(l, k, k, nil, nil)
		case 2:
			if n > 0 {
				at := w.r.IntN(n)
				if w.layers[l].WindowLeft != (client.Window{}) {
					at = n - 1
				}
				w.step(l, 0, 1+w.r.IntN(min(n-at, 5)), &at, nil)
			}
		case 3:
			if n > 20 {
				k, newest := 4, 1+w.r.IntN(20)
				mask := make([]bool, k*newest)
				for i := range mask {
					mask[i] = w.r.IntN(2) > 0
				}
				w.step(l, k, k, nil, mask)
			}
		default:
			w.step(l, 1, 1, nil, nil)
		}
	}
}

// compareRows compares what both have stored.
func (w *twin) compareRows() {
	w.t.Helper()
	for l := range w.layers {
		n := w.whole.LayerLen(l)
		if w.striped.LayerLen(l) != n {
			w.t.Fatalf("layer %d has %d positions, not %d", l, w.striped.LayerLen(l), n)
		}
		if n == 0 || w.layers[l].WindowLeft != (client.Window{}) {
			continue
		}
		at := w.r.IntN(n)
		count := 1 + w.r.IntN(n-at)
		var rows [2]map[[2]int][]byte
		for i, s := range []*client.Session{w.striped, w.whole} {
			rows[i] = map[[2]int][]byte{}
			err := s.Export(w.t.Context(), l, at, count, func(group, position, positions int, r client.Rows) error {
				for j := range positions {
					kb, vb := len(r.K)/positions, len(r.V)/positions
					row := append(slices.Clone(r.K[j*kb:][:kb]), r.V[j*vb:][:vb]...)
					if r.KScale != nil {
						row = fmt.Append(row, math.Float32bits(r.KScale[j]), math.Float32bits(r.VScale[j]))
					}
					rows[i][[2]int{group, position + j}] = row
				}
				return nil
			})
			if err != nil {
				w.t.Fatalf("export of layer %d, striped %v: %v", l, i == 0, err)
			}
		}
		if len(rows[0]) != count*w.layers[l].KVHeads || len(rows[1]) != len(rows[0]) {
			w.t.Fatalf("layer %d: %d and %d rows of %d positions", l, len(rows[0]), len(rows[1]), count)
		}
		for key, row := range rows[1] {
			if !bytes.Equal(row, rows[0][key]) {
				w.t.Fatalf("layer %d: group %d has another row at %d", l, key[0], key[1])
			}
		}
	}
}

func (w *twin) both(do func(s *client.Session) error) {
	w.t.Helper()
	for _, s := range []*client.Session{w.striped, w.whole} {
		if err := do(s); err != nil {
			w.t.Fatal(err)
		}
	}
}

// TestStripesHaveTheBitsOfOneWorker walks over sessions in stripes on several workers, beside the same on one worker: steps of all kinds,
// truncations into earlier splits, forks, exports, and a client that attaches.
func TestStripesHaveTheBitsOfOneWorker(t *testing.T) {
	alone := startWorkers(t, t.TempDir(), 1, 1, 1<<28, time.Hour, nil)
	defer alone.stop(t)
	one := dial(t, alone.address())
	for i, c := range []struct{ workers, stripes, replicas int }{{1, 2, -1}, {2, 2, -1}, {2, 3, 1}, {3, 3, 1}, {5, 4, 1}} {
		for _, direct := range []bool{true, false} {
			t.Run(fmt.Sprintf("%d stripes on %d workers, %d copies, direct %v", c.stripes, c.workers, max(c.replicas, 0), direct), func(t *testing.T) {
				many := startWorkers(t, t.TempDir(), c.workers, 1, 1<<28, time.Hour, nil)
				defer func() {
					for i, left := range many.stop(t) {
						if left != 0 && !t.Failed() {
							t.Errorf("worker %d has %d bytes reserved in the end", i, left)
						}
					}
				}()
				own := dial(t, many.address())
				w := &twin{t: t, r: rand.New(rand.NewPCG(uint64(i), 7)), layers: stripedLayers}
				opts := client.SessionOptions{Layers: stripedLayers, Unshared: true, Direct: direct, Stripes: c.stripes, Replicas: c.replicas, SendF32: i%2 == 0}
				w.striped, w.whole = openOne(t, own, opts), openOne(t, one, client.SessionOptions{Layers: stripedLayers, Unshared: true, SendF32: i%2 == 0})
				// Those who hold a layer in stripes have all of it, each a part.
				state, err := own.FindSession(t.Context(), w.striped.ID())
				if err != nil || len(state.Holders) != c.workers {
					t.Fatalf("%+v: %v", state, err)
				}
				w.walk(30)
				for l := range w.layers { // into a third split
					w.step(l, 5000, 0, nil, nil)
				}
				w.walk(30)
				w.compareRows()
				child := *w
				child.striped, child.whole = fork(t, w.striped), fork(t, w.whole)
				child.walk(10)
				at := 2000 + w.r.IntN(2000)
				w.cutFrom(at)
				w.walk(20)
				w.compareRows()
				child.walk(10)
				child.compareRows()
				receipt := w.striped.Receipt()
				again, err := own.Attach(t.Context(), w.striped.ID(), client.AttachOptions{Receipt: &receipt, Direct: !direct})
				if err != nil {
					t.Fatal(err)
				}
				w.striped = again
				w.walk(10)
				for _, s := range []*client.Session{w.striped, w.whole, child.striped, child.whole} {
					if err := s.Drop(t.Context()); err != nil {
						t.Fatal(err)
					}
				}
			})
		}
	}
}

// cutFrom truncates all layers but for the one with a window, which needs what it has freed.
func (w *twin) cutFrom(position int) {
	w.t.Helper()
	window := len(w.layers) - 1
	for w.whole.LayerLen(window) > position {
		position = w.whole.LayerLen(window)
	}
	w.both(func(s *client.Session) error { return s.Truncate(w.t.Context(), position) })
}

func openOne(t testing.TB, c *client.Client, opts client.SessionOptions) *client.Session {
	t.Helper()
	s, err := c.OpenSession(t.Context(), opts)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func fork(t testing.TB, s *client.Session) *client.Session {
	t.Helper()
	child, err := s.Fork(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return child
}

// TestStripesOutliveAWorker ends a worker that holds stripes of a session with a copy: it goes on with the same bits, and gets new copies.
func TestStripesOutliveAWorker(t *testing.T) {
	alone := startWorkers(t, t.TempDir(), 1, 1, 1<<28, time.Hour, nil)
	defer alone.stop(t)
	one := dial(t, alone.address())
	for _, direct := range []bool{true, false} {
		t.Run(fmt.Sprintf("direct %v", direct), func(t *testing.T) {
			many := startWorkers(t, t.TempDir(), 4, 1, 1<<28, time.Hour, nil)
			defer many.stop(t)
			own := dial(t, many.address())
			w := &twin{t: t, r: rand.New(rand.NewPCG(3, 7)), layers: stripedLayers}
			opts := client.SessionOptions{Layers: stripedLayers, Direct: direct, Stripes: 3, Replicas: 1}
			w.striped, w.whole = openOne(t, own, opts), openOne(t, one, client.SessionOptions{Layers: stripedLayers})
			for l := range w.layers {
				w.step(l, 4500+100*l, 3, nil, nil)
			}
			w.walk(10)
			many.servers[1].stop()
			w.walk(10)
			// The copies that are missing are made again, of each shard alone.
			await.That(t, "both copies of each shard", func() bool {
				state, err := own.FindSession(t.Context(), w.striped.ID())
				if err != nil {
					return false
				}
				held := map[[3]uint32]int{}
				for _, h := range state.Holders {
					for _, l := range h.Layers {
						for _, g := range l.Groups {
							held[[3]uint32{uint32(l.Layer), g}]++
						}
						for _, s := range l.Stripes {
							held[[3]uint32{uint32(l.Layer), s[0], s[1]}]++
						}
					}
				}
				for _, n := range held {
					if n != 2 {
						return false
					}
				}
				return len(held) == 3*(1+2+1+2+1+1)+1
			})
			w.walk(10)
			many.servers[0].stop()
			w.walk(10)
			w.compareRows()
		})
	}
}

// TestSnapshotsOfStripes: a snapshot of a session in stripes is that of the same session without.
func TestSnapshotsOfStripes(t *testing.T) {
	many := startWorkers(t, t.TempDir(), 3, 1, 1<<28, time.Hour, nil)
	defer many.stop(t)
	own := dial(t, many.address())
	w := &twin{t: t, r: rand.New(rand.NewPCG(4, 7)), layers: stripedLayers}
	opts := client.SessionOptions{Layers: stripedLayers, Replicas: -1, Name: "s"}
	w.whole = openOne(t, own, opts)
	opts.Stripes = 3
	w.striped = openOne(t, own, opts)
	for l := range w.layers {
		w.step(l, 4500, 3, nil, nil)
	}
	var files [2]bytes.Buffer
	if err := errors.Join(w.striped.Snapshot(t.Context(), &files[0], nil), w.whole.Snapshot(t.Context(), &files[1], nil)); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(files[0].Bytes(), files[1].Bytes()) {
		t.Fatal("the snapshots differ")
	}
	for _, stripes := range []int{0, 2} {
		again, err := own.RestoreSession(t.Context(), bytes.NewReader(files[0].Bytes()), client.RestoreOptions{Stripes: stripes})
		if err != nil {
			t.Fatal(err)
		}
		both := *w
		both.striped, both.whole = again, fork(t, w.whole)
		both.walk(10)
		both.compareRows()
	}
	if _, err := own.SnapshotSession(t.Context(), w.striped.ID(), &files[0], nil); err != nil {
		t.Fatal(err)
	}
	next, err := w.striped.Recover(t.Context(), func(layer, start, count int) (k, v []float32, err error) { return nil, nil, errors.New("none kept") })
	if err == nil || next != nil {
		t.Fatal("recovered from nothing")
	}
}

// TestStripesThatCanNotBe are refused by name.
func TestStripesThatCanNotBe(t *testing.T) {
	many := startWorkers(t, t.TempDir(), 1, 1, 1<<28, time.Hour, nil)
	defer many.stop(t)
	own := dial(t, many.address())
	layer := client.Layer{Heads: 1, KVHeads: 1, HeadDim: 4}
	for _, n := range []int{-1, 65} {
		_, err := own.OpenSession(t.Context(), client.SessionOptions{Layers: []client.Layer{layer}, Stripes: n})
		if !errors.Is(err, client.ErrRefused) {
			t.Errorf("%d stripes: %v", n, err)
		}
	}
	many2 := client.Layer{Heads: 4096, KVHeads: 4096, HeadDim: 1}
	if _, err := own.OpenSession(t.Context(), client.SessionOptions{Layers: []client.Layer{many2}, Stripes: 2}); !errors.Is(err, client.ErrRefused) {
		t.Error(err)
	}
}

// TestPrefixesOfStripes: a session in stripes begins with what one in as many stripes has left, and not with what one in others has.
func TestPrefixesOfStripes(t *testing.T) {
	many := startWorkers(t, t.TempDir(), 3, 1, 1<<28, time.Hour, nil)
	defer many.stop(t)
	own := dial(t, many.address())
	text := make([]uint32, 4500)
	for i := range text {
		text[i] = uint32(i)
	}
	layers := stripedLayers[:4]
	opts := client.SessionOptions{Layers: layers, Tokens: text, Stripes: 3, Replicas: 1}
	first := openOne(t, own, opts)
	w := &twin{t: t, r: rand.New(rand.NewPCG(5, 7)), layers: layers, striped: first, whole: openOne(t, own, client.SessionOptions{Layers: layers, Unshared: true})}
	for l := range layers {
		one := project(w.r, layers[l], len(text))
		for _, s := range []*client.Session{w.striped, w.whole} {
			if err := s.Do(t.Context(), &client.Step{Layer: l, K: one.k, V: one.v, Tokens: text}); err != nil {
				t.Fatal(err)
			}
		}
	}
	w.striped = openOne(t, own, opts)
	if n := w.striped.Prefix(); n != 4480 {
		t.Fatalf("a prefix of %d positions", n)
	}
	w.both(func(s *client.Session) error { return s.Truncate(t.Context(), 4480) })
	w.walk(20)
	w.compareRows()
	for _, stripes := range []int{0, 2} {
		opts.Stripes = stripes
		if n := openOne(t, own, opts).Prefix(); n != 0 {
			t.Errorf("%d stripes: a prefix of %d positions", stripes, n)
		}
	}
}

// TestARowThatOnlyTheWholeShowsToBeInfinite: values that overflow once splits are merged are refused, and leave the session as it was.
func TestARowThatOnlyTheWholeShowsToBeInfinite(t *testing.T) {
	many := startWorkers(t, t.TempDir(), 2, 1, 1<<28, time.Hour, nil)
	defer many.stop(t)
	own := dial(t, many.address())
	layer := client.Layer{Heads: 1, KVHeads: 1, HeadDim: 1}
	for _, direct := range []bool{true, false} {
		var why [2]string
		for i, stripes := range []int{0, 2} {
			s := openOne(t, own, client.SessionOptions{Layers: []client.Layer{layer}, Stripes: stripes, Direct: direct})
			k, v := make([]float32, 4000), make([]float32, 4000)
			for at := range v {
				v[at] = math.MaxFloat32 / 3000
			}
			if err := s.Do(t.Context(), &client.Step{K: k, V: v}); err != nil {
				t.Fatal(err)
			}
			before := s.Receipt()
			step := &client.Step{Q: make([]float32, 1), K: k[:1], V: v[:1], Context: make([]float32, 1)}
			var refused *client.SessionError
			if err := s.Do(t.Context(), step); !errors.As(err, &refused) || refused.Reason != client.ReasonNotFinite {
				t.Fatalf("direct %v, %d stripes: %v", direct, stripes, err)
			}
			why[i] = refused.Message[strings.Index(refused.Message, "layer 0"):]
			if err := s.Truncate(t.Context(), 100); err != nil {
				t.Fatal(err)
			}
			if s.Len() != 100 || before.Layers[0].Length != 4000 {
				t.Fatalf("direct %v, %d stripes: %d positions", direct, stripes, s.Len())
			}
			if err := s.Do(t.Context(), step); err != nil {
				t.Fatal(err)
			}
		}
		if why[0] != why[1] {
			t.Errorf("direct %v: %q in stripes, %q whole", direct, why[1], why[0])
		}
	}
}

// TestStripesSpreadAsASequenceGrows: pages lie where the positions are, at one worker up to the end of the first split, then at the next
// one, and no byte moves.
func TestStripesSpreadAsASequenceGrows(t *testing.T) {
	many := startWorkers(t, t.TempDir(), 3, 1, 1<<28, time.Hour, nil)
	defer many.stop(t)
	own := dial(t, many.address())
	layer := client.Layer{Heads: 2, KVHeads: 1, HeadDim: 4, Storage: tensor.BF16}
	s := openOne(t, own, client.SessionOptions{Layers: []client.Layer{layer}, Stripes: 3, Unshared: true})
	layout, err := attention.NewLayout(layer.Storage, layer.HeadDim, layer.HeadDim)
	if err != nil {
		t.Fatal(err)
	}
	const perSplit = attention.SplitPages
	for _, c := range []struct{ length, first, second, third int }{
		{1, 1, 0, 0}, {2048, perSplit, 0, 0}, {2049, perSplit, 1, 0}, {6144, perSplit, perSplit, perSplit}, {6145, perSplit + 1, perSplit, perSplit}, {2047, perSplit, 0, 0},
	} {
		if more := c.length - s.Len(); more > 0 {
			rows := make([]float32, 4*more)
			if err := s.Do(t.Context(), &client.Step{K: rows, V: rows}); err != nil {
				t.Fatal(err)
			}
		} else if err := s.Truncate(t.Context(), c.length); err != nil {
			t.Fatal(err)
		}
		state, err := own.FindSession(t.Context(), s.ID())
		if err != nil {
			t.Fatal(err)
		}
		var held [3]int
		for _, h := range state.Holders {
			for _, stripe := range h.Layers[0].Stripes {
				held[stripe[1]] = int(h.PageBytes) / layout.PageBytes()
			}
		}
		if held != [3]int{c.first, c.second, c.third} {
			t.Errorf("of %d positions the stripes have %d pages, not %d, %d and %d", c.length, held, c.first, c.second, c.third)
		}
	}
}
