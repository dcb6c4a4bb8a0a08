package scatter

import (
	"headwater.example/internal/rpc"

	headwaterv1 "headwater.example/proto/headwater/v1"
	"headwater.example/shard"
)

// cutAsks cuts asks to one group each for gradients, and where the mask or the bias differs from head to head, so that one
// ask's operands stay small.
func (p *problem) cutAsks(asks []ask) []ask {
	if p.MaskHeads <= 1 && p.BiasHeads <= 1 && !p.Differentiates() {
		return asks
	}
	var cut []ask
	for _, a := range asks {
		for _, g := range a.groups {
			cut = append(cut, ask{block: a.block, groups: []shard.Group{g}})
		}
	}
	return cut
}

// sendAsk reads a query block's rows and sends them, and its mask and bias after it.
func (r *run) sendAsk(a ask, put func(*headwaterv1.RunRequest) error) error {
	if a.strip != nil {
		return r.sendOutput(a, put)
	}
	if a.problem.Differentiates() {
		return r.sendGradient(a, put)
	}
	p := a.problem
	start, count := p.block(a.block)
	m := &headwaterv1.QueryBlock{
		Problem: uint32(p.index), Block: uint32(a.block), Groups: numbers(a.groups), Start: uint64(start), Count: uint32(count),
	}
	var err error
	if p.projects() {
		if m.Q, err = r.rows(p.X, start, count, p.DModel); err != nil {
			return err
		}
		m.Cos, m.Sin = p.tables(p.Offset+int64(start), count)
	} else {
		row := p.Shape.GroupSize() * p.Shape.HeadDim
		q, err := r.rows(p.Q, start, count, p.Shape.KVHeads*row)
		if err != nil {
			return err
		}
		m.Q = make([]byte, len(a.groups)*count*row*4)
		pick(m.Q, q, a.groups, count, p.Shape.KVHeads, row*4)
	}
	mask := operand{kind: headwaterv1.Operand_OPERAND_MASK, name: p.Mask, heads: p.heads(p.MaskHeads, a.groups), element: 1}
	bias := operand{kind: headwaterv1.Operand_OPERAND_BIAS, name: p.Bias, heads: p.heads(p.BiasHeads, a.groups), element: 4}
	m.MaskBytes, m.MaskHeads = mask.bytes(count*p.KVLen), uint32(len(mask.heads))
	m.BiasBytes, m.BiasHeads = bias.bytes(count*p.KVLen), uint32(len(bias.heads))
	if err := put(&headwaterv1.RunRequest{Request: &headwaterv1.RunRequest_Query{Query: m}}); err != nil {
		return err
	}
	for _, o := range []operand{mask, bias} {
		if err := r.sendOperand(p, o, start, count, put); err != nil {
			return err
		}
	}
	return nil
}

// operand is a mask or a bias [heads, tokens, kv_tokens] in the job's file.
type operand struct {
	kind    headwaterv1.Operand
	name    string
	heads   []int // which of its heads; none without the operand
	element int   // bytes
}

func (o operand) bytes(elements int) uint64 {
	return uint64(len(o.heads)) * uint64(elements) * uint64(o.element)
}

// heads lists the heads of an operand with n of them that some groups need.
func (p *problem) heads(n int, groups []shard.Group) []int {
	switch n {
	case 0:
		return nil
	case 1:
		return []int{0}
	}
	var heads []int
	for _, g := range groups {
		for h := range p.Shape.GroupSize() {
			heads = append(heads, int(g)*p.Shape.GroupSize()+h)
		}
	}
	return heads
}

// sendOperand streams [heads, count, kv_len] of an operand.
func (r *run) sendOperand(p *problem, o operand, start, count int, put func(*headwaterv1.RunRequest) error) error {
	var offset uint64
	rest := len(o.heads) * count * p.KVLen * o.element // bytes
	var buffer []byte
	room := func() {
		n := min(rest, rpc.BlockBytes)
		buffer, rest = make([]byte, 0, n), rest-n
	}
	room()
	flush := func() error {
		if len(buffer) == 0 {
			return nil
		}
		err := put(&headwaterv1.RunRequest{Request: &headwaterv1.RunRequest_Operand{Operand: &headwaterv1.OperandBlock{
			Operand: o.kind, Offset: offset, Data: buffer,
		}}})
		offset += uint64(len(buffer))
		room()
		return err
	}
	for _, h := range o.heads {
		for t := start; t < start+count; t++ {
			at := (int64(h)*int64(p.Tokens) + int64(t)) * int64(p.KVTokens) * int64(o.element)
			for left := p.KVLen * o.element; left > 0; {
				n := min(left, cap(buffer)-len(buffer))
				piece := buffer[len(buffer) : len(buffer)+n]
				if err := r.input.ReadAt(piece, o.name, at); err != nil {
					return err
				}
				buffer, at, left = buffer[:len(buffer)+n], at+int64(n), left-n
				if len(buffer) == cap(buffer) {
					if err := flush(); err != nil {
						return err
					}
				}
			}
		}
	}
	return flush()
}
