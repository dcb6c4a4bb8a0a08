// Package sessionmodel tests sessions of a real cluster against a plain model of them: a map of slices. Walk does random
// things to sessions through the Go client and predicts what comes of each: lengths, receipts, prefixes, snapshots, evictions,
// errors. Every context that comes back is held to the float64 reference as it comes, and by CompareWithJobs to the bits of a job
// over the same tokens.
//
// What a session's positions hold is a function of its tokens alone, so that a prefix that is wrongly shared, a fork that sees
// what it should not, or a page that is used again too early gives another context.
package sessionmodel

import (
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"slices"
	"time"

	"github.com/zeebo/xxh3"
	"pgregory.net/rapid"

	"headwater.example/attention"
	"headwater.example/client"
	"headwater.example/tensor"
)

// whole is a layer with its defaults filled in.
func whole(l client.Layer) client.Layer {
	if l.KVHeads == 0 {
		l.KVHeads = l.Heads
	}
	if l.VDim == 0 {
		l.VDim = l.HeadDim
	}
	if l.Storage == 0 {
		l.Storage = tensor.F32
	}
	return l
}

// position is one position of a layer: what was appended, and what is stored of it. It does not change.
type position struct {
	k, v           []float32 // [n_kv_heads, head_dim] and [n_kv_heads, v_dim]
	storedK        []byte    // alike, in the storage type
	storedV        []byte
	kScale, vScale []float32 // [n_kv_heads]; int8 alone
}

// newPosition draws a position of a layer from a seed.
func newPosition(layer int, l client.Layer, seed uint64) *position {
	r := rand.New(rand.NewPCG(seed, uint64(layer)))
	p := &position{k: normals(r, l.KVHeads*l.HeadDim), v: normals(r, l.KVHeads*l.VDim)}
	p.storedK, p.kScale = store(p.k, l.HeadDim, l.Storage)
	p.storedV, p.vScale = store(p.v, l.VDim, l.Storage)
	return p
}

// store narrows rows of width elements as docs/numerics.md says.
func store(rows []float32, width int, dt tensor.DType) (b []byte, scales []float32) {
	b = make([]byte, len(rows)*dt.Size())
	if dt != tensor.I8 {
		if err := tensor.Narrow(b, rows, dt); err != nil {
			panic(err) // normal values are in every type's range
		}
		return b, nil
	}
	q := make([]int8, width)
	for at := 0; at < len(rows); at += width {
		scales = append(scales, tensor.QuantizeI8(q, rows[at:at+width]))
		for i, x := range q {
			b[at+i] = byte(x)
		}
	}
	return b, scales
}

// widen is what stored rows are worth.
func widen(b []byte, scales []float32, width int, dt tensor.DType) []float64 {
	x := make([]float64, len(b)/dt.Size())
	if dt == tensor.I8 {
		for i := range x {
			x[i] = float64(int8(b[i])) * float64(scales[i/width])
		}
		return x
	}
	f := make([]float32, len(x))
	if err := tensor.Widen(f, b, dt); err != nil {
		panic(err)
	}
	for i := range x {
		x[i] = float64(f[i])
	}
	return x
}

// holder is a worker that holds a part of a session.
type holder struct {
	name   string
	groups string // that it holds, by layer, as text
	layers []int
	used   time.Time
}

// session is a session as a map of slices would have it, beside the client's.
type session struct {
	*client.Session
	driver int // the client that drives it
	name   string
	direct bool
	codec  client.Codec
	layers []client.Layer
	kept   [][]*position // by layer
	// seeds of the positions that any layer has, and of those whose tokens were told before.
	seeds []uint64
	// kin names what sessions must have in common to share prefixes. One that tells its tokens finds and leaves them.
	kin    string
	tells  bool
	tokens []uint32
	branch uint32
	// stripes is in how many each group is held of the layers without a left window; 0 is 1.
	stripes int
	// freed [layers] is how many pages have left a layer's window; of a loose session, at most. One that tells its tokens is
	// loose, and one of which a step was done by some holders alone.
	freed   []int
	loose   bool
	pinned  bool
	ttl     time.Duration
	holders []holder
}

func (s *session) clone() *session {
	c := *s
	c.kept = slices.Clone(s.kept)
	for i := range c.kept {
		c.kept[i] = slices.Clone(c.kept[i])
	}
	c.seeds, c.tokens, c.freed, c.holders = slices.Clone(s.seeds), slices.Clone(s.tokens), slices.Clone(s.freed), slices.Clone(s.holders)
	return &c
}

func (s *session) least() int {
	n := len(s.kept[0])
	for _, l := range s.kept {
		n = min(n, len(l))
	}
	return n
}

func (s *session) longest() int {
	n := 0
	for _, l := range s.kept {
		n = max(n, len(l))
	}
	return n
}

// know makes sure that n positions have seeds. Each seed is of the tokens up to it, or of this session alone.
func (s *session) know(n int, salt func() uint64) {
	for i := len(s.seeds); i < n; i++ {
		if !s.tells {
			s.seeds = append(s.seeds, salt())
			continue
		}
		if i == len(s.tokens) {
			s.tokens = append(s.tokens, uint32(i)+1000*s.branch)
		}
		before := xxh3.HashString(s.kin)
		if i > 0 {
			before = s.seeds[i-1]
		}
		b := binary.LittleEndian.AppendUint64(nil, before)
		s.seeds = append(s.seeds, xxh3.Hash(binary.LittleEndian.AppendUint32(b, s.tokens[i])))
	}
}

// extend adds positions to a layer and returns them.
func (s *session) extend(layer, n int, salt func() uint64) []*position {
	from := len(s.kept[layer])
	s.know(from+n, salt)
	for i := range n {
		s.kept[layer] = append(s.kept[layer], newPosition(layer, s.layers[layer], s.seeds[from+i]))
	}
	return s.kept[layer][from:]
}

func (s *session) cut(n int) {
	for i := range s.kept {
		s.kept[i] = s.kept[i][:min(n, len(s.kept[i]))]
	}
	s.seeds, s.tokens = s.seeds[:min(n, len(s.seeds))], s.tokens[:min(n, len(s.tokens))]
	if n == 0 {
		clear(s.freed)
	}
}

// seenFrom is the first page that a query at a position sees.
func (s *session) seenFrom(layer, at int) int {
	if w, bounded := s.layers[layer].WindowLeft.Positions(); bounded {
		return max(at-w, 0) / attention.PageLen
	}
	return 0
}

// lacks says whether a session that is cut to n lacks, or if it is loose may lack, positions that are seen from there.
func (s *session) lacks(n int) bool {
	for l, kept := range s.kept {
		if n > 0 && n < len(kept) && s.seenFrom(l, n) < s.freed[l] {
			return true
		}
	}
	return false
}

// use notes that the holders of a layer, or all where it is less than 0, were asked.
func (s *session) use(layer int, now time.Time) {
	for i := range s.holders {
		if layer < 0 || slices.Contains(s.holders[i].layers, layer) {
			s.holders[i].used = now
		}
	}
}

// idleFor is how long a session goes unused before a worker may drop it for want of room, if no lane drives it.
const idleFor = time.Minute

// stale says whether a holder may drop its part for want of room. The model does not know which lanes are open.
func (s *session) stale(now time.Time) bool {
	return !s.pinned && slices.ContainsFunc(s.holders, func(h holder) bool { return now.Sub(h.used) >= min(s.ttl, idleFor) })
}

// drawLayer draws a layer of any geometry, storage and options.
func drawLayer(t *rapid.T, i int) client.Layer {
	shape := rapid.SampledFrom([][2]int{{1, 1}, {2, 1}, {3, 3}, {4, 2}, {6, 3}}).Draw(t, fmt.Sprintf("heads of layer %d", i))
	l := client.Layer{
		Heads: shape[0], KVHeads: shape[1],
		HeadDim: rapid.SampledFrom([]int{1, 4, 7, 16}).Draw(t, "head_dim"),
		VDim:    rapid.SampledFrom([]int{0, 0, 3, 8}).Draw(t, "v_dim"),
		Storage: rapid.SampledFrom([]tensor.DType{tensor.F32, tensor.F16, tensor.BF16, tensor.I8}).Draw(t, "storage"),
	}
	if l.Storage == tensor.BF16 {
		l.Arithmetic = rapid.SampledFrom([]attention.Arithmetic{attention.Chain, attention.Tiles}).Draw(t, "arithmetic")
	}
	option := func(name string) bool { return rapid.IntRange(0, 3).Draw(t, name) == 0 }
	if option("scale") {
		l.Scale = 0.75
	}
	if option("softcap") {
		l.Softcap = 3
	}
	if option("window_left") {
		l.WindowLeft = client.Within(rapid.SampledFrom([]int{0, 1, 20, 70}).Draw(t, "left"))
	}
	if option("not causal") {
		l.NotCausal = true
		if option("window_right") {
			l.WindowRight = client.Within(rapid.SampledFrom([]int{0, 2}).Draw(t, "right"))
		}
	}
	for h := range l.Heads {
		if h == 0 && !option("alibi") {
			break
		}
		l.AlibiSlopes = append(l.AlibiSlopes, 1/float32(h+2))
	}
	for h := range l.Heads {
		if h == 0 && !option("sinks") {
			break
		}
		l.Sinks = append(l.Sinks, float32(h)-1)
	}
	return l
}

func newRand(seed uint64) *rand.Rand { return rand.New(rand.NewPCG(seed, 1)) }

func normals(r *rand.Rand, n int) []float32 {
	x := make([]float32, n)
	for i := range x {
		x[i] = float32(r.NormFloat64())
	}
	return x
}
