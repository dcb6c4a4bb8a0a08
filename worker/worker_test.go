package worker

import (
	"context"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
	"go.uber.org/goleak"

	"headwater.example/attention"
	"headwater.example/internal/kvcache"
	"headwater.example/internal/processor"
	"headwater.example/internal/testkit/await"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestConfigIsChecked(t *testing.T) {
	good := Config{Name: "w-1", Boot: uuid.UUID{1}, Weight: 1, Budget: 1, Threads: 1}
	w, err := New(good)
	if err != nil {
		t.Fatal(err)
	}
	w.Close()
	for name, edit := range map[string]func(*Config){
		"no name":          func(c *Config) { c.Name = "" },
		"upper case":       func(c *Config) { c.Name = "W1" },
		"trailing hyphen":  func(c *Config) { c.Name = "w-" },
		"long name":        func(c *Config) { c.Name = strings.Repeat("w", 64) },
		"no boot":          func(c *Config) { c.Boot = uuid.Nil },
		"weight 0":         func(c *Config) { c.Weight = 0 },
		"zone of blanks":   func(c *Config) { c.Zone = "rack 1" },
		"negative budget":  func(c *Config) { c.Budget = -1 },
		"no threads":       func(c *Config) { c.Threads = 0 },
		"too many threads": func(c *Config) { c.Threads = 1 << 20 },
	} {
		c := good
		edit(&c)
		if _, err := New(c); err == nil || strings.Contains(err.Error(), "\n") {
			t.Errorf("%s: got %v, want one line", name, err)
		}
	}
}

func TestAWorkerDescribesItself(t *testing.T) {
	w, err := New(Config{Name: "w1", Boot: uuid.UUID{15: 1}, Weight: 1, Budget: 64 << 20, Threads: 2})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(w.Close)
	for range 2 {
		d, err := w.Describe(t.Context(), nil)
		if err != nil {
			t.Fatal(err)
		}
		if d.Name != "w1" || len(d.Boot) != 16 || d.Boot[15] != 1 || d.Weight != 1 || d.Threads != 2 || d.BudgetBytes != 64<<20 || d.Kernel != attention.KernelName() ||
			d.Processor != processor.Name() || !slices.Equal(d.ProcessorFeatures, processor.Names()) || d.MatrixUnit == nil {
			t.Fatalf("got %v", d)
		}
		// A worker that drains still answers.
		if err := w.Drain(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
}

// TestAWorkerTellsOfAMatrixUnit: the kernel in use says whether there is one, not what else the processor has.
func TestAWorkerTellsOfAMatrixUnit(t *testing.T) {
	w, err := New(Config{Name: "w1", Boot: uuid.UUID{15: 1}, Weight: 1, Budget: 64 << 20, Threads: 1})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(w.Close)
	was := attention.KernelName()
	t.Cleanup(func() {
		if err := attention.SelectKernel(was); err != nil {
			t.Error(err)
		}
	})
	for _, name := range attention.KernelNames() {
		if err := attention.SelectKernel(name); err != nil {
			t.Fatal(err)
		}
		d, err := w.Describe(t.Context(), nil)
		if err != nil || d.MatrixUnit == nil || d.GetMatrixUnit() != (name == "amx") {
			t.Errorf("kernel %s: %v, %v", name, d, err)
		}
	}
}

func TestMemoryOfEndedJobsIsSpareForAWhile(t *testing.T) {
	w, err := New(Config{Name: "w1", Boot: uuid.UUID{15: 1}, Weight: 1, Budget: 256 << 20, Threads: 1})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(w.Close)
	tell := func() (used, spare uint64) {
		t.Helper()
		d, err := w.Describe(t.Context(), nil)
		if err != nil {
			t.Fatal(err)
		}
		return d.GetUsedBytes(), d.GetSpareBytes()
	}
	const size = 8 << 20
	memory, err := w.machine.Budget.Map(size, kvcache.Nobody)
	if err != nil {
		t.Fatal(err)
	}
	if used, spare := tell(); used != size || spare != 0 {
		t.Errorf("at work: %d bytes in use, %d spare", used, spare)
	}
	w.machine.Budget.Unmap(memory)
	if used, spare := tell(); used != size || spare != size {
		t.Errorf("ended: %d bytes in use, %d spare", used, spare)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ticks, ended := make(chan time.Time), make(chan struct{})
	go func() {
		defer close(ended)
		w.Expire(ctx, ticks)
	}()
	ticks <- time.Time{}
	ticks <- time.Time{}
	cancel()
	await.One(t, ended, "the end of expiring")
	if used, spare := tell(); used != 0 || spare != 0 {
		t.Errorf("two ticks on: %d bytes in use, %d spare", used, spare)
	}
}
