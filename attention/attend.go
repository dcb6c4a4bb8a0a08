package attention

import (
	"context"
	"fmt"
	"math"
	"sync"
	"sync/atomic"

	"headwater/tensor"
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
	// Mask [MaskHeads, Tokens, KV.Len], MaskHeads 1 for all heads alike or Heads, or nil with MaskHeads 0: 0 hides a
	// position, all else shows it.
	Mask      []byte
	MaskHeads int
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
	splitLen  = SplitPages * PageLen
)

// Attend writes the context and LSE of every token and head, as doc.go specifies, on at most that many threads. The
// bits do not depend on how many. It looks at ctx before every page and returns its error, wrapped; the other errors say
// what does not fit together, or are a *RowError for the first row without a finite answer.
func Attend(ctx context.Context, threads int, kv KV, q Query, opts Options, out Output) error {
	in := selected.Load()
	if in.err != nil {
		return fmt.Errorf("attend: %w", in.err)
	}
	return attend(ctx, in.kernel, partBytes, threads, kv, q, opts, out)
}

func attend(ctx context.Context, k *kernel, room, threads int, kv KV, q Query, opts Options, out Output) error {
	c := &call{kernel: k, room: room, kv: kv, q: q, opts: opts, out: out}
	if err := c.check(); err != nil {
		return fmt.Errorf("attend: %w", err)
	}
	if err := c.run(ctx, max(threads, 1)); err != nil {
		return fmt.Errorf("attend: %w", err)
	}
	if c.firstError != nil {
		return c.firstError
	}
	return nil
}

// call is one Attend. A row is one token of one head, rows are numbered as Query.Q holds them.
type call struct {
	kernel *kernel
	room   int // bytes for parts
	kv     KV
	q      Query
	opts   Options
	out    Output

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
	if !shaped(len(c.out.Context), q.Tokens, q.Heads, l.vDim) || !shaped(len(c.out.LSE), q.Tokens, q.Heads, 1) {
		return fmt.Errorf("room for %d elements of context and %d of LSE, not %d tokens × %d heads × v_dim %d",
			len(c.out.Context), len(c.out.LSE), q.Tokens, q.Heads, l.vDim)
	}
	if q.Offset < -maxOffset || q.Offset > maxOffset-int64(q.Tokens) {
		return fmt.Errorf("offset %d is out of range", q.Offset)
	}
	for _, o := range []struct {
		name       string
		len, heads int
	}{{"mask", len(q.Mask), q.MaskHeads}, {"bias", len(q.Bias), q.BiasHeads}} {
		if o.heads != 0 && o.heads != 1 && o.heads != q.Heads {
			return fmt.Errorf("%s has %d heads, neither 1 nor %d", o.name, o.heads, q.Heads)
		}
		if !shaped(o.len, o.heads, q.Tokens, c.kv.Len) {
			return fmt.Errorf("%s has %d elements, not %d heads × %d tokens × %d positions", o.name, o.len, o.heads, q.Tokens, c.kv.Len)
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

// run shares out blocks of rows where there are enough of them, else the splits of each block.
func (c *call) run(ctx context.Context, threads int) error {
	rows, splits := c.q.Tokens*c.q.Heads, (pagesOf(c.kv.Len)+SplitPages-1)/SplitPages
	size := min(rows, blockRows)
	if perThread := (rows + threads - 1) / threads; (rows+size-1)/size*splits < threads && perThread < size {
		size = max(perThread, 1)
	}
	blocks := (rows + size - 1) / size
	workers := make([]*worker, min(threads, max(blocks, splits)))
	if blocks >= len(workers) || splits <= 1 {
		return share(ctx, len(workers), blocks, func(thread, task int) error {
			// The last rows of a causal query see the most, so they come first.
			first := (blocks - 1 - task) * size
			w := c.worker(workers, thread, size)
			w.begin(first, min(size, rows-first))
			return w.allSplits(ctx)
		})
	}
	wave := max(len(workers), min(splits, c.room/4/(size*c.kv.Layout.vDim)))
	// No two threads share a vector of rows.
	each := padded(size)
	some := newParts(wave*each, c.kv.Layout.vDim)
	for first := 0; first < rows; first += size {
		n := min(size, rows-first)
		lead := c.worker(workers, 0, size)
		lead.begin(first, n)
		total := lead.row.of(0, n)
		for s := lead.lo / splitLen; s*splitLen < lead.hi; s += wave {
			tasks := min(wave, (lead.hi-s*splitLen+splitLen-1)/splitLen)
			err := share(ctx, len(workers), tasks, func(thread, task int) error {
				w := c.worker(workers, thread, size)
				if w.first != first || w.n != n {
					w.begin(first, n)
				}
				return w.oneSplit(ctx, s+task, some.of(task*each, n))
			})
			if err != nil {
				return err
			}
			for task := range tasks {
				lead.mergeAll(total, some.of(task*each, n))
			}
		}
		lead.finish()
	}
	return nil
}

// share runs the tasks on that many threads, the caller's among them, and returns once all have ended. After an error
// the threads begin no other task. Each thread takes the next task when it has ended one.
func share(ctx context.Context, threads, tasks int, do func(thread, task int) error) error {
	var next atomic.Int64
	var failed atomic.Pointer[error]
	work := func(thread int) {
		for failed.Load() == nil {
			task := int(next.Add(1)) - 1
			if task >= tasks {
				return
			}
			err := ctx.Err()
			if err == nil {
				err = do(thread, task)
			}
			if err != nil {
				failed.CompareAndSwap(nil, &err)
				return
			}
		}
	}
	var others sync.WaitGroup
	for thread := 1; thread < min(threads, tasks); thread++ {
		others.Go(func() { work(thread) })
	}
	work(0)
	others.Wait()
	if err := failed.Load(); err != nil {
		return *err
	}
	return nil
}

// worker is one thread's view of a block of rows and its room to work in.
type worker struct {
	*call
	first, n int   // the block's rows [first, first+n)
	low, end []int // [n] what each row sees by its position: [low, end)
	lo, hi   int   // what any of them sees: [lo, hi)

	k, v           []float32 // a page, widened: [head_dim][64] and [64][vStride]
	kScale, vScale [PageLen]float32
	s              []float32 // [n][64] scores, then weights
	o              []float32 // [v_dim] of one row and page
	split, row     parts     // [n]

	// What only a vector kernel uses, of each row in one page: the positions it sees, those of weight other than 0, m
	// and l, what is to be done, and the coefficients of the merge.
	visibleBits, nonzero []uint64
	pm, pl, a, b, zeros  []float32
	does                 []uint8
}

// worker returns the thread's own, which no other touches, and makes it at its first task.
func (c *call) worker(all []*worker, thread, rows int) *worker {
	if all[thread] == nil {
		l := c.kv.Layout
		w := &worker{
			call: c, low: make([]int, rows), end: make([]int, rows),
			s: aligned(rows * PageLen), o: make([]float32, l.vDim),
			split: newParts(rows, l.vDim), row: newParts(rows, l.vDim),
		}
		if c.kernel.vector == nil {
			w.k, w.v = make([]float32, l.headDim*PageLen), make([]float32, PageLen*l.vStride())
		} else {
			n := padded(rows)
			w.visibleBits, w.nonzero, w.does = make([]uint64, n), make([]uint64, n), make([]uint8, n)
			w.pm, w.pl, w.a, w.b, w.zeros = aligned(n), aligned(n), aligned(n), aligned(n), aligned(l.vStride())
		}
		all[thread] = w
	}
	return all[thread]
}

// begin takes up the rows [first, first+n).
func (w *worker) begin(first, n int) {
	w.first, w.n, w.lo, w.hi = first, n, math.MaxInt, 0
	for r := range n {
		lo, hi := w.visible((first + r) / w.q.Heads)
		w.low[r], w.end[r] = lo, hi
		if lo < hi {
			w.lo, w.hi = min(w.lo, lo), max(w.hi, hi)
		}
	}
	w.lo = min(w.lo, w.hi)
	w.row.of(0, n).clear()
}

// allSplits brings the block from its first split to its finished contexts.
func (w *worker) allSplits(ctx context.Context) error {
	part, total := w.split.of(0, w.n), w.row.of(0, w.n)
	for s := w.lo / splitLen; s*splitLen < w.hi; s++ {
		if err := w.oneSplit(ctx, s, part); err != nil {
			return err
		}
		w.mergeAll(total, part)
	}
	w.finish()
	return nil
}

// oneSplit sets part [n] to what the block's rows see in split s.
func (w *worker) oneSplit(ctx context.Context, s int, part parts) error {
	part.clear()
	for page := max(s*SplitPages, w.lo/PageLen); page < (s+1)*SplitPages && page*PageLen < w.hi; page++ {
		if err := ctx.Err(); err != nil {
			return err
		}
		if err := w.onePage(page, part); err != nil {
			return err
		}
	}
	return nil
}

func (w *worker) onePage(page int, part parts) error {
	base := page * PageLen
	// The rows [from, to) see something here; most often all of them.
	from, to := 0, w.n
	for from < to && !w.sees(from, base) {
		from++
	}
	for from < to && !w.sees(to-1, base) {
		to--
	}
	if from == to {
		return nil
	}
	if w.kernel.vector != nil {
		w.vectorPage(page, from, to, part)
		return nil
	}
	if err := w.load(page); err != nil {
		return err
	}
	l := w.kv.Layout
	s := w.s[:(to-from)*PageLen]
	clear(s)
	w.kernel.scores(s, w.q.Q[(w.first+from)*l.headDim:], w.k, to-from, l.headDim, l.headDim)
	for r := from; r < to; r++ {
		if !w.sees(r, base) {
			continue
		}
		row := (*[PageLen]float32)(s[(r-from)*PageLen:])
		lo, hi := max(w.low[r]-base, 0), min(w.end[r]-base, PageLen)
		w.scores(row, r, base, lo, hi)
		m, sum := w.kernel.softmax(row)
		if m == negInf {
			continue
		}
		if l.scaled() {
			for t := lo; t < hi; t++ {
				row[t] *= w.vScale[t]
			}
		}
		w.kernel.accumulate(w.o, row, w.v, l.vStride())
		part.merge(w.kernel, r, m, sum, w.o)
	}
	return nil
}

func (w *worker) sees(r, base int) bool { return w.low[r] < base+PageLen && w.end[r] > base }

// load widens a page, of V only the positions that exist.
func (w *worker) load(page int) error {
	l, bytes := w.kv.Layout, w.kv.Pages[page]
	n := min(w.kv.Len-page*PageLen, PageLen)
	if err := tensor.Widen(w.k, l.k(bytes), l.dt); err != nil {
		return fmt.Errorf("read page %d: %w", page, err)
	}
	if err := tensor.Widen(w.v[:n*l.vStride()], l.v(bytes, n), l.dt); err != nil {
		return fmt.Errorf("read page %d: %w", page, err)
	}
	if l.scaled() {
		k, v := l.scales(bytes)
		readScales(w.kScale[:], k)
		readScales(w.vScale[:], v)
	}
	return nil
}

// scores makes of q·k the scores of row r in the page at base, of which it sees [lo, hi) by position: scale, softcap,
// ALiBi, bias and mask, in this order; −Inf is what it does not see.
func (w *worker) scores(s *[PageLen]float32, r, base, lo, hi int) {
	token, head := (w.first+r)/w.q.Heads, (w.first+r)%w.q.Heads
	for t := range s[:lo] {
		s[t] = negInf
	}
	for t := range s[hi:] {
		s[hi+t] = negInf
	}
	seen := s[lo:hi]
	if w.kv.Layout.scaled() {
		for t, k := range w.kScale[lo:hi] {
			seen[t] *= k
		}
	}
	for t := range seen {
		seen[t] *= w.opts.Scale
	}
	if cap := w.opts.Softcap; cap != 0 {
		for t, x := range seen {
			seen[t] = cap * tanh32(x/cap)
		}
	}
	if len(w.opts.AlibiSlopes) != 0 {
		slope := -w.opts.AlibiSlopes[w.q.FirstHead+head]
		d := w.q.Offset + int64(token) - int64(base+lo)
		for t, x := range seen {
			seen[t] = fma32(slope, float32(max(d, -d)), x)
			d--
		}
	}
	if w.q.BiasHeads != 0 {
		for t, b := range w.q.Bias[w.at(w.q.BiasHeads, head, token)+base+lo:][:len(seen)] {
			if b == negInf {
				seen[t] = negInf
			} else {
				seen[t] += b
			}
		}
	}
	if w.q.MaskHeads != 0 {
		for t, b := range w.q.Mask[w.at(w.q.MaskHeads, head, token)+base+lo:][:len(seen)] {
			if b == 0 {
				seen[t] = negInf
			}
		}
	}
}

// at returns where the row of a mask or bias begins.
func (w *worker) at(heads, head, token int) int {
	if heads == 1 {
		head = 0
	}
	return (head*w.q.Tokens + token) * w.kv.Len
}

// mergeAll brings the parts of the positions that follow into total.
func (w *worker) mergeAll(total, next parts) {
	if v := w.kernel.vector; v != nil {
		v.mergeParts(total, next, w.a, w.b)
		return
	}
	total.mergeAll(w.kernel, next)
}

// finish brings in the sinks and writes the block's contexts.
func (w *worker) finish() {
	vDim := w.kv.Layout.vDim
	total := w.row.of(0, w.n)
	for r := range w.n {
		row := w.first + r
		token, head := row/w.q.Heads, w.q.FirstHead+row%w.q.Heads
		if len(w.opts.Sinks) != 0 {
			clear(w.o)
			total.merge(w.kernel, r, w.opts.Sinks[head], 1, w.o)
		}
		lse, rule := total.finish(r, w.out.Context[row*vDim:][:vDim])
		if rule != "" {
			w.fail(row, &RowError{Head: head, Token: token, Rule: rule})
		}
		w.out.LSE[row] = lse
	}
}

// fail keeps the error of the least row, so that it does not depend on which thread was first.
func (c *call) fail(row int, err *RowError) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.firstError == nil || row < c.firstRow {
		c.firstRow, c.firstError = row, err
	}
}
