package rpc

import (
	"context"
	"errors"
	"net"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/health"
	healthv1 "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/mem"

	"headwater.example/internal/testkit/await"
)

// bytesMessage is a message of bytes.
type bytesMessage []byte

func (m bytesMessage) MarshalMessage() (mem.BufferSlice, error) {
	return mem.BufferSlice{mem.SliceBuffer(m)}, nil
}

func (m bytesMessage) UnmarshalMessage(in *Incoming) error {
	in.copyTo(m)
	return nil
}

// TestAPlainStreamAsksAboutAQuietPeer while nothing comes, goes on while the answer is good, and ends with the first that is not.
func TestAPlainStreamAsksAboutAQuietPeer(t *testing.T) {
	here, there := net.Pipe()
	defer there.Close()
	asked, hangs := make(chan struct{}), errors.New("it hangs")
	answer := make(chan error)
	c := newPlainClient(t.Context(), here, func() error {
		asked <- struct{}{}
		return <-answer
	})
	c.every = time.Millisecond
	received := make(chan error)
	m := make(bytesMessage, 3)
	go func() { received <- c.RecvMsg(m) }()
	for range 3 {
		await.One(t, asked, "a question about the peer")
		answer <- nil
	}
	await.One(t, asked, "a question about the peer")
	go func() {
		header := recordOf(0, 3)
		_, _ = there.Write(append(header[:], "abc"...)) // received says how it went
	}()
	answer <- nil
	late := time.After(await.Patience)
	for waits := true; waits; {
		select {
		case <-late:
			t.Fatal("what was sent has not been received")
		case <-asked:
			answer <- nil
		case err := <-received:
			if err != nil || string(m) != "abc" {
				t.Fatalf("%q, %v", m, err)
			}
			waits = false
		}
	}
	go func() { received <- c.RecvMsg(m) }()
	await.One(t, asked, "a question about the peer")
	answer <- hangs
	if err := await.One(t, received, "the end of the stream"); err == nil || !errors.Is(err, hangs) && err.Error() != "rpc error: code = Unavailable desc = the connection was closed: it hangs" {
		t.Errorf("got %v", err)
	}
}

// TestWhoIsAlive: a server that answers, and an address where nobody is, but not one that accepts connections and says nothing.
func TestWhoIsAlive(t *testing.T) {
	listen := func() net.Listener {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		return l
	}
	good, mute, none := listen(), listen(), listen()
	defer mute.Close()
	none.Close()
	server := grpc.NewServer(ServerOptions()...)
	healthv1.RegisterHealthServer(server, health.NewServer())
	served := make(chan error, 1)
	go func() { served <- server.Serve(good) }()
	defer func() { server.Stop(); <-served }()
	conns := NewConns(nil, DialOptions()...)
	defer conns.Close()
	for l, alive := range map[net.Listener]bool{good: true, none: true, mute: false} {
		conn, err := conns.Use(Peer{Name: "w1", Address: l.Addr().String()})
		if err != nil {
			t.Fatal(err)
		}
		if err := conn.Alive(context.Background()); (err == nil) != alive {
			t.Errorf("alive %v: %v", alive, err)
		}
		conn.Release()
	}
}
