//go:build linux

package e2e

import (
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
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
// sessions go on with the bits of the job.
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
}

// TestNoStepFailsWhileTheAuthorityIsReplaced steps sessions without a pause, by certificates and by a token, through the coordinator, a
// relay, and straight to the workers, while the authority and the key of gossip are replaced in three steps. No step fails, each
// context has the bits of the job, no process loses another, and at the end whoever has only the old certificate is refused.
func TestNoStepFailsWhileTheAuthorityIsReplaced(t *testing.T) {
	t.Parallel()
	folder := authority(t)
	file, trust := filepath.Join(t.TempDir(), "tenants.json"), t.TempDir()
	said := coord(t, "tenants", "add", "bob", "--file", file)
	said.succeeds(t)
	c := start(t, localcluster.Options{Workers: 2, Threads: 1, TLS: folder, CoordinatorArgs: append([]string{"--tenants", file}, admin...), WorkerArgs: admin})
	g, layers := generate(t, c)
	give := func(to string, files ...string) { // as one brings files to another machine
		t.Helper()
		for _, name := range files {
			b, err := os.ReadFile(filepath.Join(folder, "client-local", name))
			if err == nil {
				err = os.WriteFile(filepath.Join(to, name), b, 0o600)
			}
			if err != nil {
				t.Fatal(err)
			}
		}
	}
	give(trust, "ca.crt")
	bob, err := client.DialWith(c.Address(), client.DialOptions{TLSDir: trust, Token: strings.TrimSpace(said.out)})
	if err != nil {
		t.Fatal(err)
	}
	defer bob.Close()
	relayed, err := client.Dial(startRelay(t, c.Address(), "--tls-dir", filepath.Join(folder, "client-local"), "--listen", socket(t)).Address)
	if err != nil {
		t.Fatal(err)
	}
	defer relayed.Close()
	old := t.TempDir()
	give(old, "tls.crt", "tls.key")
	walking := map[string]*walker{
		"by a certificate through the coordinator": g.walks(c.Client, layers, false),
		"by a certificate to the workers":          g.walks(c.Client, layers, true),
		"by a certificate through a relay":         g.walks(relayed, layers, false),
		"by a token through the coordinator":       g.walks(bob, layers, false),
		"by a token to the workers":                g.walks(bob, layers, true),
	}
	members := boots(t, c)
	for round := range 3 {
		if round == 2 { // its capability is signed by a certificate of the old authority: the document says how long to wait
			walking["by a token to the workers"].ends(t)
			delete(walking, "by a token to the workers")
		}
		coord(t, "certs", "rotate", "--dir", folder).succeeds(t)
		give(trust, "ca.crt")
		awaitSaid(t, c, "certificates were read again", 3*(round+1))
		awaitSaid(t, c, "the keys of gossip were read again", 3*(round+1))
		for who, w := range walking {
			w.goesOn(t, fmt.Sprintf("%s, after step %d", who, round+1))
		}
	}
	for _, w := range walking {
		w.ends(t)
	}
	if now := boots(t, c); !maps.Equal(members, now) {
		t.Errorf("the members were %v, and are %v", members, now)
	}
	for i := -1; i < 2; i++ {
		metrics := scrape(t, c.Admin(i))
		for _, reason := range []string{"gossip_key", "gossip_plain"} {
			if n := metrics[fmt.Sprintf(`headwater_peers_refused_total{reason="%s"}`, reason)]; n != 0 {
				t.Errorf("process %d has refused %v messages as %s", i, n, reason)
			}
		}
	}
	give(old, "ca.crt")
	coord(t, "status", "--coordinator", c.Address(), "--tls-dir", old).fails(t, 4, "the certificate of client local is signed by")
}

// boots are the workers that the cluster has, each by what it drew at its start.
func boots(t *testing.T, c *cluster) map[string]string {
	t.Helper()
	status, err := c.Status(bounded(t))
	if err != nil {
		t.Fatal(err)
	}
	all := make(map[string]string)
	for _, w := range status.Workers {
		all[w.Name] = fmt.Sprintf("%x", w.Boot)
	}
	return all
}

// walker steps a session without a pause.
type walker struct {
	tokens atomic.Int64 // that were seen
	stop   atomic.Bool
	ended  chan struct{}
	err    error // of ended
}

// walks opens a session, and lets the fixture's tokens pass through it again and again.
func (g *generation) walks(through *client.Client, layers []client.Layer, direct bool) *walker {
	g.t.Helper()
	s, err := through.OpenSession(g.ctx, client.SessionOptions{Layers: layers, Direct: direct})
	if err != nil {
		g.t.Fatal(err)
	}
	w := &walker{ended: make(chan struct{})}
	go func() {
		defer close(w.ended)
		w.err = g.walk(s, w)
	}()
	g.t.Cleanup(func() {
		w.stop.Store(true)
		<-w.ended
	})
	return w
}

func (g *generation) walk(s *client.Session, w *walker) error {
	for !w.stop.Load() {
		if s.Len() == g.tokens {
			if err := s.Truncate(g.ctx, 1); err != nil {
				return err
			}
		}
		if err := g.see(s, s.Len(), s.Len()+1); err != nil {
			return err
		}
		w.tokens.Add(1)
	}
	return s.Close()
}

// goesOn waits until some more tokens have passed, of which the first may have begun before.
func (w *walker) goesOn(t *testing.T, when string) {
	t.Helper()
	const more = 10
	ctx, from := bounded(t), w.tokens.Load()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for w.tokens.Load() < from+more {
		select {
		case <-tick.C:
		case <-w.ended:
			t.Fatalf("%s: %v", when, w.err)
		case <-ctx.Done():
			t.Fatalf("%s: nothing is stepped any more", when)
		}
	}
}

// ends lets the walk end in good order.
func (w *walker) ends(t *testing.T) {
	t.Helper()
	w.stop.Store(true)
	<-w.ended
	if w.err != nil {
		t.Error(w.err)
	}
}

// awaitSaid waits until the processes have said something so often.
func awaitSaid(t *testing.T, c *cluster, what string, times int) {
	t.Helper()
	ctx := bounded(t)
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		c.logs.mu.Lock()
		n := strings.Count(c.logs.text.String(), what)
		c.logs.mu.Unlock()
		if n >= times {
			return
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			t.Fatalf("it is said %d times, not %d, that %s", n, times, what)
		}
	}
}

// neverSaid fails if the processes have said what.
func neverSaid(t *testing.T, c *cluster, what string) {
	t.Helper()
	c.logs.mu.Lock()
	defer c.logs.mu.Unlock()
	if said := c.logs.text.String(); strings.Contains(said, what) {
		t.Errorf("it is said that %s:\n%s", what, said)
	}
}
