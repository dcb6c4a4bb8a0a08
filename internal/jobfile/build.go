package jobfile

import (
	"fmt"
	"slices"
	"strings"

	"headwater.example/attention"
	"headwater.example/shard"
	"headwater.example/tensor"
)

// What a file may hold, by kind. The anchors are a problem's own; the rest may be shared by several problems.
var (
	attentionAnchors = []string{"q", "k", "v", "k_scale", "v_scale"}
	layerAnchors     = []string{"x"}
	gradAnchors      = []string{"q", "k", "v", "d_context", "context", "lse"}
	layerGradAnchors = []string{"x", "d_y"}
	weightNames      = []string{"w_q", "w_k", "w_v", "w_o", "b_q", "b_k", "b_v", "b_o"}
	operandNames     = []string{"mask", "bias", "tokens"}

	floats   = []tensor.DType{tensor.F32, tensor.F16, tensor.BF16}
	stored   = []tensor.DType{tensor.F32, tensor.F16, tensor.BF16, tensor.I8}
	float32s = []tensor.DType{tensor.F32}
	masks    = []tensor.DType{tensor.Bool, tensor.U8}
	integers = []tensor.DType{tensor.U8, tensor.I8, tensor.I16, tensor.U16, tensor.I32, tensor.U32, tensor.I64, tensor.U64}
)

// builder makes problems of a file's header.
type builder struct {
	file *tensor.File
	job  *Job
	used map[string]bool // tensors that some problem reads

	noted map[string]bool // tensors in job.check
}

func fault(name, format string, args ...any) *Error {
	return &Error{Tensor: name, Index: -1, Rule: fmt.Sprintf(format, args...)}
}

// prefixes finds the problems: every prefix that has an anchor, ordered.
func (b *builder) prefixes() ([]prefix, *Error) {
	anchors := b.anchors()
	found := map[prefix]bool{}
	var first prefix
	for _, name := range b.file.Names() {
		p, own, ok := splitName(name)
		switch {
		case ok && slices.Contains(anchors, own):
			if len(found) == 0 {
				first = p
			}
			if p.form != first.form {
				return nil, fault(name, "prefix %q does not go with prefix %q: all problems of a file carry prefixes of one form", p.String(), first.String())
			}
			if found[p] = true; len(found) > shard.MaxLayers {
				return nil, fault(name, "the file holds more than %d problems", shard.MaxLayers)
			}
		case ok && slices.Contains(operandNames, own):
		case ok && b.job.Kind.projects() && slices.Contains(weightNames, own):
		case ok && b.job.Kind.differentiates() && slices.Contains(gradientNames, own):
		case ok && slices.ContainsFunc([][]string{attentionAnchors, gradAnchors, layerGradAnchors, weightNames, gradientNames},
			func(names []string) bool { return slices.Contains(names, own) }):
			return nil, fault(name, "is not a tensor of kind %q", b.job.Kind)
		default:
			return nil, fault(name, "is unknown: kind %q has %s", b.job.Kind, strings.Join(b.known(), ", "))
		}
	}
	if len(found) == 0 {
		return nil, fault(anchors[0], "is missing")
	}
	prefixes := make([]prefix, 0, len(found))
	for p := range found {
		prefixes = append(prefixes, p)
	}
	slices.SortFunc(prefixes, prefix.compare)
	return prefixes, nil
}

// anchors are the tensors of the job's kind that are a problem's own.
func (b *builder) anchors() []string {
	switch b.job.Kind {
	case KindLayer:
		return layerAnchors
	case KindAttentionGrad:
		return gradAnchors
	case KindLayerGrad:
		return layerGradAnchors
	default:
		return attentionAnchors
	}
}

func (b *builder) known() []string {
	if b.job.Kind.projects() {
		return slices.Concat(b.anchors(), weightNames, operandNames)
	}
	return slices.Concat(b.anchors(), operandNames)
}

// unused refuses tensors that no problem reads: a misspelt prefix must not go unnoticed.
func (b *builder) unused() *Error {
	for _, name := range b.file.Names() {
		if !b.used[name] {
			return fault(name, "belongs to no problem of the file")
		}
	}
	return nil
}

// own looks a problem's own tensor up.
func (b *builder) own(p prefix, name string) (tensor.Info, bool) {
	info, ok := b.file.Lookup(p.String() + name)
	if ok {
		b.used[info.Name] = true
	}
	return info, ok
}

// shared looks a tensor up under the problem's prefix and those that stand for several problems.
func (b *builder) shared(p prefix, name string) (tensor.Info, bool) {
	var found tensor.Info
	ok := false
	for _, q := range p.shared(slices.Contains(weightNames, name)) {
		info, here := b.file.Lookup(q.String() + name)
		if !here {
			continue
		}
		b.used[info.Name] = true
		if !ok {
			found, ok = info, true
		}
	}
	return found, ok
}

// expect checks type and rank, and that no dimension is 0 or beyond its bound. dims names the dimensions.
func (b *builder) expect(info tensor.Info, types []tensor.DType, dims ...string) *Error {
	if !slices.Contains(types, info.DType) {
		names := make([]string, len(types))
		for i, t := range types {
			names[i] = t.String()
		}
		return fault(info.Name, "has dtype %s, must be %s", info.DType, strings.Join(names, ", "))
	}
	if len(info.Shape) != len(dims) {
		return fault(info.Name, "has shape %s, must be [%s]", shapeString(info.Shape), strings.Join(dims, ", "))
	}
	for i, d := range info.Shape {
		if high := bounds[dims[i]]; d < 1 || high != 0 && int64(d) > high {
			if high == 0 {
				return fault(info.Name, "has shape %s: %s is %d, must be at least 1", shapeString(info.Shape), dims[i], d)
			}
			return fault(info.Name, "has shape %s: %s is %d, must be 1 to %d", shapeString(info.Shape), dims[i], d, high)
		}
	}
	return nil
}

// bounds holds the largest size of a dimension by its name.
var bounds = map[string]int64{
	"tokens":     maxTokens,
	"kv_tokens":  maxTokens,
	"n_heads":    shard.MaxHeads,
	"n_kv_heads": shard.MaxHeads,
	"head_dim":   shard.MaxDim,
	"v_dim":      shard.MaxDim,
	"d_model":    MaxModel,
}

// exactly checks a shape against known sizes.
func exactly(info tensor.Info, dims string, want ...int) *Error {
	if !slices.Equal(info.Shape, want) {
		return fault(info.Name, "has shape %s, must be [%s] = %s", shapeString(info.Shape), dims, shapeString(want))
	}
	return nil
}

func (b *builder) problem(at prefix, o *Options) (*Problem, *Error) {
	p := &Problem{Prefix: at.String(), Seq: at.seq, Layer: at.layer}
	var err *Error
	if b.job.Kind.projects() {
		err = b.layer(at, p, o)
	} else {
		err = b.attention(at, p, o)
	}
	if err == nil && b.job.Kind.differentiates() {
		err = b.gradient(at, p)
	}
	if err != nil {
		return nil, err
	}
	if p.Shape.Heads%p.Shape.KVHeads != 0 {
		name := p.Q
		if name == "" {
			name = p.WQ
		}
		return nil, fault(name, "n_heads %d is not a multiple of n_kv_heads %d", p.Shape.Heads, p.Shape.KVHeads)
	}
	if err := b.operands(at, p); err != nil {
		return nil, err
	}
	if err := p.apply(b.job.Kind, o); err != nil {
		return nil, err
	}
	return p, nil
}

// attention fills in the geometry of kind attention.
func (b *builder) attention(at prefix, p *Problem, o *Options) *Error {
	if name := o.layerOnly(); name != "" {
		return optionErrorf("option %q%s belongs to kind \"layer\"", name, ofProblem(p.Prefix))
	}
	var info [3]tensor.Info
	for i, name := range []string{"q", "k", "v"} {
		var ok bool
		if info[i], ok = b.own(at, name); !ok {
			return fault(p.Prefix+name, "is missing")
		}
	}
	q, k, v := info[0], info[1], info[2]
	if err := b.expect(q, floats, "tokens", "n_heads", "head_dim"); err != nil {
		return err
	}
	types := stored
	if b.job.Kind == KindAttentionGrad {
		types = floats // what int8 stands for is not a function that has derivatives
	}
	if err := b.expect(k, types, "kv_tokens", "n_kv_heads", "head_dim"); err != nil {
		return err
	}
	if err := b.expect(v, types, "kv_tokens", "n_kv_heads", "v_dim"); err != nil {
		return err
	}
	p.Q, p.K, p.V = q.Name, k.Name, v.Name
	p.Tokens, p.KVTokens = q.Shape[0], k.Shape[0]
	p.Shape.Heads, p.Shape.KVHeads = q.Shape[1], k.Shape[1]
	p.Shape.HeadDim, p.Shape.VDim = q.Shape[2], v.Shape[2]
	p.Storage = k.DType
	if v.DType != k.DType {
		return fault(v.Name, "has dtype %s, must be that of %q, %s", v.DType, k.Name, k.DType)
	}
	if k.Shape[2] != p.Shape.HeadDim {
		return fault(k.Name, "has shape %s: head_dim is %d, but that of %q is %d", shapeString(k.Shape), k.Shape[2], q.Name, p.Shape.HeadDim)
	}
	if err := exactly(v, "kv_tokens, n_kv_heads, v_dim", p.KVTokens, p.Shape.KVHeads, p.Shape.VDim); err != nil {
		return err
	}
	for _, s := range []struct {
		name string
		to   *string
	}{{"k_scale", &p.KScale}, {"v_scale", &p.VScale}} {
		scale, ok := b.own(at, s.name)
		switch {
		case !ok && p.Storage == tensor.I8:
			return fault(p.Prefix+s.name, "is missing: %q is I8", k.Name)
		case ok && p.Storage != tensor.I8:
			return fault(scale.Name, "goes with I8 only, and %q is %s", k.Name, k.DType)
		case ok:
			if err := b.expect(scale, float32s, "kv_tokens", "n_kv_heads"); err != nil {
				return err
			}
			if err := exactly(scale, "kv_tokens, n_kv_heads", p.KVTokens, p.Shape.KVHeads); err != nil {
				return err
			}
			b.checks(scale, false)
			*s.to = scale.Name
		}
	}
	b.checks(q, false)
	b.checks(k, false)
	b.checks(v, false)
	return nil
}

// checks notes a tensor for CheckValues, once.
func (b *builder) checks(info tensor.Info, negInf bool) {
	if info.DType == tensor.I8 || info.DType == tensor.U8 || b.noted[info.Name] {
		return // any byte of I8 and U8 will do
	}
	b.noted[info.Name] = true
	b.job.check = append(b.job.check, checked{info: info, negInf: negInf, boolean: info.DType == tensor.Bool})
}

// operands finds mask, bias and token ids, and checks that the tokens fit.
func (b *builder) operands(at prefix, p *Problem) *Error {
	for _, s := range []struct {
		name  string
		types []tensor.DType
		to    *string
		heads *int
	}{{"mask", masks, &p.Mask, &p.MaskHeads}, {"bias", float32s, &p.Bias, &p.BiasHeads}} {
		info, ok := b.shared(at, s.name)
		if !ok {
			continue
		}
		if err := b.expect(info, s.types, "n_heads or 1", "tokens", "kv_tokens"); err != nil {
			return err
		}
		if h := info.Shape[0]; h != 1 && h != p.Shape.Heads || info.Shape[1] != p.Tokens || info.Shape[2] != p.KVTokens {
			return fault(info.Name, "has shape %s, must be [n_heads or 1, tokens, kv_tokens] = [%d or 1, %d, %d]",
				shapeString(info.Shape), p.Shape.Heads, p.Tokens, p.KVTokens)
		}
		b.checks(info, s.name == "bias")
		*s.to, *s.heads = info.Name, info.Shape[0]
	}
	if info, ok := b.shared(at, "tokens"); ok {
		if err := b.expect(info, integers, "kv_tokens"); err != nil {
			return err
		}
		if err := exactly(info, "kv_tokens", p.KVTokens); err != nil {
			return err
		}
		p.TokenIDs = info.Name
	}
	if t := b.job.TokensOf(p); t != nil && len(t) != p.KVTokens {
		return optionErrorf("metadata \"tokens\" holds %d tokens, but problem %q has %d positions", len(t), p.Prefix, p.KVTokens)
	}
	return nil
}

func ofProblem(prefix string) string {
	if prefix == "" {
		return ""
	}
	return fmt.Sprintf(" of problem %q", prefix)
}

// layerOnly names an option that is given and belongs to kind layer.
func (o *Options) layerOnly() string {
	switch {
	case o.NHeads != nil:
		return "n_heads"
	case o.NKVHeads != nil:
		return "n_kv_heads"
	case o.HeadDim != nil:
		return "head_dim"
	case o.VDim != nil:
		return "v_dim"
	case o.Rope != nil:
		return "rope"
	}
	return ""
}

// apply resolves the options against the geometry.
func (p *Problem) apply(kind Kind, o *Options) *Error {
	of := ofProblem(p.Prefix)
	p.KVLen = p.KVTokens
	if o.KVLen != nil {
		if *o.KVLen > int64(p.KVTokens) {
			return optionErrorf("option \"kv_len\"%s is %d, must be 0 to kv_tokens, %d", of, *o.KVLen, p.KVTokens)
		}
		p.KVLen = int(*o.KVLen)
	}
	switch {
	case kind.projects():
		if o.Offset != nil && *o.Offset != 0 {
			return optionErrorf("option \"offset\"%s is %d, must be 0 in kind %q: row i of \"x\" is query i and position i", of, *o.Offset, kind)
		}
	case o.Offset != nil:
		p.Offset = *o.Offset
	default:
		p.Offset = int64(p.KVLen) - int64(p.Tokens)
	}
	a := attention.DefaultOptions(p.Shape.HeadDim)
	a.Causal = deref(o.Causal, false)
	a.WindowLeft = deref(o.WindowLeft, -1)
	a.WindowRight = deref(o.WindowRight, -1)
	a.Scale = deref(o.Scale, a.Scale)
	a.Softcap = deref(o.Softcap, 0)
	if err := p.setArithmetic(kind, o, of); err != nil {
		return err
	}
	for _, s := range []struct {
		name  string
		given []float32
		to    *[]float32
	}{{"alibi_slopes", o.AlibiSlopes, &a.AlibiSlopes}, {"sinks", o.Sinks, &a.Sinks}} {
		if len(s.given) == 0 {
			*s.to = nil
			continue
		}
		if len(s.given) != p.Shape.Heads {
			return optionErrorf("option %q%s has %d elements, must have one for each of the %d query heads", s.name, of, len(s.given), p.Shape.Heads)
		}
		*s.to = slices.Clone(s.given)
	}
	if err := a.Validate(p.Shape.Heads); err != nil {
		return optionErrorf("options%s: %v", of, err)
	}
	p.Options = a
	if len(a.AlibiSlopes) > 0 {
		if d := p.farthest(); d >= 1<<24 {
			return optionErrorf("option \"alibi_slopes\"%s: a query sees a position at distance %d, must be below 2^24", of, d)
		}
	}
	if kind.projects() && o.Rope != nil {
		r := o.Rope.resolve(p.Shape.HeadDim)
		if err := r.Validate(p.Shape.HeadDim); err != nil {
			return optionErrorf("option \"rope\"%s: %v", of, err)
		}
		p.Rope = &r
	}
	return nil
}

// farthest is the largest distance between a query and a position that causal, window and kv_len let it see.
func (p *Problem) farthest() int64 {
	if p.KVLen == 0 {
		return 0
	}
	last := p.Offset + int64(p.Tokens) - 1
	left, right := last, int64(p.KVLen)-1-p.Offset
	if w := p.Options.WindowLeft; w >= 0 {
		left = min(left, w)
	}
	if w := p.Options.WindowRight; w >= 0 {
		right = min(right, w)
	}
	if p.Options.Causal {
		right = min(right, 0)
	}
	return max(left, right, 0)
}

func (o *RopeOptions) resolve(headDim int) attention.Rope {
	r := attention.Rope{
		Base:        deref(o.Base, 10000),
		Dims:        int(deref(o.Dims, int64(headDim))),
		Interleaved: deref(o.Interleaved, false),
		Scale:       deref(o.Scale, 1),
		Mscale:      deref(o.Mscale, 1),
	}
	if len(o.Factors) > 0 {
		r.Factors = slices.Clone(o.Factors)
	}
	return r
}

func deref[T any](p *T, absent T) T {
	if p == nil {
		return absent
	}
	return *p
}

// setArithmetic takes the option. Only keys and values of bf16, and no gradients, have other than attention.Chain.
func (p *Problem) setArithmetic(kind Kind, o *Options, of string) *Error {
	if o.Arithmetic == nil {
		return nil
	}
	if *o.Arithmetic == attention.Auto.String() {
		if p.Storage == tensor.BF16 && !kind.differentiates() {
			p.Arithmetic = attention.Auto
		} // else there is none but attention.Chain
		return nil
	}
	p.Arithmetic, _ = attention.ParseArithmetic(*o.Arithmetic) // parseObject has looked
	switch {
	case p.Arithmetic == attention.Chain:
	case kind.differentiates():
		return optionErrorf("option \"arithmetic\"%s is %q: gradients have %q alone", of, p.Arithmetic, attention.Chain)
	case p.Storage != tensor.BF16:
		return optionErrorf("option \"arithmetic\"%s is %q, which takes keys and values of %s, not of %s", of, p.Arithmetic, tensor.BF16, p.Storage)
	}
	return nil
}
