package cli

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/jedib0t/go-pretty/v6/table"
	"github.com/spf13/cobra"

	"headwater.example/client"
)

// topView is what a cluster did in an interval, as scripts read it.
type topView struct {
	Coordinator string            `json:"coordinator"` // its name
	At          time.Time         `json:"at"`          // the interval's end
	Seconds     float64           `json:"seconds"`     // its length
	Workers     []topWorker       `json:"workers"`
	Shards      []topShard        `json:"slowest_shards"` // by the mean time of their kernel, the slowest first
	Jobs        map[string]uint64 `json:"jobs"`
	Lacking     uint64            `json:"lacking_shards"` // copies of shards that sessions are to have and lack
}

// topWorker is one worker. A value is null if the worker does not report it, does not count, or was restarted within the interval.
type topWorker struct {
	Name           string   `json:"name"`
	Error          string   `json:"error,omitempty"`
	MemoryShare    float64  `json:"memory_share"` // of the budget, without what is given up when room is needed
	Sessions       uint64   `json:"sessions"`
	QueuedSteps    uint64   `json:"queued_steps"`
	HitShare       *float64 `json:"hit_share"` // of the positions asked for in prefixes, since the worker's start
	StepsPerSecond *float64 `json:"steps_per_second"`
	QueueSeconds   *float64 `json:"queue_seconds"`      // that a step waited, on average
	AnswerP95      *float64 `json:"answer_p95_seconds"` // within which 19 of 20 attends of the last 10 to 20 seconds were answered
	ReadPerSecond  *float64 `json:"read_bytes_per_second"`
	BusShare       *float64 `json:"bus_share"` // of the measured memory bus
}

// topShard is the shards of one layer at one worker.
type topShard struct {
	Layer          int     `json:"layer"`
	Worker         string  `json:"worker"`
	StepsPerSecond float64 `json:"steps_per_second"`
	KernelSeconds  float64 `json:"kernel_seconds"` // of a step, on average
}

// topSample is a cluster at one moment.
type topSample struct {
	at     time.Time
	status *client.Status
	caches []client.Cache
	copies *client.Copies // nil where the coordinator knows nothing of copies
}

const (
	// slowest is how many shards are shown.
	slowest = 8
	// clearScreen moves to the top of a terminal and clears it.
	clearScreen = "\x1b[H\x1b[2J"
)

func (a *app) top() *cobra.Command {
	var at remote
	var every time.Duration
	var count int
	cmd := &cobra.Command{
		Use: "top", Short: "Watch what the workers do", Args: exactly(),
		Long: "Watch what the workers do, once each --every: their memory, sessions and queues; steps a second and how long\n" +
			"they waited; the keys and values that kernels read, as a share of what the memory bus gave when the worker\n" +
			"started; how many of the positions that were asked for in prefixes were there; and the layers whose kernels take\n" +
			"longest. The p95 is that of the coordinator's attends. Rates are those of the interval; a worker that was started without --admin counts nothing and shows\n" +
			"\"-\".\n\n" +
			"On a terminal it goes on until Ctrl-C. Elsewhere it prints one interval, or --count of them.",
		Example: "  coord top\n  coord top --every 5s --count 12 --output json | jq '.workers[].bus_share'",
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := positive(cmd.Flags(), "every"); err != nil {
				return err
			}
			if count < 0 {
				return usage("--count is %d, must not be negative", count)
			}
			live := terminal(a.Out) && !a.json()
			if count == 0 && !live {
				count = 1
			}
			return at.with(cmd.Context(), func(ctx context.Context, c *client.Client) error {
				return a.watchTop(ctx, c, every, count, live)
			})
		},
	}
	at.flags(cmd.Flags())
	cmd.Flags().DurationVar(&every, "every", time.Second, "length of an interval")
	cmd.Flags().IntVar(&count, "count", 0, "`number` of intervals; 0 is one, or without end on a terminal")
	flagOnly(cmd.Flags(), "every", "count")
	return cmd
}

// watchTop prints so many intervals, 0 is without end.
func (a *app) watchTop(ctx context.Context, c *client.Client, every time.Duration, count int, live bool) error {
	before, err := sampleTop(ctx, c)
	if err != nil {
		return err
	}
	ticks := time.NewTicker(every)
	defer ticks.Stop()
	for n := 0; count == 0 || n < count; n++ {
		select {
		case <-ticks.C:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
		now, err := sampleTop(ctx, c)
		if err != nil {
			return err
		}
		v := viewTop(before, now)
		if before = now; a.json() {
			err = a.printJSON(v)
		} else {
			err = a.printTop(v, live)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func sampleTop(ctx context.Context, c *client.Client) (s topSample, err error) {
	if s.caches, err = c.Caches(ctx); err != nil {
		return s, err
	}
	if s.status, err = c.Status(ctx); err != nil {
		return s, err
	}
	s.at = time.Now()
	s.copies, err = copiesOf(ctx, c)
	return s, err
}

// viewTop is what happened between two samples.
func viewTop(before, now topSample) topView {
	v := topView{
		Coordinator: now.status.Name, At: now.at, Seconds: now.at.Sub(before.at).Seconds(), Workers: []topWorker{}, Shards: []topShard{}, Jobs: map[string]uint64{},
	}
	for state, n := range now.status.Jobs {
		v.Jobs[string(state)] = n
	}
	if now.copies != nil {
		v.Lacking = now.copies.LackingShards
	}
	for _, w := range now.status.Workers {
		one := topWorker{Name: w.Name, Error: w.Error}
		if w.BudgetBytes > 0 {
			one.MemoryShare = float64(w.UsedBytes-min(w.SpareBytes, w.UsedBytes)) / float64(w.BudgetBytes)
		}
		if a := w.Answers; a != nil && a.Count > 0 {
			p95 := a.P95.Seconds()
			one.AnswerP95 = &p95
		}
		for _, c := range now.caches {
			if c.Worker != w.Name || w.Error != "" {
				continue
			}
			if one.Sessions, one.QueuedSteps = c.Sessions, c.QueuedSteps; c.PrefixAsked > 0 {
				share := float64(c.PrefixHits) / float64(c.PrefixAsked)
				one.HitShare = &share
			}
		}
		for _, b := range before.status.Workers {
			if b.Name == w.Name && string(b.Boot) == string(w.Boot) && b.Load != nil && w.Load != nil {
				one.rates(b.Load, w.Load, v.Seconds)
				v.Shards = append(v.Shards, shardsOf(w.Name, b.Load, w.Load, v.Seconds)...)
			}
		}
		v.Workers = append(v.Workers, one)
	}
	slices.SortStableFunc(v.Shards, func(a, b topShard) int { return cmp.Compare(b.KernelSeconds, a.KernelSeconds) })
	v.Shards = v.Shards[:min(len(v.Shards), slowest)]
	return v
}

func (w *topWorker) rates(before, now *client.WorkerLoad, seconds float64) {
	steps := float64(now.Steps - before.Steps)
	perSecond, read := steps/seconds, float64(now.ReadBytes-before.ReadBytes)/seconds
	w.StepsPerSecond, w.ReadPerSecond = &perSecond, &read
	if steps > 0 {
		queue := (now.Queue - before.Queue).Seconds() / steps
		w.QueueSeconds = &queue
	}
	if now.BusBytesPerSecond > 0 {
		share := read / float64(now.BusBytesPerSecond)
		w.BusShare = &share
	}
}

// shardsOf are the layers that had steps between two samples of a worker.
func shardsOf(worker string, before, now *client.WorkerLoad, seconds float64) (shards []topShard) {
	for _, l := range now.Layers {
		for _, b := range before.Layers {
			if b.Layer == l.Layer {
				l.Steps, l.Kernel = l.Steps-b.Steps, l.Kernel-b.Kernel
			}
		}
		if l.Steps > 0 {
			shards = append(shards, topShard{l.Layer, worker, float64(l.Steps) / seconds, l.Kernel.Seconds() / float64(l.Steps)})
		}
	}
	return shards
}

func (a *app) printTop(v topView, live bool) error {
	if live {
		if err := a.say(clearScreen); err != nil {
			return err
		}
	}
	var jobs []string
	for _, at := range client.JobStates {
		if n := v.Jobs[string(at)]; n > 0 {
			jobs = append(jobs, fmt.Sprintf("%d %s", n, at))
		}
	}
	said := cmp.Or(strings.Join(jobs, ", "), "none")
	if err := a.say("coordinator %s at %s, of %.1f s; jobs: %s\n", v.Coordinator, v.At.Format(time.TimeOnly), v.Seconds, said); err != nil {
		return err
	}
	if v.Lacking > 0 {
		if err := a.say("under-replicated: %s\n", plural(int(v.Lacking), "shard", "shards")); err != nil {
			return err
		}
	}
	t := a.newTable("\nworkers", "name", ">memory", ">sessions", ">hits", ">queued", ">steps/s", ">waited", ">p95", ">read/s", ">of bus")
	for _, w := range v.Workers {
		if w.Error != "" {
			t.AppendRow(table.Row{shorten(w.Name, 16), "-", "-", "-", "-", "-", "-", "-", "-", state("left out")})
			continue
		}
		t.AppendRow(table.Row{
			shorten(w.Name, 16), share(&w.MemoryShare), w.Sessions, share(w.HitShare), w.QueuedSteps, told(w.StepsPerSecond, "%.0f", 1),
			told(w.QueueSeconds, "%.2f ms", 1e3), told(w.AnswerP95, "%.2f ms", 1e3), told(w.ReadPerSecond, "%.1f GB", 1e-9), share(w.BusShare),
		})
	}
	if err := a.printTable(t); err != nil || len(v.Shards) == 0 {
		return err
	}
	s := a.newTable("\nslowest shards", ">layer", "worker", ">steps/s", ">kernel")
	for _, one := range v.Shards {
		s.AppendRow(table.Row{one.Layer, shorten(one.Worker, 16), fmt.Sprintf("%.0f", one.StepsPerSecond), fmt.Sprintf("%.3f ms", 1e3*one.KernelSeconds)})
	}
	return a.printTable(s)
}

// told prints a number in a unit, "-" if it is not known.
func told(v *float64, format string, unit float64) string {
	if v == nil {
		return "-"
	}
	return fmt.Sprintf(format, *v*unit)
}

func share(v *float64) string { return told(v, "%.0f%%", 100) }
