package sessions

import (
	"cmp"
	"context"
	"errors"
	"math"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"headwater.example/attention"
	"headwater.example/attention/reference"
	"headwater.example/internal/kvcache"
	"headwater.example/internal/rpc"
	headwaterv1 "headwater.example/proto/headwater/v1"
	"headwater.example/shard"
	"headwater.example/tensor"
)

const (
	// maxWatches bounds who watch at once.
	maxWatches = 64
	// watchedPositions is for how many positions weights are worked out unless it is said, mostWatched for how many at most, and
	// mostWeights for how many positions of all heads together.
	watchedPositions = 1 << 10
	mostWatched      = 1 << 12
	mostWeights      = 1 << 16
	// watchEvery is how often a watcher is sent weights at most, watchAlive how often it is looked whether the session is still there.
	watchEvery = 250 * time.Millisecond
	watchAlive = 5 * time.Second
	// watchBlock is how many keys are read at once, for which the session's steps wait.
	watchBlock = 512
)

// watches are who watch queries. Steps look no further than at a number while there are none.
type watches struct {
	n   atomic.Int64
	mu  sync.Mutex
	all map[*watch]struct{}
}

// watch is one who watches the queries of a group.
type watch struct {
	session kvcache.SessionID
	layer   uint32
	group   shard.Group
	queries chan *query // one element: the newest
}

// query is the last query token of a step, as one group was asked it.
type query struct {
	position uint64
	q        []float32 // [heads, head_dim]
	lse      []float32 // [heads]
	length   uint64    // of the layer then
	hash     uint64    // of the group then
	mask     []byte    // [tree], of the newest positions then; nil shows all
}

func (w *watches) add(one *watch) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if len(w.all) >= maxWatches {
		return rpc.Full("%d callers watch the attention of sessions here, the most that are allowed", maxWatches)
	}
	if w.all == nil {
		w.all = map[*watch]struct{}{}
	}
	w.all[one] = struct{}{}
	w.n.Add(1)
	return nil
}

func (w *watches) remove(one *watch) {
	w.mu.Lock()
	defer w.mu.Unlock()
	delete(w.all, one)
	w.n.Add(-1)
}

// leave leaves a step's last query for those who watch it, with the LSE [groups, attend, heads] of its answer.
func (w *watches) leave(t *task, lse []float32) {
	if w.n.Load() == 0 {
		return
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	m, st := &t.request.Step, &t.step
	for one := range w.all {
		i := slices.Index(st.groups, one.group)
		if one.session != kvcache.SessionID(m.Session) || one.layer != m.Layer || i < 0 {
			continue
		}
		tokens, dim := int(m.Attend), st.query.Heads*st.pending.View.Layer.Layout.HeadDim()
		last := (i+1)*tokens - 1
		q := &query{
			position: m.QueryPosition + uint64(tokens) - 1, q: slices.Clone(st.q[last*dim:][:dim]), lse: slices.Clone(lse[last*st.heads:][:st.heads]),
			length: t.response.Result.Length, hash: t.response.Result.Hashes[st.at[i]],
		}
		if tree := int(m.Tree); tree > 0 {
			q.mask = slices.Clone(st.mask[(tokens-1)*tree:][:tree])
		}
		select {
		case <-one.queries:
		default:
		}
		one.queries <- q
	}
}

// WatchAttention sends where the queries of a group look, until the caller leaves or the session ends.
func (s *Service) WatchAttention(m *headwaterv1.WatchAttentionRequest, stream grpc.ServerStreamingServer[headwaterv1.WatchAttentionResponse]) error {
	if err := s.m.Begin(1); err != nil {
		return err
	}
	defer s.m.End()
	id, err := sessionID("session", m.GetSession())
	if err != nil {
		return err
	}
	layer, groups, err := s.m.Store.Layer(id, shard.Layer(m.GetLayer()), 0)
	if err != nil {
		return refusal(err)
	}
	if layer.Striped() {
		return invalidSession("session %s: layer %d is held in %d stripes: no worker has all positions that its queries see: watch a session that is held whole, as one restored from a snapshot of this one", id, m.GetLayer(), layer.Stripes)
	}
	one := &watch{session: id, layer: m.GetLayer(), group: shard.Group(m.GetGroup()), queries: make(chan *query, 1)}
	if int64(m.GetGroup()) >= int64(layer.KVHeads) || !slices.Contains(groups, one.group) {
		return invalidSession("session %s: layer %d group %d: it is not held here", id, m.GetLayer(), m.GetGroup())
	}
	if err := s.watches.add(one); err != nil {
		return err
	}
	defer s.watches.remove(one)
	heads := layer.Heads / layer.KVHeads
	most := max(min(cmp.Or(int(min(m.GetPositions(), mostWatched)), watchedPositions), mostWeights/heads), 1)
	alive, ready := time.NewTicker(watchAlive), time.NewTicker(watchEvery)
	defer alive.Stop()
	defer ready.Stop()
	for {
		select {
		case <-stream.Context().Done():
			return status.FromContextError(stream.Context().Err()).Err()
		case <-s.m.Stopping():
			return status.Error(codes.Unavailable, s.m.StoppingText())
		case <-alive.C:
			if _, err := s.m.Store.Peek(id); err != nil {
				return refusal(err)
			}
			continue
		case q := <-one.queries:
			if err := s.sendWeights(stream, one, layer, q, most); err != nil {
				return err
			}
		}
		select { // The queries of the meantime are left out.
		case <-ready.C:
		case <-stream.Context().Done():
		case <-s.m.Stopping():
		}
	}
}

// errOvertaken is that the positions are not those any more that a query saw. There will be another query.
var errOvertaken = errors.New("the session was truncated meanwhile")

// sendWeights sends the weights of a query, unless its positions are not there any more.
func (s *Service) sendWeights(stream grpc.ServerStreamingServer[headwaterv1.WatchAttentionResponse], one *watch, layer *shard.LayerSpec, q *query, most int) error {
	p := s.look(one, layer, q, most)
	room := int64(p.KVTokens) * int64(8*layer.Layout.HeadDim()+layer.Layout.VRowBytes()+8*len(q.lse)+16)
	share := rpc.ShareOf(stream.Context())
	if err := share.TakeAnswer(stream.Context(), room); err != nil {
		return s.noRoom(err)
	}
	defer share.GiveAnswer(room)
	var refused *kvcache.Error
	switch err := s.keys(stream.Context(), one, layer, q, &p); {
	case errors.Is(err, errOvertaken), errors.As(err, &refused) && refused.Reason != kvcache.Unknown:
		return nil
	case err != nil:
		return refusal(err)
	}
	start := int64(q.position) - p.Offset
	out := &headwaterv1.WatchAttentionResponse{
		Position: q.position, FirstHead: uint32(int(one.group) * len(q.lse)), Start: uint64(start), Count: uint32(p.KVTokens), Weights: make([]byte, 0, 4*p.KVTokens*len(q.lse)),
	}
	for h, lse := range q.lse {
		weights, before, sink := weightsOf(&p, layer, int(out.GetFirstHead())+h, h, float64(lse))
		out.Weights = append(out.Weights, floatBytes(weights)...)
		out.Before = append(out.Before, before)
		if len(layer.Options.Sinks) > 0 {
			out.Sink = append(out.Sink, sink)
		}
	}
	var err error
	if out.Tokens, err = s.m.Store.Tokens(one.session, int(start), p.KVTokens); err != nil {
		return refusal(err)
	}
	return stream.Send(out)
}

// look is the problem of one query over the newest positions that it sees, without keys and heads' own. Positions count from the
// first of these: options know only distances.
func (s *Service) look(one *watch, layer *shard.LayerSpec, q *query, most int) reference.Problem {
	o, length, position := layer.Options, int64(q.length), int64(q.position)
	end := length
	if o.Causal {
		end = min(end, position+1)
	}
	if o.WindowRight >= 0 {
		end = min(end, position+o.WindowRight+1)
	}
	start := max(end-int64(most), 0)
	if o.WindowLeft >= 0 {
		start = max(start, position-o.WindowLeft)
	}
	n := int(max(end-start, 0))
	p := reference.Problem{
		Tokens: 1, KVTokens: n, KVLen: n, Heads: 1, KVHeads: 1, HeadDim: layer.Layout.HeadDim(), VDim: 1, V: make([]float64, n),
		Offset: position - start, Causal: o.Causal, WindowLeft: o.WindowLeft, WindowRight: o.WindowRight, Scale: float64(o.Scale), Softcap: float64(o.Softcap),
	}
	for _, x := range q.q {
		p.Q = append(p.Q, float64(x))
	}
	if q.mask != nil {
		p.Mask, p.MaskHeads = make([]byte, n), 1
		for i := range p.Mask {
			p.Mask[i] = 1
			if at := start + int64(i) - (length - int64(len(q.mask))); at >= 0 {
				p.Mask[i] = q.mask[at]
			}
		}
	}
	return p
}

// keys reads the keys of a problem as they are stored, and on to the end of what the query could see: the hash there says whether
// they are what it saw.
func (s *Service) keys(ctx context.Context, one *watch, layer *shard.LayerSpec, q *query, p *reference.Problem) error {
	l, start := layer.Layout, int(int64(q.position)-p.Offset)
	rows := attention.Rows{K: make([]byte, watchBlock*l.KRowBytes()), V: make([]byte, watchBlock*l.VRowBytes())}
	if l.DType() == tensor.I8 {
		rows.KScale, rows.VScale = make([]float32, watchBlock), make([]float32, watchBlock)
	}
	narrow := make([]float32, watchBlock*l.HeadDim())
	p.K = make([]float64, 0, p.KVTokens*l.HeadDim())
	hash, known := uint64(0), false
	for at, end := start, int(q.length); at < end; {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		n := min(watchBlock, end-at)
		block := attention.Rows{K: rows.K[:n*l.KRowBytes()], V: rows.V[:n*l.VRowBytes()]}
		if rows.KScale != nil {
			block.KScale, block.VScale = rows.KScale[:n], rows.VScale[:n]
		}
		before, after, err := s.m.Store.Export(one.session, shard.Layer(one.layer), one.group, at, n, block)
		if err != nil {
			return err
		}
		if known && before != hash {
			return errOvertaken
		}
		hash, known = after, true
		if err := tensor.Widen(narrow[:n*l.HeadDim()], block.K, l.DType()); err != nil {
			return err
		}
		for i := range min(n, max(start+p.KVTokens-at, 0)) {
			scale := 1.0
			if block.KScale != nil {
				scale = float64(block.KScale[i])
			}
			for _, x := range narrow[i*l.HeadDim():][:l.HeadDim()] {
				p.K = append(p.K, scale*float64(x))
			}
		}
		at += n
	}
	if known && hash != q.hash {
		return errOvertaken
	}
	return nil
}

// weightsOf returns a head's weights of a problem's positions, of those before these together, and of its sink. The kernel's LSE has
// all that the query saw.
func weightsOf(p *reference.Problem, layer *shard.LayerSpec, head, h int, lse float64) (weights []float32, before, sink float32) {
	one := *p
	one.Q = p.Q[h*p.HeadDim:][:p.HeadDim]
	if slopes := layer.Options.AlibiSlopes; len(slopes) > 0 {
		one.AlibiSlopes = []float64{float64(slopes[head])}
	}
	of, seen := reference.Weights(one, 0, 0)
	weights = make([]float32, len(of))
	if math.IsInf(lse, -1) {
		return weights, 0, 0
	}
	rest, share := 1.0, math.Exp(seen-lse)
	for i, w := range of {
		weights[i] = float32(w * share)
		rest -= w * share
	}
	if sinks := layer.Options.Sinks; len(sinks) > 0 {
		took := math.Exp(float64(sinks[head]) - lse)
		sink, rest = float32(took), rest-took
	}
	return weights, float32(max(rest, 0)), sink // below 0 is rounding
}
