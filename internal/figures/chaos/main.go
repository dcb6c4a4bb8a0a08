// Command chaos drives sessions with copies over processes that are killed, stopped and cut off the network, at random, and prints one
// line "figure NAME VALUE" for each figure:
//
//	chaos_faults      faults: kills and restarts, processes that stand still, packets dropped to a process, from it, or both
//	chaos_answers     contexts that were compared in every bit with those of the named prefix
//	chaos_appends     appends that were acknowledged
//	chaos_ordered     appends, truncations, forks, takes and snapshots for which there is one order that explains all answers
//	chaos_available   share of the calls that went well within two seconds, of those that had so long and met no other driver
//	chaos_wrong_bits  wrong answers
//	chaos_lost        acknowledged appends that were lost although a holder of each shard lived
//	chaos_parted      sessions that went on twice, since not all of their holders could be reached (docs/decisions/008-cut-off.md)
//
// Several clients drive each session, and what each was told is kept (internal/testkit/drivers). The first thing that must not be ends
// the run with an error that names the seed; chaos_wrong_bits and chaos_lost are printed if there was none. Faults come one after the other, and
// all copies are there again before one that may cost a copy, so no loss is allowed. The seed fixes what is done, not when.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"time"

	"headwater.example/internal/testkit/cut"
	"headwater.example/internal/testkit/drivers"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	if !cut.Inside() {
		again, err := cut.Again(ctx)
		if err == nil {
			stop()
			os.Exit(again)
		}
		fmt.Fprintf(os.Stderr, "chaos: %v: nothing is cut off\n", err)
	}
	err := run(ctx, os.Args[1:])
	stop()
	if err != nil && !errors.Is(err, flag.ErrHelp) {
		fmt.Fprintln(os.Stderr, "chaos:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string) (err error) {
	flags := flag.NewFlagSet("chaos", flag.ContinueOnError)
	bin := flags.String("bin", "bin", "folder of the binaries")
	length := flags.Duration("time", 10*time.Minute, "how long")
	still := flags.Bool("connected", false, "cut nothing off the network")
	log := flags.String("log", "", "file for what the processes say, instead of stderr")
	seed := flags.Uint64("seed", 0, "of what is done; 0 is another one each time")
	if err := flags.Parse(args); err != nil {
		return err
	}
	if *seed == 0 {
		*seed = uint64(time.Now().UnixNano())
	}
	program, err := filepath.Abs(filepath.Join(*bin, "coord"))
	if err != nil {
		return err
	}
	config := drivers.Config{
		Workers: 3, Sessions: 8, Drivers: 2, Budget: 64 << 20, Replicas: 1, Seed: *seed, Time: *length, Command: program, Log: os.Stderr,
	}
	if *log != "" {
		f, err := create(*log)
		if err != nil {
			return err
		}
		defer func() { err = errors.Join(err, f.Close()) }()
		config.Log = f
	}
	if cut.Inside() {
		network, err := cut.Open()
		if err != nil {
			return err
		}
		if !*still {
			config.Network = network
		}
	}
	fmt.Fprintf(os.Stderr, "chaos: %v with seed %d\n", *length, *seed)
	t, err := drivers.Run(ctx, config)
	fmt.Fprintf(os.Stderr, "chaos: %+v\n", t)
	if err != nil {
		return fmt.Errorf("seed %d: %w", *seed, err)
	}
	if t.Absent > 0 {
		return fmt.Errorf("seed %d: %d sessions have not come back within a minute of peace", *seed, t.Absent)
	}
	report(t)
	return nil
}

// report prints the figures.
func report(t drivers.Tally) {
	if t.Undecided > 0 {
		fmt.Fprintf(os.Stderr, "chaos: for %d calls no order was found in time, and none was ruled out\n", t.Undecided)
	}
	for _, f := range []struct {
		name  string
		value float64
	}{
		{"chaos_faults", float64(t.Kills + t.Stops + t.Cuts)},
		{"chaos_answers", float64(t.Contexts)},
		{"chaos_appends", float64(t.Appends)},
		{"chaos_ordered", float64(t.Ordered)},
		{"chaos_available", float64(t.Timely) / float64(max(t.Attempts, 1))},
		{"chaos_wrong_bits", 0},
		{"chaos_lost", 0},
		{"chaos_parted", float64(t.Parted)},
	} {
		fmt.Printf("figure %s %.4g\n", f.name, f.value)
	}
}

// create makes a file, and the folder that it is in.
func create(path string) (*os.File, error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return nil, err
	}
	return os.Create(path)
}
