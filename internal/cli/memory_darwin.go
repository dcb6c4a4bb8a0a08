package cli

import (
	"fmt"

	"golang.org/x/sys/unix"
)

// usableMemory is the machine's memory in bytes.
func usableMemory() (int64, error) {
	n, err := unix.SysctlUint64("hw.memsize")
	if err != nil {
		return 0, fmt.Errorf("hw.memsize: %w", err)
	}
	return int64(n), nil
}
