package jobs

import (
	"errors"
	"fmt"

	"headwater.example/internal/contextframe"
	"headwater.example/internal/layerproto"
	"headwater.example/internal/rpc"
	headwaterv1 "headwater.example/proto/headwater/v1"
	"headwater.example/shard"
)

const maxJobID = 128

// problem is one checked (sequence, layer) of a job.
type problem struct {
	shard.LayerSpec
	tokens     int
	kvLen      int
	offset     int64
	projection *projection // nil where queries, keys and values come ready
	gradients  *gradients  // nil where contexts are asked for
	epoch      uint64      // highest epoch of any of the problem's shards
	output     outputRows
}

// projection is how a problem's hidden states become queries, keys and values.
type projection struct {
	dModel                        int
	ropeDims                      int
	interleaved                   bool
	queryBias, keyBias, valueBias bool
}

// checkOpen checks the first message of a stream.
func checkOpen(open *headwaterv1.Open) ([]*problem, contextframe.Codec, error) {
	codec, err := layerproto.ReadContextCodec(open.GetCodec())
	switch {
	case err != nil:
		return nil, codec, invalid("open: %v", err)
	case len(open.GetJobId()) > maxJobID:
		return nil, codec, invalid("open: job id has %d bytes, at most %d are allowed", len(open.GetJobId()), maxJobID)
	}
	shapes := make([]shard.LayerShape, len(open.GetProblems()))
	for i, p := range open.GetProblems() {
		shapes[i] = shard.LayerShape{Heads: int(p.GetNHeads()), KVHeads: int(p.GetNKvHeads()), HeadDim: int(p.GetHeadDim()), VDim: int(p.GetVDim())}
	}
	if _, err := shard.NewGeometry(shapes); err != nil {
		var ge *shard.GeometryError
		if errors.As(err, &ge) && ge.Layer >= 0 {
			return nil, codec, invalid("open: problem %d: %s: %s", ge.Layer, ge.Field, ge.Rule)
		}
		return nil, codec, invalid("open: problems: there are %d: %v", len(shapes), err)
	}
	problems := make([]*problem, len(shapes))
	for i, p := range open.GetProblems() {
		var err error
		if problems[i], err = checkProblem(p); err != nil {
			return nil, codec, invalid("open: problem %d: %v", i, err)
		}
	}
	return problems, codec, nil
}

func checkProblem(p *headwaterv1.Problem) (*problem, error) {
	switch {
	case p.GetTokens() < 1 || p.GetTokens() > shard.MaxPositions:
		return nil, fmt.Errorf("tokens: %d is not in 1 to %d", p.GetTokens(), int64(shard.MaxPositions))
	case p.GetKvLen() > shard.MaxPositions:
		return nil, fmt.Errorf("kv_len: %d is more than %d", p.GetKvLen(), int64(shard.MaxPositions))
	case p.GetOffset() > shard.MaxPositions || p.GetOffset() < -shard.MaxPositions:
		return nil, fmt.Errorf("offset: %d is not in -%d to %d", p.GetOffset(), int64(shard.MaxPositions), int64(shard.MaxPositions))
	}
	layer, err := layerproto.ReadProblem(p)
	if err != nil {
		return nil, err
	}
	out := &problem{
		LayerSpec: layer,
		tokens:    int(p.GetTokens()),
		kvLen:     int(p.GetKvLen()),
		offset:    p.GetOffset(),
	}
	if pr := p.GetProjection(); pr != nil {
		dims := int(pr.GetRopeDims())
		switch {
		case pr.GetDModel() < 1 || pr.GetDModel() > rpc.MaxMessageBytes/4:
			return nil, fmt.Errorf("projection: d_model: %d is not in 1 to %d", pr.GetDModel(), rpc.MaxMessageBytes/4)
		case dims%2 != 0 || dims > layer.HeadDim():
			return nil, fmt.Errorf("projection: rope_dims: %d is odd or more than head_dim %d", dims, layer.HeadDim())
		}
		out.projection = &projection{
			dModel:      int(pr.GetDModel()),
			ropeDims:    dims,
			interleaved: pr.GetRopeInterleaved(),
			queryBias:   pr.GetQueryBias(),
			keyBias:     pr.GetKeyBias(),
			valueBias:   pr.GetValueBias(),
		}
	}
	if g := p.GetGradients(); g != nil {
		if out.gradients, err = checkGradients(g, out); err != nil {
			return nil, err
		}
	}
	return out, nil
}
