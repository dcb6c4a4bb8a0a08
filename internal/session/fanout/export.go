package fanout

import (
	"context"
	"errors"
	"io"
	"slices"

	"google.golang.org/protobuf/proto"

	"headwater.example/attention"
	"headwater.example/internal/rpc"
	"headwater.example/internal/session"
	headwaterv1 "headwater.example/proto/headwater/v1"
	"headwater.example/shard"
)

// Export reads keys and values of one layer and calls do with each message, ascending by group, then by position. If a holder is lost
// on the way, it goes on where it was with those that have the rest. The chained hashes prove that what they send follows what was
// sent.
func (c *Conns) Export(ctx context.Context, p *Place, req *headwaterv1.ExportSessionRequest, do func(*headwaterv1.ExportSessionResponse) error) error {
	x := &exported{req: req, hashes: map[int]uint64{}}
	var own error // of the caller: no other holder helps
	err := c.past(ctx, p, func(h *Holding) error {
		if int64(req.GetLayer()) >= int64(len(h.layers)) {
			return invalid("layer %d of %d", req.GetLayer(), len(h.layers))
		}
		x.layer = &h.layers[req.GetLayer()]
		for _, rest := range x.rest(h) {
			err := c.exportGroups(ctx, h, rest, func(m *headwaterv1.ExportSessionResponse) error {
				if err := x.follow(m); err != nil {
					return err
				}
				own = do(m)
				return own
			})
			if own != nil {
				return nil
			}
			if err != nil {
				return err
			}
		}
		return nil
	})
	if own != nil {
		return own
	}
	return err
}

// exported is how far an export has come.
type exported struct {
	req   *headwaterv1.ExportSessionRequest
	layer *shard.LayerSpec
	begun bool
	group uint32 // of the newest message
	next  uint64 // position after it
	// hashes are, of the group's shards, those after what was sent of them.
	hashes map[int]uint64
}

// follow notes a message, which must go on where the newest one of its group has ended.
func (x *exported) follow(m *headwaterv1.ExportSessionResponse) error {
	if !x.begun || m.GetGroup() != x.group {
		clear(x.hashes)
	}
	stripe := 0
	if x.layer.Striped() {
		stripe = int(m.GetStart()/attention.SplitLen) % x.layer.Stripes
	}
	if before, sent := x.hashes[stripe]; sent && m.GetStart() == x.next && m.GetHashBefore() != before {
		return session.Errorf(session.Different, "session %x: layer %d group %d has other positions before %d than it had: it was changed while it was read", x.req.GetSession(), x.req.GetLayer(), x.group, x.next)
	}
	x.begun, x.group, x.next, x.hashes[stripe] = true, m.GetGroup(), m.GetStart()+uint64(m.GetCount()), m.GetHashAfter()
	return nil
}

// rest returns what is still to be asked for: the rest of a group that has begun, and the groups after it.
func (x *exported) rest(h *Holding) (all []*headwaterv1.ExportSessionRequest) {
	if !x.begun {
		return []*headwaterv1.ExportSessionRequest{x.req}
	}
	if done := x.next - x.req.GetStart(); x.req.GetCount() == 0 || done < x.req.GetCount() {
		one := proto.CloneOf(x.req)
		one.Start, one.Groups = x.next, []uint32{x.group}
		if x.req.GetCount() > 0 {
			one.Count -= done
		}
		all = append(all, one)
	}
	others := proto.CloneOf(x.req)
	others.Groups = nil
	for g := int64(x.group) + 1; g < int64(h.layers[x.req.GetLayer()].KVHeads); g++ {
		if len(x.req.GetGroups()) == 0 || slices.Contains(x.req.GetGroups(), uint32(g)) {
			others.Groups = append(others.Groups, uint32(g))
		}
	}
	if len(others.GetGroups()) > 0 {
		all = append(all, others)
	}
	return all
}

// exportGroups exports whole groups.
func (c *Conns) exportGroups(ctx context.Context, h *Holding, req *headwaterv1.ExportSessionRequest, do func(*headwaterv1.ExportSessionResponse) error) error {
	if layer := &h.layers[req.GetLayer()]; !h.parts[req.GetLayer()][0].holder.parted(layer) {
		return c.export(ctx, h, req, do)
	}
	return c.heeded(ctx, h, func(ctx context.Context) error { return c.exportStripes(ctx, h, req, do) })
}

// export exports held groups: of a layer in stripes, shards.
func (c *Conns) export(ctx context.Context, h *Holding, req *headwaterv1.ExportSessionRequest, do func(*headwaterv1.ExportSessionResponse) error) error {
	return c.heeded(ctx, h, func(ctx context.Context) error { return c.exportParts(ctx, h, req, do) })
}

// heeded gives an export up if a holder hangs which the others can replace.
func (c *Conns) heeded(ctx context.Context, h *Holding, export func(context.Context) error) error {
	ctx, stop := c.heed(ctx, func() bool { return c.silent(h) != nil }, h.holders...)
	err := export(ctx)
	if silent := stop(); err != nil && silent != nil {
		return silent
	}
	return err
}

func (c *Conns) exportParts(ctx context.Context, h *Holding, req *headwaterv1.ExportSessionRequest, do func(*headwaterv1.ExportSessionResponse) error) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	x, err := c.openExport(ctx, h, req)
	defer x.close()
	if err != nil {
		return err
	}
	return x.read(do)
}

// exporting is an export that was asked for, of one layer. Its streams end with the context that they were opened with.
type exporting struct {
	layer   uint32
	parts   []part
	owner   []int // by group, the part that is asked for it, or -1
	streams []headwaterv1.SessionService_ExportSessionClient
	heads   []*headwaterv1.ExportSessionResponse // by part, the message that is not given out yet
	memory  []*rpc.Buffer                        // by part, where that lies
	reuse   bool                                 // nothing of a message is used once it was given out
	conns   []*rpc.Conn
}

// close ends the use of connections, also after an error of openExport.
func (x *exporting) close() {
	for _, conn := range x.conns {
		conn.Release()
	}
}

// openExport asks the holders that answer for what is to be exported, and waits for nothing.
func (c *Conns) openExport(ctx context.Context, h *Holding, req *headwaterv1.ExportSessionRequest) (*exporting, error) {
	parts := h.parts[req.GetLayer()]
	x := &exporting{
		layer: req.GetLayer(), parts: parts, owner: slices.Repeat([]int{-1}, h.layers[req.GetLayer()].Shards()),
		streams: make([]headwaterv1.SessionService_ExportSessionClient, len(parts)), heads: make([]*headwaterv1.ExportSessionResponse, len(parts)),
		memory: make([]*rpc.Buffer, len(parts)),
	}
	for i, p := range parts {
		own := p.asked(req)
		if own == nil {
			continue
		}
		for _, g := range own.GetGroups() {
			x.owner[g] = i
		}
		if p.holder.Groups == nil && len(own.GetGroups()) == len(p.groups) {
			own.Groups = nil
		} // else they are named: the holder may have more of the session by now
		conn, err := c.Use(p.holder.peer())
		if err != nil {
			return x, lost(p.holder.Name, err)
		}
		x.conns = append(x.conns, conn)
		if x.streams[i], err = headwaterv1.NewSessionServiceClient(conn).ExportSession(ctx, own); err != nil {
			return x, callError(p.holder.Name, err)
		}
	}
	return x, nil
}

// next receives the next message of a part, nil after the last.
func (x *exporting) next(i int) (err error) {
	if x.streams[i] == nil {
		return nil
	}
	if x.reuse {
		x.memory[i].Free()
	}
	x.heads[i] = new(headwaterv1.ExportSessionResponse)
	if x.memory[i], err = rpc.RecvBulk(x.streams[i], x.heads[i]); errors.Is(err, io.EOF) {
		x.heads[i] = nil
		return nil
	} else if err != nil {
		return callError(x.parts[i].holder.Name, err)
	}
	return nil
}

// read calls do with each message, ascending by group, then by position.
func (x *exporting) read(do func(*headwaterv1.ExportSessionResponse) error) error {
	for i := range x.parts {
		if err := x.next(i); err != nil {
			return err
		}
	}
	for g, i := range x.owner {
		for i >= 0 && x.heads[i] != nil && int64(x.heads[i].GetGroup()) == int64(g) {
			if err := do(x.heads[i]); err != nil {
				return err
			}
			if err := x.next(i); err != nil {
				return err
			}
		}
	}
	for i, m := range x.heads {
		if m != nil {
			return wrong(x.parts[i].holder.Name, "it sends group %d of layer %d out of turn", m.GetGroup(), x.layer)
		}
	}
	return nil
}

// asked is what a holder is asked for of an export: the groups that it answers for. It is nil if these are none.
func (p *part) asked(req *headwaterv1.ExportSessionRequest) *headwaterv1.ExportSessionRequest {
	own := proto.CloneOf(req)
	own.Groups = nil
	for _, g := range p.answers {
		if len(req.GetGroups()) == 0 || slices.Contains(req.GetGroups(), uint32(g)) {
			own.Groups = append(own.Groups, uint32(g))
		}
	}
	if len(own.GetGroups()) == 0 {
		return nil
	}
	return own
}
