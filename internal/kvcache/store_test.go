package kvcache

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"math"
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"

	"headwater.example/attention"
	"headwater.example/tensor"
)

// openView is a view with what it is to show.
type openView struct {
	view  *View
	layer modelLayer
	query int
}

// machine is a store beside its model.
type machine struct {
	store    *Store
	budget   *Budget
	shapes   []testShape
	sessions map[SessionID]*modelSession
	views    []openView
	ended    []SessionID
	roomy    bool
	now      time.Time
	next     byte
	// known are the prefixes that were told and full in all layers, by shape and tokens.
	known map[string]bool
}

func newMachine(t *rapid.T) *machine {
	m := &machine{shapes: testShapes(t), sessions: map[SessionID]*modelSession{}, now: time.Unix(1e9, 0), known: map[string]bool{}}
	m.roomy = rapid.Bool().Draw(t, "roomy")
	size := int64(64 << 20)
	if !m.roomy {
		size = rapid.Int64Range(12<<10, 200<<10).Draw(t, "budget")
	}
	m.budget = NewBudget(size)
	m.store = NewStore(StoreConfig{Budget: m.budget, TTL: time.Minute, Now: func() time.Time { return m.now }})
	return m
}

func (m *machine) newID() (id SessionID) {
	m.next++
	id[0] = m.next
	return id
}

func (m *machine) pick(t *rapid.T) *modelSession {
	if len(m.sessions) == 0 {
		t.Skip("no session")
	}
	ids := slices.SortedFunc(maps.Keys(m.sessions), func(a, b SessionID) int { return bytes.Compare(a[:], b[:]) })
	return m.sessions[rapid.SampledFrom(ids).Draw(t, "session")]
}

// refused says whether err is a refusal for that reason; of errors that are none the test ends.
func refused(t *rapid.T, err error, reason Reason) bool {
	if err == nil {
		return false
	}
	var e *Error
	if !errors.As(err, &e) {
		t.Fatalf("%v is not a typed error", err)
	}
	return e.Reason == reason
}

// lost forgets the sessions that the store may have evicted: beyond their TTL and not pinned.
func (m *machine) lost(t *rapid.T) {
	for id, s := range m.sessions {
		if _, err := m.store.look(id); err != nil {
			if !refused(t, err, Unknown) || m.roomy || s.pinned || m.now.Sub(s.used) < time.Minute {
				t.Fatalf("session %s is lost: %v", id, err)
			}
			delete(m.sessions, id)
			m.ended = append(m.ended, id)
		}
	}
}

func (m *machine) create(t *rapid.T) {
	shape := rapid.IntRange(0, len(m.shapes)-1).Draw(t, "shape")
	s := &modelSession{id: m.newID(), shape: shape, epoch: Epoch{Counter: 1, Lane: LaneID{m.next}}, used: m.now}
	s.tells = rapid.Bool().Draw(t, "tells")
	var prompt []uint32
	if s.tells {
		// Few texts, so that they have prefixes in common.
		n := rapid.IntRange(0, 300).Draw(t, "prompt")
		fork := rapid.SampledFrom([]int{0, 64, 100, 400}).Draw(t, "other from")
		for i := range n {
			token := uint32(i)
			if i >= fork {
				token += 1000
			}
			prompt = append(prompt, token)
		}
	} else {
		s.salt = uint64(m.next)
	}
	cfg := m.shapes[shape]
	for _, h := range cfg.held {
		s.layers = append(s.layers, modelLayer{layer: h.Layer, config: cfg.config.Layers[h.Layer], groups: h.Groups, kept: make([][]position, len(h.Groups))})
	}
	req := CreateRequest{Session: s.id, Epoch: s.epoch, Config: cfg.config, Held: cfg.held, Tokens: prompt}
	if rapid.IntRange(0, 9).Draw(t, "used id") == 0 && len(m.ended) > 0 {
		req.Session = rapid.SampledFrom(m.ended).Draw(t, "ended")
		if _, err := m.store.Create(req); !refused(t, err, Exists) {
			t.Fatalf("an id was used again: %v", err)
		}
		return
	}
	state, err := m.store.Create(req)
	m.lost(t)
	if refused(t, err, OverBudget) && !m.roomy {
		return
	}
	if err != nil {
		t.Fatal(err)
	}
	hit := int(state.Layers[0].Length)
	want := 0
	for ; (want+1)*64 < len(prompt) && m.known[fmt.Sprint(shape, prompt[:(want+1)*64])]; want++ {
	}
	if hit > want*64 || m.roomy && hit != want*64 {
		t.Fatalf("a prompt of %d has a prefix of %d, want %d", len(prompt), hit, want*64)
	}
	s.text = prompt
	for i := range s.layers {
		l := &s.layers[i]
		m.extend(t, s, l, hit)
		l.freed = l.seenFrom(hit) / 64
	}
	again, err := m.store.Create(req)
	if err != nil || !slices.EqualFunc(again.Layers, state.Layers, func(a, b LayerState) bool { return a.Length == b.Length }) {
		t.Fatalf("the same request: %v", err)
	}
	req.Config.Name = "other"
	if _, err := m.store.Create(req); !refused(t, err, Exists) {
		t.Fatalf("another config under the same id: %v", err)
	}
	m.sessions[s.id] = s
}

// extend adds n positions to a layer of the model, whose tokens are known if it tells them. It returns the values, as f32.
func (m *machine) extend(t *rapid.T, s *modelSession, l *modelLayer, n int) (k, v []float32) {
	from := l.length()
	for g := range l.kept {
		for at := from; at < from+n; at++ {
			kx, vx := s.draw(l, g, at)
			var before uint64
			if at > 0 {
				before = l.kept[g][at-1].hash
			}
			l.kept[g] = append(l.kept[g], store(t, l.config.Layout, kx, vx, at, before))
			k, v = append(k, kx...), append(v, vx...)
		}
	}
	return k, v
}

func (m *machine) append(t *rapid.T) {
	s := m.pick(t)
	i := rapid.IntRange(0, len(s.layers)-1).Draw(t, "layer")
	m.appendTo(t, s, i, rapid.OneOf(rapid.IntRange(1, 3), rapid.IntRange(60, 70), rapid.IntRange(1, 200)).Draw(t, "n"), rapid.Bool().Draw(t, "with view"))
}

// appendAll brings all layers of a session to the same length, as a model does.
func (m *machine) appendAll(t *rapid.T) {
	s := m.pick(t)
	to := 0
	for _, l := range s.layers {
		to = max(to, l.length())
	}
	to += rapid.OneOf(rapid.IntRange(0, 3), rapid.IntRange(60, 70)).Draw(t, "n")
	for i := range s.layers {
		if n := to - s.layers[i].length(); n > 0 && m.sessions[s.id] != nil {
			m.appendTo(t, s, i, n, false)
		}
	}
}

func (m *machine) appendTo(t *rapid.T, s *modelSession, i, n int, withView bool) {
	s.used = m.now
	old := s.clone()
	l := &s.layers[i]
	from := l.length()
	for s.tells && len(s.text) < from+n {
		s.text = append(s.text, uint32(len(s.text)))
	}
	k, v := m.extend(t, s, l, n)
	a := Append{Session: s.id, Epoch: s.epoch, Truncations: s.truncations, Layer: l.layer, Length: uint64(from), Positions: n, Hashes: hashes(&old.layers[i], from)}
	if s.tells {
		a.Tokens = s.text[from : from+n]
	}
	if rapid.Bool().Draw(t, "f32") {
		a.Encoding, a.K, a.V = tensor.F32, floatBytes(k...), floatBytes(v...)
	} else {
		a.Encoding = l.config.Layout.DType()
		for g := range l.kept {
			for _, p := range l.kept[g][from:] {
				a.K, a.V = append(a.K, p.k...), append(a.V, p.v...)
				if a.Encoding == tensor.I8 {
					a.KScale, a.VScale = append(a.KScale, floatBytes(p.kScale)...), append(a.VScale, floatBytes(p.vScale)...)
				}
			}
		}
	}
	var pending Pending
	add := m.store.put
	query := math.MaxInt
	if withView {
		add = func(a *Append, hashes []uint64) (uint64, []uint64, error) {
			return m.store.putPending(&pending, a, hashes)
		}
		query = rapid.IntRange(max(from-100, 0), from+n).Draw(t, "query")
		a.Query = uint64(query)
	}
	if n > 0 && rapid.Bool().Draw(t, "hashes after") {
		a.After = hashes(l, from+n)
		other := a
		other.After = slices.Clone(a.After)
		other.After[rapid.IntRange(0, len(a.After)-1).Draw(t, "other hash of")]++
		if _, _, err := m.store.put(&other, nil); err == nil || !refused(t, err, Different) && !refused(t, err, OverBudget) {
			t.Fatalf("an append that would have other hashes than are named: %v", err)
		}
		m.lost(t)
	}
	used := m.store.Cache().UsedBytes
	length, got, err := add(&a, nil)
	switch {
	case refused(t, err, OverBudget) && !m.roomy:
		*s = *old
		m.lost(t)
		m.check(t, s)
		return
	case refused(t, err, Freed) && withView && l.seenFrom(query)/64 < l.freed:
		*s = *old
		m.check(t, s)
		return
	case err != nil:
		t.Fatal(err)
	}
	if length != uint64(from+n) || !slices.Equal(got, hashes(l, from+n)) {
		t.Fatalf("append of %d to %d: length %d, hashes %x, want %x", n, from, length, got, hashes(l, from+n))
	}
	m.lost(t)
	if withView && rapid.Bool().Draw(t, "give up") {
		// Until the view is kept or released the session is as before, and then again, to the page.
		added := openView{view: &pending.View, layer: s.clone().layers[i], query: query}
		*s = *old
		m.check(t, s)
		added.compare(t)
		pending.Abort()
		if now := m.store.Cache().UsedBytes; m.roomy && now != used || now > used {
			t.Fatalf("%d bytes of pages are in use after an append that was not kept, %d before it", now, used)
		}
		m.check(t, s)
		return
	}
	if withView {
		pending.Commit()
	}
	l.freed = max(l.freed, l.seenFrom(min(from, query))/64)
	for p := 0; s.tells && (p+1)*64 <= s.least(); p++ {
		m.known[fmt.Sprint(s.shape, s.text[:(p+1)*64])] = true
	}
	if withView {
		m.views = append(m.views, openView{view: &pending.View, layer: s.clone().layers[i], query: query})
	}
	m.check(t, s)
	m.again(t, s, l, a)
}

// again repeats an append that was done, then spoils it in every way.
func (m *machine) again(t *rapid.T, s *modelSession, l *modelLayer, a Append) {
	length, got, err := m.store.put(&a, nil)
	if err != nil || length != uint64(l.length()) || !slices.Equal(got, hashes(l, l.length())) {
		t.Fatalf("a repeat: length %d, hashes %x: %v", length, got, err)
	}
	spoil := func(reason Reason, change func(a *Append)) {
		bad := a
		change(&bad)
		if _, _, err := m.store.put(&bad, nil); !refused(t, err, reason) {
			t.Fatalf("want %v, got %v", reason, err)
		}
	}
	spoil(Different, func(a *Append) {
		a.K = slices.Clone(a.K)
		if a.Encoding == tensor.F32 { // What is narrowed differs only if it is not close.
			for i := range l.config.Layout.HeadDim() {
				a.K[4*i+3] ^= 0x80
			}
			return
		}
		a.K[0] ^= 1
	})
	spoil(Different, func(a *Append) { a.Hashes = slices.Clone(a.Hashes); a.Hashes[len(a.Hashes)-1]++ })
	spoil(Behind, func(a *Append) { a.Length += uint64(a.Positions) + 1 })
	if a.Length > 0 {
		spoil(Ahead, func(a *Append) { a.Length-- })
	}
	spoil(OtherTruncations, func(a *Append) { a.Truncations++ })
	spoil(StaleEpoch, func(a *Append) { a.Epoch.Lane[15]++ })
	spoil(Invalid, func(a *Append) { a.V = a.V[1:] })
	if s.tells {
		spoil(Invalid, func(a *Append) {
			a.Tokens = slices.Clone(a.Tokens)
			a.Tokens[len(a.Tokens)-1]++
		})
	}
	spoil(Invalid, func(a *Append) { a.Layer = 2 })
	spoil(Unknown, func(a *Append) { a.Session[15] = 1 })
	m.check(t, s)
}

// hashes are those of a layer's groups at a length.
func hashes(l *modelLayer, n int) []uint64 {
	h := make([]uint64, len(l.groups))
	for g := range h {
		if n > 0 {
			h[g] = l.kept[g][n-1].hash
		}
	}
	return h
}

// check compares all that a store says of a session with the model.
func (m *machine) check(t *rapid.T, s *modelSession) {
	if m.sessions[s.id] == nil {
		return
	}
	state, err := m.store.look(s.id)
	if err != nil {
		t.Fatal(err)
	}
	if state.Epoch != s.epoch || state.Truncations != s.truncations || state.Pinned != s.pinned || len(state.Layers) != len(s.layers) {
		t.Fatalf("state %+v", state)
	}
	for i := range s.layers {
		l := &s.layers[i]
		if got := state.Layers[i]; got.Layer != l.layer || got.Length != uint64(l.length()) || got.First > uint64(l.freed*64) || !slices.Equal(got.Hashes, hashes(l, l.length())) {
			t.Fatalf("layer %d: %+v, want %d positions, %x", l.layer, got, l.length(), hashes(l, l.length()))
		}
	}
}

// export compares positions with the model and appends them to another session, which then has the same hashes.
func (m *machine) export(t *rapid.T) {
	s := m.pick(t)
	l := &s.layers[rapid.IntRange(0, len(s.layers)-1).Draw(t, "layer")]
	if l.length() == 0 {
		t.Skip("nothing to export")
	}
	g := rapid.IntRange(0, len(l.groups)-1).Draw(t, "group")
	start := rapid.IntRange(0, l.length()-1).Draw(t, "start")
	n := rapid.IntRange(1, l.length()-start).Draw(t, "n")
	rows := makeRows(l.config.Layout, n)
	before, after, err := m.store.Export(s.id, l.layer, l.groups[g], start, n, rows)
	s.used = m.now
	if refused(t, err, Freed) && start/64 < l.freed {
		return
	}
	if err != nil || !s.tells && start/64 < l.freed {
		t.Fatalf("export from %d, %d pages are freed: %v", start, l.freed, err)
	}
	compareRows(t, l, g, start, n, rows)
	if before != hashes(l, start)[g] || after != hashes(l, start+n)[g] {
		t.Fatalf("export of %d positions from %d: hashes %x and %x, want %x and %x", n, start, before, after, hashes(l, start)[g], hashes(l, start+n)[g])
	}
	stored := makeRows(l.config.Layout, n)
	if b, a, err := m.store.ExportKnown(s.id, l.layer, l.groups[g], start, n, stored); err != nil || a != after || b != before {
		t.Fatalf("export of %d positions from %d: hashes %x and %x are stored, %x and %x computed: %v", n, start, b, a, before, after, err)
	}
	compareRows(t, l, g, start, n, stored)
	tokens, err := m.store.Tokens(s.id, start, n)
	if want := s.text[min(start, len(s.text)):min(start+n, len(s.text))]; err != nil || !slices.Equal(tokens, want) {
		t.Fatalf("tokens %v of %d from %d, want %v: %v", tokens, n, start, want, err)
	}
}

// restore makes a session that takes up what another one has, in pieces. It then is like the other one, also in what it has
// freed.
func (m *machine) restore(t *rapid.T) {
	s := m.pick(t)
	state, err := m.store.look(s.id)
	if err != nil {
		t.Fatal(err)
	}
	child := s.clone()
	child.id, child.epoch, child.truncations, child.pinned, child.used = m.newID(), Epoch{Counter: 1, Lane: LaneID{m.next}}, 0, false, m.now
	req := CreateRequest{Session: child.id, Epoch: child.epoch, Config: m.shapes[s.shape].config, Held: m.shapes[s.shape].held}
	var order []int // of layers, those first that begin first
	for i := range s.layers {
		b := BeginLayer{Layer: s.layers[i].layer, First: state.Layers[i].First, Length: state.Layers[i].Length}
		if b.First > 0 {
			b.Hashes = hashes(&s.layers[i], int(b.First))
			child.tells, child.salt, child.text = false, uint64(m.next), nil
		}
		child.layers[i].freed = int(b.First / 64)
		req.Begin = append(req.Begin, b)
		order = append(order, i)
	}
	slices.SortStableFunc(order, func(a, b int) int { return cmp.Compare(req.Begin[a].First, req.Begin[b].First) })
	_, err = m.store.Create(req)
	m.lost(t)
	if refused(t, err, OverBudget) && !m.roomy {
		return
	}
	if err != nil {
		t.Fatal(err)
	}
	if _, err := m.store.Create(req); err != nil {
		t.Fatalf("the same request: %v", err)
	}
	other := req
	other.Begin = slices.Clone(req.Begin)
	other.Begin[0].Length++
	if _, err := m.store.Create(other); !refused(t, err, Exists) {
		t.Fatalf("another beginning under the same id: %v", err)
	}
	giveUp := func() {
		if err := m.store.end(child.id, &child.epoch); err != nil {
			t.Fatal(err)
		}
		m.ended = append(m.ended, child.id)
		m.lost(t)
	}
	for _, i := range order {
		l := &child.layers[i]
		for at := int(req.Begin[i].First); at < l.length(); {
			n := min(l.length()-at, rapid.IntRange(1, 300).Draw(t, "piece"))
			a := Append{Session: child.id, Epoch: child.epoch, Layer: l.layer, Length: uint64(at), Positions: n, Hashes: hashes(l, at), Encoding: l.config.Layout.DType()}
			if child.tells && at < len(child.text) {
				n = min(n, len(child.text)-at)
				a.Positions, a.Tokens = n, child.text[at:at+n]
			}
			for g := range l.groups {
				rows := makeRows(l.config.Layout, n)
				_, _, err := m.store.Export(s.id, l.layer, l.groups[g], at, n, rows)
				if refused(t, err, Unknown) { // dropped for room
					giveUp()
					return
				}
				if err != nil {
					t.Fatal(err)
				}
				s.used = m.now
				a.K, a.V = append(a.K, rows.K...), append(a.V, rows.V...)
				a.KScale, a.VScale = append(a.KScale, floatBytes(rows.KScale...)...), append(a.VScale, floatBytes(rows.VScale...)...)
			}
			_, _, err := m.store.put(&a, nil)
			if refused(t, err, OverBudget) && !m.roomy {
				giveUp()
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			m.lost(t)
			at += n
		}
	}
	m.sessions[child.id] = child
	for p := 0; child.tells && (p+1)*64 <= min(child.least(), len(child.text)); p++ {
		m.known[fmt.Sprint(child.shape, child.text[:(p+1)*64])] = true
	}
	m.check(t, child)
	restored, err := m.store.look(child.id)
	if err != nil {
		t.Fatal(err)
	}
	for i, l := range state.Layers {
		if got := restored.Layers[i]; got.First != l.First || got.Length != l.Length || !slices.Equal(got.Hashes, l.Hashes) {
			t.Fatalf("layer %d was restored as %+v, it is %+v", l.Layer, got, l)
		}
	}
}

func compareRows(t *rapid.T, l *modelLayer, g, start, n int, rows attention.Rows) {
	for i, want := range l.kept[g][start : start+n] {
		got := part(rows, l.config.Layout, i, 1)
		if !bytes.Equal(got.K, want.k) || !bytes.Equal(got.V, want.v) || got.KScale != nil && (got.KScale[0] != want.kScale || got.VScale[0] != want.vScale) {
			t.Fatalf("layer %d group %d has other keys or values at position %d", l.layer, l.groups[g], start+i)
		}
	}
}

func (m *machine) truncate(t *rapid.T) {
	s := m.pick(t)
	longest := 0
	for _, l := range s.layers {
		longest = max(longest, l.length())
	}
	n := rapid.IntRange(0, longest+2).Draw(t, "position")
	if rapid.Bool().Draw(t, "a little") {
		n = max(longest-rapid.IntRange(0, 70).Draw(t, "draft"), 0)
	}
	state, err := m.store.cut(s.id, s.epoch, s.truncations, uint64(n), nil)
	s.used = m.now
	freed := s.mayLack(n)
	if refused(t, err, Freed) && freed {
		m.check(t, s)
		return
	}
	if err != nil || freed && !s.tells {
		t.Fatalf("truncate to %d: %v", n, err)
	}
	s.cut(n)
	s.truncations++
	m.check(t, s)
	again, err := m.store.cut(s.id, s.epoch, s.truncations-1, uint64(n), nil)
	if err != nil || again.Truncations != state.Truncations {
		t.Fatalf("the same truncation: %v", err)
	}
	if _, err := m.store.Truncate(context.Background(), &TruncateRequest{Session: s.id, Epoch: s.epoch, Truncations: s.truncations - 1, ID: 1 << 40, Expect: state.Layers}); !refused(t, err, OtherTruncations) {
		t.Fatalf("a late truncation: %v", err)
	}
	m.check(t, s)
}

// mayLack says whether a session that is cut to n may lack positions that are seen from there.
func (m *modelSession) mayLack(n int) bool {
	for i := range m.layers {
		l := &m.layers[i]
		if n > 0 && n < l.length() && l.seenFrom(n)/64 < l.freed {
			return true
		}
	}
	return false
}

func (m *machine) fork(t *rapid.T) {
	s := m.pick(t)
	child := s.clone()
	child.id, child.epoch, child.truncations, child.pinned, child.used = m.newID(), Epoch{Counter: 3, Lane: LaneID{m.next}}, 0, false, m.now
	req := ForkRequest{Session: s.id, Epoch: s.epoch, Truncations: s.truncations, Child: child.id, ChildEpoch: child.epoch, Position: -1}
	if rapid.Bool().Draw(t, "at a position") {
		n := rapid.IntRange(0, s.least()).Draw(t, "position")
		req.Position = int64(n)
		child.cut(n)
	}
	_, err := m.store.branch(req)
	s.used = m.now
	m.lost(t)
	freed := req.Position >= 0 && s.mayLack(int(req.Position))
	if refused(t, err, Freed) && freed || refused(t, err, OverBudget) && !m.roomy {
		m.check(t, s)
		return
	}
	if err != nil || freed && !s.tells {
		t.Fatalf("fork at %d: %v", req.Position, err)
	}
	m.sessions[child.id] = child
	if _, err := m.store.branch(req); err != nil {
		t.Fatalf("the same fork: %v", err)
	}
	m.check(t, s)
	m.check(t, child)
	req.Child, req.Position = SessionID{99, 99}, int64(s.least()+1)
	if _, err := m.store.branch(req); !refused(t, err, Behind) {
		t.Fatalf("a fork beyond the end: %v", err)
	}
}

func (m *machine) drop(t *rapid.T) {
	s := m.pick(t)
	other := s.epoch
	other.Counter++
	if err := m.store.end(s.id, &other); !refused(t, err, StaleEpoch) {
		t.Fatalf("drop under another epoch: %v", err)
	}
	for range 2 {
		if err := m.store.end(s.id, nil); err != nil {
			t.Fatal(err)
		}
	}
	delete(m.sessions, s.id)
	m.ended = append(m.ended, s.id)
}

func (m *machine) take(t *rapid.T) {
	s := m.pick(t)
	next := s.epoch
	next.Counter++
	var expect []LayerState
	for i := range s.layers {
		l := &s.layers[i]
		n := l.length()
		if rapid.Bool().Draw(t, "less") {
			n = rapid.IntRange(0, n).Draw(t, "length")
		}
		if n > 0 && n < l.length() && l.seenFrom(n)/64 < l.freed {
			n = l.length()
		}
		expect = append(expect, LayerState{Layer: l.layer, Length: uint64(n), Hashes: hashes(l, n)})
	}
	bad := slices.Clone(expect)
	bad[0].Hashes = slices.Clone(bad[0].Hashes)
	bad[0].Hashes[0]++
	if _, err := m.store.Take(context.Background(), s.id, next, bad, s.truncations, false); !refused(t, err, Different) {
		t.Fatalf("take with another hash: %v", err)
	}
	bad[0] = LayerState{Layer: bad[0].Layer, Length: uint64(s.layers[0].length()) + 1, Hashes: bad[0].Hashes}
	if _, err := m.store.Take(context.Background(), s.id, next, bad, s.truncations, false); !refused(t, err, Behind) {
		t.Fatalf("take of more than is there: %v", err)
	}
	m.check(t, s)
	if state, err := m.store.Take(context.Background(), s.id, next, expect, s.truncations, true); err != nil || state.Epoch != s.epoch {
		t.Fatalf("a check: epoch %v: %v", state.Epoch, err)
	}
	if _, err := m.store.Take(context.Background(), s.id, next, expect, s.truncations, false); err != nil {
		t.Fatal(err)
	}
	old := s.epoch
	s.epoch, s.used = next, m.now
	if _, err := m.store.Take(context.Background(), s.id, old, nil, 0, false); !refused(t, err, StaleEpoch) {
		t.Fatalf("take under a lower epoch: %v", err)
	}
	m.check(t, s)
}

func (m *machine) pin(t *rapid.T) {
	s := m.pick(t)
	s.pinned = rapid.Bool().Draw(t, "pinned")
	if _, err := m.store.Pin(s.id, s.pinned); err != nil {
		t.Fatal(err)
	}
	s.used = m.now
	m.check(t, s)
}

func (m *machine) wait(t *rapid.T) {
	m.now = m.now.Add(time.Duration(rapid.IntRange(1, 45).Draw(t, "seconds")) * time.Second)
}

func (m *machine) expire(t *rapid.T) {
	m.store.Expire()
	for id, s := range m.sessions {
		_, err := m.store.look(id)
		if ends := !s.pinned && m.now.Sub(s.used) >= time.Minute; ends != refused(t, err, Unknown) {
			t.Fatalf("unused for %v, pinned %v: %v", m.now.Sub(s.used), s.pinned, err)
		} else if ends {
			delete(m.sessions, id)
			m.ended = append(m.ended, id)
		}
	}
}

func (m *machine) reclaim(t *rapid.T) {
	if m.roomy {
		t.Skip("it would evict prefixes that are looked for")
	}
	n := rapid.Int64Range(0, m.budget.Total()).Draw(t, "bytes")
	if ok := m.store.Reclaim(n); ok && m.budget.Total()-m.budget.Used() < n {
		t.Fatalf("%d bytes are not free", n)
	}
	m.lost(t)
}

// open opens a view; it is looked at again when it is closed, whatever happened in between.
func (m *machine) open(t *rapid.T) {
	s := m.pick(t)
	i := rapid.IntRange(0, len(s.layers)-1).Draw(t, "layer")
	l := &s.layers[i]
	query := rapid.IntRange(max(l.length()-100, 0), l.length()+1).Draw(t, "query")
	v := &View{}
	err := m.store.View(v, s.id, l.layer, uint64(query))
	s.used = m.now
	freed := l.seenFrom(query)/64 < l.freed
	if refused(t, err, Freed) && freed {
		return
	}
	if err != nil || freed && !s.tells {
		t.Fatalf("view for %d of %d: %v", query, l.length(), err)
	}
	m.views = append(m.views, openView{view: v, layer: s.clone().layers[i], query: query})
}

func (m *machine) closeView(t *rapid.T) {
	if len(m.views) == 0 {
		t.Skip("no view")
	}
	i := rapid.IntRange(0, len(m.views)-1).Draw(t, "view")
	o := m.views[i]
	m.views = slices.Delete(m.views, i, i+1)
	o.compare(t)
	o.view.Release()
	o.view.Release()
}

// compare reads what a view shows and attends over it, as a job's shard of the same rows would be attended.
func (o *openView) compare(t *rapid.T) {
	l := &o.layer
	if o.view.Len != l.length() || !slices.Equal(o.view.Groups, l.groups) {
		t.Fatalf("a view of %d positions of groups %v, want %d of %v", o.view.Len, o.view.Groups, l.length(), l.groups)
	}
	for g := range l.groups {
		kv := o.view.KV(g)
		for p := l.seenFrom(o.query) / 64; p*64 < l.length(); p++ {
			n := min(l.length()-p*64, 64)
			rows := makeRows(l.config.Layout, n)
			if err := kv.Layout.Read(kv.Pages[p], 0, n, rows); err != nil {
				t.Fatal(err)
			}
			compareRows(t, l, g, p*64, n, rows)
		}
		if l.length() == 0 {
			continue
		}
		job, err := OpenShard(NewBudget(1<<30), Nobody, l.config.Layout, l.length())
		if err != nil {
			t.Fatal(err)
		}
		defer job.Close()
		for _, p := range l.kept[g] {
			rows := attention.Rows{K: p.k, V: p.v}
			if l.config.Layout.DType() == tensor.I8 {
				rows.KScale, rows.VScale = []float32{p.kScale}, []float32{p.vScale}
			}
			if err := job.Append(rows, 1); err != nil {
				t.Fatal(err)
			}
		}
		size := l.config.Heads / l.config.KVHeads
		q := attention.Query{Q: make([]float32, 3*size*kv.Layout.HeadDim()), Tokens: 3, Heads: size, FirstHead: size * int(l.groups[g]), Offset: int64(o.query)}
		for i := range q.Q {
			q.Q[i] = float32(i%7) - 3
		}
		out := func(kv attention.KV) attention.Output {
			out := attention.Output{Context: make([]float32, 3*size*kv.Layout.VDim()), LSE: make([]float32, 3*size)}
			if err := attention.Attend(context.Background(), 1, kv, q, l.config.Options, out); err != nil {
				t.Fatal(err)
			}
			return out
		}
		got, want := out(kv), out(job.KV(l.length()))
		if !bytes.Equal(floatBytes(got.Context...), floatBytes(want.Context...)) || !bytes.Equal(floatBytes(got.LSE...), floatBytes(want.LSE...)) {
			t.Fatalf("a session's context %v is not that of a job, %v", got, want)
		}
	}
}

func (m *machine) audit(t *rapid.T) {
	views := make([]*View, len(m.views))
	for i := range views {
		views[i] = m.views[i].view
	}
	audit(t, m.store, views)
}

func TestStoreAgreesWithItsModel(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		m := newMachine(t)
		t.Repeat(map[string]func(*rapid.T){
			"":           m.audit,
			"create":     m.create,
			"append":     m.append,
			"append all": m.appendAll,
			"truncate":   m.truncate,
			"fork":       m.fork,
			"drop":       m.drop,
			"take":       m.take,
			"pin":        m.pin,
			"wait":       m.wait,
			"expire":     m.expire,
			"reclaim":    m.reclaim,
			"export":     m.export,
			"restore":    m.restore,
			"open view":  m.open,
			"close view": m.closeView,
		})
		for len(m.views) > 0 {
			m.closeView(t)
		}
		for _, s := range m.sessions {
			m.check(t, s)
		}
		m.store.Close()
		m.audit(t)
		if m.budget.Used() != 0 || m.store.Cache().UsedBytes != 0 || m.store.Cache().FreeBytes != 0 {
			t.Fatalf("%d bytes are reserved in the end: %+v", m.budget.Used(), m.store.Cache())
		}
	})
}
