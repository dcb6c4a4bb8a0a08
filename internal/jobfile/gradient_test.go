package jobfile

import (
	"slices"
	"testing"

	"headwater.example/tensor"
)

const gradKind = `{"kind":"attention_grad"}`

// lesson is qkv with what its contexts are to change to.
func lesson() []tensor.Data { return append(qkv(), at("d_context", tensor.F32, 3, 6, 7)) }

func TestGradientErrors(t *testing.T) {
	context, lse := at("context", tensor.F32, 3, 6, 7), at("lse", tensor.F32, 3, 6)
	for _, c := range []struct {
		name    string
		tensors []tensor.Data
		meta    string
		want    string
	}{
		{"no d_context", qkv(), gradKind, `tensor "d_context": is missing`},
		{"no d_context of a sequence", under("seqs.3.", qkv()), gradKind, `tensor "seqs.3.d_context": is missing`},
		{"shape of d_context", with(lesson(), at("d_context", tensor.F32, 3, 6, 4)), gradKind, `tensor "d_context": has shape [3, 6, 4], must be [tokens, n_heads, v_dim] = [3, 6, 7]`},
		{"rank of d_context", with(lesson(), at("d_context", tensor.F32, 18, 7)), gradKind, `tensor "d_context": has shape [18, 7], must be [tokens, n_heads, v_dim]`},
		{"dtype of d_context", with(lesson(), at("d_context", tensor.F64, 3, 6, 7)), gradKind, `tensor "d_context": has dtype F64, must be F32, F16, BF16`},
		{"no lse", append(lesson(), context), gradKind, `tensor "lse": is missing: it goes with "context"`},
		{"no context", append(lesson(), lse), gradKind, `tensor "context": is missing: it goes with "lse"`},
		{"shape of context", append(lesson(), at("context", tensor.F32, 2, 6, 7), lse), gradKind, `tensor "context": has shape [2, 6, 7], must be [tokens, n_heads, v_dim] = [3, 6, 7]`},
		{"shape of lse", append(lesson(), context, at("lse", tensor.F32, 3, 2)), gradKind, `tensor "lse": has shape [3, 2], must be [tokens, n_heads] = [3, 6]`},
		{"dtype of context", append(lesson(), at("context", tensor.F16, 3, 6, 7), lse), gradKind, `tensor "context": has dtype F16, must be F32`},
		{"int8", append(int8s(), at("d_context", tensor.F32, 3, 6, 7)), gradKind, `tensor "k_scale": is not a tensor of kind "attention_grad"`},
		{"int8 without scales", append(without(int8s(), "k_scale", "v_scale"), at("d_context", tensor.F32, 3, 6, 7)), gradKind, `tensor "k": has dtype I8, must be F32, F16, BF16`},
		{"d_context of another kind", lesson(), `{}`, `tensor "d_context": is not a tensor of kind "attention"`},
		{"lse of another kind", append(qkv(), lse), `{}`, `tensor "lse": is not a tensor of kind "attention"`},
		{"hidden states", append(lesson(), at("x", tensor.F32, 3, 8)), gradKind, `tensor "x": is not a tensor of kind "attention_grad"`},
		{"weights", append(lesson(), weights()...), gradKind, `tensor "w_k": is not a tensor of kind "attention_grad"`},
		{"misspelt", append(lesson(), at("d_contxt", tensor.F32, 1)), gradKind, `tensor "d_contxt": is unknown: kind "attention_grad" has q, k, v, d_context, context, lse, mask, bias, tokens`},
		{"option of layers", lesson(), `{"kind":"attention_grad","head_dim":4}`, `option "head_dim" belongs to kind "layer"`},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, err := Parse(file(t, c.tensors, options(c.meta)), nil)
			if want := "job.safetensors: " + c.want; err == nil || err.Error() != want {
				t.Errorf("got  %v\nwant %s", err, want)
			}
		})
	}
}

// layerLesson is a layer with what its outputs are to change to.
func layerLesson() []tensor.Data { return append(hidden(), at("d_y", tensor.F32, 3, 8)) }

const layerGradKind = `{"kind":"layer_grad","head_dim":4}`

func TestLayerGradientErrors(t *testing.T) {
	for _, c := range []struct {
		name    string
		tensors []tensor.Data
		meta    string
		want    string
	}{
		{"no d_y", hidden(), layerGradKind, `tensor "d_y": is missing`},
		{"shape of d_y", with(layerLesson(), at("d_y", tensor.F32, 3, 6)), layerGradKind, `tensor "d_y": has shape [3, 6], must be [tokens, d_model] = [3, 8]`},
		{"dtype of d_y", with(layerLesson(), at("d_y", tensor.I8, 3, 8)), layerGradKind, `tensor "d_y": has dtype I8, must be F32, F16, BF16`},
		{"no w_o", without(layerLesson(), "w_o"), layerGradKind, `tensor "w_o": is missing: kind "layer_grad" has it`},
		{"no weights", without(layerLesson(), "w_k"), layerGradKind, `tensor "w_k": is missing`},
		{"d_y of another kind", layerLesson(), layerKind, `tensor "d_y": is not a tensor of kind "layer"`},
		{"d_context", append(layerLesson(), at("d_context", tensor.F32, 3, 6, 7)), layerGradKind, `tensor "d_context": is not a tensor of kind "layer_grad"`},
		{"queries", append(layerLesson(), qkv()...), layerGradKind, `tensor "k": is not a tensor of kind "layer_grad"`},
		{"offset", layerLesson(), `{"kind":"layer_grad","head_dim":4,"offset":1}`, `option "offset" is 1, must be 0 in kind "layer_grad": row i of "x" is query i and position i`},
		{"misspelt", append(layerLesson(), at("d_yy", tensor.F32, 3, 8)), layerGradKind, `tensor "d_yy": is unknown: kind "layer_grad" has x, d_y, w_q, w_k, w_v, w_o, b_q, b_k, b_v, b_o, mask, bias, tokens`},
		{"earlier, of none", append(layerLesson(), at("d_b_q", tensor.F32, 24)), layerGradKind, `tensor "d_b_q": is the gradient of no tensor of the job`},
		{"earlier, under another prefix", append(under("seqs.0.", layerLesson()), at("d_w_q", tensor.F32, 24, 8)), layerGradKind, `tensor "d_w_q": is the gradient of no tensor of the job`},
		{"shape of an earlier one", append(layerLesson(), at("d_w_q", tensor.F32, 8, 24)), layerGradKind, `tensor "d_w_q": has shape [8, 24], the job's gradient has [24, 8]`},
		{"dtype of an earlier one", append(layerLesson(), at("d_x", tensor.F16, 3, 8)), layerGradKind, `tensor "d_x": has dtype F16, must be F32`},
		{"earlier, of attention", append(lesson(), at("d_x", tensor.F32, 3, 8)), gradKind, `tensor "d_x": is the gradient of no tensor of the job`},
		{"earlier, of another kind", append(qkv(), at("d_q", tensor.F32, 3, 6, 4)), `{}`, `tensor "d_q": is not a tensor of kind "attention"`},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, err := Parse(file(t, c.tensors, options(c.meta)), nil)
			if want := "job.safetensors: " + c.want; err == nil || err.Error() != want {
				t.Errorf("got  %v\nwant %s", err, want)
			}
		})
	}
}

// TestSharedGradients: a tensor that several problems share has one gradient, under its own name.
func TestSharedGradients(t *testing.T) {
	list := append(weights(), at("b_k", tensor.F32, 8), at("seqs.1.b_o", tensor.F32, 8), at("seqs.1.d_b_o", tensor.F32, 8), at("d_w_k", tensor.F32, 8, 8))
	for _, prefix := range []string{"seqs.0.", "seqs.1."} {
		list = append(list, under(prefix, []tensor.Data{at("x", tensor.F32, 3, 8), at("d_y", tensor.BF16, 3, 8)})...)
	}
	j, err := Parse(file(t, list, options(`{"kind":"layer_grad","head_dim":4,"problems":{"seqs.1.":{"sinks":[1,2,3,4,5,6]}}}`)), nil)
	if err != nil {
		t.Fatal(err)
	}
	var got, earlier []string
	for _, info := range j.ResultInfos() {
		got = append(got, info.Name+" "+shapeString(info.Shape))
	}
	for _, info := range j.Earlier() {
		earlier = append(earlier, info.Name)
	}
	want := []string{
		"seqs.0.d_x [3, 8]", "d_w_q [24, 8]", "d_w_k [8, 8]", "d_w_v [14, 8]", "d_w_o [8, 42]", "d_b_k [8]",
		"seqs.1.d_x [3, 8]", "seqs.1.d_b_o [8]", "seqs.1.d_sinks [6]",
	}
	if !slices.Equal(got, want) {
		t.Errorf("results %q", got)
	}
	slices.Sort(earlier)
	if !slices.Equal(earlier, []string{"d_w_k", "seqs.1.d_b_o"}) {
		t.Errorf("earlier %q", earlier)
	}
}

func TestGradientResults(t *testing.T) {
	infos := func(list []tensor.Data, meta string) []tensor.Info {
		j, err := Parse(file(t, list, options(meta)), nil)
		if err != nil {
			t.Fatal(err)
		}
		if again, err := Parse(file(t, list, nil), j.EffectiveJSON()); err != nil || again.Kind != KindAttentionGrad {
			t.Errorf("by the effective options: %v", err)
		}
		return j.ResultInfos()
	}
	plain := []tensor.Info{
		{Name: "d_q", DType: tensor.F32, Shape: []int{3, 6, 4}},
		{Name: "d_k", DType: tensor.F32, Shape: []int{5, 2, 4}},
		{Name: "d_v", DType: tensor.F32, Shape: []int{5, 2, 7}},
	}
	if got := infos(lesson(), `{"kind":"attention_grad","kv_len":4}`); !slices.EqualFunc(got, plain, sameInfo) {
		t.Errorf("results %v", got)
	}
	all := append(plain, tensor.Info{Name: "d_bias", DType: tensor.F32, Shape: []int{1, 3, 5}}, tensor.Info{Name: "d_sinks", DType: tensor.F32, Shape: []int{6}})
	got := infos(append(lesson(), at("bias", tensor.F32, 1, 3, 5)), `{"kind":"attention_grad","sinks":[1,2,3,4,5,6]}`)
	if !slices.EqualFunc(got, all, sameInfo) {
		t.Errorf("results %v", got)
	}
}
