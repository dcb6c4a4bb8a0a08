//go:build linux

package e2e

import (
	"os/exec"
	"path/filepath"
	"testing"

	"headwater.example/internal/localcluster"
)

// TestExamples builds examples/, a module of its own that imports this one as any other would, and runs it on a cluster.
func TestExamples(t *testing.T) {
	c := start(t, localcluster.Options{Workers: 2})
	ctx, example := bounded(t), filepath.Join(t.TempDir(), "session")
	build := exec.CommandContext(ctx, "go", "build", "-o", example, "./session")
	build.Dir = "../../examples"
	if said, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, said)
	}
	said, err := exec.CommandContext(ctx, example, c.Address()).CombinedOutput()
	if want := "101 positions, the fork's context is equal: true\n"; err != nil || string(said) != want {
		t.Fatalf("%v: %q, want %q", err, said, want)
	}
	left, err := c.Sessions(ctx)
	if err != nil || len(left.Sessions) != 0 {
		t.Fatalf("sessions that the example has left: %+v: %v", left, err)
	}
}
