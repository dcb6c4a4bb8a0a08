package machine

import (
	"bytes"
	"log/slog"
	"strings"
	"testing"

	"headwater.example/attention"
	"headwater.example/shard"
	"headwater.example/tensor"
)

// TestSlowerArithmeticIsSaidOnce: layers in chain say nothing, and those in tiles where there is no matrix unit one line in all.
func TestSlowerArithmeticIsSaidOnce(t *testing.T) {
	was := attention.KernelName()
	if err := attention.SelectKernel("portable"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := attention.SelectKernel(was); err != nil {
			t.Error(err)
		}
	})
	var log bytes.Buffer
	m := New(Config{Name: "w1", Budget: 64 << 20, Threads: 1, Logger: slog.New(slog.NewTextHandler(&log, nil))})
	defer m.Close()
	chain, err := shard.NewLayerSpec(shard.LayerShape{Heads: 2, KVHeads: 1, HeadDim: 8, VDim: 8}, tensor.BF16, attention.DefaultOptions(8))
	if err != nil {
		t.Fatal(err)
	}
	tiles, err := chain.WithArithmetic(attention.Tiles)
	if err != nil {
		t.Fatal(err)
	}
	m.Take()
	m.Take(chain, chain)
	if log.Len() != 0 {
		t.Errorf("of chain it says %s", &log)
	}
	for range 2 {
		m.Take(chain, tiles)
	}
	if text := log.String(); strings.Count(text, "\n") != 1 || !strings.Contains(text, "arithmetic in tiles is slower") || !strings.Contains(text, "kernel=portable") {
		t.Errorf("it says %q", text)
	}
}
