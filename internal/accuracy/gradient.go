package accuracy

import (
	"context"
	"fmt"
	"math"
	"slices"

	"headwater.example/attention/reference"
	"headwater.example/internal/explain"
	"headwater.example/internal/jobfile"
	"headwater.example/tensor"
)

// sum is a gradient that rows and problems add to, in the shape of its tensor.
type sum struct {
	info tensor.Info
	reference.Gradient
}

// add adds a share to the elements from at on. Without a sum there is nothing to add to.
func (s *sum) add(at int, share reference.Gradient) {
	if s == nil {
		return
	}
	for i, x := range share.Values {
		s.Values[at+i] += x
		s.Unit[at+i] += share.Unit[i]
	}
}

// gradients compares the gradients of a result with the truth. It holds all of them in float64.
func gradients(ctx context.Context, result, file *tensor.File, job *jobfile.Job) ([]Errors, error) {
	sums := map[string]*sum{}
	for _, info := range job.ResultInfos() {
		n := int(info.Elements())
		sums[info.Name] = &sum{info, reference.Gradient{Values: make([]float64, n), Unit: make([]float64, n)}}
	}
	for _, info := range job.Earlier() {
		x, err := read(file, info.Name)
		if err != nil {
			return nil, err
		}
		for i, v := range x {
			sums[info.Name].Values[i], sums[info.Name].Unit[i] = v, 0x1p-24*math.Abs(v)
		}
	}
	for i := range job.Problems {
		p := &job.Problems[i]
		add := addRows
		if p.DY != "" {
			add = addLayer
		}
		if err := add(ctx, file, p, sums); err != nil {
			return nil, err
		}
	}
	var all []Errors
	for _, info := range job.ResultInfos() {
		e, err := sums[info.Name].errors(result)
		if err != nil {
			return nil, err
		}
		all = append(all, e)
	}
	return all, nil
}

// addRows adds the gradients of a problem of kind attention_grad, row by row.
func addRows(ctx context.Context, file *tensor.File, p *jobfile.Problem, sums map[string]*sum) error {
	shape, tokens := p.Shape, p.Tokens
	dQ, dK, dV := sums[jobfile.GradientName(p.Q)], sums[jobfile.GradientName(p.K)], sums[jobfile.GradientName(p.V)]
	dBias, dSinks := sums[jobfile.GradientName(p.Bias)], sums[p.Prefix+"d_sinks"]
	return explain.Gradients(ctx, file, p, func(head, query int, g reference.Gradients) error {
		dQ.add((query*shape.Heads+head)*shape.HeadDim, g.Q)
		group := head / shape.GroupSize()
		for t := range p.KVLen {
			at := t*shape.KVHeads + group
			dK.add(at*shape.HeadDim, part(g.K, t, shape.HeadDim))
			dV.add(at*shape.VDim, part(g.V, t, shape.VDim))
		}
		dBias.add((min(head, p.BiasHeads-1)*tokens+query)*p.KVTokens, g.Bias)
		dSinks.add(head, g.Sinks)
		return nil
	})
}

// addLayer adds the gradients of a problem of kind layer_grad.
func addLayer(_ context.Context, file *tensor.File, p *jobfile.Problem, sums map[string]*sum) error {
	l, dY, err := layer(file, p)
	if err != nil {
		return err
	}
	g, err := reference.DifferentiateLayer(l, dY)
	if err != nil {
		return err
	}
	for _, t := range []struct {
		of string
		g  reference.Gradient
	}{{p.X, g.X}, {p.WQ, g.WQ}, {p.WK, g.WK}, {p.WV, g.WV}, {p.WO, g.WO}, {p.BQ, g.BQ}, {p.BK, g.BK}, {p.BV, g.BV}, {p.BO, g.BO}, {p.Bias, g.Bias}} {
		sums[jobfile.GradientName(t.of)].add(0, t.g)
	}
	sums[p.Prefix+"d_sinks"].add(0, g.Sinks)
	return nil
}

// layer reads a problem of kind layer_grad.
func layer(file *tensor.File, p *jobfile.Problem) (l reference.Layer, dY []float64, err error) {
	o := p.Options
	l = reference.Layer{DModel: p.DModel, Attention: reference.Problem{
		Tokens: p.Tokens, KVLen: p.KVLen, Heads: p.Shape.Heads, KVHeads: p.Shape.KVHeads, HeadDim: p.Shape.HeadDim, VDim: p.Shape.VDim,
		Causal: o.Causal, WindowLeft: o.WindowLeft, WindowRight: o.WindowRight, Scale: float64(o.Scale), Softcap: float64(o.Softcap),
		AlibiSlopes: wide(o.AlibiSlopes), Sinks: wide(o.Sinks), MaskHeads: p.MaskHeads, BiasHeads: p.BiasHeads,
	}}
	if r := p.Rope; r != nil {
		l.Rotation = &reference.Rotation{Base: r.Base, Dims: r.Dims, Interleaved: r.Interleaved, Scale: r.Scale, Factors: r.Factors, Mscale: r.Mscale}
	}
	for _, t := range []struct {
		name string
		to   *[]float64
	}{
		{p.X, &l.X},
		{p.WQ, &l.WQ},
		{p.WK, &l.WK},
		{p.WV, &l.WV},
		{p.WO, &l.WO},
		{p.BQ, &l.BQ},
		{p.BK, &l.BK},
		{p.BV, &l.BV},
		{p.BO, &l.BO},
		{p.Bias, &l.Attention.Bias},
		{p.DY, &dY},
	} {
		if t.name == "" {
			continue
		}
		if *t.to, err = read(file, t.name); err != nil {
			return l, nil, err
		}
	}
	if p.Mask != "" {
		l.Attention.Mask = make([]byte, p.MaskHeads*p.Tokens*p.KVTokens)
		err = file.ReadAt(l.Attention.Mask, p.Mask, 0)
	}
	return l, dY, err
}

// read returns a tensor of the job's file.
func read(file *tensor.File, name string) ([]float64, error) {
	info, ok := file.Lookup(name)
	if !ok {
		return nil, &tensor.FormatError{File: file.Path(), Tensor: name, Index: -1, Rule: "missing"}
	}
	bytes, narrow := make([]byte, info.Bytes()), make([]float32, info.Elements())
	if err := file.ReadAt(bytes, name, 0); err != nil {
		return nil, err
	}
	if err := tensor.Widen(narrow, bytes, info.DType); err != nil {
		return nil, fmt.Errorf("reading %q: %w", name, err)
	}
	return wide(narrow), nil
}

func wide(x []float32) []float64 {
	var y []float64
	for _, v := range x {
		y = append(y, float64(v))
	}
	return y
}

// part returns row i, of n elements.
func part(g reference.Gradient, i, n int) reference.Gradient {
	return reference.Gradient{Values: g.Values[i*n : (i+1)*n], Unit: g.Unit[i*n : (i+1)*n]}
}

// errors compares the tensor of the result, row by row of its last dimension.
func (s *sum) errors(result *tensor.File) (Errors, error) {
	info, ok := result.Lookup(s.info.Name)
	if !ok || info.DType != tensor.F32 || !slices.Equal(info.Shape, s.info.Shape) {
		return Errors{}, &tensor.FormatError{File: result.Path(), Tensor: s.info.Name, Index: -1, Rule: fmt.Sprintf("is %s %v, the job has F32 %v", info.DType, info.Shape, s.info.Shape)}
	}
	width := s.info.Shape[len(s.info.Shape)-1]
	rows := len(s.Values) / width
	e := Errors{Tensor: s.info.Name, Kind: Units, Rows: make([]float64, rows)}
	bytes, got := make([]byte, 4*width), make([]float32, width)
	for row := range rows {
		if err := result.ReadAt(bytes, s.info.Name, int64(row)*int64(len(bytes))); err != nil {
			return Errors{}, err
		}
		if err := tensor.Widen(got, bytes, tensor.F32); err != nil {
			return Errors{}, err
		}
		e.Rows[row], _ = part(s.Gradient, row, width).Units(got)
	}
	return e, nil
}
