package client

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	"headwater.example/attention"
	"headwater.example/internal/layerproto"
	"headwater.example/internal/session"
	"headwater.example/internal/session/fanout"
	"headwater.example/internal/snapshot"
	headwaterv1 "headwater.example/proto/headwater/v1"
	"headwater.example/shard"
	"headwater.example/tensor"
)

// Snapshot writes the session to w in the format of docs/snapshot.md, for RestoreSession. The session does not change
// and can't be used meanwhile; to go on, use a Fork of it, or write a Fork. progress may be nil; it receives the bytes
// of keys and values. The snapshot is complete only if the error is nil.
func (s *Session) Snapshot(ctx context.Context, w io.Writer, progress func(done, total int64)) error {
	return s.control(ctx, "snapshot", func() error {
		if err := s.settle(ctx); err != nil {
			return err
		}
		return s.snapshot(ctx, w, progress)
	})
}

// SnapshotSession is Snapshot of a session that another client may drive and continues to drive: it forks the session,
// writes the fork, and drops it. It returns what was written.
func (c *Client) SnapshotSession(ctx context.Context, id SessionID, w io.Writer, progress func(done, total int64)) (*Snapshotted, error) {
	doing := "snapshot session " + id.String()
	s, pinned, err := c.forkOf(ctx, id)
	if err != nil {
		return nil, c.sessionError(doing, id, err)
	}
	defer func() { _ = c.abandon(ctx, s.id) }() // else it ends by its TTL
	header, err := s.header(ctx)
	if err != nil {
		return nil, c.sessionError(doing, id, err)
	}
	header.Pinned = pinned // the fork is not
	if err := s.write(ctx, header, w, progress); err != nil {
		return nil, c.sessionError(doing, id, err)
	}
	written := &Snapshotted{Name: header.Name, Pinned: header.Pinned, Bytes: header.Bytes()}
	for i := range header.Layers {
		written.Lengths = append(written.Lengths, header.Layers[i].Length)
	}
	return written, nil
}

// Snapshotted says what a snapshot has of its session.
type Snapshotted struct {
	Name    string   // for people
	Pinned  bool     // whether the session was
	Lengths []uint64 // positions of each layer
	Bytes   int64    // of keys and values, as they are stored
}

// forkAttempts bounds the attempts to fork a session that another client drives.
const forkAttempts = 8

// pause waits longer at each attempt, 255 ms in all, and reports whether ctx is still alive.
func pause(ctx context.Context, attempt int) bool {
	select {
	case <-ctx.Done():
		return false
	case <-time.After(time.Millisecond << attempt):
		return true
	}
}

// forkOf forks a session in the name of its driver, and reports whether the session is pinned.
func (c *Client) forkOf(ctx context.Context, id SessionID) (_ *Session, pinned bool, _ error) {
	// Between the question and the fork the driver may have truncated, or another client may have taken the session. Or
	// the driver went on: a worker has freed positions that the fork would see, or two workers answered at different
	// steps and have no common state.
	for attempt := 1; ; attempt++ {
		found, err := c.findSession(ctx, id, false)
		if err != nil {
			return nil, false, err
		}
		if slices.ContainsFunc(found.GetLayers(), func(l *headwaterv1.LayerState) bool { return len(l.GetHashes()) == 0 }) {
			if attempt < forkAttempts && pause(ctx, attempt) {
				continue
			}
			return nil, false, session.Errorf(session.Different,
				"its workers have done different steps: its driver, or who brings its receipt, can take it up")
		}
		layers, err := layerproto.ReadSessionLayers(found.GetConfig().GetLayers())
		if err != nil {
			return nil, false, err
		}
		whole, err := c.coordinator(layers)
		if err != nil {
			return nil, false, err
		}
		child := &Session{client: c, id: c.conns.NewName(), config: found.GetConfig()}
		state, err := c.conns.Fork(ctx, fanout.NewPlace(id, whole), &headwaterv1.ForkSessionRequest{
			Session: id[:], Epoch: found.GetEpoch(), Truncations: found.GetTruncations(), Child: child.id[:], ChildEpoch: c.epoch(1), Expect: found.GetLayers(),
		})
		switch {
		case err == nil:
			if err := child.adopt(whole, state, false); err != nil {
				return nil, false, c.inVain(ctx, child.id, err)
			}
			return child, found.GetPinned(), nil
		case attempt == forkAttempts || !pause(ctx, attempt) || !slices.ContainsFunc([]session.Reason{
			session.StaleEpoch, session.OtherTruncations,
			session.Freed,
		}, func(p session.Reason) bool { return fanout.Is(err, p) }):
			return nil, false, err
		}
	}
}

func (s *Session) snapshot(ctx context.Context, w io.Writer, progress func(done, total int64)) error {
	header, err := s.header(ctx)
	if err != nil {
		return err
	}
	return s.write(ctx, header, w, progress)
}

// errChanged says that a session has changed while it was read.
var errChanged = session.Errorf(session.Different, "another client has changed it meanwhile")

// header returns the header of a snapshot of the session.
func (s *Session) header(ctx context.Context) (*snapshot.Header, error) {
	found, err := s.client.findSession(ctx, s.id, false)
	if err != nil {
		return nil, err
	}
	c := found.GetConfig()
	h := &snapshot.Header{Name: c.GetName(), Tenant: c.GetTenant(), Model: c.GetModel(), TTL: c.GetTtl().AsDuration(), Pinned: found.GetPinned()}
	layers := s.place.Holding().Layers()
	if len(c.GetLayers()) != len(layers) || len(found.GetLayers()) != len(layers) {
		return nil, session.Errorf(session.Lost, "only %d of its %d layers are still held", len(found.GetLayers()), len(layers))
	}
	for i := range layers {
		l, state := &layers[i], found.GetLayers()[i]
		one := snapshot.Layer{LayerSpec: *l, First: state.GetFirst(), Length: s.layers[i].length}
		one.Stripes = 0 // how it is held is not a part of what it is
		if int(state.GetLayer()) != i || one.First > one.Length || state.GetLength() < one.Length {
			return nil, errChanged
		}
		switch {
		case one.First == one.Length && one.First > 0:
			one.Before = slices.Clone(s.layers[i].hashes)
		case one.First > 0:
			// The first positions are exported only for the hashes before them.
			one.Before = make([]uint64, l.KVHeads)
			err := s.export(ctx, i, int(one.First), 1, false, func(m *headwaterv1.ExportSessionResponse) error {
				one.Before[m.GetGroup()] = m.GetHashBefore()
				return nil
			})
			if err != nil {
				return nil, err
			}
		}
		h.Layers = append(h.Layers, one)
	}
	return h, nil
}

// write writes a snapshot that begins with header. The hashes before and after each block prove that all blocks follow
// each other in one session.
func (s *Session) write(ctx context.Context, header *snapshot.Header, w io.Writer, progress func(done, total int64)) error {
	out, err := snapshot.NewWriter(w, header)
	if err != nil {
		return err
	}
	// The token ids come with the first layer that has all positions.
	told, known := -1, uint64(0)
	if layer, start, _, ok := out.Next(); ok && start == 0 {
		told = layer
	}
	total, done := header.Bytes(), int64(0)
	held := s.place.Holding().Layers()
	chains, sums := make([][]uint64, len(header.Layers)), sumsOf(held)
	for i, l := range header.Layers {
		chains[i] = make([]uint64, held[i].Shards())
		copy(chains[i], l.Before)
	}
	var block snapshot.Block
	for {
		layer, start, n, ok := out.Next()
		if !ok {
			break
		}
		// A block has the ids of all of its tokens or of none, and so have those of other layers at its positions.
		if layer != told && start < known {
			n = int(min(uint64(n), known-start))
		}
		before := slices.Clone(chains[layer])
		if err := s.read(ctx, &block, layer, int(start), n, layer == told, chains[layer]); err != nil {
			return err
		}
		if ids := len(block.Tokens); ids > 0 && ids < n {
			copy(chains[layer], before)
			if err := s.read(ctx, &block, layer, int(start), ids, true, chains[layer]); err != nil {
				return err
			}
		}
		if sums[layer] != nil {
			if err := sums[layer].add(&block); err != nil {
				return err
			}
		}
		if known += uint64(len(block.Tokens)); layer == told && len(block.Tokens) == 0 {
			told = -1
		}
		if err := out.Write(&block); err != nil {
			return err
		}
		done += int64(block.Bytes())
		if progress != nil {
			progress(done, total)
		}
	}
	after := make([][]uint64, len(s.layers))
	for i := range s.layers {
		if after[i] = chains[i]; !slices.Equal(s.layers[i].hashes, chains[i]) {
			return errChanged
		}
		if sums[i] != nil {
			after[i] = hashes(sums[i].groups)
		}
	}
	return out.Close(after)
}

// read fills a block with n positions of all groups. hashes [n_kv_heads], or [shards] of a layer in stripes, are those before the
// block, and become those after it.
func (s *Session) read(ctx context.Context, b *snapshot.Block, layer, start, n int, tokens bool, hashes []uint64) error {
	l := &s.place.Holding().Layers()[layer]
	kRow, vRow := l.Layout.KRowBytes(), l.Layout.VRowBytes()
	*b = snapshot.Block{
		Layer: layer, Start: uint64(start), Positions: n,
		K: resize(b.K, l.KVHeads*n*kRow), V: resize(b.V, l.KVHeads*n*vRow), Tokens: b.Tokens[:0], KScale: b.KScale[:0], VScale: b.VScale[:0],
	}
	if l.Layout.DType() == tensor.I8 {
		b.KScale, b.VScale = resize(b.KScale, l.KVHeads*n), resize(b.VScale, l.KVHeads*n)
	}
	return s.export(ctx, layer, start, n, tokens, func(m *headwaterv1.ExportSessionResponse) error {
		group, in := int(m.GetGroup()), int(m.GetStart())-start
		at := group*n + in
		copy(b.K[at*kRow:], m.GetK())
		copy(b.V[at*vRow:], m.GetV())
		if scales := len(m.GetKScale()) / 4; scales > 0 {
			err := errors.Join(tensor.Widen(b.KScale[at:][:scales], m.GetKScale(), tensor.F32), tensor.Widen(b.VScale[at:][:scales], m.GetVScale(), tensor.F32))
			if err != nil {
				return err
			}
		}
		if group == 0 && len(b.Tokens) == in {
			b.Tokens = append(b.Tokens, m.GetTokens()...)
		}
		shard := group
		if l.Striped() {
			shard = group*l.Stripes + int(m.GetStart()/attention.SplitLen)%l.Stripes
		}
		if m.GetHashBefore() != hashes[shard] {
			return errChanged
		}
		hashes[shard] = m.GetHashAfter()
		return nil
	})
}

// resize returns s, or another slice if s is too small, with n elements of any value.
func resize[E any](s []E, n int) []E {
	if cap(s) < n {
		return make([]E, n)
	}
	return s[:n]
}

// RestoreOptions say how to restore a session. The zero value is ready for use.
type RestoreOptions struct {
	Name    string // for people, in the place of the snapshot's; "": the snapshot's
	Workers int    // at most this many workers; 0: all
	Direct  bool   // speak to the workers and not through the coordinator
	Codec   Codec  // how contexts come back
	SendF32 bool   // see SessionOptions

	Unshared bool // see SessionOptions
	Stripes  int  // see SessionOptions
	// Progress receives the bytes of keys and values; it may be nil.
	Progress func(done, total int64)

	as []shard.LayerSpec // unless nil, layers that say in how many stripes each is held, in the place of Stripes
}

// RestoreSession makes a session with a new id from a snapshot: with the same keys and values in every bit, and so the
// same contexts and receipts from there on, on any number of workers. It reads r to its end. If it fails, nothing stays
// on the cluster; the error is ErrSnapshot if the snapshot is at fault.
func (c *Client) RestoreSession(ctx context.Context, r io.Reader, opts RestoreOptions) (*Session, error) {
	s, err := c.restoreSession(ctx, r, opts)
	var bad *snapshot.Error
	if errors.As(err, &bad) {
		return nil, snapshotError{err}
	}
	return s, err
}

// snapshotError is the error of a snapshot that can't be restored.
type snapshotError struct{ error }

func (e snapshotError) Unwrap() error { return e.error }

// Is matches ErrSnapshot and ErrRefused.
func (e snapshotError) Is(target error) bool { return target == ErrSnapshot || target == ErrRefused }

func (c *Client) restoreSession(ctx context.Context, r io.Reader, opts RestoreOptions) (*Session, error) {
	in, err := snapshot.NewReader(r)
	if err != nil {
		return nil, fmt.Errorf("restore a session: %w", err)
	}
	defer in.Close()
	first, err := in.Next()
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, fmt.Errorf("restore a session: %w", err)
	}
	req, err := begin(in.Header(), &opts)
	if err != nil {
		return nil, fmt.Errorf("restore a session: %w", err)
	}
	req.Config.Unshared = opts.Unshared
	if first != nil {
		// As many as a coordinator needs to place the session where others look for its prefix.
		req.Tokens = slices.Clone(first.Tokens[:min(len(first.Tokens), attention.PageLen+1)])
	}
	s, err := c.create(ctx, "restore", req, opts.Workers, opts.Direct, opts.Codec)
	if err != nil {
		return nil, err
	}
	if err := s.restore(ctx, in, first, opts.Progress); err != nil {
		return nil, c.inVain(ctx, s.id, c.sessionError("restore session "+s.id.String(), s.id, err))
	}
	s.prefix, s.sendF32 = s.Len(), opts.SendF32
	return s, nil
}

// begin asks for a session that begins as the snapshot's session does.
func begin(h *snapshot.Header, opts *RestoreOptions) (*headwaterv1.CreateSessionRequest, error) {
	config := &headwaterv1.SessionConfig{Name: h.Name, Tenant: h.Tenant, Model: h.Model}
	if opts.Name != "" {
		config.Name = opts.Name
	}
	if h.TTL > 0 {
		config.Ttl = durationpb.New(h.TTL)
	}
	req := &headwaterv1.CreateSessionRequest{Config: config}
	layers := make([]shard.LayerSpec, len(h.Layers))
	for i := range h.Layers {
		l := &h.Layers[i]
		layers[i] = l.LayerSpec
		req.Begin = append(req.Begin, &headwaterv1.BeginLayer{Layer: uint32(i), First: l.First, Hashes: l.Before, Length: l.Length})
	}
	if err := inStripes(layers, opts.Stripes); err != nil {
		return nil, err
	}
	for i := range min(len(layers), len(opts.as)) {
		layers[i].Stripes = opts.as[i].Stripes // of other layers, the caller refuses
	}
	config.Layers = layerproto.SessionLayers(layers)
	return req, nil
}

// maxToldTokens bounds the ids that a restore keeps, 64 MiB. Prefixes are found up to there.
const maxToldTokens = 1 << 24

// restore appends the snapshot's blocks, from block b on, and compares the workers' hashes with the snapshot's.
func (s *Session) restore(ctx context.Context, in *snapshot.Reader, b *snapshot.Block, progress func(done, total int64)) error {
	header := in.Header()
	total, done := header.Bytes(), int64(0)
	var tokens []uint32
	sums := sumsOf(s.place.Holding().Layers())
	for b != nil {
		step := Step{Layer: b.Layer, Stored: &Rows{K: b.K, V: b.V, KScale: b.KScale, VScale: b.VScale}, Tokens: b.Tokens}
		// Each worker must know the tokens, even one that holds nothing of the layer with which they come.
		switch end := b.Start + uint64(b.Positions); {
		case len(b.Tokens) > 0 && b.Start == uint64(len(tokens)) && end <= maxToldTokens:
			tokens = append(tokens, b.Tokens...)
		case len(b.Tokens) == 0 && end <= uint64(len(tokens)):
			step.Tokens = tokens[b.Start:end]
		}
		if err := s.Do(ctx, &step); err != nil {
			return err
		}
		if x := sums[b.Layer]; x != nil {
			if err := x.add(b); err != nil {
				return err
			}
		}
		done += int64(b.Bytes())
		if progress != nil {
			progress(done, total)
		}
		var err error
		if b, err = in.Next(); err != nil && !errors.Is(err, io.EOF) {
			return err
		}
	}
	for i, want := range in.After() {
		if x := sums[i]; x != nil {
			if !slices.Equal(hashes(x.groups), want) {
				return session.Errorf(session.Different, "layer %d: the snapshot's keys or values are not those that its hashes are of", i)
			}
			want = hashes(x.shards)
		}
		if s.layers[i].length != header.Layers[i].Length || !slices.Equal(s.layers[i].hashes, want) {
			return session.Errorf(session.Different, "layer %d: the workers have other keys or values than the snapshot's session had", i)
		}
	}
	if header.Pinned {
		return s.Pin(ctx, true)
	}
	return nil
}
