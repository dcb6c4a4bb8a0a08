package attention

import (
	"context"
	"fmt"
	"sync"
	"unsafe"

	"headwater/tensor"
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
	projectRows  = 512
	projectDepth = 128
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
	p := &t.product
	p.kernel, p.y, p.x, p.w, p.bias, p.rows, p.in, p.out = use.kernel, y, x, w, bias, rows, in, out
	err := t.share(ctx, p, p.blocks()*p.stripes(), float64(rows)*float64(in)*float64(out) >= alone)
	if err != nil {
		err = fmt.Errorf("project: %w", err)
	} else if p.first != nil {
		err = p.first
	}
	// What belongs to the caller is not kept.
	p.y, p.x, p.w, p.bias, p.first = nil, nil, nil, nil, nil
	return err
}

// product is one Project. A task is the columns of a page's width for a stripe of rows.
type product struct {
	kernel        *kernel
	y, x, w, bias []float32
	rows, in, out int

	mu    sync.Mutex
	first *ProjectionError
}

func (p *product) blocks() int { return (p.out + PageLen - 1) / PageLen }

func (p *product) stripes() int { return (p.rows + projectRows - 1) / projectRows }

func (p *product) task(ctx context.Context, t *Thread, i int) error {
	row, column := i/p.blocks()*projectRows, i%p.blocks()*PageLen
	n, columns := min(p.rows-row, projectRows), min(p.out-column, PageLen)
	l := &t.tile
	l.kernel = p.kernel
	l.w, l.s = growAligned(l.w, projectDepth*PageLen), growAligned(l.s, n*PageLen)
	if err := l.chains(ctx, t, p.x[row*p.in:], p.w[column*p.in:], n, p.in, columns); err != nil {
		return err
	}
	for r := range n {
		dst := p.y[(row+r)*p.out+column:][:columns]
		for j, s := range l.s[r*PageLen:][:columns] {
			if p.bias != nil {
				s += p.bias[column+j]
			}
			if dst[j] = s; !finite(s) {
				p.fail(row+r, column+j, s)
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

// tile is one thread's room: a tile of w, transposed to [depth][64] as a page holds keys, and chains s [rows][64].
type tile struct {
	kernel *kernel
	w, s   []float32
}

// chains sets s [n][64] to the products of n rows of x with the given number of rows of w.
func (l *tile) chains(ctx context.Context, t *Thread, x, w []float32, n, in, columns int) error {
	clear(l.s[:n*PageLen])
	if columns < PageLen {
		clear(l.w)
	}
	for c := 0; c < in; c += projectDepth {
		if err := ctx.Err(); err != nil {
			return err
		}
		depth := min(projectDepth, in-c)
		l.pack(w[c:], in, columns, depth)
		if v := l.kernel.vector; v != nil {
			v.scores[storageIndex(tensor.F32)](&l.s[0], &x[c], (*byte)(unsafe.Pointer(&l.w[0])), 4*in, depth, n, 1, 0)
		} else {
			l.kernel.scores(l.s, x[c:], l.w, n, in, depth)
		}
		t.did(n*depth*PageLen, l.kernel)
	}
	return nil
}

// pack sets the first columns of the tile [depth][64] to rows of w, which are in elements apart.
func (l *tile) pack(w []float32, in, columns, depth int) {
	j, whole := 0, 0
	if v := l.kernel.vector; v != nil {
		whole = depth &^ 7
		for ; j+8 <= columns && whole > 0; j += 8 {
			v.transpose(&l.w[j], &w[j*in], 4*in, whole)
			l.packFrom(w, in, j, j+8, whole, depth)
		}
	}
	l.packFrom(w, in, j, columns, 0, depth)
}

// packFrom is pack for the columns [j, end) and [from, depth) of them.
func (l *tile) packFrom(w []float32, in, j, end, from, depth int) {
	for ; j < end; j++ {
		for i, v := range w[j*in:][from:depth] {
			l.w[(from+i)*PageLen+j] = v
		}
	}
}
