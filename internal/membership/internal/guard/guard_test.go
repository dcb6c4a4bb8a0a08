package guard

import (
	"bytes"
	"compress/lzw"
	"encoding/binary"
	"errors"
	"io"
	"log"
	"net"
	"runtime"
	"strconv"
	"strings"
	"testing"

	"github.com/hashicorp/memberlist"
	"go.uber.org/goleak"

	"headwater.example/internal/testkit/await"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// The pieces of messages, in MessagePack as memberlist writes it.
func text(s string) string { return string([]byte{0xa0 | byte(len(s))}) + s }

func long(n uint32) string {
	return string(binary.BigEndian.AppendUint32([]byte{0xce}, n))
}

func raw(b []byte) string {
	return string(binary.BigEndian.AppendUint32([]byte{0xdb}, uint32(len(b)))) + string(b)
}

func header(nodes, user uint32) string {
	return "\x06\x83" + text("Join") + "\xc3" + text("Nodes") + long(nodes) + text("UserStateLen") + long(user)
}

func node(name string) string {
	return "\x82" + text("Name") + text(name) + text("Vsn") + "\x96\x01\x05\x02\x00\x00\x00"
}

func packed(plain []byte) string {
	var b bytes.Buffer
	w := lzw.NewWriter(&b, lzw.LSB, 8)
	_, _ = w.Write(plain)
	_ = w.Close()
	return "\x09\x82" + text("Algo") + "\x00" + text("Buf") + raw(b.Bytes())
}

const label = "\xf4\x09headwater"

func TestStreamsAreReadWithinBounds(t *testing.T) {
	for _, c := range []struct{ name, in, want, says string }{
		{"a state", label + header(2, 0) + node("a") + node("b"), label + header(2, 0) + node("a") + node("b"), ""},
		{"a state without a label", header(0, 0), header(0, 0), ""},
		{"a compressed state", label + packed([]byte(header(1, 0)+node("a"))), label + header(1, 0) + node("a"), ""},
		{"a ping", label + "\x00\x82" + text("SeqNo") + "\x07" + text("Node") + text("a"), label + "\x00\x82" + text("SeqNo") + "\x07" + text("Node") + text("a"), ""},
		{"a state that stops", label + header(2, 0) + node("a"), "", "ends early"},
		{"a million nodes", label + header(1<<20, 0), "", "0 to 6144"},
		{"a million nodes, said twice", label + "\x06\x82" + text("Nodes") + long(1<<20) + text("Nodes") + "\x00", "", "0 to 6144"},
		{"a million nodes, compressed", label + packed([]byte(header(1<<20, 0))), "", "0 to 6144"},
		{"many user bytes", label + header(0, 20<<20), "", "0 to 65536"},
		{"a count that is negative", label + "\x06\x81" + text("Nodes") + "\xff", "", "0 to 6144"},
		{"a header that is an array", label + "\x06\x93" + long(1<<20) + "\x00\xc3", "", "no map"},
		{"a name of 4 GiB", label + header(1, 0) + "\x81" + text("Name") + "\xdb\xff\xff\xff\xff", "", "more than"},
		{"an array of 2^32", label + header(1, 0) + "\x81" + text("Vsn") + "\xdd\xff\xff\xff\xff", "", "ends early"},
		{"values in values", label + header(1, 0) + "\x81" + text("Vsn") + strings.Repeat("\x91", 100), "", "nested"},
		{"a bomb", label + packed(make([]byte, 64<<20)), "", "more than"},
		{"a bomb in a state", label + packed([]byte(packed(make([]byte, 1<<20)))), "", "type 9"},
		{"an encrypted message", label + "\x0a\xff\xff\xff\xff", "", "this process has no key"},
		{"a user message", label + "\x08\x81" + text("UserMsgLen") + long(20<<20), "", "type 8"},
		{"another type", label + "\x63", "", "type 99"},
	} {
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		got, err := stream(strings.NewReader(c.in), nil)
		runtime.ReadMemStats(&after)
		switch {
		case c.says == "" && (err != nil || string(got) != c.want):
			t.Errorf("%s: %q, %v", c.name, got, err)
		case c.says != "" && (err == nil || !strings.Contains(err.Error(), c.says)):
			t.Errorf("%s: want an error that says %q, got %v", c.name, c.says, err)
		}
		if took := after.TotalAlloc - before.TotalAlloc; took > 8*maxStreamBytes {
			t.Errorf("%s: took %d bytes", c.name, took)
		}
	}
}

func TestPacketsAreReadWithinBounds(t *testing.T) {
	ping := "\x00\x82" + text("SeqNo") + "\x07" + text("Node") + text("a")
	sum := "\x0c\x00\x00\x00\x00"
	compound := "\x07\x02\x00" + string([]byte{byte(len(ping))}) + "\x00" + string([]byte{byte(len(ping))}) + ping + ping
	for _, c := range []struct{ name, in, says string }{
		{"a ping", label + ping, ""},
		{"a ping with its checksum", label + sum + ping, ""},
		{"several messages", label + sum + compound, ""},
		{"several, compressed", label + sum + packed([]byte(compound)), ""},
		{"nothing", label, "ends early"},
		{"half a label", "\xf4\x09head", "ends early"},
		{"half a compound", label + compound[:10], "ends early"},
		{"a name of 4 GiB", label + "\x04\x81" + text("Node") + "\xdb\xff\xff\xff\xff", "more than"},
		{"a bomb", label + packed(make([]byte, 4<<20)), "more than"},
		{"packed many times", label + packed([]byte(packed([]byte(packed([]byte(packed([]byte(ping)))))))), "more than 4 times"},
		{"a user message", label + "\x08hello", "type 8"},
	} {
		err := packet([]byte(c.in), nil)
		if c.says == "" && err != nil || c.says != "" && (err == nil || !strings.Contains(err.Error(), c.says)) {
			t.Errorf("%s: want an error that says %q, got %v", c.name, c.says, err)
		}
	}
}

func FuzzStream(f *testing.F) {
	f.Add([]byte(label + header(2, 0) + node("a") + node("b")))
	f.Add([]byte(label + packed([]byte(header(1, 3)+node("a")+"abc"))))
	f.Add([]byte(label + "\x0a\x00\x00\x00\x03abc"))
	f.Fuzz(func(t *testing.T, in []byte) {
		out, err := stream(bytes.NewReader(in), nil)
		if len(out) > 2*maxStreamBytes {
			t.Fatalf("%d bytes become %d", len(in), len(out))
		}
		if err != nil {
			return
		}
		again, err := stream(bytes.NewReader(out), nil)
		if err != nil || !bytes.Equal(again, out) {
			t.Fatalf("what is handed on is %q, %v when it is read again", again, err)
		}
	})
}

func FuzzPacket(f *testing.F) {
	f.Add([]byte(label + "\x0c\x00\x00\x00\x00\x00\x81" + text("SeqNo") + "\x07"))
	f.Add([]byte(label + packed([]byte("\x04\x81"+text("Node")+text("a")))))
	f.Add([]byte("\x07\x01\x00\x02\x00\x80"))
	f.Fuzz(func(_ *testing.T, in []byte) { _ = packet(in, nil) })
}

// member makes a memberlist whose network is guarded.
func member(t *testing.T, name string, refused func(net.Addr, error)) *memberlist.Memberlist {
	t.Helper()
	c := memberlist.DefaultLocalConfig()
	quiet := log.New(io.Discard, "", 0)
	transport, err := Listen(&memberlist.NetTransportConfig{BindAddrs: []string{"127.0.0.1"}, Logger: quiet}, nil, refused)
	if err != nil {
		t.Fatal(err)
	}
	c.Name, c.Label, c.Logger, c.Transport = name, "headwater", quiet, transport
	c.BindPort = transport.GetAutoBindPort()
	c.AdvertiseAddr, c.AdvertisePort = "127.0.0.1", c.BindPort
	m, err := memberlist.Create(c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = m.Shutdown() })
	return m
}

func TestMembersFindEachOtherThroughTheGuard(t *testing.T) {
	refused := func(from net.Addr, err error) { t.Errorf("%v is refused: %v", from, err) }
	a, b := member(t, "a", refused), member(t, "b", refused)
	if _, err := a.Join([]string{b.LocalNode().Address()}); err != nil {
		t.Fatal(err)
	}
	await.That(t, "that two members know each other", func() bool { return a.NumMembers() == 2 && b.NumMembers() == 2 })
	for _, m := range []*memberlist.Memberlist{a, b} {
		for _, n := range m.Members() {
			address := &net.UDPAddr{IP: n.Addr, Port: int(n.Port)}
			if _, err := m.Ping(n.Name, address); err != nil {
				t.Errorf("%s does not answer: %v", n.Name, err)
			}
		}
	}
}

func TestAPeerThatAnswersWithAMillionNodesIsNotBelieved(t *testing.T) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	answered := make(chan struct{})
	go func() {
		defer close(answered)
		conn, err := listener.Accept()
		if err != nil {
			return
		}
		_, _ = io.ReadFull(conn, make([]byte, len(label)+1))
		_, _ = io.WriteString(conn, header(1<<20, 0))
		_, _ = io.Copy(io.Discard, conn) // until the other has read it, and closes
		_ = conn.Close()
	}()
	a := member(t, "a", func(net.Addr, error) {})
	if _, err := a.Join([]string{listener.Addr().String()}); err == nil || !strings.Contains(err.Error(), "0 to 6144") {
		t.Errorf("got %v", err)
	}
	_ = listener.Close()
	await.One(t, answered, "the end of the connection")
}

func TestAFloodOfStreamsIsClosed(t *testing.T) {
	reasons := make(chan error, 1000)
	a := member(t, "a", func(_ net.Addr, err error) { reasons <- err })
	var conns []net.Conn
	for range maxStreams + 1 {
		conn, err := net.Dial("tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(int(a.LocalNode().Port))))
		if err != nil {
			t.Fatal(err)
		}
		conns = append(conns, conn)
	}
	if err := await.One(t, reasons, "the refusal of a stream"); !strings.Contains(err.Error(), "the most that are allowed") {
		t.Errorf("got %v", err)
	}
	// One that goes makes room for another.
	for _, c := range conns {
		_ = c.Close()
	}
	b := member(t, "b", func(net.Addr, error) {})
	var err error
	for range 100 {
		if _, err = b.Join([]string{a.LocalNode().Address()}); err == nil {
			break
		}
	}
	if err != nil && !errors.Is(err, io.EOF) {
		t.Errorf("nobody can join after a flood: %v", err)
	}
}

// secretOf has keys, of which the first encrypts.
func secretOf(t *testing.T, keys ...string) *Secret {
	t.Helper()
	all := make([][]byte, len(keys))
	for i, k := range keys {
		all[i] = []byte(strings.Repeat(k, 32))
	}
	ring, err := memberlist.NewKeyring(all, all[0])
	if err != nil {
		t.Fatal(err)
	}
	return &Secret{Ring: ring, Label: "headwater"}
}

// TestOnlyWhatIsEncryptedIsRead seals messages with one secret and reads them with others.
func TestOnlyWhatIsEncryptedIsRead(t *testing.T) {
	state := header(1, 0) + node("a")
	sealed := func(s *Secret, message string) string {
		b, err := s.SealStream([]byte(message))
		if err != nil {
			t.Fatal(err)
		}
		return string(b)
	}
	ours := secretOf(t, "a")
	for _, c := range []struct {
		name, in string
		by       *Secret
		says     string
	}{
		{"a state", label + sealed(ours, state), ours, ""},
		{"one with the key that is going", label + sealed(ours, state), secretOf(t, "b", "a"), ""},
		{"one with another key", label + sealed(secretOf(t, "b"), state), ours, "a key that is not known here"},
		{"one in plain text", label + state, ours, "it is not encrypted"},
		{"one in plain text, compressed", label + packed([]byte(state)), ours, "it is not encrypted"},
		{"one of another label", label + sealed(&Secret{ours.Ring, "other"}, state), ours, "a key that is not known here"},
		{"one that was altered", label + sealed(ours, state)[:60] + "x" + sealed(ours, state)[61:], ours, "a key that is not known here"},
		{"one that is cut off", label + sealed(ours, state)[:60], ours, "ends early"},
		{"one of 4 GiB", label + "\x0a\xff\xff\xff\xff", ours, "more than"},
		{"one of no bytes", label + "\x0a\x00\x00\x00\x00", ours, "it is not encrypted"},
		{"one that is not what it says", label + sealed(ours, header(1<<20, 0)), ours, "0 to 6144"},
	} {
		got, err := stream(strings.NewReader(c.in), c.by)
		if c.says == "" && (err != nil || string(got) != c.in) || c.says != "" && (err == nil || !strings.Contains(err.Error(), c.says)) {
			t.Errorf("%s: %q, %v; want an error that says %q", c.name, got, err, c.says)
		}
	}
	if b, err := ours.OpenStream([]byte(sealed(ours, state))); err != nil || string(b) != state {
		t.Errorf("it is opened as %q, %v", b, err)
	}
}
