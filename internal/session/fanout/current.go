package fanout

import (
	"bytes"
	"cmp"
	"context"
	"fmt"
	"slices"

	"headwater.example/internal/layerproto"
	headwaterv1 "headwater.example/proto/headwater/v1"
)

// Current returns who holds a session, of the states that workers tell of it: those of the highest epoch. Workers that were left out
// have stayed at a lower one; they count only if without them the session is not whole, since an epoch may be stepped at some only.
func Current(states []*headwaterv1.SessionState) (*Holding, []*headwaterv1.SessionState, error) {
	layers, err := layerproto.ReadSessionLayers(states[0].GetConfig().GetLayers())
	if err != nil {
		return nil, nil, fmt.Errorf("session %x: %w", states[0].GetSession(), err)
	}
	states = slices.Clone(states)
	slices.SortStableFunc(states, func(a, b *headwaterv1.SessionState) int { return compareEpochs(b.GetEpoch(), a.GetEpoch()) })
	var holders []*headwaterv1.Holder
	for i, s := range states {
		holders = append(holders, s.GetHolders()...)
		if i+1 < len(states) && compareEpochs(s.GetEpoch(), states[i+1].GetEpoch()) == 0 {
			continue
		}
		var h *Holding
		if h, err = ParseHolding(layers, holders); err == nil {
			return h.Under(states[:i+1]...), states[:i+1], nil
		}
	}
	return nil, nil, err
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
	states := make([]*headwaterv1.SessionState, len(known.holders))
	// Whoever does not answer is missed below.
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
	states = slices.DeleteFunc(states, func(s *headwaterv1.SessionState) bool { return s == nil })
	if len(states) == 0 {
		return nil, failed
	}
	h, _, err := Current(states)
	if err != nil {
		return nil, failed
	}
	return h, nil
}
