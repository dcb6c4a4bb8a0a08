package attention

import (
	"context"
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"

	"pgregory.net/rapid"
)

// by runs the sample with a kernel.
func (e *sample) by(k *kernel, threads int) (Output, error) {
	out := e.room()
	return out, attend(context.Background(), k, partBytes, threads, e.kv, e.q, e.opts, out)
}

// upTo is the sample before any position from n on was appended.
func (e *sample) upTo(n int) *sample {
	part := *e
	part.kv.Len, part.kv.Pages = n, e.kv.Pages[:pagesOf(n)]
	part.q.Mask, part.q.Bias = shorter(e.q.Mask, e.kv.Len, n), shorter(e.q.Bias, e.kv.Len, n)
	return &part
}

func shorter[T any](rows []T, from, to int) (part []T) {
	for i := 0; i < len(rows); i += from {
		part = append(part, rows[i:][:to]...)
	}
	return part
}

// TestAnyCut: a prompt attended as a whole, in any chunks, or token by token has one answer. The chunks come in any
// order and at once, each with its own kernel and threads; causal ones see the cache as it was when they came.
func TestAnyCut(t *testing.T) {
	rapid.Check(t, func(r *rapid.T) {
		s := shape{
			headDim: rapid.IntRange(1, 70).Draw(r, "head_dim"), vDim: rapid.IntRange(1, 70).Draw(r, "v_dim"),
			tokens: rapid.IntRange(1, 80).Draw(r, "tokens"), heads: rapid.IntRange(1, 5).Draw(r, "heads"),
			len: rapid.OneOf(rapid.IntRange(0, 300), rapid.IntRange(2040, 2120)).Draw(r, "len"), spread: 2,
			firstHead: rapid.IntRange(0, 2).Draw(r, "first head"),
		}
		s = s.as(rapid.SampledFrom(storings).Draw(r, "storing"))
		if s.len > 2000 || raceDetector {
			s.tokens = min(s.tokens, 6)
		}
		s.offset = int64(rapid.IntRange(-10, s.len+10).Draw(r, "offset"))
		if rapid.Bool().Draw(r, "at the end") {
			s.offset = int64(s.len - s.tokens)
		}
		seed := rapid.Uint64().Draw(r, "seed")
		e := draw(r, seed, s)
		variants[rapid.IntRange(0, len(variants)-1).Draw(r, "variant")].apply(e, rand.New(rand.NewPCG(seed, 9)))
		e.opts.Causal = rapid.Bool().Draw(r, "causal")
		aKernel, threads := rapid.Custom(func(r *rapid.T) *kernel { return &kernels[rapid.IntRange(0, len(kernels)-1).Draw(r, "kernel")] }), rapid.IntRange(1, 3)

		whole, err := e.by(aKernel.Draw(r, "kernel"), threads.Draw(r, "threads"))
		if err != nil {
			r.Fatal(err)
		}
		type chunk struct {
			token, n, threads int
			kernel            *kernel
			e                 *sample
			out               Output
			err               error
		}
		var chunks []*chunk
		longest := rapid.SampledFrom([]int{1, 7, 80}).Draw(r, "longest chunk")
		for token := 0; token < s.tokens; {
			c := &chunk{token: token, n: rapid.IntRange(1, min(longest, s.tokens-token)).Draw(r, "chunk")}
			c.kernel, c.threads = aKernel.Draw(r, "chunk's kernel"), threads.Draw(r, "chunk's threads")
			c.e = e.alone(token, c.n, 0, s.heads)
			if e.opts.Causal {
				c.e = c.e.upTo(min(s.len, max(0, int(s.offset)+token+c.n)))
			}
			chunks, token = append(chunks, c), token+c.n
		}
		var wg sync.WaitGroup
		for _, c := range rapid.Permutation(chunks).Draw(r, "order") {
			wg.Go(func() { c.out, c.err = c.e.by(c.kernel, c.threads) })
		}
		wg.Wait()
		for _, c := range chunks {
			if c.err != nil {
				r.Fatal(c.err)
			}
			e.sameRows(r, fmt.Sprintf("chunk of %d by %s", c.n, c.kernel.name), whole, c.out, c.token, c.n, 0, s.heads)
		}
	})
}

// TestTruthOfAnyShape: each kernel is within 8 units of float64, in each storage type over the values as stored, and in the arithmetics
// that are not lossy.
func TestTruthOfAnyShape(t *testing.T) {
	skipIfRaced(t)
	most := map[storing]float64{}
	rapid.Check(t, func(r *rapid.T) {
		s := shape{
			headDim: rapid.IntRange(1, 256).Draw(r, "head_dim"), vDim: rapid.IntRange(1, 40).Draw(r, "v_dim"),
			tokens: rapid.IntRange(1, 4).Draw(r, "tokens"), heads: rapid.IntRange(1, 3).Draw(r, "heads"),
			len: rapid.IntRange(1, 300).Draw(r, "len"), spread: rapid.SampledFrom([]float64{0.01, 0.1, 1, 3, 10, 30}).Draw(r, "spread"),
			offset: rapid.Int64Range(0, 300).Draw(r, "offset"),
		}
		st := rapid.SampledFrom(exactStorings).Draw(r, "storing")
		s = s.as(st)
		seed := rapid.Uint64().Draw(r, "seed")
		e := draw(r, seed, s)
		variants[rapid.IntRange(0, len(variants)-1).Draw(r, "variant")].apply(e, rand.New(rand.NewPCG(seed, 9)))
		out, err := e.by(&kernels[rapid.IntRange(0, len(kernels)-1).Draw(r, "kernel")], 1)
		if err != nil {
			r.Fatal(err)
		}
		most[st] = max(most[st], e.near(r, out))
	})
	for _, st := range exactStorings {
		t.Logf("%s: largest error %.3f units", st, most[st])
	}
}
