//go:build linux

package e2e

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/metadata"
	reflectionv1 "google.golang.org/grpc/reflection/grpc_reflection_v1"
	"google.golang.org/grpc/status"

	"headwater.example/client"
	"headwater.example/internal/certs"
	"headwater.example/internal/localcluster"
	"headwater.example/internal/rpc"
	"headwater.example/internal/testkit/await"
	headwaterv1 "headwater.example/proto/headwater/v1"
)

// doors are those of a secured cluster, as a program knocks at them that has a client's certificate.
type doors struct {
	t               *testing.T
	ctx             context.Context
	address, worker string
	cert            tls.Certificate
	folder          string
}

// raw connects by TLS from an address of this machine.
func (d *doors) raw(from string) (*tls.Conn, error) {
	local, err := net.ResolveTCPAddr("tcp", from+":0")
	if err != nil {
		return nil, err
	}
	dialer := &tls.Dialer{NetDialer: &net.Dialer{LocalAddr: local}, Config: &tls.Config{
		Certificates: []tls.Certificate{d.cert}, InsecureSkipVerify: true, MinVersion: tls.VersionTLS13, NextProtos: []string{"h2"},
	}}
	conn, err := dialer.DialContext(d.ctx, "tcp", d.address)
	if err != nil {
		return nil, err
	}
	d.t.Cleanup(func() { _ = conn.Close() }) // the other side may have
	return conn.(*tls.Conn), nil
}

// ends waits until the other side closes the connection.
func (d *doors) ends(conn net.Conn) error {
	if deadline, ok := d.ctx.Deadline(); ok {
		if err := conn.SetReadDeadline(deadline); err != nil {
			return err
		}
	}
	_, err := io.Copy(io.Discard, conn)
	var slow net.Error
	if errors.As(err, &slow) && slow.Timeout() {
		return err
	}
	return nil
}

// dial connects to an address as gRPC does, with the certificates of a folder; "" is plain text.
func (d *doors) dial(address, folder string, to rpc.Expectation) *grpc.ClientConn {
	s, err := rpc.NewSecurity(rpc.SecurityConfig{Folder: folder})
	if err != nil {
		d.t.Fatal(err)
	}
	return d.connect(address, s.Dial(to))
}

// own connects to the coordinator with a certificate of the cluster's.
func (d *doors) own(holder string) *grpc.ClientConn {
	return d.dial(d.address, filepath.Join(d.folder, holder), rpc.Expectation{})
}

// bare connects by TLS without a certificate.
func (d *doors) bare() *grpc.ClientConn {
	return d.connect(d.address, grpc.WithTransportCredentials(credentials.NewTLS(&tls.Config{InsecureSkipVerify: true, MinVersion: tls.VersionTLS13, NextProtos: []string{"h2"}})))
}

func (d *doors) connect(address string, how grpc.DialOption) *grpc.ClientConn {
	conn, err := grpc.NewClient("dns:///"+address, append(rpc.DialOptions(), how)...)
	if err != nil {
		d.t.Fatal(err)
	}
	d.t.Cleanup(func() { _ = conn.Close() }) // it fails only if it was closed before
	return conn
}

// status asks a coordinator for its status.
func (d *doors) status(conn *grpc.ClientConn, metadatas ...string) error {
	ctx := metadata.AppendToOutgoingContext(d.ctx, metadatas...)
	_, err := headwaterv1.NewCoordinatorServiceClient(conn).Status(ctx, &headwaterv1.StatusRequest{})
	return err
}

// capability has one made for mallory's own key, or for another one, and perhaps for a session alone.
func (d *doors) capability(key []byte, session []byte) (string, error) {
	granted, err := headwaterv1.NewClusterServiceClient(d.own("client-mallory")).GrantCapability(d.ctx, &headwaterv1.GrantCapabilityRequest{Key: key, Session: session})
	return string(granted.GetCapability()), err
}

// pin asks the worker to pin a session, by a capability or with mallory's certificate alone.
func (d *doors) pin(shown string, session []byte) error {
	ctx := d.ctx
	if shown != "" {
		ctx = metadata.AppendToOutgoingContext(ctx, "headwater-capability-bin", shown)
	}
	conn := d.dial(d.worker, filepath.Join(d.folder, "client-mallory"), rpc.Expectation{Worker: "w1"})
	_, err := headwaterv1.NewSessionServiceClient(conn).PinSession(ctx, &headwaterv1.PinSessionRequest{Session: session})
	return err
}

// leaf is the certificate that the program has.
func (d *doors) leaf() *x509.Certificate {
	leaf, err := x509.ParseCertificate(d.cert.Certificate[0])
	if err != nil {
		d.t.Fatal(err)
	}
	return leaf
}

// The beginning of HTTP/2, and a frame of it.
var http2Begins = append([]byte("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"), frame(4, 0, 0, nil)...)

func frame(kind, flags byte, stream uint32, payload []byte) []byte {
	b := binary.BigEndian.AppendUint32(nil, uint32(len(payload))<<8|uint32(kind))
	return append(binary.BigEndian.AppendUint32(append(b, flags), stream), payload...)
}

// stranger is a case of TestEveryRefusalIsCounted.
type stranger struct {
	what    string
	at      int // whose metric counts it: -1 is the coordinator, 0 the worker
	counted string
	code    codes.Code // of the error; OK is none
	try     func() error
}

// peers is the metric of refusals by a reason.
func peers(reason string) string {
	return fmt.Sprintf(`headwater_peers_refused_total{reason="%s"}`, reason)
}

// TestEveryRefusalIsCounted goes through all that a cluster refuses or lets go: by certificate, token, capability and key of gossip, by
// connections, half handshakes, half headers and metadata, and what is not one's own or is too much. Each has its code, and is counted by a
// metric; sessions of another tenant, relayed and direct, go on meanwhile with the bits of the job. docs/security.md has the same list.
func TestEveryRefusalIsCounted(t *testing.T) {
	t.Parallel()
	const most = 24
	file := filepath.Join(t.TempDir(), "tenants.json")
	coord(t, "tenants", "limit", "mallory", "--sessions", "1", "--file", file).succeeds(t)
	c, as := tenants(t, localcluster.Options{
		Workers: 1, Threads: 1, Memory: 128 << 20, CoordinatorArgs: append([]string{"--address-conns", fmt.Sprint(most), "--tenants", file}, admin...), WorkerArgs: admin,
	}, [2]string{"client", "ann"}, [2]string{"client", "mallory"}, [2]string{"client", "eve"}, [2]string{"admin", "ops"})
	g, layers := generate(t, c)
	var sessions []*client.Session
	for _, direct := range []bool{false, true} {
		s, err := as["ann"].OpenSession(g.ctx, client.SessionOptions{Layers: layers, Direct: direct})
		if err != nil {
			t.Fatal(err)
		}
		sessions = append(sessions, s)
	}
	folder := filepath.Join(c.tls, "client-mallory")
	cert, err := tls.LoadX509KeyPair(filepath.Join(folder, "tls.crt"), filepath.Join(folder, "tls.key"))
	if err != nil {
		t.Fatal(err)
	}
	worker, _ := c.Addresses(0)
	d := &doors{t: t, ctx: g.ctx, address: c.Address(), worker: worker, cert: cert, folder: c.tls}
	_, gossip := c.Addresses(-1)
	position := 0
	for _, list := range [][]stranger{d.certificates(), d.proofs(as["mallory"], layers, sessions[0].ID()), d.connections(most), d.gossip(gossip), d.revoked(c)} {
		for _, k := range list {
			before := scrape(t, c.Admin(k.at))[k.counted]
			if err := k.try(); status.Code(err) != k.code {
				t.Errorf("%s: %v, want %v", k.what, err, k.code)
			}
			for scrape(t, c.Admin(k.at))[k.counted] <= before { // a datagram, and the end of a connection, may be counted a moment later
				select {
				case <-time.After(20 * time.Millisecond):
				case <-g.ctx.Done():
					t.Fatalf("%s is not counted as %s, of which there are %v", k.what, k.counted, before)
				}
			}
			for _, s := range sessions {
				g.step(s, position, position+1)
			}
			if position++; position == g.tokens {
				position = 0
				for _, s := range sessions {
					if err := s.Truncate(g.ctx, 0); err != nil {
						t.Fatal(err)
					}
				}
			}
		}
	}
	for _, process := range []int{-1, 0} {
		if n := scrape(t, c.Admin(process))["headwater_panics_total"]; n != 0 {
			t.Errorf("%v panics", n)
		}
	}
}

// certificates are those that show the wrong one.
func (d *doors) certificates() []stranger {
	t := d.t
	expired, mixed := t.TempDir(), t.TempDir()
	authorityThen, err := certs.OpenAuthority(d.folder, func() time.Time { return time.Now().Add(-2 * time.Hour) })
	if err == nil {
		_, err = authorityThen.Issue(certs.Identity{Role: certs.Client, Name: "late"}, expired, time.Hour)
	}
	foreign := authority(t)
	for file, from := range map[string]string{"ca.crt": d.folder, "tls.crt": foreign, "tls.key": foreign} { // knows the cluster's, and has one of another
		var b []byte
		if err == nil {
			b, err = os.ReadFile(filepath.Join(from, "client-local", file))
		}
		if err == nil {
			err = os.WriteFile(filepath.Join(mixed, file), b, 0o600)
		}
	}
	if err != nil {
		t.Fatal(err)
	}
	with := func(folder string) func() error {
		return func() error { return d.status(d.dial(d.address, folder, rpc.Expectation{})) }
	}
	return []stranger{
		{"plain text", -1, peers("plain_text"), codes.Unauthenticated, with("")},
		{"no certificate", -1, peers("no_certificate"), codes.Unauthenticated, func() error { return d.status(d.bare()) }},
		{"another authority", -1, peers("unknown_authority"), codes.Unauthenticated, with(mixed)},
		{"a client that does not trust the server", -1, peers("handshake"), codes.Unauthenticated, with(filepath.Join(foreign, "client-local"))},
		{"an expired one", -1, peers("expired"), codes.Unauthenticated, with(expired)},
		{"the wrong role", -1, peers("wrong_role"), codes.PermissionDenied, with(filepath.Join(d.folder, "worker-any"))},
		{"reflection for a client", -1, peers("wrong_role"), codes.PermissionDenied, func() error {
			stream, err := reflectionv1.NewServerReflectionClient(d.own("client-mallory")).ServerReflectionInfo(d.ctx)
			if err == nil {
				_, err = stream.Recv()
			}
			return err
		}},
	}
}

// proofs are what a caller shows or names that is not its own, or more than it may have.
func (d *doors) proofs(mallory *client.Client, layers []client.Layer, hers client.SessionID) []stranger {
	key := sha256.Sum256(d.leaf().RawSubjectPublicKeyInfo)
	return []stranger{
		{"a token that is nobody's", -1, peers("bad_token"), codes.Unauthenticated, func() error {
			return d.status(d.bare(), "authorization", "Bearer hwt_wrong")
		}},
		{"a capability of another's, seen and sent again", 0, peers("bad_capability"), codes.Unauthenticated, func() error {
			stolen, err := d.capability(make([]byte, sha256.Size), nil)
			if err != nil {
				return err
			}
			return d.pin(stolen, hers[:])
		}},
		{"a capability of another session", 0, peers("wrong_session"), codes.PermissionDenied, func() error {
			granted, err := d.capability(key[:], make([]byte, 16))
			if err != nil {
				return err
			}
			return d.pin(granted, hers[:])
		}},
		{"another tenant's session, relayed", 0, peers("other_tenant"), codes.OK, func() error {
			if _, err := mallory.FindSession(d.ctx, hers); !errors.Is(err, client.ErrNotFound) {
				return fmt.Errorf("it is answered by %w", err)
			}
			return nil
		}},
		{"another tenant's session, direct", 0, peers("other_tenant"), codes.NotFound, func() error {
			return d.pin("", hers[:])
		}},
		{"more sessions than it may have", -1, `headwater_coordinator_quota_refusals_total{quota="sessions"}`, codes.OK, func() error {
			for { // the worker hears of its limit within a second or so
				s, err := mallory.OpenSession(d.ctx, client.SessionOptions{Layers: layers})
				switch {
				case errors.Is(err, client.ErrOverQuota) && errors.Is(err, client.ErrTryAgain):
					return nil
				case err != nil:
					return err
				}
				d.t.Cleanup(func() { _ = s.Close() }) // its client is closed by then
			}
		}},
		{"more calls than a tenant may have open", 0, peers("many_calls"), codes.ResourceExhausted, func() error {
			conn := d.dial(d.worker, filepath.Join(d.folder, "client-mallory"), rpc.Expectation{Worker: "w1"})
			defer conn.Close()
			const calls = 300 // of the 512 that there may be, half are one tenant's
			ended := make(chan error, calls)
			for range calls { // none sends anything
				stream, err := conn.NewStream(d.ctx, &grpc.StreamDesc{ServerStreams: true, ClientStreams: true}, headwaterv1.SessionService_PinSession_FullMethodName)
				if err != nil {
					return err
				}
				go func() { ended <- stream.RecvMsg(&headwaterv1.PinSessionResponse{}) }()
			}
			return await.One(d.t, ended, "the end of a call beyond those that a tenant may have")
		}},
		{"too much metadata", -1, peers("metadata"), codes.ResourceExhausted, func() error {
			return d.status(d.own("client-mallory"), "much", strings.Repeat("x", 100<<10))
		}},
	}
}

// connections are those that say nothing, or not enough, or are too many.
func (d *doors) connections(most int) []stranger {
	return []stranger{
		{"one connection above the cap", -1, peers("many_connections"), codes.OK, func() error {
			for range most {
				if _, err := d.raw("127.0.0.9"); err != nil {
					return fmt.Errorf("below it: %w", err)
				}
			}
			if conn, err := d.raw("127.0.0.9"); err == nil {
				return d.ends(conn) // the handshake of TLS 1.3 may end before the refusal
			}
			if _, err := d.raw("127.0.0.10"); err != nil {
				return fmt.Errorf("from another address: %w", err)
			}
			return nil
		}},
		{"a handshake that does not go on", -1, peers("handshake"), codes.OK, func() error {
			conn, err := net.Dial("tcp", d.address)
			if err != nil {
				return err
			}
			defer conn.Close()
			if _, err := conn.Write([]byte{0x16, 3, 1}); err != nil {
				return err
			}
			return d.ends(conn)
		}},
		{"TLS, and silence", -1, peers("silent"), codes.OK, func() error {
			conn, err := d.raw("127.0.0.11")
			if err != nil {
				return err
			}
			return d.ends(conn)
		}},
		{"headers that never end, byte by byte", -1, peers("silent"), codes.OK, d.drip},
	}
}

// drip sends headers that never end, byte by byte, until the other side closes the connection.
func (d *doors) drip() error {
	conn, err := d.raw("127.0.0.12")
	if err != nil {
		return err
	}
	ended := make(chan error, 1)
	go func() { ended <- d.ends(conn) }()
	// The frame says that it has 1,000 bytes, and that others follow.
	for _, b := range append(http2Begins, frame(1, 0, 1, make([]byte, 1000))[:9]...) {
		if _, err := conn.Write([]byte{b}); err != nil {
			return err
		}
	}
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for {
		select {
		case err := <-ended:
			return err
		case <-tick.C:
			if _, err := conn.Write([]byte{0}); err != nil {
				return <-ended
			}
		}
	}
}

// gossip are datagrams without a key, and with another one.
func (d *doors) gossip(address string) []stranger {
	send := func(message []byte) func() error {
		return func() error {
			conn, err := net.Dial("udp", address)
			if err != nil {
				return err
			}
			defer conn.Close()
			_, err = conn.Write(message)
			return err
		}
	}
	sealed := make([]byte, 100)
	if _, err := rand.Read(sealed); err != nil {
		d.t.Fatal(err)
	}
	sealed[0] = 1 // as memberlist's messages begin
	return []stranger{
		{"gossip without a key", -1, peers("gossip_plain"), codes.OK, send(append([]byte{0}, make([]byte, 40)...))},
		{"gossip with another key", -1, peers("gossip_key"), codes.OK, send(sealed)},
	}
}

// revoked is a client whose certificate was revoked.
func (d *doors) revoked(c *cluster) []stranger {
	return []stranger{{"a revoked certificate", -1, peers("revoked"), codes.Unauthenticated, func() error {
		thief := d.t.TempDir()
		if err := os.CopyFS(thief, os.DirFS(filepath.Join(d.folder, "client-eve"))); err != nil {
			return err
		}
		coord(d.t, "certs", "revoke", "client", "eve", "--dir", d.folder).succeeds(d.t)
		awaitSaid(d.t, c, "certificates were read again", 2)
		return d.status(d.dial(d.address, thief, rpc.Expectation{}))
	}}}
}
