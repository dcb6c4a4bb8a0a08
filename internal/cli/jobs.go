package cli

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/jedib0t/go-pretty/v6/table"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"headwater.example/client"
	headwaterv1 "headwater.example/proto/headwater/v1"
)

// remote is how a command reaches its coordinator.
type remote struct {
	address string
	proxy   bool
}

func (r *remote) flags(flags *pflag.FlagSet) {
	flags.StringVar(&r.address, "coordinator", fmt.Sprintf("127.0.0.1:%d", client.DefaultPort), "`host:port` of the coordinator, or unix:/path")
	flags.BoolVar(&r.proxy, "proxy", false, "take the proxy that HTTPS_PROXY names (default: a cluster is reached without)")
}

// dial prepares a connection to the coordinator.
func (r *remote) dial() (*client.Client, error) {
	dial := client.Dial
	if r.proxy {
		dial = client.DialThroughProxy
	}
	return dial(r.address)
}

// with calls do with a connection.
func (r *remote) with(ctx context.Context, do func(context.Context, *client.Client) error) error {
	c, err := r.dial()
	if err != nil {
		return usageError{err}
	}
	defer c.Close()
	return do(ctx, c)
}

// jobs is the group of commands about the jobs that a coordinator keeps.
func (a *app) jobs() *cobra.Command {
	return group("jobs", "List, follow, cancel and fetch jobs", "  coord jobs list\n  coord jobs result 3f9c --out context.safetensors",
		a.jobsList(), a.jobsShow(), a.jobsWatch(), a.jobsCancel(), a.jobsResult())
}

func (a *app) jobsList() *cobra.Command {
	var at remote
	cmd := &cobra.Command{
		Use: "list", Short: "List the jobs that the coordinator keeps, newest first", Args: exactly(),
		Example: "  coord jobs list\n  coord jobs list --output json | jq -r '.[] | select(.state==\"failed\") | .id'",
		RunE: func(cmd *cobra.Command, _ []string) error {
			return at.with(cmd.Context(), func(ctx context.Context, c *client.Client) error {
				jobs, err := c.List(ctx)
				if err != nil {
					return err
				}
				if a.json() {
					views := []jobView{}
					for _, job := range jobs {
						views = append(views, viewJob(job))
					}
					return a.printJSON(views)
				}
				t := newTable("", "id", "name", "kind", "state", ">size", "created", ">elapsed", "error")
				for _, job := range jobs {
					t.AppendRow(table.Row{job.GetId(), job.GetName(), job.GetKind(), stateName(job.GetState()), sizeOf(int64(job.GetSizeBytes())), clock(job.GetCreated()), elapsed(job), shorten(job.GetError(), 60)})
				}
				return a.printTable(t)
			})
		},
	}
	at.flags(cmd.Flags())
	return cmd
}

func (a *app) jobsShow() *cobra.Command {
	var at remote
	cmd := &cobra.Command{
		Use: "show ID", Short: "Show one job, by id, key or content hash", Args: exactly("ID"),
		Example: "  coord jobs show coord-01JD0000000000000000000000\n  coord jobs show my-key --output json",
		RunE: func(cmd *cobra.Command, args []string) error {
			return at.with(cmd.Context(), func(ctx context.Context, c *client.Client) error {
				job, err := c.Get(ctx, args[0])
				if err != nil {
					return err
				}
				return a.printJob(job, "")
			})
		},
	}
	at.flags(cmd.Flags())
	return cmd
}

func (a *app) jobsWatch() *cobra.Command {
	var at remote
	var quiet bool
	cmd := &cobra.Command{
		Use: "watch ID", Short: "Follow a job to its end, also over a restart of the coordinator", Args: exactly("ID"),
		Example: "  coord jobs watch coord-01JD0000000000000000000000",
		RunE: func(cmd *cobra.Command, args []string) error {
			return at.with(cmd.Context(), func(ctx context.Context, c *client.Client) error {
				bar := a.progress(quiet)
				job, err := c.Wait(ctx, args[0], bar.job)
				bar.end()
				if err != nil {
					return err
				}
				return a.printJob(job, "")
			})
		},
	}
	at.flags(cmd.Flags())
	cmd.Flags().BoolVarP(&quiet, "quiet", "q", false, "show no progress")
	return cmd
}

func (a *app) jobsCancel() *cobra.Command {
	var at remote
	cmd := &cobra.Command{
		Use: "cancel ID", Short: "Cancel a job that has not ended", Args: exactly("ID"),
		Example: "  coord jobs cancel coord-01JD0000000000000000000000",
		RunE: func(cmd *cobra.Command, args []string) error {
			return at.with(cmd.Context(), func(ctx context.Context, c *client.Client) error {
				job, err := c.Cancel(ctx, args[0])
				if err != nil {
					return err
				}
				if a.json() {
					return a.printJSON(viewJob(job))
				}
				_, err = fmt.Fprintf(a.Out, "job %s: %s\n", job.GetId(), stateName(job.GetState()))
				return err
			})
		},
	}
	at.flags(cmd.Flags())
	return cmd
}

func (a *app) jobsResult() *cobra.Command {
	var at remote
	var out string
	var quiet bool
	cmd := &cobra.Command{
		Use: "result ID", Short: "Fetch the result of a job that succeeded", Args: exactly("ID"),
		Example: "  coord jobs result coord-01JD0000000000000000000000 --out context.safetensors",
		RunE: func(cmd *cobra.Command, args []string) error {
			if out == "" {
				return usage("--out is missing: where shall the result go?")
			}
			return at.with(cmd.Context(), func(ctx context.Context, c *client.Client) error {
				bar := a.progress(quiet)
				job, err := c.Download(ctx, args[0], out, func(done, total int64) { bar.show("fetching", done, total, true) })
				bar.end()
				if err != nil {
					return err
				}
				if a.json() {
					view := viewJob(job)
					view.Out = out
					return a.printJSON(view)
				}
				_, err = fmt.Fprintf(a.Out, "%s: %s, SHA-256 %s\n", out, sizeOf(int64(job.GetResultBytes())), job.GetResultSha256())
				return err
			})
		},
	}
	at.flags(cmd.Flags())
	cmd.Flags().StringVarP(&out, "out", "o", "", "`file` to write")
	cmd.Flags().BoolVarP(&quiet, "quiet", "q", false, "show no progress")
	flagOnly(cmd.Flags(), "out")
	return cmd
}

// elapsed is how long a job has run, or ran.
func elapsed(job *headwaterv1.Job) string {
	if job.GetStarted() == nil {
		return ""
	}
	end := time.Now()
	if job.GetEnded() != nil {
		end = job.GetEnded().AsTime()
	}
	return end.Sub(job.GetStarted().AsTime()).Round(time.Millisecond).String()
}

// shorten keeps a text to a column's width.
func shorten(s string, width int) string {
	s = strings.Join(strings.Fields(s), " ")
	if runes := []rune(s); len(runes) > width {
		return string(runes[:width-1]) + "…"
	}
	return s
}
