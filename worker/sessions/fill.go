package sessions

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"slices"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protowire"

	"headwater.example/attention"
	"headwater.example/internal/kvcache"
	"headwater.example/internal/layerproto"
	"headwater.example/internal/membership"
	"headwater.example/internal/rpc"
	"headwater.example/internal/session"
	headwaterv1 "headwater.example/proto/headwater/v1"
	"headwater.example/shard"
	"headwater.example/tensor"
)

// fillAhead is how many blocks of a copy are fetched before those before are appended.
const fillAhead = 4

// Fills serves FillService.
type Fills struct {
	headwaterv1.UnimplementedFillServiceServer
	*Service
}

type fillStream = grpc.BidiStreamingServer[headwaterv1.FillSessionRequest, headwaterv1.FillSessionResponse]

// fill is a call of FillSession. Its receiver takes what the coordinator sends and lets each block be fetched. The call's own goroutine
// appends the blocks one after the other, and answers.
type fill struct {
	*Service
	ctx    context.Context
	id, to kvcache.SessionID // that is copied, and that is filled
	epoch  kvcache.Epoch     // of what is filled
	blocks chan *fillBlock   // closed by the receiver
	ended  error             // why it was
	over   chan struct{}     // closed when the call has ended

	// The receiver's.
	told    *headwaterv1.Epoch // of what is copied
	sources []*fillSource
	conns   []*rpc.Conn
	tasks   sync.WaitGroup // that fetch

	// The call's own.
	cuts    uint64
	layers  map[shard.Layer]*kvcache.LayerState // that are filled, since they were cut so often; nil is not known
	fetched int64
}

// fillSource is who has some groups of what is copied.
type fillSource struct {
	peer   rpc.Peer
	conn   *rpc.Conn // nil for this worker itself
	layers map[uint32]*headwaterv1.HeldLayer
}

// groups returns the numbers of a layer's groups, or of its shards if it is in stripes.
func (src *fillSource) groups(layer *shard.LayerSpec, l uint32) []uint32 {
	if layer.Striped() {
		return src.layers[l].GetShards()
	}
	return src.layers[l].GetGroups()
}

// FillSession fetches positions of a session from other workers.
func (s Fills) FillSession(stream fillStream) error {
	if err := s.m.Begin(2); err != nil { // the call and its receiver
		return err
	}
	defer s.m.End()
	ctx, cancel := context.WithCancel(stream.Context())
	defer cancel()
	f := &fill{Service: s.Service, ctx: ctx, blocks: make(chan *fillBlock, fillAhead-1), over: make(chan struct{})}
	defer close(f.over)
	first, err := stream.Recv()
	if err == nil {
		err = f.begin(first.GetFrom())
	}
	if err != nil {
		f.release(nil)
		s.m.End()
		return err
	}
	defer s.m.Store.OpenLane(f.epoch.Lane)()
	// As with a lane, who receives outlives the call by a moment.
	go func() {
		defer s.m.End()
		defer f.release(f.over)
		defer close(f.blocks)
		f.ended = rpc.Guard(s.m.Log, "reading what is to be filled", func() error { return f.receive(stream) })
	}()
	began := time.Now()
	err = f.appendAll(stream)
	if f.fetched > 0 {
		s.m.Log.LogAttrs(context.WithoutCancel(ctx), slog.LevelDebug, "positions of a session were fetched from other workers",
			slog.String("session", f.id.String()), slog.Int64("bytes", f.fetched), slog.Duration("took", time.Since(began)), slog.Any("error", err))
	}
	return err
}

// begin reads what is copied, and to where.
func (f *fill) begin(m *headwaterv1.FillFrom) (err error) {
	if f.id, err = f.own(f.ctx, "session", m.GetSession()); err != nil {
		return err
	}
	if f.to, err = f.own(f.ctx, "filled", m.GetFilled()); err != nil {
		return err
	}
	if f.epoch, err = readEpoch("filled_epoch", m.GetFilledEpoch()); err != nil {
		return err
	}
	return f.turn(m)
}

// turn reads from whom the next blocks come.
func (f *fill) turn(m *headwaterv1.FillFrom) error {
	if !slices.Equal(m.GetSession(), f.id[:]) || !slices.Equal(m.GetFilled(), f.to[:]) {
		return invalidSession("a call fills one session with one")
	}
	if _, err := readEpoch("epoch", m.GetEpoch()); err != nil {
		return err
	}
	f.told, f.sources = m.GetEpoch(), nil
	for _, named := range m.GetSources() {
		src := &fillSource{peer: rpc.Peer{Name: named.GetWorker()}, layers: map[uint32]*headwaterv1.HeldLayer{}}
		for _, l := range named.GetLayers() {
			src.layers[l.GetLayer()] = l
		}
		if src.peer.Name != f.m.Name {
			if err := f.reach(src); err != nil {
				return err
			}
		}
		f.sources = append(f.sources, src)
	}
	return nil
}

// reach uses the connection to a source, at the address that the cluster's membership says.
func (f *fill) reach(src *fillSource) (err error) {
	var known []membership.Member
	if f.members != nil {
		known = f.members()
	}
	i := slices.IndexFunc(known, func(m membership.Member) bool { return m.Role == membership.RoleWorker && m.Name == src.peer.Name })
	if i < 0 {
		return f.unreached(src.peer.Name, errors.New("it is not known by the cluster's membership"))
	}
	src.peer.Address = known[i].Address
	if src.conn, err = f.peers.Use(src.peer); err != nil {
		return f.unreached(src.peer.Name, err)
	}
	f.conns = append(f.conns, src.conn)
	return nil
}

// unreached is the error of a source that can't be asked: the coordinator may.
func (f *fill) unreached(source string, err error) error {
	return status.Errorf(codes.FailedPrecondition, "worker %s can not fetch from worker %.80q: %s", f.m.Name, source, status.Convert(err).Message())
}

// release waits for the fetches, once the call is over, and lets go of what they and the call have left.
func (f *fill) release(over <-chan struct{}) {
	if over != nil {
		<-over
		f.tasks.Wait()
		for b := range f.blocks {
			b.data.Free()
		}
	}
	for _, conn := range f.conns {
		conn.Release()
	}
}

// receive takes what the coordinator sends.
func (f *fill) receive(stream fillStream) error {
	for {
		m, err := stream.Recv()
		switch {
		case errors.Is(err, io.EOF):
			return nil
		case err != nil:
			return err
		case m.GetFrom() != nil:
			err = f.turn(m.GetFrom())
		default:
			err = f.start(m.GetBlock())
		}
		if err != nil {
			return err
		}
	}
}

// appendAll appends the blocks.
func (f *fill) appendAll(stream fillStream) error {
	for {
		select {
		case b, more := <-f.blocks:
			if !more {
				return f.ended
			}
			answer, err := f.append(b)
			b.data.Free()
			if err != nil {
				return err
			}
			if err := stream.Send(answer); err != nil {
				return err
			}
		case <-f.ctx.Done():
			return status.FromContextError(f.ctx.Err()).Err()
		case <-f.m.Stopping():
			return status.Error(codes.Unavailable, f.m.StoppingText())
		}
	}
}

// append appends a block once it was fetched.
func (f *fill) append(b *fillBlock) (*headwaterv1.FillSessionResponse, error) {
	if err := <-b.done; err != nil { // it ends with the call's context
		return nil, err
	}
	if f.layers == nil || f.cuts != b.GetTruncations() {
		state, err := f.m.Store.State(f.ctx, f.to)
		if err != nil {
			return nil, refusal(err)
		}
		f.cuts, f.layers = b.GetTruncations(), map[shard.Layer]*kvcache.LayerState{}
		for i := range state.Layers {
			f.layers[state.Layers[i].Layer] = &state.Layers[i]
		}
	}
	at := f.layers[shard.Layer(b.GetLayer())] // held: the block has begun with it
	for i, n := range b.rows {
		if n == 0 {
			b.after[i] = at.Hashes[i]
		}
	}
	a := kvcache.Append{
		Session: f.to, Epoch: f.epoch, Truncations: b.GetTruncations(), Layer: at.Layer, Length: b.GetStart(), Hashes: at.Hashes, Chain: at.Chain, ID: b.GetAppendId(),
		Positions: int(b.GetCount()), Encoding: b.layer.Storage(), K: b.part(0), V: b.part(1), KScale: b.part(2), VScale: b.part(3), Query: shard.MaxPositions, After: b.after,
	}
	length, hashes, err := f.m.Store.Append(f.ctx, &a, nil)
	if err != nil {
		return nil, refusal(err)
	}
	at.Length, at.Hashes, at.Chain = length, hashes, kvcache.NextChain(at.Chain, b.GetAppendId(), b.GetStart())
	f.fetched += b.fetched
	return &headwaterv1.FillSessionResponse{
		Layer: &headwaterv1.LayerState{Layer: b.GetLayer(), Length: length, Hashes: hashes, Chain: at.Chain}, FetchedBytes: uint64(b.fetched),
	}, nil
}

// fillBlock is a run of positions on its way.
type fillBlock struct {
	*headwaterv1.FillBlock
	layer   *shard.LayerSpec
	held    []shard.Group // that are filled, ascending
	from    []*fillSource // that have some of them
	epoch   *headwaterv1.Epoch
	sizes   session.Sizes
	data    *rpc.Buffer // as in a step that appends them
	rows    []int       // by group, how many positions it has
	first   []int       // by group, those of the groups before
	have    []int       // by group, how many have come
	after   []uint64    // by group, the hash after them
	fetched int64       // bytes that came from other workers
	done    chan error  // one element: whether it was fetched
}

// part returns k, v, k_scale or v_scale.
func (b *fillBlock) part(i int) []byte {
	ends := [...]int64{0, b.sizes.K, b.sizes.K + b.sizes.V, b.sizes.K + b.sizes.V + b.sizes.Scale, b.sizes.Total()}
	return b.data.Bytes()[ends[i]:ends[i+1]]
}

// start lets a block be fetched, once there is room for it.
func (f *fill) start(m *headwaterv1.FillBlock) error {
	layer, held, err := f.m.Store.Layer(f.to, shard.Layer(m.GetLayer()), 0)
	if err != nil {
		return refusal(err)
	}
	if n := m.GetCount(); n < 1 || n > shard.MaxStepTokens || m.GetStart() > shard.MaxPositions {
		return invalidSession("a block has %d positions from %d on, and 1 to %d are allowed", n, m.GetStart(), shard.MaxStepTokens)
	}
	b := &fillBlock{FillBlock: m, layer: layer, held: held, epoch: f.told, done: make(chan error, 1)}
	step := session.Step{Length: m.GetStart(), Append: uint32(m.GetCount()), Encoding: layerproto.StorageType(layer.Storage())}
	if b.sizes = step.Sizes(layer, held); b.sizes.Total() > rpc.MaxMessageBytes {
		return invalidSession("a block has %d bytes, and at most %d are allowed: cut it into several", b.sizes.Total(), rpc.MaxMessageBytes)
	}
	if err := b.share(f.sources); err != nil {
		return err
	}
	// Beside the block there is one message of each source.
	room := b.sizes.Total() + int64(len(b.from))*min(b.sizes.Total(), rpc.BlockBytes)
	share := rpc.ShareOf(f.ctx)
	if err := share.TakeAnswer(f.ctx, room); err != nil {
		return f.noRoom(err)
	}
	b.data = rpc.NewBuffer(max(int(b.sizes.Total()), 1))
	b.data.Hold(share, room)
	select {
	case f.blocks <- b:
	case <-f.ctx.Done():
		b.data.Free()
		return status.FromContextError(f.ctx.Err()).Err()
	}
	f.tasks.Go(func() {
		b.done <- rpc.Guard(f.m.Log, "fetching positions of a session", func() error { return f.fetch(b) })
	})
	return nil
}

// share says which group comes from whom.
func (b *fillBlock) share(sources []*fillSource) error {
	b.rows, b.first, b.have, b.after = make([]int, len(b.held)), make([]int, len(b.held)), make([]int, len(b.held)), make([]uint64, len(b.held))
	for i, g := range b.held {
		if b.rows[i] = b.layer.Stored(int(g), int(b.GetStart()), int(b.GetCount())); i > 0 {
			b.first[i] = b.first[i-1] + b.rows[i-1]
		}
	}
	given := make([]bool, len(b.held))
	for _, src := range sources {
		numbers := src.groups(b.layer, b.GetLayer())
		for _, g := range numbers {
			i, ok := slices.BinarySearch(b.held, shard.Group(g))
			if !ok || given[i] {
				return invalidSession("layer %d: group %d is not filled, or has two sources", b.GetLayer(), g)
			}
			given[i] = true
		}
		if len(numbers) > 0 {
			b.from = append(b.from, src)
		}
	}
	if slices.Contains(given, false) {
		return invalidSession("layer %d: a group that is filled has no source", b.GetLayer())
	}
	return nil
}

// fetch fetches a block from all of its sources.
func (f *fill) fetch(b *fillBlock) (err error) {
	var peers []rpc.Peer
	for _, src := range b.from {
		if src.conn != nil {
			peers = append(peers, src.peer)
		}
	}
	ctx, silent := f.peers.Heed(f.ctx, func() bool { return true }, peers...)
	defer func() {
		if peer := silent(); peer != (rpc.Peer{}) && err != nil {
			err = f.unreached(peer.Name, rpc.ErrSilent)
		}
	}()
	streams := make([]grpc.ServerStreamingClient[headwaterv1.ExportSessionResponse], len(b.from))
	for i, src := range b.from {
		if src.conn == nil {
			continue
		}
		req := &headwaterv1.ExportSessionRequest{
			Session: f.id[:], Layer: b.GetLayer(), Start: b.GetStart(), Count: b.GetCount(), Groups: src.groups(b.layer, b.GetLayer()), StoredHashes: true, Epoch: b.epoch,
		}
		if streams[i], err = headwaterv1.NewSessionServiceClient(src.conn).ExportSession(ctx, req); err != nil {
			return f.refused(src, err)
		}
	}
	for i, src := range b.from {
		if streams[i] == nil {
			err = f.take(b, src)
		} else if err = b.read(streams[i]); err != nil {
			err = f.refused(src, err)
		}
		if err != nil {
			return err
		}
	}
	if !slices.Equal(b.have, b.rows) {
		return session.Errorf(session.Different, "session %s: layer %d: not all of %d positions from %d on have come", f.id, b.GetLayer(), b.GetCount(), b.GetStart())
	}
	return nil
}

// refused is the error of a source: its refusal in its name, or that it can't be asked.
func (f *fill) refused(src *fillSource, err error) error {
	if e, ok := session.FromError(err); ok {
		if e.Why.GetHolder() == "" {
			e.Why.Holder = src.peer.Name
		}
		return e
	}
	if f.ctx.Err() != nil {
		return status.FromContextError(f.ctx.Err()).Err()
	}
	return f.unreached(src.peer.Name, err)
}

// read takes what a source sends of a block.
func (b *fillBlock) read(stream grpc.ServerStreamingClient[headwaterv1.ExportSessionResponse]) error {
	for {
		m := new(headwaterv1.ExportSessionResponse)
		err := rpc.RecvBulkTo(stream, m, func(field protowire.Number, n int) []byte { return b.room(m, field, n) })
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		if err := b.put(m); err != nil {
			return err
		}
	}
}

// rowFields are the fields of a message that have rows: those of each part.
var rowFields = [...]protowire.Number{4, 5, 6, 7}

// turn returns the index of a message's group and where its positions begin, which must follow those that have come.
func (b *fillBlock) turn(m *headwaterv1.ExportSessionResponse) (i, at int, _ error) {
	i, ok := slices.BinarySearch(b.held, shard.Group(m.GetGroup()))
	end := b.GetStart() + b.GetCount()
	if !ok || m.GetStart() < b.GetStart() || m.GetStart() > end || uint64(m.GetCount()) > end-m.GetStart() {
		return 0, 0, session.Errorf(session.Different, "layer %d group %d: positions were sent that nobody has asked for", b.GetLayer(), m.GetGroup())
	}
	at = b.layer.Stored(int(m.GetGroup()), int(b.GetStart()), int(m.GetStart()-b.GetStart()))
	if at != b.have[i] || at+int(m.GetCount()) > b.rows[i] {
		return 0, 0, session.Errorf(session.Different, "layer %d group %d: positions were sent out of turn", b.GetLayer(), m.GetGroup())
	}
	return i, at, nil
}

// room returns where rows of a message belong of which the other fields have come, or nil: put sees to them then.
func (b *fillBlock) room(m *headwaterv1.ExportSessionResponse, field protowire.Number, n int) []byte {
	j := slices.Index(rowFields[:], field)
	if j < 0 || m.GetCount() == 0 || n != int(m.GetCount())*b.width(j) {
		return nil
	}
	i, at, err := b.turn(m)
	if err != nil {
		return nil
	}
	return b.part(j)[b.width(j)*(b.first[i]+at):][:n]
}

// put takes positions of a group, which follow those that have come.
func (b *fillBlock) put(m *headwaterv1.ExportSessionResponse) error {
	i, at, err := b.turn(m)
	if err != nil {
		return err
	}
	n := int(m.GetCount())
	for j, rows := range [...][]byte{m.GetK(), m.GetV(), m.GetKScale(), m.GetVScale()} {
		width := b.width(j)
		if len(rows) != n*width {
			return session.Errorf(session.Different, "layer %d group %d: %d positions have %d bytes", b.GetLayer(), m.GetGroup(), n, len(rows))
		}
		if to := b.part(j)[width*(b.first[i]+at):]; len(rows) > 0 && &to[0] != &rows[0] { // else they came to their place
			copy(to, rows)
		}
	}
	b.have[i] += n
	b.after[i] = m.GetHashAfter()
	b.fetched += int64(len(m.GetK()) + len(m.GetV()))
	return nil
}

// width is the size of one position of k, v, k_scale or v_scale.
func (b *fillBlock) width(part int) int {
	switch {
	case part == 0:
		return b.layer.Layout.KRowBytes()
	case part == 1:
		return b.layer.Layout.VRowBytes()
	case b.layer.Storage() == tensor.I8:
		return 4
	}
	return 0
}

// take takes what this worker itself has of a block.
func (f *fill) take(b *fillBlock, src *fillSource) error {
	state, err := f.m.Store.Peek(f.id)
	if err == nil {
		err = notLeftOut(&state, b.epoch)
	}
	if err != nil {
		return refusal(err)
	}
	for _, g := range src.groups(b.layer, b.GetLayer()) {
		i, _ := slices.BinarySearch(b.held, shard.Group(g)) // it is there: see share
		b.layer.Runs(int(g), int(b.GetStart()), int(b.GetCount()), func(at, n, row int) bool {
			rows := attention.Rows{}
			slice := func(part int) []byte { w := b.width(part); return b.part(part)[w*(b.first[i]+row):][:w*n] }
			if rows.K, rows.V = slice(0), slice(1); b.width(2) > 0 {
				rows.KScale, rows.VScale = make([]float32, n), make([]float32, n)
			}
			_, b.after[i], err = f.m.Store.ExportKnown(f.id, shard.Layer(b.GetLayer()), shard.Group(g), at, n, rows)
			copy(slice(2), floatBytes(rows.KScale))
			copy(slice(3), floatBytes(rows.VScale))
			b.have[i] += n
			return err == nil
		})
		if err != nil {
			return refusal(err)
		}
	}
	return nil
}

// notLeftOut refuses if a session is under a lower epoch than a caller knows, who may know none: its holder was left out of it since.
func notLeftOut(s *kvcache.State, m *headwaterv1.Epoch) error {
	if m == nil {
		return nil
	}
	e, err := readEpoch("epoch", m)
	if err != nil {
		return err
	}
	return s.NotBelow(e)
}
