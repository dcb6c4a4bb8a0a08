package jobs

import (
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	headwaterv1 "headwater.example/proto/headwater/v1"
)

func gradientBlock(m *headwaterv1.GradientBlock) *headwaterv1.RunRequest {
	return &headwaterv1.RunRequest{Request: &headwaterv1.RunRequest_Gradient{Gradient: m}}
}

// TestGradientMessagesAreChecked breaks one message of a stream that is well formed, and lets nothing follow it.
func TestGradientMessagesAreChecked(t *testing.T) {
	const (
		bad   = codes.InvalidArgument
		state = codes.FailedPrecondition
	)
	// 2 groups of 2 heads, 3 tokens, 70 positions, head_dim 4 and v_dim 3.
	p := proto.CloneOf(smallJob(t, headwaterv1.StorageType_STORAGE_TYPE_F32).problem)
	p.Gradients = &headwaterv1.Gradients{MaskHeads: 1}
	j := newJob(t, rand.New(rand.NewPCG(3, 4)), p, 0, 0)
	loaded := slices.Concat([]*headwaterv1.RunRequest{openOf(p)}, j.load(t, 0, []uint32{0, 1}, 64))
	block := func(edit func(m *headwaterv1.GradientBlock)) *headwaterv1.RunRequest {
		m := &headwaterv1.GradientBlock{Count: 2, Q: make([]byte, 2*2*4*4), DContext: make([]byte, 2*2*3*4)}
		edit(m)
		return gradientBlock(m)
	}
	first := block(func(*headwaterv1.GradientBlock) {})
	rest := gradientBlock(&headwaterv1.GradientBlock{Start: 2, Count: 1, Q: make([]byte, 2*4*4), DContext: make([]byte, 2*3*4)})
	mask := func(n int) *headwaterv1.RunRequest {
		return operandBlock(&headwaterv1.OperandBlock{Operand: headwaterv1.Operand_OPERAND_MASK, Data: slices.Repeat([]byte{1}, n)})
	}
	good := slices.Concat(loaded, []*headwaterv1.RunRequest{first, rest, mask(3 * 70)})
	if answers, err := play(t, newPlace(t, 1<<24, 1), false, good...); err != nil || len(answers) == 0 {
		t.Fatalf("a stream that is well formed: %v", err)
	}

	opened := func(edit func(p *headwaterv1.Problem)) []*headwaterv1.RunRequest {
		p := proto.CloneOf(p)
		edit(p)
		return []*headwaterv1.RunRequest{openOf(p)}
	}
	for name, c := range map[string]struct {
		before []*headwaterv1.RunRequest
		broken *headwaterv1.RunRequest
		code   codes.Code
		rule   string
	}{
		"int8": {nil, opened(func(p *headwaterv1.Problem) { p.Storage = headwaterv1.StorageType_STORAGE_TYPE_I8 })[0], bad, "stored as I8"},
		"given contexts": {nil, opened(func(p *headwaterv1.Problem) {
			p.Projection, p.Gradients = &headwaterv1.Projection{DModel: 8}, &headwaterv1.Gradients{Given: true}
		})[0], bad, "contexts are computed where queries are projected"},
		"more positions than tokens": {nil, opened(func(p *headwaterv1.Problem) { p.Projection = &headwaterv1.Projection{DModel: 8} })[0], bad, "kv_len 70 is more than the 3 hidden states"},
		"bias of no output":          {nil, opened(func(p *headwaterv1.Problem) { p.Gradients.OutputBias = true })[0], bad, "a bias of the output without a projection"},
		"mask heads":                 {nil, opened(func(p *headwaterv1.Problem) { p.Gradients.MaskHeads = 3 })[0], bad, "mask: 3 heads are neither 0, 1 nor the group's 2"},
		"bias heads":                 {nil, opened(func(p *headwaterv1.Problem) { p.Gradients.BiasHeads = 4 })[0], bad, "bias: 4 heads are neither"},
		"not sealed":                 {loaded[:len(loaded)-2], first, state, "is not sealed"},
		"problem":                    {loaded, block(func(m *headwaterv1.GradientBlock) { m.Problem = 1 }), bad, "problem 1"},
		"group":                      {loaded, block(func(m *headwaterv1.GradientBlock) { m.Group = 2 }), bad, "group 2"},
		"no tokens":                  {loaded, block(func(m *headwaterv1.GradientBlock) { m.Count = 0 }), bad, "0 tokens from 0"},
		"not the first":              {loaded, block(func(m *headwaterv1.GradientBlock) { m.Start = 1 }), bad, "2 tokens from 1, 0 of 3 are here"},
		"too many":                   {append(slices.Clone(loaded), first), first, bad, "2 tokens from 0, 2 of 3 are here"},
		"other group":                {append(slices.Clone(loaded), first), block(func(m *headwaterv1.GradientBlock) { m.Group, m.Start = 1, 2 }), bad, "before the shard's own are complete"},
		"short q":                    {loaded, block(func(m *headwaterv1.GradientBlock) { m.Q = m.Q[4:] }), bad, "q from token 0: 60 bytes are not 16"},
		"short gradient":             {loaded, block(func(m *headwaterv1.GradientBlock) { m.DContext = nil }), bad, "d_context from token 0: 0 bytes"},
		"NaN":                        {loaded, block(func(m *headwaterv1.GradientBlock) { copy(m.DContext[8:], bytesOf(nan)) }), bad, "d_context from token 0: element 2 is NaN"},
		"context":                    {loaded, block(func(m *headwaterv1.GradientBlock) { m.Context = m.DContext }), bad, "context must not be given"},
		"lse":                        {loaded, block(func(m *headwaterv1.GradientBlock) { m.Lse = make([]byte, 16) }), bad, "lse must not be given"},
		"query":                      {loaded, queryBlock(&headwaterv1.QueryBlock{Groups: []uint32{0}, Count: 1, Q: make([]byte, 32)}), bad, "the problem asks for gradients, not for contexts"},
		"mask is too long":           {append(slices.Clone(loaded), first, rest), mask(3*70 + 1), bad, "ends at byte 211 of 210"},
		"between":                    {append(slices.Clone(loaded), first), shardClose(&headwaterv1.ShardClose{}), bad, "its operands follow before any other message"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := play(t, newPlace(t, 1<<24, 1), false, append(slices.Clone(c.before), c.broken)...)
			if status.Code(err) != c.code || !strings.Contains(err.Error(), c.rule) {
				t.Errorf("got %v, want %s and %q", err, c.code, c.rule)
			}
		})
	}
	if _, err := play(t, newPlace(t, 1<<16, 1), false, good...); status.Code(err) != codes.ResourceExhausted {
		t.Errorf("a budget that is too small: %v", err)
	}
	forward := smallJob(t, headwaterv1.StorageType_STORAGE_TYPE_F32)
	_, err := play(t, newPlace(t, 1<<24, 1), false, append(slices.Concat([]*headwaterv1.RunRequest{openOf(forward.problem)}, forward.load(t, 0, []uint32{0, 1}, 64)), first)...)
	if status.Code(err) != bad || !strings.Contains(err.Error(), "the problem asks for contexts, not for gradients") {
		t.Errorf("gradients of a problem without: %v", err)
	}
}
