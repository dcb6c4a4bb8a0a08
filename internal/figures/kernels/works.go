package main

import (
	"context"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"

	"golang.org/x/sync/errgroup"

	"headwater.example/attention"
	"headwater.example/internal/kvcache"
	"headwater.example/tensor"
)

// The geometry of every figure, unless it says another.
const (
	heads   = 32
	groups  = 8
	headDim = 128
)

// sizes are those of the figures, or smaller ones to try the program with.
type sizes struct {
	set       int64 // bytes that a decode reads, at least
	positions int   // of a sequence in it
	// prefill takes tokens on positions in all.
	prefillTokens, prefillPositions int
	projectRows, projectDim         int
	short                           int // positions
	warm                            int // positions of a sequence that is attended over and over
	// Appended tokens go to each of the sequences.
	sequences, appended int
}

var (
	fullSizes = sizes{
		positions: 16384, prefillTokens: 512, prefillPositions: 2048, projectRows: 512, projectDim: 4096,
		short: 128, warm: 2048, sequences: 1000, appended: attention.PageLen,
	}
	quickSizes = sizes{
		set: 1, positions: 70, prefillTokens: 3, prefillPositions: 66, projectRows: 2, projectDim: 65,
		short: 5, warm: 70, sequences: 2, appended: 3,
	}
)

// cache is the keys and values of sequences of one length, [sequence, group] shards whose pages lie one after the other.
type cache struct {
	arena  *kvcache.Arena
	shards []attention.KV
}

// rowsOf returns n positions of seeded random keys and values in (−1, 1), in the storage type of the layout.
func rowsOf(layout attention.Layout, n int, rng *rand.Rand) (attention.Rows, error) {
	rows := attention.Rows{K: make([]byte, n*layout.KRowBytes()), V: make([]byte, n*layout.VRowBytes())}
	for _, to := range []struct {
		bytes []byte
		dim   int
		scale *[]float32
	}{{rows.K, layout.HeadDim(), &rows.KScale}, {rows.V, layout.VDim(), &rows.VScale}} {
		x := random(n*to.dim, rng)
		if layout.DType() != tensor.I8 {
			if err := tensor.Narrow(to.bytes, x, layout.DType()); err != nil {
				return rows, err
			}
			continue
		}
		q := make([]int8, to.dim)
		for i := range n {
			*to.scale = append(*to.scale, tensor.QuantizeI8(q, x[i*to.dim:][:to.dim]))
			for j, y := range q {
				to.bytes[i*to.dim+j] = byte(y)
			}
		}
	}
	return rows, nil
}

func random(n int, rng *rand.Rand) []float32 {
	x := make([]float32, n)
	for i := range x {
		x[i] = rng.Float32()*2 - 1
	}
	return x
}

// newCache fills the shards of whole sequences that take at least size bytes. Pages are copies of a few different ones.
func newCache(layout attention.Layout, groups, positions int, size int64) (*cache, error) {
	const different = 16
	page, pages := layout.PageBytes(), (positions+attention.PageLen-1)/attention.PageLen
	sequence := int64(groups) * int64(pages) * int64(page)
	shards := groups * int(max((size+sequence-1)/sequence, 1))
	arena, err := kvcache.MapArena(int64(shards) * int64(pages) * int64(page))
	if err != nil {
		return nil, err
	}
	c := &cache{arena: arena}
	rng := rand.New(rand.NewPCG(1, 2))
	bytes := arena.Bytes()
	kept := make([][]byte, different)
	for i := range kept {
		rows, err := rowsOf(layout, attention.PageLen, rng)
		if err == nil {
			kept[i] = make([]byte, page)
			err = layout.Write(kept[i], 0, attention.PageLen, rows)
		}
		if err != nil {
			arena.Close()
			return nil, err
		}
	}
	for s := range shards {
		kv := attention.KV{Layout: layout, Len: positions}
		for p := range pages {
			at := (s*pages + p) * page
			kv.Pages = append(kv.Pages, bytes[at:at+page:at+page])
			copy(kv.Pages[p], kept[(s+p)%different])
		}
		c.shards = append(c.shards, kv)
	}
	return c, nil
}

func (c *cache) free() { c.arena.Close() }

// asked is what is asked of a cache: tokens at the end of each sequence attend, causally, on a pool as a worker has one.
type asked struct {
	name, test            string
	heads, groups, tokens int
	threads               int // of the pool
	callers               int // at once; each has its own sequences, or its own groups of each
	byGroup               bool
	halves                bool // queries are of numbers that bf16 has
	together, times       int  // sequences of one call, and calls for each of them in a pass; 0 is 1
	cached                bool
	value                 func(*work, *round) float64
	intended              string // the kernel that must run, if any
}

// items returns the calls of one caller, each of the groups of some sequences, in the order of the cache.
func (c *cache) items(a asked, caller int) (calls [][]attention.Item) {
	layout, positions := c.shards[0].Layout, c.shards[0].Len
	group := a.heads / a.groups
	rng := rand.New(rand.NewPCG(3, 4))
	opts := attention.DefaultOptions(layout.HeadDim())
	opts.Causal = true
	queries := make([][]float32, a.groups)
	for g := range queries {
		queries[g] = random(a.tokens*group*layout.HeadDim(), rng)
		for i, x := range queries[g] {
			if a.halves {
				queries[g][i] = math.Float32frombits(math.Float32bits(x) &^ 0xffff)
			}
		}
	}
	var call []attention.Item
	together := max(a.together, 1) * a.groups
	for s, kv := range c.shards {
		g := s % a.groups
		mine := s / a.groups
		if a.byGroup {
			mine = g
		}
		if mine%a.callers == caller {
			n := len(call) // outputs of one call do not overlap; calls may write over each other's
			out := attention.Output{Context: make([]float32, a.tokens*group*layout.VDim()), LSE: make([]float32, a.tokens*group)}
			if len(calls) > 0 && n < len(calls[0]) {
				out = calls[0][n].Output
			}
			q := attention.Query{Q: queries[g], Tokens: a.tokens, Heads: group, FirstHead: g * group, Offset: int64(positions - a.tokens)}
			call = append(call, attention.Item{KV: kv, Query: q, Options: opts, Output: out})
		}
		if (s+1)%together == 0 || s+1 == len(c.shards) {
			if len(call) > 0 {
				calls = append(calls, call)
			}
			call = nil
		}
	}
	return calls
}

// attend returns a work that asks that of the cache.
func (c *cache) attend(h *harness, a asked) work {
	layout, positions := c.shards[0].Layout, c.shards[0].Len
	group, times := a.heads/a.groups, max(a.times, 1)
	pool := h.pool(a.threads)
	all := make([][][]attention.Item, a.callers)
	for i := range all {
		all[i] = c.items(a, i)
	}
	some := func(ctx context.Context, caller int) error {
		thread, err := pool.Acquire(ctx, attention.Foreground)
		if err != nil {
			return err
		}
		defer thread.Release()
		for range times {
			for _, call := range all[caller] {
				if err := thread.AttendAll(ctx, call); err != nil {
					return err
				}
			}
		}
		return nil
	}
	logical := layout.KRowBytes() + layout.VRowBytes()
	if layout.DType() == tensor.I8 {
		logical += 2 * 4
	}
	n, tokens := float64(len(c.shards))*float64(times), float64(a.tokens)
	seen := tokens*float64(positions) - tokens*(tokens-1)/2 // (query, position) pairs of a head
	return work{
		row: row{
			Name: a.name, Test: a.test, DType: layout.DType().String(), Heads: a.heads, Groups: a.groups, HeadDim: layout.HeadDim(),
			Threads: a.threads, Intended: a.intended, Cached: a.cached,
			Bytes: n * float64(positions) * float64(logical),
			// A multiply and an add for each element of the score and of the value.
			Flops: n * float64(group) * seen * 2 * float64(layout.HeadDim()+layout.VDim()),
			Set:   int64(len(c.arena.Bytes())),
		},
		value: a.value,
		pass: func(ctx context.Context) error {
			// The first of them needs no other goroutine: to change to one takes longer than a short pass.
			others, ctx := errgroup.WithContext(ctx)
			for caller := 1; caller < a.callers; caller++ {
				others.Go(func() error { return some(ctx, caller) })
			}
			return errors.Join(some(ctx, 0), others.Wait())
		},
	}
}

// decodeTest and prefillTest name what is done.
func decodeTest(positions int) string { return fmt.Sprintf("decode 1 @ %d", positions-1) }

func prefillTest(tokens, positions int) string {
	return fmt.Sprintf("prefill %d @ %d", tokens, positions-tokens)
}

// decode is the stage of one figure of decode.
func decode(name string, dt tensor.DType, value func(*work, *round) float64) stage {
	return stage{
		names: []string{name}, limits: []limit{read1, peak},
		build: func(h *harness) ([]work, func(), error) {
			layout, err := attention.NewLayout(dt, headDim, headDim)
			if err != nil {
				return nil, nil, err
			}
			c, err := newCache(layout, groups, h.size.positions, h.size.set)
			if err != nil {
				return nil, nil, err
			}
			w := c.attend(h, asked{
				name: name, test: decodeTest(h.size.positions), heads: heads, groups: groups, tokens: 1, threads: 1, callers: 1, value: value,
			})
			return []work{w}, c.free, nil
		},
	}
}

// decodeHalf are the figures that read the same cache of f16.
var decodeHalf = stage{
	names: []string{"decode_f16", "decode_2core", "decode_2threads", "decode_g8"}, limits: []limit{read1, read2, peak},
	build: func(h *harness) ([]work, func(), error) {
		layout, err := attention.NewLayout(tensor.F16, headDim, headDim)
		if err != nil {
			return nil, nil, err
		}
		c, err := newCache(layout, groups, h.size.positions, h.size.set)
		if err != nil {
			return nil, nil, err
		}
		one := asked{
			name: "decode_f16", test: decodeTest(h.size.positions), heads: heads, groups: groups, tokens: 1, threads: 1, callers: 1, value: ofBus,
		}
		two, shared, wide := one, one, one
		two.name, two.threads, two.callers = "decode_2core", 2, 2
		two.value = func(w *work, r *round) float64 {
			return r.seconds["decode_f16"] / r.seconds[w.Name] / (r.limits[read2] / r.limits[read1])
		}
		shared.name, shared.threads, shared.value = "decode_2threads", 2, ofCallers("decode_2core")
		wide.name, wide.heads = "decode_g8", 64
		return []work{c.attend(h, one), c.attend(h, two), c.attend(h, shared), c.attend(h, wide)}, c.free, nil
	},
}

// ofCallers is the rate of two threads that share out each call / that of two callers with a thread each.
func ofCallers(name string) func(*work, *round) float64 {
	return func(w *work, r *round) float64 { return r.seconds[name] / r.seconds[w.Name] }
}

// decodeShared is a figure of decode on two threads: of sequences, all in one call, over and over. Beside it two callers
// share them, by groups or by sequences.
func decodeShared(name string, positions func(sizes) int, sequences int, byGroup bool) stage {
	callers := name + " callers"
	return stage{
		names: []string{name}, limits: []limit{read1, read2, peak},
		build: func(h *harness) ([]work, func(), error) {
			layout, err := attention.NewLayout(tensor.F16, headDim, headDim)
			if err != nil {
				return nil, nil, err
			}
			n := positions(h.size)
			each := int64(layout.PageBytes()) * int64((n+attention.PageLen-1)/attention.PageLen) * groups
			c, err := newCache(layout, groups, n, int64(sequences)*each)
			if err != nil {
				return nil, nil, err
			}
			shared := asked{
				name: name, test: decodeTest(n), heads: heads, groups: groups, tokens: 1, threads: 2, callers: 1, together: sequences,
				times: max(1<<15/(n*sequences), 1), value: ofCallers(callers), cached: true,
			}
			two := shared
			two.name, two.callers, two.byGroup, two.value = callers, 2, byGroup, nil
			if byGroup {
				two.test += ", 2 callers"
			}
			return []work{c.attend(h, shared), c.attend(h, two)}, c.free, nil
		},
	}
}

// prefill has the figures of one sequence for each of the numbers of groups; kernel is that which must run, if any.
func prefill(kernel string, byGroups map[string]int, names ...string) stage {
	fma := peak
	value := ofFMA
	if kernel != "" {
		fma, value = peak2, ofLower
	}
	return stage{
		names: names, limits: []limit{read1, fma},
		build: func(h *harness) (works []work, free func(), err error) {
			var caches []*cache
			free = func() {
				for _, c := range caches {
					c.free()
				}
			}
			layout, err := attention.NewLayout(tensor.F32, headDim, headDim)
			if err != nil {
				return nil, nil, err
			}
			for _, name := range names {
				c, err := newCache(layout, byGroups[name], h.size.prefillPositions, 1)
				if err != nil {
					free()
					return nil, nil, err
				}
				caches = append(caches, c)
				works = append(works, c.attend(h, asked{
					name: name, test: prefillTest(h.size.prefillTokens, h.size.prefillPositions), heads: heads, groups: byGroups[name],
					tokens: h.size.prefillTokens, threads: 1, callers: 1, value: value, intended: kernel,
				}))
			}
			return works, free, nil
		},
	}
}

var project = stage{
	names: []string{"project"}, limits: []limit{read1, peak},
	build: func(h *harness) ([]work, func(), error) {
		rows, dim := h.size.projectRows, h.size.projectDim
		rng := rand.New(rand.NewPCG(5, 6))
		x, w, y := random(rows*dim, rng), random(dim*dim, rng), make([]float32, rows*dim)
		bytes := 4 * (len(x) + len(w) + len(y))
		return []work{{
			row: row{
				Name: "project", Test: fmt.Sprintf("project %d × %d", rows, dim), DType: tensor.F32.String(), Threads: 1,
				Bytes: float64(bytes), Flops: 2 * float64(rows) * float64(dim) * float64(dim), Set: int64(bytes),
			},
			pass:  func(ctx context.Context) error { return attention.Project(ctx, 1, y, x, w, nil, rows, dim, dim) },
			value: ofFMA,
		}}, func() {}, nil
	},
}

var decodeShort = stage{
	names: []string{"decode_short"}, limits: []limit{peak},
	build: func(h *harness) ([]work, func(), error) {
		layout, err := attention.NewLayout(tensor.F16, headDim, headDim)
		if err != nil {
			return nil, nil, err
		}
		// As many of the groups as half of the cache holds: with all of its pages' bytes nothing else would fit.
		each := int64((h.size.short+attention.PageLen-1)/attention.PageLen) * int64(layout.PageBytes())
		held := int(min(max(secondCache()/2/each, 1), groups))
		c, err := newCache(layout, held, h.size.short, 1)
		if err != nil {
			return nil, nil, err
		}
		return []work{c.attend(h, asked{
			name: "decode_short", test: decodeTest(h.size.short) + ", L2", heads: heads / groups * held, groups: held, tokens: 1, threads: 1,
			callers: 1, cached: true, value: ofFMA,
		})}, c.free, nil
	},
}

// appending takes tokens one at a time, to one sequence after the other, as decoding a large batch does. The sequences
// begin at all places of a page. Long: one measurement, in the order in which it is made.
func appending(name string, dt tensor.DType) stage {
	return stage{
		names: []string{name}, limits: []limit{write1},
		build: func(h *harness) ([]work, func(), error) {
			layout, err := attention.NewLayout(dt, headDim, headDim)
			if err != nil {
				return nil, nil, err
			}
			// Tokens, as many as fit the first caches: they come from the network just then.
			const different = 64
			rng := rand.New(rand.NewPCG(7, 8))
			var tokens []attention.Rows
			for range different {
				rows, err := rowsOf(layout, 1, rng)
				if err != nil {
					return nil, nil, err
				}
				tokens = append(tokens, rows)
			}
			before, err := rowsOf(layout, attention.PageLen, rng)
			if err != nil {
				return nil, nil, err
			}
			page, shards := layout.PageBytes(), h.size.sequences*groups
			const pages = 2
			arena, err := kvcache.MapArena(int64(shards) * pages * int64(page))
			if err != nil {
				return nil, nil, err
			}
			at := func(shard, position int) (bytes []byte, in int) {
				p := (shard*pages + position/attention.PageLen) * page
				return arena.Bytes()[p : p+page : p+page], position % attention.PageLen
			}
			start := func(shard int) int { return shard / groups % attention.PageLen }
			token := layout.KRowBytes() + layout.VRowBytes() + 8*len(tokens[0].KScale)
			return []work{{
				row: row{
					Name: name, Test: fmt.Sprintf("append to %d", h.size.sequences), DType: dt.String(), Heads: heads, Groups: groups, HeadDim: headDim,
					Threads: 1, Bytes: float64(shards) * float64(h.size.appended) * float64(token), Set: int64(len(arena.Bytes())), Writes: true,
				},
				prepare: func() error {
					for s := range shards {
						n := start(s)
						if n == 0 {
							continue
						}
						bytes, _ := at(s, 0)
						if err := layout.Write(bytes, 0, n, first(before, layout, n)); err != nil {
							return err
						}
					}
					return nil
				},
				pass: func(ctx context.Context) error {
					for t := range h.size.appended {
						if err := ctx.Err(); err != nil {
							return err
						}
						for s := range shards {
							bytes, in := at(s, start(s)+t)
							if err := layout.Write(bytes, in, 1, tokens[(s+t)%different]); err != nil {
								return err
							}
						}
					}
					return nil
				},
				value: ofBus,
			}}, arena.Close, nil
		},
	}
}

// first returns the first n of some positions.
func first(rows attention.Rows, layout attention.Layout, n int) attention.Rows {
	rows.K, rows.V = rows.K[:n*layout.KRowBytes()], rows.V[:n*layout.VRowBytes()]
	if len(rows.KScale) > 0 {
		rows.KScale, rows.VScale = rows.KScale[:n], rows.VScale[:n]
	}
	return rows
}

// figureStages are the figures of the kernel that this machine selects.
func figureStages(model string) []stage {
	return []stage{
		decode("decode_f32", tensor.F32, ofBus),
		decodeHalf,
		decodeShared("decode_2threads_2k", func(s sizes) int { return s.warm }, 1, true),
		decodeShared("decode_b8_2threads", func(s sizes) int { return 2 * s.warm }, 8, false),
		decode("decode_bf16", tensor.BF16, ofBus),
		decodeTiles,
		decode("decode_int8", tensor.I8, ofLower),
		prefill("", map[string]int{"prefill_512_2k": groups, "prefill_mha": heads}, "prefill_512_2k", "prefill_mha"),
		prefillTiles,
		errorsOfTiles(model),
		project,
		decodeShort,
		appending("append_f16", tensor.F16),
		appending("append_int8", tensor.I8),
	}
}

// childStages are the figures of another kernel.
func childStages(kernel string) []stage {
	d := decode("decode_"+kernel, tensor.F16, ofLower)
	d.limits = []limit{read1, peak2}
	build := d.build
	d.build = func(h *harness) ([]work, func(), error) {
		works, free, err := build(h)
		for i := range works {
			works[i].Intended = kernel
		}
		return works, free, err
	}
	name := "prefill_" + kernel
	return []stage{d, prefill(kernel, map[string]int{name: groups}, name)}
}

// benchStages are rows of tables alone: other sizes of heads and groups.
func benchStages() (all []stage) {
	for _, g := range []struct{ heads, groups, dim, vDim int }{
		{heads, groups, 64, 64},
		{heads, groups, 80, 80},
		{heads, groups, 96, 96},
		{heads, groups, 112, 112},
		{heads, groups, 192, 128},
		{heads, groups, 256, 256},
		{heads, heads, headDim, headDim},
		{heads, 1, headDim, headDim},
		{28, 4, headDim, headDim},
		{24, 8, headDim, headDim},
	} {
		for _, c := range []struct {
			kind string
			dt   tensor.DType
		}{{"decode", tensor.F16}, {"prefill", tensor.F32}} {
			name := fmt.Sprintf("%s_%s_%d_%d_%d", c.kind, c.dt, g.heads, g.groups, g.dim)
			all = append(all, stage{
				names: []string{name}, limits: []limit{read1, peak},
				build: func(h *harness) ([]work, func(), error) {
					layout, err := attention.NewLayout(c.dt, g.dim, g.vDim)
					if err != nil {
						return nil, nil, err
					}
					positions, tokens, size, test := h.size.positions, 1, h.size.set, decodeTest(h.size.positions)
					if c.kind == "prefill" {
						positions, tokens, size = h.size.prefillPositions, h.size.prefillTokens, 1
						test = prefillTest(tokens, positions)
					}
					made, err := newCache(layout, g.groups, positions, size)
					if err != nil {
						return nil, nil, err
					}
					return []work{made.attend(h, asked{
						name: name, test: test, heads: g.heads, groups: g.groups, tokens: tokens, threads: 1, callers: 1,
					})}, made.free, nil
				},
			})
		}
	}
	return all
}
