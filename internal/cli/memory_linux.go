package cli

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

// usableMemory is the machine's memory in bytes, or the limit of the process's control group.
func usableMemory() (int64, error) {
	text, err := os.ReadFile("/proc/meminfo")
	if err != nil {
		return 0, err
	}
	var total int64
	for line := range strings.Lines(string(text)) {
		if strings.HasPrefix(line, "MemTotal:") {
			if _, err := fmt.Sscanf(line, "MemTotal: %d kB", &total); err != nil {
				return 0, fmt.Errorf("/proc/meminfo reads %q", strings.TrimSpace(line))
			}
			total <<= 10
		}
	}
	// Control groups, version 2 (Documentation/admin-guide/cgroup-v2.rst): the limits of the group and of those above it.
	own, err := os.ReadFile("/proc/self/cgroup")
	if err == nil {
		for line := range strings.Lines(string(own)) {
			path, ok := strings.CutPrefix(strings.TrimSpace(line), "0::")
			for ok {
				var limit int64
				if text, err := os.ReadFile(filepath.Join("/sys/fs/cgroup", path, "memory.max")); err == nil {
					if _, err := fmt.Sscan(string(text), &limit); err == nil && limit > 0 {
						total = min(total, limit)
					}
				}
				if path == "/" || path == "." || path == "" {
					break
				}
				path = filepath.Dir(path)
			}
		}
	}
	if total == 0 {
		return 0, errors.New("/proc/meminfo has no MemTotal")
	}
	return total, nil
}
