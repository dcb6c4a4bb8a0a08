package jobfile

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"math"
	"slices"
	"strings"
	"testing"

	"headwater.example/attention"
	"headwater.example/shard"
	"headwater.example/tensor"
)

// at describes a tensor of a test file; its bytes are zeros unless changed.
func at(name string, dt tensor.DType, shape ...int) tensor.Data {
	info := tensor.Info{Name: name, DType: dt, Shape: shape}
	return tensor.Data{Info: info, Bytes: make([]byte, info.Bytes())}
}

// without leaves tensors out, with replaces or adds some.
func without(list []tensor.Data, names ...string) []tensor.Data {
	return slices.DeleteFunc(slices.Clone(list), func(d tensor.Data) bool { return slices.Contains(names, d.Name) })
}

func with(list []tensor.Data, more ...tensor.Data) []tensor.Data {
	for _, d := range more {
		list = append(without(list, d.Name), d)
	}
	return list
}

// under returns the tensors under a prefix.
func under(prefix string, list []tensor.Data) []tensor.Data {
	list = slices.Clone(list)
	for i := range list {
		list[i].Name = prefix + list[i].Name
	}
	return list
}

func file(t testing.TB, list []tensor.Data, meta map[string]string) *tensor.File {
	t.Helper()
	var buf bytes.Buffer
	if err := tensor.WriteSafetensors(&buf, list, meta); err != nil {
		t.Fatal(err)
	}
	f, err := tensor.OpenReaderAt("job.safetensors", bytes.NewReader(buf.Bytes()), int64(buf.Len()))
	if err != nil {
		t.Fatal(err)
	}
	return f
}

func options(s string) map[string]string { return map[string]string{MetadataKey: s} }

// qkv is 3 queries of 6 heads over 5 positions of 2 groups, head_dim 4, v_dim 7.
func qkv() []tensor.Data {
	return []tensor.Data{at("q", tensor.F32, 3, 6, 4), at("k", tensor.F32, 5, 2, 4), at("v", tensor.F32, 5, 2, 7)}
}

// int8s is the same with int8 storage.
func int8s() []tensor.Data {
	return []tensor.Data{
		at("q", tensor.F16, 3, 6, 4), at("k", tensor.I8, 5, 2, 4), at("v", tensor.I8, 5, 2, 7),
		at("k_scale", tensor.F32, 5, 2), at("v_scale", tensor.F32, 5, 2),
	}
}

// weights are those of 6 heads over 2 groups, head_dim 4, v_dim 7, d_model 8.
func weights() []tensor.Data {
	return []tensor.Data{
		at("w_q", tensor.F32, 24, 8), at("w_k", tensor.BF16, 8, 8), at("w_v", tensor.F16, 14, 8), at("w_o", tensor.F32, 8, 42),
	}
}

func hidden() []tensor.Data { return append(weights(), at("x", tensor.F32, 3, 8)) }

const layerKind = `{"kind":"layer","head_dim":4}`

// Each error is one line that names file, tensor or option, and rule, and there is no job.
func TestErrors(t *testing.T) {
	big := strings.Repeat("0,", 4096) + "0"
	for _, c := range []struct {
		name      string
		tensors   []tensor.Data
		meta      string
		overrides string
		want      string
	}{
		// Geometry of kind attention.
		{"q dtype", with(qkv(), at("q", tensor.F64, 3, 6, 4)), "", "", `tensor "q": has dtype F64, must be F32, F16, BF16`},
		{"q i8", with(qkv(), at("q", tensor.I8, 3, 6, 4)), "", "", `tensor "q": has dtype I8, must be F32, F16, BF16`},
		{"k dtype", with(qkv(), at("k", tensor.I32, 5, 2, 4)), "", "", `tensor "k": has dtype I32, must be F32, F16, BF16, I8`},
		{"v dtype", with(qkv(), at("v", tensor.F16, 5, 2, 7)), "", "", `tensor "v": has dtype F16, must be that of "k", F32`},
		{"rank", with(qkv(), at("q", tensor.F32, 3, 24)), "", "", `tensor "q": has shape [3, 24], must be [tokens, n_heads, head_dim]`},
		{"scalar", with(qkv(), at("v", tensor.F32)), "", "", `tensor "v": has shape [], must be [kv_tokens, n_kv_heads, v_dim]`},
		{"no tokens", with(qkv(), at("q", tensor.F32, 0, 6, 4)), "", "", `tensor "q": has shape [0, 6, 4]: tokens is 0, must be 1 to 1099511627776`},
		{"no positions", with(qkv(), at("k", tensor.F32, 0, 2, 4)), "", "", `tensor "k": has shape [0, 2, 4]: kv_tokens is 0, must be 1 to 1099511627776`},
		{"no heads", with(qkv(), at("q", tensor.F32, 3, 0, 4)), "", "", `tensor "q": has shape [3, 0, 4]: n_heads is 0, must be 1 to 4096`},
		{"no groups", with(qkv(), at("k", tensor.F32, 5, 0, 4)), "", "", `tensor "k": has shape [5, 0, 4]: n_kv_heads is 0, must be 1 to 4096`},
		{"many heads", with(qkv(), at("q", tensor.F32, 1, 4097, 1)), "", "", `tensor "q": has shape [1, 4097, 1]: n_heads is 4097, must be 1 to 4096`},
		{"head_dim 0", with(qkv(), at("q", tensor.F32, 3, 6, 0)), "", "", `tensor "q": has shape [3, 6, 0]: head_dim is 0, must be 1 to 512`},
		{"head_dim 513", with(qkv(), at("q", tensor.F32, 3, 6, 513)), "", "", `tensor "q": has shape [3, 6, 513]: head_dim is 513, must be 1 to 512`},
		{"v_dim 513", with(qkv(), at("v", tensor.F32, 5, 2, 513)), "", "", `tensor "v": has shape [5, 2, 513]: v_dim is 513, must be 1 to 512`},
		{"head_dims differ", with(qkv(), at("k", tensor.F32, 5, 2, 5)), "", "", `tensor "k": has shape [5, 2, 5]: head_dim is 5, but that of "q" is 4`},
		{"positions differ", with(qkv(), at("v", tensor.F32, 6, 2, 7)), "", "", `tensor "v": has shape [6, 2, 7], must be [kv_tokens, n_kv_heads, v_dim] = [5, 2, 7]`},
		{"groups", with(qkv(), at("q", tensor.F32, 3, 7, 4)), "", "", `tensor "q": n_heads 7 is not a multiple of n_kv_heads 2`},
		{"fewer heads than groups", with(qkv(), at("q", tensor.F32, 3, 1, 4)), "", "", `tensor "q": n_heads 1 is not a multiple of n_kv_heads 2`},
		// Names.
		{"empty file", nil, "", "", `tensor "q": is missing`},
		{"no q", without(qkv(), "q"), "", "", `tensor "q": is missing`},
		{"no k", without(qkv(), "k"), "", "", `tensor "k": is missing`},
		{"no v of a layer", under("layers.7.", without(qkv(), "v")), "", "", `tensor "layers.7.v": is missing`},
		{"unknown", with(qkv(), at("msak", tensor.F32, 1)), "", "", `tensor "msak": is unknown: kind "attention" has q, k, v, k_scale, v_scale, mask, bias, tokens`},
		{"unknown line", with(qkv(), at("q\n\x1b[2J", tensor.F32, 1)), "", "", `tensor "q\n\x1b[2J": is unknown: kind "attention" has q, k, v, k_scale, v_scale, mask, bias, tokens`},
		{"long name", with(qkv(), at(strings.Repeat("x", 201), tensor.F32, 1)), "", "", `tensor "` + strings.Repeat("x", 200) + `"…: is unknown: kind "attention" has q, k, v, k_scale, v_scale, mask, bias, tokens`},
		{"leading zero", under("layers.01.", qkv()), "", "", `tensor "layers.01.k": is unknown: kind "attention" has q, k, v, k_scale, v_scale, mask, bias, tokens`},
		{"huge number", under("seqs.2147483648.", qkv()), "", "", `tensor "seqs.2147483648.k": is unknown: kind "attention" has q, k, v, k_scale, v_scale, mask, bias, tokens`},
		{"order of the prefix", under("layers.0.seqs.0.", qkv()), "", "", `tensor "layers.0.seqs.0.k": is unknown: kind "attention" has q, k, v, k_scale, v_scale, mask, bias, tokens`},
		{"mixed forms", append(qkv(), under("layers.0.", qkv())...), "", "", `tensor "layers.0.k": prefix "layers.0." does not go with prefix "": all problems of a file carry prefixes of one form`},
		{"other kind", append(qkv(), weights()...), "", "", `tensor "w_k": is not a tensor of kind "attention"`},
		{"other kind by override", qkv(), "", `{"kind":"layer"}`, `tensor "k": is not a tensor of kind "layer"`},
		{"no user", with(under("layers.0.", qkv()), at("layers.1.mask", tensor.Bool, 1, 3, 5)), "", "", `tensor "layers.1.mask": belongs to no problem of the file`},
		// Scales.
		{"no k_scale", without(int8s(), "k_scale"), "", "", `tensor "k_scale": is missing: "k" is I8`},
		{"no v_scale", without(int8s(), "v_scale"), "", "", `tensor "v_scale": is missing: "k" is I8`},
		{"needless scale", with(qkv(), at("v_scale", tensor.F32, 5, 2)), "", "", `tensor "v_scale": goes with I8 only, and "k" is F32`},
		{"scale dtype", with(int8s(), at("k_scale", tensor.F16, 5, 2)), "", "", `tensor "k_scale": has dtype F16, must be F32`},
		{"scale shape", with(int8s(), at("k_scale", tensor.F32, 5, 1)), "", "", `tensor "k_scale": has shape [5, 1], must be [kv_tokens, n_kv_heads] = [5, 2]`},
		// Operands.
		{"mask dtype", with(qkv(), at("mask", tensor.F32, 1, 3, 5)), "", "", `tensor "mask": has dtype F32, must be BOOL, U8`},
		{"mask rank", with(qkv(), at("mask", tensor.U8, 3, 5)), "", "", `tensor "mask": has shape [3, 5], must be [n_heads or 1, tokens, kv_tokens]`},
		{"mask heads", with(qkv(), at("mask", tensor.Bool, 2, 3, 5)), "", "", `tensor "mask": has shape [2, 3, 5], must be [n_heads or 1, tokens, kv_tokens] = [6 or 1, 3, 5]`},
		{"bias positions", with(qkv(), at("bias", tensor.F32, 6, 3, 4)), "", "", `tensor "bias": has shape [6, 3, 4], must be [n_heads or 1, tokens, kv_tokens] = [6 or 1, 3, 5]`},
		{"bias dtype", with(qkv(), at("bias", tensor.F16, 6, 3, 5)), "", "", `tensor "bias": has dtype F16, must be F32`},
		{"ids dtype", with(qkv(), at("tokens", tensor.F32, 5)), "", "", `tensor "tokens": has dtype F32, must be U8, I8, I16, U16, I32, U32, I64, U64`},
		{"ids", with(qkv(), at("tokens", tensor.I32, 4)), "", "", `tensor "tokens": has shape [4], must be [kv_tokens] = [5]`},
		// Options, as JSON.
		{"not JSON", qkv(), `{"causal":`, "", `metadata "headwater": options are not valid JSON at byte 10: unexpected end of JSON input`},
		{"not UTF-8", qkv(), "", "{\"\xff\":1}", `overrides: options are not valid UTF-8`},
		{"array", qkv(), `[]`, "", `metadata "headwater": options must be a JSON object, not "[]"`},
		{"two objects", qkv(), `{}{}`, "", `metadata "headwater": options are not valid JSON at byte 3: invalid character '{' after top-level value`},
		{"unknown option", qkv(), `{"casual":true}`, "", `metadata "headwater": option "casual" is unknown`},
		{"other case", qkv(), `{"Causal":true}`, "", `metadata "headwater": option "Causal" is unknown`},
		{"unknown override", qkv(), "", `{"windowleft":1}`, `overrides: option "windowleft" is unknown`},
		{"twice", qkv(), `{"causal":true,"caus\u0061l":false}`, "", `metadata "headwater": options: key "causal" is given twice`},
		{"twice deeper", qkv(), `{"problems":{"":{"offset":1,"offset":1}}}`, "", `metadata "headwater": problem "": options: key "offset" is given twice`},
		{"null", qkv(), `{"offset":null}`, "", `metadata "headwater": option "offset" is "null", must be a whole number from -1099511627776 to 1099511627776`},
		{"fraction", qkv(), `{"offset":1.0}`, "", `metadata "headwater": option "offset" is "1.0", must be a whole number from -1099511627776 to 1099511627776`},
		{"offset", qkv(), `{"offset":1099511627777}`, "", `metadata "headwater": option "offset" is "1099511627777", must be a whole number from -1099511627776 to 1099511627776`},
		{"causal", qkv(), `{"causal":1}`, "", `metadata "headwater": option "causal" is "1", must be true or false`},
		{"window", qkv(), `{"window_left":-2}`, "", `metadata "headwater": option "window_left" is "-2", must be a whole number of at least -1`},
		{"window string", qkv(), `{"window_right":"3"}`, "", `metadata "headwater": option "window_right" is "\"3\"", must be a whole number of at least -1`},
		{"scale", qkv(), `{"scale":1e39}`, "", `metadata "headwater": option "scale" is "1e39", which is not within the range of f32`},
		{"scale NaN", qkv(), `{"scale":NaN}`, "", `metadata "headwater": options are not valid JSON at byte 10: invalid character 'N' looking for beginning of value`},
		{"softcap", qkv(), `{"softcap":-1}`, "", `metadata "headwater": option "softcap" is -1, must be at least 0 (0 is off)`},
		{"arithmetic", qkv(), `{"arithmetic":"Tiles"}`, "", `metadata "headwater": option "arithmetic" is "Tiles", must be "chain", "tiles", "tiles-bf16" or "auto"`},
		{"arithmetic type", qkv(), `{"arithmetic":1}`, "", `metadata "headwater": option "arithmetic" is "1", must be a string`},
		{"arithmetic of f32", qkv(), `{"arithmetic":"tiles"}`, "", `option "arithmetic" is "tiles", which takes keys and values of BF16, not of F32`},
		{"kind", qkv(), `{"kind":"mlp"}`, "", `metadata "headwater": option "kind" is "mlp", must be "attention", "layer", "attention_grad" or "layer_grad"`},
		{"kind type", qkv(), `{"kind":true}`, "", `metadata "headwater": option "kind" is "true", must be a string`},
		{"slopes type", qkv(), `{"alibi_slopes":{}}`, "", `metadata "headwater": option "alibi_slopes" is "{}", must be an array of numbers`},
		{"slopes element", qkv(), `{"alibi_slopes":[1,"x"]}`, "", `metadata "headwater": option "alibi_slopes[1]" is "\"x\"", must be a number`},
		{"slopes element range", qkv(), `{"sinks":[0,0,0,0,0,-1e60]}`, "", `metadata "headwater": option "sinks[5]" is "-1e60", which is not within the range of f32`},
		{"slopes most", qkv(), `{"alibi_slopes":[` + big + `]}`, "", `metadata "headwater": option "alibi_slopes" has 4097 elements, at most 4096 are possible`},
		{"nested kind", qkv(), `{"problems":{"":{"kind":"layer"}}}`, "", `metadata "headwater": problem "": option "kind" stands at the top level only`},
		{"problem prefix", qkv(), `{"problems":{"layer.0.":{}}}`, "", `metadata "headwater": option "problems" names the prefix "layer.0.", must be "", "layers.N.", "seqs.N." or "seqs.N.layers.M."`},
		{"problem object", qkv(), `{"problems":{"":1}}`, "", `metadata "headwater": problem "": options must be a JSON object, not "1"`},
		{"problem absent", qkv(), `{"problems":{"layers.0.":{}}}`, "", `metadata "headwater": option "problems" names "layers.0.", which the file does not hold`},
		{"problem absent in overrides", under("layers.0.", qkv()), "", `{"problems":{"layers.1.":{}}}`, `overrides: option "problems" names "layers.1.", which the file does not hold`},
		// Options against the geometry.
		{"kv_len", qkv(), `{"kv_len":6}`, "", `option "kv_len" is 6, must be 0 to kv_tokens, 5`},
		{"slopes", qkv(), `{"alibi_slopes":[1,2]}`, "", `option "alibi_slopes" has 2 elements, must have one for each of the 6 query heads`},
		{"sinks of a layer", under("layers.2.", qkv()), `{"sinks":[1]}`, "", `option "sinks" of problem "layers.2." has 1 elements, must have one for each of the 6 query heads`},
		{"distance", qkv(), `{"alibi_slopes":[1,1,1,1,1,1],"offset":16777214}`, "", `option "alibi_slopes": a query sees a position at distance 16777216, must be below 2^24`},
		{"distance after", qkv(), `{"alibi_slopes":[1,1,1,1,1,1],"offset":-16777212}`, "", `option "alibi_slopes": a query sees a position at distance 16777216, must be below 2^24`},
		{"layer option", qkv(), `{"head_dim":4}`, "", `option "head_dim" belongs to kind "layer"`},
		{"layer rope", qkv(), "", `{"rope":{}}`, `option "rope" belongs to kind "layer"`},
		{"tokens", qkv(), "TOKENS", "", `metadata "tokens" holds 2 tokens, but problem "" has 5 positions`},
		{"tokens type", qkv(), "NUMBERS", "", `metadata "tokens": must be a JSON array of strings`},
		// Kind layer.
		{"no x", weights(), layerKind, "", `tensor "x": is missing`},
		{"no w_q", without(hidden(), "w_q"), layerKind, "", `tensor "w_q": is missing`},
		{"no w_k", without(hidden(), "w_k"), layerKind, "", `tensor "w_k": is missing`},
		{"x dtype", with(hidden(), at("x", tensor.I8, 3, 8)), layerKind, "", `tensor "x": has dtype I8, must be F32, F16, BF16`},
		{"x tokens", with(hidden(), at("x", tensor.F32, 0, 8)), layerKind, "", `tensor "x": has shape [0, 8]: tokens is 0, must be 1 to 1099511627776`},
		{"d_model", with(hidden(), at("w_k", tensor.F32, 8, 9)), layerKind, "", `tensor "w_k": has shape [8, 9], must be [n_kv_heads·head_dim, d_model] with the d_model of "x", 8`},
		{"d_model of w_o", with(hidden(), at("w_o", tensor.F32, 9, 42)), layerKind, "", `tensor "w_o": has shape [9, 42], must be [d_model, n_heads·v_dim] with the d_model of "x", 8`},
		{"w_o", with(hidden(), at("w_o", tensor.F32, 8, 41)), layerKind, "", `tensor "w_o": has shape [8, 41], must be [d_model, n_heads·v_dim] = [8, 42]`},
		{"no rows", with(hidden(), at("w_q", tensor.F32, 0, 8)), layerKind, "", `tensor "w_q": has shape [0, 8]: n_heads·head_dim is 0, must be at least 1`},
		{"no dims", hidden(), `{"kind":"layer"}`, "", `option "head_dim" is missing: shapes alone do not give it; n_heads, n_kv_heads or v_dim would do as well`},
		{"head_dim", hidden(), `{"kind":"layer","head_dim":5}`, "", `tensor "w_k": has shape [8, 8]: 8 rows are not a multiple of head_dim, 5`},
		{"heads", hidden(), `{"kind":"layer","n_heads":7}`, "", `tensor "w_q": has shape [24, 8]: 24 rows are not a multiple of n_heads, 7`},
		{"v_dim", hidden(), `{"kind":"layer","v_dim":3}`, "", `tensor "w_v": has shape [14, 8]: 14 rows are not a multiple of v_dim, 3`},
		{"disagree", hidden(), `{"kind":"layer","head_dim":4,"n_heads":5}`, "", `tensor "w_q": gives n_heads 6, but option "n_heads" is 5`},
		{"disagree v", hidden(), `{"kind":"layer","head_dim":4,"v_dim":8}`, "", `tensor "w_v": gives v_dim 7, but option "v_dim" is 8`},
		{"disagree k", hidden(), `{"kind":"layer","head_dim":4,"n_kv_heads":3}`, "", `tensor "w_k": has shape [8, 8]: 8 rows are not n_kv_heads·head_dim = 3·4`},
		{"groups of a layer", with(hidden(), at("w_q", tensor.F32, 28, 8), at("w_o", tensor.F32, 8, 49)), layerKind, "", `tensor "w_q": n_heads 7 is not a multiple of n_kv_heads 2`},
		{"head_dim too large", with(hidden(), at("w_q", tensor.F32, 1200, 8), at("w_k", tensor.F32, 1200, 8)), `{"kind":"layer","n_kv_heads":2}`, "", `tensor "w_k": gives head_dim 600, must be 1 to 512`},
		{"b_q", with(hidden(), at("b_q", tensor.F32, 25)), layerKind, "", `tensor "b_q": has shape [25], must be [n_heads·head_dim] = [24]`},
		{"b_v", with(hidden(), at("b_v", tensor.F32, 7)), layerKind, "", `tensor "b_v": has shape [7], must be [n_kv_heads·v_dim] = [14]`},
		{"b_o", with(without(hidden(), "w_o"), at("b_o", tensor.F32, 8)), layerKind, "", `tensor "b_o": goes with "w_o", which is missing`},
		{"layer offset", hidden(), `{"kind":"layer","head_dim":4,"offset":1}`, "", `option "offset" is 1, must be 0 in kind "layer": row i of "x" is query i and position i`},
		{"weights without x", append(hidden(), under("layers.1.", weights())...), layerKind, "", `tensor "layers.1.w_k": belongs to no problem of the file`},
		{"rope unknown", hidden(), `{"kind":"layer","head_dim":4,"rope":{"theta":1}}`, "", `metadata "headwater": option "rope.theta" is unknown`},
		{"rope twice", hidden(), `{"rope":{"base":1,"base":2}}`, "", `metadata "headwater": option "rope": key "base" is given twice`},
		{"rope base", hidden(), `{"rope":{"base":0}}`, "", `metadata "headwater": option "rope.base" is "0", must be greater than 0`},
		{"rope base range", hidden(), `{"rope":{"base":1e999}}`, "", `metadata "headwater": option "rope.base" is "1e999", which is not within the range of f64`},
		{"rope dims odd", hidden(), `{"kind":"layer","head_dim":4,"rope":{"dims":3}}`, "", `option "rope": rope dims is 3, not an even number from 2 to head_dim 4`},
		{"rope dims", hidden(), `{"kind":"layer","head_dim":4,"rope":{"dims":6}}`, "", `option "rope": rope dims is 6, not an even number from 2 to head_dim 4`},
		{"rope factors", hidden(), `{"kind":"layer","head_dim":4,"rope":{"factors":[1]}}`, "", `option "rope": rope has 1 factors for 2 pairs`},
		{"rope factor", hidden(), `{"kind":"layer","head_dim":4,"rope":{"factors":[1,-1]}}`, "", `option "rope": rope factor 1 is -1, not a finite number above 0`},
	} {
		t.Run(c.name, func(t *testing.T) {
			meta := options(c.meta)
			switch c.meta {
			case "TOKENS":
				meta = map[string]string{tokensKey: `["a","b"]`}
			case "NUMBERS":
				meta = map[string]string{tokensKey: `[1,2,3,4,5]`}
			}
			j, err := Parse(file(t, c.tensors, meta), []byte(c.overrides))
			if err == nil {
				t.Fatalf("no error, want %s", c.want)
			}
			if want := "job.safetensors: " + c.want; err.Error() != want {
				t.Errorf("got  %s\nwant %s", err, want)
			}
			var typed *Error
			if j != nil || !errors.As(err, &typed) || strings.ContainsAny(err.Error(), "\n\r\x1b") {
				t.Errorf("job %v, error %T %q", j, err, err)
			}
		})
	}
}

func one(t *testing.T, list []tensor.Data, meta, overrides string) *Problem {
	t.Helper()
	j, err := Parse(file(t, list, options(meta)), []byte(overrides))
	if err != nil {
		t.Fatal(err)
	}
	if len(j.Problems) != 1 {
		t.Fatalf("%d problems", len(j.Problems))
	}
	return &j.Problems[0]
}

func TestDefaults(t *testing.T) {
	j, err := Parse(file(t, qkv(), nil), nil)
	if err != nil {
		t.Fatal(err)
	}
	p := &j.Problems[0]
	if j.Kind != KindAttention || p.Prefix != "" || p.Tokens != 3 || p.KVTokens != 5 || p.KVLen != 5 || p.Storage != tensor.F32 {
		t.Errorf("problem %+v", p)
	}
	if p.Shape != (shard.LayerShape{Heads: 6, KVHeads: 2, HeadDim: 4, VDim: 7}) || j.Geometry().Layer(0) != p.Shape {
		t.Errorf("shape %+v", p.Shape)
	}
	if p.Offset != 2 {
		t.Errorf("offset %d, want kv_len − tokens = 2", p.Offset)
	}
	o := p.Options
	if o.Causal || o.WindowLeft != -1 || o.WindowRight != -1 || o.Scale != 0.5 || o.Softcap != 0 || o.AlibiSlopes != nil || o.Sinks != nil {
		t.Errorf("options %+v", o)
	}
	// K and V of 2 groups of 4 + 7 elements; a page pads v_dim to 16.
	if j.cluster != 2*64*(4+16)*4 {
		t.Errorf("the workers reserve %d bytes", j.cluster)
	}
	want := []tensor.Info{
		{Name: "context", DType: tensor.F32, Shape: []int{3, 6, 7}},
		{Name: "lse", DType: tensor.F32, Shape: []int{3, 6}},
	}
	if got := j.ResultInfos(); !slices.EqualFunc(got, want, sameInfo) {
		t.Errorf("results %v", got)
	}
}

func sameInfo(a, b tensor.Info) bool {
	return a.Name == b.Name && a.DType == b.DType && slices.Equal(a.Shape, b.Shape)
}

func TestOffsetFollowsKVLen(t *testing.T) {
	if p := one(t, qkv(), `{"kv_len":2}`, ""); p.Offset != -1 || p.KVLen != 2 {
		t.Errorf("offset %d, kv_len %d", p.Offset, p.KVLen)
	}
	if p := one(t, qkv(), `{"kv_len":0}`, ""); p.Offset != -3 || p.KVLen != 0 {
		t.Errorf("offset %d, kv_len %d", p.Offset, p.KVLen)
	}
	if p := one(t, qkv(), `{"kv_len":2,"offset":0}`, ""); p.Offset != 0 {
		t.Errorf("offset %d", p.Offset)
	}
	if p := one(t, hidden(), `{"kind":"layer","head_dim":4,"kv_len":2}`, ""); p.Offset != 0 || p.KVLen != 2 {
		t.Errorf("offset %d, kv_len %d", p.Offset, p.KVLen)
	}
}

func TestInt8(t *testing.T) {
	j, err := Parse(file(t, int8s(), nil), nil)
	if err != nil {
		t.Fatal(err)
	}
	p := &j.Problems[0]
	if p.Storage != tensor.I8 || p.KScale != "k_scale" || p.VScale != "v_scale" {
		t.Errorf("problem %+v", p)
	}
}

// ALiBi's distances count only what a query may see.
func TestAlibiDistance(t *testing.T) {
	slopes := `"alibi_slopes":[1,1,1,1,1,1]`
	for _, meta := range []string{
		`{"offset":16777213,` + slopes + `}`,
		`{"offset":16777214,"window_left":100,` + slopes + `}`,
		`{"offset":-16777212,"causal":true,` + slopes + `}`,
		`{"offset":-16777212,"window_right":7,` + slopes + `}`,
		`{"offset":16777214,"kv_len":0,` + slopes + `}`,
	} {
		one(t, qkv(), meta, "")
	}
}

// What overrides what, from the default to the overrides' problems.
func TestPrecedence(t *testing.T) {
	two := append(under("layers.0.", qkv()), under("layers.1.", qkv())...)
	meta := `{"window_left":1,"window_right":1,"softcap":1,"sinks":[1,1,1,1,1,1],"problems":{"layers.1.":{"window_right":2,"softcap":2}}}`
	over := `{"softcap":3,"sinks":[],"causal":true,"problems":{"layers.0.":{"causal":false}}}`
	j, err := Parse(file(t, two, options(meta)), []byte(over))
	if err != nil {
		t.Fatal(err)
	}
	for i, want := range []attention.Options{
		{Causal: false, WindowLeft: 1, WindowRight: 1, Softcap: 3, Scale: 0.5},
		{Causal: true, WindowLeft: 1, WindowRight: 2, Softcap: 3, Scale: 0.5},
	} {
		got := j.Problems[i].Options
		if got.Causal != want.Causal || got.WindowLeft != want.WindowLeft || got.WindowRight != want.WindowRight ||
			got.Softcap != want.Softcap || got.Scale != want.Scale || got.Sinks != nil {
			t.Errorf("layer %d: %+v, want %+v", i, got, want)
		}
	}
}

func TestLayer(t *testing.T) {
	list := with(hidden(), at("b_q", tensor.F32, 24), at("b_o", tensor.F16, 8), at("mask", tensor.U8, 6, 3, 3))
	for _, dims := range []string{`"head_dim":4`, `"n_heads":6`, `"n_kv_heads":2`, `"v_dim":7`, `"n_heads":6,"n_kv_heads":2,"head_dim":4,"v_dim":7`} {
		j, err := Parse(file(t, list, options(`{"kind":"layer",`+dims+`,"rope":{"base":1e5}}`)), nil)
		if err != nil {
			t.Fatal(dims, err)
		}
		p := &j.Problems[0]
		if p.Shape != (shard.LayerShape{Heads: 6, KVHeads: 2, HeadDim: 4, VDim: 7}) || p.DModel != 8 || p.Tokens != 3 || p.KVLen != 3 || p.Storage != tensor.F32 {
			t.Errorf("%s: %+v", dims, p)
		}
		if p.X != "x" || p.WQ != "w_q" || p.WK != "w_k" || p.WV != "w_v" || p.WO != "w_o" || p.BQ != "b_q" || p.BK != "" || p.BO != "b_o" || p.Mask != "mask" || p.MaskHeads != 6 {
			t.Errorf("%s: names %+v", dims, p)
		}
		r := p.Rope
		if r == nil || r.Base != 1e5 || r.Dims != 4 || r.Interleaved || r.Scale != 1 || r.Mscale != 1 || r.Factors != nil {
			t.Errorf("%s: rope %+v", dims, r)
		}
		if infos := j.ResultInfos(); len(infos) != 3 || infos[2].Name != "y" || !slices.Equal(infos[2].Shape, []int{3, 8}) {
			t.Errorf("results %v", infos)
		}
	}
}

// Weights of a batch of layers are found under their layer, then without prefix; masks under their sequence as well.
func TestShared(t *testing.T) {
	x := at("x", tensor.F32, 3, 8)
	list := slices.Concat(weights(), under("layers.1.", weights()[:1]))
	for _, p := range []string{"seqs.0.layers.0.", "seqs.0.layers.1.", "seqs.4.layers.1.", "seqs.10.layers.0."} {
		list = append(list, under(p, []tensor.Data{x})...)
	}
	list = append(list, at("seqs.4.mask", tensor.Bool, 1, 3, 3), at("mask", tensor.Bool, 1, 3, 3), at("seqs.0.layers.1.mask", tensor.Bool, 6, 3, 3))
	meta := options(layerKind)
	meta["tokens"] = `["a","b","c"]`
	meta["seqs.4.tokens"] = `["d","e","f"]`
	j, err := Parse(file(t, list, meta), nil)
	if err != nil {
		t.Fatal(err)
	}
	want := []struct{ prefix, wq, wk, mask, token string }{
		{"seqs.0.layers.0.", "w_q", "w_k", "mask", "a"},
		{"seqs.0.layers.1.", "layers.1.w_q", "w_k", "seqs.0.layers.1.mask", "a"},
		{"seqs.4.layers.1.", "layers.1.w_q", "w_k", "seqs.4.mask", "d"},
		{"seqs.10.layers.0.", "w_q", "w_k", "mask", "a"},
	}
	if len(j.Problems) != len(want) {
		t.Fatalf("%d problems", len(j.Problems))
	}
	for i, w := range want {
		p := &j.Problems[i]
		if p.Prefix != w.prefix || int(p.Index) != i || p.WQ != w.wq || p.WK != w.wk || p.Mask != w.mask || j.TokensOf(p)[0] != w.token {
			t.Errorf("problem %d: %+v, want %+v", i, p, w)
		}
	}
	if len(j.Tokens) != 3 || j.Geometry().Layers() != 4 {
		t.Errorf("tokens %v, %d layers", j.Tokens, j.Geometry().Layers())
	}
}

func TestCheckValues(t *testing.T) {
	nan, inf := float32(math.NaN()), float32(math.Inf(1))
	base := with(qkv(), at("bias", tensor.F32, 1, 3, 5), at("mask", tensor.Bool, 1, 3, 5), at("tokens", tensor.I8, 5))
	for _, c := range []struct {
		tensor string
		index  int
		value  float32
		want   string
	}{
		{"q", 71, nan, `tensor "q"[71]: is NaN, must be finite`},
		{"k", 0, inf, `tensor "k"[0]: is +Inf, must be finite`},
		{"v", 69, -inf, `tensor "v"[69]: is -Inf, must be finite`},
		{"bias", 3, nan, `tensor "bias"[3]: is NaN, must be finite or -Inf`},
		{"bias", 14, inf, `tensor "bias"[14]: is +Inf, must be finite or -Inf`},
		{"bias", 14, -inf, ""},
	} {
		list := slices.Clone(base)
		for i, d := range list {
			if d.Name == c.tensor {
				list[i].Bytes = slices.Clone(d.Bytes)
				binary.LittleEndian.PutUint32(list[i].Bytes[4*c.index:], math.Float32bits(c.value))
			}
		}
		checkValues(t, list, c.want)
	}
	masks := slices.Clone(base)
	for i, d := range masks {
		if d.Name == "mask" {
			masks[i].Bytes = []byte{1, 0, 1, 1, 1, 0, 0, 0, 2, 1, 1, 1, 1, 1, 1}
		}
	}
	checkValues(t, masks, `tensor "mask"[8]: is 2, must be 0 or 1`)
	for i, d := range masks {
		if d.Name == "mask" {
			masks[i].DType = tensor.U8
		}
	}
	checkValues(t, masks, "")
}

func checkValues(t *testing.T, list []tensor.Data, want string) {
	t.Helper()
	f := file(t, list, nil)
	j, err := Parse(f, nil)
	if err != nil {
		t.Fatal(err)
	}
	got := ""
	if err := j.CheckValues(context.Background(), f, nil); err != nil {
		got = strings.TrimPrefix(err.Error(), "job.safetensors: ")
	}
	if got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
}

// The index is that of the whole tensor where the tensor takes several pieces, and progress goes up to the total.
func TestCheckValuesStreams(t *testing.T) {
	list := with(qkv(), at("q", tensor.BF16, 3000, 6, 64), at("k", tensor.F32, 5, 2, 64))
	for i, d := range list {
		if d.Name == "q" {
			binary.LittleEndian.PutUint16(list[i].Bytes[2*1_000_003:], 0x7fc0)
		}
	}
	f := file(t, list, nil)
	j, err := Parse(f, nil)
	if err != nil {
		t.Fatal(err)
	}
	var last int64
	progress := func(done, total int64) {
		if done <= last || done > total {
			t.Errorf("progress %d after %d of %d", done, last, total)
		}
		last = done
	}
	var typed *Error
	if err := j.CheckValues(context.Background(), f, progress); !errors.As(err, &typed) || typed.Index != 1_000_003 || typed.File != "job.safetensors" {
		t.Errorf("error %v", err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if err := j.CheckValues(ctx, f, nil); !errors.Is(err, context.Canceled) {
		t.Errorf("error %v", err)
	}
}

// A header without data is enough to check a job, and tells what its values' check can not read.
func TestHeaderOnly(t *testing.T) {
	var buf bytes.Buffer
	if err := tensor.WriteSafetensors(&buf, qkv(), options(`{"causal":true}`)); err != nil {
		t.Fatal(err)
	}
	header, err := tensor.HeaderBytes(bytes.NewReader(buf.Bytes()), int64(buf.Len()), 1<<20)
	if err != nil {
		t.Fatal(err)
	}
	f, err := tensor.ParseHeader("name", header, int64(buf.Len()))
	if err != nil {
		t.Fatal(err)
	}
	j, err := Parse(f, nil)
	if err != nil || !j.Problems[0].Options.Causal {
		t.Fatalf("job %+v, error %v", j, err)
	}
	if err := j.CheckValues(context.Background(), f, nil); err == nil {
		t.Error("values of a header passed")
	}
}
