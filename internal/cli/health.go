package cli

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"headwater.example/client"
)

// healthView is a cluster's health as scripts read it.
type healthView struct {
	Healthy     bool         `json:"healthy"`
	Reason      string       `json:"reason,omitempty"` // why it is not
	Coordinator string       `json:"coordinator"`      // its address
	Serving     bool         `json:"serving"`
	Workers     int          `json:"workers"` // that answer
	Silent      []silentView `json:"silent"`  // workers that do not
}

// unhealthyError is a cluster that was found unhealthy, which has been printed.
type unhealthyError struct{ error }

// lookAgain is how long health waits between two looks.
const lookAgain = 500 * time.Millisecond

func (a *app) health() *cobra.Command {
	var at remote
	var workers int
	var wait time.Duration
	cmd := &cobra.Command{
		Use: "health", Short: "Tell a script whether the coordinator serves and workers answer", Args: exactly(),
		Long: "Tell whether the coordinator takes calls and at least --workers workers answer it. The exit code is 0 if so, 7\n" +
			"if not, and 3 if the coordinator can not be reached. --wait looks again until it is so or the time is over.",
		Example: "  coord health\n  coord health --workers 3 --wait 1m && coord submit job.safetensors\n  coord health --output json | jq -r .reason",
		RunE: func(cmd *cobra.Command, _ []string) error {
			if workers < 0 || wait < 0 {
				return usage("--workers and --wait must not be negative")
			}
			return at.with(cmd.Context(), func(ctx context.Context, c *client.Client) error {
				v, err := awaitHealth(ctx, c, workers, wait)
				if err != nil {
					return err
				}
				return a.printHealth(v)
			})
		},
	}
	at.flags(cmd.Flags())
	cmd.Flags().IntVar(&workers, "workers", 1, "least `number` of workers that answer")
	cmd.Flags().DurationVar(&wait, "wait", 0, "how long to wait until it is healthy")
	flagOnly(cmd.Flags(), "workers", "wait")
	return cmd
}

// awaitHealth looks at the cluster until it is healthy, and at least once.
func awaitHealth(ctx context.Context, c *client.Client, workers int, wait time.Duration) (healthView, error) {
	until := time.Now().Add(wait)
	for {
		v, err := look(ctx, c, workers)
		if v.Healthy || ctx.Err() != nil || !time.Now().Before(until) || err != nil && !errors.Is(err, client.ErrUnreachable) {
			return v, err
		}
		select {
		case <-ctx.Done():
		case <-time.After(lookAgain):
		}
	}
}

func look(ctx context.Context, c *client.Client, workers int) (healthView, error) {
	v := healthView{Coordinator: c.Address(), Silent: []silentView{}}
	var err error
	if v.Serving, err = c.Serving(ctx); err != nil {
		return v, err
	}
	status, err := c.Status(ctx)
	if err != nil {
		return v, err
	}
	for _, w := range status.Workers {
		if w.Error == "" {
			v.Workers++
		} else {
			v.Silent = append(v.Silent, silentView{w.Name, w.Address, w.Error})
		}
	}
	switch {
	case !v.Serving:
		v.Reason = "the coordinator is stopping"
	case v.Workers < workers:
		v.Reason = fmt.Sprintf("%s of at least %d", plural(v.Workers, "worker answers", "workers answer"), workers)
	}
	v.Healthy = v.Reason == ""
	return v, nil
}

func (a *app) printHealth(v healthView) error {
	switch {
	case a.json():
		if err := a.printJSON(v); err != nil {
			return err
		}
	case v.Healthy:
		if err := a.say("healthy: coordinator %s serves, %s\n", v.Coordinator, plural(v.Workers, "worker answers", "workers answer")); err != nil {
			return err
		}
	}
	for _, w := range v.Silent {
		a.note("warning: worker %s at %s does not answer: %s\n", w.Worker, w.Address, w.Error)
	}
	if v.Healthy {
		return nil
	}
	return unhealthyError{fmt.Errorf("not healthy: %s", v.Reason)}
}
