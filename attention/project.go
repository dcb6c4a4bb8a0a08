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
// element one chain of fma over in ascending, begun at +0, then the sum with the bias. The bits do not depend on
// threads, nor on how many rows are projected at once. Errors are those of ctx, looked at between tiles, wrapped, or a
// *ProjectionError for the first element that is not finite; after one y holds nothing of use.
func Project(ctx context.Context, threads int, y, x, w, bias []float32, rows, in, out int) error {
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
	blocks, stripes := (out+PageLen-1)/PageLen, (rows+projectRows-1)/projectRows
	threads = min(max(threads, 1), max(blocks*stripes, 1))
	rooms := make([]*projection, threads)
	var mu sync.Mutex
	var first *ProjectionError
	err := share(ctx, threads, blocks*stripes, func(thread, task int) error {
		if rooms[thread] == nil {
			rooms[thread] = &projection{
				kernel: use.kernel,
				tile:   aligned(min(in, projectDepth) * PageLen), s: aligned(min(rows, projectRows) * PageLen),
			}
		}
		row, column := task/blocks*projectRows, task%blocks*PageLen
		p := rooms[thread]
		n, columns := min(rows-row, projectRows), min(out-column, PageLen)
		if err := p.chains(ctx, x[row*in:], w[column*in:], n, in, columns); err != nil {
			return err
		}
		for r := range n {
			dst := y[(row+r)*out+column:][:columns]
			for j, s := range p.s[r*PageLen:][:columns] {
				if bias != nil {
					s += bias[column+j]
				}
				if dst[j] = s; !finite(s) {
					mu.Lock()
					if first == nil || (row+r)*out+column+j < first.Row*out+first.Column {
						first = &ProjectionError{Row: row + r, Column: column + j, Value: s}
					}
					mu.Unlock()
				}
			}
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("project: %w", err)
	}
	if first != nil {
		return first
	}
	return nil
}

// projection is one thread's room: a tile of w, transposed to [depth][64] as a page holds keys, and chains [rows][64].
type projection struct {
	kernel  *kernel
	tile, s []float32
}

// chains sets s [n][64] to the products of n rows of x with the given number of rows of w.
func (p *projection) chains(ctx context.Context, x, w []float32, n, in, columns int) error {
	clear(p.s[:n*PageLen])
	if columns < PageLen {
		clear(p.tile)
	}
	for c := 0; c < in; c += projectDepth {
		if err := ctx.Err(); err != nil {
			return err
		}
		depth := min(projectDepth, in-c)
		p.pack(w[c:], in, columns, depth)
		if v := p.kernel.vector; v != nil {
			v.scores[storageIndex(tensor.F32)](&p.s[0], &x[c], (*byte)(unsafe.Pointer(&p.tile[0])), 4*in, depth, n, 1, 0)
		} else {
			p.kernel.scores(p.s, x[c:], p.tile, n, in, depth)
		}
	}
	return nil
}

// pack sets the first columns of the tile [depth][64] to rows of w, which are in elements apart.
func (p *projection) pack(w []float32, in, columns, depth int) {
	j, whole := 0, 0
	if v := p.kernel.vector; v != nil {
		whole = depth &^ 7
		for ; j+8 <= columns && whole > 0; j += 8 {
			v.transpose(&p.tile[j], &w[j*in], 4*in, whole)
			p.packFrom(w, in, j, j+8, whole, depth)
		}
	}
	p.packFrom(w, in, j, columns, 0, depth)
}

// packFrom is pack for the columns [j, end) and [from, depth) of them.
func (p *projection) packFrom(w []float32, in, j, end, from, depth int) {
	for ; j < end; j++ {
		for i, v := range w[j*in:][from:depth] {
			p.tile[(from+i)*PageLen+j] = v
		}
	}
}
