package explore

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"

	headwaterv1 "headwater.example/proto/headwater/v1"
)

// last is the client that comes last.
const last = "Z"

// finale lets one more client take the session over, once nothing breaks any more. What was acknowledged must be there as long as one
// lives that had it, and at each holder of the new epoch.
func (w *World) finale() error {
	if w.check.acked.receipt == nil {
		return nil // it was never opened
	}
	if w.Parted {
		return w.bothSides()
	}
	lives, acked := !w.check.dead(w), w.check.acked
	d, err := w.newDriver(Script{Name: last, Do: []string{"attach-any", "append"}})
	if err != nil {
		return err
	}
	w.drivers = append(w.drivers, d)
	w.moved = append(w.moved, "finale")
	d.start()
	if err := w.deliverAll(d); err != nil {
		return err
	}
	if d.failed != nil {
		if lives {
			return fmt.Errorf("the session is lost, and %v live that acknowledged %q: %w", acked.holders, acked.content, d.failed)
		}
		return nil
	}
	if err := w.compareHolders(d.content); err != nil {
		return err
	}
	return w.nobodyLeftOut()
}

// bothSides looks for what each client was acknowledged last, or what has gone on from there.
func (w *World) bothSides() error {
	id := w.check.acked.receipt.Session
	for _, name := range slices.Sorted(maps.Keys(w.check.parted)) {
		content := w.check.parted[name].content
		if !slices.ContainsFunc(w.workers, func(p *process) bool {
			s := p.told.has(id)
			return s != nil && slices.ContainsFunc(w.check.known(), func(now string) bool { return strings.HasPrefix(now, content) && holds(s, now) })
		}) {
			return fmt.Errorf("%s was acknowledged %q, and no worker has it", name, content)
		}
	}
	return nil
}

// nobodyLeftOut compares the holders of the newest epoch with those on which the session was opened, if nothing has broken: they are still
// there then.
func (w *World) nobodyLeftOut() error {
	if len(w.Faults) > 0 {
		return nil
	}
	now := w.holders(w.check.acked.receipt.Session)
	for _, name := range w.opened {
		if !slices.Contains(now, name) {
			return fmt.Errorf("nothing broke, and %s is left out: %v hold the session, which was opened on %v", name, now, w.opened)
		}
	}
	return nil
}

// holders returns the names of the workers that tell the newest epoch of a session.
func (w *World) holders(id [16]byte) (names []string) {
	var newest *headwaterv1.Epoch
	for _, p := range w.workers {
		if s := p.told.has(id); s != nil && s.GetEpoch().GetCounter() >= newest.GetCounter() {
			newest = s.GetEpoch()
		}
	}
	for _, p := range w.workers {
		if s := p.told.has(id); s != nil && s.GetEpoch().GetCounter() == newest.GetCounter() && bytes.Equal(s.GetEpoch().GetLane(), newest.GetLane()) {
			names = append(names, p.name)
		}
	}
	return names
}

// deliverAll lets all messages through in their order until a driver's script has ended.
func (w *World) deliverAll(d *driver) error {
	for range mostMoves {
		if err := w.step(); err != nil {
			return err
		}
		if d.ended {
			return nil
		}
	}
	return errors.New("the finale does not end")
}

// compareHolders compares what each holder of the newest epoch exports with a content.
func (w *World) compareHolders(content string) error {
	id := w.check.acked.receipt.Session
	newest := w.holders(id)
	held := make([]int, groups)
	for _, p := range w.workers {
		if !slices.Contains(newest, p.name) {
			continue
		}
		s := p.told.has(id)
		got, err := w.export(p, id)
		if err != nil {
			return err
		}
		for _, l := range s.GetHolders()[0].GetLayers() {
			for _, g := range l.GetGroups() {
				held[g]++
				if !bytes.Equal(got[g][0], bytesOf(content, 'k', int(g))) || !bytes.Equal(got[g][1], bytesOf(content, 'v', int(g))) {
					return fmt.Errorf("%s exports other keys and values of group %d than those of %q", p.name, g, content)
				}
			}
		}
	}
	for g, n := range held {
		if n == 0 {
			return fmt.Errorf("none of %v has group %d of %q", newest, g, content)
		}
	}
	return nil
}

// export reads the keys and values of each group that a worker holds.
func (w *World) export(p *process, id [16]byte) (map[uint32][2][]byte, error) {
	ctx, cancel := bounded()
	defer cancel()
	stream, err := headwaterv1.NewSessionServiceClient(w.net.Peek(p.address)).ExportSession(ctx, &headwaterv1.ExportSessionRequest{Session: id[:]})
	if err != nil {
		return nil, fmt.Errorf("export from %s: %w", p.name, err)
	}
	all := map[uint32][2][]byte{}
	for {
		m, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return all, nil
		}
		if err != nil {
			return nil, fmt.Errorf("export from %s: %w", p.name, err)
		}
		one := all[m.GetGroup()]
		all[m.GetGroup()] = [2][]byte{append(one[0], m.GetK()...), append(one[1], m.GetV()...)}
	}
}
