package rpc

import (
	"cmp"
	"context"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"

	"headwater.example/internal/capability"
	"headwater.example/internal/certs"
)

// securedConn is a connection by TLS, or one of a stranger.
type securedConn struct {
	net.Conn
	s     *Security
	chain []*x509.Certificate // the peer's; nil if it has shown none
	own   *x509.Certificate   // what a server has shown: not every client looks at the end of it; nil of a client, and in plain text
	timer *time.Timer         // ends it
	ended atomic.Bool
	// called says of a stranger's connection that a call has come on it, or that it was refused before.
	called atomic.Bool

	// The security's lock guards what follows.
	stranger bool                // it is to be refused, unless it shows a token or a capability
	tokens   map[string]struct{} // hashes of those that its calls have shown
	grant    *grant              // by the capabilities that its calls have shown; nil without
}

// keep makes a connection end when a certificate of the peer's expires, or the one that this end has shown as a server.
func (s *Security) keep(conn net.Conn, chain []*x509.Certificate, own *x509.Certificate) *securedConn {
	c := &securedConn{Conn: conn, s: s, chain: chain, own: own}
	until := chain[0].NotAfter
	for _, cert := range chain[1:] {
		if cert.NotAfter.Before(until) {
			until = cert.NotAfter
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.live[c] = struct{}{}
	c.timer = time.AfterFunc(c.left(until), c.end)
	return c
}

// left is how long a connection may stay that may until a time.
func (c *securedConn) left(until time.Time) time.Duration {
	if c.own != nil && c.own.NotAfter.Before(until) {
		until = c.own.NotAfter
	}
	return until.Sub(c.s.cfg.Now())
}

// never is after the end of every certificate.
var never = time.Date(9999, 12, 31, 0, 0, 0, 0, time.UTC)

// end closes a connection of a stranger, or one that was good before. One whose capability was renewed meanwhile goes on.
func (c *securedConn) end() {
	c.s.current()
	c.s.mu.Lock()
	doubt, stranger := c.s.doubtful(c), c.stranger
	if doubt == "" && c.grant != nil {
		if left := c.left(c.grant.until); left > 0 {
			c.timer.Reset(left)
			c.s.mu.Unlock()
			return
		}
	}
	c.s.mu.Unlock()
	if stranger {
		if !c.called.Load() {
			c.s.refuse(c.RemoteAddr().String(), certs.Silent, "it shows no certificate, and no call of it came in time")
		}
		_ = c.Close() // It is closed either way.
		return
	}
	why := cmp.Or(doubt, "it has expired")
	c.s.cfg.Logger.Info("a connection ends: what the peer has shown holds no more", "peer", c.RemoteAddr().String(), "error", why)
	_ = c.Close() // It is closed either way.
}

// Close closes the connection.
func (c *securedConn) Close() error {
	if !c.ended.Swap(true) {
		c.timer.Stop()
		c.s.mu.Lock()
		delete(c.s.live, c)
		switch {
		case c.stranger:
			c.s.crowd--
		case c.chain == nil:
			c.s.proven--
		}
		c.s.mu.Unlock()
	}
	return c.Conn.Close()
}

// Strangers are let in only to be told why they are refused: so many at once, and each for a moment.
const (
	maxStrangers    = 32
	strangerTimeout = 5 * time.Second
)

// Expectation is whom a client takes at the other end. The zero value is a coordinator, or a relay, of any name.
type Expectation struct {
	Worker      string // name of a worker
	Coordinator string // name of a coordinator
}

// expect says whom a peer has to be.
func expect(p Peer) Expectation {
	switch {
	case p.Coordinator:
		return Expectation{Coordinator: p.Name}
	case p.Name == p.Address:
		return Expectation{}
	}
	return Expectation{Worker: p.Name}
}

func (e Expectation) check(h certs.Holder, at net.Addr) *certs.Error {
	switch {
	case e.Coordinator != "" && h.Role == certs.Coordinator && h.Is(e.Coordinator):
	case e.Coordinator != "":
		return &certs.Error{Reason: certs.WrongName, Why: fmt.Sprintf("what answers at %s is %s by its certificate, and coordinator %s was looked for", at, h, e.Coordinator)}
	case e.Worker == "" && (h.Role == certs.Coordinator || h.Role == certs.Relay):
	case e.Worker == "":
		return &certs.Error{Reason: certs.WrongRole, Why: fmt.Sprintf("what answers at %s is %s, and a coordinator was looked for", at, h)}
	case h.Role != certs.Worker:
		return &certs.Error{Reason: certs.WrongRole, Why: fmt.Sprintf("what answers at %s is %s, and worker %s was looked for", at, h, e.Worker)}
	case !h.Is(e.Worker):
		return &certs.Error{Reason: certs.WrongName, Why: fmt.Sprintf("what answers at %s is %s by its certificate, and worker %s was looked for", at, h, e.Worker)}
	}
	return nil
}

// notTrusted begins what is said of a coordinator that this end does not take: trying again changes nothing. Who was looked for by name
// may come back.
const notTrusted = "not trusted: "

// says is an error about who is expected.
func (e Expectation) says(why string) error {
	if e == (Expectation{}) {
		return errors.New(notTrusted + why)
	}
	return errors.New(why)
}

// Dial makes connections as the security says, to whom is expected.
func (s *Security) Dial(to Expectation) grpc.DialOption {
	return grpc.WithTransportCredentials(clientCredentials{s, to})
}

// clientCredentials are this end of connections that it makes.
type clientCredentials struct {
	s  *Security
	to Expectation
}

func (c clientCredentials) ClientHandshake(ctx context.Context, _ string, raw net.Conn) (net.Conn, credentials.AuthInfo, error) {
	if !c.s.secured() || local(raw) {
		if !c.s.insecure() && remote(raw.RemoteAddr()) {
			return nil, nil, c.to.says(plainRefused(raw.RemoteAddr().String()))
		}
		return raw, plainInfo(), nil
	}
	conn, err := c.shakeHands(ctx, raw)
	if err != nil {
		return nil, nil, err
	}
	state := conn.ConnectionState()
	return c.s.keep(conn, state.PeerCertificates, nil), credentials.TLSInfo{State: state, CommonAuthInfo: private()}, nil
}

// shakeHands speaks TLS with who is expected, and one of some protocols; HTTP/2 if none is named.
func (c clientCredentials) shakeHands(ctx context.Context, raw net.Conn, protocols ...string) (*tls.Conn, error) {
	var refusal *certs.Error
	config := tlsConfig(c.s.current().Cert, protocols...)
	if c.to.Worker != "" && c.s.wallet != nil {
		config = tlsConfig(c.s.wallet.key, protocols...)
	}
	config.ServerName = certs.Coordinator.Host() // names nobody: see VerifyConnection
	config.InsecureSkipVerify = true             // the library's check is of host names; this one is of authority, role and name
	config.VerifyConnection = func(state tls.ConnectionState) error {
		var h certs.Holder
		if h, refusal = c.s.verify(state.PeerCertificates); refusal == nil {
			refusal = c.to.check(h, raw.RemoteAddr())
		}
		if refusal != nil {
			return refusal
		}
		return nil
	}
	conn := tls.Client(raw, config)
	err := conn.HandshakeContext(ctx)
	var noTLS tls.RecordHeaderError
	switch {
	case refusal != nil:
		c.s.refuse(raw.RemoteAddr().String(), refusal.Reason, refusal.Why)
		return nil, c.to.says(refusal.Why)
	case errors.As(err, &noTLS):
		why := fmt.Sprintf("what answers at %s speaks no TLS: it was started without --tls-dir, or it is no Headwater server", raw.RemoteAddr())
		c.s.refuse(raw.RemoteAddr().String(), certs.PlainText, why)
		return nil, c.to.says(why)
	case err != nil:
		return nil, noTLSError{raw.RemoteAddr(), plainly(err)}
	}
	return conn, nil
}

// noTLSError says that the handshake did not come about, for no reason of this end.
type noTLSError struct {
	with net.Addr
	why  error
}

func (e noTLSError) Error() string {
	return fmt.Sprintf("TLS with %s did not come about: %v", e.with, e.why)
}

func (e noTLSError) Unwrap() error { return e.why }

func (c clientCredentials) ServerHandshake(net.Conn) (net.Conn, credentials.AuthInfo, error) {
	return nil, nil, errors.New("credentials of a client")
}

func (c clientCredentials) Info() credentials.ProtocolInfo { return protocolInfo(c.s) }

func (c clientCredentials) Clone() credentials.TransportCredentials { return c }

func (c clientCredentials) OverrideServerName(string) error { return nil }

// plainRefused is why plain text is not sent to an address.
func plainRefused(address string) string {
	return address + " is another machine, and there is no certificate: give one by --tls-dir (HEADWATER_TLS_DIR), which `coord certs issue client NAME` makes, or say --insecure"
}

// serverCredentials are this end of connections that others make.
type serverCredentials struct {
	s     *Security
	lanes *Lanes // nil are none
}

// caller is what a server knows of a connection.
type caller struct {
	credentials.AuthInfo
	holder  certs.Holder
	refusal *certs.Error       // why each call is refused that shows no token and no capability
	conn    *securedConn       // nil in plain text
	key     *[sha256.Size]byte // that the client has proven to have; nil without a certificate
	lane    *recordConn        // under the TLS of a plain lane; nil of one of gRPC
}

func (c serverCredentials) ServerHandshake(raw net.Conn) (net.Conn, credentials.AuthInfo, error) {
	if !c.s.secured() || local(raw) {
		return raw, caller{AuthInfo: plainInfo()}, nil
	}
	var first [1]byte
	if _, err := io.ReadFull(raw, first[:]); err != nil {
		return nil, nil, io.EOF // it asked for nothing
	}
	begun := &begunConn{Conn: raw, first: first[:]}
	switch first[0] {
	case tlsHandshake:
	case plainHTTP:
		return c.stranger(begun, &certs.Error{Reason: certs.PlainText, Why: "it speaks no TLS: give it a certificate by --tls-dir (HEADWATER_TLS_DIR, in Python tls=), which `coord certs issue client NAME` makes"})
	default:
		err := errors.New("it begins neither TLS nor HTTP/2")
		c.s.refuse(raw.RemoteAddr().String(), certs.Handshake, err.Error())
		return nil, nil, err
	}
	under := &recordConn{Conn: begun}
	conn, info, err := c.shakeHands(under)
	if who, ok := info.(caller); ok && under.ahead != nil {
		who.lane = under
		info = who
	}
	return conn, info, err
}

// shakeHands speaks TLS with a client.
func (c serverCredentials) shakeHands(under *recordConn) (net.Conn, credentials.AuthInfo, error) {
	own := c.s.current().Cert
	config := tlsConfig(own)
	if c.lanes.offered() {
		config = tlsConfig(own, laneProtocol, gRPCProtocol)
	}
	// What is wrong with the client's certificate is said in words, to each of its calls: TLS has an alert for it at best.
	config.ClientAuth = tls.RequestClientCert
	session := tls.Server(under, config)
	if err := session.Handshake(); err != nil { // gRPC has set a deadline
		err = plainly(err)
		c.s.refuse(under.RemoteAddr().String(), certs.Handshake, err.Error())
		return nil, nil, err
	}
	conn, state := net.Conn(session), session.ConnectionState()
	if state.NegotiatedProtocol == laneProtocol {
		conn = under.carry(session)
	}
	if len(state.PeerCertificates) == 0 {
		return c.nameless(conn, own.Leaf, &certs.Error{Reason: certs.NoCertificate, Why: "it shows no certificate: give it one by --tls-dir (HEADWATER_TLS_DIR, in Python tls=), which `coord certs issue client NAME` makes"})
	}
	key := capability.KeyOf(state.PeerCertificates[0])
	if capability.IsKey(state.PeerCertificates) && c.s.takesCapabilities() {
		return c.admit(conn, own.Leaf, &certs.Error{Reason: certs.NoCertificate, Why: "it shows neither a certificate of the cluster's authority nor a capability"}, &key, false)
	}
	holder, refusal := c.s.verify(state.PeerCertificates)
	if refusal != nil {
		return c.stranger(conn, refusal)
	}
	kept := c.s.keep(conn, state.PeerCertificates, own.Leaf)
	return kept, caller{AuthInfo: credentials.TLSInfo{State: state, CommonAuthInfo: private()}, holder: holder, conn: kept, key: &key}, nil
}

// The first bytes of a client.
const (
	tlsHandshake = 0x16 // of a TLS record
	plainHTTP    = 'P'  // of HTTP/2 in plain text
)

// stranger lets a connection in for a moment, to be told why it is refused. It is none of those that a Flight counts.
func (c serverCredentials) stranger(conn net.Conn, why *certs.Error) (net.Conn, credentials.AuthInfo, error) {
	c.s.refuse(conn.RemoteAddr().String(), why.Reason, why.Why)
	return c.admit(conn, nil, why, nil, true)
}

// nameless lets in a connection by TLS without a certificate: its calls may show tokens. Without one in time it is a stranger's.
func (c serverCredentials) nameless(conn net.Conn, own *x509.Certificate, why *certs.Error) (net.Conn, credentials.AuthInfo, error) {
	if !c.s.takesTokens() {
		return c.stranger(conn, why)
	}
	return c.admit(conn, own, why, nil, false)
}

// admit lets in a connection of a stranger, which was refused already, or is one unless a call of it shows who it is.
func (c serverCredentials) admit(conn net.Conn, own *x509.Certificate, why *certs.Error, key *[sha256.Size]byte, refused bool) (net.Conn, credentials.AuthInfo, error) {
	s := c.s
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.crowd >= maxStrangers {
		s.refused[certs.Crowded]++
		return nil, nil, why
	}
	s.crowd++
	made := &securedConn{Conn: conn, s: s, own: own, stranger: true}
	made.called.Store(refused)
	made.timer = time.AfterFunc(strangerTimeout, made.end)
	return made, caller{AuthInfo: plainInfo(), refusal: why, conn: made, key: key}, nil
}

func (c serverCredentials) ClientHandshake(context.Context, string, net.Conn) (net.Conn, credentials.AuthInfo, error) {
	return nil, nil, errors.New("credentials of a server")
}

func (c serverCredentials) Info() credentials.ProtocolInfo { return protocolInfo(c.s) }

func (c serverCredentials) Clone() credentials.TransportCredentials { return c }

func (c serverCredentials) OverrideServerName(string) error { return nil }

// begunConn is a connection whose first byte was read.
type begunConn struct {
	net.Conn
	first []byte
}

func (c *begunConn) Read(p []byte) (int, error) {
	if len(c.first) > 0 && len(p) > 0 {
		n := copy(p, c.first)
		c.first = c.first[n:]
		return n, nil
	}
	return c.Conn.Read(p)
}

// gRPCProtocol is the protocol of a connection by TLS (ALPN) that is gRPC's.
const gRPCProtocol = "h2"

// tlsConfig is how TLS is spoken, and one of some protocols, the first that both ends know; gRPC's if none is named.
func tlsConfig(own tls.Certificate, protocols ...string) *tls.Config {
	if len(protocols) == 0 {
		protocols = []string{gRPCProtocol}
	}
	return &tls.Config{
		Certificates: []tls.Certificate{own}, MinVersion: tls.VersionTLS13, NextProtos: protocols,
		GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &own, nil },
		// Connections last, so each begins anew; and a step's answer is to go in as few records as may be.
		SessionTicketsDisabled: true, DynamicRecordSizingDisabled: true,
	}
}

func protocolInfo(s *Security) credentials.ProtocolInfo {
	if s.secured() {
		return credentials.ProtocolInfo{SecurityProtocol: "tls"}
	}
	return credentials.ProtocolInfo{SecurityProtocol: "insecure"}
}

type plain struct{ credentials.CommonAuthInfo }

func (plain) AuthType() string { return "plain" }

func plainInfo() credentials.AuthInfo {
	return plain{credentials.CommonAuthInfo{SecurityLevel: credentials.NoSecurity}}
}

func private() credentials.CommonAuthInfo {
	return credentials.CommonAuthInfo{SecurityLevel: credentials.PrivacyAndIntegrity}
}

// local tells whether a connection is by a Unix socket, which its owner alone may use.
func local(conn net.Conn) bool {
	_, ok := conn.RemoteAddr().(*net.UnixAddr)
	return ok
}

// remote tells whether an address is of another machine, as far as one can tell.
func remote(a net.Addr) bool {
	at, ok := a.(*net.TCPAddr)
	return ok && !at.IP.IsLoopback()
}

// plainly says an error of TLS in this program's words.
func plainly(err error) error {
	text := err.Error()
	switch {
	case errors.Is(err, io.EOF), errors.Is(err, net.ErrClosed), strings.Contains(text, "connection reset"), strings.Contains(text, "broken pipe"):
		return errors.New("the peer closed the connection")
	case strings.Contains(text, "i/o timeout"), errors.Is(err, context.DeadlineExceeded):
		return fmt.Errorf("the peer did not go on with it for %v", connectTimeout)
	case strings.Contains(text, "remote error: tls: bad certificate"), strings.Contains(text, "remote error: tls: unknown certificate"), strings.Contains(text, "remote error: tls: certificate"):
		return errors.New("the peer does not take the certificate of this end; it says why")
	case strings.Contains(text, "protocol version"), strings.Contains(text, "unsupported versions"):
		return errors.New("the peer does not speak TLS 1.3")
	}
	return errors.New(strings.TrimPrefix(text, "tls: "))
}
