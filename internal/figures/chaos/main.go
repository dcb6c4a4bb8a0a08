// Command chaos drives sessions with copies over processes that are killed, stopped and cut off the network, at random, and prints one
// line "figure NAME VALUE" for each figure:
//
//	chaos_faults      faults: kills and restarts, processes that stand still, packets dropped to a process, from it, or both, packets that
//	                  come late and out of order, a slow network, and a process that gets no more memory
//	chaos_answers     contexts that were compared in every bit with those of the named prefix
//	chaos_appends     appends that were acknowledged
//	chaos_ordered     appends, truncations, forks, takes and snapshots for which there is one order that explains all answers
//	chaos_available   share of the calls that went well within two seconds, of those that had so long and met no other driver
//	chaos_wrong_bits  wrong answers
//	chaos_lost        acknowledged appends that were lost although a holder of each shard lived
//	chaos_parted      sessions that went on twice, since not all of their holders could be reached (docs/decisions/008-cut-off.md)
//	chaos_jobs        jobs whose submission was acknowledged
//	chaos_disk        times that the coordinator's disk was full, and files that were cut or changed while it was dead
//	chaos_jobs_lost   jobs that are not there without a word, or came to another end than they should
//
// Several clients drive each session, and what each was told is kept (internal/testkit/drivers). On another cluster clients submit
// jobs (internal/testkit/submitters). The first thing that must not be ends the run with an error that names the seed; the figures that
// are 0 are printed if there was none. Faults come one after the other, and all copies are there again before one that may cost a copy,
// so no loss is allowed. The seed fixes what is done, not when.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"sync"
	"time"

	"headwater.example/internal/testkit/cut"
	"headwater.example/internal/testkit/drivers"
	"headwater.example/internal/testkit/jump"
	"headwater.example/internal/testkit/submitters"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	if !cut.Inside() {
		again, err := cut.Again(ctx)
		if err == nil {
			stop()
			os.Exit(again)
		}
		fmt.Fprintf(os.Stderr, "chaos: %v: nothing is cut off, and no disk is full\n", err)
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
	clocks := flags.Bool("clocks", true, "build a program whose clock jumps, and let it jump")
	still := flags.Bool("connected", false, "cut nothing off the network")
	coordinators := flags.Int("coordinators", 1, "of the sessions' cluster: one or two")
	only := flags.String("run", "", "sessions or jobs alone")
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
		Workers: 3, Coordinators: *coordinators, Sessions: 8, Drivers: 2, Budget: 64 << 20, Replicas: 1, Seed: *seed, Time: *length, Command: program, Log: os.Stderr,
	}
	jobs := submitters.Config{Command: program, Clients: 4, Seed: *seed, Time: *length, Log: os.Stderr}
	if *log != "" {
		f, err := create(*log)
		if err != nil {
			return err
		}
		defer func() { err = errors.Join(err, f.Close()) }()
		config.Log, jobs.Log = f, f
	}
	if *clocks {
		work, err := os.MkdirTemp("", "headwater-chaos-")
		if err != nil {
			return err
		}
		defer func() { err = errors.Join(err, os.RemoveAll(work)) }()
		if err := jumping(ctx, work, &config, &jobs); err != nil {
			fmt.Fprintf(os.Stderr, "chaos: %v: no clock jumps\n", err)
		}
	}
	if cut.Inside() {
		network, err := cut.Open()
		if err != nil {
			return err
		}
		if !*still {
			config.Network = network
			config.Slow = possible("the network is never slow", network.Slows())
			config.Delay = possible("no packets come late", network.Delays())
		}
		jobs.Disk = cut.Disk
	}
	config.Starve = possible("all processes always get memory", cut.Starves())
	fmt.Fprintf(os.Stderr, "chaos: %v with seed %d\n", *length, *seed)
	if err := both(ctx, *only, config, jobs); err != nil {
		return fmt.Errorf("seed %d: %w", *seed, err)
	}
	return nil
}

// possible says which fault is left out, if it can't be brought about here.
func possible(without string, err error) bool {
	if err != nil {
		fmt.Fprintf(os.Stderr, "chaos: %v: %s\n", err, without)
	}
	return err == nil
}

// jumping lets both have a program whose clock jumps.
func jumping(ctx context.Context, work string, sessions *drivers.Config, jobs *submitters.Config) error {
	c, err := jump.Build(ctx, work, "headwater.example/cmd/coord")
	if err != nil {
		return err
	}
	sessions.Clocks, sessions.Command, jobs.Clocks, jobs.Command = c, c.Program, c, c.Program
	return nil
}

// both drives sessions and submits jobs, until the first thing that must not be.
func both(ctx context.Context, only string, sessions drivers.Config, jobs submitters.Config) error {
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	var driven drivers.Tally
	var submitted submitters.Tally
	var failures [2]error
	var all sync.WaitGroup
	for i, one := range []struct {
		name string
		do   func() error
	}{
		{"sessions", func() (err error) { driven, err = drivers.Run(ctx, sessions); return err }},
		{"jobs", func() (err error) { submitted, err = submitters.Run(ctx, jobs); return err }},
	} {
		if only != "" && only != one.name {
			continue
		}
		all.Go(func() {
			if failures[i] = one.do(); failures[i] != nil {
				stop()
			}
		})
	}
	all.Wait()
	if err := errors.Join(failures[:]...); err != nil {
		return fmt.Errorf("%w (done until then: %+v, %+v)", err, driven, submitted)
	}
	if only != "jobs" {
		if err := report(driven); err != nil {
			return err
		}
	}
	if only != "sessions" {
		reportJobs(submitted)
	}
	return nil
}

// report prints the figures of sessions.
func report(t drivers.Tally) error {
	fmt.Fprintf(os.Stderr, "chaos: %+v\n", t)
	if t.Absent > 0 {
		return fmt.Errorf("%d sessions have not come back within a minute of peace", t.Absent)
	}
	if t.Undecided > 0 {
		fmt.Fprintf(os.Stderr, "chaos: for %d calls no order was found in time, and none was ruled out\n", t.Undecided)
	}
	figure("chaos_faults", float64(t.Kills+t.Stops+t.Cuts+t.Slowed+t.Delayed+t.Starved))
	figure("chaos_jumps", float64(t.Jumps))
	figure("chaos_answers", float64(t.Contexts))
	figure("chaos_appends", float64(t.Appends))
	figure("chaos_ordered", float64(t.Ordered))
	figure("chaos_available", float64(t.Timely)/float64(max(t.Attempts, 1)))
	figure("chaos_wrong_bits", 0)
	figure("chaos_lost", 0)
	figure("chaos_parted", float64(t.Parted))
	return nil
}

// reportJobs prints those of jobs.
func reportJobs(t submitters.Tally) {
	fmt.Fprintf(os.Stderr, "chaos: %+v\n", t)
	figure("chaos_jobs", float64(t.Submitted))
	figure("chaos_disk", float64(t.Fills+t.Torn))
	figure("chaos_jobs_lost", 0)
}

func figure(name string, value float64) { fmt.Printf("figure %s %.4g\n", name, value) }

// create makes a file, and the folder that it is in.
func create(path string) (*os.File, error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return nil, err
	}
	return os.Create(path)
}
