//go:build linux

package jump_test

import (
	"fmt"
	"os/exec"
	"testing"
	"time"

	"headwater.example/internal/testkit/jump"
)

// TestTheWallClockJumpsAlone: that of the process alone which is named, forth and back, and what passes between two looks is as before.
func TestTheWallClockJumpsAlone(t *testing.T) {
	t.Setenv(jump.Variable, "") // as it is once the test has ended
	clocks, err := jump.Build(t.Context(), t.TempDir(), "./testdata/now")
	if err != nil {
		t.Fatal(err)
	}
	ask := func(off time.Duration) (look func() (off time.Duration, passed int), process int) {
		t.Helper()
		if err := clocks.SetNew(off); err != nil {
			t.Fatal(err)
		}
		cmd := exec.Command(clocks.Program)
		in, err1 := cmd.StdinPipe()
		out, err2 := cmd.StdoutPipe()
		if err1 != nil || err2 != nil || cmd.Start() != nil {
			t.Fatal(err1, err2)
		}
		t.Cleanup(func() { in.Close(); _ = cmd.Wait() })
		look = func() (time.Duration, int) {
			t.Helper()
			fmt.Fprintln(in)
			var shown, passed int64
			if _, err := fmt.Fscan(out, &shown, &passed); err != nil {
				t.Fatal(err)
			}
			return time.Until(time.Unix(shown, 0)).Round(time.Minute), int(passed)
		}
		look() // it has its clock
		return look, cmd.Process.Pid
	}
	one, first := ask(0)
	two, _ := ask(-time.Hour)
	for _, off := range []time.Duration{0, time.Hour, -2 * time.Hour, 0} {
		if err := clocks.Set(first, off); err != nil {
			t.Fatal(err)
		}
		if got, passed := one(); got != off || passed > 60 {
			t.Errorf("set to %v, the clock is off by %v, and %d s have passed", off, got, passed)
		}
		if got, _ := two(); got != -time.Hour {
			t.Errorf("the other's clock is off by %v", got)
		}
	}
}
