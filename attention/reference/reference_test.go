package reference

import (
	"encoding/binary"
	"math"
	"slices"
	"testing"

	"headwater.example/tensor"
)

const fixtures = "../../test/data/smollm2/"

// read returns a tensor of the fixtures, widened.
func read(t *testing.T, f *tensor.File, name string) []float64 {
	t.Helper()
	info, ok := f.Lookup(name)
	if !ok {
		t.Fatalf("no tensor %s in %s", name, f.Path())
	}
	b := make([]byte, info.Bytes())
	if err := f.ReadAt(b, name, 0); err != nil {
		t.Fatal(err)
	}
	x := make([]float64, info.Elements())
	for i := range x {
		if info.DType == tensor.F64 {
			x[i] = math.Float64frombits(binary.LittleEndian.Uint64(b[8*i:]))
		} else {
			x[i] = float64(math.Float32frombits(binary.LittleEndian.Uint32(b[4*i:])))
		}
	}
	return x
}

func open(t *testing.T, name string) *tensor.File {
	t.Helper()
	f, err := tensor.Open(fixtures + name)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f
}

func apart(a, b []float64) float64 {
	if len(a) != len(b) {
		return math.Inf(1)
	}
	most := 0.0
	for i := range a {
		if e := math.Abs(a[i] - b[i]); !(e <= most) {
			most = e
		}
	}
	return most
}

// smol is the geometry of SmolLM2-135M.
var smol = Problem{
	Tokens: 242, KVTokens: 242, KVLen: 242, Heads: 9, KVHeads: 3, HeadDim: 64, VDim: 64,
	Causal: true, WindowLeft: -1, WindowRight: -1, Scale: 0.125,
}

// TestFixtures compares with the truth of a real model, made by a program that shares nothing with this one.
func TestFixtures(t *testing.T) {
	job, truth := open(t, "attention.safetensors"), open(t, "attention.truth.safetensors")
	for _, layer := range []string{"layers.3.", "layers.17."} {
		p := smol
		p.Q, p.K, p.V = read(t, job, layer+"q"), read(t, job, layer+"k"), read(t, job, layer+"v")
		res := Attend(p)
		if e := apart(res.Context, read(t, truth, layer+"context")); !(e < 1e-12) {
			t.Errorf("%s: context differs by %g", layer, e)
		}
		if e := apart(res.LSE, read(t, truth, layer+"lse")); !(e < 1e-12) {
			t.Errorf("%s: LSE differs by %g", layer, e)
		}
		if e := apart(res.Unit, read(t, truth, layer+"unit")); !(e < 1e-18) {
			t.Errorf("%s: unit differs by %g", layer, e)
		}
	}
}

func TestLayerFixture(t *testing.T) {
	job, truth := open(t, "layer.safetensors"), open(t, "layer.truth.safetensors")
	const layer = "layers.17."
	res, err := AttendLayer(Layer{
		Attention: smol, DModel: 576, X: read(t, job, layer+"x"),
		WQ: read(t, job, layer+"w_q"), WK: read(t, job, layer+"w_k"), WV: read(t, job, layer+"w_v"), WO: read(t, job, layer+"w_o"),
		Rotation: &Rotation{Base: 100000, Dims: 64, Interleaved: true},
	})
	if err != nil {
		t.Fatal(err)
	}
	if e := apart(res.Context, read(t, truth, layer+"context")); !(e < 1e-10) {
		t.Errorf("context differs by %g", e)
	}
	if e := apart(res.Y, read(t, truth, layer+"y")); !(e < 1e-10) {
		t.Errorf("output differs by %g", e)
	}
	if _, err := AttendLayer(Layer{Attention: smol, DModel: 576}); err == nil {
		t.Error("a layer without weights passes")
	}
}

// small has two tokens of two heads on one K/V head, three positions, keys such that every score is simple.
func small() Problem {
	return Problem{
		Tokens: 2, KVTokens: 3, KVLen: 3, Heads: 2, KVHeads: 1, HeadDim: 1, VDim: 1, Offset: 1,
		WindowLeft: -1, WindowRight: -1, Scale: 1,
		Q: []float64{0, 1, 2, -1}, // token 0: heads 0 and 1, then token 1
		K: []float64{0, math.Ln2, 2 * math.Ln2},
		V: []float64{7, 14, 28},
	}
}

func TestByHand(t *testing.T) {
	for name, c := range map[string]struct {
		change      func(p *Problem)
		head, token int
		weights     []float64
		context     float64
		lse         float64
	}{
		"uniform":      {func(*Problem) {}, 0, 0, []float64{1. / 3, 1. / 3, 1. / 3}, 49. / 3, math.Log(3)},
		"one key":      {func(*Problem) {}, 1, 0, []float64{1. / 7, 2. / 7, 4. / 7}, 1 + 4 + 16, math.Log(7)},
		"group's head": {func(*Problem) {}, 1, 1, []float64{4. / 7, 2. / 7, 1. / 7}, 12, math.Log(1.75)},
		"causal":       {func(p *Problem) { p.Causal = true }, 1, 0, []float64{1. / 3, 2. / 3, 0}, 35. / 3, math.Log(3)},
		"kv_len":       {func(p *Problem) { p.KVLen = 1 }, 1, 0, []float64{1, 0, 0}, 7, 0},
		"own position": {func(p *Problem) { p.WindowLeft, p.WindowRight = 0, 0 }, 1, 0, []float64{0, 1, 0}, 14, math.Ln2},
		"right window": {func(p *Problem) { p.WindowRight = 0 }, 1, 0, []float64{1. / 3, 2. / 3, 0}, 35. / 3, math.Log(3)},
		"sink":         {func(p *Problem) { p.Sinks = []float64{0, math.Log(7)} }, 1, 0, []float64{1. / 14, 2. / 14, 4. / 14}, 10.5, math.Log(14)},
		"mask":         {func(p *Problem) { p.MaskHeads, p.Mask = 1, []byte{1, 0, 0, 1, 1, 1} }, 1, 0, []float64{1, 0, 0}, 7, 0},
		"nothing":      {func(p *Problem) { p.MaskHeads, p.Mask = 1, make([]byte, 6) }, 1, 0, []float64{0, 0, 0}, 0, math.Inf(-1)},
		"bias": {func(p *Problem) {
			p.BiasHeads, p.Bias = 2, []float64{0, 0, 0, 0, 0, 0, 0, math.Inf(-1), math.Log(0.25), 0, 0, 0}
		}, 1, 0, []float64{0.5, 0, 0.5}, 17.5, math.Ln2},
		"alibi":   {func(p *Problem) { p.AlibiSlopes = []float64{0, math.Ln2} }, 1, 0, []float64{.5 / 4.5, 2 / 4.5, 2 / 4.5}, (3.5 + 28 + 56) / 4.5, math.Log(4.5)},
		"softcap": {func(p *Problem) { p.Softcap, p.KVLen, p.Scale = math.Ln2, 2, 1e9 }, 1, 0, []float64{1. / 3, 2. / 3, 0}, 35. / 3, math.Log(3)},
	} {
		p := small()
		c.change(&p)
		res, row := Attend(p), c.token*2+c.head
		if w, _ := Weights(p, c.head, c.token); !(apart(w, c.weights) < 1e-15) {
			t.Errorf("%s: weights %v, want %v", name, w, c.weights)
		}
		if !(math.Abs(res.Context[row]-c.context) < 1e-14) || res.LSE[row] != c.lse && !(math.Abs(res.LSE[row]-c.lse) < 1e-15) {
			t.Errorf("%s: context %g and LSE %g, want %g and %g", name, res.Context[row], res.LSE[row], c.context, c.lse)
		}
	}
}

func TestUnits(t *testing.T) {
	res := Attend(small())
	if got, want := res.Unit[1], 0x1p-24*(1+2*math.Ln2)*28; math.Abs(got-want) > 1e-20 {
		t.Errorf("unit %g, want %g", got, want)
	}
	context := make([]float32, 4)
	for i, x := range res.Context {
		context[i] = float32(x)
	}
	context[2] += float32(100 * res.Unit[2])
	if most, token, head := res.Units(context); token != 1 || head != 0 || most < 99 || most > 101 {
		t.Errorf("%g units at token %d, head %d", most, token, head)
	}
	context[2] = float32(math.NaN())
	if most, token, head := res.Units(context); token != 1 || head != 0 || !math.IsInf(most, 1) {
		t.Errorf("NaN: %g units at token %d, head %d", most, token, head)
	}
	if most, _, _ := res.Units(context[1:]); !math.IsInf(most, 1) {
		t.Errorf("a short context is off by %g units", most)
	}
	p := small()
	p.KVLen = 0
	if most, _, _ := Attend(p).Units(slices.Repeat([]float32{1e-30}, 4)); !math.IsInf(most, 1) {
		t.Errorf("what should be 0 is off by %g units", most)
	}
}

func TestValidate(t *testing.T) {
	for name, change := range map[string]func(p *Problem){
		"q": func(p *Problem) { p.Q = nil }, "k": func(p *Problem) { p.K = nil }, "v": func(p *Problem) { p.V = nil },
		"heads": func(p *Problem) { p.KVHeads = 3 }, "kv_len": func(p *Problem) { p.KVLen = 4 }, "mask": func(p *Problem) { p.MaskHeads = 1 },
		"bias": func(p *Problem) { p.Bias = []float64{1} }, "slopes": func(p *Problem) { p.AlibiSlopes = []float64{1} },
		"sinks":      func(p *Problem) { p.Sinks = []float64{1} },
		"mask heads": func(p *Problem) { p.Heads, p.Q, p.MaskHeads, p.Mask = 4, make([]float64, 8), 2, make([]byte, 12) },
	} {
		p := small()
		change(&p)
		if p.validate() == nil {
			t.Errorf("%s: passes", name)
		}
	}
	p := small()
	if err := p.validate(); err != nil {
		t.Error(err)
	}
}

// TestARowWithoutAFiniteScoreHasNoAnswer: not that of a row that sees nothing.
func TestARowWithoutAFiniteScoreHasNoAnswer(t *testing.T) {
	for _, bias := range []float64{math.MaxFloat64, -math.MaxFloat64} {
		p := small()
		p.AlibiSlopes = []float64{-bias, -bias}
		p.BiasHeads, p.Bias = 1, slices.Repeat([]float64{bias}, 6)
		p.Offset = 10
		for _, p.Sinks = range [][]float64{nil, {0, 0}} {
			res := Attend(p)
			for row, lse := range res.LSE {
				if !math.IsNaN(lse) || !math.IsNaN(res.Context[row]) {
					t.Errorf("bias %g, row %d: context %g and LSE %g", bias, row, res.Context[row], lse)
				}
			}
			if units, _, _ := res.Units(make([]float32, len(res.Context))); !math.IsInf(units, 1) {
				t.Errorf("bias %g: zeros are %g units from it", bias, units)
			}
		}
	}
}

// TestTheUnitCountsAllThatAScoreIsTheSumOf by hand: 2⁻²⁴·(1 + S)·max|v|.
func TestTheUnitCountsAllThatAScoreIsTheSumOf(t *testing.T) {
	p := small() // head 0 of token 0 has q = 0, and stands at position 1
	p.AlibiSlopes = []float64{3, 3}
	p.BiasHeads, p.Bias = 1, []float64{-5, 7, 0, 0, 0, -1e30}
	res := Attend(p)
	if want := 0x1p-24 * (1 + 8) * 28; res.Unit[0] != want { // position 0: 3·1 + 5
		t.Errorf("unit %g, want %g", res.Unit[0], want)
	}
	// Token 1 stands at position 2 with q = 2: position 0 is farthest, 3·2 + 0; the bias of position 2 takes all weight away.
	if want := 0x1p-24 * (1 + 6) * 28; !(math.Abs(res.Unit[2]-want) < 1e-12) {
		t.Errorf("unit %g, want %g", res.Unit[2], want)
	}
}
