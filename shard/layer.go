package shard

import (
	"fmt"

	"headwater.example/attention"
	"headwater.example/tensor"
)

// LayerSpec is all that is fixed about one layer: its geometry, how its keys and values are stored, and what its queries see.
// NewLayerSpec makes one and checks it. It does not change, nor does what it points to, so it may be shared.
type LayerSpec struct {
	Heads   int // n_heads, 1 to MaxHeads
	KVHeads int // n_kv_heads, divides Heads
	// Layout has the storage type, the arithmetic, head_dim and v_dim.
	Layout attention.Layout
	// Options have every default filled in.
	Options attention.Options
	// Stripes is in how many stripes a session holds each group, 0 and 1 are none; see Shards. It changes no bit of an answer.
	Stripes int
}

// NewLayerSpec makes a layer of a geometry, a storage type and options. The error names the number that can not be.
func NewLayerSpec(shape LayerShape, storage tensor.DType, options attention.Options) (LayerSpec, error) {
	if field, rule := shape.check(); rule != "" {
		return LayerSpec{}, fmt.Errorf("%s: %s", field, rule)
	}
	layout, err := attention.NewLayout(storage, shape.HeadDim, shape.VDim)
	if err != nil {
		return LayerSpec{}, err
	}
	spec := LayerSpec{Heads: shape.Heads, KVHeads: shape.KVHeads, Layout: layout, Options: options}
	return spec, spec.Check()
}

// WithArithmetic returns the layer in another arithmetic. Only keys and values stored as bf16 have other than attention.Chain.
func (s LayerSpec) WithArithmetic(a attention.Arithmetic) (LayerSpec, error) {
	var err error
	s.Layout, err = s.Layout.WithArithmetic(a)
	return s, err
}

// Check finds what no layer can have. Layers that NewLayerSpec made pass.
func (s *LayerSpec) Check() error {
	if s.Layout == (attention.Layout{}) {
		return fmt.Errorf("its layout was not made by NewLayout")
	}
	if field, rule := s.Shape().check(); rule != "" {
		return fmt.Errorf("%s: %s", field, rule)
	}
	if err := s.checkStripes(); err != nil {
		return err
	}
	return s.Options.Validate(s.Heads)
}

// Shape returns the geometry.
func (s *LayerSpec) Shape() LayerShape {
	return LayerShape{Heads: s.Heads, KVHeads: s.KVHeads, HeadDim: s.HeadDim(), VDim: s.VDim()}
}

// HeadDim returns the elements of a query and of a key.
func (s *LayerSpec) HeadDim() int { return s.Layout.HeadDim() }

// VDim returns the elements of a value.
func (s *LayerSpec) VDim() int { return s.Layout.VDim() }

// Storage returns the type in which keys and values are held.
func (s *LayerSpec) Storage() tensor.DType { return s.Layout.DType() }

// Arithmetic returns the arithmetic in which queries attend.
func (s *LayerSpec) Arithmetic() attention.Arithmetic { return s.Layout.Arithmetic() }

// GroupSize returns the number of query heads that read one KV head.
func (s *LayerSpec) GroupSize() int { return s.Heads / s.KVHeads }

// Windowed says whether the layer has a left window: no later query sees the positions that have left it.
func (s *LayerSpec) Windowed() bool { return s.Options.WindowLeft >= 0 }

// GeometryOf returns the geometry of layers. Any error is a *GeometryError.
func GeometryOf(layers []LayerSpec) (*Geometry, error) {
	shapes := make([]LayerShape, len(layers))
	for i := range layers {
		shapes[i] = layers[i].Shape()
	}
	return NewGeometry(shapes)
}

// HeldGeometry returns the geometry by which the shards of a session are placed: each of a group's stripes is a group of its own. Any
// error is a *GeometryError.
func HeldGeometry(layers []LayerSpec) (*Geometry, error) {
	shapes := make([]LayerShape, len(layers))
	for i := range layers {
		shapes[i] = layers[i].Shape()
		if layers[i].Striped() {
			shapes[i].KVHeads = layers[i].Shards()
			shapes[i].Heads = shapes[i].KVHeads
		}
	}
	return NewGeometry(shapes)
}
