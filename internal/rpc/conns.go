package rpc

import (
	"errors"
	"fmt"
	"sync"

	"google.golang.org/grpc"

	addresses "headwater.example/internal/address"
)

// Conns are connections, by their peers. One is made for its first user and closed after its last, so a caller that wants one
// kept between calls is a user as well. Safe for concurrent use.
type Conns struct {
	security *Security
	options  []grpc.DialOption
	pulses   *pulses

	mu    sync.Mutex
	conns map[Peer]*Conn
	lanes map[Peer]int // connections of plain lanes by TLS
	// laneless are the boots of workers that offer no plain lanes by TLS.
	laneless map[Peer]string
	renews   bool   // the capability that workers are shown
	told     string // the one that they were shown last
	closed   bool
}

// Conn is a connection in use.
type Conn struct {
	*grpc.ClientConn
	set   *Conns
	to    Peer
	users int // guarded by set.mu
}

// Peer is whom a connection is to: a worker by its name, a coordinator by its name, or one of any name, or a relay, whose name is its
// address.
type Peer struct {
	Name, Address string
	Coordinator   bool // of this name
}

// NewConns makes an empty set, whose connections are made as the security says, with the options.
func NewConns(security *Security, options ...grpc.DialOption) *Conns {
	return &Conns{security: security, options: options, pulses: newPulses(), conns: map[Peer]*Conn{}, lanes: map[Peer]int{}, laneless: map[Peer]string{}}
}

// ErrClosed is the error of a use of connections that were closed, and of what runs over them.
var ErrClosed = errors.New("this end is closed")

// Use returns the connection to a peer. The caller releases it.
func (c *Conns) Use(to Peer) (*Conn, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return nil, ErrClosed
	}
	conn := c.conns[to]
	if conn == nil {
		target, err := addresses.Target(to.Address)
		if err != nil {
			return nil, err
		}
		made, err := grpc.NewClient(target, append(c.options[:len(c.options):len(c.options)], c.security.Dial(expect(to)), c.security.Sign(expect(to)))...)
		if err != nil {
			return nil, fmt.Errorf("address %q: %w", to.Address, err)
		}
		if c.security.showsCapabilities(to) && !c.renews {
			c.renews = true
			c.pulses.tasks.Go(func() { c.renew(c.pulses.ctx) })
		}
		conn = &Conn{ClientConn: made, set: c, to: to}
		c.conns[to] = conn
	}
	conn.users++
	return conn, nil
}

// Release ends a use. The last release closes the connection.
func (c *Conn) Release() {
	c.set.mu.Lock()
	c.users--
	last := c.users == 0 && !c.set.closed
	if last {
		delete(c.set.conns, c.to)
	}
	c.set.mu.Unlock()
	if last {
		_ = c.Close() // it fails only if it was closed before
	}
}

// Close ends all connections and the calls on them.
func (c *Conns) Close() error {
	c.pulses.close()
	c.mu.Lock()
	defer c.mu.Unlock()
	c.closed = true
	var errs []error
	for _, conn := range c.conns {
		errs = append(errs, conn.Close())
	}
	clear(c.conns)
	return errors.Join(errs...)
}

// Plain reports whether connections are plain text, so that a peer on this machine may be spoken to in other ways as well.
func (c *Conns) Plain() bool { return c.security.Plain() }

// Kept are connections that are kept to some peers, whether or not they are in use. The zero value keeps none. It is
// used by one goroutine at a time.
type Kept struct {
	conns map[Peer]*Conn
}

// Set keeps the connections to these peers from now on, and no others. One whose address can not be used is left out: its next
// user learns why.
func (k *Kept) Set(c *Conns, peers ...Peer) {
	next := make(map[Peer]*Conn, len(peers))
	for _, p := range peers {
		if next[p] != nil {
			continue
		}
		if conn, err := c.Use(p); err == nil {
			next[p] = conn
		}
	}
	for _, conn := range k.conns {
		conn.Release()
	}
	k.conns = next
}
