package soak

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"
)

// TestSoak is a short soak of a worker that clients fill. No one is killed, refusals are ones to try again, and the worker's memory
// is bounded and comes back.
func TestSoak(t *testing.T) {
	bin := filepath.Join(t.TempDir(), "coord")
	if out, err := exec.Command("go", "build", "-trimpath", "-o", bin, "headwater.example/cmd/coord").CombinedOutput(); err != nil {
		t.Fatalf("build: %v\n%s", err, out)
	}
	o := Default()
	o.Command, o.Load, o.Log, o.Sessions, o.Refusals = bin, 20*time.Second, os.Stderr, 1, 1
	o.Memory, o.Limit = 256<<20, 512<<20 // less to fill than in make soak
	if testing.Short() {
		o.Load = 5 * time.Second
	}
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute) // far more than one session and one refusal take
	defer cancel()
	r, err := Run(ctx, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%d MiB at most, %.2f of what is allowed, back in %v; %d sessions, %d refusals, %d evicted, filled %d times, grouped %v",
		r.Largest>>20, r.Over, r.Back, r.Sessions, r.Refused, r.Gone, r.Full, r.Grouped)
	if r.Over > 1 {
		t.Errorf("%d MiB were resident, %d are allowed", r.Largest>>20, (o.Memory+slack)>>20)
	}
	if r.Refused == 0 || r.Full == 0 {
		t.Errorf("%d calls were refused, and the worker was filled %d times", r.Refused, r.Full)
	}
	if r.Back > 30*time.Second {
		t.Errorf("memory was back after %v", r.Back)
	}
}
