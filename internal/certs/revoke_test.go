package certs

import (
	"crypto/x509"
	"errors"
	"testing"
	"time"
)

// TestWhatIsRevokedIsRefused: all certificates that a holder had, also renewed ones, and no others. A new one is taken at once.
func TestWhatIsRevokedIsRefused(t *testing.T) {
	t.Parallel()
	d := newDay()
	a, _ := authority(t, d)
	ann, bob := issue(t, a, Client, "ann"), issue(t, a, Client, "bob")
	first, err := Read(ann)
	if err != nil {
		t.Fatal(err)
	}
	d.Time = d.Add(time.Hour)
	issue(t, a, Client, "ann")
	renewed, err := Read(ann)
	if err != nil {
		t.Fatal(err)
	}
	d.Time = d.Add(time.Hour + 300*time.Millisecond)
	if err := a.Revoke(Identity{Client, "ann"}); err != nil {
		t.Fatal(err)
	}
	server, err := Read(bob)
	if err != nil {
		t.Fatal(err)
	}
	for what, cert := range map[string]*x509.Certificate{"the first": first.Cert.Leaf, "the renewed one": renewed.Cert.Leaf} {
		var refusal *Error
		if _, err := server.Trust.Verify([]*x509.Certificate{cert}, d.now()); !errors.As(err, &refusal) || refusal.Reason != Revoked {
			t.Errorf("%s: %v", what, err)
		}
	}
	if err := server.Check(d.now()); err != nil {
		t.Errorf("another holder's: %v", err)
	}
	if _, err := Read(ann); err == nil {
		t.Error("the authority has the certificate still")
	}
	issue(t, a, Client, "ann")
	d.Time = d.Add(time.Second)
	anew, err := Read(ann)
	if err == nil {
		err = anew.Check(d.now())
	}
	if err != nil {
		t.Errorf("a new one: %v", err)
	}
	late, err := Read(issue(t, a, Worker, "w1"))
	if err != nil || len(late.Trust.revoked) != 1 {
		t.Errorf("a folder that was issued later does not know of it: %v", err)
	}
}

// FuzzRevoked: a file is read whole or refused.
func FuzzRevoked(f *testing.F) {
	f.Add("headwater://client/ann 2026-03-01T12:00:00Z")
	f.Fuzz(func(t *testing.T, text string) {
		all, err := parseRevoked([]byte(text))
		if err == nil && len(all) > len(text) {
			t.Fatal("there are more revocations than bytes")
		}
	})
}
