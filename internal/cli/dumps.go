package cli

import (
	"fmt"

	"golang.org/x/sys/unix"
)

// leaveNoDump keeps the process's memory, which has others' keys and values and its own private key, out of core dumps. One byte is too
// little for a file, and by Linux's rule (core(5)) it also turns off dumps that go to a program, which a limit of 0 does not.
func leaveNoDump() error {
	if err := unix.Setrlimit(unix.RLIMIT_CORE, &unix.Rlimit{Cur: 1, Max: 1}); err != nil {
		return fmt.Errorf("core dumps can't be turned off: %w", err)
	}
	return nil
}
