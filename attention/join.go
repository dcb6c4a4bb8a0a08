package attention

import "fmt"

// SplitLen is how many positions a split has, SplitPages pages: split s is [2048s, 2048s+2048).
const SplitLen = 2048

var _ = [1]struct{}{}[SplitLen-SplitPages*PageLen] // one can't be changed without the other

// Part is what the rows of a query have of one split, before it is brought together with the others: the largest score m of each
// row, the sum l of exp(score − m), and o, the sum of the values so weighted. Where a row sees nothing of the split, m is −Inf and o
// is 0; l is 0 then, or 1 if the row sees something there and all of its scores overflow to −Inf.
type Part struct {
	M, L []float32 // [Tokens, Heads]
	O    []float32 // [Tokens, Heads, v_dim]
}

// Apart asks a call for the parts of some splits, in the place of a context: for who has the other splits elsewhere. Join makes the
// context of the parts of all splits.
type Apart struct {
	First, Step int // the splits First, First + Step, First + 2·Step and so on
	Parts       []Part
}

// check refuses parts that are not of the query's shape.
func (c *call) checkApart() error {
	a, rows := c.apart, c.rows()
	if a.First < 0 || a.Step < 1 || len(a.Parts) > 0 && a.First+(len(a.Parts)-1)*a.Step >= c.splits() {
		return fmt.Errorf("%d splits from %d on, each %d after the one before, of %d", len(a.Parts), a.First, a.Step, c.splits())
	}
	for _, p := range a.Parts {
		if len(p.M) != rows || len(p.L) != rows || len(p.O) != rows*c.kv.Layout.vDim {
			return fmt.Errorf("room for a part of %d, %d and %d elements, not of %d rows of v_dim %d", len(p.M), len(p.L), len(p.O), rows, c.kv.Layout.vDim)
		}
	}
	return nil
}

// leave leaves what the block's rows see in the i-th of the splits that are asked for.
func (b *block) leave(part parts, i int) {
	to, split, vDim := &b.apart.Parts[i], b.apart.First+i*b.apart.Step, b.kv.Layout.vDim
	copy(to.M[b.first:], part.m)
	for r := range b.n {
		o := to.O[(b.first+r)*vDim:][:vDim]
		if part.m[r] != negInf {
			to.L[b.first+r] = part.l[r]
			copy(o, part.row(r))
			continue
		}
		clear(o)
		if to.L[b.first+r] = 0; b.seesAny(r, split*SplitLen, (split+1)*SplitLen) {
			to.L[b.first+r] = 1
		}
	}
}

// Joiner makes contexts of parts. It keeps its memory from call to call. It is used by one caller at a time.
type Joiner struct {
	total, next parts
	a, b, o     []float32
}

// joinRows is how many rows are joined at once.
const joinRows = 64

// Join writes the context and LSE of the rows of a query of that shape, of which only Tokens, Heads and FirstHead count. Splits has
// the parts of every split that a row sees, ascending, and sinks are Options.Sinks. The bits are those of Attend. A row that has no
// finite answer is a *RowError, and then out holds nothing of use.
func (j *Joiner) Join(splits []Part, q Query, vDim int, sinks []float32, out Output) error {
	in := selected.Load()
	if in.err != nil {
		return fmt.Errorf("join: %w", in.err)
	}
	rows := q.Tokens * q.Heads
	if q.Tokens < 1 || q.Heads < 1 || vDim < 1 || len(out.Context) != rows*vDim || len(out.LSE) != rows || len(sinks) != 0 && len(sinks) < q.FirstHead+q.Heads {
		return fmt.Errorf("join: room for %d elements of context and %d of LSE, and %d sinks, for %d tokens × %d heads × v_dim %d", len(out.Context), len(out.LSE), len(sinks), q.Tokens, q.Heads, vDim)
	}
	for s, p := range splits {
		if len(p.M) != rows || len(p.L) != rows || len(p.O) != rows*vDim {
			return fmt.Errorf("join: part %d has %d, %d and %d elements, not %d rows of v_dim %d", s, len(p.M), len(p.L), len(p.O), rows, vDim)
		}
	}
	n := min(rows, joinRows)
	j.total.grow(n, vDim)
	j.next.grow(n, vDim)
	j.a, j.b, j.o = growAligned(j.a, padded(n)), growAligned(j.b, padded(n)), growAligned(j.o, vDim)
	for first := 0; first < rows; first += joinRows {
		if err := j.rows(in.kernel, splits, &q, first, min(joinRows, rows-first), vDim, sinks, out); err != nil {
			return err
		}
	}
	return nil
}

// rows joins the rows [first, first+n).
func (j *Joiner) rows(k *kernel, splits []Part, q *Query, first, n, vDim int, sinks []float32, out Output) error {
	total := j.total.of(0, n)
	total.clear()
	pads := vDim%vectorLen != 0 || n%vectorLen != 0 // assembly takes whole vectors
	for _, p := range splits {
		next := parts{m: p.M[first:][:n], l: p.L[first:][:n], o: p.O[first*vDim:][:n*vDim], stride: vDim}
		if pads {
			next = j.padded(next)
		}
		if v := k.vector; v != nil {
			v.mergeParts(total, next, j.a, j.b)
		} else {
			total.mergeAll(k, next)
		}
	}
	for r := range n {
		row := first + r
		head := q.FirstHead + row%q.Heads
		rule := ""
		if total.m[r] == negInf && overflowed(splits, row) {
			rule = overflows
		} else {
			rule = total.end(k, r, head, sinks, j.o, out.Context[row*vDim:][:vDim])
		}
		if rule != "" {
			return &RowError{Head: head, Token: row / q.Heads, Rule: rule}
		}
	}
	total.logSums(k, j.a[:n])
	copy(out.LSE[first:], j.a[:n])
	return nil
}

// padded returns a copy of parts with the padding that assembly takes.
func (j *Joiner) padded(p parts) parts {
	n := len(p.m)
	next := j.next.of(0, n)
	copy(next.m, p.m)
	copy(next.l, p.l)
	for r := range n {
		copy(next.row(r), p.row(r))
	}
	return next
}

// overflowed tells whether a row sees something in one of the splits.
func overflowed(splits []Part, row int) bool {
	for _, p := range splits {
		if p.L[row] != 0 {
			return true
		}
	}
	return false
}
