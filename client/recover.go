package client

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"

	"google.golang.org/protobuf/proto"

	"headwater.example/internal/layerproto"
	"headwater.example/internal/session"
	"headwater.example/internal/snapshot"
	headwaterv1 "headwater.example/proto/headwater/v1"
)

// recoverBlock is how many positions Recover asks for at once, at most.
const recoverBlock = 4096

// KeptRows supplies the keys and values [count, n_kv_heads, head_dim] of a layer from position start on, as they were appended. It is
// called layer by layer, block by block and ascending.
type KeptRows func(layer, start, count int) (k, v []float32, err error)

// Recover makes a session like one that is lost in part or gone: with the same layers and positions, and so the same contexts and
// receipts from there on. The caller supplies all rows of all layers; a prefix that the session had found must be supplied as well. If
// a row differs in any bit as it is stored, the error is of the reason DIFFERENT, and nothing of the new session stays. If it goes well,
// the old session is closed, and what workers still have of it is dropped. Receipt says what it had, and so what there is to supply, and
// SessionError.Lost what was lost of it.
func (s *Session) Recover(ctx context.Context, rows KeptRows) (*Session, error) {
	return s.recover(ctx, rows, func() (*Session, error) {
		return s.client.create(ctx, "recover as", &headwaterv1.CreateSessionRequest{Config: s.config}, 0, s.direct, s.codec)
	})
}

// RecoverFrom is Recover with a snapshot of the session, of now or of an earlier time: rows are asked only from the snapshot's end on,
// and may be nil if there are none. The rows of the snapshot are compared as well.
func (s *Session) RecoverFrom(ctx context.Context, from io.Reader, rows KeptRows) (*Session, error) {
	return s.recover(ctx, rows, func() (*Session, error) {
		made, err := s.client.restoreSession(ctx, from, RestoreOptions{
			Direct: s.direct, Codec: s.codec, Unshared: s.config.GetUnshared(), as: s.place.Holding().Layers(),
		})
		if err != nil {
			if bad := (*snapshot.Error)(nil); errors.As(err, &bad) {
				err = snapshotError{err}
			}
			return nil, err
		}
		if err := made.begins(ctx, s); err != nil {
			return nil, s.client.inVain(ctx, made.id, err)
		}
		return made, nil
	})
}

// begins checks that the session has the layers of a lost one, and takes back what it has beyond that one's positions.
func (s *Session) begins(ctx context.Context, lost *Session) error {
	own, others := layerproto.SessionLayers(s.place.Holding().Layers()), layerproto.SessionLayers(lost.place.Holding().Layers())
	if !slices.EqualFunc(own, others, func(a, b *headwaterv1.SessionLayer) bool { return proto.Equal(a, b) }) {
		return wrong("the snapshot is of a session with other layers")
	}
	for l := range lost.layers {
		if s.LayerLen(l) > lost.LayerLen(l) {
			return s.Truncate(ctx, lost.Len())
		}
	}
	return nil
}

// recover completes a session that make makes.
func (s *Session) recover(ctx context.Context, rows KeptRows, make func() (*Session, error)) (*Session, error) {
	var next *Session
	err := s.control(ctx, "recover", func() error {
		made, err := make()
		if err != nil {
			return err
		}
		made.sendF32, made.kept = s.sendF32, s.kept
		if err := made.refill(ctx, s, rows); err != nil {
			return s.client.inVain(ctx, made.id, fmt.Errorf("as session %s: %w", made.id, err))
		}
		made.prefix = made.Len()
		_ = s.client.abandon(ctx, s.id) // else what is left of it ends by its TTL
		s.closed = true
		next = made
		return nil
	})
	return next, err
}

// refill appends what another session had, and compares the hashes with those that it had.
func (s *Session) refill(ctx context.Context, lost *Session, rows KeptRows) error {
	for l := range lost.layers {
		spec := &s.place.Holding().Layers()[l]
		n := lost.LayerLen(l)
		for at := s.LayerLen(l); at < n; at += recoverBlock {
			count := min(recoverBlock, n-at)
			if rows == nil {
				return wrong("layer %d: positions %d to %d are supplied by nobody", l, at, n-1)
			}
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
