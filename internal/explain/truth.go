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
	heads, queries, err := Choice{}.resolve(p)
	if err != nil {
		return err
	}
	s := &source{file: f, p: p}
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
		return row(head, query, reference.Attend(one))
	})
}
