package session

import (
	"fmt"

	"headwater.example/internal/layerproto"
	"headwater.example/internal/rpc"
	headwaterv1 "headwater.example/proto/headwater/v1"
	"headwater.example/shard"
	"headwater.example/tensor"
)

// Sizes are the bytes of the tensors in a step's payload, each for all groups, in their order in it: q, k, v, k_scale,
// v_scale.
type Sizes struct{ Q, K, V, Scale int64 }

// Total is the length of the payload.
func (s Sizes) Total() int64 { return s.Q + s.K + s.V + 2*s.Scale }

// Check refuses a step on some groups of a layer if its fields contradict each other, the layer, or the length of the
// payload, and returns the sizes of the tensors in it. Holders and relays call it first for each step from outside. It
// does not look at values: the holder checks the session's state, and numbers that are not finite. The error names the
// rule.
func (s *Step) Check(l *shard.LayerSpec, groups, payload int) (Sizes, error) {
	if err := s.checkFields(l, groups); err != nil {
		return Sizes{}, err
	}
	sizes := s.Sizes(l, groups)
	if int64(payload) != sizes.Total() {
		return Sizes{}, fmt.Errorf("the payload has %d bytes; %d query tokens and %d to append of %d groups need %d", payload, s.Attend, s.Append, groups, sizes.Total())
	}
	return sizes, nil
}

func (s *Step) checkFields(l *shard.LayerSpec, groups int) error {
	attend, appended := int64(s.Attend), int64(s.Append)
	row := int64(s.Tree+7) / 8
	dt, unknown := l.Storage(), error(nil)
	if appended > 0 {
		dt, unknown = layerproto.ReadStorage(s.Encoding)
	}
	_, framed := layerproto.ReadStepCodec(s.Codec)
	switch {
	case attend > shard.MaxStepTokens || appended > shard.MaxStepTokens:
		return fmt.Errorf("a step appends and attends at most %d tokens, not %d and %d: cut it into several", shard.MaxStepTokens, appended, attend)
	case attend == 0 && appended == 0:
		return fmt.Errorf("the step has no tokens")
	case len(s.Hashes) != groups:
		return fmt.Errorf("%d hashes for %d groups", len(s.Hashes), groups)
	case len(s.Answers) != 0 && (attend == 0 || len(s.Answers) != (groups+7)/8 || groups%8 != 0 && s.Answers[groups/8]>>(groups%8) != 0):
		return fmt.Errorf("%d bytes say which of %d groups are answered for %d tokens", len(s.Answers), groups, attend)
	case len(s.Tokens) != 0 && int64(len(s.Tokens)) != appended:
		return fmt.Errorf("%d token ids for %d positions", len(s.Tokens), appended)
	case attend > 0 && !framed && s.Codec != headwaterv1.StepCodec_STEP_CODEC_RAW:
		return fmt.Errorf("codec %d is not known", s.Codec)
	case unknown != nil || dt != l.Storage() && dt != tensor.F32:
		return fmt.Errorf("encoding %d is neither f32 nor the layer's %s", s.Encoding, l.Storage())
	case 4*int64(groups)*int64(l.GroupSize())*attend*int64(l.VDim()+1) > rpc.MaxAnswerBytes:
		return fmt.Errorf("the answer for %d tokens exceeds a message of %d bytes: cut the step into fewer tokens", attend, rpc.MaxAnswerBytes)
	case s.QueryPosition > shard.MaxPositions:
		return fmt.Errorf("query at position %d, more than %d", s.QueryPosition, int64(shard.MaxPositions))
	case s.Tree > shard.MaxTreePositions:
		return fmt.Errorf("a tree mask has %d positions, and at most %d are allowed", s.Tree, shard.MaxTreePositions)
	case s.Tree > 0 && (attend == 0 || uint64(s.Tree) > s.Length+uint64(appended)):
		return fmt.Errorf("a tree mask of %d positions for %d tokens over %d", s.Tree, attend, s.Length+uint64(appended))
	case int64(len(s.TreeMask)) != attend*row:
		return fmt.Errorf("the tree mask has %d bytes, %d tokens of %d positions need %d", len(s.TreeMask), attend, s.Tree, attend*row)
	case attend*int64(s.Tree) > shard.MaxTreeElements:
		return fmt.Errorf("a tree mask has %d elements, and at most %d are allowed: cut the step into fewer tokens", attend*int64(s.Tree), shard.MaxTreeElements)
	}
	return nil
}

// Sizes returns the sizes of the tensors that the step has for some groups of a layer, by its fields.
func (s *Step) Sizes(l *shard.LayerSpec, groups int) Sizes {
	// No product overflows: groups and heads are at most 2¹² together, dims at most 2¹⁶, tokens at most 2³².
	n, answered, size := int64(groups), int64(s.Answered(groups, nil)), 4
	if s.Encoding != headwaterv1.StorageType_STORAGE_TYPE_F32 {
		size = l.Storage().Size()
	}
	sizes := Sizes{
		Q: 4 * answered * int64(s.Attend) * int64(l.GroupSize()) * int64(l.HeadDim()),
		K: n * int64(s.Append) * int64(l.HeadDim()*size),
		V: n * int64(s.Append) * int64(l.VDim()*size),
	}
	if s.Encoding == headwaterv1.StorageType_STORAGE_TYPE_I8 {
		sizes.Scale = 4 * n * int64(s.Append)
	}
	return sizes
}
