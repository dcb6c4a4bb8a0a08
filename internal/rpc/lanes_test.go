package rpc

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	healthv1 "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/mem"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"headwater.example/internal/certs"
	"headwater.example/internal/testkit/await"
)

// note is a message of bytes.
type note struct{ bytes []byte }

func (n *note) MarshalMessage() (mem.BufferSlice, error) {
	return mem.BufferSlice{mem.SliceBuffer(n.bytes)}, nil
}

func (n *note) UnmarshalMessage(in *Incoming) error {
	b, err := in.all()
	n.bytes = bytes.Clone(b)
	return err
}

// laneDoor is a worker w1 that serves plain lanes on its port: each says who calls and then what it is told. What greets is two bytes of
// the length of the metadata, and the metadata.
type laneDoor struct {
	address string
	s       *Security
	flight  *Flight
	lanes   *Lanes
	greeted time.Duration // how long a greeting may take
}

func openLaneDoor(t *testing.T, c *city, cfg FlightConfig, greeted time.Duration) *laneDoor {
	t.Helper()
	d := &laneDoor{s: c.of(c.issue(certs.Worker, "w1", time.Hour)), flight: NewFlight(cfg), lanes: NewLanes(), greeted: greeted}
	server := grpc.NewServer(d.flight.ServerOptions(Secure(d.s), ServeLanes(d.lanes))...)
	Register(server)
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	d.address = listener.Addr().String()
	served := make(chan error, 1)
	go func() { served <- server.Serve(listener) }()
	ctx, cancel := context.WithCancel(context.Background())
	var all sync.WaitGroup
	all.Go(func() {
		for {
			conn, err := d.lanes.Accept()
			if err != nil {
				return
			}
			all.Go(func() { _ = d.flight.ServePlain(ctx, conn, d.greet, sayWho) })
		}
	})
	t.Cleanup(func() {
		server.Stop()
		if err := await.One(t, served, "the end of the server"); err != nil {
			t.Error(err)
		}
		cancel()
		d.lanes.Close()
		await.All(t, &all, "the end of all lanes")
		if left := d.flight.State(); left.Conns != 0 || left.Calls != 0 || left.Received != 0 {
			t.Errorf("the flight is left with %+v", left)
		}
	})
	return d
}

func (d *laneDoor) greet(conn net.Conn) (metadata.MD, error) {
	if !ByTLS(conn) {
		return nil, errors.New("not by TLS")
	}
	if err := conn.SetDeadline(time.Now().Add(d.greeted)); err != nil {
		return nil, err
	}
	var n [2]byte
	if _, err := io.ReadFull(conn, n[:]); err != nil {
		return nil, err
	}
	b := make([]byte, binary.LittleEndian.Uint16(n[:]))
	if _, err := io.ReadFull(conn, b); err != nil {
		return nil, err
	}
	header, err := ReadLaneHeader(b)
	return header, errors.Join(err, conn.SetDeadline(time.Time{}))
}

func sayWho(s grpc.ServerStream) error {
	who := CallerOf(s.Context())
	var m note
	if err := s.RecvMsg(&m); err != nil {
		return err
	}
	said := who.Tenant
	if who.Unbound {
		said = "unbound"
	}
	if err := s.SendMsg(&note{[]byte(said)}); err != nil {
		return err
	}
	for {
		if err := s.RecvMsg(&m); err != nil {
			return err
		}
		if err := s.SendMsg(&m); err != nil {
			return err
		}
	}
}

// greetAs greets on a connection, and returns the lane with what it says of the caller.
func greetAs(t *testing.T, conn net.Conn, header metadata.MD) (ClientStream, string, error) {
	t.Helper()
	t.Cleanup(func() { conn.Close() })
	b, err := LaneHeader(metadata.NewOutgoingContext(context.Background(), header))
	if err != nil {
		t.Fatal(err)
	}
	if v := header.Get(MetadataKey); v != nil { // one version, and not this side's as well
		b = bytes.Replace(b, []byte("\x03\x00"+Version), []byte("\x03\x00"+v[0]), 1)
	}
	if _, err := conn.Write(append(binary.LittleEndian.AppendUint16(nil, uint16(len(b))), b...)); err != nil {
		return nil, "", err
	}
	lane := OpenPlain(context.Background(), conn, func() error { return nil })
	var answer note
	if err = lane.SendMsg(&note{}); err == nil {
		err = lane.RecvMsg(&answer)
	}
	return lane, string(answer.bytes), err
}

func (d *laneDoor) dial(t *testing.T, s *Security) net.Conn {
	t.Helper()
	conn, err := s.dialLane(t.Context(), d.address, Expectation{Worker: "w1"})
	if err != nil {
		t.Fatal(err)
	}
	return conn
}

func echoes(t *testing.T, lane ClientStream, sizes ...int) {
	t.Helper()
	for i, n := range sizes {
		sent, got := note{bytes.Repeat([]byte{byte(i + 1)}, n)}, note{}
		if err := errors.Join(lane.SendMsg(&sent), lane.RecvMsg(&got)); err != nil || !bytes.Equal(got.bytes, sent.bytes) {
			t.Fatalf("of %d bytes %d came back: %v", n, len(got.bytes), err)
		}
	}
}

// TestALaneByTLSCarriesMessagesOfAllSizes, as long as one and in many records.
func TestALaneByTLSCarriesMessagesOfAllSizes(t *testing.T) {
	c := newCity(t)
	d := openLaneDoor(t, c, FlightConfig{}, time.Minute)
	lane, who, err := greetAs(t, d.dial(t, c.of(c.issue(certs.Client, "ann", time.Hour))), nil)
	if err != nil || who != "ann" {
		t.Fatalf("it is %q: %v", who, err)
	}
	echoes(t, lane, 0, 1, 1000, 16_000, 16_384, 20_000, 65_000, plainBuffer, 70_000, 3<<20, 1)
}

// TestALaneByTLSIsRefusedAsACallIs has all whom gRPC refuses come by plain lanes: in the same words and with the same codes, and counted
// alike. A lane of one who is let in goes on meanwhile.
func TestALaneByTLSIsRefusedAsACallIs(t *testing.T) {
	c, foreign := newCity(t), newCity(t)
	d := openLaneDoor(t, c, FlightConfig{}, time.Minute)
	ann := c.issue(certs.Client, "ann", time.Hour)
	good, _, err := greetAs(t, d.dial(t, c.of(ann)), nil)
	if err != nil {
		t.Fatal(err)
	}
	stolen := t.TempDir()
	if err := os.CopyFS(stolen, os.DirFS(c.issue(certs.Client, "eve", time.Hour))); err != nil {
		t.Fatal(err)
	}
	short := c.of(c.issue(certs.Client, "short", time.Second))
	if err := c.authority.Revoke(certs.Identity{Role: certs.Client, Name: "eve"}); err != nil {
		t.Fatal(err)
	}
	c.ahead.Store(int64(time.Minute))
	trusting := func(folder string) *Security { return c.of(mixed(t, folder, ann)) }
	for _, k := range []struct {
		who    string
		by     *Security // nil shows no certificate
		header metadata.MD
		code   codes.Code
		reason certs.Reason // "" is not counted
		says   string
	}{
		{"no certificate", nil, nil, codes.Unauthenticated, certs.NoCertificate, "it shows no certificate"},
		{"a foreign authority", trusting(foreign.issue(certs.Client, "ann", time.Hour)), nil, codes.Unauthenticated, certs.UnknownAuthority, "client ann is signed by"},
		{"an expired certificate", short, nil, codes.Unauthenticated, certs.Expired, "the certificate of client short expired at"},
		{"a revoked certificate", c.of(stolen), nil, codes.Unauthenticated, certs.Revoked, "the certificate of client eve is revoked"},
		{"another role", c.of(c.issue(certs.Monitor, "m", time.Hour)), nil, codes.PermissionDenied, certs.WrongRole, "the caller's certificate is that of a monitor"},
		{"a capability that is none", c.of(ann), metadata.Pairs(capabilityKey, "x"), codes.Unauthenticated, certs.BadCapability, "the capability is none"},
		{"a token", c.of(ann), metadata.Pairs(tokenKey, bearer+"x"), codes.Unauthenticated, certs.BadToken, "this server takes no tokens"},
		{"too much metadata", c.of(ann), metadata.Pairs("note", strings.Repeat("x", maxLaneHeader-50)), codes.ResourceExhausted, certs.Metadata, "bytes of metadata"},
		{"two tenants", c.of(c.issue(certs.Relay, "r", time.Hour)), metadata.Pairs(tenantKey, "ann", tenantKey, "bob"), codes.InvalidArgument, "", "names 2 tenants"},
		{"another protocol", c.of(ann), metadata.Pairs(MetadataKey, "9.0"), codes.FailedPrecondition, "", "the major versions differ"},
		{"an old protocol", c.of(ann), metadata.Pairs(MetadataKey, "1.1"), codes.FailedPrecondition, "", "sessions need 1.2 at both sides"},
	} {
		before := d.s.Refused()[k.reason]
		var conn net.Conn
		if k.by == nil {
			made, err := tls.Dial("tcp", d.address, &tls.Config{InsecureSkipVerify: true, NextProtos: []string{laneProtocol}})
			if err != nil {
				t.Fatal(err)
			}
			conn = made
		} else {
			conn = d.dial(t, k.by)
		}
		if _, who, err := greetAs(t, conn, k.header); status.Code(err) != k.code || !strings.Contains(status.Convert(err).Message(), k.says) {
			t.Errorf("%s: is %q, and refused with %v", k.who, who, err)
		}
		if after := d.s.Refused()[k.reason]; k.reason != "" && after == before {
			t.Errorf("%s is not counted: %v", k.who, d.s.Refused())
		}
		echoes(t, good, 100)
	}
}

// TestALaneByTLSIsItsCallers: those of the cluster say for whom they come, and others are who they are.
func TestALaneByTLSIsItsCallers(t *testing.T) {
	c := newCity(t)
	d := openLaneDoor(t, c, FlightConfig{}, time.Minute)
	for _, k := range []struct {
		role certs.Role
		says metadata.MD
		want string
	}{
		{certs.Client, nil, "me"},
		{certs.Client, metadata.Pairs(tenantKey, "ann"), "me"},
		{certs.Relay, nil, ""},
		{certs.Relay, metadata.Pairs(tenantKey, "ann"), "ann"},
		{certs.Coordinator, metadata.Pairs(tenantKey, "ann"), "ann"},
		{certs.Coordinator, nil, "unbound"},
		{certs.Admin, nil, "unbound"},
	} {
		_, who, err := greetAs(t, d.dial(t, c.of(c.issue(k.role, "me", time.Hour))), k.says)
		if err != nil || who != k.want {
			t.Errorf("a %s that says %v is %q, not %q: %v", k.role, k.says, who, k.want, err)
		}
	}
}

// TestALaneByTLSThatSaysNothingIsClosed: gRPC's own deadline is over once it has handed the connection over.
func TestALaneByTLSThatSaysNothingIsClosed(t *testing.T) {
	c := newCity(t)
	d := openLaneDoor(t, c, FlightConfig{}, 50*time.Millisecond)
	for _, begins := range []string{"", "\x05", "\xff\xffabc"} {
		before := d.flight.Refused(certs.Silent)
		conn := d.dial(t, c.of(c.issue(certs.Client, "ann", time.Hour)))
		defer conn.Close()
		if _, err := conn.Write([]byte(begins)); err != nil {
			t.Fatal(err)
		}
		if n, err := conn.Read(make([]byte, 1)); n > 0 || err == nil { // waits for the end
			t.Errorf("%q is answered with %d bytes", begins, n)
		}
		if d.flight.Refused(certs.Silent) == before {
			t.Errorf("%q is not counted", begins)
		}
	}
}

// TestLanesByTLSAreCountedByTheirAddress together with the connections of gRPC, to which they leave half of the places.
func TestLanesByTLSAreCountedByTheirAddress(t *testing.T) {
	c := newCity(t)
	d := openLaneDoor(t, c, FlightConfig{PerAddress: 4}, time.Minute)
	s := c.of(c.issue(certs.Client, "ann", time.Hour))
	for range 2 {
		if _, _, err := greetAs(t, d.dial(t, s), nil); err != nil {
			t.Fatal(err)
		}
	}
	if conn, err := s.dialLane(t.Context(), d.address, Expectation{Worker: "w1"}); err == nil {
		if _, who, err := greetAs(t, conn, nil); err == nil {
			t.Errorf("a third lane is served, for %q", who)
		}
	}
	call := func() error {
		_, err := healthv1.NewHealthClient(dialed(t, d.address, s.Dial(Expectation{Worker: "w1"}))).Check(t.Context(), &healthv1.HealthCheckRequest{})
		return err
	}
	for range 2 {
		if err := call(); err != nil {
			t.Errorf("a connection of gRPC: %v", err)
		}
	}
	if n := d.s.Refused()[certs.ManyConnections]; n != 0 {
		t.Errorf("%d are counted as too many", n)
	}
	if conn, err := s.dialLane(t.Context(), d.address, Expectation{Worker: "w1"}); !errors.As(err, new(noTLSError)) {
		t.Errorf("a fifth connection shakes hands: %v, %v", conn, err)
	}
	if n := d.s.Refused()[certs.ManyConnections]; n != 1 {
		t.Errorf("%d are counted as too many, not 1", n)
	}
}

// TestALaneByTLSEndsWithWhatItHasShown: when the certificate of the client expires, and when the authority is replaced.
func TestALaneByTLSEndsWithWhatItHasShown(t *testing.T) {
	c := newCity(t)
	d := openLaneDoor(t, c, FlightConfig{}, time.Minute)
	lane, _, err := greetAs(t, d.dial(t, c.of(c.issue(certs.Client, "ann", 2*time.Second))), nil)
	if err != nil {
		t.Fatal(err)
	}
	var m note
	if err := lane.RecvMsg(&m); status.Code(err) != codes.Unavailable && status.Code(err) != codes.Canceled { // waits for the end
		t.Errorf("it ends with %v", err)
	}
	client := c.of(c.issue(certs.Client, "bob", time.Hour))
	if lane, _, err = greetAs(t, d.dial(t, client), nil); err != nil {
		t.Fatal(err)
	}
	for _, want := range []certs.Step{certs.Introduced, certs.Switched, certs.Finished} {
		if step, err := c.authority.Rotate(certs.AuthorityLife); err != nil || step != want {
			t.Fatal(step, err)
		}
		c.ahead.Add(int64(2 * lookEvery))
		next, who, err := greetAs(t, d.dial(t, client), nil)
		if err != nil || who != "bob" {
			t.Fatalf("after %v: %q, %v", want, who, err)
		}
		echoes(t, next, 10)
	}
	if err := lane.RecvMsg(&m); status.Code(err) != codes.Unavailable && status.Code(err) != codes.Canceled {
		t.Errorf("the lane of the old authority ends with %v", err)
	}
}

// TestWhoOffersNoLanesIsSpokenToByGRPC: a worker of before, and one that has ended to serve them.
func TestWhoOffersNoLanesIsSpokenToByGRPC(t *testing.T) {
	c := newCity(t)
	s := c.of(c.issue(certs.Client, "ann", time.Hour))
	d := openLaneDoor(t, c, FlightConfig{}, time.Minute)
	d.lanes.Close()
	for _, address := range []string{everything(t, c.of(c.issue(certs.Worker, "w1", time.Hour))), d.address} {
		conns := NewConns(s, DialOptions()...)
		for range 2 {
			if _, err := conns.DialLane(t.Context(), Peer{Name: "w1", Address: address}, []byte("boot")); !errors.Is(err, ErrNoLane) {
				t.Errorf("got %v", err)
			}
		}
		if err := conns.Close(); err != nil {
			t.Error(err)
		}
	}
	conns := NewConns(s, DialOptions()...)
	defer conns.Close()
	e := openLaneDoor(t, c, FlightConfig{}, time.Minute)
	for i := range mostLanes + 1 {
		conn, err := conns.DialLane(t.Context(), Peer{Name: "w1", Address: e.address}, []byte("boot"))
		if (err == nil) != (i < mostLanes) || err != nil && !errors.Is(err, ErrNoLane) {
			t.Fatalf("connection %d: %v", i, err)
		}
		if err == nil {
			defer conn.Close()
		}
	}
	if _, err := conns.DialLane(t.Context(), Peer{Name: "w2", Address: e.address}, []byte("boot")); status.Code(err) != codes.Unavailable || !strings.Contains(err.Error(), "and worker w2 was looked for") {
		t.Errorf("one worker for another: %v", err)
	}
}

// FuzzLaneHeader reads whatever a client may greet with. What is read is written as it came.
func FuzzLaneHeader(f *testing.F) {
	f.Add([]byte("\x01a\x02\x00bc"))
	f.Add([]byte("\x01a\xff\xffbc"))
	f.Add([]byte("\x00\x00\x00"))
	f.Fuzz(func(t *testing.T, b []byte) {
		header, err := ReadLaneHeader(b)
		if err != nil {
			return
		}
		n := 0
		for key, values := range header {
			for _, v := range values {
				n += len(key) + len(v) + 3
			}
		}
		if n > len(b) {
			t.Errorf("%q is read as %v", b, header)
		}
	})
}
