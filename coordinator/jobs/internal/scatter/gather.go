package scatter

import (
	"encoding/binary"
	"fmt"
	"io"
	"math"
)

// openBlocks is how many blocks of rows are assembled in memory at once. Workers go through the blocks in the same order, so
// few are open at a time; where one worker lags far behind, the others' pieces are written row by row instead.
const openBlocks = 16

// output is one tensor of the result, [rows, width] in f32, that arrives in pieces of some rows and some columns.
type output struct {
	offset int64 // of the tensor in the file
	width  int   // elements of a row
}

// blockKey names a block of rows of one tensor.
type blockKey struct{ tensor, block int }

// assembly is a block of rows that is being put together.
type assembly struct {
	start, count int
	data         []byte
	pieces       []columns
	have         int // columns that came
}

type columns struct{ from, to int }

// gatherer writes pieces of rows into the result file: whole blocks of rows in one write where all their pieces come in time.
type gatherer struct {
	file    io.WriterAt
	tensors []output
	open    map[blockKey]*assembly
	order   []blockKey // oldest first
	free    [][][]byte // by tensor: buffers to use again
}

func newGatherer(file io.WriterAt, tensors []output) *gatherer {
	return &gatherer{file: file, tensors: tensors, open: map[blockKey]*assembly{}, free: make([][][]byte, len(tensors))}
}

// put takes columns [from, to) of rows [start, start+count), data [count, to-from]. The caller sees to it that each piece
// comes once.
func (g *gatherer) put(tensor, block, start, count, from, to int, data []float32) error {
	t := g.tensors[tensor]
	if len(data) != count*(to-from) {
		return fmt.Errorf("piece of %d rows and %d columns holds %d elements", count, to-from, len(data))
	}
	key := blockKey{tensor, block}
	a := g.open[key]
	if a == nil {
		if len(g.order) == openBlocks {
			if err := g.flush(g.order[0]); err != nil {
				return err
			}
		}
		a = &assembly{start: start, count: count, data: g.buffer(tensor, count*t.width*4)}
		g.open[key] = a
		g.order = append(g.order, key)
	}
	for r := range count {
		row := a.data[(r*t.width+from)*4 : (r*t.width+to)*4]
		for i, v := range data[r*(to-from) : (r+1)*(to-from)] {
			binary.LittleEndian.PutUint32(row[4*i:], math.Float32bits(v))
		}
	}
	a.pieces = append(a.pieces, columns{from, to})
	if a.have += to - from; a.have == t.width {
		return g.flush(key)
	}
	return nil
}

// finish writes what is still in memory.
func (g *gatherer) finish() error {
	for len(g.order) > 0 {
		if err := g.flush(g.order[0]); err != nil {
			return err
		}
	}
	return nil
}

func (g *gatherer) flush(key blockKey) error {
	a, t := g.open[key], g.tensors[key.tensor]
	delete(g.open, key)
	for i, k := range g.order {
		if k == key {
			g.order = append(g.order[:i], g.order[i+1:]...)
			break
		}
	}
	g.free[key.tensor] = append(g.free[key.tensor], a.data)
	at := func(row, column int) int64 { return t.offset + 4*(int64(row)*int64(t.width)+int64(column)) }
	if a.have == t.width {
		if _, err := g.file.WriteAt(a.data, at(a.start, 0)); err != nil {
			return fmt.Errorf("write result: %w", err)
		}
		return nil
	}
	for r := range a.count {
		for _, c := range a.pieces {
			if _, err := g.file.WriteAt(a.data[(r*t.width+c.from)*4:(r*t.width+c.to)*4], at(a.start+r, c.from)); err != nil {
				return fmt.Errorf("write result: %w", err)
			}
		}
	}
	return nil
}

func (g *gatherer) buffer(tensor, n int) []byte {
	free := g.free[tensor]
	if last := len(free) - 1; last >= 0 && cap(free[last]) >= n {
		g.free[tensor] = free[:last]
		return free[last][:n]
	}
	return make([]byte, n)
}
