package kvcache

import (
	"bytes"
	"cmp"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"math"
	"slices"
	"sync"
	"time"
	"unsafe"

	"headwater.example/attention"
	"headwater.example/shard"
)

// Limits of a session.
const (
	// MaxText bounds the bytes of a tenant, of a model's fingerprint, and of a name.
	MaxText = 256
	// MaxShards bounds the shards of a session that one store holds, which bounds what is kept beside a page.
	MaxShards = 1 << 16
	// MaxAppend bounds the positions of one append.
	MaxAppend = 1 << 16
	// maxPositions bounds positions so that their sums and products with a head's bytes do not overflow.
	maxPositions = 1 << 40
)

// SessionID names a session; clients make it of random bits.
type SessionID [16]byte

func (id SessionID) String() string { return hex.EncodeToString(id[:]) }

// LaneID names a client's lane.
type LaneID [16]byte

// Epoch says which lane drives a session: the higher counter, and of equal ones the higher lane.
type Epoch struct {
	Counter uint64 // from 1
	Lane    LaneID
}

// Compare orders epochs.
func (e Epoch) Compare(other Epoch) int {
	return cmp.Or(cmp.Compare(e.Counter, other.Counter), bytes.Compare(e.Lane[:], other.Lane[:]))
}

// Config is what a session is made with. It does not change, nor does what it points to.
type Config struct {
	Layers []Layer
	// Tenant is whose tokens they are; prefixes are shared within one.
	Tenant string
	// Model is a fingerprint of the model with its adapters; prefixes are shared under the same one.
	Model []byte
	// TTL is how long a session may go unused before it may be dropped; 0, or more than the store's, is the store's.
	TTL time.Duration
	// Name is for people.
	Name string
}

// Layer is one layer's geometry, storage and options.
type Layer struct {
	Heads, KVHeads int
	Layout         attention.Layout
	Options        attention.Options
}

// HeldLayer says which groups of a layer are held, ascending; none is a layer that is held elsewhere.
type HeldLayer struct {
	Layer  shard.Layer
	Groups []shard.Group
}

// LayerState is what is held of one layer.
type LayerState struct {
	Layer  shard.Layer
	Length uint64
	// Hashes [groups held] are the chained hashes, see Hasher.
	Hashes []uint64
	// First is the first position that is there, a multiple of attention.PageLen; those before have been freed.
	First uint64
}

// State is what a store has of a session. It shares nothing that changes.
type State struct {
	Session     SessionID
	Epoch       Epoch
	Truncations uint64
	Layers      []LayerState // that are held, ascending
	Pinned      bool
	// PageBytes are those of all pages that the session refers to, OwnBytes those that nobody shares.
	PageBytes, OwnBytes int64
	Created, Used       time.Time
	Config              *Config
	Held                []HeldLayer
}

// shape is what sessions of one config and holding have in common: where the shards stand in a row of pages. It does not
// change.
type shape struct {
	config Config
	held   []HeldLayer // without empty ones
	layers []heldLayer // ascending, as held
	shards int
	// rowBytes is what a row takes of the budget beside its pages, bytes what the shape itself takes.
	rowBytes, bytes int64

	// Sessions and rows that have the shape, guarded by Store.mu. Without any it is no more.
	sessions, rows int
	// root is the key of prefixes before their first token.
	root prefixKey
}

// heldLayer is one layer of a shape; its shards are [first, first+len(groups)) of a row.
type heldLayer struct {
	Layer
	layer  shard.Layer
	groups []shard.Group
	first  int
	class  *class
}

// layer returns the index among the held layers.
func (sh *shape) layer(l shard.Layer) (int, bool) {
	return slices.BinarySearchFunc(sh.layers, l, func(h heldLayer, l shard.Layer) int { return cmp.Compare(h.layer, l) })
}

// seenFrom returns the first page that a query at position at or later sees.
func (h *heldLayer) seenFrom(at int) int {
	w := h.Options.WindowLeft
	if w < 0 || w >= int64(at) {
		return 0
	}
	return (at - int(w)) / attention.PageLen
}

// rowBytes returns the logical bytes of one position in one group.
func (h *heldLayer) rowBytes() int {
	n := h.Layout.KRowBytes() + h.Layout.VRowBytes()
	if scaled(h.Layout) {
		n += 8
	}
	return n
}

// newShape checks a config and a holding. It does not set the classes.
func newShape(config Config, held []HeldLayer) (*shape, *Error) {
	switch {
	case len(config.Tenant) > MaxText:
		return nil, refuse(Invalid, "tenant has %d bytes, at most %d are allowed", len(config.Tenant), MaxText)
	case len(config.Model) > MaxText:
		return nil, refuse(Invalid, "model fingerprint has %d bytes, at most %d are allowed", len(config.Model), MaxText)
	case len(config.Name) > MaxText:
		return nil, refuse(Invalid, "name has %d bytes, at most %d are allowed", len(config.Name), MaxText)
	case config.TTL < 0:
		return nil, refuse(Invalid, "ttl is %v, less than 0", config.TTL)
	case len(config.Layers) < 1 || len(config.Layers) > shard.MaxLayers:
		return nil, refuse(Invalid, "%d layers, outside 1 to %d", len(config.Layers), shard.MaxLayers)
	}
	for i, l := range config.Layers {
		switch {
		case l.Layout == (attention.Layout{}):
			return nil, refuse(Invalid, "layer %d: its layout was not made by NewLayout", i).at(shard.Layer(i), 0)
		case l.Heads < 1 || l.Heads > shard.MaxHeads || l.KVHeads < 1 || l.Heads%l.KVHeads != 0:
			return nil, refuse(Invalid, "layer %d: %d query heads (1 to %d) over %d key/value heads", i, l.Heads, shard.MaxHeads, l.KVHeads).at(shard.Layer(i), 0)
		}
		if err := l.Options.Validate(l.Heads); err != nil {
			return nil, refuse(Invalid, "layer %d: %v", i, err).at(shard.Layer(i), 0)
		}
	}
	sh := &shape{config: config}
	before := shard.Layer(-1)
	for _, h := range held {
		if h.Layer <= before || int(h.Layer) >= len(config.Layers) {
			return nil, refuse(Invalid, "held layer %d after layer %d of %d: they ascend", h.Layer, before, len(config.Layers)).at(h.Layer, 0)
		}
		before = h.Layer
		last := shard.Group(-1)
		for _, g := range h.Groups {
			if g <= last || int(g) >= config.Layers[h.Layer].KVHeads {
				return nil, refuse(Invalid, "layer %d: held group %d after group %d of %d: they ascend", h.Layer, g, last, config.Layers[h.Layer].KVHeads).at(h.Layer, 0).of(g)
			}
			last = g
		}
		if len(h.Groups) == 0 {
			continue
		}
		sh.held = append(sh.held, h)
		sh.layers = append(sh.layers, heldLayer{Layer: config.Layers[h.Layer], layer: h.Layer, groups: h.Groups, first: sh.shards})
		sh.shards += len(h.Groups)
	}
	if sh.shards < 1 || sh.shards > MaxShards {
		return nil, refuse(Invalid, "%d shards are to be held, outside 1 to %d", sh.shards, MaxShards)
	}
	sh.rowBytes = bytesOfRow(len(sh.layers), sh.shards)
	sh.bytes = sh.heap()
	sh.root = sh.fingerprint()
	return sh, nil
}

// heap is about what the shape takes on the heap.
func (sh *shape) heap() int64 {
	n := int(unsafe.Sizeof(*sh)) + len(sh.config.Tenant) + len(sh.config.Model) + len(sh.config.Name) +
		cap(sh.config.Layers)*int(unsafe.Sizeof(Layer{})) + cap(sh.layers)*int(unsafe.Sizeof(heldLayer{})) + cap(sh.held)*int(unsafe.Sizeof(HeldLayer{})) +
		sh.shards*int(unsafe.Sizeof(shard.Group(0)))
	for _, l := range sh.config.Layers {
		n += 4 * (len(l.Options.AlibiSlopes) + len(l.Options.Sinks))
	}
	return int64(n)
}

// sessionBase is what a session takes on the heap whatever its shape, with its places among those that are held.
const sessionBase = 768

// heap is about the most that the session takes on the heap beside its rows and its shape, with the tokens that it begins with.
// Those that come later are little beside their pages.
func (s *session) heap() int64 {
	layers, shards := len(s.shape.layers), s.shape.shards
	n := sessionBase + 8*(3*layers+2*shards) + 4*len(s.tokens) + 16*max(len(s.rows), len(s.tokens)/attention.PageLen)
	if s.begun != nil {
		n += layers*int(unsafe.Sizeof(begun{})) + 8*shards
	}
	return int64(n)
}

// fingerprint returns the hash of all that decides which keys and values belong to a token, and of where they stand.
func (sh *shape) fingerprint() prefixKey {
	var b []byte
	number := func(values ...uint64) {
		for _, v := range values {
			b = binary.LittleEndian.AppendUint64(b, v)
		}
	}
	text := func(s string) {
		number(uint64(len(s)))
		b = append(b, s...)
	}
	floats := func(values []float32) {
		number(uint64(len(values)))
		for _, v := range values {
			b = binary.LittleEndian.AppendUint32(b, math.Float32bits(v))
		}
	}
	text(sh.config.Tenant)
	text(string(sh.config.Model))
	number(uint64(len(sh.config.Layers)))
	for _, l := range sh.config.Layers {
		o, causal := l.Options, uint64(0)
		if o.Causal {
			causal = 1
		}
		number(uint64(l.Heads), uint64(l.KVHeads), uint64(l.Layout.DType()), uint64(l.Layout.HeadDim()), uint64(l.Layout.VDim()),
			causal, uint64(max(o.WindowLeft, -1)), uint64(max(o.WindowRight, -1)))
		floats([]float32{o.Scale, o.Softcap})
		floats(o.AlibiSlopes)
		floats(o.Sinks)
	}
	for _, h := range sh.held {
		number(uint64(h.Layer), uint64(len(h.Groups)))
		for _, g := range h.Groups {
			number(uint64(g))
		}
	}
	return sha256.Sum256(b)
}

// equal says whether two sessions were made alike.
func (sh *shape) equal(other *shape) bool {
	return sh.root == other.root && sh.config.TTL == other.config.TTL && sh.config.Name == other.config.Name
}

// session is one sequence. Its rows are those of pages [first, first+len(rows)); the pages before have left the windows of
// all layers.
type session struct {
	id      SessionID
	shape   *shape
	made    made
	created time.Time
	used    time.Time // guarded by Store.mu
	bytes   int64     // reserved for it beside its rows and its shape; does not change

	// busy is held while the session is changed, from an append until it is kept or given up; taken before mu, or tried under
	// Store.mu.
	busy sync.Mutex

	mu          sync.Mutex // guards what follows; taken before Store.mu, or tried under it
	gone        bool
	epoch       Epoch
	truncations uint64
	cut         []int // [layers held] lengths of the last truncation
	pinned      bool
	lengths     []int    // [layers held]
	freed       []int    // [layers held] pages that have left the layer's window and that the session needs no more
	hashes      []uint64 // [shards] after lengths
	rows        []*row
	first       int
	edge        edge
	tokens      []uint32 // that are known, from position 0 on without a gap
	keyed       int      // pages that have a key, from page 0 on
	begun       []begun  // [layers held] or nil, see CreateRequest.Begin; does not change
}

// made is how a session came to be, to know a repeated request.
type made struct {
	forked   bool
	from     SessionID
	position int64             // -1 is all
	begin    [sha256.Size]byte // of CreateRequest.Begin, 0 where there is none
}

// edge is what is still needed of the last row before the first: how the chains go on.
type edge struct {
	hashes []uint64
	key    prefixKey
}

// row returns page p's row, which is there.
func (s *session) row(p int) *row { return s.rows[p-s.first] }

// end returns the page after the last row.
func (s *session) end() int { return s.first + len(s.rows) }

// checkpoint returns the hash of a shard at the beginning of page p.
func (s *session) checkpoint(p, shard int) uint64 {
	switch {
	case p == 0:
		return 0
	case p == s.first:
		return s.edge.hashes[shard]
	}
	return s.row(p - 1).hashes[shard]
}

// filled returns how many pages are full in every layer.
func (s *session) filled() int { return slices.Min(s.lengths) / attention.PageLen }

// pageBytes returns the bytes of the pages that the session refers to.
func (s *session) pageBytes() (n int64) {
	for l, h := range s.shape.layers {
		n += int64(pagesOf(s.lengths[l])-s.freed[l]) * int64(len(h.groups)*h.class.size)
	}
	return n
}

// pagesOf returns how many pages n positions take.
func pagesOf(n int) int { return (n + attention.PageLen - 1) / attention.PageLen }
