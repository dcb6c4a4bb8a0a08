//go:build unix

package attention

import (
	"context"
	"encoding/binary"
	"fmt"
	"math"
	"math/rand/v2"
	"os"
	"slices"
	"testing"

	"pgregory.net/rapid"

	"headwater.example/tensor"
)

// A kind is a sort of finite binary32. Keys and values that are subnormal are so in their storage type.
type kind int

const (
	normal kind = iota
	large
	few
	zeros01
	same
	subnormal
	tiny
	vast
	higher // up to 2¹¹²
	highest
	anything // finite
)

func (k kind) draw(rnd *rand.Rand) float32 {
	switch k {
	case large:
		return float32(rnd.NormFloat64() * 6)
	case few:
		return float32(rnd.IntN(3) - 1)
	case zeros01:
		return []float32{0, float32(math.Copysign(0, -1)), 1, -1}[rnd.IntN(4)]
	case same:
		return 0.625
	case subnormal:
		return math.Float32frombits(rnd.Uint32() & 0x807fffff)
	case tiny:
		return float32(rnd.NormFloat64() * 1e-20)
	case vast:
		return float32(rnd.NormFloat64() * 1e26)
	case higher:
		return math.Float32frombits(rnd.Uint32()&0x807fffff | uint32(rnd.IntN(127+112))<<23)
	case highest:
		return float32(rnd.NormFloat64() * 1e37)
	case anything:
		for {
			if x := math.Float32frombits(rnd.Uint32()); finite(x) {
				return x
			}
		}
	}
	return float32(rnd.NormFloat64())
}

// bounded is the kind, or one like it whose numbers tiles can hold.
func (k kind) bounded() kind {
	switch k {
	case vast, higher, highest, anything:
		return large
	}
	return k
}

// mixtures say what queries, keys and values are drawn from.
var mixtures = []struct {
	name    string
	q, k, v kind
}{
	{"normal", normal, normal, normal},
	{"spread", large, normal, large},
	{"few", few, few, few},
	{"zeros", zeros01, zeros01, zeros01},
	{"equal scores", same, same, normal},
	{"subnormal keys and values", normal, subnormal, subnormal},
	{"subnormal queries", subnormal, normal, normal},
	{"tiny scores", tiny, tiny, normal},
	{"huge scores", vast, large, normal},
	{"any values", normal, normal, higher},
	{"overflow", highest, large, normal},
	{"bf16 queries", few, normal, normal},
}

// stored draws n·dim elements of the storage type, finite, and for int8 their scales.
func stored(t rapid.TB, rnd *rand.Rand, dt tensor.DType, n, dim int, k kind) (b []byte, scales []float32) {
	b = make([]byte, n*dim*dt.Size())
	switch {
	case dt == tensor.I8:
		for i := range b {
			b[i] = byte(rnd.IntN(255) - 127)
		}
		for range n {
			scales = append(scales, float32(math.Abs(float64(k.draw(rnd)))))
		}
		return b, scales
	case dt == tensor.F16 && k == subnormal:
		for i := 0; i < len(b); i += 2 {
			binary.LittleEndian.PutUint16(b[i:], uint16(rnd.Uint32())&0x83ff)
		}
		return b, nil
	}
	x := make([]float32, n*dim)
	for i := range x {
		x[i] = k.draw(rnd)
		if dt == tensor.F16 {
			x[i] = max(min(x[i], 65504), -65504)
		}
	}
	if err := tensor.Narrow(b, x, dt); err != nil {
		t.Fatal(err)
	}
	return b, nil
}

// A trial is one attention of the product of everything that kernels take in their own ways.
type trial struct {
	shape
	variant, mixture, threads int
	seed                      uint64
}

func (c trial) String() string {
	return fmt.Sprintf("%s, %s, %s, %d threads, seed %d", variants[c.variant].name, mixtures[c.mixture].name, c.shape, c.threads, c.seed)
}

// sample draws the trial with every slice between guards.
func (c trial) sample(g *guards) *sample {
	rnd := rand.New(rand.NewPCG(c.seed, 77))
	l := c.layout(g.t)
	mix := mixtures[c.mixture]
	if c.arithmetic != Chain {
		mix.k, mix.v = mix.k.bounded(), mix.v.bounded()
	}
	first := rnd.IntN(2) == 0
	e := &sample{opts: DefaultOptions(c.headDim)}
	e.q = Query{Q: g.floats(c.tokens*c.heads*c.headDim, first), Tokens: c.tokens, Heads: c.heads, FirstHead: c.firstHead, Offset: c.offset}
	for i := range e.q.Q {
		e.q.Q[i] = mix.q.draw(rnd)
	}
	if mix.q == tiny && rnd.IntN(2) == 0 {
		e.opts.Scale = 1e20
	}
	k, ks := stored(g.t, rnd, c.dt, c.len, c.headDim, mix.k)
	v, vs := stored(g.t, rnd, c.dt, c.len, c.vDim, mix.v)
	e.kv = KV{Layout: l, Pages: paged(g.t, l, c.len, Rows{K: k, V: v, KScale: ks, VScale: vs}), Len: c.len}
	if rnd.IntN(2) == 0 { // one page after the other, as in an arena
		arena := g.bytes(len(e.kv.Pages)*l.PageBytes(), first)
		for p, page := range e.kv.Pages {
			own := arena[p*l.PageBytes():][:l.PageBytes()]
			copy(own, page)
			e.kv.Pages[p] = own
		}
	} else {
		for p, page := range e.kv.Pages {
			e.kv.Pages[p] = g.copied(page, first)
		}
	}
	variants[c.variant].apply(e, rnd)
	if e.q.Mask != nil {
		if rnd.IntN(2) == 0 { // of the newest positions alone
			e.q.MaskFrom = rnd.IntN(c.len + 1)
			all := e.q.Mask
			e.q.Mask = nil
			for i := 0; i < len(all); i += c.len {
				e.q.Mask = append(e.q.Mask, all[i+e.q.MaskFrom:i+c.len]...)
			}
		}
		e.q.Mask = g.copied(e.q.Mask, first)
	}
	if e.q.Bias != nil {
		b := g.floats(len(e.q.Bias), first)
		copy(b, e.q.Bias)
		e.q.Bias = b
	}
	return e
}

// alike runs the trial with every kernel of this machine, and fails unless they give the portable one's bits, or its
// error. The portable kernel has one thread, the others as many as the trial says.
func (c trial) alike(t rapid.TB) {
	t.Helper()
	g := &guards{t: t}
	defer g.free()
	e := c.sample(g)
	run := func(k *kernel, threads int) (Output, error) {
		rows := c.tokens * c.heads
		out := Output{Context: g.floats(rows*c.vDim, c.seed%2 == 0), LSE: g.floats(rows, c.seed%3 == 0)}
		for i := range out.Context {
			out.Context[i] = float32(math.NaN())
		}
		return out, attend(context.Background(), k, partBytes, threads, e.kv, e.q, e.opts, out)
	}
	want, wantErr := run(&portable, 1)
	for _, k := range append(otherKernels, kernels...) {
		if k.vector == nil {
			continue
		}
		out, err := run(&k, c.threads)
		if fmt.Sprint(err) != fmt.Sprint(wantErr) {
			t.Fatalf("%s: %s: error %v, want %v", c, k.name, err, wantErr)
		}
		if err == nil {
			e.sameRows(t, c.String()+": "+k.name, want, out, 0, c.tokens, 0, c.heads)
		}
	}
}

// The product's levels, the cheap ones first.
var (
	productHeadDims = []int{64, 1, 15, 33, 80, 96, 112, 128, 192, 256, 512}
	productVDims    = []int{0, 1, 16, 40, 64, 128, 500} // 0 is head_dim
	productHeads    = []int{1, 2, 3, 4, 5, 6, 7, 8, 12, 16, 17}
	productLens     = []int{1, 15, 16, 63, 64, 65, 2047, 2048, 2049, 5000}
	productTokens   = []int{1, 2, 3, 5, 17, 64, 70}
	productThreads  = []int{1, 2, 3}
	productOffsets  = []func(n, tokens int) int{
		func(n, tokens int) int { return n - tokens }, // the last token stands at the last key
		func(int, int) int { return 0 },
		func(n, _ int) int { return n / 2 },
		func(_, tokens int) int { return -tokens/2 - 1 }, // causal rows see nothing at first
		func(n, _ int) int { return n + 3 },              // nor do those of a window beyond the last key
	}
)

var productLevels = []int{
	len(storings), len(productHeadDims), len(productVDims), len(productHeads), len(productLens), len(productTokens),
	len(productThreads), len(productOffsets), len(variants), len(mixtures),
}

func trialOf(row []int) trial {
	n, tokens := productLens[row[4]], productTokens[row[5]]
	c := trial{
		shape: shape{
			dt: storings[row[0]].dt, arithmetic: storings[row[0]].arithmetic, headDim: productHeadDims[row[1]], vDim: productVDims[row[2]], heads: productHeads[row[3]],
			len: n, tokens: tokens, offset: int64(productOffsets[row[7]](n, tokens)),
		},
		threads: productThreads[row[6]], variant: row[8], mixture: row[9],
	}
	if c.vDim == 0 {
		c.vDim = c.headDim
	}
	for i, level := range row {
		c.seed = c.seed*uint64(productLevels[i]) + uint64(level)
	}
	c.firstHead = int(c.seed % 3)
	return c
}

// cost is about the multiply-adds of the trial; each score costs some more.
func (c trial) cost() int { return c.heads * c.tokens * c.len * (c.headDim + c.vDim + 40) }

// TestVectorProduct tries a covering design: every three levels of the product's factors meet, unless that costs too much.
// With -short every two do. With HEADWATER_EXHAUSTIVE in the environment every storage type,
// head_dim, group size, length and option meet, with levels of the other factors in turn.
func TestVectorProduct(t *testing.T) {
	skipIfRaced(t)
	if len(kernels) == 1 {
		t.Skip("this machine has the portable kernel alone")
	}
	if os.Getenv("HEADWATER_EXHAUSTIVE") != "" {
		exhaustive(t)
		return
	}
	strength, most := 3, 1_000_000
	if testing.Short() {
		strength = 2
	}
	rows := covering(productLevels, strength, func(row []int) int { return trialOf(row).cost() }, most)
	if !testing.Short() {
		rows = append(rows, covering(productLevels, 2, func(row []int) int { return trialOf(row).cost() }, 40*most)...)
	}
	total := 0
	for _, row := range rows {
		c := trialOf(row)
		total += c.cost()
		c.alike(t)
	}
	t.Logf("%d trials, %d million multiply-adds", len(rows), total/1_000_000)
}

func exhaustive(t *testing.T) {
	const most = 50_000_000
	row, trials := make([]int, len(productLevels)), 0
	rnd := rand.New(rand.NewPCG(1, 1))
	for row[0] = range productLevels[0] {
		for row[1] = range productLevels[1] {
			for row[3] = range productLevels[3] {
				for row[4] = range productLevels[4] {
					for row[8] = range productLevels[8] {
						for _, f := range []int{2, 5, 6, 7, 9} {
							row[f] = rnd.IntN(productLevels[f])
						}
						for row[5] > 0 && trialOf(row).cost() > most {
							row[5]--
						}
						trials++
						trialOf(row).alike(t)
					}
				}
			}
		}
	}
	t.Logf("%d trials", trials)
}

func TestVectorAnyShape(t *testing.T) {
	if len(kernels) == 1 {
		t.Skip("this machine has the portable kernel alone")
	}
	rapid.Check(t, func(r *rapid.T) {
		c := trial{
			shape: shape{
				headDim: rapid.IntRange(1, 140).Draw(r, "head_dim"),
				vDim:    rapid.IntRange(1, 140).Draw(r, "v_dim"), tokens: rapid.IntRange(1, 20).Draw(r, "tokens"),
				heads: rapid.IntRange(1, 9).Draw(r, "heads"), len: rapid.IntRange(0, 300).Draw(r, "len"),
				offset: rapid.Int64Range(-20, 320).Draw(r, "offset"), firstHead: rapid.IntRange(0, 2).Draw(r, "first head"),
			},
			variant: rapid.IntRange(0, len(variants)-1).Draw(r, "variant"), mixture: rapid.IntRange(0, len(mixtures)-1).Draw(r, "mixture"),
			threads: rapid.IntRange(1, 3).Draw(r, "threads"), seed: rapid.Uint64().Draw(r, "seed"),
		}
		c.shape = c.as(rapid.SampledFrom(storings).Draw(r, "storing"))
		c.alike(r)
	})
}

func FuzzVector(f *testing.F) {
	f.Add(uint64(1), uint8(0), uint16(64), uint16(64), uint8(1), uint8(4), uint16(100), int16(99), uint8(0), uint8(0), uint8(1))
	f.Add(uint64(2), uint8(1), uint16(128), uint16(128), uint8(7), uint8(8), uint16(65), int16(58), uint8(1), uint8(4), uint8(2))
	f.Add(uint64(3), uint8(2), uint16(33), uint16(17), uint8(3), uint8(3), uint16(2049), int16(-5), uint8(14), uint8(2), uint8(2))
	f.Add(uint64(4), uint8(3), uint16(80), uint16(96), uint8(2), uint8(16), uint16(2100), int16(2098), uint8(7), uint8(5), uint8(3))
	f.Add(uint64(5), uint8(3), uint16(1), uint16(1), uint8(1), uint8(1), uint16(0), int16(0), uint8(9), uint8(8), uint8(1))
	f.Fuzz(func(t *testing.T, seed uint64, dt uint8, headDim, vDim uint16, tokens, heads uint8, n uint16, offset int16, variant, mixture, threads uint8) {
		c := trial{
			shape: shape{
				headDim: 1 + int(headDim)%MaxHeadDim, vDim: 1 + int(vDim)%MaxHeadDim,
				tokens: 1 + int(tokens)%80, heads: 1 + int(heads)%40, len: int(n) % 5000, offset: int64(offset), firstHead: int(seed % 3),
			},
			variant: int(variant) % len(variants), mixture: int(mixture) % len(mixtures), threads: 1 + int(threads)%4, seed: seed,
		}
		c.shape = c.as(storings[int(dt)%len(storings)])
		if c.cost() > 20_000_000 {
			t.Skip("a fuzzer wants more trials, not larger ones")
		}
		c.alike(t)
	})
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
	for _, name := range []string{"sse", "AVX2", "NEON", "amx", "avx512", "avx2", "neon"} {
		if slices.Contains(KernelNames(), name) {
			continue
		}
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
	skipIfRaced(t)
	was := KernelName()
	defer func() {
		if err := SelectKernel(was); err != nil {
			t.Error(err)
		}
	}()
	rnd := rand.New(rand.NewPCG(1, 2))
	for i := range 60 {
		rows, in, out := 1+rnd.IntN(20), 1+rnd.IntN(300), 1+rnd.IntN(150)
		switch {
		case i < 4:
			rows, in, out = 513+i, 8*i+1, 65
		case i < 8: // enough columns for x to be packed, by several tiles and stripes
			rows, in, out = []int{1, 255, 256, 300}[i-4], 100+60*(i-4), packBlocks*PageLen-1+i%2
		}
		t.Run(fmt.Sprint(rows, in, out), func(t *testing.T) {
			g := &guards{t: t}
			defer g.free()
			kind := []kind{normal, large, few}[i%3]
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

// TestProjectPacksEachCall: what a thread keeps of one call's x is not another's, of whatever call and shape.
func TestProjectPacksEachCall(t *testing.T) {
	const out = packBlocks * PageLen
	p := NewPool(1)
	defer p.Close()
	thread := acquire(t, p, Foreground)
	defer thread.Release()
	rnd := rand.New(rand.NewPCG(3, 4))
	for i := range 6 {
		rows, in := []int{100, 100, 2 * projectRows}[i%3], 130
		x, w, got, want := normals(rnd, rows*in, 1), normals(rnd, out*in, 1), make([]float32, rows*out), make([]float32, rows*out)
		if err := thread.Project(context.Background(), got, x, w, nil, rows, in, out); err != nil {
			t.Fatal(err)
		}
		// One row at a time, each by a pool of its own.
		for r := 0; r < rows; r += 50 {
			if err := Project(context.Background(), 1, want[r*out:][:out], x[r*in:][:in], w, nil, 1, in, out); err != nil {
				t.Fatal(err)
			}
			for j := range out {
				if math.Float32bits(got[r*out+j]) != math.Float32bits(want[r*out+j]) {
					t.Fatalf("call %d: row %d, column %d: %g, not %g", i, r, j, got[r*out+j], want[r*out+j])
				}
			}
		}
	}
}
