package jobfile

import (
	"encoding/json"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"

	"headwater.example/attention"
	"headwater.example/shard"
	"headwater.example/tensor"
)

// Kind is what a job computes.
type Kind uint8

const (
	// KindAttention attends with given queries over given keys and values.
	KindAttention Kind = iota
	// KindLayer projects hidden states first, and the contexts afterwards.
	KindLayer
	// KindAttentionGrad brings the derivatives by contexts back to queries, keys and values.
	KindAttentionGrad
	// KindLayerGrad brings the derivatives by outputs back to hidden states, weights and biases.
	KindLayerGrad
)

// kinds are the names of kinds in job files.
var kinds = [...]string{KindAttention: "attention", KindLayer: "layer", KindAttentionGrad: "attention_grad", KindLayerGrad: "layer_grad"}

// String is the kind's name in job files.
func (k Kind) String() string { return kinds[k] }

// projects says whether problems have hidden states and weights, and not queries, keys and values.
func (k Kind) projects() bool { return k == KindLayer || k == KindLayerGrad }

// differentiates says whether gradients are asked for, and not contexts.
func (k Kind) differentiates() bool { return k == KindAttentionGrad || k == KindLayerGrad }

func parseKind(s string) (Kind, bool) {
	i := slices.Index(kinds[:], s)
	return Kind(max(i, 0)), i >= 0
}

const (
	// MetadataKey is the key of a file's metadata that holds the options.
	MetadataKey = "headwater"
	// tokensKey is the key of a file's metadata that holds the tokens as a JSON array of strings, under a sequence's
	// prefix where they are one sequence's.
	tokensKey = "tokens"

	// MaxModel bounds d_model.
	MaxModel = 1 << 20
	// maxTokens bounds query tokens and positions; positions and their differences stay far below overflow.
	maxTokens = 1 << 40
	// maxBytes bounds every sum of bytes.
	maxBytes = 1 << 60
)

// Job is a job file, read and checked.
type Job struct {
	File     string // path of the file, for errors
	Kind     Kind
	Problems []Problem // by sequence, then layer
	Tokens   []string  // of the metadata key "tokens"; nil where absent

	seqTokens map[int][]string
	geometry  *shard.Geometry
	cluster   int64
	results   []tensor.Info
	earlier   []tensor.Info // gradients in the file, to which those of the job are added
	check     []checked
}

// Problem is one (sequence, layer) of a job: one attention with its geometry and options.
type Problem struct {
	Prefix string      // "", "layers.3.", "seqs.0." or "seqs.0.layers.1."
	Seq    int         // the file's number of the sequence, 0 if it gives none
	Layer  int         // the file's number of the layer, 0 if it gives none
	Index  shard.Layer // layer of the job's Geometry: the problem's index in Problems
	Shape  shard.LayerShape

	Tokens   int   // query tokens
	KVTokens int   // positions in the file
	KVLen    int   // positions [0, KVLen) that queries may see, and that are sent to workers
	DModel   int   // elements of a hidden state; kinds layer and layer_grad
	Offset   int64 // position of query 0

	Storage    tensor.DType         // of keys and values: F32, F16, BF16 or I8; F32 for kinds layer and layer_grad
	Arithmetic attention.Arithmetic // attention.Auto until a coordinator has taken one
	Options    attention.Options
	Rope       *attention.Rope // nil for none

	// Names of the tensors, "" if the problem has none. TokenIDs is a tensor of token ids.
	Q, K, V, KScale, VScale string
	X, WQ, WK, WV, WO       string
	BQ, BK, BV, BO          string
	Mask, Bias, TokenIDs    string
	// Kind attention_grad. Context and LSE are both there or both "": then they are computed.
	DContext, Context, LSE string
	DY                     string // kind layer_grad

	MaskHeads, BiasHeads int // 1 for all heads or n_heads; 0 if there is none
}

// checked is a tensor whose values CheckValues reads.
type checked struct {
	info    tensor.Info
	negInf  bool // −Inf is allowed
	boolean bool // bytes must be 0 or 1
}

// Parse reads a job from a file of tensors; of f only names, shapes, types and metadata are read. overrides is a JSON
// object of options that take precedence over the file's, or empty. Errors are of type *Error.
func Parse(f *tensor.File, overrides []byte) (*Job, error) {
	j, err := parse(f, overrides)
	if err != nil {
		err.File = f.Path()
		return nil, err
	}
	return j, nil
}

func parse(f *tensor.File, overrides []byte) (*Job, *Error) {
	meta := f.Metadata()
	inFile, err := optionsOf([]byte(meta[MetadataKey]), `metadata "`+MetadataKey+`": `)
	if err != nil {
		return nil, err
	}
	onTop, err := optionsOf(overrides, "overrides: ")
	if err != nil {
		return nil, err
	}
	j := &Job{File: f.Path()}
	if kind := given(onTop.Kind, inFile.Kind); kind != nil {
		j.Kind, _ = parseKind(*kind)
	}
	if err := j.readTokens(meta); err != nil {
		return nil, err
	}

	b := &builder{file: f, job: j, used: map[string]bool{}, noted: map[string]bool{}}
	prefixes, err := b.prefixes()
	if err != nil {
		return nil, err
	}
	if err := namesProblems(inFile, prefixes, `metadata "`+MetadataKey+`": `); err != nil {
		return nil, err
	}
	if err := namesProblems(onTop, prefixes, "overrides: "); err != nil {
		return nil, err
	}
	shapes := make([]shard.LayerShape, 0, len(prefixes))
	for i, p := range prefixes {
		// An option of one problem wins over one of all problems, and an override over both.
		o := inFile.over(inFile.Problems[p.String()]).over(onTop).over(onTop.Problems[p.String()])
		problem, err := b.problem(p, o)
		if err != nil {
			return nil, err
		}
		problem.Index = shard.Layer(i)
		j.Problems = append(j.Problems, *problem)
		shapes = append(shapes, problem.Shape)
	}
	geometry, gerr := shard.NewGeometry(shapes)
	if gerr != nil {
		return nil, &Error{Index: -1, Rule: gerr.Error()}
	}
	j.geometry = geometry
	if err := j.sums(); err != nil {
		return nil, err
	}
	if err := b.earlier(); err != nil {
		return nil, err
	}
	if err := b.unused(); err != nil {
		return nil, err
	}
	return j, nil
}

func optionsOf(data []byte, source string) (*Options, *Error) {
	o, err := parseOptions(data)
	if err != nil {
		return nil, &Error{Index: -1, Rule: source + err.Error()}
	}
	return o, nil
}

// namesProblems refuses options for a problem that the file does not hold.
func namesProblems(o *Options, prefixes []prefix, source string) *Error {
	for name := range o.Problems {
		p, _ := parsePrefix(name)
		if _, ok := slices.BinarySearchFunc(prefixes, p, prefix.compare); !ok {
			return optionErrorf("%soption \"problems\" names %q, which the file does not hold", source, name)
		}
	}
	return nil
}

// readTokens reads the tokens of the metadata.
func (j *Job) readTokens(meta map[string]string) *Error {
	for key, value := range meta {
		p, own, ok := splitName(key)
		if !ok || own != tokensKey || p.form != formBare && p.form != formSeq {
			continue
		}
		var tokens []string
		if !utf8.ValidString(value) || !strings.HasPrefix(strings.TrimSpace(value), "[") || json.Unmarshal([]byte(value), &tokens) != nil {
			return optionErrorf("metadata %q: must be a JSON array of strings", key)
		}
		if p.form == formBare {
			j.Tokens = tokens
			continue
		}
		if j.seqTokens == nil {
			j.seqTokens = map[int][]string{}
		}
		j.seqTokens[p.seq] = tokens
	}
	return nil
}

// TokensOf returns the problem's tokens, one for each of its KVTokens positions; nil where the metadata has none.
func (j *Job) TokensOf(p *Problem) []string {
	if t, ok := j.seqTokens[p.Seq]; ok {
		return t
	}
	return j.Tokens
}

// Geometry is the layers and groups to place, one layer for each problem.
func (j *Job) Geometry() *shard.Geometry { return j.geometry }

// Arithmetics are those of the problems, and so of the layers of Geometry.
func (j *Job) Arithmetics() []attention.Arithmetic {
	all := make([]attention.Arithmetic, len(j.Problems))
	for i := range all {
		all[i] = j.Problems[i].Arithmetic
	}
	return all
}

// Layout is that of the pages of keys and values. There is none while the arithmetic is attention.Auto.
func (p *Problem) Layout() (attention.Layout, error) {
	l, err := attention.NewLayout(p.Storage, p.Shape.HeadDim, p.Shape.VDim)
	if err != nil {
		return l, err
	}
	return l.WithArithmetic(p.Arithmetic)
}

// ResultInfos lists the tensors of the result in the order of the problems: PREFIXcontext [tokens, n_heads, v_dim],
// PREFIXlse [tokens, n_heads] and, where there is an output projection, PREFIXy [tokens, d_model]; of gradients one for each
// tensor that has one, under its name with d_ before the last part, in its shape, and PREFIXd_sinks where there are sinks. A
// tensor that several problems share has one gradient. All are F32.
func (j *Job) ResultInfos() []tensor.Info { return slices.Clone(j.results) }

// Earlier lists the gradients that the file holds itself: those of the job are added to them.
func (j *Job) Earlier() []tensor.Info { return slices.Clone(j.earlier) }

// sums computes what the whole job needs, and refuses what would overflow.
func (j *Job) sums() *Error {
	var result int64
	listed := map[string]bool{}
	for i := range j.Problems {
		p := &j.Problems[i]
		layout, err := attention.NewLayout(p.Storage, p.Shape.HeadDim, p.Shape.VDim) // of the same size in any arithmetic
		if err != nil {
			return &Error{Tensor: p.anchor(j.Kind), Index: -1, Rule: err.Error()}
		}
		pages := (int64(p.KVLen) + attention.PageLen - 1) / attention.PageLen
		bytes, ok := product(pages, int64(layout.PageBytes()), int64(p.Shape.KVHeads))
		if j.cluster += bytes; !ok || j.cluster > maxBytes {
			return &Error{Tensor: p.anchor(j.Kind), Index: -1, Rule: "keys and values of the job exceed 2^60 bytes"}
		}
		for _, info := range p.Results() {
			if listed[info.Name] {
				continue // that of a tensor which several problems share
			}
			listed[info.Name] = true
			n := []int64{4}
			for _, d := range info.Shape {
				n = append(n, int64(d))
			}
			bytes, ok := product(n...)
			if result += bytes; !ok || result > maxBytes {
				return &Error{Tensor: p.anchor(j.Kind), Index: -1, Rule: "the result exceeds 2^60 bytes"}
			}
			j.results = append(j.results, info)
		}
	}
	return nil
}

// Differentiates says whether the problem's gradients are asked for, and not its contexts.
func (p *Problem) Differentiates() bool { return p.DContext != "" || p.DY != "" }

// Results lists the tensors of the problem's result, as ResultInfos does those of all.
func (p *Problem) Results() []tensor.Info {
	if p.Differentiates() {
		return p.gradients()
	}
	infos := []tensor.Info{
		result(p.Prefix+"context", p.Tokens, p.Shape.Heads, p.Shape.VDim),
		result(p.Prefix+"lse", p.Tokens, p.Shape.Heads),
	}
	if p.WO != "" {
		infos = append(infos, result(p.Prefix+"y", p.Tokens, p.DModel))
	}
	return infos
}

func result(name string, shape ...int) tensor.Info {
	return tensor.Info{Name: name, DType: tensor.F32, Shape: shape}
}

// product multiplies numbers that are not negative, and says whether the product is at most maxBytes.
func product(n ...int64) (int64, bool) {
	p := int64(1)
	for _, v := range n {
		if v == 0 {
			return 0, true
		}
		if p > maxBytes/v {
			return 0, false
		}
		p *= v
	}
	return p, true
}

// anchor names the tensor that stands for the problem as a whole.
func (p *Problem) anchor(k Kind) string {
	if k.projects() {
		return p.X
	}
	return p.Q
}

func shapeString(shape []int) string {
	s := make([]string, len(shape))
	for i, d := range shape {
		s[i] = strconv.Itoa(d)
	}
	return "[" + strings.Join(s, ", ") + "]"
}
