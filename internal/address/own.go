package address

import (
	"context"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// machine is what ownAddress asks about the machine and its network.
type machine struct {
	// lookup resolves a host name.
	lookup func(ctx context.Context, host string) ([]netip.Addr, error)
	// route returns the machine's own address on the way to another, if there is a way. Nothing is sent.
	route func(to netip.Addr) (netip.Addr, bool)
	// interfaces returns the addresses of the interfaces that are up.
	interfaces func() []local
}

// local is one address of an interface.
type local struct {
	addr   netip.Addr
	bridge bool // the interface leads to containers, virtual machines or through a tunnel, not to other machines
}

// lookupTimeout bounds how long ownAddress waits for names to resolve.
const lookupTimeout = 2 * time.Second

// ownAddress returns the address under which other machines reach this one, for a server that is bound to an unspecified address:
// IPv4's if bound is 0.0.0.0, any if bound is [::] or not valid. It takes the first of
//
//  1. the own address on the way to a seed,
//  2. the own IPv4 address on the way to everywhere,
//  3. an IPv4 address of an interface that is no container bridge and no tunnel,
//  4. the own IPv6 address on the way to everywhere, and that of such an interface,
//  5. an address of a bridge or tunnel,
//  6. a loopback address, which only this machine reaches.
//
// IPv4 comes before IPv6 because a machine with both reaches everybody that has either. gRPC and gossip advertise the same
// found address. Nothing is sent, but names of seeds are resolved.
func ownAddress(ctx context.Context, bound netip.Addr, seeds []Address) netip.Addr {
	return system().own(ctx, bound, seeds)
}

// IsLoopback tells whether only this machine reaches an address.
func (a Address) IsLoopback() bool {
	ip, err := netip.ParseAddr(a.Host)
	return a.Unix() || a.Host == "localhost" || err == nil && ip.IsLoopback()
}

// everywhere are addresses that lie behind a default route. They are those of documentation: nobody has them.
var everywhere = struct{ v4, v6 netip.Addr }{netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("2001:db8::1")}

func (m machine) own(ctx context.Context, bound netip.Addr, seeds []Address) netip.Addr {
	usable := func(ip netip.Addr) bool {
		return ip.IsGlobalUnicast() && (ip.Is4() || bound != netip.IPv4Unspecified())
	}
	for _, to := range m.resolve(ctx, seeds) {
		if from, ok := m.route(to); ok && usable(from) {
			return from
		}
	}
	locals := m.interfaces()
	pick := func(v4, bridge bool) (netip.Addr, bool) {
		for _, l := range locals {
			if usable(l.addr) && l.addr.Is4() == v4 && l.bridge == bridge {
				return l.addr, true
			}
		}
		return netip.Addr{}, false
	}
	route := func(to netip.Addr) (netip.Addr, bool) {
		from, ok := m.route(to)
		return from, ok && usable(from)
	}
	for _, find := range []func() (netip.Addr, bool){
		func() (netip.Addr, bool) { return route(everywhere.v4) },
		func() (netip.Addr, bool) { return pick(true, false) },
		func() (netip.Addr, bool) { return route(everywhere.v6) },
		func() (netip.Addr, bool) { return pick(false, false) },
		func() (netip.Addr, bool) { return pick(true, true) },
		func() (netip.Addr, bool) { return pick(false, true) },
	} {
		if ip, ok := find(); ok {
			return ip
		}
	}
	only6 := slices.ContainsFunc(locals, func(l local) bool { return l.addr.Is6() }) &&
		!slices.ContainsFunc(locals, func(l local) bool { return l.addr.Is4() })
	if only6 && bound != netip.IPv4Unspecified() {
		return netip.IPv6Loopback()
	}
	return netip.AddrFrom4([4]byte{127, 0, 0, 1})
}

// resolve returns the seeds' IP addresses, those of IPv4 first.
func (m machine) resolve(ctx context.Context, seeds []Address) []netip.Addr {
	ctx, cancel := context.WithTimeout(ctx, lookupTimeout)
	defer cancel()
	var all []netip.Addr
	for _, s := range seeds {
		if ip, err := netip.ParseAddr(s.Host); err == nil {
			all = append(all, ip)
		} else if s.Host != "" {
			ips, _ := m.lookup(ctx, s.Host) // one that does not resolve now leads nowhere
			all = append(all, ips...)
		}
	}
	for i := range all {
		all[i] = all[i].Unmap()
	}
	slices.SortStableFunc(all, func(a, b netip.Addr) int { return a.BitLen() - b.BitLen() })
	return all
}

func system() machine {
	return machine{
		lookup: func(ctx context.Context, host string) ([]netip.Addr, error) {
			return net.DefaultResolver.LookupNetIP(ctx, "ip", host)
		},
		route:      route,
		interfaces: interfaces,
	}
}

// route connects a UDP socket, which looks up the route and sends nothing.
func route(to netip.Addr) (netip.Addr, bool) {
	conn, err := net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(netip.AddrPortFrom(to, 9)))
	if err != nil {
		return netip.Addr{}, false
	}
	from, ok := netip.AddrFromSlice(conn.LocalAddr().(*net.UDPAddr).IP)
	_ = conn.Close() // nothing was sent
	return from.Unmap(), ok
}

func interfaces() []local {
	all, _ := net.Interfaces() // none where they can't be read
	var found []local
	for _, i := range all {
		if i.Flags&net.FlagUp == 0 {
			continue
		}
		bridge := i.Flags&net.FlagPointToPoint != 0 || isBridge(i.Name)
		addrs, _ := i.Addrs() // as above
		for _, a := range addrs {
			if network, ok := a.(*net.IPNet); ok {
				if ip, ok := netip.AddrFromSlice(network.IP); ok {
					found = append(found, local{ip.Unmap(), bridge})
				}
			}
		}
	}
	return found
}

// bridgeNames begin the names of interfaces that container engines and hypervisors make.
var bridgeNames = []string{"docker", "br-", "virbr", "cni", "podman", "lxc", "lxd", "flannel", "cali", "cilium", "kube-", "nodelocaldns", "veth", "vnet", "dummy"}

func isBridge(name string) bool {
	if slices.ContainsFunc(bridgeNames, func(start string) bool { return strings.HasPrefix(name, start) }) {
		return true
	}
	_, err := os.Stat(filepath.Join("/sys/class/net", name, "bridge")) // Linux; elsewhere there is no such file
	return err == nil
}

// Advertised returns the address under which others reach a server. It is what the user says, with the port bound if that
// names none; else the address bound; else, for a server that is bound to every address, the one that this machine is found to have.
func Advertised(ctx context.Context, bound Address, says string, seeds []Address) (Address, error) {
	if says != "" {
		return ParseAdvertised(says, bound.Port)
	}
	ip, err := netip.ParseAddr(bound.Host)
	if bound.Unix() || bound.Host != "" && (err != nil || !ip.IsUnspecified()) {
		return bound, nil
	}
	return Address{Host: ownAddress(ctx, ip, seeds).String(), Port: bound.Port}, nil
}
