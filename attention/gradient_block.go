package attention

import (
	"context"
	"fmt"
)

// gradientRows is how many rows go through a page at a time: a tile of weights is then as high as it is wide, and its
// transpose has the same shape.
const gradientRows = PageLen

// gradientRoom is one thread's room to work on a block of tokens.
type gradientRoom struct {
	block
	dots   []float32 // D of each row of the block
	q, dC  []float32 // the block's rows in panels: [qPanels][rows][64] and [vPanels][rows][64]
	dK, dV []float32 // the block's part of a page: [qPanels][64][64] and [vPanels][64][64]
	// Tiles [64 rows][64 positions], but the transposed ones.
	s, dS, raw []float32
	turned     []float32
}

func (r *gradientRoom) enter(t *Thread, g *gradient) {
	r.thread, r.call = t, &g.call
	rows := g.blockRows()
	r.low, r.end, r.visibleBits = grow(r.low, rows), grow(r.end, rows), grow(r.visibleBits, padded(rows))
	r.dots = growAligned(r.dots, padded(rows))
	r.q, r.dC = growAligned(r.q, g.qPanels*rows*PageLen), growAligned(r.dC, g.vPanels*rows*PageLen)
	r.dK, r.dV = growAligned(r.dK, g.qPanels*PageLen*PageLen), growAligned(r.dV, g.vPanels*PageLen*PageLen)
	for _, tile := range []*[]float32{&r.s, &r.dS, &r.raw, &r.turned} {
		*tile = growAligned(*tile, gradientRows*PageLen)
	}
}

// enter takes the memory of an item, whose tasks go through so many pages.
func (g *gradient) enter(chunk int) {
	g.chunk = chunk
	pages := g.pages()
	g.k, g.kRows, g.v = make([][]float32, pages), make([][]float32, pages), make([][]float32, pages)
	g.dK, g.dV = aligned(pages*g.qPanels*PageLen*PageLen), aligned(pages*g.vPanels*PageLen*PageLen)
	g.part = make([][]float32, min(g.chunks(), g.tokenBlocks()))
	for i := range g.part {
		g.part[i] = aligned(g.blockRows() * g.qPanels * PageLen)
	}
	clear(g.to.Q)
	clear(g.to.Bias)
	clear(g.to.Sinks)
}

// leave drops the memory of an item.
func (g *gradient) leave() {
	g.k, g.kRows, g.v, g.dK, g.dV, g.part = nil, nil, nil, nil, nil, nil
}

// prepare widens a page and transposes what is needed the other way round. Positions from Len on hold anything.
func (g *gradient) prepare(page int) error {
	l, bytes := g.kv.Layout, g.kv.Pages[page]
	n := min(g.kv.Len-page*PageLen, PageLen)
	k := aligned(l.headDim * PageLen)
	if err := l.widenKeys(k, bytes); err != nil {
		return fmt.Errorf("read page %d: %w", page, err)
	}
	v := aligned(PageLen * l.vStride())
	if err := l.widenValues(v[:n*l.vStride()], bytes, n); err != nil {
		return fmt.Errorf("read page %d: %w", page, err)
	}
	g.k[page] = k
	g.kRows[page] = aligned(g.qPanels * PageLen * PageLen)
	for c := 0; c < l.headDim; c += PageLen {
		g.kernel.turn(g.kRows[page][c*PageLen:], k[c*PageLen:], min(l.headDim-c, PageLen), PageLen, PageLen)
	}
	g.v[page] = aligned(l.vStride() * PageLen)
	g.kernel.turn(g.v[page], v, n, l.vStride(), l.vStride())
	return nil
}

// step brings a block of tokens through a chunk of pages.
func (g *gradient) step(ctx context.Context, t *Thread, block, chunk int) error {
	r := &t.gradient
	r.enter(t, g)
	first := block * g.blockRows()
	r.cover(first, min(g.blockRows(), g.rows()-first))
	part := g.part[block%len(g.part)]
	if chunk == 0 {
		clear(part)
	}
	from, to := max(chunk*g.chunk, r.lo/PageLen), min((chunk+1)*g.chunk, pagesOf(r.hi))
	if from < to || chunk == 0 {
		r.load(g, chunk == 0)
	}
	for page := from; page < to; page++ {
		if err := ctx.Err(); err != nil {
			return err
		}
		if page%SplitPages == 0 {
			g.endSplit(r.first, r.n, part)
		}
		r.page(g, page, part)
	}
	if chunk == g.chunks()-1 {
		g.endSplit(r.first, r.n, part)
		g.finishRows(r.first, r.n)
	}
	return nil
}

// load takes up the rows of the block. Where the block begins, it adds what its tokens give to the gradients of sinks.
func (r *gradientRoom) load(g *gradient, begins bool) {
	l, heads := g.kv.Layout, g.q.Heads
	dC := g.dContext[r.first*l.vDim:][:r.n*l.vDim]
	toPanels(r.q, g.q.Q[r.first*l.headDim:][:r.n*l.headDim], r.n, l.headDim)
	toPanels(r.dC, dC, r.n, l.vDim)
	g.kernel.rowDots(r.dots, dC, g.out.Context[r.first*l.vDim:], r.n, l.vDim)
	if !begins || g.to.Sinks == nil {
		return
	}
	for i, d := range r.dots[:r.n] {
		head := (r.first + i) % heads
		share := exp32(g.opts.Sinks[g.q.FirstHead+head] - g.out.LSE[r.first+i])
		g.to.Sinks[head] = fma32(-share, d, g.to.Sinks[head])
	}
}

// toPanels copies rows [n][dim] to panels [panels][n][64], whose padding is 0.
func toPanels(dst, src []float32, n, dim int) {
	for c := 0; c < dim; c += PageLen {
		width := min(dim-c, PageLen)
		for row := range n {
			to := dst[(c*n + row*PageLen):][:PageLen]
			copy(to, src[row*dim+c:][:width])
			clear(to[width:])
		}
	}
}

// page adds what the block's rows have of a page to part, their share of d_q, and to d_k and d_v.
func (r *gradientRoom) page(g *gradient, page int, part []float32) {
	l, base := g.kv.Layout, page*PageLen
	began := false
	for row := 0; row < r.n; row += gradientRows {
		n := min(gradientRows, r.n-row)
		seen := r.tile(g, page, row, n)
		if seen == 0 {
			continue
		}
		width := g.qPanels * PageLen
		for p := range g.qPanels {
			g.kernel.addRows(part[row*width+p*PageLen:], r.dS, g.kRows[page][p*PageLen*PageLen:], width, n, seen)
		}
		g.kernel.turn(r.turned, r.s, n, PageLen, PageLen)
		for p := range g.vPanels {
			g.kernel.product(r.dV[p*PageLen*PageLen:], r.turned, r.dC[(p*r.n+row)*PageLen:], PageLen, PageLen, n, began)
		}
		g.kernel.turn(r.turned, r.dS, n, PageLen, PageLen)
		for p := range g.qPanels {
			g.kernel.product(r.dK[p*PageLen*PageLen:], r.turned, r.q[(p*r.n+row)*PageLen:], PageLen, PageLen, n, began)
		}
		began = true
		r.thread.did(n*PageLen*(3*l.headDim+2*l.vDim), g.kernel)
	}
	if began {
		g.kernel.add(g.dK[base*g.qPanels*PageLen:][:len(r.dK)], r.dK)
		g.kernel.add(g.dV[base*g.vPanels*PageLen:][:len(r.dV)], r.dV)
	}
}

// tile makes the weights s and the derivatives of the scores' products dS of rows [row, row+n) of the block in a page. It
// returns the positions that any of them sees.
func (r *gradientRoom) tile(g *gradient, page, row, n int) (seen uint64) {
	l, base, k := g.kv.Layout, page*PageLen, g.kernel
	rows := false
	for i := row; i < row+n; i++ {
		rows = rows || r.sees(i, base)
	}
	if !rows {
		return 0
	}
	first := r.first + row
	k.product(r.s, g.q.Q[first*l.headDim:], g.k[page], n, l.headDim, l.headDim, false)
	k.product(r.dS, g.dContext[first*l.vDim:], g.v[page], n, l.vDim, l.vDim, false)
	capped := g.opts.Softcap != 0
	if capped {
		copy(r.raw, r.s[:n*PageLen])
	}
	scale := r.scoresOf(base, row, n)
	visible := r.visibleBits[row:][:n]
	for _, bits := range visible {
		seen |= bits
	}
	if seen == 0 {
		return 0
	}
	if k.weigh(r.s, r.dS, scale, g.out.LSE[first:], r.dots[row:], visible) {
		r.above(g, page, row, n)
	}
	if g.to.Bias != nil {
		r.bias(g, base, row, visible)
	}
	if capped {
		k.soften(r.dS, r.raw, g.opts.Scale, g.opts.Softcap, visible)
	}
	return seen
}

// scoresOf sets the visible bits of rows [row, row+n) in the page at base, and makes scores of their products q·k but for
// the factor that it returns.
func (r *gradientRoom) scoresOf(base, row, n int) (scale float32) {
	for i := row; i < row+n; i++ {
		r.visibleBits[i] = 0
		if lo, hi := max(r.low[i]-base, 0), min(r.end[i]-base, PageLen); lo < hi {
			r.visibleBits[i] = span(lo, hi)
		}
	}
	if r.plain(base) {
		return r.opts.Scale
	}
	for i := row; i < row+n; i++ {
		if r.visibleBits[i] == 0 {
			continue
		}
		s := (*[PageLen]float32)(r.s[(i-row)*PageLen:])
		if r.kernel.vector != nil {
			r.adjust(&s[0], nil, i, base)
			continue
		}
		lo, hi := max(r.low[i]-base, 0), min(r.end[i]-base, PageLen)
		r.scores(s, i, base, lo, hi)
		r.visibleBits[i] &^= r.hidden(i, base, lo, hi)
	}
	return 1
}

// hidden returns the positions among [lo, hi) of the page at base that mask or bias hide from row i.
func (b *block) hidden(i, base, lo, hi int) (bits uint64) {
	token, head := (b.first+i)/b.q.Heads, (b.first+i)%b.q.Heads
	for t := lo; t < hi; t++ {
		at := base + t
		if b.q.BiasHeads != 0 && b.q.Bias[b.at(b.q.BiasHeads, head, token, b.kv.Len)+at] == negInf ||
			b.q.MaskHeads != 0 && at >= b.q.MaskFrom && b.q.Mask[b.at(b.q.MaskHeads, head, token, b.kv.Len-b.q.MaskFrom)+at-b.q.MaskFrom] == 0 {
			bits |= 1 << t
		}
	}
	return bits
}

// above finds which of the rows [row, row+n) has a score above its LSE in that page.
func (r *gradientRoom) above(g *gradient, page, row, n int) {
	l, first := g.kv.Layout, r.first+row
	g.kernel.product(r.raw, g.q.Q[first*l.headDim:], g.k[page], n, l.headDim, l.headDim, false)
	for i := range n {
		s := (*[PageLen]float32)(r.raw[i*PageLen:])
		base := page * PageLen
		lo, hi := max(r.low[row+i]-base, 0), min(r.end[row+i]-base, PageLen)
		if lo >= hi {
			continue
		}
		r.scores(s, row+i, base, lo, hi)
		lse, hidden := g.out.LSE[first+i], r.hidden(row+i, base, lo, hi)
		for t := lo; t < hi; t++ {
			if hidden&(1<<t) == 0 && s[t] > lse {
				token, head := (first+i)/g.q.Heads, g.q.FirstHead+(first+i)%g.q.Heads
				g.fail(first+i, &RowError{Head: head, Token: token, Rule: fmt.Sprintf("its LSE %g is below a score, %g: it is not of these queries and keys", lse, s[t])})
				break
			}
		}
	}
}

// bias adds the derivatives of the scores of rows from row on to that of the bias, the heads of a token ascending.
func (r *gradientRoom) bias(g *gradient, base, row int, visible []uint64) {
	for i, bits := range visible {
		token, head := (r.first+row+i)/g.q.Heads, (r.first+row+i)%g.q.Heads
		at := r.at(g.q.BiasHeads, head, token, g.kv.Len) + base
		for t := range min(PageLen, g.kv.Len-base) {
			if bits&(1<<t) != 0 {
				g.to.Bias[at+t] += r.dS[i*PageLen+t]
			}
		}
	}
}

// endSplit adds what rows [first, first+n) have of a split to their d_q, and begins the next.
func (g *gradient) endSplit(first, n int, part []float32) {
	dim, width := g.kv.Layout.headDim, g.qPanels*PageLen
	for row := range n {
		to, from := g.to.Q[(first+row)*dim:][:dim], part[row*width:][:dim]
		for c, x := range from {
			to[c] += x
		}
	}
	clear(part)
}

// finishRows makes d_q of the sums of rows [first, first+n).
func (g *gradient) finishRows(first, n int) {
	dim, at := g.kv.Layout.headDim, first*g.kv.Layout.headDim
	if bad := finishSums(g.to.Q[at:][:n*dim], g.to.Q[at:], g.opts.Scale); bad >= 0 {
		row := first + bad/dim
		g.failElement(ofQ, at+bad, &GradientError{Tensor: "d_q", Head: g.q.FirstHead + row%g.q.Heads, Row: row / g.q.Heads, Column: bad % dim})
	}
}

// finishSums sets dst to the sums, times scale, without −0. It returns the first element that is not finite, or −1.
func finishSums(dst, sums []float32, scale float32) (bad int) {
	bad = -1
	for i, x := range sums[:len(dst)] {
		y := float32(x*scale) + 0
		if dst[i] = y; bad < 0 && !finite(y) {
			bad = i
		}
	}
	return bad
}

// finish makes d_k and d_v of their sums, and looks at d_bias and d_sinks.
func (g *gradient) finish() {
	l := g.kv.Layout
	group := g.q.FirstHead / g.q.Heads
	for t := range g.kv.Len {
		for _, of := range []struct {
			order       int
			name        string
			to, sums    []float32
			dim, panels int
			scale       float32
		}{{ofK, "d_k", g.to.K, g.dK, l.headDim, g.qPanels, g.opts.Scale}, {ofV, "d_v", g.to.V, g.dV, l.vDim, g.vPanels, 1}} {
			for c := 0; c < of.dim; c += PageLen {
				sums := of.sums[(t/PageLen*of.panels+c/PageLen)*PageLen*PageLen+t%PageLen*PageLen:]
				at := t*of.dim + c
				if bad := finishSums(of.to[at:][:min(of.dim-c, PageLen)], sums, of.scale); bad >= 0 {
					g.failElement(of.order, at+bad, &GradientError{Tensor: of.name, Head: group, Row: t, Column: c + bad})
				}
			}
		}
	}
	if bad := finishSums(g.to.Bias, g.to.Bias, 1); bad >= 0 {
		row := bad / g.kv.Len
		g.failElement(ofBias, bad, &GradientError{Tensor: "d_bias", Head: g.q.FirstHead + row/g.q.Tokens, Row: row % g.q.Tokens, Column: bad % g.kv.Len})
	}
	if bad := finishSums(g.to.Sinks, g.to.Sinks, 1); bad >= 0 {
		g.failElement(ofSinks, bad, &GradientError{Tensor: "d_sinks", Head: g.q.FirstHead + bad})
	}
}
