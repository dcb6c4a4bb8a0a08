package cut_test

import (
	"errors"
	"os"
	"os/exec"
	"syscall"
	"testing"

	"headwater.example/internal/testkit/cut"
)

// hungry is the variable by which this program knows that it is to take memory until its input ends.
const hungry = "TAKES_MEMORY"

func TestMain(m *testing.M) {
	if os.Getenv(hungry) == "" {
		os.Exit(m.Run())
	}
	_, _ = os.Stdin.Read(make([]byte, 1)) // until it is in its group
	taken := make([]byte, 64<<20)
	for i := 0; i < len(taken); i += 4096 {
		taken[i] = 1
	}
}

// TestAStarvedProcessIsKilled: one that takes more memory than it may have is killed, and nothing is left of its group.
func TestAStarvedProcessIsKilled(t *testing.T) {
	if err := cut.Starves(); err != nil {
		t.Skipf("processes can't be starved here: %v", err)
	}
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), hungry+"=1")
	pipe, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	release, starved := cut.Starve(cmd.Process.Pid, 1<<20)
	closed := pipe.Close() // it goes on
	var ended *exec.ExitError
	if err := cmd.Wait(); !errors.As(err, &ended) || ended.Sys().(syscall.WaitStatus).Signal() != syscall.SIGKILL {
		t.Errorf("it ended with %v", err)
	}
	if err := errors.Join(starved, closed); err != nil {
		t.Fatal(err)
	}
	if err := release(); err != nil {
		t.Error(err)
	}
}
