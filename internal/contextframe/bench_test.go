package contextframe_test

import (
	"fmt"
	"testing"
	"time"

	"headwater.example/internal/contextframe"
)

// BenchmarkFrame measures whole frames: MB/s of raw context and LSE, and how many raw bytes one byte of frame carries.
func BenchmarkFrame(b *testing.B) {
	all := inputs(b)
	for _, name := range inputNames {
		for _, codec := range codecs {
			var frames [][]byte
			raw, coded := int64(0), int64(0)
			for g, a := range all[name] {
				f, err := contextframe.Encode(nil, codec, g, a.tokens, a.heads, a.vDim, a.context, a.lse)
				if err != nil {
					b.Fatal(err)
				}
				frames = append(frames, f)
				raw += int64(4 * (len(a.context) + len(a.lse)))
				coded += int64(len(f))
			}
			ratio := float64(raw) / float64(coded)
			b.Run(fmt.Sprintf("encode/%s/%v", name, codec), func(b *testing.B) {
				b.SetBytes(raw)
				b.ReportAllocs()
				for b.Loop() {
					for g, a := range all[name] {
						f, err := contextframe.Encode(frames[g][:0], codec, g, a.tokens, a.heads, a.vDim, a.context, a.lse)
						if err != nil {
							b.Fatal(err)
						}
						frames[g] = f
					}
				}
				b.ReportMetric(ratio, "ratio")
			})
			b.Run(fmt.Sprintf("decode/%s/%v", name, codec), func(b *testing.B) {
				b.SetBytes(raw)
				b.ReportAllocs()
				contexts, lses := make([][]float32, len(frames)), make([][]float32, len(frames))
				for g, a := range all[name] {
					contexts[g], lses[g] = make([]float32, len(a.context)), make([]float32, len(a.lse))
				}
				for b.Loop() {
					for g, f := range frames {
						if _, err := contextframe.Decode(f, contexts[g], lses[g]); err != nil {
							b.Fatal(err)
						}
					}
				}
			})
		}
	}
}

// BenchmarkLadder measures encode and decode together over frames of 64 rows of a real model's contexts.
func BenchmarkLadder(b *testing.B) {
	blocks := frames64(b)
	for _, codec := range codecs {
		b.Run(codec.String(), func(b *testing.B) {
			m, err := contextframe.Measure(codec, blocks, max(b.N, 5), time.Now)
			if err != nil {
				b.Fatal(err)
			}
			b.ReportMetric(m.Ratio(), "ratio")
			b.ReportMetric(m.Rate()/1e9, "GB/s")
			b.ReportMetric(m.MaxError, "error")
			b.ReportMetric(float64(m.ContextBytes)/m.Encode.Seconds()/1e9, "encode-GB/s")
			b.ReportMetric(float64(m.ContextBytes)/m.Decode.Seconds()/1e9, "decode-GB/s")
		})
	}
}
