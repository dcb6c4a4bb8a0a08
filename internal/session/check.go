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

// Check refuses a step on the held groups of a layer, which are shards if it is in stripes, if its fields contradict each other, the
// layer, or the length of the payload, and returns the sizes of the tensors in it. Nil is all groups, as a coordinator looks like a holder
// of them: in stripes or not, it takes and gives whole groups. Holders and relays call it first for each step from outside. It
// does not look at values: the holder checks the session's state, and numbers that are not finite. The error names the
// rule.
func (s *Step) Check(l *shard.LayerSpec, held []shard.Group, payload int) (Sizes, error) {
	if err := s.checkFields(l, held); err != nil {
		return Sizes{}, err
	}
	sizes := s.Sizes(l, held)
	if int64(payload) != sizes.Total() {
		return Sizes{}, fmt.Errorf("the payload has %d bytes; %d query tokens and %d to append of %d groups need %d", payload, s.Attend, s.Append, len(s.Hashes), sizes.Total())
	}
	return sizes, nil
}

func (s *Step) checkFields(l *shard.LayerSpec, held []shard.Group) error {
	groups := len(held)
	if held == nil {
		groups = l.Shards()
	}
	attend, appended := int64(s.Attend), int64(s.Append)
	row := int64(s.Tree+7) / 8
	dt, unknown := l.Storage(), error(nil)
	if appended > 0 {
		dt, unknown = layerproto.ReadStorage(s.Encoding)
	}
	_, framed := layerproto.ReadStepCodec(s.Codec)
	switch known := framed || s.Codec == headwaterv1.StepCodec_STEP_CODEC_RAW; {
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
	case attend > 0 && l.Striped() && held != nil && s.Codec != headwaterv1.StepCodec_STEP_CODEC_PARTS:
		return fmt.Errorf("codec %d is not that of parts, and the layer is held in stripes", s.Codec)
	case attend > 0 && !known && (!l.Striped() || held == nil):
		return fmt.Errorf("codec %d is not known", s.Codec)
	case s.Length > shard.MaxPositions:
		return fmt.Errorf("length %d is more than %d", s.Length, int64(shard.MaxPositions))
	case s.QueryPosition > shard.MaxPositions:
		return fmt.Errorf("query at position %d, more than %d", s.QueryPosition, int64(shard.MaxPositions))
	case unknown != nil || dt != l.Storage() && dt != tensor.F32:
		return fmt.Errorf("encoding %d is neither f32 nor the layer's %s", s.Encoding, l.Storage())
	case s.AnswerBytes(l, held) > rpc.MaxAnswerBytes:
		return fmt.Errorf("the answer for %d tokens exceeds a message of %d bytes: cut the step into fewer tokens", attend, rpc.MaxAnswerBytes)
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

// AnswerBytes returns about how many bytes the raw answer has, at most: those of parts if the held groups are shards in stripes.
func (s *Step) AnswerBytes(l *shard.LayerSpec, held []shard.Group) int64 {
	row := 4 * int64(s.Attend) * int64(l.GroupSize())
	if held == nil {
		return row * int64(l.KVHeads) * int64(l.VDim()+1)
	}
	if !l.Striped() {
		return row * int64(len(held)) * int64(l.VDim()+1)
	}
	splits := int64(0)
	s.Answered(len(held), func(i int) { splits += int64(l.SplitsBelow(int(held[i]), s.SplitsSeen(l))) })
	return min(splits, 1<<23) * row * int64(l.VDim()+2) // so many do not fit in any case, and the product has no more than 63 bits
}

// SplitsSeen returns how many splits the step's queries see, from the first on.
func (s *Step) SplitsSeen(l *shard.LayerSpec) int {
	return l.SplitsSeen(int(s.Length)+int(s.Append), int(s.QueryPosition), int(s.Attend))
}

// Groups returns of how many groups the holder answers for a shard, and calls do, unless nil, with each, ascending. Held are the numbers
// of the shards that it holds.
func (s *Step) Groups(l *shard.LayerSpec, held []shard.Group, do func(group int)) int {
	n, last := 0, -1
	s.Answered(len(held), func(i int) {
		if g := l.GroupOf(int(held[i])); g != last {
			if last = g; do != nil {
				do(g)
			}
			n++
		}
	})
	return n
}

// Sizes returns the sizes of the tensors that the step has for the held groups of a layer, by its fields; see Check.
func (s *Step) Sizes(l *shard.LayerSpec, held []shard.Group) Sizes {
	// No product overflows: groups and heads are at most 2¹² together, dims at most 2¹⁶, tokens at most 2³².
	answered, rows, size := int64(l.KVHeads), int64(l.KVHeads)*int64(s.Append), 4
	if held != nil {
		answered, rows = int64(s.Groups(l, held, nil)), 0
		for _, g := range held {
			rows += int64(l.Stored(int(g), int(s.Length), int(s.Append)))
		}
	}
	if s.Encoding != headwaterv1.StorageType_STORAGE_TYPE_F32 {
		size = l.Storage().Size()
	}
	sizes := Sizes{
		Q: 4 * answered * int64(s.Attend) * int64(l.GroupSize()) * int64(l.HeadDim()),
		K: rows * int64(l.HeadDim()*size),
		V: rows * int64(l.VDim()*size),
	}
	if s.Encoding == headwaterv1.StorageType_STORAGE_TYPE_I8 {
		sizes.Scale = 4 * rows
	}
	return sizes
}
