package attention

import (
	"context"
	"fmt"
	"math"
	"sync"
)

// tokenBlock is how many tokens make a block: within it the gradients of keys and values are one chain, and blocks follow
// each other by additions.
const tokenBlock = 64

// Differentiation is one call of Attend whose gradients are asked for. Differentiate only reads what is not in Gradients.
type Differentiation struct {
	KV      KV
	Query   Query
	Options Options
	// Output is what Attend wrote for these keys, values, queries and options.
	Output Output
	// DContext [Tokens, Heads, v_dim] is the loss's derivative by the context.
	DContext  []float32
	Gradients Gradients
}

// Gradients are where Differentiate writes the loss's derivatives. After an error they hold nothing of use.
type Gradients struct {
	Q []float32 // [Tokens, Heads, head_dim]
	K []float32 // [KV.Len, head_dim], the sum over the query's heads
	V []float32 // [KV.Len, v_dim], the same
	// Bias is in the shape of Query.Bias: the sum over the heads that a bias serves. It is 0 where a position is not seen,
	// and nil if it is not wanted.
	Bias []float32
	// Sinks [Heads], the query's own, belongs to Options.Sinks. It is nil if it is not wanted.
	Sinks []float32
}

// DifferentiationError says which of the items of Differentiate failed, and why.
type DifferentiationError struct {
	Item int
	Err  error
}

func (e *DifferentiationError) Error() string { return e.Err.Error() }

func (e *DifferentiationError) Unwrap() error { return e.Err }

// GradientError says which element of a gradient is not finite.
type GradientError struct {
	// Tensor is d_q, d_k, d_v, d_bias or d_sinks.
	Tensor string
	// Head is the head's number in its layer, that of the KV head for d_k and d_v.
	Head int
	// Row is the token, that of d_k and d_v the position. Column is the element, that of d_bias the position. Both are 0
	// for d_sinks.
	Row, Column int
}

func (e *GradientError) Error() string {
	row, column := "token", "element"
	switch e.Tensor {
	case "d_k", "d_v":
		row = "position"
	case "d_bias":
		column = "position"
	case "d_sinks":
		return fmt.Sprintf("d_sinks: head %d: is not finite", e.Head)
	}
	return fmt.Sprintf("%s: head %d, %s %d, %s %d: is not finite", e.Tensor, e.Head, row, e.Row, column, e.Column)
}

// The order in which gradients are searched for what is not finite.
const (
	ofQ = iota
	ofK
	ofV
	ofBias
	ofSinks
)

// Differentiate writes the gradients of each of the items, as docs/numerics.md specifies, on this thread and on those of
// its pool that have nothing else to do. No bit depends on how many those are, or on which items go together. Keys and
// values are F32, F16 or BF16: what int8 stands for is not a function that has derivatives.
//
// It looks at ctx before every page. If an item fails, it returns a *DifferentiationError for the first that it knows of,
// with a *RowError if a row's LSE can not be that of its scores, or a *GradientError.
func (t *Thread) Differentiate(ctx context.Context, items []Differentiation) error {
	in := selected.Load()
	if in.err != nil {
		return fmt.Errorf("differentiate: %w", in.err)
	}
	return t.differentiate(ctx, limits{kernel: in.kernel, alone: threadWork}, items)
}

// itemsEach is how many items a thread should have at least for each to be one task.
const itemsEach = 4

func (t *Thread) differentiate(ctx context.Context, l limits, items []Differentiation) error {
	threads, work := t.pool.threads, 0.0
	calls := make([]*gradient, len(items))
	for i := range items {
		g := newGradient(l, &items[i])
		if err := g.check(); err != nil {
			return &DifferentiationError{Item: i, Err: fmt.Errorf("differentiate: %w", err)}
		}
		calls[i], work = g, work+g.work(g.rows())
	}
	helped := threads > 1 && work >= float64(l.alone)
	var err error
	if helped && len(items) < itemsEach*threads {
		err = t.diagonals(ctx, calls, threads)
	} else {
		err = t.share(ctx, wholeItems(calls), len(calls), helped)
	}
	if err != nil {
		return fmt.Errorf("differentiate: %w", err)
	}
	for i, g := range calls {
		if err := g.failure(); err != nil {
			return &DifferentiationError{Item: i, Err: err}
		}
	}
	return nil
}

// gradient is one item: the call of Attend that it belongs to, and its share of the memory.
type gradient struct {
	call
	dContext []float32
	to       Gradients

	qPanels, vPanels int // of 64 elements, of head_dim and of v_dim
	chunk            int // pages that a task goes through, all of them if it is a whole item

	// Of each page, widened: k is [head_dim][64], kRows [qPanels][64][64] and v [v_dim, padded][64]. dK and dV are sums of
	// finished blocks, in panels like kRows. part is what some blocks of tokens, those in work, have of their d_q in the
	// split that they are in: [blocks in work][rows of a block][qPanels·64].
	k, kRows, v [][]float32
	dK, dV      []float32
	part        [][]float32

	gradientMu sync.Mutex
	tensor, at int // of failed, the first so far
	failed     *GradientError
}

func newGradient(l limits, item *Differentiation) *gradient {
	g := &gradient{dContext: item.DContext, to: item.Gradients}
	g.limits, g.kv, g.q, g.opts, g.out = l, item.KV, item.Query, item.Options, item.Output
	return g
}

func (g *gradient) check() error {
	if err := g.call.check(); err != nil {
		return err
	}
	l, q := g.kv.Layout, &g.q
	if l.arithmetic != Chain {
		return fmt.Errorf("arithmetic %s has no gradients, %s has", l.arithmetic, Chain)
	}
	if !l.Differentiable() {
		return fmt.Errorf("keys and values stored as %s have no gradients", l.dt)
	}
	for _, c := range []struct {
		name       string
		len        int
		a, b, each int
	}{
		{"d_context", len(g.dContext), q.Tokens, q.Heads, l.vDim},
		{"d_q", len(g.to.Q), q.Tokens, q.Heads, l.headDim},
		{"d_k", len(g.to.K), 1, g.kv.Len, l.headDim},
		{"d_v", len(g.to.V), 1, g.kv.Len, l.vDim},
	} {
		if !shaped(c.len, c.a, c.b, c.each) {
			return fmt.Errorf("%s has %d elements, not %d × %d × %d", c.name, c.len, c.a, c.b, c.each)
		}
	}
	if g.to.Bias != nil && len(g.to.Bias) != len(q.Bias) {
		return fmt.Errorf("d_bias has %d elements, the bias %d", len(g.to.Bias), len(q.Bias))
	}
	if g.to.Sinks != nil && (len(g.opts.Sinks) == 0 || len(g.to.Sinks) != q.Heads) {
		return fmt.Errorf("d_sinks has %d elements for %d heads and %d sinks", len(g.to.Sinks), q.Heads, len(g.opts.Sinks))
	}
	for row, lse := range g.out.LSE {
		if !finite(lse) && lse != negInf {
			return &RowError{Head: q.FirstHead + row%q.Heads, Token: row / q.Heads, Rule: fmt.Sprintf("its LSE is %g", lse)}
		}
	}
	g.qPanels, g.vPanels = panels(l.headDim), panels(l.vDim)
	return nil
}

// DifferentiationBytes returns how much memory, at most, Differentiate takes for one item beside what the item holds: so many
// positions, tokens and heads. ok is false if it exceeds an int64.
func DifferentiationBytes(l Layout, positions, tokens, heads int) (bytes int64, ok bool) {
	page := 4 * PageLen * (2*l.headDim + 2*l.vStride() + 2*PageLen*panels(l.headDim) + PageLen*panels(l.vDim))
	rows := 4 * PageLen * tokenBlock * (mostChunks*panels(l.headDim) + 2*panels(l.headDim) + panels(l.vDim))
	pages := pagesOf(positions)
	if pages > math.MaxInt64/2/page || heads > math.MaxInt64/2/rows {
		return 0, false
	}
	return int64(pages)*int64(page) + int64(min(tokens, tokenBlock))*int64(heads)*int64(rows/tokenBlock), true
}

func panels(n int) int { return (n + PageLen - 1) / PageLen }

func (g *gradient) pages() int { return pagesOf(g.kv.Len) }

// tokenBlocks returns how many blocks of tokens there are, and blockRows how many rows one has.
func (g *gradient) tokenBlocks() int { return (g.q.Tokens + tokenBlock - 1) / tokenBlock }

func (g *gradient) blockRows() int { return min(tokenBlock, g.q.Tokens) * g.q.Heads }

func (g *gradient) chunks() int { return max((g.pages()+g.chunk-1)/g.chunk, 1) }

// work returns the multiply-adds of so many rows, if they see everything.
func (g *gradient) work(rows int) float64 {
	l := g.kv.Layout
	return float64(rows) * float64(g.kv.Len) * float64(3*l.headDim+2*l.vDim)
}

// wholeItems are items that are a task each.
type wholeItems []*gradient

func (w wholeItems) task(ctx context.Context, t *Thread, i int) error {
	g := w[i]
	g.enter(max(g.pages(), 1))
	for page := range g.pages() {
		if err := g.prepare(page); err != nil {
			return err
		}
	}
	for block := range g.tokenBlocks() {
		if err := g.step(ctx, t, block, 0); err != nil {
			return err
		}
	}
	g.finish()
	g.leave()
	return nil
}

// diagonals are items that are shared out in tasks of one block of tokens and some pages, a chunk. A task comes after that
// of the block before on its pages, since d_k and d_v are sums over blocks ascending, and after that of the pages before
// on its block, since d_q is a sum over pages ascending. So tasks whose block and chunk have the same sum go together.
type diagonals struct {
	calls    []*gradient
	diagonal int
	ends     []int // tasks up to each call and its own
}

// chunksEach is how many chunks of pages an item has for each thread: fewer would leave a thread without work where a
// causal query sees few pages.
const chunksEach = 4

// mostChunks bounds the chunks of an item, and with them the blocks in work at once.
const mostChunks = 32

func (t *Thread) diagonals(ctx context.Context, calls []*gradient, threads int) error {
	last, pages := 0, 0
	for _, g := range calls {
		chunks := min(chunksEach*threads, mostChunks)
		g.enter(max((g.pages()+chunks-1)/chunks, 1))
		last, pages = max(last, g.tokenBlocks()+g.chunks()-1), pages+g.pages()
	}
	if err := t.share(ctx, preparation(calls), pages, true); err != nil {
		return err
	}
	d := diagonals{calls: calls, ends: make([]int, len(calls))}
	for d.diagonal = range last {
		tasks := 0
		for i, g := range calls {
			from, to := d.of(g)
			tasks += max(to-from, 0)
			d.ends[i] = tasks
		}
		if err := t.share(ctx, &d, tasks, true); err != nil {
			return err
		}
	}
	for _, g := range calls {
		g.finish()
		g.leave()
	}
	return nil
}

// of returns the chunks [from, to) of an item that the diagonal has.
func (d *diagonals) of(g *gradient) (from, to int) {
	return max(d.diagonal-g.tokenBlocks()+1, 0), min(d.diagonal+1, g.chunks())
}

func (d *diagonals) task(ctx context.Context, t *Thread, i int) error {
	for n, end := range d.ends {
		if i >= end {
			continue
		}
		from, to := d.of(d.calls[n])
		chunk := from + i - (end - (to - from))
		return d.calls[n].step(ctx, t, d.diagonal-chunk, chunk)
	}
	return nil
}

// preparation are the pages of items, a task each.
type preparation []*gradient

func (p preparation) task(_ context.Context, _ *Thread, i int) error {
	for _, g := range p {
		if i < g.pages() {
			return g.prepare(i)
		}
		i -= g.pages()
	}
	return nil
}

// fail keeps the error of the first element in the order of tensors and elements, so that it does not depend on threads.
func (g *gradient) failElement(tensor, at int, err *GradientError) {
	g.gradientMu.Lock()
	defer g.gradientMu.Unlock()
	if g.failed == nil || tensor < g.tensor || tensor == g.tensor && at < g.at {
		g.tensor, g.at, g.failed = tensor, at, err
	}
}

func (g *gradient) failure() error {
	if g.firstError != nil {
		return g.firstError
	}
	if g.failed != nil {
		return g.failed
	}
	return nil
}
