//go:build linux

package network

import (
	"errors"
	"strings"
	"testing"

	"headwater.example/client"
)

// small are the flags of a worker that takes little.
var small = []string{"--memory", "64MiB", "--threads", "1"}

// TestTheCommandsOfTheREADMEWorkOnEveryMachine: a coordinator and a worker with default flags, a status and a job.
func TestTheCommandsOfTheREADMEWorkOnEveryMachine(t *testing.T) {
	for _, c := range []struct {
		name     string
		commands []string
		join     string
		dial     string
		host     string // that both advertise
		env      []string
	}{
		{name: "only loopback", join: "127.0.0.1:7610", dial: "127.0.0.1", host: "127.0.0.1"},
		{
			name: "only a public address",
			commands: []string{
				"link add eth0 type veth peer name eth1", "link set eth1 up", "address add 203.0.113.7/24 dev eth0", "link set eth0 up", "route add default dev eth0",
			},
			join: "203.0.113.7:7610", dial: "203.0.113.7:7600", host: "203.0.113.7",
			// Proxies are not for the cluster.
			env: []string{"HTTPS_PROXY=http://127.0.0.1:9", "https_proxy=http://127.0.0.1:9", "HTTP_PROXY=http://127.0.0.1:9", "http_proxy=http://127.0.0.1:9", "ALL_PROXY=http://127.0.0.1:9"},
		},
		{
			name: "a public address beside a container bridge",
			commands: []string{
				"link add docker0 type bridge", "address add 172.17.0.1/16 dev docker0", "link set docker0 up",
				"link add eth0 type veth peer name eth1", "link set eth1 up", "address add 203.0.113.7/24 dev eth0", "link set eth0 up",
			},
			join: "127.0.0.1:7610", dial: "localhost", host: "203.0.113.7",
		},
		{
			name: "IPv6 alone",
			commands: []string{
				"address delete 127.0.0.1/8 dev lo",
				"link add eth0 type veth peer name eth1", "link set eth1 up", "address add fd77::1/64 dev eth0 nodad", "link set eth0 up",
			},
			join: "[fd77::1]:7610", dial: "[fd77::1]", host: "fd77::1",
		},
		{
			name: "both families",
			commands: []string{
				"link add eth0 type veth peer name eth1", "link set eth1 up", "address add fd77::1/64 dev eth0 nodad", "address add 10.77.0.1/24 dev eth0", "link set eth0 up",
			},
			join: "[fd77::1]:7610", dial: "fd77::1", host: "",
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			m := newMachine(t, strings.ReplaceAll(c.name[:6], " ", "")+strings.ReplaceAll(c.name[len(c.name)-6:], " ", ""), c.commands...)
			if m.env = c.env; c.commands == nil {
				m.certs = "" // a machine of one's own needs none
			}
			coordinator := m.serve(t, "coord", "serve", "--data-dir", t.TempDir())
			worker := m.serve(t, "worker", append([]string{"serve", "--join", c.join}, small...)...)
			for _, p := range []*process{coordinator, worker} {
				grpc, gossip := p.serving(t)
				if c.host != "" && (grpc != c.host || gossip != c.host) || grpc != gossip {
					t.Errorf("gRPC is advertised at %s and gossip at %s, want %s", grpc, gossip, c.host)
				}
			}
			m.awaitWorkers(t, c.dial, 1)
			m.submit(t, c.dial)
		})
	}
}

func TestBothFamiliesFindAMachineOfIPv4Alone(t *testing.T) {
	t.Parallel()
	a, b := newMachine(t, "dual"), newMachine(t, "four")
	connect(t, a, b, []string{"10.77.0.1/24", "fd77::1/64"}, []string{"10.77.0.2/24"})
	a.serve(t, "coord", "serve", "--data-dir", t.TempDir()).serving(t)
	worker := b.serve(t, "worker", append([]string{"serve", "--join", "10.77.0.1:7610"}, small...)...)
	a.awaitWorkers(t, "localhost", 1)
	b.submit(t, "10.77.0.1")
	if said := worker.log.String(); strings.Contains(said, `"level":"WARN"`) {
		t.Errorf("the worker warns: %s", said)
	}
}

// All namespaces of this machine share its host name.
func TestTwoMachinesOfOneNameAreSaidWhereOneLooks(t *testing.T) {
	t.Parallel()
	a, b := newMachine(t, "twina"), newMachine(t, "twinb")
	connect(t, a, b, []string{"10.78.0.1/24"}, []string{"10.78.0.2/24"})
	coordinator := a.serve(t, "coord", "serve", "--data-dir", t.TempDir())
	first := a.serve(t, "worker", append([]string{"serve", "--join", "10.78.0.1:7610"}, small...)...)
	a.awaitWorkers(t, "localhost", 1)
	second := b.serve(t, "worker", append([]string{"serve", "--join", "10.78.0.1:7610"}, small...)...)
	a.awaitStatus(t, "localhost", func(workers []worker) bool {
		return len(workers) == 2 && workers[0].Error == "" && strings.Contains(workers[1].Error, "--name") && workers[1].Address == "10.78.0.2:7601"
	})
	out, err := a.run(t, "status", "--coordinator", "localhost")
	if err != nil || !strings.Contains(out, "start one of them with another --name") {
		t.Errorf("status: %v: %s", err, out)
	}
	coordinator.await(t, "two living processes have one name")
	first.await(t, "another living process has the name of this one")
	second.await(t, "another living process has the name of this one")
	// The other takes the name over as soon as the first is killed, and is not kept waiting until that is found dead.
	if err := first.cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	a.awaitStatus(t, "localhost", func(workers []worker) bool {
		return len(workers) > 0 && workers[0].Error == "" && workers[0].Address == "10.78.0.2:7601"
	})
}

func TestAProxyIsTakenOnlyIfAskedForAndThenNamed(t *testing.T) {
	t.Parallel()
	m := &machine{env: []string{"HTTPS_PROXY=http://127.0.0.1:9", "NO_PROXY=", "no_proxy="}}
	// Addresses of this machine are never proxied by Go's rule, so one of documentation stands for another machine.
	out, err := m.run(t, "status", "--proxy", "--insecure", "--coordinator", "203.0.113.1:7600")
	if exit(err) != 3 || !strings.Contains(out, "through the proxy 127.0.0.1:9") {
		t.Errorf("exit %d: %s", exit(err), out)
	}
	if out, err = m.run(t, "status", "--coordinator", "127.0.0.1:1"); exit(err) != 3 || strings.Contains(out, "proxy") {
		t.Errorf("exit %d: %s", exit(err), out)
	}
}

func TestUnixSocketsWorkForEveryAddress(t *testing.T) {
	t.Parallel()
	m, folder := &machine{}, t.TempDir()
	at := func(name string) string { return "unix:" + folder + "/" + name }
	m.serve(t, "worker", append([]string{"serve", "--gossip", "", "--name", "w1", "--listen", at("w1.sock")}, small...)...)
	coordinator := m.serve(t, "coord", "serve", "--gossip", "", "--data-dir", t.TempDir(), "--listen", at("coord.sock"), "--workers", "w1="+at("w1.sock"))
	if record := coordinator.await(t, "serving"); record["address"] != at("coord.sock") {
		t.Errorf("it serves at %v", record["address"])
	}
	m.awaitWorkers(t, at("coord.sock"), 1)
	m.submit(t, "unix://"+folder+"/coord.sock")
	// A message that is too large is refused with the numbers.
	c, err := client.Dial(at("coord.sock"))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	_, err = c.OpenSession(t.Context(), client.SessionOptions{Layers: []client.Layer{{Heads: 2, KVHeads: 2, HeadDim: 8}}, Tokens: make([]uint32, 40_000_000)})
	if !errors.Is(err, client.ErrRefused) || !strings.Contains(err.Error(), "bytes that are allowed") {
		t.Errorf("40 million ids: %v", err)
	}
	out, err := m.run(t, "bench", "--tests", "decode", "--positions", "64", "--spend", "100ms", "--coordinator", at("coord.sock"))
	if err != nil {
		t.Errorf("bench: %v: %s", err, out)
	}
}

func TestWrongAddressesAreWrongUsage(t *testing.T) {
	t.Parallel()
	m := &machine{}
	for _, c := range []struct {
		args []string
		says string
	}{
		{[]string{"status", "--coordinator", "[[fd77::1]]"}, "brackets"},
		{[]string{"status", "--coordinator", "localhost:99999"}, "99999"},
		{[]string{"serve", "--listen", "7600"}, "--listen"},
		{[]string{"serve", "--listen", "127.0.0.1:0", "--advertise", "fd77::1:7601"}, "--advertise"},
		{[]string{"serve", "--listen", "127.0.0.1:0", "--gossip", "7610"}, "--gossip"},
		{[]string{"serve", "--listen", "127.0.0.1:0", "--join", "host"}, "--join"},
		{[]string{"serve", "--listen", "127.0.0.1:0", "--gossip", "127.0.0.1:0", "--gossip-advertise", "[fd77::1"}, "advertise"},
	} {
		if out, err := m.run(t, c.args...); exit(err) != 2 || !strings.Contains(out, c.says) {
			t.Errorf("%v: exit %d, want 2 and %q: %s", c.args, exit(err), c.says, out)
		}
	}
}
