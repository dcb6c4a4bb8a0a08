package cli

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"

	"github.com/google/uuid"
	"github.com/jedib0t/go-pretty/v6/table"
	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc/codes"

	"headwater.example/attention"
	"headwater.example/client"
)

// statusView is a coordinator's status as scripts read it.
type statusView struct {
	Name     string             `json:"name"`
	Version  string             `json:"version"`
	Protocol string             `json:"protocol"`
	Address  string             `json:"address"`
	Workers  []workerView       `json:"workers"`
	Auto     string             `json:"auto_arithmetic,omitempty"` // what arithmetic auto is taken for now
	Jobs     map[string]uint64  `json:"jobs"`
	Tenants  []tenantStatusView `json:"tenants"` // that have limits
	Copies   *copiesView        `json:"copies"`  // null where the coordinator knows nothing of copies
}

// copiesView is what sessions lack.
type copiesView struct {
	LackingShards   uint64 `json:"lacking_shards"`
	LackingSessions uint64 `json:"lacking_sessions"`
	LostSessions    uint64 `json:"lost_sessions"`
	TwiceSessions   uint64 `json:"twice_sessions"` // that went on twice
	Made            uint64 `json:"made"`
	CopiedBytes     uint64 `json:"copied_bytes"`
}

type workerView struct {
	Name    string `json:"name"`
	Address string `json:"address"`
	Boot    string `json:"boot,omitempty"`
	Version string `json:"version,omitempty"`
	Weight  uint32 `json:"weight"`
	// WeightShare is how much of it new sessions get, 0.5 to 1, by measured speed; absent where nothing is measured.
	WeightShare float64 `json:"weight_share,omitempty"`
	Zone        string  `json:"zone,omitempty"`
	BudgetBytes uint64  `json:"budget_bytes"`
	UsedBytes   uint64  `json:"used_bytes"`
	SpareBytes  uint64  `json:"spare_bytes"` // part of UsedBytes that is given up when room is needed
	Threads     uint32  `json:"threads"`
	Kernel      string  `json:"kernel,omitempty"`
	Processor   string  `json:"processor,omitempty"`
	// Features are those of the processor that kernels use.
	Features []string `json:"processor_features,omitempty"`
	// MatrixUnit is whether one computes arithmetic in tiles, which is slower elsewhere; null where the worker does not say.
	MatrixUnit *bool  `json:"matrix_unit"`
	Draining   bool   `json:"draining"`
	Error      string `json:"error,omitempty"`

	// Answers is null where the coordinator has asked the worker nothing, or is older than 1.4.
	Answers *answersView `json:"answers"`

	// Cache is null where the worker, or the coordinator, knows nothing of sessions.
	Cache *cacheView `json:"cache"`
}

// answersView is how long a worker takes to answer attends of at most 64 tokens.
type answersView struct {
	Count   uint64  `json:"count"` // of the last 10 to 20 seconds
	P50     float64 `json:"p50_seconds"`
	P95     float64 `json:"p95_seconds"`
	Waiting uint64  `json:"waiting"`
	// Beside is its time / that of the middle one of the workers that the same call asked, half of the time.
	Beside   float64 `json:"beside"`
	Compared uint64  `json:"compared"` // calls of which that is known
}

func viewAnswers(a *client.AnswerTimes) *answersView {
	if a == nil {
		return nil
	}
	return &answersView{a.Count, a.P50.Seconds(), a.P95.Seconds(), a.Waiting, a.Beside, a.Compared}
}

// milliseconds prints the half and 19 of 20 of the answers.
func (a *answersView) milliseconds() (p50, p95 string) {
	if a == nil || a.Count == 0 {
		return "-", "-"
	}
	return fmt.Sprintf("%.2f ms", 1e3*a.P50), fmt.Sprintf("%.2f ms", 1e3*a.P95)
}

// cacheView is a worker's cache of sessions.
type cacheView struct {
	Sessions         uint64     `json:"sessions"`
	Pages            []pageView `json:"pages"` // by size, null where the worker does not count them
	UsedBytes        uint64     `json:"used_bytes"`
	FreeBytes        *uint64    `json:"free_bytes"` // for pages, before anything is dropped; null where the worker does not count it
	RowBytes         *uint64    `json:"row_bytes"`  // what pages stand in, beside used_bytes; null where the worker does not count it
	SessionBytes     *uint64    `json:"session_bytes"`
	PrefixBytes      uint64     `json:"prefix_bytes"`
	PrefixAsked      uint64     `json:"prefix_asked"` // positions
	PrefixHits       uint64     `json:"prefix_hits"`  // positions
	PrefixSavedBytes uint64     `json:"prefix_saved_bytes"`
	Evicted          uint64     `json:"evicted"`
	QueuedSteps      uint64     `json:"queued_steps"`
	QueuedTokens     uint64     `json:"queued_tokens"`
	Lanes            uint64     `json:"lanes"`
}

// pageView is pages of one size. Sizes share the room for free ones.
type pageView struct {
	PageBytes uint64 `json:"page_bytes"`
	Used      uint64 `json:"used"`
	Free      uint64 `json:"free"`
}

func (a *app) status() *cobra.Command {
	var at remote
	cmd := &cobra.Command{
		Use: "status", Short: "Show the coordinator, its workers, their caches, and its jobs", Args: exactly(),
		Long: "Show the coordinator, its workers and their memory, what sessions take of it, and the jobs of all\n" +
			"coordinators by state.\n\n" +
			"For each cache, the table has: the pages that sessions and prefixes use, and how many more can be taken before\n" +
			"anything is dropped (pages of all sizes and jobs share that room); how many of the positions that new sessions\n" +
			"asked for were there already, and the bytes of keys and values that clients did not need to send for them;\n" +
			"sessions that were evicted because they were unused or room was needed; steps that wait, and open lanes. Counts\n" +
			"begin when the worker starts.",
		Example: "  coord status\n  coord status --output json | jq '.workers[].cache.pages'",
		RunE: func(cmd *cobra.Command, _ []string) error {
			return at.with(cmd.Context(), func(ctx context.Context, c *client.Client) error {
				// Beside each other, since a worker that hangs holds up both.
				var caches []client.Cache
				var asked errgroup.Group
				asked.Go(func() (err error) {
					caches, err = c.Caches(ctx)
					return err
				})
				status, err := c.Status(ctx)
				unasked := asked.Wait()
				if err != nil {
					return err
				}
				// Coordinators from before sessions have no caches to tell of.
				var answer *client.Error
				if unasked != nil && !(errors.As(unasked, &answer) && answer.Code == codes.Unimplemented) {
					return unasked
				}
				view := viewStatus(c.Address(), status, caches)
				copies, err := copiesOf(ctx, c)
				if err != nil {
					return err
				}
				if copies != nil {
					view.Copies = &copiesView{copies.LackingShards, copies.LackingSessions, copies.LostSessions, copies.TwiceSessions, copies.Made, copies.CopiedBytes}
				}
				if a.json() {
					return a.printJSON(view)
				}
				return a.printStatus(view)
			})
		},
	}
	at.flags(cmd.Flags())
	return cmd
}

// copiesOf asks what copies sessions lack; nil is of a coordinator from before copies.
func copiesOf(ctx context.Context, c *client.Client) (*client.Copies, error) {
	copies, err := c.Copies(ctx)
	var answer *client.Error
	if errors.As(err, &answer) && answer.Code == codes.Unimplemented {
		return nil, nil
	}
	return copies, err
}

func viewStatus(address string, status *client.Status, caches []client.Cache) statusView {
	v := statusView{Name: status.Name, Version: status.Version, Protocol: status.Protocol, Address: address, Workers: []workerView{}, Jobs: map[string]uint64{}, Tenants: viewTenants(status.Tenants)}
	for _, s := range status.Workers {
		w := s
		one := workerView{
			Name: w.Name, Address: s.Address, Version: w.Version, Weight: w.Weight, WeightShare: w.WeightShare, Zone: w.Zone, BudgetBytes: w.BudgetBytes,
			UsedBytes: w.UsedBytes, SpareBytes: w.SpareBytes, Threads: w.Threads, Kernel: w.Kernel, Processor: w.Processor, Features: w.Features, MatrixUnit: w.MatrixUnit, Draining: w.Draining, Error: s.Error,
			Answers: viewAnswers(w.Answers),
		}
		if boot, err := uuid.FromBytes(w.Boot); err == nil {
			one.Boot = boot.String()
		}
		for _, c := range caches {
			if c.Worker == one.Name && one.Error == "" { // one that is left out may have another's name
				one.Cache = viewCache(&c)
			}
		}
		v.Workers = append(v.Workers, one)
	}
	if status.Auto != attention.Auto {
		v.Auto = status.Auto.String()
	}
	for count, n := range status.Jobs {
		v.Jobs[string(count)] = n
	}
	return v
}

func viewCache(c *client.Cache) *cacheView {
	v := &cacheView{
		Sessions: c.Sessions, UsedBytes: c.UsedBytes, FreeBytes: c.RoomBytes, RowBytes: c.RowBytes, SessionBytes: c.SessionBytes,
		PrefixBytes: c.PrefixBytes, PrefixAsked: c.PrefixAsked, PrefixHits: c.PrefixHits, PrefixSavedBytes: c.PrefixSavedBytes,
		Evicted: c.Evicted, QueuedSteps: c.QueuedSteps, QueuedTokens: c.QueuedTokens, Lanes: c.Lanes,
	}
	if c.RoomBytes == nil {
		return v
	}
	v.Pages = []pageView{}
	for _, p := range c.Pages {
		v.Pages = append(v.Pages, pageView{p.PageBytes, p.Used, p.Free})
	}
	return v
}

func (a *app) printStatus(v statusView) error {
	if err := a.say("coordinator %s at %s, version %s, protocol %s\n\n", v.Name, v.Address, v.Version, v.Protocol); err != nil {
		return err
	}
	if len(v.Workers) == 0 {
		err := a.say("no workers: start some with worker serve --join and the coordinator's gossip address, or name them with coord serve --workers\n")
		if err != nil {
			return err
		}
	} else if err := errors.Join(a.printWorkers(v.Workers), a.printAuto(v), a.printCaches(v.Workers)); err != nil {
		return err
	}
	if c := v.Copies; c != nil && c.LackingShards > 0 {
		if err := a.say("\nunder-replicated: %d shards of %s\n", c.LackingShards, plural(int(c.LackingSessions), "session", "sessions")); err != nil {
			return err
		}
	}
	if c := v.Copies; c != nil && c.TwiceSessions > 0 {
		if err := a.say("\nwent on twice: %s; coord sessions show tells where the other side is\n", plural(int(c.TwiceSessions), "session", "sessions")); err != nil {
			return err
		}
	}
	if err := a.printTenants(v.Tenants); err != nil || len(v.Jobs) == 0 {
		return err
	}
	jobs := a.newTable("\njobs", "state", ">count")
	for _, at := range client.JobStates {
		if n, ok := v.Jobs[string(at)]; ok {
			jobs.AppendRow(table.Row{state(string(at)), n})
		}
	}
	return a.printTable(jobs)
}

// printWorkers prints a line for each worker, and below them whole why some are left out, for which the table has no room.
func (a *app) printWorkers(workers []workerView) error {
	header := []string{"name", "address", ">used", ">budget", "state"}
	if a.wide() {
		header = []string{"name", "address", "zone", ">weight", ">used", ">spare", ">budget", ">threads", "kernel", "processor", "features", "tiles", ">p50", ">p95", "version", "state"}
	}
	t := a.newTable("workers", header...)
	for _, w := range workers {
		is := state("answers")
		switch {
		case w.Error != "":
			is = state("left out")
		case w.Draining:
			is = state("drained")
		}
		used, budget := sizeOf(int64(w.UsedBytes)), sizeOf(int64(w.BudgetBytes))
		if a.wide() {
			p50, p95 := w.Answers.milliseconds()
			t.AppendRow(table.Row{w.Name, w.Address, w.Zone, w.weight(), used, sizeOf(int64(w.SpareBytes)), budget, w.Threads, w.Kernel, w.Processor, strings.Join(w.Features, " "), speedOfTiles(w), p50, p95, w.Version, is})
		} else {
			t.AppendRow(table.Row{shorten(w.Name, nameWidth), shorten(w.Address, 21), used, budget, is})
		}
	}
	if err := a.printTable(t); err != nil {
		return err
	}
	for _, w := range workers {
		if w.Error == "" {
			continue
		}
		if err := a.say("%s at %s: %s\n", w.Name, w.Address, w.Error); err != nil {
			return err
		}
	}
	return nil
}

// printAuto says what arithmetic auto is taken for.
func (a *app) printAuto(v statusView) error {
	if !a.wide() || v.Auto == "" {
		return nil
	}
	return a.say("arithmetic auto is %s now for keys and values of bf16\n", v.Auto)
}

// weight prints the weight, and if it has not all of it for new sessions, how much.
func (w *workerView) weight() string {
	if w.WeightShare > 0 && w.WeightShare < 1 {
		return fmt.Sprintf("%d × %.2f", w.Weight, w.WeightShare)
	}
	return strconv.Itoa(int(w.Weight))
}

// speedOfTiles says how a worker computes arithmetic in tiles.
func speedOfTiles(w workerView) string {
	switch {
	case w.Kernel == "": // it does not answer
		return ""
	case w.MatrixUnit == nil:
		return "-"
	case *w.MatrixUnit:
		return "matrix unit"
	}
	return "slower"
}

// printCaches prints a line for each worker and size of its pages. A value that a worker does not report is "-".
func (a *app) printCaches(workers []workerView) error {
	title := fmt.Sprintf("\ncaches of sessions; a page holds %d positions of one group of a layer", attention.PageLen)
	header := []string{"worker", ">sessions", ">page", ">used", ">free", ">hits", ">evicted", ">lanes"}
	if a.wide() {
		header = []string{"worker", ">sessions", ">page", ">pages used", ">pages free", ">used", ">free", ">prefix hits", ">saved", ">evicted", ">waiting", ">lanes"}
	}
	t := a.newTable(title, header...)
	for _, w := range workers {
		for _, cells := range a.cacheRows(w, len(header)) {
			t.AppendRow(cells)
		}
	}
	return a.printTable(t)
}

// cacheRows are the rows of one worker, one for each size of its pages, and one if it has none.
func (a *app) cacheRows(w workerView, columns int) []table.Row {
	name, c := shorten(w.Name, 16), w.Cache
	if a.wide() {
		name = w.Name
	}
	first := table.Row{name}
	if c == nil {
		for range columns - 1 {
			first = append(first, "-")
		}
		return []table.Row{first}
	}
	sessions, used, free := any("-"), any("-"), "-" // what it does not count
	if c.FreeBytes != nil {
		sessions, used, free = c.Sessions, 0, sizeOf(int64(*c.FreeBytes))
	}
	if a.wide() {
		first = append(first, sessions, "-", used, "-", sizeOf(int64(c.UsedBytes)), free, hitRate(c.PrefixHits, c.PrefixAsked),
			sizeOf(int64(c.PrefixSavedBytes)), c.Evicted, c.QueuedSteps, c.Lanes)
	} else {
		hits := "-"
		if c.PrefixAsked > 0 {
			hits = fmt.Sprintf("%.0f%%", 100*float64(c.PrefixHits)/float64(c.PrefixAsked))
		}
		first = append(first, sessions, "-", used, "-", hits, c.Evicted, c.Lanes)
	}
	rows := []table.Row{first}
	for i, p := range c.Pages {
		if i > 0 {
			rows = append(rows, make(table.Row, columns))
			for j := range rows[i] {
				rows[i][j] = ""
			}
		}
		rows[i][2], rows[i][3], rows[i][4] = sizeOf(int64(p.PageBytes)), p.Used, p.Free
	}
	return rows
}

// hitRate prints how many of the positions asked for in prefixes were there.
func hitRate(hits, asked uint64) string {
	if asked == 0 {
		return "none asked"
	}
	return fmt.Sprintf("%d/%d (%.0f%%)", hits, asked, 100*float64(hits)/float64(asked))
}
