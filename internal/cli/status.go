package cli

import (
	"context"
	"fmt"

	"github.com/google/uuid"
	"github.com/jedib0t/go-pretty/v6/table"
	"github.com/spf13/cobra"

	"headwater/client"
	headwaterv1 "headwater/proto/headwater/v1"
)

// statusView is a coordinator's status as scripts read it.
type statusView struct {
	Name     string            `json:"name"`
	Version  string            `json:"version"`
	Protocol string            `json:"protocol"`
	Address  string            `json:"address"`
	Workers  []workerView      `json:"workers"`
	Jobs     map[string]uint64 `json:"jobs"`
}

type workerView struct {
	Name        string `json:"name"`
	Address     string `json:"address"`
	Boot        string `json:"boot,omitempty"`
	Version     string `json:"version,omitempty"`
	Weight      uint32 `json:"weight"`
	BudgetBytes uint64 `json:"budget_bytes"`
	UsedBytes   uint64 `json:"used_bytes"`
	Threads     uint32 `json:"threads"`
	Kernel      string `json:"kernel,omitempty"`
	Error       string `json:"error,omitempty"`
}

func (a *app) status() *cobra.Command {
	var at remote
	cmd := &cobra.Command{
		Use: "status", Short: "Show the coordinator, its workers and its jobs", Args: exactly(),
		Example: "  coord status\n  coord status --output json | jq '.workers | length'",
		RunE: func(cmd *cobra.Command, _ []string) error {
			return at.with(cmd.Context(), func(ctx context.Context, c *client.Client) error {
				status, err := c.Status(ctx)
				if err != nil {
					return err
				}
				view := viewStatus(c.Address(), status)
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

func viewStatus(address string, status *headwaterv1.StatusResponse) statusView {
	v := statusView{Name: status.GetName(), Version: status.GetVersion(), Protocol: status.GetProtocol(), Address: address, Workers: []workerView{}, Jobs: map[string]uint64{}}
	for _, s := range status.GetWorkers() {
		w := s.GetWorker()
		one := workerView{
			Name: w.GetName(), Address: s.GetAddress(), Version: w.GetVersion(), Weight: w.GetWeight(), BudgetBytes: w.GetBudgetBytes(),
			UsedBytes: w.GetUsedBytes(), Threads: w.GetThreads(), Kernel: w.GetKernel(), Error: s.GetError(),
		}
		if boot, err := uuid.FromBytes(w.GetBoot()); err == nil {
			one.Boot = boot.String()
		}
		v.Workers = append(v.Workers, one)
	}
	for _, count := range status.GetJobs() {
		v.Jobs[stateName(count.GetState())] = count.GetCount()
	}
	return v
}

func (a *app) printStatus(v statusView) error {
	if _, err := fmt.Fprintf(a.Out, "coordinator %s at %s, version %s, protocol %s\n\n", v.Name, v.Address, v.Version, v.Protocol); err != nil {
		return err
	}
	workers := newTable("workers", "name", "address", ">weight", ">used", ">budget", ">threads", "kernel", "version", "state")
	for _, w := range v.Workers {
		state := "answers"
		if w.Error != "" {
			state = shorten(w.Error, 60)
		}
		workers.AppendRow(table.Row{w.Name, w.Address, w.Weight, sizeOf(int64(w.UsedBytes)), sizeOf(int64(w.BudgetBytes)), w.Threads, w.Kernel, w.Version, state})
	}
	if err := a.printTable(workers); err != nil {
		return err
	}
	jobs := newTable("jobs", "state", ">count")
	for state := range len(headwaterv1.JobState_name) {
		name := stateName(headwaterv1.JobState(state))
		if n, ok := v.Jobs[name]; ok {
			jobs.AppendRow(table.Row{name, n})
		}
	}
	if len(v.Jobs) == 0 {
		return nil
	}
	if _, err := fmt.Fprintln(a.Out); err != nil {
		return err
	}
	return a.printTable(jobs)
}
