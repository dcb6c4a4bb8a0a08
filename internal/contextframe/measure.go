package contextframe

import (
	"fmt"
	"math"
	"slices"
	"time"
)

// Block is a context [tokens, heads, v_dim] and its LSE [tokens, heads]: what one frame carries.
type Block struct {
	Tokens, Heads, VDim int
	Context, LSE        []float32
}

// Measurement says what a codec makes of some blocks.
type Measurement struct {
	Codec Codec
	// ContextBytes is the size of the contexts in float32, FrameBytes that of the frames, with their headers and LSE.
	ContextBytes, FrameBytes int64
	// Encode and Decode are the median times for all blocks, on one core.
	Encode, Decode time.Duration
	// MaxError is the largest error of an element relative to the largest magnitude in its row. 0 means every bit but
	// the sign of a zero, and that of an exact codec is every bit.
	MaxError float64
}

// Ratio returns the bytes of the frames over those of the contexts.
func (m Measurement) Ratio() float64 { return float64(m.FrameBytes) / float64(m.ContextBytes) }

// Rate returns the bytes of contexts that are encoded and decoded in a second.
func (m Measurement) Rate() float64 {
	return float64(m.ContextBytes) / (m.Encode + m.Decode).Seconds()
}

// Measure encodes and decodes blocks for so many rounds, each timed by now.
func Measure(codec Codec, blocks []Block, rounds int, now func() time.Time) (Measurement, error) {
	m := Measurement{Codec: codec}
	if len(blocks) == 0 || rounds < 1 {
		return m, fmt.Errorf("measure %s: %d blocks in %d rounds", codec, len(blocks), rounds)
	}
	frames := make([][]byte, len(blocks))
	contexts, lses := make([][]float32, len(blocks)), make([][]float32, len(blocks))
	for i, b := range blocks {
		contexts[i], lses[i] = make([]float32, len(b.Context)), make([]float32, len(b.LSE))
	}
	encodes, decodes := make([]time.Duration, rounds), make([]time.Duration, rounds)
	for r := range rounds {
		begin := now()
		for i, b := range blocks {
			var err error
			if frames[i], err = Encode(frames[i][:0], codec, 0, b.Tokens, b.Heads, b.VDim, b.Context, b.LSE); err != nil {
				return m, fmt.Errorf("measure %s: block %d: %w", codec, i, err)
			}
		}
		middle := now()
		for i, f := range frames {
			if _, err := Decode(f, contexts[i], lses[i]); err != nil {
				return m, fmt.Errorf("measure %s: block %d: %w", codec, i, err)
			}
		}
		encodes[r], decodes[r] = middle.Sub(begin), now().Sub(middle)
	}
	for i, b := range blocks {
		m.ContextBytes += 4 * int64(len(b.Context))
		m.FrameBytes += int64(len(frames[i]))
		for at := 0; at < len(b.Context); at += b.VDim {
			m.MaxError = max(m.MaxError, rowError(b.Context[at:at+b.VDim], contexts[i][at:at+b.VDim]))
		}
	}
	slices.Sort(encodes)
	slices.Sort(decodes)
	m.Encode, m.Decode = encodes[rounds/2], decodes[rounds/2]
	return m, nil
}

// rowError returns the largest difference relative to the row's largest magnitude.
func rowError(row, got []float32) float64 {
	top, worst := 0.0, 0.0
	for i, x := range row {
		top = max(top, math.Abs(float64(x)))
		worst = max(worst, math.Abs(float64(x)-float64(got[i])))
	}
	if top == 0 {
		return worst
	}
	return worst / top
}
