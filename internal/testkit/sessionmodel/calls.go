package sessionmodel

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"time"

	"pgregory.net/rapid"

	"headwater.example/attention"
	"headwater.example/client"
	"headwater.example/tensor"
)

func (w *walk) fork(t *rapid.T) {
	s := w.pick(t)
	if len(w.sessions) >= 8 {
		t.Skip("there are many")
	}
	child := s.clone()
	w.opened++
	child.pinned, child.branch = false, uint32(w.opened)
	var err error
	isFreed, isBehind := false, false
	if rapid.Bool().Draw(t, "at a position") {
		n := rapid.IntRange(0, s.least()+1).Draw(t, "position")
		isBehind, isFreed = n > s.least(), s.lacks(n)
		child.Session, err = s.ForkAt(t.Context(), n)
		child.cut(n)
	} else {
		child.Session, err = s.Fork(t.Context())
	}
	switch {
	case err == nil && !isBehind && (!isFreed || s.loose):
	case err == nil:
		t.Fatalf("a fork of %s was to be refused", s)
	case w.gone(t, s, err):
		return
	case isFreed && reason(t, err) == freed, isBehind && reason(t, err) == behind, w.tight && reason(t, err) == overBudget:
		w.refused(t, s)
		w.check(t, s)
		return
	default:
		t.Fatalf("a fork of %s: %v", s, err)
	}
	s.use(-1, w.now())
	child.use(-1, w.now())
	w.sessions = append(w.sessions, child)
	w.check(t, s)
	w.check(t, child)
}

func (w *walk) truncate(t *rapid.T) {
	s := w.pick(t)
	n := rapid.IntRange(0, s.longest()+1).Draw(t, "position")
	if rapid.Bool().Draw(t, "a little") {
		n = max(s.longest()-rapid.IntRange(0, 5).Draw(t, "draft"), 0)
	}
	isFreed := s.lacks(n)
	err := s.Truncate(t.Context(), n)
	switch {
	case err == nil && (!isFreed || s.loose):
		s.cut(n)
		s.branch = uint32(rapid.IntRange(0, 1).Draw(t, "branch"))
	case err == nil:
		t.Fatalf("a truncation of %s to %d was to be refused", s, n)
	case w.gone(t, s, err):
		return
	case isFreed && reason(t, err) == freed:
		w.refused(t, s)
		w.check(t, s)
		return
	default:
		t.Fatalf("a truncation of %s to %d: %v", s, n, err)
	}
	s.use(-1, w.now())
	w.check(t, s)
}

func (w *walk) pin(t *rapid.T) {
	s := w.pick(t)
	w.setPin(t, s, rapid.Bool().Draw(t, "pinned"))
}

func (w *walk) setPin(t *rapid.T, s *session, pinned bool) {
	if err := s.Pin(t.Context(), pinned); err != nil {
		if !w.gone(t, s, err) {
			t.Fatal(err)
		}
		return
	}
	s.pinned = pinned
	s.use(-1, w.now())
}

func (w *walk) drop(t *rapid.T) {
	if len(w.sessions) < 3 {
		t.Skip("there are few")
	}
	s := w.pick(t)
	if err := s.Drop(t.Context()); err != nil {
		t.Fatal(err)
	}
	w.remove(s)
	if _, err := w.clients[0].FindSession(t.Context(), s.ID()); !errors.Is(err, client.ErrNotFound) {
		t.Fatalf("%s was dropped: %v", s, err)
	}
	if err := s.Truncate(t.Context(), 0); err == nil {
		t.Fatalf("%s was dropped, and truncated", s)
	}
}

// attach lets a client take a session up, with a receipt or without. One that is wrong changes nothing.
func (w *walk) attach(t *rapid.T) {
	s := w.pick(t)
	driver := rapid.IntRange(0, len(w.clients)-1).Draw(t, "client")
	opts := client.AttachOptions{Direct: rapid.Bool().Draw(t, "direct"), Codec: rapid.SampledFrom(codecs).Draw(t, "codec")}
	kind := rapid.SampledFrom([]string{"none", "right", "earlier", "other", "beyond"}).Draw(t, "receipt")
	lengths := s.lengths()
	layer := rapid.IntRange(0, len(s.layers)-1).Draw(t, "layer")
	if kind == "earlier" {
		lengths[layer] = rapid.IntRange(0, lengths[layer]).Draw(t, "length")
		if s.seenFrom(layer, lengths[layer]) < s.freed[layer] {
			lengths = s.lengths()
		}
	}
	receipt := s.receipt(lengths)
	group := rapid.IntRange(0, s.layers[layer].KVHeads-1).Draw(t, "group")
	var wrong client.Reason
	switch kind {
	case "other":
		receipt.Layers[layer].Hashes[group]++
		wrong = different
	case "beyond":
		receipt.Layers[layer].Length++
		wrong = behind
	}
	if kind != "none" {
		opts.Receipt = &receipt
	}
	taken, err := w.clients[driver].Attach(t.Context(), s.ID(), opts)
	switch {
	case err == nil && wrong == "":
	case err == nil:
		t.Fatalf("%s was taken with a receipt that is %s", s, kind)
	case w.gone(t, s, err):
		return
	case wrong != "" && reason(t, err) == wrong,
		w.tight && wrong == behind && reason(t, err) == different: // where a holder alone has done a step it has one more, too
		w.refused(t, s)
		return
	default:
		t.Fatalf("attach to %s with a receipt that is %s: %v", s, kind, err)
	}
	s.use(-1, w.now())
	if err := s.Truncate(t.Context(), 0); !errors.Is(err, client.ErrTakenOver) {
		t.Fatalf("who has lost %s truncates it: %v", s, err)
	}
	s.Session, s.driver, s.direct, s.codec = taken, driver, opts.Direct, opts.Codec
	w.check(t, s)
}

// export reads rows back as they are stored.
func (w *walk) export(t *rapid.T) {
	s := w.pick(t)
	layer := rapid.IntRange(0, len(s.layers)-1).Draw(t, "layer")
	l, have := s.layers[layer], len(s.kept[layer])
	if have == 0 {
		t.Skip("nothing to export")
	}
	start := rapid.IntRange(0, have-1).Draw(t, "start")
	n := rapid.IntRange(1, have-start).Draw(t, "n")
	kb, vb := l.HeadDim*l.Storage.Size(), l.VDim*l.Storage.Size()
	came := 0
	err := s.Export(t.Context(), layer, start, n, func(group, at, positions int, rows client.Rows) error {
		for i := range positions {
			p := s.kept[layer][at+i]
			if !bytes.Equal(rows.K[i*kb:][:kb], p.storedK[group*kb:][:kb]) || !bytes.Equal(rows.V[i*vb:][:vb], p.storedV[group*vb:][:vb]) ||
				l.Storage == tensor.I8 && (rows.KScale[i] != p.kScale[group] || rows.VScale[i] != p.vScale[group]) {
				t.Fatalf("%s: layer %d group %d has other keys or values at position %d", s, layer, group, at+i)
			}
		}
		came += positions
		return nil
	})
	isFreed := start/attention.PageLen < s.freed[layer]
	switch {
	case err == nil && (!isFreed || s.loose) && came == n*l.KVHeads:
	case err == nil:
		t.Fatalf("an export of %d positions of %s from %d on was to be refused, %d came", n, s, start, came)
	case w.gone(t, s, err):
		return
	case isFreed && reason(t, err) == freed:
		w.refused(t, s)
		return
	default:
		t.Fatalf("an export of %d positions of %s from %d on: %v", n, s, start, err)
	}
	s.use(layer, w.now())
}

func (w *walk) wait(t *rapid.T) {
	w.Clock.since.Add(int64(time.Duration(rapid.IntRange(1, 60).Draw(t, "seconds")) * time.Second))
}

// expire has the workers drop what has gone unused, and no more.
func (w *walk) expire(t *rapid.T) {
	w.Expire()
	for _, s := range slices.Clone(w.sessions) {
		state, err := w.clients[0].FindSession(t.Context(), s.ID())
		var left []string
		for _, h := range s.holders {
			if s.pinned || w.now().Sub(h.used) < s.ttl {
				left = append(left, h.name)
			}
		}
		if len(left) == 0 && !errors.Is(err, client.ErrNotFound) || len(left) > 0 && err != nil {
			t.Fatalf("%s: %v; %v have it in use", s, err, left)
		}
		var have []string
		if err == nil {
			for _, h := range state.Holders {
				have = append(have, h.Name)
			}
		}
		slices.Sort(left)
		slices.Sort(have)
		if !slices.Equal(have, left) {
			t.Fatalf("%s is held by %v, not by %v", s, have, left)
		}
		if len(left) == len(s.holders) {
			continue
		}
		if err := s.Truncate(t.Context(), 0); !errors.Is(err, client.ErrNotFound) {
			t.Fatalf("%s has gone unused, and is truncated: %v", s, err)
		}
		w.end(t, s)
	}
}

// snapshot is a session as it was, and as it was written.
type snapshot struct {
	was     *session
	written []byte
}

// snapshot writes a session, by who drives it or by another client.
func (w *walk) snapshot(t *rapid.T) {
	s := w.pick(t)
	var b bytes.Buffer
	var err error
	if rapid.Bool().Draw(t, "by its driver") {
		err = s.Snapshot(t.Context(), &b, nil)
	} else {
		_, err = w.clients[rapid.IntRange(0, len(w.clients)-1).Draw(t, "client")].SnapshotSession(t.Context(), s.ID(), &b, nil)
	}
	switch {
	case err == nil:
	case w.gone(t, s, err):
		return
	case w.tight && reason(t, err) == overBudget: // of the fork that is written
		w.refused(t, s)
		return
	default:
		t.Fatalf("a snapshot of %s: %v", s, err)
	}
	w.saved = append(w.saved, snapshot{s.clone(), b.Bytes()})
	// Who holds only layers without positions has not counted it as use; all count this.
	w.setPin(t, s, s.pinned)
	w.check(t, s)
}

// restore makes a session of what was written, also when the one that it was of has long ended.
func (w *walk) restore(t *rapid.T) {
	if len(w.saved) == 0 || len(w.sessions) >= 8 {
		t.Skip("nothing to restore")
	}
	from := w.saved[rapid.IntRange(0, len(w.saved)-1).Draw(t, "snapshot")]
	s := from.was.clone()
	w.opened++
	s.name, s.branch = fmt.Sprintf("s%d", w.opened), uint32(w.opened)
	s.driver, s.direct = rapid.IntRange(0, len(w.clients)-1).Draw(t, "client"), rapid.Bool().Draw(t, "direct")
	s.codec = rapid.SampledFrom(codecs).Draw(t, "codec")
	s.stripes = rapid.SampledFrom([]int{0, 0, 2, 3}).Draw(t, "stripes")
	restored, err := w.clients[s.driver].RestoreSession(t.Context(), bytes.NewReader(from.written), client.RestoreOptions{
		Name: s.name, Direct: s.direct, Codec: s.codec, Workers: rapid.IntRange(0, w.Workers).Draw(t, "workers"), Stripes: s.stripes,
	})
	if err != nil {
		if !w.tight || reason(t, err) != overBudget {
			t.Fatalf("restore %s as it was: %v", from.was, err)
		}
		return
	}
	s.Session = restored
	w.vague = w.vague || s.tells
	w.sessions = append(w.sessions, s)
	w.held(t, s)
	w.learn(s)
	w.check(t, s)
}
