package kvcache

import (
	"bytes"
	"cmp"
	"fmt"
	"slices"
	"sync"
	"time"

	"headwater.example/attention"
	"headwater.example/shard"
	"headwater.example/tensor"
)

// maxTombstones is how many of the sessions that ended last a store remembers, so that their ids are not used again.
const maxTombstones = 1 << 16

// StoreConfig is what a store is made with.
type StoreConfig struct {
	// Budget is what pages are reserved from; others may share it.
	Budget *Budget
	// TTL is how long a session may go unused before it may be dropped for others, and the most that a session may ask for;
	// 0 is an hour.
	TTL time.Duration
	// MaxSessions bounds the sessions held, 0 is 65,536.
	MaxSessions int
	// Now is the clock, nil is time.Now.
	Now func() time.Time
}

// Store holds the sessions of one worker: for each the pages of the groups that are held. All methods may be called at the
// same time; calls on one session wait for each other, so their order is the callers' to keep. Each fails with an *Error
// and then has changed nothing, but that pages which might be evicted may be gone. A store makes no goroutine and keeps
// nothing that it is given but configs.
type Store struct {
	config StoreConfig
	budget *Budget

	mu         sync.Mutex // guards what follows, and what row and session say
	pages      *pages
	sessions   map[SessionID]*session
	tombstones map[SessionID]struct{}
	ended      []SessionID // a ring of the tombstones
	endedAt    int
	prefixes   prefixes
	counters   counters
	rows       int64      // bytes that are reserved for rows, beside their pages
	heap       int64      // bytes that are reserved for sessions and shapes
	lone       int64      // of these for shapes that no session has
	encoders   []*encoder // in no use
}

type counters struct {
	asked, hits, saved, evicted uint64
}

// CacheState is how full a store is. Sizes are in bytes.
type CacheState struct {
	// UsedBytes are the pages in use by sessions, prefixes and views, FreeBytes those that are reserved and in no use.
	UsedBytes, FreeBytes, BudgetBytes int64
	// RowBytes is what is reserved for the rows that pages stand in, SessionBytes what is for sessions themselves.
	RowBytes, SessionBytes int64
	// PrefixBytes are pages that only prefixes hold.
	PrefixBytes int64
	// PrefixAsked are the positions asked for in prefixes, PrefixHits those of them that were there, and PrefixSavedBytes
	// their keys and values.
	PrefixAsked, PrefixHits, PrefixSavedBytes uint64
	// Evicted are the sessions that were dropped for want of room or use.
	Evicted  uint64
	Sessions int
	// RoomBytes can be taken for pages, and for their rows, before anything is dropped: those free, and what nobody has reserved
	// of the budget.
	RoomBytes int64
	// Pages are those of each size that was in use, ascending by size.
	Pages []PageState
}

// PageState is the pages of one size.
type PageState struct {
	Bytes int // of a page
	Used  int
	// Free is how many can be taken before anything is dropped: those reserved and in no use, and as many as the budget has
	// room for, which sizes share, and the rows that pages stand in.
	Free int
}

// NewStore makes an empty store.
func NewStore(config StoreConfig) *Store {
	if config.TTL <= 0 {
		config.TTL = time.Hour
	}
	if config.MaxSessions <= 0 {
		config.MaxSessions = 1 << 16
	}
	if config.Now == nil {
		config.Now = time.Now
	}
	return &Store{
		config:     config,
		budget:     config.Budget,
		pages:      newPages(config.Budget, config.Now),
		sessions:   make(map[SessionID]*session),
		tombstones: make(map[SessionID]struct{}),
		prefixes:   prefixes{entries: make(map[prefixKey]*entry)},
	}
}

// unlock ends a section under mu and unmaps what it has emptied.
func (st *Store) unlock() {
	emptied := st.pages.emptied
	st.pages.emptied = nil
	st.mu.Unlock()
	settle(st.budget, emptied)
}

// find returns a session that is held.
func (st *Store) find(id SessionID, use bool) (*session, *Error) {
	st.mu.Lock()
	defer st.mu.Unlock()
	s := st.sessions[id]
	if s == nil {
		return nil, st.unknown(id)
	}
	if use {
		s.used = st.config.Now()
	}
	return s, nil
}

// open returns a session to look at, with its lock mu taken.
func (st *Store) open(id SessionID, use bool) (*session, *Error) {
	s, err := st.find(id, use)
	if err != nil {
		return nil, err
	}
	s.mu.Lock()
	if s.gone {
		s.mu.Unlock()
		return nil, st.unknown(id)
	}
	return s, nil
}

// hold returns a session to change, with both of its locks taken.
func (st *Store) hold(id SessionID, use bool) (*session, *Error) {
	s, err := st.find(id, use)
	if err != nil {
		return nil, err
	}
	s.busy.Lock()
	s.mu.Lock()
	if s.gone {
		s.unlock()
		return nil, st.unknown(id)
	}
	return s, nil
}

func (s *session) unlock() {
	s.mu.Unlock()
	s.busy.Unlock()
}

func (s *session) tryLock() bool {
	if !s.busy.TryLock() {
		return false
	}
	if !s.mu.TryLock() {
		s.busy.Unlock()
		return false
	}
	return true
}

func (st *Store) unknown(id SessionID) *Error {
	return refuse(Unknown, "session %s is not held here", id)
}

// drive holds a session for the lane of the epoch.
func (st *Store) drive(id SessionID, e Epoch) (*session, *Error) {
	s, err := st.hold(id, true)
	if err != nil {
		return nil, err
	}
	if e != s.epoch {
		defer s.unlock()
		return nil, s.stale(e)
	}
	return s, nil
}

func (s *session) stale(e Epoch) *Error {
	err := refuse(StaleEpoch, "session %s: epoch %d of lane %x, accepted is %d of lane %x", s.id, e.Counter, e.Lane, s.epoch.Counter, s.epoch.Lane)
	err.Epoch = s.epoch
	return err
}

func (s *session) otherTruncations(named uint64) *Error {
	err := refuse(OtherTruncations, "session %s: truncated %d times, the request names %d", s.id, s.truncations, named)
	err.Truncations = s.truncations
	return err
}

// CreateRequest asks for a session.
type CreateRequest struct {
	Session SessionID
	Epoch   Epoch
	Config  Config
	Held    []HeldLayer
	// Tokens that the session begins with. It begins with as many whole pages of them as are held, but not with all.
	Tokens []uint32
	// Begin [some layers held, ascending] are layers that begin as those of another session are. No prefix of Tokens is looked
	// for then, they are only told.
	Begin []BeginLayer
}

// Create makes a session, or answers for the one that the same request made before. The store keeps the config and the
// holding.
func (st *Store) Create(req CreateRequest) (State, error) {
	if req.Epoch.Counter < 1 {
		return State{}, refuse(Invalid, "session %s: epoch 0: epochs start at 1", req.Session)
	}
	sh, err := newShape(req.Config, req.Held)
	if err != nil {
		err.Rule = fmt.Sprintf("session %s: %s", req.Session, err.Rule)
		return State{}, err
	}
	s := &session{
		id: req.Session, shape: sh, epoch: req.Epoch,
		lengths: make([]int, len(sh.layers)), freed: make([]int, len(sh.layers)), hashes: make([]uint64, sh.shards),
		tokens: slices.Clone(req.Tokens),
	}
	how, err := s.begin(req)
	if err != nil {
		err.Rule = fmt.Sprintf("session %s: %s", req.Session, err.Rule)
		return State{}, err
	}
	// No one else knows it yet; a session is locked before the store.
	s.mu.Lock()
	defer s.mu.Unlock()
	st.mu.Lock()
	before, err := st.admit(s, how)
	if err == nil && before == nil {
		for i := range sh.layers {
			sh.layers[i].class = st.pages.class(sh.layers[i].Layout.PageBytes())
		}
		if s.begun == nil {
			st.match(s)
		}
	}
	st.unlock()
	switch {
	case err != nil:
		return State{}, err
	case before != nil:
		return st.again(before, req.Epoch)
	}
	return st.state(s), nil
}

// admit adds a session that is new, or returns the one that was made alike before.
func (st *Store) admit(s *session, how made) (before *session, err *Error) {
	if before := st.sessions[s.id]; before != nil {
		if !before.shape.equal(s.shape) || before.made != how {
			return nil, refuse(Exists, "session %s was made otherwise", s.id)
		}
		return before, nil
	}
	if _, ended := st.tombstones[s.id]; ended {
		return nil, refuse(Exists, "session %s has ended, and its id is not used again", s.id)
	}
	if err := st.reserveSession(s); err != nil {
		return nil, err
	}
	if len(st.sessions) >= st.config.MaxSessions && !st.evictSession() {
		st.freeSession(s)
		return nil, refuse(OverBudget, "session %s: %d sessions are held, the most that are allowed: drop one, or try again once one has gone unused for its TTL", s.id, len(st.sessions))
	}
	s.made, s.created = how, st.config.Now()
	s.used = s.created
	st.sessions[s.id] = s
	return nil, nil
}

// reserveSession takes room in the budget for a session, and for its shape where it is the first to have it. Where there is none it
// makes some.
func (st *Store) reserveSession(s *session) *Error {
	sh := s.shape
	s.bytes = s.heap()
	need := s.bytes
	if sh.sessions++; sh.sessions == 1 {
		need += sh.bytes
	}
	for evicted := false; ; {
		err := st.budget.Reserve(need)
		if err == nil {
			st.heap += need
			return nil
		}
		if !st.evictFor(err, need, &evicted) {
			sh.sessions--
			return refuse(OverBudget, "session %s: %d bytes are needed for its %d shards in %d layers: %v: drop a session, or try again later", s.id, need, sh.shards, len(sh.config.Layers), err)
		}
	}
}

// freeSession gives back what is reserved for a session that is no more.
func (st *Store) freeSession(s *session) {
	sh := s.shape
	st.heap -= s.bytes
	st.budget.Release(s.bytes)
	if sh.sessions--; sh.sessions > 0 {
		return
	}
	if sh.rows > 0 {
		st.lone += sh.bytes // until its last row is gone, which a prefix or a view may have
		return
	}
	st.freeShape(sh)
}

// freeShape gives back what is reserved for a shape that nothing has any more.
func (st *Store) freeShape(sh *shape) {
	st.heap -= sh.bytes
	st.budget.Release(sh.bytes)
}

// again answers a request, under epoch e, that has made a session before.
func (st *Store) again(before *session, e Epoch) (State, error) {
	s, err := st.open(before.id, true)
	if err != nil {
		return State{}, err
	}
	defer s.mu.Unlock()
	switch e.Compare(s.epoch) {
	case -1:
		return State{}, s.stale(e)
	case +1:
		return State{}, refuse(Exists, "session %s was made under another epoch", s.id)
	}
	return st.state(s), nil
}

// match lets a new session begin with the rows that its tokens find.
func (st *Store) match(s *session) {
	x := &st.prefixes
	st.counters.asked += uint64(len(s.tokens))
	key := s.shape.root
	var e *entry
	for n := 0; (n+1)*attention.PageLen < len(s.tokens); n++ {
		key = key.next(s.tokens[n*attention.PageLen:][:attention.PageLen])
		next := x.entries[key]
		if next == nil {
			break
		}
		e = next
		st.share(e.row)
		s.rows = append(s.rows, e.row)
	}
	if e == nil {
		return
	}
	length := len(s.rows) * attention.PageLen
	s.keyed = len(s.rows)
	copy(s.hashes, e.row.hashes)
	for l := range s.shape.layers {
		h := &s.shape.layers[l]
		s.lengths[l] = length
		st.counters.saved += uint64(length * len(h.groups) * h.rowBytes())
	}
	// What has left a layer's window is left with the first append: until then the session may be cut to a shorter prefix,
	// where another holder has found less.
	st.counters.hits += uint64(length)
}

// leaveUntil counts that a session needs the pages of held layer l before page p no more, and lets rows go that it needs
// in no layer.
func (st *Store) leaveUntil(s *session, l, p int) {
	if p <= s.freed[l] {
		return
	}
	for q := s.freed[l]; q < p; q++ {
		st.leave(s.row(q), l)
	}
	s.freed[l] = p
	for least := slices.Min(s.freed); s.first < least; s.first++ {
		r := s.rows[0]
		s.edge = edge{hashes: r.hashes, key: r.key}
		st.release(r, s, s.first)
		s.rows[0] = nil
		s.rows = s.rows[1:]
	}
}

// State returns what is held of a session. It does not count as use.
func (st *Store) State(id SessionID) (State, error) {
	s, err := st.open(id, false)
	if err != nil {
		return State{}, err
	}
	defer s.mu.Unlock()
	return st.state(s), nil
}

// Layer returns a layer's config and its groups that are held, ascending. Both are not to be changed. It counts as use, so that a
// step whose memory is made room for does not drop its own session.
func (st *Store) Layer(id SessionID, layer shard.Layer) (*Layer, []shard.Group, error) {
	s, err := st.open(id, true)
	if err != nil {
		return nil, nil, err
	}
	defer s.mu.Unlock()
	l, held := s.shape.layer(layer)
	if !held {
		return nil, nil, refuse(Invalid, "session %s: layer %d: it is not held here", id, layer).at(layer, 0)
	}
	h := &s.shape.layers[l]
	return &h.Layer, h.groups, nil
}

// List returns what is held of the sessions after an id, nil is of all, by id: at most limit of them, 0 is no limit.
func (st *Store) List(after *SessionID, limit int) []State {
	st.mu.Lock()
	ids := make([]SessionID, 0, len(st.sessions))
	for id := range st.sessions {
		if after == nil || bytes.Compare(id[:], after[:]) > 0 {
			ids = append(ids, id)
		}
	}
	st.mu.Unlock()
	slices.SortFunc(ids, func(a, b SessionID) int { return bytes.Compare(a[:], b[:]) })
	if limit <= 0 {
		limit = len(ids)
	}
	states := make([]State, 0, min(limit, len(ids)))
	for _, id := range ids {
		if len(states) == limit {
			break
		}
		if state, err := st.State(id); err == nil { // else it has ended meanwhile
			states = append(states, state)
		}
	}
	return states
}

// state needs the session's lock.
func (st *Store) state(s *session) State {
	sh := s.shape
	state := State{
		Session: s.id, Epoch: s.epoch, Truncations: s.truncations, Layers: make([]LayerState, len(sh.layers)), Pinned: s.pinned,
		PageBytes: s.pageBytes(), Created: s.created, Config: &sh.config, Held: sh.held,
	}
	hashes := slices.Clone(s.hashes)
	for l, h := range sh.layers {
		end := h.first + len(h.groups)
		state.Layers[l] = LayerState{
			Layer: h.layer, Length: uint64(s.lengths[l]), Hashes: hashes[h.first:end:end], First: uint64(s.freed[l] * attention.PageLen),
		}
	}
	st.mu.Lock()
	defer st.mu.Unlock()
	state.Used = s.used
	for _, r := range s.rows {
		if r.refs == 1 {
			state.OwnBytes += r.bytes
		}
	}
	return state
}

// Cache returns how full the store is.
func (st *Store) Cache() CacheState {
	st.mu.Lock()
	defer st.mu.Unlock()
	left := st.budget.Total() - st.budget.Used()
	return CacheState{
		UsedBytes: st.pages.used, FreeBytes: st.pages.idle, BudgetBytes: st.budget.Total(), RowBytes: st.rows, SessionBytes: st.heap, PrefixBytes: st.prefixes.bytes,
		PrefixAsked: st.counters.asked, PrefixHits: st.counters.hits, PrefixSavedBytes: st.counters.saved,
		Evicted: st.counters.evicted, Sessions: len(st.sessions),
		RoomBytes: st.pages.idle + left, Pages: st.pages.count(left),
	}
}

// Take steps a session's epoch and returns what is held. With expect it refuses where less is held than expected, or other
// keys and values; what is held beyond is for the caller to see. With checkOnly it does all but step the epoch.
func (st *Store) Take(id SessionID, e Epoch, expect []LayerState, truncations uint64, checkOnly bool) (State, error) {
	s, err := st.hold(id, true)
	if err != nil {
		return State{}, err
	}
	defer s.unlock()
	switch {
	case e.Compare(s.epoch) < 0:
		return State{}, s.stale(e)
	case len(expect) > 0 && truncations != s.truncations:
		return State{}, s.otherTruncations(truncations)
	}
	for _, want := range expect {
		l, held := s.shape.layer(want.Layer)
		if !held {
			return State{}, refuse(Invalid, "session %s: layer %d is not held here", id, want.Layer).at(want.Layer, 0)
		}
		h := &s.shape.layers[l]
		switch {
		case len(want.Hashes) != len(h.groups):
			return State{}, refuse(Invalid, "session %s: layer %d: %d hashes for %d groups", id, want.Layer, len(want.Hashes), len(h.groups)).at(want.Layer, s.lengths[l])
		case want.Length > uint64(s.lengths[l]):
			return State{}, refuse(Behind, "session %s: layer %d has %d positions, not %d", id, want.Layer, s.lengths[l], want.Length).at(want.Layer, s.lengths[l])
		}
		hashes, err := st.hashesAt(s, l, int(want.Length))
		if err != nil {
			return State{}, err
		}
		if err := s.same(l, want.Hashes, hashes); err != nil {
			return State{}, err
		}
	}
	if !checkOnly {
		s.epoch = e
	}
	return st.state(s), nil
}

// same compares the hashes of a layer that are named with those that are there.
func (s *session) same(l int, named, have []uint64) *Error {
	h := &s.shape.layers[l]
	for i, g := range h.groups {
		if named[i] != have[i] {
			return refuse(Different, "session %s: layer %d group %d has hash %016x, not %016x", s.id, h.layer, g, have[i], named[i]).at(h.layer, s.lengths[l]).of(g)
		}
	}
	return nil
}

// needs refuses if a layer that is cut to n positions would lack some that queries from there on see.
func (s *session) needs(l, n int) *Error {
	h := &s.shape.layers[l]
	if n > 0 && n < s.lengths[l] && h.seenFrom(n) < s.freed[l] {
		return refuse(Freed, "session %s: layer %d: positions before %d have been freed, a query at %d sees from %d on", s.id, h.layer,
			s.freed[l]*attention.PageLen, n, n-int(h.Options.WindowLeft)).at(h.layer, s.lengths[l])
	}
	return nil
}

// hashesAt returns the hashes of held layer l at n positions, of which it has as many.
func (st *Store) hashesAt(s *session, l, n int) ([]uint64, *Error) {
	if err := s.needs(l, n); err != nil {
		return nil, err
	}
	h := &s.shape.layers[l]
	hashes := make([]uint64, len(h.groups))
	if n == s.lengths[l] {
		copy(hashes, s.hashes[h.first:])
		return hashes, nil
	}
	p, rest := n/attention.PageLen, n%attention.PageLen
	for i := range hashes {
		hashes[i] = s.checkpoint(p, h.first+i)
	}
	if rest == 0 {
		return hashes, nil
	}
	pages := make([][]byte, len(h.groups))
	st.mu.Lock()
	for i := range pages {
		pages[i] = h.class.page(s.row(p).pages[h.first+i])
	}
	st.mu.Unlock()
	rows := makeRows(h.Layout, rest)
	for i, page := range pages {
		if err := h.Layout.Read(page, 0, rest, rows); err != nil {
			return nil, refuse(Invalid, "session %s: layer %d group %d: %v", s.id, h.layer, h.groups[i], err).at(h.layer, s.lengths[l]).of(h.groups[i])
		}
		chain := Hasher{receipt: Receipt{Length: uint64(p * attention.PageLen), Hash: hashes[i]}}
		if err := chain.Update(rows, rest, h.Layout); err != nil {
			return nil, refuse(Invalid, "session %s: layer %d group %d: %v", s.id, h.layer, h.groups[i], err).at(h.layer, s.lengths[l]).of(h.groups[i])
		}
		hashes[i] = chain.Receipt().Hash
	}
	return hashes, nil
}

func makeRows(layout attention.Layout, n int) attention.Rows {
	rows := attention.Rows{K: make([]byte, n*layout.KRowBytes()), V: make([]byte, n*layout.VRowBytes())}
	if scaled(layout) {
		rows.KScale, rows.VScale = make([]float32, n), make([]float32, n)
	}
	return rows
}

func scaled(layout attention.Layout) bool { return layout.DType() == tensor.I8 }

// cutHashes returns what hashes becomes where the layers are cut to these lengths.
func (st *Store) cutHashes(s *session, lengths []int) ([]uint64, *Error) {
	hashes := slices.Clone(s.hashes)
	for l, h := range s.shape.layers {
		if lengths[l] >= s.lengths[l] {
			continue
		}
		at, err := st.hashesAt(s, l, lengths[l])
		if err != nil {
			return nil, err
		}
		copy(hashes[h.first:], at)
	}
	return hashes, nil
}

// Truncate takes back the positions of every layer from position on. Truncations are those before; the same request again
// is a success.
func (st *Store) Truncate(id SessionID, e Epoch, truncations, position uint64) (State, error) {
	return st.truncate(id, e, truncations, false, func(s *session) ([]int, *Error) { return s.all(int(min(position, maxPositions))), nil })
}

// TruncateLayers is Truncate with a position for each layer of the config. With checkOnly it changes nothing.
func (st *Store) TruncateLayers(id SessionID, e Epoch, truncations uint64, positions []uint64, checkOnly bool) (State, error) {
	return st.truncate(id, e, truncations, checkOnly, func(s *session) ([]int, *Error) {
		if len(positions) != len(s.shape.config.Layers) {
			return nil, refuse(Invalid, "session %s: lengths of %d layers, it has %d", id, len(positions), len(s.shape.config.Layers))
		}
		to := make([]int, len(s.lengths))
		for l, h := range s.shape.layers {
			to[l] = int(min(positions[h.layer], maxPositions))
		}
		longest := 0
		for l, n := range to {
			longest = max(longest, min(n, s.lengths[l]))
		}
		for l, n := range to {
			if n == 0 && longest > 0 && s.freed[l] > 0 {
				h := &s.shape.layers[l]
				return nil, refuse(Freed, "session %s: layer %d: positions before %d have been freed, and not all layers begin anew", id, h.layer, s.freed[l]*attention.PageLen).at(h.layer, s.lengths[l])
			}
		}
		return to, nil
	})
}

// all returns n for each held layer.
func (s *session) all(n int) []int { return slices.Repeat([]int{n}, len(s.lengths)) }

func (st *Store) truncate(id SessionID, e Epoch, truncations uint64, checkOnly bool, read func(*session) ([]int, *Error)) (State, error) {
	s, err := st.drive(id, e)
	if err != nil {
		return State{}, err
	}
	defer s.unlock()
	to, err := read(s)
	if err != nil {
		return State{}, err
	}
	if s.truncations > 0 && truncations == s.truncations-1 && slices.Equal(to, s.cut) {
		return st.state(s), nil
	}
	if truncations != s.truncations {
		return State{}, s.otherTruncations(truncations)
	}
	hashes, err := st.cutHashes(s, to)
	if err != nil {
		return State{}, err
	}
	if checkOnly {
		return st.state(s), nil
	}
	s.hashes = hashes
	st.mu.Lock()
	st.shorten(s, to)
	st.unlock()
	s.truncations++
	s.cut = to
	return st.state(s), nil
}

// shorten cuts a session's layers to lengths, but for its hashes. Of rows that other layers still need the session frees a
// layer's pages where it alone has them; where it shares them they go with the row.
func (st *Store) shorten(s *session, lengths []int) {
	before := slices.Clone(s.lengths)
	for l := range s.lengths {
		s.lengths[l] = min(s.lengths[l], lengths[l])
	}
	for keep := pagesOf(slices.Max(s.lengths)); s.end() > max(keep, s.first); {
		last := len(s.rows) - 1
		st.release(s.rows[last], s, s.end()-1)
		s.rows[last] = nil
		s.rows = s.rows[:last]
	}
	for l, n := range s.lengths {
		for p := max(pagesOf(n), s.first); p < min(pagesOf(before[l]), s.end()); p++ {
			if r := s.row(p); r.refs == 1 {
				st.free(r, l)
			}
		}
	}
	if slices.Max(s.lengths) == 0 {
		clear(s.freed)
		s.first, s.rows, s.edge, s.begun = 0, nil, edge{}, nil
	}
	s.keyed = min(s.keyed, s.filled())
	n := min(slices.Max(lengths), len(s.tokens))
	s.tokens = s.tokens[:n:n] // A fork may have the same array, so the next append makes another.
}

// ForkRequest asks for a session that begins as another one.
type ForkRequest struct {
	Session     SessionID
	Epoch       Epoch
	Truncations uint64
	Child       SessionID
	ChildEpoch  Epoch
	// Position is how many positions the child begins with, at most what every layer has; less than 0 is all.
	Position int64
}

// Fork makes a session that shares the rows of another, which does not change, or answers for the one that the same request
// made before. Whoever appends to a shared row first copies it.
func (st *Store) Fork(req ForkRequest) (State, error) {
	if req.ChildEpoch.Counter < 1 {
		return State{}, refuse(Invalid, "session %s: epoch 0: epochs start at 1", req.Child)
	}
	how := made{forked: true, from: req.Session, position: max(req.Position, -1)}
	st.mu.Lock()
	before := st.sessions[req.Child]
	st.mu.Unlock()
	if before != nil && before.made == how {
		return st.again(before, req.ChildEpoch)
	}
	s, err := st.drive(req.Session, req.Epoch)
	if err != nil {
		return State{}, err
	}
	child, before, err := st.fork(s, req, how)
	s.unlock()
	switch {
	case err != nil:
		return State{}, err
	case before != nil:
		return st.again(before, req.ChildEpoch)
	}
	defer child.mu.Unlock()
	return st.state(child), nil
}

// fork returns the new session, locked, or the one that was made before.
func (st *Store) fork(s *session, req ForkRequest, how made) (child, before *session, err *Error) {
	if req.Truncations != s.truncations {
		return nil, nil, s.otherTruncations(req.Truncations)
	}
	n := slices.Max(s.lengths)
	if req.Position >= 0 {
		n = int(min(req.Position, maxPositions))
		for l, length := range s.lengths {
			if n > length {
				layer := s.shape.layers[l].layer
				return nil, nil, refuse(Behind, "session %s: layer %d has %d positions, the fork is at %d", s.id, layer, length, n).at(layer, length)
			}
		}
	}
	hashes, err := st.cutHashes(s, s.all(n))
	if err != nil {
		return nil, nil, err
	}
	child = &session{
		id: req.Child, shape: s.shape, epoch: req.ChildEpoch,
		lengths: slices.Clone(s.lengths), freed: slices.Clone(s.freed), hashes: hashes,
		rows: slices.Clone(s.rows), first: s.first, edge: s.edge, tokens: s.tokens[:len(s.tokens):len(s.tokens)], keyed: s.keyed,
		begun: s.begun,
	}
	child.mu.Lock()
	st.mu.Lock()
	defer st.unlock()
	before, err = st.admit(child, how)
	if err != nil || before != nil {
		child.mu.Unlock()
		return child, before, err
	}
	for i, r := range child.rows {
		st.share(r)
		for l, freed := range child.freed {
			if freed > child.first+i {
				r.left[l]++
			}
		}
	}
	st.shorten(child, child.all(n))
	return child, nil, nil
}

// Pin keeps a session from being dropped for want of room or use, or no longer.
func (st *Store) Pin(id SessionID, pinned bool) (State, error) {
	s, err := st.open(id, true)
	if err != nil {
		return State{}, err
	}
	defer s.mu.Unlock()
	s.pinned = pinned
	return st.state(s), nil
}

// Drop ends a session, of a lower or another epoch never; nil is whatever its epoch. Of one that ended before it is a success.
func (st *Store) Drop(id SessionID, e *Epoch) error {
	s, err := st.hold(id, false)
	if err != nil {
		st.mu.Lock()
		defer st.mu.Unlock()
		if _, ended := st.tombstones[id]; ended {
			return nil
		}
		return err
	}
	defer s.unlock()
	if e != nil && *e != s.epoch {
		return s.stale(*e)
	}
	st.mu.Lock()
	st.end(s)
	st.unlock()
	// A few rows at a time, so that others do not wait for a long session's.
	for len(s.rows) > 0 {
		st.mu.Lock()
		st.releaseRows(s, 16)
		st.unlock()
	}
	return nil
}

// end takes a session out of the store; its rows are the caller's to release.
func (st *Store) end(s *session) {
	s.gone = true
	delete(st.sessions, s.id)
	st.freeSession(s)
	if len(st.ended) < maxTombstones {
		st.ended = append(st.ended, s.id)
	} else {
		delete(st.tombstones, st.ended[st.endedAt])
		st.ended[st.endedAt] = s.id
		st.endedAt = (st.endedAt + 1) % maxTombstones
	}
	st.tombstones[s.id] = struct{}{}
}

// releaseRows releases the last rows of a session that has ended, at most n.
func (st *Store) releaseRows(s *session, n int) {
	for ; n > 0 && len(s.rows) > 0; n-- {
		last := len(s.rows) - 1
		st.release(s.rows[last], s, s.end()-1)
		s.rows[last] = nil
		s.rows = s.rows[:last]
	}
}

// Close drops all sessions and prefixes. What is reserved after it belongs to views that are not released yet.
func (st *Store) Close() {
	for _, state := range st.List(nil, 0) {
		_ = st.Drop(state.Session, nil) // It fails only where the session has ended.
	}
	st.mu.Lock()
	for _, r := range st.prefixes.clear() {
		st.release(r, nil, 0)
	}
	st.pages.closed = true
	st.pages.unkeep(st.config.Now())
	st.unlock()
}

// evictPrefix frees the least recently used row that only the index has.
func (st *Store) evictPrefix() bool {
	r := st.prefixes.remove()
	if r == nil {
		return false
	}
	st.release(r, nil, 0)
	return true
}

// evictSession drops the session that has gone unused the longest of those beyond their TTL.
func (st *Store) evictSession() bool {
	for _, s := range st.expired() {
		if !s.tryLock() {
			continue // It is in use.
		}
		if !s.gone && !s.pinned {
			st.end(s)
			st.releaseRows(s, len(s.rows))
			st.counters.evicted++
			s.unlock()
			return true
		}
		s.unlock()
	}
	return false
}

// expired returns the sessions that have gone unused for their TTL, the longest first.
func (st *Store) expired() []*session {
	var all []*session
	now := st.config.Now()
	for _, s := range st.sessions {
		ttl := st.config.TTL
		if t := s.shape.config.TTL; t > 0 {
			ttl = min(ttl, t)
		}
		if now.Sub(s.used) >= ttl {
			all = append(all, s)
		}
	}
	slices.SortFunc(all, func(a, b *session) int {
		return cmp.Or(a.used.Compare(b.used), bytes.Compare(a.id[:], b.id[:]))
	})
	return all
}

// Expire drops all sessions that have gone unused for their TTL and are not pinned, and says how many. Of memory that nothing
// has been in for a while it gives all back.
func (st *Store) Expire() int {
	st.mu.Lock()
	defer st.unlock()
	st.pages.unkeep(st.config.Now().Add(-keepFor))
	n := 0
	for st.evictSession() {
		n++
	}
	return n
}

// Reclaim makes room for n bytes in the budget that the store shares with others, and says whether they are free: it gives
// the memory of free pages back, then evicts prefixes, then sessions, as an append does, and none of these in vain.
func (st *Store) Reclaim(n int64) bool {
	st.mu.Lock()
	defer st.unlock()
	free := func() int64 { return st.budget.Total() - st.budget.Used() }
	if left := free(); left < n && !st.frees(n-left) {
		return false
	}
	for free() < n {
		if !st.evict() {
			return false
		}
	}
	return true
}

// evict frees what is dispensed with most easily: the memory of idle pages, else a prefix, else a session.
func (st *Store) evict() bool {
	trimmed, err := st.pages.trim()
	freed := err == nil && (trimmed || st.evictPrefix() || st.evictSession())
	settle(st.budget, st.pages.emptied)
	st.pages.emptied = nil
	return freed
}

// frees says whether evict may free n bytes: where it says no, it can not. What sessions share counts for each.
func (st *Store) frees(n int64) bool {
	n -= st.pages.idle + st.prefixes.bytes + st.prefixes.rows + st.lone
	if n <= 0 {
		return true
	}
	for _, s := range st.expired() {
		if !s.tryLock() {
			continue // It is in use.
		}
		if !s.pinned {
			// Of rows that were shared there may be more than pageBytes counts.
			n -= s.bytes + s.shape.bytes
			for _, r := range s.rows {
				n -= r.bytes + r.shape.rowBytes
			}
		}
		s.unlock()
		if n <= 0 {
			return true
		}
	}
	return false
}
