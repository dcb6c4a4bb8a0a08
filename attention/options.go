package attention

import (
	"fmt"
	"math"
)

// Options say which positions a query sees and how their scores are made. doc.go specifies each of them. The zero value
// is not the default: its window shows a query only its own position; begin with DefaultOptions.
type Options struct {
	// Causal hides the positions after the query's own.
	Causal bool
	// WindowLeft and WindowRight are how many positions a query sees before and after its own; negative is unbounded.
	WindowLeft, WindowRight int64
	// Scale is the factor of q·k; any finite value.
	Scale float32
	// Softcap bounds scaled scores to (−Softcap, Softcap); 0 leaves them as they are.
	Softcap float32
	// AlibiSlopes [n_heads of the layer], or nil: what a score loses per position of distance.
	AlibiSlopes []float32
	// Sinks [n_heads of the layer], or nil: one logit per head that takes its share of the weight and has no value.
	Sinks []float32
}

// DefaultScale returns 1/√head_dim, made in binary64 and rounded once.
func DefaultScale(headDim int) float32 {
	return float32(1 / math.Sqrt(float64(headDim)))
}

// DefaultOptions show every query every position, with the default scale and nothing else.
func DefaultOptions(headDim int) Options {
	return Options{WindowLeft: -1, WindowRight: -1, Scale: DefaultScale(headDim)}
}

// Validate says what in the options no layer of that many query heads can have.
func (o Options) Validate(heads int) error {
	if !finite(o.Scale) {
		return fmt.Errorf("scale is %g, not a finite number", o.Scale)
	}
	if !finite(o.Softcap) || o.Softcap < 0 {
		return fmt.Errorf("softcap is %g, neither 0 nor a finite number above it", o.Softcap)
	}
	if err := perHead("alibi_slopes", o.AlibiSlopes, heads); err != nil {
		return err
	}
	return perHead("sinks", o.Sinks, heads)
}

func perHead(name string, values []float32, heads int) error {
	if len(values) != 0 && len(values) != heads {
		return fmt.Errorf("%s has %d values for %d heads", name, len(values), heads)
	}
	for i, v := range values {
		if !finite(v) {
			return fmt.Errorf("%s[%d] is %g, not a finite number", name, i, v)
		}
	}
	return nil
}

func finite(x float32) bool { return math.Float32bits(x)&0x7f800000 != 0x7f800000 }
