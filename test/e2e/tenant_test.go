//go:build linux

package e2e

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"

	"headwater.example/client"
	"headwater.example/internal/localcluster"
)

// tenants starts a secured cluster, and connects as holders of certificates.
func tenants(t *testing.T, opts localcluster.Options, holders ...[2]string) (*cluster, map[string]*client.Client) {
	t.Helper()
	folder := authority(t)
	opts.TLS = folder
	c, as := start(t, opts), map[string]*client.Client{}
	c.tls = folder
	for _, h := range holders {
		coord(t, "certs", "issue", h[0], h[1], "--dir", folder).succeeds(t)
		one, err := client.DialWith(c.Address(), client.DialOptions{TLSDir: filepath.Join(folder, h[0]+"-"+h[1])})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = one.Close() }) // it may be closed already
		as[h[1]] = one
	}
	return c, as
}

// TestTenantsAreClosedToEachOther: whoever names another tenant's session or job gets the answer that one gets who names none. Lists
// have one's own, prefixes are not shared, nobody makes anything in another's name, and an admin sees all. The session that all this
// is done to goes on.
func TestTenantsAreClosedToEachOther(t *testing.T) {
	t.Parallel()
	c, as := tenants(t, localcluster.Options{Workers: 2, Threads: 1}, [2]string{"client", "ann"}, [2]string{"client", "bob"}, [2]string{"admin", "ops"})
	g, layers := generate(t, c)
	ann, bob, ops := as["ann"], as["bob"], as["ops"]
	for _, direct := range []bool{false, true} {
		s, err := ann.OpenSession(g.ctx, client.SessionOptions{Layers: layers, Direct: direct, Name: "hers"})
		if err != nil {
			t.Fatal(err)
		}
		g.step(s, 0, 3)
		own, err := bob.OpenSession(g.ctx, client.SessionOptions{Layers: layers, Direct: direct})
		if err != nil {
			t.Fatal(err)
		}
		for what, try := range trespasses(g, bob, direct) {
			hers, nobodys := try(s.ID()), try(client.SessionID{15: 9})
			if hers == nil || words(hers.Error()).without(s.ID()) != words(nobodys.Error()).without(client.SessionID{15: 9}) {
				t.Errorf("direct %v: %s a session of another tenant: %v; one that is not there: %v", direct, what, hers, nobodys)
			}
			if !errors.Is(hers, client.ErrNotFound) {
				t.Errorf("direct %v: %s a session of another tenant is not NOT_FOUND: %v", direct, what, hers)
			}
		}
		g.step(s, 3, 4)
		g.step(own, 0, 1)
		listed(t, g.ctx, ann, s.ID())
		listed(t, g.ctx, bob, own.ID())
		if all, err := ops.Sessions(g.ctx); err != nil || len(all.Sessions) != 2 {
			t.Errorf("an admin sees %d sessions, not 2: %v", len(all.Sessions), err)
		}
		if err := errors.Join(own.Drop(g.ctx), ops.DropSession(g.ctx, s.ID())); err != nil {
			t.Errorf("dropping them: %v", err)
		}
	}
	claims(t, g.ctx, ann, bob, ops, layers)
	tenantsJobs(t, g.ctx, c, ann, bob, ops)
	var refused *client.Error
	if err := bob.Rebalance(g.ctx, nil); !errors.As(err, &refused) || refused.Code != codes.PermissionDenied {
		t.Errorf("a client moves sessions about: %v", err)
	}
	if err := ops.Rebalance(g.ctx, nil); err != nil {
		t.Errorf("an admin may not: %v", err)
	}
}

// words are those of an error.
type words string

func (s words) without(id client.SessionID) string {
	return strings.ReplaceAll(string(s), id.String(), "ID")
}

// trespasses are the ways to ask for a session by its id.
func trespasses(g *generation, as *client.Client, direct bool) map[string]func(client.SessionID) error {
	return map[string]func(client.SessionID) error{
		"finding": func(id client.SessionID) error { _, err := as.FindSession(g.ctx, id); return err },
		"attaching to": func(id client.SessionID) error {
			_, err := as.Attach(g.ctx, id, client.AttachOptions{Direct: direct})
			return err
		},
		"dropping": func(id client.SessionID) error { return as.DropSession(g.ctx, id) },
		"copying": func(id client.SessionID) error {
			_, err := as.SnapshotSession(g.ctx, id, io.Discard, nil)
			return err
		},
	}
}

// listed checks that a client sees a session, and no other.
func listed(t *testing.T, ctx context.Context, as *client.Client, id client.SessionID) {
	t.Helper()
	all, err := as.Sessions(ctx)
	if err != nil || len(all.Sessions) != 1 || all.Sessions[0].ID != id {
		t.Errorf("a tenant sees %d sessions: %v", len(all.Sessions), err)
	}
	for _, cache := range all.Caches {
		if cache.PrefixHits != 0 || cache.PrefixAsked != 0 || cache.PrefixBytes != 0 {
			t.Errorf("worker %s tells a tenant how often prefixes were found", cache.Worker)
		}
	}
}

// claims opens sessions that say whose they are.
func claims(t *testing.T, ctx context.Context, ann, bob, ops *client.Client, layers []client.Layer) {
	t.Helper()
	tokens := make([]uint32, 200)
	first, err := ann.OpenSession(ctx, client.SessionOptions{Layers: layers, Tokens: tokens})
	if err != nil {
		t.Fatal(err)
	}
	defer first.Close()
	for _, k := range []struct {
		who     *client.Client
		says    string
		allowed bool
	}{{bob, "", true}, {bob, "bob", true}, {bob, "bob/evening", true}, {bob, "ann", false}, {bob, "ann/x", false}, {bob, "bobby", false}, {ops, "ann", true}} {
		s, err := k.who.OpenSession(ctx, client.SessionOptions{Layers: layers, Tenant: k.says, Tokens: tokens})
		var refused *client.SessionError
		switch {
		case k.allowed && err != nil:
			t.Errorf("tenant %q is refused: %v", k.says, err)
		case k.allowed:
			if err := s.Close(); err != nil {
				t.Error(err)
			}
		case err == nil || !errors.Is(err, client.ErrRefused) || errors.As(err, &refused) || !strings.Contains(err.Error(), "the caller is tenant \"bob\""):
			t.Errorf("claiming tenant %q: %v", k.says, err)
		}
	}
	var file bytes.Buffer
	if err := first.Snapshot(ctx, &file, nil); err != nil {
		t.Fatal(err)
	}
	hers := file.Bytes()
	if _, err := bob.RestoreSession(ctx, bytes.NewReader(hers), client.RestoreOptions{}); err == nil || !errors.Is(err, client.ErrRefused) {
		t.Errorf("a snapshot of another tenant is restored: %v", err)
	}
	back, err := ann.RestoreSession(ctx, bytes.NewReader(hers), client.RestoreOptions{})
	if err != nil {
		t.Fatalf("a snapshot is not restored for its tenant: %v", err)
	}
	if err := back.Close(); err != nil {
		t.Error(err)
	}
}

// tenantsJobs runs one file with one key as two tenants: these are two jobs, and neither sees the other's.
func tenantsJobs(t *testing.T, ctx context.Context, c *cluster, ann, bob, ops *client.Client) {
	t.Helper()
	jobs := map[*client.Client]*client.Job{}
	for _, as := range []*client.Client{ann, bob} {
		job, err := as.Submit(ctx, client.SubmitOptions{Path: fixtures + "attention.safetensors", Key: "k"})
		if err != nil {
			t.Fatal(err)
		}
		if jobs[as], err = as.Wait(ctx, job.ID, nil); err != nil {
			t.Fatal(err)
		}
	}
	hers, his := jobs[ann], jobs[bob]
	if hers.ID == his.ID || hers.ResultSHA256 != his.ResultSHA256 {
		t.Errorf("jobs of two tenants: %s and %s, with results %s and %s", hers.ID, his.ID, hers.ResultSHA256, his.ResultSHA256)
	}
	for what, try := range map[string]func(id string) error{
		"getting":     func(id string) error { _, err := bob.Get(ctx, id); return err },
		"watching":    func(id string) error { _, err := bob.Watch(ctx, id, nil); return err },
		"cancelling":  func(id string) error { _, err := bob.Cancel(ctx, id); return err },
		"deleting":    func(id string) error { _, err := bob.Delete(ctx, id); return err },
		"downloading": func(id string) error { _, err := bob.DownloadTo(ctx, id, io.Discard, nil); return err },
	} {
		other, none := try(hers.ID), try("local-00000000000000000000000000")
		if other == nil || strings.ReplaceAll(other.Error(), hers.ID, "ID") != strings.ReplaceAll(none.Error(), "local-00000000000000000000000000", "ID") || !errors.Is(other, client.ErrNotFound) {
			t.Errorf("%s a job of another tenant: %v; one that is not there: %v", what, other, none)
		}
	}
	for as, want := range map[*client.Client]int{ann: 1, bob: 1, ops: 3} { // generate ran one
		if all, err := as.List(ctx); err != nil || len(all) != want {
			t.Errorf("%d jobs are listed, not %d: %v", len(all), want, err)
		}
		status, err := as.Status(ctx)
		if err != nil || int(status.Jobs[client.JobSucceeded]) != want {
			t.Errorf("the status has %v, not %d that succeeded: %v", status.Jobs, want, err)
		}
	}
	if got, err := bob.Get(ctx, "k"); err != nil || got.ID != his.ID {
		t.Errorf("the key finds %v: %v", got, err)
	}
	if _, err := ops.Delete(ctx, hers.ID); err != nil {
		t.Errorf("an admin can't delete a job: %v", err)
	}
}

// TestATokenIsATenant: a client with a token and no certificate of its own uses the cluster as its tenant, by the command line and by
// the library, until the token is rotated. No process says a token.
func TestATokenIsATenant(t *testing.T) {
	t.Parallel()
	folder := t.TempDir()
	file := filepath.Join(folder, "tenants.json")
	add := func(name string, args ...string) (path, token string) {
		said := coord(t, append([]string{"tenants", "add", name, "--file", file}, args...)...)
		said.succeeds(t)
		path = filepath.Join(folder, name+".token")
		if err := os.WriteFile(path, []byte(said.out), 0o600); err != nil {
			t.Fatal(err)
		}
		return path, strings.TrimSpace(said.out)
	}
	annFile, annToken := add("ann")
	opsFile, opsToken := add("ops", "--admin")
	c, as := tenants(t, localcluster.Options{Workers: 1, Threads: 1, CoordinatorArgs: append([]string{"--tenants", file}, admin...)}, [2]string{"client", "bob"})
	trust, err := os.ReadFile(filepath.Join(c.tls, "ca.crt"))
	if err == nil {
		err = os.WriteFile(filepath.Join(folder, "ca.crt"), trust, 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
	ann, err := client.DialWith(c.Address(), client.DialOptions{TLSDir: folder, TokenFile: annFile})
	if err != nil {
		t.Fatal(err)
	}
	defer ann.Close()
	g, layers := generate(t, c)
	s, err := ann.OpenSession(g.ctx, client.SessionOptions{Layers: layers})
	if err != nil {
		t.Fatal(err)
	}
	g.step(s, 0, 5)
	if found, err := ann.FindSession(g.ctx, s.ID()); err != nil || found.Tenant != "ann" {
		t.Errorf("the session is %+v: %v", found, err)
	}
	if _, err := as["bob"].FindSession(g.ctx, s.ID()); !errors.Is(err, client.ErrNotFound) {
		t.Errorf("another tenant finds it: %v", err)
	}
	direct, err := ann.OpenSession(g.ctx, client.SessionOptions{Layers: layers, Direct: true})
	if err != nil {
		t.Fatal(err)
	}
	g.step(direct, 0, 5)
	if _, err := as["bob"].Attach(g.ctx, direct.ID(), client.AttachOptions{Direct: true}); !errors.Is(err, client.ErrNotFound) {
		t.Errorf("another tenant attaches to it: %v", err)
	}
	relay := startRelay(t, c.Address(), "--tls-dir", folder, "--token-file", annFile, "--listen", socket(t))
	relayed, err := client.Dial(relay.Address)
	if err != nil {
		t.Fatal(err)
	}
	defer relayed.Close()
	if s, err := relayed.OpenSession(g.ctx, client.SessionOptions{Layers: layers}); err != nil {
		t.Errorf("by a relay: %v", err)
	} else {
		g.step(s, 0, 3)
		if found, err := ann.FindSession(g.ctx, s.ID()); err != nil || found.Tenant != "ann" {
			t.Errorf("the session of a relay is %+v: %v", found, err)
		}
		if err := s.Drop(g.ctx); err != nil {
			t.Error(err)
		}
	}
	by := func(token string, args ...string) said {
		return coord(t, append(args, "--coordinator", c.Address(), "--tls-dir", folder, "--token-file", token)...)
	}
	for token, want := range map[string]bool{annFile: true, opsFile: true} {
		listed := by(token, "sessions", "list", "-o", "json")
		listed.succeeds(t)
		if strings.Contains(listed.out, s.ID().String()) != want {
			t.Errorf("the list is %s", listed.out)
		}
	}
	wrong := filepath.Join(folder, "wrong.token")
	if err := os.WriteFile(wrong, []byte("hwt_wrong"), 0o600); err != nil {
		t.Fatal(err)
	}
	by(wrong, "status").fails(t, 4, "its token is no tenant's")
	coord(t, "status", "--coordinator", c.Address(), "--token-file", annFile).fails(t, 2, "a token is sent by TLS alone")
	g.step(s, 5, 6)
	listed := coord(t, "tenants", "list", "--file", file, "-o", "json")
	listed.succeeds(t)
	coord(t, "tenants", "remove", "ann", "--file", file).succeeds(t)
	awaitSaid(t, c, "certificates were read again", 1)
	by(annFile, "status").fails(t, 4, "its token is no tenant's")
	g.step(direct, 5, 6) // until its capability ends
	by(opsFile, "sessions", "drop", direct.ID().String()).succeeds(t)
	by(opsFile, "sessions", "drop", s.ID().String()).succeeds(t)
	c.logs.mu.Lock()
	defer c.logs.mu.Unlock()
	metrics := fmt.Sprint(scrape(t, c.Admin(-1)))
	for _, secret := range []string{annToken, opsToken} {
		for where, text := range map[string]string{"log": c.logs.text.String(), "list": listed.out, "metrics": metrics} {
			if strings.Contains(text, secret) {
				t.Errorf("the %s has a token", where)
			}
		}
	}
}
