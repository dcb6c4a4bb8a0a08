package cli

import (
	"errors"
	"fmt"
	"math"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"headwater.example/attention"
	"headwater.example/internal/accuracy"
	"headwater.example/internal/jobfile"
	"headwater.example/tensor"
)

// withFiles opens two files of tensors for do.
func withFiles(first, second string, do func(a, b *tensor.File) error) error {
	a, err := tensor.Open(first)
	if err != nil {
		return err
	}
	b, err := tensor.Open(second)
	if err != nil {
		return errors.Join(err, a.Close())
	}
	return errors.Join(do(a, b), a.Close(), b.Close())
}

// names are arithmetics as scripts read them.
func names(arithmetics []attention.Arithmetic) []string {
	all := []string{}
	for _, one := range arithmetics {
		all = append(all, one.String())
	}
	return all
}

func (a *app) diff() *cobra.Command {
	return &cobra.Command{
		Use: "diff RESULT RESULT", Short: "Compare the tensors of two results bit for bit", Args: exactly("RESULT", "RESULT"),
		Long: "Compare the tensors of two files bit for bit; their metadata, which tells times and workers, may differ.\n" +
			"The exit code is 0 where they are equal and 5 where they differ.",
		Example: "  coord diff on-one-worker.safetensors on-five-workers.safetensors",
		RunE: func(_ *cobra.Command, args []string) error {
			return withFiles(args[0], args[1], func(first, second *tensor.File) error {
				differences, compared, err := accuracy.Diff(first, second)
				if err != nil {
					return err
				}
				err = a.printDifferences(first, second, differences, compared)
				if err == nil && len(differences) > 0 {
					err = differsError{fmt.Errorf("%s and %s differ in %d tensors", args[0], args[1], len(differences))}
				}
				return err
			})
		},
	}
}

// printDifferences prints what Diff found, and in which arithmetics the results are if these differ.
func (a *app) printDifferences(first, second *tensor.File, differences []accuracy.Difference, compared int64) error {
	sums := [2][]string{names(jobfile.ResultArithmetics(first.Metadata())), names(jobfile.ResultArithmetics(second.Metadata()))}
	if a.json() {
		if differences == nil {
			differences = []accuracy.Difference{}
		}
		return a.printJSON(map[string]any{"equal": len(differences) == 0, "differences": differences, "compared_bytes": compared, "arithmetics": sums})
	}
	for _, d := range differences {
		if err := a.say("tensor \"%s\": %s\n", d.Tensor, d.Rule); err != nil {
			return err
		}
	}
	if len(sums[0]) > 0 && len(sums[1]) > 0 && !slices.Equal(sums[0], sums[1]) {
		if err := a.say("%s is of arithmetic %s, %s of %s\n", first.Path(), strings.Join(sums[0], " and "), second.Path(), strings.Join(sums[1], " and ")); err != nil {
			return err
		}
	}
	if len(differences) > 0 {
		return nil
	}
	return a.say("%s and %s are equal bit for bit: %d tensors, %s\n", first.Path(), second.Path(), len(first.Names()), sizeOf(compared))
}

func (a *app) check() *cobra.Command {
	var truth, job string
	cmd := &cobra.Command{
		Use: "check RESULT", Short: "Compare a result with a float64 truth", Args: exactly("RESULT"),
		Long: "Compare a result with the truth: with a file of the true contexts (and y) in float64, or with a job file of any\n" +
			"kind but layer. The truth of a job is computed here, in plain float64, with the options that the result was made\n" +
			"with.\n\n" +
			"Errors of a context are counted in units of rounding error; with --truth they are if the file has a tensor unit\n" +
			"[tokens, n_heads] beside it. A unit is 2^-24*(1+S)*max|v| of each row, where S counts scale*sum|q*k|,\n" +
			"slope*distance and |bias| (docs/numerics.md). All other errors are relative to the row's largest value.",
		Example: "  coord check context.safetensors --job job.safetensors\n  coord check context.safetensors --truth attention.truth.safetensors",
		RunE: func(cmd *cobra.Command, args []string) error {
			if (truth == "") == (job == "") {
				return usage("give --truth or --job, the file to compare with")
			}
			return withFiles(args[0], truth+job, func(result, other *tensor.File) (err error) {
				var found []accuracy.Errors
				if job != "" {
					found, err = accuracy.AgainstJob(cmd.Context(), result, other)
				} else {
					found, err = accuracy.Against(result, other)
				}
				if err != nil {
					return err
				}
				return a.printErrors(found)
			})
		},
	}
	cmd.Flags().StringVar(&truth, "truth", "", "`file` with the truth in float64")
	cmd.Flags().StringVar(&job, "job", "", "compute the truth of this job `file`")
	flagOnly(cmd.Flags(), "truth", "job")
	return cmd
}

func (a *app) printErrors(found []accuracy.Errors) error {
	type view struct {
		Tensor string  `json:"tensor"`
		Kind   string  `json:"kind"`
		Rows   int     `json:"rows"`
		Worst  float64 `json:"worst"`
		Row    int     `json:"worst_row"`
	}
	views := []view{}
	t := a.newTable("", "tensor", ">rows", ">largest error", "of")
	for _, e := range found {
		worst, row := e.Worst()
		views = append(views, view{e.Tensor, e.Kind, len(e.Rows), min(worst, math.MaxFloat64), row}) // JSON has no infinity
		of := "the row's largest value"
		if e.Kind == accuracy.Units {
			of = "units of rounding error"
		}
		t.AppendRow([]any{e.Tensor, len(e.Rows), fmt.Sprintf("%.3g", worst), of})
	}
	if a.json() {
		return a.printJSON(map[string]any{"tensors": views})
	}
	return a.printTable(t)
}
