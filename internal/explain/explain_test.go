package explain

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"math"
	"math/rand/v2"
	"os"
	"slices"
	"strings"
	"testing"

	"headwater.example/attention/reference"
	"headwater.example/internal/jobfile"
	"headwater.example/shard"
	"headwater.example/tensor"
)

// f32 is a tensor of random values around 0, and these values.
func f32(rng *rand.Rand, name string, shape ...int) (tensor.Data, []float64) {
	info := tensor.Info{Name: name, DType: tensor.F32, Shape: shape}
	d := tensor.Data{Info: info, Bytes: make([]byte, info.Bytes())}
	values := make([]float64, info.Elements())
	for i := range values {
		v := float32(rng.NormFloat64())
		values[i] = float64(v)
		binary.LittleEndian.PutUint32(d.Bytes[4*i:], math.Float32bits(v))
	}
	return d, values
}

func open(t *testing.T, list []tensor.Data, meta map[string]string) (*tensor.File, *jobfile.Job) {
	t.Helper()
	var buf bytes.Buffer
	if err := tensor.WriteSafetensors(&buf, list, meta); err != nil {
		t.Fatal(err)
	}
	f, err := tensor.OpenReaderAt("job.safetensors", bytes.NewReader(buf.Bytes()), int64(buf.Len()))
	if err != nil {
		t.Fatal(err)
	}
	j, err := jobfile.Parse(f, nil)
	if err != nil {
		t.Fatal(err)
	}
	return f, j
}

// checkPanels fails unless the panels' weights, times the values, give the contexts of the whole problem.
func checkPanels(t *testing.T, f *tensor.File, j *jobfile.Job, v []float64, want reference.Result) {
	t.Helper()
	p := &j.Problems[0]
	groups, positions, err := Panels(context.Background(), f, p, Choice{})
	if err != nil {
		t.Fatal(err)
	}
	if len(groups) != p.Shape.KVHeads || len(positions) != p.Tokens || positions[0] != p.Offset {
		t.Fatalf("%d groups, positions %v", len(groups), positions)
	}
	next := 0
	for g, group := range groups {
		if group.Group != g {
			t.Errorf("group %d stands at %d", group.Group, g)
		}
		for _, panel := range group.Panels {
			if panel.Head != next || panel.Head/p.Shape.GroupSize() != g || len(panel.Weights) != p.Tokens {
				t.Fatalf("head %d of group %d with %d rows", panel.Head, g, len(panel.Weights))
			}
			next++
			for token, weights := range panel.Weights {
				for i := range p.Shape.VDim {
					got := 0.0
					for at, w := range weights {
						got += w * v[(at*p.Shape.KVHeads+g)*p.Shape.VDim+i]
					}
					if truth := want.Context[(token*p.Shape.Heads+panel.Head)*p.Shape.VDim+i]; math.Abs(got-truth) > 1e-12 {
						t.Fatalf("head %d token %d element %d: %v, want %v", panel.Head, token, i, got, truth)
					}
				}
			}
		}
	}
	if next != p.Shape.Heads {
		t.Errorf("%d heads", next)
	}
}

// The weights of single rows are those of the whole problem, under all options.
func TestAttention(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	const tokens, kvTokens, heads, kvHeads, dim, vDim, kvLen = 5, 70, 6, 2, 8, 3, 68
	q, qs := f32(rng, "q", tokens, heads, dim)
	k, ks := f32(rng, "k", kvTokens, kvHeads, dim)
	v, vs := f32(rng, "v", kvTokens, kvHeads, vDim)
	bias, biases := f32(rng, "bias", heads, tokens, kvTokens)
	mask := tensor.Data{Info: tensor.Info{Name: "mask", DType: tensor.Bool, Shape: []int{1, tokens, kvTokens}}, Bytes: make([]byte, tokens*kvTokens)}
	for i := range mask.Bytes {
		mask.Bytes[i] = byte(rng.IntN(4)/3 ^ 1)
	}
	f, j := open(t, []tensor.Data{q, k, v, bias, mask}, map[string]string{jobfile.MetadataKey: `{"causal":true,"kv_len":68,"offset":60,"window_left":40,
		"scale":0.75,"softcap":3,"alibi_slopes":[0.5,0.25,0.125,0.0625,0.5,0.25],"sinks":[0,1,2,-1,0.5,0]}`})
	want := reference.Attend(reference.Problem{
		Tokens: tokens, KVTokens: kvTokens, Heads: heads, KVHeads: kvHeads, HeadDim: dim, VDim: vDim, Q: qs, K: ks, V: vs,
		KVLen: kvLen, Offset: 60, Causal: true, WindowLeft: 40, WindowRight: -1, Scale: 0.75, Softcap: 3,
		AlibiSlopes: []float64{0.5, 0.25, 0.125, 0.0625, 0.5, 0.25}, Sinks: []float64{0, 1, 2, -1, 0.5, 0},
		Mask: mask.Bytes, MaskHeads: 1, Bias: biases, BiasHeads: heads,
	})
	checkPanels(t, f, j, vs, want)

	e, err := Explain(context.Background(), f, j, &j.Problems[0], Choice{Heads: []int{4, 1, 4}, Positions: []int64{63, 61}}, 3)
	if err != nil {
		t.Fatal(err)
	}
	if len(e.Rows) != 4 {
		t.Fatalf("%d rows", len(e.Rows))
	}
	for i, r := range e.Rows {
		head, position := []int{1, 1, 4, 4}[i], []int64{61, 63, 61, 63}[i]
		if r.Head != head || r.Group != head/3 || r.Position != position || r.Query != int(position)-60 || len(r.Matches) != 3 {
			t.Errorf("row %d: %+v", i, r)
		}
		sum := r.Rest + r.Sink
		for k, m := range r.Matches {
			if sum += m.Weight; k > 0 && m.Weight > r.Matches[k-1].Weight || int64(m.Position) > position || m.Weight <= 0 {
				t.Errorf("row %d match %d: %+v", i, k, m)
			}
		}
		if math.Abs(sum-1) > 1e-12 || r.Sink <= 0 {
			t.Errorf("row %d: weights sum to %v, sink %v", i, sum, r.Sink)
		}
	}
}

func TestInt8(t *testing.T) {
	rng := rand.New(rand.NewPCG(3, 4))
	const tokens, kvTokens, heads, kvHeads, dim = 2, 9, 4, 2, 5
	q, qs := f32(rng, "q", tokens, heads, dim)
	vScale, _ := f32(rng, "v_scale", kvTokens, kvHeads)
	kScale, scales := f32(rng, "k_scale", kvTokens, kvHeads)
	small := tensor.Info{DType: tensor.I8, Shape: []int{kvTokens, kvHeads, dim}}
	k, v := tensor.Data{Info: small, Bytes: make([]byte, small.Bytes())}, tensor.Data{Info: small, Bytes: make([]byte, small.Bytes())}
	k.Name, v.Name = "k", "v"
	ks, vs := make([]float64, len(k.Bytes)), make([]float64, len(k.Bytes))
	for i := range k.Bytes {
		k.Bytes[i] = byte(rng.IntN(7) - 3)
		ks[i] = float64(int8(k.Bytes[i])) * scales[i/dim]
		vs[i] = float64(i)
	}
	f, j := open(t, []tensor.Data{q, k, v, kScale, vScale}, nil)
	want := reference.Attend(reference.Problem{
		Tokens: tokens, KVTokens: kvTokens, KVLen: kvTokens, Heads: heads, KVHeads: kvHeads, HeadDim: dim, VDim: dim,
		Q: qs, K: ks, V: vs, Offset: kvTokens - tokens, WindowLeft: -1, WindowRight: -1, Scale: float64(float32(1 / math.Sqrt(dim))),
	})
	checkPanels(t, f, j, vs, want)
}

func TestLayer(t *testing.T) {
	for _, c := range []struct {
		rope string
		want *reference.Rotation
	}{
		{"", nil},
		{`,"rope":{"base":500}`, &reference.Rotation{Base: 500, Dims: 4}},
		{`,"rope":{"dims":2,"interleaved":true,"scale":0.5,"factors":[3],"mscale":1.25}`, &reference.Rotation{Base: 10000, Dims: 2, Interleaved: true, Scale: 0.5, Factors: []float64{3}, Mscale: 1.25}},
	} {
		rng := rand.New(rand.NewPCG(5, 6))
		const tokens, heads, kvHeads, dim, vDim, model = 7, 6, 2, 4, 3, 10
		l := reference.Layer{DModel: model, Rotation: c.want, Attention: reference.Problem{
			Tokens: tokens, KVLen: tokens, Heads: heads, KVHeads: kvHeads, HeadDim: dim, VDim: vDim, Causal: true, WindowLeft: -1, WindowRight: -1, Scale: 0.5,
		}}
		list := make([]tensor.Data, 6)
		list[0], l.X = f32(rng, "x", tokens, model)
		list[1], l.WQ = f32(rng, "w_q", heads*dim, model)
		list[2], l.WK = f32(rng, "w_k", kvHeads*dim, model)
		list[3], l.WV = f32(rng, "w_v", kvHeads*vDim, model)
		list[4], l.BQ = f32(rng, "b_q", heads*dim)
		list[5], l.BK = f32(rng, "b_k", kvHeads*dim)
		want, err := reference.AttendLayer(l)
		if err != nil {
			t.Fatal(err)
		}
		v := make([]float64, tokens*kvHeads*vDim)
		for i := range v {
			for m := range model {
				v[i] += l.X[i/(kvHeads*vDim)*model+m] * l.WV[i%(kvHeads*vDim)*model+m]
			}
		}
		f, j := open(t, list, map[string]string{jobfile.MetadataKey: `{"kind":"layer","causal":true,"n_heads":6` + c.rope + `}`})
		checkPanels(t, f, j, v, want.Result)
	}
}

// threeRows has one head whose first query sees nothing and whose last one prefers position 1.
func threeRows() []tensor.Data {
	of := func(name string, values []float32, shape ...int) tensor.Data {
		d := tensor.Data{Info: tensor.Info{Name: name, DType: tensor.F32, Shape: shape}}
		for _, v := range values {
			d.Bytes = binary.LittleEndian.AppendUint32(d.Bytes, math.Float32bits(v))
		}
		return d
	}
	return []tensor.Data{
		of("q", []float32{1, 1, 1}, 3, 1, 1), of("k", []float32{0, 5, 0}, 3, 1, 1), of("v", []float32{1, 2, 3}, 3, 1, 1),
		{Info: tensor.Info{Name: "mask", DType: tensor.U8, Shape: []int{1, 3, 3}}, Bytes: []byte{0, 0, 0, 1, 1, 0, 1, 1, 1}},
	}
}

func TestTable(t *testing.T) {
	f, j := open(t, threeRows(), map[string]string{"tokens": `["a","b\n","c"]`})
	p := &j.Problems[0]
	e, err := Explain(context.Background(), f, j, p, Choice{Positions: []int64{0, 1, 2}}, 2)
	if err != nil {
		t.Fatal(err)
	}
	var table bytes.Buffer
	if err := e.WriteTable(&table); err != nil {
		t.Fatal(err)
	}
	want := `group  head  query    looks at                  rest
0      0     0 "a"    nothing                   0.0%
0      0     1 "b\n"  99.3% 1 "b\n", 0.7% 0 "a"  0.0%
0      0     2 "c"    98.7% 1 "b\n", 0.7% 0 "a"  0.7%
`
	// Columns are compared without their padding.
	if got := strings.Join(strings.Fields(table.String()), " "); got != strings.Join(strings.Fields(want), " ") {
		t.Errorf("got\n%s\nwant\n%s", table.String(), want)
	}
	text, err := json.Marshal(e.Rows[0])
	if err != nil || string(text) != `{"head":0,"group":0,"query":0,"position":0,"token":"a","matches":[],"rest":0,"sink":0}` {
		t.Errorf("%s, %v", text, err)
	}
}

// TestTableFits80Columns: matches are put into lines, each row's below each other.
func TestTableFits80Columns(t *testing.T) {
	e := &Explanation{Rows: []Row{{Head: 31, Group: 7, Position: 131071, Token: " hurried", Rest: 0.1, Sink: 0.2}}}
	for i := range 9 {
		e.Rows[0].Matches = append(e.Rows[0].Matches, Match{Position: 131000 + i, Token: " wondered"[:1+i], Weight: 0.1})
	}
	var table strings.Builder
	if err := e.WriteTable(&table); err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(table.String()) {
		if n := len(strings.TrimSuffix(line, "\n")); n > 80 || strings.HasSuffix(line, " \n") {
			t.Errorf("a line of %d columns: %q", n, line)
		}
	}
	if n := strings.Count(table.String(), "10.0% 1310"); n != 9 {
		t.Errorf("%d of 9 matches are in\n%s", n, &table)
	}
}

// Without strings the ids are shown, and the last query alone is the default.
func TestTokenIDs(t *testing.T) {
	ids := tensor.Data{Info: tensor.Info{Name: "tokens", DType: tensor.I16, Shape: []int{3}}, Bytes: []byte{7, 0, 0xff, 0xff, 0, 1}}
	f, j := open(t, append(threeRows(), ids), nil)
	e, err := Explain(context.Background(), f, j, &j.Problems[0], Choice{}, 1)
	if err != nil {
		t.Fatal(err)
	}
	if len(e.Rows) != 1 || e.Rows[0].Position != 2 || e.Rows[0].Token != "256" || e.Rows[0].Matches[0].Token != "-1" {
		t.Errorf("%+v", e.Rows)
	}
}

func TestRefusals(t *testing.T) {
	f, j := open(t, threeRows(), nil)
	p := &j.Problems[0]
	ctx := context.Background()
	for _, c := range []struct {
		choice Choice
		top    int
		want   string
	}{
		{Choice{Heads: []int{1}}, 1, "head 1 is not in 0 to 0"},
		{Choice{Heads: []int{-1}}, 1, "head -1 is not in 0 to 0"},
		{Choice{Positions: []int64{3}}, 1, "position 3 has no query: they stand at 0 to 2"},
		{Choice{Positions: []int64{math.MinInt64}}, 1, "position -9223372036854775808 has no query: they stand at 0 to 2"},
		{Choice{}, 0, "0 matches are asked for, must be at least 1"},
	} {
		var typed *ChoiceError
		if _, err := Explain(ctx, f, j, p, c.choice, c.top); !errors.As(err, &typed) || err.Error() != c.want {
			t.Errorf("got %v, want %s", err, c.want)
		}
	}
	large := *p
	large.Tokens, large.KVLen = 1<<20, 1<<20
	var typed *ChoiceError
	if _, _, err := Panels(ctx, f, &large, Choice{}); !errors.As(err, &typed) {
		t.Errorf("got %v", err)
	}
	cancelled, cancel := context.WithCancel(ctx)
	cancel()
	if _, err := Explain(cancelled, f, j, p, Choice{}, 1); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
}

// On the real model, every head of the last query has its matches, with their tokens.
func TestFixture(t *testing.T) {
	const path = "../../test/data/smollm2/attention.safetensors"
	if _, err := os.Stat(path); err != nil {
		t.Skip("the fixture is not there")
	}
	f, err := tensor.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	j, err := jobfile.Parse(f, nil)
	if err != nil {
		t.Fatal(err)
	}
	for i := range j.Problems {
		e, err := Explain(context.Background(), f, j, &j.Problems[i], Choice{}, 5)
		if err != nil {
			t.Fatal(err)
		}
		if len(e.Rows) != j.Problems[i].Shape.Heads || slices.ContainsFunc(e.Rows, func(r Row) bool { return r.Token == "" || len(r.Matches) != 5 }) {
			t.Errorf("%+v", e)
		}
	}
}

func TestCompare(t *testing.T) {
	shape := shard.LayerShape{Heads: 9, KVHeads: 3, HeadDim: 64, VDim: 64}
	g, err := shard.NewGeometry(slices.Repeat([]shard.LayerShape{shape}, 30))
	if err != nil {
		t.Fatal(err)
	}
	c, err := Compare(g, 0, 8192, tensor.F16)
	if err != nil {
		t.Fatal(err)
	}
	if len(c.Layers) != 1 || c.Layers[0].Count != 30 || c.Layers[0].DModel != 576 {
		t.Fatalf("%+v", c.Layers)
	}
	// SmolLM2-135M: w_q and w_o 576·576 each, w_k and w_v 192·576 each.
	want := Cost{Name: "GQA", This: true, Heads: 9, KVHeads: 3, Parameters: 2*576*576 + 2*192*576, BytesPerToken: 3 * 128 * 2, BytesAt: 3 * 128 * 2 * 8192, Share: 1.0 / 3}
	if got := c.Layers[0].Costs[1]; got != want {
		t.Errorf("got  %+v\nwant %+v", got, want)
	}
	if c.Total[1].BytesAt != 30*want.BytesAt || c.Total[0].BytesAt != 3*c.Total[1].BytesAt || c.Total[2].KVHeads != 30 || c.Total[1].Share != 1.0/3 {
		t.Errorf("%+v", c.Total)
	}
}

func TestCompareShapesAndBounds(t *testing.T) {
	g, err := shard.NewGeometry([]shard.LayerShape{{Heads: 4, KVHeads: 4, HeadDim: 8, VDim: 4}, {Heads: 4, KVHeads: 1, HeadDim: 8, VDim: 8}, {Heads: 4, KVHeads: 4, HeadDim: 8, VDim: 4}})
	if err != nil {
		t.Fatal(err)
	}
	c, err := Compare(g, 16, 1, tensor.I8)
	if err != nil {
		t.Fatal(err)
	}
	if len(c.Layers) != 2 || c.Layers[0].Count != 2 || c.Layers[0].Costs[1].Name != "MHA" || c.Layers[1].Costs[1].Name != "MQA" || c.Total[1].Name != "GQA" {
		t.Errorf("%+v", c)
	}
	if got, want := c.Total[1].BytesPerToken, int64(2*4*(12+8)+16+8); got != want {
		t.Errorf("%d bytes per token, want %d", got, want)
	}
	for _, bad := range []struct {
		model   int
		context int64
		dt      tensor.DType
	}{{0, -1, tensor.F32}, {0, 1<<32 + 1, tensor.F32}, {-1, 1, tensor.F32}, {1<<20 + 1, 1, tensor.F32}, {0, 1, tensor.F64}} {
		var typed *ChoiceError
		if _, err := Compare(g, bad.model, bad.context, bad.dt); !errors.As(err, &typed) {
			t.Errorf("%+v: %v", bad, err)
		}
	}
	large, err := shard.NewGeometry(slices.Repeat([]shard.LayerShape{{Heads: 4096, KVHeads: 1, HeadDim: 512, VDim: 512}}, 65536))
	if err != nil {
		t.Fatal(err)
	}
	if c, err := Compare(large, 0, 1<<32, tensor.F32); err == nil {
		t.Errorf("%+v", c.Total)
	}
	if c, err := Compare(large, 0, 1<<20, tensor.F32); err != nil || c.Total[0].BytesAt <= 0 || c.Total[0].Parameters <= 0 {
		t.Errorf("%+v, %v", c, err)
	}
}
