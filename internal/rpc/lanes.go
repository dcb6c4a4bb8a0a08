package rpc

import (
	"context"
	"errors"
	"net"
	"sync"
	"time"

	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/tap"
)

// laneProtocol is the protocol of a connection by TLS (ALPN) that carries a plain lane, and not HTTP/2.
const laneProtocol = "headwater-lane/1"

// Lanes are the connections of a server's port that carry plain lanes within TLS: a listener, to which gRPC hands them once they have
// shaken hands. They are offered to clients until it is closed.
type Lanes struct {
	conns  chan net.Conn
	closed chan struct{}
	close  func()
}

// NewLanes makes a listener for a server that is made with ServeLanes.
func NewLanes() *Lanes {
	l := &Lanes{conns: make(chan net.Conn), closed: make(chan struct{})}
	l.close = sync.OnceFunc(func() { close(l.closed) })
	return l
}

// Accept implements net.Listener.
func (l *Lanes) Accept() (net.Conn, error) {
	select {
	case conn := <-l.conns:
		return conn, nil
	case <-l.closed:
		return nil, net.ErrClosed
	}
}

// Close implements net.Listener.
func (l *Lanes) Close() error {
	l.close()
	return nil
}

// Addr implements net.Listener. Lanes have none but their server's.
func (l *Lanes) Addr() net.Addr { return &net.TCPAddr{} }

// offered says whether a server offers plain lanes.
func (l *Lanes) offered() bool {
	if l == nil {
		return false
	}
	select {
	case <-l.closed:
		return false
	default:
		return true
	}
}

// hand hands a connection over. The error is gRPC's sign that it is another's now.
func (l *Lanes) hand(conn *laneConn) error {
	select {
	case l.conns <- conn:
		return credentials.ErrConnDispatched
	case <-l.closed:
		_ = conn.Close() // nobody serves it
		return net.ErrClosed
	}
}

// laneConn is a connection by TLS that carries a plain lane.
type laneConn struct {
	net.Conn
	counted *serverConn // nil of a stranger's
	from    peer.Peer
	s       *Security

	mu    sync.Mutex
	timer *time.Timer // ends the wait; nil while there is no deadline
}

func newLaneConn(conn net.Conn, counted *serverConn, info credentials.AuthInfo, s *Security) *laneConn {
	return &laneConn{Conn: conn, counted: counted, from: peer.Peer{Addr: conn.RemoteAddr(), AuthInfo: info}, s: s}
}

// more says whether anything has come that was not read.
func (c *laneConn) more() bool { return callerOf(&c.from).lane.more() }

// past is before every deadline.
var past = time.Unix(1, 0)

// SetDeadline is that of reading and of writing.
func (c *laneConn) SetDeadline(t time.Time) error {
	return errors.Join(c.SetReadDeadline(t), c.SetWriteDeadline(t))
}

// SetReadDeadline keeps the deadline itself: gRPC takes away what deadline it finds a moment after it has handed the connection over.
func (c *laneConn) SetReadDeadline(t time.Time) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.timer != nil {
		c.timer.Stop()
		c.timer = nil
	}
	if !t.IsZero() {
		var made *time.Timer
		made = time.AfterFunc(time.Until(t), func() {
			c.mu.Lock()
			defer c.mu.Unlock()
			if c.timer == made {
				_ = c.Conn.SetReadDeadline(past) // if it fails, so has the reading
			}
		})
		c.timer = made
	}
	return c.Conn.SetReadDeadline(time.Time{})
}

// ByTLS tells whether a connection that Lanes have accepted is one by TLS, whose greeting says who calls, as the metadata of a call does.
func ByTLS(conn net.Conn) bool {
	_, is := conn.(*laneConn)
	return is
}

// guard refuses who may not open a lane, by all the rules for a call of gRPC.
func (c *laneConn) guard(ctx context.Context, header metadata.MD) (context.Context, error) {
	ctx, err := c.s.guard(peer.NewContext(ctx, &c.from), &tap.Info{FullMethodName: laneMethod, Header: header})
	if err != nil {
		return ctx, err
	}
	return ctx, checkVersions(header.Get(MetadataKey), laneMethod)
}
