package rpc

import (
	"context"
	"errors"
	"io"
	"net"
	"sync/atomic"
	"syscall"
	"time"

	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/peer"

	"headwater.example/internal/certs"
)

// serverConn is a connection of a server that a Flight counts.
type serverConn struct {
	net.Conn
	f      *Flight
	called atomic.Bool // a call has come
	left   atomic.Bool // the peer has closed it

	// The flight's lock guards what follows.
	shares map[*Share]struct{} // calls that are open, or whose answers are not yet written
	idle   time.Time           // when the last of them ended
	closed bool
	leave  func() // that it is closed counts for its address; nil does not
}

// Read reads, and notes the end.
func (c *serverConn) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	if err != nil && (errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, syscall.ECONNRESET)) {
		c.left.Store(true)
	}
	return n, err
}

// Close closes the connection, and gives back what its calls held that have ended. One that this end closes, though no call has come on it
// and the peer has not left, has been silent or was too slow.
func (c *serverConn) Close() error {
	c.f.mu.Lock()
	if !c.closed && !c.called.Load() && !c.left.Load() {
		c.f.refused[certs.Silent]++
	}
	if !c.closed && c.leave != nil {
		defer c.leave()
	}
	c.closed = true
	delete(c.f.conns, c)
	for s := range c.shares {
		s.forget()
	}
	c.f.mu.Unlock()
	return c.Conn.Close()
}

var errConns = errors.New("the server has as many connections as it may have")

// admit counts a new connection. Where there are too many, the one that has had no call for the longest is closed; where
// all have calls, the new one is refused.
func (f *Flight) admit(conn net.Conn) (*serverConn, error) {
	c := &serverConn{Conn: conn, f: f, shares: make(map[*Share]struct{}), idle: time.Now()}
	f.mu.Lock()
	var oldest *serverConn
	if f.cfg.Conns > 0 && len(f.conns) >= f.cfg.Conns {
		for o := range f.conns {
			if len(o.shares) == 0 && (oldest == nil || o.idle.Before(oldest.idle)) {
				oldest = o
			}
		}
		if oldest == nil {
			if !f.full {
				f.full = true
				f.cfg.Logger.Error("connections are refused: all that are allowed have calls", "connections", len(f.conns))
			}
			f.refused[certs.AllConnections]++
			f.mu.Unlock()
			return nil, errConns
		}
	}
	f.full = false
	f.conns[c] = struct{}{}
	f.mu.Unlock()
	if oldest != nil {
		f.cfg.Logger.Warn("idle connection closed: there are as many as are allowed", "connections", f.cfg.Conns, "peer", oldest.RemoteAddr().String())
		oldest.left.Store(true) // or is to
		_ = oldest.Close()      // It is closed either way.
	}
	return c, nil
}

// countedCredentials are credentials whose server's connections a Flight counts.
type countedCredentials struct {
	credentials.TransportCredentials
	f        *Flight
	security *Security
	lanes    *Lanes // nil are none
}

// connInfo is what a call can learn of its connection.
type connInfo struct {
	credentials.AuthInfo
	conn *serverConn
}

func (c countedCredentials) ServerHandshake(raw net.Conn) (net.Conn, credentials.AuthInfo, error) {
	leave, ok := c.f.origins.enter(raw.RemoteAddr())
	if !ok {
		c.security.crowded(raw.RemoteAddr())
		return nil, nil, errAddress
	}
	conn, info, err := c.TransportCredentials.ServerHandshake(raw)
	if err != nil {
		leave()
		return nil, nil, err
	}
	who, _ := info.(caller)
	if who.lane != nil && c.f.origins.crowded(raw.RemoteAddr()) {
		leave()
		_ = conn.Close() // the client speaks gRPC then
		return nil, nil, errAddress
	}
	if who.refusal != nil { // none that takes the place of others
		stranger := &entered{conn, leave}
		if who.lane != nil {
			return nil, nil, c.lanes.hand(newLaneConn(stranger, nil, info, c.security))
		}
		return stranger, info, nil
	}
	counted, err := c.f.admit(conn)
	if err != nil {
		leave()
		_ = conn.Close() // nobody is to know
		return nil, nil, err
	}
	counted.leave = leave
	if who.lane != nil {
		return nil, nil, c.lanes.hand(newLaneConn(counted, counted, connInfo{info, counted}, c.security))
	}
	return counted, connInfo{info, counted}, nil
}

func (c countedCredentials) Clone() credentials.TransportCredentials {
	return countedCredentials{c.TransportCredentials.Clone(), c.f, c.security, c.lanes}
}

// connOf returns the counted connection of a call, or nil.
func connOf(ctx context.Context) *serverConn {
	p, ok := peer.FromContext(ctx)
	if !ok {
		return nil
	}
	info, _ := p.AuthInfo.(connInfo)
	return info.conn
}
