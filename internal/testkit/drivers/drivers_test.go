package drivers_test

import (
	"context"
	"flag"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"go.uber.org/goleak"

	"headwater.example/internal/testkit/drivers"
)

// TestSeveralDriversAgreeWithWhatTheyWereTold drives sessions for some seconds, with room for all and with little.
func TestSeveralDriversAgreeWithWhatTheyWereTold(t *testing.T) {
	defer goleak.VerifyNone(t)
	each := 4 * time.Second
	if testing.Short() {
		each = time.Second
	}
	for name, config := range map[string]drivers.Config{
		"two workers":   {Workers: 2, Sessions: 4, Drivers: 3, Budget: 64 << 20, Seed: 1},
		"three workers": {Workers: 3, Sessions: 4, Drivers: 4, Budget: 64 << 20, Seed: 2},
		"little room":   {Workers: 2, Sessions: 6, Drivers: 2, Budget: 192 << 10, Seed: 3},
	} {
		t.Run(name, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), each)
			defer cancel()
			tally, err := drivers.Run(ctx, config)
			if err != nil {
				t.Fatal(err)
			}
			if tally.Contexts == 0 || tally.Takeovers == 0 {
				t.Errorf("nothing was done: %+v", tally)
			}
			t.Logf("%+v", tally)
		})
	}
}

var seed = flag.Uint64("seed", 0, "of walks over processes; 0 is another one each time")

// TestSeveralDriversOverProcesses drives sessions of processes that are stopped, killed and started again. Without copies, the
// sessions of a worker that was killed are gone, and no other; with copies none is. The seed fixes what is done, not when.
func TestSeveralDriversOverProcesses(t *testing.T) {
	bin := filepath.Join(t.TempDir(), "coord")
	if out, err := exec.Command("go", "build", "-o", bin, "headwater.example/cmd/coord").CombinedOutput(); err != nil {
		t.Fatalf("build: %v\n%s", err, out)
	}
	each := 8 * time.Second
	if testing.Short() {
		each = 3 * time.Second
	}
	from := *seed
	if from == 0 {
		from = uint64(time.Now().UnixNano())
	}
	for name, config := range map[string]drivers.Config{
		"no copies":   {Workers: 3, Sessions: 6, Drivers: 3, Budget: 64 << 20},
		"little room": {Workers: 2, Sessions: 6, Drivers: 2, Budget: 1 << 20, Dim: 64},
		"one copy":    {Workers: 3, Sessions: 4, Drivers: 3, Budget: 64 << 20, Replicas: 1},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			config.Command, config.Log, config.Seed = bin, os.Stderr, from
			ctx, cancel := context.WithTimeout(t.Context(), each)
			defer cancel()
			tally, err := drivers.Run(ctx, config)
			t.Logf("seed %d: %+v", from, tally)
			if err != nil {
				t.Fatal(err)
			}
			if tally.Contexts == 0 || tally.Takeovers == 0 || tally.Kills == 0 {
				t.Error("nothing was done")
			}
		})
	}
}
