package rpc

import (
	"errors"
	"fmt"
	"sync"

	"google.golang.org/grpc"

	addresses "headwater.example/internal/address"
)

// Conns are connections, by address. One is made for its first user and closed after its last, so a caller that wants one
// kept between calls is a user as well. Safe for concurrent use.
type Conns struct {
	options []grpc.DialOption
	pulses  *pulses

	mu     sync.Mutex
	conns  map[string]*Conn
	closed bool
}

// Conn is a connection in use.
type Conn struct {
	*grpc.ClientConn
	set     *Conns
	address string
	users   int // guarded by set.mu
}

// NewConns makes an empty set, whose connections are made with the options.
func NewConns(options ...grpc.DialOption) *Conns {
	return &Conns{options: options, pulses: newPulses(), conns: map[string]*Conn{}}
}

// ErrClosed is the error of a use of connections that were closed, and of what runs over them.
var ErrClosed = errors.New("this end is closed")

// Use returns the connection to an address. The caller releases it.
func (c *Conns) Use(address string) (*Conn, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return nil, ErrClosed
	}
	conn := c.conns[address]
	if conn == nil {
		target, err := addresses.Target(address)
		if err != nil {
			return nil, err
		}
		made, err := grpc.NewClient(target, c.options...)
		if err != nil {
			return nil, fmt.Errorf("address %q: %w", address, err)
		}
		conn = &Conn{ClientConn: made, set: c, address: address}
		c.conns[address] = conn
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
		delete(c.set.conns, c.address)
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

// Kept are connections that are kept for some addresses, whether or not they are in use. The zero value keeps none. It is
// used by one goroutine at a time.
type Kept struct {
	conns map[string]*Conn
}

// Set keeps the connections to these addresses from now on, and no others. An address that can not be used is left out: its
// next user learns why.
func (k *Kept) Set(c *Conns, addresses ...string) {
	next := make(map[string]*Conn, len(addresses))
	for _, a := range addresses {
		if next[a] != nil {
			continue
		}
		if conn, err := c.Use(a); err == nil {
			next[a] = conn
		}
	}
	for _, conn := range k.conns {
		conn.Release()
	}
	k.conns = next
}
