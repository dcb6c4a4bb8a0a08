package client

import (
	"fmt"
	"slices"

	"headwater.example/attention"
	"headwater.example/shard"
	"headwater.example/tensor"
)

// Layer is the geometry of one layer of a session's model, how its keys and values are stored, and what its queries
// see. The zero value of each option is the usual one.
type Layer struct {
	Heads   int // query heads (n_heads), 1 to 4,096
	KVHeads int // key/value heads (n_kv_heads); divides Heads. 0: Heads
	HeadDim int // elements of a query and of a key, 1 to 512
	VDim    int // elements of a value, 1 to 512; 0: HeadDim

	Storage tensor.DType // F32, F16, BF16, or I8 with one scale per position and head; 0: F32
	// Arithmetic is that of the products; other than attention.Chain, which is the zero value, it is for BF16. It never changes.
	// attention.Auto leaves it to the coordinator: that takes attention.Tiles for BF16 if every worker that is to hold the session has
	// a matrix unit, else attention.Chain. Session.Layers says which.
	Arithmetic attention.Arithmetic

	NotCausal   bool      // whether a query sees positions after its own as well
	WindowLeft  Window    // positions seen before the own one; zero: Unbounded
	WindowRight Window    // positions seen after the own one, if NotCausal; zero: Unbounded
	Scale       float32   // factor of the scores; 0: 1/√HeadDim
	Softcap     float32   // cap of the scores; 0: none
	AlibiSlopes []float32 // [Heads]; nil: none
	Sinks       []float32 // [Heads], a logit each; nil: none
}

// Window is the number of positions that a query sees on one side of its own. The zero value is Unbounded; Within makes
// a bounded one. Windows are comparable.
type Window struct {
	positions int64
	bounded   bool
}

// Unbounded is the window with every position.
var Unbounded Window

// Within is the window with n positions on one side of the query's own; with Within(0) a query sees only its own. A
// sliding window of W positions, with the query's own, is Within(W-1).
func Within(n int) Window { return Window{positions: int64(n), bounded: true} }

// Positions returns the number of positions in the window; false if it is Unbounded.
func (w Window) Positions() (n int, bounded bool) { return int(w.positions), w.bounded }

// String returns "unbounded" or the number of positions.
func (w Window) String() string {
	if !w.bounded {
		return "unbounded"
	}
	return fmt.Sprint(w.positions)
}

// option returns the window as an option of attention.
func (w Window) option() int64 {
	if !w.bounded {
		return -1
	}
	return w.positions
}

// windowOf is the inverse of option.
func windowOf(n int64) Window {
	if n < 0 {
		return Unbounded
	}
	return Within(int(n))
}

// spec fills in the defaults and checks the layer.
func (l *Layer) spec() (shard.LayerSpec, error) {
	shape := shard.LayerShape{Heads: l.Heads, KVHeads: l.KVHeads, HeadDim: l.HeadDim, VDim: l.VDim}
	if shape.KVHeads == 0 {
		shape.KVHeads = shape.Heads
	}
	if shape.VDim == 0 {
		shape.VDim = shape.HeadDim
	}
	storage := l.Storage
	if storage == 0 {
		storage = tensor.F32
	}
	for _, w := range [...]struct {
		name string
		Window
	}{{"window_left", l.WindowLeft}, {"window_right", l.WindowRight}} {
		if w.positions < 0 {
			return shard.LayerSpec{}, fmt.Errorf("%s: %d positions, less than 0", w.name, w.positions)
		}
	}
	options := attention.Options{
		Causal: !l.NotCausal, WindowLeft: l.WindowLeft.option(), WindowRight: l.WindowRight.option(),
		Scale: l.Scale, Softcap: l.Softcap, AlibiSlopes: l.AlibiSlopes, Sinks: l.Sinks,
	}
	if options.Scale == 0 {
		options.Scale = attention.DefaultScale(shape.HeadDim)
	}
	spec, err := shard.NewLayerSpec(shape, storage, options)
	if err != nil {
		return spec, err
	}
	if l.Arithmetic == attention.Auto {
		return spec, nil // in chain, until a coordinator is asked
	}
	return spec.WithArithmetic(l.Arithmetic)
}

// layerOf converts a checked layer.
func layerOf(l *shard.LayerSpec) Layer {
	o := &l.Options
	return Layer{
		Heads: l.Heads, KVHeads: l.KVHeads, HeadDim: l.HeadDim(), VDim: l.VDim(), Storage: l.Storage(), Arithmetic: l.Arithmetic(),
		NotCausal: !o.Causal, WindowLeft: windowOf(o.WindowLeft), WindowRight: windowOf(o.WindowRight),
		Scale: o.Scale, Softcap: o.Softcap, AlibiSlopes: slices.Clone(o.AlibiSlopes), Sinks: slices.Clone(o.Sinks),
	}
}
