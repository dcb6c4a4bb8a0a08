package lookup

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"

	"headwater.example/internal/explain"
	"headwater.example/internal/heatmap"
	"headwater.example/internal/jobfile"
	"headwater.example/tensor"
)

// Head is where the questions' queries of one head look, in shares of their weight: at the words of the clause that they name,
// by place, and elsewhere.
type Head struct {
	Group int `json:"group"`
	Head  int `json:"head"`

	Asked     [places]float64 `json:"asked"`
	Elsewhere float64         `json:"elsewhere"`
}

// Parts is what the variance of the keys, or of the values, of one group comes from, in shares: from the word, from its place
// in the clause, and from the clause.
type Parts struct {
	Group int `json:"group"`

	Word   float64 `json:"word"`
	Place  float64 `json:"place"`
	Clause float64 `json:"clause"`
}

// Learned is what a model knows, at some time of its training.
type Learned struct {
	Heads  []Head  `json:"heads"`
	Keys   []Parts `json:"keys"`
	Values []Parts `json:"values"`

	figure heatmap.Figure // of the first text
}

// examples is how many texts the heads' shares are means over.
const examples = 32

// Look reads what the model knows off its parameters, without a cluster. The texts are always the same.
func (m *Model) Look(ctx context.Context) (*Learned, error) {
	rnd := rand.New(rand.NewPCG(0, 2))
	texts := make([]text, examples)
	for i := range texts {
		texts[i] = drawText(rnd)
	}
	l := &Learned{Keys: m.partsOf(m.wK), Values: m.partsOf(m.wV)}
	file, parsed, err := m.open(texts)
	if err != nil {
		return nil, err
	}
	for h := range m.shape.Heads {
		l.Heads = append(l.Heads, Head{Group: h / (m.shape.Heads / m.shape.KVHeads), Head: h, Elsewhere: 1})
	}
	questions := explain.Choice{}
	for q := range clauses {
		questions.Positions = append(questions.Positions, int64(told+q))
	}
	for i := range texts {
		groups, _, err := explain.Panels(ctx, file, &parsed.Problems[i], questions)
		if err != nil {
			return nil, err
		}
		for _, g := range groups {
			for _, p := range g.Panels {
				l.Heads[p.Head].add(&texts[i], p.Weights)
			}
		}
		if i == 0 {
			l.figure = m.figure(&texts[i], groups, questions.Positions)
		}
	}
	return l, nil
}

// add adds the weights [questions, tokens] that a head gives in one of the examples.
func (h *Head) add(t *text, weights [][]float64) {
	for q, clause := range t.asked {
		for p := range places {
			share := weights[q][clause*places+p] / (examples * clauses)
			h.Asked[p] += share
			h.Elsewhere -= share
		}
	}
}

// open presents the layer over some texts as a job file.
func (m *Model) open(texts []text) (*tensor.File, *jobfile.Job, error) {
	data, err := m.job("layer", texts).file()
	if err != nil {
		return nil, nil, err
	}
	file, err := tensor.OpenReaderAt("the layer", data, data.Size())
	if err != nil {
		return nil, nil, err
	}
	parsed, err := jobfile.Parse(file, nil)
	return file, parsed, err
}

// figure is the weights of a text's questions as panels.
func (m *Model) figure(t *text, groups []explain.GroupPanels, positions []int64) heatmap.Figure {
	f := heatmap.Figure{Positions: positions, Tokens: t.names()}
	size := m.shape.Heads / m.shape.KVHeads
	for _, g := range groups {
		row := heatmap.Row{Group: g.Group, Label: fmt.Sprintf("query heads %d-%d", g.Group*size, (g.Group+1)*size-1)}
		if size == 1 {
			row.Label = ""
		}
		for _, p := range g.Panels {
			row.Panels = append(row.Panels, heatmap.Panel{Head: p.Head, Weights: p.Weights})
		}
		f.Rows = append(f.Rows, row)
	}
	return f
}

// Draw draws the weights that the questions of one text have before and after a training, side by side.
func Draw(w io.Writer, before, after *Learned) error {
	left, right := before.figure, after.figure
	left.Title, right.Title = "Before training", "After training"
	left.Caption = "A line is a question that names a clause, a column a word and the number of its clause. The heads of a row of panels read the same keys."
	right.Caption = "Heads have learned to ask the same keys different questions: for the subject, the verb or the relation of the clause that is named."
	return heatmap.Draw(w, left, right)
}

// partsOf says what the outputs of a projection [KV heads·head_dim, d_model] vary by. A hidden state is the sum of the
// embeddings of its word, place and clause, which are drawn independently, so the variances add up.
func (m *Model) partsOf(w *parameter) []Parts {
	var all []Parts
	for g := range m.shape.KVHeads {
		of := func(p *parameter, n int) float64 { return m.variance(w, g, p.x, n) }
		word, place, clause := of(m.word, len(words)), of(m.place, places), of(m.clause, clauses)
		sum := word + place + clause
		all = append(all, Parts{g, word / sum, place / sum, clause / sum})
	}
	return all
}

// variance is that of a group's rows of w times the first n embeddings, summed over the rows.
func (m *Model) variance(w *parameter, group int, embeddings []float32, n int) (sum float64) {
	d := m.shape.DModel
	for row := group * m.shape.HeadDim; row < (group+1)*m.shape.HeadDim; row++ {
		var mean, square float64
		for e := range n {
			y := 0.0
			for i, x := range embeddings[e*d:][:d] {
				y += float64(w.x[row*d+i]) * float64(x)
			}
			mean += y / float64(n)
			square += y * y / float64(n)
		}
		sum += square - mean*mean
	}
	return sum
}

// Save writes the layer over one text as a job file of kind layer, for other commands to look at.
func (m *Model) Save(w io.Writer) error {
	rnd := rand.New(rand.NewPCG(0, 2))
	t := drawText(rnd)
	j := m.job("layer", []text{t})
	names, err := json.Marshal(t.names())
	if err != nil {
		return fmt.Errorf("write the tokens: %w", err)
	}
	j.metadata["tokens"] = string(names)
	return tensor.WriteSafetensors(w, j.tensors, j.metadata)
}
