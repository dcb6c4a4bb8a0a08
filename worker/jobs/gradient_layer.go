package jobs

import (
	"context"
	"errors"
	"fmt"

	"headwater.example/attention"
	headwaterv1 "headwater.example/proto/headwater/v1"
)

// elementError says which element of a gradient of a whole layer is not finite.
type elementError struct {
	tensor      string
	head        int // −1 where the tensor belongs to no head
	row, column int // in the tensor; column is −1 where it has none
}

func (e *elementError) Error() string {
	text := e.tensor + ": "
	if e.head >= 0 {
		text += fmt.Sprintf("head %d, ", e.head)
	}
	text += fmt.Sprintf("row %d", e.row)
	if e.column >= 0 {
		text += fmt.Sprintf(", column %d", e.column)
	}
	return text + ": is not finite"
}

// outputIn is how many elements a row of the output's weights has: those of w_o, or for gradients w_q, w_k and w_v turned
// round and side by side, which lead back to hidden states.
func (p *problem) outputIn() int {
	if p.gradients != nil {
		return p.Heads*p.HeadDim() + p.KVHeads*(p.HeadDim()+p.VDim())
	}
	return p.Heads * p.VDim()
}

// derivativesOfContexts makes d_context of d_y.
func (q *query) derivativesOfContexts(ctx context.Context, t *attention.Thread) error {
	p, w := q.problem, &q.shards[0].weights.context
	err := t.Project(ctx, q.lesson.dContext, q.lesson.dY, w.w, nil, q.count, w.in, w.rows)
	var bad *attention.ProjectionError
	if errors.As(err, &bad) {
		return &attention.GradientError{
			Tensor: "d_context", Head: q.firstHead() + bad.Column/p.VDim(), Row: bad.Row, Column: bad.Column % p.VDim(),
		}
	}
	return err
}

func (q *query) firstHead() int { return int(q.shards[0].id.Group) * q.problem.GroupSize() }

// unrotate turns the gradients of queries and keys back to those of what was rotated.
func (q *query) unrotate(dQ, dK []float32) error {
	p, pr := q.problem, q.problem.projection
	if pr.ropeDims == 0 {
		return nil
	}
	half, hd, size := pr.ropeDims/2, p.HeadDim(), p.GroupSize()
	err := attention.UnapplyRope(dQ, q.cos, q.sin, q.count, size, hd, pr.ropeDims, pr.interleaved)
	if err == nil {
		err = attention.UnapplyRope(dK, q.cos[:p.kvLen*half], q.sin[:p.kvLen*half], p.kvLen, 1, hd, pr.ropeDims, pr.interleaved)
	}
	if err != nil {
		return fmt.Errorf("rotate gradients: %w", err)
	}
	if i := notFinite(dQ); i >= 0 {
		return &attention.GradientError{Tensor: "d_q", Head: q.firstHead() + i/hd%size, Row: i / hd / size, Column: i % hd}
	}
	if i := notFinite(dK); i >= 0 {
		return &attention.GradientError{Tensor: "d_k", Head: int(q.shards[0].id.Group), Row: i / hd, Column: i % hd}
	}
	return nil
}

// weightPart is a group's part of a weight [rows, columns], whose gradient is dᵀ·x.
type weightPart struct {
	name    string    // q, k, v or o
	d, x    []float32 // [tokens, rows] and [tokens, columns]
	tokens  int
	rows    int
	columns int
	biased  bool

	row, column int // of the whole weight, where the part begins
	size        int // of a head: rows, and of w_o columns
}

// element names an element of the part's gradient, or of that of its bias, where column is −1.
func (w *weightPart) element(row, column int) *elementError {
	row += w.row
	e := &elementError{"d_w_" + w.name, row / w.size, row, w.column + column}
	switch {
	case w.name == "o" && column < 0:
		e.tensor, e.head, e.column = "d_b_o", -1, -1
	case w.name == "o":
		e.head = e.column / w.size
	case column < 0:
		e.tensor, e.column = "d_b_"+w.name, -1
	}
	return e
}

// ofProjections turns the gradients of queries and keys back, and makes those of the group's weights and biases.
func (q *query) ofProjections(ctx context.Context, t *attention.Thread, of *tensors) error {
	p, pr, group := q.problem, q.problem.projection, int(q.shards[0].id.Group)
	hd, vd, size := p.HeadDim(), p.VDim(), p.GroupSize()
	dQ, dK, dV := of[headwaterv1.GradientTensor_GRADIENT_TENSOR_Q], of[headwaterv1.GradientTensor_GRADIENT_TENSOR_K], of[headwaterv1.GradientTensor_GRADIENT_TENSOR_V]
	if err := q.unrotate(dQ, dK); err != nil {
		return err
	}
	x, seen := q.q, q.q[:p.kvLen*pr.dModel] // what keys and values are made of
	for i, w := range []weightPart{
		{"q", dQ, x, q.count, size * hd, pr.dModel, pr.queryBias, group * size * hd, 0, hd},
		{"k", dK, seen, p.kvLen, hd, pr.dModel, pr.keyBias, group * hd, 0, hd},
		{"v", dV, seen, p.kvLen, vd, pr.dModel, pr.valueBias, group * vd, 0, vd},
		{"o", q.lesson.dY, q.lesson.out.Context, q.count, pr.dModel, size * vd, p.gradients.outputBias && group == 0, 0, group * size * vd, vd},
	} {
		y := make([]float32, w.rows*w.columns)
		err := t.WeightGradient(ctx, y, w.d, w.x, w.tokens, w.rows, w.columns)
		var bad *attention.ProjectionError
		if errors.As(err, &bad) {
			err = w.element(bad.Row, bad.Column)
		}
		if err != nil {
			return err
		}
		of[int(headwaterv1.GradientTensor_GRADIENT_TENSOR_W_Q)+i] = y
		if !w.biased {
			continue
		}
		sum := sumOfRows(w.d, w.tokens, w.rows)
		if bad := notFinite(sum); bad >= 0 {
			return w.element(bad, -1)
		}
		of[int(headwaterv1.GradientTensor_GRADIENT_TENSOR_B_Q)+i] = sum
	}
	return nil
}

// sumOfRows adds up d [tokens, n], tokens ascending.
func sumOfRows(d []float32, tokens, n int) []float32 {
	sum := make([]float32, n)
	for t := range tokens {
		for i, x := range d[t*n:][:n] {
			sum[i] += x
		}
	}
	return sum
}
