package jobs

import (
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"slices"
	"time"

	"headwater.example/attention"
	"headwater.example/internal/kvcache"
	headwaterv1 "headwater.example/proto/headwater/v1"
	"headwater.example/worker/internal/machine"
)

// outputRows are the rows of w_o that the stream has sent for a problem: runs that do not overlap, in ascending order. A
// run does not change, so tasks may read it.
type outputRows []*outputRun

// outputRun is the rows [first, first + rows) of w_o.
type outputRun struct {
	first int
	matrix
	memory mapped
}

func (o outputRows) close(budget *kvcache.Budget) {
	for _, run := range o {
		run.memory.close(budget)
	}
}

// after returns the index of the first run that ends after a row.
func (o outputRows) after(row int) int {
	i, _ := slices.BinarySearchFunc(o, row, func(run *outputRun, row int) int { return cmp.Compare(run.first+run.rows, row+1) })
	return i
}

// outputWeights takes rows of w_o. Rows that are here already must be the same.
func (r *run) outputWeights(p *problem, m *headwaterv1.WeightBlock) error {
	in := p.outputIn()
	n := len(m.GetData()) / (4 * in)
	biases := 0
	if len(m.GetBias()) > 0 {
		biases = n
	}
	switch {
	case n < 1 || len(m.GetData()) != 4*n*in:
		return invalid("problem %d: w_o: %d bytes are not whole rows of %d elements", m.GetProblem(), len(m.GetData()), in)
	case int64(m.GetRow())+int64(n) > int64(p.projection.dModel):
		return invalid("problem %d: w_o: a block ends at row %d, d_model is %d", m.GetProblem(), int64(m.GetRow())+int64(n), p.projection.dModel)
	case len(m.GetBias()) != 4*biases:
		return invalid("problem %d: w_o: %d bytes of bias, %d rows need %d or none", m.GetProblem(), len(m.GetBias()), n, 4*n)
	}
	for row, end := int(m.GetRow()), int(m.GetRow())+n; row < end; {
		at := row - int(m.GetRow())
		i := p.output.after(row)
		stop := end
		if i < len(p.output) && p.output[i].first <= row {
			run := p.output[i]
			stop = min(end, run.first+run.rows)
			if !run.equal(row, m.GetData()[4*at*in:4*(at+stop-row)*in], part4(m.GetBias(), at, stop-row)) {
				return invalid("problem %d: w_o: rows %d to %d were sent before, with other values", m.GetProblem(), row, stop-1)
			}
			row = stop
			continue
		}
		if i < len(p.output) {
			stop = min(end, p.output[i].first)
		}
		run := &outputRun{first: row}
		h, err := r.mapMemory(4 * int64(stop-row) * int64(in+1))
		if err != nil {
			return r.exhausted(problemName(m.GetProblem()), "w_o", err)
		}
		run.memory = h
		run.matrix, _ = carve(h.arena.Floats(), "w_o", stop-row, in, biases > 0)
		p.output = slices.Insert(p.output, i, run) // from here on the end of the stream frees it
		what := fmt.Sprintf("problem %d: w_o from row %d", m.GetProblem(), row)
		if err := decode(what, run.w, m.GetData()[4*at*in:4*(at+stop-row)*in], false); err != nil {
			return err
		}
		if err := decode(what+": bias", run.bias, part4(m.GetBias(), at, stop-row), false); err != nil {
			return err
		}
		row = stop
	}
	return nil
}

// part4 returns n elements of 4 bytes from element at, or nothing of nothing.
func part4(p []byte, at, n int) []byte {
	if len(p) == 0 {
		return nil
	}
	return p[4*at : 4*(at+n)]
}

// equal says whether the run holds exactly these rows.
func (o *outputRun) equal(row int, data, bias []byte) bool {
	at := row - o.first
	n := len(data) / (4 * o.in)
	if !same(o.w[at*o.in:(at+n)*o.in], data) {
		return false
	}
	if o.bias == nil {
		return len(bias) == 0
	}
	return same(o.bias[at:at+n], bias)
}

// same says whether x holds the bits of little-endian float32.
func same(x []float32, p []byte) bool {
	if len(p) != 4*len(x) {
		return false
	}
	for i, v := range x {
		if binary.LittleEndian.Uint32(p[4*i:]) != math.Float32bits(v) {
			return false
		}
	}
	return true
}

// problemName names a problem in errors.
type problemName uint32

func (n problemName) String() string { return fmt.Sprintf("problem %d", uint32(n)) }

// outputPiece is the part of a run that a block asks for.
type outputPiece struct {
	run      *outputRun
	from, to int // rows of the run
	column   int // of the answer
}

func (r *run) output(m *headwaterv1.OutputBlock) error {
	p, err := r.problem(m.GetProblem())
	if err != nil {
		return err
	}
	if p.projection == nil {
		return invalid("problem %d: it has no projection and no output", m.GetProblem())
	}
	in, count, first, rows := p.outputIn(), int(m.GetCount()), int(m.GetRow()), int(m.GetRows())
	what := fmt.Sprintf("problem %d output block %d", m.GetProblem(), m.GetBlock())
	switch {
	case count < 1 || int64(count) > int64(p.tokens):
		return invalid("%s: %d tokens are not in 1 to the problem's %d", what, count, p.tokens)
	case rows < 1 || first+rows > p.projection.dModel:
		return invalid("%s: rows from %d, %d of them, are not in d_model %d", what, first, rows, p.projection.dModel)
	case int64(len(m.GetContext())) != 4*int64(count)*int64(in):
		return invalid("%s: context has %d bytes, %d tokens need %d", what, len(m.GetContext()), count, 4*int64(count)*int64(in))
	case 4*int64(count)*int64(rows) > machine.MaxAnswerBytes:
		return invalid("%s: the answer for %d tokens exceeds a message of %d bytes", what, count, machine.MaxAnswerBytes)
	}
	var pieces []outputPiece
	for row, end := first, first+rows; row < end; {
		i := p.output.after(row)
		if i == len(p.output) || p.output[i].first > row {
			return misplaced("%s: worker %s does not hold row %d of w_o", what, r.m.Name, row)
		}
		run := p.output[i]
		stop := min(end, run.first+run.rows)
		pieces = append(pieces, outputPiece{run, row - run.first, stop - run.first, row - first})
		row = stop
	}
	// The answer is there as floats by piece, and as bytes.
	size := 4*int64(count)*int64(in) + 8*int64(count)*int64(rows)
	if err := r.launch(size); err != nil {
		return r.exhausted(problemName(m.GetProblem()), "output block", err)
	}
	x := make([]float32, count*in)
	if err := decode(what+": context", x, m.GetContext(), false); err != nil {
		r.land(size)
		return err
	}
	m.Context = nil
	return r.spawn(func() error {
		memory, err := r.room(4 * int64(count) * int64(rows))
		if err != nil {
			return err
		}
		y := memory.Bytes()
		took, err := r.outputs(y, x, pieces, count, rows)
		var bad *attention.ProjectionError
		if p.gradients != nil && errors.As(err, &bad) {
			err = &elementError{"d_x", -1, int(m.GetStart()) + bad.Row, first + bad.Column}
		}
		if err != nil {
			memory.Free()
			return fmt.Errorf("%s: %w", what, err)
		}
		return r.answer(&headwaterv1.RunResponse{Response: &headwaterv1.RunResponse_Output{Output: &headwaterv1.Output{
			Problem: m.GetProblem(), Block: m.GetBlock(), Row: m.GetRow(), Y: y, ComputeNanos: took,
		}}}, memory)
	}, func() { r.land(size) })
}

// outputs projects count rows of x by each piece, into little-endian y [count, rows].
func (r *run) outputs(y []byte, x []float32, pieces []outputPiece, count, rows int) (took uint64, err error) {
	for _, pc := range pieces {
		in, n := pc.run.in, pc.to-pc.from
		part := make([]float32, count*n)
		var bias []float32
		if pc.run.bias != nil {
			bias = pc.run.bias[pc.from:pc.to]
		}
		err := r.m.Use(r.ctx, attention.Background, r.turn(int64(count)*int64(in)*int64(n)), func(thread *attention.Thread) error {
			started := time.Now()
			err := thread.Project(r.ctx, part, x, pc.run.w[pc.from*in:pc.to*in], bias, count, in, n)
			took += machine.Nanos(started.Add(thread.Waited()), time.Now())
			return err
		})
		var bad *attention.ProjectionError
		if errors.As(err, &bad) {
			bad.Column += pc.column
		}
		if err != nil {
			return 0, err
		}
		for t := range count {
			to := y[4*(t*rows+pc.column):]
			for j, v := range part[t*n : (t+1)*n] {
				binary.LittleEndian.PutUint32(to[4*j:], math.Float32bits(v))
			}
		}
	}
	return took, nil
}
