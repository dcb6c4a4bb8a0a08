// Package sessions serves the session service as one holder of all groups, in front of the workers that hold them. It
// needs nothing but to be told who the workers are, so a process of its own may run it without jobs.
//
// The way of a session: CreateSession plans its groups onto the workers that answer (place.go) and makes it there; Lane
// cuts each step by holder and gathers the answers (relay.go). A call on a session that is not remembered asks all workers
// who holds it (find.go). Nothing of a session is kept but who holds it, which the workers know as well.
//
// A client that wants its steps to pass no coordinator has a relay of its own machine (direct.go), which asks a coordinator
// for what only that one knows: who the workers are.
package sessions

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/zeebo/xxh3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"headwater.example/coordinator/workers"
	"headwater.example/internal/certs"
	"headwater.example/internal/layerproto"
	"headwater.example/internal/membership"
	"headwater.example/internal/observe"
	"headwater.example/internal/placement"
	"headwater.example/internal/rpc"
	"headwater.example/internal/session"
	"headwater.example/internal/session/fanout"
	headwaterv1 "headwater.example/proto/headwater/v1"
	"headwater.example/shard"
)

// Config is what a relay is made with.
type Config struct {
	View     workers.View         // who the workers are
	Dial     []grpc.DialOption    // of connections to workers; nil is rpc.DialOptions
	Security *rpc.Security        // how workers are spoken to; nil is plain text within this machine
	Logger   *slog.Logger         // nil logs nothing
	Observe  *observe.Coordinator // nil counts nothing
	Tracer   *observe.Tracer      // nil traces nothing

	Replicas int   // copies of each shard beside the owner's, for sessions that say nothing of it, if there are so many workers
	CopyRate int64 // most bytes a second of copies that are made in the background; 0 is no bound

	HedgeShare float64 // most of all attends that are asked of another holder as well, since the first is late; 0 is none

	// Await are workers that are expected to join: for AwaitFor, 0 is DefaultAwaitFor, a session that is not found may be theirs.
	Await    []membership.Member
	AwaitFor time.Duration
	Now      func() time.Time // clock; nil is time.Now
}

// Relay serves SessionService. It owns nothing of a session: the workers know who holds it, and it is remembered here to be
// found at once. Make it with New.
type Relay struct {
	log      *slog.Logger
	replicas int
	observe  *observe.Coordinator // nil counts nothing
	tracer   *observe.Tracer      // nil traces nothing
	conns    *fanout.Conns
	workers  *workers.Workers
	locate   func(ctx context.Context, id [16]byte) (*fanout.Holding, error) // who holds a session that is not remembered
	stopping chan struct{}                                                   // closed when Run ends
	lanes    sync.WaitGroup                                                  // what reads lanes
	open     atomic.Int64                                                    // lanes

	now        func() time.Time
	began      time.Time
	awaitUntil time.Time

	copies   *keeper
	security *rpc.Security // nil is plain text within this machine
	quotas   *quotas
	speeds   speeds

	mu       sync.Mutex
	holdings map[[16]byte]remembered // at most maxHoldings
	await    []membership.Member     // that have not joined yet
}

// New makes a relay to the workers of a view.
func New(c Config) *Relay {
	if c.Dial == nil {
		c.Dial = rpc.DialOptions()
	}
	if c.Now == nil {
		c.Now = time.Now
	}
	conns := fanout.NewConns(c.Security, c.Dial...)
	conns.HedgeShare = c.HedgeShare
	conns.Log = cmp.Or(c.Logger, slog.New(slog.DiscardHandler))
	r := &Relay{
		log: conns.Log, conns: conns, workers: workers.New(c.View, conns.Conns),
		replicas: c.Replicas, observe: c.Observe, tracer: c.Tracer,
		stopping: make(chan struct{}), holdings: map[[16]byte]remembered{},
		now: c.Now, began: c.Now(), await: slices.Clone(c.Await), awaitUntil: c.Now().Add(cmp.Or(c.AwaitFor, DefaultAwaitFor)),
	}
	r.copies = newKeeper(r, c.CopyRate)
	r.security, r.quotas = c.Security, &quotas{r: r, last: map[string]*reported{}}
	conns.OnCopy, conns.OnAbandon = r.copies.copying, r.copies.abandon
	r.locate = r.askWorkers
	conns.OnLeave = r.left
	conns.Locate = func(ctx context.Context, id [16]byte) (*fanout.Holding, error) { return r.locate(ctx, id) }
	return r
}

// Open returns how many lanes are open, and of how many sessions the holders are remembered.
func (r *Relay) Open() (lanes, known int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return int(r.open.Load()), len(r.holdings)
}

// Hedges returns how many attends were asked, and how many twice.
func (r *Relay) Hedges() fanout.Hedges { return r.conns.Hedges() }

// AnswerTimes returns how long the workers take to answer, of those that were asked, by name.
func (r *Relay) AnswerTimes() map[string]fanout.AnswerTimes {
	members := map[string]string{}
	for _, m := range r.workers.List() {
		members[m.Name] = m.Address
	}
	all := map[string]fanout.AnswerTimes{}
	for _, one := range r.conns.AnswerTimes() {
		if members[one.Holder] == one.Address {
			all[one.Holder] = one
		}
	}
	return all
}

// Run keeps the connections to the workers until ctx ends, once. Lanes end then, so that a server can stop gracefully.
func (r *Relay) Run(ctx context.Context) {
	defer close(r.stopping)
	ctx = rpc.As(ctx, rpc.Anyone) // what is done of its own accord
	var watch sync.WaitGroup
	defer watch.Wait()
	watch.Go(func() { r.watch(ctx) })
	watch.Go(func() {
		if err := rpc.Guard(r.log, "sharing out quotas", func() error { r.quotas.run(ctx); return nil }); err != nil {
			r.log.Error("workers are told no quotas any more", "error", err)
		}
	})
	watch.Go(func() {
		if err := rpc.Guard(r.log, "making copies of sessions", func() error { r.copies.run(ctx); return nil }); err != nil {
			r.log.Error("no copies of sessions are made any more", "error", err)
		}
	})
	watch.Go(func() {
		if err := rpc.Guard(r.log, "looking at how quickly workers answer", func() error { r.keepSpeeds(ctx); return nil }); err != nil {
			r.log.Error("weights are not made of measured speed any more", "error", err)
		}
	})
	r.workers.Keep(ctx)
}

// Close ends the connections to workers. Call it after Run and the server have ended.
func (r *Relay) Close() error {
	r.lanes.Wait()
	return r.conns.Close()
}

func sessionID(id []byte) ([16]byte, error) {
	if len(id) != 16 {
		return [16]byte{}, session.Errorf(session.Invalid, "a session's id has %d bytes, not 16", len(id))
	}
	return [16]byte(id), nil
}

// refusal is an error as the answer to a call: a refusal with its reason, but for what the caller's context has ended.
func refusal(err error) error {
	if errors.Is(err, context.DeadlineExceeded) || errors.Is(err, context.Canceled) {
		return status.FromContextError(err).Err()
	}
	return session.Refusal(err)
}

// failed is the error of a call on a session. Its holders are asked for again where they seem to be others.
func (r *Relay) failed(ctx context.Context, id []byte, err error) error {
	if fanout.Is(err, session.Lost) || fanout.Is(err, session.Unknown) {
		r.doubt(ctx, id)
	}
	err = refusal(err)
	if e, refused := err.(*session.Error); refused {
		return r.missed(ctx, id, e)
	}
	return err
}

// CreateSession implements headwater.v1.SessionService.
func (r *Relay) CreateSession(ctx context.Context, req *headwaterv1.CreateSessionRequest) (*headwaterv1.CreateSessionResponse, error) {
	if err := claim(ctx, req.GetConfig()); err != nil {
		return nil, err
	}
	state, err := r.create(ctx, req)
	if err != nil {
		return nil, r.failed(ctx, req.GetSession(), err)
	}
	return &headwaterv1.CreateSessionResponse{State: state}, nil
}

func (r *Relay) create(ctx context.Context, req *headwaterv1.CreateSessionRequest) (*headwaterv1.SessionState, error) {
	id, err := sessionID(req.GetSession())
	if err != nil {
		return nil, err
	}
	if len(req.GetHeld()) != 0 {
		return nil, session.Errorf(session.Invalid, "a coordinator plans who holds what; it is not told")
	}
	caller := rpc.CallerOf(ctx)
	// A request that comes again finds what it has made before, also at another coordinator.
	var h *fanout.Holding
	known, err := r.find(rpc.As(ctx, rpc.Anyone), req.GetSession())
	switch {
	case err == nil && !caller.Owns(known.Tenant()):
		return nil, exists(id)
	case err == nil:
		if h = known.Holding(); req.GetConfig() != nil && req.GetConfig().Replicas == nil {
			req.Config.Replicas = proto.Uint32(uint32(h.Replicas()))
		}
		if err := asMade(req.GetConfig().GetLayers(), h.Layers()); err != nil {
			return nil, err
		}
	case fanout.Is(err, session.Unknown) || fanout.Is(err, session.Lost):
		if h, err = r.plan(ctx, req); err != nil {
			return nil, err
		}
	default:
		return nil, err
	}
	state, err := r.conns.Create(ctx, h, req)
	if err != nil {
		return nil, err
	}
	r.remember(id, h.Under(state))
	r.log.Debug("session created", "session", fmt.Sprintf("%x", id), "holders", len(h.Holders()))
	return state, nil
}

// claim makes the tenant of a session that is to be made the caller's, or a part of it that the config names.
func claim(ctx context.Context, config *headwaterv1.SessionConfig) error {
	tenant, err := rpc.CallerOf(ctx).Claim(config.GetTenant())
	if err != nil {
		return status.Error(codes.PermissionDenied, err.Error())
	}
	if config != nil {
		config.Tenant = tenant
	}
	return nil
}

// exists refuses an id that another tenant's session has.
func exists(id [16]byte) error {
	return session.Errorf(session.Exists, "session %x is held with another config", id)
}

// plan gives the session's groups to the workers that answer; see placement.Place.
func (r *Relay) plan(ctx context.Context, req *headwaterv1.CreateSessionRequest) (*fanout.Holding, error) {
	layers, left, err := layerproto.ReadAsked(req.GetConfig().GetLayers())
	if err != nil {
		return nil, session.Errorf(session.Invalid, "%v", err)
	}
	geometry, err := shard.HeldGeometry(layers)
	if err != nil {
		return nil, session.Errorf(session.Invalid, "%v", err)
	}
	answering, err := workers.Placeable(r.workers.Describe(ctx, r.workers.List()))
	if err != nil {
		return nil, err
	}
	if req.GetConfig().Replicas == nil {
		most := len(answering)
		if asked := int(req.GetWorkers()); asked > 0 {
			most = min(most, asked)
		}
		req.Config.Replicas = proto.Uint32(uint32(min(r.replicas, most-1)))
	}
	rooms := roomsOf(answering)
	r.weigh(rooms, answering)
	placed, err := placement.Place(geometry, placeKey(req), rooms, int(min(req.GetWorkers(), shard.MaxWorkers)), int(min(req.GetConfig().GetReplicas(), shard.MaxReplicas)))
	if err != nil {
		return nil, fmt.Errorf("plan: %w", err)
	}
	may := answering // hold a part of it
	if left {
		if layers, may, err = takeArithmetic(req.GetConfig().GetLayers(), answering, placed); err != nil {
			return nil, err
		}
	}
	// Where a prefix lies counts more than the draw, but not more than room, nor than as many workers and copies as there are to be.
	if hasPrefix(req) && len(may) > 1 {
		all := r.findPrefixes(ctx, roomy(may, roomsOf(may)), layers, req)
		times := 1 + int(min(req.GetConfig().GetReplicas(), shard.MaxReplicas, uint32(len(placed)-1)))
		if at := placement.Cover(geometry, all, len(placed), times, xxh3.Hash(req.GetSession())); at != nil {
			placed = at
		}
	}
	var holders []*fanout.Holder
	for _, w := range answering {
		if groups := placed[w.Name]; groups != nil {
			holders = append(holders, &fanout.Holder{Name: w.Name, Boot: w.Said.GetBoot(), Address: w.Address, Groups: groups})
		}
	}
	return fanout.NewHolding(layers, holders...)
}

// TakeSession implements headwater.v1.SessionService.
func (r *Relay) TakeSession(ctx context.Context, req *headwaterv1.TakeSessionRequest) (*headwaterv1.TakeSessionResponse, error) {
	p, err := r.find(ctx, req.GetSession())
	if err == nil {
		var state *headwaterv1.SessionState
		if state, err = r.conns.Take(ctx, p, req); err == nil {
			return &headwaterv1.TakeSessionResponse{State: state}, nil
		}
	}
	return nil, r.failed(ctx, req.GetSession(), err)
}

// ForkSession implements headwater.v1.SessionService.
func (r *Relay) ForkSession(ctx context.Context, req *headwaterv1.ForkSessionRequest) (*headwaterv1.ForkSessionResponse, error) {
	child, err := sessionID(req.GetChild())
	if err != nil {
		return nil, refusal(err)
	}
	if r.taken(ctx, child) {
		return nil, refusal(exists(child))
	}
	p, err := r.find(ctx, req.GetSession())
	if err == nil {
		var state *headwaterv1.SessionState
		if state, err = r.conns.Fork(ctx, p, req); err == nil {
			r.remember(child, p.Holding().Of(req.GetChildEpoch().GetCounter()))
			return &headwaterv1.ForkSessionResponse{State: state}, nil
		}
	}
	return nil, r.failed(ctx, req.GetSession(), err)
}

// TruncateSession implements headwater.v1.SessionService.
func (r *Relay) TruncateSession(ctx context.Context, req *headwaterv1.TruncateSessionRequest) (*headwaterv1.TruncateSessionResponse, error) {
	p, err := r.find(ctx, req.GetSession())
	if err == nil {
		var state *headwaterv1.SessionState
		if state, err = r.conns.Truncate(ctx, p, req); err == nil {
			return &headwaterv1.TruncateSessionResponse{State: state}, nil
		}
	}
	return nil, r.failed(ctx, req.GetSession(), err)
}

// PinSession implements headwater.v1.SessionService.
func (r *Relay) PinSession(ctx context.Context, req *headwaterv1.PinSessionRequest) (*headwaterv1.PinSessionResponse, error) {
	p, err := r.find(ctx, req.GetSession())
	if err == nil {
		var state *headwaterv1.SessionState
		if state, err = r.conns.Pin(ctx, p, req); err == nil {
			return &headwaterv1.PinSessionResponse{State: state}, nil
		}
	}
	return nil, r.failed(ctx, req.GetSession(), err)
}

// DropSession implements headwater.v1.SessionService. It also drops what is left of a session that has lost holders.
func (r *Relay) DropSession(ctx context.Context, req *headwaterv1.DropSessionRequest) (*headwaterv1.DropSessionResponse, error) {
	id, err := sessionID(req.GetSession())
	if err != nil {
		return nil, refusal(err)
	}
	// Workers that do not hold it are not asked, so that a dead one is in nobody's way.
	members, awaited := r.listed()
	p, err := r.find(ctx, req.GetSession())
	if caller := rpc.CallerOf(ctx); err == nil && caller.Holder.Role == certs.Admin {
		rpc.Audit(ctx, r.log, "a session is dropped", slog.String("session", fmt.Sprintf("%x", id)), slog.String("tenant", p.Tenant()))
	}
	if err == nil && req.GetCall() == 0 {
		err = r.conns.End(ctx, p, req)
	} else {
		var all []*fanout.Holder
		for _, m := range members {
			all = append(all, &fanout.Holder{Name: m.Name, Address: m.Address})
		}
		err = r.conns.Drop(ctx, all, req)
	}
	if err == nil {
		r.forget(ctx, id)
		return &headwaterv1.DropSessionResponse{}, nil
	}
	if fanout.Is(err, session.Unknown) && len(awaited) > 0 {
		err = fanout.Silent(awaited, fanout.AllLost())
	}
	return nil, r.failed(ctx, req.GetSession(), err)
}

// ListSessions implements headwater.v1.SessionService. Workers that do not answer are named.
func (r *Relay) ListSessions(ctx context.Context, req *headwaterv1.ListSessionsRequest) (*headwaterv1.ListSessionsResponse, error) {
	for _, id := range req.GetSessions() {
		if _, err := sessionID(id); err != nil {
			return nil, err
		}
	}
	if err := claim(ctx, req.GetPrefix().GetConfig()); err != nil {
		return nil, err
	}
	req.Others = req.GetHoldersOnly() && len(req.GetSessions()) == 1
	members, awaited := r.listed()
	answers, silent, err := r.named(ctx, members, awaited, req)
	if err != nil {
		return nil, refusal(err)
	}
	resp := &headwaterv1.ListSessionsResponse{Silent: silent}
	for i, a := range answers {
		for _, cache := range a.GetCaches() {
			cache.Worker = members[i].Name
			resp.Caches = append(resp.Caches, cache)
		}
	}
	parts := bySession(members, answers)
	for id, states := range parts {
		if req.GetOthers() {
			states = r.follow(ctx, id, members, states)
		}
		if req.GetHoldersOnly() && slices.ContainsFunc(states, func(s *headwaterv1.SessionState) bool { return s.GetEpoch().GetBase() != 0 }) {
			r.copies.look(id) // Who asks may have left a worker out.
		}
		var sides []*headwaterv1.OtherSide
		if len(req.GetSessions()) > 0 && !req.GetHoldersOnly() {
			sides = sidesOf(states)
		}
		joined := joinStates(states)
		joined.OtherSides = sides
		resp.Sessions = append(resp.Sessions, joined)
	}
	slices.SortFunc(resp.Sessions, func(a, b *headwaterv1.SessionState) int { return bytes.Compare(a.GetSession(), b.GetSession()) })
	// Each worker has told its first ones, so that the first of all are whole. Of those beyond parts may be missing.
	if limit := int(req.GetLimit()); limit > 0 && len(req.GetSessions()) == 0 && len(resp.Sessions) > limit {
		resp.Sessions = resp.Sessions[:limit]
	}
	return resp, nil
}

// bySession returns what members tell of each session. They name themselves among its holders as they are known here.
func bySession(members []membership.Member, answers []*headwaterv1.ListSessionsResponse) map[[16]byte][]*headwaterv1.SessionState {
	all := map[[16]byte][]*headwaterv1.SessionState{}
	for i, a := range answers {
		for _, state := range a.GetSessions() {
			id, err := sessionID(state.GetSession())
			if err != nil {
				continue
			}
			for _, o := range state.GetHolders() {
				o.Name, o.Address = members[i].Name, members[i].Address
			}
			all[id] = append(all[id], state)
		}
	}
	return all
}

// joinStates makes one state of those of some holders: where they are whole with all that was promised; else, as in a list
// of all sessions, without hashes, and with the lengths that all have.
func joinStates(states []*headwaterv1.SessionState) *headwaterv1.SessionState {
	for _, s := range states {
		s.Others = nil // all are told of here
	}
	if states[0].GetConfig() != nil {
		if h, newest, err := fanout.Current(states); err == nil {
			if states = newest; h.Closed() && !states[0].GetEpoch().GetClosed() {
				states[0].Epoch = proto.CloneOf(states[0].GetEpoch())
				states[0].Epoch.Closed = true
			}
			if len(h.Holders()) == len(states) {
				if all, err := h.Join(states[0].GetSession(), states); err == nil {
					return all
				}
			}
		}
	}
	states = fanout.Counting(states)
	var holders []*headwaterv1.Holder
	for _, s := range states {
		holders = append(holders, s.GetHolders()...)
	}
	all := proto.CloneOf(states[0])
	all.Holders, all.Layers, all.PageBytes, all.OwnBytes = holders, nil, 0, 0
	lengths, firsts := map[uint32]uint64{}, map[uint32]uint64{}
	for _, s := range states {
		all.PageBytes += s.GetPageBytes()
		all.OwnBytes += s.GetOwnBytes()
		for _, l := range s.GetLayers() {
			if length, ok := lengths[l.GetLayer()]; !ok || l.GetLength() < length {
				lengths[l.GetLayer()] = l.GetLength()
			}
			firsts[l.GetLayer()] = max(firsts[l.GetLayer()], l.GetFirst())
		}
	}
	for layer, length := range lengths {
		all.Layers = append(all.Layers, &headwaterv1.LayerState{Layer: layer, Length: length, First: firsts[layer]})
	}
	slices.SortFunc(all.Layers, func(a, b *headwaterv1.LayerState) int { return cmp.Compare(a.GetLayer(), b.GetLayer()) })
	return all
}

// AdoptSession implements headwater.v1.SessionService: copies are workers'.
func (r *Relay) AdoptSession(context.Context, *headwaterv1.AdoptSessionRequest) (*headwaterv1.AdoptSessionResponse, error) {
	return nil, session.Errorf(session.Invalid, "only a worker takes a copy")
}

// ExportSession implements headwater.v1.SessionService.
func (r *Relay) ExportSession(req *headwaterv1.ExportSessionRequest, stream grpc.ServerStreamingServer[headwaterv1.ExportSessionResponse]) error {
	p, err := r.find(stream.Context(), req.GetSession())
	if err == nil {
		err = r.conns.Export(stream.Context(), p, req, stream.Send)
	}
	if err != nil {
		return r.failed(stream.Context(), req.GetSession(), err)
	}
	return nil
}
