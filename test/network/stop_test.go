//go:build linux

package network

import (
	"context"
	"errors"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"headwater.example/client"
	"headwater.example/internal/testkit/await"
)

// left are the folders of local clusters in a temporary folder.
func left(t *testing.T, temporary string) []string {
	t.Helper()
	found, err := filepath.Glob(filepath.Join(temporary, "headwater-local-*"))
	if err != nil {
		t.Fatal(err)
	}
	return found
}

func TestALocalClusterLeavesNothingOnAnyEnd(t *testing.T) {
	// start starts a local cluster whose temporary folder is there.
	start := func(t *testing.T, temporary string) *process {
		t.Helper()
		m := &machine{env: []string{"TMPDIR=" + temporary}}
		p := m.serve(t, "coord", "local", "--workers", "1", "--memory", "64MiB")
		late := time.After(patience)
		for !strings.Contains(p.log.String(), "Ctrl-C ends them") {
			select {
			case <-p.log.more:
			case <-p.done:
				t.Fatalf("it ended: %v", p.err)
			case <-late:
				t.Fatal("it does not say that it is there")
			}
		}
		if len(left(t, temporary)) != 1 {
			t.Fatalf("its folder is not there: %v", left(t, temporary))
		}
		return p
	}
	for _, signal := range []syscall.Signal{syscall.SIGHUP, syscall.SIGTERM, syscall.SIGINT} {
		t.Run(signal.String(), func(t *testing.T) {
			t.Parallel()
			temporary := t.TempDir()
			if err := start(t, temporary).end(t, signal); err != nil {
				t.Errorf("it ended with %v", err)
			}
			if found := left(t, temporary); len(found) > 0 {
				t.Errorf("it left %v", found)
			}
		})
	}
	t.Run("a second signal", func(t *testing.T) {
		t.Parallel()
		temporary := t.TempDir()
		p := start(t, temporary)
		for range 2 {
			if err := p.cmd.Process.Signal(syscall.SIGINT); err != nil {
				break // it was quick
			}
		}
		_ = p.wait(t) // it was killed, or ends by a signal
		if found := left(t, temporary); len(found) > 0 {
			t.Errorf("it left %v", found)
		}
	})
	t.Run("kill -9, and the next start", func(t *testing.T) {
		t.Parallel()
		temporary := t.TempDir()
		p := start(t, temporary)
		if err := p.cmd.Process.Kill(); err != nil {
			t.Fatal(err)
		}
		_ = p.wait(t) // it was killed, or ends by a signal
		if err := start(t, temporary).end(t, syscall.SIGTERM); err != nil {
			t.Error(err)
		}
		if found := left(t, temporary); len(found) > 0 {
			t.Errorf("it left %v", found)
		}
	})
	t.Run("a reader that is gone", func(t *testing.T) {
		t.Parallel()
		temporary := t.TempDir()
		m := &machine{env: []string{"TMPDIR=" + temporary}}
		read, write, err := os.Pipe()
		if err != nil {
			t.Fatal(err)
		}
		_ = read.Close() // nobody reads
		ctx, cancel := context.WithTimeout(t.Context(), patience)
		defer cancel()
		cmd := m.command(ctx, t, "coord", "submit", "../data/smollm2/attention.safetensors", "--local", "1", "--out", filepath.Join(temporary, "result.safetensors"))
		cmd.Stdout = write
		if err := cmd.Run(); err == nil {
			t.Error("a command whose output nobody reads succeeded")
		}
		_ = write.Close() // it was the child's
		if found := left(t, temporary); len(found) > 0 {
			t.Errorf("it left %v", found)
		}
	})
}

// TestAStopEndsWhoeverIsConnected: peers that say nothing, that say half of what they should, and that go on stepping.
// The stop took as long as the slowest of them, which is two minutes for a peer that says nothing.
func TestAStopEndsWhoeverIsConnected(t *testing.T) {
	t.Parallel()
	m, data := &machine{}, t.TempDir()
	serving := func(p *process) string { return p.await(t, "serving")["address"].(string) }
	worker := m.serve(t, "worker", append([]string{"serve", "--name", "w1", "--gossip", "", "--listen", "127.0.0.1:0"}, small...)...)
	at := serving(worker)
	coordinator := m.serve(t, "coord", "serve", "--data-dir", data, "--gossip", "", "--listen", "127.0.0.1:0", "--workers", "w1="+at)
	front := serving(coordinator)
	m.awaitWorkers(t, front, 1)
	relay := m.serve(t, "coord", "relay", "--coordinator", front)
	between := serving(relay)
	for _, address := range []string{at, front, between} {
		for i := range 10 {
			conn, err := net.Dial("tcp", address)
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			if i%2 == 0 { // half a preface
				if _, err := conn.Write([]byte("PRI * HTTP/2.0\r\n")); err != nil {
					t.Fatal(err)
				}
			}
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var steppers sync.WaitGroup
	defer steppers.Wait()
	defer cancel()
	stepped := make(chan struct{}, 20)
	for i := range 10 {
		steppers.Go(func() { step(ctx, t, front, i%2 == 0, stepped) })
	}
	for range 10 {
		await.One(t, stepped, "the first step of each session")
	}
	for _, p := range []*process{coordinator, worker, relay} {
		if err := p.cmd.Process.Signal(syscall.SIGTERM); err != nil {
			t.Fatal(err)
		}
	}
	for _, p := range []*process{coordinator, worker, relay} {
		if err := p.wait(t); err != nil {
			t.Errorf("it ended with %v", err)
		}
	}
}

// step steps a session until that fails, and tells of its first step.
func step(ctx context.Context, t *testing.T, front string, direct bool, stepped chan<- struct{}) {
	told := sync.OnceFunc(func() { stepped <- struct{}{} })
	defer told()
	c, err := client.Dial(front)
	if err != nil {
		t.Error(err)
		return
	}
	defer c.Close()
	s, err := c.OpenSession(ctx, client.SessionOptions{Layers: []client.Layer{{Heads: 2, KVHeads: 2, HeadDim: 8}}, Direct: direct})
	if err != nil {
		t.Error(err)
		return
	}
	row, context, lse := make([]float32, 16), make([]float32, 16), make([]float32, 2)
	for s.Step(ctx, 0, row, row, row, context, lse) == nil {
		told()
	}
}

// TestAHungWorkerIsLostInBoundedTimeAndOwnWords: its process is stopped, so that its connections stay open and it says
// nothing. A step on it took up to 35 s and failed in gRPC's words.
func TestAHungWorkerIsLostInBoundedTimeAndOwnWords(t *testing.T) {
	t.Parallel()
	m := &machine{}
	worker := m.serve(t, "worker", append([]string{"serve", "--name", "w1", "--gossip", "", "--listen", "127.0.0.1:0"}, small...)...)
	at := worker.await(t, "serving")["address"].(string)
	coordinator := m.serve(t, "coord", "serve", "--data-dir", t.TempDir(), "--gossip", "", "--listen", "127.0.0.1:0", "--workers", "w1="+at)
	c, err := client.Dial(coordinator.await(t, "serving")["address"].(string))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	row, result, lse := make([]float32, 16), make([]float32, 16), make([]float32, 2)
	sessions := map[string]*client.Session{}
	for name, direct := range map[string]bool{"direct": true, "relayed": false} {
		s, err := c.OpenSession(t.Context(), client.SessionOptions{Layers: []client.Layer{{Heads: 2, KVHeads: 2, HeadDim: 8}}, Direct: direct})
		if err != nil {
			t.Fatal(err)
		}
		if err := s.Step(t.Context(), 0, row, row, row, result, lse); err != nil {
			t.Fatal(err)
		}
		sessions[name] = s
	}
	// All threads stand still only some time after the signal is sent: until then the worker may answer.
	if err := worker.cmd.Process.Signal(syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	if err := unix.Waitid(unix.P_PID, worker.cmd.Process.Pid, nil, unix.WSTOPPED|unix.WNOWAIT, nil); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	var steps sync.WaitGroup
	for name, s := range sessions {
		steps.Go(func() {
			row, result, lse := make([]float32, 16), make([]float32, 16), make([]float32, 2)
			err := s.Step(ctx, 0, row, row, row, result, lse)
			if !errors.Is(err, client.ErrLost) || !strings.Contains(err.Error(), "it hangs") {
				t.Errorf("%s: %v", name, err)
			}
			for _, foreign := range []string{"preface", "keepalive", "transport:", "grpc"} {
				if err != nil && strings.Contains(err.Error(), foreign) {
					t.Errorf("%s, in gRPC's words: %v", name, err)
				}
			}
		})
	}
	steps.Wait()
}
