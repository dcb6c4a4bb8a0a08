package address

import (
	"context"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestAddressesAreReadByOneRule(t *testing.T) {
	for _, c := range []struct{ text, want string }{
		{"localhost", "localhost:7600"},
		{"localhost:1", "localhost:1"},
		{"10.0.0.1", "10.0.0.1:7600"},
		{"10.0.0.1:65535", "10.0.0.1:65535"},
		{"coord-0.coord.headwater.svc:7601", "coord-0.coord.headwater.svc:7601"},
		{"::1", "[::1]:7600"},
		{"[::1]", "[::1]:7600"},
		{"[fd77::1]", "[fd77::1]:7600"},
		{"[fd77::1]:7601", "[fd77::1]:7601"},
		{"[fd77::1:7601]", "[fd77::1:7601]:7600"},
		{"fd77::1", "[fd77::1]:7600"},
		{"fd77::a:beef", "[fd77::a:beef]:7600"},
		{"2001:db8:0:0:0:0:0:1", "[2001:db8::1]:7600"},
		{"[10.0.0.1]:7601", "10.0.0.1:7601"}, // a manifest writes [$(POD_IP)] for both families
		{"::ffff:10.0.0.1", "10.0.0.1:7600"},
		{"[fe80::1%eth0]:7601", "[fe80::1%eth0]:7601"},
		{"unix:/run/coord.sock", "unix:/run/coord.sock"},
		{"unix:///run/coord.sock", "unix:/run/coord.sock"},
		{"unix:coord.sock", "unix:coord.sock"},
	} {
		a, err := Parse(c.text, 7600)
		if err != nil || a.String() != c.want {
			t.Errorf("%q is %q, %v; want %q", c.text, a, err, c.want)
		}
	}
}

func TestWrongAddressesAreRefusedWithWhatToWrite(t *testing.T) {
	for _, c := range []struct{ text, says string }{
		{"", "is empty"},
		{":7600", "write localhost:7600"},
		{"host:", `port ""`},
		{"localhost:99999", `port "99999" is not a number from 0 to 65535`},
		{"host:0", "port 0 can't be dialed"},
		{"host:http", `port "http"`},
		{"host:-1", `port "-1"`},
		{"host:+1", `port "+1"`},
		{"host: 1", `port " 1"`},
		{"fd77::1:7601", "may mean [fd77::1]:7601 or [fd77::1:7601]"},
		{"1:2:3:4:5:6:7:8:9", "needs brackets: [1:2:3:4:5:6:7:8]:9"},
		{"a:b:c", "neither host:port nor an IPv6 address"},
		{"[fd77::1", "brackets are wrong"},
		{"[fd77::1]7601", "brackets are wrong"},
		{"[[fd77::1]]:7600", "brackets are wrong"},
		{"[]:7600", "brackets are wrong"},
		{"http://host:7600", "write host:port without http://"},
		{"dns:///host:7600", "write host:port without dns://"},
		{"300.0.0.1:7600", "neither an IP address nor a host name"},
		{"7600", "neither an IP address nor a host name"},
		{"a b:7600", "neither an IP address nor a host name"},
		{"a\x1b[31m:7600", "neither"},
		{strings.Repeat("a", 254), "254 bytes"},
		{"[fe80::1%a/b]:7600", "zone"},
		{"unix:", "names no file"},
		{"unix:/run/", "names no file"},
		{"unix:@name", "without a file"},
		{"unix:/a\x00b", "without a file"},
		{"unix://host/path", "write unix:/path"},
		{"unix:/" + strings.Repeat("a", 107), "108 bytes, at most 107"},
	} {
		a, err := Parse(c.text, 7600)
		if err == nil || !strings.Contains(err.Error(), c.says) {
			t.Errorf("%q is %q, %v; want an error that says %q", c.text, a, err, c.says)
		}
	}
	if _, err := Parse("host", 0); err == nil || !strings.Contains(err.Error(), "names no port") {
		t.Errorf("an address without any port: %v", err)
	}
	for _, text := range []string{"0.0.0.0:7601", "[::]:7601", "[::ffff:0.0.0.0]:1"} {
		if _, err := ParseAdvertised(text, 0); err == nil || !strings.Contains(err.Error(), "others can't dial") {
			t.Errorf("%q is advertised: %v", text, err)
		}
	}
}

func TestServersBindWhatIsWritten(t *testing.T) {
	for _, c := range []struct{ text, want string }{
		{":7600", ":7600"},
		{":0", ":0"},
		{"0.0.0.0:7600", "0.0.0.0:7600"},
		{"[::]:7600", "[::]:7600"},
		{"127.0.0.1:0", "127.0.0.1:0"},
		{"unix:///run/coord.sock", "unix:/run/coord.sock"},
	} {
		a, err := ParseListen(c.text)
		if err != nil || a.String() != c.want {
			t.Errorf("%q is %q, %v; want %q", c.text, a, err, c.want)
		}
	}
	for _, text := range []string{"", "localhost", "7600", "[::]", "fd77::1:7601", "unix:"} {
		if a, err := ParseListen(text); err == nil {
			t.Errorf("%q is %q", text, a)
		}
	}
}

func FuzzParse(f *testing.F) {
	for _, text := range []string{"localhost", "[fd77::1]:7601", "fd77::1:7601", "unix:///run/a b%20?#", "[fe80::1%eth0]:1", ":1", "1.2.3.4", "::ffff:1.2.3.4"} {
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, text string) {
		for _, parse := range []func(string) (Address, error){
			func(s string) (Address, error) { return Parse(s, 7600) },
			func(s string) (Address, error) { return ParseAdvertised(s, 0) },
			ParseListen,
		} {
			a, err := parse(text)
			if err != nil {
				continue
			}
			again, err := parse(a.String())
			if err != nil || again != a {
				t.Fatalf("%q is %q, which is read as %q, %v", text, a, again, err)
			}
			target, err := url.Parse(a.Target())
			if err != nil {
				t.Fatalf("%q has target %q: %v", text, a.Target(), err)
			}
			if want := "/" + a.String(); !a.Unix() && target.Path != want {
				t.Fatalf("%q has target %q of path %q, want %q", text, a.Target(), target.Path, want)
			}
		}
	})
}

func TestASocketIsListenedOnAndLeftBehindByNobody(t *testing.T) {
	path := filepath.Join(t.TempDir(), "a.sock")
	a, err := Parse("unix:"+path, 0)
	if err != nil {
		t.Fatal(err)
	}
	listener, err := a.Listen(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if of, err := Of(listener.Addr()); err != nil || of != a {
		t.Errorf("it listens on %v, %v", of, err)
	}
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("the socket is %v, %v", info, err)
	}
	if _, err := a.Listen(t.Context()); err == nil {
		t.Error("two listen on one socket")
	}
	// As after kill -9: the file is there, and nobody listens.
	listener.(*net.UnixListener).SetUnlinkOnClose(false)
	if err := listener.Close(); err != nil {
		t.Fatal(err)
	}
	if listener, err = a.Listen(t.Context()); err != nil {
		t.Fatalf("after a process that was killed: %v", err)
	}
	if err := listener.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(path); err == nil {
		t.Error("the socket's file is left behind")
	}
	if err := os.WriteFile(path, []byte("precious"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := a.Listen(context.Background()); err == nil {
		t.Error("a file that is no socket was replaced")
	}
	if data, _ := os.ReadFile(path); string(data) != "precious" {
		t.Error("a file that is no socket is gone")
	}
}
