// Package certs has the certificates by which the parts of a cluster know each other: what they say, how they are made, and
// what is wrong with one that is refused.
//
// A certificate says who holds it by URIs of one role, headwater://ROLE/NAME. A cluster has a certificate authority of its own,
// so that a role is enough to know a coordinator, at whatever address; a worker is known by its name as well, which is the one
// that it gossips. The way of a certificate: an Authority, a folder that its owner keeps, issues it into a folder of a process
// (authority.go); the process reads that folder (folder.go), and its peers check what it shows (Trust.Verify).
package certs

import (
	"crypto/x509"
	"errors"
	"fmt"
	"net/url"
	"strings"
	"time"
)

// Role is what the holder of a certificate is in the cluster.
type Role string

// The roles.
const (
	Coordinator Role = "coordinator"
	Worker      Role = "worker"
	Relay       Role = "relay"   // a process of `coord relay` that other machines reach
	Client      Role = "client"  // whoever uses the cluster; its name is its tenant
	Admin       Role = "admin"   // whoever runs the cluster: uses it for all tenants, and moves what workers hold
	Monitor     Role = "monitor" // what watches the cluster: reads metrics, and nothing else
)

// roles are all roles.
var roles = []Role{Coordinator, Worker, Relay, Client, Admin, Monitor}

// known tells whether there is such a role.
func (r Role) known() bool {
	for _, role := range roles {
		if r == role {
			return true
		}
	}
	return false
}

// serves tells whether others connect to holders of the role.
func (r Role) serves() bool { return r == Coordinator || r == Worker || r == Relay }

// Host is the DNS name that certificates of a role bear beside their URIs, for TLS libraries that compare nothing else.
func (r Role) Host() string { return string(r) + ".headwater.internal" }

const (
	scheme = "headwater"
	// MaxName bounds the bytes of a name in a certificate, and so that of a member of gossip.
	MaxName = 128
	// maxIdentities bounds the names that a certificate has.
	maxIdentities = 64
)

// Identity is who a certificate says that its holder is. A name that ends with * stands for all that begin with what is before
// it: replicas of one Kubernetes StatefulSet share a Secret.
type Identity struct {
	Role Role
	Name string
}

// String is the URI of the identity.
func (i Identity) String() string { return i.uri().String() }

func (i Identity) uri() *url.URL {
	path := "/" + i.Name
	return &url.URL{Scheme: scheme, Host: string(i.Role), Path: path, RawPath: path} // a * stays one
}

// Validate says what is wrong with an identity that is to be written into a certificate.
func (i Identity) Validate() error {
	if !i.Role.known() {
		return fmt.Errorf("role %q is none of coordinator, worker, relay, client, admin, monitor", i.Role)
	}
	name := strings.TrimSuffix(i.Name, "*")
	if name == "" && i.Name != "*" || len(name) > MaxName {
		return fmt.Errorf("a name has %d bytes, not 1 to %d", len(name), MaxName)
	}
	for _, c := range []byte(name) {
		switch {
		case 'a' <= c && c <= 'z', 'A' <= c && c <= 'Z', '0' <= c && c <= '9', c == '.', c == '_', c == '-':
		default:
			return fmt.Errorf("name %q has other characters than letters, digits, '.', '_' and '-', and one '*' at its end", i.Name)
		}
	}
	if i.Role == Client && name != i.Name {
		return fmt.Errorf("name %q: a client's name is its tenant, and a certificate has only one", i.Name)
	}
	return nil
}

// is tells whether the identity covers a name.
func (i Identity) is(name string) bool {
	if prefix, ok := strings.CutSuffix(i.Name, "*"); ok {
		return strings.HasPrefix(name, prefix)
	}
	return i.Name == name
}

// Holder is who holds a certificate: all of its identities, which have one role.
type Holder struct {
	Role  Role
	Names []string
}

// String names the holder for people.
func (h Holder) String() string { return string(h.Role) + " " + strings.Join(h.Names, ", ") }

// Is tells whether the holder may go by a name.
func (h Holder) Is(name string) bool {
	for _, own := range h.Names {
		if (Identity{h.Role, own}).is(name) {
			return true
		}
	}
	return false
}

// holderOf reads who a certificate says that its holder is. It says nothing of whether that is true.
func holderOf(cert *x509.Certificate) (Holder, error) {
	var h Holder
	for _, u := range cert.URIs {
		if u.Scheme != scheme {
			continue
		}
		id := Identity{Role(u.Host), strings.TrimPrefix(u.Path, "/")}
		if err := id.Validate(); err != nil {
			return Holder{}, err
		}
		if h.Role != "" && h.Role != id.Role {
			return Holder{}, fmt.Errorf("it has the roles %s and %s, and only one is allowed", h.Role, id.Role)
		}
		if len(h.Names) == maxIdentities {
			return Holder{}, fmt.Errorf("it has more than %d names", maxIdentities)
		}
		if id.Role == Client && len(h.Names) > 0 {
			return Holder{}, errors.New("it names two clients, and a client's name is its tenant, of which a certificate has one")
		}
		h.Role, h.Names = id.Role, append(h.Names, id.Name)
	}
	if h.Role == "" {
		return Holder{}, errors.New("it has no URI headwater://ROLE/NAME, so it is of no role")
	}
	return h, nil
}

// Reason is why a peer is refused, as metrics count it.
type Reason string

// The reasons.
const (
	PlainText        Reason = "plain_text"        // it speaks no TLS
	NoCertificate    Reason = "no_certificate"    // it shows none
	UnknownAuthority Reason = "unknown_authority" // none that is trusted here has signed its certificate
	Expired          Reason = "expired"           // or it is of the future
	Revoked          Reason = "revoked"           // its holder's certificates were revoked since it was issued
	BadCertificate   Reason = "bad_certificate"   // anything else that is wrong with it
	WrongRole        Reason = "wrong_role"        // it may not do what it asked for
	WrongName        Reason = "wrong_name"        // it is another than it says
	BadToken         Reason = "bad_token"         // its token is nobody's
	BadCapability    Reason = "bad_capability"    // no coordinator that is trusted made its capability for it
	WrongSession     Reason = "wrong_session"     // its capability is for another session
	Handshake        Reason = "handshake"         // TLS did not come about
	Crowded          Reason = "crowded"           // too many that are to be refused are there
	ManyConnections  Reason = "many_connections"  // its address has as many connections as one may have
	AllConnections   Reason = "all_connections"   // all connections that there may be have calls
	Silent           Reason = "silent"            // its connection was let in, and no call came in time
	ManyCalls        Reason = "many_calls"        // as many calls are open as may be, or as its tenant may have
	Metadata         Reason = "metadata"          // its call has too much of it
	OtherTenant      Reason = "other_tenant"      // it names a session of another tenant, and is told that there is none
	GossipPlain      Reason = "gossip_plain"      // its gossip is not encrypted, and gossip is here, or the other way round
	GossipKey        Reason = "gossip_key"        // its gossip is encrypted with another key
	GossipMalformed  Reason = "gossip_malformed"  // its gossip breaks a rule or a bound
)

// Reasons are all reasons.
var Reasons = []Reason{PlainText, NoCertificate, UnknownAuthority, Expired, Revoked, BadCertificate, WrongRole, WrongName, BadToken, BadCapability, WrongSession, Handshake, Crowded, ManyConnections, AllConnections, Silent, ManyCalls, Metadata, OtherTenant, GossipPlain, GossipKey, GossipMalformed}

// Error is why a certificate is refused.
type Error struct {
	Reason Reason
	Why    string // about "the certificate"
}

func (e *Error) Error() string { return e.Why }

// Trust are the authorities whose certificates are believed.
type Trust struct {
	pool    *x509.CertPool
	all     []*x509.Certificate
	revoked revocations
}

// Verify says who holds the first certificate of a chain, if an authority that is trusted signed it and it holds now. Its error
// is an *Error.
func (t *Trust) Verify(chain []*x509.Certificate, now time.Time) (Holder, error) {
	if len(chain) == 0 {
		return Holder{}, &Error{NoCertificate, "no certificate was shown"}
	}
	between := x509.NewCertPool()
	for _, c := range chain[1:] {
		between.AddCert(c)
	}
	_, err := chain[0].Verify(x509.VerifyOptions{
		Roots: t.pool, Intermediates: between, CurrentTime: now,
		KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}, // the role says which
	})
	var unknown x509.UnknownAuthorityError
	var invalid x509.CertificateInvalidError
	switch {
	case err == nil:
	case errors.As(err, &unknown):
		return Holder{}, &Error{UnknownAuthority, fmt.Sprintf("the certificate of %s is signed by %q, which is not among the authorities of ca.crt here (%s): both ends need certificates of one authority",
			describe(chain[0]), chain[0].Issuer.CommonName, t)}
	case errors.As(err, &invalid) && invalid.Reason == x509.Expired:
		return Holder{}, &Error{Expired, expired(chain[0], invalid.Cert, now)}
	default:
		return Holder{}, &Error{BadCertificate, fmt.Sprintf("the certificate of %s is wrong: %v", describe(chain[0]), err)}
	}
	if t.revoked.revoked(chain[0]) {
		return Holder{}, &Error{Revoked, fmt.Sprintf("the certificate of %s is revoked: issue it anew with `coord certs issue`", describe(chain[0]))}
	}
	holder, err := holderOf(chain[0])
	if err != nil {
		return Holder{}, &Error{BadCertificate, fmt.Sprintf("the certificate of %q says of nobody who it is: %v; `coord certs issue` makes such certificates", chain[0].Subject.CommonName, err)}
	}
	return holder, nil
}

func expired(cert, invalid *x509.Certificate, now time.Time) string {
	whose := "the certificate of " + describe(cert)
	if invalid != nil && invalid.IsCA {
		whose = fmt.Sprintf("the authority %q of the certificate of %s", invalid.Subject.CommonName, describe(cert))
	} else {
		invalid = cert
	}
	if now.Before(invalid.NotBefore) {
		return fmt.Sprintf("%s holds from %s on, and here it is %s: a clock is wrong", whose, stamp(invalid.NotBefore), stamp(now))
	}
	return fmt.Sprintf("%s expired at %s, and here it is %s: issue it anew with `coord certs issue`", whose, stamp(invalid.NotAfter), stamp(now))
}

// String names the authorities.
func (t *Trust) String() string {
	names := make([]string, len(t.all))
	for i, c := range t.all {
		names[i] = fmt.Sprintf("%q", c.Subject.CommonName)
	}
	return strings.Join(names, ", ")
}

func describe(cert *x509.Certificate) string {
	if h, err := holderOf(cert); err == nil {
		return h.String()
	}
	return fmt.Sprintf("%q", cert.Subject.CommonName)
}

func stamp(t time.Time) string { return t.UTC().Format("2006-01-02 15:04:05Z") }
