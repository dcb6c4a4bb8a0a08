package worker

import (
	"context"
	"fmt"

	"headwater/attention"
)

// threadWork is the number of multiply-adds below which one thread is as fast as several.
const threadWork = 1 << 20

// wanted returns how many threads a kernel call of that many multiply-adds should ask for.
func wanted(sizes ...int64) int {
	if work, ok := product(sizes...); ok && work < threadWork {
		return 1
	}
	return maxThreads
}

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

// projected computes y[n, rows] = x[n, in] · wᵀ + bias, all of it finite.
func projected(ctx context.Context, threads int, y, x []float32, m *matrix, n int) error {
	if err := attention.Project(ctx, threads, y, x, m.w, m.bias, n, m.in, m.rows); err != nil {
		return fmt.Errorf("project by %s: %w", m.name, err)
	}
	return checkOverflow("projection by "+m.name, y)
}
