package scatter

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"maps"
	"slices"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	headwaterv1 "headwater.example/proto/headwater/v1"
)

// strip is a run of output rows [from, to) of one problem's output projection, and the blocks of tokens that it still owes.
// The projection is one chain over all heads of a token, so it is shared out by output rows.
type strip struct {
	problem  *problem
	from, to int
	stream   *stream
	owed     map[int]bool // by block
}

// project computes y = context·w_oᵀ from the gathered contexts, for the problems that have w_o; of gradients it computes d_x
// from d_q, d_k and d_v, by the weights that queries, keys and values were made with.
func (r *run) project(ctx context.Context) error {
	if !slices.ContainsFunc(r.problems, func(p *problem) bool { return p.WO != "" }) {
		return nil
	}
	if err := r.gather.finish(); err != nil {
		return err
	}
	r.release(ctx)
	var strips []*strip
	for {
		if err := r.connect(ctx); err != nil {
			return err
		}
		r.phase("projecting")
		if strips == nil {
			strips = r.strips()
		}
		left := 0
		for _, s := range strips {
			left += len(s.owed)
			if s.stream == nil && len(s.owed) > 0 {
				r.assign(ctx, s, strips)
			}
		}
		for left > 0 {
			e, err := r.next(ctx)
			if err != nil {
				return err
			}
			if e.output != nil {
				if err := r.takeOutput(e.stream, e.output, strips); err != nil {
					return err
				}
				left--
			}
			if e.ended != nil {
				if err := r.lose(e.stream, e.ended); err != nil {
					return err
				}
				for _, s := range strips {
					if s.stream == e.stream {
						s.stream = nil
					}
				}
				break
			}
		}
		if left == 0 {
			return nil
		}
	}
}

// release frees the shards, which have answered all that they were asked.
func (r *run) release(ctx context.Context) {
	for _, l := range r.streams {
		r.spawn(ctx, "closing shards", func() {
			for _, load := range l.shards {
				err := l.push(ctx, &headwaterv1.RunRequest{Request: &headwaterv1.RunRequest_ShardClose{ShardClose: &headwaterv1.ShardClose{
					Problem: uint32(load.Problem), Group: uint32(load.Group),
				}}}, nil)
				if err != nil {
					return // the job has ended
				}
			}
		})
	}
}

// strips shares each problem's output rows over the streams by their weights.
func (r *run) strips() []*strip {
	names := slices.Sorted(maps.Keys(r.streams))
	total := 0
	for _, name := range names {
		total += max(int(r.streams[name].identity.GetWeight()), 1)
	}
	var strips []*strip
	for _, p := range r.problems {
		if p.WO == "" {
			continue
		}
		from, weight := 0, 0
		for _, name := range names {
			weight += max(int(r.streams[name].identity.GetWeight()), 1)
			to := p.DModel * weight / total
			if to == from {
				continue
			}
			s := &strip{problem: p, from: from, to: to, owed: map[int]bool{}}
			for b := range p.outputBlocks {
				s.owed[b] = true
			}
			r.progress.Units += uint64(p.outputBlocks)
			strips = append(strips, s)
			from = to
		}
	}
	return strips
}

// assign gives a strip to the stream that owes least, with its rows of w_o.
func (r *run) assign(ctx context.Context, s *strip, strips []*strip) {
	owes := func(l *stream) int {
		n := 0
		for _, t := range strips {
			if t.stream == l {
				n += len(t.owed)
			}
		}
		return n
	}
	names := slices.Sorted(maps.Keys(r.streams))
	s.stream = r.streams[slices.MinFunc(names, func(a, b string) int { return cmp.Compare(owes(r.streams[a]), owes(r.streams[b])) })]
	l, p := s.stream, s.problem
	var asks []ask
	for _, b := range slices.Sorted(maps.Keys(s.owed)) {
		asks = append(asks, ask{block: b, strip: s})
	}
	r.spawn(ctx, "reading weights", func() {
		err := r.outputWeights(p, s.from, s.to-s.from, func(row int, data, bias []byte) error {
			return l.push(ctx, &headwaterv1.RunRequest{Request: &headwaterv1.RunRequest_Weights{Weights: &headwaterv1.WeightBlock{
				Problem: uint32(p.index), Weight: headwaterv1.Weight_WEIGHT_OUTPUT, Row: uint32(row), Data: data, Bias: bias,
			}}}, nil)
		})
		if err != nil {
			r.emit(ctx, event{failed: err})
			return
		}
		l.add(p, asks)
	})
}

// outputWeights cuts rows [first, first+n) of what outputs are made with to messages.
func (r *run) outputWeights(p *problem, first, n int, send func(row int, data, bias []byte) error) error {
	if p.Differentiates() {
		return r.stackedWeights(p, first, n, send)
	}
	return r.weights(p.WO, p.BO, first, n, p.Shape.Heads*p.Shape.VDim, send)
}

// sendOutput reads a block of gathered context, or of gradients, and sends it.
func (r *run) sendOutput(a ask, put func(*headwaterv1.RunRequest) error) error {
	p := a.problem
	start, count := p.outputBlock(a.block)
	out := r.gather.tensors[p.contextOutput()]
	var from io.ReaderAt = r.Result
	if p.Differentiates() {
		from, out = r.scratch, output{offset: p.stackedAt, width: p.stackedWidth()}
	}
	data := make([]byte, count*out.width*4)
	if _, err := from.ReadAt(data, out.offset+int64(start)*int64(out.width)*4); err != nil {
		return fmt.Errorf("read what was gathered: %w", err)
	}
	return put(&headwaterv1.RunRequest{Request: &headwaterv1.RunRequest_Output{Output: &headwaterv1.OutputBlock{
		Problem: uint32(p.index), Block: uint32(a.block), Row: uint32(a.strip.from), Rows: uint32(a.strip.to - a.strip.from),
		Count: uint32(count), Context: data, Start: uint64(start),
	}}})
}

// takeOutput accepts a strip's answer for one block.
func (r *run) takeOutput(l *stream, o *headwaterv1.Output, strips []*strip) error {
	block := int(o.GetBlock())
	sent, _ := l.answered(askKey{int(o.GetProblem()), block, int(o.GetRow())})
	i := slices.IndexFunc(strips, func(s *strip) bool {
		return s.stream == l && s.problem.index == int(o.GetProblem()) && s.from == int(o.GetRow()) && s.owed[block]
	})
	if i < 0 {
		return status.Errorf(codes.Internal, "worker %q projected problem %d, block %d from row %d, which it does not owe", l.name, o.GetProblem(), block, o.GetRow())
	}
	s := strips[i]
	p := s.problem
	start, count := p.outputBlock(block)
	if len(o.GetY()) != count*(s.to-s.from)*4 {
		return status.Errorf(codes.Internal, "worker %q projected %d bytes for %d tokens and %d output rows", l.name, len(o.GetY()), count, s.to-s.from)
	}
	delete(s.owed, block)
	if err := r.gather.put(p.yOutput(), block, start, count, s.from, s.to, floats(o.GetY())); err != nil {
		return err
	}
	l.report.BytesInRaw += uint64(len(o.GetY()))
	l.report.BytesInWire += uint64(len(o.GetY()))
	compute := time.Duration(o.GetComputeNanos())
	l.account(compute, time.Since(sent)-compute)
	r.progress.UnitsDone++
	r.tell(false)
	return nil
}
