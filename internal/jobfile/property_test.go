package jobfile

import (
	"bytes"
	"encoding/json"
	"reflect"
	"strconv"
	"strings"
	"testing"
	"unicode"
	"unicode/utf8"

	"headwater.example/tensor"

	"pgregory.net/rapid"
)

// maybe draws a value, or nothing.
func maybe[T any](t *rapid.T, name string, g *rapid.Generator[T]) *T {
	if !rapid.Bool().Draw(t, "has "+name) {
		return nil
	}
	v := g.Draw(t, name)
	return &v
}

// drawOptions draws options that suit a problem of 6 heads, head_dim 4 and at least 3 positions.
func drawOptions(t *rapid.T, layer bool) *Options {
	floats := rapid.Float32Range(-1e30, 1e30)
	o := &Options{
		Causal:      maybe(t, "causal", rapid.Bool()),
		WindowLeft:  maybe(t, "window_left", rapid.Int64Range(-1, 9)),
		WindowRight: maybe(t, "window_right", rapid.Int64Range(-1, 9)),
		Scale:       maybe(t, "scale", floats),
		Softcap:     maybe(t, "softcap", rapid.Float32Range(0, 100)),
		KVLen:       maybe(t, "kv_len", rapid.Int64Range(0, 3)),
	}
	if s := maybe(t, "sinks", rapid.SliceOfN(floats, 6, 6)); s != nil {
		o.Sinks = *s
	}
	if s := maybe(t, "alibi_slopes", rapid.SampledFrom([][]float32{{}, {1, 2, 3, 4, 5, 6}})); s != nil {
		o.AlibiSlopes = *s
	}
	if !layer {
		o.Offset = maybe(t, "offset", rapid.Int64Range(-9, 9))
		return o
	}
	if rapid.Bool().Draw(t, "has rope") {
		o.Rope = &RopeOptions{
			Base:        maybe(t, "base", rapid.Float64Range(1, 1e6)),
			Interleaved: maybe(t, "interleaved", rapid.Bool()),
			Scale:       maybe(t, "rope scale", rapid.Float64Range(0.1, 10)),
			Mscale:      maybe(t, "mscale", rapid.Float64Range(0.1, 10)),
			Dims:        maybe(t, "dims", rapid.Just(int64(4))),
		}
	}
	return o
}

func drawJob(t *rapid.T) ([]tensor.Data, *Options) {
	layer := rapid.Bool().Draw(t, "layer")
	prefixes := rapid.SampledFrom([][]string{
		{""},
		{"layers.0.", "layers.2.", "layers.10."},
		{"seqs.1.", "seqs.2."},
		{"seqs.0.layers.0.", "seqs.0.layers.1.", "seqs.1.layers.0."},
	}).Draw(t, "prefixes")
	o := drawOptions(t, layer)
	var list []tensor.Data
	if layer {
		kind, headDim := "layer", int64(4)
		o.Kind, o.HeadDim = &kind, &headDim
		list = weights()
	}
	for _, p := range prefixes {
		if layer {
			list = append(list, at(p+"x", tensor.F32, 3, 8))
		} else {
			list = append(list, under(p, qkv())...)
		}
		if rapid.Bool().Draw(t, "has "+p) {
			if o.Problems == nil {
				o.Problems = map[string]*Options{}
			}
			o.Problems[p] = drawOptions(t, layer)
		}
	}
	return list, o
}

func mustParse(t testing.TB, list []tensor.Data, meta, overrides string) *Job {
	t.Helper()
	j, err := Parse(file(t, list, options(meta)), []byte(overrides))
	if err != nil {
		t.Fatalf("%v\nmeta %s\noverrides %s", err, meta, overrides)
	}
	return j
}

// The effective options of a job do not depend on where its options stand, and give the same job again.
func TestEffectiveJSON(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		list, o := drawJob(rt)
		meta := string(marshal(o))
		j := mustParse(tb{t, rt}, list, meta, "")
		want := string(j.EffectiveJSON())
		for _, again := range []*Job{
			mustParse(tb{t, rt}, list, "", meta),
			mustParse(tb{t, rt}, list, want, ""),
			mustParse(tb{t, rt}, list, "", want),
			mustParse(tb{t, rt}, list, meta, want),
		} {
			if got := string(again.EffectiveJSON()); got != want {
				rt.Fatalf("got  %s\nwant %s", got, want)
			}
			if !reflect.DeepEqual(again.Problems, j.Problems) {
				rt.Fatalf("got  %+v\nwant %+v", again.Problems, j.Problems)
			}
		}
	})
}

// tb lets helpers of testing.TB fail a property.
type tb struct {
	testing.TB
	rt *rapid.T
}

func (t tb) Fatal(args ...any)                 { t.rt.Fatal(args...) }
func (t tb) Fatalf(format string, args ...any) { t.rt.Fatalf(format, args...) }

// An override of all problems beats whatever the file says for one of them.
func TestOverrideBeatsFile(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		list, o := drawJob(rt)
		window := rapid.Int64Range(-1, 9).Draw(rt, "override")
		j := mustParse(tb{t, rt}, list, string(marshal(o)), `{"window_left":`+strconv.FormatInt(window, 10)+`}`)
		for _, p := range j.Problems {
			if p.Options.WindowLeft != window {
				rt.Fatalf("problem %q has %d, want %d", p.Prefix, p.Options.WindowLeft, window)
			}
		}
	})
}

// What Options marshal to, ParseOptions reads back.
func TestOptionsRoundTrip(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		_, o := drawJob(rt)
		again, err := parseOptions(marshal(o))
		if err != nil {
			rt.Fatal(err)
		}
		if !reflect.DeepEqual(again, o) {
			rt.Fatalf("got  %s\nwant %s", marshal(again), marshal(o))
		}
	})
}

func TestEffectiveJSONIsReadable(t *testing.T) {
	two := append(under("layers.0.", qkv()), under("layers.1.", qkv())...)
	j := mustParse(t, two, `{"scale":0.1,"problems":{"layers.1.":{"window_left":3}}}`, `{"causal":true}`)
	want := `{"alibi_slopes":[],"causal":true,"kind":"attention","kv_len":5,"offset":2,` +
		`"problems":{"layers.0.":{"window_left":-1},"layers.1.":{"window_left":3}},"scale":0.1,"sinks":[],"softcap":0,"window_right":-1}`
	if got := string(j.EffectiveJSON()); got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
}

var optionSeeds = []string{
	"", "{}", "null", `{"kind":"attention","causal":true,"offset":0,"window_left":-1,"window_right":-1,"scale":0.125,"softcap":0,"kv_len":3}`,
	`{"alibi_slopes":[1,0.5,0.25,0.125,0.0625,0.03125],"sinks":[-1,0,1,2,3,1e-30]}`,
	`{"kind":"layer","head_dim":4,"n_heads":6,"n_kv_heads":2,"v_dim":7,"rope":{"base":500000,"dims":4,"interleaved":true,"scale":8,"factors":[1,2],"mscale":1.5}}`,
	`{"problems":{"":{"window_left":3}}}`, `{"problems":{"layers.1.":{"causal":true},"layers.1.":{}}}`,
	`{"causal":true,"causal":false}`, `{"scale":1e999}`, `{"scale":-0.0}`, `{"offset":9223372036854775808}`, `{"kv_len":-0}`, `{"sinks":[[]]}`,
	`{"Kind":"layer"}`, `{"kind":"\ud800"}`, `[`, `{"a":` + strings.Repeat("[", 100), "\xff", `{"softcap":1e-50}`,
}

// checkError fails unless an error is one printable line of type *Error.
func checkError(t *testing.T, err error) {
	t.Helper()
	if _, ok := err.(*Error); !ok || strings.ContainsFunc(err.Error(), func(r rune) bool { return !unicode.IsPrint(r) }) {
		t.Errorf("error %T %q", err, err)
	}
}

// checkJob fails unless a job keeps its bounds and its effective options mean the same job.
func checkJob(t *testing.T, f *tensor.File, j *Job) {
	t.Helper()
	if len(j.Problems) == 0 || j.Geometry().Layers() != len(j.Problems) || j.cluster < 0 || j.cluster > maxBytes {
		t.Fatalf("job %+v", j)
	}
	for i := range j.Problems {
		p := &j.Problems[i]
		if p.Tokens < 1 || p.KVLen < 0 || p.KVLen > p.KVTokens || p.Shape.Heads%p.Shape.KVHeads != 0 {
			t.Fatalf("problem %+v", p)
		}
	}
	for _, info := range j.ResultInfos() {
		if info.Bytes() <= 0 {
			t.Fatalf("result %+v", info)
		}
	}
	effective := j.EffectiveJSON()
	again, err := Parse(f, effective)
	if err != nil {
		t.Fatalf("effective options %s: %v", effective, err)
	}
	if !bytes.Equal(again.EffectiveJSON(), effective) {
		t.Fatalf("effective options %s became %s", effective, again.EffectiveJSON())
	}
}

func FuzzOptions(f *testing.F) {
	for _, s := range optionSeeds {
		f.Add([]byte(s))
	}
	attention := file(f, qkv(), nil)
	layer := file(f, hidden(), options(layerKind))
	f.Fuzz(func(t *testing.T, data []byte) {
		o, err := parseOptions(data)
		if err != nil {
			checkError(t, err)
			return
		}
		if len(bytes.TrimSpace(data)) > 0 && !json.Valid(data) {
			t.Fatalf("read %q", data)
		}
		again, err := parseOptions(marshal(o))
		if err != nil || !bytes.Equal(marshal(again), marshal(o)) {
			t.Fatalf("%s became %s, %v", marshal(o), marshal(again), err)
		}
		for _, file := range []*tensor.File{attention, layer} {
			j, err := Parse(file, data)
			if err != nil {
				checkError(t, err)
				continue
			}
			checkJob(t, file, j)
		}
	})
}

func FuzzParse(f *testing.F) {
	add := func(list []tensor.Data, meta map[string]string, overrides string) {
		var buf bytes.Buffer
		if err := tensor.WriteSafetensors(&buf, list, meta); err != nil {
			f.Fatal(err)
		}
		header, err := tensor.HeaderBytes(bytes.NewReader(buf.Bytes()), int64(buf.Len()), 1<<20)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(header, int64(buf.Len()), []byte(overrides))
	}
	for _, s := range optionSeeds {
		add(qkv(), nil, s)
		if utf8.ValidString(s) {
			add(qkv(), options(s), "")
		}
	}
	add(int8s(), nil, `{"causal":true}`)
	add(hidden(), map[string]string{MetadataKey: layerKind, tokensKey: `["a","b","c"]`}, `{"rope":{}}`)
	add(append(under("seqs.0.layers.3.", qkv()), at("mask", tensor.Bool, 1, 3, 5), at("bias", tensor.F32, 6, 3, 5)), nil, "")
	add(append(weights(), at("seqs.1.layers.0.x", tensor.F32, 3, 8), at("layers.0.w_q", tensor.F32, 24, 8)), options(layerKind), "")
	f.Fuzz(func(t *testing.T, header []byte, size int64, overrides []byte) {
		file, err := tensor.ParseHeader("fuzz", header, size)
		if err != nil {
			return
		}
		j, err := Parse(file, overrides)
		if err != nil {
			checkError(t, err)
			return
		}
		checkJob(t, file, j)
	})
}
