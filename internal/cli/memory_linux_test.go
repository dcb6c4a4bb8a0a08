package cli

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"testing/fstest"
)

func TestLimitsOfBothVersionsOfControlGroupsAreSeen(t *testing.T) {
	const (
		gib      = 1 << 30
		memory   = "proc/meminfo"
		groups   = "proc/self/cgroup"
		mounts   = "proc/self/mountinfo"
		v1Mount  = "35 31 0:32 / /sys/fs/cgroup/memory rw,relatime shared:9 - cgroup cgroup rw,memory\n"
		v1Own    = "35 31 0:32 /docker/abc /sys/fs/cgroup/memory ro,relatime - cgroup cgroup rw,memory\n"
		v1Other  = "33 31 0:30 / /sys/fs/cgroup/cpu rw,relatime - cgroup cgroup rw,cpu\n"
		v2Mount  = "41 31 0:38 / /sys/fs/cgroup rw,relatime - cgroup2 cgroup2 rw\n"
		v2Hybrid = "41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw\n"
		all      = "MemTotal:       16777216 kB\n"
		nothing  = "9223372036854771712\n"
	)
	for name, c := range map[string]struct {
		files map[string]string
		want  int64
	}{
		"no groups": {map[string]string{}, 16 * gib},
		"version 1": {map[string]string{groups: "4:memory:/a/b\n2:cpu,cpuacct:/a/b\n", mounts: v1Other + v1Mount, "sys/fs/cgroup/memory/a/b/memory.limit_in_bytes": "536870912\n"}, gib / 2},
		"version 1, a limit above": {map[string]string{
			groups: "4:memory:/a/b\n", mounts: v1Mount, "sys/fs/cgroup/memory/a/b/memory.limit_in_bytes": nothing,
			"sys/fs/cgroup/memory/a/memory.limit_in_bytes": "1073741824\n",
		}, gib},
		"version 1, in a container": {map[string]string{groups: "4:memory:/docker/abc\n", mounts: v1Own, "sys/fs/cgroup/memory/memory.limit_in_bytes": "536870912\n"}, gib / 2},
		"version 1, no limit":       {map[string]string{groups: "4:memory:/a\n", mounts: v1Mount, "sys/fs/cgroup/memory/a/memory.limit_in_bytes": nothing}, 16 * gib},
		"hybrid": {map[string]string{
			groups: "4:memory:/a\n0::/b\n", mounts: v1Mount + v2Hybrid, "sys/fs/cgroup/memory/a/memory.limit_in_bytes": "1073741824\n",
			"sys/fs/cgroup/unified/b/memory.max": "536870912\n",
		}, gib / 2},
		"version 2":                {map[string]string{groups: "0::/a/b\n", mounts: v2Mount, "sys/fs/cgroup/a/b/memory.max": "536870912\n", "sys/fs/cgroup/a/memory.max": "max\n"}, gib / 2},
		"version 2, a limit above": {map[string]string{groups: "0::/a/b\n", mounts: v2Mount, "sys/fs/cgroup/a/b/memory.max": "max\n", "sys/fs/cgroup/a/memory.max": "1073741824\n"}, gib},
		"version 2, a namespace":   {map[string]string{groups: "0::/\n", mounts: v2Mount, "sys/fs/cgroup/memory.max": "536870912\n"}, gib / 2},
		"another's group":          {map[string]string{groups: "4:memory:/../other\n0::/../x\n", mounts: v1Own + v2Mount}, 16 * gib},
		"nonsense":                 {map[string]string{groups: "memory\n::\n4:memory\n", mounts: "x - cgroup\n\n - \n", "sys/fs/cgroup/memory.max": "1"}, 16 * gib},
	} {
		files := fstest.MapFS{memory: {Data: []byte(all)}}
		for at, text := range c.files {
			files[at] = &fstest.MapFile{Data: []byte(text)}
		}
		if got, err := memoryIn(files); err != nil || got != c.want {
			t.Errorf("%s: %d, %v; want %d", name, got, err, c.want)
		}
	}
	if _, err := memoryIn(fstest.MapFS{}); err == nil {
		t.Error("a machine without /proc/meminfo")
	}
}

// A group that this test makes, where it may.
func TestALimitOfTheMachinesControlGroupIsSeen(t *testing.T) {
	const limit = 512 << 20
	var made string
	for folder, file := range map[string]string{"/sys/fs/cgroup/memory": "memory.limit_in_bytes", "/sys/fs/cgroup": "memory.max"} {
		at := filepath.Join(folder, fmt.Sprintf("headwater-test-%d", os.Getpid()))
		if os.Mkdir(at, 0o700) != nil {
			continue
		}
		if _, err := os.Stat(filepath.Join(at, "cgroup.procs")); err != nil { // where groups of version 1 are mounted, for one
			_ = os.Remove(at)
			continue
		}
		t.Cleanup(func() {
			if err := os.Remove(at); err != nil {
				t.Error(err)
			}
		})
		if os.WriteFile(filepath.Join(at, file), fmt.Append(nil, limit), 0) == nil {
			made = at
			break
		}
	}
	if made == "" {
		t.Skip("no control group for memory can be made here: that needs root")
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("sh", "-c", `echo $$ > "$0/cgroup.procs" && exec "$1" -test.run '^TestPrintUsableMemory$' -test.v`, made, self)
	cmd.Env = append(os.Environ(), "HEADWATER_TEST_MEMORY=1")
	out, err := cmd.CombinedOutput()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	if want := fmt.Sprintf("usable memory: %d\n", limit); !strings.Contains(string(out), want) {
		t.Errorf("want %q, got %s", want, out)
	}
}

// TestPrintUsableMemory is the child of the test above.
func TestPrintUsableMemory(t *testing.T) {
	if os.Getenv("HEADWATER_TEST_MEMORY") == "" {
		t.Skip("it is the child of another test")
	}
	n, err := usableMemory()
	if err != nil {
		t.Fatal(err)
	}
	fmt.Printf("usable memory: %d\n", n)
}
