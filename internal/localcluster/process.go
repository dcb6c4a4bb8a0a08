package localcluster

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"syscall"

	"headwater.example/attention"
)

// Ready is what a process says on its pipe, as one line of JSON, when it serves.
type Ready struct {
	Name    string `json:"name"`
	Address string `json:"address"`          // host:port of its gRPC service
	Gossip  string `json:"gossip"`           // host:port of its gossip; empty when it does not gossip
	Admin   string `json:"admin,omitempty"`  // host:port of its admin port; empty when it has none
	Health  string `json:"health,omitempty"` // host:port of its port for health checks; empty when it has none
}

// ReadyFlag is the flag that names the pipe's file descriptor.
const ReadyFlag = "ready-fd"

// readyFD is the first descriptor that exec.Cmd.ExtraFiles gives.
const readyFD = 3

// SettingPrefix begins the environment variables that are settings of the program. A child takes none from the parent's environment:
// they were meant for the parent. Only the kernel is chosen for all.
const (
	SettingPrefix = "HEADWATER_"
	envKernel     = attention.KernelVariable + "="
)

// process is one child.
type process struct {
	name   string
	cmd    *exec.Cmd
	pipe   *os.File // its ready line
	ready  Ready
	stderr *tail
	asked  bool // to end
	killed bool
	done   chan struct{} // closed when it has ended and err is set
	err    error
}

// start starts the program with args.
func (c *Cluster) start(name string, args []string) (*process, error) {
	read, write, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer write.Close()
	command := append(c.opts.Command[:len(c.opts.Command):len(c.opts.Command)], args...)
	command = append(command, "--"+ReadyFlag, strconv.Itoa(readyFD))
	p := &process{name: name, pipe: read, stderr: &tail{}, done: make(chan struct{})}
	p.cmd = exec.Command(command[0], command[1:]...)
	p.cmd.ExtraFiles = []*os.File{write}
	p.cmd.SysProcAttr = attributes()
	for _, variable := range os.Environ() {
		if !strings.HasPrefix(variable, SettingPrefix) || strings.HasPrefix(variable, envKernel) {
			p.cmd.Env = append(p.cmd.Env, variable)
		}
	}
	p.cmd.Stderr = p.stderr
	if c.opts.Log != nil {
		p.cmd.Stderr = io.MultiWriter(p.stderr, c.opts.Log)
	}
	if err := c.spawn.start(p.cmd); err != nil {
		return nil, errors.Join(fmt.Errorf("start %s: %w", name, err), read.Close())
	}
	go func() {
		defer close(p.done)
		p.err = p.cmd.Wait()
	}()
	c.started.Lock()
	defer c.started.Unlock()
	c.all = append(c.all, p)
	return p, nil
}

// awaitReady reads the ready line.
func (p *process) awaitReady(ctx context.Context) error {
	defer p.pipe.Close()
	// A closed pipe ends the read below.
	defer context.AfterFunc(ctx, func() { p.pipe.Close() })()
	line, err := io.ReadAll(io.LimitReader(p.pipe, 1<<16))
	if ctx.Err() != nil {
		return fmt.Errorf("%s did not come up: %w", p.name, context.Cause(ctx))
	}
	if err == nil && len(line) > 0 {
		err = json.Unmarshal(line, &p.ready)
	}
	if err != nil {
		return fmt.Errorf("%s did not come up: %w", p.name, err)
	}
	if len(line) == 0 {
		p.kill()
		return fmt.Errorf("%s did not come up: %s", p.name, p.stderr.last())
	}
	return nil
}

func (p *process) running() bool {
	select {
	case <-p.done:
		return false
	default:
		return true
	}
}

// kill ends the process at once.
func (p *process) kill() {
	if p.running() {
		p.killed = true
		// The only error is that it has just ended.
		_ = p.cmd.Process.Kill()
	}
	<-p.done
}

// terminate asks the process to end, once: a second time would end it at once.
func (p *process) terminate() {
	if p.running() && !p.asked {
		p.asked = true
		// The only error is that it has just ended.
		_ = p.cmd.Process.Signal(syscall.SIGTERM)
	}
}

// stop asks the process to end, and waits.
func (p *process) stop(ctx context.Context) error {
	p.terminate()
	select {
	case <-p.done:
	case <-ctx.Done():
		p.kill()
		return fmt.Errorf("%s did not stop and was killed: %w", p.name, context.Cause(ctx))
	}
	if p.err != nil && !p.killed {
		return fmt.Errorf("%s: %w: %s", p.name, p.err, p.stderr.last())
	}
	return nil
}

// spawner starts processes on one operating-system thread that it keeps: the signal at the parent's death is bound to the
// thread that started the child, and the runtime may end others.
type spawner struct {
	commands chan func()
	ended    chan struct{}
}

func newSpawner() *spawner {
	s := &spawner{commands: make(chan func()), ended: make(chan struct{})}
	go func() {
		defer close(s.ended)
		runtime.LockOSThread()
		for do := range s.commands {
			do()
		}
	}()
	return s
}

func (s *spawner) start(cmd *exec.Cmd) error {
	result := make(chan error)
	s.commands <- func() { result <- cmd.Start() }
	return <-result
}

func (s *spawner) close() {
	close(s.commands)
	<-s.ended
}

// tail keeps the last of what a process wrote.
type tail struct {
	mu    sync.Mutex // guards bytes
	bytes []byte
}

const tailBytes = 4 << 10

func (t *tail) Write(p []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.bytes = append(t.bytes, p...)
	if len(t.bytes) > 2*tailBytes {
		t.bytes = append([]byte(nil), t.bytes[len(t.bytes)-tailBytes:]...)
	}
	return len(p), nil
}

// last is the last line.
func (t *tail) last() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	lines := bytes.Split(bytes.TrimSpace(t.bytes), []byte("\n"))
	if line := string(lines[len(lines)-1]); line != "" {
		return line
	}
	return "it said nothing"
}
