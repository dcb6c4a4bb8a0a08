package fanout

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"headwater.example/internal/rpc"
	"headwater.example/internal/session"
	headwaterv1 "headwater.example/proto/headwater/v1"
	"headwater.example/shard"
)

const (
	// copyRounds is how often a copy follows a session that goes on before it is given up for the time being.
	copyRounds = 32
	// copyRest is how many bytes a copy may lack when it comes to its end, and copyTail how many are left until then: what a model takes
	// back is mostly among its newest positions. All but copyLast positions of them are copied just before the session is held up.
	copyRest = 4 << 20
	copyTail = 2 << 20
	copyLast = 32
)

// errChanged is a session that was truncated while it was copied, or whose holders are at odds: the copy is made anew later.
var errChanged = errors.New("the session changed while it was copied")

// errFaster is a session that grows faster than it is copied.
var errFaster = errors.New("the session grows faster than it is copied")

// Restore makes a copy of a session at one more worker, or of more of its groups at one that holds some, while the session goes on.
// State is what a holder told of the session with its epoch and its config, and h who holds it under that epoch; target has all groups
// that it is to hold. The way: the worker is filled under an id of its own; then the session's holders accept no calls for a moment, by
// an epoch that is closed; what is left is copied; the worker takes the copy for the session; and all get an epoch that is open. If
// anything fails on the way, the session goes on without the copy.
func (c *Conns) Restore(ctx context.Context, h *Holding, state *headwaterv1.SessionState, target *Holder) error {
	r := &restore{Conns: c, from: h, state: state, epoch: state.GetEpoch(), target: target, layers: h.layers, temp: c.NewName(), lane: c.NewName(), call: c.NewID()}
	err := r.do(ctx)
	if err != nil {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), c.abandonTimeout)
		defer cancel()
		if left := c.DropFilled(ctx, r.temp, target, r.call); left != nil && c.OnAbandon != nil {
			c.OnAbandon(r.temp, target, r.call)
		} // else it ends by its TTL
		return fmt.Errorf("copy session %x to worker %q: %w", state.GetSession(), target.Name, err)
	}
	return nil
}

// DropFilled drops what the target of a copy that was given up was filled with, if there is any.
func (c *Conns) DropFilled(ctx context.Context, filled [16]byte, target *Holder, call uint64) error {
	err := c.drop(ctx, []*Holder{target}, always, &headwaterv1.DropSessionRequest{Session: filled[:], Call: call})
	if Is(err, session.Unknown) {
		return nil
	}
	return err
}

// Release leaves holders out of a session whose groups others have as well, and drops what they have of it, while the session goes
// on. State is what a holder told of the session with its epoch, and h who holds it under that epoch.
func (c *Conns) Release(ctx context.Context, id [16]byte, h *Holding, state *headwaterv1.SessionState, names ...string) error {
	told := state.GetEpoch()
	driver := &headwaterv1.Epoch{Counter: cmp.Or(told.GetBase(), told.GetCounter()), Lane: told.GetLane()}
	if err := c.without(ctx, NewPlace(id, h), h, driver, nil, names...); err != nil {
		return fmt.Errorf("leave %s out of session %x: %w", strings.Join(names, ", "), id, err)
	}
	left := slices.DeleteFunc(slices.Clone(h.holders), func(o *Holder) bool { return !slices.Contains(names, o.Name) })
	epoch := &headwaterv1.Epoch{Counter: told.GetCounter(), Lane: told.GetLane(), At: told.GetCounter()}
	err := c.drop(ctx, left, always, &headwaterv1.DropSessionRequest{Session: id[:], Epoch: epoch})
	if Is(err, session.Unknown) {
		return nil
	}
	return err
}

// restore is one copy on its way.
type restore struct {
	*Conns
	from   *Holding
	state  *headwaterv1.SessionState
	epoch  *headwaterv1.Epoch // of all holders, when they were asked last
	target *Holder
	layers []shard.LayerSpec

	temp   [16]byte
	call   uint64 // that makes it: a drop by this call also keeps it from being made later
	lane   session.LaneID
	ctx    context.Context // of what follows
	conn   *rpc.Conn       // to the target
	pulls  *pulls          // by which the target fetches; nil if it can't
	stream *session.Stream // by which it is sent what it can't fetch; nil as long as there was nothing of that
	steps  uint64
	filled []filled // by layer
	cuts   uint64   // truncations of what is filled
	still  bool     // whether the session is held up
}

// filled is what the target has of a layer.
type filled struct {
	length, chain uint64
	hashes        []uint64 // by group of the target
}

func (r *restore) do(ctx context.Context) error {
	ctx, stop := r.heed(ctx, always, append(slices.Clone(r.from.holders), r.target)...)
	err := r.make(ctx)
	if silent := stop(); err != nil && silent != nil {
		return silent
	}
	return err
}

func (r *restore) make(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	conn, err := r.Use(r.target.peer())
	if err != nil {
		return lost(r.target.Name, err)
	}
	defer conn.Release()
	r.ctx, r.conn = ctx, conn
	states, err := r.ask(ctx)
	if err != nil {
		return err
	}
	if err := r.begin(ctx, states); err != nil {
		return err
	}
	if r.pulls, err = r.openPulls(); err != nil {
		return callError(r.target.Name, err)
	}
	for range copyRounds {
		if err := r.approach(ctx, states, r.tail()); err != nil {
			return err
		}
		if states, err = r.ask(ctx); err != nil {
			return err
		}
		if !slices.ContainsFunc(states, r.behind) {
			if err := r.approach(ctx, states, min(r.tail(), copyLast)); err != nil {
				return err
			}
			return r.exchange(ctx)
		}
	}
	return errFaster
}

// approach copies what all holders told that they have, but for the newest positions of each layer.
func (r *restore) approach(ctx context.Context, states []*headwaterv1.SessionState, but uint64) error {
	lengths := r.from.least(states)
	for l := range lengths {
		lengths[l] = max(lengths[l]-min(lengths[l], but), min(lengths[l], r.filled[l].length))
	}
	if err := r.cut(ctx, lengths); err != nil {
		return err
	}
	return r.follow(ctx, lengths)
}

// cut takes back what is filled beyond these lengths: the session has taken back positions that were copied already.
func (r *restore) cut(ctx context.Context, lengths []uint64) error {
	req := &headwaterv1.TruncateSessionRequest{Session: r.temp[:], Epoch: epochOf(1, r.lane), Truncations: r.cuts, Count: r.cuts + 1}
	shorter := false
	for l, groups := range r.target.Groups {
		f := &r.filled[l]
		if req.Lengths = append(req.Lengths, f.length); len(groups) == 0 {
			continue
		}
		req.Expect = append(req.Expect, &headwaterv1.LayerState{Layer: uint32(l), Length: f.length, Hashes: f.hashes, Chain: f.chain})
		if lengths[l] < f.length {
			req.Lengths[l], shorter = lengths[l], true
		}
	}
	if !shorter {
		return nil
	}
	req.Id = r.NewID()
	states, err := r.each(ctx, []*Holder{r.target}, func(ctx context.Context, s headwaterv1.SessionServiceClient, _ int) (*headwaterv1.SessionState, error) {
		resp, err := s.TruncateSession(ctx, req)
		return resp.GetState(), err
	})
	if err != nil {
		return err
	}
	if err := r.from.check(r.target, r.temp[:], states[0]); err != nil {
		return err
	}
	r.cuts++
	for _, x := range states[0].GetLayers() {
		f := &r.filled[x.GetLayer()]
		f.length, f.chain = x.GetLength(), x.GetChain()
		copy(f.hashes, x.GetHashes())
	}
	return nil
}

// behind reports whether what is filled lacks more of what a holder has than a session may be held up for.
func (r *restore) behind(s *headwaterv1.SessionState) bool {
	lacks := 0
	for _, l := range s.GetLayers() {
		if f := &r.filled[l.GetLayer()]; l.GetLength() > f.length {
			lacks += int(min(l.GetLength()-f.length, copyRest)) * r.row(int(l.GetLayer()))
		}
	}
	return lacks > copyRest
}

// tail is how many positions of each layer are left until the session is held up.
func (r *restore) tail() uint64 {
	bytes := 0
	for l := range r.layers {
		bytes += r.row(l)
	}
	return copyTail / uint64(max(bytes, 1))
}

// row is the size of one position of a layer at the target.
func (r *restore) row(l int) int {
	layer := &r.layers[l]
	return len(r.target.Groups[l]) * layer.Storage().Size() * (layer.HeadDim() + layer.VDim())
}

// ask returns what each holder has now, and notes the epoch if another lane has taken the session at all of them meanwhile.
func (r *restore) ask(ctx context.Context) ([]*headwaterv1.SessionState, error) {
	states, err := r.each(ctx, r.from.holders, func(ctx context.Context, s headwaterv1.SessionServiceClient, _ int) (*headwaterv1.SessionState, error) {
		resp, err := s.ListSessions(ctx, &headwaterv1.ListSessionsRequest{Sessions: [][]byte{r.state.GetSession()}})
		if err != nil {
			return nil, err
		}
		if len(resp.GetSessions()) != 1 {
			return nil, errChanged
		}
		return resp.GetSessions()[0], nil
	})
	if err != nil {
		return nil, err
	}
	now := states[0].GetEpoch()
	same := func(s *headwaterv1.SessionState) bool {
		return compareEpochs(s.GetEpoch(), now) == 0 && !s.GetEpoch().GetClosed()
	}
	named := func(o *Holder) bool { return slices.Contains(now.GetMembers(), o.Name) }
	if len(now.GetMembers()) == len(r.from.holders) && !slices.ContainsFunc(states, func(s *headwaterv1.SessionState) bool { return !same(s) }) &&
		!slices.ContainsFunc(r.from.holders, func(o *Holder) bool { return !named(o) }) {
		r.epoch = now
	}
	return states, nil
}

// begin makes what is filled, whose layers begin where those of the session do.
func (r *restore) begin(ctx context.Context, states []*headwaterv1.SessionState) error {
	r.filled = make([]filled, len(r.layers))
	first, lengths := make([]uint64, len(r.layers)), r.from.least(states)
	for _, s := range states {
		for _, l := range s.GetLayers() {
			first[l.GetLayer()] = max(first[l.GetLayer()], l.GetFirst())
		}
	}
	req := &headwaterv1.CreateSessionRequest{
		Session: r.temp[:], Epoch: epochOf(1, r.lane), Config: r.state.GetConfig(), Held: r.target.held(r.layers), Call: r.call,
	}
	for l, groups := range r.target.Groups {
		f := &r.filled[l]
		f.length, f.hashes = first[l], make([]uint64, len(groups))
		if len(groups) == 0 {
			continue
		}
		b := &headwaterv1.BeginLayer{Layer: uint32(l), First: first[l], Length: max(first[l], lengths[l])}
		if first[l] > 0 {
			err := r.export(ctx, r.from, r.wanted(l, first[l], 1), func(m *headwaterv1.ExportSessionResponse) error {
				i, err := r.index(l, m)
				if err == nil {
					f.hashes[i] = m.GetHashBefore()
				}
				return err
			})
			if err != nil {
				return err
			}
			b.Hashes = f.hashes
		}
		req.Begin = append(req.Begin, b)
	}
	_, err := r.each(ctx, []*Holder{r.target}, func(ctx context.Context, s headwaterv1.SessionServiceClient, _ int) (*headwaterv1.SessionState, error) {
		resp, err := s.CreateSession(ctx, req)
		return resp.GetState(), err
	})
	return err
}

// exchange holds the session up, copies the rest, and makes the target one of its holders. Only holders that it has closed are opened,
// and the target last: if another driver is above the closed epoch at one of them, the target must not be above that one.
func (r *restore) exchange(ctx context.Context) error {
	told := r.epoch
	at := told.GetCounter()
	epoch := &headwaterv1.Epoch{Counter: r.above(at), Lane: told.GetLane(), Base: cmp.Or(told.GetBase(), at), Closed: true}
	states, err := r.step(ctx, r.from.holders, r.from.holders, epoch, at)
	var closed []*Holder
	for i, s := range states {
		if s != nil {
			closed = append(closed, r.from.holders[i])
		}
	}
	if err == nil {
		r.still, r.epoch = true, epoch
		err = r.finish(ctx, states, epoch)
	}
	members, last := r.from.holders, []*Holder(nil)
	if err == nil {
		last = []*Holder{r.target}
		isTarget := func(o *Holder) bool { return o.Name == r.target.Name }
		closed = slices.DeleteFunc(closed, isTarget)
		members = append(slices.DeleteFunc(slices.Clone(members), isTarget), r.target)
	}
	// Also where the caller has gone: nobody may be kept waiting.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), r.abandonTimeout)
	defer cancel()
	open := &headwaterv1.Epoch{Counter: r.above(epoch.Counter), Lane: epoch.Lane, Base: epoch.Base}
	_, opened := r.step(ctx, closed, members, open, epoch.Counter)
	if opened == nil {
		_, opened = r.step(ctx, last, members, open, epoch.Counter)
	}
	return errors.Join(err, opened)
}

// step steps the epoch, which names all members, at holders that have the counter at.
func (r *restore) step(ctx context.Context, holders, members []*Holder, epoch *headwaterv1.Epoch, at uint64) ([]*headwaterv1.SessionState, error) {
	named := (&Holding{holders: members}).named(epoch)
	named.At = at
	return r.gather(ctx, holders, always, func(ctx context.Context, s headwaterv1.SessionServiceClient, _ int) (*headwaterv1.SessionState, error) {
		resp, err := s.TakeSession(ctx, &headwaterv1.TakeSessionRequest{Session: r.state.GetSession(), Epoch: named})
		return resp.GetState(), err
	})
}

// finish copies what is left of the states that the holders have now, which no call changes, and lets the target take them up.
func (r *restore) finish(ctx context.Context, states []*headwaterv1.SessionState, epoch *headwaterv1.Epoch) error {
	for i, s := range states {
		if err := r.from.check(r.from.holders[i], r.state.GetSession(), s); err != nil {
			return err
		}
		if s.GetTruncations() != states[0].GetTruncations() {
			return errChanged // a truncation is under way
		}
	}
	whole := &headwaterv1.SessionState{Truncations: states[0].GetTruncations(), TruncationId: states[0].GetTruncationId(), Pinned: states[0].GetPinned()}
	lengths := make([]uint64, len(r.layers))
	for l, groups := range r.target.Groups {
		if len(groups) == 0 {
			continue
		}
		one, err := r.layer(l, states)
		if err != nil {
			return err
		}
		lengths[l] = one.GetLength()
		whole.Layers = append(whole.Layers, one)
	}
	whole.Lineage = joined(states, whole.GetLayers())
	if err := r.cut(ctx, lengths); err != nil {
		return err
	}
	if err := r.follow(ctx, lengths); err != nil {
		return err
	}
	_, err := r.each(ctx, []*Holder{r.target}, func(ctx context.Context, s headwaterv1.SessionServiceClient, _ int) (*headwaterv1.SessionState, error) {
		resp, err := s.AdoptSession(ctx, &headwaterv1.AdoptSessionRequest{Filled: r.temp[:], Session: r.state.GetSession(), Epoch: epoch, State: whole})
		return resp.GetState(), err
	})
	return err
}

// layer is what the target is to have of a layer: what all who hold its groups have, which are one step apart at most. If they are,
// it is what those have that have not done the step; the step comes again then, and nothing before it does.
func (r *restore) layer(l int, states []*headwaterv1.SessionState) (*headwaterv1.LayerState, error) {
	groups := r.target.Groups[l]
	var told []*headwaterv1.LayerState
	var of [][]int // groups of each that tells
	for i, s := range states {
		for _, x := range s.GetLayers() {
			if int(x.GetLayer()) == l {
				told, of = append(told, x), append(of, r.from.holders[i].layer(l, &r.layers[l]))
			}
		}
	}
	common, ok := share(told)
	if !ok || !common.settled {
		return nil, errChanged
	}
	one := &headwaterv1.LayerState{Layer: uint32(l), Length: common.length, Chain: common.chain, Hashes: make([]uint64, len(groups))}
	before := &headwaterv1.LayerState{Layer: uint32(l), Hashes: make([]uint64, len(groups))}
	for i, x := range told {
		hashes := x.GetHashes()
		if x.GetLength() != common.length || x.GetChain() != common.chain {
			hashes, before = x.GetBefore().GetHashes(), nil
		} else if one.AppendId = x.GetAppendId(); before != nil {
			if x.GetBefore() == nil {
				before = nil
			} else {
				before.Length, before.Chain = x.GetBefore().GetLength(), x.GetBefore().GetChain()
			}
		}
		for j, g := range groups {
			if at, ok := slices.BinarySearch(of[i], g); ok && at < len(hashes) {
				one.Hashes[j] = hashes[at]
				if before != nil {
					before.Hashes[j] = x.GetBefore().GetHashes()[at]
				}
			}
		}
	}
	one.Before = before
	return one, nil
}
