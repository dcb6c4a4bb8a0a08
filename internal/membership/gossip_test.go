package membership

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/hashicorp/memberlist"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// patience bounds the waiting for what must come; nothing is asserted of how soon it does.
const patience = 30 * time.Second

// records is a logger's output that a test reads.
type records struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (r *records) Write(p []byte) (int, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.buf.Write(p)
}

func (r *records) count(text string) int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return strings.Count(r.buf.String(), text)
}

// lines returns the records that have all of these texts.
func (r *records) lines(texts ...string) (lines []string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for line := range strings.Lines(r.buf.String()) {
		if !slices.ContainsFunc(texts, func(text string) bool { return !strings.Contains(line, text) }) {
			lines = append(lines, line)
		}
	}
	return lines
}

func (r *records) logger() *slog.Logger {
	return slog.New(slog.NewTextHandler(r, &slog.HandlerOptions{Level: slog.LevelDebug}))
}

// quick finds the dead soon.
func quick(c *memberlist.Config) {
	c.ProbeInterval, c.ProbeTimeout = 50*time.Millisecond, 40*time.Millisecond
	c.GossipInterval, c.PushPullInterval = 10*time.Millisecond, 250*time.Millisecond
	c.SuspicionMult, c.SuspicionMaxTimeoutMult = 2, 1
}

// calm finds nobody dead who answers late, as on a busy machine.
func calm(c *memberlist.Config) {
	quick(c)
	c.SuspicionMult = 10_000
}

func process(name string, seeds ...string) GossipConfig {
	return GossipConfig{
		Self:      Member{Name: name, Boot: uuid.New(), Role: RoleWorker, Address: "127.0.0.1:7601", Version: "0.1.0", Weight: 2},
		Bind:      "127.0.0.1:0",
		Seeds:     seeds,
		SeedRetry: 10 * time.Millisecond,
		Logger:    slog.New(slog.DiscardHandler),
		tune:      quick,
	}
}

func start(t *testing.T, cfg GossipConfig) View {
	t.Helper()
	v, err := Gossip(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = v.Close(context.Background()) })
	return v
}

// kill ends a view as a killed process ends: without a word.
func kill(t *testing.T, v View) {
	t.Helper()
	g := v.(*gossip)
	g.closing.Do(func() {
		for _, err := range g.end() {
			t.Error(err)
		}
	})
}

// await waits until the view satisfies the condition.
func await(t *testing.T, v View, what string, holds func([]Member) bool) {
	t.Helper()
	late := time.After(patience)
	for {
		changed := v.Changed()
		members := v.Members()
		if holds(members) {
			return
		}
		select {
		case <-changed:
		case <-late:
			t.Fatalf("%s did not come; members are %+v", what, members)
		}
	}
}

func awaitNames(t *testing.T, v View, names string) {
	t.Helper()
	await(t, v, "members "+names, func(members []Member) bool {
		var got []string
		for _, m := range members {
			got = append(got, m.Name)
		}
		return strings.Join(got, " ") == names
	})
}

func awaitBoot(t *testing.T, v View, name string, boot [16]byte) {
	t.Helper()
	await(t, v, "the boot of "+name, func(members []Member) bool {
		for _, m := range members {
			if m.Name == name && m.Boot == boot {
				return true
			}
		}
		return false
	})
}

func TestMembersFindEachOtherAndSayLeave(t *testing.T) {
	c := process("coord")
	c.Self.Role, c.Self.Weight = RoleCoordinator, 0
	coord := start(t, c)
	seed := GossipAddr(coord)
	w := process("w1", seed)
	w1 := start(t, w)
	w0 := start(t, process("w0", seed))
	for _, v := range []View{coord, w0, w1} {
		awaitNames(t, v, "coord w0 w1")
	}
	if got := w0.Members()[2]; got != w.Self {
		t.Errorf("w0 sees %+v, announced was %+v", got, w.Self)
	}
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	for range 2 {
		if err := w1.Close(ctx); err != nil {
			t.Fatal(err)
		}
	}
	awaitNames(t, coord, "coord w0")
	awaitNames(t, w0, "coord w0")
	// A context that has ended makes Close quick, not incomplete.
	cancel()
	_ = w0.Close(ctx)
	awaitNames(t, coord, "coord")
}

func TestDeadMembersAreFound(t *testing.T) {
	a := start(t, process("a"))
	b := start(t, process("b", GossipAddr(a)))
	awaitNames(t, a, "a b")
	awaitNames(t, b, "a b")
	kill(t, b)
	awaitNames(t, a, "a")
}

func TestSeedNamesAreResolvedAtEachTry(t *testing.T) {
	a := start(t, process("a"))
	where := netip.MustParseAddrPort(GossipAddr(a))
	_, port, err := net.SplitHostPort(GossipAddr(a))
	if err != nil {
		t.Fatal(err)
	}
	var logs records
	tries := 0 // of the joining goroutine alone
	cfg := process("b", "a.headwater:"+port)
	cfg.Logger = logs.logger()
	cfg.lookup = func(_ context.Context, host string) ([]netip.Addr, error) {
		tries++
		switch {
		case host != "a.headwater":
			return nil, errors.New("wrong name " + host)
		case tries == 1:
			return nil, errors.New("no such host")
		case tries == 2:
			return nil, nil
		case tries == 3:
			return []netip.Addr{netip.MustParseAddr("127.99.99.99")}, nil // nobody gossips there
		}
		return []netip.Addr{netip.MustParseAddr("127.99.99.99"), where.Addr()}, nil
	}
	b := start(t, cfg)
	awaitNames(t, b, "a b")
	awaitNames(t, a, "a b")
	if n := logs.count("no such host"); n != 1 {
		t.Errorf("a failure that lasts is said %d times", n)
	}
	if logs.count("no gossip at 127.99.99.99:"+port) == 0 {
		t.Error("an address where nobody gossips is not told")
	}
}

func TestASeedThatComesBackIsJoinedAgain(t *testing.T) {
	a := start(t, process("a"))
	seed := GossipAddr(a)
	b := start(t, process("b", seed))
	awaitNames(t, b, "a b")
	kill(t, a)
	awaitNames(t, b, "b")
	cfg := process("a")
	cfg.Bind = seed
	a = start(t, cfg)
	awaitNames(t, a, "a b")
	awaitBoot(t, b, "a", cfg.Self.Boot)
}

// The one that was restarted has no seeds, and was never missed: the others have to tell it of themselves.
func TestARestartTooShortToBeMissedIsNoticed(t *testing.T) {
	patient := func(c *memberlist.Config) {
		quick(c)
		c.SuspicionMult = 10_000
		c.PushPullInterval = 0
	}
	first := process("a")
	first.tune = patient
	a := start(t, first)
	seed := GossipAddr(a)
	cfg := process("b", seed)
	cfg.tune = patient
	b := start(t, cfg)
	awaitNames(t, b, "a b")
	awaitNames(t, a, "a b")
	kill(t, a)
	second := process("a")
	second.tune, second.Bind = patient, seed
	a = start(t, second)
	awaitNames(t, a, "a b")
	awaitBoot(t, b, "a", second.Self.Boot)
}

func TestOfTwoWithOneNameTheFirstKeepsItWhileItLives(t *testing.T) {
	for _, end := range []struct {
		name string
		of   func(*testing.T, View)
	}{
		{"until it leaves", func(t *testing.T, v View) {
			if err := v.Close(t.Context()); err != nil {
				t.Error(err)
			}
		}},
		{"until it is found dead", kill},
	} {
		t.Run(end.name, func(t *testing.T) {
			var logs records
			watching := process("a")
			watching.Logger = logs.logger()
			a := start(t, watching)
			first := process("twin", GossipAddr(a))
			w0 := start(t, first)
			awaitNames(t, a, "a twin")
			awaitNames(t, w0, "a twin")

			var seen records
			second := process("twin", GossipAddr(a))
			second.Self.Address = "127.0.0.1:7602"
			second.Logger = seen.logger()
			w1 := start(t, second)
			awaitNames(t, w1, "a twin")
			awaitRecord(t, &seen, "another living process has the name of this one")
			awaitRecord(t, &logs, "start one of them with another --name")
			awaitBoot(t, a, "twin", first.Self.Boot)
			if n := logs.count("two living processes have one name"); n != 1 {
				t.Errorf("the conflict is told %d times", n)
			}
			out := Outsiders(a)
			if len(out) != 1 || out[0].Name != "twin" || out[0].Address != "127.0.0.1:7602" || !strings.Contains(out[0].Why, "--name") {
				t.Errorf("who is left out: %+v", out)
			}

			end.of(t, w0)
			awaitBoot(t, a, "twin", second.Self.Boot)
			awaitBoot(t, w1, "twin", second.Self.Boot)
		})
	}
}

// TestOneOfSeveralTakesTheNameOfADeadOne: a process that is restarted twice in a row is two nodes, which may both find that the one before
// does not answer. One of them is the member then, also if that one has left meanwhile.
func TestOneOfSeveralTakesTheNameOfADeadOne(t *testing.T) {
	for _, leaves := range []bool{false, true} {
		g := start(t, process("a")).(*gossip)
		var nodes []*node
		for i := range 3 {
			n := &node{
				Member: Member{Name: "w", Boot: uuid.New(), Role: RoleWorker}, key: fmt.Sprint("w", i),
				gossip: netip.MustParseAddrPort("127.0.0.1:9"), gone: make(chan struct{}),
			}
			nodes = append(nodes, n)
			g.mu.Lock()
			g.nodes[n.key] = n
			g.mu.Unlock()
		}
		old, one, other := nodes[0], nodes[1], nodes[2]
		if g.claim(old) != nil || g.claim(one) != old || g.claim(other) != old {
			t.Fatal("the first does not hold its name")
		}
		if leaves {
			g.NotifyLeave(&memberlist.Node{Name: old.key})
			if g.claim(one) != nil {
				t.Error("the name of one that left is not to be had")
			}
		} else if !g.replace(old, one) {
			t.Error("one does not take the place of a dead one")
		}
		if g.replace(old, other) {
			t.Error("another takes the place of who is no member")
		}
		awaitNames(t, g, "a w")
		awaitBoot(t, g, "w", one.Boot)
		if g.claim(other) != one {
			t.Error("the member of the name is not who took it")
		}
	}
}

// awaitRecord waits for a record of a view's log, which nothing announces.
func awaitRecord(t *testing.T, logs *records, text string) {
	t.Helper()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	late := time.After(patience)
	for logs.count(text) == 0 {
		select {
		case <-tick.C:
		case <-late:
			t.Fatalf("%q is not logged", text)
		}
	}
}

// foreign9 announces metadata of format 9.
type foreign9 struct{ *gossip }

func (foreign9) NodeMeta(int) []byte { return []byte{9} }

func TestForeignMembersStayOutside(t *testing.T) {
	var logs records
	cfg := process("a")
	cfg.Logger = logs.logger()
	a := start(t, cfg)
	for _, foreign := range []struct{ name, label, says string }{
		{"other-label", "other", "label"},
		{"other-metadata", label, "metadata of format 9, this program reads 1"},
	} {
		mc := memberlist.DefaultLocalConfig()
		mc.Name, mc.Label, mc.BindAddr, mc.BindPort = foreign.name, foreign.label, "127.0.0.1", 0
		mc.Delegate = foreign9{&gossip{}}
		mc.Logger = log.New(&records{}, "", 0)
		list, err := memberlist.Create(mc)
		if err != nil {
			t.Fatal(err)
		}
		_, _ = list.Join([]string{GossipAddr(a)})
		awaitRecord(t, &logs, foreign.says)
		if err := list.Shutdown(); err != nil {
			t.Error(err)
		}
	}
	awaitNames(t, a, "a")
}

func TestGossipThatCannotStart(t *testing.T) {
	taken := start(t, process("taken"))
	for rule, change := range map[string]func(*GossipConfig){
		"boot UUID is zero":                 func(c *GossipConfig) { c.Self.Boot = [16]byte{} },
		`address "127.0.0.1" names no port`: func(c *GossipConfig) { c.Bind = "127.0.0.1" },
		`port "x" is not a number`:          func(c *GossipConfig) { c.Bind = "127.0.0.1:x" },
		"resolving nowhere: gone":           func(c *GossipConfig) { c.Bind = "nowhere:0" },
		"advertise: resolving nowhere":      func(c *GossipConfig) { c.Advertise = "nowhere" },
		"others can't dial 0.0.0.0":         func(c *GossipConfig) { c.Advertise = "0.0.0.0" },
		"names a port, and 127.0.0.1:0":     func(c *GossipConfig) { c.Advertise = "127.0.0.1:7" },
		`address "unix:/a": gossip needs`:   func(c *GossipConfig) { c.Bind = "unix:/a" },
		`seed: address "a" names no port`:   func(c *GossipConfig) { c.Seeds = []string{"a"} },
		"address already in use":            func(c *GossipConfig) { c.Bind = GossipAddr(taken) },
	} {
		cfg := process("a")
		cfg.lookup = func(context.Context, string) ([]netip.Addr, error) { return nil, errors.New("gone") }
		change(&cfg)
		v, err := Gossip(t.Context(), cfg)
		if err == nil || v != nil || !strings.Contains(err.Error(), rule) {
			t.Errorf("want an error that says %q, got %v", rule, err)
		}
	}
}

func TestAdvertisedAddress(t *testing.T) {
	cfg := process("a")
	cfg.Bind, cfg.Advertise = ":0", "127.0.0.1"
	a := start(t, cfg)
	if host, port, _ := net.SplitHostPort(GossipAddr(a)); host != "127.0.0.1" || port == "0" {
		t.Errorf("advertised %s", GossipAddr(a))
	}
}

func TestMemberlistsLinesBecomeRecords(t *testing.T) {
	var logs records
	w := &logWriter{log: logs.logger(), now: time.Now}
	for line, want := range map[string]string{
		"[DEBUG] memberlist: one\n":                         "level=DEBUG msg=one by=memberlist",
		"[INFO] memberlist: two\n":                          "level=DEBUG msg=two by=memberlist",
		"[WARN] memberlist: three\n":                        "level=WARN msg=three by=memberlist",
		"[ERR] memberlist: four\n":                          "level=WARN msg=four by=memberlist",
		"[ERR] memberlist: Conflicting address for five.\n": `level=DEBUG msg="Conflicting address for five." by=memberlist`,
		"[WARN] memberlist: Refuting a dead message\n":      `level=DEBUG msg="Refuting a dead message" by=memberlist`,
		"[ six\n": `level=DEBUG msg="[ six" by=memberlist`,
	} {
		if n, err := w.Write([]byte(line)); n != len(line) || err != nil {
			t.Errorf("%q: %d, %v", line, n, err)
		}
		if logs.count(want) != 1 {
			t.Errorf("%q did not become %q", line, want)
		}
	}
	// A warning of one kind is said once.
	for range 3 {
		_, _ = w.Write([]byte("[ERR] memberlist: Failed to send UDP ping: write udp 10.0.0.1\n"))
	}
	if n := logs.count(`level=WARN msg="Failed to send UDP ping`); n != 1 {
		t.Errorf("a warning is said %d times", n)
	}
	w.close()
	if _, err := w.Write([]byte("[WARN] memberlist: late\n")); err != nil || logs.count("late") != 0 {
		t.Error("written after the close")
	}
}
