//go:build linux

package e2e

import (
	"context"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	reflectionv1 "google.golang.org/grpc/reflection/grpc_reflection_v1"
	"google.golang.org/grpc/status"

	"headwater.example/client"
	"headwater.example/internal/localcluster"
	"headwater.example/internal/rpc"
	headwaterv1 "headwater.example/proto/headwater/v1"
)

// doors are those of a secured coordinator, as a program knocks at them that has a client's certificate.
type doors struct {
	t       *testing.T
	ctx     context.Context
	address string
	cert    tls.Certificate
	folder  string
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

// dial connects as gRPC does, with a certificate of the cluster's.
func (d *doors) dial(holder string) *grpc.ClientConn {
	s, err := rpc.NewSecurity(rpc.SecurityConfig{Folder: filepath.Join(d.folder, holder)})
	if err != nil {
		d.t.Fatal(err)
	}
	conn, err := grpc.NewClient("dns:///"+d.address, append(rpc.DialOptions(), s.Dial(rpc.Expectation{}))...)
	if err != nil {
		d.t.Fatal(err)
	}
	d.t.Cleanup(func() { _ = conn.Close() }) // it fails only if it was closed before
	return conn
}

// The beginning of HTTP/2, and a frame of it.
var http2Begins = append([]byte("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"), frame(4, 0, 0, nil)...)

func frame(kind, flags byte, stream uint32, payload []byte) []byte {
	b := binary.BigEndian.AppendUint32(nil, uint32(len(payload))<<8|uint32(kind))
	return append(binary.BigEndian.AppendUint32(append(b, flags), stream), payload...)
}

// TestDoorsStayOpenForOthers: whoever has a certificate and means ill, by connections, half handshakes, half headers, much metadata or what is
// not his to ask, is refused or let go, and counted where there is a name for it; sessions of another one go on, with the bits of the job.
func TestDoorsStayOpenForOthers(t *testing.T) {
	t.Parallel()
	const most = 12
	c, as := tenants(t, localcluster.Options{Workers: 1, Threads: 1, CoordinatorArgs: append([]string{"--address-conns", fmt.Sprint(most)}, admin...)},
		[2]string{"client", "ann"}, [2]string{"client", "mallory"}, [2]string{"admin", "ops"})
	g, layers := generate(t, c)
	s, err := as["ann"].OpenSession(g.ctx, client.SessionOptions{Layers: layers})
	if err != nil {
		t.Fatal(err)
	}
	folder := filepath.Join(c.tls, "client-mallory")
	cert, err := tls.LoadX509KeyPair(filepath.Join(folder, "tls.crt"), filepath.Join(folder, "tls.key"))
	if err != nil {
		t.Fatal(err)
	}
	d := &doors{t: t, ctx: g.ctx, address: c.Address(), cert: cert, folder: c.tls}
	refused := func(reason string) float64 {
		return scrape(t, c.Admin(-1))[fmt.Sprintf(`headwater_peers_refused_total{reason="%s"}`, reason)]
	}
	mallory := d.dial("client-mallory")
	position := 0
	for _, k := range []struct {
		what, reason string // "" is not counted
		try          func() error
	}{
		{"one connection above the cap", "many_connections", func() error {
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
		{"a handshake that does not go on", "handshake", func() error {
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
		{"TLS, and silence", "", func() error {
			conn, err := d.raw("127.0.0.11")
			if err != nil {
				return err
			}
			return d.ends(conn)
		}},
		{"headers that never end, byte by byte", "", func() error {
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
		}},
		{"more metadata than there may be", "", func() error {
			ctx := metadata.AppendToOutgoingContext(g.ctx, "much", strings.Repeat("x", 100<<10))
			_, err := headwaterv1.NewCoordinatorServiceClient(mallory).Status(ctx, &headwaterv1.StatusRequest{})
			if code := status.Code(err); code != codes.Internal && code != codes.ResourceExhausted {
				return fmt.Errorf("it is answered by %w", err)
			}
			return nil
		}},
		{"reflection", "wrong_role", func() error {
			ask := func(conn *grpc.ClientConn) error {
				stream, err := reflectionv1.NewServerReflectionClient(conn).ServerReflectionInfo(g.ctx)
				if err == nil {
					err = stream.Send(&reflectionv1.ServerReflectionRequest{MessageRequest: &reflectionv1.ServerReflectionRequest_ListServices{}})
				}
				if err == nil || errors.Is(err, io.EOF) {
					_, err = stream.Recv()
				}
				return err
			}
			if err := ask(mallory); status.Code(err) != codes.PermissionDenied {
				return fmt.Errorf("a client's is answered by %w", err)
			}
			return ask(d.dial("admin-ops"))
		}},
		{"another tenant's session", "", func() error {
			_, err := as["mallory"].FindSession(g.ctx, s.ID())
			if !errors.Is(err, client.ErrNotFound) {
				return fmt.Errorf("it is answered by %w", err)
			}
			return nil
		}},
		{"calls that are opened and say nothing", "", func() error {
			const calls = 80 // of which 64 may be submissions
			ctx, cancel := context.WithCancel(g.ctx)
			defer cancel()
			first := make(chan error, calls)
			for range calls {
				stream, err := headwaterv1.NewCoordinatorServiceClient(mallory).Submit(ctx)
				if err != nil {
					return err
				}
				go func() { _, err := stream.Recv(); first <- err }()
			}
			if err := <-first; status.Code(err) != codes.ResourceExhausted {
				return fmt.Errorf("the first answer is %w", err)
			}
			return nil
		}},
	} {
		before := 0.0
		if k.reason != "" {
			before = refused(k.reason)
		}
		if err := k.try(); err != nil {
			t.Errorf("%s: %v", k.what, err)
		}
		if k.reason != "" {
			if after := refused(k.reason); after <= before {
				t.Errorf("%s is not counted as %s: %v, then %v", k.what, k.reason, before, after)
			}
		}
		g.step(s, position, position+1)
		position++
	}
	if text := scrape(t, c.Admin(-1))["headwater_panics_total"]; text != 0 {
		t.Errorf("%v panics", text)
	}
}
