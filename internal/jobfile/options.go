package jobfile

import (
	"bytes"
	"encoding/json"
	"errors"
	"math"
	"strconv"
	"unicode/utf8"

	"headwater.example/attention"
	"headwater.example/shard"
)

// maxOptionsLen bounds the bytes of options as JSON.
const maxOptionsLen = 16 << 20

// Options are the fields of the JSON object that the metadata key "headwater" holds, and of the object that overrides
// it. An absent field is nil; docs/job-file.md gives the defaults. Marshaled, they are that JSON.
type Options struct {
	Kind        *string      `json:"kind,omitempty"` // the name of a Kind; top level only
	Causal      *bool        `json:"causal,omitempty"`
	Offset      *int64       `json:"offset,omitempty"`       // position of query 0
	WindowLeft  *int64       `json:"window_left,omitempty"`  // positions before the own one, -1 unbounded
	WindowRight *int64       `json:"window_right,omitempty"` // positions after the own one, -1 unbounded
	Scale       *float32     `json:"scale,omitempty"`
	Softcap     *float32     `json:"softcap,omitempty"`
	Arithmetic  *string      `json:"arithmetic,omitempty"`  // a name of attention.ArithmeticNames, or that of attention.Auto
	AlibiSlopes []float32    `json:"alibi_slopes,omitzero"` // [n_heads], empty for none
	Sinks       []float32    `json:"sinks,omitzero"`        // [n_heads], empty for none
	KVLen       *int64       `json:"kv_len,omitempty"`
	NHeads      *int64       `json:"n_heads,omitempty"`    // kind layer
	NKVHeads    *int64       `json:"n_kv_heads,omitempty"` // kind layer
	HeadDim     *int64       `json:"head_dim,omitempty"`   // kind layer
	VDim        *int64       `json:"v_dim,omitempty"`      // kind layer
	Rope        *RopeOptions `json:"rope,omitempty"`       // kind layer

	// Problems holds, by prefix ("layers.3."), what differs for one problem; top level only.
	Problems map[string]*Options `json:"problems,omitempty"`
}

// RopeOptions are the fields of "rope".
type RopeOptions struct {
	Base        *float64  `json:"base,omitempty"`
	Dims        *int64    `json:"dims,omitempty"`
	Interleaved *bool     `json:"interleaved,omitempty"`
	Scale       *float64  `json:"scale,omitempty"`
	Factors     []float64 `json:"factors,omitzero"` // [dims/2], empty for none
	Mscale      *float64  `json:"mscale,omitempty"`
}

// parseOptions reads one JSON object strictly: an unknown field, a field given twice, a value of another type or out of
// bounds is an *Error that names the field. Empty data is an object without fields.
func parseOptions(data []byte) (*Options, error) {
	if len(bytes.TrimSpace(data)) == 0 {
		return &Options{}, nil
	}
	if len(data) > maxOptionsLen {
		return nil, optionErrorf("options are %d bytes long, at most %d are read", len(data), maxOptionsLen)
	}
	if !utf8.Valid(data) {
		return nil, optionErrorf("options are not valid UTF-8")
	}
	if !json.Valid(data) {
		return nil, optionErrorf("options are not valid JSON%s", syntaxPlace(data))
	}
	o, err := parseObject(data, "options", true)
	if err != nil {
		return nil, err
	}
	return o, nil
}

// syntaxPlace says where the JSON breaks.
func syntaxPlace(data []byte) string {
	var v json.RawMessage
	var syntax *json.SyntaxError
	if errors.As(json.Unmarshal(data, &v), &syntax) {
		return " at byte " + strconv.FormatInt(syntax.Offset, 10) + ": " + syntax.Error()
	}
	return ""
}

func parseObject(data []byte, what string, top bool) (*Options, *Error) {
	o := &Options{}
	err := eachMember(data, what, func(key string, value json.RawMessage) *Error {
		switch key {
		case "causal":
			return parseBool(value, key, &o.Causal)
		case "offset":
			return parseInt(value, key, -shard.MaxPositions, shard.MaxPositions, &o.Offset)
		case "window_left":
			return parseInt(value, key, -1, math.MaxInt64, &o.WindowLeft)
		case "window_right":
			return parseInt(value, key, -1, math.MaxInt64, &o.WindowRight)
		case "scale":
			return parseFloat32(value, key, &o.Scale)
		case "softcap":
			if err := parseFloat32(value, key, &o.Softcap); err != nil {
				return err
			}
			if *o.Softcap < 0 {
				return optionErrorf("option %q is %v, must be at least 0 (0 is off)", key, *o.Softcap)
			}
			return nil
		case "arithmetic":
			return parseArithmetic(value, key, o)
		case "alibi_slopes":
			return parseFloats(value, key, 32, shard.MaxHeads, func(v []float64) { o.AlibiSlopes = narrow(v) })
		case "sinks":
			return parseFloats(value, key, 32, shard.MaxHeads, func(v []float64) { o.Sinks = narrow(v) })
		case "kv_len":
			return parseInt(value, key, 0, math.MaxInt64, &o.KVLen)
		case "n_heads":
			return parseInt(value, key, 1, shard.MaxHeads, &o.NHeads)
		case "n_kv_heads":
			return parseInt(value, key, 1, shard.MaxHeads, &o.NKVHeads)
		case "head_dim":
			return parseInt(value, key, 1, shard.MaxDim, &o.HeadDim)
		case "v_dim":
			return parseInt(value, key, 1, shard.MaxDim, &o.VDim)
		case "rope":
			var err *Error
			o.Rope, err = parseRope(value)
			return err
		}
		if !top && (key == "kind" || key == "problems") {
			return optionErrorf("option %q stands at the top level only", key)
		}
		switch key {
		case "kind":
			if err := parseString(value, key, &o.Kind); err != nil {
				return err
			}
			if _, ok := parseKind(*o.Kind); !ok {
				return optionErrorf("option %q is %s, must be \"attention\", \"layer\", \"attention_grad\" or \"layer_grad\"", key, quote(*o.Kind))
			}
			return nil
		case "problems":
			return parseProblems(value, o)
		}
		return optionErrorf("option %s is unknown", quote(key))
	})
	if err != nil {
		return nil, err
	}
	return o, nil
}

func parseArithmetic(value json.RawMessage, key string, o *Options) *Error {
	if err := parseString(value, key, &o.Arithmetic); err != nil {
		return err
	}
	if _, err := attention.ParseArithmetic(*o.Arithmetic); err != nil && *o.Arithmetic != attention.Auto.String() {
		return optionErrorf("option %q is %s, must be \"chain\", \"tiles\", \"tiles-bf16\" or \"auto\"", key, quote(*o.Arithmetic))
	}
	return nil
}

func parseProblems(value json.RawMessage, o *Options) *Error {
	o.Problems = map[string]*Options{}
	return eachMember(value, `option "problems"`, func(prefix string, value json.RawMessage) *Error {
		if _, ok := parsePrefix(prefix); !ok {
			return optionErrorf("option \"problems\" names the prefix %s, must be \"\", \"layers.N.\", \"seqs.N.\" or \"seqs.N.layers.M.\"", quote(prefix))
		}
		one, err := parseObject(value, "options", false)
		if err != nil {
			err.Rule = "problem " + strconv.Quote(prefix) + ": " + err.Rule
			return err
		}
		o.Problems[prefix] = one
		return nil
	})
}

func parseRope(value json.RawMessage) (*RopeOptions, *Error) {
	r := &RopeOptions{}
	err := eachMember(value, `option "rope"`, func(key string, value json.RawMessage) *Error {
		name := "rope." + key
		switch key {
		case "base":
			return parsePositive(value, name, &r.Base)
		case "dims":
			return parseInt(value, name, 2, shard.MaxDim, &r.Dims)
		case "interleaved":
			return parseBool(value, name, &r.Interleaved)
		case "scale":
			return parsePositive(value, name, &r.Scale)
		case "factors":
			return parseFloats(value, name, 64, shard.MaxDim/2, func(v []float64) { r.Factors = v })
		case "mscale":
			return parsePositive(value, name, &r.Mscale)
		}
		return optionErrorf("option %s is unknown", quote(name))
	})
	if err != nil {
		return nil, err
	}
	return r, nil
}

// eachMember calls f for the members of a JSON object in their order. data is valid JSON.
func eachMember(data []byte, what string, f func(key string, value json.RawMessage) *Error) *Error {
	data = bytes.TrimSpace(data)
	if data[0] != '{' {
		return optionErrorf("%s must be a JSON object, not %s", what, excerpt(data))
	}
	dec := json.NewDecoder(bytes.NewReader(data))
	if _, err := dec.Token(); err != nil {
		return optionErrorf("%s: %v", what, err)
	}
	seen := map[string]bool{}
	for dec.More() {
		token, err := dec.Token()
		if err != nil {
			return optionErrorf("%s: %v", what, err)
		}
		key, _ := token.(string)
		if seen[key] {
			return optionErrorf("%s: key %s is given twice", what, quote(key))
		}
		seen[key] = true
		var value json.RawMessage
		if err := dec.Decode(&value); err != nil {
			return optionErrorf("%s: key %q: %v", what, key, err)
		}
		if err := f(key, bytes.TrimSpace(value)); err != nil {
			return err
		}
	}
	return nil
}

// excerpt shows a JSON value in an error: quoted, so that it stays on one line, and short.
func excerpt(value []byte) string {
	const most = 40
	if len(value) > most {
		return strconv.Quote(string(value[:most])) + "…"
	}
	return strconv.Quote(string(value))
}

func parseBool(value []byte, key string, to **bool) *Error {
	switch string(value) {
	case "true", "false":
		v := value[0] == 't'
		*to = &v
		return nil
	}
	return optionErrorf("option %q is %s, must be true or false", key, excerpt(value))
}

func parseString(value []byte, key string, to **string) *Error {
	var v string
	if value[0] != '"' || json.Unmarshal(value, &v) != nil {
		return optionErrorf("option %q is %s, must be a string", key, excerpt(value))
	}
	*to = &v
	return nil
}

func isNumber(value []byte) bool {
	return value[0] == '-' || value[0] >= '0' && value[0] <= '9'
}

func parseInt(value []byte, key string, low, high int64, to **int64) *Error {
	v, err := strconv.ParseInt(string(value), 10, 64)
	if isNumber(value) && err == nil && v >= low && v <= high {
		*to = &v
		return nil
	}
	if high == math.MaxInt64 {
		return optionErrorf("option %q is %s, must be a whole number of at least %d", key, excerpt(value), low)
	}
	return optionErrorf("option %q is %s, must be a whole number from %d to %d", key, excerpt(value), low, high)
}

// number reads a JSON number as the nearest value of a type of so many bits.
func number(value []byte, key string, bits int) (float64, *Error) {
	if !isNumber(value) {
		return 0, optionErrorf("option %q is %s, must be a number", key, excerpt(value))
	}
	v, err := strconv.ParseFloat(string(value), bits)
	if err != nil {
		return 0, optionErrorf("option %q is %s, which is not within the range of f%d", key, excerpt(value), bits)
	}
	if v == 0 {
		v = 0 // −0 means the same
	}
	return v, nil
}

func parseFloat32(value []byte, key string, to **float32) *Error {
	v, err := number(value, key, 32)
	if err != nil {
		return err
	}
	f := float32(v)
	*to = &f
	return nil
}

func parsePositive(value []byte, key string, to **float64) *Error {
	v, err := number(value, key, 64)
	if err != nil {
		return err
	}
	if v <= 0 {
		return optionErrorf("option %q is %s, must be greater than 0", key, excerpt(value))
	}
	*to = &v
	return nil
}

func parseFloats(value []byte, key string, bits, most int, to func([]float64)) *Error {
	var raw []json.RawMessage
	if value[0] != '[' || json.Unmarshal(value, &raw) != nil {
		return optionErrorf("option %q is %s, must be an array of numbers", key, excerpt(value))
	}
	if len(raw) > most {
		return optionErrorf("option %q has %d elements, at most %d are possible", key, len(raw), most)
	}
	v := make([]float64, len(raw))
	for i, r := range raw {
		var err *Error
		if v[i], err = number(bytes.TrimSpace(r), key+"["+strconv.Itoa(i)+"]", bits); err != nil {
			return err
		}
	}
	to(v)
	return nil
}

func narrow(v []float64) []float32 {
	f := make([]float32, len(v))
	for i := range v {
		f[i] = float32(v[i])
	}
	return f
}

// over returns o with the fields that top gives, field by field; neither is changed.
func (o *Options) over(top *Options) *Options {
	if top == nil {
		return o
	}
	m := *o
	m.Kind = given(top.Kind, m.Kind)
	m.Causal = given(top.Causal, m.Causal)
	m.Offset = given(top.Offset, m.Offset)
	m.WindowLeft = given(top.WindowLeft, m.WindowLeft)
	m.WindowRight = given(top.WindowRight, m.WindowRight)
	m.Scale = given(top.Scale, m.Scale)
	m.Softcap = given(top.Softcap, m.Softcap)
	m.Arithmetic = given(top.Arithmetic, m.Arithmetic)
	m.KVLen = given(top.KVLen, m.KVLen)
	m.NHeads = given(top.NHeads, m.NHeads)
	m.NKVHeads = given(top.NKVHeads, m.NKVHeads)
	m.HeadDim = given(top.HeadDim, m.HeadDim)
	m.VDim = given(top.VDim, m.VDim)
	m.Rope = given(top.Rope, m.Rope)
	if top.AlibiSlopes != nil {
		m.AlibiSlopes = top.AlibiSlopes
	}
	if top.Sinks != nil {
		m.Sinks = top.Sinks
	}
	return &m
}

func given[T any](first, second *T) *T {
	if first != nil {
		return first
	}
	return second
}
