package contextframe_test

import (
	"encoding/binary"
	"fmt"
	"math"
	"math/rand/v2"
	"path/filepath"
	"testing"

	"github.com/klauspost/compress/huff0"
	"github.com/klauspost/compress/s2"
	"github.com/klauspost/compress/zstd"

	"headwater.example/tensor"
)

// answer is one group's part of a layer: what a frame is made of.
type answer struct {
	tokens, heads, vDim int
	context, lse        []float32
}

// smollm2 reads the true contexts of the fixtures, group by group, rounded to float32.
func smollm2(tb testing.TB) []answer {
	tb.Helper()
	f, err := tensor.Open(filepath.Join("..", "..", "test", "data", "smollm2", "attention.truth.safetensors"))
	if err != nil {
		tb.Fatal(err)
	}
	defer f.Close()
	read := func(name string) ([]float32, []int) {
		info, ok := f.Lookup(name)
		if !ok || info.DType != tensor.F64 {
			tb.Fatalf("fixture has no %s in F64", name)
		}
		b := make([]byte, info.Bytes())
		if err := f.ReadAt(b, name, 0); err != nil {
			tb.Fatal(err)
		}
		out := make([]float32, info.Elements())
		for i := range out {
			out[i] = float32(math.Float64frombits(binary.LittleEndian.Uint64(b[8*i:])))
		}
		return out, info.Shape
	}
	const groupSize = 3
	var answers []answer
	for _, layer := range []int{3, 17} {
		context, shape := read(fmt.Sprintf("layers.%d.context", layer))
		lse, _ := read(fmt.Sprintf("layers.%d.lse", layer))
		tokens, heads, vDim := shape[0], shape[1], shape[2]
		for first := 0; first < heads; first += groupSize {
			a := answer{tokens: tokens, heads: groupSize, vDim: vDim}
			for t := range tokens {
				at := t*heads + first
				a.context = append(a.context, context[at*vDim:(at+groupSize)*vDim]...)
				a.lse = append(a.lse, lse[at:at+groupSize]...)
			}
			answers = append(answers, a)
		}
	}
	return answers
}

// mixture attends with softmax weights of normal scores of this spread over normal rows of v whose channels differ in
// mean and size, as those of models do.
func mixture(seed uint64, spread float64, tokens, heads, vDim int) answer {
	const positions = 96
	r := rand.New(rand.NewPCG(seed, 0))
	mean, size := make([]float64, vDim), make([]float64, vDim)
	for i := range vDim {
		mean[i], size[i] = r.NormFloat64()/2, math.Exp(r.NormFloat64())
	}
	v := make([]float64, positions*vDim)
	for i := range v {
		v[i] = mean[i%vDim] + size[i%vDim]*r.NormFloat64()
	}
	a := answer{tokens: tokens, heads: heads, vDim: vDim}
	row := make([]float64, vDim)
	for range tokens * heads {
		clear(row)
		sum := 0.0
		for t := range positions {
			p := math.Exp(spread * r.NormFloat64())
			sum += p
			for i := range row {
				row[i] += p * v[t*vDim+i]
			}
		}
		for i := range row {
			a.context = append(a.context, float32(row[i]/sum))
		}
		a.lse = append(a.lse, float32(math.Log(sum)))
	}
	return a
}

// repeated is what padding gives: the same few rows again and again.
func repeated(a answer) answer {
	n := 4 * a.heads * a.vDim
	for i := range a.context {
		a.context[i] = a.context[i%n]
	}
	return a
}

func inputs(tb testing.TB) map[string][]answer {
	return map[string][]answer{
		"smollm2":   smollm2(tb),
		"mix-0.3":   {mixture(1, 0.3, 512, 4, 128)},
		"mix-3":     {mixture(2, 3, 512, 4, 128)},
		"one-token": {mixture(3, 1, 1, 4, 128)},
		"padding":   {repeated(mixture(4, 1, 512, 4, 128))},
	}
}

var inputNames = []string{"smollm2", "mix-0.3", "mix-3", "one-token", "padding"}

// method codes a plane on its own, as far as it pays.
type method struct {
	name string
	size func(plane []byte) int
}

func methods(tb testing.TB) []method {
	var s huff0.Scratch
	s.Reuse = huff0.ReusePolicyNone
	var buf []byte
	z := func(level zstd.EncoderLevel) func([]byte) int {
		e, err := zstd.NewWriter(nil, zstd.WithEncoderLevel(level), zstd.WithEncoderConcurrency(1), zstd.WithEncoderCRC(false))
		if err != nil {
			tb.Fatal(err)
		}
		return func(p []byte) int {
			buf = e.EncodeAll(p, buf[:0])
			return len(buf)
		}
	}
	return []method{
		{"huff0", func(p []byte) int {
			n := 0
			for ; len(p) > 0; p = p[min(len(p), 1<<15):] {
				b := p[:min(len(p), 1<<15)]
				if out, _, err := huff0.Compress4X(b, &s); err == nil {
					n += len(out)
				} else {
					n += len(b)
				}
			}
			return n
		}},
		{"s2", func(p []byte) int {
			buf = s2.Encode(buf[:cap(buf)], p)
			return len(buf)
		}},
		{"s2-better", func(p []byte) int {
			buf = s2.EncodeBetter(buf[:cap(buf)], p)
			return len(buf)
		}},
		{"zstd-1", z(zstd.SpeedFastest)},
		{"zstd-2", z(zstd.SpeedDefault)},
	}
}

// plane returns byte k of every element.
func (a answer) plane(k int) []byte {
	p := make([]byte, len(a.context))
	for i, v := range a.context {
		p[i] = byte(math.Float32bits(v) >> (8 * k))
	}
	return p
}

// BenchmarkMethods compares what could code the planes, the highest and the two below it; see docs/wire.md.
func BenchmarkMethods(b *testing.B) {
	all := inputs(b)
	for _, name := range inputNames {
		for _, m := range methods(b) {
			for _, k := range []int{3, 2, 0} {
				b.Run(fmt.Sprintf("%s/plane=%d/%s", name, k, m.name), func(b *testing.B) {
					var planes [][]byte
					raw := 0
					for _, a := range all[name] {
						p := a.plane(k)
						planes = append(planes, p)
						raw += len(p)
					}
					b.SetBytes(int64(raw))
					coded := 0
					for b.Loop() {
						coded = 0
						for _, p := range planes {
							coded += m.size(p)
						}
					}
					b.ReportMetric(float64(raw)/float64(coded), "ratio")
				})
			}
		}
	}
}

// BenchmarkTransforms compares what could be done to elements before they are split, by the ratio that huff0 on each
// plane gives; see docs/wire.md.
func BenchmarkTransforms(b *testing.B) {
	all := inputs(b)
	huff := methods(b)[0]
	for _, name := range inputNames {
		for _, tr := range []struct {
			name string
			bits func(now, before uint32) uint32 // of an element and of the same one of the token before
		}{
			{"none", func(now, _ uint32) uint32 { return now }},
			{"sign-last", func(now, _ uint32) uint32 { return now<<1 | now>>31 }},
			{"xor-token", func(now, before uint32) uint32 { return now ^ before }},
			{"sub-token", func(now, before uint32) uint32 { d := now - before; return d<<1 ^ uint32(int32(d)>>31) }},
		} {
			b.Run(name+"/"+tr.name, func(b *testing.B) {
				raw, coded := 0, 0
				for b.Loop() {
					raw, coded = 0, 0
					for _, a := range all[name] {
						t := answer{context: make([]float32, len(a.context))}
						for i, v := range a.context {
							before := uint32(0)
							if j := i - a.heads*a.vDim; j >= 0 {
								before = math.Float32bits(a.context[j])
							}
							t.context[i] = math.Float32frombits(tr.bits(math.Float32bits(v), before))
						}
						for k := range 4 {
							p := t.plane(k)
							raw += len(p)
							coded += min(len(p), huff.size(p))
						}
					}
				}
				b.ReportMetric(float64(raw)/float64(coded), "ratio")
			})
		}
	}
}
