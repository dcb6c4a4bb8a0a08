package rpc_test

import (
	"fmt"
	"net"
	"sync"
	"testing"

	"google.golang.org/grpc"

	"headwater.example/internal/rpc"
	"headwater.example/internal/testkit/await"
)

// asleep is a listener whose connections stand still while its lock is held.
type asleep struct {
	net.Listener
	awake sync.RWMutex
}

func (a *asleep) Accept() (net.Conn, error) {
	conn, err := a.Listener.Accept()
	return asleepConn{conn, a}, err
}

type asleepConn struct {
	net.Conn
	a *asleep
}

func (c asleepConn) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	c.a.awake.RLock()
	defer c.a.awake.RUnlock()
	return n, err
}

// TestAPeerThatHangsIsSilent: a peer is silent while it answers nothing, and no more once it answers; one that is dead, and one that
// does not know the question, are not.
func TestAPeerThatHangsIsSilent(t *testing.T) {
	listen := func() net.Listener {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		return l
	}
	hangs, ignorant, dead := &asleep{Listener: listen()}, listen(), listen()
	_ = dead.Close() // nobody listens then
	for _, l := range []net.Listener{hangs, ignorant} {
		server := grpc.NewServer(rpc.ServerOptions()...)
		if l == hangs {
			rpc.Register(server)
		}
		done := make(chan struct{})
		go func() { defer close(done); _ = server.Serve(l) }()
		t.Cleanup(func() { server.Stop(); <-done })
	}
	conns := rpc.NewConns(nil, rpc.DialOptions()...)
	defer conns.Close()
	peer := func(l net.Listener) rpc.Peer {
		address := l.Addr().String()
		return rpc.Peer{Name: address, Address: address}
	}
	until := func(silent bool) {
		t.Helper()
		for changed := conns.Pulse(); conns.Silent(peer(hangs)) != silent; changed = conns.Pulse() {
			await.One(t, changed, fmt.Sprintf("that silent is %v of who hangs", silent))
		}
	}
	for _, l := range []net.Listener{hangs, ignorant, dead} {
		defer conns.Watch(peer(l))()
	}
	for range 2 {
		hangs.awake.Lock()
		until(true)
		if conns.Silent(peer(ignorant)) || conns.Silent(peer(dead)) {
			t.Error("a peer that is dead or does not know the question is silent")
		}
		hangs.awake.Unlock()
		until(false)
	}
}
