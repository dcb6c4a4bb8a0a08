package cli

import (
	"context"
	"fmt"
	"strconv"
	"time"

	"github.com/spf13/cobra"

	"headwater.example/internal/localcluster"
)

// Limits of a cluster on one machine: to come up, and to end by itself before it is killed.
const (
	localStart = time.Minute
	localStop  = 30 * time.Second
)

// startLocal starts a cluster on this machine.
func (a *app) startLocal(ctx context.Context, opts localcluster.Options) (*localcluster.Cluster, error) {
	if opts.Memory == 0 {
		all, err := memoryBudget()
		if err != nil {
			return nil, err
		}
		opts.Memory = all / int64(max(opts.Workers, 1))
	}
	ctx, cancel := context.WithTimeoutCause(ctx, localStart, fmt.Errorf("it did not come up within %s", localStart))
	defer cancel()
	return localcluster.Start(ctx, opts)
}

// stopLocal ends a cluster, also when the command was interrupted.
func stopLocal(cluster *localcluster.Cluster) error {
	ctx, cancel := context.WithTimeout(context.Background(), localStop)
	defer cancel()
	return cluster.Stop(ctx)
}

func (a *app) local() *cobra.Command {
	var (
		workers, threads int
		replicas         int
		memory           memorySize
		data             string
		owned            bool
	)
	cmd := &cobra.Command{
		Use: "local", Short: "Run a cluster on this machine until Ctrl-C", Args: exactly(),
		Long: "Run a coordinator and some workers as processes on this machine, on free ports of the loopback interface, until\n" +
			"Ctrl-C.\n\n" +
			"A program that starts a cluster for itself gives it a pipe as standard input and --end-with-input. The cluster\n" +
			"then ends with the program, however the program ends. The Python client does this in headwater.local().",
		Example: `  coord local --workers 3
  coord local --workers 3 --replicas 1
  coord local --workers 3 --memory 2GiB --data-dir ./data`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if workers < 1 {
				return usage("--workers is %d, must be at least 1", workers)
			}
			if err := checkReplicas(replicas); err != nil {
				return err
			}
			ctx, end := context.WithCancel(cmd.Context())
			defer end()
			if owned {
				a.endWithInput(end)
			}
			cluster, err := a.startLocal(ctx, localcluster.Options{Workers: workers, Memory: int64(memory.byteSize), Threads: threads, DataDir: data, Log: a.Err, CoordinatorArgs: []string{"--replicas", strconv.Itoa(replicas)}})
			if err != nil {
				return err
			}
			if a.json() {
				processes := map[string]int{}
				for i := range cluster.Workers() {
					processes[cluster.Name(i)] = cluster.Process(i)
				}
				err = a.printJSON(map[string]any{"coordinator": cluster.Address(), "workers": cluster.Workers(), "processes": processes})
			} else {
				err = a.say("%d workers and a coordinator at %s; Ctrl-C ends them\n\n  export HEADWATER_COORDINATOR=%[2]s\n  %[3]s submit job.safetensors --out context.safetensors\n", cluster.Workers(), cluster.Address(), a.program)
			}
			if err == nil {
				select {
				case <-ctx.Done():
				case <-cluster.Done():
					err = fmt.Errorf("the coordinator ended by itself")
				}
			}
			if stopped := stopLocal(cluster); err == nil {
				err = stopped
			}
			return err
		},
	}
	flags := cmd.Flags()
	flags.IntVar(&workers, "workers", 3, "number of workers")
	flags.Var(&memory, "memory", "budget of each worker for keys, values and queries (default: an equal share of what one alone would take)")
	flags.IntVar(&threads, "threads", 0, "kernel threads of each worker (default: all of the machine's)")
	flags.IntVar(&replicas, "replicas", 0, "workers beside its owner that have a copy of each shard of a session: it outlives so many of its workers")
	flags.StringVar(&data, "data-dir", "", "`folder` of the coordinator's jobs (default: a temporary one)")
	flags.BoolVar(&owned, "end-with-input", false, "end also when standard input is closed")
	flagOnly(flags, "workers", "replicas", "data-dir", "end-with-input")
	return cmd
}
