package client

import (
	"context"
	"slices"

	headwaterv1 "headwater.example/proto/headwater/v1"
)

// Known is what a session's client knows of it.
type Known struct {
	ID                 SessionID
	Epoch, Truncations uint64
	Layers             []LayerReceipt
}

// Tamper makes a session's client know something else, until it is set right again.
func Tamper(s *Session, change func(*Known)) (right func()) {
	id, epoch, truncations, layers := s.id, s.epoch, s.truncations, s.layers
	k := Known{ID: id, Epoch: epoch, Truncations: truncations}
	for _, l := range layers {
		k.Layers = append(k.Layers, LayerReceipt{l.length, slices.Clone(l.hashes)})
	}
	change(&k)
	var tampered []held
	for i, l := range k.Layers {
		tampered = append(tampered, held{length: l.Length, hashes: l.Hashes, chain: layers[min(i, len(layers)-1)].chain})
	}
	s.id, s.epoch, s.truncations, s.layers = k.ID, k.Epoch, k.Truncations, tampered
	return func() {
		for i, l := range s.layers {
			layers[i].unsure = l.unsure
		}
		s.id, s.epoch, s.truncations, s.layers, s.cutting = id, epoch, truncations, layers, nil
	}
}

// Found is FindSession as messages tell it.
func Found(ctx context.Context, c *Client, id SessionID) (*headwaterv1.SessionState, error) {
	return c.findSession(ctx, id, false)
}
