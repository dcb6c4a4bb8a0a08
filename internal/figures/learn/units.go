package main

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"path/filepath"

	"headwater.example/attention"
	"headwater.example/attention/reference"
	"headwater.example/internal/jobfile"
	"headwater.example/tensor"
)

// units is the largest error of the gradients of one problem.
type units struct {
	Problem string  `json:"problem"`
	Units   float64 `json:"units"`
}

// errorsInUnits compares the gradients of the fixture's problems and of drawn ones with the truth.
func errorsInUnits(ctx context.Context, fixtures string) ([]units, error) {
	file, err := tensor.Open(filepath.Join(fixtures, "attention.safetensors"))
	if err != nil {
		return nil, err
	}
	all, err := ofFixture(ctx, file)
	if err := errors.Join(err, file.Close()); err != nil {
		return nil, err
	}
	rnd := rand.New(rand.NewPCG(5, 1))
	for _, spread := range []float32{0.1, 1, 3, 10} {
		for _, positions := range []int{1, 63, 65, 200, 2100} {
			for _, option := range []string{"plain", "causal", "window", "softcap", "alibi", "sinks"} {
				d := draw(rnd, positions, option)
				for i := range d.q {
					d.q[i] *= spread
				}
				u, err := d.units(ctx)
				if err != nil {
					return nil, err
				}
				all = append(all, units{fmt.Sprintf("%s, %d positions, spread %g", option, positions, spread), u})
			}
		}
	}
	return all, nil
}

func draw(rnd *rand.Rand, positions int, option string) drawn {
	d := drawn{tokens: min(positions, 70), positions: positions, heads: 1 + rnd.IntN(5), headDim: []int{32, 64, 80, 128}[rnd.IntN(4)], vDim: []int{16, 64, 128}[rnd.IntN(3)]}
	if positions > 1000 {
		d.tokens, d.heads = 2, 2
	}
	d.offset = int64(positions - d.tokens)
	d.options = attention.DefaultOptions(d.headDim)
	switch option {
	case "causal":
		d.options.Causal = true
	case "window":
		d.options.WindowLeft, d.options.WindowRight = 70, 3
	case "softcap":
		d.options.Softcap = 5
	case "alibi":
		for h := range d.heads {
			d.options.AlibiSlopes = append(d.options.AlibiSlopes, float32(math.Exp2(-float64(h)-1)))
		}
	case "sinks":
		d.options.Sinks = normals(rnd, d.heads)
	}
	rows := d.tokens * d.heads
	d.q, d.k, d.v = normals(rnd, rows*d.headDim), normals(rnd, positions*d.headDim), normals(rnd, positions*d.vDim)
	d.dContext = normals(rnd, rows*d.vDim)
	return d
}

// ofFixture takes the queries, keys and values of a real model, and draws what the loss says.
func ofFixture(ctx context.Context, file *tensor.File) (all []units, err error) {
	job, err := jobfile.Parse(file, nil)
	if err != nil {
		return nil, err
	}
	rnd := rand.New(rand.NewPCG(5, 2))
	for i := range job.Problems {
		p := &job.Problems[i]
		for group := range p.Shape.KVHeads {
			size := p.Shape.GroupSize()
			d := drawn{tokens: p.Tokens, positions: p.KVLen, heads: size, headDim: p.Shape.HeadDim, vDim: p.Shape.VDim, offset: p.Offset, options: p.Options}
			for _, t := range []struct {
				name       string
				heads, dim int
				to         *[]float32
			}{{p.Q, size, d.headDim, &d.q}, {p.K, 1, d.headDim, &d.k}, {p.V, 1, d.vDim, &d.v}} {
				if *t.to, err = columns(file, t.name, group*t.heads*t.dim, t.heads*t.dim); err != nil {
					return nil, err
				}
			}
			d.dContext = normals(rnd, d.tokens*size*d.vDim)
			u, err := d.units(ctx)
			if err != nil {
				return nil, err
			}
			all = append(all, units{fmt.Sprintf("%sgroup %d", p.Prefix, group), u})
		}
	}
	return all, nil
}

// columns reads columns [from, from+n) of a tensor [rows, …].
func columns(file *tensor.File, name string, from, n int) ([]float32, error) {
	info, ok := file.Lookup(name)
	if !ok {
		return nil, fmt.Errorf("%s has no tensor %q", file.Path(), name)
	}
	bytes, wide := make([]byte, info.Bytes()), make([]float32, info.Elements())
	if err := file.ReadAt(bytes, name, 0); err != nil {
		return nil, err
	}
	if err := tensor.Widen(wide, bytes, info.DType); err != nil {
		return nil, err
	}
	var x []float32
	for width, row := len(wide)/info.Shape[0], 0; row < info.Shape[0]; row++ {
		x = append(x, wide[row*width+from:][:n]...)
	}
	return x, nil
}

// units returns the largest error of the problem's gradients.
func (d drawn) units(ctx context.Context) (float64, error) {
	item, err := d.item(ctx, 0)
	if err != nil {
		return 0, err
	}
	p := attention.NewPool(1)
	defer p.Close()
	t, err := p.Acquire(ctx, attention.Foreground)
	if err != nil {
		return 0, err
	}
	defer t.Release()
	if err := t.Differentiate(ctx, []attention.Differentiation{item}); err != nil {
		return 0, err
	}
	o := d.options
	truth := reference.Differentiate(reference.Problem{
		Tokens: d.tokens, KVTokens: d.positions, KVLen: d.positions, Heads: d.heads, KVHeads: 1, HeadDim: d.headDim, VDim: d.vDim,
		Q: wide(d.q), K: wide(d.k), V: wide(d.v), Offset: d.offset, Causal: o.Causal, WindowLeft: o.WindowLeft, WindowRight: o.WindowRight,
		Scale: float64(o.Scale), Softcap: float64(o.Softcap), AlibiSlopes: wide(o.AlibiSlopes), Sinks: wide(o.Sinks),
	}, wide(d.dContext))
	worst := 0.0
	for _, c := range []struct {
		truth reference.Gradient
		got   []float32
	}{{truth.Q, item.Gradients.Q}, {truth.K, item.Gradients.K}, {truth.V, item.Gradients.V}, {truth.Sinks, item.Gradients.Sinks}} {
		u, _ := c.truth.Units(c.got)
		worst = max(worst, u)
	}
	return worst, nil
}

func wide(x []float32) []float64 {
	y := make([]float64, len(x))
	for i, v := range x {
		y[i] = float64(v)
	}
	return y
}

func littleEndian(x []float32) []byte {
	b := make([]byte, 4*len(x))
	for i, v := range x {
		binary.LittleEndian.PutUint32(b[4*i:], math.Float32bits(v))
	}
	return b
}
