package capability

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/binary"
	"math/big"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"headwater.example/internal/certs"
)

// town is a cluster's authority, at a time.
type town struct {
	authority *certs.Authority
	now       time.Time
}

func newTown(t testing.TB) *town {
	c := &town{now: time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)}
	var err error
	if c.authority, err = certs.Init(filepath.Join(t.TempDir(), "certs"), certs.AuthorityLife, func() time.Time { return c.now }); err != nil {
		t.Fatal(err)
	}
	return c
}

func (c *town) issue(t testing.TB, role certs.Role, name string) *certs.Own {
	t.Helper()
	id := certs.Identity{Role: role, Name: name}
	if _, err := c.authority.Issue(id, c.authority.FolderOf(id), certs.CertificateLife); err != nil {
		t.Fatal(err)
	}
	own, err := certs.Read(c.authority.FolderOf(id))
	if err != nil {
		t.Fatal(err)
	}
	return own
}

// made is a capability for ann of a key, and the key's name.
func (c *town) made(t testing.TB) (*Capability, [sha256.Size]byte) {
	t.Helper()
	key, err := NewKey()
	if err != nil {
		t.Fatal(err)
	}
	name := KeyOf(key.Leaf)
	return &Capability{Tenant: "ann", Key: name, Issued: c.now, Expires: c.now.Add(Life)}, name
}

func signed(t testing.TB, c *Capability, by *certs.Own) []byte {
	t.Helper()
	b, err := c.Sign(by)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// verify parses and verifies what is shown.
func verify(b []byte, trust *certs.Trust, key *[sha256.Size]byte, now time.Time) (*Signed, error) {
	s, err := Parse(b)
	if err != nil {
		return nil, err
	}
	if refusal := s.Verify(trust, key, now); refusal != nil {
		return nil, refusal
	}
	return s, nil
}

// TestWhatIsSignedIsRead: what one says is what was said, for each kind of it, and its clock may be others'.
func TestWhatIsSignedIsRead(t *testing.T) {
	t.Parallel()
	town := newTown(t)
	by, worker := town.issue(t, certs.Coordinator, "c1"), town.issue(t, certs.Worker, "w1")
	plain, key := town.made(t)
	ofOne, admin := *plain, *plain
	ofOne.Session = &[16]byte{1, 15: 2}
	admin.Admin = true
	for what, c := range map[string]*Capability{"a tenant's": plain, "one of a session": &ofOne, "an admin's": &admin} {
		b := signed(t, c, by)
		for _, now := range []time.Time{town.now, town.now.Add(Life - time.Second), town.now.Add(-certs.Skew)} {
			s, err := verify(b, worker.Trust, &key, now)
			if err != nil {
				t.Fatalf("%s at %v: %v", what, now, err)
			}
			if s.Tenant != "ann" || s.Admin != c.Admin || (s.Session == nil) != (c.Session == nil) || s.Session != nil && *s.Session != *c.Session || !s.Expires.Equal(c.Expires) {
				t.Errorf("%s says %+v", what, s.Capability)
			}
		}
	}
}

// TestWhatIsNotTrueIsRefused shows a capability that is expired, of the future, another's, or signed by who may not.
func TestWhatIsNotTrueIsRefused(t *testing.T) {
	t.Parallel()
	town, foreign := newTown(t), newTown(t)
	by, worker := town.issue(t, certs.Coordinator, "c1"), town.issue(t, certs.Worker, "w1")
	c, key := town.made(t)
	_, stranger := town.made(t)
	b := signed(t, c, by)
	for _, k := range []struct {
		what   string
		b      []byte
		key    *[sha256.Size]byte
		now    time.Time
		reason certs.Reason
		says   string
	}{
		{"an expired one", b, &key, town.now.Add(Life), certs.Expired, "the capability of client ann expired at 2026-03-01T12:10:00Z"},
		{"one of another key", b, &stranger, town.now, certs.BadCapability, "another than it was made for"},
		{"one without a key", b, nil, town.now, certs.BadCapability, "another than it was made for"},
		{"a foreign one", signed(t, c, foreign.issue(t, certs.Coordinator, "c1")), &key, town.now, certs.UnknownAuthority, "who signed the capability is not believed"},
		{"one by a worker", signed(t, c, worker), &key, town.now, certs.BadCapability, "signed by worker w1, and coordinators alone"},
		{"one by a client", signed(t, c, town.issue(t, certs.Client, "ann")), &key, town.now, certs.BadCapability, "signed by client ann"},
	} {
		s, err := Parse(k.b)
		if err != nil {
			t.Fatal(err)
		}
		refusal := s.Verify(worker.Trust, k.key, k.now)
		if refusal == nil || refusal.Reason != k.reason || !strings.Contains(refusal.Why, k.says) {
			t.Errorf("%s: %+v", k.what, refusal)
		}
	}
	late := *c
	late.Issued = town.now.Add(certs.Skew + time.Second)
	late.Expires = late.Issued.Add(time.Minute)
	if _, err := verify(signed(t, &late, by), worker.Trust, &key, town.now); err == nil || !strings.Contains(err.Error(), "the clocks are more than 5m0s apart") {
		t.Errorf("one of the future: %v", err)
	}
	town.now = town.now.Add(time.Hour)
	if err := town.authority.Revoke(certs.Identity{Role: certs.Coordinator, Name: "c1"}); err != nil {
		t.Fatal(err)
	}
	again := town.issue(t, certs.Worker, "w1")
	if s, err := Parse(b); err != nil {
		t.Fatal(err)
	} else if refusal := s.Verify(again.Trust, &key, c.Issued); refusal == nil || refusal.Reason != certs.Revoked {
		t.Errorf("one of a coordinator that was revoked: %+v", refusal)
	}
}

// TestEveryByteCounts changes a bit of each byte of a capability, cuts it at each length and lengthens it: nothing of that is taken.
func TestEveryByteCounts(t *testing.T) {
	t.Parallel()
	town := newTown(t)
	by, worker := town.issue(t, certs.Coordinator, "c1"), town.issue(t, certs.Worker, "w1")
	c, key := town.made(t)
	c.Session = &[16]byte{7}
	b := signed(t, c, by)
	if _, err := verify(b, worker.Trust, &key, town.now); err != nil {
		t.Fatal(err)
	}
	for i := range b {
		if _, err := verify(b[:i], worker.Trust, &key, town.now); err == nil {
			t.Fatalf("%d of %d bytes are taken", i, len(b))
		}
		changed := bytes.Clone(b)
		changed[i] ^= 1 << (i % 8)
		if _, err := verify(changed, worker.Trust, &key, town.now); err == nil {
			t.Fatalf("it is taken with byte %d of %d changed", i, len(b))
		}
	}
	if _, err := verify(append(bytes.Clone(b), 0), worker.Trust, &key, town.now); err == nil {
		t.Error("it is taken with a byte after its end")
	}
}

// TestKeysOfEachKindSign: authorities of others may give coordinators other keys.
func TestKeysOfEachKindSign(t *testing.T) {
	t.Parallel()
	_, edKey, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	rsaKey, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	p384, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	town := newTown(t)
	c, _ := town.made(t)
	for what, signer := range map[string]crypto.Signer{"Ed25519": edKey, "RSA": rsaKey, "P-384": p384} {
		template := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: town.now.Add(time.Hour)}
		der, err := x509.CreateCertificate(rand.Reader, template, template, signer.Public(), signer)
		if err != nil {
			t.Fatal(err)
		}
		b, err := c.Sign(&certs.Own{Cert: tls.Certificate{Certificate: [][]byte{der}, PrivateKey: signer}})
		if err != nil {
			t.Fatalf("%s: %v", what, err)
		}
		s, err := Parse(b)
		if err != nil {
			t.Fatalf("%s: %v", what, err)
		}
		algorithm, err := algorithmOf(s.Chain[0].PublicKey)
		if err == nil {
			err = s.Chain[0].CheckSignature(algorithm, append([]byte(context), s.said...), s.signature)
		}
		if err != nil {
			t.Errorf("%s: %v", what, err)
		}
	}
}

// TestNoSenseIsSigned: what could not be read is not made.
func TestNoSenseIsSigned(t *testing.T) {
	t.Parallel()
	town := newTown(t)
	by := town.issue(t, certs.Coordinator, "c1")
	for what, change := range map[string]func(*Capability){
		"no tenant":       func(c *Capability) { c.Tenant = "" },
		"a part":          func(c *Capability) { c.Tenant = "ann/evening" },
		"a long name":     func(c *Capability) { c.Tenant = strings.Repeat("a", certs.MaxName+1) },
		"no life":         func(c *Capability) { c.Expires = c.Issued },
		"a life too long": func(c *Capability) { c.Expires = c.Issued.Add(maxLife + time.Second) },
		"no time":         func(c *Capability) { c.Issued = time.Time{} },
	} {
		c, _ := town.made(t)
		change(c)
		if _, err := c.Sign(by); err == nil {
			t.Errorf("%s is signed", what)
		}
	}
}

// FuzzParse reads any bytes: what is read is written again as it was, and nothing panics.
func FuzzParse(f *testing.F) {
	town := newTown(f)
	by := town.issue(f, certs.Coordinator, "c1")
	c, _ := town.made(f)
	f.Add(signed(f, c, by))
	c.Session, c.Admin = &[16]byte{1}, true
	f.Add(signed(f, c, by))
	f.Fuzz(func(t *testing.T, b []byte) {
		s, err := Parse(b)
		if err != nil {
			return
		}
		again := append(s.encode(), byte(len(s.Chain)))
		for _, cert := range s.Chain {
			again = append(binary.BigEndian.AppendUint16(again, uint16(len(cert.Raw))), cert.Raw...)
		}
		again = append(binary.BigEndian.AppendUint16(again, uint16(len(s.signature))), s.signature...)
		if !bytes.Equal(again, b) {
			t.Errorf("%x was read from %x", again, b)
		}
	})
}

// BenchmarkVerify is what a worker does with a capability that it sees for the first time.
func BenchmarkVerify(b *testing.B) {
	town := newTown(b)
	by, worker := town.issue(b, certs.Coordinator, "c1"), town.issue(b, certs.Worker, "w1")
	c, key := town.made(b)
	said := signed(b, c, by)
	for b.Loop() {
		if _, err := verify(said, worker.Trust, &key, town.now); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64(len(said)), "bytes")
}
