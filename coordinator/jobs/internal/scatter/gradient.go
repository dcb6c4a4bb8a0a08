package scatter

import (
	"fmt"
	"math"
	"os"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"headwater.example/coordinator/jobs/internal/ledger"
	"headwater.example/internal/rpc"
	headwaterv1 "headwater.example/proto/headwater/v1"
	"headwater.example/shard"
	"headwater.example/tensor"
)

// differentiates says whether gradients are asked for, and not contexts.
func (p *problem) differentiates() bool { return p.DContext != "" }

// gradientMessage says what the worker is given for its gradients.
func (p *problem) gradientMessage() *headwaterv1.Gradients {
	// A mask or bias of each head has those of the group's.
	group := func(heads int) uint32 { return uint32(min(heads, p.Shape.GroupSize())) }
	return &headwaterv1.Gradients{Given: p.Context != "", MaskHeads: group(p.MaskHeads), BiasHeads: group(p.BiasHeads)}
}

// sharesBias says whether the gradient of the bias is a sum over groups.
func (p *problem) sharesBias() bool { return p.BiasHeads == 1 && p.Shape.KVHeads > 1 }

// sendGradient reads the tokens of a group and sends them, and its mask and bias after them.
func (r *run) sendGradient(a ask, put func(*headwaterv1.RunRequest) error) error {
	p, g := a.problem, int(a.groups[0])
	size := p.Shape.GroupSize()
	step := max(rpc.BlockBytes/(4*size*max(p.Shape.HeadDim, p.Shape.VDim)), 1)
	for start := 0; start < p.Tokens; start += step {
		n := min(step, p.Tokens-start)
		m := &headwaterv1.GradientBlock{Problem: uint32(p.index), Group: uint32(g), Start: uint64(start), Count: uint32(n)}
		for _, t := range []struct {
			name  string
			width int
			to    *[]byte
		}{{p.Q, size * p.Shape.HeadDim, &m.Q}, {p.DContext, size * p.Shape.VDim, &m.DContext}, {p.Context, size * p.Shape.VDim, &m.Context}, {p.LSE, size, &m.Lse}} {
			if t.name == "" {
				continue
			}
			var err error
			if *t.to, err = r.columns(t.name, start, n, p.Shape.KVHeads*t.width, g*t.width, t.width); err != nil {
				return err
			}
		}
		if err := put(&headwaterv1.RunRequest{Request: &headwaterv1.RunRequest_Gradient{Gradient: m}}); err != nil {
			return err
		}
	}
	for _, o := range []operand{
		{kind: headwaterv1.Operand_OPERAND_MASK, name: p.Mask, heads: p.heads(p.MaskHeads, a.groups), element: 1},
		{kind: headwaterv1.Operand_OPERAND_BIAS, name: p.Bias, heads: p.heads(p.BiasHeads, a.groups), element: 4},
	} {
		if err := r.sendOperand(p, o, 0, p.Tokens, put); err != nil {
			return err
		}
	}
	return nil
}

// columns reads columns [from, from+n) of rows [start, start+count) of a tensor [.., width], and widens them to f32.
func (r *run) columns(name string, start, count, width, from, n int) ([]byte, error) {
	if n == width {
		return r.rows(name, start, count, width)
	}
	info, ok := r.input.Lookup(name)
	if !ok {
		return nil, fmt.Errorf("%s: tensor %q: missing", r.input.Path(), name)
	}
	size := info.DType.Size()
	data := make([]byte, count*n*size)
	for i := range count {
		at := (int64(start+i)*int64(width) + int64(from)) * int64(size)
		if err := r.input.ReadAt(data[i*n*size:(i+1)*n*size], name, at); err != nil {
			return nil, err
		}
	}
	if info.DType == tensor.F32 {
		return data, nil
	}
	wide := make([]float32, count*n)
	if err := tensor.Widen(wide, data, info.DType); err != nil {
		return nil, fmt.Errorf("%s: tensor %q: %w", r.input.Path(), name, err)
	}
	return littleEndian(wide), nil
}

// gradientPart is one group's part of a gradient in a file: rows of width elements, stride elements apart.
type gradientPart struct {
	name          headwaterv1.GradientTensor
	to            file
	offset        int64 // of the part's first element, in bytes
	rows          int64
	width, stride int64
}

func (g gradientPart) elements() uint64 { return uint64(g.rows * g.width) }

// write writes elements [first, first+len(data)/4) of the part.
func (g gradientPart) write(first uint64, data []byte) error {
	for at := int64(first); len(data) > 0; {
		row, column := at/g.width, at%g.width
		n := min(g.width-column, int64(len(data)/4))
		if g.width == g.stride {
			n = int64(len(data) / 4)
		}
		if _, err := g.to.WriteAt(data[:4*n], g.offset+4*(row*g.stride+column)); err != nil {
			return fmt.Errorf("write result: %w", err)
		}
		data, at = data[4*n:], at+n
	}
	return nil
}

// gradientParts lists where a group's gradients belong, in the order in which they come.
func (r *run) gradientParts(p *problem, group int) []gradientPart {
	size, tokens, kvLen, kvTokens := int64(p.Shape.GroupSize()), int64(p.Tokens), int64(p.KVLen), int64(p.KVTokens)
	heads, groups, g := int64(p.Shape.Heads), int64(p.Shape.KVHeads), int64(group)
	at := func(name string, element int64) int64 {
		offset, _ := r.Layout.Offset(p.Prefix + name) // prepare has looked
		return offset + 4*element
	}
	hd, vd := int64(p.Shape.HeadDim), int64(p.Shape.VDim)
	parts := []gradientPart{
		{headwaterv1.GradientTensor_GRADIENT_TENSOR_Q, r.Result, at("d_q", g*size*hd), tokens, size * hd, heads * hd},
		{headwaterv1.GradientTensor_GRADIENT_TENSOR_K, r.Result, at("d_k", g*hd), kvLen, hd, groups * hd},
		{headwaterv1.GradientTensor_GRADIENT_TENSOR_V, r.Result, at("d_v", g*vd), kvLen, vd, groups * vd},
	}
	switch {
	case p.sharesBias():
		parts = append(parts, gradientPart{headwaterv1.GradientTensor_GRADIENT_TENSOR_BIAS, r.scratch, p.scratchAt + 4*g*tokens*kvLen, tokens, kvLen, kvLen})
	case p.BiasHeads == 1:
		parts = append(parts, gradientPart{headwaterv1.GradientTensor_GRADIENT_TENSOR_BIAS, r.Result, at("d_bias", 0), tokens, kvLen, kvTokens})
	case p.BiasHeads > 1:
		parts = append(parts, gradientPart{headwaterv1.GradientTensor_GRADIENT_TENSOR_BIAS, r.Result, at("d_bias", g*size*tokens*kvTokens), size * tokens, kvLen, kvTokens})
	}
	if len(p.Options.Sinks) > 0 {
		parts = append(parts, gradientPart{headwaterv1.GradientTensor_GRADIENT_TENSOR_SINKS, r.Result, at("d_sinks", g*size), 1, size, size})
	}
	kept := parts[:0]
	for _, part := range parts {
		if part.elements() > 0 {
			kept = append(kept, part)
		}
	}
	return kept
}

// arriving is how far a group's gradients have come on a stream.
type arriving struct {
	parts []gradientPart
	next  uint64 // element of the first of them
}

// takeGradient writes a piece of a group's gradients, and with the last of them accepts the group into the account.
func (r *run) takeGradient(l *stream, m *headwaterv1.Gradient, memory *rpc.Buffer) error {
	defer memory.Free()
	wrong := func(format string, args ...any) error {
		return status.Errorf(codes.Internal, "worker %q: gradients of problem %d group %d: %s", l.name, m.GetProblem(), m.GetGroup(), fmt.Sprintf(format, args...))
	}
	key := askKey{int(m.GetProblem()), 0, int(m.GetGroup())}
	if !l.awaits(key) || !r.problems[key.problem].differentiates() {
		return wrong("it was not asked for them")
	}
	a := l.arriving[key]
	if a == nil {
		a = &arriving{parts: r.gradientParts(r.problems[key.problem], key.part)}
		l.arriving[key] = a
	}
	n := uint64(len(m.GetData()) / 4)
	switch {
	case len(a.parts) == 0 || a.parts[0].name != m.GetTensor() || a.next != m.GetFirst():
		return wrong("%s from element %d is not what comes next", m.GetTensor(), m.GetFirst())
	case n == 0 || len(m.GetData())%4 != 0 || n > a.parts[0].elements()-a.next:
		return wrong("%d bytes from element %d of %s, which has %d", len(m.GetData()), m.GetFirst(), m.GetTensor(), a.parts[0].elements())
	}
	if at, value, ok := tensor.CheckFinite(m.GetData(), tensor.F32, false); !ok {
		return wrong("element %d of %s is %v", m.GetFirst()+uint64(at), m.GetTensor(), value)
	}
	if err := a.parts[0].write(a.next, m.GetData()); err != nil {
		return err
	}
	if a.next += n; a.next == a.parts[0].elements() {
		a.parts, a.next = a.parts[1:], 0
	}
	l.report.BytesInRaw += 4 * n
	l.report.BytesInWire += 4 * n
	if m.GetLast() != (len(a.parts) == 0) {
		return wrong("%d tensors are left at the last piece", len(a.parts))
	}
	if !m.GetLast() {
		return nil
	}
	delete(l.arriving, key)
	unit := ledger.Unit{Problem: key.problem, Group: shard.Group(key.part)}
	if err := r.ledger.Answer(l.name, shard.Epoch(m.GetEpoch()), unit); err != nil {
		return status.Error(codes.Internal, err.Error())
	}
	sent, _ := l.answered(key)
	compute := time.Duration(m.GetComputeNanos())
	l.account(compute, time.Since(sent)-compute-time.Duration(m.GetQueueNanos()))
	r.progress.UnitsDone++
	r.tell(false)
	return nil
}

// openScratch makes room on the disk for the groups' shares of biases that they have in common. The file has no name.
func (r *run) openScratch() error {
	var bytes int64
	for _, p := range r.problems {
		if p.differentiates() && p.sharesBias() {
			p.scratchAt = bytes
			bytes += 4 * int64(p.Shape.KVHeads) * int64(p.Tokens) * int64(p.KVLen)
		}
	}
	if bytes == 0 {
		return nil
	}
	f, err := os.CreateTemp(r.Scratch, ".gradients-*")
	if err != nil {
		return fmt.Errorf("make a file for the gradients of biases: %w", err)
	}
	r.scratch = f
	return os.Remove(f.Name())
}

func (r *run) closeScratch() error {
	if r.scratch == nil {
		return nil
	}
	return r.scratch.Close()
}

// sumBiases adds up, groups ascending, the groups' shares of biases that they have in common.
func (r *run) sumBiases() error {
	for _, p := range r.problems {
		if !p.differentiates() || !p.sharesBias() || p.KVLen == 0 {
			continue
		}
		offset, _ := r.Layout.Offset(p.Prefix + "d_bias")
		out := gradientPart{to: r.Result, offset: offset, width: int64(p.KVLen), stride: int64(p.KVTokens)}
		total := int64(p.Tokens) * int64(p.KVLen)
		for first := int64(0); first < total; first += rpc.BlockBytes / 4 {
			n := min(rpc.BlockBytes/4, total-first)
			sum, share := make([]float32, n), make([]byte, 4*n)
			for g := range int64(p.Shape.KVHeads) {
				if _, err := r.scratch.ReadAt(share, p.scratchAt+4*(g*total+first)); err != nil {
					return fmt.Errorf("read the gradients of a bias: %w", err)
				}
				for i, x := range floats(share) {
					sum[i] += x
				}
			}
			for i, x := range sum {
				if math.IsInf(float64(x), 0) || x != x {
					at := first + int64(i)
					return status.Errorf(codes.OutOfRange, "problem %q: d_bias: token %d, position %d: is not finite", p.Prefix, at/int64(p.KVLen), at%int64(p.KVLen))
				}
			}
			if err := out.write(uint64(first), littleEndian(sum)); err != nil {
				return err
			}
		}
	}
	return nil
}

// checkGradients sees to it that the result has the tensors of a problem's gradients.
func (r *run) checkGradients(p *problem) error {
	names := []string{"d_q", "d_k", "d_v"}
	if p.BiasHeads != 0 {
		names = append(names, "d_bias")
	}
	if len(p.Options.Sinks) > 0 {
		names = append(names, "d_sinks")
	}
	for _, name := range names {
		if _, ok := r.Layout.Offset(p.Prefix + name); !ok {
			return fmt.Errorf("result has no tensor %q", p.Prefix+name)
		}
	}
	return nil
}
