package client_test

import (
	"bytes"
	"errors"
	"testing"
	"time"

	"headwater.example/client"
)

// TestARecoveredSessionIsLikeTheLostOne: with the rows that were appended, it has the receipt that the lost one had. With other rows, or
// with too few, nothing is made.
func TestARecoveredSessionIsLikeTheLostOne(t *testing.T) {
	each(t, func(t *testing.T, c *cluster, direct bool) {
		s, m, r := open(t, c.Client, client.SessionOptions{Layers: layers, Direct: direct}), newModel(layers), rng(1)
		grow(t, s, m, r, 3, 70)
		rows := func(layer, start, count int) (k, v []float32, _ error) {
			kv, vv := layers[layer].KVHeads*layers[layer].HeadDim, layers[layer].KVHeads*m.vDim(layer)
			return m.k[layer][start*kv:][:count*kv], m.v[layer][start*vv:][:count*vv], nil
		}
		held := func(want int) {
			t.Helper()
			if all, err := c.Sessions(t.Context()); err != nil || len(all.Sessions) != want {
				t.Fatalf("%d sessions are held, not %d: %v", len(all.Sessions), want, err)
			}
		}
		for what, bad := range map[string]func(layer, start, count int) ([]float32, []float32, error){
			"other rows": func(layer, start, count int) ([]float32, []float32, error) {
				k, v, err := rows(layer, start, count)
				k = append([]float32(nil), k...)
				k[len(k)-1]++
				return k, v, err
			},
			"too few": func(layer, start, count int) ([]float32, []float32, error) { return rows(layer, start, count-1) },
		} {
			if _, err := s.Recover(t.Context(), bad); !errors.Is(err, client.ErrRefused) {
				t.Errorf("%s: %v", what, err)
			}
			held(1)
		}
		own := errors.New("the rows are not kept")
		if _, err := s.Recover(t.Context(), func(int, int, int) ([]float32, []float32, error) { return nil, nil, own }); !errors.Is(err, own) {
			t.Errorf("got %v", err)
		}
		held(1)
		before := s.Receipt()
		next, err := s.Recover(t.Context(), rows)
		if err != nil {
			t.Fatal(err)
		}
		held(1)
		after := next.Receipt()
		for l := range before.Layers {
			if before.Layers[l].Length != after.Layers[l].Length || before.Layers[l].Hashes[0] != after.Layers[l].Hashes[0] {
				t.Errorf("layer %d: its receipt was %v, and is %v", l, before.Layers[l], after.Layers[l])
			}
		}
		grow(t, next, m, r, 1, 2)
		if err := next.Close(); err != nil {
			t.Error(err)
		}
	})
}

// TestARecoveredSessionBeginsWithASnapshot: rows are asked from the snapshot's end on, and what the snapshot has is compared as well. Of a
// snapshot that has more than the session had, the rest is taken back.
func TestARecoveredSessionBeginsWithASnapshot(t *testing.T) {
	each(t, func(t *testing.T, c *cluster, direct bool) {
		s, m, r := open(t, c.Client, client.SessionOptions{Layers: layers, Direct: direct}), newModel(layers), rng(1)
		snap := func(s *client.Session) *bytes.Buffer {
			t.Helper()
			var b bytes.Buffer
			if err := s.Snapshot(t.Context(), &b, nil); err != nil {
				t.Fatal(err)
			}
			return &b
		}
		grow(t, s, m, r, 3, 70)
		early := snap(s)
		grow(t, s, m, r, 5)
		late := snap(s)
		other, om := open(t, c.Client, client.SessionOptions{Layers: layers, Direct: direct}), newModel(layers)
		grow(t, other, om, rng(2), 73)
		foreign := snap(other)
		asked := map[int]int{} // first position by layer
		rows := func(layer, start, count int) (k, v []float32, _ error) {
			if _, ok := asked[layer]; !ok {
				asked[layer] = start
			}
			kv, vv := layers[layer].KVHeads*layers[layer].HeadDim, layers[layer].KVHeads*m.vDim(layer)
			return m.k[layer][start*kv:][:count*kv], m.v[layer][start*vv:][:count*vv], nil
		}
		if _, err := s.RecoverFrom(t.Context(), bytes.NewReader(foreign.Bytes()), rows); !errors.Is(err, client.ErrRefused) {
			t.Errorf("of another session's snapshot: %v", err)
		}
		if _, err := s.RecoverFrom(t.Context(), bytes.NewReader(early.Bytes()), nil); !errors.Is(err, client.ErrRefused) {
			t.Errorf("without the rows after the snapshot: %v", err)
		}
		if _, err := s.RecoverFrom(t.Context(), bytes.NewReader(early.Bytes()[:100]), rows); !errors.Is(err, client.ErrSnapshot) {
			t.Errorf("of a snapshot that is cut off: %v", err)
		}
		if all, err := c.Sessions(t.Context()); err != nil || len(all.Sessions) != 2 {
			t.Fatalf("%d sessions are held, not 2: %v", len(all.Sessions), err)
		}
		clear(asked)
		next, err := s.RecoverFrom(t.Context(), early, rows)
		if err != nil {
			t.Fatal(err)
		}
		for l := range layers {
			if asked[l] != 73 {
				t.Errorf("layer %d: rows are asked from position %d on", l, asked[l])
			}
		}
		if next.Len() != 78 {
			t.Fatalf("%d positions", next.Len())
		}
		grow(t, next, m, r, 1)
		if err := next.Truncate(t.Context(), 75); err != nil {
			t.Fatal(err)
		}
		m.truncate(75)
		last, err := next.RecoverFrom(t.Context(), late, nil)
		if err != nil {
			t.Fatal(err)
		}
		grow(t, last, m, r, 2)
	})
}

// TestASessionInStripesRecoversFromASnapshot: a snapshot does not say how a session is held, and the recovered one is held as it was.
func TestASessionInStripesRecoversFromASnapshot(t *testing.T) {
	many := startWorkers(t, t.TempDir(), 3, 1, 1<<28, time.Hour, nil)
	defer many.stop(t)
	own := dial(t, many.address())
	for _, direct := range []bool{false, true} {
		s, m, r := open(t, own, client.SessionOptions{Layers: layers, Direct: direct, Stripes: 3}), newModel(layers), rng(1)
		grow(t, s, m, r, 70)
		var snapshot bytes.Buffer
		if err := s.Snapshot(t.Context(), &snapshot, nil); err != nil {
			t.Fatal(err)
		}
		grow(t, s, m, r, 5)
		next, err := s.RecoverFrom(t.Context(), &snapshot, func(layer, start, count int) (k, v []float32, _ error) {
			kv, vv := layers[layer].KVHeads*layers[layer].HeadDim, layers[layer].KVHeads*m.vDim(layer)
			return m.k[layer][start*kv:][:count*kv], m.v[layer][start*vv:][:count*vv], nil
		})
		if err != nil {
			t.Fatalf("direct %v: %v", direct, err)
		}
		grow(t, next, m, r, 1)
	}
}
