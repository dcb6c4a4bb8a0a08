package snapshot

import (
	"cmp"
	"slices"
	"time"
	"unicode/utf8"

	"headwater.example/attention"
	"headwater.example/shard"
	"headwater.example/tensor"
)

// Limits of a snapshot, beside those of a session.
const (
	// maxBytes bounds the keys and values of a snapshot, so that sums do not overflow.
	maxBytes = 1 << 62
	// blockBytes is about how many bytes of keys and values a block has.
	blockBytes = 4 << 20
)

// Header is what a session was made with, and which positions of it follow.
type Header struct {
	Name, Tenant string
	Model        []byte        // fingerprint of the model with its adapters
	TTL          time.Duration // time without use after which the session may be dropped; 0 is the workers' limit
	Pinned       bool
	Layers       []Layer
}

// Layer is one layer of the session, and its positions [First, Length) that follow.
type Layer struct {
	shard.LayerSpec
	// First is a multiple of attention.PageLen. It is more than 0 only where the layer has a left window, which the positions
	// before have left. Before [n_kv_heads] are the chained hashes after these; none where First is 0.
	First  uint64
	Before []uint64
	Length uint64
}

// rowBytes are those of one position of all groups.
func (l *Layer) rowBytes() int {
	n := l.Layout.KRowBytes() + l.Layout.VRowBytes()
	if l.scaled() {
		n += 8
	}
	return l.KVHeads * n
}

func (l *Layer) scaled() bool { return l.Layout.DType() == tensor.I8 }

// blockPositions are those of a full block, as Next cuts them.
func (l *Layer) blockPositions() int {
	return max(1, min(blockBytes/l.rowBytes(), shard.MaxStepTokens))
}

// Bytes are the keys and values of the header's positions, as they are stored in pages.
func (h *Header) Bytes() (n int64) {
	for i := range h.Layers {
		l := &h.Layers[i]
		n += int64(l.Length-l.First) * int64(l.rowBytes())
	}
	return n
}

// order is that of the layers that have blocks: those first that begin first, so that a worker never has a gap to keep.
func (h *Header) order() []int {
	var order []int
	for i := range h.Layers {
		if h.Layers[i].First < h.Layers[i].Length {
			order = append(order, i)
		}
	}
	slices.SortStableFunc(order, func(a, b int) int { return cmp.Compare(h.Layers[a].First, h.Layers[b].First) })
	return order
}

// check finds what no session can have.
func (h *Header) check() *Error {
	for _, t := range [...]struct{ name, text string }{{"name", h.Name}, {"tenant", h.Tenant}, {"model fingerprint", string(h.Model)}} {
		if len(t.text) > shard.MaxText {
			return refuse(Invalid, "the %s has %d bytes, at most %d are allowed", t.name, len(t.text), shard.MaxText)
		}
	}
	if !utf8.ValidString(h.Name) || !utf8.ValidString(h.Tenant) {
		return refuse(Invalid, "the name or the tenant is no UTF-8 text")
	}
	if h.TTL < 0 {
		return refuse(Invalid, "the ttl is %v, less than 0", h.TTL)
	}
	specs := make([]shard.LayerSpec, len(h.Layers))
	for i := range h.Layers {
		if err := h.Layers[i].Check(); err != nil {
			return refuse(Invalid, "layer %d: %v", i, err)
		}
		specs[i] = h.Layers[i].LayerSpec
	}
	if _, err := shard.GeometryOf(specs); err != nil {
		return refuse(Invalid, "%v", err)
	}
	left := int64(maxBytes)
	for i := range h.Layers {
		l := &h.Layers[i]
		hashes := 0
		if l.First > 0 {
			hashes = l.KVHeads
		}
		switch {
		case l.Length > shard.MaxPositions || l.First > l.Length || l.First%attention.PageLen != 0:
			return refuse(Invalid, "layer %d: positions %d to %d are not from a multiple of %d to at most %d", i, l.First, l.Length, attention.PageLen, int64(shard.MaxPositions))
		case l.First > 0 && !l.Windowed():
			return refuse(Invalid, "layer %d: positions from %d on, but its queries see all before", i, l.First)
		case len(l.Before) != hashes:
			return refuse(Invalid, "layer %d: %d hashes before position %d of %d groups", i, len(l.Before), l.First, l.KVHeads)
		}
		positions, row := int64(l.Length-l.First), int64(l.rowBytes())
		if positions > left/row {
			return refuse(Invalid, "layer %d: keys and values of more than %d bytes", i, int64(maxBytes))
		}
		left -= positions * row
	}
	return nil
}

// Block is some positions of all groups of a layer. Its slices have exactly these lengths.
type Block struct {
	Layer     int
	Start     uint64
	Positions int // 1 to shard.MaxStepTokens
	// Tokens [Positions] are ids of the tokens, or none: of the first layer that Next names, if it begins at position 0, from
	// there on without a gap.
	Tokens []uint32
	// K [n_kv_heads, Positions, head_dim] and V [n_kv_heads, Positions, v_dim] in the storage type, little endian.
	K, V []byte
	// KScale and VScale [n_kv_heads, Positions]; int8 storage only.
	KScale, VScale []float32
}

// Bytes are the block's keys and values.
func (b *Block) Bytes() int { return len(b.K) + len(b.V) + 4*len(b.KScale) + 4*len(b.VScale) }

// check compares a block with its layer, which is l.
func (b *Block) check(l *Layer) *Error {
	scales := 0
	if l.scaled() {
		scales = l.KVHeads * b.Positions
	}
	if len(b.K) != l.KVHeads*b.Positions*l.Layout.KRowBytes() || len(b.V) != l.KVHeads*b.Positions*l.Layout.VRowBytes() || len(b.KScale) != scales || len(b.VScale) != scales {
		return refuse(Invalid, "layer %d: %d bytes of keys, %d of values and %d and %d scales are not %d positions of %d groups", b.Layer, len(b.K), len(b.V), len(b.KScale), len(b.VScale), b.Positions, l.KVHeads)
	}
	return nil
}

// progress is how far a snapshot has come: what the next block must be.
type progress struct {
	header *Header
	order  []int // of layers that have blocks to come
	at     uint64
	told   int    // layer whose blocks may bring ids of tokens, or -1
	tokens uint64 // ids so far, from position 0 on
}

func newProgress(h *Header) progress {
	p := progress{header: h, order: h.order(), told: -1}
	p.enter()
	if len(p.order) > 0 && p.at == 0 {
		p.told = p.order[0]
	}
	return p
}

// enter begins the next layer.
func (p *progress) enter() {
	if len(p.order) > 0 {
		p.at = p.header.Layers[p.order[0]].First
	}
}

// next returns the layer that is under way and its position; false after the last.
func (p *progress) next() (layer int, at, length uint64, ok bool) {
	if len(p.order) == 0 {
		return 0, 0, 0, false
	}
	return p.order[0], p.at, p.header.Layers[p.order[0]].Length, true
}

// take moves on by a block with some ids of tokens, or refuses one that does not follow.
func (p *progress) take(layer int, start uint64, positions, tokens int) *Error {
	want, at, length, ok := p.next()
	switch {
	case !ok:
		return refuse(Invalid, "a block of layer %d after the last position", layer)
	case layer != want || start != at:
		return refuse(Invalid, "a block of layer %d from position %d on, where layer %d is at %d", layer, start, want, at)
	case positions < 1 || positions > shard.MaxStepTokens || uint64(positions) > length-at:
		return refuse(Invalid, "layer %d: a block of %d positions from %d on, the layer has %d", layer, positions, start, length)
	case tokens != 0 && (tokens != positions || layer != p.told || start != p.tokens):
		return refuse(Invalid, "layer %d: %d ids of tokens for %d positions from %d on, where layer %d has told %d", layer, tokens, positions, start, p.told, p.tokens)
	}
	p.tokens += uint64(tokens)
	p.at += uint64(positions)
	if p.at == length {
		p.order = p.order[1:]
		p.enter()
	}
	return nil
}

// checkHashes compares the hashes at the end with the layers.
func (h *Header) checkHashes(after [][]uint64) *Error {
	if len(after) != len(h.Layers) {
		return refuse(Invalid, "hashes of %d layers, there are %d", len(after), len(h.Layers))
	}
	for i := range h.Layers {
		l := &h.Layers[i]
		switch {
		case len(after[i]) != l.KVHeads:
			return refuse(Invalid, "layer %d: %d hashes of %d groups", i, len(after[i]), l.KVHeads)
		case l.First == l.Length && l.First > 0 && !slices.Equal(after[i], l.Before):
			return refuse(Invalid, "layer %d has other hashes at its end, where it has no position", i)
		case l.Length == 0 && slices.ContainsFunc(after[i], func(hash uint64) bool { return hash != 0 }):
			return refuse(Invalid, "layer %d has hashes of nothing", i)
		}
	}
	return nil
}
