package cli

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"

	"github.com/jedib0t/go-pretty/v6/table"
	"github.com/spf13/cobra"

	"headwater.example/internal/explain"
	"headwater.example/internal/heatmap"
	"headwater.example/internal/jobfile"
	"headwater.example/shard"
	"headwater.example/tensor"
)

// explainFlags choose what of a job is explained.
type explainFlags struct {
	heads     string // with commas; empty: all
	positions string // with commas, below 0 from the end; empty: the last query's
	problem   string // prefix of its tensors; empty: the first
	top       int    // 0: no table
	figure    string
	image     *output // of the figure, nil for none
}

// explanation is a job file that is open to be explained.
type explanation struct {
	file    *tensor.File
	job     *jobfile.Job
	problem *jobfile.Problem
	choice  explain.Choice
	flags   explainFlags
}

func (a *app) explain() *cobra.Command {
	var f explainFlags
	var options optionFlags
	cmd := &cobra.Command{
		Use: "explain JOB", Short: "Show what the queries of a job look at, without a cluster", Args: exactly("JOB"),
		Long: "For chosen heads and positions of a job file, show the positions that match best, with their weights and, if the\n" +
			"file has them, their tokens. --figure draws heat maps: a row of panels for each KV group. Options given here\n" +
			"override the file's. Weights are computed here in float64 (for kind layer, from its hidden states); no\n" +
			"coordinator is needed.",
		Example: `  coord explain job.safetensors --heads 0,1 --positions -1 --top 5
  coord explain job.safetensors --problem layers.17. --figure map.png`,
		RunE: func(cmd *cobra.Command, args []string) error {
			overrides, err := options.overrides(cmd.Flags())
			if err != nil {
				return err
			}
			if f.top < 0 || f.top == 0 && f.figure == "" {
				return usage("--top is %d, must be at least 1, or 0 with --figure", f.top)
			}
			told, err := a.openExplanation(args[0], overrides, f)
			if err != nil {
				return err
			}
			defer told.close()
			if told.flags.image.standard(a) && !cmd.Flags().Changed("top") {
				told.flags.top = 0
			}
			return a.printExplanation(cmd.Context(), told)
		},
	}
	flags := cmd.Flags()
	options.flags(flags)
	flags.StringVar(&f.heads, "heads", "", "query heads, `0,1,...` (default: all)")
	flags.StringVar(&f.positions, "positions", "", "absolute `positions` of queries; -1 is the last (default: -1; heat maps show all queries unless several are given)")
	flags.StringVar(&f.problem, "problem", "", "`prefix` of the tensors of one sequence and layer: layers.17. (default: the file's first)")
	flags.IntVar(&f.top, "top", 5, "matched positions to list for each query and head")
	flags.StringVar(&f.figure, "figure", "", "PNG `file` to draw heat maps to, - is the standard output")
	flagOnly(flags, "heads", "positions", "problem", "top", "figure")
	return cmd
}

// openExplanation opens a job file, finds what was chosen in it, and sees to it that the figure can be written.
func (a *app) openExplanation(path string, overrides []byte, f explainFlags) (_ *explanation, err error) {
	file, err := tensor.Open(path)
	if err != nil {
		return nil, err
	}
	e := &explanation{file: file, flags: f}
	defer func() {
		if err != nil {
			e.close()
		}
	}()
	if e.job, err = jobfile.Parse(file, overrides); err != nil {
		return nil, err
	}
	if f.figure != "" {
		if e.flags.image, err = a.openOutput("--figure", f.figure, file.Paths()...); err != nil {
			return nil, err
		}
	}
	e.problem = &e.job.Problems[0]
	if f.problem != "" {
		// The dot at its end may be left out.
		at := slices.IndexFunc(e.job.Problems, func(p jobfile.Problem) bool {
			return strings.TrimSuffix(p.Prefix, ".") == strings.TrimSuffix(f.problem, ".")
		})
		if at < 0 {
			return nil, usage("--problem: %s has no tensors under %q", path, f.problem)
		}
		e.problem = &e.job.Problems[at]
	}
	heads, err := integers("heads", f.heads)
	if err != nil {
		return nil, err
	}
	for _, h := range heads {
		e.choice.Heads = append(e.choice.Heads, int(h))
	}
	positions, err := integers("positions", f.positions)
	if err != nil {
		return nil, err
	}
	for _, p := range positions {
		if p < 0 {
			p += e.problem.Offset + int64(e.problem.Tokens)
		}
		e.choice.Positions = append(e.choice.Positions, p)
	}
	return e, nil
}

// close closes a file that was only read.
func (e *explanation) close() { _ = e.file.Close() }

// printExplanation prints the table and draws the figure.
func (a *app) printExplanation(ctx context.Context, e *explanation) error {
	if e.flags.top > 0 {
		if e.flags.image.standard(a) {
			return usage("--figure: the table goes to the standard output: name a file, or give --top 0")
		}
		found, err := explain.Explain(ctx, e.file, e.job, e.problem, e.choice, e.flags.top)
		switch {
		case err != nil:
			return wrongChoice(err)
		case a.json():
			err = a.printJSON(found)
		default:
			err = found.WriteTable(a.Out)
		}
		if err != nil {
			return err
		}
	}
	if e.flags.figure == "" {
		return nil
	}
	if err := e.draw(ctx); err != nil {
		return err
	}
	a.note("heat maps in %s\n", e.flags.figure)
	return nil
}

// draw writes the heat maps: of all queries, since one line is no picture, unless several positions were chosen.
func (e *explanation) draw(ctx context.Context) error {
	choice := e.choice
	if len(choice.Positions) <= 1 {
		choice.Positions = nil
	}
	groups, positions, err := explain.Panels(ctx, e.file, e.problem, choice)
	if err != nil {
		return wrongChoice(err)
	}
	figure := heatmap.Figure{
		Title: strings.TrimSpace("Attention weights " + strings.TrimSuffix(e.problem.Prefix, ".")),
		Caption: "One row of panels is one KV group: all query heads in it read the same keys and values. " +
			"A line of a panel is a query, a column a position; gray positions have no weight.",
		Offset: e.problem.Offset, Positions: positions,
	}
	if tokens := e.job.TokensOf(e.problem); len(tokens) >= e.problem.KVLen {
		figure.Tokens = tokens[:e.problem.KVLen]
	}
	size := e.problem.Shape.GroupSize()
	for _, group := range groups {
		row := heatmap.Row{Group: group.Group, Label: fmt.Sprintf("query heads %d-%d", group.Group*size, (group.Group+1)*size-1)}
		if size == 1 {
			row.Label = fmt.Sprintf("query head %d", group.Group)
		}
		for _, panel := range group.Panels {
			row.Panels = append(row.Panels, heatmap.Panel{Head: panel.Head, Weights: panel.Weights})
		}
		figure.Rows = append(figure.Rows, row)
	}
	var image bytes.Buffer
	if err := heatmap.Draw(&image, figure); err != nil {
		return fmt.Errorf("draw %s: %w", e.flags.figure, err)
	}
	return e.flags.image.write(func(w io.Writer) error {
		_, err := image.WriteTo(w)
		return err
	})
}

// wrongChoice makes a head or a position that the job does not have a wrong use of the command.
func wrongChoice(err error) error {
	var choice *explain.ChoiceError
	if errors.As(err, &choice) {
		return usageError{err}
	}
	return err
}

// printComparison prints what MHA, the geometry's own attention, and MQA cost: for each shape of layer, and for all layers
// where there are several.
func (a *app) printComparison(geometry *shard.Geometry, f planFlags) error {
	storage, err := shard.ParseStorage(f.storage)
	if err != nil {
		return usageError{err}
	}
	comparison, err := explain.Compare(geometry, f.dModel, int64(f.context), storage)
	if err != nil {
		return usageError{err}
	}
	if a.json() {
		return a.printJSON(comparison)
	}
	t := a.newTable("", "layer", "attention", ">heads", ">K/V", ">parameters", ">a token", fmt.Sprintf(">at %d", f.context), ">of MHA")
	block := func(layers string, costs [3]explain.Cost) {
		for _, cost := range costs {
			name := cost.Name
			if cost.This {
				name = "this " + name
			}
			t.AppendRow(table.Row{layers, name, cost.Heads, cost.KVHeads, cost.Parameters, sizeOf(cost.BytesPerToken), sizeOf(cost.BytesAt), fmt.Sprintf("%.1f%%", 100*cost.Share)})
			layers = ""
		}
		t.AppendSeparator()
	}
	all := 0
	for _, l := range comparison.Layers {
		block(fmt.Sprintf("%d (%d alike)", l.First, l.Count), l.Costs)
		all += l.Count
	}
	if all > 1 {
		block(fmt.Sprintf("all %d", all), comparison.Total)
	}
	return a.printTable(t)
}

// integers reads whole numbers with commas between; nil for none.
func integers(name, list string) ([]int64, error) {
	if strings.TrimSpace(list) == "" {
		return nil, nil
	}
	var numbers []int64
	for _, word := range strings.Split(list, ",") {
		n, err := strconv.ParseInt(strings.TrimSpace(word), 10, 64)
		if err != nil {
			return nil, usage("--%s: %q is not a whole number", name, word)
		}
		numbers = append(numbers, n)
	}
	return numbers, nil
}
