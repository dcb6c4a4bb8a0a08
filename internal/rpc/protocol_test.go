package rpc

import (
	"context"
	"net"
	"strings"
	"testing"

	"go.uber.org/goleak"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	healthv1 "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/grpc/test/bufconn"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// serve starts a server with the health service alone and returns a connection that says the given version.
func serve(t *testing.T, version string) *grpc.ClientConn {
	t.Helper()
	listener := bufconn.Listen(1 << 16)
	server := grpc.NewServer(ServerOptions()...)
	Register(server, "headwater.v1.WorkerService")
	done := make(chan struct{})
	go func() { defer close(done); _ = server.Serve(listener) }()
	opts := append(dialOptions(version), grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return listener.DialContext(ctx) }))
	conn, err := grpc.NewClient("passthrough:///memory", opts...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close(); server.Stop(); <-done })
	return conn
}

func TestOwnAndNewerMinorVersionsAreServed(t *testing.T) {
	for _, version := range []string{Version, "1.99"} {
		var header metadata.MD
		resp, err := healthv1.NewHealthClient(serve(t, version)).Check(t.Context(), &healthv1.HealthCheckRequest{Service: "headwater.v1.WorkerService"}, grpc.Header(&header))
		if err != nil || resp.Status != healthv1.HealthCheckResponse_SERVING {
			t.Fatalf("version %s: %v %v", version, resp, err)
		}
		if got := header.Get(MetadataKey); len(got) != 1 || got[0] != Version {
			t.Fatalf("server named its version as %q, want %q", got, Version)
		}
		if err := CheckHeader("w1", header); err != nil {
			t.Fatal(err)
		}
	}
}

func TestAnotherMajorVersionIsRefusedByName(t *testing.T) {
	client := healthv1.NewHealthClient(serve(t, "2.0"))
	_, unary := client.Check(t.Context(), &healthv1.HealthCheckRequest{})
	stream, err := client.Watch(t.Context(), &healthv1.HealthCheckRequest{})
	if err != nil {
		t.Fatal(err)
	}
	_, streamed := stream.Recv()
	for _, err := range []error{unary, streamed} {
		if status.Code(err) != codes.FailedPrecondition || !strings.Contains(err.Error(), "2.0") || !strings.Contains(err.Error(), Version) {
			t.Fatalf("got %v, want a refusal that names both versions", err)
		}
	}
	if err := CheckHeader("w1", metadata.Pairs(MetadataKey, "2.0")); err == nil || !strings.Contains(err.Error(), "w1") {
		t.Fatalf("got %v, want a refusal that names the peer", err)
	}
}

// TestSessionsNeedTheirMinorVersionAtBothSides: an older peer would be served by rules that it does not know, so it is refused by
// name, at either end; its other calls are served.
func TestSessionsNeedTheirMinorVersionAtBothSides(t *testing.T) {
	for version, ok := range map[string]bool{"": true, "1.0": false, "1.1": false, Version: true, "1.99": true} {
		for method, sessions := range map[string]bool{"/headwater.v1.SessionService/Lane": true, "/headwater.v1.WorkerService/Describe": false} {
			called := false
			ctx := t.Context()
			if version != "" {
				ctx = metadata.NewIncomingContext(ctx, metadata.Pairs(MetadataKey, version))
			}
			_, err := checkUnary(ctx, nil, &grpc.UnaryServerInfo{FullMethod: method}, func(context.Context, any) (any, error) { called = true; return nil, nil })
			if served := ok || !sessions; called != served || (err == nil) != served {
				t.Errorf("%s of a client of version %q: called %v: %v", method, version, called, err)
			}
			if err != nil && (status.Code(err) != codes.FailedPrecondition || !strings.Contains(err.Error(), "sessions need 1.2")) {
				t.Errorf("%s of a client of version %q: %v", method, version, err)
			}
			if err := checkServer(metadata.Pairs(MetadataKey, version), method); (err == nil) != (ok || !sessions) {
				t.Errorf("%s of a server of version %q: %v", method, version, err)
			}
		}
	}
}

func TestNonsenseVersionIsRefused(t *testing.T) {
	for _, version := range []string{"one", "1", "-1.0", ".", "99999999999.0"} {
		if err := check(version); status.Code(err) != codes.InvalidArgument {
			t.Errorf("version %q: got %v", version, err)
		}
	}
}
