// Package plainholder is a holder of sessions for tests: the rules of docs/sessions.md over a map of slices, with nothing
// shared, paged, batched or freed. What a worker answers must be what it answers.
package plainholder

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"slices"
	"sync"

	"google.golang.org/grpc"

	"headwater.example/internal/kvcache"
	"headwater.example/internal/layerproto"
	"headwater.example/internal/rpc"
	"headwater.example/internal/session"
	headwaterv1 "headwater.example/proto/headwater/v1"
	"headwater.example/shard"
	"headwater.example/tensor"
)

// Holder implements session.Service and the part of WorkerService that says who it is.
type Holder struct {
	headwaterv1.UnimplementedWorkerServiceServer
	Name string
	Boot [16]byte
	// Where has the addresses of others by their names, which it tells who asks for the others that have an epoch.
	Where map[string]string
	// Fault is what the holder does wrong, for tests of what is to notice it.
	Fault Fault

	owed     func() // of AcknowledgesEarly: what it has answered and not done
	mu       sync.Mutex
	refuse   func(*session.Step) *session.Error
	sessions map[[16]byte]*heldSession
	dropped  map[[16]byte]bool
	lanes    int // open now
}

// Set makes refuse, unless it is nil, be asked before each step; its error is the answer.
func (h *Holder) Set(refuse func(*session.Step) *session.Error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.refuse = refuse
}

type heldSession struct {
	fault       Fault
	config      *headwaterv1.SessionConfig
	layers      []shard.LayerSpec // of the config
	held        []*headwaterv1.HeldLayer
	epoch       *headwaterv1.Epoch
	truncations uint64
	cut         uint64 // id of the last truncation
	call        uint64 // that made it
	stories     map[uint32]*story
	pinned      bool
	shards      map[[2]int]*rows // by layer and group, of a layer in stripes by layer and shard
}

// numbers are the groups that are held of a layer, or the shards if it is in stripes.
func numbers(held *headwaterv1.HeldLayer) []uint32 {
	if len(held.GetShards()) > 0 {
		return held.GetShards()
	}
	return held.GetGroups()
}

// story is how a layer came to be what it is.
type story struct {
	chain, appendID uint64
	before          *headwaterv1.LayerState // the layer before its newest change
}

// layer is what is held of a layer.
func (s *heldSession) layer(held *headwaterv1.HeldLayer) *headwaterv1.LayerState {
	told := s.stories[held.GetLayer()]
	l := &headwaterv1.LayerState{Layer: held.GetLayer(), Chain: told.chain, AppendId: told.appendID, Before: told.before}
	for _, g := range numbers(held) {
		r := s.shards[[2]int{int(held.GetLayer()), int(g)}]
		l.Length = uint64(len(r.hashes))
		l.Hashes = append(l.Hashes, r.hash(len(r.hashes)))
	}
	return l
}

// became notes a layer's newest change.
func (s *heldSession) became(before *headwaterv1.LayerState, chain, appendID uint64) {
	// Answers that are being sent may have the message.
	was := &headwaterv1.LayerState{Layer: before.GetLayer(), Length: before.GetLength(), Chain: before.GetChain(), Hashes: before.GetHashes()}
	*s.stories[was.GetLayer()] = story{chain: chain, appendID: appendID, before: was}
}

func tell(held []*headwaterv1.HeldLayer) map[uint32]*story {
	stories := map[uint32]*story{}
	for _, l := range held {
		stories[l.GetLayer()] = &story{}
	}
	return stories
}

// is says whether a state is the one that is named.
func is(have, named *headwaterv1.LayerState) bool {
	return have.GetLength() == named.GetLength() && have.GetChain() == named.GetChain() && slices.Equal(have.GetHashes(), named.GetHashes())
}

// named finds what a request names of a held layer, among those that it names.
func named(expect []*headwaterv1.LayerState, held *headwaterv1.HeldLayer) (*headwaterv1.LayerState, *session.Error) {
	i := slices.IndexFunc(expect, func(l *headwaterv1.LayerState) bool { return l.GetLayer() == held.GetLayer() })
	if i < 0 || len(expect[i].GetHashes()) != len(numbers(held)) {
		return nil, refuse(invalid, "layer %d is not named", held.GetLayer())
	}
	return expect[i], nil
}

// starts finds what a truncation starts from at a layer.
func (s *heldSession) starts(expect []*headwaterv1.LayerState, held *headwaterv1.HeldLayer) (*headwaterv1.LayerState, *session.Error) {
	want, err := named(expect, held)
	if err != nil {
		return nil, err
	}
	now := s.layer(held)
	switch {
	case is(now, want):
		return now, nil
	case now.GetBefore() != nil && is(now.GetBefore(), want) && want.GetAppendId() == now.GetAppendId() && now.GetAppendId() != 0:
		return now.GetBefore(), nil
	case now.GetLength() < want.GetLength():
		return nil, refuse(behind, "layer %d has %d positions of %d", held.GetLayer(), now.GetLength(), want.GetLength())
	case now.GetLength() > want.GetLength():
		return nil, refuse(ahead, "layer %d has %d positions of %d", held.GetLayer(), now.GetLength(), want.GetLength())
	}
	return nil, refuse(different, "layer %d is different", held.GetLayer())
}

// rows are a shard's keys and values in the storage type, of the positions that it stores, and the hash after each position of the layer.
type rows struct {
	layer          *shard.LayerSpec
	number         int // of the group, or of the shard
	k, v           []byte
	kScale, vScale []float32
	hashes         []uint64
}

// Register adds the holder's services to a server.
func (h *Holder) Register(s grpc.ServiceRegistrar) {
	h.sessions, h.dropped = map[[16]byte]*heldSession{}, map[[16]byte]bool{}
	headwaterv1.RegisterWorkerServiceServer(s, h)
	session.Register(s, h)
}

// Describe implements headwater.v1.WorkerService.
func (h *Holder) Describe(context.Context, *headwaterv1.DescribeRequest) (*headwaterv1.DescribeResponse, error) {
	return &headwaterv1.DescribeResponse{Name: h.Name, Boot: h.Boot[:], Weight: 1, BudgetBytes: 1 << 30, Threads: 1}, nil
}

func refuse(p session.Reason, format string, args ...any) *session.Error {
	return session.Errorf(p, format, args...)
}

const (
	invalid          = session.Invalid
	unknown          = session.Unknown
	exists           = session.Exists
	behind           = session.Behind
	ahead            = session.Ahead
	different        = session.Different
	staleEpoch       = session.StaleEpoch
	otherTruncations = session.OtherTruncations
	notFinite        = session.NotFinite
)

func (h *Holder) find(id []byte) (*heldSession, *session.Error) {
	s := h.sessions[[16]byte(id)]
	if s == nil {
		return nil, refuse(unknown, "session %x is not held", id)
	}
	return s, nil
}

func compare(a, b *headwaterv1.Epoch) int {
	return cmp.Or(cmp.Compare(a.GetCounter(), b.GetCounter()), bytes.Compare(a.GetLane(), b.GetLane()))
}

func (s *heldSession) stale() *session.Error {
	err := refuse(staleEpoch, "another lane drives the session")
	err.Why.Epoch = s.epoch
	return err
}

// check refuses an epoch that is neither the accepted one nor its base.
func (s *heldSession) check(e *headwaterv1.Epoch) *session.Error {
	if s.fault == TakesAnyEpoch {
		return nil
	}
	base := &headwaterv1.Epoch{Counter: s.epoch.GetBase(), Lane: s.epoch.GetLane()}
	if e.GetAt() != 0 && e.GetAt() != s.epoch.GetCounter() {
		return s.stale()
	}
	if compare(e, s.epoch) != 0 && (s.epoch.GetBase() == 0 || compare(e, base) != 0) {
		return s.stale()
	}
	return nil
}

func (s *heldSession) truncated(n uint64) *session.Error {
	if n != s.truncations && s.fault != TakesLateRetries {
		err := refuse(otherTruncations, "%d truncations, not %d", s.truncations, n)
		err.Why.Truncations = s.truncations
		return err
	}
	return nil
}

// state of a session. ids says that it was asked for by its id.
func (h *Holder) state(id []byte, s *heldSession, ids bool) *headwaterv1.SessionState {
	state := &headwaterv1.SessionState{Session: id, Epoch: s.epoch, Truncations: s.truncations, Pinned: s.pinned, Name: s.config.GetName(), Tenant: s.config.GetTenant()}
	state.TruncationId = s.cut
	for _, held := range s.held {
		for _, g := range numbers(held) {
			r := s.shards[[2]int{int(held.GetLayer()), int(g)}]
			state.PageBytes += uint64(len(r.k) + len(r.v))
		}
		state.Layers = append(state.Layers, s.layer(held))
	}
	state.OwnBytes = state.PageBytes
	state.Holders = []*headwaterv1.Holder{{Name: h.Name, Boot: h.Boot[:], Layers: s.held}}
	if ids {
		state.Config = s.config
	}
	return state
}

func (r *rows) hash(n int) uint64 {
	if n == 0 {
		return 0
	}
	return r.hashes[n-1]
}

// CreateSession implements session.Service.
func (h *Holder) CreateSession(_ context.Context, req *headwaterv1.CreateSessionRequest) (*headwaterv1.CreateSessionResponse, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	id := [16]byte(req.GetSession())
	if h.dropped[id] {
		return nil, refuse(exists, "session %x was dropped", id)
	}
	if s := h.sessions[id]; s != nil {
		if s.check(req.GetEpoch()) != nil {
			return nil, refuse(exists, "session %x is there", id)
		}
		return &headwaterv1.CreateSessionResponse{State: h.state(id[:], s, true)}, nil
	}
	for _, b := range req.GetBegin() {
		if b.GetFirst() > 0 {
			return nil, refuse(invalid, "layer %d can not begin at position %d: nothing is freed here", b.GetLayer(), b.GetFirst())
		}
	}
	layers, bad := layerproto.ReadSessionLayers(req.GetConfig().GetLayers())
	if bad != nil {
		return nil, refuse(invalid, "%v", bad)
	}
	s := &heldSession{fault: h.Fault, config: req.GetConfig(), layers: layers, held: req.GetHeld(), epoch: req.GetEpoch(), shards: map[[2]int]*rows{}, call: req.GetCall(), stories: tell(req.GetHeld())}
	for _, held := range s.held {
		if int64(held.GetLayer()) >= int64(len(layers)) {
			return nil, refuse(invalid, "layer %d of %d", held.GetLayer(), len(layers))
		}
		for _, g := range numbers(held) {
			s.shards[[2]int{int(held.GetLayer()), int(g)}] = &rows{layer: &layers[held.GetLayer()], number: int(g)}
		}
	}
	h.sessions[id] = s
	return &headwaterv1.CreateSessionResponse{State: h.state(id[:], s, true)}, nil
}

// TakeSession implements session.Service.
func (h *Holder) TakeSession(_ context.Context, req *headwaterv1.TakeSessionRequest) (*headwaterv1.TakeSessionResponse, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	s, err := h.find(req.GetSession())
	if at := req.GetEpoch().GetAt(); err == nil && (compare(req.GetEpoch(), s.epoch) < 0 || compare(req.GetEpoch(), s.epoch) != 0 && at != 0 && at != s.epoch.GetCounter()) {
		err = s.stale()
	}
	if base := req.GetEpoch().GetBase(); err == nil && base != 0 {
		err = s.check(&headwaterv1.Epoch{Counter: base, Lane: req.GetEpoch().GetLane()})
	}
	if err == nil && len(req.GetExpect()) > 0 {
		err = s.truncated(req.GetTruncations())
	}
	if err != nil {
		return nil, err
	}
	for _, l := range req.GetExpect() {
		i := slices.IndexFunc(s.held, func(held *headwaterv1.HeldLayer) bool { return held.GetLayer() == l.GetLayer() })
		if i < 0 {
			return nil, refuse(invalid, "layer %d is not held", l.GetLayer())
		}
		for j, g := range numbers(s.held[i]) {
			r := s.shards[[2]int{int(l.GetLayer()), int(g)}]
			if uint64(len(r.hashes)) < l.GetLength() {
				return nil, refuse(behind, "layer %d has %d positions of %d", l.GetLayer(), len(r.hashes), l.GetLength())
			}
			if r.hash(int(l.GetLength())) != l.GetHashes()[j] {
				return nil, refuse(different, "layer %d group %d is different", l.GetLayer(), g)
			}
		}
	}
	if req.GetCheckOnly() {
		return &headwaterv1.TakeSessionResponse{}, nil
	}
	s.epoch = req.GetEpoch()
	return &headwaterv1.TakeSessionResponse{State: h.state(req.GetSession(), s, true)}, nil
}

// ForkSession implements session.Service.
func (h *Holder) ForkSession(_ context.Context, req *headwaterv1.ForkSessionRequest) (*headwaterv1.ForkSessionResponse, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	s, err := h.find(req.GetSession())
	if err == nil {
		err = s.check(req.GetEpoch())
	}
	if err == nil {
		err = s.truncated(req.GetTruncations())
	}
	if err != nil {
		return nil, err
	}
	id := [16]byte(req.GetChild())
	child := h.sessions[id]
	if child == nil {
		child = &heldSession{fault: h.Fault, config: s.config, layers: s.layers, held: s.held, epoch: req.GetChildEpoch(), shards: map[[2]int]*rows{}, call: req.GetCall(), stories: tell(s.held)}
		for _, held := range s.held {
			want, err := named(req.GetExpect(), held)
			if err != nil {
				return nil, err
			}
			n := want.GetLength()
			if req.Position != nil {
				n = req.GetPosition()
			}
			now := s.layer(held)
			if want.GetLength() > now.GetLength() || n > want.GetLength() {
				return nil, refuse(behind, "position %d of %d and %d", n, want.GetLength(), now.GetLength())
			}
			for j, g := range numbers(held) {
				key := [2]int{int(held.GetLayer()), int(g)}
				if s.shards[key].hash(int(want.GetLength())) != want.GetHashes()[j] || want.GetLength() == now.GetLength() && want.GetChain() != now.GetChain() {
					return nil, refuse(different, "layer %d is different", held.GetLayer())
				}
				child.shards[key] = s.shards[key].clone(int(n))
			}
		}
		h.sessions[id] = child
	}
	return &headwaterv1.ForkSessionResponse{State: h.state(id[:], child, true)}, nil
}

// clone copies the first n positions.
func (r *rows) clone(n int) *rows {
	c, stored, l := &rows{layer: r.layer, number: r.number, hashes: slices.Clone(r.hashes[:n])}, r.layer.Stored(r.number, 0, n), r.layer.Layout
	c.k, c.v = bytes.Clone(r.k[:stored*l.KRowBytes()]), bytes.Clone(r.v[:stored*l.VRowBytes()])
	if len(r.kScale) > 0 {
		c.kScale, c.vScale = slices.Clone(r.kScale[:stored]), slices.Clone(r.vScale[:stored])
	}
	return c
}

// TruncateSession implements session.Service.
func (h *Holder) TruncateSession(_ context.Context, req *headwaterv1.TruncateSessionRequest) (*headwaterv1.TruncateSessionResponse, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	s, err := h.find(req.GetSession())
	if err == nil {
		err = s.check(req.GetEpoch())
	}
	lengths := req.GetLengths()
	if err == nil && len(lengths) == 0 {
		lengths = slices.Repeat([]uint64{req.GetPosition()}, len(s.config.GetLayers()))
	}
	if err == nil && len(lengths) != len(s.config.GetLayers()) {
		err = refuse(invalid, "lengths of %d layers of %d", len(lengths), len(s.config.GetLayers()))
	}
	if err == nil && s.cut == req.GetId() && req.GetId() != 0 {
		return &headwaterv1.TruncateSessionResponse{State: h.state(req.GetSession(), s, true)}, nil
	}
	if err == nil {
		err = s.truncated(req.GetTruncations())
	}
	count := cmp.Or(req.GetCount(), req.GetTruncations()+1)
	if err == nil && (req.GetId() == 0 || count <= req.GetTruncations()) {
		err = refuse(invalid, "a truncation of id %d to a count of %d", req.GetId(), count)
	}
	if err != nil {
		return nil, err
	}
	var from []*headwaterv1.LayerState
	for _, held := range s.held {
		start, err := s.starts(req.GetExpect(), held)
		if err != nil {
			return nil, err
		}
		from = append(from, start)
	}
	if req.GetCheckOnly() {
		return &headwaterv1.TruncateSessionResponse{}, nil
	}
	for i, held := range s.held {
		for _, g := range numbers(held) {
			key := [2]int{int(held.GetLayer()), int(g)}
			s.shards[key] = s.shards[key].clone(int(min(lengths[held.GetLayer()], from[i].GetLength())))
		}
		s.became(from[i], req.GetId(), 0)
	}
	s.truncations, s.cut = count, req.GetId()
	return &headwaterv1.TruncateSessionResponse{State: h.state(req.GetSession(), s, true)}, nil
}

// PinSession implements session.Service.
func (h *Holder) PinSession(_ context.Context, req *headwaterv1.PinSessionRequest) (*headwaterv1.PinSessionResponse, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	s, err := h.find(req.GetSession())
	if err != nil {
		return nil, err
	}
	s.pinned = req.GetPinned()
	return &headwaterv1.PinSessionResponse{State: h.state(req.GetSession(), s, true)}, nil
}

// DropSession implements session.Service.
func (h *Holder) DropSession(_ context.Context, req *headwaterv1.DropSessionRequest) (*headwaterv1.DropSessionResponse, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.dropped[[16]byte(req.GetSession())] {
		return &headwaterv1.DropSessionResponse{}, nil
	}
	s, err := h.find(req.GetSession())
	if err != nil && req.GetCall() != 0 {
		h.dropped[[16]byte(req.GetSession())] = true
		return &headwaterv1.DropSessionResponse{}, nil
	}
	if err == nil && req.GetCall() != 0 && req.GetCall() != s.call {
		err = refuse(exists, "another call has made it")
	}
	if err == nil && req.GetEpoch() != nil {
		err = s.check(req.GetEpoch())
	}
	if err != nil {
		return nil, err
	}
	delete(h.sessions, [16]byte(req.GetSession()))
	h.dropped[[16]byte(req.GetSession())] = true
	return &headwaterv1.DropSessionResponse{}, nil
}

// ListSessions implements session.Service.
func (h *Holder) ListSessions(_ context.Context, req *headwaterv1.ListSessionsRequest) (*headwaterv1.ListSessionsResponse, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	cache := &headwaterv1.CacheState{Worker: h.Name, BudgetBytes: 1 << 30, Lanes: uint64(h.lanes)}
	resp := &headwaterv1.ListSessionsResponse{Caches: []*headwaterv1.CacheState{cache}}
	for id, s := range h.sessions {
		if !req.GetCachesOnly() && (len(req.GetSessions()) == 0 || slices.ContainsFunc(req.GetSessions(), func(b []byte) bool { return bytes.Equal(b, id[:]) })) {
			state := h.state(id[:], s, len(req.GetSessions()) > 0)
			for _, name := range state.GetEpoch().GetMembers() {
				if address, ok := h.Where[name]; ok && req.GetOthers() && name != h.Name {
					state.Others = append(state.Others, &headwaterv1.Holder{Name: name, Address: address})
				}
			}
			resp.Sessions = append(resp.Sessions, state)
		}
		cache.UsedBytes += h.state(id[:], s, false).GetPageBytes()
	}
	slices.SortFunc(resp.GetSessions(), func(a, b *headwaterv1.SessionState) int { return bytes.Compare(a.GetSession(), b.GetSession()) })
	if len(req.GetSessions()) == 0 {
		resp.Sessions = slices.DeleteFunc(resp.Sessions, func(s *headwaterv1.SessionState) bool { return bytes.Compare(s.GetSession(), req.GetAfter()) <= 0 })
		if limit := int(req.GetLimit()); limit > 0 && limit < len(resp.Sessions) {
			resp.Sessions = resp.Sessions[:limit]
		}
	}
	return resp, nil
}

// AdoptSession implements session.Service. It is not there.
func (h *Holder) AdoptSession(context.Context, *headwaterv1.AdoptSessionRequest) (*headwaterv1.AdoptSessionResponse, error) {
	return nil, refuse(invalid, "no copies are taken here")
}

// ExportSession implements session.Service.
func (h *Holder) ExportSession(req *headwaterv1.ExportSessionRequest, stream grpc.ServerStreamingServer[headwaterv1.ExportSessionResponse]) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	s, err := h.find(req.GetSession())
	if err != nil {
		return err
	}
	for _, held := range s.held {
		if held.GetLayer() != req.GetLayer() {
			continue
		}
		for _, g := range numbers(held) {
			if len(req.GetGroups()) > 0 && !slices.Contains(req.GetGroups(), g) {
				continue
			}
			r := s.shards[[2]int{int(req.GetLayer()), int(g)}]
			n := len(r.hashes)
			count := int(req.GetCount())
			if count == 0 {
				count = n - int(req.GetStart())
			}
			if int(req.GetStart())+count > n || count < 0 {
				return refuse(invalid, "positions %d to %d of %d", req.GetStart(), int(req.GetStart())+count, n)
			}
			if err := r.export(int(req.GetStart()), count, stream.Send); err != nil {
				return err
			}
		}
	}
	return nil
}

// export sends the stored ones of some positions, in pieces of 7, so that readers do not count on one.
func (r *rows) export(start, count int, send func(*headwaterv1.ExportSessionResponse) error) (err error) {
	kb, vb, before := r.layer.Layout.KRowBytes(), r.layer.Layout.VRowBytes(), r.layer.Stored(r.number, 0, start)
	r.layer.Runs(r.number, start, count, func(from, count, row int) bool {
		for at := from; at < from+count && err == nil; at += 7 {
			m, i := min(7, from+count-at), before+row+at-from
			piece := &headwaterv1.ExportSessionResponse{
				Group: uint32(r.number), Start: uint64(at), Count: uint32(m), K: r.k[i*kb:][:m*kb], V: r.v[i*vb:][:m*vb], HashBefore: r.hash(at), HashAfter: r.hash(at + m),
			}
			if len(r.kScale) > 0 {
				piece.KScale, piece.VScale = floatBytes(r.kScale[i:][:m]), floatBytes(r.vScale[i:][:m])
			}
			err = send(piece)
		}
		return err == nil
	})
	return err
}

func floatBytes(f []float32) []byte {
	b := make([]byte, 4*len(f))
	_ = tensor.Narrow(b, f, tensor.F32) // lengths match
	return b
}

func floats(b []byte) []float32 {
	f := make([]float32, len(b)/4)
	_ = tensor.Widen(f, b, tensor.F32) // lengths match
	return f
}

// Lane implements session.Service.
func (h *Holder) Lane(stream *session.ServerStream) error {
	h.mu.Lock()
	h.lanes++
	h.mu.Unlock()
	defer func() {
		h.mu.Lock()
		h.lanes--
		h.mu.Unlock()
	}()
	for {
		var req session.Request
		err := stream.Recv(&req)
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		resp := session.Response{ID: req.ID}
		if refused := h.step(stream.ID(), &req, &resp); refused != nil {
			resp.Payload.Free()
			resp = session.Response{ID: req.ID, Result: session.Result{Err: refused}}
		}
		req.Payload.Free()
		req.Payload = nil
		if err := stream.Send(&resp); err != nil {
			return err
		}
	}
}

// step does one step. Long: the rules of a step, in the order of docs/sessions.md.
func (h *Holder) step(by session.LaneID, req *session.Request, resp *session.Response) *session.Error {
	h.mu.Lock()
	defer h.mu.Unlock()
	m := &req.Step
	if h.refuse != nil {
		if err := h.refuse(m); err != nil {
			return err
		}
	}
	if h.owed != nil {
		h.owed()
		h.owed = nil
	}
	s, err := h.find(m.Session[:])
	if err != nil {
		return err
	}
	if err := s.check(&headwaterv1.Epoch{Counter: m.Epoch, Lane: by[:], At: m.At}); err != nil {
		return err
	}
	if err := s.truncated(m.Truncations); err != nil {
		return err
	}
	i := slices.IndexFunc(s.held, func(l *headwaterv1.HeldLayer) bool { return l.GetLayer() == m.Layer })
	if i < 0 || len(m.Hashes) != len(numbers(s.held[i])) || m.Append == 0 && m.Attend == 0 {
		return refuse(invalid, "layer %d with %d hashes", m.Layer, len(m.Hashes))
	}
	now := s.layer(s.held[i])
	repeat, err := follows(s.fault, now, m)
	if err != nil {
		return err
	}
	groups := numbers(s.held[i])
	layer := &s.layers[m.Layer]
	given, bad := cut(layer, groups, m, req.Payload.Bytes())
	if bad != nil {
		return refuse(invalid, "%v", bad)
	}
	added := make([]*rows, len(groups))
	for i, g := range groups {
		if added[i], err = s.shards[[2]int{int(m.Layer), int(g)}].appended(m, m.Hashes[i], &given.rows[i]); err != nil {
			return err
		}
	}
	raw, err := answer(layer, m, added, given)
	if err != nil {
		return err
	}
	if resp.Result.Codec = m.Codec; len(raw) > 0 {
		if s.fault == FillsWithZeros {
			clear(raw[len(raw)/2:])
		}
		resp.Payload = rpc.NewBuffer(len(raw))
		copy(resp.Payload.Bytes(), raw)
	}
	if resp.Result.Chain = m.Chain; m.Append > 0 {
		resp.Result.Chain = kvcache.NextChain(m.Chain, m.AppendID, m.Length)
	}
	for i := range groups {
		resp.Result.Length = uint64(len(added[i].hashes))
		resp.Result.Hashes = append(resp.Result.Hashes, added[i].hash(len(added[i].hashes)))
	}
	layerOf, chain, id, changed := m.Layer, resp.Result.Chain, m.AppendID, m.Append > 0 && !repeat
	h.owed = func() {
		if changed {
			s.became(now, chain, id)
		}
		for i, g := range groups {
			s.shards[[2]int{int(layerOf), int(g)}] = added[i]
		}
	}
	if s.fault != AcknowledgesEarly {
		h.owed()
		h.owed = nil
	}
	return nil
}

// narrow brings rows of f32 to the storage type, as docs/numerics.md says.
func narrow(rows []float32, dim int, dt tensor.DType) ([]byte, []float32, error) {
	for i, x := range rows {
		if math.IsNaN(float64(x)) || math.IsInf(float64(x), 0) {
			return nil, nil, fmt.Errorf("element %d is %v", i, x)
		}
	}
	if dt != tensor.I8 {
		b := make([]byte, len(rows)*dt.Size())
		return b, nil, tensor.Narrow(b, rows, dt)
	}
	var out []byte
	var scales []float32
	q := make([]int8, dim)
	for at := 0; at < len(rows); at += dim {
		scales = append(scales, tensor.QuantizeI8(q, rows[at:at+dim]))
		for _, x := range q {
			out = append(out, byte(x))
		}
	}
	return out, scales, nil
}
