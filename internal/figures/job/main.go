// Command job measures whole jobs on real processes and prints one line "figure NAME VALUE" for each figure:
//
//	coord_memory     the coordinator's peak of anonymous resident bytes / bytes of the job file
//	worker_memory    largest over the workers: peak of anonymous resident bytes / bytes of the worker's K and V
//	job_error_units  largest error of contexts over the attention fixture, in the unit of error of docs/numerics.md
//	layer_error      largest error of y over the layer fixture, relative to the row's largest absolute value
//
// The memory is that of a job of 1 GiB: 32 heads, 8 groups, head_dim 128, 131,072 positions, 8 queries, f32, on three
// workers. The samples that the figures come from are written as JSON.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"headwater.example/client"
	"headwater.example/internal/accuracy"
	"headwater.example/internal/figures/jobs"
	"headwater.example/internal/localcluster"
	"headwater.example/tensor"
)

const (
	heads     = 32
	groups    = 8
	headDim   = 128
	positions = 131072
	queries   = 8
	workers   = 3

	// sampleEvery is how often the processes' memory is read.
	sampleEvery = 2 * time.Millisecond
)

func main() {
	bin := flag.String("bin", "bin", "folder of the binaries")
	fixtures := flag.String("fixtures", "test/data/smollm2", "folder of the fixtures")
	samples := flag.String("samples", "figures/job.json", "file for the raw samples")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if err := measure(ctx, *bin, *fixtures, *samples); err != nil {
		fmt.Fprintln(os.Stderr, "figures:", err)
		os.Exit(1)
	}
}

// record is what is kept of a run.
type record struct {
	Taken     time.Time           `json:"taken"`
	JobBytes  int64               `json:"job_bytes"`
	Elapsed   float64             `json:"elapsed_seconds"`
	Processes map[string]*process `json:"processes"`
	Attention []accuracy.Errors   `json:"attention_errors"`
	Layer     []accuracy.Errors   `json:"layer_errors"`
}

type process struct {
	KeyValueBytes int64   `json:"key_value_bytes,omitempty"`
	PeakAnonymous int64   `json:"peak_anonymous_bytes"`
	Samples       []int64 `json:"anonymous_bytes"`
}

func measure(ctx context.Context, bin, fixtures, samples string) (err error) {
	dir, err := os.MkdirTemp("", "headwater-figures-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	r := &record{Taken: time.Now(), Processes: map[string]*process{}}
	command, err := filepath.Abs(filepath.Join(bin, "coord"))
	if err != nil {
		return err
	}
	start := func() (*localcluster.Cluster, *client.Client, error) {
		cluster, err := localcluster.Start(ctx, localcluster.Options{Workers: workers, Memory: 1 << 30, Command: []string{command}})
		if err != nil {
			return nil, nil, err
		}
		c, err := client.Dial(cluster.Address())
		return cluster, c, err
	}

	path := filepath.Join(dir, "job.safetensors")
	if r.JobBytes, err = jobs.Write(path, jobs.Attention(queries, positions, heads, groups, headDim), nil, jobs.Uniform(rand.New(rand.NewPCG(1, 2)))); err != nil {
		return err
	}
	// A cluster of its own, so that nothing else has grown its processes.
	if err := r.memory(ctx, start, path); err != nil {
		return err
	}
	coord := r.Processes["coordinator"]
	fmt.Printf("figure coord_memory %.4f\n", float64(coord.PeakAnonymous)/float64(r.JobBytes))
	worst := 0.0
	for _, p := range r.Processes {
		if p.KeyValueBytes > 0 {
			worst = max(worst, float64(p.PeakAnonymous)/float64(p.KeyValueBytes))
		}
	}
	fmt.Printf("figure worker_memory %.4f\n", worst)

	cluster, c, err := start()
	if err != nil {
		return err
	}
	r.Attention, err = errorsOf(ctx, c, dir, fixtures, "attention")
	if err == nil {
		r.Layer, err = errorsOf(ctx, c, dir, fixtures, "layer")
	}
	if err := errors.Join(err, c.Close(), cluster.Stop(context.WithoutCancel(ctx))); err != nil {
		return err
	}
	units, err := largest(r.Attention, accuracy.Units, "context")
	if err != nil {
		return err
	}
	fmt.Printf("figure job_error_units %.4f\n", units)
	relative, err := largest(r.Layer, accuracy.Relative, "y")
	if err != nil {
		return err
	}
	fmt.Printf("figure layer_error %.3g\n", relative)

	if err := os.MkdirAll(filepath.Dir(samples), 0o755); err != nil {
		return err
	}
	text, err := json.Marshal(r)
	if err != nil {
		return err
	}
	return os.WriteFile(samples, text, 0o644)
}

// memory runs the big job and watches the processes.
func (r *record) memory(ctx context.Context, start func() (*localcluster.Cluster, *client.Client, error), path string) (err error) {
	cluster, c, err := start()
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, c.Close(), cluster.Stop(context.WithoutCancel(ctx))) }()
	pids := map[string]int{"coordinator": cluster.Process(-1)}
	for i := range cluster.Workers() {
		pids[cluster.Name(i)] = cluster.Process(i)
	}
	done := make(chan struct{})
	var sampling sync.WaitGroup
	var sampleErr error
	sampling.Go(func() { sampleErr = r.sample(pids, done) })
	began := time.Now()
	job, err := c.Submit(ctx, client.SubmitOptions{Path: path})
	if err == nil {
		job, err = c.Wait(ctx, job.ID, nil)
	}
	r.Elapsed = time.Since(began).Seconds()
	close(done)
	sampling.Wait()
	if err := errors.Join(err, sampleErr); err != nil {
		return err
	}
	return r.shares(job)
}

// sample reads the anonymous memory of processes until done.
func (r *record) sample(pids map[string]int, done <-chan struct{}) error {
	var watches errgroup.Group
	for name, pid := range pids {
		p := &process{}
		r.Processes[name] = p
		watches.Go(func() error {
			return jobs.Watch(pid, sampleEvery, done, func(n int64) {
				p.Samples = append(p.Samples, n)
				p.PeakAnonymous = max(p.PeakAnonymous, n)
			})
		})
	}
	return watches.Wait()
}

// shares notes the bytes of K and V that each worker held, by the plan.
func (r *record) shares(job *client.Job) error {
	var plan struct {
		Layers []struct {
			Groups map[string][]int `json:"groups"`
		} `json:"layers"`
	}
	if err := json.Unmarshal(job.Report.Plan, &plan); err != nil {
		return fmt.Errorf("plan of the job: %w", err)
	}
	for _, layer := range plan.Layers {
		for name, owned := range layer.Groups {
			p := r.Processes[name]
			if p == nil {
				return fmt.Errorf("the plan names worker %q, which was not watched", name)
			}
			p.KeyValueBytes += int64(len(owned)) * positions * 2 * headDim * 4
		}
	}
	return nil
}

// errorsOf runs a fixture and compares its result with the truth.
func errorsOf(ctx context.Context, c *client.Client, dir, fixtures, kind string) ([]accuracy.Errors, error) {
	job, err := c.Submit(ctx, client.SubmitOptions{Path: filepath.Join(fixtures, kind+".safetensors")})
	if err != nil {
		return nil, err
	}
	path := filepath.Join(dir, kind+".result.safetensors")
	if _, err = c.Wait(ctx, job.ID, nil); err != nil {
		return nil, err
	}
	if _, err = c.Download(ctx, job.ID, path, nil); err != nil {
		return nil, err
	}
	got, err := tensor.Open(path)
	if err != nil {
		return nil, err
	}
	truth, err := tensor.Open(filepath.Join(fixtures, kind+".truth.safetensors"))
	if err != nil {
		return nil, errors.Join(err, got.Close())
	}
	found, err := accuracy.Against(got, truth)
	return found, errors.Join(err, got.Close(), truth.Close())
}

// largest is the largest error of one kind; none of that kind is an error of the fixture.
func largest(all []accuracy.Errors, kind, suffix string) (float64, error) {
	most, found := 0.0, false
	for _, e := range all {
		if e.Kind == kind && strings.HasSuffix(e.Tensor, suffix) {
			worst, _ := e.Worst()
			most, found = max(most, worst), true
		}
	}
	if !found {
		return 0, fmt.Errorf("the truth has no %s to count errors of in %s", suffix, kind)
	}
	return most, nil
}
