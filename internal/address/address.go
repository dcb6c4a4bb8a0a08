// Package address has the rules for addresses: how they are written, what a server binds, and under which address others
// reach it. Every flag, file and message that names an address is read here.
//
// An address is one of
//
//	host:port        a host name or an IPv4 address, and a port
//	[IPv6]:port      brackets keep an IPv6 address and a port apart
//	unix:/path       a Unix socket; unix:///path is the same
//
// Where a default port is known, the port may be left out, and so may the brackets of an IPv6 address that can't be
// mistaken for an address with a port.
package address

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
)

// Address is where a server listens, or where a client finds it.
type Address struct {
	Host string // an IP address without brackets, or a host name; "" is every address of the machine, for a server only
	Port uint16 // 0 is any free port, for a server only
	Path string // of a Unix socket; Host and Port are then empty
}

// maxPath is the longest path of a Unix socket on Linux, in bytes. maxHost is DNS's.
const (
	maxPath = 107
	maxHost = 253
)

// Parse reads an address that a client dials. The port may be left out if defaultPort is not 0.
func Parse(text string, defaultPort uint16) (Address, error) {
	a, hasPort, err := parse(text)
	switch {
	case err != nil:
		return Address{}, err
	case a.Path != "":
		return a, nil
	case a.Host == "":
		return Address{}, fmt.Errorf("address %q names no host: write localhost%s for this machine", text, text)
	case !hasPort && defaultPort == 0:
		return Address{}, fmt.Errorf("address %q names no port: write host:port", text)
	case !hasPort:
		a.Port = defaultPort
	case a.Port == 0:
		return Address{}, fmt.Errorf("address %q: port 0 can't be dialed, a port is 1 to 65535", text)
	}
	return a, nil
}

// ParseAdvertised reads an address that others are told to dial: Parse, and neither 0.0.0.0 nor [::], which mean no machine.
func ParseAdvertised(text string, defaultPort uint16) (Address, error) {
	a, err := Parse(text, defaultPort)
	if err != nil {
		return Address{}, err
	}
	if ip, err := netip.ParseAddr(a.Host); err == nil && ip.IsUnspecified() {
		return Address{}, fmt.Errorf("address %q: others can't dial %s", text, a.Host)
	}
	return a, nil
}

// ParseListen reads an address that a server binds. An empty host, 0.0.0.0 and [::] are every address of the machine, the
// second of IPv4 only. Port 0 takes a free one.
func ParseListen(text string) (Address, error) {
	a, hasPort, err := parse(text)
	if err == nil && a.Path == "" && !hasPort {
		err = fmt.Errorf("address %q names no port: write host:port, or :port for every address of the machine", text)
	}
	if err != nil {
		return Address{}, err
	}
	return a, nil
}

// parse reads what all addresses have in common.
func parse(text string) (a Address, hasPort bool, err error) {
	if path, ok := strings.CutPrefix(text, "unix:"); ok {
		a.Path, err = parsePath(text, path)
		return a, false, err
	}
	if scheme, _, ok := strings.Cut(text, "://"); ok {
		return a, false, fmt.Errorf("address %q is a URL: write host:port without %s://", text, scheme)
	}
	host, port := text, ""
	switch {
	case text == "":
		return a, false, errors.New("the address is empty: write host:port")
	case strings.HasPrefix(text, "["):
		inside, rest, ok := strings.Cut(text[1:], "]")
		if host = inside; !ok || rest != "" && !strings.HasPrefix(rest, ":") || strings.ContainsAny(inside, "[]") || inside == "" {
			return a, false, fmt.Errorf("address %q: its brackets are wrong, write [IPv6]:port", text)
		}
		if rest != "" {
			port, hasPort = rest[1:], true
		}
	case strings.Count(text, ":") > 1:
		if err := bareIPv6(text); err != nil {
			return a, false, err
		}
	case strings.Contains(text, ":"):
		host, port, hasPort = strings.Cut(text, ":")
	}
	if err := checkHost(host); err != nil {
		return a, false, fmt.Errorf("address %q: %w", text, err)
	}
	if hasPort {
		n, err := strconv.ParseUint(port, 10, 16)
		if err != nil {
			return a, false, fmt.Errorf("address %q: port %q is not a number from 0 to 65535", text, port)
		}
		a.Port = uint16(n)
	}
	a.Host = canonical(host)
	return a, hasPort, nil
}

// canonical writes an IP address in its usual form. An IPv4 address in an IPv6 one is the IPv4 address.
func canonical(host string) string {
	if ip, err := netip.ParseAddr(host); err == nil {
		return ip.Unmap().String()
	}
	return host
}

// bareIPv6 refuses an IPv6 address without brackets whose last group may be meant as a port: [fd77::1]:7601 and
// [fd77::1:7601] are different machines.
func bareIPv6(text string) error {
	last := strings.LastIndexByte(text, ':')
	head, tail := text[:last], text[last+1:]
	_, whole := netip.ParseAddr(text)
	_, cut := netip.ParseAddr(head)
	_, number := strconv.ParseUint(tail, 10, 16)
	switch {
	case whole != nil && cut == nil && number == nil:
		return fmt.Errorf("address %q: an IPv6 address with a port needs brackets: [%s]:%s", text, head, tail)
	case whole != nil:
		return fmt.Errorf("address %q is neither host:port nor an IPv6 address", text)
	case cut == nil && number == nil:
		return fmt.Errorf("address %q may mean [%s]:%s or [%s]: write the brackets", text, head, tail, text)
	}
	return nil
}

// checkHost refuses what is neither an IP address nor a host name. An empty one is every address of the machine.
func checkHost(host string) error {
	if host == "" {
		return nil
	}
	if ip, err := netip.ParseAddr(host); err == nil {
		if !HostCharacters(ip.Zone()) && ip.Zone() != "" {
			return fmt.Errorf("zone %q is no name of an interface", ip.Zone())
		}
		return nil
	}
	if host == "unix" { // "unix:7600" is a socket
		return errors.New("a host can't be named unix: write its address")
	}
	if len(host) > maxHost {
		return fmt.Errorf("the host name has %d bytes, at most %d are allowed", len(host), maxHost)
	}
	if !HostCharacters(host) || strings.Trim(host, "0123456789.") == "" {
		return fmt.Errorf("%q is neither an IP address nor a host name", host)
	}
	return nil
}

// HostCharacters tells whether a name, which is not empty, has only the characters of host names and addresses.
func HostCharacters(s string) bool {
	for i := range len(s) {
		c := s[i]
		switch {
		case 'a' <= c && c <= 'z', 'A' <= c && c <= 'Z', '0' <= c && c <= '9', c == '.', c == '_', c == '-':
		default:
			return false
		}
	}
	return s != ""
}

func parsePath(text, path string) (string, error) {
	if rest, ok := strings.CutPrefix(path, "//"); ok {
		if path = rest; !strings.HasPrefix(path, "/") {
			return "", fmt.Errorf("address %q: write unix:/path or unix:///path", text)
		}
	}
	clean := filepath.Clean(path)
	switch {
	case path == "" || strings.HasSuffix(path, "/") || clean == "/" || filepath.Base(clean) == "." || filepath.Base(clean) == "..":
		return "", fmt.Errorf("address %q names no file: write unix:/path", text)
	case strings.HasPrefix(clean, "@") || strings.ContainsRune(path, 0):
		return "", fmt.Errorf("address %q: sockets without a file are not supported: write unix:/path", text)
	case len(path) > maxPath:
		return "", fmt.Errorf("address %q: the path has %d bytes, at most %d are allowed", text, len(path), maxPath)
	}
	return clean, nil
}

// Unix tells whether the address is a Unix socket.
func (a Address) Unix() bool { return a.Path != "" }

// String writes the address so that Parse and ParseListen read it.
func (a Address) String() string {
	if a.Unix() {
		return "unix:" + a.Path
	}
	return net.JoinHostPort(a.Host, strconv.Itoa(int(a.Port)))
}

// Target is the address as gRPC takes it. The name of a host is resolved at each attempt to connect, and all of its
// addresses are tried.
func (a Address) Target() string {
	if !a.Unix() {
		return "passthrough:///" + url.PathEscape(a.String())
	}
	path := a.Path
	if absolute, err := filepath.Abs(path); err == nil { // it fails only where there is no working folder
		path = absolute
	}
	return "unix://" + (&url.URL{Path: path}).EscapedPath()
}

// Target is the gRPC target of an address that a member announces. Its error is that of Parse.
func Target(text string) (string, error) {
	a, err := Parse(text, 0)
	if err != nil {
		return "", err
	}
	return a.Target(), nil
}

// Of is the address of a listener.
func Of(listener net.Addr) (Address, error) {
	if socket, ok := listener.(*net.UnixAddr); ok {
		path, err := filepath.Abs(socket.Name)
		if err != nil {
			return Address{}, fmt.Errorf("socket %s: %w", socket.Name, err)
		}
		return Address{Path: path}, nil
	}
	return ParseListen(listener.String())
}

// Listen binds the address. A socket's file that a killed process left behind is replaced; closing the listener removes it.
// Only the owner may use the socket.
func (a Address) Listen(ctx context.Context) (net.Listener, error) {
	var listen net.ListenConfig
	if !a.Unix() {
		if a.Host == "" {
			a.Host = Every().String()
		}
		switch a.Host {
		case netip.IPv6Unspecified().String(): // which net.Listen takes for 0.0.0.0
			return net.ListenTCP("tcp", &net.TCPAddr{IP: net.IPv6unspecified, Port: int(a.Port)})
		case netip.IPv4Unspecified().String(): // on which net.Listen listens on IPv6 as well
			return listen.Listen(ctx, "tcp4", a.String())
		}
		return listen.Listen(ctx, "tcp", a.String())
	}
	listener, err := listen.Listen(ctx, "unix", a.Path)
	if errors.Is(err, syscall.EADDRINUSE) && a.abandoned(ctx) {
		if err := os.Remove(a.Path); err != nil && !errors.Is(err, os.ErrNotExist) {
			return nil, fmt.Errorf("remove the socket of a process that has ended: %w", err)
		}
		listener, err = listen.Listen(ctx, "unix", a.Path)
	}
	if err != nil {
		return nil, err
	}
	if err := os.Chmod(a.Path, 0o600); err != nil {
		return nil, errors.Join(err, listener.Close())
	}
	return listener, nil
}

// Every is the address to bind for every address of the machine: that of IPv6, which takes IPv4 as well, unless the machine
// has no IPv6. Go's own choice needs 127.0.0.1, which a machine with IPv6 alone may not have.
func Every() netip.Addr {
	listener, err := net.Listen("tcp6", "[::]:0")
	if err != nil {
		return netip.IPv4Unspecified()
	}
	_ = listener.Close() // it was a question
	return netip.IPv6Unspecified()
}

// abandoned tells whether the path is a socket on which nobody listens.
func (a Address) abandoned(ctx context.Context) bool {
	info, err := os.Lstat(a.Path)
	if err != nil || info.Mode().Type() != os.ModeSocket {
		return false
	}
	var dialer net.Dialer
	conn, err := dialer.DialContext(ctx, "unix", a.Path)
	if err == nil {
		_ = conn.Close() // somebody listens
	}
	return errors.Is(err, syscall.ECONNREFUSED)
}
