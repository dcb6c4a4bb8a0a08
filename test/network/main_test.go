//go:build linux

// Package network tests the programs on machines as people have them: network namespaces with public addresses, with IPv6
// alone, with container bridges; with proxies in the environment, on Unix sockets, and with peers that say nothing.
package network

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"

	"headwater.example/internal/cli"
)

// asProgram makes this binary the program that it names.
const asProgram = "NETWORK_TEST_PROGRAM"

// patience bounds the waiting for what must come.
const patience = 60 * time.Second

func TestMain(m *testing.M) {
	streams := cli.Streams{In: os.Stdin, Out: os.Stdout, Err: os.Stderr}
	switch os.Getenv(asProgram) {
	case "coord":
		os.Exit(cli.Coord(os.Args[1:], streams))
	case "worker":
		os.Exit(cli.Worker(os.Args[1:], streams))
	}
	// Who runs the tests may ignore hangups, as nohup does, and the programs would inherit that.
	hangups := make(chan os.Signal, 1)
	signal.Notify(hangups, syscall.SIGHUP)
	goleak.VerifyTestMain(m)
}

// machine is a network namespace, or this machine.
type machine struct {
	name  string // "" is this machine
	env   []string
	certs string // folder of the authority of its cluster; this machine has none
}

// authority makes a cluster's authority, with certificates for any coordinator and worker, and for a client.
func authority(t *testing.T) string {
	t.Helper()
	folder := filepath.Join(t.TempDir(), "certs")
	for _, args := range [][]string{{"init"}, {"issue", "coordinator", "*"}, {"issue", "worker", "*"}, {"issue", "client", "ann"}} {
		if out, err := (&machine{}).run(t, append(append([]string{"certs"}, args...), "--dir", folder)...); err != nil {
			t.Fatalf("certs %v: %v: %s", args, err, out)
		}
	}
	return folder
}

// secured are a program's arguments with those that name its certificate.
func (m *machine) secured(role string, args []string) []string {
	if m.certs == "" {
		return args
	}
	return append(args[:len(args):len(args)], "--tls-dir", filepath.Join(m.certs, role))
}

// newMachine makes a network namespace, with its loopback interface up, and runs ip's commands in it. Commands that begin
// with "host" are run outside. The test is skipped where that is not allowed.
func newMachine(t *testing.T, name string, commands ...string) *machine {
	t.Helper()
	m := &machine{name: fmt.Sprintf("hw%d%s", os.Getpid(), name), certs: authority(t)}
	ip := func(args ...string) {
		t.Helper()
		if out, err := exec.Command("ip", args...).CombinedOutput(); err != nil {
			t.Skipf("no network namespace can be made here, which needs root, ip and the kernel's drivers: ip %s: %v: %s", strings.Join(args, " "), err, bytes.TrimSpace(out))
		}
	}
	ip("netns", "add", m.name)
	t.Cleanup(func() {
		if out, err := exec.Command("ip", "netns", "delete", m.name).CombinedOutput(); err != nil {
			t.Errorf("%v: %s", err, out)
		}
	})
	ip("-n", m.name, "link", "set", "lo", "up")
	for _, c := range commands {
		ip(append([]string{"-n", m.name}, strings.Fields(c)...)...)
	}
	return m
}

// connect joins machines by one cable, each with its addresses, to be one cluster.
func connect(t *testing.T, a, b *machine, addressesA, addressesB []string) {
	t.Helper()
	b.certs = a.certs
	link := [][]string{{"-n", a.name, "link", "add", "eth0", "type", "veth", "peer", "name", "eth0", "netns", b.name}}
	for m, addresses := range map[*machine][]string{a: addressesA, b: addressesB} {
		for _, address := range addresses {
			add := []string{"-n", m.name, "address", "add", address, "dev", "eth0"}
			if strings.Contains(address, ":") {
				add = append(add, "nodad")
			}
			link = append(link, add)
		}
		link = append(link, []string{"-n", m.name, "link", "set", "eth0", "up"})
	}
	for _, args := range link {
		if out, err := exec.Command("ip", args...).CombinedOutput(); err != nil {
			t.Skipf("no cable can be made here: ip %s: %v: %s", strings.Join(args, " "), err, bytes.TrimSpace(out))
		}
	}
}

// command is the program, run on the machine.
func (m *machine) command(ctx context.Context, t *testing.T, program string, args ...string) *exec.Cmd {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	if m.name != "" {
		args = append([]string{"netns", "exec", m.name, self}, args...)
		self = "ip"
	}
	cmd := exec.CommandContext(ctx, self, args...)
	for _, v := range os.Environ() {
		if !strings.Contains(strings.ToLower(v), "_proxy=") {
			cmd.Env = append(cmd.Env, v)
		}
	}
	cmd.Env = append(append(cmd.Env, asProgram+"="+program), m.env...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	return cmd
}

// run runs a command of coord to its end.
func (m *machine) run(t *testing.T, args ...string) (string, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	out, err := m.command(ctx, t, "coord", m.secured("client-ann", args)...).CombinedOutput()
	return string(out), err
}

// process is a program that serves.
type process struct {
	cmd  *exec.Cmd
	log  *log
	done chan struct{}
	err  error
}

// log is what a process says.
type log struct {
	mu   sync.Mutex
	text bytes.Buffer
	more chan struct{}
}

func (l *log) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	select {
	case l.more <- struct{}{}:
	default:
	}
	return l.text.Write(p)
}

func (l *log) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.String()
}

// serve starts a program that serves until the test ends.
func (m *machine) serve(t *testing.T, program string, args ...string) *process {
	t.Helper()
	p := &process{log: &log{more: make(chan struct{}, 1)}, done: make(chan struct{})}
	role := map[string]string{"coord": "coordinator-any", "worker": "worker-any"}[program]
	p.cmd = m.command(context.Background(), t, program, append(m.secured(role, args), "--log-format", "json")...)
	p.cmd.Stderr, p.cmd.Stdout = p.log, p.log
	if err := p.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() {
		defer close(p.done)
		p.err = p.cmd.Wait()
	}()
	t.Cleanup(func() {
		_ = p.cmd.Process.Kill() // it may have ended
		<-p.done
		if t.Failed() {
			t.Logf("%s %s said:\n%s", program, strings.Join(args, " "), p.log)
		}
	})
	return p
}

// end asks the process to end, and waits.
func (p *process) end(t *testing.T, signal syscall.Signal) error {
	t.Helper()
	if err := p.cmd.Process.Signal(signal); err != nil {
		t.Fatal(err)
	}
	return p.wait(t)
}

// wait waits until the process has ended.
func (p *process) wait(t *testing.T) error {
	t.Helper()
	select {
	case <-p.done:
	case <-time.After(patience):
		t.Fatalf("the process did not end within %v", patience)
	}
	return p.err
}

// await waits for a record with a message that begins so, and returns it.
func (p *process) await(t *testing.T, message string) map[string]any {
	t.Helper()
	late := time.After(patience)
	for {
		for line := range strings.Lines(p.log.String()) {
			var record map[string]any
			if json.Unmarshal([]byte(line), &record) != nil {
				continue
			}
			if text, _ := record["msg"].(string); strings.HasPrefix(text, message) {
				return record
			}
		}
		select {
		case <-p.log.more:
		case <-p.done:
			t.Fatalf("the process ended before it said %q: %v", message, p.err)
		case <-late:
			t.Fatalf("the process did not say %q", message)
		}
	}
}

// serving waits until the process serves, and returns the hosts that it advertises for gRPC and gossip.
func (p *process) serving(t *testing.T) (grpc, gossip string) {
	t.Helper()
	record := p.await(t, "serving")
	grpc, _, _ = net.SplitHostPort(record["address"].(string))
	gossip, _, _ = net.SplitHostPort(record["gossip"].(string))
	return grpc, gossip
}

// awaitWorkers waits until the coordinator sees so many workers answer, and returns what status prints then.
func (m *machine) awaitWorkers(t *testing.T, coordinator string, want int) {
	t.Helper()
	m.awaitStatus(t, coordinator, func(workers []worker) bool {
		n := 0
		for _, w := range workers {
			if w.Error == "" {
				n++
			}
		}
		return n == want
	})
}

// worker is one in the output of status.
type worker struct{ Name, Address, Error string }

func (m *machine) awaitStatus(t *testing.T, coordinator string, holds func([]worker) bool) {
	t.Helper()
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	late := time.After(patience)
	for {
		out, err := m.run(t, "status", "--coordinator", coordinator, "--output", "json")
		var status struct{ Workers []worker }
		if err == nil {
			err = json.Unmarshal([]byte(out), &status)
		}
		if err == nil && holds(status.Workers) {
			return
		}
		select {
		case <-tick.C:
		case <-late:
			t.Fatalf("status is still %s, %v", out, err)
		}
	}
}

// submit runs a job and checks that it succeeded.
func (m *machine) submit(t *testing.T, coordinator string) {
	t.Helper()
	result := filepath.Join(t.TempDir(), "result.safetensors")
	if out, err := m.run(t, "submit", "../data/smollm2/attention.safetensors", "--coordinator", coordinator, "--out", result); err != nil {
		t.Errorf("submit: %v: %s", err, out)
	}
	if _, err := os.Stat(result); err != nil {
		t.Error(err)
	}
}

// exit is the code that a program ended with.
func exit(err error) int {
	var ended *exec.ExitError
	switch {
	case err == nil:
		return 0
	case errors.As(err, &ended):
		return ended.ExitCode()
	}
	return -1
}
