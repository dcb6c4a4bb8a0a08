package rpc

import (
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	healthv1 "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/metadata"
	reflectionv1 "google.golang.org/grpc/reflection/grpc_reflection_v1"
	"google.golang.org/grpc/status"

	"headwater.example/internal/certs"
	"headwater.example/internal/tenants"
	"headwater.example/internal/testkit/await"
	headwaterv1 "headwater.example/proto/headwater/v1"
)

// city is a cluster's authority, and a clock that all of its processes share.
type city struct {
	t         *testing.T
	authority *certs.Authority
	folder    string
	ahead     atomic.Int64 // of the real time
}

func newCity(t *testing.T) *city {
	c := &city{t: t, folder: filepath.Join(t.TempDir(), "certs")}
	var err error
	if c.authority, err = certs.Init(c.folder, certs.AuthorityLife, c.now); err != nil {
		t.Fatal(err)
	}
	return c
}

func (c *city) now() time.Time { return time.Now().Add(time.Duration(c.ahead.Load())) }

// issue makes the folder of a process.
func (c *city) issue(role certs.Role, name string, life time.Duration) string {
	c.t.Helper()
	id := certs.Identity{Role: role, Name: name}
	if _, err := c.authority.Issue(id, c.authority.FolderOf(id), life); err != nil {
		c.t.Fatal(err)
	}
	return c.authority.FolderOf(id)
}

// of is the security of a folder; plain text if there is none.
func (c *city) of(folder string) *Security {
	c.t.Helper()
	s, err := NewSecurity(SecurityConfig{Folder: folder, Logger: slog.New(slog.DiscardHandler), Now: c.now})
	if err != nil {
		c.t.Fatal(err)
	}
	return s
}

// everything serves all services, and answers each call that gets through as not implemented, but for health.
func everything(t *testing.T, s *Security) (address string) {
	t.Helper()
	flight := NewFlight(FlightConfig{})
	server := grpc.NewServer(flight.ServerOptions(Secure(s))...)
	headwaterv1.RegisterCoordinatorServiceServer(Registrar(server), headwaterv1.UnimplementedCoordinatorServiceServer{})
	headwaterv1.RegisterSessionServiceServer(Registrar(server), lanes{})
	headwaterv1.RegisterWorkerServiceServer(Registrar(server), headwaterv1.UnimplementedWorkerServiceServer{})
	headwaterv1.RegisterFillServiceServer(Registrar(server), headwaterv1.UnimplementedFillServiceServer{})
	Register(server)
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- server.Serve(listener) }()
	t.Cleanup(func() {
		server.Stop()
		if err := await.One(t, ended, "the end of the server"); err != nil {
			t.Error(err)
		}
	})
	return listener.Addr().String()
}

// lanes answers each step with its id.
type lanes struct {
	headwaterv1.UnimplementedSessionServiceServer
}

func (lanes) Lane(stream grpc.BidiStreamingServer[headwaterv1.LaneRequest, headwaterv1.LaneResponse]) error {
	for {
		m, err := stream.Recv()
		if err != nil {
			return nil
		}
		if err := stream.Send(&headwaterv1.LaneResponse{Id: m.GetId()}); err != nil {
			return err
		}
	}
}

func dialed(t *testing.T, address string, options ...grpc.DialOption) *grpc.ClientConn {
	t.Helper()
	conn, err := grpc.NewClient("passthrough:///"+address, append(DialOptions(), options...)...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	return conn
}

// ask makes a call of each service, and returns what becomes of them. Unimplemented is what a call gets that is let through.
func ask(t *testing.T, conn *grpc.ClientConn) map[string]error {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	_, coordinator := headwaterv1.NewCoordinatorServiceClient(conn).Status(ctx, &headwaterv1.StatusRequest{})
	_, session := headwaterv1.NewSessionServiceClient(conn).ListSessions(ctx, &headwaterv1.ListSessionsRequest{})
	_, worker := headwaterv1.NewWorkerServiceClient(conn).Describe(ctx, &headwaterv1.DescribeRequest{})
	filled, fill := headwaterv1.NewFillServiceClient(conn).FillSession(ctx)
	if fill == nil {
		_, fill = filled.Recv()
	}
	_, health := healthv1.NewHealthClient(conn).Check(ctx, &healthv1.HealthCheckRequest{})
	_, unknown := conn.NewStream(ctx, &grpc.StreamDesc{ServerStreams: true}, "/nobody/Knows")
	if unknown == nil {
		s, err := conn.NewStream(ctx, &grpc.StreamDesc{ServerStreams: true}, "/nobody/Knows")
		if unknown = err; err == nil {
			unknown = s.RecvMsg(&headwaterv1.StatusRequest{})
		}
	}
	return map[string]error{"coordinator": coordinator, "session": session, "worker": worker, "fill": fill, "health": health, "unknown": unknown}
}

// mixed is a folder with the certificate of one and the trust of another.
func mixed(t *testing.T, certificate, trust string) string {
	t.Helper()
	folder := t.TempDir()
	for file, from := range map[string]string{certs.CertFile: certificate, certs.KeyFile: certificate, certs.TrustFile: trust} {
		b, err := os.ReadFile(filepath.Join(from, file))
		if err == nil {
			err = os.WriteFile(filepath.Join(folder, file), b, 0o600)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	return folder
}

// TestStrangersAreRefusedAndToldWhy has each kind of them call every service of a server. Meanwhile a lane of one who is let in
// goes on.
func TestStrangersAreRefusedAndToldWhy(t *testing.T) {
	c, foreign := newCity(t), newCity(t)
	server := c.of(c.issue(certs.Coordinator, "c1", time.Hour))
	address := everything(t, server)
	ann := c.issue(certs.Client, "ann", time.Hour)
	lane, err := headwaterv1.NewSessionServiceClient(dialed(t, address, c.of(ann).Dial(Expectation{}))).Lane(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	step := uint64(0)
	goesOn := func(after string) {
		t.Helper()
		step++
		err := lane.Send(&headwaterv1.LaneRequest{Id: step})
		if err == nil {
			_, err = lane.Recv()
		}
		if err != nil {
			t.Errorf("after %s the lane of another ends: %v", after, err)
		}
	}
	goesOn("nobody")
	short := c.issue(certs.Client, "short", time.Second)
	old := dialed(t, address, c.of(short).Dial(Expectation{}))
	c.ahead.Store(int64(time.Minute))
	for _, k := range []struct {
		who    string
		conn   *grpc.ClientConn
		reason certs.Reason
		says   string
	}{
		{"plain text", dialed(t, address), certs.PlainText, "it speaks no TLS: give it a certificate by --tls-dir"},
		{"no certificate", dialed(t, address, grpc.WithTransportCredentials(credentials.NewTLS(&tls.Config{InsecureSkipVerify: true}))), certs.NoCertificate, "it shows no certificate"},
		{"a foreign authority", dialed(t, address, c.of(mixed(t, foreign.issue(certs.Client, "ann", time.Hour), ann)).Dial(Expectation{})), certs.UnknownAuthority, "client ann is signed by"},
		{"an expired certificate", old, certs.Expired, "the certificate of client short expired at"},
	} {
		before := server.Refused()[k.reason]
		for service, err := range ask(t, k.conn) {
			if status.Code(err) != codes.Unauthenticated || !strings.Contains(err.Error(), "the coordinator refuses this client: ") || !strings.Contains(err.Error(), k.says) {
				t.Errorf("%s asks %s: %v", k.who, service, err)
			}
		}
		if after := server.Refused()[k.reason]; after == before {
			t.Errorf("%s is not counted as %s: %v", k.who, k.reason, server.Refused())
		}
		goesOn(k.who)
	}
}

// TestARoleIsHeldToWhatItMayDo holds each role against each service of each kind of server.
func TestARoleIsHeldToWhatItMayDo(t *testing.T) {
	c := newCity(t)
	may := map[certs.Role]map[certs.Role]string{ // by server, by caller
		certs.Coordinator: {certs.Client: "coordinator session", certs.Relay: "coordinator session", certs.Coordinator: "coordinator session", certs.Worker: ""},
		certs.Worker:      {certs.Client: "session", certs.Relay: "session", certs.Coordinator: "session worker fill", certs.Worker: "session"},
		certs.Relay:       {certs.Client: "session", certs.Relay: "", certs.Coordinator: "", certs.Worker: ""},
	}
	serves := map[certs.Role]string{certs.Coordinator: "coordinator session", certs.Worker: "session worker fill", certs.Relay: "session"}
	for at, callers := range may {
		server := c.of(c.issue(at, "s1", time.Hour))
		address := everything(t, server)
		to := Expectation{}
		if at == certs.Worker {
			to.Worker = "s1"
		}
		for role, services := range callers {
			refusals := server.Refused()[certs.WrongRole]
			answers := ask(t, dialed(t, address, c.of(c.issue(role, "me", time.Hour)).Dial(to)))
			for _, service := range []string{"coordinator", "session", "worker", "fill"} {
				want := codes.PermissionDenied
				if strings.Contains(services, service) || !strings.Contains(serves[at], service) {
					want = codes.Unimplemented
				} else {
					refusals++
				}
				if got := answers[service]; status.Code(got) != want || want == codes.PermissionDenied && !strings.Contains(got.Error(), "the caller's certificate is that of a "+string(role)) {
					t.Errorf("a %s asks the %s service of a %s: %v, want %v", role, service, at, got, want)
				}
			}
			if answers["health"] != nil {
				t.Errorf("a %s asks a %s how it is: %v", role, at, answers["health"])
			}
			if got := server.Refused()[certs.WrongRole]; got != refusals {
				t.Errorf("a %s at a %s: %d refusals are counted, want %d", role, at, got, refusals)
			}
		}
	}
}

// TestAClientKnowsWhomItAsks lets others answer where it looks for a coordinator or a worker.
func TestAClientKnowsWhomItAsks(t *testing.T) {
	c, foreign := newCity(t), newCity(t)
	ann := c.issue(certs.Client, "ann", time.Hour)
	coordinator, worker := c.issue(certs.Coordinator, "c1", time.Hour), c.issue(certs.Worker, "w1", time.Hour)
	for _, k := range []struct {
		who    string
		server *Security
		to     Expectation
		code   codes.Code
		reason certs.Reason
		says   string
	}{
		{"a worker for a coordinator", c.of(worker), Expectation{}, codes.Unauthenticated, certs.WrongRole, "is worker w1, and a coordinator was looked for"},
		{"a client for a coordinator", c.of(c.issue(certs.Client, "bob", time.Hour)), Expectation{}, codes.Unauthenticated, certs.WrongRole, "is client bob, and a coordinator was looked for"},
		{"a coordinator for a worker", c.of(coordinator), Expectation{Worker: "w1"}, codes.Unavailable, certs.WrongRole, "is coordinator c1, and worker w1 was looked for"},
		{"one worker for another", c.of(worker), Expectation{Worker: "w2"}, codes.Unavailable, certs.WrongName, "is worker w1 by its certificate, and worker w2 was looked for"},
		{"a foreign coordinator", foreign.of(foreign.issue(certs.Coordinator, "c1", time.Hour)), Expectation{}, codes.Unauthenticated, certs.UnknownAuthority, "coordinator c1 is signed by"},
		{"plain text", nil, Expectation{}, codes.Unauthenticated, certs.PlainText, "speaks no TLS: it was started without --tls-dir"},
	} {
		own := c.of(ann)
		address := everything(t, k.server)
		_, err := headwaterv1.NewCoordinatorServiceClient(dialed(t, address, own.Dial(k.to))).Status(t.Context(), &headwaterv1.StatusRequest{})
		if status.Code(err) != k.code || !strings.Contains(err.Error(), k.says) || !strings.Contains(err.Error(), map[bool]string{true: address}[k.reason != certs.UnknownAuthority]) {
			t.Errorf("%s: %v", k.who, err)
		}
		if own.Refused()[k.reason] == 0 {
			t.Errorf("%s is not counted as %s: %v", k.who, k.reason, own.Refused())
		}
	}
}

// elsewhere is a connection that says that it leads to another machine.
type elsewhere struct{ net.Conn }

func (elsewhere) RemoteAddr() net.Addr { return &net.TCPAddr{IP: net.IPv4(192, 0, 2, 1), Port: 7600} }

func TestPlainTextStaysOnThisMachine(t *testing.T) {
	c := newCity(t)
	address := everything(t, nil)
	away := grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) {
		conn, err := new(net.Dialer).DialContext(ctx, "tcp", address)
		return elsewhere{conn}, err
	})
	if err := ask(t, dialed(t, address))["coordinator"]; status.Code(err) != codes.Unimplemented {
		t.Errorf("to this machine: %v", err)
	}
	err := ask(t, dialed(t, address, away))["coordinator"]
	if status.Code(err) != codes.Unauthenticated || !strings.Contains(err.Error(), "192.0.2.1:7600 is another machine, and there is no certificate: give one by --tls-dir") {
		t.Errorf("to another: %v", err)
	}
	open, err := NewSecurity(SecurityConfig{Insecure: true})
	if err != nil {
		t.Fatal(err)
	}
	if err := ask(t, dialed(t, address, away, open.Dial(Expectation{})))["coordinator"]; status.Code(err) != codes.Unimplemented {
		t.Errorf("to another, which was asked for: %v", err)
	}
	_ = c
}

// TestCertificatesAreReadAgain replaces the authority under a server and its client, one after the other, and lets the client
// connect anew at each step. In the end the connections that the old authority vouched for are gone, and nobody was refused.
func TestCertificatesAreReadAgain(t *testing.T) {
	c := newCity(t)
	server := c.of(c.issue(certs.Coordinator, "c1", time.Hour))
	client := c.of(c.issue(certs.Client, "ann", time.Hour))
	address := everything(t, server)
	first := dialed(t, address, client.Dial(Expectation{}))
	lane, err := headwaterv1.NewSessionServiceClient(first).Lane(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if err := lane.Send(&headwaterv1.LaneRequest{Id: 1}); err != nil {
		t.Fatal(err)
	}
	if _, err := lane.Recv(); err != nil {
		t.Fatal(err)
	}
	for _, want := range []certs.Step{certs.Introduced, certs.Switched, certs.Finished} {
		if step, err := c.authority.Rotate(certs.AuthorityLife); err != nil || step != want {
			t.Fatal(step, err)
		}
		c.ahead.Add(int64(2 * lookEvery))
		if err := ask(t, dialed(t, address, client.Dial(Expectation{})))["coordinator"]; status.Code(err) != codes.Unimplemented {
			t.Errorf("step %v: %v", want, err)
		}
	}
	if _, err := lane.Recv(); err == nil || err == io.EOF {
		t.Errorf("the lane of the old authority ends with %v", err)
	}
	for reason, n := range server.Refused() {
		if n > 0 {
			t.Errorf("%d refusals: %s", n, reason)
		}
	}
}

// TestABrokenFolderChangesNothing has the files replaced by what can't be read, and then by what can.
func TestABrokenFolderChangesNothing(t *testing.T) {
	c := newCity(t)
	folder := c.issue(certs.Coordinator, "c1", time.Hour)
	server := c.of(folder)
	address := everything(t, server)
	client := c.of(c.issue(certs.Client, "ann", time.Hour))
	good, err := os.ReadFile(filepath.Join(folder, certs.KeyFile))
	if err != nil {
		t.Fatal(err)
	}
	expires := server.Expires()
	for _, content := range []string{"nonsense", string(good)} {
		if err := os.WriteFile(filepath.Join(folder, certs.KeyFile), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		c.ahead.Add(int64(2 * lookEvery))
		if err := ask(t, dialed(t, address, client.Dial(Expectation{})))["coordinator"]; status.Code(err) != codes.Unimplemented {
			t.Errorf("with %.8q as its key: %v", content, err)
		}
	}
	if _, err := c.authority.Issue(certs.Identity{Role: certs.Coordinator, Name: "c1"}, folder, 2*time.Hour); err != nil {
		t.Fatal(err)
	}
	c.ahead.Add(int64(2 * lookEvery))
	if !server.Expires().After(expires.Add(30 * time.Minute)) {
		t.Errorf("the new certificate is not taken: it expires at %v, as did %v", server.Expires(), expires)
	}
}

// TestAConnectionEndsWithItsCertificate, and the next one has the certificate that was issued meanwhile.
func TestAConnectionEndsWithItsCertificate(t *testing.T) {
	c := newCity(t)
	address := everything(t, c.of(c.issue(certs.Coordinator, "c1", time.Hour)))
	folder := c.issue(certs.Client, "ann", 2*time.Second)
	client := c.of(folder)
	conn := dialed(t, address, client.Dial(Expectation{}))
	lane, err := headwaterv1.NewSessionServiceClient(conn).Lane(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if err := lane.Send(&headwaterv1.LaneRequest{Id: 1}); err != nil {
		t.Fatal(err)
	}
	if _, err := lane.Recv(); err != nil {
		t.Fatal(err)
	}
	c.issue(certs.Client, "ann", time.Hour)
	if _, err := lane.Recv(); status.Code(err) != codes.Unavailable { // waits for the end of the first certificate
		t.Errorf("the lane ends with %v", err)
	}
	if err := ask(t, conn)["coordinator"]; status.Code(err) != codes.Unimplemented {
		t.Errorf("with the new certificate: %v", err)
	}
}

// TestAConnectionEndsWithTheServersCertificate also where the client looks at that only when it connects, as those of other languages do.
func TestAConnectionEndsWithTheServersCertificate(t *testing.T) {
	c := newCity(t)
	address := everything(t, c.of(c.issue(certs.Coordinator, "c1", 2*time.Second)))
	own, err := certs.Read(c.issue(certs.Client, "ann", time.Hour))
	if err != nil {
		t.Fatal(err)
	}
	conn := dialed(t, address, grpc.WithTransportCredentials(credentials.NewTLS(&tls.Config{Certificates: []tls.Certificate{own.Cert}, InsecureSkipVerify: true})))
	lane, err := headwaterv1.NewSessionServiceClient(conn).Lane(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if err := lane.Send(&headwaterv1.LaneRequest{Id: 1}); err != nil {
		t.Fatal(err)
	}
	if _, err := lane.Recv(); err != nil {
		t.Fatal(err)
	}
	if _, err := lane.Recv(); status.Code(err) != codes.Unavailable { // waits for the end of the certificate
		t.Errorf("the lane ends with %v", err)
	}
}

// TestACrowdOfStrangersKeepsNobodyOut lets more strangers stay than are told why, beside one who is let in.
func TestACrowdOfStrangersKeepsNobodyOut(t *testing.T) {
	c := newCity(t)
	server := c.of(c.issue(certs.Coordinator, "c1", time.Hour))
	address := everything(t, server)
	for range 2 * maxStrangers {
		conn, err := net.Dial("tcp", address)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		if _, err := conn.Write([]byte("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00")); err != nil {
			t.Fatal(err)
		}
		if _, err := conn.Read(make([]byte, 1)); err != nil && server.Refused()[certs.Crowded] == 0 {
			t.Fatal(err)
		}
	}
	if err := ask(t, dialed(t, address, c.of(c.issue(certs.Client, "ann", time.Hour)).Dial(Expectation{})))["coordinator"]; status.Code(err) != codes.Unimplemented {
		t.Errorf("beside a crowd: %v", err)
	}
	if n := server.Refused(); n[certs.Crowded] != maxStrangers || n[certs.PlainText] != 2*maxStrangers {
		t.Errorf("they are counted as %v", n)
	}
}

func TestACertificateIsThatOfItsProcess(t *testing.T) {
	c := newCity(t)
	worker := c.of(c.issue(certs.Worker, "w-*", time.Hour))
	if err := worker.Serves(certs.Worker, "w-1"); err != nil {
		t.Error(err)
	}
	for want, err := range map[string]error{
		"and this is worker x1: `coord certs issue worker x1` makes one for it": worker.Serves(certs.Worker, "x1"),
		"the certificate is that of worker w-*, and this is coordinator w-1":    worker.Serves(certs.Coordinator, "w-1"),
	} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v, want it to say %q", err, want)
		}
	}
	c.ahead.Store(int64(2 * time.Hour))
	if err := worker.Serves(certs.Worker, "w-1"); err == nil || !strings.Contains(err.Error(), "peers will refuse this process: the certificate of worker w-* expired at") {
		t.Errorf("an expired one: %v", err)
	}
}

// TestATokenStandsForACertificate: a client that shows a tenant's token is that tenant, with or without a certificate. One that is
// nobody's is refused in words, and so is one that was removed, whose connection ends.
func TestATokenStandsForACertificate(t *testing.T) {
	t.Parallel()
	c := newCity(t)
	server, client := c.issue(certs.Coordinator, "c1", time.Hour), c.issue(certs.Client, "app", time.Hour)
	bare := t.TempDir()
	trust, err := os.ReadFile(filepath.Join(client, certs.TrustFile))
	if err == nil {
		err = os.WriteFile(filepath.Join(bare, certs.TrustFile), trust, 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "tenants.json")
	table := &tenants.Table{}
	ann, err := table.Add("ann", false, c.now())
	if err != nil {
		t.Fatal(err)
	}
	ops, err := table.Add("ops", true, c.now())
	if err == nil {
		err = table.Write(file)
	}
	if err != nil {
		t.Fatal(err)
	}
	var said strings.Builder
	s, err := NewSecurity(SecurityConfig{Folder: server, Tenants: file, Logger: slog.New(slog.NewTextHandler(&said, nil)), Now: c.now})
	if err != nil {
		t.Fatal(err)
	}
	callers := make(chan Caller, 1)
	address := whoever(t, s, callers)
	as := func(folder, token string) *grpc.ClientConn {
		cs, err := NewSecurity(SecurityConfig{Folder: folder, Token: func() (string, error) { return token, nil }, Logger: slog.New(slog.DiscardHandler), Now: c.now})
		if err != nil {
			t.Fatal(err)
		}
		return dialed(t, address, cs.Dial(Expectation{}), cs.Sign(Expectation{}))
	}
	ask := func(conn *grpc.ClientConn) error {
		_, err := headwaterv1.NewCoordinatorServiceClient(conn).Status(t.Context(), &headwaterv1.StatusRequest{})
		return err
	}
	hers := as(bare, ann)
	for _, k := range []struct {
		conn   *grpc.ClientConn
		tenant string
		bound  bool
	}{{hers, "ann", true}, {as(client, ann), "ann", true}, {as(bare, ops), "", false}} {
		if err := ask(k.conn); status.Code(err) != codes.Unimplemented {
			t.Fatalf("%q is refused: %v", k.tenant, err)
		}
		if got := await.One(t, callers, "the caller"); got.Tenant != k.tenant || got.Unbound == k.bound {
			t.Errorf("a call is for %+v, not %q", got, k.tenant)
		}
	}
	for what, conn := range map[string]*grpc.ClientConn{"a wrong token": as(bare, ann+"x"), "one beside a certificate": as(client, "x")} {
		if err := ask(conn); status.Code(err) != codes.Unauthenticated || !strings.Contains(err.Error(), "its token is no tenant's") {
			t.Errorf("%s: %v", what, err)
		}
	}
	if n := s.Refused()[certs.BadToken]; n != 2 {
		t.Errorf("%d tokens are counted as bad, not 2", n)
	}
	plain := dialed(t, address, c.of(client).Dial(Expectation{}))
	if err := ask(plain); status.Code(err) != codes.Unimplemented {
		t.Fatalf("a client with a certificate is refused: %v", err)
	}
	if got := await.One(t, callers, "the caller"); got.Tenant != "app" {
		t.Errorf("a client with a certificate is %+v", got)
	}
	if _, err := table.Rotate("ann", false); err != nil {
		t.Fatal(err)
	}
	if err := table.Write(file); err != nil {
		t.Fatal(err)
	}
	state := hers.GetState()
	c.ahead.Add(int64(2 * lookEvery))
	if err := ask(plain); status.Code(err) != codes.Unimplemented { // which looks at the files
		t.Fatal(err)
	}
	await.One(t, callers, "the caller")
	if !hers.WaitForStateChange(t.Context(), state) {
		t.Fatal("the connection of a token that was rotated stays")
	}
	if err := ask(hers); status.Code(err) != codes.Unauthenticated {
		t.Errorf("a token that was rotated: %v", err)
	}
	if want := fmt.Sprintf(`msg="tenants have changed" audit=true by="file %s" added=[] removed=[] tokens_of=[ann] admins=[] limits_of=[]`, file); !strings.Contains(said.String(), want) {
		t.Errorf("the audit log is %s", said.String())
	}
	for _, token := range []string{ann, ops, tenants.Hash(ann), tenants.Hash(ops)} {
		if strings.Contains(said.String(), token) {
			t.Error("the log has a token, or its hash")
		}
	}
}

// asked tells for whom it is asked for the status, and does not say it.
type asked struct {
	headwaterv1.UnimplementedCoordinatorServiceServer
	callers chan<- Caller
}

func (a asked) Status(ctx context.Context, r *headwaterv1.StatusRequest) (*headwaterv1.StatusResponse, error) {
	a.callers <- CallerOf(ctx)
	return a.UnimplementedCoordinatorServiceServer.Status(ctx, r)
}

// whoever serves the coordinator's calls, and tells for whom each is that is let through.
func whoever(t *testing.T, s *Security, callers chan<- Caller) (address string) {
	t.Helper()
	flight := NewFlight(FlightConfig{})
	server := grpc.NewServer(flight.ServerOptions(Secure(s))...)
	headwaterv1.RegisterCoordinatorServiceServer(Registrar(server), asked{callers: callers})
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- server.Serve(listener) }()
	t.Cleanup(func() {
		server.Stop()
		if err := await.One(t, ended, "the end of the server"); err != nil {
			t.Error(err)
		}
	})
	return listener.Addr().String()
}

// TestWhatNobodyNeedsIsShut: reflection is for admins, and the metadata of a call has a bound.
func TestWhatNobodyNeedsIsShut(t *testing.T) {
	t.Parallel()
	c := newCity(t)
	s := c.of(c.issue(certs.Coordinator, "c1", time.Hour))
	address := everything(t, s)
	for role, want := range map[certs.Role]codes.Code{certs.Client: codes.PermissionDenied, certs.Admin: codes.OK} {
		conn := dialed(t, address, c.of(c.issue(role, "it", time.Hour)).Dial(Expectation{}))
		stream, err := reflectionv1.NewServerReflectionClient(conn).ServerReflectionInfo(t.Context())
		if err == nil {
			if err = stream.Send(&reflectionv1.ServerReflectionRequest{MessageRequest: &reflectionv1.ServerReflectionRequest_ListServices{}}); err == nil || err == io.EOF {
				_, err = stream.Recv()
			}
		}
		if status.Code(err) != want {
			t.Errorf("reflection for a %s: %v", role, err)
		}
	}
	if n := s.Refused()[certs.WrongRole]; n != 1 {
		t.Errorf("%d are counted as of the wrong role, not 1", n)
	}
	conn := dialed(t, address, c.of(c.issue(certs.Client, "ann", time.Hour)).Dial(Expectation{}))
	asks := func(bytes int) error {
		ctx := metadata.AppendToOutgoingContext(t.Context(), "note", strings.Repeat("x", bytes))
		_, err := headwaterv1.NewCoordinatorServiceClient(conn).Status(ctx, &headwaterv1.StatusRequest{})
		return err
	}
	if err := asks(maxHeaderBytes); err == nil || status.Code(err) == codes.Unimplemented {
		t.Errorf("a call with too much metadata: %v", err)
	}
	if err := asks(1000); status.Code(err) != codes.Unimplemented {
		t.Errorf("the next one: %v", err)
	}
}

// TestWhoeverIsRevokedIsPutOut: the connection ends, and the next one is refused and counted. Others stay.
func TestWhoeverIsRevokedIsPutOut(t *testing.T) {
	t.Parallel()
	c := newCity(t)
	s := c.of(c.issue(certs.Coordinator, "c1", time.Hour))
	callers := make(chan Caller, 1)
	address := whoever(t, s, callers)
	// The client has a copy of its folder, as a thief would.
	thief := t.TempDir()
	if err := os.CopyFS(thief, os.DirFS(c.issue(certs.Client, "ann", time.Hour))); err != nil {
		t.Fatal(err)
	}
	ann := dialed(t, address, c.of(thief).Dial(Expectation{}))
	bob := dialed(t, address, c.of(c.issue(certs.Client, "bob", time.Hour)).Dial(Expectation{}))
	ask := func(conn *grpc.ClientConn) error {
		_, err := headwaterv1.NewCoordinatorServiceClient(conn).Status(t.Context(), &headwaterv1.StatusRequest{})
		if status.Code(err) == codes.Unimplemented {
			await.One(t, callers, "the caller")
		}
		return err
	}
	for _, conn := range []*grpc.ClientConn{ann, bob} {
		if err := ask(conn); status.Code(err) != codes.Unimplemented {
			t.Fatal(err)
		}
	}
	c.ahead.Add(int64(time.Minute))
	if err := c.authority.Revoke(certs.Identity{Role: certs.Client, Name: "ann"}); err != nil {
		t.Fatal(err)
	}
	was, others := ann.GetState(), bob.GetState()
	if err := ask(bob); status.Code(err) != codes.Unimplemented { // which looks at the files
		t.Fatal(err)
	}
	if !ann.WaitForStateChange(t.Context(), was) {
		t.Fatal("a revoked connection stays")
	}
	if err := ask(ann); status.Code(err) != codes.Unauthenticated || !strings.Contains(err.Error(), "the certificate of client ann is revoked") {
		t.Errorf("a revoked certificate: %v", err)
	}
	if n := s.Refused()[certs.Revoked]; n < 1 {
		t.Error("it is not counted")
	}
	if bob.GetState() != others {
		t.Error("another connection has ended, too")
	}
}
