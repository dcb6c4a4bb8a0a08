package rpc

import (
	"context"
	"errors"
	"net"
	"strings"
	"sync"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// ErrNoLane says that a peer takes no plain lane by TLS, or no further one, and is to be spoken to by gRPC.
var ErrNoLane = errors.New("no plain lane by TLS")

// mostLanes bounds the connections of plain lanes to one peer. Further lanes go by gRPC, which has one connection for all of them: a
// server counts the connections of an address.
const mostLanes = 64

// DialLane makes a connection by TLS to a worker that carries a plain lane; it is not greeted yet. The boot is the worker's. It fails with
// ErrNoLane where gRPC is to be spoken, which then also says what is wrong.
func (c *Conns) DialLane(ctx context.Context, to Peer, boot []byte) (net.Conn, error) {
	who := expect(to)
	if !c.security.secured() || c.security.wallet != nil || who.Worker == "" || strings.HasPrefix(to.Address, "unix:") {
		return nil, ErrNoLane
	}
	leave, ok := c.enterLane(to, string(boot))
	if !ok {
		return nil, ErrNoLane
	}
	conn, err := c.security.dialLane(ctx, to.Address, who)
	if err != nil {
		leave()
	}
	switch {
	case err == nil:
		return &entered{conn, leave}, nil
	case errors.Is(err, errOnlyGRPC):
		c.mu.Lock()
		defer c.mu.Unlock()
		c.laneless[to] = string(boot)
		return nil, ErrNoLane
	case errors.As(err, new(noTLSError)): // as where the address has as many connections as it may
		return nil, ErrNoLane
	case ctx.Err() != nil:
		return nil, status.FromContextError(ctx.Err()).Err()
	}
	return nil, status.Error(codes.Unavailable, status.Convert(err).Message())
}

// enterLane counts a connection of a plain lane to a peer, unless there are enough, or the worker of the boot speaks gRPC alone.
func (c *Conns) enterLane(to Peer, boot string) (leave func(), ok bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if of, known := c.laneless[to]; known && of == boot || c.lanes[to] >= mostLanes {
		return nil, false
	}
	c.lanes[to]++
	return sync.OnceFunc(func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		if c.lanes[to]--; c.lanes[to] == 0 {
			delete(c.lanes, to)
		}
	}), true
}

// errOnlyGRPC says that a peer offers no plain lanes.
var errOnlyGRPC = errors.New("the peer speaks gRPC alone")

// dialLane makes a connection that carries a plain lane.
func (s *Security) dialLane(ctx context.Context, address string, to Expectation) (net.Conn, error) {
	within, cancel := context.WithTimeout(ctx, connectTimeout)
	defer cancel()
	var dialer net.Dialer
	raw, err := dialer.DialContext(within, "tcp", address)
	if err != nil {
		return nil, err
	}
	widen(raw)
	under := &recordConn{Conn: raw}
	conn, err := clientCredentials{s, to}.shakeHands(within, under, laneProtocol, gRPCProtocol)
	if err == nil {
		state := conn.ConnectionState()
		if state.NegotiatedProtocol == laneProtocol {
			return s.keep(under.carry(conn), state.PeerCertificates, nil), nil
		}
		err = errOnlyGRPC
	}
	_ = raw.Close() // it is of no use
	if within.Err() != nil && ctx.Err() == nil {
		err = Mute()
	}
	return nil, err
}
