package rpc

import (
	"net"
	"net/netip"
	"testing"
)

// TestAnAddressHasSoManyConnections: a network of IPv6 is one address, an address of IPv4 is the same in both spellings, and who leaves
// makes room.
func TestAnAddressHasSoManyConnections(t *testing.T) {
	t.Parallel()
	a := &origins{most: 2, open: map[netip.Prefix]int{}}
	at := func(s string) net.Addr {
		addr, err := net.ResolveTCPAddr("tcp", s)
		if err != nil {
			t.Fatal(err)
		}
		return addr
	}
	var leave []func()
	for _, k := range []struct {
		from string
		ok   bool
	}{
		{"10.0.0.1:1", true},
		{"10.0.0.1:2", true},
		{"10.0.0.1:3", false},
		{"[::ffff:10.0.0.1]:4", false},
		{"10.0.0.2:1", true},
		{"[2001:db8::1]:1", true},
		{"[2001:db8::2]:1", true},
		{"[2001:db8::3]:1", false},
		{"[2001:db8:0:1::1]:1", true},
	} {
		done, ok := a.enter(at(k.from))
		if ok != k.ok {
			t.Errorf("%s is let in: %v", k.from, ok)
		}
		if ok {
			leave = append(leave, done)
		}
	}
	leave[0]()
	leave[0]() // which counts once
	for i, want := range []bool{true, false} {
		done, ok := a.enter(at("10.0.0.1:9"))
		if ok != want {
			t.Errorf("after one has left, another one is let in: %v, %d", ok, i)
		}
		if ok {
			leave = append(leave, done)
		}
	}
	for range 5 {
		if _, ok := a.enter(&net.UnixAddr{}); !ok {
			t.Error("a Unix socket is bounded")
		}
	}
	for _, done := range leave {
		done()
	}
	if len(a.open) != 0 {
		t.Errorf("%v are remembered", a.open)
	}
}
