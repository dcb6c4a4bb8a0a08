// Command simulate tries what decides where sessions lie (internal/placement and shard's plans, as they ship) on clusters that are
// larger than any machine here, with a simulated clock, and prints one line "figure NAME VALUE" for each figure:
//
//	plan_ms          milliseconds in which all that is lost gets a new place after 50 of 1,000 workers have left: a session of 80
//	                 layers of 8 groups with a copy, in 20 zones
//	plan_moves       copies that are made for that / copies that were lost, which is the least possible
//	plan_job_ms      milliseconds of planning a job of that geometry anew after the same loss
//	plan_job_moves   shards that it moves / shards that were lost
//	plan_one_zone    shards whose holders are in one zone after that
//	sim_spread       bytes of the heaviest worker / mean, with 100 workers and 100,000 sessions of log-normal length with a copy, after 10
//	                 workers have left, one after the other, 10 others have come, and sessions were moved for even loads
//	sim_spread_new   the same before anybody leaves, sim_spread_left after ten have left, sim_spread_come before sessions were moved
//	sim_rebuild_s    seconds until one worker's copies are made again, at the rate of coord serve --copy-rate
//	sim_moved        bytes moved for even loads / bytes that the ten who came hold then
//	sim_messages     messages that one step of one layer is for its coordinator: to all holders, and back
//	sim_tail         p99 of a token of 32 layers / its median, each layer as slow as the slowest of 8 holders, of whom one in a
//	                 thousand is held up for twenty times as long as usual
//	sim_tail_hedged  what it would be if another holder were asked after three times as long as usual, as attends are that append nothing
//	sim_slow_p99     p99 of a token with weights of measured speed / without, with 20 workers of whom one is half as fast, and sessions that
//	                 come and go, each on 4 workers at most; sim_slow_p50 the same of half of the tokens
//	sim_slow_bytes   bytes of the slow worker / mean then, and sim_slow_changes how often a worker's share of its weight changed in the
//	                 second half of the hour; sim_alike_changes the same if no worker is slow
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
	"strings"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	err := run(ctx, os.Args[1:])
	stop()
	if err != nil && !errors.Is(err, flag.ErrHelp) {
		fmt.Fprintln(os.Stderr, "simulate:", err)
		os.Exit(1)
	}
}

// sample is one figure, with what it was made from.
type sample struct {
	Name  string  `json:"name"`
	Value float64 `json:"value"`
	Raw   any     `json:"raw,omitempty"`
}

// simulation prints figures and keeps them.
type simulation struct {
	seed     uint64
	sessions int
	samples  []sample
	pictures []picture
}

func (s *simulation) say(name string, value float64, raw any) {
	fmt.Printf("figure %s %.4g\n", name, value)
	s.samples = append(s.samples, sample{name, value, raw})
}

// parts are what is simulated, one after the other.
var parts = []struct {
	names string
	do    func(ctx context.Context, s *simulation) error
}{
	{"plan_ms plan_moves plan_one_zone", replan},
	{"plan_job_ms plan_job_moves", replanJob},
	{"sim_spread sim_spread_new sim_spread_left sim_spread_come sim_rebuild_s sim_moved sim_messages", churn},
	{"sim_tail sim_tail_hedged", tail},
	{"sim_slow_p99 sim_slow_p50 sim_slow_bytes sim_slow_changes sim_alike_changes", slowWorker},
}

func run(ctx context.Context, args []string) error {
	flags := flag.NewFlagSet("simulate", flag.ContinueOnError)
	only := flags.String("run", "", "simulate only what prints a figure whose name matches this regular expression")
	samples := flags.String("samples", "", "write the figures, with what they were made from, to this file as JSON")
	plot := flags.String("plot", "", "draw the loads of the workers into this PNG file")
	s := &simulation{}
	flags.Uint64Var(&s.seed, "seed", 1, "seed of the sessions' lengths and ids")
	flags.IntVar(&s.sessions, "sessions", 100_000, "how many sessions")
	if err := flags.Parse(args); err != nil {
		return err
	}
	match, err := regexp.Compile(*only)
	if err != nil {
		return err
	}
	for _, p := range parts {
		chosen := false
		for name := range strings.FieldsSeq(p.names) {
			chosen = chosen || match.MatchString(name)
		}
		if chosen {
			if err := p.do(ctx, s); err != nil {
				return err
			}
		}
	}
	if *samples != "" {
		text, err := json.MarshalIndent(s.samples, "", "  ")
		if err != nil {
			return err
		}
		if err := os.MkdirAll(filepath.Dir(*samples), 0o755); err != nil {
			return err
		}
		if err := os.WriteFile(*samples, append(text, '\n'), 0o644); err != nil {
			return err
		}
	}
	if *plot != "" && len(s.pictures) > 0 {
		return draw(*plot, s.pictures)
	}
	return nil
}
