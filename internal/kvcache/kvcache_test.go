package kvcache

import (
	"bytes"
	"encoding/binary"
	"errors"
	"math"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/zeebo/xxh3"
	"pgregory.net/rapid"

	"headwater.example/attention"
	"headwater.example/tensor"
)

var storage = []tensor.DType{tensor.F32, tensor.F16, tensor.BF16, tensor.I8}

func mustLayout(t interface{ Fatal(...any) }, dt tensor.DType, headDim, vDim int) attention.Layout {
	layout, err := attention.NewLayout(dt, headDim, vDim)
	if err != nil {
		t.Fatal(err)
	}
	return layout
}

// draw draws a layout and n positions of it.
func draw(t *rapid.T, n int) (attention.Layout, attention.Rows) {
	layout := mustLayout(t, rapid.SampledFrom(storage).Draw(t, "storage"), rapid.IntRange(1, 20).Draw(t, "head_dim"), rapid.IntRange(1, 20).Draw(t, "v_dim"))
	random := func(n int, name string) []byte { return rapid.SliceOfN(rapid.Byte(), n, n).Draw(t, name) }
	rows := attention.Rows{K: random(n*layout.KRowBytes(), "k"), V: random(n*layout.VRowBytes(), "v")}
	if layout.DType() == tensor.I8 {
		rows.KScale = rapid.SliceOfN(rapid.Float32(), n, n).Draw(t, "k_scale")
		rows.VScale = rapid.SliceOfN(rapid.Float32(), n, n).Draw(t, "v_scale")
	}
	return layout, rows
}

// cut returns positions [from, to) of rows.
func cut(rows attention.Rows, layout attention.Layout, from, to int) attention.Rows {
	kb, vb := layout.KRowBytes(), layout.VRowBytes()
	out := attention.Rows{K: rows.K[from*kb : to*kb], V: rows.V[from*vb : to*vb]}
	if len(rows.KScale) > 0 {
		out.KScale, out.VScale = rows.KScale[from:to], rows.VScale[from:to]
	}
	return out
}

// plainHash is the chain as its definition reads.
func plainHash(rows attention.Rows, layout attention.Layout, n int) uint64 {
	var h uint64
	for i := range n {
		row := cut(rows, layout, i, i+1)
		var b bytes.Buffer
		for _, v := range []any{h, uint64(i), row.K, row.V, row.KScale, row.VScale} {
			_ = binary.Write(&b, binary.LittleEndian, v)
		}
		h = xxh3.Hash(b.Bytes())
	}
	return h
}

func TestReceiptDoesNotDependOnBlocks(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		n := rapid.IntRange(1, 150).Draw(t, "n")
		layout, rows := draw(t, n)
		budget := NewBudget(1 << 20)
		s, err := OpenShard(budget, Nobody, layout, n)
		if err != nil {
			t.Fatal(err)
		}
		defer func() {
			s.Close()
			if budget.Used() != 0 {
				t.Fatalf("%d bytes are in use after close", budget.Used())
			}
		}()
		var whole Hasher
		if err := whole.Update(rows, n, layout); err != nil {
			t.Fatal(err)
		}
		for at := 0; at < n; {
			m := rapid.IntRange(1, n-at).Draw(t, "block")
			if err := s.Append(cut(rows, layout, at, at+m), m); err != nil {
				t.Fatal(err)
			}
			at += m
		}
		want := Receipt{Length: uint64(n), Hash: plainHash(rows, layout, n)}
		if s.Receipt() != want || whole.Receipt() != want || s.Len() != n {
			t.Fatalf("shard has %v, whole rows %v, want %v", s.Receipt(), whole.Receipt(), want)
		}
		// What was stored is what was hashed.
		kv := s.KV(n)
		back := attention.Rows{K: make([]byte, len(rows.K)), V: make([]byte, len(rows.V)), KScale: make([]float32, len(rows.KScale)), VScale: make([]float32, len(rows.VScale))}
		for p, page := range kv.Pages {
			from, to := p*attention.PageLen, min((p+1)*attention.PageLen, n)
			if err := layout.Read(page, 0, to-from, cut(back, layout, from, to)); err != nil {
				t.Fatal(err)
			}
		}
		if !bytes.Equal(back.K, rows.K) || !bytes.Equal(back.V, rows.V) || !slices.Equal(back.KScale, rows.KScale) || !slices.Equal(back.VScale, rows.VScale) {
			t.Fatal("the shard's pages hold other rows than were appended")
		}
	})
}

func TestReceiptDependsOnEachByteAndTheirOrder(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		n := rapid.IntRange(2, 10).Draw(t, "n")
		layout, rows := draw(t, n)
		before := plainHash(rows, layout, n)
		i, j := rapid.IntRange(0, n-1).Draw(t, "i"), rapid.IntRange(0, n-1).Draw(t, "j")
		if rapid.Bool().Draw(t, "swap") {
			a, b := cut(rows, layout, i, i+1), cut(rows, layout, j, j+1)
			if bytes.Equal(a.K, b.K) {
				return
			}
			for x := range a.K {
				a.K[x], b.K[x] = b.K[x], a.K[x]
			}
		} else {
			rows.V[rapid.IntRange(0, len(rows.V)-1).Draw(t, "byte")] ^= 1 << rapid.IntRange(0, 7).Draw(t, "bit")
		}
		var h Hasher
		if err := h.Update(rows, n, layout); err != nil {
			t.Fatal(err)
		}
		if h.Receipt().Hash == before {
			t.Fatal("other rows have the same hash")
		}
	})
}

func TestReceiptIsPinned(t *testing.T) {
	layout := mustLayout(t, tensor.I8, 2, 1)
	var h Hasher
	if h.Receipt() != (Receipt{}) {
		t.Fatalf("receipt of nothing is %v", h.Receipt())
	}
	if err := h.Update(attention.Rows{K: []byte{1, 2, 3, 4}, V: []byte{5, 6}, KScale: []float32{1, 2}, VScale: []float32{3, 4}}, 2, layout); err != nil {
		t.Fatal(err)
	}
	// Both ends of a connection compute it: another value is another protocol.
	const pinned = "2 positions, hash ed21ef34a4f8a825"
	if got := h.Receipt().String(); got != pinned {
		t.Fatalf("receipt is %q, want %q", got, pinned)
	}
}

func TestAppendRefusesAndLeavesTheShard(t *testing.T) {
	layout := mustLayout(t, tensor.F32, 2, 1)
	s, err := OpenShard(NewBudget(1<<20), Nobody, layout, 100)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	rows := func(n int) attention.Rows { return attention.Rows{K: make([]byte, 8*n), V: make([]byte, 4*n)} }
	if err := s.Append(rows(70), 70); err != nil {
		t.Fatal(err)
	}
	before := s.Receipt()
	for name, c := range map[string]struct {
		rows attention.Rows
		n    int
	}{
		"no position":       {rows(0), 0},
		"negative":          {rows(0), -1},
		"beyond capacity":   {rows(31), 31},
		"short keys":        {attention.Rows{K: make([]byte, 15), V: make([]byte, 8)}, 2},
		"long values":       {attention.Rows{K: make([]byte, 16), V: make([]byte, 9)}, 2},
		"scales of float32": {attention.Rows{K: make([]byte, 16), V: make([]byte, 8), KScale: make([]float32, 2), VScale: make([]float32, 2)}, 2},
		"overflow":          {rows(1), math.MaxInt},
	} {
		if err := s.Append(c.rows, c.n); err == nil || strings.Contains(err.Error(), "\n") {
			t.Errorf("%s: got %v, want one line", name, err)
		}
		if s.Receipt() != before || s.Len() != 70 {
			t.Errorf("%s: the shard has changed", name)
		}
	}
	if err := s.Append(rows(30), 30); err != nil {
		t.Fatal(err)
	}
	if kv := s.KV(65); kv.Len != 65 || len(kv.Pages) != 2 {
		t.Fatalf("got %d positions in %d pages", kv.Len, len(kv.Pages))
	}
	if kv := s.KV(1000); kv.Len != 100 {
		t.Fatalf("got %d positions of 100", kv.Len)
	}
	s.Close()
	s.Close()
	if err := s.Append(rows(1), 1); err == nil {
		t.Fatal("a closed shard took a position")
	}
}

func TestBudget(t *testing.T) {
	layout := mustLayout(t, tensor.F32, 4, 4)
	one := int64(layout.PageBytes())
	b := NewBudget(3 * one)
	s, err := OpenShard(b, Nobody, layout, attention.PageLen+1)
	if err != nil {
		t.Fatal(err)
	}
	if b.Used() != 2*one || s.Reserved() != 2*one {
		t.Fatalf("two pages take %d and %d bytes, want %d", b.Used(), s.Reserved(), 2*one)
	}
	_, err = OpenShard(b, Nobody, layout, 2*attention.PageLen)
	var full *BudgetError
	if !errors.As(err, &full) || *full != (BudgetError{Asked: 2 * one, Free: one, Total: 3 * one}) {
		t.Fatalf("got %v", err)
	}
	if err := b.Reserve(-1); err == nil {
		t.Fatal("a negative size was reserved")
	}
	if _, err := OpenShard(b, Nobody, layout, -1); err == nil {
		t.Fatal("a negative capacity was taken")
	}
	if _, err := OpenShard(NewBudget(math.MaxInt64), Nobody, layout, math.MaxInt); err == nil {
		t.Fatal("a shard of all positions was taken")
	}
	empty, err := OpenShard(b, Nobody, layout, 0)
	if err != nil || b.Used() != 3*one {
		t.Fatalf("an empty shard takes %d bytes: %v", b.Used(), err)
	}
	empty.Close()
	s.Close()
	s.Close()
	if b.Used() != 0 || b.Total() != 3*one {
		t.Fatalf("%d bytes are in use", b.Used())
	}
}

func TestBudgetIsSharedSafely(t *testing.T) {
	b := NewBudget(10)
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for range 1000 {
				if b.Reserve(3) == nil {
					if b.Used() > 10 {
						t.Error("more is in use than there is")
					}
					b.Release(3)
				}
			}
		})
	}
	wg.Wait()
	if b.Used() != 0 {
		t.Fatalf("%d are in use", b.Used())
	}
	defer func() {
		if recover() == nil {
			t.Error("more was released than was reserved")
		}
	}()
	b.Release(1)
}

func TestArena(t *testing.T) {
	a, err := MapArena(10)
	if err != nil {
		t.Fatal(err)
	}
	if len(a.Bytes()) != 10 || len(a.Floats()) != 2 || a.Floats()[1] != 0 {
		t.Fatalf("%d bytes, %d floats", len(a.Bytes()), len(a.Floats()))
	}
	a.Close()
	a.Close()
	if _, err := MapArena(-1); err == nil {
		t.Fatal("a negative size was mapped")
	}
	if a, err := MapArena(math.MaxInt64 - 4096); err == nil {
		a.Close()
		t.Fatal("all of memory was mapped")
	}
	none, err := MapArena(0)
	if err != nil || none.Bytes() != nil || none.Floats() != nil {
		t.Fatal("an empty arena has memory")
	}
	none.Close()
}

func BenchmarkAppend(b *testing.B) {
	layout := mustLayout(b, tensor.F32, 128, 128)
	const n = 1024
	rows := attention.Rows{K: make([]byte, n*layout.KRowBytes()), V: make([]byte, n*layout.VRowBytes())}
	b.SetBytes(int64(len(rows.K) + len(rows.V)))
	for range b.N {
		s, err := OpenShard(NewBudget(1<<30), Nobody, layout, n)
		if err != nil {
			b.Fatal(err)
		}
		if err := s.Append(rows, n); err != nil {
			b.Fatal(err)
		}
		s.Close()
	}
}
