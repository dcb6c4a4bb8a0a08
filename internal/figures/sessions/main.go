// Command sessions measures sessions on local clusters and prints one line "figure NAME VALUE" for each figure, the median
// over interleaved rounds. Geometry: 32 query heads, 8 groups, head_dim 128, bf16, one layer, workers of one thread, and a
// client that speaks to the workers itself, unless said.
//
//	step_16k      a step of one token that sees 16,384 positions, or up to 7 fewer / (the kernel alone on such pages, in a process like a
//	              worker's + an echo of the same bytes over the same kind of stream)
//	step_1k, step_128   the same at 1,024 and 128 positions
//	step_share_16k, step_share_1k, step_share_128   the kernel alone / the step: the share of the kernel's own rate
//	step_b8_2threads   steps a second of 8 sessions of 4,096 positions, each on a lane of its own, on one worker of two threads / of
//	              the kernel alone, two callers with a thread and four sequences each
//	scale_2w      (steps a second of 8 sequences of 16,384 positions on two workers / on one) / (read bandwidth of two cores
//	              / of one, in the same round)
//	prefill_8k    a prompt of 8,192 tokens through a session / the kernel alone
//	prefill_stall decodes while the last 4,096 tokens of a prompt of 32,768 are prefilled: their p99 / their p99 without
//	prefill_keep  the rate of that prefill / its rate without decodes
//	ratio_f32, ratio_bf16, ratio_int8   bytes of the contexts of a real model as frames of 64 rows, with headers and LSE / in f32
//	rate_f32, rate_bf16, rate_int8      their encoding plus decoding on one core, GB of f32 a second
//	kv_overhead   (resident bytes of a worker − those when idle) of 1,000 sessions of 100 tokens, 2 layers of 4 groups, f16 /
//	              the bytes of the whole pages that they need
//	kv_overhead_32k   the same of 4 sessions of 32,768 tokens
//	fork_ms       a fork of a session of 32,768 tokens, 32 layers, 8 groups, f16, with the first append to every layer of
//	              the fork; milliseconds
//	py_step       a step of one token that sees 16,384 positions from the Python client / from Go
//	py_overhead_us   a step of one token that sees 128 positions from the Python client − from Go, microseconds
//	metrics_cost  a step of one token that sees 128 positions through a coordinator, with the admin ports of coordinator and worker
//	              and one step in a hundred traced / without
//	viewers_cost  the p99 of such steps while 100 look at the coordinator's dashboard / while nobody does
//	mtls_step, mtls_step_128   a step of one token that sees 16,384 or 128 positions, of a client that speaks to the worker itself,
//	              with TLS / without
//
// The samples are kept as JSON.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"regexp"
	"slices"
	"time"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	err := run(ctx, os.Args[1:])
	stop()
	if err != nil && !errors.Is(err, flag.ErrHelp) {
		fmt.Fprintln(os.Stderr, "figures:", err)
		os.Exit(1)
	}
}

// figures is one run.
type figures struct {
	bin, fixtures, python string
	rounds                int
	bare                  *bare

	Taken   time.Time           `json:"taken"`
	Rounds  int                 `json:"rounds"`
	Samples map[string][]sample `json:"samples"`
}

// sample is one round of a figure: its value, and what it was made of.
type sample struct {
	Value float64            `json:"value"`
	Parts map[string]float64 `json:"parts,omitempty"`
}

// group is the figures that are measured together.
type group struct {
	names   []string
	measure func(context.Context, *figures) error
}

var groups = []group{
	{[]string{"ratio_f32", "ratio_bf16", "ratio_int8", "rate_f32", "rate_bf16", "rate_int8"}, codecs},
	{[]string{"step_16k", "step_1k", "step_128", "step_share_16k", "step_share_1k", "step_share_128"}, steps},
	{[]string{"step_b8_2threads"}, batch},
	{[]string{"scale_2w"}, scale},
	{[]string{"prefill_8k"}, prefill},
	{[]string{"prefill_stall", "prefill_keep"}, stall},
	{[]string{"kv_overhead", "kv_overhead_32k"}, overhead},
	{[]string{"fork_ms"}, fork},
	{[]string{"py_step"}, python},
	{[]string{"py_overhead_us"}, overheadOfPython},
	{[]string{"metrics_cost"}, observed},
	{[]string{"viewers_cost"}, viewed},
	{[]string{"mtls_step", "mtls_step_128"}, encrypted},
}

func run(ctx context.Context, args []string) (err error) {
	f := &figures{Taken: time.Now(), Samples: map[string][]sample{}}
	flags := flag.NewFlagSet("sessions", flag.ContinueOnError)
	flags.StringVar(&f.bin, "bin", "bin", "folder of the binaries")
	flags.StringVar(&f.python, "python", ".cache/python/bin/python", "Python with what the client in clients/python needs")
	flags.StringVar(&f.fixtures, "fixtures", "test/data/smollm2", "folder of the fixtures")
	flags.IntVar(&f.rounds, "rounds", 5, "rounds of each figure")
	samples := flags.String("samples", "figures/sessions.json", "file for the raw samples")
	only := flags.String("run", "", "measure only groups with a figure whose name matches this regular expression")
	serve := flags.Bool("bare", false, "internal: serve echoes and kernels until stdin ends")
	if err := flags.Parse(args); err != nil {
		return err
	}
	if *serve {
		return serveBare(os.Stdin, os.Stdout)
	}
	match, err := regexp.Compile(*only)
	if err != nil {
		return err
	}
	f.Rounds = f.rounds
	if f.bare, err = startBare(ctx, 1); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.bare.stop()) }()
	for _, g := range groups {
		if !slices.ContainsFunc(g.names, match.MatchString) {
			continue
		}
		if err := g.measure(ctx, f); err != nil {
			return fmt.Errorf("%s: %w", g.names[0], err)
		}
		for _, name := range g.names {
			fmt.Printf("figure %s %.4f\n", name, f.median(name))
		}
	}
	if err := os.MkdirAll(filepath.Dir(*samples), 0o755); err != nil {
		return err
	}
	text, err := json.MarshalIndent(f, "", " ")
	if err != nil {
		return err
	}
	return os.WriteFile(*samples, append(text, '\n'), 0o644)
}

// add keeps one round of a figure.
func (f *figures) add(name string, value float64, parts map[string]float64) {
	f.Samples[name] = append(f.Samples[name], sample{value, parts})
}

func (f *figures) median(name string) float64 {
	var all []float64
	for _, s := range f.Samples[name] {
		all = append(all, s.Value)
	}
	return median(all)
}

func median(all []float64) float64 {
	all = slices.Sorted(slices.Values(all))
	n := len(all)
	if n == 0 {
		return 0
	}
	return (all[(n-1)/2] + all[n/2]) / 2
}

// times calls do so often and returns the median of the seconds that it took.
func times(n int, do func() error) (float64, error) {
	took := make([]float64, n)
	for i := range took {
		began := time.Now()
		if err := do(); err != nil {
			return 0, err
		}
		took[i] = time.Since(began).Seconds()
	}
	return median(took), nil
}
