package jobfile

import (
	"bytes"
	"cmp"
	"encoding/json"
	"slices"

	"headwater.example/attention"
)

// EffectiveJSON is the job's options with every default and override resolved, in one canonical form: two jobs over the
// same bytes that mean the same have the same EffectiveJSON, however they were written down. It is itself an object of
// options, and as overrides it changes nothing.
//
// A field whose value is the same for all problems stands at the top, any other in "problems" under its prefix.
func (j *Job) EffectiveJSON() []byte {
	fields := make([]map[string]json.RawMessage, len(j.Problems))
	for i := range j.Problems {
		fields[i] = j.Problems[i].effective(j.Kind)
	}
	top := map[string]any{"kind": j.Kind.String()}
	for key, value := range fields[0] {
		same := true
		for _, f := range fields[1:] {
			if same = bytes.Equal(f[key], value); !same {
				break
			}
		}
		if same {
			top[key] = value
		}
	}
	problems := map[string]map[string]json.RawMessage{}
	for i, f := range fields {
		for key := range f {
			if _, ok := top[key]; ok {
				delete(f, key)
			}
		}
		if len(f) > 0 {
			problems[j.Problems[i].Prefix] = f
		}
	}
	if len(problems) > 0 {
		top["problems"] = problems
	}
	return marshal(top)
}

// effective is a problem's options by field. Fields that are always in force are always there, so that a field is
// missing in all problems or in the ones that do without it.
func (p *Problem) effective(kind Kind) map[string]json.RawMessage {
	f := map[string]json.RawMessage{}
	put := func(key string, value any) { f[key] = marshal(value) }
	a := p.Options
	put("causal", a.Causal)
	put("offset", p.Offset)
	put("window_left", a.WindowLeft)
	put("window_right", a.WindowRight)
	put("scale", a.Scale)
	put("softcap", a.Softcap)
	if p.Arithmetic != attention.Chain {
		put("arithmetic", p.Arithmetic.String())
	}
	put("kv_len", p.KVLen)
	put("alibi_slopes", orEmpty(a.AlibiSlopes))
	put("sinks", orEmpty(a.Sinks))
	if !kind.projects() {
		return f
	}
	put("n_heads", p.Shape.Heads)
	put("n_kv_heads", p.Shape.KVHeads)
	put("head_dim", p.Shape.HeadDim)
	put("v_dim", p.Shape.VDim)
	if p.Rope != nil {
		put("rope", ropeFields(p.Rope))
	}
	return f
}

func ropeFields(r *attention.Rope) map[string]any {
	return map[string]any{
		"base":        r.Base,
		"dims":        r.Dims,
		"interleaved": r.Interleaved,
		"scale":       r.Scale,
		"factors":     orEmpty(r.Factors),
		"mscale":      r.Mscale,
	}
}

func orEmpty[T any](v []T) []T {
	if v == nil {
		return []T{}
	}
	return v
}

// marshal writes JSON: keys sorted, floats in the shortest form that reads back the same.
func marshal(v any) []byte {
	b, err := json.Marshal(v)
	if err != nil {
		// Parse lets no value through that JSON can not hold.
		panic("jobfile: marshaling options: " + err.Error())
	}
	return b
}

// ResultArithmetics are those that a result's metadata names for its problems, each once; none where it tells of no problems.
func ResultArithmetics(metadata map[string]string) (all []attention.Arithmetic) {
	type named struct {
		Arithmetic string `json:"arithmetic"`
	}
	var told struct {
		Options struct {
			named
			Problems map[string]named `json:"problems"`
		} `json:"options"`
		Problems []struct {
			Prefix string `json:"prefix"`
		} `json:"problems"`
	}
	if json.Unmarshal([]byte(metadata["headwater"]), &told) != nil {
		return nil
	}
	for _, p := range told.Problems {
		name := cmp.Or(told.Options.Problems[p.Prefix].Arithmetic, told.Options.Arithmetic, attention.Chain.String())
		if a, err := attention.ParseArithmetic(name); err == nil && !slices.Contains(all, a) {
			all = append(all, a)
		}
	}
	return all
}
