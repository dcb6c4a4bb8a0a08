// Command survive measures what users see of failures, and prints one line "figure NAME VALUE" for each figure. Unless said, there
// are 8 sessions of 4,096 positions and 2 layers, 32 query heads, 8 groups, head_dim 128, bf16, with one copy on three workers of one
// thread, which clients that speak to the workers themselves step without a pause; all copies are there again between faults.
//
//	kill_pause_ms      kills of a worker: p99 over the longest gap between two tokens of each session, from the fault until all copies are
//	                   there again; milliseconds
//	hang_pause_ms      the same if the worker's process is stopped for three seconds
//	blackhole_pause_ms the same if all packets to and from the worker are dropped for three seconds
//	coord_down_kill_ms the same as kill_pause_ms while the only coordinator is down
//	coord_restart_ms   kill and restart of the only coordinator, through which the clients speak: p99 over the longest gap
//	replica_cost, replica_cost_128   a token of one session that sees 16,384 or 128 positions, with one copy / without
//	hedge_p99          one of three workers stands still for 200 ms ten times a minute: p99 of attends of which those that are late are
//	                   asked of another worker as well / without. They append nothing, and are asked at fixed times
//	hedge_share        the share of the attends that is asked twice
//	drain_p99          p99 of tokens while a worker is drained / before
//	drain_errors       errors that the sessions have had meanwhile
//	drain_mbs          bytes a second of sessions that nobody steps, while a worker is drained without a bound of --copy-rate / those of a
//	                   gRPC stream on loopback
//	mqa_2w             tokens of a session of one group that see 65,536 positions: two workers over one, each of one thread / the kernel
//	                   on two cores over one
//	mqa_2w_cores       the same if each worker is kept on a core of its own
//
// The samples are kept as JSON. It runs in a network namespace of its own if that is possible; otherwise blackhole_pause_ms is left out.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"regexp"
	"slices"
	"time"

	"headwater.example/internal/testkit/cut"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	code := 0
	if !cut.Inside() {
		again, err := cut.Again(ctx)
		if err == nil {
			stop()
			os.Exit(again)
		}
		fmt.Fprintln(os.Stderr, "figures:", err)
	}
	if err := run(ctx, os.Args[1:]); err != nil && !errors.Is(err, flag.ErrHelp) {
		fmt.Fprintln(os.Stderr, "figures:", err)
		code = 1
	}
	stop()
	os.Exit(code)
}

// figures is one run.
type figures struct {
	bin     string
	log     io.Writer // of the processes
	kills   int
	network *cut.Network // nil if packets can't be dropped here

	Taken   time.Time           `json:"taken"`
	Samples map[string][]sample `json:"samples"`
}

// sample is one fault, or one round: its value, and what it was made of.
type sample struct {
	Value float64            `json:"value"`
	Parts map[string]float64 `json:"parts,omitempty"`
}

// group is the figures that are measured together.
type group struct {
	names   []string
	measure func(context.Context, *figures) (values []float64, err error)
}

var groups = []group{
	{[]string{"kill_pause_ms"}, killPause},
	{[]string{"hang_pause_ms"}, hangPause},
	{[]string{"blackhole_pause_ms"}, blackholePause},
	{[]string{"coord_down_kill_ms"}, downKillPause},
	{[]string{"coord_restart_ms"}, restartPause},
	{[]string{"replica_cost", "replica_cost_128"}, replicaCost},
	{[]string{"hedge_p99", "hedge_share"}, hedgeTail},
	{[]string{"drain_p99", "drain_errors"}, drainTokens},
	{[]string{"drain_mbs"}, drainRate},
	{[]string{"mqa_2w", "mqa_2w_cores"}, mqa},
}

func run(ctx context.Context, args []string) error {
	f := &figures{Taken: time.Now(), Samples: map[string][]sample{}}
	flags := flag.NewFlagSet("survive", flag.ContinueOnError)
	flags.StringVar(&f.bin, "bin", "bin", "folder of the binaries")
	flags.IntVar(&f.kills, "kills", 50, "faults of each kind")
	verbose := flags.Bool("log", false, "show what the processes say")
	samples := flags.String("samples", "figures/survive.json", "file for the raw samples")
	only := flags.String("run", "", "measure only groups with a figure whose name matches this regular expression")
	if err := flags.Parse(args); err != nil {
		return err
	}
	match, err := regexp.Compile(*only)
	if err != nil {
		return err
	}
	if *verbose {
		f.log = os.Stderr
	}
	if f.kills < 1 {
		return errors.New("-kills is less than 1")
	}
	if cut.Inside() {
		if f.network, err = cut.Open(); err != nil {
			return err
		}
	}
	for _, g := range groups {
		if !slices.ContainsFunc(g.names, match.MatchString) {
			continue
		}
		values, err := g.measure(ctx, f)
		if err != nil {
			return fmt.Errorf("%s: %w", g.names[0], err)
		}
		for i, value := range values {
			fmt.Printf("figure %s %.4g\n", g.names[i], value)
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

// add keeps a sample of a figure.
func (f *figures) add(name string, value float64, parts map[string]float64) {
	f.Samples[name] = append(f.Samples[name], sample{value, parts})
}

// p99 is what one in a hundred exceeds.
func p99(all []float64) float64 {
	all = slices.Sorted(slices.Values(all))
	return all[len(all)*99/100]
}

// middle is the median.
func middle(all []float64) float64 {
	all = slices.Sorted(slices.Values(all))
	return (all[(len(all)-1)/2] + all[len(all)/2]) / 2
}
