package submitters_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"headwater.example/internal/testkit/submitters"
)

// TestJobsOutliveKillsAndDamage submits jobs for some seconds, without a disk that is full (make chaos has one).
func TestJobsOutliveKillsAndDamage(t *testing.T) {
	bin := filepath.Join(t.TempDir(), "coord")
	if out, err := exec.Command("go", "build", "-o", bin, "headwater.example/cmd/coord").CombinedOutput(); err != nil {
		t.Fatalf("build: %v\n%s", err, out)
	}
	seed, each := uint64(time.Now().UnixNano()), 8*time.Second
	if testing.Short() {
		each = 2 * time.Second
	}
	tally, err := submitters.Run(t.Context(), submitters.Config{Command: bin, Clients: 3, Seed: seed, Time: each, Log: os.Stderr})
	t.Logf("seed %d: %+v", seed, tally)
	if err != nil {
		t.Fatal(err)
	}
	if tally.Submitted == 0 || tally.Results == 0 {
		t.Error("nothing was done")
	}
}
