package fanout

import (
	"bytes"
	"cmp"
	"context"
	"math"
	"slices"
	"sync"

	"google.golang.org/protobuf/proto"

	"headwater.example/internal/rpc"
	"headwater.example/internal/session"
	headwaterv1 "headwater.example/proto/headwater/v1"
	"headwater.example/shard"
)

// ask is what is asked of one holder, of that index.
type ask func(ctx context.Context, s headwaterv1.SessionServiceClient, i int) (*headwaterv1.SessionState, error)

// all calls do for all holders of a session concurrently, as each does. Those that hang are lost if the others can replace them.
func (c *Conns) all(ctx context.Context, h *Holding, do ask) ([]*headwaterv1.SessionState, error) {
	return c.gather(ctx, h.holders, func() bool { return c.silent(h) != nil }, do)
}

// each calls do for some holders concurrently, and returns the states in their order. If some fail, the others still
// finish; the error is that of the first holder that refused.
func (c *Conns) each(ctx context.Context, holders []*Holder, do ask) ([]*headwaterv1.SessionState, error) {
	return c.gather(ctx, holders, nil, do)
}

// gather is each, but that a holder that hangs is lost where it may be; nil is nowhere.
func (c *Conns) gather(ctx context.Context, holders []*Holder, may func() bool, do ask) ([]*headwaterv1.SessionState, error) {
	states, errs := make([]*headwaterv1.SessionState, len(holders)), make([]error, len(holders))
	var tasks sync.WaitGroup
	for i, o := range holders {
		tasks.Go(func() {
			errs[i] = rpc.Guard(c.Log, "asking holder "+o.Name, func() error {
				conn, err := c.Use(o.peer())
				if err != nil {
					return lost(o.Name, err)
				}
				defer conn.Release()
				ctx, stop := c.heed(ctx, may, o)
				states[i], err = do(ctx, headwaterv1.NewSessionServiceClient(conn), i)
				silent := stop()
				switch {
				case err == nil:
					return nil
				case silent != nil:
					return silent
				}
				return callError(o.Name, err)
			})
		})
	}
	tasks.Wait()
	var first error
	for _, err := range errs {
		if outranks(err, first) {
			first = err
		}
	}
	return states, first
}

// Create makes a session at every holder. It begins with the prefix that all of them have; a holder with more is cut to
// it. If the call fails, it drops what it has made, and nothing that another call has made.
func (c *Conns) Create(ctx context.Context, h *Holding, req *headwaterv1.CreateSessionRequest) (*headwaterv1.SessionState, error) {
	call := cmp.Or(req.GetCall(), c.NewID())
	states, err := c.all(ctx, h, func(ctx context.Context, s headwaterv1.SessionServiceClient, i int) (*headwaterv1.SessionState, error) {
		begin, err := h.sliceBegin(h.holders[i], req.GetBegin())
		if err != nil {
			return nil, err
		}
		own := &headwaterv1.CreateSessionRequest{Session: req.GetSession(), Epoch: h.first(req.GetEpoch()), Config: req.GetConfig(), Held: h.holders[i].held(h.layers), Tokens: req.GetTokens(), Workers: req.GetWorkers(), Begin: begin, Call: call}
		resp, err := s.CreateSession(ctx, own)
		return resp.GetState(), err
	})
	var state *headwaterv1.SessionState
	if err == nil {
		state, err = c.begin(ctx, h, req, states)
	}
	if err != nil {
		c.abandon(ctx, h, req.GetSession(), req.GetEpoch(), call)
		return nil, err
	}
	return state, nil
}

// begin cuts all layers of a new session to the shortest prefix that a holder found, and joins the states. If the
// request has BeginLayers, each of these layers begins at its own position.
func (c *Conns) begin(ctx context.Context, h *Holding, req *headwaterv1.CreateSessionRequest, states []*headwaterv1.SessionState) (*headwaterv1.SessionState, error) {
	for _, s := range states {
		if slices.ContainsFunc(s.GetLayers(), used) {
			return h.Join(req.GetSession(), states) // An earlier call has made it, and its driver goes on.
		}
	}
	all, err := h.share(req.GetSession(), states)
	if err != nil {
		return nil, err
	}
	least := uint64(math.MaxUint64)
	for _, one := range all {
		least = min(least, one.length)
	}
	for i := range all {
		if len(req.GetBegin()) == 0 && all[i].length != least {
			all[i] = shared{length: least}
		}
	}
	return c.level(ctx, h, req.GetSession(), req.GetEpoch(), states, all)
}

// used reports whether a layer has gained or lost positions since its session began, except those that begin takes
// back.
func used(l *headwaterv1.LayerState) bool {
	return l.GetChain() != 0 && (l.GetAppendId() != 0 || l.GetBefore().GetChain() != 0)
}

// abandon drops the parts of a session that not all holders could make, even if ctx has ended. A part that can't be
// dropped in time ends by its TTL.
func (c *Conns) abandon(ctx context.Context, h *Holding, session []byte, epoch *headwaterv1.Epoch, call uint64) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), c.abandonTimeout)
	defer cancel()
	_ = c.drop(ctx, h.holders, always, &headwaterv1.DropSessionRequest{Session: session, Epoch: epoch, Call: call})
}

// Take makes the epoch's lane drive the session at every holder; with CheckOnly it only checks whether that would
// succeed. If there is a receipt, all holders confirm it before any of them raises its epoch, so a wrong receipt shuts
// nobody out. If an append is incomplete, the session is cut to the common state. Lost holders that the others can
// replace are left out. While holders are being exchanged, the take waits, for about a second.
func (c *Conns) Take(ctx context.Context, p *Place, req *headwaterv1.TakeSessionRequest) (*headwaterv1.SessionState, error) {
	if p.Holding().exchange {
		_ = c.renew(ctx, p, p.Holding()) // else the holders say what is wrong
	}
	var asked []*Holder // of whom some may have accepted the request's epoch
	for again := 0; ; again++ {
		from := p.Holding()
		rest := from
		var state *headwaterv1.SessionState
		err := c.past(ctx, p, func(h *Holding) (err error) {
			from, rest, asked = p.Holding(), h, append(asked, h.holders...)
			state, err = c.takeAll(ctx, h, req)
			return err
		})
		if err == nil && !req.GetCheckOnly() {
			return c.taken(ctx, p, from, rest, asked, req, state)
		}
		// The epoch of a holder may have been stepped since it was asked for. The request is refused for that only if its own epoch is
		// not the higher one.
		e, refused := session.FromError(err)
		if !refused || e.Reason() != session.StaleEpoch || from.counter == 0 || again > refreshes || e.Why.GetEpoch().GetCounter() >= req.GetEpoch().GetCounter() {
			return state, err
		}
		if c.renew(ctx, p, from) != nil {
			return nil, err
		}
	}
}

// taken notes that a request's epoch drives the session at the rest of its holders. One that was lost on the way, or that was asked
// before it was found to be left out, may have accepted this epoch too, and lacks from now on what the rest acknowledge. So the rest
// go on under a higher one.
func (c *Conns) taken(ctx context.Context, p *Place, from, rest *Holding, asked []*Holder, req *headwaterv1.TakeSessionRequest, state *headwaterv1.SessionState) (*headwaterv1.SessionState, error) {
	counter := req.GetEpoch().GetCounter()
	missed := func(o *Holder) bool { return !rest.names([]string{o.Name}) }
	if !slices.ContainsFunc(from.holders, missed) && !slices.ContainsFunc(asked, missed) {
		p.holding.CompareAndSwap(from, rest.Of(counter))
		return state, nil
	}
	all := from.Of(counter)
	if !p.holding.CompareAndSwap(from, all) {
		return state, nil
	}
	var lost []string
	for _, o := range from.holders {
		if missed(o) {
			lost = append(lost, o.Name)
		}
	}
	var err error
	if len(lost) > 0 {
		err = c.leave(ctx, p, all, req.GetEpoch(), lost...)
	} else {
		err = c.raise(ctx, p, all, req.GetEpoch())
	}
	if err != nil {
		return nil, err
	}
	now := p.Holding()
	state.Holders = slices.DeleteFunc(state.GetHolders(), func(o *headwaterv1.Holder) bool { return !now.names([]string{o.GetName()}) })
	state.Epoch = now.named(&headwaterv1.Epoch{Counter: now.counter, Lane: req.GetEpoch().GetLane(), Base: counter})
	return state, nil
}

func (c *Conns) takeAll(ctx context.Context, h *Holding, req *headwaterv1.TakeSessionRequest) (*headwaterv1.SessionState, error) {
	if len(h.holders) > 1 && len(req.GetExpect()) > 0 || req.GetCheckOnly() {
		if _, err := c.take(ctx, h, req, true); err != nil || req.GetCheckOnly() {
			return nil, err
		}
	}
	states, err := c.take(ctx, h, req, false)
	if err != nil {
		return nil, err
	}
	common, err := h.share(req.GetSession(), states)
	if err != nil && len(req.GetExpect()) > 0 {
		// All holders have confirmed the receipt: it is their common state.
		common, err = make([]shared, len(h.layers)), nil
		for _, l := range req.GetExpect() {
			if int64(l.GetLayer()) < int64(len(common)) {
				common[l.GetLayer()].length = l.GetLength()
			}
		}
	}
	if err != nil {
		return nil, err
	}
	return c.level(ctx, h, req.GetSession(), h.Of(req.GetEpoch().GetCounter()).epoch(req.GetEpoch()), states, common)
}

func (c *Conns) take(ctx context.Context, h *Holding, req *headwaterv1.TakeSessionRequest, checkOnly bool) ([]*headwaterv1.SessionState, error) {
	return c.all(ctx, h, func(ctx context.Context, s headwaterv1.SessionServiceClient, i int) (*headwaterv1.SessionState, error) {
		expect, err := h.slice(h.holders[i], req.GetExpect())
		if err != nil {
			return nil, err
		}
		resp, err := s.TakeSession(ctx, &headwaterv1.TakeSessionRequest{
			Session: req.GetSession(), Epoch: h.next(req.GetEpoch(), i), Expect: expect, Truncations: req.GetTruncations(), CheckOnly: checkOnly,
		})
		return resp.GetState(), err
	})
}

// slice returns a holder's part of the known state of the layers.
func (h *Holding) slice(o *Holder, layers []*headwaterv1.LayerState) ([]*headwaterv1.LayerState, error) {
	if o.Groups == nil {
		return layers, nil
	}
	var own []*headwaterv1.LayerState
	for _, l := range layers {
		if int64(l.GetLayer()) >= int64(len(h.layers)) || len(l.GetHashes()) != h.layers[l.GetLayer()].Shards() {
			return nil, invalid("layer %d with %d hashes is not one of the session's", l.GetLayer(), len(l.GetHashes()))
		}
		groups := o.Groups[l.GetLayer()]
		if len(groups) == 0 {
			continue
		}
		one := &headwaterv1.LayerState{Layer: l.GetLayer(), Length: l.GetLength(), Chain: l.GetChain(), AppendId: l.GetAppendId()}
		for _, g := range groups {
			one.Hashes = append(one.Hashes, l.GetHashes()[g])
		}
		own = append(own, one)
	}
	return own, nil
}

// least returns for each layer the number of positions that all of its holders have.
func (h *Holding) least(states []*headwaterv1.SessionState) []uint64 {
	least := slices.Repeat([]uint64{math.MaxUint64}, len(h.layers))
	for _, s := range states {
		for _, l := range s.GetLayers() {
			if int64(l.GetLayer()) < int64(len(least)) {
				least[l.GetLayer()] = min(least[l.GetLayer()], l.GetLength())
			}
		}
	}
	return least
}

// sliceBegin returns a holder's part of the BeginLayers.
func (h *Holding) sliceBegin(o *Holder, layers []*headwaterv1.BeginLayer) ([]*headwaterv1.BeginLayer, error) {
	if o.Groups == nil {
		return layers, nil
	}
	var own []*headwaterv1.BeginLayer
	for _, l := range layers {
		if int64(l.GetLayer()) >= int64(len(h.layers)) || l.GetFirst() > 0 && len(l.GetHashes()) != h.layers[l.GetLayer()].Shards() || l.GetFirst() == 0 && len(l.GetHashes()) != 0 {
			return nil, invalid("layer %d, which begins at position %d with %d hashes, is not one of the session's", l.GetLayer(), l.GetFirst(), len(l.GetHashes()))
		}
		groups := o.Groups[l.GetLayer()]
		if len(groups) == 0 {
			continue
		}
		one := &headwaterv1.BeginLayer{Layer: l.GetLayer(), First: l.GetFirst(), Length: l.GetLength()}
		if l.GetFirst() > 0 {
			for _, g := range groups {
				one.Hashes = append(one.Hashes, l.GetHashes()[g])
			}
		}
		own = append(own, one)
	}
	if len(layers) > 0 && len(own) == 0 {
		// A holder with none of these layers must not look for a prefix either.
		l := slices.IndexFunc(o.Groups, func(groups []int) bool { return len(groups) > 0 })
		own = append(own, &headwaterv1.BeginLayer{Layer: uint32(max(l, 0))})
	}
	return own, nil
}

// Join merges the states of all holders, in their order, into the session's common state. Their counts of truncations
// must be equal.
func (h *Holding) Join(id []byte, states []*headwaterv1.SessionState) (*headwaterv1.SessionState, error) {
	if states[0] == nil {
		return nil, wrong(h.holders[0].Name, "it answers without a state")
	}
	all := proto.CloneOf(states[0])
	all.Layers, all.PageBytes, all.OwnBytes, all.Holders, all.Lineage, all.Served = nil, 0, 0, nil, nil, 0
	for i, s := range states {
		if err := h.check(h.holders[i], id, s); err != nil {
			return nil, err
		}
		if s.GetTruncations() != all.GetTruncations() {
			return nil, refused(h.holders[i].Name, session.Errorf(session.OtherTruncations, "session %x: truncated %d times, at another holder %d", id, s.GetTruncations(), all.GetTruncations()))
		}
		all.PageBytes += s.GetPageBytes()
		all.OwnBytes += s.GetOwnBytes()
		all.Pinned = all.Pinned && s.GetPinned()
		if s.GetUsed().AsTime().After(all.GetUsed().AsTime()) {
			all.Used = s.GetUsed()
		}
	}
	var err error
	if all.Layers, err = h.joinLayers(id, states); err != nil {
		return nil, err
	}
	if h.holders[0].Groups == nil {
		all.Holders = states[0].GetHolders()
	} else {
		all.Holders = h.proto()
		for i, s := range states {
			all.Holders[i].PageBytes, all.Holders[i].OwnBytes = s.GetPageBytes(), s.GetOwnBytes()
		}
	}
	return all, nil
}

// check refuses a message that is not a holder's state of the session.
func (h *Holding) check(o *Holder, id []byte, s *headwaterv1.SessionState) error {
	if !bytes.Equal(s.GetSession(), id) {
		return wrong(o.Name, "it answers for session %x, not %x", s.GetSession(), id)
	}
	last := int64(-1)
	for _, l := range s.GetLayers() {
		if int64(l.GetLayer()) >= int64(len(h.layers)) || int64(l.GetLayer()) <= last {
			return wrong(o.Name, "it tells of layer %d of %d after layer %d", l.GetLayer(), len(h.layers), last)
		}
		last = int64(l.GetLayer())
		groups := len(o.layer(int(l.GetLayer()), &h.layers[l.GetLayer()]))
		if len(l.GetHashes()) != groups || groups == 0 || l.GetBefore() != nil && len(l.GetBefore().GetHashes()) != groups {
			return wrong(o.Name, "it has %d hashes for %d groups of layer %d", len(l.GetHashes()), groups, l.GetLayer())
		}
	}
	for l := range h.layers {
		if len(o.layer(l, &h.layers[l])) > 0 && !slices.ContainsFunc(s.GetLayers(), func(t *headwaterv1.LayerState) bool { return int64(t.GetLayer()) == int64(l) }) {
			return wrong(o.Name, "it does not tell of layer %d", l)
		}
	}
	return nil
}

// joinLayers merges the checked states of all holders, layer by layer.
func (h *Holding) joinLayers(id []byte, states []*headwaterv1.SessionState) ([]*headwaterv1.LayerState, error) {
	common, err := h.share(id, states)
	if err != nil {
		return nil, err
	}
	layers, known := make([]*headwaterv1.LayerState, len(h.layers)), make([][]bool, len(h.layers))
	for l, one := range common {
		known[l] = make([]bool, h.layers[l].Shards())
		layers[l] = &headwaterv1.LayerState{Layer: uint32(l), Length: one.length, Chain: one.chain, Hashes: make([]uint64, h.layers[l].Shards())}
	}
	for i, s := range states {
		o := h.holders[i]
		for _, l := range s.GetLayers() {
			at, one := int(l.GetLayer()), common[l.GetLayer()]
			if !one.settled {
				return nil, refused(o.Name, session.Errorf(session.Behind, "session %x: layer %d has %d positions, other holders have others", id, at, l.GetLength()))
			}
			layers[at].First = max(layers[at].First, l.GetFirst())
			hashes := l.GetHashes()
			if l.GetLength() != one.length || l.GetChain() != one.chain {
				hashes = l.GetBefore().GetHashes()
			}
			for j, g := range o.layer(at, &h.layers[at]) {
				if known[at][g] && hashes[j] != layers[at].Hashes[g] {
					return nil, refused(o.Name, session.Errorf(session.Different, "session %x: layer %d %s has hash %016x, its copy at another holder %016x", id, at, h.layers[at].Name(g), hashes[j], layers[at].Hashes[g]))
				}
				layers[at].Hashes[g], known[at][g] = hashes[j], true
			}
		}
	}
	return layers, nil
}

// Fork makes a session that begins as a copy of another one, at every holder. If it fails, it drops what it has made. If the connection to a
// coordinator broke (Unreached), the caller may try again with another child: that coordinator drops what it has made as well, perhaps later.
func (c *Conns) Fork(ctx context.Context, p *Place, req *headwaterv1.ForkSessionRequest) (*headwaterv1.SessionState, error) {
	call := cmp.Or(req.GetCall(), c.NewID())
	var broke error
	state, err := c.over(ctx, p, req.GetEpoch(), func(h *Holding) (*headwaterv1.SessionState, error) {
		if broke != nil {
			return nil, broke
		}
		state, err := c.fork(ctx, h, req, call)
		if h.holders[0].Groups == nil && Unreached(err) {
			broke = err
		}
		return state, err
	})
	if err != nil {
		c.abandon(ctx, p.Holding(), req.GetChild(), req.GetChildEpoch(), call)
		return nil, err
	}
	return state, nil
}

func (c *Conns) fork(ctx context.Context, h *Holding, req *headwaterv1.ForkSessionRequest, call uint64) (*headwaterv1.SessionState, error) {
	states, err := c.all(ctx, h, func(ctx context.Context, s headwaterv1.SessionServiceClient, i int) (*headwaterv1.SessionState, error) {
		expect, err := h.slice(h.holders[i], req.GetExpect())
		if err != nil {
			return nil, err
		}
		own := &headwaterv1.ForkSessionRequest{
			Session: req.GetSession(), Epoch: h.epoch(req.GetEpoch()), Truncations: req.GetTruncations(), Child: req.GetChild(), ChildEpoch: h.first(req.GetChildEpoch()),
			Position: req.Position, Expect: expect, Call: call,
		}
		resp, err := s.ForkSession(ctx, own)
		return resp.GetState(), err
	})
	if err != nil {
		return nil, err
	}
	return h.Join(req.GetChild(), states)
}

// Truncate takes positions back at every holder, from the state that the request names; with CheckOnly it only checks
// whether that would succeed. If it fails at some holders, the same request completes it when it is repeated.
func (c *Conns) Truncate(ctx context.Context, p *Place, req *headwaterv1.TruncateSessionRequest) (*headwaterv1.SessionState, error) {
	return c.over(ctx, p, req.GetEpoch(), func(h *Holding) (*headwaterv1.SessionState, error) { return c.truncateAll(ctx, h, req) })
}

func (c *Conns) truncateAll(ctx context.Context, h *Holding, req *headwaterv1.TruncateSessionRequest) (*headwaterv1.SessionState, error) {
	// A holder may have freed positions that another one still has: none begins before all have agreed.
	if len(h.holders) > 1 && slices.ContainsFunc(h.layers, func(l shard.LayerSpec) bool { return l.Windowed() }) || req.GetCheckOnly() {
		if _, err := c.truncate(ctx, h, req, true); err != nil || req.GetCheckOnly() {
			return nil, err
		}
	}
	states, err := c.truncate(ctx, h, req, false)
	if err != nil {
		return nil, err
	}
	return h.Join(req.GetSession(), states)
}

func (c *Conns) truncate(ctx context.Context, h *Holding, req *headwaterv1.TruncateSessionRequest, checkOnly bool) ([]*headwaterv1.SessionState, error) {
	return c.all(ctx, h, func(ctx context.Context, s headwaterv1.SessionServiceClient, i int) (*headwaterv1.SessionState, error) {
		expect, err := h.slice(h.holders[i], req.GetExpect())
		if err != nil {
			return nil, err
		}
		resp, err := s.TruncateSession(ctx, &headwaterv1.TruncateSessionRequest{
			Session: req.GetSession(), Epoch: h.epoch(req.GetEpoch()), Truncations: req.GetTruncations(), Position: req.GetPosition(), Lengths: req.GetLengths(),
			CheckOnly: checkOnly, Expect: expect, Id: req.GetId(), Count: req.GetCount(),
		})
		return resp.GetState(), err
	})
}

// Pin pins or unpins a session at every holder. If an append is incomplete, the returned layers have the positions that
// all holders have, and no hashes.
func (c *Conns) Pin(ctx context.Context, p *Place, req *headwaterv1.PinSessionRequest) (state *headwaterv1.SessionState, _ error) {
	return state, c.past(ctx, p, func(h *Holding) (err error) {
		state, err = c.pin(ctx, h, req)
		return err
	})
}

func (c *Conns) pin(ctx context.Context, h *Holding, req *headwaterv1.PinSessionRequest) (*headwaterv1.SessionState, error) {
	states, err := c.all(ctx, h, func(ctx context.Context, s headwaterv1.SessionServiceClient, _ int) (*headwaterv1.SessionState, error) {
		resp, err := s.PinSession(ctx, req)
		return resp.GetState(), err
	})
	if err != nil {
		return nil, err
	}
	for i, s := range states {
		if h.counter != 0 && s.GetEpoch().GetCounter() != h.at(i) && h.check(h.holders[i], req.GetSession(), s) != nil {
			return nil, errOthers
		}
	}
	// A coordinator that has found it so has answered without hashes.
	if s := states[0]; h.holders[0].Groups == nil && bytes.Equal(s.GetSession(), req.GetSession()) &&
		!slices.ContainsFunc(s.GetLayers(), func(l *headwaterv1.LayerState) bool { return len(l.GetHashes()) > 0 }) {
		return s, nil
	}
	state, err := h.Join(req.GetSession(), states)
	if Is(err, session.Behind) || Is(err, session.Different) || Is(err, session.OtherTruncations) {
		state = proto.CloneOf(states[0])
		state.Layers, state.Holders = nil, h.proto()
		for l, n := range h.least(states) {
			state.Layers = append(state.Layers, &headwaterv1.LayerState{Layer: uint32(l), Length: n})
		}
		return state, nil
	}
	return state, err
}

// End drops a session at its holders, or at the reachable ones if they have all groups.
func (c *Conns) End(ctx context.Context, p *Place, req *headwaterv1.DropSessionRequest) error {
	return c.past(ctx, p, func(h *Holding) error {
		return c.drop(ctx, h.holders, func() bool { return c.silent(h) != nil }, req)
	})
}

// Drop drops a session at some holders. One that does not know it is no error unless none does.
func (c *Conns) Drop(ctx context.Context, holders []*Holder, req *headwaterv1.DropSessionRequest) error {
	return c.drop(ctx, holders, nil, req)
}

func (c *Conns) drop(ctx context.Context, holders []*Holder, may func() bool, req *headwaterv1.DropSessionRequest) error {
	known := make([]bool, len(holders))
	_, err := c.gather(ctx, holders, may, func(ctx context.Context, s headwaterv1.SessionServiceClient, i int) (*headwaterv1.SessionState, error) {
		_, err := s.DropSession(ctx, req)
		known[i] = err == nil
		if Is(err, session.Unknown) {
			return nil, nil
		}
		return nil, err
	})
	if err == nil && !slices.Contains(known, true) {
		return unknown("", req.GetSession())
	}
	return err
}

// List asks one holder for sessions and its cache. One that hangs is lost.
func (c *Conns) List(ctx context.Context, name, address string, req *headwaterv1.ListSessionsRequest) (*headwaterv1.ListSessionsResponse, error) {
	conn, err := c.Use(rpc.Peer{Name: name, Address: address})
	if err != nil {
		return nil, lost(name, err)
	}
	defer conn.Release()
	ctx, stop := c.heed(ctx, always, &Holder{Name: name, Address: address})
	resp, err := headwaterv1.NewSessionServiceClient(conn).ListSessions(ctx, req)
	silent := stop()
	switch {
	case err == nil:
		return resp, nil
	case silent != nil:
		return nil, silent
	}
	return nil, callError(name, err)
}
