// Package layerproto turns layers, storage types and codecs into messages of headwater.v1 and back. It is the one place that
// knows both: what sends or receives a layer asks it, and what computes with one has a shard.LayerSpec.
package layerproto

import (
	"errors"
	"fmt"
	"slices"

	"google.golang.org/protobuf/proto"

	"headwater.example/attention"
	"headwater.example/internal/contextframe"
	headwaterv1 "headwater.example/proto/headwater/v1"
	"headwater.example/shard"
	"headwater.example/tensor"
)

// StorageType returns the message's value for a storage type, UNSPECIFIED for a type that is none.
func StorageType(dtype tensor.DType) headwaterv1.StorageType {
	return headwaterv1.StorageType(shard.StorageNumber(dtype))
}

// ReadStorage returns the element type of a storage type.
func ReadStorage(storage headwaterv1.StorageType) (tensor.DType, error) {
	if storage < 0 || storage > 255 {
		return 0, fmt.Errorf("storage type %d is unknown", int32(storage))
	}
	return shard.StorageByNumber(uint8(storage))
}

// Stored returns the message's values for a storage type and an arithmetic. With an arithmetic in tiles the storage type is
// not given: a peer that does not know arithmetics then refuses.
func Stored(layout attention.Layout) (headwaterv1.StorageType, headwaterv1.Arithmetic) {
	if layout.Arithmetic() == attention.Chain {
		return StorageType(layout.DType()), headwaterv1.Arithmetic_ARITHMETIC_UNSPECIFIED
	}
	return headwaterv1.StorageType_STORAGE_TYPE_UNSPECIFIED, Arithmetic(layout.Arithmetic())
}

// Arithmetic returns the message's value for an arithmetic.
func Arithmetic(a attention.Arithmetic) headwaterv1.Arithmetic {
	if a == attention.Auto {
		return headwaterv1.Arithmetic_ARITHMETIC_AUTO
	}
	return headwaterv1.Arithmetic_ARITHMETIC_CHAIN + headwaterv1.Arithmetic(a)
}

// ReadArithmetic returns the arithmetic of a message. One that is unknown has no name.
func ReadArithmetic(a headwaterv1.Arithmetic) attention.Arithmetic {
	if a == headwaterv1.Arithmetic_ARITHMETIC_UNSPECIFIED {
		return attention.Chain
	}
	return attention.Arithmetic(a - headwaterv1.Arithmetic_ARITHMETIC_CHAIN)
}

// LeaveArithmetic leaves the arithmetic of a layer to the coordinator that is asked for it. Only bf16 has more than chain.
func LeaveArithmetic(m *headwaterv1.SessionLayer) {
	if m.GetStorage() == headwaterv1.StorageType_STORAGE_TYPE_BF16 {
		m.Storage, m.Arithmetic = headwaterv1.StorageType_STORAGE_TYPE_UNSPECIFIED, headwaterv1.Arithmetic_ARITHMETIC_AUTO
	}
}

// TakeArithmetic gives layers that leave their arithmetic to a coordinator the one that it has taken for them. It has as many as
// there are layers, and those of the other layers mean nothing.
func TakeArithmetic(layers []*headwaterv1.SessionLayer, taken []attention.Arithmetic) error {
	if len(layers) != len(taken) {
		return fmt.Errorf("arithmetics of %d layers were told, and there are %d", len(taken), len(layers))
	}
	for i, m := range layers {
		if m.GetArithmetic() != headwaterv1.Arithmetic_ARITHMETIC_AUTO {
			continue
		}
		if s := m.GetStorage(); s != headwaterv1.StorageType_STORAGE_TYPE_UNSPECIFIED && s != headwaterv1.StorageType_STORAGE_TYPE_BF16 {
			return fmt.Errorf("layer %d: arithmetic auto takes keys and values stored as bf16, not as storage type %d", i, int32(s))
		}
		switch taken[i] {
		case attention.Chain:
			m.Storage, m.Arithmetic = headwaterv1.StorageType_STORAGE_TYPE_BF16, headwaterv1.Arithmetic_ARITHMETIC_UNSPECIFIED
		case attention.Tiles:
			m.Storage, m.Arithmetic = headwaterv1.StorageType_STORAGE_TYPE_UNSPECIFIED, headwaterv1.Arithmetic_ARITHMETIC_TILES
		default:
			return fmt.Errorf("layer %d: arithmetic auto is never taken for %s", i, taken[i])
		}
	}
	return nil
}

// ReadAsked is ReadSessionLayers of a request to a coordinator, to which layers may leave their arithmetic, and says whether any
// does. What it reads of these is in chain.
func ReadAsked(messages []*headwaterv1.SessionLayer) (layers []shard.LayerSpec, left bool, err error) {
	asked := slices.Clone(messages)
	for i, m := range messages {
		if m.GetArithmetic() == headwaterv1.Arithmetic_ARITHMETIC_AUTO {
			asked[i], left = proto.CloneOf(m), true
		}
	}
	if err := TakeArithmetic(asked, make([]attention.Arithmetic, len(asked))); err != nil {
		return nil, left, err
	}
	layers, err = ReadSessionLayers(asked)
	return layers, left, err
}

// readLayer reads and checks a layer. Its error says which number can not be.
func readLayer(shape shard.LayerShape, storage headwaterv1.StorageType, arithmetic headwaterv1.Arithmetic, options attention.Options) (shard.LayerSpec, error) {
	if arithmetic == headwaterv1.Arithmetic_ARITHMETIC_AUTO {
		return shard.LayerSpec{}, errors.New("arithmetic auto is none: a coordinator that makes a session takes one for it")
	}
	if _, known := headwaterv1.Arithmetic_name[int32(arithmetic)]; !known {
		return shard.LayerSpec{}, fmt.Errorf("arithmetic %d is unknown", int32(arithmetic))
	}
	a := ReadArithmetic(arithmetic)
	if a != attention.Chain && storage == headwaterv1.StorageType_STORAGE_TYPE_UNSPECIFIED {
		storage = headwaterv1.StorageType_STORAGE_TYPE_BF16
	}
	dtype, err := ReadStorage(storage)
	if err != nil {
		return shard.LayerSpec{}, err
	}
	l, err := shard.NewLayerSpec(shape, dtype, options)
	if err != nil {
		return l, err
	}
	return l.WithArithmetic(a)
}

// ContextCodec returns the message's value for the codec of a job's contexts.
func ContextCodec(codec contextframe.Codec) headwaterv1.ContextCodec {
	return headwaterv1.ContextCodec(codec)
}

// ReadContextCodec returns the codec of the frames that a job asks for.
func ReadContextCodec(codec headwaterv1.ContextCodec) (contextframe.Codec, error) {
	if codec < 0 || codec > 255 || !contextframe.Codec(codec).Known() {
		return 0, fmt.Errorf("context codec %d is unknown", int32(codec))
	}
	return contextframe.Codec(codec), nil
}

// StepCodec returns the message's value for the codec of a step's frames. RAW, which has no frame, is the value before them.
func StepCodec(codec contextframe.Codec) headwaterv1.StepCodec {
	return headwaterv1.StepCodec(codec) + headwaterv1.StepCodec_STEP_CODEC_RAW
}

// ReadStepCodec returns the codec of the frames that a step asks for; false if it asks for none: RAW, or an unknown value.
func ReadStepCodec(codec headwaterv1.StepCodec) (contextframe.Codec, bool) {
	n := codec - headwaterv1.StepCodec_STEP_CODEC_RAW
	if n < 0 || n > 255 {
		return 0, false
	}
	return contextframe.Codec(n), contextframe.Codec(n).Known()
}

// sessionLayer writes one layer of a session's config.
func sessionLayer(l *shard.LayerSpec) *headwaterv1.SessionLayer {
	o := &l.Options
	storage, arithmetic := Stored(l.Layout)
	return &headwaterv1.SessionLayer{
		NHeads: uint32(l.Heads), NKvHeads: uint32(l.KVHeads), HeadDim: uint32(l.HeadDim()), VDim: uint32(l.VDim()), Storage: storage, Arithmetic: arithmetic,
		Causal: o.Causal, WindowLeft: max(o.WindowLeft, -1), WindowRight: max(o.WindowRight, -1),
		Scale: o.Scale, Softcap: o.Softcap, AlibiSlopes: o.AlibiSlopes, Sinks: o.Sinks, Stripes: uint32(l.Stripes),
	}
}

// SessionLayers writes the layers of a session's config.
func SessionLayers(layers []shard.LayerSpec) []*headwaterv1.SessionLayer {
	out := make([]*headwaterv1.SessionLayer, len(layers))
	for i := range layers {
		out[i] = sessionLayer(&layers[i])
	}
	return out
}

// ReadSessionLayers reads and checks the layers of a session's config. The error says which number of which layer can not be.
// The layers refer to the slopes and sinks of the messages.
func ReadSessionLayers(messages []*headwaterv1.SessionLayer) ([]shard.LayerSpec, error) {
	if n := len(messages); n < 1 || n > shard.MaxLayers {
		return nil, fmt.Errorf("%d layers are not in 1 to %d", n, shard.MaxLayers)
	}
	layers := make([]shard.LayerSpec, len(messages))
	for i, m := range messages {
		var err error
		shape := shard.LayerShape{Heads: int(m.GetNHeads()), KVHeads: int(m.GetNKvHeads()), HeadDim: int(m.GetHeadDim()), VDim: int(m.GetVDim())}
		options := attention.Options{
			Causal: m.GetCausal(), WindowLeft: m.GetWindowLeft(), WindowRight: m.GetWindowRight(),
			Scale: m.GetScale(), Softcap: m.GetSoftcap(), AlibiSlopes: m.GetAlibiSlopes(), Sinks: m.GetSinks(),
		}
		if options.Scale == 0 {
			options.Scale = attention.DefaultScale(shape.HeadDim)
		}
		if layers[i], err = readLayer(shape, m.GetStorage(), m.GetArithmetic(), options); err != nil {
			return nil, fmt.Errorf("layer %d: %w", i, err)
		}
		if layers[i], err = layers[i].WithStripes(int(min(m.GetStripes(), shard.MaxStripes+1))); err != nil {
			return nil, fmt.Errorf("layer %d: %w", i, err)
		}
	}
	if _, err := shard.HeldGeometry(layers); err != nil {
		return nil, err
	}
	return layers, nil
}

// ReadProblem reads and checks the layer of a job's problem. A scale of 0 is 0 there.
func ReadProblem(m *headwaterv1.Problem) (shard.LayerSpec, error) {
	shape := shard.LayerShape{Heads: int(m.GetNHeads()), KVHeads: int(m.GetNKvHeads()), HeadDim: int(m.GetHeadDim()), VDim: int(m.GetVDim())}
	return readLayer(shape, m.GetStorage(), m.GetArithmetic(), attention.Options{
		Causal: m.GetCausal(), WindowLeft: m.GetWindowLeft(), WindowRight: m.GetWindowRight(),
		Scale: m.GetScale(), Softcap: m.GetSoftcap(), AlibiSlopes: m.GetAlibiSlopes(), Sinks: m.GetSinks(),
	})
}
