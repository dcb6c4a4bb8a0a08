//go:build linux

package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"headwater.example/client"
	"headwater.example/internal/localcluster"
)

// authority makes a cluster's authority and the certificates that localcluster takes, and returns its folder.
func authority(t *testing.T) string {
	t.Helper()
	folder := filepath.Join(t.TempDir(), "certs")
	for _, args := range [][]string{{"init"}, {"issue", "coordinator", "local"}, {"issue", "worker", "*"}, {"issue", "client", "local"}} {
		coord(t, append(append([]string{"certs"}, args...), "--dir", folder)...).succeeds(t)
	}
	return folder
}

// TestASecuredClusterIsClosedToStrangers runs a job and sessions on a cluster with certificates, relayed and direct, while programs
// without one, with one of another authority, and with one of another role ask it. Each is refused in words and counted, and the
// sessions go on with the bits of the job. Then the authority is replaced under them.
func TestASecuredClusterIsClosedToStrangers(t *testing.T) {
	t.Parallel()
	folder := authority(t)
	c := start(t, localcluster.Options{Workers: 2, Threads: 1, TLS: folder, CoordinatorArgs: admin, WorkerArgs: admin})
	g, layers := generate(t, c)
	var sessions []*client.Session
	for _, direct := range []bool{false, true} {
		s, err := c.OpenSession(g.ctx, client.SessionOptions{Layers: layers, Direct: direct})
		if err != nil {
			t.Fatal(err)
		}
		g.step(s, 0, 3)
		sessions = append(sessions, s)
	}
	foreign := authority(t)
	mixed := t.TempDir() // knows the cluster's authority, and has a certificate of another one
	for file, from := range map[string]string{"ca.crt": folder, "tls.crt": foreign, "tls.key": foreign} {
		b, err := os.ReadFile(filepath.Join(from, "client-local", file))
		if err == nil {
			err = os.WriteFile(filepath.Join(mixed, file), b, 0o600)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	metrics := func(reason string) float64 {
		return scrape(t, c.Admin(-1))[fmt.Sprintf(`headwater_peers_refused_total{reason="%s"}`, reason)]
	}
	position := 3
	for _, k := range []struct {
		who, dir, reason string
		says             string
	}{
		{"plain text", "", "plain_text", "it speaks no TLS: give it a certificate by --tls-dir"},
		{"a foreign authority", mixed, "unknown_authority", "the certificate of client local is signed by"},
		{"a client that knows another authority", filepath.Join(foreign, "client-local"), "handshake", "coordinator local is signed by"},
		{"a worker", filepath.Join(folder, "worker-any"), "wrong_role", "CoordinatorService of a coordinator is for clients, relays, coordinators, admins, and the caller's certificate is that of a worker"},
	} {
		before := metrics(k.reason)
		args := []string{"status", "--coordinator", c.Address()}
		if k.dir != "" {
			args = append(args, "--tls-dir", k.dir)
		}
		coord(t, args...).fails(t, 4, k.says)
		if after := metrics(k.reason); after <= before {
			t.Errorf("%s is not counted as %s: %v, then %v", k.who, k.reason, before, after)
		}
		for _, s := range sessions {
			g.step(s, position, position+1)
		}
		position++
	}
	if expires := scrape(t, c.Admin(-1))["headwater_certificate_expires_timestamp_seconds"]; expires < float64(time.Now().Add(364*24*time.Hour).Unix()) {
		t.Errorf("the certificate expires at %v", expires)
	}
	for round := range 3 {
		coord(t, "certs", "rotate", "--dir", folder).succeeds(t)
		awaitReading(t, c, 3*(round+1))
		for _, s := range sessions {
			g.step(s, position, position+1)
		}
		position++
	}
}

// awaitReading waits until the processes have said so often that they read their certificates again.
func awaitReading(t *testing.T, c *cluster, times int) {
	t.Helper()
	ctx := bounded(t)
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		c.logs.mu.Lock()
		n := strings.Count(c.logs.text.String(), "certificates were read again")
		c.logs.mu.Unlock()
		if n >= times {
			return
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			t.Fatalf("certificates were read again %d times, not %d", n, times)
		}
	}
}
