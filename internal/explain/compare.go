package explain

import (
	"fmt"

	"headwater.example/internal/jobfile"
	"headwater.example/shard"
	"headwater.example/tensor"
)

// Comparison is what attention of one geometry costs with as many KV heads as query heads (MHA), with the geometry's
// own (this), and with one (MQA).
type Comparison struct {
	Context int64             `json:"context"` // positions in the cache
	DType   string            `json:"dtype"`   // of cached keys and values
	Layers  []LayerComparison `json:"layers"`  // one for each shape, in the order in which they first appear
	Total   [3]Cost           `json:"total"`   // over all layers: MHA, this, MQA
}

// LayerComparison is the cost of one layer, of which there are Count alike.
type LayerComparison struct {
	First  int     `json:"first"` // the first layer of this shape
	Count  int     `json:"count"`
	DModel int     `json:"d_model"`
	Costs  [3]Cost `json:"costs"` // MHA, this, MQA
}

// Cost is one row of the comparison. In a total over layers of different shapes, heads are summed.
type Cost struct {
	Name          string  `json:"name"`            // "MHA", "GQA" or "MQA"
	This          bool    `json:"this"`            // whether it is the geometry's own
	Heads         int     `json:"n_heads"`         // query heads
	KVHeads       int     `json:"n_kv_heads"`      // key/value heads
	Parameters    int64   `json:"parameters"`      // elements of w_q, w_k, w_v and w_o
	BytesPerToken int64   `json:"bytes_per_token"` // cache of one position
	BytesAt       int64   `json:"bytes_at"`        // cache of Context positions
	Share         float64 `json:"share"`           // of MHA's cache
}

// Bounds that keep the sums within an int64: of parameters for any geometry, of one layer's bytes.
const (
	maxContext   = 1 << 32
	maxCostBytes = 1 << 62
)

// Compare makes the comparison for a cache of so many positions, 0 to 2^32, that holds keys and values as F32, F16,
// BF16 or I8 (with two f32 scales for each position and KV head). dModel is the size of a hidden state; 0 is
// n_heads·head_dim of each layer.
func Compare(g *shard.Geometry, dModel int, context int64, dt tensor.DType) (*Comparison, error) {
	switch dt {
	case tensor.F32, tensor.F16, tensor.BF16, tensor.I8:
	default:
		return nil, &ChoiceError{fmt.Sprintf("keys and values can not be stored as %s", dt)}
	}
	if context < 0 || context > maxContext {
		return nil, &ChoiceError{fmt.Sprintf("context is %d, must be 0 to %d", context, int64(maxContext))}
	}
	if dModel < 0 || dModel > jobfile.MaxModel {
		return nil, &ChoiceError{fmt.Sprintf("d_model is %d, must be 0 to %d", dModel, jobfile.MaxModel)}
	}
	c := &Comparison{Context: context, DType: dt.String()}
	index := map[shard.LayerShape]int{}
	for l := range g.Layers() {
		shape := g.Layer(shard.Layer(l))
		i, ok := index[shape]
		if !ok {
			i = len(c.Layers)
			index[shape] = i
			c.Layers = append(c.Layers, compareLayer(shape, l, dModel, context, dt))
		}
		c.Layers[i].Count++
	}
	for i := range c.Total {
		t := &c.Total[i]
		for _, layer := range c.Layers {
			cost, n := layer.Costs[i], int64(layer.Count)
			t.Heads += cost.Heads * layer.Count
			t.KVHeads += cost.KVHeads * layer.Count
			t.Parameters += cost.Parameters * n
			t.BytesPerToken += cost.BytesPerToken * n
			if cost.BytesAt > (maxCostBytes-t.BytesAt)/n {
				return nil, &ChoiceError{fmt.Sprintf("a cache of %d positions exceeds 2^62 bytes", context)}
			}
			t.BytesAt += cost.BytesAt * n
		}
		t.Name, t.This = [3]string{"MHA", name(c.Layers), "MQA"}[i], i == 1
		t.Share = float64(t.BytesPerToken) / float64(c.Total[0].BytesPerToken)
	}
	return c, nil
}

func compareLayer(s shard.LayerShape, first, dModel int, context int64, dt tensor.DType) LayerComparison {
	if dModel == 0 {
		dModel = s.Heads * s.HeadDim
	}
	layer := LayerComparison{First: first, DModel: dModel}
	perHead := int64(s.HeadDim+s.VDim) * int64(dt.Size())
	if dt == tensor.I8 {
		perHead += 8
	}
	for i, kvHeads := range [3]int{s.Heads, s.KVHeads, 1} {
		perToken := int64(kvHeads) * perHead
		layer.Costs[i] = Cost{
			This: i == 1, Heads: s.Heads, KVHeads: kvHeads,
			// w_q and w_o by query heads, w_k and w_v by KV heads.
			Parameters:    int64(dModel) * int64(s.HeadDim+s.VDim) * int64(s.Heads+kvHeads),
			BytesPerToken: perToken,
			BytesAt:       perToken * context,
			Share:         float64(kvHeads) / float64(s.Heads),
		}
		layer.Costs[i].Name = [3]string{"MHA", kindOf(s), "MQA"}[i]
	}
	return layer
}

// kindOf names the geometry's own kind of attention.
func kindOf(s shard.LayerShape) string {
	switch s.KVHeads {
	case s.Heads:
		return "MHA"
	case 1:
		return "MQA"
	}
	return "GQA"
}

// name is the kind of all layers: GQA where they differ.
func name(layers []LayerComparison) string {
	first := layers[0].Costs[1].Name
	for _, l := range layers {
		if l.Costs[1].Name != first {
			return "GQA"
		}
	}
	return first
}
