package fanout

import (
	"bytes"
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"

	"headwater.example/internal/layerproto"
	headwaterv1 "headwater.example/proto/headwater/v1"
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
	states = slices.Clone(states)
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

// Stale returns the states of workers that were left out of a session: they do not hold it any more, and what they have of it is of
// no use. There are none while holders are being exchanged, nor if other workers hold the session under a complete epoch of their own.
func Stale(h *Holding, current, all []*headwaterv1.SessionState) []*headwaterv1.SessionState {
	if h.closed || len(current) == 0 {
		return nil
	}
	top := current[0].GetEpoch()
	if slices.ContainsFunc(current, func(s *headwaterv1.SessionState) bool { return compareEpochs(s.GetEpoch(), top) != 0 }) {
		return nil
	}
	all = slices.Clone(all)
	slices.SortStableFunc(all, func(a, b *headwaterv1.SessionState) int { return compareEpochs(b.GetEpoch(), a.GetEpoch()) })
	if len(complete(all)) > 1 {
		return nil
	}
	return slices.DeleteFunc(all, func(s *headwaterv1.SessionState) bool { return slices.Contains(current, s) })
}

func compareEpochs(a, b *headwaterv1.Epoch) int {
	return cmp.Or(cmp.Compare(a.GetCounter(), b.GetCounter()), bytes.Compare(a.GetLane(), b.GetLane()))
}

// locate asks who holds a session now: Locate, or if that fails the holders that are known.
func (c *Conns) locate(ctx context.Context, id [16]byte, known *Holding) (*Holding, error) {
	failed := errNoWay
	if c.Locate != nil {
		var h *Holding
		if h, failed = c.Locate(ctx, id); failed == nil {
			return h, nil
		}
	}
	if h := c.askHolders(ctx, id, known); h != nil {
		return h, nil
	}
	return nil, failed
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

// heldBy asks the holders that are known what they hold of a session. Those that do not answer, or do not hold it, tell nothing.
func (c *Conns) heldBy(ctx context.Context, id [16]byte, known *Holding) []*headwaterv1.SessionState {
	states := make([]*headwaterv1.SessionState, len(known.holders))
	_, _ = c.gather(ctx, known.holders, always, func(ctx context.Context, s headwaterv1.SessionServiceClient, i int) (*headwaterv1.SessionState, error) {
		resp, err := s.ListSessions(ctx, &headwaterv1.ListSessionsRequest{Sessions: [][]byte{id[:]}, HoldersOnly: true})
		for _, state := range resp.GetSessions() {
			for _, o := range state.GetHolders() {
				o.Name, o.Address = known.holders[i].Name, known.holders[i].Address
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
