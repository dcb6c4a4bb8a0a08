package fanout

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"

	"golang.org/x/sync/errgroup"

	"headwater.example/attention"
	"headwater.example/internal/layerproto"
	"headwater.example/internal/rpc"
	"headwater.example/internal/session"
	headwaterv1 "headwater.example/proto/headwater/v1"
	"headwater.example/shard"
	"headwater.example/tensor"
)

// This file copies positions of a session to a restoration's target, block by block, through this process: for a target that can't fetch
// them itself (pull.go). While some blocks are appended the next ones are on their way, so that the copy does not wait for each message
// there and back.

const (
	// copyBytes is about how many bytes of keys and values a block has.
	copyBytes = 1 << 20
	// copyAhead is how many blocks are fetched before the target has taken the ones before.
	copyAhead = 4
)

// block is a run of positions of a layer on its way to the target.
type block struct {
	layer    int
	start, n uint64
	before   *block // of the same layer, nil for the first
	step     session.Step
	payload  *rpc.Buffer   // nil before it is fetched, and once it was sent
	rows     []int         // by group of the target, how many of the positions it has: all, unless the layer is in stripes
	after    []uint64      // by group of the target, the hash after it where it has any
	fetched  chan struct{} // closed once it was fetched
	appended chan struct{} // closed once the target has it
}

// follow copies what the session's holders have up to these lengths.
func (r *restore) follow(ctx context.Context, lengths []uint64) error {
	blocks := r.blocks(lengths)
	if len(blocks) == 0 {
		return nil
	}
	if r.pulls != nil {
		err := r.pull(ctx, blocks)
		var cannot cannotPullError
		if !errors.As(err, &cannot) {
			return err
		}
		r.pulls = nil
		cmp.Or(r.Log, slog.Default()).Info("a copy of a session goes through the coordinator, as the worker that gets it can not fetch it from those that have it",
			"session", fmt.Sprintf("%x", r.state.GetSession()), "worker", r.target.Name, "error", cannot.why)
		blocks = r.blocks(lengths)
	}
	if err := r.lanes(); err != nil {
		return err
	}
	tasks, ctx := errgroup.WithContext(ctx)
	run := func(task func() error) {
		tasks.Go(func() error { return rpc.Guard(r.Log, "copying a session", task) })
	}
	asked, sent := make(chan *block, copyAhead), make(chan *block, copyAhead)
	run(func() error {
		defer close(asked)
		return r.fetchAll(ctx, blocks, asked, run)
	})
	run(func() error {
		defer close(sent)
		return r.sendAll(ctx, asked, sent)
	})
	run(func() error { return r.receiveAll(sent) })
	err := tasks.Wait()
	for _, b := range blocks {
		b.payload.Free()
	}
	return err
}

// lanes opens a lane to the target, unless there is one.
func (r *restore) lanes() (err error) {
	if r.stream != nil {
		return nil
	}
	if r.stream, _, err = r.openLane(r.ctx, r.conn, r.target, r.lane, func() error { return r.conn.Alive(r.ctx) }); err != nil {
		return lost(r.target.Name, err)
	}
	return nil
}

// blocks cuts what the target lacks up to these lengths. The layers take turns: of each one block at a time can be appended.
func (r *restore) blocks(lengths []uint64) (all []*block) {
	last := make([]*block, len(r.layers))
	for more := true; more; {
		more = false
		for l, groups := range r.target.Groups {
			at := r.filled[l].length
			if last[l] != nil {
				at = last[l].start + last[l].n
			}
			if len(groups) == 0 || at >= lengths[l] {
				continue
			}
			n := uint64(max(1, min(copyBytes/r.row(l), shard.MaxStepTokens)))
			if n > attention.PageLen {
				n -= (at + n) % attention.PageLen // blocks end with a page, where a holder has stored the hash
			}
			n = min(n, lengths[l]-at)
			b := &block{layer: l, start: at, n: n, before: last[l], fetched: make(chan struct{}), appended: make(chan struct{})}
			b.step = session.Step{
				Session: r.temp, Epoch: 1, Truncations: r.cuts, Layer: uint32(l), Length: at, Append: uint32(n), Encoding: layerproto.StorageType(r.layers[l].Storage()),
				AppendID: r.NewID(),
			}
			all, last[l], more = append(all, b), b, true
		}
	}
	return all
}

// fetchAll asks the session's holders for blocks, one after the other, and lets each be read beside that.
func (r *restore) fetchAll(ctx context.Context, blocks []*block, asked chan<- *block, run func(func() error)) error {
	for _, b := range blocks {
		size := b.step.Sizes(&r.layers[b.layer], r.held(b.layer)).Total()
		if r.OnCopy != nil {
			if err := r.OnCopy(ctx, int(size), r.still); err != nil {
				return err
			}
		}
		x, err := r.openExport(ctx, r.from, r.wanted(b.layer, b.start, b.n))
		if err != nil {
			x.close()
			return err
		}
		x.reuse = true
		b.payload = rpc.NewBuffer(int(size))
		run(func() error {
			defer x.close()
			return r.fetch(x, b)
		})
		select {
		case asked <- b:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return nil
}

// held returns the target's groups of a layer.
func (r *restore) held(layer int) []shard.Group {
	held := make([]shard.Group, len(r.target.Groups[layer]))
	for i, g := range r.target.Groups[layer] {
		held[i] = shard.Group(g)
	}
	return held
}

// wanted asks for the rows of the target's groups of a layer.
func (r *restore) wanted(layer int, start, count uint64) *headwaterv1.ExportSessionRequest {
	req := &headwaterv1.ExportSessionRequest{Session: r.state.GetSession(), Layer: uint32(layer), Start: start, Count: count, StoredHashes: true}
	for _, g := range r.target.Groups[layer] {
		req.Groups = append(req.Groups, uint32(g))
	}
	return req
}

// index returns the index of a message's group among those of the target.
func (r *restore) index(layer int, m *headwaterv1.ExportSessionResponse) (int, error) {
	i, ok := slices.BinarySearch(r.target.Groups[layer], int(m.GetGroup()))
	if !ok {
		return 0, wrong("", "group %d of layer %d was not asked for", m.GetGroup(), layer)
	}
	return i, nil
}

// fetch reads a block.
func (r *restore) fetch(x *exporting, b *block) error {
	layer, groups := &r.layers[b.layer], r.target.Groups[b.layer]
	sizes, bytes := b.step.Sizes(layer, r.held(b.layer)), b.payload.Bytes()
	have, first := make([]int, len(groups)), make([]int, len(groups)) // rows that came, and those of the payload before each group's
	b.after, b.rows = make([]uint64, len(groups)), make([]int, len(groups))
	for i, g := range groups {
		if b.rows[i] = layer.Stored(g, int(b.start), int(b.n)); i > 0 {
			first[i] = first[i-1] + b.rows[i-1]
		}
	}
	err := x.read(func(m *headwaterv1.ExportSessionResponse) error {
		i, err := r.index(b.layer, m)
		if err != nil || m.GetStart() < b.start || m.GetStart() > b.start+b.n {
			return err // what is missing is seen below
		}
		at := layer.Stored(groups[i], int(b.start), int(m.GetStart()-b.start))
		if at != have[i] || at+int(m.GetCount()) > b.rows[i] {
			return nil
		}
		scale := 0
		if layer.Storage() == tensor.I8 {
			scale = 4
		}
		put := func(from int64, width int, rows []byte) {
			if len(rows) == width*int(m.GetCount()) {
				copy(bytes[from+int64(width)*int64(first[i]+at):], rows)
			}
		}
		put(0, layer.HeadDim()*layer.Storage().Size(), m.GetK())
		put(sizes.K, layer.VDim()*layer.Storage().Size(), m.GetV())
		put(sizes.K+sizes.V, scale, m.GetKScale())
		put(sizes.K+sizes.V+sizes.Scale, scale, m.GetVScale())
		have[i] += int(m.GetCount())
		b.after[i] = m.GetHashAfter()
		return nil
	})
	if err != nil {
		return err
	}
	if !slices.Equal(have, b.rows) {
		return errChanged
	}
	close(b.fetched)
	return nil
}

// sendAll appends blocks once they were fetched. One follows those of its layer that the target has.
func (r *restore) sendAll(ctx context.Context, asked <-chan *block, sent chan<- *block) error {
	for b := range asked {
		ready := []chan struct{}{b.fetched}
		if b.before != nil {
			ready = append(ready, b.before.appended)
		}
		for _, done := range ready {
			select {
			case <-done:
			case <-ctx.Done():
				return ctx.Err()
			}
		}
		f, payload := &r.filled[b.layer], b.payload
		b.step.Length, b.step.Hashes, b.step.Chain = f.length, f.hashes, f.chain
		b.payload = nil
		r.steps++
		if err := r.stream.Send(&session.Request{ID: r.steps, Step: b.step, Payload: payload}); err != nil {
			return lost(r.target.Name, err)
		}
		select {
		case sent <- b:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return nil
}

// receiveAll takes the target's answers.
func (r *restore) receiveAll(sent <-chan *block) error {
	for b := range sent {
		var resp session.Response
		if err := r.stream.Recv(&resp); err != nil {
			return lost(r.target.Name, err)
		}
		resp.Payload.Free()
		f := &r.filled[b.layer]
		for i, n := range b.rows {
			if n == 0 {
				b.after[i] = f.hashes[i]
			}
		}
		switch x := &resp.Result; {
		case x.Err != nil:
			return refused(r.target.Name, x.Err)
		case !slices.Equal(x.Hashes, b.after):
			return errChanged // the session was truncated in between, or a row was damaged on its way
		default:
			f.length, f.chain = x.Length, x.Chain
			copy(f.hashes, x.Hashes)
		}
		close(b.appended)
	}
	return nil
}
