//go:build linux

package e2e

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"headwater.example/client"
	"headwater.example/internal/localcluster"
)

// admits asks an admin port by the certificate of a folder, "" is none, as a process of a role.
func admits(t *testing.T, folder, role, method, at, path string, headers ...string) (code int, body string, err error) {
	t.Helper()
	config := &tls.Config{MinVersion: tls.VersionTLS13, RootCAs: x509.NewCertPool(), ServerName: role + ".headwater.internal"}
	ca, err := os.ReadFile(filepath.Join(filepath.Dir(folder), "client-local", "ca.crt"))
	if err != nil || !config.RootCAs.AppendCertsFromPEM(ca) {
		t.Fatalf("the authority: %v", err)
	}
	if filepath.Base(folder) != "none" {
		pair, err := tls.LoadX509KeyPair(filepath.Join(folder, "tls.crt"), filepath.Join(folder, "tls.key"))
		if err != nil {
			t.Fatal(err)
		}
		config.Certificates = []tls.Certificate{pair}
	}
	transport := &http.Transport{TLSClientConfig: config}
	defer transport.CloseIdleConnections()
	r, err := http.NewRequestWithContext(bounded(t), method, "https://"+at+path, nil)
	if err != nil {
		t.Fatal(err)
	}
	for i := 0; i < len(headers); i += 2 {
		r.Header.Set(headers[i], headers[i+1])
	}
	answer, err := transport.RoundTrip(r)
	if err != nil {
		return 0, "", err
	}
	defer answer.Body.Close()
	text, err := io.ReadAll(answer.Body)
	return answer.StatusCode, string(text), err
}

// TestAdminPortLetsInByCertificate: with --admin-tls an admin sees all of the port, a monitor the metrics alone, and others are refused in
// the handshake and counted. What an admin ends from the dashboard is in the audit log.
func TestAdminPortLetsInByCertificate(t *testing.T) {
	t.Parallel()
	args := append([]string{"--admin-tls"}, admin...)
	c, as := tenants(t, localcluster.Options{Workers: 1, Threads: 1, CoordinatorArgs: args, WorkerArgs: args},
		[2]string{"client", "ann"}, [2]string{"admin", "ops"}, [2]string{"monitor", "prometheus"})
	g, layers := generate(t, c)
	s, err := as["ann"].OpenSession(g.ctx, client.SessionOptions{Layers: layers})
	if err != nil {
		t.Fatal(err)
	}
	for process, role := range map[int]string{-1: "coordinator", 0: "worker"} {
		at := c.Admin(process)
		board := http.StatusOK
		if process == 0 {
			board = http.StatusNotFound // of a coordinator alone
		}
		for _, k := range []struct {
			holder, path string
			code         int // 0 is refused in the handshake
		}{
			{"admin-ops", "/metrics", http.StatusOK},
			{"admin-ops", "/", board},
			{"admin-ops", "/debug/pprof/cmdline", http.StatusOK},
			{"monitor-prometheus", "/metrics", http.StatusOK},
			{"monitor-prometheus", "/", http.StatusForbidden},
			{"monitor-prometheus", "/debug/pprof/cmdline", http.StatusForbidden},
			{"client-ann", "/metrics", 0},
			{"worker-any", "/metrics", 0},
			{"none", "/metrics", 0},
		} {
			code, _, err := admits(t, filepath.Join(c.tls, k.holder), role, http.MethodGet, at, k.path)
			if code != k.code || (err == nil) != (k.code > 0) {
				t.Errorf("%s of a %s for %s: %d, %v; want %d", k.path, role, k.holder, code, err, k.code)
			}
		}
		_, metrics, err := admits(t, filepath.Join(c.tls, "monitor-prometheus"), role, http.MethodGet, at, "/metrics")
		if err != nil {
			t.Fatal(err)
		}
		for reason, n := range map[string]int{"wrong_role": 2, "no_certificate": 1} {
			if want := fmt.Sprintf("headwater_peers_refused_total{reason=%q} %d\n", reason, n); !strings.Contains(metrics, want) {
				t.Errorf("the metrics of the %s lack %s", role, want)
			}
		}
	}
	ops := filepath.Join(c.tls, "admin-ops")
	_, text, err := admits(t, ops, "coordinator", http.MethodGet, c.Admin(-1), "/me")
	var me struct{ Name, Token string }
	if err == nil {
		err = json.Unmarshal([]byte(text), &me)
	}
	if err != nil || me.Name != "admin ops" {
		t.Fatalf("the dashboard takes ops for %q: %v", text, err)
	}
	code, text, err := admits(t, ops, "coordinator", http.MethodPost, c.Admin(-1), "/session/drop?id="+s.ID().String(), "X-Headwater-Token", me.Token)
	if err != nil || code != http.StatusNoContent {
		t.Errorf("a session is dropped with %d %s: %v", code, text, err)
	}
	said := func() string {
		c.logs.mu.Lock()
		defer c.logs.mu.Unlock()
		return c.logs.text.String()
	}
	for !strings.Contains(said(), "a user of the dashboard ends a job or session") { // which is read from the process a moment later
		select {
		case <-time.After(20 * time.Millisecond):
		case <-g.ctx.Done():
			t.Fatalf("nothing is said of session %s", s.ID())
		}
	}
	_, line, _ := strings.Cut(said(), "a user of the dashboard ends a job or session")
	if line, _, _ = strings.Cut(line, "\n"); !strings.Contains(line, "audit=true") || !strings.Contains(line, "admin ops") || !strings.Contains(line, s.ID().String()) {
		t.Errorf("the audit log says of session %s:%s", s.ID(), line)
	}
	coord(t, "serve", "--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0", "--admin-tls", "--data-dir", t.TempDir()).fails(t, 2, "--admin-tls: the process has no certificate")
}
