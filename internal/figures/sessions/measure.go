package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"headwater.example/attention"
	"headwater.example/client"
	"headwater.example/internal/bench"
	"headwater.example/internal/contextframe"
	"headwater.example/internal/figures/limits"
	"headwater.example/internal/localcluster"
	"headwater.example/tensor"
)

// cluster is a local cluster of workers of one thread, with a client.
type cluster struct {
	*localcluster.Cluster
	client *client.Client
}

func (f *figures) start(ctx context.Context, workers int) (*cluster, error) {
	program, err := filepath.Abs(filepath.Join(f.bin, "coord"))
	if err != nil {
		return nil, err
	}
	const memory = 12 << 30
	local, err := localcluster.Start(ctx, localcluster.Options{
		Workers: workers, Threads: 1, Memory: memory / int64(workers), Command: []string{program},
	})
	if err != nil {
		return nil, err
	}
	c, err := client.Dial(local.Address())
	if err != nil {
		return nil, errors.Join(err, local.Stop(ctx))
	}
	return &cluster{local, c}, nil
}

func (c *cluster) stop(ctx context.Context) error {
	return errors.Join(c.client.Close(), c.Stop(context.WithoutCancel(ctx)))
}

// model is random tensors of so many tokens, of which steps take what they need.
type model struct {
	q, k, v, context, lse []float32
}

func newModel(tokens int) *model {
	rng := rand.New(rand.NewPCG(1, 2))
	return &model{
		q: random(tokens*heads*headDim, rng), k: random(tokens*kvHeads*headDim, rng), v: random(tokens*kvHeads*headDim, rng),
		context: make([]float32, tokens*heads*headDim), lse: make([]float32, tokens*heads),
	}
}

// step is one of n tokens; where nothing attends, they are only appended.
func (m *model) step(s *client.Session, layer, n int, attends bool) *client.Step {
	step := &client.Step{Session: s, Layer: layer, K: m.k[:n*kvHeads*headDim], V: m.v[:n*kvHeads*headDim]}
	if attends {
		step.Q, step.Context, step.LSE = m.q[:n*heads*headDim], m.context[:n*heads*headDim], m.lse[:n*heads]
	}
	return step
}

// open opens a session of one layer, filled up to so many positions.
func (c *cluster) open(ctx context.Context, m *model, positions int) (*client.Session, error) {
	layer := client.Layer{Heads: heads, KVHeads: kvHeads, HeadDim: headDim, Storage: storage}
	return c.openLayers(ctx, m, positions, []client.Layer{layer})
}

func (c *cluster) openLayers(ctx context.Context, m *model, positions int, layers []client.Layer) (*client.Session, error) {
	s, err := c.client.OpenSession(ctx, client.SessionOptions{Layers: layers, Direct: true, Codec: client.Raw})
	if err != nil {
		return nil, err
	}
	most := len(m.k) / (kvHeads * headDim)
	for layer := range layers {
		for done := 0; done < positions; {
			n := min(most, positions-done)
			if err := s.Do(ctx, m.step(s, layer, n, false)); err != nil {
				return nil, err
			}
			done += n
		}
	}
	return s, nil
}

// codecs measures what the codecs make of a real model's contexts.
func codecs(ctx context.Context, f *figures) (err error) {
	c, err := f.start(ctx, 1)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, c.stop(ctx)) }()
	dir, err := os.MkdirTemp("", "headwater-figures-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	job, err := c.client.Submit(ctx, client.SubmitOptions{Path: filepath.Join(f.fixtures, "attention.safetensors")})
	if err != nil {
		return err
	}
	if job, err = c.client.Wait(ctx, job.ID, nil); err != nil {
		return err
	}
	path := filepath.Join(dir, "contexts.safetensors")
	if _, err := c.client.Download(ctx, job.ID, path, nil); err != nil {
		return err
	}
	blocks, err := bench.ContextBlocks(path)
	if err != nil {
		return err
	}
	for range f.rounds {
		for name, codec := range map[string]contextframe.Codec{"f32": contextframe.Exact, "bf16": contextframe.BF16, "int8": contextframe.I8} {
			m, err := contextframe.Measure(codec, blocks, 9, time.Now)
			if err != nil {
				return err
			}
			f.add("ratio_"+name, m.Ratio(), nil)
			f.add("rate_"+name, m.Rate()/1e9, map[string]float64{
				"encode_seconds": m.Encode.Seconds(), "decode_seconds": m.Decode.Seconds(), "context_bytes": float64(m.ContextBytes), "error": m.MaxError,
			})
		}
	}
	return nil
}

// steps measures a token's way to and from one worker.
func steps(ctx context.Context, f *figures) (err error) {
	c, err := f.start(ctx, 1)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, c.stop(ctx)) }()
	for _, figure := range []struct {
		name, share      string
		positions, times int
	}{{"step_16k", "step_share_16k", 16384, 30}, {"step_1k", "step_share_1k", 1024, 150}, {"step_128", "step_share_128", 128, 300}} {
		m := newModel(1024)
		s, err := c.open(ctx, m, figure.positions-1)
		if err != nil {
			return err
		}
		one := m.step(s, 0, 1, true)
		const turns = 5
		n := figure.times / turns
		for round := range f.rounds + 1 {
			var step, computed, kernel, echo []float64
			for range turns {
				took, kernels, err := lastPositions(ctx, s, one, figure.positions, n)
				if err != nil {
					return err
				}
				step, computed = append(step, median(took)), append(computed, kernels...)
				var alone []float64
				for range n {
					took, err := f.bare.kernel(figure.positions, 1)
					if err != nil {
						return err
					}
					alone = append(alone, took)
				}
				kernel = append(kernel, median(alone))
				answer, err := times(n, f.bare.echo)
				if err != nil {
					return err
				}
				echo = append(echo, answer)
			}
			if round > 0 { // the first warms up
				f.add(figure.name, median(step)/(median(kernel)+median(echo)), map[string]float64{
					"step_seconds": median(step), "computed_seconds": median(computed), "kernel_seconds": median(kernel), "echo_seconds": median(echo),
				})
				f.add(figure.share, median(kernel)/median(step), nil)
			}
		}
		if err := s.Drop(ctx); err != nil {
			return err
		}
	}
	return nil
}

// lastPositions does n steps of one token which see the last page of so many positions, and returns how long each took and how long its
// kernel. A session that grew further would have more pages than the kernel that it is compared with.
func lastPositions(ctx context.Context, s *client.Session, one *client.Step, positions, n int) (took, kernels []float64, _ error) {
	const most = 8
	for i := range n {
		if i%most == 0 {
			if err := s.Truncate(ctx, positions-most); err != nil {
				return nil, nil, err
			}
		}
		began := time.Now()
		if err := s.Do(ctx, one); err != nil {
			return nil, nil, err
		}
		took, kernels = append(took, time.Since(began).Seconds()), append(kernels, one.Kernel.Seconds())
	}
	return took, kernels, nil
}

// scale measures what a second worker brings.
func scale(ctx context.Context, f *figures) (err error) {
	const sequences, positions, passes = 8, 16384, 6
	isas := limits.ISAs()
	if len(isas) == 0 {
		return errors.New("no loops that find the limits of this processor")
	}
	buffer, err := limits.NewBuffer(512 << 20)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, buffer.Close()) }()
	read := func(threads int) (best float64, err error) {
		for _, isa := range isas {
			x, err := buffer.Read(isa, threads, 200*time.Millisecond)
			if err != nil {
				return 0, err
			}
			best = max(best, x)
		}
		return best, nil
	}
	m := newModel(1024)
	var all [2][]*client.Step
	for i := range all {
		c, err := f.start(ctx, i+1)
		if err != nil {
			return err
		}
		defer func() { err = errors.Join(err, c.stop(ctx)) }()
		for range sequences {
			s, err := c.open(ctx, m, positions)
			if err != nil {
				return err
			}
			step := m.step(s, 0, 1, true)
			step.Context, step.LSE = make([]float32, heads*headDim), make([]float32, heads)
			all[i] = append(all[i], step)
		}
	}
	for round := range f.rounds + 1 {
		var took, bandwidth [2]float64
		for i := range all {
			if bandwidth[i], err = read(i + 1); err != nil {
				return err
			}
		}
		for i := range all {
			if took[i], err = times(passes, func() error { return client.Do(ctx, all[i]...) }); err != nil {
				return err
			}
		}
		for i := range all {
			again, err := read(i + 1)
			if err != nil {
				return err
			}
			bandwidth[i] = (bandwidth[i] + again) / 2
		}
		if round > 0 {
			f.add("scale_2w", took[0]/took[1]/(bandwidth[1]/bandwidth[0]), map[string]float64{
				"one_worker_seconds": took[0], "two_workers_seconds": took[1], "read_1": bandwidth[0], "read_2": bandwidth[1],
			})
		}
	}
	return nil
}

// prefill measures a prompt through a session.
func prefill(ctx context.Context, f *figures) (err error) {
	const positions = 8192
	c, err := f.start(ctx, 1)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, c.stop(ctx)) }()
	m := newModel(positions)
	s, err := c.open(ctx, m, 0)
	if err != nil {
		return err
	}
	for range f.rounds {
		if err := s.Truncate(ctx, 0); err != nil {
			return err
		}
		took, err := times(1, func() error { return s.Do(ctx, m.step(s, 0, positions, true)) })
		if err != nil {
			return err
		}
		kernel, err := f.bare.kernel(positions, positions)
		if err != nil {
			return err
		}
		f.add("prefill_8k", took/kernel, map[string]float64{"session_seconds": took, "kernel_seconds": kernel})
	}
	return nil
}

// overhead measures the memory of many short sessions, and of a few long ones.
func overhead(ctx context.Context, f *figures) error {
	return errors.Join(f.overhead(ctx, "kv_overhead", 1000, 100), f.overhead(ctx, "kv_overhead_32k", 4, 32768))
}

func (f *figures) overhead(ctx context.Context, name string, sessions, tokens int) (err error) {
	const layers, groups, most = 2, 4, 2048
	c, err := f.start(ctx, 1)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, c.stop(ctx)) }()
	idle, err := resident(c.Process(0))
	if err != nil {
		return err
	}
	layer := client.Layer{Heads: groups, KVHeads: groups, HeadDim: headDim, Storage: tensor.F16}
	layout, err := attention.NewLayout(tensor.F16, headDim, headDim)
	if err != nil {
		return err
	}
	rng := rand.New(rand.NewPCG(1, 2))
	k, v := random(min(tokens, most)*groups*headDim, rng), random(min(tokens, most)*groups*headDim, rng)
	for range sessions {
		s, err := c.client.OpenSession(ctx, client.SessionOptions{Layers: []client.Layer{layer, layer}, Direct: true})
		if err != nil {
			return err
		}
		for l := range layers {
			for done := 0; done < tokens; done += most {
				n := min(most, tokens-done) * groups * headDim
				if err := s.Do(ctx, &client.Step{Layer: l, K: k[:n], V: v[:n]}); err != nil {
					return err
				}
			}
		}
	}
	full, err := resident(c.Process(0))
	if err != nil {
		return err
	}
	pages := float64(sessions * layers * groups * ((tokens + attention.PageLen - 1) / attention.PageLen) * layout.PageBytes())
	f.add(name, float64(full-idle)/pages, map[string]float64{"idle_bytes": float64(idle), "bytes": float64(full), "page_bytes": pages})
	return nil
}

// resident is a process's resident memory in bytes (proc(5), VmRSS).
func resident(pid int) (int64, error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(text)) {
		if value, ok := strings.CutPrefix(line, "VmRSS:"); ok {
			kib, err := strconv.ParseInt(strings.TrimSpace(strings.TrimSuffix(strings.TrimSpace(value), "kB")), 10, 64)
			return kib << 10, err
		}
	}
	return 0, fmt.Errorf("process %d has no VmRSS", pid)
}

// fork measures how long a fork takes until it has grown by a token.
func fork(ctx context.Context, f *figures) (err error) {
	const positions, layers = 32768, 32
	c, err := f.start(ctx, 1)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, c.stop(ctx)) }()
	shape := make([]client.Layer, layers)
	for i := range shape {
		shape[i] = client.Layer{Heads: heads, KVHeads: kvHeads, HeadDim: headDim, Storage: tensor.F16}
	}
	m := newModel(2048)
	s, err := c.openLayers(ctx, m, positions, shape)
	if err != nil {
		return err
	}
	for range 4 * f.rounds {
		began := time.Now()
		child, err := s.Fork(ctx)
		if err != nil {
			return err
		}
		forked := time.Since(began)
		appends := make([]*client.Step, layers)
		for l := range appends {
			appends[l] = m.step(child, l, 1, false)
		}
		if err := client.Do(ctx, appends...); err != nil {
			return err
		}
		took := time.Since(began)
		f.add("fork_ms", 1e3*took.Seconds(), map[string]float64{"fork_seconds": forked.Seconds(), "all_seconds": took.Seconds()})
		if err := child.Drop(ctx); err != nil {
			return err
		}
	}
	return nil
}
