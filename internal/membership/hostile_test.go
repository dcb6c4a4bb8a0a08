package membership

import (
	"encoding/binary"
	"fmt"
	"io"
	"log"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/hashicorp/memberlist"

	"headwater.example/internal/membership/internal/guard"
)

// alive is memberlist's announcement of a node, which nobody needs to be to send it.
func alive(m Member, gossip netip.AddrPort) []byte {
	meta, err := encodeMetadata(m, false)
	if err != nil {
		panic(err)
	}
	raw := func(b []byte) []byte {
		return append(binary.BigEndian.AppendUint16([]byte{0xda}, uint16(len(b))), b...)
	}
	var b []byte
	b = append(b, 244, byte(len(label)))
	b = append(b, label...)
	b = append(b, 4, 0x86)
	b = append(b, "\xabIncarnation\x01\xa4Node"...)
	b = append(b, raw([]byte(keyOf(m)))...)
	b = append(b, "\xa4Addr"...)
	b = append(b, raw(gossip.Addr().AsSlice())...)
	b = append(b, "\xa4Port\xcd"...)
	b = binary.BigEndian.AppendUint16(b, gossip.Port())
	b = append(b, "\xa4Meta"...)
	b = append(b, raw(meta)...)
	return append(b, "\xa3Vsn\xc4\x06\x01\x05\x02\x00\x00\x00"...)
}

// awaitOutsiders waits until somebody is left out for this reason, and returns who is left out.
func awaitOutsiders(t *testing.T, v View, why string) []Outsider {
	t.Helper()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	late := time.After(patience)
	for {
		all := Outsiders(v)
		if slices.ContainsFunc(all, func(o Outsider) bool { return strings.Contains(o.Why, why) }) {
			return all
		}
		select {
		case <-tick.C:
		case <-late:
			t.Fatalf("nobody is left out because %q: %+v", why, all)
		}
	}
}

func TestForgedMembersAreNoMembers(t *testing.T) {
	a := start(t, process("a"))
	b := start(t, process("b", GossipAddr(a)))
	awaitNames(t, a, "a b")
	conn, err := net.Dial("udp", GossipAddr(a))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	silent := netip.MustParseAddrPort("127.66.66.66:9") // nobody is there
	living := netip.MustParseAddrPort(GossipAddr(b))    // another is there
	for i := range 40 {
		m := process(fmt.Sprintf("forged%d", i)).Self
		gossip := silent
		if i%2 == 0 {
			gossip = living
		}
		if _, err := conn.Write(alive(m, gossip)); err != nil {
			t.Fatal(err)
		}
	}
	out := awaitOutsiders(t, a, "nobody answers gossip at 127.66.66.66:9")
	awaitOutsiders(t, a, "nobody answers gossip at "+living.String())
	if len(out) > maxOutsiders {
		t.Errorf("%d are told of", len(out))
	}
	awaitNames(t, a, "a b")
}

func TestWhatGossipHoldsIsBounded(t *testing.T) {
	g := newGossip(process("a"))
	now := time.Now()
	for i := range maxNewcomers {
		if err := g.admitLocked(now); err != nil {
			t.Fatalf("newcomer %d: %v", i, err)
		}
	}
	if err := g.admitLocked(now); err == nil || !strings.Contains(err.Error(), "4096 processes joined within an hour") {
		t.Errorf("got %v", err)
	}
	if err := g.admitLocked(now.Add(2 * time.Hour)); err != nil {
		t.Errorf("two hours later: %v", err)
	}
	for i := range maxMembers {
		g.nodes[fmt.Sprint(i)] = &node{}
	}
	if err := g.admitLocked(now.Add(2 * time.Hour)); err == nil || !strings.Contains(err.Error(), "there are 1024 members") {
		t.Errorf("got %v", err)
	}
	for i := range 2 * maxOutsiders {
		_ = g.NotifyAlive(&memberlist.Node{Name: fmt.Sprint("x\x1b[31m", i)})
	}
	if len(g.refused) > maxOutsiders || len(Outsiders(g)) > maxOutsiders {
		t.Errorf("%d refusals are held", len(g.refused))
	}
	for _, o := range Outsiders(g) {
		if strings.ContainsRune(o.Name+o.Why, '\x1b') {
			t.Errorf("an escape sequence is told: %q", o)
		}
	}
	if guard.MaxNodes < maxNewcomers+maxMembers {
		t.Error("a state of all nodes that may be held is refused")
	}
}

// weightless announces a weight that can't be.
type weightless struct {
	*gossip
	m Member
}

func (w weightless) NodeMeta(int) []byte {
	meta, _ := encodeMetadata(w.m, false)
	binary.LittleEndian.PutUint32(meta[18:], 1<<32-1)
	return meta
}

func TestAWrongWeightLeavesAWorkerOutAndIsSaid(t *testing.T) {
	var logs records
	cfg := process("a")
	cfg.Logger = logs.logger()
	a := start(t, cfg)
	mc := memberlist.DefaultLocalConfig()
	mc.Name, mc.Label, mc.BindAddr, mc.BindPort = "heavy", label, "127.0.0.1", 0
	mc.Delegate = weightless{&gossip{}, process("heavy").Self}
	mc.Logger = log.New(io.Discard, "", 0)
	list, err := memberlist.Create(mc)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = list.Shutdown() }()
	for range 2 {
		_, _ = list.Join([]string{GossipAddr(a)})
	}
	if out := awaitOutsiders(t, a, "weight 4294967295 is more than 1048576"); out[0].Name != "heavy" {
		t.Errorf("left out: %+v", out)
	}
	awaitNames(t, a, "a")
	if n := logs.count("an announcement is not believed"); n != 1 {
		t.Errorf("it is logged %d times", n)
	}
}

// The others never find the first one dead in this test: its successor does not have to wait for that.
func TestAReturnAtANewAddressIsKnownAtOnce(t *testing.T) {
	patient := func(c *memberlist.Config) {
		quick(c)
		c.SuspicionMult = 10_000
	}
	cfg := process("a")
	cfg.tune = patient
	a := start(t, cfg)
	first := process("w", GossipAddr(a))
	first.tune = patient
	w := start(t, first)
	awaitBoot(t, a, "w", first.Self.Boot)
	kill(t, w)
	second := process("w", GossipAddr(a))
	second.tune = patient
	second.Self.Boot = uuid.New()
	start(t, second)
	awaitBoot(t, a, "w", second.Self.Boot)
	if out := Outsiders(a); len(out) > 0 {
		t.Errorf("left out: %+v", out)
	}
}

func TestLeftAndFoundDeadAreToldApart(t *testing.T) {
	var logs records
	cfg := process("a")
	cfg.Logger = logs.logger()
	a := start(t, cfg)
	leaves, dies := start(t, process("leaves", GossipAddr(a))), start(t, process("dies", GossipAddr(a)))
	awaitNames(t, a, "a dies leaves")
	awaitNames(t, leaves, "a dies leaves")
	if err := leaves.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	kill(t, dies)
	awaitNames(t, a, "a")
	awaitRecord(t, &logs, `level=INFO msg="member left" member=leaves`)
	awaitRecord(t, &logs, `level=WARN msg="member is found dead: it does not answer gossip" member=dies`)
}

// noPackets is a network that swallows all UDP packets.
type noPackets struct{ *guard.Transport }

func (noPackets) WriteTo([]byte, string) (time.Time, error) { return time.Now(), nil }
func (noPackets) WriteToAddress([]byte, memberlist.Address) (time.Time, error) {
	return time.Now(), nil
}

func TestBlockedUDPIsSaidOnceWithWhatToOpen(t *testing.T) {
	blocked := func(c *memberlist.Config) {
		calm(c) // a busy machine answers late over TCP as well, and nobody is to be found dead for that
		c.ProbeInterval, c.ProbeTimeout = 60*time.Millisecond, 20*time.Millisecond
		c.Transport = noPackets{c.Transport.(*guard.Transport)}
	}
	var logs records
	cfg := process("a")
	cfg.Logger, cfg.tune = logs.logger(), blocked
	a := start(t, cfg)
	other := process("b", GossipAddr(a))
	other.tune = blocked
	b := start(t, other)
	awaitNames(t, a, "a b")
	awaitRecord(t, &logs, "UDP is blocked")
	_, port, _ := net.SplitHostPort(GossipAddr(b))
	if logs.count("open UDP port "+port) != 1 {
		t.Error("what to open is not said")
	}
	// Many probes later it has not been said again, nor in memberlist's words.
	missed := func() int {
		g := a.(*gossip)
		g.mu.Lock()
		defer g.mu.Unlock()
		n := g.nodes[keyOf(other.Self)]
		if n == nil {
			t.Fatal("b is found dead, which this test does not allow")
		}
		return n.missed
	}
	tick := time.NewTicker(time.Millisecond) // nothing tells
	defer tick.Stop()
	late := time.After(patience)
	for missed() < 10*missedPackets {
		select {
		case <-tick.C:
		case <-late:
			t.Fatalf("only %d packets were missed", missed())
		}
	}
	if warnings := logs.lines("level=WARN", "UDP"); len(warnings) != 1 {
		t.Errorf("%d warnings:\n%s", len(warnings), strings.Join(warnings, "\n"))
	}
}
