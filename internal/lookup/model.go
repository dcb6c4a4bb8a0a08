package lookup

import (
	"context"
	"encoding/json"
	"fmt"
	"math"
	"math/rand/v2"

	"headwater.example/client"
)

// Shape is the sizes of a layer.
type Shape struct {
	Heads, KVHeads int
	HeadDim        int
	DModel         int
}

// Validate says what in the sizes no layer can have.
func (s Shape) Validate() error {
	switch {
	case s.Heads < 1 || s.KVHeads < 1 || s.HeadDim < 1 || s.DModel < 1:
		return fmt.Errorf("%d heads on %d KV heads, head_dim %d and d_model %d: each must be at least 1", s.Heads, s.KVHeads, s.HeadDim, s.DModel)
	case s.Heads%s.KVHeads != 0:
		return fmt.Errorf("%d heads are not a multiple of %d KV heads", s.Heads, s.KVHeads)
	}
	return nil
}

// batchSize is how many texts a step learns from.
const batchSize = 16

// How Adam moves parameters.
const (
	rate           = 0.01
	decay1, decay2 = 0.9, 0.99
	smallest       = 1e-8
)

// parameter is a tensor that is learned, with its gradient and what Adam remembers of earlier ones.
type parameter struct {
	x, gradient, mean, square []float32
}

func draw(rnd *rand.Rand, n int, spread float64) *parameter {
	p := &parameter{x: make([]float32, n), gradient: make([]float32, n), mean: make([]float32, n), square: make([]float32, n)}
	for i := range p.x {
		p.x[i] = float32(rnd.NormFloat64() * spread)
	}
	return p
}

// Model is a layer with what stands before and behind it.
type Model struct {
	shape Shape
	rnd   *rand.Rand
	steps int

	word, place, clause *parameter // [16, d_model], [4, d_model] and [6, d_model]: a hidden state is the sum of its token's
	wQ, wK, wV, wO      *parameter // of the layer
	readout             *parameter // [3, 16, d_model]: what each place's words look like in an output
}

// New draws a model that has learned nothing. The shape is valid; the same seed gives the same model and the same texts.
func New(shape Shape, seed uint64) *Model {
	rnd := rand.New(rand.NewPCG(seed, 1))
	d, narrow, wide := shape.DModel, shape.KVHeads*shape.HeadDim, shape.Heads*shape.HeadDim
	in, out := 1/math.Sqrt(float64(d)), 1/math.Sqrt(float64(wide))
	return &Model{
		shape: shape, rnd: rnd,
		word: draw(rnd, len(words)*d, 1), place: draw(rnd, (places+1)*d, 1), clause: draw(rnd, clauses*d, 1),
		wQ: draw(rnd, wide*d, in), wK: draw(rnd, narrow*d, in), wV: draw(rnd, narrow*d, in), wO: draw(rnd, d*wide, out),
		readout: draw(rnd, places*len(words)*d, in),
	}
}

func (m *Model) parameters() []*parameter {
	return []*parameter{m.word, m.place, m.clause, m.wQ, m.wK, m.wV, m.wO, m.readout}
}

// Parameters is how many numbers the model learns.
func (m *Model) Parameters() int {
	n := 0
	for _, p := range m.parameters() {
		n += len(p.x)
	}
	return n
}

// Score is how a step did before it moved the parameters: the mean cross-entropy of its answers, and the share that is right.
type Score struct {
	Loss  float64 `json:"loss"`
	Right float64 `json:"right"`
}

// Step learns from a batch.
func (m *Model) Step(ctx context.Context, c *client.Client) (Score, error) {
	batch := make([]text, batchSize)
	for i := range batch {
		batch[i] = drawText(m.rnd)
	}
	for _, p := range m.parameters() {
		clear(p.gradient)
	}
	result, err := m.job("layer", batch).run(ctx, c, "learn, forward")
	if err != nil {
		return Score{}, err
	}
	backward := m.job("layer_grad", batch)
	score := Score{}
	for i := range batch {
		dY := make([]float32, len(batch[i].tokens())*m.shape.DModel)
		m.answer(&batch[i], result[fmt.Sprintf("seqs.%d.y", i)], dY, &score)
		backward.add(fmt.Sprintf("seqs.%d.d_y", i), dY, len(batch[i].tokens()), m.shape.DModel)
	}
	if result, err = backward.run(ctx, c, "learn, backward"); err != nil {
		return Score{}, err
	}
	for name, p := range map[string]*parameter{"d_w_q": m.wQ, "d_w_k": m.wK, "d_w_v": m.wV, "d_w_o": m.wO} {
		copy(p.gradient, result[name])
	}
	for i := range batch {
		m.embedBack(&batch[i], result[fmt.Sprintf("seqs.%d.d_x", i)])
	}
	m.move()
	return score, nil
}

// job is a job over some texts, with the layer's weights.
func (m *Model) job(kind string, texts []text) *job {
	options, _ := json.Marshal(map[string]any{"kind": kind, "causal": true, "n_heads": m.shape.Heads, "n_kv_heads": m.shape.KVHeads}) // of such, it never fails
	j := &job{metadata: map[string]string{"headwater": string(options)}}
	s := m.shape
	j.add("w_q", m.wQ.x, s.Heads*s.HeadDim, s.DModel)
	j.add("w_k", m.wK.x, s.KVHeads*s.HeadDim, s.DModel)
	j.add("w_v", m.wV.x, s.KVHeads*s.HeadDim, s.DModel)
	j.add("w_o", m.wO.x, s.DModel, s.Heads*s.HeadDim)
	for i := range texts {
		j.add(fmt.Sprintf("seqs.%d.x", i), m.embed(&texts[i]), len(texts[i].tokens()), s.DModel)
	}
	return j
}

// parts are the embeddings that a token's hidden state is the sum of, with where they begin.
func (m *Model) parts(k token) map[*parameter]int {
	d := m.shape.DModel
	parts := map[*parameter]int{m.place: k.place * d, m.clause: k.clause * d}
	if k.word >= 0 {
		parts[m.word] = k.word * d
	}
	return parts
}

// embed returns the hidden states [tokens, d_model] of a text.
func (m *Model) embed(t *text) []float32 {
	d := m.shape.DModel
	var x []float32
	for _, k := range t.tokens() {
		for i := range d {
			sum := m.place.x[k.place*d+i] + m.clause.x[k.clause*d+i]
			if k.word >= 0 {
				sum += m.word.x[k.word*d+i]
			}
			x = append(x, sum)
		}
	}
	return x
}

// embedBack adds the derivatives of a text's hidden states to those of the embeddings.
func (m *Model) embedBack(t *text, dX []float32) {
	d := m.shape.DModel
	for at, k := range t.tokens() {
		for p, first := range m.parts(k) {
			for i, g := range dX[at*d:][:d] {
				p.gradient[first+i] += g
			}
		}
	}
}

// answer reads the answers to a text's questions off the outputs y, adds them to the score, and the loss's derivatives to those
// of y and of the readout.
func (m *Model) answer(t *text, y, dY []float32, score *Score) {
	const answers = float64(batchSize * clauses * places)
	d := m.shape.DModel
	for q, clause := range t.asked {
		out, dOut := y[(told+q)*d:][:d], dY[(told+q)*d:][:d]
		for place := range places {
			var p [len(words)]float64 // of each word
			top, sum, best := math.Inf(-1), 0.0, 0
			for w := range p {
				for i, r := range m.readout.x[(place*len(words)+w)*d:][:d] {
					p[w] += float64(r) * float64(out[i])
				}
				if p[w] > top {
					top, best = p[w], w
				}
			}
			for w := range p {
				p[w] = math.Exp(p[w] - top)
				sum += p[w]
			}
			want := t.words[clause][place]
			score.Loss -= math.Log(p[want]/sum) / answers
			if best == want {
				score.Right += 1.0 / answers
			}
			for w := range p {
				g := p[w] / sum
				if w == want {
					g--
				}
				g /= answers
				first := (place*len(words) + w) * d
				for i, r := range m.readout.x[first:][:d] {
					dOut[i] += float32(g * float64(r))
					m.readout.gradient[first+i] += float32(g * float64(out[i]))
				}
			}
		}
	}
}

// move moves all parameters by Adam.
func (m *Model) move() {
	m.steps++
	own1, own2 := 1-math.Pow(decay1, float64(m.steps)), 1-math.Pow(decay2, float64(m.steps))
	for _, p := range m.parameters() {
		for i, g := range p.gradient {
			mean := decay1*float64(p.mean[i]) + (1-decay1)*float64(g)
			square := decay2*float64(p.square[i]) + (1-decay2)*float64(g)*float64(g)
			p.mean[i], p.square[i] = float32(mean), float32(square)
			p.x[i] -= float32(rate * (mean / own1) / (math.Sqrt(square/own2) + smallest))
		}
	}
}
