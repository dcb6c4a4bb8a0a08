package fanout

import (
	"context"
	"slices"

	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"headwater.example/internal/rpc"
	"headwater.example/internal/session"
	headwaterv1 "headwater.example/proto/headwater/v1"
	"headwater.example/shard"
)

// This file lets a restoration's target fetch positions of a session from those that hold them, block by block: what is copied goes from
// worker to worker. What is decided stays here: which positions come next and when, under which epoch, and what becomes of them.

// pullAhead is how many blocks the target is told of before it has those before.
const pullAhead = 8

// pulls is a call by which a target fetches.
type pulls struct {
	stream headwaterv1.FillService_FillSessionClient
	told   *headwaterv1.Epoch // of the session, as the target knows it
}

// cannotPullError is the error of a target that can't fetch: it is too old, or does not reach a source.
type cannotPullError struct{ why string }

func (e cannotPullError) Error() string { return e.why }

func (r *restore) openPulls() (*pulls, error) {
	stream, err := headwaterv1.NewFillServiceClient(r.conn).FillSession(r.ctx)
	return &pulls{stream: stream}, err
}

// pull lets the target fetch blocks.
func (r *restore) pull(ctx context.Context, blocks []*block) error {
	tasks, ctx := errgroup.WithContext(ctx)
	asked := make(chan *block, pullAhead)
	tasks.Go(func() error {
		return rpc.Guard(r.Log, "copying a session", func() error {
			defer close(asked)
			return r.tellAll(ctx, blocks, asked)
		})
	})
	tasks.Go(func() error {
		return rpc.Guard(r.Log, "copying a session", func() error { return r.hearAll(asked) })
	})
	return tasks.Wait()
}

// tellAll tells the target of blocks. If it can't, the target's answer says why.
func (r *restore) tellAll(ctx context.Context, blocks []*block, asked chan<- *block) error {
	if p := r.pulls; p.told == nil || compareEpochs(p.told, r.epoch) != 0 {
		p.told = r.epoch
		_ = p.stream.Send(&headwaterv1.FillSessionRequest{Message: &headwaterv1.FillSessionRequest_From{From: r.source()}})
	}
	far := r.far()
	for _, b := range blocks {
		if r.OnCopy != nil {
			if err := r.OnCopy(ctx, int(b.step.Sizes(&r.layers[b.layer], far[b.layer]).Total()), r.still); err != nil {
				return err
			}
		}
		select {
		case asked <- b:
		case <-ctx.Done():
			return ctx.Err()
		}
		_ = r.pulls.stream.Send(&headwaterv1.FillSessionRequest{Message: &headwaterv1.FillSessionRequest_Block{Block: &headwaterv1.FillBlock{
			Layer: uint32(b.layer), Start: b.start, Count: b.n, Truncations: r.cuts, AppendId: b.step.AppendID,
		}}})
	}
	return nil
}

// hearAll takes the target's answers.
func (r *restore) hearAll(asked <-chan *block) error {
	for b := range asked {
		resp, err := r.pulls.stream.Recv()
		if err != nil {
			return r.pullError(err)
		}
		f, now := &r.filled[b.layer], resp.GetLayer()
		if int64(now.GetLayer()) != int64(b.layer) || now.GetLength() != b.start+b.n || len(now.GetHashes()) != len(f.hashes) {
			return wrong(r.target.Name, "it has filled layer %d up to %d positions, and not layer %d up to %d", now.GetLayer(), now.GetLength(), b.layer, b.start+b.n)
		}
		f.length, f.chain = now.GetLength(), now.GetChain()
		copy(f.hashes, now.GetHashes())
	}
	return nil
}

// pullError is the error of a target that fetches.
func (r *restore) pullError(err error) error {
	if e, ok := session.FromError(err); ok {
		return refused(r.target.Name, e)
	}
	if s := status.Convert(err); s.Code() == codes.Unimplemented || s.Code() == codes.FailedPrecondition {
		return cannotPullError{oneLine(s.Message())}
	}
	return callError(r.target.Name, err)
}

// source says what the target fetches, and from whom.
func (r *restore) source() *headwaterv1.FillFrom {
	m := &headwaterv1.FillFrom{
		Session: r.state.GetSession(), Epoch: &headwaterv1.Epoch{Counter: r.epoch.GetCounter(), Lane: r.epoch.GetLane()}, Filled: r.temp[:], FilledEpoch: epochOf(1, r.lane),
	}
	of := map[string]*Holder{} // by name, what it gives
	var names []string
	for l, groups := range r.target.Groups {
		for _, g := range groups {
			name := r.gives(l, g)
			if of[name] == nil {
				of[name], names = &Holder{Name: name, Groups: make([][]int, len(r.layers))}, append(names, name)
			}
			of[name].Groups[l] = append(of[name].Groups[l], g)
		}
	}
	for _, name := range names {
		m.Sources = append(m.Sources, &headwaterv1.FillSource{Worker: name, Layers: of[name].held(r.layers)})
	}
	return m
}

// gives returns who gives a group to the target: itself, if it holds the group already.
func (r *restore) gives(layer, group int) string {
	for _, o := range r.from.holders {
		if o.Name == r.target.Name && slices.Contains(o.layer(layer, &r.layers[layer]), group) {
			return o.Name
		}
	}
	return r.from.Answers(layer, group)
}

// far returns, by layer, the groups that come from others.
func (r *restore) far() [][]shard.Group {
	far := make([][]shard.Group, len(r.layers))
	for l, groups := range r.target.Groups {
		far[l] = []shard.Group{}
		for _, g := range groups {
			if r.gives(l, g) != r.target.Name {
				far[l] = append(far[l], shard.Group(g))
			}
		}
	}
	return far
}
