package scatter

import (
	"context"

	"headwater.example/internal/rpc"
	headwaterv1 "headwater.example/proto/headwater/v1"
	"headwater.example/shard"
)

// contextWeights gives a stream the columns of w_o that read a group's contexts, turned to rows: by them derivatives by
// outputs become those by contexts. Only gradients need them.
func (r *run) contextWeights(ctx context.Context, p *problem, s *share, g shard.Group) error {
	if !p.Differentiates() {
		return nil
	}
	rows := p.Shape.GroupSize() * p.Shape.VDim
	step := max(rpc.BlockBytes/(4*p.DModel), 1)
	for row := 0; row < rows; row += step {
		n := min(step, rows-row)
		data := make([]byte, 4*n*p.DModel)
		if err := r.turn(data, p.DModel, 0, p.WO, p.DModel, p.Shape.Heads*p.Shape.VDim, int(g)*rows+row, n); err != nil {
			return err
		}
		err := s.stream.push(ctx, &headwaterv1.RunRequest{Request: &headwaterv1.RunRequest_Weights{Weights: &headwaterv1.WeightBlock{
			Problem: uint32(p.index), Weight: headwaterv1.Weight_WEIGHT_CONTEXT, Group: uint32(g), Row: uint32(row), Data: data,
		}}}, nil)
		if err != nil {
			return err
		}
	}
	return nil
}

// stackedWeights cuts columns [first, first+n) of w_q, w_k and w_v, one above the other, to messages, turned to rows. Their
// biases are 0, so that no −0 is left in d_x.
func (r *run) stackedWeights(p *problem, first, n int, send func(row int, data, bias []byte) error) error {
	width, end := p.stackedWidth(), first+n
	step := max(rpc.BlockBytes/(4*width), 1)
	for row := first; row < end; row += step {
		n := min(step, end-row)
		data := make([]byte, 4*n*width)
		at := 0
		for _, w := range []struct {
			name string
			rows int
		}{{p.WQ, p.Shape.Heads * p.Shape.HeadDim}, {p.WK, p.Shape.KVHeads * p.Shape.HeadDim}, {p.WV, p.Shape.KVHeads * p.Shape.VDim}} {
			if err := r.turn(data, width, at, w.name, w.rows, p.DModel, row, n); err != nil {
				return err
			}
			at += w.rows
		}
		if err := send(row, data, make([]byte, 4*n)); err != nil {
			return err
		}
	}
	return nil
}

// turn writes columns [from, from+n) of a weight [rows, columns] as rows of dst [n, width], from element at on.
func (r *run) turn(dst []byte, width, at int, name string, rows, columns, from, n int) error {
	data, err := r.columns(name, 0, rows, columns, from, n)
	if err != nil {
		return err
	}
	for row := range rows {
		for c := range n {
			copy(dst[4*(c*width+at+row):][:4], data[4*(row*n+c):])
		}
	}
	return nil
}
