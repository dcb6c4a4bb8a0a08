package attention

import (
	"context"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"headwater.example/tensor"
)

var (
	storages = []tensor.DType{tensor.F32, tensor.F16, tensor.BF16, tensor.I8}
	spreads  = []float64{0.1, 1, 3, 10}
	// storings are all there are; those of exactStorings are as exact as Chain is.
	storings = []storing{
		{dt: tensor.F32}, {dt: tensor.F16}, {dt: tensor.BF16}, {dt: tensor.I8}, {tensor.BF16, Tiles}, {tensor.BF16, TilesBF16},
	}
	exactStorings = storings[:5]
)

// variant changes the options of a sample, of any shape.
type variant struct {
	name  string
	apply func(e *sample, rnd *rand.Rand)
}

// variants are the options, each alone and several together.
var variants = []variant{
	{"plain", func(*sample, *rand.Rand) {}},
	{"causal", func(e *sample, _ *rand.Rand) { e.opts.Causal = true }},
	{"window", func(e *sample, _ *rand.Rand) { e.opts.WindowLeft, e.opts.WindowRight = 70, 3 }},
	{"own position", func(e *sample, _ *rand.Rand) { e.opts.WindowLeft, e.opts.WindowRight = 0, 0 }},
	{"causal window", func(e *sample, _ *rand.Rand) { e.opts.Causal, e.opts.WindowLeft = true, 1 }},
	{"right window", func(e *sample, _ *rand.Rand) { e.opts.WindowRight = 0 }},
	{"scale", func(e *sample, _ *rand.Rand) { e.opts.Scale *= -0.7 }},
	{"softcap", func(e *sample, _ *rand.Rand) { e.opts.Softcap = 5 }},
	{"alibi", func(e *sample, _ *rand.Rand) { slopes(e) }},
	{"sinks", func(e *sample, rnd *rand.Rand) { e.opts.Sinks = normals(rnd, e.q.FirstHead+e.q.Heads, 3) }},
	{"mask", func(e *sample, rnd *rand.Rand) { mask(e, 1, rnd) }},
	{"mask per head", func(e *sample, rnd *rand.Rand) { mask(e, e.q.Heads, rnd) }},
	{"mask of whole pages", func(e *sample, rnd *rand.Rand) { holes(e, rnd) }},
	{"bias", func(e *sample, rnd *rand.Rand) { bias(e, 1, rnd) }},
	{"bias per head", func(e *sample, rnd *rand.Rand) { bias(e, e.q.Heads, rnd) }},
	{"all", func(e *sample, rnd *rand.Rand) {
		e.opts.Causal, e.opts.WindowLeft, e.opts.Softcap = true, 3000, 20
		slopes(e)
		e.opts.Sinks = normals(rnd, e.q.FirstHead+e.q.Heads, 3)
		mask(e, 1, rnd)
		bias(e, e.q.Heads, rnd)
	}},
}

func slopes(e *sample) {
	e.opts.AlibiSlopes = nil
	for h := range e.q.FirstHead + e.q.Heads {
		e.opts.AlibiSlopes = append(e.opts.AlibiSlopes, float32(math.Pow(2, -8*float64(h+1)/float64(e.q.FirstHead+e.q.Heads))))
	}
}

func mask(e *sample, heads int, rnd *rand.Rand) {
	e.q.MaskHeads, e.q.Mask = heads, make([]byte, heads*e.q.Tokens*e.kv.Len)
	for i := range e.q.Mask {
		e.q.Mask[i] = byte(rnd.IntN(3)) // 0, 1 and 2
	}
}

// holes hides whole pages of some rows, and some rows entirely.
func holes(e *sample, rnd *rand.Rand) {
	mask(e, e.q.Heads, rnd)
	for row := range e.q.Heads * e.q.Tokens {
		shown := rnd.IntN(4)
		for t := range e.kv.Len {
			if (t/PageLen+row)%4 >= shown {
				e.q.Mask[row*e.kv.Len+t] = 0
			}
		}
	}
}

func bias(e *sample, heads int, rnd *rand.Rand) {
	e.q.BiasHeads, e.q.Bias = heads, normals(rnd, heads*e.q.Tokens*e.kv.Len, 1)
	for i := range e.q.Bias {
		if rnd.IntN(5) == 0 {
			e.q.Bias[i] = negInf
		}
	}
}

// drawn is a case that tests draw: the shape, the options, and the seed of its numbers.
type drawn struct {
	shape
	variant
	seed uint64
}

// eachOption checks every option, storage type and spread of scores, and group sizes 1 to 9 in turn. change may change the shape;
// check returns the error, of which the largest is logged.
func eachOption(t *testing.T, stored []storing, change func(c *drawn), check func(t *testing.T, c drawn) float64) {
	skipIfRaced(t)
	most, seed := 0.0, uint64(0)
	for _, st := range stored {
		for _, spread := range spreads {
			for _, v := range variants {
				seed++
				c := drawn{shape{
					dt: st.dt, arithmetic: st.arithmetic, headDim: 64, vDim: 24, tokens: 3, heads: int(1 + seed%9), len: 150, spread: spread,
					offset: 147, firstHead: int(seed % 3),
				}, v, seed}
				change(&c)
				t.Run(fmt.Sprint(v.name, " ", c.shape), func(t *testing.T) { most = max(most, check(t, c)) })
			}
		}
	}
	t.Logf("largest error: %.3f units", most)
}

// eachShape checks head sizes, and lengths around the borders of pages, blocks and splits, with options and spreads in turn. change
// may change the shape, and says whether the case is checked.
func eachShape(t *testing.T, stored []storing, change func(c *drawn) bool, check func(t *testing.T, c drawn) float64) {
	skipIfRaced(t)
	most, seed := 0.0, uint64(100)
	for _, dims := range [][2]int{{1, 1}, {3, 5}, {64, 64}, {80, 80}, {128, 128}, {257, 257}, {512, 512}, {1, 512}, {192, 128}, {512, 1}} {
		for _, n := range []int{1, 2, 63, 64, 65, 127, 128, 129, 2047, 2048, 2049, 4097} {
			if n > 2049 && dims[0] > 128 {
				continue
			}
			for _, st := range stored {
				seed++
				c := drawn{shape{
					dt: st.dt, arithmetic: st.arithmetic, headDim: dims[0], vDim: dims[1], tokens: int(1 + seed%2), heads: int(1 + seed%3), len: n,
					spread: spreads[seed/3%4], offset: int64(n) - 1,
				}, variants[seed/2%uint64(len(variants))], seed}
				if n > 1000 {
					c.tokens, c.heads = 1, 1+int(seed%2)
				}
				if change(&c) {
					t.Run(fmt.Sprint(c.name, " ", c.shape), func(t *testing.T) { most = max(most, check(t, c)) })
				}
			}
		}
	}
	t.Logf("largest error: %.3f units", most)
}

// attended attends over a case, and returns its error.
func attended(t *testing.T, c drawn) float64 {
	e := draw(t, c.seed, c.shape)
	c.apply(e, rand.New(rand.NewPCG(c.seed, 8)))
	return e.near(t, e.attend(t, 2))
}

func TestAttendOptions(t *testing.T) { eachOption(t, exactStorings, func(*drawn) {}, attended) }

func TestAttendShapes(t *testing.T) {
	eachShape(t, exactStorings, func(*drawn) bool { return true }, attended)
}

// TestAttendIsOneFunction: the same bits for any threads, chunks of tokens and heads, and those of the contract.
func TestAttendIsOneFunction(t *testing.T) {
	for i, v := range variants {
		for j, s := range []shape{
			{headDim: 16, vDim: 20, tokens: 7, heads: 3, len: 131, spread: 2, offset: 124, firstHead: 2},
			{headDim: 5, vDim: 3, tokens: 90, heads: 2, len: 90, spread: 1},
			{headDim: 4, vDim: 17, tokens: 2, heads: 4, len: 6200, spread: 3, offset: 5000, firstHead: 1},
			{headDim: 2, vDim: 2, tokens: 70, heads: 1, len: 4100, spread: 1, offset: 4000},
			{headDim: 3, vDim: 2, tokens: 5, heads: 1, len: 2048, spread: 10, offset: 2046},
			{headDim: 3, vDim: 2, tokens: 5, heads: 1, len: 60, spread: 1, offset: -2},
		} {
			s = s.as(storings[(i+j)%len(storings)])
			if raceDetector && (i+j)%3 != 0 {
				continue
			}
			t.Run(fmt.Sprint(v.name, " ", s), func(t *testing.T) {
				rnd := rand.New(rand.NewPCG(uint64(i), uint64(j)))
				e := draw(t, uint64(1000+10*i+j), s)
				v.apply(e, rnd)
				whole := e.attend(t, 1)
				for _, threads := range []int{2, 3, 16} {
					e.sameRows(t, fmt.Sprint(threads, " threads"), whole, e.attend(t, threads), 0, s.tokens, 0, s.heads)
				}
				out := e.room()
				if err := attend(context.Background(), &portable, 1, 4, e.kv, e.q, e.opts, out); err != nil {
					t.Fatal(err)
				}
				e.sameRows(t, "little room for parts", whole, out, 0, s.tokens, 0, s.heads)
				for token := 0; token < s.tokens; {
					n := 1 + rnd.IntN(min(s.tokens-token, 40))
					e.sameRows(t, "chunk", whole, e.alone(token, n, 0, s.heads).attend(t, 2), token, n, 0, s.heads)
					token += n
				}
				for head := range s.heads {
					e.sameRows(t, "head", whole, e.alone(0, s.tokens, head, 1).attend(t, 1), 0, s.tokens, head, 1)
				}
				k, vs, ks, vss := unpaged(t, e)
				for range 6 {
					token, head := rnd.IntN(s.tokens), rnd.IntN(s.heads)
					context, lse := naive(e, k, vs, ks, vss, token, head)
					e.sameRows(t, "contract", whole, Output{Context: context, LSE: []float32{lse}}, token, 1, head, 1)
				}
			})
		}
	}
}

// unpaged returns the sample's keys and values, widened and by position, as naive takes them.
func unpaged(t rapid.TB, e *sample) (k, v, kScale, vScale []float32) {
	t.Helper()
	l, n := e.kv.Layout, e.kv.Len
	k, v = make([]float32, n*l.headDim), make([]float32, n*l.vDim)
	if l.scaled() {
		kScale, vScale = make([]float32, n), make([]float32, n)
	}
	for p, page := range e.kv.Pages {
		at, m := p*PageLen, min(n-p*PageLen, PageLen)
		rows := Rows{K: make([]byte, m*l.KRowBytes()), V: make([]byte, m*l.VRowBytes())}
		if l.scaled() {
			rows.KScale, rows.VScale = kScale[at:][:m], vScale[at:][:m]
		}
		if err := l.Read(page, 0, m, rows); err != nil {
			t.Fatal(err)
		}
		if err := tensor.Widen(k[at*l.headDim:][:m*l.headDim], rows.K, l.dt); err != nil {
			t.Fatal(err)
		}
		if err := tensor.Widen(v[at*l.vDim:][:m*l.vDim], rows.V, l.dt); err != nil {
			t.Fatal(err)
		}
	}
	return k, v, kScale, vScale
}

// TestAttendAnyShape draws shapes and options at random and holds them against the contract.
func TestAttendAnyShape(t *testing.T) {
	rapid.Check(t, func(r *rapid.T) {
		s := shape{
			headDim: rapid.IntRange(1, 40).Draw(r, "head_dim"), vDim: rapid.IntRange(1, 40).Draw(r, "v_dim"),
			tokens: rapid.IntRange(1, 6).Draw(r, "tokens"), heads: rapid.IntRange(1, 4).Draw(r, "heads"),
			len: rapid.IntRange(0, 200).Draw(r, "len"), spread: rapid.SampledFrom(spreads).Draw(r, "spread"),
			offset: rapid.Int64Range(-10, 210).Draw(r, "offset"), firstHead: rapid.IntRange(0, 2).Draw(r, "first head"),
		}
		s = s.as(rapid.SampledFrom(storings).Draw(r, "storing"))
		seed := rapid.Uint64().Draw(r, "seed")
		e := draw(r, seed, s)
		rnd := rand.New(rand.NewPCG(seed, 9))
		for range 2 {
			variants[rapid.IntRange(0, len(variants)-1).Draw(r, "variant")].apply(e, rnd)
		}
		out := e.attend(r, rapid.IntRange(1, 4).Draw(r, "threads"))
		token, head := rnd.IntN(s.tokens), rnd.IntN(s.heads)
		k, v, ks, vs := unpaged(r, e)
		context, lse := naive(e, k, v, ks, vs, token, head)
		e.sameRows(r, s.String(), out, Output{Context: context, LSE: []float32{lse}}, token, 1, head, 1)
	})
}

func wantZeros(t *testing.T, out Output, lse float32) {
	t.Helper()
	for i, x := range out.Context {
		if math.Float32bits(x) != 0 {
			t.Fatalf("context[%d] = %x, want +0", i, x)
		}
	}
	for i, x := range out.LSE {
		if !sameBits(x, lse) {
			t.Fatalf("LSE[%d] = %g, want %g", i, x, lse)
		}
	}
}

// TestMaskFrom compares a mask of the newest positions with one of all positions that shows the others.
func TestMaskFrom(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		s := shape{
			dt: rapid.SampledFrom(storages).Draw(t, "storage"), headDim: 5, vDim: 3, tokens: rapid.IntRange(1, 5).Draw(t, "tokens"),
			heads: rapid.IntRange(1, 3).Draw(t, "heads"), len: rapid.IntRange(0, 300).Draw(t, "len"), spread: 1,
		}
		s.offset = int64(s.len - s.tokens)
		e := draw(t, rapid.Uint64().Draw(t, "seed"), s)
		variants[rapid.IntRange(0, len(variants)-1).Draw(t, "variant")].apply(e, rand.New(rand.NewPCG(1, 2)))
		mask(e, rapid.SampledFrom([]int{1, s.heads}).Draw(t, "mask heads"), rand.New(rand.NewPCG(3, 4)))
		from := rapid.IntRange(0, s.len).Draw(t, "from")
		var newest []byte
		for i := range e.q.MaskHeads * s.tokens {
			row := e.q.Mask[i*s.len:][:s.len]
			for j := range row[:from] {
				row[j] = 1
			}
			newest = append(newest, row[from:]...)
		}
		for i := range kernels {
			run := func() (Output, error) {
				out := e.room()
				return out, attend(context.Background(), &kernels[i], partBytes, 2, e.kv, e.q, e.opts, out)
			}
			e.q.MaskFrom = 0
			all := e.q.Mask
			want, wantErr := run()
			e.q.Mask, e.q.MaskFrom = newest, from
			got, err := run()
			if fmt.Sprint(err) != fmt.Sprint(wantErr) {
				t.Fatalf("%s: %v, want %v", kernels[i].name, err, wantErr)
			}
			if err == nil {
				e.sameRows(t, kernels[i].name, want, got, 0, s.tokens, 0, s.heads)
			}
			e.q.Mask = all
		}
	})
}

func TestNothingVisible(t *testing.T) {
	s := shape{dt: tensor.I8, headDim: 8, vDim: 6, tokens: 3, heads: 2, len: 100, spread: 1, offset: 50}
	for name, hide := range map[string]func(e *sample){
		"mask": func(e *sample) { e.q.MaskHeads, e.q.Mask = 1, make([]byte, 300) },
		"bias": func(e *sample) {
			e.q.BiasHeads, e.q.Bias = 2, make([]float32, 600)
			for i := range e.q.Bias {
				e.q.Bias[i] = negInf
			}
		},
		"causal, before the first position": func(e *sample) { e.opts.Causal, e.q.Offset = true, -3 },
		"window, beyond the last position":  func(e *sample) { e.opts.WindowLeft, e.q.Offset = 5, 105 },
		"far away": func(e *sample) {
			e.opts.WindowLeft, e.opts.WindowRight, e.q.Offset = 1<<61, 1<<61, -maxOffset
			e.opts.Causal = true
		},
		"no positions": func(e *sample) { e.kv.Len, e.kv.Pages = 0, nil },
	} {
		t.Run(name, func(t *testing.T) {
			e := draw(t, 1, s)
			hide(e)
			wantZeros(t, e.attend(t, 2), negInf)
			e.opts.Sinks = []float32{-2.5, -2.5}
			wantZeros(t, e.attend(t, 2), -2.5)
		})
	}
}

// TestBiasHidesInfinity: a hidden position takes part in nothing, whatever its score is.
func TestBiasHidesInfinity(t *testing.T) {
	e := draw(t, 2, shape{dt: tensor.F32, headDim: 2, vDim: 3, tokens: 1, heads: 1, len: 3, spread: 1})
	e.q.Q = []float32{math.MaxFloat32, math.MaxFloat32}
	k := []float32{2, 2, 0, 0, 0, 0}
	b, _, _ := store(t, k, 2, tensor.F32)
	v, _, _ := store(t, []float32{1, 2, 3, 4, 5, 6, 6, 7, 8}, 3, tensor.F32)
	e.kv.Pages = paged(t, e.kv.Layout, 3, Rows{K: b, V: v})
	e.q.BiasHeads, e.q.Bias = 1, []float32{negInf, 0, 0}
	out := e.attend(t, 1)
	for i, want := range []float32{5, 6, 7} {
		if out.Context[i] != want {
			t.Errorf("context[%d] = %g, want %g", i, out.Context[i], want)
		}
	}
	e.q.BiasHeads, e.q.Bias = 0, nil
	var row *RowError
	if err := Attend(context.Background(), 1, e.kv, e.q, e.opts, e.room()); !errors.As(err, &row) {
		t.Fatalf("a score of +Inf: %v", err)
	}
}

func TestRowErrors(t *testing.T) {
	s := shape{dt: tensor.F32, headDim: 4, vDim: 4, tokens: 70, heads: 2, len: 70, spread: 1, firstHead: 4}
	for name, c := range map[string]struct {
		spoil       func(e *sample)
		head, token int
		rule        string
	}{
		"score": {func(e *sample) {
			for i := range 4 {
				e.q.Q[(66*2+1)*4+i], e.q.Q[(68*2)*4+i] = 3e38, 3e38
			}
			e.opts.Scale = 100
		}, 5, 66, "a score overflows to +Inf"},
		"bias +Inf": {func(e *sample) {
			e.q.BiasHeads, e.q.Bias = 1, make([]float32, 70*70)
			e.q.Bias[3*70+69] = float32(math.Inf(1))
		}, 4, 3, "a score overflows to +Inf"},
		"NaN": {func(e *sample) { e.q.Q[(2*2+1)*4] = float32(math.NaN()) }, 5, 2, "a score is not a number"},
		"context": {func(e *sample) {
			v := make([]float32, 70*4)
			for i := range v {
				v[i] = math.MaxFloat32
			}
			k, _, _ := store(t, make([]float32, 70*4), 4, tensor.F32)
			b, _, _ := store(t, v, 4, tensor.F32)
			e.kv.Pages = paged(t, e.kv.Layout, 70, Rows{K: k, V: b})
			e.opts.Causal = true
		}, 4, 1, "the context is not finite"},
		"ALiBi": {func(e *sample) { slopes(e); e.q.Offset = 1<<24 - 10 }, 4, 10, "ALiBi over a distance of 16777216 positions, 16777216 or more"},
	} {
		t.Run(name, func(t *testing.T) {
			for threads := 1; threads < 4; threads++ {
				e := draw(t, 3, s)
				c.spoil(e)
				err := Attend(context.Background(), threads, e.kv, e.q, e.opts, e.room())
				var row *RowError
				if !errors.As(err, &row) || row.Head != c.head || row.Token != c.token || row.Rule != c.rule {
					t.Fatalf("%v, want head %d, token %d: %s", err, c.head, c.token, c.rule)
				}
			}
		})
	}
	e := draw(t, 3, s)
	slopes(e)
	e.q.Offset = 1<<24 - 70
	e.attend(t, 1)
	e.q.Offset = 1 << 24
	e.opts.WindowLeft = 100 // nothing so far away is seen
	e.attend(t, 1)
}

func TestAttendRefuses(t *testing.T) {
	nan := float32(math.NaN())
	for want, spoil := range map[string]func(e *sample, out *Output){
		"q has":              func(e *sample, _ *Output) { e.q.Q = e.q.Q[1:] },
		"0 tokens":           func(e *sample, _ *Output) { e.q.Tokens, e.q.Q = 0, nil },
		"room for":           func(_ *sample, out *Output) { out.LSE = out.LSE[1:] },
		"pages for":          func(e *sample, _ *Output) { e.kv.Pages = e.kv.Pages[:1] },
		"page 1 has":         func(e *sample, _ *Output) { e.kv.Pages[1] = e.kv.Pages[1][:10] },
		"layout was not":     func(e *sample, _ *Output) { e.kv.Layout = Layout{} },
		"mask has 3 heads":   func(e *sample, _ *Output) { e.q.MaskHeads = 3 },
		"mask has 5":         func(e *sample, _ *Output) { e.q.Mask, e.q.MaskHeads = make([]byte, 5), 1 },
		"from position 301":  func(e *sample, _ *Output) { e.q.MaskFrom = 301 },
		"from position -1":   func(e *sample, _ *Output) { e.q.MaskFrom = -1 },
		"× 10 positions":     func(e *sample, _ *Output) { e.q.Mask, e.q.MaskHeads, e.q.MaskFrom = make([]byte, 5), 1, e.kv.Len-10 },
		"bias has 5":         func(e *sample, _ *Output) { e.q.Bias = make([]float32, 5) },
		"offset":             func(e *sample, _ *Output) { e.q.Offset = math.MaxInt64 },
		"scale is NaN":       func(e *sample, _ *Output) { e.opts.Scale = nan },
		"softcap is -1":      func(e *sample, _ *Output) { e.opts.Softcap = -1 },
		"sinks has 1":        func(e *sample, _ *Output) { e.opts.Sinks = []float32{1} },
		"sinks[1] is -Inf":   func(e *sample, _ *Output) { e.opts.Sinks = []float32{1, negInf} },
		"alibi_slopes has 1": func(e *sample, _ *Output) { e.opts.AlibiSlopes = []float32{1} },
	} {
		e := draw(t, 4, shape{dt: tensor.F32, headDim: 4, vDim: 4, tokens: 2, heads: 2, len: 70, spread: 1})
		out := e.room()
		spoil(e, &out)
		if err := Attend(context.Background(), 1, e.kv, e.q, e.opts, out); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v, want one with %q", err, want)
		}
	}
	if err := (Options{Sinks: make([]float32, 3)}).Validate(4); err == nil {
		t.Error("3 sinks for 4 heads pass")
	}
}

// counted is a context that ends when it has been asked n times.
type counted struct {
	context.Context
	left *int
}

func (c counted) Err() error {
	if *c.left--; *c.left < 0 {
		return context.Canceled
	}
	return nil
}

func TestAttendEnds(t *testing.T) {
	e := draw(t, 5, shape{dt: tensor.F32, headDim: 4, vDim: 4, tokens: 1, heads: 2, len: 5000, spread: 1})
	n := 20
	if err := Attend(counted{context.Background(), &n}, 1, e.kv, e.q, e.opts, e.room()); !errors.Is(err, context.Canceled) {
		t.Fatalf("%v, want %v", err, context.Canceled)
	}
	if n != -1 {
		t.Errorf("the context was asked %d times after its end", -1-n)
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	for _, threads := range []int{1, 4} {
		if err := Attend(ctx, threads, e.kv, e.q, e.opts, e.room()); !errors.Is(err, context.Canceled) {
			t.Fatalf("%v, want %v", err, context.Canceled)
		}
	}
}

func BenchmarkAttend(b *testing.B) {
	for _, dt := range storages {
		for _, tokens := range []int{1, 64} {
			s := shape{dt: dt, headDim: 128, vDim: 128, tokens: tokens, heads: 4, len: 2048, spread: 1, offset: 2048 - int64(tokens)}
			b.Run(fmt.Sprint(s), func(b *testing.B) {
				e := draw(b, 6, s)
				out := e.room()
				for b.Loop() {
					if err := Attend(context.Background(), 1, e.kv, e.q, e.opts, out); err != nil {
						b.Fatal(err)
					}
				}
				b.ReportMetric(float64(b.N)*float64(2*128*tokens*4*2048)/float64(b.Elapsed().Nanoseconds()), "fma/ns")
			})
		}
	}
}

// BenchmarkOptions shows what each option costs beside none.
func BenchmarkOptions(b *testing.B) {
	for _, v := range variants {
		b.Run(v.name, func(b *testing.B) {
			e := draw(b, 6, shape{dt: tensor.F16, headDim: 128, vDim: 128, tokens: 64, heads: 4, len: 2048, spread: 1, offset: 2048})
			v.apply(e, rand.New(rand.NewPCG(1, 1)))
			out := e.room()
			p := NewPool(1)
			defer p.Close()
			thread := acquire(b, p, Foreground)
			defer thread.Release()
			for b.Loop() {
				if err := thread.Attend(context.Background(), e.kv, e.q, e.opts, out); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
