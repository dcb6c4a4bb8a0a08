package rpc

import (
	"errors"
	"net"
	"net/netip"
	"sync"

	"headwater.example/internal/certs"
)

// origins counts connections by where they come from. Those of Unix sockets are not counted: they are this user's.
type origins struct {
	most int // from one address; 0 is no bound

	mu   sync.Mutex
	open map[netip.Prefix]int
}

// ofOne are the bits of an IPv6 address by which those of one network are taken for one: whoever has one has all of it.
const ofOne = 64

// enter counts a connection, unless its address has as many as it may. The caller calls leave once it is closed.
func (a *origins) enter(from net.Addr) (leave func(), ok bool) {
	key, counted := a.key(from)
	if !counted {
		return func() {}, true
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.open[key] >= a.most {
		return nil, false
	}
	a.open[key]++
	return sync.OnceFunc(func() {
		a.mu.Lock()
		defer a.mu.Unlock()
		if a.open[key]--; a.open[key] == 0 {
			delete(a.open, key)
		}
	}), true
}

// key is what an address is counted by.
func (a *origins) key(from net.Addr) (key netip.Prefix, counted bool) {
	tcp, is := from.(*net.TCPAddr)
	if a.most <= 0 || !is {
		return key, false
	}
	at := tcp.AddrPort().Addr().Unmap().WithZone("")
	bits := at.BitLen()
	if at.Is6() {
		bits = ofOne
	}
	key, err := at.Prefix(bits)
	return key, err == nil // else it is no address at all
}

// crowded says whether an address has more than half of the connections that it may. Then plain lanes are left to gRPC, so that they take
// no place of a connection that carries all calls.
func (a *origins) crowded(from net.Addr) bool {
	key, counted := a.key(from)
	if !counted {
		return false
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	return 2*a.open[key] > a.most
}

var errAddress = errors.New("the address has as many connections as one may have")

// crowded refuses a connection whose address has too many. It is closed without a word: to tell would be work.
func (s *Security) crowded(from net.Addr) {
	if s != nil {
		s.refuse(from.String(), certs.ManyConnections, errAddress.Error())
	}
}

// entered is a connection that is counted by its address and is none of those that a Flight counts.
type entered struct {
	net.Conn
	leave func()
}

// Close closes the connection.
func (c *entered) Close() error {
	c.leave()
	return c.Conn.Close()
}
