package layerproto_test

import (
	"math"
	"slices"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"
	"pgregory.net/rapid"

	"headwater.example/attention"
	"headwater.example/internal/contextframe"
	"headwater.example/internal/layerproto"
	headwaterv1 "headwater.example/proto/headwater/v1"
	"headwater.example/shard"
	"headwater.example/tensor"
)

func drawLayer(t *rapid.T) shard.LayerSpec {
	groups := rapid.IntRange(1, 5).Draw(t, "groups")
	shape := shard.LayerShape{
		Heads: groups * rapid.IntRange(1, 4).Draw(t, "group size"), KVHeads: groups,
		HeadDim: rapid.IntRange(1, shard.MaxDim).Draw(t, "head_dim"), VDim: rapid.IntRange(1, shard.MaxDim).Draw(t, "v_dim"),
	}
	window := rapid.SampledFrom([]int64{-1, 0, 1, 4095, math.MaxInt64})
	o := attention.Options{
		Causal: rapid.Bool().Draw(t, "causal"), WindowLeft: window.Draw(t, "left"), WindowRight: window.Draw(t, "right"),
		Scale: rapid.SampledFrom([]float32{0.125, -2, math.MaxFloat32}).Draw(t, "scale"), Softcap: rapid.SampledFrom([]float32{0, 30}).Draw(t, "softcap"),
	}
	if rapid.Bool().Draw(t, "alibi") {
		o.AlibiSlopes = make([]float32, shape.Heads)
	}
	if rapid.Bool().Draw(t, "sinks") {
		o.Sinks = make([]float32, shape.Heads)
	}
	l, err := shard.NewLayerSpec(shape, rapid.SampledFrom(shard.StorageTypes()).Draw(t, "storage"), o)
	if err == nil && l.Storage() == tensor.BF16 {
		l, err = l.WithArithmetic(attention.Arithmetic(rapid.IntRange(0, 2).Draw(t, "arithmetic")))
	}
	if err == nil && !l.Windowed() {
		l, err = l.WithStripes(rapid.IntRange(0, 3).Draw(t, "stripes"))
	}
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func same(a, b shard.LayerSpec) bool {
	return a.Shape() == b.Shape() && a.Layout == b.Layout && a.Stripes == b.Stripes && a.Options.Causal == b.Options.Causal && a.Options.Scale == b.Options.Scale &&
		a.Options.Softcap == b.Options.Softcap && a.Options.WindowLeft == b.Options.WindowLeft && a.Options.WindowRight == b.Options.WindowRight &&
		slices.Equal(a.Options.AlibiSlopes, b.Options.AlibiSlopes) && slices.Equal(a.Options.Sinks, b.Options.Sinks)
}

func TestLayersComeBackFromMessages(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var layers []shard.LayerSpec
		for range rapid.IntRange(1, 4).Draw(t, "layers") {
			layers = append(layers, drawLayer(t))
		}
		bytes, err := proto.Marshal(&headwaterv1.SessionConfig{Layers: layerproto.SessionLayers(layers)})
		if err != nil {
			t.Fatal(err)
		}
		var config headwaterv1.SessionConfig
		if err := proto.Unmarshal(bytes, &config); err != nil {
			t.Fatal(err)
		}
		back, err := layerproto.ReadSessionLayers(config.GetLayers())
		if err != nil || !slices.EqualFunc(layers, back, same) {
			t.Fatalf("%+v became %+v: %v", layers, back, err)
		}
		// A problem of a job has the same fields.
		whole := layers[0] // which is in no stripes
		whole.Stripes = 0
		m := layerproto.SessionLayers([]shard.LayerSpec{whole})[0]
		if one, err := layerproto.ReadProblem(&headwaterv1.Problem{
			NHeads: m.NHeads, NKvHeads: m.NKvHeads, HeadDim: m.HeadDim, VDim: m.VDim, Storage: m.Storage, Arithmetic: m.Arithmetic,
			Causal: m.Causal, WindowLeft: m.WindowLeft, WindowRight: m.WindowRight, Scale: m.Scale, Softcap: m.Softcap, AlibiSlopes: m.AlibiSlopes, Sinks: m.Sinks,
		}); err != nil || !same(one, whole) {
			t.Fatalf("as a problem %+v became %+v: %v", whole, one, err)
		}
	})
}

func TestLayersThatCanNotBeAreRefusedByName(t *testing.T) {
	for want, change := range map[string]func(*headwaterv1.SessionLayer){
		"layer 1: n_heads: 0":                       func(m *headwaterv1.SessionLayer) { m.NHeads = 0 },
		"layer 1: n_heads: 4097":                    func(m *headwaterv1.SessionLayer) { m.NHeads = shard.MaxHeads + 1 },
		"layer 1: n_heads: 4294967295":              func(m *headwaterv1.SessionLayer) { m.NHeads = math.MaxUint32 },
		"layer 1: n_heads: 4 is not a multiple":     func(m *headwaterv1.SessionLayer) { m.NKvHeads = 3 },
		"layer 1: head_dim: 513":                    func(m *headwaterv1.SessionLayer) { m.HeadDim = shard.MaxDim + 1 },
		"layer 1: v_dim: 0":                         func(m *headwaterv1.SessionLayer) { m.VDim = 0 },
		"layer 1: storage type 0 is unknown":        func(m *headwaterv1.SessionLayer) { m.Storage = 0 },
		"layer 1: storage type 5 is unknown":        func(m *headwaterv1.SessionLayer) { m.Storage = 5 },
		"layer 1: storage type -1 is unknown":       func(m *headwaterv1.SessionLayer) { m.Storage = -1 },
		"layer 1: storage type 257 is unknown":      func(m *headwaterv1.SessionLayer) { m.Storage = 257 },
		"layer 1: scale is NaN":                     func(m *headwaterv1.SessionLayer) { m.Scale = float32(math.NaN()) },
		"layer 1: softcap is -1":                    func(m *headwaterv1.SessionLayer) { m.Softcap = -1 },
		"layer 1: sinks has 1 values for 4 heads":   func(m *headwaterv1.SessionLayer) { m.Sinks = []float32{1} },
		"layer 1: alibi_slopes[2] is +Inf, not a f": func(m *headwaterv1.SessionLayer) { m.AlibiSlopes = []float32{1, 1, float32(math.Inf(1)), 1} },
	} {
		layers := []*headwaterv1.SessionLayer{{}, {}}
		for i := range layers {
			layers[i] = &headwaterv1.SessionLayer{NHeads: 4, NKvHeads: 2, HeadDim: 8, VDim: 8, Storage: headwaterv1.StorageType_STORAGE_TYPE_F32, WindowLeft: -1, WindowRight: -1}
		}
		change(layers[1])
		if _, err := layerproto.ReadSessionLayers(layers); err == nil || !strings.HasPrefix(err.Error(), want) {
			t.Errorf("%v, want %q", err, want)
		}
	}
	if _, err := layerproto.ReadSessionLayers(nil); err == nil || !strings.HasPrefix(err.Error(), "0 layers are not in 1 to 65536") {
		t.Error(err)
	}
	if _, err := layerproto.ReadSessionLayers(make([]*headwaterv1.SessionLayer, shard.MaxLayers+1)); err == nil || !strings.HasPrefix(err.Error(), "65537 layers are not in 1 to 65536") {
		t.Error(err)
	}
}

// TestNumbersAreThoseOfTheProtocol pins what is computed here to what the protocol names.
func TestNumbersAreThoseOfTheProtocol(t *testing.T) {
	for dtype, want := range map[tensor.DType]headwaterv1.StorageType{
		tensor.F32: headwaterv1.StorageType_STORAGE_TYPE_F32, tensor.F16: headwaterv1.StorageType_STORAGE_TYPE_F16,
		tensor.BF16: headwaterv1.StorageType_STORAGE_TYPE_BF16, tensor.I8: headwaterv1.StorageType_STORAGE_TYPE_I8,
		tensor.F64: headwaterv1.StorageType_STORAGE_TYPE_UNSPECIFIED, 0: headwaterv1.StorageType_STORAGE_TYPE_UNSPECIFIED,
	} {
		if got := layerproto.StorageType(dtype); got != want {
			t.Errorf("%s is %s, want %s", dtype, got, want)
		}
		if back, err := layerproto.ReadStorage(want); (err == nil) != (want != 0) || err == nil && back != dtype {
			t.Errorf("%s is %s: %v", want, back, err)
		}
	}
	if n := len(headwaterv1.StorageType_name) - 1; len(shard.StorageTypes()) != n {
		t.Errorf("there are %d storage types, the protocol has %d", len(shard.StorageTypes()), n)
	}
	codecs := map[contextframe.Codec]struct {
		job  headwaterv1.ContextCodec
		step headwaterv1.StepCodec
	}{
		contextframe.Exact: {headwaterv1.ContextCodec_CONTEXT_CODEC_EXACT, headwaterv1.StepCodec_STEP_CODEC_EXACT},
		contextframe.BF16:  {headwaterv1.ContextCodec_CONTEXT_CODEC_BF16, headwaterv1.StepCodec_STEP_CODEC_BF16},
		contextframe.F16:   {headwaterv1.ContextCodec_CONTEXT_CODEC_F16, headwaterv1.StepCodec_STEP_CODEC_F16},
		contextframe.I8:    {headwaterv1.ContextCodec_CONTEXT_CODEC_I8, headwaterv1.StepCodec_STEP_CODEC_I8},
	}
	for codec, want := range codecs {
		if layerproto.ContextCodec(codec) != want.job || layerproto.StepCodec(codec) != want.step {
			t.Errorf("%s is %s and %s", codec, layerproto.ContextCodec(codec), layerproto.StepCodec(codec))
		}
		if back, err := layerproto.ReadContextCodec(want.job); err != nil || back != codec {
			t.Errorf("%s is %s: %v", want.job, back, err)
		}
		if back, ok := layerproto.ReadStepCodec(want.step); !ok || back != codec {
			t.Errorf("%s is %s: %v", want.step, back, ok)
		}
	}
	if len(headwaterv1.ContextCodec_name) != len(codecs)+1 || len(headwaterv1.StepCodec_name) != len(codecs)+3 { // raw and parts have no frame
		t.Errorf("the protocol has %d and %d codecs", len(headwaterv1.ContextCodec_name)-1, len(headwaterv1.StepCodec_name)-1)
	}
	for _, n := range []int32{-1, 0, 5, 6, 255, 256, 257, math.MaxInt32, math.MinInt32} {
		if _, err := layerproto.ReadContextCodec(headwaterv1.ContextCodec(n)); err == nil {
			t.Errorf("context codec %d is one", n)
		}
		if _, ok := layerproto.ReadStepCodec(headwaterv1.StepCodec(n)); ok && n != 5 {
			t.Errorf("step codec %d has frames", n)
		}
	}
}

// TestArithmetic: a peer that does not know arithmetics is given no storage type, which it refuses; and what can't be is refused by
// name.
func TestArithmetic(t *testing.T) {
	layer := func() *headwaterv1.SessionLayer {
		return &headwaterv1.SessionLayer{NHeads: 1, NKvHeads: 1, HeadDim: 4, VDim: 4, WindowLeft: -1, WindowRight: -1, Storage: headwaterv1.StorageType_STORAGE_TYPE_BF16}
	}
	for _, a := range []attention.Arithmetic{attention.Tiles, attention.TilesBF16} {
		m := layer()
		m.Arithmetic = headwaterv1.Arithmetic_ARITHMETIC_CHAIN + headwaterv1.Arithmetic(a)
		l, err := layerproto.ReadSessionLayers([]*headwaterv1.SessionLayer{m})
		if err != nil || l[0].Arithmetic() != a {
			t.Fatalf("%s: %v", a, err)
		}
		sent := layerproto.SessionLayers(l[:1])[0]
		if sent.GetStorage() != headwaterv1.StorageType_STORAGE_TYPE_UNSPECIFIED {
			t.Errorf("%s is sent with storage %s", a, sent.GetStorage())
		}
		sent.Arithmetic = headwaterv1.Arithmetic_ARITHMETIC_UNSPECIFIED // as a peer of before reads it
		if _, err := layerproto.ReadSessionLayers([]*headwaterv1.SessionLayer{sent}); err == nil {
			t.Errorf("%s: a peer that does not know it takes the layer", a)
		}
	}
	for want, spoil := range map[string]func(m *headwaterv1.SessionLayer){
		"arithmetic auto is none":  func(m *headwaterv1.SessionLayer) { m.Arithmetic = headwaterv1.Arithmetic_ARITHMETIC_AUTO },
		"arithmetic 5 is unknown":  func(m *headwaterv1.SessionLayer) { m.Arithmetic = 5 },
		"arithmetic -1 is unknown": func(m *headwaterv1.SessionLayer) { m.Arithmetic = -1 },
		"arithmetic tiles takes keys and values stored as BF16, not as F16": func(m *headwaterv1.SessionLayer) {
			m.Arithmetic, m.Storage = headwaterv1.Arithmetic_ARITHMETIC_TILES, headwaterv1.StorageType_STORAGE_TYPE_F16
		},
		"storage type 0 is unknown": func(m *headwaterv1.SessionLayer) {
			m.Arithmetic, m.Storage = headwaterv1.Arithmetic_ARITHMETIC_CHAIN, headwaterv1.StorageType_STORAGE_TYPE_UNSPECIFIED
		},
	} {
		m := layer()
		spoil(m)
		if _, err := layerproto.ReadSessionLayers([]*headwaterv1.SessionLayer{m}); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v, want one with %q", err, want)
		}
	}
}

// TestAutoIsTakenOnce: a layer of bf16 may leave its arithmetic to a coordinator, in a form that peers of before refuse. Once one is
// taken it is an ordinary layer, and only chain or tiles is.
func TestAutoIsTakenOnce(t *testing.T) {
	layer := func(s headwaterv1.StorageType, a headwaterv1.Arithmetic) *headwaterv1.SessionLayer {
		return &headwaterv1.SessionLayer{NHeads: 1, NKvHeads: 1, HeadDim: 4, VDim: 4, WindowLeft: -1, WindowRight: -1, Storage: s, Arithmetic: a}
	}
	asked := func() []*headwaterv1.SessionLayer {
		return []*headwaterv1.SessionLayer{
			layer(headwaterv1.StorageType_STORAGE_TYPE_BF16, 0), layer(headwaterv1.StorageType_STORAGE_TYPE_F16, 0), layer(0, headwaterv1.Arithmetic_ARITHMETIC_TILES_BF16),
		}
	}
	left := asked()
	for _, m := range left {
		layerproto.LeaveArithmetic(m)
	}
	if m := left[0]; m.GetStorage() != headwaterv1.StorageType_STORAGE_TYPE_UNSPECIFIED || m.GetArithmetic() != headwaterv1.Arithmetic_ARITHMETIC_AUTO {
		t.Errorf("it is left as storage %s in %s, which peers of before would take", m.GetStorage(), m.GetArithmetic())
	}
	for i, m := range asked()[1:] {
		if !proto.Equal(m, left[1+i]) {
			t.Errorf("%v became %v, and leaves nothing", m, left[1+i])
		}
	}
	before := proto.CloneOf(left[0])
	if layers, some, err := layerproto.ReadAsked(left); err != nil || !some || layers[0].Arithmetic() != attention.Chain || layers[2].Arithmetic() != attention.TilesBF16 || !proto.Equal(before, left[0]) {
		t.Errorf("%v, %v: %v", layers, some, err)
	}
	if _, some, err := layerproto.ReadAsked(asked()); err != nil || some {
		t.Errorf("nothing is left, and %v: %v", some, err)
	}
	for _, a := range []attention.Arithmetic{attention.Chain, attention.Tiles} {
		taken := asked()
		layerproto.LeaveArithmetic(taken[0])
		if err := layerproto.TakeArithmetic(taken, []attention.Arithmetic{a, attention.Tiles, attention.Auto}); err != nil {
			t.Fatal(err)
		}
		layers, err := layerproto.ReadSessionLayers(taken)
		if err != nil || layers[0].Arithmetic() != a || layers[1].Arithmetic() != attention.Chain || layers[2].Arithmetic() != attention.TilesBF16 {
			t.Errorf("%s: %v, %v", a, layers, err)
		}
		if again := layerproto.SessionLayers(layers)[0]; again.GetStorage() != taken[0].GetStorage() || again.GetArithmetic() != taken[0].GetArithmetic() {
			t.Errorf("%s is written as %v, and was taken as %v", a, again, taken[0])
		}
	}
	for want, taken := range map[string][]attention.Arithmetic{
		"arithmetics of 2 layers were told, and there are 3":   {attention.Chain, attention.Chain},
		"layer 0: arithmetic auto is never taken for tiles-b":  {attention.TilesBF16, attention.Chain, attention.Chain},
		"layer 0: arithmetic auto is never taken for auto":     {attention.Auto, attention.Chain, attention.Chain},
		"layer 0: arithmetic auto is never taken for arithmet": {7, attention.Chain, attention.Chain},
	} {
		if err := layerproto.TakeArithmetic([]*headwaterv1.SessionLayer{proto.CloneOf(before), left[1], left[2]}, taken); err == nil || !strings.HasPrefix(err.Error(), want) {
			t.Errorf("%v, want %q", err, want)
		}
	}
	if _, _, err := layerproto.ReadAsked([]*headwaterv1.SessionLayer{layer(headwaterv1.StorageType_STORAGE_TYPE_F16, headwaterv1.Arithmetic_ARITHMETIC_AUTO)}); err == nil || !strings.Contains(err.Error(), "auto takes keys and values stored as bf16") {
		t.Error(err)
	}
	for a := range headwaterv1.Arithmetic_name {
		if m := headwaterv1.Arithmetic(a); m != 0 && m != headwaterv1.Arithmetic_ARITHMETIC_AUTO && layerproto.Arithmetic(layerproto.ReadArithmetic(m)) != m {
			t.Errorf("%s becomes %s", m, layerproto.ReadArithmetic(m))
		}
	}
	if layerproto.Arithmetic(attention.Auto) != headwaterv1.Arithmetic_ARITHMETIC_AUTO || len(headwaterv1.Arithmetic_name) != len(attention.ArithmeticNames())+2 {
		t.Error("the protocol has other arithmetics")
	}
}
