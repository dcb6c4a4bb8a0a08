package jobfile

import (
	"slices"
	"strings"

	"headwater.example/tensor"
)

// gradientNames are the own names of gradients, in the order in which a result has them.
var gradientNames = []string{"d_q", "d_k", "d_v", "d_x", "d_w_q", "d_w_k", "d_w_v", "d_w_o", "d_b_q", "d_b_k", "d_b_v", "d_b_o", "d_bias", "d_sinks"}

// GradientName is the name of a tensor's gradient: the tensor's, with d_ before the part that stands behind the prefix.
func GradientName(name string) string {
	dot := strings.LastIndexByte(name, '.')
	return name[:dot+1] + "d_" + name[dot+1:]
}

// gradients lists the gradients of the problem.
func (p *Problem) gradients() []tensor.Info {
	heads, groups, hd, vd := p.Shape.Heads, p.Shape.KVHeads, p.Shape.HeadDim, p.Shape.VDim
	var infos []tensor.Info
	for _, t := range []struct {
		of    string
		shape []int
	}{
		{p.Q, []int{p.Tokens, heads, hd}},
		{p.K, []int{p.KVTokens, groups, hd}},
		{p.V, []int{p.KVTokens, groups, vd}},
		{p.X, []int{p.Tokens, p.DModel}},
		{p.WQ, []int{heads * hd, p.DModel}},
		{p.WK, []int{groups * hd, p.DModel}},
		{p.WV, []int{groups * vd, p.DModel}},
		{p.WO, []int{p.DModel, heads * vd}},
		{p.BQ, []int{heads * hd}},
		{p.BK, []int{groups * hd}},
		{p.BV, []int{groups * vd}},
		{p.BO, []int{p.DModel}},
		{p.Bias, []int{p.BiasHeads, p.Tokens, p.KVTokens}},
	} {
		if t.of != "" {
			infos = append(infos, result(GradientName(t.of), t.shape...))
		}
	}
	if len(p.Options.Sinks) != 0 {
		infos = append(infos, result(p.Prefix+"d_sinks", heads))
	}
	return infos
}

// earlier finds the gradients that the file holds.
func (b *builder) earlier() *Error {
	if !b.job.Kind.differentiates() {
		return nil
	}
	results := make(map[string]tensor.Info, len(b.job.results))
	for _, info := range b.job.results {
		results[info.Name] = info
	}
	for _, name := range b.file.Names() {
		if _, own, ok := splitName(name); !ok || !slices.Contains(gradientNames, own) {
			continue
		}
		want, ok := results[name]
		info, _ := b.file.Lookup(name)
		switch {
		case !ok:
			return fault(name, "is the gradient of no tensor of the job")
		case info.DType != want.DType:
			return fault(name, "has dtype %s, must be %s", info.DType, want.DType)
		case !slices.Equal(info.Shape, want.Shape):
			return fault(name, "has shape %s, the job's gradient has %s", shapeString(info.Shape), shapeString(want.Shape))
		}
		b.used[name] = true
		b.checks(info, false)
		b.job.earlier = append(b.job.earlier, info)
	}
	return nil
}

// derivative is a tensor that a problem is given for its gradients.
type derivative struct {
	name, dims string
	types      []tensor.DType
	shape      []int
	to         *string
}

// gradient finds what kinds of gradients have beside what contexts and outputs are made of.
func (b *builder) gradient(at prefix, p *Problem) *Error {
	if b.job.Kind == KindLayerGrad {
		if p.WO == "" {
			return fault(p.Prefix+"w_o", "is missing: kind %q has it", b.job.Kind)
		}
		if err := b.derivative(at, derivative{"d_y", "tokens, d_model", floats, []int{p.Tokens, p.DModel}, &p.DY}); err != nil {
			return err
		}
		if p.DY == "" {
			return fault(p.Prefix+"d_y", "is missing")
		}
		return nil
	}
	contexts := []int{p.Tokens, p.Shape.Heads, p.Shape.VDim}
	for _, g := range []derivative{
		{"d_context", "tokens, n_heads, v_dim", floats, contexts, &p.DContext},
		{"context", "tokens, n_heads, v_dim", float32s, contexts, &p.Context},
		{"lse", "tokens, n_heads", float32s, contexts[:2], &p.LSE},
	} {
		if err := b.derivative(at, g); err != nil {
			return err
		}
	}
	switch {
	case p.DContext == "":
		return fault(p.Prefix+"d_context", "is missing")
	case p.Context == "" && p.LSE != "":
		return fault(p.Prefix+"context", "is missing: it goes with %q", p.LSE)
	case p.Context != "" && p.LSE == "":
		return fault(p.Prefix+"lse", "is missing: it goes with %q", p.Context)
	}
	return nil
}

// derivative looks one of them up, and checks its shape.
func (b *builder) derivative(at prefix, g derivative) *Error {
	info, ok := b.own(at, g.name)
	if !ok {
		return nil
	}
	if err := b.expect(info, g.types, strings.Split(g.dims, ", ")...); err != nil {
		return err
	}
	if err := exactly(info, g.dims, g.shape...); err != nil {
		return err
	}
	b.checks(info, g.name == "lse")
	*g.to = info.Name
	return nil
}
