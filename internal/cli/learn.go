package cli

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/jedib0t/go-pretty/v6/table"
	"github.com/spf13/cobra"

	"headwater.example/client"
	"headwater.example/internal/explain"
	"headwater.example/internal/localcluster"
	"headwater.example/internal/lookup"
	"headwater.example/shard"
	"headwater.example/tensor"
)

// learnFlags are what learn is told.
type learnFlags struct {
	at      remote
	shape   lookup.Shape
	steps   int
	seed    uint64
	local   int
	compare bool
	figure  string
	out     string
}

func (a *app) learn() *cobra.Command {
	var f learnFlags
	cmd := &cobra.Command{
		Use: "learn", Short: "Teach one attention layer to look words up, from scratch", Args: exactly(),
		Long: "Teach one layer of grouped-query attention from scratch, and show what it learns (docs/learning.md). A text has clauses of a\n" +
			"subject, a verb and a relation, where any word can stand in any place; a question names a clause, and its words are the\n" +
			"answer. The heads of a group read the same keys, and learn to ask them different questions.\n\n" +
			"Each step is two jobs: one attends, and one brings the gradients back. The losses have the same bits on any cluster.",
		Example: `  coord learn
  coord learn --figure look-up.png --out layer.safetensors
  coord learn --compare
  coord learn --kv-heads 8 --coordinator 10.0.0.1:7600`,
		RunE: func(cmd *cobra.Command, _ []string) error { return a.runLearn(cmd, f) },
	}
	flags := cmd.Flags()
	f.at.flags(flags)
	flags.IntVar(&f.shape.Heads, "heads", 8, "query heads")
	flags.IntVar(&f.shape.KVHeads, "kv-heads", 2, "key/value heads: as many as query heads is MHA, one is MQA")
	flags.IntVar(&f.shape.HeadDim, "head-dim", 8, "elements of a head")
	flags.IntVar(&f.shape.DModel, "d-model", 32, "elements of a hidden state")
	flags.IntVar(&f.steps, "steps", 200, "batches to learn from")
	flags.Uint64Var(&f.seed, "seed", 1, "another `number` draws other texts and another beginning")
	flags.IntVar(&f.local, "local", 2, "run on a cluster of `N` workers on this machine, unless --coordinator names another")
	flags.BoolVar(&f.compare, "compare", false, "teach MHA and MQA of the same size as well, and compare")
	flags.StringVar(&f.figure, "figure", "", "PNG `file` to draw heat maps to, before and after, - is the standard output")
	flags.StringVar(&f.out, "out", "", "`file` to write the layer to, as a job of kind layer over one text, - is the standard output")
	flagOnly(flags, "heads", "kv-heads", "head-dim", "d-model", "steps", "seed", "local", "compare", "figure", "out")
	return cmd
}

// course is the training of one layer.
type course struct {
	Shape  lookup.Shape    `json:"shape"`
	Steps  []lookup.Score  `json:"steps"`
	Before *lookup.Learned `json:"before"`
	After  *lookup.Learned `json:"after"`

	model *lookup.Model
}

// lastSteps is how many steps a course's result is the mean of.
const lastSteps = 20

func (c *course) result() (s lookup.Score) {
	last := c.Steps[max(len(c.Steps)-lastSteps, 0):]
	for _, one := range last {
		s.Loss += one.Loss / float64(len(last))
		s.Right += one.Right / float64(len(last))
	}
	return s
}

func (a *app) runLearn(cmd *cobra.Command, f learnFlags) (err error) {
	ctx := cmd.Context()
	switch err := f.shape.Validate(); {
	case err != nil:
		return usageError{err}
	case f.steps < 1:
		return usage("--steps is %d, must be at least 1", f.steps)
	case f.local < 1:
		return usage("--local is %d, must be at least 1", f.local)
	}
	figure, out, err := a.openLearned(f)
	if err != nil {
		return err
	}
	if !cmd.Flags().Changed("coordinator") || a.settled["coordinator"] {
		cluster, started := a.startLocal(ctx, localcluster.Options{Workers: f.local})
		if started != nil {
			return started
		}
		defer func() { err = errors.Join(err, stopLocal(cluster)) }()
		f.at.address = cluster.Address()
	}
	shapes := []lookup.Shape{f.shape}
	if f.compare {
		for _, kvHeads := range []int{f.shape.Heads, 1} {
			other := f.shape
			if other.KVHeads = kvHeads; other != f.shape {
				shapes = append(shapes, other)
			}
		}
	}
	var courses []*course
	err = f.at.with(ctx, func(ctx context.Context, c *client.Client) error {
		for _, shape := range shapes {
			taught, err := a.teach(ctx, c, shape, f)
			if err != nil {
				return err
			}
			courses = append(courses, taught)
		}
		return nil
	})
	if err != nil {
		return err
	}
	if err := a.printLearned(courses); err != nil {
		return err
	}
	return courses[0].write(figure, out)
}

// openLearned sees to it that the files can be written.
func (a *app) openLearned(f learnFlags) (figure, out *output, err error) {
	if f.figure != "" {
		if figure, err = a.openOutput("--figure", f.figure); err != nil {
			return nil, nil, err
		}
	}
	if f.out != "" {
		out, err = a.openOutput("--out", f.out)
	}
	return figure, out, err
}

// write draws the heat maps and writes the layer, where they are wanted.
func (c *course) write(figure, out *output) error {
	if figure != nil {
		var image bytes.Buffer
		if err := lookup.Draw(&image, c.Before, c.After); err != nil {
			return fmt.Errorf("draw %s: %w", figure.path, err)
		}
		err := figure.write(func(w io.Writer) error {
			_, err := image.WriteTo(w)
			return err
		})
		if err != nil {
			return err
		}
	}
	if out == nil {
		return nil
	}
	return out.write(c.model.Save)
}

// teach trains a layer, and prints its way.
func (a *app) teach(ctx context.Context, c *client.Client, shape lookup.Shape, f learnFlags) (*course, error) {
	k := &course{Shape: shape, model: lookup.New(shape, f.seed)}
	tell := func(format string, args ...any) error {
		if a.json() {
			return nil
		}
		return a.say(format, args...)
	}
	err := tell("%s on %s, head_dim %d, d_model %d: %d parameters\n", plural(shape.Heads, "query head"), plural(shape.KVHeads, "KV head"), shape.HeadDim, shape.DModel, k.model.Parameters())
	if err != nil {
		return nil, err
	}
	if k.Before, err = k.model.Look(ctx); err != nil {
		return nil, err
	}
	every := max(f.steps/6, 1)
	for step := range f.steps {
		score, err := k.model.Step(ctx, c)
		if err != nil {
			return nil, fmt.Errorf("step %d: %w", step, err)
		}
		k.Steps = append(k.Steps, score)
		if step%every == 0 || step == f.steps-1 {
			if err := tell("  step %4d   loss %.4f   right %3.0f%%\n", step, score.Loss, 100*score.Right); err != nil {
				return nil, err
			}
		}
	}
	k.After, err = k.model.Look(ctx)
	return k, err
}

// printLearned prints what the first course has taught, and compares all.
func (a *app) printLearned(courses []*course) error {
	if a.json() {
		return a.printJSON(map[string]any{"chance": lookup.Chance, "courses": courses})
	}
	k := courses[0]
	if err := a.say("\n"); err != nil {
		return err
	}
	header := []string{"group", ">head"}
	for _, place := range lookup.Places {
		header = append(header, ">"+place)
	}
	t := a.newTable("Where questions look, before → after, in % of their weight: at the words of the clause", append(header, ">elsewhere")...)
	for i, before := range k.Before.Heads {
		after := k.After.Heads[i]
		row := table.Row{before.Group, before.Head}
		for p, share := range before.Asked {
			row = append(row, percents(share, after.Asked[p]))
		}
		if i > 0 && before.Group != k.Before.Heads[i-1].Group {
			t.AppendSeparator()
		}
		t.AppendRow(append(row, percents(before.Elsewhere, after.Elsewhere)))
	}
	if err := a.printTable(t); err != nil {
		return err
	}
	if err := a.say("\n"); err != nil {
		return err
	}
	t = a.newTable("What keys and values differ by, before → after, in % of their variance", "", "group", ">word", ">place", ">clause")
	for _, of := range []struct {
		name          string
		before, after []lookup.Parts
	}{{"keys", k.Before.Keys, k.After.Keys}, {"values", k.Before.Values, k.After.Values}} {
		for i, b := range of.before {
			after := of.after[i]
			t.AppendRow(table.Row{of.name, b.Group, percents(b.Word, after.Word), percents(b.Place, after.Place), percents(b.Clause, after.Clause)})
		}
	}
	if err := a.printTable(t); err != nil || len(courses) == 1 {
		return err
	}
	if err := a.say("\n"); err != nil {
		return err
	}
	return a.printCourses(courses)
}

func percent(share float64) string { return fmt.Sprintf("%.0f", 100*share) }

func percents(before, after float64) string {
	return fmt.Sprintf("%3s → %3s", percent(before), percent(after))
}

// printCourses compares layers of the same size: what they have learned, and what they cost.
func (a *app) printCourses(courses []*course) error {
	t := a.newTable(fmt.Sprintf("The last %d steps, and the cost of the layer with a cache in f32", min(lastSteps, len(courses[0].Steps))),
		"attention", ">KV heads", ">loss", ">right", ">parameters", ">cache a token", ">of MHA")
	for _, k := range courses {
		s := k.Shape
		g, err := shard.NewGeometry([]shard.LayerShape{{Heads: s.Heads, KVHeads: s.KVHeads, HeadDim: s.HeadDim, VDim: s.HeadDim}})
		if err != nil {
			return err
		}
		compared, err := explain.Compare(g, s.DModel, 0, tensor.F32)
		if err != nil {
			return err
		}
		cost := compared.Layers[0].Costs[1] // the geometry's own
		name := cost.Name
		if s.KVHeads > 1 && s.KVHeads < s.Heads {
			name = fmt.Sprintf("GQA %d:1", s.Heads/s.KVHeads)
		}
		result := k.result()
		t.AppendRow(table.Row{
			name, s.KVHeads, fmt.Sprintf("%.4f", result.Loss), percent(result.Right) + "%", cost.Parameters, sizeOf(cost.BytesPerToken),
			percent(cost.Share) + "%",
		})
	}
	return a.printTable(t)
}
