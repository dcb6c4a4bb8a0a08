//go:build linux

package e2e

import (
	"context"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"headwater.example/client"
	"headwater.example/internal/localcluster"
)

// relay is a process of coord relay. It ends with the test at the latest.
type relay struct {
	cmd     *exec.Cmd
	in      io.WriteCloser // keeps it alive
	out     *os.File
	Address string `json:"address"`
}

// socket is an address in a folder of its own, of a path that is short enough.
func socket(t *testing.T) string {
	t.Helper()
	folder, err := os.MkdirTemp("", "hw-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.Remove(folder); err != nil { // the relay has removed what it made
			t.Error(err)
		}
	})
	return "unix:" + filepath.Join(folder, "made", "relay.sock")
}

// startRelay starts a relay to a cluster and waits until it serves.
func startRelay(t *testing.T, coordinator string, args ...string) *relay {
	t.Helper()
	// The test's own context ends, and kills, before the relay is asked to end.
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	t.Cleanup(cancel)
	r := &relay{cmd: command(ctx, program, append([]string{"relay", "--coordinator", coordinator}, args...)...)}
	var err error
	if r.in, err = r.cmd.StdinPipe(); err != nil {
		t.Fatal(err)
	}
	out, write, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	r.cmd.Stdout, r.out = write, out
	err = errors.Join(r.cmd.Start(), write.Close())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = r.in.Close() // it is closed where the test did so
		_ = r.cmd.Wait() // waited for where the test did so
		_ = out.Close()  // closed where no line came
	})
	if err := readLine(ctx, out, r); err != nil {
		t.Fatal(err)
	}
	return r
}

// waits checks that the relay ends well and that its socket and folder are gone.
func (r *relay) waits(t *testing.T) {
	t.Helper()
	if err := r.cmd.Wait(); err != nil {
		t.Error(err)
	}
	if path, ok := strings.CutPrefix(r.Address, "unix:"); ok {
		if _, err := os.Stat(filepath.Dir(path)); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("the socket's folder is left: %v", err)
		}
	}
}

// TestARelayEndsWithItsParent: at the end of its standard input, whoever held that, and at a signal.
func TestARelayEndsWithItsParent(t *testing.T) {
	t.Parallel()
	closed := startRelay(t, "127.0.0.1:1", "--listen", socket(t))
	if err := closed.in.Close(); err != nil {
		t.Fatal(err)
	}
	closed.waits(t)

	asked := startRelay(t, "127.0.0.1:1", "--listen", socket(t))
	if err := asked.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	asked.waits(t)

	// A program that is killed, whose child the relay is: its end of the pipe closes with it.
	parent := command(bounded(t), "sh", "-c", `mkfifo "$1" && { "$2" relay --coordinator 127.0.0.1:1 --listen "$3" <"$1" & exec 9>"$1"; echo '{"Child":'$!'}'; wait; }`,
		"sh", filepath.Join(t.TempDir(), "fifo"), program, socket(t))
	out, write, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	parent.Stdout = write
	if err := errors.Join(parent.Start(), write.Close()); err != nil {
		t.Fatal(err)
	}
	var said struct{ Child int }
	if err := readLine(bounded(t), out, &said); err != nil {
		t.Error(err)
	}
	_ = parent.Process.Kill() // it waits for its child until then
	_ = parent.Wait()         // it was killed
	if err := errors.Join(awaitDeath(said.Child), out.Close()); err != nil {
		t.Error(err)
	}
}

// TestARelayServesThisMachineAlone: unless it is told otherwise.
func TestARelayServesThisMachineAlone(t *testing.T) {
	t.Parallel()
	for _, address := range []string{":0", "0.0.0.0:0", "[::]:0", "192.0.2.1:7600", "example.org:7600"} {
		coord(t, "relay", "--listen", address).fails(t, 2, "--listen", "--allow-remote")
		coord(t, "relay", "--allow-remote", "--lanes", address).fails(t, 2, "--lanes: other machines reach")
	}
	coord(t, "relay", "--listen", "0.0.0.0:0", "--allow-remote").fails(t, 2, "--listen: other machines reach 0.0.0.0:0, and there is no certificate")
	coord(t, "relay", "--listen", "nonsense").fails(t, 2, "--listen", "host:port")
	coord(t, "relay", "--coordinator", "http://host").fails(t, 2, "--coordinator", "without http://")
	for _, args := range [][]string{{"--listen", "127.0.0.1:0"}, {"--listen", "[::1]:0"}, {"--listen", "localhost:0"}, {"--listen", "0.0.0.0:0", "--allow-remote", "--insecure"}} {
		startRelay(t, "127.0.0.1:1", args...)
	}
	// The socket is this user's.
	r := startRelay(t, "127.0.0.1:1", "--listen", socket(t))
	path := strings.TrimPrefix(r.Address, "unix:")
	for at, want := range map[string]os.FileMode{path: os.ModeSocket | 0o600, filepath.Dir(path): os.ModeDir | 0o700} {
		if info, err := os.Stat(at); err != nil || info.Mode() != want {
			t.Errorf("%s: %v, %v; want %v", at, info.Mode(), err, want)
		}
	}
}

// TestARelayNeedsNoCoordinatorForSteps: what is asked of the coordinator fails by its name while it is away, and steps, forks and
// truncations of sessions that are known go on, with the bits of the job.
func TestARelayNeedsNoCoordinatorForSteps(t *testing.T) {
	t.Parallel()
	c := start(t, localcluster.Options{Workers: 2, Threads: 1})
	g, layers := generate(t, c)
	r := startRelay(t, c.Address(), "--listen", socket(t))
	through, err := client.Dial(r.Address)
	if err != nil {
		t.Fatal(err)
	}
	defer through.Close()
	s, err := through.OpenSession(g.ctx, client.SessionOptions{Layers: layers})
	if err != nil {
		t.Fatal(err)
	}
	g.step(s, 0, 70)
	c.KillCoordinator()
	g.step(s, 70, 100)
	child, err := s.Fork(g.ctx)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Truncate(g.ctx, 64); err != nil {
		t.Fatal(err)
	}
	g.step(s, 64, 130)
	g.step(child, 100, 130)
	if _, err := through.OpenSession(g.ctx, client.SessionOptions{Layers: layers}); err == nil || !strings.Contains(err.Error(), "coordinator "+c.Address()+" is unreachable") {
		t.Errorf("a session without a coordinator: %v", err)
	}
	c.restart(t)
	// A relay that knows nothing of the session asks the coordinator, which asks the workers.
	other, err := client.Dial(startRelay(t, c.Address(), "--listen", "127.0.0.1:0").Address)
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	receipt := s.Receipt()
	back, err := other.Attach(g.ctx, s.ID(), client.AttachOptions{Receipt: &receipt})
	if err != nil {
		t.Fatal(err)
	}
	g.step(back, 130, g.tokens)
	c.Kill(1)
	row := make([]float32, g.heads*g.dim)
	err = back.Step(g.ctx, 0, row, row[:g.kv*g.dim], row[:g.kv*g.dim], make([]float32, len(row)), make([]float32, g.heads))
	if err == nil || !strings.Contains(err.Error(), c.Name(1)) {
		t.Errorf("a step without worker %s: %v", c.Name(1), err)
	}
}
