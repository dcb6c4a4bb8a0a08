package fanout

import (
	"context"
	"errors"
	"io"
	"slices"

	"google.golang.org/protobuf/proto"

	"headwater.example/attention"
	"headwater.example/internal/contextframe"
	"headwater.example/internal/layerproto"
	"headwater.example/internal/rpc"
	"headwater.example/internal/session"
	headwaterv1 "headwater.example/proto/headwater/v1"
	"headwater.example/shard"
	"headwater.example/tensor"
)

// This file has what is different for a layer in stripes: each of its workers is sent the rows of the splits that it has, and answers
// with parts, which are joined here in the order of the splits.

// askedGroups counts the groups of which a holder answers for a shard, and calls do, unless nil, with each.
func (p *callPart) askedGroups(layer *shard.LayerSpec, do func(group int)) int {
	n, last := 0, -1
	for _, shard := range p.answers {
		if g := layer.GroupOf(shard); g != last {
			if last = g; do != nil {
				do(g)
			}
			n++
		}
	}
	return n
}

// rowsOf returns how many of the appended positions a holder's shards have together.
func (s *Step) rowsOf(p *callPart, layer *shard.LayerSpec) int {
	rows := 0
	for _, shard := range p.groups {
		rows += layer.Stored(shard, int(s.Length), int(s.Append))
	}
	return rows
}

// rowBytes returns the bytes of a query of one group and of one position's tensors.
func (s *Step) rowBytes(layer *shard.LayerSpec) (query, key, value, scale int) {
	one := s.Step
	one.Append = min(s.Append, 1)
	return stepBytes(layer, &one)
}

// partedBytes returns the size of the payload for one holder.
func (s *Step) partedBytes(p *callPart, layer *shard.LayerSpec) int {
	query, key, value, scale := s.rowBytes(layer)
	return p.askedGroups(layer, nil)*query + s.rowsOf(p, layer)*(key+value+2*scale)
}

// splitsOf returns how many splits a holder answers for, and partFloats how many elements the parts of one have.
func (s *Step) splitsOf(p *callPart, layer *shard.LayerSpec) int {
	n, seen := 0, s.SplitsSeen(layer)
	for _, shard := range p.answers {
		n += layer.SplitsBelow(shard, seen)
	}
	return n
}

func (s *Step) partFloats(layer *shard.LayerSpec) int {
	return int(s.Attend) * layer.GroupSize() * (layer.VDim() + 2)
}

// cutParted makes the payload for one holder.
func (s *Step) cutParted(p *callPart, layer *shard.LayerSpec) *rpc.Buffer {
	query, key, value, scale := s.rowBytes(layer)
	b := rpc.NewBuffer(s.partedBytes(p, layer))
	rest := b.Bytes()
	if query > 0 {
		p.askedGroups(layer, func(g int) {
			s.Input.Query(rest[:query], g)
			rest = rest[query:]
		})
	}
	each := func(width int, fill func(in Input, dst []byte, group, from int)) {
		if width == 0 {
			return
		}
		for _, shard := range p.groups {
			layer.Runs(shard, int(s.Length), int(s.Append), func(at, count, _ int) bool {
				fill(s.Input, rest[:count*width], layer.GroupOf(shard), at-int(s.Length))
				rest = rest[count*width:]
				return true
			})
		}
	}
	each(key, Input.Key)
	each(value, Input.Value)
	each(scale, Input.KeyScale)
	each(scale, Input.ValueScale)
	return b
}

// join makes the contexts of the parts that all holders have answered with, and hands them out. A row without a finite context may show
// only here, when the holders have done the step: as after any error, the client takes it back before it goes on.
func (c *Call) join(layer *shard.LayerSpec) error {
	s, each, seen := c.step, c.step.partFloats(layer), c.step.SplitsSeen(layer)
	c.came = append(c.came[:0], make([][]float32, layer.Shards())...)
	for _, p := range c.heard {
		if want := 4 * each * s.splitsOf(p, layer); len(p.response.Payload.Bytes()) != want {
			return wrong(p.holder.Name, "its parts have %d bytes, not the %d of %d splits", len(p.response.Payload.Bytes()), want, s.splitsOf(p, layer))
		}
		rest := p.response.Payload.Floats()
		for _, shard := range p.answers {
			n := each * layer.SplitsBelow(shard, seen)
			c.came[shard], rest = rest[:n], rest[n:]
		}
	}
	for shard, came := range c.came {
		if len(came) != each*layer.SplitsBelow(shard, seen) {
			return wrong(c.heard[0].holder.Name, "nobody answers for %s of layer %d", layer.Name(shard), s.Layer)
		}
	}
	heads := layer.GroupSize()
	rows := int(s.Attend) * heads
	c.context, c.lse = resize(c.context, rows*layer.VDim()), resize(c.lse, rows)
	for g := range layer.KVHeads {
		c.splits = c.splits[:0]
		for split := range seen {
			x := c.came[g*layer.Stripes+split%layer.Stripes][split/layer.Stripes*each:][:each]
			c.splits = append(c.splits, attention.Part{M: x[:rows], L: x[rows : 2*rows], O: x[2*rows:]})
		}
		query := attention.Query{Tokens: int(s.Attend), Heads: heads, FirstHead: g * heads}
		err := c.joiner.Join(c.splits, query, layer.VDim(), layer.Options.Sinks, attention.Output{Context: c.context, LSE: c.lse})
		var row *attention.RowError
		if errors.As(err, &row) {
			e := session.Errorf(session.NotFinite, "session %x: layer %d: %v", s.Session, s.Layer, row)
			e.Why.Layer = s.Layer
			return e
		}
		if err == nil {
			err = c.narrow(layer)
		}
		if err != nil {
			return err
		}
		s.Output.Take(g, c.context, c.lse)
	}
	clear(c.came)
	clear(c.splits)
	return nil
}

// narrow makes of a group's context what is left of it in the step's codec, as a worker does that gives contexts.
func (c *Call) narrow(layer *shard.LayerSpec) error {
	s := c.step
	codec, framed := layerproto.ReadStepCodec(s.Codec)
	if !framed || codec == contextframe.Exact {
		return nil
	}
	var err error
	c.frame, err = contextframe.Encode(c.frame[:0], codec, 0, int(s.Attend), layer.GroupSize(), layer.VDim(), c.context, c.lse)
	if err == nil {
		_, err = contextframe.Decode(c.frame, c.context, c.lse)
	}
	var narrow *tensor.RangeError
	if errors.As(err, &narrow) {
		e := session.Errorf(session.NotFinite, "session %x: layer %d: %v", s.Session, s.Layer, err)
		e.Why.Layer = s.Layer
		return e
	}
	return err
}

// exportStripes exports groups of which each split is at one of several shards, a stream from each.
func (c *Conns) exportStripes(ctx context.Context, h *Holding, req *headwaterv1.ExportSessionRequest, do func(*headwaterv1.ExportSessionResponse) error) error {
	for g := range h.layers[req.GetLayer()].KVHeads {
		if len(req.GetGroups()) > 0 && !slices.Contains(req.GetGroups(), uint32(g)) {
			continue
		}
		if err := c.exportStriped(ctx, h, req, g, do); err != nil {
			return err
		}
	}
	return nil
}

// stripe is the stream of one shard of a group, and the newest message of it that was not handed out, nil at the end.
type stripe struct {
	holder string
	stream headwaterv1.SessionService_ExportSessionClient
	head   *headwaterv1.ExportSessionResponse
}

func (s *stripe) next() (err error) {
	if s.head, err = s.stream.Recv(); errors.Is(err, io.EOF) {
		s.head, err = nil, nil
	}
	if err != nil {
		return callError(s.holder, err)
	}
	return nil
}

// exportStriped exports one group.
func (c *Conns) exportStriped(ctx context.Context, h *Holding, req *headwaterv1.ExportSessionRequest, group int, do func(*headwaterv1.ExportSessionResponse) error) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	layer := &h.layers[req.GetLayer()]
	stripes := make([]stripe, layer.Stripes)
	for i := range stripes {
		shard := group*layer.Stripes + i
		own := proto.CloneOf(req)
		own.Groups = []uint32{uint32(shard)}
		at := slices.IndexFunc(h.parts[req.GetLayer()], func(p part) bool { return slices.Contains(p.answers, shard) }) // NewHolding sees to it
		holder := h.parts[req.GetLayer()][at].holder
		conn, err := c.Use(holder.peer())
		if err != nil {
			return lost(holder.Name, err)
		}
		defer conn.Release()
		stripes[i].holder = holder.Name
		if stripes[i].stream, err = headwaterv1.NewSessionServiceClient(conn).ExportSession(ctx, own); err != nil {
			return callError(holder.Name, err)
		}
	}
	for i := range stripes {
		if err := stripes[i].next(); err != nil {
			return err
		}
	}
	for {
		var first *stripe
		for i := range stripes {
			if s := &stripes[i]; s.head != nil && (first == nil || s.head.GetStart() < first.head.GetStart()) {
				first = s
			}
		}
		if first == nil {
			return nil
		}
		first.head.Group = uint32(group)
		if err := do(first.head); err != nil {
			return err
		}
		if err := first.next(); err != nil {
			return err
		}
	}
}
