package cli

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jedib0t/go-pretty/v6/table"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"headwater.example/client"
)

// remote is how a command reaches its coordinator.
type remote struct {
	address  string
	proxy    bool
	token    string // its file
	security securityFlags
}

func (r *remote) flags(flags *pflag.FlagSet) {
	flags.StringVar(&r.address, "coordinator", fmt.Sprintf("127.0.0.1:%d", client.DefaultPort), "`host:port` of the coordinator, or unix:/path")
	flags.BoolVar(&r.proxy, "proxy", false, "reach the cluster through the proxy that HTTPS_PROXY names (default: without a proxy)")
	flags.StringVar(&r.token, "token-file", "", "`file` of a tenant's token, as coord tenants add prints it; the folder of --tls-dir then needs ca.crt alone (default: the certificate's tenant)")
	r.security.flags(flags)
}

// dial prepares a connection to the coordinator.
func (r *remote) dial() (*client.Client, error) {
	return client.DialWith(r.address, client.DialOptions{TLSDir: r.security.folder, TokenFile: r.token, Insecure: r.security.insecure, Proxy: r.proxy})
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

// withSessions is with for commands about sessions, which a worker must not answer.
func (r *remote) withSessions(ctx context.Context, do func(context.Context, *client.Client) error) error {
	return r.with(ctx, func(ctx context.Context, c *client.Client) error {
		if err := c.RefuseWorker(ctx); err != nil {
			return err
		}
		return do(ctx, c)
	})
}

// jobs is the group of commands about the jobs that a coordinator keeps.
func (a *app) jobs() *cobra.Command {
	return group("jobs", "List, follow, cancel, delete and fetch jobs", "  coord jobs list\n  coord jobs result 01JD4 --out context.safetensors",
		a.jobsList(), a.jobsShow(), a.jobsWatch(), a.jobsCancel(), a.jobsDelete(), a.jobsResult())
}

// jobsView is a list of jobs as scripts read it.
type jobsView struct {
	Jobs []jobView `json:"jobs"`
}

func (a *app) jobsList() *cobra.Command {
	var at remote
	cmd := &cobra.Command{
		Use: "list", Short: "List the jobs that the coordinator keeps, newest first", Args: exactly(),
		Long: "List the jobs that the coordinator keeps, newest first. The table has the last part of each id, which is enough to name the\n" +
			"job; -o wide has ids whole, sizes, times and errors.",
		Example: "  coord jobs list\n  coord jobs list -o wide\n  coord jobs list -o json | jq -r '.jobs[] | select(.state==\"failed\") | .id'",
		RunE: func(cmd *cobra.Command, _ []string) error {
			return at.with(cmd.Context(), func(ctx context.Context, c *client.Client) error {
				jobs, err := c.List(ctx)
				if err != nil {
					return err
				}
				return a.printJobs(jobs, time.Now())
			})
		},
	}
	at.flags(cmd.Flags())
	return cmd
}

func (a *app) printJobs(jobs []*client.Job, now time.Time) error {
	if a.json() {
		view := jobsView{Jobs: []jobView{}}
		for _, job := range jobs {
			view.Jobs = append(view.Jobs, viewJob(job))
		}
		return a.printJSON(view)
	}
	if a.wide() {
		t := a.newTable("", "id", "name", "kind", "state", ">size", "created", ">took", "error")
		for _, job := range jobs {
			t.AppendRow(table.Row{job.ID, job.Name, job.Kind, state(string(job.State)), sizeOf(int64(job.SizeBytes)), clock(job.Created), elapsed(job, now), job.Error})
		}
		return a.printTable(t)
	}
	t := a.newTable("", "id", "name", "state", ">age", ">took")
	for _, job := range jobs {
		t.AppendRow(table.Row{shortJob(job.ID), shorten(job.Name, nameWidth), state(string(job.State)), age(job.Created, now), elapsed(job, now)})
	}
	return a.printTable(t)
}

func (a *app) jobsShow() *cobra.Command {
	var at remote
	cmd := &cobra.Command{
		Use: "show JOB", Short: "Show one job", Long: jobNames, Args: exactly("JOB"), ValidArgsFunction: a.completeJobs(&at),
		Example: "  coord jobs show 01JD4\n  coord jobs show my-key --output json",
		RunE: func(cmd *cobra.Command, args []string) error {
			return at.with(cmd.Context(), func(ctx context.Context, c *client.Client) error {
				job, err := findJob(ctx, c, args[0])
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
		Use: "watch JOB", Short: "Follow a job to its end, even if the coordinator restarts", Long: jobNames, Args: exactly("JOB"),
		ValidArgsFunction: a.completeJobs(&at), Example: "  coord jobs watch 01JD4",
		RunE: func(cmd *cobra.Command, args []string) error {
			return at.with(cmd.Context(), func(ctx context.Context, c *client.Client) error {
				found, err := findJob(ctx, c, args[0])
				if err != nil {
					return err
				}
				bar := a.progress(quiet)
				job, err := c.Wait(ctx, found.ID, bar.job)
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
		Use: "cancel JOB", Short: "Cancel a job that has not ended", Long: jobNames, Args: exactly("JOB"),
		ValidArgsFunction: a.completeJobs(&at), Example: "  coord jobs cancel 01JD4",
		RunE: func(cmd *cobra.Command, args []string) error {
			return at.with(cmd.Context(), func(ctx context.Context, c *client.Client) error {
				found, err := findJob(ctx, c, args[0])
				if err != nil {
					return err
				}
				job, err := c.Cancel(ctx, found.ID)
				if err != nil {
					return err
				}
				if a.json() {
					return a.printJSON(viewJob(job))
				}
				return a.say("job %s: %s\n", job.ID, string(job.State))
			})
		},
	}
	at.flags(cmd.Flags())
	return cmd
}

func (a *app) jobsDelete() *cobra.Command {
	var at remote
	cmd := &cobra.Command{
		Use: "delete JOB", Short: "Forget a job that has ended, with its result and its key", Long: jobNames, Args: exactly("JOB"),
		ValidArgsFunction: a.completeJobs(&at), Example: "  coord jobs delete 01JD4",
		RunE: func(cmd *cobra.Command, args []string) error {
			return at.with(cmd.Context(), func(ctx context.Context, c *client.Client) error {
				found, err := findJob(ctx, c, args[0])
				if err != nil {
					return err
				}
				job, err := c.Delete(ctx, found.ID)
				if err != nil {
					return err
				}
				if a.json() {
					return a.printJSON(viewJob(job))
				}
				return a.say("job %s: deleted\n", job.ID)
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
		Use: "result JOB", Short: "Fetch the result of a job that succeeded", Long: jobNames, Args: exactly("JOB"),
		ValidArgsFunction: a.completeJobs(&at),
		Example:           "  coord jobs result 01JD4 --out context.safetensors\n  coord jobs result 01JD4 --out - | sha256sum",
		RunE: func(cmd *cobra.Command, args []string) error {
			if out == "" {
				return usage("--out is missing: name the file for the result")
			}
			to, err := a.openOutput("--out", out)
			if err != nil {
				return err
			}
			return at.with(cmd.Context(), func(ctx context.Context, c *client.Client) error {
				job, err := findJob(ctx, c, args[0])
				if err != nil {
					return err
				}
				bar := a.progress(quiet)
				job, err = fetch(ctx, c, job.ID, to, bar)
				bar.end()
				if err != nil || to.standard(a) {
					return err
				}
				if a.json() {
					view := viewJob(job)
					view.Out = out
					return a.printJSON(view)
				}
				return a.say("%s: %s, SHA-256 %s\n", out, sizeOf(int64(job.ResultBytes)), job.ResultSHA256)
			})
		},
	}
	at.flags(cmd.Flags())
	cmd.Flags().StringVar(&out, "out", "", "`file` to write, - is the standard output")
	cmd.Flags().BoolVarP(&quiet, "quiet", "q", false, "show no progress")
	flagOnly(cmd.Flags(), "out")
	return cmd
}

// fetch writes a job's result to where it is to go.
func fetch(ctx context.Context, c *client.Client, id string, to *output, bar *progress) (*client.Job, error) {
	fetched := func(done, total int64) { bar.show("fetching", done, total, true) }
	if to.stream == nil {
		return c.Download(ctx, id, to.path, fetched)
	}
	job, err := c.DownloadTo(ctx, id, to.stream, fetched)
	return job, errors.Join(err, to.close())
}

// elapsed is how long a job has run, or ran.
func elapsed(job *client.Job, now time.Time) string {
	if job.Started.IsZero() {
		return ""
	}
	end := now
	if !job.Ended.IsZero() {
		end = job.Ended
	}
	return duration(end.Sub(job.Started))
}
