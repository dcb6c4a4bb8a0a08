package cli

import (
	"context"
	"encoding/json"
	"errors"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"headwater.example/client"
	"headwater.example/internal/jobfile"
	"headwater.example/internal/localcluster"
	"headwater.example/tensor"
)

// submitFlags are what submit is told.
type submitFlags struct {
	at       remote
	options  optionFlags
	earlier  string
	codec    string
	key      string
	deadline time.Duration
	out      string
	explain  int
	figure   string
	local    int
	detach   bool
	quiet    bool
}

// optionFlags are the flags that override the job file's options: all of them as JSON, or some under the same names.
type optionFlags struct {
	all                     string
	causal                  bool
	offset                  int64
	windowLeft, windowRight int64
	scale, softcap          float32
	arithmetic              string
	alibiSlopes, sinks      string
	kvLen                   int64
}

func (o *optionFlags) flags(flags *pflag.FlagSet) {
	flags.StringVar(&o.all, "options", "", "options as one `JSON` object, with the fields of the job file's")
	flags.BoolVar(&o.causal, "causal", false, "queries see no later position")
	flags.Int64Var(&o.offset, "offset", 0, "position of the first query (default: kv_len - tokens)")
	flags.Int64Var(&o.windowLeft, "window-left", -1, "positions seen before the own one, -1 is unbounded")
	flags.Int64Var(&o.windowRight, "window-right", -1, "positions seen after the own one, -1 is unbounded")
	flags.Float32Var(&o.scale, "scale", 0, "factor of the scores (default: 1/sqrt(head_dim))")
	flags.Float32Var(&o.softcap, "softcap", 0, "cap of the scores, 0 is off")
	flags.StringVar(&o.arithmetic, "arithmetic", "chain", "how products are summed: `name` chain, or for keys and values of BF16 tiles or, lossy, tiles-bf16; auto: tiles for BF16 if all workers have a matrix unit")
	flags.StringVar(&o.alibiSlopes, "alibi-slopes", "", "ALiBi `slopes`, one for each query head: 0.5,0.25")
	flags.StringVar(&o.sinks, "sinks", "", "attention sinks, one `logit` for each query head: 0.1,0.2")
	flags.Int64Var(&o.kvLen, "kv-len", 0, "positions that queries may see (default: all)")
	flagOnly(flags, "options", "causal", "offset", "window-left", "window-right", "scale", "softcap", "arithmetic", "alibi-slopes", "sinks", "kv-len")
}

// overrides is the JSON of the options that were given; empty when there are none.
func (o *optionFlags) overrides(flags *pflag.FlagSet) ([]byte, error) {
	var given jobfile.Options
	if flags.Changed("causal") {
		given.Causal = &o.causal
	}
	if flags.Changed("offset") {
		given.Offset = &o.offset
	}
	if flags.Changed("window-left") {
		given.WindowLeft = &o.windowLeft
	}
	if flags.Changed("window-right") {
		given.WindowRight = &o.windowRight
	}
	if flags.Changed("scale") {
		given.Scale = &o.scale
	}
	if flags.Changed("arithmetic") {
		given.Arithmetic = &o.arithmetic
	}
	if flags.Changed("softcap") {
		given.Softcap = &o.softcap
	}
	if flags.Changed("kv-len") {
		given.KVLen = &o.kvLen
	}
	var err error
	if given.AlibiSlopes, err = floats(flags, "alibi-slopes", o.alibiSlopes); err != nil {
		return nil, err
	}
	if given.Sinks, err = floats(flags, "sinks", o.sinks); err != nil {
		return nil, err
	}
	text, err := json.Marshal(given)
	if err != nil {
		// NaN and infinities have no JSON.
		return nil, usage("options: a number is not finite")
	}
	single := string(text) != "{}"
	switch {
	case flags.Changed("options") && single:
		return nil, usage("--options holds all options: leave out the flags of single options")
	case flags.Changed("options") && !json.Valid([]byte(o.all)):
		return nil, usage("--options is not valid JSON")
	case flags.Changed("options"):
		return []byte(o.all), nil
	case single:
		return text, nil
	}
	return nil, nil
}

// floats reads numbers with commas between; nil when the flag was not given, none when it is empty.
func floats(flags *pflag.FlagSet, name, list string) ([]float32, error) {
	if !flags.Changed(name) {
		return nil, nil
	}
	numbers := []float32{}
	if strings.TrimSpace(list) == "" {
		return numbers, nil
	}
	for i, word := range strings.Split(list, ",") {
		n, err := strconv.ParseFloat(strings.TrimSpace(word), 32)
		if err != nil {
			return nil, usage("--%s: number %d, %q, is not a float32", name, i, word)
		}
		numbers = append(numbers, float32(n))
	}
	return numbers, nil
}

func (a *app) submit() *cobra.Command {
	var f submitFlags
	cmd := &cobra.Command{
		Use: "submit JOB", Short: "Run a job file and fetch its result", Args: exactly("JOB"),
		Long: "Submit a job file (safetensors, the index of a sharded one, or npz; docs/job-file.md), wait for its end, fetch the\n" +
			"result and print a summary. Options given here override the file's. If this command is interrupted, the job goes on.\n\n" +
			"Store contiguous arrays: safetensors writes a transposed one in the wrong order, and the file does not show it. Use\n" +
			"numpy.ascontiguousarray(x), or x.contiguous() of PyTorch. The sliding_window = W of Transformers is --window-left W-1.\n\n" + exitHelp,
		Example: `  coord submit job.safetensors --out context.safetensors
  coord submit job.npz --causal --window-left 4095 --out context.safetensors
  coord submit job.npz --options '{"problems": {"layers.0.": {"causal": true}}}'
  coord submit job.safetensors --local 3 --explain 5
  coord submit job.safetensors --out - | sha256sum
  coord submit job.npz --accumulate sum.safetensors --out sum.safetensors
  coord submit job.safetensors --key nightly-7 --detach`,
		RunE: func(cmd *cobra.Command, args []string) error { return a.runSubmit(cmd, args[0], f) },
	}
	flags := cmd.Flags()
	f.at.flags(flags)
	f.options.flags(flags)
	choice(cmd, flags, &f.codec, "codec", "exact", "codec of the contexts on the wire, all but exact being lossy", codecNames()...)
	flags.StringVar(&f.earlier, "accumulate", "", "`file` of earlier gradients; those of the job are added to them")
	flags.StringVar(&f.key, "key", "", "jobs with the same `key`, content and codec are one job; it runs again if it failed for a reason other than its content")
	flags.DurationVar(&f.deadline, "deadline", 0, "longest time that the job may run (default: the coordinator's limit)")
	flags.StringVar(&f.out, "out", "", "`file` to write the result to, - is the standard output (default: it stays with the coordinator; with --local it is not kept)")
	flags.IntVar(&f.explain, "explain", 0, "print the top `N` matched positions of each head's last query")
	flags.StringVar(&f.figure, "figure", "", "PNG `file` to write heat maps of the attention to, - is the standard output")
	flags.IntVar(&f.local, "local", 0, "run on a cluster of `N` workers on this machine, for this job only")
	flags.BoolVar(&f.detach, "detach", false, "do not wait for the job's end")
	flags.BoolVarP(&f.quiet, "quiet", "q", false, "show no progress")
	flagOnly(flags, "accumulate", "key", "out", "explain", "figure", "local", "detach")
	return cmd
}

func (a *app) runSubmit(cmd *cobra.Command, path string, f submitFlags) (err error) {
	ctx := cmd.Context()
	overrides, err := f.options.overrides(cmd.Flags())
	if err != nil {
		return err
	}
	if err := a.checkSubmit(cmd, f); err != nil {
		return err
	}
	// The files are looked at before anything runs, so that a mistake costs nothing.
	told, err := a.openExplanation(path, overrides, explainFlags{top: f.explain, figure: f.figure})
	if err != nil {
		return err
	}
	defer told.close()
	var earlier *tensor.File
	if f.earlier != "" {
		if earlier, err = tensor.Open(f.earlier); err != nil {
			return err
		}
		defer func() { err = errors.Join(err, earlier.Close()) }()
	}
	var to *output
	if f.out != "" {
		if f.out == f.figure || f.figure != "" && samePath(f.out, f.figure) {
			return usage("--out and --figure are the same file")
		}
		if to, err = a.openOutput("--out", f.out, told.file.Paths()...); err != nil {
			return err
		}
	}
	if f.local != 0 {
		if to == nil && f.explain == 0 && f.figure == "" {
			a.note("the result is not kept: --out FILE writes it\n")
		}
		cluster, started := a.startLocal(ctx, localcluster.Options{Workers: f.local})
		if started != nil {
			return started
		}
		defer func() { err = errors.Join(err, stopLocal(cluster)) }()
		f.at.address = cluster.Address()
	}
	var done *client.Job
	err = f.at.with(ctx, func(ctx context.Context, c *client.Client) error {
		done, err = a.submitTo(ctx, c, client.SubmitOptions{
			Path: path, Accumulate: earlier, Key: f.key, Overrides: overrides, Codec: client.Codec(f.codec), Deadline: f.deadline,
		}, f, to)
		return err
	})
	if err != nil {
		return err
	}
	if to.standard(a) || told.flags.image.standard(a) {
		// The result must not be mixed with a summary.
		a = &app{Streams: Streams{In: a.In, Out: a.Err, Err: a.Err}, program: a.program, global: a.global}
	}
	if err := a.printJob(done, f.out); err != nil || f.explain == 0 && f.figure == "" {
		return err
	}
	if f.explain > 0 && !a.json() {
		if err := a.say("\n"); err != nil {
			return err
		}
	}
	return a.printExplanation(ctx, told)
}

// checkSubmit refuses flags that do not go together.
func (a *app) checkSubmit(cmd *cobra.Command, f submitFlags) error {
	switch {
	case f.deadline < 0:
		return usage("--deadline is %s, must not be negative", f.deadline)
	case f.detach && (f.out != "" || f.local != 0):
		return usage("--detach leaves the result with the coordinator: leave out --out and --local")
	case cmd.Flags().Changed("local") && f.local < 1:
		return usage("--local is %d, must be at least 1", f.local)
	case f.local != 0 && cmd.Flags().Changed("coordinator") && !a.settled["coordinator"]:
		return usage("--local starts a coordinator of its own: leave out --coordinator")
	case f.explain < 0:
		return usage("--explain is %d, must not be negative", f.explain)
	}
	return nil
}

// submitTo submits, waits, and fetches.
func (a *app) submitTo(ctx context.Context, c *client.Client, opts client.SubmitOptions, f submitFlags, to *output) (*client.Job, error) {
	// An unreachable coordinator is found before the whole file is read for its hash.
	if _, err := c.Status(ctx); err != nil {
		return nil, err
	}
	bar := a.progress(f.quiet)
	defer bar.end()
	opts.Hashed = func(done, total int64) { bar.show("hashing", done, total, true) }
	opts.Sent = func(done, total int64) { bar.show("uploading", done, total, true) }
	taken, err := c.Submit(ctx, opts)
	switch {
	case err != nil:
		return taken, err
	case f.detach && taken.Over() && taken.State != client.JobSucceeded:
		return nil, &client.JobError{Job: taken} // known by its key
	case f.detach:
		return taken, nil
	}
	ended, err := c.Wait(ctx, taken.ID, bar.job)
	if err != nil {
		if ctx.Err() != nil && f.local == 0 {
			bar.end()
			a.note("job %s goes on: coord jobs watch %[1]s, coord jobs cancel %[1]s\n", taken.ID)
		}
		return nil, err
	}
	if to == nil {
		return ended, nil
	}
	return fetch(ctx, c, taken.ID, to, bar)
}
