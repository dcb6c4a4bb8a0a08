package rpc

import (
	"context"
	"crypto/sha256"
	"crypto/tls"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/durationpb"

	"headwater.example/internal/capability"
	"headwater.example/internal/certs"
	"headwater.example/internal/tenants"
	"headwater.example/internal/testkit/await"
	headwaterv1 "headwater.example/proto/headwater/v1"
)

// granter is a coordinator that grants capabilities, and counts them.
type granter struct {
	headwaterv1.UnimplementedClusterServiceServer
	s      *Security
	grants atomic.Int64
	refuse atomic.Bool
}

func (g *granter) GrantCapability(ctx context.Context, r *headwaterv1.GrantCapabilityRequest) (*headwaterv1.GrantCapabilityResponse, error) {
	if g.refuse.Load() {
		return nil, status.Error(codes.Unavailable, "it is tired")
	}
	b, life, err := g.s.Grant(CallerOf(ctx), r.GetKey(), r.GetSession(), r.GetLife().AsDuration())
	if err != nil {
		return nil, err
	}
	g.grants.Add(1)
	return &headwaterv1.GrantCapabilityResponse{Capability: b, Life: durationpb.New(life)}, nil
}

// holder is a worker that answers lanes, and tells of each call of ListSessions by whom it is, and with what metadata.
type holder struct {
	lanes
	mu      sync.Mutex
	callers []Caller
	shown   []metadata.MD
}

func (h *holder) ListSessions(ctx context.Context, r *headwaterv1.ListSessionsRequest) (*headwaterv1.ListSessionsResponse, error) {
	who := CallerOf(ctx)
	md, _ := metadata.FromIncomingContext(ctx)
	h.mu.Lock()
	h.callers, h.shown = append(h.callers, who), append(h.shown, md)
	h.mu.Unlock()
	for _, id := range r.GetSessions() {
		if err := who.Restrict([16]byte(id)); err != nil {
			return nil, err
		}
	}
	return &headwaterv1.ListSessionsResponse{}, nil
}

// state is a cluster of a coordinator that takes tokens and a worker, and what they are by their certificates.
type state struct {
	*city
	coordinator, worker     *Security
	coordinatorAt, workerAt string
	granter                 *granter
	holder                  *holder
	bare                    string // a folder of ca.crt alone
	tokens                  map[string]string
}

func newState(t *testing.T) *state {
	t.Helper()
	st := &state{city: newCity(t), bare: t.TempDir(), tokens: map[string]string{}, holder: &holder{}}
	folder := st.issue(certs.Coordinator, "c1", 24*time.Hour)
	table, file := &tenants.Table{}, filepath.Join(t.TempDir(), "tenants.json")
	for name, admin := range map[string]bool{"ann": false, "bob": false, "ops": true} {
		token, err := table.Add(name, admin, st.now())
		if err != nil {
			t.Fatal(err)
		}
		st.tokens[name] = token
	}
	if err := table.Write(file); err != nil {
		t.Fatal(err)
	}
	trust, err := os.ReadFile(filepath.Join(folder, certs.TrustFile))
	if err == nil {
		err = os.WriteFile(filepath.Join(st.bare, certs.TrustFile), trust, 0o600)
	}
	if err == nil {
		st.coordinator, err = NewSecurity(SecurityConfig{Folder: folder, Tenants: file, Logger: slog.New(slog.DiscardHandler), Now: st.now})
	}
	if err != nil {
		t.Fatal(err)
	}
	st.granter = &granter{s: st.coordinator}
	st.worker = st.of(st.issue(certs.Worker, "w1", 24*time.Hour))
	st.coordinatorAt = served(t, st.coordinator, func(s grpc.ServiceRegistrar) { headwaterv1.RegisterClusterServiceServer(s, st.granter) })
	st.workerAt = served(t, st.worker, func(s grpc.ServiceRegistrar) {
		headwaterv1.RegisterSessionServiceServer(s, st.holder)
		headwaterv1.RegisterWorkerServiceServer(s, headwaterv1.UnimplementedWorkerServiceServer{})
	})
	return st
}

// served serves what is registered, and health.
func served(t *testing.T, s *Security, register func(grpc.ServiceRegistrar)) (address string) {
	t.Helper()
	flight := NewFlight(FlightConfig{})
	server := grpc.NewServer(flight.ServerOptions(Secure(s))...)
	register(Registrar(server))
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

// client is that of a tenant with a token: its connections, and the one to the worker.
func (st *state) client(t *testing.T, tenant string) (*Conns, *Conn) {
	t.Helper()
	s, err := NewSecurity(SecurityConfig{Folder: st.bare, Token: func() (string, error) { return st.tokens[tenant], nil }, Logger: slog.New(slog.DiscardHandler), Now: st.now})
	if err != nil {
		t.Fatal(err)
	}
	s.GrantBy(dialed(t, st.coordinatorAt, s.Dial(Expectation{}), s.Sign(Expectation{})))
	conns := NewConns(s, DialOptions()...)
	t.Cleanup(func() { _ = conns.Close() })
	conn, err := conns.Use(Peer{Name: "w1", Address: st.workerAt})
	if err != nil {
		t.Fatal(err)
	}
	return conns, conn
}

// list asks a worker for sessions.
func list(t *testing.T, conn grpc.ClientConnInterface, sessions ...[]byte) error {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	_, err := headwaterv1.NewSessionServiceClient(conn).ListSessions(ctx, &headwaterv1.ListSessionsRequest{Sessions: sessions})
	return err
}

// TestACapabilityLetsATokensClientIn: a client that has a token and no certificate uses a worker as its tenant. The worker never sees
// the token, asks nobody, and lets the client do no more than a client may.
func TestACapabilityLetsATokensClientIn(t *testing.T) {
	t.Parallel()
	st := newState(t)
	for _, tenant := range []string{"ann", "ops"} {
		_, conn := st.client(t, tenant)
		for range 3 {
			if err := list(t, conn); err != nil {
				t.Fatalf("%s: %v", tenant, err)
			}
		}
		_, err := headwaterv1.NewWorkerServiceClient(conn).Describe(t.Context(), &headwaterv1.DescribeRequest{})
		if status.Code(err) != codes.PermissionDenied {
			t.Errorf("%s does what coordinators may: %v", tenant, err)
		}
	}
	if n := st.granter.grants.Load(); n != 2 {
		t.Errorf("%d capabilities were granted for 2 clients", n)
	}
	for i, who := range st.holder.callers {
		want := Caller{Tenant: "ann", Holder: certs.Holder{Role: certs.Client, Names: []string{"ann"}}}
		if i >= 3 {
			want = Caller{Unbound: true, Holder: certs.Holder{Role: certs.Admin, Names: []string{"ops"}}}
		}
		if who.Tenant != want.Tenant || who.Unbound != want.Unbound || who.Holder.String() != want.Holder.String() {
			t.Errorf("call %d is for %+v", i, who)
		}
		if said := st.holder.shown[i]; len(said.Get(tokenKey)) > 0 || strings.Contains(strings.Join(said.Get(capabilityKey), ""), "hwt_") {
			t.Error("the worker sees a token")
		}
	}
	if st.worker.Refused()[certs.WrongRole] != 2 {
		t.Errorf("it is counted as %v", st.worker.Refused())
	}
}

// TestALaneOutlivesItsCapability: the client renews its capability, and its lane goes on past the end of the first one; so it does while
// no coordinator answers, until the capability ends. Then the connection ends, and what comes next is refused until there is another.
func TestALaneOutlivesItsCapability(t *testing.T) {
	t.Parallel()
	st := newState(t)
	conns, conn := st.client(t, "ann")
	lane, err := headwaterv1.NewSessionServiceClient(conn).Lane(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	step := func() error {
		if err := lane.Send(&headwaterv1.LaneRequest{Id: 1}); err != nil {
			return err
		}
		_, err := lane.Recv()
		return err
	}
	// ends has the timers of all connections of the worker come to their end.
	ends := func() {
		st.worker.mu.Lock()
		var all []*securedConn
		for c := range st.worker.live {
			all = append(all, c)
		}
		st.worker.mu.Unlock()
		for _, c := range all {
			c.end()
		}
	}
	for range 5 {
		if err := step(); err != nil {
			t.Fatal(err)
		}
		before := st.granter.grants.Load()
		st.ahead.Add(int64(capability.Life / 2))
		conns.renewDue(t.Context())
		if n := st.granter.grants.Load(); n != before+1 {
			t.Fatalf("%d capabilities were granted, not %d", n, before+1)
		}
		ends()
	}
	st.granter.refuse.Store(true)
	st.ahead.Add(int64(capability.Life - time.Minute))
	conns.renewDue(t.Context())
	ends()
	if err := step(); err != nil {
		t.Fatalf("while no coordinator answers: %v", err)
	}
	st.ahead.Add(int64(time.Minute))
	ends()
	if err := step(); err == nil {
		t.Fatal("the lane goes on without a capability")
	}
	if err := list(t, conn); status.Code(err) != codes.Unavailable || !strings.Contains(err.Error(), "ask the coordinator for a capability: it is tired") {
		t.Errorf("without a capability: %v", err)
	}
	st.granter.refuse.Store(false)
	if err := list(t, conn); err != nil {
		t.Errorf("with another one: %v", err)
	}
}

// with is a connection to the worker by a certificate that shows some capability; nil is no certificate.
func (st *state) with(t *testing.T, key *tls.Certificate, shown string) *grpc.ClientConn {
	t.Helper()
	config := &tls.Config{InsecureSkipVerify: true, NextProtos: []string{"h2"}}
	if key != nil {
		config.Certificates = []tls.Certificate{*key}
	}
	return dialed(t, st.workerAt, grpc.WithTransportCredentials(credentials.NewTLS(config)), grpc.WithPerRPCCredentials(shows(shown)))
}

type shows string

func (s shows) GetRequestMetadata(context.Context, ...string) (map[string]string, error) {
	if s == "" {
		return nil, nil
	}
	return map[string]string{capabilityKey: string(s)}, nil
}

func (shows) RequireTransportSecurity() bool { return true }

// TestACapabilityIsItsOwnersAlone shows a worker capabilities that were stolen, forged, damaged or made for something else. Each is
// refused with its code, and counted; a lane of one who is let in goes on.
func TestACapabilityIsItsOwnersAlone(t *testing.T) {
	t.Parallel()
	st, foreign := newState(t), newState(t)
	key, other := newKey(t), newKey(t)
	named, session := capability.KeyOf(key.Leaf), [16]byte{5}
	ann := Caller{Tenant: "ann", Holder: certs.Holder{Role: certs.Client, Names: []string{"ann"}}}
	bob := Caller{Tenant: "bob", Holder: certs.Holder{Role: certs.Client, Names: []string{"bob"}}}
	hers, ofOne := grants(t, st, ann, named, nil), grants(t, st, ann, named, session[:])
	lane, err := headwaterv1.NewSessionServiceClient(st.with(t, &key, hers)).Lane(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	certificate := st.of(st.issue(certs.Client, "eve", time.Hour)).own.Cert
	for _, k := range []struct {
		what   string
		conn   *grpc.ClientConn
		code   codes.Code
		reason certs.Reason
		says   string
	}{
		{"stolen, with another key", st.with(t, &other, hers), codes.Unauthenticated, certs.BadCapability, "another than it was made for"},
		{"stolen, by another tenant", st.with(t, &certificate, hers), codes.Unauthenticated, certs.BadCapability, "another than it was made for"},
		{"stolen, without a key", st.with(t, nil, hers), codes.Unauthenticated, certs.BadCapability, "another than it was made for"},
		{"of another cluster", st.with(t, &key, grants(t, foreign, ann, named, nil)), codes.Unauthenticated, certs.UnknownAuthority, "who signed the capability is not believed"},
		{"cut", st.with(t, &key, hers[:len(hers)-1]), codes.Unauthenticated, certs.BadCapability, "it ends too early"},
		{"none", st.with(t, &key, ""), codes.Unauthenticated, certs.NoCertificate, "neither a certificate of the cluster's authority nor a capability"},
		{"of another session", st.with(t, &key, ofOne), codes.PermissionDenied, certs.WrongSession, "is for session 05"},
	} {
		before := st.worker.Refused()[k.reason]
		if err := list(t, k.conn, make([]byte, 16)); status.Code(err) != k.code || !strings.Contains(err.Error(), k.says) {
			t.Errorf("%s: %v", k.what, err)
		}
		if after := st.worker.Refused()[k.reason]; after == before {
			t.Errorf("%s is not counted as %s: %v", k.what, k.reason, st.worker.Refused())
		}
		err := lane.Send(&headwaterv1.LaneRequest{Id: 1})
		if err == nil {
			_, err = lane.Recv()
		}
		if err != nil {
			t.Fatalf("after %s the lane of another ends: %v", k.what, err)
		}
	}
	if err := list(t, st.with(t, &key, ofOne), session[:]); err != nil {
		t.Errorf("the session that it is for: %v", err)
	}
	// One connection is for one: else a capability would let others' lanes stay.
	mixed := st.with(t, &key, "")
	both := func(shown string) error {
		ctx := metadata.AppendToOutgoingContext(t.Context(), capabilityKey, shown)
		_, err := headwaterv1.NewSessionServiceClient(mixed).ListSessions(ctx, &headwaterv1.ListSessionsRequest{})
		return err
	}
	if err := both(hers); err != nil {
		t.Fatal(err)
	}
	if err := both(grants(t, st, bob, named, nil)); status.Code(err) != codes.PermissionDenied {
		t.Errorf("two tenants on one connection: %v", err)
	}
	st.ahead.Add(int64(capability.Life))
	if err := list(t, st.with(t, &key, hers)); status.Code(err) != codes.Unauthenticated || !strings.Contains(err.Error(), "the capability of client ann expired at") {
		t.Errorf("an expired one: %v", err)
	}
	if st.worker.Refused()[certs.Expired] == 0 {
		t.Error("it is not counted")
	}
}

func newKey(t *testing.T) tls.Certificate {
	t.Helper()
	key, err := capability.NewKey()
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func grants(t *testing.T, st *state, who Caller, key [sha256.Size]byte, session []byte) string {
	t.Helper()
	b, _, err := st.coordinator.Grant(who, key[:], session, 0)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// TestOnlyWhoIsKnownIsGrantedACapability asks for capabilities that nobody is to have.
func TestOnlyWhoIsKnownIsGrantedACapability(t *testing.T) {
	t.Parallel()
	st := newState(t)
	key := make([]byte, sha256.Size)
	ann := Caller{Tenant: "ann", Holder: certs.Holder{Role: certs.Client, Names: []string{"ann"}}}
	for _, k := range []struct {
		what         string
		who          Caller
		key, session []byte
		life         time.Duration
		code         codes.Code
	}{
		{"a stranger", Caller{}, key, nil, 0, codes.PermissionDenied},
		{"a worker", Caller{Holder: certs.Holder{Role: certs.Worker, Names: []string{"w1"}}}, key, nil, 0, codes.PermissionDenied},
		{"a relay for a tenant", Caller{Tenant: "ann", Holder: certs.Holder{Role: certs.Relay, Names: []string{"r"}}}, key, nil, 0, codes.PermissionDenied},
		{"a short key", ann, key[1:], nil, 0, codes.InvalidArgument},
		{"a short session", ann, key, []byte{1}, 0, codes.InvalidArgument},
		{"a long life", ann, key, nil, capability.Life + 1, codes.InvalidArgument},
		{"a life of the past", ann, key, nil, -time.Second, codes.InvalidArgument},
		{"a tenant", ann, key, nil, time.Minute, codes.OK},
	} {
		if _, _, err := st.coordinator.Grant(k.who, k.key, k.session, k.life); status.Code(err) != k.code {
			t.Errorf("%s: %v", k.what, err)
		}
	}
	if _, _, err := (*Security)(nil).Grant(ann, key, nil, 0); status.Code(err) != codes.FailedPrecondition {
		t.Errorf("without certificates: %v", err)
	}
	st.tokens["eve"] = st.tokens["ann"] + "x"
	_, conn := st.client(t, "eve")
	if err := list(t, conn); status.Code(err) != codes.Unauthenticated || !strings.Contains(err.Error(), "ask the coordinator for a capability") {
		t.Errorf("a token that is nobody's: %v", err)
	}
}

// TestVerifiedCapabilitiesAreBounded remembers more than there is room for.
func TestVerifiedCapabilitiesAreBounded(t *testing.T) {
	t.Parallel()
	st := newState(t)
	one := &capability.Signed{Capability: capability.Capability{Issued: st.now(), Expires: st.now().Add(time.Minute)}}
	st.worker.mu.Lock()
	defer st.worker.mu.Unlock()
	for i := range maxVerified + 10 {
		st.worker.remember([sha256.Size]byte{byte(i), byte(i >> 8)}, one, st.now())
		if n := len(st.worker.verifiedOnes); n > maxVerified {
			t.Fatalf("%d are remembered", n)
		}
	}
	st.worker.remember([sha256.Size]byte{2: 1}, one, st.now().Add(time.Hour))
	if n := len(st.worker.verifiedOnes); n != 1 {
		t.Errorf("%d are remembered of which 1 has not expired", n)
	}
}
