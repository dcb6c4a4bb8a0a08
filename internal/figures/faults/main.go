// Command faults measures how the programs bear bad luck and bad company, and prints one line "figure NAME VALUE" for each
// figure:
//
//	walk_steps   steps that several drivers of each of 8 sessions have done in 60 s, in bad company, each held to what it was
//	             told
//	stop_s       seconds from SIGTERM to the end, of a worker and of a coordinator with 100 connections each that say nothing
//	             and 100 that step sessions; the longer of the two
//	soak_over    largest resident size of a worker by its --memory and 96 MiB, under 128 ordinary clients and 8 that never
//	             read, in a memory group of 1 GiB where the machine permits one
//	soak_back_s  seconds after that load until the worker has at most 64 MiB more than an idle one
//	coord_flight largest resident size of a coordinator with two workers and 64 clients that read nothing / the
//	             896 MiB that docs/durability.md states
//	expire_ms    longest answer of a worker while 10,000 sessions expire together, in milliseconds
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"regexp"
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

// figures are measured one after the other, each on processes of its own.
var figures = []struct {
	name    string
	measure func(ctx context.Context, bin string) (float64, error)
}{
	{"stop_s", stopSeconds},
	{"walk_steps", walkSteps},
	{"expire_ms", expireMillis},
	{"coord_flight", coordFlight},
	{"soak_over", soakOver},
	{"soak_back_s", soakBack},
}

func run(ctx context.Context, args []string) error {
	flags := flag.NewFlagSet("faults", flag.ContinueOnError)
	bin := flags.String("bin", "bin", "folder of the binaries")
	only := flags.String("run", "", "measure only figures whose name matches this regular expression")
	flags.DurationVar(&soakFor, "soak", time.Minute, "how long the load of a soak lasts")
	if err := flags.Parse(args); err != nil {
		return err
	}
	match, err := regexp.Compile(*only)
	if err != nil {
		return err
	}
	for _, f := range figures {
		if !match.MatchString(f.name) {
			continue
		}
		value, err := f.measure(ctx, *bin)
		if err != nil {
			return fmt.Errorf("%s: %w", f.name, err)
		}
		fmt.Printf("figure %s %.2f\n", f.name, value)
	}
	return nil
}
