package jobs

import (
	"context"
	"fmt"
	"math"
	"slices"

	"headwater.example/attention"
)

// rotation decodes the cosines and sines [n, half] of a block.
func rotation(problem uint32, cos, sin []byte, n, half int) (c, s []float32, err error) {
	// Both are checked against bytes that have come before anything is allocated for them.
	if want := 4 * int64(n) * int64(half); int64(len(cos)) != want || int64(len(sin)) != want {
		return nil, nil, invalid("problem %d: cos has %d and sin %d bytes, %d rows of %d pairs need %d", problem, len(cos), len(sin), n, half, want)
	}
	c, s = make([]float32, n*half), make([]float32, n*half)
	if err := decode(fmt.Sprintf("problem %d: cos", problem), c, cos, false); err != nil {
		return nil, nil, err
	}
	return c, s, decode(fmt.Sprintf("problem %d: sin", problem), s, sin, false)
}

// project computes y [n, rows] = x [n, in] · wᵀ + bias.
func project(ctx context.Context, t *attention.Thread, y, x []float32, m *matrix, n int) error {
	if err := t.Project(ctx, y, x, m.w, m.bias, n, m.in, m.rows); err != nil {
		return fmt.Errorf("%s: %w", m.name, err)
	}
	return nil
}

// rotate rotates n rows of heads in place, if the projection asks for it.
func (p *problem) rotate(what string, x, cos, sin []float32, n, heads int) error {
	dims := p.projection.ropeDims
	if dims == 0 {
		return nil
	}
	if err := attention.ApplyRope(x, cos, sin, n, heads, p.HeadDim(), dims, p.projection.interleaved); err != nil {
		return fmt.Errorf("rotate %s: %w", what, err)
	}
	if i := notFinite(x); i >= 0 {
		return &overflowError{what, i, x[i]}
	}
	return nil
}

// notFinite returns the first element that is not finite, −1 if all are.
func notFinite(x []float32) int {
	return slices.IndexFunc(x, func(v float32) bool { return math.Float32bits(v)&0x7f800000 == 0x7f800000 })
}
