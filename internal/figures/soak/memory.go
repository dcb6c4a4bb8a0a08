package soak

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// resident is how many bytes of a process are resident.
func resident(id int) (int64, error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", id))
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(text)) {
		if rest, ok := strings.CutPrefix(line, "VmRSS:"); ok {
			n, err := strconv.ParseInt(strings.TrimSpace(strings.TrimSuffix(strings.TrimSpace(rest), "kB")), 10, 64)
			return n << 10, err
		}
	}
	return 0, fmt.Errorf("process %d has no memory: it has ended", id)
}

// group is a control group that bounds a process's memory, or none.
type group struct{ folder string }

// newGroup puts a process into a group of its own, of either version of control groups, and says whether the machine permits it.
func newGroup(limit int64, id int) (group, bool) {
	if limit <= 0 {
		return group{}, false
	}
	for _, at := range []struct{ root, limit string }{{"/sys/fs/cgroup", "memory.max"}, {"/sys/fs/cgroup/memory", "memory.limit_in_bytes"}} {
		g := group{filepath.Join(at.root, fmt.Sprintf("headwater-soak-%d", id))}
		if os.Mkdir(g.folder, 0o755) != nil {
			continue
		}
		if set(filepath.Join(g.folder, at.limit), fmt.Append(nil, limit)) == nil && set(filepath.Join(g.folder, "cgroup.procs"), fmt.Append(nil, id)) == nil {
			return g, true
		}
		g.remove()
	}
	return group{}, false
}

// remove removes the group once its process has ended, or moves it back before.
func (g group) remove() {
	if g.folder == "" {
		return
	}
	if procs, err := os.ReadFile(filepath.Join(g.folder, "cgroup.procs")); err == nil {
		for _, id := range strings.Fields(string(procs)) {
			_ = set(filepath.Join(filepath.Dir(g.folder), "cgroup.procs"), []byte(id))
		}
	}
	_ = os.Remove(g.folder) // What can not be removed is empty.
}

// set writes to a file of a group. A folder that is no group has none, and gets none.
func set(path string, value []byte) error {
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	_, err = f.Write(value)
	return errors.Join(err, f.Close())
}
