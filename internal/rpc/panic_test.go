package rpc

import (
	"bytes"
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"strings"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	healthv1 "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/status"
	"google.golang.org/grpc/test/bufconn"

	"headwater.example/internal/testkit/await"
)

// faulty is a health service whose handlers panic.
type faulty struct {
	healthv1.UnimplementedHealthServer
}

func (faulty) Check(_ context.Context, r *healthv1.HealthCheckRequest) (*healthv1.HealthCheckResponse, error) {
	if r.GetService() == "panic" {
		panic("secret")
	}
	return &healthv1.HealthCheckResponse{}, nil
}

func (faulty) Watch(*healthv1.HealthCheckRequest, healthv1.Health_WatchServer) error {
	var none *int
	*none = 1
	return nil
}

// TestPanicOfAHandlerEndsItsCallAlone: the caller is told INTERNAL and nothing of the panic, the log has its stack, it is
// counted, and the server goes on.
func TestPanicOfAHandlerEndsItsCallAlone(t *testing.T) {
	var log bytes.Buffer
	listener := bufconn.Listen(1 << 16)
	server := grpc.NewServer(ServerOptions(LogTo(slog.New(slog.NewTextHandler(&log, nil))))...)
	healthv1.RegisterHealthServer(server, faulty{})
	done := make(chan struct{})
	go func() { defer close(done); _ = server.Serve(listener) }()
	conn, err := grpc.NewClient("passthrough:///memory", append(DialOptions(), grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return listener.DialContext(ctx) }))...)
	if err != nil {
		t.Fatal(err)
	}
	client, before := healthv1.NewHealthClient(conn), Panics()
	_, err = client.Check(t.Context(), &healthv1.HealthCheckRequest{Service: "panic"})
	if status.Code(err) != codes.Internal || strings.Contains(err.Error(), "secret") {
		t.Errorf("unary: %v", err)
	}
	stream, err := client.Watch(t.Context(), &healthv1.HealthCheckRequest{})
	if err == nil {
		_, err = stream.Recv()
	}
	if status.Code(err) != codes.Internal {
		t.Errorf("stream: %v", err)
	}
	if _, err := client.Check(t.Context(), &healthv1.HealthCheckRequest{}); err != nil {
		t.Errorf("after panics: %v", err)
	}
	_ = conn.Close()
	server.Stop()
	await.One(t, done, "the end of the server")
	if n := Panics() - before; n != 2 {
		t.Errorf("%d panics were counted", n)
	}
	for _, want := range []string{"secret", "faulty", "panic_test.go", "Health/Watch"} {
		if !strings.Contains(log.String(), want) {
			t.Errorf("the log does not have %q:\n%s", want, log.String())
		}
	}
}

func TestGuardKeepsErrors(t *testing.T) {
	if err := Guard(nil, "a test", func() error { return io.EOF }); !errors.Is(err, io.EOF) {
		t.Error(err)
	}
}
