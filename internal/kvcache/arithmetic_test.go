package kvcache

import (
	"encoding/binary"
	"math"
	"strings"
	"testing"

	"headwater.example/attention"
	"headwater.example/tensor"
)

// inTiles is a config of one layer and group of bf16 in tiles.
func inTiles(t *testing.T, dim int) (Config, []HeldLayer) {
	t.Helper()
	cfg, held := uniform(t, 1, 1, dim, tensor.BF16)
	var err error
	if cfg.Layers[0], err = cfg.Layers[0].WithArithmetic(attention.Tiles); err != nil {
		t.Fatal(err)
	}
	return cfg, held
}

// TestArithmeticsShareNoPrefix: a prefix belongs to the arithmetic in which its keys and values were made.
func TestArithmeticsShareNoPrefix(t *testing.T) {
	tiles, held := inTiles(t, 4)
	chain, _ := uniform(t, 1, 1, 4, tensor.BF16)
	st := NewStore(StoreConfig{Budget: NewBudget(1 << 30)})
	text := make([]uint32, 200)
	create(t, st, SessionID{1}, tiles, held, text)
	grow(t, st, SessionID{1}, 200, text)
	for i, c := range []struct {
		config Config
		want   uint64
	}{{tiles, 192}, {chain, 0}} {
		if got := create(t, st, SessionID{2, byte(i)}, c.config, held, text).Layers[0].Length; got != c.want {
			t.Errorf("%s: %d positions are found, want %d", c.config.Layers[0].Arithmetic(), got, c.want)
		}
	}
}

// TestTilesHashWhatTheyStore: what is below 2⁻⁵⁶ is stored and hashed as 0, in whichever encoding it comes and when it comes again;
// what is not below 2⁶³ is refused.
func TestTilesHashWhatTheyStore(t *testing.T) {
	st := NewStore(StoreConfig{Budget: NewBudget(1 << 30)})
	f32 := func(x ...float32) (b []byte) {
		for _, v := range x {
			b = binary.LittleEndian.AppendUint32(b, math.Float32bits(v))
		}
		return b
	}
	bf16 := func(x ...float32) []byte {
		b := make([]byte, 2*len(x))
		if err := tensor.Narrow(b, x, tensor.BF16); err != nil {
			t.Fatal(err)
		}
		return b
	}
	cfg, held := inTiles(t, 2)
	put := func(id SessionID, encoding tensor.DType, k, v []byte) (uint64, error) {
		state, err := st.look(id)
		if err != nil {
			t.Fatal(err)
		}
		a := Append{Session: id, Epoch: state.Epoch, Hashes: []uint64{0}, Positions: 1, Encoding: encoding, K: k, V: v}
		_, hashes, err := st.put(&a, nil)
		if err != nil {
			return 0, err
		}
		// The same append again is there already.
		if _, again, err := st.put(&a, nil); err != nil || again[0] != hashes[0] {
			t.Fatalf("again: %x, %v", again, err)
		}
		return hashes[0], nil
	}
	var want uint64
	for i, rows := range []struct {
		encoding tensor.DType
		k, v     []byte
	}{
		{tensor.BF16, bf16(1, 0), bf16(0, 2)},
		{tensor.BF16, bf16(1, 0x1p-57), bf16(-0x1p-60, 2)},
		{tensor.F32, f32(1, -0x1p-57), f32(0x1p-140, 2)},
	} {
		id := SessionID{1, byte(i)}
		create(t, st, id, cfg, held, nil)
		hash, err := put(id, rows.encoding, rows.k, rows.v)
		if err != nil {
			t.Fatal(err)
		}
		if i == 0 {
			want = hash
		} else if hash != want {
			t.Errorf("rows %d: hash %x, not %x", i, hash, want)
		}
	}
	for i, encoding := range []tensor.DType{tensor.BF16, tensor.F32} {
		id := SessionID{2, byte(i)}
		create(t, st, id, cfg, held, nil)
		rows := bf16
		if encoding == tensor.F32 {
			rows = f32
		}
		if _, err := put(id, encoding, rows(1, 0x1p63), rows(1, 1)); reasonOf(err) != Invalid || !strings.Contains(err.Error(), "keys: arithmetic tiles: element 1 is not below 2⁶³") {
			t.Errorf("%s: %v", encoding, err)
		}
	}
}
