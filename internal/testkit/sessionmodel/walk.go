package sessionmodel

import (
	"encoding/binary"
	"errors"
	"flag"
	"fmt"
	"math"
	"slices"
	"strconv"
	"sync/atomic"
	"time"

	"github.com/zeebo/xxh3"
	"pgregory.net/rapid"

	"headwater.example/attention"
	"headwater.example/client"
)

// Cluster is what a walk goes over. Nobody else has sessions there.
type Cluster struct {
	Address string        // the coordinator's
	Workers int           // how many there are
	Budget  int64         // of each worker, in bytes
	TTL     time.Duration // the workers' limit
	Tenant  string        // begins the tenants' names, so that prefixes of other walks are not found
	// Clock is the workers' clock; nil is time itself, of which the walk must take less than any TTL.
	Clock *Clock
	// Expire has all workers drop what has gone unused for its TTL; needed with Clock.
	Expire func()
}

// Clock is a clock that stands still unless it is set forward. It is safe for concurrent use.
type Clock struct{ since atomic.Int64 }

// Now is the clock's time.
func (c *Clock) Now() time.Time { return time.Unix(1e9, c.since.Load()) }

// Checks makes n cases of a property, where the flag -rapid.checks does not say how many, until undo is called. No other
// property is checked meanwhile.
func Checks(n int) (undo func()) {
	checks := flag.Lookup("rapid.checks")
	if checks.Value.String() != checks.DefValue {
		return func() {}
	}
	set := func(to string) {
		if err := checks.Value.Set(to); err != nil {
			panic(err) // it is a number
		}
	}
	set(strconv.Itoa(n))
	return func() { set(checks.DefValue) }
}

// roomyBudget is what no walk fills.
const roomyBudget = 256 << 20

// maxLen is about how many positions a layer gets.
const maxLen = 260

// walk is a cluster beside its model.
type walk struct {
	Cluster
	tight    bool
	clients  []*client.Client
	sessions []*session
	kins     []client.SessionOptions
	// known [holder and groups] are the ends of the pages that were told and filled there.
	known   map[string]map[uint64]bool
	attends []Attend
	saved   []snapshot
	// vague says that known may have more than there is: which tokens a snapshot tells is not predicted.
	vague  bool
	opened int
	salts  uint64
}

// Walk does random things to sessions, ends them all, and checks that no page is left that is not a prefix's. It returns what was
// attended.
func Walk(t *rapid.T, c Cluster) []Attend {
	w := &walk{Cluster: c, tight: c.Budget < roomyBudget, known: map[string]map[uint64]bool{}}
	for range 2 {
		one, err := client.Dial(c.Address)
		if err != nil {
			t.Fatal(err)
		}
		defer func() {
			if err := one.Close(); err != nil {
				t.Error(err)
			}
		}()
		w.clients = append(w.clients, one)
	}
	// Some have several names, so that they are done more often.
	actions := map[string]func(*rapid.T){
		"open":     w.open,
		"one more": w.open,
		"step":     w.step,
		"append":   w.step,
		"attend":   w.step,
		"batch":    w.batch,
		"steps":    w.batch,
		"level":    w.level,
		"token":    w.level,
		"tokens":   w.level,
		"fork":     w.fork,
		"truncate": w.truncate,
		"pin":      w.pin,
		"drop":     w.drop,
		"attach":   w.attach,
		"export":   w.export,
		"look":     w.look,
		"snapshot": w.snapshot,
		"restore":  w.restore,
	}
	if c.Clock != nil {
		actions["wait"], actions["expire"] = w.wait, w.expire
	}
	w.open(t)
	w.open(t)
	t.Repeat(actions)
	for len(w.sessions) > 0 {
		w.end(t, w.sessions[0])
	}
	caches, err := w.clients[0].Caches(t.Context())
	if err != nil || len(caches) != c.Workers {
		t.Fatalf("%d caches: %v", len(caches), err)
	}
	for _, cache := range caches {
		if cache.Sessions != 0 || cache.UsedBytes != cache.PrefixBytes || cache.QueuedSteps != 0 || cache.QueuedTokens != 0 {
			t.Fatalf("in the end a worker has %v", cache)
		}
	}
	return w.attends
}

func (w *walk) now() time.Time {
	if w.Clock == nil {
		return time.Time{}
	}
	return w.Clock.Now()
}

func (w *walk) salt() uint64 {
	w.salts++
	return w.salts
}

func (w *walk) pick(t *rapid.T) *session {
	if len(w.sessions) == 0 {
		t.Skip("no session")
	}
	s := w.sessions[rapid.IntRange(0, len(w.sessions)-1).Draw(t, "session")]
	t.Logf("%s", s)
	return s
}

func (s *session) String() string { return s.name }

func (w *walk) remove(s *session) {
	w.sessions = slices.DeleteFunc(w.sessions, func(other *session) bool { return other == s })
}

// reason is why a call was refused; an error that is no refusal ends the walk.
func reason(t *rapid.T, err error) client.Reason {
	var e *client.SessionError
	if !errors.As(err, &e) {
		t.Fatalf("%v is no refusal of a session", err)
	}
	return e.Reason
}

const (
	behind     = client.ReasonBehind
	different  = client.ReasonDifferent
	freed      = client.ReasonFreed
	overBudget = client.ReasonOverBudget
)

// gone handles an error of a call that found that a holder has dropped its part for want of room. The session then ends.
func (w *walk) gone(t *rapid.T, s *session, err error) bool {
	if !w.tight || !errors.Is(err, client.ErrNotFound) && !errors.Is(err, client.ErrLost) {
		return false
	}
	if !s.stale(w.now()) {
		t.Fatalf("%s was in use, with a TTL of %v at %v, pinned %v, by %v: %v", s, s.ttl, w.now(), s.pinned, s.holders, err)
	}
	w.end(t, s)
	return true
}

// refused makes sure that all holders of a session count a call that was refused as use: some may not have been reached, and of
// several that refuse, one that has dropped its part is not the first to be told.
func (w *walk) refused(t *rapid.T, s *session) { w.setPin(t, s, s.pinned) }

// end drops a session that may have been dropped at some holders before.
func (w *walk) end(t *rapid.T, s *session) {
	if err := w.clients[s.driver].DropSession(t.Context(), s.ID()); err != nil {
		t.Fatalf("drop of %s: %v", s, err)
	}
	w.remove(s)
}

// check compares what the client says of a session with the model.
func (w *walk) check(t *rapid.T, s *session) {
	if s.Len() != s.least() {
		t.Fatalf("%s has %d positions, not %d", s, s.Len(), s.least())
	}
	for l := range s.layers {
		if s.LayerLen(l) != len(s.kept[l]) {
			t.Fatalf("%s: layer %d has %d positions, not %d", s, l, s.LayerLen(l), len(s.kept[l]))
		}
	}
}

// receipt is the session's receipt as docs/sessions.md says it is made, where its layers are cut to these lengths.
func (s *session) receipt(lengths []int) client.Receipt {
	r := client.Receipt{Session: s.ID(), Truncations: s.Receipt().Truncations}
	for i, l := range s.layers {
		stripes := s.stripesOf(l)
		one := client.LayerReceipt{Length: uint64(lengths[i]), Hashes: make([]uint64, l.KVHeads*stripes)}
		kb, vb := l.HeadDim*l.Storage.Size(), l.VDim*l.Storage.Size()
		for at, p := range s.kept[i][:lengths[i]] {
			for g := range l.KVHeads {
				shard := g*stripes + at/2048%stripes
				b := binary.LittleEndian.AppendUint64(nil, one.Hashes[shard])
				b = binary.LittleEndian.AppendUint64(b, uint64(at))
				b = append(append(b, p.storedK[g*kb:][:kb]...), p.storedV[g*vb:][:vb]...)
				if p.kScale != nil {
					b = binary.LittleEndian.AppendUint32(b, math.Float32bits(p.kScale[g]))
					b = binary.LittleEndian.AppendUint32(b, math.Float32bits(p.vScale[g]))
				}
				one.Hashes[shard] = xxh3.Hash(b)
			}
		}
		r.Layers = append(r.Layers, one)
	}
	return r
}

// stripesOf is in how many stripes the session holds a layer's groups.
func (s *session) stripesOf(l client.Layer) int {
	if _, bounded := l.WindowLeft.Positions(); bounded {
		return 1
	}
	return max(s.stripes, 1)
}

func (s *session) lengths() []int {
	n := make([]int, len(s.kept))
	for i := range n {
		n[i] = len(s.kept[i])
	}
	return n
}

// look compares what the holders say of a session with the model.
func (w *walk) look(t *rapid.T) {
	s := w.pick(t)
	state, err := w.clients[0].FindSession(t.Context(), s.ID())
	if w.tight && s.stale(w.now()) {
		return // some of it may be gone, which the next call finds
	}
	if err != nil {
		t.Fatal(err)
	}
	if state.Name != s.name || state.Pinned != s.pinned {
		t.Fatalf("%s is %v, pinned %v", s, state, s.pinned)
	}
	pages := 0
	want := s.receipt(s.lengths())
	if have := s.Receipt(); !slices.EqualFunc(have.Layers, want.Layers, func(a, b client.LayerReceipt) bool { return a.Length == b.Length && slices.Equal(a.Hashes, b.Hashes) }) {
		t.Fatalf("%s: its receipt is %v, not %v", s, have, want)
	}
	for i, l := range state.Layers {
		if l.Length != uint64(len(s.kept[i])) {
			// What a step that failed has left at some holders is taken back by the next call.
			if w.tight {
				continue
			}
			t.Fatalf("%s: layer %d has %d positions, not %d", s, i, l.Length, len(s.kept[i]))
		}
		pages += (pagesOf(len(s.kept[i])) - s.freed[i]) * s.layers[i].KVHeads * pageBytes(s.layers[i])
	}
	if !s.loose && !w.tight && state.PageBytes != uint64(pages) {
		t.Fatalf("%s has %d bytes of pages, not %d", s, state.PageBytes, pages)
	}
}

func pagesOf(n int) int { return (n + attention.PageLen - 1) / attention.PageLen }

func pageBytes(l client.Layer) int {
	layout, err := attention.NewLayout(l.Storage, l.HeadDim, l.VDim)
	if err != nil {
		panic(err) // a worker has taken it
	}
	return layout.PageBytes()
}

var codecs = []client.Codec{client.Auto, client.Raw, client.Exact, client.BF16, client.F16, client.Int8}

// draw makes the options of a session, often those of one before.
func (w *walk) draw(t *rapid.T) client.SessionOptions {
	var opts client.SessionOptions
	if len(w.kins) > 0 && rapid.IntRange(0, 7).Draw(t, "of a kind") > 0 {
		opts = w.kins[rapid.IntRange(0, len(w.kins)-1).Draw(t, "kind")]
	} else {
		for i := range rapid.IntRange(1, 3).Draw(t, "layers") {
			opts.Layers = append(opts.Layers, drawLayer(t, i))
		}
		opts.Tenant = w.Tenant + rapid.SampledFrom([]string{"", "a"}).Draw(t, "tenant")
		opts.Model = []byte(rapid.SampledFrom([]string{"", "m"}).Draw(t, "model"))
		opts.Workers = rapid.IntRange(0, w.Workers).Draw(t, "workers")
		opts.Stripes = rapid.SampledFrom([]int{0, 0, 0, 1, 2, 3}).Draw(t, "stripes")
		w.kins = append(w.kins, opts)
	}
	w.opened++
	opts.Name = fmt.Sprintf("s%d", w.opened)
	opts.Direct = rapid.Bool().Draw(t, "direct")
	opts.Codec = rapid.SampledFrom(codecs).Draw(t, "codec")
	if w.Clock != nil {
		opts.TTL = time.Duration(rapid.IntRange(0, 90).Draw(t, "ttl")) * time.Second
	}
	return opts
}

// open opens a session, often one that could share a prefix with others.
func (w *walk) open(t *rapid.T) {
	if len(w.sessions) >= 8 {
		t.Skip("there are many")
	}
	opts := w.draw(t)
	s := &session{
		driver: rapid.IntRange(0, len(w.clients)-1).Draw(t, "client"), name: opts.Name, direct: opts.Direct, codec: opts.Codec,
		kept: make([][]*position, len(opts.Layers)), freed: make([]int, len(opts.Layers)), ttl: w.TTL, stripes: opts.Stripes,
		kin: fmt.Sprint(opts.Layers, opts.Tenant, "/", opts.Model), tells: rapid.IntRange(0, 2).Draw(t, "tells") > 0,
	}
	if opts.TTL > 0 {
		s.ttl = min(s.ttl, opts.TTL)
	}
	for _, l := range opts.Layers {
		s.layers = append(s.layers, whole(l))
	}
	s.loose = s.tells
	if s.tells {
		n := rapid.SampledFrom([]int{193, 193, 129, 65, 64, 0}).Draw(t, "prompt")
		other := rapid.SampledFrom([]int{400, 400, 400, 400, 70, 0}).Draw(t, "other from")
		for i := range n {
			if i == other {
				s.branch = 1
			}
			s.tokens = append(s.tokens, uint32(i)+1000*s.branch)
		}
		opts.Tokens = s.tokens
		s.know(n, w.salt)
	}
	opened, err := w.clients[s.driver].OpenSession(t.Context(), opts)
	if w.tight && err != nil && reason(t, err) == overBudget {
		return // what it begins with takes room
	}
	if err != nil {
		t.Fatalf("open %s: %v", s, err)
	}
	s.Session = opened
	w.sessions = append(w.sessions, s)
	w.held(t, s)
	want := math.MaxInt
	for _, one := range s.holders {
		there := 0
		for ; (there+1)*attention.PageLen < len(opts.Tokens) && w.known[one.place()][s.seeds[(there+1)*attention.PageLen-1]]; there++ {
		}
		want = min(want, there*attention.PageLen)
	}
	if hit := s.Prefix(); hit > want || !w.tight && !w.vague && hit != want {
		t.Fatalf("%s begins with %d of its %d tokens, not with %d", s, hit, len(opts.Tokens), want)
	}
	for l := range s.layers {
		s.extend(l, s.Prefix(), w.salt)
		s.freed[l] = s.seenFrom(l, s.Prefix())
	}
	w.check(t, s)
}

// held asks who holds a session.
func (w *walk) held(t *rapid.T, s *session) {
	state, err := w.clients[0].FindSession(t.Context(), s.ID())
	if err != nil {
		t.Fatal(err)
	}
	s.holders = nil
	for _, h := range state.Holders {
		one := holder{name: h.Name, used: w.now()}
		for _, l := range h.Layers {
			if len(l.Groups)+len(l.Stripes) > 0 {
				one.layers = append(one.layers, int(l.Layer))
				one.groups += fmt.Sprint(l.Layer, l.Groups, l.Stripes, s.stripesOf(s.layers[l.Layer]))
			}
		}
		s.holders = append(s.holders, one)
	}
}

// place says where a holder has what.
func (h *holder) place() string { return h.name + ": " + h.groups }

// learn notes which pages a session that tells its tokens has left for others.
func (w *walk) learn(s *session) {
	if !s.tells {
		return
	}
	for _, h := range s.holders {
		least := math.MaxInt
		for _, l := range h.layers {
			least = min(least, len(s.kept[l]))
		}
		known := w.known[h.place()]
		if known == nil {
			known = map[uint64]bool{}
			w.known[h.place()] = known
		}
		for end := attention.PageLen; end <= least; end += attention.PageLen {
			known[s.seeds[end-1]] = true
		}
	}
}

// planned is a step that is about to be done.
type planned struct {
	s        *session
	layer    int
	appended []*position
	query    int
	mask     []byte // [queries, positions then]
	step     *client.Step
}

// plan draws a step of a layer.
func (w *walk) plan(t *rapid.T, s *session, layer int) *planned {
	l, have := s.layers[layer], len(s.kept[layer])
	p := &planned{s: s, layer: layer, query: math.MaxInt, step: &client.Step{Session: s.Session, Layer: layer}}
	kind := rapid.SampledFrom([]string{"fused", "fused", "append", "attend", "tree"}).Draw(t, "kind")
	if have == 0 && kind == "attend" {
		kind = "fused"
	}
	tokens := 0
	if kind != "attend" {
		tokens = rapid.OneOf(rapid.IntRange(1, 4), rapid.IntRange(1, 4), rapid.IntRange(30, 70)).Draw(t, "tokens")
		if have+tokens > maxLen {
			tokens = 1
		}
	}
	p.append(t, w, tokens)
	queries := tokens
	switch kind {
	case "append":
		return p
	case "attend":
		queries = rapid.IntRange(1, min(have, 5)).Draw(t, "queries")
	case "fused":
		if tokens > 8 && rapid.Bool().Draw(t, "only the last attend") {
			queries = 2
		}
	}
	p.query = have + tokens - queries
	if kind == "attend" && rapid.Bool().Draw(t, "earlier") {
		p.query = rapid.IntRange(0, have-queries).Draw(t, "query")
		p.step.Position = &p.query
	}
	r := newRand(w.salt())
	p.step.Q = normals(r, queries*l.Heads*l.HeadDim)
	p.step.Context, p.step.LSE = make([]float32, queries*l.Heads*l.VDim), make([]float32, queries*l.Heads)
	if kind == "tree" {
		newest := rapid.IntRange(1, min(have+tokens, 70)).Draw(t, "newest")
		for range queries {
			for at := range have + tokens {
				shown := at < have+tokens-newest
				if !shown {
					shown = r.IntN(2) == 0
					p.step.Mask = append(p.step.Mask, shown)
				}
				p.mask = append(p.mask, map[bool]byte{true: 1}[shown])
			}
		}
	}
	return p
}

// append adds positions to a planned step, as values or as they are stored.
func (p *planned) append(t *rapid.T, w *walk, n int) {
	if n == 0 {
		return
	}
	s, l, have := p.s, p.s.layers[p.layer], len(p.s.kept[p.layer])
	p.appended = s.extend(p.layer, n, w.salt)
	s.kept[p.layer] = s.kept[p.layer][:have:have] // until it is done
	if s.tells {
		p.step.Tokens = s.tokens[have : have+n]
	}
	if rapid.IntRange(0, 3).Draw(t, "stored") > 0 {
		for _, at := range p.appended {
			p.step.K, p.step.V = append(p.step.K, at.k...), append(p.step.V, at.v...)
		}
		return
	}
	rows := &client.Rows{}
	kb, vb := l.HeadDim*l.Storage.Size(), l.VDim*l.Storage.Size()
	for g := range l.KVHeads {
		for _, at := range p.appended {
			rows.K, rows.V = append(rows.K, at.storedK[g*kb:][:kb]...), append(rows.V, at.storedV[g*vb:][:vb]...)
			if at.kScale != nil {
				rows.KScale, rows.VScale = append(rows.KScale, at.kScale[g]), append(rows.VScale, at.vScale[g])
			}
		}
	}
	p.step.Stored = rows
}

// land compares what came of a step with what was to come.
func (w *walk) land(t *rapid.T, p *planned, alone bool) {
	s, l, err := p.s, p.layer, p.step.Err
	if !slices.Contains(w.sessions, s) {
		return // another step of the batch has found it gone
	}
	queries := len(p.step.Q)
	isFreed := queries > 0 && s.seenFrom(l, p.query) < s.freed[l]
	switch {
	case err == nil && (!isFreed || s.loose) && !(w.tight && w.mustNotFit(p)):
	case err == nil:
		t.Fatalf("%s: a step of layer %d of %d positions from %d on was to be refused", s, l, len(p.appended), len(s.kept[l]))
	case w.gone(t, s, err):
		return
	case isFreed && reason(t, err) == freed, w.tight && reason(t, err) == overBudget && !(alone && w.fits(p)):
		if len(p.appended) > 0 {
			// Who has done it has freed what left the window before it was taken back.
			s.freed[l], s.loose = max(s.freed[l], s.seenFrom(l, min(len(s.kept[l]), p.query))), true
		}
		w.refused(t, s)
		return
	default:
		t.Fatalf("%s: a step of layer %d of %d positions from %d on: %v", s, l, len(p.appended), len(s.kept[l]), err)
	}
	from := len(s.kept[l])
	s.kept[l] = append(s.kept[l], p.appended...)
	s.use(l, w.now())
	if len(p.appended) > 0 {
		s.freed[l] = max(s.freed[l], s.seenFrom(l, min(from, p.query)))
	}
	w.learn(s)
	if queries == 0 {
		return
	}
	a := Attend{
		what:  fmt.Sprintf("attend %d, %s layer %d, query from %d of %d positions", len(w.attends), s, l, p.query, len(s.kept[l])),
		layer: s.layers[l], kept: slices.Clone(s.kept[l]), q: p.step.Q, position: p.query, mask: p.mask, codec: s.codec, context: p.step.Context, lse: p.step.LSE,
	}
	if a.lossless() {
		a.check(t, a.context)
	}
	w.attends = append(w.attends, a)
}

// What a session and each row of its pages take at most of a worker's budget beside the pages.
const (
	mostOfSession = 4 << 10
	mostOfRow     = 512
)

// load returns at most, or at least, how many bytes a holder has of a session whose layer has n positions more: in pages, and at
// most beside them.
func (s *session) load(h *holder, layer, n int, most bool) (total int64) {
	if most {
		total = mostOfSession
		for l := range s.kept {
			total = max(total, mostOfSession+mostOfRow*int64(pagesOf(len(s.kept[l])+n)))
		}
	}
	for _, l := range h.layers {
		length, gone := len(s.kept[l]), s.freed[l]
		if l == layer {
			length += n
		}
		groups := s.layers[l].KVHeads
		if !most {
			groups, gone = 1, pagesOf(length)
			if s.layers[l].WindowLeft == client.Unbounded {
				gone = 0
			}
			if s.stripesOf(s.layers[l]) > 1 {
				groups = 0 // it may have only stripes without positions
			}
		}
		total += int64((pagesOf(length) - gone) * groups * pageBytes(s.layers[l]))
	}
	return total
}

// fits says whether there is room for a step for certain.
func (w *walk) fits(p *planned) bool {
	bytes := 0
	for _, x := range [][]float32{p.step.Q, p.step.K, p.step.V, p.step.Context, p.step.LSE} {
		bytes += 4 * len(x)
	}
	if r := p.step.Stored; r != nil {
		bytes += len(r.K) + len(r.V) + 8*len(r.KScale)
	}
	for _, h := range p.s.holders {
		if !slices.Contains(h.layers, p.layer) {
			continue
		}
		total := int64(2*bytes+len(p.mask)) + 1<<16
		for _, s := range w.sessions {
			for _, other := range s.holders {
				if other.name == h.name {
					// A view may keep what leaves the window until the step has ended.
					all := s.clone()
					clear(all.freed)
					total += all.load(&other, p.layer, 0, true)
				}
			}
		}
		// New pages, and copies of what is shared.
		for _, l := range h.layers {
			total += int64((2 + pagesOf(len(p.appended))) * p.s.layers[l].KVHeads * pageBytes(p.s.layers[l]))
		}
		total += int64(2+pagesOf(len(p.appended))) * mostOfRow
		if total > w.Budget {
			return false
		}
	}
	return true
}

// mustNotFit says whether a holder can not have what a step would make of the session.
func (w *walk) mustNotFit(p *planned) bool {
	return slices.ContainsFunc(p.s.holders, func(h holder) bool {
		return slices.Contains(h.layers, p.layer) && p.s.load(&h, p.layer, len(p.appended), false) > w.Budget
	})
}

func (w *walk) step(t *rapid.T) {
	s := w.pick(t)
	p := w.plan(t, s, rapid.IntRange(0, len(s.layers)-1).Draw(t, "layer"))
	p.step.Err = s.Do(t.Context(), p.step)
	w.land(t, p, true)
	w.check(t, s)
}

// batch does steps of several sessions and layers at once.
func (w *walk) batch(t *rapid.T) {
	type place struct {
		s     *session
		layer int
	}
	var steps []*client.Step
	all := map[place]*planned{}
	var order []*planned
	for range rapid.IntRange(2, 4).Draw(t, "steps") {
		s := w.pick(t)
		at := place{s, rapid.IntRange(0, len(s.layers)-1).Draw(t, "layer")}
		if all[at] != nil {
			continue
		}
		all[at] = w.plan(t, s, at.layer)
		order, steps = append(order, all[at]), append(steps, all[at].step)
	}
	_ = client.Do(t.Context(), steps...) // each step has its error
	for _, p := range order {
		w.land(t, p, false)
	}
	for _, p := range order {
		w.check(t, p.s)
	}
}

// level brings all layers of a session to the same length, as a model does.
func (w *walk) level(t *rapid.T) {
	s := w.pick(t)
	to := min(s.longest()+rapid.SampledFrom([]int{0, 1, 65, 130}).Draw(t, "tokens"), max(s.longest(), maxLen))
	for l := range s.layers {
		p := &planned{s: s, layer: l, query: math.MaxInt, step: &client.Step{Session: s.Session, Layer: l}}
		p.append(t, w, to-len(s.kept[l]))
		if len(p.appended) == 0 || !slices.Contains(w.sessions, s) {
			continue
		}
		p.step.Err = s.Do(t.Context(), p.step)
		w.land(t, p, true)
		w.check(t, s)
	}
}
