//go:build unix

package attention

import (
	"context"
	"fmt"
	"math"
	"math/rand/v2"
	"os"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"
	"pgregory.net/rapid"

	"headwater/tensor"
)

// guards gives memory between pages that can not be touched, so that one byte read or written too far ends the test.
type guards struct {
	t    rapid.TB
	maps [][]byte
}

func (g *guards) free() {
	for _, m := range g.maps {
		if err := unix.Munmap(m); err != nil {
			g.t.Fatal(err)
		}
	}
	g.maps = nil
}

// bytes returns n bytes that end where the memory does or, if first, begin where it does.
func (g *guards) bytes(n int, first bool) []byte {
	page := os.Getpagesize()
	room := (n + page - 1) / page * page
	m, err := unix.Mmap(-1, 0, room+2*page, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_ANON|unix.MAP_PRIVATE)
	if err != nil {
		g.t.Fatal(err)
	}
	g.maps = append(g.maps, m)
	for _, at := range []int{0, page + room} {
		if err := unix.Mprotect(m[at:][:page], unix.PROT_NONE); err != nil {
			g.t.Fatal(err)
		}
	}
	if first {
		return m[page:][:n:n]
	}
	return m[page+room-n:][:n:n]
}

func (g *guards) floats(n int, first bool) []float32 {
	if n == 0 {
		return nil
	}
	return unsafe.Slice((*float32)(unsafe.Pointer(unsafe.SliceData(g.bytes(4*n, first)))), n)
}

// bitsOf draws a finite binary32 of some kind.
var kinds = []struct {
	name string
	draw func(rnd *rand.Rand) float32
}{
	{"normal", func(rnd *rand.Rand) float32 { return float32(rnd.NormFloat64()) }},
	{"large", func(rnd *rand.Rand) float32 { return float32(rnd.NormFloat64() * 6) }},
	{"few", func(rnd *rand.Rand) float32 { return float32(rnd.IntN(3) - 1) }},
	{"zeros", func(rnd *rand.Rand) float32 {
		return []float32{0, float32(math.Copysign(0, -1)), 1, -1}[rnd.IntN(4)]
	}},
	{"subnormal", func(rnd *rand.Rand) float32 {
		return math.Float32frombits(rnd.Uint32() & 0x807fffff)
	}},
	{"small", func(rnd *rand.Rand) float32 { return float32(rnd.NormFloat64() * 1e-20) }},
	{"any", func(rnd *rand.Rand) float32 {
		for {
			if x := math.Float32frombits(rnd.Uint32()); finite(x) {
				return x
			}
		}
	}},
	{"same", func(*rand.Rand) float32 { return 0.625 }},
}

// stored draws n·dim elements of the storage type, finite, and for int8 their scales.
func stored(g *guards, rnd *rand.Rand, dt tensor.DType, n, dim int, draw func(*rand.Rand) float32) (b []byte, scales []float32) {
	b = make([]byte, n*dim*dt.Size())
	x := make([]float32, n*dim)
	for i := range x {
		x[i] = draw(rnd)
		switch dt {
		case tensor.F16:
			x[i] = max(min(x[i], 65504), -65504)
		case tensor.BF16:
			x[i] = max(min(x[i], 3e38), -3e38)
		}
	}
	if dt == tensor.I8 {
		for i := range b {
			b[i] = byte(rnd.IntN(255) - 127)
		}
		for range n {
			scales = append(scales, float32(math.Abs(float64(draw(rnd)))))
		}
		return b, scales
	}
	if err := tensor.Narrow(b, x, dt); err != nil {
		g.t.Fatal(err)
	}
	return b, nil
}

// trial is an attention whose every slice lies between guards.
func trial(g *guards, seed uint64, s shape, variant int) *sample {
	rnd := rand.New(rand.NewPCG(seed, 77))
	l, err := NewLayout(s.dt, s.headDim, s.vDim)
	if err != nil {
		g.t.Fatal(err)
	}
	e := &sample{opts: DefaultOptions(s.headDim)}
	qk, vk := kinds[0], kinds[0]
	if rnd.IntN(2) == 0 {
		qk = kinds[rnd.IntN(len(kinds))]
	}
	if rnd.IntN(2) == 0 {
		vk = kinds[rnd.IntN(len(kinds))]
	}
	kk := kinds[rnd.IntN(2)]
	e.q = Query{Q: g.floats(s.tokens*s.heads*s.headDim, rnd.IntN(2) == 0), Tokens: s.tokens, Heads: s.heads, FirstHead: s.firstHead, Offset: s.offset}
	for i := range e.q.Q {
		e.q.Q[i] = qk.draw(rnd)
	}
	if qk.name == "small" && rnd.IntN(2) == 0 {
		e.opts.Scale = 1e20
	}
	k, ks := stored(g, rnd, s.dt, s.len, s.headDim, kk.draw)
	v, vs := stored(g, rnd, s.dt, s.len, s.vDim, vk.draw)
	pages := paged(g.t, l, s.len, Rows{K: k, V: v, KScale: ks, VScale: vs})
	together := rnd.IntN(2) == 0
	var arena []byte
	if together {
		arena = g.bytes(len(pages)*l.PageBytes(), true)
	}
	for p := range pages {
		own := arena
		if together {
			own = arena[p*l.PageBytes():][:l.PageBytes()]
		} else {
			own = g.bytes(l.PageBytes(), false)
		}
		copy(own, pages[p])
		pages[p] = own
	}
	e.kv = KV{Layout: l, Pages: pages, Len: s.len}
	variants[variant].apply(e, rnd)
	if e.q.Mask != nil {
		m := g.bytes(len(e.q.Mask), false)
		copy(m, e.q.Mask)
		e.q.Mask = m
	}
	if e.q.Bias != nil {
		b := g.floats(len(e.q.Bias), false)
		copy(b, e.q.Bias)
		e.q.Bias = b
	}
	return e
}

// alike runs a trial with every kernel of this machine and fails unless they give the portable one's bits, or its error.
func alike(t rapid.TB, seed uint64, s shape, variant, threads int) {
	t.Helper()
	g := &guards{t: t}
	defer g.free()
	e := trial(g, seed, s, variant)
	run := func(k *kernel) (Output, error) {
		rows := s.tokens * s.heads
		out := Output{Context: g.floats(rows*s.vDim, seed%2 == 0), LSE: g.floats(rows, seed%3 == 0)}
		for i := range out.Context {
			out.Context[i] = float32(math.NaN())
		}
		return out, attend(context.Background(), k, partBytes, threads, e.kv, e.q, e.opts, out)
	}
	what := fmt.Sprintf("%s %s, seed %d", variants[variant].name, s, seed)
	want, wantErr := run(&portable)
	for i := range kernels {
		k := &kernels[i]
		if k.vector == nil {
			continue
		}
		out, err := run(k)
		if fmt.Sprint(err) != fmt.Sprint(wantErr) {
			t.Fatalf("%s: %s: error %v, want %v", what, k.name, err, wantErr)
		}
		if err == nil {
			e.sameRows(t, what+": "+k.name, want, out, 0, s.tokens, 0, s.heads)
		}
	}
}

// TestVectorKernels tries every storage type with every head size, and the rest in turn.
func TestVectorKernels(t *testing.T) {
	if len(kernels) == 1 {
		t.Skip("this machine has the portable kernel alone")
	}
	dims := []int{64, 80, 96, 112, 128, 192, 256, 1, 2, 15, 16, 17, 33, 512}
	lens := []int{1, 15, 16, 63, 64, 65, 127, 130, 200, 2047, 2048, 2049, 5000}
	tokens := []int{1, 2, 3, 5, 17, 40, 70}
	seed := uint64(0)
	for _, dt := range storages {
		for _, dim := range dims {
			for i, n := range lens {
				for variant := range variants {
					seed++
					rnd := rand.New(rand.NewPCG(seed, 5))
					s := shape{
						dt: dt, headDim: dim, vDim: dim, heads: 1 + rnd.IntN(17), tokens: tokens[rnd.IntN(len(tokens))], len: n,
						firstHead: rnd.IntN(3),
					}
					if rnd.IntN(2) == 0 {
						s.vDim = dims[rnd.IntN(len(dims))]
					}
					// The portable kernel is slow, so most products of many are left out.
					if work := s.heads * s.tokens * n * (s.headDim + s.vDim); work > 200_000 && rnd.IntN(work/200_000) != 0 || work > 20_000_000 {
						continue
					}
					s.offset = int64(rnd.IntN(n+4)) - int64(rnd.IntN(s.tokens+2))
					if i%2 == 0 {
						s.offset = int64(n - s.tokens)
					}
					alike(t, seed, s, variant, 1+int(seed%2))
				}
			}
		}
	}
}

func TestVectorAnyShape(t *testing.T) {
	rapid.Check(t, func(r *rapid.T) { drawn(r, rapid.Uint64().Draw(r, "seed")) })
}

func drawn(t rapid.TB, seed uint64) {
	rnd := rand.New(rand.NewPCG(seed, 6))
	s := shape{
		dt: storages[rnd.IntN(4)], headDim: 1 + rnd.IntN(140), vDim: 1 + rnd.IntN(140), tokens: 1 + rnd.IntN(20), heads: 1 + rnd.IntN(9),
		len: rnd.IntN(300), firstHead: rnd.IntN(3), offset: int64(rnd.IntN(320) - 20),
	}
	alike(t, seed, s, rnd.IntN(len(variants)), 1+rnd.IntN(3))
}

func FuzzVector(f *testing.F) {
	for seed := range uint64(10) {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, seed uint64) { drawn(t, seed) })
}

func TestSelectKernel(t *testing.T) {
	was := KernelName()
	defer func() {
		if err := SelectKernel(was); err != nil {
			t.Error(err)
		}
	}()
	for _, name := range KernelNames() {
		if err := SelectKernel(name); err != nil || KernelName() != name {
			t.Errorf("%s: %v, in use is %s", name, err, KernelName())
		}
	}
	for _, name := range []string{"sse", "AVX2", "neon"} {
		if err := SelectKernel(name); err == nil {
			t.Errorf("%q passes", name)
		}
	}
	if KernelName() != "portable" {
		t.Errorf("a refused name changed the kernel to %s", KernelName())
	}
	if err := SelectKernel(""); err != nil || KernelName() != KernelNames()[0] {
		t.Errorf("the best: %v, in use is %s", err, KernelName())
	}
}

// TestProjectKernels holds Project on every kernel against chains of fma, with x, w and y between guards.
func TestProjectKernels(t *testing.T) {
	was := KernelName()
	defer func() {
		if err := SelectKernel(was); err != nil {
			t.Error(err)
		}
	}()
	rnd := rand.New(rand.NewPCG(1, 2))
	for i := range 60 {
		rows, in, out := 1+rnd.IntN(20), 1+rnd.IntN(300), 1+rnd.IntN(150)
		if i < 4 {
			rows, in, out = 513+i, 8*i+1, 65
		}
		t.Run(fmt.Sprint(rows, in, out), func(t *testing.T) {
			g := &guards{t: t}
			defer g.free()
			kind := kinds[i%3]
			x, w, y := g.floats(rows*in, i%2 == 0), g.floats(out*in, i%2 == 1), g.floats(rows*out, i%2 == 0)
			for _, s := range [][]float32{x, w} {
				for j := range s {
					s[j] = kind.draw(rnd)
				}
			}
			bias := normals(rnd, out, 1)
			for _, name := range KernelNames() {
				if err := SelectKernel(name); err != nil {
					t.Fatal(err)
				}
				if err := Project(context.Background(), 1+i%2, y, x, w, bias, rows, in, out); err != nil {
					t.Fatal(err)
				}
				for r := range rows {
					for j := range out {
						s := float32(0)
						for c := range in {
							s = fma32(x[r*in+c], w[j*in+c], s)
						}
						if s += bias[j]; math.Float32bits(s) != math.Float32bits(y[r*out+j]) {
							t.Fatalf("%s: row %d, column %d: %x, not %x", name, r, j, y[r*out+j], s)
						}
					}
				}
			}
		})
	}
}
