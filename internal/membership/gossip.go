package membership

import (
	"context"
	"fmt"
	"log"
	"log/slog"
	"maps"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/memberlist"
)

// GossipConfig says whom to announce and where.
type GossipConfig struct {
	// Self is announced to the others. Its boot is fresh at each start of the process.
	Self Member
	// Bind is the host:port that gossip listens on, over TCP and UDP. Port 0 takes a free one (see GossipAddr); an empty
	// host is every IPv4 address.
	Bind string
	// Advertise is the host, or host:port where Bind names a port, under which others reach Bind. Empty is the address
	// bound, or for 0.0.0.0 the machine's private address. A host name is resolved once, here.
	Advertise string
	// Seeds are host:port of gossip of others, one of which leads to all. Names are resolved anew at each try, all of
	// their addresses are joined, and the own one is left out, so that all members can have the same seeds.
	Seeds []string
	// SeedRetry is the time after which a seed that did not answer is tried again. It doubles up to 16 times of it, and is
	// 16 times of it once all answered: seeds that left the view since are then joined again, which heals a cluster that
	// was cut. Zero is one second.
	SeedRetry time.Duration
	// Logger gets what happens to members, and memberlist's own messages. Nil is slog.Default().
	Logger *slog.Logger

	lookup func(ctx context.Context, host string) ([]netip.Addr, error) // nil is the system's resolver
	tune   func(*memberlist.Config)                                     // nil but in tests
}

// label stands before each packet and stream of gossip, so that a foreign memberlist at the same address stays outside.
const label = "headwater"

// leaveTimeout bounds the saying of leave where the context of Close does not.
const leaveTimeout = 5 * time.Second

// Gossip announces cfg.Self and follows the others. It returns once it listens; a goroutine that Close ends joins the
// seeds. The context bounds this call alone.
//
// Where two living processes have one name, the first keeps it and the conflict is logged on every member; once the first
// left or is found dead, the one at the newer address takes its place.
func Gossip(ctx context.Context, cfg GossipConfig) (View, error) {
	g := &gossip{
		boot:    cfg.Self.Boot,
		name:    cfg.Self.Name,
		seeds:   slices.Clone(cfg.Seeds),
		retry:   cfg.SeedRetry,
		log:     cfg.Logger,
		lookup:  cfg.lookup,
		forgot:  make(chan string, 1),
		joined:  make(chan struct{}),
		members: make(map[string]placed),
		told:    make(map[string]string),
		changed: make(chan struct{}),
	}
	if g.log == nil {
		g.log = slog.Default()
	}
	if g.retry <= 0 {
		g.retry = time.Second
	}
	if g.lookup == nil {
		g.lookup = func(ctx context.Context, host string) ([]netip.Addr, error) {
			return net.DefaultResolver.LookupNetIP(ctx, "ip", host)
		}
	}
	for _, seed := range g.seeds {
		if err := validateAddress(seed); err != nil {
			return nil, fmt.Errorf("gossip seed: %w", err)
		}
	}
	var err error
	if g.meta, err = encodeMetadata(cfg.Self); err != nil {
		return nil, fmt.Errorf("announcing this process: %w", err)
	}
	mc, err := g.config(ctx, cfg)
	if err != nil {
		return nil, err
	}
	if g.list, err = memberlist.Create(mc); err != nil {
		g.output.close()
		return nil, fmt.Errorf("gossiping on %s: %w", cfg.Bind, err)
	}
	self := g.list.LocalNode()
	g.address = net.JoinHostPort(self.Addr.String(), strconv.Itoa(int(self.Port)))
	g.log.Debug("gossip listens", "bind", cfg.Bind, "advertise", g.address)

	joining, stop := context.WithCancel(context.Background())
	g.stop = stop
	go func() {
		defer close(g.joined)
		g.join(joining)
	}()
	return g, nil
}

// GossipAddr returns the host:port under which the others gossip with this view: a seed for them. It is "" for a view
// that does not gossip.
func GossipAddr(v View) string {
	if g, ok := v.(interface{ GossipAddr() string }); ok {
		return g.GossipAddr()
	}
	return ""
}

// config returns memberlist's configuration; g becomes its delegate.
func (g *gossip) config(ctx context.Context, cfg GossipConfig) (*memberlist.Config, error) {
	mc := memberlist.DefaultLANConfig()
	mc.Name = cfg.Self.Name
	mc.Label = label
	host, port, err := splitPort(cfg.Bind)
	if err != nil {
		return nil, fmt.Errorf("gossip address to bind: %w", err)
	}
	if host == "" {
		host = "0.0.0.0"
	}
	bind, err := g.resolveOne(ctx, host)
	if err != nil {
		return nil, fmt.Errorf("gossip address to bind: %w", err)
	}
	mc.BindAddr, mc.BindPort, mc.AdvertisePort = bind.String(), port, port
	if cfg.Advertise != "" {
		host := cfg.Advertise
		if h, p, err := splitPort(cfg.Advertise); err == nil {
			if port == 0 {
				return nil, fmt.Errorf("gossip address to advertise: %s names a port, and %s, which is bound, does not", cfg.Advertise, cfg.Bind)
			}
			host, mc.AdvertisePort = h, p
		}
		advertise, err := g.resolveOne(ctx, host)
		if err != nil {
			return nil, fmt.Errorf("gossip address to advertise: %w", err)
		}
		if advertise.IsUnspecified() {
			return nil, fmt.Errorf("gossip address to advertise: others can't reach %s", advertise)
		}
		mc.AdvertiseAddr = advertise.String()
	} else if bind.Is6() && bind.IsUnspecified() {
		return nil, fmt.Errorf("gossip bound to %s needs an address to advertise", bind)
	}

	mc.GossipInterval = 100 * time.Millisecond // leave is said over a few of these
	mc.PushPullInterval = 10 * time.Second     // bounds how long one that missed a message stays wrong
	mc.TCPTimeout = 3 * time.Second            // Close may wait for a seed that swallows packets
	mc.DeadNodeReclaimTime = time.Nanosecond   // a name is free as soon as its holder is dead
	mc.Delegate, mc.Events, mc.Conflict, mc.Alive, mc.Ping = g, g, g, g, g
	g.output = &logWriter{log: g.log}
	mc.Logger = log.New(g.output, "", 0)
	if cfg.tune != nil {
		cfg.tune(mc)
	}
	return mc, nil
}

func splitPort(address string) (host string, port int, err error) {
	host, p, err := net.SplitHostPort(address)
	if err != nil {
		return "", 0, fmt.Errorf("%q is not host:port", address)
	}
	n, err := strconv.ParseUint(p, 10, 16)
	if err != nil {
		return "", 0, fmt.Errorf("%q: port %q is not in [0, 65535]", address, p)
	}
	return host, int(n), nil
}

// gossip is the view by memberlist, and its delegate. Memberlist calls the Notify methods with its own lock held: they
// take g.mu alone and call nothing of memberlist.
type gossip struct {
	list    *memberlist.Memberlist
	boot    [16]byte
	name    string
	meta    []byte
	address string
	seeds   []string
	retry   time.Duration
	log     *slog.Logger
	output  *logWriter
	lookup  func(ctx context.Context, host string) ([]netip.Addr, error)

	forgot     chan string   // gossip address of a member that was restarted and may know nobody
	conflicted atomic.Bool   // another holds this process's name
	joined     chan struct{} // closed when the joining goroutine ended
	stop       context.CancelFunc
	closing    sync.Once
	closed     error

	mu      sync.Mutex
	members map[string]placed // guarded by mu: the living, by name
	told    map[string]string // guarded by mu: by name, the conflict last logged
	changed chan struct{}     // guarded by mu
}

// placed is a member and where it gossips.
type placed struct {
	Member
	gossip netip.AddrPort
}

func (g *gossip) Members() []Member {
	g.mu.Lock()
	defer g.mu.Unlock()
	members := make([]Member, 0, len(g.members))
	for m := range maps.Values(g.members) {
		members = append(members, m.Member)
	}
	return sorted(members)
}

func (g *gossip) Changed() <-chan struct{} {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.changed
}

// GossipAddr returns the host:port under which the others gossip with this process.
func (g *gossip) GossipAddr() string { return g.address }

func (g *gossip) Close(ctx context.Context) error {
	g.closing.Do(func() {
		g.stop()
		<-g.joined
		timeout := leaveTimeout
		if deadline, ok := ctx.Deadline(); ok {
			timeout = min(timeout, time.Until(deadline))
		}
		if ctx.Err() != nil {
			timeout = 0
		}
		var failed []error
		if err := g.list.Leave(max(timeout, time.Millisecond)); err != nil { // zero would be forever
			failed = append(failed, fmt.Errorf("saying leave by gossip: %w", err))
		}
		if err := g.list.Shutdown(); err != nil {
			failed = append(failed, fmt.Errorf("ending gossip: %w", err))
		}
		g.output.close()
		g.closed = oneLine(failed)
	})
	return g.closed
}

// changedLocked tells the readers. The caller holds g.mu.
func (g *gossip) changedLocked() {
	close(g.changed)
	g.changed = make(chan struct{})
}

// NotifyAlive keeps those outside whose metadata can't be read, and is called before any of the others.
func (g *gossip) NotifyAlive(peer *memberlist.Node) error {
	_, err := decodeMetadata(peer.Name, peer.Meta)
	return err
}

// NotifyJoin takes up a member that was unknown, dead or gone.
func (g *gossip) NotifyJoin(node *memberlist.Node) { g.take(node) }

// NotifyUpdate takes up a member's new metadata.
func (g *gossip) NotifyUpdate(node *memberlist.Node) { g.take(node) }

func (g *gossip) take(node *memberlist.Node) {
	m, err := decodeMetadata(node.Name, node.Meta)
	if err != nil {
		return // NotifyAlive let none of these in
	}
	ip, _ := netip.AddrFromSlice(node.Addr)
	g.mu.Lock()
	old, known := g.members[m.Name]
	g.members[m.Name] = placed{Member: m, gossip: netip.AddrPortFrom(ip.Unmap(), node.Port)}
	if old.Member != m {
		g.changedLocked()
	}
	delete(g.told, m.Name)
	g.mu.Unlock()
	switch {
	case m.Name == g.name:
	case !known:
		g.log.Info("member joined", "member", m.Name, "role", m.Role.String(), "address", m.Address, "version", m.Version)
	case old.Boot != m.Boot:
		g.log.Info("member was restarted", "member", m.Name, "role", m.Role.String(), "address", m.Address, "version", m.Version)
	}
}

// NotifyLeave forgets a member that left or is found dead.
func (g *gossip) NotifyLeave(node *memberlist.Node) {
	g.mu.Lock()
	m, known := g.members[node.Name]
	if known {
		delete(g.members, node.Name)
		g.changedLocked()
	}
	g.mu.Unlock()
	if !known || node.Name == g.name {
		return
	}
	g.log.Info("member left or is found dead", "member", m.Name, "role", m.Role.String(), "address", m.Address)
}

// NotifyConflict hears of another process that says it has a living member's name. Memberlist keeps the one it knows.
func (g *gossip) NotifyConflict(existing, other *memberlist.Node) {
	if existing.Name == g.name {
		g.conflicted.Store(true)
	}
	was, _ := decodeMetadata(existing.Name, existing.Meta)
	says, err := decodeMetadata(other.Name, other.Meta)
	if err != nil {
		return
	}
	key := fmt.Sprintf("%s %x", other.Address(), says.Boot)
	g.mu.Lock()
	repeated := g.told[existing.Name] == key
	g.told[existing.Name] = key
	g.mu.Unlock()
	if repeated {
		return
	}
	g.log.Error("two living members have one name; the first keeps it", "member", existing.Name,
		"address", was.Address, "boot", fmt.Sprintf("%x", was.Boot), "other_address", says.Address, "other_boot", fmt.Sprintf("%x", says.Boot))
}

// AckPayload says this boot in the answer to every probe.
func (g *gossip) AckPayload() []byte { return g.boot[:] }

// NotifyPingComplete compares the boot that answered with the one known. A process that came back at its old address is
// never missed by the probes, but knows nobody: it is joined anew, upon which it says its new boot to all.
func (g *gossip) NotifyPingComplete(other *memberlist.Node, _ time.Duration, payload []byte) {
	g.mu.Lock()
	m, known := g.members[other.Name]
	g.mu.Unlock()
	if !known || len(payload) != len(m.Boot) || [16]byte(payload) == m.Boot {
		return
	}
	select {
	case g.forgot <- m.gossip.String():
	default: // one is waiting already, the next probe brings this one again
	}
}

// NodeMeta returns the metadata to announce.
func (g *gossip) NodeMeta(int) []byte { return g.meta }

// NotifyMsg ignores messages: Headwater sends none by gossip.
func (g *gossip) NotifyMsg([]byte) {}

// GetBroadcasts has nothing to add to what memberlist says.
func (g *gossip) GetBroadcasts(int, int) [][]byte { return nil }

// LocalState has nothing to add to what memberlist says.
func (g *gossip) LocalState(bool) []byte { return nil }

// MergeRemoteState has nothing to read.
func (g *gossip) MergeRemoteState([]byte, bool) {}
