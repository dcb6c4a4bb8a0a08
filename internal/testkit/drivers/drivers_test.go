package drivers_test

import (
	"flag"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"go.uber.org/goleak"

	"headwater.example/internal/testkit/drivers"
)

// walked is how long each walk drives sessions, and after how many steps it ends before. HEADWATER_WALK names another time, for walks
// of any number of steps (make walk).
func walked(t *testing.T, each time.Duration, steps int64) (time.Duration, int64) {
	if long := os.Getenv("HEADWATER_WALK"); long != "" {
		d, err := time.ParseDuration(long)
		if err != nil {
			t.Fatalf("HEADWATER_WALK: %v", err)
		}
		return d, 0
	}
	if testing.Short() {
		return time.Second, steps
	}
	return each, steps
}

// TestSeveralDriversAgreeWithWhatTheyWereTold drives sessions for some seconds, with room for all and with little.
func TestSeveralDriversAgreeWithWhatTheyWereTold(t *testing.T) {
	defer goleak.VerifyNone(t)
	each, steps := walked(t, 4*time.Second, 1500)
	for name, config := range map[string]drivers.Config{
		"two workers":   {Workers: 2, Sessions: 4, Drivers: 3, Budget: 64 << 20, Seed: 1},
		"three workers": {Workers: 3, Sessions: 4, Drivers: 4, Budget: 64 << 20, Seed: 2},
		"little room":   {Workers: 2, Sessions: 6, Drivers: 2, Budget: 192 << 10, Seed: 3},
	} {
		t.Run(name, func(t *testing.T) {
			config.Time, config.Steps = each, steps
			tally, err := drivers.Run(t.Context(), config)
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
	each, _ := walked(t, 6*time.Second, 0) // the number of kills is what counts
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
			config.Command, config.Log, config.Seed, config.Time = bin, os.Stderr, from, each
			tally, err := drivers.Run(t.Context(), config)
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
