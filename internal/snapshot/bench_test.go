package snapshot

import (
	"bytes"
	"errors"
	"io"
	"math/rand/v2"
	"testing"

	"headwater.example/attention"
	"headwater.example/shard"
	"headwater.example/tensor"
)

// BenchmarkSnapshot writes and reads blocks of normal keys and values in bfloat16; bytes are those of keys and values.
func BenchmarkSnapshot(b *testing.B) {
	header := Header{Layers: []Layer{{LayerSpec: shard.LayerSpec{Heads: 32, KVHeads: 8, Layout: mustLayout(b, tensor.BF16, 128, 128), Options: attention.DefaultOptions(128)}, Length: 8192}}}
	r := rand.New(rand.NewPCG(1, 2))
	c := fill(b, header, r, func(most int) int { return most }, 0)
	for i := range c.blocks {
		for _, rows := range [][]byte{c.blocks[i].K, c.blocks[i].V} {
			if err := tensor.Narrow(rows, floats(r, len(rows)/2), tensor.BF16); err != nil {
				b.Fatal(err)
			}
		}
	}
	file := c.write(b)
	b.Run("write", func(b *testing.B) {
		b.SetBytes(header.Bytes())
		for b.Loop() {
			w, err := NewWriter(io.Discard, &c.header)
			if err != nil {
				b.Fatal(err)
			}
			for i := range c.blocks {
				if err := w.Write(&c.blocks[i]); err != nil {
					b.Fatal(err)
				}
			}
			if err := w.Close(c.after); err != nil {
				b.Fatal(err)
			}
		}
		b.ReportMetric(float64(len(file))/float64(header.Bytes()), "of-size")
	})
	b.Run("read", func(b *testing.B) {
		b.SetBytes(header.Bytes())
		for b.Loop() {
			s, err := NewReader(bytes.NewReader(file))
			if err != nil {
				b.Fatal(err)
			}
			for err == nil {
				_, err = s.Next()
			}
			if !errors.Is(err, io.EOF) {
				b.Fatal(err)
			}
			s.Close()
		}
	})
}
