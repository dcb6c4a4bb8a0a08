package cli

import (
	"net"
	"strings"
	"testing"
)

func TestDefaultNamesAreLabelsThatDiffer(t *testing.T) {
	coord, err := (&endpointFlags{}).self("coord")
	if err != nil {
		t.Fatal(err)
	}
	worker, err := (&endpointFlags{}).self("worker")
	if err != nil {
		t.Fatal(err)
	}
	if coord == worker {
		t.Errorf("a coordinator and a worker of this machine are both %q", coord)
	}
	for _, name := range []string{coord, worker} {
		if !dnsLabel.MatchString(name) {
			t.Errorf("%q is not a DNS label", name)
		}
	}
	if given, err := (&endpointFlags{name: "a"}).self("worker"); err != nil || given != "a" {
		t.Errorf("the name given is %q, %v", given, err)
	}
}

func TestAnAddressOfThisMachineIsAdvertised(t *testing.T) {
	addresses, err := net.InterfaceAddrs()
	if err != nil {
		t.Fatal(err)
	}
	own, elsewhere := map[string]bool{}, false
	for _, a := range addresses {
		ip := a.(*net.IPNet).IP
		own[ip.String()] = true
		elsewhere = elsewhere || ip.IsGlobalUnicast()
	}
	bind := func(e endpointFlags) (string, error) {
		e.security.insecure = true
		listener, address, err := e.bind(t.Context())
		if err == nil {
			err = listener.Close()
		}
		return address, err
	}
	for _, listen := range []string{"0.0.0.0:0", ":0", "[::]:0"} {
		for _, seeds := range [][]string{nil, {"127.0.0.1:7610"}, {"no.such.host.invalid:7610"}} {
			address, err := bind(endpointFlags{listen: listen, join: seeds})
			if err != nil {
				t.Fatal(err)
			}
			host, port, err := net.SplitHostPort(address)
			if err != nil || port == "0" || !own[host] {
				t.Errorf("%s with seeds %q: %q, %v; this machine has %v", listen, seeds, address, err, own)
			}
			if elsewhere && strings.HasPrefix(host, "127.") {
				t.Errorf("%s with seeds %q: %q, which others can not reach", listen, seeds, address)
			}
		}
	}
	// What is given wins over both.
	for advertise, want := range map[string]string{"10.0.0.1": "10.0.0.1:", "a.example:9": "a.example:9", "fd00::1": "[fd00::1]:", "[fd00::1]:9": "[fd00::1]:9"} {
		if address, err := bind(endpointFlags{listen: ":0", advertise: advertise}); err != nil || !strings.HasPrefix(address, want) {
			t.Errorf("advertised as %q: %q, %v", advertise, address, err)
		}
	}
	for _, wrong := range []endpointFlags{
		{listen: "7601"}, {listen: ":0", advertise: "0.0.0.0"}, {listen: ":0", advertise: "fd77::1:7601"}, {listen: ":0", join: []string{"host"}},
	} {
		if address, err := bind(wrong); exitCode(err) != exitUsage {
			t.Errorf("%+v: %q, %v", wrong, address, err)
		}
	}
}
