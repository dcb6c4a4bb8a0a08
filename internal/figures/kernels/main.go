// Command kernels measures the attention kernels against what the machine can do at most, and prints one line
// "figure NAME VALUE" for each figure, the median over interleaved rounds, each held against the limits of its own round.
// The geometry is 32 query heads, 8 groups, head_dim 128, on one core, unless said; every decode reads a working set of at
// least 8 times the last-level cache, in sequences of 16,384 positions.
//
//	decode_f32, decode_f16, decode_bf16  one query token a sequence: KV bytes read a second / read bandwidth
//	decode_int8      the same: positions a second / the lower of the limits by the bus and by the FMA units
//	decode_g8        64 query heads on 8 groups, f16: KV bytes read a second / read bandwidth
//	decode_2core     f16, each core its own sequences: (two cores / one) / (read bandwidth of two cores / of one)
//	decode_2threads  f16, one sequence after the other shared out over two threads: their rate / that of decode_2core
//	decode_2threads_2k  the same for one sequence of 2,048 positions over and over / two callers with half of the groups each
//	decode_b8_2threads  the same for 8 sequences of 4,096 in one call / two callers with four sequences each
//	prefill_512_2k   512 queries on 2,048 positions, causal, f32: useful flops a second / FMA peak
//	prefill_mha      the same with 32 groups
//	decode_avx2      as decode_f16, on the AVX2 kernel / the lower of the bus and the 256-bit FMA peak, where there is AVX2
//	prefill_avx2     as prefill_512_2k, likewise
//	project          x [512, 4096] · w [4096, 4096], f32: flops a second / FMA peak
//	decode_short     one query on 128 positions, f16, as many of the groups as half of L2 holds: flops a second / FMA peak
//	append_f16, append_int8  tokens appended one at a time to 1,000 sequences: bytes of K and V, in their storage type,
//	                 taken in a second / write bandwidth
//	job_32k          with -job: a job of 32,768 positions and 64 queries on a local cluster of two workers, from its
//	                 submission to the result on disk / (kernel time of the slower worker + the job's bytes over its hops
//	                 through bare gRPC streams + fsync of the result)
//
// The limits are those of package limits, measured before and after the kernels of every round; a round's limit is the
// mean of both. Where the bus or the FMA peak that a figure does not name holds its kernel back more, stderr says so.
//
// With -bench it prints a table instead, with more geometries; with -plot it draws the samples of an earlier run. The rows
// of another kernel than the one that the machine selects are measured by a child process with HEADWATER_KERNEL set.
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
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	err := run(ctx, os.Args[1:], os.Stdin, os.Stdout, os.Stderr)
	stop()
	if err != nil && !errors.Is(err, flag.ErrHelp) {
		fmt.Fprintln(os.Stderr, "figures:", err)
		os.Exit(1)
	}
}

// command is what the flags say.
type command struct {
	samples, bin, plot, child   string
	model                       string
	only                        *regexp.Regexp
	rounds                      int
	quick, bench, job, bareServ bool
}

func run(ctx context.Context, args []string, in io.Reader, out, log io.Writer) error {
	var c command
	flags := flag.NewFlagSet("kernels", flag.ContinueOnError)
	flags.SetOutput(log)
	flags.StringVar(&c.samples, "samples", "figures/kernels.json", "file for the raw samples; with -plot, the file to draw")
	flags.IntVar(&c.rounds, "rounds", 0, "rounds of each figure (default 7, with -bench 3, with -job 5)")
	flags.BoolVar(&c.bench, "bench", false, "print a table of more geometries instead of figures")
	flags.StringVar(&c.plot, "plot", "", "measure nothing; draw the samples as a roofline into this PNG")
	flags.BoolVar(&c.quick, "quick", false, "tiny sizes and one round: a smoke test, not a measurement")
	flags.BoolVar(&c.job, "job", false, "measure the figure job_32k instead")
	flags.StringVar(&c.bin, "bin", "bin", "folder of the binaries, for -job")
	flags.StringVar(&c.child, "child", "", "internal: measure the rows of this kernel and print them as JSON")
	flags.BoolVar(&c.bareServ, "bare-server", false, "internal: serve bare streams until stdin ends")
	flags.StringVar(&c.model, "model", "test/data/smollm2/attention.safetensors", "file of a real model's queries, keys and values, for the figures of errors")
	only := flags.String("run", "", "measure only the stages with a row whose name matches this regular expression")
	if err := flags.Parse(args); err != nil {
		return err
	}
	if flags.NArg() > 0 {
		return fmt.Errorf("%q is no flag", flags.Arg(0))
	}
	var err error
	if c.only, err = regexp.Compile(*only); err != nil {
		return err
	}
	switch {
	case c.bareServ:
		return serveBare(in, out)
	case c.plot != "":
		return c.draw()
	case c.job:
		return c.measureJob(ctx, out, log)
	}
	return c.measure(ctx, out, log)
}

// defaultRounds are the rounds that were asked for, or else what the mode takes.
func (c *command) defaultRounds(n int) int {
	switch {
	case c.rounds > 0:
		return c.rounds
	case c.quick:
		return 1
	}
	return n
}

func (c *command) measure(ctx context.Context, out, log io.Writer) error {
	n := 7
	if c.bench {
		n = 3
	}
	h, err := newHarness(c.quick, c.defaultRounds(n), log)
	if err != nil {
		return err
	}
	defer h.close()
	if c.child != "" {
		rows, err := h.stages(ctx, childStages(c.child), c.only)
		if err != nil {
			return err
		}
		return json.NewEncoder(out).Encode(rows)
	}
	stages := figureStages(c.model)
	if c.bench {
		stages = append(stages, benchStages()...)
	}
	// The rows are told as they come: a slow kernel takes minutes.
	h.tell = func(r row) { r.print(out, log) }
	if c.bench {
		h.header(out)
		h.tell = func(r row) { r.line(out) }
	}
	rows, err := h.stages(ctx, stages, c.only)
	if err != nil {
		return err
	}
	others, err := h.others(ctx, c)
	if err != nil {
		return err
	}
	report := h.report
	report.Rows = append(rows, others...)
	return save(c.samples, report)
}

// save writes v as JSON.
func save(path string, v any) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	text, err := json.MarshalIndent(v, "", " ")
	if err != nil {
		return err
	}
	return os.WriteFile(path, append(text, '\n'), 0o644)
}
