package cli

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"slices"
	"strings"
)

// usableMemory is the machine's memory in bytes, or the limit of the process's control group.
func usableMemory() (int64, error) { return memoryIn(os.DirFS("/")) }

// memoryIn is usableMemory of a machine with this root.
func memoryIn(root fs.FS) (int64, error) {
	text, err := fs.ReadFile(root, "proc/meminfo")
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
	if total == 0 {
		return 0, errors.New("/proc/meminfo has no MemTotal")
	}
	for _, group := range memoryGroups(root) {
		// The limits of the group and of those above it. One that is not readable, or "max", is none.
		for at := group.path; ; at = path.Dir(at) {
			var limit int64
			if text, err := fs.ReadFile(root, path.Join(group.mount, at, group.file)[1:]); err == nil {
				if _, err := fmt.Sscan(string(text), &limit); err == nil && limit > 0 {
					total = min(total, limit)
				}
			}
			if at == "/" {
				break
			}
		}
	}
	return total, nil
}

// memoryGroup is a control group that limits memory: where its hierarchy is mounted, its path there, and the file of the
// limit in each folder of it.
type memoryGroup struct{ mount, path, file string }

// memoryGroups returns the process's groups of both versions of control groups. A machine has one of them, or both at once,
// as hybrid systems do. See Linux's Documentation/admin-guide/cgroup-v2.rst and cgroup-v1/memory.rst.
func memoryGroups(root fs.FS) (groups []memoryGroup) {
	own, err := fs.ReadFile(root, "proc/self/cgroup")
	if err != nil {
		return nil
	}
	mounts, err := fs.ReadFile(root, "proc/self/mountinfo")
	if err != nil {
		return nil
	}
	for line := range strings.Lines(string(own)) {
		// hierarchy:controllers:path; version 2 has hierarchy 0 and names no controllers.
		fields := strings.SplitN(strings.TrimSpace(line), ":", 3)
		if len(fields) != 3 {
			continue
		}
		kind, file := "cgroup2", "memory.max"
		if fields[0] != "0" {
			if !slices.Contains(strings.Split(fields[1], ","), "memory") {
				continue
			}
			kind, file = "cgroup", "memory.limit_in_bytes"
		}
		for mount := range strings.Lines(string(mounts)) {
			// id parent device root mountpoint options [tags...] - type source super-options
			before, after, ok := strings.Cut(strings.TrimSpace(mount), " - ")
			at, what := strings.Fields(before), strings.Fields(after)
			if !ok || len(at) < 6 || len(what) < 3 || what[0] != kind || kind == "cgroup" && !slices.Contains(strings.Split(what[2], ","), "memory") {
				continue
			}
			groups = append(groups, memoryGroup{mount: path.Join("/", at[4]), path: below(at[3], fields[2]), file: file})
		}
	}
	return groups
}

// below is the path of a group below the part of its hierarchy that is mounted. A container may see its own group mounted,
// under a path of the host's.
func below(mounted, group string) string {
	if mounted == "/" {
		return path.Join("/", group)
	}
	rest, ok := strings.CutPrefix(group, mounted)
	if !ok || rest != "" && rest[0] != '/' {
		return "/"
	}
	return path.Join("/", rest)
}
