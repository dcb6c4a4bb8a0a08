package rpc

import (
	"crypto/tls"
	"errors"
	"net/http"
	"slices"

	"headwater.example/internal/certs"
)

// errNoHTTPS refuses a port by certificates of a process that has none.
var errNoHTTPS = errors.New("the process has no certificate: give it one by --tls-dir")

// HTTPS is how a port of HTTP is served with the process's own certificate to who shows one of some roles. Others are refused in the
// handshake, and counted.
func (s *Security) HTTPS(roles ...certs.Role) (*tls.Config, error) {
	if !s.secured() {
		return nil, errNoHTTPS
	}
	config := func(hello *tls.ClientHelloInfo) (*tls.Config, error) {
		c := tlsConfig(s.current().Cert)
		c.NextProtos, c.ClientAuth = []string{"http/1.1"}, tls.RequestClientCert
		c.VerifyConnection = func(state tls.ConnectionState) error {
			_, refusal := s.holds(state, roles)
			if refusal == nil {
				return nil
			}
			s.refuse(hello.Conn.RemoteAddr().String(), refusal.Reason, refusal.Why)
			return refusal
		}
		return c, nil
	}
	return &tls.Config{MinVersion: tls.VersionTLS13, GetConfigForClient: config}, nil
}

// Shown returns who has shown a certificate on the connection of a request to a port of HTTPS, if it still holds.
func (s *Security) Shown(r *http.Request) (certs.Holder, bool) {
	if r.TLS == nil {
		return certs.Holder{}, false
	}
	h, refusal := s.holds(*r.TLS, nil)
	return h, refusal == nil
}

// holds says who shows a certificate, which is to be of one of some roles; nil is any.
func (s *Security) holds(state tls.ConnectionState, roles []certs.Role) (certs.Holder, *certs.Error) {
	h, refusal := s.verify(state.PeerCertificates)
	if refusal == nil && roles != nil && !slices.Contains(roles, h.Role) {
		refusal = &certs.Error{Reason: certs.WrongRole, Why: "the port is for other roles than that of " + h.String()}
	}
	return h, refusal
}
