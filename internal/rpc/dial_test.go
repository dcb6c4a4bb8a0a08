package rpc

import (
	"io"
	"net"
	"strings"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	healthv1 "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/status"
)

// own checks that an error has a code and is in this program's words.
func own(t *testing.T, what string, err error, code codes.Code, says string) {
	t.Helper()
	if status.Code(err) != code || !strings.Contains(err.Error(), says) {
		t.Errorf("%s: want %v and %q, got %v", what, code, says, err)
	}
	for _, foreign := range []string{"preface", "grpc:", "larger than max", "connection error", "transport:", "keepalive"} {
		if strings.Contains(err.Error(), foreign) {
			t.Errorf("%s: in gRPC's words: %v", what, err)
		}
	}
}

// TestAPeerThatHangsIsLostInBoundedTimeAndOwnWords: its kernel accepts connections, and it says nothing. The wait is that of
// one attempt to connect, which gRPC has as 20 s.
func TestAPeerThatHangsIsLostInBoundedTimeAndOwnWords(t *testing.T) {
	t.Parallel()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	conn, err := grpc.NewClient("passthrough:///"+listener.Addr().String(), DialOptions()...)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	_, err = healthv1.NewHealthClient(conn).Check(t.Context(), &healthv1.HealthCheckRequest{})
	own(t, "a call", err, codes.Unavailable, "says nothing within 5s: it hangs")
	if !IsMute(err) || IsMute(status.Error(codes.Unavailable, "connection refused")) {
		t.Error("a mute peer is not told from one that refuses")
	}
	// The attempt that failed is the last for a moment, so a stream learns of it at once.
	stream, err := healthv1.NewHealthClient(conn).Watch(t.Context(), &healthv1.HealthCheckRequest{})
	if err == nil {
		_, err = stream.Recv()
	}
	own(t, "a stream", err, codes.Unavailable, "it hangs")
}

// TestAnotherServiceIsSaidInOwnWords: it is not called mute, which a caller would wait for.
func TestAnotherServiceIsSaidInOwnWords(t *testing.T) {
	t.Parallel()
	const other, closed = "speaks another protocol", "closes the connection at once"
	for name, service := range map[string]struct {
		greets, answers string // what it says first, and to what it has read; then it closes the connection
		says            string
	}{
		"HTTP":        {"", "HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n", other},
		"SSH":         {"SSH-2.0-OpenSSH_9.2p1\r\n", "", other},
		"a database":  {"", "-ERR unknown command 'PRI'\r\n", other},
		"one of TLS":  {"", "\x15\x03\x01\x00\x02\x02\x46", closed},
		"one that is": {"", "", closed},
	} {
		listener, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer listener.Close()
		go func() {
			for {
				conn, err := listener.Accept()
				if err != nil {
					return
				}
				_, _ = conn.Write([]byte(service.greets))
				_, _ = io.ReadFull(conn, make([]byte, len("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")))
				_, _ = conn.Write([]byte(service.answers))
				if service.says == other {
					_, _ = io.Copy(io.Discard, conn) // the client hangs up
				}
				_ = conn.Close()
			}
		}()
		conn, err := grpc.NewClient("passthrough:///"+listener.Addr().String(), DialOptions()...)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		_, err = healthv1.NewHealthClient(conn).Check(t.Context(), &healthv1.HealthCheckRequest{})
		own(t, name, err, codes.Unavailable, service.says)
		if IsMute(err) {
			t.Errorf("%s is called mute: %v", name, err)
		}
	}
}

// TestAConnectionThatFallsSilentIsSaidInOwnWords: gRPC ends it so, after pings without an answer. Calls of sessions notice it earlier.
func TestAConnectionThatFallsSilentIsSaidInOwnWords(t *testing.T) {
	for _, message := range []string{
		`connection error: desc = "keepalive ping failed to receive ACK within timeout"`,
		`closing transport due to: connection error: desc = "keepalive ping failed to receive ACK within timeout", received prior goaway: code: NO_ERROR`,
	} {
		err := inOwnWords(status.Error(codes.Unavailable, message))
		own(t, message, err, codes.Unavailable, "it did not answer for 15s: it hangs")
		if IsMute(err) {
			t.Errorf("it is taken for a peer that never spoke: %v", err)
		}
	}
}

func TestARefusedConnectionIsSaidInOwnWords(t *testing.T) {
	t.Parallel()
	conn, err := grpc.NewClient("passthrough:///127.0.0.1:1", DialOptions()...)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	_, err = healthv1.NewHealthClient(conn).Check(t.Context(), &healthv1.HealthCheckRequest{})
	own(t, "a call", err, codes.Unavailable, "dial tcp 127.0.0.1:1: connect: connection refused")
}

func TestAMessageThatIsTooLargeIsRefusedWithTheNumbers(t *testing.T) {
	t.Parallel()
	conn := serve(t, Version)
	client := healthv1.NewHealthClient(conn)
	large := &healthv1.HealthCheckRequest{Service: strings.Repeat("a", MaxMessageBytes)}
	_, err := client.Check(t.Context(), large)
	own(t, "a call", err, codes.InvalidArgument, "a message of 33554437 bytes is larger than the 33554432 bytes that are allowed")
	_, err = client.Watch(t.Context(), large)
	own(t, "a stream", err, codes.InvalidArgument, "is larger than the 33554432 bytes")
	// By a client that has no bound.
	huge := &healthv1.HealthCheckRequest{Service: strings.Repeat("a", 2*maxReceiveBytes)}
	_, err = client.Check(t.Context(), huge, grpc.MaxCallSendMsgSize(1<<30))
	own(t, "at the server", err, codes.InvalidArgument, "is larger than the 67108864 bytes that are allowed")
}

// FuzzInOwnWords: whatever a peer says, the code stays, unless it blames the size of a message.
func FuzzInOwnWords(f *testing.F) {
	f.Add(uint32(codes.Unavailable), `connection error: desc = "error reading server preface: EOF"`)
	f.Add(uint32(codes.ResourceExhausted), "grpc: received message larger than max (5 vs. 4)")
	f.Fuzz(func(t *testing.T, code uint32, message string) {
		err := status.Error(codes.Code(code), message)
		if got := status.Code(inOwnWords(err)); got != status.Code(err) && !tooLarge.MatchString(message) {
			t.Fatalf("%v became %v", status.Code(err), got)
		}
	})
}
