//go:build linux

package e2e

import (
	"errors"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"headwater.example/client"
	"headwater.example/internal/localcluster"
)

// TestIdleConnectionsLockNobodyOut: processes that may have 64 files open serve an ordinary client, relayed and direct, however many
// connections to them stay idle, with and without a call before, and say in their logs what they closed.
func TestIdleConnectionsLockNobodyOut(t *testing.T) {
	t.Parallel()
	script := filepath.Join(t.TempDir(), "few-files")
	if err := os.WriteFile(script, []byte("#!/bin/sh\nulimit -n 64\nexec "+program+" \"$@\"\n"), 0o700); err != nil {
		t.Fatal(err)
	}
	c := startAs(t, localcluster.Options{Workers: 1}, script)
	status, err := c.Status(bounded(t))
	if err != nil {
		t.Fatal(err)
	}
	for range 100 {
		for _, address := range []string{c.Address(), status.Workers[0].Address} {
			if conn, err := net.Dial("tcp", address); err == nil {
				defer conn.Close()
			}
		}
	}
	var clients []*client.Client
	defer func() {
		for _, one := range clients {
			one.Close()
		}
	}()
	// step opens a session and drops it. The client, and so its lane, stays open.
	step := func(direct bool) error {
		one, err := client.Dial(c.Address())
		if err != nil {
			t.Fatal(err)
		}
		clients = append(clients, one)
		s, err := one.OpenSession(bounded(t), client.SessionOptions{Layers: []client.Layer{{Heads: 2, HeadDim: 4}}, Direct: direct})
		if err != nil {
			return err
		}
		x := make([]float32, 8)
		return errors.Join(s.Step(bounded(t), 0, x, x, x, make([]float32, 8), nil), s.Drop(bounded(t)))
	}
	for i := range 80 {
		one, err := client.Dial(c.Address())
		if err != nil {
			t.Fatal(err)
		}
		clients = append(clients, one)
		if _, err := one.Status(bounded(t)); err != nil {
			t.Fatalf("client %d: %v", i, err)
		}
	}
	says := func(line string) bool {
		c.logs.mu.Lock()
		defer c.logs.mu.Unlock()
		return strings.Contains(c.logs.text.String(), line)
	}
	// served steps until it is served: on a busy machine others may come before the first call of a connection, which is then idle.
	served := func(direct bool) error {
		last := bounded(t)
		err := step(direct)
		for (errors.Is(err, client.ErrTryAgain) || errors.Is(err, client.ErrUnreachable)) && last.Err() == nil {
			err = step(direct)
		}
		return err
	}
	for _, direct := range []bool{false, true} {
		if err := served(direct); err != nil {
			t.Errorf("direct %v: %v", direct, err)
		}
	}
	// Where all connections have calls, here lanes, a further one is refused as one to try again, and served once others have ended.
	const full = "connections are refused: all that are allowed have calls"
	var tooMany error
	for i := 0; i < 160 && !says(full); i++ {
		tooMany = step(true)
	}
	if !errors.Is(tooMany, client.ErrTryAgain) {
		t.Errorf("a lane too many: %v", tooMany)
	}
	for _, one := range clients {
		if err := one.Close(); err != nil {
			t.Error(err)
		}
	}
	clients = nil
	if err := served(true); err != nil { // the worker hears of their ends one after the other
		t.Errorf("after all others have ended: %v", err)
	}
	for _, line := range []string{"idle connection closed: there are as many as are allowed", full} {
		if !says(line) {
			t.Errorf("no log says %q", line)
		}
	}
}

// TestADetachedJobUnderAKey: whoever does not wait hears of a failure that the same content has again, and has a job run anew whose
// failure the content did not cause.
func TestADetachedJobUnderAKey(t *testing.T) {
	t.Parallel()
	c := start(t, localcluster.Options{Workers: 1, CoordinatorArgs: slowly})
	bad := filepath.Join(t.TempDir(), "bad.safetensors")
	content := encode("{}", sound(entry{"q", "F32", []int{4, 4, 8}, f32(128, 0, 3e38)}, entry{"k", "F32", []int{6, 2, 8}, f32(96, 0, 3e38)})...)
	if err := os.WriteFile(bad, content, 0o600); err != nil {
		t.Fatal(err)
	}
	detach := func(path, key string) said {
		return coord(t, "submit", path, "--detach", "--key", key, "--coordinator", c.Address(), "--quiet")
	}
	detach(bad, "bad").succeeds(t)
	if job, err := c.Wait(bounded(t), "bad", nil); err == nil {
		t.Fatalf("a job whose scores overflow ended as %v", job)
	}
	detach(bad, "bad").fails(t, 4, "failed", "head 0")

	path, want := undisturbed(t)
	detach(path, "long").succeeds(t)
	c.until(t, "long", running)
	coord(t, "jobs", "cancel", "long", "--coordinator", c.Address()).succeeds(t)
	detach(path, "long").succeeds(t)
	c.wait(t, "long")
	same(t, "run anew", want, c.fetch(t, "long"))
}
