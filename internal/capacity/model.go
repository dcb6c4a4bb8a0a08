package capacity

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"

	"headwater.example/attention"
	"headwater.example/shard"
	"headwater.example/tensor"
)

// maxConfig bounds the bytes of a model's config.json.
const maxConfig = 1 << 20

// model is what a config.json of Hugging Face says of attention.
type model struct {
	Type       string   `json:"model_type"`
	Layers     int      `json:"num_hidden_layers"`
	Heads      int      `json:"num_attention_heads"`
	KVHeads    *int     `json:"num_key_value_heads"`
	HeadDim    *int     `json:"head_dim"`
	Hidden     int      `json:"hidden_size"`
	Window     *int64   `json:"sliding_window"`
	LayerTypes []string `json:"layer_types"`
	Latent     *int     `json:"kv_lora_rank"`
	Text       *model   `json:"text_config"`
}

// ReadModel reads the layers of a model of Hugging Face transformers from its config.json: those with keys and values, which are kept
// in a storage type. Where the file names windows by layer, or the model is one whose layers all have one, they count.
func ReadModel(r io.Reader, storage tensor.DType) ([]shard.LayerSpec, error) {
	b, err := io.ReadAll(io.LimitReader(r, maxConfig+1))
	if err != nil {
		return nil, err
	}
	if len(b) > maxConfig {
		return nil, fmt.Errorf("it has more than %d bytes", maxConfig)
	}
	var m model
	if err := json.Unmarshal(b, &m); err != nil {
		return nil, fmt.Errorf("it is no config.json: %w", err)
	}
	if m.Text != nil && m.Layers == 0 {
		m = *m.Text
	}
	return m.layers(storage)
}

func (m *model) layers(storage tensor.DType) ([]shard.LayerSpec, error) {
	switch {
	case m.Latent != nil:
		return nil, errors.New("kv_lora_rank: the model has multi-head latent attention, and not keys and values by group")
	case m.Layers < 1 || m.Layers > shard.MaxLayers:
		return nil, fmt.Errorf("num_hidden_layers is %d, not 1 to %d", m.Layers, shard.MaxLayers)
	case m.Heads < 1:
		return nil, fmt.Errorf("num_attention_heads is %d, less than 1", m.Heads)
	case m.LayerTypes != nil && len(m.LayerTypes) != m.Layers:
		return nil, fmt.Errorf("layer_types names %d layers of %d", len(m.LayerTypes), m.Layers)
	}
	shape := shard.LayerShape{Heads: m.Heads, KVHeads: m.Heads, HeadDim: m.Hidden / m.Heads}
	if m.KVHeads != nil {
		shape.KVHeads = *m.KVHeads
	}
	if m.HeadDim != nil {
		shape.HeadDim = *m.HeadDim
	}
	shape.VDim = shape.HeadDim
	var layers []shard.LayerSpec
	for i := range m.Layers {
		options := attention.DefaultOptions(max(shape.HeadDim, 1))
		options.Causal = true
		kind := "full_attention"
		switch {
		case m.LayerTypes != nil:
			kind = m.LayerTypes[i]
		case m.Type == "mistral" && m.Window != nil:
			kind = "sliding_attention"
		}
		switch {
		case kind == "sliding_attention":
			if m.Window == nil || *m.Window < 1 {
				return nil, fmt.Errorf("layer %d has a sliding window, and sliding_window does not say of how many positions", i)
			}
			options.WindowLeft = *m.Window - 1
		case !strings.HasSuffix(kind, "attention") || strings.HasPrefix(kind, "linear"):
			continue // it has a state, and no keys and values
		}
		spec, err := shard.NewLayerSpec(shape, storage, options)
		if err != nil {
			return nil, fmt.Errorf("layer %d: %w", i, err)
		}
		layers = append(layers, spec)
	}
	if len(layers) == 0 {
		return nil, errors.New("no layer has keys and values")
	}
	return layers, nil
}
