package contextframe_test

import (
	"errors"
	"math"
	"testing"
	"time"

	"headwater.example/internal/contextframe"
	"headwater.example/tensor"
)

// frames64 cuts the contexts of the model into frames of 64 rows.
func frames64(tb testing.TB) []contextframe.Block {
	var blocks []contextframe.Block
	for _, a := range smollm2(tb) {
		for r := 0; r+64 <= len(a.lse); r += 64 {
			blocks = append(blocks, contextframe.Block{Tokens: 64, Heads: 1, VDim: a.vDim, Context: a.context[r*a.vDim : (r+64)*a.vDim], LSE: a.lse[r : r+64]})
		}
	}
	return blocks
}

// The bytes of a real model's contexts, and the error, which each codec bounds by its rounding.
func TestMeasureOfARealModel(t *testing.T) {
	for _, c := range []struct {
		codec    contextframe.Codec
		ratio    float64
		maxError float64
	}{
		{contextframe.Exact, 0.87, 0},
		{contextframe.BF16, 0.37, 1.0 / 256},
		{contextframe.F16, 0.47, 1.0 / 2048},
		{contextframe.I8, 0.27, 0.5/127 + 1e-6},
	} {
		tick := time.Time{}
		m, err := contextframe.Measure(c.codec, frames64(t), 3, func() time.Time { tick = tick.Add(time.Second); return tick })
		if err != nil {
			t.Fatal(err)
		}
		if m.Ratio() > c.ratio || m.MaxError > c.maxError || c.codec != contextframe.Exact && m.MaxError < c.maxError/2 {
			t.Errorf("%v: ratio %.4f, error %.3g; at most %g and %.3g", c.codec, m.Ratio(), m.MaxError, c.ratio, c.maxError)
		}
		if m.Encode != time.Second || m.Decode != time.Second || m.Rate() != float64(m.ContextBytes)/2 || m.ContextBytes != int64(len(frames64(t))<<14) {
			t.Errorf("%v: %+v", c.codec, m)
		}
	}
}

func TestMeasureErrors(t *testing.T) {
	if _, err := contextframe.Measure(contextframe.Exact, nil, 1, time.Now); err == nil {
		t.Error("no blocks are measured")
	}
	b := contextframe.Block{Tokens: 1, Heads: 1, VDim: 2, Context: []float32{1, float32(math.Inf(1))}, LSE: []float32{0}}
	_, err := contextframe.Measure(contextframe.I8, []contextframe.Block{b}, 1, time.Now)
	if r, ok := errors.AsType[*tensor.RangeError](err); !ok || r.Index != 1 {
		t.Errorf("infinity in int8: %v", err)
	}
}
