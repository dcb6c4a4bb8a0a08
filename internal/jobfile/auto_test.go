package jobfile

import (
	"reflect"
	"slices"
	"testing"

	"pgregory.net/rapid"

	"headwater.example/attention"
	"headwater.example/tensor"
)

// TestWhatIsTakenStands: with what was taken written into the overrides, the problems that left it have it, and all else is as before,
// wherever it was left and whatever the overrides say besides.
func TestWhatIsTakenStands(t *testing.T) {
	dtypes := []tensor.DType{tensor.BF16, tensor.BF16, tensor.F16}
	prefixes := []string{"layers.0.", "layers.1.", "layers.2."}
	var list []tensor.Data
	for i, dtype := range dtypes {
		list = append(list, under(prefixes[i], []tensor.Data{at("q", tensor.F32, 3, 2, 4), at("k", dtype, 5, 1, 4), at("v", dtype, 5, 1, 4)})...)
	}
	rapid.Check(t, func(rt *rapid.T) {
		draw := func(label string) *Options {
			o := &Options{Problems: map[string]*Options{}}
			one := func(label string) *Options {
				o := &Options{}
				if rapid.Bool().Draw(rt, label+" has one") {
					name := rapid.SampledFrom([]string{"auto", "auto", "chain"}).Draw(rt, label)
					o.Arithmetic = &name
				}
				if rapid.Bool().Draw(rt, label+" is causal") {
					causal := rapid.Bool().Draw(rt, label+" causal")
					o.Causal = &causal
				}
				return o
			}
			for _, p := range prefixes {
				if rapid.Bool().Draw(rt, label+" names "+p) {
					o.Problems[p] = one(label + " " + p)
				}
			}
			all := one(label)
			o.Arithmetic, o.Causal = all.Arithmetic, all.Causal
			return o
		}
		meta, overrides := string(marshal(draw("file"))), marshal(draw("overrides"))
		j := mustParse(tb{t, rt}, list, meta, string(overrides))
		left := slices.ContainsFunc(j.Problems, func(p Problem) bool { return p.Arithmetic == attention.Auto })
		if j.Auto() != left || j.Problems[2].Arithmetic != attention.Chain {
			rt.Fatalf("auto is %v, problems %+v", j.Auto(), j.Problems)
		}
		taken := rapid.SampledFrom([]attention.Arithmetic{attention.Chain, attention.Tiles}).Draw(rt, "taken")
		text, err := j.Taken(overrides, taken)
		if err != nil {
			rt.Fatal(err)
		}
		again := mustParse(tb{t, rt}, list, meta, string(text))
		want := slices.Clone(j.Problems)
		for i := range want {
			if _, err := want[i].Layout(); (err != nil) != (want[i].Arithmetic == attention.Auto) {
				rt.Fatalf("a layout in %s: %v", want[i].Arithmetic, err)
			}
			if want[i].Arithmetic == attention.Auto {
				want[i].Arithmetic = taken
			}
		}
		if again.Auto() || !reflect.DeepEqual(again.Problems, want) {
			rt.Fatalf("%s became %s: got %+v, want %+v", overrides, text, again.Problems, want)
		}
	})
}

// TestGradientsLeaveNothing: they have chain alone.
func TestGradientsLeaveNothing(t *testing.T) {
	list := []tensor.Data{at("q", tensor.F32, 3, 2, 4), at("k", tensor.BF16, 5, 1, 4), at("v", tensor.BF16, 5, 1, 4), at("d_context", tensor.F32, 3, 2, 4)}
	if j := mustParse(t, list, `{"kind":"attention_grad","arithmetic":"auto"}`, ""); j.Auto() || j.Problems[0].Arithmetic != attention.Chain {
		t.Errorf("%+v", j.Problems[0])
	}
}
