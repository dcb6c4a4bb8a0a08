//go:build linux

package e2e

import (
	"errors"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"headwater.example/client"
	"headwater.example/internal/localcluster"
)

// TestATenantHasWhatItMay: a tenant that has as much as it may is refused more of it, relayed and direct, by an error that says so and
// passes, while another tenant goes on. What was refused succeeds once there is room, with the same bits.
func TestATenantHasWhatItMay(t *testing.T) {
	t.Parallel()
	file := filepath.Join(t.TempDir(), "tenants.json")
	limit := func(args ...string) {
		t.Helper()
		coord(t, append([]string{"tenants", "limit", "ann", "--file", file}, args...)...).succeeds(t)
	}
	limit("--sessions", "3")
	c, as := tenants(t, localcluster.Options{Workers: 2, Threads: 1, CoordinatorArgs: append([]string{"--tenants", file}, admin...)},
		[2]string{"client", "ann"}, [2]string{"client", "bob"}, [2]string{"admin", "ops"})
	ann, bob, ops := as["ann"], as["bob"], as["ops"]
	g, layers := generate(t, c)
	told := func(is func(client.TenantStatus) bool) { // nothing tells when the file was read, or when the workers heard of it
		t.Helper()
		for {
			status, err := ann.Status(g.ctx)
			if err != nil {
				t.Fatal(err)
			}
			if len(status.Tenants) == 1 && status.Tenants[0].Tenant == "ann" && is(status.Tenants[0]) {
				return
			}
			select {
			case <-time.After(20 * time.Millisecond):
			case <-g.ctx.Done():
				t.Fatalf("the coordinator says %+v", status.Tenants)
			}
		}
	}
	over := func(what, kind string, most float64, err error) {
		t.Helper()
		var refused *client.SessionError
		if !errors.Is(err, client.ErrOverQuota) || !errors.Is(err, client.ErrTryAgain) || !errors.Is(err, client.ErrOverBudget) || !errors.As(err, &refused) {
			t.Fatalf("%s: %v", what, err)
		}
		if q := refused.Quota; q.Tenant != "ann" || q.Kind != kind || q.Limit != most || q.RetryAfter <= 0 || !strings.Contains(err.Error(), "tenant ann") {
			t.Errorf("%s is refused by %+v: %v", what, q, err)
		}
	}
	open := func(as *client.Client, direct bool) (*client.Session, error) {
		return as.OpenSession(g.ctx, client.SessionOptions{Layers: layers, Direct: direct})
	}
	told(func(s client.TenantStatus) bool { return s.Limit.Sessions == 3 })
	var hers []*client.Session
	for _, direct := range []bool{false, true, true} {
		s, err := open(ann, direct)
		if err != nil {
			t.Fatal(err)
		}
		hers = append(hers, s)
		g.step(s, 0, 2)
	}
	told(func(s client.TenantStatus) bool { return s.Used.Sessions == 3 }) // the workers have said so, and heard what she may have
	for _, direct := range []bool{false, true} {
		_, err := open(ann, direct)
		over("a fourth session", "sessions", 3, err)
	}
	_, err := hers[1].Fork(g.ctx)
	over("a fork", "sessions", 3, err)
	his, err := open(bob, false)
	if err != nil {
		t.Fatalf("another tenant: %v", err)
	}
	if err := hers[0].Drop(g.ctx); err != nil {
		t.Fatal(err)
	}
	if hers[0], err = open(ann, false); err != nil {
		t.Fatalf("once one has ended: %v", err)
	}

	step := func(s *client.Session, from, to int) error {
		q, kv := g.heads*g.dim, g.kv*g.dim
		for i, l := range g.layers {
			context, lse := make([]float32, (to-from)*q), make([]float32, (to-from)*g.heads)
			if err := s.Step(g.ctx, i, l.q[from*q:to*q], l.k[from*kv:to*kv], l.v[from*kv:to*kv], context, lse); err != nil {
				return err
			}
		}
		return nil
	}
	limit("--bytes", "1")
	told(func(s client.TenantStatus) bool { return s.Limit.Bytes == 1 })
	over("a session's first page", "bytes", 1, step(hers[0], 0, 2))
	if err := step(his, 0, 2); err != nil {
		t.Errorf("another tenant: %v", err)
	}
	g.step(hers[1], 2, 3) // its page is there
	limit("--bytes", "1GiB")
	told(func(s client.TenantStatus) bool { return s.Limit.Bytes == 1<<30 })
	g.step(hers[0], 0, 2)

	limit("--steps", "4")
	told(func(s client.TenantStatus) bool { return s.Limit.StepsPerSecond == 4 })
	for err = nil; err == nil; {
		err = step(hers[1], 3, 4)
		if err == nil {
			err = hers[1].Truncate(g.ctx, 3)
		}
	}
	over("more steps than it may make", "steps_per_second", 4, err)
	if err := step(his, 2, 4); err != nil {
		t.Errorf("another tenant: %v", err)
	}
	shown := coord(t, "status", "--coordinator", c.Address(), "--tls-dir", filepath.Join(c.tls, "client-ann"))
	shown.succeeds(t)
	if !strings.Contains(shown.out, "tenants that have limits") || !strings.Contains(shown.out, "ann") {
		t.Errorf("the status is %s", shown.out)
	}
	if status, err := bob.Status(g.ctx); err != nil || len(status.Tenants) != 0 {
		t.Errorf("another tenant is told %+v: %v", status.Tenants, err)
	}
	if status, err := ops.Status(g.ctx); err != nil || len(status.Tenants) != 1 || status.Tenants[0].Used.Sessions < 2.9 {
		t.Errorf("an admin is told %+v: %v", status.Tenants, err)
	}
	limit()
	told(func(s client.TenantStatus) bool { return s.Limit == client.TenantAmounts{} })
	g.step(hers[2], 2, 5)
}
