//go:build linux

// Package e2e tests Headwater as it is used: the program coord, built once, as processes of a coordinator, of workers and
// of the command line, that are killed and starved and lied to. Other packages test how things are done; this one that they
// hold together, with nothing between the processes that a user would not have there.
//
// Tests wait for what can be seen of a job (client.Watch) or of a process (its end), never for time to pass.
package e2e

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	_ "headwater.example/internal/cli" // what the programs are made of: without it, results of other programs stay cached
)

// patience bounds each wait. It is no measure of anything: a test that runs into it has hung.
const patience = 3 * time.Minute

// version is what the programs are linked as.
const version = "v0.0.0-e2e"

var (
	workshop string // a folder for the programs and for what tests share
	program  string // coord
)

func TestMain(m *testing.M) {
	code, err := run(m)
	if err != nil {
		fmt.Fprintln(os.Stderr, "e2e:", err)
		code = max(code, 1)
	}
	os.Exit(code)
}

// run builds the programs, runs the tests, and looks for what they left.
func run(m *testing.M) (code int, err error) {
	if workshop, err = os.MkdirTemp("", "headwater-e2e-"); err != nil {
		return 1, err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(workshop)) }()
	build := exec.Command("go", "build", "-trimpath", "-buildvcs=false", "-ldflags", "-X headwater.example/internal/cli.linked="+version, "-o", workshop+"/", "headwater.example/cmd/coord", "headwater.example/cmd/worker")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if said, err := build.CombinedOutput(); err != nil {
		return 1, fmt.Errorf("build the programs: %w: %s", err, said)
	}
	program = filepath.Join(workshop, "coord")
	code = m.Run()
	left, err := leftovers()
	if err == nil && len(left) > 0 {
		err = fmt.Errorf("processes are left: %v", left)
	}
	return code, errors.Join(err, goleak.Find())
}

func TestProgramsTellTheirVersion(t *testing.T) {
	t.Parallel()
	for _, name := range []string{"coord", "worker"} {
		said := execute(command(bounded(t), filepath.Join(workshop, name), "--version"))
		said.succeeds(t)
		if want := name + " version " + version + "\n"; said.out != want {
			t.Errorf("it says %q, want %q", said.out, want)
		}
	}
}

// process is one line of the system's table.
type process struct {
	id, parent int
	state      string
	path       string // of its program; empty for one that has ended
}

// processes reads the system's table.
func processes() ([]process, error) {
	found, err := filepath.Glob("/proc/[0-9]*/stat")
	if err != nil {
		return nil, err
	}
	var all []process
	for _, stat := range found {
		text, err := os.ReadFile(stat)
		if err != nil {
			continue // it has ended meanwhile
		}
		// id (name) state parent …; the name may hold anything.
		var p process
		if _, err := fmt.Sscan(string(text[bytes.LastIndexByte(text, ')')+1:]), &p.state, &p.parent); err != nil {
			return nil, fmt.Errorf("%s: %w", stat, err)
		}
		if p.id, err = strconv.Atoi(filepath.Base(filepath.Dir(stat))); err != nil {
			return nil, err
		}
		p.path, _ = os.Readlink(filepath.Join(filepath.Dir(stat), "exe")) // is empty then
		all = append(all, p)
	}
	return all, nil
}

// leftovers are the processes that run a program of the workshop or are children of this one.
func leftovers() ([]string, error) {
	all, err := processes()
	if err != nil {
		return nil, err
	}
	var left []string
	for _, p := range all {
		if p.parent == os.Getpid() || strings.HasPrefix(p.path, workshop) {
			left = append(left, fmt.Sprintf("%d %s %s", p.id, p.state, p.path))
		}
	}
	return left, nil
}

// awaitDeath waits until a process has ended, whose child it ever is.
func awaitDeath(id int) error {
	fd, err := unix.PidfdOpen(id, 0)
	if errors.Is(err, unix.ESRCH) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("process %d: %w", id, err)
	}
	defer unix.Close(fd)
	for {
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, int(patience.Milliseconds()))
		switch {
		case errors.Is(err, unix.EINTR):
		case err != nil:
			return fmt.Errorf("process %d: %w", id, err)
		case n == 0:
			return fmt.Errorf("process %d lives", id)
		default:
			return nil
		}
	}
}

// readLine reads one line of JSON.
func readLine(ctx context.Context, pipe *os.File, into any) error {
	defer context.AfterFunc(ctx, func() { pipe.Close() })() // ends the read
	line, err := bufio.NewReader(pipe).ReadBytes('\n')
	if err == nil {
		err = json.Unmarshal(line, into)
	}
	if ctx.Err() != nil {
		err = context.Cause(ctx)
	}
	return err
}

// bounded is the test's context with an end.
func bounded(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	t.Cleanup(cancel)
	return ctx
}

// command prepares a command line of a program, which takes no settings from the environment of the tests.
func command(ctx context.Context, program string, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, program, args...)
	for _, variable := range os.Environ() {
		if !strings.HasPrefix(variable, "HEADWATER_") {
			cmd.Env = append(cmd.Env, variable)
		}
	}
	return cmd
}

// said is how a command line ended.
type said struct {
	code        int
	out, stderr string
}

// coord runs a command line of coord to its end.
func coord(t *testing.T, args ...string) said {
	t.Helper()
	return execute(command(bounded(t), program, args...))
}

// background runs a command line of coord while the test goes on. The channel gives how it ended, once.
func background(t *testing.T, args ...string) <-chan said {
	t.Helper()
	cmd := command(bounded(t), program, args...)
	ended, done := make(chan said, 1), make(chan struct{})
	go func() {
		defer close(done)
		ended <- execute(cmd)
	}()
	t.Cleanup(func() { <-done }) // after the context's end
	return ended
}

func execute(cmd *exec.Cmd) said {
	var out, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &stderr
	err := cmd.Run()
	var ended *exec.ExitError
	if err != nil && (!errors.As(err, &ended) || !ended.Exited()) {
		return said{-1, out.String(), fmt.Sprintf("%v: %v: %s", cmd.Args, err, stderr.String())}
	}
	return said{cmd.ProcessState.ExitCode(), out.String(), stderr.String()}
}

// fails checks that a command line ended with a code, printed nothing but one line on stderr, and that the line has these
// words.
func (s said) fails(t *testing.T, code int, words ...string) {
	t.Helper()
	if s.code != code {
		t.Errorf("exit code %d, want %d; it said %s", s.code, code, s.stderr)
	}
	if strings.Count(s.stderr, "\n") != 1 || !strings.HasSuffix(s.stderr, "\n") || strings.ContainsAny(s.stderr, "\r\t\x1b") {
		t.Errorf("stderr is not one line: %q", s.stderr)
	}
	if s.out != "" {
		t.Errorf("stdout is %q", s.out)
	}
	for _, word := range words {
		if !strings.Contains(s.stderr, word) {
			t.Errorf("the error does not have %q: %s", word, s.stderr)
		}
	}
}

// succeeds checks that a command line ended well and said nothing on stderr.
func (s said) succeeds(t *testing.T) {
	t.Helper()
	if s.code != 0 || s.stderr != "" {
		t.Fatalf("exit code %d, it said %s", s.code, s.stderr)
	}
}

// progressed leaves out what was told of sessions that moved.
func (s said) progressed() said {
	s.stderr = strings.Join(slices.DeleteFunc(strings.SplitAfter(s.stderr, "\n"), func(line string) bool {
		return strings.HasPrefix(line, "moving sessions: ")
	}), "")
	return s
}
