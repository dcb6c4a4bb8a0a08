package explain

import (
	"context"

	"headwater.example/attention/reference"
	"headwater.example/internal/jobfile"
	"headwater.example/tensor"
)

// Truth calls row with the float64 truth of each head and query of a problem of kind attention: its context [v_dim], its LSE and
// its unit of error (docs/numerics.md). It takes about as many operations in plain float64 as the problem has multiply-adds.
// Errors are row's, ctx's, or those of reading the file.
func Truth(ctx context.Context, f *tensor.File, p *jobfile.Problem, row func(head, query int, truth reference.Result) error) error {
	s := &source{file: f, p: p}
	return s.withValues(ctx, func(head, query int, one reference.Problem) error { return row(head, query, reference.Attend(one)) })
}

// Gradients calls row with the share that each head and query has, in float64, in the gradients of a problem of kind
// attention_grad: its own d_q [head_dim], and what it adds to d_k and d_v of its group [kv_len, size], to d_bias [kv_len] and
// to d_sinks [1] of its head. Errors are as those of Truth.
func Gradients(ctx context.Context, f *tensor.File, p *jobfile.Problem, row func(head, query int, truth reference.Gradients) error) error {
	s := &source{file: f, p: p}
	return s.withValues(ctx, func(head, query int, one reference.Problem) error {
		dContext, err := s.read(p.DContext, int64(query*p.Shape.Heads+head)*int64(p.Shape.VDim), p.Shape.VDim)
		if err != nil {
			return err
		}
		return row(head, query, reference.Differentiate(one, dContext))
	})
}

// withValues calls row with each head and query of the problem, as a problem of its own.
func (s *source) withValues(ctx context.Context, row func(head, query int, one reference.Problem) error) error {
	p := s.p
	heads, queries, err := Choice{}.resolve(p)
	if err != nil {
		return err
	}
	var values []float64
	loaded := -1
	return s.problems(ctx, heads, queries, func(head, query int, one reference.Problem) error {
		if group := head / p.Shape.GroupSize(); group != loaded {
			if values, err = s.stored(ctx, p.V, p.VScale, group, p.Shape.VDim); err != nil {
				return err
			}
			loaded = group
		}
		one.V, one.VDim = values, p.Shape.VDim
		return row(head, query, one)
	})
}
