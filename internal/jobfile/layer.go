package jobfile

import (
	"headwater.example/shard"
	"headwater.example/tensor"
)

// layer fills in the geometry of kind layer.
func (b *builder) layer(at prefix, p *Problem, o *Options) *Error {
	x, ok := b.own(at, "x")
	if !ok {
		return fault(p.Prefix+"x", "is missing")
	}
	if err := b.expect(x, floats, "tokens", "d_model"); err != nil {
		return err
	}
	b.checks(x, false)
	p.X = x.Name
	p.Tokens, p.KVTokens, p.DModel = x.Shape[0], x.Shape[0], x.Shape[1]
	p.Storage = tensor.F32

	w, err := b.weights(at, p, x.Name)
	if err != nil {
		return err
	}
	if err := p.heads(w, o); err != nil {
		return err
	}
	return b.biases(at, p)
}

// weights finds the projections, which must have the d_model of x, by their names.
func (b *builder) weights(at prefix, p *Problem, x string) (map[string]tensor.Info, *Error) {
	w := map[string]tensor.Info{}
	for _, s := range []struct {
		name, rows, columns string
		to                  *string
	}{
		{"w_q", "n_heads·head_dim", "d_model", &p.WQ},
		{"w_k", "n_kv_heads·head_dim", "d_model", &p.WK},
		{"w_v", "n_kv_heads·v_dim", "d_model", &p.WV},
		{"w_o", "d_model", "n_heads·v_dim", &p.WO},
	} {
		info, ok := b.shared(at, s.name)
		if !ok {
			if s.name == "w_o" {
				continue
			}
			return nil, fault(p.Prefix+s.name, "is missing")
		}
		if err := b.expect(info, floats, s.rows, s.columns); err != nil {
			return nil, err
		}
		model := info.Shape[1]
		if s.name == "w_o" {
			model = info.Shape[0]
		}
		if model != p.DModel {
			return nil, fault(info.Name, "has shape %s, must be [%s, %s] with the d_model of %q, %d", shapeString(info.Shape), s.rows, s.columns, x, p.DModel)
		}
		b.checks(info, false)
		w[s.name] = info
		*s.to = info.Name
	}
	return w, nil
}

// biases finds those of the projections; each may be missing.
func (b *builder) biases(at prefix, p *Problem) *Error {
	for _, s := range []struct {
		name, dim string
		n         int
		to        *string
	}{
		{"b_q", "n_heads·head_dim", p.Shape.Heads * p.Shape.HeadDim, &p.BQ},
		{"b_k", "n_kv_heads·head_dim", p.Shape.KVHeads * p.Shape.HeadDim, &p.BK},
		{"b_v", "n_kv_heads·v_dim", p.Shape.KVHeads * p.Shape.VDim, &p.BV},
		{"b_o", "d_model", p.DModel, &p.BO},
	} {
		info, ok := b.shared(at, s.name)
		if !ok {
			continue
		}
		if s.name == "b_o" && p.WO == "" {
			return fault(info.Name, "goes with \"w_o\", which is missing")
		}
		if err := b.expect(info, floats, s.dim); err != nil {
			return err
		}
		if err := exactly(info, s.dim, s.n); err != nil {
			return err
		}
		b.checks(info, false)
		*s.to = info.Name
	}
	return nil
}

// divide returns a weight's rows over one of the factors that they are the product of.
func divide(info tensor.Info, by int, what string) (int, *Error) {
	if info.Shape[0]%by != 0 {
		return 0, fault(info.Name, "has shape %s: %d rows are not a multiple of %s, %d", shapeString(info.Shape), info.Shape[0], what, by)
	}
	return info.Shape[0] / by, nil
}

// heads finds n_heads, n_kv_heads, head_dim and v_dim. The weights' rows give the products n_heads·head_dim,
// n_kv_heads·head_dim and n_kv_heads·v_dim, so any one of the four determines the others.
func (p *Problem) heads(w map[string]tensor.Info, o *Options) *Error {
	of := ofProblem(p.Prefix)
	q, k, v := w["w_q"], w["w_k"], w["w_v"]
	var err *Error
	kvHeads := int(deref(o.NKVHeads, 0))
	headDim := int(deref(o.HeadDim, 0))
	if kvHeads == 0 && headDim == 0 {
		switch {
		case o.NHeads != nil:
			headDim, err = divide(q, int(*o.NHeads), "n_heads")
		case o.VDim != nil:
			kvHeads, err = divide(v, int(*o.VDim), "v_dim")
		default:
			return optionErrorf("option \"head_dim\"%s is missing: shapes alone do not give it; n_heads, n_kv_heads or v_dim would do as well", of)
		}
		if err != nil {
			return err
		}
	}
	if kvHeads == 0 {
		if kvHeads, err = divide(k, headDim, "head_dim"); err != nil {
			return err
		}
	}
	if headDim == 0 {
		if headDim, err = divide(k, kvHeads, "n_kv_heads"); err != nil {
			return err
		}
	}
	if got := k.Shape[0]; got != kvHeads*headDim {
		return fault(k.Name, "has shape %s: %d rows are not n_kv_heads·head_dim = %d·%d", shapeString(k.Shape), got, kvHeads, headDim)
	}
	heads, err := divide(q, headDim, "head_dim")
	if err != nil {
		return err
	}
	vDim, err := divide(v, kvHeads, "n_kv_heads")
	if err != nil {
		return err
	}
	for _, s := range []struct {
		name   string
		got    int
		high   int
		option *int64
		from   string
	}{
		{"n_heads", heads, shard.MaxHeads, o.NHeads, q.Name},
		{"n_kv_heads", kvHeads, shard.MaxHeads, o.NKVHeads, k.Name},
		{"head_dim", headDim, shard.MaxDim, o.HeadDim, k.Name},
		{"v_dim", vDim, shard.MaxDim, o.VDim, v.Name},
	} {
		if s.option != nil && *s.option != int64(s.got) {
			return fault(s.from, "gives %s %d, but option %q%s is %d", s.name, s.got, s.name, of, *s.option)
		}
		if s.got > s.high {
			return fault(s.from, "gives %s %d, must be 1 to %d", s.name, s.got, s.high)
		}
	}
	if out, ok := w["w_o"]; ok && out.Shape[1] != heads*vDim {
		return fault(out.Name, "has shape %s, must be [d_model, n_heads·v_dim] = [%d, %d]", shapeString(out.Shape), p.DModel, heads*vDim)
	}
	p.Shape.Heads, p.Shape.KVHeads, p.Shape.HeadDim, p.Shape.VDim = heads, kvHeads, headDim, vDim
	return nil
}
