package kvcache

import (
	"encoding/binary"
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"time"

	"github.com/zeebo/xxh3"
	"pgregory.net/rapid"

	"headwater.example/attention"
	"headwater.example/shard"
	"headwater.example/tensor"
)

// testShape is a config with a holding, and what there is to say of its layers.
type testShape struct {
	config Config
	held   []HeldLayer
}

func testLayer(t interface{ Fatal(...any) }, dt tensor.DType, heads, kvHeads, headDim, vDim int, window int64) shard.LayerSpec {
	o := attention.DefaultOptions(headDim)
	o.Causal, o.WindowLeft = true, window
	return shard.LayerSpec{Heads: heads, KVHeads: kvHeads, Layout: mustLayout(t, dt, headDim, vDim), Options: o}
}

// testShapes differ in what may be confused: storage, windows, held groups, tenants. The first and the last two could share
// prefixes but for the tenant, or the groups.
func testShapes(t interface{ Fatal(...any) }) []testShape {
	plain := []shard.LayerSpec{testLayer(t, tensor.F16, 4, 2, 4, 3, -1), testLayer(t, tensor.F32, 2, 1, 2, 2, -1)}
	all := []HeldLayer{{Layer: 0, Groups: []shard.Group{0, 1}}, {Layer: 1, Groups: []shard.Group{0}}}
	mixed := []shard.LayerSpec{testLayer(t, tensor.I8, 2, 2, 3, 5, 20), testLayer(t, tensor.BF16, 2, 2, 4, 4, -1), testLayer(t, tensor.BF16, 1, 1, 4, 4, -1)}
	windows := []shard.LayerSpec{testLayer(t, tensor.F32, 1, 1, 2, 1, 0), testLayer(t, tensor.F16, 3, 1, 2, 1, 70)}
	return []testShape{
		{Config{Layers: plain, Tenant: "a", Model: []byte("m")}, all},
		{Config{Layers: mixed, Tenant: "a", Model: []byte("m")}, []HeldLayer{{Layer: 0, Groups: []shard.Group{1}}, {Layer: 1, Groups: []shard.Group{0, 1}}}},
		{Config{Layers: windows, Tenant: "b", Model: []byte("m")}, []HeldLayer{{Layer: 0, Groups: []shard.Group{0}}, {Layer: 1, Groups: []shard.Group{0}}}},
		{Config{Layers: plain, Tenant: "b", Model: []byte("m")}, all},
		{Config{Layers: plain, Tenant: "a", Model: []byte("m")}, []HeldLayer{{Layer: 0, Groups: []shard.Group{1}}}},
	}
}

// position is what one group has stored at one position, and the chained hash after it.
type position struct {
	k, v           []byte
	kScale, vScale float32
	hash           uint64
}

// modelLayer is one held layer of a model's session: what its groups have, [groups][length].
type modelLayer struct {
	layer  shard.Layer
	config shard.LayerSpec
	groups []shard.Group
	kept   [][]position
	// freed is the most pages that may have left the window.
	freed int
}

func (l *modelLayer) length() int { return len(l.kept[0]) }

// seenFrom is the first position that a query at `at` sees.
func (l *modelLayer) seenFrom(at int) int {
	if w := l.config.Options.WindowLeft; w >= 0 {
		return max(at-int(w), 0)
	}
	return 0
}

// modelSession is a session as a plain map of slices.
type modelSession struct {
	id          SessionID
	shape       int
	epoch       Epoch
	truncations uint64
	layers      []modelLayer
	salt        uint64   // of sessions that tell no tokens
	text        []uint32 // what its tokens are, as far as they are known
	tells       bool
	pinned      bool
	used        time.Time
}

func (m *modelSession) clone() *modelSession {
	c := *m
	c.text = slices.Clone(m.text)
	c.layers = slices.Clone(m.layers)
	for i := range c.layers {
		c.layers[i].kept = slices.Clone(m.layers[i].kept)
		for g := range c.layers[i].kept {
			c.layers[i].kept[g] = slices.Clone(c.layers[i].kept[g])
		}
	}
	return &c
}

func (m *modelSession) cut(n int) {
	for i := range m.layers {
		l := &m.layers[i]
		for g := range l.kept {
			l.kept[g] = l.kept[g][:min(n, len(l.kept[g]))]
		}
		if n == 0 {
			l.freed = 0
		}
	}
	m.text = m.text[:min(n, len(m.text))]
}

func (m *modelSession) least() int {
	n := math.MaxInt
	for _, l := range m.layers {
		n = min(n, l.length())
	}
	return n
}

// draw makes the values of one position: a function of its place and, for sessions that tell their tokens, of them.
func (m *modelSession) draw(l *modelLayer, group, at int) (k, v []float32) {
	h := xxh3.New()
	fmt.Fprintln(h, m.shape, l.layer, l.groups[group], at, m.salt)
	if m.tells {
		fmt.Fprintln(h, m.text[:at+1])
	}
	r := rand.New(rand.NewPCG(h.Sum64(), 1))
	values := func(n int) []float32 {
		x := make([]float32, n)
		for i := range x {
			x[i] = float32(r.NormFloat64())
		}
		return x
	}
	return values(l.config.Layout.HeadDim()), values(l.config.Layout.VDim())
}

// store narrows a position as docs/numerics.md says, and chains its hash as docs/sessions.md says.
func store(t *rapid.T, layout attention.Layout, k, v []float32, at int, before uint64) position {
	var p position
	narrow := func(x []float32) (b []byte, scale float32) {
		b = make([]byte, len(x)*layout.DType().Size())
		if layout.DType() == tensor.I8 {
			q := make([]int8, len(x))
			scale = tensor.QuantizeI8(q, x)
			for i := range q {
				b[i] = byte(q[i])
			}
			return b, scale
		}
		if err := tensor.Narrow(b, x, layout.DType()); err != nil {
			t.Fatal(err)
		}
		return b, 0
	}
	p.k, p.kScale = narrow(k)
	p.v, p.vScale = narrow(v)
	b := binary.LittleEndian.AppendUint64(nil, before)
	b = binary.LittleEndian.AppendUint64(b, uint64(at))
	b = append(append(b, p.k...), p.v...)
	if layout.DType() == tensor.I8 {
		b = binary.LittleEndian.AppendUint32(b, math.Float32bits(p.kScale))
		b = binary.LittleEndian.AppendUint32(b, math.Float32bits(p.vScale))
	}
	p.hash = xxh3.Hash(b)
	return p
}

func floatBytes(x ...float32) []byte {
	b := make([]byte, 0, 4*len(x))
	for _, f := range x {
		b = binary.LittleEndian.AppendUint32(b, math.Float32bits(f))
	}
	return b
}
