package accuracy

import (
	"context"
	"fmt"
	"slices"

	"headwater.example/attention/reference"
	"headwater.example/internal/explain"
	"headwater.example/internal/jobfile"
	"headwater.example/tensor"
)

// sum is a gradient that rows add to, in the shape of its tensor.
type sum struct {
	info tensor.Info
	reference.Gradient
}

// add adds a row's share to the elements from at on.
func (s *sum) add(at int, share reference.Gradient) {
	for i, x := range share.Values {
		s.Values[at+i] += x
		s.Unit[at+i] += share.Unit[i]
	}
}

// gradients compares the gradients of a result with the truth. It holds those of a problem in float64.
func gradients(ctx context.Context, result, file *tensor.File, job *jobfile.Job) ([]Errors, error) {
	var all []Errors
	for i := range job.Problems {
		p := &job.Problems[i]
		sums := map[string]*sum{}
		var names []string
		for _, info := range p.Results() {
			n := int(info.Elements())
			name := info.Name[len(p.Prefix):]
			sums[name] = &sum{info, reference.Gradient{Values: make([]float64, n), Unit: make([]float64, n)}}
			names = append(names, name)
		}
		shape, tokens := p.Shape, p.Tokens
		err := explain.Gradients(ctx, file, p, func(head, query int, g reference.Gradients) error {
			sums["d_q"].add((query*shape.Heads+head)*shape.HeadDim, g.Q)
			group := head / shape.GroupSize()
			for t := range p.KVLen {
				at := t*shape.KVHeads + group
				sums["d_k"].add(at*shape.HeadDim, part(g.K, t, shape.HeadDim))
				sums["d_v"].add(at*shape.VDim, part(g.V, t, shape.VDim))
			}
			if b := sums["d_bias"]; b != nil {
				b.add((min(head, p.BiasHeads-1)*tokens+query)*p.KVTokens, g.Bias)
			}
			if s := sums["d_sinks"]; s != nil {
				s.add(head, g.Sinks)
			}
			return nil
		})
		if err != nil {
			return nil, err
		}
		for _, name := range names {
			e, err := sums[name].errors(result)
			if err != nil {
				return nil, err
			}
			all = append(all, e)
		}
	}
	return all, nil
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
