package cli

import (
	"fmt"
	"os"

	"github.com/jedib0t/go-pretty/v6/table"
	"github.com/spf13/cobra"

	"headwater.example/attention"
	"headwater.example/internal/capacity"
	"headwater.example/shard"
	"headwater.example/tensor"
)

// sizeFlags are a model's geometry and what is to be held of it.
type sizeFlags struct {
	from                           string
	layers, kvHeads, headDim, vDim int
	storage                        string
	sessions, positions            count
	replicas, spare                int
	memory                         memorySize
}

func (a *app) size() *cobra.Command {
	f := sizeFlags{sessions: 1, positions: 128 << 10, memory: memorySize{24 << 30}}
	cmd := &cobra.Command{
		Use: "size", Short: "Say how many workers hold so many sessions, without a cluster", Args: exactly(),
		Long: "Say how much memory the keys and values of sessions take, with their copies, and how many workers hold them. The geometry is\n" +
			"that of the flags, or of the config.json of a model of Hugging Face transformers, whose sliding windows count.\n\n" +
			"An eighth of each worker's memory is left free, as copies leave it, and --spare workers may be lost until the others are full.",
		Example: `  coord size --from SmolLM2-135M/config.json --positions 8k --sessions 100
  coord size --layers 32 --kv-heads 8 --positions 128k --memory 64GiB
  coord size --layers 32 --kv-heads 8 --replicas 0 -o json`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			layers, err := f.read(cmd)
			if err != nil {
				return err
			}
			demand := capacity.Demand{
				Layers: layers, Positions: int64(f.positions), Sessions: int64(f.sessions), Replicas: f.replicas, Spare: f.spare, Memory: int64(f.memory.byteSize),
			}
			size, err := capacity.Measure(demand)
			if err != nil {
				return usageError{err}
			}
			return a.printSize(demand, size)
		},
	}
	flags := cmd.Flags()
	flags.StringVar(&f.from, "from", "", "config.json `file` of a model of Hugging Face transformers")
	flags.IntVar(&f.layers, "layers", 1, "layers")
	flags.IntVar(&f.kvHeads, "kv-heads", 0, "key/value heads of a layer: its groups")
	flags.IntVar(&f.headDim, "head-dim", 128, "elements of a key")
	flags.IntVar(&f.vDim, "v-dim", 0, "elements of a value (default: head-dim)")
	choice(cmd, flags, &f.storage, "storage", "bf16", "how keys and values are stored", shard.StorageNames()...)
	flags.Var(&f.sessions, "sessions", "sessions that are held at once")
	flags.Var(&f.positions, "positions", "positions of each session; 128k is 131072")
	flags.IntVar(&f.replicas, "replicas", defaultReplicas, "copies of each shard beside its owner's, as of coord serve")
	flags.IntVar(&f.spare, "spare", 1, "workers that may be lost, and all copies still have room")
	flags.Var(&f.memory, "memory", "what one worker may fill with keys and values, its --memory")
	flagOnly(flags, "from", "layers", "kv-heads", "head-dim", "v-dim", "storage", "sessions", "positions", "replicas", "spare", "memory")
	return cmd
}

// read returns the layers of the file, or of the flags.
func (f *sizeFlags) read(cmd *cobra.Command) ([]shard.LayerSpec, error) {
	storage, err := shard.ParseStorage(f.storage)
	if err != nil {
		return nil, usage("--storage: %w", err)
	}
	if f.from != "" {
		for _, name := range []string{"layers", "kv-heads", "head-dim", "v-dim"} {
			if cmd.Flags().Changed(name) {
				return nil, usage("--from gives the geometry: leave out --%s", name)
			}
		}
		file, err := os.Open(f.from)
		if err != nil {
			return nil, err
		}
		defer file.Close()
		layers, err := capacity.ReadModel(file, storage)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", f.from, err)
		}
		return layers, nil
	}
	return f.geometry(cmd, storage)
}

func (f *sizeFlags) geometry(cmd *cobra.Command, storage tensor.DType) ([]shard.LayerSpec, error) {
	if !cmd.Flags().Changed("kv-heads") {
		return nil, usage("give --from or --kv-heads, the geometry to measure")
	}
	if !cmd.Flags().Changed("v-dim") {
		f.vDim = f.headDim
	}
	if f.layers < 1 || f.layers > shard.MaxLayers {
		return nil, usage("--layers is %d, must be from 1 to %d", f.layers, shard.MaxLayers)
	}
	layer, err := shard.NewLayerSpec(shard.LayerShape{Heads: f.kvHeads, KVHeads: f.kvHeads, HeadDim: f.headDim, VDim: f.vDim}, storage, attention.DefaultOptions(max(f.headDim, 1)))
	if err != nil {
		return nil, usageError{err}
	}
	layers := make([]shard.LayerSpec, f.layers)
	for i := range layers {
		layers[i] = layer
	}
	return layers, nil
}

// sizeView is what sessions take, as scripts read it.
type sizeView struct {
	Layers        int   `json:"layers"`
	Shards        int   `json:"shards"`
	Positions     int64 `json:"positions"`
	Sessions      int64 `json:"sessions"`
	Replicas      int   `json:"replicas"`
	Spare         int   `json:"spare"`
	MemoryBytes   int64 `json:"memory_bytes"`
	RoomBytes     int64 `json:"room_bytes"`
	PositionBytes int64 `json:"position_bytes"`
	SessionBytes  int64 `json:"session_bytes"`
	TotalBytes    int64 `json:"total_bytes"`
	Workers       int   `json:"workers"`
	WorkerBytes   int64 `json:"worker_bytes"`
}

func (a *app) printSize(d capacity.Demand, s capacity.Size) error {
	v := sizeView{
		len(d.Layers), 0, d.Positions, d.Sessions, d.Replicas, d.Spare, d.Memory, s.RoomBytes, s.PositionBytes, s.SessionBytes, s.TotalBytes, s.Workers, s.WorkerBytes,
	}
	for i := range d.Layers {
		v.Shards += d.Layers[i].KVHeads
	}
	if a.json() {
		return a.printJSON(v)
	}
	t := a.newTable(fmt.Sprintf("%s, %s", plural(v.Layers, "layer"), plural(v.Shards, "shard")), "what", ">")
	t.AppendRow(table.Row{"one position", sizeOf(v.PositionBytes)})
	t.AppendRow(table.Row{fmt.Sprintf("a session of %s", plural(int(v.Positions), "position")), sizeOf(v.SessionBytes)})
	t.AppendRow(table.Row{fmt.Sprintf("%s, with %s of each shard", plural(int(v.Sessions), "session"), plural(v.Replicas, "copy", "copies")), sizeOf(v.TotalBytes)})
	t.AppendRow(table.Row{"room of a worker of " + sizeOf(v.MemoryBytes), sizeOf(v.RoomBytes)})
	t.AppendRow(table.Row{fmt.Sprintf("workers, of which %d may be lost", v.Spare), v.Workers})
	t.AppendRow(table.Row{"a worker holds then at most", sizeOf(v.WorkerBytes)})
	return a.printTable(t)
}
