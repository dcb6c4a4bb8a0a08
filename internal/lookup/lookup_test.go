package lookup

import (
	"bytes"
	"context"
	"image/png"
	"math"
	"math/rand/v2"
	"testing"
)

var small = Shape{Heads: 4, KVHeads: 2, HeadDim: 3, DModel: 5}

// TestDerivativesAreDifferences: those of outputs, of the readout and of embeddings, against the change of the loss itself.
func TestDerivativesAreDifferences(t *testing.T) {
	m, rnd := New(small, 3), rand.New(rand.NewPCG(1, 1))
	given := drawText(rnd)
	rows := len(given.tokens())
	// The layer passes its hidden states on, so the loss depends on embeddings too.
	loss := func() float64 {
		var s Score
		m.answer(&given, m.embed(&given), make([]float32, rows*small.DModel), &s)
		return s.Loss
	}
	dY, score := make([]float32, rows*small.DModel), Score{}
	for _, p := range m.parameters() {
		clear(p.gradient)
	}
	m.answer(&given, m.embed(&given), dY, &score)
	readout := append([]float32(nil), m.readout.gradient...)
	m.embedBack(&given, dY)
	for name, p := range map[string]*parameter{"word": m.word, "place": m.place, "clause": m.clause, "readout": m.readout} {
		gradient := p.gradient
		if name == "readout" {
			gradient = readout // loss adds to the model's own
		}
		for i, x := range p.x {
			const h = 1e-2
			p.x[i] = x + h
			more := loss()
			p.x[i] = x - h
			less := loss()
			p.x[i] = x
			if want := (more - less) / (2 * h); math.Abs(want-float64(gradient[i])) > 1e-4*(1+math.Abs(want)) {
				t.Errorf("%s[%d]: %g, the difference is %g", name, i, gradient[i], want)
			}
		}
	}
}

// TestLookIsOfTheParameters: shares are shares, the heads of a group have one number, and the same model looks the same.
func TestLookIsOfTheParameters(t *testing.T) {
	looked, err := New(small, 3).Look(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	again, err := New(small, 3).Look(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	for i, h := range looked.Heads {
		sum := h.Elsewhere
		for _, share := range h.Asked {
			sum += share
		}
		if math.Abs(sum-1) > 1e-9 || h.Elsewhere < 0 || h.Head != i || h.Group != i/2 || h != again.Heads[i] {
			t.Errorf("head %d: %+v, again %+v", i, h, again.Heads[i])
		}
	}
	for _, parts := range [][]Parts{looked.Keys, looked.Values} {
		for g, p := range parts {
			if p.Group != g || math.Abs(p.Word+p.Place+p.Clause-1) > 1e-9 {
				t.Errorf("%+v", p)
			}
		}
	}
	var image bytes.Buffer
	if err := Draw(&image, looked, again); err != nil {
		t.Fatal(err)
	}
	if drawn, err := png.Decode(&image); err != nil || drawn.Bounds().Dx() < 2*drawn.Bounds().Dy() {
		t.Errorf("%v, %v", drawn.Bounds(), err)
	}
}
