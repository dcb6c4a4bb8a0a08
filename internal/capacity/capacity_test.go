package capacity

import (
	"strings"
	"testing"

	"headwater.example/attention"
	"headwater.example/shard"
	"headwater.example/tensor"
)

func layers(t *testing.T, n int, shape shard.LayerShape, storage tensor.DType) []shard.LayerSpec {
	t.Helper()
	l, err := shard.NewLayerSpec(shape, storage, attention.DefaultOptions(shape.HeadDim))
	if err != nil {
		t.Fatal(err)
	}
	all := make([]shard.LayerSpec, n)
	for i := range all {
		all[i] = l
	}
	return all
}

// TestALargeModel counts by hand: 32 layers of 8 groups of 128 elements in bf16 take 2·128·2 bytes a group and position.
func TestALargeModel(t *testing.T) {
	d := Demand{Layers: layers(t, 32, shard.LayerShape{Heads: 32, KVHeads: 8, HeadDim: 128, VDim: 128}, tensor.BF16), Positions: 128 << 10, Sessions: 16, Replicas: 1, Spare: 1, Memory: 64 << 30}
	s, err := Measure(d)
	if err != nil {
		t.Fatal(err)
	}
	const position = 32 * 8 * 2 * 128 * 2
	pages := int64(position * 128 << 10)
	if s.PositionBytes != position || s.SessionBytes < pages || s.SessionBytes > pages+pages/1000 || s.TotalBytes != s.SessionBytes*16*2 || s.RoomBytes != 56<<30 {
		t.Errorf("%+v", s)
	}
	// 512 GiB and a little at 56 GiB a worker: at least 10, and the spare one.
	if s.Workers != 11 || s.WorkerBytes > s.RoomBytes || s.WorkerBytes < s.TotalBytes/10 {
		t.Errorf("%d workers, of %d bytes", s.Workers, s.WorkerBytes)
	}
}

// TestNoWorkerHoldsMoreThanItsRoom: whatever the demand, the workers without the spare ones have room for the most that falls on
// one of them, and one worker fewer would not have it.
func TestNoWorkerHoldsMoreThanItsRoom(t *testing.T) {
	for _, shape := range []shard.LayerShape{{Heads: 3, KVHeads: 3, HeadDim: 64, VDim: 64}, {Heads: 8, KVHeads: 1, HeadDim: 256, VDim: 128}} {
		for _, sessions := range []int64{1, 7, 1000} {
			for _, replicas := range []int{0, 1, 2} {
				d := Demand{Layers: layers(t, 5, shape, tensor.I8), Positions: 3000, Sessions: sessions, Replicas: replicas, Memory: 64 << 20}
				s, err := Measure(d)
				if err != nil {
					t.Fatal(err)
				}
				shards := int64(5*shape.KVHeads) * sessions * int64(1+replicas)
				page := int64(d.Layers[0].Layout.PageBytes())
				perShard := (d.Positions + 63) / 64 * page
				most := (shards + int64(s.Workers) - 1) / int64(s.Workers)
				if most*perShard > s.RoomBytes || s.WorkerBytes > s.RoomBytes || s.Workers < 1+replicas {
					t.Errorf("%+v: %d shards of %d bytes on one of %d workers with room for %d", d.Positions, most, perShard, s.Workers, s.RoomBytes)
				}
				if fewer := int64(s.Workers) - 1; fewer > int64(replicas) && s.TotalBytes/fewer+perShard < s.RoomBytes {
					t.Errorf("%d workers are enough, and not %d", fewer, s.Workers)
				}
			}
		}
	}
}

func TestDemandsThatCanNotBe(t *testing.T) {
	good := Demand{Layers: layers(t, 1, shard.LayerShape{Heads: 1, KVHeads: 1, HeadDim: 64, VDim: 64}, tensor.F32), Positions: 1000, Sessions: 1, Memory: 1 << 30}
	for says, change := range map[string]func(*Demand){
		"at least one layer":      func(d *Demand) { d.Layers = nil },
		"must each be at least 1": func(d *Demand) { d.Positions = 0 },
		"copies are not":          func(d *Demand) { d.Replicas = shard.MaxReplicas + 1 },
		"spare workers":           func(d *Demand) { d.Spare = -1 },
		"one shard of a session":  func(d *Demand) { d.Positions = 1 << 30 },
		"larger than can be":      func(d *Demand) { d.Sessions = 1 << 62 },
		"a shard is larger":       func(d *Demand) { d.Positions = 1 << 62 },
		"a cluster has at most":   func(d *Demand) { d.Sessions = 1 << 30 },
	} {
		d := good
		change(&d)
		if _, err := Measure(d); err == nil || !strings.Contains(err.Error(), says) {
			t.Errorf("want an error that says %q, got %v", says, err)
		}
	}
}

func TestModelsOfTransformers(t *testing.T) {
	read := func(text string) ([]shard.LayerSpec, error) { return ReadModel(strings.NewReader(text), tensor.BF16) }
	for name, c := range map[string]struct {
		text                      string
		layers, windowed, kv, dim int
		window                    int64
	}{
		"llama":      {`{"model_type":"llama","num_hidden_layers":30,"num_attention_heads":9,"num_key_value_heads":3,"hidden_size":576}`, 30, 0, 3, 64, -1},
		"mha":        {`{"model_type":"gpt","num_hidden_layers":2,"num_attention_heads":4,"hidden_size":128}`, 2, 0, 4, 32, -1},
		"mistral":    {`{"model_type":"mistral","num_hidden_layers":4,"num_attention_heads":8,"num_key_value_heads":2,"head_dim":128,"hidden_size":64,"sliding_window":4096}`, 4, 4, 2, 128, 4095},
		"gemma":      {`{"text_config":{"num_hidden_layers":3,"num_attention_heads":8,"num_key_value_heads":4,"head_dim":256,"sliding_window":512,"layer_types":["sliding_attention","sliding_attention","full_attention"]}}`, 3, 2, 4, 256, 511},
		"hybrid":     {`{"num_hidden_layers":4,"num_attention_heads":8,"num_key_value_heads":2,"head_dim":64,"layer_types":["linear_attention","conv","mamba","full_attention"]}`, 1, 0, 2, 64, -1},
		"unwindowed": {`{"model_type":"qwen2","num_hidden_layers":2,"num_attention_heads":8,"num_key_value_heads":2,"hidden_size":512,"sliding_window":4096,"use_sliding_window":false}`, 2, 0, 2, 64, -1},
	} {
		got, err := read(c.text)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		windowed := 0
		for i := range got {
			if got[i].Windowed() {
				windowed++
				if got[i].Options.WindowLeft != c.window {
					t.Errorf("%s: layer %d has window %d", name, i, got[i].Options.WindowLeft)
				}
			}
		}
		if len(got) != c.layers || windowed != c.windowed || got[0].KVHeads != c.kv || got[0].HeadDim() != c.dim {
			t.Errorf("%s: %d layers, %d windowed, of %d groups of %d", name, len(got), windowed, got[0].KVHeads, got[0].HeadDim())
		}
	}
	for says, text := range map[string]string{
		"no config.json":           `[]`,
		"num_hidden_layers":        `{}`,
		"num_attention_heads is 0": `{"num_hidden_layers":1}`,
		"latent":                   `{"num_hidden_layers":1,"num_attention_heads":1,"kv_lora_rank":512}`,
		"layer_types names 1":      `{"num_hidden_layers":2,"num_attention_heads":1,"hidden_size":64,"layer_types":["full_attention"]}`,
		"does not say of how many": `{"num_hidden_layers":1,"num_attention_heads":1,"hidden_size":64,"layer_types":["sliding_attention"]}`,
		"no layer has keys":        `{"num_hidden_layers":1,"num_attention_heads":1,"hidden_size":64,"layer_types":["mamba"]}`,
		"layer 0":                  `{"num_hidden_layers":1,"num_attention_heads":1,"hidden_size":100000}`,
	} {
		if _, err := read(text); err == nil || !strings.Contains(err.Error(), says) {
			t.Errorf("%s: want an error that says %q, got %v", text, says, err)
		}
	}
}

func FuzzReadModel(f *testing.F) {
	f.Add([]byte(`{"num_hidden_layers":2,"num_attention_heads":8,"num_key_value_heads":2,"head_dim":64,"sliding_window":9,"layer_types":["sliding_attention","x"]}`))
	f.Fuzz(func(t *testing.T, text []byte) {
		if got, err := ReadModel(strings.NewReader(string(text)), tensor.I8); err == nil {
			if _, err := Measure(Demand{Layers: got, Positions: 1000, Sessions: 1, Memory: 1 << 40}); err != nil && strings.Contains(err.Error(), "at least one layer") {
				t.Error(err)
			}
		}
	})
}
