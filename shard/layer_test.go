package shard_test

import (
	"testing"

	"headwater.example/attention"
	"headwater.example/shard"
	"headwater.example/tensor"
)

// TestStorageTypesAreThoseOfPages: what has a number and a name can be laid out in pages, and nothing else can.
func TestStorageTypesAreThoseOfPages(t *testing.T) {
	for dtype := tensor.Bool; dtype <= tensor.F64; dtype++ {
		number := shard.StorageNumber(dtype)
		_, err := attention.NewLayout(dtype, 8, 8)
		if (err == nil) != (number != 0) {
			t.Errorf("%s has number %d, its layout: %v", dtype, number, err)
		}
		if number == 0 {
			continue
		}
		byNumber, err := shard.StorageByNumber(number)
		byName, failed := shard.ParseStorage(shard.StorageName(dtype))
		if err != nil || failed != nil || byNumber != dtype || byName != dtype {
			t.Errorf("%s comes back as %s and %s: %v, %v", dtype, byNumber, byName, err, failed)
		}
	}
	for _, number := range []uint8{0, 5, 255} {
		if dtype, err := shard.StorageByNumber(number); err == nil {
			t.Errorf("number %d is %s", number, dtype)
		}
	}
	if _, err := shard.ParseStorage("i8"); err == nil || err.Error() != `storage type "i8" is none of f32, f16, bf16, int8` {
		t.Error(err)
	}
}

// TestLayersAreCheckedWhenMade: a layer that was not made by NewLayerSpec does not pass.
func TestLayersAreCheckedWhenMade(t *testing.T) {
	shape := shard.LayerShape{Heads: 4, KVHeads: 2, HeadDim: 8, VDim: 3}
	l, err := shard.NewLayerSpec(shape, tensor.I8, attention.DefaultOptions(8))
	if err != nil || l.Check() != nil || l.Shape() != shape || l.GroupSize() != 2 || l.Storage() != tensor.I8 || l.Windowed() {
		t.Fatalf("%+v: %v", l, err)
	}
	if err := new(shard.LayerSpec).Check(); err == nil {
		t.Error("a layer of nothing passes")
	}
	for _, dtype := range []tensor.DType{0, tensor.F64, tensor.U8} {
		if _, err := shard.NewLayerSpec(shape, dtype, attention.DefaultOptions(8)); err == nil {
			t.Errorf("a layer of %s is made", dtype)
		}
	}
	shape.KVHeads = 0
	if _, err := shard.NewLayerSpec(shape, tensor.F32, attention.DefaultOptions(8)); err == nil || err.Error() != "n_kv_heads: 0 is not in 1 to 4" {
		t.Error(err)
	}
}
