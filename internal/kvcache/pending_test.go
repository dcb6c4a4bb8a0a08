package kvcache

import (
	"context"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"

	"headwater.example/attention"
	"headwater.example/shard"
	"headwater.example/tensor"
)

// TestOneSessionFromManySides appends to a session, keeping some and giving others up while they are attended over, and meanwhile
// looks at it, truncates, forks, takes and exports it from other sides. Each call is done or refused by what has come before it,
// what is looked at is never half an append, and every page and count is right in the end.
func TestOneSessionFromManySides(t *testing.T) {
	cfg, held := uniform(t, 2, 2, 4, tensor.F32)
	st := NewStore(StoreConfig{Budget: NewBudget(1 << 26)})
	id := SessionID{1}
	create(t, st, id, cfg, held, nil)
	const each = 150
	var all sync.WaitGroup
	side := func(seed uint64, do func(r *rand.Rand, i int) error) {
		all.Go(func() {
			r := rand.New(rand.NewPCG(seed, 1))
			for i := range each {
				if err := do(r, i); err != nil && reasonOf(err) == 0 {
					t.Errorf("an error without a type: %v", err)
				}
			}
		})
	}
	for lane := range uint64(2) {
		side(lane, func(r *rand.Rand, _ int) error {
			state, err := st.look(id)
			if err != nil {
				return err
			}
			l := state.Layers[r.IntN(2)]
			n := 1 + r.IntN(100)
			layout := cfg.Layers[l.Layer].Layout
			a := Append{
				Session: id, Epoch: state.Epoch, Truncations: state.Truncations, Layer: l.Layer, Length: l.Length, Hashes: l.Hashes, Positions: n,
				Encoding: tensor.F32, K: make([]byte, 2*n*layout.KRowBytes()), V: make([]byte, 2*n*layout.VRowBytes()), Query: l.Length,
			}
			var p Pending
			if _, _, err := st.putPending(&p, &a, nil); err != nil {
				return err
			}
			defer p.Abort()
			// Until it is kept, others see the session without it, unless another has done the same before.
			now, err := st.look(id)
			if err != nil || p.session != nil && now.Layers[l.Layer].Length != l.Length {
				t.Errorf("%d positions are seen while %d are added to %d: %v", now.Layers[l.Layer].Length, n, l.Length, err)
			}
			if kv := p.View.KV(1); kv.Len != int(l.Length)+n || len(kv.Pages) != pagesOf(kv.Len) {
				t.Errorf("a view of %d positions, want %d", kv.Len, int(l.Length)+n)
			}
			if r.IntN(3) > 0 {
				p.Commit()
			}
			return nil
		})
	}
	side(10, func(r *rand.Rand, _ int) error {
		state, err := st.look(id)
		if err != nil {
			return err
		}
		_, err = st.cut(id, state.Epoch, state.Truncations, uint64(r.IntN(400)), nil)
		return err
	})
	side(11, func(r *rand.Rand, i int) error {
		state, err := st.look(id)
		if err != nil {
			return err
		}
		child := SessionID{2, byte(i), byte(i >> 8)}
		if _, err = st.branch(ForkRequest{Session: id, Epoch: state.Epoch, Truncations: state.Truncations, Child: child, ChildEpoch: first, Position: -1}); err != nil {
			return err
		}
		grow(t, st, child, 1+r.IntN(3), nil)
		return st.end(child, nil)
	})
	side(12, func(r *rand.Rand, _ int) error {
		state, err := st.look(id)
		if err != nil {
			return err
		}
		next := Epoch{Counter: state.Epoch.Counter + 1, Lane: LaneID{byte(r.IntN(4))}}
		_, err = st.Take(context.Background(), id, next, state.Layers, state.Truncations, r.IntN(2) == 0)
		return err
	})
	side(13, func(r *rand.Rand, _ int) error {
		rows := makeRows(cfg.Layers[0].Layout, 1)
		_, _, err := st.Export(id, 0, 1, r.IntN(2*attention.PageLen), 1, rows)
		return err
	})
	all.Wait()
	audit(t, st, nil)
	state, err := st.look(id)
	if err != nil {
		t.Fatal(err)
	}
	// Zeros chain alike, so the hashes tell that nothing was lost or added twice.
	for l, have := range state.Layers {
		plain := SessionID{9, byte(l)}
		create(t, st, plain, cfg, held, nil)
		for at := 0; at < int(have.Length); {
			n := min(shard.MaxStepTokens, int(have.Length)-at)
			grow(t, st, plain, n, nil)
			at += n
		}
		want, err := st.look(plain)
		if err != nil || !slices.Equal(want.Layers[l].Hashes, have.Hashes) {
			t.Errorf("layer %d: hashes %x of %d positions, want %x: %v", l, have.Hashes, have.Length, want.Layers[l].Hashes, err)
		}
	}
	st.Close()
	if st.budget.Used() != st.Cache().FreeBytes || st.Cache().UsedBytes != 0 {
		t.Errorf("%d bytes are in use in the end", st.budget.Used())
	}
}
