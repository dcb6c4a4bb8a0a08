package attention

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
)

// Query is some tokens of the query heads that read one KV head. A call only reads its slices and keeps none.
type Query struct {
	// Q [Tokens, Heads, head_dim].
	Q             []float32
	Tokens, Heads int
	// FirstHead is the number in its layer of the first head: it indexes Options.AlibiSlopes and Options.Sinks.
	FirstHead int
	// Offset is the position of the first token, token i is at Offset + i; it may be negative.
	Offset int64
	// Mask [MaskHeads, Tokens, KV.Len − MaskFrom], MaskHeads 1 for all heads alike or Heads, or nil with MaskHeads 0: 0
	// hides a position, all else shows it. Positions before MaskFrom it does not hide.
	Mask      []byte
	MaskHeads int
	MaskFrom  int
	// Bias [BiasHeads, Tokens, KV.Len], with BiasHeads like MaskHeads, or nil: added to the scores; −Inf hides.
	Bias      []float32
	BiasHeads int
}

// Output is where a call writes. After an error it holds nothing of use.
type Output struct {
	// Context [Tokens, Heads, v_dim].
	Context []float32
	// LSE [Tokens, Heads], natural logarithm, −Inf where nothing was visible.
	LSE []float32
}

// Item is one of the calls of Attend that AttendAll makes together.
type Item struct {
	KV      KV
	Query   Query
	Options Options
	Output  Output
	// Apart, unless it is nil, gets parts of the answer in the place of Output.
	Apart *Apart
}

// Work is about how many multiply-adds of the item are made before its call can give way.
func (in *Item) Work() int64 {
	positions, l := int64(in.KV.Len), in.KV.Layout
	if in.Apart != nil {
		positions = min(positions, splitLen)
	}
	return min(int64(in.Query.Tokens)*int64(in.Query.Heads), blockRows) * positions * int64(l.headDim+l.vDim)
}

// ItemError says which of the items of AttendAll failed. Err is what Attend would have returned.
type ItemError struct {
	Item int
	Err  error
}

func (e *ItemError) Error() string { return e.Err.Error() }

func (e *ItemError) Unwrap() error { return e.Err }

// RowError says which row, one token of one head, has no finite answer, and why.
type RowError struct {
	// Head is the head's number in its layer, Token the token's in the query.
	Head, Token int
	Rule        string
}

func (e *RowError) Error() string {
	return fmt.Sprintf("head %d, token %d: %s", e.Head, e.Token, e.Rule)
}

const (
	// maxOffset bounds |Offset| and windows so that their sums stay in an int64. A wider window is unbounded anyway.
	maxOffset = 1 << 61
	// maxAlibiDistance is the first distance that float32 may not hold.
	maxAlibiDistance = 1 << 24
	// blockRows is how many rows read a page once it is widened, and partBytes about how much memory is spent on the
	// parts of rows whose splits are shared out.
	blockRows = 64
	partBytes = 4 << 20
	splitLen  = SplitLen
)

// Attend writes the context and LSE of every token and head, as docs/numerics.md specifies, on at most that many threads, which
// live as long as the call; who makes many calls has a Pool. The bits do not depend on how many threads there are.
// Attend looks at ctx before every page and returns its error, wrapped; the other errors say what does not fit together,
// or are a *RowError for the first row without a finite answer.
func Attend(ctx context.Context, threads int, kv KV, q Query, opts Options, out Output) error {
	in := selected.Load()
	if in.err != nil {
		return fmt.Errorf("attend: %w", in.err)
	}
	return attend(ctx, in.kernel, partBytes, threads, kv, q, opts, out)
}

func attend(ctx context.Context, k *kernel, room, threads int, kv KV, q Query, opts Options, out Output) error {
	p := NewPool(threads)
	defer p.Close()
	t, err := p.Acquire(ctx, Foreground)
	if err != nil {
		return fmt.Errorf("attend: %w", err)
	}
	defer t.Release()
	return t.attend(ctx, limits{kernel: k, room: room}, kv, q, opts, out)
}

// Attend does what the function Attend does, on this thread and, where the work is enough for several, on those of its
// pool that have nothing else to do. It allocates nothing once the pool's threads have done work of the same size.
func (t *Thread) Attend(ctx context.Context, kv KV, q Query, opts Options, out Output) error {
	in := selected.Load()
	if in.err != nil {
		return fmt.Errorf("attend: %w", in.err)
	}
	return t.attend(ctx, limits{kernel: in.kernel, room: partBytes, alone: threadWork}, kv, q, opts, out)
}

func (t *Thread) attend(ctx context.Context, l limits, kv KV, q Query, opts Options, out Output) error {
	t.single[0] = Item{KV: kv, Query: q, Options: opts, Output: out}
	err := t.attendAll(ctx, l, t.single[:])
	t.single[0] = Item{}
	if item, ok := err.(*ItemError); ok {
		return item.Err
	}
	return err
}

// AttendAll does Attend for each of the items, such as the groups of a layer or the sequences of a batch, and shares them
// out together: the pool's threads start once, and none waits before all items are done. Outputs must not overlap. If an
// item fails, AttendAll returns an *ItemError for the first that it knows of; after an error no output holds anything of
// use. The slice is only read, and not kept.
func (t *Thread) AttendAll(ctx context.Context, items []Item) error {
	in := selected.Load()
	if in.err != nil {
		return fmt.Errorf("attend: %w", in.err)
	}
	return t.attendAll(ctx, limits{kernel: in.kernel, room: partBytes, alone: threadWork}, items)
}

func (t *Thread) attendAll(ctx context.Context, l limits, items []Item) error {
	b := &t.batch
	err := b.take(l, items)
	if err == nil {
		if err = b.run(ctx, t); err != nil {
			err = fmt.Errorf("attend: %w", err)
		}
	}
	if err == nil {
		err = b.failure()
	}
	b.forget()
	return err
}

// limits are how a call is computed, of which no bit depends.
type limits struct {
	kernel *kernel
	room   int // bytes for parts
	alone  int // multiply-adds below which one thread computes them
}

// call is one item of a batch. A row is one token of one head, rows are numbered as Query.Q holds them.
type call struct {
	limits
	kv    KV
	q     Query
	opts  Options
	out   Output
	apart *Apart // what is asked for in the place of out, or nil

	// Its tasks are blocks of size rows, or if cut the splits of these blocks, each with parts of its own. A wave is as many
	// splits as there is room for, wave of them from split first on. The last split of a block to end merges its wave into
	// the block's total; left are how many have not ended.
	size        int
	cut         bool
	first, wave int
	left        []atomic.Int32 // [blocks]
	parts       parts          // [blocks, wave] of size rows
	total       parts          // [blocks] of size rows

	mu         sync.Mutex
	firstRow   int
	firstError *RowError // of firstRow, the least so far
}

func (c *call) check() error {
	if err := c.kv.check(); err != nil {
		return err
	}
	q, l := &c.q, c.kv.Layout
	if q.Tokens < 1 || q.Heads < 1 || q.FirstHead < 0 {
		return fmt.Errorf("%d tokens of %d heads from head %d", q.Tokens, q.Heads, q.FirstHead)
	}
	if !shaped(len(q.Q), q.Tokens, q.Heads, l.headDim) {
		return fmt.Errorf("q has %d elements, not %d tokens × %d heads × head_dim %d", len(q.Q), q.Tokens, q.Heads, l.headDim)
	}
	if c.apart != nil {
		if err := c.checkApart(); err != nil {
			return err
		}
	} else if !shaped(len(c.out.Context), q.Tokens, q.Heads, l.vDim) || !shaped(len(c.out.LSE), q.Tokens, q.Heads, 1) {
		return fmt.Errorf("room for %d elements of context and %d of LSE, not %d tokens × %d heads × v_dim %d",
			len(c.out.Context), len(c.out.LSE), q.Tokens, q.Heads, l.vDim)
	}
	if q.Offset < -maxOffset || q.Offset > maxOffset-int64(q.Tokens) {
		return fmt.Errorf("offset %d is out of range", q.Offset)
	}
	if q.MaskFrom < 0 || q.MaskFrom > c.kv.Len {
		return fmt.Errorf("a mask from position %d on, there are %d", q.MaskFrom, c.kv.Len)
	}
	for _, o := range [...]struct {
		name             string
		len, heads, each int
	}{{"mask", len(q.Mask), q.MaskHeads, c.kv.Len - q.MaskFrom}, {"bias", len(q.Bias), q.BiasHeads, c.kv.Len}} {
		if o.heads != 0 && o.heads != 1 && o.heads != q.Heads {
			return fmt.Errorf("%s has %d heads, neither 1 nor %d", o.name, o.heads, q.Heads)
		}
		if !shaped(o.len, o.heads, q.Tokens, o.each) {
			return fmt.Errorf("%s has %d elements, not %d heads × %d tokens × %d positions", o.name, o.len, o.heads, q.Tokens, o.each)
		}
	}
	last := q.FirstHead + q.Heads
	for _, o := range []struct {
		name   string
		values []float32
	}{{"alibi_slopes", c.opts.AlibiSlopes}, {"sinks", c.opts.Sinks}} {
		if len(o.values) != 0 && len(o.values) < last {
			return fmt.Errorf("%s has %d values, head %d needs one", o.name, len(o.values), last-1)
		}
	}
	if err := c.opts.Validate(max(len(c.opts.AlibiSlopes), len(c.opts.Sinks))); err != nil {
		return err
	}
	if c.opts.WindowLeft > maxOffset {
		c.opts.WindowLeft = -1
	}
	if c.opts.WindowRight > maxOffset {
		c.opts.WindowRight = -1
	}
	if len(c.opts.AlibiSlopes) != 0 {
		return c.checkDistances()
	}
	return nil
}

// shaped says whether n = a·b·c, all of them 0 or more, without overflow.
func shaped(n, a, b, c int) bool {
	for _, d := range [...]int{a, b} {
		if d == 0 {
			return n == 0
		}
		if n%d != 0 {
			return false
		}
		n /= d
	}
	return n == c
}

func (c *call) checkDistances() error {
	for token := range c.q.Tokens {
		lo, hi := c.visible(token)
		if lo >= hi {
			continue
		}
		at := c.q.Offset + int64(token)
		if d := max(at-int64(lo), int64(hi-1)-at); d >= maxAlibiDistance {
			return &RowError{
				Head: c.q.FirstHead, Token: token,
				Rule: fmt.Sprintf("ALiBi over a distance of %d positions, %d or more", d, maxAlibiDistance),
			}
		}
	}
	return nil
}

// visible returns the positions [lo, hi) that a token's mask and bias may still hide; none if lo ≥ hi.
func (c *call) visible(token int) (lo, hi int) {
	at := c.q.Offset + int64(token)
	first, end := int64(0), int64(c.kv.Len)
	if c.opts.Causal {
		end = min(end, at+1)
	}
	if w := c.opts.WindowRight; w >= 0 {
		end = min(end, at+w+1)
	}
	if w := c.opts.WindowLeft; w >= 0 {
		first = max(first, at-w)
	}
	// Either may lie beyond an int of 32 bits, but only where nothing is visible.
	if first >= end {
		return 0, 0
	}
	return int(first), int(end)
}

func (c *call) rows() int { return c.q.Tokens * c.q.Heads }

func (c *call) blocks() int { return (c.rows() + c.size - 1) / c.size }

func (c *call) splits() int { return (pagesOf(c.kv.Len) + SplitPages - 1) / SplitPages }

// tasks returns how many tasks the call has.
func (c *call) tasks() int {
	if c.apart != nil {
		return c.blocks() * len(c.apart.Parts)
	}
	if c.cut {
		return c.blocks() * c.wave
	}
	return c.blocks()
}

// work returns the multiply-adds of so many rows, if they see everything.
func (c *call) work(rows int) float64 {
	positions := c.kv.Len
	if c.apart != nil {
		positions = min(positions, len(c.apart.Parts)*splitLen)
	}
	return float64(rows) * float64(positions) * float64(c.kv.Layout.headDim+c.kv.Layout.vDim)
}

// mostRows returns how many rows a block has at most.
func (c *call) mostRows() int {
	if c.kv.Layout.arithmetic != Chain && c.kernel.vector.hasMatrix() {
		return matrixRows
	}
	return blockRows
}

// splitBytes returns how much memory the parts of one split take, those of all blocks.
func (c *call) splitBytes() int {
	return 4 * c.blocks() * padded(c.size) * c.kv.Layout.vStride()
}

// begin makes the call ready for a wave of so many splits from first on.
func (c *call) begin(first, wave int) {
	c.first, c.wave = first, wave
	blocks, rows := c.blocks(), padded(c.size)
	c.parts.grow(blocks*wave*rows, c.kv.Layout.vDim)
	if first == 0 {
		c.total.grow(blocks*rows, c.kv.Layout.vDim)
		c.total.clear()
	}
	c.left = grow(c.left, blocks)
	for i := range c.left {
		c.left[i].Store(int32(wave))
	}
}

// part returns the parts of a block's split of the wave. No two threads share a vector of rows.
func (c *call) part(block, split, rows int) parts {
	return c.parts.of((block*c.wave+split-c.first)*padded(c.size), rows)
}

func (c *call) task(ctx context.Context, t *Thread, i int) error {
	split := -1
	if c.apart != nil {
		return c.apartTask(ctx, t, i)
	}
	if c.cut {
		i, split = i/c.wave, c.first+i%c.wave
	}
	// The last rows of a causal query see the most, so they come first.
	block := c.blocks() - 1 - i
	b := &t.block
	b.enter(t, c, c.size)
	b.begin(block*c.size, min(c.size, c.rows()-block*c.size))
	if split < 0 {
		return b.allSplits(ctx)
	}
	if err := b.oneSplit(ctx, split, c.part(block, split, b.n)); err != nil {
		return err
	}
	if c.left[block].Add(-1) > 0 {
		return nil
	}
	total, end := c.total.of(block*padded(c.size), b.n), c.first+c.wave
	for s := max(b.lo/splitLen, c.first); s < end && s*splitLen < b.hi; s++ {
		b.mergeAll(total, c.part(block, s, b.n))
	}
	if end == c.splits() {
		b.finish(total)
	}
	return nil
}

// apartTask leaves one of the splits that are asked for, of one block.
func (c *call) apartTask(ctx context.Context, t *Thread, i int) error {
	n := len(c.apart.Parts)
	block, i := c.blocks()-1-i/n, i%n
	b := &t.block
	b.enter(t, c, c.size)
	b.begin(block*c.size, min(c.size, c.rows()-block*c.size))
	part := b.split.of(0, b.n)
	if err := b.oneSplit(ctx, c.apart.First+i*c.apart.Step, part); err != nil {
		return err
	}
	b.leave(part, i)
	return nil
}

// fail keeps the error of the least row, so that it does not depend on which thread was first.
func (c *call) fail(row int, err *RowError) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.firstError == nil || row < c.firstRow {
		c.firstRow, c.firstError = row, err
	}
}
