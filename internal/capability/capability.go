// Package capability has the statements by which a coordinator lets the client of a tenant use workers that do not know it: what they
// say, how they are signed, and what is wrong with one that is refused.
//
// A capability names a tenant, the key of the client that may show it, and when it ends. The client shows it on connections on which
// it has proven that it has the key, so whoever else sees it can do nothing with it. It is signed with the key of a coordinator's
// certificate, which comes along: a worker needs nothing but its authorities to check it, and asks nobody.
package capability

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/binary"
	"errors"
	"fmt"
	"time"

	"headwater.example/internal/certs"
)

const (
	// Life is how long a capability holds unless a shorter time is asked for. It bounds how long a client is let in whose token was
	// taken back. Clients renew theirs well before, so that clocks may be certs.Skew apart.
	Life = 10 * time.Minute
	// maxBytes bounds a capability.
	maxBytes = 16 << 10
	// maxChain bounds the certificates of one, maxLife how long one may hold at all.
	maxChain = 4
	maxLife  = 24 * time.Hour

	version = 1
	// context begins what is signed, so that a signature is of nothing else.
	context = "headwater capability\x00"

	flagAdmin   = 1 << 0
	flagSession = 1 << 1
)

// Capability is what one says.
type Capability struct {
	Tenant  string    // name of the tenant; of an admin, its own name
	Admin   bool      // whoever shows it is bound to no tenant
	Session *[16]byte // the only session that it is for; nil is all of the tenant's
	Key     [sha256.Size]byte
	Issued  time.Time // in whole seconds, as Expires
	Expires time.Time
}

// KeyOf is what a capability names a key by: the SHA-256 of a certificate's public key.
func KeyOf(cert *x509.Certificate) [sha256.Size]byte {
	return sha256.Sum256(cert.RawSubjectPublicKeyInfo)
}

// Holder is who may show it.
func (c *Capability) Holder() certs.Holder {
	if c.Admin {
		return certs.Holder{Role: certs.Admin, Names: []string{c.Tenant}}
	}
	return certs.Holder{Role: certs.Client, Names: []string{c.Tenant}}
}

// encode is what is signed, but for the context.
func (c *Capability) encode() []byte {
	var flags byte
	if c.Admin {
		flags |= flagAdmin
	}
	if c.Session != nil {
		flags |= flagSession
	}
	b := []byte{version, flags}
	b = binary.BigEndian.AppendUint64(b, uint64(c.Issued.Unix()))
	b = binary.BigEndian.AppendUint64(b, uint64(c.Expires.Unix()))
	b = append(b, c.Key[:]...)
	if c.Session != nil {
		b = append(b, c.Session[:]...)
	}
	return append(append(b, byte(len(c.Tenant))), c.Tenant...)
}

// validate says what is wrong with what one says.
func (c *Capability) validate() error {
	h := c.Holder()
	if err := (certs.Identity{Role: h.Role, Name: c.Tenant}).Validate(); err != nil {
		return fmt.Errorf("its tenant: %w", err)
	}
	if life := c.Expires.Sub(c.Issued); c.Issued.Unix() <= 0 || life <= 0 || life > maxLife {
		return fmt.Errorf("it holds for %v, and not for 1s to %v", life, maxLife)
	}
	return nil
}

// Sign signs a capability with the key of a coordinator's certificate.
func (c *Capability) Sign(own *certs.Own) ([]byte, error) {
	if err := c.validate(); err != nil {
		return nil, err
	}
	key, ok := own.Cert.PrivateKey.(crypto.Signer)
	if !ok {
		return nil, fmt.Errorf("the certificate's key, a %T, signs nothing", own.Cert.PrivateKey)
	}
	said := c.encode()
	signature, err := sign(key, append([]byte(context), said...))
	if err != nil {
		return nil, fmt.Errorf("sign a capability: %w", err)
	}
	if n := len(own.Cert.Certificate); n > maxChain {
		return nil, fmt.Errorf("the certificate comes with %d others, and a capability has room for %d", n-1, maxChain-1)
	}
	b := append(said, byte(len(own.Cert.Certificate)))
	for _, der := range append(own.Cert.Certificate[:len(own.Cert.Certificate):len(own.Cert.Certificate)], signature) {
		b = binary.BigEndian.AppendUint16(b, uint16(min(len(der), maxBytes)))
		b = append(b, der...)
	}
	if len(b) > maxBytes {
		return nil, fmt.Errorf("the capability has %d bytes with its certificates, more than %d", len(b), maxBytes)
	}
	return b, nil
}

// sign signs a message as algorithmOf says.
func sign(key crypto.Signer, message []byte) ([]byte, error) {
	algorithm, err := algorithmOf(key.Public())
	if err != nil {
		return nil, err
	}
	digest := sha256.Sum256(message)
	switch algorithm {
	case x509.PureEd25519:
		return key.Sign(rand.Reader, message, crypto.Hash(0))
	case x509.SHA256WithRSAPSS:
		return key.Sign(rand.Reader, digest[:], &rsa.PSSOptions{SaltLength: rsa.PSSSaltLengthEqualsHash, Hash: crypto.SHA256})
	}
	return key.Sign(rand.Reader, digest[:], crypto.SHA256)
}

// algorithmOf is how a key signs: there is one way for each kind.
func algorithmOf(public any) (x509.SignatureAlgorithm, error) {
	switch public.(type) {
	case *ecdsa.PublicKey:
		return x509.ECDSAWithSHA256, nil
	case *rsa.PublicKey:
		return x509.SHA256WithRSAPSS, nil
	case ed25519.PublicKey:
		return x509.PureEd25519, nil
	}
	return 0, fmt.Errorf("keys of %T sign no capabilities", public)
}

// Signed is a capability as it was shown. Until Verify says so, nothing of it is true.
type Signed struct {
	Capability

	said      []byte
	Chain     []*x509.Certificate // of who has signed it
	signature []byte
}

var errShort = errors.New("it ends too early")

// reader reads what comes after another from the front.
type reader struct {
	b   []byte
	err error
}

func (r *reader) next(n int) []byte {
	if r.err != nil || len(r.b) < n {
		r.err = errShort
		return make([]byte, min(n, sha256.Size)) // enough for all that is read by number
	}
	head := r.b[:n]
	r.b = r.b[n:]
	return head
}

func (r *reader) time() time.Time {
	return time.Unix(int64(binary.BigEndian.Uint64(r.next(8))), 0)
}

// Parse reads what Sign wrote, and refuses what it would not write.
func Parse(b []byte) (*Signed, error) {
	if len(b) > maxBytes {
		return nil, fmt.Errorf("it has %d bytes, more than %d", len(b), maxBytes)
	}
	r := &reader{b: b}
	if v := r.next(1)[0]; r.err == nil && v != version {
		return nil, fmt.Errorf("it is of version %d, and this program knows version %d", v, version)
	}
	flags := r.next(1)[0]
	if flags&^(flagAdmin|flagSession) != 0 {
		return nil, fmt.Errorf("flags %#x are not known", flags)
	}
	s := &Signed{Capability: Capability{Admin: flags&flagAdmin != 0, Issued: r.time(), Expires: r.time()}}
	copy(s.Key[:], r.next(len(s.Key)))
	if flags&flagSession != 0 {
		id := [16]byte(r.next(16)[:16])
		s.Session = &id
	}
	s.Tenant = string(r.next(int(r.next(1)[0])))
	if r.err != nil {
		return nil, r.err
	}
	if err := s.validate(); err != nil {
		return nil, err
	}
	s.said = b[:len(b)-len(r.b)]
	return s, s.parseProof(r)
}

// parseProof reads the certificates and the signature.
func (s *Signed) parseProof(r *reader) error {
	n := int(r.next(1)[0])
	if r.err == nil && (n == 0 || n > maxChain) {
		return fmt.Errorf("it comes with %d certificates, and not 1 to %d", n, maxChain)
	}
	sized := func() []byte { return r.next(int(binary.BigEndian.Uint16(r.next(2)))) }
	for i := 0; i < n && r.err == nil; i++ {
		der := sized()
		if r.err != nil {
			break
		}
		cert, err := x509.ParseCertificate(der)
		if err != nil {
			return fmt.Errorf("its certificate %d: %w", i+1, err)
		}
		s.Chain = append(s.Chain, cert)
	}
	s.signature = bytes.Clone(sized())
	if r.err == nil && len(r.b) > 0 {
		return fmt.Errorf("%d bytes follow its end", len(r.b))
	}
	return r.err
}

// Verify says what is wrong with a capability that was shown by who has proven to have a key, now. A capability that comes from the
// future, by less than clocks may be apart, is taken.
func (s *Signed) Verify(trust *certs.Trust, key *[sha256.Size]byte, now time.Time) *certs.Error {
	holder, err := trust.Verify(s.Chain, now)
	var refusal *certs.Error
	switch {
	case errors.As(err, &refusal):
		return &certs.Error{Reason: refusal.Reason, Why: "who signed the capability is not believed: " + refusal.Why}
	case err != nil:
		return refuse("who signed it is not believed: %v", err)
	case holder.Role != certs.Coordinator:
		return refuse("it is signed by %s, and coordinators alone sign capabilities", holder)
	}
	algorithm, err := algorithmOf(s.Chain[0].PublicKey)
	if err == nil {
		err = s.Chain[0].CheckSignature(algorithm, append([]byte(context), s.said...), s.signature)
	}
	switch {
	case err != nil:
		return refuse("its signature is not that of %s: %v", holder, err)
	case key == nil || *key != s.Key:
		return refuse("it is shown by another than it was made for: the connection has not proven the key that it names")
	}
	return s.Check(now)
}

// Check says whether a capability that was verified holds now.
func (s *Signed) Check(now time.Time) *certs.Error {
	switch {
	case !now.Before(s.Expires):
		return &certs.Error{Reason: certs.Expired, Why: fmt.Sprintf("the capability of %s expired at %s, and it is %s here: ask a coordinator for another one", s.Holder(), stamp(s.Expires), stamp(now))}
	case s.Issued.After(now.Add(certs.Skew)):
		return &certs.Error{Reason: certs.Expired, Why: fmt.Sprintf("the capability of %s was made at %s, and it is %s here: the clocks are more than %v apart", s.Holder(), stamp(s.Issued), stamp(now), certs.Skew)}
	}
	return nil
}

func stamp(t time.Time) string { return t.UTC().Format(time.RFC3339) }

func refuse(format string, args ...any) *certs.Error {
	return &certs.Error{Reason: certs.BadCapability, Why: "the capability is not taken: " + fmt.Sprintf(format, args...)}
}
