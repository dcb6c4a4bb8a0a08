package cli

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"headwater.example/attention"
	"headwater.example/client"
	"headwater.example/internal/bench"
	"headwater.example/internal/contextframe"
	"headwater.example/internal/localcluster"
	"headwater.example/shard"
	"headwater.example/tensor"
)

// benchFlags are what bench is told. Lists have commas; every combination is measured.
type benchFlags struct {
	at                              remote
	local, threads                  int
	tests, positions, batch         string
	storage, send, codec, workers   string
	arithmetic                      string
	layers, heads, kvHeads, headDim int
	stripes                         int
	chunk, repeat                   int
	spend                           time.Duration
	rate                            float64
	direct, quiet                   bool
	format, codecs                  string
}

func (a *app) bench() *cobra.Command {
	var f benchFlags
	cmd := &cobra.Command{
		Use: "bench", Short: "Measure sessions: prompts, tokens, latency under load, codecs", Args: exactly(),
		Long: "Measure sessions from a client's side, on a running cluster or one of this machine: prefill (a prompt in\n" +
			"chunks), decode (one token after the other, in all sessions of a batch at once) and load (tokens come at a fixed\n" +
			"rate, whether earlier ones are answered or not; a token's latency counts from when it was due). Each combination\n" +
			"of the lists has one row. Keys and values are random, from a fixed seed.\n\n" +
			"Rates count attention alone, through --layers layers; the default is one layer, and a model of 32 layers makes\n" +
			"about a thirty-second part of its tokens. ± is the standard deviation of the rate over --repeat repetitions.\n" +
			"In kernel is the part of the time in which kernels computed, of each step at its slowest worker: what one session\n" +
			"reaches of the kernels' own rate. Several sessions at once share kernel threads, so they have none.\n" +
			"What all rows share stands above a Markdown table, in the last columns of CSV, and beside the rows in JSON.\n\n" +
			"A latency is that of a whole prompt, of a token in all sessions of the batch, or of a token of a load. A\n" +
			"quantile needs enough tokens: below a thousand, p99.9 is the slowest. If the cluster can not keep up with a\n" +
			"load, the load ends after twice --spend; each token that is not done by then counts with its wait until then.\n\n" +
			"--codecs FILE needs no cluster. It measures each codec on the contexts of a result file, on one core: bytes over\n" +
			"those of float32, rates in bytes of float32, and the largest error of an element relative to the largest\n" +
			"magnitude of its row. If FILE is a job file, it measures each storage type on the job's keys and values.",
		Example: `  coord bench --local 2
  coord bench --positions 1k,16k --batch 1,8 --storage f16,int8 --direct
  coord bench --tests load --rate 200 --batch 16 --spend 30s --format csv
  coord bench --codecs context.safetensors
  coord bench --codecs job.safetensors`,
		RunE: func(cmd *cobra.Command, _ []string) error { return a.runBench(cmd, f) },
	}
	flags := cmd.Flags()
	f.at.flags(flags)
	flags.IntVar(&f.local, "local", 0, "measure a cluster of `N` workers on this machine, started for it")
	flags.IntVar(&f.threads, "threads", 0, "with --local: kernel threads of each worker (default: all of the machine's)")
	flags.StringVar(&f.tests, "tests", "prefill,decode", "`tests`: prefill, decode, load")
	flags.StringVar(&f.positions, "positions", "1k,8k", "`positions` that a token sees, or a prompt has in all; 1k is 1024")
	flags.StringVar(&f.batch, "batch", "1", "`sessions` at once")
	flags.StringVar(&f.storage, "storage", "f16", "how keys and values are stored: `f32,f16,bf16,int8`")
	flags.StringVar(&f.arithmetic, "arithmetic", "chain", "how products are summed: `chain,tiles,tiles-bf16`; the last two with --storage bf16; the last is lossy; auto is chain or tiles, as the workers are")
	flags.StringVar(&f.send, "send", "stored", "how keys and values go out: `stored,f32`; stored: the client narrows them to the storage type; f32: the workers do")
	flags.StringVar(&f.codec, "codec", "auto", "how contexts come back: `auto,raw,exact,bf16,f16,int8`; the last three are lossy")
	flags.StringVar(&f.workers, "workers", "0", "most `workers` that hold a session, 0 is all")
	flags.IntVar(&f.stripes, "stripes", 0, stripesUsage)
	flags.IntVar(&f.layers, "layers", 1, "layers of the model")
	flags.IntVar(&f.heads, "heads", 32, "query heads of a layer (n_heads)")
	flags.IntVar(&f.kvHeads, "kv-heads", 8, "key/value heads of a layer (n_kv_heads)")
	flags.IntVar(&f.headDim, "head-dim", 128, "elements of a query, a key and a value")
	flags.IntVar(&f.chunk, "chunk", 512, "tokens of one step of a prefill")
	flags.DurationVar(&f.spend, "spend", 3*time.Second, "about how long each row measures, over all repetitions")
	flags.IntVar(&f.repeat, "repeat", 3, "repetitions of each row; a load has one")
	flags.Float64Var(&f.rate, "rate", 100, "`tokens` a second of a load, over all sessions")
	flags.BoolVar(&f.direct, "direct", false, "speak to the workers, not through the coordinator")
	flags.StringVar(&f.codecs, "codecs", "", "measure the codecs on the contexts of this result `file`, or on the keys and values of this job file, instead")
	flags.BoolVarP(&f.quiet, "quiet", "q", false, "show no progress")
	choice(cmd, flags, &f.format, "format", "markdown", "how rows are printed; --output json is json as well", "markdown", "csv", "json")
	flagOnly(flags, "local", "tests", "positions", "batch", "storage", "arithmetic", "send", "codec", "workers", "layers", "heads", "kv-heads", "head-dim",
		"chunk", "spend", "repeat", "rate", "direct", "codecs", "format")
	return cmd
}

// storageTypes are the storage types by their names.
func storageTypes() map[string]tensor.DType {
	all := map[string]tensor.DType{}
	for _, dtype := range shard.StorageTypes() {
		all[shard.StorageName(dtype)] = dtype
	}
	return all
}

// arithmetics are those of layers by their names.
func arithmetics() map[string]attention.Arithmetic {
	all := map[string]attention.Arithmetic{}
	for a, name := range attention.ArithmeticNames() {
		all[name] = attention.Arithmetic(a)
	}
	all[attention.Auto.String()] = attention.Auto
	return all
}

// sessionCodecs are the codecs of a session's contexts by their names.
func sessionCodecs() map[string]client.Codec {
	all := map[string]client.Codec{"auto": client.Auto, string(client.Raw): client.Raw}
	for _, name := range codecNames() {
		all[name] = client.Codec(name)
	}
	return all
}

// codecNames are those of the codecs that have frames.
func codecNames() []string {
	var names []string
	for _, codec := range contextframe.Codecs() {
		names = append(names, codec.String())
	}
	return names
}

// words reads a list of words, each one of a map's keys.
func words[T any](name, list string, of map[string]T) ([]string, error) {
	all := strings.Split(list, ",")
	for i, word := range all {
		all[i] = strings.TrimSpace(word)
		if _, ok := of[all[i]]; !ok {
			known := make([]string, 0, len(of))
			for key := range of {
				known = append(known, key)
			}
			slices.Sort(known)
			return nil, usage("--%s: %q is none of %s", name, all[i], strings.Join(known, ", "))
		}
	}
	return all, nil
}

var benchTests = map[string]bench.Test{"prefill": bench.Prefill, "decode": bench.Decode, "load": bench.Load}

// cases are all combinations that the flags name.
func (f *benchFlags) cases() (all []bench.Case, err error) {
	tests, err := words("tests", f.tests, benchTests)
	if err != nil {
		return nil, err
	}
	storage, err := words("storage", f.storage, storageTypes())
	if err != nil {
		return nil, err
	}
	sums, err := words("arithmetic", f.arithmetic, arithmetics())
	if err != nil {
		return nil, err
	}
	for _, name := range sums {
		if i := slices.IndexFunc(storage, func(dtype string) bool { return dtype != "bf16" }); name != "chain" && name != "auto" && i >= 0 {
			return nil, usage("--arithmetic %s takes --storage bf16, not %s", name, storage[i])
		}
	}
	sends, err := words("send", f.send, map[string]bool{"stored": false, "f32": true})
	if err != nil {
		return nil, err
	}
	codecs, err := words("codec", f.codec, sessionCodecs())
	if err != nil {
		return nil, err
	}
	positions, err := counts("positions", f.positions, 1)
	if err != nil {
		return nil, err
	}
	batches, err := counts("batch", f.batch, 1)
	if err != nil {
		return nil, err
	}
	workers, err := counts("workers", f.workers, 0)
	if err != nil {
		return nil, err
	}
	if err := checkStripes(f.stripes); err != nil {
		return nil, err
	}
	switch {
	case f.repeat < 1:
		return nil, usage("--repeat is %d, must be at least 1", f.repeat)
	case f.spend <= 0:
		return nil, usage("--spend is %s, must be above 0", f.spend)
	case !(f.rate > 0 && f.rate <= 1e6):
		return nil, usage("--rate is %s, must be above 0 and at most 1000000 tokens a second", strconv.FormatFloat(f.rate, 'f', -1, 64))
	case f.layers < 1 || f.heads < 1 || f.kvHeads < 1 || f.headDim < 1 || f.chunk < 1:
		return nil, usage("--layers, --heads, --kv-heads, --head-dim and --chunk must each be at least 1")
	}
	for _, test := range tests {
		for _, n := range workers {
			for _, dtype := range storage {
				for i, send := range sends {
					if i > 0 && dtype == "f32" {
						break // all go out alike
					}
					for _, c := range f.cut(sums, codecs, batches, positions) {
						c.Test, c.Workers, c.Storage, c.SendF32 = benchTests[test], int(n), storageTypes()[dtype], send == "f32"
						all = append(all, c)
					}
				}
			}
		}
	}
	return all, nil
}

// cut are the cases of one test, storage type and number of workers.
func (f *benchFlags) cut(sums, codecs []string, batches, positions []int64) (all []bench.Case) {
	for _, sum := range sums {
		for _, codec := range codecs {
			for _, batch := range batches {
				for _, long := range positions {
					all = append(all, bench.Case{
						Layers: f.layers, Heads: f.heads, KVHeads: f.kvHeads, HeadDim: f.headDim, Arithmetic: arithmetics()[sum],
						Codec: sessionCodecs()[codec], Direct: f.direct, Stripes: f.stripes,
						Positions: int(long), Batch: int(batch), Chunk: f.chunk, Spend: f.spend, Repeat: f.repeat, Rate: f.rate,
					})
				}
			}
		}
	}
	return all
}

func (a *app) runBench(cmd *cobra.Command, f benchFlags) (err error) {
	ctx := cmd.Context()
	if a.json() {
		f.format = "json"
	}
	if f.codecs != "" {
		return a.benchCodecs(f)
	}
	cases, err := f.cases()
	switch {
	case err != nil:
		return err
	case cmd.Flags().Changed("local") && f.local < 1:
		return usage("--local is %d, must be at least 1", f.local)
	case f.local != 0 && cmd.Flags().Changed("coordinator") && !a.settled["coordinator"]:
		return usage("--local starts a coordinator of its own: leave out --coordinator")
	case f.local == 0 && f.threads != 0:
		return usage("--threads is for the workers that --local starts")
	}
	if f.local != 0 {
		cluster, started := a.startLocal(ctx, localcluster.Options{Workers: f.local, Threads: f.threads})
		if started != nil {
			return started
		}
		defer func() { err = errors.Join(err, stopLocal(cluster)) }()
		f.at.address = cluster.Address()
	}
	return f.at.with(ctx, func(ctx context.Context, c *client.Client) error {
		status, err := c.Status(ctx)
		if err != nil {
			return err
		}
		answering := answering(status)
		if len(answering) == 0 {
			return passingError{fmt.Errorf("coordinator %s has no worker that answers: nothing to measure", c.Address())}
		}
		rows := a.rows(f.format, f.about(status, answering), f.header(cases))
		if f.format == "markdown" {
			for _, line := range f.heading(cases, answering) {
				if err := a.say("%s\n", line); err != nil {
					return err
				}
			}
		}
		doing := a.transient(f.quiet)
		defer doing.end()
		for i, one := range cases {
			row, err := bench.Measure(ctx, c, one, func(what string) {
				doing.show(fmt.Sprintf("row %d of %d, %s", i+1, len(cases), what))
			})
			doing.end()
			if err != nil {
				return err
			}
			if err := rows.add(benchCells(row, len(answering))...); err != nil {
				return err
			}
		}
		return rows.end()
	})
}

// answering are the workers that answer.
func answering(status *client.Status) (all []client.WorkerStatus) {
	for _, w := range status.Workers {
		if w.Error == "" {
			all = append(all, w)
		}
	}
	return all
}

// header are the columns of a measurement. In Markdown those that name what was measured are folded where all rows are alike.
func (f *benchFlags) header(cases []bench.Case) []column {
	header := columns("test", "geometry", "kv", "arithmetic", "codec", "way", "workers", "batch", "positions", "±tokens/s", ">p50 ms", ">p99 ms", ">p99.9 ms", ">KV GB/s", ">GFLOP/s", ">in kernel")
	// Rates of one layer are easily taken for a model's.
	header[slices.IndexFunc(header, func(c column) bool { return c.spread })].aside = "(" + plural(f.layers, "layer") + ")"
	all := len(cases)
	fold(header, func(name string) bool {
		if name == "arithmetic" {
			return true // kv has it where it is not chain
		}
		same := 0
		for _, c := range cases {
			if describe(c, name) == describe(cases[0], name) {
				same++
			}
		}
		return same == all
	}, "geometry", "kv", "arithmetic", "codec", "way", "workers", "batch")
	return header
}

// describe says for people what a case has in a column.
func describe(c bench.Case, name string) string {
	switch name {
	case "geometry":
		return fmt.Sprintf("%s of %d heads on %d, head_dim %d", plural(c.Layers, "layer"), c.Heads, c.KVHeads, c.HeadDim)
	case "kv":
		return "kv " + storedAs(c)
	case "codec":
		return "codec " + codecName(c)
	case "way":
		if c.Direct {
			return "directly to the workers"
		}
		return "through the coordinator"
	case "workers":
		if c.Workers == 0 {
			return "all workers"
		}
		return "at most " + plural(c.Workers, "worker")
	case "batch":
		return plural(c.Batch, "session")
	}
	return ""
}

// heading is what stands above a Markdown table: what runs, and what all rows share.
func (f *benchFlags) heading(cases []bench.Case, answering []client.WorkerStatus) []string {
	words := []string{fmt.Sprintf("headwater %s, %s of kernel %s with %s", programVersion, plural(len(answering), "worker"), kernels(answering), threads(answering))}
	for _, c := range f.header(cases) {
		if c.folded && c.name != "arithmetic" {
			words = append(words, describe(cases[0], c.name))
		}
	}
	return append(strings.Split(reflow(strings.Join(words, "; ")), "\n"), "")
}

// about is what holds for all rows, for scripts.
func (f *benchFlags) about(status *client.Status, answering []client.WorkerStatus) []fact {
	return []fact{
		{"version", programVersion},
		{"coordinator_version", status.Version},
		{"kernel", kernels(answering)},
		{"threads", threadCount(answering)},
		{"layers", f.layers},
	}
}

// kernels names the workers' kernels, each once.
func kernels(answering []client.WorkerStatus) string {
	return each(answering, func(w *client.WorkerStatus) string { return w.Kernel })
}

// threads says how many threads the workers have.
func threads(answering []client.WorkerStatus) string {
	return each(answering, func(w *client.WorkerStatus) string { return plural(int(w.Threads), "thread") })
}

// threadCount is threads for scripts: a number where all workers have as many.
func threadCount(answering []client.WorkerStatus) any {
	for _, w := range answering {
		if w.Threads != answering[0].Threads {
			return threads(answering)
		}
	}
	return answering[0].Threads
}

func each(answering []client.WorkerStatus, of func(*client.WorkerStatus) string) string {
	var all []string
	for _, w := range answering {
		if word := of(&w); !slices.Contains(all, word) {
			all = append(all, word)
		}
	}
	return strings.Join(all, " and ")
}

// storedAs says how a case's keys and values are stored, in which arithmetic unless it is chain, and how they are sent where that
// is not the same.
func storedAs(c bench.Case) string {
	name := shard.StorageName(c.Storage)
	if c.Arithmetic != attention.Chain {
		name += " " + c.Arithmetic.String()
	}
	if c.SendF32 && c.Storage != tensor.F32 {
		name += " sent f32"
	}
	if c.Stripes > 1 {
		name += fmt.Sprintf(" in %d stripes", c.Stripes)
	}
	return name
}

func codecName(c bench.Case) string {
	if c.Codec == "" {
		return "auto"
	}
	return string(c.Codec)
}

// benchCells are a row as it is printed.
func benchCells(r *bench.Row, all int) []any {
	way, workers, rate := "relay", r.Workers, any(nil)
	if r.Direct {
		way = "direct"
	}
	if workers == 0 || workers > all {
		workers = all
	}
	if n := r.BytesPerSecond(); n > 0 {
		rate = n / 1e9
	}
	in := any(nil)
	if share, known := r.KernelShare(); known {
		in = share
	}
	ms := func(q float64) float64 { return float64(r.Quantile(q)) / float64(time.Millisecond) }
	mean, deviation, known := r.MeanRate()
	test := string(r.Test)
	if r.Test == bench.Load {
		test = fmt.Sprintf("load %s/s", strconv.FormatFloat(r.Rate, 'f', -1, 64))
	}
	return []any{
		test, fmt.Sprintf("%dx %d/%d d %d", r.Layers, r.Heads, r.KVHeads, r.HeadDim), storedAs(r.Case), r.Arithmetic.String(), codecName(r.Case), way, workers, r.Batch, r.Positions,
		spread{mean, deviation, known},
		ms(0.5), ms(0.99), ms(0.999), rate, r.FlopsPerSecond() / 1e9, in,
	}
}

// codecRounds is how often each codec is timed.
const codecRounds = 9

// benchCodecs measures the codecs on the contexts of a result file, or the storage types on the keys and values of a job file.
func (a *app) benchCodecs(f benchFlags) error {
	kv, err := bench.JobRows(f.codecs)
	if err != nil {
		return err
	}
	var blocks []contextframe.Block
	if len(kv) == 0 {
		if blocks, err = bench.ContextBlocks(f.codecs); err != nil {
			return err
		}
	}
	rows := a.rows(f.format, []fact{{"version", programVersion}, {"kernel", attention.KernelName()}}, columns("codec", ">ratio", ">encode and decode GB/s", ">encode GB/s", ">decode GB/s", ">largest error"))
	for _, storage := range []tensor.DType{tensor.BF16, tensor.F16, tensor.I8} {
		if len(kv) == 0 {
			break
		}
		m, err := bench.MeasureRows(storage, kv, codecRounds, time.Now)
		if err != nil {
			return fmt.Errorf("%s: %w", f.codecs, err)
		}
		err = rows.add("k and v as "+shard.StorageName(storage), float64(m.Stored)/float64(m.Bytes), nil, float64(m.Bytes)/m.Took.Seconds()/1e9, nil, m.MaxError)
		if err != nil {
			return err
		}
	}
	for _, codec := range contextframe.Codecs() {
		if len(blocks) == 0 {
			break
		}
		m, err := contextframe.Measure(codec, blocks, codecRounds, time.Now)
		if err != nil {
			return fmt.Errorf("%s: %w", f.codecs, err)
		}
		rate := func(d time.Duration) float64 { return float64(m.ContextBytes) / d.Seconds() / 1e9 }
		if err := rows.add(codec.String(), m.Ratio(), m.Rate()/1e9, rate(m.Encode), rate(m.Decode), m.MaxError); err != nil {
			return err
		}
	}
	return rows.end()
}
