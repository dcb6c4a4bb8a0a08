package membership

import (
	"context"
	"slices"
	"strings"
	"testing"
)

func TestParseStatic(t *testing.T) {
	got, err := ParseStatic("w1=10.0.0.2:7601, w0=node-0.local:7601")
	if err != nil {
		t.Fatal(err)
	}
	want := []Member{
		{Name: "w0", Role: RoleWorker, Address: "node-0.local:7601", Weight: 1},
		{Name: "w1", Role: RoleWorker, Address: "10.0.0.2:7601", Weight: 1},
	}
	if !slices.Equal(got, want) {
		t.Errorf("got %+v, want %+v", got, want)
	}
	for list, rule := range map[string]string{
		"":                    "is not name=host:port",
		"w0":                  "is not name=host:port",
		"w0=a:1,":             "is not name=host:port",
		"=a:1":                "has 0 bytes",
		"w0=a":                "names no port",
		"w0=a:0":              "a port is 1 to 65535",
		"w0=a:1,w0=b:1":       "is named twice",
		"w 0=a:1":             "other characters",
		"w0=0.0.0.0:7601":     "can't dial",
		"w0=a=b:1":            "neither an IP address nor a host name",
		"w0=127.0.0.1:777777": "not a number from 0 to 65535",
	} {
		if _, err := ParseStatic(list); err == nil || !strings.Contains(err.Error(), rule) {
			t.Errorf("%q: want an error that says %q, got %v", list, rule, err)
		}
	}
}

func TestStaticNeverChanges(t *testing.T) {
	list := []Member{aMember("w1"), aMember("w0")}
	v := Static(list)
	list[0].Name = "changed"
	v.Members()[0].Name = "changed"
	if got := v.Members(); got[0].Name != "w0" || got[1].Name != "w1" {
		t.Errorf("members %+v", got)
	}
	if err := v.Close(context.Background()); err != nil {
		t.Error(err)
	}
	select {
	case <-v.Changed():
		t.Error("a static view says that it changed")
	default:
	}
	if a := GossipAddr(v); a != "" {
		t.Errorf("a static view gossips at %s", a)
	}
}
