package cut

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
)

// inside is the variable by which a program knows that it runs in a namespace of its own.
const inside = "OWN_NETWORK_NAMESPACE"

// Inside reports whether this program was started by Again.
func Inside() bool { return os.Getenv(inside) != "" }

// Again runs this program once more, with the same arguments, in namespaces of its own, and returns its exit code. The error says why
// that is not possible here; then nothing was run. The program ends with this one.
func Again(ctx context.Context) (code int, err error) {
	for _, tool := range []string{"nft", "ip"} {
		if _, err := exec.LookPath(tool); err != nil {
			return 0, fmt.Errorf("no network namespace: %w", err)
		}
	}
	self, err := os.Executable()
	if err != nil {
		return 0, err
	}
	cmd := exec.CommandContext(ctx, self, os.Args[1:]...)
	cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) }
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.Env = append(os.Environ(), inside+"=1")
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET | syscall.CLONE_NEWNS, Pdeathsig: syscall.SIGKILL}
	if os.Getuid() != 0 {
		cmd.SysProcAttr.Cloneflags |= syscall.CLONE_NEWUSER
		cmd.SysProcAttr.UidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getuid(), Size: 1}}
		cmd.SysProcAttr.GidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getgid(), Size: 1}}
	}
	if err := cmd.Start(); err != nil {
		return 0, fmt.Errorf("no network namespace: %w", err)
	}
	var ended *exec.ExitError
	if err := cmd.Wait(); errors.As(err, &ended) {
		return ended.ExitCode(), nil
	} else if err != nil {
		return 1, err
	}
	return 0, nil
}

// Disk mounts a file system of so many bytes at a folder, for this program and its children alone, until remove is called or they
// have all ended.
func Disk(folder string, bytes int64) (remove func() error, err error) {
	if !Inside() {
		return nil, errors.New("this program has no namespace of mounts of its own")
	}
	// What is mounted here must not show outside.
	if err := syscall.Mount("none", "/", "", syscall.MS_REC|syscall.MS_PRIVATE, ""); err != nil {
		return nil, fmt.Errorf("keep mounts to this program: %w", err)
	}
	if err := syscall.Mount("tmpfs", folder, "tmpfs", 0, fmt.Sprintf("size=%d", bytes)); err != nil {
		return nil, fmt.Errorf("mount a file system at %s: %w", folder, err)
	}
	return func() error { return syscall.Unmount(folder, syscall.MNT_DETACH) }, nil
}

// Network is this program's own network. Its methods are for one goroutine at a time.
type Network struct {
	leads bool // packets with a mark go the way that Delay needs
}

// Open brings the loopback interface up. It fails outside of a namespace of this program's own.
func Open() (*Network, error) {
	if !Inside() {
		return nil, errors.New("this program has no network namespace of its own")
	}
	if err := run("", "ip", "link", "set", "lo", "up"); err != nil {
		return nil, err
	}
	return &Network{}, run("add table inet cut\nadd chain inet cut way { type filter hook input priority 0; policy accept; }\n", "nft", "-f", "-")
}

// Direction says which packets are dropped.
type Direction int

// The directions.
const (
	Both Direction = iota
	To             // those to the ports
	From           // those from the ports
)

// Drop drops packets to or from the ports of some addresses, host:port, from now on.
func (*Network) Drop(d Direction, addresses ...string) error {
	ports, err := portsOf(addresses)
	if err != nil {
		return err
	}
	var rules strings.Builder
	for _, protocol := range []string{"tcp", "udp"} {
		if d != From {
			fmt.Fprintf(&rules, "add rule inet cut way %s dport { %s } drop\n", protocol, ports)
		}
		if d != To {
			fmt.Fprintf(&rules, "add rule inet cut way %s sport { %s } drop\n", protocol, ports)
		}
	}
	return run(rules.String(), "nft", "-f", "-")
}

// portsOf are the ports of some addresses, as nft has them.
func portsOf(addresses []string) (string, error) {
	var ports []string
	for _, a := range addresses {
		_, port, err := net.SplitHostPort(a)
		if err != nil {
			return "", err
		}
		ports = append(ports, port)
	}
	return strings.Join(ports, ", "), nil
}

// Heal lets all packets pass again.
func (*Network) Heal() error { return run("", "nft", "flush", "chain", "inet", "cut", "way") }

// Slows says why the network can't be made slow here; nil if it can.
func (n *Network) Slows() error {
	if _, err := exec.LookPath("tc"); err != nil {
		return err
	}
	if err := n.Slow(1 << 30); err != nil {
		return err
	}
	return n.Steady()
}

// Slow lets only so many bits a second pass from now on, over all connections together (tbf). What waits for longer than a fifth of a second is
// dropped.
func (*Network) Slow(bits int) error {
	return run("", "tc", "qdisc", "replace", "dev", "lo", "root", "tbf", "rate", fmt.Sprintf("%dbit", bits), "burst", "256kb", "latency", "200ms")
}

// Steady ends Slow.
func (*Network) Steady() error { return run("", "tc", "qdisc", "del", "dev", "lo", "root") }

// Starves says why Starve is not possible here; nil if it is.
func Starves() error {
	g, err := newGroup(os.Getpid(), 1<<30)
	if err != nil {
		return err
	}
	return g.remove()
}

// Starve lets a process take only so many bytes of memory more than it has: beyond that the kernel kills it. Once it has ended, release
// removes what was made for that.
func Starve(process int, bytes int64) (release func() error, err error) {
	g, err := newGroup(process, bytes)
	if err != nil {
		return nil, err
	}
	if err := g.write("cgroup.procs", fmt.Sprint(process)); err != nil {
		return nil, errors.Join(err, g.remove())
	}
	return g.remove, nil
}

// group is a control group of memory, by its folder.
type group string

// newGroup makes a group for a process, of version 1 or 2. What a process had before it joins is counted elsewhere.
func newGroup(process int, bytes int64) (group, error) {
	var errs []error
	for _, version := range []struct{ root, limit string }{{"/sys/fs/cgroup/memory", "memory.limit_in_bytes"}, {"/sys/fs/cgroup", "memory.max"}} {
		if _, err := os.Stat(filepath.Join(version.root, "cgroup.procs")); err != nil {
			errs = append(errs, err)
			continue
		}
		g := group(filepath.Join(version.root, fmt.Sprintf("headwater-chaos-%d-%d", os.Getpid(), process)))
		if err := os.Mkdir(string(g), 0o755); err != nil {
			errs = append(errs, err)
			continue
		}
		err := g.write(version.limit, fmt.Sprint(bytes))
		if err == nil {
			return g, nil
		}
		errs = append(errs, err, g.remove())
	}
	return "", fmt.Errorf("no control group of memory: %w", errors.Join(errs...))
}

func (g group) write(file, text string) error {
	return os.WriteFile(filepath.Join(string(g), file), []byte(text), 0)
}

func (g group) remove() error { return os.Remove(string(g)) }

func run(input, name string, args ...string) error {
	cmd := exec.Command(name, args...)
	cmd.Stdin = strings.NewReader(input)
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%s %s: %w: %s", name, strings.Join(args, " "), err, bytes.TrimSpace(out))
	}
	return nil
}
