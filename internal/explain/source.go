package explain

import (
	"context"
	"encoding/binary"
	"fmt"
	"math"
	"slices"
	"strconv"

	"headwater.example/attention"
	"headwater.example/attention/reference"
	"headwater.example/internal/jobfile"
	"headwater.example/tensor"
)

// pieceBytes is about how much of a tensor is read at once.
const pieceBytes = 1 << 20

// Choice says which rows of a problem are meant.
type Choice struct {
	// Heads are query heads; nil is all.
	Heads []int
	// Positions are absolute positions of queries; nil is all of them.
	Positions []int64
}

// ChoiceError says which head or position the problem does not have.
type ChoiceError struct{ Rule string }

func (e *ChoiceError) Error() string { return e.Rule }

// resolve checks the choice, orders it and leaves repetitions out. Positions become indices of queries.
func (c Choice) resolve(p *jobfile.Problem) (heads, queries []int, err error) {
	if c.Heads == nil {
		for h := range p.Shape.Heads {
			heads = append(heads, h)
		}
	}
	for _, h := range c.Heads {
		if h < 0 || h >= p.Shape.Heads {
			return nil, nil, &ChoiceError{fmt.Sprintf("head %d is not in 0 to %d", h, p.Shape.Heads-1)}
		}
		heads = append(heads, h)
	}
	if c.Positions == nil {
		for i := range p.Tokens {
			queries = append(queries, i)
		}
	}
	for _, at := range c.Positions {
		if at < p.Offset || at-p.Offset >= int64(p.Tokens) {
			return nil, nil, &ChoiceError{fmt.Sprintf("position %d has no query: they stand at %d to %d", at, p.Offset, p.Offset+int64(p.Tokens)-1)}
		}
		queries = append(queries, int(at-p.Offset))
	}
	slices.Sort(heads)
	slices.Sort(queries)
	return slices.Compact(heads), slices.Compact(queries), nil
}

// source reads what one problem's weights need.
type source struct {
	file *tensor.File
	p    *jobfile.Problem
}

// rows calls f with the weights [kv_len] of each chosen head and query, in their order.
func (s *source) rows(ctx context.Context, heads, queries []int, f func(head, query int, weights []float64)) error {
	return s.problems(ctx, heads, queries, func(head, query int, one reference.Problem) error {
		weights, _ := reference.Weights(one, 0, 0)
		f(head, query, weights)
		return nil
	})
}

// problems calls f with the problem of each chosen head and query alone, without values, in their order.
func (s *source) problems(ctx context.Context, heads, queries []int, f func(head, query int, one reference.Problem) error) error {
	p := s.p
	var keys []float64
	loaded := -1
	for _, head := range heads {
		group := head / p.Shape.GroupSize()
		if group != loaded {
			var err error
			if keys, err = s.keys(ctx, group); err != nil {
				return err
			}
			loaded = group
		}
		project, err := s.queries(head)
		if err != nil {
			return err
		}
		for _, query := range queries {
			if err := ctx.Err(); err != nil {
				return fmt.Errorf("explaining head %d: %w", head, err)
			}
			one := s.problem(head, query)
			one.K = keys
			if one.Q, err = project(query); err != nil {
				return err
			}
			if err := s.operands(&one, head, query); err != nil {
				return err
			}
			if err := f(head, query, one); err != nil {
				return err
			}
		}
	}
	return nil
}

// problem is a single row: one query of one head over its group's visible positions. Weights do not depend on values,
// so these are left at one 0 each.
func (s *source) problem(head, query int) reference.Problem {
	p, o := s.p, s.p.Options
	one := reference.Problem{
		Tokens: 1, KVTokens: p.KVLen, KVLen: p.KVLen, Heads: 1, KVHeads: 1, HeadDim: p.Shape.HeadDim, VDim: 1,
		V:      make([]float64, p.KVLen),
		Offset: p.Offset + int64(query), Causal: o.Causal, WindowLeft: o.WindowLeft, WindowRight: o.WindowRight,
		Scale: float64(o.Scale), Softcap: float64(o.Softcap),
	}
	if len(o.AlibiSlopes) > 0 {
		one.AlibiSlopes = []float64{float64(o.AlibiSlopes[head])}
	}
	if len(o.Sinks) > 0 {
		one.Sinks = []float64{float64(o.Sinks[head])}
	}
	return one
}

// operands reads the row's mask and bias.
func (s *source) operands(one *reference.Problem, head, query int) error {
	p := s.p
	element := func(heads int) int64 {
		return (int64(min(head, heads-1))*int64(p.Tokens) + int64(query)) * int64(p.KVTokens)
	}
	if p.Mask != "" {
		one.Mask, one.MaskHeads = make([]byte, p.KVLen), 1
		if err := s.file.ReadAt(one.Mask, p.Mask, element(p.MaskHeads)); err != nil {
			return fmt.Errorf("reading the mask: %w", err)
		}
	}
	if p.Bias != "" {
		var err error
		if one.Bias, err = s.read(p.Bias, element(p.BiasHeads), p.KVLen); err != nil {
			return err
		}
		one.BiasHeads = 1
	}
	return nil
}

// keys returns the group's visible keys [kv_len, head_dim].
func (s *source) keys(ctx context.Context, group int) ([]float64, error) {
	p := s.p
	dim := p.Shape.HeadDim
	if p.X != "" {
		project, err := s.projection(p.WK, p.BK, group)
		if err != nil {
			return nil, err
		}
		keys := make([]float64, 0, p.KVLen*dim)
		for i := range p.KVLen {
			if err := ctx.Err(); err != nil {
				return nil, fmt.Errorf("projecting the keys of group %d: %w", group, err)
			}
			k, err := project(i, int64(i))
			if err != nil {
				return nil, err
			}
			keys = append(keys, k...)
		}
		return keys, nil
	}
	return s.stored(ctx, p.K, p.KScale, group, dim)
}

// stored returns what the rows [kv_len, dim] of one group are worth.
func (s *source) stored(ctx context.Context, name, scale string, group, dim int) ([]float64, error) {
	rows, err := s.column(ctx, name, group, dim)
	if err != nil || s.p.Storage != tensor.I8 {
		return rows, err
	}
	scales, err := s.column(ctx, scale, group, 1)
	if err != nil {
		return nil, err
	}
	for i := range rows {
		rows[i] *= scales[i/dim]
	}
	return rows, nil
}

// column reads [kv_len, width] of one group out of a tensor [kv_tokens, n_kv_heads, width].
func (s *source) column(ctx context.Context, name string, group, width int) ([]float64, error) {
	p := s.p
	row := p.Shape.KVHeads * width
	step := max(1, pieceBytes/(4*row))
	out := make([]float64, 0, p.KVLen*width)
	for at := 0; at < p.KVLen; at += step {
		if err := ctx.Err(); err != nil {
			return nil, fmt.Errorf("reading %q: %w", name, err)
		}
		n := min(step, p.KVLen-at)
		piece, err := s.read(name, int64(at)*int64(row), n*row)
		if err != nil {
			return nil, err
		}
		for i := range n {
			out = append(out, piece[i*row+group*width:][:width]...)
		}
	}
	return out, nil
}

// queries returns a function that makes the head's query [head_dim] of a token.
func (s *source) queries(head int) (func(query int) ([]float64, error), error) {
	p := s.p
	if p.X == "" {
		return func(query int) ([]float64, error) {
			return s.read(p.Q, (int64(query)*int64(p.Shape.Heads)+int64(head))*int64(p.Shape.HeadDim), p.Shape.HeadDim)
		}, nil
	}
	project, err := s.projection(p.WQ, p.BQ, head)
	if err != nil {
		return nil, err
	}
	return func(query int) ([]float64, error) { return project(query, p.Offset+int64(query)) }, nil
}

// projection returns a function that projects a row of x by one head's weights, and turns it to a position.
func (s *source) projection(weights, bias string, head int) (func(row int, position int64) ([]float64, error), error) {
	p := s.p
	dim, model := p.Shape.HeadDim, p.DModel
	w, err := s.read(weights, int64(head)*int64(dim)*int64(model), dim*model)
	if err != nil {
		return nil, err
	}
	b := make([]float64, dim)
	if bias != "" {
		if b, err = s.read(bias, int64(head)*int64(dim), dim); err != nil {
			return nil, err
		}
	}
	return func(row int, position int64) ([]float64, error) {
		x, err := s.read(p.X, int64(row)*int64(model), model)
		if err != nil {
			return nil, err
		}
		y := slices.Clone(b)
		for j := range y {
			for c, v := range w[j*model:][:model] {
				y[j] += x[c] * v
			}
		}
		turn(y, p.Rope, position)
		return y, nil
	}, nil
}

// turn rotates one head's vector to its position, in float64.
func turn(x []float64, r *attention.Rope, position int64) {
	if r == nil {
		return
	}
	for j := range r.Dims / 2 {
		angle := float64(position) * r.Scale * math.Pow(r.Base, -2*float64(j)/float64(r.Dims))
		if len(r.Factors) > 0 {
			angle /= r.Factors[j]
		}
		a, b := j, j+r.Dims/2
		if r.Interleaved {
			a, b = 2*j, 2*j+1
		}
		sin, cos := math.Sincos(angle)
		x[a], x[b] = r.Mscale*(x[a]*cos-x[b]*sin), r.Mscale*(x[a]*sin+x[b]*cos)
	}
}

// read returns n elements of a tensor from element at on.
func (s *source) read(name string, at int64, n int) ([]float64, error) {
	info, ok := s.file.Lookup(name)
	if !ok {
		return nil, fmt.Errorf("%s: tensor %q: is missing", s.file.Path(), name)
	}
	size := info.DType.Size()
	raw := make([]byte, n*size)
	if err := s.file.ReadAt(raw, name, at*int64(size)); err != nil {
		return nil, fmt.Errorf("reading %q: %w", name, err)
	}
	narrow := make([]float32, n)
	if err := tensor.Widen(narrow, raw, info.DType); err != nil {
		return nil, fmt.Errorf("reading %q: %w", name, err)
	}
	out := make([]float64, n)
	for i, v := range narrow {
		out[i] = float64(v)
	}
	return out, nil
}

// labels names the tokens of positions: the strings of the metadata, else the ids of the tensor, else nothing.
type labels struct {
	tokens []string
	file   *tensor.File
	ids    string
}

func newLabels(f *tensor.File, j *jobfile.Job, p *jobfile.Problem) labels {
	return labels{tokens: j.TokensOf(p), file: f, ids: p.TokenIDs}
}

// Tokens returns the tokens of n positions of a problem, "" where there is none.
func Tokens(f *tensor.File, j *jobfile.Job, p *jobfile.Problem, start int64, n int) ([]string, error) {
	names, tokens := newLabels(f, j, p), make([]string, n)
	for i := range tokens {
		var err error
		if tokens[i], err = names.at(start + int64(i)); err != nil {
			return nil, err
		}
	}
	return tokens, nil
}

// at returns the token at a position: "" where there is none.
func (l labels) at(position int64) (string, error) {
	if l.tokens != nil {
		if position < 0 || position >= int64(len(l.tokens)) {
			return "", nil
		}
		return l.tokens[position], nil
	}
	info, ok := l.file.Lookup(l.ids)
	if l.ids == "" || !ok || position < 0 || position >= info.Elements() {
		return "", nil
	}
	size := info.DType.Size()
	var raw [8]byte
	if err := l.file.ReadAt(raw[:size], l.ids, position*int64(size)); err != nil {
		return "", fmt.Errorf("reading token ids: %w", err)
	}
	bits := binary.LittleEndian.Uint64(raw[:])
	switch info.DType {
	case tensor.I8, tensor.I16, tensor.I32, tensor.I64:
		unused := 64 - 8*size
		return strconv.FormatInt(int64(bits<<unused)>>unused, 10), nil
	}
	return strconv.FormatUint(bits, 10), nil
}
