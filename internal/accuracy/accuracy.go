// Package accuracy compares results with each other, bit for bit, and with a float64 truth, in units of rounding error.
package accuracy

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"slices"
	"strings"

	"headwater.example/attention/reference"
	"headwater.example/internal/explain"
	"headwater.example/internal/jobfile"
	"headwater.example/tensor"
)

// Kinds of error of a row.
const (
	// Units counts in 2⁻²⁴·(1 + S)·max|v|, S with |bias| and slope·distance in it, or in the units of gradients
	// (docs/numerics.md). The truth gives the unit of each row of a context, and of each element of a gradient.
	Units = "units"
	// Relative is relative to the row's largest absolute value.
	Relative = "relative"
)

// Errors are the errors of one tensor of a result.
type Errors struct {
	Tensor string    `json:"tensor"`
	Kind   string    `json:"kind"`
	Rows   []float64 `json:"rows"` // by row: the last dimension of the tensor
}

// Worst returns the largest error and its row.
func (e Errors) Worst() (most float64, row int) {
	for i, v := range e.Rows {
		if v > most || math.IsNaN(v) {
			most, row = v, i
		}
	}
	return most, row
}

// Against compares the tensors of a truth, "…context" and "…y" in F64, with those of a result in F32. A context's errors are
// in units where the truth has a tensor "…unit" beside it, and relative otherwise, as those of y are.
func Against(result, truth *tensor.File) ([]Errors, error) {
	var all []Errors
	for _, name := range truth.Names() {
		prefix, isContext := strings.CutSuffix(name, "context")
		if !isContext && name != "y" && !strings.HasSuffix(name, ".y") {
			continue
		}
		unit := ""
		if isContext {
			unit = prefix + "unit"
		}
		e, err := against(result, truth, name, unit)
		if err != nil {
			return nil, err
		}
		all = append(all, e)
	}
	if len(all) == 0 {
		return nil, &tensor.FormatError{File: truth.Path(), Index: -1, Rule: "holds no tensor context or y to compare with"}
	}
	return all, nil
}

// AgainstJob computes the truth of a job of any kind but layer in float64 and compares the contexts, or the gradients, of its
// result with it, in units. What the job was run with the result says.
func AgainstJob(ctx context.Context, result, file *tensor.File) ([]Errors, error) {
	var ran struct {
		Options json.RawMessage `json:"options"`
	}
	if err := json.Unmarshal([]byte(result.Metadata()["headwater"]), &ran); err != nil {
		return nil, &tensor.FormatError{File: result.Path(), Index: -1, Rule: "is no result: its metadata does not say what it is of"}
	}
	job, err := jobfile.Parse(file, ran.Options)
	if err != nil {
		return nil, err
	}
	switch job.Kind {
	case jobfile.KindAttentionGrad, jobfile.KindLayerGrad:
		return gradients(ctx, result, file, job)
	case jobfile.KindLayer:
		return nil, &tensor.FormatError{File: file.Path(), Index: -1, Rule: "is of kind layer, whose projections have no unit of error: compare with a file of the truth"}
	}
	var all []Errors
	for i := range job.Problems {
		p := &job.Problems[i]
		e := Errors{Tensor: p.Prefix + "context", Kind: Units, Rows: make([]float64, p.Tokens*p.Shape.Heads)}
		info, ok := result.Lookup(e.Tensor)
		if shape := []int{p.Tokens, p.Shape.Heads, p.Shape.VDim}; !ok || info.DType != tensor.F32 || !slices.Equal(info.Shape, shape) {
			return nil, &tensor.FormatError{File: result.Path(), Tensor: e.Tensor, Index: -1, Rule: fmt.Sprintf("is %s %v, the job has F32 %v", info.DType, info.Shape, shape)}
		}
		got, row := make([]byte, 4*p.Shape.VDim), make([]float32, p.Shape.VDim)
		err := explain.Truth(ctx, file, p, func(head, query int, truth reference.Result) error {
			at := query*p.Shape.Heads + head
			if err := result.ReadAt(got, e.Tensor, int64(at)*int64(len(got))); err != nil {
				return err
			}
			if err := tensor.Widen(row, got, tensor.F32); err != nil {
				return err
			}
			e.Rows[at], _, _ = truth.Units(row)
			return nil
		})
		if err != nil {
			return nil, err
		}
		all = append(all, e)
	}
	return all, nil
}

func against(result, truth *tensor.File, name, unit string) (Errors, error) {
	want, _ := truth.Lookup(name)
	have, ok := result.Lookup(name)
	wrong := func(f *tensor.File, rule string, args ...any) (Errors, error) {
		return Errors{}, &tensor.FormatError{File: f.Path(), Tensor: name, Index: -1, Rule: fmt.Sprintf(rule, args...)}
	}
	switch {
	case want.DType != tensor.F64 || len(want.Shape) == 0:
		return wrong(truth, "truth is %s %v, must be F64 with at least one dimension", want.DType, want.Shape)
	case !ok:
		return wrong(result, "missing")
	case have.DType != tensor.F32 || fmt.Sprint(have.Shape) != fmt.Sprint(want.Shape):
		return wrong(result, "is %s %v, the truth has shape %v", have.DType, have.Shape, want.Shape)
	}
	width := want.Shape[len(want.Shape)-1]
	rows := int(want.Elements()) / max(width, 1)
	e := Errors{Tensor: name, Kind: Relative, Rows: make([]float64, rows)}
	units, ok := truth.Lookup(unit)
	if ok && units.DType == tensor.F64 && units.Elements() == int64(rows) {
		e.Kind = Units
	}
	exact, got, scale := make([]byte, 8*width), make([]byte, 4*width), make([]byte, 8)
	for row := range rows {
		err := errors.Join(truth.ReadAt(exact, name, int64(row)*int64(len(exact))), result.ReadAt(got, name, int64(row)*int64(len(got))))
		if err == nil && e.Kind == Units {
			err = truth.ReadAt(scale, unit, int64(row)*8)
		}
		if err != nil {
			return Errors{}, err
		}
		var largest, worst float64
		for i := range width {
			t := math.Float64frombits(binary.LittleEndian.Uint64(exact[8*i:]))
			largest = max(largest, math.Abs(t))
			worst = max(worst, math.Abs(t-float64(math.Float32frombits(binary.LittleEndian.Uint32(got[4*i:])))))
		}
		if e.Kind == Units {
			largest = math.Float64frombits(binary.LittleEndian.Uint64(scale))
		}
		if worst != 0 { // also where nothing is visible and the unit is 0
			e.Rows[row] = worst / largest
		}
	}
	return e, nil
}

// Difference is the first element at which a tensor of two files differs.
type Difference struct {
	Tensor string `json:"tensor"`
	Rule   string `json:"rule"`
}

// Diff compares all tensors of two files bit for bit, and returns the first difference of each tensor that differs and the
// number of bytes that were compared.
func Diff(a, b *tensor.File) (differences []Difference, compared int64, err error) {
	differ := func(name, rule string, args ...any) {
		differences = append(differences, Difference{name, fmt.Sprintf(rule, args...)})
	}
	for _, name := range b.Names() {
		if _, ok := a.Lookup(name); !ok {
			differ(name, "is only in %s", b.Path())
		}
	}
	for _, name := range a.Names() {
		x, _ := a.Lookup(name)
		y, ok := b.Lookup(name)
		switch {
		case !ok:
			differ(name, "is only in %s", a.Path())
			continue
		case x.DType != y.DType || fmt.Sprint(x.Shape) != fmt.Sprint(y.Shape):
			differ(name, "is %s %v in %s and %s %v in %s", x.DType, x.Shape, a.Path(), y.DType, y.Shape, b.Path())
			continue
		}
		const piece = 1 << 20
		size := x.DType.Size()
		p, q := make([]byte, min(x.Bytes(), piece)), make([]byte, min(x.Bytes(), piece))
		for at := int64(0); at < x.Bytes(); at += piece {
			n := min(x.Bytes()-at, piece)
			if err := errors.Join(a.ReadAt(p[:n], name, at), b.ReadAt(q[:n], name, at)); err != nil {
				return nil, 0, err
			}
			if !bytes.Equal(p[:n], q[:n]) {
				i := 0
				for p[i] == q[i] {
					i++
				}
				i -= i % size
				differ(name, "element %d is %x and %x", (at+int64(i))/int64(size), p[i:i+size], q[i:i+size])
				break
			}
			compared += n
		}
	}
	return differences, compared, nil
}
