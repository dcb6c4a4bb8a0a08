package client

import (
	"context"
	"fmt"
	"slices"

	"headwater.example/internal/session"
	headwaterv1 "headwater.example/proto/headwater/v1"
)

// recoverBlock is how many positions Recover asks for at once, at most.
const recoverBlock = 4096

// Recover makes a session like one that is gone: with the same layers and positions, and so the same contexts and receipts from there on.
// The caller supplies the keys and values [count, n_kv_heads, head_dim] of each layer, as it appended them, block by block and ascending.
// If some workers have the session still, what they have of it is dropped. If a row differs in any bit as it is stored, the error is of
// the reason DIFFERENT, and nothing of the new session stays. A prefix that the session had found must be supplied as well. The session
// that is gone is not changed; Receipt says what it had, and so what there is to supply.
func (s *Session) Recover(ctx context.Context, rows func(layer, start, count int) (k, v []float32, err error)) (*Session, error) {
	var next *Session
	err := s.control(ctx, "recover", func() error {
		req := &headwaterv1.CreateSessionRequest{Config: s.config}
		made, err := s.client.create(ctx, "recover as", req, 0, s.direct, s.codec)
		if err != nil {
			return err
		}
		made.sendF32, made.kept = s.sendF32, s.kept
		if err := made.refill(ctx, s, rows); err != nil {
			return s.client.inVain(ctx, made.id, fmt.Errorf("as session %s: %w", made.id, err))
		}
		made.prefix = made.Len()
		_ = s.client.abandon(ctx, s.id) // else what is left of it ends by its TTL
		next = made
		return nil
	})
	return next, err
}

// refill appends what another session had, and compares the hashes with those that it had.
func (s *Session) refill(ctx context.Context, lost *Session, rows func(layer, start, count int) (k, v []float32, err error)) error {
	for l := range lost.layers {
		spec := &s.place.Holding().Layers()[l]
		n := lost.LayerLen(l)
		for at := 0; at < n; at += recoverBlock {
			count := min(recoverBlock, n-at)
			k, v, err := rows(l, at, count)
			if err != nil {
				return err
			}
			if len(k) != count*spec.KVHeads*spec.HeadDim() || len(v) != count*spec.KVHeads*spec.VDim() {
				return wrong("layer %d: %d and %d elements of k and v for %d positions", l, len(k), len(v), count)
			}
			if err := s.Do(ctx, &Step{Layer: l, K: k, V: v}); err != nil {
				return err
			}
		}
		// Of a truncation under way the hashes are not known.
		if had := &lost.layers[l]; uint64(n) == had.length && !slices.Equal(s.layers[l].hashes, had.hashes) {
			return session.Errorf(session.Different, "layer %d: other keys or values than the session had", l)
		}
	}
	return nil
}
