package scatter

import (
	"fmt"

	"headwater.example/attention"
	"headwater.example/internal/jobfile"
	"headwater.example/internal/layerproto"
	"headwater.example/internal/rpc"
	headwaterv1 "headwater.example/proto/headwater/v1"
)

// Sizes to which queries are cut: a query block's rows are at most rpc.BlockBytes, its mask and bias at most
// operandBytes, unless one token alone is more.
const (
	blockTokens  = 256
	operandBytes = 8 << 20
)

// problem is one problem of the job with how its work is cut.
type problem struct {
	*jobfile.Problem
	index       int
	blockTokens int // query tokens of a block
	blocks      int
	layout      attention.Layout

	outputTokens, outputBlocks int // tokens of a block of outputs, and how many there are

	// Of gradients in the scratch file: where d_q, d_k and d_v of a whole layer lie side by side, and where the parts of
	// those lie that are summed.
	stackedAt int64
	addends   map[headwaterv1.GradientTensor]*addend
}

func newProblem(index int, p *jobfile.Problem) (*problem, error) {
	layout, err := p.Layout()
	if err != nil {
		return nil, fmt.Errorf("problem %q: %w", p.Prefix, err)
	}
	if p.Differentiates() {
		// Gradients of keys and values are sums over all tokens: a group is one block.
		out := &problem{Problem: p, index: index, blockTokens: p.Tokens, blocks: 1, layout: layout, addends: map[headwaterv1.GradientTensor]*addend{}}
		out.outputTokens = min(max(rpc.BlockBytes/4/max(out.stackedWidth(), p.DModel, 1), 1), blockTokens, p.Tokens)
		out.outputBlocks = (p.Tokens + out.outputTokens - 1) / out.outputTokens
		return out, nil
	}
	row := max(p.Shape.Heads*max(p.Shape.HeadDim, p.Shape.VDim), p.DModel) * 4
	tokens := min(rpc.BlockBytes/row, blockTokens)
	// A mask or bias for each head is sent for one group at a time.
	heads := func(n int) int { return min(n, p.Shape.GroupSize()) }
	if operand := p.KVLen * (heads(p.MaskHeads) + 4*heads(p.BiasHeads)); operand > 0 {
		tokens = min(tokens, operandBytes/operand)
	}
	tokens = min(max(tokens, 1), p.Tokens)
	blocks := (p.Tokens + tokens - 1) / tokens
	return &problem{Problem: p, index: index, blockTokens: tokens, blocks: blocks, layout: layout, outputTokens: tokens, outputBlocks: blocks}, nil
}

// block returns the query tokens of block b.
func (p *problem) block(b int) (start, count int) {
	start = b * p.blockTokens
	return start, min(p.blockTokens, p.Tokens-start)
}

// outputBlock returns the tokens of block b of outputs.
func (p *problem) outputBlock(b int) (start, count int) {
	start = b * p.outputTokens
	return start, min(p.outputTokens, p.Tokens-start)
}

// ropeDims is the number of elements of a head that rotate, 0 without rotation.
func (p *problem) ropeDims() int {
	if p.Rope == nil {
		return 0
	}
	return p.Rope.Dims
}

// projects says whether the workers project queries, keys and values themselves.
func (p *problem) projects() bool { return p.X != "" }

// message describes the problem to a worker.
func (p *problem) message() *headwaterv1.Problem {
	storage, arithmetic := layerproto.Stored(p.layout)
	m := &headwaterv1.Problem{
		NHeads: uint32(p.Shape.Heads), NKvHeads: uint32(p.Shape.KVHeads), HeadDim: uint32(p.Shape.HeadDim), VDim: uint32(p.Shape.VDim),
		Tokens: uint64(p.Tokens), KvLen: uint64(p.KVLen), Offset: p.Offset, Storage: storage, Arithmetic: arithmetic,
		Causal: p.Options.Causal, WindowLeft: p.Options.WindowLeft, WindowRight: p.Options.WindowRight,
		Scale: p.Options.Scale, Softcap: p.Options.Softcap, AlibiSlopes: p.Options.AlibiSlopes, Sinks: p.Options.Sinks,
	}
	if p.projects() {
		m.Projection = &headwaterv1.Projection{
			DModel: uint32(p.DModel), RopeDims: uint32(p.ropeDims()), RopeInterleaved: p.Rope != nil && p.Rope.Interleaved,
			QueryBias: p.BQ != "", KeyBias: p.BK != "", ValueBias: p.BV != "",
		}
	}
	if p.Differentiates() {
		m.Gradients = p.gradientMessage()
	}
	return m
}
