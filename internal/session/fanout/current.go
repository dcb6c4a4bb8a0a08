package fanout

import (
	"bytes"
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"headwater.example/internal/layerproto"
	"headwater.example/internal/rpc"
	headwaterv1 "headwater.example/proto/headwater/v1"
	"headwater.example/shard"
)

// Current returns who holds a session, of the states that workers tell of it: those of the highest epoch that is complete, which all that
// it names tell. An epoch above it has come only to some, and not to all that go on under the complete one. If none is
// complete, it is those of the highest epoch, but for those that another one of this epoch does not name: a take that came to them as
// well went on without them. Workers of a lower one count then only if without them the session is not whole, since an
// epoch may be stepped at some only, or if another lane's take is to come to them; and if the highest epoch says who has it, only those
// that it names.
func Current(states []*headwaterv1.SessionState) (*Holding, []*headwaterv1.SessionState, error) {
	layers, err := layerproto.ReadSessionLayers(states[0].GetConfig().GetLayers())
	if err != nil {
		return nil, nil, fmt.Errorf("session %x: %w", states[0].GetSession(), err)
	}
	states = inForce(layers, states)
	slices.SortStableFunc(states, func(a, b *headwaterv1.SessionState) int { return compareEpochs(b.GetEpoch(), a.GetEpoch()) })
	for _, one := range complete(states) {
		if h, err := ParseHolding(layers, allHolders(one)); err == nil {
			return h.Under(one...), one, nil
		}
	}
	top := states[0].GetEpoch()
	states = slices.DeleteFunc(states, func(s *headwaterv1.SessionState) bool {
		return compareEpochs(s.GetEpoch(), top) < 0 && leftOut(s, top)
	})
	if rest := slices.DeleteFunc(slices.Clone(states), func(s *headwaterv1.SessionState) bool { return unnamed(s, states) }); len(rest) > 0 {
		states, top = rest, rest[0].GetEpoch()
	}
	for i, s := range states {
		if i+1 < len(states) && (compareEpochs(s.GetEpoch(), states[i+1].GetEpoch()) == 0 || taking(states[i+1], top)) {
			continue
		}
		var h *Holding
		if h, err = ParseHolding(layers, allHolders(states[:i+1])); err == nil {
			h = h.Under(states[:i+1]...)
			h.closed = h.closed || compareEpochs(s.GetEpoch(), top) < 0
			h.split = slices.ContainsFunc(states[:i+1], func(s *headwaterv1.SessionState) bool { return !bytes.Equal(s.GetEpoch().GetLane(), top.GetLane()) })
			return h, states[:i+1], nil
		}
	}
	return nil, nil, missed(top, allHolders(states), err)
}

// inForce leaves out the states from which another one has come and gone on, if the rest has all groups: an epoch that came to some of the
// holders too late may be the highest of all, and has nothing.
func inForce(layers []shard.LayerSpec, states []*headwaterv1.SessionState) []*headwaterv1.SessionState {
	rest := slices.DeleteFunc(slices.Clone(states), func(s *headwaterv1.SessionState) bool {
		return slices.ContainsFunc(states, func(o *headwaterv1.SessionState) bool {
			return leftOut(s, o.GetEpoch()) && s.GetServed() != 0 && o.GetServed() != 0 &&
				cameThrough([]*headwaterv1.SessionState{o}, s.GetServed(), s.GetLayers()) && !slices.Contains(s.GetLineage(), o.GetServed())
		})
	})
	if _, err := ParseHolding(layers, allHolders(rest)); err != nil {
		return slices.Clone(states)
	}
	return rest
}

func allHolders(states []*headwaterv1.SessionState) (all []*headwaterv1.Holder) {
	for _, s := range states {
		all = append(all, s.GetHolders()...)
	}
	return all
}

// unnamed reports whether another state of the same epoch does not name who tells a state.
func unnamed(s *headwaterv1.SessionState, states []*headwaterv1.SessionState) bool {
	return slices.ContainsFunc(states, func(other *headwaterv1.SessionState) bool {
		return compareEpochs(s.GetEpoch(), other.GetEpoch()) == 0 && leftOut(s, other.GetEpoch())
	})
}

// complete returns the states of each complete epoch, the highest first, of states in this order.
func complete(states []*headwaterv1.SessionState) (all [][]*headwaterv1.SessionState) {
	for len(states) > 0 {
		n := slices.IndexFunc(states, func(s *headwaterv1.SessionState) bool { return compareEpochs(s.GetEpoch(), states[0].GetEpoch()) != 0 })
		if n < 0 {
			n = len(states)
		}
		one := states[:n:n]
		if !slices.ContainsFunc(one, func(s *headwaterv1.SessionState) bool {
			return len(s.GetEpoch().GetMembers()) != n || slices.ContainsFunc(one, func(other *headwaterv1.SessionState) bool { return leftOut(other, s.GetEpoch()) })
		}) {
			all = append(all, one)
		}
		states = states[n:]
	}
	return all
}

// leftOut reports whether an epoch names its holders, and not the one that tells a state.
func leftOut(s *headwaterv1.SessionState, epoch *headwaterv1.Epoch) bool {
	return len(epoch.GetMembers()) > 0 && !slices.ContainsFunc(s.GetHolders(), func(o *headwaterv1.Holder) bool {
		return slices.Contains(epoch.GetMembers(), o.GetName())
	})
}

// taking reports whether an epoch of another lane names who tells a state.
func taking(s *headwaterv1.SessionState, epoch *headwaterv1.Epoch) bool {
	return len(epoch.GetMembers()) > 0 && !leftOut(s, epoch) && !bytes.Equal(s.GetEpoch().GetLane(), epoch.GetLane())
}

// missed adds to the error of a session that is not whole which of its holders are missed, if that is known.
func missed(epoch *headwaterv1.Epoch, holders []*headwaterv1.Holder, err error) error {
	var names []string
	for _, name := range epoch.GetMembers() {
		if !slices.ContainsFunc(holders, func(o *headwaterv1.Holder) bool { return o.GetName() == name }) {
			names = append(names, name)
		}
	}
	if len(names) == 0 {
		return err
	}
	return fmt.Errorf("%w; %s had the rest", err, strings.Join(names, ", "))
}

// Stale returns the states of workers that were left out of a session, and from which those that hold it have come: what is acknowledged of
// them the current ones have, so they are of no use. There are none while holders are being exchanged. A state from which the current
// ones have not come, or that does not tell, is the other side of a session that goes on twice: what was acknowledged there may be there alone,
// whether its epoch is lower or higher.
func Stale(h *Holding, current, all []*headwaterv1.SessionState) []*headwaterv1.SessionState {
	if h.closed || len(current) == 0 {
		return nil
	}
	top := current[0].GetEpoch()
	if slices.ContainsFunc(current, func(s *headwaterv1.SessionState) bool { return compareEpochs(s.GetEpoch(), top) != 0 }) {
		return nil
	}
	return slices.DeleteFunc(slices.Clone(all), func(s *headwaterv1.SessionState) bool {
		return slices.Contains(current, s) || s.GetServed() == 0 || !cameThrough(current, s.GetServed(), s.GetLayers())
	})
}

// cameThrough reports whether for each of some layers a state of it has come through a line of epochs. All that was acknowledged of the layers
// on that line, or before it on the way there, these states have then: each append is acknowledged by all holders of its layer, and so by all
// members of the line.
func cameThrough(states []*headwaterv1.SessionState, line uint64, layers []*headwaterv1.LayerState) bool {
	return !slices.ContainsFunc(layers, func(l *headwaterv1.LayerState) bool {
		return !slices.ContainsFunc(states, func(s *headwaterv1.SessionState) bool {
			return slices.Contains(s.GetLineage(), line) &&
				slices.ContainsFunc(s.GetLayers(), func(own *headwaterv1.LayerState) bool { return own.GetLayer() == l.GetLayer() })
		})
	})
}

// joined returns the lines through which a copy of some layers has come that is made of all these states, in their order.
func joined(states []*headwaterv1.SessionState, layers []*headwaterv1.LayerState) (lineage []uint64) {
	for _, s := range states {
		at := 0 // behind the last one that is there already
		for _, line := range s.GetLineage() {
			if i := slices.Index(lineage, line); i >= 0 {
				at = i + 1
			} else if cameThrough(states, line, layers) {
				lineage = slices.Insert(lineage, at, line)
				at++
			}
		}
	}
	return lineage[max(0, len(lineage)-shard.MaxLineage):]
}

func compareEpochs(a, b *headwaterv1.Epoch) int {
	return cmp.Or(cmp.Compare(a.GetCounter(), b.GetCounter()), bytes.Compare(a.GetLane(), b.GetLane()))
}

// locate asks who holds a session now: Locate, or if that fails the holders that are known. If Locate takes longer than a pause between
// two questions, the holders are asked beside it, and go before if they tell of an epoch that is open, all of whose holders answer, and
// that is news. So who waits until holders were exchanged does not also wait for a coordinator that is cut off, or that waits for
// other workers.
func (c *Conns) locate(ctx context.Context, id [16]byte, known *Holding) (*Holding, error) {
	type located struct {
		h   *Holding
		err error
	}
	answer, held := make(chan located, 1), make(chan *Holding, 1)
	asking, cancel := context.WithCancel(ctx)
	var tasks sync.WaitGroup
	defer tasks.Wait()
	defer cancel()
	tasks.Go(func() {
		a := located{err: errNoWay}
		if c.Locate != nil {
			a.err = rpc.Guard(c.Log, "asking who holds a session", func() (err error) {
				a.h, err = c.Locate(asking, id)
				return err
			})
		}
		answer <- a
	})
	late := time.NewTimer(refreshPause)
	defer late.Stop()
	for {
		select {
		case a := <-answer:
			if a.err == nil {
				return a.h, nil
			}
			if h := c.askHolders(ctx, id, known); h != nil {
				return h, nil
			}
			return nil, a.err
		case <-late.C:
			tasks.Go(func() { held <- c.askHolders(asking, id, known) })
		case h := <-held:
			if h != nil && h.newsTo(known) {
				return h, nil
			}
			late.Reset(refreshPause)
		}
	}
}

// newsTo reports whether nobody exchanges the holders, all that have their epoch are known, and it is a later one than was known, or the
// same one if not all of its holders were.
func (h *Holding) newsTo(known *Holding) bool {
	return !h.closed && !h.exchange && (h.counter > known.counter || h.counter == known.counter && known.closed)
}

// askHolders asks the holders that are known who holds a session now; nil is that they do not tell of all of it.
func (c *Conns) askHolders(ctx context.Context, id [16]byte, known *Holding) *Holding {
	states := c.heldBy(ctx, id, known)
	if len(states) == 0 {
		return nil
	}
	h, _, err := Current(states)
	if err != nil {
		return nil
	}
	return h
}

// follows is how often those are asked as well whom others name: with each time they may be known better.
const follows = 3

// heldBy asks the holders that are known what they hold of a session, and those whom these name. Those that do not answer, or do not
// hold it, tell nothing.
func (c *Conns) heldBy(ctx context.Context, id [16]byte, known *Holding) []*headwaterv1.SessionState {
	states := c.heldByEach(ctx, id, known.holders)
	if known.holders[0].Groups == nil {
		return states // a coordinator is the one holder, and tells of all
	}
	return c.Follow(ctx, id, states, known.holders...)
}

// Follow adds to the states of a session, which those that were asked have told, the states of those whom the highest epoch of these names
// beside them, if a holder tells where they are.
func (c *Conns) Follow(ctx context.Context, id [16]byte, states []*headwaterv1.SessionState, asked ...*Holder) []*headwaterv1.SessionState {
	asked = slices.Clone(asked)
	for range follows {
		others := unasked(states, asked)
		if len(others) == 0 {
			break
		}
		asked = append(asked, others...)
		states = append(states, c.heldByEach(ctx, id, others)...)
	}
	return states
}

// unasked returns those whom the highest epoch names and who were not asked, as far as a state of this epoch tells where they are.
func unasked(states []*headwaterv1.SessionState, asked []*Holder) (others []*Holder) {
	if len(states) == 0 {
		return nil
	}
	top := slices.MaxFunc(states, func(a, b *headwaterv1.SessionState) int { return compareEpochs(a.GetEpoch(), b.GetEpoch()) }).GetEpoch()
	for _, s := range states {
		if compareEpochs(s.GetEpoch(), top) != 0 {
			continue
		}
		for _, o := range s.GetOthers() {
			named := func(other *Holder) bool { return other.Name == o.GetName() }
			if slices.Contains(top.GetMembers(), o.GetName()) && !slices.ContainsFunc(asked, named) && !slices.ContainsFunc(others, named) {
				others = append(others, &Holder{Name: o.GetName(), Address: o.GetAddress()})
			}
		}
	}
	return others
}

// heldByEach asks each of some holders what it holds of a session, and where the others are.
func (c *Conns) heldByEach(ctx context.Context, id [16]byte, holders []*Holder) []*headwaterv1.SessionState {
	states := make([]*headwaterv1.SessionState, len(holders))
	_, _ = c.gather(ctx, holders, always, func(ctx context.Context, s headwaterv1.SessionServiceClient, i int) (*headwaterv1.SessionState, error) {
		resp, err := s.ListSessions(ctx, &headwaterv1.ListSessionsRequest{Sessions: [][]byte{id[:]}, HoldersOnly: true, Others: true})
		for _, state := range resp.GetSessions() {
			for _, o := range state.GetHolders() {
				o.Name, o.Address = holders[i].Name, holders[i].Address
			}
			states[i] = state
		}
		return nil, err
	})
	return slices.DeleteFunc(states, func(s *headwaterv1.SessionState) bool { return s == nil })
}

// renew brings a place to what the holders tell now, each of its own epoch, if that is not what is known of them. While some have a
// closed epoch it asks again, for about a second; then who exchanges them has not come to an end, and a take may go over that.
func (c *Conns) renew(ctx context.Context, p *Place, from *Holding) error {
	return p.move(ctx, from, func() (*Holding, error) {
		var h *Holding
		for range refreshes {
			var err error
			if h, err = c.locate(ctx, p.id, from); err != nil {
				return nil, err
			}
			if h.told == nil { // Locate tells of one epoch
				h = cmp.Or(c.askHolders(ctx, p.id, h), h)
			}
			if !h.exchange {
				break
			}
			if !pause(ctx, refreshPause) {
				return nil, ctx.Err()
			}
		}
		if h.same(from) && h.exchange == from.exchange {
			return nil, errNoWay
		}
		return h, nil
	})
}
