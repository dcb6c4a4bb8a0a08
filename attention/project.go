package attention

import (
	"context"
	"fmt"
	"sync"
	"unsafe"

	"headwater.example/tensor"
)

// ProjectionError says which element of a projection is not finite.
type ProjectionError struct {
	Row, Column int
	Value       float32
}

func (e *ProjectionError) Error() string {
	return fmt.Sprintf("projection of row %d, column %d, is %g", e.Row, e.Column, e.Value)
}

// How much of x and w a thread takes at once: the rows that share a tile of w, and its length.
const (
	projectRows  = 256
	projectDepth = 128
	// packBlocks is the fewest columns, in pages' widths, for which a stripe of x is packed, and packBytes the most that a
	// thread keeps for one.
	packBlocks = 4
	packBytes  = 16 << 20
	// wideBlocks is the most columns of a task, in pages' widths: they share each tile of x while the second cache holds it.
	// projectPieces is how many tasks a thread should have at least.
	wideBlocks    = 4
	projectPieces = 4
)

// Project writes y [rows, out] = x [rows, in] · wᵀ, where w is [out, in], plus bias [out] where it is not nil: for each
// element one chain of fma over in ascending, begun at +0, then the sum with the bias. It computes on at most that many
// threads, which live as long as the call; who makes many calls has a Pool. The bits do not depend on threads, nor on how
// many rows are projected at once. Errors are those of ctx, looked at between tiles, wrapped, or a *ProjectionError for
// the first element that is not finite; after one y holds nothing of use.
func Project(ctx context.Context, threads int, y, x, w, bias []float32, rows, in, out int) error {
	p := NewPool(threads)
	defer p.Close()
	t, err := p.Acquire(ctx, Foreground)
	if err != nil {
		return fmt.Errorf("project: %w", err)
	}
	defer t.Release()
	return t.multiply(ctx, 0, y, x, w, bias, rows, in, out)
}

// Project does what the function Project does, on this thread and, where the work is enough for several, on those of its
// pool that have nothing else to do. It allocates nothing once the pool's threads have done work of the same size.
func (t *Thread) Project(ctx context.Context, y, x, w, bias []float32, rows, in, out int) error {
	return t.multiply(ctx, threadWork, y, x, w, bias, rows, in, out)
}

// multiply is Project; below that many multiply-adds, alone, one thread computes them.
func (t *Thread) multiply(ctx context.Context, alone float64, y, x, w, bias []float32, rows, in, out int) error {
	if rows < 0 || in < 1 || out < 1 {
		return fmt.Errorf("project %d rows from %d to %d elements", rows, in, out)
	}
	if !shaped(len(x), rows, in, 1) || !shaped(len(w), out, in, 1) || !shaped(len(y), rows, out, 1) {
		return fmt.Errorf("project: x has %d elements, w %d and y %d, for %d rows from %d to %d elements",
			len(x), len(w), len(y), rows, in, out)
	}
	if bias != nil && len(bias) != out {
		return fmt.Errorf("project: bias has %d elements for %d columns", len(bias), out)
	}
	use := selected.Load()
	if use.err != nil {
		return fmt.Errorf("project: %w", use.err)
	}
	t.product.turned = false
	t.product.y, t.product.x, t.product.w, t.product.bias = y, x, w, bias
	return t.runProduct(ctx, alone, use.kernel, rows, in, out)
}

// WeightGradient writes y [rows, columns] = dᵀ·x, where d is [tokens, rows] and x [tokens, columns], which is what a weight
// [rows, columns] gets if d is the gradient of its products with x: for each element one chain of fma over tokens ascending,
// begun at +0, then + 0. Threads and errors are those of Project.
func (t *Thread) WeightGradient(ctx context.Context, y, d, x []float32, tokens, rows, columns int) error {
	return t.weightGradient(ctx, threadWork, y, d, x, tokens, rows, columns)
}

func (t *Thread) weightGradient(ctx context.Context, alone float64, y, d, x []float32, tokens, rows, columns int) error {
	if tokens < 0 || rows < 1 || columns < 1 || !shaped(len(d), tokens, rows, 1) || !shaped(len(x), tokens, columns, 1) || !shaped(len(y), rows, columns, 1) {
		return fmt.Errorf("gradient of a weight: d has %d elements, x %d and y %d, for %d tokens, %d rows and %d columns",
			len(d), len(x), len(y), tokens, rows, columns)
	}
	use := selected.Load()
	if use.err != nil {
		return fmt.Errorf("gradient of a weight: %w", use.err)
	}
	t.product.turned = true
	t.product.y, t.product.x, t.product.w, t.product.bias = y, d, x, nil
	return t.runProduct(ctx, alone, use.kernel, rows, tokens, columns)
}

// runProduct computes the thread's product, whose operands are set; below that many multiply-adds, alone, by itself.
func (t *Thread) runProduct(ctx context.Context, alone float64, k *kernel, rows, in, out int) error {
	p := &t.product
	p.kernel, p.rows, p.in, p.out = k, rows, in, out
	p.calls++
	p.wide = min(max(p.blocks()*p.stripes()/(projectPieces*t.pool.threads), 1), wideBlocks)
	err := t.share(ctx, p, p.groups()*p.stripes(), float64(rows)*float64(in)*float64(out) >= alone)
	if err != nil {
		err = fmt.Errorf("project: %w", err)
	} else if p.first != nil {
		err = p.first
	}
	// What belongs to the caller is not kept.
	p.y, p.x, p.w, p.bias, p.first = nil, nil, nil, nil, nil
	return err
}

// product is one Project, or one WeightGradient. A task is some blocks of columns, each of a page's width, for a stripe of
// rows.
type product struct {
	kernel        *kernel
	y, x, w, bias []float32
	turned        bool // x is [in, rows] and w [in, out]
	rows, in, out int
	wide          int    // blocks of a task
	calls         uint64 // so many before this one, and this

	mu    sync.Mutex
	first *ProjectionError
}

func (p *product) blocks() int { return (p.out + PageLen - 1) / PageLen }

// groups returns how many tasks a stripe has.
func (p *product) groups() int { return (p.blocks() + p.wide - 1) / p.wide }

func (p *product) stripes() int { return (p.rows + projectRows - 1) / projectRows }

func (p *product) task(ctx context.Context, t *Thread, i int) error {
	row, column := i/p.groups()*projectRows, i%p.groups()*p.wide*PageLen
	n, columns := min(p.rows-row, projectRows), min(p.out-column, p.wide*PageLen)
	l := &t.tile
	l.kernel = p.kernel
	l.w, l.s = growAligned(l.w, projectDepth*PageLen), growAligned(l.s, p.wide*n*PageLen)
	if err := l.chainsOf(ctx, t, p, row, n, column, columns); err != nil {
		return err
	}
	for first := 0; first < columns; first += PageLen {
		for r := range n {
			dst := p.y[(row+r)*p.out+column+first:][:min(columns-first, PageLen)]
			for j, s := range l.s[first*n+r*PageLen:][:len(dst)] {
				switch {
				case p.bias != nil:
					s += p.bias[column+first+j]
				case p.turned:
					s += 0 // so that −0 never appears
				}
				if dst[j] = s; !finite(s) {
					p.fail(row+r, column+first+j, s)
				}
			}
		}
	}
	return nil
}

// fail keeps the error of the first element.
func (p *product) fail(row, column int, value float32) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.first == nil || row*p.out+column < p.first.Row*p.out+p.first.Column {
		p.first = &ProjectionError{Row: row, Column: column, Value: value}
	}
}

// stripe is some rows of x, of in elements each, as they are or by tiles: each [rows][depth] without gaps.
type stripe struct {
	x        []float32
	rows, in int
	tiled    bool
}

// tile returns columns [c, c + depth) of the rows, and how many elements apart these are.
func (s stripe) tile(c, depth int) (x []float32, stride int) {
	if s.tiled {
		return s.x[s.rows*c:], depth
	}
	return s.x[c:], s.in
}

// tile is one thread's room: a tile of w, transposed to [depth][64] as a page holds keys, chains s [blocks][rows][64], and a
// stripe of x by tiles, that of a call and a first row.
type tile struct {
	kernel  *kernel
	w, s, x []float32
	turned  []float32 // [rows][64]
	product *product
	call    uint64
	row     int
	ahead   asks // the argument of scores
}

// pack returns n rows of x from row on, by tiles: where in is a power of two, the rows of a tile would otherwise share a few
// sets of the caches, and every task would fetch them from memory anew.
func (l *tile) pack(p *product, row, n int) stripe {
	if l.product != p || l.call != p.calls || l.row != row {
		l.product, l.call, l.row = p, p.calls, row
		l.x = growAligned(l.x, n*p.in)
		to := l.x
		for c := 0; c < p.in; c += projectDepth {
			depth := min(projectDepth, p.in-c)
			for r := range n {
				copy(to[:depth], p.x[(row+r)*p.in+c:])
				to = to[depth:]
			}
		}
	}
	return stripe{x: l.x, rows: n, in: p.in, tiled: true}
}

// chainsOf sets s [blocks][rows][64] to n rows and so many columns of a product.
func (l *tile) chainsOf(ctx context.Context, t *Thread, p *product, row, n, column, columns int) error {
	if p.turned {
		return l.turnedChains(ctx, t, p, row, n, column, columns)
	}
	x := stripe{x: p.x[row*p.in:], rows: n, in: p.in}
	if p.kernel.vector != nil && p.blocks() >= packBlocks && 4*n*p.in <= packBytes {
		x = l.pack(p, row, n)
	}
	return l.chains(ctx, t, x, p.w[column*p.in:], columns)
}

// turnedChains is chainsOf for operands that lie the other way round: x is transposed, and w is not.
func (l *tile) turnedChains(ctx context.Context, t *Thread, p *product, row, n, column, columns int) error {
	clear(l.s)
	if columns%PageLen != 0 {
		clear(l.w)
	}
	l.turned = growAligned(l.turned, n*PageLen)
	for c := 0; c < p.in; c += PageLen {
		depth := min(PageLen, p.in-c)
		l.turn(p.x[c*p.rows+row:], depth, p.rows, n)
		for first := 0; first < columns; first += PageLen {
			if err := ctx.Err(); err != nil {
				return err
			}
			width := min(columns-first, PageLen)
			for d := range depth {
				copy(l.w[d*PageLen:][:width], p.w[(c+d)*p.out+column+first:])
			}
			l.kernel.product(l.s[first*n:][:n*PageLen], l.turned, l.w, n, PageLen, depth, true)
			t.did(n*depth*PageLen, l.kernel)
		}
	}
	return nil
}

// turn sets turned [n][64] to columns of rows of x, which are stride elements apart.
func (l *tile) turn(x []float32, rows, stride, n int) {
	whole := n &^ 7
	if whole > 0 {
		l.kernel.turn(l.turned, x, rows, stride, whole)
	}
	for r := range rows {
		for i := whole; i < n; i++ {
			l.turned[i*PageLen+r] = x[r*stride+i]
		}
	}
}

// chains sets s [blocks][rows][64] to the products of x with the given number of rows of w.
func (l *tile) chains(ctx context.Context, t *Thread, x stripe, w []float32, columns int) error {
	n, in := x.rows, x.in
	clear(l.s)
	if columns%PageLen != 0 {
		clear(l.w)
	}
	for c := 0; c < in; c += projectDepth {
		depth := min(projectDepth, in-c)
		rows, stride := x.tile(c, depth)
		for first := 0; first < columns; first += PageLen {
			if err := ctx.Err(); err != nil {
				return err
			}
			l.transpose(w[first*in+c:], in, min(columns-first, PageLen), depth)
			s := l.s[first*n:][:n*PageLen]
			if v := l.kernel.vector; v != nil {
				next, from := first+PageLen, c
				if next >= columns {
					next, from = 0, c+projectDepth
				}
				var ahead *uintptr
				if from < in {
					ahead = l.prefetch(v, w[next*in+from:], in, n)
				}
				scores, _ := v.projects()
				scores(&s[0], &rows[0], (*byte)(unsafe.Pointer(&l.w[0])), 4*stride, depth, n, 1, ahead)
			} else {
				l.kernel.scores(s, rows, l.w, n, stride, depth)
			}
			t.did(n*depth*PageLen, l.kernel)
		}
	}
	return nil
}

// prefetch returns the argument of scores that prefetches the next tile of w, whose rows are in elements apart, while n rows
// of x are multiplied. It is nil if the kernel does not skip from row to row.
func (l *tile) prefetch(v *vector, w []float32, in, n int) *uintptr {
	most := v.tileRows[storageIndex(tensor.F32)]
	if most == 0 {
		return nil
	}
	_, streams := v.projects()
	for i := range streams {
		l.ahead[i] = uintptr(unsafe.Pointer(&w[0])) + uintptr(i*PageLen/streams*4*in)
	}
	l.ahead[streams], l.ahead[streams+1], l.ahead[streams+2] = uintptr((n+most-1)/most), uintptr(4*(in-projectDepth)), 0
	return &l.ahead[0]
}

// transpose sets the first columns of the tile [depth][64] to rows of w, which are in elements apart.
func (l *tile) transpose(w []float32, in, columns, depth int) {
	j, whole := 0, 0
	if v := l.kernel.vector; v != nil {
		whole = depth &^ 7
		for ; j+8 <= columns && whole > 0; j += 8 {
			v.transpose(&l.w[j], &w[j*in], 4*in, whole)
			l.transposeFrom(w, in, j, j+8, whole, depth)
		}
	}
	l.transposeFrom(w, in, j, columns, 0, depth)
}

// transposeFrom is transpose for the columns [j, end) and [from, depth) of them.
func (l *tile) transposeFrom(w []float32, in, j, end, from, depth int) {
	for ; j < end; j++ {
		for i, v := range w[j*in:][from:depth] {
			l.w[(from+i)*PageLen+j] = v
		}
	}
}
