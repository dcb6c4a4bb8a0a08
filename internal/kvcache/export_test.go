package kvcache

import (
	"testing"

	"headwater.example/tensor"
)

// TestADamagedPageIsSeen: of a page that was damaged in memory the stored hashes are not those of what is exported, so that whoever
// appends it elsewhere sees it; the computed ones are.
func TestADamagedPageIsSeen(t *testing.T) {
	cfg, held := uniform(t, 1, 1, 8, tensor.F32)
	layout := cfg.Layers[0].Layout
	st := NewStore(StoreConfig{Budget: NewBudget(1 << 20)})
	defer st.Close()
	id := SessionID{1}
	create(t, st, id, cfg, held, nil)
	const n = 200 // three pages and a part of one
	grow(t, st, id, n, nil)
	for _, at := range []int{0, 63, 64, 190, 199} {
		s := st.sessions[id]
		h := &s.shape.layers[0]
		page := h.class.page(s.row(at / 64).pages[0])
		for start, count := range map[int]int{0: 64, 10: 54, 64: 128, 1: 199, 128: 70} {
			stored, computed := makeRows(layout, count), makeRows(layout, count)
			page[4*(at%64)] ^= 1
			_, known, err := st.ExportKnown(id, 0, 0, start, count, stored)
			if err != nil {
				t.Fatal(err)
			}
			before, after, err := st.Export(id, 0, 0, start, count, computed)
			page[4*(at%64)] ^= 1
			if err != nil {
				t.Fatal(err)
			}
			chain := Hasher{receipt: Receipt{Length: uint64(start), Hash: before}}
			if err := chain.Update(stored, count, layout); err != nil {
				t.Fatal(err)
			}
			if chain.receipt.Hash != after {
				t.Errorf("%d positions from %d: the computed hash is not that of the rows", count, start)
			}
			// What is in no whole page, and not up to the session's end, has its hash computed; the hash before is computed from its page on.
			end := start + count
			hit := at >= start/64*64 && at < end && (at < end/64*64 || end == n)
			if seen := chain.receipt.Hash != known; seen != hit {
				t.Errorf("position %d is damaged, %d positions from %d are exported: it is seen %v, want %v", at, count, start, seen, hit)
			}
		}
	}
}
