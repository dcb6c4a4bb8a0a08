package kvcache

import (
	"bytes"
	"slices"
	"testing"

	"pgregory.net/rapid"

	"headwater.example/tensor"
)

// TestLayersAreCutOneByOne appends to layers and cuts each to a length of its own. What is held is what plain slices hold,
// with the hashes that were told at that length, on no page more than it needs.
func TestLayersAreCutOneByOne(t *testing.T) {
	const layers, groups, dim = 3, 2, 4
	cfg, held := uniform(t, layers, groups, dim, tensor.F32)
	page := int64(cfg.Layers[0].Layout.PageBytes())
	rapid.Check(t, func(t *rapid.T) {
		st := NewStore(StoreConfig{Budget: NewBudget(1000 * page)})
		id := SessionID{1}
		create(t, st, id, cfg, held, nil)
		var (
			truncations uint64
			rows        [layers][][]byte   // by layer and position: k of each group, then v of each
			told        [layers][][]uint64 // hashes at each length from 0 on
		)
		for l := range told {
			told[l] = [][]uint64{make([]uint64, groups)}
		}
		for range rapid.IntRange(1, 30).Draw(t, "moves") {
			if rapid.IntRange(0, 3).Draw(t, "what") > 0 {
				l := rapid.IntRange(0, layers-1).Draw(t, "layer")
				for range rapid.SampledFrom([]int{1, 2, 63, 64, 65, 130}).Draw(t, "n") {
					n := len(rows[l])
					row := bytes.Repeat([]byte{byte(rapid.IntRange(0, 100).Draw(t, "value")), 0, 0, byte(l)}, 2*groups*dim)
					a := Append{
						Session: id, Epoch: first, Truncations: truncations, Layer: held[l].Layer, Length: uint64(n), Hashes: told[l][n], Positions: 1,
						Encoding: tensor.F32, K: row[:len(row)/2], V: row[len(row)/2:],
					}
					_, hashes, err := st.put(&a, nil)
					if err != nil {
						t.Fatal(err)
					}
					rows[l], told[l] = append(rows[l], row), append(told[l], hashes)
				}
			} else {
				to := make([]uint64, layers)
				for l := range to {
					to[l] = uint64(rapid.IntRange(0, len(rows[l])+2).Draw(t, "length"))
				}
				for range 2 { // the second time it is a repeat
					if _, err := st.cut(id, first, truncations, 0, to); err != nil {
						t.Fatal(err)
					}
				}
				late, err := st.Peek(id)
				if err != nil {
					t.Fatal(err)
				}
				if _, err := st.Truncate(t.Context(), &TruncateRequest{Session: id, Epoch: first, Truncations: truncations, ID: 1 << 40, Expect: late.Layers}); reasonOf(err) != OtherTruncations {
					t.Fatalf("a late truncation: %v", err)
				}
				truncations++
				for l := range to {
					n := min(int(to[l]), len(rows[l]))
					rows[l], told[l] = rows[l][:n], told[l][:n+1]
				}
			}
			state, err := st.look(id)
			if err != nil || state.Truncations != truncations {
				t.Fatalf("%v: %v", state, err)
			}
			pages := 0
			for l, have := range state.Layers {
				n := len(rows[l])
				pages += pagesOf(n) * groups
				if have.Length != uint64(n) || !slices.Equal(have.Hashes, told[l][n]) {
					t.Fatalf("layer %d has %d positions with %x, want %d with %x", l, have.Length, have.Hashes, n, told[l][n])
				}
				for g := range groups {
					if n == 0 {
						break
					}
					got := makeRows(cfg.Layers[l].Layout, n)
					if _, _, err := st.Export(id, have.Layer, held[l].Groups[g], 0, n, got); err != nil {
						t.Fatal(err)
					}
					for p, row := range rows[l] {
						if size := 4 * dim; !bytes.Equal(got.K[p*size:][:size], row[g*size:][:size]) || !bytes.Equal(got.V[p*size:][:size], row[(groups+g)*size:][:size]) {
							t.Fatalf("layer %d group %d: position %d is another", l, g, p)
						}
					}
				}
			}
			if used := st.Cache().UsedBytes; used != int64(pages)*page {
				t.Fatalf("%d bytes are in use, want %d pages of %d", used, pages, page)
			}
			audit(t, st, nil)
		}
	})
}

// TestLayersOfASharedRowAreCut cuts one layer where a fork shares the row: the fork keeps what it has, and both go on.
func TestLayersOfASharedRowAreCut(t *testing.T) {
	cfg, held := uniform(t, 2, 1, 4, tensor.F32)
	st := NewStore(StoreConfig{Budget: NewBudget(1 << 24)})
	create(t, st, SessionID{1}, cfg, held, nil)
	grow(t, st, SessionID{1}, 130, nil)
	if _, err := st.branch(ForkRequest{Session: SessionID{1}, Epoch: first, Child: SessionID{2}, ChildEpoch: first, Position: -1}); err != nil {
		t.Fatal(err)
	}
	if _, err := st.cut(SessionID{1}, first, 0, 0, []uint64{130, 10}); err != nil {
		t.Fatal(err)
	}
	if _, err := st.cut(SessionID{1}, first, 1, 0, []uint64{130}); reasonOf(err) != Invalid {
		t.Fatalf("lengths of one of two layers: %v", err)
	}
	grow(t, st, SessionID{1}, 200, nil)
	grow(t, st, SessionID{2}, 1, nil)
	// Zeros chain alike in every layer, so one that grows tells what each hash must be.
	plain := NewStore(StoreConfig{Budget: NewBudget(1 << 24)})
	own := create(t, plain, SessionID{3}, cfg, held, nil)
	for _, want := range []struct {
		id     SessionID
		layer  int
		length uint64
	}{{SessionID{2}, 0, 131}, {SessionID{2}, 1, 131}, {SessionID{1}, 1, 210}, {SessionID{1}, 0, 330}} {
		if n := want.length - own.Layers[0].Length; n > 0 {
			grow(t, plain, SessionID{3}, int(n), nil)
		}
		var err error
		if own, err = plain.look(SessionID{3}); err != nil {
			t.Fatal(err)
		}
		state, err := st.look(want.id)
		if err != nil {
			t.Fatal(err)
		}
		if have := state.Layers[want.layer]; have.Length != want.length || !slices.Equal(have.Hashes, own.Layers[0].Hashes) {
			t.Errorf("session %s, layer %d: %d positions with %x, want %d with %x", want.id, want.layer, have.Length, have.Hashes, want.length, own.Layers[0].Hashes)
		}
	}
	st.Close()
	if used := st.Cache().UsedBytes; used != 0 {
		t.Errorf("%d bytes are left", used)
	}
}

// TestAFreedLayerDoesNotBeginAnewAlone: what has left its window is gone for all layers or for none.
func TestAFreedLayerDoesNotBeginAnewAlone(t *testing.T) {
	cfg, held := uniform(t, 2, 1, 4, tensor.F32)
	cfg.Layers[1] = testLayer(t, tensor.F32, 1, 1, 4, 4, 70)
	st := NewStore(StoreConfig{Budget: NewBudget(1 << 24)})
	create(t, st, SessionID{1}, cfg, held, nil)
	for range 300 {
		grow(t, st, SessionID{1}, 1, nil)
	}
	if _, err := st.cut(SessionID{1}, first, 0, 0, []uint64{300, 0}); reasonOf(err) != Freed {
		t.Fatalf("got %v", err)
	}
	if _, err := st.cut(SessionID{1}, first, 0, 0, []uint64{200, 299}); err != nil {
		t.Fatal(err)
	}
	if _, err := st.cut(SessionID{1}, first, 1, 0, []uint64{0, 0}); err != nil {
		t.Fatal(err)
	}
	grow(t, st, SessionID{1}, 1, nil)
}
