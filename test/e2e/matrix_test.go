//go:build linux && amd64

package e2e

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"headwater.example/attention"
	"headwater.example/client"
	"headwater.example/internal/localcluster"
	"headwater.example/internal/processor"
	"headwater.example/tensor"
)

// withAMX returns a program that is coord, and has AMX as a worker of one of these names, an emulated one where the processor has none.
// No other worker has it.
func withAMX(t *testing.T, workers ...string) string {
	t.Helper()
	if !processor.Has(processor.AVX2, processor.FMA, processor.F16C, processor.BMI1) {
		t.Skip("the processor has no AVX2")
	}
	folder, emulate := t.TempDir(), ""
	if processor.Tiles() != nil {
		emulate = filepath.Join(folder, "emulate")
		build := exec.Command("go", "build", "-trimpath", "-buildvcs=false", "-o", emulate, "headwater.example/internal/emulator/emulate")
		if said, err := build.CombinedOutput(); err != nil {
			t.Fatalf("%v: %s", err, said)
		}
	}
	script := "#!/bin/sh\ncase \"$*\" in\n"
	for _, name := range workers {
		script += fmt.Sprintf("\"worker serve --name %s \"*) exec %s %s \"$@\";;\n", name, emulate, program)
	}
	script += fmt.Sprintf("\"worker serve \"*) %s=avx2 exec %s \"$@\";;\nesac\nexec %[2]s \"$@\"\n", attention.KernelVariable, program)
	path := filepath.Join(folder, "coord")
	if err := os.WriteFile(path, []byte(script), 0o755); err != nil {
		t.Fatal(err)
	}
	return path
}

// join starts one more worker, and waits until the coordinator sees it. It returns what the worker says in its log.
func (c *cluster) join(t *testing.T, program, name string) *logs {
	t.Helper()
	_, gossip := c.Addresses(-1)
	said := &logs{}
	worker := command(context.WithoutCancel(t.Context()), program, "worker", "serve", "--name", name, "--listen", "127.0.0.1:0", "--gossip", "127.0.0.1:0", "--join", gossip, "--memory", "256MiB")
	worker.Stderr = said
	if err := worker.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		defer time.AfterFunc(patience, func() { _ = worker.Process.Kill() }).Stop()
		if err := errors.Join(worker.Process.Signal(syscall.SIGTERM), worker.Wait()); err != nil {
			t.Errorf("worker %s: %v", name, err)
		}
	})
	ctx := bounded(t)
	tick := time.NewTicker(50 * time.Millisecond) // nothing tells
	defer tick.Stop()
	for ; ; <-tick.C {
		status, err := c.Status(ctx)
		if err != nil {
			t.Fatal(err)
		}
		if slices.ContainsFunc(status.Workers, func(w client.WorkerStatus) bool { return w.Name == name && w.Error == "" }) {
			return said
		}
	}
}

// summed are a layer of bf16 in an arithmetic, or auto, and one of f16, which has chain.
func summed(a attention.Arithmetic) []client.Layer {
	f16 := client.Layer{Heads: 3, KVHeads: 3, HeadDim: 32, Storage: tensor.F16}
	if a == attention.Auto {
		f16.Arithmetic = a
	}
	return []client.Layer{{Heads: 6, KVHeads: 3, HeadDim: 40, Storage: tensor.BF16, Arithmetic: a}, f16}
}

// summedJob writes a job of the same.
func summedJob(t *testing.T, arithmetic string) string {
	t.Helper()
	rng := rand.New(rand.NewPCG(16, 3))
	var all []tensor.Data
	for i, l := range summed(attention.Chain) {
		prefix := fmt.Sprintf("layers.%d.", i)
		all = append(all, random(rng, prefix+"q", 9, l.Heads, l.HeadDim))
		for _, name := range []string{"k", "v"} {
			wide := random(rng, prefix+name, 70, l.KVHeads, l.HeadDim)
			values := make([]float32, wide.Info.Elements())
			narrow := tensor.Data{Info: tensor.Info{Name: prefix + name, DType: l.Storage, Shape: wide.Info.Shape}}
			narrow.Bytes = make([]byte, narrow.Info.Bytes())
			if err := errors.Join(tensor.Widen(values, wide.Bytes, tensor.F32), tensor.Narrow(narrow.Bytes, values, l.Storage)); err != nil {
				t.Fatal(err)
			}
			all = append(all, narrow)
		}
	}
	path, err := write(filepath.Join(t.TempDir(), "job.safetensors"), all, fmt.Sprintf(`{"problems":{"layers.0.":{"arithmetic":%q}}}`, arithmetic))
	if err != nil {
		t.Fatal(err)
	}
	return path
}

// summedStep appends the same tokens to all sessions, layer by layer, which must see the same.
func summedStep(t *testing.T, rng *rand.Rand, tokens int, sessions ...*client.Session) {
	t.Helper()
	for i, l := range summed(attention.Chain) {
		draw := func(heads int) []float32 {
			x := make([]float32, tokens*heads*l.HeadDim)
			for i := range x {
				x[i] = float32(rng.NormFloat64())
			}
			return x
		}
		q, k, v := draw(l.Heads), draw(l.KVHeads), draw(l.KVHeads)
		var first []float32
		for n, s := range sessions {
			seen := make([]float32, len(q))
			if err := s.Step(bounded(t), i, q, k, v, seen, nil); err != nil {
				t.Fatal(err)
			}
			if n == 0 {
				first = seen
			} else if !slices.Equal(first, seen) {
				t.Fatalf("layer %d of session %d sees other bits than where it is named", i, n)
			}
		}
	}
}

// TestAutoOverWorkersWithAMX: arithmetic auto is tiles where each worker's process has AMX, for jobs, sessions, Go and Python, chain
// once one has none, and chain always for f16. A worker that comes without AMX serves what is in tiles with the same bits, and says
// that it is slower.
func TestAutoOverWorkersWithAMX(t *testing.T) {
	t.Parallel()
	coordAMX := withAMX(t, "w1", "w2")
	c := startAs(t, localcluster.Options{Workers: 2, Threads: 1}, coordAMX)
	calm := start(t, localcluster.Options{Workers: 1, Threads: 1}) // where the arithmetic is named
	ctx := bounded(t)

	wants := func(want attention.Arithmetic) {
		t.Helper()
		status, err := c.Status(ctx)
		if err != nil || status.Auto != want {
			t.Fatalf("auto is %v now, not %v; %v", status.Auto, want, err)
		}
		for _, w := range status.Workers {
			if has := w.Name != "late"; w.MatrixUnit == nil || *w.MatrixUnit != has || (w.Kernel == "amx") != has {
				t.Errorf("worker %s has kernel %s, a matrix unit: %v", w.Name, w.Kernel, w.MatrixUnit)
			}
		}
		job, got := c.run(t, summedJob(t, "auto"))
		named, result := calm.run(t, summedJob(t, want.String()))
		same(t, "a job", result, got)
		if !slices.Equal(job.Arithmetics, named.Arithmetics) || !slices.Contains(job.Arithmetics, want) {
			t.Errorf("the job is in %v, the one that names it in %v", job.Arithmetics, named.Arithmetics)
		}
		if python := os.Getenv("HEADWATER_PYTHON"); python != "" {
			if said := pythonAuto(t, python, c.Address(), summedJob(t, "auto")); said != fmt.Sprintf("%s chain %s\n", want, strings.Join(sorted(job.Arithmetics), " ")) {
				t.Errorf("Python says %q", said)
			}
		}
	}
	opened := func(c *cluster, a, want attention.Arithmetic) *client.Session {
		t.Helper()
		s, err := c.OpenSession(ctx, client.SessionOptions{Layers: summed(a)})
		if err != nil {
			t.Fatal(err)
		}
		if made := s.Layers(); made[0].Arithmetic != want || made[1].Arithmetic != attention.Chain {
			t.Errorf("the layers are in %v and %v, not %v and chain", made[0].Arithmetic, made[1].Arithmetic, want)
		}
		return s
	}

	wants(attention.Tiles)
	tiles, named := opened(c, attention.Auto, attention.Tiles), opened(calm, attention.Tiles, attention.Tiles)
	rng := rand.New(rand.NewPCG(16, 4))
	summedStep(t, rng, 70, named, tiles)
	summedStep(t, rng, 1, named, tiles)
	shown := coord(t, "sessions", "show", tiles.ID().String(), "--coordinator", c.Address())
	shown.succeeds(t)
	if !strings.Contains(shown.out, "2 layers in chain and tiles") {
		t.Errorf("it shows %s", shown.out)
	}
	if strings.Contains(c.logs.String(), "is slower on this worker") {
		t.Error("a worker with AMX says that it is slower")
	}

	said := c.join(t, coordAMX, "late")
	wants(attention.Chain)
	summedStep(t, rng, 66, opened(calm, attention.Chain, attention.Chain), opened(c, attention.Auto, attention.Chain))
	for _, worker := range []string{"w1", "w2"} {
		if err := c.Drain(ctx, worker, nil); err != nil {
			t.Fatal(err)
		}
	}
	found, err := c.FindSession(ctx, tiles.ID())
	if err != nil || len(found.Holders) != 1 || found.Holders[0].Name != "late" {
		t.Fatalf("it is held by %v, %v", found, err)
	}
	summedStep(t, rng, 65, named, tiles)
	summedStep(t, rng, 1, named, tiles)
	if n := strings.Count(said.String(), "arithmetic in tiles is slower on this worker"); n != 1 {
		t.Errorf("the worker without AMX says %d times that it is slower: %s", n, said)
	}
	shown = coord(t, "status", "-o", "wide", "--coordinator", c.Address())
	shown.succeeds(t)
	for line := range strings.Lines(shown.out) {
		if strings.HasPrefix(line, " late ") && strings.Contains(line, "avx2") && !strings.Contains(line, " slower ") {
			t.Errorf("it shows %s", shown.out)
		}
	}
}

func sorted(all []attention.Arithmetic) (names []string) {
	for _, a := range slices.Sorted(slices.Values(all)) {
		names = append(names, a.String())
	}
	return names
}

// pythonAuto opens a session and submits a job from Python, and returns the arithmetics of the one's layers and the other's problems.
func pythonAuto(t *testing.T, python, address, job string) string {
	t.Helper()
	layers, err := json.Marshal(address)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	text := fmt.Sprintf(`
import headwater
from headwater.v1 import worker_pb2
names = {worker_pb2.ARITHMETIC_CHAIN: "chain", worker_pb2.ARITHMETIC_TILES: "tiles"}
with headwater.Client(%s) as client:
    layers = [headwater.Layer(6, 3, 40, storage=storage, arithmetic="auto") for storage in ("bf16", "f16")]
    session = client.open(layers)
    said = [layer.arithmetic for layer in session.layers]
    session.drop()
    job = client.wait(client.submit(%q).id)
    print(*said, *(names[number] for number in job.arithmetics))
`, layers, job)
	cmd := command(ctx, python, "-c", text)
	out, err := cmd.Output()
	if err != nil {
		var ended *exec.ExitError
		errors.As(err, &ended)
		t.Fatalf("%v: %s", err, ended.Stderr)
	}
	return string(out)
}
