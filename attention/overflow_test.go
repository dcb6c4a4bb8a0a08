package attention

import (
	"context"
	"errors"
	"math"
	"testing"

	"headwater.example/attention/reference"
	"headwater.example/tensor"
)

// overflowing is a sample whose every score overflows to −Inf, at each step of a score that can do so.
var overflowing = map[string]func(e *sample){
	"q·k": func(e *sample) {
		for i := range e.q.Q {
			e.q.Q[i] = 1e38 // keys are all −1e3
		}
	},
	"scale": func(e *sample) { e.opts.Scale = 3e38 },
	"ALiBi": func(e *sample) { e.opts.AlibiSlopes, e.q.Offset = []float32{3e38, 3e38}, 200 },
	"bias": func(e *sample) {
		e.opts.Scale = 5e32 // scores of −2e37 to −2e38
		e.q.BiasHeads, e.q.Bias = 1, make([]float32, e.q.Tokens*e.kv.Len)
		for i := range e.q.Bias {
			e.q.Bias[i] = -math.MaxFloat32
		}
	},
	"all but those that are hidden": func(e *sample) {
		e.opts.Scale = 3e38
		e.q.MaskHeads, e.q.Mask = 1, make([]byte, e.q.Tokens*e.kv.Len)
		e.q.BiasHeads, e.q.Bias = 1, make([]float32, e.q.Tokens*e.kv.Len)
		for i := range e.q.Bias {
			e.q.Bias[i] = negInf
		}
		for token := range e.q.Tokens { // one position is seen
			e.q.Mask[token*e.kv.Len+70], e.q.Bias[token*e.kv.Len+70] = 1, 0
		}
	},
}

// TestARowThatSeesPositionsAndHasNoFiniteScoreIsAnError: the answer would be that of a row that sees nothing, which this is
// not. Hidden from all it is no error, and one finite score is enough.
func TestARowThatSeesPositionsAndHasNoFiniteScoreIsAnError(t *testing.T) {
	draw := func(dt tensor.DType) *sample {
		e := draw(t, 1, shape{dt: dt, headDim: 8, vDim: 6, tokens: 3, heads: 2, len: 100, spread: 1, offset: 50})
		k := make([]float32, e.kv.Len*8)
		for i := range k {
			k[i] = -1e3
		}
		for i := range e.q.Q {
			e.q.Q[i] = 1 + float32(i)
		}
		v := make([]float32, e.kv.Len*6)
		kb, ks, _ := store(t, k, 8, dt)
		vb, vs, _ := store(t, v, 6, dt)
		e.kv.Pages = paged(t, e.kv.Layout, e.kv.Len, Rows{K: kb, V: vb, KScale: ks, VScale: vs})
		return e
	}
	for name, spoil := range overflowing {
		for _, dt := range storages {
			for i := range kernels {
				for _, sink := range []bool{false, true} {
					e := draw(dt)
					spoil(e)
					if sink {
						e.opts.Sinks = []float32{-2.5, 3}
					}
					run := func() error {
						return attend(context.Background(), &kernels[i], partBytes, 2, e.kv, e.q, e.opts, e.room())
					}
					var row *RowError
					if err := run(); !errors.As(err, &row) || row.Head != 0 || row.Token != 0 || row.Rule != "all scores overflow to -Inf" {
						t.Errorf("%s, %s, %s, sink %v: %v", name, dt, kernels[i].name, sink, err)
					}
					e.q.MaskHeads, e.q.Mask = 1, make([]byte, e.q.Tokens*e.kv.Len)
					if err := run(); err != nil {
						t.Errorf("%s, %s, %s, sink %v, all hidden: %v", name, dt, kernels[i].name, sink, err)
					}
				}
			}
		}
	}
	e := draw(tensor.F32)
	overflowing["bias"](e)
	e.q.Bias[33], e.q.Bias[e.kv.Len+99], e.q.Bias[2*e.kv.Len] = 1e38, 1e38, 1e38
	e.attend(t, 2)
}

// TestTheUnitOfErrorCountsBiasAndALiBi: a score is a sum, and what is added to q·k rounds as well.
func TestTheUnitOfErrorCountsBiasAndALiBi(t *testing.T) {
	for name, far := range map[string]func(e *sample){
		"queries 50,000 positions beyond the keys": func(e *sample) { e.opts.AlibiSlopes, e.q.Offset = []float32{1, 0.7, 0.1}, 50000 },
		"rows of a bias of -10,000": func(e *sample) {
			e.q.BiasHeads, e.q.Bias = 3, make([]float32, 3*e.q.Tokens*e.kv.Len)
			for i := range e.q.Bias {
				e.q.Bias[i] = -10000 - float32(i%7)/3
			}
		},
	} {
		for _, dt := range storages {
			e := draw(t, 4, shape{dt: dt, headDim: 16, vDim: 8, tokens: 20, heads: 3, len: 300, spread: 1, offset: 299})
			e.opts.Causal = true
			far(e)
			e.truth.Offset = e.q.Offset
			t.Logf("%s, %s: %.3f units", name, dt, e.near(t, e.attend(t, 2)))
		}
	}
}

// TestTheUnitOfErrorDoesNotCountWhatHasNoWeight: a mask that is written as a bias of −3.4e38 must not make any answer pass.
func TestTheUnitOfErrorDoesNotCountWhatHasNoWeight(t *testing.T) {
	e := draw(t, 5, shape{dt: tensor.F32, headDim: 16, vDim: 8, tokens: 2, heads: 1, len: 300, spread: 1, offset: 299})
	before := reference.Attend(e.problem()).Unit
	e.q.BiasHeads, e.q.Bias = 1, make([]float32, 2*300)
	for i := range e.q.Bias {
		if i%300 > 200 {
			e.q.Bias[i] = -math.MaxFloat32
		}
	}
	for i, unit := range reference.Attend(e.problem()).Unit {
		if !(unit <= before[i]) {
			t.Errorf("row %d: unit %g with positions masked, %g without", i, unit, before[i])
		}
	}
	e.near(t, e.attend(t, 1))
}
