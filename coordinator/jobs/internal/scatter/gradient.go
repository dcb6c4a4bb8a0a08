package scatter

import (
	"fmt"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"headwater.example/coordinator/jobs/internal/ledger"
	"headwater.example/internal/rpc"
	headwaterv1 "headwater.example/proto/headwater/v1"
	"headwater.example/shard"
	"headwater.example/tensor"
)

// gradientMessage says what the worker is given for its gradients.
func (p *problem) gradientMessage() *headwaterv1.Gradients {
	// A mask or bias of each head has those of the group's.
	group := func(heads int) uint32 { return uint32(min(heads, p.Shape.GroupSize())) }
	return &headwaterv1.Gradients{Given: p.Context != "", MaskHeads: group(p.MaskHeads), BiasHeads: group(p.BiasHeads), OutputBias: p.BO != ""}
}

// sharesBias says whether the gradient of the bias is a sum over groups.
func (p *problem) sharesBias() bool { return p.BiasHeads == 1 && p.Shape.KVHeads > 1 }

// sendGradient reads the tokens of a group and sends them, and its mask and bias after them.
func (r *run) sendGradient(a ask, put func(*headwaterv1.RunRequest) error) error {
	p, g := a.problem, int(a.groups[0])
	size := p.Shape.GroupSize()
	width := size * max(p.Shape.HeadDim, p.Shape.VDim)
	if p.projects() {
		width = p.DModel
	}
	step := max(rpc.BlockBytes/(4*width), 1)
	for start := 0; start < p.Tokens; start += step {
		n := min(step, p.Tokens-start)
		m := &headwaterv1.GradientBlock{Problem: uint32(p.index), Group: uint32(g), Start: uint64(start), Count: uint32(n)}
		if err := r.readTokens(p, g, m, start, n); err != nil {
			return err
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

// readTokens reads what a group is given of tokens [start, start+n).
func (r *run) readTokens(p *problem, g int, m *headwaterv1.GradientBlock, start, n int) (err error) {
	if p.projects() {
		if m.Q, err = r.rows(p.X, start, n, p.DModel); err != nil {
			return err
		}
		m.Cos, m.Sin = p.tables(int64(start), n)
		m.DContext, err = r.rows(p.DY, start, n, p.DModel)
		return err
	}
	size, hd, vd := p.Shape.GroupSize(), p.Shape.HeadDim, p.Shape.VDim
	for _, t := range []struct {
		name  string
		width int
		to    *[]byte
	}{{p.Q, size * hd, &m.Q}, {p.DContext, size * vd, &m.DContext}, {p.Context, size * vd, &m.Context}, {p.LSE, size, &m.Lse}} {
		if t.name == "" {
			continue
		}
		if *t.to, err = r.columns(t.name, start, n, p.Shape.KVHeads*t.width, g*t.width, t.width); err != nil {
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
	if !l.awaits(key) || !r.problems[key.problem].Differentiates() {
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
