package cli

import (
	"context"
	"errors"
	"strings"
	"time"

	"github.com/jedib0t/go-pretty/v6/table"
	"github.com/spf13/cobra"

	"headwater.example/client"
)

// movesView is how far a drain or a rebalance has come, as scripts read it.
type movesView struct {
	Left        uint64 `json:"left"`
	Moved       uint64 `json:"moved"`
	CopiedBytes uint64 `json:"copied_bytes"`
	LeftBytes   uint64 `json:"left_bytes"`
	Error       string `json:"error,omitempty"`
	Done        bool   `json:"done"`
	// Silent are workers that did not answer a rebalance, so that what they hold was not counted.
	Silent []silentView `json:"silent,omitempty"`
}

// eventView is an event as scripts read it.
type eventView struct {
	Number uint64    `json:"number"`
	Time   time.Time `json:"time"`
	Kind   string    `json:"kind"`
	Worker string    `json:"worker,omitempty"`
	Count  uint64    `json:"count"`
	Text   string    `json:"text"`
}

func (a *app) drain() *cobra.Command {
	var at remote
	var undo bool
	cmd := &cobra.Command{
		Use: "drain WORKER", Short: "Move all sessions away from a worker while they go on", Args: exactly("WORKER"), ValidArgsFunction: a.completeWorkers(&at),
		Long: "Move all sessions away from a worker while they go on, and give it no new sessions and jobs, so that it can be stopped without\n" +
			"anybody's notice. It returns once the worker holds no sessions. If it is interrupted, the worker stays drained and the sessions\n" +
			"go on moving. A worker that is restarted is not drained.",
		Example: "  coord drain worker-3 && kubectl delete pod worker-3\n  coord drain worker-3 --undo",
		RunE: func(cmd *cobra.Command, args []string) error {
			return at.with(cmd.Context(), func(ctx context.Context, c *client.Client) error {
				if undo {
					return a.undrain(ctx, c, args[0])
				}
				return a.showMoves(func(show func(client.Moves)) error { return c.Drain(ctx, args[0], show) })
			})
		},
	}
	at.flags(cmd.Flags())
	cmd.Flags().BoolVar(&undo, "undo", false, "let the worker have sessions and jobs again")
	flagOnly(cmd.Flags(), "undo")
	return cmd
}

func (a *app) undrain(ctx context.Context, c *client.Client, worker string) error {
	if err := c.Undrain(ctx, worker); err != nil {
		return err
	}
	if a.json() {
		return a.printJSON(movesView{Done: true})
	}
	return a.say("worker %s takes sessions and jobs again\n", worker)
}

func (a *app) rebalance() *cobra.Command {
	var at remote
	cmd := &cobra.Command{
		Use: "rebalance", Short: "Spread sessions over the workers by their weights while they go on", Args: exactly(),
		Long: "Move sessions, while they go on, from workers that hold more bytes than their weights say to those that hold fewer, as after\n" +
			"workers have joined. What is moved is copied at the rate that --copy-rate of coord serve sets. Workers that do not answer are\n" +
			"named: what they hold is not counted, and nothing is moved to them.",
		Example: "  coord rebalance",
		RunE: func(cmd *cobra.Command, _ []string) error {
			return at.with(cmd.Context(), func(ctx context.Context, c *client.Client) error {
				return a.showMoves(func(show func(client.Moves)) error { return c.Rebalance(ctx, show) })
			})
		},
	}
	at.flags(cmd.Flags())
	return cmd
}

// showMoves prints what was moved once it is at its end. On the way stderr has how far it has come, and what fails.
func (a *app) showMoves(run func(show func(client.Moves)) error) error {
	var last client.Moves
	failure, begun := "", false
	progress := &moving{progress: a.progress(false), now: time.Now}
	err := run(func(m client.Moves) {
		for _, w := range m.Silent {
			if !begun {
				a.note("worker %s did not answer, so what it holds is not counted: %s\n", w.Worker, strings.Join(strings.Fields(w.Error), " "))
			}
		}
		begun = true
		if last = m; m.Error != "" && m.Error != failure {
			failure = m.Error
			progress.end()
			a.note("%s: it is tried again\n", strings.Join(strings.Fields(m.Error), " "))
		}
		progress.show(m)
	})
	progress.end()
	if err != nil {
		return err
	}
	if a.json() {
		v := movesView{Left: last.Left, Moved: last.Moved, CopiedBytes: last.CopiedBytes, LeftBytes: last.LeftBytes, Error: last.Error, Done: last.Done}
		for _, w := range last.Silent {
			v.Silent = append(v.Silent, silentView{w.Worker, w.Address, w.Error})
		}
		return a.printJSON(v)
	}
	return a.say("%s, %s copied\n", plural(int(last.Moved), "session was moved", "sessions were moved"), sizeOf(int64(last.CopiedBytes)))
}

func (a *app) events() *cobra.Command {
	var at remote
	var watch bool
	cmd := &cobra.Command{
		Use: "events", Short: "Show what happened: workers lost and joined, copies made", Args: exactly(),
		Long: "Show the newest events that the coordinator has kept since its start: workers that joined, went or were left out, copies of\n" +
			"sessions that are missing (\"under-replicated: N shards\") and that were made, drains. With --watch, go on until Ctrl-C.",
		Example: "  coord events\n  coord events --watch --output json | jq -r .text",
		RunE: func(cmd *cobra.Command, _ []string) error {
			return at.with(cmd.Context(), func(ctx context.Context, c *client.Client) error {
				if watch {
					err := c.Events(ctx, 0, true, a.sayEvent)
					if errors.Is(ctx.Err(), context.Canceled) {
						return nil
					}
					return err
				}
				all := []eventView{}
				if err := c.Events(ctx, 0, false, func(e client.Event) error {
					all = append(all, viewEvent(e))
					return nil
				}); err != nil {
					return err
				}
				if a.json() {
					return a.printJSON(map[string]any{"events": all})
				}
				t := a.newTable("", "time", "kind", "event")
				for _, e := range all {
					t.AppendRow(table.Row{e.Time.Local().Format(time.DateTime), e.Kind, e.Text})
				}
				return a.printTable(t)
			})
		},
	}
	at.flags(cmd.Flags())
	cmd.Flags().BoolVar(&watch, "watch", false, "go on with the events to come")
	flagOnly(cmd.Flags(), "watch")
	return cmd
}

func viewEvent(e client.Event) eventView {
	return eventView{e.Number, e.Time, e.Kind, e.Worker, e.Count, e.Text}
}

// sayEvent prints an event as one line.
func (a *app) sayEvent(e client.Event) error {
	if a.json() {
		return a.printJSON(viewEvent(e))
	}
	return a.say("%s  %s\n", e.Time.Local().Format(time.DateTime), e.Text)
}
