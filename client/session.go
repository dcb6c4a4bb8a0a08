package client

import (
	"bytes"
	"cmp"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"math"
	"slices"
	"sync/atomic"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"

	"headwater.example/attention"
	"headwater.example/internal/contextframe"
	"headwater.example/internal/layerproto"
	"headwater.example/internal/session"
	"headwater.example/internal/session/fanout"
	headwaterv1 "headwater.example/proto/headwater/v1"
	"headwater.example/shard"
)

// SessionID names a session. Ids are random and never used again.
type SessionID [16]byte

// String returns the id in hexadecimal.
func (id SessionID) String() string { return hex.EncodeToString(id[:]) }

// ParseSessionID reads what String writes.
func ParseSessionID(text string) (SessionID, error) {
	var id SessionID
	if len(text) != 2*len(id) {
		return SessionID{}, wrong("session %.40q: an id has %d hexadecimal digits", text, 2*len(id))
	}
	if _, err := hex.Decode(id[:], []byte(text)); err != nil {
		return SessionID{}, wrong("session %.40q: %w", text, err)
	}
	return id, nil
}

// Codec says how contexts come back.
type Codec string

// The codecs. The lossy ones are used only by name.
const (
	Auto  Codec = ""      // Raw or Exact, whichever takes less time as it is measured
	Raw   Codec = "raw"   // float32 as it is
	Exact Codec = "exact" // compressed, every bit comes back
	BF16  Codec = "bf16"  // narrowed to bfloat16, compressed. Lossy
	F16   Codec = "f16"   // narrowed to binary16, compressed. Lossy
	Int8  Codec = "int8"  // narrowed to int8 with one scale for each row, compressed. Lossy
)

// stepCodecs are the codecs on the wire, by name: raw, and those of frames. Auto begins with raw.
var stepCodecs = func() map[Codec]headwaterv1.StepCodec {
	all := map[Codec]headwaterv1.StepCodec{Auto: headwaterv1.StepCodec_STEP_CODEC_RAW, Raw: headwaterv1.StepCodec_STEP_CODEC_RAW}
	for _, codec := range contextframe.Codecs() {
		all[Codec(codec.String())] = layerproto.StepCodec(codec)
	}
	return all
}()

// SessionOptions say what session to open. Only Layers is needed.
type SessionOptions struct {
	Layers []Layer

	// Tokens are the ids of the session's first tokens. If the cluster already has whole pages of them, from a session
	// of the same Tenant, Model and Layers, these need not be appended: Prefix returns the number of positions.
	Tokens []uint32
	// Tenant is whose session it is. A cluster with certificates knows that by the client's own, whose name begins this one: "" is
	// the tenant itself, and "ann/evening" a part of tenant ann, which shares no prefix with the others.
	Tenant string
	Model  []byte // fingerprint of the model with its adapters

	// Unshared sessions use no prefix and leave none, even if they have Tokens. If a session names tokens and appends
	// other keys and values than the model's, it spoils their prefix for its whole Tenant; an unshared session neither
	// does nor suffers that.
	Unshared bool

	Name    string        // for people
	TTL     time.Duration // time without use after which the session may be dropped; 0: the workers' limit
	Workers int           // at most this many workers; 0: all

	// Replicas is the number of workers beside the owner that have a copy of each shard, if there are enough; 0 is the
	// coordinator's default, less is none. The session goes on, with the same bits, as long as each shard has a worker
	// left.
	Replicas int

	// Stripes is in how many stripes each group of a layer without a left window is held, at most 64; 0 and 1 are none. With stripes
	// more workers than there are groups hold a layer: of each group's splits of 2,048 positions, stripe i of n has those whose number
	// is i modulo n. The bits are the same. Each step goes to all workers of its layer, and parts of contexts come back in the place
	// of contexts: that pays for long sequences of few groups, and not for short ones.
	Stripes int

	Direct bool  // speak to the workers and not through the coordinator
	Codec  Codec // how contexts come back

	// SendF32 sends keys and values as float32, and the workers narrow them. Otherwise they are narrowed here, to the
	// same bits, and fewer bytes are sent.
	SendF32 bool
}

// Session is a sequence held open on the cluster. Only one goroutine may use it at a time; different sessions are
// independent, and Do sends steps of many at once. If a step fails, the session is as it was: the next call, the same
// step or another one, first takes back what workers have done of it. (In a layer with a window the failed step may
// have freed positions that only queries before the next token see; such queries are then refused.) A truncation with
// an unknown outcome counts as done: Len says so, and the next call completes it. Any other call that failed can simply
// be repeated.
type Session struct {
	client  *Client
	id      SessionID
	config  *headwaterv1.SessionConfig
	place   *fanout.Place // who holds it
	direct  bool          // whether the holders are the workers
	codec   Codec
	sendF32 bool
	chooser chooser
	prefix  int

	user        atomic.Pointer[batch] // who uses it now
	epoch       uint64
	truncations uint64
	layers      []held
	// cutting is a truncation that some holders may have done, and that must be completed before anything else; nil if
	// there is none.
	cutting *headwaterv1.TruncateSessionRequest
	kept    bool // Close leaves it on the cluster
	closed  bool
}

// held is the receipt of one layer.
type held struct {
	length uint64
	hashes []uint64 // by group
	chain  uint64   // of the appends and truncations that have made it
	user   *batch   // whose step is in flight
	unsure uint64   // id of an append that failed, which some holders may have done; 0 is none
}

// OpenSession makes a session on the cluster. The first Step continues at Prefix.
func (c *Client) OpenSession(ctx context.Context, opts SessionOptions) (*Session, error) {
	config, err := opts.config()
	if err != nil {
		return nil, wrong("open a session: %w", err)
	}
	req := &headwaterv1.CreateSessionRequest{Config: config, Tokens: opts.Tokens}
	s, err := c.create(ctx, "open", req, opts.Workers, opts.Direct, opts.Codec)
	if err != nil {
		return nil, err
	}
	s.sendF32 = opts.SendF32
	return s, nil
}

// create makes the session of req under a new id.
func (c *Client) create(ctx context.Context, doing string, req *headwaterv1.CreateSessionRequest, workers int, direct bool, codec Codec) (*Session, error) {
	s := &Session{client: c, id: c.conns.NewName(), config: req.GetConfig(), codec: codec}
	doing += " session " + s.id.String()
	layers, left, err := layerproto.ReadAsked(s.config.GetLayers())
	if err != nil {
		return nil, wrong("%s: %w", doing, err)
	}
	if _, ok := stepCodecs[codec]; !ok {
		return nil, wrong("%s: codec %q is none of raw, exact, bf16, f16 and int8", doing, string(codec))
	}
	if workers < 0 || workers > math.MaxInt32 {
		return nil, wrong("%s: at most %d workers", doing, workers)
	}
	whole, err := c.coordinator(layers)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", doing, err)
	}
	req.Session, req.Epoch, req.Workers = s.id[:], c.epoch(1), uint32(workers)
	state, err := c.conns.Create(ctx, whole, req)
	if err != nil {
		return nil, c.sessionError(doing, s.id, err)
	}
	if left {
		whole, err = s.took(state)
	}
	if err == nil {
		err = s.adopt(whole, state, direct)
	}
	if err != nil {
		return nil, c.inVain(ctx, s.id, c.sessionError(doing, s.id, err))
	}
	s.prefix = s.Len()
	return s, nil
}

// took notes the arithmetic that the coordinator has taken for layers that left it to it.
func (s *Session) took(state *headwaterv1.SessionState) (*fanout.Holding, error) {
	var taken []attention.Arithmetic
	for _, l := range state.GetConfig().GetLayers() {
		taken = append(taken, layerproto.ReadArithmetic(l.GetArithmetic()))
	}
	config := proto.CloneOf(s.config)
	if err := layerproto.TakeArithmetic(config.GetLayers(), taken); err != nil {
		return nil, fmt.Errorf("its layers: %w", err)
	}
	layers, err := layerproto.ReadSessionLayers(config.GetLayers())
	if err != nil {
		return nil, fmt.Errorf("its layers: %w", err)
	}
	s.config = config
	return s.client.coordinator(layers)
}

// abandonTimeout bounds the drop of a session that nobody will use; a session that can't be dropped ends by its TTL.
const abandonTimeout = 10 * time.Second

// abandon drops a session that nobody will use, even if ctx has ended.
func (c *Client) abandon(ctx context.Context, id SessionID) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), abandonTimeout)
	defer cancel()
	return c.DropSession(ctx, id)
}

// inVain abandons a session that was made in vain. It returns why, and adds that the session stays if it can't be
// dropped.
func (c *Client) inVain(ctx context.Context, id SessionID, why error) error {
	if err := c.abandon(ctx, id); err != nil {
		return fmt.Errorf("%w; session %s stays until its TTL: %v", why, id, err)
	}
	return why
}

// config returns the session's config as a message.
func (o *SessionOptions) config() (*headwaterv1.SessionConfig, error) {
	config := &headwaterv1.SessionConfig{Tenant: o.Tenant, Model: o.Model, Name: o.Name, Unshared: o.Unshared}
	if o.TTL > 0 {
		config.Ttl = durationpb.New(o.TTL)
	}
	if o.Replicas != 0 {
		config.Replicas = proto.Uint32(uint32(min(max(o.Replicas, 0), shard.MaxReplicas+1)))
	}
	layers := make([]shard.LayerSpec, len(o.Layers))
	for i := range o.Layers {
		var err error
		if layers[i], err = o.Layers[i].spec(); err != nil {
			return nil, fmt.Errorf("layer %d: %w", i, err)
		}
	}
	if err := inStripes(layers, o.Stripes); err != nil {
		return nil, err
	}
	config.Layers = layerproto.SessionLayers(layers)
	for i := range o.Layers {
		if o.Layers[i].Arithmetic == attention.Auto {
			layerproto.LeaveArithmetic(config.Layers[i])
		}
	}
	return config, nil
}

// coordinator returns the coordinator as the only holder, of all groups.
func (c *Client) coordinator(layers []shard.LayerSpec) (*fanout.Holding, error) {
	return fanout.NewHolding(layers, &fanout.Holder{Name: c.address, Address: c.address})
}

func (c *Client) epoch(counter uint64) *headwaterv1.Epoch {
	id := c.lane.ID()
	return &headwaterv1.Epoch{Counter: counter, Lane: id[:]}
}

// adopt takes over the cluster's state of the session.
func (s *Session) adopt(h *fanout.Holding, state *headwaterv1.SessionState, direct bool) error {
	if direct {
		var err error
		if h, err = fanout.ParseHolding(h.Layers(), state.GetHolders()); err != nil {
			return fmt.Errorf("its holders: %w", err)
		}
		h = h.Under(state)
	}
	s.place, s.direct = fanout.NewPlace(s.id, h), direct
	return s.update(state)
}

// update takes over lengths, hashes, epoch and truncations.
func (s *Session) update(state *headwaterv1.SessionState) error {
	layers := s.place.Holding().Layers()
	if len(state.GetLayers()) != len(layers) {
		return fmt.Errorf("it tells of %d of %d layers", len(state.GetLayers()), len(layers))
	}
	next := make([]held, len(layers))
	for i, l := range state.GetLayers() {
		if int(l.GetLayer()) != i || len(l.GetHashes()) != layers[i].Shards() || l.GetLength() > math.MaxInt64 {
			return fmt.Errorf("layer %d of length %d with %d hashes is no state of layer %d", l.GetLayer(), l.GetLength(), len(l.GetHashes()), i)
		}
		next[i] = held{length: l.GetLength(), hashes: l.GetHashes(), chain: l.GetChain()}
	}
	// An epoch that others have stepped on this client's behalf has its own counter as its base.
	s.layers, s.epoch, s.truncations = next, cmp.Or(state.GetEpoch().GetBase(), state.GetEpoch().GetCounter()), state.GetTruncations()
	return nil
}

// ID returns the session's id.
func (s *Session) ID() SessionID { return s.id }

// Prefix returns the number of positions that were there when the session was opened and need not be appended.
func (s *Session) Prefix() int { return s.prefix }

// Len returns the number of positions that all layers have.
func (s *Session) Len() int {
	least := s.LayerLen(0)
	for l := range s.layers {
		least = min(least, s.LayerLen(l))
	}
	return least
}

// LayerLen returns the number of positions of a layer; within a token, earlier layers have one more.
func (s *Session) LayerLen(layer int) int {
	n := s.layers[layer].length
	if s.cutting != nil {
		n = min(n, s.cutting.GetLengths()[layer])
	}
	return int(n)
}

// Layers returns the session's layers, with every default filled in.
func (s *Session) Layers() []Layer {
	specs := s.place.Holding().Layers()
	layers := make([]Layer, len(specs))
	for i := range specs {
		layers[i] = layerOf(&specs[i])
	}
	return layers
}

// use marks the session as used by one call, and fails if another call uses it.
func (s *Session) use(b *batch) error {
	if s.user.Load() != b && !s.user.CompareAndSwap(nil, b) {
		return errInUse
	}
	if s.closed {
		s.user.Store(nil)
		return errSessionClosed
	}
	return nil
}

// control runs a call other than a step.
func (s *Session) control(ctx context.Context, doing string, do func() error) error {
	b := &batch{}
	err := s.use(b)
	if err == nil {
		err = do()
		s.user.Store(nil)
	}
	if err != nil {
		return s.failed(ctx, doing+" session "+s.id.String(), err, &look{})
	}
	return nil
}

// lookTimeout is how long a coordinator may take to say whether a session is still there.
const lookTimeout = 10 * time.Second

// look is what was found about a session after a call on it had failed. Calls that fail together share it.
type look struct {
	gone *SessionError           // unless nil, says that the session is gone
	lost *headwaterv1.LostShards // unless nil, what of it is lost
	done bool
}

// failed returns the error of a call on the session, which says what is lost of the session. If a direct session can't reach a worker,
// the worker may have restarted at another address: the coordinator knows that.
func (s *Session) failed(ctx context.Context, doing string, err error, found *look) error {
	err = s.client.sessionError(doing, s.id, err)
	var refused *SessionError
	if !errors.As(err, &refused) || refused.coordinator || refused.Reason != ReasonLost && refused.Reason != ReasonUnknown {
		return err
	}
	if s.direct && ctx.Err() == nil {
		if !found.done {
			s.look(ctx, refused.Reason, found)
		}
		if found.gone != nil {
			gone := *found.gone
			gone.Doing, err, refused = doing, &gone, &gone
		}
		if refused.lost == nil {
			refused.lost = found.lost
		}
	}
	refused.Lost = s.lost(refused.lost)
	return err
}

// look looks what is left of a direct session after a call on it has failed for a reason.
func (s *Session) look(ctx context.Context, reason Reason, found *look) {
	ctx, cancel := context.WithTimeout(ctx, lookTimeout)
	defer cancel()
	found.done = true
	if found.lost = s.client.conns.Missed(ctx, s.id, s.place.Holding()); reason == ReasonUnknown {
		return
	}
	state, err := s.client.findSession(ctx, s.id, true)
	if err == nil && !whole(state) {
		err = s.client.sessionError("", s.id, notWhole(state))
	}
	var gone *SessionError
	if errors.As(err, &gone) && gone.Reason == ReasonUnknown {
		found.gone = gone
	}
}

// Truncate takes back the positions from position on, in every layer that has them. In a layer with a window, an append
// frees positions that no later query sees. A truncation of several appends may need these again and is then refused
// (ReasonFreed). So draft on a Fork if drafts may be taken back: the session itself then goes on from where it was.
func (s *Session) Truncate(ctx context.Context, position int) error {
	return s.control(ctx, "truncate", func() error {
		if position < 0 {
			return wrong("to position %d", position)
		}
		return s.cut(ctx, uint64(position))
	})
}

// cut cuts every layer to position, and to the length that the client knows, so it also removes what a failed step has
// left.
func (s *Session) cut(ctx context.Context, position uint64) error {
	if s.cutting != nil {
		if err := s.finishCut(ctx); err != nil {
			return err
		}
	}
	s.cutting = &headwaterv1.TruncateSessionRequest{
		Session: s.id[:], Epoch: s.client.epoch(s.epoch), Truncations: s.truncations, Count: s.truncations + 1, Id: s.client.conns.NewID(), Expect: s.known(),
	}
	for _, l := range s.layers {
		s.cutting.Lengths = append(s.cutting.Lengths, min(position, l.length))
	}
	return s.finishCut(ctx)
}

// known returns the state that the client knows.
func (s *Session) known() []*headwaterv1.LayerState {
	layers := make([]*headwaterv1.LayerState, len(s.layers))
	for i, l := range s.layers {
		layers[i] = &headwaterv1.LayerState{Layer: uint32(i), Length: l.length, Hashes: slices.Clone(l.hashes), Chain: l.chain, AppendId: l.unsure}
	}
	return layers
}

// finishCut completes the truncation in cutting. If its outcome is unknown, it stays in cutting and can be repeated:
// holders that have done it recognize its id, and one that arrives late finds another state than it names, so it cuts
// nothing.
func (s *Session) finishCut(ctx context.Context) error {
	state, err := s.client.conns.Truncate(ctx, s.place, s.cutting)
	if err == nil {
		if err = s.update(state); err == nil {
			s.cutting = nil
		}
		return err
	}
	if fanout.Is(err, session.Freed) || fanout.Is(err, session.Invalid) {
		s.cutting = nil // no holder has done it
	}
	return err
}

// settle brings the holders to the state that the client knows, after a call with an unknown outcome. It does not ask
// what they have, because a step may still be on its way to one. It raises the count of truncations, so a late step no
// longer matches, and takes back what failed steps have appended.
func (s *Session) settle(ctx context.Context) error {
	if s.cutting != nil {
		return s.finishCut(ctx)
	}
	if slices.ContainsFunc(s.layers, func(l held) bool { return l.unsure != 0 }) {
		return s.cut(ctx, math.MaxUint64)
	}
	return nil
}

// Fork makes a session that begins with all positions of this one. The two share memory until one of them appends.
func (s *Session) Fork(ctx context.Context) (*Session, error) { return s.fork(ctx, nil) }

// ForkAt makes a session that begins with the positions before position, which every layer must have.
func (s *Session) ForkAt(ctx context.Context, position int) (*Session, error) {
	at := uint64(position)
	if position < 0 {
		return nil, s.client.sessionError("fork session "+s.id.String(), s.id, wrong("at position %d", position))
	}
	return s.fork(ctx, &at)
}

func (s *Session) fork(ctx context.Context, position *uint64) (*Session, error) {
	child := &Session{client: s.client, config: s.config, direct: s.direct, codec: s.codec, sendF32: s.sendF32}
	err := s.control(ctx, "fork", func() error {
		if err := s.settle(ctx); err != nil {
			return err
		}
		try := func() (*headwaterv1.SessionState, error) {
			child.id = s.client.conns.NewName()
			return s.client.conns.Fork(ctx, s.place, &headwaterv1.ForkSessionRequest{
				Session: s.id[:], Epoch: s.client.epoch(s.epoch), Truncations: s.truncations,
				Child: child.id[:], ChildEpoch: s.client.epoch(1), Position: position, Expect: s.known(),
			})
		}
		state, err := try()
		if err != nil && fanout.Unreached(err) && ctx.Err() == nil {
			state, err = try() // once, as all calls whose connection broke
		}
		if err != nil {
			return err
		}
		child.place = fanout.NewPlace(child.id, s.place.Holding())
		if s.direct {
			child.place = fanout.NewPlace(child.id, s.place.Holding().Of(1))
		}
		if err := child.update(state); err != nil {
			return s.client.inVain(ctx, child.id, fmt.Errorf("as session %s: %w", child.id, err))
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	child.prefix = child.Len()
	return child, nil
}

// Pin keeps the session from being evicted, or with false no longer.
func (s *Session) Pin(ctx context.Context, pinned bool) error {
	return s.control(ctx, "pin", func() error {
		_, err := s.client.conns.Pin(ctx, s.place, &headwaterv1.PinSessionRequest{Session: s.id[:], Pinned: pinned})
		return err
	})
}

// Drop ends the session on the cluster and frees its memory.
func (s *Session) Drop(ctx context.Context) error {
	return s.control(ctx, "drop", func() error {
		err := s.drop(ctx)
		s.closed = err == nil
		return err
	})
}

func (s *Session) drop(ctx context.Context) error {
	return s.client.conns.End(ctx, s.place, &headwaterv1.DropSessionRequest{Session: s.id[:], Epoch: s.client.epoch(s.epoch)})
}

// Keep sets whether Close leaves the session on the cluster. By default it does so only if the session was attached.
func (s *Session) Keep(keep bool) { s.kept = keep }

// Close ends the use of the session. It drops a session that was opened, forked or restored, which takes at most 10 s.
// A session that was attached, or that Keep keeps, stays on the cluster until its TTL, and Attach continues it. Close
// does nothing to a session that is gone or that another client drives. A session that is closed or dropped may be
// closed again.
func (s *Session) Close() error {
	err := s.control(context.Background(), "close", func() error {
		s.closed = true
		if s.kept {
			return nil
		}
		ctx, cancel := context.WithTimeout(context.Background(), abandonTimeout)
		defer cancel()
		return s.drop(ctx)
	})
	if errors.Is(err, errSessionClosed) || errors.Is(err, ErrGone) || errors.Is(err, ErrTakenOver) {
		return nil
	}
	return err
}

// Receipt is the state of a session that a client knows. A client that attaches with it never gets less.
type Receipt struct {
	Session     SessionID      `json:"session"`
	Truncations uint64         `json:"truncations"`
	Layers      []LayerReceipt `json:"layers"`
}

// LayerReceipt is the receipt of one layer.
type LayerReceipt struct {
	Length uint64   `json:"length"`
	Hashes []uint64 `json:"hashes"` // chained, by group; of a layer in stripes by group and stripe
}

// Receipt returns the session's current receipt, for Attach.
func (s *Session) Receipt() Receipt {
	r := Receipt{Session: s.id, Truncations: s.truncations}
	for _, l := range s.layers {
		r.Layers = append(r.Layers, LayerReceipt{l.length, slices.Clone(l.hashes)})
	}
	return r
}

// AttachOptions say how to attach to a session. The zero value is ready for use.
type AttachOptions struct {
	Receipt *Receipt // what must be there; nil: whatever is
	Direct  bool     // speak to the workers and not through the coordinator
	Codec   Codec    // how contexts come back
	SendF32 bool     // see SessionOptions
}

// Attach continues a session that is on the cluster. From now on this client drives it, and the client that drove it
// before is refused. If an append has not reached all workers, the session ends before it; Len returns its length.
// Close leaves an attached session on the cluster.
func (c *Client) Attach(ctx context.Context, id SessionID, opts AttachOptions) (*Session, error) {
	s, err := c.attach(ctx, id, opts)
	if err == nil {
		return s, nil
	}
	err = c.sessionError("attach to session "+id.String(), id, err)
	var refused *SessionError
	if r := opts.Receipt; r != nil && errors.As(err, &refused) {
		refused.Lost = r.lost(refused.lost)
	}
	return nil, err
}

func (c *Client) attach(ctx context.Context, id SessionID, opts AttachOptions) (*Session, error) {
	if _, ok := stepCodecs[opts.Codec]; !ok {
		return nil, wrong("codec %q is none of raw, exact, bf16, f16 and int8", string(opts.Codec))
	}
	found, layers, err := c.findHolders(ctx, id)
	if err != nil {
		return nil, err
	}
	whole, err := c.coordinator(layers)
	if err != nil {
		return nil, err
	}
	req := &headwaterv1.TakeSessionRequest{Session: id[:]}
	if r := opts.Receipt; r != nil {
		if r.Session != id {
			return nil, wrong("the receipt is of session %s", r.Session)
		}
		if len(r.Layers) != len(layers) {
			return nil, session.Errorf(session.Invalid, "the receipt has %d layers, the session %d", len(r.Layers), len(layers))
		}
		req.Truncations = r.Truncations
		for i, l := range r.Layers {
			req.Expect = append(req.Expect, &headwaterv1.LayerState{Layer: uint32(i), Length: l.Length, Hashes: l.Hashes})
		}
	}
	// Another client, or who makes copies, may raise the epoch meanwhile; the refusal then names the new one.
	counter := found.GetEpoch().GetCounter()
	for attempt := 1; ; attempt++ {
		req.Epoch = c.epoch(counter + 1)
		state, err := c.conns.Take(ctx, fanout.NewPlace(id, whole), req)
		if e, ok := session.FromError(err); ok && e.Reason() == session.StaleEpoch && attempt < takeAttempts {
			counter = e.Why.GetEpoch().GetCounter()
			continue
		}
		if err != nil {
			return nil, err
		}
		s := &Session{client: c, id: id, config: found.GetConfig(), codec: opts.Codec, sendF32: opts.SendF32, kept: true}
		if err := s.adopt(whole, state, opts.Direct); err != nil {
			return nil, err
		}
		s.prefix = s.Len()
		return s, nil
	}
}

// takeAttempts is how often a session is taken whose epoch others raise at the same time.
const takeAttempts = 16

// Sessions returns all sessions on the cluster, by id, and each worker's cache. Silent has the workers that did not
// answer; their sessions and caches are missing.
func (c *Client) Sessions(ctx context.Context) (*SessionList, error) {
	all := &SessionList{}
	req := &headwaterv1.ListSessionsRequest{Limit: listed}
	for {
		resp, err := c.conns.List(ctx, c.address, c.address, req)
		if err != nil {
			return nil, c.sessionError("list sessions", SessionID{}, err)
		}
		found := resp.GetSessions()
		if len(found) > 0 && bytes.Compare(found[0].GetSession(), req.After) <= 0 {
			found = nil // a coordinator that knows no limits begins anew, and had told all
		}
		all.Caches = newCaches(resp.GetCaches())
		for _, m := range found {
			all.Sessions = append(all.Sessions, newSession(m))
		}
		for _, w := range resp.GetSilent() {
			if !slices.ContainsFunc(all.Silent, func(o SilentWorker) bool { return o.Worker == w.GetWorker() }) {
				all.Silent = append(all.Silent, SilentWorker{w.GetWorker(), w.GetAddress(), w.GetError()})
			}
		}
		if len(found) != listed {
			return all, nil
		}
		req.After = found[len(found)-1].GetSession()
	}
}

// listed bounds the sessions of one request.
const listed = 1000

// Caches returns each worker's cache.
func (c *Client) Caches(ctx context.Context) ([]Cache, error) {
	resp, err := c.conns.List(ctx, c.address, c.address, &headwaterv1.ListSessionsRequest{CachesOnly: true})
	if err != nil {
		return nil, c.sessionError("ask for the caches", SessionID{}, err)
	}
	return newCaches(resp.GetCaches()), nil
}

// FindSession returns the cluster's state of a session. It may be used while another client drives it. If a worker did
// not answer and may hold the session, or a part of it, the error is ErrLost and names the worker.
func (c *Client) FindSession(ctx context.Context, id SessionID) (*SessionState, error) {
	found, err := c.findSession(ctx, id, false)
	if err != nil {
		return nil, err
	}
	state := newSession(found)
	return &state, nil
}

// findSession is FindSession with a message as its result. With holdersOnly the state is left out, for which it would
// wait for steps in progress.
func (c *Client) findSession(ctx context.Context, id SessionID, holdersOnly bool) (*headwaterv1.SessionState, error) {
	doing := "find session " + id.String()
	resp, err := c.conns.List(ctx, c.address, c.address, &headwaterv1.ListSessionsRequest{Sessions: [][]byte{id[:]}, HoldersOnly: holdersOnly})
	if err != nil {
		return nil, c.sessionError(doing, id, err)
	}
	found, silent := resp.GetSessions(), resp.GetSilent()
	switch {
	case len(found) == 1 && (len(silent) == 0 || whole(found[0])):
		return found[0], nil
	case len(found) == 1:
		err = c.sessionError(doing, id, fanout.Silent(silent, lostOf(found[0])))
		tellLost(err, found[0])
	case len(silent) > 0:
		err = c.sessionError(doing, id, fanout.Silent(silent, fanout.AllLost()))
	default:
		none := session.Errorf(session.Unknown, "no worker holds it")
		none.Why.Lost = fanout.AllLost()
		err = c.sessionError(doing, id, none)
	}
	return nil, err
}

// tell lets the coordinator see that a session has gone on without some workers, so that it makes the copies that it lacks.
func (c *Client) tell(id [16]byte, _ []string) {
	c.telling.Go(func() {
		ctx, cancel := context.WithTimeout(context.Background(), lookTimeout)
		defer cancel()
		_, _ = c.findSession(ctx, id, true) // If nobody answers, it is seen later.
	})
}

// findHolders finds a session's holders, without waiting for its steps, and reads its layers.
func (c *Client) findHolders(ctx context.Context, id SessionID) (*headwaterv1.SessionState, []shard.LayerSpec, error) {
	found, err := c.findSession(ctx, id, true)
	if err != nil {
		return nil, nil, err
	}
	layers, err := layerproto.ReadSessionLayers(found.GetConfig().GetLayers())
	return found, layers, err
}

// locate says which workers hold a session now.
func (c *Client) locate(ctx context.Context, id [16]byte) (*fanout.Holding, error) {
	found, layers, err := c.findHolders(ctx, id)
	if err != nil {
		return nil, err
	}
	h, err := fanout.ParseHolding(layers, found.GetHolders())
	if err != nil {
		return nil, notWhole(found)
	}
	return h.Under(found), nil
}

// whole reports whether the listed holders have all of a session.
func whole(state *headwaterv1.SessionState) bool {
	layers, err := layerproto.ReadSessionLayers(state.GetConfig().GetLayers())
	if err == nil {
		_, err = fanout.ParseHolding(layers, state.GetHolders())
	}
	return err == nil
}

// DropSession ends a session on the cluster, even if another client drives it.
func (c *Client) DropSession(ctx context.Context, id SessionID) error {
	holder := &fanout.Holder{Name: c.address, Address: c.address}
	if err := c.conns.Drop(ctx, []*fanout.Holder{holder}, &headwaterv1.DropSessionRequest{Session: id[:]}); err != nil {
		return c.sessionError("drop session "+id.String(), id, err)
	}
	return nil
}
