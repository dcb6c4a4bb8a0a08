// Command learn measures gradients and prints one line "figure NAME VALUE" for each figure:
//
//	backward        useful flops a second, of the 5 products, / the FMA peak of one core: 2,048 tokens, causal, one thread,
//	                by the processor time that it takes, so that other programs on the machine count for little
//	backward_2core  how much faster two threads are / how much more two cores can multiply and add than one at once
//	backward_torch  time of PyTorch's scaled_dot_product_attention, forward and backward, / ours, by the clock, two threads each;
//	                only where -python names one that has torch
//	grad_units      largest error of gradients over the attention fixture and drawn problems, in the units of docs/numerics.md
//	grad_memory     a worker's peak of anonymous resident bytes / bytes of q, k, v, context and their gradients: 8,192 tokens
//
// All but grad_units are of 32 heads on 8 groups, head_dim 128, f32, causal. Speeds are medians over interleaved rounds, each
// held against the limits of its own round. The samples are written as JSON.
package main

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"os/signal"
	"path/filepath"
	"regexp"
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"headwater.example/attention"
	"headwater.example/internal/figures/limits"
	"headwater.example/tensor"
)

const (
	heads   = 32
	groups  = 8
	headDim = 128

	// spend is how long a limit is measured.
	spend = 50 * time.Millisecond
)

// record is what is kept of a run.
type record struct {
	Taken  time.Time   `json:"taken"`
	Kernel string      `json:"kernel"`
	Rounds []round     `json:"rounds,omitempty"`
	Units  []units     `json:"units,omitempty"`
	Memory *memoryUsed `json:"memory,omitempty"`
	Torch  []pair      `json:"torch,omitempty"`
}

// round is the seconds of a pass on one and on two threads, and the FMA peak of one core and of two at once. CPU1 is the
// processor time of a pass on one thread.
type round struct {
	Peak1    float64 `json:"fma_1"`
	Peak2    float64 `json:"fma_2"`
	Seconds1 float64 `json:"seconds_1"`
	CPU1     float64 `json:"processor_seconds_1"`
	Seconds2 float64 `json:"seconds_2"`
}

func main() {
	bin := flag.String("bin", "bin", "folder of the binaries")
	python := flag.String("python", "", "Python with torch, for backward_torch; none leaves it out")
	script := flag.String("script", "clients/python/bench/backward.py", "what it runs")
	fixtures := flag.String("fixtures", "test/data/smollm2", "folder of the fixtures")
	samples := flag.String("samples", "figures/learn.json", "file for the raw samples")
	rounds := flag.Int("rounds", 7, "how often speeds are measured")
	tokens := flag.Int("tokens", 8192, "tokens of grad_memory")
	only := flag.String("run", "", "measure the figures that match the expression")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	which, err := regexp.Compile(*only)
	if err == nil {
		err = measure(ctx, which, *bin, *fixtures, *samples, *rounds, *tokens, torchWith{*python, *script})
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "figures:", err)
		os.Exit(1)
	}
}

func measure(ctx context.Context, which *regexp.Regexp, bin, fixtures, samples string, rounds, tokens int, torch torchWith) (err error) {
	r := &record{Taken: time.Now(), Kernel: attention.KernelName()}
	if which.MatchString("grad_units") {
		if r.Units, err = errorsInUnits(ctx, fixtures); err != nil {
			return err
		}
		worst := slices.MaxFunc(r.Units, func(a, b units) int { return cmp.Compare(a.Units, b.Units) })
		fmt.Printf("figure grad_units %.3f\n", worst.Units)
	}
	if which.MatchString("backward") || which.MatchString("backward_2core") {
		if r.Rounds, err = speeds(ctx, rounds); err != nil {
			return err
		}
		flops := usefulFlops(speedTokens)
		fmt.Printf("figure backward %.3f\n", medianOf(r.Rounds, func(r round) float64 { return flops / r.CPU1 / r.Peak1 }))
		fmt.Printf("figure backward_2core %.3f\n", medianOf(r.Rounds, func(r round) float64 { return r.Seconds1 / r.Seconds2 / (r.Peak2 / r.Peak1) }))
	}
	if torch.python != "" && which.MatchString("backward_torch") {
		if r.Torch, err = againstTorch(ctx, torch, rounds); err != nil {
			return err
		}
		fmt.Printf("figure backward_torch %.3f\n", medianOf(r.Torch, func(p pair) float64 { return p.Torch / p.Ours }))
	}
	if which.MatchString("grad_memory") {
		if r.Memory, err = memory(ctx, bin, tokens); err != nil {
			return err
		}
		fmt.Printf("figure grad_memory %.3f\n", float64(r.Memory.Peak)/float64(r.Memory.Tensors))
	}
	if err := os.MkdirAll(filepath.Dir(samples), 0o755); err != nil {
		return err
	}
	text, err := json.Marshal(r)
	if err != nil {
		return err
	}
	return os.WriteFile(samples, text, 0o644)
}

func medianOf[T any](all []T, of func(T) float64) float64 {
	var x []float64
	for _, r := range all {
		x = append(x, of(r))
	}
	slices.Sort(x)
	return (x[(len(x)-1)/2] + x[len(x)/2]) / 2
}

// speedTokens is the length of the sequence whose gradients are timed.
const speedTokens = 2048

// usefulFlops are those of the products of positions that a causal query sees: q·k, d_context·v, and those that make d_q,
// d_k and d_v.
func usefulFlops(tokens int) float64 {
	pairs := float64(tokens) * float64(tokens+1) / 2
	return 5 * 2 * pairs * headDim * heads
}

// speeds times the gradients of all groups of a layer.
func speeds(ctx context.Context, rounds int) ([]round, error) {
	isas := limits.ISAs()
	if len(isas) == 0 {
		return nil, errors.New("no loops that find the limits of this processor")
	}
	items, err := layer(ctx, speedTokens)
	if err != nil {
		return nil, err
	}
	pass := func(threads int) (float64, error) {
		p := attention.NewPool(threads)
		defer p.Close()
		t, err := p.Acquire(ctx, attention.Foreground)
		if err != nil {
			return 0, err
		}
		defer t.Release()
		began := time.Now()
		err = t.Differentiate(ctx, items)
		return time.Since(began).Seconds(), err
	}
	all := make([]round, rounds)
	for i := range all {
		r := &all[i]
		for range 2 { // before and after, half of each
			one, two, err := peaks(isas[0])
			if err != nil {
				return nil, err
			}
			r.Peak1, r.Peak2 = r.Peak1+one/2, r.Peak2+two/2
			if r.Seconds1 == 0 {
				before := processorTime()
				if r.Seconds1, err = pass(1); err != nil {
					return nil, err
				}
				r.CPU1 = processorTime() - before
				if r.Seconds2, err = pass(2); err != nil {
					return nil, err
				}
			}
		}
	}
	return all, nil
}

// processorTime is how many seconds of processors this process has used.
func processorTime() float64 {
	var u unix.Rusage
	_ = unix.Getrusage(unix.RUSAGE_SELF, &u) // fails for no valid argument
	return time.Duration(u.Utime.Nano() + u.Stime.Nano()).Seconds()
}

// peaks returns the flops a second of one core, and of two at once.
func peaks(isa limits.ISA) (one, two float64, err error) {
	if one, err = limits.FMA(isa, spend); err != nil {
		return 0, 0, err
	}
	var both [2]float64
	var errs [2]error
	var wait sync.WaitGroup
	for i := range both {
		wait.Go(func() { both[i], errs[i] = limits.FMA(isa, spend) })
	}
	wait.Wait()
	return one, both[0] + both[1], errors.Join(errs[:]...)
}

// layer draws a causal layer of so many tokens, and attends.
func layer(ctx context.Context, tokens int) ([]attention.Differentiation, error) {
	rnd := rand.New(rand.NewPCG(1, 2))
	items := make([]attention.Differentiation, groups)
	for g := range items {
		size := heads / groups
		opts := attention.DefaultOptions(headDim)
		opts.Causal = true
		x := drawn{
			q: normals(rnd, tokens*size*headDim), k: normals(rnd, tokens*headDim), v: normals(rnd, tokens*headDim),
			dContext: normals(rnd, tokens*size*headDim), tokens: tokens, positions: tokens, heads: size, headDim: headDim, vDim: headDim, options: opts,
		}
		var err error
		if items[g], err = x.item(ctx, g*size); err != nil {
			return nil, err
		}
	}
	return items, nil
}

// drawn is a problem of one group.
type drawn struct {
	q, k, v, dContext        []float32
	tokens, positions, heads int
	headDim, vDim            int
	offset                   int64
	options                  attention.Options
}

// item puts the keys and values into pages, attends, and makes room for the gradients.
func (d drawn) item(ctx context.Context, firstHead int) (attention.Differentiation, error) {
	none := attention.Differentiation{}
	l, err := attention.NewLayout(tensor.F32, d.headDim, d.vDim)
	if err != nil {
		return none, err
	}
	kv := attention.KV{Layout: l, Len: d.positions}
	for at := 0; at < d.positions; at += attention.PageLen {
		n := min(attention.PageLen, d.positions-at)
		page := make([]byte, l.PageBytes())
		rows := attention.Rows{K: littleEndian(d.k[at*d.headDim:][:n*d.headDim]), V: littleEndian(d.v[at*d.vDim:][:n*d.vDim])}
		if err := l.Write(page, 0, n, rows); err != nil {
			return none, err
		}
		kv.Pages = append(kv.Pages, page)
	}
	rows := d.tokens * d.heads
	item := attention.Differentiation{
		KV: kv, Options: d.options, DContext: d.dContext,
		Query:     attention.Query{Q: d.q, Tokens: d.tokens, Heads: d.heads, FirstHead: firstHead, Offset: d.offset},
		Output:    attention.Output{Context: make([]float32, rows*d.vDim), LSE: make([]float32, rows)},
		Gradients: attention.Gradients{Q: make([]float32, len(d.q)), K: make([]float32, len(d.k)), V: make([]float32, len(d.v))},
	}
	if len(d.options.Sinks) > 0 {
		item.Gradients.Sinks = make([]float32, d.heads)
	}
	return item, attention.Attend(ctx, 1, kv, item.Query, d.options, item.Output)
}

func normals(rnd *rand.Rand, n int) []float32 {
	x := make([]float32, n)
	for i := range x {
		x[i] = float32(rnd.NormFloat64())
	}
	return x
}
