package scatter

import (
	"fmt"

	"headwater.example/internal/jobfile"
	headwaterv1 "headwater.example/proto/headwater/v1"
)

// stackedWidth is how many elements d_q, d_k and d_v of a token have, of all heads side by side.
func (p *problem) stackedWidth() int {
	return p.Shape.Heads*p.Shape.HeadDim + p.Shape.KVHeads*(p.Shape.HeadDim+p.Shape.VDim)
}

// place is where the elements of one group belong in a gradient: rows of width elements, stride elements apart.
type place struct {
	tensor        headwaterv1.GradientTensor
	of            string // name of the gradient in the result; "" belongs to what is stacked
	first         int64  // element of the gradient
	rows          int64
	width, stride int64
}

// places lists where a group's gradients belong, in the order in which they come.
func (p *problem) places(group int) []place {
	size, tokens, kvLen, kvTokens := int64(p.Shape.GroupSize()), int64(p.Tokens), int64(p.KVLen), int64(p.KVTokens)
	heads, groups, g, model := int64(p.Shape.Heads), int64(p.Shape.KVHeads), int64(group), int64(p.DModel)
	hd, vd := int64(p.Shape.HeadDim), int64(p.Shape.VDim)
	all := p.tokenPlaces(size, g)
	add := func(tensor headwaterv1.GradientTensor, of string, first, rows, width, stride int64) {
		if of != "" && rows*width > 0 {
			all = append(all, place{tensor, of, first, rows, width, stride})
		}
	}
	name := func(tensor string) string {
		if tensor == "" {
			return ""
		}
		return jobfile.GradientName(tensor)
	}
	if p.BiasHeads == 1 {
		add(headwaterv1.GradientTensor_GRADIENT_TENSOR_BIAS, name(p.Bias), 0, tokens, kvLen, kvTokens)
	} else {
		add(headwaterv1.GradientTensor_GRADIENT_TENSOR_BIAS, name(p.Bias), g*size*tokens*kvTokens, size*tokens, kvLen, kvTokens)
	}
	if len(p.Options.Sinks) > 0 {
		add(headwaterv1.GradientTensor_GRADIENT_TENSOR_SINKS, p.Prefix+"d_sinks", g*size, 1, size, size)
	}
	add(headwaterv1.GradientTensor_GRADIENT_TENSOR_W_Q, name(p.WQ), g*size*hd*model, size*hd, model, model)
	add(headwaterv1.GradientTensor_GRADIENT_TENSOR_W_K, name(p.WK), g*hd*model, hd, model, model)
	add(headwaterv1.GradientTensor_GRADIENT_TENSOR_W_V, name(p.WV), g*vd*model, vd, model, model)
	add(headwaterv1.GradientTensor_GRADIENT_TENSOR_W_O, name(p.WO), g*size*vd, model, size*vd, heads*vd)
	add(headwaterv1.GradientTensor_GRADIENT_TENSOR_B_Q, name(p.BQ), g*size*hd, 1, size*hd, heads*hd)
	add(headwaterv1.GradientTensor_GRADIENT_TENSOR_B_K, name(p.BK), g*hd, 1, hd, groups*hd)
	add(headwaterv1.GradientTensor_GRADIENT_TENSOR_B_V, name(p.BV), g*vd, 1, vd, groups*vd)
	if group == 0 {
		add(headwaterv1.GradientTensor_GRADIENT_TENSOR_B_O, name(p.BO), 0, 1, model, model)
	}
	return all
}

// tokenPlaces lists the places of d_q, d_k and d_v of group g, of so many heads.
func (p *problem) tokenPlaces(size, g int64) []place {
	heads, groups, hd, vd := int64(p.Shape.Heads), int64(p.Shape.KVHeads), int64(p.Shape.HeadDim), int64(p.Shape.VDim)
	tokens, kvLen := int64(p.Tokens), int64(p.KVLen)
	q := place{tensor: headwaterv1.GradientTensor_GRADIENT_TENSOR_Q, first: g * size * hd, rows: tokens, width: size * hd, stride: heads * hd}
	k := place{tensor: headwaterv1.GradientTensor_GRADIENT_TENSOR_K, first: g * hd, rows: kvLen, width: hd, stride: groups * hd}
	v := place{tensor: headwaterv1.GradientTensor_GRADIENT_TENSOR_V, first: g * vd, rows: kvLen, width: vd, stride: groups * vd}
	if p.projects() {
		stride := int64(p.stackedWidth())
		k.first, v.first = k.first+heads*hd, v.first+(heads+groups)*hd
		q.stride, k.stride, v.stride = stride, stride, stride
	} else {
		q.of, k.of, v.of = jobfile.GradientName(p.Q), jobfile.GradientName(p.K), jobfile.GradientName(p.V)
	}
	if kvLen == 0 {
		return []place{q}
	}
	return []place{q, k, v}
}

// gradientPart is one group's part of a gradient in a file: rows of width elements, stride elements apart.
type gradientPart struct {
	name          headwaterv1.GradientTensor
	file          file
	offset        int64 // of the part's first element, in bytes
	rows          int64
	width, stride int64
}

func (g gradientPart) elements() uint64 { return uint64(g.rows * g.width) }

// pieces calls do for elements [first, first+len(data)/4) of the part, with each run of them that lies together.
func (g gradientPart) pieces(first uint64, data []byte, do func(piece []byte, at int64) (int, error)) error {
	for at := int64(first); len(data) > 0; {
		row, column := at/g.width, at%g.width
		n := min(g.width-column, int64(len(data)/4))
		if g.width == g.stride {
			n = int64(len(data) / 4)
		}
		if _, err := do(data[:4*n], g.offset+4*(row*g.stride+column)); err != nil {
			return err
		}
		data, at = data[4*n:], at+n
	}
	return nil
}

func (g gradientPart) write(first uint64, data []byte) error {
	if err := g.pieces(first, data, g.file.WriteAt); err != nil {
		return fmt.Errorf("write gradients: %w", err)
	}
	return nil
}

func (g gradientPart) read(first uint64, data []byte) error {
	if err := g.pieces(first, data, g.file.ReadAt); err != nil {
		return fmt.Errorf("read gradients: %w", err)
	}
	return nil
}

// gradientParts lists where a group's gradients are written, in the order in which they come.
func (r *run) gradientParts(p *problem, group int) []gradientPart {
	var parts []gradientPart
	for _, w := range p.places(group) {
		part := gradientPart{w.tensor, r.Result, 0, w.rows, w.width, w.stride}
		a := p.addends[w.tensor]
		switch {
		case w.of == "":
			part.file, part.offset = r.scratch, p.stackedAt+4*w.first
		case a == nil:
			offset, _ := r.Layout.Offset(w.of) // prepare has looked
			part.offset = offset + 4*w.first
		case w.tensor == headwaterv1.GradientTensor_GRADIENT_TENSOR_BIAS:
			// There it has no positions that are hidden from all, and each share of a sum over groups follows the one before.
			part.file, part.stride = r.scratch, w.width
			part.offset = a.at + 4*int64(group)*w.rows*w.width
		default:
			part.file, part.offset = r.scratch, a.at+4*w.first
		}
		parts = append(parts, part)
	}
	return parts
}
