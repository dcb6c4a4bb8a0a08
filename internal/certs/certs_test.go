package certs

import (
	"bytes"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// day is a clock that stands still unless it is moved.
type day struct{ time.Time }

func (d *day) now() time.Time { return d.Time }

func newDay() *day { return &day{time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)} }

func authority(t *testing.T, d *day) (*Authority, string) {
	t.Helper()
	folder := filepath.Join(t.TempDir(), "certs")
	a, err := Init(folder, AuthorityLife, d.now)
	if err != nil {
		t.Fatal(err)
	}
	return a, folder
}

func issue(t *testing.T, a *Authority, role Role, name string) string {
	t.Helper()
	id := Identity{role, name}
	if _, err := a.Issue(id, a.FolderOf(id), CertificateLife); err != nil {
		t.Fatal(err)
	}
	return a.FolderOf(id)
}

func read(t *testing.T, folder string) *Own {
	t.Helper()
	own, err := Read(folder)
	if err != nil {
		t.Fatal(err)
	}
	return own
}

// shown is the chain that a process shows its peers.
func shown(t *testing.T, own *Own) []*x509.Certificate {
	t.Helper()
	chain, err := own.chain()
	if err != nil {
		t.Fatal(err)
	}
	return chain
}

// refused demands that a chain is refused for a reason.
func refused(t *testing.T, trust *Trust, chain []*x509.Certificate, now time.Time, reason Reason, says string) {
	t.Helper()
	h, err := trust.Verify(chain, now)
	var e *Error
	if !errors.As(err, &e) || e.Reason != reason || !strings.Contains(e.Why, says) {
		t.Errorf("it is %v, %v; want it refused as %s, saying %q", h, err, reason, says)
	}
}

func TestACertificateSaysWhoHoldsIt(t *testing.T) {
	d := newDay()
	a, _ := authority(t, d)
	coordinator := read(t, issue(t, a, Coordinator, "c1"))
	workers := read(t, issue(t, a, Worker, "headwater-worker-*"))
	for _, own := range []*Own{coordinator, workers} {
		if err := own.Check(d.now()); err != nil {
			t.Error(err)
		}
	}
	h, err := coordinator.Trust.Verify(shown(t, workers), d.now())
	if err != nil || h.Role != Worker || !h.Is("headwater-worker-12") || h.Is("headwater-coordinator-0") || h.Is("headwater-worker") {
		t.Errorf("the workers are %v, %v", h, err)
	}
	if h := coordinator.Holder; !h.Is("c1") || h.Is("c12") || h.Is("c") || h.Is("") {
		t.Errorf("the coordinator is %v", h)
	}
}

func TestWhatIsWrongIsSaid(t *testing.T) {
	d := newDay()
	a, _ := authority(t, d)
	other, _ := authority(t, d)
	trust := read(t, issue(t, a, Coordinator, "c1")).Trust
	ann := shown(t, read(t, issue(t, a, Client, "ann")))
	refused(t, trust, nil, d.now(), NoCertificate, "no certificate was shown")
	refused(t, trust, shown(t, read(t, issue(t, other, Client, "ann"))), d.now(), UnknownAuthority, `client ann is signed by "Headwater authority 2026-03-01 `)
	refused(t, trust, ann, d.now().Add(CertificateLife+time.Second), Expired, "client ann expired at 2027-03-01 12:00:00Z, and here it is 2027-03-01 12:00:01Z")
	refused(t, trust, ann, d.now().Add(-time.Hour), Expired, "a clock is wrong")
	if _, err := trust.Verify(ann, d.now().Add(-Skew)); err != nil {
		t.Errorf("clocks may be %v apart: %v", Skew, err)
	}
	// Signed by the authority, and of nobody: the authority itself.
	refused(t, trust, []*x509.Certificate{a.current.cert}, d.now(), BadCertificate, "says of nobody who it is")
}

func TestNamesThatNobodyHasAreNotIssued(t *testing.T) {
	a, _ := authority(t, newDay())
	for _, id := range []Identity{{"king", "a"}, {Worker, ""}, {Worker, "a/b"}, {Worker, "a*b"}, {Worker, "../b"}, {Worker, strings.Repeat("a", MaxName+1)}, {Client, "ann*"}, {Client, "*"}} {
		if _, err := a.Issue(id, t.TempDir(), time.Hour); err == nil {
			t.Errorf("%v was issued", id)
		}
	}
}

func TestSecretsAreTheOwnersAlone(t *testing.T) {
	a, folder := authority(t, newDay())
	worker := issue(t, a, Worker, "w1")
	for _, path := range []string{filepath.Join(folder, currentFile), filepath.Join(worker, KeyFile), filepath.Join(worker, GossipFile)} {
		if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("%s: %v, %v", path, info.Mode(), err)
		}
	}
	if _, err := os.Stat(filepath.Join(issue(t, a, Client, "ann"), GossipFile)); err == nil {
		t.Error("a client has the key of gossip")
	}
	if _, err := Init(folder, AuthorityLife, time.Now); err == nil {
		t.Error("a second authority was made in place of the first")
	}
}

func TestAFolderIsReadWholeOrNotAtAll(t *testing.T) {
	a, _ := authority(t, newDay())
	good := issue(t, a, Worker, "w1")
	another := issue(t, a, Worker, "w2")
	for file, c := range map[string]struct{ content, says string }{
		TrustFile: {"", "there is no certificate in it"},
		CertFile:  {"nonsense", "failed to find any PEM data"},
		KeyFile:   {string(must(os.ReadFile(filepath.Join(another, KeyFile)))), "the key does not belong to the certificate"},
	} {
		folder := t.TempDir()
		for _, f := range []string{TrustFile, CertFile, KeyFile} {
			content := must(os.ReadFile(filepath.Join(good, f)))
			if f == file {
				content = []byte(c.content)
			}
			if err := os.WriteFile(filepath.Join(folder, f), content, 0o600); err != nil {
				t.Fatal(err)
			}
		}
		if _, err := Read(folder); err == nil || !strings.Contains(err.Error(), c.says) || !strings.Contains(err.Error(), file) {
			t.Errorf("%s: %v", file, err)
		}
		if err := os.Remove(filepath.Join(folder, file)); err != nil {
			t.Fatal(err)
		}
		if _, err := Read(folder); err == nil || !strings.Contains(err.Error(), file+" is not there") {
			t.Errorf("without %s: %v", file, err)
		}
	}
}

func must(b []byte, err error) []byte {
	if err != nil {
		panic(err)
	}
	return b
}

func TestKeysOfGossipAreReadAndNotTold(t *testing.T) {
	a, _ := authority(t, newDay())
	path := filepath.Join(issue(t, a, Worker, "w1"), GossipFile)
	keys, err := ReadGossipKeys(path)
	if err != nil || len(keys) != 1 || !bytes.Equal(keys[0], a.current.gossip) {
		t.Fatalf("%d keys, %v", len(keys), err)
	}
	for content, says := range map[string]string{"": "no key", "# none\n": "no key", "c2VjcmV0\n": ":1 is not the base64 of 32 bytes", "#\nsecret!\n": ":2 is not"} {
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := ReadGossipKeys(path); err == nil || !strings.Contains(err.Error(), says) || strings.Contains(err.Error(), "c2Vj") || strings.Contains(err.Error(), "secret!") {
			t.Errorf("%q: %v", content, err)
		}
	}
}

// TestTheOldAndTheNewOverlap rotates, and at each step holds every folder that a process may have then against every other:
// what was given out at the step before must still be believed, and must still decrypt.
func TestTheOldAndTheNewOverlap(t *testing.T) {
	d := newDay()
	a, folder := authority(t, d)
	path := issue(t, a, Worker, "w1")
	type given struct {
		own  *Own
		keys [][]byte
	}
	look := func() given {
		keys, err := ReadGossipKeys(filepath.Join(path, GossipFile))
		if err != nil {
			t.Fatal(err)
		}
		return given{read(t, path), keys}
	}
	first, before := look(), look()
	for _, want := range []Step{Introduced, Switched, Finished} {
		d.Time = d.Add(24 * time.Hour)
		again, err := OpenAuthority(folder, d.now) // as another process
		if err != nil {
			t.Fatal(err)
		}
		if step, err := again.Rotate(AuthorityLife); err != nil || step != want {
			t.Fatalf("step %v, %v; want %v", step, err, want)
		}
		now := look()
		for _, pair := range [][2]given{{before, now}, {now, before}, {now, now}} {
			if h, err := pair[0].own.Trust.Verify(shown(t, pair[1].own), d.now()); err != nil || !h.Is("w1") {
				t.Errorf("step %v: %v, %v", want, h, err)
			}
			if !contains(pair[0].keys, pair[1].keys[0]) {
				t.Errorf("step %v: gossip of one is not understood by the other", want)
			}
		}
		before = now
	}
	refused(t, before.own.Trust, shown(t, first.own), d.now(), UnknownAuthority, "worker w1 is signed by")
	if contains(before.keys, first.keys[0]) {
		t.Error("the old key of gossip is still taken")
	}
}

func contains(keys [][]byte, key []byte) bool {
	for _, k := range keys {
		if bytes.Equal(k, key) {
			return true
		}
	}
	return false
}

// TestAStepThatWasCutOffIsDoneAgain has a folder that a step has not reached: no further step is taken before it has.
func TestAStepThatWasCutOffIsDoneAgain(t *testing.T) {
	d := newDay()
	a, folder := authority(t, d)
	path := issue(t, a, Worker, "w1")
	files := []string{TrustFile, CertFile, KeyFile, GossipFile}
	for _, want := range []Step{Introduced, Switched, Finished} {
		before := map[string][]byte{}
		for _, f := range files {
			before[f] = must(os.ReadFile(filepath.Join(path, f)))
		}
		for range 2 {
			again, err := OpenAuthority(folder, d.now)
			if err != nil {
				t.Fatal(err)
			}
			if step, err := again.Rotate(AuthorityLife); err != nil || step != want {
				t.Fatalf("step %v, %v; want %v", step, err, want)
			}
			if !bytes.Equal(must(os.ReadFile(filepath.Join(path, TrustFile))), must(os.ReadFile(filepath.Join(folder, TrustFile)))) {
				t.Errorf("step %v has not come to the folder", want)
			}
			if err := read(t, path).Check(d.now()); err != nil {
				t.Error(err)
			}
			for f, content := range before { // as if the step had been killed before this folder
				if err := os.WriteFile(filepath.Join(path, f), content, 0o600); err != nil {
					t.Fatal(err)
				}
			}
		}
		again, err := OpenAuthority(folder, d.now)
		if err == nil {
			err = again.Again(want == Switched)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
}

// TestOpensslAgrees has another reader of certificates look at them.
func TestOpensslAgrees(t *testing.T) {
	openssl, err := exec.LookPath("openssl")
	if err != nil {
		t.Skip("there is no openssl")
	}
	a, folder := authority(t, &day{time.Now()})
	worker := issue(t, a, Worker, "w1")
	out, err := exec.Command(openssl, "verify", "-x509_strict", "-CAfile", filepath.Join(folder, TrustFile), filepath.Join(worker, CertFile)).CombinedOutput()
	if err != nil {
		t.Errorf("%v: %s", err, out)
	}
	out, err = exec.Command(openssl, "x509", "-noout", "-text", "-in", filepath.Join(worker, CertFile)).CombinedOutput()
	for _, want := range []string{"URI:headwater://worker/w1", "DNS:worker.headwater.internal", "ecdsa-with-SHA256", "NIST CURVE: P-256", "TLS Web Server Authentication", "CA:FALSE"} {
		if err != nil || !strings.Contains(string(out), want) {
			t.Errorf("%v, without %s: %s", err, want, out)
		}
	}
}

func FuzzSigner(f *testing.F) {
	a, err := Init(filepath.Join(f.TempDir(), "certs"), AuthorityLife, time.Now)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(a.current.encode())
	f.Add(pem.EncodeToMemory(&pem.Block{Type: keyBlock, Bytes: []byte{1}}))
	f.Fuzz(func(t *testing.T, b []byte) {
		path := filepath.Join(t.TempDir(), currentFile)
		if err := os.WriteFile(path, b, 0o600); err != nil {
			t.Fatal(err)
		}
		if s, err := readSigner(path); err == nil {
			s.encode()
		}
	})
}
