package address

import (
	"context"
	"errors"
	"net/netip"
	"testing"
)

// fake is a machine with routes from a default gateway's families or to single networks.
type fake struct {
	routes map[string]string // own address by the network that is reached through it
	locals []local
	names  map[string][]string
}

func (f fake) machine() machine {
	return machine{
		lookup: func(_ context.Context, host string) (ips []netip.Addr, err error) {
			for _, ip := range f.names[host] {
				ips = append(ips, netip.MustParseAddr(ip))
			}
			if ips == nil {
				err = errors.New("no such host")
			}
			return ips, err
		},
		route: func(to netip.Addr) (netip.Addr, bool) {
			best, from := -1, netip.Addr{}
			for network, own := range f.routes {
				if p := netip.MustParsePrefix(network); p.Contains(to) && p.Bits() > best {
					best, from = p.Bits(), netip.MustParseAddr(own)
				}
			}
			return from, from.IsValid()
		},
		interfaces: func() []local { return f.locals },
	}
}

func at(addr string) local     { return local{addr: netip.MustParseAddr(addr)} }
func bridge(addr string) local { return local{addr: netip.MustParseAddr(addr), bridge: true} }

func TestTheOwnAddressIsFoundByOneRule(t *testing.T) {
	loopback := []local{at("127.0.0.1"), at("::1")}
	with := func(more ...local) []local { return append(loopback[:2:2], more...) }
	for _, c := range []struct {
		name    string
		machine fake
		bound   string
		seeds   []string
		want    string
	}{
		{name: "only a public address", machine: fake{map[string]string{"0.0.0.0/0": "203.0.113.7"}, with(at("203.0.113.7")), nil}, want: "203.0.113.7"},
		{name: "a public address beside a container bridge", machine: fake{map[string]string{"0.0.0.0/0": "203.0.113.7", "172.17.0.0/16": "172.17.0.1"}, with(bridge("172.17.0.1"), at("203.0.113.7")), nil}, want: "203.0.113.7"},
		{name: "a public address beside a bridge, no default route", machine: fake{nil, with(bridge("172.17.0.1"), at("203.0.113.7")), nil}, want: "203.0.113.7"},
		{name: "a bridge alone", machine: fake{nil, with(bridge("172.17.0.1")), nil}, want: "172.17.0.1"},
		{name: "only loopback", machine: fake{nil, loopback, nil}, want: "127.0.0.1"},
		{name: "no network", machine: fake{}, want: "127.0.0.1"},
		{name: "only IPv6 loopback", machine: fake{nil, []local{at("::1")}, nil}, want: "::1"},
		{name: "only IPv6", machine: fake{map[string]string{"::/0": "fd77::1"}, with(at("fe80::1"), at("fd77::1")), nil}, want: "fd77::1"},
		{name: "only IPv6, no default route", machine: fake{nil, with(at("fe80::1"), at("fd77::1")), nil}, want: "fd77::1"},
		{name: "dual stack", machine: fake{map[string]string{"::/0": "fd77::1", "0.0.0.0/0": "10.0.0.1"}, with(at("fd77::1"), at("10.0.0.1")), nil}, want: "10.0.0.1"},
		{name: "dual stack, default route by IPv6 alone", machine: fake{map[string]string{"::/0": "fd77::1"}, with(at("fd77::1"), at("10.0.0.1")), nil}, want: "10.0.0.1"},
		{name: "IPv6 beside a container bridge of IPv4", machine: fake{map[string]string{"::/0": "fd77::1"}, with(at("fd77::1"), bridge("172.17.0.1")), nil}, want: "fd77::1"},
		{name: "on the way to the seed", machine: fake{map[string]string{"0.0.0.0/0": "203.0.113.7", "10.0.0.0/8": "10.0.0.1"}, nil, nil}, seeds: []string{"10.9.9.9:7610"}, want: "10.0.0.1"},
		{name: "on the way to a seed of IPv6", machine: fake{map[string]string{"0.0.0.0/0": "203.0.113.7", "fd77::/64": "fd77::1"}, nil, nil}, seeds: []string{"[fd77::9]:7610"}, want: "fd77::1"},
		{name: "on the way to a name of both families", machine: fake{map[string]string{"10.0.0.0/8": "10.0.0.1", "fd77::/64": "fd77::1"}, nil, map[string][]string{"coord": {"fd77::9", "10.9.9.9"}}}, seeds: []string{"coord:7610"}, want: "10.0.0.1"},
		{name: "a seed on this machine says nothing", machine: fake{map[string]string{"0.0.0.0/0": "203.0.113.7", "127.0.0.0/8": "127.0.0.1"}, nil, nil}, seeds: []string{"127.0.0.1:7610"}, want: "203.0.113.7"},
		{name: "a seed that does not resolve says nothing", machine: fake{map[string]string{"0.0.0.0/0": "203.0.113.7"}, nil, nil}, seeds: []string{"nowhere:7610"}, want: "203.0.113.7"},
		{name: "bound to IPv4", machine: fake{map[string]string{"::/0": "fd77::1"}, with(at("fd77::1")), nil}, bound: "0.0.0.0", want: "127.0.0.1"},
		{name: "bound to both", machine: fake{map[string]string{"::/0": "fd77::1"}, with(at("fd77::1")), nil}, bound: "::", want: "fd77::1"},
	} {
		var bound netip.Addr
		if c.bound != "" {
			bound = netip.MustParseAddr(c.bound)
		}
		var seeds []Address
		for _, s := range c.seeds {
			a, err := Parse(s, 0)
			if err != nil {
				t.Fatal(err)
			}
			seeds = append(seeds, a)
		}
		if got := c.machine.machine().own(t.Context(), bound, seeds); got.String() != c.want {
			t.Errorf("%s: %s, want %s", c.name, got, c.want)
		}
	}
}

func TestThisMachineHasAnAddress(t *testing.T) {
	if own := ownAddress(t.Context(), netip.Addr{}, nil); !own.IsValid() || own.IsUnspecified() {
		t.Errorf("own address %v", own)
	}
	if bridge := isBridge("docker0"); !bridge {
		t.Error("docker0 is taken for a network")
	}
}
