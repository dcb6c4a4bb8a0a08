package cli

import (
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	"github.com/jedib0t/go-pretty/v6/table"
	"github.com/spf13/cobra"

	"headwater.example/attention"
	"headwater.example/internal/jobfile"
	"headwater.example/shard"
	"headwater.example/tensor"
)

// planFlags are the geometry and the workers of a plan.
type planFlags struct {
	job                                   string
	heads, kvHeads, headDim, vDim, layers int
	workers, from                         string
	compare                               bool
	dModel                                int
	context                               count
	storage                               string
}

func (a *app) plan() *cobra.Command {
	f := planFlags{context: 128 << 10}
	cmd := &cobra.Command{
		Use: "plan", Short: "Show which worker would own what, without a cluster", Args: exactly(),
		Long: "Show the plan for a geometry and some workers, without a cluster: which worker owns which KV groups and the query\n" +
			"heads that read them. With --compare, show instead what multi-head, this grouped-query, and multi-query attention cost.",
		Example: `  coord plan --heads 32 --kv-heads 8 --layers 4 --workers 3
  coord plan --job job.safetensors --workers a,b:2,c
  coord plan --heads 9 --kv-heads 3 --layers 30 --workers 3 --from 2
  coord plan --heads 32 --kv-heads 8 --layers 32 --context 8192 --compare`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			geometry, arithmetics, err := f.geometry(cmd)
			if err != nil {
				return err
			}
			if f.compare {
				return a.printComparison(geometry, f)
			}
			plan, moves, err := f.plans(geometry)
			if err != nil {
				return usageError{err}
			}
			text, err := plan.JSON(arithmetics)
			if err != nil {
				return fmt.Errorf("write the plan: %w", err)
			}
			if a.json() {
				return a.printJSON(json.RawMessage(text))
			}
			drawn, err := drawPlan(text)
			if err != nil {
				return err
			}
			if err := a.printPlan(drawn); err != nil {
				return err
			}
			if f.from != "" {
				return a.printMoves(moves, geometry.Shards())
			}
			return nil
		},
	}
	flags := cmd.Flags()
	flags.StringVar(&f.job, "job", "", "job `file` that gives the geometry")
	flags.IntVar(&f.heads, "heads", 0, "query heads of a layer")
	flags.IntVar(&f.kvHeads, "kv-heads", 0, "key/value heads of a layer: its groups (default: as many as query heads)")
	flags.IntVar(&f.headDim, "head-dim", 64, "elements of a query and of a key")
	flags.IntVar(&f.vDim, "v-dim", 0, "elements of a value (default: head-dim)")
	flags.IntVar(&f.layers, "layers", 1, "layers")
	flags.StringVar(&f.workers, "workers", "3", "number of workers, or their `names` with weights: a,b:2,c")
	flags.StringVar(&f.from, "from", "", "`workers` of the plan before: show what moves")
	flags.BoolVar(&f.compare, "compare", false, "compare MHA, this GQA and MQA: parameters and cache")
	flags.IntVar(&f.dModel, "d-model", 0, "elements of a hidden state (default: heads * head-dim)")
	choice(cmd, flags, &f.storage, "storage", "f16", "how the cached keys and values are stored", shard.StorageNames()...)
	flags.Var(&f.context, "context", "positions of the cache that --compare gives the size of; 128k is 131072")
	flagOnly(flags, "job", "heads", "kv-heads", "head-dim", "v-dim", "layers", "workers", "from", "compare", "d-model", "context", "storage")
	return cmd
}

// geometry is the one of the job file with its arithmetics, or of the flags, which name none.
func (f *planFlags) geometry(cmd *cobra.Command) (*shard.Geometry, []attention.Arithmetic, error) {
	if f.job != "" {
		for _, name := range []string{"heads", "kv-heads", "head-dim", "v-dim", "layers"} {
			if cmd.Flags().Changed(name) {
				return nil, nil, usage("--job gives the geometry: leave out --%s", name)
			}
		}
		file, err := tensor.Open(f.job)
		if err != nil {
			return nil, nil, err
		}
		defer file.Close()
		parsed, err := jobfile.Parse(file, nil)
		if err != nil {
			return nil, nil, err
		}
		return parsed.Geometry(), parsed.Arithmetics(), nil
	}
	if !cmd.Flags().Changed("heads") {
		return nil, nil, usage("give --heads or --job, the geometry to plan for")
	}
	if !cmd.Flags().Changed("kv-heads") {
		f.kvHeads = f.heads
	}
	if !cmd.Flags().Changed("v-dim") {
		f.vDim = f.headDim
	}
	if f.layers < 1 || f.layers > shard.MaxLayers {
		return nil, nil, usage("--layers is %d, must be from 1 to %d", f.layers, shard.MaxLayers)
	}
	geometry, err := shard.NewGeometry(slices.Repeat([]shard.LayerShape{{Heads: f.heads, KVHeads: f.kvHeads, HeadDim: f.headDim, VDim: f.vDim}}, f.layers))
	if err != nil {
		return nil, nil, usageError{err}
	}
	return geometry, nil, nil
}

// plans makes the plan, after that of the workers before where there are some.
func (f *planFlags) plans(geometry *shard.Geometry) (*shard.Plan, []shard.Move, error) {
	workers, err := parseWorkers(f.workers)
	if err != nil {
		return nil, nil, fmt.Errorf("--workers: %w", err)
	}
	var before *shard.Plan
	if f.from != "" {
		old, err := parseWorkers(f.from)
		if err != nil {
			return nil, nil, fmt.Errorf("--from: %w", err)
		}
		if before, err = shard.MakePlan(geometry, old, nil); err != nil {
			return nil, nil, fmt.Errorf("--from: %w", err)
		}
	}
	plan, err := shard.MakePlan(geometry, workers, before)
	if err != nil {
		return nil, nil, fmt.Errorf("--workers: %w", err)
	}
	return plan, shard.Moves(before, plan), nil
}

// parseWorkers reads a number of workers, which are then w1, w2, …, or a list of names with weights.
func parseWorkers(s string) ([]shard.Worker, error) {
	n, err := strconv.Atoi(strings.TrimSpace(s))
	if err != nil {
		return shard.ParseWorkers(s)
	}
	if n < 1 || n > shard.MaxWorkers {
		return nil, fmt.Errorf("%d workers, must be from 1 to %d", n, shard.MaxWorkers)
	}
	workers := make([]shard.Worker, n)
	for i := range workers {
		workers[i] = shard.Worker{Name: fmt.Sprintf("w%0*d", len(strconv.Itoa(n)), i+1), Weight: 1}
	}
	return workers, nil
}

// drawnPlan is what the JSON of a plan says, as far as it is printed.
type drawnPlan struct {
	Epoch   uint64
	Workers []shard.Worker
	Idle    []string
	Layers  []drawnLayer
}

type drawnLayer struct {
	Heads      int    `json:"n_heads"`
	KVHeads    int    `json:"n_kv_heads"`
	HeadDim    int    `json:"head_dim"`
	VDim       int    `json:"v_dim"`
	Arithmetic string // auto of a job file, for which none is taken before it is submitted; empty where it is not known
	Groups     map[string][]int
}

// drawPlan reads the JSON of a plan.
func drawPlan(text []byte) (*drawnPlan, error) {
	var drawn drawnPlan
	if err := json.Unmarshal(text, &drawn); err != nil {
		return nil, fmt.Errorf("read the plan: %w", err)
	}
	for i, layer := range drawn.Layers {
		if layer.KVHeads < 1 || layer.Heads%layer.KVHeads != 0 {
			return nil, fmt.Errorf("read the plan: layer %d has %d heads and %d groups", i, layer.Heads, layer.KVHeads)
		}
	}
	return &drawn, nil
}

func (l drawnLayer) equal(other drawnLayer) bool {
	return l.Heads == other.Heads && l.KVHeads == other.KVHeads && l.HeadDim == other.HeadDim && l.VDim == other.VDim &&
		l.Arithmetic == other.Arithmetic &&
		maps.EqualFunc(l.Groups, other.Groups, slices.Equal)
}

// printPlan prints the geometry, which worker owns which groups and query heads, layers that are alike together, and each
// worker's load. The arithmetic stands beside the geometry, or beside each layer where there are several.
func (a *app) printPlan(p *drawnPlan) error {
	var alike [][]int // layers, by first
	for i, layer := range p.Layers {
		at := slices.IndexFunc(alike, func(layers []int) bool { return p.Layers[layers[0]].equal(layer) })
		if at < 0 {
			alike = append(alike, []int{i})
			continue
		}
		alike[at] = append(alike[at], i)
	}
	header := []string{"layers", "worker", "groups", "query heads", ">shards"}
	several := len(p.arithmetics()) > 1
	if several {
		header = slices.Insert(header, 1, "arithmetic")
	}
	t := a.newTable(p.geometry(), header...)
	loads := make(map[string]int)
	total := 0
	for _, layers := range alike {
		first := p.Layers[layers[0]]
		size := first.Heads / first.KVHeads
		label, arithmetic := ranges(layers), first.Arithmetic
		for _, worker := range p.Workers {
			groups := first.Groups[worker.Name]
			if len(groups) == 0 {
				continue
			}
			var heads []int
			for _, g := range groups {
				for h := range size {
					heads = append(heads, g*size+h)
				}
			}
			row := table.Row{label, a.narrow(worker.Name, nameWidth), ranges(groups), ranges(heads), len(groups) * len(layers)}
			if several {
				row = slices.Insert(row, 1, any(arithmetic))
			}
			t.AppendRow(row)
			label, arithmetic = "", ""
			loads[worker.Name] += len(groups) * len(layers)
			total += len(groups) * len(layers)
		}
		t.AppendSeparator()
	}
	if err := a.printTable(t); err != nil {
		return err
	}
	load := a.newTable("\nload", "worker", ">weight", ">shards", ">part")
	for _, worker := range p.Workers {
		load.AppendRow(table.Row{a.narrow(worker.Name, nameWidth), worker.Weight, loads[worker.Name], fmt.Sprintf("%.1f%%", 100*float64(loads[worker.Name])/float64(max(total, 1)))})
	}
	if err := a.printTable(load); err != nil {
		return err
	}
	if len(p.Idle) > 0 {
		return a.say("idle, since there are more workers than shards to own: %s\n", strings.Join(p.Idle, ", "))
	}
	return nil
}

// geometry is the plan's shape in one line.
func (p *drawnPlan) geometry() string {
	shapes := make(map[string]bool)
	var shape string
	shards := 0
	for _, l := range p.Layers {
		shape = fmt.Sprintf("%d query heads in %d groups of %d, head_dim %d, v_dim %d", l.Heads, l.KVHeads, l.Heads/l.KVHeads, l.HeadDim, l.VDim)
		shapes[shape] = true
		shards += l.KVHeads
	}
	if len(shapes) != 1 {
		shape = fmt.Sprintf("%d different shapes", len(shapes))
	}
	if names := p.arithmetics(); len(names) > 0 {
		shape += ", arithmetic " + strings.Join(names, " and ")
	}
	return fmt.Sprintf("%s: %s;\n%s on %s, epoch %d", plural(len(p.Layers), "layer"), shape, plural(shards, "shard"), plural(len(p.Workers), "worker"), p.Epoch)
}

// arithmetics are those of the layers, each once.
func (p *drawnPlan) arithmetics() (names []string) {
	for _, l := range p.Layers {
		if l.Arithmetic != "" && !slices.Contains(names, l.Arithmetic) {
			names = append(names, l.Arithmetic)
		}
	}
	return names
}

func (a *app) printMoves(moves []shard.Move, shards int) error {
	if err := a.say("\n%s of %d move\n", plural(len(moves), "shard"), shards); err != nil || len(moves) == 0 {
		return err
	}
	t := a.newTable("", "layer", "group", "from", "to")
	for _, m := range moves {
		t.AppendRow(table.Row{int(m.Layer), int(m.Group), a.narrow(m.From, nameWidth), a.narrow(m.To, nameWidth)})
	}
	return a.printTable(t)
}

// plural is a number of what there is; many is its plural, what with an s unless it is given.
func plural(n int, what string, many ...string) string {
	if n == 1 {
		return "1 " + what
	}
	return strconv.Itoa(n) + " " + strings.Join(append(many, what+"s")[:1], "")
}

// ranges writes ascending numbers shortly: runs as 0-3, and four or more of another even step as 0,3,…,27.
func ranges(numbers []int) string {
	var parts []string
	for len(numbers) > 0 {
		n, step := 1, 0
		if len(numbers) > 1 {
			step = numbers[1] - numbers[0]
		}
		for n < len(numbers) && numbers[n]-numbers[n-1] == step {
			n++
		}
		switch {
		case n >= 2 && step == 1:
			parts = append(parts, fmt.Sprintf("%d-%d", numbers[0], numbers[n-1]))
		case n >= 4:
			parts = append(parts, fmt.Sprintf("%d,%d,…,%d", numbers[0], numbers[1], numbers[n-1]))
		default:
			n = 1
			parts = append(parts, strconv.Itoa(numbers[0]))
		}
		numbers = numbers[n:]
	}
	return strings.Join(parts, ",")
}
