package coordinator

import (
	"context"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"math"
	"slices"
	"strconv"

	"headwater.example/internal/dashboard"
	"headwater.example/internal/explain"
	"headwater.example/internal/jobfile"
	headwaterv1 "headwater.example/proto/headwater/v1"
)

const (
	// shownPositions is for how many positions of a job weights are shown at most.
	shownPositions = 4096
	// maxExplained bounds what a look at a job may read or multiply: elements of its keys, or of the projections that make them.
	maxExplained = 1 << 27
)

// WatchAttention calls send with where the queries of a session's group look.
func (c *Coordinator) WatchAttention(ctx context.Context, look dashboard.Look, send func(*dashboard.Attention) error) error {
	id, err := hex.DecodeString(look.Session)
	if err != nil {
		return fmt.Errorf("a session's id is 32 hexadecimal digits, not %q", look.Session)
	}
	req := &headwaterv1.WatchAttentionRequest{Session: id, Layer: uint32(look.Layer), Group: uint32(look.Group), Positions: uint32(look.Positions)}
	return c.sessions.WatchAttention(ofDashboard(ctx), req, func(m *headwaterv1.WatchAttentionResponse) error {
		a := &dashboard.Attention{
			Position: int64(m.GetPosition()), FirstHead: int(m.GetFirstHead()), Start: int64(m.GetStart()), Before: parts(m.GetBefore()), Sink: parts(m.GetSink()),
			Tokens: []string{},
		}
		row := 4 * int(m.GetCount())
		if len(m.GetWeights()) != row*len(m.GetBefore()) {
			return fmt.Errorf("a worker sends %d bytes of weights for %d positions of %d heads", len(m.GetWeights()), m.GetCount(), len(m.GetBefore()))
		}
		for h := range m.GetBefore() {
			weights := make([]float32, m.GetCount())
			for i := range weights {
				weights[i] = math.Float32frombits(binary.LittleEndian.Uint32(m.GetWeights()[h*row+4*i:]))
			}
			a.Weights = append(a.Weights, parts(weights))
		}
		for _, token := range m.GetTokens() {
			a.Tokens = append(a.Tokens, "#"+strconv.FormatUint(uint64(token), 10))
		}
		if at := a.Position - a.Start; at >= 0 && at < int64(len(a.Tokens)) {
			a.Token = a.Tokens[at]
		}
		return send(a)
	})
}

func parts(weights []float32) []uint16 {
	all := make([]uint16, len(weights))
	for i, w := range weights {
		all[i] = dashboard.Parts(float64(w))
	}
	return all
}

// JobProblems are the problems of a job that has not ended.
func (c *Coordinator) JobProblems(_ context.Context, id string) (all []dashboard.Problem, err error) {
	input, job, err := c.jobs.Input(id)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, input.Close()) }()
	for _, p := range job.Problems {
		all = append(all, dashboard.Problem{
			Prefix: p.Prefix, Layer: p.Layer, Groups: p.Shape.KVHeads, Heads: p.Shape.Heads, From: p.Offset, Queries: p.Tokens, Positions: p.KVLen,
		})
	}
	return all, nil
}

// JobAttention is where one query of a job looks that has not ended, as coord explain tells it.
func (c *Coordinator) JobAttention(ctx context.Context, look dashboard.Look) (_ *dashboard.Attention, err error) {
	input, job, err := c.jobs.Input(look.Job)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, input.Close()) }()
	i := slices.IndexFunc(job.Problems, func(p jobfile.Problem) bool { return p.Prefix == look.Problem })
	if i < 0 {
		return nil, fmt.Errorf("job %s has no tensors under %q", look.Job, look.Problem)
	}
	p := &job.Problems[i]
	if look.Group >= p.Shape.KVHeads {
		return nil, fmt.Errorf("group %d is not in 0 to %d", look.Group, p.Shape.KVHeads-1)
	}
	if work := max(p.Shape.KVHeads, p.DModel); p.KVLen > maxExplained/p.Shape.HeadDim/work {
		return nil, fmt.Errorf("the job has %d positions, too many to look at here: use coord explain", p.KVLen)
	}
	select { // one at a time
	case c.explaining <- struct{}{}:
		defer func() { <-c.explaining }()
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	size := p.Shape.GroupSize()
	choice := explain.Choice{Positions: []int64{look.Query}}
	for h := range size {
		choice.Heads = append(choice.Heads, look.Group*size+h)
	}
	groups, _, err := explain.Panels(ctx, input, p, choice)
	if err != nil {
		return nil, err
	}
	start := max(p.KVLen-min(max(look.Positions, 1), shownPositions), 0)
	a := &dashboard.Attention{Position: look.Query, FirstHead: look.Group * size, Start: int64(start)}
	for _, panel := range groups[0].Panels {
		weights, before, rest := make([]uint16, p.KVLen-start), 0.0, 1.0
		for k, w := range panel.Weights[0] {
			if rest -= w; k < start {
				before += w
			} else {
				weights[k-start] = dashboard.Parts(w)
			}
		}
		a.Weights, a.Before = append(a.Weights, weights), append(a.Before, dashboard.Parts(before))
		if len(p.Options.Sinks) > 0 {
			a.Sink = append(a.Sink, dashboard.Parts(rest))
		}
	}
	if a.Tokens, err = explain.Tokens(input, job, p, a.Start, p.KVLen-start); err != nil {
		return nil, err
	}
	at, err := explain.Tokens(input, job, p, a.Position, 1)
	if err != nil {
		return nil, err
	}
	a.Token = at[0]
	return a, nil
}
